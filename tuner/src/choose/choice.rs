//! Choices: what they hold and what they gain.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Sparse};

use crate::measure::{JobMeasurements, LayoutMeasurements, Limits, Timing};
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

/// A kernel that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenKernel<'a> {
    /// What was measured for it.
    pub timing: &'a Timing,
    /// The second best of the same layout, if there is one.
    pub runner_up: Option<&'a Timing>,
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

impl JobChoice<'_> {
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
