//! Hyperparameters of a Hugging Face model, from its `config.json`, and the keys that say the same in GGUF.
#![forbid(unsafe_code)]

use std::f64::consts::PI;
use std::path::Path;

use bitnet_profiles::Shape;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::arch::mask::Mask;
use bitnet_runtime::arch::rope::RopeScaling;
use bitnet_runtime::arch::{self, Activation, Architecture};
use bitnet_runtime::error::{Result, quoted};
use bitnet_runtime::file::gguf::{Array, Value};
use serde_json::Value as Json;

use super::embedding::{self, Embedding};
use super::json::Object;

/// Longest `config.json`.
const MAX_CONFIG: u64 = 1 << 20;
/// The most layers, and positions, of a model that is run.
const MAX_LAYERS: usize = 1024;
const MAX_CONTEXT: usize = 1 << 20;

/// A model as its `config.json` describes it, and as files beside it say how it embeds texts.
#[derive(Debug)]
pub struct Description {
    /// Hyperparameters but for those of `more`, which have no effect on shapes. The vocabulary is what the
    /// file says; the embedding's rows count.
    pub config: Config,
    /// The form of the ternary matrices.
    pub weights: Weights,
    /// True if the embedding is the head, too; `None`: the file does not say.
    pub tied: Option<bool>,
    /// Use as an embedding model, if it is one.
    pub embedding: Option<Embedding>,
    /// Keys on scaled positions, windows and pooling, without the architecture's name.
    more: Vec<(String, Value)>,
    /// Divisors of the rotary frequencies, `[rope_dim / 2]`.
    pub rope_factors: Option<Vec<f32>>,
    /// The file itself, for ids of tokens.
    pub file: Object,
}

/// Form of ternary matrices in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Codes, four to a byte, and a scale that the layer multiplies by.
    PackedMultiply,
    /// Codes, four to a byte, and a scale that the layer divides by.
    PackedDivide,
    /// Floats that the layer rounds to ternary ones by the mean of their magnitudes.
    Masters,
    /// Floats as they are.
    Floats,
}

/// Architectures of Hugging Face, in lower case, and theirs in GGUF. That of BitNet depends on the
/// activation, that of Gemma 3 on the mask. Those whose names end in `model` have no head.
const KNOWN: [(&str, &Architecture); 8] = [
    ("bitnetforcausallm", &arch::BITNET_B158),
    ("llamaforcausallm", &arch::LLAMA),
    ("mistralforcausallm", &arch::LLAMA),
    ("qwen2forcausallm", &arch::QWEN2),
    ("qwen3forcausallm", &arch::QWEN3),
    ("qwen3model", &arch::QWEN3),
    ("gemma3forcausallm", &arch::GEMMA3),
    ("gemma3textmodel", &arch::GEMMA3),
];
const NAMES: &str = "BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM, MistralForCausalLM, \
                     Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3Model, Gemma3ForCausalLM or Gemma3TextModel";
/// Elements of a head where `config.json` has no `head_dim`, as in transformers.
const HEAD_OF_QWEN3: usize = 128;
const HEAD_OF_GEMMA: usize = 256;
/// Of so many layers of Gemma 3 the last has no window, where `config.json` does not say which have none.
const PATTERN_OF_GEMMA: usize = 6;

