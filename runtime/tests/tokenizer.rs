//! Tokenizers against llama.cpp's published test vectors, and against malformed vocabularies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bitnet_runtime::Options;
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

/// Vocabularies of llama.cpp's models folder (`ggml-vocab-NAME.gguf` there), by the names that
/// `tokenizer.ggml.pre` gives their families. They are tested where they are copied to.
const FURTHER: [&str; 8] = [
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "mpt",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];

fn vectors_of_a_further_vocabulary(name: &str) -> Tested {
    let folder = std::env::var_os("BITNET_TEST_DATA").ok_or("BITNET_TEST_DATA is not set");
    let folder = folder.map(|folder| PathBuf::from(folder).join("tokenizers"));
    let folder = Need::FurtherVocabularies.met(folder)?;
    let file = folder.join(format!("{name}.gguf"));
    let found = if file.exists() { Ok(()) } else { Err(format!("there is no {}", file.display())) };
    Need::FurtherVocabularies.met(found)?;
    vectors(&folder, name);
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
            with(b(), "tokenizer.ggml.bos_token_id", Some(Value::I32(-2))),
            &["bos_token_id", "i32 -2", "u32"],
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
        (
            "H11",
            with(s(), SCORES, Some(Value::Array(Array::F32(vec![f32::NAN; 264])))),
            &["scores[0]", "NaN", "a number"],
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

/// R6: converters write -1 where there is no such token.
fn r6_an_id_of_minus_one_is_no_token() {
    let values = [Value::I32(-1), Value::I64(-1), Value::U32(u32::MAX), Value::U64(u64::MAX)];
    for name in ["bos", "eos", "eot", "eom", "unknown", "fim_pad", "fim_rep", "fim_sep"] {
        for value in &values {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let mut writer = GgufWriter::new();
            for (own, value) in byte_level().iter().filter(|(own, _)| *own != key) {
                writer.kv(own, value);
            }
            writer.kv(&key, value);
            let gguf = Gguf::from_bytes("v.gguf", writer.header()).unwrap();
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap_or_else(|e| panic!("{name}: {e}"));
            let said = |n: &&bitnet_runtime::Note| n.text.contains(&format!("{key} is -1"));
            assert_eq!(tokenizer.notes().iter().filter(said).count(), 1, "{name} {value}");
            assert_eq!(tokenizer.bos(), (name != "bos").then_some(0));
        }
    }
}

/// R6: the width of a number does not matter, nor its kind where it is exact.
fn r6_scores_and_types_may_be_other_numbers() {
    let kv = sentencepiece();
    let text = "ab ba\u{e9}";
    let expected = build(&kv).unwrap().encode(text, true, false).unwrap();
    let numbers = |name: &str| kv.iter().find(|(key, _)| key.ends_with(name)).unwrap().1.items();
    let scores = || numbers("scores").map(|score| score.as_f32().unwrap());
    let types = || numbers("token_type").map(|kind| kind.as_u32().unwrap());
    for (key, array) in [
        ("tokenizer.ggml.scores", Array::I32(scores().map(|x| x as i32).collect())),
        ("tokenizer.ggml.scores", Array::F64(scores().map(f64::from).collect())),
        ("tokenizer.ggml.token_type", Array::U8(types().map(|x| x as u8).collect())),
        ("tokenizer.ggml.token_type", Array::I64(types().map(i64::from).collect())),
    ] {
        let t = build(&with(sentencepiece(), key, Some(Value::Array(array)))).unwrap();
        assert_eq!(t.encode(text, true, false).unwrap(), expected, "{key}");
    }
}

/// A vocabulary of so many tokens, all of one letter but for some, without a pre-tokenizer's name.
fn nameless(count: usize, named: &[(usize, &str)], pre: Option<&str>) -> Metadata {
    let mut tokens = vec!["x"; count];
    for &(id, text) in named {
        tokens[id] = text;
    }
    let mut kv = vec![
        ("tokenizer.ggml.model", Value::Str("gpt2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens.iter().collect()))),
        ("tokenizer.ggml.merges", Value::Array(Array::Str([""; 0].iter().collect()))),
    ];
    kv.extend(pre.map(|name| ("tokenizer.ggml.pre", Value::Str(name.into()))));
    kv
}

/// W1: the vocabulary tells its pre-tokenizer where the file does not.
fn w1_missing_pre_is_inferred() {
    const BEGIN: &str = "<|begin_of_text|>";
    const START: &str = "<|im_start|>";
    // `'S` is a contraction there, of three digits one piece each.
    type Case = (usize, &'static [(usize, &'static str)], Option<&'static str>);
    let cases: [Case; 9] = [
        (128_256, &[(128_000, BEGIN)], Some("llama-bpe")),
        (151_936, &[(151_644, START)], Some("qwen2")),
        (131_072, &[(5, ">>ABSTRACT<<")], Some("falcon3")),
        (32_768, &[(9, START)], Some("falcon_e")),
        (128_256, &[(128_001, BEGIN)], None),
        (151_936, &[(3, "<|im_end|>")], None),
        (152_001, &[(151_644, START)], None),
        (131_073, &[(5, ">>ABSTRACT<<")], None),
        (32_767, &[(9, START)], None),
    ];
    for (count, named, expected) in cases {
        for pre in [None, Some("default")] {
            let tokenizer = build(&nameless(count, named, pre)).unwrap();
            let about = |n: &&bitnet_runtime::Note| n.text.contains("tokenizer.ggml.pre");
            let notes: Vec<_> = tokenizer.notes().iter().filter(about).collect();
            match (expected, pre) {
                (Some(name), _) => {
                    assert_eq!(notes.len(), 1);
                    assert!(!notes[0].is_warning && notes[0].text.contains(&format!("of {name},")));
                }
                (None, None) => {
                    assert!(notes.len() == 1 && notes[0].is_warning, "{notes:?}");
                    assert!(notes[0].text.contains("name the pre-tokenizer"), "{notes:?}");
                }
                (None, Some(_)) => assert!(notes.is_empty(), "{notes:?}"),
            }
            let llama = matches!(expected, Some("llama-bpe" | "falcon3" | "falcon_e"));
            assert_eq!(tokenizer.add_bos(), llama, "{count}");
        }
    }
}

/// W1: the words of a Llama 3 vocabulary are the same with and without its pre-tokenizer's name; what
/// the user says counts for more than what is inferred.
fn w1_the_words_are_those_of_the_vocabulary() -> Tested {
    let folder = std::env::var_os("BITNET_TEST_DATA").ok_or("BITNET_TEST_DATA is not set");
    let folder = PathBuf::from(Need::Vocabularies.met(folder)?).join("tokenizers");
    let gguf = Gguf::open(folder.join("llama-bpe.gguf")).unwrap();
    let without = |pre: Option<&str>| {
        let mut writer = GgufWriter::new();
        for (key, value) in gguf.metadata().filter(|(key, _)| *key != "tokenizer.ggml.pre") {
            writer.kv(key, value);
        }
        if let Some(name) = pre {
            writer.kv("tokenizer.ggml.pre", &Value::Str(name.into()));
        }
        Gguf::from_bytes("v.gguf", writer.header()).unwrap()
    };
    let text = "I'll say: \"don't\" (they're here).";
    let ids = |gguf: &Gguf| Tokenizer::from_gguf(gguf).unwrap().encode(text, false, false).unwrap();
    let expected = ids(&gguf);
    assert_eq!(expected.len(), 13);
    assert_eq!(ids(&without(None)), expected);
    assert_eq!(ids(&without(Some("default"))), expected);
    for (pre, len) in [("default", 18), ("llama3", 13)] {
        let options = Options { pre: Some(pre.into()), ..Options::default() };
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::copy(folder.join("llama-bpe.gguf"), path.path()).unwrap();
        assert_eq!(ids(&options.file(path.path()).unwrap()).len(), len, "{pre}");
    }
    Ok(())
}

/// llama.cpp's rule, with its exceptions.
fn ch03_every_token_that_ends_a_generation_is_known() {
    let ends = |texts: &[(&str, i32)], more: Metadata| -> Vec<String> {
        let mut kv = byte_level();
        for (key, value) in &mut kv {
            match (*key, value) {
                ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens))) => {
                    let own = tokens.iter().map(str::to_owned).filter(|t| t != "<|eot_id|>");
                    let all: Vec<String> =
                        own.chain(texts.iter().map(|(text, _)| (*text).to_owned())).collect();
                    *tokens = all.iter().collect();
                }
                ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => {
                    types.remove(types.len() - 2);
                    types.extend(texts.iter().map(|(_, kind)| kind));
                }
                _ => {}
            }
        }
        kv.extend(more);
        let t = build(&kv).unwrap();
        t.eos_ids().iter().map(|&id| t.token_text(id).unwrap().to_owned()).collect()
    };
    let all = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|flush|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
        "[e~[",
        "<|fim_pad|>",
        "<fim-pad>",
        "<PAD>",
        "<|fim_repo|>",
        "<fim-repo>",
        "<|repo_name|>",
        "<reponame>",
        "<|file_sep|>",
        "<file_sep>",
        "<fim_sep>",
    ];
    for kind in [2, 3, 4] {
        assert_eq!(ends(&all.map(|text| (text, kind)), vec![]), all, "type {kind}");
    }
    // Ordinary text is none, but for what can be nothing else.
    let ordinary = ends(&all.map(|text| (text, 1)), vec![]);
    let bars = |text: &&str| text.starts_with("<|") && text.ends_with("|>");
    assert_eq!(ordinary, all.into_iter().filter(bars).collect::<Vec<_>>());
    assert!(ends(&all.map(|text| (text, 5)), vec![]).is_empty(), "unused");

    let sets: [(&[&str], &[&str]); 5] = [
        (&["<|end|>", "<|return|>", "<|call|>"], &["<|return|>", "<|call|>"]),
        (&["<|end|>", "<|calls|>", "<|flush|>"], &["<|calls|>", "<|flush|>"]),
        (&["<|end|>", "<|return|>"], &["<|end|>", "<|return|>"]),
        (&["</s>", "<|tool_response>"], &["<|tool_response>"]),
        (&["</s>", "<eos>"], &["</s>", "<eos>"]),
    ];
    for (tokens, expected) in sets {
        let typed: Vec<(&str, i32)> = tokens.iter().map(|text| (*text, 3)).collect();
        assert_eq!(ends(&typed, vec![]), expected);
    }
    // Those that the file names, whatever their texts.
    let named = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"];
    for name in named {
        let key: &'static str = match name {
            "eos" => "tokenizer.ggml.eos_token_id",
            "eot" => "tokenizer.ggml.eot_token_id",
            "eom" => "tokenizer.ggml.eom_token_id",
            "fim_pad" => "tokenizer.ggml.fim_pad_token_id",
            "fim_rep" => "tokenizer.ggml.fim_rep_token_id",
            _ => "tokenizer.ggml.fim_sep_token_id",
        };
        assert_eq!(ends(&[], vec![(key, Value::U32(1))]), ["\""], "{name}");
    }
    // Without types every text counts.
    let tokens: Vec<&str> = ["a", "</s>", "<eos>"].into();
    let kv = with(
        with(byte_level(), "tokenizer.ggml.token_type", None),
        "tokenizer.ggml.tokens",
        Some(Value::Array(Array::Str(tokens.iter().collect()))),
    );
    let kv =
        with(kv, "tokenizer.ggml.merges", Some(Value::Array(Array::Str([""; 0].iter().collect()))));
    assert_eq!(build(&kv).unwrap().eos_ids(), [1, 2]);
}

