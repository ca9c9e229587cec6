//! Content of a report.

use std::time::Duration;

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Op, Profile, Role};

use crate::choose::{ChosenKernel, JobChoice};
use crate::measure::{Comparison, JobMeasurements, Measurements, PlacementTiming};

/// Further content beside the measurements, the choices and the profile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Timings of placements, the untuned one first.
    pub placements: &'a [PlacementTiming],
    /// Comparison on the model, where there was one.
    pub comparison: Option<&'a Comparison>,
    /// True if the choices lost there, so that the profile holds the defaults.
    pub kept_default: bool,
    /// Time limit, if there was one.
    pub budget: Option<Duration>,
}

pub(super) struct Report<'a> {
    pub measurements: &'a Measurements,
    pub choices: &'a [JobChoice<'a>],
    pub profile: &'a Profile,
    pub extras: &'a Extras<'a>,
}

impl Report<'_> {
    /// Returns the choice for a phase of a job.
    pub(super) fn chosen_for(
        &self,
        job: &JobMeasurements,
        phase: Phase,
    ) -> Option<ChosenKernel<'_>> {
        let same = |other: &JobMeasurements| other.role == job.role && other.parts == job.parts;
        self.choices.iter().find(|choice| same(choice.job))?.chosen(phase)
    }
}

/// True if a kernel was a candidate for a phase of a job.
pub(super) fn concerns(kernel: &KernelId, job: &JobMeasurements, phase: Phase) -> bool {
    let serves = match kernel.op {
        Op::Head(_) => job.role == Role::LmHead && phase == Phase::Decode,
        Op::Sketch(_) | Op::Blocks(_) => false,
        Op::Attention => job.role == Role::Attention,
        Op::Rows(_) | Op::Columns(_) => false,
        Op::Ternary(_) => {
            !matches!(job.role, Role::LmHead | Role::Attention) && Phase::of(&kernel.tile) == phase
        }
    };
    serves && kernel.shape.is_none_or(|own| job.parts.iter().all(|part| part.cols == own.cols))
}

/// Returns the activation rows of a timed phase.
pub(super) fn tokens(job: &JobMeasurements, phase: Phase) -> u32 {
    if phase == Phase::Decode { 1 } else { job.tokens }
}

/// Returns the multiply-adds of a timed phase, where the job's parts are weights.
pub(super) fn multiply_adds(job: &JobMeasurements, phase: Phase) -> Option<f64> {
    let weights: f64 = job.parts.iter().map(|part| part.weights() as f64).sum();
    (job.role != Role::Attention).then_some(weights * f64::from(tokens(job, phase)))
}
