//! Pre-tokenizers: cut a text into the words that byte-level BPE encodes one by one.

use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::utils::SysRegex;

use crate::error::{Error, Result, quoted};
use crate::file::gguf::{Gguf, Override, StrArray, Value};
use crate::note::Note;

const KEY_PRE: &str = "tokenizer.ggml.pre";

/// One regular expression of a pre-tokenizer, applied to the pieces the one before left.
///
/// The published patterns hold `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word
/// that follows. Written that way it needs a backtracking engine, which gives up on long runs.
/// Here the pattern ends in `\s+` and [`Cut::pieces`] hands the last space back, in linear time.
pub(super) struct Cut {
    regex: Arc<SysRegex>,
    spaces: Spaces,
}

/// Treatment of the last character of a run of white space before something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spaces {
    /// The pattern has no `\s+` of its own.
    Kept,
    /// Handed to what follows.
    LastGoesOn,
    /// Handed to what follows unless the run ends a line, which `\s*[\r\n]+` matched before.
    LastGoesOnInLine,
}

/// A pre-tokenizer and the names that stand for it.
pub(super) struct Family {
    names: &'static [&'static str],
    pub(super) cuts: &'static [(&'static str, Spaces)],
    /// A word that is a token as it stands is not built from merges.
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
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
/// As `QWEN2`, combining marks with their letters.
const QWEN35: (&str, Spaces) = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    Spaces::LastGoesOnInLine,
);
/// The pattern of the models' own tokenizers, which tells letters by case: llama.cpp's engine knows
/// no categories of letters, and its stand-in cuts capitals beyond ASCII one by one.
const TEKKEN: (&str, Spaces) = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    Spaces::LastGoesOnInLine,
);
/// As `TEKKEN`, with contractions at the end of words, and up to three digits.
const GPT4O: (&str, Spaces) = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    Spaces::LastGoesOnInLine,
);
const LINE_BREAK: (&str, Spaces) = (r"[\r\n]", Spaces::Kept);
/// Letters that have a case, as DeepSeek lists them.
const CASED_LETTERS: (&str, Spaces) = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    Spaces::Kept,
);
const CHINESE_KOREAN: (&str, Spaces) = (r"[一-龥ࠀ-一가-퟿]+", Spaces::Kept);
const THREE_DIGITS: (&str, Spaces) = ("[0-9][0-9][0-9]", Spaces::Kept);

