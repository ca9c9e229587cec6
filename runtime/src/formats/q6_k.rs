//! Q6_K: 256 weights in 210 bytes, 128 of low nibbles, 64 of high bit pairs, 16 int8 scales (one per
//! 16 weights), an f16 scale.
//!
//! Weight `i` stands in half `i / 128`; there, quarter `t = (i % 128) / 32` of weights `l = i % 32`
//! takes nibble `t / 2` of low byte `32 (t % 2) + l` and bits `2t + 1 : 2t` of high byte `l`, plus 32.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{extreme, nearest};
use super::float::f16_at;
use super::{Format, Reader, Rows, Size, TensorType};
use crate::numerics::{self, dot_blocks, idot, in_blocks};

/// Weights in a block.
const BLOCK: usize = 256;
/// Bytes of a block.
const BYTES: usize = 210;
/// Index of the scale in a block, in f16s.
const SCALE: usize = 208 / 2;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q6_K,
    id: 14,
    name: "q6_K",
    size: Size::Rows { weights: BLOCK as u64, bytes: BYTES as u64, extra: 0 },
    reader: Reader::Rows(Rows { head: HeadFormat::Q6K, dequantise, dot, quantise, minima: None }),
};

/// Returns weight `i` of a block, without its scales: -32..=31.
#[inline]
fn weight(block: &[u8], i: usize) -> i32 {
    let (half, t, l) = (i / 128, i % 128 / 32, i % 32);
    let low = block[64 * half + 32 * (t % 2) + l] >> (4 * (t / 2)) & 15;
    let high = block[128 + 32 * half + l] >> (2 * t) & 3;
    i32::from(low | high << 4) - 32
}

/// Returns the int8 scale of weight `i` of a block.
#[inline]
fn scale(block: &[u8], i: usize) -> i32 {
    i32::from(block[192 + i / 16] as i8)
}

/// Reads a row: each weight is `d * ((scale * w) as f32)`.
fn dequantise(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len() * BLOCK, out.len() * BYTES);
    for (block, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let d = f16_at(block, SCALE);
        // 16 weights share a scale and the position of their bits.
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, t, l) = (part / 8, part % 8 / 2, part % 2 * 16);
            let low = &block[64 * half + 32 * (t % 2) + l..][..16];
            let high = &block[128 + 32 * half + l..][..16];
            let scale = scale(block, 16 * part);
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                let code = low >> (4 * (t / 2)) & 15 | (high >> (2 * t) & 3) << 4;
                *out = d * (scale * (i32::from(code) - 32)) as f32;
            }
        }
    }
}

fn dot(x: &[f32], row: &[u8]) -> f32 {
    let (q, d) = in_blocks(x);
    dot_quantised(&q, &d, row)
}

/// The dot product with activations in blocks of 32, `q` `[n]` and `d` `[n / 32]`.
///
/// The two int8 scales of 32 weights are applied to the integer dots of their 16. The sum stays
/// within 2 * 128 * 16 * 128 * 32 = 2^24, so it is exact as f32.
fn dot_quantised(q: &[i8], d: &[f32], row: &[u8]) -> f32 {
    /// Blocks of activations for a block of weights.
    const PER: usize = BLOCK / numerics::BLOCK;
    assert_eq!(row.len() * BLOCK, q.len() * BYTES);
    dot_blocks(q, d, |b, q| {
        let block = &row[b / PER * BYTES..][..BYTES];
        let first = b % PER * numerics::BLOCK;
        let dot = idot(q, |i| scale(block, first + i) * weight(block, first + i));
        (f16_at(block, SCALE), dot)
    })
}

/// Weights that share a scale of int8.
const PART: usize = 16;
/// Magnitude below which all is taken for zero.
const NOTHING: f32 = 1e-15;

