//! Packing of ternary matrices by lines (rows or columns), so that decode can read only the lines
//! in a list. The input is the format of the file, as in [`crate::cpu::packing`].

use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_profiles::{GatherLayout, Shape};

use crate::cpu::memory::{Buffer, Bytes};
use crate::cpu::packing::BadCode;
use crate::cpu::threads::{Pool, SharedSlice};
use crate::formats::{Codes, Scales, ZERO, i2_s};
use crate::{Error, Result};

/// Direction of the lines of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// Its rows: a line is as long as the matrix has columns.
    Rows,
    /// Its columns: a line is as long as the matrix has rows.
    Columns,
}

impl Along {
    /// Returns the number of lines of a matrix and the number of weights in a line.
    #[must_use]
    pub fn lines(self, shape: Shape) -> (usize, usize) {
        match self {
            Self::Rows => (shape.rows, shape.cols),
            Self::Columns => (shape.cols, shape.rows),
        }
    }

    /// Returns the bytes of a matrix packed by lines.
    #[must_use]
    pub fn matrix_bytes(self, layout: GatherLayout, shape: Shape) -> usize {
        let (lines, length) = self.lines(shape);
        lines * layout.line_bytes(length)
    }
}

/// A ternary matrix, line by line.
#[derive(Debug)]
pub struct GatherMatrix {
    layout: GatherLayout,
    along: Along,
    shape: Shape,
    scales: Scales,
    data: Bytes,
}

impl GatherMatrix {
    /// Takes lines that were packed before.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `data` is not [`Along::matrix_bytes`] long, or there are too many columns.
    pub fn new(
        (layout, along): (GatherLayout, Along),
        shape: Shape,
        scales: impl Into<Scales>,
        data: impl Into<Bytes>,
    ) -> Result<Self> {
        let (scales, data) = (scales.into(), data.into());
        let fits = (1..=Shape::MAX_COLS).contains(&shape.cols)
            && data.len() == along.matrix_bytes(layout, shape);
        if !fits {
            return Err(Error::Runtime(format!(
                "{} bytes are no lines of a matrix of {shape} as {layout}; at most {} columns",
                data.len(),
                Shape::MAX_COLS
            )));
        }
        Ok(Self { layout, along, shape, scales, data })
    }

    /// Packs a matrix into `buffer`, which is [`Along::matrix_bytes`] long.
    ///
    /// # Errors
    /// As [`crate::cpu::packing::PackedMatrix::pack`].
    pub fn pack(
        file: Codes<'_>,
        scales: impl Into<Scales>,
        (layout, along): (GatherLayout, Along),
        mut buffer: Buffer,
        pool: &Pool,
    ) -> Result<std::result::Result<Self, BadCode>> {
        let (shape, scales) = (file.shape(), scales.into());
        let fits = file.fits()
            && buffer.len() == along.matrix_bytes(layout, shape)
            && (1..=Shape::MAX_COLS).contains(&shape.cols);
        if !fits {
            return Err(Error::Runtime(format!(
                "cannot pack the lines of a matrix ({file:?}) into {} bytes as {layout}; at most {} \
                 columns",
                buffer.len(),
                Shape::MAX_COLS
            )));
        }
        let bad = AtomicBool::new(false);
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            // SAFETY: workers own disjoint ranges of rows, or of units, and each packs its own once.
            let seen = unsafe {
                match along {
                    Along::Rows => pack_rows(file, layout, worker.share(shape.rows), &out),
                    Along::Columns => {
                        let units = worker.share(layout.units(shape.rows));
                        pack_columns(file, layout, units, &out)
                    }
                }
            };
            bad.fetch_or(seen, Ordering::Relaxed);
        })?;
        if bad.into_inner() {
            return Ok(Err(BadCode));
        }
        Self::new((layout, along), shape, scales, buffer).map(Ok)
    }

    /// Copies the lines into `buffer`.
    ///
    /// # Errors
    /// As [`crate::cpu::packing::PackedMatrix::copy`].
    pub fn copy(&self, mut buffer: Buffer, pool: &Pool) -> Result<Self> {
        if buffer.len() != self.data.len() {
            return Err(Error::Runtime(format!(
                "cannot copy lines of {} bytes into {}",
                self.data.len(),
                buffer.len()
            )));
        }
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let share = worker.share(self.data.len());
            // SAFETY: workers own disjoint ranges.
            unsafe { out.write(share.clone()) }.copy_from_slice(&self.data[share]);
        })?;
        Self::new((self.layout, self.along), self.shape, self.scales.clone(), buffer)
    }

    /// The layout of a line.
    pub fn layout(&self) -> GatherLayout {
        self.layout
    }

    /// Direction of the lines.
    pub fn along(&self) -> Along {
        self.along
    }

    /// Rows and columns of the matrix.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// As [`crate::cpu::packing::PackedMatrix::scales`].
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Number of lines.
    pub fn lines(&self) -> usize {
        GatherView::from(self).lines()
    }

    /// Units of a line.
    pub fn units(&self) -> usize {
        GatherView::from(self).units()
    }

    /// Locks the lines in memory, so that they are not swapped out.
    pub(crate) fn lock(&self) -> std::io::Result<()> {
        self.data.lock()
    }

    /// The lines, one after the other.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// A view of a ternary matrix by lines, in a [`GatherMatrix`] or in a file.
