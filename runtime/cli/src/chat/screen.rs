//! The screen: answers on stdout as they are written, reasoning dimmed, lines broken between words.

use std::io::{self, IsTerminal};

use bitnet_profiles::patient;
use bitnet_runtime::Part;
use bitnet_runtime::error::Result;

use crate::run::write;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Writer of one answer.
#[derive(Debug)]
pub struct Screen {
    /// True if reasoning is dimmed; otherwise tags stand around it.
    color: bool,
    /// Columns, where lines are broken between words.
    width: Option<usize>,
    /// Characters in the line so far.
    column: usize,
    /// The word that is being written, where it may yet have to go to the next line.
    word: String,
    part: Option<Part>,
    ends_line: bool,
}

impl Screen {
    pub fn new(color: bool, width: Option<usize>) -> Self {
        Self { color, width, column: 0, word: String::new(), part: None, ends_line: true }
    }

    /// Writes a piece of the answer.
    ///
    /// # Errors
    /// [`Error::Io`](bitnet_runtime::Error::Io) when stdout refuses.
    pub fn push(&mut self, part: Part, text: &str) -> Result<()> {
        if self.part != Some(part) {
            let before = match (part, self.color) {
                (Part::Reasoning, true) => DIM,
                (Part::Reasoning, false) => "<think>\n",
                (Part::Answer, _) => "",
            };
            self.leave()?;
            self.raw(before)?;
            self.part = Some(part);
        }
        self.ends_line = text.ends_with('\n');
        let Some(width) = self.width else { return self.raw(text) };
        for c in text.chars() {
            self.word.push(c);
            if c.is_whitespace() {
                self.flush_word(width)?;
                self.column = if c == '\n' { 0 } else { self.column };
            }
        }
        Ok(())
    }

    /// Writes the word, on the next line if it does not fit on this one.
    fn flush_word(&mut self, width: usize) -> Result<()> {
        let word = std::mem::take(&mut self.word);
        let length = word.trim_end().chars().count();
        if self.column > 0 && self.column + length > width {
            self.raw("\n")?;
            self.column = 0;
        }
        self.column += word.chars().count();
        self.raw(&word)
    }

    /// Ends the part that is being written.
    fn leave(&mut self) -> Result<()> {
        if let Some(width) = self.width {
            self.flush_word(width)?;
        }
        match (self.part, self.color) {
            (Some(Part::Reasoning), true) => self.raw(&format!("{PLAIN}\n\n")),
            (Some(Part::Reasoning), false) => self.raw("\n</think>\n\n"),
            _ => Ok(()),
        }
    }

    /// Ends the answer with a line end.
    ///
    /// # Errors
    /// As [`Screen::push`].
    pub fn finish(mut self) -> Result<()> {
        self.leave()?;
        let is_open = self.part == Some(Part::Answer) && !self.ends_line || self.part.is_none();
        if is_open { self.raw("\n") } else { Ok(()) }
    }

    fn raw(&mut self, text: &str) -> Result<()> {
        if text.is_empty() { Ok(()) } else { write(&mut patient::stdout(), text) }
    }
}

/// Returns true if `--color` and the surroundings ask for colours.
pub fn is_colored(flag: Option<bool>) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    flag.unwrap_or(io::stdout().is_terminal() && !no_color)
}
