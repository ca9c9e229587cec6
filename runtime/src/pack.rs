//! Packs ternary matrices: from the file's I2_S, one fixed layout on every CPU, to the layout of
//! the kernels that were chosen.
//!
//! The file holds 128 weights in 32 bytes, flat over the row-major matrix, so that a row may begin
//! inside a block: weight `j` of a block sits in byte `j % 32`, weights 0 to 31 in bits 7:6, 32 to
//! 63 in bits 5:4, and so on; codes 0, 1, 2 stand for -1, 0, +1 and 3 for nothing. A row of codes
//! is read from there, padded with zero weights, and handed to the packer of the layout.

use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_profiles::{Format, Layout, Shape};

use crate::memory::Buffer;
use crate::threads::{Pool, SharedSlice};
use crate::{Error, Result};

/// Weights in a block of the file's I2_S.
const BLOCK: usize = 128;
/// Bytes of a block.
const BLOCK_BYTES: usize = 32;
/// The code of weight 0.
const ZERO: u8 = 1;

/// A ternary matrix in the layout it was packed for.
#[derive(Debug)]
pub struct PackedMatrix {
    layout: Layout,
    shape: Shape,
    scale: f32,
    data: Buffer,
}

/// A matrix holds code 3, which stands for no weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCode;

impl PackedMatrix {
    /// Packs `file`, the I2_S codes of a matrix of `shape` without the scale that follows them,
    /// into `buffer`. Every worker packs the tiles it owns.
    ///
    /// # Errors
    /// `Ok(Err(BadCode))` when a code is 3; [`Error::Runtime`] when sizes do not fit or a worker
    /// panicked.
    pub fn pack(
        file: &[u8],
        shape: Shape,
        scale: f32,
        layout: Layout,
        mut buffer: Buffer,
        pool: &Pool,
    ) -> Result<std::result::Result<Self, BadCode>> {
        let fits = shape.weights().is_multiple_of(BLOCK)
            && file.len() == shape.weights() / 4
            && buffer.len() == layout.matrix_bytes(shape)
            && (1..=Shape::MAX_COLS).contains(&shape.cols);
        if !fits {
            return Err(Error::Runtime(format!(
                "cannot pack a matrix of {shape} from {} bytes into {} as {layout}",
                file.len(),
                buffer.len()
            )));
        }
        let rows = layout.tile_rows();
        let tile_bytes = layout.tile_bytes(shape.cols);
        let tiles = buffer.len() / tile_bytes;
        let stride = shape.cols.next_multiple_of(layout.unit_cols());
        let bad = AtomicBool::new(false);
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let mut codes = vec![ZERO; rows * stride];
            for tile in worker.share(tiles) {
                for (i, row) in codes.chunks_exact_mut(stride).enumerate() {
                    let number = tile * rows + i;
                    if number < shape.rows {
                        let ok = read_codes(file, number * shape.cols, &mut row[..shape.cols]);
                        if !ok {
                            bad.store(true, Ordering::Relaxed);
                        }
                    } else {
                        row.fill(ZERO);
                    }
                }
                // SAFETY: workers own disjoint ranges of tiles.
                let out = unsafe { out.write(tile * tile_bytes..(tile + 1) * tile_bytes) };
                match layout.format() {
                    Format::I2S => pack_i2_s(&codes, stride, out),
                    Format::Tl1 | Format::Tl2 => out.fill(0),
                }
            }
        })?;
        if bad.into_inner() {
            return Ok(Err(BadCode));
        }
        Ok(Ok(Self { layout, shape, scale, data: buffer }))
    }

    /// The same matrix once more, in `buffer`. Every worker copies the tiles it owns.
    ///
    /// # Errors
    /// [`Error::Runtime`] when `buffer` is not as long as [`PackedMatrix::data`] or a worker
    /// panicked.
    pub fn copy(&self, mut buffer: Buffer, pool: &Pool) -> Result<Self> {
        if buffer.len() != self.data.len() {
            return Err(Error::Runtime(format!(
                "cannot copy a matrix of {} bytes into {}",
                self.data.len(),
                buffer.len()
            )));
        }
        let tile_bytes = self.layout.tile_bytes(self.shape.cols);
        let tiles = self.data.len() / tile_bytes;
        let out = SharedSlice::new(&mut buffer);
        pool.run(|worker| {
            let share = worker.share(tiles);
            let bytes = share.start * tile_bytes..share.end * tile_bytes;
            // SAFETY: workers own disjoint ranges of tiles.
            unsafe { out.write(bytes.clone()) }.copy_from_slice(&self.data[bytes]);
        })?;
        Ok(Self { data: buffer, ..*self })
    }

    /// The layout the matrix was packed for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows and columns, without padding.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What an integer dot product is multiplied with, after it is divided by the activations'
    /// scale.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The packed tiles.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The packed tiles, to be changed by tests that show that every code counts.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

/// Reads the codes of weights `first..first + codes.len()` of the flat matrix, and says whether
/// none of them is 3.
fn read_codes(file: &[u8], first: usize, codes: &mut [u8]) -> bool {
    let mut bad = 0;
    let mut done = 0;
    while done < codes.len() {
        let weight = first + done;
        let block = &file[weight / BLOCK * BLOCK_BYTES..][..BLOCK_BYTES];
        let mut all = [0u8; BLOCK];
        for (quarter, codes) in all.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            for (code, byte) in codes.iter_mut().zip(block) {
                *code = (byte >> (6 - 2 * quarter)) & 3;
            }
        }
        bad |= block.iter().fold(0, |bad, byte| bad | (byte & (byte >> 1) & 0x55));
        let from = weight % BLOCK;
        let take = (BLOCK - from).min(codes.len() - done);
        codes[done..done + take].copy_from_slice(&all[from..from + take]);
        done += take;
    }
    bad == 0
}

/// Packs one tile of rows of `stride` codes as [`Layout::I2sT16`] or [`Layout::I2sT32`].
fn pack_i2_s(codes: &[u8], stride: usize, out: &mut [u8]) {
    let rows = codes.len() / stride;
    for (row, codes) in codes.chunks_exact(stride).enumerate() {
        for (unit, codes) in codes.chunks_exact(16).enumerate() {
            // Field f of the row's 4 bytes: columns 4f .. 4f + 4, one in each byte.
            let packed = codes.chunks_exact(4).enumerate().fold(0, |packed, (field, quad)| {
                packed | u32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]) << (2 * field)
            });
            out[(unit * rows + row) * 4..][..4].copy_from_slice(&packed.to_le_bytes());
        }
    }
}

/// Codes in the file's I2_S, for tests and for writing models: the inverse of what
/// [`PackedMatrix::pack`] reads. The number of codes is a multiple of 128.
pub fn to_file_codes(codes: &[u8]) -> Vec<u8> {
    let block = |block: &[u8]| -> [u8; BLOCK_BYTES] {
        std::array::from_fn(|i| {
            (0..4).fold(0, |byte, quarter| byte << 2 | block[quarter * BLOCK_BYTES + i])
        })
    };
    codes.chunks_exact(BLOCK).flat_map(block).collect()
}
