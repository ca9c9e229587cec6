//! Times kernels, and the ways to run them, in this process: the work of a worker.

pub mod comparison;
pub(crate) mod jobs;
pub mod placement;
pub mod sparse;
mod tournament;
pub(crate) mod workload;
