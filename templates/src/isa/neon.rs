//! NEON as every 64-bit ARM has it: vectors of 16 bytes. `smlal` adds 8 byte products to as many
//! 16-bit lanes, so sums must be widened before they wrap.

use core::arch::aarch64::*;
use core::arch::asm;

/// 32-bit lanes in a vector.
pub const LANES: usize = 4;
/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = false;

/// A vector of bytes.
pub type Bytes = uint8x16_t;
/// A vector of 32-bit integers.
pub type I32 = int32x4_t;
/// Sums of byte products, 16 bits each: of the first 8 bytes, then of the last 8.
pub type Acc = [int16x8_t; 2];

/// 16 virtual lanes of f32, the unit of the float contract.
#[derive(Clone, Copy)]
pub struct F32([float32x4_t; 4]);
/// Number of [`F32`] that the registers hold.
pub const F32_REGISTERS: usize = 8;

/// `value` in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_splat(value: f32) -> F32 {
    F32([vdupq_n_f32(value); 4])
}

/// Loads 16 floats.
///
/// # Safety
/// `ptr` is readable for 16 floats.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load(ptr: *const f32) -> F32 {
    // SAFETY: the caller's promise.
    F32(core::array::from_fn(|i| unsafe { vld1q_f32(ptr.add(4 * i)) }))
}

/// Loads 16 int32 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 integers.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load_i32(ptr: *const i32) -> F32 {
    // SAFETY: the caller's promise.
    F32(core::array::from_fn(|i| vcvtq_f32_s32(unsafe { vld1q_s32(ptr.add(4 * i)) })))
}

/// Loads 16 half-precision floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 half floats.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load_f16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    let halves = |i| vreinterpret_f16_u16(unsafe { vld1_u16(ptr.add(4 * i)) });
    F32(core::array::from_fn(|i| vcvt_f32_f16(halves(i))))
}

/// Loads 16 brain floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 brain floats.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load_bf16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    let words = |i| vmovl_u16(unsafe { vld1_u16(ptr.add(4 * i)) });
    F32(core::array::from_fn(|i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(words(i)))))
}

/// Stores 16 floats.
///
/// # Safety
/// `ptr` is writable for 16 floats.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_store(ptr: *mut f32, value: F32) {
    for i in 0..4 {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(ptr.add(4 * i), value.0[i]) }
    }
}

/// Stores 16 floats as half floats, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 half floats.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_store_f16(ptr: *mut u16, value: F32) {
    for i in 0..4 {
        let halves = vreinterpret_u16_f16(vcvt_f16_f32(value.0[i]));
        // SAFETY: the caller's promise.
        unsafe { vst1_u16(ptr.add(4 * i), halves) }
    }
}

/// Stores 16 floats from -128 to 127 as int8, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_store_i8(ptr: *mut i8, value: F32) {
    let [a, b, c, d] = value.0.map(|v| vreinterpretq_s16_s32(vcvtnq_s32_f32(v)));
    // The lower halves are all there is.
    let (low, high) = (vuzp1q_s16(a, b), vuzp1q_s16(c, d));
    let bytes = vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
    // SAFETY: the caller's promise.
    unsafe { vst1q_s8(ptr, bytes) }
}

/// `a + b`.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_add(a: F32, b: F32) -> F32 {
    F32(core::array::from_fn(|i| vaddq_f32(a.0[i], b.0[i])))
}

/// `a - b`.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_sub(a: F32, b: F32) -> F32 {
    F32(core::array::from_fn(|i| vsubq_f32(a.0[i], b.0[i])))
}

/// `a * b`.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_mul(a: F32, b: F32) -> F32 {
    F32(core::array::from_fn(|i| vmulq_f32(a.0[i], b.0[i])))
}

/// `a / b`.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_div(a: F32, b: F32) -> F32 {
    F32(core::array::from_fn(|i| vdivq_f32(a.0[i], b.0[i])))
}

/// `a * b + c`, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_fma(a: F32, b: F32, c: F32) -> F32 {
    F32(core::array::from_fn(|i| vfmaq_f32(c.0[i], a.0[i], b.0[i])))
}

/// `-(a * b) + c`, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_fnma(a: F32, b: F32, c: F32) -> F32 {
    F32(core::array::from_fn(|i| vfmsq_f32(c.0[i], a.0[i], b.0[i])))
}

