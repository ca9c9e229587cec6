//! Blocks of ternary codes with one f16 scale.
//!
//! A format names its block and spreads or packs the codes of one ([`OneScale`]); its entry for
//! matrices ([`ternary`]) follows from that. A scale of 0 makes all weights of its block zero, whatever
//! their codes.

use half::f16;

use super::{Codes, Form, LookAt, Scales, Seen, Size, Ternary, ZERO, blocks};

/// A format of blocks of ternary codes with one f16 scale each.
pub(super) trait OneScale {
    /// Weights in a block.
    const WEIGHTS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Place of the scale in a block.
    const SCALE: usize;

    /// Unpacks a block to one code per byte.
    fn spread(block: &[u8], codes: &mut [u8]);

    /// Packs the codes of a block, one per byte, into its bytes but those of the scale.
    fn pack(codes: &[u8], block: &mut [u8]);
}

/// Returns the size of tensors of a format.
pub(super) const fn size<F: OneScale>() -> Size {
    Size::Rows { weights: F::WEIGHTS as u64, bytes: F::BYTES as u64, extra: 0 }
}

/// Returns the reader of matrices of a format, in which code 3 is no weight.
pub(super) const fn ternary<F: OneScale>() -> Ternary {
    Ternary {
        scales: scales::<F>,
        read: read::<F>,
        form: Form::Blocks { seen: LookAt(seen::<F>), encode: encode::<F> },
        twos: false,
    }
}

fn scale<F: OneScale>(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[F::SCALE], block[F::SCALE + 1]]).to_f32()
}

fn scales<F: OneScale>(codes: Codes<'_>) -> Scales {
    let values = codes.bytes().chunks_exact(F::BYTES).map(scale::<F>).collect();
    Scales::Blocks { width: F::WEIGHTS, values }
}

/// Unpacks a block to one code per byte: zeros where its scale is 0.
fn spread<F: OneScale>(block: &[u8], codes: &mut [u8]) -> Seen {
    if scale::<F>(block) == 0.0 {
        codes.fill(ZERO);
        return Seen::default();
    }
    F::spread(block, codes);
    Seen::in_codes(codes)
}

fn seen<F: OneScale>(bytes: &[u8]) -> Seen {
    let (mut seen, mut codes) = (Seen::default(), [0; 256]);
    for block in bytes.chunks_exact(F::BYTES) {
        seen |= spread::<F>(block, &mut codes[..F::WEIGHTS]);
    }
    seen
}

fn read<F: OneScale>(codes: Codes<'_>, row: usize, first: usize, out: &mut [u8]) -> Seen {
    let mut seen = Seen::default();
    let first = row * codes.shape().cols + first;
    let size = (F::WEIGHTS, F::BYTES);
    blocks::read(codes.bytes(), size, first, out, |block, out| seen |= spread::<F>(block, out));
    seen
}

/// Appends blocks as llama.cpp writes them: the scale of one without weights is 0.
fn encode<F: OneScale>(codes: &[u8], scale: f32, out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(F::WEIGHTS) {
        let start = out.len();
        out.resize(start + F::BYTES, 0);
        let block = &mut out[start..];
        F::pack(codes, block);
        let scale = blocks::scale_of(codes, scale).to_le_bytes();
        block[F::SCALE..F::SCALE + 2].copy_from_slice(&scale);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bitnet_profiles::Shape;

    use super::super::TensorType;
    use super::*;

    /// Checks that matrices of two rows of three blocks are read by the definition of the format: `place`
    /// gives the byte of a block's weight, and `code` the code out of that byte.
    pub(crate) fn check(
        ty: TensorType,
        scale_at: usize,
        code: impl Fn(&[u8], usize) -> u8,
        bytes_of_codes: impl Fn() -> u8,
    ) {
        let (weights, bytes) = ty.format().size.block().unwrap();
        let (weights, block_bytes) = (weights as usize, bytes as usize);
        let shape = Shape::new(2, 3 * weights);
        let scales = [0.5, 0.0, 0.25, 0.5, 0.5, -0.0];
        let mut tensor: Vec<u8> = (0..6 * block_bytes).map(|_| bytes_of_codes()).collect();
        for (block, scale) in tensor.chunks_exact_mut(block_bytes).zip(scales) {
            block[scale_at..][..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
        let codes = Codes::new(ty, &tensor, shape).unwrap();
        assert!(codes.fits(), "{ty}");
        assert_eq!(codes.scales(), Scales::Blocks { width: weights, values: scales.to_vec() });
        let expected = |at: usize| {
            let block = at / weights;
            let bytes = &tensor[block * block_bytes..][..block_bytes];
            if scales[block] == 0.0 { ZERO } else { code(bytes, at % weights) }
        };
        let cols = shape.cols;
        for (row, first, n) in
            [(0, 0, cols), (1, 0, cols), (0, 5, weights + 9), (1, weights - 1, 2), (1, 3, 0)]
        {
            let mut out = vec![9; n];
            let seen = codes.read(row, first, &mut out);
            let wanted: Vec<u8> =
                (first..first + n).map(|col| expected(row * cols + col)).collect();
            assert_eq!(out, wanted, "{ty}: row {row}, {n} from {first}");
            assert!(!wanted.contains(&3) || seen.bad, "{ty}");
        }
        let (all, shares): (Vec<u8>, Vec<u8>) =
            ((0..6 * weights).map(expected).collect(), tensor.clone());
        assert_eq!(codes.seen(&shares), Some(Seen::in_codes(&all)), "{ty}");
    }

    /// Every ternary format reads what it writes, whatever the rows.
    #[test]
    fn codes_are_read_as_they_are_written() {
        let shape = Shape::new(3, 512);
        let codes: Vec<u8> = (0..shape.weights()).map(|i| (i * i / 7 % 3) as u8).collect();
        let mut written = 0;
        for format in super::super::FORMATS {
            let Some(encode) = format.ternary().and_then(Ternary::encode) else {
                continue;
            };
            let mut bytes = Vec::new();
            encode(&codes, 0.25, &mut bytes);
            let read = Codes::new(format.ty, &bytes, shape).unwrap();
            assert!(read.fits(), "{}", format.name);
            for (row, expected) in codes.chunks(512).enumerate() {
                let mut out = vec![9; 512];
                assert_eq!(read.row(row, &mut out), None, "{}", format.name);
                assert_eq!(out, expected, "{}", format.name);
            }
            written += 1;
        }
        assert!(written >= 7, "{written}");
    }
}
