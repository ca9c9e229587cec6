//! Q5_0: 32 weights in 22 bytes, an f16 scale, the 32 upper bits of the codes, and 16 bytes of their
//! lower ones, of which byte `j` holds weight `j` in its low and `j + 16` in its high nibble; codes are
//! weights plus 16 (`block_q5_0` of ggml-common.h).

use bitnet_profiles::HeadFormat;

use super::blocks::from_extreme;
use super::float::f16_at;
use super::parts::{self, Part, Parts, add_fifth_bits, nibbles, write_codes};
use super::{Format, Reader, TensorType};

struct Q5_0;

/// The format's entry.
pub const FORMAT: Format = Format {
    ty: TensorType::Q5_0,
    id: 6,
    name: "q5_0",
    size: parts::size::<Q5_0>(),
    reader: Reader::Rows(parts::rows::<Q5_0>(HeadFormat::Q5_0)),
};

impl Parts for Q5_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 22;
    const MINIMA: bool = false;

    fn part(block: &[u8], _: usize) -> Part {
        let mut codes = nibbles(&block[6..]);
        add_fifth_bits(&mut codes, &block[2..]);
        Part { scale: f16_at(block, 0), minimum: 0.0, codes: codes.map(|code| code - 16) }
    }

    /// Quantises as ggml's reference does (`quantize_row_q5_0_ref`): the value of the largest magnitude
    /// gets the code -16.
    fn quantise(values: &[f32], out: &mut Vec<u8>) {
        let (scale, codes) = from_extreme::<16>(values);
        out.extend(scale.to_le_bytes());
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
            let d = 0.125 * (b + 1) as f32;
            bytes[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            let weight = |i: usize| {
                let low = if i < 16 { bytes[6 + i] % 16 } else { bytes[6 + i - 16] / 16 };
                let high = bytes[2 + i / 8] >> (i % 8) & 1;
                d * (f32::from(low) + 16.0 * f32::from(high) - 16.0)
            };
            (0..32).map(weight).collect()
        });
    }
}
