//! The vocabulary of a GGUF file: tokens, their types, merges, tokens matched in the text.

use std::cmp::Ordering;

use crate::error::{Result, quoted};
use crate::file::gguf::{Array, Gguf, StrArray};

pub(super) const KEY_MODEL: &str = "tokenizer.ggml.model";
const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_TYPES: &str = "tokenizer.ggml.token_type";
const KEY_SCORES: &str = "tokenizer.ggml.scores";
pub(super) const KEY_MERGES: &str = "tokenizer.ggml.merges";

/// Longest piece in bytes. Real ones stay below 300; joining looks up texts of this length.
pub(super) const MAX_TOKEN: usize = 1024;

/// The token types of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_id(id: i64) -> Option<Kind> {
        Some(match id {
            // 0 is "undefined" in llama.cpp, which treats it as an ordinary token.
            0 | 1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }

    /// True if joining text may give, or go on from, a token of this type.
    pub(super) fn joins(self) -> bool {
        matches!(self, Kind::Normal | Kind::UserDefined)
    }
}

/// Tokens that end a generation wherever a vocabulary has them.
pub(super) const END_TOKENS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// The GPT-2 alphabet: the printable character that stands for each byte.
///
/// Bytes that print (`!` to `~`, U+00A1 to U+00AC, U+00AE to U+00FF) stand for themselves, the
/// others for U+0100 onwards in order.
pub fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let code = if matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            b as u32
        } else {
            next += 1;
            next - 1
        };
        // All codes are below U+0144, where every code is a character.
        char::from_u32(code).unwrap_or('\0')
    })
}

/// The byte that a character of the GPT-2 alphabet stands for.
pub(super) fn byte_of(alphabet: &[char; 256], c: char) -> Option<u8> {
    if alphabet.get(c as usize) == Some(&c) {
        return Some(c as u8);
    }
    // The rest starts at U+0100: 33 control characters and space, 34 after `~`, and U+00AD.
    alphabet.iter().position(|&a| a == c).map(|b| b as u8)
}

/// The byte that a SentencePiece byte token such as `<0x0A>` stands for.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let strict = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    strict.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// A token that is matched in the text before anything else.
pub(super) struct Special {
    pub(super) id: u32,
    /// Found only when special tokens are asked for.
    pub(super) only_when_asked: bool,
    /// Swallows the white space after it.
    pub(super) strips_right: bool,
}

pub(super) fn read_tokens(gguf: &Gguf) -> Result<StrArray> {
    let tokens = gguf.require(KEY_TOKENS, gguf.get_strings(KEY_TOKENS)?)?;
    if tokens.is_empty() {
        return Err(gguf.key_error(KEY_TOKENS, "no token", "at least one"));
    }
    Ok(tokens.clone())
}

