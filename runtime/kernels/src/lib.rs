//! The kernels that were generated when this crate was built.
#![allow(clippy::all, dead_code, non_snake_case, reason = "generated, and checked as templates")]

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The text of this module, for the test that another build would emit the same.
#[doc(hidden)]
pub const SOURCE: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.rs"));
