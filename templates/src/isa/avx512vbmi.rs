//! AVX-512 with VNNI, VBMI and VBMI2: `vpshldw` shifts a bit of one word into another.

use core::arch::x86_64::*;

pub use super::avx512vnni::*;

/// Words whose lowest field is that which bit 15 of five groups of words make, bit 4 first.
///
/// # Safety
/// `ptr` is readable for 5 times 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")]
pub unsafe fn fields_spare(ptr: *const u8) -> Fields {
    let mut spare = _mm512_setzero_si512();
    for group in 0..5 {
        // SAFETY: the caller's promise.
        let fields = unsafe { fields_load(ptr.add(64 * group)) };
        spare = _mm512_shldi_epi16::<1>(spare, fields);
    }
    spare
}
