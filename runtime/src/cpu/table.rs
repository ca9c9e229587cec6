//! Embeddings and heads.

use std::ops::Range;

use bitnet_profiles::{HeadFormat, Shape};

use crate::cpu::memory::{Buffer, Bytes, Pages};
use crate::cpu::threads::{Pool, SharedSlice};
use crate::error::Result;
use crate::file::gguf::{Gguf, TensorInfo};
use crate::file::packed::{Builder, Form, PackedFile};
use crate::formats::{self, Codes, q4_0, t2};

/// An embedding or a head: a matrix in the blocks of the file.
#[derive(Clone, Debug)]
pub struct Table {
    tensor: TensorInfo,
    format: HeadFormat,
    /// Scale of all weights, 1 where blocks have their own.
    scale: f32,
    rows: usize,
    /// The blocks, if they were copied out of the file.
    memory: Option<Bytes>,
}

impl Table {
    /// Makes a table of a tensor of `rows` rows, of whole blocks of the format.
    pub(super) fn new(tensor: TensorInfo, format: HeadFormat, scale: f32, rows: usize) -> Self {
        Self { tensor, format, scale, rows, memory: None }
    }

    /// Builds a table that is the only tensor of a file in memory: `bytes` are its rows in the
    /// format's blocks.
    #[cfg(test)]
    pub(super) fn alone(format: HeadFormat, cols: usize, bytes: &[u8]) -> (Gguf, Self) {
        let ty = formats::of_head(format).ty;
        let rows = bytes.len() / format.row_bytes(cols);
        let mut writer = crate::file::gguf::GgufWriter::new();
        writer.tensor("output.weight", &[cols as u64, rows as u64], ty).unwrap();
        let mut file = writer.header();
        file.extend(bytes);
        let (mut scale, mut size) = (1.0, bytes.len());
        if ty.format().size.tail_bytes() > 0 {
            scale = 0.25f32;
            file.extend(scale.to_le_bytes());
            file.resize(file.len() + 28, 0);
            size += 32;
        }
        file.resize(file.len() + crate::file::gguf::GgufWriter::padding(size as u64), 0);
        let gguf = Gguf::from_bytes("head", file).unwrap();
        let tensor = gguf.tensor("output.weight").unwrap().clone();
        (gguf, Self::new(tensor, format, scale, rows))
    }

