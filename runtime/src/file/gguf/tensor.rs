//! A tensor of the directory, and the type ids that need care.

use crate::formats::TensorType;

/// Ids that ggml once used and has withdrawn. 36 to 38 are back in use by bitnet.cpp.
pub(super) const RETIRED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (37, "IQ4_NL_4_8"),
];

/// Ids whose layout must be decided by size (FORMATS: 36 was IQ4_NL_4_4, 38 IQ4_NL_8_8).
pub(super) const CLASHING: &[u32] = &[36, 38, 39, 42];

/// One tensor of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first: a matrix of `rows` outputs and `cols` inputs has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub ty: TensorType,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of the data, the padding after it not included.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Inputs of a matrix: the innermost dimension.
    #[must_use]
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Outputs of a matrix: the product of all dimensions but the innermost.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{FORMATS, Format};

    #[test]
    fn clashing_ids_are_listed() {
        for Format { id, name, .. } in FORMATS {
            let shared = FORMATS.iter().filter(|format| format.id == *id).count() > 1;
            assert!(!shared || CLASHING.contains(id), "{name}");
            assert!(RETIRED.iter().all(|r| r.0 != *id), "{name}");
        }
    }
}
