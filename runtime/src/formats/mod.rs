//! Tensor formats of model files: the layout of weights in the bytes of a tensor.
//!
//! [`FORMATS`] has one row for each. A format that can be run is a value in a file of its own,
//! which holds the functions that read its weights: as rows of floats ([`Rows`]: an embedding, a
//! head, a norm), and ternary ones as codes with scales too ([`Ternary`]: a matrix). Of the others only
//! the size is known, so that tensors can be placed in a file, listed, and refused by name.
//!
//! Kernels read only heads in these formats: ternary matrices are packed from [`Codes`] to a layout
//! of the kernels ([`cpu::packing`](crate::cpu::packing)) when a model is loaded.

mod blocks;
mod float;
pub mod i2_s;
mod iq_bn;
mod one_scale;
mod parts;
mod q2_0;
mod q3_k;
pub(crate) mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod scales;
pub(crate) mod t2;
mod tiles;
mod tl1;
mod tl2;
mod tq1_0;
mod tq2_0;
mod types;

use std::fmt;

use bitnet_profiles::{HeadFormat, Shape};
use half::f16;

use crate::error::Result;
use crate::file::gguf::{Gguf, TensorInfo};

pub(crate) use blocks::{Seen, ZERO};
pub use scales::Scales;
pub use tiles::{KEY as TILES_KEY, Regions, Tiled, Tiles, describe as describe_tiles, preset_of};
pub(crate) use types::elements;
pub use types::{Size, TensorType};

/// All formats known to the reader of files. An id may occur more than once: some were given to
/// different formats by different projects.
pub const FORMATS: &[Format] = {
    use TensorType as T;
    const fn rows(weights: u64, bytes: u64) -> Size {
        Size::Rows { weights, bytes, extra: 0 }
    }
    const fn unread(ty: T, id: u32, name: &'static str, size: Size) -> Format {
        Format { ty, id, name, size, reader: Reader::None { ternary: false } }
    }
    &[
        float::F32,
        float::F16,
        float::BF16,
        q8_0::FORMAT,
        q6_k::FORMAT,
        q4_0::FORMAT,
        q4_1::FORMAT,
        q5_0::FORMAT,
        q5_1::FORMAT,
        q3_k::FORMAT,
        q4_k::FORMAT,
        q5_k::FORMAT,
        i2_s::FORMAT,
        tq2_0::FORMAT,
        tq1_0::FORMAT,
        tl1::FORMAT,
        tl2::FORMAT,
        q2_0::FORMAT,
        q2_0::G128,
        q2_0::PQ2_0,
        tq1_0::PTQ1_0,
        iq_bn::IQ1_BN,
        iq_bn::IQ2_BN,
        iq_bn::IQ2_BN_R4,
        unread(T::Q8_1, 9, "q8_1", rows(32, 36)),
        unread(T::Q2_K, 10, "q2_K", rows(256, 84)),
        unread(T::Q8_K, 15, "q8_K", rows(256, 292)),
        unread(T::IQ2_XXS, 16, "iq2_xxs", rows(256, 66)),
        unread(T::IQ2_XS, 17, "iq2_xs", rows(256, 74)),
        unread(T::IQ3_XXS, 18, "iq3_xxs", rows(256, 98)),
        unread(T::IQ1_S, 19, "iq1_s", rows(256, 50)),
        unread(T::IQ4_NL, 20, "iq4_nl", rows(32, 18)),
        unread(T::IQ3_S, 21, "iq3_s", rows(256, 110)),
        unread(T::IQ2_S, 22, "iq2_s", rows(256, 82)),
        unread(T::IQ4_XS, 23, "iq4_xs", rows(256, 136)),
        unread(T::I8, 24, "i8", rows(1, 1)),
        unread(T::I16, 25, "i16", rows(1, 2)),
        unread(T::I32, 26, "i32", rows(1, 4)),
        unread(T::I64, 27, "i64", rows(1, 8)),
        unread(T::F64, 28, "f64", rows(1, 8)),
        unread(T::IQ1_M, 29, "iq1_m", rows(256, 56)),
        unread(T::MXFP4, 39, "mxfp4", rows(32, 17)),
    ]
};

