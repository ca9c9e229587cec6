//! Files of models.

pub mod gguf;