/// `a > b ? a : b`: b where either is NaN. `fmax` would give the NaN.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_max(a: F32, b: F32) -> F32 {
    f32_select_gt(a, b, a, b)
}

/// `a < b ? a : b`: b where either is NaN.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_min(a: F32, b: F32) -> F32 {
    f32_select_gt(b, a, a, b)
}

/// Without the sign.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_abs(a: F32) -> F32 {
    F32(a.0.map(|v| vabsq_f32(v)))
}

/// `a > b ? x : y`.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_select_gt(a: F32, b: F32, x: F32, y: F32) -> F32 {
    F32(core::array::from_fn(|i| vbslq_f32(vcgtq_f32(a.0[i], b.0[i]), x.0[i], y.0[i])))
}

/// `p * 2^k`, where k is the difference of the bits of `shifted` and `base`: scaled in two halves,
/// so that k = 128 is no special case. Where 2^(k/2) is no normal number the result means nothing.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_scale_by_bits(p: F32, shifted: F32, base: f32) -> F32 {
    let base = vreinterpretq_s32_f32(vdupq_n_f32(base));
    let bias = vdupq_n_s32(127);
    F32(core::array::from_fn(|i| {
        let k = vsubq_s32(vreinterpretq_s32_f32(shifted.0[i]), base);
        let half = vshrq_n_s32::<1>(k);
        let rest = vsubq_s32(k, half);
        let power = |k| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(k, bias)));
        vmulq_f32(vmulq_f32(p.0[i], power(half)), power(rest))
    }))
}

/// The sum by the fixed tree: lanes i + (i + 8), then + 4, + 2, + 1.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_reduce_add(a: F32) -> f32 {
    let [a, b, c, d] = a.0;
    let sum = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    vpadds_f32(vadd_f32(vget_low_f32(sum), vget_high_f32(sum)))
}

/// The largest lane; no lane is NaN.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_reduce_max(a: F32) -> f32 {
    let [a, b, c, d] = a.0;
    vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d)))
}

/// Loads [`LANES`] integers.
///
/// # Safety
/// `ptr` is readable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn i32_load(ptr: *const i32) -> I32 {
    // SAFETY: the caller's promise.
    unsafe { vld1q_s32(ptr) }
}

/// Lane-wise product, low 32 bits.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_mul(a: I32, b: I32) -> I32 {
    vmulq_s32(a, b)
}

/// In each group `L` of 4 lanes, lane `i` becomes the sum of group `L` of vector `i`.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_sum_quads(v: [I32; 4]) -> I32 {
    vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))
}

/// In each group of 4 lanes of 4 vectors, lane `j` of vector `i` becomes lane `i` of vector `j`.
#[inline]
#[target_feature(enable = "neon")]
pub fn quads_transposed(v: [Bytes; 4]) -> [Bytes; 4] {
    let v = v.map(|v| vreinterpretq_u32_u8(v));
    let [low, high] = [vtrnq_u32(v[0], v[1]), vtrnq_u32(v[2], v[3])];
    let first = |a, b| vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(a), vget_low_u32(b)));
    let last = |a, b| vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(a), vget_high_u32(b)));
    [first(low.0, high.0), first(low.1, high.1), last(low.0, high.0), last(low.1, high.1)]
}

/// The sums of the two sub-blocks of each of 16 blocks, in order, from groups as [`i32_sum_quads`]
/// gives them.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_pair_blocks(groups: [I32; 8]) -> F32 {
    let blocks = |i: usize| vpaddq_s32(groups[2 * i], groups[2 * i + 1]);
    F32(core::array::from_fn(|i| vcvtq_f32_s32(blocks(i))))
}

/// Loads [`LANES`] int8, one for each sub-block of 4 vectors, in the order of [`i32_sum_quads`].
///
/// # Safety
/// `ptr` is readable for [`LANES`] bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn i32_load_quad_i8(ptr: *const u8) -> I32 {
    // SAFETY: the caller's promise.
    let quad = unsafe { ptr.cast::<u32>().read_unaligned() };
    vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(u64::from(quad)))))
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
#[target_feature(enable = "neon")]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    let (a, b) = (vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
    widen([vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)])
}