/// A tensor format.
#[derive(Debug)]
pub struct Format {
    /// The type of a tensor in this format.
    pub ty: TensorType,
    /// Its id in a GGUF file.
    pub id: u32,
    /// Its name as ggml prints it, such as `q6_K`.
    pub name: &'static str,
    /// Size of a tensor in bytes, by its shape.
    pub size: Size,
    /// Way of reading its weights.
    pub reader: Reader,
}

/// Way of reading the weights of a format.
#[derive(Debug)]
pub enum Reader {
    /// None: a model that needs such a tensor is refused.
    None {
        /// True if its weights are ternary.
        ternary: bool,
    },
    /// Reads rows of floats.
    Rows(Rows),
    /// Reads ternary codes: of a matrix.
    Codes(Ternary),
    /// Reads ternary codes, and rows: of a matrix, and of an embedding or a head.
    Both(Ternary, Rows),
}

/// Rows of floats, or of blocks of integers with scales. `out`, `x` and `values` are `[cols]`,
/// `row` holds the bytes of one row.
#[derive(Debug)]
pub struct Rows {
    /// Name of the format for the kernels of the head.
    pub head: HeadFormat,
    /// Reads a row: `dequantise(row, out)`.
    pub dequantise: fn(&[u8], &mut [f32]),
    /// Computes a logit by its definition, the product of a row and the activations: `dot(x, row)`.
    /// Kernels equal it bit for bit.
    pub dot: fn(&[f32], &[u8]) -> f32,
    /// Appends a row of values rounded to the nearest that the format has: `quantise(values,
    /// bytes)`.
    pub quantise: fn(&[f32], &mut Vec<u8>),
    /// Computes the norm of the minima that the weights of a row are counted from, where they are:
    /// the sums of a product are as much larger than those of its weights.
    pub minima: Option<fn(&[u8]) -> f64>,
}

/// Ternary matrices: codes 0, 1, 2 for weights of -1, 0, +1 times a scale; some formats have code 3 for
/// +2.
#[derive(Debug)]
pub struct Ternary {
    /// Reads the scales of a tensor, unchanged.
    pub(crate) scales: fn(Codes<'_>) -> Scales,
    /// Reads the codes of columns `first..first + out.len()` of a row, one per byte: `read(codes,
    /// row, first, out)`.
    pub(crate) read: fn(Codes<'_>, usize, usize, &mut [u8]) -> Seen,
    /// Order of the weights, and the way of writing them.
    pub form: Form,
    /// True if code 3 is a weight, +2 times the scale.
    pub(crate) twos: bool,
}

impl Ternary {
    /// Returns the function that appends whole blocks of codes, of a format of blocks: see
    /// [`Form::Blocks`].
    #[must_use]
    pub fn encode(&self) -> Option<Encode> {
        match self.form {
            Form::Blocks { encode, .. } => Some(encode),
            Form::Rows | Form::Tiles(_) => None,
        }
    }
}

/// Appends codes, one per byte, in the form of a file: `encode(codes, scale, bytes)`.
pub type Encode = fn(&[u8], f32, &mut Vec<u8>);

/// Order of the weights of a ternary matrix.
#[derive(Debug)]
pub enum Form {
    /// Blocks in the order of the matrix, row by row.
    Blocks {
        /// Looks at the codes of whole blocks.
        seen: LookAt,
        /// Appends whole blocks of codes, one per byte, with their scale where blocks have one:
        /// `encode(codes, scale, bytes)`.
        encode: Encode,
    },
    /// Rows with a scale in front of each, which are read only.
    Rows,
    /// Tiles.
    Tiles(Tiled),
}

/// The function that says what codes there are in whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct LookAt(fn(&[u8]) -> Seen);

/// A ternary matrix in the bytes of a file.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    bytes: &'a [u8],
    shape: Shape,
    format: &'static Format,
    ternary: &'static Ternary,
    tiles: Option<Tiles>,
}

impl Format {
    /// Returns the reader of rows of floats, if the format has one.
    #[must_use]
    pub fn rows(&self) -> Option<&Rows> {
        match &self.reader {
            Reader::Rows(rows) | Reader::Both(_, rows) => Some(rows),
            Reader::Codes(_) | Reader::None { .. } => None,
        }
    }

