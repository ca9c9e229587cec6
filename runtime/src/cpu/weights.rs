//! The weights of a model: every tensor is found by name and checked against the shape that the
//! hyperparameters require.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use bitnet_profiles::{BlockLayout, Layout, Packing as Tiles, Role, Shape};
use half::f16;

use crate::arch::config::{Config, JobShapes};
use crate::arch::{Activation, layer_tensor};
use crate::cancel;
use crate::cpu::blocks::{BlockJob, BlockMatrix};
use crate::cpu::float::{Activations, FloatJob, FloatMatrix};
use crate::cpu::gather::{Along, GatherMatrix};
use crate::cpu::kernels::{BlockKernel, GatherKernel, Kernel};
use crate::cpu::mapped::{FileMatrix, MappedJob};
use crate::cpu::matmul::Job;
use crate::cpu::memory::{self, Arena, Buffer};
use crate::cpu::model::LoadOptions;
use crate::cpu::packing::{self, PackedMatrix};
use crate::cpu::sparse::{self, Sparse};
use crate::cpu::table::Table;
use crate::cpu::tensors::{self, Tensors};
use crate::error::{Error, Result};
use crate::file::gguf::{Gguf, TensorInfo, TensorType};
use crate::file::packed::{Form, PackedFile};
use crate::formats::{Codes, Scales};

