//! I2_S: 2-bit codes 0, 1, 2 for the weights -1, 0, +1, multiplied as unsigned bytes.
//!
//! Rows lie in the lanes: a unit of 16 columns holds 4 bytes for each row of the tile, and the two
//! bits at position `field` of those bytes are the codes of columns `4 field .. 4 field + 4`. So
//! one vector of weights meets 4 broadcast quads of activations, every lane sums its own row, and
//! no sum ever crosses lanes. As codes are one more than weights,
//!
//! ```text
//! dot(weights, q) = dot(codes, q) - sum(q)
//! ```
//!
//! with `sum(q)` computed once per activation row by `prepare`.
//!
//! Decode on an ISA whose dot product is 32 bits wide does not shift the codes down: field `f`
//! stays in place, its sum comes out times `4^f`, exactly, and is shifted once at the end. That
//! costs one `and` per product. Elsewhere codes are shifted down, and prefill shares that work
//! among all activation rows.
//!
//! A prepared group is laid out as `quads` says.

use crate::abi::{Call, Prepare};
use crate::isa::scalar as isa;
use crate::quads;

/// Rows in a packed tile.
const TILE: usize = 16;
/// Rows per step, a multiple of `TILE`.
const ROWS: usize = 16;
/// Columns of the matrix; 0: taken from the call.
const COLS: usize = 0;
/// Columns after which sums are widened; 0: at the end of the row.
const BLOCK: usize = 0;
/// Activation rows per call.
const TOKENS: usize = 1;
/// Units per iteration.
const UNROLL: usize = 2;
/// Bytes ahead to prefetch; 0: none.
const PREFETCH: usize = 0;

/// Columns in a unit.
const UNIT: usize = 16;
/// Codes in a byte.
const FIELDS: usize = 4;
/// Vectors that hold the sums of a step for one activation row.
const VECTORS: usize = ROWS / isa::LANES;
/// True if codes stay where they are in their byte.
const IN_PLACE: bool = isa::WIDE && TOKENS == 1;
/// Independent sums per vector and activation row: `vpdpbusd` takes 4 to 5 cycles, so one chain
/// per field and unrolled unit keeps it busy.
const CHAINS: usize = if IN_PLACE { FIELDS * UNROLL } else { 1 };
/// Bytes before the columns of a prepared group.
const HEADER: usize = quads::header(TOKENS);

/// The accumulators of a step.
type Sums = [[[isa::Acc; CHAINS]; VECTORS]; TOKENS];

/// Bytes of scratch that a prepared group takes for so many columns.
pub const extern "C" fn scratch(cols: usize) -> usize {
    quads::bytes(cols, UNIT, TOKENS)
}

/// Lays out one group of activation rows.
///
/// # Safety
/// See `PrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &Prepare) {
    let cols = if COLS == 0 { prepare.cols } else { COLS };
    // SAFETY: the scratch holds whole units of columns for TOKENS rows, and rows below `tokens` are
    // readable for `cols` bytes (the contract of PrepareFn).
    unsafe { quads::lay_out::<UNIT, TOKENS>(prepare, cols) }
}

