/// Coding of ternary weights. The file holds I2_S; the others are made from it at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// 2-bit codes 0, 1, 2 for -1, 0, +1, multiplied.
    I2S,
    /// 4-bit index of a pair of weights (9 values), looked up in a table of the activations.
    Tl1,
    /// 5-bit index of three weights (27 values: magnitude and sign), looked up.
    Tl2,
    /// Byte of five weights (243 values), from which codes as those of I2_S are looked up, and
    /// multiplied.
    T5,
}

named!(Format, "format", { I2S => "i2_s", Tl1 => "tl1", Tl2 => "tl2", T5 => "t5" });

impl Format {
    /// True if its kernels unpack weights and multiply; the others look sums up in tables.
    pub const fn multiplies(self) -> bool {
        matches!(self, Self::I2S | Self::T5)
    }
}

/// Arrangement of a matrix' weights in memory. A matrix is cut into tiles of [`Layout::tile_rows`]
/// rows; a tile is a run of units of [`Layout::unit_cols`] columns, so a kernel that owns some
/// tiles reads one sequential stream. Rows and columns that do not fill a tile or a unit are
/// padded with weights of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// I2_S, 16 rows. Unit of 16 columns, 64 bytes: byte `4r + b` holds row `r`, columns
    /// `b, 4+b, 8+b, 12+b` in bits 1:0, 3:2, 5:4, 7:6.
    I2sT16,
    /// As [`Layout::I2sT16`] with 32 rows: a unit is 128 bytes.
    I2sT32,
    /// As [`Layout::I2sT16`] with 64 rows: a unit is 256 bytes.
    I2sT64,
    /// TL1, 32 rows. Unit of 4 columns, 32 bytes: byte `r` holds row `r`, the index
    /// `3a + b + 4` of columns 0, 1 in the low nibble and of columns 2, 3 in the high one.
    Tl1T32,
    /// TL2, 32 rows. Unit of 24 columns, 160 bytes: four groups of 32 bytes, byte `r` of group
    /// `g` holding the magnitude indices of the triples `2g` (low nibble) and `2g+1` (high) of
    /// row `r`; then 32 bytes of signs, bit `t` of byte `r` being set where triple `t` of row `r`
    /// is negative.
    Tl2T32,
    /// TL2 as 5-bit fields, 32 rows. Unit of 48 columns, 320 bytes: five groups of 32 16-bit
    /// words, word `r` of group `g` holding the fields (sign in bit 4, magnitude index below) of
    /// the triples `3g, 3g+1, 3g+2` of row `r` in bits 4:0, 9:5, 14:10; bit 15 of the words of
    /// groups 0 to 4 is bit 4 to 0 of the field of triple 15.
    Tl2W32,
    /// T5, 32 rows. Unit of 20 columns, 128 bytes: byte `4r + b` holds row `r`, columns `b, 4+b,
    /// 8+b, 12+b, 16+b`. With the codes 0, 1, 2 of the first four as the digits, from the lowest,
    /// of a ternary number `n`, and `c` the code of the last, the byte is `64c + n` where `n` is
    /// less than 64, else `192 + 17c + n - 64`.
    T5T32,
}

named!(Layout, "layout", {
    I2sT16 => "i2_s_t16",
    I2sT32 => "i2_s_t32",
    I2sT64 => "i2_s_t64",
    Tl1T32 => "tl1_t32",
    Tl2T32 => "tl2_t32",
    Tl2W32 => "tl2_w32",
    T5T32 => "t5_t32",
});

impl Layout {
    /// Every matrix is padded to a multiple of this many rows, so that all tile heights divide it.
    pub const ROW_PADDING: usize = 64;

    /// The code the layout packs.
    pub const fn format(self) -> Format {
        match self {
            Self::I2sT16 | Self::I2sT32 | Self::I2sT64 => Format::I2S,
            Self::Tl1T32 => Format::Tl1,
            Self::Tl2T32 | Self::Tl2W32 => Format::Tl2,
            Self::T5T32 => Format::T5,
        }
    }

    /// Rows in a tile.
    pub const fn tile_rows(self) -> usize {
        match self {
            Self::I2sT16 => 16,
            Self::I2sT32 | Self::Tl1T32 | Self::Tl2T32 | Self::Tl2W32 | Self::T5T32 => 32,
            Self::I2sT64 => 64,
        }
    }

    /// Columns in a unit.
    pub const fn unit_cols(self) -> usize {
        match self {
            Self::I2sT16 | Self::I2sT32 | Self::I2sT64 => 16,
            Self::Tl1T32 => 4,
            Self::Tl2T32 => 24,
            Self::Tl2W32 => 48,
            Self::T5T32 => 20,
        }
    }

    /// Bytes of a unit.
    pub const fn unit_bytes(self) -> usize {
        match self {
            Self::I2sT16 => 64,
            Self::I2sT32 => 128,
            Self::I2sT64 => 256,
            Self::Tl1T32 => 32,
            Self::Tl2T32 => 160,
            Self::Tl2W32 => 320,
            Self::T5T32 => 128,
        }
    }

