//! AVX-512 with VNNI, VBMI and VBMI2.

pub use super::avx512vnni::*;
