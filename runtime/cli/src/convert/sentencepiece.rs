//! Reads `tokenizer.model`, the vocabulary that SentencePiece writes: a message of protocol buffers.
#![forbid(unsafe_code)]

use std::path::Path;

use bitnet_runtime::error::{Error, Result};

use super::json;

/// Longest file.
const MAX_MODEL: u64 = 16 << 20;
/// The most pieces of a vocabulary.
const MAX_PIECES: usize = 1 << 22;
/// `ModelType` of a vocabulary whose pieces join by their scores.
const BPE: u64 = 2;

/// A piece of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Its score: of two neighbours those with the higher one join first.
    pub score: f32,
    /// Its type, numbered as `tokenizer.ggml.token_type` is: 1 normal, 2 unknown, 3 control, 4
    /// user-defined, 5 unused, 6 byte.
    pub kind: i32,
}

/// A vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// The pieces, by id.
    pub pieces: Vec<Piece>,
    /// True if a text is given a space in front.
    pub space_prefix: bool,
}

/// Reads a vocabulary.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Model`] when it is no such message, or pieces of
/// it do not join by scores.
pub fn read(path: &Path) -> Result<Vocabulary> {
    let contents = json::bytes(path, MAX_MODEL)?;
    let refused = |problem: &str| {
        Error::model(path, "SentencePiece model", problem, "what SentencePiece writes")
    };
    let broken = || refused("a message that breaks off or is malformed");
    let mut vocabulary = Vocabulary { pieces: Vec::new(), space_prefix: true };
    let mut model_type = None;
    for field in fields(&contents) {
        match field.ok_or_else(broken)? {
            (1, Wire::Bytes(piece)) => {
                if vocabulary.pieces.len() == MAX_PIECES {
                    return Err(refused("more than 4,194,304 pieces"));
                }
                vocabulary.pieces.push(self::piece(piece).ok_or_else(broken)?);
            }
            // Of the trainer: what kind of vocabulary it made.
            (2, Wire::Bytes(trainer)) => {
                for field in fields(trainer) {
                    if let (3, Wire::Number(own)) = field.ok_or_else(broken)? {
                        model_type = Some(own);
                    }
                }
            }
            // Of the normaliser: what it does to a text.
            (3, Wire::Bytes(normaliser)) => {
                for field in fields(normaliser) {
                    if let (3, Wire::Number(own)) = field.ok_or_else(broken)? {
                        vocabulary.space_prefix = own != 0;
                    }
                }
            }
            _ => {}
        }
    }
    if model_type != Some(BPE) {
        let found = model_type.map_or("1 (unigram), the default".into(), |own| own.to_string());
        let expected = "2 (BPE): other vocabularies do not join by scores";
        return Err(Error::model(path, "model type", found, expected));
    }
    if vocabulary.pieces.is_empty() {
        return Err(refused("no piece"));
    }
    Ok(vocabulary)
}

/// Reads a piece.
fn piece(message: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for field in fields(message) {
        match field? {
            (1, Wire::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Wire::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Wire::Number(kind)) => {
                piece.kind = i32::try_from(kind).ok().filter(|kind| (1..=6).contains(kind))?;
            }
            _ => {}
        }
    }
    piece.score.is_finite().then_some(piece)
}

/// The value of a field.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message: number and value; `None`, then nothing, where it is malformed.
fn fields(message: &[u8]) -> impl Iterator<Item = Option<(u64, Wire<'_>)>> {
    let mut rest = Some(message);
    std::iter::from_fn(move || {
        let own = rest.filter(|rest| !rest.is_empty())?;
        match field(own) {
            Some((field, after)) => {
                rest = Some(after);
                Some(Some(field))
            }
            None => {
                rest = None;
                Some(None)
            }
        }
    })
}

/// Reads the first field of a message, and returns what follows it.
fn field(message: &[u8]) -> Option<((u64, Wire<'_>), &[u8])> {
    let (key, rest) = varint(message)?;
    let (wire, rest) = match key & 7 {
        0 => {
            let (number, rest) = varint(rest)?;
            (Wire::Number(number), rest)
        }
        1 => (Wire::Eight, rest.get(8..)?),
        2 => {
            let (length, rest) = varint(rest)?;
            let (bytes, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Wire::Bytes(bytes), rest)
        }
        5 => {
            let (four, rest) = rest.split_first_chunk()?;
            (Wire::Four(*four), rest)
        }
        _ => return None,
    };
    Some(((key >> 3, wire), rest))
}

/// Reads a number of 7 bits a byte, the lowest first.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 127).checked_shl(7 * i as u32)?;
        if byte < 128 {
            return Some((number, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message of fields: number, wire type, bytes behind.
    fn message(fields: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, wire, bytes) in fields {
            out.push(number << 3 | wire);
            if *wire == 2 {
                assert!(bytes.len() < 1 << 14);
                out.extend([bytes.len() as u8 | 128, (bytes.len() >> 7) as u8]);
            }
            out.extend(bytes);
        }
        out
    }

    /// The file of a vocabulary.
    pub(in super::super) fn file(pieces: &[(&str, f32, u8)], model_type: u8) -> Vec<u8> {
        let mut fields: Vec<(u8, u8, Vec<u8>)> = Vec::new();
        for (text, score, kind) in pieces {
            let own = [
                (1, 2, text.as_bytes().to_vec()),
                (2, 5, score.to_le_bytes().to_vec()),
                (3, 0, vec![*kind]),
            ];
            fields.push((1, 2, message(&own)));
        }
        fields.push((2, 2, message(&[(3, 0, vec![model_type])])));
        fields.push((3, 2, message(&[(3, 0, vec![1])])));
        message(&fields)
    }

    fn read_bytes(bytes: &[u8]) -> Result<Vocabulary> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn pieces_are_read_and_malformed_messages_refused() {
        let pieces = [("<unk>", 0.0, 2), ("<0x0A>", 0.0, 6), ("\u{2581}the", -1.5, 1)];
        let whole = file(&pieces, 2);
        let read = read_bytes(&whole).unwrap();
        assert!(read.space_prefix);
        let found: Vec<_> =
            read.pieces.iter().map(|p| (p.text.as_str(), p.score, p.kind as u8)).collect();
        assert_eq!(found, pieces);
        // What the normaliser does stands in the last five bytes, and need not be said.
        for end in (0..whole.len()).filter(|&end| end != whole.len() - 5) {
            assert!(read_bytes(&whole[..end]).is_err(), "{end} bytes");
        }
        assert_eq!(read_bytes(&whole[..whole.len() - 5]).unwrap(), read);
        for (bytes, says) in [
            (file(&pieces, 1), "found 1, expected 2"),
            (file(&[], 2), "no piece"),
            (file(&[("a", f32::NAN, 1)], 2), "malformed"),
            (file(&[("a", 0.0, 9)], 2), "malformed"),
            (vec![0xff; 40], "malformed"),
            (vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "malformed"),
        ] {
            let error = read_bytes(&bytes).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
