//! Plain Rust: the vocabulary that runs anywhere, and what the others must equal. Vectors of 16
//! bytes, so that the compiler can use the baseline's registers.

/// 32-bit lanes in a vector.
pub const LANES: usize = 4;
/// True if [`dot`] sums straight into 32 bits.
pub const WIDE: bool = true;

/// A vector of bytes.
pub type Bytes = [u8; 16];
/// A vector of 32-bit integers.
pub type I32 = [i32; LANES];
/// Sums of byte products.
pub type Acc = I32;

/// 16 virtual lanes of f32, the unit of the float contract.
pub type F32 = [f32; 16];
/// Number of [`F32`] that the registers hold.
pub const F32_REGISTERS: usize = 4;

/// `value` in every lane.
#[inline]
pub fn f32_splat(value: f32) -> F32 {
    [value; 16]
}

/// Loads 16 floats.
///
/// # Safety
/// `ptr` is readable for 16 floats.
#[inline]
pub unsafe fn f32_load(ptr: *const f32) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<F32>().read_unaligned() }
}

/// Loads 16 int32 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 integers.
#[inline]
pub unsafe fn f32_load_i32(ptr: *const i32) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i32; 16]>().read_unaligned() }.map(|v| v as f32)
}

/// Loads 16 half-precision floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 half floats.
#[inline]
pub unsafe fn f32_load_f16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[u16; 16]>().read_unaligned() }.map(f16_to_f32)
}

/// Loads 16 brain floats, as bits, and widens them.
///
/// # Safety
/// `ptr` is readable for 16 brain floats.
#[inline]
pub unsafe fn f32_load_bf16(ptr: *const u16) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[u16; 16]>().read_unaligned() }.map(|v| f32::from_bits(u32::from(v) << 16))
}

/// Stores 16 floats.
///
/// # Safety
/// `ptr` is writable for 16 floats.
#[inline]
pub unsafe fn f32_store(ptr: *mut f32, value: F32) {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<F32>().write_unaligned(value) }
}

/// Stores 16 floats as half floats, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 half floats.
#[inline]
pub unsafe fn f32_store_f16(ptr: *mut u16, value: F32) {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[u16; 16]>().write_unaligned(value.map(f32_to_f16)) }
}

/// Stores 16 floats from -128 to 127 as int8, rounded to nearest, ties to even.
///
/// # Safety
/// `ptr` is writable for 16 bytes.
#[inline]
pub unsafe fn f32_store_i8(ptr: *mut i8, value: F32) {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i8; 16]>().write_unaligned(value.map(|v| v.round_ties_even() as i8)) }
}

/// `a + b`.
#[inline]
pub fn f32_add(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| a[i] + b[i])
}

/// `a - b`.
#[inline]
pub fn f32_sub(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| a[i] - b[i])
}

/// `a * b`.
#[inline]
pub fn f32_mul(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| a[i] * b[i])
}

/// `a / b`.
#[inline]
pub fn f32_div(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| a[i] / b[i])
}

/// `a * b + c`, rounded once.
#[inline]
pub fn f32_fma(a: F32, b: F32, c: F32) -> F32 {
    core::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

/// `-(a * b) + c`, rounded once.
#[inline]
pub fn f32_fnma(a: F32, b: F32, c: F32) -> F32 {
    core::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
}

/// `a > b ? a : b`: b where either is NaN.
#[inline]
pub fn f32_max(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
}

/// `a < b ? a : b`: b where either is NaN.
#[inline]
pub fn f32_min(a: F32, b: F32) -> F32 {
    core::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
}

/// Without the sign.
#[inline]
pub fn f32_abs(a: F32) -> F32 {
    a.map(f32::abs)
}

/// `a > b ? x : y`.
#[inline]
pub fn f32_select_gt(a: F32, b: F32, x: F32, y: F32) -> F32 {
    core::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
}

/// `p * 2^k`, where k is the difference of the bits of `shifted` and `base`: scaled in two halves,
/// so that k = 128 is no special case. Where 2^(k/2) is no normal number the result means nothing.
#[inline]
pub fn f32_scale_by_bits(p: F32, shifted: F32, base: f32) -> F32 {
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    core::array::from_fn(|i| {
        let k = shifted[i].to_bits().wrapping_sub(base.to_bits()) as i32;
        let half = k >> 1;
        (p[i] * power(half)) * power(k.wrapping_sub(half))
    })
}

/// The sum by the fixed tree: lanes i + (i + 8), then + 4, + 2, + 1.
#[inline]
pub fn f32_reduce_add(mut a: F32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            a[i] += a[i + width];
        }
    }
    a[0]
}