impl Description {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`Error::Io`](bitnet_runtime::Error::Io) when it cannot be read,
    /// [`Error::Model`](bitnet_runtime::Error::Model) for what is missing, out of range, or not run here.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = Object::read(&folder.join("config.json"), MAX_CONFIG)?;
        let Class { architecture, activation, has_head } = class(&file)?;
        let gemma = is_gemma(architecture);
        let required = |key: &str, most: usize| file.require(key, file.size(key, most)?);
        let hidden = required("hidden_size", Shape::MAX_COLS)?;
        let heads = required("num_attention_heads", Shape::MAX_COLS)?;
        let kv_heads = file.size("num_key_value_heads", Shape::MAX_COLS)?;
        let kv_heads = match kv_heads {
            // That of transformers is no other number of the file.
            None if gemma => file.require("num_key_value_heads", kv_heads)?,
            own => own.unwrap_or(heads),
        };
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(file.error("num_key_value_heads", kv_heads, expected));
        }
        let head_dim = match file.size("head_dim", Shape::MAX_COLS)? {
            Some(dim) => dim,
            None if std::ptr::eq(architecture, &arch::QWEN3) => HEAD_OF_QWEN3,
            None if gemma => HEAD_OF_GEMMA,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads, {heads}, or head_dim");
                return Err(file.error("hidden_size", hidden, expected));
            }
        };
        if head_dim % 2 == 1 || heads.checked_mul(head_dim).is_none_or(|all| all > Shape::MAX_COLS)
        {
            let found = format!("{heads} heads of {head_dim} elements");
            let expected =
                format!("an even number of elements, at most {} in all", Shape::MAX_COLS);
            return Err(file.error("num_attention_heads", found, expected));
        }
        let eps = file.require("rms_norm_eps", file.number("rms_norm_eps")?)? as f32;
        if !(eps > 0.0 && eps <= 1.0) {
            return Err(file.error("rms_norm_eps", eps, "more than 0, at most 1"));
        }
        let scaling = scaling(&file, gemma)?;
        let theta = scaling.as_ref().map_or(Ok(None), |own| own.number("rope_theta"))?;
        let theta = theta.or(file.number("rope_theta")?).unwrap_or(default_theta(architecture));
        if !(1.0..=1e12).contains(&theta) {
            return Err(file.error("rope_theta", theta, "1 to 1e12"));
        }
        check_scores(&file, architecture, head_dim)?;
        let config = Config {
            architecture,
            activation,
            layers: required("num_hidden_layers", MAX_LAYERS)?,
            hidden,
            ffn: required("intermediate_size", Shape::MAX_COLS)?,
            heads,
            kv_heads,
            head_dim,
            rope_dim: head_dim,
            rope_base: theta as f32,
            rope_scaling: RopeScaling::NONE,
            mask: Mask::CAUSAL,
            norms_in: false,
            eps,
            context: required("max_position_embeddings", MAX_CONTEXT)?,
            vocab: required("vocab_size", Shape::MAX_ROWS)?,
        };
        let (mut more, rope_factors) = match scaling {
            None => (Vec::new(), None),
            Some(own) => rope_scaling(&own, &config)?,
        };
        if gemma {
            more.extend(windows(&file, config.layers)?);
        } else {
            check_window(&file)?;
        }
        let embedding = embedding::read(folder, has_head)?;
        let pooling = embedding.map(|own| Value::U32(own.pooling as u32));
        more.extend(pooling.map(|number| ("pooling_type".to_owned(), number)));
        Ok(Self {
            weights: weights(&file, architecture)?,
            tied: file.truth("tie_word_embeddings")?,
            embedding,
            config,
            more,
            rope_factors,
            file,
        })
    }

    /// The keys of the architecture, in the order of files that bitnet.cpp reads, for a vocabulary of so
    /// many tokens.
    #[must_use]
    pub fn keys(&self, vocab: usize) -> Vec<(String, Value)> {
        let c = &self.config;
        let key = |name: &str| format!("{}.{name}", c.architecture.name);
        // All are bounded far below 2^32.
        let number = |n: usize| Value::U32(n as u32);
        let mut keys = vec![
            (key("block_count"), number(c.layers)),
            (key("context_length"), number(c.context)),
            (key("embedding_length"), number(c.hidden)),
            (key("feed_forward_length"), number(c.ffn)),
            (key("attention.head_count"), number(c.heads)),
            (key("attention.head_count_kv"), number(c.kv_heads)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(c.eps)),
            (key("rope.freq_base"), Value::F32(c.rope_base)),
            (key("rope.dimension_count"), number(c.rope_dim)),
            (key("vocab_size"), number(vocab)),
        ];
        if c.heads * c.head_dim != c.hidden {
            keys.push((key("attention.key_length"), number(c.head_dim)));
            keys.push((key("attention.value_length"), number(c.head_dim)));
        }
        if c.activation != c.architecture.activation {
            let name = match c.activation {
                Activation::Relu2 => "relu2",
                Activation::Silu => "silu",
                Activation::Gelu => "gelu_pytorch_tanh",
            };
            keys.push((key("hidden_activation"), Value::Str(name.into())));
        }
        keys.extend(self.more.iter().map(|(name, value)| (key(name), value.clone())));
        keys
    }
}