/// A vector of Q8_0 weights, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn q8_0_weights(block: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { load(block.add(2 + at)) }
}

/// A vector of 4-bit codes of blocks of 32 weights, from weight `at` of a block on, which begins a
/// vector: 16 bytes hold those of weights 0 to 15 in their low nibbles and the others in their high
/// ones. `codes` are those of the block, and `stride` bytes behind them those of the next.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn block_nibbles(codes: *const u8, _stride: usize, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes) };
    if at == 0 { vandq_u8(bytes, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(bytes) }
}

/// Adds 16 to codes as [`block_nibbles`] gives them whose bits are set: bit `i` of a block's 32 is that
/// of weight `i`.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn with_block_bits(codes: Bytes, bits: *const u8, _stride: usize, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let [low, high] = unsafe { [0, 1].map(|i| vdup_n_u8(bits.add(at / 8 + i).read())) };
    // Each byte 8 times, and a bit of it in each.
    let own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let set = vtstq_u8(vcombine_u8(low, high), own);
    vorrq_u8(codes, vandq_u8(set, vdupq_n_u8(16)))
}

/// A vector of 4-bit codes, from number `at` on, which begins a vector: of every 64, 32 bytes hold the
/// first half in their low nibbles and the other in their high ones.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn nibble_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes.add(at / 64 * 32 + at % 32)) };
    if at % 64 < 32 { vandq_u8(bytes, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(bytes) }
}

/// A vector of 2-bit codes, from number `at` on, which begins a vector: of every 128, 32 bytes hold a
/// quarter in bits 1:0, the next in bits 3:2, and so on.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn code_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes.add(at / 128 * 32 + at % 32)) };
    // By a variable, as `at` is one where the compiler does not unroll far enough.
    let by = -((at % 128 / 32 * 2) as i8);
    vandq_u8(vshlq_u8(bytes, vdupq_n_s8(by)), vdupq_n_u8(3))
}

/// Adds `value` to codes, from number `at` of 256 on, whose bits are set: bit `t` of byte `l` of 32 is
/// that of code `32 t + l`.
///
/// # Safety
/// The 32 bytes are readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn with_bit_planes(codes: Bytes, bits: *const u8, at: usize, value: u8) -> Bytes {
    // SAFETY: the caller's promise.
    let bits = unsafe { load(bits.add(at % 32)) };
    let set = vtstq_u8(bits, vdupq_n_u8(1 << (at / 32)));
    vorrq_u8(codes, vandq_u8(set, vdupq_n_u8(value)))
}

/// A vector of Q6_K codes 0 to 63, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The block is readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn q6_k_codes(block: *const u8, at: usize) -> Bytes {
    let (half, t, l) = (at / 128, at % 128 / 32, at % 32);
    // SAFETY: the caller's promise.
    let low = unsafe { load(block.add(64 * half + 32 * (t % 2) + l)) };
    // SAFETY: the caller's promise.
    let high = unsafe { load(block.add(128 + 32 * half + l)) };
    // By a variable, to the left, as `t` is one where the compiler does not unroll far enough.
    let shift = |v, by: i8| vshlq_u8(v, vdupq_n_s8(by));
    let low = shift(low, if t < 2 { 0 } else { -4 });
    let high = shift(high, 4 - 2 * t as i8);
    vorrq_u8(vandq_u8(low, vdupq_n_u8(0x0f)), vandq_u8(high, vdupq_n_u8(0x30)))
}

/// Two half floats, widened, in 8 lanes each.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_splat_f16_halves(first: u16, second: u16) -> F32 {
    let wide = |bits| vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits)));
    let (first, second) = (wide(first), wide(second));
    F32([first, first, second, second])
}

/// Widens the bits of a half float.
#[inline]
#[target_feature(enable = "neon")]
pub fn f16_to_f32(bits: u16) -> f32 {
    vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))))
}

/// `a * b + c` of single floats, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    vfmas_lane_f32::<0>(c, a, vdup_n_f32(b))
}

/// The square root of a single float.
#[inline]
#[target_feature(enable = "neon")]
pub fn sqrt(value: f32) -> f32 {
    vget_lane_f32::<0>(vsqrt_f32(vdup_n_f32(value)))
}

