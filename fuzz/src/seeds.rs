//! Seeds that mutants are made from: small files and messages, each accepted as it is.

use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{HeadFormat, Isa, KernelId, Layout, Pinning, Profile, Role, Run, Shape};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::file::gguf::{Array, Gguf, GgufWriter, StrArray, TensorType, Value};
use bitnet_runtime::formats::i2_s;
use bitnet_runtime::text::tokenizer::byte_alphabet;
use bitnet_tuner::measure::{Excluded, Limits, Timing, Unit, UnitKey, Why};
use bitnet_tuner::plan::{JobPlan, JobTask, LayoutPlan};
use bitnet_tuner::protocol::{
    ChosenJob, ComparisonTask, LibraryFile, MeasureTask, PlacementTask, SparseJob, SparseTask,
    Task, Work,
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// Tokens of the demo model's vocabulary that are kept where a small one is wanted.
const FEW: usize = 300;

type Metadata = Vec<(String, Value)>;

fn pair(key: &str, value: Value) -> (String, Value) {
    (key.into(), value)
}

fn strings<S: AsRef<str>>(texts: &[S]) -> Value {
    Value::Array(Array::Str(texts.iter().collect()))
}

/// A file of these keys, and of tensors with the given dimensions and bytes.
fn file(metadata: &Metadata, tensors: &[(String, Vec<u64>, TensorType, Vec<u8>)]) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer.kv(key, value);
    }
    for (name, dims, ty, _) in tensors {
        writer.tensor(name, dims, *ty).expect("a sound tensor");
    }
    let mut bytes = writer.header();
    for (.., data) in tensors {
        bytes.extend(data);
        bytes.resize(bytes.len() + GgufWriter::padding(data.len() as u64), 0);
    }
    bytes
}

