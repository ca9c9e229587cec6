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

/// The 32 bytes of two 4-bit indices that a tile holds at a place.
pub type Nibbles = __m256i;
/// An index into a [`Table16`] for each of the 32 rows of a tile, in bytes.
pub type Indices = __m256i;
/// A 16-bit lane for each of the 32 rows of a tile, as unpacking leaves them: rows 0 to 7 and 16
/// to 23, then 8 to 15 and 24 to 31. [`widen_add`] restores the order.
pub type I16 = [__m256i; 2];
/// A table of 16 entries: their low bytes, then their high bytes, twice each.
pub type Table16 = [__m256i; 2];
/// 8 signs for each of the 32 rows of a tile, in the high bytes of words ordered as [`I16`]; the
/// low bytes are 1.
pub type Signs = [__m256i; 2];
/// The 32 rows of a tile as 32-bit lanes, in order.
pub type Tile32 = [I32; 32 / LANES];

/// Bytes of a stored [`Table16`].
pub const TABLE16_BYTES: usize = 32;

/// Index 0 for each row.
#[inline]
#[target_feature(enable = "avx2")]
pub fn indices_zero() -> Indices {
    _mm256_setzero_si256()
}

/// Loads 32 bytes.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn nibbles_load(ptr: *const u8) -> Nibbles {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(ptr.cast()) }
}

/// The low (0) or high (1) nibbles.
#[inline]
#[target_feature(enable = "avx2")]
pub fn nibble(nibbles: Nibbles, which: usize) -> Indices {
    let shifted = if which == 0 { nibbles } else { _mm256_srli_epi16::<4>(nibbles) };
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// Stores a table as [`table16_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn table16_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 16]; N],
) {
    let split = _mm256_setr_epi8(
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, //
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
    );
    let mut entries = _mm256_setzero_si256();
    for i in 0..N {
        // SAFETY: 16 words are a vector.
        let factors = unsafe { _mm256_loadu_si256(coefficients[i].as_ptr().cast()) };
        let products = _mm256_mullo_epi16(_mm256_set1_epi16(i16::from(activations[i])), factors);
        entries = _mm256_add_epi16(entries, products);
    }
    // The low and the high bytes of each half, then the halves together.
    let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(entries, split));
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(ptr.cast(), bytes) }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn table16_load(ptr: *const u8) -> Table16 {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm256_broadcastsi128_si256(_mm_loadu_si128(ptr.cast())),
            _mm256_broadcastsi128_si256(_mm_loadu_si128(ptr.add(16).cast())),
        ]
    }
}

/// The entry that each index names.
#[inline]
#[target_feature(enable = "avx2")]
pub fn lookup16(table: Table16, indices: Indices) -> I16 {
    let low = _mm256_shuffle_epi8(table[0], indices);
    let high = _mm256_shuffle_epi8(table[1], indices);
    [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
}

/// No sign set.
#[inline]
#[target_feature(enable = "avx2")]
pub fn signs_zero() -> Signs {
    [_mm256_set1_epi16(1); 2]
}

/// Loads 32 bytes of 8 signs each.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn signs_load(ptr: *const u8) -> Signs {
    // SAFETY: the caller's promise.
    let signs = unsafe { _mm256_loadu_si256(ptr.cast()) };
    let ones = _mm256_set1_epi8(1);
    [_mm256_unpacklo_epi8(ones, signs), _mm256_unpackhi_epi8(ones, signs)]
}

/// Negates the lanes whose top sign is set. `vpsignw` would clear those whose sign is a zero
/// word, but the 1 below the signs never leaves it.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i16_negate(values: I16, signs: Signs) -> I16 {
    [_mm256_sign_epi16(values[0], signs[0]), _mm256_sign_epi16(values[1], signs[1])]
}

/// Brings the next lower sign to the top.
#[inline]
#[target_feature(enable = "avx2")]
pub fn signs_next(signs: Signs) -> Signs {
    [_mm256_slli_epi16::<1>(signs[0]), _mm256_slli_epi16::<1>(signs[1])]
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i16_zero() -> I16 {
    [_mm256_setzero_si256(); 2]
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "avx2")]
pub fn i16_add(a: I16, b: I16) -> I16 {
    [_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])]
}

/// Adds 16-bit lanes to 32-bit ones, row by row.
#[inline]
#[target_feature(enable = "avx2")]
pub fn widen_add(totals: Tile32, sums: I16) -> Tile32 {
    let mut out = totals;
    for part in 0..4 {
        let half = sums[part % 2];
        let words = if part < 2 {
            _mm256_castsi256_si128(half)
        } else {
            _mm256_extracti128_si256::<1>(half)
        };
        out[part] = _mm256_add_epi32(totals[part], _mm256_cvtepi16_epi32(words));
    }
    out
}
