//! A conversation, and what answers it.

use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::{
    Chat, Conversation, FinishReason, Message, Part, ReasoningSplitter, SequenceOptions,
    SequenceStats, TokenLogprobs, Turns, Variables,
};

use super::parameters::Parameters;
use super::saved::{Model, Saved};
use crate::interrupt::Interrupt;
use crate::output::note;

/// A conversation with a model.
pub struct Talk<'e> {
    pub chat: Chat,
    turns: Turns<'e>,
    pub system: Option<String>,
    /// Messages without the system prompt.
    pub messages: Vec<Message>,
    pub parameters: Parameters,
    /// Flags that hold for every answer: grammar, drafts.
    pub limits: SequenceOptions,
    pub variables: Variables,
    /// True if reasoning is told from the answer.
    pub splits_reasoning: bool,
    interrupt: Interrupt,
    /// The thread that packs the weights while the user types.
    pub packing: Option<JoinHandle<()>>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub content: String,
    pub reasoning: String,
    pub finish: FinishReason,
    /// The text that ended it, of those that were given for that.
    pub stop: Option<String>,
    pub logprobs: Vec<TokenLogprobs>,
    pub prompt: Vec<u32>,
    pub ids: Vec<u32>,
    /// Tokens of the prompt that were known from the turn before.
    pub cached: usize,
    /// Messages that were forgotten, since the context does not hold them.
    pub forgotten: usize,
    pub stats: SequenceStats,
    /// Time of packing the weights, where that was amid the answer.
    pub pack_time: Option<Duration>,
}

impl<'e> Talk<'e> {
    pub fn new(
        chat: Chat,
        turns: Turns<'e>,
        parameters: Parameters,
        limits: SequenceOptions,
    ) -> Self {
        Self {
            chat,
            turns,
            system: None,
            messages: Vec::new(),
            parameters,
            limits,
            variables: Variables::default(),
            splits_reasoning: true,
            interrupt: Interrupt::default(),
            packing: None,
        }
    }

    /// Lets a request end an answer.
    pub fn interrupt_by(&mut self, interrupt: Interrupt) {
        self.turns.cancel_with(Some(interrupt.cancel()));
        self.interrupt = interrupt;
    }

