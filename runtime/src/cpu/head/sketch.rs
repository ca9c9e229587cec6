//! Low-bit copies of the `lm_head`, and bounds of the error of estimates from them.
//!
//! There are two copies. A scan reads the *sketch* ([`SketchFormat`]) whole. The *refinement* rows
//! hold what the sketch leaves of each row, as a ternary row with a scale; a gather kernel reads
//! them for the rows that may still be among the best. With w a row of the head, p and b its rows
//! in the two copies, both exact real vectors, and x the activations as the full head sees them,
//!
//! ```text
//! logit = w x + e,   |e| <= gamma |w| |x|         (rounding, of the depth of the full head's sum)
//! scan  = p x' + e', |e'| <= gamma' |p| |x'|      (x' has 8 bits in blocks, or twice as many)
//! refinement  = b x" + e", |e"| <= gamma" |b| |x"|      (x" has 8 bits)
//!
//! |logit - scan|        <= |w - p| |x| + |p| |x - x'| + e + e'
//! |logit - scan - refinement| <= |w - p - b| |x| + |p| |x - x'| + |b| |x - x"| + e + e' + e"
//! ```
//!
//! by the Cauchy-Schwarz inequality. `|w - p|` and `|w - p - b|` are kept for each row, rounded up;
//! all other terms are small and take the largest norm of all rows. Where weights are counted from a
//! minimum, what rounding sees of a row is its codes times their scales and its minima, which are
//! larger than w by at most twice the minima. Heads of quantised blocks take x in such blocks too, so
//! that x' is x. For a head of floats a token alone is two rows of
//! activations, the second being what 8 bits leave: with only one, a 2B-4T f16 head of noise had
//! 3.2 % of its rows as survivors instead of 1.6 %. Norms are never computed smaller than they are:
//! sums of f32 are assumed to be as wrong as their depth allows, and a bound of what underflow
//! could hide is added.
//!
//! Refinement rows of 4 bits in blocks were tried: they left fewer rows to compute, 0.1 % of them,
//! but took 185 MB for a 2B-4T head instead of 66 MB.

use std::borrow::Cow;
use std::ops::Range;

use bitnet_profiles::{GatherLayout, HeadFormat, Isa, Shape, SketchFormat};

use crate::cpu::gather::{self, Along, GatherMatrix};
use crate::cpu::kernels::{GatherKernel, SketchInput, SketchKernel, VectorOps};
use crate::cpu::memory::{Buffer, Bytes, Pages, filled};
use crate::cpu::table::Table;
use crate::cpu::threads::{Pool, SharedSlice};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::file::packed::{Builder, Form, PackedFile, SketchNumbers};
use crate::numerics::{BLOCK, Reach, reaches};

/// Rows in a tile of a sketch.
pub(crate) const TILE_ROWS: usize = SketchFormat::TILE_ROWS;
/// Tiles after which pages of the file are released.
const TILES_PER_DROP: usize = 64;
/// Unit roundoff of f32.
const U: f64 = 1.0 / (1 << 24) as f64;
/// Bound of what underflow can take from a norm of up to 2^18 elements, or from a sum.
const UNDERFLOW: f64 = 1.0 / (1u64 << 60) as f64;
/// Largest product of norms; beyond it intermediate values could overflow f32.
const MAX_PRODUCT: f64 = 1e30;

/// The copies of a head, and the kernels that read them.
#[derive(Debug)]
pub struct HeadSketch {
    rows: usize,
    cols: usize,
    activations: Activations,
    /// Scan kernels in order of the tokens they take, from one on.
    kernels: Vec<SketchKernel>,
    refinement_kernel: GatherKernel,
    refinement: GatherMatrix,
    copies: Copies,
}

/// The copies of a head but for the codes of its refinement rows. Numbers of rows are in whole tiles,
/// `[tiles][16]`.
#[derive(Debug)]
pub(crate) struct Copies {
    /// The sketch, `[tiles][SketchFormat::tile_bytes]`.
    pub tiles: Bytes,
    /// Half the scale of each row.
    pub scales: Vec<f32>,
    /// The scale of each refinement row.
    pub refinement_scales: Vec<f32>,
    /// Upper bounds of the norms of each row's residual after the sketch, and after both copies.
    pub residuals: Vec<f32>,
    pub refinement_residuals: Vec<f32>,
    /// The largest norms of |w| + |w - p| and of |w - p| + |w - p - b|.
    pub norm: f64,
    pub refinement_norm: f64,
}

/// Form in which the full head multiplies activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activations {
    /// It takes them as they are.
    Floats,
    /// int8 in blocks of 32, as the scan does.
    Blocks,
    /// int8 with one scale.
    OneScale,
}

impl Activations {
    fn of(head: HeadFormat) -> Self {
        match head {
            HeadFormat::F32 | HeadFormat::F16 | HeadFormat::Bf16 => Self::Floats,
            HeadFormat::I2S => Self::OneScale,
            _ => Self::Blocks,
        }
    }
}

/// Scales, norm and residuals of a coded row.
struct Coded {
    scale: f32,
    refinement_scale: f32,
    norm: f64,
    residual: f64,
    refinement_residual: f64,
}

/// A worker's buffers for coding a row, all of whole blocks.
struct Room {
    weights: Vec<f32>,
    /// Residual after the sketch.
    rest: Vec<f32>,
    /// Codes of the refinement row, in whole units.
    codes: Vec<u8>,
}

impl Room {
    fn new(cols: usize, refinement: GatherLayout) -> Self {
        let padded = cols.next_multiple_of(BLOCK);
        let codes = vec![ZERO; padded.next_multiple_of(refinement.unit_weights())];
        Self { weights: vec![0.0; padded], rest: vec![0.0; padded], codes }
    }
}

