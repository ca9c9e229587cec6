//! Attention over the KV cache, shared out over the workers.

use std::ops::Range;

use super::kv_cache::SharedKv;
use super::rows::Rows;
use crate::arch::config::Config;
use crate::cpu::kernels::attention::AttentionInput;
use crate::cpu::kernels::{AttentionKernel, VectorOps};
use crate::cpu::memory::{Buffer, filled};
use crate::cpu::threads::{SharedSlice, Worker};
use crate::error::Result;
use crate::numerics::{self, CHUNK, Softmax};

/// Tokens of a prompt that attend together, at most.
const TILE_TOKENS: usize = 16;

/// Position of a token: its sequence, and its place in that sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub sequence: usize,
    pub position: usize,
    /// Positions that the token sees where there is no window, from the first on, its own included.
    seen: usize,
}

impl At {
    /// A token that sees all before it.
    pub(crate) fn causal(sequence: usize, position: usize) -> Self {
        Self { sequence, position, seen: position + 1 }
    }

    /// A token that sees all of a text of `len` tokens.
    pub(crate) fn amid(sequence: usize, position: usize, len: usize) -> Self {
        Self { sequence, position, seen: len }
    }

    /// Number of positions that the token attends to, its own included.
    fn seen(self) -> usize {
        self.seen
    }

    /// True if `next` is the next token of the same sequence.
    fn is_before(self, next: Self) -> bool {
        (self.sequence, self.position + 1) == (next.sequence, next.position)
    }
}

/// Attention over the tokens of a pass, one layer at a time. Shapes are those of the forward pass's
/// buffers.
pub(crate) struct Attention<'a> {
    pub kernel: &'a AttentionKernel,
    pub ops: &'a VectorOps,
    pub config: &'a Config,
    /// Positions of the tokens of the pass.
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

/// Scratch space of one worker.
#[derive(Debug)]
pub(crate) struct Scratch {
    kernel: Buffer,
    /// Softmax of the rows of a tile, `[TILE_TOKENS][group]`.
    states: Vec<Softmax>,
    window: WindowScratch,
}

/// Scratch space for attention in windows; empty for models without.
#[derive(Debug, Default)]
struct WindowScratch {
    /// Keys and values of a chunk, `[CHUNK][head_dim]`, and their scales, `[CHUNK]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    scores: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(kernel: &AttentionKernel, config: &Config) -> Result<Self> {
        let states = filled(TILE_TOKENS * config.group(), Softmax { max: 0.0, sum: 0.0 })?;
        let window = match config.mask.window {
            None => WindowScratch::default(),
            Some(_) => WindowScratch {
                keys: filled(CHUNK * config.head_dim, 0.0)?,
                values: filled(CHUNK * config.head_dim, 0.0)?,
                key_scales: filled(CHUNK, 0.0)?,
                value_scales: filled(CHUNK, 0.0)?,
                scores: filled(CHUNK, 0.0)?,
            },
        };
        let kernel = Buffer::zeroed(kernel.scratch_bytes(config.head_dim))?;
        Ok(Self { kernel, states, window })
    }
}

