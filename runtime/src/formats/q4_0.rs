//! Q4_0: 32 weights in 18 bytes, an f16 scale and 16 bytes, of which byte `j` holds weight `j` in its
//! low and `j + 16` in its high nibble, each plus 8.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{self, from_extreme};
use super::float::f16_at;
use super::parts;
use super::{Format, Reader, Rows, Size, TensorType};
use crate::numerics::{dot_blocks, idot, in_blocks};

/// Weights in a block.
const BLOCK: usize = 32;
/// Bytes of a block.
const BYTES: usize = 18;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q4_0,
    id: 2,
    name: "q4_0",
    size: Size::Rows { weights: BLOCK as u64, bytes: BYTES as u64, extra: 0 },
    reader: Reader::Rows(Rows { head: HeadFormat::Q4_0, dequantise, dot, quantise, minima: None }),
};

/// Returns weight `i` of a block, without its scale: -8..=7.
#[inline]
fn weight(block: &[u8], i: usize) -> i32 {
    let byte = block[2 + i % 16];
    i32::from(if i < 16 { byte & 15 } else { byte >> 4 }) - 8
}

/// Reads a row: each weight is `d * (w as f32)`.
fn dequantise(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len() * BLOCK, out.len() * BYTES);
    for (block, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let d = f16_at(block, 0);
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * weight(block, i) as f32;
        }
    }
}

fn dot(x: &[f32], row: &[u8]) -> f32 {
    assert_eq!(row.len() * BLOCK, x.len() * BYTES);
    let (q, d) = in_blocks(x);
    dot_blocks(&q, &d, |b, q| {
        let block = &row[b * BYTES..][..BYTES];
        (f16_at(block, 0), idot(q, |i| weight(block, i)))
    })
}

/// Quantises as ggml's reference does (`quantize_row_q4_0_ref`): the value of the largest magnitude gets
/// the code -8.
fn quantise(values: &[f32], out: &mut Vec<u8>) {
    for block in values.chunks_exact(BLOCK) {
        let (scale, codes) = from_extreme::<8>(block);
        out.extend(scale.to_le_bytes());
        let (low, high) = codes.split_at(BLOCK / 2);
        out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
    }
}

/// Appends blocks of ternary codes, one per byte, 0 to 3 for -1 to +2, that share a scale: the same
/// weights exactly.
pub(crate) fn of_codes(codes: &[u8], scale: f16, out: &mut Vec<u8>) {
    for codes in codes.as_chunks::<BLOCK>().0 {
        out.extend(scale.to_le_bytes());
        parts::write_codes::<4>(&codes.map(|code| code + (8 - blocks::ZERO)), out);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::tests::check_rows;
    use super::*;

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let d = 0.125 * (b + 1) as f32;
            bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let low = bytes[2..].iter().map(|&w| d * (f32::from(w & 15) - 8.0));
            let high = bytes[2..].iter().map(|&w| d * (f32::from(w >> 4) - 8.0));
            low.chain(high).collect()
        });
    }
}