/// Returns the smallest f32 that is not less than `x`.
fn up(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) < x { nearest.next_up() } else { nearest }
}

/// Returns an upper bound of the norm of `n` elements, summed in f64.
fn norm(n: usize, element: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    for i in 0..n {
        lanes[i % 8] += element(i) * element(i);
    }
    lanes.iter().sum::<f64>().sqrt() * (1.0 + 1e-9)
}

impl HeadSketch {
    /// Returns the bytes that a scan of a head of so many rows and columns reads.
    pub(crate) fn sketch_bytes(format: SketchFormat, rows: usize, cols: usize) -> usize {
        rows.div_ceil(TILE_ROWS) * format.tile_bytes(cols) + rows * 2 * size_of::<f32>()
    }

    /// Returns the bytes of a refinement row, its scale and its residual.
    pub(crate) fn refinement_bytes(layout: GatherLayout, cols: usize) -> usize {
        layout.line_bytes(cols) + 2 * size_of::<f32>()
    }

    /// Builds the copies of `head`, whose rows hold `cols` weights, for the kernels that read them:
    /// the scan kernels, in order of the tokens they take, and a gather kernel. Each worker writes
    /// the part that it will read, and releases the pages of the file on the way.
    ///
    /// # Errors
    /// [`crate::Error::Runtime`] when there is not enough memory or a worker panicked.
    pub fn build(
        gguf: &Gguf,
        head: &Table,
        cols: usize,
        (format, kernels): (SketchFormat, Vec<SketchKernel>),
        refinement_kernel: GatherKernel,
        pool: &Pool,
        pages: Pages,
    ) -> Result<Self> {
        let isa = kernels[0].id().isa;
        let rows = head.row_count();
        let (tiles, tile_bytes) = (rows.div_ceil(TILE_ROWS), format.tile_bytes(cols));
        let layout = refinement_kernel.layout();
        let refinement_bytes = layout.line_bytes(cols);
        let mut refinement = Buffer::with(rows * refinement_bytes, pages)?;
        let mut sketch = Buffer::with(tiles * tile_bytes, pages)?;
        let [mut scales, mut refinement_scales] =
            [filled(tiles * TILE_ROWS, 0.0)?, filled(tiles * TILE_ROWS, 0.0)?];
        let [mut residuals, mut refinement_residuals] =
            [filled(tiles * TILE_ROWS, f32::INFINITY)?, filled(tiles * TILE_ROWS, f32::INFINITY)?];
        let mut norms = vec![(0.0, 0.0); pool.threads()];
        let code = coder(format, isa);
        {
            let out = SharedSlice::new(&mut sketch);
            let refinement = SharedSlice::new(&mut refinement);
            let scales = SharedSlice::new(&mut scales);
            let refinement_scales = SharedSlice::new(&mut refinement_scales);
            let residuals = SharedSlice::new(&mut residuals);
            let refinement_residuals = SharedSlice::new(&mut refinement_residuals);
            let norms = SharedSlice::new(&mut norms);
            pool.run(|worker| {
                let mut room = Room::new(cols, layout);
                let mut largest = (0.0f64, 0.0f64);
                let share = worker.share(tiles);
                for tile in share.clone() {
                    let first = tile * TILE_ROWS;
                    let own = first..first + TILE_ROWS;
                    let filled = first..own.end.min(rows);
                    // SAFETY: workers own disjoint ranges of tiles and of their rows.
                    let (
                        out,
                        refinement,
                        scales,
                        refinement_scales,
                        residuals,
                        refinement_residuals,
                    ) = unsafe {
                        (
                            out.write(tile * tile_bytes..(tile + 1) * tile_bytes),
                            refinement.write(
                                filled.start * refinement_bytes..filled.end * refinement_bytes,
                            ),
                            scales.write(own.clone()),
                            refinement_scales.write(own.clone()),
                            residuals.write(own.clone()),
                            refinement_residuals.write(own),
                        )
                    };
                    for (r, refinement) in refinement.chunks_exact_mut(refinement_bytes).enumerate()
                    {
                        head.read_row(gguf, first + r, &mut room.weights[..cols]);
                        // SAFETY: `coder` asked for what the CPU has.
                        let coded = unsafe { code(&mut room, r, out) };
                        let Some(coded) = coded else { continue };
                        gather::pack_row(layout, &room.codes, refinement);
                        scales[r] = coded.scale;
                        refinement_scales[r] = coded.refinement_scale;
                        residuals[r] = up(coded.residual);
                        refinement_residuals[r] = up(coded.refinement_residual);
                        let norm = head.norm_of_terms(gguf, first + r, coded.norm);
                        largest.0 = largest.0.max(norm + coded.residual);
                        largest.1 = largest.1.max(coded.residual + coded.refinement_residual);
                    }
                    // Rarely, since a partial page stays at either end.
                    let since = (tile - share.start) / TILES_PER_DROP * TILES_PER_DROP;
                    if tile + 1 == share.end || tile - share.start + 1 == since + TILES_PER_DROP {
                        head.drop_rows(gguf, (share.start + since) * TILE_ROWS..filled.end);
                    }
                }
                // SAFETY: each worker's own.
                unsafe { norms.write(worker.index..worker.index + 1)[0] = largest };
            })?;
        }
        let largest = |(a, b): (f64, f64), (x, y): (f64, f64)| (a.max(x), b.max(y));
        let (norm, refinement_norm) = norms.into_iter().fold((0.0, 0.0), largest);
        let copies = Copies {
            tiles: sketch.into(),
            scales,
            refinement_scales,
            residuals,
            refinement_residuals,
            norm,
            refinement_norm,
        };
        Self::of(head, cols, (format, kernels), refinement_kernel, copies, refinement)
    }

