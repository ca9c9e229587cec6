//! A spec in, Rust source out; no I/O.
//!
//! [`candidates`] lists the tilings that exist, [`emit_kernel`] prints one kernel, and
//! [`emit_library`] all that a build wants and [`emit_cdylib`] all that a tuning run does, with the
//! tables that the runtime reads.
#![forbid(unsafe_code)]

mod emit;
mod error;
mod space;
mod specialise;

pub use emit::{emit_cdylib, emit_kernel, emit_library, fingerprint};
pub use error::Error;
pub use space::{Phase, candidates, grid};
