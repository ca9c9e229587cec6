//! The model: configuration, weights, KV cache and the forward pass.

use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::{KernelId, Packing, Role, Shape};

use crate::cpu::float::Activations;
use crate::cpu::kernels::{AttentionKernel, HeadKernel, Selection, VectorOps};
use crate::cpu::memory::Pages;
use crate::cpu::sparse;
use crate::cpu::threads::Pool;
use crate::error::Result;
use crate::file::gguf::Gguf;
use crate::file::packed::{Builder, PackedFile};

pub use super::head::choose::{HeadMode, HeadOptions};
use super::head::screen::ScreenedHead;
pub use super::head::screen::{HeadStats, Needs};
use super::head::sketch::HeadSketch;
pub use super::kv_cache::KvType;
pub use super::observe::Observer;
use super::rope::Rope;
pub use super::saved_kv::Detached;
pub use super::session::{BatchToken, MAX_SEQUENCES, Session, SessionOptions};
pub use super::stages::{Stage, StageTimes};
use super::weights::{Projection, Weights};
use crate::arch::config::Config;
use crate::arch::rope::RopeScaling;
use crate::cancel::Cancel;

/// Settings for loading a [`Model`].
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// The workers that pack the weights: the same that will read them.
    pub pool: &'a Pool,
    /// Choice of the kernels.
    pub selection: &'a Selection,
    /// Page size for the weights.
    pub pages: Pages,
    /// Locks weights in memory, so that they are not swapped out.
    pub lock: bool,
    /// Copies the head into memory. Otherwise it is read from the file, which
    /// [`Model::choose_head`] may change.
    pub copy_head: bool,
    /// Packs the ternary weights. Otherwise they are multiplied as the file holds them, which
    /// serves until there is time to pack them, in a model that [`crate::cpu::mapped::serves`].
    pub pack: bool,
    /// File in which they are packed already, which is mapped instead of packing them.
    pub packed: Option<&'a PackedFile>,
    /// Activation sparsity: whether one token skips weights that are multiplied by a zero.
    pub sparse: sparse::Mode,
    /// Rounding of the activations that ternary matrices multiply.
    pub activations: Activations,
    /// Called after every matrix with the bytes packed so far and the total.
    pub progress: &'a dyn Fn(usize, usize),
    /// Asked after every matrix if packing is to end, with [`Error::Interrupted`](crate::Error::Interrupted).
    pub cancel: Option<&'a Cancel>,
}

impl<'a> LoadOptions<'a> {
    /// Packed, in huge pages, not locked, with the head, without progress.
    #[must_use]
    pub fn new(pool: &'a Pool, selection: &'a Selection) -> Self {
        Self {
            pool,
            selection,
            pages: Pages::Huge,
            lock: false,
            copy_head: true,
            pack: true,
            packed: None,
            sparse: sparse::Mode::Auto,
            activations: Activations::Auto,
            progress: &|_, _| (),
            cancel: None,
        }
    }
}

/// A model ready to run: shared by any number of [`Session`]s.
#[derive(Debug)]
pub struct Model {
    pub(crate) gguf: Arc<Gguf>,
    pub(crate) config: Config,
    pub(crate) weights: Weights,
    /// Kernels of the head, in order of the tokens that they take at once, one token first.
    pub(crate) heads: Vec<HeadKernel>,
    pub(crate) sketch: Option<HeadSketch>,
    attention: AttentionKernel,
    vector: VectorOps,
    rope: Rope,
    /// That of layers with a window.
    window_rope: Option<Rope>,
    activations: Activations,
    pub(crate) warnings: Vec<String>,
}

