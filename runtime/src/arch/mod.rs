//! Model architectures: one value for each, with its operations and the names of its tensors.
//!
//! A transformer layer is the same in all of them: attention with grouped key-value heads, then a
//! gated feed-forward part, ternary matrices throughout, an RMS norm before either. An
//! [`Architecture`] holds the differences; [`config`], [`mask`] and [`rope`] read the sizes of a model from
//! its file.

pub mod config;
pub mod mask;
pub mod policy;
pub mod rope;

use bitnet_profiles::Role;
use mask::Windows;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Properties of an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// The value of `general.architecture`, which is also the prefix of the other keys.
    pub name: &'static str,
    /// The elements of a head that rotary embedding pairs.
    pub rope_pairs: RopePairs,
    /// The non-linearity of the feed-forward part, where a file does not say another.
    pub activation: Activation,
    /// True if embeddings are multiplied by the square root of their width.
    pub scales_embedding: bool,
    /// Its windows of attention, which a file gives a size; `None`: it has none.
    pub windows: Option<Windows>,
    /// Names of its tensors.
    pub tensors: TensorNames,
}

/// Pairing of the elements of a head in rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Element i with i + dim / 2 (NEOX).
    RotateHalf,
    /// Element 2i with 2i + 1 (NORM).
    Interleaved,
}

/// The gated non-linearity of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// max(0, gate)^2 * up
    Relu2,
    /// silu(gate) * up
    Silu,
    /// gelu(gate) * up, GELU by its approximation with tanh
    Gelu,
}

