//! Ternary matrices of a Hugging Face folder, read as codes, some rows at a time.

use bitnet_profiles::Shape;
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::{TensorInfo, TensorSink, TensorType};

use super::checkpoint::{Checkpoint, Stored};
use super::plan::Heads;
use crate::pieces;
use crate::ternary::{self, Codes, largest};

/// Weights that a thread reads at a time, about: as floats they fit into a cache.
const PIECE: usize = 1 << 18;
/// Least mean magnitude that weights are divided by, as in training.
const LEAST_MEAN: f32 = 1e-5;

/// A ternary matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Its tensor.
    pub stored: Stored,
    /// Its shape.
    pub shape: Shape,
    /// Another order of its rows.
    pub heads: Option<Heads>,
    /// The form of its weights.
    pub form: Form,
}

/// Form of the weights of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Codes, four to a byte: byte `[r][c]` holds row `r + i * rows / 4` in bits `2 i + 1 : 2 i`.
    Packed {
        /// The scale of all.
        scale: f32,
    },
    /// Floats, which are divided by the mean of their magnitudes and rounded.
    Masters,
    /// Floats, all of them `-a`, 0 or `a`.
    Exact,
    /// Floats, of which those of so many columns of a row are `-a`, 0 or `a`.
    Blocks {
        /// The columns.
        width: usize,
    },
}

impl Matrix {
    /// Writes the codes as a tensor of a file, and returns true if one of the weights is not 0.
    ///
    /// # Errors
    /// [`Error::Io`] when reading or writing fails,
    /// [`Error::Model`] for weights that are not ternary, with their place.
    pub fn write(
        &self,
        checkpoint: &Checkpoint,
        info: &TensorInfo,
        out: &mut TensorSink<'_>,
    ) -> Result<bool> {
        match self.form {
            Form::Packed { scale } => self.packed(checkpoint, Codes::new(info, scale)?, out),
            Form::Masters | Form::Exact => self.floats(checkpoint, info, out),
            Form::Blocks { width } => self.blocks(checkpoint, info, width, out),
        }
    }

    fn packed(
        &self,
        checkpoint: &Checkpoint,
        mut codes: Codes,
        out: &mut TensorSink<'_>,
    ) -> Result<bool> {
        let Shape { rows, cols } = self.shape;
        let mut bytes = Vec::new();
        // A quarter of a byte for each weight: rows of the output lie far from each other.
        checkpoint.read(&self.stored, 0..self.stored.bytes(), &mut bytes)?;
        let threes = |byte: u8| byte & (byte >> 1) & 0x55;
        if let Some(place) = ternary::misfit(&bytes, |&byte| threes(byte) == 0) {
            let field = threes(bytes[place]).trailing_zeros() as usize / 2;
            let row = place / cols + field * (rows / 4);
            let found = format!("code 3 at [{row}, {}]", place % cols);
            return Err(checkpoint.error(&self.stored, found, "codes 0 to 2; the file is damaged"));
        }
        let count = (PIECE / cols).max(1);
        let make = |_: &mut (), piece: usize| {
            let mut unpacked = Vec::with_capacity(count * cols);
            for index in piece * count..((piece + 1) * count).min(rows) {
                let source = self.heads.map_or(index, |heads| heads.source(index));
                let (field, packed) = (source / (rows / 4), source % (rows / 4));
                let packed = &bytes[packed * cols..(packed + 1) * cols];
                unpacked.extend(packed.iter().map(|byte| byte >> (2 * field) & 3));
            }
            Ok(unpacked)
        };
        pieces::in_order(rows.div_ceil(count), make, |piece| codes.push(&piece, out))?;
        codes.finish(out)?;
        Ok(bytes.iter().any(|&byte| byte != 0x55))
    }

