//! Sequences that run through a model: their KV caches, what each pass needs, and the logits after it.

use std::sync::Arc;

use super::attention::At;
use super::finite::Broken;
use super::forward::{Pass, Scratch};
use super::kv_cache::{KvCache, KvType};
use super::observe::Observer;
use super::rows::Rows;
use super::stages::{StageClock, StageTimes};
use crate::arch::config::Config;
use crate::cancel::Cancel;
use crate::cpu::gather::Along;
use crate::cpu::head::screen::{self, HeadStats, Needs, Scan, Screen};
use crate::cpu::memory::{self, Buffer, filled, zeroed};
use crate::cpu::model::Model;
use crate::cpu::sparse::Tally;
use crate::cpu::threads::{Pool, SharedSlice};
use crate::cpu::weights::{Layer, Projection};
use crate::error::{Error, Result};
use crate::numerics::{CHUNK, Softmax};

/// Settings of a [`Session`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions of the KV cache; `None`: the model's own, at most 4096.
    pub context: Option<usize>,
    /// Tokens of a prompt that go through the model together, at least 1; of a model whose tokens see all of
    /// their text not less than the context.
    pub batch: usize,
    /// Elements of the KV cache; `None`: [`KvType::default_for`] the model.
    pub kv_type: Option<KvType>,
    /// Sequences, at least 1. Each has a KV cache of `context` positions.
    pub sequences: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { context: None, batch: 512, kv_type: None, sequences: 1 }
    }
}

/// The context of a session that asks for none, unless the model's is smaller.
const DEFAULT_CONTEXT: usize = 4096;

/// Bytes of logits that [`Session::forward_with`] holds at a time: 64 rows of 128,000.
const PIECE: usize = 32 << 20;

/// The most sequences of a session.
pub const MAX_SEQUENCES: usize = 256;

/// A token to append to its sequence in a pass through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchToken<'a> {
    /// The number of its sequence, from 0.
    pub sequence: usize,
    /// The token.
    pub id: u32,
    /// The logits, or the hidden state, that are needed after it; `None`: neither. Tokens of one pass may
    /// have different needs: one that needs all logits does not prevent scans for the others.
    pub needs: Option<&'a Needs>,
}

impl BatchToken<'_> {
    fn wants_logits(&self) -> bool {
        self.needs.is_some_and(|needs| *needs != Needs::Hidden)
    }

    fn wants_hidden(&self) -> bool {
        self.needs == Some(&Needs::Hidden)
    }
}

/// Sequences of tokens that run through a model, usually one: their KV caches and all buffers,
/// which are allocated once.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    pool: Arc<Pool>,
    /// One per sequence.
    kv: Vec<KvCache>,
    /// Tokens that each sequence holds.
    positions: Vec<usize>,
    batch: usize,
    buffers: Buffers,
    /// Positions of the tokens of a pass.
    at: Vec<At>,
    /// What each token of the last call has that asked for anything.
    rows: Vec<Row>,
    /// Rows of `Buffers::logits` and of `Buffers::hidden` that the last call has filled.
    filled: Filled,
    /// The tokens of a pass that need logits, in the order of their rows.
    order: Vec<usize>,
    /// The tokens of a pass whose hidden states are needed, in their order.
    states: Vec<usize>,
    screen: Option<Screen>,
    head_stats: HeadStats,
    /// Time per stage, if it is measured.
    stages: Option<StageTimes>,
    observer: Option<Arc<dyn Observer>>,
    cancel: Option<Cancel>,
}

/// The row of a token that asked for something.
#[derive(Clone, Copy, Debug)]
enum Row {
    /// In `Buffers::logits`.
    Logits(usize),
    /// In `Buffers::hidden`.
    Hidden(usize),
}

/// Numbers of rows.
#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    logits: usize,
    hidden: usize,
}

