//! Q3_K: 256 weights in 110 bytes, 32 bytes of upper bits, 64 of lower bit pairs, 16 6-bit scales in 12
//! bytes (one per 16 weights), an f16 scale (`block_q3_K` of ggml-common.h, `dequantize_row_q3_K` of
//! ggml-quants.c).
//!
//! Weight `i` stands in half `i / 128`; there, quarter `t = (i % 128) / 32` of weights `l = i % 32` takes
//! bits `2t + 1 : 2t` of low byte `l`, and bit `i / 32` of high byte `l`; codes are weights plus 4. The
//! lower 4 bits of scale `j` are nibble `j / 8` of byte `j % 8`, the upper two bits `2 (j / 4) + 1 :
//! 2 (j / 4)` of byte `8 + j % 4`, together plus 32.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{largest, nearest, reciprocal};
use super::float::f16_at;
use super::parts::{self, Part, Parts};
use super::{Format, Reader, TensorType};

/// Byte of the lower bit pairs in a block.
const LOW: usize = 32;
/// Byte of the scales.
const SCALES: usize = 96;
/// Index of the block's scale, in f16s.
const SCALE: usize = 108 / 2;

struct Q3K;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q3_K,
    id: 11,
    name: "q3_K",
    size: parts::size::<Q3K>(),
    reader: Reader::Rows(parts::rows::<Q3K>(HeadFormat::Q3K)),
};

/// Returns scale `j` of a block's 16: -32..=31.
fn scale(scales: &[u8], j: usize) -> i16 {
    let low = scales[j % 8] >> (j / 8 * 4) & 15;
    let high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
    i16::from(low | high << 4) - 32
}

impl Parts for Q3K {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 110;
    const MINIMA: bool = false;

    fn part(block: &[u8], i: usize) -> Part {
        let low = &block[LOW + i / 4 * 32..][..32];
        let scales = [0, 1].map(|half| scale(&block[SCALES..], 2 * i + half));
        let codes = std::array::from_fn(|l| {
            let code = low[l] >> (i % 4 * 2) & 3 | (block[l] >> i & 1) << 2;
            scales[l / 16] * (i16::from(code) - 4)
        });
        Part { scale: f16_at(block, SCALE), minimum: 0.0, codes }
    }

    /// Quantises with scales from the largest magnitude of each 16, to codes of 0 to 7; the scales are
    /// multiples, up to 31, of the block's.
    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let unit = f16::from_f32(largest(values) / (3.0 * 31.0));
        let per_unit = reciprocal(unit.to_f32());
        let mut block = [0; Self::BYTES];
        for (j, values) in values.chunks_exact(16).enumerate() {
            let scale = nearest(largest(values) / 3.0 * per_unit, 0, 31);
            let code = (scale + 32) as u8;
            block[SCALES + j % 8] |= (code & 15) << (j / 8 * 4);
            block[SCALES + 8 + j % 4] |= code >> 4 << (j / 4 * 2);
            let inverse = reciprocal(scale as f32 * unit.to_f32());
            for (i, value) in (16 * j..).zip(values) {
                let code = (nearest(value * inverse, -4, 3) + 4) as u8;
                block[LOW + i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
                block[i % 32] |= code >> 2 << (i / 32);
            }
        }
        block[2 * SCALE..].copy_from_slice(&unit.to_le_bytes());
        out.extend(block);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_rows;
    use super::*;

    /// Reads random bytes as ggml's dequantiser walks them: two halves, four shifts, two runs of 16.
    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let d = 0.0625 * (b + 1) as f32;
            bytes[108..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let s = &bytes[96..108];
            let mut scales = Vec::new();
            for (low, shift) in [(0, 0), (4, 2), (0, 4), (4, 6)] {
                let nibble = |byte: u8| if shift < 4 { byte & 15 } else { byte >> 4 };
                for i in 0..4 {
                    scales
                        .push(f32::from(nibble(s[low + i]) + 16 * (s[8 + i] >> shift & 3)) - 32.0);
                }
            }
            let (mut out, mut is, mut mask) = (Vec::new(), 0, 1u8);
            for half in bytes[32..96].chunks(32) {
                for shift in [0, 2, 4, 6] {
                    for run in [0, 16] {
                        let dl = d * scales[is];
                        is += 1;
                        for l in run..run + 16 {
                            let minus = if bytes[l] & mask == 0 { 4.0 } else { 0.0 };
                            out.push(dl * (f32::from(half[l] >> shift & 3) - minus));
                        }
                    }
                    mask = mask.wrapping_shl(1);
                }
            }
            out
        });
    }
}