    fn floats(
        &self,
        checkpoint: &Checkpoint,
        info: &TensorInfo,
        out: &mut TensorSink<'_>,
    ) -> Result<bool> {
        let cols = self.shape.cols;
        let scale = match self.form {
            Form::Exact => self.largest(checkpoint)?,
            _ => self.mean(checkpoint)?.max(LEAST_MEAN),
        };
        let inverse = 1.0 / scale;
        // In f32, as the layer itself has it.
        let kept = if self.form == Form::Exact { scale } else { 1.0 / inverse };
        let mut codes = Codes::new(info, kept)?;
        let make = |first: usize, values: &[f32]| {
            if self.form == Form::Exact
                && let Some(place) = ternary::other(values, scale)
            {
                return Err(self.not_exact(checkpoint, first * cols, (values, place), scale));
            }
            // Rounded to the nearest of -1, 0 and 1, halves to 0.
            let code = |&v: &f32| 1 + u8::from(v * inverse > 0.5) - u8::from(v * inverse < -0.5);
            Ok(match self.heads {
                None => values.iter().map(code).collect::<Vec<u8>>(),
                Some(heads) => {
                    // Pieces hold whole heads.
                    let sources = (0..values.len() / cols).map(|row| heads.source(row) * cols);
                    sources.flat_map(|at| values[at..at + cols].iter().map(code)).collect()
                }
            })
        };
        let mut found = false;
        self.pieces(checkpoint, make, |piece| {
            found |= piece.iter().any(|&code| code != 1);
            codes.push(&piece, out)
        })?;
        codes.finish(out)?;
        Ok(found)
    }

    /// Writes floats whose blocks of columns have scales of their own.
    fn blocks(
        &self,
        checkpoint: &Checkpoint,
        info: &TensorInfo,
        width: usize,
        out: &mut TensorSink<'_>,
    ) -> Result<bool> {
        let cols = self.shape.cols;
        let make = |first: usize, values: &[f32]| {
            self.check_finite(checkpoint, first, values, magnitudes(values))?;
            let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
            for row in 0..values.len() / cols {
                // Pieces hold whole heads.
                let source = self.heads.map_or(row, |heads| heads.source(row)) * cols;
                for start in (source..source + cols).step_by(width) {
                    let block = &values[start..start + width];
                    let scale = ternary::codes_of(block, &mut codes).map_err(|place| {
                        let start = first * cols + start;
                        self.not_exact(checkpoint, start, (block, place), largest(block))
                    })?;
                    scales.push(scale);
                }
            }
            let found = scales.iter().any(|&scale| scale > 0.0);
            Ok((ternary::blocks(info, &codes, &scales)?, found))
        };
        let mut found = false;
        self.pieces(checkpoint, make, |(bytes, own)| {
            found |= own;
            out.write(&bytes)
        })?;
        Ok(found)
    }

    /// Finds how many columns share a magnitude, by the first rows: `None` where all do, and where no
    /// blocks of a format do.
    ///
    /// # Errors
    /// Those of reading the rows.
    pub fn block_width(&self, checkpoint: &Checkpoint) -> Result<Option<usize>> {
        /// Weights of blocks that have scales of their own, in formats that are written.
        const WIDTHS: [usize; 3] = [256, 128, 64];
        let cols = self.shape.cols;
        let rows = self.shape.rows.min((PIECE / cols).max(1));
        let shape = Shape::new(rows, cols);
        let find = |_: usize, values: &[f32]| {
            let is_one = |block: &[f32]| ternary::other(block, largest(block)).is_none();
            let shared =
                |width: &usize| cols.is_multiple_of(*width) && values.chunks(*width).all(is_one);
            Ok(if is_one(values) { None } else { WIDTHS.into_iter().find(shared) })
        };
        let mut width = None;
        float_rows(checkpoint, &self.stored, (shape, rows), find, |found| {
            width = found;
            Ok(())
        })?;
        Ok(width)
    }

    /// The mean of the magnitudes.
    fn mean(&self, checkpoint: &Checkpoint) -> Result<f32> {
        let make = |first: usize, values: &[f32]| {
            let part = magnitudes(values);
            self.check_finite(checkpoint, first, values, part).map(|()| part)
        };
        let mut sum = 0.0;
        self.pieces(checkpoint, make, |part| {
            sum += part;
            Ok(())
        })?;
        Ok((sum / self.shape.weights() as f64) as f32)
    }

