//! `bitnet-run convert`: Hugging Face folders become the files that they should.

mod folder;
mod hostile;
#[path = "../program/mod.rs"]
mod program;
mod transformers;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use bitnet_profiles::Shape;
use bitnet_runtime::file::gguf::{Gguf, TensorType, Value};
use bitnet_runtime::formats::{Codes, Scales};
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_trials::{Need, Tested, suite};
use folder::{Folder, Form, bf16_bytes, text};
use half::bf16;
use program::{answer, both, demo_model, refusal};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Converts a folder into its own folder and opens what was written.
fn convert(folder: &Path, more: &[&str]) -> Gguf {
    let output = folder.join("out.gguf");
    let mut args = vec!["convert", text(folder), "-o", text(&output), "--force"];
    args.extend(more);
    answer(&args);
    Gguf::open(output).unwrap()
}

/// The codes and the scale of a ternary tensor.
fn codes(gguf: &Gguf, name: &str) -> (Vec<u8>, f32) {
    let tensor = gguf.tensor(name).unwrap();
    let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
    let stored = Codes::new(tensor.ty, gguf.tensor_bytes(tensor), shape).unwrap();
    let mut codes = vec![0; shape.weights()];
    for (row, codes) in codes.chunks_mut(shape.cols).enumerate() {
        assert_eq!(stored.row(row, codes), None, "{name}");
    }
    (codes, stored.scales().uniform().unwrap())
}

/// Asserts that two files hold the same tensors, byte by byte.
fn assert_same_tensors(a: &Gguf, b: &Gguf) {
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (a_tensor, b_tensor) in a.tensors().iter().zip(b.tensors()) {
        let of =
            |t: &bitnet_runtime::file::gguf::TensorInfo| (t.name.clone(), t.dims.clone(), t.ty);
        assert_eq!(of(a_tensor), of(b_tensor));
        assert!(a.tensor_bytes(a_tensor) == b.tensor_bytes(b_tensor), "{}", a_tensor.name);
    }
}

fn greedy(model: &Path) -> String {
    answer(&["-m", text(model), "-p", "ROMEO:", "-n", "48", "--temp", "0"])
}

/// The folder made from the demo model becomes that model again.
fn cv01_a_packed_folder_becomes_the_file_it_is_of() {
    let demo = Gguf::open(demo_model()).unwrap();
    let dir = Folder::demo(&demo, Form::Multiply).write();
    let found = convert(dir.path(), &["--name", "bard-11m"]);
    assert_same_tensors(&found, &demo);
    for (key, value) in demo.metadata() {
        assert_eq!(found.get(key), Some(value), "{key}");
    }
    let added: Vec<&str> =
        found.metadata().map(|(key, _)| key).filter(|key| demo.get(key).is_none()).collect();
    assert_eq!(added, ["general.quantization_version"]);
    assert_eq!(greedy(&dir.path().join("out.gguf")), greedy(Path::new(&demo_model())));
}

/// Both published folders of the demo model.
fn cv01_published_folders_become_the_demo_model() -> Tested {
    let demo = Gguf::open(demo_model()).unwrap();
    for (name, exact) in [("bard-11m-hf-packed", true), ("bard-11m-hf-bf16", false)] {
        let folder = Need::Models.data(&format!("models/{name}"))?;
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("m.gguf");
        answer(&["convert", text(&folder), "-o", text(&output)]);
        let found = Gguf::open(&output).unwrap();
        if exact {
            assert_same_tensors(&found, &demo);
        }
        for tensor in demo.tensors() {
            if tensor.ty == TensorType::I2_S {
                let (own, scale) = codes(&found, &tensor.name);
                let (theirs, expected) = codes(&demo, &tensor.name);
                assert!(own == theirs, "{}", tensor.name);
                assert!((scale / expected - 1.0).abs() < 2.0 * f32::EPSILON, "{}", tensor.name);
            } else {
                let own = found.tensor(&tensor.name).unwrap();
                assert!(found.tensor_bytes(own) == demo.tensor_bytes(tensor), "{}", tensor.name);
            }
        }
        assert_eq!(greedy(&output), greedy(Path::new(&demo_model())), "{name}");
    }
    Ok(())
}

/// A model is the same however its scale is meant, and in however many files it is.
fn cv03_cv07_forms_and_shards_change_nothing() {
    let packed = Folder::small("BitNetForCausalLM", Form::Multiply);
    let dir = packed.write();
    let expected = convert(dir.path(), &[]);
    for matrix in Folder::small_matrices() {
        let name = matrix.name.replace("model.layers.0.", "");
        let own = [
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.down_proj", "ffn_down"),
        ];
        if let Some((_, own)) = own.iter().find(|(theirs, _)| *theirs == name) {
            let (codes, scale) = codes(&expected, &format!("blk.0.{own}.weight"));
            assert!(codes == matrix.codes && scale == matrix.scale, "{name}");
        }
    }
    let divided = Folder::small("BitNetForCausalLM", Form::Divide).write();
    assert_same_tensors(&convert(divided.path(), &[]), &expected);
    // What config.json says can be overruled, if the number may be meant so.
    let mut wrong = Folder::small("BitNetForCausalLM", Form::Divide);
    wrong.config["quantization_config"]["linear_class"] = json!("autobitlinear");
    let wrong = wrong.write();
    assert_same_tensors(&convert(wrong.path(), &["--scale", "divide"]), &expected);
    for count in [2, 5] {
        let sharded = packed.write_sharded(count);
        assert_same_tensors(&convert(sharded.path(), &[]), &expected);
    }
    // Another order of tensors in the file.
    let mut reversed = packed.clone();
    reversed.tensors.reverse();
    let reversed = reversed.write();
    assert_same_tensors(&convert(reversed.path(), &[]), &expected);
}

