//! Times the candidates of a plan as the runtime will run them: whole jobs, by the real thread
//! pool, with weights as cold as they will be.
//!
//! * **What is timed** is [`Job::decode`](bitnet_runtime::matmul::Job::decode) and
//!   [`Job::prepare_and_prefill`](bitnet_runtime::matmul::Job::prepare_and_prefill) with a barrier
//!   after each, as in the forward pass.
//! * **Weights are synthetic**: random codes in matrices of the model's shapes. Ternary kernels
//!   take the same time for all codes, and the model's file need not be read.
//! * **As cold as they will be.** Between a matrix and its next turn, one token reads the rest of
//!   the model. So jobs rotate through copies of their matrices that are together as large as the
//!   model; where that is more than the L3 cache, several times the cache is as good as all.
//! * **Memory**: one role at a time, and of it the default's layout and one other: about 1.5 times
//!   the model, or 4 times the L3 cache where that is more.
//! * **Limits** come first ([`bitnet_runtime::probe`]): what memory (or the cache that holds the
//!   model) and the multipliers can do.
//!
//! [`Job::decode`]: bitnet_runtime::matmul::Job::decode
//! [`Job::prepare_and_prefill`]: bitnet_runtime::matmul::Job::prepare_and_prefill

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Isa, KernelId, Layout, Role, Shape};
use bitnet_runtime::host::Host;
use bitnet_runtime::kernels::{self, Kernel};
use bitnet_runtime::probe;
use bitnet_runtime::threads::Pool;
use serde::{Deserialize, Serialize};

use crate::plan::{JobPlan, LayoutPlan};
use crate::sampler::{Rotation, Sampler};
use crate::tournament::{self, Entrant, Entry, Outcome};
use crate::verify::{Oracle, Wrong};
use crate::{Result, stats};

/// Activation rows of a timed prefill.
const TOKENS: usize = 128;
/// Fewest, where 128 take too long for the budget.
const LEAST_TOKENS: usize = 32;
/// What a sample should last: many times the clock's grain and a barrier, and less than the system
/// lets another process run.
const SAMPLE: Duration = Duration::from_millis(1);
/// The L3 cache that is assumed where the system does not say.
const USUAL_L3: u64 = 64 << 20;
/// Passes of a probe, of which the best counts.
const PROBES: usize = 5;

/// Everything that was measured: what [`crate::choose`] needs and nothing else, so that a choice
/// can be repeated from a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// The shipped default for one token, the sentinel of all decode ratios.
    pub default_decode: KernelId,
    /// The shipped default for many tokens, the sentinel of all prefill ratios.
    pub default_prefill: KernelId,
    /// Threads of the pool.
    pub threads: u32,
    /// Read bandwidth of memory with these threads, in 10^9 bytes per second.
    pub read_gb_per_s: f64,
    /// Read bandwidth of what holds the model, memory or a cache: the limit of decode.
    pub limit_gb_per_s: f64,
    /// 10^9 multiply-adds per second with these threads, where the ISA has a limit: that of
    /// prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_gmac_per_s: Option<f64>,
    /// Whether weights were timed from memory; else from the cache, which holds the model.
    pub cold: bool,
    /// Median absolute deviation of the sentinels' times over their median: the median of all
    /// tournaments.
    pub noise: f64,
    /// Whether the machine was too restless to repeat all that was spoilt; intervals are wider where
    /// spoilt samples had to be kept.
    pub disturbed: bool,
    /// The jobs.
    pub jobs: Vec<JobMeasurements>,
}

/// What was measured for one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMeasurements {
    /// What the job is for.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Times per token that it runs.
    pub count: u32,
    /// Median time of the default for one token, in microseconds.
    pub default_decode_us: f64,
    /// Median time of the default for `tokens` tokens, in microseconds.
    pub default_prefill_us: f64,
    /// Activation rows of a timed prefill.
    pub tokens: u32,
    /// The layouts.
    pub layouts: Vec<LayoutMeasurements>,
}

impl JobMeasurements {
    /// Time of the default for one token of a phase, in microseconds.
    pub fn default_us(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Decode => self.default_decode_us,
            Phase::Prefill => self.default_prefill_us / f64::from(self.tokens.max(1)),
        }
    }
}

