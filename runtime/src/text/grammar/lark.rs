//! Rules as llguidance's Lark has them: what is regular in lexemes as long as they may be.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::charset::CharSet;
use super::gbnf::Node;

/// Longest lexeme; what would be longer is split.
const MAX_REGEX: usize = 16 << 10;

/// Writes the rules; the whole text is one of rule `root`.
pub(super) fn write(bodies: &[Node], root: usize) -> String {
    let mut writer = Writer {
        bodies,
        facts: vec![None; bodies.len()],
        firsts: vec![First { set: CharSet::default(), nullable: false }; bodies.len()],
        follows: vec![CharSet::default(); bodies.len()],
        split: HashSet::new(),
        lexemes: Vec::new(),
    };
    writer.find_firsts();
    writer.find_follows();
    // Each round splits more; with nothing but single characters there is nothing to split.
    loop {
        writer.lexemes.clear();
        let mut out = format!("%llguidance {{}}\nstart: r{root}\n");
        for (i, body) in bodies.iter().enumerate() {
            let follow = writer.follows[i].clone();
            let body = writer.node(body, &follow);
            _ = writeln!(out, "r{i}: {body}");
        }
        if !writer.split_conflicts() {
            return out;
        }
    }
}

/// Characters with which a text may begin, and if it may be empty.
#[derive(Clone)]
struct First {
    set: CharSet,
    nullable: bool,
}

/// What is known of a regular language.
#[derive(Clone)]
struct Regular {
    regex: String,
    nullable: bool,
    /// Characters with which a text begins.
    first: CharSet,
    /// Characters behind the first one, and perhaps more.
    inner: CharSet,
    /// Characters with which a text that is complete may go on to a longer one, and perhaps more.
    more: CharSet,
}

impl Regular {
    fn empty() -> Self {
        let none = CharSet::default;
        Self { regex: String::new(), nullable: true, first: none(), inner: none(), more: none() }
    }

    /// All characters of its texts.
    fn all(&self) -> CharSet {
        let mut all = self.first.clone();
        all.add(&self.inner);
        all
    }

    /// Texts of this language with one of another behind.
    fn then(&self, next: &Self) -> Self {
        let mut joined = self.clone();
        joined.regex.push_str(&next.regex);
        joined.nullable &= next.nullable;
        if self.nullable {
            joined.first.add(&next.first);
        }
        joined.inner.add(&next.all());
        if self.more.meets(&next.first) {
            // Where the second begins is not decided by the next character: anything may come.
            joined.more = joined.all();
        } else if next.nullable {
            joined.more.add(&next.more);
            joined.more.add(&next.first);
        } else {
            joined.more = next.more.clone();
        }
        joined
    }

    fn repeated(&self, least: usize, most: Option<usize>) -> Self {
        let mut all = self.clone();
        all.regex = format!("(?:{}){}", self.regex, count(least, most));
        all.nullable |= least == 0;
        if most.is_none_or(|most| most > 1) {
            all.inner = self.all();
            all.more = self.all();
        } else if all.nullable {
            all.more.add(&self.first);
        }
        all
    }

    fn choice(options: &[Self]) -> Self {
        let regexes: Vec<&str> = options.iter().map(|option| option.regex.as_str()).collect();
        let mut all = Self { regex: format!("(?:{})", regexes.join("|")), ..Self::empty() };
        all.nullable = options.iter().any(|option| option.nullable);
        let mut undecided = false;
        for option in options {
            undecided |= all.first.meets(&option.first);
            all.first.add(&option.first);
            all.inner.add(&option.inner);
            all.more.add(&option.more);
        }
        if undecided {
            all.more.add(&all.inner);
        }
        if all.nullable {
            all.more.add(&all.first);
        }
        all
    }
}

/// A lexeme of the grammar.
struct Lexeme {
    regular: Regular,
    /// Characters that may come behind it.
    follow: CharSet,
}

struct Writer<'a> {
    bodies: &'a [Node],
    /// What is known of each rule's language: `None` until it is asked for; then none if it is not regular,
    /// or still being found out, which is so for rules that are recursive.
    facts: Vec<Option<Option<Regular>>>,
    firsts: Vec<First>,
    /// Characters that may follow each rule.
    follows: Vec<CharSet>,
    /// Regular expressions that must not be lexemes.
    split: HashSet<String>,
    lexemes: Vec<Lexeme>,
}

