//! Runs ternary language models: GGUF in, tokens out.

pub mod arch;
pub mod cpu;
pub mod engine;
pub mod error;
pub mod file;
pub mod measure;
pub mod numerics;
pub mod random;
pub mod text;

pub use error::{Error, Result};
