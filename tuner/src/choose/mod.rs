//! Measurements in, choices out: pure, so that a choice can be repeated from a record.
//!
//! Times are compared as ratios to the default that was timed just before and after, never as bare
//! microseconds. For every layout of a job the best decode and prefill kernel are found, and the
//! layout is the one with the least
//!
//! ```text
//! decode weight * time of one token + prefill weight * time of one prompt token
//! ```
//!
//! The weights are 1 and 0 for decode, 0 and 1 for prefill. Balanced weighs 1 and 4: a session with
//! four prompt tokens for each token that is written, as in llama-bench's pp512 and tg128.
//!
//! Attention has one kernel for both phases, weighed in the same way.
//!
//! Of the kernels that skip what meets a zero the best is the one that takes the least on average over
//! the shares of lines needed that were timed, where no more counts than reading all takes. It serves up
//! to the share at which the upper end of its interval, in a straight line from one to the next, says
//! that reading all takes as long.
//!
//! What lies within the noise (the hypotenuse of two 95 % half-widths) is a tie. The default wins a
//! tie, and against it the interval is that of the best of many (Bonferroni's); a gain of less than 3 %
//! is no reason to leave it, nor one of less than 10 % by another distance to prefetch from memory,
//! or by another way to run. Else, among those that tie within 1 %, the simpler tile does (less
//! prefetching, unrolling, fewer activation rows, rows, columns), and among layouts the one declared
//! first.

use bitnet_codegen::Phase;
use bitnet_profiles::{
    KernelId, KernelSpec, Mode, Objective, Op, Pinning, Role, Run, Sparse, TileConfig,
};

use crate::measure::lengths::{job_positions, model_positions};
use crate::measure::{
    JobMeasurements, LayoutMeasurements, Limits, Measurements, PlacementTiming, SparseMeasurements,
    SparseTiming, Timing, weights,
};
use crate::stats::{Gain, rounded};

/// What was chosen for one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobChoice<'a> {
    /// The job.
    pub job: &'a JobMeasurements,
    /// The layout.
    pub layout: &'a LayoutMeasurements,
    /// For one token.
    pub decode: ChosenKernel<'a>,
    /// For many; none for the head. Of attention the same kernel as for one.
    pub prefill: Option<ChosenKernel<'a>>,
    /// For one token that skips what meets a zero, where that was timed beside this decode kernel.
    pub gather: Option<ChosenGather>,
}

/// A kernel that is given a list of lines, and when it pays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenGather {
    /// The kernel.
    pub kernel: KernelId,
    /// The share of lines needed up to which it is faster than to read all: 0 where it never is.
    pub below: f64,
    /// How many times as fast the job is where a quarter of the lines is needed.
    pub gain: Option<Gain>,
}

/// A kernel that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenKernel<'a> {
    /// What was measured for it.
    pub timing: &'a Timing,
    /// The second best of the same layout, if there is one.
    pub runner_up: Option<&'a Timing>,
}

impl ChosenGather {
    /// As a profile holds it. All candidates are built in.
    pub(crate) fn to_profile(self) -> Sparse {
        Sparse {
            kernel: self.kernel,
            built_in: self.kernel,
            below: rounded(self.below),
            ratio_at_quarter: self.gain.map(|gain| rounded(1.0 / gain.times)),
        }
    }
}

/// Chooses for every job that has a layout left. The same measurements give the same choices.
pub fn choose(measurements: &Measurements, objective: Objective) -> Vec<JobChoice<'_>> {
    let cold = measurements.limits.cold;
    measurements.jobs.iter().filter_map(|job| choose_job(job, objective, cold)).collect()
}

/// The way to run: the untuned one, which is the first, unless another is better beyond the noise.
pub fn placement(timings: &[PlacementTiming], objective: Objective) -> Option<&Run> {
    let untuned = timings.first()?;
    let (of_decode, of_prefill) = weights(objective);
    let (decode_us, prefill_us) =
        (of_decode * untuned.decode.median_us, of_prefill * untuned.prefill.median_us);
    let rated: Vec<Rated<&Run>> = timings
        .iter()
        .map(|PlacementTiming { run, decode, prefill }| Rated {
            item: run,
            cost: decode_us * decode.ratio + prefill_us * prefill.ratio,
            half_width: (decode_us * decode.half_width).hypot(prefill_us * prefill.half_width),
            is_default: *run == untuned.run,
            worthwhile: UNSTEADY,
        })
        .collect();
    // Fewer threads leave more to others.
    settle(&rated, rated.len(), |run| (run.pinning != Pinning::None, !run.huge_pages, run.threads))
        .copied()
}

/// The untuned defaults as choices, of every job for which they were timed.
pub fn defaults(measurements: &Measurements) -> Vec<JobChoice<'_>> {
    measurements.jobs.iter().filter_map(default_of).collect()
}

fn default_of(job: &JobMeasurements) -> Option<JobChoice<'_>> {
    job.layouts.iter().find_map(|layout| {
        let chosen = |phase, id: KernelId| {
            let timing = layout.timings(phase).iter().find(|timing| timing.kernel == id)?;
            Some(ChosenKernel { timing, runner_up: None })
        };
        let decode = chosen(Phase::Decode, job.default_decode)?;
        let prefill = match job.default_prefill {
            Some(id) => Some(chosen(Phase::Prefill, id)?),
            None => None,
        };
        Some(JobChoice { job, layout, decode, prefill, gather: None })
    })
}

/// The most that being simpler is worth, where the noise would allow more.
pub(crate) const SIMPLICITY: f64 = 0.01;