/// B: batch; S: slots, max(B, workers); the other names are those of the configuration.
#[derive(Debug)]
struct Buffers {
    /// Residual stream `[S][hidden]`.
    x: Vec<f32>,
    /// Quantised input of the next product, `[S][cols]`, cols up to the widest.
    input: Vec<i8>,
    /// Workspace of prefill products: see `matmul::Job::prefill`.
    workspace: Buffer,
    /// Scales of `input`, `[S]`, or of its blocks, `[S][blocks]`, up to the most.
    input_scale: Vec<f32>,
    /// As `input`, where it is not rounded; else empty.
    float_input: Vec<f32>,
    /// Rope tables `[S][rope_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same for layers with a window; empty where there are none.
    window_cos: Vec<f32>,
    window_sin: Vec<f32>,
    /// Queries, keys and values, `[B][q_dim + 2 kv_dim]`.
    qkv: Vec<f32>,
    /// Attention's output with n > 1, `[kv_heads][n][group * head_dim]`.
    attention: Vec<f32>,
    /// Attention's output per chunk with n = 1, `[chunks][heads][head_dim]` and `[chunks][heads]`.
    partial: Vec<f32>,
    partial_state: Vec<Softmax>,
    /// Output of `attn_output` and of `ffn_down`, `[B][hidden]`.
    y: Vec<f32>,
    /// Output of gate and up, `[B][2 ffn]`.
    gate_up: Vec<f32>,
    /// Output of a matrix with an input of its own, `[B][rows]`, rows up to the most.
    part: Vec<f32>,
    /// `[vocab]` for each of the most tokens that have asked for logits at once.
    logits: Vec<f32>,
    /// `[hidden]` for each of the most tokens that have asked for their state at once.
    hidden: Vec<f32>,
    /// One per worker.
    scratch: Vec<Scratch>,
}

impl Buffers {
    fn new(model: &Model, threads: usize, batch: usize, context: usize) -> Result<Self> {
        let config = model.config();
        let slots = batch.max(threads);
        let widest = config.hidden.max(config.ffn).max(config.q_dim());
        let chunks = config.heads * context.div_ceil(CHUNK);
        let windowed = if config.mask.window.is_some() { slots } else { 0 };
        let layers = model.weights().layers.iter();
        let part = layers.map(|layer| layer.qkv.widest().max(layer.gate_up.widest())).max();
        let projections = || model.weights().layers.iter().flat_map(Layer::projections);
        let rounds = projections().all(|projection| projection.float().is_none());
        let scales = projections().map(Projection::scales).max().unwrap_or(1);
        let workspace = projections().map(|job| job.workspace_bytes(batch, threads)).max();
        Ok(Self {
            x: zeroed(slots * config.hidden)?,
            input: zeroed(slots * widest)?,
            workspace: Buffer::zeroed(workspace.unwrap_or(0))?,
            input_scale: zeroed(slots * scales)?,
            float_input: zeroed(if rounds { 0 } else { slots * widest })?,
            cos: zeroed(slots * config.rope_dim / 2)?,
            sin: zeroed(slots * config.rope_dim / 2)?,
            window_cos: zeroed(windowed * config.rope_dim / 2)?,
            window_sin: zeroed(windowed * config.rope_dim / 2)?,
            qkv: zeroed(batch * (config.q_dim() + 2 * config.kv_dim()))?,
            attention: zeroed(batch * config.q_dim())?,
            partial: zeroed(chunks * config.head_dim)?,
            partial_state: filled(chunks, Softmax { max: 0.0, sum: 0.0 })?,
            y: zeroed(batch * config.hidden)?,
            gate_up: zeroed(batch * 2 * config.ffn)?,
            part: zeroed(batch * part.unwrap_or(0))?,
            logits: zeroed(config.vocab)?,
            hidden: Vec::new(),
            scratch: (0..threads).map(|_| Scratch::new(model, widest)).collect::<Result<_>>()?,
        })
    }
}