    /// The request that ends an answer.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The engine and the session.
    pub fn turns(&self) -> &Turns<'e> {
        &self.turns
    }

    /// The system prompt, if there is one, and all messages.
    pub fn all(&self) -> Vec<Message> {
        let system = self.system.as_ref().map(|text| Message::new("system", text));
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// Adds a message of the user. One that was not answered gives way to it.
    pub fn say(&mut self, text: &str) {
        self.messages.pop_if(|last| last.role == "user");
        self.messages.push(Message::new("user", text));
    }

    /// Takes the last answer back; its question stays. Returns false where there is no question.
    pub fn take_answer_back(&mut self) -> bool {
        while self.messages.pop_if(|last| last.role != "user").is_some() {}
        !self.messages.is_empty()
    }

    /// Takes the last question and its answer back. Returns false where there is none.
    pub fn undo(&mut self) -> bool {
        self.take_answer_back() && self.messages.pop().is_some()
    }

    /// Has the model answer the last message, until Ctrl+C ends that. Parts of the answer go to `write` as
    /// they are written. After an error the conversation is as before, without the message.
    ///
    /// # Errors
    /// [`Error::Usage`] for a message that does not fit or that the template refuses; those of the model and
    /// of `write`.
    pub fn answer(&mut self, write: &mut dyn FnMut(Part, &str) -> Result<()>) -> Result<Answer> {
        let answer = self.try_answer(write);
        if answer.is_err() {
            self.messages.pop();
        }
        answer
    }

    fn try_answer(&mut self, write: &mut dyn FnMut(Part, &str) -> Result<()>) -> Result<Answer> {
        self.interrupt.clear();
        let mut conversation = Conversation {
            messages: self.all(),
            variables: self.variables.clone(),
            ..Conversation::default()
        };
        let context = self.turns.session().context();
        let room = self.parameters.tokens.unwrap_or(usize::MAX).min(context / 4);
        let (prompt, forgotten) = self.chat.fit(&mut conversation, context, room)?;
        self.messages.drain(..forgotten);

        let options = SequenceOptions {
            tokens: self.parameters.tokens,
            stop: self.parameters.stop.clone(),
            ..self.limits.clone()
        };
        let mut answer = Answer::new(prompt, forgotten);
        if !self.wait_for_packing() {
            return Ok(answer);
        }
        let is_mapped = !self.turns.session().model().is_packed();
        let mut splitter = None;
        if self.splits_reasoning {
            splitter = Some(ReasoningSplitter::after(&self.chat.render(&conversation)?));
        }
        let sampling = self.parameters.sampling.clone();
        let mut sequence = match self.turns.begin(answer.prompt.clone(), sampling, options) {
            Err(Error::Interrupted) => return Ok(answer),
            sequence => sequence?,
        };
        let mut take = |parts: Vec<(Part, String)>| {
            parts.into_iter().try_for_each(|(part, text)| {
                match part {
                    Part::Answer => answer.content += &text,
                    Part::Reasoning => answer.reasoning += &text,
                }
                write(part, &text)
            })
        };
        loop {
            let goes_on = self.turns.step(&mut sequence)?;
            let piece = sequence.take_text();
            if !piece.is_empty() {
                take(match &mut splitter {
                    Some(splitter) => splitter.push(&piece),
                    None => vec![(Part::Answer, piece)],
                })?;
            }
            if !goes_on {
                break;
            }
        }
        take(splitter.as_mut().map(ReasoningSplitter::finish).unwrap_or_default())?;
        answer.finish = sequence.finish_reason().unwrap_or(FinishReason::Length);
        answer.stop = sequence.stop_string().map(str::to_owned);
        answer.logprobs = sequence.logprobs().to_vec();
        answer.ids = sequence.ids().to_vec();
        answer.cached = self.turns.cached();
        answer.stats = sequence.stats();
        answer.pack_time = self.turns.engine().pack_time().filter(|_| is_mapped);
        // Of an answer that was interrupted before its first word there is nothing to remember.
        if !answer.ids.is_empty() {
            self.messages.push(answer.message());
        }
        Ok(answer)
    }

    /// True while a thread packs the weights.
    pub fn is_packing(&self) -> bool {
        self.packing.as_ref().is_some_and(|packing| !packing.is_finished())
    }

    /// Waits for the thread that packs the weights. Returns false where Ctrl+C ends the wait.
    fn wait_for_packing(&mut self) -> bool {
        /// Time between looks.
        const MOMENT: Duration = Duration::from_millis(10);
        if self.is_packing() {
            note(format_args!("packing weights: the answer waits for that"));
        }
        while self.is_packing() && !self.interrupt.is_requested() {
            thread::sleep(MOMENT);
        }
        !self.is_packing()
    }

    /// Holds answers to JSON, or no longer.
    ///
    /// # Errors
    /// [`Error::Usage`] for a vocabulary that grammars cannot be made for.
    pub fn set_json(&mut self, on: bool) -> Result<()> {
        let grammars = on.then(|| self.turns.engine().grammars()).transpose()?;
        self.limits.grammar = grammars.map(|grammars| grammars.json_schema("{}")).transpose()?;
        Ok(())
    }

    /// Writes the conversation to a file.
    ///
    /// # Errors
    /// Those of [`Saved::write`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let parameters = self.parameters.to_saved();
        let (system, messages) = (self.system.clone(), self.messages.clone());
        Saved::new(self.model(), self.chat.template_name(), system, parameters, messages)
            .write(path)
    }

    /// Takes up a conversation from a file in place of this one. Returns the name of the model that gave
    /// its answers if that is another one.
    ///
    /// # Errors
    /// Those of [`Saved::read`]; [`Error::Usage`] for a parameter that is not known or out of range.
    pub fn load(&mut self, path: &Path) -> Result<Option<String>> {
        let saved = Saved::read(path)?;
        let parameters = self
            .parameters
            .with(&saved.parameters)
            .map_err(|e| Error::usage(path.display(), e, "parameters that /save has written"))?;
        (self.system, self.messages, self.parameters) = (saved.system, saved.messages, parameters);
        Ok(Some(saved.model.name).filter(|_| saved.model.fingerprint != self.model().fingerprint))
    }

    /// The model, as saved conversations name it.
    fn model(&self) -> Model {
        let gguf = self.turns.engine().gguf();
        let named = gguf.get_str("general.name").ok().flatten().map(str::to_owned);
        let file = || gguf.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fingerprint = gguf.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect();
        Model { name: named.unwrap_or_else(file), fingerprint }
    }
}

impl Answer {
    /// The answer to a prompt before there is any.
    fn new(prompt: Vec<u32>, forgotten: usize) -> Self {
        Self {
            content: String::new(),
            reasoning: String::new(),
            finish: FinishReason::Interrupted,
            stop: None,
            logprobs: Vec::new(),
            prompt,
            ids: Vec::new(),
            cached: 0,
            forgotten,
            stats: SequenceStats::default(),
            pack_time: None,
        }
    }

    /// The answer as a message of the conversation.
    pub fn message(&self) -> Message {
        let mut message = Message::new("assistant", self.content.as_str());
        if !self.reasoning.is_empty() {
            let reasoning = ("reasoning_content".to_owned(), self.reasoning.as_str().into());
            message.fields.push(reasoning);
        }
        message
    }
}

impl std::fmt::Debug for Talk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Talk").field("messages", &self.messages.len()).finish_non_exhaustive()
    }
}
