//! Random weights that leave out as much work as trained ones do.
//!
//! Plain random weights close half the gates, in every token other ones, and no logit stands out.
//! In a trained model with squared ReLU most gates are closed ([`Sparsity::TRAINED`]); some rows
//! are nearly always so, others follow the token; and the best logits stand out. Four things
//! imitate that, all of them in ternary matrices and norms that every program can load:
//!
//! - A share [`COMMON`] of every embedding row's energy is one direction, the same for all tokens:
//!   1 in every column. `attn_output` and `ffn_down` have small scales, so that the residual
//!   stream keeps it through all layers.
//! - The weights of a row i of `ffn_gate` are random, but their sum is chosen: it decides how far
//!   below 0 the gate lies on average, while what differs between tokens moves it by a standard
//!   normal number: `gate_i = n - h_i`. The h_i are normal too, with the mean and the deviation that
//!   give a layer's share of closed gates and its overlap between tokens ([`LAYERS`]); their order is
//!   random, so that nothing closes in runs.
//! - The weights of `ffn_sub_norm` spread ([`SPREAD`]), so that the largest input of `ffn_down`
//!   leaves the int8 zero to as many others as it does in a trained model.
//! - The embedding's rows form groups in groups in groups ([`GROUPS`]), each with a direction of its
//!   own, and the weights of `output_norm` are 1 and -1 in turns. That takes the common direction
//!   out of the logits, and as every group has a twin with every second sign turned, the rows of the
//!   twin of the last token's group stand out: they are what a low-bit sketch of the head cannot
//!   tell apart. Text so hops between twins instead of repeating a token.
//!
//! [`Sparsity::TRAINED`]: crate::dummy::statistics::Sparsity::TRAINED

use std::ops::Range;

use super::{CHUNK, DummyShape, NORMALS, Noise, normals, ternary_scale};
use bitnet_runtime::arch::Activation;
use bitnet_runtime::engine::sampler::Rng;
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::gguf::{TensorInfo, TensorType};

/// Root mean square of the embedding.
const EMBEDDING: f32 = 0.05;
/// Share of the embedding's energy in the direction that all tokens have in common.
const COMMON: f32 = 0.25;
/// Energy of what all layers add to the residual stream, relative to the embedding's.
const ADDED: f32 = 1.0;
/// Share of that which is the same for all tokens.
const CONSTANT: f32 = 0.5;
/// Deviation of the weights of `ffn_sub_norm`, whose mean is about 1.
const SPREAD: f32 = 0.7;

/// By depth, where gates lie: the share of closed ones is that of a standard normal variable below
/// the first number, as in the six layers of bard-11m (in the middle ones up to a point more:
/// its tokens differ in how many gates they open, which closes more groups). The second is the
/// deviation of the h of a layer, which gives the overlap:
/// `P(h + n < 0, h + m < 0) / P(h + n < 0)` with n and m standard normal.
const LAYERS: [(f32, f32); 6] = [
    (0.548, 0.726),
    (1.420, 1.133),
    (1.640, 1.457),
    (1.500, 1.221),
    (1.235, 1.183),
    (0.693, 0.984),
];

/// Groups of the embedding's rows, from large to small: how many in one of the larger, and the
/// share of the energy that is not common to all which a group's rows have in common. The first
/// number counts twins. They give the shares of rows that survive 4, 5 and 6 bits.
const GROUPS: [(usize, f32); 3] = [(14, 0.09), (13, 0.285), (8, 0.08)];
/// Largest relative distance of the share of a group of the second kind from the mean: in a
/// trained model too some logits stand out less.
const UNEVEN: f32 = 0.4;

/// The tensors of such a model that are not plainly random.
pub(crate) struct Trained {
    hidden: usize,
    layers: usize,
    /// Quantiles of a normal distribution with deviation 1.
    normal: Vec<f32>,
    /// Base of the rows of a group, without the signs of twins: `[groups / 2][hidden]`.
    bases: Vec<f32>,
}

/// Recipe of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    /// Token embedding.
    Embedding,
    /// `ffn_gate` of a layer.
    Gate(usize),
    /// A norm with spread weights.
    SubNorm,
    /// The norm before the head.
    OutputNorm,
    /// Plainly random but for the scale.
    Scaled(f32),
}

