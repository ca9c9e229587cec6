//! Preparation of a check: the kernels that serve a profile's roles on this host, and their rivals.

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, KernelId, Profile};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::kernels::cache::Cache;

use super::judge::{Serving, pick};
use crate::plan::defaults::serving;
use crate::plan::{JobPlan, JobTask, LayoutPlan, plan, sparse};
use crate::protocol::{LibraryFile, SparseJob};
use crate::timing::present::Present;
use crate::{ModelInfo, Result};

/// Jobs to measure, kernels that serve, the library that holds some of them, and notes for the
/// user.
pub(super) type Prepared = (Vec<JobTask>, Vec<Serving>, Option<LibraryFile>, Vec<String>);

/// Finds the kernels that `bitnet-run` would call, and their rivals.
pub(super) fn prepare(profile: &Profile, model: &ModelInfo) -> Result<Prepared> {
    let untuned = Selection::default();
    let tuned = Selection::new(None, None, Some(profile.clone()))?;
    let mut served = Vec::new();
    let mut defaults = Vec::new();
    let mut roles: Vec<JobPlan> = Vec::new();
    for job in plan(model, &[], tuned.ceiling(), Effort::Measure) {
        if profile.choice(job.role, &job.parts).is_none() {
            continue;
        }
        let of = |selection| serving(selection, model, (job.role, &job.parts));
        let (decode, prefill) = of(&tuned)?;
        defaults.push(of(&untuned)?);
        served.push(Serving { role: job.role, parts: job.parts.clone(), decode, prefill });
        roles.push(job);
    }
    // Kernels for one shape are in the library, so if one serves, the library is to be used.
    let made = |serving: &Serving| {
        [Some(serving.decode), serving.prefill].into_iter().flatten().any(|id| id.shape.is_some())
    };
    let library = match (&profile.tool.library_sha256, Cache::of_user(|n| std::env::var_os(n))) {
        (Some(sha256), Ok(cache)) if served.iter().any(made) => {
            Some(LibraryFile { cache: cache.folder().into(), sha256: sha256.clone() })
        }
        _ => None,
    };
    let present = Present(library.as_ref().map(LibraryFile::load).transpose()?);
    type Default = (KernelId, Option<KernelId>);
    let task = |((mut plan, serving), default): ((JobPlan, &Serving), Default)| {
        let (default_decode, default_prefill) = default;
        let choice = profile.choice(serving.role, &serving.parts);
        let rivals = |phase| {
            let pick = choice.and_then(|choice| pick(choice, phase));
            let named = pick.map_or([None; 2], |pick| [pick.runner_up(), Some(pick.built_in)]);
            let fit = |id: &KernelId| competes(id, serving, phase);
            // The runner-up, or else the best that is built in.
            named.into_iter().flatten().filter(fit).find(|id| present.find(id).is_ok())
        };
        let (decode, prefill) = (rivals(Phase::Decode), rivals(Phase::Prefill));
        let of = |kernel: Option<KernelId>, rival: Option<KernelId>| -> Vec<KernelId> {
            kernel.into_iter().chain(rival.filter(|_| kernel.is_some())).collect()
        };
        let layout = serving.decode.op.packing();
        plan.layouts = vec![LayoutPlan {
            layout,
            decode: of(Some(serving.decode), decode),
            prefill: of(serving.prefill, prefill),
        }];
        let default_layout = default_decode.op.packing();
        let default = LayoutPlan {
            layout: default_layout,
            decode: vec![default_decode],
            prefill: default_prefill.into_iter().collect(),
        };
        if default_layout == layout {
            let own = &mut plan.layouts[0];
            for (own, default) in
                [(&mut own.decode, default.decode), (&mut own.prefill, default.prefill)]
            {
                let new: Vec<KernelId> =
                    default.into_iter().filter(|id| !own.contains(id)).collect();
                own.extend(new);
            }
        } else {
            plan.layouts.push(default);
        }
        JobTask { plan, default_decode, default_prefill }
    };
    let jobs = roles.into_iter().zip(&served).zip(defaults).map(task).collect();
    Ok((jobs, served, library, tuned.take_notes()))
}

/// Lists the jobs in which the profile uses activation sparsity.
pub(super) fn sparse_jobs(
    profile: &Profile,
    model: &ModelInfo,
    served: &[Serving],
) -> Result<Vec<SparseJob>> {
    let tuned = Selection::new(None, None, Some(profile.clone()))?;
    let job = |Serving { role, parts, decode, .. }: &Serving| {
        let named = profile.choice(*role, parts)?.sparse.as_ref()?;
        let (kernel, _) = tuned.lines(*role, parts)?;
        let all = sparse::candidates(model, (*role, parts), Some(&kernel), tuned.ceiling());
        // The first is the one that serves.
        let kernels: Vec<KernelId> = all.into_iter().take(1).collect();
        (named.below > 0.0 && !kernels.is_empty()).then(|| SparseJob {
            role: *role,
            parts: parts.clone(),
            dense: *decode,
            kernels,
        })
    };
    Ok(served.iter().filter_map(job).collect())
}

/// True if a kernel that the profile names could take the place of the one that serves.
fn competes(id: &KernelId, serving: &Serving, phase: Phase) -> bool {
    let kernel = match phase {
        Phase::Decode => Some(serving.decode),
        Phase::Prefill => serving.prefill,
    };
    let ternary = id.op.packing().is_some();
    kernel.is_some_and(|kernel| kernel != *id && kernel.op == id.op)
        && (!ternary || Phase::of(&id.tile) == phase)
        && id.shape.is_none_or(|own| serving.parts.iter().all(|part| part.cols == own.cols))
}
