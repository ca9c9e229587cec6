//! Kernels that serve where nothing was tuned.

use bitnet_profiles::{Isa, KernelId, Role, Shape};
use bitnet_runtime::cpu::kernels::Selection;

use crate::{ModelInfo, Result};

/// Returns the untuned selection of kernels, with `ceiling` as the best tier.
///
/// # Errors
/// [`Error::Cpu`] when the CPU lacks it.
pub(crate) fn untuned(ceiling: Isa) -> Result<Selection> {
    let isa = (ceiling != Isa::best()).then_some(ceiling);
    Ok(Selection::new(isa, None, None)?)
}

/// Returns the kernels that serve a role of a model: for decode and, where it has any, for prefill.
pub(crate) fn serving(
    selection: &Selection,
    model: &ModelInfo,
    (role, parts): (Role, &[Shape]),
) -> Result<(KernelId, Option<KernelId>)> {
    Ok(match role {
        Role::LmHead => (*selection.head(model.head, model.head_shape())?.id(), None),
        Role::Attention => {
            let id = *selection.attention(parts)?.id();
            (id, Some(id))
        }
        role => {
            if let Some(width) = model.width(role) {
                let (decode, prefill) = selection.blocks(role, parts, width)?;
                (*decode.id(), Some(*prefill.id()))
            } else {
                let (decode, prefill) = selection.ternary(role, parts)?;
                (*decode.id(), Some(*prefill.id()))
            }
        }
    })
}