#[derive(Debug, Clone, Copy)]
pub struct GatherView<'a> {
    layout: GatherLayout,
    along: Along,
    shape: Shape,
    /// Bytes from one line to the next.
    line_bytes: usize,
    data: &'a [u8],
}

impl<'a> From<&'a GatherMatrix> for GatherView<'a> {
    fn from(packed: &'a GatherMatrix) -> Self {
        let &GatherMatrix { layout, along, shape, ref data, .. } = packed;
        Self { layout, along, shape, line_bytes: layout.line_bytes(along.lines(shape).1), data }
    }
}

impl<'a> GatherView<'a> {
    /// Columns in a block of a file's I2_S: a row of whole blocks can be read as it lies there.
    pub const FILE_BLOCK: usize = i2_s::BLOCK;

    /// Views the rows of a matrix of `shape` as a file holds them in I2_S: `file` is its codes and
    /// the 32 bytes that follow. Two blocks are a unit of [`GatherLayout::I2sL64`] except for the
    /// order of their columns; [`GatherView::to_file_order`] reorders activations to match. Where a
    /// row is not a whole number of units, its last unit ends with bytes of the next row, or with
    /// those 32 bytes, and these are multiplied by zeros.
    ///
    /// # Errors
    /// [`Error::Runtime`] when rows are not of whole blocks, or `file` is not as long as that.
    pub fn mapped(file: &'a [u8], shape: Shape) -> Result<Self> {
        let line_bytes = shape.cols / 4;
        let bytes = shape.rows.checked_mul(line_bytes).and_then(|bytes| bytes.checked_add(32));
        let fits = (1..=Shape::MAX_COLS).contains(&shape.cols)
            && shape.cols.is_multiple_of(Self::FILE_BLOCK)
            && bytes == Some(file.len());
        if !fits {
            return Err(Error::Runtime(format!(
                "rows of a matrix of {shape} cannot be read from {} bytes of I2_S",
                file.len()
            )));
        }
        let (layout, along) = (GatherLayout::I2sL64, Along::Rows);
        Ok(Self { layout, along, shape, line_bytes, data: file })
    }

    /// Reorders the activations of all columns to the order of [`GatherView::mapped`] and pads them
    /// with zeros to a whole unit.
    pub fn to_file_order(q: &[i8], out: &mut Vec<i8>) {
        /// Bytes of a block, and columns of one of its four fields.
        const RUN: usize = GatherView::FILE_BLOCK / 4;
        let unit = GatherLayout::I2sL64.unit_weights();
        out.clear();
        out.resize(q.len().next_multiple_of(unit), 0);
        for (i, run) in q.chunks(RUN).enumerate() {
            let (block, field) = (i / 4, i % 4);
            // The file's first field is the highest of a byte, a unit's first the lowest.
            let at = block / 2 * unit + (3 - field) * GatherLayout::UNIT_BYTES + block % 2 * RUN;
            out[at..at + run.len()].copy_from_slice(run);
        }
    }

    /// The layout of a line.
    pub fn layout(&self) -> GatherLayout {
        self.layout
    }

    /// Direction of the lines.
    pub fn along(&self) -> Along {
        self.along
    }

    /// Rows and columns of the matrix.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes from one line to the next.
    pub fn line_bytes(&self) -> usize {
        self.line_bytes
    }

    /// Number of lines.
    pub fn lines(&self) -> usize {
        self.along.lines(self.shape).0
    }