/// What was measured for one layout of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutMeasurements {
    /// The packing.
    pub layout: Layout,
    /// Bytes of the job's matrices in this layout, padding included.
    pub bytes: u64,
    /// Kernels for one token.
    pub decode: Vec<Timing>,
    /// Kernels for many.
    pub prefill: Vec<Timing>,
}

/// What was measured for one kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// The kernel.
    pub kernel: KernelId,
    /// Samples taken.
    pub samples: u32,
    /// The shortest time of the job in microseconds.
    pub min_us: f64,
    /// The median.
    pub median_us: f64,
    /// The median absolute deviation from it.
    pub mad_us: f64,
    /// Median of its times over those of the default just before and after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
    /// Whether it was still in the race at the end. Only finalists can be chosen: what was cut has
    /// few samples and a wide interval, and would tie with everything.
    pub finalist: bool,
}

/// How far the tuner is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Share of the work done, 0 to 1.
    pub done: f64,
    /// What is done now.
    pub doing: String,
}

/// What the measurement needs to know beside the plan.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The best tier that may be used: the default is taken from there.
    pub ceiling: Isa,
    /// How long to measure. Everything is timed at least once, whatever it says.
    pub budget: Duration,
    /// Bytes of other weights that a token reads: the head.
    pub other_bytes: u64,
}

