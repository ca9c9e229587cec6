//! The kernels as real Rust modules, and their text.