    /// True if its matrices are blocks of ternary codes with an f16 scale each.
    #[must_use]
    pub fn has_block_scales(&self) -> bool {
        let blocks = |ternary: &Ternary| matches!(ternary.form, Form::Blocks { .. });
        self.ternary().is_some_and(blocks) && self.size.tail_bytes() == 0
    }

    /// Returns the format that an embedding or a head in this one, of so many columns, has for kernels: its
    /// own, or for blocks of ternary codes with an f16 scale each [`HeadFormat::T2`], or where its blocks do
    /// not fit [`HeadFormat::Q4_0`], both of which hold them exactly.
    #[must_use]
    pub fn table(&self, cols: usize) -> Option<HeadFormat> {
        let own = self.rows().map(|rows| rows.head);
        let fits = cols.is_multiple_of(HeadFormat::T2.block_weights());
        let of_codes = if fits { HeadFormat::T2 } else { HeadFormat::Q4_0 };
        own.or_else(|| self.has_block_scales().then_some(of_codes))
    }

    /// Returns the reader of plain floats, if the format is one of them: `f32`, `f16` and `bf16`, in
    /// which vectors are stored.
    #[must_use]
    pub fn floats(&self) -> Option<&Rows> {
        self.rows().filter(|_| self.size.block().is_some_and(|(weights, _)| weights == 1))
    }

    /// Returns the reader of ternary codes, if the format has one.
    #[must_use]
    pub fn ternary(&self) -> Option<&Ternary> {
        match &self.reader {
            Reader::Codes(ternary) | Reader::Both(ternary, _) => Some(ternary),
            Reader::Rows(_) | Reader::None { .. } => None,
        }
    }

    /// Returns the tiles of the format, if its matrices are stored in some.
    #[must_use]
    pub fn tiled(&self) -> Option<&Tiled> {
        self.ternary().and_then(|ternary| match &ternary.form {
            Form::Tiles(tiled) => Some(tiled),
            Form::Blocks { .. } | Form::Rows => None,
        })
    }

    /// True if every weight is -1, 0 or 1 times a scale, whether it can be read or not.
    #[must_use]
    pub fn is_ternary(&self) -> bool {
        self.ternary().is_some() || matches!(self.reader, Reader::None { ternary: true })
    }

    /// Returns the names of the formats for which `is` holds, for messages: `a, b or c`.
    #[must_use]
    pub fn names(is: fn(&Format) -> bool) -> String {
        let names: Vec<&str> = FORMATS.iter().filter(|f| is(f)).map(|f| f.name).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }
}

/// Returns the format whose rows the kernels of a head read.
pub(crate) fn of_head(head: HeadFormat) -> &'static Format {
    let serves = |format: &&Format| format.rows().is_some_and(|rows| rows.head == head);
    FORMATS.iter().find(serves).expect("a test finds a format for every kind of head")
}

/// Returns the reader of a head format's rows.
pub(crate) fn head_rows(head: HeadFormat) -> &'static Rows {
    static T2: Rows = t2::ROWS;
    match head {
        HeadFormat::T2 => &T2,
        head => of_head(head).rows().expect("`of_head` gives formats of rows"),
    }
}

