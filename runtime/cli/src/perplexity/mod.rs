//! `bitnet-run perplexity`: how well a model foretells a text, by llama-perplexity's definition.
//!
//! The text is cut into windows of as many tokens as the context. Each begins with an empty cache, its first
//! token replaced by the one that begins a text where the model wants one, and the tokens of its second half
//! are scored: `nll = log(sum(exp(l - max))) + max - l[id]`, with the logits after the token before. With a
//! stride windows overlap, and the tokens that a window adds to the one before are scored.

mod base;
mod divergence;

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_profiles::patient;
use bitnet_runtime::cpu::model::SessionOptions;
use bitnet_runtime::engine::{Engine, Options, Start};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::{BatchToken, MAX_SEQUENCES, Needs, Session};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::load::{self, ActivationArgs, KernelArgs, PERFORMANCE, PlacementArgs, SessionArgs};
use crate::output::{answer, note};
use crate::prompt::{LastLineEnd, from_path};
use base::{BaseFile, Writer};
use divergence::Divergence;

/// Measure how well a model foretells a text
///
/// Windows, scored tokens and the lines written are those of llama-perplexity.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The text, or - for stdin; with --kl-divergence that of the base file is taken
    #[arg(short, long, value_name = "FILE", required_unless_present = "kl_divergence")]
    file: Option<PathBuf>,
    /// Tokens of a window
    #[arg(short, long = "ctx-size", value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ctx_size: u32,
    /// Windows, at most [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    chunks: Option<i64>,
    /// Tokens that windows are apart; 0: as many as they have
    #[arg(long, value_name = "N", default_value_t = 0)]
    ppl_stride: u32,
    /// Log probabilities of a model: written, or with --kl-divergence read and compared with; the format
    /// is llama.cpp's
    #[arg(long, visible_alias = "save-all-logits", value_name = "FILE")]
    kl_divergence_base: Option<PathBuf>,
    /// Compare with the probabilities of --kl-divergence-base
    #[arg(long, requires = "kl_divergence_base")]
    kl_divergence: bool,
    /// One line of JSON in place of text
    #[arg(long)]
    json: bool,
    /// Worker threads; 0: one for each CPU [default: the profile's, else one for each physical core]
    #[arg(short, long, value_name = "N", value_parser = load::threads,
          allow_negative_numbers = true, help_heading = PERFORMANCE)]
    threads: Option<usize>,
    /// Keep all threads at work, even while other programs need the CPUs and fewer would be faster
    #[arg(long, help_heading = PERFORMANCE)]
    fixed_threads: bool,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten, next_help_heading = PERFORMANCE)]
    kernels: KernelArgs,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    activations: ActivationArgs,
    /// Read the file into memory instead of mapping it
    #[arg(long, help_heading = PERFORMANCE)]
    no_mmap: bool,
}

/// Measures, until Ctrl+C, and returns the program's exit code.
///
/// # Errors
/// Those of opening the model and of the session; [`Error::Usage`] for a text that is shorter than two
/// windows; [`Error::Model`] for a base file that is malformed or of another model.
pub fn run(args: &Args) -> Result<ExitCode> {
    let interrupt = Interrupt::watch();
    let (path, options) = args.kernels.open(args.model.as_deref(), args.placement)?;
    let leave = "leave it as it is while it is used, or give --no-mmap";
    if !args.no_mmap {
        bus_error::explain(&path, None, leave);
    }
    let options = Options {
        mmap: !args.no_mmap,
        threads: args.threads,
        fixed_threads: args.fixed_threads,
        needs: Needs::All,
        start: Start::Packed,
        activations: args.activations.activations,
        progress: Some(load::progress(std::sync::Arc::default())),
        cancel: Some(interrupt.cancel()),
        ..options
    };
    // Before the model, which takes long.
    let base = match &args.kl_divergence_base {
        Some(path) if args.kl_divergence => Some(BaseFile::open(path)?),
        _ => None,
    };
    let text = match &args.file {
        Some(path) if base.is_none() => Some(from_path(path, LastLineEnd::Kept)?),
        _ => None,
    };
    let engine = Engine::open(&path, options)?;
    load::explain_bus_errors(&engine, leave);
    load::tell(&engine);
    engine.check_writes()?;
    let vocab = engine.config().vocab;
    let (ids, windows) = match &base {
        Some(base) => {
            base.check(vocab)?;
            (base.ids()?, Windows::even(base.context(), base.chunks()))
        }
        None => {
            let tokenizer = engine.tokenizer()?;
            let text = text.unwrap_or_default();
            let ids = tokenizer.encode(&text, tokenizer.add_bos(), false)?;
            let windows = args.windows(&ids)?;
            (ids, windows)
        }
    };
    let windows = windows.limited(args.chunks);
    let context = windows.context;
    if context > engine.config().context {
        note(format_args!(
            "note: windows of {context} tokens are longer than the context of the model, {}",
            engine.config().context
        ));
    }
    let batch = args.session.batch();
    let sequences = (batch / context).clamp(1, MAX_SEQUENCES).min(windows.count.max(1));
    let session_options = SessionOptions { sequences, ..args.session.options(Some(context))? };
    let session = engine.session(session_options)?;
    load::tell(&engine);
    note(format_args!(
        "{} windows of {context} tokens, {sequences} at a time, {} tokens scored",
        windows.count,
        windows.count * windows.scored.len()
    ));
    let tokenizer = engine.tokenizer()?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let ids = match base {
        // They are there as they went through the model.
        Some(_) => ids,
        None => windows.with_bos(ids, bos),
    };
    let writer = match &args.kl_divergence_base {
        Some(path) if !args.kl_divergence => {
            if args.ppl_stride > 0 {
                let expected = "no --ppl-stride: the file has no place for it";
                return Err(Error::usage("--kl-divergence-base", "a stride", expected));
            }
            Some(Writer::create(path, &windows, vocab, &ids)?)
        }
        _ => None,
    };
    let mut measurement = Measurement {
        args,
        windows,
        ids,
        bos,
        session,
        surprise: Surprise::default(),
        after: Vec::new(),
        divergence: base.as_ref().map(|_| Divergence::default()),
        base,
        writer,
    };
    measurement.run(&interrupt)?;
    measurement.end()?;
    Ok(interrupt.exit_code())
}

