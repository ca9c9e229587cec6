//! Ternary matrices whose blocks of columns have scales of their own: packing, and products.
//!
//! The counterparts of [`PackedMatrix`](crate::cpu::packing::PackedMatrix) and
//! [`Job`](crate::cpu::matmul::Job) for such matrices: activations are quantised in blocks of the same
//! width ([`numerics::quantise_in_blocks`](crate::numerics::quantise_in_blocks)), and products are floats
//! ([`numerics::dot_scaled_blocks`](crate::numerics::dot_scaled_blocks)), the same to the bit whatever the
//! kernel, the threads and the number of tokens.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_profiles::{BlockLayout, Shape};
use half::f16;

use crate::cpu::kernels::{BlockKernel, VectorOps};
use crate::cpu::matmul::claim;
use crate::cpu::memory::{Buffer, Bytes, filled};
use crate::cpu::packing::{BadCode, pack_unit};
use crate::cpu::threads::{Pool, SharedSlice, Worker};
use crate::file::packed::{Builder, Form};
use crate::formats::{Codes, Scales, ZERO};
use crate::{Error, Result};

/// Rows that are multiplied with all tokens before the next ones: their weights stay in the cache
/// meanwhile. A multiple of every layout's tile.
const ROWS: usize = 128;

/// Smallest number of pieces of the rows for each worker, for several tokens.
const EQUAL_PIECES: usize = 8;

/// A ternary matrix in the tiles of a [`BlockLayout`].
#[derive(Debug)]
pub struct BlockMatrix {
    layout: BlockLayout,
    shape: Shape,
    /// Factor of all scales.
    factor: f32,
    zero: bool,
    data: Bytes,
}

/// Scales of a matrix for the blocks of a layout, as f16.
struct BlockScales<'a> {
    scales: &'a Scales,
    width: usize,
    cols: usize,
}

impl BlockScales<'_> {
    fn get(&self, row: usize, block: usize) -> f16 {
        match self.scales {
            // Its scale is the factor.
            Scales::Tensor(_) => f16::ONE,
            Scales::Rows(values) => f16::from_f32(values[row]),
            Scales::Blocks { width, values } => {
                let own = values[row * (self.cols / width) + block * self.width / width];
                f16::from_f32(own)
            }
        }
    }
}

impl BlockMatrix {
    /// Takes tiles that were packed before, with a factor of all scales; `zero` says that all weights
    /// are zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `data` is not as long as the layout has it, or columns are not whole blocks.
    pub fn new(
        layout: BlockLayout,
        shape: Shape,
        factor: f32,
        zero: bool,
        data: impl Into<Bytes>,
    ) -> Result<Self> {
        let data = data.into();
        if !Self::fits(layout, shape) || data.len() != layout.matrix_bytes(shape) {
            let bytes = data.len();
            return Err(Error::Runtime(format!("{bytes} bytes are no matrix {shape} as {layout}")));
        }
        Ok(Self { layout, shape, factor, zero, data })
    }

    fn fits(layout: BlockLayout, shape: Shape) -> bool {
        (1..=Shape::MAX_COLS).contains(&shape.cols) && shape.cols.is_multiple_of(layout.width())
    }

    /// Packs a matrix into `buffer`, its scales as f16, unless there is only one. Every worker packs the
    /// tiles it owns. All weights are multiplied by `factor` besides their scales.
    ///
    /// # Errors
    /// `Ok(Err(BadCode))` when a code is 3 in a format that has none; [`Error::Runtime`] when sizes do not
    /// fit or a worker panicked.
    pub fn pack(
        file: Codes<'_>,
        scales: &Scales,
        factor: f32,
        layout: BlockLayout,
        buffer: Buffer,
        pool: &Pool,
    ) -> Result<std::result::Result<Self, BadCode>> {
        let (shape, width) = (file.shape(), layout.width());
        let wide = match scales {
            Scales::Blocks { width: own, .. } => own.is_multiple_of(width),
            Scales::Tensor(_) | Scales::Rows(_) => true,
        };
        let fits = file.fits() && wide && Self::fits(layout, shape);
        if !fits || buffer.len() != layout.matrix_bytes(shape) {
            return Err(Error::Runtime(format!(
                "cannot pack a matrix ({file:?}) into {} bytes as {layout}",
                buffer.len()
            )));
        }
        let blocks = BlockScales { scales, width, cols: shape.cols };
        let (bad, weights) = (AtomicBool::new(false), AtomicBool::new(false));
        let codes = |row: usize, codes: &mut [u8]| {
            let seen = file.read(row, 0, codes);
            bad.fetch_or(seen.bad, Ordering::Relaxed);
            weights.fetch_or(seen.weights, Ordering::Relaxed);
        };
        let scale = |row: usize, block: usize| blocks.get(row, block);
        let buffer = pack_tiles((layout, shape), (codes, scale), buffer, pool)?;
        if bad.into_inner() && !file.has_twos() {
            return Ok(Err(BadCode));
        }
        let factor = scales.of_tensor().unwrap_or(1.0) * factor;
        Self::new(layout, shape, factor, !weights.into_inner(), buffer).map(Ok)
    }

