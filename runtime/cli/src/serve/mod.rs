//! `bitnet-run serve`: texts over HTTP, by the routes of OpenAI and of llama.cpp's server.
//!
//! Two threads: one with all connections (`server`), which reads requests and writes answers, and
//! the engine's (`engine`), which owns the session and takes the tokens of all texts through the
//! model together. What a text says does not depend on the texts beside it.

mod about;
mod answer;
mod app;
mod chat;
mod chat_answer;
mod completions;
mod embedder;
mod embeddings;
mod engine;
mod error;
mod fields;
mod grammar;
mod guard;
mod job;
mod listen;
mod load;
mod metrics;
mod native;
mod notify;
mod page;
mod queue;
mod request;
mod router;
mod schedule;
mod server;
mod slots;
mod stream;
mod tokens;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bitnet_runtime::cpu::session::MAX_SEQUENCES;
use bitnet_runtime::error::{Error, Result};

use self::app::{App, Settings};
use self::chat_answer::ReasoningFormat;
use self::engine::Serving;
use self::guard::{Guard, Keys};
use self::listen::{Listener, SocketFile};
use self::metrics::Metrics;
use self::queue::Queue;
use crate::chat::{CHAT, TemplateArgs};
use crate::controls::WordArgs;
use crate::embed::EmbeddingArgs;
use crate::load::{DraftArgs, OpenArgs, SessionArgs};
use crate::output::note;
use crate::prompt::{self, EscapeArgs, LastLineEnd};
use crate::sampling::SamplingArgs;

const NETWORK: &str = "Network";
const LIMITS: &str = "Limits";
const SLOTS: &str = "Slots and texts";
const EMBEDDINGS: &str = "Embeddings";

/// Slots where none are asked for.
const DEFAULT_SLOTS: usize = 4;

