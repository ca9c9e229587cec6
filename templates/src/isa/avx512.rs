//! AVX-512 with BW, DQ and VL, without VNNI: vectors of 64 bytes. As on AVX2, `vpmaddubsw` sums
//! pairs of byte products into 16 bits.

use core::arch::asm;
use core::arch::x86_64::*;

/// 32-bit lanes in a vector.
pub const LANES: usize = 16;
/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = false;

/// A vector of bytes.
pub type Bytes = __m512i;
/// A vector of 32-bit integers.
pub type I32 = __m512i;
/// Sums of byte products, 16 bits each.
pub type Acc = __m512i;

/// 16 virtual lanes of f32, the unit of the float contract.
pub type F32 = __m512;
/// Number of [`F32`] that the registers hold.
pub const F32_REGISTERS: usize = 32;

/// `value` in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_splat(value: f32) -> F32 {
    _mm512_set1_ps(value)
}

/// Loads 16 floats.
///
/// # Safety
/// `ptr` is readable for 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load(ptr: *const f32) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_ps(ptr) }
}

/// Loads 16 int32 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load_i32(ptr: *const i32) -> F32 {
    // SAFETY: the caller's promise.
    _mm512_cvtepi32_ps(unsafe { _mm512_loadu_si512(ptr.cast()) })
}

/// Loads 16 half-precision floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 half floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load_f16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(ptr.cast()) })
}

/// Loads 16 brain floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 brain floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load_bf16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    let words = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(ptr.cast()) });
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
}

/// Stores 16 floats.
///
/// # Safety
/// `ptr` is writable for 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_store(ptr: *mut f32, value: F32) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_ps(ptr, value) }
}

/// Stores 16 floats as half floats, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 half floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_store_f16(ptr: *mut u16, value: F32) {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
        _mm256_storeu_si256(ptr.cast(), halves);
    }
}

/// Stores 16 floats from -128 to 127 as int8, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_store_i8(ptr: *mut i8, value: F32) {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
        _mm_storeu_si128(ptr.cast(), bytes);
    }
}

/// `a + b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_add(a: F32, b: F32) -> F32 {
    _mm512_add_ps(a, b)
}

/// `a - b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_sub(a: F32, b: F32) -> F32 {
    _mm512_sub_ps(a, b)
}

/// `a * b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_mul(a: F32, b: F32) -> F32 {
    _mm512_mul_ps(a, b)
}

/// `a / b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_div(a: F32, b: F32) -> F32 {
    _mm512_div_ps(a, b)
}

/// `a * b + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_fma(a: F32, b: F32, c: F32) -> F32 {
    _mm512_fmadd_ps(a, b, c)
}

/// `-(a * b) + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_fnma(a: F32, b: F32, c: F32) -> F32 {
    _mm512_fnmadd_ps(a, b, c)
}

/// `a > b ? a : b`: b where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_max(a: F32, b: F32) -> F32 {
    _mm512_max_ps(a, b)
}

/// `a < b ? a : b`: b where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_min(a: F32, b: F32) -> F32 {
    _mm512_min_ps(a, b)
}

/// Without the sign.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_abs(a: F32) -> F32 {
    _mm512_abs_ps(a)
}

/// `a > b ? x : y`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_select_gt(a: F32, b: F32, x: F32, y: F32) -> F32 {
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x)
}

/// `p * 2^k`, where k is the difference of the bits of `shifted` and `base`: scaled in two halves,
/// so that k = 128 is no special case. Where 2^(k/2) is no normal number the result means nothing.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_scale_by_bits(p: F32, shifted: F32, base: f32) -> F32 {
    let base = _mm512_castps_si512(_mm512_set1_ps(base));
    let bias = _mm512_set1_epi32(127);
    let k = _mm512_sub_epi32(_mm512_castps_si512(shifted), base);
    let half = _mm512_srai_epi32::<1>(k);
    let rest = _mm512_sub_epi32(k, half);
    let power = |k| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(k, bias)));
    _mm512_mul_ps(_mm512_mul_ps(p, power(half)), power(rest))
}

/// The sum by the fixed tree: lanes i + (i + 8), then + 4, + 2, + 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_reduce_add(a: F32) -> f32 {
    let sum = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}