/// The largest lane; no lane is NaN.
#[inline]
pub fn f32_reduce_max(a: F32) -> f32 {
    a.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// `a * b + c` of single floats, rounded once.
#[inline]
pub fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// The square root of a single float.
#[inline]
pub fn sqrt(value: f32) -> f32 {
    value.sqrt()
}

/// Widens the bits of a half float.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, mantissa) =
        (u32::from(bits & 0x8000) << 16, u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    match exponent {
        // A subnormal is mantissa * 2^-24, exactly.
        0 => f32::from_bits((mantissa as f32 * 5.960_464_5e-8).to_bits() | sign),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

/// The bits of the nearest half float, ties to even.
#[inline]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        // NaN stays NaN and becomes quiet.
        return sign | 0x7e00 | (magnitude >> 13 & 0x3ff) as u16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Below 2^-14 the half float is a multiple of 2^-24: adding 2^-1 rounds to it.
        let rounded = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits();
        return sign | rounded as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

/// Loads [`LANES`] integers.
///
/// # Safety
/// `ptr` is readable for [`LANES`] integers.
#[inline]
pub unsafe fn i32_load(ptr: *const i32) -> I32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<I32>().read_unaligned() }
}

/// Lane-wise product, low 32 bits.
#[inline]
pub fn i32_mul(a: I32, b: I32) -> I32 {
    core::array::from_fn(|i| a[i].wrapping_mul(b[i]))
}

/// In each group `L` of 4 lanes, lane `i` becomes the sum of group `L` of vector `i`.
#[inline]
pub fn i32_sum_quads(v: [I32; 4]) -> I32 {
    v.map(|v| v.iter().sum())
}

/// In each group of 4 lanes of 4 vectors, lane `j` of vector `i` becomes lane `i` of vector `j`.
#[inline]
pub fn quads_transposed(v: [Bytes; 4]) -> [Bytes; 4] {
    core::array::from_fn(|j| core::array::from_fn(|byte| v[byte / 4][4 * j + byte % 4]))
}

/// The sums of the two sub-blocks of each of 16 blocks, in order, from groups as [`i32_sum_quads`]
/// gives them.
#[inline]
pub fn f32_pair_blocks(groups: [I32; 8]) -> F32 {
    core::array::from_fn(|b| (groups[b / 2][b % 2 * 2] + groups[b / 2][b % 2 * 2 + 1]) as f32)
}

/// Loads [`LANES`] int8, one for each sub-block of 4 vectors, in the order of [`i32_sum_quads`].
///
/// # Safety
/// `ptr` is readable for [`LANES`] bytes.
#[inline]
pub unsafe fn i32_load_quad_i8(ptr: *const u8) -> I32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
}

/// Sums of the products of signed bytes, 4 to a lane, exact for all inputs.
#[inline]
pub fn i8_dot(a: Bytes, b: Bytes) -> I32 {
    core::array::from_fn(|lane| {
        let product = |i: usize| i32::from(a[i].cast_signed()) * i32::from(b[i].cast_signed());
        (4 * lane..4 * lane + 4).map(product).sum()
    })
}

/// A vector of Q8_0 weights, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The blocks are readable.
#[inline]
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
pub unsafe fn block_nibbles(codes: *const u8, _stride: usize, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { load(codes) }.map(|b| if at == 0 { b & 15 } else { b >> 4 })
}