    /// Packs codes, `[rows][cols]`, whose blocks have the scales `[rows][cols / width]`, into `buffer`. Every
    /// worker packs the tiles it owns.
    ///
    /// # Errors
    /// [`Error::Runtime`] when sizes do not fit or a worker panicked.
    pub(crate) fn pack_codes(
        (codes, scales): (&[u8], &[f16]),
        (layout, shape): (BlockLayout, Shape),
        buffer: Buffer,
        pool: &Pool,
    ) -> Result<Self> {
        let blocks = shape.cols / layout.width();
        if codes.len() != shape.weights() || scales.len() != shape.rows * blocks {
            let found = (codes.len(), scales.len());
            return Err(Error::Runtime(format!(
                "{found:?} codes and scales are no matrix {shape}"
            )));
        }
        let row_codes = |row: usize, out: &mut [u8]| {
            out.copy_from_slice(&codes[row * shape.cols..(row + 1) * shape.cols]);
        };
        let scale = |row: usize, block: usize| scales[row * blocks + block];
        let data = pack_tiles((layout, shape), (row_codes, scale), buffer, pool)?;
        Self::new(layout, shape, 1.0, codes.iter().all(|code| *code == ZERO), data)
    }

    /// Copies the matrix into `buffer`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `buffer` is not as long as [`BlockMatrix::data`] or a worker panicked.
    pub fn copy(&self, mut buffer: Buffer, pool: &Pool) -> Result<Self> {
        pool.copy(&self.data, &mut buffer)?;
        Self::new(self.layout, self.shape, self.factor, self.zero, buffer)
    }

    /// Layout of the tiles.
    pub fn layout(&self) -> BlockLayout {
        self.layout
    }

    /// Rows and columns, without padding.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Factor of all scales.
    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// True if every weight is zero.
    pub fn is_zero(&self) -> bool {
        self.zero
    }

    /// The tiles.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the largest scale of a block, with the factor.
    fn largest_scale(&self) -> f32 {
        let blocks = self.data.chunks_exact(self.layout.block_bytes());
        let scales = blocks.flat_map(|block| block[self.layout.codes_bytes()..].as_chunks().0);
        // Without their sign, which that of a zero may have, bits of numbers are in their order.
        let largest = scales.map(|&scale| u16::from_le_bytes(scale) & 0x7fff).max();
        f16::from_bits(largest.unwrap_or(0)).to_f32() * self.factor
    }
}

/// Packs a matrix into `buffer`: `codes(row, out)` gives the codes of a row, and `scale(row, block)` the scale
/// of one of its blocks. Every worker packs the tiles it owns.
///
/// # Errors
/// [`Error::Runtime`] when a worker panicked.
fn pack_tiles(
    (layout, shape): (BlockLayout, Shape),
    (codes, scale): (impl Fn(usize, &mut [u8]) + Sync, impl Fn(usize, usize) -> f16 + Sync),
    mut buffer: Buffer,
    pool: &Pool,
) -> Result<Buffer> {
    let (rows, tile_bytes) = (layout.tile_rows(), layout.tile_bytes(shape.cols));
    let tiles = buffer.len() / tile_bytes;
    let out = SharedSlice::new(&mut buffer);
    pool.run(|worker| {
        let mut row_codes = vec![ZERO; shape.cols];
        for tile in worker.share(tiles) {
            // SAFETY: workers own disjoint ranges of tiles.
            let out = unsafe { out.write(tile * tile_bytes..(tile + 1) * tile_bytes) };
            for row in 0..rows {
                let number = tile * rows + row;
                if number < shape.rows {
                    codes(number, &mut row_codes);
                    pack_row(layout, row, &row_codes, |block| scale(number, block), out);
                } else {
                    row_codes.fill(ZERO);
                    pack_row(layout, row, &row_codes, |_| f16::ZERO, out);
                }
            }
        }
    })?;
    Ok(buffer)
}

