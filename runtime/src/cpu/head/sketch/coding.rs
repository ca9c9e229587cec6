//! Coding rows of a head: the sketch and the refinement row of each, and what they leave.

use bitnet_profiles::{GatherLayout, Isa, SketchFormat};

use super::{TILE_ROWS, U, UNDERFLOW, up};
use crate::cpu::table::Table;
use crate::file::gguf::Gguf;
use crate::numerics::BLOCK;

/// Scales, norm and residuals of a coded row.
pub(super) struct Coded {
    pub(super) scale: f32,
    pub(super) refinement_scale: f32,
    pub(super) norm: f64,
    pub(super) residual: f64,
    pub(super) refinement_residual: f64,
}

/// A worker's buffers for coding a row, all of whole blocks.
pub(super) struct Room {
    pub(super) weights: Vec<f32>,
    /// Residual after the sketch.
    pub(super) rest: Vec<f32>,
    /// Codes of the refinement row, in whole units.
    pub(super) codes: Vec<u8>,
}

impl Room {
    pub(super) fn new(cols: usize, refinement: GatherLayout) -> Self {
        let padded = cols.next_multiple_of(BLOCK);
        let codes = vec![ZERO; padded.next_multiple_of(refinement.unit_weights())];
        Self { weights: vec![0.0; padded], rest: vec![0.0; padded], codes }
    }
}

/// Function that codes one row, row `r` of its tile, and its refinement row. It writes nothing and
/// returns `None` if the weights are not finite or too large.
///
/// # Safety
/// The CPU has the features that the function was chosen for.
pub(super) type Coder = unsafe fn(&mut Room, usize, &mut [u8]) -> Option<Coded>;

/// Returns the coder for a format, with instructions up to those of `isa`. All give the same
/// result.
pub(super) fn coder(format: SketchFormat, isa: Isa) -> Coder {
    #[cfg(target_arch = "x86_64")]
    if isa.includes(Isa::Avx2) && Isa::Avx2.is_supported() {
        return match format {
            SketchFormat::P4 => code_row_avx2::<4>,
            SketchFormat::P5 => code_row_avx2::<5>,
        };
    }
    let _ = isa;
    match format {
        SketchFormat::P4 => code_row::<4>,
        SketchFormat::P5 => code_row::<5>,
    }
}

/// [`code_row`] with AVX2, whose vectors are twice as long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn code_row_avx2<const BITS: usize>(room: &mut Room, r: usize, out: &mut [u8]) -> Option<Coded> {
    code_row::<BITS>(room, r, out)
}

/// Returns the norms of the residuals that the copies would leave of some rows: after the sketch
/// and after both.
pub(crate) fn residuals(
    gguf: &Gguf,
    head: &Table,
    cols: usize,
    (format, isa): (SketchFormat, Isa),
    rows: impl Iterator<Item = usize>,
) -> Vec<[f32; 2]> {
    let mut room = Room::new(cols, GatherLayout::I2sL64);
    let mut tile = vec![0; format.tile_bytes(cols)];
    rows.map(|row| {
        head.read_row(gguf, row, &mut room.weights[..cols]);
        // SAFETY: `coder` asked for what the CPU has.
        match unsafe { coder(format, isa)(&mut room, 0, &mut tile) } {
            Some(coded) => [coded.residual, coded.refinement_residual].map(up),
            None => [f32::INFINITY; 2],
        }
    })
    .collect()
}

/// Code of a weight of 0 in a refinement row.
const ZERO: u8 = 1;
/// Scale of a refinement row in root mean squares of the residual, 2 / sqrt(3): rounding to equal
/// steps leaves uniform residuals, for which the best ternary scale is two thirds of the largest.
const FINE_STEP: f32 = 1.154_700_5;

/// Lanes of the sums of squares in [`code_row`], so that the compiler can use vectors.
const LANES: usize = 16;