/// Adds 16 to codes as [`block_nibbles`] gives them whose bits are set: bit `i` of a block's 32 is that
/// of weight `i`.
///
/// # Safety
/// The blocks are readable.
#[inline]
pub unsafe fn with_block_bits(codes: Bytes, bits: *const u8, _stride: usize, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bits = u32::from_le(unsafe { bits.cast::<u32>().read_unaligned() }) >> at;
    core::array::from_fn(|i| codes[i] | ((bits >> i & 1) << 4) as u8)
}

/// A vector of 4-bit codes, from number `at` on, which begins a vector: of every 64, 32 bytes hold the
/// first half in their low nibbles and the other in their high ones.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
pub unsafe fn nibble_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes.add(at / 64 * 32 + at % 32)) };
    bytes.map(|b| b >> (at % 64 / 32 * 4) & 15)
}

/// A vector of 2-bit codes, from number `at` on, which begins a vector: of every 128, 32 bytes hold a
/// quarter in bits 1:0, the next in bits 3:2, and so on.
///
/// # Safety
/// The vector's bytes are readable.
#[inline]
pub unsafe fn code_planes(codes: *const u8, at: usize) -> Bytes {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(codes.add(at / 128 * 32 + at % 32)) };
    bytes.map(|b| b >> (at % 128 / 32 * 2) & 3)
}

/// Adds `value` to codes, from number `at` of 256 on, whose bits are set: bit `t` of byte `l` of 32 is
/// that of code `32 t + l`.
///
/// # Safety
/// The 32 bytes are readable.
#[inline]
pub unsafe fn with_bit_planes(codes: Bytes, bits: *const u8, at: usize, value: u8) -> Bytes {
    // SAFETY: the caller's promise.
    let bits = unsafe { load(bits.add(at % 32)) };
    core::array::from_fn(|i| codes[i] | ((bits[i] >> (at / 32) & 1) * value))
}

/// A vector of Q6_K codes 0 to 63, from weight `at` of a block on, which begins a vector.
///
/// # Safety
/// The block is readable.
#[inline]
pub unsafe fn q6_k_codes(block: *const u8, at: usize) -> Bytes {
    let (half, t, l) = (at / 128, at % 128 / 32, at % 32);
    // SAFETY: the caller's promise.
    let low = unsafe { load(block.add(64 * half + 32 * (t % 2) + l)) };
    // SAFETY: the caller's promise.
    let high = unsafe { load(block.add(128 + 32 * half + l)) };
    core::array::from_fn(|i| (low[i] >> (4 * (t / 2))) & 15 | (high[i] >> (2 * t) & 3) << 4)
}

/// Two half floats, widened, in 8 lanes each.
#[inline]
pub fn f32_splat_f16_halves(first: u16, second: u16) -> F32 {
    core::array::from_fn(|i| f16_to_f32(if i < 8 { first } else { second }))
}

/// Writes the numbers of the positive ones of 16 floats, counted from `first`, in order, and gives
/// how many they are.
///
/// # Safety
/// `x` is readable for 16 floats, `out` is writable for 16 numbers.
#[inline]
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
pub fn bytes_zero() -> Bytes {
    [0; 16]
}

/// Loads a vector.
///
/// # Safety
/// `ptr` is readable for the size of a vector.
#[inline]
pub unsafe fn load(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Bytes>().read_unaligned() }
}

/// Repeats 4 bytes in every 32-bit lane.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
pub unsafe fn broadcast4(ptr: *const u8) -> Bytes {
    // SAFETY: the caller's promise.
    let quad = unsafe { ptr.cast::<[u8; 4]>().read_unaligned() };
    core::array::from_fn(|i| quad[i % 4])
}

/// The 2-bit code in bits `2 field + 1 : 2 field` of every byte.
#[inline]
pub fn codes(packed: Bytes, field: usize) -> Bytes {
    packed.map(|b| (b >> (2 * field)) & 3)
}

/// The 4-bit codes in the low (0) or high (1) nibbles of every byte, doubled if so asked.
#[inline]
pub fn nibble_codes(packed: Bytes, which: usize, doubled: bool) -> Bytes {
    packed.map(|b| (if which == 0 { b & 15 } else { b >> 4 }) << u8::from(doubled))
}