    /// Makes the table of a tensor of blocks of ternary codes, which kernels read in `format`
    /// ([`Format::table`](formats::Format::table)), with the same weights: each worker makes the rows that it
    /// will read.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) when the system refuses the memory or a worker panicked.
    pub(super) fn of_codes(
        tensor: TensorInfo,
        codes: Codes<'_>,
        format: HeadFormat,
        gguf: &Gguf,
        (pool, pages): (&Pool, Pages),
    ) -> Result<Self> {
        let shape = codes.shape();
        let width = format.row_bytes(shape.cols);
        let mut buffer = Buffer::with(shape.rows * width, pages)?;
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let (mut row, mut bytes) = (vec![0; shape.cols], Vec::with_capacity(width));
            for number in worker.share(shape.rows) {
                codes.read(number, 0, &mut row);
                bytes.clear();
                let scales = codes.scales_of_row(number);
                if format == HeadFormat::T2 {
                    t2::of_codes(&row, &scales, &mut bytes);
                } else {
                    let block = shape.cols / scales.len();
                    for (codes, scale) in row.chunks_exact(block).zip(scales) {
                        q4_0::of_codes(codes, scale, &mut bytes);
                    }
                }
                // SAFETY: shares are disjoint.
                unsafe { out.write(number * width..(number + 1) * width) }.copy_from_slice(&bytes);
            }
        })?;
        gguf.drop_pages(&tensor, false);
        let rows = shape.rows;
        Ok(Self { tensor, format, scale: 1.0, rows, memory: Some(buffer.into()) })
    }

    /// Format of the rows.
    #[must_use]
    pub fn format(&self) -> HeadFormat {
        self.format
    }

    /// Scale of all weights, 1 where blocks have their own.
    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes of a row.
    fn width(&self) -> usize {
        self.format.row_bytes(self.tensor.cols() as usize)
    }

    /// Number of rows.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Releases the pages of the file that hold consecutive rows; they are read again when they are
    /// needed.
    pub(super) fn drop_rows(&self, gguf: &Gguf, rows: Range<usize>) {
        let width = self.width();
        gguf.drop_part(&self.tensor, rows.start * width..rows.end * width, false);
    }

    /// The tensor in the file.
    #[must_use]
    pub fn tensor(&self) -> &TensorInfo {
        &self.tensor
    }

    /// Consecutive rows, in the file's blocks.
    #[must_use]
    pub fn rows<'a>(&'a self, gguf: &'a Gguf, rows: Range<usize>) -> &'a [u8] {
        let bytes = self.memory.as_deref().map_or(gguf.tensor_bytes(&self.tensor), |b| b);
        let width = self.width();
        &bytes[rows.start * width..rows.end * width]
    }

    /// Copies the table out of the file, each worker the rows it will read, and releases the file's
    /// pages on the way. Unlike the file's mapping, the copy can be in huge pages, and is then read
    /// faster.
    pub(super) fn copied(self, gguf: &Gguf, pool: &Pool, pages: Pages) -> Result<Self> {
        /// Rows copied between two releases of pages.
        const ROWS: usize = 1024;
        if self.memory.is_some() {
            return Ok(self);
        }
        let (bytes, width) = (gguf.tensor_bytes(&self.tensor), self.width());
        let mut buffer = Buffer::with(self.rows * width, pages)?;
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let share = worker.share(self.rows);
            for first in share.clone().step_by(ROWS) {
                let rows = first..(first + ROWS).min(share.end);
                let part = rows.start * width..rows.end * width;
                // SAFETY: shares are disjoint.
                unsafe { out.write(part.clone()) }.copy_from_slice(&bytes[part]);
                self.drop_rows(gguf, rows);
            }
        })?;
        Ok(Self { memory: Some(buffer.into()), ..self })
    }

    /// Copies the table as rows of F32, whose kernels round no activation.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) when the system refuses the memory or a worker panicked.
    pub(super) fn in_f32(self, gguf: &Gguf, pool: &Pool, pages: Pages) -> Result<Self> {
        let cols = self.tensor.cols() as usize;
        let width = HeadFormat::F32.row_bytes(cols);
        let mut buffer = Buffer::with(self.rows * width, pages)?;
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let mut row = vec![0.0; cols];
            for number in worker.share(self.rows) {
                self.read_row(gguf, number, &mut row);
                // SAFETY: shares are disjoint.
                let out = unsafe { out.write(number * width..(number + 1) * width) };
                out.as_chunks_mut()
                    .0
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(out, x)| *out = x.to_le_bytes());
            }
        })?;
        let memory = Some(buffer.into());
        Ok(Self { format: HeadFormat::F32, scale: 1.0, memory, ..self })
    }

    /// Bytes of the rows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rows * self.width()
    }

    /// Adds the copy, if there is one, to a file of packed weights.
    pub(super) fn store<'a>(&'a self, file: &mut Builder<'a>) {
        if let Some(blocks) = &self.memory {
            let head = (self.tensor.name.as_str(), Form::Blocks(self.format), self.shape());
            file.add(head, (self.scale, false), &blocks[..]);
        }
    }

    /// Takes the copy out of a file of packed weights.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the file has none.
    pub(super) fn packed(self, file: &PackedFile) -> Result<Self> {
        let name = &self.tensor.name;
        let blocks = file.bytes(file.section(name, Form::Blocks(self.format), self.shape())?)?;
        let bytes = self.rows * self.width();
        if blocks.len() != bytes {
            let found = format_args!("{} bytes", blocks.len());
            return Err(file.error(name, found, format_args!("{bytes}")));
        }
        Ok(Self { memory: Some(blocks), ..self })
    }

    fn shape(&self) -> Shape {
        Shape::new(self.rows, self.tensor.cols() as usize)
    }

    /// Locks the copy in memory, if there is one.
    pub(super) fn lock(&self) -> std::io::Result<()> {
        self.memory.as_ref().map_or(Ok(()), Bytes::lock)
    }

    /// True if single rows are read out of the file with [`Gguf::read_part`], which is so unless
    /// the table is in memory or small enough to be.
    pub(super) fn stays_in_file(&self) -> bool {
        const SMALL: u64 = 16 << 20;
        self.memory.is_none() && self.tensor.bytes >= SMALL
    }

    /// Returns a single row, in the file's blocks.
    pub(super) fn row<'a>(
        &'a self,
        gguf: &'a Gguf,
        row: usize,
        buffer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if !self.stays_in_file() {
            return self.rows(gguf, row..row + 1);
        }
        let width = self.width();
        gguf.read_part(&self.tensor, row * width..(row + 1) * width, buffer)
    }

    /// Reads a row as f32, `[hidden]`.
    pub fn read_row(&self, gguf: &Gguf, row: usize, out: &mut [f32]) {
        self.dequantise(self.rows(gguf, row..row + 1), out);
    }

    /// Converts a row to f32, `[hidden]`.
    pub(super) fn dequantise(&self, row: &[u8], out: &mut [f32]) {
        (formats::head_rows(self.format).dequantise)(row, out);
        if self.scale != 1.0 {
            out.iter_mut().for_each(|weight| *weight *= self.scale);
        }
    }

    /// Returns an upper bound of the norm of what the full head adds up for the logit of a row, per norm
    /// of the activations, given the norm of the row's weights.
    pub(super) fn norm_of_terms(&self, gguf: &Gguf, row: usize, weights: f64) -> f64 {
        // A code times its scale is the weight without its minimum.
        let minima = formats::head_rows(self.format).minima;
        let minima = minima.map_or(0.0, |minima| minima(self.rows(gguf, row..row + 1)));
        weights + 2.0 * minima * (1.0 + 1e-9)
    }
}
