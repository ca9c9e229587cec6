//! What becomes of everything that a file says: each metadata key that llama.cpp knows, and each tensor,
//! is read, or says nothing about the arithmetic, or changes nothing at its value, or is refused.
//!
//! The keys are those of llama.cpp's `LLM_KV_NAMES` (src/llama-arch.cpp). `{arch}` stands for the name
//! of the file's architecture, and a `*` at the end for anything. A key that is not listed is named to
//! the user.

use super::config::Config;
use crate::error::Result;
use crate::file::gguf::{Gguf, TensorInfo, Value};

/// Treatment of a key.
#[derive(Clone, Copy)]
pub enum Treatment {
    /// Read where it is needed; a value that this engine does not serve is refused there.
    Read,
    /// Says nothing about the arithmetic of a model that runs here: it describes the file, is for other
    /// uses than generation, or tells more of a part that another key says is not there.
    Description,
    /// Changes nothing at some values; any other is refused.
    Neutral(Neutral),
}

/// The values at which a key changes nothing.
#[derive(Clone, Copy)]
pub struct Neutral {
    /// The values, for messages.
    pub values: &'static str,
    holds: fn(&Value, &Config) -> bool,
}

/// An operation that no architecture here has.
const ABSENT: Treatment = Treatment::Neutral(Neutral {
    values: "0, false or an empty list",
    holds: |v, _| is_nothing(v),
});
/// A factor: llama.cpp, too, takes 0 for none.
const FACTOR: Treatment = Treatment::Neutral(Neutral {
    values: "1, or 0 for none",
    holds: |v, _| all(v, |x| x == 1.0 || x == 0.0),
});
/// Positions that a token sees; read for architectures that have windows.
const WINDOW: Treatment = Treatment::Neutral(Neutral {
    values: "0, or no less than the context length: this architecture has no window here",
    holds: |v, config| {
        config.architecture.windows.is_some() || all(v, |x| x == 0.0 || x >= config.context as f64)
    },
});
/// The factor of scores.
const SCALE: Treatment = Treatment::Neutral(Neutral {
    values: "1 / sqrt(attention.key_length), or 0 for it",
    holds: |v, config| {
        let own = 1.0 / (config.head_dim as f64).sqrt();
        all(v, |x| x == 0.0 || (x / own - 1.0).abs() < 1e-6)
    },
});
const HIDDEN: Treatment = Treatment::Neutral(Neutral {
    values: "the embedding length",
    holds: |v, config| all(v, |x| x == 0.0 || x == config.hidden as f64),
});
const MODEL: Treatment =
    Treatment::Neutral(Neutral { values: "'model'", holds: |v, _| v.as_str() == Some("model") });
const NONE: Treatment = Treatment::Neutral(Neutral {
    values: "no such key: what it says is not implemented",
    holds: |_, _| false,
});
/// Weights in a rotated basis.
const ROTATED: Treatment = Treatment::Neutral(Neutral {
    values: "no such key: weights in a rotated basis are not implemented, which need a Hadamard transform \
             of the activations before each product",
    holds: |_, _| false,
});
/// A list that must be empty.
const EMPTY: Treatment = Treatment::Neutral(Neutral {
    values: "an empty list",
    holds: |v, _| matches!(v, Value::Array(array) if array.is_empty()),
});

/// The treatment of some keys.
struct Rule {
    treatment: Treatment,
    keys: &'static [&'static str],
}

