//! Kernels made on this host for the model's own shapes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bitnet_profiles::{self as profiles, Effort, Isa, KernelId, Op, Profile, Shape};
use bitnet_runtime::cpu::kernels::cache::Cache;

use super::outcome::{Options, left};
use crate::compile::WorkFolder;
use crate::model::ModelInfo;
use crate::plan::{LayoutPlan, plan};
use crate::protocol::LibraryFile;
use crate::supervise::Notice;

/// Largest share of the budget that is spent when the kernels for the model's shapes are made.
const COMPILED_UNTIL: f64 = 0.3;

/// Least seconds to compile the few kernels that won, whatever is left of the budget.
const COMPILE_WINNERS: f64 = 5.0;

/// Returns the kernels of a profile that are not built in.
pub(super) fn made_in(profile: &Profile) -> BTreeSet<KernelId> {
    let picks = profile.ops.iter().flat_map(profiles::Choice::picks);
    picks.map(|(_, pick)| pick.kernel).filter(|id| id.shape.is_some()).collect()
}

/// Compiles a library of the kernels that won, if there are any, and stores it where `bitnet-run`
/// looks for it.
pub(super) fn keep(
    winners: &BTreeSet<KernelId>,
    profile: &mut Profile,
    options: &Options,
    start: Instant,
) -> std::result::Result<(), String> {
    if winners.is_empty() {
        return Ok(());
    }
    let winners: Vec<KernelId> = winners.iter().copied().collect();
    let toolchain = options.toolchain.as_ref().map_err(Clone::clone)?;
    let cache = options.cache.as_ref().map_err(Clone::clone)?;
    let limit = Duration::from_secs_f64(left(options, start, 1.0).max(COMPILE_WINNERS));
    let bytes = toolchain.compile(&winners, limit).map_err(|e| e.to_string())?;
    let sha256 = cache.store(&bytes).map_err(|e| e.to_string())?;
    profile.tool.library_sha256 = Some(sha256);
    Ok(())
}

/// Kernels made on this host for this run.
pub(super) struct Compiled {
    pub file: LibraryFile,
    /// Removed with the run: only the winners are kept.
    _folder: WorkFolder,
}

/// Compiles the kernels for the model's own shapes, or says why not and what it would take.
pub(super) fn compile(
    ids: &[KernelId],
    options: &Options,
    start: Instant,
    notify: &mut dyn FnMut(Notice),
) -> std::result::Result<Compiled, String> {
    let again = |why: &String| format!("{why}; then run bitnet-tune again");
    let toolchain = options.toolchain.as_ref().map_err(again)?;
    options.cache.as_ref().map_err(|why| format!("{why}; set one and run bitnet-tune again"))?;
    let count = ids.len();
    let limit = Duration::from_secs_f64(left(options, start, COMPILED_UNTIL));
    let expected = toolchain.expected(count);
    if expected > limit {
        let (seconds, enough) = (expected.as_secs_f64(), expected.div_f64(COMPILED_UNTIL));
        let enough = (1.1 * enough.as_secs_f64()).ceil();
        return Err(format!(
            "to compile them may take {seconds:.0} s; with --budget {enough}s there is time for it"
        ));
    }
    notify(Notice::Progress(0.0, format!("compiling {count} kernels for these shapes")));
    let bytes = toolchain.compile(ids, limit).map_err(|error| error.to_string())?;
    let folder = WorkFolder::new(options.cache.as_ref().ok()).map_err(|e| e.to_string())?;
    let cache = Cache::at(folder.path());
    let sha256 = cache.store(&bytes).map_err(|e| e.to_string())?;
    let file = LibraryFile { cache: folder.path().into(), sha256 };
    Ok(Compiled { file, _folder: folder })
}

/// Lists the kernels for the model's own shapes that are worth making: those of the best tiers.
/// None for attention, which was 10 to 15 % slower with a fixed number of heads (Zen 5).
pub(super) fn made_for(model: &ModelInfo, ceiling: Isa) -> Vec<KernelId> {
    let isas =
        || Isa::ALL.iter().copied().filter(|&isa| isa != Isa::Scalar && isa.is_within(ceiling));
    let mut shapes: Vec<Shape> = Vec::new();
    let parts = model.jobs.iter().filter_map(|job| job.parts.first());
    for &shape in parts {
        // Kernels are made for columns; any number of rows will do.
        if shapes.iter().all(|known| known.cols != shape.cols) {
            shapes.push(shape);
        }
    }
    let mut ids = Vec::new();
    let mut add = |shape: Shape, wanted: &dyn Fn(Op) -> bool| {
        let all = isas().flat_map(|isa| bitnet_codegen::candidates(isa, Some(shape)));
        ids.extend(all.filter(|id| wanted(id.op)));
    };
    for shape in shapes {
        add(shape, &|op| op.packing().is_some());
    }
    add(model.head_shape(), &|op| op == Op::Head(model.head));
    let plan = plan(model, &ids, ceiling, Effort::Measure);
    let worth: BTreeSet<KernelId> =
        plan.iter().flat_map(|job| &job.layouts).flat_map(LayoutPlan::all).copied().collect();
    ids.retain(|id| worth.contains(id));
    ids
}
