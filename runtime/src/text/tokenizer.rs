//! Text to token ids and back, from the metadata of a GGUF file.
//!
//! Two families, told apart by `tokenizer.ggml.model`:
//!
//! * `gpt2`, byte-level BPE: the text is cut by the patterns that `tokenizer.ggml.pre` names, each
//!   byte becomes one printable character (the GPT-2 alphabet), and `tokenizer.ggml.merges` join
//!   them.
//! * `llama`, SentencePiece BPE: spaces become U+2581, the whole text is one word, and adjacent
//!   pieces join to the in-vocabulary piece of the highest score. The merges are derived from the
//!   scores: every split of a piece into two pieces is a merge, ranked by the score of the whole.
//!   What no piece covers becomes byte tokens `<0x00>` to `<0xFF>`.
//!
//! Which names stand for which patterns, when BOS is added, which tokens end a generation and
//! that user-defined tokens are always matched in the text follows llama.cpp, whose test vectors
//! the tests hold.

use std::cmp::Ordering;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::utils::SysRegex;

use crate::error::{Error, Result, quoted};
use crate::file::gguf::{Array, Gguf, StrArray};

const KEY_MODEL: &str = "tokenizer.ggml.model";
const KEY_PRE: &str = "tokenizer.ggml.pre";
const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_TYPES: &str = "tokenizer.ggml.token_type";
const KEY_SCORES: &str = "tokenizer.ggml.scores";
const KEY_MERGES: &str = "tokenizer.ggml.merges";

/// Longest text that is tokenized at once, in bytes.
pub const MAX_TEXT: usize = 16 << 20;
/// Longest token in bytes. Real ones stay below 300; deriving merges takes the square of it.
const MAX_TOKEN: usize = 1024;

/// SentencePiece writes a space as U+2581.
const SPM_SPACE: char = '\u{2581}';

/// The token types of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
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
}

/// One regular expression of a pre-tokenizer, applied to the pieces the one before left.
///
/// The published patterns hold `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word
/// that follows. Written that way it needs a backtracking engine, which gives up on long runs.
/// Here the pattern ends in `\s+` and [`Cut::pieces`] hands the last space back, in linear time.
struct Cut {
    regex: SysRegex,
    spaces: Spaces,
}

/// What becomes of the last character of a run of white space before something else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// The pattern has no `\s+` of its own.
    Kept,
    /// Handed to what follows.
    LastGoesOn,
    /// Handed to what follows unless the run ends a line, which `\s*[\r\n]+` matched before.
    LastGoesOnInLine,
}

/// A pre-tokenizer: the names that mean it and what it does.
struct Family {
    names: &'static [&'static str],
    cuts: &'static [(&'static str, Spaces)],
    /// A word that is a token as it stands is not built from merges.
    ignore_merges: bool,
    add_bos: bool,
}

const GPT2: (&str, Spaces) =
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", Spaces::LastGoesOn);
const LLAMA3: (&str, Spaces) = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    Spaces::LastGoesOnInLine,
);
/// As `LLAMA3`, one digit at a time.
const QWEN2: (&str, Spaces) = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    Spaces::LastGoesOnInLine,
);
const THREE_DIGITS: (&str, Spaces) = ("[0-9][0-9][0-9]", Spaces::Kept);

