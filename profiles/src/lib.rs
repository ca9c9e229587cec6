//! The vocabulary shared by the generator, the runtime and the tuner.
#![forbid(unsafe_code)]