/// The names of tensors, those of a layer without `blk.N.` and `.weight`: see [`layer_tensor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorNames {
    /// `[vocab][hidden]`
    pub embedding: &'static str,
    /// `[vocab][hidden]`; a file without it has the embedding for a head.
    pub head: &'static str,
    /// The norm before the head, `[hidden]`.
    pub output_norm: &'static str,
    /// Divisors of the rotary frequencies, `[rope_dim / 2]`, optional in a file; `None`: none are
    /// read.
    pub rope_factors: Option<&'static str>,
    /// The norm before attention, `[hidden]`.
    pub attn_norm: &'static str,
    /// q, k and v: `[q_dim][hidden]`, `[kv_dim][hidden]`, `[kv_dim][hidden]`.
    pub qkv: [&'static str; 3],
    /// The norms of each query head and of each key head before they are rotated, `[head_dim]`; `None`:
    /// there are none.
    pub attn_qk_norms: Option<[&'static str; 2]>,
    /// The norm before `attn_output`, `[q_dim]`; `None`: there is none.
    pub attn_sub_norm: Option<&'static str>,
    /// `[hidden][q_dim]`
    pub attn_output: [&'static str; 1],
    /// The norm of attention's output before it is added, `[hidden]`; `None`: there is none.
    pub attn_post_norm: Option<&'static str>,
    /// The norm before the feed-forward part, `[hidden]`.
    pub ffn_norm: &'static str,
    /// gate and up: `[ffn][hidden]`, `[ffn][hidden]`.
    pub gate_up: [&'static str; 2],
    /// The norm before `down`, `[ffn]`; `None`: there is none.
    pub ffn_sub_norm: Option<&'static str>,
    /// `[hidden][ffn]`
    pub down: [&'static str; 1],
    /// The norm of the feed-forward part's output before it is added, `[hidden]`; `None`: there is none.
    pub ffn_post_norm: Option<&'static str>,
    /// Norms of the input of each matrix, all of which a file has, or none; `None`: there are none.
    pub norms_in: Option<NormsIn>,
}

/// The names of the norms of each matrix's own input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormsIn {
    /// Of q, k and v, behind that of all of them, `[hidden]`.
    pub qkv: [&'static str; 3],
    /// Of `attn_output`, `[q_dim]`.
    pub attn_output: &'static str,
    /// Of gate and up, behind that of both, `[hidden]`.
    pub gate_up: [&'static str; 2],
    /// Of `down`, `[ffn]`.
    pub down: &'static str,
}

/// BitNet's embedding models.
const NORMS_IN: NormsIn = NormsIn {
    qkv: ["attn_q_norm_in", "attn_k_norm_in", "attn_v_norm_in"],
    attn_output: "attn_output_norm_in",
    gate_up: ["ffn_gate_norm_in", "ffn_up_norm_in"],
    down: "ffn_down_norm_in",
};

/// llama.cpp's names, with sub-norms and without factors of rotary frequencies.
const NAMES: TensorNames = TensorNames {
    embedding: EMBEDDING,
    head: HEAD,
    output_norm: "output_norm.weight",
    rope_factors: None,
    attn_norm: "attn_norm",
    qkv: ["attn_q", "attn_k", "attn_v"],
    attn_qk_norms: None,
    attn_sub_norm: Some("attn_sub_norm"),
    attn_output: ["attn_output"],
    attn_post_norm: None,
    ffn_norm: "ffn_norm",
    gate_up: ["ffn_gate", "ffn_up"],
    ffn_sub_norm: Some("ffn_sub_norm"),
    down: ["ffn_down"],
    ffn_post_norm: None,
    norms_in: None,
};

/// Name of the embedding in files of any architecture.
pub const EMBEDDING: &str = "token_embd.weight";
/// Name of the head in files of any architecture; a file without it uses the embedding.
pub const HEAD: &str = "output.weight";

/// microsoft/BitNet-b1.58-2B-4T.
pub static BITNET_B158: Architecture = Architecture {
    name: "bitnet-b1.58",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Relu2,
    scales_embedding: false,
    windows: None,
    tensors: NAMES,
};

/// The same model under its older name.
pub static BITNET_25: Architecture = Architecture {
    name: "bitnet-25",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Relu2,
    scales_embedding: false,
    windows: None,
    tensors: NAMES,
};

/// 1bitLLM/bitnet_b1_58-large and -3B.
pub static BITNET: Architecture = Architecture {
    name: "bitnet",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    scales_embedding: false,
    windows: None,
    tensors: NAMES,
};

/// Names without sub-norms.
const PLAIN: TensorNames = TensorNames { attn_sub_norm: None, ffn_sub_norm: None, ..NAMES };

/// Names with norms of q and k.
const HEAD_NORMS: TensorNames = TensorNames {
    attn_qk_norms: Some(["attn_q_norm", "attn_k_norm"]),
    norms_in: Some(NORMS_IN),
    ..PLAIN
};

/// Ternary Bonsai, and the larger of BitNet's embedding models: head norms, and no bias.
pub static QWEN3: Architecture = Architecture {
    name: "qwen3",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    scales_embedding: false,
    windows: None,
    tensors: HEAD_NORMS,
};

/// Qwen2 and 2.5, whose q, k and v have biases.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    scales_embedding: false,
    windows: None,
    tensors: PLAIN,
};

/// Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    rope_pairs: RopePairs::Interleaved,
    activation: Activation::Silu,
    scales_embedding: false,
    windows: None,
    tensors: TensorNames { rope_factors: Some("rope_freqs.weight"), ..PLAIN },
};

/// Names with norms of the outputs of both parts of a layer.
const POST_NORMS: TensorNames = TensorNames {
    attn_post_norm: Some("post_attention_norm"),
    ffn_post_norm: Some("post_ffw_norm"),
    ..HEAD_NORMS
};

/// Gemma 3, and the smaller of BitNet's embedding models.
pub static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Gelu,
    scales_embedding: true,
    windows: Some(Windows::Behind),
    tensors: POST_NORMS,
};

/// EmbeddingGemma: a Gemma 3 whose tokens see all of their text.
pub static GEMMA_EMBEDDING: Architecture = Architecture {
    name: "gemma-embedding",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Gelu,
    scales_embedding: true,
    windows: Some(Windows::Around),
    tensors: POST_NORMS,
};

/// All architectures that this runtime runs.
pub static ARCHITECTURES: [&Architecture; 8] =
    [&BITNET_B158, &BITNET_25, &BITNET, &LLAMA, &QWEN3, &QWEN2, &GEMMA3, &GEMMA_EMBEDDING];

/// Returns the full name of a tensor of a layer.
#[must_use]
pub fn layer_tensor(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}.weight")
}

impl Architecture {
    /// Returns the architecture of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.into_iter().find(|architecture| architecture.name == name)
    }

    /// Returns the names of all, separated by commas.
    #[must_use]
    pub fn names() -> String {
        ARCHITECTURES.map(|architecture| architecture.name).join(", ")
    }

    /// Returns the ternary matrices of a layer that a role multiplies with one input, by name.
    #[must_use]
    pub fn matrices(&self, role: Role) -> &[&'static str] {
        let TensorNames { qkv, attn_output, gate_up, down, .. } = &self.tensors;
        match role {
            Role::Qkv => qkv,
            Role::AttnOutput => attn_output,
            Role::GateUp => gate_up,
            Role::Down => down,
            _ => &[],
        }
    }
}

/// Serialised as its name.
impl Serialize for Architecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static Architecture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Architecture::find(&name).ok_or_else(|| {
            let known = Architecture::names();
            de::Error::custom(format_args!("architecture {name:?} is none of {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_known_by_name() {
        for architecture in ARCHITECTURES {
            assert!(std::ptr::eq(Architecture::find(architecture.name).unwrap(), architecture));
            let json = serde_json::to_string(architecture).unwrap();
            assert_eq!(json, format!("{:?}", architecture.name));
            assert_eq!(serde_json::from_str::<&Architecture>(&json).unwrap(), architecture);
        }
        assert_eq!(
            Architecture::names(),
            "bitnet-b1.58, bitnet-25, bitnet, llama, qwen3, qwen2, gemma3, gemma-embedding"
        );
        let error = serde_json::from_str::<&Architecture>("\"gptj\"").unwrap_err();
        assert!(error.to_string().contains("bitnet-25"), "{error}");
    }
}