    /// The largest magnitude: the only one, if the matrix is ternary. 1 where all weights are 0.
    fn largest(&self, checkpoint: &Checkpoint) -> Result<f32> {
        let make = |first: usize, values: &[f32]| {
            let checked = self.check_finite(checkpoint, first, values, magnitudes(values));
            checked.map(|()| largest(values))
        };
        let mut found = 0.0f32;
        self.pieces(checkpoint, make, |part| {
            found = found.max(part);
            Ok(())
        })?;
        Ok(if found > 0.0 { found } else { 1.0 })
    }

    /// Checks that numbers, whose magnitudes have this sum, are finite.
    fn check_finite(
        &self,
        checkpoint: &Checkpoint,
        first_row: usize,
        values: &[f32],
        sum: f64,
    ) -> Result<()> {
        if sum.is_finite() {
            return Ok(());
        }
        let cols = self.shape.cols;
        let place = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let [row, col] = [first_row + place / cols, place % cols];
        let found = format!("{} at [{row}, {col}]", values[place]);
        Err(checkpoint.error(&self.stored, found, "finite numbers; the file is damaged"))
    }

    /// Makes the error about the number at `place` of some that are to be `-scale`, 0 or `scale`; `first` is
    /// the place of the first of them.
    fn not_exact(
        &self,
        checkpoint: &Checkpoint,
        first: usize,
        (values, place): (&[f32], usize),
        scale: f32,
    ) -> Error {
        let cols = self.shape.cols;
        let [row, col] = [(first + place) / cols, (first + place) % cols];
        let found = format!("{} at [{row}, {col}], beside {scale}", values[place]);
        let together = match self.form {
            Form::Blocks { width } => {
                format!("of one magnitude within a block of {width} columns, and 0")
            }
            _ => "of one magnitude, and 0, or of one in each block of --type q2_0 or tq2_0".into(),
        };
        let expected = format!(
            "numbers {together}: the model of {} is not ternary; --ternarise rounds it, which ruins a \
             model that was not trained for it",
            quoted(&checkpoint.path_of(&self.stored).display().to_string())
        );
        checkpoint.error(&self.stored, found, expected)
    }

    /// Reads all rows as [`float_rows`] does, whole heads at a time where rows have another order.
    fn pieces<T: Send>(
        &self,
        checkpoint: &Checkpoint,
        make: impl Fn(usize, &[f32]) -> Result<T> + Sync,
        take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let step = self.heads.map_or(1, |heads| heads.dim);
        float_rows(checkpoint, &self.stored, (self.shape, step), make, take)
    }
}

/// The sum of the magnitudes: in f32 it would lose the last digits of large matrices. One sum alone would
/// wait for each addition.
fn magnitudes(values: &[f32]) -> f64 {
    let mut sums = [0.0; 16];
    let (chunks, rest) = values.as_chunks();
    for chunk in chunks.iter().map(|chunk: &[f32; 16]| chunk.as_slice()).chain([rest]) {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += f64::from(v.abs()));
    }
    sums.iter().sum()
}

/// Reads the rows of a tensor of floats on several threads, `step` or a multiple of it at a time, and gives
/// what `make(first row, numbers)` makes of them to `take` in order.
///
/// # Errors
/// Those of reading it, and of `make` and `take`.
pub fn float_rows<T: Send>(
    checkpoint: &Checkpoint,
    stored: &Stored,
    (Shape { rows, cols }, step): (Shape, usize),
    make: impl Fn(usize, &[f32]) -> Result<T> + Sync,
    take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let ty = stored.floats().and_then(|ty| Some((ty.format().rows()?, ty)));
    let Some((format, ty)) = ty else {
        return Err(checkpoint.error(stored, stored, "BF16, F16 or F32"));
    };
    let width = if ty == TensorType::F32 { 4 } else { 2 } * cols;
    let count = (PIECE / (cols * step)).max(1) * step;
    let read = |(bytes, values): &mut (Vec<u8>, Vec<f32>), piece: usize| {
        let piece = piece * count..((piece + 1) * count).min(rows);
        let place = (piece.start * width) as u64..(piece.end * width) as u64;
        checkpoint.read(stored, place, bytes)?;
        values.resize(piece.len() * cols, 0.0);
        (format.dequantise)(bytes, values);
        make(piece.start, values)
    };
    pieces::in_order(rows.div_ceil(count), read, take)
}
