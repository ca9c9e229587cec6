//! `bitnet-run inspect`, `tokenize` and `dummy` as a user runs them.

mod program;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bitnet_profiles::Shape;
use bitnet_runtime::file::gguf::{Gguf, TensorType};
use bitnet_runtime::formats::{Codes, TILES_KEY};
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_runtime::{Engine, Needs, Options, SessionOptions};
use half::f16;
use sha2::{Digest, Sha256};

use program::{answer, command, demo_model, package, refusal};

fn gpt_2() -> String {
    package("../tests/data/tokenizers/gpt-2.gguf")
}

#[test]
fn inspect_shows_metadata_tensors_and_bytes_per_token() {
    let text = answer(&["inspect", &demo_model()]);
    for line in [
        "GGUF version 3, 5690976 bytes",
        "general.architecture",
        "string 'bitnet-b1.58'",
        "array of 4096 string: ['<|begin_of_text|>',",
        "tensors: 68",
        "[384, 4096]",
        "read for each token at decode",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    // By hand: the tied f16 embedding is the head; 6 layers of 384 x (384 + 128 + 128 + 384) and
    // 3 x 384 x 1024 weights at 2 bits plus 32 bytes for each of 7 tensors.
    let word = |name: &str| -> u64 {
        let line = text.lines().find(|l| l.trim().starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    assert_eq!(word("head"), 384 * 4096 * 2);
    let ternary = 6 * (384 * (384 + 128 + 128 + 384) / 4 + 3 * 384 * 1024 / 4 + 7 * 32);
    assert_eq!(word("ternary weights"), ternary);
    assert_eq!(word("norms"), 4 * (6 * (3 * 384 + 1024) + 384));
    assert_eq!(word("embedding row"), 2 * 384);

    let text = answer(&["inspect", &gpt_2()]);
    assert!(text.contains("tensors: 0"), "{text}");
}

#[test]
fn tokenize_prints_a_json_list() {
    let ids = |args: &[&str]| -> Vec<u32> {
        let vocabulary = gpt_2();
        let mut all = vec!["tokenize", "-m", &vocabulary];
        all.extend(args);
        serde_json::from_str(&answer(&all)).unwrap()
    };
    assert_eq!(ids(&["-p", "Hello world"]), [15496, 995]);
    assert_eq!(ids(&["-p", ""]), [0u32; 0]);
    assert_eq!(ids(&["-p", "-n"]), ids(&["--prompt=-n"]));
    assert_eq!(ids(&["--bos", "-p", "Hello world"]), [50256, 15496, 995]);
    assert_eq!(ids(&["--special", "-p", "<|endoftext|>"]), [50256]);
    assert!(ids(&["-p", "<|endoftext|>"]).len() > 1);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    std::fs::write(&file, "Hello world\n").unwrap();
    assert_eq!(ids(&["-f", file.to_str().unwrap()]), [15496, 995, 198]);
}

#[test]
fn dummies_load_and_hold_valid_codes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let small = demo_model();
    let cases: &[(&str, &[&str], TensorType, usize)] = &[
        ("125M", &[], TensorType::F16, 32_002),
        ("1b", &["--embd", "q6_k"], TensorType::Q6_K, 32_002),
        ("2B4T", &["--embd", "q4_0"], TensorType::Q4_0, 128_256),
        ("3b", &["--embd", "q8_0", "--vocab", &small], TensorType::Q8_0, 4096),
        ("large", &["--vocab", &small], TensorType::F16, 4096),
        ("llama8b", &["--embd", "q6_k", "--vocab", &small], TensorType::Q6_K, 4096),
    ];
    for (shape, more, embedding, vocab) in cases {
        let path = file(&format!("{shape}.gguf"));
        let mut args = vec!["dummy", "--shape", shape, "-o", &path, "--layers", "1"];
        args.extend(*more);
        assert_eq!(answer(&args), "", "{shape}");
        let gguf = Gguf::open(&path).unwrap();
        let head = gguf.tensor("token_embd.weight").unwrap();
        assert_eq!((head.ty, head.rows()), (*embedding, *vocab as u64), "{shape}");
        assert_eq!(gguf.tensor("output.weight").is_some(), *shape == "llama8b");
        assert_eq!(Tokenizer::from_gguf(&gguf).unwrap().vocab_size(), *vocab);
        for tensor in gguf.tensors().iter().filter(|t| t.ty == TensorType::I2_S) {
            let bytes = gguf.tensor_bytes(tensor);
            let (codes, tail) = bytes.split_at(bytes.len() - 32);
            // Code 3 has both bits of a pair set.
            assert!(codes.iter().all(|b| b & (b >> 1) & 0x55 == 0), "{}", tensor.name);
            let zeros: u32 = codes.iter().map(|b| (b & 0x55).count_ones()).sum();
            let share = f64::from(zeros) / tensor.elements() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{}: {share}", tensor.name);
            let scale = f32::from_le_bytes(tail[..4].try_into().unwrap());
            assert_eq!(scale, 0.8 / (tensor.cols() as f32).sqrt(), "{}", tensor.name);
            assert!(tail[4..].iter().all(|&b| b == 0));
        }
        let norm = gguf.tensor_bytes(gguf.tensor("output_norm.weight").unwrap());
        assert!(norm.as_chunks().0.iter().all(|&x| f32::from_le_bytes(x) == 1.0));
    }
    assert_eq!(leftovers(dir.path()), cases.len());
}

/// A seed gives the same weights in every type of ternary matrices; where the scale is kept, too, logits
/// are the same to the bit. What is written in tiles says their sizes.
#[test]
fn dummies_of_every_type_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let demo = demo_model();
    let file = |ty: &str| {
        let path = dir.path().join(format!("{ty}.gguf"));
        let shape = ["dummy", "--shape", "large", "--layers", "1", "--vocab", &demo];
        answer(&[&shape[..], &["--outtype", ty, "-o", path.to_str().unwrap()]].concat());
        path
    };
    let codes = |path: &Path| {
        let gguf = Gguf::open(path).unwrap();
        let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        let matrix = |name: &str| {
            let tensor = gguf.tensor(&format!("blk.0.{name}.weight")).unwrap();
            let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
            let stored = Codes::of(&gguf, tensor, shape).unwrap().unwrap();
            let mut codes = vec![9; shape.weights()];
            for (index, row) in codes.chunks_exact_mut(shape.cols).enumerate() {
                assert_eq!(stored.row(index, row), None);
            }
            let scale = stored.scales().uniform().unwrap();
            (tensor.ty, codes, scale)
        };
        names.map(matrix)
    };
    let logits = |path: &Path| -> Vec<u32> {
        let options = Options { needs: Needs::All, threads: Some(2), ..Options::default() };
        let engine = Engine::open(path, options).unwrap();
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let ids: Vec<u32> = (1..40).map(|i| i * i % 4000).collect();
        session.prefill(&ids).unwrap().iter().map(|x| x.to_bits()).collect()
    };
    let i2_s = file("i2_s");
    let (expected, expected_logits) = (codes(&i2_s), logits(&i2_s));
    let types = [
        ("tl1", TensorType::TL1),
        ("tl2", TensorType::TL2),
        ("TQ2_0", TensorType::TQ2_0),
        ("q2_0", TensorType::Q2_0),
    ];
    for (name, ty) in types {
        let path = file(name);
        let exact = ty.format().tiled().is_some();
        for ((own, codes, scale), (_, expected, kept)) in codes(&path).into_iter().zip(&expected) {
            assert_eq!(own, ty);
            assert!(codes == *expected, "{ty}");
            let kept = if exact { *kept } else { f16::from_f32(*kept).to_f32() };
            assert_eq!(scale, kept, "{ty}");
        }
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.get_str(TILES_KEY).unwrap().is_some(), exact);
        if !exact {
            continue;
        }
        assert!(logits(&path) == expected_logits, "{ty}: logits differ");
        // There and back.
        let back = dir.path().join("back.gguf");
        let (path, back) = (path.to_str().unwrap(), back.to_str().unwrap());
        answer(&["quantize", path, "--type", "i2_s", "-o", back, "--force"]);
        assert!(std::fs::read(back).unwrap() == std::fs::read(&i2_s).unwrap(), "{ty}");
        answer(&["quantize", back, "--type", name, "-o", &format!("{back}.2"), "--force"]);
        let [one, two] = [path, &format!("{back}.2")].map(|path| Gguf::open(path).unwrap());
        for tensor in one.tensors() {
            let other = two.tensor(&tensor.name).unwrap();
            assert!(one.tensor_bytes(tensor) == two.tensor_bytes(other), "{}", tensor.name);
        }
    }
}

