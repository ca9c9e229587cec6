//! Reasoning: the part of an answer between `<think>` and `</think>`.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model thinks before it answers.
    Reasoning,
    /// What it answers.
    Answer,
}

/// Tells reasoning from the answer in a text that arrives in pieces. The tags, and white space around
/// them, are part of neither.
#[derive(Clone, Debug, Default)]
pub struct ReasoningSplitter {
    state: State,
    /// Text that may become a tag, or white space that may turn out to be at an end.
    held: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At the beginning, where reasoning may begin.
    #[default]
    Start,
    /// Behind `<think>`, before the first word.
    Opened,
    Reasoning,
    /// Behind `</think>`, before the first word.
    Closed,
    Answer,
}

impl ReasoningSplitter {
    /// Makes a splitter for what follows a prompt, which may end with the tag that opens the reasoning.
    #[must_use]
    pub fn after(prompt: &str) -> Self {
        let is_open = prompt.trim_end().ends_with(OPEN);
        Self { state: if is_open { State::Opened } else { State::Start }, held: String::new() }
    }

    /// Takes a piece of the text and returns the parts that are certain.
    pub fn push(&mut self, piece: &str) -> Vec<(Part, String)> {
        self.held += piece;
        let mut parts = Vec::new();
        loop {
            let held = self.held.as_str();
            let (next, used) = match self.state {
                State::Start => {
                    let word = held.trim_start();
                    if let Some(rest) = word.strip_prefix(OPEN) {
                        (State::Opened, held.len() - rest.len())
                    } else if OPEN.starts_with(word) {
                        return parts;
                    } else {
                        (State::Answer, 0)
                    }
                }
                State::Opened | State::Closed => {
                    let word = held.trim_start();
                    if word.is_empty() {
                        return parts;
                    }
                    let next =
                        if self.state == State::Opened { State::Reasoning } else { State::Answer };
                    (next, held.len() - word.len())
                }
                State::Reasoning => {
                    if let Some(at) = held.find(CLOSE) {
                        add(&mut parts, Part::Reasoning, held[..at].trim_end());
                        (State::Closed, at + CLOSE.len())
                    } else {
                        let certain = held.len() - undecided(held);
                        let certain = held[..certain].trim_end().len();
                        add(&mut parts, Part::Reasoning, &held[..certain]);
                        self.held.drain(..certain);
                        return parts;
                    }
                }
                State::Answer => {
                    add(&mut parts, Part::Answer, held);
                    self.held.clear();
                    return parts;
                }
            };
            self.held.drain(..used);
            self.state = next;
        }
    }

    /// Returns what is left when the text has ended.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let held = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match self.state {
            State::Start | State::Answer => add(&mut parts, Part::Answer, &held),
            State::Opened | State::Reasoning => add(&mut parts, Part::Reasoning, held.trim_end()),
            State::Closed => {}
        }
        parts
    }
}

/// Adds a part that is not empty.
fn add(parts: &mut Vec<(Part, String)>, part: Part, text: &str) {
    if !text.is_empty() {
        parts.push((part, text.to_owned()));
    }
}

/// The length of the longest end of a text with which the closing tag begins.
fn undecided(text: &str) -> usize {
    (1..CLOSE.len()).rev().find(|&n| text.ends_with(&CLOSE[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning and answer of a text that arrives in pieces of at most so many characters.
    fn split(prompt: &str, text: &str, size: usize) -> (String, String) {
        let mut splitter = ReasoningSplitter::after(prompt);
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars.chunks(size).map(String::from_iter);
        let mut parts: Vec<(Part, String)> =
            pieces.flat_map(|piece| splitter.push(&piece)).collect();
        parts.extend(splitter.finish());
        let of = |part| parts.iter().filter(|p| p.0 == part).map(|p| p.1.as_str()).collect();
        (of(Part::Reasoning), of(Part::Answer))
    }

    #[test]
    fn pieces_of_any_size_give_the_same_parts() {
        let cases = [
            ("", "Hello.", "", "Hello."),
            ("", " <b>x</b>", "", " <b>x</b>"),
            ("", "<think>\nWhy < not?\n</think>\n\nBecause.\n", "Why < not?", "Because.\n"),
            ("", "\n<think>\n\n</think>\n\nYes", "", "Yes"),
            ("", "<think>a </th b", "a </th b", ""),
            ("", "<thin", "", "<thin"),
            ("<|assistant|><think>\n", "deep\n</think>42", "deep", "42"),
            ("<think>", "é…</think> é", "é…", "é"),
            ("<think>\n\n</think>\n\n", "plain", "", "plain"),
            ("", "", "", ""),
        ];
        for (prompt, text, reasoning, answer) in cases {
            for size in 1..=text.chars().count().max(1) {
                let expected = (reasoning.to_owned(), answer.to_owned());
                assert_eq!(split(prompt, text, size), expected, "{text:?} by {size}");
            }
        }
    }
}
