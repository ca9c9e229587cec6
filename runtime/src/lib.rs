//! Runs ternary language models: GGUF in, tokens out.

pub mod error;
pub mod kernels;
pub mod model;
pub mod threads;

pub use error::{Error, Result};
