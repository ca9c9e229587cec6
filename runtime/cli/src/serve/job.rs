//! What goes to the engine thread, and what comes back.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bitnet_runtime::cpu::model::Detached;
use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::sequence::{FinishReason, Sequence};
use bitnet_runtime::engine::{Embedding, Normalisation};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;

/// Events that wait for their reader, at most: the memory of a text whose reader does not read.
pub const EVENTS: usize = 256;

/// A text that is to be written. Dropping the receiver of its events cancels it.
#[derive(Debug)]
pub struct Job {
    /// Number, unique in a run of the server.
    pub id: u64,
    /// A job with the same prompt, which is to go through the model first, and then be copied.
    pub after: Option<u64>,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// The text, at its beginning.
    pub sequence: Sequence,
    /// True to take what slots hold of the prompt.
    pub cache: bool,
    /// The slot that is to serve.
    pub slot: Option<usize>,
    /// Time from the first token after which the text ends.
    pub most_time: Option<Duration>,
    /// Likely tokens to tell for each token of the prompt, with its own probability; `None`: nothing.
    pub prompt_logprobs: Option<usize>,
    /// True to tell how far the prompt is.
    pub tells_progress: bool,
    /// True if drafts may be made.
    pub drafts: bool,
    /// Receiver's other end.
    pub events: mpsc::Sender<Event>,
    /// Time at which the request was complete.
    pub received: Instant,
}

/// The embeddings of each text of a request.
pub type Embeddings = Vec<Vec<Vec<f32>>>;

/// Texts of which embeddings are to be made. Dropping the receiver of the answer cancels it.
#[derive(Debug)]
pub struct EmbeddingJob {
    /// Number, unique in a run of the server.
    pub id: u64,
    /// The texts, at their beginning.
    pub texts: Vec<Embedding>,
    /// Normalisation of their embeddings.
    pub normalisation: Normalisation,
    /// Receiver's other end.
    pub reply: oneshot::Sender<Result<Embeddings, ApiError>>,
    /// Time at which the request was complete.
    pub received: Instant,
}

/// News of a text.
#[derive(Debug)]
pub enum Event {
    /// A slot was chosen.
    Started {
        /// Its number.
        slot: usize,
    },
    /// A piece of the prompt has been through the model.
    Progress(Progress),
    /// The probabilities of tokens of the prompt, from the second on.
    Prompt(Vec<TokenLogprobs>),
    /// The text has become longer.
    Piece(Piece),
    /// The text has ended; the last event.
    Done(Box<Ending>),
    /// The text cannot be written; the last event.
    Failed(ApiError),
}

/// Progress of a prompt, as llama.cpp has it. The first is told before any of it goes through the model.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    /// Tokens of the prompt.
    pub total: usize,
    /// Tokens that were in the cache.
    pub cache: usize,
    /// Tokens that are in the cache now.
    pub processed: usize,
    /// Time since the text was begun.
    pub time_ms: f64,
    /// Counts and times so far.
    #[serde(skip)]
    pub timings: Timings,
}

/// A piece of a text; it never splits a character.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// The text; empty only at the end of a text.
    pub text: String,
    /// The tokens that it is of.
    pub ids: Vec<u32>,
    /// Their probabilities, where they are asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Counts and times so far.
    pub timings: Timings,
}

/// The end of a text.
#[derive(Debug)]
pub struct Ending {
    /// Its last piece.
    pub piece: Piece,
    /// Reason.
    pub reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Tokens that the slot holds now.
    pub held: usize,
}

/// Counts and times of a text. The first token counts as written, and its time as the prompt's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt that were in the cache.
    pub cached: usize,
    /// Tokens of the prompt that went through the model.
    pub prompt: usize,
    /// Time until the first token.
    pub prompt_time: Duration,
    /// Tokens written.
    pub written: usize,
    /// Time since the first token.
    pub time: Duration,
    /// Tokens that were drafted, and those of them that were written.
    pub drafted: usize,
    pub accepted: usize,
}

/// State of a slot, as `/slots` tells it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SlotState {
    /// Number.
    pub id: usize,
    /// Positions of its context.
    pub n_ctx: usize,
    /// True if drafts may be made.
    pub speculative: bool,
    /// True while a text is written in it.
    pub is_processing: bool,
    /// The job, or the last one; -1 if there was none.
    pub id_task: i64,
    /// Tokens that its cache holds.
    pub n_past: usize,
    /// Tokens of the prompt.
    pub n_prompt_tokens: usize,
    /// Tokens written.
    pub n_decoded: usize,
}

/// What can be done with the cache of a slot.
#[derive(Debug)]
pub enum CacheAction {
    /// It is emptied.
    Erase,
    /// It is written to a file.
    Save(PathBuf),
    /// It is replaced by what a file holds.
    Restore(PathBuf),
}

/// The way of an answer to [`Command::Cache`].
pub type CacheReply = oneshot::Sender<Result<usize, ApiError>>;

/// What a slot holds, on its way back from a file.
#[derive(Debug)]
pub struct Returned {
    /// Number of the slot.
    pub slot: usize,
    /// Its keys and values.
    pub held: Detached,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Outcome.
    pub done: Result<(), ApiError>,
    /// Receiver's other end.
    pub reply: CacheReply,
}

/// An order to the engine thread.
#[derive(Debug)]
pub enum Command {
    /// Write a text.
    Submit(Box<Job>),
    /// Make embeddings.
    Embed(Box<EmbeddingJob>),
    /// Tell the state of all slots.
    Slots(oneshot::Sender<Vec<SlotState>>),
    /// Do something with the cache of a free slot, and tell how many tokens that is about.
    Cache {
        /// Its number.
        slot: usize,
        /// What to do.
        action: CacheAction,
        /// Where files are read and written aside, the way back to the engine thread.
        back: Sender<Command>,
        /// Receiver's other end.
        reply: CacheReply,
    },
    /// Take what a slot holds back, which a file was read into or written from.
    Return(Box<Returned>),
    /// Begin no text any more, and end when all have ended, or at a time.
    Drain(Instant),
}
