//! Autotuner: measures candidate kernels on this host and writes a profile. [`mod@plan`] lists the
//! candidates of a model's jobs, [`worker`] processes verify and time them, watched by
//! [`supervise`] and spoken to in [`protocol`], [`journal`] keeps their results, [`compile`] makes
//! more candidates where there is a compiler, [`mod@choose`] picks, and [`tune()`] does it all.
#![forbid(unsafe_code)]

pub mod check;
pub mod choose;
pub mod cli;
pub mod compile;
mod error;
mod findings;
pub mod journal;
pub mod measure;
mod model;
pub mod plan;
pub mod protocol;
pub mod report;
pub mod stats;
pub mod supervise;
mod timing;
mod tune;
pub mod worker;

pub use error::{Error, Result};
pub use model::ModelInfo;
pub use supervise::Notice;
pub use tune::{Made, Options, Tuned, estimate, tune};