/// Writes one row of a tile: its codes and the scale of each block.
fn pack_row(
    layout: BlockLayout,
    row: usize,
    codes: &[u8],
    scale: impl Fn(usize) -> f16,
    tile: &mut [u8],
) {
    let (width, unit_bytes) = (layout.width(), 4 * layout.tile_rows());
    let blocks = tile.chunks_exact_mut(layout.block_bytes()).zip(codes.chunks_exact(width));
    for (number, (block, codes)) in blocks.enumerate() {
        for (unit, codes) in codes.as_chunks().0.iter().enumerate() {
            block[unit * unit_bytes + 4 * row..][..4]
                .copy_from_slice(&pack_unit(codes).to_le_bytes());
        }
        let at = layout.codes_bytes() + 2 * row;
        block[at..at + 2].copy_from_slice(&scale(number).to_le_bytes());
    }
}

/// Matrices with the same input and blocks, and the kernels that multiply them.
#[derive(Debug)]
pub struct BlockJob {
    parts: Vec<BlockMatrix>,
    /// Vectors added to the products of each part, `[rows]`.
    biases: Vec<Option<Vec<f32>>>,
    decode: BlockKernel,
    prefill: BlockKernel,
    /// For a few tokens, by the number that they take.
    few: Vec<BlockKernel>,
    ops: VectorOps,
    cols: usize,
    rows: usize,
    largest_scale: f32,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub struct Scratch {
    /// A prepared group.
    group: Buffer,
    products: Vec<f32>,
}

impl Scratch {
    /// Allocates enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a BlockJob>) -> Result<Self> {
        let (mut group, mut products) = (0, 0);
        for job in jobs {
            let rows = job.parts.iter().map(|part| part.shape.rows).max().unwrap_or(0);
            products = products.max(rows.next_multiple_of(job.tile_rows()));
            for kernel in [&job.decode, &job.prefill].into_iter().chain(&job.few) {
                group = group.max(kernel.group_bytes(job.cols));
                products = products.max(kernel.tokens() * ROWS);
            }
        }
        Ok(Self { group: Buffer::zeroed(group)?, products: filled(products, 0.0)? })
    }
}

impl BlockJob {
    /// Joins `parts`, which have the same columns and the layout that both kernels read.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not fit together.
    pub fn new(
        parts: Vec<BlockMatrix>,
        biases: Vec<Option<Vec<f32>>>,
        decode: BlockKernel,
        prefill: BlockKernel,
    ) -> Result<Self> {
        let largest_scale = parts.iter().map(BlockMatrix::largest_scale).fold(0.0, f32::max);
        Self::join((parts, largest_scale), biases, decode, prefill)
    }

