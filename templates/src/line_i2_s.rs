//! Unpacking of a line of I2_S by the templates `rows` and `columns`: `GatherLayout::I2sL64`.

use crate::isa::scalar as isa;

/// Codes in a byte.
pub const FIELDS: usize = 4;

/// Table that codes are looked up in.
pub type Tables = [isa::Bytes; 0];

/// A vector of bytes on the way to its codes.
pub type Packed = isa::Bytes;

/// Loads the tables: there are none.
#[inline]
pub fn tables() -> Tables {
    []
}

/// Bytes as they are.
#[inline]
pub fn unpack(bytes: isa::Bytes, _tables: &Tables) -> Packed {
    bytes
}

/// The codes of a field times `4^place(field)`.
#[inline]
pub fn codes(packed: &Packed, field: usize) -> isa::Bytes {
    if isa::WIDE { isa::codes_in_place(*packed, field) } else { isa::codes(*packed, field) }
}

/// The place at which a field stays in its byte, by which its sums are unscaled.
pub const fn place(field: usize) -> usize {
    if isa::WIDE { field } else { 0 }
}
