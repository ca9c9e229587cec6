//! Models that are well-formed GGUF but wrong as models: one clear error each.
//!
//! Every case takes a tiny sound model and changes one thing. The names G67 and so on are those of
//! the project's list of hostile inputs.

mod editor;
mod names;
mod policy;

use std::sync::Arc;

use bitnet_runtime::arch::ARCHITECTURES;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Array, Gguf, TensorType, Value};
use bitnet_runtime::formats::i2_s;
use editor::{FFN, HIDDEN, Parts, Tensor, VOCAB, f32s, sound};

impl Parts {
    fn load(&self) -> bitnet_runtime::Result<Model> {
        let (pool, selection) = (Pool::new(2)?, Selection::default());
        let options = LoadOptions::new(&pool, &selection);
        Model::from_gguf(Gguf::from_bytes("tiny.gguf", self.bytes())?, &options)
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
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        let key = format!("llama.{name}");
        assert_eq!(changed("llama", &|p| p.set(&key, Value::F32(2.0))), stretched, "{name}");
    }
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

/// A scale that is infinite gives NaN beside a code of 0, and infinity beside others; the largest that is
/// finite is the file's affair.
#[test]
fn h12_g63_an_infinite_scale_is_refused() {
    let with = |scale: f32| {
        let mut parts = sound("bitnet");
        let bytes = &mut parts.tensor("blk.0.attn_q.weight").data;
        bytes[256..260].copy_from_slice(&scale.to_le_bytes());
        parts.load()
    };
    for scale in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let error = with(scale).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{message}");
        for says in ["tiny.gguf", "blk.0.attn_q.weight", &format!("scale {scale}"), "finite"] {
            assert!(message.contains(says), "{says}: {message}");
        }
    }
    assert!(with(0.5).is_ok() && with(f32::MAX).is_ok());
}

/// What splits models also writes such as are in one file.
#[test]
fn h12_g103_a_model_split_into_one_file_runs() {
    let mut parts = sound("bitnet");
    parts.set("split.no", Value::U16(0));
    parts.set("split.count", Value::U16(1));
    parts.set("split.tensors.count", Value::I32(parts.tensors.len() as i32));
    assert_eq!(logits(parts.load().unwrap()), logits(sound("bitnet").load().unwrap()));
}

#[test]
fn odd_but_harmless_models_warn() {
    let mut parts = sound("bitnet");
    let zeros = i2_s::encode(&[1; (HIDDEN * FFN) as usize]);
    parts.tensor("blk.1.ffn_up.weight").data[..zeros.len()].copy_from_slice(&zeros);
    let model = parts.load().unwrap();
    let all = model.warnings().join("\n");
    assert_eq!(model.warnings().len(), 1, "{all}");
    assert!(all.contains("blk.1.ffn_up.weight"), "{all}");
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
        |p| p.set("bitnet.rope.scaling.type", Value::Str("longrope".into())),
        &["rope.scaling.type", "'longrope'", "linear or yarn"],
    ),
    (
        "rope scaling of Llama 3",
        |p| p.set("bitnet.rope.scaling.type", Value::Str("llama3".into())),
        &["rope.scaling.type", "'llama3'", "rope_freqs.weight"],
    ),
    (
        "rope share",
        |p| p.set("bitnet.rope.scaling.yarn_ext_factor", Value::F32(1.5)),
        &["rope.scaling.yarn_ext_factor", "found 1.5", "-1 to 1"],
    ),
    (
        "rope turns",
        |p| {
            p.set("bitnet.rope.scaling.type", Value::Str("yarn".into()));
            p.set("bitnet.rope.scaling.yarn_beta_slow", Value::F32(0.0));
        },
        &["rope.scaling.yarn_beta_slow", "found 0"],
    ),
    (
        "rope multiplier",
        |p| {
            p.set("bitnet.rope.scaling.type", Value::Str("yarn".into()));
            p.set("bitnet.rope.scaling.yarn_log_multiplier", Value::F32(0.1));
        },
        &["rope.scaling.yarn_log_multiplier", "found 0.1", "other architectures"],
    ),
    (
        "rope magnitude",
        |p| p.set("bitnet.rope.scaling.attn_factor", Value::F32(f32::NAN)),
        &["rope.scaling.attn_factor", "found NaN"],
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
        &["split.tensors.count", "i32 99", "24, the tensors of this file"],
    ),
    (
        "ternary type",
        |p| {
            let t = p.tensor("blk.0.attn_k.weight");
            t.ty = TensorType::F32;
            t.data = (0..512u16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        },
        &["blk.0.attn_k.weight", "f32", "i2_s", "one magnitude"],
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
        "bias length",
        |p| p.add("blk.0.attn_k.bias", vec![0.0; 32]),
        &["blk.0.attn_k.bias", "[32]", "[16]"],
    ),
    (
        "bias NaN",
        |p| p.add("blk.1.ffn_down.bias", vec![f32::NAN; 32]),
        &["blk.1.ffn_down.bias", "NaN at 0"],
    ),
    (
        "bias of a norm",
        |p| p.add("blk.1.attn_norm.bias", vec![1.0; 32]),
        &["blk.1.attn_norm.bias", "0 throughout", "bitnet"],
    ),
    ("bias of the head", |p| p.add("output.bias", vec![1.0; 8]), &["output.bias", "0 throughout"]),
    (
        "bias of a layer that is not there",
        |p| p.add("blk.2.attn_q.bias", vec![1.0; 32]),
        &["blk.2.attn_q.bias", "0 throughout"],
    ),
    (
        "norm type",
        |p| {
            let t = p.tensor("output_norm.weight");
            t.ty = TensorType::I16;
            t.data = vec![0; 64];
        },
        &["output_norm.weight", "i16", "f32, f16 or bf16"],
    ),
];

