//! Models that are well-formed GGUF but wrong as models: one clear error each.
//!
//! Every case takes a tiny sound model and changes one thing. The names G67 and so on are those of
//! the project's list of hostile inputs.

use std::sync::Arc;

use bitnet_runtime::arch::{ARCHITECTURES, Architecture};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Array, Gguf, GgufWriter, TensorType, Value};
use bitnet_runtime::formats::i2_s;

const HIDDEN: u64 = 32;
const FFN: u64 = 64;
const VOCAB: u64 = 8;

struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: TensorType,
    data: Vec<u8>,
}

/// A model in parts, to be changed and then written.
struct Parts {
    kv: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Two layers, two heads of 16 over one KV head.
fn sound(architecture: &str) -> Parts {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut parts = Parts {
        kv: vec![
            ("general.architecture".into(), Value::Str(architecture.into())),
            (key("block_count"), Value::U32(2)),
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
    for layer in 0..2 {
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
        let sub_norms = [(names.attn_sub_norm, HIDDEN), (names.ffn_sub_norm, FFN)];
        for (part, n) in sub_norms {
            parts.tensors.extend(part.map(|part| vector(name(part), n)));
        }
    }
    parts
}

impl Parts {
    fn set(&mut self, key: &str, value: Value) {
        match self.kv.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.kv.push((key.into(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.kv.retain(|(k, _)| k != key);
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    fn load(&self) -> bitnet_runtime::Result<Model> {
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
        let (pool, selection) = (Pool::new(2)?, Selection::default());
        let options = LoadOptions::new(&pool, &selection);
        Model::from_gguf(Gguf::from_bytes("tiny.gguf", file)?, &options)
    }
}

fn logits(model: Model) -> Vec<f32> {
    let pool = Arc::new(Pool::new(2).unwrap());
    let mut session = Session::new(Arc::new(model), pool, SessionOptions::default()).unwrap();
    session.prefill(&[1, 2, 3]).unwrap().to_vec()
}

#[test]
fn every_architecture_runs() {
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for architecture in ARCHITECTURES.map(|architecture| architecture.name) {
        let model = sound(architecture).load().unwrap();
        assert!(model.warnings().is_empty(), "{:?}", model.warnings());
        let logits = logits(model);
        assert!(logits.iter().all(|l| l.is_finite()), "{architecture}");
        seen.push(logits);
    }
    assert_eq!(seen[0], seen[1], "bitnet-25 is an older name");
    assert_ne!(seen[0], seen[2], "squared ReLU against SiLU");
    assert_ne!(seen[2], seen[3], "sub-norms and rope pairs");
}

/// Tensors and keys that may be there, and change the logits when they are.
#[test]
fn optional_parts_count() {
    let plain = |architecture| logits(sound(architecture).load().unwrap());
    let changed = |architecture: &str, change: &dyn Fn(&mut Parts)| {
        let mut parts = sound(architecture);
        change(&mut parts);
        let model = parts.load().unwrap();
        assert!(model.warnings().is_empty(), "{:?}", model.warnings());
        logits(model)
    };
    let scale = |value| Tensor {
        name: "blk.0.attn_v.scale".into(),
        dims: vec![1],
        ty: TensorType::F32,
        data: f32s([value]),
    };
    let factors = |value: f32| Tensor {
        name: "rope_freqs.weight".into(),
        dims: vec![8],
        ty: TensorType::F32,
        data: f32s([value; 8]),
    };
    let bitnet = plain("bitnet");
    assert_eq!(changed("bitnet", &|p| p.tensors.push(scale(1.0))), bitnet);
    // The sub-norm after attention takes a common factor of all values out again, but for epsilon.
    let scaled = changed("bitnet", &|p| p.tensors.push(scale(1e-3)));
    assert_ne!(scaled, bitnet);
    let llama = plain("llama");
    assert_eq!(changed("llama", &|p| p.tensors.push(factors(1.0))), llama);
    let stretched = changed("llama", &|p| p.tensors.push(factors(2.0)));
    assert_ne!(stretched, llama);
    let linear = changed("llama", &|p| {
        p.set("llama.rope.scaling.type", Value::Str("linear".into()));
        p.set("llama.rope.scaling.factor", Value::F32(2.0));
    });
    assert_eq!(linear, stretched);
    let untied = changed("llama", &|p| {
        p.tensors.push(Tensor {
            name: "output.weight".into(),
            dims: vec![HIDDEN, VOCAB],
            ty: TensorType::F32,
            data: f32s((0..HIDDEN * VOCAB).map(|i| (i as f32).cos())),
        });
    });
    assert_ne!(untied, llama);
}

/// G103: what splits models also writes such as are in one file.
#[test]
fn a_model_split_into_one_file_runs() {
    let mut parts = sound("bitnet");
    parts.set("split.no", Value::U16(0));
    parts.set("split.count", Value::U16(1));
    parts.set("split.tensors.count", Value::I32(parts.tensors.len() as i32));
    assert_eq!(logits(parts.load().unwrap()), logits(sound("bitnet").load().unwrap()));
}

#[test]
fn odd_but_harmless_models_warn() {
    let mut parts = sound("bitnet");
    parts.tensors.push(Tensor {
        name: "blk.0.attn_q.bias".into(),
        dims: vec![4],
        ty: TensorType::F32,
        data: f32s([0.0; 4]),
    });
    let zeros = i2_s::encode(&[1; (HIDDEN * FFN) as usize]);
    parts.tensor("blk.1.ffn_up.weight").data[..zeros.len()].copy_from_slice(&zeros);
    let model = parts.load().unwrap();
    let all = model.warnings().join("\n");
    assert_eq!(model.warnings().len(), 2, "{all}");
    assert!(all.contains("blk.0.attn_q.bias") && all.contains("blk.1.ffn_up.weight"), "{all}");
}

type Change = fn(&mut Parts);

/// (id, what is changed, the words the message must hold)
const BAD: &[(&str, Change, &[&str])] = &[
    ("G67", |p| p.remove("general.architecture"), &["general.architecture", "no such key"]),
    (
        "G68",
        |p| p.set("general.architecture", Value::Str("gpt\nj".into())),
        &["'gpt\\nj'", "bitnet-b1.58, bitnet-25, bitnet, llama"],
    ),
    (
        "G69",
        |p| p.remove("bitnet.feed_forward_length"),
        &["bitnet.feed_forward_length", "no such key"],
    ),
    (
        "G70",
        |p| p.set("bitnet.block_count", Value::Str("two".into())),
        &["bitnet.block_count", "'two'"],
    ),
    (
        "G71",
        |p| p.set("bitnet.block_count", Value::U32(0)),
        &["bitnet.block_count", "found 0", "1 to 1024"],
    ),
    (
        "G72",
        |p| p.set("bitnet.block_count", Value::U32(u32::MAX)),
        &["bitnet.block_count", "4294967295", "1 to 1024"],
    ),
    (
        "G73",
        |p| p.set("bitnet.attention.head_count", Value::U32(0)),
        &["attention.head_count", "found 0"],
    ),
    (
        "G74 zero",
        |p| p.set("bitnet.attention.head_count_kv", Value::U32(0)),
        &["head_count_kv", "found 0"],
    ),
    (
        "G74 divisor",
        |p| p.set("bitnet.attention.head_count_kv", Value::U32(3)),
        &["head_count_kv", "found 3", "divisor"],
    ),
    (
        "G75",
        |p| {
            p.set("bitnet.attention.head_count", Value::U32(3));
            p.set("bitnet.attention.head_count_kv", Value::U32(3));
        },
        &["embedding_length", "32", "multiple", "key_length"],
    ),
    (
        "G76 odd",
        |p| p.set("bitnet.rope.dimension_count", Value::U32(15)),
        &["rope.dimension_count", "15", "even"],
    ),
    (
        "G76 wide",
        |p| p.set("bitnet.rope.dimension_count", Value::U32(18)),
        &["rope.dimension_count", "18", "16"],
    ),
    (
        "G76 base",
        |p| p.set("bitnet.rope.freq_base", Value::F32(0.0)),
        &["rope.freq_base", "found 0"],
    ),
    (
        "G76 NaN",
        |p| p.set("bitnet.rope.freq_base", Value::F32(f32::NAN)),
        &["rope.freq_base", "NaN"],
    ),
    (
        "rope scaling",
        |p| p.set("bitnet.rope.scaling.type", Value::Str("yarn".into())),
        &["rope.scaling.type", "'yarn'", "linear"],
    ),
    (
        "rope stretch",
        |p| p.set("bitnet.rope.scale_linear", Value::F32(0.0)),
        &["rope.scale_linear", "found 0"],
    ),
    (
        "G77",
        |p| p.set("bitnet.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        &["epsilon", "found 0"],
    ),
    (
        "G77 NaN",
        |p| p.set("bitnet.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        &["epsilon", "NaN"],
    ),
    ("G78 zero", |p| p.set("bitnet.context_length", Value::U32(0)), &["context_length", "found 0"]),
    (
        "G78 huge",
        |p| p.set("bitnet.context_length", Value::U32(u32::MAX)),
        &["context_length", "4294967295"],
    ),
    (
        "value length",
        |p| p.set("bitnet.attention.value_length", Value::U32(8)),
        &["value_length", "found 8", "16"],
    ),
    (
        "G79",
        |p| p.tensors.retain(|t| t.name != "blk.1.ffn_down.weight"),
        &["blk.1.ffn_down.weight", "no such tensor", "[64, 32]"],
    ),
    (
        "G79 norm",
        |p| p.tensors.retain(|t| t.name != "blk.0.ffn_sub_norm.weight"),
        &["blk.0.ffn_sub_norm.weight", "no such tensor"],
    ),
    (
        "G79 embedding",
        |p| p.tensors.retain(|t| t.name != "token_embd.weight"),
        &["token_embd.weight", "no such tensor"],
    ),
    (
        "G80",
        |p| p.tensor("blk.0.attn_k.weight").dims = vec![16, 32],
        &["blk.0.attn_k.weight", "[16, 32]", "[32, 16]"],
    ),
    (
        "G80 norm",
        |p| p.set("bitnet.feed_forward_length", Value::U32(128)),
        &["blk.0.ffn_sub_norm.weight", "[64]", "[128]"],
    ),
    (
        "G82 vocab_size",
        |p| p.set("bitnet.vocab_size", Value::U32(9)),
        &["bitnet.vocab_size", "found 9", "8"],
    ),
    (
        "G82 tokens",
        |p| {
            p.set(
                "tokenizer.ggml.tokens",
                Value::Array(Array::Str(["a", "b"].into_iter().collect())),
            )
        },
        &["tokenizer.ggml.tokens", "2 tokens", "8"],
    ),
    (
        "G63 zero",
        |p| p.tensor("blk.0.attn_q.weight").data[256..260].fill(0),
        &["blk.0.attn_q.weight", "scale 0"],
    ),
    (
        "G63 negative",
        |p| p.tensor("blk.0.attn_q.weight").data[259] |= 0x80,
        &["blk.0.attn_q.weight", "scale -0.5"],
    ),
    (
        "G63 NaN",
        |p| p.tensor("blk.0.attn_q.weight").data[256..260].fill(0xff),
        &["blk.0.attn_q.weight", "scale NaN"],
    ),
    (
        "G63 Inf",
        |p| {
            p.tensor("blk.0.attn_q.weight").data[256..260]
                .copy_from_slice(&f32::INFINITY.to_le_bytes())
        },
        &["blk.0.attn_q.weight", "scale inf"],
    ),
    (
        "G63 Inf of two factors",
        |p| {
            p.tensor("blk.0.attn_v.weight").data[128..132].copy_from_slice(&3e38f32.to_le_bytes());
            p.tensors.push(Tensor {
                name: "blk.0.attn_v.scale".into(),
                dims: vec![1],
                ty: TensorType::F32,
                data: f32s([10.0]),
            });
        },
        &["blk.0.attn_v.weight", "scale inf", "factor 10"],
    ),
    ("G64", |p| p.tensor("blk.1.attn_v.weight").data[7] = 0xff, &["blk.1.attn_v.weight", "code 3"]),
    (
        "G66",
        |p| {
            p.tensor("blk.1.ffn_norm.weight").data[4..8]
                .copy_from_slice(&f32::INFINITY.to_le_bytes())
        },
        &["blk.1.ffn_norm.weight", "inf at 1"],
    ),
    (
        "G103",
        |p| p.set("split.count", Value::U16(3)),
        &["split.count", "u16 3", "one file", "llama-gguf-split --merge"],
    ),
    ("G103 zero", |p| p.set("split.count", Value::U16(0)), &["split.count", "u16 0", "1 or more"]),
    (
        "G103 type",
        |p| p.set("split.count", Value::Str("two".into())),
        &["split.count", "string 'two'", "1 or more"],
    ),
    (
        "G103 tensors",
        |p| {
            p.set("split.count", Value::U16(1));
            p.set("split.tensors.count", Value::I32(99));
        },
        &["split.tensors.count", "i32 99", "24, the tensors of this file", "--merge"],
    ),
    (
        "ternary type",
        |p| {
            let t = p.tensor("blk.0.attn_k.weight");
            t.ty = TensorType::F32;
            t.data = vec![0; 4 * 512];
        },
        &["blk.0.attn_k.weight", "f32", "i2_s"],
    ),
    (
        "embedding type",
        |p| {
            let t = p.tensor("token_embd.weight");
            t.ty = TensorType::I8;
            t.data = vec![0; 256];
        },
        &["token_embd.weight", "i8", "q6_K"],
    ),
    (
        "norm type",
        |p| {
            let t = p.tensor("output_norm.weight");
            t.ty = TensorType::F16;
            t.data = vec![0; 64];
        },
        &["output_norm.weight", "f16", "f32"],
    ),
];

#[test]
fn bad_models_are_refused_with_a_clear_error() {
    for (id, change, words) in BAD {
        let mut parts = sound("bitnet");
        change(&mut parts);
        let Err(error) = parts.load() else { panic!("{id} was accepted") };
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{id}: {message}");
        for word in words.iter().chain(&["tiny.gguf"]) {
            assert!(message.contains(word), "{id}: no `{word}` in: {message}");
        }
        assert_eq!(message.lines().count(), 1, "{id}: {message}");
    }
}
