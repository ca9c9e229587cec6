use std::borrow::Cow;

/// Text that may come from a file, safe to print: what would move the cursor, break the line,
/// change the direction of writing or not be seen at all is replaced by U+FFFD.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_hidden) {
        let shown = |c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c };
        text.chars().map(shown).collect::<String>().into()
    } else {
        text.into()
    }
}

/// Controls; line and paragraph separators; marks, embeddings, overrides and isolates of
/// bidirectional text; characters without width; tags.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_seen_is_printed() {
        for text in ["", "AMD EPYC 9R14", "modèle 模型 مدل 🙂", "a\u{fffd}b"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        }
        for c in
            ['\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200b}']
        {
            assert_eq!(printable(&format!("a{c}b")), "a\u{fffd}b", "{c:?}");
        }
    }
}
