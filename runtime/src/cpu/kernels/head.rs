//! Kernels of the lm_head.

use bitnet_profiles::{HeadFormat, Isa, KernelId, Op, Shape};

use super::reaches;
use crate::cpu::memory::ALIGN;
use crate::cpu::threads::{SharedSlice, Worker};
use bitnet_kernels::{self as builtin, abi};

/// Most activation rows of a head kernel.
const MAX_TOKENS: usize = 8;

/// Rows whose logits of several tokens are copied to their places together.
const BLOCK_ROWS: usize = 64;

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

    /// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::HEADS.iter().filter_map(Self::new)
    }

    /// Returns the built-in kernel of that name, if there is one and this CPU can run it.
    pub fn find(id: &KernelId) -> Option<Self> {
        Self::builtin().find(|kernel| kernel.id == *id)
    }

    /// Returns the default for a format and one token: of the best ISA up to `ceiling`, the one
    /// with one row at a time where there is a choice. More rows at a time are faster from the
    /// cache but slower from memory, where their streams cost more than they gain.
    pub fn default(format: HeadFormat, ceiling: Isa) -> Option<Self> {
        Self::builtin()
            .filter(|kernel| kernel.format == format && kernel.id.isa <= ceiling)
            .filter(|kernel| kernel.tokens() == 1)
            .max_by_key(|kernel| {
                let tile = kernel.id.tile;
                (kernel.id.isa, tile.rows == 1, std::cmp::Reverse(tile.prefetch))
            })
    }

    /// Returns the kernels for several tokens, of the best ISA up to `ceiling` that has any, by
    /// their number.
    pub fn for_batches(format: HeadFormat, ceiling: Isa) -> Vec<Self> {
        let fits = |kernel: &Self| {
            kernel.format == format && kernel.id.isa.is_within(ceiling) && kernel.tokens() > 1
        };
        let best = Self::builtin().filter(fits).map(|kernel| kernel.id.isa).max();
        let mut kernels: Vec<Self> =
            Self::builtin().filter(|kernel| fits(kernel) && Some(kernel.id.isa) == best).collect();
        kernels.sort_by_key(Self::tokens);
        kernels
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// Storage format of the rows.
    pub fn format(&self) -> HeadFormat {
        self.format
    }

    /// Most activation rows that go with each row of weights.
    pub fn tokens(&self) -> usize {
        self.id.tile.tokens
    }

    /// Returns the bytes of prepared activations of so many columns.
    pub fn prepared_bytes(&self, cols: usize) -> usize {
        (self.entry.scratch)(cols)
    }

    /// Prepares `tokens` activation rows, `x` being `[tokens][cols]`; `prepared` is
    /// [`HeadKernel::prepared_bytes`] long and aligned to [`ALIGN`]. `scale` is the head's, of a format
    /// with one for the whole tensor; others do not look at it.
    ///
    /// # Panics
    /// When a size or the alignment does not fit, or the rows are not whole blocks of the format.
    pub fn prepare(&self, (x, tokens): (&[f32], usize), scale: f32, prepared: &mut [u8]) {
        assert!((1..=self.tokens()).contains(&tokens), "{}: {tokens} tokens", self.id);
        let cols = x.len() / tokens;
        assert_eq!(x.len(), tokens * cols);
        self.check_cols(cols);
        assert_eq!(prepared.len(), self.prepared_bytes(cols));
        assert_eq!(prepared.as_ptr() as usize % ALIGN, 0);
        let prepare =
            abi::HeadPrepare { x: x.as_ptr(), tokens, cols, scale, scratch: prepared.as_mut_ptr() };
        // SAFETY: `new` checked the CPU, the lines above the sizes and the alignment.
        unsafe { (self.entry.prepare)(&prepare) }
    }

    /// Computes the worker's share of the logits of a head for `tokens` tokens: `rows` are those of
    /// the head, in the file's blocks, with its scale as [`HeadKernel::prepare`] takes it, and `x` is
    /// `[tokens][cols]`, which each worker prepares for itself in `prepared`; `out` is `[tokens][rows]`, and a barrier must follow before it is
    /// read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all with
    /// the same `tokens` and `out`. In that phase nothing else reads or writes the elements of `out`.
    ///
    /// # Panics
    /// As [`HeadKernel::prepare`] and [`HeadKernel::run`].
    pub(crate) unsafe fn run_share(
        &self,
        worker: &Worker<'_>,
        (rows, scale): (&[u8], f32),
        (x, tokens): (&[f32], usize),
        prepared: &mut [u8],
        out: &SharedSlice<'_, f32>,
    ) {
        self.prepare((x, tokens), scale, prepared);
        let (cols, all) = (x.len() / tokens, out.len() / tokens);
        let share = worker.share(all);
        let width = self.format.row_bytes(cols);
        let rows = &rows[share.start * width..share.end * width];
        if self.tokens() == 1 {
            // SAFETY: shares are disjoint; nobody else is there, as the caller promises.
            let out = unsafe { out.write(share.clone()) };
            self.run(rows, cols, prepared, out, out.len());
            return;
        }
        let mut logits = [0.0; BLOCK_ROWS * MAX_TOKENS];
        let logits = &mut logits[..BLOCK_ROWS * self.tokens()];
        let mut first = share.start;
        for rows in rows.chunks(BLOCK_ROWS * width) {
            let count = rows.len() / width;
            self.run(rows, cols, prepared, logits, BLOCK_ROWS);
            for (token, logits) in logits.chunks(BLOCK_ROWS).take(tokens).enumerate() {
                let at = token * all + first;
                // SAFETY: as above.
                unsafe { out.write(at..at + count) }.copy_from_slice(&logits[..count]);
            }
            first += count;
        }
    }

    /// Checks that the columns are whole blocks, those that the kernel is made for, and so few that
    /// no size overflows.
    fn check_cols(&self, cols: usize) {
        let own = self.id.shape.is_none_or(|shape| shape.cols == cols);
        let blocks = cols.is_multiple_of(self.format.block_weights());
        assert!(own && blocks && cols <= Shape::MAX_COLS, "{}: {cols} columns", self.id);
    }

    /// Computes the logits of consecutive rows of `cols` weights, which are in `rows` in the file's
    /// blocks: row `r` times activation row `t` goes to `out[t * stride + r]`, for as many
    /// activation rows as the kernel takes; those beyond the prepared ones have no meaning.
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn run(&self, rows: &[u8], cols: usize, prepared: &[u8], out: &mut [f32], stride: usize) {
        self.check_cols(cols);
        let width = self.format.row_bytes(cols);
        let count = rows.len() / width;
        assert_eq!(rows.len(), count * width);
        assert!(count <= stride && reaches(out, (self.tokens(), stride), count));
        assert_eq!(prepared.len(), self.prepared_bytes(cols));
        assert_eq!(prepared.as_ptr() as usize % ALIGN, 0);
        let call = abi::HeadCall {
            rows: rows.as_ptr(),
            count,
            cols,
            activations: prepared.as_ptr(),
            out: out.as_mut_ptr(),
            out_stride: stride,
        };
        // SAFETY: `new` checked the CPU, the lines above the sizes and the alignment; what stands
        // in `prepared` decides numbers only, never addresses.
        unsafe { (self.entry.run)(&call) }
    }
}