impl Trained {
    /// # Errors
    /// [`Error::Usage`] for a shape without squared ReLU, whose gates are never exactly 0, and for
    /// a width that rows of codes do not fit.
    pub(crate) fn new(shape: &DummyShape, seed: u64) -> Result<Self> {
        if shape.arch.activation != Activation::Relu2 || !shape.tied {
            let found =
                format!("trained for shape {}, whose gates are never exactly 0", shape.name);
            let expected = "a shape with squared ReLU, such as 2b4t";
            return Err(Error::usage("--sparsity", found, expected));
        }
        let hidden = shape.hidden as usize;
        if !hidden.is_multiple_of(128) {
            let found = format!("trained for a width of {hidden}");
            return Err(Error::usage("--sparsity", found, "a width that is a multiple of 128"));
        }
        let normal: Vec<f32> = normals().map(|x| x as f32).collect();
        let mut rng = Rng::new(seed ^ u64::MAX);
        let mut row = |deviation: f32| -> Vec<f32> {
            (0..hidden)
                .map(|_| deviation * normal[(rng.next_u64() >> 52) as usize % NORMALS])
                .collect()
        };
        let [(tops, top), (middles, middle), (lows, low)] = GROUPS;
        let own = (1.0 - COMMON).sqrt();
        let mut bases = Vec::with_capacity(tops / 2 * middles * lows * hidden);
        for _ in 0..tops / 2 {
            let top = row(own * top.sqrt());
            for i in 0..middles {
                let energy =
                    middle * (1.0 + UNEVEN * (2.0 * i as f32 / (middles - 1) as f32 - 1.0));
                let middle = row(own * energy.sqrt());
                for _ in 0..lows {
                    let low = row(own * low.sqrt());
                    let parts = top.iter().zip(&middle).zip(&low);
                    bases.extend(parts.map(|((top, middle), low)| top + middle + low));
                }
            }
        }
        Ok(Self { hidden, layers: shape.layers as usize, normal, bases })
    }

    /// Recipe of a tensor, unless it is plainly random.
    pub(crate) fn part(&self, tensor: &TensorInfo) -> Option<Part> {
        let name = tensor.name.as_str();
        if let Some(part) = match name {
            "token_embd.weight" => Some(Part::Embedding),
            "output_norm.weight" => Some(Part::OutputNorm),
            _ => None,
        } {
            return Some(part);
        }
        let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
        match name {
            "ffn_gate.weight" => Some(Part::Gate(layer.parse().ok()?)),
            "ffn_sub_norm.weight" => Some(Part::SubNorm),
            // Inputs of a mean square of 1, two of three weights not 0.
            "attn_output.weight" | "ffn_down.weight" => {
                let energy = ADDED / (2 * self.layers) as f32;
                let inputs = tensor.cols() as f32 * 2.0 / 3.0;
                Some(Part::Scaled(EMBEDDING * (energy / inputs).sqrt()))
            }
            _ => None,
        }
    }

    /// Appends at most `blocks` blocks and about [`CHUNK`] bytes, in whole rows; returns how many
    /// blocks are left.
    pub(crate) fn extend(
        &self,
        part: Part,
        (tensor, blocks): (&TensorInfo, u64),
        noise: &Noise,
        rng: &mut Rng,
        out: &mut Vec<u8>,
    ) -> u64 {
        let in_row = tensor.cols() / Noise::block(tensor.ty).0;
        let row_bytes = in_row as usize * Noise::block(tensor.ty).1;
        let left = (blocks / in_row) as usize;
        let first = tensor.rows() as usize - left;
        let rows = left.min((CHUNK / row_bytes).max(1));
        match part {
            Part::Embedding => self.embedding(tensor.ty, first..first + rows, rng, out),
            Part::Gate(layer) => {
                noise.extend(tensor, blocks, rows * row_bytes, rng, out);
                self.close(layer, out, rng);
            }
            Part::SubNorm | Part::OutputNorm => self.norm(part, tensor, rng, out),
            Part::Scaled(_) => {}
        }
        blocks - rows as u64 * in_row
    }

    /// The weights of a norm.
    fn norm(&self, part: Part, tensor: &TensorInfo, rng: &mut Rng, out: &mut Vec<u8>) {
        for column in 0..tensor.elements() as usize {
            let weight = match part {
                Part::OutputNorm => sign(column),
                _ => (1.0 + SPREAD * self.draw(rng)).abs(),
            };
            out.extend(weight.to_le_bytes());
        }
    }