/// The largest lane; no lane is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_reduce_max(a: F32) -> f32 {
    let top = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
    let top = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps::<1>(top));
    let top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    _mm_cvtss_f32(_mm_max_ss(top, _mm_shuffle_ps::<1>(top, top)))
}

/// Loads [`LANES`] integers.
///
/// # Safety
/// `ptr` is readable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn i32_load(ptr: *const i32) -> I32 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(ptr.cast()) }
}

/// Lane-wise product, low 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_mul(a: I32, b: I32) -> I32 {
    _mm512_mullo_epi32(a, b)
}

/// In each group `L` of 4 lanes, lane `i` becomes the sum of group `L` of vector `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_sum_quads(v: [I32; 4]) -> I32 {
    let low =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    let high =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high))
}

/// In each group of 4 lanes of 4 vectors, lane `j` of vector `i` becomes lane `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn quads_transposed(v: [Bytes; 4]) -> [Bytes; 4] {
    let low = [_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3])];
    let high = [_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// The sums of the two sub-blocks of each of 16 blocks, in order, from groups as [`i32_sum_quads`]
/// gives them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_pair_blocks(groups: [I32; 2]) -> F32 {
    let first = _mm512_shuffle_i32x4::<0b10_00_10_00>(groups[0], groups[1]);
    let second = _mm512_shuffle_i32x4::<0b11_01_11_01>(groups[0], groups[1]);
    // Now 4 even blocks, 4 odd ones, and so again.
    let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    let blocks = _mm512_permutexvar_epi32(order, _mm512_add_epi32(first, second));
    _mm512_cvtepi32_ps(blocks)
}

/// Loads [`LANES`] int8, one for each sub-block of 4 vectors, in the order of [`i32_sum_quads`].
///
/// # Safety
/// `ptr` is readable for [`LANES`] bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn i32_load_quad_i8(ptr: *const u8) -> I32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(ptr.cast()) };
    let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_cvtepi8_epi32(_mm_shuffle_epi8(bytes, order))
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    let even = |v| _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(v));
    let odd = |v| _mm512_srai_epi16::<8>(v);
    _mm512_add_epi32(_mm512_madd_epi16(even(a), even(b)), _mm512_madd_epi16(odd(a), odd(b)))
}

/// A vector of Q8_0 weights, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn q8_0_weights(block: *const u8, at: usize) -> Bytes {
    let _ = at;
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm256_loadu_si256(block.add(2).cast());
        let second = _mm256_loadu_si256(block.add(34 + 2).cast());
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
    }
}

/// A vector of 4-bit codes of blocks of 32 weights, from weight `at` of a block on, which begins a
/// vector: 16 bytes hold those of weights 0 to 15 in their low nibbles and the others in their high
/// ones. `codes` are those of the block, and `stride` bytes behind them those of the next.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn block_nibbles(codes: *const u8, stride: usize, _at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.cast()));
        let second = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.add(stride).cast()));
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        // Weights 16 to 31 of a block are the high nibbles.
        let shift = _mm512_broadcast_i64x2(_mm_setzero_si128());
        let shift = _mm512_mask_set1_epi16(shift, 0xff00_ff00, 4);
        _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(15))
    }
}

/// Adds 16 to codes as [`block_nibbles`] gives them whose bits are set: bit `i` of a block's 32 is that
/// of weight `i`.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn with_block_bits(codes: Bytes, bits: *const u8, stride: usize, _at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let [first, second] =
        unsafe { [bits, bits.add(stride)].map(|bits| bits.cast::<u32>().read_unaligned()) };
    let set = u64::from(second) << 32 | u64::from(first);
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16))
}

/// A vector of 4-bit codes, from number `at` on, which begins a vector: of every 64, 32 bytes hold the
/// first half in their low nibbles and the other in their high ones.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn nibble_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm256_loadu_si256(codes.add(at / 64 * 32).cast()) };
    let shift = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff_0000, 4);
    let nibbles = _mm512_srlv_epi16(_mm512_broadcast_i64x4(bytes), shift);
    _mm512_and_si512(nibbles, _mm512_set1_epi8(15))
}

