//! The model: configuration, weights, KV cache and the forward pass.

pub mod config;
pub mod numerics;
pub mod rope;
