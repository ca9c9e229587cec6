//! Kernels for ternary matrices with a scale for each block of columns.

use std::ops::Range;

use bitnet_profiles::{BlockLayout, Isa, KernelId, Op, Shape};

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
    fn new(entry: &'static abi::BlockEntry) -> Option<Self> {
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

    /// Returns the kernels of the best ISA up to `ceiling` for blocks of so many columns, by the number of
    /// tokens that they take, one token first. All read the same layout.
    pub fn defaults(width: usize, ceiling: Isa) -> Vec<Self> {
        let fits = |kernel: &Self| kernel.layout.width() == width && kernel.id.isa <= ceiling;
        let of_one = Self::builtin().filter(|kernel| fits(kernel) && kernel.tokens() == 1);
        // Of equals the first in the table is the default.
        let best = of_one.reduce(|a, b| if b.id.isa > a.id.isa { b } else { a });
        let Some(best) = best else { return Vec::new() };
        let own = |kernel: &Self| {
            kernel.layout == best.layout && kernel.id.isa == best.id.isa && kernel.tokens() > 1
        };
        let mut kernels = vec![best];
        kernels.extend(Self::builtin().filter(own));
        kernels.sort_by_key(Self::tokens);
        kernels.dedup_by_key(|kernel| kernel.tokens());
        kernels
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

    /// Multiplies tiles `tiles` of `matrix` with a prepared group: row `r` counted from the first tile and
    /// activation row `t` go to `out[t * out_stride + r]`. Rows beyond the matrix and activation rows
    /// beyond the group's are written too, with values of no meaning.
    ///
    /// # Panics
    /// When the matrix is packed for another kernel, or a size does not fit.
    pub fn run(
        &self,
        matrix: &BlockMatrix,
        tiles: Range<usize>,
        group: &[u8],
        out: &mut [f32],
        out_stride: usize,
    ) {
        let Shape { rows, cols } = matrix.shape();
        assert_eq!(matrix.layout(), self.layout, "{}", self.id);
        assert!(self.id.shape.is_none_or(|own| own.cols == cols), "{}: {cols} columns", self.id);
        let height = self.layout.tile_rows();
        assert!(tiles.start <= tiles.end && tiles.end <= rows.div_ceil(height));
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