impl Attention<'_> {
    /// Builds the kernel's input: query heads that share `kv_head`, of some tokens of a sequence,
    /// over one chunk.
    ///
    /// # Safety
    /// While the result lives, nothing writes the queries, nor the layer's `kv_head` in the cache.
    unsafe fn attention_input<'b>(
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
        // SAFETY: as the caller promises.
        let (queries, chunk) = unsafe {
            (self.queries.data.read(first..end), kv.chunk((layer, kv_head), chunk, seen))
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionInput { queries, stride, heads: heads.len(), head_dim, counts, chunk, scale }
    }

    /// Computes attention for one token (decode). A unit of work is one chunk and query heads that
    /// share its keys; [`Attention::merge_chunks`] merges the chunks after a barrier.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all
    /// with the same attention and layer. In that phase nothing writes `queries` or the layer in `kv`, and
    /// nothing else reads or writes `partial` and `partial_state`.
    pub(crate) unsafe fn attend_one(
        &self,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
        layer: usize,
    ) {
        let config = self.config;
        let (threads, group) = (worker.threads, config.group());
        let seen = self.at[0].seen();
        let chunks = seen.div_ceil(CHUNK);
        // Each unit reads its keys and values, so all heads that share them form one unit, unless
        // that gives too few units to balance the load.
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
                    // SAFETY: each unit belongs to one worker, and nothing else accesses it, as the
                    // caller promises.
                    let (out, states) = unsafe {
                        (self.partial.rows_mut(rows.clone()), self.partial_state.write(rows))
                    };
                    let queries = (0..1, heads);
                    let head = (layer, kv_head);
                    // SAFETY: nothing writes them in this phase, as the caller promises.
                    let input = unsafe { self.attention_input(head, queries, chunk, counts) };
                    let scratch = &mut scratch.kernel;
                    self.kernel.run(&input, false, states, out, scratch);
                }
            }
        }
    }

    /// Merges the chunks of [`Attention::attend_one`] into `out`, `[q_dim]`.
    ///
    /// # Safety
    /// A barrier follows the last call of [`Attention::attend_one`], and until the call returns nothing
    /// writes `partial` and `partial_state`.
    pub(crate) unsafe fn merge_chunks(&self, out: &mut [f32]) {
        let config = self.config;
        let chunks = self.at[0].seen().div_ceil(CHUNK);
        for (head, out) in out.chunks_exact_mut(config.head_dim).enumerate() {
            // SAFETY: nothing writes them, as the caller promises.
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

    /// Computes attention for many tokens (prefill), or where a window hides positions. A unit of work is one
    /// KV head and one tile of tokens, over all chunks. Of the chunk in which a window begins what it shows is
    /// computed in scalar code, by the same definition as the kernel's, which takes the chunks behind it. A
    /// barrier must follow before `out` is read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all
    /// with the same attention and layer. In that phase nothing writes `queries` or the layer in `kv`, and
    /// nothing else reads or writes `out`.
    pub(crate) unsafe fn attend_many(
        &self,
        worker: &Worker<'_>,
        scratch: &mut Scratch,
        layer: usize,
    ) {
        let config = self.config;
        let (n, group) = (self.at.len(), config.group());
        let seen = |at: &At| config.mask.seen(layer, at.position, at.seen);
        // Tokens of a tile reuse the keys and values in cache, but there must be enough tiles for
        // all workers, and a window begins elsewhere for each token.
        let most = match self.is_windowed(layer) {
            true => 1,
            false => (n * config.kv_heads / (4 * worker.threads)).clamp(1, TILE_TOKENS),
        };
        let work = |tokens: &Range<usize>| -> usize {
            self.at[tokens.clone()].iter().map(|at| seen(at).len()).sum()
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
                // SAFETY: each unit belongs to one worker, and nothing else accesses it, as the
                // caller promises.
                let out = unsafe { self.out.rows_mut(rows) };
                let states = &mut scratch.states[..tokens.len() * group];
                let (head, heads) = ((layer, kv_head), kv_head * group..(kv_head + 1) * group);
                // The last token of a tile sees most.
                let Range { start, end } = seen(&self.at[tokens.end - 1]);
                for chunk in start / CHUNK..end.div_ceil(CHUNK) {
                    let begin = chunk * CHUNK;
                    if start > begin {
                        let shown = start..end.min(begin + CHUNK);
                        let window = &mut scratch.window;
                        // SAFETY: nothing writes queries and cache in this phase, as the caller promises.
                        unsafe {
                            self.attend_to_rest(tokens.start, head, shown, (states, out), window)
                        };
                        continue;
                    }
                    let mut counts = [0; TILE_TOKENS];
                    for (count, at) in counts.iter_mut().zip(&self.at[tokens.clone()]) {
                        *count = seen(at).end.saturating_sub(begin).min(CHUNK);
                    }
                    let counts = &counts[..tokens.len()];
                    let queries = (tokens.clone(), heads.clone());
                    // SAFETY: as above.
                    let input = unsafe { self.attention_input(head, queries, chunk, counts) };
                    let merges = begin > start;
                    self.kernel.run(&input, merges, states, out, &mut scratch.kernel);
                }
                for (state, out) in states.iter().zip(out.chunks_exact_mut(config.head_dim)) {
                    self.ops.attention_finish(*state, out);
                }
            }
        }
    }

    /// True if a window hides positions from any token of the pass in this layer.
    pub(crate) fn is_windowed(&self, layer: usize) -> bool {
        let mask = &self.config.mask;
        let hides = |at: &At| mask.seen(layer, at.position, at.seen).len() < at.seen;
        mask.window_of(layer).is_some() && self.at.iter().any(hides)
    }

    /// Computes attention of one token's query heads that share `kv_head` to the positions `shown`, within
    /// a chunk: `states` is `[group]`, `out` `[group][head_dim]`.
    ///
    /// # Safety
    /// As [`Attention::attention_input`].
    unsafe fn attend_to_rest(
        &self,
        token: usize,
        (layer, kv_head): (usize, usize),
        shown: Range<usize>,
        (states, out): (&mut [Softmax], &mut [f32]),
        scratch: &mut WindowScratch,
    ) {
        let (width, count) = (self.config.head_dim, shown.len());
        let WindowScratch { keys, values, key_scales, value_scales, scores } = scratch;
        let (keys, values) = (&mut keys[..count * width], &mut values[..count * width]);
        let cache = &self.kv[self.at[token].sequence];
        let within = shown.start % CHUNK..shown.start % CHUNK + count;
        // SAFETY: nothing writes the cache, as the caller promises.
        let chunk = unsafe { cache.chunk((layer, kv_head), shown.start / CHUNK, within.end) };
        let places = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
        for (i, (position, (key, value))) in within.zip(places).enumerate() {
            (key_scales[i], value_scales[i]) = chunk.read(position, key, value);
        }
        let (k, v) = ((&*keys, &key_scales[..count]), (&*values, &value_scales[..count]));
        let scale = 1.0 / (width as f32).sqrt();
        for (head, (out, state)) in out.chunks_exact_mut(width).zip(states).enumerate() {
            let own = (kv_head * self.config.group() + head) * width;
            // SAFETY: nothing writes the queries, as the caller promises.
            let query = unsafe { self.queries.part(token, own..own + width) };
            *state = numerics::attention_chunk(query, k, v, scale, scores, out);
        }
    }

    /// Returns the tokens from `first` on, at most `most`, that are consecutive in one sequence.
    fn tile(&self, first: usize, most: usize) -> Range<usize> {
        let at = &self.at[first..self.at.len().min(first + most)];
        let breaks = at.windows(2).position(|two| !two[0].is_before(two[1]));
        first..first + breaks.map_or(at.len(), |last| last + 1)
    }
}

/// A worker's share of units of different size: the units whose middle lies in its part of the
/// work. All workers go through all units in the same order.
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

    /// True if the next unit, with so much work, belongs to this worker.
    fn takes(&mut self, work: usize) -> bool {
        let middle = (2 * self.before + work) * self.threads;
        self.before += work;
        self.part.contains(&middle)
    }
}
