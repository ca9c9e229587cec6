//! Files of models.

pub mod bus_error;
pub mod gguf;
