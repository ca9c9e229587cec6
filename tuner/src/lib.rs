//! Measures, chooses, writes a profile.
#![forbid(unsafe_code)]

pub mod choose;
mod error;
pub mod measure;
pub mod plan;
mod random;
mod sampler;
mod stats;
mod tournament;
pub mod verify;

pub use error::{Error, Result};