/// Serve texts over HTTP
///
/// OpenAI's routes under /v1, and those of llama.cpp's server: docs/serve.md. A text depends on the
/// model and the request alone, not on what else the server does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; without it the one that --profile FILE was made for
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Name of the model in answers, several with commas between [default: the file's name]
    #[arg(short, long, value_name = "NAME")]
    alias: Option<String>,

    /// The address to listen at, or unix:PATH
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", help_heading = NETWORK)]
    host: String,
    /// The port; 0: a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080, help_heading = NETWORK)]
    port: u16,
    /// A key that requests must bring, several with commas between; other users of this machine can
    /// read it in the list of processes, unlike those of --api-key-file and LLAMA_API_KEY
    #[arg(long, value_name = "KEY", help_heading = NETWORK)]
    api_key: Option<String>,
    /// A file with keys, one a line
    #[arg(long, value_name = "FILE", help_heading = NETWORK)]
    api_key_file: Option<PathBuf>,
    /// Further names of this server, which requests may name as their host, with commas between
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = NETWORK)]
    allow_host: Vec<String>,
    /// Sites whose pages may use this server, such as `https://example.org`, with commas between;
    /// localhost: all of this machine; *: all
    #[arg(
        long,
        visible_alias = "cors-origin",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help_heading = NETWORK
    )]
    cors_origins: Vec<String>,

    /// Texts that are written at once; auto or -1: 4
    #[arg(
        long,
        visible_alias = "np",
        value_name = "N",
        default_value = "auto",
        allow_negative_numbers = true,
        value_parser = slots,
        help_heading = SLOTS
    )]
    parallel: usize,
    /// Positions of the context, shared among the slots; 0: the model's own [default: the model's own
    /// up to 4096 for each]
    #[arg(
        short,
        long = "ctx-size",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)),
        help_heading = SLOTS
    )]
    context: Option<u32>,
    /// Tokens of a text, at most, whatever a request asks for; -1: what the context has room for
    #[arg(
        short = 'n',
        long,
        alias = "n-predict",
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..=i64::from(i32::MAX)),
        help_heading = SLOTS
    )]
    predict: i64,
    /// Tell the state of the slots at /slots, which is so anyway
    #[arg(long, overrides_with = "no_slots", help_heading = SLOTS)]
    slots: bool,
    /// Do not tell the state of the slots
    #[arg(long, overrides_with = "slots", help_heading = SLOTS)]
    no_slots: bool,
    /// The folder where requests may keep what slots hold, in files for this user alone
    #[arg(long, value_name = "DIR", help_heading = SLOTS)]
    slot_save_path: Option<PathBuf>,
    /// Give no page at /
    #[arg(long, visible_alias = "no-webui", help_heading = SLOTS)]
    no_ui: bool,
    /// Tell numbers for Prometheus at /metrics
    #[arg(long, help_heading = SLOTS)]
    metrics: bool,
    /// Write a line of JSON to stderr for each request, without a word of what it says
    #[arg(long, help_heading = SLOTS)]
    log_requests: bool,

    /// Texts that may wait for a slot; more are sent away with 503
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = LIMITS)]
    queue: usize,
    /// Bytes of a request's body, at most
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 16 << 20,
        value_parser = clap::value_parser!(u32).range(1..=1 << 30),
        help_heading = LIMITS
    )]
    max_body: u32,
    /// Connections at once, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20),
        help_heading = LIMITS
    )]
    max_connections: u32,
    /// Seconds for which a client may leave its answer unread; twice as many are for sending a body
    #[arg(
        long,
        visible_alias = "to",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=86_400),
        help_heading = LIMITS
    )]
    timeout: u32,
    /// Seconds for texts to end after SIGTERM or Ctrl+C
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(..=86_400),
        help_heading = LIMITS
    )]
    drain: u32,

    #[command(flatten)]
    template: TemplateArgs,
    /// none: reasoning stays in the content; deepseek: it goes to a field of its own [default: deepseek for
    /// templates with a switch for reasoning]
    #[arg(
        long,
        value_name = "none|deepseek|auto",
        value_parser = reasoning_format,
        help_heading = CHAT
    )]
    reasoning_format: Option<ReasoningChoice>,
    /// The system prompt of conversations that have none
    #[arg(
        short,
        long,
        visible_alias = "sys",
        alias = "system-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true,
        overrides_with = "system_prompt_file",
        help_heading = CHAT
    )]
    prompt: Option<String>,
    /// The same from a file
    #[arg(
        long,
        visible_alias = "sysf",
        value_name = "FILE",
        overrides_with = "prompt",
        help_heading = CHAT
    )]
    system_prompt_file: Option<PathBuf>,

    /// Make embeddings alone, and write no texts, without which embeddings are made as well
    #[arg(long, visible_alias = "embedding", help_heading = EMBEDDINGS)]
    embeddings: bool,
    #[command(flatten, next_help_heading = EMBEDDINGS)]
    embedding: EmbeddingArgs,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    words: WordArgs,
    #[command(flatten)]
    escapes: EscapeArgs,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    session: SessionArgs,
}

/// Treatment of reasoning; `None`: as the template suggests.
type ReasoningChoice = Option<ReasoningFormat>;

/// A treatment of reasoning, for clap.
fn reasoning_format(text: &str) -> std::result::Result<ReasoningChoice, String> {
    match text {
        "auto" => Ok(None),
        _ => text.parse().map(Some).map_err(|()| "it is none of none, deepseek, auto".into()),
    }
}

/// A number of slots, for clap.
fn slots(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(DEFAULT_SLOTS),
        _ if text == "auto" => Ok(DEFAULT_SLOTS),
        Ok(slots) if (1..=MAX_SEQUENCES as i64).contains(&slots) => Ok(slots as usize),
        _ => Err(format!("it is neither auto nor in 1..={MAX_SEQUENCES}")),
    }
}