/// The least gain for which the default is left: smaller ones do not repeat from one process to the
/// next, as pages lie elsewhere and memory is faster or slower than it was.
const WORTHWHILE: f64 = 0.03;
/// And where what is gained depends on the minute: where only the distance to prefetch from memory
/// differs, or the way to run. On two cores of Zen 5 12 KiB gained 6 % over 8 while memory read 79 GB/s,
/// and lost 3 % while it read 47; pinning gained 9 % once in four runs. A virtual machine changes between
/// such states within minutes.
const UNSTEADY: f64 = 0.1;

/// Something to choose, what it costs, and half the interval of that.
struct Rated<T> {
    item: T,
    cost: f64,
    half_width: f64,
    is_default: bool,
    /// The least gain for which the default is left for it.
    worthwhile: f64,
}

impl<T> Rated<T> {
    /// Whether they differ by no more than so many times what noise makes of it.
    fn ties(&self, other: &Self, times: f64) -> bool {
        (self.cost - other.cost).abs() <= times * self.half_width.hypot(other.half_width)
    }
}

/// How much wider the interval of the best of `tried` is than that of one: the more are tried, the
/// more of them are fast by chance. With 1.96 standard errors for one this is Bonferroni's bound,
/// the quantile of 1 - 0.025 / `tried`, to 1 % (2.87 for 12, 3.29 for 50).
fn luck(tried: usize) -> f64 {
    (1.0 + 0.46 * (tried.max(1) as f64).ln()).sqrt()
}

/// The cheapest of what is left of so many `tried`; the default where that gains nothing worthwhile;
/// else the one that `order` puts first among those that tie with the cheapest, nearly cost as little
/// and, as it does, beat the default. What a broken clock made of a cost does not count.
fn settle<T, K: Ord>(rated: &[Rated<T>], tried: usize, order: impl Fn(&T) -> K) -> Option<&T> {
    let default = rated.iter().find(|rated| rated.is_default);
    let is_sound = |r: &&Rated<T>| r.cost.is_finite() && r.cost >= 0.0 && r.half_width.is_finite();
    let sound = || rated.iter().filter(is_sound);
    let width = luck(tried);
    let Some(best) = sound().min_by(|a, b| a.cost.total_cmp(&b.cost)) else {
        return default.or(rated.first()).map(|rated| &rated.item);
    };
    let beaten = |default: &&Rated<T>, by: &Rated<T>| {
        !default.ties(by, width) && default.cost > (1.0 + by.worthwhile) * by.cost
    };
    if let Some(default) = default.filter(|default| !beaten(default, best)) {
        return Some(&default.item);
    }
    sound()
        .filter(|rated| rated.ties(best, 1.0) && rated.cost <= (1.0 + SIMPLICITY) * best.cost)
        .filter(|rated| default.is_none_or(|default| beaten(&default, rated)))
        .min_by_key(|rated| order(&rated.item))
        .map(|rated| &rated.item)
}

fn choose_job(job: &JobMeasurements, objective: Objective, cold: bool) -> Option<JobChoice<'_>> {
    let (of_decode, of_prefill) = weights(objective);
    let decode_us = of_decode * job.default_us(Phase::Decode);
    let prefill_us = of_prefill * job.default_us(Phase::Prefill);
    // The head has one phase, which counts whatever is weighed.
    let decode_us = if job.default_prefill.is_none() { 1.0 } else { decode_us };
    let rate = |decode: &Timing, prefill: Option<&Timing>| {
        let of_prefill = |value: fn(&Timing) -> f64| prefill.map_or(0.0, |p| prefill_us * value(p));
        (
            decode_us * decode.ratio + of_prefill(|p| p.ratio),
            (decode_us * decode.half_width).hypot(of_prefill(|p| p.half_width)),
        )
    };
    if job.role == Role::Attention {
        let layout = job.layouts.first()?;
        let prefill_of = |decode: &Timing| {
            layout.prefill.iter().find(|t| t.kernel == decode.kernel && t.finalist)
        };
        let both = layout.decode.iter().filter(|timing| timing.finalist);
        let both: Vec<Rated<(&Timing, &Timing)>> = both
            .filter_map(|decode| Some((decode, prefill_of(decode)?)))
            .map(|(decode, prefill)| {
                let (cost, half_width) = rate(decode, Some(prefill));
                let is_default = decode.kernel == job.default_decode;
                let worthwhile = WORTHWHILE;
                Rated { item: (decode, prefill), cost, half_width, is_default, worthwhile }
            })
            .collect();
        let &(decode, prefill) =
            settle(&both, layout.decode.len(), |(decode, _)| simplicity(&decode.kernel))?;
        let others = || both.iter().filter(|rated| rated.item.0.kernel != decode.kernel);
        let second = others().min_by(|a, b| a.cost.total_cmp(&b.cost)).map(|rated| rated.item);
        return Some(JobChoice {
            job,
            layout,
            decode: ChosenKernel { timing: decode, runner_up: second.map(|(decode, _)| decode) },
            prefill: Some(ChosenKernel {
                timing: prefill,
                runner_up: second.map(|(_, prefill)| prefill),
            }),
            gather: None,
        });
    }
    let layout_of = |kernel: &KernelId| match kernel.op {
        Op::Ternary(layout) => Some(layout),
        _ => None,
    };
    let rated = |layout| {
        let timings = |phase| LayoutMeasurements::timings(layout, phase);
        let decode = choose_kernel(timings(Phase::Decode), &job.default_decode, cold)?;
        let prefill = match &job.default_prefill {
            Some(default) => Some(choose_kernel(timings(Phase::Prefill), default, cold)?),
            None => None,
        };
        let (cost, half_width) = rate(decode.timing, prefill.map(|prefill| prefill.timing));
        Some(Rated {
            item: JobChoice { job, layout, decode, prefill, gather: None },
            cost,
            half_width,
            is_default: layout.layout == layout_of(&job.default_decode),
            worthwhile: WORTHWHILE,
        })
    };
    let tried = job.layouts.iter().map(|l| l.decode.len() + l.prefill.len()).sum();
    let rated: Vec<Rated<JobChoice<'_>>> = job.layouts.iter().filter_map(rated).collect();
    let choice = *settle(&rated, tried, |choice| choice.layout.layout)?;
    let dense = choice.decode.timing.kernel;
    let sparse = job.sparse.as_ref().filter(|sparse| sparse.dense == dense);
    Some(JobChoice { gather: sparse.and_then(|sparse| choose_gather(sparse, cold)), ..choice })
}

