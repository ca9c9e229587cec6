//! Ternary matrices of a Hugging Face folder, read as codes, some rows at a time.

use std::ops::Range;

use bitnet_profiles::Shape;
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::{TensorInfo, TensorSink, TensorType};

use super::checkpoint::{Checkpoint, Stored};
use super::plan::Heads;
use crate::ternary::{self, Codes};

/// Weights that are read at a time, about.
const PIECE: usize = 2 << 20;
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
    /// [`Error::Io`](bitnet_runtime::Error::Io) when reading or writing fails,
    /// [`Error::Model`](bitnet_runtime::Error::Model) for weights that are not ternary, with their place.
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
        if let Some(place) = bytes.iter().position(|byte| byte & (byte >> 1) & 0x55 != 0) {
            let field = (bytes[place] & (bytes[place] >> 1) & 0x55).trailing_zeros() as usize / 2;
            let row = place / cols + field * (rows / 4);
            let found = format!("code 3 at [{row}, {}]", place % cols);
            return Err(checkpoint.error(&self.stored, found, "codes 0 to 2; the file is damaged"));
        }
        let mut row = vec![0; cols];
        for index in 0..rows {
            let source = self.heads.map_or(index, |heads| heads.source(index));
            let (field, packed) = (source / (rows / 4), source % (rows / 4));
            let packed = &bytes[packed * cols..(packed + 1) * cols];
            row.iter_mut().zip(packed).for_each(|(code, byte)| *code = byte >> (2 * field) & 3);
            codes.push(&row, out)?;
        }
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
        let mut found = false;
        let mut piece = Vec::new();
        self.pieces(checkpoint, |first, values| {
            if self.form == Form::Exact
                && let Some(place) = values.iter().position(|&v| v != 0.0 && v.abs() != scale)
            {
                return Err(self.not_exact(checkpoint, first * cols, (values, place), scale));
            }
            let rounded = |&v: &f32| (v * inverse).round_ties_even().clamp(-1.0, 1.0);
            piece.clear();
            piece.extend(values.iter().map(|v| (rounded(v) + 1.0) as u8));
            found |= piece.iter().any(|&code| code != 1);
            match self.heads {
                None => codes.push(&piece, out),
                Some(heads) => (0..values.len() / cols).try_for_each(|row| {
                    // Pieces hold whole heads.
                    let source = heads.source(row);
                    codes.push(&piece[source * cols..(source + 1) * cols], out)
                }),
            }
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
        let mut found = false;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        self.pieces(checkpoint, |first, values| {
            self.check_finite(checkpoint, first, values, magnitudes(values))?;
            codes.clear();
            scales.clear();
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
            found |= scales.iter().any(|&scale| scale > 0.0);
            ternary::write_blocks(info, &codes, &scales, out)
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
        let mut width = None;
        float_rows(checkpoint, &self.stored, shape, rows, |_, values| {
            let is_one = |block: &[f32]| {
                let scale = largest(block);
                block.iter().all(|&v| v == 0.0 || v.abs() == scale)
            };
            if !is_one(values) {
                let shared = |width: &usize| {
                    cols.is_multiple_of(*width) && values.chunks(*width).all(is_one)
                };
                width = WIDTHS.into_iter().find(shared);
            }
            Ok(())
        })?;
        Ok(width)
    }

    /// The mean of the magnitudes.
    fn mean(&self, checkpoint: &Checkpoint) -> Result<f32> {
        let mut sum = 0.0;
        self.pieces(checkpoint, |first, values| {
            let part = magnitudes(values);
            self.check_finite(checkpoint, first, values, part)?;
            sum += part;
            Ok(())
        })?;
        Ok((sum / self.shape.weights() as f64) as f32)
    }

    /// The largest magnitude: the only one, if the matrix is ternary. 1 where all weights are 0.
    fn largest(&self, checkpoint: &Checkpoint) -> Result<f32> {
        let mut found = 0.0f32;
        self.pieces(checkpoint, |first, values| {
            self.check_finite(checkpoint, first, values, magnitudes(values))?;
            found = found.max(largest(values));
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

    /// Reads all rows in order, some at a time, whole heads where rows have another order: `each(first
    /// row, numbers)`.
    fn pieces(
        &self,
        checkpoint: &Checkpoint,
        each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let step = self.heads.map_or(1, |heads| heads.dim);
        float_rows(checkpoint, &self.stored, self.shape, step, each)
    }
}

/// The largest magnitude; 0 of no numbers.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, v| largest.max(v.abs()))
}

/// The sum of the magnitudes: in f32 it would lose the last digits of large matrices.
fn magnitudes(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).sum()
}

/// Reads the rows of a tensor of floats, `step` or a multiple of it at a time: `each(first row, numbers)`.
///
/// # Errors
/// Those of reading it, and of `each`.
pub fn float_rows(
    checkpoint: &Checkpoint,
    stored: &Stored,
    Shape { rows, cols }: Shape,
    step: usize,
    mut each: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let ty = stored.floats().and_then(|ty| Some((ty.format().rows()?, ty)));
    let Some((format, ty)) = ty else {
        return Err(checkpoint.error(stored, stored, "BF16, F16 or F32"));
    };
    let width = if ty == TensorType::F32 { 4 } else { 2 } * cols;
    let count = (PIECE / (cols * step)).max(1) * step;
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let mut first = 0;
    while first < rows {
        let piece: Range<usize> = first..(first + count).min(rows);
        let place = (piece.start * width) as u64..(piece.end * width) as u64;
        checkpoint.read(stored, place, &mut bytes)?;
        values.resize(piece.len() * cols, 0.0);
        (format.dequantise)(&bytes, &mut values);
        each(first, &values)?;
        first = piece.end;
    }
    Ok(())
}