/// Masters are rounded by the mean of their magnitudes.
fn masters_are_rounded_by_their_mean() {
    let mut folder = Folder::small("BitNetForCausalLM", Form::Floats);
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut random = bitnet_runtime::random::Random::new(5);
    let values: Vec<f32> = (0..256 * 128)
        .map(|_| bf16::from_f32(random.below(4001) as f32 / 10_000.0 - 0.2).to_f32())
        .collect();
    folder.tensor(name).3 = bf16_bytes(&values);
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    let (codes, scale) = codes(&found, "blk.0.ffn_up.weight");
    let mean = values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len() as f64;
    assert!((f64::from(scale) / mean - 1.0).abs() < 1e-6);
    for (code, value) in codes.iter().zip(&values) {
        let expected = (f64::from(*value) / mean).round_ties_even().clamp(-1.0, 1.0);
        // Nothing lies so near to a half that the last digit of the mean matters.
        assert_eq!(f64::from(*code) - 1.0, expected, "{value}");
    }
}

/// Rows of q and k stand as llama.cpp's rotary embedding pairs them.
fn cv04_rows_of_llama_are_in_its_order() {
    let mut packed = Folder::small("LlamaForCausalLM", Form::Divide);
    let bias: Vec<f32> = (0..128).map(|i| i as f32 / 64.0).collect();
    let name = "model.layers.0.self_attn.q_proj.bias";
    packed.tensors.push((name.into(), "BF16", vec![128], bf16_bytes(&bias)));
    let dir = packed.write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_str("general.architecture").unwrap(), "llama");
    assert!(found.tensor("output.weight").is_some());
    let matrices = Folder::small_matrices();
    let of = |name: &str| matrices.iter().find(|m| m.name.ends_with(name)).unwrap();
    let rows = |codes: &[u8]| -> Vec<Vec<u8>> { codes.chunks(128).map(<[u8]>::to_vec).collect() };
    for (own, theirs, rotated) in
        [("attn_q", "q_proj", true), ("attn_k", "k_proj", true), ("attn_v", "v_proj", false)]
    {
        let (found, _) = codes(&found, &format!("blk.0.{own}.weight"));
        let (found, original) = (rows(&found), rows(&of(theirs).codes));
        for (row, codes) in original.iter().enumerate() {
            // Element i of a head, of 64, is paired with i + 32 there and with its neighbour here.
            let (head, i) = (row / 64 * 64, row % 64);
            let place = if rotated { head + i % 32 * 2 + i / 32 } else { row };
            assert!(found[place] == *codes, "{own} row {row}");
        }
    }
    let tensor = found.tensor("blk.0.attn_q.bias").unwrap();
    let mut values = vec![0.0; 128];
    (tensor.ty.format().rows().unwrap().dequantise)(found.tensor_bytes(tensor), &mut values);
    for (i, value) in bias.iter().enumerate() {
        assert_eq!(values[i / 64 * 64 + i % 32 * 2 + i % 64 / 32], *value);
    }
    // The same as floats of one magnitude.
    packed.tensors.retain(|tensor| tensor.0.ends_with("bias"));
    let mut floats = Folder::small("LlamaForCausalLM", Form::Floats);
    floats.tensors.extend(packed.tensors);
    let floats = floats.write();
    assert_same_tensors(&convert(floats.path(), &[]), &found);
}

fn what_is_not_ternary_is_refused_unless_asked_for() {
    let mut folder = Folder::small("LlamaForCausalLM", Form::Floats);
    let tensor = folder.tensor("model.layers.0.mlp.gate_proj.weight");
    tensor.3[2 * 700..][..2].copy_from_slice(&bf16::from_f32(0.0625).to_le_bytes());
    let dir = folder.write();
    let error = refusal(&["convert", text(dir.path())], 3);
    for says in ["gate_proj", "0.0625 at [5, 60]", "--ternarise"] {
        assert!(error.contains(says), "{error}");
    }
    let found = convert(dir.path(), &["--ternarise"]);
    assert_eq!(codes(&found, "blk.0.ffn_gate.weight").0.len(), 256 * 128);
}

/// Keys say what config.json says.
fn keys_are_those_of_the_config() {
    let mut folder = Folder::small("LlamaForCausalLM", Form::Divide);
    folder.config.insert("rope_theta".into(), json!(500_000.0));
    folder.config.insert(
        "rope_scaling".into(),
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 128 }),
    );
    folder.config.insert("vocab_size".into(), json!(301));
    folder.tokenizer_config["chat_template"] = json!("{{ messages }}");
    let dir = folder.write();
    let (_, told) = both(&["convert", text(dir.path()), "--name", "x/y"]);
    assert!(told.contains("300 rows"), "{told}");
    let path = dir.path().join("x-y-i2_s.gguf");
    let found = Gguf::open(&path).unwrap();
    assert_eq!(found.require_str("general.name").unwrap(), "x/y");
    assert_eq!(found.require_u32("llama.vocab_size").unwrap(), 300);
    assert_eq!(found.require_f32("llama.rope.freq_base").unwrap(), 500_000.0);
    assert_eq!(found.require_str("tokenizer.chat_template").unwrap(), "{{ messages }}");
    assert_eq!(found.get("tokenizer.ggml.eos_token_id"), Some(&Value::U32(1)));
    let tokens = found.get_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens.get(299)), (300, Some("[PAD299]")));
    // By hand: of 32 frequencies of base 500,000 the fast ones stay, the slow ones are divided by 8.
    let tensor = found.tensor("rope_freqs.weight").unwrap();
    let bytes = found.tensor_bytes(tensor);
    let factors: Vec<f32> =
        bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
    assert_eq!(factors.len(), 32);
    // Wavelengths 2 pi 500000^(i / 32): 6.3, 9.5, 14.3, 21.5, 32.4 | 48.9 ... 111 | 168.
    assert!(factors[..4].iter().all(|&f| f == 1.0) && factors[9..].iter().all(|&f| f == 8.0));
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]), "{factors:?}");
    // It runs.
    let text = answer(&["-m", text(&path), "-p", "the", "-n", "4", "--temp", "0", "--ignore-eos"]);
    assert!(!text.is_empty());
}