/// Serves until a signal ends it. The address is bound first, and answers 503 while the model is
/// loading.
///
/// # Errors
/// [`Error::Io`] when the address is taken; those of opening a model; [`Error::Runtime`] when the
/// contexts of all slots do not fit into memory, or the engine keeps failing.
pub fn run(args: &Args) -> Result<ExitCode> {
    let keys = args.keys()?;
    if let Some(path) = args.slot_save_path.as_ref().filter(|path| !path.is_dir()) {
        let found = path.display();
        return Err(Error::usage("--slot-save-path", found, "a folder that exists"));
    }
    listen::raise_file_limit();
    let listener = Listener::bind(&args.host, args.port)?;
    let _socket_file = SocketFile::of(&listener);
    let address = listener.to_string();
    if listener.is_open() && keys.is_empty() {
        note(format_args!(
            "warning: {address} is open to other machines, and no key is needed; --api-key-file asks \
             for one"
        ));
    }
    let (commands, orders) = mpsc::channel();
    let queue = Arc::new(Queue::new(args.parallel, args.queue));
    let metrics = Arc::new(Metrics::default());
    let settings = args.settings(keys, listener.is_loopback());
    let app = Arc::new(App::new(settings, commands, Arc::clone(&queue), Arc::clone(&metrics)));
    let http = {
        let app = Arc::clone(&app);
        let begun = thread::Builder::new().name("http".into());
        let begun = begun.spawn(move || server::serve(listener, app));
        begun.map_err(|error| Error::Runtime(format!("cannot begin a thread: {error}")))?
    };
    let (session, loaded) = load::load(args)?;
    let patience = app.settings.timeout;
    let mut serving = Serving::new(session, orders, queue, metrics, patience);
    app.is_loaded(loaded);
    note(format_args!("listening on {address}"));
    notify::notify("READY=1");
    let served = serving.run();
    notify::notify("STOPPING=1");
    served?;
    // The last answers are on their way.
    match http.join() {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(error)) => Err(Error::io(Path::new(&address), "serve", error)),
        Err(_) => Err(Error::Runtime("the thread of connections panicked".into())),
    }
}

impl Args {
    /// All keys that are given.
    fn keys(&self) -> Result<Keys> {
        let mut text = self.api_key.clone().unwrap_or_default().replace(',', "\n");
        if let Some(path) = &self.api_key_file {
            let file = std::fs::read_to_string(path);
            text += "\n";
            text += &file.map_err(|error| Error::io(path, "read", error))?;
            #[cfg(unix)]
            warn_if_others_read(path);
        }
        let keys = Keys::new(text.lines());
        if keys.is_empty() && (self.api_key.is_some() || self.api_key_file.is_some()) {
            return Err(Error::usage("--api-key", "no key", "at least one that is not empty"));
        }
        Ok(keys)
    }

    /// The system prompt of conversations that have none, if one is given.
    fn system(&self) -> Result<Option<String>> {
        match (&self.prompt, &self.system_prompt_file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) => prompt::from_path(path, LastLineEnd::Dropped).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn settings(&self, keys: Keys, is_loopback: bool) -> Settings {
        Settings {
            guard: Guard {
                keys,
                is_loopback,
                hosts: self.allow_host.clone(),
                origins: self.cors_origins.clone(),
            },
            max_body: self.max_body as usize,
            max_connections: self.max_connections as usize,
            timeout: Duration::from_secs(self.timeout.into()),
            drain: Duration::from_secs(self.drain.into()),
            has_page: !self.no_ui,
            slot_files: self.slot_save_path.clone(),
            tells_slots: !self.no_slots,
            tells_metrics: self.metrics,
            logs_requests: self.log_requests,
        }
    }
}

/// Warns of a file with keys that other users can read.
#[cfg(unix)]
fn warn_if_others_read(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o004 != 0 {
        note(format_args!("warning: {}: every user can read the keys; chmod o-r", path.display()));
    }
}
