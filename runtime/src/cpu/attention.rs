//! Attention over the KV cache, shared out over the workers: as the forward pass runs it, and the
//! same on its own for who wants to time it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kv_cache::{KvCache, KvType, SharedKv};
use super::rows::Rows;
use crate::arch::config::Config;
use crate::cpu::kernels::attention::AttentionInput;
use crate::cpu::kernels::{AttentionKernel, VectorOps};
use crate::cpu::memory::Buffer;
use crate::cpu::threads::{SharedSlice, Worker};
use crate::error::Result;
use crate::numerics::{CHUNK, Softmax};

/// Tokens of a prompt that attend together, at most.
const TILE_TOKENS: usize = 16;

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub sequence: usize,
    pub position: usize,
}

impl At {
    /// Positions that the token sees.
    fn seen(self) -> usize {
        self.position + 1
    }

    /// Whether `next` follows in the same sequence.
    fn is_before(self, next: Self) -> bool {
        (self.sequence, self.position + 1) == (next.sequence, next.position)
    }
}

/// One layer's attention of the tokens of a pass. Shapes are those of the forward pass's buffers.
pub(super) struct Attention<'a> {
    pub kernel: &'a AttentionKernel,
    pub ops: &'a VectorOps,
    pub config: &'a Config,
    /// Where the tokens of the pass stand.
    pub at: &'a [At],
    pub queries: &'a Rows<'a, f32>,
    /// One per sequence.
    pub kv: &'a [SharedKv<'a>],
    /// Output of [`Attention::attend_many`], `[kv_heads][tokens][group * head_dim]`.
    pub out: &'a Rows<'a, f32>,
    /// Output of [`Attention::attend_one`], `[chunks][heads][head_dim]` and `[chunks][heads]`.
    pub partial: &'a Rows<'a, f32>,
    pub partial_state: &'a SharedSlice<'a, Softmax>,
}

/// What a worker needs for itself.
#[derive(Debug)]
pub(super) struct Scratch {
    kernel: Buffer,
    /// Softmax of the rows of a tile, `[TILE_TOKENS][group]`.
    states: Vec<Softmax>,
}

impl Scratch {
    pub(super) fn new(kernel: &AttentionKernel, config: &Config) -> Result<Self> {
        let states = vec![Softmax { max: 0.0, sum: 0.0 }; TILE_TOKENS * config.group()];
        Ok(Self { kernel: Buffer::zeroed(kernel.scratch_bytes(config.head_dim))?, states })
    }
}

