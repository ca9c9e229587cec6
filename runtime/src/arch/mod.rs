//! Model architectures: one value for each, with its operations and the names of its tensors.
//!
//! A transformer layer is the same in all of them: attention with grouped key-value heads, then a
//! gated feed-forward part, ternary matrices throughout, an RMS norm before either. An
//! [`Architecture`] holds the differences; [`config`] and [`rope`] read the sizes of a model from its file.

pub mod config;
pub mod policy;
pub mod rope;

use bitnet_profiles::Role;
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
    /// The norm before the feed-forward part, `[hidden]`.
    pub ffn_norm: &'static str,
    /// gate and up: `[ffn][hidden]`, `[ffn][hidden]`.
    pub gate_up: [&'static str; 2],
    /// The norm before `down`, `[ffn]`; `None`: there is none.
    pub ffn_sub_norm: Option<&'static str>,
    /// `[hidden][ffn]`
    pub down: [&'static str; 1],
}

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
    ffn_norm: "ffn_norm",
    gate_up: ["ffn_gate", "ffn_up"],
    ffn_sub_norm: Some("ffn_sub_norm"),
    down: ["ffn_down"],
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
    tensors: NAMES,
};

/// The same model under its older name.
pub static BITNET_25: Architecture = Architecture {
    name: "bitnet-25",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Relu2,
    tensors: NAMES,
};

/// 1bitLLM/bitnet_b1_58-large and -3B.
pub static BITNET: Architecture = Architecture {
    name: "bitnet",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    tensors: NAMES,
};

/// Names without sub-norms.
const PLAIN: TensorNames = TensorNames { attn_sub_norm: None, ffn_sub_norm: None, ..NAMES };

/// Ternary Bonsai: head norms, and no bias.
pub static QWEN3: Architecture = Architecture {
    name: "qwen3",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    tensors: TensorNames { attn_qk_norms: Some(["attn_q_norm", "attn_k_norm"]), ..PLAIN },
};

/// Qwen2 and 2.5, whose q, k and v have biases.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    rope_pairs: RopePairs::RotateHalf,
    activation: Activation::Silu,
    tensors: PLAIN,
};

/// Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    rope_pairs: RopePairs::Interleaved,
    activation: Activation::Silu,
    tensors: TensorNames { rope_factors: Some("rope_freqs.weight"), ..PLAIN },
};

/// All architectures that this runtime runs.
pub static ARCHITECTURES: [&Architecture; 6] =
    [&BITNET_B158, &BITNET_25, &BITNET, &LLAMA, &QWEN3, &QWEN2];

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
        assert_eq!(Architecture::names(), "bitnet-b1.58, bitnet-25, bitnet, llama, qwen3, qwen2");
        let error = serde_json::from_str::<&Architecture>("\"gptj\"").unwrap_err();
        assert!(error.to_string().contains("bitnet-25"), "{error}");
    }
}
