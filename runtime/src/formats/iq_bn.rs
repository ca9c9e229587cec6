//! IQ1_BN, IQ2_BN and IQ2_BN_R4, ik_llama.cpp's formats: ternary rows with a scale in front.
//!
//! A row has blocks of 64 weights; codes 0, 1, 2 stand for -1, 0, +1.
//!
//! IQ2_BN: an f32 scale; then 16 bytes for each block, byte `j` of which holds weights
//! `j, 16 + j, 32 + j, 48 + j` in bits 1:0, 3:2, 5:4, 7:6. IQ2_BN_R4 is the same of four rows at a time:
//! four scales, then 64 bytes for each block of all four, where byte `16 l + 4 r + i` holds, of row `r`,
//! columns `16 l + i`, then `4`, `8` and `12` behind it.
//!
//! IQ1_BN: an f16 scale; then 13 bytes for each block, ternary digits as those of TQ1_0, but the first
//! the lowest. Bytes `3 s` to `3 s + 2` hold weights 0 to 14 of the 16 that begin at `16 s`, byte 12 the
//! last one of each.

use half::f16;

use super::{Codes, Form, Format, Reader, Scales, Seen, Size, TensorType, Ternary};

/// Weights in a block.
const BLOCK: usize = 64;
/// Bytes of a block of IQ2_BN.
const TWO_BITS: usize = 16;
/// Bytes of a block of IQ1_BN.
const DIGITS: usize = 13;
/// Rows that lie together in IQ2_BN_R4.
const ROWS: usize = 4;

const fn size(bytes: usize, extra: u64) -> Size {
    Size::Rows { weights: BLOCK as u64, bytes: bytes as u64, extra }
}

