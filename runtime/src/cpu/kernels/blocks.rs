//! Kernels for ternary matrices with a scale for each block of columns.

use std::ops::Range;

use bitnet_profiles::{BlockLayout, KernelId, Op, Shape};

use super::reaches;
use crate::cpu::blocks::BlockMatrix;
use crate::cpu::memory::ALIGN;
use bitnet_kernels::{self as builtin, abi};

/// A kernel for matrices with block scales that this CPU can run.
#[derive(Clone, Copy)]
pub struct BlockKernel {
    id: KernelId,
    layout: BlockLayout,
    entry: &'static abi::BlockEntry,
}

impl std::fmt::Debug for BlockKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockKernel({})", self.id)
    }
}

impl BlockKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no such kernel.
    pub(super) fn new(entry: &'static abi::BlockEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        match id.op {
            Op::Blocks(layout) if id.isa.is_supported() => Some(Self { id, layout, entry }),
            _ => None,
        }
    }

    /// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::BLOCKS.iter().filter_map(Self::new)
    }

    /// Returns the built-in kernel of that name, if there is one and this CPU can run it.
    pub fn find(id: &KernelId) -> Option<Self> {
        Self::builtin().find(|kernel| kernel.id() == id)
    }

    /// Returns the built-in kernels for a few tokens, by their number: those of the ISA and the packing of
    /// `prefill` that take fewer tokens, and all at once.
    pub fn few(prefill: &Self) -> Vec<Self> {
        let fits = |kernel: &Self| {
            kernel.layout == prefill.layout
                && kernel.id.isa == prefill.id.isa
                && (2..prefill.tokens()).contains(&kernel.tokens())
                && kernel.id.at_once() == kernel.tokens()
        };
        let mut few: Vec<Self> = Self::builtin().filter(fits).collect();
        few.sort_by_key(Self::tokens);
        few.dedup_by_key(|kernel| kernel.tokens());
        few
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// The packing it reads.
    pub fn layout(&self) -> BlockLayout {
        self.layout
    }

    /// Activation rows of a group.
    pub fn tokens(&self) -> usize {
        self.id.tile.tokens
    }

    /// Returns the bytes of a prepared group for so many columns, rounded up so that groups can follow
    /// each other.
    pub fn group_bytes(&self, cols: usize) -> usize {
        (self.entry.scratch)(cols).next_multiple_of(ALIGN)
    }

    /// Prepares a group of `quantised.len() / cols` activation rows, at most [`BlockKernel::tokens`], each
    /// `cols` long, with a scale for each block of each row. `group` is [`BlockKernel::group_bytes`] long
    /// and aligned to [`ALIGN`].
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn prepare(&self, quantised: &[i8], scales: &[f32], cols: usize, group: &mut [u8]) {
        assert!(
            (1..=Shape::MAX_COLS).contains(&cols) && cols.is_multiple_of(self.layout.width()),
            "{}: {cols} columns",
            self.id
        );
        assert!(self.id.shape.is_none_or(|own| own.cols == cols), "{}: {cols} columns", self.id);
        let tokens = quantised.len() / cols;
        assert!(tokens * cols == quantised.len() && (1..=self.tokens()).contains(&tokens));
        assert_eq!(scales.len(), tokens * (cols / self.layout.width()));
        assert_eq!(group.len(), self.group_bytes(cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let prepare = abi::BlockPrepare {
            quantised: quantised.as_ptr(),
            stride: cols,
            scales: scales.as_ptr(),
            tokens,
            cols,
            scratch: group.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU; the sizes, the alignment and the columns were checked above;
        // `group` is borrowed exclusively.
        unsafe { (self.entry.prepare)(&prepare) }
    }

    /// Multiplies tiles `tiles` of `matrix` with the first `tokens` activation rows of a prepared group:
    /// row `r` counted from the first tile and activation row `t` go to `out[t * out_stride + r]`. Rows
    /// beyond the matrix are written too, and some activation rows beyond `tokens`, with values of no
    /// meaning.
    ///
    /// # Panics
    /// When the matrix is packed for another kernel, or a size does not fit.
    pub fn run(
        &self,
        matrix: &BlockMatrix,
        tiles: Range<usize>,
        (group, tokens): (&[u8], usize),
        out: &mut [f32],
        out_stride: usize,
    ) {
        let Shape { rows, cols } = matrix.shape();
        assert_eq!(matrix.layout(), self.layout, "{}", self.id);
        assert!(self.id.shape.is_none_or(|own| own.cols == cols), "{}: {cols} columns", self.id);
        let height = self.layout.tile_rows();
        assert!(tiles.start <= tiles.end && tiles.end <= rows.div_ceil(height));
        assert!((1..=self.tokens()).contains(&tokens));
        assert_eq!(group.len(), self.group_bytes(cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let written = tiles.len() * height;
        assert!(written <= out_stride || self.tokens() == 1);
        assert!(written == 0 || reaches(out, (self.tokens(), out_stride), written));
        let tile_bytes = self.layout.tile_bytes(cols);
        let call = abi::BlockCall {
            weights: matrix.data()[tiles.start * tile_bytes..tiles.end * tile_bytes].as_ptr(),
            activations: group.as_ptr(),
            out: out.as_mut_ptr(),
            cols,
            tokens,
            steps: tiles.len(),
            out_stride,
        };
        // SAFETY: `new` checked the CPU; the slice above holds the tiles in this kernel's layout
        // (`BlockMatrix` carries its layout, and holds whole blocks); `group` has the size of a prepared
        // group, and its content decides numbers only, never addresses; `out` reaches as far as the
        // tiles and the group do.
        unsafe { (self.entry.run)(&call) }
    }
}
