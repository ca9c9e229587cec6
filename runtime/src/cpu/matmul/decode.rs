//! Products of one token: rows are claimed in pieces, and weights that meet a zero skipped where there are lines.

use std::ops::Range;

use bitnet_profiles::Layout;

use super::{Job, Part, Scratch, rows_of};
use crate::cpu::gather::Along;
use crate::cpu::sparse::Sparse;
use crate::cpu::threads::{SharedSlice, Worker};

/// Pieces of a worker's share of the rows for one token: a half, a quarter and so on, the last two
/// of the same size. Work stealing: a worker that has finished its share takes pieces from the end
/// of another's, where they are small. A 2B-4T shape takes 0.94 to 1.00 times as long on two cores
/// as with fixed shares; pieces of one size were tried and gain nothing.
const PIECES: usize = 6;

/// Smallest matrix, in bytes of weights, whose rows are claimed in pieces for one token. Smaller
/// shares take only microseconds, about what claiming costs.
const CLAIMED_BYTES: usize = 1 << 20;

impl Job {
    /// Multiplies one token (GEMV): `q` is `[cols]` with scale `s`, and `out` is `[rows]`. Every
    /// worker writes the rows that it claims; a barrier must follow before `out` is read. Each
    /// worker prepares the activations for itself, which is cheaper than a barrier.
    ///
    /// Prefetching the first 16 KiB of a worker's share before the preceding barrier, when memory
    /// is idle, was tried and gains at most 1 %.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all
    /// with the same job, `q`, `s` and `out`. In that phase nothing else claims work
    /// ([`Worker::claim`]), and nothing else reads or writes the elements of `out`.
    pub(crate) unsafe fn decode(
        &self,
        worker: &Worker<'_>,
        q: &[i8],
        s: f32,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let done = match &self.sparse {
            Some(sparse) if sparse.lines().along() == Along::Columns => {
                // SAFETY: the caller's promise holds for shares of the rows, too.
                unsafe { sparse.columns(worker, (q, s), scratch.space(&self.ops), out) }
            }
            Some(sparse) if sparse.products_are_finite(s) => {
                // SAFETY: as the caller promises.
                unsafe { self.decode_gated(sparse, worker, (q, s), scratch, out) };
                true
            }
            _ => false,
        };
        if done {
            return;
        }
        self.prepare_one(q, scratch);
        let mut bytes = 0;
        let step_rows = self.decode.step_rows();
        let all = self.steps(step_rows);
        let mut multiply = |steps| {
            self.for_steps(steps, step_rows, |part, steps, _| {
                // SAFETY: a step is claimed, or shared out, once in a phase.
                bytes += unsafe { self.multiply_one(part, steps, s, scratch, out) };
            });
        };
        if worker.threads > 1 && self.packed_bytes() >= CLAIMED_BYTES {
            while let Some(steps) = claim(worker, all) {
                multiply(steps);
            }
        } else {
            multiply(worker.share(all));
        }
        if let Some(sparse) = &self.sparse {
            scratch.sparse.count_bytes(sparse.lines().along(), bytes);
        }
    }

    /// As [`Job::decode`] for gate and up: each worker computes the same rows of both, so that it
    /// knows which rows of up are needed without waiting for other workers. Shares are fixed:
    /// claiming them in pieces, as for other rows, was tried and takes as long.
    ///
    /// # Safety
    /// As [`Job::decode`].
    unsafe fn decode_gated(
        &self,
        sparse: &Sparse,
        worker: &Worker<'_>,
        (q, s): (&[i8], f32),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let mut parts = self.placed();
        let (Some(gate), Some(up)) = (parts.next(), parts.next()) else {
            unreachable!("`Sparse::fits` asks for two matrices")
        };
        let step_rows = self.decode.step_rows();
        let share = worker.share(gate.matrix.shape().rows.div_ceil(step_rows));
        let (rows, offset) = (rows_of(gate.matrix, step_rows, &share), up.offset);
        self.prepare_one(q, scratch);
        // SAFETY: shares of steps are disjoint.
        let mut bytes = unsafe { self.multiply_one(gate, share.clone(), s, scratch, out) };
        // SAFETY: shares are disjoint, and what `multiply_one` held of them is given back; the two ranges
        // are of different matrices.
        let (gates, products) =
            unsafe { (out.write(rows.clone()), out.write(offset + rows.start..offset + rows.end)) };
        let space = scratch.space(&self.ops);
        if !sparse.rows((q, s), gates, rows, space, products) {
            // SAFETY: as above, and `gates` and `products` are used no more.
            bytes += unsafe { self.multiply_one(up, share, s, scratch, out) };
        }
        scratch.sparse.count_bytes(Along::Rows, bytes);
    }

    /// Prepares the activations of one token for the dense kernel.
    fn prepare_one(&self, q: &[i8], scratch: &mut Scratch) {
        let group = &mut scratch.group[..self.decode.group_bytes(self.cols)];
        self.decode.prepare(q, self.cols, group);
    }

    /// Multiplies some steps of a matrix with the prepared token. Returns the bytes of weights that
    /// it read.
    ///
    /// # Safety
    /// As [`Job::decode`]; of the workers only this one is given these steps of the matrix in this phase,
    /// and it holds no borrow of their rows in `out`.
    unsafe fn multiply_one(
        &self,
        part: Part<'_>,
        steps: Range<usize>,
        s: f32,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) -> usize {
        let Part { matrix, offset, .. } = part;
        let step_rows = self.decode.step_rows();
        let rows = rows_of(matrix, step_rows, &steps);
        let bytes = matrix.data().len() / matrix.shape().rows.next_multiple_of(Layout::ROW_PADDING)
            * (steps.len() * step_rows);
        let group = &scratch.group[..self.decode.group_bytes(self.cols)];
        let dots = &mut scratch.dots.as_i32_mut()[..steps.len() * step_rows];
        let stride = dots.len();
        self.decode.run(matrix, steps, group, dots, stride);
        // SAFETY: these rows are of the steps that only this worker has, as the caller promises.
        let out = unsafe { out.write(offset + rows.start..offset + rows.end) };
        self.write_out(part, &rows, (&dots[..rows.len()], s), out);
        bytes
    }
}

/// Claims the worker's next piece of `all` steps for one token; `None` when no piece is left.
pub(in crate::cpu) fn claim(worker: &Worker<'_>, all: usize) -> Option<Range<usize>> {
    let claimed = worker.claim(worker.threads * PIECES)?;
    let share = worker.share_of(claimed / PIECES, all);
    // Steps that are left of the share after so many pieces.
    let left = |pieces: usize| if pieces < PIECES { share.len() >> pieces } else { 0 };
    let piece = claimed % PIECES;
    Some(share.end - left(piece)..share.end - left(piece + 1))
}
