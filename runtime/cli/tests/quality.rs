//! `bitnet-run quantize` and `perplexity` as a user runs them.

mod program;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use bitnet_profiles::Shape;
use bitnet_runtime::cpu::model::SessionOptions;
use bitnet_runtime::file::gguf::{Gguf, TensorType};
use bitnet_runtime::formats::Codes;
use bitnet_runtime::{BatchToken, Engine, Needs, Options, ProfileChoice};
use bitnet_trials::{Need, Tested, suite};
use program::{answer, both, demo_model, package, refusal};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A passage of Shakespeare's, several hundred tokens of the demo model.
fn sample() -> String {
    package("tests/data/coriolanus.txt")
}

/// The codes of a ternary tensor.
fn codes(gguf: &Gguf, name: &str) -> Vec<u8> {
    let tensor = gguf.tensor(name).unwrap();
    let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
    let stored = Codes::new(tensor.ty, gguf.tensor_bytes(tensor), shape).unwrap();
    let mut codes = vec![0; shape.weights()];
    for (row, codes) in codes.chunks_mut(shape.cols).enumerate() {
        assert_eq!(stored.row(row, codes), None);
    }
    codes
}

fn the_embedding_is_quantised_and_all_else_copied() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Gguf::open(demo_model()).unwrap();
    let embedding = demo.tensor("token_embd.weight").unwrap();
    let mut values = vec![0.0; embedding.elements() as usize];
    let rows = |ty: TensorType| ty.format().rows().unwrap();
    (rows(TensorType::F16).dequantise)(demo.tensor_bytes(embedding), &mut values);
    for (ty, flag) in [
        (TensorType::Q8_0, "--embd"),
        (TensorType::Q5_0, "--token-embedding-type"),
        (TensorType::Q4_0, "-embd"),
        (TensorType::BF16, "--embd"),
    ] {
        let path = dir.path().join(format!("{ty}.gguf"));
        let (out, told) =
            both(&["quantize", &demo_model(), "-o", text(&path), flag, &ty.name().to_uppercase()]);
        assert!(out.is_empty() && told.contains("1 of 68 tensors"), "{told}");
        let found = Gguf::open(&path).unwrap();
        assert!(found.metadata().eq(demo.metadata()));
        for (own, theirs) in found.tensors().iter().zip(demo.tensors()) {
            assert_eq!(own.name, theirs.name);
            if own.name == embedding.name {
                let mut expected = Vec::new();
                (rows(ty).quantise)(&values, &mut expected);
                assert!(found.tensor_bytes(own) == expected, "{ty}");
            } else {
                assert!(found.tensor_bytes(own) == demo.tensor_bytes(theirs), "{}", own.name);
            }
        }
        let written = answer(&["-m", text(&path), "-p", "ROMEO:", "-n", "8", "--temp", "0"]);
        assert!(!written.is_empty());
    }
}

fn ternary_matrices_become_others_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let demo = demo_model();
    // Rows of a multiple of 256.
    let shape = ["dummy", "--shape", "125M", "--layers", "1", "--vocab", &demo, "-o"];
    answer(&[&shape[..], &[text(&at("i2_s.gguf"))]].concat());
    let original = Gguf::open(at("i2_s.gguf")).unwrap();
    let mut from = at("i2_s.gguf");
    for ty in ["tq2_0", "q2_0", "i2_s", "q2_0", "tq2_0", "i2_s"] {
        let to = at(&format!("{}-{ty}.gguf", from.file_stem().unwrap().to_str().unwrap()));
        // The name of the output is made of the input's and the type's.
        answer(&["quantize", text(&from), "--type", ty]);
        let found = Gguf::open(&to).unwrap();
        for tensor in original.tensors().iter().filter(|tensor| tensor.ty == TensorType::I2_S) {
            let own = found.tensor(&tensor.name).unwrap();
            assert_eq!(own.ty.name(), ty, "{}", tensor.name);
            assert!(codes(&found, &tensor.name) == codes(&original, &tensor.name), "{ty}");
        }
        let kind = found.get("general.file_type").unwrap().as_u32();
        assert_eq!(kind, Some(if to.ends_with("i2_s-tq2_0.gguf") { 37 } else { kind.unwrap() }));
        let written =
            answer(&["-m", text(&to), "-p", "the", "-n", "4", "--temp", "0", "--ignore-eos"]);
        assert!(!written.is_empty(), "{ty}");
        from = to;
    }
    // From the second file on the scale is a number of f16, and nothing changes any more.
    let scale = |name: &str| {
        let gguf = Gguf::open(at(name)).unwrap();
        let tensor = gguf.tensor("blk.0.attn_q.weight").unwrap();
        let bytes = gguf.tensor_bytes(tensor);
        f32::from_le_bytes(*bytes[bytes.len() - 32..].first_chunk().unwrap())
    };
    let [first, once, twice] =
        ["i2_s.gguf", "i2_s-tq2_0-q2_0-i2_s.gguf", "i2_s-tq2_0-q2_0-i2_s-q2_0-tq2_0-i2_s.gguf"]
            .map(scale);
    assert!(once == twice && (once / first - 1.0).abs() <= 1.0 / 2048.0);
}

