//! Packing of ternary matrices, from the format of the file to the layout of the selected kernels.
//!
//! A row of codes is read from the file ([`Codes`]), padded with zero weights, and handed to the
//! packer of the layout.

use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_profiles::{Layout, Shape};

use crate::cpu::memory::{Buffer, Bytes};
use crate::cpu::threads::{Pool, SharedSlice};
use crate::formats::{Codes, Scales, Seen, ZERO};
use crate::{Error, Result};

/// A packed ternary matrix.
#[derive(Debug)]
pub struct PackedMatrix {
    layout: Layout,
    shape: Shape,
    scales: Scales,
    zero: bool,
    data: Bytes,
}

/// Error: a matrix holds code 3, which is not a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCode;

impl PackedMatrix {
    /// Takes tiles that were packed before; `zero` says that all weights are zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `data` is not as long as the layout has it, or there are too many columns.
    pub fn new(
        layout: Layout,
        shape: Shape,
        scales: impl Into<Scales>,
        zero: bool,
        data: impl Into<Bytes>,
    ) -> Result<Self> {
        let (scales, data) = (scales.into(), data.into());
        let fits =
            (1..=Shape::MAX_COLS).contains(&shape.cols) && data.len() == layout.matrix_bytes(shape);
        if !fits {
            return Err(Error::Runtime(format!(
                "{} bytes are no matrix of {shape} as {layout}; at most {} columns",
                data.len(),
                Shape::MAX_COLS
            )));
        }
        Ok(Self { layout, shape, scales, zero, data })
    }

    /// Packs a matrix into `buffer`. Every worker packs the tiles it owns.
    ///
    /// # Errors
    /// `Ok(Err(BadCode))` when a code is 3; [`Error::Runtime`] when sizes do not fit or a worker
    /// panicked.
    pub fn pack(
        file: Codes<'_>,
        scales: impl Into<Scales>,
        layout: Layout,
        mut buffer: Buffer,
        pool: &Pool,
    ) -> Result<std::result::Result<Self, BadCode>> {
        let (shape, scales) = (file.shape(), scales.into());
        let fits = file.fits()
            && buffer.len() == layout.matrix_bytes(shape)
            && (1..=Shape::MAX_COLS).contains(&shape.cols);
        if !fits {
            return Err(Error::Runtime(format!(
                "cannot pack a matrix ({file:?}) into {} bytes as {layout}; at most {} columns",
                buffer.len(),
                Shape::MAX_COLS
            )));
        }
        let rows = layout.tile_rows();
        let tile_bytes = layout.tile_bytes(shape.cols);
        let tiles = buffer.len() / tile_bytes;
        let stride = shape.cols.next_multiple_of(layout.unit_cols());
        let (bad, weights) = (AtomicBool::new(false), AtomicBool::new(false));
        let out = SharedSlice::new(&mut buffer);
        let pack = match layout {
            Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 => pack_i2_s,
            Layout::Tl1T32 => pack_tl1,
            Layout::Tl2T32 => pack_tl2,
            Layout::Tl2W32 => pack_tl2_words,
            Layout::T5T32 => pack_t5,
        };
        pool.run(|worker| {
            let mut codes = vec![ZERO; stride];
            for tile in worker.share(tiles) {
                // SAFETY: workers own disjoint ranges of tiles.
                let out = unsafe { out.write(tile * tile_bytes..(tile + 1) * tile_bytes) };
                for row in 0..rows {
                    let number = tile * rows + row;
                    if number < shape.rows {
                        let seen = file.read(number, 0, &mut codes[..shape.cols]);
                        bad.fetch_or(seen.bad, Ordering::Relaxed);
                        weights.fetch_or(seen.weights, Ordering::Relaxed);
                    } else {
                        codes.fill(ZERO);
                    }
                    pack(&codes, (row, rows), out);
                }
            }
        })?;
        if bad.into_inner() {
            return Ok(Err(BadCode));
        }
        let zero = !weights.into_inner();
        Self::new(layout, shape, scales, zero, buffer).map(Ok)
    }

    /// Copies the matrix into `buffer`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `buffer` is not as long as [`PackedMatrix::data`] or a worker
    /// panicked.
    pub fn copy(&self, mut buffer: Buffer, pool: &Pool) -> Result<Self> {
        pool.copy(&self.data, &mut buffer)?;
        Self::new(self.layout, self.shape, self.scales.clone(), self.zero, buffer)
    }

    /// Layout of the packed matrix.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows and columns, without padding.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Scales that integer dot products are multiplied with, after division by the activations'
    /// scale.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// True if every weight is zero, which is never so in a trained model.
    pub fn is_zero(&self) -> bool {
        self.zero
    }