impl<'a> Codes<'a> {
    /// Views the tensor `bytes` as a matrix of `shape`, in tiles of bitnet.cpp's presets where its format
    /// has tiles; `None` for a type whose codes are not read, and a shape whose tiles are not known.
    #[must_use]
    pub fn new(ty: TensorType, bytes: &'a [u8], shape: Shape) -> Option<Self> {
        let format = ty.format();
        let ternary = format.ternary()?;
        let tiles = match format.tiled() {
            None => None,
            Some(tiled) => Some(tiled.preset(shape)?),
        };
        Some(Self { bytes, shape, format, ternary, tiles })
    }

    /// Views a tensor of a file as a matrix; `None` for a type whose codes are not read.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a matrix in tiles whose sizes are not known, or do not
    /// fit.
    pub fn of(gguf: &'a Gguf, tensor: &TensorInfo, shape: Shape) -> Result<Option<Self>> {
        let format = tensor.ty.format();
        let Some(ternary) = format.ternary() else { return Ok(None) };
        let tiled = format.tiled();
        let tiles = tiled.map(|tiled| tiled.of(gguf, format, &tensor.name, shape)).transpose()?;
        Ok(Some(Self { bytes: gguf.tensor_bytes(tensor), shape, format, ternary, tiles }))
    }

    /// As [`Codes::of`], and views a tensor of floats, too, whose weights may be ternary all the same: where
    /// they are not its scale is NaN.
    ///
    /// # Errors
    /// As [`Codes::of`].
    pub(crate) fn of_matrix(
        gguf: &'a Gguf,
        tensor: &TensorInfo,
        shape: Shape,
    ) -> Result<Option<Self>> {
        match Self::of_floats(tensor.ty, gguf.tensor_bytes(tensor), shape) {
            None => Self::of(gguf, tensor, shape),
            floats => Ok(floats),
        }
    }

    /// Views floats as a ternary matrix; `None` for another type.
    fn of_floats(ty: TensorType, bytes: &'a [u8], shape: Shape) -> Option<Self> {
        let ternary = float::codes(ty)?;
        Some(Self { bytes, shape, format: ty.format(), ternary, tiles: None })
    }

    /// True if the weights are stored as floats.
    pub(crate) fn is_float(&self) -> bool {
        self.format.floats().is_some()
    }

    /// Views `bytes` as a matrix of `shape` in I2_S; the scale may be left out: see
    /// [`i2_s::encode`].
    #[must_use]
    pub fn i2_s(bytes: &'a [u8], shape: Shape) -> Self {
        Self::new(TensorType::I2_S, bytes, shape).expect("codes of I2_S are read")
    }

    /// The bytes of the tensor.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The tiles of a format that has some.
    fn tiles(&self) -> Tiles {
        self.tiles.expect("a matrix in tiles is viewed with their sizes")
    }

