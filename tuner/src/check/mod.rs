//! Check of a profile: times its picks again, against the runner-up and the untuned default.
//!
//! Timed are the kernels that `bitnet-run` would call here, found by the same
//! [`Selection`](bitnet_runtime::cpu::kernels::Selection). A pick *lags* if all of the 95 %
//! interval of its time over a rival's lies above 1.02; the tuner itself gives half of that away
//! for a simpler tile. Among some twenty comparisons one fails by chance, and pages lie elsewhere
//! in another process: so a new worker times again what lags, and it has to lag twice.
//!
//! A pick is compared with the runner-up of its own layout. With a default of another layout both
//! kernels of the layout are compared together, weighed by the profile's objective, as they were
//! chosen. So is attention, which has one kernel for both phases.
//!
//! A kernel that uses activation sparsity is compared with dense decode, at the densities up to
//! which the profile has it serve.

mod judge;
mod prepare;
mod run;
mod verdict;

pub use run::{CheckOptions, check};
pub use verdict::{Checked, PhaseCheck, Rival, RivalKind, RoleCheck, Skipped, SparseCheck};
