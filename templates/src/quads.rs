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
    for token in 0..TOKENS {
        let mut sum = 0;
        // SAFETY: the scratch holds the header and whole units of columns for TOKENS rows, and the
        // rows that there are hold `cols` bytes (the caller's promise).
        unsafe {
            let out = prepare.scratch.add(header(TOKENS) + 4 * token);
            let mut done = 0;
            if token < prepare.tokens {
                let row = prepare.quantised.add(token * prepare.stride);
                for quad in 0..cols / 4 {
                    let bytes = row.add(4 * quad).cast::<[i8; 4]>().read_unaligned();
                    sum += bytes.iter().map(|&b| i32::from(b)).sum::<i32>();
                    out.add(4 * quad * TOKENS).cast::<[i8; 4]>().write_unaligned(bytes);
                }
                done = cols / 4 * 4;
                while done < cols {
                    let byte = row.add(done).read();
                    sum += i32::from(byte);
                    out.add(done / 4 * 4 * TOKENS + done % 4).write(byte.cast_unsigned());
                    done += 1;
                }
            }
            while done < cols.next_multiple_of(UNIT) {
                out.add(done / 4 * 4 * TOKENS + done % 4).write(0);
                done += 1;
            }
            prepare.scratch.cast::<i32>().add(token).write(sum);
        }
    }
}
