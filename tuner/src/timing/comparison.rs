//! The untuned default against the tuned profile on the real model: what a user gains.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Isa, Objective, Profile};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::memory;
use bitnet_runtime::cpu::model::{Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::engine::sampler::argmax;
use bitnet_runtime::engine::{Engine, NamedProfile, Options, ProfileChoice, Start};
use bitnet_runtime::file::gguf::Gguf;
use serde::{Deserialize, Serialize};

use crate::choose::{self, Choice, Gain};
use crate::measure::Limits;
use crate::model::demo;
use crate::timing::{jobs, placement};
use crate::worker::Reporter;
use crate::{Result, stats};

/// Tokens of a round's prompt, and tokens written after it.
pub(crate) const PROMPT: usize = 128;
pub(crate) const TOKENS: usize = 32;
/// Prompt and tokens that warm a session up.
const WARM_PROMPT: usize = 16;
const WARM_TOKENS: usize = 2;
/// Rounds of a load, if they are short: of a large model one will do.
const ROUNDS: usize = 5;
const SHORT: Duration = Duration::from_millis(50);
/// Loads that there must be time for, and of which more say nothing new. Each is one comparison:
/// where pages come to lie can make a session a few per cent faster for as long as it lives.
const LEAST_LOADS: usize = 2;
const MOST_LOADS: usize = 45;

/// Positions that a token of a phase attends to, itself included, on average.
pub(crate) fn positions(phase: Phase) -> f64 {
    match phase {
        Phase::Decode => PROMPT as f64 + (TOKENS + 1) as f64 / 2.0,
        Phase::Prefill => (PROMPT + 1) as f64 / 2.0,
    }
}

/// What to race.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaceTask {
    /// The model's file; none for the demo model that is part of this program.
    pub model: Option<PathBuf>,
    /// The profile.
    pub profile: Profile,
    /// Threads of the untuned default.
    pub threads: usize,
    /// The best tier that both may use.
    pub ceiling: Isa,
    /// Bytes of weights that one token of the model reads.
    pub model_bytes: u64,
    /// Seconds for all of it; both are loaded once at least.
    pub seconds: f64,
}

/// Tokens per second of one phase, and the tuned time over the default's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Tokens per second by default.
    pub before: f64,
    /// Tokens per second tuned.
    pub after: f64,
    /// Median of the tuned time over the default's just before or after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
}

impl Speed {
    /// Of the seconds of pairs of runs, default and tuned, that took so many tokens each.
    fn of(pairs: &[[f64; 2]], tokens: usize) -> Self {
        let side = |i: usize| -> Vec<f64> { pairs.iter().map(|pair| pair[i]).collect() };
        let ratios: Vec<f64> = pairs.iter().map(|[before, after]| after / before).collect();
        Self {
            before: tokens as f64 / stats::median(&side(0)).max(1e-9),
            after: tokens as f64 / stats::median(&side(1)).max(1e-9),
            ratio: stats::median(&ratios),
            half_width: stats::half_width(&ratios, 0.005),
        }
    }

    /// How many times as fast.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// The outcome of a race.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Race {
    /// One token after another.
    pub decode: Speed,
    /// A prompt.
    pub prefill: Speed,
    /// Times that both were loaded.
    pub loads: usize,
    /// Read bandwidth of what holds the model, in 10^9 bytes per second, probed before each comparison:
    /// the median.
    pub limit_gb_per_s: f64,
}

impl Race {
    /// Whether the profile lost, beyond the noise, what it was to win.
    pub fn is_slower(&self, objective: Objective) -> bool {
        let (of_decode, of_prefill) = choose::weights(objective);
        let part = |speed: &Speed, weight: f64| {
            let default = weight / speed.before.max(1e-9);
            (default * (speed.ratio - 1.0), default * speed.half_width)
        };
        let (decode, prefill) = (part(&self.decode, of_decode), part(&self.prefill, of_prefill));
        decode.0 + prefill.0 > decode.1.hypot(prefill.1)
    }

    /// The limits as they were meanwhile.
    pub fn limits(&self, limits: &Limits) -> Limits {
        Limits { limit_gb_per_s: self.limit_gb_per_s, ..*limits }
    }

