//! Rows of little-endian floats: F32, F16 and BF16.

use bitnet_profiles::HeadFormat;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Format, Reader, Rows, Size, TensorType};
use crate::numerics::dot_with;

/// F32, 32 bits.
pub const F32: Format = Format {
    ty: TensorType::F32,
    id: 0,
    name: "f32",
    size: Size::Rows { weights: 1, bytes: 4, extra: 0 },
    reader: Reader::Rows(Rows {
        head: HeadFormat::F32,
        dequantise: dequantise_f32,
        dot: |x, row| {
            assert_eq!(row.len(), 4 * x.len());
            dot_with(x, |i| f32_at(row, i))
        },
        quantise: |values, out| out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        minima: None,
    }),
};

/// F16, 16 bits, 5 of them exponent.
pub const F16: Format = Format {
    ty: TensorType::F16,
    id: 1,
    name: "f16",
    size: Size::Rows { weights: 1, bytes: 2, extra: 0 },
    reader: Reader::Rows(Rows {
        head: HeadFormat::F16,
        dequantise: dequantise_f16,
        dot: |x, row| {
            assert_eq!(row.len(), 2 * x.len());
            dot_with(x, |i| f16_at(row, i))
        },
        quantise: quantise_f16,
        minima: None,
    }),
};

/// BF16, 16 bits, the upper half of an F32.
pub const BF16: Format = Format {
    ty: TensorType::BF16,
    id: 30,
    name: "bf16",
    size: Size::Rows { weights: 1, bytes: 2, extra: 0 },
    reader: Reader::Rows(Rows {
        head: HeadFormat::Bf16,
        dequantise: |row, out| {
            assert_eq!(row.len(), 2 * out.len());
            out.iter_mut().enumerate().for_each(|(i, out)| *out = bf16_at(row, i));
        },
        dot: |x, row| {
            assert_eq!(row.len(), 2 * x.len());
            dot_with(x, |i| bf16_at(row, i))
        },
        quantise: |values, out| {
            out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
        },
        minima: None,
    }),
};

/// Returns number `i` of a row of f16.
pub(super) fn f16_at(bytes: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

fn bf16_at(bytes: &[u8], i: usize) -> f32 {
    bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

fn f32_at(bytes: &[u8], i: usize) -> f32 {
    let i = 4 * i;
    f32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]])
}

fn dequantise_f32(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len(), 4 * out.len());
    for (i, out) in out.iter_mut().enumerate() {
        *out = f32_at(row, i);
    }
}

fn dequantise_f16(row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len(), 2 * out.len());
    let (blocks, rest) = row.as_chunks::<64>();
    let (outs, out) = out.as_chunks_mut::<32>();
    for (block, out) in blocks.iter().zip(outs) {
        // Of the size that the conversion of slices does at once where the CPU can.
        let halves: [f16; 32] =
            std::array::from_fn(|i| f16::from_le_bytes([block[2 * i], block[2 * i + 1]]));
        halves.convert_to_f32_slice(out);
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out = f16_at(rest, i);
    }
}

fn quantise_f16(values: &[f32], out: &mut Vec<u8>) {
    let mut halves = [f16::ZERO; 256];
    for values in values.chunks(halves.len()) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::dot;
    use crate::random::Random;

    #[test]
    fn rows_are_dotted_and_read_alike() {
        let random = &mut Random::new(10);
        let mut numbers = |n: usize| -> Vec<f32> {
            (0..n).map(|_| random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0).collect()
        };
        for n in [0, 1, 2, 15, 16, 17, 31, 64, 100, 1536] {
            let (x, w) = (numbers(n), numbers(n));
            for (format, most) in [(&F32, 0.0), (&F16, 1e-3), (&BF16, 4e-3)] {
                let (rows, mut bytes) = (format.rows().unwrap(), Vec::new());
                let mut read = vec![f32::NAN; n];
                (rows.quantise)(&w, &mut bytes);
                (rows.dequantise)(&bytes, &mut read);
                assert!(read.iter().zip(&w).all(|(a, b)| (a - b).abs() <= most), "{}", format.name);
                assert_eq!((rows.dot)(&x, &bytes), dot(&x, &read), "{} {n}", format.name);
            }
        }
    }
}