    /// Takes copies of `head`, whose rows hold `cols` weights, that were built before, and the refinement
    /// rows in the layout of their kernel.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they are not as large as the head and the kernels require.
    pub(crate) fn of(
        head: &Table,
        cols: usize,
        (format, kernels): (SketchFormat, Vec<SketchKernel>),
        refinement_kernel: GatherKernel,
        copies: Copies,
        refinement: impl Into<Bytes>,
    ) -> Result<Self> {
        let rows = head.row_count();
        let (shape, tiles) = (Shape::new(rows, cols), rows.div_ceil(TILE_ROWS));
        let lines = (refinement_kernel.layout(), Along::Rows);
        let refinement = GatherMatrix::new(lines, shape, 1.0, refinement)?;
        let Copies { scales, refinement_scales, residuals, refinement_residuals, .. } = &copies;
        let numbers = [scales, refinement_scales, residuals, refinement_residuals];
        let fits = numbers.iter().all(|numbers| numbers.len() == tiles * TILE_ROWS)
            && copies.tiles.len() == tiles * format.tile_bytes(cols)
            && kernels.iter().all(|kernel| kernel.format() == format)
            && !kernels.is_empty();
        if !fits {
            let bytes = copies.tiles.len();
            return Err(Error::Runtime(format!("{bytes} bytes are no {format} of a head {shape}")));
        }
        let activations = Activations::of(head.format());
        Ok(Self { rows, cols, activations, kernels, refinement_kernel, refinement, copies })
    }

    /// Adds the copies of the head, whose tensor has this name, to a file of packed weights.
    pub(crate) fn store<'a>(&'a self, name: &str, file: &mut Builder<'a>) {
        let shape = self.refinement.shape();
        let mut add = |form, data: Cow<'a, [u8]>| file.add((name, form, shape), (1.0, false), data);
        add(Form::Sketch(self.kernels[0].format()), Cow::Borrowed(&self.copies.tiles));
        add(Form::Refinement(self.refinement.layout()), Cow::Borrowed(self.refinement.data()));
        for numbers in SketchNumbers::ALL {
            let of_rows = match numbers {
                SketchNumbers::Scales => &self.copies.scales,
                SketchNumbers::RefinementScales => &self.copies.refinement_scales,
                SketchNumbers::Residuals => &self.copies.residuals,
                SketchNumbers::RefinementResiduals => &self.copies.refinement_residuals,
            };
            let bytes: Vec<u8> = of_rows.iter().flat_map(|number| number.to_le_bytes()).collect();
            add(Form::Numbers(numbers), bytes.into());
        }
        file.set_norms([self.copies.norm, self.copies.refinement_norm]);
    }

    /// Takes the copies of `head`, whose rows hold `cols` weights, out of a file of packed weights, for the
    /// kernels that read them; see [`HeadSketch::build`].
    ///
    /// # Errors
    /// [`Error::Model`] when the file has no such copies.
    pub(crate) fn packed(
        file: &PackedFile,
        head: &Table,
        cols: usize,
        (format, kernels): (SketchFormat, Vec<SketchKernel>),
        refinement_kernel: GatherKernel,
    ) -> Result<Self> {
        let (name, shape) = (&head.tensor().name, Shape::new(head.row_count(), cols));
        let bytes = |form| file.bytes(file.section(name, form, shape)?);
        let numbers = |numbers| file.numbers(name, numbers, shape);
        let norms = file.table().norms.map(|norms| norms.map(f64::from_bits));
        let Some([norm, refinement_norm]) = norms.filter(|norms| norms.iter().all(|n| *n >= 0.0))
        else {
            return Err(file.error(name, format_args!("norms {norms:?}"), "those of a sketch"));
        };
        let copies = Copies {
            tiles: bytes(Form::Sketch(format))?,
            scales: numbers(SketchNumbers::Scales)?,
            refinement_scales: numbers(SketchNumbers::RefinementScales)?,
            residuals: numbers(SketchNumbers::Residuals)?,
            refinement_residuals: numbers(SketchNumbers::RefinementResiduals)?,
            norm,
            refinement_norm,
        };
        let refinement = bytes(Form::Refinement(refinement_kernel.layout()))?;
        Self::of(head, cols, (format, kernels), refinement_kernel, copies, refinement)
    }

    /// Returns the kernel that scans for so many tokens, at most [`HeadSketch::tokens`].
    #[must_use]
    pub fn kernel(&self, tokens: usize) -> &SketchKernel {
        let rows = if self.has_residual_row(tokens) { 2 } else { tokens };
        let fits = self.kernels.iter().find(|kernel| kernel.tokens() >= rows);
        fits.unwrap_or(&self.kernels[0])
    }

    /// True if so many tokens have two rows of activations each: one token alone, for a head that does
    /// not take activations in blocks, if a kernel takes two rows.
    pub(crate) fn has_residual_row(&self, tokens: usize) -> bool {
        tokens == 1 && self.activations != Activations::Blocks && self.tokens() > 1
    }

    /// Most tokens that a scan serves.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.kernels.iter().map(SketchKernel::tokens).max().unwrap_or(1)
    }

    /// Number of rows of the head.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of tiles of the sketch.
    pub(crate) fn tile_count(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Bytes that a scan reads: the sketch, and the scale and residual of every row.
    #[must_use]
    pub fn scan_bytes(&self) -> usize {
        self.copies.tiles.len() + self.rows * 2 * size_of::<f32>()
    }

    /// Bytes that the refinement estimate of a row reads.
    #[must_use]
    pub fn refinement_row_bytes(&self) -> usize {
        Self::refinement_bytes(self.refinement.layout(), self.cols)
    }

    /// Locks the copies in memory if `lock` is set.
    pub(crate) fn lock_if(&self, lock: bool) -> std::io::Result<()> {
        if lock { self.copies.tiles.lock().and(self.refinement.lock()) } else { Ok(()) }
    }

    /// Sets the activations of some tokens in the input of [`HeadSketch::scan`].
    pub(crate) fn set<'a>(
        &self,
        input: &mut SketchInput,
        queries: impl ExactSizeIterator<Item = &'a Query> + Clone,
    ) {
        let kernel = self.kernel(queries.len());
        let rests = queries.clone().take(usize::from(self.has_residual_row(queries.len())));
        let rows = queries.map(|query| &query.rows[0]).chain(rests.map(|query| &query.rows[1]));
        input.set(kernel, self.cols, rows.map(|row| (&row.q[..], &row.d[..])));
    }

    /// Computes the estimates of the rows of some tiles for so many tokens, `[token][tiles][16]`,
    /// with a place for all tokens that the kernel takes.
    pub(crate) fn scan(
        &self,
        tokens: usize,
        tiles: Range<usize>,
        input: &SketchInput,
        out: &mut [f32],
    ) {
        self.kernel(tokens).run(&self.copies.tiles, &self.copies.scales, tiles, input, out);
        if self.has_residual_row(tokens) {
            let (estimates, rests) = out.split_at_mut(out.len() / 2);
            for (estimate, rest) in estimates.iter_mut().zip(rests) {
                *estimate += *rest;
            }
        }
    }

    /// Lists the survivors among the rows from `first` on: those whose logits may reach `least`.
    /// They go to `found`, which is as long as `estimates`, rounded up to whole tiles. Returns
    /// their number.
    pub(crate) fn survivors(
        &self,
        (first, estimates): (usize, &[f32]),
        ops: &VectorOps,
        query: &Query,
        least: f32,
        found: &mut [u32],
    ) -> usize {
        let residuals = &self.copies.residuals[first..first + estimates.len()];
        let reach = Reach { norm: query.norm, slack: query.slack, least };
        ops.list_reaching((estimates, residuals), reach, first as u32, found)
    }

    /// Computes the products of some refinement rows with the activations, for
    /// [`HeadSketch::survives`].
    pub(crate) fn refinement_dots(&self, rows: &[u32], query: &Query, dots: &mut [i32]) {
        self.refinement_kernel.run(
            &self.refinement,
            0..self.refinement.units(),
            rows,
            &query.refinement,
            dots,
        );
    }

    /// True if a row's logit may reach `least` by its refined estimate, given the scan's estimate
    /// and the product of its refinement row.
    pub(crate) fn survives(
        &self,
        row: usize,
        (estimate, dot): (f32, i32),
        query: &Query,
        least: f32,
    ) -> bool {
        let refinement = dot as f32 * (self.copies.refinement_scales[row] * query.step);
        let radius = self.copies.refinement_residuals[row] * query.norm + query.refinement_slack;
        reaches((estimate + refinement) + radius, least)
    }
}