    /// That of a phase.
    pub fn speed(&self, phase: Phase) -> &Speed {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// Seconds that the shortest race takes, with as many loads of both as say anything. An estimate,
/// from what the jobs took and memory that is read and written once.
pub(crate) fn least_seconds(choices: &[Choice<'_>], model_bytes: u64) -> f64 {
    // What packing does with one core, where large models do worst; bytes are read, packed, touched.
    const BYTES_PER_SECOND: f64 = 0.7e9;
    let of = |phase, tokens: usize| {
        let (chosen, default) = choose::per_token_us(choices, phase);
        (chosen + default) * tokens as f64 * 1e-6
    };
    let round = of(Phase::Decode, WARM_TOKENS + TOKENS) + of(Phase::Prefill, WARM_PROMPT + PROMPT);
    LEAST_LOADS as f64 * (2.0 * model_bytes as f64 / BYTES_PER_SECOND + round)
}

/// The file of a model, or the one that is part of this program.
pub(crate) fn open(model: Option<&PathBuf>) -> Result<Gguf> {
    Ok(match model {
        Some(path) => Gguf::open(path)?,
        None => Gguf::from_bytes(demo::NAME, demo::BYTES)?,
    })
}

/// Opens a model, or the one that is part of this program, as `bitnet-run` does.
pub(crate) fn engine(model: Option<&PathBuf>, options: Options) -> Result<Engine> {
    Ok(Engine::from_gguf(open(model)?, options)?)
}

/// Starts a text of as many positions as a round takes.
fn session(model: Option<&PathBuf>, options: Options) -> Result<Session> {
    let engine = engine(model, Options { tokenizer: false, ..options })?;
    let context = engine.config().context.min(2 * (PROMPT + TOKENS));
    let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
    Ok(engine.session(options)?)
}

/// With a profile in memory.
pub(crate) fn tuned(profile: Profile) -> Options {
    let named = NamedProfile { path: PathBuf::from("the tuned profile"), profile };
    Options {
        profile: ProfileChoice::Named(Box::new(named)),
        start: Start::Packed,
        ..Options::default()
    }
}

/// With the defaults for this CPU up to a tier, and so many threads.
fn untuned(threads: usize, ceiling: Isa) -> Options {
    let run = placement::untuned(threads);
    Options {
        profile: ProfileChoice::Shipped,
        isa: (ceiling != Isa::best()).then_some(ceiling),
        threads: Some(threads),
        pinning: Some(run.pinning),
        huge_pages: Some(run.huge_pages),
        start: Start::Packed,
        ..Options::default()
    }
}

/// Runs a session with the defaults and one with the profile in turns, a prompt and some tokens
/// each.
pub(crate) fn race(task: &RaceTask, reporter: &mut Reporter) -> Result<Race> {
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
    let stream = jobs::stream(&pool, task.model_bytes)?;
    let mut limits = Vec::new();
    let mut probe = || -> Result<()> {
        limits.push(stream.read_bandwidth(&pool, jobs::PASSES)? / 1e9);
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
    Ok(Race {
        decode: Speed::of(&pairs(0), TOKENS),
        prefill: Speed::of(&pairs(1), PROMPT),
        loads: loads.len(),
        limit_gb_per_s: stats::median(&limits),
    })
}

/// Seconds of decode and of prefill, and the tokens that were written.
type Round = ([f64; 2], Vec<u32>);

/// A session on a thread of its own: a pinned pool binds the thread that made it, which must not be
/// that of the other session.
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

    /// A prompt of so many tokens, and so many written.
    fn round(&self, lengths: [usize; 2]) -> Result<Round> {
        // A thread that has gone has sent why.
        let _ = self.start.send(lengths);
        let gone = || Error::Runtime("a thread of the comparison ended".into()).into();
        self.rounds.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// One load's comparison, `first` going first: seconds of decode and prefill, untuned and tuned, medians
/// of its rounds.
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
            let (times, ids) = runners[turn].round([PROMPT, TOKENS])?;
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

/// Runs a prompt and writes tokens; where the context holds fewer, so much longer is what would take.
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