/// True for the architectures of BitNet, whose layers round their weights themselves.
#[must_use]
pub fn is_bitnet(architecture: &Architecture) -> bool {
    [&arch::BITNET_B158, &arch::BITNET].iter().any(|own| std::ptr::eq(*own, architecture))
}

/// True for the architectures of Gemma, whose norms multiply by 1 + w.
#[must_use]
pub fn is_gemma(architecture: &Architecture) -> bool {
    [&arch::GEMMA3, &arch::GEMMA_EMBEDDING].iter().any(|own| std::ptr::eq(*own, architecture))
}

/// A class of transformers.
struct Class {
    architecture: &'static Architecture,
    activation: Activation,
    has_head: bool,
}

/// Reads the class of a model.
fn class(file: &Object) -> Result<Class> {
    let list = file.require("architectures", file.get("architectures"))?;
    let name = list.get(0).and_then(|name| name.as_str()).unwrap_or_default();
    let lower = name.to_ascii_lowercase();
    let known = KNOWN.iter().find(|(known, _)| *known == lower);
    let (_, mut architecture) = *known.ok_or_else(|| {
        if lower == "gemma3forconditionalgeneration" {
            let expected = "Gemma3ForCausalLM: a model that sees pictures is not run here, but its \
                            language model, saved alone, is";
            return file.error("architectures", quoted(name), expected);
        }
        file.error("architectures", quoted(name), NAMES)
    })?;
    let gemma = is_gemma(architecture);
    let key = if gemma { "hidden_activation" } else { "hidden_act" };
    let activation = match file.text(key)? {
        Some("relu2") => Activation::Relu2,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu_pytorch_tanh") => Activation::Gelu,
        None => architecture.activation,
        Some(other) => {
            return Err(file.error(key, quoted(other), "relu2, silu or gelu_pytorch_tanh"));
        }
    };
    if std::ptr::eq(architecture, &arch::BITNET_B158) && activation == Activation::Silu {
        architecture = &arch::BITNET;
    }
    if gemma && file.truth("use_bidirectional_attention")? == Some(true) {
        architecture = &arch::GEMMA_EMBEDDING;
    }
    Ok(Class { architecture, activation, has_head: !lower.ends_with("model") })
}

/// The base of the rotary positions where a configuration has none: that of transformers' class for
/// microsoft/bitnet-b1.58-2B-4T, for Gemma 3, and of all others.
fn default_theta(architecture: &Architecture) -> f64 {
    if std::ptr::eq(architecture, &arch::BITNET_B158) {
        500_000.0
    } else if is_gemma(architecture) {
        1_000_000.0
    } else {
        10_000.0
    }
}

/// Reads the form of the ternary matrices.
fn weights(file: &Object, architecture: &Architecture) -> Result<Weights> {
    let Some(own) = file.object("quantization_config")? else {
        let floats = if is_bitnet(architecture) { Weights::Masters } else { Weights::Floats };
        return Ok(floats);
    };
    match own.text("quant_method")? {
        Some("bitnet") => {}
        other => {
            let found = other.map_or("no such key".into(), quoted);
            return Err(own.error("quant_method", found, "bitnet"));
        }
    }
    let multiplies = match own.text("linear_class")? {
        None | Some("bitlinear") => false,
        Some("autobitlinear") => true,
        Some(other) => {
            return Err(own.error("linear_class", quoted(other), "bitlinear or autobitlinear"));
        }
    };
    if own.truth("use_rms_norm")? == Some(true) {
        let expected = "false: norms inside of linear layers are not run here";
        return Err(own.error("use_rms_norm", true, expected));
    }
    match own.text("quantization_mode")? {
        None | Some("offline") if multiplies => Ok(Weights::PackedMultiply),
        None | Some("offline") => Ok(Weights::PackedDivide),
        Some("online") => Ok(Weights::Masters),
        Some(other) => Err(own.error("quantization_mode", quoted(other), "online or offline")),
    }
}

