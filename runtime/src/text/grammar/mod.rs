//! Grammars that hold a text to a form: JSON schemas, llama.cpp's GBNF and Lark, by llguidance.
//!
//! Before each token a grammar says which tokens may follow; the sampler chooses among these. So every text is
//! one of the grammar as far as it goes, and which of the allowed tokens come is up to the model alone.
#![forbid(unsafe_code)]

mod charset;
mod gbnf;
mod lark;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, panic_utils};
use serde_json::{Value, json};

use super::tokenizer::Tokenizer;
use crate::cpu::head::screen::Needs;
use crate::error::{Error, Result};

/// Longest schema or grammar, in bytes.
pub const MAX_GRAMMAR: usize = 256 << 10;
/// Stack of the thread that compiles: what is nested is compiled by recursion.
const STACK: usize = 64 << 20;
/// Deepest nesting of groups in a Lark grammar.
const MAX_DEPTH: usize = 200;

/// Longest token that a grammar may use, in bytes, and bytes of all tokens: limits of the tree of tokens.
const MAX_TOKEN: usize = 1000;
const MAX_TOKENS: usize = 4 << 20;

/// Largest number of allowed tokens for which logits are asked for one by one.
const FEW: usize = 256;

/// Compiler of grammars for one vocabulary; [`Engine::grammars`](crate::Engine::grammars) makes it.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    factory: ParserFactory,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

impl Grammars {
    /// Makes the compiler for a vocabulary, which takes some 300 ms and 45 MB for 128,000 tokens.
    ///
    /// # Errors
    /// [`Error::Usage`] for a vocabulary beyond the limits of a tree of tokens.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let words: Vec<Vec<u8>> =
            (0..tokenizer.vocab_size() as u32).map(|id| word(&tokenizer, id)).collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MAX_TOKENS {
            let found = format!("a vocabulary of {bytes} bytes");
            return Err(Error::usage("grammar", found, format_args!("at most {MAX_TOKENS}")));
        }
        let ends = tokenizer.eos_ids();
        let end = ends.first().copied().unwrap_or(llguidance::toktrie::INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) };
        // It forces no tokens: which ones spell what must come is the model's choice, too.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&env);
        let mut factory = factory.map_err(|e| refused("grammar", &e, "a common vocabulary"))?;
        factory.quiet();
        let limits = factory.limits_mut();
        // So that no grammar takes long for a token, or much memory.
        limits.max_items_in_row = 1_000;
        limits.initial_lexer_fuel = 500_000;
        limits.step_lexer_fuel = 50_000;
        limits.step_max_items = 20_000;
        limits.max_lexer_states = 20_000;
        limits.max_grammar_size = 200_000;
        limits.verbose_errors = false;
        Ok(Self { tokenizer, factory })
    }

    /// Compiles a JSON schema: the text is one JSON value that it describes, on one line, with a space
    /// behind each comma and colon. `{}` describes any value. `x-guidance` at its root, as llguidance has
    /// it, says otherwise.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is no schema, asks for what is not offered, or is too large.
    pub fn json_schema(&self, schema: &str) -> Result<Grammar> {
        const ITEM: &str = "json_schema";
        check_size(ITEM, schema)?;
        let value = serde_json::from_str(schema);
        let value = value.map_err(|e| refused(ITEM, &e, "a JSON schema"))?;
        let mut value = match value {
            Value::Bool(true) => json!({}),
            value @ Value::Object(_) => value,
            other => {
                let found = other.to_string().chars().take(60).collect::<String>();
                return Err(Error::usage(ITEM, found, "a JSON schema, which is an object"));
            }
        };
        // A model that may write any white space may never write anything else.
        let spaces = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        });
        if let Some(root) = value.as_object_mut() {
            root.entry("x-guidance").or_insert(spaces);
        }
        self.compile(ITEM, TopLevelGrammar::from_json_schema(value))
    }

    /// Compiles a grammar in llama.cpp's GBNF, whose rule `root` is the whole text; or, if it begins with
    /// `%llguidance`, in llguidance's Lark, whose rule is `start`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a grammar that is malformed, asks for what is not offered, or is too large.
    pub fn grammar(&self, text: &str) -> Result<Grammar> {
        const ITEM: &str = "grammar";
        check_size(ITEM, text)?;
        let lark = if text.trim_start().starts_with("%llguidance") {
            let depths = text.chars().scan(0usize, |depth, c| {
                *depth = match c {
                    '(' | '[' | '{' => *depth + 1,
                    ')' | ']' | '}' => depth.saturating_sub(1),
                    _ => *depth,
                };
                Some(*depth)
            });
            if depths.max() > Some(MAX_DEPTH) {
                let found = "deeper nesting";
                return Err(Error::usage(ITEM, found, format_args!("at most {MAX_DEPTH} levels")));
            }
            text.to_owned()
        } else {
            gbnf::to_lark(text, &|token| self.token(token))
                .map_err(|e| Error::usage(ITEM, e.found, e.expected))?
        };
        self.compile(ITEM, TopLevelGrammar::from_lark(lark))
    }

    /// The id of a token that a text spells.
    fn token(&self, text: &str) -> Option<u32> {
        match self.tokenizer.encode(text, false, true).ok()?[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    fn compile(&self, item: &str, grammar: TopLevelGrammar) -> Result<Grammar> {
        let compile = || {
            let parser = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.factory.create_parser(grammar)
            }));
            llguidance::Matcher::new(parser)
        };
        let matcher = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            thread.ok()?.join().ok()
        });
        let matcher = matcher.ok_or_else(|| Error::Runtime("cannot compile the grammar".into()))?;
        match matcher.get_error() {
            Some(error) => Err(refused(item, &error, "what llguidance compiles; simplify it")),
            None => Ok(Grammar {
                start: Arc::new(Mutex::new(matcher)),
                vocab: self.tokenizer.vocab_size(),
            }),
        }
    }
}

