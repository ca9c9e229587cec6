//! Kernels, and the selection of those that serve a model.
//!
//! A kernel is a pair of functions over raw memory ([`bitnet_kernels::abi`]). `prepare` lays out the int8
//! rows of one group of activations (for table lookups it builds the tables), once per group and
//! matrix job; `run` multiplies a range of row steps of a packed matrix with a prepared group and
//! stores exact int32 dot products. [`Kernel`] wraps them: it exists only where the CPU has the
//! features, and checks every size, so that its methods are safe.

use std::ops::Range;
use std::sync::OnceLock;

use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};

use crate::cpu::memory::{ALIGN, Buffer};
use crate::cpu::packing::PackedMatrix;
use crate::cpu::threads::SharedSlice;

pub mod attention;
mod blocks;
#[cfg(unix)]
pub mod cache;
#[cfg(unix)]
mod dylib;
mod gather;
mod head;
mod library;
mod selection;
mod sketch;
mod vector;
pub mod verify;

pub use attention::AttentionKernel;
pub use blocks::BlockKernel;
pub use gather::GatherKernel;
pub use head::HeadKernel;
pub use library::{Library, Unusable};
pub use selection::{Selection, shipped};
pub use sketch::{SketchInput, SketchKernel};
pub use vector::VectorOps;

