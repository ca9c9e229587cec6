//! AVX2, with FMA and F16C: vectors of 32 bytes. `vpmaddubsw` sums pairs of byte products into
//! 16 bits, so sums must be widened before they wrap.

use core::arch::asm;
use core::arch::x86_64::*;

/// 32-bit lanes in a vector.
pub const LANES: usize = 8;
/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = false;

/// A vector of bytes.
pub type Bytes = __m256i;
/// A vector of 32-bit integers.
pub type I32 = __m256i;
/// Sums of byte products, 16 bits each.
pub type Acc = __m256i;

/// 16 virtual lanes of f32, the unit of the float contract.
#[derive(Clone, Copy)]
pub struct F32([__m256; 2]);
/// Number of [`F32`] that the registers hold.
pub const F32_REGISTERS: usize = 8;

/// `value` in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_splat(value: f32) -> F32 {
    F32([_mm256_set1_ps(value); 2])
}

/// Loads 16 floats.
///
/// # Safety
/// `ptr` is readable for 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load(ptr: *const f32) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { F32([_mm256_loadu_ps(ptr), _mm256_loadu_ps(ptr.add(8))]) }
}

/// Loads 16 int32 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load_i32(ptr: *const i32) -> F32 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_loadu_si256(ptr.cast());
        let high = _mm256_loadu_si256(ptr.add(8).cast());
        F32([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
    }
}

/// Loads 16 half-precision floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 half floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load_f16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm_loadu_si128(ptr.cast());
        let high = _mm_loadu_si128(ptr.add(8).cast());
        F32([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
    }
}

/// Loads 16 brain floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 brain floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load_bf16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.add(8).cast()));
        F32([low, high].map(|v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v))))
    }
}

/// Stores 16 floats.
///
/// # Safety
/// `ptr` is writable for 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_store(ptr: *mut f32, value: F32) {
    // SAFETY: the caller's promise.
    unsafe {
        _mm256_storeu_ps(ptr, value.0[0]);
        _mm256_storeu_ps(ptr.add(8), value.0[1]);
    }
}

/// Stores 16 floats as half floats, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 half floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_store_f16(ptr: *mut u16, value: F32) {
    // SAFETY: the caller's promise.
    unsafe {
        let [low, high] = value.0.map(|v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        _mm_storeu_si128(ptr.cast(), low);
        _mm_storeu_si128(ptr.add(8).cast(), high);
    }
}

/// Stores 16 floats from -128 to 127 as int8, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_store_i8(ptr: *mut i8, value: F32) {
    // SAFETY: the caller's promise.
    unsafe {
        let [low, high] = value.0.map(|v| _mm256_cvtps_epi32(v));
        // Packing works in 128-bit halves; the permutation puts them in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        let bytes =
            _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(ptr.cast(), bytes);
    }
}

/// `a + b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_add(a: F32, b: F32) -> F32 {
    F32([_mm256_add_ps(a.0[0], b.0[0]), _mm256_add_ps(a.0[1], b.0[1])])
}

/// `a - b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_sub(a: F32, b: F32) -> F32 {
    F32([_mm256_sub_ps(a.0[0], b.0[0]), _mm256_sub_ps(a.0[1], b.0[1])])
}

/// `a * b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_mul(a: F32, b: F32) -> F32 {
    F32([_mm256_mul_ps(a.0[0], b.0[0]), _mm256_mul_ps(a.0[1], b.0[1])])
}

/// `a / b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_div(a: F32, b: F32) -> F32 {
    F32([_mm256_div_ps(a.0[0], b.0[0]), _mm256_div_ps(a.0[1], b.0[1])])
}

/// `a * b + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_fma(a: F32, b: F32, c: F32) -> F32 {
    F32([_mm256_fmadd_ps(a.0[0], b.0[0], c.0[0]), _mm256_fmadd_ps(a.0[1], b.0[1], c.0[1])])
}

/// `-(a * b) + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_fnma(a: F32, b: F32, c: F32) -> F32 {
    F32([_mm256_fnmadd_ps(a.0[0], b.0[0], c.0[0]), _mm256_fnmadd_ps(a.0[1], b.0[1], c.0[1])])
}

/// `a > b ? a : b`: b where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_max(a: F32, b: F32) -> F32 {
    F32([_mm256_max_ps(a.0[0], b.0[0]), _mm256_max_ps(a.0[1], b.0[1])])
}

/// `a < b ? a : b`: b where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_min(a: F32, b: F32) -> F32 {
    F32([_mm256_min_ps(a.0[0], b.0[0]), _mm256_min_ps(a.0[1], b.0[1])])
}