    /// Units of a line.
    pub fn units(&self) -> usize {
        self.layout.units(self.along.lines(self.shape).1)
    }

    /// The lines, one after the other; the last one is whole units.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

/// Packs rows. Returns true if a code was 3.
///
/// # Safety
/// Until the call returns nothing else reads or writes the lines of `rows` in `out`.
unsafe fn pack_rows(
    file: Codes<'_>,
    layout: GatherLayout,
    rows: std::ops::Range<usize>,
    out: &SharedSlice<'_, u8>,
) -> bool {
    let shape = file.shape();
    let line_bytes = layout.line_bytes(shape.cols);
    let mut codes = vec![ZERO; shape.cols.next_multiple_of(layout.unit_weights())];
    let mut bad = false;
    for row in rows {
        bad |= file.read(row, 0, &mut codes[..shape.cols]).bad;
        // SAFETY: as the caller promises.
        let line = unsafe { out.write(row * line_bytes..(row + 1) * line_bytes) };
        pack_row(layout, &codes, line);
    }
    bad
}

/// Packs the codes of a row, 0 to 2 and whole units of them, into its line.
pub(crate) fn pack_row(layout: GatherLayout, codes: &[u8], line: &mut [u8]) {
    let units = codes.chunks_exact(layout.unit_weights());
    for (codes, bytes) in units.zip(line.chunks_exact_mut(GatherLayout::UNIT_BYTES)) {
        let field = |f: usize| &codes[f * GatherLayout::UNIT_BYTES..][..GatherLayout::UNIT_BYTES];
        join(layout, field, bytes);
    }
}

/// Packs some units of all columns. Returns true if a code was 3.
///
/// # Safety
/// Until the call returns nothing else reads or writes these units of any line in `out`.
unsafe fn pack_columns(
    file: Codes<'_>,
    layout: GatherLayout,
    units: std::ops::Range<usize>,
    out: &SharedSlice<'_, u8>,
) -> bool {
    /// Columns packed at once: their codes stay in the L2 cache.
    const COLS: usize = 512;
    const BYTES: usize = GatherLayout::UNIT_BYTES;
    let shape = file.shape();
    let (unit_rows, line_bytes) = (layout.unit_weights(), layout.line_bytes(shape.rows));
    let mut codes = vec![ZERO; unit_rows * COLS];
    let mut bytes = vec![0; BYTES * COLS];
    let mut bad = false;
    for unit in units {
        for first in (0..shape.cols).step_by(COLS) {
            let cols = COLS.min(shape.cols - first);
            for (i, codes) in codes.chunks_exact_mut(COLS).enumerate() {
                let row = unit * unit_rows + i;
                if row < shape.rows {
                    bad |= file.read(row, first, &mut codes[..cols]).bad;
                } else {
                    codes.fill(ZERO);
                }
            }
            // Byte i of the unit for all columns, then transposed.
            for (i, bytes) in bytes.chunks_exact_mut(COLS).enumerate() {
                join(layout, |f| &codes[(f * BYTES + i) * COLS..][..COLS], bytes);
            }
            for col in 0..cols {
                let start = (first + col) * line_bytes + unit * BYTES;
                // SAFETY: as the caller promises.
                let unit = unsafe { out.write(start..start + BYTES) };
                for (i, byte) in unit.iter_mut().enumerate() {
                    *byte = bytes[i * COLS + col];
                }
            }
        }
    }
    bad
}

/// Combines one code of each field into each byte of `out`, as the layout specifies.
fn join<'a>(layout: GatherLayout, field: impl Fn(usize) -> &'a [u8], out: &mut [u8]) {
    let n = out.len();
    let [a, b, c, d] = [0, 1, 2, 3].map(|f| &field(f)[..n]);
    match layout {
        GatherLayout::I2sL64 => {
            for i in 0..n {
                out[i] = a[i] | b[i] << 2 | c[i] << 4 | d[i] << 6;
            }
        }
        GatherLayout::T5L64 => {
            let e = &field(4)[..n];
            for i in 0..n {
                // A code 3 is rejected later; here it only must not panic.
                let number =
                    a[i].wrapping_add(b[i] * 3).wrapping_add(c[i] * 9).wrapping_add(d[i] * 27);
                let small = number.wrapping_add(e[i] << 6);
                let large = number.wrapping_add(128).wrapping_add(17 * e[i]);
                out[i] = if number < 64 { small } else { large };
            }
        }
    }
}
