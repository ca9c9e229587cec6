//! Types of tensors: names of all formats, and the sizes of tensors.

use std::fmt;

use super::{FORMATS, Format, Reader};

/// Defines the types and the list of them.
macro_rules! types {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A tensor format, by name; [`TensorType::format`] returns its entry.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "the names are the ones ggml gives them")]
        #[expect(missing_docs, reason = "each variant is the ggml type of that name")]
        pub enum TensorType {
            $($(#[$doc])* $name,)*
            /// A type of that id that nobody here knows: a tensor of it can be listed, not read.
            Unknown(u32),
        }

        impl TensorType {
            /// All that are known.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

types! {
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
    /// Q2_0_G128 with weights of +2 too (Bonsai 2).
    PQ2_0,
    /// TQ1_0 with 128 weights in 28 bytes (Bonsai 2).
    PTQ1_0,
    /// ik_llama.cpp: f16 row scale, then 64 weights in 13 bytes.
    IQ1_BN,
    /// ik_llama.cpp: f32 row scale, then 64 weights in 16 bytes.
    IQ2_BN,
    /// ik_llama.cpp: four rows of IQ2_BN interleaved.
    IQ2_BN_R4,
}

/// Bytes of a tensor as a function of its shape; rows are all dimensions but the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Each row is `extra` bytes followed by blocks of `weights` elements in `bytes` bytes.
    Rows {
        /// Elements of a block.
        weights: u64,
        /// Bytes of a block.
        bytes: u64,
        /// Bytes in front of the blocks.
        extra: u64,
    },
    /// As [`Size::Rows`], of four rows at a time.
    FourRows {
        /// Elements of a block of a row.
        weights: u64,
        /// Bytes of a block of a row.
        bytes: u64,
        /// Bytes in front of a row's blocks.
        extra: u64,
    },
    /// rows x cols / 4 + 32; rows x cols a multiple of 128.
    TwoBitFlat,
    /// bitnet.cpp's TL2 formula: 256 columns at 2 bits, the others at 5/3, padded to 32, plus 32.
    Tl2,
    /// Not known.
    Unknown,
}

/// The format of a type that is not known.
static UNKNOWN: Format = Format {
    ty: TensorType::Unknown(u32::MAX),
    id: u32::MAX,
    name: "unknown",
    size: Size::Unknown,
    reader: Reader::None { ternary: false },
};

/// Ids that ggml once used and has withdrawn. 36 to 38 are back in use by bitnet.cpp.
const RETIRED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (37, "IQ4_NL_4_8"),
];

/// Returns the number of elements of a tensor of `dims`.
///
/// # Errors
/// Fewer than one or more than 2^63: what is allowed, and the dimensions.
pub(crate) fn elements(dims: &[u64]) -> std::result::Result<u64, String> {
    let product = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    match product.filter(|&n| n < 1 << 63) {
        Some(0) => Err(format!("dimensions of at least 1 (not {dims:?})")),
        Some(n) => Ok(n),
        None => Err(overflow(dims)),
    }
}

fn overflow(dims: &[u64]) -> String {
    format!("a size below 2^63 (dimensions {dims:?} overflow)")
}

/// Bytes behind the codes of a tensor with one scale.
const SCALE_BYTES: u64 = 32;

impl Size {
    /// Returns the bytes that hold the scale of the whole tensor, behind its codes.
    #[must_use]
    pub const fn tail_bytes(self) -> u64 {
        match self {
            Self::Rows { .. } | Self::FourRows { .. } | Self::Unknown => 0,
            Self::TwoBitFlat | Self::Tl2 => SCALE_BYTES,
        }
    }

    /// Returns the elements and bytes of the smallest part that can be read alone, if there is one.
    #[must_use]
    pub const fn block(self) -> Option<(u64, u64)> {
        match self {
            Self::Rows { weights, bytes, .. } | Self::FourRows { weights, bytes, .. } => {
                Some((weights, bytes))
            }
            Self::TwoBitFlat => Some((128, 32)),
            Self::Tl2 | Self::Unknown => None,
        }
    }
}

impl TensorType {
    /// Returns the format's entry in the table; that of a type that is not known reads nothing.
    #[must_use]
    pub fn format(self) -> &'static Format {
        if let Self::Unknown(_) = self {
            return &UNKNOWN;
        }
        let own = |format: &&Format| format.ty == self;
        FORMATS.iter().find(own).expect("a test finds a format for every type")
    }

    /// Returns the id of this type in a GGUF file.
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Unknown(id) => id,
            known => known.format().id,
        }
    }

    /// Returns the name ggml prints, such as `q6_K`; `unknown` of a type that is not known.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.format().name
    }

    /// True if every weight is -1, 0 or 1 times a scale.
    #[must_use]
    pub fn is_ternary(self) -> bool {
        self.format().is_ternary()
    }

    /// Returns the bytes of a tensor of `dims` (innermost first), or an error that describes the
    /// shape.
    ///
    /// # Errors
    /// The shape does not divide into blocks of this type, its size does not fit 64 bits, or the type
    /// is not known.
    pub fn byte_size(self, dims: &[u64]) -> std::result::Result<u64, String> {
        let overflow = || overflow(dims);
        let cols = *dims.first().ok_or("1 to 4 dimensions")?;
        let elements = elements(dims)?;
        let rows = elements / cols;
        match self.format().size {
            Size::FourRows { .. } if rows % 4 != 0 => Err(format!(
                "a multiple of 4 rows for {}, of which 4 lie together (not {rows})",
                self.name()
            )),
            Size::Rows { weights, bytes, extra } | Size::FourRows { weights, bytes, extra } => {
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
            Size::TwoBitFlat => {
                if elements % 128 != 0 {
                    return Err(format!(
                        "rows x columns a multiple of 128 for {} (not {elements})",
                        self.name()
                    ));
                }
                Ok(elements / 4 + SCALE_BYTES)
            }
            Size::Tl2 => {
                let wide = cols
                    .checked_sub(256)
                    .ok_or_else(|| format!("rows of at least 256 weights for tl2 (not {cols})"))?;
                let data = wide
                    .checked_mul(rows)
                    .and_then(|n| n.checked_mul(5))
                    .map(|n| n / 24 + 64 * rows)
                    .ok_or_else(overflow)?;
                Ok(data.div_ceil(32) * 32 + SCALE_BYTES)
            }
            Size::Unknown => Err(format!("a type whose size is known (not {self})")),
        }
    }
}

