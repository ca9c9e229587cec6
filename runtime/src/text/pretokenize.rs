//! Pre-tokenizers: cut a text into the words that byte-level BPE encodes one by one.

use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::utils::SysRegex;

use crate::error::{Error, Result, quoted};
use crate::file::gguf::Gguf;

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

pub(super) fn pre_family(gguf: &Gguf, warnings: &mut Vec<String>) -> Result<&'static Family> {
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
