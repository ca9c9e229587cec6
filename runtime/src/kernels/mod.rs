//! The kernels, and which one serves what.
//!
//! A kernel is a pair of functions over raw memory ([`builtin::abi`]). `prepare` lays out the int8
//! rows of one group of activations (for table lookups it builds the tables), once per group and
//! matrix job; `run` multiplies a range of row steps of a packed matrix with a prepared group and
//! stores exact int32 dot products. [`Kernel`] wraps them: it exists only where the CPU has the
//! features, and checks every size, so that its methods are safe.

use std::ops::Range;
use std::sync::OnceLock;

use bitnet_profiles::{KernelId, Layout, Op, Shape};

use crate::memory::ALIGN;
use crate::pack::PackedMatrix;

pub mod attention;
pub mod builtin;
#[cfg(unix)]
pub mod cache;
#[cfg(unix)]
mod dylib;
mod head;
mod library;
mod lines;
mod selection;
mod vector;
pub mod verify;

pub use attention::AttentionKernel;
pub use head::HeadKernel;
pub use library::{Library, Unusable};
pub use lines::LinesKernel;
pub use selection::{Selection, shipped};
pub use vector::VectorOps;

use builtin::abi;

/// A ternary kernel that this CPU can run.
#[derive(Clone, Copy)]
pub struct Kernel {
    id: KernelId,
    layout: Layout,
    entry: &'static abi::TernaryEntry,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.id)
    }
}

impl Kernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no ternary kernel.
    fn new(entry: &'static abi::TernaryEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        match id.op {
            Op::Ternary(layout) if id.isa.is_supported() => Some(Self { id, layout, entry }),
            _ => None,
        }
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// The packing it reads.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows of one step.
    pub fn step_rows(&self) -> usize {
        self.id.tile.rows
    }

    /// Activation rows of a group.
    pub fn tokens(&self) -> usize {
        self.id.tile.tokens
    }

    /// Steps that cover a matrix of so many rows.
    pub fn steps(&self, rows: usize) -> usize {
        rows.div_ceil(self.step_rows())
    }

    /// Bytes of a prepared group for so many columns, rounded up so that groups can follow each
    /// other.
    pub fn group_bytes(&self, cols: usize) -> usize {
        (self.entry.scratch)(cols).next_multiple_of(ALIGN)
    }

    /// Prepares a group of `quantised.len() / cols` activation rows, at most [`Kernel::tokens`],
    /// each `cols` long. `group` is [`Kernel::group_bytes`] long and aligned to [`ALIGN`].
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn prepare(&self, quantised: &[i8], cols: usize, group: &mut [u8]) {
        assert!(
            self.id.shape.is_none_or(|shape| shape.cols == cols),
            "{}: {cols} columns",
            self.id
        );
        assert!((1..=Shape::MAX_COLS).contains(&cols), "{}: {cols} columns", self.id);
        let tokens = quantised.len() / cols;
        assert!(tokens * cols == quantised.len() && (1..=self.tokens()).contains(&tokens));
        assert_eq!(group.len(), self.group_bytes(cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let prepare = abi::Prepare {
            quantised: quantised.as_ptr(),
            stride: cols,
            tokens,
            cols,
            scratch: group.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU; the sizes, the alignment and the bound on the columns
        // were checked above; `group` is borrowed exclusively.
        unsafe { (self.entry.prepare)(&prepare) }
    }

    /// Multiplies steps `steps` of `matrix` with a prepared group: row `r` counted from the first
    /// step and activation row `t` go to `out[t * out_stride + r]`. Rows beyond the matrix and
    /// activation rows beyond the group's are written too, with values of no meaning.
    ///
    /// # Panics
    /// When the matrix is packed for another kernel, or a size does not fit.
    pub fn run(
        &self,
        matrix: &PackedMatrix,
        steps: Range<usize>,
        group: &[u8],
        out: &mut [i32],
        out_stride: usize,
    ) {
        let shape = matrix.shape();
        assert_eq!(matrix.layout(), self.layout, "{}", self.id);
        assert!(self.id.shape.is_none_or(|own| own.cols == shape.cols), "{}: {shape}", self.id);
        assert!(steps.start <= steps.end && steps.end <= self.steps(shape.rows));
        assert_eq!(group.len(), self.group_bytes(shape.cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let rows = steps.len() * self.step_rows();
        assert!(rows <= out_stride || self.tokens() == 1);
        assert!(rows == 0 || out.len() >= (self.tokens() - 1) * out_stride + rows);
        let step_bytes =
            self.step_rows() / self.layout.tile_rows() * self.layout.tile_bytes(shape.cols);
        let call = abi::Call {
            weights: matrix.data()[steps.start * step_bytes..steps.end * step_bytes].as_ptr(),
            activations: group.as_ptr(),
            out: out.as_mut_ptr(),
            cols: shape.cols,
            steps: steps.len(),
            out_stride,
        };
        // SAFETY: `new` checked the CPU; the slice above holds the steps in this kernel's layout
        // (`PackedMatrix` carries its layout); `group` has the size of a prepared group, and its
        // content decides numbers only, never addresses; `out` reaches as far as the steps and
        // the group do.
        unsafe { (self.entry.run)(&call) }
    }
}

/// The built-in kernels that this CPU can run, in the order of the generator's table.
pub fn builtin() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| builtin::TERNARY.iter().filter_map(Kernel::new).collect())
}

/// The built-in kernel of that name, if there is one and this CPU can run it.
pub fn find(id: &KernelId) -> Option<&'static Kernel> {
    builtin().iter().find(|kernel| kernel.id() == id)
}
