//! The safe entry to the ternary kernels: a [`Job`] is the set of matrices that share one input
//! (q, k and v; gate and up), the kernels chosen for them, and the split of their rows over the
//! workers.

use std::ops::Range;

use bitnet_profiles::{Layout, Shape};

use crate::cpu::gather::Along;
use crate::cpu::kernels::{self, Kernel, VectorOps};
use crate::cpu::memory::{ALIGN, Buffer};
use crate::cpu::packing::PackedMatrix;
use crate::cpu::sparse::{self, Sparse, Tally};
use crate::cpu::threads::{SharedSlice, Worker};
use crate::file::packed::{Builder, Form};
use crate::{Error, Result};

/// Rows of a block, which a worker multiplies with all groups of activations before the next block:
/// its weights stay in the worker's L2 cache meanwhile. A multiple of every kernel's step.
const BLOCK_ROWS: usize = 4 * Layout::ROW_PADDING;

/// Pieces of a worker's share of the rows for one token: a half, a quarter and so on, the last two
/// of the same size. Work stealing: a worker that has finished its share takes pieces from the end
/// of another's, where they are small. A 2B-4T shape takes 0.94 to 1.00 times as long on two cores
/// as with fixed shares; pieces of one size were tried and gain nothing.
const PIECES: usize = 6;

/// Smallest matrix, in bytes of weights, whose rows are claimed in pieces for one token. Smaller
/// shares take only microseconds, about what claiming costs.
const CLAIMED_BYTES: usize = 1 << 20;

/// Pieces of each worker's share for a few tokens: these are bound by computation, not by reading
/// weights, so that starting a piece costs next to nothing.
const EQUAL_PIECES: usize = 16;

/// Bytes of the expanded form in the workspace at a time: they stay in the caches. The ternary
/// products of 128 tokens took 268 to 287 ms with 6 MiB, 271 to 306 ms with 16 MiB.
const CHUNK_BYTES: usize = 6 << 20;

/// Smallest number of tokens for which the packing is expanded first; fewer are multiplied from the
/// packing. At a 2B-4T shape 128 tokens take 0.89 times as long expanded on one core and as long on
/// two; 512 take 0.9 times as long.
const EXPAND_FROM: usize = 96;

/// Smallest number of tiles in a band of rows: each band builds the tables of all tokens again.
const BAND_TILES: usize = 40;

/// Parts of the work on a chunk for each member of a team, enough to balance the load. Fewer where
/// a part would have less than `PART_TILES` tiles.
const PARTS: usize = 4;
const PART_TILES: usize = 24;

/// Workers that share a band of the rows. A team is one worker where there are rows enough, since a
/// core reads slowly what another core has expanded.
struct Team {
    /// Number of bands, and the band of this team.
    bands: usize,
    band: usize,
    /// Number of workers in a team, and this worker's number in it.
    members: usize,
    member: usize,
}

impl Team {
    /// Returns this worker's part of `0..n`, split as by [`Worker::share`].
    fn share(&self, n: usize) -> Range<usize> {
        n * self.member / self.members..n * (self.member + 1) / self.members
    }
}

/// A matrix of a job.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    matrix: &'a PackedMatrix,
    /// Offset of its rows in those of the job.
    offset: usize,
    /// Scale of its products.
    scale: f32,
    /// Added to its products, `[rows]`.
    bias: Option<&'a [f32]>,
}

/// Matrices with the same input, and the kernels that multiply them.
#[derive(Debug)]
pub struct Job {
    parts: Vec<PackedMatrix>,
    /// Scale of the products of each part.
    scales: Vec<f32>,
    /// Vectors added to the scaled products of each part, `[rows]`.
    biases: Vec<Option<Vec<f32>>>,
    decode: Kernel,
    prefill: Kernel,
    /// For a few tokens: the same as `prefill` unless that expands.
    batch: Kernel,
    /// For a last group of at most half as many tokens, which `batch` would multiply as a whole
    /// group.
    few: Option<Kernel>,
    ops: VectorOps,
    cols: usize,
    rows: usize,
    sparse: Option<Sparse>,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub struct Scratch {
    group: Buffer,
    /// int32 dot products: `Buffer::as_i32_mut`. Kernels add to them in whole cache lines.
    dots: Buffer,
    sparse: sparse::Scratch,
}

impl Scratch {
    /// Lends all of it to the sparse kernels.
    fn space<'a>(&'a mut self, ops: &'a VectorOps) -> sparse::Space<'a> {
        sparse::Space {
            group: &mut self.group,
            dots: self.dots.as_i32_mut(),
            own: &mut self.sparse,
            ops,
        }
    }