/// Adds bit `which` of every byte of `bits` to 4-bit codes, as their bit 4; doubled as
/// the codes are.
#[inline]
pub fn with_bit(codes: Bytes, bits: Bytes, which: usize, doubled: bool) -> Bytes {
    core::array::from_fn(|i| codes[i] | (bits[i] >> which & 1) << (4 + u8::from(doubled)))
}

/// 16 integers as floats.
#[inline]
pub fn f32_from_i32(v: [I32; 4]) -> F32 {
    core::array::from_fn(|i| v[i / LANES][i % LANES] as f32)
}

/// Loads 16 unsigned bytes and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
pub unsafe fn f32_load_u8(ptr: *const u8) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[u8; 16]>().read_unaligned() }.map(f32::from)
}

/// Loads 16 int8 and converts them.
///
/// # Safety
/// `ptr` is readable for 16 bytes.
#[inline]
pub unsafe fn f32_load_i8(ptr: *const i8) -> F32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
}

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    packed.map(|b| b & (3 << (2 * field)))
}

/// Tables of 64 bytes for [`spread`].
pub type Tables = [[u8; 64]; 3];

/// Loads the tables.
#[inline]
pub fn tables(tables: &'static [[u8; 64]; 3]) -> Tables {
    *tables
}

/// Two vectors from one, by the low 6 bits of each byte `b`: what it names in the first table, and
/// `b` itself; where its top bits are both set, what it names in the second and the third.
#[inline]
pub fn spread(packed: Bytes, tables: &Tables) -> [Bytes; 2] {
    let lookup = |table: usize, b: u8| tables[table][usize::from(b % 64)];
    [
        packed.map(|b| lookup(usize::from(b >= 0xc0), b)),
        packed.map(|b| if b < 0xc0 { b } else { lookup(2, b) }),
    ]
}

/// As [`spread`], by tables of changes: what the low 6 bits of each byte name in the first table, and the
/// byte itself, each with those bits changed that its excess over 191, or 0, names in the others.
#[inline]
pub fn spread_unmasked(packed: Bytes, tables: &Tables) -> [Bytes; 2] {
    let named = |table: usize, b: u8| tables[table][usize::from(b % 64)];
    let excess = |b: u8| b.saturating_sub(191);
    [packed.map(|b| named(0, b) ^ named(1, excess(b))), packed.map(|b| b ^ named(2, excess(b)))]
}

/// Loads a table for [`lookup64`].
#[inline]
pub fn table64(table: &'static [u8; 64]) -> &'static [u8; 64] {
    table
}

/// Entries of a table that the low 6 bits of each byte name.
#[inline]
pub fn lookup64(bytes: Bytes, table: &'static [u8; 64]) -> Bytes {
    bytes.map(|b| table[usize::from(b % 64)])
}

/// The top 2 bits of three vectors' bytes, from the lowest bits on. What is above has no meaning.
#[inline]
pub fn top_codes([a, b, c]: [Bytes; 3]) -> Bytes {
    core::array::from_fn(|i| a[i] >> 6 | b[i] >> 6 << 2 | c[i] >> 6 << 4)
}

/// Stores the bytes `from[map[i]]`, each plus 128.
///
/// # Safety
/// `from` is readable for `FROM` bytes, at most 64, and `to` is writable for `TO`.
#[inline]
pub unsafe fn permute_offset<const FROM: usize, const TO: usize>(
    from: *const i8,
    map: &'static [u8; TO],
    to: *mut u8,
) {
    // SAFETY: the caller's promise.
    let from = unsafe { from.cast::<[u8; FROM]>().read_unaligned() };
    let bytes: [u8; TO] = core::array::from_fn(|i| from[usize::from(map[i])] ^ 128);
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[u8; TO]>().write_unaligned(bytes) }
}

/// No sum yet.
#[inline]
pub fn acc_zero() -> Acc {
    [0; LANES]
}

/// Sums that begin with `start`.
#[inline]
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
pub unsafe fn acc_splat(start: *const i32) -> Acc {
    // SAFETY: the caller's promise.
    i32_splat(unsafe { start.read() })
}

