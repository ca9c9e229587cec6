//! T2: the blocks into which an embedding or a head of ternary codes with scales of their own is brought,
//! since kernels read codes in planes: 128 weights in 36 bytes.
//!
//! A block is two f16 scales, of the first 64 weights and of the others, then 32 bytes, of which byte `m`
//! holds weight `m + 32 l` in bits `2l + 1 : 2l`: codes 0, 1, 2, 3 for weights of -1, 0, +1, +2.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::Rows;
use super::blocks::{largest, reciprocal};
use super::float::f16_at;
use super::parts::{self, Part, Parts};

/// Weights in a block, and those that share a scale.
pub(crate) const BLOCK: usize = 128;
const HALF: usize = BLOCK / 2;
/// Bytes of a block, and of its scales.
const BYTES: usize = 36;
const SCALES: usize = 4;

/// The reader of rows.
pub(super) const ROWS: Rows = parts::rows::<T2>(HeadFormat::T2);

struct T2;

impl Parts for T2 {
    const WEIGHTS: usize = BLOCK;
    const BYTES: usize = BYTES;
    const MINIMA: bool = false;

    fn part(block: &[u8], i: usize) -> Part {
        let bytes: &[u8; 32] = block[SCALES..].first_chunk().expect("32 bytes of codes");
        let codes = bytes.map(|byte| i16::from(byte >> (2 * i) & 3) - 1);
        Part { scale: f16_at(block, i / 2), minimum: 0.0, codes }
    }

    /// Quantises to -1, 0 and +1 times the largest magnitude of each half.
    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let mut codes = [0; BLOCK];
        let mut scales = [f16::ZERO; 2];
        for (half, values) in values.chunks_exact(HALF).enumerate() {
            let scale = largest(values);
            let inverse = reciprocal(scale);
            scales[half] = f16::from_f32(scale);
            for (code, value) in codes[half * HALF..].iter_mut().zip(values) {
                *code = ((value * inverse).round() + 1.0) as u8;
            }
        }
        write(&codes, scales, out);
    }
}

/// Appends a block of codes, one per byte.
fn write(codes: &[u8; BLOCK], scales: [f16; 2], out: &mut Vec<u8>) {
    out.extend(scales.into_iter().flat_map(f16::to_le_bytes));
    let byte = |m: usize| (0..4).fold(0, |byte, l| byte | codes[m + 32 * l] << (2 * l));
    out.extend((0..32).map(byte));
}

/// Appends a row of ternary codes, one per byte, 0 to 3 for -1 to +2, of which as many as there are for each of
/// `scales` share one, 64 or a multiple: the same weights exactly.
pub(crate) fn of_codes(codes: &[u8], scales: &[f16], out: &mut Vec<u8>) {
    let width = codes.len() / scales.len();
    for (number, codes) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
        let scale = |half: usize| scales[(number * BLOCK + half * HALF) / width];
        write(codes, [scale(0), scale(1)], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of scales for 64, 128 and 256 weights each.
    #[test]
    fn codes_are_kept_exactly() {
        let codes: Vec<u8> = (0..512).map(|i| (i * i / 7 % 4) as u8).collect();
        for width in [64, 128, 256] {
            let scales: Vec<f16> =
                (0..512 / width).map(|b| f16::from_f32(0.25 * (b + 1) as f32)).collect();
            let mut row = Vec::new();
            of_codes(&codes, &scales, &mut row);
            assert_eq!(row.len(), HeadFormat::T2.row_bytes(512));
            let mut out = vec![0.0; 512];
            (ROWS.dequantise)(&row, &mut out);
            for (i, weight) in out.into_iter().enumerate() {
                let expected = scales[i / width].to_f32() * (f32::from(codes[i]) - 1.0);
                assert_eq!(weight, expected, "{width}, {i}");
            }
        }
    }

    #[test]
    fn the_nearest_weights_are_taken() {
        let values: Vec<f32> =
            (0..128).map(|i| [0.5, -0.5, 0.1][i % 3] * (1 + i / 64) as f32).collect();
        let mut row = Vec::new();
        (ROWS.quantise)(&values, &mut row);
        let mut out = vec![0.0; 128];
        (ROWS.dequantise)(&row, &mut out);
        for (i, weight) in out.into_iter().enumerate() {
            assert_eq!(weight, [0.5, -0.5, 0.0][i % 3] * (1 + i / 64) as f32, "{i}");
        }
    }
}
