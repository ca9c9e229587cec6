//! Candidates: for every job of a model the layouts, and for every layout the decode and the
//! prefill kernels that read it. A layout is chosen together with both, because there is one packed
//! copy of the weights in memory. The head and attention have no packing of their own: one entry
//! without a layout holds their kernels.

pub(crate) mod defaults;
pub(crate) mod placement;
pub(crate) mod sparse;

use bitnet_codegen::Phase;
use bitnet_profiles::{BlockLayout, Effort, Isa, KernelId, Layout, Op, Packing, Role, Shape};
use serde::{Deserialize, Serialize};

use crate::ModelInfo;

/// Candidates for one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobPlan {
    /// Role of the job.
    pub role: Role,
    /// Its matrices; of attention the query heads and the key-value heads.
    pub parts: Vec<Shape>,
    /// Runs per token.
    pub count: u32,
    /// Layouts in the order of their declaration: simpler ones first.
    pub layouts: Vec<LayoutPlan>,
}

/// Candidates for one layout of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutPlan {
    /// The packing; none for the head and attention.
    pub layout: Option<Packing>,
    /// Decode kernels.
    pub decode: Vec<KernelId>,
    /// Prefill kernels: none for the head, which only the last token needs; for attention those for
    /// decode, as one kernel serves both.
    pub prefill: Vec<KernelId>,
}

impl LayoutPlan {
    /// Returns the kernels of a phase.
    pub fn kernels(&self, phase: Phase) -> &[KernelId] {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }

    /// Lists all kernels, each once.
    pub fn all(&self) -> impl Iterator<Item = &KernelId> {
        let more = self.prefill.iter().filter(|id| !self.decode.contains(id));
        self.decode.iter().chain(more)
    }
}

/// A job to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobTask {
    /// The candidates.
    pub plan: JobPlan,
    /// Untuned default for decode.
    pub default_decode: KernelId,
    /// Untuned default for prefill; none for the head.
    pub default_prefill: Option<KernelId>,
}

impl JobTask {
    /// Returns the untuned default of a phase.
    pub fn default_of(&self, phase: Phase) -> Option<KernelId> {
        match phase {
            Phase::Decode => Some(self.default_decode),
            Phase::Prefill => self.default_prefill,
        }
    }
}