const FAMILIES: &[Family] = &[
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon_e",
            "falcon-e",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        cuts: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Family {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        cuts: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Family { names: &["glm4", "glm5"], cuts: &[LLAMA3], ignore_merges: true, add_bos: false },
    Family {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "gigachat",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
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
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "hunyuan",
            "megrez",
            "solar-open",
            "grok-2",
        ],
        cuts: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Family { names: &["qwen35"], cuts: &[QWEN35], ignore_merges: false, add_bos: false },
    Family {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        cuts: &[(r"\p{N}", Spaces::Kept), GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["deepseek-llm"],
        cuts: &[
            LINE_BREAK,
            CASED_LETTERS,
            (r"\s?[!-/:-~！-／：-～‘-‟　-。]+", Spaces::Kept),
            (r"\s+$", Spaces::Kept),
            CHINESE_KOREAN,
            (r"\p{N}+", Spaces::Kept),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["deepseek-coder"],
        cuts: &[
            LINE_BREAK,
            (r"\s?\p{L}+", Spaces::Kept),
            (r"\s?\p{P}+", Spaces::Kept),
            CHINESE_KOREAN,
            (r"\p{N}", Spaces::Kept),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        cuts: &[GPT4O],
        ignore_merges: false,
        add_bos: false,
    },
    Family { names: &["tekken"], cuts: &[TEKKEN], ignore_merges: true, add_bos: true },
    Family {
        names: &[DEFAULT],
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

/// The name of the rule that fits no vocabulary in particular, and which converters write where they
/// did not know a vocabulary.
const DEFAULT: &str = "default";

impl Cut {
    /// The cut of a published pattern. Each is compiled once in a process: that takes longer than to
    /// read a small vocabulary.
    pub(super) fn new(pattern: &'static str, spaces: Spaces) -> Result<Self> {
        static COMPILED: Mutex<Vec<(&str, Arc<SysRegex>)>> = Mutex::new(Vec::new());
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = compiled.iter().find(|(own, _)| *own == pattern);
        let regex = match known {
            Some((_, regex)) => Arc::clone(regex),
            None => {
                let regex = SysRegex::new(pattern)
                    .map_err(|e| Error::Runtime(format!("pattern {pattern}: {e}")))?;
                let regex = Arc::new(regex);
                compiled.push((pattern, Arc::clone(&regex)));
                regex
            }
        };
        Ok(Self { regex, spaces })
    }

    /// Cuts `text` into the matches and what lies between them.
    pub(super) fn pieces<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
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

    /// End of the match `start..end` once its last space has been handed on.
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

/// Returns the names of all pre-tokenizers that are known, separated by commas.
pub fn names() -> String {
    FAMILIES.iter().flat_map(|family| family.names).copied().collect::<Vec<_>>().join(", ")
}

fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.names.contains(&name))
}

/// Makes the override of the key that names the pre-tokenizer.
///
/// # Errors
/// [`Error::Usage`] for a name that is not known.
pub(crate) fn pre_override(name: &str) -> Result<Override> {
    let known =
        find(name).map(|_| Override { key: KEY_PRE.into(), value: Value::Str(name.into()) });
    known.ok_or_else(|| Error::usage("pre", quoted(name), format_args!("one of {}", names())))
}

/// Returns the pre-tokenizer that the file names. Where it names none, or the one for every
/// vocabulary, that of its vocabulary is taken, if it is a known one; unless the user named it.
pub(super) fn family(
    gguf: &Gguf,
    tokens: &StrArray,
    notes: &mut Vec<Note>,
) -> Result<&'static Family> {
    let named = gguf.get_str(KEY_PRE)?;
    let name = match (named, inferred(tokens)) {
        (Some(name), _) if name != DEFAULT || gguf.is_overridden(KEY_PRE) => name,
        (_, Some(name)) => {
            let says = if named.is_some() { "says 'default'" } else { "is missing" };
            notes.push(Note::info(format!(
                "{}: key {KEY_PRE} {says}; its tokens are those of {name}, so words are cut as there",
                gguf.path().display()
            )));
            name
        }
        (None, None) => {
            notes.push(Note::warning(format!(
                "{}: key {KEY_PRE} is missing, words are cut by the default rule; the text may be \
                 worse than it should be; name the pre-tokenizer, or convert the model again",
                gguf.path().display()
            )));
            DEFAULT
        }
        (Some(name), None) => name,
    };
    find(name)
        .ok_or_else(|| gguf.key_error(KEY_PRE, quoted(name), format_args!("one of {}", names())))
}

/// The pattern of GPT-2, as published.
pub const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Returns the name of the pre-tokenizer that cuts a text by these published patterns, one after the
/// other, and takes a word that is a token as it stands, or not. Of several names it is the one by which
/// the vocabulary is known, else the first.
pub fn name_of(
    patterns: &[String],
    ignore_merges: bool,
    tokens: &StrArray,
) -> Option<&'static str> {
    let patterns: Vec<String> = patterns.iter().map(|pattern| as_cut(pattern)).collect();
    let family = FAMILIES.iter().find(|family| {
        let cuts = family.cuts.iter().map(|(pattern, _)| *pattern);
        family.ignore_merges == ignore_merges && cuts.eq(patterns.iter().map(String::as_str))
    })?;
    let own = inferred(tokens).filter(|name| family.names.contains(name));
    own.or_else(|| family.names.first().copied())
}

/// Returns a published pattern as a [`Cut`] has it: without its alternative for the last space of a run,
/// and with both cases of letters spelled out.
fn as_cut(pattern: &str) -> String {
    const CONTRACTIONS: &str = "'s|'t|'re|'ve|'m|'ll|'d";
    const BOTH_CASES: &str = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";
    let any_case = format!("(?i:{CONTRACTIONS})");
    let any_case_once = format!("(?i:{CONTRACTIONS})?");
    pattern
        .replace(r"\s+(?!\S)|", "")
        .replace(&any_case_once, &format!("(?:{BOTH_CASES})?"))
        .replace(&any_case, BOTH_CASES)
}

/// Recognises the vocabularies of published ternary models.
fn inferred(tokens: &StrArray) -> Option<&'static str> {
    let has = |token: &str| tokens.iter().any(|own| own == token);
    match tokens.len() {
        _ if tokens.get(128_000) == Some("<|begin_of_text|>") => Some("llama-bpe"),
        151_000..=152_000 if has("<|im_start|>") => Some("qwen2"),
        131_072 if has(">>ABSTRACT<<") => Some("falcon3"),
        32_768 if has("<|im_start|>") => Some("falcon_e"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for &(pattern, spaces) in find(name).unwrap().cuts {
            let cut = Cut::new(pattern, spaces).unwrap();
            let mut next = Vec::new();
            pieces.iter().for_each(|piece| cut.pieces(piece, &mut next));
            pieces = next;
        }
        pieces
    }

    /// Of gpt-4o and tekken there are no vocabularies with vectors.
    #[test]
    fn families_cut_as_their_tokenizers_do() {
        let cases: [(&str, &str, &[&str]); 13] = [
            ("gpt-4o", "HelloWorld don't", &["Hello", "World", " don't"]),
            ("gpt-4o", "ABCdef 12345", &["ABCdef", " ", "123", "45"]),
            ("gpt-4o", "a  b\n\n c", &["a", " ", " b", "\n\n", " c"]),
            ("gpt-4o", "x/y.\n/z", &["x", "/y", ".\n/", "z"]),
            ("llama4", "it'S (HERE)", &["it'S", " (", "HERE", ")"]),
            ("tekken", "HelloWorld don't", &["Hello", "World", " don", "'t"]),
            ("tekken", "year 2026", &["year", " ", "2", "0", "2", "6"]),
            (
                "tekken",
                "\u{c9}COLE \u{915}\u{94d}\u{937}",
                &["\u{c9}COLE", " \u{915}\u{94d}\u{937}"],
            ),
            ("qwen35", "e\u{301}t 12", &["e\u{301}t", " ", "1", "2"]),
            ("qwen2", "e\u{301}t 12", &["e", "\u{301}t", " ", "1", "2"]),
            ("deepseek-coder", "x = 10\r\n", &["x", " = ", "1", "0", "\r", "\n"]),
            ("deepseek-llm", "ab, 100  ", &["ab", ",", " ", "100", "  "]),
            ("deepseek-llm", "\u{4f60}\u{597d}ok", &["\u{4f60}\u{597d}", "ok"]),
        ];
        for (name, text, expected) in cases {
            assert_eq!(pieces(name, text), expected, "{name}: {text:?}");
        }
    }

    #[test]
    fn published_patterns_name_their_family() {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let digits = r"\p{N}";
        let none = StrArray::default();
        let cases: &[(&[&str], bool, Option<&str>)] = &[
            (&[GPT2_PATTERN], false, Some("gpt-2")),
            (&[GPT2_PATTERN], true, None),
            (&[llama3], true, Some("llama-bpe")),
            (&[llama3], false, Some("dbrx")),
            (&[digits, GPT2_PATTERN], false, Some("starcoder")),
            (&[GPT2_PATTERN, digits], false, None),
            (&[], false, None),
        ];
        for (patterns, ignore_merges, name) in cases {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
            assert_eq!(name_of(&patterns, *ignore_merges, &none), *name, "{patterns:?}");
        }
        let falcon = (0..131_072).map(|i| match i {
            7 => ">>ABSTRACT<<".to_owned(),
            i => format!("t{i}"),
        });
        let name = name_of(&[llama3.into()], true, &falcon.collect());
        assert_eq!(name, Some("falcon3"));
    }

    #[test]
    fn every_name_is_of_one_family_whose_patterns_compile() {
        let mut names: Vec<&str> =
            FAMILIES.iter().flat_map(|family| family.names).copied().collect();
        for name in &names {
            assert_eq!(pieces(name, "Hello").concat(), "Hello");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(pre_override("llama-bpe").is_ok());
        let error = pre_override("klingon").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("tekken"), "{error}");
    }
}
