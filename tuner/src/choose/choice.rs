//! Choices for jobs.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Sparse};

use crate::measure::{JobMeasurements, LayoutMeasurements, Limits, Timing};
use crate::stats::{Gain, rounded};

/// Choice for one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobChoice<'a> {
    /// The job.
    pub job: &'a JobMeasurements,
    /// The layout.
    pub layout: &'a LayoutMeasurements,
    /// Decode kernel.
    pub decode: ChosenKernel<'a>,
    /// Prefill kernel; none for the head, and for attention the same as for decode.
    pub prefill: Option<ChosenKernel<'a>>,
    /// Decode kernel with activation sparsity, where one was timed beside this decode kernel.
    pub gather: Option<ChosenGather>,
}

/// Chosen kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenKernel<'a> {
    /// Its timing.
    pub timing: &'a Timing,
    /// Second best kernel of the same layout.
    pub runner_up: Option<&'a Timing>,
}

/// Chosen kernel for activation sparsity: it is given a list of rows or columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenGather {
    /// The kernel.
    pub kernel: KernelId,
    /// Density (share of rows or columns needed) below which it beats dense decode; 0 where it
    /// never does.
    pub below: f64,
    /// Speed of the job over dense decode at a density of 0.25.
    pub gain: Option<Gain>,
}

impl ChosenGather {
    /// Converts to a profile's entry. All candidates are built in.
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
    /// Returns the kernel of a phase.
    pub fn chosen(&self, phase: Phase) -> Option<ChosenKernel<'_>> {
        match phase {
            Phase::Decode => Some(self.decode),
            Phase::Prefill => self.prefill,
        }
    }

    /// Returns the speed of a phase over the default's.
    pub fn gain(&self, phase: Phase) -> Option<Gain> {
        self.chosen(phase).map(|chosen| Gain::of(chosen.timing.ratio, chosen.timing.half_width))
    }

    /// Returns the share of the machine's limit that a phase reaches: the longer of the times that
    /// its reads, at the rate probed beside it, and its multiply-adds take at the limit, over the
    /// median time. Of the head and attention only the reads count; prefill of attention has no
    /// such limit.
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