/// The kernel that skips, and up to where.
fn choose_gather(measured: &SparseMeasurements, cold: bool) -> Option<ChosenGather> {
    let of = |kernel: KernelId| {
        measured
            .timings
            .iter()
            .filter(move |own| own.timing.kernel == kernel && own.timing.finalist)
    };
    let mut kernels: Vec<KernelId> = measured.timings.iter().map(|t| t.timing.kernel).collect();
    kernels.dedup();
    // Who was timed at fewer densities than others was cut, or there was no time left.
    let most = kernels.iter().map(|&kernel| of(kernel).count()).max()?;
    let tried = kernels.len();
    kernels.retain(|&kernel| most > 0 && of(kernel).count() == most);
    let rate = |&kernel: &KernelId| {
        let mean = |value: &dyn Fn(&Timing) -> f64| {
            of(kernel).map(|own| value(&own.timing)).sum::<f64>() / most as f64
        };
        Rated {
            item: kernel,
            cost: mean(&|timing| timing.ratio.min(1.0)),
            half_width: mean(&|timing| timing.half_width),
            is_default: kernel == measured.default,
            worthwhile: worthwhile(&kernel, &measured.default, cold),
        }
    };
    let rated: Vec<Rated<KernelId>> = kernels.iter().map(rate).collect();
    let &kernel = settle(&rated, tried, simplicity)?;
    let mut own: Vec<&SparseTiming> = of(kernel).collect();
    own.sort_by(|a, b| a.density.total_cmp(&b.density));
    let upper = own.iter().map(|own| (own.density, own.timing.ratio + own.timing.half_width));
    let quarter = own.iter().find(|own| own.density == 0.25).map(|own| &own.timing);
    let gain = quarter.map(|timing| Gain::of(timing.ratio, timing.half_width));
    Some(ChosenGather { kernel, below: break_even(&upper.collect::<Vec<_>>()), gain })
}

/// The density up to which a ratio of times is at most 1, 0 to 1: by straight lines between the points,
/// which are in order, and beyond the last as steep as before. 0 where already the first is above 1, or
/// a number is none.
fn break_even(points: &[(f64, f64)]) -> f64 {
    let crossing = |(from, low): (f64, f64), (to, high): (f64, f64)| {
        from + (to - from) * (1.0 - low) / (high - low)
    };
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return 0.0 };
    let is_sound = points.iter().all(|(density, ratio)| density.is_finite() && ratio.is_finite());
    if !is_sound || first.1 > 1.0 {
        return 0.0;
    }
    let crossed = points.windows(2).find(|pair| pair[1].1 > 1.0);
    let found = match crossed {
        Some(pair) => crossing(pair[0], pair[1]),
        None => {
            let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0);
            let before = points.iter().rev().nth(1).copied().unwrap_or(first);
            // A last step that noise made flat promises nothing.
            let steepest = slope(before, last).max(slope(first, last));
            if steepest > 0.0 { last.0 + (1.0 - last.1) / steepest } else { last.0 }
        }
    };
    found.clamp(0.0, 1.0)
}

/// The least gain for which a default is left for a kernel.
fn worthwhile(kernel: &KernelId, default: &KernelId, cold: bool) -> f64 {
    let tile = TileConfig { prefetch: default.tile.prefetch, ..kernel.tile };
    let differs_by_distance = KernelSpec { tile, ..**kernel } == **default;
    if cold && differs_by_distance { UNSTEADY } else { WORTHWHILE }
}

/// Simpler tiles first: less prefetching, unrolling, fewer activation rows, rows, columns. Of equal
/// tiles the one for any shape.
fn simplicity(kernel: &KernelId) -> impl Ord + use<> {
    let tile = kernel.tile;
    (tile.prefetch, tile.unroll, tile.tokens, tile.rows, tile.cols, kernel.shape, *kernel)
}

fn choose_kernel<'a>(
    timings: &'a [Timing],
    default: &KernelId,
    cold: bool,
) -> Option<ChosenKernel<'a>> {
    let finalists: Vec<Rated<&'a Timing>> = timings
        .iter()
        .filter(|timing| timing.finalist)
        .map(|timing| Rated {
            item: timing,
            cost: timing.ratio,
            half_width: timing.half_width,
            is_default: timing.kernel == *default,
            worthwhile: worthwhile(&timing.kernel, default, cold),
        })
        .collect();
    let timing = *settle(&finalists, timings.len(), |timing| simplicity(&timing.kernel))?;
    let others = finalists.iter().map(|rated| rated.item).filter(|t| t.kernel != timing.kernel);
    let runner_up = others.min_by(|a, b| a.ratio.total_cmp(&b.ratio));
    Some(ChosenKernel { timing, runner_up })
}

