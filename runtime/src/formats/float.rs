//! Rows of little-endian floats: F32, F16 and BF16.

use bitnet_profiles::HeadFormat;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Codes, Form, Format, Reader, Rows, Scales, Seen, Size, TensorType, Ternary, ZERO};
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
        quantise: |values, out| append(out, values.iter().map(|v| v.to_le_bytes())),
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
            append(out, values.iter().map(|&v| bf16::from_f32(v).to_le_bytes()));
        },
        minima: None,
    }),
};

/// Returns the reader of floats as ternary codes, for matrices whose weights are ternary but stored as
/// floats; `None` for a type that is not one of these floats. The scale of a matrix that is no such one is
/// NaN.
pub(super) fn codes(ty: TensorType) -> Option<&'static Ternary> {
    static F32: Ternary = reader(
        |codes| scales(codes, f32_at),
        |codes, row, first, out| read(codes, row, first, out, f32_at),
    );
    static F16: Ternary = reader(
        |codes| scales(codes, f16_at),
        |codes, row, first, out| read(codes, row, first, out, f16_at),
    );
    static BF16: Ternary = reader(
        |codes| scales(codes, bf16_at),
        |codes, row, first, out| read(codes, row, first, out, bf16_at),
    );
    match ty {
        TensorType::F32 => Some(&F32),
        TensorType::F16 => Some(&F16),
        TensorType::BF16 => Some(&BF16),
        _ => None,
    }
}

const fn reader(
    scales: fn(Codes<'_>) -> Scales,
    read: fn(Codes<'_>, usize, usize, &mut [u8]) -> Seen,
) -> Ternary {
    Ternary { scales, read, form: Form::Rows, twos: false }
}

/// Returns the scales of a matrix of floats each of which is 0 or of one magnitude in its unit: of the
/// largest unit for which that is so, the tensor, a row, or a block of 256, 128 or 64 columns. NaN where
/// there is none.
fn scales(codes: Codes<'_>, at: impl Fn(&[u8], usize) -> f32) -> Scales {
    /// Narrowest blocks, and how many of them make wider ones.
    const NARROW: usize = 64;
    const WIDER: [usize; 3] = [4, 2, 1];
    let cols = codes.shape().cols;
    let width = if cols.is_multiple_of(NARROW) { NARROW } else { cols };
    let weights = codes.shape().weights();
    let blocks = (0..weights).step_by(width.max(1)).map(|first| {
        let mut found = 0.0f32;
        for i in first..first + width {
            let size = at(codes.bytes(), i).abs();
            if size != 0.0 && size != found {
                if found != 0.0 || !size.is_finite() {
                    return None;
                }
                found = size;
            }
        }
        Some(found)
    });
    let Some(blocks) = blocks.collect::<Option<Vec<f32>>>() else {
        return Scales::Tensor(f32::NAN);
    };
    if let Some(rows) = joined(&blocks, cols / width.max(1)) {
        return match joined(&rows, rows.len()).as_deref() {
            // Of a matrix of zeros any will do.
            Some(&[scale]) => Scales::Tensor(if scale == 0.0 { 1.0 } else { scale }),
            _ => Scales::Rows(rows),
        };
    }
    let mut wider = WIDER.into_iter().filter(|count| cols.is_multiple_of(count * width));
    let found = wider.find_map(|count| Some((count * width, joined(&blocks, count)?)));
    found.map_or(Scales::Tensor(f32::NAN), |(width, values)| Scales::Blocks { width, values })
}

/// Returns the one magnitude of each `count` that follow each other, 0 where all are; `None` where some
/// have two.
fn joined(values: &[f32], count: usize) -> Option<Vec<f32>> {
    let one = |values: &[f32]| {
        let mut sizes = values.iter().copied().filter(|size| *size != 0.0);
        let first = sizes.next().unwrap_or(0.0);
        sizes.all(|size| size == first).then_some(first)
    };
    values.chunks(count.max(1)).map(one).collect()
}

/// Reads signs as codes.
fn read(
    codes: Codes<'_>,
    row: usize,
    first: usize,
    out: &mut [u8],
    at: impl Fn(&[u8], usize) -> f32,
) -> Seen {
    let first = row * codes.shape().cols + first;
    for (i, out) in out.iter_mut().enumerate() {
        let weight = at(codes.bytes(), first + i);
        *out = ZERO + u8::from(weight > 0.0) - u8::from(weight < 0.0);
    }
    Seen::in_codes(out)
}

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
        append(out, halves.iter().map(|half| half.to_le_bytes()));
    }
}