/// A vector of 2-bit codes, from number `at` on, which begins a vector: of every 128, 32 bytes hold a
/// quarter in bits 1:0, the next in bits 3:2, and so on.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn code_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm256_loadu_si256(codes.add(at / 128 * 32).cast()) };
    let first = (at % 128 / 32 * 2) as i16;
    let shift = _mm512_mask_set1_epi16(_mm512_set1_epi16(first), 0xffff_0000, first + 2);
    let pairs = _mm512_srlv_epi16(_mm512_broadcast_i64x4(bytes), shift);
    _mm512_and_si512(pairs, _mm512_set1_epi8(3))
}

/// Adds `value` to codes, from number `at` of 256 on, whose bits are set: bit `t` of byte `l` of 32 is
/// that of code `32 t + l`.
///
/// # Safety
/// The 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn with_bit_planes(codes: Bytes, bits: *const u8, at: usize, value: u8) -> Bytes {
    // SAFETY: the caller's promise.
    let bits = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bits.cast()) });
    let [first, second] = [1u8, 2].map(|bit| (bit << (at / 32)).cast_signed());
    let own = _mm512_mask_set1_epi8(_mm512_set1_epi8(first), 0xffff_ffff_0000_0000, second);
    let set = _mm512_test_epi8_mask(bits, own);
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(value.cast_signed()))
}

/// A vector of Q6_K codes 0 to 63, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The block is readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn q6_k_codes(block: *const u8, at: usize) -> Bytes {
    let (half, upper) = (at / 128, at % 128 / 64);
    // SAFETY: the caller's promise.
    let low = unsafe { load(block.add(64 * half)) };
    // SAFETY: the caller's promise.
    let high = unsafe { _mm256_loadu_si256(block.add(128 + 32 * half).cast()) };
    let high = _mm512_broadcast_i64x4(high);
    // The first 32 weights of the vector take the lower bit pair, the others the next.
    let (low, high) = if upper == 0 {
        let shift = _mm512_mask_set1_epi16(_mm512_set1_epi16(4), 0xffff_0000, 2);
        (low, _mm512_sllv_epi16(high, shift))
    } else {
        let shift = _mm512_mask_set1_epi16(_mm512_setzero_si512(), 0xffff_0000, 2);
        (_mm512_srli_epi16::<4>(low), _mm512_srlv_epi16(high, shift))
    };
    let low = _mm512_and_si512(low, _mm512_set1_epi8(0x0f));
    // low | (high & 0x30)
    _mm512_ternarylogic_epi32::<0xf8>(low, high, _mm512_set1_epi8(0x30))
}

/// Two half floats, widened, in 8 lanes each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_splat_f16_halves(first: u16, second: u16) -> F32 {
    let halves = [first, second].map(|v| _mm_set1_epi16(v.cast_signed()));
    _mm512_cvtph_ps(_mm256_set_m128i(halves[1], halves[0]))
}

/// `a * b + c` of single floats, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)))
}

/// The square root of a single float.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn sqrt(value: f32) -> f32 {
    _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value)))
}

/// Widens the bits of a half float.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f16_to_f32(bits: u16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(bits.cast_signed())))
}

/// Writes the numbers of the positive ones of 16 floats, counted from `first`, in order, and gives
/// how many they are.
///
/// # Safety
/// `x` is readable for 16 floats, `out` is writable for 16 numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn list_positive(x: *const f32, first: u32, out: *mut u32) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_loadu_ps(x), _mm512_setzero_ps());
        list(positive, first, out);
        positive.count_ones() as usize
    }
}

/// As [`list_positive`] for those of 16 bytes that are not zero, which are written to `values`.
///
/// # Safety
/// `q` is readable for 16 bytes, `out` and `values` are writable for as many elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn list_nonzero(q: *const i8, first: u32, out: *mut u32, values: *mut i8) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_loadu_si128(q.cast());
        let other = _mm_test_epi8_mask(bytes, bytes);
        list(other, first, out);
        let kept = _mm512_maskz_compress_epi32(other, _mm512_cvtepi8_epi32(bytes));
        _mm_storeu_si128(values.cast(), _mm512_cvtepi32_epi8(kept));
        other.count_ones() as usize
    }
}

/// Writes `first + i` for every bit `i`, in order, and zeros.
///
/// # Safety
/// `out` is writable for 16 numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn list(bits: __mmask16, first: u32, out: *mut u32) {
    let numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(first.cast_signed()));
    // Compressing to memory takes far longer than to a register.
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(out.cast(), _mm512_maskz_compress_epi32(bits, numbers)) }
}