    /// [`BlockJob::new`] of parts whose largest scale is known.
    fn join(
        (parts, largest_scale): (Vec<BlockMatrix>, f32),
        biases: Vec<Option<Vec<f32>>>,
        decode: BlockKernel,
        prefill: BlockKernel,
    ) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.shape.cols);
        let layout = decode.layout();
        let sound = |part: &BlockMatrix| part.shape.cols == cols && part.layout == layout;
        let biased = |(part, bias): (&BlockMatrix, &Option<Vec<f32>>)| {
            bias.as_ref().is_none_or(|bias| bias.len() == part.shape.rows)
        };
        let fits = cols > 0
            && decode.tokens() == 1
            && prefill.layout() == layout
            && parts.iter().all(sound)
            && parts.len() == biases.len()
            && parts.iter().zip(&biases).all(biased);
        if !fits {
            let shapes: Vec<Shape> = parts.iter().map(|part| part.shape).collect();
            return Err(Error::Runtime(format!(
                "matrices {shapes:?} cannot be one job of {} and {}",
                decode.id(),
                prefill.id()
            )));
        }
        let rows = parts.iter().map(|part| part.shape.rows).sum();
        let ops = VectorOps::best(decode.id().isa.max(prefill.id().isa));
        let few = BlockKernel::few(&prefill);
        Ok(Self { parts, biases, decode, prefill, few, ops, cols, rows, largest_scale })
    }

    /// Replaces the kernels that multiply the matrices.
    ///
    /// # Errors
    /// As [`BlockJob::new`]; the job then holds no matrices.
    pub fn set_kernels(&mut self, decode: BlockKernel, prefill: BlockKernel) -> Result<()> {
        let (parts, biases) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.biases));
        *self = Self::join((parts, self.largest_scale), biases, decode, prefill)?;
        Ok(())
    }

    /// The matrices.
    pub fn parts(&self) -> &[BlockMatrix] {
        &self.parts
    }

    /// The kernel for one token.
    pub fn decode_kernel(&self) -> &BlockKernel {
        &self.decode
    }

    /// The kernel for many tokens.
    pub fn prefill_kernel(&self) -> &BlockKernel {
        &self.prefill
    }

    /// Adds the matrices, of tensors with these names, to a file of packed weights.
    pub(crate) fn store<'a>(&'a self, names: &[String], file: &mut Builder<'a>) {
        for (name, part) in names.iter().zip(&self.parts) {
            let tiles = (name.as_str(), Form::BlockTiles(part.layout), part.shape);
            file.add(tiles, (part.factor, part.zero), &part.data[..]);
        }
    }

    /// Inputs, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Outputs of all matrices, one after the other.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a block.
    pub fn width(&self) -> usize {
        self.decode.layout().width()
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.data.len()).sum()
    }

    /// True if the products of a token with these scales are below `limit`, whatever its codes are; false
    /// where a scale is NaN.
    pub(crate) fn stays_below(&self, limit: f32, scales: &[f32]) -> bool {
        let largest = scales.iter().fold(0.0f32, |m, s| if *s <= m { m } else { *s });
        // A weight is at most 2, and an activation 128.
        (2 * 128 * self.cols) as f32 * largest * self.largest_scale < limit
    }

    fn tile_rows(&self) -> usize {
        self.decode.layout().tile_rows()
    }

    /// Returns the kernel for a group of so many tokens.
    fn group_kernel(&self, tokens: usize) -> &BlockKernel {
        let few = || self.few.iter().find(|kernel| kernel.tokens() >= tokens);
        if tokens == 1 { &self.decode } else { few().unwrap_or(&self.prefill) }
    }

    /// Multiplies one token: `q` is `[cols]`, with a scale for each block, and `out` is `[rows]`. Every
    /// worker prepares the activations for itself and writes the rows that it claims; a barrier must
    /// follow before `out` is read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all with
    /// the same job, `q`, `scales` and `out`. In that phase nothing else claims work, and nothing else reads
    /// or writes the elements of `out`.
    pub(crate) unsafe fn decode(
        &self,
        worker: &Worker<'_>,
        (q, scales): (&[i8], &[f32]),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let kernel = &self.decode;
        let group = &mut scratch.group[..kernel.group_bytes(self.cols)];
        kernel.prepare(q, scales, self.cols, group);
        let all = self.tiles();
        while let Some(tiles) = claim(worker, all) {
            // SAFETY: a tile is claimed once in a phase.
            unsafe { self.multiply_tiles(tiles, (group, 1), &mut scratch.products, out) };
        }
    }

    /// Multiplies several tokens: `q` is `[tokens][cols]`, with a scale for each block of each token,
    /// `[tokens][cols / width]`, and token `t` has the output `out[t * rows .. (t + 1) * rows]`; a barrier
    /// must follow before `out` is read. `workspace` is at least [`BlockJob::workspace_bytes`] long and
    /// begins aligned to [`crate::cpu::memory::ALIGN`]. If all tokens are one group, each worker prepares
    /// it for itself, which is cheaper than a barrier; otherwise the call contains one.
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
        let (tokens, blocks) = (q.len() / self.cols, self.cols / self.width());
        let most = self.prefill.tokens();
        let groups = if tokens <= most {
            let kernel = self.group_kernel(tokens);
            let group = &mut scratch.group[..kernel.group_bytes(self.cols)];
            kernel.prepare(q, scales, self.cols, group);
            group
        } else {
            let (bytes, count) = (self.prefill.group_bytes(self.cols), tokens.div_ceil(most));
            for index in worker.share(count) {
                let tokens = index * most..((index + 1) * most).min(tokens);
                let q = &q[tokens.start * self.cols..tokens.end * self.cols];
                let scales = &scales[tokens.start * blocks..tokens.end * blocks];
                // SAFETY: shares of groups are disjoint, and nothing else accesses them, as the caller
                // promises.
                let group = unsafe { workspace.write(index * bytes..(index + 1) * bytes) };
                let kernel = self.group_kernel(tokens.len());
                kernel.prepare(q, scales, self.cols, &mut group[..kernel.group_bytes(self.cols)]);
            }
            worker.barrier();
            // SAFETY: written before the barrier, and from then on nothing is.
            unsafe { workspace.read(0..count * bytes) }
        };
        let all = self.tiles();
        let most = (ROWS / self.tile_rows()).min(all / (EQUAL_PIECES * worker.threads)).max(1);
        while let Some(claimed) = worker.claim(all.div_ceil(most)) {
            let tiles = claimed * most..((claimed + 1) * most).min(all);
            // SAFETY: a piece is claimed once in a phase.
            unsafe { self.multiply_tiles(tiles, (groups, tokens), &mut scratch.products, out) };
        }
    }

    /// Returns the bytes of workspace for products of up to so many tokens.
    pub fn workspace_bytes(&self, tokens: usize) -> usize {
        let kernel = &self.prefill;
        tokens.div_ceil(kernel.tokens()) * kernel.group_bytes(self.cols)
    }

    /// Multiplies some tiles, numbered over all parts, with prepared groups of so many tokens in all.
    ///
    /// # Safety
    /// Until the call returns nothing else reads or writes the elements of `out` that the rows of these tiles
    /// have.
    unsafe fn multiply_tiles(
        &self,
        tiles: Range<usize>,
        (groups, tokens): (&[u8], usize),
        products: &mut [f32],
        out: &SharedSlice<'_, f32>,
    ) {
        let (height, most) = (self.tile_rows(), self.prefill.tokens());
        let groups = groups.chunks(self.prefill.group_bytes(self.cols));
        let (mut before, mut offset) = (0, 0);
        for (part, bias) in self.parts.iter().zip(&self.biases) {
            let end = before + part.shape.rows.div_ceil(height);
            let own =
                tiles.start.clamp(before, end) - before..tiles.end.clamp(before, end) - before;
            let rows = own.start * height..(own.end * height).min(part.shape.rows);
            let stride = own.len() * height;
            let starts = (0..tokens).step_by(most);
            for (start, group) in starts.zip(groups.clone()).filter(|_| !own.is_empty()) {
                let count = most.min(tokens - start);
                let kernel = self.group_kernel(count);
                let group = &group[..kernel.group_bytes(self.cols)];
                let products = &mut products[..kernel.tokens() * stride];
                kernel.run(part, own.clone(), (group, count), products, stride);
                for (token, products) in products.chunks_exact(stride).take(count).enumerate() {
                    let place = (start + token) * self.rows + offset;
                    // SAFETY: as the caller promises.
                    let out = unsafe { out.write(place + rows.start..place + rows.end) };
                    out.copy_from_slice(&products[..rows.len()]);
                    if part.factor != 1.0 {
                        out.iter_mut().for_each(|product| *product *= part.factor);
                    }
                    if let Some(bias) = bias {
                        self.ops.add(out, &bias[rows.clone()]);
                    }
                }
            }
            before = end;
            offset += part.shape.rows;
        }
    }

    /// Number of tiles of all parts.
    fn tiles(&self) -> usize {
        self.parts.iter().map(|part| part.shape.rows.div_ceil(self.tile_rows())).sum()
    }
}
