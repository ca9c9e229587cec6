//! What there is to measure: for every job of a model the layouts, and for every layout the decode
//! and the prefill kernels that read it. A layout is chosen together with both, because there is
//! one packed copy of the weights in memory.

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, Format, Isa, KernelId, Layout, Op, Role, Shape};
use bitnet_runtime::model::config::JobShapes;

/// The candidates for one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPlan {
    /// What the job is for.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Times per token that it runs.
    pub count: u32,
    /// The layouts, in the order of their declaration: simpler ones first.
    pub layouts: Vec<LayoutPlan>,
}

/// The candidates for one layout of a job; neither list is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutPlan {
    /// The packing.
    pub layout: Layout,
    /// Kernels for one token.
    pub decode: Vec<KernelId>,
    /// Kernels for many tokens.
    pub prefill: Vec<KernelId>,
}

impl LayoutPlan {
    /// The kernels of a phase.
    pub fn kernels(&self, phase: Phase) -> &[KernelId] {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// Groups those of `kernels` that are worth timing on a CPU with `ceiling` as its best tier.
///
/// `Effort::Patient` takes all it can run. Otherwise a format is tried with the widest vectors that
/// have kernels for it, and where some of those multiply bytes straight into 32 bits (VNNI), only
/// with these: they do the same work in fewer instructions.
pub fn plan(
    jobs: &[JobShapes],
    kernels: &[KernelId],
    ceiling: Isa,
    effort: Effort,
) -> Vec<JobPlan> {
    let ternary: Vec<(Layout, KernelId)> = kernels
        .iter()
        .filter(|id| id.isa.is_within(ceiling))
        .filter_map(|&id| match id.op {
            Op::Ternary(layout) => Some((layout, id)),
            _ => None,
        })
        .collect();
    let rank = |isa: Isa, format: Format| {
        (isa != Isa::Scalar, isa.lanes(), format == Format::I2S && isa.dots_are_wide())
    };
    let best = |format: Format| {
        let of_format = ternary.iter().filter(|(layout, _)| layout.format() == format);
        of_format.map(|(_, id)| rank(id.isa, format)).max()
    };
    let worth = |layout: Layout, id: &KernelId| {
        let format = layout.format();
        effort == Effort::Patient || Some(rank(id.isa, format)) == best(format)
    };
    jobs.iter()
        .map(|job| {
            let fits = |id: &KernelId| {
                id.shape.is_none_or(|own| job.parts.iter().all(|part| part.cols == own.cols))
            };
            let of = |layout: Layout, phase: Phase| -> Vec<KernelId> {
                ternary
                    .iter()
                    .filter(|(own, id)| *own == layout && Phase::of(&id.tile) == phase)
                    .filter(|(own, id)| worth(*own, id) && fits(id))
                    .map(|&(_, id)| id)
                    .collect()
            };
            let layouts = Layout::ALL
                .iter()
                .map(|&layout| LayoutPlan {
                    layout,
                    decode: of(layout, Phase::Decode),
                    prefill: of(layout, Phase::Prefill),
                })
                .filter(|plan| !plan.decode.is_empty() && !plan.prefill.is_empty())
                .collect();
            JobPlan { role: job.role, parts: job.parts.clone(), count: job.count, layouts }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Vec<JobShapes> {
        let shape = Shape::new(2560, 6912);
        vec![JobShapes { role: Role::Down, parts: vec![shape], count: 30 }]
    }

    fn ids(plan: &[JobPlan]) -> Vec<KernelId> {
        let layouts = plan.iter().flat_map(|job| &job.layouts);
        layouts.flat_map(|l| l.decode.iter().chain(&l.prefill).copied()).collect()
    }

    #[test]
    fn every_ceiling_has_candidates_and_its_default_is_one() {
        let all = bitnet_codegen::grid(Isa::ALL);
        for &ceiling in Isa::ALL {
            let default = bitnet_profiles::registry::generic(None, ceiling);
            for effort in [Effort::Measure, Effort::Patient] {
                let plan = plan(&jobs(), &all, ceiling, effort);
                let ids = ids(&plan);
                assert!(ids.iter().all(|id| id.isa.is_within(ceiling)));
                assert!(ids.contains(&default.decode), "{ceiling} {effort}");
                assert!(ids.contains(&default.prefill), "{ceiling} {effort}");
                for layout in &plan[0].layouts {
                    for phase in [Phase::Decode, Phase::Prefill] {
                        let kernels = layout.kernels(phase);
                        assert!(!kernels.is_empty());
                        for id in kernels {
                            assert_eq!(id.op, Op::Ternary(layout.layout));
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
            let ids = ids(&plan(&jobs(), &all, Isa::Avx512Vnni, effort));
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
        let own = bitnet_codegen::candidates(Isa::Avx2, Some(Shape::new(2560, 6912)));
        let other = bitnet_codegen::candidates(Isa::Avx2, Some(Shape::new(2560, 2560)));
        let all: Vec<KernelId> = own.iter().chain(&other).copied().collect();
        let ids = ids(&plan(&jobs(), &all, Isa::Avx2, Effort::Measure));
        assert!(!ids.is_empty() && ids.iter().all(|id| own.contains(id)), "{ids:?}");
    }
}