/// W8: a character that is broken off twice by the same byte is two.
fn w8_broken_characters_are_told_by_their_place() {
    let t = build(&sentencepiece()).unwrap();
    let ids: Vec<u32> = [0xe2, 0xe2, 0x61].map(|b: u8| 3 + u32::from(b)).into();
    assert_eq!(t.decode(&ids), "\u{fffd}\u{fffd}a");
    // All bytes in pairs and threes that begin no character: as the standard library has them.
    let bytes = [0xe2u8, 0x82, 0xf0, 0x9f, 0xc3, 0x61, 0xff];
    for a in bytes {
        for b in bytes {
            for c in bytes {
                for d in bytes {
                    let text = [a, b, c, d];
                    let ids: Vec<u32> = text.iter().map(|&b| 3 + u32::from(b)).collect();
                    assert_eq!(t.decode(&ids), String::from_utf8_lossy(&text), "{text:x?}");
                }
            }
        }
    }
}

/// H11: the bytes of a SentencePiece vocabulary are known by their names.
fn h11_token_types_are_derived_where_there_are_none() {
    let typed = build(&sentencepiece()).unwrap();
    let plain = build(&with(sentencepiece(), "tokenizer.ggml.token_type", None)).unwrap();
    let said = |n: &&bitnet_runtime::Note| n.text.contains("token_type is missing");
    assert_eq!(plain.notes().iter().filter(said).count(), 1);
    assert_eq!(typed.notes().iter().filter(said).count(), 0);
    for text in ["ab ba\u{e9}\n", "<0x0A>", "</s><s>"] {
        let ids = typed.encode(text, true, false).unwrap();
        assert_eq!(plain.encode(text, true, false).unwrap(), ids);
        assert_eq!(plain.decode(&ids), typed.decode(&ids));
    }
    assert_eq!(plain.encode("</s>", false, true).unwrap(), [2]);
    assert_eq!((plain.eos_ids(), plain.bos()), (typed.eos_ids(), Some(1)));
}

