//! The kernels that were generated when this crate was built.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
