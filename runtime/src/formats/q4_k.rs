//! Q4_K: 256 weights in 144 bytes, an f16 scale, an f16 scale of minima, 8 6-bit factors of each (one
//! per 32 weights) in 12 bytes, and 128 bytes of codes (`block_q4_K` of ggml-common.h,
//! `dequantize_row_q4_K` and `get_scale_min_k4` of ggml-quants.c).
//!
//! A weight is `(d * factor) * code - dmin * minimum`. Every 32 bytes of codes hold 64 weights, the
//! first half in the low nibbles. Of the factors numbers 0 to 3 are the lower 6 bits of bytes 0 to 3,
//! of the minima those of bytes 4 to 7; numbers `4 + j` have their lower bits in byte `8 + j`, factors in
//! the low nibble, and their upper two in the upper bits of bytes `j` and `4 + j`.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{nearest, reciprocal};
use super::float::f16_at;
use super::parts::{self, Part, Parts};
use super::{Format, Reader, TensorType};

/// Weights in a block, here and in Q5_K.
pub(super) const WEIGHTS: usize = 256;
/// Byte of the factors.
const FACTORS: usize = 4;
/// Byte of what follows the factors.
pub(super) const CODES: usize = 16;

struct Q4K;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q4_K,
    id: 12,
    name: "q4_K",
    size: parts::size::<Q4K>(),
    reader: Reader::Rows(parts::rows::<Q4K>(HeadFormat::Q4K)),
};

/// Returns the scale and the minimum of weights `32 i .. 32 i + 32` of a block.
pub(super) fn scale_and_minimum(block: &[u8], i: usize) -> (f32, f32) {
    let s = &block[FACTORS..CODES];
    let (factor, minimum) = match i.checked_sub(4) {
        None => (s[i] & 63, s[4 + i] & 63),
        Some(j) => (s[8 + j] & 15 | s[j] >> 6 << 4, s[8 + j] >> 4 | s[4 + j] >> 6 << 4),
    };
    (f16_at(block, 0) * f32::from(factor), -f16_at(block, 1) * f32::from(minimum))
}

/// Reads the nibbles of weights `32 i .. 32 i + 32` out of a block's 128 bytes.
pub(super) fn nibbles(bytes: &[u8], i: usize) -> [i16; 32] {
    let bytes: &[u8; 32] = bytes[i / 2 * 32..].first_chunk().expect("128 bytes of a block");
    bytes.map(|byte| i16::from(byte >> (i % 2 * 4) & 15))
}

/// Appends scales and factors of a block, and returns its codes, of 0 to `most`. Scales and minima
/// come from the least value of each 32, or 0, and the greatest; they are multiples, up to 63, of the
/// block's.
pub(super) fn quantise(values: &[f32], most: i32, out: &mut Vec<u8>) -> [u8; WEIGHTS] {
    let ranges = values.chunks_exact(32).map(|values| {
        let least = values.iter().fold(0.0f32, |least, &v| least.min(v));
        let greatest = values.iter().fold(least, |greatest, &v| greatest.max(v));
        ((greatest - least) / most as f32, -least)
    });
    let ranges: Vec<(f32, f32)> = ranges.collect();
    let unit = |of: fn(&(f32, f32)) -> f32| {
        f16::from_f32(ranges.iter().map(of).fold(0.0, f32::max) / 63.0)
    };
    let (d, dmin) = (unit(|range| range.0), unit(|range| range.1));
    let (per_d, per_dmin) = (reciprocal(d.to_f32()), reciprocal(dmin.to_f32()));
    let mut factors = [0u8; CODES - FACTORS];
    let mut codes = [0; WEIGHTS];
    for (i, (scale, minimum)) in ranges.into_iter().enumerate() {
        let factor = nearest(scale * per_d, 0, 63) as u8;
        let minimum = nearest(minimum * per_dmin, 0, 63) as u8;
        match i.checked_sub(4) {
            None => (factors[i], factors[4 + i]) = (factor, minimum),
            Some(j) => {
                factors[8 + j] = factor & 15 | minimum << 4;
                factors[j] |= factor >> 4 << 6;
                factors[4 + j] |= minimum >> 4 << 6;
            }
        }
        let inverse = reciprocal(d.to_f32() * f32::from(factor));
        let minimum = dmin.to_f32() * f32::from(minimum);
        for (code, value) in codes[32 * i..].iter_mut().zip(&values[32 * i..][..32]) {
            *code = nearest((value + minimum) * inverse, 0, most) as u8;
        }
    }
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
    out.extend(factors);
    codes
}

/// Appends the lower 4 bits of a block's codes.
pub(super) fn write_nibbles(codes: &[u8; WEIGHTS], out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(64) {
        let (low, high) = codes.split_at(32);
        out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | (high & 15) << 4));
    }
}

impl Parts for Q4K {
    const WEIGHTS: usize = WEIGHTS;
    const BYTES: usize = 144;
    const MINIMA: bool = true;

    fn part(block: &[u8], i: usize) -> Part {
        let (scale, minimum) = scale_and_minimum(block, i);
        Part { scale, minimum, codes: nibbles(&block[CODES..], i) }
    }

    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let codes = quantise(values, 15, out);
        write_nibbles(&codes, out);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::check_rows;
    use super::*;

    /// Sets the scales of block `b`, and returns the scale and the minimum of each 32 weights, with
    /// factors unpacked as ggml's vector code does it: by words.
    pub fn scales(bytes: &mut [u8], b: usize) -> Vec<(f32, f32)> {
        let (d, dmin) = (0.0625 * (b + 1) as f32, 0.3 - 0.15 * b as f32);
        bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        bytes[2..4].copy_from_slice(&f16::from_f32(dmin).to_le_bytes());
        let dmin = f16::from_f32(dmin).to_f32();
        let words: Vec<u32> =
            bytes[4..16].as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let [a, b, c] = words[..] else { panic!("{} words", words.len()) };
        let factors = [a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4];
        let minima = [b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4];
        let bytes = |words: [u32; 2]| words.map(u32::to_le_bytes).concat();
        let pairs = bytes(factors).into_iter().zip(bytes(minima));
        pairs.map(|(f, m)| (d * f32::from(f), dmin * f32::from(m))).collect()
    }

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let scales = scales(bytes, b);
            let mut out = Vec::new();
            for (codes, scales) in bytes[16..].chunks(32).zip(scales.chunks(2)) {
                out.extend(codes.iter().map(|c| scales[0].0 * f32::from(c & 15) - scales[0].1));
                out.extend(codes.iter().map(|c| scales[1].0 * f32::from(c >> 4) - scales[1].1));
            }
            out
        });
    }
}
