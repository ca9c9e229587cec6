//! `bitnet-run` without a subcommand: continues a prompt.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_profiles::{Pinning, patient};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::memory::{self, Pages};
use bitnet_runtime::cpu::model::{HeadStats, Needs, Session};
use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::report::{HeadReport, KernelReport};
use bitnet_runtime::engine::sampler::{Sampler, Sampling};
use bitnet_runtime::engine::sequence::{FinishReason, Sequence, SequenceOptions, SequenceStats};
use bitnet_runtime::engine::{Engine, Options, ProfileInUse, Suggested};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde::Serialize;

use crate::controls::ControlArgs;
use crate::interrupt::Interrupt;
use crate::load::{self, DraftArgs, LEAVE, OpenArgs, SessionArgs};
use crate::output::{answer, human, note};
use crate::prompt::PromptArgs;
use crate::sampling::SamplingArgs;

/// Time of packing from which the user is told that packed weights can be kept; who ran on the weights in
/// the file to the end is told, too.
const WORTH_KEEPING: Duration = Duration::from_millis(300);

/// What to write, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; without it the one that --profile FILE was made for
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    controls: ControlArgs,
    /// Tokens to write; -1: until the model ends the text or the context is full [default: 128; of an
    /// answer in a conversation: -1]
    #[arg(
        short = 'n',
        long,
        alias = "n-predict",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(..=i64::from(i32::MAX))
    )]
    predict: Option<i64>,
    /// Positions of the context; 0: the model's own, which is also the most [default: the model's
    /// own up to 4096]
    #[arg(
        short,
        long = "ctx-size",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX))
    )]
    context: Option<u32>,
    /// Go on where the model would end the text
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    pub(crate) draft: DraftArgs,
    /// Print one JSON object at the end instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    /// With --json: how likely each token was, and so many of the most likely ones in its place
    #[arg(
        long,
        value_name = "N",
        requires = "json",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(0..=1024)
    )]
    pub(crate) logprobs: Option<u16>,
    /// Keep what the model computed of the prompt, or of a conversation, in this file, and begin with what
    /// it holds of it
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_cache: Option<PathBuf>,
    /// Keep what was written there, too
    #[arg(long, requires = "prompt_cache")]
    prompt_cache_all: bool,
    /// Leave the file of --prompt-cache as it is
    #[arg(long, requires = "prompt_cache")]
    pub(crate) prompt_cache_ro: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model_args: OpenArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// A model, opened as the flags say.
pub(crate) struct Opened {
    pub(crate) engine: Arc<Engine>,
    path: PathBuf,
    suggested: Suggested,
    pub(crate) sampling: Sampling,
    /// Set to true where a line of progress would get between the words of a text.
    pub(crate) silenced: Arc<AtomicBool>,
    /// True if packed weights could be kept in a file.
    may_keep: bool,
}

impl Opened {
    /// Tells what was opened, and by which settings it writes.
    pub(crate) fn tell(&self, context: usize, load_time: Duration) {
        note(format_args!(
            "loaded: {} in {:.2} s, {} threads, context {context}",
            self.path.display(),
            load_time.as_secs_f64(),
            self.engine.pool().threads(),
        ));
        if let Some(line) = self.suggested.line() {
            note(format_args!("{line}"));
        }
        if self.sampling.temperature > 0.0 {
            note(format_args!("seed: {}", self.sampling.seed));
        }
    }

    /// Tells how to keep packed weights, if packing them took long.
    pub(crate) fn tell_of_packing(&self) {
        let packs = self.engine.pack_time().is_none_or(|time| time >= WORTH_KEEPING);
        if self.may_keep && packs && self.engine.packed_file().is_none() {
            note(format_args!(
                "`bitnet-run pack -m {}` keeps packed weights in a file, with which later runs take less time",
                self.path.display()
            ));
        }
    }
}

