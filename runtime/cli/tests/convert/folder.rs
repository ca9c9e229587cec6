//! Hugging Face folders, made as tests need them.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_profiles::Shape;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::file::gguf::{Array, Gguf, Value as Metadata};
use bitnet_runtime::formats::{Codes, TensorType};
use bitnet_runtime::random::Random;
use half::bf16;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A tensor: name, type, shape, data.
pub type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// How ternary matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// U8 and a factor.
    Multiply,
    /// U8 and a divisor.
    Divide,
    /// Floats of one magnitude, BF16.
    Floats,
    /// Floats of one magnitude in each block of so many columns, BF16.
    Blocks(usize),
}

/// A folder, in memory until it is written.
#[derive(Clone, Debug)]
pub struct Folder {
    pub config: Map<String, Value>,
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    /// Mode of the pooling, where files of sentence-transformers say one.
    pub pooling: Option<&'static str>,
    pub tensors: Vec<Tensor>,
}

/// A matrix: its name in Hugging Face's layer, its codes, its scale.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub name: String,
    pub shape: Shape,
    pub codes: Vec<u8>,
    pub scale: f32,
}

const NAMES: [(&str, &str); 7] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Layers of Gemma 3's models, of which the second and the fourth see all.
const LAYERS_OF_GEMMA: usize = 5;
const NORMS: [(&str, &str); 4] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_sub_norm", "self_attn.attn_sub_norm"),
    ("ffn_sub_norm", "mlp.ffn_sub_norm"),
];

/// Bytes of numbers in BF16.
pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

/// Bytes of numbers in F32.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Codes, four rows to a byte, as Hugging Face packs them.
pub fn pack(codes: &[u8], Shape { rows, cols }: Shape) -> Vec<u8> {
    let quarter = rows / 4;
    let mut packed = vec![0; quarter * cols];
    for (i, &code) in codes.iter().enumerate() {
        let (row, col) = (i / cols, i % cols);
        packed[row % quarter * cols + col] |= code << (2 * (row / quarter));
    }
    packed
}

/// Sizes of a model.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Sizes {
    /// Heads of 64 elements, a key head for two: all of them as wide as the model, and where heads have norms
    /// twice as wide.
    fn wide(architecture: &str, hidden: usize) -> Self {
        let kv_heads = hidden / if has_head_norms(architecture) { 64 } else { 128 };
        Self { hidden, ffn: 2 * hidden, heads: 2 * kv_heads, kv_heads, head_dim: 64 }
    }

    /// Random matrices of a layer.
    fn matrices(self, layer: usize) -> Vec<Matrix> {
        let Self { hidden, ffn, heads, kv_heads, head_dim } = self;
        let mut random = Random::new(21 + 100 * layer as u64);
        let (q, kv) = (heads * head_dim, (kv_heads * head_dim, hidden));
        let shapes =
            [(q, hidden), kv, kv, (hidden, q), (ffn, hidden), (ffn, hidden), (hidden, ffn)];
        let named = NAMES.iter().zip(shapes);
        named
            .map(|((_, theirs), (rows, cols))| Matrix {
                name: format!("model.layers.{layer}.{theirs}"),
                shape: Shape::new(rows, cols),
                codes: (0..rows * cols).map(|_| random.below(3) as u8).collect(),
                scale: 0.125,
            })
            .collect()
    }
}

/// True if each head has a norm.
fn has_head_norms(architecture: &str) -> bool {
    architecture.starts_with("Qwen3") || is_gemma(architecture)
}

fn is_gemma(architecture: &str) -> bool {
    architecture.starts_with("Gemma3")
}

impl Matrix {
    /// True if its name in a layer is this.
    pub fn is(&self, name: &str) -> bool {
        self.name.ends_with(name)
    }

    /// The tensors of the matrix in a form.
    pub fn tensors(&self, form: Form) -> Vec<Tensor> {
        let Self { name, shape, codes, scale } = self;
        let Shape { rows, cols } = *shape;
        let weight = format!("{name}.weight");
        let scale_name = format!("{name}.weight_scale");
        let packed = || (weight.clone(), "U8", vec![rows / 4, cols], pack(codes, *shape));
        match form {
            Form::Multiply => {
                vec![packed(), (scale_name, "F32", vec![1], f32_bytes(&[*scale]))]
            }
            Form::Divide => {
                vec![packed(), (scale_name, "F32", vec![1], f32_bytes(&[1.0 / *scale]))]
            }
            Form::Floats => {
                vec![(weight, "BF16", vec![rows, cols], self.floats(&[*scale]))]
            }
            Form::Blocks(width) => {
                vec![(weight, "BF16", vec![rows, cols], self.floats(&self.scales(width)))]
            }
        }
    }

