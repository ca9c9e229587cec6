//! What all connections share: settings, the state of the server, and the way to the engine thread.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::http::StatusCode;
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_runtime::{Chat, Embedding, Grammars, Normalisation, Pooling, Variables};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::chat_answer::ReasoningFormat;
use super::error::{ApiError, Kind, Result};
use super::guard::Guard;
use super::job::{CacheAction, Command, EVENTS, EmbeddingJob, Embeddings, Event, Job};
use super::metrics::Metrics;
use super::queue::Queue;
use super::request::Request;
use super::tools::Family;

/// Bodies of requests that are in memory at once, as a multiple of the largest one.
const BODIES: usize = 4;
/// Unit in which they are counted, in bytes.
const BODY_UNIT: usize = 1 << 10;

/// Settings of the server that its flags give.
#[derive(Debug)]
pub struct Settings {
    pub guard: Guard,
    /// Bytes of a body, at most.
    pub max_body: usize,
    /// Connections at once, at most.
    pub max_connections: usize,
    /// Time that a client may stand still.
    pub timeout: Duration,
    /// Time for texts to end after the first signal.
    pub drain: Duration,
    pub has_page: bool,
    /// Folder for files of slots.
    pub slot_files: Option<PathBuf>,
    pub tells_slots: bool,
    pub tells_metrics: bool,
    pub logs_requests: bool,
}

/// The model, once it is loaded.
#[derive(Debug)]
pub struct Loaded {
    pub tokenizer: Arc<Tokenizer>,
    /// Positions of the context of a slot.
    pub context: usize,
    pub slots: usize,
    /// Sampler of a request that says nothing.
    pub sampling: Sampling,
    /// Texts that end a text of a request that gives none.
    pub stop: Vec<String>,
    /// Tokens to draft at once, at most, while one text is being written; 0: none.
    pub draft: usize,
    /// Seed of a request that gives none; `None`: another one each time.
    pub seed: Option<u64>,
    /// Most tokens of a text, whatever a request asks for.
    pub predict: Option<usize>,
    /// What of the states of a text's tokens is its embedding.
    pub pooling: Pooling,
    /// Normalisation of embeddings where a request says nothing.
    pub normalisation: Normalisation,
    /// Reason for which no texts are written, but embeddings made alone.
    pub no_texts: Option<&'static str>,
    pub model: ModelInfo,
    /// The chat template, or the reason why there is none.
    pub chat: std::result::Result<Chat, String>,
    /// Variables of the template, unless a request has its own.
    pub variables: Variables,
    /// Compiler of grammars, made for the first request that has one.
    pub grammars: OnceLock<Arc<Grammars>>,
    /// Places for grammars that are being compiled.
    pub compiling: Arc<Semaphore>,
    /// The system prompt of a conversation that has none.
    pub system: Option<String>,
    /// Form of calls of functions in the template's answers, if it is known.
    pub tools: Option<Family>,
    /// True if the template wants the arguments of calls as objects, where clients send strings.
    pub takes_objects: bool,
    /// Treatment of reasoning where a request says nothing.
    pub reasoning: ReasoningFormat,
}

impl Loaded {
    /// The compiler of grammars.
    ///
    /// # Errors
    /// 400 for a vocabulary that it cannot take.
    pub fn grammars(&self) -> Result<&Arc<Grammars>> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let grammars = Arc::new(Grammars::new(Arc::clone(&self.tokenizer))?);
        Ok(self.grammars.get_or_init(|| grammars))
    }
}

/// Facts about the model, as clients are told them.
#[derive(Debug)]
pub struct ModelInfo {
    pub alias: String,
    /// All names, the alias first.
    pub aliases: Vec<String>,
    pub path: String,
    /// Time at which it was loaded, in seconds since 1970.
    pub created: u64,
    /// True for a vocabulary of SentencePiece, false for one of byte-level BPE.
    pub is_sentence_piece: bool,
    pub vocabulary: usize,
    pub trained_context: usize,
    pub width: usize,
    pub parameters: u64,
    pub bytes: u64,
    /// Name of program and model, of which the same one writes the same texts.
    pub fingerprint: String,
}