pub(super) fn read_kinds(gguf: &Gguf, tokens: &StrArray, byte_level: bool) -> Result<Vec<Kind>> {
    let ids: Vec<i64> = match gguf.get_array(KEY_TYPES)? {
        None => vec![1; tokens.len()],
        Some(Array::I32(v)) => v.iter().map(|&t| t.into()).collect(),
        Some(Array::U32(v)) => v.iter().map(|&t| t.into()).collect(),
        Some(other) => {
            let found = format!("an array of {}", other.type_name());
            return Err(gguf.key_error(KEY_TYPES, found, "an array of i32"));
        }
    };
    check_length(gguf, KEY_TYPES, ids.len(), tokens.len())?;
    let mut kinds = Vec::with_capacity(ids.len());
    for (i, (&id, text)) in ids.iter().zip(tokens.iter()).enumerate() {
        let item = || format!("{KEY_TYPES}[{i}]");
        let kind = Kind::from_id(id).ok_or_else(|| gguf.key_error(&item(), id, "0 to 6"))?;
        if kind == Kind::Byte && !byte_level && byte_token(text).is_none() {
            let key = format!("{KEY_TOKENS}[{i}], a byte token");
            return Err(gguf.key_error(&key, quoted(text), "'<0x00>' to '<0xFF>'"));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn check_length(gguf: &Gguf, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    let expected = format!("{tokens}, one for each token");
    Err(gguf.key_error(key, format_args!("{found} items"), expected))
}

pub(super) fn special_id(gguf: &Gguf, key: &str, tokens: usize) -> Result<Option<u32>> {
    let Some(id) = gguf.get_u32(key)? else {
        return Ok(None);
    };
    if id as usize >= tokens {
        let expected = format!("a token id below {tokens}");
        return Err(gguf.key_error(key, id, expected));
    }
    Ok(Some(id))
}

pub(super) fn read_merges(gguf: &Gguf, tokens: &StrArray) -> Result<Vec<(String, String)>> {
    let lines = gguf.require(KEY_MERGES, gguf.get_strings(KEY_MERGES)?)?;
    let longest = tokens.iter().map(str::len).max().unwrap_or(0);
    let mut merges = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        // The first part holds at least one character, which may be a space.
        let first = line.chars().next().map_or(0, char::len_utf8);
        let pair = line
            .get(first..)
            .and_then(|rest| rest.find(' '))
            .map(|at| (&line[..first + at], &line[first + at + 1..]))
            .filter(|(a, b)| !b.is_empty() && a.len() + b.len() <= longest);
        let Some((a, b)) = pair else {
            let key = format!("{KEY_MERGES}[{i}]");
            let expected = "two parts of a token with a space between them";
            return Err(gguf.key_error(&key, quoted(line), expected));
        };
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(merges)
}

/// Lists the ids of the pieces that joining text may give, by falling score.
pub(super) fn order_by_score(gguf: &Gguf, tokens: &StrArray, kinds: &[Kind]) -> Result<Vec<usize>> {
    let scores = match gguf.require(KEY_SCORES, gguf.get_array(KEY_SCORES)?)? {
        Array::F32(scores) => scores,
        other => {
            let found = format!("an array of {}", other.type_name());
            return Err(gguf.key_error(KEY_SCORES, found, "an array of f32"));
        }
    };
    check_length(gguf, KEY_SCORES, scores.len(), tokens.len())?;
    let mut order: Vec<usize> = (0..tokens.len()).filter(|&id| kinds[id].joins()).collect();
    order.sort_by(|&a, &b| match scores[b].total_cmp(&scores[a]) {
        Ordering::Equal => a.cmp(&b),
        other => other,
    });
    for &id in &order {
        let text = tokens.get(id).unwrap_or_default();
        if text.len() > MAX_TOKEN {
            let key = format!("{KEY_TOKENS}[{id}]");
            let found = format!("{} bytes", text.len());
            return Err(gguf.key_error(&key, found, format_args!("at most {MAX_TOKEN} bytes")));
        }
    }
    Ok(order)
}

/// Lists the tokens to match in a text, longest first.
pub(super) fn find_specials(
    gguf: &Gguf,
    tokens: &StrArray,
    kinds: &[Kind],
    byte_level: bool,
) -> Result<Vec<Special>> {
    // llama.cpp's rule: in Phi-3 vocabularies special tokens swallow the white space after them,
    // but for three.
    let name = gguf.get_str("general.name")?.unwrap_or_default();
    let name = name.to_ascii_lowercase();
    let phi3 = !byte_level && (name.contains("phi-3") || name.contains("phi3"));
    let mut specials: Vec<Special> = tokens
        .iter()
        .zip(kinds)
        .zip(0..)
        .filter(|((text, kind), _)| {
            !text.is_empty() && matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown)
        })
        .map(|((text, kind), id)| Special {
            id,
            only_when_asked: *kind != Kind::UserDefined,
            strips_right: phi3 && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"),
        })
        .collect();
    let length = |s: &Special| tokens.get(s.id as usize).map_or(0, str::len);
    specials.sort_by_key(|s| std::cmp::Reverse(length(s)));
    Ok(specials)
}