/// Implements [`Coder`]. Written, with the functions that it calls, for the compiler to vectorise.
#[inline(always)]
fn code_row<const BITS: usize>(room: &mut Room, r: usize, out: &mut [u8]) -> Option<Coded> {
    let (blocks, _) = room.weights.as_chunks::<BLOCK>();
    let (rests, _) = room.rest.as_chunks_mut::<BLOCK>();
    let levels = (1u32 << BITS) as f32;
    let middle = (levels - 1.0) / 2.0;
    let mut squares = [[0f32; LANES]; 3];
    let mut lanes = [0.0; LANES];
    for block in blocks {
        add_squares(&mut squares[0], block);
        larger(&mut lanes, block);
    }
    let total = squares[0].iter().sum::<f32>();
    if !total.is_finite() {
        return None;
    }
    // A step of 1 in the scale of a block; 0 for weights so small that no scale is a normal number.
    let largest = largest(lanes);
    let unit = if largest < 1e-30 { 0.0 } else { largest / (levels / 2.0 * 255.0) };
    let per_unit = if unit == 0.0 { 0.0 } else { 1.0 / unit };
    let block_bytes = TILE_ROWS * (BLOCK * BITS / 8 + 1);
    for ((block, rest), out) in
        blocks.iter().zip(&mut *rests).zip(out.chunks_exact_mut(block_bytes))
    {
        let scale = ((top(block) / (levels / 2.0)) * per_unit).ceil().min(255.0);
        let step = unit * scale;
        let mut codes = [0u8; BLOCK];
        *rest = quantise(block, step, middle, levels - 1.0, &mut codes);
        add_squares(&mut squares[1], rest);
        // Four or eight codes at once, one in each byte.
        for (group, codes) in codes.as_chunks::<8>().0.iter().enumerate() {
            let low = u64::from_le_bytes(*codes) & 0x0f0f_0f0f_0f0f_0f0f;
            let nibbles = (low | low >> 28) as u32;
            out[64 * group + 4 * r..][..4].copy_from_slice(&nibbles.to_le_bytes());
        }
        if BITS == 5 {
            let steps = codes.as_chunks::<4>().0.iter().enumerate();
            let bits = steps.fold(0, |bits, (step, codes)| {
                bits | (u32::from_le_bytes(*codes) >> 4 & 0x0101_0101) << step
            });
            out[256 + 4 * r..][..4].copy_from_slice(&bits.to_le_bytes());
        }
        out[block_bytes - TILE_ROWS + r] = scale as u8;
    }
    let mean = squares[1].iter().sum::<f32>() / room.weights.len() as f32;
    let refinement_scale = FINE_STEP * mean.sqrt();
    let (codes, _) = room.codes.as_chunks_mut::<BLOCK>();
    for (rest, codes) in rests.iter().zip(codes) {
        add_squares(&mut squares[2], &quantise(rest, refinement_scale, 1.0, 2.0, codes));
    }
    let [weights_norm, residual, refinement_residual] = squares.map(|lanes| {
        let depth = room.weights.len() as f64 / LANES as f64 + 32.0;
        let sum: f64 = lanes.iter().map(|&v| f64::from(v)).sum();
        sum.sqrt() * (1.0 + depth * 2.0 * U) + UNDERFLOW
    });
    // The step, the coded weight and the difference were rounded, and perhaps the weight itself.
    let rounding = 16.0 * U * (weights_norm + residual);
    Some(Coded {
        // Half, because scans sum twice the codes.
        scale: unit / 2.0,
        refinement_scale,
        norm: weights_norm,
        residual: residual + rounding,
        refinement_residual: refinement_residual + rounding,
    })
}

#[inline(always)]
fn add_squares(lanes: &mut [f32; LANES], block: &[f32; BLOCK]) {
    for half in block.as_chunks::<LANES>().0 {
        *lanes = std::array::from_fn(|i| lanes[i] + half[i] * half[i]);
    }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Updates the lanes to the larger magnitudes.
#[inline(always)]
fn larger(lanes: &mut [f32; LANES], block: &[f32; BLOCK]) {
    for half in block.as_chunks::<LANES>().0 {
        *lanes = std::array::from_fn(|i| max(half[i].abs(), lanes[i]));
    }
}

/// Returns the largest of some lanes; as a tree, since in a chain each step would wait for the one
/// before.
#[inline(always)]
fn largest(lanes: [f32; LANES]) -> f32 {
    let lanes: [f32; 8] = std::array::from_fn(|i| max(lanes[i], lanes[i + 8]));
    let lanes: [f32; 4] = std::array::from_fn(|i| max(lanes[i], lanes[i + 4]));
    max(max(lanes[0], lanes[2]), max(lanes[1], lanes[3]))
}

/// Returns the largest magnitude.
#[inline(always)]
fn top(block: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0; LANES];
    larger(&mut lanes, block);
    largest(lanes)
}

/// Codes a block: `round(w / step + middle)`, 0 to `last`. Returns its residual.
#[inline(always)]
fn quantise(
    block: &[f32; BLOCK],
    step: f32,
    middle: f32,
    last: f32,
    codes: &mut [u8; BLOCK],
) -> [f32; BLOCK] {
    /// Adding this rounds 0..2^22 to an integer, in the low bits of the float.
    const ROUND: f32 = 8_388_608.0;
    let per_step = if step < 1e-30 { 0.0 } else { 1.0 / step };
    let mut rest = [0.0; BLOCK];
    for i in 0..BLOCK {
        let place = block[i] * per_step + middle;
        let place = if place > 0.0 { place } else { 0.0 };
        let place = if place < last { place } else { last };
        let rounded = place + ROUND;
        codes[i] = rounded.to_bits() as u8;
        rest[i] = block[i] - step * ((rounded - ROUND) - middle);
    }
    rest
}
