//! Conversation: chat templates, and the ids of a conversation.
//!
//! A [`Chat`] is a model's template with its tokenizer. It renders a [`Conversation`] as transformers does
//! and makes ids of the text, among which are exactly the control tokens that the template writes: what a
//! user says stays text, whatever it spells.

#![forbid(unsafe_code)]

mod families;
pub(crate) mod guard;
mod json;
mod message;
mod reasoning;
mod template;

use std::sync::Arc;

use minijinja::value::Value;

pub use families::TemplateChoice;
use guard::{Guard, MARK};
pub use json::Json;
pub use message::{Conversation, Ending, Message, Variables};
pub use reasoning::{Part, ReasoningSplitter};
use template::{Problem, Template};

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result, quoted};
use crate::file::gguf::Gguf;
use crate::note::Note;

/// A chat template with the tokenizer of its model.
#[derive(Debug)]
pub struct Chat {
    tokenizer: Arc<Tokenizer>,
    guard: Guard,
    name: &'static str,
    template: Template,
    /// The template for conversations with tools, where the file has two.
    with_tools: Option<Template>,
    /// Texts of special tokens, by the names that templates know.
    tokens: [(&'static str, String); 4],
    notes: Vec<Note>,
}

impl Chat {
    /// Takes the template of a model that was chosen.
    ///
    /// # Errors
    /// [`Error::Model`] for a file without a template or with one that does not parse, [`Error::Usage`] for
    /// a chosen one that does not.
    pub fn new(gguf: &Gguf, tokenizer: Arc<Tokenizer>, choice: &TemplateChoice) -> Result<Self> {
        let mut notes = Vec::new();
        let own = gguf.get_str(families::KEY)?;
        let replacement = own.and_then(families::replacement);
        let (name, source) = match (choice, replacement) {
            (TemplateChoice::Source(source), _) => ("given", source.as_str()),
            (TemplateChoice::BuiltIn(name), _) => (*name, families::source(name).unwrap_or("")),
            (TemplateChoice::Auto, Some(name)) => {
                notes.push(Note::info(format!(
                    "{}: the chat template is a known placeholder, which the model was not trained \
                     with; taken instead: {name} (choose the template gguf to keep it)",
                    gguf.path().display()
                )));
                (name, families::source(name).unwrap_or(""))
            }
            (TemplateChoice::Auto | TemplateChoice::Own, _) => ("gguf", own.ok_or_else(|| {
                let names = families::names();
                let expected = format!(
                    "a chat template: this model has none, so it is likely made to continue text, not \
                     to talk; let it continue text, or choose a template: {names}"
                );
                gguf.key_error(families::KEY, "none", expected)
            })?),
        };
        let is_own = name == "gguf";
        let parse = |key: &str, source: &str| {
            Template::new(source).map_err(|problem| match (is_own, problem) {
                (true, Problem { line, message }) => {
                    let expected = "a Jinja template; choose another template";
                    gguf.key_error(&at_line(key, line), quoted(&message), expected)
                }
                (false, problem) => refused(problem),
            })
        };
        let with_tools = gguf.get_str(families::KEY_TOOLS)?.filter(|_| is_own);
        let with_tools = with_tools.map(|source| parse(families::KEY_TOOLS, source)).transpose()?;

        let text = |id: Option<u32>| {
            let text = id.and_then(|id| tokenizer.token_text(id));
            text.unwrap_or_default().to_owned()
        };
        let named = |name: &str| gguf.get_u32(&format!("tokenizer.ggml.{name}_token_id")).ok();
        let tokens = [
            ("bos_token", text(tokenizer.bos())),
            ("eos_token", text(tokenizer.eos())),
            ("pad_token", text(named("padding").flatten())),
            ("unk_token", text(named("unknown").flatten())),
        ];
        let template = parse(families::KEY, source)?;
        notes.extend(unnamed_ends(gguf, &tokenizer)?);
        let guard = Guard::new(tokenizer.control_texts().map(str::to_owned).collect())?;
        let mut chat = Self { tokenizer, guard, name, template, with_tools, tokens, notes };
        chat.note_begins(gguf);
        Ok(chat)
    }

    /// The name of a built-in template, `gguf` for the file's, or `given`.
    #[must_use]
    pub fn template_name(&self) -> &str {
        self.name
    }

    /// The Jinja source of the template.
    #[must_use]
    pub fn template(&self) -> &str {
        self.template.source()
    }

    /// Returns true if the template has a switch for reasoning, the variable `enable_thinking`.
    #[must_use]
    pub fn has_reasoning_switch(&self) -> bool {
        self.template.source().contains("enable_thinking")
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Notes on the template that was taken.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Usage`] for a conversation that the template refuses or takes too long for.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        Ok(self.marked(conversation)?.replace(MARK, ""))
    }

    /// Returns the ids of a conversation: those of its rendered text, begun by one token that begins a text
    /// if the model wants one or the template writes one.
    ///
    /// # Errors
    /// Those of [`Chat::render`] and [`Tokenizer::encode`]; [`Error::Usage`] where there is no text.
    pub fn ids(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_marked(&self.marked(conversation)?, MARK)?;
        if let Some(bos) = self.tokenizer.bos() {
            let written = begins(&ids, bos);
            let wanted = usize::from(written > 0 || self.tokenizer.add_bos());
            ids.splice(..written, std::iter::repeat_n(bos, wanted));
        }
        if ids.is_empty() {
            let expected = "a text: this template writes none for this conversation";
            return Err(Error::usage("conversation", "no text", expected));
        }
        Ok(ids)
    }

    /// Returns the ids of a conversation for a context of so many tokens, in which there is to be room for an
    /// answer of `room` tokens, and the number of messages that were forgotten for that: the oldest turns
    /// are taken out of the conversation, each a user's message and what follows it. What comes before the
    /// first stays, and so does the last turn, if there is room for a token of the answer.
    ///
    /// # Errors
    /// Those of [`Chat::ids`]; [`Error::Usage`] for a last turn that does not fit.
    pub fn fit(
        &self,
        conversation: &mut Conversation,
        context: usize,
        room: usize,
    ) -> Result<(Vec<u32>, usize)> {
        let mut forgotten = 0;
        loop {
            let ids = self.ids(conversation)?;
            if ids.len() + room <= context {
                return Ok((ids, forgotten));
            }
            let messages = &mut conversation.messages;
            let mut turns = messages.iter().enumerate().filter(|(_, m)| m.role == "user");
            match (turns.next(), turns.next()) {
                (Some((first, _)), Some((second, _))) => {
                    messages.drain(first..second);
                    forgotten += second - first;
                }
                _ if ids.len() < context => return Ok((ids, forgotten)),
                _ => {
                    let expected = format!(
                        "fewer than {context}, the context; shorten it or ask for a larger context"
                    );
                    return Err(Error::usage("message", format!("{} tokens", ids.len()), expected));
                }
            }
        }
    }

    /// Notes a template that begins a conversation more than once.
    fn note_begins(&mut self, gguf: &Gguf) {
        let talk = Conversation { messages: vec![Message::new("user", "")], ..Default::default() };
        let Some(bos) = self.tokenizer.bos() else { return };
        // What it refuses is told of a conversation that is held.
        let Ok(text) = self.marked(&talk) else { return };
        let written = self.tokenizer.encode_marked(&text, MARK).map_or(0, |ids| begins(&ids, bos));
        if written > 1 {
            self.notes.push(Note::info(format!(
                "{}: the chat template begins a conversation with {written} tokens {}; one of them is kept",
                gguf.path().display(),
                quoted(self.tokenizer.token_text(bos).unwrap_or_default())
            )));
        }
    }

    /// Renders a conversation, its texts marked by the guard.
    fn marked(&self, conversation: &Conversation) -> Result<String> {
        let Conversation { messages, tools, variables, ending } = conversation;
        let (messages, open) = match (ending, messages.split_last()) {
            (Ending::Open, Some((last, before))) => (before, last.content.as_deref()),
            _ => (&**messages, None),
        };
        let text = |text: &str| self.guard.text(text);
        let fields = |message: &Message| {
            let content = message.content.as_deref().map(text);
            Message {
                role: self.guard.role(&message.role),
                content,
                fields: message
                    .fields
                    .iter()
                    .map(|(name, value)| (text(name), value.map_texts(&text)))
                    .collect(),
            }
        };
        let messages: Vec<Json> = messages.iter().map(fields).map(Json::from).collect();
        let mut all: Vec<(String, Value)> = Vec::new();
        let mut set = |name: &str, value: Value| all.push((name.to_owned(), value));
        for (name, value) in variables.iter() {
            set(name, value.map_texts(&text).0);
        }
        for (name, value) in &self.tokens {
            set(name, value.as_str().into());
        }
        let count = messages.len();
        set("messages", messages.into_iter().map(|message| message.0).collect());
        if !tools.is_empty() {
            set("tools", tools.iter().map(|tool| tool.map_texts(&text).0).collect());
        }
        set("add_generation_prompt", (*ending != Ending::Closed).into());
        let template = self.with_tools.as_ref().filter(|_| !tools.is_empty());
        let rendered = template.unwrap_or(&self.template).render(count, all).map_err(refused)?;
        Ok(rendered + &open.map(text).unwrap_or_default())
    }
}

/// The error for a template that was chosen and does not parse, or a conversation that it refuses.
fn refused(problem: Problem) -> Error {
    let item = at_line("chat template", problem.line);
    Error::usage(item, quoted(&problem.message), "a conversation as the template takes it")
}

/// The number of tokens that begin a text at the front of these.
fn begins(ids: &[u32], bos: u32) -> usize {
    ids.iter().take_while(|&&id| id == bos).count()
}

fn at_line(item: &str, line: Option<usize>) -> String {
    line.map_or(item.to_owned(), |line| format!("{item}, line {line}"))
}

/// Notes the tokens that end an answer, where the file does not name them all.
fn unnamed_ends(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Note>> {
    let mut named = Vec::new();
    for name in ["eos", "eot", "eom"] {
        named.extend(gguf.get_u32(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    let ends = tokenizer.eos_ids();
    if ends.iter().all(|id| named.contains(id)) {
        return Ok(None);
    }
    let texts: Vec<&str> = ends.iter().filter_map(|&id| tokenizer.token_text(id)).collect();
    Ok(Some(Note::info(format!(
        "{}: not all tokens that end an answer are named; an answer ends at {}",
        gguf.path().display(),
        texts.join(", ")
    ))))
}
