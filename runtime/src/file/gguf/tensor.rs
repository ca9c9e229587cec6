//! A tensor of the directory, and the type ids that need care.

use crate::formats::TensorType;

/// Ids whose layout must be decided by size (FORMATS: 36 was IQ4_NL_4_4, 38 IQ4_NL_8_8).
pub(super) const CLASHING: &[u32] = &[36, 38, 39, 42];

/// One tensor of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first: a matrix of `rows` outputs and `cols` inputs has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// Format of the elements.
    pub ty: TensorType,
    /// Number of the file that holds it, from 0, where a model is split into several.
    pub part: usize,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of the data, the padding after it not included; of a type that is not known, all up to
    /// the next tensor.
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
        }
    }
}
