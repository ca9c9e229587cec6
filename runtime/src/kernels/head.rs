//! The kernels of the lm_head.

use bitnet_profiles::{HeadFormat, Isa, KernelId, Op};

use super::builtin::{self, abi};
use crate::memory::ALIGN;
use crate::threads::{SharedSlice, Worker};

/// A head kernel that this CPU can run.
#[derive(Clone, Copy)]
pub struct HeadKernel {
    id: KernelId,
    format: HeadFormat,
    entry: &'static abi::HeadEntry,
}

impl std::fmt::Debug for HeadKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeadKernel({})", self.id)
    }
}

impl HeadKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no head kernel.
    pub(super) fn new(entry: &'static abi::HeadEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        match id.op {
            Op::Head(format) if id.isa.is_supported() => Some(Self { id, format, entry }),
            _ => None,
        }
    }

    /// The built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::HEADS.iter().filter_map(Self::new)
    }

    /// The built-in kernel of that name, if there is one and this CPU can run it.
    pub fn find(id: &KernelId) -> Option<Self> {
        Self::builtin().find(|kernel| kernel.id == *id)
    }

    /// The default for a format: of the best ISA up to `ceiling`, the one with one row at a time
    /// where there is a choice. More rows are faster from the cache (f16, 4 rows: 129 GB/s instead
    /// of 43 on a core of Zen 5) but from memory their streams cost more than they gain (21 GB/s
    /// instead of 32 on one core, 36 instead of 48 on two).
    pub fn default(format: HeadFormat, ceiling: Isa) -> Option<Self> {
        Self::builtin()
            .filter(|kernel| kernel.format == format && kernel.id.isa <= ceiling)
            .max_by_key(|kernel| {
                let tile = kernel.id.tile;
                (kernel.id.isa, tile.rows == 1, std::cmp::Reverse(tile.prefetch))
            })
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// How the rows are stored.
    pub fn format(&self) -> HeadFormat {
        self.format
    }

    /// Bytes of a prepared row of so many columns.
    pub fn prepared_bytes(&self, cols: usize) -> usize {
        (self.entry.scratch)(cols)
    }

    /// Prepares an activation row; `prepared` is [`HeadKernel::prepared_bytes`] long and aligned to
    /// [`ALIGN`].
    ///
    /// # Panics
    /// When a size or the alignment does not fit, or the row is not whole blocks of the format.
    pub fn prepare(&self, x: &[f32], prepared: &mut [u8]) {
        self.check_cols(x.len());
        assert_eq!(prepared.len(), self.prepared_bytes(x.len()));
        assert_eq!(prepared.as_ptr() as usize % ALIGN, 0);
        let prepare =
            abi::HeadPrepare { x: x.as_ptr(), cols: x.len(), scratch: prepared.as_mut_ptr() };
        // SAFETY: `new` checked the CPU, the lines above the sizes and the alignment.
        unsafe { (self.entry.prepare)(&prepare) }
    }

    /// The worker's share of the logits of a head: every worker calls it with the same `rows`,
    /// `[out.len()][x.len()]` in the file's blocks, and the same `x`, which each prepares for
    /// itself in `prepared`; a barrier must follow before `out` is read.
    ///
    /// # Panics
    /// As [`HeadKernel::prepare`] and [`HeadKernel::run`].
    pub fn run_share(
        &self,
        worker: &Worker<'_>,
        rows: &[u8],
        x: &[f32],
        prepared: &mut [u8],
        out: &SharedSlice<'_, f32>,
    ) {
        self.prepare(x, prepared);
        let share = worker.share(out.len());
        let width = self.format.row_bytes(x.len());
        // SAFETY: shares are disjoint; the caller keeps readers away until the barrier.
        let out = unsafe { out.write(share.clone()) };
        self.run(&rows[share.start * width..share.end * width], x.len(), prepared, out);
    }

    /// Whole blocks, and the columns that the kernel is made for.
    fn check_cols(&self, cols: usize) {
        let own = self.id.shape.is_none_or(|shape| shape.cols == cols);
        let blocks = cols.is_multiple_of(self.format.block_weights());
        assert!(own && blocks, "{}: {cols} columns", self.id);
    }

    /// The logits of consecutive rows of `cols` weights: `rows` holds `out.len()` of them, in the
    /// file's blocks.
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn run(&self, rows: &[u8], cols: usize, prepared: &[u8], out: &mut [f32]) {
        self.check_cols(cols);
        assert_eq!(rows.len(), out.len() * self.format.row_bytes(cols));
        assert_eq!(prepared.len(), self.prepared_bytes(cols));
        assert_eq!(prepared.as_ptr() as usize % ALIGN, 0);
        let call = abi::HeadCall {
            rows: rows.as_ptr(),
            count: out.len(),
            cols,
            activations: prepared.as_ptr(),
            out: out.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU, the lines above the sizes and the alignment; what stands
        // in `prepared` decides numbers only, never addresses.
        unsafe { (self.entry.run)(&call) }
    }
}