/// Writes the numbers of the positive ones of 16 floats, counted from `first`, in order, and gives
/// how many they are.
///
/// # Safety
/// `x` is readable for 16 floats, `out` is writable for 16 numbers.
#[inline]
#[target_feature(enable = "neon")]
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
#[target_feature(enable = "neon")]
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
#[target_feature(enable = "neon")]
pub fn bytes_zero() -> Bytes {
    vdupq_n_u8(0)
}

/// Loads a vector.
///
/// # Safety
/// `ptr` is readable for the size of a vector.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn load(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { vld1q_u8(ptr) }
}

/// Repeats 4 bytes in every 32-bit lane.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn broadcast4(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    vreinterpretq_u8_u32(vdupq_n_u32(unsafe { ptr.cast::<u32>().read_unaligned() }))
}

/// The 2-bit code in bits `2 field + 1 : 2 field` of every byte.
#[inline]
#[target_feature(enable = "neon")]
pub fn codes(packed: Bytes, field: usize) -> Bytes {
    let mask = vdupq_n_u8(3);
    match field {
        0 => vandq_u8(packed, mask),
        1 => vandq_u8(vshrq_n_u8::<2>(packed), mask),
        2 => vandq_u8(vshrq_n_u8::<4>(packed), mask),
        _ => vshrq_n_u8::<6>(packed),
    }
}

/// The 4-bit codes in the low (0) or high (1) nibbles of every byte, doubled if so asked.
#[inline]
#[target_feature(enable = "neon")]
pub fn nibble_codes(packed: Bytes, which: usize, doubled: bool) -> Bytes {
    match (which, doubled) {
        (0, false) => vandq_u8(packed, vdupq_n_u8(15)),
        (0, true) => vandq_u8(vshlq_n_u8::<1>(packed), vdupq_n_u8(30)),
        (_, false) => vshrq_n_u8::<4>(packed),
        (_, true) => vandq_u8(vshrq_n_u8::<3>(packed), vdupq_n_u8(30)),
    }
}

/// Adds bit `which` of every byte of `bits` to 4-bit codes, as their bit 4; doubled as
/// the codes are.
#[inline]
#[target_feature(enable = "neon")]
pub fn with_bit(codes: Bytes, bits: Bytes, which: usize, doubled: bool) -> Bytes {
    let shifted = match (4 + usize::from(doubled)).cast_signed() - which.cast_signed() {
        5 => vshlq_n_u8::<5>(bits),
        4 => vshlq_n_u8::<4>(bits),
        3 => vshlq_n_u8::<3>(bits),
        2 => vshlq_n_u8::<2>(bits),
        1 => vshlq_n_u8::<1>(bits),
        0 => bits,
        -1 => vshrq_n_u8::<1>(bits),
        -2 => vshrq_n_u8::<2>(bits),
        _ => vshrq_n_u8::<3>(bits),
    };
    vorrq_u8(codes, vandq_u8(shifted, vdupq_n_u8(if doubled { 32 } else { 16 })))
}

/// 16 integers as floats.
#[inline]
#[target_feature(enable = "neon")]
pub fn f32_from_i32(v: [I32; 4]) -> F32 {
    F32(v.map(|v| vcvtq_f32_s32(v)))
}

/// Loads 16 unsigned bytes and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load_u8(ptr: *const u8) -> F32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(ptr) };
    let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
    let widen = |v| vcvtq_f32_u32(vmovl_u16(v));
    F32([
        widen(vget_low_u16(low)),
        widen(vget_high_u16(low)),
        widen(vget_low_u16(high)),
        widen(vget_high_u16(high)),
    ])
}

/// Loads 16 int8 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn f32_load_i8(ptr: *const i8) -> F32 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { vld1q_s8(ptr) };
    let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
    let widen = |v| vcvtq_f32_s32(vmovl_s16(v));
    F32([
        widen(vget_low_s16(low)),
        widen(vget_high_s16(low)),
        widen(vget_low_s16(high)),
        widen(vget_high_s16(high)),
    ])
}

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
#[target_feature(enable = "neon")]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    vandq_u8(packed, vdupq_n_u8(3 << (2 * field)))
}

