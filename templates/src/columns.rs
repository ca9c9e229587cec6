//! Columns of a matrix that a list names, each times its own activation, added up: what is not
//! listed, because its activation is zero, is not read.
//!
//! A line, here a column, is a run of units of 64 bytes; a byte holds a code of each of
//! [`line::FIELDS`] runs of 64 rows. The bytes of 4 listed columns are interleaved, so that a 32-bit
//! lane holds those of one place in all four, whose codes meet one broadcast quad of activations:
//! every lane sums its own row. As codes are one more than weights,
//!
//! ```text
//! dot(weights, q) = dot(codes, q) - sum(q)
//! ```
//!
//! with `sum(q)` computed once by `prepare`. Codes stay where they are in their byte where sums are
//! 32 bits wide; the sums of a field then come out times a power of 4, exactly.
//!
//! Listed columns are taken in groups, each through all rows before the next one: the group stays in
//! the L1 cache, a line is read from end to end at once, and sums are unscaled before they could
//! wrap. They wait in `out`, in the order in which the lanes have them.
//!
//! Prepared activations, those of the listed columns only, are `sum(q): i32` padded to 64 bytes,
//! then `q`, padded with zeros to whole quads.

use crate::abi::{GatherCall, Prepare};
use crate::isa::scalar as isa;
use crate::line_t5 as line;

/// Rows whose sums are held at once: those of 1, 2 or 4 interleaved vectors.
const ROWS: usize = 80;
/// Columns of a group.
const BLOCK: usize = 32;
/// Columns ahead in the list to prefetch; 0: none.
const PREFETCH: usize = 32;
/// Level of the cache that is prefetched to: 1 or 2.
const LEVEL: usize = 1;

/// Bytes of a unit.
const UNIT_BYTES: usize = 64;
/// Rows in a unit.
const UNIT: usize = line::FIELDS * UNIT_BYTES;
/// Bytes of a vector.
const BYTES: usize = 4 * isa::LANES;
/// Vectors in a unit.
const VECTORS: usize = UNIT_BYTES / BYTES;
/// Columns that are interleaved, and the vectors that gives.
const QUAD: usize = 4;
/// Of these vectors those whose sums are held at once.
const PARTS: usize = ROWS / (line::FIELDS * isa::LANES);
/// Bytes before the activations.
const HEADER: usize = 64;

/// Bytes of scratch that the activations of so many listed columns take.
pub const extern "C" fn scratch(cols: usize) -> usize {
    HEADER + cols.next_multiple_of(QUAD)
}