/// Quantises as ggml's reference does (`quantize_row_q6_K_ref`): each 16 values by the best of several
/// scales, these by the largest of them, and the values again by what has become of their scales.
fn quantise(values: &[f32], out: &mut Vec<u8>) {
    for block in values.chunks_exact(BLOCK) {
        let mut codes = [0u8; BLOCK];
        let mut scales = [0.0f32; BLOCK / PART];
        let parts = block.as_chunks::<PART>().0.iter().zip(codes.as_chunks_mut().0);
        for (scale, (values, codes)) in scales.iter_mut().zip(parts) {
            *scale = best_scale(values, codes);
        }
        let most = extreme(&scales);
        if most.abs() < NOTHING {
            out.resize(out.len() + BYTES, 0);
            continue;
        }
        let inverse = -128.0 / most;
        let unit = f16::from_f32(1.0 / inverse);
        let scales = scales.map(|scale| nearest(inverse * scale, -128, 127) as i8);
        let parts = block.as_chunks::<PART>().0.iter().zip(codes.as_chunks_mut::<PART>().0);
        for (scale, (values, codes)) in scales.iter().zip(parts) {
            let scale = unit.to_f32() * f32::from(*scale);
            // The codes of a scale of 0 say nothing, and stay.
            if scale != 0.0 {
                *codes = values.map(|v| (nearest(v / scale, -32, 31) + 32) as u8);
            }
        }
        for half in codes.chunks_exact(128) {
            let (low, high) = half.split_at(64);
            out.extend(low.iter().zip(high).map(|(a, b)| a & 15 | (b & 15) << 4));
        }
        for half in codes.chunks_exact(128) {
            let quarter = |t: usize, l: usize| half[32 * t + l] >> 4 << (2 * t);
            let high = |l| quarter(0, l) | quarter(1, l) | quarter(2, l) | quarter(3, l);
            out.extend((0..32).map(high));
        }
        out.extend(scales.map(|scale| scale as u8));
        out.extend(unit.to_le_bytes());
    }
}

/// Finds the scale with which codes of -32 to 31 come nearest to the values, each difference weighed by
/// the value's square, among 19 about that which gives the largest magnitude the code -32; writes the
/// codes plus 32.
fn best_scale(values: &[f32; PART], codes: &mut [u8; PART]) -> f32 {
    let most = extreme(values);
    if most.abs() < NOTHING {
        *codes = [0; PART];
        return 0.0;
    }
    // Sums in the order of ggml, so that the bits are the same.
    let sums = |inverse: f32| {
        values.iter().fold((0.0f32, 0.0f32), |(by_value, by_code), &v| {
            let code = nearest(inverse * v, -32, 31) as f32;
            let weight = v * v;
            (by_value + weight * v * code, by_code + weight * code * code)
        })
    };
    let first = -32.0 / most;
    let (by_value, by_code) = sums(first);
    let (mut chosen, mut scale) = (first, if by_code > 0.0 { by_value / by_code } else { 0.0 });
    let mut best = scale * by_value;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = -(32.0 + 0.1 * step as f32) / most;
        let (by_value, by_code) = sums(inverse);
        if by_code > 0.0 && by_value * by_value > best * by_code {
            (chosen, scale) = (inverse, by_value / by_code);
            best = scale * by_value;
        }
    }
    *codes = values.map(|v| (nearest(chosen * v, -32, 31) + 32) as u8);
    scale
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_rows;
    use super::*;

    /// Packs random weights by the layout as ggml's dequantiser walks it: two halves, 32 steps, four
    /// weights 32 apart per step.
    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let values: Vec<i32> = (0..BLOCK)
                .map(|i| i32::from(bytes[i % 192].wrapping_mul(i as u8 | 1) % 64) - 32)
                .collect();
            for half in 0..2 {
                let (low, high) = (64 * half, 128 + 32 * half);
                for l in 0..32 {
                    let v = |quarter: usize| (values[128 * half + 32 * quarter + l] + 32) as u8;
                    bytes[low + l] = v(0) & 15 | (v(2) & 15) << 4;
                    bytes[low + 32 + l] = v(1) & 15 | (v(3) & 15) << 4;
                    bytes[high + l] =
                        v(0) >> 4 | (v(1) >> 4) << 2 | (v(2) >> 4) << 4 | (v(3) >> 4) << 6;
                }
            }
            let d = 0.0625 * (b + 1) as f32;
            bytes[208..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let scales = &bytes[192..208];
            (0..BLOCK).map(|i| d * f32::from(scales[i / 16] as i8) * values[i] as f32).collect()
        });
    }

    #[test]
    fn the_largest_block_is_exact() {
        // All weights -32, all scales -128, all activations -128: -2^24 per block of 32.
        let mut row = vec![0u8; BYTES];
        row[192..208].fill(0x80);
        row[208..].copy_from_slice(&f16::ONE.to_le_bytes());
        let total = dot_quantised(&[-128; 256], &[1.0; 8], &row);
        assert_eq!(total, -8.0 * 16_777_216.0);
    }
}