    /// Bytes of one tile of a matrix with `cols` columns.
    pub const fn tile_bytes(self, cols: usize) -> usize {
        cols.div_ceil(self.unit_cols()) * self.unit_bytes()
    }

    /// Bytes of a whole matrix, its rows padded to [`Layout::ROW_PADDING`].
    pub const fn matrix_bytes(self, shape: crate::Shape) -> usize {
        let rows = shape.rows.next_multiple_of(Self::ROW_PADDING);
        rows / self.tile_rows() * self.tile_bytes(shape.cols)
    }
}

/// Arrangement in memory of a matrix whose *lines* decode may leave out: its rows, or its columns. A line
/// is a run of units of [`GatherLayout::UNIT_BYTES`], of whole cache lines so, and lines follow each
/// other. One that does not fill its last unit is padded with weights of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatherLayout {
    /// I2_S. Unit of 256 weights: byte `i` holds weights `i, 64+i, 128+i, 192+i` in bits 1:0, 3:2,
    /// 5:4, 7:6.
    I2sL64,
    /// T5. Unit of 320 weights: byte `i` holds weights `i, 64+i, 128+i, 192+i, 256+i` as that of
    /// [`Layout::T5T32`] holds its columns.
    T5L64,
}

named!(GatherLayout, "line layout", { I2sL64 => "i2_s_l64", T5L64 => "t5_l64" });

impl GatherLayout {
    /// Bytes of a unit: vectors of any ISA divide it.
    pub const UNIT_BYTES: usize = 64;

    /// The code the layout packs.
    pub const fn format(self) -> Format {
        match self {
            Self::I2sL64 => Format::I2S,
            Self::T5L64 => Format::T5,
        }
    }

    /// Weights in a byte.
    pub const fn fields(self) -> usize {
        match self {
            Self::I2sL64 => 4,
            Self::T5L64 => 5,
        }
    }

    /// Weights in a unit.
    pub const fn unit_weights(self) -> usize {
        self.fields() * Self::UNIT_BYTES
    }

    /// Units of a line of so many weights.
    pub const fn units(self, weights: usize) -> usize {
        weights.div_ceil(self.unit_weights())
    }

    /// Bytes of a line of so many weights.
    pub const fn line_bytes(self, weights: usize) -> usize {
        self.units(weights) * Self::UNIT_BYTES
    }
}

/// Arrangement in memory of a ternary matrix whose blocks of columns have a scale each. A matrix is cut
/// into tiles of [`BlockLayout::tile_rows`] rows, padded with zeros, and a tile is a run of blocks of
/// [`BlockLayout::width`] columns, of which a matrix has whole ones. A block is units of 16 columns, then
/// the scales of its rows as f16: byte `4r + b` of a unit holds row `r`, columns `b, 4+b, 8+b, 12+b` in
/// bits 1:0, 3:2, 5:4, 7:6, codes 0, 1, 2, 3 for weights of -1, 0, +1, +2.
///
/// Tiles are so high that no vector of codes crosses a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockLayout {
    /// 64 columns, 16 rows: 288 bytes.
    B64T16,
    /// 128 columns, 16 rows: 544 bytes.
    B128T16,
    /// 256 columns, 16 rows: 1056 bytes.
    B256T16,
    /// 64 columns, 32 rows: 576 bytes.
    B64T32,
    /// 128 columns, 32 rows: 1088 bytes.
    B128T32,
    /// 256 columns, 32 rows: 2112 bytes.
    B256T32,
}

named!(BlockLayout, "block layout", {
    B64T16 => "blocks_64_t16",
    B128T16 => "blocks_128_t16",
    B256T16 => "blocks_256_t16",
    B64T32 => "blocks_64_t32",
    B128T32 => "blocks_128_t32",
    B256T32 => "blocks_256_t32",
});

impl BlockLayout {
    /// Columns of a block.
    pub const fn width(self) -> usize {
        match self {
            Self::B64T16 | Self::B64T32 => 64,
            Self::B128T16 | Self::B128T32 => 128,
            Self::B256T16 | Self::B256T32 => 256,
        }
    }

    /// Rows in a tile.
    pub const fn tile_rows(self) -> usize {
        match self {
            Self::B64T16 | Self::B128T16 | Self::B256T16 => 16,
            Self::B64T32 | Self::B128T32 | Self::B256T32 => 32,
        }
    }

    /// Bytes of the codes of a block of a tile.
    pub const fn codes_bytes(self) -> usize {
        self.width() / 4 * self.tile_rows()
    }

    /// Bytes of a block of a tile, with its scales.
    pub const fn block_bytes(self) -> usize {
        self.codes_bytes() + 2 * self.tile_rows()
    }

    /// Bytes of one tile of a matrix with `cols` columns, whole blocks.
    pub const fn tile_bytes(self, cols: usize) -> usize {
        cols / self.width() * self.block_bytes()
    }

    /// Bytes of a whole matrix.
    pub const fn matrix_bytes(self, shape: crate::Shape) -> usize {
        shape.rows.div_ceil(self.tile_rows()) * self.tile_bytes(shape.cols)
    }
}