/// Lays out the activations of the listed columns.
///
/// # Safety
/// See `PrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &Prepare) {
    // SAFETY: the scratch holds the header and whole quads, the row `cols` bytes (the contract of
    // PrepareFn).
    unsafe {
        let out = prepare.scratch.add(HEADER);
        let mut sum = 0;
        for col in 0..prepare.cols {
            let q = prepare.quantised.add(col).read();
            sum += i32::from(q);
            out.add(col).write(q.cast_unsigned());
        }
        for col in prepare.cols..prepare.cols.next_multiple_of(QUAD) {
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
    let tables = line::tables();
    // SAFETY: the list holds `count` lines of the matrix, of each of which `units` units may be read,
    // there is a prepared activation for each, and the output holds as many units (the contract of
    // GatherRunFn).
    unsafe {
        for i in 0..call.units * UNIT / isa::LANES {
            isa::i32_store(call.out.add(i * isa::LANES), isa::i32_zero());
        }
        // Those that no group asks for ahead: 0.83 times as long for 520 of 6912 columns.
        for i in 0..PREFETCH.min(call.count) {
            for unit in 0..call.units {
                isa::prefetch::<LEVEL>(line_at(call, i).add(unit * UNIT_BYTES));
            }
        }
        let mut first = 0;
        while first < call.count {
            let end = call.count.min(first + BLOCK);
            for unit in 0..call.units {
                for vector in 0..VECTORS {
                    add_group::<0>(call, &tables, first, end, unit, vector);
                    if PARTS == 2 {
                        add_group::<2>(call, &tables, first, end, unit, vector);
                    }
                    if PARTS == 1 {
                        add_group::<1>(call, &tables, first, end, unit, vector);
                        add_group::<2>(call, &tables, first, end, unit, vector);
                        add_group::<3>(call, &tables, first, end, unit, vector);
                    }
                }
            }
            first = end;
        }
        let sum = call.activations.cast::<i32>().read();
        for unit in 0..call.units {
            in_order(call.out.add(unit * UNIT), sum);
        }
    }
}

/// Adds the products of the columns `first..end` of the list in one vector of a unit: of [`PARTS`]
/// interleaved vectors from `PART` on.
///
/// # Safety
/// As [`run`]; `first < end`, which is at most the length of the list.
#[inline]
unsafe fn add_group<const PART: usize>(
    call: &GatherCall,
    tables: &line::Tables,
    first: usize,
    end: usize,
    unit: usize,
    vector: usize,
) {
    let offset = unit * UNIT_BYTES + vector * BYTES;
    let mut sums = [[isa::acc_zero(); line::FIELDS]; PARTS];
    let mut at = first;
    while at < end {
        let mut bytes = [isa::bytes_zero(); QUAD];
        for i in 0..QUAD {
            // SAFETY: the caller's promise.
            unsafe {
                bytes[i] = isa::load(line_at(call, at + i).add(offset));
                if PREFETCH != 0 && PART == 0 && vector == 0 {
                    isa::prefetch::<LEVEL>(line_at(call, at + i + PREFETCH).add(offset));
                }
            }
        }
        // SAFETY: activations are padded to whole quads.
        let quad = unsafe { isa::broadcast4(call.activations.add(HEADER + at)) };
        let parts = isa::interleave4(bytes);
        for part in 0..PARTS {
            let packed = line::unpack(parts[PART + part], tables);
            for field in 0..line::FIELDS {
                let sum = &mut sums[part][field];
                *sum = isa::dot(*sum, line::codes(&packed, field), quad);
            }
        }
        at += QUAD;
    }
    for part in 0..PARTS {
        for field in 0..line::FIELDS {
            let vectors = ((unit * VECTORS + vector) * QUAD + PART + part) * line::FIELDS + field;
            // SAFETY: `out` holds so many vectors for each unit.
            unsafe {
                let total = call.out.add(vectors * isa::LANES);
                let sum = isa::i32_unscale(isa::widen(sums[part][field]), line::place(field));
                isa::i32_store(total, isa::i32_add(isa::i32_load(total), sum));
            }
        }
    }
}

/// Brings the sums of a unit into the order of its rows, and takes `sum` off each.
///
/// # Safety
/// `out` is readable and writable for a unit.
#[inline]
unsafe fn in_order(out: *mut i32, sum: i32) {
    /// Lanes that stay together when vectors are interleaved.
    const GROUP: usize = 4;
    let mut rows = [[0; GROUP]; UNIT / GROUP];
    let mut from = 0;
    for vector in 0..VECTORS {
        for part in 0..QUAD {
            for field in 0..line::FIELDS {
                for group in 0..isa::LANES / GROUP {
                    let row = field * UNIT_BYTES + vector * BYTES + group * 16 + part * GROUP;
                    // SAFETY: a unit is so many groups.
                    let dots = unsafe { out.cast::<[i32; GROUP]>().add(from).read() };
                    for i in 0..GROUP {
                        rows[row / GROUP][i] = dots[i] - sum;
                    }
                    from += 1;
                }
            }
        }
    }
    // SAFETY: as many as were read.
    unsafe { out.cast::<[i32; GROUP]>().copy_from_nonoverlapping(rows.as_ptr(), rows.len()) }
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
        GatherCase { scratch, prepare, run, add_up: true }.equal_triple_loop();
    }
}