impl JobChoice<'_> {
    /// What is skipped, and how.
    pub fn mode(&self) -> Mode {
        match self.gather.map(|gather| gather.kernel.op) {
            Some(Op::Rows(_)) => Mode::SkipRows,
            Some(Op::Columns(_)) => Mode::Axpy,
            _ => Mode::Dense,
        }
    }

    /// What was chosen for a phase.
    pub fn chosen(&self, phase: Phase) -> Option<ChosenKernel<'_>> {
        match phase {
            Phase::Decode => Some(self.decode),
            Phase::Prefill => self.prefill,
        }
    }

    /// Speed of a phase over the default's.
    pub fn gain(&self, phase: Phase) -> Option<Gain> {
        self.chosen(phase).map(|chosen| Gain::of(chosen.timing.ratio, chosen.timing.half_width))
    }

    /// The share of the machine's limit that a phase reaches: the time that reading what it reads, at
    /// the rate probed beside it, or the multiply-adds take, whichever is longer, over the median. Of the head
    /// and attention only what they read counts; prefill of attention has no such limit.
    pub fn share_of_limit(&self, limits: &Limits, phase: Phase) -> Option<f64> {
        let timing = self.chosen(phase)?.timing;
        let read_us = self.layout.bytes as f64 / (self.layout.limit_gb_per_s * 1e3);
        let multiply_us = match (self.layout.layout, phase) {
            (Some(_), _) => {
                let weights: usize = self.job.parts.iter().map(|part| part.weights()).sum();
                let tokens = if phase == Phase::Decode { 1 } else { self.job.tokens };
                let all = weights as f64 * f64::from(tokens);
                limits.limit_gmac_per_s.map_or(0.0, |rate| all / (rate * 1e3))
            }
            (None, Phase::Decode) => 0.0,
            (None, Phase::Prefill) => return None,
        };
        Some(read_us.max(multiply_us) / timing.median_us.max(1e-3))
    }
}

/// What a phase takes in all, of the jobs that it has: those of one token of a [`Comparison`](crate::measure::Comparison).
fn of_phase<'a>(
    choices: &'a [JobChoice<'_>],
    phase: Phase,
) -> impl Iterator<Item = (f64, &'a Timing)> {
    choices.iter().filter_map(move |choice| {
        let count = f64::from(choice.job.count) * context(choice.job, phase);
        Some((count * choice.job.default_us(phase), choice.chosen(phase)?.timing))
    })
}

/// The time of a job in a [`Comparison`](crate::measure::Comparison) over that in its tournament: attention takes as long as there
/// are positions to attend to, of which the model itself has fewer.
fn context(job: &JobMeasurements, phase: Phase) -> f64 {
    let tokens = if phase == Phase::Decode { 1 } else { job.tokens };
    match job.role {
        Role::Attention => model_positions(phase) / job_positions(tokens),
        _ => 1.0,
    }
}

/// Time of all jobs for one token of a phase in microseconds: chosen, and by default. Without what
/// lies between the jobs, and with as many positions before it as in a [`Comparison`](crate::measure::Comparison).
pub fn per_token_us(choices: &[JobChoice<'_>], phase: Phase) -> (f64, f64) {
    of_phase(choices, phase).fold((0.0, 0.0), |(chosen, default), (all, timing)| {
        (chosen + all * timing.ratio, default + all)
    })
}

/// What a phase asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// 10^9 bytes that one token of decode reads, or 10^9 multiply-adds of weights that one of
    /// prefill takes.
    pub per_token: f64,
    /// 10^9 of them per second that the machine can do.
    pub limit: f64,
}

impl Demand {
    /// Of decode: the packed weights of the layouts chosen, the head, and the keys and values as
    /// far as a [`Comparison`](crate::measure::Comparison) goes, against the read bandwidth. Of prefill: the weights, against the
    /// rate of multiply-adds, where that is known; the rest is little.
    pub fn of(choices: &[JobChoice<'_>], limits: &Limits, phase: Phase) -> Option<Self> {
        let sum = |value: &dyn Fn(&JobChoice<'_>) -> f64| -> f64 {
            choices.iter().map(|choice| f64::from(choice.job.count) * value(choice)).sum()
        };
        let (all, limit) = match phase {
            Phase::Decode => {
                let bytes = |choice: &JobChoice<'_>| {
                    choice.layout.bytes as f64 * context(choice.job, phase)
                };
                (sum(&bytes), limits.limit_gb_per_s)
            }
            Phase::Prefill => {
                let weights = |choice: &JobChoice<'_>| match choice.layout.layout {
                    Some(_) => choice.job.parts.iter().map(|part| part.weights() as f64).sum(),
                    None => 0.0,
                };
                (sum(&weights), limits.limit_gmac_per_s?)
            }
        };
        (all > 0.0 && limit > 0.0).then_some(Self { per_token: all / 1e9, limit })
    }

    /// The share of the limit that so many tokens per second take.
    pub fn share(&self, tokens_per_s: f64) -> f64 {
        self.per_token * tokens_per_s / self.limit
    }
}

/// What the kernels alone make of a phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Tokens per second by default.
    pub before: f64,
    /// Tokens per second with the choices, run as the profile says.
    pub after: f64,
    /// How many times as fast.
    pub gain: Gain,
}

