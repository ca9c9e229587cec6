//! Tokenizers against llama.cpp's published test vectors, and against malformed vocabularies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bitnet_runtime::file::gguf::{Array, Gguf, GgufWriter, Value};
use bitnet_runtime::text::tokenizer::{MAX_TEXT, StreamDecoder, Tokenizer};
use bitnet_trials::{Need, Tested, suite};

fn vectors(folder: &Path, name: &str) {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(folder.join(format!("{name}.gguf"))).unwrap())
        .unwrap_or_else(|e| panic!("{e}"));
    let sentencepiece = matches!(name, "phi-3" | "llama-spm");
    let read = |ext| std::fs::read_to_string(folder.join(format!("{name}.{ext}"))).unwrap();
    let (inputs, outputs) = (read("inp"), read("out"));
    let inputs: Vec<&str> = inputs.split_terminator("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.lines().collect();
    assert!(inputs.len() > 40, "{name}: {} cases", inputs.len());
    assert_eq!(outputs.len(), inputs.len(), "{name}");
    let mut wrong = Vec::new();
    for (input, output) in inputs.iter().zip(&outputs) {
        let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode(input, false, false).unwrap();
        if ids != expected {
            wrong.push(format!("{input:?}: {ids:?}, expected {expected:?}"));
        }
        // SentencePiece puts a space before the text.
        let text = tokenizer.decode(&ids);
        let text = if sentencepiece { text.strip_prefix(' ').unwrap_or(&text) } else { &text };
        assert_eq!(&text, input, "{name}");
    }
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers")
}

fn vectors_of_gpt_2() {
    vectors(&shipped(), "gpt-2");
}

fn vectors_of_falcon() {
    vectors(&shipped(), "falcon");
}

fn vectors_of_phi_3() {
    vectors(&shipped(), "phi-3");
}

/// The llama vocabularies may not be shipped: they are tested where BITNET_TEST_DATA points.
fn vectors_of_the_llama_vocabularies() -> Tested {
    let folder = Need::Vocabularies.data("tokenizers")?;
    vectors(&folder, "llama-spm");
    vectors(&folder, "llama-bpe");
    Ok(())
}

/// The demo model's golden prompts and continuations: BOS first, and back to the same text.
fn golden_ids_of_the_demo_model() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let gguf = Gguf::open(models.join("bard-11m.i2_s.gguf")).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let golden = std::fs::read_to_string(models.join("bard-11m.golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let ids = |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let found = tokenizer.encode(prompt, tokenizer.add_bos(), false).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{prompt}");
        assert_eq!(tokenizer.decode(&found), prompt);
        let text = case["greedy_text"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids(&case["greedy_48"])), text);
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(0), &[1][..]));
}