/// All rules; of several that match a key the first counts.
static RULES: &[Rule] = &[
    Rule {
        treatment: Treatment::Read,
        keys: &[
            "general.architecture",
            "general.alignment",
            // What samples where the user says nothing.
            "general.sampling.*",
            "{arch}.vocab_size",
            "{arch}.context_length",
            "{arch}.embedding_length",
            "{arch}.block_count",
            "{arch}.feed_forward_length",
            "{arch}.hidden_activation",
            "{arch}.pooling_type",
            "{arch}.attention.head_count",
            "{arch}.attention.head_count_kv",
            "{arch}.attention.key_length",
            "{arch}.attention.value_length",
            "{arch}.attention.layer_norm_rms_epsilon",
            "{arch}.attention.causal",
            "{arch}.attention.sliding_window_pattern",
            "{arch}.attention.key_length_swa",
            "{arch}.attention.value_length_swa",
            "{arch}.rope.freq_base_swa",
            "{arch}.rope.dimension_count_swa",
            "{arch}.rope.dimension_count",
            "{arch}.rope.freq_base",
            "{arch}.rope.scale_linear",
            "{arch}.rope.scaling.type",
            "{arch}.rope.scaling.factor",
            "{arch}.rope.scaling.attn_factor",
            "{arch}.rope.scaling.original_context_length",
            "{arch}.rope.scaling.yarn_log_multiplier",
            "{arch}.rope.scaling.yarn_ext_factor",
            "{arch}.rope.scaling.yarn_attn_factor",
            "{arch}.rope.scaling.yarn_beta_fast",
            "{arch}.rope.scaling.yarn_beta_slow",
            "split.no",
            "split.count",
            "split.tensors.count",
            "tokenizer.ggml.model",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.scores",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.eot_token_id",
            "tokenizer.ggml.eom_token_id",
            "tokenizer.ggml.unknown_token_id",
            "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_eos_token",
            "tokenizer.ggml.add_space_prefix",
            "tokenizer.ggml.fim_pad_token_id",
            "tokenizer.ggml.fim_rep_token_id",
            "tokenizer.ggml.fim_sep_token_id",
        ],
    },
    Rule { treatment: MODEL, keys: &["general.type"] },
    // Precision of single tensors' products.
    Rule { treatment: NONE, keys: &["general.tensor_extra.*"] },
    Rule { treatment: Treatment::Description, keys: &["general.*", "quantize.*"] },
    Rule {
        // The layout that a converter found weights in; the file's own is that of its architecture.
        treatment: Treatment::Description,
        keys: &["{arch}.tensor_data_layout"],
    },
    Rule {
        // Of layer norms and group norms, which no architecture here has.
        treatment: Treatment::Description,
        keys: &[
            "{arch}.attention.layer_norm_epsilon",
            "{arch}.attention.group_norm_epsilon",
            "{arch}.attention.group_norm_groups",
        ],
    },
    Rule {
        // Classes of texts.
        treatment: Treatment::Description,
        keys: &["{arch}.classifier.output_labels", "{arch}.classifier.pooling_type"],
    },
    Rule {
        // Of experts, which expert_count says are not there.
        treatment: Treatment::Description,
        keys: &[
            "{arch}.expert_used_count",
            "{arch}.expert_feed_forward_length",
            "{arch}.expert_chunk_feed_forward_length",
            "{arch}.expert_group_count",
            "{arch}.expert_group_used_count",
            "{arch}.expert_weights_scale",
            "{arch}.expert_weights_norm",
            "{arch}.expert_gating_func",
            "{arch}.expert_group_scale",
            "{arch}.expert_latent_length",
            "{arch}.experts_per_group",
            "{arch}.moe_every_n_layers",
            "{arch}.moe_latent_size",
            "{arch}.interleave_moe_layer_step",
            "{arch}.router_logit_softcapping",
        ],
    },
    Rule {
        // That there was training after a scaling of positions.
        treatment: Treatment::Description,
        keys: &["{arch}.rope.scaling.finetuned"],
    },
    Rule { treatment: WINDOW, keys: &["{arch}.attention.sliding_window"] },
    Rule { treatment: SCALE, keys: &["{arch}.attention.scale"] },
    Rule { treatment: HIDDEN, keys: &["{arch}.embedding_length_out"] },
    Rule {
        treatment: FACTOR,
        keys: &[
            "{arch}.logit_scale",
            "{arch}.residual_scale",
            "{arch}.embedding_scale",
            "{arch}.attention.output_scale",
            "{arch}.attention.value_scale",
        ],
    },
    Rule {
        treatment: ABSENT,
        keys: &[
            // Experts.
            "{arch}.expert_count",
            "{arch}.expert_shared_count",
            "{arch}.expert_shared_feed_forward_length",
            "{arch}.leading_dense_block_count",
            "{arch}.swiglu_clamp_exp",
            "{arch}.swiglu_clamp_shexp",
            // Other activations, other inputs of layers, other orders of layers.
            "{arch}.activation.*",
            "xielu.*",
            "{arch}.embedding_length_per_layer_input",
            "{arch}.features_length",
            "{arch}.attn_res.block_size",
            "{arch}.use_parallel_residual",
            "{arch}.norm_before_residual",
            "{arch}.norm_before_fc",
            "{arch}.swin_norm",
            "{arch}.num_loops",
            "{arch}.skip_loop_final_norm",
            "{arch}.hrm.*",
            "{arch}.hyper_connection.*",
            "{arch}.ple.*",
            "{arch}.hash_layer_count",
            "{arch}.n_deepstack_layers",
            "{arch}.deepstack_mapping",
            // Further layers that predict more than one token, drafts, adapters.
            "{arch}.nextn_predict_layers",
            "{arch}.target_layers",
            "{arch}.target_hidden_size",
            "{arch}.block_size",
            "{arch}.conv_kernel_size",
            "{arch}.conv_group_size",
            "{arch}.selector_rank",
            "{arch}.selector_top_k",
            "{arch}.adapters.*",
            "adapter.*",
            // Caps of scores and logits, other attention.
            "{arch}.attn_logit_softcapping",
            "{arch}.final_logit_softcapping",
            "{arch}.full_attention_interval",
            "{arch}.attention.max_alibi_bias",
            "{arch}.attention.clamp_kqv",
            "{arch}.attention.q_lora_rank",
            "{arch}.attention.kv_lora_rank",
            "{arch}.attention.kv_lora_rank_swa",
            "{arch}.attention.decay_lora_rank",
            "{arch}.attention.iclr_lora_rank",
            "{arch}.attention.value_residual_mix_lora_rank",
            "{arch}.attention.gate_lora_rank",
            "{arch}.attention.relative_buckets_count",
            "{arch}.attention.rope_pattern",
            "{arch}.attention.temperature_length",
            "{arch}.attention.temperature_scale",
            "{arch}.attention.key_length_mla",
            "{arch}.attention.value_length_mla",
            "{arch}.attention.key_length_mla_swa",
            "{arch}.attention.value_length_mla_swa",
            "{arch}.attention.indexer.*",
            "{arch}.attention.output_group_count",
            "{arch}.attention.output_lora_rank",
            "{arch}.attention.compress_rope_freq_base",
            "{arch}.attention.compress_ratios",
            "{arch}.attention.shared_kv_layers",
            "{arch}.attention.recurrent_layers",
            "{arch}.rope.dimension_sections",
            "{arch}.rope.scaling.alpha",
            // Encoders, recurrent networks, convolutions, audio, dense layers behind an embedding.
            "{arch}.decoder_start_token_id",
            "{arch}.decoder_block_count",
            "{arch}.rescale_every_n_layers",
            "{arch}.time_mix_extra_dim",
            "{arch}.time_decay_extra_dim",
            "{arch}.token_shift_count",
            "{arch}.ssm.*",
            "{arch}.kda.*",
            "{arch}.wkv.*",
            "{arch}.posnet.*",
            "{arch}.convnext.*",
            "{arch}.shortconv.*",
            "{arch}.dense_2_feat_in",
            "{arch}.dense_2_feat_out",
            "{arch}.dense_3_feat_in",
            "{arch}.dense_3_feat_out",
        ],
    },
    Rule { treatment: ROTATED, keys: &["prism.hadamard.*"] },
    Rule { treatment: NONE, keys: &["prism.*"] },
    Rule { treatment: EMPTY, keys: &["tokenizer.ggml.suppress_tokens"] },
    Rule {
        // Tokens and rules for other uses than a text to go on with, and for other kinds of tokenizers
        // than tokenizer.ggml.model says.
        treatment: Treatment::Description,
        keys: &[
            "tokenizer.chat_template*",
            "tokenizer.huggingface.json",
            "tokenizer.rwkv.world",
            "tokenizer.ggml.token_type_count",
            "tokenizer.ggml.seperator_token_id",
            "tokenizer.ggml.padding_token_id",
            "tokenizer.ggml.cls_token_id",
            "tokenizer.ggml.mask_token_id",
            "tokenizer.ggml.add_sep_token",
            "tokenizer.ggml.remove_extra_whitespaces",
            "tokenizer.ggml.precompiled_charsmap",
            "tokenizer.ggml.normalizer.*",
            "tokenizer.ggml.fim_pre_token_id",
            "tokenizer.ggml.fim_suf_token_id",
            "tokenizer.ggml.fim_mid_token_id",
            "tokenizer.ggml.prefix_token_id",
            "tokenizer.ggml.suffix_token_id",
            "tokenizer.ggml.middle_token_id",
        ],
    },
];

