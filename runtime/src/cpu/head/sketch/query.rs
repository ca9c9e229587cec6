//! The activations of a token as scans and refinement rows read them.

use super::{Activations, HeadSketch, MAX_PRODUCT, U, UNDERFLOW, norm, up};
use crate::cpu::kernels::VectorOps;
use crate::cpu::memory::Buffer;
use crate::error::Result;
use crate::numerics::BLOCK;

/// int8 activations in blocks, and their scales.
#[derive(Debug)]
pub(super) struct BlockRow {
    pub(super) q: Vec<i8>,
    pub(super) d: Vec<f32>,
}

impl BlockRow {
    pub(super) fn value(&self, i: usize) -> f64 {
        f64::from(self.q[i]) * f64::from(self.d[i / BLOCK])
    }
}

/// The activations of one token as the scan and the refinement rows read them, and their part of
/// the error bounds.
#[derive(Debug)]
pub(crate) struct Query {
    /// Activations as the full head sees them, padded with zeros.
    pub(super) x: Vec<f32>,
    /// Activations quantised in blocks, and the quantised residual of that.
    pub(super) rows: [BlockRow; 2],
    pub(super) rest: Vec<f32>,
    /// Activations quantised with one scale, the value of one step, and the codes prepared for the
    /// refinement rows.
    pub(super) q8: Vec<i8>,
    pub(super) step: f32,
    pub(super) refinement: Buffer,
    /// An upper bound of |x|.
    pub(super) norm: f32,
    /// Terms of the bounds that do not depend on the row's residual.
    pub(super) slack: f32,
    pub(super) refinement_slack: f32,
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
