//! Timing of kernels and placements, in the worker's process.

pub(crate) mod comparison;
pub(crate) mod jobs;
mod limits;
pub(crate) mod placement;
pub(crate) mod present;
pub(crate) mod sparse;
mod tournament;
mod verify;
mod workload;