/// Verifies and times every candidate of `plan`. The kernels that computed something wrong are
/// left out of the measurements and reported.
///
/// # Errors
/// A kernel of the plan that is not built in, memory that the system refuses, a worker that
/// panicked.
pub fn measure(
    plan: &[JobPlan],
    pool: &Pool,
    host: &Host,
    settings: Settings,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(Measurements, Vec<Wrong>)> {
    let start = Instant::now();
    let (_, default) = kernels::shipped().ternary(None, settings.ceiling);
    let l3 = if host.l3 == 0 { USUAL_L3 } else { host.l3 };
    let weights = |job: &JobPlan| -> u64 {
        let bytes: usize = job.parts.iter().map(|&p| default.layout().matrix_bytes(p)).sum();
        bytes as u64 * u64::from(job.count)
    };
    let model_bytes = plan.iter().map(weights).sum::<u64>() + settings.other_bytes;
    let cold = model_bytes > l3;

    progress(&Progress { done: 0.0, doing: "read bandwidth".into() });
    let far = (4 * l3).clamp(64 << 20, 4 << 30) as usize;
    let read = probe::read_bandwidth(pool, far, PROBES)?;
    let limit =
        if cold { read } else { probe::read_bandwidth(pool, model_bytes as usize, PROBES)? };
    let multiply_adds = probe::multiply_add_rate(pool, settings.ceiling, 10 * PROBES)?;

    let mut wrong = Vec::new();
    let plan = verify(plan, pool, &mut wrong, progress)?;

    let mut timer = Timer {
        pool,
        default: (find(&default.decode)?, find(&default.prefill)?),
        rotation: if cold {
            Rotation { bytes: (4 * l3).min((model_bytes * 3 / 4).max(2 * l3)), warm: false }
        } else {
            Rotation { bytes: model_bytes, warm: true }
        },
        deadline: start + settings.budget,
        budget: settings.budget,
        remaining: plan.iter().flat_map(|job| &job.layouts).map(effort_of).sum(),
        total: 0,
        noises: Vec::new(),
        disturbed: 0,
        progress,
    };
    timer.total = timer.remaining;
    let jobs = plan.iter().map(|job| timer.job(job)).collect::<Result<_>>()?;
    let measurements = Measurements {
        default_decode: default.decode,
        default_prefill: default.prefill,
        threads: pool.threads() as u32,
        read_gb_per_s: read / 1e9,
        limit_gb_per_s: limit / 1e9,
        limit_gmac_per_s: multiply_adds.map(|rate| rate / 1e9),
        cold,
        noise: stats::median(&timer.noises),
        disturbed: 4 * timer.disturbed > timer.noises.len(),
        jobs,
    };
    (timer.progress)(&Progress { done: 1.0, doing: "done".into() });
    Ok((measurements, wrong))
}

/// The kernels that a layout's tournaments time.
fn effort_of(plan: &LayoutPlan) -> usize {
    plan.decode.len() + plan.prefill.len()
}

fn find(id: &KernelId) -> Result<Kernel> {
    Ok(*kernels::find(id).ok_or_else(|| {
        bitnet_runtime::Error::Runtime(format!("{id} is not built in, or this CPU lacks its ISA"))
    })?)
}

/// The plan without the kernels that err, and the layouts that have none left.
fn verify(
    plan: &[JobPlan],
    pool: &Pool,
    wrong: &mut Vec<Wrong>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Vec<JobPlan>> {
    // By columns and layout: jobs with the same columns have the same candidates.
    let mut checked: Vec<(usize, Layout)> = Vec::new();
    let mut bad: Vec<String> = Vec::new();
    for job in plan {
        let cols = job.parts.first().map_or(1, |part| part.cols);
        let mut oracle = None;
        for layout in &job.layouts {
            if checked.contains(&(cols, layout.layout)) {
                continue;
            }
            checked.push((cols, layout.layout));
            progress(&Progress { done: 0.0, doing: format!("verifying {}", layout.layout) });
            let all = || job.layouts.iter().flat_map(|l| l.decode.iter().chain(&l.prefill));
            let tokens = all().map(|id| id.tile.tokens).max().unwrap_or(1);
            let oracle = oracle.get_or_insert_with(|| Oracle::new(cols, tokens));
            let ids = layout.decode.iter().chain(&layout.prefill);
            let kernels: Vec<Kernel> = ids.map(find).collect::<Result<_>>()?;
            for found in oracle.check(layout.layout, &kernels, pool)? {
                bad.push(found.kernel.clone());
                wrong.push(found);
            }
        }
    }
    let mut plan = plan.to_vec();
    for job in &mut plan {
        for layout in &mut job.layouts {
            layout.decode.retain(|id| !bad.contains(&id.to_string()));
            layout.prefill.retain(|id| !bad.contains(&id.to_string()));
        }
        job.layouts.retain(|layout| !layout.decode.is_empty() && !layout.prefill.is_empty());
    }
    Ok(plan)
}

struct Timer<'a> {
    pool: &'a Pool,
    /// The sentinels.
    default: (Kernel, Kernel),
    rotation: Rotation,
    deadline: Instant,
    budget: Duration,
    /// Kernels still to be timed, and all.
    remaining: usize,
    total: usize,
    noises: Vec<f64>,
    /// Tournaments in which someone has but spoilt samples.
    disturbed: usize,
    progress: &'a mut dyn FnMut(&Progress),
}

impl<'a> Timer<'a> {
    fn job(&mut self, plan: &JobPlan) -> Result<JobMeasurements> {
        let own = self.default.0.layout();
        let mut default = self.sampler(plan, own, TOKENS)?;
        let tokens = self.set_tokens(&mut default)?;
        // The default's layout first: what is reached there is what the others have to beat.
        let mut order: Vec<&LayoutPlan> = plan.layouts.iter().collect();
        order.sort_by_key(|layout| (layout.layout != own, layout.layout));
        let mut best: [Option<f64>; 2] = [None; 2];
        let mut sentinels: [Vec<Entry>; 2] = Default::default();
        let mut layouts = Vec::new();
        for layout in order {
            let mut other = if layout.layout == own {
                None
            } else {
                Some(self.sampler(plan, layout.layout, tokens)?)
            };
            let mut timings: [Vec<Timing>; 2] = Default::default();
            for (i, phase) in [Phase::Decode, Phase::Prefill].into_iter().enumerate() {
                (self.progress)(&Progress {
                    done: 1.0 - self.remaining as f64 / self.total.max(1) as f64,
                    doing: format!("{} {} {}", plan.role, layout.layout, phase_name(phase)),
                });
                let kernels: Vec<Kernel> =
                    layout.kernels(phase).iter().map(find).collect::<Result<_>>()?;
                let outcome =
                    self.tournament(&mut default, other.as_mut(), &kernels, phase, best[i])?;
                // The default itself is a ratio of 1 to beat.
                let known = [Some(1.0), best[i], outcome.best()].into_iter().flatten();
                best[i] = known.min_by(f64::total_cmp);
                timings[i] = self.timings(&kernels, &outcome);
                sentinels[i].push(outcome.sentinel);
            }
            let [decode, prefill] = timings;
            let bytes: usize = plan.parts.iter().map(|&p| layout.layout.matrix_bytes(p)).sum();
            let (layout, bytes) = (layout.layout, bytes as u64);
            layouts.push(LayoutMeasurements { layout, bytes, decode, prefill });
        }
        layouts.sort_by_key(|layout| layout.layout);
        Ok(JobMeasurements {
            role: plan.role,
            parts: plan.parts.clone(),
            count: plan.count,
            default_decode_us: typical_us(&sentinels[0]),
            default_prefill_us: typical_us(&sentinels[1]),
            tokens: tokens as u32,
            layouts,
        })
    }

    fn sampler(&self, plan: &JobPlan, layout: Layout, tokens: usize) -> Result<Sampler<'a>> {
        Sampler::new(self.pool, &plan.parts, layout, self.rotation, tokens)
    }

    /// How many activation rows a timed prefill takes: fewer where the default needs more than a
    /// hundredth of the budget for them.
    fn set_tokens(&self, default: &mut Sampler<'_>) -> Result<usize> {
        let mut tokens = TOKENS;
        default.set_tokens(LEAST_TOKENS);
        let one = default.sample(&self.default.1, 1)?.us * 1e-6 / LEAST_TOKENS as f64;
        while tokens > LEAST_TOKENS && one * tokens as f64 > self.budget.as_secs_f64() / 100.0 {
            tokens /= 2;
        }
        default.set_tokens(tokens);
        Ok(tokens)
    }

    /// Times `kernels`, on `other` where they do not read the default's layout.
    fn tournament(
        &mut self,
        default: &mut Sampler<'_>,
        mut other: Option<&mut Sampler<'_>>,
        kernels: &[Kernel],
        phase: Phase,
        to_beat: Option<f64>,
    ) -> Result<Outcome> {
        let sentinel = match phase {
            Phase::Decode => self.default.0,
            Phase::Prefill => self.default.1,
        };
        let left = self.deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let share = left * kernels.len() as f64 / self.remaining.max(1) as f64;
        self.remaining = self.remaining.saturating_sub(kernels.len());
        // Long enough for the clock, short enough for a few rounds.
        let length = SAMPLE.as_secs_f64().min(share / (4 * (kernels.len() + 2)) as f64);
        let one = default.sample(&sentinel, 1)?;
        let count = (length * 1e6 / one.us.max(1e-3)).ceil().clamp(1.0, 1e5) as usize;
        let is_sentinel = |kernel: &Kernel| kernel.id() == sentinel.id();
        let number = kernels.iter().position(is_sentinel).filter(|_| other.is_none());
        let outcome = tournament::run(kernels.len(), number, share, to_beat, |entrant| {
            match (entrant, &mut other) {
                (Entrant::Sentinel, _) => default.sample(&sentinel, count),
                (Entrant::Candidate(c), None) => default.sample(&kernels[c], count),
                (Entrant::Candidate(c), Some(other)) => other.sample(&kernels[c], count),
            }
        })?;
        let times = outcome.sentinel.us();
        self.noises.push(stats::mad(&times) / stats::median(&times));
        self.disturbed += usize::from(outcome.is_disturbed());
        Ok(outcome)
    }

    fn timings(&self, kernels: &[Kernel], outcome: &Outcome) -> Vec<Timing> {
        let sentinels = [self.default.0.id(), self.default.1.id()];
        let timing = |(kernel, entry): (&Kernel, &Entry)| {
            let is_sentinel = sentinels.contains(&kernel.id());
            let entry = if is_sentinel { &outcome.sentinel } else { entry };
            let us = entry.us();
            Timing {
                kernel: *kernel.id(),
                samples: us.len() as u32,
                min_us: us.iter().copied().fold(f64::INFINITY, f64::min),
                median_us: stats::median(&us),
                mad_us: stats::mad(&us),
                ratio: entry.ratio(),
                half_width: if is_sentinel { 0.0 } else { entry.half_width() },
                finalist: entry.finalist,
            }
        };
        kernels.iter().zip(&outcome.entries).map(timing).collect()
    }
}

/// The median time of the tournaments' sentinels; of the undisturbed ones if there are any.
fn typical_us(sentinels: &[Entry]) -> f64 {
    let calm = || sentinels.iter().filter(|sentinel| !sentinel.is_disturbed());
    let times: Vec<f64> = calm().flat_map(Entry::us).collect();
    if times.is_empty() {
        stats::median(&sentinels.iter().flat_map(Entry::us).collect::<Vec<f64>>())
    } else {
        stats::median(&times)
    }
}

/// As people say it.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Decode => "decode",
        Phase::Prefill => "prefill",
    }
}
