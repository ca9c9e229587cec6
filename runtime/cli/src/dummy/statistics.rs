//! Statistics of the work that a model lets a program leave out without changing a result.
//!
//! With squared ReLU, a gate at or below 0 makes its product with `up` exactly 0, so that row of
//! `up` need not be read; an int8 input of `ffn_down` that is 0 makes its column of `down` count
//! for nothing. And where one logit stands out, a low-bit sketch of the head is enough to rule out
//! most of the head's rows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitnet_runtime::cpu::model::{Model, Observer, Session};
use bitnet_runtime::error::Result;
use bitnet_runtime::random::Random;

/// Rows of a group that a kernel could skip together.
const GROUP: usize = 16;
/// Weights that share a scale in a sketch of the head.
const SKETCH_BLOCK: usize = 32;
/// Bits of the sketch that are looked at.
pub const SKETCH_BITS: [u32; 3] = [4, 5, 6];
/// Rows of the head that are looked at, unless it has fewer.
const HEAD_ROWS: usize = 8192;

/// Work that the feed-forward part leaves out: shares of 0 to 1, over the tokens of some texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparsity {
    /// Gates at or below 0.
    pub closed: f64,
    /// Groups of 16 consecutive gates, the first of them a multiple of 16, that are all closed.
    pub closed_groups: f64,
    /// Of a token's open gates, those that were open for the token before it.
    pub overlap: f64,
    /// int8 inputs of `ffn_down` that are 0.
    pub zero_inputs: f64,
}

impl Sparsity {
    /// Names of the shares.
    pub const NAMES: [&'static str; 4] = [
        "gates closed",
        "groups of 16 gates closed",
        "open gates open before",
        "inputs of down zero",
    ];

    /// Of the layers of the trained demo model, bard-11m, on the prompts and the greedy
    /// continuations of its golden file; `cargo test -p bitnet-runtime --test sparsity` measures
    /// them again.
    pub const TRAINED_LAYERS: [Self; 6] = [
        Self::new([0.7083, 0.0168, 0.4404, 0.8481]),
        Self::new([0.9179, 0.2558, 0.3386, 0.9558]),
        Self::new([0.9441, 0.4147, 0.3853, 0.9711]),
        Self::new([0.9259, 0.3290, 0.3521, 0.9584]),
        Self::new([0.8796, 0.1631, 0.4039, 0.9350]),
        Self::new([0.7560, 0.0264, 0.4715, 0.8674]),
    ];

    /// Of all its layers together.
    pub const TRAINED: Self = Self::new([0.8553, 0.2010, 0.4234, 0.9226]);

    const fn new([closed, closed_groups, overlap, zero_inputs]: [f64; 4]) -> Self {
        Self { closed, closed_groups, overlap, zero_inputs }
    }

    /// The four shares in the order of [`Sparsity::NAMES`].
    #[must_use]
    pub fn shares(&self) -> [f64; 4] {
        [self.closed, self.closed_groups, self.overlap, self.zero_inputs]
    }
}

/// The shares of the head's rows that a sketch of 4, 5 and 6 bits does not rule out for the trained
/// demo model, measured as [`Sparsity::TRAINED`]; see [`Measurement::head_rows`].
pub const TRAINED_HEAD_ROWS: [f64; SKETCH_BITS.len()] = [0.0584, 0.0044, 0.0010];

/// Shares measured of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Of all layers together.
    pub all: Sparsity,
    /// Layer by layer.
    pub layers: Vec<Sparsity>,
    /// For each of [`SKETCH_BITS`], the share of the head's rows that a sketch of that many bits leaves
    /// in the race for the largest logit, the mean over all tokens: rows whose logit by the sketch,
    /// plus what the rest of the row can add at most (`|row - sketch row| |x|`), reaches the largest
    /// logit that is certain. The sketch has signed codes and for each 32 weights a scale, by the
    /// largest of them. Of large heads some random rows are looked at.
    pub head_rows: [f64; SKETCH_BITS.len()],
}

/// Random tokens, the same for a vocabulary every time.
#[must_use]
pub fn random_text(vocab: usize, tokens: usize) -> Vec<u32> {
    let mut random = Random::new(2);
    (0..tokens).map(|_| random.below(vocab as u64) as u32).collect()
}

/// Measures a model by some texts, a token at a time, in a session that is empty afterwards.
///
/// # Errors
/// Those of [`Session::decode`].
pub fn measure(session: &mut Session, texts: &[Vec<u32>]) -> Result<Measurement> {
    let meter = Arc::new(Meter::default());
    session.observe(Some(Arc::clone(&meter) as Arc<dyn Observer>));
    let run = |session: &mut Session| -> Result<Vec<usize>> {
        let mut best = Vec::new();
        for text in texts {
            session.truncate(0);
            for &id in text {
                best.push(largest(session.decode(id)?));
            }
            meter.end_text();
        }
        Ok(best)
    };
    let best = run(session);
    session.truncate(0);
    session.observe(None);
    let counts = std::mem::take(&mut *meter.lock());
    let mut sum = Layer::default();
    counts.layers.iter().for_each(|layer| sum.add(layer));
    let inputs: Vec<(Vec<f32>, usize)> = counts.head_inputs.into_iter().zip(best?).collect();
    Ok(Measurement {
        all: sum.shares(),
        layers: counts.layers.iter().map(Layer::shares).collect(),
        head_rows: head_rows(session.model(), &inputs),
    })
}

