//! Runs ternary language models: GGUF in, tokens out.
pub mod kernels;
