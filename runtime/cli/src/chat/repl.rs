//! The conversation in a terminal.

use std::path::{Path, PathBuf};

use bitnet_runtime::FinishReason;
use bitnet_runtime::error::Result;

use super::command::Style;
use super::commands::{self, Command, Input, Show, Switch};
use super::talk::{Answer, Talk};
use super::typist::{Typed, Typist};
use crate::output::{human, note, with_flags};
use crate::prompt::{self, LastLineEnd};

/// Largest file that `/read` puts in front of a message, in bytes.
const MAX_READ: usize = 1 << 20;

/// Holds a conversation until its user ends it. `first` is a message that was given with the command.
///
/// # Errors
/// [`Error::Io`](bitnet_runtime::Error::Io) when the terminal cannot be read or written; those of the model.
pub fn run(talk: &mut Talk<'_>, style: Style, first: Option<String>) -> Result<()> {
    let typist = Typist::new(style.keeps_history, style.multi_line)?;
    let mut repl = Repl { talk, style, typist, attached: String::new() };
    note(format_args!("/? lists commands, Ctrl+C ends an answer, Ctrl+D the conversation"));
    if let Some(text) = first {
        repl.say(&text)?;
    }
    loop {
        let input = match repl.typist.read()? {
            Typed::Text(text) => commands::read(&text),
            Typed::Quoted(text) => Input::Message(text),
            Typed::Nothing => continue,
            Typed::End => break,
        };
        match input {
            Input::Message(text) => repl.say(&text)?,
            Input::Command(Command::End) => break,
            Input::Command(command) => repl.obey(command)?,
            Input::Nothing(hint) => hint.iter().for_each(|hint| note(format_args!("{hint}"))),
        }
    }
    Ok(())
}

struct Repl<'a, 'e> {
    talk: &'a mut Talk<'e>,
    style: Style,
    typist: Typist,
    /// The text of files that goes in front of the next message.
    attached: String,
}

impl Repl<'_, '_> {
    fn say(&mut self, text: &str) -> Result<()> {
        let attached = std::mem::take(&mut self.attached);
        let text =
            if attached.is_empty() { text.to_owned() } else { format!("{attached}\n{text}") };
        self.talk.say(&text);
        self.answer()
    }

