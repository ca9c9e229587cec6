//! Q5_1: 32 weights in 24 bytes, an f16 scale, an f16 minimum, and codes as Q5_0 has them, without an
//! offset (`block_q5_1` of ggml-common.h).

use bitnet_profiles::HeadFormat;

use super::blocks::from_least;
use super::float::f16_at;
use super::parts::{self, Part, Parts, add_fifth_bits, nibbles, write_codes};
use super::{Format, Reader, TensorType};

struct Q5_1;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q5_1,
    id: 7,
    name: "q5_1",
    size: parts::size::<Q5_1>(),
    reader: Reader::Rows(parts::rows::<Q5_1>(HeadFormat::Q5_1)),
};

impl Parts for Q5_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 24;
    const MINIMA: bool = true;

    fn part(block: &[u8], _: usize) -> Part {
        let mut codes = nibbles(&block[8..]);
        add_fifth_bits(&mut codes, &block[4..]);
        Part { scale: f16_at(block, 0), minimum: f16_at(block, 1), codes }
    }

    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let codes = from_least(values, 31, out);
        write_codes::<5>(&codes, out);
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
            let (d, m) = (0.125 * (b + 1) as f32, f16::from_f32(1.3 - b as f32));
            bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            bytes[2..4].copy_from_slice(&m.to_le_bytes());
            let weight = |i: usize| {
                let low = if i < 16 { bytes[8 + i] % 16 } else { bytes[8 + i - 16] / 16 };
                let high = bytes[4 + i / 8] >> (i % 8) & 1;
                d * (f32::from(low) + 16.0 * f32::from(high)) + m.to_f32()
            };
            (0..32).map(weight).collect()
        });
    }
}
