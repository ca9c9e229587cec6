//! A spec in, Rust source out.
#![forbid(unsafe_code)]
