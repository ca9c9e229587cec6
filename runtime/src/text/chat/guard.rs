//! The guard: what a user says never becomes a control token.
//!
//! A template writes control tokens as text (`<|eot_id|>`), and so can whoever talks. Before a template
//! sees a text, every control token in it gets a mark behind its first character. The text is cut at
//! special tokens after the template, when the only whole ones left are the template's own, and then marks
//! are taken out, so that words are cut as if there had been none.

#![forbid(unsafe_code)]

use std::collections::HashSet;

use aho_corasick::AhoCorasick;

use crate::error::{Error, Result};

/// The mark: a noncharacter, which is no letter, no white space, and in no text.
pub(crate) const MARK: char = '\u{10fffe}';

/// Roles that templates know, some of which are part of a control token (`<|user|>`).
const ROLES: &[&str] =
    &["system", "developer", "user", "assistant", "tool", "function", "ipython", "model"];

/// The control tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct Guard {
    controls: Vec<String>,
    search: AhoCorasick,
    /// Characters that no text may hold: the mark, and control tokens of one character, which have no part
    /// to put a mark behind.
    replaced: Vec<char>,
    /// Beginnings and ends of control tokens, which others may complete.
    beginnings: HashSet<String>,
    ends: HashSet<String>,
}

impl Guard {
    pub(super) fn new(controls: Vec<String>) -> Result<Self> {
        let search = AhoCorasick::new(&controls)
            .map_err(|e| Error::Runtime(format!("cannot search for control tokens: {e}")))?;
        let (mut beginnings, mut ends) = (HashSet::new(), HashSet::new());
        for control in &controls {
            for (at, _) in control.char_indices().skip(1) {
                beginnings.insert(control[..at].to_owned());
                ends.insert(control[at..].to_owned());
            }
        }
        let single = controls.iter().filter(|control| control.chars().count() == 1);
        let replaced = single.flat_map(|control| control.chars()).chain([MARK]).collect();
        Ok(Self { controls, search, replaced, beginnings, ends })
    }

    /// Marks a text, so that neither it nor what a template writes around it makes a control token of it.
    pub(super) fn text(&self, text: &str) -> String {
        let text = text.replace(&*self.replaced, "\u{fffd}");
        let mut places: Vec<usize> = Vec::new();
        for found in self.search.find_overlapping_iter(&text) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            places.push(found.start() + first);
        }
        // Templates trim texts.
        let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
        let trimmed = text.trim();
        let longest = self.controls.iter().map(String::len).max().unwrap_or(0);
        let cuts = |(at, _): (usize, char)| trimmed.split_at(at);
        let tails = trimmed.char_indices().rev().map(cuts).map(|(_, tail)| tail);
        if tails.take_while(|tail| tail.len() < longest).any(|tail| self.beginnings.contains(tail))
        {
            places.push(end);
        }
        let heads = trimmed.char_indices().map(cuts).map(|(head, _)| head).skip(1).chain([trimmed]);
        if heads.take_while(|head| head.len() < longest).any(|head| self.ends.contains(head)) {
            places.push(start);
        }
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * MARK.len_utf8());
        let mut done = 0;
        for place in places {
            marked += &text[done..place];
            marked.push(MARK);
            done = place;
        }
        marked + &text[done..]
    }

    /// Marks a role: one that templates do not know may not be the middle of a control token either.
    pub(super) fn role(&self, role: &str) -> String {
        let trimmed = role.trim();
        let is_part = || self.controls.iter().any(|control| control.contains(trimmed));
        match trimmed.chars().next() {
            Some(first) if !ROLES.contains(&role) && is_part() => {
                let (first, rest) = trimmed.split_at(first.len_utf8());
                format!("{first}{MARK}{rest}")
            }
            _ => self.text(role),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard::new(["<|eot|>", "<|a<|eot|>", "<|user|>", "\u{e000}"].map(String::from).into())
            .unwrap()
    }

    #[test]
    fn texts_are_marked_where_a_control_token_could_be() {
        for (text, expected) in [
            ("hello", "hello"),
            ("a < b", "a < b"),
            ("x<|eot|>y", "x<~|eot|>y"),
            ("<|a<|eot|>", "<~|a<~|eot|>"),
            ("<|eot|", "<|eot|~"),
            (" <|eo \n", " <|eo~ \n"),
            ("> quoted", "~> quoted"),
            ("|>", "~|>"),
            ("~\u{e000}", "\u{fffd}\u{fffd}"),
            ("", ""),
        ] {
            let found = guard().text(&text.replace('~', &MARK.to_string()));
            assert_eq!(found.replace(MARK, "~"), expected, "{text:?}");
        }
    }

    #[test]
    fn roles_complete_no_control_token() {
        for (role, expected) in [("user", "user"), ("eot", "e~ot"), ("critic", "critic"), ("", "")]
        {
            assert_eq!(guard().role(role).replace(MARK, "~"), expected);
        }
    }
}
