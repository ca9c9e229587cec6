//! AVX-512 with VNNI, VBMI and VBMI2: `vpshldw` shifts a bit of one word into another, and `vpermb`
//! looks 64 bytes up in a table of 64.

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

/// Tables of 64 bytes for [`spread`].
pub type Tables = [Bytes; 3];

/// Loads the tables.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn tables(tables: &'static [[u8; 64]; 3]) -> Tables {
    // SAFETY: each is as long as a vector.
    core::array::from_fn(|i| unsafe { _mm512_loadu_si512(tables[i].as_ptr().cast()) })
}

/// Two vectors from one, by the low 6 bits of each byte `b`: what it names in the first table, and
/// `b` itself; where its top bits are both set, what it names in the second and the third.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub fn spread(packed: Bytes, tables: &Tables) -> [Bytes; 2] {
    let both = _mm512_cmpge_epu8_mask(packed, _mm512_set1_epi8(0xc0u8.cast_signed()));
    let named = _mm512_permutexvar_epi8(packed, tables[0]);
    [
        _mm512_mask_permutexvar_epi8(named, both, packed, tables[1]),
        _mm512_mask_permutexvar_epi8(packed, both, packed, tables[2]),
    ]
}
