//! Plain Rust: the vocabulary that runs anywhere, and what the others must equal. Vectors of 16
//! bytes, so that the compiler can use the baseline's registers.

/// 32-bit lanes in a vector.
pub const LANES: usize = 4;
/// Whether [`dot`] sums straight into 32 bits.
pub const WIDE: bool = true;

/// A vector of bytes.
pub type Bytes = [u8; 16];
/// A vector of 32-bit integers.
pub type I32 = [i32; LANES];
/// Sums of byte products.
pub type Acc = I32;

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

/// As [`codes`], left in place: the code times `4^field`.
#[inline]
pub fn codes_in_place(packed: Bytes, field: usize) -> Bytes {
    packed.map(|b| b & (3 << (2 * field)))
}

/// No sum yet.
#[inline]
pub fn acc_zero() -> Acc {
    [0; LANES]
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
pub fn prefetch(_ptr: *const u8) {}
