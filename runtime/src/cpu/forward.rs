//! The forward pass, run by all workers of the pool together.
//!
//! One run of the pool takes n tokens through the model, of one sequence or of several. Barriers
//! separate its *phases*; inside a phase a worker writes only its own part:
//!
//! - **slots** (residual stream, quantised activations, rope tables). With n > 1, slot t is token
//!   t, and the tokens are shared out: a worker computes the slots of its share. With n = 1, slot w
//!   is worker w's own copy of the one token: every worker computes it for itself, which is
//!   cheaper than a barrier. Matrix products read slots 0..n, or the worker's own.
//! - **outputs** of matrix products, `[token][rows]`: a worker writes its share of the rows.
//! - **rows** in attention, query heads of tokens: a worker writes the outputs of its units.
//!
//! No result depends on the split: each number comes from one fixed sequence of operations,
//! whichever worker runs it.

use std::ops::Range;

use super::attention::{self, At, Attention};
use super::finite::{self, Broken};
use super::kv_cache::SharedKv;
use super::observe::Observer;
use super::rows::Rows;
use super::session::BatchToken;
use super::stages::{Stage, StageClock};
use crate::arch::{Activation, RopePairs};
use crate::cancel::{self, Cancel};
use crate::cpu::blocks;
use crate::cpu::float::Activations;
use crate::cpu::head::screen::Scan;
use crate::cpu::kernels::VectorOps;
use crate::cpu::mapped;
use crate::cpu::matmul;
use crate::cpu::memory::{Buffer, zeroed};
use crate::cpu::model::Model;
use crate::cpu::threads::{Load, Pool, SharedSlice, Worker};
use crate::cpu::weights::{Inputs, Layer, OwnInput, Projection};
use crate::error::Result;
use crate::numerics::{self, Softmax};

/// Tokens from which each layer is a run of the pool of its own: it takes a millisecond or more, and
/// the next one may take fewer workers.
const LAYERWISE: usize = 128;
/// The same where a pass may be cancelled, which is between layers: fewer tokens take no longer than some
/// hundred milliseconds.
const CANCELLABLE: usize = 32;
/// Multiply-adds of a layer from which it is a run of its own too, if there are several tokens: eight of
/// a model with two billion weights. A try with fewer workers then costs a layer or two, not a pass that
/// takes twice as long as the others.
const LAYER_WORK: usize = 1 << 29;

/// State that the workers share in one run. Shapes are those of `Buffers` in the session.
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) tokens: &'a [BatchToken<'a>],
    /// Position of each token.
    pub(super) at: &'a [At],
    /// Tokens that need logits, in the order of the rows of `logits`.
    pub(super) order: &'a [usize],
    /// Tokens whose hidden states are needed, in the order of the rows of `hidden`.
    pub(super) states: &'a [usize],
    /// Number of tokens, the first of `order`, that a scan serves.
    pub(super) scanned: usize,
    /// `Some` if it serves any.
    pub(super) scan: Option<Scan<'a>>,
    pub(super) clock: Option<StageClock>,
    pub(super) observer: Option<&'a dyn Observer>,
    pub(super) cancel: Option<&'a Cancel>,
    pub(super) broken: Broken,
    /// One per sequence.
    pub(super) kv: &'a [SharedKv<'a>],
    pub(super) x: Rows<'a, f32>,
    pub(super) input: SharedSlice<'a, i8>,
    pub(super) input_scale: SharedSlice<'a, f32>,
    /// The input where it is not rounded.
    pub(super) float_input: SharedSlice<'a, f32>,
    pub(super) cos: Rows<'a, f32>,
    pub(super) sin: Rows<'a, f32>,
    /// The same for layers with a window.
    pub(super) window_cos: Rows<'a, f32>,
    pub(super) window_sin: Rows<'a, f32>,
    pub(super) workspace: SharedSlice<'a, u8>,
    pub(super) qkv: Rows<'a, f32>,
    pub(super) attention: Rows<'a, f32>,
    pub(super) partial: Rows<'a, f32>,
    pub(super) partial_state: SharedSlice<'a, Softmax>,
    pub(super) y: Rows<'a, f32>,
    pub(super) gate_up: Rows<'a, f32>,
    /// Output of a matrix with an input of its own, `[token][rows]`.
    pub(super) part: SharedSlice<'a, f32>,
    /// A row for each token of `order`.
    pub(super) logits: Rows<'a, f32>,
    /// A row for each token of `states`.
    pub(super) hidden: Rows<'a, f32>,
    pub(super) scratch: SharedSlice<'a, Scratch>,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub(super) struct Scratch {
    /// One token's activations before and after a norm, as wide as the widest.
    pub(super) raw: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) attention: attention::Scratch,
    /// For products with packed weights, and with weights in the file.
    pub(super) matmul: matmul::Scratch,
    pub(super) mapped: mapped::Scratch,
    /// For products with weights that have block scales.
    pub(super) blocks: blocks::Scratch,
    /// Input of the head, prepared for its kernel.
    pub(super) head_input: Buffer,
    /// A row of the embedding, where that stays in the file.
    pub(super) row: Vec<u8>,
}

