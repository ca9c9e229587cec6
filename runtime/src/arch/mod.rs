//! What a file says of its model: hyperparameters and the architecture.

pub mod config;
