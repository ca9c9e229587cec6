//! Comparison on the model: the untuned default against the tuned profile.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Isa, Profile};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::memory;
use bitnet_runtime::cpu::model::{Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::engine::sampler::argmax;
use bitnet_runtime::engine::{Engine, NamedProfile, Options, PackedWeights, ProfileChoice, Start};
use bitnet_runtime::file::gguf::Gguf;

use super::limits::{self, PASSES};
use crate::measure::lengths::{PROMPT, WRITTEN};
use crate::measure::{Comparison, Speed};
use crate::model::{self, demo};
use crate::plan::placement;
use crate::protocol::{ComparisonTask, Reporter};
use crate::{Result, stats};

/// Prompt and tokens of a warm-up.
const WARM_PROMPT: usize = 16;
const WARM_TOKENS: usize = 2;
/// Rounds of a load, as long as they together are `SHORT`: of a large model one will do.
const ROUNDS: usize = 5;
const SHORT: Duration = Duration::from_millis(50);
/// Least and largest number of loads. Each is one comparison: the place of its pages can make a
/// session a few per cent faster for as long as it lives.
const LEAST_LOADS: usize = 2;
const MOST_LOADS: usize = 45;

/// Estimates the seconds of the shortest comparison from the microseconds per token of both sides
/// together, and from reading and writing memory once for each load.
pub(crate) fn least_seconds(per_token_us: impl Fn(Phase) -> f64, model_bytes: u64) -> f64 {
    // Rate of packing with one core, where large models do worst; bytes are read, packed, touched.
    const BYTES_PER_SECOND: f64 = 0.7e9;
    let of = |phase, tokens: usize| per_token_us(phase) * tokens as f64 * 1e-6;
    let round = of(Phase::Decode, WARM_TOKENS + WRITTEN) + of(Phase::Prefill, WARM_PROMPT + PROMPT);
    LEAST_LOADS as f64 * (2.0 * model_bytes as f64 / BYTES_PER_SECOND + round)
}

/// Opens the file of a model, or the demo model.
pub(crate) fn open(model: Option<&PathBuf>) -> Result<Gguf> {
    Ok(match model {
        Some(path) => model::open(path)?,
        None => Gguf::from_bytes(demo::NAME, demo::BYTES)?,
    })
}

/// Opens a model, or the demo model, as `bitnet-run` does.
pub(crate) fn engine(model: Option<&PathBuf>, options: Options) -> Result<Engine> {
    Ok(Engine::from_gguf(open(model)?, options)?)
}

/// Starts a session with as many positions as a round takes.
fn session(model: Option<&PathBuf>, options: Options) -> Result<Session> {
    let engine = engine(model, Options { tokenizer: false, ..options })?;
    let context = engine.config().context.min(2 * (PROMPT + WRITTEN));
    let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
    Ok(engine.session(options)?)
}

/// Returns options with a profile in memory.
pub(crate) fn tuned(profile: Profile) -> Options {
    let named = NamedProfile { path: PathBuf::from("the tuned profile"), profile };
    Options {
        profile: ProfileChoice::Named(Box::new(named)),
        start: Start::Packed,
        packed: PackedWeights::Never,
        ..Options::default()
    }
}

/// Returns options with the untuned defaults for this CPU up to a tier.
fn untuned(threads: usize, ceiling: Isa) -> Options {
    let run = placement::untuned(threads);
    Options {
        profile: ProfileChoice::Shipped,
        isa: (ceiling != Isa::best()).then_some(ceiling),
        threads: Some(threads),
        pinning: Some(run.pinning),
        huge_pages: Some(run.huge_pages),
        start: Start::Packed,
        packed: PackedWeights::Never,
        ..Options::default()
    }
}

/// Runs a session with the defaults and one with the profile in turns, a prompt and some tokens
/// each.
pub(crate) fn measure(task: &ComparisonTask, reporter: &mut Reporter) -> Result<Comparison> {
    let deadline = Instant::now() + Duration::from_secs_f64(task.seconds);
    let gguf = open(task.model.as_ref())?;
    let bytes: u64 = gguf.tensors().iter().map(|tensor| tensor.bytes).sum();
    if let Some(free) = memory::available().filter(|&free| free < bytes * 5 / 2) {
        return Err(Error::Runtime(format!(
            "comparing on the model takes it twice in memory, {} MB, and {} MB are free",
            (bytes * 5 / 2) >> 20,
            free >> 20
        ))
        .into());
    }
    drop(gguf);
    let pool = Pool::new(task.threads)?;
    let stream = limits::stream(&pool, task.model_bytes)?;
    let mut limits = Vec::new();
    let mut probe = || -> Result<()> {
        limits.push(stream.read_bandwidth(&pool, PASSES)? / 1e9);
        Ok(())
    };
    // Seconds of every load: untuned and tuned, decode and prefill.
    let mut loads: Vec<[[f64; 2]; 2]> = Vec::new();
    let mut longest = Duration::ZERO;
    while loads.is_empty() || loads.len() < MOST_LOADS && Instant::now() + longest <= deadline {
        reporter.progress(1.0, "comparing on the model".into())?;
        let (model, begin) = (task.model.as_ref(), Instant::now());
        let load = std::thread::scope(|scope| {
            let runners = [
                Runner::start(scope, model, untuned(task.threads, task.ceiling)),
                Runner::start(scope, model, tuned(task.profile.clone())),
            ];
            runners
                .iter()
                .try_for_each(|runner| runner.round([WARM_PROMPT, WARM_TOKENS]).map(drop))?;
            probe()?;
            compare(&runners, loads.len() % 2)
        })?;
        loads.push(load);
        longest = longest.max(begin.elapsed());
    }
    let pairs = |phase: usize| -> Vec<[f64; 2]> {
        loads.iter().map(|sides| sides.map(|seconds| seconds[phase])).collect()
    };
    Ok(Comparison {
        decode: Speed::of(&pairs(0), WRITTEN),
        prefill: Speed::of(&pairs(1), PROMPT),
        loads: loads.len(),
        limit_gb_per_s: stats::median(&limits),
    })
}

/// Seconds of decode and of prefill, and the tokens written.
type Round = ([f64; 2], Vec<u32>);

/// A session on a thread of its own: a pinned pool binds the thread that made it.
struct Runner {
    start: Sender<[usize; 2]>,
    rounds: Receiver<Result<Round>>,
}

impl Runner {
    /// Loads the model.
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        model: Option<&'scope PathBuf>,
        options: Options,
    ) -> Self {
        let (start, starts) = mpsc::channel();
        let (sender, rounds) = mpsc::channel();
        scope.spawn(move || {
            let mut session = match session(model, options) {
                Ok(session) => session,
                Err(error) => return drop(sender.send(Err(error))),
            };
            while let Ok(lengths) = starts.recv() {
                if sender.send(round(&mut session, lengths)).is_err() {
                    break;
                }
            }
        });
        Self { start, rounds }
    }

    /// Runs a prompt and writes tokens: lengths of both.
    fn round(&self, lengths: [usize; 2]) -> Result<Round> {
        // A thread that has gone has sent why.
        let _ = self.start.send(lengths);
        let gone = || Error::Runtime("a thread of the comparison ended".into()).into();
        self.rounds.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// Compares the sessions of one load, `first` going first: median seconds of decode and prefill,
/// untuned and tuned.
fn compare(runners: &[Runner; 2], first: usize) -> Result<[[f64; 2]; 2]> {
    let mut seconds: [[Vec<f64>; 2]; 2] = Default::default();
    let begin = Instant::now();
    for number in 0..ROUNDS {
        if number > 0 && begin.elapsed() > SHORT {
            break;
        }
        let mut written = [Vec::new(), Vec::new()];
        let first = (first + number) % 2;
        for turn in [first, 1 - first] {
            let (times, ids) = runners[turn].round([PROMPT, WRITTEN])?;
            seconds[turn].iter_mut().zip(times).for_each(|(all, own)| all.push(own));
            written[turn] = ids;
        }
        if written[0] != written[1] {
            let message = "the tuned kernels changed the text, which none may; please report it";
            return Err(Error::Runtime(message.into()).into());
        }
    }
    Ok(seconds.map(|phases| phases.map(|all| stats::median(&all))))
}

/// Runs a prompt and writes tokens. Where the context holds fewer, the times are scaled to the full
/// lengths.
fn round(session: &mut Session, [prompt, tokens]: [usize; 2]) -> Result<Round> {
    session.truncate(0);
    let vocab = session.model().config().vocab as u32;
    let length = prompt.min(session.context() / 2).max(1);
    // Any tokens will do: the speed does not depend on them.
    let ids: Vec<u32> = (0..length as u32).map(|i| i.wrapping_mul(7919) % vocab).collect();
    // As `bitnet-run` asks for by default.
    let needs = &Options::default().needs;
    let start = Instant::now();
    let mut next = argmax(session.prefill_for(&ids, needs)?);
    let prefill = start.elapsed().as_secs_f64() * prompt as f64 / length as f64;
    let mut written = vec![next];
    let count = tokens.min(session.context() - length);
    let start = Instant::now();
    for _ in 0..count {
        next = argmax(session.decode_for(next, needs)?);
        written.push(next);
    }
    let decode = start.elapsed().as_secs_f64() * tokens as f64 / count.max(1) as f64;
    Ok(([decode, prefill], written))
}
