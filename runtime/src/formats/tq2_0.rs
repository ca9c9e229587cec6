//! TQ2_0, llama.cpp's format: 2 bits a weight, and a scale for every 256 of a row.
//!
//! A block is 66 bytes: two halves of 128 weights in 32 bytes, where byte `m` holds weight
//! `m + 32 l` in bits `2l + 1 : 2l`, and an f16 scale behind them. Codes 0, 1, 2 stand for -1, 0, +1
//! and 3 for nothing. Converters write the largest weight of a block as its scale, so a matrix that
//! has but one scale comes with that one, or 0 where a block is all zero. An embedding or a head has any.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{largest, reciprocal};
use super::float::f16_at;
use super::one_scale::{self, OneScale};
use super::parts::{self, Part, Parts};
use super::{Format, Reader, TensorType};

/// Weights in a block.
const BLOCK: usize = 256;
/// Bytes of a block's codes.
const CODES: usize = 64;
/// Bytes of a block.
const BLOCK_BYTES: usize = CODES + 2;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::TQ2_0,
    id: 35,
    name: "tq2_0",
    size: parts::size::<Tq2_0>(),
    reader: Reader::Both(one_scale::ternary::<Tq2_0>(), parts::rows::<Tq2_0>(HeadFormat::Tq2_0)),
};

struct Tq2_0;

impl Parts for Tq2_0 {
    const WEIGHTS: usize = BLOCK;
    const BYTES: usize = BLOCK_BYTES;
    const MINIMA: bool = false;

    fn part(block: &[u8], i: usize) -> Part {
        let bytes: &[u8; 32] = block[i / 4 * 32..].first_chunk().expect("64 bytes of a block");
        let codes = bytes.map(|byte| i16::from(byte >> (i % 4 * 2) & 3) - 1);
        Part { scale: f16_at(block, CODES / 2), minimum: 0.0, codes }
    }

    /// Quantises as ggml's reference does (`quantize_row_tq2_0_ref`): the largest magnitude is the scale,
    /// before it is rounded to f16, and halves are rounded away from zero.
    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let scale = largest(values);
        let inverse = reciprocal(scale);
        let code = |i: usize| ((values[i] * inverse).round() + 1.0) as u8;
        let byte = |i: usize| {
            let first = i / 32 * 128 + i % 32;
            (0..4).map(|l| code(first + 32 * l) << (2 * l)).sum::<u8>()
        };
        out.extend((0..CODES).map(byte));
        out.extend(f16::from_f32(scale).to_le_bytes());
    }
}

impl OneScale for Tq2_0 {
    const WEIGHTS: usize = BLOCK;
    const BYTES: usize = BLOCK_BYTES;
    const SCALE: usize = CODES;

    fn spread(block: &[u8], codes: &mut [u8]) {
        let halves = &block.as_chunks::<{ CODES / 2 }>().0[..2];
        for (half, codes) in halves.iter().zip(codes.as_chunks_mut::<{ BLOCK / 2 }>().0) {
            for (l, codes) in codes.chunks_exact_mut(half.len()).enumerate() {
                for (code, byte) in codes.iter_mut().zip(half) {
                    *code = (byte >> (2 * l)) & 3;
                }
            }
        }
    }

    fn pack(codes: &[u8], block: &mut [u8]) {
        for (i, byte) in block[..CODES].iter_mut().enumerate() {
            let first = i / 32 * 128 + i % 32;
            *byte = (0..4).fold(0, |byte, l| byte | codes[first + 32 * l] << (2 * l));
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Shape;

    use super::super::tests::check_rows;
    use super::super::{Codes, Scales, Seen};
    use super::*;

    /// Builds two rows of two blocks: the codes of `code`, and scales.
    fn tensor(code: impl Fn(usize) -> u8, scales: [f32; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (block, scale) in scales.into_iter().enumerate() {
            let mut codes = [0u8; CODES];
            for i in 0..BLOCK {
                // Weight i is in half i / 128; there, in byte i % 32, field i / 32.
                codes[i / 128 * 32 + i % 32] |= code(block * BLOCK + i) << (2 * (i % 128 / 32));
            }
            bytes.extend(codes);
            bytes.extend(f16::from_f32(scale).to_le_bytes());
        }
        bytes
    }

    const SHAPE: Shape = Shape::new(2, 2 * BLOCK);

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let d = 0.125 * (b + 1) as f32;
            bytes[64..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let code = |i: usize| bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            (0..BLOCK).map(|i| d * (f32::from(code(i)) - 1.0)).collect()
        });
    }

    #[test]
    fn codes_and_scales_are_read() {
        let code = |i: usize| (i * i / 7 % 3) as u8;
        let bytes = tensor(code, [0.5, 0.5, -0.0, 0.25]);
        let codes = Codes::new(TensorType::TQ2_0, &bytes, SHAPE).unwrap();
        assert!(codes.fits());
        let values = vec![0.5, 0.5, 0.0, 0.25];
        assert_eq!(codes.scales(), Scales::Blocks { width: 256, values });
        let expected = |row: usize, col: usize| match (row, col / BLOCK) {
            // A scale of 0 gives zeros.
            (1, 0) => 1,
            _ => code(row * SHAPE.cols + col),
        };
        for (row, first, n) in [(0, 0, 512), (1, 0, 512), (0, 5, 300), (1, 255, 2), (1, 300, 0)] {
            let mut out = vec![9; n];
            let seen = codes.read(row, first, &mut out);
            let wanted: Vec<u8> = (first..first + n).map(|col| expected(row, col)).collect();
            assert_eq!(out, wanted, "row {row}, {n} from {first}");
            assert!(!seen.bad && (seen.weights || n == 0), "row {row}, {n} from {first}: {seen:?}");
        }
        assert!(!Codes::new(TensorType::TQ2_0, &bytes[1..], SHAPE).unwrap().fits());
        assert!(!Codes::new(TensorType::TQ2_0, &bytes, Shape::new(4, 256 - 64)).unwrap().fits());
    }

    /// Code 3 is reported anywhere, except where the scale is 0 and makes it a zero.
    #[test]
    fn code_3_is_seen() {
        for at in [0, 31, 32, 127, 128, 255, 256, 700, 1023] {
            let code = |i: usize| if i == at { 3 } else { 1 };
            for (scale, seen) in [(1.0, Seen { bad: true, weights: true }), (0.0, Seen::default())]
            {
                let bytes = tensor(code, [scale; 4]);
                let codes = Codes::new(TensorType::TQ2_0, &bytes, SHAPE).unwrap();
                let mut out = [0; 512];
                assert_eq!(codes.read(at / 512, 0, &mut out), seen, "{at}");
                assert_eq!(out[at % 512], if scale == 0.0 { 1 } else { 3 });
                assert_eq!(codes.read(1 - at / 512, 0, &mut out), Seen::default());
            }
        }
    }
}