fn unusual_vocabularies_still_work() {
    // G91: a missing `pre` is a warning, as in llama.cpp; G96: so is a missing end token.
    let t = build(&with(byte_level(), "tokenizer.ggml.pre", None)).unwrap();
    assert!(t.notes().iter().any(|n| n.text.contains("tokenizer.ggml.pre")));
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
    assert!(t.notes().iter().any(|n| n.text.contains("end-of-generation")));
    assert_eq!(t.encode("ab", false, false).unwrap(), [2, 3]);
    // G95: what no token expresses is an error, never dropped in silence.
    assert_eq!(t.encode("abc", false, false).unwrap_err().exit_code(), 2);
}

fn main() -> ExitCode {
    let mut suite = suite![
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
        r6_an_id_of_minus_one_is_no_token,
        r6_scores_and_types_may_be_other_numbers,
        w1_missing_pre_is_inferred,
        w1_the_words_are_those_of_the_vocabulary,
        ch03_every_token_that_ends_a_generation_is_known,
        w8_broken_characters_are_told_by_their_place,
        h11_token_types_are_derived_where_there_are_none,
        unusual_vocabularies_still_work,
    ];
    for name in FURTHER {
        suite.add(format!("vectors_of::{name}"), move || vectors_of_a_further_vocabulary(name));
    }
    suite.run()
}