/// All weights. The embedding and the head keep the file's block formats; the embedding is read
/// from the file, all else is in memory, unless [`LoadOptions::pack`] says otherwise.
#[derive(Debug)]
pub struct Weights {
    /// `[vocab][hidden]`
    pub embedding: Table,
    /// `[vocab][hidden]`; the embedding again when the file has no `output.weight`.
    pub head: Table,
    /// The norm before the head, `[hidden]`.
    pub output_norm: Vec<f32>,
    /// Divisors of the rotary frequencies, `[rope_dim / 2]`, if the file has them.
    pub rope_factors: Option<Vec<f32>>,
    /// The layers in order.
    pub layers: Vec<Layer>,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden]`
    pub attn_norm: Vec<f32>,
    /// q, k and v: `[q_dim][hidden]`, `[kv_dim][hidden]`, `[kv_dim][hidden]`
    pub qkv: Inputs,
    /// The norms of a query head and of a key head, `[head_dim]`, in the architectures that have them.
    pub qk_norms: Option<[Vec<f32>; 2]>,
    /// `[q_dim]`, in the architectures that have it.
    pub attn_sub_norm: Option<Vec<f32>>,
    /// `[hidden][q_dim]`
    pub attn_output: Projection,
    /// The norm of the output of that, `[hidden]`, in the architectures that have it.
    pub attn_post_norm: Option<Vec<f32>>,
    /// `[hidden]`
    pub ffn_norm: Vec<f32>,
    /// gate and up: `[ffn][hidden]`, `[ffn][hidden]`
    pub gate_up: Inputs,
    /// `[ffn]`, in the architectures that have it.
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// `[hidden][ffn]`
    pub down: Projection,
    /// The norm of the output of that, `[hidden]`, in the architectures that have it.
    pub ffn_post_norm: Option<Vec<f32>>,
}

/// The matrices of a role that reads the normed residual stream.
#[derive(Debug)]
pub enum Inputs {
    /// All have that for their input.
    Shared(Projection),
    /// Each has a norm of its own behind it.
    Own(Vec<OwnInput>),
}

/// A matrix with a norm of its own input.
#[derive(Debug)]
pub struct OwnInput {
    /// The norm, `[hidden]`.
    pub norm: Vec<f32>,
    /// Rows of the matrix.
    pub rows: usize,
    /// The matrix alone.
    pub projection: Projection,
}

impl Inputs {
    /// The matrices, those with one input together.
    #[must_use]
    pub fn projections(&self) -> Vec<&Projection> {
        match self {
            Self::Shared(projection) => vec![projection],
            Self::Own(parts) => parts.iter().map(|part| &part.projection).collect(),
        }
    }

    /// The matrices if they share their input and are packed.
    #[must_use]
    pub fn packed(&self) -> Option<&Job> {
        match self {
            Self::Shared(projection) => projection.packed(),
            Self::Own(_) => None,
        }
    }

    /// Rows of the widest matrix that has an input of its own; 0 where all share theirs.
    pub(super) fn widest(&self) -> usize {
        match self {
            Self::Shared(_) => 0,
            Self::Own(parts) => parts.iter().map(|part| part.rows).max().unwrap_or(0),
        }
    }
}

/// The matrices of a layer that share one input.
#[derive(Debug)]
pub enum Projection {
    /// Packed in memory, in the layout of the kernels.
    Packed(Box<Job>),
    /// In the file, in the file's format.
    Mapped(MappedJob),
    /// Packed in memory, with a scale for each block of columns.
    Blocks(Box<BlockJob>),
    /// In memory, for activations that are not rounded.
    Float(FloatJob),
}

impl Projection {
    /// The matrices if they are packed.
    #[must_use]
    pub fn packed(&self) -> Option<&Job> {
        match self {
            Self::Packed(job) => Some(job),
            Self::Mapped(_) | Self::Blocks(_) | Self::Float(_) => None,
        }
    }

    /// The matrices if they are in the file.
    #[must_use]
    pub fn mapped(&self) -> Option<&MappedJob> {
        match self {
            Self::Packed(_) | Self::Blocks(_) | Self::Float(_) => None,
            Self::Mapped(job) => Some(job),
        }
    }

    /// The matrices if they have block scales.
    #[must_use]
    pub fn blocks(&self) -> Option<&BlockJob> {
        match self {
            Self::Packed(_) | Self::Mapped(_) | Self::Float(_) => None,
            Self::Blocks(job) => Some(job),
        }
    }

    /// The matrices if activations are not rounded.
    #[must_use]
    pub fn float(&self) -> Option<&FloatJob> {
        match self {
            Self::Packed(_) | Self::Mapped(_) | Self::Blocks(_) => None,
            Self::Float(job) => Some(job),
        }
    }

    /// Scales of a token's activations: one, or one for each block. Of those that are not rounded it is
    /// their largest magnitude.
    pub(super) fn scales(&self) -> usize {
        self.blocks().map_or(1, |job| job.cols() / job.width())
    }

    /// Bytes of workspace for products of up to so many tokens, by at most so many threads.
    pub(super) fn workspace_bytes(&self, tokens: usize, threads: usize) -> usize {
        match self {
            Self::Packed(job) => job.workspace_bytes(tokens, threads),
            Self::Mapped(_) | Self::Float(_) => 0,
            Self::Blocks(job) => job.workspace_bytes(tokens),
        }
    }

    /// Inputs, K.
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            Self::Packed(job) => job.cols(),
            Self::Mapped(job) => job.cols(),
            Self::Blocks(job) => job.cols(),
            Self::Float(job) => job.cols(),
        }
    }

    /// True if the products of a token with these scales are below `limit`, whatever its codes and
    /// weights are; false where a scale is NaN.
    pub(super) fn stays_below(&self, limit: f32, scales: &[f32]) -> bool {
        let scale = match self {
            Self::Packed(job) => job.largest_scale(),
            Self::Mapped(job) => job.largest_scale(),
            Self::Blocks(job) => return job.stays_below(limit, scales),
            Self::Float(job) => return job.stays_below(limit, scales[0]),
        };
        // Each rounding is monotonic.
        ((128 * self.cols()) as f32 / scales[0]) * scale < limit
    }
}

impl Layer {
    /// The projections in the order in which they are read.
    #[must_use]
    pub fn projections(&self) -> Vec<&Projection> {
        self.roles().into_iter().flat_map(|(_, projections)| projections).collect()
    }

    /// The projections of each role, in the order in which they are read.
    #[must_use]
    pub fn roles(&self) -> [(Role, Vec<&Projection>); 4] {
        [
            (Role::Qkv, self.qkv.projections()),
            (Role::AttnOutput, vec![&self.attn_output]),
            (Role::GateUp, self.gate_up.projections()),
            (Role::Down, vec![&self.down]),
        ]
    }
}

impl Weights {
    /// Finds and checks all tensors, and packs the ternary ones for the selected kernels if
    /// [`LoadOptions::pack`] says so. Oddities that do not prevent loading, such as a matrix of zeros,
    /// go to `warnings`, one line each.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor, what it is and what it should be;
    /// [`Error::Runtime`] when there is not enough memory.
    pub fn load(
        gguf: &Arc<Gguf>,
        config: &Config,
        options: &LoadOptions<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        tensors::check(gguf, config)?;
        let packs = options.pack && options.activations != Activations::F32;
        let packing = packs.then(|| Packing::new(gguf, config, options, warnings));
        let (packing, tensors) = (packing.transpose()?, Tensors::new(gguf));
        let mut loader = Loader { gguf, options, packing, tensors, warnings };
        let weights = loader.weights(config)?;
        if options.lock {
            loader.lock(&weights.head);
        }
        Ok(weights)
    }
}

impl<'a> Packing<'a> {
    /// Plans the kernels of each job, and reserves the memory for the packed weights unless they are in a
    /// file. No sum of sizes overflows: [`tensors::check`] has found every matrix in the file, and a
    /// layout pads a row or a column to at most 64.
    fn new(
        gguf: &Gguf,
        config: &Config,
        options: &LoadOptions<'a>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let (mut jobs, mut scales) = (Vec::new(), HashMap::new());
        let (mut bytes, mut lines_bytes, mut matrices) = (0, 0, 0);
        for job in config.jobs() {
            let sparse = sparse_kernel(gguf, config, options, &job);
            // By the width of blocks, if matrices have scales of their own for them.
            let mut chosen: HashMap<Option<usize>, Kernels> = HashMap::new();
            let mut kernels = Vec::new();
            for layer in 0..config.layers {
                let own = config.matrices(layer, job.role);
                let width = match options.packed {
                    Some(file) => own.iter().find_map(|(name, _)| file.block_width(name)),
                    None => block_width(gguf, &own, options.activations, &mut scales)?,
                };
                let own = match chosen.entry(width) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => *new.insert(Kernels::choose(options, &job, width)?),
                };
                let packing = own.packing();
                bytes += job.parts.iter().map(|&part| packing.matrix_bytes(part)).sum::<usize>();
                if let (Tiles::Ternary(_), Some((kernel, _))) = (packing, &sparse)
                    && let Some(&part) = job.parts.last()
                {
                    lines_bytes += kernel.along().matrix_bytes(kernel.layout(), part);
                    matrices += 1;
                }
                matrices += job.parts.len();
                kernels.push(own);
            }
            jobs.push(PlannedJob { role: job.role, kernels, sparse });
        }
        if options.sparse == sparse::Mode::On && jobs.iter().all(|job| job.sparse.is_none()) {
            let name = config.architecture.name;
            let why = match config.activation {
                Activation::Relu2 => "the feed-forward matrices have biases".to_owned(),
                Activation::Silu | Activation::Gelu => {
                    format!("the gate of {name} is no squared ReLU, so it has no zeros")
                }
            };
            let path = gguf.path().display();
            warnings.push(format!("{path}: nothing is skipped: {why}"));
        }
        if let Some(file) = options.packed {
            return Ok(Self { jobs, scales, place: Place::File(file) });
        }
        let names = &config.architecture.tensors;
        let head = gguf.tensor(names.head).or_else(|| gguf.tensor(names.embedding));
        let free = memory::available();
        let head_bytes = head.map_or(0, |head| head.bytes);
        let with_lines = (bytes + lines_bytes) as u64 + head_bytes;
        if options.sparse == sparse::Mode::Auto && free.is_some_and(|free| free < with_lines) {
            // The sparse form is optional here, so it must not exhaust memory.
            jobs.iter_mut().for_each(|job| job.sparse = None);
            lines_bytes = 0;
        }
        bytes += lines_bytes;
        let needed = bytes as u64 + head_bytes;
        if let Some(free) = free.filter(|&free| free < needed) {
            // What a limit refuses cannot be swapped out.
            let limit = memory::limit().filter(|&(_, left)| left < needed).map(|(name, _)| name);
            let message = too_large(gguf, config, needed, bytes as u64, (free, limit));
            if limit.is_some() || needed > free + memory::swap_available() {
                return Err(Error::Runtime(message));
            }
            warnings.push(format!("{message}; the rest is swapped out, which is slow"));
        }
        memory::require(needed, "the weights")?;
        let uncache = free.is_some_and(|free| free < needed.saturating_add(gguf.file_bytes()));
        let arena = Arena::with(bytes, matrices, options.pages)?;
        Ok(Self { jobs, scales, place: Place::Memory(Room { arena, bytes, uncache }) })
    }
}

/// Builds the message that says how much memory the weights need, and which format needs less.
fn too_large(
    gguf: &Gguf,
    config: &Config,
    needed: u64,
    packed: u64,
    (free, limit): (u64, Option<&str>),
) -> String {
    let in_layout = |layout: Layout| -> u64 {
        let bytes = |job: &JobShapes| {
            let parts = job.parts.iter().map(|&part| layout.matrix_bytes(part) as u64);
            parts.sum::<u64>() * u64::from(job.count)
        };
        config.jobs().iter().map(bytes).sum()
    };
    let t5 = in_layout(Layout::T5T32);
    let less = if t5 < packed {
        format!(" or take --format t5, which needs {} MB less", (packed - t5) / 1_000_000)
    } else {
        String::new()
    };
    let (under, help) = match limit {
        Some(name) => (format!(" under {name}"), "raise it"),
        None => (String::new(), "end other programs"),
    };
    format!(
        "{}: its weights take {} MB of memory, but only {} MB are available{under}; {help}{less}",
        gguf.path().display(),
        needed.div_ceil(1_000_000),
        free / 1_000_000
    )
}

/// Returns the gather kernel for sparse decode of a job, if it has any, and the share of lines
/// above which it does not pay. A job with biases has none: with them a product that is not finite
/// may meet a gate of 0, and the kernels add none.
fn sparse_kernel(
    gguf: &Gguf,
    config: &Config,
    options: &LoadOptions<'_>,
    job: &JobShapes,
) -> Option<(GatherKernel, f64)> {
    if config.activation != Activation::Relu2 {
        return None;
    }
    let (kernel, below) = options.selection.lines(job.role, &job.parts)?;
    let mut matrices = (0..config.layers).flat_map(|layer| config.matrices(layer, job.role));
    if matrices.any(|(name, _)| gguf.tensor(&tensors::beside(&name, "bias")).is_some()) {
        return None;
    }
    let bytes = kernel.along().matrix_bytes(kernel.layout(), *job.parts.last()?);
    match options.sparse {
        sparse::Mode::Off => None,
        sparse::Mode::On => Some((kernel, f64::INFINITY)),
        sparse::Mode::Auto => (bytes >= sparse::SMALL && below > 0.0).then_some((kernel, below)),
    }
}

/// Returns the width of the blocks in which the matrices of the first layer that `role` multiplies with one
/// input are multiplied, if they have more than one scale each.
///
/// # Errors
/// [`Error::Model`] when a matrix is missing, has another shape than the hyperparameters ask for or is not
/// ternary.
pub fn block_width_of(gguf: &Gguf, config: &Config, role: Role) -> Result<Option<usize>> {
    block_width(gguf, &config.matrices(0, role), Activations::Auto, &mut HashMap::new())
}

/// Returns the width of the blocks in which the matrices of a job are multiplied, if they are: where the
/// scales of one differ, it has weights of +2, or that is asked for. It is the smallest of theirs. Scales
/// that were all read for it, which takes a pass over the tensor, are left in `found`.
fn block_width(
    gguf: &Gguf,
    matrices: &[(String, Shape)],
    activations: Activations,
    found: &mut HashMap<String, Scales>,
) -> Result<Option<usize>> {
    let mut read = Vec::new();
    let (mut narrowest, mut several) = (usize::MAX, activations == Activations::Block);
    for (name, shape) in matrices {
        let (_, codes) = Tensors::new(gguf).ternary(name, *shape)?;
        // Mostly the first rows show that scales differ, and the file need not be read for it; in floats
        // they do not show of which units they are. A scale that is none is refused where the matrix is
        // packed.
        let first = |rows| codes.first_rows(rows).filter(|_| !codes.is_float());
        let same = first(4).is_none_or(|codes| codes.scales().uniform().is_ok());
        let all = same.then(|| codes.scales());
        let one = all.as_ref().and_then(|all| all.uniform().ok());
        several |= one.is_none() || codes.has_twos();
        let widths = first(1).map(|codes| codes.scales());
        match widths.as_ref().or(all.as_ref()).expect("without first rows all are read") {
            Scales::Blocks { width, .. } => narrowest = narrowest.min(*width),
            // Any will do.
            Scales::Tensor(_) | Scales::Rows(_) => {
                let fits = [256, 128, 64].into_iter().find(|w| shape.cols.is_multiple_of(*w));
                if let Some(width) = fits.filter(|_| several) {
                    narrowest = narrowest.min(width);
                }
            }
        }
        read.extend(all.map(|all| (name.clone(), all, one)));
    }
    // Of matrices that are multiplied as a whole the one scale is all that is asked for.
    found.extend(read.into_iter().map(|(name, all, one)| {
        let one = one.filter(|_| !several).map(Scales::Tensor);
        (name, one.unwrap_or(all))
    }));
    Ok(several.then_some(narrowest).filter(|width| *width != usize::MAX))
}

/// A job of every layer, and the kernels for it.
#[derive(Clone)]
struct PlannedJob {
    role: Role,
    /// For each layer the kernels for its matrices.
    kernels: Vec<Kernels>,
    /// Kernel for one token with activation sparsity, and the density up to which it is used, where matrices
    /// have one scale.
    sparse: Option<(GatherKernel, f64)>,
}

/// Kernels for one token and for many.
#[derive(Clone, Copy)]
enum Kernels {
    /// Of matrices with one scale.
    Ternary(Kernel, Kernel),
    /// Of matrices with block scales.
    Blocks(BlockKernel, BlockKernel),
}

impl Kernels {
    /// Chooses those for matrices of a job with one scale, or with one for each block of `width` columns.
    fn choose(options: &LoadOptions<'_>, job: &JobShapes, width: Option<usize>) -> Result<Self> {
        Ok(match width {
            None => {
                let (decode, prefill) = options.selection.ternary(job.role, &job.parts)?;
                Self::Ternary(decode, prefill)
            }
            Some(width) => {
                let (decode, prefill) = options.selection.blocks(job.role, &job.parts, width)?;
                Self::Blocks(decode, prefill)
            }
        })
    }

    /// The packing that both read.
    fn packing(&self) -> Tiles {
        match self {
            Self::Ternary(decode, _) => Tiles::Ternary(decode.layout()),
            Self::Blocks(decode, _) => Tiles::Blocks(decode.layout()),
        }
    }
}

/// The plan for packed weights, and their place.
struct Packing<'a> {
    /// The jobs of a layer.
    jobs: Vec<PlannedJob>,
    /// The scales of matrices that were read for the plan.
    scales: HashMap<String, Scales>,
    place: Place<'a>,
}

/// Place of packed weights.
enum Place<'a> {
    /// They are packed now, into memory.
    Memory(Room),
    /// They were packed before, into a file.
    File(&'a PackedFile),
}

/// The memory for packed weights.
struct Room {
    arena: Arena,
    /// Bytes that the arena holds in the end.
    bytes: usize,
    /// True if memory does not have room for the file as well.
    uncache: bool,
}

impl Room {
    /// Returns the next `bytes`, for the tensor of that name.
    fn take(&mut self, name: &str, bytes: usize) -> Result<Buffer> {
        let missing = || format!("{name}: no room was set aside for {bytes} bytes");
        self.arena.take(bytes).ok_or_else(|| Error::Runtime(missing()))
    }
}

struct Loader<'a> {
    gguf: &'a Arc<Gguf>,
    options: &'a LoadOptions<'a>,
    /// `None` if weights stay in the file.
    packing: Option<Packing<'a>>,
    tensors: Tensors<'a>,
    warnings: &'a mut Vec<String>,
}

impl<'a> Loader<'a> {
    fn weights(&mut self, config: &Config) -> Result<Weights> {
        let Config { hidden, vocab, .. } = *config;
        let names = &config.architecture.tensors;
        let mut embedding = self.table(names.embedding, vocab, hidden)?;
        let head = match self.gguf.tensor(names.head) {
            Some(_) => {
                let head = self.table(names.head, vocab, hidden)?;
                self.copy(head)?
            }
            None => {
                embedding = self.copy(embedding)?;
                embedding.clone()
            }
        };
        let LoadOptions { pool, pages, .. } = *self.options;
        let head = match self.options.activations {
            // Its kernels round no activation either.
            Activations::F32 => head.in_f32(self.gguf, pool, pages)?,
            _ => head,
        };
        let output_norm = self.tensors.vector(names.output_norm, hidden)?;
        let rope_factors = self.tensors.rope_factors(config)?;
        let layers =
            (0..config.layers).map(|layer| self.layer(config, layer)).collect::<Result<_>>()?;
        Ok(Weights { embedding, head, output_norm, rope_factors, layers })
    }

    fn layer(&mut self, config: &Config, layer: usize) -> Result<Layer> {
        let &Config { hidden, ffn, .. } = config;
        let names = &config.architecture.tensors;
        let mut norm = |name: &str, n| self.tensors.vector(&layer_tensor(layer, name), n);
        let attn_norm = norm(names.attn_norm, hidden)?;
        let qk_norms = match names.attn_qk_norms {
            Some([q, k]) => Some([norm(q, config.head_dim)?, norm(k, config.head_dim)?]),
            None => None,
        };
        let mut optional = |name: Option<&str>, n| name.map(|name| norm(name, n)).transpose();
        let [attn_sub_norm, ffn_sub_norm] = config.sub_norms();
        let attn_sub_norm = optional(attn_sub_norm, config.q_dim())?;
        let attn_post_norm = optional(names.attn_post_norm, hidden)?;
        let ffn_sub_norm = optional(ffn_sub_norm, ffn)?;
        let ffn_post_norm = optional(names.ffn_post_norm, hidden)?;
        let ffn_norm = norm(names.ffn_norm, hidden)?;
        Ok(Layer {
            attn_norm,
            qkv: self.inputs(config, layer, Role::Qkv)?,
            qk_norms,
            attn_sub_norm,
            attn_output: self.job(config, layer, Role::AttnOutput, 0..1)?,
            attn_post_norm,
            ffn_norm,
            gate_up: self.inputs(config, layer, Role::GateUp)?,
            ffn_sub_norm,
            down: self.job(config, layer, Role::Down, 0..1)?,
            ffn_post_norm,
        })
    }

    /// Loads the matrices of a role that reads the normed residual stream, and the norms of their own.
    fn inputs(&mut self, config: &Config, layer: usize, role: Role) -> Result<Inputs> {
        let matrices = config.matrices(layer, role);
        let Some(norms) = config.norms_of_inputs(role) else {
            return self.job(config, layer, role, 0..matrices.len()).map(Inputs::Shared);
        };
        let own = norms.iter().zip(matrices).enumerate().map(|(i, (name, (_, shape)))| {
            Ok(OwnInput {
                norm: self.tensors.vector(&layer_tensor(layer, name), config.hidden)?,
                rows: shape.rows,
                projection: self.job(config, layer, role, i..i + 1)?,
            })
        });
        own.collect::<Result<_>>().map(Inputs::Own)
    }

    fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Table> {
        let (tensor, format) = self.tensors.table(name, rows, cols)?;
        let scale = self.check_codes(tensor, Shape::new(rows, cols))?.of_tensor().unwrap_or(1.0);
        if tensor.ty.format().rows().is_some() {
            return Ok(Table::new(tensor.clone(), format, scale, rows));
        }
        let (_, codes) = self.tensors.ternary(name, Shape::new(rows, cols))?;
        let LoadOptions { pool, pages, .. } = *self.options;
        Table::of_codes(tensor.clone(), codes, format, self.gguf, (pool, pages))
    }

    /// Checks the scales and the codes of a tensor of a ternary type, and returns the scales; a tensor of
    /// another type has none of its own.
    fn check_codes(&mut self, tensor: &TensorInfo, shape: Shape) -> Result<Scales> {
        let Some(codes) = Codes::of(self.gguf, tensor, shape)? else {
            return Ok(Scales::from(1.0));
        };
        let scales = self.sound_scales(&tensor.name, codes.scales())?;
        let seen = packing::look_at(codes, self.options.pool)?;
        if seen.bad && !codes.has_twos() {
            return Err(self.bad_code(&tensor.name));
        }
        self.warn_of_zeros(&tensor.name, !seen.weights);
        Ok(scales)
    }

    /// Checks that the scales of a tensor are numbers that a scale can be.
    fn sound_scales(&self, name: &str, scales: Scales) -> Result<Scales> {
        let floats = |tensor: &&TensorInfo| tensor.ty.format().floats().is_some();
        match (scales.broken(), self.gguf.tensor(name).filter(floats)) {
            (None, _) => Ok(scales),
            (Some(_), Some(tensor)) => Err(tensors::no_ternary(self.gguf, tensor)),
            (Some(scale), None) => {
                let expected = "a finite scale above 0; the file is damaged";
                Err(self.gguf.tensor_error(name, format_args!("scale {scale}"), expected))
            }
        }
    }

    /// Copies a table out of the file, unless [`LoadOptions::copy_head`] is off.
    fn copy(&self, table: Table) -> Result<Table> {
        if !self.options.copy_head {
            return Ok(table);
        }
        table.copied(self.gguf, self.options.pool, self.options.pages)
    }

    /// Locks the packed weights and the head in memory, or warns that the system refused.
    fn lock(&mut self, head: &Table) {
        let packed = match self.packing.as_ref().map(|packing| &packing.place) {
            Some(Place::Memory(room)) => room.arena.lock(),
            Some(Place::File(file)) => file.lock(),
            None => Ok(()),
        };
        if let Err(error) = packed.and(head.lock()) {
            self.warnings.push(not_locked(&error));
        }
    }

    /// Loads matrices of a layer's role: packed for the kernels of that role, or as the file holds them.
    fn job(
        &mut self,
        config: &Config,
        layer: usize,
        role: Role,
        which: Range<usize>,
    ) -> Result<Projection> {
        let matrices = config.matrices(layer, role);
        let matrices = &matrices[which];
        match self.packing.take() {
            Some(mut packing) => {
                let job = packing.jobs.iter().find(|job| job.role == role).cloned();
                let job = job.expect("Config::jobs lists the role");
                let projection = match job.kernels[layer] {
                    Kernels::Blocks(decode, prefill) => self
                        .block_job(&mut packing, (decode, prefill), matrices)
                        .map(|job| Projection::Blocks(Box::new(job))),
                    Kernels::Ternary(decode, prefill) => self
                        .packed_job(&mut packing, (decode, prefill), job.sparse, matrices)
                        .map(|job| Projection::Packed(Box::new(job))),
                };
                self.packing = Some(packing);
                projection
            }
            None if self.options.activations == Activations::F32 => {
                self.float_job(matrices).map(Projection::Float)
            }
            None => self.file_job(matrices).map(Projection::Mapped),
        }
    }

    fn packed_job(
        &mut self,
        packing: &mut Packing<'_>,
        (decode, prefill): (Kernel, Kernel),
        sparse: Option<(GatherKernel, f64)>,
        matrices: &[(String, Shape)],
    ) -> Result<Job> {
        let (mut parts, mut biases, mut lines) = (Vec::new(), Vec::new(), None);
        for (i, (name, shape)) in matrices.iter().enumerate() {
            let last = i + 1 == matrices.len();
            let sparse = sparse.as_ref().filter(|_| last).map(|(kernel, _)| kernel);
            let matrix = (name.as_str(), *shape, packing.scales.remove(name));
            let (part, by_line) = match &mut packing.place {
                Place::Memory(room) => self.pack(room, matrix, decode.layout(), sparse)?,
                Place::File(file) => self.packed(file, name, *shape, decode.layout(), sparse)?,
            };
            parts.push(part);
            biases.push(self.tensors.bias(name, shape.rows)?);
            lines = by_line;
        }
        let job = Job::new(parts, decode, prefill)?.with_biases(biases)?;
        match (sparse, lines) {
            (Some((kernel, below)), Some(lines)) => {
                job.with_sparse(Sparse::new(lines, kernel, below)?)
            }
            _ => Ok(job),
        }
    }

    /// Packs matrices with block scales, or takes them out of a file of packed weights.
    fn block_job(
        &mut self,
        packing: &mut Packing<'_>,
        (decode, prefill): (BlockKernel, BlockKernel),
        matrices: &[(String, Shape)],
    ) -> Result<BlockJob> {
        let layout = decode.layout();
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        for (name, shape) in matrices {
            let part = match &mut packing.place {
                Place::Memory(room) => {
                    let matrix = (name.as_str(), *shape, packing.scales.remove(name));
                    self.pack_blocks(room, matrix, layout)?
                }
                Place::File(file) => {
                    let section = file.section(name, Form::BlockTiles(layout), *shape)?;
                    let (factor, bytes) = (file.scale(section)?, file.bytes(section)?);
                    BlockMatrix::new(layout, *shape, factor, section.zero, bytes)?
                }
            };
            self.warn_of_zeros(name, part.is_zero());
            parts.push(part);
            biases.push(self.tensors.bias(name, shape.rows)?);
        }
        BlockJob::new(parts, biases, decode, prefill)
    }

    /// Packs a matrix with block scales, which may be known.
    fn pack_blocks(
        &mut self,
        room: &mut Room,
        (name, shape, scales): (&str, Shape, Option<Scales>),
        layout: BlockLayout,
    ) -> Result<BlockMatrix> {
        let (tensor, codes) = self.tensors.ternary(name, shape)?;
        let scales = self.sound_scales(name, scales.unwrap_or_else(|| codes.scales()))?;
        // Those of blocks are f16 in every format of blocks.
        let may_be_odd = matches!(scales, Scales::Rows(_)) || codes.is_float();
        if may_be_odd
            && scales.of_tensor().is_none()
            && let Some(odd) = scales.values().iter().find(|s| f16::from_f32(**s).to_f32() != **s)
        {
            let expected = "scales of rows or blocks that are f16 numbers, where they differ";
            return Err(self.gguf.tensor_error(name, format_args!("scale {odd}"), expected));
        }
        let factor = self.tensors.factor(name)?.unwrap_or(1.0);
        let buffer = room.take(name, layout.matrix_bytes(shape))?;
        let packed = BlockMatrix::pack(codes, &scales, factor, layout, buffer, self.options.pool);
        let matrix = packed?.map_err(|_| self.bad_code(name))?;
        self.gguf.drop_pages(tensor, room.uncache);
        (self.options.progress)(room.arena.used(), room.bytes);
        cancel::check(self.options.cancel)?;
        Ok(matrix)
    }

    /// Reads the matrices for activations that are not rounded.
    fn float_job(&mut self, matrices: &[(String, Shape)]) -> Result<FloatJob> {
        let mut parts = Vec::new();
        for (name, shape) in matrices {
            let (tensor, codes) = self.tensors.ternary(name, *shape)?;
            let scales = self.sound_scales(name, codes.scales())?;
            let factor = self.tensors.factor(name)?.unwrap_or(1.0);
            let bias = self.tensors.bias(name, shape.rows)?;
            let part = FloatMatrix::new(codes, scales, factor, bias, self.options.pool)?;
            parts.push(part.ok_or_else(|| self.bad_code(name))?);
            self.gguf.drop_pages(tensor, false);
            cancel::check(self.options.cancel)?;
        }
        Ok(FloatJob::new(parts))
    }

    /// Checks every code of the matrices, which stay as the file holds them.
    fn file_job(&mut self, matrices: &[(String, Shape)]) -> Result<MappedJob> {
        let ceiling = self.options.selection.ceiling();
        let kernel =
            GatherKernel::default(Along::Rows, Some(bitnet_profiles::Format::I2S), ceiling)
                .ok_or_else(|| Error::Runtime("no kernel for rows of i2_s".into()))?;
        let mut parts = Vec::new();
        for (name, shape) in matrices {
            let (tensor, codes, scale) = self.ternary(name, *shape, None)?;
            if tensor.ty != TensorType::I2_S {
                let expected =
                    "i2_s, which alone is multiplied as the file holds it; pack the weights";
                return Err(self.gguf.tensor_error(name, tensor.ty, expected));
            }
            // The reader has checked the size.
            let seen = packing::look_at(codes, self.options.pool)?;
            if seen.bad {
                return Err(self.bad_code(name));
            }
            self.warn_of_zeros(name, !seen.weights);
            let bias = self.tensors.bias(name, shape.rows)?;
            parts.push(FileMatrix::new(self.gguf, tensor, *shape, scale)?.with_bias(bias)?);
        }
        MappedJob::new(parts, kernel)
    }

    /// Returns a ternary tensor, its codes, and the scale of its integer products; its scales may be known.
    fn ternary(
        &mut self,
        name: &str,
        shape: Shape,
        known: Option<Scales>,
    ) -> Result<(&'a TensorInfo, Codes<'a>, f32)> {
        let gguf = self.gguf;
        let (tensor, codes) = self.tensors.ternary(name, shape)?;
        let scales = self.sound_scales(name, known.unwrap_or_else(|| codes.scales()))?;
        let unit = scales.unit();
        let mut scale = scales.uniform().map_err(|[first, other]| {
            gguf.tensor_error(
                name,
                format_args!("{} with scales {first} and {other} in one tensor", tensor.ty),
                format_args!(
                    "one scale for the tensor, or one for each {unit} of a matrix whose rows are \
                     multiples of 64 weights, and which is packed"
                ),
            )
        })?;
        if let Some(factor) = self.tensors.factor(name)? {
            scale *= factor;
            if !scale.is_finite() {
                let found = format!("scale {scale}, its own times the factor {factor} of *.scale");
                return Err(gguf.tensor_error(name, found, "a finite scale; the file is damaged"));
            }
        }
        Ok((tensor, codes, scale))
    }

    fn bad_code(&self, name: &str) -> Error {
        self.gguf.tensor_error(name, "code 3", "codes 0 to 2; the file is damaged")
    }

    fn warn_of_zeros(&mut self, name: &str, zero: bool) {
        if zero {
            self.warnings.push(format!(
                "{}: all weights of tensor {name} are zero; the published file may be broken",
                self.gguf.path().display()
            ));
        }
    }

    /// Packs a matrix, whose scales may be known, and its lines if there is a sparse kernel.
    fn pack(
        &mut self,
        room: &mut Room,
        (name, shape, scales): (&str, Shape, Option<Scales>),
        layout: Layout,
        sparse: Option<&GatherKernel>,
    ) -> Result<(PackedMatrix, Option<GatherMatrix>)> {
        let (tensor, codes, scale) = self.ternary(name, shape, scales)?;
        let buffer = room.take(name, layout.matrix_bytes(shape))?;
        let pool = self.options.pool;
        let packed = PackedMatrix::pack(codes, scale, layout, buffer, pool)?;
        let matrix = packed.map_err(|_| self.bad_code(name))?;
        let lines = match sparse {
            Some(kernel) => {
                let (layout, along) = (kernel.layout(), kernel.along());
                let buffer = room.take(name, along.matrix_bytes(layout, shape))?;
                let lines = GatherMatrix::pack(codes, scale, (layout, along), buffer, pool)?;
                Some(lines.map_err(|_| self.bad_code(name))?)
            }
            None => None,
        };
        self.warn_of_zeros(name, matrix.is_zero());
        self.gguf.drop_pages(tensor, room.uncache);
        (self.options.progress)(room.arena.used(), room.bytes);
        cancel::check(self.options.cancel)?;
        Ok((matrix, lines))
    }

    /// Takes a matrix out of a file of packed weights, and its lines if there is a sparse kernel.
    fn packed(
        &mut self,
        file: &PackedFile,
        name: &str,
        shape: Shape,
        layout: Layout,
        sparse: Option<&GatherKernel>,
    ) -> Result<(PackedMatrix, Option<GatherMatrix>)> {
        let section = file.section(name, Form::Tiles(layout), shape)?;
        let scale = file.scale(section)?;
        let matrix = PackedMatrix::new(layout, shape, scale, section.zero, file.bytes(section)?)?;
        let lines = match sparse {
            Some(kernel) => {
                let (layout, along) = (kernel.layout(), kernel.along());
                let section = file.section(name, Form::lines(layout, along), shape)?;
                Some(GatherMatrix::new((layout, along), shape, scale, file.bytes(section)?)?)
            }
            None => None,
        };
        self.warn_of_zeros(name, section.zero);
        Ok((matrix, lines))
    }
}

/// Builds the warning for when the system does not lock memory.
pub(super) fn not_locked(error: &std::io::Error) -> String {
    format!(
        "the weights may be swapped out, the system does not keep them in memory: {error}; raise \
         its limit (ulimit -l)"
    )
}