impl Session {
    /// Creates a session with empty sequences.
    ///
    /// # Errors
    /// [`Error::Usage`] for a context or batch of 0, a context beyond the model's or a number of
    /// sequences that is not 1 to [`MAX_SEQUENCES`], [`Error::Runtime`] when the KV caches do not
    /// fit into memory.
    pub fn new(model: Arc<Model>, pool: Arc<Pool>, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let context = options.context.unwrap_or(config.context.min(DEFAULT_CONTEXT));
        if !(1..=config.context).contains(&context) {
            let expected = format!("1 to {}, the context of the model", config.context);
            return Err(Error::usage("context", context, expected));
        }
        if options.batch == 0 {
            return Err(Error::usage("batch", 0, "at least 1"));
        }
        let sequences = options.sequences;
        if !(1..=MAX_SEQUENCES).contains(&sequences) {
            let expected = format!("1 to {MAX_SEQUENCES}");
            return Err(Error::usage("sequences", sequences, expected));
        }
        // A text that is seen whole goes through the model at once.
        let least = if config.mask.causal { 1 } else { context };
        let batch = options.batch.max(least).min(context * sequences);
        let kv_type = options.kv_type.unwrap_or_else(|| KvType::default_for(config));
        let kv = (0..sequences).map(|_| KvCache::new(config, context, kv_type));
        let kv = kv.collect::<Result<Vec<KvCache>>>()?;
        let buffers = Buffers::new(&model, pool.threads(), batch, context)?;
        let screen = model.sketch().map(|sketch| Screen::new(sketch, pool.threads()));
        memory::require(0, "the buffers of a session and what is small")?;
        Ok(Self {
            screen: screen.transpose()?,
            model,
            pool,
            kv,
            positions: vec![0; sequences],
            batch,
            buffers,
            at: Vec::with_capacity(batch),
            rows: Vec::new(),
            filled: Filled::default(),
            order: Vec::new(),
            states: Vec::new(),
            head_stats: HeadStats::default(),
            stages: None,
            observer: None,
            cancel: None,
        })
    }

    /// Replaces the model by another one of the same file, for example one whose weights have been
    /// packed since. The sequences keep their tokens; the logits of the last call are discarded.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the model has other hyperparameters, or there is not enough memory;
    /// the session then keeps its model.
    pub fn continue_with(&mut self, model: Arc<Model>) -> Result<()> {
        if model.config() != self.model.config() {
            let found = model.gguf().path().display();
            return Err(Error::Runtime(format!(
                "{found} is not the model that the session began with"
            )));
        }
        let threads = self.pool.threads();
        let buffers = Buffers::new(&model, threads, self.batch, self.context())?;
        let screen = model.sketch().map(|sketch| Screen::new(sketch, threads));
        self.screen = screen.transpose()?;
        (self.buffers, self.model) = (buffers, model);
        self.rows.clear();
        Ok(())
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The workers.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.kv.len()
    }

    /// Tokens in the first sequence, which is the only one in most sessions.
    #[must_use]
    pub fn position(&self) -> usize {
        self.positions[0]
    }

    /// Tokens in a sequence; 0 if there is no sequence of that number.
    #[must_use]
    pub fn position_of(&self, sequence: usize) -> usize {
        self.positions.get(sequence).copied().unwrap_or(0)
    }

    /// Capacity of the KV cache of a sequence, in tokens.
    #[must_use]
    pub fn context(&self) -> usize {
        self.kv[0].context()
    }

