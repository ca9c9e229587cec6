//! Rows of blocks of integers, read 32 weights at a time: as many share a scale of activations.
//!
//! A format names its block, and reads and writes one ([`Parts`]); rows follow from that. Scales of
//! f16 times small integers are exact in f32, so each weight is the exact one rounded once, which is
//! what ggml's dequantisers give.

use bitnet_profiles::HeadFormat;

use super::{Rows, Size};
use crate::numerics::{BLOCK, dot_blocks, dot_blocks_with_minima, idot, in_blocks};

/// 32 weights: each is `scale * code`, plus `minimum` where the format has minima.
pub(super) struct Part {
    pub(super) scale: f32,
    pub(super) minimum: f32,
    /// With the sub-scale applied where 16 weights share one.
    pub(super) codes: [i16; BLOCK],
}

/// A format of blocks of integers.
pub(super) trait Parts {
    /// Weights in a block.
    const WEIGHTS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// True if weights are counted from a minimum.
    const MINIMA: bool;

    /// Reads weights `32 i .. 32 i + 32` of a block.
    fn part(block: &[u8], i: usize) -> Part;

    /// Appends a block of the nearest weights.
    fn quantise(values: &[f32], out: &mut Vec<u8>);
}

/// Returns the size of tensors of a format.
pub(super) const fn size<P: Parts>() -> Size {
    Size::Rows { weights: P::WEIGHTS as u64, bytes: P::BYTES as u64, extra: 0 }
}

/// Returns the reader of rows of a format.
pub(super) const fn rows<P: Parts>(head: HeadFormat) -> Rows {
    Rows {
        head,
        dequantise: dequantise::<P>,
        dot: dot::<P>,
        quantise: |values, out| {
            values.chunks_exact(P::WEIGHTS).for_each(|block| P::quantise(block, out));
        },
        minima: if P::MINIMA { Some(minima::<P>) } else { None },
    }
}

/// The parts of a row in order.
fn parts<P: Parts>(row: &[u8]) -> impl Iterator<Item = Part> {
    let blocks = row.chunks_exact(P::BYTES);
    blocks.flat_map(|block| (0..P::WEIGHTS / BLOCK).map(|i| P::part(block, i)))
}

fn dequantise<P: Parts>(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len() * P::WEIGHTS, out.len() * P::BYTES);
    for (part, out) in parts::<P>(row).zip(out.as_chunks_mut::<BLOCK>().0) {
        for (out, &code) in out.iter_mut().zip(&part.codes) {
            let weight = part.scale * f32::from(code);
            *out = if P::MINIMA { weight + part.minimum } else { weight };
        }
    }
}

fn dot<P: Parts>(x: &[f32], row: &[u8]) -> f32 {
    assert_eq!(row.len() * P::WEIGHTS, x.len() * P::BYTES);
    let (q, d) = in_blocks(x);
    let part = |b: usize, q: &[i8]| {
        const { assert!(P::WEIGHTS.is_multiple_of(BLOCK)) };
        let per = P::WEIGHTS / BLOCK;
        let part = P::part(&row[b / per * P::BYTES..][..P::BYTES], b % per);
        let dot = idot(q, |i| i32::from(part.codes[i]));
        (part.scale, dot, part.minimum)
    };
    if P::MINIMA {
        dot_blocks_with_minima(&q, &d, part)
    } else {
        dot_blocks(&q, &d, |b, q| {
            let (scale, dot, _) = part(b, q);
            (scale, dot)
        })
    }
}

/// Returns the norm of the minima of all weights of a row.
fn minima<P: Parts>(row: &[u8]) -> f64 {
    let square = |part: Part| f64::from(part.minimum).powi(2);
    (parts::<P>(row).map(square).sum::<f64>() * BLOCK as f64).sqrt()
}

/// Reads the nibbles of 32 weights in 16 bytes: the first 16 are the low ones.
pub(super) fn nibbles(bytes: &[u8]) -> [i16; BLOCK] {
    let bytes: &[u8; BLOCK / 2] = bytes.first_chunk().expect("16 bytes of a block");
    std::array::from_fn(|i| {
        let byte = bytes[i % 16];
        i16::from(if i < 16 { byte & 15 } else { byte >> 4 })
    })
}

/// Adds 16 to the codes of 32 weights whose bit is set, bit `i` of 4 little-endian bytes for code `i`.
pub(super) fn add_fifth_bits(codes: &mut [i16; BLOCK], bits: &[u8]) {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((bits >> i & 1) << 4) as i16;
    }
}

/// Appends what [`add_fifth_bits`] and [`nibbles`] read, of codes of 0 to 31; without the bits where
/// codes have but 4.
pub(super) fn write_codes<const BITS: usize>(codes: &[u8; BLOCK], out: &mut Vec<u8>) {
    if BITS == 5 {
        let bits = codes.iter().enumerate().map(|(i, &code)| u32::from(code >> 4) << i);
        out.extend(bits.sum::<u32>().to_le_bytes());
    }
    let (low, high) = codes.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | (high & 15) << 4));
}
