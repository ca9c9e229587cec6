//! Q2_0, llama.cpp's format of models that are ternary from the start: 2 bits a weight, and a scale for
//! every 64 of a row; for every 128 in files that were published before llama.cpp had it, and in PQ2_0.
//!
//! A block is an f16 scale, then bytes of which `j / 4` holds weight `j` in bits
//! `2 (j % 4) + 1 : 2 (j % 4)`. Codes 0, 1, 2 stand for -1, 0, +1; 3 stands for +2, which PQ2_0 alone
//! holds. The scale of a block that is all zero is 0.

use super::one_scale::{self, OneScale};
use super::{Format, Reader, TensorType, Ternary};

/// Bytes of a block's scale.
const SCALE: usize = 2;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q2_0,
    id: 42,
    name: "q2_0",
    size: one_scale::size::<Q2_0<64>>(),
    reader: Reader::Codes(one_scale::ternary::<Q2_0<64>>()),
};

/// The entry of the blocks of 128 weights, which are read only.
pub const G128: Format = Format {
    ty: TensorType::Q2_0_G128,
    id: 42,
    name: "q2_0 (128 weights a block)",
    size: one_scale::size::<Q2_0<128>>(),
    reader: Reader::Codes(one_scale::ternary::<Q2_0<128>>()),
};

/// The entry of PQ2_0, whose matrices hold +2 too.
pub const PQ2_0: Format = Format {
    ty: TensorType::PQ2_0,
    id: 142,
    name: "pq2_0",
    size: one_scale::size::<Q2_0<128>>(),
    reader: Reader::Codes(Ternary { twos: true, ..one_scale::ternary::<Q2_0<128>>() }),
};

/// Blocks of so many weights.
struct Q2_0<const WEIGHTS: usize>;

impl<const WEIGHTS: usize> OneScale for Q2_0<WEIGHTS> {
    const WEIGHTS: usize = WEIGHTS;
    const BYTES: usize = SCALE + WEIGHTS / 4;
    const SCALE: usize = 0;

    fn spread(block: &[u8], codes: &mut [u8]) {
        for (four, byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(&block[SCALE..]) {
            *four = [0, 2, 4, 6].map(|bits| byte >> bits & 3);
        }
    }

    fn pack(codes: &[u8], block: &mut [u8]) {
        for (byte, four) in block[SCALE..].iter_mut().zip(codes.as_chunks::<4>().0) {
            *byte = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Shape;
    use half::f16;

    use super::super::Codes;
    use super::*;
    use crate::random::Random;

    #[test]
    fn blocks_are_read_by_their_definition() {
        let random = std::cell::RefCell::new(Random::new(42));
        for ty in [TensorType::Q2_0, TensorType::Q2_0_G128, TensorType::PQ2_0] {
            let code = |block: &[u8], i: usize| block[2 + i / 4] >> (2 * (i % 4)) & 3;
            one_scale::tests::check(ty, 0, code, || random.borrow_mut().below(256) as u8);
        }
    }

    #[test]
    fn code_3_is_seen_unless_its_scale_is_0() {
        let shape = Shape::new(2, 192);
        for (scale, seen) in [(1.0, Some(70)), (0.0, None)] {
            let mut bytes = Vec::new();
            (FORMAT.ternary().unwrap().encode().unwrap())(&[1; 6 * 64], 1.0, &mut bytes);
            bytes[18..20].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            // Weight 70 is the third of its byte.
            bytes[18 + SCALE + 1] |= 3 << 4;
            let codes = Codes::new(TensorType::Q2_0, &bytes, shape).unwrap();
            assert_eq!(codes.row(0, &mut [0; 192]), seen);
            assert_eq!(codes.row(1, &mut [0; 192]), None);
        }
    }
}
