//! Activations as codes of 2 bits meet them, four columns at a time: the prepared group of the
//! templates `i2_s` and `t5`.
//!
//! A group is `[sum(q): i32; TOKENS]` padded to 64 bytes, then for every 4 columns the 4 bytes of
//! each activation row in turn; columns are padded with zeros to whole units.

use crate::abi::Prepare;

/// Bytes before the columns of a group of so many activation rows.
pub const fn header(tokens: usize) -> usize {
    (tokens * 4).next_multiple_of(64)
}

/// Bytes of a group: so many columns in units of `unit`, a multiple of 4, of so many rows.
pub const fn bytes(cols: usize, unit: usize, tokens: usize) -> usize {
    header(tokens) + cols.next_multiple_of(unit) * tokens
}

/// Lays out a group of `TOKENS` activation rows of `cols` columns, in units of `UNIT`. It becomes part
/// of the kernel's `prepare`, and so has the same target features.
///
/// # Safety
/// The scratch may be written for [`bytes`] bytes; rows below `prepare.tokens` are readable for `cols`
/// bytes.
#[inline(always)]
pub unsafe fn lay_out<const UNIT: usize, const TOKENS: usize>(prepare: &Prepare, cols: usize) {
    let there = prepare.tokens.min(TOKENS);
    // SAFETY: the scratch holds the header and whole units of columns for TOKENS rows, and the rows
    // that there are hold `cols` bytes (the caller's promise).
    unsafe {
        let quads = prepare.scratch.add(header(TOKENS));
        // Quad by quad, so that what is written is written in order.
        for quad in 0..cols / 4 {
            let from = prepare.quantised.add(4 * quad);
            let to = quads.add(4 * quad * TOKENS);
            if there == TOKENS {
                // A loop of known length.
                for token in 0..TOKENS {
                    copy_quad(from.add(token * prepare.stride), to.add(4 * token));
                }
            } else {
                for token in 0..there {
                    copy_quad(from.add(token * prepare.stride), to.add(4 * token));
                }
                to.add(4 * there).write_bytes(0, 4 * (TOKENS - there));
            }
        }
        for token in 0..TOKENS {
            let row = prepare.quantised.add(token * prepare.stride);
            let mut sum = 0;
            if token < there {
                for col in 0..cols {
                    sum += i32::from(row.add(col).read());
                }
            }
            for col in cols / 4 * 4..cols.next_multiple_of(UNIT) {
                let byte = if token < there && col < cols { row.add(col).read() } else { 0 };
                let at = (col / 4 * TOKENS + token) * 4 + col % 4;
                quads.add(at).write(byte.cast_unsigned());
            }
            prepare.scratch.cast::<i32>().add(token).write(sum);
        }
    }
}

/// Copies four activations of a row.
///
/// # Safety
/// Both are readable or writable for 4 bytes.
#[inline(always)]
unsafe fn copy_quad(from: *const i8, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[i8; 4]>().write_unaligned(from.cast::<[i8; 4]>().read_unaligned()) }
}
