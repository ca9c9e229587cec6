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

mod coding;
mod query;

use std::borrow::Cow;
use std::ops::Range;

use bitnet_profiles::{GatherLayout, HeadFormat, Shape, SketchFormat};

pub(crate) use self::coding::residuals;
use self::coding::{Room, coder};
pub(crate) use self::query::Query;
use crate::cpu::gather::{self, Along, GatherMatrix};
use crate::cpu::kernels::{GatherKernel, SketchInput, SketchKernel, VectorOps};
use crate::cpu::memory::{Buffer, Bytes, Pages, filled, zeroed};
use crate::cpu::table::Table;
use crate::cpu::threads::{Pool, SharedSlice};
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::file::packed::{Builder, Form, PackedFile, SketchNumbers};
use crate::numerics::{Reach, reaches};

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
            [zeroed(tiles * TILE_ROWS)?, zeroed(tiles * TILE_ROWS)?];
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

#[cfg(test)]
pub(crate) mod tests;
