//! Rows of a matrix that a list names, times one activation row: what is not listed is not read.
//!
//! A line, here a row, is a run of units of 64 bytes; a byte holds a code of each of [`line::FIELDS`]
//! runs of 64 columns, so that a vector of bytes gives a vector of codes for every field, and meets
//! as many activations in their natural order. The products of 4 neighbouring columns meet in a
//! lane, so lanes are added up at the end of a line, those of the lines of a step together. As codes
//! are one more than weights,
//!
//! ```text
//! dot(weights, q) = dot(codes, q) - sum(q)
//! ```
//!
//! with `sum(q)` computed once by `prepare`. Codes stay where they are in their byte where sums are
//! 32 bits wide; the sums of a field then come out times a power of 4, exactly.
//!
//! A prepared row is `sum(q): i32` padded to 64 bytes, then `q`, padded with zeros to whole units.

use crate::abi::{GatherCall, Prepare};
use crate::isa::scalar as isa;
use crate::line_t5 as line;

/// Lines per step: 2 or 4.
const ROWS: usize = 4;
/// Columns of the matrix; 0: taken from the call.
const COLS: usize = 0;
/// Lines ahead in the list to prefetch; 0: none.
const PREFETCH: usize = 0;
/// Level of the cache that is prefetched to: 1 or 2.
const LEVEL: usize = 1;

/// Bytes of a unit.
const UNIT_BYTES: usize = 64;
/// Columns in a unit.
const UNIT: usize = line::FIELDS * UNIT_BYTES;
/// Bytes of a vector.
const BYTES: usize = 4 * isa::LANES;
/// Vectors in a unit.
const VECTORS: usize = UNIT_BYTES / BYTES;
/// Independent sums per line: a field each where they come out times different numbers.
const CHAINS: usize = if isa::WIDE { line::FIELDS } else { 1 };
/// Units after which sums of 16 bits are widened: they hold 64 sums of two products.
const WIDEN: usize = 64 / (line::FIELDS * VECTORS);
/// Bytes before the activations.
const HEADER: usize = 64;

/// Bytes of scratch that a prepared row takes for so many columns.
pub const extern "C" fn scratch(cols: usize) -> usize {
    HEADER + cols.next_multiple_of(UNIT)
}

/// Lays out one activation row.
///
/// # Safety
/// See `PrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &Prepare) {
    let cols = if COLS == 0 { prepare.cols } else { COLS };
    // SAFETY: the scratch holds the header and whole units of columns, the row `cols` bytes (the
    // contract of PrepareFn).
    unsafe {
        let out = prepare.scratch.add(HEADER);
        let mut sum = 0;
        for col in 0..cols {
            let q = prepare.quantised.add(col).read();
            sum += i32::from(q);
            out.add(col).write(q.cast_unsigned());
        }
        for col in cols..cols.next_multiple_of(UNIT) {
            out.add(col).write(0);
        }
        prepare.scratch.cast::<i32>().write(sum);
    }
}

/// Multiplies: see `GatherRunFn`.
///
/// # Safety
/// See `GatherRunFn`.
pub unsafe extern "C" fn run(call: &GatherCall) {
    let units = if COLS == 0 { call.units } else { COLS.div_ceil(UNIT) };
    let tables = line::tables();
    let mut first = 0;
    while first < call.count {
        // SAFETY: the list holds `count` lines of the matrix, the prepared row whole units of
        // columns, and the output an element for each line of the list (the contract of GatherRunFn).
        unsafe {
            // The last line stands for those beyond the list.
            let mut lines = [call.lines; ROWS];
            let mut ahead = [call.lines; ROWS];
            for i in 0..ROWS {
                lines[i] = line_at(call, first + i);
                ahead[i] = line_at(call, first + i + PREFETCH);
            }
            let activations = call.activations.add(HEADER);
            let mut totals = [isa::i32_zero(); 4];
            let mut unit = 0;
            while unit < units {
                let end = if isa::WIDE { units } else { units.min(unit + WIDEN) };
                let mut sums = [[isa::acc_zero(); CHAINS]; ROWS];
                while unit < end {
                    for vector in 0..VECTORS {
                        let at = vector * BYTES;
                        let mut quads = activations.add(unit * UNIT + at);
                        for i in 0..ROWS {
                            let bytes = isa::load(lines[i].add(unit * UNIT_BYTES + at));
                            let packed = line::unpack(bytes, &tables);
                            for field in 0..line::FIELDS {
                                let sum = &mut sums[i][field % CHAINS];
                                let quad = isa::load(quads.add(field * UNIT_BYTES));
                                *sum = isa::dot(*sum, line::codes(&packed, field), quad);
                            }
                            // Lines could share loads of activations, but then there are too few
                            // registers: 4 lines of T5 took 91 instructions instead of 76.
                            if isa::WIDE {
                                isa::in_turn(sums[i][CHAINS - 1], &mut [], &mut quads);
                            }
                        }
                    }
                    if PREFETCH != 0 {
                        for i in 0..ROWS {
                            isa::prefetch::<LEVEL>(ahead[i].add(unit * UNIT_BYTES));
                        }
                    }
                    unit += 1;
                }
                for i in 0..ROWS {
                    for chain in 0..CHAINS {
                        let wide = isa::widen(sums[i][chain]);
                        let sum = isa::i32_unscale(wide, line::place(chain));
                        totals[i] = isa::i32_add(totals[i], sum);
                    }
                }
            }
            let dots = isa::i32_sum_groups(isa::i32_sum_quads(totals));
            let sum = call.activations.cast::<i32>().read();
            for i in 0..ROWS.min(call.count - first) {
                call.out.add(first + i).write(dots[i] - sum);
            }
        }
        first += ROWS;
    }
}

/// The line at a place of the list, the last one where the list is shorter.
///
/// # Safety
/// The list is not empty, and holds lines of the matrix.
#[inline]
unsafe fn line_at(call: &GatherCall, at: usize) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe {
        let line = call.list.add(at.min(call.count - 1)).read() as usize;
        call.lines.add(line * call.line_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::GatherCase;

    #[test]
    fn equals_triple_loop() {
        GatherCase { scratch, prepare, run, add_up: false }.equal_triple_loop();
    }
}