/// Returns the treatment of a key in a file of an architecture; `None` for a key that is not known.
#[must_use]
pub fn treatment(architecture: &str, key: &str) -> Option<Treatment> {
    let own = key.strip_prefix(architecture).filter(|rest| rest.starts_with('.'));
    let is = |rule: &str| {
        let (rule, key) = match (rule.strip_prefix("{arch}"), own) {
            (Some(rule), Some(own)) => (rule, own),
            (None, _) => (rule, key),
            (Some(_), None) => return false,
        };
        rule.strip_suffix('*').map_or(rule == key, |start| key.starts_with(start))
    };
    RULES.iter().find(|rule| rule.keys.iter().copied().any(is)).map(|rule| rule.treatment)
}

/// Checks every key of a file.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) for a key that says something about the arithmetic that is not
/// offered.
pub(super) fn check_keys(gguf: &Gguf, config: &Config) -> Result<()> {
    for (key, value) in gguf.metadata() {
        if let Some(Treatment::Neutral(neutral)) = treatment(config.architecture.name, key)
            && !(neutral.holds)(value, config)
        {
            return Err(gguf.key_error(key, value, neutral.values));
        }
    }
    Ok(())
}

/// Returns the keys that are not known, in the order of the file.
#[must_use]
pub fn unknown_keys<'g>(gguf: &'g Gguf, config: &Config) -> Vec<&'g str> {
    let architecture = config.architecture.name;
    let keys = gguf.metadata().map(|(key, _)| key);
    keys.filter(|key| treatment(architecture, key).is_none()).collect()
}