/// Groups the `kernels` that are worth timing on a CPU with `ceiling` as its best tier.
///
/// `Effort::Patient` takes all that the CPU can run. Otherwise an operation is tried with the
/// widest vectors that have kernels for it, and where some of those multiply bytes straight into 32
/// bits (VNNI) only with these, which do the same work in fewer instructions.
pub fn plan(model: &ModelInfo, kernels: &[KernelId], ceiling: Isa, effort: Effort) -> Vec<JobPlan> {
    let runnable: Vec<KernelId> =
        kernels.iter().copied().filter(|id| id.isa.is_within(ceiling)).collect();
    let rank = |id: &KernelId| {
        // Lookups multiply nothing.
        let multiplies = match id.op {
            Op::Head(_) | Op::Sketch(_) => true,
            op => op.packing().is_some_and(Packing::multiplies),
        };
        (id.isa != Isa::Scalar, id.isa.lanes(), multiplies && id.isa.dots_are_wide())
    };
    // Layouts of one format compete, and so do the tiles of everything else.
    let same = |a: Op, b: Op| match (a, b) {
        (Op::Ternary(a), Op::Ternary(b)) => a.format() == b.format(),
        (Op::Blocks(a), Op::Blocks(b)) => a.width() == b.width(),
        (a, b) => a == b,
    };
    let worth = |id: &KernelId| {
        let rivals = runnable.iter().filter(|other| same(other.op, id.op));
        effort == Effort::Patient || Some(rank(id)) == rivals.map(rank).max()
    };
    let of = |op: Op, cols: usize, phase: Option<Phase>| -> Vec<KernelId> {
        let fits = |id: &KernelId| id.shape.is_none_or(|own| own.cols == cols);
        let serves = |id: &KernelId| phase.is_none_or(|phase| Phase::of(&id.tile) == phase);
        let all = runnable.iter().filter(|id| id.op == op && fits(id) && serves(id));
        all.filter(|id| worth(id)).copied().collect()
    };
    let ternary = model.jobs.iter().zip(&model.widths).map(|(job, width)| {
        let cols = job.parts.first().map_or(0, |part| part.cols);
        let ops: Vec<Op> = match *width {
            None => Layout::ALL.iter().copied().map(Op::Ternary).collect(),
            Some(width) => {
                let own = BlockLayout::ALL.iter().filter(|layout| layout.width() == width);
                own.copied().map(Op::Blocks).collect()
            }
        };
        let layouts = ops.into_iter().map(|op| LayoutPlan {
            layout: op.packing(),
            decode: of(op, cols, Some(Phase::Decode)),
            prefill: of(op, cols, Some(Phase::Prefill)),
        });
        JobPlan {
            role: job.role,
            parts: job.parts.clone(),
            count: job.count,
            layouts: layouts.filter(|l| !l.decode.is_empty() && !l.prefill.is_empty()).collect(),
        }
    });
    let head = JobPlan {
        role: Role::LmHead,
        parts: vec![model.head_shape()],
        count: 1,
        layouts: vec![LayoutPlan {
            layout: None,
            decode: of(Op::Head(model.head), model.config.hidden, Some(Phase::Decode)),
            prefill: Vec::new(),
        }],
    };
    let kernels = of(Op::Attention, model.config.head_dim, None);
    let attention = JobPlan {
        role: Role::Attention,
        parts: model.config.attention_shapes().into(),
        count: model.config.layers as u32,
        layouts: vec![LayoutPlan { layout: None, decode: kernels.clone(), prefill: kernels }],
    };
    ternary.chain([head, attention]).collect()
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Format;
    use bitnet_runtime::file::gguf::Gguf;

    use super::*;

    fn model() -> ModelInfo {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
        ModelInfo::from_gguf(&Gguf::open(path).unwrap()).unwrap()
    }

    fn ids(plan: &[JobPlan]) -> Vec<KernelId> {
        plan.iter().flat_map(|job| &job.layouts).flat_map(LayoutPlan::all).copied().collect()
    }

    #[test]
    fn every_ceiling_has_candidates_and_its_default_is_one() {
        let all = bitnet_codegen::grid(Isa::ALL);
        for &ceiling in Isa::ALL {
            let default = bitnet_profiles::registry::generic(None, ceiling);
            for effort in [Effort::Measure, Effort::Patient] {
                let plan = plan(&model(), &all, ceiling, effort);
                let roles: Vec<Role> = plan.iter().map(|job| job.role).collect();
                let wanted = ["qkv", "attn_output", "gate_up", "down", "lm_head", "attention"];
                assert_eq!(roles.iter().map(|role| role.name()).collect::<Vec<_>>(), wanted);
                let ids = ids(&plan);
                assert!(ids.iter().all(|id| id.isa.is_within(ceiling)));
                assert!(ids.contains(&default.decode), "{ceiling} {effort}");
                assert!(ids.contains(&default.prefill), "{ceiling} {effort}");
                for (job, layout) in plan.iter().flat_map(|j| j.layouts.iter().map(move |l| (j, l)))
                {
                    assert!(!layout.decode.is_empty(), "{ceiling} {effort} {}", job.role);
                    assert_eq!(layout.prefill.is_empty(), job.role == Role::LmHead);
                    let Some(packing) = layout.layout else { continue };
                    for phase in [Phase::Decode, Phase::Prefill] {
                        for id in layout.kernels(phase) {
                            assert_eq!(id.op.packing(), Some(packing));
                            assert_eq!(Phase::of(&id.tile), phase);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn only_patience_tries_slower_tiers() {
        let all = bitnet_codegen::grid(Isa::ALL);
        let isas = |effort| {
            let ids = ids(&plan(&model(), &all, Isa::Avx512Vnni, effort));
            move |isa, format| {
                ids.iter().any(|id| match id.op {
                    Op::Ternary(layout) => id.isa == isa && layout.format() == format,
                    _ => false,
                })
            }
        };
        let measured = isas(Effort::Measure);
        assert!(measured(Isa::Avx512Vnni, Format::I2S));
        assert!(!measured(Isa::Avx512, Format::I2S));
        assert!(!measured(Isa::Avx2, Format::I2S));
        let patient = isas(Effort::Patient);
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni] {
            assert!(patient(isa, Format::I2S), "{isa}");
        }
    }

    #[test]
    fn kernels_made_for_other_columns_are_left_out() {
        let own = bitnet_codegen::candidates(Isa::Avx2, Some(Shape::new(1024, 384)));
        let other = bitnet_codegen::candidates(Isa::Avx2, Some(Shape::new(2560, 2560)));
        let all: Vec<KernelId> = own.iter().chain(&other).copied().collect();
        let ids = ids(&plan(&model(), &all, Isa::Avx2, Effort::Measure));
        assert!(!ids.is_empty() && ids.iter().all(|id| own.contains(id)), "{ids:?}");
    }
}
