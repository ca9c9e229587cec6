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
use crate::cpu::packing::BadCode;
use crate::cpu::threads::{Pool, SharedSlice, Worker};
use crate::file::packed::{Builder, Form};
use crate::formats::{Codes, Scales, ZERO};
use crate::{Error, Result};

/// Tokens whose activations are prepared together: they stay in the L2 cache.
const TOKENS: usize = 64;
/// Rows that are multiplied with all of these tokens before the next ones: their weights stay in the
/// cache meanwhile. A multiple of every layout's tile.
const ROWS: usize = 128;

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
        mut buffer: Buffer,
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
        let (rows, tile_bytes) = (layout.tile_rows(), layout.tile_bytes(shape.cols));
        let tiles = buffer.len() / tile_bytes;
        let (bad, weights) = (AtomicBool::new(false), AtomicBool::new(false));
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let mut codes = vec![ZERO; shape.cols];
            for tile in worker.share(tiles) {
                // SAFETY: workers own disjoint ranges of tiles.
                let out = unsafe { out.write(tile * tile_bytes..(tile + 1) * tile_bytes) };
                for row in 0..rows {
                    let number = tile * rows + row;
                    if number < shape.rows {
                        let seen = file.read(number, 0, &mut codes);
                        bad.fetch_or(seen.bad, Ordering::Relaxed);
                        weights.fetch_or(seen.weights, Ordering::Relaxed);
                    } else {
                        codes.fill(ZERO);
                    }
                    let scale = |block| {
                        if number < shape.rows { blocks.get(number, block) } else { f16::ZERO }
                    };
                    pack_row(layout, row, &codes, scale, out);
                }
            }
        })?;
        if bad.into_inner() && !file.has_twos() {
            return Ok(Err(BadCode));
        }
        let factor = scales.of_tensor().unwrap_or(1.0) * factor;
        Self::new(layout, shape, factor, !weights.into_inner(), buffer).map(Ok)
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
        for (unit, codes) in codes.chunks_exact(16).enumerate() {
            // Field f of the row's 4 bytes: columns 4f .. 4f + 4, one in each byte.
            let packed =
                codes.as_chunks().0.iter().enumerate().fold(0, |packed, (field, quad)| {
                    packed | u32::from_le_bytes(*quad) << (2 * field)
                });
            block[unit * unit_bytes + 4 * row..][..4].copy_from_slice(&packed.to_le_bytes());
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
    /// By the number of tokens that they take, one token first.
    kernels: Vec<BlockKernel>,
    ops: VectorOps,
    cols: usize,
    rows: usize,
    largest_scale: f32,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub struct Scratch {
    /// Prepared groups.
    groups: Buffer,
    products: Vec<f32>,
}

impl Scratch {
    /// Allocates enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a BlockJob>) -> Result<Self> {
        let (mut groups, mut products) = (0, 0);
        for job in jobs {
            let rows = job.parts.iter().map(|part| part.shape.rows).max().unwrap_or(0);
            products = products.max(rows.next_multiple_of(job.tile_rows()));
            for kernel in &job.kernels {
                let most = TOKENS.div_ceil(kernel.tokens()) * kernel.group_bytes(job.cols);
                groups = groups.max(most);
                products = products.max(kernel.tokens() * ROWS);
            }
        }
        Ok(Self { groups: Buffer::zeroed(groups)?, products: filled(products, 0.0)? })
    }
}

