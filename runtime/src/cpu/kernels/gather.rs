//! Gather kernels: they take a list of lines of a matrix, its rows or its columns.

use std::ops::Range;

use bitnet_profiles::{Format, GatherLayout, Isa, KernelId, Op, Shape};

use crate::cpu::gather::{Along, GatherView};
use crate::cpu::memory::ALIGN;
use bitnet_kernels::{self as builtin, abi};

/// A gather kernel that this CPU can run.
#[derive(Clone, Copy)]
pub struct GatherKernel {
    id: KernelId,
    layout: GatherLayout,
    along: Along,
    entry: &'static abi::GatherEntry,
}

impl std::fmt::Debug for GatherKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GatherKernel({})", self.id)
    }
}

impl GatherKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no such kernel.
    pub(super) fn new(entry: &'static abi::GatherEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        let (layout, along) = match id.op {
            Op::Rows(layout) => (layout, Along::Rows),
            Op::Columns(layout) => (layout, Along::Columns),
            _ => return None,
        };
        id.isa.is_supported().then_some(Self { id, layout, along, entry })
    }

    /// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::LINES.iter().filter_map(Self::new)
    }

    /// Returns the built-in kernel of that name, if there is one and this CPU can run it.
    pub fn find(id: &KernelId) -> Option<Self> {
        Self::builtin().find(|kernel| kernel.id == *id)
    }

    /// Returns the default: of the best ISA up to `ceiling` that which ships for this CPU, else the first in
    /// the generator's table, of T5 where that ISA reads it and `format` does not ask for another.
    pub fn default(along: Along, format: Option<Format>, ceiling: Isa) -> Option<Self> {
        let dense = format.is_none_or(|format| format == Format::T5);
        let fits = |kernel: &Self| {
            kernel.along == along
                && kernel.id.isa <= ceiling
                && (dense || kernel.layout.format() != Format::T5)
        };
        let rank = |kernel: &Self| (kernel.id.isa, kernel.layout);
        // Among equals the first.
        let first =
            Self::builtin().filter(fits).reduce(|a, b| if rank(&b) > rank(&a) { b } else { a })?;
        let own = super::shipped().gather(first.id.op, first.id.isa).and_then(|id| Self::find(&id));
        Some(own.unwrap_or(first))
    }

    /// Returns the share of needed lines at which reading all lines takes as long, where nobody
    /// measured. For T5 from memory, half of the rows or columns took nearly as long as the whole
    /// matrix (46 and 44 microseconds of 47): the hardware prefetches bytes that are left out, too.
    pub fn break_even(&self) -> f64 {
        0.5
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// The packing it reads.
    pub fn layout(&self) -> GatherLayout {
        self.layout
    }

    /// The lines it reads.
    pub fn along(&self) -> Along {
        self.along
    }

    /// Returns the bytes of so many prepared activations.
    pub fn group_bytes(&self, activations: usize) -> usize {
        (self.entry.scratch)(activations).next_multiple_of(ALIGN)
    }

    /// Returns the number of dot products that [`GatherKernel::run`] writes for so many lines and
    /// units.
    pub fn outputs(&self, lines: usize, units: usize) -> usize {
        match self.along {
            Along::Rows => lines,
            Along::Columns => units * self.layout.unit_weights(),
        }
    }

    /// Prepares the activations of one token: of every column, or of the columns listed. `group` is
    /// [`GatherKernel::group_bytes`] long and aligned to [`ALIGN`].
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn prepare(&self, quantised: &[i8], group: &mut [u8]) {
        let cols = quantised.len();
        let own = match self.along {
            Along::Rows => self.id.shape.is_none_or(|shape| shape.cols == cols),
            Along::Columns => true,
        };
        assert!(own && cols <= Shape::MAX_COLS, "{}: {cols} activations", self.id);
        assert_eq!(group.len(), self.group_bytes(cols));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        let prepare = abi::Prepare {
            quantised: quantised.as_ptr(),
            stride: cols,
            tokens: 1,
            cols,
            scratch: group.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU; the sizes, the alignment and the bound on the columns were
        // checked above; `group` is borrowed exclusively.
        unsafe { (self.entry.prepare)(&prepare) }
    }

    /// Multiplies the lines of `list` with a prepared group. Along rows: `units` are all of a line,
    /// and `out[i]` becomes the dot product of row `list[i]`. Along columns: `group` holds an
    /// activation for each column of the list, and `out` becomes the sums of the rows in `units`,
    /// those beyond the matrix included.
    ///
    /// # Panics
    /// When the matrix is packed for another kernel, the list names a line that it has not, or a
    /// size does not fit.
    pub fn run<'a>(
        &self,
        matrix: impl Into<GatherView<'a>>,
        units: Range<usize>,
        list: &[u32],
        group: &[u8],
        out: &mut [i32],
    ) {
        let matrix: GatherView<'a> = matrix.into();
        let Shape { cols, .. } = matrix.shape();
        assert!(
            matrix.layout() == self.layout && matrix.along() == self.along,
            "{}: {:?} as {}",
            self.id,
            matrix.along(),
            matrix.layout()
        );
        assert!(units.start <= units.end && units.end <= matrix.units());
        let activations = match self.along {
            Along::Rows => {
                assert!(self.id.shape.is_none_or(|own| own.cols == cols), "{}: {cols}", self.id);
                assert!(units == (0..matrix.units()));
                cols
            }
            Along::Columns => list.len(),
        };
        // No branch for each line, so that the compiler vectorises.
        let highest = list.iter().fold(0, |highest, &line| highest.max(line));
        assert!(list.is_empty() || (highest as usize) < matrix.lines(), "line {highest}");
        let last = matrix.lines().saturating_sub(1) * matrix.line_bytes();
        assert!(last + units.end * GatherLayout::UNIT_BYTES <= matrix.data().len());
        assert_eq!(group.len(), self.group_bytes(activations));
        assert_eq!(group.as_ptr() as usize % ALIGN, 0);
        assert!(out.len() >= self.outputs(list.len(), units.len()));
        let call = abi::GatherCall {
            lines: matrix.data()[units.start * GatherLayout::UNIT_BYTES..].as_ptr(),
            line_bytes: matrix.line_bytes(),
            units: units.len(),
            list: list.as_ptr(),
            count: list.len(),
            activations: group.as_ptr(),
            out: out.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU; every line of the list is one of the matrix, which is packed
        // for this kernel, and `units` are units of each, those of the last line in the data, too;
        // `group` has the size of so many prepared activations, and its content decides numbers only,
        // never addresses; `out` reaches as far as the outputs do.
        unsafe { (self.entry.run)(&call) }
    }
}
