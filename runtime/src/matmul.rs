//! The safe entry to the ternary kernels: a [`Job`] is the set of matrices that share one input
//! (q, k and v; gate and up), the kernels chosen for them, and the split of their rows over the
//! workers.

use std::ops::Range;

use bitnet_profiles::Shape;

use crate::kernels::{Kernel, VectorOps};
use crate::lines::Along;
use crate::memory::Buffer;
use crate::pack::PackedMatrix;
use crate::sparse::{self, Sparse, Tally};
use crate::threads::{SharedSlice, Worker};
use crate::{Error, Result};

/// Rows that a worker multiplies with all groups of activations before it goes on: their weights
/// stay in its L2 cache meanwhile. A multiple of every kernel's step.
const BLOCK_ROWS: usize = bitnet_profiles::Layout::ROW_PADDING;

/// Matrices with the same input, and the kernels that multiply them.
#[derive(Debug)]
pub struct Job {
    parts: Vec<PackedMatrix>,
    decode: Kernel,
    prefill: Kernel,
    ops: VectorOps,
    cols: usize,
    rows: usize,
    sparse: Option<Sparse>,
}

/// What a worker needs for itself.
#[derive(Debug)]
pub struct Scratch {
    group: Buffer,
    dots: Vec<i32>,
    sparse: sparse::Scratch,
}

impl Scratch {
    /// All of it, for the sparse kernels.
    fn space<'a>(&'a mut self, ops: &'a VectorOps) -> sparse::Space<'a> {
        sparse::Space { group: &mut self.group, dots: &mut self.dots, own: &mut self.sparse, ops }
    }

    /// Enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Result<Self> {
        let (mut group, mut dots) = (0, 0);
        let mut sparse = sparse::Scratch::default();
        for job in jobs {
            let rows = job.parts.iter().map(|part| part.shape().rows).max().unwrap_or(0);
            group = group.max(job.decode.group_bytes(job.cols));
            dots = dots.max(rows.next_multiple_of(BLOCK_ROWS));
            dots = dots.max(job.prefill.tokens() * BLOCK_ROWS);
            if let Some(lines) = &job.sparse {
                group = group.max(lines.group_bytes());
                dots = dots.max(lines.outputs());
                sparse.grow(lines);
            }
        }
        Ok(Self { group: Buffer::zeroed(group)?, dots: vec![0; dots], sparse })
    }

    /// What this worker counted of the jobs with such lines since [`Scratch::reset_tally`].
    pub fn tally(&self, along: Along) -> Tally {
        self.sparse.tally(along)
    }

    /// Counts from 0 again.
    pub fn reset_tally(&mut self) {
        self.sparse.reset();
    }
}