fn largest(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best })
}

/// Counts while tokens go through a session.
#[derive(Debug, Default)]
struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    layers: Vec<Layer>,
    /// In the order of the tokens.
    head_inputs: Vec<Vec<f32>>,
}

/// Counts of a layer.
#[derive(Clone, Debug, Default)]
struct Layer {
    gates: u64,
    closed: u64,
    groups: u64,
    closed_groups: u64,
    /// Open gates of tokens that follow another.
    open: u64,
    open_before: u64,
    zero_inputs: u64,
    /// Open gates by position of the current text, a bit each.
    masks: BTreeMap<usize, Vec<u64>>,
}

impl Layer {
    fn add(&mut self, other: &Self) {
        self.gates += other.gates;
        self.closed += other.closed;
        self.groups += other.groups;
        self.closed_groups += other.closed_groups;
        self.open += other.open;
        self.open_before += other.open_before;
        self.zero_inputs += other.zero_inputs;
    }

    fn shares(&self) -> Sparsity {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        Sparsity {
            closed: share(self.closed, self.gates),
            closed_groups: share(self.closed_groups, self.groups),
            overlap: share(self.open_before, self.open),
            zero_inputs: share(self.zero_inputs, self.gates),
        }
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a text: the next token has none before it.
    fn end_text(&self) {
        for layer in &mut self.lock().layers {
            let masks = std::mem::take(&mut layer.masks);
            for (old, new) in masks.values().zip(masks.values().skip(1)) {
                for (old, new) in old.iter().zip(new) {
                    layer.open += u64::from(new.count_ones());
                    layer.open_before += u64::from((old & new).count_ones());
                }
            }
        }
    }
}

impl Observer for Meter {
    fn feed_forward(&self, layer: usize, position: usize, gate: &[f32], input: &[i8]) {
        let open = |gate: &f32| *gate > 0.0;
        let bits = |gates: &[f32]| {
            gates.iter().rev().fold(0u64, |bits, gate| bits << 1 | u64::from(open(gate)))
        };
        let groups = gate.as_chunks::<GROUP>().0;
        let counts = Layer {
            gates: gate.len() as u64,
            closed: gate.iter().filter(|gate| !open(gate)).count() as u64,
            groups: groups.len() as u64,
            closed_groups: groups.iter().filter(|group| !group.iter().any(open)).count() as u64,
            zero_inputs: input.iter().filter(|&&q| q == 0).count() as u64,
            ..Layer::default()
        };
        let mask = gate.chunks(64).map(bits).collect();
        let mut all = self.lock();
        if all.layers.len() <= layer {
            all.layers.resize(layer + 1, Layer::default());
        }
        all.layers[layer].add(&counts);
        all.layers[layer].masks.insert(position, mask);
    }

    fn head(&self, _position: usize, input: &[f32]) {
        self.lock().head_inputs.push(input.to_vec());
    }
}

/// [`Measurement::head_rows`] for inputs of the head, and the row with the largest logit of each.
fn head_rows(model: &Model, inputs: &[(Vec<f32>, usize)]) -> [f64; SKETCH_BITS.len()] {
    let (head, vocab) = (&model.weights().head, model.config().vocab);
    let lengths: Vec<f32> = inputs.iter().map(|(x, _)| dot(x, x).sqrt()).collect();
    let mut random = Random::new(1);
    let rows: Vec<usize> = if vocab <= HEAD_ROWS {
        (0..vocab).collect()
    } else {
        (0..HEAD_ROWS).map(|_| random.below(vocab as u64) as usize).collect()
    };
    SKETCH_BITS.map(|bits| {
        let mut row = vec![0.0; model.config().hidden];
        // The least and the largest logit that the sketch allows, for each input.
        let mut bounds = |index: usize| -> Vec<(f32, f32)> {
            head.read_row(model.gguf(), index, &mut row);
            let rest = to_sketch(&mut row, bits);
            let bound = |((x, _), length): (&(Vec<f32>, usize), &f32)| {
                let logit = dot(x, &row);
                (logit - rest * length, logit + rest * length)
            };
            inputs.iter().zip(&lengths).map(bound).collect()
        };
        let sampled: Vec<Vec<(f32, f32)>> = rows.iter().map(|&row| bounds(row)).collect();
        let left = inputs.iter().enumerate().map(|(i, (_, best))| {
            let least = sampled.iter().map(|row| row[i].0);
            let certain = least.fold(bounds(*best)[i].0, f32::max);
            sampled.iter().filter(|row| row[i].1 >= certain).count()
        });
        left.sum::<usize>() as f64 / (rows.len() * inputs.len()).max(1) as f64
    })
}

/// Rounds a row of the head to a sketch and returns the length of what is lost.
fn to_sketch(row: &mut [f32], bits: u32) -> f32 {
    let most = ((1u32 << (bits - 1)) - 1) as f32;
    let mut lost = 0.0f32;
    for block in row.chunks_mut(SKETCH_BLOCK) {
        let scale = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / most;
        if scale > 0.0 {
            for v in block {
                let rounded = (*v / scale).round_ties_even() * scale;
                lost += (*v - rounded) * (*v - rounded);
                *v = rounded;
            }
        }
    }
    lost.sqrt()
}

/// Not the dot product of `numerics`: it need not be the same everywhere, only quick.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    lanes.into_iter().chain(rest).sum()
}
