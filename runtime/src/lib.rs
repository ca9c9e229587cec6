//! Runs ternary language models: GGUF in, tokens out.

pub mod error;
pub mod gguf;
pub mod kernels;
pub mod matmul;
pub mod memory;
pub mod model;
pub mod pack;
pub mod reference;
pub mod threads;

pub use error::{Error, Result};
