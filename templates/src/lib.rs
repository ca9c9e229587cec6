//! The kernels as real, compiled, tested Rust, and their text.
//!
//! A template is a module that opens with `use crate::isa::scalar as isa;` and its constants; here
//! it is compiled for the scalar vocabulary, so editors, lints, tests and Miri see it. The
//! generator splices another vocabulary and other constants into its text ([`TEMPLATES`]).

#![allow(clippy::needless_range_loop, reason = "kernels walk several arrays at one index")]
#![allow(clippy::redundant_closure, reason = "a function with target features is no `Fn`")]

pub mod abi;
pub mod attention;
pub mod blocks;
pub mod columns;
pub mod head_block;
pub mod head_float;
pub mod head_ternary;
pub mod i2_s;
pub mod i2_s_mm;
pub mod isa;
pub mod line_i2_s;
pub mod line_t5;
pub mod quads;
pub mod rows;
pub mod sketch;
pub mod t5;
pub mod t5_lookup;
#[cfg(test)]
mod testing;
pub mod tl1;
pub mod tl2;
pub mod tl2_w;
pub mod trits;
pub mod vector;

/// A source file of this crate: its path below the crate's folder, and its text.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Name of the module.
    pub name: &'static str,
    /// Path from the workspace's root.
    pub path: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! source {
    ($name:literal, $path:literal) => {
        Source { name: $name, path: concat!("templates/src/", $path), text: include_str!($path) }
    };
}

/// The types that cross the call boundary.
pub const ABI: Source = source!("abi", "abi.rs");

/// Parts that some ternary templates share on every ISA, each emitted once where one of them is.
pub const SHARED: &[Source] = &[source!("quads", "quads.rs"), source!("trits", "trits.rs")];

/// Unpacking of a line by the templates `rows` and `columns`, by layout: emitted once for every ISA that
/// has such kernels, as `line_t5__avx512vbmi` and its like.
pub const LINES: &[Source] =
    &[source!("line_i2_s", "line_i2_s.rs"), source!("line_t5", "line_t5.rs")];

/// The vector vocabularies, each after those it builds on.
pub const VOCABULARIES: &[Source] = &[
    source!("scalar", "isa/scalar.rs"),
    source!("avx2", "isa/avx2.rs"),
    source!("avxvnni", "isa/avxvnni.rs"),
    source!("avx512", "isa/avx512.rs"),
    source!("avx512vnni", "isa/avx512vnni.rs"),
    source!("avx512vbmi", "isa/avx512vbmi.rs"),
    source!("neon", "isa/neon.rs"),
    source!("neondot", "isa/neondot.rs"),
    source!("neoni8mm", "isa/neoni8mm.rs"),
];

/// The kernel templates.
pub const TEMPLATES: &[Source] = &[
    source!("i2_s", "i2_s.rs"),
    source!("i2_s_mm", "i2_s_mm.rs"),
    source!("blocks", "blocks.rs"),
    source!("t5", "t5.rs"),
    source!("t5_lookup", "t5_lookup.rs"),
    source!("tl1", "tl1.rs"),
    source!("tl2", "tl2.rs"),
    source!("tl2_w", "tl2_w.rs"),
    source!("head_float", "head_float.rs"),
    source!("head_block", "head_block.rs"),
    source!("head_ternary", "head_ternary.rs"),
    source!("sketch", "sketch.rs"),
    source!("attention", "attention.rs"),
    source!("rows", "rows.rs"),
    source!("columns", "columns.rs"),
];

/// The float operations, emitted once for every ISA that computes floats its own way.
pub const VECTOR: Source = source!("vector", "vector.rs");