    /// The weights in BF16, in blocks of so many scales.
    fn floats(&self, scales: &[f32]) -> Vec<u8> {
        let width = self.codes.len() / scales.len();
        let value = |(i, &code): (usize, &u8)| scales[i / width] * (f32::from(code) - 1.0);
        bf16_bytes(&self.codes.iter().enumerate().map(value).collect::<Vec<f32>>())
    }

    /// Scales of blocks of so many columns, which BF16 and F16 hold exactly.
    pub fn scales(&self, width: usize) -> Vec<f32> {
        let (blocks, in_row) = (self.codes.len() / width, self.shape.cols / width);
        let factor = |i: usize| [1.0, 0.5, 1.25, 0.75][(i + i / in_row) % 4];
        (0..blocks).map(|i| self.scale * factor(i)).collect()
    }
}

/// `tokenizer.json` of byte-level BPE.
pub fn byte_level(tokens: &[String], kinds: &[i32], merges: &[String]) -> Value {
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|&id| kinds[id] == 3)
        .map(|id| {
            json!({ "id": id, "content": tokens[id], "special": true, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                             "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
                   "continuing_subword_prefix": null, "end_of_word_suffix": null,
                   "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                   "vocab": vocab, "merges": merges },
    })
}

impl Folder {
    /// The demo model, in a form.
    pub fn demo(gguf: &Gguf, form: Form) -> Self {
        let config = Config::from_gguf(gguf).unwrap();
        let floats = |name: &str| {
            let tensor = gguf.tensor(name).unwrap();
            let mut values = vec![0.0; tensor.elements() as usize];
            let rows = tensor.ty.format().rows().unwrap();
            (rows.dequantise)(gguf.tensor_bytes(tensor), &mut values);
            values
        };
        let mut tensors: Vec<Tensor> = Vec::new();
        let embedding = gguf.tensor_bytes(gguf.tensor("token_embd.weight").unwrap()).to_vec();
        let shape = vec![config.vocab, config.hidden];
        tensors.push(("model.embed_tokens.weight".into(), "F16", shape, embedding));
        for layer in 0..config.layers {
            for (own, theirs) in NORMS {
                let values = floats(&format!("blk.{layer}.{own}.weight"));
                let name = format!("model.layers.{layer}.{theirs}.weight");
                tensors.push((name, "F32", vec![values.len()], f32_bytes(&values)));
            }
            for (own, theirs) in NAMES {
                let tensor = gguf.tensor(&format!("blk.{layer}.{own}.weight")).unwrap();
                let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
                let stored =
                    Codes::new(TensorType::I2_S, gguf.tensor_bytes(tensor), shape).unwrap();
                let mut codes = vec![0; shape.weights()];
                for (row, codes) in codes.chunks_mut(shape.cols).enumerate() {
                    assert_eq!(stored.row(row, codes), None);
                }
                let scale = stored.scales().of_tensor().unwrap();
                let name = format!("model.layers.{layer}.{theirs}");
                tensors.extend(Matrix { name, shape, codes, scale }.tensors(form));
            }
        }
        let norm = floats("output_norm.weight");
        tensors.push(("model.norm.weight".into(), "F32", vec![norm.len()], f32_bytes(&norm)));
        let texts = |key: &str| -> Vec<String> {
            gguf.get_strings(key).unwrap().unwrap().iter().map(str::to_owned).collect()
        };
        let Some(Metadata::Array(Array::I32(kinds))) = gguf.get("tokenizer.ggml.token_type") else {
            panic!("types of tokens")
        };
        let tokenizer =
            byte_level(&texts("tokenizer.ggml.tokens"), kinds, &texts("tokenizer.ggml.merges"));
        let class = if form == Form::Divide { "bitlinear" } else { "autobitlinear" };
        let config = json!({
            "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2",
            "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 1,
            "hidden_size": config.hidden, "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads, "vocab_size": config.vocab,
            "rope_theta": config.rope_base, "rms_norm_eps": 1e-5,
            "max_position_embeddings": config.context,
            "quantization_config": { "quant_method": "bitnet", "linear_class": class,
                                     "quantization_mode": "offline" },
        });
        Self {
            config: config.as_object().unwrap().clone(),
            tokenizer,
            tokenizer_config: json!({ "bos_token": "<|begin_of_text|>",
                                      "eos_token": { "content": "<|end_of_text|>" } }),
            pooling: None,
            tensors,
        }
    }

    /// A random model of one layer, of Gemma 3 more: 128 wide, heads of 64 elements, a key head for two, 300 tokens.
    pub fn small(architecture: &str, form: Form) -> Self {
        Self::wide(architecture, form, 128)
    }

    /// The same, so wide.
    pub fn wide(architecture: &str, form: Form, hidden: usize) -> Self {
        Self::of(architecture, form, Sizes::wide(architecture, hidden))
    }

    /// A random model of one layer with the widths of BitNet b1.58 2B-4T, packed.
    pub fn of_2b4t() -> Self {
        let sizes = Sizes { hidden: 2560, ffn: 6912, heads: 20, kv_heads: 5, head_dim: 128 };
        Self::of("BitNetForCausalLM", Form::Multiply, sizes)
    }

    fn of(architecture: &str, form: Form, sizes: Sizes) -> Self {
        const VOCAB: usize = 300;
        let Sizes { hidden, ffn, heads, kv_heads, head_dim } = sizes;
        let mut random = Random::new(20);
        let mut numbers = |n: usize, about: f32| -> Vec<f32> {
            let number = |r: u64| about + (r as f32 / 1000.0 - 1.0) * 0.1;
            (0..n).map(|_| number(random.below(2000))).collect()
        };
        let is_bitnet = architecture == "BitNetForCausalLM";
        let gemma = is_gemma(architecture);
        let is_tied = is_bitnet || has_head_norms(architecture);
        // Gemma's own norms count from 1.
        let about = if gemma { 0.0 } else { 1.0 };
        let embedding = bf16_bytes(&numbers(VOCAB * hidden, 0.0));
        let mut tensors: Vec<Tensor> = vec![
            ("model.embed_tokens.weight".into(), "BF16", vec![VOCAB, hidden], embedding),
            ("model.norm.weight".into(), "BF16", vec![hidden], bf16_bytes(&numbers(hidden, about))),
        ];
        if !is_tied {
            let head = bf16_bytes(&numbers(VOCAB * hidden, 0.0));
            tensors.push(("lm_head.weight".into(), "BF16", vec![VOCAB, hidden], head));
        }
        let layers = if gemma { LAYERS_OF_GEMMA } else { 1 };
        for layer in 0..layers {
            let mut norms: Vec<(&str, usize)> = NORMS[..if is_bitnet { 4 } else { 2 }]
                .iter()
                .map(|norm| (norm.1, hidden))
                .collect();
            norms
                .iter_mut()
                .filter(|norm| norm.0 == "mlp.ffn_sub_norm")
                .for_each(|norm| norm.1 = ffn);
            if gemma {
                norms.push(("pre_feedforward_layernorm", hidden));
                norms.push(("post_feedforward_layernorm", hidden));
            }
            if has_head_norms(architecture) {
                norms.extend(["self_attn.q_norm", "self_attn.k_norm"].map(|name| (name, head_dim)));
            }
            for (name, n) in norms {
                let name = format!("model.layers.{layer}.{name}.weight");
                tensors.push((name, "BF16", vec![n], bf16_bytes(&numbers(n, about))));
            }
            for matrix in sizes.matrices(layer) {
                if architecture == "Qwen2ForCausalLM" && NAMES[..3].iter().any(|n| matrix.is(n.1)) {
                    let rows = matrix.shape.rows;
                    let name = format!("{}.bias", matrix.name);
                    tensors.push((name, "BF16", vec![rows], bf16_bytes(&numbers(rows, 0.0))));
                }
                tensors.extend(matrix.tensors(form));
            }
        }
        if architecture.ends_with("Model") {
            // A model without a head is what others have in front of one.
            for (name, ..) in &mut tensors {
                *name = name.replace("model.", "");
            }
        }
        let mut tokens = vec!["<s>".to_owned(), "</s>".to_owned()];
        tokens.extend(bitnet_runtime::text::tokenizer::byte_alphabet().map(String::from));
        let merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("e", "r")];
        tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let mut kinds = vec![1; tokens.len()];
        kinds[..2].fill(3);
        let mut config = json!({
            "architectures": [architecture],
            "hidden_act": if is_bitnet { "relu2" } else { "silu" },
            "tie_word_embeddings": is_tied, "bos_token_id": 0, "eos_token_id": [1],
            "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": VOCAB,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        });
        if has_head_norms(architecture) {
            config["head_dim"] = json!(head_dim);
        }
        if gemma {
            let own = json!({
                "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": head_dim, "sliding_window": 48, "sliding_window_pattern": 2,
                "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": null,
                "attn_logit_softcapping": null, "final_logit_softcapping": null,
                "model_type": "gemma3_text",
            });
            config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        }
        if matches!(form, Form::Multiply | Form::Divide) {
            let class = if form == Form::Divide { "bitlinear" } else { "autobitlinear" };
            config["quantization_config"] = json!({ "quant_method": "bitnet",
                "linear_class": class, "quantization_mode": "offline" });
        }
        Self {
            config: config.as_object().unwrap().clone(),
            tokenizer: byte_level(&tokens, &kinds, &merges),
            tokenizer_config: json!({ "bos_token": "<s>", "eos_token": "</s>" }),
            pooling: None,
            tensors,
        }
    }

    /// Makes it one of BitNet's embedding models, whose matrices are masters with a norm of their input each,
    /// and whose text's last token is its embedding.
    pub fn into_bitnet_embedding(mut self) -> Self {
        let mut random = Random::new(24);
        let mut numbers = |n: usize, from: f32, to: f32| -> Vec<f32> {
            (0..n).map(|_| from + (to - from) * random.below(2001) as f32 / 2000.0).collect()
        };
        let mut norms: Vec<Tensor> = Vec::new();
        for (name, dtype, shape, data) in &mut self.tensors {
            let Some(matrix) = name.strip_suffix("_proj.weight") else { continue };
            assert_eq!(*dtype, "BF16");
            *data = bf16_bytes(&numbers(shape[0] * shape[1], -0.2, 0.2));
            let norm = bf16_bytes(&numbers(shape[1], 0.75, 1.25));
            norms.push((format!("{matrix}_proj.norm.weight"), "BF16", vec![shape[1]], norm));
        }
        self.tensors.extend(norms);
        self.pooling = Some("pooling_mode_lasttoken");
        self
    }

    /// The matrices of [`Folder::small`], but for Qwen3's; scales are exact in BF16, and so are their
    /// inverses.
    pub fn small_matrices() -> Vec<Matrix> {
        Self::matrices("BitNetForCausalLM", 128)
    }

    /// The matrices of [`Folder::wide`].
    pub fn matrices(architecture: &str, hidden: usize) -> Vec<Matrix> {
        Sizes::wide(architecture, hidden).matrices(0)
    }

    /// The tensor of that name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    /// The bytes of a safetensors file.
    pub fn file(tensors: &[Tensor]) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut at = 0;
        for (name, dtype, shape, data) in tensors {
            let offsets = [at, at + data.len()];
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            header.insert(name.clone(), entry);
            at += data.len();
        }
        let mut bytes = raw(&Value::Object(header).to_string());
        tensors.iter().for_each(|tensor| bytes.extend(&tensor.3));
        bytes
    }

    /// Writes the folder, all tensors in one file.
    pub fn write(&self) -> TempDir {
        let dir = self.write_without_weights();
        fs::write(dir.path().join("model.safetensors"), Self::file(&self.tensors)).unwrap();
        dir
    }

    /// Writes the folder, its tensors in so many files, and an index.
    pub fn write_sharded(&self, count: usize) -> TempDir {
        let dir = self.write_without_weights();
        let mut map = Map::new();
        for (number, tensors) in self.tensors.chunks(self.tensors.len().div_ceil(count)).enumerate()
        {
            let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
            fs::write(dir.path().join(&name), Self::file(tensors)).unwrap();
            map.extend(tensors.iter().map(|tensor| (tensor.0.clone(), json!(name))));
        }
        let index = json!({ "metadata": {}, "weight_map": map }).to_string();
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        dir
    }

    /// Writes all but the weights.
    pub fn write_without_weights(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { dir.path().join(name) };
        fs::write(at("config.json"), Value::Object(self.config.clone()).to_string()).unwrap();
        fs::write(at("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        fs::write(at("tokenizer_config.json"), self.tokenizer_config.to_string()).unwrap();
        if let Some(mode) = self.pooling {
            let module = |path: &str, name: &str| {
                let kind = format!("sentence_transformers.models.{name}");
                json!({ "idx": 0, "name": "0", "path": path, "type": kind })
            };
            let modules = json!([
                module("", "Transformer"),
                module("1_Pooling", "Pooling"),
                module("2_Normalize", "Normalize")
            ]);
            fs::write(at("modules.json"), modules.to_string()).unwrap();
            fs::create_dir(at("1_Pooling")).unwrap();
            fs::write(at("1_Pooling/config.json"), json!({ mode: true }).to_string()).unwrap();
        }
        dir
    }
}

/// A safetensors file of a header only.
pub fn raw(header: &str) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
