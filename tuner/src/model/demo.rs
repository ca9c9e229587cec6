//! Small trained model that is part of the program.

/// Its file, inside the crate so that it is packaged with it.
pub(crate) const BYTES: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf"));

/// Its name in errors.
pub(crate) const NAME: &str = "the built-in demo model";