/// Writes the text, until it ends or Ctrl+C ends it. `unused` are flags that hold in conversations only.
/// Returns the program's exit code.
///
/// # Errors
/// Those of loading the model, and of the session; [`Error::Usage`] for a prompt longer than the
/// context; [`Error::Io`] when stdout refuses.
pub fn run(args: &Args, unused: &[&str]) -> Result<ExitCode> {
    let start = Instant::now();
    if !unused.is_empty() {
        let names = unused.join(", ");
        note(format_args!("ignored: {names} (for conversations: -cnv, or the command chat)"));
    }
    let (path, options) = args.options()?;
    let text = args.prompt.text()?;
    let opened = args.open(path, options)?;
    let Opened { engine, sampling, silenced, .. } = &opened;
    let limits = args.limits(engine)?;
    let limits = SequenceOptions { tokens: args.most_tokens(Some(128)), ..limits };
    let tokenizer = engine.tokenizer()?;
    let prompt = tokenizer.prompt(&text)?;
    let mut sequence = Sequence::new(Arc::clone(tokenizer), &prompt, sampling.clone(), limits)?;
    let session = args.session.options(args.context(engine.config()))?;
    let mut session = engine.session_for(prompt.len(), session)?;
    let cache = match &args.prompt_cache {
        Some(path) => Some(PromptCache::restore(path, &mut session, &prompt, &mut sequence)?),
        None => None,
    };
    load::tell(engine);
    let load_time = start.elapsed();
    let interrupt = Interrupt::watch();
    session.cancel_with(Some(interrupt.cancel()));
    opened.tell(session.context(), load_time);

    let begins_mapped = !session.model().is_packed();
    // Amid the text a line of progress would get between its words.
    silenced.store(begins_mapped && io::stdout().is_terminal(), Ordering::Relaxed);
    let mut out = patient::stdout();
    let mut text = String::new();
    loop {
        let goes_on = engine.step(&mut session, &mut sequence)?;
        let piece = sequence.take_text();
        if !args.json && !piece.is_empty() {
            write(&mut out, &piece)?;
        }
        text += &piece;
        if !goes_on {
            break;
        }
    }
    // The shell's prompt begins on a line of its own, but a pipe gets the text alone.
    if !args.json && !text.ends_with('\n') && io::stdout().is_terminal() {
        write(&mut out, "\n")?;
    }
    drop(out);
    let cached = cache.as_ref().map(|cache| cache.used);
    if let Some(cache) = cache.filter(|_| !args.prompt_cache_ro) {
        let written = if args.prompt_cache_all { sequence.ids() } else { &[] };
        cache.save(&session, &[&prompt[..], written].concat())?;
    }
    load::tell(engine);

    let model = session.model();
    let kernels = KernelReport::of(model);
    let pack_time = engine.pack_time().unwrap_or_default();
    let report = Report {
        timings: Timings::new(
            (load_time, begins_mapped.then_some(pack_time)),
            // An interrupted one is not read to its end.
            (session.position().min(prompt.len()), cached),
            &sequence.stats(),
            sequence.ids().len(),
            args.draft.lookup,
        ),
        memory: Memory {
            file_bytes: model.gguf().file_bytes(),
            packed_bytes: kernels.packed_bytes(),
            kv_bytes: session.kv_bytes(),
            kv_reserved_bytes: session.kv_reserved_bytes(),
            tokenizer_bytes: tokenizer.memory_bytes(),
            peak_rss_bytes: memory::peak_resident(),
        },
        prompt_ids: &prompt,
        ids: sequence.ids(),
        text: &text,
        finish_reason: sequence.finish_reason().map_or("", FinishReason::name),
        stop: sequence.stop_string(),
        logprobs: args.logprobs.map(|_| {
            sequence.logprobs().iter().map(|token| Likely::token(tokenizer, token)).collect()
        }),
        seed: sampling.seed,
        kernels: &kernels,
        lm_head: HeadReport::between(model, HeadStats::default(), session.head_stats()),
        profile: engine.profile(),
        threads: engine.pool().threads(),
        pinning: engine.pool().pinning(),
        huge_pages: engine.placement().pages == Pages::Huge,
    };
    report.summary();
    opened.tell_of_packing();
    if args.json {
        let json = serde_json::to_string(&report)
            .map_err(|e| Error::Runtime(format!("cannot write the report: {e}")))?;
        answer(|out| writeln!(out, "{json}"))?;
    }
    Ok(interrupt.exit_code())
}

/// Writes a piece of the text at once.
pub(crate) fn write(out: &mut impl Write, piece: &str) -> Result<()> {
    let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io(Path::new("stdout"), "write", e))
}