/// Function that codes one row, row `r` of its tile, and its refinement row. It writes nothing and
/// returns `None` if the weights are not finite or too large.
///
/// # Safety
/// The CPU has the features that the function was chosen for.
type Coder = unsafe fn(&mut Room, usize, &mut [u8]) -> Option<Coded>;

/// Returns the coder for a format, with instructions up to those of `isa`. All give the same
/// result.
fn coder(format: SketchFormat, isa: Isa) -> Coder {
    #[cfg(target_arch = "x86_64")]
    if isa.includes(Isa::Avx2) && Isa::Avx2.is_supported() {
        return match format {
            SketchFormat::P4 => code_row_avx2::<4>,
            SketchFormat::P5 => code_row_avx2::<5>,
        };
    }
    let _ = isa;
    match format {
        SketchFormat::P4 => code_row::<4>,
        SketchFormat::P5 => code_row::<5>,
    }
}

/// [`code_row`] with AVX2, whose vectors are twice as long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn code_row_avx2<const BITS: usize>(room: &mut Room, r: usize, out: &mut [u8]) -> Option<Coded> {
    code_row::<BITS>(room, r, out)
}

/// Returns the norms of the residuals that the copies would leave of some rows: after the sketch
/// and after both.
pub(crate) fn residuals(
    gguf: &Gguf,
    head: &Table,
    cols: usize,
    (format, isa): (SketchFormat, Isa),
    rows: impl Iterator<Item = usize>,
) -> Vec<[f32; 2]> {
    let mut room = Room::new(cols, GatherLayout::I2sL64);
    let mut tile = vec![0; format.tile_bytes(cols)];
    rows.map(|row| {
        head.read_row(gguf, row, &mut room.weights[..cols]);
        // SAFETY: `coder` asked for what the CPU has.
        match unsafe { coder(format, isa)(&mut room, 0, &mut tile) } {
            Some(coded) => [coded.residual, coded.refinement_residual].map(up),
            None => [f32::INFINITY; 2],
        }
    })
    .collect()
}

/// int8 activations in blocks, and their scales.
#[derive(Debug)]
struct BlockRow {
    q: Vec<i8>,
    d: Vec<f32>,
}

impl BlockRow {
    fn value(&self, i: usize) -> f64 {
        f64::from(self.q[i]) * f64::from(self.d[i / BLOCK])
    }
}

