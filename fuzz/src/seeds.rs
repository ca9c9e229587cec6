//! Seeds that mutants are made from: small files and messages, each accepted as it is.

use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{Format, HeadFormat, Isa, KernelId, Pinning, Profile, Role, Run, Shape};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::file::gguf::{Array, Gguf, StrArray, TensorType, Value};
use bitnet_runtime::text::tokenizer::byte_alphabet;
use bitnet_runtime::{Engine, Options, ProfileChoice};
use bitnet_tuner::measure::{Excluded, Limits, Timing, Unit, UnitKey, Why};
use bitnet_tuner::plan::{JobPlan, JobTask, LayoutPlan};
use bitnet_tuner::protocol::{
    ChosenJob, ComparisonTask, LibraryFile, MeasureTask, PlacementTask, SparseJob, SparseTask,
    Task, Work,
};

use crate::editor::{self, Parts};
use crate::{joined, state};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// Tokens of the demo model's vocabulary that are kept where a small one is wanted.
const FEW: usize = 300;

/// Offset of the data in a file of packed weights whose table is short.
const DATA: usize = 2 << 20;

type Metadata = Vec<(String, Value)>;

fn pair(key: &str, value: Value) -> (String, Value) {
    (key.into(), value)
}

fn strings<S: AsRef<str>>(texts: &[S]) -> Value {
    Value::Array(Array::Str(texts.iter().collect()))
}

