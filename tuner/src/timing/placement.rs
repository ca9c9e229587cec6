//! Threads, pinning and pages: which way to run the kernels that were chosen.
//!
//! Each setting is timed on the ternary jobs of a token, with pools and weights of its own, against
//! the untuned setting: as many threads as were asked for, not pinned, huge pages.

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Op, Run};
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::threads::{Pool, PoolOptions};

use super::limits::rotation;
use super::present::{Candidate, Present};
use super::tournament::{self, Entrant, Sample};
use super::workload::{Sampler, TernarySampler};
use crate::Result;
use crate::measure::{PhaseTiming, SettingTiming};
use crate::protocol::{ChosenJob, Reporter, SettingsTask};

/// Activation rows of a timed prefill: enough that what is expanded is multiplied as in a prompt.
const TOKENS: usize = 128;
/// Seconds that a sample may take.
const ALLOWED: f64 = 60.0;

/// Times the settings.
pub(crate) fn measure(
    task: &SettingsTask,
    present: &Present,
    reporter: &mut Reporter,
) -> Result<Vec<SettingTiming>> {
    let deadline = Instant::now() + Duration::from_secs_f64(task.seconds);
    let Some(untuned) = task.settings.first() else { return Ok(Vec::new()) };
    reporter.progress(1.0, "threads, pinning and pages".into())?;
    // The jobs take turns, so each needs its part of the rotation only.
    let mut rotation = rotation(task.model_bytes, reporter)?;
    rotation.bytes /= task.jobs.len().max(1) as u64;
    let pool = pool(untuned)?;
    let mut kernels = Vec::new();
    let mut weights: Vec<(bool, Vec<TernarySampler>)> = Vec::new();
    for job in &task.jobs {
        kernels.push([present.find(&job.decode)?, present.find(&job.prefill)?]);
    }
    for huge in [true, false] {
        if task.settings.iter().any(|run| run.huge_pages == huge) {
            let pages = if huge { Pages::Huge } else { Pages::Small };
            let sampler = |job: &ChosenJob| match job.decode.op {
                Op::Ternary(layout) => {
                    TernarySampler::new(&pool, &job.parts, layout, (rotation, pages), TOKENS)
                }
                _ => Err(bitnet_runtime::Error::Runtime(format!(
                    "{} is no ternary kernel",
                    job.decode
                ))
                .into()),
            };
            weights.push((huge, task.jobs.iter().map(sampler).collect::<Result<_>>()?));
        }
    }
    drop(pool);
    let mut phases = Vec::new();
    for phase in [Phase::Decode, Phase::Prefill] {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let share = if phase == Phase::Decode { left / 2.0 } else { left };
        let mut sample = |run: &Run| token(task, run, phase, &kernels, &mut weights, reporter);
        let others = &task.settings[1..];
        let outcome = tournament::run(others.len(), None, share, None, |entrant| match entrant {
            Entrant::Sentinel => sample(untuned),
            Entrant::Candidate(c) => sample(&others[c]),
        })?;
        phases.push(outcome);
    }
    let tokens = [1.0, TOKENS as f64];
    let timing = |number: usize| -> Option<SettingTiming> {
        let phase = |phase: usize| -> Option<PhaseTiming> {
            let outcome = &phases[phase];
            let entry = match number {
                0 => &outcome.sentinel,
                n => &outcome.entries[n - 1],
            };
            let us = entry.us();
            (!us.is_empty() && entry.finalist).then(|| PhaseTiming {
                median_us: crate::stats::median(&us) / tokens[phase],
                ratio: entry.ratio(),
                half_width: if number == 0 { 0.0 } else { entry.half_width() },
            })
        };
        let run = task.settings[number].clone();
        Some(SettingTiming { run, decode: phase(0)?, prefill: phase(1)? })
    };
    Ok((0..task.settings.len()).filter_map(timing).collect())
}

fn pool(run: &Run) -> Result<Pool> {
    let options = PoolOptions { threads: run.threads as usize, pinning: run.pinning };
    Ok(Pool::with(options)?)
}

/// One sample: the jobs of one token, or of a prefill, one after the other.
fn token(
    task: &SettingsTask,
    run: &Run,
    phase: Phase,
    kernels: &[[Candidate; 2]],
    weights: &mut [(bool, Vec<TernarySampler>)],
    reporter: &mut Reporter,
) -> Result<Sample> {
    let begin = Instant::now();
    // A pool of its own: a pinned one binds the thread that made it for as long as it lives.
    let pool = pool(run)?;
    let samplers = weights.iter_mut().find(|(huge, _)| *huge == run.huge_pages);
    let samplers = samplers.map_or(&mut [][..], |(_, samplers)| samplers);
    let mut sum = Sample { us: 0.0, cost: 0.0, disturbed: false };
    for ((job, kernels), sampler) in task.jobs.iter().zip(kernels).zip(samplers) {
        let kernel = &kernels[usize::from(phase == Phase::Prefill)];
        reporter.begin(kernel.id(), ALLOWED)?;
        let count = if phase == Phase::Decode { 8 } else { 1 };
        let sample = sampler.sample(&pool, kernel, phase, count)?;
        sum.us += sample.us * f64::from(job.count);
        sum.disturbed |= sample.disturbed;
    }
    sum.cost = begin.elapsed().as_secs_f64();
    Ok(sum)
}
