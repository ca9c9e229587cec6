//! Q2_0, llama.cpp's format of models that are ternary from the start: 2 bits a weight, and a scale for
//! every 64 of a row.
//!
//! A block is 18 bytes: an f16 scale, then 16 bytes, of which byte `j / 4` holds weight `j` in bits
//! `2 (j % 4) + 1 : 2 (j % 4)`. Codes 0, 1, 2 stand for -1, 0, +1; 3 stands for +2, which no ternary
//! matrix holds. The scale of a block that is all zero is 0.

use half::f16;

use super::{
    Codes, Form, Format, LookAt, Reader, Scales, Seen, Size, TensorType, Ternary, ZERO, blocks,
};

/// Weights in a block.
const BLOCK: usize = 64;
/// Bytes of a block's scale.
const SCALE: usize = 2;
/// Bytes of a block.
const BLOCK_BYTES: usize = SCALE + BLOCK / 4;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q2_0,
    id: 42,
    name: "q2_0",
    size: Size::Rows { weights: BLOCK as u64, bytes: BLOCK_BYTES as u64, extra: 0 },
    reader: Reader::Codes(Ternary {
        scales,
        read,
        form: Form::Blocks { seen: LookAt(seen), encode },
    }),
};

fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

fn scales(codes: Codes<'_>) -> Scales {
    let blocks = codes.bytes().as_chunks().0;
    Scales::Blocks { width: BLOCK, values: blocks.iter().map(scale).collect() }
}

/// Returns the kinds of codes in whole blocks; those of a scale of 0 are zeros.
fn seen(blocks: &[u8]) -> Seen {
    let mut seen = Seen::default();
    for block in blocks.as_chunks::<BLOCK_BYTES>().0 {
        if scale(block) != 0.0 {
            seen |= Seen::among(&block[SCALE..]);
        }
    }
    seen
}

fn read(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let mut seen = Seen::default();
    let first = row * codes.shape().cols + first;
    blocks::read(codes.bytes(), first, out, |block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK]| {
        if scale(block) == 0.0 {
            out.fill(ZERO);
            return;
        }
        for (four, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(&block[SCALE..]) {
            *four = [0, 2, 4, 6].map(|bits| byte >> bits & 3);
        }
        seen |= Seen::among(&block[SCALE..]);
    });
    seen
}

fn encode(codes: &[u8], scale: f32, out: &mut Vec<u8>) {
    for block in codes.as_chunks::<BLOCK>().0 {
        out.extend(blocks::scale_of(block, scale).to_le_bytes());
        let four = |four: &[u8; 4]| four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
        out.extend(block.as_chunks().0.iter().map(four));
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Shape;

    use super::*;

    const SHAPE: Shape = Shape::new(2, 3 * BLOCK);

    /// Every ternary format reads what it writes, whatever the rows.
    #[test]
    fn codes_are_read_as_they_are_written() {
        for ty in [TensorType::I2_S, TensorType::TQ2_0, TensorType::Q2_0] {
            let shape = Shape::new(3, 512);
            let codes: Vec<u8> = (0..shape.weights()).map(|i| (i * i / 7 % 3) as u8).collect();
            let mut bytes = Vec::new();
            let Form::Blocks { encode, .. } = ty.format().ternary().unwrap().form else {
                panic!("{ty} has no blocks")
            };
            encode(&codes, 0.25, &mut bytes);
            let read = Codes::new(ty, &bytes, shape).unwrap();
            assert!(read.fits(), "{ty}");
            for (row, expected) in codes.chunks(512).enumerate() {
                let mut out = vec![9; 512];
                assert_eq!(read.row(row, &mut out), None, "{ty}");
                assert_eq!(out, expected, "{ty}");
            }
        }
    }

    #[test]
    fn a_block_is_read_by_its_definition() {
        let code = |i: usize| (i * i / 5 % 3) as u8;
        let scales = [0.5, 0.0, 0.25, 0.5, 0.5, -0.0];
        let mut bytes = Vec::new();
        for (block, scale) in scales.into_iter().enumerate() {
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            let mut own = [0u8; BLOCK / 4];
            (0..BLOCK).for_each(|i| own[i / 4] |= code(block * BLOCK + i) << (2 * (i % 4)));
            bytes.extend(own);
        }
        let codes = Codes::new(TensorType::Q2_0, &bytes, SHAPE).unwrap();
        assert!(codes.fits());
        assert_eq!(codes.scales(), Scales::Blocks { width: BLOCK, values: scales.to_vec() });
        for (row, first, n) in [(0, 0, 192), (1, 0, 192), (0, 5, 100), (1, 127, 2), (1, 3, 0)] {
            let mut out = vec![9; n];
            let seen = codes.read(row, first, &mut out);
            let expected = (first..first + n).map(|col| {
                let at = row * SHAPE.cols + col;
                if scales[at / BLOCK] == 0.0 { ZERO } else { code(at) }
            });
            assert!(out.iter().copied().eq(expected), "row {row}, {n} from {first}");
            assert!(!seen.bad);
        }
    }

    #[test]
    fn code_3_is_seen_unless_its_scale_is_0() {
        for (scale, seen) in [(1.0, Some(70)), (0.0, None)] {
            let mut bytes = Vec::new();
            encode(&[1; 6 * BLOCK], 1.0, &mut bytes);
            bytes[BLOCK_BYTES..BLOCK_BYTES + SCALE]
                .copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            // Weight 70 is the third of its byte.
            bytes[BLOCK_BYTES + SCALE + 1] |= 3 << 4;
            let codes = Codes::new(TensorType::Q2_0, &bytes, SHAPE).unwrap();
            assert_eq!(codes.row(0, &mut [0; 192]), seen);
            assert_eq!(codes.row(1, &mut [0; 192]), None);
        }
    }
}