    /// Returns the most tokens that go through the model together.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Element type of the KV caches.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        self.kv[0].ty()
    }

    /// Bytes of KV cache in use.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.kv.iter().zip(&self.positions).map(|(kv, &position)| kv.bytes(position)).sum()
    }

    /// Bytes of KV cache at full context.
    #[must_use]
    pub fn kv_reserved_bytes(&self) -> usize {
        self.kv.iter().map(|kv| kv.bytes(kv.context())).sum()
    }

    /// Starts measuring the time of each stage, at a cost of some 50 ns a phase, and resets the
    /// counts of what single tokens skip.
    pub fn time_stages(&mut self) {
        self.stages = Some(StageTimes::default());
        self.buffers.scratch.iter_mut().for_each(|scratch| scratch.matmul.reset_tally());
    }

    /// Counts of the lines of up (by rows) or of down (by columns) that single tokens needed, and
    /// of the bytes read, since the last call of [`Session::time_stages`].
    #[must_use]
    pub fn tally(&self, along: Along) -> Tally {
        let mut sum = Tally::default();
        self.buffers.scratch.iter().for_each(|scratch| sum.add(scratch.matmul.tally(along)));
        sum
    }

    /// Time per stage since the last call of [`Session::time_stages`]; `None` if there was none.
    #[must_use]
    pub fn stages(&self) -> Option<StageTimes> {
        self.stages
    }

    /// The input of the head for the last token, `[hidden]`.
    pub(super) fn head_input(&self) -> &[f32] {
        let first = self.buffers.scratch.first();
        first.map_or(&[], |scratch| &scratch.normed[..self.model.config().hidden])
    }

    /// Sets the observer of the values computed from now on, or removes it.
    pub fn observe(&mut self, observer: Option<Arc<dyn Observer>>) {
        self.observer = observer;
    }

    /// Sets what ends a pass early, or nothing. It is asked between the layers of a pass of 32 tokens or more,
    /// which then fails with [`Error::Interrupted`], and by [`Sequence::step`](crate::Sequence::step) before
    /// each pass.
    pub fn cancel_with(&mut self, cancel: Option<Cancel>) {
        self.cancel = cancel;
    }

    /// What ends a pass early.
    pub(crate) fn cancel(&self) -> Option<&Cancel> {
        self.cancel.as_ref()
    }

    /// Returns true if what [`Session::cancel_with`] has set asks for the end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_requested)
    }

    /// Statistics of what the head has read since the session began.
    #[must_use]
    pub fn head_stats(&self) -> HeadStats {
        self.head_stats
    }

    /// Removes all tokens of the first sequence from `position` on.
    pub fn truncate(&mut self, position: usize) {
        self.truncate_of(0, position);
    }

    /// Removes all tokens of a sequence from `position` on.
    pub fn truncate_of(&mut self, sequence: usize, position: usize) {
        if let Some(own) = self.positions.get_mut(sequence) {
            *own = position.min(*own);
        }
    }

    /// Replaces the tokens of sequence `to` by the first `positions` tokens of sequence `from`:
    /// tokens that follow have the same logits, to the bit, as after those tokens themselves. Costs
    /// a copy of their part of the KV cache ([`KvCache::bytes`]); sequence `from` does not change.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sequence that does not exist or more positions than `from` holds;
    /// nothing changes then.
    pub fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        self.check_sequence(from)?;
        self.check_sequence(to)?;
        let held = self.positions[from];
        if positions > held {
            let expected = format!("at most {held}, what sequence {from} holds");
            return Err(Error::usage("positions", positions, expected));
        }
        // A sequence has its own prefix.
        if let Ok([source, target]) = self.kv.get_disjoint_mut([from, to]) {
            target.copy_prefix(source, positions);
        }
        self.positions[to] = positions;
        Ok(())
    }

    /// Checks that there is a sequence of that number.
    pub(super) fn check_sequence(&self, sequence: usize) -> Result<()> {
        let sequences = self.sequences();
        if sequence >= sequences {
            let expected = format!("0 to {}", sequences - 1);
            return Err(Error::usage("sequence", sequence, expected));
        }
        Ok(())
    }

    /// The KV cache of a sequence that exists.
    pub(super) fn kv(&self, sequence: usize) -> &KvCache {
        &self.kv[sequence]
    }

    /// The KV cache of a sequence that exists, and the number of tokens that it holds, to be overwritten.
    pub(super) fn held_mut(&mut self, sequence: usize) -> (&mut KvCache, &mut usize) {
        (&mut self.kv[sequence], &mut self.positions[sequence])
    }

    /// Appends the tokens of a prompt to the first sequence, `batch` at a time, and returns the
    /// logits after the last one, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are no tokens, one is not in the vocabulary, or they do not fit
    /// into the context; nothing is appended then. [`Error::Runtime`] when a worker panicked.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<&[f32]> {
        self.prefill_for(ids, Needs::ALL)
    }

    /// As [`Session::prefill`], where only some of the logits are needed: those that are exact are
    /// the same, to the bit, as there.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_for(&mut self, ids: &[u32], needs: &Needs) -> Result<&[f32]> {
        let last = ids.len().saturating_sub(1);
        let token = |(i, &id)| BatchToken { sequence: 0, id, needs: (i == last).then_some(needs) };
        match *ids {
            // Decode: nothing is allocated.
            [id] => self.forward(&[token((0, &id))])?,
            _ => self.forward(&ids.iter().enumerate().map(token).collect::<Vec<_>>())?,
        }
        Ok(self.logits(0))
    }

    /// Appends one token to the first sequence and returns the logits after it, `[vocab]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.prefill(&[id])
    }

    /// As [`Session::decode`], where only some of the logits are needed; see
    /// [`Session::prefill_for`].
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode_for(&mut self, id: u32, needs: &Needs) -> Result<&[f32]> {
        self.prefill_for(&[id], needs)
    }

    /// Appends tokens, each to its sequence, in this order, a batch at a time. [`Session::logits`]
    /// then returns the logits after those that need any, and [`Session::hidden`] the hidden states.
    /// Neither depends on the other sequences in the pass.
    ///
    /// # Errors
    /// As [`Session::prefill`]; also [`Error::Usage`] for a sequence that does not exist.
    pub fn forward(&mut self, tokens: &[BatchToken<'_>]) -> Result<()> {
        self.check(tokens)?;
        self.start_rows(tokens)?;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (pass, after) = rest.split_at(self.pass_len(rest));
            self.step(pass)?;
            rest = after;
        }
        Ok(())
    }

    /// As [`Session::forward`], in bounded memory: `each(row, values)` gets the logits, `[vocab]`, or
    /// the hidden state, `[hidden]`, after the `row`-th token that needs either, the same bits as there,
    /// as soon as they are known. At most 32 MiB of logits, or one row, and the states of a batch are in
    /// memory at a time, and none is left for [`Session::logits`] and [`Session::hidden`].
    ///
    /// # Errors
    /// As [`Session::forward`]; whatever `each` returns, which ends the call: the sequences then hold
    /// the tokens that have been through the model.
    pub fn forward_with(
        &mut self,
        tokens: &[BatchToken<'_>],
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let row = self.model.config().vocab * size_of::<f32>();
        self.forward_in_pieces(tokens, (PIECE / row).max(1), each)
    }

    /// [`Session::forward_with`], at most `most` rows of logits at a time.
    fn forward_in_pieces(
        &mut self,
        tokens: &[BatchToken<'_>],
        most: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check(tokens)?;
        let (mut rest, mut row) = (tokens, 0);
        while !rest.is_empty() {
            let mut wanted = 0;
            let fits = |token: &&BatchToken<'_>| {
                wanted += usize::from(token.wants_logits());
                wanted <= most
            };
            let pass = self.pass_len(rest);
            let count = match self.model.config().mask.causal {
                true => rest.iter().take(pass).take_while(fits).count(),
                false => pass,
            };
            let (piece, after) = rest.split_at(count);
            self.start_rows(piece)?;
            self.step(piece)?;
            let done = (0..self.rows.len()).try_for_each(|i| {
                each(row, self.values(i))?;
                row += 1;
                Ok(())
            });
            self.rows.clear();
            done?;
            rest = after;
        }
        Ok(())
    }

    /// Returns how many of the first tokens go through the model together: a batch, or whole texts where
    /// each token sees all of its own.
    fn pass_len(&self, tokens: &[BatchToken<'_>]) -> usize {
        let most = self.batch.min(tokens.len());
        if self.model.config().mask.causal || most == tokens.len() {
            return most;
        }
        let begins = |&at: &usize| tokens[at].sequence != tokens[at - 1].sequence;
        (1..=most).rev().find(begins).unwrap_or(most)
    }

    /// Checks that each sequence is given whole, where a token sees all of its text.
    fn check_whole(&self, tokens: &[BatchToken<'_>]) -> Result<()> {
        let mut begun = vec![false; self.sequences()];
        let mut before = None;
        for token in tokens {
            if before.replace(token.sequence) == Some(token.sequence) {
                continue;
            }
            if self.positions[token.sequence] > 0 || begun[token.sequence] {
                let found = format!("more tokens for sequence {}", token.sequence);
                let expected = "all of a text at once: this model's tokens see those behind them";
                return Err(Error::usage("prompt", found, expected));
            }
            begun[token.sequence] = true;
        }
        Ok(())
    }

    /// Checks that the tokens can be appended.
    fn check(&self, tokens: &[BatchToken<'_>]) -> Result<()> {
        let vocab = self.model.config().vocab;
        if tokens.is_empty() {
            return Err(Error::usage("prompt", "no tokens", "at least one"));
        }
        if let Some(token) = tokens.iter().find(|token| token.id as usize >= vocab) {
            return Err(Error::usage("token id", token.id, format!("0 to {}", vocab - 1)));
        }
        tokens.iter().try_for_each(|token| self.check_sequence(token.sequence))?;
        if !self.model.config().mask.causal {
            self.check_whole(tokens)?;
        }
        for (sequence, &position) in self.positions.iter().enumerate() {
            let new = tokens.iter().filter(|token| token.sequence == sequence).count();
            if new > self.context() - position {
                let found = format!("{new} tokens after {position}");
                let expected = format!("at most {} in all; a larger context", self.context());
                return Err(Error::usage("prompt", found, expected));
            }
        }
        Ok(())
    }

    /// Discards all logits and states, and allocates room for those that the tokens need.
    fn start_rows(&mut self, tokens: &[BatchToken<'_>]) -> Result<()> {
        self.rows.clear();
        self.filled = Filled::default();
        let logits = tokens.iter().filter(|token| token.wants_logits()).count();
        let hidden = tokens.iter().filter(|token| token.wants_hidden()).count();
        let config = self.model.config();
        memory::grow(&mut self.buffers.logits, logits * config.vocab, 0.0)?;
        memory::grow(&mut self.buffers.hidden, hidden * config.hidden, 0.0)
    }

    /// Returns the logits, `[vocab]`, after the `row`-th of the tokens that needed anything in the last
    /// call of [`Session::forward`]: at least those that it needed are exact. Empty if there was no
    /// such token, or it needed its hidden state.
    #[must_use]
    pub fn logits(&self, row: usize) -> &[f32] {
        match self.rows.get(row) {
            Some(Row::Logits(_)) => self.values(row),
            _ => &[],
        }
    }

    /// Returns the hidden state after the last norm, `[hidden]`, of the `row`-th of the tokens that needed
    /// anything in the last call of [`Session::forward`]. Empty if there was no such token, or it needed
    /// logits.
    #[must_use]
    pub fn hidden(&self, row: usize) -> &[f32] {
        match self.rows.get(row) {
            Some(Row::Hidden(_)) => self.values(row),
            _ => &[],
        }
    }

    /// What the `row`-th of the tokens has that needed anything.
    fn values(&self, row: usize) -> &[f32] {
        let &Config { vocab, hidden, .. } = self.model.config();
        match self.rows.get(row) {
            Some(row) => {
                let (all, row, width) = match *row {
                    Row::Logits(row) => (&self.buffers.logits, row, vocab),
                    Row::Hidden(row) => (&self.buffers.hidden, row, hidden),
                };
                &all[row * width..(row + 1) * width]
            }
            None => &[],
        }
    }

    /// Runs at most a batch of tokens through the model; the rows of their logits are appended to
    /// those that exist.
    fn step(&mut self, tokens: &[BatchToken<'_>]) -> Result<()> {
        self.at.clear();
        let causal = self.model.config().mask.causal;
        for &BatchToken { sequence, .. } in tokens {
            let position = &mut self.positions[sequence];
            self.at.push(At::causal(sequence, *position));
            *position += 1;
        }
        for at in self.at.iter_mut().filter(|_| !causal) {
            *at = At::amid(at.sequence, at.position, self.positions[at.sequence]);
        }
        let first = self.filled;
        let scanned = self.order_rows(tokens);
        let logits = first.logits..self.filled.logits;
        let hidden = first.hidden..self.filled.hidden;
        let config = self.model.config();
        let scan = match (&mut self.screen, self.model.screened_head()) {
            (Some(screen), Some(head)) if scanned > 0 => {
                Some(screen.share(head, tokens, &self.order[..scanned]))
            }
            _ => None,
        };
        let b = &mut self.buffers;
        let at_once = scan.as_ref().map(Scan::tokens);
        let pass = Pass {
            model: &self.model,
            tokens,
            at: &self.at,
            order: &self.order,
            states: &self.states,
            scanned,
            scan,
            clock: self.stages.map(|_| StageClock::start()),
            observer: self.observer.as_deref(),
            cancel: self.cancel.as_ref(),
            broken: Broken::none(),
            kv: &self.kv.iter_mut().map(KvCache::share).collect::<Vec<_>>(),
            x: Rows::new(&mut b.x, config.hidden),
            input: SharedSlice::new(&mut b.input),
            input_scale: SharedSlice::new(&mut b.input_scale),
            float_input: SharedSlice::new(&mut b.float_input),
            cos: Rows::new(&mut b.cos, config.rope_dim / 2),
            sin: Rows::new(&mut b.sin, config.rope_dim / 2),
            window_cos: Rows::new(&mut b.window_cos, config.rope_dim / 2),
            window_sin: Rows::new(&mut b.window_sin, config.rope_dim / 2),
            workspace: SharedSlice::new(&mut b.workspace),
            qkv: Rows::new(&mut b.qkv, config.q_dim() + 2 * config.kv_dim()),
            attention: Rows::new(&mut b.attention, config.group() * config.head_dim),
            partial: Rows::new(&mut b.partial, config.head_dim),
            partial_state: SharedSlice::new(&mut b.partial_state),
            y: Rows::new(&mut b.y, config.hidden),
            gate_up: Rows::new(&mut b.gate_up, 2 * config.ffn),
            part: SharedSlice::new(&mut b.part),
            logits: Rows::new(
                &mut b.logits[logits.start * config.vocab..logits.end * config.vocab],
                config.vocab,
            ),
            hidden: Rows::new(
                &mut b.hidden[hidden.start * config.hidden..hidden.end * config.hidden],
                config.hidden,
            ),
            scratch: SharedSlice::new(&mut b.scratch),
        };
        let done = pass.run(&self.pool);
        let done = done.and_then(|()| pass.broken.check(self.model.gguf().path()));
        if let (Some(stages), Some(clock)) = (&mut self.stages, pass.clock) {
            stages.add(clock.times());
        }
        if done.is_err() {
            // The tokens were not appended.
            self.rows.clear();
            for at in self.at.iter().rev() {
                self.positions[at.sequence] = at.position;
            }
            return done;
        }
        self.head_stats.tokens += logits.len() as u64;
        if let (Some(screen), Some(head), Some(at_once)) =
            (&mut self.screen, self.model.screened_head(), at_once)
        {
            screen.finish(head, (scanned, at_once), &mut self.head_stats);
        }
        let passes = (logits.len() - scanned).div_ceil(self.model.head_tokens());
        self.head_stats.bytes += (passes * self.model.head_bytes()) as u64;
        Ok(())
    }

    /// Assigns a row to each token of a pass that needs logits or its state, after the rows that exist. Of
    /// those of logits the first are of tokens whose logits a scan finds, then of those for which the full
    /// head is read. Returns the number of tokens that a scan serves.
    fn order_rows(&mut self, tokens: &[BatchToken<'_>]) -> usize {
        let vocab = self.model.config().vocab;
        let scannable = |token: &BatchToken<'_>| {
            token.needs.is_some_and(|needs| screen::scannable(needs, vocab))
        };
        let scans = tokens.iter().any(scannable) && self.screen.as_mut().is_some_and(Screen::scans);
        let is_scanned = |token: &BatchToken<'_>| scans && scannable(token);
        let wanting = || tokens.iter().enumerate().filter(|(_, token)| token.wants_logits());
        self.order.clear();
        self.order.extend(wanting().filter(|(_, token)| is_scanned(token)).map(|(i, _)| i));
        let scanned = self.order.len();
        self.order.extend(wanting().filter(|(_, token)| !is_scanned(token)).map(|(i, _)| i));
        let wanting = tokens.iter().enumerate().filter(|(_, token)| token.wants_hidden());
        self.states.clear();
        self.states.extend(wanting.map(|(i, _)| i));
        let Filled { logits, hidden } = self.filled;
        let mut next = [logits + scanned, logits, hidden];
        self.rows.extend(tokens.iter().filter(|token| token.needs.is_some()).map(|token| {
            let mut take = |kind: usize| {
                next[kind] += 1;
                next[kind] - 1
            };
            match token.wants_hidden() {
                true => Row::Hidden(take(2)),
                false => Row::Logits(take(usize::from(is_scanned(token)))),
            }
        }));
        self.filled =
            Filled { logits: logits + self.order.len(), hidden: hidden + self.states.len() };
        scanned
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cpu::kernels::Selection;
    use crate::cpu::model::LoadOptions;

    /// Logits computed in pieces equal those computed at once, whatever the size of the pieces.
    #[test]
    fn pieces_are_the_same_as_all_at_once() {
        let pool = Arc::new(Pool::new(2).unwrap());
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf"));
        let selection = Selection::default();
        let model = Arc::new(Model::load(path, &LoadOptions::new(&pool, &selection)).unwrap());
        let options = SessionOptions { batch: 16, sequences: 2, ..SessionOptions::default() };
        let mut session = Session::new(model, pool, options).unwrap();
        // Two texts, of which most tokens need logits.
        let tokens: Vec<BatchToken<'_>> = (0..50)
            .map(|i| BatchToken {
                sequence: usize::from(i % 3 == 1),
                id: (i * 97 % 4093) as u32,
                needs: (i % 5 != 2).then_some(Needs::ALL),
            })
            .collect();
        session.forward(&tokens).unwrap();
        let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        let expected: Vec<Vec<u32>> = (0..40).map(|row| bits(session.logits(row))).collect();
        assert!(session.logits(40).is_empty());
        let empty = |session: &mut Session| (0..2).for_each(|s| session.truncate_of(s, 0));
        for most in [1, 2, 7, 13, 100] {
            empty(&mut session);
            let mut found = Vec::new();
            session
                .forward_in_pieces(&tokens, most, &mut |row, logits| {
                    assert_eq!(row, found.len());
                    found.push(bits(logits));
                    Ok(())
                })
                .unwrap();
            assert!(found == expected, "{most} at a time");
            assert_eq!([0, 1].map(|s| session.position_of(s)), [33, 17]);
            assert!(session.logits(0).is_empty());
        }
        empty(&mut session);
        let mut rows = 0;
        session
            .forward_with(&tokens, &mut |row, logits| {
                assert!(bits(logits) == expected[row]);
                rows += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(rows, 40);

        // Room for one piece, and an error ends it.
        empty(&mut session);
        session.buffers.logits = Vec::new();
        let mut stop = |row: usize, _: &[f32]| match row {
            9 => Err(Error::Runtime("enough".into())),
            _ => Ok(()),
        };
        let error = session.forward_in_pieces(&tokens, 3, &mut stop).unwrap_err();
        assert_eq!(error.to_string(), "enough");
        assert_eq!(session.buffers.logits.len(), 3 * 4096);
        let held: usize = (0..2).map(|s| session.position_of(s)).sum();
        assert_eq!(
            held,
            tokens
                .iter()
                .scan(0, |n, t| {
                    *n += usize::from(t.needs.is_some());
                    Some(*n)
                })
                .take_while(|&n| n <= 12)
                .count()
        );
        let beyond = BatchToken { sequence: 2, ..tokens[0] };
        let error = session.forward_with(&[tokens[0], beyond], &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}
