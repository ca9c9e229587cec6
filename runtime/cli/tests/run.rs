//! `bitnet-run` without a subcommand, as a user runs it.

mod program;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use bitnet_profiles::{Format, Isa, KernelId};
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::file::gguf::Gguf;
use program::{answer, both, command, demo_model, layout_of, profile, refusal};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    greedy_48: Vec<u32>,
    greedy_margins: Vec<f32>,
    greedy_text: String,
}

fn golden() -> Vec<Case> {
    let text =
        std::fs::read_to_string(program::package("../../models/bard-11m.golden.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

/// The arguments of a greedy run of the demo model with a prompt, then `more`.
fn greedy<'a>(model: &'a str, prompt: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["-m", model, "-p", prompt, "--temp", "0"], more].concat()
}

fn json(args: &[&str]) -> Value {
    let text = answer(&[args, &["--json"]].concat());
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap();
    ids.iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// By the rule of the golden file; see tests/golden.rs.
#[test]
fn the_golden_text_comes_out() {
    let model = demo_model();
    let mut all_equal = 0;
    for (i, case) in golden().iter().enumerate() {
        let args = greedy(&model, &case.prompt, &["-n", "48"]);
        let report = json(&args);
        assert_eq!(ids(&report["prompt_ids"]), case.ids);
        let (found, expected) = (ids(&report["ids"]), &case.greedy_48);
        let sure = case.greedy_margins.iter().position(|&m| m < 0.03).unwrap_or(expected.len());
        assert_eq!(found[..sure], expected[..sure], "{:?}", case.prompt);
        if found == *expected {
            assert_eq!(report["text"], case.greedy_text.as_str());
            all_equal += 1;
        }
        if i < 3 {
            // Nothing but the text, not even a newline.
            assert_eq!(answer(&args), report["text"].as_str().unwrap());
        }
    }
    assert!(all_equal >= 9, "only {all_equal} of 12 prompts give all golden ids");
}

/// The same text with drafts, and how many there were; without, no word of them.
#[test]
fn drafts_change_nothing_but_the_time() {
    let model = demo_model();
    let prompt = "the king, the queen, the king, the queen, the king, the queen, the king,";
    let plain = json(&greedy(&model, prompt, &["-n", "60"]));
    assert!(plain["timings"].get("draft_n").is_none());
    for more in [&["--lookup"][..], &["-lookup", "-draft", "4"], &["--lookup", "--draft-max", "63"]]
    {
        let report = json(&greedy(&model, prompt, &[&["-n", "60"], more].concat()));
        assert_eq!((&report["ids"], &report["text"]), (&plain["ids"], &plain["text"]));
        assert_eq!(report["memory"]["kv_bytes"], plain["memory"]["kv_bytes"]);
        let of = |key: &str| report["timings"][key].as_u64().unwrap();
        assert!(of("draft_n") > 0 && of("draft_n_accepted") <= of("draft_n"), "{report}");
        assert_eq!(report["timings"]["decode_n"], plain["timings"]["decode_n"]);
    }
    let args = greedy(&model, prompt, &["-n", "60", "--lookup"]);
    let (text, errors) = both(&args);
    assert_eq!(text, plain["text"].as_str().unwrap());
    assert!(errors.contains("lookup: ") && errors.contains(" tokens drafted, "), "{errors}");
    for n in ["0", "64"] {
        let mistake = refusal(&greedy(&model, prompt, &["--lookup", "--draft-max", n]), 2);
        assert!(mistake.contains("--draft-max") && mistake.contains("1..=63"), "{mistake}");
    }
}

/// By a scan of the head the same text comes out, and where all logits are needed all are read.
#[test]
fn the_head_is_scanned_as_asked() {
    let model = demo_model();
    let sampled = ["-m", &model, "-p", "ROMEO:", "-n", "30", "--seed", "3", "--ignore-eos"];
    let text = |more: &[&str]| {
        let report = json(&[&sampled[..], &["--repeat-penalty", "1.1"], more].concat());
        (report["text"].clone(), report["lm_head"].clone())
    };
    for temperature in ["0", "0.8"] {
        let of = |how: &str| text(&["--temp", temperature, "--lm-head", how]);
        let (full, exact) = (of("full"), of("exact"));
        assert_eq!(full.0, exact.0);
        assert!(full.1["scan"].is_null() && full.1["scanned"] == 0.0);
        let id: KernelId = exact.1["scan"].as_str().unwrap().parse().unwrap();
        assert!(id.isa.is_supported());
        assert_eq!(exact.1["scanned"], 1.0);
        let bytes = exact.1["bytes_per_token"].as_f64().unwrap();
        assert!(bytes > 0.0 && bytes < full.1["bytes_per_token"].as_f64().unwrap() / 2.0);
    }
    let all = text(&["--temp", "0.8", "--top-k", "0", "--lm-head", "exact"]);
    assert!(all.1["scan"].is_null());
}

#[test]
fn json_says_what_ran() {
    let model = demo_model();
    let report = json(&greedy(&model, "ROMEO:", &["-n", "5", "-t", "2", "-c", "100"]));
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(
        keys(&report),
        [
            "finish_reason",
            "huge_pages",
            "ids",
            "kernels",
            "lm_head",
            "memory",
            "pinning",
            "profile",
            "prompt_ids",
            "seed",
            "text",
            "threads",
            "timings"
        ]
    );
    let timings = &report["timings"];
    let number = |value: &Value| value.as_f64().unwrap();
    assert_eq!((timings["prompt_n"].as_u64(), timings["predicted_n"].as_u64()), (Some(3), Some(5)));
    assert_eq!(timings["decode_n"].as_u64(), Some(4));
    for part in ["prompt", "predicted"] {
        let [n, ms, per_token, per_second] = ["n", "ms", "per_token_ms", "per_second"]
            .map(|key| number(&timings[format!("{part}_{key}")]));
        assert!(ms > 0.0, "{timings}");
        assert!((per_token * n / ms - 1.0).abs() < 1e-9, "{timings}");
        assert!((per_second * ms / 1e3 / n - 1.0).abs() < 1e-9, "{timings}");
    }
    assert!(number(&timings["load_ms"]) > 0.0);
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["threads"], 2);

    let kernels = &report["kernels"];
    for role in ["qkv", "attn_output", "gate_up", "down", "lm_head"] {
        for phase in ["decode", "prefill"] {
            let id: KernelId = kernels[role][phase].as_str().unwrap().parse().unwrap();
            assert!(id.isa.is_supported());
        }
    }
    assert_eq!(kernels["lm_head"]["layout"], "f16");
    assert_eq!(kernels["lm_head"]["packed_bytes"], 4096 * 384 * 2);
    // 2 bits for each of 6 x 384 x 1024 weights, whose rows need no padding.
    assert_eq!(kernels["down"]["packed_bytes"], 6 * 384 * 1024 / 4);
    assert_eq!(report["profile"]["source"], "shipped");

    let memory = &report["memory"];
    assert_eq!(memory["file_bytes"], std::fs::metadata(&model).unwrap().len());
    assert_eq!(memory["packed_bytes"], 6 * (384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024) / 4);
    // f32 keys and values: 7 positions of 100 are used, the last token never being evaluated.
    let position = 2 * 4 * 6 * 128;
    assert_eq!(memory["kv_bytes"], 7 * position);
    assert_eq!(memory["kv_reserved_bytes"], 100 * position);
    assert!(memory["tokenizer_bytes"].as_u64().unwrap() > 100_000);
    if cfg!(target_os = "linux") {
        assert!(memory["peak_rss_bytes"].as_u64().unwrap() > 5_000_000);
    }
    let half = json(&greedy(&model, "ROMEO:", &["-n", "5", "-c", "100", "-ctk", "f16"]));
    assert_eq!(half["memory"]["kv_reserved_bytes"], 50 * position);
    // Codes, and a scale for each key and value of two heads.
    let codes = json(&greedy(&model, "ROMEO:", &["-n", "5", "-c", "100", "-ctk", "q8_0"]));
    assert_eq!(codes["memory"]["kv_reserved_bytes"], 100 * (position / 4 + 2 * 4 * 6 * 2));
}

#[test]
fn stderr_sums_up() {
    let model = demo_model();
    let (_, errors) = both(&greedy(&model, "ROMEO:", &["-n", "5", "-t", "1"]));
    let (name, _) = bitnet_runtime::cpu::kernels::shipped().ternary(None, Isa::best());
    for line in [
        &format!("profile: {name} for "),
        "loaded: ",
        ", 1 threads, context 1024",
        "prompt: 3 tokens in ",
        "decode: 4 tokens in ",
        "tokens/s (length)",
        "memory: file 5.7 MB, packed 2.4 MB, KV cache ",
    ] {
        assert!(errors.contains(line), "{line} is not in\n{errors}");
    }
    assert!(!errors.contains("seed"), "{errors}");
}

/// A copy of the demo model in which the text ends with token `end`.
fn ending_with(end: u32, path: &Path) {
    let mut bytes = std::fs::read(demo_model()).unwrap();
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    assert_eq!(bytes[at..at + 4], 4u32.to_le_bytes(), "type u32");
    bytes[at + 4..at + 8].copy_from_slice(&end.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_text_ends_for_one_of_three_reasons() {
    let model = demo_model();
    let case = &golden()[1];
    let reason = |args: &[&str]| {
        let report = json(args);
        let reason = report["finish_reason"].as_str().unwrap().to_owned();
        (reason, ids(&report["ids"]))
    };
    let length = reason(&greedy(&model, &case.prompt, &["-n", "10"]));
    assert_eq!(length, ("length".into(), case.greedy_48[..10].to_vec()));
    assert_eq!(reason(&greedy(&model, &case.prompt, &["-n", "0"])), ("length".into(), vec![]));

    // 3 tokens of prompt and 7 more fill the context; one more can be chosen, but not evaluated.
    for n in ["-1", "-2", "9"] {
        let full = reason(&greedy(&model, &case.prompt, &["-n", n, "-c", "10"]));
        assert_eq!(full, ("context".into(), case.greedy_48[..8].to_vec()), "-n {n}");
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ends.gguf");
    let end = case.greedy_48[6];
    let before = case.greedy_48.iter().position(|&id| id == end).unwrap();
    ending_with(end, &path);
    let ending = path.to_str().unwrap();
    let stop = reason(&greedy(ending, &case.prompt, &["-n", "-1"]));
    assert_eq!(stop, ("stop".into(), case.greedy_48[..before].to_vec()));
    let (reason, found) = reason(&greedy(ending, &case.prompt, &["-n", "40", "--ignore-eos"]));
    assert_eq!((reason.as_str(), found.len()), ("length", 40));
    assert_eq!(found[..before], case.greedy_48[..before]);
    assert!(!found.contains(&end));
}

#[test]
fn the_text_depends_on_neither_threads_nor_batch_nor_kernels() {
    let model = demo_model();
    let case = &golden()[11];
    let text =
        |more: &[&str]| answer(&greedy(&model, &case.prompt, &[&["-n", "24"], more].concat()));
    let expected = text(&[]);
    assert!(!expected.is_empty());
    for threads in ["1", "2", "3"] {
        assert_eq!(text(&["-t", threads]), expected, "-t {threads}");
    }
    for batch in [["-ub", "1"], ["-b", "7"], ["--ubatch-size", "16"]] {
        assert_eq!(text(&batch), expected, "{batch:?}");
    }
    for placement in [
        &["--cpu-strict", "1"][..],
        &["--huge-pages", "0"],
        &["--mlock"],
        &["--no-mmap"],
        &["-no-mmap", "-mlock", "-cpu-strict", "1", "-t", "2", "-huge-pages", "0"],
    ] {
        assert_eq!(text(placement), expected, "{placement:?}");
    }
    for format in Format::ALL {
        assert_eq!(text(&["--format", format.name()]), expected, "{format}");
    }
    for &isa in Isa::ALL {
        if isa.is_supported() {
            assert_eq!(text(&["--isa", isa.name()]), expected, "{isa}");
        } else {
            let args = greedy(&model, "x", &["--isa", isa.name()]);
            let message = refusal(&args, 5);
            assert!(message.contains(Isa::best().name()), "{message}");
        }
    }
}

#[test]
fn isa_and_format_are_obeyed_and_said() {
    let model = demo_model();
    let args = greedy(&model, "x", &["-n", "1", "--isa", "scalar", "--format", "tl1", "--json"]);
    let (text, errors) = both(&args);
    let report: Value = serde_json::from_str(&text).unwrap();
    for role in ["qkv", "attn_output", "gate_up", "down"] {
        let kernels = &report["kernels"][role];
        assert!(kernels["layout"].as_str().unwrap().starts_with("tl1"), "{kernels}");
        for phase in ["decode", "prefill"] {
            let id: KernelId = kernels[phase].as_str().unwrap().parse().unwrap();
            assert_eq!(id.isa, Isa::Scalar, "{id}");
        }
    }
    assert!(errors.contains("isa and format given"), "{errors}");
}

#[test]
fn a_seed_gives_one_text() {
    let model = demo_model();
    let text =
        |seed: &str| both(&["-m", &model, "-p", "ROMEO:", "-n", "30", "--temp", "1.5", "-s", seed]);
    let (first, errors) = text("7");
    assert!(errors.contains("seed: 7\n"), "{errors}");
    assert_eq!(text("7").0, first);
    assert_ne!(text("8").0, first);
    // A random seed is told, and gives the same text again.
    let (random, errors) = text("-1");
    let seed = errors.lines().find_map(|line| line.strip_prefix("seed: ")).unwrap();
    assert_eq!(text(seed).0, random);
    // Another time, another seed: two of 32 bits.
    let again = text("-1").1;
    assert!(!again.contains(&format!("seed: {seed}\n")), "{again}");
}

#[test]
fn flags_reach_the_sampler() {
    let model = demo_model();
    let text = |more: &[&str]| {
        answer(&[&["-m", &*model, "-p", "ROMEO:", "-n", "30", "-s", "7"], more].concat())
    };
    let greedy = text(&["--temp", "0"]);
    // Each alone leaves only the most likely token.
    for flag in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        assert_eq!(text(&[&flag[..], &["--temp", "2"]].concat()), greedy, "{flag:?}");
    }
    let defaults = Sampling::default();
    let spelled: Vec<String> = [
        ("--temp", defaults.temperature.to_string()),
        ("--top-k", defaults.top_k.to_string()),
        ("--top-p", defaults.top_p.to_string()),
        ("--min-p", defaults.min_p.to_string()),
        ("--repeat-penalty", defaults.repeat_penalty.to_string()),
        ("--repeat-last-n", defaults.repeat_last_n.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    let spelled: Vec<&str> = spelled.iter().map(String::as_str).collect();
    assert_eq!(text(&[]), text(&spelled));
    assert_ne!(text(&[]), greedy);
    let penalised = text(&["--temp", "0", "--repeat-penalty", "2"]);
    assert_ne!(penalised, greedy);
    assert_eq!(text(&["-temp", "0", "--repeat-penalty", "2", "--repeat-last-n", "0"]), greedy);
}

/// R3: numbers beyond a range do what they do in llama.cpp.
#[test]
fn r3_numbers_mean_what_they_mean_in_llama_cpp() {
    let model = demo_model();
    let cpus = std::thread::available_parallelism().unwrap().get();
    for threads in ["0", "-1", "-8"] {
        assert_eq!(json(&greedy(&model, "x", &["-n", "1", "-t", threads]))["threads"], cpus);
    }
    let sampled = ["-m", &model, "-p", "ROMEO:", "-n", "12", "-s", "3"];
    let text = |more: &[&str]| answer(&[&sampled[..], more].concat());
    let same: &[(&[&str], &[&str])] = &[
        (&["--temp", "-0.5"], &["--temp", "0"]),
        (&["--top-k", "-1"], &["--top-k", "0"]),
        (&["--top-k", "-40"], &["--top-k", "0"]),
        (&["--top-p", "1.5"], &["--top-p", "1"]),
        (&["--top-p", "-1"], &["--top-p", "0"]),
        (&["--min-p", "-0.1"], &["--min-p", "0"]),
        (&["--min-p", "2"], &["--min-p", "1"]),
        (&["-ub", "0"], &["-ub", "512"]),
        (&["-b", "100000", "-ub", "100000"], &[]),
        (&["-s", "4294967299"], &["-s", "3"]),
        (&["-s", "-4294967293"], &["-s", "3"]),
        (&["-s", "-2"], &["-s", "4294967294"]),
    ];
    for (given, meant) in same {
        assert_eq!(text(given), text(meant), "{given:?}");
    }
    // Any other seed each time.
    for seed in ["-1", "4294967295"] {
        let told = |_| both(&[&sampled[..], &["-s", seed]].concat()).1;
        let [first, second] = [0, 1].map(told).map(|errors| {
            errors.lines().find(|line| line.starts_with("seed: ")).unwrap().to_owned()
        });
        assert!(first != second && !first.contains(seed), "{first} {second}");
    }
    // Until the context is full.
    let all = |n: &str| json(&greedy(&model, "x", &["-c", "10", "-n", n]))["ids"].clone();
    assert_eq!(all("-3"), all("-1"));
}

#[test]
fn a_context_beyond_the_model_s_is_cut() {
    let model = demo_model();
    let (_, errors) = both(&greedy(&model, "x", &["-n", "1", "-c", "2048"]));
    assert!(errors.contains("context: 1024, ") && errors.contains("not 2048"), "{errors}");
    let (_, errors) = both(&greedy(&model, "x", &["-n", "1", "-c", "0"]));
    assert!(errors.contains("context 1024\n") && !errors.contains("not 0"), "{errors}");
}

#[test]
fn mistakes_are_told() {
    let model = demo_model();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (missing, bad) = (file("missing.gguf"), file("bad.gguf"));
    std::fs::write(&bad, "GGUF, but not really one").unwrap();
    let folder = dir.path().to_str().unwrap().to_owned();
    let m = |more: &[&str]| [&["-m", &*model], more].concat().join("\u{1f}");
    let other = |more: &[&str]| more.join("\u{1f}");
    let cases: &[(String, i32, &[&str])] = &[
        (other(&["-p", "x"]), 2, &["--model", "-m MODEL"]),
        (other(&["-m", &missing, "-p", "x"]), 6, &["missing.gguf", "cannot open"]),
        (other(&["-m", &folder, "-p", "x"]), 6, &["directory"]),
        (other(&["-m", &bad, "-p", "x"]), 3, &["bad.gguf", "version"]),
        (m(&["-f", &missing]), 6, &["missing.gguf", "cannot open"]),
        // 14 tokens and BOS.
        (m(&["-c", "8", "-p", &golden()[0].prompt]), 2, &["prompt", "15 tokens", "at most 8"]),
        (m(&["-p", "x", "-ctk", "f16", "-ctv", "f32"]), 2, &["--cache-type-v", "f32"]),
        (m(&["-p", "x", "-ctv", "q8_0", "-ctk", "f16"]), 2, &["--cache-type-v", "q8_0"]),
        (m(&["-p", "x", "-ctk", "q4_0"]), 2, &["--cache-type-k", "f16, f32, q8_0"]),
        (m(&["-p", "x", "-n", "many"]), 2, &["--predict", "many"]),
        (m(&["-p", "x", "-c", "-1"]), 2, &["--ctx-size", "-1"]),
        (m(&["-p", "x", "-c", "4294967295"]), 2, &["--ctx-size", "0..="]),
        (m(&["-p", "x", "-t", "1025"]), 2, &["--threads", "1..=1024"]),
        (m(&["-p", "x", "-b", "0"]), 2, &["--batch-size", "1..="]),
        (m(&["-p", "x", "-ub", "-1"]), 2, &["--ubatch-size", "-1"]),
        (m(&["-p", "x", "--temp", "101"]), 2, &["--temp", "up to 100"]),
        (m(&["-p", "x", "--temp", "nan"]), 2, &["--temp", "up to 100"]),
        (m(&["-p", "x", "--temp", "hot"]), 2, &["--temp", "up to 100"]),
        (m(&["-p", "x", "--top-p", "nan"]), 2, &["--top-p", "0 to 1"]),
        (m(&["-p", "x", "--min-p", "low"]), 2, &["--min-p", "0 to 1"]),
        (m(&["-p", "x", "--repeat-penalty", "0"]), 2, &["--repeat-penalty", "0.01..=100"]),
        (m(&["-p", "x", "--repeat-last-n", "-2"]), 2, &["--repeat-last-n", "-1..="]),
        (m(&["-p", "x", "--format", "q4_0"]), 2, &["--format", "i2_s, tl1, tl2"]),
        (m(&["-p", "x", "--isa", "sse9"]), 2, &["--isa", "scalar, avx2"]),
        (m(&["-p", "x", "--frobnicate"]), 2, &["--frobnicate"]),
        (m(&["-p", "x", "--profile", &missing]), 6, &["missing.gguf", "cannot open"]),
        (m(&["-p", "x", "--profile", &bad]), 4, &["bad.gguf", "line 1", "bitnet-tune"]),
        (m(&["-p", "x", "--profile", &folder]), 4, &["regular file"]),
    ];
    for (args, code, words) in cases {
        let args: Vec<&str> = args.split('\u{1f}').collect();
        let message = refusal(&args, *code);
        for word in *words {
            assert!(message.contains(word), "{message} lacks {word}");
        }
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}

#[test]
fn a_named_profile_is_used_and_finds_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.toml");
    let name = file.to_str().unwrap();
    let model = demo_model();
    let expected = answer(&greedy(&model, "ROMEO:", &["-n", "12"]));

    profile(Some(std::path::absolute(&model).unwrap())).save(&file).unwrap();
    let alone = ["--profile", name, "-p", "ROMEO:", "--temp", "0", "-n", "12"];
    let report = json(&alone);
    assert_eq!(report["text"], expected.as_str());
    assert!(layout_of(&report).starts_with("tl1"), "{report}");
    assert_eq!(report["profile"]["source"], "file");
    assert_eq!(report["profile"]["name"], name);
    assert_eq!(report["threads"], 1, "the profile's");
    assert_eq!(json(&[&alone[..], &["-t", "2"]].concat())["threads"], 2);

    // A relative path begins where the profile is.
    std::fs::copy(&model, dir.path().join("m.gguf")).unwrap();
    profile(Some("m.gguf".into())).save(&file).unwrap();
    assert_eq!(json(&alone)["text"], expected.as_str());

    // The flags win, and that is said.
    let (text, errors) = both(&[&alone[..], &["--format", "i2_s", "--json"]].concat());
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["text"], expected.as_str());
    assert!(layout_of(&report).starts_with("i2_s"), "{report}");
    assert!(errors.contains("overrides") && errors.contains(name), "{errors}");

    // Another CPU's profile may be slow, never wrong.
    let mut foreign = profile(Some("m.gguf".into()));
    foreign.host.cpu = "Some Other CPU".into();
    foreign.host.family += 1;
    foreign.model.shapes = "0123456789abcdef".into();
    foreign.ops.remove(0);
    foreign.save(&file).unwrap();
    let (text, errors) = both(&alone);
    assert_eq!(text, expected);
    assert!(errors.contains("other shapes") && errors.contains("Some Other CPU"), "{errors}");

    profile(None).save(&file).unwrap();
    let message = refusal(&alone, 2);
    assert!(message.contains("--model") && message.contains("host.toml"), "{message}");
    profile(Some("gone.gguf".into())).save(&file).unwrap();
    assert!(refusal(&alone, 6).contains("gone.gguf"));
    profile(Some("host.toml".into())).save(&file).unwrap();
    assert!(refusal(&alone, 3).contains("host.toml"));
}

/// The text comes piece by piece: of a long generation by the slowest kernels the first byte is
/// here long before the last. And a reader who leaves is no error.
#[test]
fn text_streams_and_a_reader_may_leave() {
    let model = demo_model();
    let args = greedy(&model, "ROMEO:", &["-n", "-1", "--isa", "scalar", "-t", "1"]);
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("loaded: "), "{errors}");
    assert!(!errors.contains("error") && !errors.contains("decode: "), "{errors}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_io_error() {
    let model = demo_model();
    for more in [&[][..], &["--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let args = greedy(&model, "x", &[&["-n", "2"], more].concat());
        let output = command(&args).stdout(full).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{errors}");
        assert!(errors.contains("error: stdout: cannot write: "), "{errors}");
    }
}

/// F04: memory that the system does not lock is used unlocked.
#[cfg(unix)]
#[test]
fn a_lock_that_is_denied_is_told() {
    let model = demo_model();
    let args = greedy(&model, "ROMEO:", &["-n", "4"]);
    let expected = answer(&args);
    let program = command(&args);
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -l 0; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .arg("--mlock")
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let told = errors.lines().filter(|line| line.contains("ulimit -l")).count();
    // Root may lock whatever it likes.
    let root = rustix::process::geteuid().is_root();
    assert!(told == 1 || root && told == 0, "{errors}");
}

/// Neither a closed input nor an odd terminal, locale or path is in the way.
#[cfg(unix)]
#[test]
fn surroundings_do_not_matter() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsString::from_vec(b"m\xff\xfe.gguf".to_vec()));
    std::fs::copy(demo_model(), &path).unwrap();
    let args: Vec<OsString> = vec![
        "-m".into(),
        path.into_os_string(),
        "-p".into(),
        "ROMEO:".into(),
        "-n".into(),
        "4".into(),
        "--json".into(),
    ];
    let output = command(&args)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("TERM", "dumb")
        .env("COLUMNS", "0")
        .env_remove("HOME")
        .env("XDG_CONFIG_HOME", "relative")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["timings"]["predicted_n"], 4);
    let help = command(&["--help"]).env("COLUMNS", "0").output().unwrap();
    assert!(help.status.success() && help.stdout.len() > 1000);
}

/// A file whose embedding is not a number gives no text instead of a made-up one.
#[test]
fn a_model_that_gives_no_numbers_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let gguf = Gguf::open(demo_model()).unwrap();
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    let at = usize::try_from(embedding.offset).unwrap();
    let mut bytes = std::fs::read(demo_model()).unwrap();
    for half in bytes[at..at + embedding.bytes as usize].chunks_exact_mut(2) {
        half.copy_from_slice(&0x7e00u16.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let nan = path.to_str().unwrap();
    for args in [&greedy(nan, "x", &[])[..], &["-m", nan, "-p", "x", "--temp", "1"]] {
        let message = refusal(args, 1);
        assert!(message.contains("no numbers"), "{message}");
    }
    let message = refusal(&["bench", "-m", nan, "-p", "4", "-n", "0", "-r", "1", "-o", "json"], 1);
    assert!(message.contains("NaN"), "{message}");
}

/// A short prompt has its first token before weights are packed, and the text is the same.
#[test]
fn a_text_begins_before_weights_are_packed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let (path, demo) = (path.to_str().unwrap(), demo_model());
    // 85 million weights, which take longer to pack than those of the demo model.
    answer(&["dummy", "--shape", "125M", "--vocab", &demo, "-o", path]);
    let run = |prompt: &str, more: &[&str]| -> (Value, String) {
        let args = [&greedy(path, prompt, &["--json", "--ignore-eos"])[..], more].concat();
        let (report, errors) = both(&args);
        (serde_json::from_str(&report).unwrap(), errors)
    };
    let layouts = |report: &Value| {
        ["qkv", "attn_output", "gate_up", "down"]
            .map(|role| report["kernels"][role]["layout"].as_str().unwrap().to_owned())
    };
    let packed = "packed: amid the text";
    let (begun, errors) = run("ROMEO:", &["-n", "260"]);
    assert!(errors.contains(packed), "{errors}");
    assert!(begun["timings"]["pack_ms"].as_f64().unwrap() > 0.0);
    assert!(!layouts(&begun).contains(&"file".into()), "{begun}");

    // Nothing is packed for few tokens.
    for n in [1, 140] {
        let (few, errors) = run("ROMEO:", &["-n", &n.to_string()]);
        assert!(!errors.contains(packed), "{errors}");
        assert_eq!(layouts(&few), ["file"; 4]);
        assert_eq!(few["memory"]["packed_bytes"], 0);
        let ids = |report: &Value| report["ids"].as_array().unwrap()[..n].to_vec();
        assert_eq!(ids(&few), ids(&begun));
    }

    // With drafts a batch may come next.
    let (drafts, _) = run("ROMEO: ROMEO: ROMEO:", &["-n", "6", "--lookup"]);

    // Packed first: where a packing is asked for, and for a long prompt.
    let long = "Now is the winter of our discontent. ".repeat(8);
    let (first, errors) = run("ROMEO:", &["-n", "260", "--format", "i2_s"]);
    assert!(!errors.contains(packed), "{errors}");
    assert_eq!(first["ids"], begun["ids"]);
    assert!(first["timings"].get("pack_ms").is_none());
    let (undrafted, _) = run("ROMEO: ROMEO: ROMEO:", &["-n", "6", "--format", "i2_s"]);
    assert_eq!(undrafted["ids"], drafts["ids"]);
    let (after_long, errors) = run(&long, &["-n", "2"]);
    assert!(!errors.contains(packed), "{errors}");
    assert!(after_long["prompt_ids"].as_array().unwrap().len() > 64);
}

/// Before any work is done, and with what helps.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_memory_does_not_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let path = path.to_str().unwrap();
    let demo = demo_model();
    let shape = ["dummy", "--shape", "2b4t", "--layers", "8", "--embd", "q8_0", "--vocab", &demo];
    answer(&[&shape[..], &["-o", path]].concat());
    let program = command(&greedy(path, "ROMEO:", &["--format", "i2_s", "-n", "1"]));
    let limited = |megabytes: usize| {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes << 10)])
            .arg(program.get_program())
            .args(program.get_args())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // Room for the program and the map of the file; and not even for that.
    let words = ["m.gguf", "151 MB", "available", "--format t5", "27 MB less"];
    for (megabytes, code, words) in [(240, 1, &words[..]), (140, 6, &["do not fit into memory"])] {
        let (found, errors) = limited(megabytes);
        assert_eq!(found, Some(code), "{errors}");
        let error = errors.lines().last().unwrap();
        for word in words {
            assert!(error.contains(word), "{error} lacks {word}");
        }
    }
}
