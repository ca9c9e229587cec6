//! Tuning: from a model's jobs through measurements and choices to a profile.

mod jobs;
mod made;
mod outcome;
mod profile;
mod run;

pub use outcome::{Made, Options, Tuned};
pub(crate) use profile::profile_choice;
pub use run::tune;