/// What all connections share.
#[derive(Debug)]
pub struct App {
    pub settings: Settings,
    loaded: OnceLock<Loaded>,
    is_draining: AtomicBool,
    commands: Sender<Command>,
    pub queue: Arc<Queue>,
    pub metrics: Arc<Metrics>,
    /// Time at which the server began, in seconds since 1970.
    pub started: u64,
    ids: AtomicU64,
    bodies: Arc<Semaphore>,
}

/// The events of one text of a request.
#[derive(Debug)]
pub struct Text {
    /// Number among the texts of the request.
    pub index: usize,
    /// Number of its prompt.
    pub prompt: usize,
    pub events: mpsc::Receiver<Event>,
}

/// A body, and its share of the memory for bodies.
#[derive(Debug)]
pub struct Body {
    pub bytes: Vec<u8>,
    _memory: Vec<OwnedSemaphorePermit>,
}

impl App {
    /// Makes the state of a server that is loading.
    pub fn new(
        settings: Settings,
        commands: Sender<Command>,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let units = BODIES * settings.max_body.div_ceil(BODY_UNIT);
        Self {
            bodies: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
            settings,
            loaded: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            commands,
            queue,
            metrics,
            started: now(),
            ids: AtomicU64::new(0),
        }
    }

    /// Notes that the model is loaded.
    pub fn is_loaded(&self, loaded: Loaded) {
        // It is loaded once.
        drop(self.loaded.set(loaded));
    }

