//! Ternary matrices with a scale for each block of columns (`BlockLayout`): products as floats.
//!
//! Rows lie in the lanes, and codes in units of 16 columns, as in I2_S; the scales of a tile's rows
//! for a block stand behind the block's codes, so that a tile is one stream. Activations are int8 with
//! a scale for each block as well. A block gives an exact integer for each row,
//!
//! ```text
//! dot(codes, q) - sum(q)
//! ```
//!
//! whose float is multiplied with the product of both scales and added, fused, to the row's only sum,
//! block by block (`numerics::dot_scaled_blocks`). Code 3 is a weight of +2.
//!
//! Sums begin with `-sum(q)`, which costs nothing. Where they are 16 bits wide they may wrap on the
//! way, but what a block of up to 256 columns ends with fits: a lane has half of the columns, whose
//! weights are -1 to +2.
//!
//! Of many activation rows only some have their sums in registers at once. Then a block's codes are
//! unpacked to bytes first, in the L1 cache, and multiplied with `AT_ONCE` rows in each of several
//! passes, while the floats of all of them stay in that cache too.
//!
//! A prepared group is, for each block, the start of the sums of every activation row
//! (`isa::acc_word`), then as many scales as f32, each padded to 64 bytes; then for each block and pass
//! and every 4 columns the 4 bytes of each activation row of the pass in turn.

use crate::abi::{BlockCall, BlockPrepare};
use crate::isa::scalar as isa;

/// Rows in a packed tile, a multiple of 16.
const TILE: usize = 16;
/// Rows per step: those of the tile.
const ROWS: usize = 16;
/// Columns of the matrix; 0: taken from the call.
const COLS: usize = 0;
/// Columns of a block, at most 256.
const WIDTH: usize = 64;
/// Activation rows of a group.
const TOKENS: usize = 1;
/// Activation rows of a pass; divides those of the group.
const AT_ONCE: usize = 1;
/// Bytes ahead to prefetch; 0: none.
const PREFETCH: usize = 0;

/// Columns in a unit.
const UNIT: usize = 16;
/// Codes in a byte.
const FIELDS: usize = 4;
/// Passes over a block's codes.
const PASSES: usize = TOKENS / AT_ONCE;
/// Rows whose floats are one `F32`.
const LANES: usize = 16;
/// Such groups of rows in a step.
const GROUPS: usize = ROWS / LANES;
/// Vectors of integers that hold the sums of a step for one activation row, and of a group of its rows.
const VECTORS: usize = ROWS / isa::LANES;
const GROUP_VECTORS: usize = VECTORS / GROUPS;
/// True if codes stay where they are in their byte: see the template `i2_s`.
const IN_PLACE: bool = isa::WIDE && TOKENS == 1;
/// Independent sums per vector and activation row.
const CHAINS: usize = if IN_PLACE { FIELDS } else { 1 };
/// Bytes of a unit, and of a block of the tile with its scales.
const UNIT_BYTES: usize = TILE * UNIT / FIELDS;
const BLOCK_BYTES: usize = WIDTH / UNIT * UNIT_BYTES + 2 * TILE;
/// Columns of a block that one loop takes.
const RUN: usize = if WIDTH < 128 { WIDTH } else { 128 };
/// Bytes of the activations of a pass for a block.
const PASS_BYTES: usize = WIDTH * AT_ONCE;
/// Bytes of the starts or scales of a prepared group for so many blocks.
const fn header(blocks: usize) -> usize {
    (blocks * TOKENS * 4).next_multiple_of(64)
}

/// Sums of a block for the activation rows of a pass.
type Sums = [[[isa::Acc; CHAINS]; VECTORS]; AT_ONCE];
/// Products of a step.
type Products = [[[isa::F32; GROUPS]; AT_ONCE]; PASSES];
/// A block's codes as bytes, of every 4 columns.
type Unpacked = [[isa::Bytes; VECTORS]; WIDTH / 4];

/// Bytes of scratch that a prepared group takes for so many columns.
pub const extern "C" fn scratch(cols: usize) -> usize {
    2 * header(cols / WIDTH) + cols * TOKENS
}

