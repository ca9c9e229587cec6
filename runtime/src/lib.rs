//! Runs ternary language models: GGUF in, tokens out.

pub mod error;
pub mod gguf;
pub mod sampler;
pub mod tokenizer;

pub use error::{Error, Result};
