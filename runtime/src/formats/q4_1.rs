//! Q4_1: 32 weights in 20 bytes, an f16 scale, an f16 minimum and 16 bytes, of which byte `j` holds
//! weight `j` in its low and `j + 16` in its high nibble (`block_q4_1` of ggml-common.h).

use bitnet_profiles::HeadFormat;

use super::blocks::from_least;
use super::float::f16_at;
use super::parts::{self, Part, Parts, nibbles, write_codes};
use super::{Format, Reader, TensorType};

struct Q4_1;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q4_1,
    id: 3,
    name: "q4_1",
    size: parts::size::<Q4_1>(),
    reader: Reader::Rows(parts::rows::<Q4_1>(HeadFormat::Q4_1)),
};

impl Parts for Q4_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 20;
    const MINIMA: bool = true;

    fn part(block: &[u8], _: usize) -> Part {
        Part { scale: f16_at(block, 0), minimum: f16_at(block, 1), codes: nibbles(&block[4..]) }
    }

    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let codes = from_least(values, 15, out);
        write_codes::<4>(&codes, out);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::tests::check_rows;
    use super::*;

    #[test]
    fn rows_are_read_exactly() {
        check_rows(&FORMAT, |bytes, b| {
            let (d, m) = (0.125 * (b + 1) as f32, -0.7 * b as f32);
            bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            bytes[2..4].copy_from_slice(&f16::from_f32(m).to_le_bytes());
            let m = f16::from_f32(m).to_f32();
            let low = bytes[4..].iter().map(|&w| d * f32::from(w % 16) + m);
            let high = bytes[4..].iter().map(|&w| d * f32::from(w / 16) + m);
            low.chain(high).collect()
        });
    }
}
