//! Common parts of block formats: reading parts of blocks, and rounding to codes.

use std::ops::BitOrAssign;

use half::f16;

use crate::numerics::BLOCK;

/// The code of weight 0.
pub(crate) const ZERO: u8 = 1;

/// Kinds of codes seen in a read; it may also count others of the blocks that the codes lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// A code 3.
    pub(crate) bad: bool,
    /// A weight other than zero.
    pub(crate) weights: bool,
}

impl Seen {
    /// Returns the kinds among bytes of four codes each, in any order.
    pub(crate) fn among(bytes: &[u8]) -> Self {
        let bad = bytes.iter().fold(0, |bad, byte| bad | (byte & (byte >> 1) & 0x55));
        let weights = bytes.iter().fold(0, |weights, byte| weights | (byte ^ 0x55));
        Self { bad: bad != 0, weights: weights != 0 }
    }

    /// Returns the kinds among codes, one per byte.
    pub(super) fn in_codes(codes: &[u8]) -> Self {
        let bad = codes.iter().fold(0, |bad, code| bad | (code & (code >> 1)));
        let weights = codes.iter().fold(0, |weights, code| weights | (code ^ ZERO));
        Self { bad: bad != 0, weights: weights != 0 }
    }
}

impl BitOrAssign for Seen {
    fn bitor_assign(&mut self, other: Self) {
        self.bad |= other.bad;
        self.weights |= other.weights;
    }
}

/// Reads the codes of weights `first..first + codes.len()` of `bytes`, consecutive blocks of so many
/// `(weights, bytes)`; `spread` unpacks a block to one code per byte. Inlined, so that sizes are known.
#[inline(always)]
pub(super) fn read(
    bytes: &[u8],
    (weights, block_bytes): (usize, usize),
    first: usize,
    codes: &mut [u8],
    mut spread: impl FnMut(&[u8], &mut [u8]),
) {
    /// Weights of the largest block.
    const MOST: usize = 256;
    let blocks = first / weights..(first + codes.len()).div_ceil(weights);
    let (mut from, mut rest) = (first % weights, codes);
    let bytes = &bytes[blocks.start * block_bytes..blocks.end * block_bytes];
    for block in bytes.chunks_exact(block_bytes) {
        let (own, behind) = rest.split_at_mut((weights - from).min(rest.len()));
        if own.len() == weights {
            spread(block, own);
        } else {
            let mut all = [0; MOST];
            spread(block, &mut all[..weights]);
            own.copy_from_slice(&all[from..from + own.len()]);
        }
        (from, rest) = (0, behind);
    }
}

/// Returns the scale of a block of codes, one per byte: 0 where none is a weight other than zero.
pub(super) fn scale_of(codes: &[u8], scale: f32) -> f16 {
    if codes.iter().all(|&code| code == ZERO) { f16::ZERO } else { f16::from_f32(scale) }
}

/// Returns the largest magnitude.
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |m, v| m.max(v.abs()))
}

/// Returns the factor that divides by `scale`: 0 for a block of zeros, whose scale is 0.
pub(super) fn reciprocal(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// Returns the nearest code of `least..=most`, ties to even.
pub(super) fn nearest(x: f32, least: i32, most: i32) -> i32 {
    (x.round_ties_even() as i32).clamp(least, most)
}

/// Returns the value of the largest magnitude, the first of several.
pub(super) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most })
}

/// Quantises 32 values to codes of 0 to `2 ZERO - 1`, of which `ZERO` stands for 0, as ggml's references
/// do: the scale gives the value of the largest magnitude the code 0, and is rounded to f16 only behind
/// that.
pub(super) fn from_extreme<const ZERO: u8>(values: &[f32]) -> (f16, [u8; BLOCK]) {
    let zero = f32::from(ZERO);
    let scale = extreme(values) / -zero;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // The sum is positive, and cut off.
    let code = |i: usize| ((values[i] * inverse + (zero + 0.5)) as u8).min(2 * ZERO - 1);
    (f16::from_f32(scale), std::array::from_fn(code))
}

/// Appends the f16 scale and minimum of 32 values, and returns their codes, of 0 to `most`.
pub(super) fn from_least(values: &[f32], most: i32, out: &mut Vec<u8>) -> [u8; BLOCK] {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scale, minimum) = (f16::from_f32((greatest - least) / most as f32), f16::from_f32(least));
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    let inverse = reciprocal(scale.to_f32());
    std::array::from_fn(|i| nearest((values[i] - minimum.to_f32()) * inverse, 0, most) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_blocks_are_read() {
        // Blocks of 4 codes in 2 bytes: the first code, from which the four count up.
        let bytes = [[10, 0], [20, 0], [30, 0]].concat();
        let all = [10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33];
        for first in 0..=12 {
            for end in first..=12 {
                let mut codes = vec![0; end - first];
                read(&bytes, (4, 2), first, &mut codes, |block, codes| {
                    codes.iter_mut().zip(block[0]..).for_each(|(code, own)| *code = own);
                });
                assert_eq!(codes, all[first..end], "{first}..{end}");
            }
        }
    }

    #[test]
    fn codes_are_seen_in_every_place() {
        assert_eq!(Seen::among(&[0x55; 40]), Seen { bad: false, weights: false });
        for place in 0..160 {
            for (code, bad) in [(0, false), (2, false), (3, true)] {
                let mut bytes = [0x55u8; 40];
                bytes[place / 4] ^= (code ^ 1) << (2 * (place % 4));
                assert_eq!(Seen::among(&bytes), Seen { bad, weights: true });
            }
        }
    }
}