/// A list of what would be written; nothing is.
fn a_dry_run_writes_nothing() {
    let dir = Folder::small("BitNetForCausalLM", Form::Multiply).write();
    let output = dir.path().join("m.gguf");
    let list = answer(&["convert", text(dir.path()), "-o", text(&output), "--dry-run"]);
    for line in
        ["blk.0.attn_q.weight", "self_attn.q_proj.weight U8 [32, 128]", "2000 texts", "gpt-2"]
    {
        assert!(list.contains(line), "{list}");
    }
    assert!(!output.exists());
}

/// Every type of matrices and of the embedding is written, and what runs here writes the same text.
fn types_are_those_that_were_asked_for() {
    let demo = Gguf::open(demo_model()).unwrap();
    let dir = Folder::demo(&demo, Form::Multiply).write();
    let tensor = |gguf: &Gguf, name: &str| gguf.tensor(name).unwrap().ty;
    let found = convert(dir.path(), &["--type", "q2_0", "--embd", "q8_0"]);
    assert_eq!(tensor(&found, "blk.0.attn_q.weight"), TensorType::Q2_0);
    assert_eq!(tensor(&found, "token_embd.weight"), TensorType::Q8_0);
    for tensor in demo.tensors().iter().filter(|tensor| tensor.ty == TensorType::I2_S) {
        let (own, scale) = codes(&found, &tensor.name);
        let (theirs, expected) = codes(&demo, &tensor.name);
        assert!(own == theirs && (scale / expected - 1.0).abs() < 1.0 / 2048.0, "{}", tensor.name);
    }
    let error = refusal(
        &["convert", text(dir.path()), "-o", text(&dir.path().join("x")), "--embd", "q6_k"],
        2,
    );
    assert!(error.contains("--embd") && error.contains("256"), "{error}");
    let small = Folder::small("LlamaForCausalLM", Form::Divide).write();
    let found = convert(small.path(), &["--type", "f16", "--embd", "keep", "--head", "q4_0"]);
    assert_eq!(tensor(&found, "blk.0.attn_q.weight"), TensorType::F16);
    assert_eq!(tensor(&found, "token_embd.weight"), TensorType::BF16);
    assert_eq!(tensor(&found, "output.weight"), TensorType::Q4_0);
}

/// Matrices of zeros are told, or refused.
fn zeros_are_told() {
    let mut folder = Folder::small("BitNetForCausalLM", Form::Multiply);
    folder.tensor("model.layers.0.self_attn.v_proj.weight").3.fill(0x55);
    let dir = folder.write();
    let output = dir.path().join("m.gguf");
    let (_, told) = both(&["convert", text(dir.path()), "-o", text(&output)]);
    assert!(told.contains("warning") && told.contains("blk.0.attn_v.weight"), "{told}");
    let strict = ["convert", text(dir.path()), "-o", text(&output), "--force", "--strict"];
    let before = fs::read(&output).unwrap();
    let error = refusal(&strict, 3);
    assert!(error.contains("blk.0.attn_v.weight"), "{error}");
    assert!(fs::read(&output).unwrap() == before);
}

/// CV05: SentencePiece vocabularies, from either file.
fn cv05_sentencepiece_vocabularies_are_taken() {
    let mut folder = Folder::small("LlamaForCausalLM", Form::Divide);
    let (tokens, kinds, merges) = sentencepiece();
    folder.tokenizer = sentencepiece_json(&tokens, &kinds, &merges);
    folder.tokenizer_config =
        json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_str("tokenizer.ggml.model").unwrap(), "llama");
    let tokenizer = Tokenizer::from_gguf(&found).unwrap();
    assert!(tokenizer.add_bos());
    let by_json = tokenizer.encode("the inner theatre", false, false).unwrap();
    assert!(by_json.len() < 12, "{by_json:?}");
    // The other file says the same.
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("tokenizer.model"), sentencepiece_model(&tokens, &kinds, &merges))
        .unwrap();
    let (_, told) =
        both(&["convert", text(dir.path()), "-o", text(&dir.path().join("out.gguf")), "--force"]);
    assert!(told.contains("not checked"), "{told}");
    let found = Gguf::open(dir.path().join("out.gguf")).unwrap();
    let tokenizer = Tokenizer::from_gguf(&found).unwrap();
    assert_eq!(tokenizer.encode("the inner theatre", false, false).unwrap(), by_json);
}

/// Tokens, types and merges of a small SentencePiece vocabulary.
fn sentencepiece() -> (Vec<String>, Vec<u8>, Vec<(String, String)>) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut kinds = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    kinds.resize(tokens.len(), 6);
    let letters = ["\u{2581}", "t", "h", "e", "i", "n", "r", "a"];
    tokens.extend(letters.map(str::to_owned));
    let merges = [("t", "h"), ("th", "e"), ("i", "n"), ("\u{2581}", "the"), ("e", "r")];
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    kinds.resize(tokens.len(), 1);
    let merges = merges.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    (tokens, kinds, merges)
}

