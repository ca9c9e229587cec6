//! AVX-512 with VNNI: `vpdpbusd` adds the 4 byte products of a 32-bit lane at once.

use core::arch::x86_64::*;

pub use super::avx512::*;

/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = true;

/// Sums of byte products, 32 bits each.
pub type Acc = I32;

/// Sums that begin with `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    i32_splat(unsafe { start.read() })
}

/// Adds, in every lane, the 4 products of unsigned codes and signed activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    _mm512_dpbusd_epi32(acc, codes, activations)
}

/// The sums as 32-bit lanes.
#[inline]
pub fn widen(acc: Acc) -> I32 {
    acc
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    // (a + 128) b - 128 b: the first factor of `vpdpbusd` is unsigned.
    let offset = _mm512_set1_epi8(-128);
    let zero = _mm512_setzero_si512();
    let dots = _mm512_dpbusd_epi32(zero, _mm512_xor_si512(a, offset), b);
    _mm512_sub_epi32(dots, _mm512_dpbusd_epi32(zero, offset, b))
}