/// Without the sign.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_abs(a: F32) -> F32 {
    let sign = _mm256_set1_ps(-0.0);
    F32([_mm256_andnot_ps(sign, a.0[0]), _mm256_andnot_ps(sign, a.0[1])])
}

/// `a > b ? x : y`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_select_gt(a: F32, b: F32, x: F32, y: F32) -> F32 {
    F32(core::array::from_fn(|i| {
        let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(a.0[i], b.0[i]);
        _mm256_blendv_ps(y.0[i], x.0[i], greater)
    }))
}

/// `p * 2^k`, where k is the difference of the bits of `shifted` and `base`: scaled in two halves,
/// so that k = 128 is no special case. Where 2^(k/2) is no normal number the result means nothing.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_scale_by_bits(p: F32, shifted: F32, base: f32) -> F32 {
    let base = _mm256_castps_si256(_mm256_set1_ps(base));
    let bias = _mm256_set1_epi32(127);
    F32(core::array::from_fn(|i| {
        let k = _mm256_sub_epi32(_mm256_castps_si256(shifted.0[i]), base);
        let half = _mm256_srai_epi32::<1>(k);
        let rest = _mm256_sub_epi32(k, half);
        let power = |k| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(k, bias)));
        _mm256_mul_ps(_mm256_mul_ps(p.0[i], power(half)), power(rest))
    }))
}

/// The sum by the fixed tree: lanes i + (i + 8), then + 4, + 2, + 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_reduce_add(a: F32) -> f32 {
    let sum = _mm256_add_ps(a.0[0], a.0[1]);
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}

/// The largest lane; no lane is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_reduce_max(a: F32) -> f32 {
    let top = _mm256_max_ps(a.0[0], a.0[1]);
    let top = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps::<1>(top));
    let top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    _mm_cvtss_f32(_mm_max_ss(top, _mm_shuffle_ps::<1>(top, top)))
}

/// Loads [`LANES`] integers.
///
/// # Safety
/// `ptr` is readable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn i32_load(ptr: *const i32) -> I32 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(ptr.cast()) }
}

/// Lane-wise product, low 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn i32_mul(a: I32, b: I32) -> I32 {
    _mm256_mullo_epi32(a, b)
}

/// In each group `L` of 4 lanes, lane `i` becomes the sum of group `L` of vector `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn i32_sum_quads(v: [I32; 4]) -> I32 {
    let low =
        _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    let high =
        _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    _mm256_add_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high))
}

/// In each group of 4 lanes of 4 vectors, lane `j` of vector `i` becomes lane `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn quads_transposed(v: [Bytes; 4]) -> [Bytes; 4] {
    let low = [_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3])];
    let high = [_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3])];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

/// The sums of the two sub-blocks of each of 16 blocks, in order, from groups as [`i32_sum_quads`]
/// gives them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_pair_blocks(groups: [I32; 4]) -> F32 {
    let blocks =
        groups.map(|g| _mm_add_epi32(_mm256_castsi256_si128(g), _mm256_extracti128_si256::<1>(g)));
    F32([
        _mm256_cvtepi32_ps(_mm256_set_m128i(blocks[1], blocks[0])),
        _mm256_cvtepi32_ps(_mm256_set_m128i(blocks[3], blocks[2])),
    ])
}

/// Loads [`LANES`] int8, one for each sub-block of 4 vectors, in the order of [`i32_sum_quads`].
///
/// # Safety
/// `ptr` is readable for [`LANES`] bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn i32_load_quad_i8(ptr: *const u8) -> I32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm_loadl_epi64(ptr.cast()) };
    let order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm256_cvtepi8_epi32(_mm_shuffle_epi8(bytes, order))
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    let even = |v| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
    let odd = |v| _mm256_srai_epi16::<8>(v);
    _mm256_add_epi32(_mm256_madd_epi16(even(a), even(b)), _mm256_madd_epi16(odd(a), odd(b)))
}

/// A vector of Q8_0 weights, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q8_0_weights(block: *const u8, at: usize) -> Bytes {
    let _ = at;
    // SAFETY: the caller's promise.
    unsafe { load(block.add(2)) }
}

/// A vector of 4-bit codes of blocks of 32 weights, from weight `at` of a block on, which begins a
/// vector: 16 bytes hold those of weights 0 to 15 in their low nibbles and the others in their high
/// ones. `codes` are those of the block, and `stride` bytes behind them those of the next.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn block_nibbles(codes: *const u8, _stride: usize, _at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let low = unsafe { _mm_loadu_si128(codes.cast()) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Adds 16 to codes as [`block_nibbles`] gives them whose bits are set: bit `i` of a block's 32 is that
/// of weight `i`.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn with_block_bits(codes: Bytes, bits: *const u8, _stride: usize, _at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bits = _mm256_set1_epi32(unsafe { bits.cast::<i32>().read_unaligned() });
    // Each byte 8 times, and a bit of it in each.
    let order =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
    let bits = _mm256_and_si256(_mm256_shuffle_epi8(bits, order), own);
    let set = _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), _mm256_set1_epi8(16));
    _mm256_or_si256(codes, set)
}

