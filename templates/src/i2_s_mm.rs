//! I2_S in prefill, where one instruction multiplies two activation rows by two rows of weights, 8
//! columns of each (`smmla`). The packing is that of the `i2_s` template.
//!
//! A vector of weights holds 4 columns of 4 rows for each of the four codes in its bytes; 8 columns
//! of 2 rows are wanted. So two units are taken at once: their vectors, interleaved by 32 bits, hold
//! 2 rows each, and field `f` of those is columns `4f .. 4f + 4` of the one unit, then of the other.
//! That is one more instruction for each vector of weights, before it is unpacked. A sum is 2
//! activation rows by 2 rows; they are brought in order at the end. As codes are one more than
//! weights,
//!
//! ```text
//! dot(weights, q) = dot(codes, q) - sum(q)
//! ```
//!
//! with `sum(q)` computed once per activation row by `prepare`.
//!
//! A prepared group is `[sum(q): i32; TOKENS]` padded to 64 bytes, then for every two units, each
//! field of them and every two activation rows a vector: of the first row the field's 4 columns of
//! the first unit and 4 of the second, and likewise of the second row. Columns are padded with zeros
//! to an even number of units.

use crate::abi::{Call, Prepare};
use crate::isa::scalar as isa;

/// Rows in a packed tile.
const TILE: usize = 16;
/// Rows per step, a multiple of `TILE`.
const ROWS: usize = 16;
/// Columns of the matrix; 0: taken from the call.
const COLS: usize = 0;
/// Activation rows per call, an even number.
const TOKENS: usize = 4;
/// Units per iteration, an even number.
const UNROLL: usize = 2;
/// Bytes ahead to prefetch; 0: none.
const PREFETCH: usize = 0;

/// Columns in a unit.
const UNIT: usize = 16;
/// Codes in a byte.
const FIELDS: usize = 4;
/// Vectors of weights that a step has in a unit.
const VECTORS: usize = ROWS / isa::LANES;
/// Pairs of activation rows.
const PAIRS: usize = TOKENS / 2;
/// Bytes before the columns of a prepared group.
const HEADER: usize = (TOKENS * 4).next_multiple_of(64);

/// The accumulators of a step: for the first two rows of a vector, and for the others.
type Sums = [[[isa::Acc; 2]; VECTORS]; PAIRS];

/// Bytes of scratch that a prepared group takes for so many columns.
pub const extern "C" fn scratch(cols: usize) -> usize {
    HEADER + cols.next_multiple_of(2 * UNIT) * TOKENS
}

/// Place of a column of an activation row in a prepared group.
#[inline]
fn place(col: usize, token: usize) -> usize {
    let (units, field, second) = (col / (2 * UNIT), col % UNIT / 4, col / UNIT % 2);
    let vector = (units * FIELDS + field) * PAIRS + token / 2;
    HEADER + 16 * vector + 8 * (token % 2) + 4 * second + col % 4
}

/// Lays out one group of activation rows.
///
/// # Safety
/// See `PrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &Prepare) {
    let cols = if COLS == 0 { prepare.cols } else { COLS };
    for token in 0..TOKENS {
        let mut sum = 0;
        let out = prepare.scratch;
        // SAFETY: the scratch holds the header and an even number of units of columns for TOKENS
        // rows; rows below `tokens` are readable for `cols` bytes (the contract of PrepareFn).
        unsafe {
            let mut done = 0;
            if token < prepare.tokens {
                let row = prepare.quantised.add(token * prepare.stride);
                while done + 4 <= cols {
                    let bytes = row.add(done).cast::<[i8; 4]>().read_unaligned();
                    sum += bytes.iter().map(|&b| i32::from(b)).sum::<i32>();
                    out.add(place(done, token)).cast::<[i8; 4]>().write_unaligned(bytes);
                    done += 4;
                }
                while done < cols {
                    let byte = row.add(done).read();
                    sum += i32::from(byte);
                    out.add(place(done, token)).write(byte.cast_unsigned());
                    done += 1;
                }
            }
            while done < cols.next_multiple_of(2 * UNIT) {
                out.add(place(done, token)).write(0);
                done += 1;
            }
            out.cast::<i32>().add(token).write(sum);
        }
    }
}