/// Shows the name, or the id where there is none.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Unknown(id) = self else { return f.pad(self.name()) };
        match RETIRED.iter().find(|(retired, _)| retired == id) {
            Some((_, name)) => f.pad(&format!("type {id} ({name}, withdrawn from ggml)")),
            None => f.pad(&format!("type {id}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_format() {
        for &ty in TensorType::ALL {
            let own: Vec<&Format> = FORMATS.iter().filter(|format| format.ty == ty).collect();
            let [format] = own[..] else { panic!("{ty:?} has {} formats", own.len()) };
            assert_eq!((ty.id(), ty.name()), (format.id, format.name));
        }
        assert_eq!(TensorType::ALL.len(), FORMATS.len());
        assert!(FORMATS.iter().all(|format| RETIRED.iter().all(|(id, _)| *id != format.id)));
    }

    #[test]
    fn a_type_that_is_not_known_is_a_number() {
        let [other, retired] = [9999, 4].map(TensorType::Unknown);
        assert_eq!((other.id(), other.to_string()), (9999, "type 9999".into()));
        assert_eq!(retired.to_string(), "type 4 (Q4_2, withdrawn from ggml)");
        assert_eq!(format!("{:6}|{:10}|", TensorType::F32, other), "f32   |type 9999 |");
        assert!(other.format().rows().is_none() && !other.is_ternary());
        assert!(other.byte_size(&[32]).unwrap_err().contains("type 9999"));
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
