//! From a prompt to a text.

pub mod generate;
pub mod lookup;
pub mod sampler;
