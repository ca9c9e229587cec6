//! Text to token ids and back, from the metadata of a GGUF file.
//!
//! Two families, told apart by `tokenizer.ggml.model`:
//!
//! * `gpt2`, byte-level BPE: the text is cut by the patterns that `tokenizer.ggml.pre` names, each
//!   byte becomes one printable character (the GPT-2 alphabet), and `tokenizer.ggml.merges` join
//!   them.
//! * `llama`, SentencePiece BPE: spaces become U+2581, the whole text is one word, and adjacent
//!   pieces join to the in-vocabulary piece of the highest score. What no piece covers becomes byte
//!   tokens `<0x00>` to `<0xFF>`.
//!
//! The names of pre-tokenizers, the rule for BOS, the tokens that end a generation and the matching
//! of user-defined tokens in any text are llama.cpp's; the tests hold its test vectors.

use std::borrow::Cow;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::end;
use super::pretokenize::{self, Cut};
use super::sentence_piece::Pieces;
pub use super::stream::StreamDecoder;
pub use super::vocabulary::byte_alphabet;
use super::vocabulary::{
    KEY_MERGES, KEY_MODEL, Kind, Special, byte_of, byte_token, find_specials, order_by_score,
    read_kinds, read_merges, read_tokens, special_id,
};
use crate::error::{Error, Result, quoted};
use crate::file::gguf::{Gguf, StrArray};
use crate::note::Note;

/// Longest text that is tokenized at once, in bytes.
pub const MAX_TEXT: usize = 16 << 20;

/// SentencePiece writes a space as U+2581.
const SPM_SPACE: char = '\u{2581}';

enum Scheme {
    ByteLevel { cuts: Vec<Cut>, bpe: Box<BPE>, n_merges: usize },
    SentencePiece { space_prefix: bool, pieces: Pieces },
}