impl Prediction {
    /// From the jobs of one token, and what the setting of `run` showed.
    pub fn of(
        choices: &[JobChoice<'_>],
        placements: &[PlacementTiming],
        run: &Run,
        phase: Phase,
    ) -> Option<Self> {
        let (chosen, default) = per_token_us(choices, phase);
        let placement = placements.iter().find(|placement| placement.run == *run);
        let (times, half_width) = placement.map_or((1.0, 0.0), |placement| match phase {
            Phase::Decode => (placement.decode.ratio, placement.decode.half_width),
            Phase::Prefill => (placement.prefill.ratio, placement.prefill.half_width),
        });
        let (ratio, own) = total_ratio(choices, phase);
        (chosen > 0.0).then(|| Self {
            before: 1e6 / default,
            after: 1e6 / (chosen * times),
            gain: Gain::of(ratio * times, (own * times).hypot(ratio * half_width)),
        })
    }
}

/// The share of the machine's limit that the jobs of a phase reach together, of those that have
/// one: see [`JobChoice::share_of_limit`].
pub fn total_share_of_limit(
    choices: &[JobChoice<'_>],
    limits: &Limits,
    phase: Phase,
) -> Option<f64> {
    let shares = choices.iter().filter_map(|choice| {
        let count = f64::from(choice.job.count) * context(choice.job, phase);
        let us = count * choice.chosen(phase)?.timing.median_us;
        Some((us * choice.share_of_limit(limits, phase)?, us))
    });
    let (at_limit, all) = shares.fold((0.0, 0.0), |sum, us| (sum.0 + us.0, sum.1 + us.1));
    (all > 0.0).then(|| at_limit / all)
}

/// Time of all jobs of a phase over the default's, and half its interval.
fn total_ratio(choices: &[JobChoice<'_>], phase: Phase) -> (f64, f64) {
    let (chosen, default) = per_token_us(choices, phase);
    let half_width =
        of_phase(choices, phase).fold(0.0, |sum: f64, (all, t)| sum.hypot(all * t.half_width));
    if default > 0.0 { (chosen / default, half_width / default) } else { (1.0, 0.0) }
}

/// The best kernel of the same layout that every build holds; the chosen one where that is built in.
pub(crate) fn built_in<'a>(timings: &'a [Timing], chosen: &'a Timing) -> &'a Timing {
    let held = timings.iter().filter(|timing| timing.kernel.shape.is_none());
    let best = held.min_by(|a, b| {
        let key = |timing: &Timing| (timing.kernel != chosen.kernel, !timing.finalist);
        key(a).cmp(&key(b)).then(a.ratio.total_cmp(&b.ratio))
    });
    best.unwrap_or(chosen)
}

/// How many times as fast all jobs of a phase are as with the best built-in kernels of the same
/// layouts.
pub fn gain_of_made(choices: &[JobChoice<'_>], phase: Phase) -> Gain {
    let (mut own, mut other, mut width) = (0.0, 0.0, 0.0f64);
    for choice in choices {
        let Some(chosen) = choice.chosen(phase).map(|chosen| chosen.timing) else { continue };
        let all =
            f64::from(choice.job.count) * context(choice.job, phase) * choice.job.default_us(phase);
        let held = built_in(choice.layout.timings(phase), chosen);
        own += all * chosen.ratio;
        other += all * held.ratio;
        if held.kernel != chosen.kernel {
            width = width.hypot(all * chosen.half_width.hypot(held.half_width));
        }
    }
    if other > 0.0 { Gain::of(own / other, width / other) } else { Gain::of(1.0, 0.0) }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::{Layout, Role, Shape};

    use super::*;

    fn timing(kernel: &str, ratio: f64, half_width: f64) -> Timing {
        Timing {
            kernel: kernel.parse().unwrap(),
            samples: 20,
            min_us: 90.0 * ratio,
            median_us: 100.0 * ratio,
            mad_us: 1.0,
            ratio,
            half_width,
            finalist: true,
        }
    }

    const D: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0";
    const D_U1: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p0";
    const D_U4: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0";
    const D_P: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p4096";
    const P: &str = "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0";
    const P_N12: &str = "i2_s_t16__avx512vnni__any__r32_c0_n12_u1_p0";
    const D_T32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p0";
    const P_T32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n8_u1_p0";

    /// One job of one matrix: the default takes 100 us for a token, and 400 us for 32.
    fn measurements(layouts: Vec<(Layout, Vec<Timing>, Vec<Timing>)>) -> Measurements {
        let layout = |(layout, decode, prefill)| LayoutMeasurements {
            layout: Some(layout),
            bytes: 2_000_000,
            limit_gb_per_s: 40.0,
            decode,
            prefill,
        };
        Measurements {
            limits: Limits {
                threads: 2,
                read_gb_per_s: 40.0,
                limit_gb_per_s: 40.0,
                limit_gmac_per_s: Some(800.0),
                cold: true,
            },
            noise: 0.01,
            disturbed: false,
            excluded: Vec::new(),
            jobs: vec![JobMeasurements {
                role: Role::Down,
                parts: vec![Shape::new(2000, 4000)],
                count: 10,
                default_decode: D.parse().unwrap(),
                default_prefill: Some(P.parse().unwrap()),
                default_decode_us: 100.0,
                default_prefill_us: 400.0,
                tokens: 32,
                layouts: layouts.into_iter().map(layout).collect(),
                sparse: None,
            }],
        }
    }

    fn decode_of(timings: Vec<Timing>) -> String {
        let measurements = measurements(vec![(Layout::I2sT16, timings, vec![timing(P, 1.0, 0.0)])]);
        choose(&measurements, Objective::Balanced)[0].decode.timing.kernel.to_string()
    }

    #[test]
    fn the_fastest_wins_and_ties_go_to_the_default_then_to_the_simpler() {
        let default = || timing(D, 1.0, 0.0);
        let clear = vec![timing(D_U1, 0.97, 0.01), default(), timing(D_U4, 0.90, 0.01)];
        assert_eq!(decode_of(clear), D_U4);
        let tied_with_default = vec![default(), timing(D_U4, 0.99, 0.02)];
        assert_eq!(decode_of(tied_with_default), D);
        let tied = vec![
            default(),
            timing(D_P, 0.900, 0.01),
            timing(D_U4, 0.902, 0.01),
            timing(D_U1, 0.908, 0.01),
        ];
        assert_eq!(decode_of(tied), D_U1);
        // The simplest ties with the best, but with the default as well: it proves nothing.
        let vague = vec![default(), timing(D_U4, 0.90, 0.01), timing(D_U1, 0.97, 0.08)];
        assert_eq!(decode_of(vague), D_U4);
        // Being simpler is not worth a tenth, however little is known.
        let unknown = vec![timing(D_U4, 0.90, 0.5), timing(D_U1, 1.00, 0.01)];
        assert_eq!(decode_of(unknown), D_U4);
    }

    #[test]
    fn another_distance_from_memory_must_gain_much() {
        let chosen = |kernel: &str, ratio, cold| {
            let decode = vec![timing(D, 1.0, 0.0), timing(kernel, ratio, 0.002)];
            let mut measurements =
                measurements(vec![(Layout::I2sT16, decode, vec![timing(P, 1.0, 0.0)])]);
            measurements.limits.cold = cold;
            choose(&measurements, Objective::Balanced)[0].decode.timing.kernel.to_string()
        };
        for (kernel, ratio, cold, expected) in [
            (D_P, 0.93, true, D),
            (D_P, 0.93, false, D_P),
            (D_P, 0.89, true, D_P),
            (D_U4, 0.93, true, D_U4),
            (D_U4, 0.98, true, D),
        ] {
            assert_eq!(chosen(kernel, ratio, cold), expected, "{kernel} {ratio} {cold}");
        }
    }

    #[test]
    fn what_was_cut_is_not_chosen() {
        let cut = Timing { finalist: false, ..timing(D_U1, 0.5, 0.3) };
        assert_eq!(decode_of(vec![cut, timing(D, 1.0, 0.0), timing(D_U4, 0.9, 0.01)]), D_U4);
    }

    /// A clock that stands still, jumps or goes backwards.
    #[test]
    fn t12_times_that_cannot_be_break_nothing() {
        let absurd = [0.0, 1e-3, 1e300, f64::MAX, f64::INFINITY, f64::NAN, -1.0];
        for &ratio in &absurd {
            for &half_width in &absurd {
                let odd = timing(D_U4, ratio, half_width);
                let decode = vec![timing(D, 1.0, 0.0), odd.clone(), timing(D_U1, 0.9, 0.01)];
                let prefill = vec![timing(P, ratio, half_width), timing(P_N12, ratio, half_width)];
                let mut measurements = measurements(vec![(Layout::I2sT16, decode, prefill)]);
                for us in absurd {
                    measurements.jobs[0].default_decode_us = us;
                    measurements.jobs[0].default_prefill_us = us;
                    for &objective in Objective::ALL {
                        let choices = choose(&measurements, objective);
                        for phase in [Phase::Decode, Phase::Prefill] {
                            let _ = per_token_us(&choices, phase);
                            let _ = total_ratio(&choices, phase);
                            let _ = total_share_of_limit(&choices, &measurements.limits, phase);
                        }
                    }
                }
                // It wins if it is told from the default by something worthwhile, and only then.
                let won = decode_of(vec![timing(D, 1.0, 0.0), odd]);
                let told = ratio >= 0.0 && 1.0 - ratio > luck(2) * half_width.abs();
                let told = told && 1.0 > (1.0 + WORTHWHILE) * ratio;
                assert_eq!(won == D_U4, told, "{ratio} {half_width}: {won}");
            }
        }
    }

    #[test]
    fn a_layout_is_chosen_with_both_its_kernels() {
        // 32 rows: a tenth slower for a token, a third faster for a prompt.
        let measurements = measurements(vec![
            (Layout::I2sT16, vec![timing(D, 1.0, 0.0)], vec![timing(P, 1.0, 0.0)]),
            (Layout::I2sT32, vec![timing(D_T32, 1.1, 0.01)], vec![timing(P_T32, 0.67, 0.01)]),
        ]);
        let layout = |objective| choose(&measurements, objective)[0].layout.layout.unwrap();
        assert_eq!(layout(Objective::Decode), Layout::I2sT16);
        assert_eq!(layout(Objective::Prefill), Layout::I2sT32);
        // A token costs 100 and 110, four prompt tokens 50 and 33.5.
        assert_eq!(layout(Objective::Balanced), Layout::I2sT32);
        // Both kernels of a choice read its layout.
        for objective in Objective::ALL {
            let choice = choose(&measurements, *objective)[0];
            let op = Op::Ternary(choice.layout.layout.unwrap());
            let prefill = choice.prefill.unwrap();
            assert_eq!((choice.decode.timing.kernel.op, prefill.timing.kernel.op), (op, op));
        }
    }

    #[test]
    fn tied_layouts_keep_the_default() {
        let measurements = measurements(vec![
            (Layout::I2sT32, vec![timing(D_T32, 0.99, 0.02)], vec![timing(P_T32, 0.99, 0.02)]),
            (Layout::I2sT16, vec![timing(D, 1.0, 0.0)], vec![timing(P, 1.0, 0.0)]),
        ]);
        for &objective in Objective::ALL {
            let choice = choose(&measurements, objective)[0];
            assert_eq!(choice.layout.layout, Some(Layout::I2sT16));
        }
    }

    #[test]
    fn the_runner_up_is_the_second_best_of_the_layout() {
        let measurements = measurements(vec![(
            Layout::I2sT16,
            vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.01), timing(D_U1, 0.9, 0.01)],
            vec![timing(P, 1.0, 0.0)],
        )]);
        let choice = choose(&measurements, Objective::Balanced)[0];
        assert_eq!(choice.decode.runner_up.unwrap().kernel.to_string(), D_U1);
        assert_eq!(choice.prefill.unwrap().runner_up, None);
    }

    const ROWS: &str = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p16";
    const ROWS_P8: &str = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p8";
    const ROWS_R2: &str = "rows_t5_l64__avx512vbmi__any__r2_c0_n1_u1_p16";
    const DENSITIES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

    /// What was chosen where kernels showed these ratios, all with as wide an interval.
    fn gather(found: &[(&str, [f64; 4])], half_width: f64) -> Option<ChosenGather> {
        let timings = found.iter().flat_map(|(kernel, ratios)| {
            let timing = move |ratio| timing(kernel, ratio, half_width);
            DENSITIES
                .into_iter()
                .zip(ratios)
                .map(move |(density, &ratio)| SparseTiming { density, timing: timing(ratio) })
        });
        let measured = SparseMeasurements {
            dense: D.parse().unwrap(),
            default: ROWS.parse().unwrap(),
            timings: timings.collect(),
        };
        choose_gather(&measured, true)
    }

    #[test]
    fn what_skips_serves_up_to_where_reading_all_is_as_fast() {
        for (ratios, half_width, below) in [
            // Between two densities, in a straight line.
            ([0.2, 0.4, 0.8, 1.2], 0.0, 0.625),
            // Noise is against it.
            ([0.2, 0.4, 0.8, 1.2], 0.1, 0.5625),
            ([0.2, 0.4, 0.95, 1.2], 0.1, 0.25 + 0.25 * 0.5 / 0.55),
            // The first crossing counts.
            ([0.2, 1.2, 0.8, 1.2], 0.0, 0.1 + 0.15 * 0.8),
            // Beyond the last as steep as before, and no more than all.
            ([0.4, 0.5, 0.6, 0.7], 0.0, 1.0),
            ([0.2, 0.4, 0.6, 0.9], 0.0, 0.75 + 0.1 / 1.2),
            // A last step that is flat by chance: as steep as all of it.
            ([0.3, 0.8, 0.95, 0.95], 0.0, 0.75 + 0.05 / 1.0),
            // It pays nowhere, or nobody knows.
            ([1.0001, 1.2, 1.5, 2.0], 0.0, 0.0),
            ([0.9, 1.2, 1.5, 2.0], 0.2, 0.0),
            ([f64::NAN, 0.5, 0.6, 0.7], 0.0, 0.0),
        ] {
            let found = gather(&[(ROWS, ratios)], half_width).unwrap();
            assert_eq!(found.kernel.to_string(), ROWS);
            assert!((found.below - below).abs() < 1e-9, "{ratios:?} {half_width}: {found:?}");
            let quarter = found.gain.unwrap().times;
            assert!((quarter - 1.0 / ratios[1]).abs() < 1e-9, "{quarter}");
        }
        assert_eq!(gather(&[], 0.01), None);
    }

    #[test]
    fn of_what_skips_the_best_on_average_is_taken_and_noise_is_a_tie() {
        let default = (ROWS, [0.5, 0.6, 0.8, 1.1]);
        let kernel = |others: &[(&str, [f64; 4])], half_width| {
            let all: Vec<_> = [default].into_iter().chain(others.iter().copied()).collect();
            gather(&all, half_width).unwrap().kernel.to_string()
        };
        let better = [0.4, 0.5, 0.65, 0.9];
        assert_eq!(kernel(&[(ROWS_R2, better)], 0.005), ROWS_R2);
        assert_eq!(kernel(&[(ROWS_R2, better)], 0.2), ROWS);
        // Where reading all is faster anyway it may be as slow as it likes.
        assert_eq!(kernel(&[(ROWS_R2, [0.4, 0.5, 0.65, 9.0])], 0.005), ROWS_R2);
        // Another distance alone must gain more than the weather may take away.
        assert_eq!(kernel(&[(ROWS_P8, [0.48, 0.57, 0.77, 1.0])], 0.001), ROWS);
        assert_eq!(kernel(&[(ROWS_P8, better)], 0.001), ROWS_P8);
        // One that was timed at some densities only is none.
        let mut measured = SparseMeasurements {
            dense: D.parse().unwrap(),
            default: ROWS.parse().unwrap(),
            timings: vec![SparseTiming { density: 0.25, timing: timing(ROWS_R2, 0.1, 0.001) }],
        };
        for (density, ratio) in DENSITIES.into_iter().zip(default.1) {
            let timing = timing(ROWS, ratio, 0.001);
            measured.timings.push(SparseTiming { density, timing });
        }
        assert_eq!(choose_gather(&measured, true).unwrap().kernel.to_string(), ROWS);
        measured.timings.iter_mut().for_each(|own| own.timing.finalist = false);
        assert_eq!(choose_gather(&measured, true), None);
    }

    #[test]
    fn what_skips_belongs_to_the_dense_kernel_it_was_timed_beside() {
        let decode = vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.01)];
        let mut all = measurements(vec![(Layout::I2sT16, decode, vec![timing(P, 1.0, 0.0)])]);
        let of = |dense: &str| SparseMeasurements {
            dense: dense.parse().unwrap(),
            default: ROWS.parse().unwrap(),
            timings: vec![SparseTiming { density: 0.25, timing: timing(ROWS, 0.5, 0.01) }],
        };
        for (dense, mode) in [(D_U4, Mode::SkipRows), (D, Mode::Dense)] {
            all.jobs[0].sparse = Some(of(dense));
            let choice = choose(&all, Objective::Balanced)[0];
            assert_eq!(choice.mode(), mode);
            assert_eq!(choice.gather.is_some(), mode == Mode::SkipRows);
            assert_eq!(defaults(&all)[0].gather, None);
        }
    }

