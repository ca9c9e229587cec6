//! The kernels, and which one serves what.

pub mod builtin;