fn sentencepiece_json(
    tokens: &[String],
    kinds: &[u8],
    merges: &[(String, String)],
) -> serde_json::Value {
    let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let kinds: Vec<i32> = kinds.iter().map(|&kind| i32::from(kind)).collect();
    let mut json = folder::byte_level(tokens, &kinds, &merges);
    json["normalizer"] = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "\u{2581}" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" } ] });
    json["pre_tokenizer"] = json!(null);
    json["decoder"] = json!(null);
    json["model"]["byte_fallback"] = json!(true);
    json["model"]["fuse_unk"] = json!(true);
    json["model"]["unk_token"] = json!("<unk>");
    json
}

fn sentencepiece_model(tokens: &[String], kinds: &[u8], merges: &[(String, String)]) -> Vec<u8> {
    fn message(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.extend([number << 3 | 2, bytes.len() as u8 | 128, (bytes.len() >> 7) as u8]);
        out.extend(bytes);
    }
    let mut file = Vec::new();
    for (text, kind) in tokens.iter().zip(kinds) {
        let rank = merges.iter().position(|(a, b)| format!("{a}{b}") == *text);
        let score = rank.map_or(0.0, |rank| -(rank as f32) - 1.0);
        let mut piece = Vec::new();
        message(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, *kind]);
        message(&mut file, 1, &piece);
    }
    message(&mut file, 2, &[3 << 3, 2]);
    file
}

/// Tokens of pictures, which a model of texts has no embedding of, are left out, and told.
fn cv05_tokens_without_an_embedding_are_left_out() {
    let mut folder = Folder::small("Gemma3ForCausalLM", Form::Floats);
    let (mut tokens, mut kinds, merges) = sentencepiece();
    // Its id is the first behind those of the model.
    tokens.extend((tokens.len()..300).map(|id| format!("<unused{id}>")));
    kinds.resize(tokens.len(), 1);
    folder.tokenizer = sentencepiece_json(&tokens, &kinds, &merges);
    // As Gemma's: no space in front of a text.
    folder.tokenizer["normalizer"] =
        json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    folder.tokenizer["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "String": " " },
        "behavior": "MergedWithPrevious", "invert": false });
    let added = folder.tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut picture = added[0].clone();
    picture["id"] = json!(300);
    picture["content"] = json!("<image_soft_token>");
    added.push(picture);
    folder.tokenizer_config =
        json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
    let dir = folder.write();
    let output = dir.path().join("m.gguf");
    let (_, told) = both(&["convert", text(dir.path()), "-o", text(&output)]);
    assert!(told.contains("'<image_soft_token>', id 300") && told.contains("300 rows"), "{told}");
    let found = Gguf::open(&output).unwrap();
    assert_eq!(found.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
    let tokens = found.get_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens.get(299)), (300, Some("<unused299>")));
}

/// A pre-tokenizer that is not known is refused with what was found, and a wrong name is found out.
fn cv05_pre_tokenizers_are_proved() {
    let mut folder = Folder::small("BitNetForCausalLM", Form::Multiply);
    let split = |regex: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": false } ] })
    };
    folder.tokenizer["pre_tokenizer"] = split(r"\p{L}{1,7}|.");
    let dir = folder.write();
    let error = refusal(&["convert", text(dir.path())], 3);
    assert!(error.contains(r"{1,7}") && error.contains("--pre NAME"), "{error}");
    let error = refusal(&["convert", text(dir.path()), "--pre", "gpt-2"], 3);
    assert!(error.contains("text '") && error.contains("--pre NAME"), "{error}");
    // Those of Llama 3, and so of Falcon 3 and Falcon-E, and of Qwen 2, which cuts digit by digit.
    for (digits, ignore_merges, name) in
        [(r"\p{N}{1,3}", true, "llama-bpe"), (r"\p{N}", false, "qwen2")]
    {
        let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
        let others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        folder.tokenizer["pre_tokenizer"] = split(&format!("{words}|{digits}|{others}"));
        folder.tokenizer["model"]["ignore_merges"] = json!(ignore_merges);
        let dir = folder.write();
        let found = convert(dir.path(), &[]);
        assert_eq!(found.require_str("tokenizer.ggml.pre").unwrap(), name);
    }
}

/// The scales of a ternary tensor, and the columns that share one.
fn block_scales(gguf: &Gguf, name: &str) -> (usize, Vec<f32>) {
    let tensor = gguf.tensor(name).unwrap();
    let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
    let stored = Codes::new(tensor.ty, gguf.tensor_bytes(tensor), shape).unwrap();
    match stored.scales() {
        Scales::Blocks { width, values } => (width, values),
        other => panic!("{name}: {other:?}"),
    }
}