/// Widths that a file merely claims.
const WIDE: &[(&str, Change, &[&str])] = &[
    (
        "2^24",
        |p| p.set("bitnet.embedding_length", Value::U32(1 << 24)),
        &["bitnet.embedding_length", "16777216", "1 to 262144"],
    ),
    (
        "over 2^18",
        |p| p.set("bitnet.feed_forward_length", Value::U32((1 << 18) + 1)),
        &["bitnet.feed_forward_length", "262145", "1 to 262144"],
    ),
    (
        "2^18",
        |p| p.set("bitnet.embedding_length", Value::U32(1 << 18)),
        &["token_embd.weight", "[32, 8]", "[262144, 8]"],
    ),
    (
        // Packed, 6 TB.
        "2^18 in 1024 layers",
        |p| {
            p.set("bitnet.block_count", Value::U32(1024));
            p.set("bitnet.embedding_length", Value::U32(1 << 17));
            p.set("bitnet.feed_forward_length", Value::U32(1 << 18));
            let embedding = p.tensor("token_embd.weight");
            (embedding.dims, embedding.data) = (vec![1 << 17, 8], vec![0; 4 << 20]);
            let norm = p.tensor("output_norm.weight");
            (norm.dims, norm.data) = (vec![1 << 17], vec![0; 1 << 19]);
        },
        &["blk.0.attn_norm.weight", "[32]", "[131072]"],
    ),
    (
        "heads",
        |p| {
            p.set("bitnet.attention.head_count", Value::U32(1 << 18));
            p.set("bitnet.attention.key_length", Value::U32(1 << 18));
        },
        &["bitnet.attention.head_count", "262144 heads of 262144", "at most 262144"],
    ),
    (
        "head length",
        |p| p.set("bitnet.attention.key_length", Value::U32(1 << 17)),
        &["blk.0.attn_sub_norm.weight", "[32]", "[262144]"],
    ),
    (
        "key heads",
        |p| {
            p.set("bitnet.attention.head_count", Value::U32(1 << 14));
            p.set("bitnet.attention.head_count_kv", Value::U32(1 << 14));
            p.set("bitnet.attention.key_length", Value::U32(2));
            p.set("bitnet.rope.dimension_count", Value::U32(2));
        },
        &["blk.0.attn_sub_norm.weight", "[32]", "[32768]"],
    ),
    (
        "rotated",
        |p| p.set("bitnet.rope.dimension_count", Value::U32(1 << 31)),
        &["bitnet.rope.dimension_count", "2147483648", "262144"],
    ),
    (
        "context",
        |p| p.set("bitnet.context_length", Value::U32(1 << 31)),
        &["bitnet.context_length", "2147483648", "1048576"],
    ),
];

#[test]
fn bad_models_are_refused_with_a_clear_error() {
    are_refused(BAD);
}

#[test]
fn h10_widths_that_a_file_merely_claims_are_no_question_of_memory() {
    are_refused(WIDE);
}

fn are_refused(cases: &[(&str, Change, &[&str])]) {
    for (id, change, words) in cases {
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