/// Four vectors of 16-byte groups, interleaved byte by byte: 32-bit lane `i` of group `L` of vector
/// `k` holds byte `4k + i` of group `L` of each.
#[inline]
#[target_feature(enable = "neon")]
pub fn interleave4(v: [Bytes; 4]) -> [Bytes; 4] {
    let words = |v| vreinterpretq_u16_u8(v);
    let bytes = |v| vreinterpretq_u8_u16(v);
    let (low, low2) = (words(vzip1q_u8(v[0], v[1])), words(vzip1q_u8(v[2], v[3])));
    let (high, high2) = (words(vzip2q_u8(v[0], v[1])), words(vzip2q_u8(v[2], v[3])));
    [
        bytes(vzip1q_u16(low, low2)),
        bytes(vzip2q_u16(low, low2)),
        bytes(vzip1q_u16(high, high2)),
        bytes(vzip2q_u16(high, high2)),
    ]
}

/// The sum of all groups of 4 lanes.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_sum_groups(a: I32) -> [i32; 4] {
    let mut out = [0; 4];
    // SAFETY: four lanes are what the array holds.
    unsafe { vst1q_s32(out.as_mut_ptr(), a) }
    out
}

/// No sum yet.
#[inline]
#[target_feature(enable = "neon")]
pub fn acc_zero() -> Acc {
    [vdupq_n_s16(0); 2]
}

/// Sums that begin with `start`, as `WIDE` ones can; these do not, and begin with 0.
#[inline]
#[target_feature(enable = "neon")]
pub fn acc_start(_start: I32) -> Acc {
    acc_zero()
}

/// The number from which [`acc_splat`] makes sums that begin with the sum of `halves`: two of the four
/// sums of a row begin with one of them each, modulo 2^16.
#[inline]
pub fn acc_word(halves: [i32; 2]) -> i32 {
    (halves[0] & 0xffff) | halves[1] << 16
}

/// Sums that begin with what [`acc_word`] made.
///
/// # Safety
/// `start` is readable.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    let start = unsafe { start.read() };
    [vreinterpretq_s16_u64(vdupq_n_u64(u64::from(start.cast_unsigned()))); 2]
}

/// Adds, in every 16-bit lane, the product of a code, at most 127, and a signed activation. With
/// codes up to 2, 127 calls fit.
#[inline]
#[target_feature(enable = "neon")]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    let (a, b) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(activations));
    let low = vmlal_s8(acc[0], vget_low_s8(a), vget_low_s8(b));
    // LLVM takes the upper halves of `vmlal_high_s8` before it masks the codes, which costs an
    // `ext` for each, half as many instructions again.
    let mut high = acc[1];
    // SAFETY: the instruction is of the features above, and changes no register but `high`.
    unsafe {
        asm!(
            "smlal2 {0:v}.8h, {1:v}.16b, {2:v}.16b",
            inout(vreg) high, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Keeps later work behind `done`, which 32 registers do not need.
#[inline]
#[target_feature(enable = "neon")]
pub fn in_turn<const N: usize>(_done: Acc, _packed: &mut [Bytes; N], _quads: &mut *const u8) {}

/// The sums as 32-bit lanes.
#[inline]
#[target_feature(enable = "neon")]
pub fn widen(acc: Acc) -> I32 {
    vpaddq_s32(vpaddlq_s16(acc[0]), vpaddlq_s16(acc[1]))
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_zero() -> I32 {
    vdupq_n_s32(0)
}

/// `value` in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_splat(value: i32) -> I32 {
    vdupq_n_s32(value)
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_add(a: I32, b: I32) -> I32 {
    vaddq_s32(a, b)
}

/// Lane-wise difference.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_sub(a: I32, b: I32) -> I32 {
    vsubq_s32(a, b)
}

/// Lane-wise arithmetic shift right by `2 field` bits: undoes the scale of [`codes_in_place`].
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_unscale(a: I32, field: usize) -> I32 {
    match field {
        0 => a,
        1 => vshrq_n_s32::<2>(a),
        2 => vshrq_n_s32::<4>(a),
        _ => vshrq_n_s32::<6>(a),
    }
}

/// Stores [`LANES`] integers.
///
/// # Safety
/// `ptr` is writable for [`LANES`] integers.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn i32_store(ptr: *mut i32, value: I32) {
    // SAFETY: the caller's promise.
    unsafe { vst1q_s32(ptr, value) }
}

/// Asks for the cache line at `ptr`, which need not be readable, into the cache of that level.
#[inline]
#[target_feature(enable = "neon")]
pub fn prefetch<const LEVEL: usize>(ptr: *const u8) {
    // The intrinsic is not stable yet.
    // SAFETY: a prefetch accesses no memory that the program could see, and never faults.
    unsafe {
        if LEVEL == 1 {
            asm!("prfm pldl1keep, [{}]", in(reg) ptr, options(readonly, nostack, preserves_flags))
        } else {
            asm!("prfm pldl2keep, [{}]", in(reg) ptr, options(readonly, nostack, preserves_flags))
        }
    }
}

/// The 32 bytes of two 4-bit indices that a tile holds at a place.
pub type Nibbles = [uint8x16_t; 2];
/// An index into a [`Table16`] for each of the 32 rows of a tile, in bytes.
pub type Indices = [uint8x16_t; 2];
/// A 16-bit lane for each of the 32 rows of a tile, in order.
pub type I16 = [int16x8_t; 4];
/// A table of 16 entries: their low bytes, then their high bytes.
pub type Table16 = [uint8x16_t; 2];
/// A table of 32 entries: their low bytes, then their high bytes.
pub type Table32 = [uint8x16x2_t; 2];
/// A word of three 5-bit fields, indices into a [`Table32`], and a bit to spare for each of the 32
/// rows of a tile. `tbl` looks up in two registers as well as in one, so that the sign of three
/// weights is a part of the index: 20 instructions for 32 of them, with signs apart 28.
pub type Fields = [uint16x8_t; 4];
/// The 32 rows of a tile as 32-bit lanes, in order.
pub type Tile32 = [I32; 32 / LANES];

/// Bytes of a stored [`Table16`].
pub const TABLE16_BYTES: usize = 32;
/// Bytes of a stored [`Table32`].
pub const TABLE32_BYTES: usize = 64;

/// Index 0 for each row.
#[inline]
#[target_feature(enable = "neon")]
pub fn indices_zero() -> Indices {
    [vdupq_n_u8(0); 2]
}

/// Loads 32 bytes.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn nibbles_load(ptr: *const u8) -> Nibbles {
    // SAFETY: the caller's promise.
    unsafe { [vld1q_u8(ptr), vld1q_u8(ptr.add(16))] }
}