/// Floats whose blocks of columns have magnitudes of their own become blocks, as wide as they are or
/// narrower, and those of one magnitude a tensor with one scale.
fn cv02_blocks_of_columns_keep_their_scales() {
    let up = |hidden| {
        let all = Folder::matrices("Qwen3ForCausalLM", hidden);
        all.into_iter().find(|matrix| matrix.is("mlp.up_proj")).unwrap()
    };
    for (hidden, width, more, ty, found_width) in [
        (128, 64, &[][..], TensorType::Q2_0, 64),
        (256, 128, &[], TensorType::Q2_0, 64),
        (512, 256, &[], TensorType::TQ2_0, 256),
        (512, 256, &["--type", "q2_0"], TensorType::Q2_0, 64),
        (512, 256, &["--type", "tq1_0"], TensorType::TQ1_0, 256),
    ] {
        let dir = Folder::wide("Qwen3ForCausalLM", Form::Blocks(width), hidden).write();
        let found = convert(dir.path(), more);
        let matrix = up(hidden);
        assert_eq!(found.tensor("blk.0.ffn_up.weight").unwrap().ty, ty);
        let (own, scales) = block_scales(&found, "blk.0.ffn_up.weight");
        assert_eq!(own, found_width);
        let expected = matrix.scales(width);
        assert_eq!(scales.len() * own, matrix.codes.len());
        let of = |i: usize| expected[i * own / width];
        assert!(scales.iter().enumerate().all(|(i, &scale)| scale == of(i)), "{hidden}, {width}");
        let tensor = found.tensor("blk.0.ffn_up.weight").unwrap();
        let stored = Codes::new(ty, found.tensor_bytes(tensor), matrix.shape).unwrap();
        let mut row = vec![0; hidden];
        for (index, expected) in matrix.codes.chunks(hidden).enumerate() {
            assert_eq!(stored.row(index, &mut row), None);
            assert!(row == expected, "row {index} of {ty}");
        }
    }

    let floats = Folder::small("Qwen3ForCausalLM", Form::Floats).write();
    let found = convert(floats.path(), &[]);
    assert_eq!(found.tensor("blk.0.ffn_up.weight").unwrap().ty, TensorType::I2_S);
    assert_eq!(codes(&found, "blk.0.ffn_up.weight"), (up(128).codes, 0.125));

    // A type that cannot hold them is refused, and so is a block of two magnitudes.
    let mut folder = Folder::wide("Qwen3ForCausalLM", Form::Blocks(64), 256);
    let dir = folder.write();
    for (ty, says) in [("i2_s", "--type q2_0 or tq2_0"), ("tq2_0", "within a block of 256 columns")]
    {
        let output = dir.path().join("x.gguf");
        let error = refusal(&["convert", text(dir.path()), "-o", text(&output), "--type", ty], 3);
        assert!(error.contains("q_proj") && error.contains(says), "{error}");
    }
    folder.tensor("model.layers.0.mlp.down_proj.weight").3[2 * 130..][..2]
        .copy_from_slice(&bf16::from_f32(0.0703125).to_le_bytes());
    let dir = folder.write();
    let error = refusal(&["convert", text(dir.path())], 3);
    for says in ["down_proj", "0.0703125 at [0, 130]", "block of 64 columns", "--ternarise"] {
        assert!(error.contains(says), "{error}");
    }
}

/// Files of Qwen models say what config.json says.
fn cv02_qwen_models_are_described() {
    let dir = Folder::small("Qwen3ForCausalLM", Form::Blocks(64)).write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_str("general.architecture").unwrap(), "qwen3");
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        assert_eq!(found.require_u32(&format!("qwen3.{key}")).unwrap(), 64, "{key}");
    }
    for name in ["attn_q_norm", "attn_k_norm"] {
        let norm = found.tensor(&format!("blk.0.{name}.weight")).unwrap();
        assert_eq!((norm.ty, &norm.dims[..]), (TensorType::F32, &[64][..]));
    }
    assert!(found.tensor("output.weight").is_none());
    // A model that says nothing of a token before a text has none.
    assert!(found.get("tokenizer.ggml.add_bos_token").is_none());
    let args = ["-p", "the", "-n", "4", "--temp", "0", "--ignore-eos"];
    let path = dir.path().join("out.gguf");
    assert!(!answer(&[&["-m", text(&path)], &args[..]].concat()).is_empty());

    let dir = Folder::small("Qwen2ForCausalLM", Form::Divide).write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_str("general.architecture").unwrap(), "qwen2");
    for (name, rows) in [("attn_q", 128), ("attn_k", 64), ("attn_v", 64)] {
        let bias = found.tensor(&format!("blk.0.{name}.bias")).unwrap();
        assert_eq!((bias.ty, &bias.dims[..]), (TensorType::F32, &[rows][..]));
    }
}

/// Files of Gemma 3 say what config.json says, and their norms count from 0.
fn cv02_gemma_models_are_described() {
    let mut folder = Folder::small("Gemma3ForCausalLM", Form::Floats);
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_str("general.architecture").unwrap(), "gemma3");
    for (key, value) in [
        ("attention.sliding_window", Value::U32(48)),
        ("attention.sliding_window_pattern", Value::U32(2)),
        ("attention.key_length", Value::U32(64)),
        ("rope.freq_base", Value::F32(1e6)),
        ("rope.freq_base_swa", Value::F32(1e4)),
    ] {
        assert_eq!(found.get(&format!("gemma3.{key}")), Some(&value), "{key}");
    }
    for (own, theirs) in [
        ("blk.3.attn_norm", "model.layers.3.input_layernorm"),
        ("blk.3.post_attention_norm", "model.layers.3.post_attention_layernorm"),
        ("blk.3.ffn_norm", "model.layers.3.pre_feedforward_layernorm"),
        ("blk.3.post_ffw_norm", "model.layers.3.post_feedforward_layernorm"),
        ("blk.3.attn_q_norm", "model.layers.3.self_attn.q_norm"),
        ("blk.3.attn_k_norm", "model.layers.3.self_attn.k_norm"),
        ("output_norm", "model.norm"),
    ] {
        let theirs = &folder.tensor(&format!("{theirs}.weight")).3;
        let theirs =
            theirs.as_chunks().0.iter().map(|&two| 1.0 + bf16::from_le_bytes(two).to_f32());
        let own = found.tensor_bytes(found.tensor(&format!("{own}.weight")).unwrap());
        let own = own.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four));
        assert!(own.eq(theirs));
    }
    assert!(found.tensor("output.weight").is_none());
    let args = ["-p", "the", "-n", "4", "--temp", "0", "--ignore-eos"];
    let path = dir.path().join("out.gguf");
    assert!(!answer(&[&["-m", text(&path)], &args[..]].concat()).is_empty());

    // Every sixth layer sees all where nothing says so, which files do not say, either.
    folder.config.remove("sliding_window_pattern");
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    assert!(found.get("gemma3.attention.sliding_window").is_some());
    assert!(found.get("gemma3.attention.sliding_window_pattern").is_none());
    folder.config.insert("layer_types".into(), json!(vec!["full_attention"; 5]));
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    assert!(found.get("gemma3.attention.sliding_window").is_none());
}

