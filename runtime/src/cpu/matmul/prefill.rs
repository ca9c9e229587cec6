//! Products of several tokens: their activations are laid out in groups, and rows are claimed for all of them.

use bitnet_profiles::Layout;

use super::{Job, Part, Scratch, rows_of};
use crate::cpu::kernels::Kernel;
use crate::cpu::memory::Buffer;
use crate::cpu::threads::{SharedSlice, Worker};

/// Rows of a block, which a worker multiplies with all groups of activations before the next block:
/// its weights stay in the worker's L2 cache meanwhile. A multiple of every kernel's step.
pub(super) const BLOCK_ROWS: usize = 4 * Layout::ROW_PADDING;

/// Pieces of each worker's share for a few tokens: these are bound by computation, not by reading
/// weights, so that starting a piece costs next to nothing.
const EQUAL_PIECES: usize = 16;

/// Smallest number of tokens for which the packing is expanded first; fewer are multiplied from the
/// packing. At a 2B-4T shape 128 tokens take 0.89 times as long expanded on one core and as long on
/// two; 512 take 0.9 times as long.
const EXPAND_FROM: usize = 96;

impl Job {
    /// Multiplies `scales.len()` tokens (GEMM): `q` is `[tokens][cols]`, and token `t` has scale
    /// `scales[t]` and output `out[t * rows .. (t + 1) * rows]`; a barrier must follow before `out`
    /// is read. `workspace` is at least [`Job::workspace_bytes`] long and begins aligned to
    /// [`crate::cpu::memory::ALIGN`]. If all tokens are one group, each worker prepares it for
    /// itself, which is cheaper than a barrier; otherwise the call contains barriers.
    ///
    /// # Safety
    /// All workers of one run call it, each with the same job, `q`, `scales`, `workspace` and `out`, and the
    /// same number of barriers behind it. From the barrier before the call to the one after it nothing else
    /// claims work ([`Worker::claim`]), and nothing else reads or writes `workspace` or the elements of
    /// `out`.
    pub(crate) unsafe fn prefill(
        &self,
        worker: &Worker<'_>,
        (q, scales): (&[i8], &[f32]),
        workspace: &SharedSlice<'_, u8>,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let tokens = scales.len();
        if tokens <= self.batch.tokens() && !self.batch.expands() {
            let kernel = self.group_kernel(tokens, true);
            let group = &mut scratch.group[..kernel.group_bytes(self.cols)];
            kernel.prepare(q, self.cols, group);
            // SAFETY: as the caller promises.
            unsafe { self.prefill_packed(worker, group, scales, &mut scratch.dots, out) };
            return;
        }
        // SAFETY: nothing but this product touches `workspace`, and nobody reads it before the barrier.
        unsafe { self.prepare(worker, q, workspace) };
        worker.barrier();
        // SAFETY: as the caller promises; all workers have prepared their part.
        unsafe { self.prefill_prepared(worker, workspace, scales, scratch, out) };
    }

    /// Returns the kernel for so many tokens, more than one.
    fn kernel_for(&self, tokens: usize) -> &Kernel {
        if tokens < EXPAND_FROM { &self.batch } else { &self.prefill }
    }

    /// Returns the bytes of workspace for products of up to so many tokens, by at most so many
    /// threads.
    pub fn workspace_bytes(&self, tokens: usize, threads: usize) -> usize {
        let chunks = |threads| {
            let bands = self.bands(threads);
            bands * self.chunk_bytes(bands)
        };
        let few = self.groups_bytes(tokens.min(EXPAND_FROM - 1));
        let expands = self.kernel_for(tokens).expands();
        let chunks = if expands { (1..=threads).map(chunks).max().unwrap_or(0) } else { 0 };
        few.max(self.groups_bytes(tokens) + chunks)
    }

    /// Returns the bytes of the prepared activations of so many tokens.
    pub(super) fn groups_bytes(&self, tokens: usize) -> usize {
        let kernel = self.kernel_for(tokens);
        tokens.div_ceil(kernel.tokens()) * kernel.group_bytes(self.cols)
    }

