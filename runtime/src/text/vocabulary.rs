//! The vocabulary of a GGUF file: tokens, their types, merges, tokens matched in the text.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::error::{Result, quoted};
use crate::file::gguf::{Array, Gguf, StrArray, Value};
use crate::note::Note;

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

/// The types of the tokens.
pub(super) struct Kinds {
    pub(super) of: Vec<Kind>,
    /// True if the file tells ordinary tokens from others: it has types, and not one for all.
    pub(super) told: bool,
}

/// Reads the types of the tokens. Without any the bytes of a SentencePiece vocabulary are found by
/// their names, and control tokens are those of the ids `special`; all others are ordinary.
pub(super) fn read_kinds(
    gguf: &Gguf,
    tokens: &StrArray,
    byte_level: bool,
    special: [Option<u32>; 3],
    notes: &mut Vec<Note>,
) -> Result<Kinds> {
    let ids: Vec<i64> = match gguf.get_array(KEY_TYPES)? {
        None if byte_level => {
            return Ok(Kinds { of: vec![Kind::Normal; tokens.len()], told: false });
        }
        None => {
            let [unknown, control @ ..] = special;
            let kind_of = |(text, id): (&str, u32)| match () {
                () if control.contains(&Some(id)) => Kind::Control,
                () if unknown == Some(id) => Kind::Unknown,
                () if byte_token(text).is_some() => Kind::Byte,
                () => Kind::Normal,
            };
            notes.push(Note::info(format!(
                "{}: key {KEY_TYPES} is missing: tokens like <0x0A> are taken for bytes, and those \
                 that begin and end a text for control tokens",
                gguf.path().display()
            )));
            return Ok(Kinds { of: tokens.iter().zip(0..).map(kind_of).collect(), told: false });
        }
        Some(array) => {
            let ids = (0..array.len()).map(|i| array.get(i)?.as_i128()?.try_into().ok());
            ids.collect::<Option<_>>().ok_or_else(|| {
                let found = format!("an array of {}", array.type_name());
                gguf.key_error(KEY_TYPES, found, "an array of i32")
            })?
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
    let told = kinds.iter().any(|&kind| kind != Kind::Normal);
    Ok(Kinds { of: kinds, told })
}

fn check_length(gguf: &Gguf, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    let expected = format!("{tokens}, one for each token");
    Err(gguf.key_error(key, format_args!("{found} items"), expected))
}

/// Reads the id of a special token; -1, as converters write it for none, is none, with a note.
pub(super) fn special_id(
    gguf: &Gguf,
    key: &str,
    tokens: usize,
    notes: &mut Vec<Note>,
) -> Result<Option<u32>> {
    let none = |value: &Value| {
        let all_ones = matches!(value, Value::U32(u32::MAX) | Value::U64(u64::MAX));
        all_ones || value.as_i128() == Some(-1)
    };
    if gguf.get(key).is_some_and(none) {
        notes.push(Note::info(format!(
            "{}: key {key} is -1: there is no such token",
            gguf.path().display()
        )));
        return Ok(None);
    }
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
    let scores: Cow<'_, [f32]> = match gguf.require(KEY_SCORES, gguf.get_array(KEY_SCORES)?)? {
        Array::F32(scores) => scores.into(),
        Array::F64(scores) => scores.iter().map(|&score| score as f32).collect(),
        Array::I32(scores) => scores.iter().map(|&score| score as f32).collect(),
        other => {
            let found = format!("an array of {}", other.type_name());
            return Err(gguf.key_error(KEY_SCORES, found, "an array of f32"));
        }
    };
    check_length(gguf, KEY_SCORES, scores.len(), tokens.len())?;
    if let Some(i) = scores.iter().position(|score| score.is_nan()) {
        let expected = "a number; the file is damaged, convert the model again";
        return Err(gguf.key_error(&format!("{KEY_SCORES}[{i}]"), "NaN", expected));
    }
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