    /// Reads the scale at byte `at`, behind all codes; NaN where it was left out.
    fn scale_behind(&self, at: usize) -> Scales {
        let scale = self.bytes.get(at..).and_then(|tail| tail.first_chunk());
        Scales::Tensor(scale.map_or(f32::NAN, |&scale| f32::from_le_bytes(scale)))
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// True if the tensor is as long as its shape requires; a scale behind all codes may be left
    /// out.
    #[must_use]
    pub fn fits(&self) -> bool {
        let (bytes, tail) = (self.bytes.len() as u64, self.format.size.tail_bytes());
        let dims = [self.shape.cols as u64, self.shape.rows as u64];
        let wanted = self.format.ty.byte_size(&dims);
        wanted.is_ok_and(|wanted| bytes == wanted || bytes == wanted - tail)
    }

    /// Reads the scales, unchanged.
    #[must_use]
    pub fn scales(&self) -> Scales {
        (self.ternary.scales)(*self)
    }

    /// Views the first rows, up to so many, of a format whose rows lie one after the other; `None` of
    /// others, and where the tensor is shorter.
    pub(crate) fn first_rows(&self, rows: usize) -> Option<Self> {
        let Size::Rows { .. } = self.format.size else { return None };
        let shape = Shape::new(rows.min(self.shape.rows), self.shape.cols);
        let bytes = self.format.ty.byte_size(&[shape.cols as u64, shape.rows as u64]).ok()?;
        Some(Self { bytes: self.bytes.get(..bytes as usize)?, shape, ..*self })
    }

    /// Reads the f16 scales of the blocks of a row, of a format of nothing else.
    pub(crate) fn scales_of_row(&self, row: usize) -> Vec<f16> {
        let (weights, _) = self.format.size.block().expect("it is of blocks");
        let blocks = self.shape.cols / weights as usize;
        let shape = Shape::new(1, self.shape.cols);
        let bytes = self.bytes.len() / self.shape.rows;
        let bytes = &self.bytes[row * bytes..(row + 1) * bytes];
        let scales = (self.ternary.scales)(Self { bytes, shape, ..*self });
        let scales: Vec<f16> = scales.values().iter().map(|&scale| f16::from_f32(scale)).collect();
        debug_assert_eq!(scales.len(), blocks);
        scales
    }

    /// The blocks of the tensor, without what stands behind them, and the bytes of one; `None` where a
    /// tensor is not a run of blocks.
    pub(crate) fn blocks(&self) -> Option<(&'a [u8], usize)> {
        let Form::Blocks { .. } = self.ternary.form else { return None };
        let (weights, bytes) = self.format.size.block()?;
        let blocks = self.shape.weights() / weights as usize;
        Some((&self.bytes[..blocks * bytes as usize], bytes as usize))
    }

    /// Looks at the codes of whole blocks, where a tensor is a run of them.
    pub(crate) fn seen(&self, blocks: &[u8]) -> Option<Seen> {
        match &self.ternary.form {
            Form::Blocks { seen: LookAt(seen), .. } => Some(seen(blocks)),
            Form::Rows | Form::Tiles(_) => None,
        }
    }

    /// True if code 3 is a weight, +2 times the scale.
    #[must_use]
    pub fn has_twos(&self) -> bool {
        self.ternary.twos
    }

    /// Reads the codes of `out.len()` weights from the first of a row on, one per byte, and returns the
    /// place in `out` of the first code 3, which is no weight.
    ///
    /// # Panics
    /// When the tensor is too short: see [`Codes::fits`].
    pub fn row(&self, row: usize, out: &mut [u8]) -> Option<usize> {
        let seen = self.read(row, 0, out);
        // Of blocks that the row shares with others those may hold it.
        if seen.bad { out.iter().position(|&code| code > 2) } else { None }
    }

    /// Reads the codes of columns `first..first + out.len()` of a row, one per byte.
    ///
    /// # Panics
    /// When the tensor is too short: see [`Codes::fits`].
    pub(crate) fn read(&self, row: usize, first: usize, out: &mut [u8]) -> Seen {
        (self.ternary.read)(*self, row, first, out)
    }
}

impl fmt::Debug for Codes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} in {} bytes", self.shape, self.format.name, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::{BLOCK, in_blocks};
    use crate::random::Random;

    /// Checks rows of 1024 random bytes each, of which `fill` completes block b and returns the
    /// weights it stands for: they must be read exactly, and their products be near those of exact
    /// arithmetic.
    pub(super) fn check_rows(format: &Format, fill: impl Fn(&mut [u8], usize) -> Vec<f32>) {
        const COLS: usize = 1024; // 32 blocks of activations: every lane of a sum gets two
        let random = &mut Random::new(16);
        let rows = format.rows().unwrap();
        let Some((weights, bytes)) = format.size.block() else {
            panic!("{} is no row", format.name)
        };
        let mut row = vec![0u8; COLS / weights as usize * bytes as usize];
        row.fill_with(|| random.below(256) as u8);
        let blocks = row.chunks_exact_mut(bytes as usize).enumerate();
        let weights: Vec<f32> = blocks.flat_map(|(b, block)| fill(block, b)).collect();
        let mut read = vec![f32::NAN; COLS];
        (rows.dequantise)(&row, &mut read);
        assert_eq!(read, weights);

        let x: Vec<f32> =
            (0..COLS).map(|_| random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0).collect();
        let (q, d) = in_blocks(&x);
        let seen = |i: usize| f64::from(d[i / BLOCK] * f32::from(q[i]));
        let exact: f64 = (0..COLS).map(|i| seen(i) * f64::from(weights[i])).sum();
        let size = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        let found = f64::from((rows.dot)(&x, &row));
        assert!((found - exact).abs() < 1e-5 * size, "{}: {found}, {exact}", format.name);
    }

    #[test]
    fn heads_are_the_rows_that_their_kernels_read() {
        // No file has T2.
        for &head in HeadFormat::ALL.iter().filter(|head| **head != HeadFormat::T2) {
            let format = of_head(head);
            assert_eq!(format.rows().map(|rows| rows.head), Some(head));
            let (weights, bytes) = (head.block_weights() as u64, head.block_bytes() as u64);
            assert_eq!(format.size.block(), Some((weights, bytes)), "{}", format.name);
        }
        let all = FORMATS.iter().filter(|f| f.rows().is_some()).count();
        assert_eq!(all, HeadFormat::ALL.len() - 1);
    }

    /// Values that are quantised and read again are near, and a logit is near the product of the
    /// values read.
    #[test]
    fn rows_are_read_as_they_are_written() {
        let random = &mut Random::new(7);
        let mut number = || random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let mut values: Vec<f32> = (0..1024).map(|_| number()).collect();
        values[32..64].fill(0.0);
        values[256..512].iter_mut().for_each(|v| *v *= 100.0);
        let x: Vec<f32> = (0..1024).map(|_| number()).collect();
        for format in FORMATS {
            // Rows of a format with one scale for all hold none.
            let Some(rows) = format.rows().filter(|_| format.size.tail_bytes() == 0) else {
                continue;
            };
            let (mut bytes, mut read) = (Vec::new(), vec![f32::NAN; 1024]);
            (rows.quantise)(&values, &mut bytes);
            assert_eq!(bytes.len() as u64, format.ty.byte_size(&[1024]).unwrap());
            (rows.dequantise)(&bytes, &mut read);
            let bits = 8 * bytes.len() / 1024;
            for (block, read) in values.chunks(256).zip(read.chunks(256)) {
                let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                // BF16 has 8 significant bits of its 16.
                let most = largest / (1 << (bits.min(9) - 1)) as f32;
                for (value, read) in block.iter().zip(read) {
                    assert!((value - read).abs() <= 1.1 * most, "{}: {value}, {read}", format.name);
                }
            }
            let again = {
                let mut again = Vec::new();
                (rows.quantise)(&read, &mut again);
                let mut out = vec![f32::NAN; 1024];
                (rows.dequantise)(&again, &mut out);
                out
            };
            let far = again.iter().zip(&read).any(|(a, b)| (a - b).abs() > 1e-3 * b.abs().max(1.0));
            assert!(!far, "{}: what is read is written otherwise", format.name);
            let exact: f64 = x.iter().zip(&read).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let size: f64 = read.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            let dot = f64::from((rows.dot)(&x, &bytes));
            assert!((dot - exact).abs() < 0.02 * size, "{}: {dot}, {exact}", format.name);
        }
    }

    #[test]
    fn names_are_joined_for_people() {
        assert_eq!(
            Format::names(|f| f.ternary().is_some()),
            "i2_s, tq2_0, tq1_0, tl1, tl2, q2_0, q2_0 (128 weights a block), pq2_0, ptq1_0, iq1_bn, \
             iq2_bn or iq2_bn_r4"
        );
        assert_eq!(
            Format::names(|f| f.rows().is_some()),
            "f32, f16, bf16, q8_0, q6_K, q4_0, q4_1, q5_0, q5_1, q3_K, q4_K, q5_K, i2_s or tq2_0"
        );
        assert_eq!(Format::names(|f| f.floats().is_some()), "f32, f16 or bf16");
        assert_eq!(Format::names(|f| f.ty == TensorType::F32), "f32");
    }
}
