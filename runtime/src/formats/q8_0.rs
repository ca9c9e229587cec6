//! Q8_0: 32 weights in 34 bytes, an f16 scale and 32 int8.

use bitnet_profiles::HeadFormat;
use half::f16;

use super::blocks::{largest, reciprocal};
use super::float::f16_at;
use super::{Format, Reader, Rows, Size, TensorType};
use crate::numerics::{dot_blocks, idot, in_blocks};

/// Weights in a block.
const BLOCK: usize = 32;
/// Bytes of a block.
const BYTES: usize = 34;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q8_0,
    id: 8,
    name: "q8_0",
    size: Size::Rows { weights: BLOCK as u64, bytes: BYTES as u64, extra: 0 },
    reader: Reader::Rows(Rows { head: HeadFormat::Q8_0, dequantise, dot, quantise, minima: None }),
};

/// Reads a row: each weight is `d * (w as f32)`.
fn dequantise(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len() * BLOCK, out.len() * BYTES);
    for (block, out) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let d = f16_at(block, 0);
        for (out, &w) in out.iter_mut().zip(&block[2..]) {
            *out = d * f32::from(w as i8);
        }
    }
}

fn dot(x: &[f32], row: &[u8]) -> f32 {
    assert_eq!(row.len() * BLOCK, x.len() * BYTES);
    let (q, d) = in_blocks(x);
    dot_blocks(&q, &d, |b, q| {
        let block = &row[b * BYTES..][..BYTES];
        (f16_at(block, 0), idot(q, |i| i32::from(block[2 + i] as i8)))
    })
}

/// Quantises as ggml's reference does (`quantize_row_q8_0_ref`): with scales from the largest of each
/// block, before they are rounded to f16, to codes of -127 to 127, halves away from zero.
fn quantise(values: &[f32], out: &mut Vec<u8>) {
    for block in values.chunks_exact(BLOCK) {
        let scale = largest(block) / 127.0;
        out.extend(f16::from_f32(scale).to_le_bytes());
        let inverse = reciprocal(scale);
        out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_rows;
    use super::*;

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let d = 0.125 * (b + 1) as f32;
            bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            bytes[2..].iter().map(|&w| d * f32::from(w as i8)).collect()
        });
    }
}