impl Job {
    /// Joins `parts`, which have the same columns and the layout that both kernels read.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not fit together.
    pub fn new(parts: Vec<PackedMatrix>, decode: Kernel, prefill: Kernel) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.shape().cols);
        let fits = |part: &PackedMatrix| {
            part.shape().cols == cols
                && part.layout() == decode.layout()
                && part.layout() == prefill.layout()
        };
        if cols == 0 || !parts.iter().all(fits) || decode.tokens() != 1 {
            let shapes: Vec<Shape> = parts.iter().map(PackedMatrix::shape).collect();
            return Err(Error::Runtime(format!(
                "matrices {shapes:?} cannot be one job of {} and {}",
                decode.id(),
                prefill.id()
            )));
        }
        let rows = parts.iter().map(|part| part.shape().rows).sum();
        let ops = VectorOps::best(decode.id().isa.max(prefill.id().isa));
        Ok(Self { parts, decode, prefill, ops, cols, rows, sparse: None })
    }

    /// Lets one token skip what meets a zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the lines are not of the matrix that is skipped in.
    pub fn with_sparse(self, sparse: Sparse) -> Result<Self> {
        if !sparse.fits(&self.parts) {
            return Err(Error::Runtime(format!(
                "lines of {} for {} are none of this job",
                sparse.lines().shape(),
                sparse.kernel().id()
            )));
        }
        Ok(Self { sparse: Some(sparse), ..self })
    }

    /// Lets other kernels multiply the same matrices.
    ///
    /// # Errors
    /// As [`Job::new`]; the job then holds no matrices.
    pub fn set_kernels(&mut self, decode: Kernel, prefill: Kernel) -> Result<()> {
        let sparse = self.sparse.take();
        *self = Self { sparse, ..Self::new(std::mem::take(&mut self.parts), decode, prefill)? };
        Ok(())
    }

    /// What one token may skip.
    pub fn sparse(&self) -> Option<&Sparse> {
        self.sparse.as_ref()
    }

    /// The matrices.
    pub fn parts(&self) -> &[PackedMatrix] {
        &self.parts
    }

    /// Inputs, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Outputs of all matrices, one after the other.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The kernel for one token.
    pub fn decode_kernel(&self) -> &Kernel {
        &self.decode
    }

    /// The kernel for many tokens.
    pub fn prefill_kernel(&self) -> &Kernel {
        &self.prefill
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.data().len()).sum()
    }

    /// Multiplies one token: `q` is `[cols]` with scale `s`, and `out` is `[rows]`. Every worker
    /// calls it with the same values and writes its own rows; a barrier must follow before `out`
    /// is read. Each prepares the activations for itself, which is cheaper than a barrier.
    pub fn decode(
        &self,
        worker: &Worker<'_>,
        q: &[i8],
        s: f32,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let done = match &self.sparse {
            Some(sparse) if sparse.lines().along() == Along::Columns => {
                sparse.columns(worker, (q, s), scratch.space(&self.ops), out)
            }
            Some(sparse) if sparse.products_are_finite(s) => {
                self.decode_gated(sparse, worker, (q, s), scratch, out);
                true
            }
            _ => false,
        };
        if done {
            return;
        }
        self.prepare_one(q, scratch);
        let mut bytes = 0;
        self.for_share(worker, self.decode.step_rows(), |part, offset, steps| {
            bytes += self.multiply_one(part, offset, steps, s, scratch, out);
        });
        if let Some(sparse) = &self.sparse {
            scratch.sparse.count_bytes(sparse.lines().along(), bytes);
        }
    }

    /// As [`Job::decode`] for a gate and what it gates: each worker the same rows of both, so that it
    /// knows what is needed of the second without waiting for others.
    fn decode_gated(
        &self,
        sparse: &Sparse,
        worker: &Worker<'_>,
        (q, s): (&[i8], f32),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let [gate, up] = &self.parts[..] else {
            unreachable!("`Sparse::fits` asks for two matrices")
        };
        let step_rows = self.decode.step_rows();
        let share = worker.share(gate.shape().rows.div_ceil(step_rows));
        let (rows, offset) = (rows_of(gate, step_rows, &share), gate.shape().rows);
        self.prepare_one(q, scratch);
        let mut bytes = self.multiply_one(gate, 0, share.clone(), s, scratch, out);
        // SAFETY: as in `multiply_one`, which has ended; the two ranges are of different matrices.
        let (gates, products) =
            unsafe { (out.write(rows.clone()), out.write(offset + rows.start..offset + rows.end)) };
        let space = scratch.space(&self.ops);
        if !sparse.rows((q, s), gates, rows, space, products) {
            bytes += self.multiply_one(up, offset, share, s, scratch, out);
        }
        scratch.sparse.count_bytes(Along::Rows, bytes);
    }

    /// Prepares the activations of one token for the dense kernel.
    fn prepare_one(&self, q: &[i8], scratch: &mut Scratch) {
        let group = &mut scratch.group[..self.decode.group_bytes(self.cols)];
        self.decode.prepare(q, self.cols, group);
    }

    /// Multiplies some steps of a matrix, whose rows begin at `offset` of `out`, with the token that
    /// was prepared, and gives the bytes of weights that it read.
    fn multiply_one(
        &self,
        part: &PackedMatrix,
        offset: usize,
        steps: Range<usize>,
        s: f32,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) -> usize {
        let step_rows = self.decode.step_rows();
        let rows = rows_of(part, step_rows, &steps);
        let bytes = part.data().len() / part.shape().rows.next_multiple_of(BLOCK_ROWS)
            * (steps.len() * step_rows);
        let group = &scratch.group[..self.decode.group_bytes(self.cols)];
        let dots = &mut scratch.dots[..steps.len() * step_rows];
        let stride = dots.len();
        self.decode.run(part, steps, group, dots, stride);
        // SAFETY: shares are disjoint, and so are their rows; the caller keeps readers away until
        // the barrier.
        let out = unsafe { out.write(offset + rows.start..offset + rows.end) };
        self.ops.scale_output(&dots[..rows.len()], s, part.scale(), out);
        bytes
    }

    /// Bytes that [`Job::prepare`] needs for so many tokens.
    pub fn groups_bytes(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.prefill.tokens()) * self.prefill.group_bytes(self.cols)
    }

    /// Lays out the activations `q`, `[tokens][cols]`, in `groups`, each worker its share of
    /// groups; a barrier must follow before [`Job::prefill`]. `groups` begins aligned to [`crate::memory::ALIGN`].
    pub fn prepare(&self, worker: &Worker<'_>, q: &[i8], groups: &SharedSlice<'_, u8>) {
        let bytes = self.prefill.group_bytes(self.cols);
        let rows: Vec<&[i8]> = q.chunks(self.prefill.tokens() * self.cols).collect();
        for index in worker.share(rows.len()) {
            // SAFETY: shares are disjoint; the caller keeps readers away until the barrier.
            let group = unsafe { groups.write(index * bytes..(index + 1) * bytes) };
            self.prefill.prepare(rows[index], self.cols, group);
        }
    }

    /// Multiplies `scales.len()` tokens that [`Job::prepare`] laid out in `groups`: token `t` has
    /// scale `scales[t]` and output `out[t * rows .. (t + 1) * rows]`. Every worker writes its own
    /// rows; a barrier must follow before `out` is read.
    pub fn prefill(
        &self,
        worker: &Worker<'_>,
        groups: &[u8],
        scales: &[f32],
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let kernel = &self.prefill;
        let step_rows = kernel.step_rows();
        let bytes = kernel.group_bytes(self.cols);
        self.for_share(worker, step_rows, |part, offset, steps| {
            let block = BLOCK_ROWS / step_rows;
            for first in steps.clone().step_by(block) {
                let steps = first..(first + block).min(steps.end);
                let rows = rows_of(part, step_rows, &steps);
                for (index, scales) in scales.chunks(kernel.tokens()).enumerate() {
                    let group = &groups[index * bytes..(index + 1) * bytes];
                    kernel.run(part, steps.clone(), group, &mut scratch.dots, BLOCK_ROWS);
                    for (i, &s) in scales.iter().enumerate() {
                        let token = (index * kernel.tokens() + i) * self.rows + offset;
                        // SAFETY: as in `decode`.
                        let out = unsafe { out.write(token + rows.start..token + rows.end) };
                        let dots = &scratch.dots[i * BLOCK_ROWS..][..rows.len()];
                        self.ops.scale_output(dots, s, part.scale(), out);
                    }
                }
            }
        });
    }

    /// [`Job::prepare`] and [`Job::prefill`] with the barrier between them, for callers with
    /// nothing else to do there. `groups` is at least [`Job::groups_bytes`] long; a barrier must
    /// follow before it is written again or `out` is read.
    pub fn prepare_and_prefill(
        &self,
        worker: &Worker<'_>,
        (q, scales): (&[i8], &[f32]),
        groups: &SharedSlice<'_, u8>,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        self.prepare(worker, q, groups);
        worker.barrier();
        // SAFETY: the barrier ended the writes, and the caller lets none begin before the next.
        let groups = unsafe { groups.read(0..self.groups_bytes(scales.len())) };
        self.prefill(worker, groups, scales, scratch, out);
    }

    /// Calls `f(part, row offset of the part, steps)` for every part of the worker's share, which
    /// is contiguous over all parts.
    fn for_share(
        &self,
        worker: &Worker<'_>,
        step_rows: usize,
        mut f: impl FnMut(&PackedMatrix, usize, Range<usize>),
    ) {
        let steps = |part: &PackedMatrix| part.shape().rows.div_ceil(step_rows);
        let share = worker.share(self.parts.iter().map(steps).sum());
        let (mut first, mut offset) = (0, 0);
        for part in &self.parts {
            let end = first + steps(part);
            let (from, to) = (share.start.max(first), share.end.min(end));
            if from < to {
                f(part, offset, from - first..to - first);
            }
            first = end;
            offset += part.shape().rows;
        }
    }
}

/// The rows of a matrix that some of its steps hold, without padding.
fn rows_of(part: &PackedMatrix, step_rows: usize, steps: &Range<usize>) -> Range<usize> {
    steps.start * step_rows..(steps.end * step_rows).min(part.shape().rows)
}
