//! The way through: model, plan, measurements, choices, profile, and what it gains.

mod estimate;
mod jobs;
mod made;
mod outcome;
mod profile;
mod run;

pub use estimate::estimate;
pub use outcome::{Made, Options, Tuned};
pub use run::tune;