/// A piece of the text between or at special tokens.
enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// A tokenizer built from GGUF metadata.
pub struct Tokenizer {
    scheme: Scheme,
    tokens: StrArray,
    kinds: Vec<Kind>,
    /// Longest text first.
    specials: Vec<Special>,
    alphabet: [char; 256],
    bos: Option<u32>,
    eos: Option<u32>,
    /// Sorted.
    end_ids: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    notes: Vec<Note>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a model or of a vocabulary-only file.
    ///
    /// # Errors
    /// [`Error::Model`] when the vocabulary is missing, malformed or of a kind not known here.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        let mut notes = Vec::new();
        let model = gguf.require_str(KEY_MODEL)?;
        let byte_level = match model {
            "gpt2" => true,
            "llama" => false,
            other => {
                let expected = "'gpt2' (byte-level BPE) or 'llama' (SentencePiece BPE)";
                return Err(gguf.key_error(KEY_MODEL, quoted(other), expected));
            }
        };
        let tokens = read_tokens(gguf)?;
        let mut id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            special_id(gguf, &key, tokens.len(), &mut notes)
        };
        let (mut bos, mut eos, mut unk) = (id("bos")?, id("eos")?, id("unknown")?);
        let (eot, eom) = (id("eot")?, id("eom")?);
        let pads = [id("fim_pad")?, id("fim_rep")?, id("fim_sep")?];
        if !byte_level {
            // llama.cpp's defaults for this family.
            let or =
                |given: Option<u32>, id: u32| given.or((id < tokens.len() as u32).then_some(id));
            (unk, bos, eos) = (or(unk, 0), or(bos, 1), or(eos, 2));
        }
        let mut kinds = read_kinds(gguf, &tokens, byte_level, [unk, bos, eos], &mut notes)?;
        let named = [eos, eot, eom].into_iter().chain(pads).flatten();
        let end_ids = end::ids(&tokens, &mut kinds, named);
        let kinds = kinds.of;
        if end_ids.is_empty() {
            notes.push(Note::warning(format!(
                "{}: no end-of-generation token is named; generation stops at its length only",
                gguf.path().display()
            )));
        }

        // Of two tokens with one text the last is the one found, as in llama.cpp.
        let vocab: Vocab = tokens
            .iter()
            .zip(0..)
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, id)| (text.to_owned(), id))
            .collect();
        let (scheme, default_bos) = if byte_level {
            let family = pretokenize::family(gguf, &tokens, &mut notes)?;
            let cuts: Result<Vec<Cut>> =
                family.cuts.iter().map(|&(pattern, spaces)| Cut::new(pattern, spaces)).collect();
            let merges = read_merges(gguf, &tokens)?;
            let n_merges = merges.len();
            let builder = BPE::builder().vocab_and_merges(vocab, merges);
            let bpe = builder.ignore_merges(family.ignore_merges).build().map_err(|e| {
                let expected = "merges of two tokens into a third; convert the model again";
                gguf.key_error(KEY_MERGES, quoted(&e.to_string()), expected)
            })?;
            (Scheme::ByteLevel { cuts: cuts?, bpe: Box::new(bpe), n_merges }, family.add_bos)
        } else {
            let prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix")?;
            let order = order_by_score(gguf, &tokens, &kinds)?;
            let unknown = unk.and_then(|id| vocab.get(tokens.get(id as usize)?).copied());
            let pieces = Pieces::new(vocab, &tokens, &kinds, &order, unknown);
            (Scheme::SentencePiece { space_prefix: prefix.unwrap_or(true), pieces }, true)
        };
        let add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default_bos);
        let add_eos = gguf.get_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);

        let specials = find_specials(gguf, &tokens, &kinds, byte_level)?;
        Ok(Tokenizer {
            scheme,
            tokens,
            kinds,
            specials,
            alphabet: byte_alphabet(),
            bos,
            eos,
            end_ids,
            add_bos,
            add_eos,
            notes,
        })
    }

    /// Notes about a vocabulary that is unusual but can be used, and how it was taken.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Every token that ends a generation (end of text, of turn, of message), ascending.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// True if this vocabulary wants BOS before a prompt.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// A token's text as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)
    }

    /// Resident bytes of the tokenizer, estimated from its tables: each token's text in two hash tables,
    /// in one for SentencePiece, and once more in one string; each merge as a pair of ids with rank and
    /// result, each piece's rank.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        /// Header and rounding of a small allocation.
        const ALLOCATION: usize = 16;
        // A table of the standard design: a power of two of slots, at most 7/8 full, and one
        // control byte for each.
        let table = |n: usize, slot: usize| (n * 8 / 7 + 1).next_power_of_two() * (slot + 1);
        let n = self.tokens.len();
        let texts: usize = self.tokens.iter().map(str::len).sum();
        let by_text = table(n, size_of::<(String, u32)>()) + texts + n * ALLOCATION;
        let own = texts + n * size_of::<(u32, Kind)>();
        match self.scheme {
            Scheme::ByteLevel { n_merges, .. } => {
                2 * by_text + table(n_merges, size_of::<((u32, u32), (u32, u32))>()) + own
            }
            Scheme::SentencePiece { .. } => by_text + n * size_of::<(Option<u32>, bool)>() + own,
        }
    }

    /// The tokens of a prompt, special ones that the text spells included. A begin-of-text token comes
    /// first if the model wants one, or there is nothing else, and the text does not spell it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`]; [`Error::Usage`] for no text where no token begins one.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, false, true)?;
        let wanted = self.bos().filter(|_| self.add_bos() || ids.is_empty());
        if let Some(bos) = wanted.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            let expected = "a text: this model has no token that begins one";
            return Err(Error::usage("prompt", "no text", expected));
        }
        Ok(ids)
    }

    /// The tokens of a whole text, of which an embedding is made: as [`Tokenizer::prompt`], with the token
    /// that ends a text behind them where the vocabulary asks for it (`tokenizer.ggml.add_eos_token`) and
    /// the text does not spell it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`]; [`Error::Usage`] for no text where no token begins or ends one.
    pub fn whole(&self, text: &str) -> Result<Vec<u32>> {
        let Some(end) = self.eos().filter(|_| self.add_eos) else { return self.prompt(text) };
        let mut ids = self.encode(text, false, true)?;
        if let Some(bos) = self.bos().filter(|bos| self.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }

    /// The ids of `text`. BOS comes first when `add_bos` is set and the vocabulary has one.
    /// Control tokens spelled out in the text count as ordinary text unless `parse_special`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the text is over [`MAX_TEXT`] bytes or holds a character that the
    /// vocabulary cannot express.
    pub fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if add_bos {
            ids.extend(self.bos);
        }
        self.encode_into(text, parse_special, None, &mut ids)?;
        Ok(ids)
    }

    /// The ids of a text in which special tokens count. What lies between them is encoded without `mark`,
    /// which so keeps a text that spells a special token from being one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(super) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, true, Some(mark), &mut ids)?;
        Ok(ids)
    }

    /// The texts of tokens that a text does not spell unless special tokens count, and of those that end a
    /// text.
    pub(super) fn control_texts(&self) -> impl Iterator<Item = &str> {
        let asked = self.specials.iter().filter(|special| special.only_when_asked);
        let ids = asked.map(|special| special.id).chain(self.end_ids.iter().copied());
        ids.filter_map(|id| self.token_text(id)).filter(|text| !text.is_empty())
    }

    fn encode_into(
        &self,
        text: &str,
        parse_special: bool,
        mark: Option<char>,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        if text.len() > MAX_TEXT {
            return Err(Error::usage(
                "text",
                format_args!("{} bytes", text.len()),
                format_args!("at most {MAX_TEXT} bytes; give it in parts"),
            ));
        }
        let mut after_special = true;
        for fragment in self.fragments(text, parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(text) => {
                    let text = match mark {
                        Some(mark) if text.contains(mark) => text.replace(mark, "").into(),
                        _ => Cow::Borrowed(text),
                    };
                    if text.is_empty() {
                        continue;
                    }
                    match &self.scheme {
                        Scheme::ByteLevel { cuts, bpe, .. } => {
                            self.encode_byte_level(cuts, bpe, &text, ids)?
                        }
                        Scheme::SentencePiece { space_prefix, pieces } => {
                            let mut word = String::with_capacity(text.len() + 16);
                            if *space_prefix && after_special {
                                word.push(SPM_SPACE);
                            }
                            word.extend(text.chars().map(|c| if c == ' ' { SPM_SPACE } else { c }));
                            pieces.encode(&word, ids).ok_or_else(|| inexpressible(&word))?;
                        }
                    }
                    after_special = false;
                }
            }
        }
        Ok(())
    }

    fn encode_byte_level(
        &self,
        cuts: &[Cut],
        bpe: &BPE,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let mut pieces = vec![text];
        for cut in cuts {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                cut.pieces(piece, &mut next);
            }
            pieces = next;
        }
        let mut word = String::new();
        for piece in pieces {
            word.clear();
            word.extend(piece.bytes().map(|b| self.alphabet[usize::from(b)]));
            let found = bpe
                .tokenize(&word)
                .map_err(|e| Error::Runtime(format!("tokenizing {}: {e}", quoted(&word))))?;
            // The model drops what it has no token for.
            if found.last().map_or(0, |t| t.offsets.1) != word.len() {
                return Err(inexpressible(&word));
            }
            ids.extend(found.iter().map(|t| t.id));
        }
        Ok(())
    }

    /// Cuts the text at special tokens: the longest token first, over the whole text.
    fn fragments<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(text)];
        for special in &self.specials {
            if special.only_when_asked && !parse_special {
                continue;
            }
            let token = self.tokens.get(special.id as usize).unwrap_or_default();
            if !fragments.iter().any(|f| matches!(f, Fragment::Text(t) if t.contains(token))) {
                continue;
            }
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    next.push(fragment);
                    continue;
                };
                while let Some((before, after)) = rest.split_once(token) {
                    if !before.is_empty() {
                        next.push(Fragment::Text(before));
                    }
                    next.push(Fragment::Token(special.id));
                    rest = if special.strips_right { after.trim_ascii_start() } else { after };
                }
                if !rest.is_empty() {
                    next.push(Fragment::Text(rest));
                }
            }
            fragments = next;
        }
        fragments
    }

    /// Appends the bytes a token stands for; control tokens and ids outside the vocabulary stand
    /// for none.
    pub fn decode_into(&self, id: u32, out: &mut Vec<u8>) {
        let (Some(text), Some(&kind)) = (self.tokens.get(id as usize), self.kinds.get(id as usize))
        else {
            return;
        };
        match (kind, &self.scheme) {
            (Kind::Control | Kind::Unknown | Kind::Unused, _) => {}
            (Kind::UserDefined, _) => out.extend(text.as_bytes()),
            (_, Scheme::ByteLevel { .. }) => {
                for c in text.chars() {
                    match byte_of(&self.alphabet, c) {
                        Some(b) => out.push(b),
                        None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            (Kind::Byte, Scheme::SentencePiece { .. }) => out.extend(byte_token(text)),
            (_, Scheme::SentencePiece { .. }) => {
                for c in text.chars() {
                    let c = if c == SPM_SPACE { ' ' } else { c };
                    out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }

    /// The text of a whole sequence; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = StreamDecoder::default();
        let mut text: String = ids.iter().map(|&id| decoder.push(self, id)).collect();
        text += &decoder.finish();
        text
    }
}

/// The error for a word with characters that a vocabulary has no tokens for.
fn inexpressible(word: &str) -> Error {
    let expected = "characters of this vocabulary, which lacks some byte tokens";
    Error::usage("text", quoted(word), expected)
}
