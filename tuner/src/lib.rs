//! Measures candidate kernels on this host and writes a profile: [`plan`] lists the candidates of
//! a model's jobs, [`measure`] holds them against the oracle and times them, [`choose`] picks, and
//! [`tune()`] does it all.
#![forbid(unsafe_code)]

pub mod choose;
pub mod cli;
pub mod compile;
mod error;
pub mod measure;
mod model;
pub mod plan;
mod sampler;
mod stats;
mod tournament;
mod tune;

use bitnet_runtime::kernels::verify;
use bitnet_runtime::random;

pub use error::{Error, Result};
pub use model::ModelInfo;
pub use tune::{Options, Tuned, tune};
