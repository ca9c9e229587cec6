//! TL2, bitnet.cpp's format for its x86 kernels: 5/3 bits a weight in tiles, one scale.
//!
//! Columns are split: as many as fill whole tiles are read three at a time, the rest, a multiple of 32,
//! two at a time. With the sizes of [`Tiles`], `bm` of which is 32, three regions follow each other:
//!
//! - Magnitudes: three weights a, b, c are `v = 9a + 3b + c`, and `|v|` is a nibble. The byte of row `m` and
//!   columns `c .. c + 6` is at `[m / BM][c / BK][(m % BM) / 32][(c % BK) / 6][row]`, the first three
//!   columns in its high nibble. Rows 0 to 31 are stored as 0 to 7, 16 to 23, 8 to 15, 24 to 31.
//! - Signs: one bit, 1 where `v < 0`, in little-endian words of 16 bits at
//!   `[m / BM][c / BK][(m % BM) / 32][(c % BK) / 24][m % 16]`: bit `15 - 2 ((c % 24) / 3) - (m % 32) / 16`.
//! - The rest: a pair is the index of TL1. The byte of columns `c .. c + 4`, counted from the first of
//!   the rest, is at `[m / BM][c / 32][(m % BM) / 32][(c % 32) / 4][row]`, rows as above.
//!
//! They are padded with zeros to a size that bitnet.cpp computes as if the rest had 256 columns. Behind
//! that stand 32 bytes, of which the first four are the scale.

use bitnet_profiles::Shape;

use super::tiles::{self, Preset, Regions, Tiled, Tiles, preset};
use super::tl1::{index, pair};
use super::{Codes, Form, Format, Reader, Scales, Seen, Size, TensorType, Ternary};

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::TL2,
    id: 39,
    name: "tl2",
    size: Size::Tl2,
    reader: Reader::Codes(Ternary {
        scales,
        read,
        form: Form::Tiles(Tiled { presets: PRESETS, check, encode }),
        twos: false,
    }),
};

/// Of bitnet.cpp's `preset_kernels/` and `setup_env.py`: 1bitLLM's large and 3B, Llama3-8B-1.58.
const PRESETS: &[Preset] = &[
    preset((1536, 4096), (256, 96, 32)),
    preset((1536, 1536), (128, 192, 32)),
    preset((4096, 1536), (256, 96, 32)),
    preset((3200, 8640), (160, 96, 32)),
    preset((3200, 3200), (320, 96, 32)),
    preset((8640, 3200), (320, 96, 32)),
    preset((14_336, 4096), (256, 96, 32)),
    preset((4096, 14_336), (128, 96, 32)),
    preset((1024, 4096), (256, 96, 32)),
    preset((4096, 4096), (128, 96, 32)),
];

/// Rows that are looked up together.
const INNER: usize = 32;
/// Columns of a word of signs.
const WORD: usize = 24;
/// Columns of a tile of the rest.
const REST: usize = 32;

fn check(tiles: Tiles, shape: Shape) -> Result<(), String> {
    if tiles.inner != INNER {
        return Err(format!("bm of {INNER}"));
    }
    tiles::check(tiles, shape, WORD)?;
    let rest = shape.cols % tiles.cols;
    if !rest.is_multiple_of(REST) {
        return Err(format!("BK that leaves a multiple of {REST} of {} columns", shape.cols));
    }
    // The size of the tensor allows for no more.
    if rest <= 256 { Ok(()) } else { Err("BK that leaves at most 256 columns".into()) }
}

/// Places of a row in the three regions.
#[derive(Clone, Copy)]
struct Row {
    shape: Shape,
    tiles: Tiles,
    row: usize,
    /// Columns that are read three at a time.
    three: usize,
    /// Place among 32 rows.
    position: usize,
}

impl Row {
    fn new(shape: Shape, tiles: Tiles, row: usize) -> Self {
        let three = shape.cols / tiles.cols * tiles.cols;
        // Eights of rows are stored in the order 0, 2, 1, 3.
        let position = [0, 16, 8, 24][row % INNER / 8] + row % 8;
        Self { shape, tiles, row, three, position }
    }

    /// Weights in front of the 32 rows and `unit` columns that hold `col`, in a region of tiles of `cols`
    /// columns and `all` in a row.
    fn weights(&self, col: usize, unit: usize, cols: usize, all: usize) -> usize {
        let rows = self.tiles.rows;
        let band = self.row / rows * rows * all + col / cols * cols * rows;
        band + self.row % rows / INNER * INNER * cols + col % cols / unit * unit * INNER
    }

