//! Tensor types (ids, names, byte sizes) and the entries of the tensor directory.

use std::fmt;

/// Storage type of a tensor. `rows` is the product of all dimensions but the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names are the ones ggml gives them")]
#[expect(missing_docs, reason = "each variant is the ggml type of that name")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    /// bitnet.cpp: flat blocks of 128 weights in 32 bytes, then 32 bytes whose first f32 is the scale.
    I2_S,
    /// bitnet.cpp, ARM: 2 bits per weight, then 32 bytes whose first f32 is the scale.
    TL1,
    /// bitnet.cpp, x86: 5/3 bits per weight, then 32 bytes whose first f32 is the scale.
    TL2,
    /// Ternary, 64 weights and an f16 scale in 18 bytes.
    Q2_0,
    /// Ternary, 128 weights and an f16 scale in 34 bytes; shares its id with [`TensorType::Q2_0`].
    Q2_0_G128,
    /// ik_llama.cpp: f16 row scale, then 64 weights in 13 bytes.
    IQ1_BN,
    /// ik_llama.cpp: f32 row scale, then 64 weights in 16 bytes.
    IQ2_BN,
    /// ik_llama.cpp: four rows of IQ2_BN interleaved.
    IQ2_BN_R4,
}

/// Bytes of a tensor as a function of its shape.
#[derive(Clone, Copy)]
pub(super) enum Sizing {
    /// Each row is `extra` bytes followed by blocks of `weights` elements in `bytes` bytes.
    Rows { weights: u64, bytes: u64, extra: u64 },
    /// rows x cols / 4 + 32; rows x cols a multiple of 128.
    TwoBitFlat,
    /// bitnet.cpp's TL2 formula: 256 columns at 2 bits, the others at 5/3, padded to 32, plus 32.
    Tl2,
}

/// (type, ggml id, name as ggml prints it, sizing). An id may occur more than once.
pub(super) const TYPES: &[(TensorType, u32, &str, Sizing)] = {
    use TensorType as T;
    const fn rows(weights: u64, bytes: u64) -> Sizing {
        Sizing::Rows { weights, bytes, extra: 0 }
    }
    const fn scaled(bytes: u64, extra: u64) -> Sizing {
        Sizing::Rows { weights: 64, bytes, extra }
    }
    &[
        (T::F32, 0, "f32", rows(1, 4)),
        (T::F16, 1, "f16", rows(1, 2)),
        (T::Q4_0, 2, "q4_0", rows(32, 18)),
        (T::Q4_1, 3, "q4_1", rows(32, 20)),
        (T::Q5_0, 6, "q5_0", rows(32, 22)),
        (T::Q5_1, 7, "q5_1", rows(32, 24)),
        (T::Q8_0, 8, "q8_0", rows(32, 34)),
        (T::Q8_1, 9, "q8_1", rows(32, 36)),
        (T::Q2_K, 10, "q2_K", rows(256, 84)),
        (T::Q3_K, 11, "q3_K", rows(256, 110)),
        (T::Q4_K, 12, "q4_K", rows(256, 144)),
        (T::Q5_K, 13, "q5_K", rows(256, 176)),
        (T::Q6_K, 14, "q6_K", rows(256, 210)),
        (T::Q8_K, 15, "q8_K", rows(256, 292)),
        (T::IQ2_XXS, 16, "iq2_xxs", rows(256, 66)),
        (T::IQ2_XS, 17, "iq2_xs", rows(256, 74)),
        (T::IQ3_XXS, 18, "iq3_xxs", rows(256, 98)),
        (T::IQ1_S, 19, "iq1_s", rows(256, 50)),
        (T::IQ4_NL, 20, "iq4_nl", rows(32, 18)),
        (T::IQ3_S, 21, "iq3_s", rows(256, 110)),
        (T::IQ2_S, 22, "iq2_s", rows(256, 82)),
        (T::IQ4_XS, 23, "iq4_xs", rows(256, 136)),
        (T::I8, 24, "i8", rows(1, 1)),
        (T::I16, 25, "i16", rows(1, 2)),
        (T::I32, 26, "i32", rows(1, 4)),
        (T::I64, 27, "i64", rows(1, 8)),
        (T::F64, 28, "f64", rows(1, 8)),
        (T::IQ1_M, 29, "iq1_m", rows(256, 56)),
        (T::BF16, 30, "bf16", rows(1, 2)),
        (T::TQ1_0, 34, "tq1_0", rows(256, 54)),
        (T::TQ2_0, 35, "tq2_0", rows(256, 66)),
        (T::I2_S, 36, "i2_s", Sizing::TwoBitFlat),
        (T::TL1, 38, "tl1", Sizing::TwoBitFlat),
        (T::TL2, 39, "tl2", Sizing::Tl2),
        (T::MXFP4, 39, "mxfp4", rows(32, 17)),
        (T::Q2_0, 42, "q2_0", rows(64, 18)),
        (T::Q2_0_G128, 42, "q2_0 (128 weights a block)", rows(128, 34)),
        (T::IQ1_BN, 134, "iq1_bn", scaled(13, 2)),
        (T::IQ2_BN, 135, "iq2_bn", scaled(16, 4)),
        (T::IQ2_BN_R4, 335, "iq2_bn_r4", scaled(16, 4)),
    ]
};

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