/// The kernels of a role, for display and for reports.
#[derive(Clone, Debug)]
pub struct RoleKernels {
    /// The role.
    pub role: Role,
    /// The packing, for ternary roles that are packed.
    pub layout: Option<Packing>,
    /// For one token.
    pub decode: KernelId,
    /// For many tokens, if that is another kernel.
    pub prefill: Option<KernelId>,
    /// Bytes of weights that one token reads, over all layers, if it skips nothing.
    pub bytes: usize,
    /// For one token with activation sparsity.
    pub sparse: Option<KernelId>,
    /// Bytes of the second copy of the weights for that kernel, over all layers.
    pub sparse_bytes: usize,
}

impl Model {
    /// Opens a GGUF file and loads its weights.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be read,
    /// [`Error::Model`](crate::Error::Model) when it is no model that this runtime runs.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions<'_>) -> Result<Self> {
        Self::from_gguf(Gguf::open(path)?, options)
    }

    /// Loads the weights of an open file.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_gguf(gguf: impl Into<Arc<Gguf>>, options: &LoadOptions<'_>) -> Result<Self> {
        let gguf = gguf.into();
        let config = Config::from_gguf(&gguf)?;
        if options.pack {
            // Pages that were read before, if the model was run from the file.
            gguf.drop_all();
        }
        let mut warnings: Vec<String> = gguf.warnings().map(str::to_owned).collect();
        let weights = Weights::load(&gguf, &config, options, &mut warnings)?;
        let shape = Shape::new(config.vocab, config.hidden);
        let heads = options.selection.heads(weights.head.format(), shape)?;
        let attention = options.selection.attention(&config.attention_shapes())?;
        let factors = weights.rope_factors.as_deref();
        let rope = Rope::new(config.rope_dim, config.rope_base, &config.rope_scaling, factors);
        let window_rope =
            config.mask.window.as_ref().map(|window| {
                Rope::new(config.rope_dim, window.rope_base, &RopeScaling::NONE, None)
            });
        let vector = options.selection.vector();
        let sketch = None;
        if options.pack {
            gguf.drop_all();
        }
        let activations = options.activations;
        Ok(Self {
            gguf,
            config,
            weights,
            heads,
            sketch,
            attention,
            vector,
            rope,
            window_rope,
            activations,
            warnings,
        })
    }

    /// The kernels in use, by role: none for a role whose products no kernel makes.
    #[must_use]
    pub fn kernels(&self) -> Vec<RoleKernels> {
        let Some(layer) = self.weights.layers.first() else { return Vec::new() };
        let layers = self.weights.layers.len();
        let one = |role, projection: &Projection| match projection {
            Projection::Packed(job) => Some(RoleKernels {
                role,
                layout: Some(Packing::Ternary(job.decode_kernel().layout())),
                decode: *job.decode_kernel().id(),
                prefill: Some(*job.prefill_kernel().id()),
                bytes: job.packed_bytes() * layers,
                sparse: job.sparse().map(|sparse| *sparse.kernel().id()),
                sparse_bytes: job.sparse().map_or(0, |sparse| sparse.lines().data().len()) * layers,
            }),
            Projection::Blocks(job) => Some(RoleKernels {
                role,
                layout: Some(Packing::Blocks(job.decode_kernel().layout())),
                decode: *job.decode_kernel().id(),
                prefill: Some(*job.prefill_kernel().id()),
                bytes: job.packed_bytes() * layers,
                sparse: None,
                sparse_bytes: 0,
            }),
            Projection::Mapped(job) => Some(RoleKernels {
                role,
                layout: None,
                decode: *job.kernel().id(),
                prefill: None,
                bytes: job.bytes() * layers,
                sparse: None,
                sparse_bytes: 0,
            }),
            Projection::Float(_) => None,
        };
        // All matrices of a role have the same kernels.
        let roles = layer.roles().into_iter().filter_map(|(role, projections)| {
            let mut each = projections.into_iter().filter_map(|projection| one(role, projection));
            let first = each.next()?;
            Some(each.fold(first, |sum, next| RoleKernels {
                bytes: sum.bytes + next.bytes,
                sparse_bytes: sum.sparse_bytes + next.sparse_bytes,
                ..sum
            }))
        });
        let others = [
            RoleKernels {
                role: Role::Attention,
                layout: None,
                decode: *self.attention.id(),
                prefill: None,
                bytes: 0,
                sparse: None,
                sparse_bytes: 0,
            },
            RoleKernels {
                role: Role::LmHead,
                layout: None,
                decode: *self.head(1).id(),
                prefill: None,
                bytes: self.head_bytes(),
                sparse: None,
                sparse_bytes: 0,
            },
        ];
        roles.chain(others).collect()
    }

    /// True if the weights are packed; otherwise they are multiplied as the file holds them.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.weights.layers.first().is_none_or(|layer| layer.attn_output.mapped().is_none())
    }

    /// The file: metadata, and the blocks of the embedding and the head.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Warnings about the file, one line each: oddities that do not prevent loading.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the kernel of the head for so many tokens at once, at most [`Model::head_tokens`].
    pub(crate) fn head(&self, tokens: usize) -> &HeadKernel {
        let fits = self.heads.iter().find(|kernel| kernel.tokens() >= tokens);
        fits.unwrap_or(&self.heads[0])
    }

    /// Most tokens that the head takes at once.
    pub(crate) fn head_tokens(&self) -> usize {
        self.heads.iter().map(HeadKernel::tokens).max().unwrap_or(1)
    }

    /// Most tokens whose logits are computed at once, by the head or by a scan.
    pub(crate) fn logits_at_once(&self) -> usize {
        self.head_tokens().max(self.sketch.as_ref().map_or(1, HeadSketch::tokens))
    }

    /// Bytes of prepared input, enough for any kernel of the head.
    pub(crate) fn head_input_bytes(&self) -> usize {
        let bytes = |kernel: &HeadKernel| kernel.prepared_bytes(self.config.hidden);
        self.heads.iter().map(bytes).max().unwrap_or(0)
    }

    pub(crate) fn screened_head(&self) -> Option<ScreenedHead<'_>> {
        let sketch = self.sketch.as_ref()?;
        let Self { gguf, weights, vector, .. } = self;
        let kernel = self.head(1);
        Some(ScreenedHead { gguf, table: &weights.head, kernel, vector, sketch })
    }

    /// Lists all that is packed, for a file of it: the ternary matrices, and the head or its low-bit copies.
    #[must_use]
    pub fn packed(&self) -> Builder<'_> {
        let mut builder = Builder::default();
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            for (role, projections) in weights.roles() {
                let names = self.config.matrices(layer, role).into_iter().map(|(name, _)| name);
                let names: Vec<String> = names.collect();
                let each = names.len() / projections.len();
                for (names, projection) in names.chunks(each).zip(projections) {
                    match projection {
                        Projection::Packed(job) => job.store(names, &mut builder),
                        Projection::Blocks(job) => job.store(names, &mut builder),
                        Projection::Mapped(_) | Projection::Float(_) => {}
                    }
                }
            }
        }
        match &self.sketch {
            Some(sketch) => sketch.store(&self.weights.head.tensor().name, &mut builder),
            None => self.weights.head.store(&mut builder),
        }
        builder
    }

    /// The low-bit copies of the head, if there are any.
    #[must_use]
    pub fn sketch(&self) -> Option<&HeadSketch> {
        self.sketch.as_ref()
    }

    /// Bytes of the head in the blocks that kernels read.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        self.weights.head.bytes()
    }

    pub(crate) fn attention(&self) -> &AttentionKernel {
        &self.attention
    }

    pub(crate) fn vector(&self) -> &VectorOps {
        &self.vector
    }

    pub(crate) fn activations(&self) -> Activations {
        self.activations
    }

    pub(crate) fn rope(&self) -> &Rope {
        &self.rope
    }

    pub(crate) fn window_rope(&self) -> Option<&Rope> {
        self.window_rope.as_ref()
    }
}
