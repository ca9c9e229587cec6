//! Files of models.

pub mod bus_error;
pub mod gguf;
pub mod packed;

use sha2::{Digest, Sha256};

/// Returns a hash as 64 hexadecimal digits.
pub(crate) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