/// The windows of a text.
#[derive(Clone, Debug)]
struct Windows {
    /// Tokens of each.
    context: usize,
    /// Tokens from the beginning of one to that of the next.
    stride: usize,
    /// How many.
    count: usize,
    /// Places within a window whose logits are scored, each against the next token.
    scored: Range<usize>,
}

impl Windows {
    /// Windows that follow each other.
    fn even(context: usize, count: usize) -> Self {
        Self { context, stride: context, count, scored: context / 2..context - 1 }
    }

    /// At most so many of them; a negative number is no limit.
    fn limited(self, most: Option<i64>) -> Self {
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
        Self { count: self.count.min(most), ..self }
    }

    /// The tokens of window `i`.
    fn range(&self, i: usize) -> Range<usize> {
        i * self.stride..i * self.stride + self.context
    }

    /// The tokens with the one that begins a text in the first place of each window, where windows do
    /// not overlap.
    fn with_bos(&self, mut ids: Vec<u32>, bos: Option<u32>) -> Vec<u32> {
        if let Some(bos) = bos.filter(|_| self.stride == self.context) {
            (0..self.count).for_each(|i| ids[i * self.stride] = bos);
        }
        ids
    }
}

impl Args {
    /// The windows of a text of these tokens.
    fn windows(&self, ids: &[u32]) -> Result<Windows> {
        let stride = self.ppl_stride as usize;
        // llama.cpp's rule: half of a stride more.
        let context = self.ctx_size as usize + stride / 2;
        if ids.len() < 2 * context {
            let expected = format!(
                "at least {}, two windows of {context}: a longer text, or fewer tokens by -c",
                2 * context
            );
            return Err(Error::usage("text", format_args!("{} tokens", ids.len()), expected));
        }
        if stride == 0 {
            return Ok(Windows::even(context, ids.len() / context));
        }
        if stride >= context {
            let expected = format!("less than a window, {context}");
            return Err(Error::usage("--ppl-stride", stride, expected));
        }
        let count = (ids.len() - context).div_ceil(stride);
        Ok(Windows { context, stride, count, scored: context - stride - 1..context - 1 })
    }
}

/// Sums of negative log likelihoods.
#[derive(Clone, Copy, Debug, Default)]
struct Surprise {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Surprise {
    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    fn mean(self) -> f64 {
        self.sum / self.count as f64
    }

    fn perplexity(self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the perplexity.
    fn error(self) -> f64 {
        let variance = self.squares / self.count as f64 - self.mean().powi(2);
        if self.count < 2 || variance <= 0.0 {
            return 0.0;
        }
        (variance / (self.count - 1) as f64).sqrt() * self.perplexity()
    }
}

/// Logits after a token, and what follows from them.
#[derive(Debug)]
struct Scored<'a> {
    logits: &'a [f32],
    /// The logarithm of the sum of the exponentials of all logits.
    log_sum: f64,
    /// The token that follows.
    id: u32,
}

impl<'a> Scored<'a> {
    fn new(logits: &'a [f32], id: u32) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        Self { logits, log_sum: f64::from(max) + sum.ln(), id }
    }

    /// The negative log likelihood of the token that follows.
    fn nll(&self) -> f64 {
        self.log_sum - f64::from(self.logits[self.id as usize])
    }
}

struct Measurement<'a> {
    args: &'a Args,
    windows: Windows,
    ids: Vec<u32>,
    bos: Option<u32>,
    session: Session,
    surprise: Surprise,
    /// The perplexity after each window.
    after: Vec<f64>,
    base: Option<BaseFile>,
    divergence: Option<Divergence>,
    writer: Option<Writer>,
}

