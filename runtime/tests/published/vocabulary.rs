//! A tokenizer with as many tokens as the published file has, its special ones at their places. The others
//! are made up: the bytes, and whatever two, then three of them make.

use bitnet_runtime::text::tokenizer::byte_alphabet;

use super::fixture::Fixture;

/// The arrays of a tokenizer.
pub struct Vocabulary {
    pub tokens: Vec<String>,
    pub types: Vec<i32>,
    pub scores: Vec<f32>,
    pub merges: Vec<String>,
}

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

impl Vocabulary {
    pub fn new(fixture: &Fixture) -> Self {
        let count = fixture.vocab() as usize;
        let byte_level = fixture.text("tokenizer.ggml.model") == "gpt2";
        let alphabet: Vec<char> = if byte_level {
            byte_alphabet().into()
        } else {
            // A space is U+2581.
            ('a'..='z').chain('A'..='Z').chain(['\u{2581}']).collect()
        };
        let mut tokens = vec![None; count];
        let special = |id: usize, text: &str| match text {
            _ if byte_level => CONTROL,
            "<unk>" => UNKNOWN,
            // Behind the bytes, tokens were added to a vocabulary that SentencePiece made.
            _ if id > 256 => USER_DEFINED,
            _ => CONTROL,
        };
        for (id, text) in &fixture.special {
            let id = *id as usize;
            tokens[id] = Some((text.clone(), special(id, text), 0.0));
        }
        if !byte_level {
            let free = tokens.iter().position(Option::is_none).unwrap();
            for byte in 0..256 {
                tokens[free + byte] = Some((format!("<0x{byte:02X}>"), BYTE, 0.0));
            }
        }
        let (mut words, mut merges) = (Vec::<String>::new(), Vec::new());
        let n = alphabet.len();
        for token in tokens.iter_mut().filter(|token| token.is_none()) {
            let k = words.len();
            let last = alphabet[k % n];
            let word = if k < n {
                last.to_string()
            } else {
                let parent = &words[k / n - 1];
                merges.push(format!("{parent} {last}"));
                format!("{parent}{last}")
            };
            *token = Some((word.clone(), NORMAL, -(k as f32)));
            words.push(word);
        }
        let mut vocabulary =
            Self { tokens: Vec::new(), types: Vec::new(), scores: Vec::new(), merges };
        for (text, ty, score) in tokens.into_iter().flatten() {
            vocabulary.tokens.push(text);
            vocabulary.types.push(ty);
            // The scores of byte-level tokens are 0 where a file has any.
            vocabulary.scores.push(if byte_level { 0.0 } else { score });
        }
        vocabulary
    }
}