/// The activations of one token as the scan and the refinement rows read them, and their part of
/// the error bounds.
#[derive(Debug)]
pub(crate) struct Query {
    /// Activations as the full head sees them, padded with zeros.
    x: Vec<f32>,
    /// Activations quantised in blocks, and the quantised residual of that.
    rows: [BlockRow; 2],
    rest: Vec<f32>,
    /// Activations quantised with one scale, the value of one step, and the codes prepared for the
    /// refinement rows.
    q8: Vec<i8>,
    step: f32,
    refinement: Buffer,
    /// An upper bound of |x|.
    norm: f32,
    /// Terms of the bounds that do not depend on the row's residual.
    slack: f32,
    refinement_slack: f32,
}

impl Query {
    pub(crate) fn new(sketch: &HeadSketch) -> Result<Self> {
        let padded = sketch.cols.next_multiple_of(BLOCK);
        Ok(Self {
            x: vec![0.0; padded],
            rows: [(); 2].map(|()| BlockRow { q: vec![0; padded], d: vec![0.0; padded / BLOCK] }),
            rest: vec![0.0; padded],
            q8: vec![0; padded],
            step: 0.0,
            refinement: Buffer::zeroed(sketch.refinement_kernel.group_bytes(sketch.cols))?,
            norm: 0.0,
            slack: 0.0,
            refinement_slack: 0.0,
        })
    }

    /// Sets the activations, as two rows if `refinement` is set. Returns false if no bound holds
    /// because they are not finite or too large.
    pub(crate) fn set(
        &mut self,
        sketch: &HeadSketch,
        ops: &VectorOps,
        x: &[f32],
        refinement: bool,
    ) -> bool {
        let cols = x.len();
        self.x[..cols].copy_from_slice(x);
        // The values that the full head multiplies. As floats they are rounded once, which counts
        // below.
        if sketch.activations == Activations::OneScale {
            let s = ops.quantise_activations(&self.x[..cols], &mut self.q8[..cols]);
            self.x.iter_mut().zip(&self.q8).for_each(|(x, &q)| *x = f32::from(q) / s);
        }
        let [row, rest] = &mut self.rows;
        ops.quantise_blocks(&self.x, &mut row.q, &mut row.d);
        if sketch.activations == Activations::Blocks {
            dequantise(row, &mut self.x);
        }
        if refinement {
            dequantise(row, &mut self.rest);
            for (rest, x) in self.rest.iter_mut().zip(&self.x) {
                *rest = x - *rest;
            }
            ops.quantise_blocks(&self.rest, &mut rest.q, &mut rest.d);
        }
        let [row, rest] = &self.rows;
        let (n, x) = (self.x.len(), |i: usize| f64::from(self.x[i]));
        let size = norm(n, x) * (1.0 + 2.0 * U) + UNDERFLOW;
        let product = size * sketch.copies.norm.max(1.0);
        if product.is_nan() || product > MAX_PRODUCT {
            return false;
        }
        let in_blocks = |i| row.value(i) + if refinement { rest.value(i) } else { 0.0 } - x(i);
        let coarse = norm(n, in_blocks) + U * size;
        self.step = 1.0 / ops.quantise_activations(&self.x, &mut self.q8);
        sketch.refinement_kernel.prepare(&self.q8[..cols], &mut self.refinement);
        let narrow = |i| f64::from(self.q8[i]) * f64::from(self.step) - x(i);
        let narrow = norm(n, narrow) + U * size;
        // Depths of the three sums: 16 lanes and a tree, for blocks with a product of scales; one
        // chain over the blocks of the sketch. The rest covers the sums of the bounds themselves.
        let lanes = n as f64 / 16.0 + 16.0;
        let blocks = (n / BLOCK) as f64 + 16.0;
        let rounding = (lanes + blocks + 32.0) * 1.01 * U;
        let slack = sketch.copies.norm * (coarse + rounding * (size + coarse)) + UNDERFLOW;
        let refinement = sketch.copies.refinement_norm * (narrow + rounding * (size + narrow));
        (self.norm, self.slack, self.refinement_slack) =
            (up(size), up(slack), up(slack + refinement));
        true
    }
}

fn dequantise(row: &BlockRow, x: &mut [f32]) {
    let blocks = row.q.chunks_exact(BLOCK).zip(&row.d);
    for (x, (q, &d)) in x.chunks_exact_mut(BLOCK).zip(blocks) {
        for (x, &q) in x.iter_mut().zip(q) {
            *x = d * f32::from(q);
        }
    }
}

/// Code of a weight of 0 in a refinement row.
const ZERO: u8 = 1;
/// Scale of a refinement row in root mean squares of the residual, 2 / sqrt(3): rounding to equal
/// steps leaves uniform residuals, for which the best ternary scale is two thirds of the largest.
const FINE_STEP: f32 = 1.154_700_5;

/// Lanes of the sums of squares in [`code_row`], so that the compiler can use vectors.
const LANES: usize = 16;