/// Checks a tensor that the architecture does not use: it may be there if it changes nothing.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) naming the tensor, and what would have to be in it.
pub(crate) fn check_unused(gguf: &Gguf, config: &Config, tensor: &TensorInfo) -> Result<()> {
    let name = tensor.name.as_str();
    // Frequencies of rotary embedding, which are computed from the hyperparameters; llama.cpp, too, has
    // a name for them and never reads them.
    if name.strip_suffix(".weight").unwrap_or(name).ends_with(".attn_rot_embd") {
        return Ok(());
    }
    let factors = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    let neutral = if name.ends_with(".bias") {
        Some(0.0)
    } else if factors.contains(&name) || name.ends_with(".scale") || name.ends_with(".input_scale")
    {
        Some(1.0)
    } else {
        None
    };
    let architecture = config.architecture.name;
    let expected = match neutral {
        Some(value) if holds_only(gguf, tensor, value) => return Ok(()),
        Some(value) => {
            format!("none, or {value} throughout: {architecture} has no such operation here")
        }
        None => format!("no such tensor: {architecture} has no such operation here"),
    };
    Err(gguf.tensor_error(name, format_args!("{} {:?}", tensor.ty, tensor.dims), expected))
}

/// True if all elements of a tensor are floats of this value.
fn holds_only(gguf: &Gguf, tensor: &TensorInfo, value: f32) -> bool {
    let bytes = gguf.tensor_bytes(tensor);
    let (Some(rows), Ok(n)) = (tensor.ty.format().rows(), usize::try_from(tensor.elements()))
    else {
        return false;
    };
    // A few kB at most in real files: one value for each output of a matrix.
    const MOST: usize = 1 << 24;
    if n > MOST || rows.head.row_bytes(n) != bytes.len() {
        return false;
    }
    let mut values = vec![0.0; n];
    (rows.dequantise)(bytes, &mut values);
    values.iter().all(|&own| own == value)
}

/// True if all numbers of a value, which has no others, are such.
fn all(value: &Value, is: impl Fn(f64) -> bool) -> bool {
    value.items().all(|item| number(&item).is_some_and(&is))
}

fn is_nothing(value: &Value) -> bool {
    value.items().all(|item| item == Value::Bool(false) || number(&item) == Some(0.0))
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::F32(x) => Some(x.into()),
        Value::F64(x) => Some(x),
        _ => value.as_i128().map(|n| n as f64),
    }
}