/// A file of these keys, without tensors.
fn header(metadata: Metadata) -> Vec<u8> {
    Parts { kv: metadata, tensors: Vec::new() }.bytes()
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
    header(byte_level_metadata())
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
    header(sentencepiece_metadata(true))
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
    let mut all = vec![header(demo_metadata())];
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

/// A model of one layer with this vocabulary, in bytes.
fn model(architecture: &str, tokenizer: Metadata) -> Vec<u8> {
    let mut parts = editor::layers(architecture, 1);
    let tokens = tokenizer.iter().find_map(|(key, value)| match value {
        Value::Array(Array::Str(tokens)) if key == TOKENS => Some(tokens.len()),
        _ => None,
    });
    let vocab = tokens.expect("it has tokens") as u64;
    let key = |name: &str| format!("{architecture}.{name}");
    parts.set("general.name", Value::Str("tiny".into()));
    parts.set("general.alignment", Value::U32(32));
    parts.set(&key("rope.scaling.type"), Value::Str("linear".into()));
    parts.set(&key("rope.scaling.factor"), Value::F32(2.0));
    parts.set(&key("vocab_size"), Value::U32(vocab as u32));
    parts.kv.extend(tokenizer);
    // A row is one block.
    let embedding = parts.tensor("token_embd.weight");
    (embedding.dims, embedding.ty) = (vec![editor::HIDDEN, vocab], TensorType::Q4_0);
    embedding.data = vec![0; 18 * vocab as usize];
    parts.bytes()
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
    let with_text = |(metadata, text): (Metadata, Vec<u8>)| joined(&text, &header(metadata));
    metadata.into_iter().zip(texts()).map(with_text).collect()
}

/// A task of every kind of work.
pub fn tasks() -> Vec<Vec<u8>> {
    let id = |name: &str| name.parse::<KernelId>().expect("a kernel's name");
    let decode = id("i2_s_t16__scalar__any__r16_c0_n1_u1_p0");
    let prefill = id("i2_s_t16__scalar__any__r16_c0_n4_u1_p0");
    let head = id("head_f16__scalar__any__r1_c0_n1_u1_p0");
    let (wide, narrow) = (Shape::new(64, 32), Shape::new(32, 64));
    let job = |role, parts: &[Shape], kernels: [Vec<KernelId>; 2]| {
        let [decode, prefill] = kernels;
        let layout = decode[0].op.packing();
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
            job(Role::GateUp, &[wide; 2], [vec![decode], vec![prefill]]),
            job(Role::LmHead, &[Shape::new(8, 32)], [vec![head], Vec::new()]),
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

/// A model of one layer with a byte-level vocabulary.
pub fn small_model() -> Vec<u8> {
    model("bitnet-b1.58", byte_level_metadata())
}

/// Templates of every style, each with a conversation.
pub fn templates() -> Vec<Vec<u8>> {
    let talks = [
        r#"{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi <|eot_id|> "}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c", "reasoning_content": "b"}, {"role": "user", "content": "d"}], "variables": {"enable_thinking": false, "n": 3}}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {"x": [1, 2.5, null]}}]}, {"role": "tool", "content": "7"}], "tools": [{"name": "f", "parameters": {"type": "object"}}]}"#,
    ];
    let templates = [
        "{% for m in messages %}{{ bos_token if loop.first }}{{ m['role'] | capitalize + ': ' + (m['content'] ~ '') | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        "{%- set ns = namespace(last=-1, s='') -%}\n{%- for m in messages[::-1] %}{% if m.role == 'user' and ns.last < 0 %}{% set ns.last = loop.index0 %}{% endif %}{% set ns.s = ns.s ~ (m.content ~ '').split('</think>')[-1].lstrip('\\n') %}{%- endfor %}\n{{ ns.s.replace('a', 'aa') }}{{ ns.last }}{% if enable_thinking is defined and not enable_thinking %}<think>{% endif %}",
        "{% macro call(c) %}{{ c.name }}({{ c.arguments | tojson(indent=2) }}){% endmacro %}{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ call(c) }}{% endfor %}{% elif m.content is string %}{{ m.content.upper() }}{% else %}{{ raise_exception('no content') }}{% endif %}{% endfor %}",
        "{% generation %}{% for a in range(9) %}{% if a is divisibleby 2 %}{% continue %}{% endif %}{{ a ~ strftime_now('%Y') | length }}{% endfor %}{% endgeneration %}{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    ];
    let talks = talks.iter().cycle();
    let pairs = talks.zip(templates.iter().cycle()).take(12);
    pairs.map(|(talk, template)| joined(talk.as_bytes(), template.as_bytes())).collect()
}

/// JSON schemas, and grammars in GBNF and Lark.
pub fn grammars() -> Vec<Vec<u8>> {
    [
        "{}",
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}}, "required": ["name"], "additionalProperties": false}"#,
        r##"{"$defs": {"t": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 3}]}}, "$ref": "#/$defs/t"}"##,
        r#"{"enum": ["a", 1, null], "type": ["string", "number"]}"#,
        r#"{"type": "string", "pattern": "^[a-z]{2,4}(-[0-9]+)?$"}"#,
        "root ::= \"yes\" | \"no\" [.!]?\n",
        "root ::= expr (\",\" ws expr)*\nexpr ::= term ([-+] term)*\nterm ::= [0-9]{1,3} | \"(\" expr \")\"\nws ::= [ \\t\\n]*\n",
        "# a comment\nroot ::= <|eot_id|> | !<user> \"\\x41\\u00e9\" [^\\]\\n]+\n",
        "%llguidance {}\nstart: /[a-c]+/ other{2,3}\nother: \" \" (A | \"x\")\nA: /[0-9]{2}/\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Saved conversations.
pub fn talks() -> Vec<Vec<u8>> {
    let talk = |system: &str, parameters: &str, messages: &str| {
        format!(
            r#"{{"format": "bitnet-chat", "version": 1, "model": {{"name": "m", "fingerprint": "00ff"}}, "template": "bitnet", "system": {system}, "parameters": {parameters}, "messages": {messages}}}"#
        )
        .into_bytes()
    };
    let parameters = r#"{"seed": 7, "num_predict": -1, "top_k": 40, "top_p": 0.95, "temperature": 0.8, "repeat_last_n": 64, "stop": ["A", "\"B"]}"#;
    let messages = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]"#;
    vec![
        talk("null", "{}", "[]"),
        talk(r#""Be kind.""#, parameters, messages),
        talk("null", r#"{"min_p": 0.05, "presence_penalty": -1.5}"#, messages),
        talk(
            r#""""#,
            parameters,
            r#"[{"role": "tool", "content": null, "x": {"y": [1e3, null]}}]"#,
        ),
    ]
}

/// Saved KV caches of the small model, of a few tokens and of all that its context holds.
pub fn saved_kvs() -> Vec<Vec<u8>> {
    let mut session = state::new_session();
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let lengths = [1, 5, 17, session.context()];
    let saved = lengths.map(|tokens| {
        let ids: Vec<u32> = (0..tokens as u32).collect();
        session.truncate(0);
        session.prefill(&ids).expect("they fit");
        let path = folder.path().join(tokens.to_string());
        session.save(0, &ids, &path).expect("the folder can be written");
        std::fs::read(path).expect("it was written")
    });
    saved.into()
}

/// Files of packed weights of the small model, without their data and with its length in front.
pub fn packed() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let model = folder.path().join("m.gguf");
    std::fs::write(&model, small_model()).expect("the folder can be written");
    let pack = |format| {
        let options = Options { format, threads: Some(1), ..Options::default() };
        let profile = ProfileChoice::Shipped;
        let engine = Engine::open(&model, Options { profile, ..options }).expect("a sound model");
        let path = folder.path().join("packed");
        engine.keep_packed(Some(&path)).expect("the folder can be written");
        let file = std::fs::read(&path).expect("it was written");
        let (table, data) = file.split_at_checked(DATA).expect("it has data");
        let used = table.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        [&(data.len() as u32).to_le_bytes()[..], &table[..used]].concat()
    };
    Format::ALL.iter().map(|&format| pack(Some(format))).collect()
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
