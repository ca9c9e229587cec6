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
//! What lies within the noise (the hypotenuse of two 95 % half-widths) is a tie. The default wins a
//! tie; else the simpler tile does (less prefetching, unrolling, fewer activation rows, rows,
//! columns), and among layouts the one declared first.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Objective};

use crate::measure::{JobMeasurements, LayoutMeasurements, Measurements, Timing};

/// What was chosen for one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice<'a> {
    /// The job.
    pub job: &'a JobMeasurements,
    /// The layout.
    pub layout: &'a LayoutMeasurements,
    /// For one token.
    pub decode: Chosen<'a>,
    /// For many.
    pub prefill: Chosen<'a>,
}

/// A kernel that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen<'a> {
    /// What was measured for it.
    pub timing: &'a Timing,
    /// The second best of the same layout, if there is one.
    pub runner_up: Option<&'a Timing>,
}

/// How many times as fast as something else, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// The best guess; 1 is no difference.
    pub times: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Gain {
    /// From a ratio of times and half its interval.
    pub fn of(ratio: f64, half_width: f64) -> Self {
        let inverse = |ratio: f64| 1.0 / ratio.max(1e-6);
        Self {
            times: inverse(ratio),
            low: inverse(ratio + half_width),
            high: inverse(ratio - half_width),
        }
    }

    /// Whether the interval leaves 1 out.
    pub fn is_difference(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

impl std::fmt::Display for Gain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_difference() {
            write!(f, "{:.2}x [{:.2}, {:.2}]", self.times, self.low, self.high)
        } else {
            write!(f, "no difference [{:.2}, {:.2}]", self.low, self.high)
        }
    }
}

/// Chooses for every job that has a layout left. The same measurements give the same choices.
pub fn choose(measurements: &Measurements, objective: Objective) -> Vec<Choice<'_>> {
    measurements.jobs.iter().filter_map(|job| choose_job(measurements, job, objective)).collect()
}

/// What a token of decode and a token of prefill weigh.
const fn weights(objective: Objective) -> (f64, f64) {
    match objective {
        Objective::Decode => (1.0, 0.0),
        Objective::Prefill => (0.0, 1.0),
        Objective::Balanced => (1.0, 4.0),
    }
}

struct Option_<'a> {
    choice: Choice<'a>,
    cost: f64,
    half_width: f64,
}

fn choose_job<'a>(
    measurements: &'a Measurements,
    job: &'a JobMeasurements,
    objective: Objective,
) -> Option<Choice<'a>> {
    let (of_decode, of_prefill) = weights(objective);
    let decode_unit = of_decode * job.default_decode_us;
    let prefill_unit = of_prefill * job.default_prefill_us / f64::from(job.tokens.max(1));
    let options = job.layouts.iter().filter_map(|layout| {
        let decode = choose_kernel(&layout.decode, &measurements.default_decode)?;
        let prefill = choose_kernel(&layout.prefill, &measurements.default_prefill)?;
        let (d, p) = (decode.timing, prefill.timing);
        Some(Option_ {
            choice: Choice { job, layout, decode, prefill },
            cost: decode_unit * d.ratio + prefill_unit * p.ratio,
            half_width: (decode_unit * d.half_width).hypot(prefill_unit * p.half_width),
        })
    });
    let options: Vec<Option_<'_>> = options.collect();
    let best = options.iter().min_by(|a, b| a.cost.total_cmp(&b.cost))?;
    let is_default = |option: &Option_<'_>| {
        option.choice.layout.decode.iter().any(|t| t.kernel == measurements.default_decode)
    };
    options
        .iter()
        .filter(|option| option.cost - best.cost <= option.half_width.hypot(best.half_width))
        .min_by_key(|option| (!is_default(option), option.choice.layout.layout))
        .map(|option| option.choice)
}

fn choose_kernel<'a>(timings: &'a [Timing], default: &KernelId) -> Option<Chosen<'a>> {
    let finalists = || timings.iter().filter(|timing| timing.finalist);
    let best = finalists().min_by(|a, b| a.ratio.total_cmp(&b.ratio))?;
    let tied = finalists()
        .filter(|timing| timing.ratio - best.ratio <= timing.half_width.hypot(best.half_width));
    let chosen = tied.min_by_key(|timing| {
        let tile = timing.kernel.tile;
        let simple = (tile.prefetch, tile.unroll, tile.tokens, tile.rows, tile.cols);
        (timing.kernel != *default, simple, timing.kernel)
    })?;
    let others = finalists().filter(|timing| timing.kernel != chosen.kernel);
    let runner_up = others.min_by(|a, b| a.ratio.total_cmp(&b.ratio));
    Some(Chosen { timing: chosen, runner_up })
}

impl Choice<'_> {
    /// What was chosen for a phase.
    pub fn chosen(&self, phase: Phase) -> Chosen<'_> {
        match phase {
            Phase::Decode => self.decode,
            Phase::Prefill => self.prefill,
        }
    }

    /// Speed of a phase over the default's.
    pub fn gain(&self, phase: Phase) -> Gain {
        let timing = self.chosen(phase).timing;
        Gain::of(timing.ratio, timing.half_width)
    }

    /// The share of the machine's limit that a phase reaches: the time that reading the packed
    /// weights or the multiply-adds take at the probed rates, whichever is longer, over the median.
    pub fn share_of_limit(&self, measurements: &Measurements, phase: Phase) -> f64 {
        let weights: usize = self.job.parts.iter().map(|part| part.weights()).sum();
        let tokens = if phase == Phase::Decode { 1 } else { self.job.tokens };
        let read_us = self.layout.bytes as f64 / (measurements.limit_gb_per_s * 1e3);
        let multiply_us = measurements
            .limit_gmac_per_s
            .map_or(0.0, |rate| weights as f64 * f64::from(tokens) / (rate * 1e3));
        read_us.max(multiply_us) / self.chosen(phase).timing.median_us.max(1e-3)
    }
}

/// Time of all jobs of one token in microseconds, chosen and by default.
pub fn per_token(choices: &[Choice<'_>], phase: Phase) -> (f64, f64) {
    choices.iter().fold((0.0, 0.0), |(chosen, default), choice| {
        let job = choice.job;
        let unit = f64::from(job.count)
            * match phase {
                Phase::Decode => job.default_decode_us,
                Phase::Prefill => job.default_prefill_us / f64::from(job.tokens.max(1)),
            };
        (chosen + unit * choice.chosen(phase).timing.ratio, default + unit)
    })
}

/// Speed of all jobs of one token over the default's.
pub fn total_gain(choices: &[Choice<'_>], phase: Phase) -> Gain {
    let (chosen, default) = per_token(choices, phase);
    if default == 0.0 {
        return Gain::of(1.0, 0.0);
    }
    let variance: f64 = choices
        .iter()
        .map(|choice| {
            let job = choice.job;
            let unit = f64::from(job.count)
                * match phase {
                    Phase::Decode => job.default_decode_us,
                    Phase::Prefill => job.default_prefill_us / f64::from(job.tokens.max(1)),
                };
            (unit * choice.chosen(phase).timing.half_width).powi(2)
        })
        .sum();
    Gain::of(chosen / default, variance.sqrt() / default)
}