/// A dummy comes with an embedding of every type that can be one, and runs.
#[test]
fn r7_dummies_of_every_embedding_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (path, demo) = (path.to_str().unwrap(), demo_model());
    for format in bitnet_cli::dummy::tables() {
        let rows = format.rows();
        let name = rows.map_or(format.name, |rows| rows.head.name());
        // 768 columns, three blocks of 256.
        let shape = ["dummy", "--shape", "125M", "--layers", "1", "--vocab", &demo, "--force"];
        answer(&[&shape[..], &["--embd", name, "-o", path]].concat());
        let gguf = Gguf::open(path).unwrap();
        let tensor = gguf.tensor("token_embd.weight").unwrap();
        assert_eq!(tensor.ty, format.ty);
        let mut values = vec![f32::NAN; 768];
        let bytes = gguf.tensor_bytes(tensor);
        if let Some(rows) = rows {
            let width = rows.head.row_bytes(768);
            (rows.dequantise)(&bytes[7 * width..][..width], &mut values);
        } else {
            let shape = Shape::new(tensor.rows() as usize, 768);
            let stored = Codes::new(tensor.ty, bytes, shape).unwrap();
            let mut codes = vec![0; 768];
            assert_eq!(stored.row(7, &mut codes), None);
            for (col, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                let scale = stored.scales().of_columns(768, 7, col..col + 1).unwrap();
                *value = scale * (f32::from(code) - 1.0);
            }
        }
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / 768.0).sqrt();
        // Rows of I2_S do not know their scale.
        let most = if format.ty == TensorType::I2_S { 1.0 } else { 0.03 };
        assert!((0.01..most).contains(&deviation), "{name}: {deviation}");
        let written = |more: &[&str]| {
            let text = ["-m", path, "-p", "ROMEO:", "-n", "4", "--temp", "0", "--ignore-eos"];
            answer(&[&text[..], more].concat())
        };
        let text = written(&[]);
        assert!(!text.is_empty(), "{name}");
        assert_eq!(written(&["--isa", "scalar", "-t", "1"]), text, "{name}");
        let listed = answer(&["inspect", path]);
        let mut words = listed.lines().map(str::split_whitespace);
        let of_embedding = words.find_map(|mut words| {
            words.next().filter(|name| *name == "token_embd.weight").and_then(|_| words.next())
        });
        assert_eq!(of_embedding, Some(format.name));
    }
}

