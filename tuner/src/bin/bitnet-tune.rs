//! Tunes the kernels for this host.
#![forbid(unsafe_code)]
fn main() {}