/// Zero in every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn bytes_zero() -> Bytes {
    _mm512_setzero_si512()
}

/// Loads a vector.
///
/// # Safety
/// `ptr` is readable for the size of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn load(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(ptr.cast()) }
}

/// Repeats 4 bytes in every 32-bit lane.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn broadcast4(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { ptr.cast::<i32>().read_unaligned() })
}

/// The 2-bit code in bits `2 field + 1 : 2 field` of every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn codes(packed: Bytes, field: usize) -> Bytes {
    let shifted = match field {
        0 => packed,
        1 => _mm512_srli_epi16::<2>(packed),
        2 => _mm512_srli_epi16::<4>(packed),
        _ => _mm512_srli_epi16::<6>(packed),
    };
    _mm512_and_si512(shifted, _mm512_set1_epi8(3))
}

/// The 4-bit codes in the low (0) or high (1) nibbles of every byte, doubled if so asked.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn nibble_codes(packed: Bytes, which: usize, doubled: bool) -> Bytes {
    let shifted = match (which, doubled) {
        (0, false) => packed,
        (0, true) => _mm512_slli_epi16::<1>(packed),
        (_, false) => _mm512_srli_epi16::<4>(packed),
        (_, true) => _mm512_srli_epi16::<3>(packed),
    };
    _mm512_and_si512(shifted, _mm512_set1_epi8(if doubled { 30 } else { 15 }))
}

/// Adds bit `which` of every byte of `bits` to 4-bit codes, as their bit 4; doubled as
/// the codes are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn with_bit(codes: Bytes, bits: Bytes, which: usize, doubled: bool) -> Bytes {
    let shifted = match (4 + usize::from(doubled)).cast_signed() - which.cast_signed() {
        5 => _mm512_slli_epi16::<5>(bits),
        4 => _mm512_slli_epi16::<4>(bits),
        3 => _mm512_slli_epi16::<3>(bits),
        2 => _mm512_slli_epi16::<2>(bits),
        1 => _mm512_slli_epi16::<1>(bits),
        0 => bits,
        -1 => _mm512_srli_epi16::<1>(bits),
        -2 => _mm512_srli_epi16::<2>(bits),
        _ => _mm512_srli_epi16::<3>(bits),
    };
    let bit = _mm512_set1_epi8(if doubled { 32 } else { 16 });
    _mm512_or_si512(codes, _mm512_and_si512(shifted, bit))
}

/// 16 integers as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub fn f32_from_i32(v: [I32; 1]) -> F32 {
    _mm512_cvtepi32_ps(v[0])
}

/// Loads 16 unsigned bytes and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load_u8(ptr: *const u8) -> F32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(ptr.cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
}

/// Loads 16 int8 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn f32_load_i8(ptr: *const i8) -> F32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(ptr.cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
}

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    _mm512_and_si512(packed, _mm512_set1_epi8((3u8 << (2 * field)).cast_signed()))
}

/// Four vectors of 16-byte groups, interleaved byte by byte: 32-bit lane `i` of group `L` of vector
/// `k` holds byte `4k + i` of group `L` of each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn interleave4(v: [Bytes; 4]) -> [Bytes; 4] {
    let (low, low2) = (_mm512_unpacklo_epi8(v[0], v[1]), _mm512_unpacklo_epi8(v[2], v[3]));
    let (high, high2) = (_mm512_unpackhi_epi8(v[0], v[1]), _mm512_unpackhi_epi8(v[2], v[3]));
    [
        _mm512_unpacklo_epi16(low, low2),
        _mm512_unpackhi_epi16(low, low2),
        _mm512_unpacklo_epi16(high, high2),
        _mm512_unpackhi_epi16(high, high2),
    ]
}

/// The sum of all groups of 4 lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_sum_groups(a: I32) -> [i32; 4] {
    let halves = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64::<1>(a));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    let mut out = [0; 4];
    // SAFETY: four lanes are what the array holds.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) }
    out
}

/// No sum yet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn acc_zero() -> Acc {
    _mm512_setzero_si512()
}

/// Sums that begin with `start`, as `WIDE` ones can; these do not, and begin with 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn acc_start(_start: I32) -> Acc {
    acc_zero()
}

