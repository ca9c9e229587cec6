//! The small trained model that is part of the program.

/// Inside the crate by a link, so that it is packaged with it.
pub(crate) const BYTES: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf"));

/// What errors call it.
pub(crate) const NAME: &str = "the built-in demo model";
