//! The text that a command is given: where it comes from, and what of it is no text.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use bitnet_profiles::patient;
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::text::tokenizer::MAX_TEXT;

/// The flags that say what the prompt is.
#[derive(Debug, clap::Args)]
pub struct PromptArgs {
    /// The text to continue; without it and --file what comes through a pipe, else nothing but the
    /// begin-of-text token. In a conversation the first message, with -cnv the system prompt
    #[arg(short, long, value_name = "TEXT", overrides_with = "file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text, or - for stdin; a newline at its end is left out
    #[arg(short, long, value_name = "FILE", overrides_with = "prompt")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub escapes: EscapeArgs,
}

/// The flags that say what backslashes in a text are.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct EscapeArgs {
    /// Take \n, \r, \t, \", \', \\ and \xHH in the text for what they stand for, as is done anyway
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Take backslashes in the text for backslashes
    #[arg(long, overrides_with = "escape")]
    no_escape: bool,
}

/// Treatment of the line end behind the last line of a file or a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLineEnd {
    /// It is part of the text.
    Kept,
    /// It ends the file, not the text.
    Dropped,
}

impl PromptArgs {
    /// The text of --prompt or --file, whichever was given last, else that of a stdin that is no
    /// terminal, else none.
    ///
    /// # Errors
    /// Those of [`from_path`] and [`unescape`].
    pub fn text(&self) -> Result<String> {
        match self.given()? {
            Some(text) => Ok(text),
            None if io::stdin().is_terminal() => Ok(String::new()),
            None => self.escapes.text(from_path(Path::new(STDIN), LastLineEnd::Dropped)?),
        }
    }

    /// The text of --prompt or --file, whichever was given last, if one was.
    ///
    /// # Errors
    /// As [`PromptArgs::text`].
    pub fn given(&self) -> Result<Option<String>> {
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => from_path(path, LastLineEnd::Dropped)?,
            (None, None) => return Ok(None),
        };
        self.escapes.text(text).map(Some)
    }
}

impl EscapeArgs {
    /// The text of a flag with what its escapes stand for.
    ///
    /// # Errors
    /// Those of [`unescape`].
    pub fn text(self, text: String) -> Result<String> {
        if self.apply(true) { unescape(&text) } else { Ok(text) }
    }

    /// Returns true if escapes stand for something: as was asked for, else as `default` says.
    pub fn apply(self, default: bool) -> bool {
        self.escape || default && !self.no_escape
    }
}

/// The name that stands for stdin.
const STDIN: &str = "-";

/// The text of a file, or of stdin for `-`, without a byte order mark.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, is longer than [`MAX_TEXT`] or not UTF-8.
pub fn from_path(path: &Path, last: LastLineEnd) -> Result<String> {
    if path.as_os_str() == STDIN {
        return from_file(patient::stdin(), Path::new("stdin"), last);
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    from_file(file, path, last)
}

/// The text of what is open, without a byte order mark; errors name `path`.
fn from_file(file: impl Read, path: &Path, last: LastLineEnd) -> Result<String> {
    let refused = |message: String| Error::io(path, "read", io::Error::other(message));
    let mut bytes = Vec::new();
    file.take(MAX_TEXT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() > MAX_TEXT {
        return Err(refused(format!("it is over {MAX_TEXT} bytes; give it in parts")));
    }
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes[..] {
        return Err(refused("it is UTF-16; save it as UTF-8".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        refused(format!("byte {at} is not UTF-8; convert the text"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = match last {
        LastLineEnd::Kept => text,
        LastLineEnd::Dropped => {
            text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line))
        }
    };
    Ok(text.to_owned())
}

/// Replaces \n, \r, \t, \", \', \\ and \xHH, two hexadecimal digits for a byte, by what they stand
/// for, as llama.cpp does; other backslashes stay.
///
/// # Errors
/// [`Error::Usage`] when the bytes are not UTF-8.
pub fn unescape(text: &str) -> Result<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        let (byte, length) = match *rest {
            [] => break,
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', b't', ..] => (b'\t', 2),
            [b'\\', byte @ (b'"' | b'\'' | b'\\'), ..] => (byte, 2),
            [b'\\', b'x', high, low, ..] => match (digit(high), digit(low)) {
                // Two digits make a byte.
                (Some(high), Some(low)) => ((high * 16 + low) as u8, 4),
                _ => (b'\\', 1),
            },
            [byte, ..] => (byte, 1),
        };
        out.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8(out).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let found = format!("\\x{:02x} at byte {at}", e.as_bytes()[at]);
        Error::usage("prompt", found, "escapes that spell UTF-8, or --no-escape")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let cases = [
            (r"a\nb\tc\r", "a\nb\tc\r"),
            (r#"\"\'\\n"#, "\"'\\n"),
            (r"\x41 \x0a\x0A", "A \n\n"),
            (r"\xe2\x82\xac", "€"),
            (r"\q \x4 \xg1 \x", r"\q \x4 \xg1 \x"),
            (r"\\x41", r"\x41"),
            ("é\\né\\", "é\né\\"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text).unwrap(), expected);
        }
        let error = unescape(r"ab\xff").unwrap_err().to_string();
        assert!(error.contains(r"\xff at byte 2") && error.contains("--no-escape"), "{error}");
    }

    #[test]
    fn w9_neither_a_byte_order_mark_nor_the_last_line_end_is_text() {
        let text = |bytes: &str, last| from_file(bytes.as_bytes(), Path::new("f"), last).unwrap();
        for (content, dropped, kept) in [
            ("\u{feff}a\r\nb\r\n", "a\r\nb", "a\r\nb\r\n"),
            ("a\n", "a", "a\n"),
            ("a\n\n", "a\n", "a\n\n"),
            ("a\r", "a\r", "a\r"),
            ("\u{feff}\u{feff}", "\u{feff}", "\u{feff}"),
            ("\r\n", "", "\r\n"),
            ("", "", ""),
        ] {
            assert_eq!(text(content, LastLineEnd::Dropped), dropped);
            assert_eq!(text(content, LastLineEnd::Kept), kept);
        }
        for (bytes, word) in [(&b"\xff\xfea\0"[..], "UTF-16"), (b"a\xff", "byte 1 is not UTF-8")] {
            let error =
                from_file(bytes, Path::new("f"), LastLineEnd::Kept).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
