//! Runs ternary templates, as compiled here for the scalar vocabulary, against a triple loop.

use crate::abi::{
    Call, Expand, Expansion, GatherCall, GatherRunFn, Prepare, PrepareFn, RunFn, ScratchFn,
};

/// A template's entries and what its packing needs.
pub(crate) struct Template {
    pub rows: usize,
    pub tile: usize,
    pub unit: usize,
    pub tokens: usize,
    pub scratch: ScratchFn,
    pub prepare: PrepareFn,
    pub run: RunFn,
    pub expansion: Option<&'static Expansion>,
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
        let (mut steps, mut block_stride) = (rows / self.rows, 0);
        if let Some(expansion) = self.expansion {
            let tiles = rows / self.tile;
            let expanded_bytes = tiles * (expansion.tile_bytes)(cols);
            let mut expanded = vec![0xa5; expanded_bytes + 1];
            let tile_bytes = packed.len() / tiles;
            // In two parts, as two threads would.
            for (first, end) in [(0, 1), (1, tiles)] {
                let expand = Expand {
                    weights: packed[first * tile_bytes..].as_ptr(),
                    tiles: end - first,
                    cols,
                    first,
                    all: tiles,
                    out: expanded.as_mut_ptr(),
                };
                // SAFETY: scalar templates need no features; `packed` holds the tiles, `expanded`
                // has room for all.
                unsafe { (expansion.run)(&expand) };
            }
            packed = expanded;
            steps = tiles;
            block_stride = tiles * (expansion.tile_bytes)(1);
        }
        let call = Call {
            weights: packed.as_ptr(),
            activations: group.as_ptr().cast(),
            out: out.as_mut_ptr(),
            cols,
            steps,
            out_stride: rows,
            block_stride,
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

/// Packs a tile of rows of `cols` columns, whole units, as `Layout::T5T32`.
pub(crate) fn t5_tile(weights: &[i8], cols: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for unit in (0..cols).step_by(20) {
        for row in weights.chunks_exact(cols) {
            for byte in 0..4 {
                let code = |field: usize| (row[unit + 4 * field + byte] + 1) as u8;
                out.push(t5_byte(code));
            }
        }
    }
    out
}

/// A template's entries, where it is given a list of lines: of T5, as it is compiled here.
pub(crate) struct GatherCase {
    pub scratch: ScratchFn,
    pub prepare: PrepareFn,
    pub run: GatherRunFn,
    /// True if lines are added up, each times its own activation; else each is a dot product.
    pub add_up: bool,
}

impl GatherCase {
    /// Lists of several lengths, on lines that do and do not fill units.
    pub fn equal_triple_loop(&self) {
        const UNIT: usize = 5 * 64;
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for (length, lines) in [(1, 9), (319, 70), (320, 7), (321, 40), (1000, 100)] {
            let units = usize::div_ceil(length, UNIT);
            let mut weights = vec![0i8; lines * length];
            weights.fill_with(|| (random() % 3) as i8 - 1);
            let mut packed = Vec::new();
            for line in weights.chunks_exact(length) {
                let mut padded = line.to_vec();
                padded.resize(units * UNIT, 0);
                padded.chunks_exact(UNIT).for_each(|unit| packed.extend(pack_t5(unit)));
            }
            for count in [0, 1, 2, 3, 4, 5, lines] {
                let mut list = vec![0; count];
                list.fill_with(|| random() % lines as u32);
                let mut quantised = vec![0i8; if self.add_up { count } else { length }];
                for extreme in [None, Some(127), Some(-128)] {
                    quantised.fill_with(|| extreme.unwrap_or(random() as i8));
                    let line = |number: &u32| &weights[*number as usize * length..][..length];
                    let product = |(&w, &q): (&i8, &i8)| i32::from(w) * i32::from(q);
                    let expected: Vec<i32> = if self.add_up {
                        let of_row = |row: usize| {
                            let pairs = list.iter().zip(&quantised);
                            pairs.map(|(number, q)| product((&line(number)[row], q))).sum()
                        };
                        (0..length).map(of_row).collect()
                    } else {
                        let dot = |number| line(number).iter().zip(&quantised).map(product).sum();
                        list.iter().map(dot).collect()
                    };
                    let got = self.multiply((&packed, units), &list, &quantised);
                    let what = format!("{count} of {lines} lines of {length}, {extreme:?}");
                    assert_eq!(got[..expected.len()], expected, "{what}");
                }
            }
        }
    }

    fn multiply(
        &self,
        (packed, units): (&[u8], usize),
        list: &[u32],
        quantised: &[i8],
    ) -> Vec<i32> {
        // What was there before must not matter.
        let mut group = vec![Line([0xa5; 64]); (self.scratch)(quantised.len()).div_ceil(64)];
        let mut out = vec![i32::MIN; (units * 5 * 64).max(list.len())];
        let prepare = Prepare {
            quantised: quantised.as_ptr(),
            stride: quantised.len(),
            tokens: 1,
            cols: quantised.len(),
            scratch: group.as_mut_ptr().cast(),
        };
        let call = GatherCall {
            lines: packed.as_ptr(),
            line_bytes: units * 64,
            units,
            list: list.as_ptr(),
            count: list.len(),
            activations: group.as_ptr().cast(),
            out: out.as_mut_ptr(),
        };
        // SAFETY: scalar templates need no features; the buffers have the sizes of the contracts
        // of PrepareFn and GatherRunFn.
        unsafe {
            (self.prepare)(&prepare);
            (self.run)(&call);
        }
        out
    }
}

/// A unit of a line as T5.
fn pack_t5(unit: &[i8]) -> Vec<u8> {
    let byte = |i: usize| {
        let code = |field: usize| (unit[64 * field + i] + 1) as u8;
        t5_byte(code)
    };
    (0..64).map(byte).collect()
}

/// The byte that stands for five codes.
fn t5_byte(code: impl Fn(usize) -> u8) -> u8 {
    let number = 27 * code(3) + 9 * code(2) + 3 * code(1) + code(0);
    match number.checked_sub(64) {
        None => code(4) << 6 | number,
        Some(rest) => 0xc0 + 17 * code(4) + rest,
    }
}