/// Implements [`Coder`]. Written, with the functions that it calls, for the compiler to vectorise.
#[inline(always)]
fn code_row<const BITS: usize>(room: &mut Room, r: usize, out: &mut [u8]) -> Option<Coded> {
    let (blocks, _) = room.weights.as_chunks::<BLOCK>();
    let (rests, _) = room.rest.as_chunks_mut::<BLOCK>();
    let levels = (1u32 << BITS) as f32;
    let middle = (levels - 1.0) / 2.0;
    let mut squares = [[0f32; LANES]; 3];
    let mut lanes = [0.0; LANES];
    for block in blocks {
        add_squares(&mut squares[0], block);
        larger(&mut lanes, block);
    }
    let total = squares[0].iter().sum::<f32>();
    if !total.is_finite() {
        return None;
    }
    // A step of 1 in the scale of a block; 0 for weights so small that no scale is a normal number.
    let largest = largest(lanes);
    let unit = if largest < 1e-30 { 0.0 } else { largest / (levels / 2.0 * 255.0) };
    let per_unit = if unit == 0.0 { 0.0 } else { 1.0 / unit };
    let block_bytes = TILE_ROWS * (BLOCK * BITS / 8 + 1);
    for ((block, rest), out) in
        blocks.iter().zip(&mut *rests).zip(out.chunks_exact_mut(block_bytes))
    {
        let scale = ((top(block) / (levels / 2.0)) * per_unit).ceil().min(255.0);
        let step = unit * scale;
        let mut codes = [0u8; BLOCK];
        *rest = quantise(block, step, middle, levels - 1.0, &mut codes);
        add_squares(&mut squares[1], rest);
        // Four or eight codes at once, one in each byte.
        for (group, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
            let low = u64::from_le_bytes(*codes) & 0x0f0f_0f0f_0f0f_0f0f;
            let nibbles = (low | low >> 28) as u32;
            out[64 * group + 4 * r..][..4].copy_from_slice(&nibbles.to_le_bytes());
        }
        if BITS == 5 {
            let steps = codes.as_chunks::<4>().0.iter().enumerate();
            let bits = steps.fold(0, |bits, (step, codes)| {
                bits | (u32::from_le_bytes(*codes) >> 4 & 0x0101_0101) << step
            });
            out[256 + 4 * r..][..4].copy_from_slice(&bits.to_le_bytes());
        }
        out[block_bytes - TILE_ROWS + r] = scale as u8;
    }
    let mean = squares[1].iter().sum::<f32>() / room.weights.len() as f32;
    let refinement_scale = FINE_STEP * mean.sqrt();
    let (codes, _) = room.codes.as_chunks_mut::<BLOCK>();
    for (rest, codes) in rests.iter().zip(codes) {
        add_squares(&mut squares[2], &quantise(rest, refinement_scale, 1.0, 2.0, codes));
    }
    let [weights_norm, residual, refinement_residual] = squares.map(|lanes| {
        let depth = room.weights.len() as f64 / LANES as f64 + 32.0;
        let sum: f64 = lanes.iter().map(|&v| f64::from(v)).sum();
        sum.sqrt() * (1.0 + depth * 2.0 * U) + UNDERFLOW
    });
    // The step, the coded weight and the difference were rounded, and perhaps the weight itself.
    let rounding = 16.0 * U * (weights_norm + residual);
    Some(Coded {
        // Half, because scans sum twice the codes.
        scale: unit / 2.0,
        refinement_scale,
        norm: weights_norm,
        residual: residual + rounding,
        refinement_residual: refinement_residual + rounding,
    })
}

#[inline(always)]
fn add_squares(lanes: &mut [f32; LANES], block: &[f32; BLOCK]) {
    for half in block.as_chunks::<LANES>().0 {
        *lanes = std::array::from_fn(|i| lanes[i] + half[i] * half[i]);
    }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Updates the lanes to the larger magnitudes.
#[inline(always)]
fn larger(lanes: &mut [f32; LANES], block: &[f32; BLOCK]) {
    for half in block.as_chunks::<LANES>().0 {
        *lanes = std::array::from_fn(|i| max(half[i].abs(), lanes[i]));
    }
}

/// Returns the largest of some lanes; as a tree, since in a chain each step would wait for the one
/// before.
#[inline(always)]
fn largest(lanes: [f32; LANES]) -> f32 {
    let lanes: [f32; 8] = std::array::from_fn(|i| max(lanes[i], lanes[i + 8]));
    let lanes: [f32; 4] = std::array::from_fn(|i| max(lanes[i], lanes[i + 4]));
    max(max(lanes[0], lanes[2]), max(lanes[1], lanes[3]))
}

/// Returns the largest magnitude.
#[inline(always)]
fn top(block: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0; LANES];
    larger(&mut lanes, block);
    largest(lanes)
}

/// Codes a block: `round(w / step + middle)`, 0 to `last`. Returns its residual.
#[inline(always)]
fn quantise(
    block: &[f32; BLOCK],
    step: f32,
    middle: f32,
    last: f32,
    codes: &mut [u8; BLOCK],
) -> [f32; BLOCK] {
    /// Adding this rounds 0..2^22 to an integer, in the low bits of the float.
    const ROUND: f32 = 8_388_608.0;
    let per_step = if step < 1e-30 { 0.0 } else { 1.0 / step };
    let mut rest = [0.0; BLOCK];
    for i in 0..BLOCK {
        let place = block[i] * per_step + middle;
        let place = if place > 0.0 { place } else { 0.0 };
        let place = if place < last { place } else { last };
        let rounded = place + ROUND;
        codes[i] = rounded.to_bits() as u8;
        rest[i] = block[i] - step * ((rounded - ROUND) - middle);
    }
    rest
}

#[cfg(test)]
pub(crate) mod tests {
    use half::f16;

    use super::*;
    use crate::cpu::kernels::HeadKernel;
    use crate::cpu::kernels::verify::head_row;
    use crate::random::Random;

    /// A head and test inputs for it.
    pub struct Case {
        pub name: &'static str,
        pub gguf: Gguf,
        pub table: Table,
        pub cols: usize,
        pub inputs: Vec<Vec<f32>>,
    }

    /// Returns an approximately normal number.
    fn normal(random: &mut Random) -> f32 {
        let unit = |random: &mut Random| random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
        (0..6).map(|_| unit(random)).sum()
    }