/// Checks that attention sees the whole context.
fn check_window(file: &Object) -> Result<()> {
    let context = file.size("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(MAX_CONTEXT);
    let used = file.truth("use_sliding_window")? != Some(false);
    match file.number("sliding_window")?.filter(|&window| used && window < context as f64) {
        None => Ok(()),
        Some(window) => {
            let expected = format!("none, or at least max_position_embeddings, {context}");
            Err(file.error("sliding_window", window, expected))
        }
    }
}

/// Checks that scores of attention and logits are not bent, and divided by what heads of so many elements
/// have.
fn check_scores(file: &Object, architecture: &Architecture, head_dim: usize) -> Result<()> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = file.get(key) {
            let expected = "null: caps of scores and of logits are not run here";
            return Err(file.error(key, cap, expected));
        }
    }
    let key = "query_pre_attn_scalar";
    match file.number(key)?.or(is_gemma(architecture).then_some(HEAD_OF_GEMMA as f64)) {
        Some(other) if other != head_dim as f64 => {
            let expected = format!("head_dim, {head_dim}: another scale of scores is not run here");
            Err(file.error(key, other, expected))
        }
        _ => Ok(()),
    }
}

/// The object that describes rotary scaling, by its older or its newer name; of Gemma 3 that of layers
/// without a window.
fn scaling(file: &Object, gemma: bool) -> Result<Option<Object>> {
    let own = match file.object("rope_parameters")? {
        Some(own) => Some(own),
        None => file.object("rope_scaling")?,
    };
    match own {
        Some(own) if gemma => Ok(Some(own.object("full_attention")?.unwrap_or(own))),
        own => Ok(own),
    }
}

/// Reads the windows of Gemma 3's layers as keys: none where no layer has one.
fn windows(file: &Object, layers: usize) -> Result<Vec<(String, Value)>> {
    let windowed = windowed_layers(file, layers)?;
    if !windowed.contains(&true) {
        return Ok(Vec::new());
    }
    let size = file.require("sliding_window", file.size("sliding_window", MAX_CONTEXT)?)?;
    let mut keys = vec![("attention.sliding_window".to_owned(), Value::U32(size as u32))];
    let fits =
        |&period: &usize| (0..layers).all(|layer| windowed[layer] == ((layer + 1) % period > 0));
    let pattern = match [PATTERN_OF_GEMMA].into_iter().chain(2..=layers + 1).find(fits) {
        // What files without the key mean.
        Some(PATTERN_OF_GEMMA) => None,
        Some(period) => Some(Value::U32(period as u32)),
        None => Some(Value::Array(Array::Bool(windowed))),
    };
    keys.extend(pattern.map(|own| ("attention.sliding_window_pattern".to_owned(), own)));
    let local = match file.object("rope_parameters")? {
        Some(own) => own.object("sliding_attention")?,
        None => None,
    };
    let mut base = file.number("rope_local_base_freq")?;
    if let Some(local) = local {
        match local.text("rope_type")? {
            None | Some("default") => {}
            Some(other) => {
                let expected = "default: positions of layers with a window are not scaled here";
                return Err(local.error("rope_type", quoted(other), expected));
            }
        }
        base = local.number("rope_theta")?.or(base);
    }
    let base = Value::F32(base.unwrap_or(10_000.0) as f32);
    keys.push(("rope.freq_base_swa".to_owned(), base));
    Ok(keys)
}

