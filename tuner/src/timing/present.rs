//! Kernels that a worker can call.

use bitnet_profiles::{KernelId, Op};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::kernels::{
    self, AttentionKernel, BlockKernel, HeadKernel, Kernel, Library,
};

use crate::Result;

/// A kernel that can be timed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Candidate {
    Ternary(Kernel),
    Blocks(BlockKernel),
    Head(HeadKernel),
    Attention(AttentionKernel),
}

impl Candidate {
    pub(crate) fn id(&self) -> &KernelId {
        match self {
            Self::Ternary(kernel) => kernel.id(),
            Self::Blocks(kernel) => kernel.id(),
            Self::Head(kernel) => kernel.id(),
            Self::Attention(kernel) => kernel.id(),
        }
    }
}

/// Kernels that a worker can call: those built in, and those of a library.
pub(crate) struct Present(pub Option<Library>);

impl Present {
    /// Returns the kernel of an id.
    pub(crate) fn find(&self, id: &KernelId) -> Result<Candidate> {
        let made = self.0.as_ref();
        let found = match id.op {
            Op::Ternary(_) => {
                let made = || made?.ternary().iter().find(|kernel| kernel.id() == id);
                kernels::find(id).or_else(made).copied().map(Candidate::Ternary)
            }
            Op::Head(_) => {
                let made = || made?.heads().iter().find(|kernel| kernel.id() == id).copied();
                HeadKernel::find(id).or_else(made).map(Candidate::Head)
            }
            Op::Blocks(_) => {
                let made = || made?.find_blocks(id);
                BlockKernel::find(id).or_else(made).map(Candidate::Blocks)
            }
            // They are no candidates.
            Op::Sketch(_) => None,
            Op::Attention => {
                let made = || made?.attention().iter().find(|kernel| kernel.id() == id).copied();
                AttentionKernel::find(id).or_else(made).map(Candidate::Attention)
            }
            Op::Rows(_) | Op::Columns(_) => None,
        };
        Ok(found
            .ok_or_else(|| Error::Runtime(format!("{id} is not present, or not for this CPU")))?)
    }
}
