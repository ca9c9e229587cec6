//! The way through: model, plan, measurements, choices, profile, and what it gains.

mod jobs;
mod made;
mod outcome;
mod profile;
mod run;

pub use outcome::{Made, Options, Tuned};
pub(crate) use profile::profile_choice;
pub use run::tune;
