//! Totals of all choices: time, demand on the machine, and gain of a phase.

use bitnet_codegen::Phase;
use bitnet_profiles::{Role, Run};

use super::choice::JobChoice;
use crate::measure::lengths::{job_positions, model_positions};
use crate::measure::{JobMeasurements, Limits, PlacementTiming, Timing};
use crate::stats::Gain;

/// Lists the default's time per token of each job, in microseconds, with the timing of the choice;
/// attention with as many positions as in a [`Comparison`](crate::measure::Comparison).
fn of_phase<'a>(
    choices: &'a [JobChoice<'_>],
    phase: Phase,
) -> impl Iterator<Item = (f64, &'a Timing)> {
    choices.iter().filter_map(move |choice| {
        let count = f64::from(choice.job.count) * context(choice.job, phase);
        Some((count * choice.job.default_us(phase), choice.chosen(phase)?.timing))
    })
}

/// Returns the time of a job in a [`Comparison`](crate::measure::Comparison) over that in its
/// tournament: attention takes time in proportion to the positions before it, of which the model
/// has fewer.
fn context(job: &JobMeasurements, phase: Phase) -> f64 {
    let tokens = if phase == Phase::Decode { 1 } else { job.tokens };
    match job.role {
        Role::Attention => model_positions(phase) / job_positions(tokens),
        _ => 1.0,
    }
}

/// Returns the time of all jobs for one token of a phase in microseconds, with the choices and with
/// the defaults: without what runs between the jobs, and with as many positions as in a
/// [`Comparison`](crate::measure::Comparison).
pub fn per_token_us(choices: &[JobChoice<'_>], phase: Phase) -> (f64, f64) {
    of_phase(choices, phase).fold((0.0, 0.0), |(chosen, default), (all, timing)| {
        (chosen + all * timing.ratio, default + all)
    })
}

/// Demand of a phase on the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Per token: 10^9 bytes read in decode, or 10^9 multiply-adds of weights in prefill.
    pub per_token: f64,
    /// The machine's limit, 10^9 of them per second.
    pub limit: f64,
}

impl Demand {
    /// Computes the demand. Decode: the packed weights of the chosen layouts, the head, and keys
    /// and values as in a [`Comparison`](crate::measure::Comparison), against the read bandwidth.
    /// Prefill: the weights, against the rate of multiply-adds where that is known.
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

    /// Returns the share of the limit at a speed.
    pub fn share(&self, tokens_per_s: f64) -> f64 {
        self.per_token * tokens_per_s / self.limit
    }
}

/// Speed of a phase predicted from the kernels alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Tokens per second by default.
    pub before: f64,
    /// Tokens per second with the choices and the profile's placement.
    pub after: f64,
    /// Speed over the default's.
    pub gain: Gain,
}

impl Prediction {
    /// Predicts from the jobs of one token and the timing of the placement `run`.
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

/// Returns the share of the machine's limit that the jobs of a phase reach together, of those that
/// have one: see [`JobChoice::share_of_limit`].
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

/// Returns the time of all jobs of a phase over the default's, and half its 95 % interval.
pub(super) fn total_ratio(choices: &[JobChoice<'_>], phase: Phase) -> (f64, f64) {
    let (chosen, default) = per_token_us(choices, phase);
    let half_width =
        of_phase(choices, phase).fold(0.0, |sum: f64, (all, t)| sum.hypot(all * t.half_width));
    if default > 0.0 { (chosen / default, half_width / default) } else { (1.0, 0.0) }
}

/// Returns the best built-in kernel of the same layout: the chosen one where that is built in.
pub(crate) fn built_in<'a>(timings: &'a [Timing], chosen: &'a Timing) -> &'a Timing {
    let held = timings.iter().filter(|timing| timing.kernel.shape.is_none());
    let best = held.min_by(|a, b| {
        let key = |timing: &Timing| (timing.kernel != chosen.kernel, !timing.finalist);
        key(a).cmp(&key(b)).then(a.ratio.total_cmp(&b.ratio))
    });
    best.unwrap_or(chosen)
}

/// Returns the speed of all jobs of a phase over that with the best built-in kernels of the same
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