impl BlockJob {
    /// Joins `parts`, which have the same columns and the layout that all kernels read; `kernels` by the
    /// number of tokens that they take, one first.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not fit together.
    pub fn new(
        parts: Vec<BlockMatrix>,
        biases: Vec<Option<Vec<f32>>>,
        kernels: Vec<BlockKernel>,
    ) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.shape.cols);
        let layout = kernels.first().map(BlockKernel::layout);
        let sound = |part: &BlockMatrix| part.shape.cols == cols && Some(part.layout) == layout;
        let biased = |(part, bias): (&BlockMatrix, &Option<Vec<f32>>)| {
            bias.as_ref().is_none_or(|bias| bias.len() == part.shape.rows)
        };
        let one = kernels.first().is_some_and(|kernel| kernel.tokens() == 1);
        let fits = cols > 0
            && one
            && parts.iter().all(sound)
            && kernels.iter().all(|kernel| Some(kernel.layout()) == layout)
            && parts.len() == biases.len()
            && parts.iter().zip(&biases).all(biased);
        if !fits {
            let shapes: Vec<Shape> = parts.iter().map(|part| part.shape).collect();
            return Err(Error::Runtime(format!("matrices {shapes:?} are no job of {kernels:?}")));
        }
        let rows = parts.iter().map(|part| part.shape.rows).sum();
        let ops = VectorOps::best(kernels[0].id().isa);
        let largest_scale = parts.iter().map(BlockMatrix::largest_scale).fold(0.0, f32::max);
        Ok(Self { parts, biases, kernels, ops, cols, rows, largest_scale })
    }

    /// The matrices.
    pub fn parts(&self) -> &[BlockMatrix] {
        &self.parts
    }

    /// The kernel for one token.
    pub fn decode_kernel(&self) -> &BlockKernel {
        &self.kernels[0]
    }

    /// The kernel for many tokens.
    pub fn prefill_kernel(&self) -> &BlockKernel {
        self.kernels.last().unwrap_or(&self.kernels[0])
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

    /// Columns of a block.
    pub fn width(&self) -> usize {
        self.kernels[0].layout().width()
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
        self.kernels[0].layout().tile_rows()
    }

    /// Returns the kernel for a group of up to so many tokens: the smallest that takes them, or the largest.
    fn kernel_for(&self, tokens: usize) -> &BlockKernel {
        let fits = self.kernels.iter().find(|kernel| kernel.tokens() >= tokens);
        fits.unwrap_or_else(|| self.prefill_kernel())
    }

    /// Multiplies any number of tokens: `q` is `[tokens][cols]`, with a scale for each block of each
    /// token, `[tokens][cols / width]`, and token `t` has the output `out[t * rows .. (t + 1) * rows]`.
    /// Every worker writes some of the rows; a barrier must follow before `out` is read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all with
    /// the same job, `q`, `scales` and `out`. In that phase nothing else claims work, and nothing else reads
    /// or writes the elements of `out`.
    pub(crate) unsafe fn multiply(
        &self,
        worker: &Worker<'_>,
        (q, scales): (&[i8], &[f32]),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let tokens = q.len() / self.cols;
        if tokens == 1 {
            self.prepare((q, scales), &mut scratch.groups);
            let all = self.tiles();
            while let Some(tiles) = claim(worker, all) {
                // SAFETY: a tile is claimed once in a phase.
                unsafe { self.multiply_tiles(tiles, (0, 1), scratch, out) };
            }
            return;
        }
        let blocks = self.cols / self.width();
        let share = worker.share(self.tiles());
        let most = ROWS / self.tile_rows();
        for first in (0..tokens).step_by(TOKENS) {
            let count = TOKENS.min(tokens - first);
            let q = &q[first * self.cols..(first + count) * self.cols];
            let scales = &scales[first * blocks..(first + count) * blocks];
            self.prepare((q, scales), &mut scratch.groups);
            for start in share.clone().step_by(most) {
                let tiles = start..(start + most).min(share.end);
                // SAFETY: shares are disjoint.
                unsafe { self.multiply_tiles(tiles, (first, count), scratch, out) };
            }
        }
    }

    /// Prepares tokens, group by group.
    fn prepare(&self, (q, scales): (&[i8], &[f32]), groups: &mut Buffer) {
        let largest = self.kernel_for(q.len() / self.cols).tokens();
        let blocks = self.cols / self.width();
        let mut at = 0;
        let rows = q.chunks(largest * self.cols).zip(scales.chunks(largest * blocks));
        for (q, scales) in rows {
            let kernel = self.kernel_for(q.len() / self.cols);
            let bytes = kernel.group_bytes(self.cols);
            kernel.prepare(q, scales, self.cols, &mut groups[at..at + bytes]);
            at += bytes;
        }
    }

    /// Multiplies some tiles, numbered over all parts, with `count` prepared tokens, of which `first` is the
    /// number of the first.
    ///
    /// # Safety
    /// Until the call returns nothing else reads or writes the elements of `out` that the rows of these tiles
    /// have for these tokens.
    unsafe fn multiply_tiles(
        &self,
        tiles: Range<usize>,
        (first, count): (usize, usize),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let (height, largest) = (self.tile_rows(), self.kernel_for(count).tokens());
        let (mut before, mut offset) = (0, 0);
        for (part, bias) in self.parts.iter().zip(&self.biases) {
            let end = before + part.shape.rows.div_ceil(height);
            let own =
                tiles.start.clamp(before, end) - before..tiles.end.clamp(before, end) - before;
            let rows = own.start * height..(own.end * height).min(part.shape.rows);
            let stride = own.len() * height;
            let mut at = 0;
            for start in (0..count).step_by(largest).filter(|_| !own.is_empty()) {
                let tokens = largest.min(count - start);
                let kernel = self.kernel_for(tokens);
                let group = &scratch.groups[at..at + kernel.group_bytes(self.cols)];
                at += group.len();
                let products = &mut scratch.products[..kernel.tokens() * stride];
                kernel.run(part, own.clone(), group, products, stride);
                for (token, products) in products.chunks_exact(stride).take(tokens).enumerate() {
                    let place = (first + start + token) * self.rows + offset;
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