impl Writer<'_> {
    fn find_firsts(&mut self) {
        let bodies = self.bodies;
        let mut changed = true;
        while changed {
            changed = false;
            // Rules are mostly defined behind those that name them.
            for (i, body) in bodies.iter().enumerate().rev() {
                let First { set, nullable } = self.first(body);
                changed |= nullable != self.firsts[i].nullable;
                self.firsts[i].nullable = nullable;
                changed |= self.firsts[i].set.add(&set);
            }
        }
    }

    fn first(&self, node: &Node) -> First {
        match node {
            Node::Set(set) => First { set: set.clone(), nullable: false },
            // A token that is named stands for no character; any other may begin with all.
            Node::Token { negated: false, .. } => {
                First { set: CharSet::default(), nullable: false }
            }
            Node::Token { negated: true, .. } => First { set: CharSet::all(), nullable: false },
            Node::Rule(rule) => self.firsts[*rule].clone(),
            Node::Sequence(nodes) => {
                let mut all = First { set: CharSet::default(), nullable: true };
                for node in nodes {
                    let first = self.first(node);
                    all.set.add(&first.set);
                    if !first.nullable {
                        all.nullable = false;
                        break;
                    }
                }
                all
            }
            Node::Choice(nodes) => {
                let mut all = First { set: CharSet::default(), nullable: false };
                for first in nodes.iter().map(|node| self.first(node)) {
                    all.set.add(&first.set);
                    all.nullable |= first.nullable;
                }
                all
            }
            Node::Repeat(node, least, _) => {
                let mut first = self.first(node);
                first.nullable |= *least == 0;
                first
            }
        }
    }

    fn find_follows(&mut self) {
        let bodies = self.bodies;
        let mut changed = true;
        while changed {
            changed = false;
            for (i, body) in bodies.iter().enumerate() {
                let follow = self.follows[i].clone();
                changed |= self.follow(body, &follow);
            }
        }
    }

    /// Notes what may follow the rules that a node names; `follow` may follow the node. Returns true if any
    /// of that is new.
    fn follow(&mut self, node: &Node, follow: &CharSet) -> bool {
        match node {
            Node::Set(_) | Node::Token { .. } => false,
            Node::Rule(rule) => self.follows[*rule].add(follow),
            Node::Sequence(nodes) => {
                let mut behind = follow.clone();
                nodes.iter().rev().fold(false, |changed, node| {
                    let new = self.follow(node, &behind);
                    behind = self.before(node, &behind);
                    changed | new
                })
            }
            Node::Choice(nodes) => {
                nodes.iter().fold(false, |changed, node| changed | self.follow(node, follow))
            }
            Node::Repeat(inner, _, most) => {
                let behind = self.behind_repeated(inner, *most, follow);
                self.follow(inner, &behind)
            }
        }
    }

    /// Characters that may come where a node begins, if `follow` may follow it.
    fn before(&self, node: &Node, follow: &CharSet) -> CharSet {
        let First { mut set, nullable } = self.first(node);
        if nullable {
            set.add(follow);
        }
        set
    }

    /// Characters that may follow one of the repetitions of a node.
    fn behind_repeated(&self, node: &Node, most: Option<usize>, follow: &CharSet) -> CharSet {
        let mut behind = follow.clone();
        if most.is_none_or(|most| most > 1) {
            behind.add(&self.first(node).set);
        }
        behind
    }

    /// The language of a rule, if it is regular and its expression is not too long.
    fn regular_rule(&mut self, rule: usize) -> Option<Regular> {
        if let Some(known) = &self.facts[rule] {
            return known.clone();
        }
        self.facts[rule] = Some(None);
        let body: &Node = &self.bodies[rule];
        let found = self.regular(body);
        self.facts[rule] = Some(found.clone());
        found
    }

    fn regular(&mut self, node: &Node) -> Option<Regular> {
        let regular = match node {
            Node::Set(set) => Regular {
                regex: set.regex(),
                nullable: false,
                first: set.clone(),
                ..Regular::empty()
            },
            Node::Token { .. } => return None,
            Node::Rule(rule) => self.regular_rule(*rule)?,
            Node::Sequence(nodes) => {
                let mut all = Regular::empty();
                for node in nodes {
                    all = all.then(&self.regular(node)?);
                    if all.regex.len() > MAX_REGEX {
                        return None;
                    }
                }
                all
            }
            Node::Choice(nodes) => {
                let options: Option<Vec<_>> = nodes.iter().map(|node| self.regular(node)).collect();
                Regular::choice(&options?)
            }
            Node::Repeat(node, least, most) => self.regular(node)?.repeated(*least, *most),
        };
        (regular.regex.len() <= MAX_REGEX).then_some(regular)
    }

    /// True if texts of a language may be one lexeme where `follow` may follow: reading on as long as can
    /// be reads nothing that belongs to what follows.
    fn may_be_lexeme(&self, regular: &Regular, follow: &CharSet) -> bool {
        regular.inner.is_empty()
            || !regular.more.meets(follow) && !self.split.contains(&regular.regex)
    }

    fn lexeme(&mut self, regular: Regular, follow: &CharSet) -> String {
        if regular.regex.is_empty() {
            return "\"\"".into();
        }
        let written = format!("/{}/", regular.regex);
        self.lexemes.push(Lexeme { regular, follow: follow.clone() });
        written
    }

    /// Writes a node that `follow` may follow.
    fn node(&mut self, node: &Node, follow: &CharSet) -> String {
        if let Some(regular) = self.regular(node)
            && self.may_be_lexeme(&regular, follow)
        {
            return self.lexeme(regular, follow);
        }
        match node {
            // A single character is a lexeme in any case.
            Node::Set(_) => String::new(),
            Node::Token { id, negated: false } => format!("<[{id}]>"),
            Node::Token { id, negated: true } => format!("<[^{id}]>"),
            Node::Rule(rule) => format!("r{rule}"),
            Node::Sequence(nodes) => self.sequence(nodes, follow),
            Node::Choice(nodes) => {
                let options: Vec<String> =
                    nodes.iter().map(|node| self.node(node, follow)).collect();
                format!("({})", options.join(" | "))
            }
            Node::Repeat(inner, least, most) => {
                let behind = self.behind_repeated(inner, *most, follow);
                format!("({}){}", self.node(inner, &behind), count(*least, *most))
            }
        }
    }

    /// Writes a sequence, in lexemes that are as long as they may be.
    fn sequence(&mut self, nodes: &[Node], follow: &CharSet) -> String {
        let mut follows = vec![follow.clone()];
        for node in nodes.iter().rev() {
            let before = self.before(node, &follows[follows.len() - 1]);
            follows.push(before);
        }
        follows.reverse();
        let mut parts = Vec::new();
        let mut start = 0;
        while start < nodes.len() {
            let mut run = Regular::empty();
            let mut longest = None;
            for end in start..nodes.len() {
                let Some(next) = self.regular(&nodes[end]) else { break };
                run = run.then(&next);
                if run.regex.len() > MAX_REGEX {
                    break;
                }
                if self.may_be_lexeme(&run, &follows[end + 1]) {
                    longest = Some((end + 1, run.clone()));
                }
            }
            let (end, part) = match longest {
                Some((end, run)) => (end, self.lexeme(run, &follows[end])),
                None => (start + 1, self.node(&nodes[start], &follows[start + 1])),
            };
            parts.push(part);
            start = end;
        }
        format!("({})", parts.join(" "))
    }

    /// Has lexemes split that are read where another one ends and what follows it begins. Returns true if
    /// there are any.
    fn split_conflicts(&mut self) -> bool {
        let mut found = HashSet::new();
        for long in self.lexemes.iter().filter(|lexeme| !lexeme.regular.inner.is_empty()) {
            let conflicts = |other: &Lexeme| {
                other.regular.regex != long.regular.regex
                    && other.follow.meets(&long.regular.inner)
                    && other.regular.first.meets(&long.regular.first)
            };
            if !found.contains(&long.regular.regex) && self.lexemes.iter().any(conflicts) {
                found.insert(long.regular.regex.clone());
            }
        }
        let before = self.split.len();
        self.split.extend(found);
        self.split.len() > before
    }
}

/// How often something is repeated, as regular expressions and Lark have it.
fn count(least: usize, most: Option<usize>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}