    pub fn input(cols: usize, random: &mut Random) -> Vec<f32> {
        (0..cols).map(|_| normal(random)).collect()
    }

    /// Builds activations of every kind, including some for which no bound can hold.
    fn inputs(cols: usize, random: &mut Random) -> Vec<Vec<f32>> {
        let mut inputs: Vec<Vec<f32>> = (0..6).map(|_| input(cols, random)).collect();
        inputs.push(vec![0.0; cols]);
        for factor in [1e-38, 1e-20, 1e20, 1e37] {
            inputs.push(input(cols, random).iter().map(|x| x * factor).collect());
        }
        for (at, value) in [(0, 300.0), (cols / 2, -1e6), (cols - 1, f32::NAN), (0, f32::INFINITY)]
        {
            let mut outlier = input(cols, random);
            outlier[at] = value;
            inputs.push(outlier);
        }
        inputs
    }

    fn encode(format: HeadFormat, weights: &[f32]) -> Vec<u8> {
        let bytes = |w: &f32| match format {
            HeadFormat::F16 => f16::from_f32(*w).to_le_bytes().to_vec(),
            HeadFormat::Bf16 => half::bf16::from_f32(*w).to_le_bytes().to_vec(),
            _ => w.to_le_bytes().to_vec(),
        };
        weights.iter().flat_map(bytes).collect()
    }

    type Rows = fn(usize, usize, &mut Random) -> Vec<f32>;

