//! Hyperparameters, read from the metadata of a GGUF file and checked.

use bitnet_profiles::{Role, Shape, shapes_hash};
use serde::{Deserialize, Serialize};

use super::mask::Mask;
use super::rope::{self, RopeScaling};
use super::{Activation, Architecture, layer_tensor, policy};
use crate::error::{Result, quoted};
use crate::file::gguf::{Gguf, Value};

/// The hyperparameters of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Its architecture.
    pub architecture: &'static Architecture,
    /// The non-linearity of the feed-forward part: that of the architecture unless the file says
    /// another.
    pub activation: Activation,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Elements of a head that are rotated; even, at most `head_dim`.
    pub rope_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Scaling of positions.
    pub rope_scaling: RopeScaling,
    /// Positions that a token attends to.
    pub mask: Mask,
    /// True if each matrix has a norm of its own input.
    pub norms_in: bool,
    /// Epsilon of every RMS norm.
    pub eps: f32,
    /// Positions the model was made for.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// Most layers of a model: no ternary model has as many, so a file that claims more is broken.
const MAX_LAYERS: u32 = 1024;
/// Positions up to which the rotary tables are accurate.
const MAX_CONTEXT: u32 = 1 << 20;
/// Largest width: the most columns that a kernel takes. Products of two widths, of a width and the
/// vocabulary, and of either and the layers or the context so are far below 2^63.
const MAX_WIDTH: u32 = Shape::MAX_COLS as u32;
/// Largest vocabulary: the most rows of a matrix.
const MAX_VOCAB: u64 = Shape::MAX_ROWS as u64;

impl Config {
    /// Reads and checks the metadata. The vocabulary is the number of rows of `token_embd.weight`;
    /// shapes of all other tensors are checked where they are loaded.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the key, what it holds and what is allowed.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        gguf.check_whole()?;
        let architecture = architecture(gguf)?;
        let key = |name: &str| format!("{}.{name}", architecture.name);
        let bounded = |name: &str, value: u32, max: u32| {
            if (1..=max).contains(&value) {
                Ok(value as usize)
            } else {
                Err(gguf.key_error(&key(name), value, format_args!("1 to {max}")))
            }
        };
        let layers = gguf.require_u32(&key("block_count"))?;
        let layers = bounded("block_count", layers, MAX_LAYERS)?;
        let optional = |name: &str, max: u32| {
            let value = per_layer(gguf, &key(name), layers, "a u32", Value::as_u32)?;
            value.map(|value| bounded(name, value, max)).transpose()
        };
        let required = |name: &str, max: u32| gguf.require(&key(name), optional(name, max)?);
        let float = |name: &str| per_layer(gguf, &key(name), layers, "an f32", Value::as_f32);

        let hidden = required("embedding_length", MAX_WIDTH)?;
        let ffn = required("feed_forward_length", MAX_WIDTH)?;
        let context = required("context_length", MAX_CONTEXT)?;

