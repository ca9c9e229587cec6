//! Products with activations that are not rounded: the reference that products of int8 are held against.
//!
//! Weights are one byte each, sums are f64 in the order of the columns, and no kernel is involved: it is
//! slow, and the same on every CPU.

use bitnet_profiles::Shape;

use crate::cpu::memory::zeroed;
use crate::cpu::threads::{Pool, SharedSlice, Worker};
use crate::error::Result;
use crate::formats::{Codes, Scales};

/// How activations are rounded for the products with ternary matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// To int8 with a scale for each token where the scales of a matrix are all the same, and with one for
    /// each block of columns where they differ.
    #[default]
    Auto,
    /// To int8 with a scale for each token, whatever the weights.
    Token,
    /// To int8 with a scale for each block of columns: as wide as those of the weights, or where these have
    /// none the widest of 256, 128 and 64 that divides the columns.
    Block,
    /// Not at all: a slow path, for tests. The head is multiplied so, too.
    F32,
}

impl Activations {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Token, Self::Block, Self::F32];

    /// Its name: `auto`, `token`, `block` or `f32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Token => "token",
            Self::Block => "block",
            Self::F32 => "f32",
        }
    }
}

/// A ternary matrix for products with f32 activations.
#[derive(Debug)]
pub(crate) struct FloatMatrix {
    shape: Shape,
    /// -1, 0, 1 and in some formats 2, `[rows][cols]`.
    weights: Vec<i8>,
    scales: Scales,
    /// Factor of all scales.
    factor: f32,
    /// Added to the products, `[rows]`.
    bias: Option<Vec<f32>>,
}

impl FloatMatrix {
    /// Reads a matrix; `None` when a code is 3 in a format that has none.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) when the system refuses the memory or a worker panicked.
    pub(crate) fn new(
        codes: Codes<'_>,
        scales: Scales,
        factor: f32,
        bias: Option<Vec<f32>>,
        pool: &Pool,
    ) -> Result<Option<Self>> {
        let shape = codes.shape();
        let mut weights = zeroed(shape.weights())?;
        let bad = std::sync::atomic::AtomicBool::new(false);
        let out = SharedSlice::new(&mut weights);
        pool.run(|worker| {
            let mut row = vec![0; shape.cols];
            for number in worker.share(shape.rows) {
                let seen = codes.read(number, 0, &mut row);
                bad.fetch_or(seen.bad, std::sync::atomic::Ordering::Relaxed);
                // SAFETY: shares are disjoint.
                let out = unsafe { out.write(number * shape.cols..(number + 1) * shape.cols) };
                out.iter_mut().zip(&row).for_each(|(out, &code)| *out = code as i8 - 1);
            }
        })?;
        let broken = bad.into_inner() && !codes.has_twos();
        Ok((!broken).then_some(Self { shape, weights, scales, factor, bias }))
    }

    /// The product of a row and the activations, and the bias.
    fn product(&self, row: usize, x: &[f32]) -> f32 {
        let cols = self.shape.cols;
        let weights = &self.weights[row * cols..(row + 1) * cols];
        let dot = |weights: &[i8], x: &[f32]| -> f64 {
            weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let sum = match &self.scales {
            Scales::Tensor(scale) => f64::from(*scale) * dot(weights, x),
            Scales::Rows(scales) => f64::from(scales[row]) * dot(weights, x),
            Scales::Blocks { width, values } => {
                let scales = &values[row * (cols / width)..(row + 1) * (cols / width)];
                let blocks = weights.chunks_exact(*width).zip(x.chunks_exact(*width));
                blocks.zip(scales).map(|((w, x), scale)| f64::from(*scale) * dot(w, x)).sum()
            }
        };
        let product = (sum * f64::from(self.factor)) as f32;
        self.bias.as_ref().map_or(product, |bias| product + bias[row])
    }

    /// Largest magnitude of a weight, at most.
    fn largest(&self) -> f32 {
        2.0 * self.factor * self.scales.values().iter().fold(0.0f32, |m, scale| m.max(*scale))
    }
}

/// Matrices with the same input: the counterpart of [`crate::cpu::matmul::Job`].
#[derive(Debug)]
pub struct FloatJob {
    parts: Vec<FloatMatrix>,
    cols: usize,
    rows: usize,
    largest: f32,
}

impl FloatJob {
    /// Joins `parts`, which have the same columns, and of which there is one at least.
    pub(crate) fn new(parts: Vec<FloatMatrix>) -> Self {
        let cols = parts.first().map_or(0, |part| part.shape.cols);
        debug_assert!(parts.iter().all(|part| part.shape.cols == cols));
        let rows = parts.iter().map(|part| part.shape.rows).sum();
        let largest = parts.iter().map(FloatMatrix::largest).fold(0.0, f32::max);
        Self { parts, cols, rows, largest }
    }

    /// Inputs, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// True if the products of a token are below `limit`, whose activations are at most `largest`; false
    /// where that is NaN.
    pub(crate) fn stays_below(&self, limit: f32, largest: f32) -> bool {
        self.cols as f32 * largest * self.largest < limit
    }

    /// Multiplies any number of tokens: `x` is `[tokens][cols]`, and token `t` has the output
    /// `out[t * rows .. (t + 1) * rows]`. Every worker writes some of the rows; a barrier must follow before
    /// `out` is read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all with
    /// the same job, `x` and `out`. In that phase nothing else reads or writes the elements of `out`.
    pub(crate) unsafe fn multiply(
        &self,
        worker: &Worker<'_>,
        x: &[f32],
        out: &SharedSlice<'_, f32>,
    ) {
        let share = worker.share(self.rows);
        for (token, x) in x.chunks_exact(self.cols).enumerate() {
            let mut before = 0;
            for part in &self.parts {
                let end = before + part.shape.rows;
                for row in share.start.clamp(before, end)..share.end.clamp(before, end) {
                    let place = token * self.rows + row;
                    // SAFETY: shares are disjoint; nothing else accesses them, as the caller promises.
                    let out = unsafe { out.write(place..place + 1) };
                    out[0] = part.product(row - before, x);
                }
                before = end;
            }
        }
    }
}