/// Lays out one group of activation rows.
///
/// # Safety
/// See `BlockPrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &BlockPrepare) {
    let cols = if COLS == 0 { prepare.cols } else { COLS };
    let blocks = cols / WIDTH;
    // SAFETY: the scratch holds both headers and all columns for TOKENS rows, and rows below `tokens`
    // are readable for `cols` bytes and their scales (the contract of BlockPrepareFn).
    unsafe {
        let starts = prepare.scratch.cast::<i32>();
        let scales = prepare.scratch.add(header(blocks)).cast::<f32>();
        let quads = prepare.scratch.add(2 * header(blocks)).cast::<[i8; 4]>();
        for pass in 0..PASSES {
            for place in 0..AT_ONCE {
                let token = pass * AT_ONCE + place;
                let there = token < prepare.tokens;
                let row = prepare.quantised.wrapping_add(token * prepare.stride).cast::<[i8; 4]>();
                for block in 0..blocks {
                    let to = quads.add((block * PASSES + pass) * (PASS_BYTES / 4) + place);
                    let (mut halves, mut scale) = ([0; 2], 0.0);
                    for quad in 0..WIDTH / 4 {
                        let mut four = [0; 4];
                        if there {
                            four = row.add(block * (WIDTH / 4) + quad).read_unaligned();
                        }
                        let [a, b, c, d] = four;
                        halves[0] -= i32::from(a) + i32::from(b);
                        halves[1] -= i32::from(c) + i32::from(d);
                        to.add(quad * AT_ONCE).write_unaligned(four);
                    }
                    if there {
                        scale = prepare.scales.add(token * blocks + block).read();
                    }
                    let at = block * TOKENS + token;
                    starts.add(at).write(isa::acc_word(halves));
                    scales.add(at).write(scale);
                }
            }
        }
    }
}

/// Multiplies: see `BlockRunFn`.
///
/// # Safety
/// See `BlockRunFn`.
pub unsafe extern "C" fn run(call: &BlockCall) {
    let cols = if COLS == 0 { call.cols } else { COLS };
    let blocks = cols / WIDTH;
    let passes = if PASSES == 1 { 1 } else { call.tokens.div_ceil(AT_ONCE).min(PASSES) };
    for step in 0..call.steps {
        // SAFETY: the matrix holds `steps` tiles, the prepared group all blocks of columns, and the
        // output ROWS elements per step and activation row of a pass (the contract of BlockRunFn).
        unsafe {
            let starts = call.activations.cast::<i32>();
            let scales = call.activations.add(header(blocks)).cast::<f32>();
            let quads = call.activations.add(2 * header(blocks));
            let mut products: Products = [[[isa::f32_splat(0.0); GROUPS]; AT_ONCE]; PASSES];
            for block in 0..blocks {
                let at = call.weights.add((step * blocks + block) * BLOCK_BYTES);
                if PREFETCH != 0 {
                    for line in 0..BLOCK_BYTES.div_ceil(64) {
                        isa::prefetch::<1>(at.wrapping_add(PREFETCH + 64 * line));
                    }
                }
                let own = at.add(WIDTH / UNIT * UNIT_BYTES).cast::<u16>();
                let starts = starts.add(block * TOKENS);
                let scales = scales.add(block * TOKENS);
                let quads = quads.add(block * WIDTH * TOKENS);
                if PASSES == 1 {
                    let mut sums = begin(starts);
                    add_packed(&mut sums, at, quads);
                    add_scaled(&mut products[0], &sums, own, scales);
                } else {
                    let codes = unpack(at);
                    for pass in 0..passes {
                        let mut sums = begin(starts.add(pass * AT_ONCE));
                        add_unpacked(&mut sums, &codes, quads.add(pass * PASS_BYTES));
                        add_scaled(&mut products[pass], &sums, own, scales.add(pass * AT_ONCE));
                    }
                }
            }
            for pass in 0..passes {
                for place in 0..AT_ONCE {
                    for group in 0..GROUPS {
                        let row = step * ROWS + group * LANES;
                        let out = (pass * AT_ONCE + place) * call.out_stride + row;
                        isa::f32_store(call.out.add(out), products[pass][place][group]);
                    }
                }
            }
        }
    }
}