        let heads = required("attention.head_count", MAX_WIDTH)?;
        let kv_heads = optional("attention.head_count_kv", MAX_WIDTH)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(gguf.key_error(
                &key("attention.head_count_kv"),
                kv_heads,
                format_args!("a divisor of attention.head_count, {heads}"),
            ));
        }
        let head_dim = match optional("attention.key_length", MAX_WIDTH)? {
            Some(length) => length,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(gguf.key_error(
                    &key("embedding_length"),
                    hidden,
                    format_args!(
                        "a multiple of attention.head_count, {heads}, or the key attention.key_length"
                    ),
                ));
            }
        };
        if heads.checked_mul(head_dim).is_none_or(|q_dim| q_dim > Shape::MAX_COLS) {
            return Err(gguf.key_error(
                &key("attention.head_count"),
                format_args!("{heads} heads of {head_dim} elements"),
                format_args!("at most {MAX_WIDTH} elements of all heads together"),
            ));
        }
        if let Some(length) = optional("attention.value_length", MAX_WIDTH)?
            && length != head_dim
        {
            return Err(gguf.key_error(
                &key("attention.value_length"),
                length,
                format_args!("the length of a key, {head_dim}"),
            ));
        }

        let rope_dim = optional("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
            return Err(gguf.key_error(
                &key("rope.dimension_count"),
                rope_dim,
                format_args!("an even number up to the length of a key, {head_dim}"),
            ));
        }
        let rope_base = rope::base(gguf, architecture.name, layers)?;
        let rope_scaling = RopeScaling::from_gguf(gguf, architecture.name, context)?;

        let mask = Mask::from_gguf(gguf, architecture, layers)?;
        let of_window = [
            ("attention.key_length_swa", head_dim),
            ("attention.value_length_swa", head_dim),
            ("rope.dimension_count_swa", rope_dim),
        ];
        for (name, own) in of_window.into_iter().filter(|_| mask.window.is_some()) {
            if let Some(length) = optional(name, MAX_WIDTH)?
                && length != own
            {
                let expected = format!("{own}, as in layers without a window");
                return Err(gguf.key_error(&key(name), length, expected));
            }
        }

        let eps_name = "attention.layer_norm_rms_epsilon";
        let eps_key = key(eps_name);
        let eps = gguf.require(&eps_key, float(eps_name)?)?;
        if !(eps > 0.0 && eps <= 1.0) {
            return Err(gguf.key_error(&eps_key, eps, "more than 0, at most 1"));
        }

        let config = Self {
            architecture,
            activation: activation(gguf, architecture)?,
            layers,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            rope_dim,
            rope_base,
            rope_scaling,
            mask,
            norms_in: architecture
                .tensors
                .norms_in
                .is_some_and(|norms| gguf.tensor(&layer_tensor(0, norms.qkv[0])).is_some()),
            eps,
            context,
            vocab: vocabulary(gguf, architecture)?,
        };
        policy::check_keys(gguf, &config)?;
        // llama.cpp knows Gemma 3 27B by its number of layers, and scales its scores as the model was
        // trained (query_pre_attn_scalar); files do not say so.
        let trained = hidden / heads;
        if architecture.name == "gemma3" && layers == 62 && head_dim != trained {
            return Err(gguf.key_error(
                &key("block_count"),
                layers,
                format_args!(
                    "another number: this is Gemma 3 27B, whose scores are scaled by 1 / sqrt({trained}), \
                     not by that of attention.key_length, {head_dim}, which is what is implemented"
                ),
            ));
        }
        Ok(config)
    }

    /// Query heads that share a key and value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of all query heads together, the input of `attn_output`.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Number of weights in the matrices of a layer.
    #[must_use]
    pub fn layer_weights(&self) -> usize {
        self.hidden * (2 * self.q_dim() + 2 * self.kv_dim() + 3 * self.ffn)
    }

    /// The ternary jobs of the forward pass, in its order.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobShapes> {
        let &Self { hidden, ffn, .. } = self;
        let (q, kv) = (Shape::new(self.q_dim(), hidden), Shape::new(self.kv_dim(), hidden));
        let (widen, narrow) = (Shape::new(ffn, hidden), Shape::new(hidden, ffn));
        [
            (Role::Qkv, vec![q, kv, kv]),
            (Role::AttnOutput, vec![Shape::new(hidden, self.q_dim())]),
            (Role::GateUp, vec![widen, widen]),
            (Role::Down, vec![narrow]),
        ]
        .map(|(role, parts)| JobShapes { role, parts, count: self.layers as u32 })
        .into()
    }

    /// Returns the ternary matrices of a layer that a role multiplies with one input, by the names
    /// of their tensors; none for a role that multiplies no such matrices.
    #[must_use]
    pub fn matrices(&self, layer: usize, role: Role) -> Vec<(String, Shape)> {
        let jobs = self.jobs().into_iter().filter(|job| job.role == role);
        let names = self.architecture.matrices(role).iter();
        let parts = names.zip(jobs.flat_map(|job| job.parts));
        parts.map(|(name, shape)| (layer_tensor(layer, name), shape)).collect()
    }

    /// Returns the names of the norms of the input of each matrix of a role that has several, behind the
    /// norm of all of them; `None`: they have none of their own.
    #[must_use]
    pub fn norms_of_inputs(&self, role: Role) -> Option<&'static [&'static str]> {
        let norms = self.architecture.tensors.norms_in.as_ref().filter(|_| self.norms_in)?;
        match role {
            Role::Qkv => Some(&norms.qkv),
            Role::GateUp => Some(&norms.gate_up),
            _ => None,
        }
    }

    /// Returns the names of the norms before `attn_output`, `[q_dim]`, and before `down`, `[ffn]`, where
    /// there are any.
    #[must_use]
    pub fn sub_norms(&self) -> [Option<&'static str>; 2] {
        let names = &self.architecture.tensors;
        match names.norms_in.filter(|_| self.norms_in) {
            Some(norms) => [Some(norms.attn_output), Some(norms.down)],
            None => [names.attn_sub_norm, names.ffn_sub_norm],
        }
    }

    /// Returns the names of the norms of a layer, with their widths.
    #[must_use]
    pub fn norms(&self) -> Vec<(&'static str, usize)> {
        let names = &self.architecture.tensors;
        let [attn_sub_norm, ffn_sub_norm] = self.sub_norms();
        let [q, k] = names.attn_qk_norms.map_or([None; 2], |norms| norms.map(Some));
        let fixed = [
            (Some(names.attn_norm), self.hidden),
            (attn_sub_norm, self.q_dim()),
            (names.attn_post_norm, self.hidden),
            (Some(names.ffn_norm), self.hidden),
            (ffn_sub_norm, self.ffn),
            (names.ffn_post_norm, self.hidden),
            (q, self.head_dim),
            (k, self.head_dim),
        ];
        let fixed = fixed.into_iter().filter_map(|(name, width)| Some((name?, width)));
        let roles = [Role::Qkv, Role::GateUp].into_iter();
        let own = roles.filter_map(|role| self.norms_of_inputs(role)).flatten();
        fixed.chain(own.map(|&name| (name, self.hidden))).collect()
    }

    /// The ternary matrices of all layers.
    pub fn all_matrices(&self) -> impl Iterator<Item = (String, Shape)> {
        let roles = self.jobs().into_iter().map(|job| job.role);
        let roles: Vec<Role> = roles.collect();
        let layer = move |layer| roles.clone().into_iter().map(move |role| (layer, role));
        (0..self.layers).flat_map(layer).flat_map(|(layer, role)| self.matrices(layer, role))
    }

    /// Returns the shapes that identify attention in a tuning profile: the query heads and the
    /// key-value heads of a token, and the elements of each.
    #[must_use]
    pub fn attention_shapes(&self) -> [Shape; 2] {
        [self.heads, self.kv_heads].map(|heads| Shape::new(heads, self.head_dim))
    }

    /// Returns the hash that identifies these jobs in tuning profiles, see [`shapes_hash`].
    #[must_use]
    pub fn shapes_hash(&self) -> String {
        let jobs = self.jobs();
        shapes_hash(jobs.iter().map(|job| (job.role, &job.parts[..], job.count)))
    }
}

