//! Timing of placements: threads, pinning and pages for the chosen kernels.
//!
//! Each placement is timed on the ternary jobs of a token, with pools and weights of its own,
//! against the untuned one: as many threads as were asked for, not pinned, huge pages.

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::Run;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::threads::{Pool, PoolOptions};

use super::limits::rotation;
use super::present::{Candidate, Present};
use super::tournament::{self, Entrant, Sample};
use super::workload::{TernaryWorkload, Workload};
use crate::Result;
use crate::measure::{PHASES, PhaseTiming, PlacementTiming};
use crate::protocol::{ChosenJob, PlacementTask, Reporter};

/// Activation rows of a timed prefill: enough that expanding weights is spread over as many rows as
/// in a prompt.
const TOKENS: usize = 128;
/// Time limit of a sample in seconds.
const ALLOWED: f64 = 60.0;

/// Times the placements.
pub(crate) fn measure(
    task: &PlacementTask,
    present: &Present,
    reporter: &mut Reporter,
) -> Result<Vec<PlacementTiming>> {
    let deadline = Instant::now() + Duration::from_secs_f64(task.seconds);
    let Some(untuned) = task.placements.first() else { return Ok(Vec::new()) };
    reporter.progress(1.0, "threads, pinning and pages".into())?;
    // The jobs take turns, so each needs its part of the rotation only.
    let mut rotation = rotation(task.model_bytes, reporter)?;
    rotation.bytes /= task.jobs.len().max(1) as u64;
    let pool = pool(untuned)?;
    let mut kernels = Vec::new();
    let mut weights: Vec<(bool, Vec<TernaryWorkload>)> = Vec::new();
    for job in &task.jobs {
        kernels.push([present.find(&job.decode)?, present.find(&job.prefill)?]);
    }
    for huge in [true, false] {
        if task.placements.iter().any(|run| run.huge_pages == huge) {
            let pages = if huge { Pages::Huge } else { Pages::Small };
            let workload = |job: &ChosenJob| match job.decode.op.packing() {
                Some(packing) => {
                    TernaryWorkload::new(&pool, &job.parts, packing, (rotation, pages), TOKENS)
                }
                None => Err(bitnet_runtime::Error::Runtime(format!(
                    "{} is no ternary kernel",
                    job.decode
                ))
                .into()),
            };
            weights.push((huge, task.jobs.iter().map(workload).collect::<Result<_>>()?));
        }
    }
    drop(pool);
    let mut phases = Vec::new();
    for phase in PHASES {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let share = if phase == Phase::Decode { left / 2.0 } else { left };
        let mut sample = |run: &Run| token(task, run, phase, &kernels, &mut weights, reporter);
        let others = &task.placements[1..];
        let outcome = tournament::run(others.len(), None, share, None, |entrant| match entrant {
            Entrant::Baseline => sample(untuned),
            Entrant::Candidate(c) => sample(&others[c]),
        })?;
        phases.push(outcome);
    }
    let tokens = [1.0, TOKENS as f64];
    let timing = |number: usize| -> Option<PlacementTiming> {
        let phase = |phase: usize| -> Option<PhaseTiming> {
            let outcome = &phases[phase];
            let entry = match number {
                0 => &outcome.baseline,
                n => &outcome.entries[n - 1],
            };
            let us = entry.us();
            (!us.is_empty() && entry.finalist).then(|| PhaseTiming {
                median_us: crate::stats::median(&us) / tokens[phase],
                ratio: entry.ratio(),
                half_width: if number == 0 { 0.0 } else { entry.half_width() },
            })
        };
        let run = task.placements[number].clone();
        Some(PlacementTiming { run, decode: phase(0)?, prefill: phase(1)? })
    };
    Ok((0..task.placements.len()).filter_map(timing).collect())
}

fn pool(run: &Run) -> Result<Pool> {
    let options = PoolOptions { threads: run.threads as usize, pinning: run.pinning, spare: false };
    Ok(Pool::with(options)?)
}

/// Takes one sample: the jobs of one token, or of a prefill, one after the other.
fn token(
    task: &PlacementTask,
    run: &Run,
    phase: Phase,
    kernels: &[[Candidate; 2]],
    weights: &mut [(bool, Vec<TernaryWorkload>)],
    reporter: &mut Reporter,
) -> Result<Sample> {
    let begin = Instant::now();
    // A pool of its own: a pinned one binds the thread that made it for as long as it lives.
    let pool = pool(run)?;
    let workloads = weights.iter_mut().find(|(huge, _)| *huge == run.huge_pages);
    let workloads = workloads.map_or(&mut [][..], |(_, workloads)| workloads);
    let mut sum = Sample { us: 0.0, cost: 0.0, disturbed: false };
    for ((job, kernels), workload) in task.jobs.iter().zip(kernels).zip(workloads) {
        let kernel = &kernels[usize::from(phase == Phase::Prefill)];
        reporter.begin(kernel.id(), ALLOWED)?;
        let count = if phase == Phase::Decode { 8 } else { 1 };
        let sample = workload.sample(&pool, kernel, phase, count)?;
        sum.us += sample.us * f64::from(job.count);
        sum.disturbed |= sample.disturbed;
    }
    sum.cost = begin.elapsed().as_secs_f64();
    Ok(sum)
}
