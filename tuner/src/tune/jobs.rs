//! Jobs of a run: candidates, defaults and their order.

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, KernelId, Role, stable_hash};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::{self, AttentionKernel, HeadKernel, Kernel};

use super::outcome::Options;
use crate::journal::JournalHeader;
use crate::measure::lengths::PREFILL_TOKENS;
use crate::model::ModelInfo;
use crate::plan::defaults::{serving, untuned};
use crate::plan::{JobPlan, JobTask, LayoutPlan, plan, sparse};
use crate::protocol::SparseJob;
use crate::{Result, machine};

/// Returns the jobs of a model with their candidates and defaults.
pub(super) fn jobs(
    model: &ModelInfo,
    options: &Options,
    cpu: &machine::Cpu,
    made: &[KernelId],
) -> Result<Vec<JobTask>> {
    let untuned = untuned(options.ceiling)?;
    let present: Vec<KernelId> = (kernels::builtin().iter().map(Kernel::id).copied())
        .chain(HeadKernel::builtin().map(|kernel| *kernel.id()))
        .chain(AttentionKernel::builtin().map(|kernel| *kernel.id()))
        .chain(made.iter().copied())
        .collect();
    let plan = plan(model, &present, options.ceiling, options.effort);
    let task = |plan: JobPlan| -> Result<JobTask> {
        let (default_decode, default_prefill) = serving(&untuned, model, (plan.role, &plan.parts))?;
        Ok(JobTask { plan, default_decode, default_prefill })
    };
    let mut tasks = plan.into_iter().map(task).collect::<Result<Vec<JobTask>>>()?;
    let jobs = tasks.iter().map(|task| (&task.plan, &task.default_decode));
    let bytes = machine::model_bytes(jobs);
    for task in &mut tasks {
        most_promising(task, options, cpu, bytes);
    }
    Ok(tasks)
}

/// Factor over the best time by the machine model above which a candidate is not timed: much more
/// than the model errs by.
const HOPEFUL: f64 = 1.6;

/// Sorts the candidates by the machine model, after the default: where there is no time for all,
/// the last are not timed. Drops those without a chance, unless the effort is patient.
fn most_promising(task: &mut JobTask, options: &Options, cpu: &machine::Cpu, model_bytes: u64) {
    let parts = task.plan.parts.clone();
    for (phase, default) in
        [(Phase::Decode, Some(task.default_decode)), (Phase::Prefill, task.default_prefill)]
    {
        let tokens = if phase == Phase::Decode { 1 } else { PREFILL_TOKENS };
        let us = |id: &KernelId| {
            machine::predict(cpu, id, &parts, tokens, options.threads, model_bytes).us
        };
        let all = task.plan.layouts.iter().flat_map(|layout| layout.kernels(phase));
        let best = all.map(us).fold(f64::INFINITY, f64::min);
        for layout in &mut task.plan.layouts {
            let kernels = match phase {
                Phase::Decode => &mut layout.decode,
                Phase::Prefill => &mut layout.prefill,
            };
            let is_default = |id: &KernelId| Some(*id) == default;
            if options.effort != Effort::Patient {
                kernels.retain(|id| is_default(id) || us(id) <= HOPEFUL * best);
            }
            kernels.sort_by(|a, b| is_default(b).cmp(&is_default(a)).then(us(a).total_cmp(&us(b))));
        }
    }
    // One kernel of attention serves both phases, so it is in both lists or in none.
    if task.plan.role == Role::Attention {
        for layout in &mut task.plan.layouts {
            let LayoutPlan { decode, prefill, .. } = layout;
            decode.retain(|id| prefill.contains(id));
            prefill.retain(|id| decode.contains(id));
        }
    }
    let has_prefill = task.default_prefill.is_some();
    task.plan.layouts.retain(|l| !l.decode.is_empty() && (!has_prefill || !l.prefill.is_empty()));
}

/// Returns the jobs of a model with activation sparsity, with their candidates.
pub(super) fn sparse_jobs(model: &ModelInfo, options: &Options) -> Result<Vec<SparseJob>> {
    let untuned = untuned(options.ceiling)?;
    let mut jobs = Vec::new();
    for job in &model.jobs {
        let default = untuned.lines(job.role, &job.parts).map(|(kernel, _)| kernel);
        let own = (job.role, &job.parts[..]);
        let kernels = sparse::candidates(model, own, default.as_ref(), options.ceiling);
        if !kernels.is_empty() {
            let (dense, _) = serving(&untuned, model, own)?;
            jobs.push(SparseJob { role: job.role, parts: job.parts.clone(), dense, kernels });
        }
    }
    Ok(jobs)
}

pub(super) fn header(
    model: &ModelInfo,
    options: &Options,
    host: &Host,
    (jobs, sparse): (&[JobTask], &[SparseJob]),
) -> Result<JournalHeader> {
    // With all that says what a figure in the journal means.
    let plan = (jobs, sparse, sparse::DENSITIES, PREFILL_TOKENS, options.ceiling);
    let plan = serde_json::to_string(&plan)
        .map_err(|e| Error::Runtime(format!("a plan has no JSON form: {e}")))?;
    Ok(JournalHeader {
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: bitnet_codegen::fingerprint(),
        cpu: format!("{} {} {} {}", host.vendor, host.family, host.model, host.stepping),
        shapes: model.shapes.clone(),
        threads: options.threads,
        plan: stable_hash(plan.bytes()),
    })
}