/// The matrices that are multiplied with one input, as one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobShapes {
    /// Role of the job.
    pub role: Role,
    /// Its matrices, in the order of their outputs.
    pub parts: Vec<Shape>,
    /// Runs per token: the layers, at most 1024.
    pub count: u32,
}

fn architecture(gguf: &Gguf) -> Result<&'static Architecture> {
    let key = "general.architecture";
    let name = gguf.require_str(key)?;
    Architecture::find(name).ok_or_else(|| {
        let known = Architecture::names();
        // Bonsai 27B.
        let missing = if name == "qwen35" {
            "; its layers of gated delta-net, three of four, are not implemented"
        } else {
            ""
        };
        gguf.key_error(key, quoted(name), format_args!("one of {known}{missing}"))
    })
}

/// Reads the non-linearity of the feed-forward part, by the names that Hugging Face and ggml give it.
fn activation(gguf: &Gguf, architecture: &Architecture) -> Result<Activation> {
    let key = format!("{}.hidden_activation", architecture.name);
    match gguf.get_str(&key)? {
        None => Ok(architecture.activation),
        Some("relu2" | "relu_squared" | "squared_relu" | "relu_sqr") => Ok(Activation::Relu2),
        Some("silu" | "swish" | "swiglu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_tanh") => Ok(Activation::Gelu),
        Some(other) => Err(gguf.key_error(&key, quoted(other), "relu2, silu or gelu_pytorch_tanh")),
    }
}