    /// Allocates enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Result<Self> {
        let (mut group, mut dots) = (0, 0);
        let mut sparse = sparse::Scratch::default();
        for job in jobs {
            let rows = job.parts.iter().map(|part| part.shape().rows).max().unwrap_or(0);
            group = group.max(job.decode.group_bytes(job.cols));
            group = group.max(job.batch.group_bytes(job.cols));
            dots = dots.max(rows.next_multiple_of(Layout::ROW_PADDING));
            dots = dots.max(job.batch.tokens() * BLOCK_ROWS);
            if job.prefill.expands() {
                let rows = job.chunk_tiles(1) * job.prefill.step_rows();
                dots = dots.max(job.prefill.tokens() * rows);
            }
            if let Some(lines) = &job.sparse {
                group = group.max(lines.group_bytes());
                dots = dots.max(lines.outputs());
                sparse.grow(lines);
            }
        }
        let dots = Buffer::zeroed(dots * size_of::<i32>())?;
        Ok(Self { group: Buffer::zeroed(group)?, dots, sparse })
    }

    /// This worker's counts for jobs with such lines since [`Scratch::reset_tally`].
    pub fn tally(&self, along: Along) -> Tally {
        self.sparse.tally(along)
    }

    /// Resets the counts to 0.
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
        let scale = |part: &PackedMatrix| {
            part.scales().of_tensor().ok_or_else(|| {
                let unit = part.scales().unit();
                Error::Runtime(format!("no kernel multiplies with a scale for each {unit}"))
            })
        };
        let scales = parts.iter().map(scale).collect::<Result<Vec<f32>>>()?;
        let rows = parts.iter().map(|part| part.shape().rows).sum();
        let ops = VectorOps::best(decode.id().isa.max(prefill.id().isa));
        let direct = prefill.expands().then(|| Kernel::direct(prefill.layout(), prefill.id().isa));
        let batch = direct.flatten().unwrap_or(prefill);
        let few = few(&batch);
        let biases = vec![None; parts.len()];
        Ok(Self {
            parts,
            scales,
            biases,
            decode,
            prefill,
            batch,
            few,
            ops,
            cols,
            rows,
            sparse: None,
        })
    }

    /// Sets what is added to the scaled products of each matrix, `[rows]`: y = dot / s * scale + bias.
    ///
    /// # Errors
    /// [`Error::Runtime`] when a bias has not as many numbers as its matrix has rows, or the job has
    /// a sparse form, which adds none.
    pub fn with_biases(mut self, biases: Vec<Option<Vec<f32>>>) -> Result<Self> {
        let fits = |(part, bias): (&PackedMatrix, &Option<Vec<f32>>)| {
            bias.as_ref().is_none_or(|bias| bias.len() == part.shape().rows)
        };
        let all_fit = self.parts.len() == biases.len() && self.parts.iter().zip(&biases).all(fits);
        if !all_fit || (self.sparse.is_some() && biases.iter().any(Option::is_some)) {
            let shapes: Vec<Shape> = self.parts.iter().map(PackedMatrix::shape).collect();
            let lengths: Vec<_> = biases.iter().map(|bias| bias.as_ref().map(Vec::len)).collect();
            return Err(Error::Runtime(format!(
                "biases of {lengths:?} numbers are none of a job of matrices {shapes:?}{}",
                if self.sparse.is_some() { " with a sparse form" } else { "" }
            )));
        }
        self.biases = biases;
        Ok(self)
    }

    /// Returns the kernel that multiplies a group of so many tokens from the packing.
    fn group_kernel(&self, tokens: usize) -> &Kernel {
        self.few.as_ref().filter(|few| tokens <= few.tokens()).unwrap_or(&self.batch)
    }

    /// Enables sparse decode: one token skips weights that are multiplied by a zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the lines do not belong to the matrix of the job in which weights
    /// are skipped, or the job has biases.
    pub fn with_sparse(mut self, sparse: Sparse) -> Result<Self> {
        self.set_sparse(Some(sparse))?;
        Ok(self)
    }

    /// Replaces or removes the sparse form, and returns the previous one.
    ///
    /// # Errors
    /// As [`Job::with_sparse`].
    pub fn set_sparse(&mut self, sparse: Option<Sparse>) -> Result<Option<Sparse>> {
        let biased = self.biases.iter().any(Option::is_some);
        if let Some(sparse) = sparse.as_ref().filter(|sparse| biased || !sparse.fits(&self.parts)) {
            return Err(Error::Runtime(format!(
                "lines of {} for {} are none of this job",
                sparse.lines().shape(),
                sparse.kernel().id()
            )));
        }
        Ok(std::mem::replace(&mut self.sparse, sparse))
    }

    /// Replaces the kernels that multiply the matrices.
    ///
    /// # Errors
    /// As [`Job::new`]; the job then holds no matrices.
    pub fn set_kernels(&mut self, decode: Kernel, prefill: Kernel) -> Result<()> {
        let (sparse, biases) = (self.sparse.take(), std::mem::take(&mut self.biases));
        *self =
            Self { sparse, biases, ..Self::new(std::mem::take(&mut self.parts), decode, prefill)? };
        Ok(())
    }

    /// The sparse form, if one token may skip weights.
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

    /// Adds the matrices, of tensors with these names, and the lines of the last one to a file of packed
    /// weights.
    pub(crate) fn store<'a>(&'a self, names: &[String], file: &mut Builder<'a>) {
        for ((name, part), &scale) in names.iter().zip(&self.parts).zip(&self.scales) {
            let tiles = (name.as_str(), Form::Tiles(part.layout()), part.shape());
            file.add(tiles, (scale, part.is_zero()), part.data());
        }
        if let (Some(name), Some(sparse)) = (names.last(), &self.sparse) {
            let lines = sparse.lines();
            let form = Form::lines(lines.layout(), lines.along());
            file.add((name, form, lines.shape()), (sparse.scale(), false), lines.data());
        }
    }

    /// Largest scale of the products.
    pub(crate) fn largest_scale(&self) -> f32 {
        self.scales.iter().copied().fold(0.0, f32::max)
    }

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

    /// Writes the outputs of some rows of a matrix for one token, from their dot products.
    fn write_out(
        &self,
        part: Part<'_>,
        rows: &Range<usize>,
        (dots, s): (&[i32], f32),
        out: &mut [f32],
    ) {
        self.ops.scale_output(dots, s, part.scale, out);
        if let Some(bias) = part.bias {
            self.ops.add(out, &bias[rows.clone()]);
        }
    }

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
            let kernel = self.group_kernel(tokens);
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
    fn groups_bytes(&self, tokens: usize) -> usize {
        let kernel = self.kernel_for(tokens);
        tokens.div_ceil(kernel.tokens()) * kernel.group_bytes(self.cols)
    }

    /// Returns the number of bands of rows for so many workers: that number or a divisor of it.
    fn bands(&self, threads: usize) -> usize {
        let most = (self.tiles() / BAND_TILES).clamp(1, threads);
        (1..=most).rev().find(|bands| threads.is_multiple_of(*bands)).unwrap_or(1)
    }

    fn team(&self, worker: &Worker<'_>) -> Team {
        let bands = self.bands(worker.threads);
        let members = worker.threads / bands;
        let (band, member) = (worker.index / members, worker.index % members);
        Team { bands, band, members, member }
    }

    /// Returns the tiles of a band: whole steps, except in the last band.
    fn band(&self, bands: usize, band: usize) -> Range<usize> {
        let start = |band: usize| {
            let tile = self.tiles() * band / bands;
            tile.next_multiple_of(self.prefill.step_tiles()).min(self.tiles())
        };
        start(band)..start(band + 1)
    }

    /// Returns the tiles of a band that are expanded at a time, a whole number of steps, for so
    /// many bands.
    fn chunk_tiles(&self, bands: usize) -> usize {
        let step = self.prefill.step_tiles();
        let most = CHUNK_BYTES / bands / self.prefill.expanded_bytes(1, self.cols) / step * step;
        most.clamp(step, self.tiles().div_ceil(bands).next_multiple_of(step) + step)
    }

    /// Returns the bytes of a chunk in the workspace.
    fn chunk_bytes(&self, bands: usize) -> usize {
        self.prefill.expanded_bytes(self.chunk_tiles(bands), self.cols).next_multiple_of(ALIGN)
    }

    /// Returns the number of tiles of all parts, which are the steps of a kernel that expands.
    fn tiles(&self) -> usize {
        self.steps(self.prefill.layout().tile_rows())
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
            let kernel = if kernel.expands() { kernel } else { self.group_kernel(tokens) };
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
                    let kernel = self.group_kernel(scales.len());
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

    /// [`Job::prefill_prepared`] from the expanded form, chunk by chunk: every team has a band of
    /// the rows, and every member of it some of the tokens.
    ///
    /// # Safety
    /// As [`Job::prefill_prepared`]; `groups` are those in front of the chunks in `workspace`.
    unsafe fn prefill_expanded(
        &self,
        worker: &Worker<'_>,
        (groups, workspace): (&[u8], &SharedSlice<'_, u8>),
        scales: &[f32],
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let kernel = &self.prefill;
        let team = self.team(worker);
        let bytes = kernel.group_bytes(self.cols);
        let count = scales.len().div_ceil(kernel.tokens());
        let bands = (0..team.bands).map(|band| self.band(team.bands, band).len());
        let chunks = bands.max().unwrap_or(0).div_ceil(self.chunk_tiles(team.bands));
        for index in 0..chunks {
            if index > 0 {
                if team.members > 1 {
                    worker.barrier();
                }
                // SAFETY: the members have done with the chunk before: a barrier lies between, or there
                // is one member only.
                unsafe { self.expand(&team, index, scales.len(), workspace) };
                if team.members > 1 {
                    worker.barrier();
                }
            }
            let chunk = self.chunk(&team, index);
            let expanded = self.chunk_range(&team, chunk.len(), scales.len());
            // SAFETY: written by this worker, or before the barrier, and read-only until the next one.
            let expanded = (unsafe { workspace.read(expanded) }, chunk.len(), self.cols);
            let wanted = if team.members == 1 { 1 } else { (PARTS * team.members).div_ceil(count) };
            let parts = wanted.clamp(1, chunk.len().div_ceil(PART_TILES).max(1));
            for unit in team.share(parts * count) {
                let (part, index) = (unit / count, unit % count);
                let tile = |part: usize| {
                    (chunk.len() * part / parts).next_multiple_of(kernel.step_tiles())
                };
                let tiles = tile(part).min(chunk.len())..tile(part + 1).min(chunk.len());
                let group = &groups[index * bytes..(index + 1) * bytes];
                let stride = tiles.len() * kernel.step_rows();
                let dots = scratch.dots.as_i32_mut();
                kernel.run_expanded(expanded, tiles.clone(), group, dots, stride);
                let (from, to) = (chunk.start + tiles.start, chunk.start + tiles.end);
                let step_rows = kernel.step_rows();
                self.for_steps(from..to, step_rows, |part, own, at| {
                    let Part { matrix, offset, .. } = part;
                    let rows = rows_of(matrix, step_rows, &own);
                    let at = (at - from) * step_rows;
                    let tokens = scales.chunks(kernel.tokens()).nth(index).unwrap_or(&[]);
                    for (i, &s) in tokens.iter().enumerate() {
                        let token = (index * kernel.tokens() + i) * self.rows + offset;
                        // SAFETY: units are disjoint, and so are bands; nothing else accesses them,
                        // as the caller promises.
                        let out = unsafe { out.write(token + rows.start..token + rows.end) };
                        let dots = &dots[i * stride + at..][..rows.len()];
                        self.write_out(part, &rows, (dots, s), out);
                    }
                });
            }
        }
    }

    /// Returns the tiles of a team's chunk.
    fn chunk(&self, team: &Team, index: usize) -> Range<usize> {
        let band = self.band(team.bands, team.band);
        let most = self.chunk_tiles(team.bands);
        let start = (band.start + index * most).min(band.end);
        start..(start + most).min(band.end)
    }

    /// Expands the member's share of a chunk.
    ///
    /// # Safety
    /// The members of the team call it, each at most once in a phase, with the same chunk. Until the next
    /// barrier, or the end of the call where the team has one member, nothing else reads or writes the
    /// team's chunk in `workspace`.
    unsafe fn expand(
        &self,
        team: &Team,
        index: usize,
        tokens: usize,
        workspace: &SharedSlice<'_, u8>,
    ) {
        let chunk = self.chunk(team, index);
        let share = team.share(chunk.len());
        let expanded = workspace.part(self.chunk_range(team, chunk.len(), tokens));
        let (from, to) = (chunk.start + share.start, chunk.start + share.end);
        self.for_steps(from..to, self.prefill.step_rows(), |part, tiles, at| {
            let place = (at - chunk.start, chunk.len());
            // SAFETY: shares of a chunk are disjoint, and nothing else accesses them, as the caller
            // promises.
            unsafe { self.prefill.expand(part.matrix, tiles, place, &expanded) };
        });
    }

    /// Returns the range in the workspace of a team's chunk of so many tiles.
    fn chunk_range(&self, team: &Team, tiles: usize, tokens: usize) -> Range<usize> {
        let start = self.groups_bytes(tokens) + team.band * self.chunk_bytes(team.bands);
        start..start + self.prefill.expanded_bytes(tiles, self.cols)
    }

    /// Returns the number of steps, of so many rows each, of all parts.
    fn steps(&self, step_rows: usize) -> usize {
        self.parts.iter().map(|part| part.shape().rows.div_ceil(step_rows)).sum()
    }

    /// Returns the matrices with their offsets, scales and biases.
    fn placed(&self) -> impl Iterator<Item = Part<'_>> {
        let mut end = 0;
        let parts = self.parts.iter().zip(&self.scales).zip(&self.biases);
        parts.map(move |((matrix, &scale), bias)| {
            let offset = end;
            end += matrix.shape().rows;
            Part { matrix, offset, scale, bias: bias.as_deref() }
        })
    }

    /// Calls `f(part, its steps, number of the first)` for every part that has some of `steps`.
    /// Steps have `step_rows` rows and are numbered over all parts.
    fn for_steps(
        &self,
        steps: Range<usize>,
        step_rows: usize,
        mut f: impl FnMut(Part<'_>, Range<usize>, usize),
    ) {
        let mut first = 0;
        for part in self.placed() {
            let end = first + part.matrix.shape().rows.div_ceil(step_rows);
            let (from, to) = (steps.start.max(first), steps.end.min(end));
            if from < to {
                f(part, from - first..to - first, from);
            }
            first = end;
        }
    }
}

/// Claims the worker's next piece of `all` steps for one token; `None` when no piece is left.
pub(super) fn claim(worker: &Worker<'_>, all: usize) -> Option<Range<usize>> {
    let claimed = worker.claim(worker.threads * PIECES)?;
    let share = worker.share_of(claimed / PIECES, all);
    // Steps that are left of the share after so many pieces.
    let left = |pieces: usize| if pieces < PIECES { share.len() >> pieces } else { 0 };
    let piece = claimed % PIECES;
    Some(share.end - left(piece)..share.end - left(piece + 1))
}

/// Returns the built-in kernel of the same tile as a prefill kernel that takes at most half as many
/// tokens; of several, the one that takes most.
fn few(prefill: &Kernel) -> Option<Kernel> {
    let id = prefill.id();
    let tile = |kernel: &Kernel| {
        let tile = kernel.id().tile;
        (kernel.layout(), kernel.id().isa, tile.rows, tile.cols, tile.unroll)
    };
    let fits = |kernel: &&Kernel| {
        tile(kernel) == tile(prefill) && (2..=id.tile.tokens / 2).contains(&kernel.tokens())
    };
    // With few tokens the weights come from memory, so prefetching is preferred.
    let order = |kernel: &&Kernel| (kernel.tokens(), kernel.id().tile.prefetch);
    kernels::builtin().iter().filter(fits).max_by_key(order).copied()
}

/// Returns the rows in some steps of a matrix, without padding.
fn rows_of(part: &PackedMatrix, step_rows: usize, steps: &Range<usize>) -> Range<usize> {
    steps.start * step_rows..(steps.end * step_rows).min(part.shape().rows)
}