const FAMILIES: &[Family] = &[
    Family {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-e"],
        cuts: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Family { names: &["dbrx", "smaug-bpe"], cuts: &[LLAMA3], ignore_merges: false, add_bos: false },
    Family {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat"],
        cuts: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["falcon"],
        cuts: &[(r"[\p{P}\$\+<=>\^~\|`]+", Spaces::Kept), GPT2, THREE_DIGITS],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"],
        cuts: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        cuts: &[(r"\p{N}", Spaces::Kept), GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["default"],
        cuts: &[
            (r"[\p{P}\$\+<=>\^~\|]+", Spaces::Kept),
            GPT2,
            (r"\p{N}+", Spaces::Kept),
            THREE_DIGITS,
        ],
        ignore_merges: false,
        add_bos: false,
    },
];

/// Tokens that end a generation wherever a vocabulary has them.
const END_TOKENS: &[&str] = &[
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

impl Cut {
    /// Cuts `text` into the matches and what lies between them.
    fn pieces<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut rest = text;
        'restart: loop {
            let mut done = 0;
            for (start, end) in self.regex.find_iter(rest) {
                if done < start {
                    out.push(&rest[done..start]);
                }
                done = self.kept(rest, start, end);
                out.push(&rest[start..done]);
                if done < end {
                    // No pattern looks behind, so the search may start afresh here.
                    rest = &rest[done..];
                    continue 'restart;
                }
            }
            if done < rest.len() {
                out.push(&rest[done..]);
            }
            return;
        }
    }

    /// Where the match `start..end` ends once a last space has been handed on.
    fn kept(&self, text: &str, start: usize, end: usize) -> usize {
        let found = &text[start..end];
        let Some(last) = found.chars().next_back() else {
            return end;
        };
        let hands_on = match self.spaces {
            Spaces::Kept => false,
            Spaces::LastGoesOn => true,
            Spaces::LastGoesOnInLine => !matches!(last, '\r' | '\n'),
        };
        let alone = found.len() == last.len_utf8();
        if hands_on && !alone && end < text.len() && found.chars().all(char::is_whitespace) {
            end - last.len_utf8()
        } else {
            end
        }
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
fn byte_of(alphabet: &[char; 256], c: char) -> Option<u8> {
    if alphabet.get(c as usize) == Some(&c) {
        return Some(c as u8);
    }
    // The rest starts at U+0100: 33 control characters and space, 34 after `~`, and U+00AD.
    alphabet.iter().position(|&a| a == c).map(|b| b as u8)
}

/// The byte that a SentencePiece byte token such as `<0x0A>` stands for.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let strict = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    strict.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

enum Scheme {
    ByteLevel { cuts: Vec<Cut> },
    SentencePiece { space_prefix: bool },
}

/// A token that is looked for in the text before anything else.
struct Special {
    id: u32,
    /// Found only when special tokens are asked for.
    only_when_asked: bool,
    /// Swallows the white space after it.
    strips_right: bool,
}

/// A piece of the text between or at special tokens.
enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// A tokenizer built from GGUF metadata.
pub struct Tokenizer {
    scheme: Scheme,
    bpe: BPE,
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
    n_merges: usize,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.tokens.len())
            .field("merges", &self.n_merges)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a model or of a vocabulary-only file.
    ///
    /// # Errors
    /// [`Error::Model`] when the vocabulary is missing, malformed or of a kind not known here.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        let mut warnings = Vec::new();
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
        let mut kinds = read_kinds(gguf, &tokens, byte_level)?;
        let id = |key: &str| special_id(gguf, key, tokens.len());
        let (mut bos, mut eos, mut unk) = (
            id("tokenizer.ggml.bos_token_id")?,
            id("tokenizer.ggml.eos_token_id")?,
            id("tokenizer.ggml.unknown_token_id")?,
        );
        if !byte_level {
            // llama.cpp's defaults for this family.
            let or =
                |given: Option<u32>, id: u32| given.or((id < tokens.len() as u32).then_some(id));
            (unk, bos, eos) = (or(unk, 0), or(bos, 1), or(eos, 2));
        }
        let mut end_ids: Vec<u32> = eos
            .into_iter()
            .chain(id("tokenizer.ggml.eot_token_id")?)
            .chain(id("tokenizer.ggml.eom_token_id")?)
            .collect();
        for (i, text) in tokens.iter().enumerate() {
            if END_TOKENS.contains(&text) {
                end_ids.push(i as u32);
                // Some converters mark these as ordinary text; they must not match in a prompt.
                kinds[i] = Kind::Control;
            }
        }
        end_ids.sort_unstable();
        end_ids.dedup();
        if end_ids.is_empty() {
            warnings.push(format!(
                "{}: no end-of-generation token is named; generation stops at its length only",
                gguf.path().display()
            ));
        }

        let (scheme, default_bos, ignore_merges) = if byte_level {
            let family = pre_family(gguf, &mut warnings)?;
            let cuts: Result<Vec<Cut>> = family
                .cuts
                .iter()
                .map(|&(pattern, spaces)| {
                    let regex = SysRegex::new(pattern)
                        .map_err(|e| Error::Runtime(format!("pattern {pattern}: {e}")))?;
                    Ok(Cut { regex, spaces })
                })
                .collect();
            let scheme = Scheme::ByteLevel { cuts: cuts? };
            (scheme, family.add_bos, family.ignore_merges)
        } else {
            let prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix")?;
            let scheme = Scheme::SentencePiece { space_prefix: prefix.unwrap_or(true) };
            (scheme, true, false)
        };
        let add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default_bos);

        // Of two tokens with one text the last is the one found, as in llama.cpp.
        let vocab: Vocab = tokens
            .iter()
            .zip(0..)
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, id)| (text.to_owned(), id))
            .collect();
        let merges = if byte_level {
            read_merges(gguf, &tokens)?
        } else {
            derive_merges(gguf, &tokens, &kinds, &vocab)?
        };
        let n_merges = merges.len();
        let mut builder = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges)
            .byte_fallback(!byte_level);
        if let Some(text) = unk.and_then(|id| tokens.get(id as usize))
            && !byte_level
            && !text.is_empty()
        {
            builder = builder.unk_token(text.to_owned());
        }
        let bpe = builder.build().map_err(|e| {
            let expected = "merges of two tokens into a third; convert the model again";
            gguf.key_error(KEY_MERGES, quoted(&e.to_string()), expected)
        })?;
        let specials = find_specials(gguf, &tokens, &kinds, byte_level)?;
        Ok(Tokenizer {
            scheme,
            bpe,
            tokens,
            kinds,
            specials,
            alphabet: byte_alphabet(),
            bos,
            eos,
            end_ids,
            add_bos,
            n_merges,
            warnings,
        })
    }

    /// What is unusual in the vocabulary though it can be used; one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

    /// Whether this vocabulary wants BOS before a prompt.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// A token's text as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)
    }

    /// Resident bytes of the tokenizer, estimated from its tables: the model holds each token's
    /// text in two hash tables and each merge as a pair of ids with rank and result; this type
    /// holds the texts once more in one string.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        /// Header and rounding of a small allocation.
        const ALLOCATION: usize = 16;
        // A table of the standard design: a power of two of slots, at most 7/8 full, and one
        // control byte for each.
        let table = |n: usize, slot: usize| (n * 8 / 7 + 1).next_power_of_two() * (slot + 1);
        let n = self.tokens.len();
        let texts: usize = self.tokens.iter().map(str::len).sum();
        let text_and_id = size_of::<(String, u32)>();
        let merge = size_of::<((u32, u32), (u32, u32))>();
        2 * table(n, text_and_id)
            + 2 * (texts + n * ALLOCATION)
            + table(self.n_merges, merge)
            + texts
            + n * size_of::<(u32, Kind)>()
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

    /// The ids of `text`. BOS comes first when `add_bos` is set and the vocabulary has one.
    /// Control tokens spelled out in the text count as ordinary text unless `parse_special`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the text is over [`MAX_TEXT`] bytes or holds a character that the
    /// vocabulary cannot express.
    pub fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT {
            return Err(Error::usage(
                "text",
                format_args!("{} bytes", text.len()),
                format_args!("at most {MAX_TEXT} bytes; give it in parts"),
            ));
        }
        let mut ids = Vec::new();
        if add_bos {
            ids.extend(self.bos);
        }
        let mut after_special = true;
        for fragment in self.fragments(text, parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(text) => {
                    match &self.scheme {
                        Scheme::ByteLevel { cuts } => {
                            self.encode_byte_level(cuts, text, &mut ids)?
                        }
                        Scheme::SentencePiece { space_prefix } => {
                            let mut word = String::with_capacity(text.len() + 16);
                            if *space_prefix && after_special {
                                word.push(SPM_SPACE);
                            }
                            word.extend(text.chars().map(|c| if c == ' ' { SPM_SPACE } else { c }));
                            self.encode_word(&word, &mut ids)?;
                        }
                    }
                    after_special = false;
                }
            }
        }
        Ok(ids)
    }

    fn encode_byte_level(&self, cuts: &[Cut], text: &str, ids: &mut Vec<u32>) -> Result<()> {
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
            self.encode_word(&word, ids)?;
        }
        Ok(())
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> Result<()> {
        let found = self
            .bpe
            .tokenize(word)
            .map_err(|e| Error::Runtime(format!("tokenizing {}: {e}", quoted(word))))?;
        // The model drops what it has neither token nor fallback for.
        if found.last().map_or(0, |t| t.offsets.1) != word.len() {
            return Err(Error::usage(
                "text",
                quoted(word),
                "characters of this vocabulary, which lacks some byte tokens",
            ));
        }
        ids.extend(found.iter().map(|t| t.id));
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

/// Turns tokens into text as they arrive and never splits a UTF-8 character: the bytes of an
/// unfinished one wait for the next token.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// At most 3 bytes between calls.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// The text that `id` completes, perhaps none. Bytes that can never become UTF-8 are U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        tokenizer.decode_into(id, &mut self.pending);
        let mut out = String::new();
        let mut waiting = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if is_prefix(invalid) && self.pending.ends_with(invalid) {
                // Only the last chunk reaches the end: an earlier one is followed by a byte
                // that broke it off.
                waiting = invalid.len();
            } else if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
                waiting = 0;
            }
        }
        let done = self.pending.len() - waiting;
        self.pending.drain(..done);
        out
    }

    /// The end of the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        out
    }
}

