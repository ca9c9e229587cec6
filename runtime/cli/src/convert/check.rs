//! Encodes texts by a converted tokenizer and by the original one: they must agree.
#![forbid(unsafe_code)]

use std::path::Path;

use bitnet_runtime::engine::sampler::Rng;
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::text::tokenizer::Tokenizer;
use tokenizers::{NormalizedString, Normalizer};

/// Texts that are encoded both ways.
pub const TEXTS: usize = 2000;
/// Seed of the texts: they are the same at any time.
const SEED: u64 = 0x0b17_4e75;

/// Letters of several scripts, signs, marks that combine, white space.
const RANGES: [(u32, u32); 14] = [
    (0x20, 0x7e),
    (0x20, 0x7e),
    (0xa0, 0xff),
    (0x100, 0x17f),
    (0x300, 0x320),
    (0x391, 0x3c9),
    (0x410, 0x44f),
    (0x5d0, 0x5ea),
    (0x905, 0x94d),
    (0x2000, 0x203a),
    (0x3041, 0x3096),
    (0x4e00, 0x4fff),
    (0xac00, 0xad00),
    (0x1f600, 0x1f64f),
];
/// Pieces at which pre-tokenizers differ.
const PIECES: [&str; 24] = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "'s",
    "'LL",
    "don't",
    "I'VE",
    "1",
    "12",
    "1234567",
    "3.14",
    "x_y",
    "==",
    "...",
    "(",
    ")\n",
    "</",
    "\u{a0}",
    "HTTPServer",
];

/// Encodes [`TEXTS`] texts by the tokenizer of a file, which may be an outline, and by `tokenizer.json`.
///
/// # Errors
/// [`Error::Model`] for the first text of which the ids differ, and for a tokenizer that cannot be read.
pub fn tokenizers_agree(gguf: &Gguf, path: &Path, json: &[u8]) -> Result<()> {
    let own = Tokenizer::from_gguf(gguf)?;
    let original = tokenizers::Tokenizer::from_bytes(json)
        .map_err(|e| Error::model(path, "JSON", e, "a tokenizer of Hugging Face"))?;
    let byte_level = gguf.get_str("tokenizer.ggml.model")? == Some("gpt2");
    let mut texts = Texts::new(&own, &original);
    for _ in 0..TEXTS {
        let mut text = texts.next();
        if byte_level && let Some(normalizer) = original.get_normalizer() {
            // What it changes, such as letters with marks apart, is not changed here.
            let mut normal = NormalizedString::from(text.as_str());
            if normalizer.normalize(&mut normal).is_ok() {
                text = normal.get().to_owned();
            }
        }
        let ids = own.encode(&text, false, true)?;
        let theirs = original.encode(text.as_str(), false).map_err(|e| {
            let item = format!("text {}", quoted(&text));
            Error::model(path, item, e, "a text that it encodes")
        })?;
        if ids != theirs.get_ids() {
            let at = ids.iter().zip(theirs.get_ids()).take_while(|(a, b)| a == b).count();
            let part = |ids: &[u32]| format!("{:?}", ids[at..].iter().take(8).collect::<Vec<_>>());
            return Err(Error::model(
                path,
                format_args!("text {}, from token {at} on", quoted(&text)),
                format_args!("ids {} by the GGUF file", part(&ids)),
                format_args!("{}; try another --pre NAME", part(theirs.get_ids())),
            ));
        }
    }
    Ok(())
}

/// A stream of texts.
struct Texts<'a> {
    rng: Rng,
    own: &'a Tokenizer,
    /// Texts of tokens that are found in a text.
    added: Vec<String>,
}

impl<'a> Texts<'a> {
    fn new(own: &'a Tokenizer, original: &tokenizers::Tokenizer) -> Self {
        let mut added: Vec<String> = original
            .get_added_tokens_decoder()
            .into_iter()
            // Those without an embedding are left out.
            .filter(|(id, _)| (*id as usize) < own.vocab_size())
            .map(|(_, token)| token)
            // Those that take white space beside them are few, and such texts rare.
            .filter(|token| !token.lstrip && !token.rstrip && !token.single_word)
            .map(|token| token.content)
            .filter(|text| !text.is_empty())
            .collect();
        added.sort_unstable();
        Self { rng: Rng::new(SEED), own, added }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() >> 11) as usize % n
    }

    /// A text of a few parts, from tokens of the vocabulary, letters and pieces.
    fn next(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..1 + self.below(24) {
            match self.below(16) {
                0..8 => {
                    let id = self.below(self.own.vocab_size()) as u32;
                    text += &self.own.decode(&[id]);
                }
                8..12 => text += PIECES[self.below(PIECES.len())],
                12..15 => {
                    let (first, last) = RANGES[self.below(RANGES.len())];
                    for _ in 0..1 + self.below(6) {
                        let code = first + self.below((last - first + 1) as usize) as u32;
                        text.extend(char::from_u32(code));
                    }
                }
                _ if self.added.is_empty() => {}
                _ => {
                    let at = self.below(self.added.len());
                    text += &self.added[at];
                }
            }
        }
        text
    }
}