fn byte_level_metadata() -> Metadata {
    let mut tokens: Vec<String> = byte_alphabet().iter().map(char::to_string).collect();
    tokens.extend(["he", "ll", "hell", "<|eot_id|>", "<user>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    (types[259], types[260]) = (3, 4);
    vec![
        pair(MODEL, Value::Str("gpt2".into())),
        pair(PRE, Value::Str("gpt-2".into())),
        pair(TOKENS, strings(&tokens)),
        pair(TYPES, Value::Array(Array::I32(types))),
        pair(MERGES, strings(&["h e", "l l", "he ll"])),
        pair("tokenizer.ggml.bos_token_id", Value::U32(0)),
    ]
}

/// A vocabulary of byte-level BPE with a token for every byte.
pub fn byte_level() -> Vec<u8> {
    file(&byte_level_metadata(), &[])
}

fn sentencepiece_metadata(bytes: bool) -> Metadata {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    if bytes {
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        types.resize(tokens.len(), 6);
    }
    tokens.extend(["\u{2581}", "a", "b", "ab", "\u{2581}ab"].map(String::from));
    types.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    vec![
        pair(MODEL, Value::Str("llama".into())),
        pair(TOKENS, strings(&tokens)),
        pair(TYPES, Value::Array(Array::I32(types))),
        pair(SCORES, Value::Array(Array::F32(scores))),
    ]
}

/// A vocabulary of SentencePiece with a token for every byte.
pub fn sentencepiece() -> Vec<u8> {
    file(&sentencepiece_metadata(true), &[])
}

/// The demo model.
pub fn demo() -> Gguf {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    Gguf::open(path).expect("the demo model is in the repository")
}

/// The metadata of the demo model, with the first of its tokens and the merges among them.
fn demo_metadata() -> Metadata {
    let gguf = demo();
    let all = gguf.get_strings(TOKENS).ok().flatten().expect("it has tokens");
    let tokens: Vec<&str> = all.iter().take(FEW).collect();
    let is_kept = |merge: &&str| {
        let Some((left, right)) = merge.split_once(' ') else { return false };
        [left, right, &format!("{left}{right}")].iter().all(|part| tokens.contains(part))
    };
    let few = |key: &str, value: &Value| match value {
        Value::Array(Array::Str(all)) if key == MERGES => {
            Value::Array(Array::Str(all.iter().filter(is_kept).collect::<StrArray>()))
        }
        Value::Array(Array::Str(_)) => strings(&tokens),
        Value::Array(Array::I32(all)) => Value::Array(Array::I32(all[..FEW].to_vec())),
        Value::Array(Array::F32(all)) => Value::Array(Array::F32(all[..FEW].to_vec())),
        value => value.clone(),
    };
    gguf.metadata().map(|(key, value)| (key.to_owned(), few(key, value))).collect()
}

/// Models of one layer and 32 columns, of every architecture and with either kind of vocabulary; and
/// the demo model's header, cut short.
pub fn models() -> Vec<Vec<u8>> {
    let mut all = vec![file(&demo_metadata(), &[])];
    let small = sentencepiece_metadata(false);
    for (architecture, tokenizer) in [
        ("bitnet-b1.58", byte_level_metadata()),
        ("bitnet-25", small.clone()),
        ("bitnet", small.clone()),
        ("llama", small),
    ] {
        all.push(model(architecture, tokenizer));
    }
    all
}

fn model(architecture: &str, tokenizer: Metadata) -> Vec<u8> {
    const HIDDEN: u64 = 32;
    const FFN: u64 = 64;
    let vocab = tokenizer.iter().find_map(|(key, value)| match value {
        Value::Array(Array::Str(tokens)) if key == TOKENS => Some(tokens.len() as u64),
        _ => None,
    });
    let vocab = vocab.expect("it has tokens");
    let key = |name: &str| format!("{architecture}.{name}");
    let mut metadata = vec![
        pair("general.architecture", Value::Str(architecture.into())),
        pair("general.name", Value::Str("tiny".into())),
        pair("general.alignment", Value::U32(32)),
        (key("block_count"), Value::U32(1)),
        (key("context_length"), Value::U32(64)),
        (key("embedding_length"), Value::U32(HIDDEN as u32)),
        (key("feed_forward_length"), Value::U32(FFN as u32)),
        (key("attention.head_count"), Value::U32(2)),
        (key("attention.head_count_kv"), Value::U32(1)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.freq_base"), Value::F32(1e4)),
        (key("rope.dimension_count"), Value::U32(16)),
        (key("rope.scaling.type"), Value::Str("linear".into())),
        (key("rope.scaling.factor"), Value::F32(2.0)),
        (key("vocab_size"), Value::U32(vocab as u32)),
    ];
    metadata.extend(tokenizer);
    let f32s = |n: u64| (0..n).flat_map(|_| 1f32.to_le_bytes()).collect::<Vec<u8>>();
    let vector =
        |name: &str, n: u64| (format!("blk.0.{name}.weight"), vec![n], TensorType::F32, f32s(n));
    let matrix = |name: &str, cols: u64, rows: u64| {
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * i / 3 % 3) as u8).collect();
        let data = [i2_s::encode(&codes), f32s(8)].concat();
        (format!("blk.0.{name}.weight"), vec![cols, rows], TensorType::I2_S, data)
    };
    // Rows of 32 weights are one block of Q4_0.
    let embedding = vec![0; (vocab * 18) as usize];
    let mut tensors = vec![
        ("token_embd.weight".into(), vec![HIDDEN, vocab], TensorType::Q4_0, embedding),
        ("output_norm.weight".into(), vec![HIDDEN], TensorType::F32, f32s(HIDDEN)),
        vector("attn_norm", HIDDEN),
        matrix("attn_q", HIDDEN, HIDDEN),
        matrix("attn_k", HIDDEN, 16),
        matrix("attn_v", HIDDEN, 16),
        matrix("attn_output", HIDDEN, HIDDEN),
        vector("ffn_norm", HIDDEN),
        matrix("ffn_gate", HIDDEN, FFN),
        matrix("ffn_up", HIDDEN, FFN),
        matrix("ffn_down", FFN, HIDDEN),
    ];
    if architecture != "llama" {
        tensors.extend([vector("attn_sub_norm", HIDDEN), vector("ffn_sub_norm", FFN)]);
    }
    file(&metadata, &tensors)
}

/// The first shipped profiles, each with two of its choices.
pub fn profiles() -> Vec<Vec<u8>> {
    let few = |(number, shipped): (usize, &Shipped)| short(shipped, number).to_text().into_bytes();
    Shipped::all().iter().enumerate().map(few).take(8).collect()
}

/// A shipped profile with two of its choices, from one with this `number` on.
fn short(shipped: &Shipped, number: usize) -> Profile {
    let mut profile = shipped.profile().clone();
    let first = 2 * number % profile.ops.len();
    profile.ops = profile.ops.into_iter().skip(first).take(2).collect();
    profile
}

/// Texts with what tokenizers take apart: words, numbers, spaces, other scripts, special tokens.
pub fn texts() -> Vec<Vec<u8>> {
    [
        "ROMEO:\nWhat, hell! I'll tell it's 3,141 times.\n\n",
        "  two  spaces\t\ttabs \r\n \u{a0}\u{3000}end ",
        "<|eot_id|><user></s><s><0xE9>hello<|begin_of_text|>",
        "\u{e9}\u{65e5}\u{672c}\u{8a9e} \u{1f600}\u{200d}\u{1f680} \u{0301}\u{2581}\u{2581}ab",
        "12345678901234567890 0x7f 1e-5 $#@!{}[]",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Vocabularies of every kind, each with a text before it.
pub fn vocabularies() -> Vec<Vec<u8>> {
    let mut byte_level = byte_level_metadata();
    byte_level.retain(|(key, _)| key != PRE);
    byte_level.push(pair(PRE, Value::Str("falcon3".into())));
    let metadata = [
        demo_metadata(),
        byte_level,
        sentencepiece_metadata(true),
        sentencepiece_metadata(false),
        sentencepiece_metadata(false),
    ];
    let with_text = |(metadata, text): (&Metadata, Vec<u8>)| {
        [&(text.len() as u16).to_le_bytes()[..], &text, &file(metadata, &[])].concat()
    };
    metadata.iter().zip(texts()).map(with_text).collect()
}

/// A task of every kind of work.
pub fn tasks() -> Vec<Vec<u8>> {
    let id = |name: &str| name.parse::<KernelId>().expect("a kernel's name");
    let decode = id("i2_s_t16__scalar__any__r16_c0_n1_u1_p0");
    let prefill = id("i2_s_t16__scalar__any__r16_c0_n4_u1_p0");
    let head = id("head_f16__scalar__any__r1_c0_n1_u1_p0");
    let (wide, narrow) = (Shape::new(64, 32), Shape::new(32, 64));
    let job = |role, parts: &[Shape], layout: Option<Layout>, kernels: [Vec<KernelId>; 2]| {
        let [decode, prefill] = kernels;
        JobTask {
            default_decode: decode[0],
            default_prefill: prefill.first().copied(),
            plan: JobPlan {
                role,
                parts: parts.to_vec(),
                count: 1,
                layouts: vec![LayoutPlan { layout, decode, prefill }],
            },
        }
    };
    let timing = Timing {
        kernel: decode,
        samples: 9,
        min_us: 1.0,
        median_us: 1.5,
        mad_us: 0.1,
        ratio: 1.0,
        half_width: 0.01,
        finalist: true,
    };
    let limits = Limits {
        threads: 2,
        read_gb_per_s: 20.0,
        limit_gb_per_s: 40.5,
        limit_gmac_per_s: Some(100.0),
        cold: false,
    };
    let measure = MeasureTask {
        jobs: vec![
            job(Role::GateUp, &[wide; 2], Some(Layout::I2sT16), [vec![decode], vec![prefill]]),
            job(Role::LmHead, &[Shape::new(8, 32)], None, [vec![head], Vec::new()]),
        ],
        config: Config::from_gguf(&demo()).expect("the demo model is sound"),
        head: HeadFormat::F16,
        model_bytes: 4096,
        ceiling: Isa::Scalar,
        seconds: 1.5,
        repeats: 2,
        whole: false,
        limits: Some(limits),
        done: vec![Unit {
            key: UnitKey { job: 0, layout: 0, prefill: false, repeat: 0 },
            tokens: 1,
            bytes: 1024,
            limit_gb_per_s: 40.0,
            timings: vec![timing],
            baseline_us: 1.5,
            noise: 0.01,
            disturbed: false,
        }],
        excluded: vec![Excluded { kernel: prefill, why: Why::Wrong, found: "1 for 2".into() }],
    };
    let placement = PlacementTask {
        jobs: vec![ChosenJob { parts: vec![wide, wide], count: 1, decode, prefill }],
        placements: vec![Run { threads: 2, pinning: Pinning::Cores, huge_pages: true }],
        model_bytes: 4096,
        seconds: 0.5,
    };
    let kernels = vec![id("columns_i2_s_l64__scalar__any__r64_c32_n1_u1_p0")];
    let sparse = SparseTask {
        jobs: vec![SparseJob { role: Role::Down, parts: vec![narrow], dense: decode, kernels }],
        model_bytes: 4096,
        seconds: 0.5,
    };
    let comparison = ComparisonTask {
        model: Some("m.gguf".into()),
        profile: short(&Shipped::all()[0], 0),
        threads: 2,
        ceiling: Isa::Scalar,
        model_bytes: 4096,
        seconds: 2.0,
    };
    let library = LibraryFile { cache: "cache".into(), sha256: "0".repeat(64) };
    let works = [
        (Work::Measure(Box::new(measure)), Some(library)),
        (Work::Placement(placement), None),
        (Work::Sparse(sparse), None),
        (Work::Comparison(Box::new(comparison)), None),
    ];
    let line = |(work, library)| {
        let task = Task { threads: 2, status: "status".into(), library, work };
        serde_json::to_vec(&task).expect("a task has a JSON form")
    };
    works.map(line).into()
}

#[cfg(test)]
mod tests {
    use crate::TARGETS;

    #[test]
    fn every_seed_is_accepted_and_small() {
        for target in &TARGETS {
            let seeds = (target.seeds)();
            assert!(seeds.len() >= 4, "{}", target.name);
            for (i, seed) in seeds.iter().enumerate() {
                assert!((target.run)(seed), "{}: seed {i}", target.name);
                assert!(seed.len() <= 14 << 10, "{}: seed {i}: {}", target.name, seed.len());
            }
        }
    }

    #[test]
    fn some_mutants_are_accepted_and_some_are_not() {
        for target in &TARGETS {
            let seeds = (target.seeds)();
            let run = |number| (target.run)(&crate::mutant(3, number, &seeds));
            let accepted = (0..1000).filter(|&number| run(number)).count();
            let all = if target.name == "text" { 1000..=1000 } else { 50..=950 };
            assert!(all.contains(&accepted), "{}: {accepted}", target.name);
        }
    }
}
