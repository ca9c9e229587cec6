//! Model files in parts, to be changed and then written; and a tiny sound model.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::sync::Arc;

use bitnet_runtime::arch::Architecture;
use bitnet_runtime::file::gguf::{Gguf, GgufWriter, TensorInfo, TensorType, Value};
use bitnet_runtime::formats::i2_s;

pub const HIDDEN: u64 = 32;
pub const FFN: u64 = 64;
pub const VOCAB: u64 = 8;

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: TensorType,
    pub data: Vec<u8>,
}

/// A model in parts, to be changed and then written.
#[derive(Clone)]
pub struct Parts {
    pub kv: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

pub fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Sizes of a model.
pub struct Sizes {
    pub layers: usize,
    pub context: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of a head.
    pub head: usize,
    pub eps: f32,
    pub rope_base: f32,
}

/// Two layers, two heads of 16 over one KV head.
pub fn sound(architecture: &str) -> Parts {
    layers(architecture, 2)
}

/// As [`sound`], with so many layers.
pub fn layers(architecture: &str, count: u32) -> Parts {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut parts = Parts {
        kv: vec![
            ("general.architecture".into(), Value::Str(architecture.into())),
            (key("block_count"), Value::U32(count)),
            (key("context_length"), Value::U32(64)),
            (key("embedding_length"), Value::U32(HIDDEN as u32)),
            (key("feed_forward_length"), Value::U32(FFN as u32)),
            (key("attention.head_count"), Value::U32(2)),
            (key("attention.head_count_kv"), Value::U32(1)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            (key("rope.freq_base"), Value::F32(1e4)),
            (key("rope.dimension_count"), Value::U32(16)),
            (key("vocab_size"), Value::U32(VOCAB as u32)),
        ],
        tensors: Vec::new(),
    };
    let vector = |name: String, n: u64| Tensor {
        name,
        dims: vec![n],
        ty: TensorType::F32,
        data: f32s((0..n).map(|_| 1.0)),
    };
    let matrix = |name: String, cols: u64, rows: u64| {
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * i / 3 % 3) as u8).collect();
        let mut data = i2_s::encode(&codes);
        data.extend(f32s([0.5; 8]));
        Tensor { name, dims: vec![cols, rows], ty: TensorType::I2_S, data }
    };
    parts.tensors.push(Tensor {
        name: "token_embd.weight".into(),
        dims: vec![HIDDEN, VOCAB],
        ty: TensorType::F32,
        data: f32s((0..HIDDEN * VOCAB).map(|i| (i as f32).sin())),
    });
    parts.tensors.push(vector("output_norm.weight".into(), HIDDEN));
    for layer in 0..count {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        parts.tensors.extend([
            vector(name("attn_norm"), HIDDEN),
            matrix(name("attn_q"), HIDDEN, HIDDEN),
            matrix(name("attn_k"), HIDDEN, 16),
            matrix(name("attn_v"), HIDDEN, 16),
            matrix(name("attn_output"), HIDDEN, HIDDEN),
            vector(name("ffn_norm"), HIDDEN),
            matrix(name("ffn_gate"), HIDDEN, FFN),
            matrix(name("ffn_up"), HIDDEN, FFN),
            matrix(name("ffn_down"), FFN, HIDDEN),
        ]);
        let names = &Architecture::find(architecture).unwrap().tensors;
        let [q_norm, k_norm] = names.attn_qk_norms.map_or([None; 2], |norms| norms.map(Some));
        let norms = [
            (names.attn_sub_norm, HIDDEN),
            (names.ffn_sub_norm, FFN),
            (q_norm, 16),
            (k_norm, 16),
            (names.attn_post_norm, HIDDEN),
            (names.ffn_post_norm, HIDDEN),
        ];
        for (part, n) in norms {
            parts.tensors.extend(part.map(|part| vector(name(part), n)));
        }
    }
    parts
}

impl Parts {
    /// A model of these sizes, without a tensor.
    pub fn with_sizes(architecture: &str, sizes: &Sizes) -> Self {
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str, n: usize| (key(name), Value::U32(n as u32));
        let kv = vec![
            ("general.architecture".into(), Value::Str(architecture.into())),
            number("block_count", sizes.layers),
            number("context_length", sizes.context),
            number("embedding_length", sizes.hidden),
            number("feed_forward_length", sizes.ffn),
            number("attention.head_count", sizes.heads),
            number("attention.head_count_kv", sizes.kv_heads),
            number("attention.key_length", sizes.head),
            number("attention.value_length", sizes.head),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(sizes.eps)),
            (key("rope.freq_base"), Value::F32(sizes.rope_base)),
        ];
        Self { kv, tensors: Vec::new() }
    }

    pub fn of(gguf: &Gguf) -> Self {
        let tensor = |t: &TensorInfo| Tensor {
            name: t.name.clone(),
            dims: t.dims.clone(),
            ty: t.ty,
            data: gguf.tensor_bytes(t).to_vec(),
        };
        Self {
            kv: gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            tensors: gguf.tensors().iter().map(tensor).collect(),
        }
    }

    pub fn set(&mut self, key: &str, value: Value) {
        match self.kv.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.kv.push((key.into(), value)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.kv.retain(|(k, _)| k != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Adds a vector of f32.
    pub fn add(&mut self, name: &str, values: Vec<f32>) {
        let dims = vec![values.len() as u64];
        self.tensors.push(Tensor {
            name: name.into(),
            dims,
            ty: TensorType::F32,
            data: f32s(values),
        });
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.kv {
            writer.kv(key, value);
        }
        for t in &self.tensors {
            writer.tensor(&t.name, &t.dims, t.ty).unwrap();
        }
        let mut file = writer.header();
        for t in &self.tensors {
            file.extend(&t.data);
            file.resize(file.len() + GgufWriter::padding(t.data.len() as u64), 0);
        }
        file
    }

    /// The file, opened in memory.
    pub fn gguf(&self) -> Arc<Gguf> {
        Arc::new(Gguf::from_bytes("model.gguf", self.bytes()).unwrap())
    }

    /// The bytes of the file, in which a tensor has the type of that number.
    pub fn bytes_with_type(&self, name: &str, id: u32) -> Vec<u8> {
        let mut file = self.bytes();
        let written = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
        let at = file.windows(written.len()).position(|bytes| bytes == written).unwrap();
        let dims = self.tensors.iter().find(|t| t.name == name).unwrap().dims.len();
        let at = at + written.len() + 4 + 8 * dims;
        file[at..at + 4].copy_from_slice(&id.to_le_bytes());
        file
    }

    /// The parts that llama-gguf-split would make of the model, and their file names.
    pub fn split(&self, count: usize) -> Vec<(String, Self)> {
        let all = self.tensors.len();
        let part = |i: usize| {
            let tensors = self.tensors[all * i / count..all * (i + 1) / count].to_vec();
            let mut part = Self { kv: if i == 0 { self.kv.clone() } else { Vec::new() }, tensors };
            part.set("split.no", Value::U16(i as u16));
            part.set("split.count", Value::U16(count as u16));
            part.set("split.tensors.count", Value::I32(all as i32));
            (format!("m-{:05}-of-{count:05}.gguf", i + 1), part)
        };
        (0..count).map(part).collect()
    }
}
