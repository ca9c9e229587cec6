//! The tokens that end a generation, by llama.cpp's rule (src/llama-vocab.cpp): those that the file
//! names, and those whose text is one that makers of models use for it.

use super::vocabulary::{Kind, Kinds};
use crate::file::gguf::StrArray;

/// Texts of tokens that end a text, a turn or a message.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// Texts of tokens that pad, name a repository or separate files where code is filled in: behind them
/// another file would begin.
const FILL_IN_THE_MIDDLE: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<fim_repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
    "<file_sep>",
    "<fim_sep>",
];

/// Returns the ids of all tokens that end a generation, ascending: those `named` by the file, and those
/// of a known text, which become control tokens, so that no prompt spells them by chance.
pub(super) fn ids(
    tokens: &StrArray,
    kinds: &mut Kinds,
    named: impl Iterator<Item = u32>,
) -> Vec<u32> {
    let known = |text: &str| ENDS.contains(&text) || FILL_IN_THE_MIDDLE.contains(&text);
    let mut ids: Vec<u32> = named.collect();
    for (id, text) in tokens.iter().enumerate() {
        if known(text) && counts(text, kinds.of[id], kinds.told) {
            kinds.of[id] = Kind::Control;
            ids.push(id as u32);
        }
    }
    ids.sort_unstable();
    ids.dedup();

    let is = |id: &u32, text: &str| tokens.get(*id as usize) == Some(text);
    let has = |text: &str| ids.iter().any(|id| is(id, text));
    // Where calls have tokens of their own, this one ends a message amid a turn.
    let calls = has("<|call|>") || has("<|calls|>");
    let amid = calls && (has("<|return|>") || has("<|flush|>"));
    // Vocabularies with this token have the other one as ordinary text.
    let ordinary = has("<|tool_response>");
    ids.retain(|id| match () {
        () if amid && is(id, "<|end|>") => {
            kinds.of[*id as usize] = Kind::UserDefined;
            false
        }
        () => !(ordinary && is(id, "</s>")),
    });
    ids
}

/// True if a token of a known text is that token, and not a text that looks like it: where the file
/// tells ordinary tokens from others, an ordinary `</s>` is HTML. Nothing but a control token is spelt
/// `<|...|>`, and some converters forget to say so.
fn counts(text: &str, kind: Kind, told: bool) -> bool {
    match kind {
        Kind::Control | Kind::UserDefined | Kind::Unknown => true,
        Kind::Normal => !told || (text.starts_with("<|") && text.ends_with("|>")),
        Kind::Unused | Kind::Byte => false,
    }
}
