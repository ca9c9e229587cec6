//! What was measured: the types, and how the results of a run's units come together.
//!
//! A *unit* is one tournament: the candidates of one job, layout and phase, in one repeat. Units are
//! measured one by one in a child process ([`crate::worker`]), kept in a journal
//! ([`crate::journal`]), and assembled here into [`Measurements`], which [`mod@crate::choose`]
//! chooses from.

mod comparison;
pub(crate) mod lengths;
mod placement;
mod record;
mod unit;

pub use comparison::{Comparison, Speed};
pub use placement::{PhaseTiming, PlacementTiming};
pub use record::{
    Excluded, JobMeasurements, LayoutMeasurements, Limits, Measurements, SparseMeasurements,
    SparseTiming, Timing, Why,
};
pub(crate) use record::{PHASES, phase_name, weights};
pub(crate) use unit::joined;
pub use unit::{SparseUnit, Unit, UnitKey};
