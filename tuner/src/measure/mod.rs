//! Measurements: their types, and how they are assembled from the results of single tournaments.
//!
//! A *unit* is one tournament: the candidates of one job, layout and phase, in one repeat. A worker
//! process measures units one by one ([`crate::worker`]), a journal keeps them
//! ([`crate::journal`]), and here they become [`Measurements`], from which [`mod@crate::choose`]
//! chooses.

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