impl Args {
    /// The model that was asked for, and how to open it.
    ///
    /// # Errors
    /// Those of [`OpenArgs::options`].
    pub(crate) fn options(&self) -> Result<(PathBuf, Options)> {
        self.model_args.options(self.model.as_deref())
    }

    /// Opens a model as [`Args::options`] says.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub(crate) fn open(&self, path: PathBuf, options: Options) -> Result<Opened> {
        let silenced = Arc::new(AtomicBool::new(false));
        let options = Options { progress: Some(load::progress(Arc::clone(&silenced))), ..options };
        let gguf = options.file(&path)?;
        let suggested = self.sampling.unsaid(Suggested::from_gguf(&gguf)?);
        let sampling = self.controls.words.sampling(self.sampling.over(&suggested));
        let needs = match self.logprobs.is_some() || self.controls.needs_all() {
            true => Needs::All,
            false => Sampler::new(sampling.clone())?.needs(&[]),
        };
        let may_keep = options.mmap && !options.mlock;
        let engine = Engine::from_gguf(gguf, Options { needs, ..options })?;
        load::explain_bus_errors(&engine, LEAVE);
        let engine = Arc::new(engine);
        Ok(Opened { engine, path, suggested, sampling, silenced, may_keep })
    }

    /// The tokens to write, `default` where no flag says it; `None`: until the text ends.
    pub(crate) fn most_tokens(&self, default: Option<usize>) -> Option<usize> {
        self.predict.map_or(default, |n| usize::try_from(n).ok())
    }

    /// What ends a text and what is to be known of it, but for the number of tokens.
    ///
    /// # Errors
    /// Those of [`ControlArgs::sequence`].
    pub(crate) fn limits(&self, engine: &Engine) -> Result<SequenceOptions> {
        let limits = SequenceOptions {
            ignore_eos: self.ignore_eos,
            draft: self.draft.most(),
            logprobs: self.logprobs.map(usize::from),
            ..SequenceOptions::default()
        };
        self.controls.sequence(engine, &self.prompt, limits)
    }

    /// The context of the session, never more than the model's.
    pub(crate) fn context(&self, config: &Config) -> Option<usize> {
        match self.context {
            None => None,
            Some(0) => Some(config.context),
            Some(asked) if asked as usize > config.context => {
                note(format_args!(
                    "context: {}, the most this model was made for, not {asked}",
                    config.context
                ));
                Some(config.context)
            }
            Some(asked) => Some(asked as usize),
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    text: &'a str,
    finish_reason: &'static str,
    /// The text of --reverse-prompt that ended the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Likely>>,
    timings: Timings,
    seed: u64,
    kernels: &'a KernelReport,
    lm_head: HeadReport,
    profile: &'a ProfileInUse,
    threads: usize,
    pinning: Pinning,
    huge_pages: bool,
    memory: Memory,
}

/// A token and its log probability, with the keys of llama.cpp's server.
#[derive(Serialize)]
pub(crate) struct Likely {
    id: u32,
    token: String,
    /// Where it stands for no whole character, its text is not all of it.
    bytes: Vec<u8>,
    logprob: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Likely>>,
}

impl Likely {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f64) -> Self {
        let mut bytes = Vec::new();
        tokenizer.decode_into(id, &mut bytes);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Self { id, token, bytes, logprob, top_logprobs: None }
    }

    /// A token of the text, with the most likely ones in its place.
    pub(crate) fn token(tokenizer: &Tokenizer, token: &TokenLogprobs) -> Self {
        let top = token.top.iter().map(|&(id, logprob)| Self::new(tokenizer, id, logprob));
        Self { top_logprobs: Some(top.collect()), ..Self::new(tokenizer, token.id, token.logprob) }
    }
}

/// The file of --prompt-cache.
struct PromptCache<'a> {
    path: &'a Path,
    /// Tokens that it held.
    held: Vec<u32>,
    /// Number of them with which the prompt began.
    used: usize,
}

