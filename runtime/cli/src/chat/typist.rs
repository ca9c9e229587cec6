//! What a user types: lines with history, and messages of several lines.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::rc::Rc;

use bitnet_profiles::paths;
use bitnet_runtime::error::{Error, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Behavior, Config, Context, Editor, Helper};

use super::commands::QUOTES;
use crate::output::note;

/// Lines of history that are kept.
const HISTORY: usize = 1000;

/// A text that was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// A line, or several that go on: a command or a message.
    Text(String),
    /// A message in quotes.
    Quoted(String),
    /// Ctrl+C: there is no text.
    Nothing,
    /// Ctrl+D.
    End,
}

/// Reads what a user types.
pub struct Typist {
    editor: Editor<Watcher, FileHistory>,
    history: Option<PathBuf>,
    keeps_history: bool,
    /// True if a line goes on unless a backslash ends it.
    multi_line: bool,
}

/// Knows if the line that is edited is empty, so that Ctrl+C can tell.
struct Watcher(Rc<Cell<bool>>);

impl Hinter for Watcher {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.0.set(!line.is_empty());
        None
    }
}

impl Completer for Watcher {
    type Candidate = String;
}

impl Highlighter for Watcher {}
impl Validator for Watcher {}
impl Helper for Watcher {}

impl Typist {
    /// Begins with the history of the times before, if it is to be kept.
    ///
    /// # Errors
    /// [`Error::Io`] when the terminal cannot be used.
    pub fn new(keeps_history: bool, multi_line: bool) -> Result<Self> {
        // An answer that goes elsewhere is not to have prompts in it.
        let is_shown = io::stdout().is_terminal();
        let behavior = if is_shown { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).max_history_size(HISTORY);
        let config = config.map_err(broken)?.bracketed_paste(true).build();
        let mut editor = Editor::with_config(config).map_err(broken)?;
        let history = paths::history_file(|name| std::env::var_os(name)).filter(|_| keeps_history);
        if let Some(path) = &history {
            // The first time there is none.
            drop(editor.load_history(path));
        }
        Ok(Self { editor, history, keeps_history, multi_line })
    }

    /// Keeps what is typed from now on for the next time, or not.
    pub fn keep_history(&mut self, on: bool) {
        self.keeps_history = on;
        if on && self.history.is_none() {
            self.history = paths::history_file(|name| std::env::var_os(name));
        }
    }

    /// Reads a message or a command.
    ///
    /// # Errors
    /// [`Error::Io`] when the terminal cannot be read.
    pub fn read(&mut self) -> Result<Typed> {
        let mut text = match self.line(">>> ", "Use Ctrl + d or /bye to exit.")? {
            Typed::Text(line) => line,
            other => return Ok(other),
        };
        let is_quoted = text.trim_start().starts_with(QUOTES);
        let opens = |text: &str| text.matches(QUOTES).count() % 2 == 1;
        let may_open = is_quoted || text.starts_with("/set system");
        let is_command = text.starts_with('/');
        loop {
            let goes_on = if may_open && text.contains(QUOTES) {
                opens(&text)
            } else if self.multi_line && !is_command {
                !takes_backslash(&mut text)
            } else {
                takes_backslash(&mut text)
            };
            if !goes_on {
                break;
            }
            match self.line("... ", "")? {
                Typed::Text(line) => {
                    text.push('\n');
                    text += &line;
                }
                other => return Ok(other),
            }
        }
        self.remember(&text);
        if !is_quoted {
            return Ok(Typed::Text(text));
        }
        let message = text.trim().trim_start_matches(QUOTES).trim_end_matches(QUOTES);
        Ok(Typed::Quoted(message.trim_matches('\n').to_owned()))
    }

    /// Reads a line; `hint` is what Ctrl+C says at an empty one.
    fn line(&mut self, prompt: &str, hint: &str) -> Result<Typed> {
        let has_text = Rc::new(Cell::new(false));
        self.editor.set_helper(Some(Watcher(Rc::clone(&has_text))));
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Typed::Text(line)),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(ReadlineError::Interrupted) => {
                if !hint.is_empty() && !has_text.get() {
                    note(format_args!("{hint}"));
                }
                Ok(Typed::Nothing)
            }
            Err(error) => Err(broken(error)),
        }
    }

    /// Adds a text to the history, and to its file.
    fn remember(&mut self, text: &str) {
        drop(self.editor.add_history_entry(text));
        let Some(path) = self.history.as_ref().filter(|_| self.keeps_history) else { return };
        if let Some(folder) = path.parent() {
            drop(std::fs::create_dir_all(folder));
        }
        // A history that cannot be written is no reason to stop.
        drop(self.editor.append_history(path));
    }
}

/// The error for a terminal that cannot be used.
fn broken(error: ReadlineError) -> Error {
    Error::io("terminal".as_ref(), "read", io::Error::other(error))
}

/// Takes a backslash off the end of a text. Returns true if there was one.
fn takes_backslash(text: &mut String) -> bool {
    let has = text.ends_with('\\');
    if has {
        text.pop();
    }
    has
}