/// What a Gemma 3 says that is not run here is refused by name.
fn cv02_gemma_models_that_are_not_run_are_refused() {
    let pairs: [(&str, serde_json::Value, &[&str]); 9] = [
        ("final_logit_softcapping", json!(30.0), &["final_logit_softcapping", "30.0", "caps"]),
        ("attn_logit_softcapping", json!(50.0), &["attn_logit_softcapping", "50.0", "caps"]),
        ("query_pre_attn_scalar", json!(168), &["query_pre_attn_scalar", "168", "head_dim, 64"]),
        ("hidden_activation", json!("gelu"), &["hidden_activation", "'gelu'"]),
        ("layer_types", json!(["chunked_attention"]), &["layer_types", "chunked_attention", "5"]),
        ("sliding_window", json!(null), &["sliding_window", "no such key"]),
        ("num_key_value_heads", json!(null), &["num_key_value_heads", "no such key"]),
        (
            "rope_parameters",
            json!({ "sliding_attention": { "rope_type": "linear", "factor": 8.0 } }),
            &["rope_parameters.sliding_attention.rope_type", "'linear'"],
        ),
        (
            "architectures",
            json!(["Gemma3ForConditionalGeneration"]),
            &["'Gemma3ForConditionalGeneration'", "pictures", "Gemma3ForCausalLM"],
        ),
    ];
    for (key, value, says) in pairs {
        let mut folder = Folder::small("Gemma3ForCausalLM", Form::Floats);
        folder.config.insert(key.into(), value);
        let dir = folder.write();
        let error = refusal(&["convert", text(dir.path())], 3);
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// Embedding models say how their states are pooled, and end their texts as tokenizer.json does.
fn cv02_embedding_models_are_described() {
    let mut folder = Folder::small("Qwen3Model", Form::Floats).into_bitnet_embedding();
    let special = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    folder.tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [sequence, special("<s>")], "pair": [],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
    });
    let dir = folder.write();
    let found = convert(dir.path(), &[]);
    assert_eq!(found.require_u32("qwen3.pooling_type").unwrap(), 3);
    assert_eq!(found.require_u32("tokenizer.ggml.eos_token_id").unwrap(), 0);
    assert_eq!(found.get("tokenizer.ggml.add_eos_token"), Some(&Value::Bool(true)));
    let norm = found.tensor("blk.0.ffn_down_norm_in.weight").unwrap();
    assert_eq!((norm.ty, &norm.dims[..]), (TensorType::F32, &[256][..]));
    assert_eq!(found.tensor("blk.0.attn_q.weight").unwrap().ty, TensorType::I2_S);
    let path = dir.path().join("out.gguf");
    assert!(!answer(&["embed", "-m", text(&path), "-p", "the inner"]).is_empty());

    // Gemma's norms of inputs do not count from 1.
    let mut gemma = Folder::small("Gemma3TextModel", Form::Floats).into_bitnet_embedding();
    gemma.config.insert("use_bidirectional_attention".into(), json!(true));
    gemma.pooling = None;
    let dir = gemma.write();
    let (_, told) = both(&["convert", text(dir.path()), "-o", text(&dir.path().join("out.gguf"))]);
    assert!(told.contains("modules.json") && told.contains("mean"), "{told}");
    let found = Gguf::open(dir.path().join("out.gguf")).unwrap();
    assert_eq!(found.require_str("general.architecture").unwrap(), "gemma-embedding");
    assert_eq!(found.require_u32("gemma-embedding.pooling_type").unwrap(), 1);
    let theirs = &gemma.tensor("layers.0.mlp.up_proj.norm.weight").3;
    let theirs = theirs.as_chunks().0.iter().map(|&two| bf16::from_le_bytes(two).to_f32());
    let own = found.tensor_bytes(found.tensor("blk.0.ffn_up_norm_in.weight").unwrap());
    let own = own.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four));
    assert!(own.eq(theirs));

    let modules = |dir: &Path, kind: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        let all = json!([{ "path": "1_Pooling", "type": kind }]);
        fs::write(dir.join("modules.json"), all.to_string()).unwrap();
    };
    let dir = folder.write();
    modules(dir.path(), "Dense");
    let error = refusal(&["convert", text(dir.path())], 3);
    assert!(error.contains("modules.json") && error.contains("models.Dense"), "{error}");
    modules(dir.path(), "Pooling");
    for (mode, says) in [
        (json!({ "pooling_mode_max_tokens": true }), "pooling_mode_max_tokens"),
        (json!({ "pooling_mode_cls_token": true, "pooling_mode_lasttoken": true }), "of 2 modes"),
        (json!({ "pooling_mode": "weightedmean" }), "'weightedmean'"),
        (json!({}), "pooling_mode: found none"),
    ] {
        fs::write(dir.path().join("1_Pooling/config.json"), mode.to_string()).unwrap();
        let error = refusal(&["convert", text(dir.path())], 3);
        assert!(error.contains("1_Pooling") && error.contains(says), "{error}");
    }
}

