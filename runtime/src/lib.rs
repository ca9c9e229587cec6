//! Runs ternary language models: GGUF in, tokens out.

mod affinity;
pub mod bench;
pub mod cli;
pub mod dummy;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod host;
pub mod in_file;
pub mod kernels;
pub mod lines;
pub mod lookup;
pub mod matmul;
pub mod memory;
pub mod model;
pub mod pack;
pub mod probe;
pub mod random;
pub mod reference;
pub mod sampler;
pub mod sparse;
pub mod threads;
pub mod tokenizer;

pub use error::{Error, Result};