/// Packing of the matrices of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Packing {
    /// One scale for each matrix.
    Ternary(Layout),
    /// A scale for each block of columns.
    Blocks(BlockLayout),
}

impl Packing {
    /// The name of the layout.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ternary(layout) => layout.name(),
            Self::Blocks(layout) => layout.name(),
        }
    }

    /// Bytes of a whole matrix.
    pub const fn matrix_bytes(self, shape: crate::Shape) -> usize {
        match self {
            Self::Ternary(layout) => layout.matrix_bytes(shape),
            Self::Blocks(layout) => layout.matrix_bytes(shape),
        }
    }

    /// True if kernels multiply codes with activations, rather than look their products up.
    pub const fn multiplies(self) -> bool {
        match self {
            Self::Ternary(layout) => layout.format().multiplies(),
            Self::Blocks(_) => true,
        }
    }
}

impl std::fmt::Display for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Packing {
    type Err = crate::UnknownName;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Ok(layout) = s.parse() {
            return Ok(Self::Blocks(layout));
        }
        s.parse().map(Self::Ternary)
    }
}

impl serde::Serialize for Packing {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Packing {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// Storage type of the rows of the embedding and the lm_head: the file's own blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeadFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
    /// 32 weights: f16 scale, 32 int8.
    Q8_0,
    /// 256 weights: 6-bit codes in two sketch, 16 int8 sub-scales, f16 scale.
    Q6K,
    /// 32 weights: f16 scale, 32 4-bit codes.
    Q4_0,
    /// 32 weights: f16 scale, f16 minimum, 32 4-bit codes.
    Q4_1,
    /// 32 weights: f16 scale, 32 fifth bits, 32 4-bit codes.
    Q5_0,
    /// 32 weights: f16 scale, f16 minimum, 32 fifth bits, 32 4-bit codes.
    Q5_1,
    /// 256 weights: 256 third bits, 256 2-bit codes, 16 6-bit sub-scales, f16 scale.
    Q3K,
    /// 256 weights: f16 scale, f16 scale of minima, 8 6-bit sub-scales and minima, 256 4-bit codes.
    Q4K,
    /// 256 weights: as [`HeadFormat::Q4K`], with 256 fifth bits before the codes.
    Q5K,
    /// 256 weights: 2-bit codes of ternary weights, f16 scale.
    Tq2_0,
    /// 128 weights: f16 scales of the first 64 and of the others, then 32 bytes of 2-bit codes 0 to 3 for -1
    /// to +2, where byte `m` holds weight `m + 32 l` in bits `2l + 1 : 2l`. No file has it: ternary blocks
    /// in another order are brought into it.
    T2,
    /// 128 weights: 2-bit codes of ternary weights; one f32 scale for the tensor.
    I2S,
}

named!(HeadFormat, "head format", {
    F32 => "f32",
    F16 => "f16",
    Bf16 => "bf16",
    Q8_0 => "q8_0",
    Q6K => "q6_k",
    Q4_0 => "q4_0",
    Q4_1 => "q4_1",
    Q5_0 => "q5_0",
    Q5_1 => "q5_1",
    Q3K => "q3_k",
    Q4K => "q4_k",
    Q5K => "q5_k",
    Tq2_0 => "tq2_0",
    T2 => "t2",
    I2S => "i2_s",
});

impl HeadFormat {
    /// Weights in a block; a row holds whole blocks.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::T2 | Self::I2S => 128,
            Self::Q6K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Tq2_0 => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q6K => 210,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Tq2_0 => 66,
            Self::T2 => 36,
            Self::I2S => 32,
        }
    }

    /// Bytes of a row of `cols` weights.
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_weights() * self.block_bytes()
    }
}

/// A low-bit copy of the lm_head, which is scanned for the rows that may hold the largest logits.
///
/// Tiles of [`SketchFormat::TILE_ROWS`] rows, each a run of blocks of [`SketchFormat::BLOCK_COLS`]
/// columns, padded with any codes. A block is 4 groups of 64 bytes, where byte `4r + b` of group
/// `g` holds row `r`, the low 4 bits of the codes of columns `8g + b` (low nibble) and `8g + 4 + b`;
/// with 5 bits 64 bytes follow where bit `s` of byte `4r + b` is bit 4 of the code of column
/// `4s + b`; last come 16 bytes, the scales of the rows. A code `c` of `n` bits stands for
/// `c - (2^n - 1) / 2`, times the block's scale and a scale of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SketchFormat {
    /// 4-bit codes.
    P4,
    /// 5-bit codes.
    P5,
}

named!(SketchFormat, "sketch format", { P4 => "sketch_4", P5 => "sketch_5" });

impl SketchFormat {
    /// Rows in a tile.
    pub const TILE_ROWS: usize = 16;
    /// Columns in a block.
    pub const BLOCK_COLS: usize = 32;

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::P4 => 4,
            Self::P5 => 5,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        Self::TILE_ROWS * (Self::BLOCK_COLS * self.bits() / 8 + 1)
    }

    /// Bytes of a tile of `cols` columns.
    pub const fn tile_bytes(self, cols: usize) -> usize {
        cols.div_ceil(Self::BLOCK_COLS) * self.block_bytes()
    }
}
