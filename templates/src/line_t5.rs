//! Unpacking of a line of T5 by the templates `rows` and `columns`: `GatherLayout::T5L64`.

use crate::isa::scalar as isa;
use crate::trits;

/// Codes in a byte.
pub const FIELDS: usize = 5;

/// Table that codes are looked up in.
pub type Tables = isa::Tables;

/// A vector of bytes on the way to its codes.
pub type Packed = [isa::Bytes; 2];

/// Loads the tables.
#[inline]
pub fn tables() -> Tables {
    isa::tables(&trits::TABLES)
}

/// Looks bytes up.
#[inline]
pub fn unpack(bytes: isa::Bytes, tables: &Tables) -> Packed {
    isa::spread(bytes, tables)
}

/// The codes of a field times `4^place(field)`.
#[inline]
pub fn codes(packed: &Packed, field: usize) -> isa::Bytes {
    let (half, place) = trits::place(field);
    isa::codes_in_place(packed[half], place)
}

/// The place at which a field stays in its byte, by which its sums are unscaled.
pub const fn place(field: usize) -> usize {
    trits::place(field).1
}