impl<'a> PromptCache<'a> {
    /// Begins with what the file, if there is one, holds of the prompt.
    fn restore(
        path: &'a Path,
        session: &mut Session,
        prompt: &[u32],
        sequence: &mut Sequence,
    ) -> Result<Self> {
        let exists = path.try_exists().map_err(|e| Error::io(path, "open", e))?;
        let held = if exists { session.restore(0, path)? } else { Vec::new() };
        let same = held.iter().zip(prompt).take_while(|(held, id)| held == id).count();
        let used = sequence.reuse(same);
        session.truncate(used);
        if exists {
            note(format_args!("prompt cache: {used} of {} tokens", prompt.len()));
        }
        Ok(Self { path, held, used })
    }

    /// Writes the tokens that have been through the model, unless the file holds them.
    fn save(&self, session: &Session, ids: &[u32]) -> Result<()> {
        let ids = &ids[..ids.len().min(session.position())];
        if self.held.starts_with(ids) { Ok(()) } else { session.save(0, ids, self.path) }
    }
}

/// The keys of llama.cpp's server, where the first token counts although it comes with the prompt;
/// then the steps of the model alone.
#[derive(Serialize)]
pub(crate) struct Timings {
    load_ms: f64,
    /// Amid the text, where that began on the weights in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pack_ms: Option<f64>,
    /// Tokens of the prompt that --prompt-cache held; they are not part of `prompt_n`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_n: Option<usize>,
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
    decode_n: usize,
    decode_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_n_accepted: Option<usize>,
}

impl Timings {
    pub(crate) fn new(
        (load, pack): (Duration, Option<Duration>),
        (held, cache_n): (usize, Option<usize>),
        stats: &SequenceStats,
        predicted_n: usize,
        lookup: bool,
    ) -> Self {
        let prompt_n = held.saturating_sub(cache_n.unwrap_or(0));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        // JSON has no infinity: nothing took no time.
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let (prompt_ms, predicted_ms) = (ms(stats.prompt_time), ms(stats.generation_time));
        Self {
            load_ms: ms(load),
            pack_ms: pack.map(ms),
            cache_n,
            prompt_n,
            prompt_ms,
            prompt_per_token_ms: ratio(prompt_ms, prompt_n as f64),
            prompt_per_second: ratio(prompt_n as f64, prompt_ms / 1e3),
            predicted_n,
            predicted_ms,
            predicted_per_token_ms: ratio(predicted_ms, predicted_n as f64),
            predicted_per_second: ratio(predicted_n as f64, predicted_ms / 1e3),
            decode_n: stats.steps,
            decode_per_second: ratio(stats.steps as f64, predicted_ms / 1e3),
            draft_n: lookup.then_some(stats.drafted),
            draft_n_accepted: lookup.then_some(stats.accepted),
        }
    }
}

#[derive(Serialize)]
struct Memory {
    file_bytes: u64,
    packed_bytes: usize,
    kv_bytes: usize,
    kv_reserved_bytes: usize,
    tokenizer_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
}

impl Report<'_> {
    /// The same in a few lines on stderr.
    fn summary(&self) {
        let (t, m) = (&self.timings, &self.memory);
        note(format_args!(
            "prompt: {} tokens in {:.2} s, {:.1} tokens/s",
            t.prompt_n,
            t.prompt_ms / 1e3,
            t.prompt_per_second
        ));
        if let Some(pack_ms) = t.pack_ms.filter(|&ms| ms > 0.0) {
            note(format_args!("packed: amid the text, in {:.2} s", pack_ms / 1e3));
        }
        note(format_args!(
            "decode: {} tokens in {:.2} s, {:.1} tokens/s ({})",
            t.decode_n,
            t.predicted_ms / 1e3,
            t.decode_per_second,
            self.finish_reason
        ));
        if let (Some(drafted), Some(accepted)) = (t.draft_n, t.draft_n_accepted) {
            note(format_args!("lookup: {drafted} tokens drafted, {accepted} accepted"));
        }
        note(format_args!(
            "memory: file {}, packed {}, KV cache {} of {}, tokenizer {}, peak {}",
            human(m.file_bytes),
            human(m.packed_bytes as u64),
            human(m.kv_bytes as u64),
            human(m.kv_reserved_bytes as u64),
            human(m.tokenizer_bytes as u64),
            m.peak_rss_bytes.map_or("unknown".into(), human)
        ));
    }
}