impl Attention<'_> {
    /// What attention of query heads of some tokens of a sequence, heads that share `kv_head`, over
    /// one chunk takes.
    fn attention_input<'b>(
        &'b self,
        (layer, kv_head): (usize, usize),
        (tokens, heads): (Range<usize>, Range<usize>),
        chunk: usize,
        counts: &'b [usize],
    ) -> AttentionInput<'b> {
        let head_dim = self.config.head_dim;
        let stride = self.queries.width;
        let first = tokens.start * stride + heads.start * head_dim;
        let end = (tokens.end - 1) * stride + heads.end * head_dim;
        let seen = counts.iter().copied().max().unwrap_or(0);
        let kv = &self.kv[self.at[tokens.start].sequence];
        // SAFETY: the queries and the cache are read-only in this phase.
        let (queries, chunk) = unsafe {
            (self.queries.data.read(first..end), kv.chunk((layer, kv_head), chunk, seen))
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionInput { queries, stride, heads: heads.len(), head_dim, counts, chunk, scale }
    }

    /// Attention of one token: units of chunk and heads that share keys, to be merged after the
    /// barrier.
    pub(super) fn attend_one(&self, worker: &Worker<'_>, scratch: &mut Scratch, layer: usize) {
        let config = self.config;
        let (threads, group) = (worker.threads, config.group());
        let seen = self.at[0].seen();
        let chunks = seen.div_ceil(CHUNK);
        // Each unit reads its keys and values. So all heads that share them are one unit, unless
        // there were too few to share out evenly.
        let units = config.kv_heads * chunks;
        let parts = if threads == 1 { 1 } else { (8 * threads).div_ceil(units).clamp(1, group) };
        let mut share = Share::new(worker, config.heads * seen);
        // In the order of the cache.
        for chunk in 0..chunks {
            let counts = &[(seen - chunk * CHUNK).min(CHUNK)];
            for kv_head in 0..config.kv_heads {
                for part in 0..parts {
                    let first = kv_head * group;
                    let heads = first + group * part / parts..first + group * (part + 1) / parts;
                    if !share.takes(counts[0] * heads.len()) {
                        continue;
                    }
                    let row = chunk * config.heads;
                    let rows = row + heads.start..row + heads.end;
                    // SAFETY: each unit belongs to one worker.
                    let (out, states) = unsafe {
                        (self.partial.rows_mut(rows.clone()), self.partial_state.write(rows))
                    };
                    let queries = (0..1, heads);
                    let input = self.attention_input((layer, kv_head), queries, chunk, counts);
                    let scratch = &mut scratch.kernel;
                    self.kernel.run(&input, false, states, out, scratch);
                }
            }
        }
    }

    /// Merges the chunks of [`Attention::attend_one`] into `out`, `[q_dim]`.
    pub(super) fn merge_chunks(&self, out: &mut [f32]) {
        let config = self.config;
        let chunks = self.at[0].seen().div_ceil(CHUNK);
        for (head, out) in out.chunks_exact_mut(config.head_dim).enumerate() {
            // SAFETY: written before the barrier, read-only in this phase.
            let part = |chunk: usize| unsafe {
                let row = chunk * config.heads + head;
                (self.partial_state.read(row..row + 1)[0], self.partial.row(row))
            };
            let (mut state, first) = part(0);
            out.copy_from_slice(first);
            for (next, part) in (1..chunks).map(part) {
                self.ops.attention_merge(&mut state, out, next, part);
            }
            self.ops.attention_finish(state, out);
        }
    }

    /// Attention of many tokens: units of key-value head and tile of tokens, each over all chunks.
    pub(super) fn attend_many(&self, worker: &Worker<'_>, scratch: &mut Scratch, layer: usize) {
        let config = self.config;
        let (n, group) = (self.at.len(), config.group());
        // Tokens of a tile share the keys and values that they bring near; but there must be tiles
        // for everybody.
        let most = (n * config.kv_heads / (4 * worker.threads)).clamp(1, TILE_TOKENS);
        let work = |tokens: &Range<usize>| -> usize {
            self.at[tokens.clone()].iter().map(|at| at.seen()).sum()
        };
        let mut share = Share::new(worker, config.kv_heads * work(&(0..n)));
        for kv_head in 0..config.kv_heads {
            let mut first = 0;
            while first < n {
                let tokens = self.tile(first, most);
                first = tokens.end;
                if !share.takes(work(&tokens)) {
                    continue;
                }
                let rows = kv_head * n + tokens.start..kv_head * n + tokens.end;
                // SAFETY: each unit belongs to one worker.
                let out = unsafe { self.out.rows_mut(rows) };
                let states = &mut scratch.states[..tokens.len() * group];
                let heads = kv_head * group..(kv_head + 1) * group;
                // The last token of a tile sees most.
                for chunk in 0..self.at[tokens.end - 1].seen().div_ceil(CHUNK) {
                    let mut counts = [0; TILE_TOKENS];
                    for (count, at) in counts.iter_mut().zip(&self.at[tokens.clone()]) {
                        *count = at.seen().saturating_sub(chunk * CHUNK).min(CHUNK);
                    }
                    let counts = &counts[..tokens.len()];
                    let queries = (tokens.clone(), heads.clone());
                    let input = self.attention_input((layer, kv_head), queries, chunk, counts);
                    self.kernel.run(&input, chunk > 0, states, out, &mut scratch.kernel);
                }
                for (state, out) in states.iter().zip(out.chunks_exact_mut(config.head_dim)) {
                    self.ops.attention_finish(*state, out);
                }
            }
        }
    }

    /// The tokens from `first` on, at most `most`, that follow each other in one sequence.
    fn tile(&self, first: usize, most: usize) -> Range<usize> {
        let at = &self.at[first..self.at.len().min(first + most)];
        let breaks = at.windows(2).position(|two| !two[0].is_before(two[1]));
        first..first + breaks.map_or(at.len(), |last| last + 1)
    }
}

/// A worker's share of units of different size: those whose middle lies in its part of the work. All
/// workers ask about all units in the same order.
struct Share {
    threads: usize,
    part: Range<usize>,
    /// Work of the units before.
    before: usize,
}

impl Share {
    fn new(worker: &Worker<'_>, work: usize) -> Self {
        let part = 2 * work * worker.index..2 * work * (worker.index + 1);
        Self { threads: worker.threads, part, before: 0 }
    }

    /// Whether the next unit, of so much work, is the worker's.
    fn takes(&mut self, work: usize) -> bool {
        let middle = (2 * self.before + work) * self.threads;
        self.before += work;
        self.part.contains(&middle)
    }
}

/// Attention on its own, over made-up queries, keys and values: what the tuner times. The cache has
/// as many layers as asked for, so that as much of it is cold as in a model.
#[derive(Debug)]
pub struct Rehearsal {
    config: Config,
    ops: VectorOps,
    depth: usize,
    tokens: usize,
    kv: KvCache,
    qkv: Vec<f32>,
    out: Vec<f32>,
    partial: Vec<f32>,
    partial_state: Vec<Softmax>,
}

