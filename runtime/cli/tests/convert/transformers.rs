//! Logits and embeddings of converted folders against those of Hugging Face's transformers for the same
//! folders.
//!
//! `transformers.json` holds theirs. `BLESS=1 PYTHON=... cargo test --release -p bitnet-cli --test convert
//! -- transformers` writes it anew by a Python that has torch and transformers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bitnet_runtime::random::Random;
use bitnet_runtime::{Activations, Engine, Needs, Normalisation, Options, Pooling, SessionOptions};
use serde_json::{Value, json};

use crate::convert;
use crate::folder::{Folder, Form, bf16_bytes, text};

/// How a folder's numbers are held against theirs.
#[derive(Clone, Copy)]
struct Comparison {
    /// Rounding of activations here.
    activations: Activations,
    /// The most that a number may differ by.
    most: f64,
}

/// Both round alike. They agree to the five digits that are kept of theirs. An activation that lies so near
/// to a half that another order of sums moves it to the next int8 code would move a row of logits by up to
/// 0.03; with these folders and prompts there is none.
const ALIKE: Comparison = Comparison { activations: Activations::Auto, most: 1e-4 };

/// Neither rounds.
const UNROUNDED: Comparison = Comparison { activations: Activations::F32, most: 1e-4 };

/// transformers does not round activations, but this engine does, to int8 in blocks.
const IN_BLOCKS: Comparison = Comparison { activations: Activations::Auto, most: 0.1 };

/// Folders of every form and scale, by name.
fn folders() -> Vec<(&'static str, Folder, Comparison)> {
    let mut masters = Folder::small("BitNetForCausalLM", Form::Floats);
    masters.config.insert(
        "quantization_config".into(),
        json!({ "quant_method": "bitnet", "linear_class": "autobitlinear",
                "quantization_mode": "online" }),
    );
    let mut random = Random::new(22);
    for (_, dtype, shape, data) in &mut masters.tensors {
        // Matrices of the layer, as training has them before they are rounded.
        if shape.len() == 2 && shape[0] != 300 {
            assert_eq!(*dtype, "BF16");
            let value = |r: u64| (r as f32 / 1000.0 - 1.0) * 0.2;
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| value(random.below(2001))).collect();
            *data = bf16_bytes(&values);
        }
    }
    let mut llama = Folder::small("LlamaForCausalLM", Form::Divide);
    llama.config.insert("rope_theta".into(), json!(500_000.0));
    llama.config.insert(
        "rope_scaling".into(),
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64 }),
    );
    let mut yarn = Folder::small("Qwen3ForCausalLM", Form::Blocks(64));
    yarn.config.insert(
        "rope_scaling".into(),
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 }),
    );
    let gemma = |form| Folder::small("Gemma3ForCausalLM", form);
    let mut scaled = gemma(Form::Blocks(64));
    scaled.config.extend(object(json!({
        "rope_scaling": { "rope_type": "linear", "factor": 4.0 },
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention",
                        "sliding_attention"],
    })));
    let mut newer = gemma(Form::Floats);
    newer.config.remove("rope_theta");
    newer.config.remove("rope_local_base_freq");
    newer.config.extend(object(json!({
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
        },
    })));
    let mut around = Folder::small("Gemma3TextModel", Form::Floats);
    around.config.insert("use_bidirectional_attention".into(), json!(true));
    around.pooling = Some("pooling_mode_mean_tokens");
    let embeds = |name| Folder::small(name, Form::Floats).into_bitnet_embedding();
    vec![
        ("gemma3", gemma(Form::Floats), UNROUNDED),
        ("gemma3-scaled", scaled, UNROUNDED),
        ("gemma3-newer", newer, UNROUNDED),
        ("gemma-embedding", around, UNROUNDED),
        ("gemma3-masters", embeds("Gemma3TextModel"), UNROUNDED),
        ("qwen3-masters", embeds("Qwen3Model"), UNROUNDED),
        ("bitnet-multiply", Folder::small("BitNetForCausalLM", Form::Multiply), ALIKE),
        ("bitnet-divide", Folder::small("BitNetForCausalLM", Form::Divide), ALIKE),
        ("bitnet-masters", masters, ALIKE),
        ("llama-divide", Folder::small("LlamaForCausalLM", Form::Divide), ALIKE),
        ("llama-rope", llama, ALIKE),
        ("qwen3-divide", Folder::small("Qwen3ForCausalLM", Form::Divide), ALIKE),
        ("qwen2-divide", Folder::small("Qwen2ForCausalLM", Form::Divide), ALIKE),
        ("qwen3-blocks", Folder::small("Qwen3ForCausalLM", Form::Blocks(64)), IN_BLOCKS),
        ("qwen3-yarn", yarn, IN_BLOCKS),
        ("qwen2-blocks", Folder::wide("Qwen2ForCausalLM", Form::Blocks(256), 256), IN_BLOCKS),
    ]
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A single token, a few, and more than the frequencies of Llama 3 were trained for.
fn prompts() -> Vec<Vec<u32>> {
    let mut random = Random::new(23);
    [1, 7, 200].map(|n| (0..n).map(|_| random.below(263) as u32).collect()).into()
}

fn reference() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/transformers.json"))
}

/// Lets transformers compute the logits.
fn bless() {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/logits.py");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.arg(script);
    for (name, folder, _) in folders() {
        let own = dir.path().join(name);
        fs::rename(folder.write().keep(), &own).unwrap();
        fs::write(own.join("prompts.json"), json!(prompts()).to_string()).unwrap();
        command.arg(own);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(reference(), output.stdout).unwrap();
}

/// CV02, CV03, CV04: packed weights of both scales, masters, Llama's order of rows, Qwen's blocks of
/// columns, norms of heads and biases, Gemma's windows and norms, and BitNet's embedding models give the
/// logits, or the states, that transformers gives.
pub fn cv02_logits_are_those_of_transformers() {
    if std::env::var_os("BLESS").is_some() {
        bless();
    }
    let expected: Value = serde_json::from_slice(&fs::read(reference()).unwrap()).unwrap();
    for (name, folder, Comparison { activations, most: allowed }) in folders() {
        let dir = folder.write();
        let gguf = convert(dir.path(), &["--embd", "keep", "--head", "keep"]);
        let options =
            Options { needs: Needs::All, threads: Some(2), activations, ..Options::default() };
        let engine = Engine::open(text(&dir.path().join("out.gguf")), options).unwrap();
        let pooling = Pooling::of_model(&gguf, engine.config()).unwrap();
        for (ids, expected) in prompts().iter().zip(expected["logits"][name].as_array().unwrap()) {
            let expected: Vec<f64> =
                expected.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let found = match pooling {
                None => session.prefill(ids).unwrap().to_vec(),
                Some(pooling) => {
                    let mut found = Vec::new();
                    let each = &mut |_, embedding: bitnet_runtime::engine::Embedding| {
                        found = embedding.finish(Normalisation::None).swap_remove(0);
                        Ok(())
                    };
                    session.embed(std::slice::from_ref(ids), pooling, each).unwrap();
                    found
                }
            };
            assert_eq!(found.len(), expected.len());
            let differ = |i: usize| (f64::from(found[i]) - expected[i]).abs();
            let most = (0..found.len()).map(differ).fold(0.0, f64::max);
            let what = if pooling.is_some() { "states" } else { "logits" };
            eprintln!("{name}, {} ids: {what} differ by {most:.1e}", ids.len());
            assert!(most < allowed, "{name}, {} ids: {what} differ by {most}", ids.len());
        }
    }
}