impl Scratch {
    /// Allocates it, for activations as wide as `widest`.
    pub(super) fn new(model: &Model, widest: usize) -> Result<Self> {
        let config = model.config();
        let projections = || model.weights().layers.iter().flat_map(Layer::projections);
        Ok(Self {
            raw: zeroed(widest)?,
            normed: zeroed(widest.max(model.logits_at_once() * config.hidden))?,
            attention: attention::Scratch::new(model.attention(), config)?,
            matmul: matmul::Scratch::new(projections().filter_map(Projection::packed))?,
            mapped: mapped::Scratch::new(projections().filter_map(Projection::mapped))?,
            blocks: blocks::Scratch::new(projections().filter_map(Projection::blocks))?,
            head_input: Buffer::zeroed(model.head_input_bytes())?,
            row: Vec::new(),
        })
    }
}

/// A worker's place in a [`Pass`].
#[derive(Clone, Copy)]
struct Place<'w> {
    worker: &'w Worker<'w>,
    /// Tokens of the pass.
    n: usize,
}

/// The projection that is to read activations, and its place in the model.
#[derive(Clone, Copy)]
struct Target<'a> {
    layer: usize,
    stage: finite::Stage,
    projection: &'a Projection,
}

impl Place<'_> {
    /// The slots this worker computes.
    fn own_slots(self) -> Range<usize> {
        if self.n == 1 {
            self.worker.index..self.worker.index + 1
        } else {
            self.worker.share(self.n)
        }
    }

    /// The slots that hold all tokens, for this worker to read.
    fn all_slots(self) -> Range<usize> {
        if self.n == 1 { self.own_slots() } else { 0..self.n }
    }

    /// True if this worker reports the slot to the observer: with n = 1 all workers have a copy,
    /// and one reports it.
    fn shows(self, slot: usize) -> bool {
        self.n > 1 || slot == 0
    }

    /// The token in a slot.
    fn token(self, slot: usize) -> usize {
        if self.n == 1 { 0 } else { slot }
    }
}

/// The load that a layer of so many weights is as a run of the pool of its own, in a pass of `n` tokens;
/// `None` if all layers are one run.
fn load_of_layers(n: usize, weights: usize, is_cancellable: bool) -> Option<Load> {
    if n >= LAYERWISE || (n > 1 && n.saturating_mul(weights) >= LAYER_WORK) {
        Some(Load::Long)
    } else {
        (is_cancellable && n >= CANCELLABLE).then_some(Load::Short)
    }
}