/// The number from which [`acc_splat`] makes sums that begin with the sum of `halves`: the first of the
/// first two columns of every 4, the other of the others. Here each of the two sums of a row begins with
/// its own, modulo 2^16.
#[inline]
pub fn acc_word(halves: [i32; 2]) -> i32 {
    (halves[0] & 0xffff) | halves[1] << 16
}

/// Sums that begin with what [`acc_word`] made.
///
/// # Safety
/// `start` is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { start.read() })
}

/// Adds, in every 16-bit lane, the 2 products of unsigned codes and signed activations. With
/// codes up to 2, 64 calls fit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    _mm512_add_epi16(acc, _mm512_maddubs_epi16(codes, activations))
}

/// Keeps what is done with `packed` and `quads` from here on behind what made `done`: where the
/// compiler looks ahead, it runs out of registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "it is not followed")]
pub fn in_turn<const N: usize>(done: Acc, packed: &mut [Bytes; N], quads: &mut *const u8) {
    // SAFETY: no instruction at all; values stay as they are.
    unsafe {
        asm!("/* {0} {1} */", inout(reg) *quads, in(zmm_reg) done,
             options(pure, nomem, nostack, preserves_flags));
        for bytes in packed {
            asm!("/* {0} {1} */", inout(zmm_reg) *bytes, in(zmm_reg) done,
                 options(pure, nomem, nostack, preserves_flags));
        }
    }
}

/// The sums as 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn widen(acc: Acc) -> I32 {
    _mm512_madd_epi16(acc, _mm512_set1_epi16(1))
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_zero() -> I32 {
    _mm512_setzero_si512()
}

/// `value` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_splat(value: i32) -> I32 {
    _mm512_set1_epi32(value)
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_add(a: I32, b: I32) -> I32 {
    _mm512_add_epi32(a, b)
}

/// Lane-wise difference.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_sub(a: I32, b: I32) -> I32 {
    _mm512_sub_epi32(a, b)
}

/// Lane-wise arithmetic shift right by `2 field` bits: undoes the scale of [`codes_in_place`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i32_unscale(a: I32, field: usize) -> I32 {
    match field {
        0 => a,
        1 => _mm512_srai_epi32::<2>(a),
        2 => _mm512_srai_epi32::<4>(a),
        _ => _mm512_srai_epi32::<6>(a),
    }
}

/// Stores [`LANES`] integers.
///
/// # Safety
/// `ptr` is writable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn i32_store(ptr: *mut i32, value: I32) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(ptr.cast(), value) }
}

/// Asks for the cache line at `ptr`, which need not be readable, into the cache of that level.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn prefetch<const LEVEL: usize>(ptr: *const u8) {
    if LEVEL == 1 {
        _mm_prefetch::<_MM_HINT_T0>(ptr.cast());
    } else {
        _mm_prefetch::<_MM_HINT_T1>(ptr.cast());
    }
}

/// The 32 bytes of two 4-bit indices that a tile holds at a place, in the low bytes of words.
pub type Nibbles = __m512i;
/// An index into a [`Table16`] for each of the 32 rows of a tile, in the low 4 bits of words.
/// `vpermw` looks at 5, and the fifth changes nothing, so nothing is masked.
pub type Indices = __m512i;
/// A 16-bit lane for each of the 32 rows of a tile, in order.
pub type I16 = __m512i;
/// A table of 16 entries, twice.
pub type Table16 = __m512i;
/// A table of 32 entries.
pub type Table32 = __m512i;
/// A word of three 5-bit fields, indices into a [`Table32`], and a bit to spare for each of the 32
/// rows of a tile. `vpermw` looks at the lowest field only.
pub type Fields = __m512i;
/// The 32 rows of a tile as 32-bit lanes, in order.
pub type Tile32 = [I32; 32 / LANES];

/// Bytes of a stored [`Table16`].
pub const TABLE16_BYTES: usize = 32;
/// Bytes of a stored [`Table32`].
pub const TABLE32_BYTES: usize = 64;

/// Index 0 for each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn indices_zero() -> Indices {
    _mm512_setzero_si512()
}

/// Loads 32 bytes.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn nibbles_load(ptr: *const u8) -> Nibbles {
    // SAFETY: the caller's promise.
    _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(ptr.cast()) })
}