    /// Prepares the activations `q`, `[tokens][cols]`, in `workspace`, each worker its share of
    /// groups, followed by the first chunk of the expanded form if the kernel uses it; a barrier
    /// must follow before [`Job::prefill_prepared`]. `workspace` begins aligned to
    /// [`crate::cpu::memory::ALIGN`].
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase, all with the same job, `q` and `workspace`,
    /// which nothing else reads or writes in that phase.
    unsafe fn prepare(&self, worker: &Worker<'_>, q: &[i8], workspace: &SharedSlice<'_, u8>) {
        let tokens = q.len() / self.cols;
        let kernel = self.kernel_for(tokens);
        let bytes = kernel.group_bytes(self.cols);
        let rows: Vec<&[i8]> = q.chunks(kernel.tokens() * self.cols).collect();
        for index in worker.share(rows.len()) {
            // SAFETY: shares of groups are disjoint, and nothing else accesses them, as the caller
            // promises.
            let group = unsafe { workspace.write(index * bytes..(index + 1) * bytes) };
            let tokens = rows[index].len() / self.cols;
            let kernel = if kernel.expands() { kernel } else { self.group_kernel(tokens, false) };
            kernel.prepare(rows[index], self.cols, &mut group[..kernel.group_bytes(self.cols)]);
        }
        if kernel.expands() {
            // SAFETY: chunks lie behind the groups; the rest as above.
            unsafe { self.expand(&self.team(worker), 0, tokens, workspace) };
        }
    }

    /// Multiplies `scales.len()` tokens that [`Job::prepare`] prepared in `workspace`. Every worker
    /// writes the part that it claims.
    ///
    /// # Safety
    /// As [`Job::prefill`], after a barrier that followed [`Job::prepare`] with the same `workspace` and as
    /// many tokens.
    unsafe fn prefill_prepared(
        &self,
        worker: &Worker<'_>,
        workspace: &SharedSlice<'_, u8>,
        scales: &[f32],
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        // SAFETY: written before the barrier, and from then on chunks only are written, which lie behind.
        let groups = unsafe { workspace.read(0..self.groups_bytes(scales.len())) };
        if self.kernel_for(scales.len()).expands() {
            // SAFETY: as the caller promises.
            unsafe { self.prefill_expanded(worker, (groups, workspace), scales, scratch, out) };
        } else {
            // SAFETY: as above.
            unsafe { self.prefill_packed(worker, groups, scales, &mut scratch.dots, out) };
        }
    }

    /// [`Job::prefill_prepared`] from the packing: workers claim a few rows at a time, for all
    /// tokens.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase, all with the same job, `scales` and `out`.
    /// In that phase nothing else claims work, and nothing else reads or writes the elements of `out`.
    unsafe fn prefill_packed(
        &self,
        worker: &Worker<'_>,
        groups: &[u8],
        scales: &[f32],
        dots: &mut Buffer,
        out: &SharedSlice<'_, f32>,
    ) {
        let dots = dots.as_i32_mut();
        let (step_rows, tokens) = (self.batch.step_rows(), self.batch.tokens());
        let bytes = self.batch.group_bytes(self.cols);
        let all = self.steps(step_rows);
        let most = (BLOCK_ROWS / step_rows).min(all / (EQUAL_PIECES * worker.threads)).max(1);
        while let Some(claimed) = worker.claim(all.div_ceil(most)) {
            let first = claimed * most;
            self.for_steps(first..(first + most).min(all), step_rows, |part, steps, _| {
                let Part { matrix, offset, .. } = part;
                let rows = rows_of(matrix, step_rows, &steps);
                for (index, scales) in scales.chunks(tokens).enumerate() {
                    let kernel = self.group_kernel(scales.len(), index == 0);
                    let group = &groups[index * bytes..][..kernel.group_bytes(self.cols)];
                    kernel.run(matrix, steps.clone(), group, dots, BLOCK_ROWS);
                    for (i, &s) in scales.iter().enumerate() {
                        let token = (index * tokens + i) * self.rows + offset;
                        // SAFETY: these rows were claimed, which happens once in a phase; nothing
                        // else accesses them, as the caller promises.
                        let out = unsafe { out.write(token + rows.start..token + rows.end) };
                        let dots = &dots[i * BLOCK_ROWS..][..rows.len()];
                        self.write_out(part, &rows, (dots, s), out);
                    }
                }
            });
        }
    }
}