impl Pass<'_> {
    /// Runs the pass, from the embedding to the hidden states and the logits.
    pub(super) fn run(&self, pool: &Pool) -> Result<()> {
        let (n, layers) = (self.tokens.len(), self.model.weights().layers.len());
        let weights = self.model.config().layer_weights();
        let Some(load) = load_of_layers(n, weights, self.cancel.is_some()) else {
            let all = self.share(|place, scratch| {
                self.embed(place, &mut scratch.row);
                (0..layers).for_each(|index| self.layer(place, scratch, index));
                self.end(place, scratch);
            });
            return pool.run_spared(Load::Short, n, all);
        };
        pool.run(self.share(|place, scratch| self.embed(place, &mut scratch.row)))?;
        for index in 0..layers {
            cancel::check(self.cancel)?;
            let layer = self.share(|place, scratch| self.layer(place, scratch, index));
            pool.run_spared(load, n, layer)?;
        }
        pool.run(self.share(|place, scratch| self.end(place, scratch)))
    }

    /// Returns the part of a run that each worker calls, with its place and its scratch space.
    fn share(&self, work: impl Fn(Place<'_>, &mut Scratch) + Sync) -> impl Fn(&Worker<'_>) + Sync {
        move |worker| {
            // SAFETY: each worker of a run has an element of its own.
            let scratch = unsafe { self.scratch.write(worker.index..worker.index + 1) };
            work(Place { worker, n: self.tokens.len() }, &mut scratch[0]);
        }
    }

    fn layer(&self, place: Place<'_>, scratch: &mut Scratch, index: usize) {
        let layer = &self.model.weights().layers[index];
        self.attention_block(place, scratch, index, layer);
        self.feed_forward_block(place, scratch, index, layer);
    }

    /// Ends a phase with a barrier, and adds its time to `stage`.
    fn end_phase(&self, place: Place<'_>, stage: Stage) {
        place.worker.barrier();
        self.lap(place, stage);
    }

    fn lap(&self, place: Place<'_>, stage: Stage) {
        if let Some(clock) = &self.clock {
            clock.end_of(stage, place.worker);
        }
    }

    /// Ends a phase in which slots were written; with n = 1 no worker reads another's slot, so
    /// there is no barrier.
    fn slots_ready(&self, place: Place<'_>) {
        if place.n > 1 {
            place.worker.barrier();
        }
        self.lap(place, Stage::Elementwise);
    }

    /// x = embedding of the token; rope tables of its position.
    fn embed(&self, place: Place<'_>, buffer: &mut Vec<u8>) {
        for slot in place.own_slots() {
            let token = place.token(slot);
            let id = self.tokens[token].id as usize;
            // SAFETY: a worker's own slot.
            let (x, cos, sin) =
                unsafe { (self.x.row_mut(slot), self.cos.row_mut(slot), self.sin.row_mut(slot)) };
            let embedding = &self.model.weights().embedding;
            embedding.dequantise(embedding.row(self.model.gguf(), id, buffer), x);
            if self.model.config().architecture.scales_embedding {
                let factor = (x.len() as f32).sqrt();
                x.iter_mut().for_each(|x| *x *= factor);
            }
            let position = self.at[token].position;
            self.model.rope().fill(position, cos, sin);
            if let Some(rope) = self.model.window_rope() {
                // SAFETY: a worker's own slot.
                let (cos, sin) =
                    unsafe { (self.window_cos.row_mut(slot), self.window_sin.row_mut(slot)) };
                rope.fill(position, cos, sin);
            }
        }
    }

    /// x += post_norm(attn_output(sub_norm(attention(norm(x)))))
    fn attention_block(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        index: usize,
        layer: &Layer,
    ) {
        let stages = (finite::Stage::Qkv, Stage::Ternary);
        let read = (&layer.attn_norm[..], &layer.qkv);
        self.project(place, scratch, (index, stages), read, &self.qkv);

        self.rotate_and_store(place, scratch, index, layer);
        self.end_phase(place, Stage::Elementwise);

        let own = &mut scratch.attention;
        let is_windowed = self.attention().is_windowed(index);
        // SAFETY: each worker calls it once in this phase, in which the queries and the cache are read
        // only, and what it writes is read after the barrier at its end.
        unsafe {
            if place.n == 1 && !is_windowed {
                self.attention().attend_one(place.worker, own, index);
            } else {
                self.attention().attend_many(place.worker, own, index);
            }
        }
        self.end_phase(place, Stage::Attention);

        let q_dim = self.model.config().q_dim();
        let stage = finite::Stage::AttnOutput;
        let target = Target { layer: index, stage, projection: &layer.attn_output };
        for slot in place.own_slots() {
            if place.n == 1 && !is_windowed {
                // SAFETY: the chunks were written before the barrier and are read-only in this phase.
                unsafe { self.attention().merge_chunks(&mut scratch.raw[..q_dim]) };
            } else {
                let groups = scratch.raw[..q_dim].chunks_exact_mut(self.attention.width);
                for (kv_head, group) in groups.enumerate() {
                    let row = kv_head * place.n + place.token(slot);
                    // SAFETY: written before the barrier, read-only in this phase.
                    group.copy_from_slice(unsafe { self.attention.row(row) });
                }
            }
            self.sub_norm_to_input(scratch, slot, layer.attn_sub_norm.as_deref(), target);
        }
        self.slots_ready(place);

        self.multiply(place, scratch, &layer.attn_output, &self.y.data);
        self.end_phase(place, Stage::Ternary);
        self.add_residual(place, scratch, layer.attn_post_norm.as_deref());
    }

    /// x += post_norm(down(sub_norm(activation(gate(norm(x))) * up(norm(x)))))
    fn feed_forward_block(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        index: usize,
        layer: &Layer,
    ) {
        let stages = (finite::Stage::GateUp, Stage::GateUp);
        let read = (&layer.ffn_norm[..], &layer.gate_up);
        self.project(place, scratch, (index, stages), read, &self.gate_up);

        let config = self.model.config();
        let stage = finite::Stage::Down;
        let target = Target { layer: index, stage, projection: &layer.down };
        for slot in place.own_slots() {
            let token = place.token(slot);
            // SAFETY: written before the barrier, read-only in this phase.
            let (gate, up) = unsafe { self.gate_up.row(token) }.split_at(config.ffn);
            let product = &mut scratch.raw[..config.ffn];
            match config.activation {
                Activation::Relu2 => self.vector().relu2_mul(gate, up, product),
                Activation::Silu => self.vector().silu_mul(gate, up, product),
                Activation::Gelu => numerics::gelu_mul(gate, up, product),
            }
            self.sub_norm_to_input(scratch, slot, layer.ffn_sub_norm.as_deref(), target);
            if let Some(observer) = self.observer.filter(|_| place.shows(slot)) {
                // SAFETY: the worker's own slot, which it has just written.
                let input = unsafe { self.input.read(slot * config.ffn..(slot + 1) * config.ffn) };
                observer.feed_forward(index, self.at[token].position, gate, input);
            }
        }
        self.slots_ready(place);

        self.multiply(place, scratch, &layer.down, &self.y.data);
        self.end_phase(place, Stage::Down);
        self.add_residual(place, scratch, layer.ffn_post_norm.as_deref());
    }

    /// out = matrices * norm(x), where each may have a norm of its own behind that.
    fn project(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        (layer, (stage, clock)): (usize, (finite::Stage, Stage)),
        (norm, inputs): (&[f32], &Inputs),
        out: &Rows<'_, f32>,
    ) {
        let parts = match inputs {
            Inputs::Shared(projection) => {
                let target = Target { layer, stage, projection };
                self.norm_to_input(place, scratch, (norm, None), target);
                self.slots_ready(place);
                self.multiply(place, scratch, projection, &out.data);
                return self.end_phase(place, clock);
            }
            Inputs::Own(parts) => parts,
        };
        let mut first = 0;
        for OwnInput { norm: own, rows, projection } in parts {
            let target = Target { layer, stage, projection };
            self.norm_to_input(place, scratch, (norm, Some(own.as_slice())), target);
            self.slots_ready(place);
            self.multiply(place, scratch, projection, &self.part);
            self.end_phase(place, clock);
            for token in place.worker.share(place.n) {
                // SAFETY: a token's row belongs to one worker. Products: written before the barrier, read
                // only until the next one.
                unsafe {
                    let product = self.part.read(token * rows..(token + 1) * rows);
                    out.part_mut(token, first..first + rows).copy_from_slice(product);
                }
            }
            self.end_phase(place, Stage::Elementwise);
            first += rows;
        }
    }

    /// What is known after the last layer.
    fn end(&self, place: Place<'_>, scratch: &mut Scratch) {
        self.states(place);
        self.head(place, scratch);
    }

    /// hidden = norm(x) of the tokens whose states are needed.
    fn states(&self, place: Place<'_>) {
        let own = place.own_slots();
        for (row, &token) in self.states.iter().enumerate() {
            let slot = if place.n == 1 { own.start } else { token };
            if !own.contains(&slot) || !place.shows(slot) {
                continue;
            }
            // SAFETY: x: a worker's own slot. hidden: the row belongs to the worker that shows the slot.
            let (x, out) = unsafe { (self.x.row(slot), self.hidden.row_mut(row)) };
            self.last_norm(x, out);
            if !is_finite(out) {
                self.broken.at_head();
            }
        }
    }

    /// Applies the norm before the head.
    fn last_norm(&self, x: &[f32], out: &mut [f32]) {
        let norm = &self.model.weights().output_norm;
        self.vector().rms_norm(x, norm, self.model.config().eps, out);
    }

    /// logits = head(norm(x)) of the tokens that need them, as many at once as a kernel takes.
    fn head(&self, place: Place<'_>, scratch: &mut Scratch) {
        if self.order.is_empty() {
            return;
        }
        self.slots_ready(place);
        let (config, weights) = (self.model.config(), self.model.weights());
        let rows = weights.head.rows(self.model.gguf(), 0..config.vocab);
        let rows = (rows, weights.head.scale());
        let (mut first, all) = (0, self.order.len());
        while first < all {
            let scan = self.scan.as_ref().filter(|_| first < self.scanned);
            let (at_once, end) = match scan {
                Some(scan) => (scan.tokens(), self.scanned),
                None => (self.model.head_tokens(), all),
            };
            let tokens = (end - first).min(at_once);
            let normed = &mut scratch.normed[..tokens * config.hidden];
            let wanting = &self.order[first..first + tokens];
            for (normed, &token) in normed.chunks_exact_mut(config.hidden).zip(wanting) {
                // SAFETY: nobody writes x after the residual was added.
                let x = unsafe { self.x.row(place.all_slots().start + token) };
                self.last_norm(x, normed);
                if place.worker.index == 0 && !is_finite(normed) {
                    self.broken.at_head();
                }
                if let Some(observer) = self.observer.filter(|_| place.worker.index == 0) {
                    observer.head(self.at[token].position, normed);
                }
            }
            let out = self.logits.part_of(first..first + tokens);
            let head = self.model.head(if scan.is_some() { 1 } else { tokens });
            let prepared = &mut scratch.head_input[..head.prepared_bytes(config.hidden)];
            match scan {
                Some(scan) => {
                    if first > 0 {
                        place.worker.barrier();
                    }
                    // SAFETY: all workers call it with the same tokens and logits; between two calls
                    // there is the barrier above, and nobody reads the logits in this run.
                    unsafe { scan.work(place.worker, first, (normed, tokens), prepared, &out) };
                }
                // SAFETY: all workers call it once for these rows of the logits, and nobody reads them in
                // this run.
                None => unsafe {
                    head.run_share(place.worker, rows, (normed, tokens), prepared, &out);
                },
            }
            first += tokens;
        }
        self.lap(place, Stage::Head);
    }

    /// input = quantise(norm(x)), or quantise(own(norm(x))), for the worker's slots.
    fn norm_to_input(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        (norm, own): (&[f32], Option<&[f32]>),
        target: Target<'_>,
    ) {
        let config = self.model.config();
        for slot in place.own_slots() {
            let normed = &mut scratch.normed[..config.hidden];
            // SAFETY: a worker's own slot; nobody writes it in this phase.
            self.vector().rms_norm(unsafe { self.x.row(slot) }, norm, config.eps, normed);
            match own {
                None => self.quantise(slot, normed, target),
                Some(own) => {
                    let again = &mut scratch.raw[..config.hidden];
                    self.vector().rms_norm(normed, own, config.eps, again);
                    self.quantise(slot, again, target);
                }
            }
        }
    }

    /// input = quantise(sub_norm(scratch.raw)), without the norm where the model has none.
    fn sub_norm_to_input(
        &self,
        scratch: &mut Scratch,
        slot: usize,
        norm: Option<&[f32]>,
        target: Target<'_>,
    ) {
        let width = target.projection.cols();
        let raw = &scratch.raw[..width];
        match norm {
            Some(norm) => {
                let normed = &mut scratch.normed[..width];
                self.vector().rms_norm(raw, norm, self.model.config().eps, normed);
                self.quantise(slot, normed, target);
            }
            None => self.quantise(slot, raw, target),
        }
    }

    /// Quantises one token's activations into `input`, in which a row is `x.len()` wide, and notes
    /// numbers that are not finite, or would not be after the product.
    fn quantise(&self, slot: usize, x: &[f32], target: Target<'_>) {
        let count = target.projection.scales();
        let row = slot * x.len()..(slot + 1) * x.len();
        // SAFETY: a worker's own slot. Between a change of the row width and the previous product
        // that read `input` there was the barrier after that product.
        let (input, scales) = unsafe {
            (
                self.input.write(row.clone()),
                self.input_scale.write(slot * count..(slot + 1) * count),
            )
        };
        match target.projection {
            Projection::Float(_) => {
                // SAFETY: as above.
                unsafe { self.float_input.write(row) }.copy_from_slice(x);
                scales[0] = if is_finite(x) { numerics::max_abs(x) } else { f32::NAN };
            }
            Projection::Packed(_) | Projection::Mapped(_) => {
                scales[0] = self.vector().quantise_activations(x, input);
            }
            Projection::Blocks(_) if self.model.activations() == Activations::Token => {
                scales.fill(1.0 / self.vector().quantise_activations(x, input));
            }
            Projection::Blocks(job) => {
                let blocks = x.chunks(job.width()).zip(input.chunks_mut(job.width()));
                for ((x, input), scale) in blocks.zip(&mut *scales) {
                    *scale = 1.0 / self.vector().quantise_activations(x, input);
                }
            }
        }
        let limit = match target.stage {
            finite::Stage::Qkv => finite::MAX_SCORED,
            _ => f32::INFINITY,
        };
        if !target.projection.stays_below(limit, scales) {
            self.broken.at(target.layer, target.stage);
        }
    }

    /// x += y, or norm(y)
    fn add_residual(&self, place: Place<'_>, scratch: &mut Scratch, norm: Option<&[f32]>) {
        let config = self.model.config();
        for slot in place.own_slots() {
            // SAFETY: x: a worker's own slot. y: written before the barrier, read-only now.
            let (x, y) = unsafe { (self.x.row_mut(slot), self.y.row(place.token(slot))) };
            match norm {
                None => self.vector().add(x, y),
                Some(norm) => {
                    let normed = &mut scratch.normed[..config.hidden];
                    self.vector().rms_norm(y, norm, config.eps, normed);
                    self.vector().add(x, normed);
                }
            }
        }
    }

    /// out = job * input for the worker's share of the rows and all tokens; ends without a barrier.
    fn multiply(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        projection: &Projection,
        out: &SharedSlice<'_, f32>,
    ) {
        let (slots, cols, count) = (place.all_slots(), projection.cols(), projection.scales());
        // SAFETY: written before `slots_ready`, or by this worker; read-only in this phase.
        let (input, scales) = unsafe {
            (
                self.input.read(slots.start * cols..slots.end * cols),
                self.input_scale.read(slots.start * count..slots.end * count),
            )
        };
        let (worker, own) = (place.worker, &mut scratch.matmul);
        // SAFETY: all workers are in the same phase of the pass and call this once in it, with the same job,
        // the same input (each its own copy where there is one token) and the same output, which is read
        // after the barrier at the phase's end. Nothing else of the phase claims work, reads or writes
        // `out`, or has to do with the workspace.
        unsafe {
            match projection {
                Projection::Packed(job) if place.n == 1 => {
                    job.decode(worker, input, scales[0], own, out);
                }
                Projection::Packed(job) => {
                    job.prefill(worker, (input, scales), &self.workspace, own, out);
                }
                Projection::Mapped(job) => {
                    job.multiply(worker, (input, scales), &mut scratch.mapped, out);
                }
                Projection::Blocks(job) if place.n == 1 => {
                    job.decode(worker, (input, scales), &mut scratch.blocks, out);
                }
                Projection::Blocks(job) => {
                    let (workspace, own) = (&self.workspace, &mut scratch.blocks);
                    job.prefill(worker, (input, scales), workspace, own, out);
                }
                Projection::Float(job) => {
                    let input = self.float_input.read(slots.start * cols..slots.end * cols);
                    job.multiply(worker, input, out);
                }
            }
        }
    }

    fn vector(&self) -> &VectorOps {
        self.model.vector()
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            kernel: self.model.attention(),
            ops: self.vector(),
            config: self.model.config(),
            at: self.at,
            queries: &self.qkv,
            kv: self.kv,
            out: &self.attention,
            partial: &self.partial,
            partial_state: &self.partial_state,
        }
    }

    /// Norms q and k where the model does, rotates them, and appends k and v to the cache, a head at a
    /// time.
    fn rotate_and_store(
        &self,
        place: Place<'_>,
        scratch: &mut Scratch,
        layer: usize,
        weights: &Layer,
    ) {
        let config = self.model.config();
        let width = config.head_dim;
        let most = self.kv[0].largest();
        let (cos, sin) = match config.mask.window_of(layer) {
            None => (&self.cos, &self.sin),
            Some(_) => (&self.window_cos, &self.window_sin),
        };
        let rotate = |token: usize, head: &mut [f32]| {
            let slot = place.all_slots().start + token;
            // SAFETY: written before `slots_ready`, or by this worker; read-only since.
            let (cos, sin) = unsafe { (cos.row(slot), sin.row(slot)) };
            match config.architecture.rope_pairs {
                RopePairs::RotateHalf => self.vector().rope_neox(head, cos, sin),
                RopePairs::Interleaved => self.vector().rope_norm(head, cos, sin),
            }
        };
        let [q_norm, k_norm] = match &weights.qk_norms {
            Some([q, k]) => [Some(q), Some(k)],
            None => [None, None],
        };
        let raw = &mut scratch.raw[..width];
        let mut norm_and_rotate = |token: usize, norm: Option<&Vec<f32>>, head: &mut [f32]| {
            if let Some(norm) = norm {
                raw.copy_from_slice(head);
                self.vector().rms_norm(raw, norm, config.eps, head);
            }
            rotate(token, head);
        };
        for unit in place.worker.share(place.n * config.heads) {
            let (token, head) = (unit / config.heads, unit % config.heads);
            let head = head * width..(head + 1) * width;
            // SAFETY: each unit belongs to one worker.
            norm_and_rotate(token, q_norm, unsafe { self.qkv.part_mut(token, head) });
        }
        for unit in place.worker.share(place.n * config.kv_heads) {
            let (token, head) = (unit / config.kv_heads, unit % config.kv_heads);
            let k = config.q_dim() + head * width..config.q_dim() + (head + 1) * width;
            let v = k.start + config.kv_dim()..k.end + config.kv_dim();
            // SAFETY: each unit belongs to one worker; v is read-only in this phase.
            unsafe {
                let (k, v) = (self.qkv.part_mut(token, k), self.qkv.part(token, v));
                norm_and_rotate(token, k_norm, k);
                if !k.iter().fold(true, |fits, x| fits & (x.abs() <= most)) {
                    self.broken.at(layer, finite::Stage::Keys);
                }
                let At { sequence, position, .. } = self.at[token];
                self.kv[sequence].store(self.vector(), (layer, head, position), k, v);
            }
        }
    }
}

/// True if all are numbers.
fn is_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, x| finite & x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_passes_are_run_layer_by_layer() {
        // Weights of a layer with 11 million, 2 billion and 100 billion in the model.
        let (small, large, huge) = (1_200_000, 69_500_000, 1_200_000_000);
        let cases = [
            (1, huge, true, None),
            (2, large, false, None),
            (14, small, false, None),
            (14, large, false, Some(Load::Long)),
            (31, small, true, None),
            (32, small, true, Some(Load::Short)),
            (127, small, false, None),
            (128, small, false, Some(Load::Long)),
        ];
        for (n, weights, is_cancellable, expected) in cases {
            let found = load_of_layers(n, weights, is_cancellable);
            assert_eq!(found, expected, "{n} tokens, {weights} weights, {is_cancellable}");
        }
    }
}
