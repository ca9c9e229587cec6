//! The `lm_head`: which logits are needed, and how they are found without reading all of it.

pub mod choose;
pub mod screen;
pub mod sketch;