/// The low (0) or high (1) nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn nibble(nibbles: Nibbles, which: usize) -> Indices {
    // What crosses from word to word arrives at the top, where nobody looks. A shift of words
    // LLVM moves before the extension, which then runs twice: 3 instructions more for 32 bytes.
    if which == 0 { nibbles } else { _mm512_srli_epi32::<4>(nibbles) }
}

/// Stores a table as [`table16_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn table16_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 16]; N],
) {
    let mut entries = _mm256_setzero_si256();
    for i in 0..N {
        // SAFETY: 16 words are a vector.
        let factors = unsafe { _mm256_loadu_si256(coefficients[i].as_ptr().cast()) };
        let products = _mm256_mullo_epi16(_mm256_set1_epi16(i16::from(activations[i])), factors);
        entries = _mm256_add_epi16(entries, products);
    }
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(ptr.cast(), entries) }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn table16_load(ptr: *const u8) -> Table16 {
    // SAFETY: the caller's promise.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(ptr.cast()) })
}

/// The entry that each index names.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn lookup16(table: Table16, indices: Indices) -> I16 {
    _mm512_permutexvar_epi16(indices, table)
}

/// Zero in every word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn fields_zero() -> Fields {
    _mm512_setzero_si512()
}

/// Loads 32 words.
///
/// # Safety
/// `ptr` is readable for 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn fields_load(ptr: *const u8) -> Fields {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(ptr.cast()) }
}

/// Brings the next field of each word down.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn fields_next(fields: Fields) -> Fields {
    _mm512_srli_epi16::<5>(fields)
}

/// Words whose lowest field is that which bit 15 of five groups of words make, bit 4 first.
///
/// # Safety
/// `ptr` is readable for 5 times 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn fields_spare(ptr: *const u8) -> Fields {
    /// `vpternlog`: from the first operand where the third has a 1, else from the second.
    const SELECT: i32 = 0b1110_0100;
    // SAFETY: the caller's promise.
    unsafe {
        // Each word is shifted to its bit; what lies below that comes from the next one.
        let spare = _mm512_srli_epi16::<11>(fields_load(ptr));
        let next = _mm512_srli_epi16::<12>(fields_load(ptr.add(64)));
        let above = _mm512_set1_epi16(0b10000);
        let spare = _mm512_ternarylogic_epi32::<SELECT>(spare, next, above);
        let next = _mm512_srli_epi16::<13>(fields_load(ptr.add(128)));
        let above = _mm512_set1_epi16(0b11000);
        let spare = _mm512_ternarylogic_epi32::<SELECT>(spare, next, above);
        let next = _mm512_srli_epi16::<14>(fields_load(ptr.add(192)));
        let above = _mm512_set1_epi16(0b11100);
        let spare = _mm512_ternarylogic_epi32::<SELECT>(spare, next, above);
        let next = _mm512_srli_epi16::<15>(fields_load(ptr.add(256)));
        let above = _mm512_set1_epi16(0b11110);
        _mm512_ternarylogic_epi32::<SELECT>(spare, next, above)
    }
}

/// Stores a table as [`table32_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE32_BYTES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn table32_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 32]; N],
) {
    let mut entries = _mm512_setzero_si512();
    for i in 0..N {
        // SAFETY: 32 words are a vector.
        let factors = unsafe { _mm512_loadu_si512(coefficients[i].as_ptr().cast()) };
        let products = _mm512_mullo_epi16(_mm512_set1_epi16(i16::from(activations[i])), factors);
        entries = _mm512_add_epi16(entries, products);
    }
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(ptr.cast(), entries) }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE32_BYTES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn table32_load(ptr: *const u8) -> Table32 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(ptr.cast()) }
}

/// The entry that the lowest field of each word names.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn lookup32(table: Table32, fields: Fields) -> I16 {
    _mm512_permutexvar_epi16(fields, table)
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i16_zero() -> I16 {
    _mm512_setzero_si512()
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn i16_add(a: I16, b: I16) -> I16 {
    _mm512_add_epi16(a, b)
}

/// Adds 16-bit lanes to 32-bit ones, row by row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn widen_add(totals: Tile32, sums: I16) -> Tile32 {
    let low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums));
    let high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(sums));
    [_mm512_add_epi32(totals[0], low), _mm512_add_epi32(totals[1], high)]
}