/// Reads the layers of Gemma 3 that have a window.
fn windowed_layers(file: &Object, layers: usize) -> Result<Vec<bool>> {
    if let Some(types) = file.get("layer_types") {
        let windowed = |own: &Json| match own.as_str()? {
            "sliding_attention" => Some(true),
            "full_attention" => Some(false),
            _ => None,
        };
        let each: Option<Vec<bool>> =
            types.as_array().into_iter().flatten().map(windowed).collect();
        return each.filter(|each| each.len() == layers).ok_or_else(|| {
            let expected =
                format!("sliding_attention or full_attention for each of {layers} layers");
            file.error("layer_types", quoted(&types.to_string()), expected)
        });
    }
    let period = match file.size("sliding_window_pattern", MAX_LAYERS)? {
        Some(period) => Some(period),
        None => file.size("_sliding_window_pattern", MAX_LAYERS)?,
    };
    let period = period.unwrap_or(PATTERN_OF_GEMMA);
    Ok((0..layers).map(|layer| (layer + 1) % period > 0).collect())
}

/// Keys, without the architecture's name, and divisors of frequencies.
type Scaling = (Vec<(String, Value)>, Option<Vec<f32>>);

/// Reads rotary scaling.
fn rope_scaling(own: &Object, config: &Config) -> Result<Scaling> {
    let number = |key: &str| own.require(key, own.number(key)?).map(|n| n as f32);
    let kind = match own.text("rope_type")? {
        Some(kind) => Some(kind),
        None => own.text("type")?,
    };
    let text = |key: &str, value: &str| (format!("rope.scaling.{key}"), Value::Str(value.into()));
    let float = |key: &str, value: f32| (format!("rope.scaling.{key}"), Value::F32(value));
    let original = || -> Result<usize> {
        let key = "original_max_position_embeddings";
        Ok(own.size(key, MAX_CONTEXT)?.unwrap_or(config.context))
    };
    match kind {
        None | Some("default") => Ok((Vec::new(), None)),
        Some("linear") => {
            Ok((vec![text("type", "linear"), float("factor", number("factor")?)], None))
        }
        Some("yarn") => {
            let mut keys = vec![text("type", "yarn"), float("factor", number("factor")?)];
            let name = "rope.scaling.original_context_length".to_owned();
            keys.push((name, Value::U32(original()? as u32)));
            for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                keys.extend(own.number(key)?.map(|n| float(name, n as f32)));
            }
            for key in ["attention_factor", "mscale", "mscale_all_dim"] {
                if let Some(other) = own.number(key)? {
                    return Err(own.error(key, other, "no such key: it is not run here"));
                }
            }
            if own.truth("truncate")? == Some(false) {
                return Err(own.error("truncate", false, "true: the other is not run here"));
            }
            Ok((keys, None))
        }
        Some("llama3") if config.architecture.tensors.rope_factors.is_some() => {
            let or = |key: &str, value| own.number(key).map(|own| own.unwrap_or(value));
            let factors = Llama3 {
                factor: or("factor", 8.0)?,
                low: or("low_freq_factor", 1.0)?,
                high: or("high_freq_factor", 4.0)?,
                original: or("original_max_position_embeddings", 8192.0)?,
            };
            Ok((Vec::new(), Some(factors.divisors(config))))
        }
        Some(other) => {
            let expected = if config.architecture.tensors.rope_factors.is_some() {
                "default, linear, yarn or llama3"
            } else {
                "default, linear or yarn for this architecture"
            };
            Err(own.error("rope_type", quoted(other), expected))
        }
    }
}

/// Scaling of Llama 3: slow frequencies are divided by a factor, fast ones stay, and those between go from
/// the one to the other.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    /// Divisors of all frequencies, `[rope_dim / 2]`.
    fn divisors(&self, config: &Config) -> Vec<f32> {
        let Self { factor, low, high, original } = *self;
        let dim = config.rope_dim;
        let divisor = |i: usize| {
            let exponent = 2.0 * i as f64 / dim as f64;
            let wavelength = 2.0 * PI * f64::from(config.rope_base).powf(exponent);
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let t = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - t) / factor + t)
            }
        };
        (0..dim / 2).map(|i| divisor(i) as f32).collect()
    }
}