/// Appends numbers of so many bytes.
fn append<const BYTES: usize>(
    out: &mut Vec<u8>,
    numbers: impl ExactSizeIterator<Item = [u8; BYTES]>,
) {
    let start = out.len();
    out.resize(start + BYTES * numbers.len(), 0);
    let places = out[start..].as_chunks_mut::<BYTES>().0;
    places.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_profiles::Shape;

    use crate::numerics::dot;
    use crate::random::Random;

    /// The scales and the codes of a matrix in each type of floats, which are the same.
    fn ternary(shape: Shape, weights: &[f32]) -> (Scales, Vec<u8>) {
        let read = [&F32, &F16, &BF16].map(|format| {
            let mut bytes = Vec::new();
            (format.rows().unwrap().quantise)(weights, &mut bytes);
            let matrix = Codes::of_floats(format.ty, &bytes, shape).unwrap();
            assert!(matrix.fits());
            let mut codes = vec![9; shape.weights()];
            for (row, codes) in codes.chunks_exact_mut(shape.cols).enumerate() {
                matrix.read(row, 0, codes);
            }
            (matrix.scales(), codes)
        });
        let [first, others @ ..] = read;
        for other in others {
            // NaN is not equal to itself.
            assert_eq!(format!("{other:?}"), format!("{first:?}"));
        }
        first
    }

    #[test]
    fn matrices_of_one_magnitude_are_ternary() {
        let shape = Shape::new(2, 256);
        let signs: Vec<f32> = (0..512).map(|i| (i * i / 5 % 3) as f32 - 1.0).collect();
        let scaled = |scale: &dyn Fn(usize) -> f32| -> Vec<f32> {
            signs.iter().enumerate().map(|(i, sign)| sign * scale(i)).collect()
        };
        let codes: Vec<u8> = signs.iter().map(|sign| (sign + 1.0) as u8).collect();
        let found = |scale: &dyn Fn(usize) -> f32| {
            let (scales, read) = ternary(shape, &scaled(scale));
            assert_eq!(read, codes);
            scales
        };
        assert_eq!(found(&|_| 0.25), Scales::Tensor(0.25));
        assert_eq!(found(&|i| [0.25, 0.5][i / 256]), Scales::Rows(vec![0.25, 0.5]));
        let blocks = |width, values: &[f32]| Scales::Blocks { width, values: values.into() };
        let halves = [0.25, 0.5, 1.0, 0.125];
        assert_eq!(found(&|i| halves[i / 128]), blocks(128, &halves));
        let quarters = [0.25, 0.5, 1.0, 0.125, 2.0, 2.0, 2.0, 1.0];
        assert_eq!(found(&|i| quarters[i / 64]), blocks(64, &quarters));
        // Zeros, of any sign, say nothing of a scale.
        assert_eq!(ternary(shape, &[0.0; 512]).0, Scales::Tensor(1.0));
        let mut weights = scaled(&|_| 0.25);
        weights[..256].fill(-0.0);
        let (scales, read) = ternary(shape, &weights);
        assert_eq!(scales, Scales::Tensor(0.25));
        assert!(read[..256].iter().all(|&code| code == ZERO));
        weights[300] = 0.5;
        weights[301] = 0.25;
        for odd in [0.5, f32::INFINITY, f32::NAN] {
            weights[300] = odd;
            let (Scales::Tensor(scale), _) = ternary(shape, &weights) else { panic!("{odd}") };
            assert!(scale.is_nan(), "{odd}");
        }
        // Rows of no whole blocks have one scale each, or are not ternary.
        let narrow = Shape::new(2, 6);
        let rows = [1.0, 0.0, -1.0, 1.0, 0.0, 1.0, 0.5, 0.5, -0.5, 0.0, 0.0, 0.5];
        assert_eq!(ternary(narrow, &rows).0, Scales::Rows(vec![1.0, 0.5]));
    }

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
