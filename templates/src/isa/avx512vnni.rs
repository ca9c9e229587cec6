//! AVX-512 with VNNI: `vpdpbusd` adds the 4 byte products of a 32-bit lane at once.

use core::arch::x86_64::*;

pub use super::avx512::*;

/// Whether [`dot`] sums straight into 32 bits.
pub const WIDE: bool = true;

/// Sums of byte products, 32 bits each.
pub type Acc = I32;

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
