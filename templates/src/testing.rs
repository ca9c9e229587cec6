//! Runs a ternary template, as compiled here for the scalar vocabulary, against a triple loop.

use crate::abi::{Call, Prepare, PrepareFn, RunFn, ScratchFn};

/// A template's entries and what its packing needs.
pub(crate) struct Template {
    pub rows: usize,
    pub tile: usize,
    pub unit: usize,
    pub tokens: usize,
    pub scratch: ScratchFn,
    pub prepare: PrepareFn,
    pub run: RunFn,
    /// Packs the weights of a tile, rows of so many columns, a multiple of a unit.
    pub pack: fn(weights: &[i8], cols: usize) -> Vec<u8>,
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

impl Template {
    /// Two steps of rows, at lengths that do and do not fill units and blocks.
    pub fn equals_triple_loop(&self) {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for cols in [1, 2, 3, 5, 23, 24, 25, 47, 48, 49, 240, 257, 480, 1000, 8640] {
            let rows = 2 * self.rows;
            let mut weights = vec![0i8; rows * cols];
            weights.fill_with(|| (random() % 3) as i8 - 1);
            let mut activations = vec![0i8; self.tokens * cols];
            activations.fill_with(|| random() as i8);
            self.check(cols, &weights, &activations);
            for activation in [127, -128, 0] {
                activations.fill(activation);
                self.check(cols, &weights, &activations);
                for weight in [1, -1, 0] {
                    self.check(cols, &vec![weight; rows * cols], &activations);
                }
            }
        }
    }

    fn check(&self, cols: usize, weights: &[i8], activations: &[i8]) {
        let rows = weights.len() / cols;
        let stride = cols.next_multiple_of(self.unit);
        let mut packed = Vec::new();
        for tile in weights.chunks_exact(self.tile * cols) {
            let mut padded = vec![0; self.tile * stride];
            for (padded, row) in padded.chunks_exact_mut(stride).zip(tile.chunks_exact(cols)) {
                padded[..cols].copy_from_slice(row);
            }
            packed.extend((self.pack)(&padded, stride));
        }
        // What was there before must not matter.
        let mut group = vec![Line([0xa5; 64]); (self.scratch)(cols).div_ceil(64)];
        let mut out = vec![i32::MIN; self.tokens * rows];
        let prepare = Prepare {
            quantised: activations.as_ptr(),
            stride: cols,
            tokens: self.tokens,
            cols,
            scratch: group.as_mut_ptr().cast(),
        };
        let call = Call {
            weights: packed.as_ptr(),
            activations: group.as_ptr().cast(),
            out: out.as_mut_ptr(),
            cols,
            steps: rows / self.rows,
            out_stride: rows,
        };
        // SAFETY: scalar templates need no features; the buffers have the sizes of the contracts
        // of PrepareFn and RunFn.
        unsafe {
            (self.prepare)(&prepare);
            (self.run)(&call);
        }
        for (token, activations) in activations.chunks_exact(cols).enumerate() {
            for (row, weights) in weights.chunks_exact(cols).enumerate() {
                let products = weights.iter().zip(activations);
                let dot: i32 = products.map(|(&w, &q)| i32::from(w) * i32::from(q)).sum();
                let got = out[token * rows + row];
                assert_eq!(got, dot, "token {token}, row {row} of {cols} columns");
            }
        }
    }
}