    /// Has the last message answered. What is wrong with the message is told, and is no end.
    fn answer(&mut self) -> Result<()> {
        match self.style.answer(self.talk) {
            Ok(answer) => self.tell(&answer),
            Err(error) if error.exit_code() == 2 => {
                note(format_args!("{}", with_flags(&error.to_string())));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Tells why an answer ended, where the model did not end it.
    fn tell(&self, answer: &Answer) {
        let context = self.talk.turns().session().context();
        match answer.finish {
            FinishReason::Context => note(format_args!(
                "the context of {context} tokens is full, which cut the answer; -c asks for a larger one"
            )),
            FinishReason::Length => note(format_args!(
                "the answer was cut after {} tokens (/set parameter num_predict)",
                answer.ids.len()
            )),
            FinishReason::Stop | FinishReason::StopString | FinishReason::Interrupted => {}
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        let done = match command {
            Command::System(text) => {
                self.talk.system = Some(text);
                Ok(Some("the system prompt is set".to_owned()))
            }
            Command::Parameter { name, value } => {
                self.talk.parameters.set(&name, &value).map(|()| Some(format!("{name} is {value}")))
            }
            Command::Switch(switch, on) => self.switch(switch, on),
            Command::JsonFormat(on) => self.talk.set_json(on).map(|()| {
                Some(if on { "answers are JSON" } else { "answers are text" }.to_owned())
            }),
            Command::Show(show) => {
                self.show(show);
                Ok(None)
            }
            Command::Clear => {
                self.talk.messages.clear();
                self.attached.clear();
                Ok(Some("the conversation is forgotten".to_owned()))
            }
            Command::Regenerate => {
                if !self.talk.take_answer_back() {
                    note(format_args!("there is no message to answer"));
                    return Ok(());
                }
                let seed = &mut self.talk.parameters.sampling.seed;
                *seed = seed.wrapping_add(1);
                return self.answer();
            }
            Command::Undo => Ok(Some(
                if self.talk.undo() {
                    "the last message and its answer are taken back"
                } else {
                    "there is no message to take back"
                }
                .to_owned(),
            )),
            Command::Read(file) => self.attach(&file),
            Command::Save(file) => {
                let path = PathBuf::from(&file);
                self.talk.save(&path).map(|()| Some(format!("saved: {}", path.display())))
            }
            Command::Load(file) => self.load(&file),
            Command::Help(help) => {
                eprint_text(help.text());
                Ok(None)
            }
            Command::End => Ok(None),
        };
        match done {
            Ok(line) => line.iter().for_each(|line| note(format_args!("{line}"))),
            Err(error) => note(format_args!("{}", with_flags(&error.to_string()))),
        }
        Ok(())
    }

    fn switch(&mut self, switch: Switch, on: bool) -> Result<Option<String>> {
        let on_off = if on { "on" } else { "off" };
        let name = match switch {
            Switch::Verbose => {
                self.style.verbose = on;
                "times after each answer"
            }
            Switch::WordWrap => {
                self.style.word_wrap = on;
                "lines broken between words"
            }
            Switch::History => {
                self.typist.keep_history(on);
                "history"
            }
            Switch::Think => {
                if !self.talk.chat.has_reasoning_switch() {
                    let line = "the template of this model has no switch for reasoning";
                    return Ok(Some(line.to_owned()));
                }
                self.talk.variables.set("enable_thinking", on)?;
                "reasoning"
            }
        };
        Ok(Some(format!("{name}: {on_off}")))
    }

    /// Puts a file in front of the next message.
    fn attach(&mut self, file: &str) -> Result<Option<String>> {
        let text = prompt::from_path(Path::new(file), LastLineEnd::Dropped)?;
        if text.len() + self.attached.len() > MAX_READ {
            return Ok(Some(format!("{file}: more than {MAX_READ} bytes; give a part of it")));
        }
        self.attached += &text;
        self.attached.push('\n');
        Ok(Some(format!("{file}: {}, in front of the next message", human(text.len() as u64))))
    }

    fn load(&mut self, file: &str) -> Result<Option<String>> {
        let path = Path::new(file);
        if matches!(path.try_exists(), Ok(false)) {
            let hint = "no such file: /load takes what /save has written; a model is chosen at the start, with -m";
            return Ok(Some(format!("{file}: {hint}")));
        }
        let other = self.talk.load(path)?;
        self.attached.clear();
        let messages = self.talk.messages.len();
        let other = other.map_or(String::new(), |name| format!("; the model was another, {name}"));
        Ok(Some(format!("loaded: {messages} messages{other}")))
    }

    fn show(&self, show: Show) {
        match show {
            Show::Info => {
                let engine = self.talk.turns().engine();
                let (gguf, config) = (engine.gguf(), engine.config());
                let session = self.talk.turns().session();
                let name = gguf.get_str("general.name").ok().flatten().unwrap_or("none");
                for (key, value) in [
                    ("file", gguf.path().display().to_string()),
                    ("name", name.escape_debug().to_string()),
                    ("architecture", config.architecture.name.to_owned()),
                    ("layers", config.layers.to_string()),
                    ("size", human(gguf.file_bytes())),
                    ("context", format!("{} of {}", session.context(), config.context)),
                    ("tokens held", session.position().to_string()),
                    ("template", self.talk.chat.template_name().to_owned()),
                ] {
                    note(format_args!("{key:14} {value}"));
                }
            }
            Show::Parameters => {
                for (name, value) in self.talk.parameters.pairs() {
                    note(format_args!("{name:18} {value}"));
                }
            }
            Show::System => {
                eprint_text(self.talk.system.as_deref().unwrap_or("there is no system prompt"));
            }
            Show::Template => eprint_text(self.talk.chat.template()),
            Show::Messages => {
                for message in self.talk.all() {
                    note(format_args!("{}:", message.role.escape_debug()));
                    eprint_text(message.content.as_deref().unwrap_or_default());
                }
            }
            Show::Nothing => note(format_args!("there is none")),
        }
    }
}

/// Writes a text to stderr, ended by a line end.
fn eprint_text(text: &str) {
    note(format_args!("{}", text.trim_end_matches('\n')));
}