    /// The packed tiles.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// Looks at all codes of a matrix that is as long as its shape requires, each worker at a share.
///
/// # Errors
/// [`Error::Runtime`] when a worker panicked.
pub(crate) fn look_at(codes: Codes<'_>, pool: &Pool) -> Result<Seen> {
    /// Bytes checked at once, in two passes: they stay in the L1 cache.
    const CHUNK: usize = 16 << 10;
    let (bad, weights) = (AtomicBool::new(false), AtomicBool::new(false));
    let note = |seen: Seen| {
        bad.fetch_or(seen.bad, Ordering::Relaxed);
        weights.fetch_or(seen.weights, Ordering::Relaxed);
    };
    match codes.blocks() {
        Some((file, block)) => pool.run(|worker| {
            let share = worker.share(file.len() / block);
            let blocks = &file[share.start * block..share.end * block];
            for blocks in blocks.chunks(CHUNK / block * block) {
                codes.seen(blocks).into_iter().for_each(&note);
            }
        })?,
        None => pool.run(|worker| {
            let mut row = vec![ZERO; codes.shape().cols];
            worker.share(codes.shape().rows).for_each(|r| note(codes.read(r, 0, &mut row)));
        })?,
    }
    Ok(Seen { bad: bad.into_inner(), weights: weights.into_inner() })
}

/// Packs 16 codes into 4 bytes: field f, in bits 2f and 2f + 1, holds columns 4f .. 4f + 4, one in each
/// byte.
pub(super) fn pack_unit(codes: &[u8; 16]) -> u32 {
    // Eight columns at once: fields 0 and 1 are the halves of one word, 2 and 3 those of the other.
    let word = |i: usize| u64::from_le_bytes(codes.as_chunks().0[i]);
    let fields = word(0) | word(1) << 4;
    fields as u32 | ((fields >> 32) as u32) << 2
}

/// Packs one of the `rows` rows of a tile, whose codes are whole units, as [`Layout::I2sT16`] and its kin.
fn pack_i2_s(codes: &[u8], (row, rows): (usize, usize), out: &mut [u8]) {
    for (codes, out) in codes.as_chunks().0.iter().zip(out.chunks_exact_mut(4 * rows)) {
        out[4 * row..][..4].copy_from_slice(&pack_unit(codes).to_le_bytes());
    }
}

/// As [`pack_i2_s`], for [`Layout::Tl1T32`].
fn pack_tl1(codes: &[u8], (row, rows): (usize, usize), out: &mut [u8]) {
    // Codes are weights plus one, so this is `3a + b + 4` of the weights.
    let index = |pair: &[u8]| 3 * pair[0] + pair[1];
    for (codes, out) in codes.chunks_exact(4).zip(out.chunks_exact_mut(rows)) {
        out[row] = index(&codes[..2]) | index(&codes[2..]) << 4;
    }
}

/// Returns the magnitude of `9a + 3b + c` and true if it is negative, from the codes of three
/// weights.
fn triple(codes: &[u8]) -> (u8, bool) {
    let value = 9 * codes[0] + 3 * codes[1] + codes[2];
    (value.abs_diff(13), value < 13)
}

/// As [`pack_i2_s`], for [`Layout::Tl2T32`].
fn pack_tl2(codes: &[u8], (row, rows): (usize, usize), out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(24).zip(out.chunks_exact_mut(5 * rows)) {
        let mut signs = 0;
        for (group, codes) in codes.chunks_exact(6).enumerate() {
            let (low, high) = (triple(&codes[..3]), triple(&codes[3..]));
            out[group * rows + row] = low.0 | high.0 << 4;
            signs |= (u8::from(low.1) | u8::from(high.1) << 1) << (2 * group);
        }
        out[4 * rows + row] = signs;
    }
}

/// As [`pack_i2_s`], for [`Layout::Tl2W32`].
fn pack_tl2_words(codes: &[u8], (row, rows): (usize, usize), out: &mut [u8]) {
    let field = |codes: &[u8]| {
        let (magnitude, negative) = triple(codes);
        u16::from(magnitude) | u16::from(negative) << 4
    };
    for (codes, out) in codes.chunks_exact(48).zip(out.chunks_exact_mut(5 * rows * 2)) {
        let (words, last) = codes.split_at(45);
        let last = field(last);
        for (group, codes) in words.chunks_exact(9).enumerate() {
            let word = field(&codes[..3])
                | field(&codes[3..6]) << 5
                | field(&codes[6..]) << 10
                | (last >> (4 - group)) << 15;
            out[(group * rows + row) * 2..][..2].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// As [`pack_i2_s`], for [`Layout::T5T32`].
fn pack_t5(codes: &[u8], (row, rows): (usize, usize), out: &mut [u8]) {
    const HIGH: u32 = 0x8080_8080;
    for (codes, out) in codes.as_chunks::<20>().0.iter().zip(out.chunks_exact_mut(4 * rows)) {
        // Four bytes at once: no sum overflows its byte, since a number is at most 80.
        let (fields, _) = codes.as_chunks::<4>();
        let field = |i: usize| u32::from_le_bytes(fields[i]);
        let number = field(0) + 3 * field(1) + 9 * field(2) + 27 * field(3);
        let last = field(4);
        // All ones in the bytes whose number is 64 or more.
        let large = ((number + (HIGH >> 1)) & HIGH) >> 7;
        let large = (large << 8).wrapping_sub(large);
        let packed = number + ((64 * last) & !large) + ((HIGH + 17 * last) & large);
        out[4 * row..][..4].copy_from_slice(&packed.to_le_bytes());
    }
}