    /// The byte of the magnitudes of six columns.
    fn magnitudes(&self, col: usize) -> usize {
        self.weights(col, 6, self.tiles.cols, self.three) / 6 + self.position
    }

    /// The two bytes of the signs of 24 columns, in their region.
    fn signs(&self, col: usize) -> usize {
        self.weights(col, WORD, self.tiles.cols, self.three) / 24 + self.row % 16 * 2
    }

    /// The bit of three columns in their word of signs.
    fn bit(&self, col: usize) -> usize {
        15 - 2 * (col % WORD / 3) - self.row % INNER / 16
    }

    /// The byte of four columns of the rest, in its region.
    fn rest(&self, col: usize) -> usize {
        let all = self.shape.cols - self.three;
        self.weights(col - self.three, 4, REST, all) / 4 + self.position
    }

    /// Sizes of the three regions.
    fn regions(&self) -> [usize; 3] {
        let Shape { rows, cols } = self.shape;
        [rows * self.three / 6, rows * self.three / 24, rows * (cols - self.three) / 4]
    }
}

fn scales(codes: Codes<'_>) -> Scales {
    let Shape { rows, cols } = codes.shape();
    let size = TensorType::TL2.byte_size(&[cols as u64, rows as u64]);
    let tail = Size::Tl2.tail_bytes();
    codes.scale_behind(size.map_or(usize::MAX, |size| (size - tail) as usize))
}

fn read(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let place = Row::new(codes.shape(), codes.tiles(), row);
    let [magnitudes, signs, _] = place.regions();
    let (magnitudes, behind) = codes.bytes().split_at(magnitudes);
    let (signs, rest) = behind.split_at(signs);
    let mut seen = Seen::default();
    let end = first + out.len();
    let mut put = |col: usize, codes: &[u8]| {
        let (from, to) = (first.max(col), end.min(col + codes.len()));
        if from < to {
            out[from - first..to - first].copy_from_slice(&codes[from - col..to - col]);
        }
    };
    for col in (first / 6 * 6..end.min(place.three)).step_by(6) {
        let byte = magnitudes[place.magnitudes(col)];
        let at = place.signs(col);
        let word = u16::from_le_bytes([signs[at], signs[at + 1]]);
        let mut six = [0; 6];
        let (threes, _) = six.as_chunks_mut();
        for (magnitude, col, codes) in [(byte >> 4, col, 0), (byte & 15, col + 3, 1)] {
            seen |= triple(magnitude, word >> place.bit(col) & 1 == 1, &mut threes[codes]);
        }
        put(col, &six);
    }
    for col in (place.three.max(first / 4 * 4)..end).step_by(4) {
        let byte = rest[place.rest(col)];
        let mut four = [0; 4];
        let (pairs, _) = four.as_chunks_mut();
        seen |= pair(byte >> 4, &mut pairs[0]);
        seen |= pair(byte & 15, &mut pairs[1]);
        put(col, &four);
    }
    seen
}

/// Reads the codes of three weights; those of a magnitude that is none are 3.
fn triple(magnitude: u8, negative: bool, codes: &mut [u8; 3]) -> Seen {
    let bad = magnitude > 13;
    *codes = if bad {
        [3; 3]
    } else {
        // 13 is added, as codes are weights plus 1.
        let value = if negative { 13 - magnitude } else { 13 + magnitude };
        [value / 9, value / 3 % 3, value % 3]
    };
    Seen { bad, weights: magnitude != 0 }
}

fn encode(codes: &[u8], shape: Shape, tiles: Tiles) -> Regions {
    let mut regions = Row::new(shape, tiles, 0).regions().map(|bytes| vec![0; bytes]);
    let [magnitudes, signs, rest] = &mut regions;
    for (row, codes) in codes.chunks_exact(shape.cols).enumerate() {
        let place = Row::new(shape, tiles, row);
        let (threes, twos) = codes.split_at(place.three);
        for (group, codes) in threes.chunks_exact(3).enumerate() {
            let col = 3 * group;
            let value = 9 * codes[0] + 3 * codes[1] + codes[2];
            let shift = if group % 2 == 0 { 4 } else { 0 };
            magnitudes[place.magnitudes(col)] |= value.abs_diff(13) << shift;
            let word = u16::from(value < 13) << place.bit(col);
            let at = place.signs(col);
            signs[at] |= word.to_le_bytes()[0];
            signs[at + 1] |= word.to_le_bytes()[1];
        }
        for (group, codes) in twos.chunks_exact(4).enumerate() {
            let at = place.rest(place.three + 4 * group);
            rest[at] = index(&codes[..2]) << 4 | index(&codes[2..]);
        }
    }
    regions
}
