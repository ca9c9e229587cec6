//! Times a profile's picks again, against the runner-up and the untuned default: does the profile
//! still hold on this host?
//!
//! What is timed is what `bitnet-run` would call here, found by the same [`Selection`]: the pick,
//! or what takes its place where it is not present. It *lags* where all of the 95 % interval of its
//! time over a rival's lies above 1.02: of that the tuner itself gives half away for a simpler tile,
//! and the rest is not worth tuning again. Some twenty comparisons are made, of which one would fail by chance, and
//! in another process pages lie elsewhere: so what lags is timed once more by a new worker, and has
//! to lag again.
//!
//! A pick is held against the runner-up of its own layout. Against a default of another layout the
//! layout's two kernels are held together, as they were chosen: weighed by the profile's objective.
//! So is attention, which has one kernel for both phases.
//!
//! A kernel that skips what meets a zero is held against reading all, at those shares of lines needed up
//! to which the profile has it serve.

mod judge;
mod prepare;
mod run;
mod verdict;

pub use run::{Options, check};
pub use verdict::{Checked, PhaseCheck, Rival, RivalKind, RoleCheck, Skipped, SparseCheck};
