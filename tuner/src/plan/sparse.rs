//! Activation sparsity: the jobs that may skip rows or columns, and the kernels that could.

use bitnet_profiles::{GatherLayout, Isa, KernelId, Role, Shape};
use bitnet_runtime::arch::Activation;
use bitnet_runtime::cpu::gather::Along;
use bitnet_runtime::cpu::kernels::GatherKernel;
use bitnet_runtime::cpu::sparse::SMALL;

use crate::ModelInfo;

/// Densities (shares of rows or columns needed) that are timed: from few to more than it pays for
/// here.
pub const DENSITIES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

/// Returns the direction in which a job can skip.
fn along(role: Role) -> Option<Along> {
    match role {
        Role::GateUp => Some(Along::Rows),
        Role::Down => Some(Along::Columns),
        _ => None,
    }
}

/// Lists the kernels for activation sparsity in a role's job: of every packing the built-in ones of
/// the best tier up to `ceiling`, the `default` first. None where the model has no squared ReLU, or
/// matrices so small that nothing is skipped.
pub fn candidates(
    model: &ModelInfo,
    (role, parts): (Role, &[Shape]),
    default: Option<&GatherKernel>,
    ceiling: Isa,
) -> Vec<KernelId> {
    let relu2 = model.config.activation == Activation::Relu2;
    let (Some(along), Some(default), Some(&part)) = (along(role), default, parts.last()) else {
        return Vec::new();
    };
    if !relu2 || along.matrix_bytes(default.layout(), part) < SMALL {
        return Vec::new();
    }
    let fits =
        |kernel: &GatherKernel| kernel.along() == along && kernel.id().isa.is_within(ceiling);
    let best = |layout: GatherLayout| {
        let own =
            GatherKernel::builtin().filter(|kernel| fits(kernel) && kernel.layout() == layout);
        own.map(|kernel| kernel.id().isa).max()
    };
    let worth = |kernel: &GatherKernel| {
        fits(kernel)
            && Some(kernel.id().isa) == best(kernel.layout())
            && kernel.id() != default.id()
    };
    let others = GatherKernel::builtin().filter(worth).map(|kernel| *kernel.id());
    [*default.id()].into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use bitnet_runtime::cpu::kernels::Selection;
    use bitnet_runtime::file::gguf::Gguf;

    use super::*;

    #[test]
    fn nothing_is_skipped_without_zeros_or_in_small_matrices() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
        let model = ModelInfo::from_gguf(&Gguf::open(path).unwrap()).unwrap();
        let selection = Selection::default();
        let ids = |model: &ModelInfo, role, parts: &[Shape]| {
            let default = selection.lines(role, parts).map(|(kernel, _)| kernel);
            let ids = candidates(model, (role, parts), default.as_ref(), Isa::best());
            assert_eq!(ids.first().copied(), default.filter(|_| !ids.is_empty()).map(|k| *k.id()));
            ids
        };
        let (up, down) = (Shape::new(6912, 2560), Shape::new(2560, 6912));
        for (role, parts, some) in [
            (Role::GateUp, vec![up; 2], true),
            (Role::Down, vec![down], true),
            (Role::Qkv, vec![up; 3], false),
            (Role::Down, vec![Shape::new(384, 1024)], false),
        ] {
            let found = ids(&model, role, &parts);
            assert_eq!(!found.is_empty(), some, "{role} {parts:?}");
            let all: std::collections::BTreeSet<&KernelId> = found.iter().collect();
            assert_eq!(all.len(), found.len(), "{role}: one stands twice");
            let mut silu = model.clone();
            silu.config.activation = Activation::Silu;
            assert_eq!(ids(&silu, role, &parts), [], "{role}");
        }
    }
}
