//! Runs ternary language models: GGUF in, tokens out.

pub mod error;
pub mod gguf;

pub use error::{Error, Result};
