//! I2_S, bitnet.cpp's format: 2 bits a weight, one scale.
//!
//! 128 weights lie in 32 bytes, flat over the row-major matrix, so that a row may begin inside a
//! block: weight `j` of a block sits in byte `j % 32`, weights 0 to 31 in bits 7:6, 32 to 63 in bits
//! 5:4, and so on; codes 0, 1, 2 stand for -1, 0, +1 and 3 for nothing. Behind the last block stand
//! 32 bytes, of which the first four are the scale.

use super::{Codes, Format, Reader, Scales, Seen, Size, TensorType, Ternary, blocks};

/// Weights in a block.
pub(crate) const BLOCK: usize = 128;
/// Bytes of a block.
const BLOCK_BYTES: usize = 32;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::I2_S,
    id: 36,
    name: "i2_s",
    size: Size::TwoBitFlat,
    reader: Reader::Ternary(Ternary { scales, read }),
};

/// Reads the scale behind the codes; NaN where it was left out.
fn scales(codes: Codes<'_>) -> Scales {
    let tail = codes.bytes().get(codes.shape().weights() / 4..);
    let scale = tail.and_then(|tail| tail.first_chunk());
    Scales::Tensor(scale.map_or(f32::NAN, |&scale| f32::from_le_bytes(scale)))
}

fn read(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let bytes = codes.bytes();
    let first = row * codes.shape().cols + first;
    let blocks = first / BLOCK..(first + out.len()).div_ceil(BLOCK);
    blocks::read(bytes, first, out, spread);
    Seen::among(&bytes[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES])
}

/// Unpacks a block to one code per byte.
fn spread(block: &[u8; BLOCK_BYTES], codes: &mut [u8; BLOCK]) {
    for (quarter, codes) in codes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        for (code, byte) in codes.iter_mut().zip(block) {
            *code = (byte >> (6 - 2 * quarter)) & 3;
        }
    }
}

/// Packs codes, one per byte and a multiple of 128 of them, as the file holds them. The scale with
/// the rest of its 32 bytes is left for the caller to append.
#[must_use]
pub fn encode(codes: &[u8]) -> Vec<u8> {
    let block = |block: &[u8]| -> [u8; BLOCK_BYTES] {
        std::array::from_fn(|i| {
            (0..4).fold(0, |byte, quarter| byte << 2 | block[quarter * BLOCK_BYTES + i])
        })
    };
    codes.chunks_exact(BLOCK).flat_map(block).collect()
}