/// Multiplies: see `RunFn`.
///
/// # Safety
/// See `RunFn`.
pub unsafe extern "C" fn run(call: &Call) {
    let cols = if COLS == 0 { call.cols } else { COLS };
    let units = cols.div_ceil(UNIT);
    for step in 0..call.steps {
        // SAFETY: the matrix holds `steps` steps, the prepared group an even number of units of
        // columns, and the output ROWS elements per step and activation row (the contract of RunFn).
        unsafe {
            let weights = call.weights.add(step * units * 4 * ROWS);
            let vectors = call.activations.add(HEADER);
            let mut sums: Sums = [[[isa::acc_zero(); 2]; VECTORS]; PAIRS];
            let mut unit = 0;
            while unit + UNROLL <= units.next_multiple_of(2) {
                for u in 0..UNROLL / 2 {
                    add_units(&mut sums, weights, units, vectors, unit + 2 * u);
                }
                unit += UNROLL;
            }
            while UNROLL > 2 && unit < units {
                add_units(&mut sums, weights, units, vectors, unit);
                unit += 2;
            }
            for token in 0..TOKENS {
                let sum = isa::i32_splat(call.activations.cast::<i32>().add(token).read());
                for vector in 0..VECTORS {
                    let [first, second] = sums[token / 2][vector].map(|acc| isa::widen(acc));
                    let total = isa::i32_pairs(first, second)[token % 2];
                    let row = step * ROWS + vector * isa::LANES;
                    let out = call.out.add(token * call.out_stride + row);
                    isa::i32_store(out, isa::i32_sub(total, sum));
                }
            }
        }
    }
}

/// Adds the products of two units of every tile of the step. Where the last one has none beside it,
/// it stands in for that too: activations there are zeros.
///
/// # Safety
/// `weights` holds a step of `units` units, `vectors` the activations of as many, or of one more if
/// that number is odd; `unit < units`, and it is even.
#[inline]
unsafe fn add_units(
    sums: &mut Sums,
    weights: *const u8,
    units: usize,
    vectors: *const u8,
    unit: usize,
) {
    let next = if unit + 1 < units { TILE * 4 } else { 0 };
    // No loop of single vectors: the compiler leaves one as it is when its body is long.
    for four in 0..VECTORS / 4 {
        // SAFETY: two units of activations are FIELDS times PAIRS vectors, and tile `row / TILE` of
        // the step is `units` units of TILE * 4 bytes.
        unsafe {
            let row = 4 * four * isa::LANES;
            let tile = weights.add(row / TILE * units * TILE * 4);
            let lanes = tile.add(unit * TILE * 4 + row % TILE * 4);
            let mut vectors = vectors.add(unit * UNIT * TOKENS);
            add_vector(sums, lanes, next, &mut vectors, 4 * four);
            add_vector(sums, lanes, next, &mut vectors, 4 * four + 1);
            add_vector(sums, lanes, next, &mut vectors, 4 * four + 2);
            add_vector(sums, lanes, next, &mut vectors, 4 * four + 3);
        }
    }
}

/// Adds the products of a vector of rows in two units.
///
/// # Safety
/// `lanes` holds four vectors of weights, of which this is one, and so does what is `next` bytes further
/// on; `vectors` holds two units of activations; `vector < VECTORS`.
#[inline]
unsafe fn add_vector(
    sums: &mut Sums,
    lanes: *const u8,
    next: usize,
    vectors: &mut *const u8,
    vector: usize,
) {
    let lanes = lanes.wrapping_add(vector % 4 * 4 * isa::LANES);
    if PREFETCH != 0 {
        isa::prefetch::<1>(lanes.wrapping_add(PREFETCH));
        isa::prefetch::<1>(lanes.wrapping_add(PREFETCH + next));
    }
    // SAFETY: the caller's promise.
    let packed = unsafe { isa::interleave(isa::load(lanes), isa::load(lanes.add(next))) };
    for field in 0..FIELDS {
        let codes = [isa::codes(packed[0], field), isa::codes(packed[1], field)];
        for pair in 0..PAIRS {
            // SAFETY: the caller's promise.
            let activations = unsafe { isa::load(vectors.add((field * PAIRS + pair) * 16)) };
            for half in 0..2 {
                let sum = &mut sums[pair][vector][half];
                *sum = isa::dot_2x2(*sum, activations, codes[half]);
            }
        }
    }
    // In turn, every vector of weights loads the activations anew. Field by field, with 8 vectors of
    // weights in registers, took 10 accesses to the stack for 4 tokens and 38 for 6, this none and 15.
    isa::in_turn(sums[PAIRS - 1][vector][1], &mut [], vectors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Template;

    fn pack(weights: &[i8], cols: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for unit in (0..cols).step_by(UNIT) {
            for row in weights.chunks_exact(cols) {
                for byte in 0..4 {
                    let code = |field: usize| (row[unit + 4 * field + byte] + 1) as u8;
                    out.push((0..FIELDS).map(|field| code(field) << (2 * field)).sum());
                }
            }
        }
        out
    }

    #[test]
    fn equals_triple_loop() {
        let template = Template {
            rows: ROWS,
            tile: TILE,
            unit: UNIT,
            tokens: TOKENS,
            scratch,
            prepare,
            run,
            expansion: None,
            pack,
        };
        template.equals_triple_loop();
    }
}