    #[test]
    fn a_job_without_layouts_is_left_out() {
        assert!(choose(&measurements(vec![]), Objective::Balanced).is_empty());
    }

    #[test]
    fn attention_has_one_kernel_and_the_head_no_prefill() {
        const A1: &str = "attention_f16__avx512__any__r1_c256_n1_u1_p0";
        const A4: &str = "attention_f16__avx512__any__r4_c256_n1_u1_p0";
        const A8: &str = "attention_f16__avx512__any__r8_c256_n1_u1_p0";
        let default = timing(A8, 1.0, 0.0);
        let mut attention = measurements(vec![(
            Layout::I2sT16,
            vec![default.clone(), timing(A4, 0.8, 0.01), timing(A1, 0.7, 0.01)],
            vec![default.clone(), timing(A4, 0.9, 0.01), timing(A1, 1.6, 0.01)],
        )]);
        let job = &mut attention.jobs[0];
        (job.role, job.layouts[0].layout) = (Role::Attention, None);
        (job.default_decode, job.default_prefill) = (default.kernel, Some(default.kernel));
        let kernels = |objective| {
            let choice = choose(&attention, objective)[0];
            let prefill = choice.prefill.unwrap().timing.kernel;
            assert_eq!(choice.decode.timing.kernel, prefill);
            assert_eq!(choice.share_of_limit(&attention.limits, Phase::Prefill), None);
            prefill.to_string()
        };
        assert_eq!(kernels(Objective::Decode), A1);
        assert_eq!(kernels(Objective::Prefill), A4);
        assert_eq!(kernels(Objective::Balanced), A4);
        // Timed after 512 positions, run after 128 and none.
        let choices = choose(&attention, Objective::Decode);
        for (phase, us, comparison, timed) in
            [(Phase::Decode, 1000.0, 144.5, 513.0), (Phase::Prefill, 125.0, 64.5, 512.0 + 16.5)]
        {
            let (_, default) = per_token_us(&choices, phase);
            assert!((default - us * comparison / timed).abs() < 1e-9, "{phase:?} {default}");
        }

        let head = |rows| format!("head_q6_k__avx512vnni__any__r{rows}_c0_n1_u1_p0");
        let timings = vec![timing(&head(1), 1.0, 0.0), timing(&head(4), 0.9, 0.01)];
        let mut measured = measurements(vec![(Layout::I2sT16, timings, vec![])]);
        let job = &mut measured.jobs[0];
        (job.role, job.layouts[0].layout) = (Role::LmHead, None);
        (job.default_decode, job.default_prefill) = (head(1).parse().unwrap(), None);
        job.default_prefill_us = 0.0;
        for &objective in Objective::ALL {
            let choices = choose(&measured, objective);
            assert_eq!(choices[0].decode.timing.kernel.to_string(), head(4), "{objective}");
            assert!(choices[0].prefill.is_none());
            assert_eq!(per_token_us(&choices, Phase::Prefill), (0.0, 0.0));
        }
    }

