//! Jobs of a run: candidates, defaults and their order.

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, Isa, KernelId, Packing, TileConfig, stable_hash};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::{self, AttentionKernel, BlockKernel, HeadKernel, Kernel};

use super::outcome::Options;
use crate::Result;
use crate::journal::JournalHeader;
use crate::measure::lengths::PREFILL_TOKENS;
use crate::model::ModelInfo;
use crate::plan::defaults::{serving, untuned};
use crate::plan::{JobPlan, JobTask, LayoutPlan, plan, sparse};
use crate::protocol::SparseJob;

/// Returns the jobs of a model with their candidates and defaults.
pub(super) fn jobs(
    model: &ModelInfo,
    options: &Options,
    made: &[KernelId],
) -> Result<Vec<JobTask>> {
    let untuned = untuned(options.ceiling)?;
    let present: Vec<KernelId> = (kernels::builtin().iter().map(Kernel::id).copied())
        .chain(BlockKernel::builtin().map(|kernel| *kernel.id()))
        .chain(HeadKernel::builtin().map(|kernel| *kernel.id()))
        .chain(AttentionKernel::builtin().map(|kernel| *kernel.id()))
        .chain(made.iter().copied())
        .collect();
    let plan = plan(model, &present, options.ceiling, options.effort);
    let task = |plan: JobPlan| -> Result<JobTask> {
        let (default_decode, default_prefill) = serving(&untuned, model, (plan.role, &plan.parts))?;
        let mut task = JobTask { plan, default_decode, default_prefill };
        if options.effort != Effort::Patient {
            drop_lookups(&mut task);
        }
        nearest_first(&mut task);
        Ok(task)
    };
    plan.into_iter().map(task).collect()
}

/// Drops the layouts of formats that look products up, and those without a vector kernel, where others
/// have vector kernels that multiply: these won wherever both were measured. The default's layout
/// stays.
fn drop_lookups(task: &mut JobTask) {
    let default = task.default_decode.op.packing();
    let promises = |layout: &LayoutPlan| {
        layout.layout.is_none_or(Packing::multiplies)
            && layout.all().any(|id| id.isa != Isa::Scalar)
    };
    let layouts = &mut task.plan.layouts;
    if layouts.iter().any(promises) {
        layouts.retain(|layout| layout.layout == default || promises(layout));
    }
}

/// Puts the defaults first and then those candidates whose tiles differ from theirs in the least: where
/// there is no time for all, the last are not timed.
fn nearest_first(task: &mut JobTask) {
    let defaults =
        [(Phase::Decode, Some(task.default_decode)), (Phase::Prefill, task.default_prefill)];
    for (phase, default) in defaults {
        let Some(default) = default else { continue };
        let fields = |id: &KernelId| {
            let TileConfig { rows, cols, tokens, unroll, prefetch, level } = id.tile;
            [rows, cols, tokens, unroll, prefetch, level]
        };
        let differing = |id: &KernelId| {
            let pairs = fields(id).into_iter().zip(fields(&default));
            (*id != default, pairs.filter(|(own, other)| own != other).count())
        };
        for LayoutPlan { decode, prefill, .. } in &mut task.plan.layouts {
            let kernels = if phase == Phase::Decode { decode } else { prefill };
            kernels.sort_by_key(differing);
        }
    }
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

#[cfg(test)]
mod tests {
    use bitnet_profiles::{Layout, Role};

    use super::*;

    #[test]
    fn lookups_are_tried_where_nothing_multiplies_or_they_are_the_default() {
        let id = |text: &str| -> KernelId { text.parse().unwrap() };
        let [vector, plain, lookup, t5] = [
            "i2_s_t16__avx2__any__r16_c256_n1_u2_p0",
            "i2_s_t16__scalar__any__r16_c0_n1_u1_p0",
            "tl1_t32__avx2__any__r32_c240_n1_u2_p0",
            "t5_t32__scalar__any__r32_c0_n1_u1_p0",
        ]
        .map(id);
        for (candidates, default, left) in [
            (&[vector, lookup, t5][..], vector, &[Layout::I2sT16][..]),
            (&[vector, lookup, t5], lookup, &[Layout::I2sT16, Layout::Tl1T32]),
            (&[plain, lookup, t5], plain, &[Layout::I2sT16, Layout::Tl1T32, Layout::T5T32]),
        ] {
            let layout = |id: &KernelId| LayoutPlan {
                layout: id.op.packing(),
                decode: vec![*id],
                prefill: vec![*id],
            };
            let layouts = candidates.iter().map(layout).collect();
            let mut task = JobTask {
                plan: JobPlan { role: Role::Down, parts: vec![], count: 1, layouts },
                default_decode: default,
                default_prefill: None,
            };
            drop_lookups(&mut task);
            let found: Vec<Packing> = task.plan.layouts.iter().filter_map(|l| l.layout).collect();
            let left: Vec<Packing> = left.iter().copied().map(Packing::Ternary).collect();
            assert_eq!(found, left, "{default}");
        }
    }

    #[test]
    fn the_default_is_timed_first_and_then_its_neighbours() {
        let id = |tile: &str| -> KernelId {
            format!("i2_s_t32__avx512vnni__any__r32_c0_{tile}").parse().unwrap()
        };
        let decode = ["n1_u2_p4096", "n1_u2_p0", "n1_u1_p0", "n1_u1_p8192"].map(id);
        let prefill = ["n4_u1_p0", "n8_u1_p4096", "n8_u1_p0"].map(id);
        let layout =
            LayoutPlan { layout: None, decode: decode.to_vec(), prefill: prefill.to_vec() };
        let mut task = JobTask {
            plan: JobPlan { role: Role::Down, parts: vec![], count: 1, layouts: vec![layout] },
            default_decode: decode[2],
            default_prefill: Some(prefill[2]),
        };
        nearest_first(&mut task);
        let LayoutPlan { decode: first, prefill: many, .. } = &task.plan.layouts[0];
        assert_eq!(*first, [2, 1, 3, 0].map(|n: usize| decode[n]));
        assert_eq!(*many, [2, 0, 1].map(|n: usize| prefill[n]));
    }
}