/// Adds, in every lane, the 4 products of unsigned codes and signed activations.
#[inline]
pub fn dot(acc: Acc, codes: Bytes, activations: Bytes) -> Acc {
    core::array::from_fn(|lane| {
        let products = (4 * lane..4 * lane + 4)
            .map(|i| i32::from(codes[i]) * i32::from(activations[i].cast_signed()));
        acc[lane] + products.sum::<i32>()
    })
}

/// The 32-bit lanes of two vectors in turn: of their first halves, then of their second.
#[inline]
pub fn interleave(a: Bytes, b: Bytes) -> [Bytes; 2] {
    let lane = |i: usize| [a, b][i / 4 % 2][i / 8 * 4 + i % 4];
    [core::array::from_fn(lane), core::array::from_fn(|i| lane(16 + i))]
}

/// Adds to lane `2i + j` the 8 products of half `i` of the activations and half `j` of the codes.
#[inline]
pub fn dot_2x2(acc: Acc, activations: Bytes, codes: Bytes) -> Acc {
    core::array::from_fn(|lane| {
        let product = |k: usize| {
            let activation = activations[lane / 2 * 8 + k].cast_signed();
            i32::from(activation) * i32::from(codes[lane % 2 * 8 + k])
        };
        acc[lane] + (0..8).map(product).sum::<i32>()
    })
}

/// Four vectors of 16-byte groups, interleaved byte by byte: 32-bit lane `i` of group `L` of vector
/// `k` holds byte `4k + i` of group `L` of each.
#[inline]
pub fn interleave4(v: [Bytes; 4]) -> [Bytes; 4] {
    core::array::from_fn(|k| core::array::from_fn(|byte| v[byte % 4][4 * k + byte / 4]))
}

/// The sum of all groups of 4 lanes.
#[inline]
pub fn i32_sum_groups(a: I32) -> [i32; 4] {
    a
}

/// The first halves of two vectors, and their second halves.
#[inline]
pub fn i32_pairs(a: I32, b: I32) -> [I32; 2] {
    [[a[0], a[1], b[0], b[1]], [a[2], a[3], b[2], b[3]]]
}

/// Keeps what is done with `packed` and `quads` from here on behind what made `done`: where the
/// compiler looks ahead, it runs out of registers.
#[inline]
pub fn in_turn<const N: usize>(_done: Acc, _packed: &mut [Bytes; N], _quads: &mut *const u8) {}

/// The sums as 32-bit lanes.
#[inline]
pub fn widen(acc: Acc) -> I32 {
    acc
}

/// Zero in every lane.
#[inline]
pub fn i32_zero() -> I32 {
    [0; LANES]
}

/// `value` in every lane.
#[inline]
pub fn i32_splat(value: i32) -> I32 {
    [value; LANES]
}

/// Lane-wise sum.
#[inline]
pub fn i32_add(a: I32, b: I32) -> I32 {
    core::array::from_fn(|i| a[i].wrapping_add(b[i]))
}

/// Lane-wise difference.
#[inline]
pub fn i32_sub(a: I32, b: I32) -> I32 {
    core::array::from_fn(|i| a[i].wrapping_sub(b[i]))
}

/// Lane-wise arithmetic shift right by `2 field` bits: undoes the scale of [`codes_in_place`].
#[inline]
pub fn i32_unscale(a: I32, field: usize) -> I32 {
    a.map(|v| v >> (2 * field))
}

/// Stores [`LANES`] integers.
///
/// # Safety
/// `ptr` is writable for [`LANES`] integers.
#[inline]
pub unsafe fn i32_store(ptr: *mut i32, value: I32) {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<I32>().write_unaligned(value) }
}

/// Asks for the cache line at `ptr`; nothing here.
#[inline]
pub fn prefetch<const LEVEL: usize>(_ptr: *const u8) {}