/// The bytes of a token as a grammar sees them: those of its text, or, behind a byte that no text has, the
/// spelling of a token that stands for none or ends a text. Empty for one that no grammar may use.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !tokenizer.eos_ids().contains(&id) {
        tokenizer.decode_into(id, &mut bytes);
    }
    if bytes.is_empty()
        && let Some(text) = tokenizer.token_text(id).filter(|text| !text.is_empty())
    {
        bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
        bytes.extend(text.as_bytes());
    }
    if bytes.len() > MAX_TOKEN {
        bytes.clear();
    }
    bytes
}

fn check_size(item: &str, text: &str) -> Result<()> {
    if text.len() > MAX_GRAMMAR {
        let found = format!("{} bytes", text.len());
        return Err(Error::usage(item, found, format_args!("at most {MAX_GRAMMAR}")));
    }
    Ok(())
}

/// The error for what llguidance refuses: the first line of its message, at most 200 characters.
fn refused(item: &str, message: &dyn fmt::Display, expected: &str) -> Error {
    let message = message.to_string();
    let line = message.lines().next().unwrap_or_default();
    let found: String = line.chars().take(200).flat_map(char::escape_debug).collect();
    Error::usage(item, found, expected)
}

/// A compiled grammar, for any number of texts.
#[derive(Clone)]
pub struct Grammar {
    /// The matcher of a text that has not begun; copying it is locked, not sharing the copies.
    start: Arc<Mutex<llguidance::Matcher>>,
    vocab: usize,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammar {
    /// The state of a text that begins.
    ///
    /// # Errors
    /// [`Error::Usage`] if the grammar was made for another vocabulary.
    pub(crate) fn matcher(&self, tokenizer: &Tokenizer) -> Result<Matcher> {
        if tokenizer.vocab_size() != self.vocab {
            let found = format!("one for a vocabulary of {}", self.vocab);
            let expected = format!("one for this vocabulary of {}", tokenizer.vocab_size());
            return Err(Error::usage("grammar", found, expected));
        }
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Matcher { inner: start.deep_clone(), allowed: None })
    }
}

/// The state of a grammar in one text.
pub(crate) struct Matcher {
    inner: llguidance::Matcher,
    /// The tokens that may come next, once they were asked for.
    allowed: Option<SimpleVob>,
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").finish_non_exhaustive()
    }
}

impl Matcher {
    /// Finds the tokens that may come next: those that go on within the grammar, and those that end a text
    /// where it is complete.
    ///
    /// # Errors
    /// [`Error::Usage`] where that is too much work.
    fn allowed(&mut self) -> Result<&SimpleVob> {
        if self.allowed.is_none() {
            let allowed = self.inner.compute_mask();
            let allowed =
                allowed.map_err(|e| refused("grammar", &e, "one that is simpler at this place"))?;
            self.allowed = Some(allowed);
        }
        Ok(self.allowed.get_or_insert_default())
    }