/// A vector of 4-bit codes, from number `at` on, which begins a vector: of every 64, 32 bytes hold the
/// first half in their low nibbles and the other in their high ones.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn nibble_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes.add(at / 64 * 32)) };
    nibble_codes(bytes, at % 64 / 32, false)
}

/// A vector of 2-bit codes, from number `at` on, which begins a vector: of every 128, 32 bytes hold a
/// quarter in bits 1:0, the next in bits 3:2, and so on.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn code_planes(packed: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    codes(unsafe { load(packed.add(at / 128 * 32)) }, at % 128 / 32)
}

/// Adds `value` to codes, from number `at` of 256 on, whose bits are set: bit `t` of byte `l` of 32 is
/// that of code `32 t + l`.
///
/// # Safety
/// The 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn with_bit_planes(codes: Bytes, bits: *const u8, at: usize, value: u8) -> Bytes {
    let own = _mm256_set1_epi8((1u8 << (at / 32)).cast_signed());
    // SAFETY: the caller's promise.
    let bits = _mm256_and_si256(unsafe { load(bits) }, own);
    let value = _mm256_set1_epi8(value.cast_signed());
    _mm256_or_si256(codes, _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), value))
}

/// A vector of Q6_K codes 0 to 63, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The block is readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q6_k_codes(block: *const u8, at: usize) -> Bytes {
    let (half, t) = (at / 128, at % 128 / 32);
    // SAFETY: the caller's promise.
    let low = unsafe { load(block.add(64 * half + 32 * (t % 2))) };
    let low = if t < 2 { low } else { _mm256_srli_epi16::<4>(low) };
    // SAFETY: the caller's promise.
    let high = unsafe { load(block.add(128 + 32 * half)) };
    let high = match t {
        0 => _mm256_slli_epi16::<4>(high),
        1 => _mm256_slli_epi16::<2>(high),
        2 => high,
        _ => _mm256_srli_epi16::<2>(high),
    };
    _mm256_or_si256(
        _mm256_and_si256(low, _mm256_set1_epi8(0x0f)),
        _mm256_and_si256(high, _mm256_set1_epi8(0x30)),
    )
}

/// Two half floats, widened, in 8 lanes each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_splat_f16_halves(first: u16, second: u16) -> F32 {
    F32([first, second].map(|v| _mm256_cvtph_ps(_mm_set1_epi16(v.cast_signed()))))
}

/// `a * b + c` of single floats, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)))
}

/// The square root of a single float.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn sqrt(value: f32) -> f32 {
    _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value)))
}

/// Widens the bits of a half float.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f16_to_f32(bits: u16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(bits.cast_signed())))
}

/// Writes the numbers of the positive ones of 16 floats, counted from `first`, in order, and gives
/// how many they are.
///
/// # Safety
/// `x` is readable for 16 floats, `out` is writable for 16 numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn list_positive(x: *const f32, first: u32, out: *mut u32) -> usize {
    let mut count = 0;
    for i in 0..16 {
        // No branch: which are positive cannot be foreseen.
        // SAFETY: the caller's promise; `count` is at most `i`.
        unsafe {
            out.add(count).write(first + i);
            count += usize::from(x.add(i as usize).read() > 0.0);
        }
    }
    count
}

/// As [`list_positive`] for those of 16 bytes that are not zero, which are written to `values`.
///
/// # Safety
/// `q` is readable for 16 bytes, `out` and `values` are writable for as many elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn list_nonzero(q: *const i8, first: u32, out: *mut u32, values: *mut i8) -> usize {
    let mut count = 0;
    for i in 0..16 {
        // SAFETY: as above.
        unsafe {
            let value = q.add(i as usize).read();
            out.add(count).write(first + i);
            values.add(count).write(value);
            count += usize::from(value != 0);
        }
    }
    count
}

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

/// The 4-bit codes in the low (0) or high (1) nibbles of every byte, doubled if so asked.
#[inline]
#[target_feature(enable = "avx2")]
pub fn nibble_codes(packed: Bytes, which: usize, doubled: bool) -> Bytes {
    let shifted = match (which, doubled) {
        (0, false) => packed,
        (0, true) => _mm256_slli_epi16::<1>(packed),
        (_, false) => _mm256_srli_epi16::<4>(packed),
        (_, true) => _mm256_srli_epi16::<3>(packed),
    };
    _mm256_and_si256(shifted, _mm256_set1_epi8(if doubled { 30 } else { 15 }))
}