/// A model with windows and norms behind both parts of a layer, one with norms of inputs, and one whose tied
/// head is ternary run as they are written.
#[test]
fn dummies_of_other_architectures_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (path, demo) = (path.to_str().unwrap(), demo_model());
    for (shape, embedding, keys) in [
        ("gemma3-270m", "f16", &[("gemma3.attention.sliding_window", 512)][..]),
        ("embedding-270m", "f16", &[("gemma3.pooling_type", 3)]),
        ("embedding-0.6b", "q2_0", &[("qwen3.pooling_type", 3)]),
        ("bonsai-1.7b", "q2_0", &[]),
    ] {
        let args = ["dummy", "--shape", shape, "--layers", "2", "--vocab", &demo, "--force"];
        answer(&[&args[..], &["--embd", embedding, "-o", path]].concat());
        let gguf = Gguf::open(path).unwrap();
        for (key, value) in keys {
            assert_eq!(gguf.require_u32(key).unwrap(), *value, "{key}");
        }
        let has_norms = gguf.tensor("blk.1.ffn_down_norm_in.weight").is_some();
        assert_eq!(has_norms, shape.starts_with("embedding"), "{shape}");
        let text = ["-m", path, "-p", "ROMEO:", "-n", "4", "--temp", "0", "--ignore-eos"];
        assert!(!answer(&text).is_empty(), "{shape}");
    }
}

/// The table says how near the model is to the trained one: each of the first four shares within
/// three points.
#[test]
fn a_dummy_with_the_sparsity_of_a_trained_model_says_how_near_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let path = path.to_str().unwrap();
    let demo = demo_model();
    let mut args = vec!["dummy", "--shape", "2b4t", "--sparsity", "trained", "--layers", "6"];
    args.extend(["--embd", "q6_k", "--vocab", &demo, "-o", path]);
    let table = answer(&args);
    let rows: Vec<[f64; 2]> = table
        .lines()
        .skip(1)
        .map(|line| {
            let mut numbers = line.split_whitespace().rev().filter_map(|word| word.parse().ok());
            let trained = numbers.next().unwrap();
            [numbers.next().unwrap(), trained]
        })
        .collect();
    assert_eq!(rows.len(), 7, "{table}");
    for [found, trained] in &rows[..4] {
        assert!((found - trained).abs() < 3.0, "{table}");
    }
}

