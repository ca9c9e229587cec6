//! Q5_K: 256 weights in 176 bytes, scales and factors as Q4_K has them, 32 bytes of upper bits, and 128
//! of lower ones: bit `i / 32` of byte `i % 32` is the upper one of weight `i` (`block_q5_K` of
//! ggml-common.h, `dequantize_row_q5_K` of ggml-quants.c).

use bitnet_profiles::HeadFormat;

use super::parts::{self, Part, Parts};
use super::q4_k::{CODES, WEIGHTS, nibbles, quantise, scale_and_minimum, write_nibbles};
use super::{Format, Reader, TensorType};

/// Bytes of upper bits.
const HIGH: usize = 32;

struct Q5K;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q5_K,
    id: 13,
    name: "q5_K",
    size: parts::size::<Q5K>(),
    reader: Reader::Rows(parts::rows::<Q5K>(HeadFormat::Q5K)),
};

impl Parts for Q5K {
    const WEIGHTS: usize = WEIGHTS;
    const BYTES: usize = 176;
    const MINIMA: bool = true;

    fn part(block: &[u8], i: usize) -> Part {
        let (scale, minimum) = scale_and_minimum(block, i);
        let (high, low) = block[CODES..].split_at(HIGH);
        let mut codes = nibbles(low, i);
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= i16::from(high >> i & 1) << 4;
        }
        Part { scale, minimum, codes }
    }

    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let codes = quantise(values, 31, out);
        let high = |l: usize| (0..8).map(|t| codes[32 * t + l] >> 4 << t).sum::<u8>();
        out.extend((0..HIGH).map(high));
        write_nibbles(&codes, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::q4_k::tests::scales;
    use super::super::tests::check_rows;
    use super::*;

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let scales = scales(bytes, b);
            let (mut out, mut first, mut second) = (Vec::new(), 1u8, 2u8);
            for (codes, scales) in bytes[48..].chunks(32).zip(scales.chunks(2)) {
                let mut run = |mask: u8, shift: u32, (d, m): (f32, f32)| {
                    let fifth = |l: usize| if bytes[16 + l] & mask == 0 { 0.0 } else { 16.0 };
                    out.extend(
                        (0..32).map(|l| d * (f32::from(codes[l] >> shift & 15) + fifth(l)) - m),
                    );
                };
                run(first, 0, scales[0]);
                run(second, 4, scales[1]);
                (first, second) = (first.wrapping_shl(2), second.wrapping_shl(2));
            }
            out
        });
    }
}