impl Rehearsal {
    /// For up to `tokens` tokens that follow `depth` others, in `layers` layers of a model.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) when the system refuses the memory.
    pub fn new(
        config: &Config,
        (kv_type, ops): (KvType, VectorOps),
        layers: usize,
        (depth, tokens): (usize, usize),
    ) -> Result<Self> {
        let config = Config { layers, ..config.clone() };
        let context = depth + tokens;
        let mut kv = KvCache::new(&config, context, kv_type)?;
        let width = config.head_dim;
        // Numbers without a pattern, of the size that norms leave.
        let made_up = |i: usize| (i * 7 % 31) as f32 / 16.0 - 1.0;
        let row: Vec<f32> = (0..width).map(made_up).collect();
        let shared = kv.share();
        for layer in 0..layers {
            for head in 0..config.kv_heads {
                for position in 0..context {
                    // SAFETY: there is one thread.
                    unsafe { shared.store(&ops, (layer, head, position), &row, &row) };
                }
            }
        }
        let chunks = config.heads * context.div_ceil(CHUNK);
        Ok(Self {
            qkv: (0..tokens * (config.q_dim() + 2 * config.kv_dim())).map(made_up).collect(),
            out: vec![0.0; tokens * config.q_dim()],
            partial: vec![0.0; chunks * width],
            partial_state: vec![Softmax { max: 0.0, sum: 0.0 }; chunks],
            config,
            ops,
            depth,
            tokens,
            kv,
        })
    }

    /// Layers of the cache.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.config.layers
    }

    /// Bytes of keys and values that one more token reads in one layer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.kv.bytes(self.depth + 1) / self.config.layers
    }

    /// What every worker does, for each worker: the attention of one token (`tokens` 1) or of
    /// several (at most as many as the rehearsal was made for) with `kernel`, in the layer it is
    /// called with. Every worker of a run calls it with the same layers; a barrier must lie between
    /// two calls.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) when the system refuses the memory.
    pub fn play<T>(
        &mut self,
        kernel: &AttentionKernel,
        tokens: usize,
        workers: usize,
        run: impl FnOnce(&(dyn Fn(&Worker<'_>, usize) + Sync)) -> T,
    ) -> Result<T> {
        let scratch = (0..workers)
            .map(|_| Ok(Mutex::new(Scratch::new(kernel, &self.config)?)))
            .collect::<Result<Vec<Mutex<Scratch>>>>()?;
        let config = &self.config;
        let kv = [self.kv.share()];
        let queries = Rows::new(&mut self.qkv, config.q_dim() + 2 * config.kv_dim());
        let out = Rows::new(&mut self.out, config.group() * config.head_dim);
        let partial = Rows::new(&mut self.partial, config.head_dim);
        let partial_state = SharedSlice::new(&mut self.partial_state);
        let positions = self.depth..self.depth + tokens.clamp(1, self.tokens);
        let at: Vec<At> = positions.map(|position| At { sequence: 0, position }).collect();
        let attention = Attention {
            kernel,
            ops: &self.ops,
            config,
            at: &at,
            queries: &queries,
            kv: &kv,
            out: &out,
            partial: &partial,
            partial_state: &partial_state,
        };
        Ok(run(&|worker: &Worker<'_>, layer: usize| {
            let mut scratch = scratch[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            if attention.at.len() == 1 {
                attention.attend_one(worker, &mut scratch, layer % config.layers);
            } else {
                attention.attend_many(worker, &mut scratch, layer % config.layers);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Isa;

    use super::*;
    use crate::cpu::threads::Pool;

    /// What is timed is computed: every kernel leaves the same numbers.
    #[test]
    fn every_kernel_plays_the_same() {
        let pool = Pool::new(2).unwrap();
        let config = Config {
            architecture: crate::arch::config::Architecture::Llama,
            layers: 1,
            hidden: 128,
            ffn: 128,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            rope_dim: 32,
            rope_base: 10_000.0,
            rope_scale: 1.0,
            eps: 1e-5,
            context: 1024,
            vocab: 10,
        };
        let ops = VectorOps::best(Isa::best());
        let mut rehearsal = Rehearsal::new(&config, (KvType::F16, ops), 2, (300, 20)).unwrap();
        assert_eq!((rehearsal.layers(), rehearsal.bytes()), (2, 2 * 2 * 2 * 32 * 301));
        let mut first: Option<[Vec<u32>; 2]> = None;
        for kernel in AttentionKernel::builtin() {
            let outputs = [1, 20].map(|tokens| {
                rehearsal.out.fill(f32::NAN);
                rehearsal.partial.fill(f32::NAN);
                let run = |play: &(dyn Fn(&Worker<'_>, usize) + Sync)| {
                    pool.run(|worker| play(worker, 1)).unwrap();
                };
                rehearsal.play(&kernel, tokens, 2, run).unwrap();
                let out = if tokens == 1 { &rehearsal.partial } else { &rehearsal.out };
                assert!(out.iter().all(|y| y.is_finite()), "{}", kernel.id());
                out.iter().map(|y| y.to_bits()).collect()
            });
            assert_eq!(*first.get_or_insert_with(|| outputs.clone()), outputs, "{}", kernel.id());
        }
    }
}