/// Metadata of a small byte-level vocabulary: the 256 byte characters, `he` and `hello` by merges,
/// an end-of-turn token and a user-defined one.
fn byte_level() -> Vec<(&'static str, Value)> {
    // The printable ASCII characters and U+0100 to U+0143 stand for bytes; enough for the tests.
    let mut tokens: Vec<String> = (0x21..0x7fu32)
        .chain(0xa1..0xad)
        .chain(0xae..0x144)
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect();
    let first = tokens.len();
    tokens.extend(["he", "ll", "hell", "<|eot_id|>", "<user>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    (types[first + 3], types[first + 4]) = (3, 4);
    let merges = ["h e", "l l", "he ll"];
    vec![
        ("tokenizer.ggml.model", Value::Str("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Str("gpt-2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens.iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        ("tokenizer.ggml.merges", Value::Array(Array::Str(merges.iter().collect()))),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
    ]
}

/// Metadata of a small SentencePiece vocabulary with all byte tokens.
fn sentencepiece() -> Vec<(&'static str, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "ab", "\u{2581}ab"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[..3].copy_from_slice(&[2, 3, 3]);
    types[3..259].fill(6);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    vec![
        ("tokenizer.ggml.model", Value::Str("llama".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens.iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))),
    ]
}

type Metadata = Vec<(&'static str, Value)>;

fn build(kv: &Metadata) -> bitnet_runtime::Result<Tokenizer> {
    let mut w = GgufWriter::new();
    for (key, value) in kv {
        w.kv(key, value);
    }
    Tokenizer::from_gguf(&Gguf::from_bytes("v.gguf", w.header())?)
}

fn with(mut kv: Metadata, key: &'static str, value: Option<Value>) -> Metadata {
    kv.retain(|(k, _)| *k != key);
    kv.extend(value.map(|v| (key, v)));
    kv
}

fn special_tokens_count_only_when_asked_and_user_defined_ones_always() {
    let t = build(&byte_level()).unwrap();
    let id = |text: &str| (0..t.vocab_size() as u32).find(|&i| t.token_text(i) == Some(text));
    let (eot, user) = (id("<|eot_id|>").unwrap(), id("<user>").unwrap());
    assert_eq!(t.eos_ids(), [eot]);
    let ids = t.encode("hell<|eot_id|>", true, true).unwrap();
    assert_eq!(ids, [0, id("hell").unwrap(), eot]);
    let ids = t.encode("<|eot_id|>", false, false).unwrap();
    assert!(ids.len() > 1 && !ids.contains(&eot));
    assert_eq!(t.encode("<user>", false, false).unwrap(), [user]);
    assert_eq!(t.decode(&[user, eot, id("he").unwrap()]), "<user>he");
}

fn sentencepiece_joins_by_score_and_falls_back_to_bytes() {
    let t = build(&sentencepiece()).unwrap();
    let ids = t.encode("ab ba\u{e9}", t.add_bos(), false).unwrap();
    let piece = |i: usize| 259 + i as u32;
    let expected = [1, piece(4), piece(0), piece(2), piece(1), 3 + 0xc3, 3 + 0xa9];
    assert_eq!(ids, expected);
    assert_eq!(t.decode(&ids), " ab ba\u{e9}");
    // The control token does not come out of ordinary text.
    assert!(!t.encode("</s>", false, false).unwrap().contains(&2));
    assert_eq!(t.encode("</s>", false, true).unwrap(), [2]);
}

fn streaming_never_splits_a_character() {
    let t = build(&sentencepiece()).unwrap();
    let byte = |b: u8| 3 + u32::from(b);
    let mut stream = StreamDecoder::default();
    let mut push = |id| stream.push(&t, id);
    let parts: Vec<String> = "\u{1f600}!".bytes().map(|b| push(byte(b))).collect();
    assert_eq!(parts, ["", "", "", "\u{1f600}", "!"]);
    // A broken-off character is replaced as soon as it is known to be broken.
    assert_eq!(push(byte(0xf0)), "");
    assert_eq!(push(byte(b'x')), "\u{fffd}x");
    assert_eq!(push(byte(0xff)), "\u{fffd}");
    assert_eq!(push(byte(0xc3)), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    assert_eq!(stream.push(&t, u32::MAX), "");
}

/// In linear time: in quadratic time they would take hours.
fn long_runs_end() {
    let start = Instant::now();
    for kv in [byte_level(), sentencepiece()] {
        let t = build(&kv).unwrap();
        for text in [" ", "\n", "a", "1", "'", " \n"] {
            let text = text.repeat(500_000);
            let ids = t.encode(&text, false, false).unwrap();
            assert_eq!(t.decode(&ids).trim_start().len(), text.trim_start().len());
        }
    }
    let too_long = "a".repeat(MAX_TEXT + 1);
    let error = build(&byte_level()).unwrap().encode(&too_long, false, false);
    assert_eq!(error.unwrap_err().exit_code(), 2);
    assert!(start.elapsed() < Duration::from_secs(600), "{:?}", start.elapsed());
}

/// HOSTILE G83 to G96: what is wrong, in which key, and what would be right.
fn malformed_vocabularies_are_refused_by_name() {
    let strings = |v: &[&str]| Some(Value::Array(Array::Str(v.iter().collect())));
    let replaced = |mut kv: Metadata, id: usize, text: &str| {
        for (key, value) in &mut kv {
            if let (&mut "tokenizer.ggml.tokens", Value::Array(Array::Str(tokens))) = (key, value) {
                let texts: Vec<String> = tokens
                    .iter()
                    .enumerate()
                    .map(|(i, t)| if i == id { text } else { t }.to_owned())
                    .collect();
                *tokens = texts.iter().collect();
            }
        }
        kv
    };
    let (b, s) = (byte_level, sentencepiece);
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    const SCORES: &str = "tokenizer.ggml.scores";
    const MERGES: &str = "tokenizer.ggml.merges";
    let cases: Vec<(&str, Metadata, &[&str])> = vec![
        ("G83", with(b(), TOKENS, None), &["tokens", "no such key"]),
        ("G84", with(b(), TOKENS, strings(&[])), &["tokens", "no token", "at least one"]),
        (
            "G85",
            with(s(), SCORES, Some(Value::Array(Array::F32(vec![0.0; 3])))),
            &["scores", "3 items", "264"],
        ),
        (
            "G86",
            with(b(), TYPES, Some(Value::Array(Array::I32(vec![1; 7])))),
            &["token_type", "7 items"],
        ),
        (
            "G87",
            with(s(), SCORES, Some(Value::Array(Array::U8(vec![0; 264])))),
            &["scores", "array of u8", "array of f32"],
        ),
        (
            "G88",
            with(b(), "tokenizer.ggml.eos_token_id", Some(Value::U32(9999))),
            &["eos_token_id", "9999", "below"],
        ),
        (
            "G88 negative",
            with(b(), "tokenizer.ggml.bos_token_id", Some(Value::I32(-1))),
            &["bos_token_id", "i32 -1", "u32"],
        ),
        ("G89", with(b(), MERGES, strings(&["he"])), &["merges[0]", "'he'", "space"]),
        ("G89 unknown", with(b(), MERGES, strings(&["h q"])), &["merges", "hq"]),
        ("G89 long", with(b(), MERGES, strings(&["<|eot_id|> <|eot_id|>"])), &["merges[0]"]),
        ("G90", with(b(), MERGES, None), &["merges", "no such key"]),
        (
            "G91",
            with(b(), "tokenizer.ggml.pre", Some(Value::Str("klingon".into()))),
            &["pre", "'klingon'", "llama-bpe", "falcon3", "qwen2"],
        ),
        ("G92", replaced(s(), 3, "<0x-1>"), &["tokens[3]", "'<0x-1>'", "'<0xFF>'"]),
        ("G92 letters", replaced(s(), 3, "<0xZZ>"), &["tokens[3]", "'<0xZZ>'"]),
        ("G94", replaced(s(), 260, &"a".repeat(1 << 20)), &["tokens[260]", "1048576 bytes"]),
        (
            "type",
            with(b(), TYPES, Some(Value::Array(Array::I32(vec![99; 261])))),
            &["token_type", "99"],
        ),
        (
            "model",
            with(b(), "tokenizer.ggml.model", Some(Value::Str("bert".into()))),
            &["model", "'bert'", "'gpt2'", "'llama'"],
        ),
    ];
    for (id, kv, words) in cases {
        let error = build(&kv).expect_err(id);
        assert_eq!(error.exit_code(), 3, "{id}: {error}");
        let message = error.to_string();
        assert!(message.starts_with("v.gguf: key "), "{id}: {message}");
        for word in words {
            assert!(message.contains(word), "{id}: {message} lacks {word}");
        }
    }
}

fn unusual_vocabularies_still_work() {
    // G91: a missing `pre` is a warning, as in llama.cpp; G96: so is a missing end token.
    let t = build(&with(byte_level(), "tokenizer.ggml.pre", None)).unwrap();
    assert!(t.warnings().iter().any(|w| w.contains("tokenizer.ggml.pre")));
    // G93: duplicate and empty tokens.
    let tokens = ["a", "", "a", "b"];
    let kv = with(
        byte_level(),
        "tokenizer.ggml.tokens",
        Some(Value::Array(Array::Str(tokens.iter().collect()))),
    );
    let kv = with(kv, "tokenizer.ggml.token_type", None);
    let kv =
        with(kv, "tokenizer.ggml.merges", Some(Value::Array(Array::Str([""; 0].iter().collect()))));
    let t = build(&kv).unwrap();
    assert!(t.warnings().iter().any(|w| w.contains("end-of-generation")));
    assert_eq!(t.encode("ab", false, false).unwrap(), [2, 3]);
    // G95: what no token expresses is an error, never dropped in silence.
    assert_eq!(t.encode("abc", false, false).unwrap_err().exit_code(), 2);
}

fn main() -> ExitCode {
    suite![
        vectors_of_gpt_2,
        vectors_of_falcon,
        vectors_of_phi_3,
        vectors_of_the_llama_vocabularies,
        golden_ids_of_the_demo_model,
        special_tokens_count_only_when_asked_and_user_defined_ones_always,
        sentencepiece_joins_by_score_and_falls_back_to_bytes,
        streaming_never_splits_a_character,
        long_runs_end,
        malformed_vocabularies_are_refused_by_name,
        unusual_vocabularies_still_work,
    ]
    .run()
}