impl Measurement<'_> {
    /// Takes the windows through the model, some at a time.
    fn run(&mut self, interrupt: &Interrupt) -> Result<()> {
        let mut done = 0;
        while done < self.windows.count && !interrupt.is_requested() {
            let together = self.session.sequences().min(self.windows.count - done);
            self.group(done, together)?;
            done += together;
        }
        Ok(())
    }

    /// Takes `together` windows from `first` on through the model at once.
    fn group(&mut self, first: usize, together: usize) -> Result<()> {
        let Windows { context, scored, .. } = self.windows.clone();
        (0..together).for_each(|sequence| self.session.truncate_of(sequence, 0));
        let mut tokens = Vec::with_capacity(together * context);
        let all = &Needs::All;
        for sequence in 0..together {
            let range = self.windows.range(first + sequence);
            for (place, &id) in self.ids[range].iter().enumerate() {
                let id = if place == 0 { self.bos.unwrap_or(id) } else { id };
                let needs = scored.contains(&place).then_some(all);
                tokens.push(BatchToken { sequence, id, needs });
            }
        }
        let per = scored.len();
        let mut failed = None;
        // Borrowed apart from the session.
        let Self { windows, ids, session, surprise, after, base, divergence, writer, .. } = self;
        let (args, mut lines) = (self.args, Lines::new(self.args.json));
        session.forward_with(&tokens, &mut |row, logits| {
            let (window, at) = (first + row / per, row % per);
            let place = windows.range(window).start + scored.start + at;
            if logits.iter().any(|l| l.is_nan()) {
                failed.get_or_insert(place);
                return Ok(());
            }
            let scored = Scored::new(logits, ids[place + 1]);
            surprise.add(scored.nll());
            if let Some(writer) = writer {
                writer.row(&scored)?;
            }
            if let (Some(base), Some(divergence)) = (base.as_mut(), divergence.as_mut()) {
                divergence.add(&scored, base.row(window * per + at)?);
            }
            if at + 1 == per {
                after.push(surprise.perplexity());
                match divergence {
                    Some(divergence) if !args.json => divergence.line(window)?,
                    Some(_) => {}
                    None => lines.window(window, surprise.perplexity())?,
                }
            }
            Ok(())
        })?;
        match failed {
            None => Ok(()),
            Some(place) => Err(Error::Runtime(format!(
                "after token {place} the model gives no numbers: the file is damaged"
            ))),
        }
    }

    /// Writes the result.
    fn end(self) -> Result<()> {
        let Self { args, windows, surprise, after, divergence, writer, .. } = self;
        if let Some(writer) = writer {
            writer.end(after.len())?;
        }
        let (ppl, error) = (surprise.perplexity(), surprise.error());
        if args.json {
            let result = Report {
                n_ctx: windows.context,
                stride: windows.stride,
                tokens: surprise.count,
                perplexities: after,
                perplexity: ppl,
                error,
                divergence: divergence.as_ref().map(Divergence::report),
            };
            return answer(|out| {
                serde_json::to_writer(&mut *out, &result)?;
                writeln!(out)
            });
        }
        match divergence {
            Some(divergence) => answer(|out| divergence.table(out)),
            None => answer(|out| {
                writeln!(out)?;
                writeln!(out, "Final estimate: PPL = {ppl:.4} +/- {error:.5}")
            }),
        }
    }
}

/// Result in JSON.
#[derive(Serialize)]
struct Report {
    n_ctx: usize,
    stride: usize,
    tokens: usize,
    /// After each window.
    perplexities: Vec<f64>,
    perplexity: f64,
    error: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<divergence::Report>,
}

/// Running values on stdout, as soon as they are known.
struct Lines {
    silent: bool,
}

impl Lines {
    fn new(silent: bool) -> Self {
        Self { silent }
    }

    fn window(&mut self, window: usize, perplexity: f64) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        let mut out = patient::stdout();
        write!(out, "[{}]{perplexity:.4},", window + 1)
            .and_then(|()| out.flush())
            .map_err(|e| Error::io(std::path::Path::new("stdout"), "write", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perplexity_is_the_exponential_of_the_mean() {
        let mut surprise = Surprise::default();
        [1.0, 2.0, 3.0].into_iter().for_each(|nll| surprise.add(nll));
        assert!((surprise.perplexity() - 2.0f64.exp()).abs() < 1e-12);
        // Variance 2/3 of 3 values, over 2.
        let error = (2.0f64 / 3.0 / 2.0).sqrt() * 2.0f64.exp();
        assert!((surprise.error() - error).abs() < 1e-12);
        let logits = [0.0, 1.0, -f32::INFINITY, 3.0];
        let sum = 1.0 + 1.0f64.exp() + 3.0f64.exp();
        assert!((Scored::new(&logits, 1).nll() - (sum.ln() - 1.0)).abs() < 1e-12);
        assert_eq!(Scored::new(&logits, 2).nll(), f64::INFINITY);
    }
}
