//! NEON with the dot product instructions: `sdot` adds the 4 byte products of a 32-bit lane at
//! once. Both its factors are signed.

use core::arch::aarch64::*;
use core::arch::asm;

pub use super::neon::*;

/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = true;

/// Sums of byte products, 32 bits each.
pub type Acc = I32;

/// As [`codes`], left in place: the code times `4^field`; but the last one, of which `sdot` would
/// see the sign, is shifted down.
#[inline]
#[target_feature(enable = "neon")]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    match field {
        3 => vshrq_n_u8::<6>(packed),
        _ => vandq_u8(packed, vdupq_n_u8(3 << (2 * field))),
    }
}

/// Undoes the scale of [`codes_in_place`] by an arithmetic shift.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_unscale(a: I32, field: usize) -> I32 {
    match field {
        1 => vshrq_n_s32::<2>(a),
        2 => vshrq_n_s32::<4>(a),
        _ => a,
    }
}

/// No sum yet.
#[inline]
#[target_feature(enable = "neon")]
pub fn acc_zero() -> Acc {
    i32_zero()
}

/// Sums that begin with `start`.
#[inline]
#[target_feature(enable = "neon")]
pub fn acc_start(start: I32) -> Acc {
    start
}

/// The number from which [`acc_splat`] makes sums that begin with the sum of `halves`.
#[inline]
pub fn acc_word(halves: [i32; 2]) -> i32 {
    halves[0] + halves[1]
}

/// Sums that begin with what [`acc_word`] made.
///
/// # Safety
/// `start` is readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    i32_splat(unsafe { start.read() })
}

/// Adds, in every lane, the 4 products of codes, at most 127, and signed activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    let mut sum = acc;
    // The intrinsic is not stable yet.
    // SAFETY: the instruction is of the features above, and changes no register but `sum`.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) codes, in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Keeps later work behind `done`, which 32 registers do not need.
#[inline]
#[target_feature(enable = "neon")]
pub fn in_turn<const N: usize>(_done: Acc, _packed: &mut [Bytes; N], _quads: &mut *const u8) {}

/// The sums as 32-bit lanes.
#[inline]
pub fn widen(acc: Acc) -> I32 {
    acc
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    dot(acc_zero(), a, b)
}