    #[test]
    fn the_untuned_setting_stays_unless_another_is_better() {
        use crate::measure::PhaseTiming;
        let timing = |threads, decode: f64, prefill: f64| {
            let phase = |ratio| PhaseTiming { median_us: 100.0 * ratio, ratio, half_width: 0.02 };
            let run = Run { threads, pinning: Pinning::None, huge_pages: true };
            PlacementTiming { run, decode: phase(decode), prefill: phase(prefill) }
        };
        let threads = |timings: &[PlacementTiming], objective| {
            placement(timings, objective).map(|run| run.threads)
        };
        let all = [timing(8, 1.0, 1.0), timing(4, 0.9, 1.9), timing(16, 0.99, 0.9)];
        assert_eq!(threads(&all, Objective::Decode), Some(4));
        assert_eq!(threads(&all, Objective::Prefill), Some(16));
        assert_eq!(threads(&all[..2], Objective::Balanced), Some(8));
        assert_eq!(threads(&all[..1], Objective::Decode), Some(8));
        assert_eq!(threads(&[], Objective::Decode), None);
    }

    #[test]
    fn gains_and_shares() {
        let measurements = measurements(vec![(
            Layout::I2sT16,
            vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.04)],
            vec![timing(P, 1.0, 0.0), timing(P_N12, 0.96, 0.01)],
        )]);
        let choices = choose(&measurements, Objective::Balanced);
        let gain = choices[0].gain(Phase::Decode).unwrap();
        assert!((gain.times - 1.25).abs() < 1e-9 && gain.is_difference());
        assert_eq!(gain.to_string(), "1.25x [1.19, 1.32]");
        assert_eq!(Gain::of(1.0, 0.02).to_string(), "no difference [0.98, 1.02]");
        assert_eq!(Gain::of(0.5, 0.6).to_string(), "too noisy to say");
        assert!(Gain::of(1.1, 0.02).is_difference());
        // 2 MB at 40 GB/s are 50 us, 8 M multiply-adds at 800 G/s are 10 us: of 80 us.
        let share = choices[0].share_of_limit(&measurements.limits, Phase::Decode).unwrap();
        assert!((share - 50.0 / 80.0).abs() < 1e-9, "{share}");
        // 32 tokens: 320 us of 96 us, a clock that cannot be right, shown as it is.
        let share = choices[0].share_of_limit(&measurements.limits, Phase::Prefill).unwrap();
        assert!((share - 320.0 / 96.0).abs() < 1e-9, "{share}");
        assert_eq!(per_token_us(&choices, Phase::Decode), (800.0, 1000.0));
        assert_eq!(per_token_us(&choices, Phase::Prefill), (120.0, 125.0));
        // Of one job, the same as its own.
        let share = total_share_of_limit(&choices, &measurements.limits, Phase::Decode);
        assert!((share.unwrap() - 50.0 / 80.0).abs() < 1e-9, "{share:?}");
        assert_eq!(total_share_of_limit(&[], &measurements.limits, Phase::Decode), None);
        let run = Run { threads: 2, pinning: Pinning::None, huge_pages: true };
        let total = Prediction::of(&choices, &[], &run, Phase::Decode).unwrap();
        assert_eq!((total.before, total.after), (1000.0, 1250.0));
        assert!((total.gain.times - 1.25).abs() < 1e-9 && total.gain.low < 1.25, "{total:?}");
    }
}