/// An embedding and a head that are ternary stay so in types of blocks, exactly, and others are refused.
fn tables_that_are_ternary_stay_so() {
    let mut folder = Folder::wide("Qwen3ForCausalLM", Form::Blocks(64), 256);
    let scales = [0.125, 0.25, 0.0625, 0.1875];
    let weight =
        |i: usize| scales[i / 64 % 4] * ((i * i / 7 + i / 256) % 3) as f32 - scales[i / 64 % 4];
    let values: Vec<f32> = (0..300 * 256).map(weight).collect();
    folder.tensor("model.embed_tokens.weight").3 = bf16_bytes(&values);
    let dir = folder.write();
    let exact = |gguf: &Gguf| {
        let tensor = gguf.tensor("token_embd.weight").unwrap();
        let shape = Shape::new(300, 256);
        let stored = Codes::of(gguf, tensor, shape).unwrap().unwrap();
        let (scales, mut codes) = (stored.scales(), vec![9; 256]);
        for row in 0..300 {
            assert_eq!(stored.row(row, &mut codes), None);
            for (col, &code) in codes.iter().enumerate() {
                let scale = scales.of_columns(256, row, col..col + 1).unwrap();
                assert_eq!(scale * (f32::from(code) - 1.0), values[row * 256 + col]);
            }
        }
        tensor.ty
    };
    let found = convert(dir.path(), &["--embd", "q2_0"]);
    assert_eq!(exact(&found), TensorType::Q2_0);
    let path = dir.path().join("out.gguf");
    let args = ["-p", "the", "-n", "4", "--temp", "0", "--ignore-eos"];
    let written = answer(&[&["-m", text(&path)], &args[..]].concat());
    assert!(!written.is_empty());
    // The same from floats, there and back.
    let [floats, again] = ["floats.gguf", "again.gguf"].map(|name| dir.path().join(name));
    answer(&["quantize", text(&path), "-o", text(&floats), "--embd", "f16"]);
    answer(&["quantize", text(&floats), "-o", text(&again), "--embd", "q2_0"]);
    assert_same_tensors(&Gguf::open(&again).unwrap(), &found);

    // Blocks of 256 columns have four magnitudes, and masters have many.
    let refused = |args: &[&str], says: &[&str]| {
        let output = dir.path().join("x.gguf");
        let error = refusal(&[args, &["-o", text(&output)]].concat(), 3);
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
    };
    let says = ["embed_tokens", "block of 256 columns", "f16"];
    refused(&["convert", text(dir.path()), "--embd", "tq2_0"], &says);
    let says = ["token_embd.weight", "block of 256 columns", "f16"];
    refused(&["quantize", text(&floats), "--embd", "tq2_0"], &says);
    let says = ["token_embd.weight", "q2_0", "q8_0"];
    refused(&["quantize", text(&path), "--embd", "q8_0"], &says);
    // A scale for each 64 columns is what those of 256 are where all four are one.
    let values: Vec<f32> = (0..300 * 256).map(|i| 0.125 * (i % 3) as f32 - 0.125).collect();
    folder.tensor("model.embed_tokens.weight").3 = bf16_bytes(&values);
    let dir = folder.write();
    let found = convert(dir.path(), &["--embd", "TQ2_0"]);
    assert_eq!(found.tensor("token_embd.weight").unwrap().ty, TensorType::TQ2_0);
    let [wide, narrow, again] =
        ["out.gguf", "narrow.gguf", "again.gguf"].map(|n| dir.path().join(n));
    answer(&["quantize", text(&wide), "-o", text(&narrow), "--embd", "q2_0"]);
    answer(&["quantize", text(&narrow), "-o", text(&again), "--embd", "tq2_0"]);
    assert_same_tensors(&Gguf::open(&again).unwrap(), &found);
}

/// A weight of +2, which PQ2_0 alone holds, is named, and what keeps it.
fn a_weight_of_two_is_named_where_a_type_does_not_hold_it() {
    let dir = Folder::wide("Qwen3ForCausalLM", Form::Blocks(128), 256).write();
    let ternary = convert(dir.path(), &["--type", "pq2_0"]);
    let [path, out] = ["two.gguf", "out.gguf"].map(|name| dir.path().join(name));
    let mut bytes = fs::read(dir.path().join("out.gguf")).unwrap();
    let tensor = ternary.tensor("blk.0.attn_k.weight").unwrap();
    let start =
        bytes.len() - ternary.tensors().last().map_or(0, |last| last.offset + last.bytes) as usize;
    // Weight 5 of row 3: two blocks of 34 bytes to a row, a byte of codes behind those of the scale.
    bytes[start + tensor.offset as usize + 3 * 68 + 2 + 1] |= 3 << 2;
    fs::write(&path, bytes).unwrap();
    let error =
        refusal(&["quantize", text(&path), "-o", text(&out), "--type", "q2_0", "--force"], 3);
    for says in ["blk.0.attn_k.weight", "code 3, a weight of +2, at [3, 5]", "q2_0", "--type"] {
        assert!(error.contains(says), "{error}");
    }
}

/// Blocks of columns go from type to type as they are, and are refused where they cannot.
fn cv02_blocks_of_columns_are_quantised() {
    let dir = Folder::wide("Qwen3ForCausalLM", Form::Blocks(256), 512).write();
    let first = convert(dir.path(), &[]);
    let at = |name: &str| dir.path().join(name);
    let quantise = |from: &str, to: &str, ty: &str| {
        let (from, to) = (at(from), at(to));
        answer(&["quantize", text(&from), "-o", text(&to), "--type", ty]);
        Gguf::open(to).unwrap()
    };
    let q2_0 = quantise("out.gguf", "q2_0.gguf", "q2_0");
    let (width, scales) = block_scales(&q2_0, "blk.0.ffn_up.weight");
    let (_, expected) = block_scales(&first, "blk.0.ffn_up.weight");
    assert_eq!(width, 64);
    assert!(scales.chunks(4).zip(&expected).all(|(four, own)| *four == [*own; 4]));
    assert_same_tensors(&quantise("q2_0.gguf", "back.gguf", "tq2_0"), &first);
    let error =
        refusal(&["quantize", text(&at("q2_0.gguf")), "-o", text(&at("x")), "--type", "i2_s"], 3);
    assert!(error.contains("scales 0.125 and") && error.contains("one scale for all"), "{error}");
    let narrow = Folder::wide("Qwen3ForCausalLM", Form::Blocks(64), 256).write();
    convert(narrow.path(), &[]);
    let (from, to) = (narrow.path().join("out.gguf"), narrow.path().join("x.gguf"));
    let error = refusal(&["quantize", text(&from), "-o", text(&to), "--type", "tq2_0"], 3);
    assert!(error.contains("one scale for each block of 256 columns"), "{error}");
}