use bitnet_kernels::{self as builtin, abi};

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

    /// Rows of one step. A kernel that expands proceeds by tiles.
    pub fn step_rows(&self) -> usize {
        if self.expands() { self.layout.tile_rows() } else { self.id.tile.rows }
    }

    /// Tiles of one step of a kernel that expands.
    pub fn step_tiles(&self) -> usize {
        self.id.tile.rows / self.layout.tile_rows()
    }

    /// True if it multiplies from the expanded form of a matrix, which `Kernel::expand` makes and
    /// [`Kernel::run_expanded`] reads; otherwise [`Kernel::run`] reads the packing.
    pub fn expands(&self) -> bool {
        self.entry.expansion.is_some()
    }

    /// Returns the kernel for a few activation rows that reads the packing directly, from memory:
    /// of those for the most rows the one that prefetches (8 rows of a 2B-4T shape take 1.3 times
    /// as long without).
    pub fn direct(layout: Layout, ceiling: Isa) -> Option<Self> {
        let fits = |kernel: &&Self| {
            kernel.layout == layout && kernel.id.isa <= ceiling && !kernel.expands()
        };
        let order =
            |kernel: &&Self| (kernel.id.isa, kernel.id.tile.tokens, kernel.id.tile.prefetch);
        builtin().iter().filter(fits).max_by_key(order).copied()
    }

    /// Activation rows of a group.
    pub fn tokens(&self) -> usize {
        self.id.tile.tokens
    }

    /// Returns the number of steps that cover a matrix of so many rows.
    pub fn steps(&self, rows: usize) -> usize {
        rows.div_ceil(self.step_rows())
    }

    /// Returns the bytes of a prepared group for so many columns, rounded up so that groups can
    /// follow each other.
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
        assert!(!self.expands() && matrix.layout() == self.layout, "{}", self.id);
        assert!(self.id.shape.is_none_or(|own| own.cols == shape.cols), "{}: {shape}", self.id);
        assert!(steps.start <= steps.end && steps.end <= self.steps(shape.rows));
        assert_eq!(group.len(), self.group_bytes(shape.cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let rows = steps.len() * self.step_rows();
        assert!(rows <= out_stride || self.tokens() == 1);
        assert!(rows == 0 || reaches(out, (self.tokens(), out_stride), rows));
        let step_bytes =
            self.step_rows() / self.layout.tile_rows() * self.layout.tile_bytes(shape.cols);
        let call = abi::Call {
            weights: matrix.data()[steps.start * step_bytes..steps.end * step_bytes].as_ptr(),
            activations: group.as_ptr(),
            out: out.as_mut_ptr(),
            cols: shape.cols,
            steps: steps.len(),
            out_stride,
            block_stride: 0,
        };
        // SAFETY: `new` checked the CPU; the slice above holds the steps in this kernel's layout
        // (`PackedMatrix` carries its layout); `group` has the size of a prepared group, and its
        // content decides numbers only, never addresses; `out` reaches as far as the steps and
        // the group do.
        unsafe { (self.entry.run)(&call) }
    }

    /// Returns the bytes of the expanded form of so many tiles: a kernel may read one byte beyond
    /// the last.
    ///
    /// # Panics
    /// When the kernel does not expand, or so many tiles do not fit memory.
    pub fn expanded_bytes(&self, tiles: usize, cols: usize) -> usize {
        let expansion = self.entry.expansion.expect("asked of kernels that expand");
        let bytes = tiles.checked_mul((expansion.tile_bytes)(cols));
        bytes.and_then(|bytes| bytes.checked_add(1)).expect("a form that fits memory")
    }

    /// Expands tiles `tiles` of `matrix` into the places from `first` on in the expanded form of
    /// `all` tiles, [`Kernel::expanded_bytes`] long.
    ///
    /// # Safety
    /// Nobody else accesses `expanded` meanwhile, but for workers that expand to other places.
    ///
    /// # Panics
    /// When the kernel does not expand, the matrix is packed for another one, or a size does not fit.
    pub(crate) unsafe fn expand(
        &self,
        matrix: &PackedMatrix,
        tiles: Range<usize>,
        (first, all): (usize, usize),
        expanded: &SharedSlice<'_, u8>,
    ) {
        let shape = matrix.shape();
        let expansion = self.entry.expansion.expect("asked of kernels that expand");
        assert_eq!(matrix.layout(), self.layout, "{}", self.id);
        assert!(self.id.shape.is_none_or(|own| own.cols == shape.cols), "{}: {shape}", self.id);
        assert!(tiles.start <= tiles.end && first <= all && tiles.len() <= all - first);
        assert_eq!(expanded.len(), self.expanded_bytes(all, shape.cols));
        let tile_bytes = self.layout.tile_bytes(shape.cols);
        let expand = abi::Expand {
            weights: matrix.data()[tiles.start * tile_bytes..tiles.end * tile_bytes].as_ptr(),
            tiles: tiles.len(),
            cols: shape.cols,
            first,
            all,
            out: expanded.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU, the lines above the sizes; the caller keeps others away.
        unsafe { (expansion.run)(&expand) }
    }

    /// Multiplies as [`Kernel::run`] does, with tiles `tiles` of the expanded form of `all` tiles
    /// of `cols` columns: whole steps of [`Kernel::step_tiles`], except for the form's last one.
    /// The previous content of `out` does not matter.
    ///
    /// # Panics
    /// When the kernel does not expand or a size does not fit.
    pub fn run_expanded(
        &self,
        (expanded, all, cols): (&[u8], usize, usize),
        tiles: Range<usize>,
        group: &[u8],
        out: &mut [i32],
        out_stride: usize,
    ) {
        assert!(self.id.shape.is_none_or(|own| own.cols == cols), "{}: {cols}", self.id);
        assert!((1..=Shape::MAX_COLS).contains(&cols), "{}: {cols} columns", self.id);
        assert!(tiles.start <= tiles.end && tiles.end <= all);
        let whole = |tile: usize| tile == all || tile.is_multiple_of(self.step_tiles());
        assert!(whole(tiles.start) && whole(tiles.end), "{}: {tiles:?} of {all}", self.id);
        assert_eq!(expanded.len(), self.expanded_bytes(all, cols));
        assert_eq!(group.len(), self.group_bytes(cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let rows = tiles.len() * self.step_rows();
        assert!(rows <= out_stride && reaches(out, (self.tokens(), out_stride), rows));
        let blocks = cols.div_ceil(self.id.tile.cols);
        let block_bytes = (self.expanded_bytes(1, cols) - 1) / blocks;
        let call = abi::Call {
            weights: expanded[tiles.start * block_bytes..].as_ptr(),
            activations: group.as_ptr(),
            out: out.as_mut_ptr(),
            cols,
            steps: tiles.len(),
            out_stride,
            block_stride: all * block_bytes,
        };
        // SAFETY: `new` checked the CPU; every block of the expanded form holds `all` tiles, of which
        // `tiles` are some, and a byte follows the last; `group` and `out` as in `run`.
        unsafe { (self.entry.run)(&call) }
    }
}

/// True if `out` holds `rows` results of each of some tokens, `stride` apart.
fn reaches<T>(out: &[T], (tokens, stride): (usize, usize), rows: usize) -> bool {
    let end = (tokens - 1).checked_mul(stride).and_then(|last| last.checked_add(rows));
    end.is_some_and(|end| end <= out.len())
}

/// A matrix in the form that a kernel reads, for use by one thread: packed, or also expanded.
#[derive(Debug)]
pub struct Operand<'m> {
    matrix: &'m PackedMatrix,
    /// The expanded form, and its number of tiles.
    expanded: Option<(Buffer, usize)>,
}

impl<'m> Operand<'m> {
    /// Expands the matrix if the kernel needs that.
    ///
    /// # Errors
    /// [`crate::Error::Runtime`] when the system refuses the memory.
    ///
    /// # Panics
    /// When the matrix is packed for another kernel.
    pub fn new(kernel: &Kernel, matrix: &'m PackedMatrix) -> crate::Result<Self> {
        let expand = || -> crate::Result<_> {
            let tiles = kernel.steps(matrix.shape().rows);
            let mut form = Buffer::zeroed(kernel.expanded_bytes(tiles, matrix.shape().cols))?;
            // SAFETY: nobody else knows of it.
            unsafe { kernel.expand(matrix, 0..tiles, (0, tiles), &SharedSlice::new(&mut form)) };
            Ok((form, tiles))
        };
        let expanded = if kernel.expands() { Some(expand()?) } else { None };
        Ok(Self { matrix, expanded })
    }

    /// Runs [`Kernel::run`] or [`Kernel::run_expanded`], by the kernel that the operand was made
    /// for.
    ///
    /// # Panics
    /// As these, and when the operand was made for a kernel that reads the other form.
    pub fn run(
        &self,
        kernel: &Kernel,
        steps: Range<usize>,
        group: &[u8],
        out: &mut [i32],
        out_stride: usize,
    ) {
        match &self.expanded {
            None => kernel.run(self.matrix, steps, group, out, out_stride),
            Some((form, tiles)) => {
                let form = (&form[..], *tiles, self.matrix.shape().cols);
                kernel.run_expanded(form, steps, group, out, out_stride);
            }
        }
    }
}

/// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
pub fn builtin() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| builtin::TERNARY.iter().filter_map(Kernel::new).collect())
}

/// Returns the built-in kernel of that name, if there is one and this CPU can run it.
pub fn find(id: &KernelId) -> Option<&'static Kernel> {
    builtin().iter().find(|kernel| kernel.id() == id)
}
