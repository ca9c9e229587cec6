//! TL1, bitnet.cpp's format for its ARM kernels: 2 bits a weight in tiles, one scale.
//!
//! Two weights a, b of a row, one behind the other, are the index `3a + b + 4`; a byte holds two
//! indices, the first in its high nibble. Bytes lie in the order of [`Tiles`], from outer to inner:
//! `[m / BM][c / BK][(m % BM) / bm][(c % BK) / by][(m % bm) / 16][(c % by) / 4][m % 16]` for row `m` and
//! columns `c .. c + 4`, with `by = 256 / bm`. Behind them stand 32 bytes, of which the first four are the
//! scale.

use bitnet_profiles::Shape;

use super::tiles::{self, Preset, Regions, Tiled, Tiles, disputed, preset};
use super::{Codes, Form, Format, Reader, Scales, Seen, Size, TensorType, Ternary};

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::TL1,
    id: 38,
    name: "tl1",
    size: Size::TwoBitFlat,
    reader: Reader::Codes(Ternary {
        scales,
        read,
        form: Form::Tiles(Tiled { presets: PRESETS, check, encode }),
        twos: false,
    }),
};

/// Of bitnet.cpp's `preset_kernels/`: 1bitLLM's large and 3B, Llama3-8B-1.58.
const PRESETS: &[Preset] = &[
    preset((1536, 4096), (256, 128, 32)),
    preset((1536, 1536), (128, 64, 64)),
    preset((4096, 1536), (256, 128, 32)),
    preset((3200, 8640), (160, 64, 32)),
    preset((3200, 3200), (320, 128, 64)),
    preset((8640, 3200), (320, 64, 32)),
    disputed((14_336, 4096), (256, 128, 64), 32),
    disputed((4096, 14_336), (256, 128, 32), 64),
    disputed((1024, 4096), (128, 64, 64), 32),
    disputed((4096, 4096), (128, 64, 32), 64),
];

/// Index of two zeros.
const ZEROS: u8 = 4;

/// Columns that one look-up of `inner` rows reads.
fn unit(tiles: Tiles) -> usize {
    256 / tiles.inner
}

fn check(tiles: Tiles, shape: Shape) -> Result<(), String> {
    if !matches!(tiles.inner, 32 | 64) {
        return Err("bm of 32 or 64".into());
    }
    tiles::check(tiles, shape, unit(tiles))?;
    if shape.cols.is_multiple_of(tiles.cols) {
        return Ok(());
    }
    Err(format!("BK that divides {}", shape.cols))
}

/// Returns the byte of four columns, the first of which is `col`.
fn place(tiles: Tiles, shape: Shape, row: usize, col: usize) -> usize {
    let Tiles { rows, cols, inner } = tiles;
    let unit = unit(tiles);
    let band = row / rows * rows * shape.cols + col / cols * cols * rows;
    let tile = row % rows / inner * inner * cols + col % cols / unit * unit * inner;
    let own = row % inner / 16 * 16 * unit + col % unit * 16;
    (band + tile + own) / 4 + row % 16
}

fn scales(codes: Codes<'_>) -> Scales {
    codes.scale_behind(codes.shape().weights() / 4)
}

fn read(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let (tiles, shape, bytes) = (codes.tiles(), codes.shape(), codes.bytes());
    let mut seen = Seen::default();
    let mut four = [0; 4];
    let end = first + out.len();
    for col in (first / 4 * 4..end).step_by(4) {
        let byte = bytes[place(tiles, shape, row, col)];
        let (pairs, _) = four.as_chunks_mut();
        seen |= pair(byte >> 4, &mut pairs[0]);
        seen |= pair(byte & 15, &mut pairs[1]);
        let (from, to) = (first.max(col), end.min(col + 4));
        out[from - first..to - first].copy_from_slice(&four[from - col..to - col]);
    }
    seen
}

/// Reads the codes of two weights; those of an index that is none are 3.
pub(super) fn pair(index: u8, codes: &mut [u8; 2]) -> Seen {
    let bad = index > 8;
    *codes = if bad { [3; 2] } else { [index / 3, index % 3] };
    Seen { bad, weights: index != ZEROS }
}

/// The index of two codes.
pub(super) fn index(codes: &[u8]) -> u8 {
    3 * codes[0] + codes[1]
}

fn encode(codes: &[u8], shape: Shape, tiles: Tiles) -> Regions {
    let mut bytes = vec![0; shape.weights() / 4];
    for (row, codes) in codes.chunks_exact(shape.cols).enumerate() {
        for (group, codes) in codes.chunks_exact(4).enumerate() {
            let at = place(tiles, shape, row, 4 * group);
            bytes[at] = index(&codes[..2]) << 4 | index(&codes[2..]);
        }
    }
    [bytes, Vec::new(), Vec::new()]
}