/// The 32 bytes of two 4-bit indices that a tile holds at a place.
pub type Nibbles = [u8; 32];
/// An index into a [`Table16`] for each of the 32 rows of a tile.
pub type Indices = [u8; 32];
/// A 16-bit lane for each of the 32 rows of a tile.
pub type I16 = [i16; 32];
/// A table of 16 entries.
pub type Table16 = [i16; 16];
/// A table of 32 entries.
pub type Table32 = [i16; 32];
/// 8 signs for each of the 32 rows of a tile, in the bits of bytes.
pub type Signs = [u8; 32];
/// A word of three 5-bit fields, indices into a [`Table32`], and a bit to spare for each of the 32
/// rows of a tile.
pub type Fields = [u16; 32];
/// The 32 rows of a tile as 32-bit lanes, in order.
pub type Tile32 = [I32; 32 / LANES];

/// Bytes of a stored [`Table16`].
pub const TABLE16_BYTES: usize = 32;
/// Bytes of a stored [`Table32`].
pub const TABLE32_BYTES: usize = 64;

/// Index 0 for each row.
#[inline]
pub fn indices_zero() -> Indices {
    [0; 32]
}

/// Loads 32 bytes.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
pub unsafe fn nibbles_load(ptr: *const u8) -> Nibbles {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Nibbles>().read_unaligned() }
}

/// The low (0) or high (1) nibbles.
#[inline]
pub fn nibble(nibbles: Nibbles, which: usize) -> Indices {
    core::array::from_fn(|row| (nibbles[row] >> (4 * which)) & 15)
}