fn read_tokens(gguf: &Gguf) -> Result<StrArray> {
    let tokens = gguf.require(KEY_TOKENS, gguf.get_strings(KEY_TOKENS)?)?;
    if tokens.is_empty() {
        return Err(gguf.key_error(KEY_TOKENS, "no token", "at least one"));
    }
    Ok(tokens.clone())
}

fn read_kinds(gguf: &Gguf, tokens: &StrArray, byte_level: bool) -> Result<Vec<Kind>> {
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

fn special_id(gguf: &Gguf, key: &str, tokens: usize) -> Result<Option<u32>> {
    let Some(id) = gguf.get_u32(key)? else {
        return Ok(None);
    };
    if id as usize >= tokens {
        let expected = format!("a token id below {tokens}");
        return Err(gguf.key_error(key, id, expected));
    }
    Ok(Some(id))
}

fn pre_family(gguf: &Gguf, warnings: &mut Vec<String>) -> Result<&'static Family> {
    let find = |name: &str| FAMILIES.iter().find(|f| f.names.contains(&name));
    let known = || -> Vec<&str> { FAMILIES.iter().flat_map(|f| f.names).copied().collect() };
    let name = match gguf.get_str(KEY_PRE)? {
        Some(name) => name,
        None => {
            warnings.push(format!(
                "{}: key {KEY_PRE} is missing, words are cut by the default rule; the text may be \
                 worse than it should be, convert the model again",
                gguf.path().display()
            ));
            "default"
        }
    };
    find(name).ok_or_else(|| {
        gguf.key_error(KEY_PRE, quoted(name), format_args!("one of {}", known().join(", ")))
    })
}

