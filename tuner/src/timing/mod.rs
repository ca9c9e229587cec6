//! Times kernels, and the ways to run them, in this process: the work of a worker.

pub(crate) mod comparison;
pub(crate) mod jobs;
mod limits;
pub(crate) mod placement;
pub(crate) mod present;
pub(crate) mod sparse;
mod tournament;
mod verify;
mod workload;
