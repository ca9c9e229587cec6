//! I2_S, bitnet.cpp's format: 2 bits a weight, one scale.
//!
//! 128 weights lie in 32 bytes, flat over the row-major matrix, so that a row may begin inside a
//! block: weight `j` of a block sits in byte `j % 32`, weights 0 to 31 in bits 7:6, 32 to 63 in bits
//! 5:4, and so on; codes 0, 1, 2 stand for -1, 0, +1 and 3 for nothing. Behind the last block stand
//! 32 bytes, of which the first four are the scale.
//!
//! As a head, too, it is multiplied with activations of one scale, as bitnet.cpp does: a logit is
//! `((dot as f32) / s) * scale`, as every product of a ternary matrix. Rows know no scale, so theirs is
//! 1, and what they give is to be multiplied by that of the tensor.

use bitnet_profiles::HeadFormat;

use super::blocks::{self, nearest};
use super::{Codes, Form, Format, LookAt, Reader, Rows, Scales, Seen, Size, TensorType, Ternary};
use crate::numerics::{idot, quantise_activations};

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
    reader: Reader::Both(
        Ternary {
            scales,
            read,
            form: Form::Blocks {
                seen: LookAt(Seen::among),
                encode: |codes, _, out| append(codes, out),
            },
            twos: false,
        },
        Rows { head: HeadFormat::I2S, dequantise, dot, quantise, minima: None },
    ),
};

/// Reads the scale behind the codes; NaN where it was left out.
fn scales(codes: Codes<'_>) -> Scales {
    codes.scale_behind(codes.shape().weights() / 4)
}

fn read(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let bytes = codes.bytes();
    let first = row * codes.shape().cols + first;
    let blocks = first / BLOCK..(first + out.len()).div_ceil(BLOCK);
    blocks::read(bytes, (BLOCK, BLOCK_BYTES), first, out, |block, codes| {
        let [block] = block.as_chunks().0 else { return };
        let [codes] = codes.as_chunks_mut().0 else { return };
        spread(block, codes);
    });
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

/// Reads a row of whole blocks: each weight is `code - 1`.
fn dequantise(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len() * 4, out.len());
    let mut codes = [0; BLOCK];
    for (block, out) in row.as_chunks().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        spread(block, &mut codes);
        *out = codes.map(|code| f32::from(code) - 1.0);
    }
}

fn dot(x: &[f32], row: &[u8]) -> f32 {
    assert_eq!(row.len() * 4, x.len());
    let mut q = vec![0; x.len()];
    let s = quantise_activations(x, &mut q);
    let mut codes = [0; BLOCK];
    let blocks = row.as_chunks().0.iter().zip(q.as_chunks::<BLOCK>().0);
    let dots = blocks.map(|(block, q)| {
        spread(block, &mut codes);
        idot(q, |i| i32::from(codes[i]) - 1)
    });
    dots.sum::<i32>() as f32 / s
}

fn quantise(values: &[f32], out: &mut Vec<u8>) {
    let codes: Vec<u8> = values.iter().map(|&v| (nearest(v, -1, 1) + 1) as u8).collect();
    out.extend(encode(&codes));
}

/// Packs codes, one per byte and a multiple of 128 of them, as the file holds them. The scale with
/// the rest of its 32 bytes is left for the caller to append.
#[must_use]
pub fn encode(codes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(codes.len() / 4);
    append(codes, &mut bytes);
    bytes
}

fn append(codes: &[u8], out: &mut Vec<u8>) {
    for block in codes.as_chunks::<BLOCK>().0 {
        out.extend_from_slice(&std::array::from_fn::<u8, BLOCK_BYTES, _>(|i| {
            (0..4).fold(0, |byte, quarter| byte << 2 | block[quarter * BLOCK_BYTES + i])
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Rows are read by the definition, and their products are those of ternary matrices.
    #[test]
    fn rows_are_read_exactly() {
        let random = &mut Random::new(36);
        let rows = FORMAT.rows().unwrap();
        for cols in [BLOCK, 3 * BLOCK, 2560] {
            let bytes: Vec<u8> = (0..cols / 4).map(|_| random.below(256) as u8).collect();
            // Weight j of a block is in byte j % 32, the first quarter in the upper bits.
            let code = |i: usize| bytes[i / 128 * 32 + i % 32] << (i % 128 / 32 * 2) >> 6;
            let weights: Vec<f32> = (0..cols).map(|i| f32::from(code(i)) - 1.0).collect();
            let mut read = vec![f32::NAN; cols];
            (rows.dequantise)(&bytes, &mut read);
            assert_eq!(read, weights);
            let x: Vec<f32> = (0..cols).map(|_| random.below(2000) as f32 / 1000.0 - 1.0).collect();
            let mut q = vec![0; cols];
            let s = quantise_activations(&x, &mut q);
            let dot: f32 = q.iter().zip(&weights).map(|(&q, w)| f32::from(q) * w).sum();
            assert_eq!((rows.dot)(&x, &bytes), dot / s);
        }
        let values: Vec<f32> = (0..BLOCK).map(|i| (i % 3) as f32 - 1.0).collect();
        let (mut bytes, mut read) = (Vec::new(), vec![f32::NAN; BLOCK]);
        (rows.quantise)(&values, &mut bytes);
        (rows.dequantise)(&bytes, &mut read);
        assert_eq!(read, values);
    }
}
