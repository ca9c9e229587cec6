//! One small vector vocabulary per ISA, all with the same names, so that a template is written
//! once. Functions are safe where the CPU has the features; only loads and stores are unsafe.
//!
//! Bytes: `Bytes`, `load`, `broadcast4`. Two-bit codes: `codes`, `codes_in_place`. Byte dot
//! products: `Acc`, `acc_zero`, `acc_start`, `acc_word`, `acc_splat`, `dot`, `widen`, and `WIDE`, whether `dot` sums 32 bits
//! wide; `in_turn` keeps the compiler from working ahead. Where bytes are looked up in 64: `Tables`,
//! `spread`, `spread_unmasked`. Where matrices of bytes are multiplied: `interleave`, `dot_2x2`,
//! `i32_pairs`. Where lines are listed: `list_positive`, `list_nonzero`; where they are multiplied,
//! `interleave4` and `i32_sum_groups`.
//! 32-bit lanes: `LANES`, `I32`, `i32_*`. Floats: `F32`, 16 virtual lanes on every ISA, and `f32_*`,
//! each lane rounded as the scalar vocabulary rounds it. Single floats: `mul_add` and `sqrt`, which
//! `core` lacks: only the scalar vocabulary needs `std`.
//!
//! Table lookups work on the 32 rows of a tile at once, whatever the size of a vector. 4-bit
//! indices: `Nibbles`, `nibble`, `Indices`, into tables of 16 words: `Table16`, `lookup16`, with
//! `Signs` apart. 5-bit indices, sign included: `Fields`, `fields_next`, `fields_spare`, into
//! tables of 32 words: `Table32`, `lookup32`. What is found: `I16`, a 16-bit lane per row, `i16_*`;
//! `widen_add` brings the rows in order into 32-bit lanes, `Tile32`. An ISA has either `Signs` or
//! `Fields`; scalar has both.

pub mod scalar;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx2;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avxvnni;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx512;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx512vnni;

#[cfg(target_arch = "x86_64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod avx512vbmi;

#[cfg(target_arch = "aarch64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod neon;

#[cfg(target_arch = "aarch64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod neondot;

#[cfg(target_arch = "aarch64")]
#[expect(clippy::missing_safety_doc, reason = "safe functions; `enable` makes clippy ask")]
pub mod neoni8mm;