    fn draw(&self, rng: &mut Rng) -> f32 {
        self.normal[(rng.next_u64() >> 52) as usize % NORMALS]
    }

    /// Changes signs in rows of plainly random codes of `ffn_gate`, `[rows][hidden / 4]`, until
    /// their sums put the gates where they belong.
    fn close(&self, layer: usize, codes: &mut [u8], rng: &mut Rng) {
        let cols = self.hidden as i32;
        let depth = (2 * layer + 1) * LAYERS.len() / (2 * self.layers);
        let (threshold, spread) = LAYERS[depth.min(LAYERS.len() - 1)];
        let mean = threshold * (1.0 + spread * spread).sqrt();
        // Shares of the energy that the norm lets through: what all tokens have in common, what
        // the layers so far have added, of which a part is as constant.
        let added = ADDED * (2 * layer + 1) as f32 / (2 * self.layers) as f32;
        let common = COMMON / (1.0 + added);
        let constant = CONSTANT * added / (1.0 + added);
        let differs = 1.0 - common - constant;
        let weights = self.hidden as f32 * 2.0 / 3.0;
        let step = (weights * differs / common).sqrt();
        let spread = (spread * spread - constant / differs).max(0.0).sqrt();
        for row in codes.chunks_exact_mut(self.hidden / 4) {
            let count = |mask: u8, row: &[u8]| -> i32 {
                row.iter().map(|byte| (byte & mask).count_ones() as i32).sum()
            };
            let (plus, zeros) = (count(0xaa, row), count(0x55, row));
            let most = (cols - zeros) * 9 / 10;
            let wanted = -(step * (mean + spread * self.draw(rng))).round() as i32;
            let wanted = wanted.clamp(-most, most);
            let mut sum = 2 * plus + zeros - cols;
            // Code 2 is weight 1 and code 0 weight -1.
            let (from, change) = if sum > wanted { (2, -2) } else { (0, 2) };
            while sum.abs_diff(wanted) > 1 {
                let mut r = rng.next_u64();
                for _ in 0..3 {
                    let at = ((r & 0xffff) as usize * row.len()) >> 16;
                    let shift = 2 * (r >> 16 & 3);
                    r >>= 20;
                    if row[at] >> shift & 3 == from && sum.abs_diff(wanted) > 1 {
                        row[at] ^= 2 << shift;
                        sum += change;
                    }
                }
            }
        }
    }

    /// Appends rows of the embedding.
    fn embedding(&self, ty: TensorType, rows: Range<usize>, rng: &mut Rng, out: &mut Vec<u8>) {
        let groups = GROUPS.iter().map(|group| group.0).product::<usize>();
        let shared: f32 = GROUPS.iter().map(|group| group.1).sum();
        let own = ((1.0 - COMMON) * (1.0 - shared)).sqrt();
        let scaled: Vec<f32> = self.normal.iter().map(|n| own * n).collect();
        let common = COMMON.sqrt();
        let rows_of = ty.format().rows().expect("an embedding is of rows of floats");
        // Rows of a format with one scale for all hold none.
        let one_scale = ty.format().size.tail_bytes() > 0;
        let unit = if one_scale { 1.0 / ternary_scale(self.hidden as u64) } else { 1.0 };
        let mut values = vec![0.0f32; self.hidden];
        for row in rows {
            // Twins are neighbours; the rows of a group are far apart.
            let (base, twin) = (row % groups / 2, row % 2);
            let base = &self.bases[base * self.hidden..][..self.hidden];
            let odd = if twin == 0 { 1.0 } else { -1.0 };
            let pairs = values.as_chunks_mut::<4>().0.iter_mut().zip(base.as_chunks::<4>().0);
            for (values, base) in pairs {
                let r = rng.next_u64() as usize;
                for k in 0..4 {
                    let sign = if k % 2 == 0 { 1.0 } else { odd };
                    let noise = scaled[(r >> (12 * k)) % NORMALS];
                    values[k] = EMBEDDING * (common + sign * base[k] + noise) * unit;
                }
            }
            (rows_of.quantise)(&values, out);
        }
    }
}

/// The weight of the last norm.
fn sign(column: usize) -> f32 {
    if column.is_multiple_of(2) { 1.0 } else { -1.0 }
}