    /// Begins the end: no request for a text is taken any more, and those that are written have
    /// until the time that is set.
    pub fn begin_to_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        // An engine that has ended need not be told.
        drop(self.commands.send(Command::Drain(Instant::now() + self.settings.drain)));
    }

    /// True once the model is loaded.
    pub fn has_model(&self) -> bool {
        self.loaded.get().is_some()
    }

    /// The model.
    ///
    /// # Errors
    /// 503 while it is loading, and once the server is about to end.
    pub fn loaded(&self) -> Result<&Loaded> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(ApiError::new(Kind::Unavailable, "the server is about to end"));
        }
        self.loaded_model()
    }

    /// The model, to write texts.
    ///
    /// # Errors
    /// As [`App::loaded`]; 501 where none are written.
    pub fn writer(&self) -> Result<&Loaded> {
        let loaded = self.loaded()?;
        match loaded.no_texts {
            None => Ok(loaded),
            Some(why) => {
                let message = format!("texts are not offered: {why}; ask for embeddings");
                Err(ApiError::new(Kind::NotSupported, message))
            }
        }
    }

    /// The model, for what was begun while it was served.
    ///
    /// # Errors
    /// 503 while it is loading.
    pub fn loaded_model(&self) -> Result<&Loaded> {
        self.loaded.get().ok_or_else(|| ApiError::new(Kind::Unavailable, "Loading model"))
    }

    /// Reads the body of a request.
    ///
    /// # Errors
    /// 413 for one that is too large, 408 for one that takes too long, 503 where those of others take
    /// all memory for bodies.
    pub async fn body(&self, request: HttpRequest) -> Result<Body> {
        let most = self.settings.max_body;
        let too_large = || {
            let message = format!("body: expected at most {most} bytes (--max-body)");
            ApiError::invalid(message).with_status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        let length = request.headers().get(axum::http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let mut incoming = Limited::new(request.into_body(), most);
        let mut body = Body { bytes: Vec::new(), _memory: Vec::new() };
        let read = async {
            while let Some(frame) = incoming.frame().await {
                let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                    true => too_large(),
                    false => ApiError::invalid("body: it does not come whole"),
                })?;
                self.keep(&mut body, frame.into_data().unwrap_or_default())?;
            }
            Ok(())
        };
        let time = 2 * self.settings.timeout;
        tokio::time::timeout(time, read).await.unwrap_or_else(|_| {
            let message = format!("body: it is not whole after {} seconds", time.as_secs());
            Err(ApiError::invalid(message).with_status(StatusCode::REQUEST_TIMEOUT))
        })?;
        Ok(body)
    }

    fn keep(&self, body: &mut Body, data: Bytes) -> Result<()> {
        // What is left over of the last unit was paid for.
        let paid = body.bytes.len().div_ceil(BODY_UNIT);
        let units = (body.bytes.len() + data.len()).div_ceil(BODY_UNIT) - paid;
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.bodies).try_acquire_many_owned(units);
        let memory = memory.map_err(|_| {
            ApiError::busy("bodies of other requests take all the memory there is for them", 1)
        })?;
        match body._memory.first_mut() {
            Some(first) => first.merge(memory),
            None => body._memory.push(memory),
        }
        body.bytes.extend_from_slice(&data);
        Ok(())
    }

    /// Gives the texts of a request to the engine thread.
    ///
    /// # Errors
    /// 400 for a prompt that is too long, 503 where there is no room.
    pub fn submit(&self, request: &Request) -> Result<Vec<Text>> {
        let loaded = self.loaded()?;
        let count = request.prompts.len() * request.choices;
        let mut sequences = Vec::with_capacity(count);
        for prompt in &request.prompts {
            for choice in 0..request.choices {
                sequences.push(request.sequence(prompt, choice, loaded)?);
            }
        }
        self.queue.enter(count)?;
        let first = self.ids.fetch_add(count as u64, Ordering::Relaxed);
        let received = Instant::now();
        let texts = sequences.into_iter().enumerate().map(|(index, sequence)| {
            let (sender, events) = mpsc::channel(EVENTS);
            let (prompt, choice) = (index / request.choices, index % request.choices);
            let id = first + index as u64;
            let job = Job {
                id,
                after: (choice > 0).then(|| id - choice as u64),
                prompt: request.prompts[prompt].clone(),
                sequence,
                // What is in a cache has no logits any more.
                cache: request.cache && !request.prompt_logprobs,
                prompt_logprobs: request.logprobs.filter(|_| request.prompt_logprobs),
                slot: request.slot,
                most_time: request.most_time,
                tells_progress: request.progress && request.stream,
                drafts: loaded.draft > 0,
                events: sender,
                received,
            };
            if self.commands.send(Command::Submit(Box::new(job))).is_err() {
                // Its events end at once.
                self.queue.leave(None);
            }
            Text { index, prompt, events }
        });
        Ok(texts.collect())
    }

    /// Has the engine thread make the embeddings of some texts.
    ///
    /// # Errors
    /// 503 where there is no room, and when the thread has ended; 500 when the model fails.
    pub async fn embed(
        &self,
        texts: Vec<Embedding>,
        normalisation: Normalisation,
    ) -> Result<Embeddings> {
        // One place for the request: its texts take slots as these become free.
        self.queue.enter(1)?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let received = Instant::now();
        let job = |reply| EmbeddingJob { id, texts, normalisation, reply, received };
        self.ask(|reply| Command::Embed(Box::new(job(reply)))).await?
    }

    /// Has the engine thread do something with the cache of a slot, and returns how many tokens that was
    /// about.
    ///
    /// # Errors
    /// 400 for a file that is refused, 503 for a slot that is busy, and when the thread has ended.
    pub async fn cache(&self, slot: usize, action: CacheAction) -> Result<usize> {
        let back = self.commands.clone();
        self.ask(|reply| Command::Cache { slot, action, back, reply }).await?
    }

    /// Asks the engine thread.
    ///
    /// # Errors
    /// 503 when it has ended.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || ApiError::new(Kind::Unavailable, "the server is about to end");
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// Runs what takes long, such as reading JSON and a text's tokens, beside the connections. What has
/// not begun when nobody waits for it any more is not run.
///
/// # Errors
/// Those of `work`; 500 if it panics.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    struct Cancel(tokio::task::AbortHandle);
    impl Drop for Cancel {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let task = tokio::task::spawn_blocking(work);
    let _cancel = Cancel(task.abort_handle());
    task.await.unwrap_or_else(|_| Err(ApiError::new(Kind::Server, "the request was not read")))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Random bits that nobody can foresee.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// An id such as `chatcmpl-` and 24 random letters and digits.
pub fn new_id(prefix: &str) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letter = |bits: u64, i: u32| char::from(LETTERS[(bits / 62u64.pow(i) % 62) as usize]);
    let letters = (0..3).flat_map(|_| {
        let bits = random();
        (0..8).map(move |i| letter(bits, i))
    });
    prefix.chars().chain(letters).collect()
}