const fn reader(
    scales: fn(Codes<'_>) -> Scales,
    read: fn(Codes<'_>, usize, usize, &mut [u8]) -> Seen,
) -> Reader {
    Reader::Codes(Ternary { scales, read, form: Form::Rows, twos: false })
}

/// The entry of IQ1_BN.
pub const IQ1_BN: Format = Format {
    ty: TensorType::IQ1_BN,
    id: 134,
    name: "iq1_bn",
    size: size(DIGITS, 2),
    reader: reader(
        |codes| scales::<2>(codes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        |codes, row, first, out| {
            let bytes = row_bytes(codes, row, DIGITS, 2);
            read(first, out, |col| digit(&bytes[col / BLOCK * DIGITS..], col % BLOCK))
        },
    ),
};

/// The entry of IQ2_BN.
pub const IQ2_BN: Format = Format {
    ty: TensorType::IQ2_BN,
    id: 135,
    name: "iq2_bn",
    size: size(TWO_BITS, 4),
    reader: reader(
        |codes| scales::<4>(codes, f32::from_le_bytes),
        |codes, row, first, out| {
            let bytes = row_bytes(codes, row, TWO_BITS, 4);
            read(first, out, |col| {
                let (block, at) = (col / BLOCK, col % BLOCK);
                bytes[block * TWO_BITS + at % 16] >> (2 * (at / 16)) & 3
            })
        },
    ),
};

/// The entry of IQ2_BN_R4.
pub const IQ2_BN_R4: Format = Format {
    ty: TensorType::IQ2_BN_R4,
    id: 335,
    name: "iq2_bn_r4",
    size: Size::FourRows { weights: BLOCK as u64, bytes: TWO_BITS as u64, extra: 4 },
    reader: reader(
        |codes| {
            let (bytes, four) = (codes.bytes(), ROWS * row_size(codes, TWO_BITS, 4));
            let scales = bytes.chunks_exact(four).flat_map(|four| four[..4 * ROWS].as_chunks().0);
            Scales::Rows(scales.copied().map(f32::from_le_bytes).collect())
        },
        |codes, row, first, out| {
            let four = ROWS * row_size(codes, TWO_BITS, 4);
            let bytes = &codes.bytes()[row / ROWS * four + 4 * ROWS..];
            read(first, out, |col| {
                let (block, at) = (col / BLOCK, col % BLOCK);
                let byte = ROWS * TWO_BITS * block + at / 16 * 16 + row % ROWS * 4 + at % 4;
                bytes[byte] >> (2 * (at % 16 / 4)) & 3
            })
        },
    ),
};

/// Bytes of a row, its scale of `extra` bytes among them.
fn row_size(codes: Codes<'_>, block: usize, extra: usize) -> usize {
    codes.shape().cols / BLOCK * block + extra
}

/// The blocks of a row.
fn row_bytes(codes: Codes<'_>, row: usize, block: usize, extra: usize) -> &[u8] {
    let size = row_size(codes, block, extra);
    &codes.bytes()[row * size + extra..(row + 1) * size]
}

/// Reads the scales in front of rows.
fn scales<const BYTES: usize>(codes: Codes<'_>, value: fn([u8; BYTES]) -> f32) -> Scales {
    let size = codes.bytes().len() / codes.shape().rows;
    let rows = codes.bytes().chunks_exact(size);
    Scales::Rows(rows.filter_map(|row| row.first_chunk().copied().map(value)).collect())
}

fn read(first: usize, out: &mut [u8], code: impl Fn(usize) -> u8) -> Seen {
    out.iter_mut().zip(first..).for_each(|(out, col)| *out = code(col));
    Seen::in_codes(out)
}

/// Reads the code of a weight of a block of IQ1_BN.
fn digit(block: &[u8], at: usize) -> u8 {
    /// Powers of 3 that bring each digit up to the highest.
    const POWERS: [u8; 5] = [81, 27, 9, 3, 1];
    let (part, within) = (at / 16, at % 16);
    let (byte, digit) = if within == 15 { (12, part) } else { (3 * part + within / 5, within % 5) };
    ((u16::from(block[byte].wrapping_mul(POWERS[digit])) * 3) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Shape;

    use super::*;

    const SHAPE: Shape = Shape::new(8, 2 * BLOCK);

    fn code(row: usize, col: usize) -> u8 {
        ((row * 31 + col * col / 7) % 3) as u8
    }

    fn scale(row: usize) -> f32 {
        0.25 * (row + 1) as f32
    }

    /// Builds the same matrix in each format, by the definition of the place of each weight.
    fn tensors() -> [(TensorType, Vec<u8>); 3] {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for row in 0..SHAPE.rows {
            one.extend(f16::from_f32(scale(row)).to_le_bytes());
            two.extend(scale(row).to_le_bytes());
            for first in [0, BLOCK] {
                let code = |at: usize| code(row, first + at);
                let byte = |digits: &mut dyn Iterator<Item = u8>| {
                    let digits: Vec<u8> = digits.collect();
                    let number = digits.iter().rev().fold(0, |n, &d| 3 * n + u16::from(d));
                    (256 * number).div_ceil(243) as u8
                };
                for part in 0..4 {
                    for five in 0..3 {
                        let start = 16 * part + 5 * five;
                        one.push(byte(&mut (start..start + 5).map(code)));
                    }
                }
                one.push(byte(&mut (0..4).map(|part| code(16 * part + 15))));
                two.extend((0..16).map(|j| {
                    (0..4).fold(0, |byte, field| byte | code(j + 16 * field) << (2 * field))
                }));
            }
        }
        let mut four = Vec::new();
        for rows in [0, 4] {
            (rows..rows + 4).for_each(|row| four.extend(scale(row).to_le_bytes()));
            for first in [0, BLOCK] {
                for l in 0..4 {
                    for (r, i) in (0..16).map(|at| (at / 4, at % 4)) {
                        let code = |field: usize| code(rows + r, first + 16 * l + i + 4 * field);
                        four.push((0..4).fold(0, |byte, f| byte | code(f) << (2 * f)));
                    }
                }
            }
        }
        [(TensorType::IQ1_BN, one), (TensorType::IQ2_BN, two), (TensorType::IQ2_BN_R4, four)]
    }

    #[test]
    fn rows_are_read_by_their_definition() {
        for (ty, bytes) in tensors() {
            let codes = Codes::new(ty, &bytes, SHAPE).unwrap();
            assert!(codes.fits(), "{ty}");
            assert_eq!(codes.scales(), Scales::Rows((0..8).map(scale).collect()), "{ty}");
            for row in 0..SHAPE.rows {
                for (first, n) in [(0, 128), (5, 100), (63, 2), (3, 0)] {
                    let mut out = vec![9; n];
                    let seen = codes.read(row, first, &mut out);
                    let wanted: Vec<u8> = (first..first + n).map(|col| code(row, col)).collect();
                    assert_eq!(out, wanted, "{ty}: row {row}, {n} from {first}");
                    assert_eq!(seen, Seen::in_codes(&wanted), "{ty}");
                }
            }
        }
    }

    #[test]
    fn code_3_is_seen() {
        for (ty, mut bytes) in tensors().into_iter().skip(1) {
            let last = bytes.len() - 1;
            bytes[last] |= 0xc0;
            let codes = Codes::new(ty, &bytes, SHAPE).unwrap();
            assert_eq!(codes.row(7, &mut [0; 128]), Some(127), "{ty}");
            assert_eq!(codes.row(6, &mut [0; 128]), None, "{ty}");
        }
    }
}
