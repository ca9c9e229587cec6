//! Grammars in llama.cpp's GBNF, translated into llguidance's Lark.
//!
//! llama.cpp reads a text character by character. llguidance reads it lexeme by lexeme, which is fast, and
//! each lexeme is as long as can be: `[0-9]+ "0"` would match nothing, were both lexemes. So what is regular
//! becomes one lexeme where no text can go on in two ways, and is split further where one can, down to single
//! characters, which are always right.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::CharIndices;

use super::charset::CharSet;
use super::lark;
use crate::error::quoted;

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 100;
/// Largest count of a repetition, as llama.cpp has it.
const MAX_COUNT: usize = 2000;
/// Most rules.
const MAX_RULES: usize = 1000;

/// What is wrong with a grammar, and what is allowed.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) found: String,
    pub(super) expected: String,
}

type Result<T> = std::result::Result<T, Malformed>;

/// A part of a rule.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// One character of a set.
    Set(CharSet),
    /// A token of the vocabulary, or any other.
    Token {
        id: u32,
        negated: bool,
    },
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// A node at least and at most so often.
    Repeat(Box<Node>, usize, Option<usize>),
}

/// A rule by its name; none until it is defined.
struct Rule {
    name: String,
    body: Option<Node>,
}

/// Translates a grammar; `token` finds the id of the one token that a text such as `<think>` spells.
pub(super) fn to_lark(text: &str, token: &dyn Fn(&str) -> Option<u32>) -> Result<String> {
    let mut parser = Parser {
        text,
        chars: text.char_indices().peekable(),
        rules: Vec::new(),
        names: HashMap::new(),
        token,
    };
    let root = parser.rule_of("root");
    parser.space(true);
    while parser.peek().is_some() {
        parser.definition()?;
    }
    if parser.rules.len() > MAX_RULES {
        let found = format!("{} rules", parser.rules.len());
        return Err(Malformed { found, expected: format!("at most {MAX_RULES}") });
    }
    let mut bodies = Vec::new();
    for Rule { name, body } in parser.rules {
        let missing = || {
            let expected = match name.as_str() {
                "root" => "a rule 'root', which is the whole text".to_owned(),
                _ => format!("a rule {} in the grammar, which another names", quoted(&name)),
            };
            Malformed { found: "none".into(), expected }
        };
        bodies.push(body.ok_or_else(missing)?);
    }
    Ok(lark::write(&bodies, root))
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    rules: Vec<Rule>,
    names: HashMap<String, usize>,
    token: &'a dyn Fn(&str) -> Option<u32>,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|&(_, c)| c)
    }

    fn next(&mut self) -> Option<char> {
        self.chars.next().map(|(_, c)| c)
    }

    fn take(&mut self, wanted: char) -> bool {
        self.chars.next_if(|&(_, c)| c == wanted).is_some()
    }

    /// The error for what stands at the present place.
    fn error(&mut self, expected: &str) -> Malformed {
        let at = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        let line = self.text[..at].matches('\n').count() + 1;
        let found = match self.text[at..].lines().next().unwrap_or_default() {
            "" if at == self.text.len() => format!("the end in line {line}"),
            "" => format!("the end of line {line}"),
            rest => format!("{} in line {line}", quoted(rest)),
        };
        Malformed { found, expected: expected.to_owned() }
    }

    /// Skips blanks and comments, and line ends if `lines`.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines => {}
                '#' => {
                    while self.chars.next_if(|&(_, c)| c != '\n' && c != '\r').is_some() {}
                    continue;
                }
                _ => break,
            }
            self.next();
        }
    }

    /// The number of a rule, which may be defined later.
    fn rule_of(&mut self, name: &str) -> usize {
        if let Some(&rule) = self.names.get(name) {
            return rule;
        }
        self.rules.push(Rule { name: name.to_owned(), body: None });
        self.names.insert(name.to_owned(), self.rules.len() - 1);
        self.rules.len() - 1
    }

    fn name(&mut self) -> Option<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let mut name = String::new();
        while let Some((_, c)) = self.chars.next_if(|&(_, c)| is_part(c)) {
            name.push(c);
        }
        (!name.is_empty()).then_some(name)
    }

    /// `name ::= choice`, and the lines behind it.
    fn definition(&mut self) -> Result<()> {
        let start = self.chars.clone();
        let name = self.name().ok_or_else(|| self.error("the name of a rule"))?;
        let rule = self.rule_of(&name);
        if self.rules[rule].body.is_some() {
            self.chars = start;
            return Err(self.error("one definition of each rule"));
        }
        self.space(false);
        for c in "::=".chars() {
            if !self.take(c) {
                return Err(self.error("::= behind the name of a rule"));
            }
        }
        self.space(true);
        self.rules[rule].body = Some(self.choice(0)?);
        if self.peek().is_some_and(|c| c != '\n' && c != '\r') {
            return Err(self.error("the end of the rule, or |"));
        }
        self.space(true);
        Ok(())
    }

    /// Sequences with | between them.
    fn choice(&mut self, depth: usize) -> Result<Node> {
        let mut options = vec![self.sequence(depth)?];
        while self.take('|') {
            self.space(true);
            options.push(self.sequence(depth)?);
        }
        Ok(match options.len() {
            1 => options.remove(0),
            _ => Node::Choice(options),
        })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        while let Some(c) = self.peek() {
            let node = match c {
                '"' => self.string()?,
                '[' => self.class()?,
                '.' => {
                    self.next();
                    Node::Set(CharSet::all())
                }
                '<' | '!' => self.token()?,
                '(' => {
                    if depth == MAX_DEPTH {
                        return Err(self.error(&format!("groups in at most {MAX_DEPTH} levels")));
                    }
                    self.next();
                    self.space(true);
                    let node = self.choice(depth + 1)?;
                    if !self.take(')') {
                        return Err(self.error(") at the end of a group"));
                    }
                    node
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.count()?;
                    let Some(last) = nodes.pop() else {
                        return Err(self.error("something before *, +, ? and {"));
                    };
                    Node::Repeat(Box::new(last), least, most)
                }
                _ => match self.name() {
                    Some(name) => Node::Rule(self.rule_of(&name)),
                    None => break,
                },
            };
            nodes.push(node);
            // Within a group lines do not matter.
            self.space(depth > 0);
        }
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Sequence(nodes),
        })
    }

    /// `*`, `+`, `?`, `{2}`, `{2,}` or `{2,5}`.
    fn count(&mut self) -> Result<(usize, Option<usize>)> {
        match self.next() {
            Some('*') => return Ok((0, None)),
            Some('+') => return Ok((1, None)),
            Some('?') => return Ok((0, Some(1))),
            _ => {}
        }
        self.space(false);
        let least = self.number()?.ok_or_else(|| self.error("a count"))?;
        self.space(false);
        let most = match self.take(',') {
            false => Some(least),
            true => {
                self.space(false);
                self.number()?
            }
        };
        self.space(false);
        if !self.take('}') {
            return Err(self.error("} behind a count"));
        }
        match most {
            Some(most) if most < least => Err(Malformed {
                found: format!("{{{least},{most}}}"),
                expected: "the smaller count first".into(),
            }),
            _ => Ok((least, most)),
        }
    }

    fn number(&mut self) -> Result<Option<usize>> {
        let mut digits = String::new();
        while let Some((_, c)) = self.chars.next_if(|&(_, c)| c.is_ascii_digit()) {
            digits.push(c);
        }
        match digits.parse() {
            Ok(count) if count <= MAX_COUNT => Ok(Some(count)),
            _ if digits.is_empty() => Ok(None),
            _ => Err(Malformed {
                found: format!("a count of {digits}"),
                expected: format!("at most {MAX_COUNT}"),
            }),
        }
    }

    fn string(&mut self) -> Result<Node> {
        self.next();
        let mut text = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("\" at the end of a text")),
                Some('"') => break,
                Some(_) => {
                    let c = self.character()?;
                    text.push(Node::Set(CharSet::of(c, c)));
                }
            }
        }
        self.next();
        Ok(Node::Sequence(text))
    }

    /// `[a-z_]` or `[^a-z_]`.
    fn class(&mut self) -> Result<Node> {
        self.next();
        let negated = self.take('^');
        let mut set = CharSet::default();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("] at the end of a set")),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let mut last = first;
            let mut ahead = self.chars.clone();
            if ahead.next_if(|&(_, c)| c == '-').is_some()
                && ahead.peek().is_some_and(|&(_, c)| c != ']')
            {
                self.chars = ahead;
                last = self.character()?;
                if last < first {
                    return Err(self.error("a range whose first character is the smaller one"));
                }
            }
            set.add(&CharSet::of(first, last));
        }
        if set.is_empty() {
            return Err(self.error("a character in a set"));
        }
        self.next();
        Ok(Node::Set(if negated { set.complement() } else { set }))
    }

    /// One character, or what stands for one.
    fn character(&mut self) -> Result<char> {
        let start = self.chars.clone();
        let Some(c) = self.next() else { return Err(self.error("a character")) };
        if c != '\\' {
            return Ok(c);
        }
        let found = match self.next() {
            Some('x') => self.hex(2),
            Some('u') => self.hex(4),
            Some('U') => self.hex(8),
            Some('t') => Some('\t'),
            Some('r') => Some('\r'),
            Some('n') => Some('\n'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^')) => Some(c),
            _ => None,
        };
        found.ok_or_else(|| {
            self.chars = start;
            let expected =
                r#"\t, \r, \n, \\, \", \[, \], \-, \^, or \xHH, \uHHHH, \UHHHHHHHH of a character"#;
            self.error(expected)
        })
    }

    fn hex(&mut self, digits: usize) -> Option<char> {
        let mut code = 0;
        for _ in 0..digits {
            code = code << 4 | self.next()?.to_digit(16)?;
        }
        char::from_u32(code)
    }

    /// `<[7]>`, `<think>`, or either behind `!`.
    fn token(&mut self) -> Result<Node> {
        let start = self.chars.clone();
        let negated = self.take('!');
        let mut text = String::new();
        while let Some(c) = self.peek().filter(|&c| c != '\n') {
            text.push(c);
            self.next();
            if c == '>' {
                break;
            }
        }
        let number = text.strip_prefix("<[").and_then(|text| text.strip_suffix("]>"));
        let id = match number {
            Some(number) => number.parse().ok(),
            None if text.starts_with('<') && text.ends_with('>') => (self.token)(&text),
            None => None,
        };
        id.map(|id| Node::Token { id, negated }).ok_or_else(|| {
            self.chars = start;
            self.error("<[ID]>, or <TEXT> that is one token of the vocabulary")
        })
    }
}
