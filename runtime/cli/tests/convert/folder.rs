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
}

/// A folder, in memory until it is written.
#[derive(Clone, Debug)]
pub struct Folder {
    pub config: Map<String, Value>,
    pub tokenizer: Value,
    pub tokenizer_config: Value,
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

impl Matrix {
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
                let values: Vec<f32> =
                    codes.iter().map(|&code| scale * (f32::from(code) - 1.0)).collect();
                vec![(weight, "BF16", vec![rows, cols], bf16_bytes(&values))]
            }
        }
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
            tensors,
        }
    }

    /// A random model of one layer: 128 wide, two heads of 64 elements with one key head, 300 tokens.
    pub fn small(architecture: &str, form: Form) -> Self {
        const HIDDEN: usize = 128;
        const FFN: usize = 256;
        const VOCAB: usize = 300;
        let mut random = Random::new(20);
        let mut numbers = |n: usize, about: f32| -> Vec<f32> {
            let number = |r: u64| about + (r as f32 / 1000.0 - 1.0) * 0.1;
            (0..n).map(|_| number(random.below(2000))).collect()
        };
        let is_bitnet = architecture == "BitNetForCausalLM";
        let embedding = bf16_bytes(&numbers(VOCAB * HIDDEN, 0.0));
        let mut tensors: Vec<Tensor> = vec![
            ("model.embed_tokens.weight".into(), "BF16", vec![VOCAB, HIDDEN], embedding),
            ("model.norm.weight".into(), "BF16", vec![HIDDEN], bf16_bytes(&numbers(HIDDEN, 1.0))),
        ];
        if !is_bitnet {
            let head = bf16_bytes(&numbers(VOCAB * HIDDEN, 0.0));
            tensors.push(("lm_head.weight".into(), "BF16", vec![VOCAB, HIDDEN], head));
        }
        for (own, theirs) in NORMS.into_iter().take(if is_bitnet { 4 } else { 2 }) {
            let n = if own == "ffn_sub_norm" { FFN } else { HIDDEN };
            let name = format!("model.layers.0.{theirs}.weight");
            tensors.push((name, "BF16", vec![n], bf16_bytes(&numbers(n, 1.0))));
        }
        for matrix in Self::small_matrices() {
            tensors.extend(matrix.tensors(form));
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
            "tie_word_embeddings": is_bitnet, "bos_token_id": 0, "eos_token_id": [1],
            "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        });
        if form != Form::Floats {
            let class = if form == Form::Divide { "bitlinear" } else { "autobitlinear" };
            config["quantization_config"] = json!({ "quant_method": "bitnet",
                "linear_class": class, "quantization_mode": "offline" });
        }
        Self {
            config: config.as_object().unwrap().clone(),
            tokenizer: byte_level(&tokens, &kinds, &merges),
            tokenizer_config: json!({ "bos_token": "<s>", "eos_token": "</s>" }),
            tensors,
        }
    }

    /// The matrices of [`Folder::small`]; scales are exact in BF16, and so are their inverses.
    pub fn small_matrices() -> Vec<Matrix> {
        let mut random = Random::new(21);
        let shapes =
            [(128, 128), (64, 128), (64, 128), (128, 128), (256, 128), (256, 128), (128, 256)];
        let named = NAMES.iter().zip(shapes);
        named
            .map(|((_, theirs), (rows, cols))| Matrix {
                name: format!("model.layers.0.{theirs}"),
                shape: Shape::new(rows, cols),
                codes: (0..rows * cols).map(|_| random.below(3) as u8).collect(),
                scale: 0.125,
            })
            .collect()
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
