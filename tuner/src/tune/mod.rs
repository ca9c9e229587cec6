//! Tuning: from a model's jobs through measurements and choices to a profile.

mod estimate;
mod jobs;
mod made;
mod outcome;
mod profile;
mod run;

pub use estimate::estimate;
pub use outcome::{Made, Options, Tuned};
pub use run::tune;