    /// The logits that a sampler needs for the next token: where few tokens may come, theirs alone.
    ///
    /// # Errors
    /// As [`Matcher::restrict`].
    pub(crate) fn needs(&mut self) -> Result<Needs> {
        let allowed = self.allowed()?;
        Ok(match allowed.num_set() {
            0..=FEW => Needs::Best { count: 1, ids: allowed.iter().collect() },
            _ => Needs::All,
        })
    }

    /// Sets the logits of all tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// [`Error::Usage`] where finding them is too much work.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.allowed()?.as_slice();
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// True if a token may come next.
    pub(crate) fn allows(&self, id: u32) -> bool {
        self.allowed.as_ref().is_some_and(|set| (id as usize) < set.len() && set.is_allowed(id))
    }

    /// True if the text is one of the grammar as it is.
    pub(crate) fn is_complete(&mut self) -> bool {
        self.inner.is_accepting().unwrap_or(false)
    }

    /// Takes the next token of the text. Returns true if nothing may follow it.
    ///
    /// # Errors
    /// [`Error::Usage`] where that is too much work.
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool> {
        self.allowed = None;
        let taken = self.inner.consume_token(id);
        taken.map_err(|e| refused("grammar", &e, "one that is simpler at this place"))?;
        Ok(self.inner.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::gguf::Gguf;

    fn grammars() -> Grammars {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap();
        Grammars::new(Arc::new(tokenizer)).unwrap()
    }

    /// True if the text is one of the grammar: none of its tokens is ruled out, and it may end there.
    fn matches(grammars: &Grammars, grammar: &Grammar, text: &str) -> bool {
        let mut matcher = grammar.matcher(&grammars.tokenizer).unwrap();
        let ids = grammars.tokenizer.encode(text, false, false).unwrap();
        for (i, &id) in ids.iter().enumerate() {
            let needs = matcher.needs().unwrap();
            let allowed = matcher.allows(id);
            let mut logits = vec![0.0; grammars.tokenizer.vocab_size()];
            matcher.restrict(&mut logits).unwrap();
            for (logit, other) in logits.iter().zip(0..) {
                assert_eq!(*logit == 0.0, matcher.allows(other));
                if let Needs::Best { ids, .. } = &needs {
                    assert_eq!(ids.contains(&other), matcher.allows(other));
                }
            }
            if !allowed {
                return false;
            }
            if matcher.accept(id).unwrap() {
                return i + 1 == ids.len();
            }
        }
        let ends = grammars.tokenizer.eos_ids();
        let complete = matcher.is_complete();
        matcher.needs().unwrap();
        assert!(ends.iter().all(|&end| matcher.allows(end) == complete));
        complete
    }

    /// Checks which texts a grammar in GBNF matches.
    fn gbnf(grammars: &Grammars, text: &str, good: &[&str], bad: &[&str]) {
        let grammar = grammars.grammar(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        for text in good {
            assert!(matches(grammars, &grammar, text), "{text:?} is not matched");
        }
        for text in bad {
            assert!(!matches(grammars, &grammar, text), "{text:?} is matched");
        }
    }

    const JSON: &str = r##"
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::=
          "{" ws (
                    string ":" ws value
            ("," ws string ":" ws value)*
          )? "}" ws
        array  ::= "[" ws (value ("," ws value)*)? "]" ws
        string ::=
          "\"" (
            [^"\\\x7F\x00-\x1F] |
            "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
          )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
        # Optional space, by recursion
        ws ::= | " " | "\n" [ \t]{0,20}
    "##;

    #[test]
    fn known_grammars_of_llama_cpp_match_what_they_should() {
        let grammars = grammars();
        gbnf(
            &grammars,
            JSON,
            &[
                "{}",
                r#"{"a": [1, -2.5e3, true], "b\n\u00e9": {"c": null}}"#,
                "{\n  \"a\": \"{[,:\",\n  \"b\": []}\n",
            ],
            &["[]", "{", r#"{"a" 1}"#, r#"{"a": 01}"#, r#"{"a": "\x"}"#, r#"{"a": 1,}"#, "{}}"],
        );
        // The older one, whose white space repeats by recursion.
        let recursive = JSON.replace(r#"ws ::= | " " | "\n" [ \t]{0,20}"#, r"ws ::= ([ \t\n] ws)?");
        gbnf(&grammars, &recursive, &["{ \n\t\"a\" :  1 }"], &["{ \"a\" : x}"]);
        gbnf(
            &grammars,
            r#"root ::= (expr "=" ws term "\n")+
               expr ::= term ([-+*/] term)*
               term ::= ident | num | "(" ws expr ")" ws
               ident ::= [a-z] [a-z0-9_]* ws
               num ::= [0-9]+ ws
               ws ::= [ \t\n]*"#,
            &["x = 1\n", "(a+b1) *3 = 12\nz -4= 0\n"],
            &["x = \n", "1 + = 2\n", "(a = 1\n"],
        );
        gbnf(
            &grammars,
            r#"# Lists
               root ::= item+
               # Excludes various line break characters
               item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n""#,
            &["- one\n", "- one\n- zwei, drei\n"],
            &["one\n", "- \n", "- one"],
        );
        gbnf(
            &grammars,
            r#"root ::= (
                 "1. " move " " move "\n"
                 ([1-9] [0-9]? ". " move " " move "\n")+
               )
               move ::= (pawn | nonpawn | castle) [+#]?
               nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
               pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
               castle ::= "O-O" "-O"?"#,
            &["1. e4 e5\n2. Nf3 Nc6\n", "1. e4 d5\n2. exd5 Qxd5+\n3. O-O O-O-O#\n"],
            &["1. e4 e5\n", "1. e9 e5\n2. Nf3 Nc6\n", "2. e4 e5\n2. Nf3 Nc6\n"],
        );
    }

    #[test]
    fn gbnf_is_read_as_llama_cpp_reads_it() {
        let grammars = grammars();
        let many = |grammar: &str, good: &[&str], bad: &[&str]| gbnf(&grammars, grammar, good, bad);
        many(
            "root ::= \"a\"{2} \"b\"{1,} \"c\"{0,2}",
            &["aab", "aabbbcc"],
            &["ab", "aa", "aabccc"],
        );
        many("root ::= \"a\" |\n  \"b\" # or\n", &["a", "b"], &["ab", "c"]);
        many("a_b-C1 ::= [x-z]\nroot ::= a_b-C1 \"\\u00e9\" .", &["xé!", "zéé"], &["xe!", "é"]);
        many("root ::= [a\\]\\-b^] [-+]", &["]-", "-+", "^-"], &["c-", "a*"]);
        // Left and middle recursion, and a choice that the first lexeme alone does not decide.
        many("root ::= root \"ab\" | \"ab\"", &["ab", "ababab"], &["aba", ""]);
        many("root ::= \"(\" root \")\" | \"x\"", &["x", "((x))"], &["(x", "()", "(x))"]);
        many("root ::= [0-9]+ \"0\" | \"(\" root \")\"", &["10", "(100)"], &["1", "(0)"]);
        many("root ::= x x\nx ::= \"a\"* | \"(\" x \")\"", &["aa(a)", "", "(aa)aa"], &["a(a"]);
        many(
            "root ::= a | b | \"(\" root \")\"\na ::= \"x\" \"y\"? \"z\" | a \"z\"\nb ::= \"xy\" b | \"xyzz\"",
            &["xz", "xyz", "xyzz", "(xyxyzz)", "xzzz"],
            &["xy", "xyxyz", "xyxz"],
        );
        many("root ::= (\"a\" | \"ab\") \"bc\"", &["abc", "abbc"], &["ac", "ab"]);
        let end = grammars.tokenizer.eos_ids()[0];
        let tokens = format!("root ::= \"a\" <[{end}]>");
        assert!(grammars.grammar(&tokens).is_ok());
        many("%llguidance {}\nstart: \"a\" B+\nB: /[0-9]/", &["a1", "a123"], &["a", "b1"]);
    }

    #[test]
    fn what_is_no_grammar_is_refused_with_a_sentence() {
        let grammars = grammars();
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
        let deep_lark = format!("%llguidance {{}}\nstart: {}\"a\"", "(".repeat(100_000));
        let large = format!("root ::= \"{}\"", "x".repeat(MAX_GRAMMAR));
        let cases = [
            ("", "rule 'root'"),
            ("start ::= \"a\"", "rule 'root'"),
            ("root ::= other", "'other'"),
            ("root ::= \"a", "line 1"),
            ("root ::= \"a\"\n\nroot := \"b\"", "line 3"),
            ("root ::= [a", "line 1"),
            ("root ::= (\"a\"", "line 1"),
            ("root ::= * \"a\"", "line 1"),
            ("root ::= \"a\"{3,2}", "{3,2}"),
            ("root ::= \"a\"{99999}", "99999"),
            ("root ::= \"\\q\"", "\\q"),
            ("root ::= \"\\uD800\"", "D800"),
            ("root ::= [z-a]", "line 1"),
            ("root ::= <no-such-token>", "<no-such-token>"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2"),
            (&deep, "levels"),
            (&deep_lark, "200 levels"),
            (&large, "262144"),
            ("%llguidance {}\nstart: other", "other"),
        ];
        for (text, words) in cases {
            let error = grammars.grammar(text).unwrap_err();
            let line = error.to_string();
            assert!(line.contains(words), "{words}: {line}");
            assert!(line.starts_with("grammar: found ") && line.len() < 400, "{line}");
            assert_eq!((error.exit_code(), line.lines().count()), (2, 1), "{line}");
        }
        let schema = |text: &str| grammars.json_schema(text);
        let nested = "{\"items\":".repeat(5000);
        for (text, words) in [
            ("", "EOF"),
            ("[]", "an object"),
            ("{\"type\": \"hiccup\"}", "hiccup"),
            ("{\"$ref\": \"https://example.com/x\"}", "json_schema"),
            ("{\"type\": \"string\", \"pattern\": \"(\"}", "json_schema"),
            (&nested, "recursion limit"),
        ] {
            let line = schema(text).unwrap_err().to_string();
            assert!(line.contains(words) && line.lines().count() == 1, "{words}: {line}");
        }
    }

    /// Grammars made to take long or much memory end with a sentence or go on at bounded cost.
    #[test]
    fn r21_bombs_do_not_go_off() {
        let grammars = grammars();
        let laughs: String = (0..40).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
        let laughs = format!("root ::= r0\n{laughs}r40 ::= \"lol\"");
        let nested = "root ::= ((((\"a\"{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}";
        let ambiguous = "root ::= root root root | \"a\" | \"aa\" | root? root? root?";
        let letters = "root ::= text\ntext ::= [^x] text | [^y] text | [^z] text | .";
        for text in [&laughs, nested, ambiguous, letters] {
            let grammar = match grammars.grammar(text) {
                Ok(grammar) => grammar,
                Err(error) => {
                    assert_eq!(error.exit_code(), 2, "{error}");
                    continue;
                }
            };
            let mut matcher = grammar.matcher(&grammars.tokenizer).unwrap();
            for _ in 0..20 {
                if let Err(error) = matcher.needs() {
                    let line = error.to_string();
                    assert!(line.contains("simpler") && line.lines().count() == 1, "{line}");
                    break;
                }
                let next = (0..4096)
                    .find(|&id| matcher.allows(id) && !grammars.tokenizer.eos_ids().contains(&id));
                let Some(next) = next else { break };
                if matcher.accept(next).unwrap_or(true) {
                    break;
                }
            }
        }
        let bomb = r#"{"type": "array", "minItems": 100000000, "items": {"type": "string"}}"#;
        let grammar = grammars.json_schema(bomb).unwrap();
        assert!(!matches(&grammars, &grammar, r#"["a"]"#));
    }

    #[test]
    fn json_schemas_match_what_they_describe() {
        let grammars = grammars();
        let schema = r#"{
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "age": {"type": "integer", "minimum": 0, "maximum": 150}
            },
            "required": ["name", "age"],
            "additionalProperties": false
        }"#;
        let grammar = grammars.json_schema(schema).unwrap();
        assert!(matches(&grammars, &grammar, r#"{"name": "Anna", "age": 31}"#));
        for bad in [
            r#"{"age": 31, "name": "Anna"}"#,
            r#"{"name": "Anna", "age": 200}"#,
            r#"{"name": "Annabel", "age": 31}"#,
            r#"{"name":  "Anna", "age": 31}"#,
            r#"{"name": "Anna"}"#,
        ] {
            assert!(!matches(&grammars, &grammar, bad), "{bad}");
        }
        for any in ["{}", "true"] {
            let grammar = grammars.json_schema(any).unwrap();
            assert!(matches(&grammars, &grammar, r#"[1, "a", {"b": null}]"#), "{any}");
        }
        // The state of one text is none of another's.
        let [mut one, mut other] = [(); 2].map(|()| grammar.matcher(&grammars.tokenizer).unwrap());
        let ids = grammars.tokenizer.encode(r#"{"name"#, false, false).unwrap();
        one.needs().unwrap();
        other.needs().unwrap();
        one.accept(ids[0]).unwrap();
        other.accept(ids[0]).unwrap();
        assert_eq!(one.needs().unwrap(), other.needs().unwrap());
    }
}