/// The sums of a block before its first column.
///
/// # Safety
/// `starts` is readable for a pass.
#[inline]
unsafe fn begin(starts: *const i32) -> Sums {
    let mut sums = [[[isa::acc_zero(); CHAINS]; VECTORS]; AT_ONCE];
    for token in 0..AT_ONCE {
        // SAFETY: the caller's promise.
        let start = unsafe { isa::acc_splat(starts.add(token)) };
        for vector in 0..VECTORS {
            sums[token][vector][0] = start;
        }
    }
    sums
}

/// Adds the products of a block.
///
/// # Safety
/// The block is readable, and so are its activations.
#[inline]
unsafe fn add_packed(sums: &mut Sums, block: *const u8, quads: *const u8) {
    for unit in 0..WIDTH / UNIT {
        // SAFETY: the block holds the unit, and a unit of activations is FIELDS quads of each row.
        unsafe {
            let mut packed = load_unit(block, unit);
            let mut quads = quads.add(unit * UNIT * AT_ONCE);
            add_field(sums, &mut packed, &mut quads, 0);
            add_field(sums, &mut packed, &mut quads, 1);
            add_field(sums, &mut packed, &mut quads, 2);
            add_field(sums, &mut packed, &mut quads, 3);
        }
    }
}

/// The codes of a unit.
///
/// # Safety
/// The block is readable, and holds the unit.
#[inline]
unsafe fn load_unit(block: *const u8, unit: usize) -> [isa::Bytes; VECTORS] {
    let mut packed = [isa::bytes_zero(); VECTORS];
    for vector in 0..VECTORS {
        // SAFETY: a unit is 4 bytes for each row of the tile.
        let at = unsafe { block.add(unit * UNIT_BYTES + 4 * vector * isa::LANES) };
        // SAFETY: as above.
        packed[vector] = unsafe { isa::load(at) };
    }
    packed
}

/// Adds the products of one field of a unit.
///
/// # Safety
/// `quads` holds a unit of activations; `field < FIELDS`.
#[inline]
unsafe fn add_field(
    sums: &mut Sums,
    packed: &mut [isa::Bytes; VECTORS],
    quads: &mut *const u8,
    field: usize,
) {
    let mut codes = *packed;
    for vector in 0..VECTORS {
        codes[vector] = if IN_PLACE {
            isa::codes_in_place(packed[vector], field)
        } else {
            isa::codes(packed[vector], field)
        };
    }
    let chain = if IN_PLACE { field } else { 0 };
    // SAFETY: the caller's promise.
    unsafe { add_quad(sums, &codes, quads.add(field * AT_ONCE * 4), chain) };
    // As in the template `i2_s`: sums of 16 bits take two instructions.
    if !isa::WIDE && AT_ONCE > 1 {
        isa::in_turn(sums[AT_ONCE - 1][VECTORS - 1][0], packed, quads);
    }
}

/// Adds the products of 4 columns.
///
/// # Safety
/// `quads` is readable for 4 bytes of each row.
#[inline]
unsafe fn add_quad(sums: &mut Sums, codes: &[isa::Bytes; VECTORS], quads: *const u8, chain: usize) {
    for token in 0..AT_ONCE {
        // SAFETY: the caller's promise.
        let quad = unsafe { isa::broadcast4(quads.add(token * 4)) };
        for vector in 0..VECTORS {
            let sum = &mut sums[token][vector][chain];
            *sum = isa::dot(*sum, codes[vector], quad);
        }
    }
}

/// A block's codes as bytes.
///
/// # Safety
/// The block is readable.
#[inline]
unsafe fn unpack(block: *const u8) -> Unpacked {
    let mut codes = [[isa::bytes_zero(); VECTORS]; WIDTH / 4];
    for unit in 0..WIDTH / UNIT {
        // SAFETY: the block holds the unit.
        let packed = unsafe { load_unit(block, unit) };
        for vector in 0..VECTORS {
            codes[unit * FIELDS][vector] = isa::codes(packed[vector], 0);
            codes[unit * FIELDS + 1][vector] = isa::codes(packed[vector], 1);
            codes[unit * FIELDS + 2][vector] = isa::codes(packed[vector], 2);
            codes[unit * FIELDS + 3][vector] = isa::codes(packed[vector], 3);
        }
    }
    codes
}