fn read_merges(gguf: &Gguf, tokens: &StrArray) -> Result<Vec<(String, String)>> {
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

/// Every split of an ordinary piece into two pieces, the highest score of the whole first.
fn derive_merges(
    gguf: &Gguf,
    tokens: &StrArray,
    kinds: &[Kind],
    vocab: &Vocab,
) -> Result<Vec<(String, String)>> {
    let scores = match gguf.require(KEY_SCORES, gguf.get_array(KEY_SCORES)?)? {
        Array::F32(scores) => scores,
        other => {
            let found = format!("an array of {}", other.type_name());
            return Err(gguf.key_error(KEY_SCORES, found, "an array of f32"));
        }
    };
    check_length(gguf, KEY_SCORES, scores.len(), tokens.len())?;
    // Control and byte tokens never come out of joining text.
    let joins = |id: usize| matches!(kinds[id], Kind::Normal | Kind::UserDefined);
    let mut order: Vec<usize> = (0..tokens.len()).filter(|&id| joins(id)).collect();
    order.sort_by(|&a, &b| match scores[b].total_cmp(&scores[a]) {
        Ordering::Equal => a.cmp(&b),
        other => other,
    });
    let part = |text: &str| vocab.get(text).is_some_and(|&id| joins(id as usize));
    let mut merges = Vec::new();
    for id in order {
        let text = tokens.get(id).unwrap_or_default();
        if text.len() > MAX_TOKEN {
            let key = format!("{KEY_TOKENS}[{id}]");
            let found = format!("{} bytes", text.len());
            return Err(gguf.key_error(&key, found, format_args!("at most {MAX_TOKEN} bytes")));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (a, b) = text.split_at(at);
            if part(a) && part(b) {
                merges.push((a.to_owned(), b.to_owned()));
            }
        }
    }
    Ok(merges)
}

/// The tokens to look for in a text, longest first.
fn find_specials(
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

/// Whether the bytes begin a UTF-8 character and more may follow.
fn is_prefix(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}
