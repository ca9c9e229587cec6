//! AVX2, with FMA and F16C: vectors of 32 bytes. `vpmaddubsw` sums pairs of byte products into
//! 16 bits, so sums must be widened before they wrap.

use core::arch::x86_64::*;

/// 32-bit lanes in a vector.
pub const LANES: usize = 8;
/// Whether [`dot`] sums straight into 32 bits.
pub const WIDE: bool = false;

/// A vector of bytes.
pub type Bytes = __m256i;
/// A vector of 32-bit integers.
pub type I32 = __m256i;
/// Sums of byte products, 16 bits each.
pub type Acc = __m256i;

/// Zero in every byte.
#[inline]
#[target_feature(enable = "avx2")]
pub fn bytes_zero() -> Bytes {
    _mm256_setzero_si256()
}

/// Loads a vector.
///
/// # Safety
/// `ptr` is readable for the size of a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn load(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(ptr.cast()) }
}

/// Repeats 4 bytes in every 32-bit lane.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn broadcast4(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { ptr.cast::<i32>().read_unaligned() })
}

/// The 2-bit code in bits `2 field + 1 : 2 field` of every byte.
#[inline]
#[target_feature(enable = "avx2")]
pub fn codes(packed: Bytes, field: usize) -> Bytes {
    let shifted = match field {
        0 => packed,
        1 => _mm256_srli_epi16::<2>(packed),
        2 => _mm256_srli_epi16::<4>(packed),
        _ => _mm256_srli_epi16::<6>(packed),
    };
    _mm256_and_si256(shifted, _mm256_set1_epi8(3))
}

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
#[target_feature(enable = "avx2")]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    _mm256_and_si256(packed, _mm256_set1_epi8((3u8 << (2 * field)).cast_signed()))
}

/// No sum yet.
#[inline]
#[target_feature(enable = "avx2")]
pub fn acc_zero() -> Acc {
    _mm256_setzero_si256()
}

/// Adds, in every 16-bit lane, the 2 products of unsigned codes and signed activations. With
/// codes up to 2, 64 calls fit.
#[inline]
#[target_feature(enable = "avx2")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, activations))
}

/// The sums as 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub fn widen(acc: Acc) -> I32 {
    _mm256_madd_epi16(acc, _mm256_set1_epi16(1))
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i32_zero() -> I32 {
    _mm256_setzero_si256()
}

/// `value` in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i32_splat(value: i32) -> I32 {
    _mm256_set1_epi32(value)
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i32_add(a: I32, b: I32) -> I32 {
    _mm256_add_epi32(a, b)
}

/// Lane-wise difference.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i32_sub(a: I32, b: I32) -> I32 {
    _mm256_sub_epi32(a, b)
}

/// Lane-wise arithmetic shift right by `2 field` bits: undoes the scale of [`codes_in_place`].
#[inline]
#[target_feature(enable = "avx2")]
pub fn i32_unscale(a: I32, field: usize) -> I32 {
    match field {
        0 => a,
        1 => _mm256_srai_epi32::<2>(a),
        2 => _mm256_srai_epi32::<4>(a),
        _ => _mm256_srai_epi32::<6>(a),
    }
}

/// Stores [`LANES`] integers.
///
/// # Safety
/// `ptr` is writable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn i32_store(ptr: *mut i32, value: I32) {
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(ptr.cast(), value) }
}

/// Asks for the cache line at `ptr`, which need not be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub fn prefetch(ptr: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(ptr.cast());
}