fn leftovers(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_seed_gives_one_dummy() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, seed: &str, more: &[&str]| {
        let path: PathBuf = dir.path().join(name);
        let output = path.to_str().unwrap();
        let mut args = vec!["dummy", "--embd", "q4_0", "-o", output, "--layers", "1"];
        args.extend(["--seed", seed]);
        args.extend(more);
        answer(&args);
        std::fs::read(path).unwrap()
    };
    let demo = demo_model();
    let trained = ["--shape", "2b4t", "--vocab", &demo, "--sparsity", "trained"];
    for more in [&["--shape", "large"][..], &trained] {
        let names = ["a", "b", "c"].map(|name| format!("{name}{}", more.len()));
        let (a, b) = (write(&names[0], "1", more), write(&names[1], "1", more));
        let c = write(&names[2], "2", more);
        assert!(a == b && a != c && a.len() == c.len());
    }
    // Figures taken with such files can be repeated: they do not change between versions.
    let digest = Sha256::digest(write("d", "1", &["--shape", "125M"]));
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "69ca72edbddd8072");
}

#[test]
fn mistakes_are_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (missing, bad, taken, new) = (file("missing"), file("bad"), file("taken"), file("new"));
    std::fs::write(&bad, "PK\x03\x04 and so on, over 24 bytes").unwrap();
    std::fs::write(&taken, "precious").unwrap();
    let latin1 = file("latin1");
    std::fs::write(&latin1, b"caf\xe9").unwrap();
    let nowhere = file("no/such/folder/m.gguf");
    let vocabulary = gpt_2();
    let dir_name = dir.path().to_str().unwrap().to_owned();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["inspect", &missing], 6, &["missing", "cannot open"]),
        (&["inspect", &dir_name], 6, &["directory"]),
        (&["inspect", &bad], 3, &["bad", "zip", "GGUF"]),
        (&["tokenize", "-m", &missing, "-p", "x"], 6, &["missing"]),
        (&["tokenize", "-m", &vocabulary, "-f", &missing], 6, &["missing"]),
        (&["tokenize", "-m", &vocabulary, "-f", &latin1], 6, &["latin1", "byte 3 is not UTF-8"]),
        (&["dummy", "--shape", "9B", "-o", &new], 2, &["--shape", "'9B'", "2b4t", "100B"]),
        (
            &["dummy", "--shape", "3b", "--embd", "q6_k", "-o", &new],
            2,
            &["--embd", "q6_K", "3b", "multiple of 256", "3200"],
        ),
        (
            &["dummy", "--shape", "2b4t", "--sparsity", "trained", "--embd", "q2_0", "-o", &new],
            2,
            &["--embd", "q2_0 with --sparsity trained"],
        ),
        (
            &["dummy", "--shape", "1B", "--sparsity", "trained", "-o", &new],
            2,
            &["--sparsity", "1B", "never exactly 0", "squared ReLU", "2b4t"],
        ),
        (
            &["dummy", "--shape", "llama8b", "--sparsity", "trained", "-o", &new],
            2,
            &["--sparsity", "llama8b", "squared ReLU"],
        ),
        (
            &["dummy", "--shape", "2b4t", "--outtype", "tl2", "-o", &new],
            2,
            &["tl2", "2560x2560", "presets", "Llama3-8B", "i2_s"],
        ),
        (&["dummy", "--shape", "large", "-o", &taken], 2, &["taken", "exists", "--force"]),
        (&["dummy", "--shape", "large", "-o", &nowhere], 6, &["cannot write"]),
        (&["dummy", "--shape", "large", "--vocab", &bad, "-o", &new], 3, &["bad", "zip"]),
    ];
    let before = leftovers(dir.path());
    for (args, code, words) in cases {
        let message = refusal(args, *code);
        assert!(message.starts_with("error: "), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for word in *words {
            assert!(message.contains(word), "{message} lacks {word}");
        }
    }
    assert_eq!(leftovers(dir.path()), before);
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "precious");
    // Usage as clap tells it: more than one line, the same exit code.
    refusal(&["inspect"], 2);
    refusal(&["frobnicate"], 2);
    refusal(&["tokenize", "-m", &vocabulary], 2);
    refusal(&["tokenize", "-m", &vocabulary, "-p", "a", "-f", "b"], 2);
    refusal(&["dummy", "--shape", "3b", "-o", &new, "--layers", "0"], 2);
    refusal(&["dummy", "--shape", "3b", "-o", &new, "--embd", "q2_k"], 2);
    refusal(&["dummy", "--shape", "3b", "-o", &new, "--outtype", "f16"], 2);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = command(&["inspect", &demo_model()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before the first line can be written: the header is read first.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_io_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&["inspect", &demo_model()]).stdout(full).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{errors}");
    assert!(errors.starts_with("error: stdout: cannot write: "), "{errors}");
}