/// Multiplies: see `RunFn`.
///
/// # Safety
/// See `RunFn`.
pub unsafe extern "C" fn run(call: &Call) {
    let cols = if COLS == 0 { call.cols } else { COLS };
    let units = cols.div_ceil(UNIT);
    let block = if BLOCK == 0 { units } else { BLOCK / UNIT };
    for step in 0..call.steps {
        // SAFETY: the matrix holds `steps` steps, the prepared group whole units of columns, and
        // the output ROWS elements per step and activation row (the contract of RunFn).
        unsafe {
            let weights = call.weights.add(step * units * 4 * ROWS);
            let quads = call.activations.add(HEADER);
            let mut totals = [[isa::i32_zero(); VECTORS]; TOKENS];
            let mut unit = 0;
            while unit < units {
                let end = if BLOCK == 0 { units } else { units.min(unit + block) };
                let mut sums: Sums = [[[isa::acc_zero(); CHAINS]; VECTORS]; TOKENS];
                while unit + UNROLL <= end {
                    for u in 0..UNROLL {
                        add_unit(&mut sums, weights, units, quads, unit + u, u);
                    }
                    unit += UNROLL;
                }
                while UNROLL > 1 && unit < end {
                    add_unit(&mut sums, weights, units, quads, unit, 0);
                    unit += 1;
                }
                for token in 0..TOKENS {
                    for vector in 0..VECTORS {
                        for chain in 0..CHAINS {
                            let wide = isa::widen(sums[token][vector][chain]);
                            let field = if IN_PLACE { chain % FIELDS } else { 0 };
                            let total = &mut totals[token][vector];
                            *total = isa::i32_add(*total, isa::i32_unscale(wide, field));
                        }
                    }
                }
            }
            for token in 0..TOKENS {
                let sum = isa::i32_splat(call.activations.cast::<i32>().add(token).read());
                for vector in 0..VECTORS {
                    let row = step * ROWS + vector * isa::LANES;
                    let out = call.out.add(token * call.out_stride + row);
                    isa::i32_store(out, isa::i32_sub(totals[token][vector], sum));
                }
            }
        }
    }
}

/// Adds the products of one unit of every tile of the step; `chain` numbers the unrolled units.
///
/// # Safety
/// `weights` holds a step of `units` units, `quads` as many units of activations; `unit < units`.
#[inline]
unsafe fn add_unit(
    sums: &mut Sums,
    weights: *const u8,
    units: usize,
    quads: *const u8,
    unit: usize,
    chain: usize,
) {
    let mut packed = [isa::bytes_zero(); VECTORS];
    for vector in 0..VECTORS {
        let row = vector * isa::LANES;
        // SAFETY: tile `row / TILE` of the step is `units` units of TILE * 4 bytes.
        unsafe {
            let tile = weights.add(row / TILE * units * TILE * 4);
            let lanes = tile.add(unit * TILE * 4 + row % TILE * 4);
            packed[vector] = isa::load(lanes);
            if PREFETCH != 0 {
                isa::prefetch::<1>(lanes.wrapping_add(PREFETCH));
            }
        }
    }
    // No loop: the compiler leaves one as it is when its body is long, with shifts by a variable.
    // SAFETY: a unit of activations is FIELDS quads of TOKENS rows.
    unsafe {
        let mut quads = quads.add(unit * FIELDS * TOKENS * 4);
        add_field(sums, &mut packed, &mut quads, 0, chain);
        add_field(sums, &mut packed, &mut quads, 1, chain);
        add_field(sums, &mut packed, &mut quads, 2, chain);
        add_field(sums, &mut packed, &mut quads, 3, chain);
    }
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
    chain: usize,
) {
    let mut codes = *packed;
    for vector in 0..VECTORS {
        codes[vector] = if IN_PLACE {
            isa::codes_in_place(packed[vector], field)
        } else {
            isa::codes(packed[vector], field)
        };
    }
    for token in 0..TOKENS {
        // SAFETY: the caller's promise.
        let quad = unsafe { isa::broadcast4(quads.add((field * TOKENS + token) * 4)) };
        for vector in 0..VECTORS {
            let chain = if IN_PLACE { chain * FIELDS + field } else { 0 };
            let sum = &mut sums[token][vector][chain];
            *sum = isa::dot(*sum, codes[vector], quad);
        }
    }
    // Sums of 16 bits take two instructions; the compiler would start on later fields before
    // the second of this one, and run out of registers. In turn, 16 rows by 4 tokens on AVX2
    // go from 16 accesses to the stack to 2 and take 0.95 times as long.
    if !isa::WIDE && TOKENS > 1 {
        isa::in_turn(sums[TOKENS - 1][VECTORS - 1][0], packed, quads);
    }
}