/// gguf-py reads what is written: names, dimensions and types, and, of the types that it knows, weights.
fn cv08_gguf_py_reads_what_is_written() -> Tested {
    let python = Need::GgufPy.program("GGUF_PYTHON")?;
    let demo = Gguf::open(demo_model()).unwrap();
    let dir = Folder::demo(&demo, Form::Multiply).write();
    convert(dir.path(), &[]);
    let wide = Folder::wide("Qwen3ForCausalLM", Form::Blocks(256), 512).write();
    convert(wide.path(), &[]);
    let mut files = vec![dir.path().join("out.gguf"), wide.path().join("out.gguf")];
    for (flag, ty) in [
        ("--type", "q2_0"),
        ("--type", "tq1_0"),
        ("--type", "f16"),
        ("--embd", "f32"),
        ("--embd", "f16"),
        ("--embd", "q8_0"),
        ("--embd", "q6_k"),
        ("--embd", "q5_0"),
        ("--embd", "q4_0"),
    ] {
        let to = wide.path().join(format!("{ty}{flag}.gguf"));
        answer(&["quantize", text(&files[1]), "-o", text(&to), flag, ty]);
        files.push(to);
    }
    let dummy = dir.path().join("dummy.gguf");
    answer(&[
        "dummy",
        "--shape",
        "125M",
        "--layers",
        "1",
        "--vocab",
        &demo_model(),
        "-o",
        text(&dummy),
    ]);
    files.push(dummy);

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/gguf_py.py");
    let output = Command::new(python).arg(script).args(&files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut compared = BTreeSet::new();
    for (path, theirs) in files.iter().zip(theirs.as_array().unwrap()) {
        let own = Gguf::open(path).unwrap();
        let keys: Vec<&str> = own.metadata().map(|(key, _)| key).collect();
        assert_eq!(theirs["keys"], json!(keys), "{}", path.display());
        let tensors = theirs["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), own.tensors().len());
        for (own_tensor, theirs) in own.tensors().iter().zip(tensors) {
            let format = own_tensor.ty.format();
            let directory = json!([own_tensor.name, own_tensor.dims, format.id]);
            assert_eq!(json!(theirs.as_array().unwrap()[..3]), directory, "{}", path.display());
            let (Some(digest), Some(rows)) = (theirs[3].as_str(), format.rows()) else { continue };
            let mut values = vec![0.0; own_tensor.elements() as usize];
            (rows.dequantise)(own.tensor_bytes(own_tensor), &mut values);
            let bytes: Vec<u8> = values.iter().flat_map(|v| (v + 0.0).to_le_bytes()).collect();
            let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(found, digest, "{} of {}", own_tensor.name, path.display());
            compared.insert(format.name);
        }
    }
    let expected = ["f16", "f32", "q4_0", "q5_0", "q6_K", "q8_0", "tq2_0"];
    assert!(expected.iter().all(|name| compared.contains(name)), "{compared:?}");
    Ok(())
}

/// bitnet.cpp loads what is written with the widths of BitNet b1.58 2B-4T, and goes on with the same tokens;
/// the best logits of random weights are near each other, so that they soon go different ways.
fn cv10_bitnet_cpp_runs_what_is_written() -> Tested {
    let program = Need::BitnetCpp.program("BITNET_CPP")?;
    let dir = Folder::of_2b4t().write();
    convert(dir.path(), &[]);
    let path = dir.path().join("out.gguf");
    let args = ["-m", text(&path), "-p", "the inner", "-n", "3", "--temp", "0", "--ignore-eos"];
    let own = answer(&args);
    let output = Command::new(program).args(args).args(["-t", "2", "-b", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let theirs = String::from_utf8_lossy(&output.stdout);
    assert!(theirs.trim().ends_with(own.trim()), "{theirs:?}, {own:?}");
    Ok(())
}

fn main() -> ExitCode {
    let mut suite = suite![
        cv08_gguf_py_reads_what_is_written,
        cv10_bitnet_cpp_runs_what_is_written,
        cv02_blocks_of_columns_keep_their_scales,
        cv02_qwen_models_are_described,
        cv02_gemma_models_are_described,
        cv02_gemma_models_that_are_not_run_are_refused,
        cv02_embedding_models_are_described,
        tables_that_are_ternary_stay_so,
        a_weight_of_two_is_named_where_a_type_does_not_hold_it,
        cv02_blocks_of_columns_are_quantised,
        cv01_a_packed_folder_becomes_the_file_it_is_of,
        cv01_published_folders_become_the_demo_model,
        cv03_cv07_forms_and_shards_change_nothing,
        masters_are_rounded_by_their_mean,
        cv04_rows_of_llama_are_in_its_order,
        what_is_not_ternary_is_refused_unless_asked_for,
        keys_are_those_of_the_config,
        a_dry_run_writes_nothing,
        types_are_those_that_were_asked_for,
        zeros_are_told,
        cv05_sentencepiece_vocabularies_are_taken,
        cv05_tokens_without_an_embedding_are_left_out,
        cv05_pre_tokenizers_are_proved,
    ];
    suite.add(
        "cv02_logits_are_those_of_transformers",
        transformers::cv02_logits_are_those_of_transformers,
    );
    hostile::add(&mut suite);
    suite.run()
}