    /// Heads of floats: each function builds a row from its number and its columns.
    const FLOATS: &[(&str, Rows)] = &[
        ("noise", |_, cols, random| input(cols, random)),
        ("all rows equal", |_, cols, _| (0..cols).map(|i| (i % 13) as f32 - 6.0).collect()),
        ("pairs of equal rows", |row, cols, _| input(cols, &mut Random::new(row as u64 / 2))),
        ("all zero", |_, cols, _| vec![0.0; cols]),
        ("rows of all sizes", |row, cols, random| {
            let factor = 2f32.powi(row as i32 % 280 - 140);
            input(cols, random).iter().map(|w| w * factor).collect()
        }),
        ("one large column", |_, cols, random| {
            let mut row = input(cols, random);
            row[cols / 3] *= 1000.0;
            row
        }),
        ("no numbers among them", |row, cols, random| {
            let mut weights = input(cols, random);
            let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40, 3e38];
            weights[row % cols] = values[row % values.len()];
            weights
        }),
        ("one part in a million apart", |row, cols, _| {
            (0..cols).map(|i| 1.0 + (row * usize::from(i == 7)) as f32 * 1e-6).collect()
        }),
    ];

    /// Builds every kind of head, with `rows` rows.
    pub fn cases(rows: usize) -> Vec<Case> {
        let random = &mut Random::new(rows as u64);
        let mut cases = Vec::new();
        for format in [HeadFormat::F32, HeadFormat::F16, HeadFormat::Bf16] {
            for (i, &(name, row)) in FLOATS.iter().enumerate() {
                let cols = [320, 100, 33][i % 3];
                let weights: Vec<f32> = (0..rows).flat_map(|r| row(r, cols, random)).collect();
                let (gguf, table) = Table::alone(format, cols, &encode(format, &weights));
                cases.push(Case { name, gguf, table, cols, inputs: inputs(cols, random) });
            }
        }
        let blocks = |format: &&HeadFormat| format.block_weights() > 1;
        for &format in HeadFormat::ALL.iter().filter(blocks) {
            let cols = format.block_weights().max(64) * 2;
            let bytes: Vec<u8> = (0..rows).flat_map(|_| head_row(format, cols, random)).collect();
            let (gguf, table) = Table::alone(format, cols, &bytes);
            cases.push(Case { name: "blocks", gguf, table, cols, inputs: inputs(cols, random) });
        }
        // A thousandth of what the sums of a logit are made of is left of its weights.
        let block: Vec<u8> = [f16::ONE, f16::from_f32(-15.0078)]
            .iter()
            .flat_map(|half| half.to_le_bytes())
            .chain([0xff; 16])
            .collect();
        let (gguf, table) = Table::alone(HeadFormat::Q4_1, 640, &block.repeat(20 * rows));
        cases.push(Case {
            name: "small sums",
            gguf,
            table,
            cols: 640,
            inputs: inputs(640, random),
        });
        cases
    }

    /// Returns the full head's kernel and the copies of a case.
    pub fn sketch(case: &Case, format: SketchFormat, pool: &Pool) -> (HeadKernel, HeadSketch) {
        let best = bitnet_profiles::Isa::best();
        let head = HeadKernel::default(case.table.format(), best).unwrap();
        let scan = (format, SketchKernel::defaults(format, best, &head));
        let refinement = GatherKernel::default(Along::Rows, None, best).unwrap();
        let Case { gguf, table, cols, .. } = case;
        (head, HeadSketch::build(gguf, table, *cols, scan, refinement, pool, Pages::Small).unwrap())
    }

    /// Returns the estimates of all rows for one token.
    fn estimate(sketch: &HeadSketch, query: &Query) -> Vec<f32> {
        let mut input = SketchInput::default();
        sketch.set(&mut input, std::iter::once(query));
        let mut out = vec![f32::NAN; sketch.kernel(1).tokens() * sketch.tile_count() * TILE_ROWS];
        sketch.scan(1, 0..sketch.tile_count(), &input, &mut out);
        out
    }

    fn refinement_dot(sketch: &HeadSketch, row: usize, query: &Query) -> i32 {
        let mut dots = [0];
        sketch.refinement_dots(&[row as u32], query, &mut dots);
        dots[0]
    }

    /// [`HeadSketch::survives`] by the refinement row.
    fn survives(sketch: &HeadSketch, row: usize, estimate: f32, query: &Query, least: f32) -> bool {
        sketch.survives(row, (estimate, refinement_dot(sketch, row, query)), query, least)
    }

    /// Returns all logits, by the full head's kernel.
    pub fn logits(case: &Case, head: &HeadKernel, x: &[f32]) -> Vec<f32> {
        let rows = case.table.row_count();
        let mut prepared = Buffer::zeroed(head.prepared_bytes(x.len())).unwrap();
        head.prepare((x, 1), case.table.scale(), &mut prepared);
        let mut out = vec![0.0; rows];
        head.run(case.table.rows(&case.gguf, 0..rows), x.len(), &prepared, &mut out, rows);
        out
    }

    /// No logit is further from its estimates than their bounds say, and the bounds are useful: for
    /// plain noise they are within a few hundredths of the product of the norms.
    #[test]
    fn bounds_hold() {
        let (pool, ops) = (Pool::new(2).unwrap(), VectorOps::best(bitnet_profiles::Isa::best()));
        let mut tight = 0;
        for case in cases(161) {
            for format in [SketchFormat::P4, SketchFormat::P5] {
                let (head, sketch) = sketch(&case, format, &pool);
                let mut query = Query::new(&sketch).unwrap();
                for (i, x) in case.inputs.iter().enumerate() {
                    let what = format!("{} {} {format} {i}", case.name, case.table.format());
                    let expected = logits(&case, &head, x);
                    if !query.set(&sketch, &ops, x, sketch.has_residual_row(1)) {
                        assert!(x.iter().any(|x| x.is_nan() || x.abs() > 1e15), "{what}");
                        continue;
                    }
                    let estimates = estimate(&sketch, &query);
                    for (row, &logit) in expected.iter().enumerate() {
                        let what = format!("{what}, row {row}: {logit}");
                        let (estimate, residual) = (estimates[row], sketch.copies.residuals[row]);
                        let radius = residual * query.norm + query.slack;
                        if radius == f32::INFINITY {
                            assert!(survives(&sketch, row, estimate, &query, f32::MAX), "{what}");
                            continue;
                        }
                        let error = (f64::from(logit) - f64::from(estimate)).abs();
                        assert!(error <= f64::from(radius), "{what} for {estimate} {radius}");
                        assert!(survives(&sketch, row, estimate, &query, logit), "{what}");
                        if case.name == "noise" && i == 0 {
                            let largest = sketch.copies.norm as f32 * query.norm;
                            let share = [0.12, 0.06][format as usize];
                            assert!(radius < share * largest, "{what}: {radius} of {largest}");
                            let finer = logit + 0.5 * share * largest;
                            assert!(!survives(&sketch, row, estimate, &query, finer), "{what}");
                            tight += 1;
                        }
                    }
                }
            }
        }
        assert!(tight > 100, "{tight}");
    }

    /// Activations along a row's residual are the worst case: bounds hold there too, and are almost
    /// reached.
    #[test]
    fn bounds_hold_where_they_are_reached() {
        let (pool, ops) = (Pool::new(1).unwrap(), VectorOps::best(Isa::best()));
        let random = &mut Random::new(9);
        let (rows, cols) = (16, 96);
        let weights: Vec<f32> = (0..rows).flat_map(|_| input(cols, random)).collect();
        let (gguf, table) = Table::alone(HeadFormat::F32, cols, &encode(HeadFormat::F32, &weights));
        let case = Case { name: "noise", gguf, table, cols, inputs: Vec::new() };
        for format in [SketchFormat::P4, SketchFormat::P5] {
            let (head, sketch) = sketch(&case, format, &pool);
            let mut query = Query::new(&sketch).unwrap();
            // One column after the other reveals the contents of the copies.
            let (mut left, mut left_by_both) = (weights.clone(), weights.clone());
            for col in 0..cols {
                let mut x = vec![0.0; cols];
                x[col] = 1.0;
                assert!(query.set(&sketch, &ops, &x, true));
                let estimates = estimate(&sketch, &query);
                for row in 0..rows {
                    let refinement = refinement_dot(&sketch, row, &query) as f32
                        * (sketch.copies.refinement_scales[row] * query.step);
                    left[row * cols + col] -= estimates[row];
                    left_by_both[row * cols + col] -= estimates[row] + refinement;
                }
            }
            for row in 0..rows {
                for sign in [1.0, -1.0] {
                    let along = |left: &[f32]| -> Vec<f32> {
                        left[row * cols..(row + 1) * cols].iter().map(|x| x * sign).collect()
                    };
                    let x = along(&left);
                    assert!(query.set(&sketch, &ops, &x, true));
                    let estimates = estimate(&sketch, &query);
                    let radius = sketch.copies.residuals[row] * query.norm + query.slack;
                    let error = (logits(&case, &head, &x)[row] - estimates[row]).abs();
                    assert!(error <= radius && error > 0.99 * radius, "{error} {radius}");

                    let x = along(&left_by_both);
                    assert!(query.set(&sketch, &ops, &x, true));
                    let estimates = estimate(&sketch, &query);
                    let logit = logits(&case, &head, &x)[row];
                    let radius = sketch.copies.refinement_residuals[row] * query.norm
                        + query.refinement_slack;
                    assert!(survives(&sketch, row, estimates[row], &query, logit), "{logit}");
                    if sign > 0.0 {
                        // The logit lies a radius above its estimate.
                        let more = logit + 0.3 * radius;
                        assert!(!survives(&sketch, row, estimates[row], &query, more), "{logit}");
                    }
                }
            }
        }
    }
}
