//! Measures candidate kernels on this host and writes a profile: [`plan`] lists the candidates of
//! a model's jobs, [`verify`] holds them against the oracle, [`measure`] times them, [`choose`]
//! picks, and [`tune()`] does it all.
#![forbid(unsafe_code)]

pub mod choose;
pub mod cli;
mod error;
pub mod measure;
mod model;
pub mod plan;
mod random;
pub mod report;
mod sampler;
mod stats;
mod tournament;
mod tune;
pub mod verify;

pub use error::{Error, Result};
pub use model::ModelInfo;
pub use tune::{Options, Tuned, tune};