/// The low (0) or high (1) nibbles.
#[inline]
#[target_feature(enable = "neon")]
pub fn nibble(nibbles: Nibbles, which: usize) -> Indices {
    if which == 0 {
        nibbles.map(|n| vandq_u8(n, vdupq_n_u8(15)))
    } else {
        nibbles.map(|n| vshrq_n_u8::<4>(n))
    }
}

/// 8 entries of a table: the sum of the activations, each times its coefficient.
///
/// # Safety
/// `coefficients` holds 8 words for each activation, from `entry` on.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn table_entries<const N: usize, const ENTRIES: usize>(
    activations: [i8; N],
    coefficients: &[[i16; ENTRIES]; N],
    entry: usize,
) -> uint8x16_t {
    let mut entries = vdupq_n_s16(0);
    for i in 0..N {
        // SAFETY: the caller's promise.
        let factors = unsafe { vld1q_s16(coefficients[i].as_ptr().add(entry)) };
        entries = vmlaq_n_s16(entries, factors, i16::from(activations[i]));
    }
    vreinterpretq_u8_s16(entries)
}

/// Stores a table as [`table16_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn table16_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 16]; N],
) {
    // SAFETY: there are 16 coefficients each; and the caller's promise.
    unsafe {
        let low = table_entries(activations, coefficients, 0);
        let high = table_entries(activations, coefficients, 8);
        vst1q_u8(ptr, vuzp1q_u8(low, high));
        vst1q_u8(ptr.add(16), vuzp2q_u8(low, high));
    }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE16_BYTES`].
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn table16_load(ptr: *const u8) -> Table16 {
    // SAFETY: the caller's promise.
    unsafe { [vld1q_u8(ptr), vld1q_u8(ptr.add(16))] }
}

/// The words that low and high bytes make.
#[inline]
#[target_feature(enable = "neon")]
fn words(low: [uint8x16_t; 2], high: [uint8x16_t; 2]) -> I16 {
    [
        vreinterpretq_s16_u8(vzip1q_u8(low[0], high[0])),
        vreinterpretq_s16_u8(vzip2q_u8(low[0], high[0])),
        vreinterpretq_s16_u8(vzip1q_u8(low[1], high[1])),
        vreinterpretq_s16_u8(vzip2q_u8(low[1], high[1])),
    ]
}

/// The entry that each index names.
#[inline]
#[target_feature(enable = "neon")]
pub fn lookup16(table: Table16, indices: Indices) -> I16 {
    let low = indices.map(|i| vqtbl1q_u8(table[0], i));
    let high = indices.map(|i| vqtbl1q_u8(table[1], i));
    words(low, high)
}

/// Zero in every word.
#[inline]
#[target_feature(enable = "neon")]
pub fn fields_zero() -> Fields {
    [vdupq_n_u16(0); 4]
}

/// Loads 32 words.
///
/// # Safety
/// `ptr` is readable for 64 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn fields_load(ptr: *const u8) -> Fields {
    // SAFETY: the caller's promise.
    core::array::from_fn(|i| vreinterpretq_u16_u8(unsafe { vld1q_u8(ptr.add(16 * i)) }))
}

/// Brings the next field of each word down.
#[inline]
#[target_feature(enable = "neon")]
pub fn fields_next(fields: Fields) -> Fields {
    fields.map(|f| vshrq_n_u16::<5>(f))
}

/// Words whose lowest field is that which bit 15 of five groups of words make, bit 4 first.
///
/// # Safety
/// `ptr` is readable for 5 times 64 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn fields_spare(ptr: *const u8) -> Fields {
    let mut spare = fields_zero();
    for group in 0..5 {
        // SAFETY: the caller's promise.
        let fields = unsafe { fields_load(ptr.add(64 * group)) };
        for i in 0..4 {
            spare[i] = vsliq_n_u16::<1>(vshrq_n_u16::<15>(fields[i]), spare[i]);
        }
    }
    spare
}

/// Stores a table as [`table32_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE32_BYTES`].
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn table32_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 32]; N],
) {
    for half in 0..2 {
        // SAFETY: there are 32 coefficients each; and the caller's promise.
        unsafe {
            let low = table_entries(activations, coefficients, 16 * half);
            let high = table_entries(activations, coefficients, 16 * half + 8);
            vst1q_u8(ptr.add(16 * half), vuzp1q_u8(low, high));
            vst1q_u8(ptr.add(32 + 16 * half), vuzp2q_u8(low, high));
        }
    }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE32_BYTES`].
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn table32_load(ptr: *const u8) -> Table32 {
    // SAFETY: the caller's promise.
    unsafe {
        [
            uint8x16x2_t(vld1q_u8(ptr), vld1q_u8(ptr.add(16))),
            uint8x16x2_t(vld1q_u8(ptr.add(32)), vld1q_u8(ptr.add(48))),
        ]
    }
}

