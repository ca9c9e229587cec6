//! Runs ternary language models: GGUF in, tokens out.

pub mod error;
pub mod gguf;
pub mod model;
pub mod reference;
pub mod threads;

pub use error::{Error, Result};
