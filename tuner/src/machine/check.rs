//! How good the model is: its picks in a recorded measurement.

use std::fmt;

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Role, Shape};

use super::estimate::uncertainty;
use super::{Cpu, UNCERTAINTY, estimate};
use crate::measure::{JobMeasurements, Measurements, Timing, phase_name};
use crate::plan::{JobPlan, JobTask, LayoutPlan};
use crate::stats;

/// How much slower than the best a pick may be, as a share.
pub const WITHIN: f64 = 0.05;
/// The share of picks that must be within it.
pub const ENOUGH: f64 = 0.8;

/// The model's pick for one phase of one job, and what was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The role.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// The phase.
    pub phase: Phase,
    /// What the model picks.
    pub pick: KernelId,
    /// Its measured time in microseconds.
    pub pick_us: f64,
    /// What the model predicted for it.
    pub predicted_us: f64,
    /// What was measured to be the fastest.
    pub best: KernelId,
    /// Its time.
    pub best_us: f64,
}

impl Checked {
    /// Time of the pick over that of the best.
    pub fn ratio(&self) -> f64 {
        self.pick_us / self.best_us
    }

    /// Whether the pick is as good as it must be.
    pub fn is_within(&self) -> bool {
        self.ratio() <= 1.0 + WITHIN
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, phase, pick, pick_us, predicted_us, best, best_us, .. } = self;
        write!(
            f,
            "{} {role:<11} {:<7} {pick:<46} {pick_us:>9.2} us, predicted {predicted_us:>9.2}; {:.2}x",
            if self.is_within() { "  " } else { "! " },
            phase_name(*phase),
            self.ratio(),
        )?;
        if pick != best {
            write!(f, " of {best} with {best_us:.2} us")?;
        }
        Ok(())
    }
}

/// Lets the model pick from the candidates that were recorded, and looks up what they took: the ratio
/// to the default beside which they were timed, as bare times drift with the machine, times what the
/// default took. Records of the same jobs are pooled: medians count.
///
/// Every phase is asked for by itself, over all layouts. A pick is the fastest by the model; among those
/// within its [`UNCERTAINTY`] the recorded default, else the simplest.
pub fn check(records: &[Measurements], cpu: &Cpu) -> Vec<Checked> {
    let Some(first) = records.first() else { return Vec::new() };
    let jobs: Vec<JobTask> = first.jobs.iter().map(task).collect();
    let threads = first.limits.threads as usize;
    let predicted = estimate(&jobs, cpu, threads);
    let mut checked = Vec::new();
    for (number, job) in predicted.jobs.iter().enumerate() {
        for phase in [Phase::Decode, Phase::Prefill] {
            let measured = pooled(records, number, phase);
            checked.extend(check_phase(job, phase, &measured));
        }
    }
    checked
}

/// What a record was made from.
fn task(job: &JobMeasurements) -> JobTask {
    let ids = |timings: &[Timing]| timings.iter().map(|timing| timing.kernel).collect();
    let layouts = job.layouts.iter().map(|layout| LayoutPlan {
        layout: layout.layout,
        decode: ids(&layout.decode),
        prefill: ids(&layout.prefill),
    });
    JobTask {
        plan: JobPlan {
            role: job.role,
            parts: job.parts.clone(),
            count: job.count,
            layouts: layouts.collect(),
        },
        default_decode: job.default_decode,
        default_prefill: job.default_prefill,
    }
}

/// The time of every kernel of a phase: the median over the records that have it.
fn pooled(records: &[Measurements], job: usize, phase: Phase) -> Vec<(KernelId, f64)> {
    let jobs = || records.iter().filter_map(|record| record.jobs.get(job));
    let all = || jobs().flat_map(|job| &job.layouts).flat_map(|layout| layout.timings(phase));
    let default_us: Vec<f64> = jobs()
        .map(|job| match phase {
            Phase::Decode => job.default_decode_us,
            Phase::Prefill => job.default_prefill_us,
        })
        .collect();
    let default_us = stats::median(&default_us);
    let mut ids: Vec<KernelId> = all().map(|timing| timing.kernel).collect();
    ids.sort_unstable();
    ids.dedup();
    let time = |id: KernelId| {
        let own: Vec<f64> = all().filter(|t| t.kernel == id).map(|t| t.ratio).collect();
        (id, default_us * stats::median(&own))
    };
    ids.into_iter().map(time).collect()
}

fn check_phase(
    predicted: &JobMeasurements,
    phase: Phase,
    measured: &[(KernelId, f64)],
) -> Option<Checked> {
    let default = predicted.default_kernel(phase)?;
    let timings = || predicted.layouts.iter().flat_map(|layout| layout.timings(phase));
    // What is uncertain against the default counts as so much slower.
    let doubted = |timing: &Timing| {
        let doubt = uncertainty(&default, &timing.kernel) - UNCERTAINTY;
        timing.median_us * (1.0 + doubt)
    };
    let least = timings().map(doubted).min_by(f64::total_cmp)?;
    let pick = timings()
        .filter(|timing| doubted(timing) <= (1.0 + UNCERTAINTY) * least)
        .min_by_key(|timing| {
            let tile = timing.kernel.tile;
            (
                timing.kernel != default,
                tile.prefetch,
                tile.unroll,
                tile.tokens,
                tile.rows,
                timing.kernel,
            )
        })?;
    let took = |id: KernelId| measured.iter().find(|(own, _)| *own == id).map(|(_, us)| *us);
    let &(best, best_us) = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Checked {
        role: predicted.role,
        parts: predicted.parts.clone(),
        phase,
        pick: pick.kernel,
        pick_us: took(pick.kernel)?,
        predicted_us: pick.median_us,
        best,
        best_us,
    })
}

/// The share of picks that are good enough.
pub fn share(checked: &[Checked]) -> f64 {
    let within = checked.iter().filter(|checked| checked.is_within()).count();
    within as f64 / checked.len().max(1) as f64
}