/// Adds bit `which` of every byte of `bits` to 4-bit codes, as their bit 4; doubled as
/// the codes are.
#[inline]
#[target_feature(enable = "avx2")]
pub fn with_bit(codes: Bytes, bits: Bytes, which: usize, doubled: bool) -> Bytes {
    let shifted = match (4 + usize::from(doubled)).cast_signed() - which.cast_signed() {
        5 => _mm256_slli_epi16::<5>(bits),
        4 => _mm256_slli_epi16::<4>(bits),
        3 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        1 => _mm256_slli_epi16::<1>(bits),
        0 => bits,
        -1 => _mm256_srli_epi16::<1>(bits),
        -2 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    };
    let bit = _mm256_set1_epi8(if doubled { 32 } else { 16 });
    _mm256_or_si256(codes, _mm256_and_si256(shifted, bit))
}

/// 16 integers as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn f32_from_i32(v: [I32; 2]) -> F32 {
    F32(v.map(|v| _mm256_cvtepi32_ps(v)))
}

/// Loads 16 unsigned bytes and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load_u8(ptr: *const u8) -> F32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(ptr.cast()) };
    let widen = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    F32([widen(bytes), widen(_mm_srli_si128::<8>(bytes))])
}

/// Loads 16 int8 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32_load_i8(ptr: *const i8) -> F32 {
    let widen = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    // SAFETY: the caller's promise.
    unsafe { F32([widen(_mm_loadl_epi64(ptr.cast())), widen(_mm_loadl_epi64(ptr.add(8).cast()))]) }
}

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
#[target_feature(enable = "avx2")]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    _mm256_and_si256(packed, _mm256_set1_epi8((3u8 << (2 * field)).cast_signed()))
}

/// Four vectors of 16-byte groups, interleaved byte by byte: 32-bit lane `i` of group `L` of vector
/// `k` holds byte `4k + i` of group `L` of each.
#[inline]
#[target_feature(enable = "avx2")]
pub fn interleave4(v: [Bytes; 4]) -> [Bytes; 4] {
    let (low, low2) = (_mm256_unpacklo_epi8(v[0], v[1]), _mm256_unpacklo_epi8(v[2], v[3]));
    let (high, high2) = (_mm256_unpackhi_epi8(v[0], v[1]), _mm256_unpackhi_epi8(v[2], v[3]));
    [
        _mm256_unpacklo_epi16(low, low2),
        _mm256_unpackhi_epi16(low, low2),
        _mm256_unpacklo_epi16(high, high2),
        _mm256_unpackhi_epi16(high, high2),
    ]
}

/// The sum of all groups of 4 lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn i32_sum_groups(a: I32) -> [i32; 4] {
    let sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
    let mut out = [0; 4];
    // SAFETY: four lanes are what the array holds.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) }
    out
}

/// No sum yet.
#[inline]
#[target_feature(enable = "avx2")]
pub fn acc_zero() -> Acc {
    _mm256_setzero_si256()
}

/// Sums that begin with `start`, as `WIDE` ones can; these do not, and begin with 0.
#[inline]
#[target_feature(enable = "avx2")]
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
#[target_feature(enable = "avx2")]
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { start.read() })
}

/// Adds, in every 16-bit lane, the 2 products of unsigned codes and signed activations. With
/// codes up to 2, 64 calls fit.
#[inline]
#[target_feature(enable = "avx2")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, activations))
}

/// Keeps what is done with `packed` and `quads` from here on behind what made `done`: where the
/// compiler looks ahead, it runs out of registers.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "it is not followed")]
pub fn in_turn<const N: usize>(done: Acc, packed: &mut [Bytes; N], quads: &mut *const u8) {
    // SAFETY: no instruction at all; values stay as they are.
    unsafe {
        asm!("/* {0} {1} */", inout(reg) *quads, in(ymm_reg) done,
             options(pure, nomem, nostack, preserves_flags));
        for bytes in packed {
            asm!("/* {0} {1} */", inout(ymm_reg) *bytes, in(ymm_reg) done,
                 options(pure, nomem, nostack, preserves_flags));
        }
    }
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

/// Asks for the cache line at `ptr`, which need not be readable, into the cache of that level.
#[inline]
#[target_feature(enable = "avx2")]
pub fn prefetch<const LEVEL: usize>(ptr: *const u8) {
    if LEVEL == 1 {
        _mm_prefetch::<_MM_HINT_T0>(ptr.cast());
    } else {
        _mm_prefetch::<_MM_HINT_T1>(ptr.cast());
    }
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