/// A file of llama.cpp's own quantiser holds the same bytes.
fn blocks_of_64_are_llama_cpp_s() -> Tested {
    let theirs = Need::Models.data("models/formats/bard-11m-upstream.q2_0.gguf")?;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q2_0.gguf");
    answer(&["quantize", &demo_model(), "-o", text(&path), "--type", "q2_0"]);
    let (own, theirs) = (Gguf::open(&path).unwrap(), Gguf::open(theirs).unwrap());
    for tensor in own.tensors() {
        let other = theirs.tensor(&tensor.name).unwrap();
        assert!(own.tensor_bytes(tensor) == theirs.tensor_bytes(other), "{}", tensor.name);
    }
    Ok(())
}

fn what_cannot_be_quantised_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let demo = demo_model();
    let new = dir.path().join("new.gguf");
    let copy = dir.path().join("copy.gguf");
    fs::copy(&demo, &copy).unwrap();
    for (args, code, says) in [
        (&["-o", text(&new)][..], 2, "--embd TYPE"),
        (&["-o", text(&new), "--embd", "q6_k"], 2, "multiple of 256"),
        (&["-o", text(&new), "--type", "tq2_0"], 2, "multiple of 256"),
        (&["-o", text(&new), "--head", "q8_0"], 2, "output.weight"),
        (&["-o", text(&new), "--embd", "q9"], 2, "q4_0"),
        (&["-o", text(&new), "--type", "tl1"], 2, "presets"),
        (&["-o", text(&new), "--type", "iq2_bn"], 2, "tq2_0"),
    ] {
        let args = [&["quantize", &demo], args].concat();
        let output = program::run(&args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        assert!(errors.contains(says), "{args:?}: {errors}");
    }
    assert!(!new.exists());
    let own = ["quantize", text(&copy), "-o", text(&copy), "--embd", "q8_0", "--force"];
    assert!(refusal(&own, 2).contains("which is read"));
    fs::write(&new, "mine").unwrap();
    let taken = ["quantize", &demo, "-o", text(&new), "--embd", "q8_0"];
    assert!(refusal(&taken, 2).contains("--force"));
    assert_eq!(fs::read(&new).unwrap(), b"mine");
    // A code that is none, in the middle of a matrix.
    let gguf = Gguf::open(&demo).unwrap();
    let tensor = gguf.tensor("blk.3.ffn_up.weight").unwrap();
    let mut bytes = fs::read(&demo).unwrap();
    bytes[tensor.offset as usize + 96 * 100 + 5] |= 0xc0;
    fs::write(&copy, bytes).unwrap();
    let error = refusal(&["quantize", text(&copy), "--type", "q2_0"], 3);
    assert!(error.contains("blk.3.ffn_up.weight") && error.contains("[100, 5]"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Negative log likelihoods of the tokens that are scored in each window, by the definition.
fn surprises(context: usize, stride: usize) -> Vec<Vec<f64>> {
    let options = Options {
        profile: ProfileChoice::Shipped,
        needs: Needs::All,
        threads: Some(1),
        ..Options::default()
    };
    let engine = Engine::open(demo_model(), options).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let passage = fs::read_to_string(sample()).unwrap();
    let ids = tokenizer.encode(&passage, true, false).unwrap();
    let options = SessionOptions { context: Some(context), batch: 64, kv_type: None, sequences: 1 };
    let mut session = engine.session(options).unwrap();
    let (count, scored) = if stride == 0 {
        (ids.len() / context, context / 2..context - 1)
    } else {
        ((ids.len() - context).div_ceil(stride), context - stride - 1..context - 1)
    };
    let step = if stride == 0 { context } else { stride };
    (0..count)
        .map(|window| {
            session.truncate(0);
            let mut own = ids[window * step..][..context].to_vec();
            own[0] = tokenizer.bos().unwrap();
            let token = |&id| BatchToken { sequence: 0, id, needs: Some(&Needs::All) };
            let tokens: Vec<BatchToken<'_>> = own.iter().map(token).collect();
            let mut surprises = Vec::new();
            let each = &mut |row: usize, logits: &[f32]| {
                if scored.contains(&row) {
                    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
                    let next = ids[window * step + row + 1];
                    surprises.push(sum.ln() - f64::from(logits[next as usize]));
                }
                Ok(())
            };
            session.forward_with(&tokens, each).unwrap();
            surprises
        })
        .collect()
}

/// The running perplexities and the last line, as llama-perplexity writes them.
fn expected(windows: &[Vec<f64>]) -> String {
    let (mut all, mut line) = (Vec::new(), String::new());
    for (i, window) in windows.iter().enumerate() {
        all.extend(window);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        line += &format!("[{}]{:.4},", i + 1, mean.exp());
    }
    let n = all.len() as f64;
    let mean = all.iter().sum::<f64>() / n;
    let variance = all.iter().map(|x| x * x).sum::<f64>() / n - mean * mean;
    let error = (variance / (n - 1.0)).sqrt() * mean.exp();
    format!("{line}\nFinal estimate: PPL = {:.4} +/- {error:.5}\n", mean.exp())
}

/// Values are those of the definition, however many windows go through the model together.
fn ev01_perplexity_is_that_of_the_definition() {
    let (model, sample) = (demo_model(), sample());
    let of = |more: &[&str]| answer(&[&["perplexity", "-m", &model, "-f", &sample], more].concat());
    let windows = surprises(128, 0);
    assert!(windows.len() > 3);
    let lines = expected(&windows);
    assert_eq!(of(&["-c", "128"]), lines);
    for more in [["-b", "128"], ["-b", "300"], ["-ub", "16"], ["-t", "2"], ["--isa", "scalar"]] {
        assert_eq!(of(&[&["-c", "128"], &more[..]].concat()), lines, "{more:?}");
    }
    assert_eq!(of(&["-c", "128", "--chunks", "3"]), expected(&windows[..3]));
    assert_eq!(of(&["-c", "128", "--chunks", "-1"]), lines);
    // Half of the stride is added to the window.
    assert_eq!(of(&["-c", "96", "--ppl-stride", "64"]), expected(&surprises(128, 64)));
    let json: Value = serde_json::from_str(&of(&["-c", "128", "--json"])).unwrap();
    assert_eq!(
        (json["n_ctx"].as_u64(), json["tokens"].as_u64()),
        (Some(128), Some(63 * windows.len() as u64))
    );
    let last = json["perplexities"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(json["perplexity"], last);
    assert!(lines.contains(&format!(
        "PPL = {:.4} +/- {:.5}",
        json["perplexity"].as_f64().unwrap(),
        json["error"].as_f64().unwrap()
    )));
}

/// Other engines' values for the same model and text: activations of theirs are rounded to int8 alike,
/// sums are not taken in the same order.
fn ev01_perplexity_is_near_that_of_other_engines() -> Tested {
    let path = Need::Models.data("models/perplexity/text.txt")?;
    for (context, expected) in
        [("256", &[7.6949, 8.24, 10.4587, 10.1474, 9.4784][..]), ("512", &[19.3458, 14.8098])]
    {
        let args = ["perplexity", "-m", &demo_model(), "-f", text(&path), "-c", context, "--json"];
        let json: Value = serde_json::from_str(&answer(&args)).unwrap();
        let found = json["perplexities"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let ratio = found.as_f64().unwrap() / expected;
            assert!((ratio - 1.0).abs() < 1e-3, "{found} {expected}");
        }
    }
    Ok(())
}

/// A file of log probabilities that bitnet.cpp's `llama-perplexity -c 16 -b 16 --chunks 1` wrote of the
/// same model and text is read, and one written here begins as it does.
fn ev03_a_base_file_of_another_engine_is_read() {
    let theirs = package("tests/data/coriolanus-16.kld");
    let args = ["perplexity", "-m", &demo_model(), "--kl-divergence", "--json"];
    let found = answer(&[&args[..], &["--kl-divergence-base", &theirs]].concat());
    let found: Value = serde_json::from_str(&found).unwrap();
    let of = |name: &str| found["divergence"][name]["mean"].as_f64().unwrap();
    // What it printed for the window; the file keeps 16 bits of each logarithm.
    assert!((of("perplexity_base") / 22.0789 - 1.0).abs() < 1e-4, "{found}");
    assert!(of("divergence") < 1e-3 && of("same_top") == 1.0, "{found}");

    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.kld");
    let args = ["perplexity", "-m", &demo_model(), "-f", &sample(), "-c", "16", "--chunks", "1"];
    answer(&[&args[..], &["--kl-divergence-base", text(&own)]].concat());
    let [own, theirs] = [own.as_path(), Path::new(&theirs)].map(|path| fs::read(path).unwrap());
    let header = 20 + 4 * 16;
    assert_eq!((own.len(), &own[..header]), (theirs.len(), &theirs[..header]));
}

/// A model beside itself, and beside one whose embedding was rounded.
fn ev02_ev03_divergence_is_measured_against_a_base_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, sample) = (demo_model(), sample());
    let base = dir.path().join("base.kld");
    let plain = answer(&["perplexity", "-m", &model, "-f", &sample, "-c", "128"]);
    let args = [
        "perplexity",
        "-m",
        &model,
        "-f",
        &sample,
        "-c",
        "128",
        "--kl-divergence-base",
        text(&base),
    ];
    assert_eq!(answer(&args), plain);
    // The header, and the first token of each window, which begins a text.
    let bytes = fs::read(&base).unwrap();
    let number = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
    let (context, vocab, chunks) = (number(8), number(12), number(16));
    assert_eq!((&bytes[..8], context, vocab), (&b"_logits_"[..], 128, 4096));
    assert!((0..chunks).all(|i| number(20 + 4 * 128 * i) == 0));
    assert_eq!(bytes.len(), 20 + chunks * (4 * 128 + 63 * (2 * 4096 + 8)));
    // The first row is the log probabilities of the definition, to half a step.
    let row = &bytes[20 + 4 * 128 * chunks..];
    let [scale, least] = [0, 4].map(|at| f32::from_le_bytes(*row[at..].first_chunk().unwrap()));
    let next = number(20 + 4 * 65);
    let code = u16::from_le_bytes(*row[8 + 2 * next..].first_chunk().unwrap());
    let nll = -f64::from(scale * f32::from(code) + least);
    assert!((nll - surprises(128, 0)[0][0]).abs() < f64::from(scale), "{nll}");
    assert!((f64::from(scale) * 65_535.0 - 16.0).abs() < 0.1 || scale * 65_535.0 < 16.0);

    let compare = |model: &str, more: &[&str]| {
        let args = ["perplexity", "-m", model, "--kl-divergence", "--kl-divergence-base"];
        answer(&[&args[..], &[text(&base)], more].concat())
    };
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let own = json(&compare(&model, &["--json"]));
    let of = |json: &Value, name: &str| json["divergence"][name]["mean"].as_f64().unwrap();
    assert!(of(&own, "divergence").abs() < 1e-5, "{own}");
    assert_eq!(of(&own, "same_top"), 1.0);
    assert!((of(&own, "perplexity") - of(&own, "perplexity_base")).abs() < 1e-3);
    // Every ISA gives the same numbers, to the bit.
    assert_eq!(json(&compare(&model, &["--json", "--isa", "scalar"])), own);
    assert_eq!(json(&compare(&model, &["--json", "-b", "128"])), own);

    let rounded = dir.path().join("q4_0.gguf");
    answer(&["quantize", &model, "-o", text(&rounded), "--embd", "q4_0"]);
    let other = json(&compare(text(&rounded), &["--json"]));
    let (divergence, top) = (of(&other, "divergence"), of(&other, "same_top"));
    assert!(divergence > 1e-3 && divergence < 0.3, "{divergence}");
    assert!(top > 0.7 && top < 1.0, "{top}");
    let table = compare(text(&rounded), &["--chunks", "2"]);
    for line in
        ["Mean PPL(Q)", "Mean    KLD:", "Maximum KLD:", "RMS \u{394}p", "Same top p:", "   2 "]
    {
        assert!(table.contains(line), "{line}: {table}");
    }
}

/// Base files that are malformed, or of another model.
fn ev04_malformed_base_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, sample) = (demo_model(), sample());
    let base = dir.path().join("base.kld");
    let args = [
        "perplexity",
        "-m",
        &model,
        "-f",
        &sample,
        "-c",
        "64",
        "--chunks",
        "1",
        "--kl-divergence-base",
        text(&base),
    ];
    answer(&args);
    let whole = fs::read(&base).unwrap();
    let refused = |bytes: &[u8], says: &str| {
        fs::write(&base, bytes).unwrap();
        let args =
            ["perplexity", "-m", &model, "--kl-divergence", "--kl-divergence-base", text(&base)];
        let error = refusal(&args, 3);
        assert!(error.contains("base.kld") && error.contains(says), "{says}: {error}");
    };
    for end in [0, 7, 19, 20, 100, whole.len() - 1] {
        refused(&whole[..end], "bytes");
    }
    refused(&[&whole[..], &[0]].concat(), "bytes");
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    refused(&changed(0, b"_logitz_"), "_logitz_");
    for (at, name) in [(8, "n_ctx"), (12, "n_vocab"), (16, "n_chunk")] {
        for number in [0, u32::MAX, 1 << 31] {
            refused(&changed(at, &number.to_le_bytes()), name);
        }
    }
    refused(&changed(16, &2u32.to_le_bytes()), "size");
    refused(&changed(24, &4096u32.to_le_bytes()), "token");
    refused(&changed(20 + 4 * 64, &f32::NAN.to_le_bytes()), "row 0");
    // Of a model with one token less, and as long as it should be.
    let rows = 64 - 1 - 32;
    let mut other = changed(12, &4094u32.to_le_bytes());
    other.truncate(20 + 4 * 64 + rows * (2 * 4094 + 8));
    refused(&other, "4094");

    let short = dir.path().join("short.txt");
    fs::write(&short, "too short").unwrap();
    let error = refusal(&["perplexity", "-m", &model, "-f", text(&short)], 2);
    assert!(error.contains("at least 1024"), "{error}");
    let stride = ["perplexity", "-m", &model, "-f", &sample, "-c", "64", "--ppl-stride", "200"];
    assert!(refusal(&stride, 2).contains("--ppl-stride"));
}

fn main() -> ExitCode {
    suite![
        the_embedding_is_quantised_and_all_else_copied,
        ternary_matrices_become_others_and_come_back,
        blocks_of_64_are_llama_cpp_s,
        what_cannot_be_quantised_is_refused,
        ev01_perplexity_is_that_of_the_definition,
        ev01_perplexity_is_near_that_of_other_engines,
        ev02_ev03_divergence_is_measured_against_a_base_file,
        ev03_a_base_file_of_another_engine_is_read,
        ev04_malformed_base_files_are_refused,
    ]
    .run()
}