/// Stores a table as [`table16_load`] wants it: entry `i` is the sum of the activations, each
/// times its coefficient `i`.
///
/// # Safety
/// `ptr` is writable for [`TABLE16_BYTES`].
#[inline]
pub unsafe fn table16_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 16]; N],
) {
    let mut entries = [0i16; 16];
    for (q, coefficients) in activations.iter().zip(coefficients) {
        for entry in 0..16 {
            entries[entry] += i16::from(*q) * coefficients[entry];
        }
    }
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i16; 16]>().write_unaligned(entries) }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE16_BYTES`].
#[inline]
pub unsafe fn table16_load(ptr: *const u8) -> Table16 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Table16>().read_unaligned() }
}

/// The entry that each index names.
#[inline]
pub fn lookup16(table: Table16, indices: Indices) -> I16 {
    core::array::from_fn(|row| table[usize::from(indices[row] % 16)])
}

/// No sign set.
#[inline]
pub fn signs_zero() -> Signs {
    [0; 32]
}

/// Loads 32 bytes of 8 signs each.
///
/// # Safety
/// `ptr` is readable for 32 bytes.
#[inline]
pub unsafe fn signs_load(ptr: *const u8) -> Signs {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Signs>().read_unaligned() }
}

/// Negates the lanes whose top sign is set.
#[inline]
pub fn i16_negate(values: I16, signs: Signs) -> I16 {
    core::array::from_fn(|row| {
        let mask = -i16::from(signs[row] >> 7);
        (values[row] ^ mask).wrapping_sub(mask)
    })
}

/// Brings the next lower sign to the top.
#[inline]
pub fn signs_next(signs: Signs) -> Signs {
    core::array::from_fn(|row| signs[row] << 1)
}

/// Zero in every word.
#[inline]
pub fn fields_zero() -> Fields {
    [0; 32]
}

/// Loads 32 words.
///
/// # Safety
/// `ptr` is readable for 64 bytes.
#[inline]
pub unsafe fn fields_load(ptr: *const u8) -> Fields {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Fields>().read_unaligned() }
}

/// Brings the next field of each word down.
#[inline]
pub fn fields_next(fields: Fields) -> Fields {
    core::array::from_fn(|row| fields[row] >> 5)
}

/// Words whose lowest field is that which bit 15 of five groups of words make, bit 4 first.
///
/// # Safety
/// `ptr` is readable for 5 times 64 bytes.
#[inline]
pub unsafe fn fields_spare(ptr: *const u8) -> Fields {
    let mut spare = [0; 32];
    for group in 0..5 {
        // SAFETY: the caller's promise.
        let fields = unsafe { fields_load(ptr.add(64 * group)) };
        for row in 0..32 {
            spare[row] = (spare[row] << 1) | (fields[row] >> 15);
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
pub unsafe fn table32_store<const N: usize>(
    ptr: *mut u8,
    activations: [i8; N],
    coefficients: &[[i16; 32]; N],
) {
    let mut entries = [0i16; 32];
    for (q, coefficients) in activations.iter().zip(coefficients) {
        for entry in 0..32 {
            entries[entry] += i16::from(*q) * coefficients[entry];
        }
    }
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<[i16; 32]>().write_unaligned(entries) }
}

/// Loads a table.
///
/// # Safety
/// `ptr` is readable for [`TABLE32_BYTES`].
#[inline]
pub unsafe fn table32_load(ptr: *const u8) -> Table32 {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Table32>().read_unaligned() }
}

/// The entry that the lowest field of each word names.
#[inline]
pub fn lookup32(table: Table32, fields: Fields) -> I16 {
    core::array::from_fn(|row| table[usize::from(fields[row] % 32)])
}

/// Zero in every lane.
#[inline]
pub fn i16_zero() -> I16 {
    [0; 32]
}

/// Lane-wise sum.
#[inline]
pub fn i16_add(a: I16, b: I16) -> I16 {
    core::array::from_fn(|row| a[row].wrapping_add(b[row]))
}

/// Adds 16-bit lanes to 32-bit ones, row by row.
#[inline]
pub fn widen_add(totals: Tile32, sums: I16) -> Tile32 {
    core::array::from_fn(|part| {
        i32_add(totals[part], core::array::from_fn(|lane| i32::from(sums[part * LANES + lane])))
    })
}

/// Two rows of bytes, 4 to a row, as words of two bytes: word `2i + h` of the first vector is the
/// first two bytes of row `i` of half `h`, of the second vector the last two.
#[inline]
pub fn pair_rows(low: [Bytes; 16 / LANES], high: [Bytes; 16 / LANES]) -> [Fields; 2] {
    let word = |word: usize, pair: usize| {
        let (row, half) = (word / 2, [&low, &high][word % 2]);
        let at = row % LANES * 4 + 2 * pair;
        u16::from_le_bytes([half[row / LANES][at], half[row / LANES][at + 1]])
    };
    core::array::from_fn(|pair| core::array::from_fn(|i| word(i, pair)))
}

/// Stores 32 words.
///
/// # Safety
/// `ptr` is writable for 64 bytes.
#[inline]
pub unsafe fn fields_store(ptr: *mut u8, fields: Fields) {
    // SAFETY: the caller's promise.
    unsafe { ptr.cast::<Fields>().write_unaligned(fields) }
}

/// Factor of each of three activations in the entries of a [`Table32`].
pub type Factors = &'static [[[i8; 4]; 16]; 2];

/// Loads the factors: of the even entries, then of the odd ones.
#[inline]
pub fn factors(factors: &'static [[[i8; 4]; 16]; 2]) -> Factors {
    factors
}

/// Zero in every entry.
#[inline]
pub fn table32_zero() -> Table32 {
    [0; 32]
}

/// The table of three activations, each plus 128; the factor of a fourth byte is 0.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
pub unsafe fn table32_of(ptr: *const u8, factors: &Factors) -> Table32 {
    // SAFETY: the caller's promise.
    let quad = unsafe { ptr.cast::<[u8; 4]>().read_unaligned() };
    let mut entries = [0; 32];
    for entry in 0..32 {
        for i in 0..3 {
            let factor = i16::from(factors[entry % 2][entry / 2][i]);
            entries[entry] += (i16::from(quad[i]) - 128) * factor;
        }
    }
    entries
}

/// Stores the even words, then the odd ones, each added to what is there unless it is the `first`.
///
/// # Safety
/// `out` is readable and writable for 32 integers.
#[inline(always)]
pub unsafe fn add_row_pairs(out: *mut i32, sums: I16, first: bool) {
    for row in 0..32 {
        let sum = i32::from(sums[row % 16 * 2 + row / 16]);
        // SAFETY: the caller's promise.
        unsafe {
            let out = out.add(row);
            out.write(if first { sum } else { out.read() + sum });
        }
    }
}
