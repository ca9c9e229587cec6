//! The model: configuration, weights, KV cache and the forward pass.

pub mod numerics;