/// The entry that the lowest field of each word names.
#[inline]
#[target_feature(enable = "neon")]
pub fn lookup32(table: Table32, fields: Fields) -> I16 {
    let bytes = fields.map(|f| vreinterpretq_u8_u16(f));
    let indices = [vuzp1q_u8(bytes[0], bytes[1]), vuzp1q_u8(bytes[2], bytes[3])];
    let indices = indices.map(|i| vandq_u8(i, vdupq_n_u8(31)));
    let low = indices.map(|i| vqtbl2q_u8(table[0], i));
    let high = indices.map(|i| vqtbl2q_u8(table[1], i));
    words(low, high)
}

/// Zero in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub fn i16_zero() -> I16 {
    [vdupq_n_s16(0); 4]
}

/// Lane-wise sum.
#[inline]
#[target_feature(enable = "neon")]
pub fn i16_add(a: I16, b: I16) -> I16 {
    core::array::from_fn(|i| vaddq_s16(a[i], b[i]))
}

/// Adds 16-bit lanes to 32-bit ones, row by row.
#[inline]
#[target_feature(enable = "neon")]
pub fn widen_add(totals: Tile32, sums: I16) -> Tile32 {
    let mut out = totals;
    for i in 0..4 {
        out[2 * i] = vaddw_s16(totals[2 * i], vget_low_s16(sums[i]));
        out[2 * i + 1] = vaddw_high_s16(totals[2 * i + 1], sums[i]);
    }
    out
}
