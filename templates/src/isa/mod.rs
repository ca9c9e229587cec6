//! One small vector vocabulary per ISA, all with the same names, so that a template is written
//! once. Functions are safe where the CPU has the features; only loads and stores are unsafe.
//!
//! Bytes: `Bytes`, `load`, `broadcast4`. Two-bit codes: `codes`, `codes_in_place`. Byte dot
//! products: `Acc`, `acc_zero`, `dot`, `widen`, and `WIDE`, whether `dot` sums 32 bits wide.
//! 32-bit lanes: `LANES`, `I32`, `i32_*`.
//!
//! Table lookups work on the 32 rows of a tile at once, whatever the size of a vector. Indices:
//! `Indices`, taken from `Nibbles` by `nibble` or from the 5-bit `Fields` of words by `field` and
//! `spare_add`. Tables of 16 or 32 16-bit entries: `Table16`, `Table32`, `lookup16`, `lookup32`.
//! What they hold: `I16`, one 16-bit lane per row, `i16_*`, negated by `Signs`; `widen_add` brings
//! the rows in order into 32-bit lanes, `Tile32`. Signs and tables of 32 are alternatives: avx2
//! has the former, avx512 the latter, scalar both.

pub mod scalar;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx2;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx512;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx512vnni;

#[cfg(target_arch = "x86_64")]
pub mod avx512vbmi;
