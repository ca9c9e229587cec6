//! Threads, pinning and pages: which way to run the kernels that were chosen.
//!
//! Each setting is timed on the ternary jobs of a token, with pools and weights of its own, against
//! the untuned setting: as many threads as were asked for, not pinned, huge pages.

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Op, Pinning, Run, Shape};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::threads::{Pool, PoolOptions};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::timing::jobs::{Present, rotation};
use crate::timing::tournament::{self, Entrant, Sample};
use crate::timing::workload::{Candidate, Sampler, TernarySampler};
use crate::worker::Reporter;

/// Activation rows of a timed prefill: enough that what is expanded is multiplied as in a prompt.
const TOKENS: usize = 128;
/// Seconds that a sample may take.
const ALLOWED: f64 = 60.0;

/// Settings to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsTask {
    /// The ternary jobs, as they were chosen.
    pub jobs: Vec<ChosenJob>,
    /// The settings; the first is the untuned one.
    pub settings: Vec<Run>,
    /// Bytes of weights that one token of the model reads.
    pub model_bytes: u64,
    /// Seconds for all of it.
    pub seconds: f64,
}

/// A ternary job with its kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChosenJob {
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Times per token that it runs.
    pub count: u32,
    /// The kernel for one token.
    pub decode: KernelId,
    /// The kernel for many; reads the same layout.
    pub prefill: KernelId,
}

/// What a setting showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingTiming {
    /// The setting.
    pub run: Run,
    /// Of one token.
    pub decode: PhaseTiming,
    /// Of many, per token.
    pub prefill: PhaseTiming,
}

/// What a setting showed in one phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTiming {
    /// Median microseconds of the ternary jobs of one token.
    pub median_us: f64,
    /// Median of its times over those of the untuned setting just before and after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
}

/// How a model runs untuned.
pub fn untuned(threads: usize) -> Run {
    Run { threads: threads as u32, pinning: Pinning::None, huge_pages: true }
}

/// The settings worth timing on a host, `threads` being those asked for; `fixed` where the user
/// named them.
pub fn candidates(host: &Host, threads: usize, fixed: bool) -> Vec<Run> {
    let run =
        |threads: usize, pinning, huge_pages| Run { threads: threads as u32, pinning, huge_pages };
    let mut all = vec![untuned(threads)];
    let mut add = |new: Run| {
        if !all.contains(&new) {
            all.push(new);
        }
    };
    add(run(threads, Pinning::Cores, true));
    add(run(threads, Pinning::None, false));
    if !fixed {
        // Memory may be exhausted by fewer threads than there are cores, and a core that waits for
        // memory can serve a second thread meanwhile.
        let cores = host.physical_cores;
        for threads in [host.threads, cores.div_ceil(2), (3 * cores).div_ceil(4)] {
            add(run(threads, Pinning::None, true));
        }
        add(run(host.threads, Pinning::Cores, true));
    }
    all
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn host(physical_cores: usize, threads: usize) -> Host {
        Host { physical_cores, threads, ..Host::detect() }
    }

    #[test]
    fn the_untuned_setting_comes_first_and_none_twice() {
        let all = candidates(&host(8, 16), 8, false);
        assert_eq!(all[0], Run { threads: 8, pinning: Pinning::None, huge_pages: true });
        let threads: Vec<u32> = all.iter().map(|run| run.threads).collect();
        assert_eq!(threads, [8, 8, 8, 16, 4, 6, 16]);
        for (i, run) in all.iter().enumerate() {
            assert!(!all[..i].contains(run), "{run:?}");
        }
        assert!(candidates(&host(8, 16), 3, true).iter().all(|run| run.threads == 3));
        assert!(candidates(&host(1, 1), 1, false).iter().all(|run| run.threads == 1));
    }
}
