//! Measurements of the machine and of models.

pub mod bench;
pub mod probe;
pub mod rehearse;