impl TensorType {
    fn row(self) -> &'static (TensorType, u32, &'static str, Sizing) {
        // Every variant has its row: `every_type_has_a_row` holds it.
        TYPES.iter().find(|t| t.0 == self).unwrap_or(&TYPES[0])
    }

    /// The id of this type in a GGUF file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The name ggml prints, such as `q6_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// True if every weight is -1, 0 or 1 times a scale.
    #[must_use]
    pub fn is_ternary(self) -> bool {
        use TensorType as T;
        matches!(
            self,
            T::I2_S
                | T::TL1
                | T::TL2
                | T::TQ1_0
                | T::TQ2_0
                | T::Q2_0
                | T::Q2_0_G128
                | T::IQ1_BN
                | T::IQ2_BN
                | T::IQ2_BN_R4
        )
    }

    /// Bytes of a tensor of `dims` (innermost first), or what is wrong with the shape.
    ///
    /// # Errors
    /// The shape does not divide into blocks of this type, or its size does not fit 64 bits.
    pub fn byte_size(self, dims: &[u64]) -> std::result::Result<u64, String> {
        let overflow = || format!("a size below 2^63 (dimensions {dims:?} overflow)");
        let cols = *dims.first().ok_or("1 to 4 dimensions")?;
        let elements = dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| n < 1 << 63)
            .ok_or_else(overflow)?;
        if elements == 0 {
            return Err(format!("dimensions of at least 1 (not {dims:?})"));
        }
        let rows = elements / cols;
        match self.row().3 {
            Sizing::Rows { weights, bytes, extra } => {
                if cols % weights != 0 {
                    return Err(format!(
                        "rows of a multiple of {weights} weights for {} (not {cols})",
                        self.name()
                    ));
                }
                (cols / weights)
                    .checked_mul(bytes)
                    .and_then(|n| n.checked_add(extra))
                    .and_then(|n| n.checked_mul(rows))
                    .ok_or_else(overflow)
            }
            Sizing::TwoBitFlat => {
                if elements % 128 != 0 {
                    return Err(format!(
                        "rows x columns a multiple of 128 for {} (not {elements})",
                        self.name()
                    ));
                }
                Ok(elements / 4 + 32)
            }
            Sizing::Tl2 => {
                let wide = cols
                    .checked_sub(256)
                    .ok_or_else(|| format!("rows of at least 256 weights for tl2 (not {cols})"))?;
                let data = wide
                    .checked_mul(rows)
                    .and_then(|n| n.checked_mul(5))
                    .map(|n| n / 24 + 64 * rows)
                    .ok_or_else(overflow)?;
                Ok(data.div_ceil(32) * 32 + 32)
            }
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first: a matrix of `rows` outputs and `cols` inputs has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// Storage type of the elements.
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

    #[test]
    fn every_type_has_a_row_and_clashing_ids_are_listed() {
        for (ty, id, name, _) in TYPES {
            assert_eq!((ty.id(), ty.name()), (*id, *name));
            let shared = TYPES.iter().filter(|t| t.1 == *id).count() > 1;
            assert!(!shared || CLASHING.contains(id), "{name}");
            assert!(RETIRED.iter().all(|r| r.0 != *id), "{name}");
        }
    }

    #[test]
    fn byte_sizes_follow_the_formats() {
        use TensorType as T;
        let cases = [
            (T::F32, &[7u64, 3][..], 84),
            (T::F16, &[7], 14),
            (T::Q8_0, &[64, 2], 136),
            (T::Q4_0, &[32], 18),
            (T::Q6_K, &[512, 2], 840),
            // b1_58-3B down_proj: K = 8640 is 67.5 blocks of 128.
            (T::I2_S, &[8640, 3200], 8640 * 3200 / 4 + 32),
            (T::I2_S, &[1, 128], 64),
            (T::TL2, &[2560, 2560], 2304 * 2560 * 5 / 24 + 64 * 2560 + 32),
            (T::IQ1_BN, &[128, 2], 56),
            (T::IQ2_BN, &[128, 2], 72),
        ];
        for (ty, dims, bytes) in cases {
            assert_eq!(ty.byte_size(dims), Ok(bytes), "{ty} {dims:?}");
        }
        for (ty, dims) in [
            (T::Q6_K, &[384u64][..]),
            (T::I2_S, &[100, 1]),
            (T::TL2, &[128, 128]),
            (T::F32, &[u64::MAX / 2, 2]),
            (T::F64, &[1 << 61, 1]),
            (T::F32, &[]),
            (T::F32, &[4, 0]),
        ] {
            assert!(ty.byte_size(dims).is_err(), "{ty} {dims:?}");
        }
    }
}