/// Adds the products of a block whose codes are unpacked.
///
/// # Safety
/// `quads` holds the activations of a pass for the block.
#[inline]
unsafe fn add_unpacked(sums: &mut Sums, codes: &Unpacked, quads: *const u8) {
    // A loop of more than some 16 rounds ends with a branch that is not foreseen.
    for run in 0..WIDTH / RUN {
        for quad in run * (RUN / 4)..(run + 1) * (RUN / 4) {
            // SAFETY: the caller's promise.
            unsafe { add_quad(sums, &codes[quad], quads.add(quad * AT_ONCE * 4), 0) };
        }
    }
}

/// Adds a block's sums, times both scales, to the products of a pass.
///
/// # Safety
/// `own` is readable for the scales of a step's rows, and `scales` for those of a pass.
#[inline]
unsafe fn add_scaled(
    products: &mut [[isa::F32; GROUPS]; AT_ONCE],
    sums: &Sums,
    own: *const u16,
    scales: *const f32,
) {
    for group in 0..GROUPS {
        // SAFETY: the caller's promise.
        let own = unsafe { isa::f32_load_f16(own.add(group * LANES)) };
        for token in 0..AT_ONCE {
            let mut dots = [isa::i32_zero(); GROUP_VECTORS];
            for vector in 0..GROUP_VECTORS {
                let sums = &sums[token][group * GROUP_VECTORS + vector];
                dots[vector] = isa::widen(sums[0]);
                for chain in 1..CHAINS {
                    let wide = isa::i32_unscale(isa::widen(sums[chain]), chain);
                    dots[vector] = isa::i32_add(dots[vector], wide);
                }
            }
            // SAFETY: the caller's promise.
            let scale = isa::f32_splat(unsafe { scales.add(token).read() });
            let product = &mut products[token][group];
            *product = isa::f32_fma(isa::f32_from_i32(dots), isa::f32_mul(own, scale), *product);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks of one tile: each row by hand.
    #[test]
    fn a_tile_is_multiplied_block_by_block() {
        const BLOCKS: usize = 2;
        let code = |row: usize, col: usize| ((row * 7 + col * col) % 4) as u8;
        let weight_scale = |row: usize, block: usize| [0.5f32, 2.0][(row + block) % 2];
        let mut weights = vec![0u8; BLOCKS * BLOCK_BYTES];
        for block in 0..BLOCKS {
            for row in 0..TILE {
                for col in 0..WIDTH {
                    let at = block * BLOCK_BYTES + col / 16 * UNIT_BYTES + 4 * row + col % 4;
                    weights[at] |= code(row, block * WIDTH + col) << (2 * (col % 16 / 4));
                }
                let bits: u16 = if weight_scale(row, block) == 0.5 { 0x3800 } else { 0x4000 };
                let at = block * BLOCK_BYTES + WIDTH / 16 * UNIT_BYTES + 2 * row;
                weights[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        let cols = BLOCKS * WIDTH;
        let q: Vec<i8> = (0..cols).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let scales = [0.25f32, 3.0];
        let mut group = vec![[0u8; 64]; scratch(cols).div_ceil(64)];
        let mut out = [f32::NAN; TILE];
        let prepared = BlockPrepare {
            quantised: q.as_ptr(),
            stride: cols,
            scales: scales.as_ptr(),
            tokens: 1,
            cols,
            scratch: group.as_mut_ptr().cast(),
        };
        // SAFETY: all sizes are those of two blocks of a tile and one token.
        unsafe { prepare(&prepared) };
        let call = BlockCall {
            weights: weights.as_ptr(),
            activations: group.as_ptr().cast(),
            out: out.as_mut_ptr(),
            cols,
            tokens: 1,
            steps: 1,
            out_stride: TILE,
        };
        // SAFETY: as above.
        unsafe { run(&call) };
        for row in 0..TILE {
            let dot = |block: usize| -> i32 {
                let cols = block * WIDTH..(block + 1) * WIDTH;
                cols.map(|col| (i32::from(code(row, col)) - 1) * i32::from(q[col])).sum()
            };
            let expected: f32 = (0..BLOCKS)
                .map(|block| dot(block) as f32 * weight_scale(row, block) * scales[block])
                .sum();
            assert_eq!(out[row], expected, "row {row}");
        }
    }
}
