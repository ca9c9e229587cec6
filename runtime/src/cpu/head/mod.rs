//! The `lm_head`: finding the logits that are needed without reading all of it.

pub mod choose;
pub mod screen;
pub mod sketch;
