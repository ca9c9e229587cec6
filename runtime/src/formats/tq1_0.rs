//! TQ1_0, llama.cpp's format: 1.6875 bits a weight, and a scale for every 256 of a row; PTQ1_0, the same
//! with a scale for every 128.
//!
//! Bytes hold ternary digits, codes 0, 1, 2 for -1, 0, +1: five, the first the highest, and then four.
//! With a number `v` below 243 of five digits, the last 0 where there are but four, a byte is
//! `ceil(256 v / 243)`, so that digit `n` is `(3 (byte * 3^n mod 256)) >> 8`. The bytes of five digits
//! come in runs of 32, 16 and 8, as large as what is left, then comes one run of those of four: digit
//! `n` of byte `m` of a run of `c` is its weight `n c + m`. Behind them stands an f16 scale.

use std::ops::Range;

use super::one_scale::{self, OneScale};
use super::{Format, Reader, TensorType};

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::TQ1_0,
    id: 34,
    name: "tq1_0",
    size: one_scale::size::<Tq1_0<48>>(),
    reader: Reader::Codes(one_scale::ternary::<Tq1_0<48>>()),
};

/// The entry of PTQ1_0.
pub const PTQ1_0: Format = Format {
    ty: TensorType::PTQ1_0,
    id: 143,
    name: "ptq1_0",
    size: one_scale::size::<Tq1_0<24>>(),
    reader: Reader::Codes(one_scale::ternary::<Tq1_0<24>>()),
};

/// Blocks with so many bytes of five digits, and a twelfth of that of four.
struct Tq1_0<const FIVES: usize>;

impl<const FIVES: usize> Tq1_0<FIVES> {
    const FOURS: usize = FIVES / 12;

    /// The runs of a block: their bytes, and the digits of each byte.
    fn runs() -> impl Iterator<Item = (Range<usize>, usize)> {
        let mut first = 0;
        let fives = [32, 16, 8].into_iter().filter_map(move |bytes| {
            let run = first..first + bytes;
            (run.end <= FIVES).then(|| {
                first = run.end;
                (run, 5)
            })
        });
        fives.chain([(FIVES..FIVES + Self::FOURS, 4)])
    }
}

impl<const FIVES: usize> OneScale for Tq1_0<FIVES> {
    const WEIGHTS: usize = 5 * FIVES + 4 * Self::FOURS;
    const BYTES: usize = FIVES + Self::FOURS + 2;
    const SCALE: usize = FIVES + Self::FOURS;

    fn spread(block: &[u8], codes: &mut [u8]) {
        let mut codes = codes;
        for (bytes, digits) in Self::runs() {
            let (own, behind) = codes.split_at_mut(digits * bytes.len());
            let mut power = 1u8;
            for codes in own.chunks_exact_mut(bytes.len()) {
                for (code, byte) in codes.iter_mut().zip(&block[bytes.clone()]) {
                    *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
                }
                power *= 3;
            }
            codes = behind;
        }
    }

    fn pack(codes: &[u8], block: &mut [u8]) {
        let mut codes = codes;
        for (bytes, digits) in Self::runs() {
            let (count, first) = (bytes.len(), codes);
            for (m, byte) in block[bytes].iter_mut().enumerate() {
                let digit = |n: usize| if n < digits { u16::from(first[n * count + m]) } else { 0 };
                let number = (0..5).fold(0, |number, n| 3 * number + digit(n));
                *byte = (256 * number).div_ceil(243) as u8;
            }
            codes = &codes[digits * count..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The first digits of a byte, as fractions of 256 in base 3.
    fn digit(byte: u8, n: u32) -> u8 {
        (u32::from(byte) * 3u32.pow(n) % 256 * 3 / 256) as u8
    }

    #[test]
    fn blocks_are_read_by_their_definition() {
        let random = std::cell::RefCell::new(Random::new(34));
        let any = || random.borrow_mut().below(256) as u8;
        let tq1_0 = |block: &[u8], i: usize| match i {
            0..160 => digit(block[i % 32], (i / 32) as u32),
            160..240 => digit(block[32 + i % 16], ((i - 160) / 16) as u32),
            _ => digit(block[48 + i % 4], ((i - 240) / 4) as u32),
        };
        one_scale::tests::check(TensorType::TQ1_0, 52, tq1_0, any);
        let ptq1_0 = |block: &[u8], i: usize| match i {
            0..80 => digit(block[i % 16], (i / 16) as u32),
            80..120 => digit(block[16 + i % 8], ((i - 80) / 8) as u32),
            _ => digit(block[24 + i % 2], ((i - 120) / 2) as u32),
        };
        one_scale::tests::check(TensorType::PTQ1_0, 26, ptq1_0, any);
    }
}