/// Reads a value that a file may also give layer by layer, then the same for all.
pub(super) fn per_layer<T>(
    gguf: &Gguf,
    key: &str,
    layers: usize,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>> {
    let Some(value) = gguf.get(key) else { return Ok(None) };
    let one = match value {
        Value::Array(array) => {
            let first = array.get(0).filter(|_| array.len() == layers);
            let first = first.ok_or_else(|| {
                gguf.key_error(
                    key,
                    value,
                    format_args!("{expected}, or one for each of {layers} layers"),
                )
            })?;
            if let Some((layer, other)) = value.items().enumerate().find(|(_, own)| *own != first) {
                let found = format!("{first} for the first layer and {other} for layer {layer}");
                return Err(gguf.key_error(key, found, "the same for all layers"));
            }
            &first.clone()
        }
        one => one,
    };
    read(one).map(Some).ok_or_else(|| gguf.key_error(key, value, expected))
}

/// Returns the rows of the embedding, which the key `vocab_size` and the tokenizer have to agree
/// with.
fn vocabulary(gguf: &Gguf, architecture: &Architecture) -> Result<usize> {
    let name = architecture.tensors.embedding;
    let Some(tensor) = gguf.tensor(name) else {
        return Err(gguf.tensor_error(
            name,
            "no such tensor",
            "the embedding; a vocabulary-only file holds no model",
        ));
    };
    let rows = tensor.rows();
    if rows == 0 || rows > MAX_VOCAB {
        let expected = format!("1 to {MAX_VOCAB}");
        return Err(gguf.tensor_error(name, format_args!("{rows} rows"), expected));
    }
    let key = format!("{}.vocab_size", architecture.name);
    if let Some(size) = gguf.get_u32(&key)?
        && u64::from(size) != rows
    {
        let expected = format!("the rows of {name}, {rows}");
        return Err(gguf.key_error(&key, size, expected));
    }
    let key = "tokenizer.ggml.tokens";
    if let Some(tokens) = gguf.get_strings(key)?
        && tokens.len() as u64 != rows
    {
        let expected = format!("as many as {name} has rows, {rows}");
        return Err(gguf.key_error(key, format_args!("{} tokens", tokens.len()), expected));
    }
    Ok(rows as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2B-4T: the shapes and the number of weights are published.
    #[test]
    fn jobs_hold_every_ternary_weight() {
        let config = Config {
            architecture: &crate::arch::BITNET_B158,
            activation: Activation::Relu2,
            layers: 30,
            hidden: 2560,
            ffn: 6912,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            rope_dim: 128,
            rope_base: 500_000.0,
            rope_scaling: RopeScaling::NONE,
            mask: Mask::CAUSAL,
            norms_in: false,
            eps: 1e-5,
            context: 4096,
            vocab: 128_256,
        };
        let jobs = config.jobs();
        let kv = Shape::new(640, 2560);
        assert_eq!(jobs[0].parts, [Shape::new(2560, 2560), kv, kv]);
        assert_eq!(jobs[3].parts, [Shape::new(2560, 6912)]);
        let weights = |job: &JobShapes| {
            job.count as usize * job.parts.iter().map(|part| part.weights()).sum::<usize>()
        };
        assert_eq!(jobs.iter().map(weights).sum::<usize>(), 2_084_044_800);

        let names: Vec<(String, Shape)> = config.all_matrices().collect();
        assert_eq!(names.len(), 30 * 7);
        assert_eq!(names[1], ("blk.0.attn_k.weight".to_owned(), kv));
        assert_eq!(names[209], ("blk.29.ffn_down.weight".to_owned(), Shape::new(2560, 6912)));
        assert_eq!(config.matrices(0, Role::LmHead), []);

        let hash = config.shapes_hash();
        assert_eq!(hash, config.shapes_hash());
        assert_ne!(hash, Config { layers: 29, ..config.clone() }.shapes_hash());
        assert_ne!(hash, Config { kv_heads: 4, ..config }.shapes_hash());
    }
}
