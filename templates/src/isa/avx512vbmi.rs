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

/// As [`spread`], by tables of changes: what the low 6 bits of each byte name in the first table, and the
/// byte itself, each with those bits changed that its excess over 191, or 0, names in the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub fn spread_unmasked(packed: Bytes, tables: &Tables) -> [Bytes; 2] {
    let excess = _mm512_subs_epu8(packed, _mm512_set1_epi8(191u8.cast_signed()));
    let named = _mm512_permutexvar_epi8(packed, tables[0]);
    [
        _mm512_xor_si512(named, _mm512_permutexvar_epi8(excess, tables[1])),
        _mm512_xor_si512(packed, _mm512_permutexvar_epi8(excess, tables[2])),
    ]
}

/// Loads a table for [`lookup64`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn table64(table: &'static [u8; 64]) -> Bytes {
    // SAFETY: it is as long as a vector.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}

/// Entries of a table that the low 6 bits of each byte name.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub fn lookup64(bytes: Bytes, table: Bytes) -> Bytes {
    _mm512_permutexvar_epi8(bytes, table)
}

/// The top 2 bits of three vectors' bytes, from the lowest bits on. What is above has no meaning.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn top_codes([a, b, c]: [Bytes; 3]) -> Bytes {
    /// `vpternlog`: from the first operand where the third has a 1, else from the second.
    const SELECT: i32 = 0b1110_0100;
    let (a, b, c) =
        (_mm512_srli_epi16::<6>(a), _mm512_srli_epi16::<4>(b), _mm512_srli_epi16::<2>(c));
    let ab = _mm512_ternarylogic_epi32::<SELECT>(a, b, _mm512_set1_epi8(0b11));
    _mm512_ternarylogic_epi32::<SELECT>(ab, c, _mm512_set1_epi8(0b1111))
}

/// Stores the bytes `from[map[i]]`, each plus 128.
///
/// # Safety
/// `from` is readable for `FROM` bytes, at most 64, and `to` is writable for `TO`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub unsafe fn permute_offset<const FROM: usize, const TO: usize>(
    from: *const i8,
    map: &'static [u8; TO],
    to: *mut u8,
) {
    // SAFETY: the caller's promise; masked bytes are not touched.
    unsafe {
        let from = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - FROM), from);
        let from = _mm512_xor_si512(from, _mm512_set1_epi8(-128));
        let mut done = 0;
        while done < TO {
            let mask = if TO - done < 64 { (1 << (TO - done)) - 1 } else { u64::MAX };
            let map = _mm512_maskz_loadu_epi8(mask, map.as_ptr().add(done).cast());
            let bytes = _mm512_permutexvar_epi8(map, from);
            _mm512_mask_storeu_epi8(to.add(done).cast(), mask, bytes);
            done += 64;
        }
    }
}

/// Two rows of bytes, 4 to a row, as words of two bytes: word `2i + h` of the first vector is the
/// first two bytes of row `i` of half `h`, of the second vector the last two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn pair_rows([low]: [Bytes; 1], [high]: [Bytes; 1]) -> [Fields; 2] {
    const ODD: u32 = 0xaaaa_aaaa;
    [
        _mm512_mask_blend_epi16(ODD, low, _mm512_slli_epi32::<16>(high)),
        _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(low), high),
    ]
}

/// Stores 32 words.
///
/// # Safety
/// `ptr` is writable for 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn fields_store(ptr: *mut u8, fields: Fields) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(ptr.cast(), fields) }
}

/// Factor of each of three activations in the entries of a [`Table32`]: of the even entries
/// and the odd ones, and minus 128 times their sums.
#[derive(Clone, Copy)]
pub struct Factors([(Bytes, I32); 2]);

/// Loads the factors: of the even entries, then of the odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn factors(factors: &'static [[[i8; 4]; 16]; 2]) -> Factors {
    let zero = _mm512_setzero_si512();
    Factors(core::array::from_fn(|odd| {
        // SAFETY: 16 times 4 bytes are a vector.
        let factors = unsafe { _mm512_loadu_si512(factors[odd].as_ptr().cast()) };
        let sums = _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(-128), factors);
        (factors, _mm512_sub_epi32(zero, sums))
    }))
}

/// Zero in every entry.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn table32_zero() -> Table32 {
    _mm512_setzero_si512()
}

/// The table of three activations, each plus 128; the factor of a fourth byte is 0.
///
/// # Safety
/// `ptr` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn table32_of(ptr: *const u8, factors: &Factors) -> Table32 {
    // SAFETY: the caller's promise.
    let quad = unsafe { broadcast4(ptr) };
    let [even, odd] = factors.0.map(|(factors, base)| _mm512_dpbusd_epi32(base, quad, factors));
    _mm512_mask_blend_epi16(0xaaaa_aaaa, even, _mm512_slli_epi32::<16>(odd))
}

/// Stores the even words, then the odd ones, each added to what is there unless it is the `first`.
///
/// # Safety
/// `out` is readable and writable for 32 integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn add_row_pairs(out: *mut i32, sums: I16, first: bool) {
    for odd in 0..2 {
        // SAFETY: the caller's promise.
        unsafe {
            let out = out.add(16 * odd).cast();
            let before = if first { _mm512_setzero_si512() } else { _mm512_loadu_si512(out) };
            let word = _mm512_set1_epi32(1 << (16 * odd));
            _mm512_storeu_si512(out.cast(), _mm512_dpwssd_epi32(before, sums, word));
        }
    }
}
