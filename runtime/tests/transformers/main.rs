//! Hidden states of small random models against those of Hugging Face's transformers for the same weights.
//!
//! `states.json` holds theirs. `BLESS=1 PYTHON=... cargo test --release -p bitnet-runtime --test
//! transformers` writes it anew by a Python that has torch, transformers and gguf.

#[path = "../editor/mod.rs"]
mod editor;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bitnet_profiles::Isa;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::LoadOptions;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::engine::Embedding;
use bitnet_runtime::file::gguf::{TensorType, Value};
use bitnet_runtime::random::Random;
use bitnet_runtime::{Activations, KvType, Model, Normalisation, Pooling, Session, SessionOptions};
use editor::{Parts, Sizes, Tensor, f32s};

const HIDDEN: usize = 64;
const FFN: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// All query heads together are wider than the model.
const HEAD: usize = 32;
const VOCAB: usize = 48;

/// The poolings of the states that are kept, in their order.
const POOLINGS: [Pooling; 3] = [Pooling::Cls, Pooling::Last, Pooling::Mean];

/// A model.
struct Kind {
    name: &'static str,
    architecture: &'static str,
    /// Layers, the sixth of which sees all where others have windows.
    layers: usize,
    /// The window, if there is one.
    window: Option<u32>,
    /// True if each matrix has a norm of its own input.
    norms_in: bool,
}

const KINDS: [Kind; 6] = [
    Kind { name: "qwen3", architecture: "qwen3", layers: 3, window: None, norms_in: false },
    Kind { name: "qwen3-norms", architecture: "qwen3", layers: 3, window: None, norms_in: true },
    Kind { name: "gemma3", architecture: "gemma3", layers: 7, window: Some(9), norms_in: false },
    Kind { name: "gemma3-norms", architecture: "gemma3", layers: 3, window: None, norms_in: true },
    Kind {
        name: "gemma-embedding",
        architecture: "gemma-embedding",
        layers: 7,
        window: Some(10),
        norms_in: false,
    },
    Kind {
        name: "gemma-embedding-norms",
        architecture: "gemma-embedding",
        layers: 7,
        // Beyond a chunk of the cache on either side.
        window: Some(540),
        norms_in: true,
    },
];

impl Kind {
    /// Makes the model, its ternary matrices as floats.
    fn parts(&self) -> Parts {
        let random = &mut Random::new(31);
        let mut unit = move || random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let sizes = Sizes {
            layers: self.layers,
            context: 1024,
            hidden: HIDDEN,
            ffn: FFN,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head: HEAD,
            eps: 1e-6,
            rope_base: 1e6,
        };
        let mut parts = Parts::with_sizes(self.architecture, &sizes);
        if let Some(window) = self.window {
            parts.kv.push((key("attention.sliding_window"), Value::U32(window)));
        }
        parts.tensors.push(Tensor {
            name: "token_embd.weight".into(),
            dims: vec![HIDDEN as u64, VOCAB as u64],
            ty: TensorType::F32,
            data: f32s((0..VOCAB * HIDDEN).map(|_| unit())),
        });
        let mut norm = |parts: &mut Parts, name: String, n: usize| {
            parts.add(&format!("{name}.weight"), (0..n).map(|_| 1.0 + 0.25 * unit()).collect());
        };
        norm(&mut parts, "output_norm".into(), HIDDEN);
        let (q, kv) = (HEADS * HEAD, KV_HEADS * HEAD);
        let matrices = [
            ("attn_q", HIDDEN, q),
            ("attn_k", HIDDEN, kv),
            ("attn_v", HIDDEN, kv),
            ("attn_output", q, HIDDEN),
            ("ffn_gate", HIDDEN, FFN),
            ("ffn_up", HIDDEN, FFN),
            ("ffn_down", FFN, HIDDEN),
        ];
        let random = &mut Random::new(32);
        for layer in 0..self.layers {
            let name = |name: &str| format!("blk.{layer}.{name}");
            for (own, width) in [("attn_norm", HIDDEN), ("ffn_norm", HIDDEN)] {
                norm(&mut parts, name(own), width);
            }
            for own in ["attn_q_norm", "attn_k_norm"] {
                norm(&mut parts, name(own), HEAD);
            }
            if self.architecture != "qwen3" {
                for own in ["post_attention_norm", "post_ffw_norm"] {
                    norm(&mut parts, name(own), HIDDEN);
                }
            }
            for (own, cols, rows) in matrices {
                if self.norms_in {
                    norm(&mut parts, name(&format!("{own}_norm_in")), cols);
                }
                let scale = (1.0 + random.below(64) as f32 / 128.0) / (cols as f32).sqrt();
                let weights = (0..rows * cols).map(|_| scale * (random.below(3) as f32 - 1.0));
                parts.tensors.push(Tensor {
                    name: format!("{}.weight", name(own)),
                    dims: vec![cols as u64, rows as u64],
                    ty: TensorType::F32,
                    data: f32s(weights),
                });
            }
        }
        parts
    }

    /// The states of each text by each pooling.
    fn states(&self, setup: Setup, poolings: &[Pooling]) -> Vec<Vec<Vec<f32>>> {
        let pool = Arc::new(Pool::new(setup.threads).unwrap());
        let selection = Selection::new(setup.isa, None, None).unwrap();
        let options =
            LoadOptions { activations: setup.activations, ..LoadOptions::new(&pool, &selection) };
        let model = Arc::new(Model::from_gguf(self.parts().gguf(), &options).unwrap());
        let options = SessionOptions {
            context: None,
            batch: setup.batch,
            kv_type: Some(KvType::F32),
            sequences: 3,
        };
        let mut session = Session::new(model, pool, options).unwrap();
        let mut states = vec![Vec::new(); texts().len()];
        for &pooling in poolings {
            let each = &mut |text: usize, embedding: Embedding| {
                states[text].extend(embedding.finish(Normalisation::None));
                Ok(())
            };
            session.embed(&texts(), pooling, each).unwrap();
        }
        states
    }
}

/// What computes, which changes nothing but for the rounding of activations.
#[derive(Clone, Copy, Debug)]
struct Setup {
    activations: Activations,
    isa: Option<Isa>,
    threads: usize,
    batch: usize,
}

const SETUP: Setup = Setup { activations: Activations::Auto, isa: None, threads: 2, batch: 512 };

/// A single token, less than a window, more than one, and more than a chunk of the cache and the widest.
fn texts() -> Vec<Vec<u32>> {
    let random = &mut Random::new(33);
    [1, 7, 40, 600].map(|n| (0..n).map(|_| random.below(VOCAB as u64) as u32).collect()).into()
}

fn reference() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transformers/states.json"))
}

/// Lets transformers compute the states.
fn bless() {
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transformers/states.py");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("prompts.json"), serde_json::to_string(&texts()).unwrap()).unwrap();
    let mut command = Command::new(python);
    command.arg(script);
    for kind in &KINDS {
        let path = dir.path().join(format!("{}.gguf", kind.name));
        fs::write(&path, kind.parts().bytes()).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(reference(), output.stdout).unwrap();
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Where activations are not rounded states differ by the order of f32 sums. What int8 activations lose is
/// up to 4e-4 of the cosine, of single tokens in a model without norms behind its matrices.
#[test]
fn states_are_those_of_transformers() {
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        bless();
    }
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(reference()).unwrap()).unwrap();
    for kind in &KINDS {
        let expected: Vec<Vec<Vec<f32>>> =
            serde_json::from_value(expected["states"][kind.name].clone()).unwrap();
        assert_eq!(expected.len(), texts().len());
        let exact = kind.states(Setup { activations: Activations::F32, ..SETUP }, &POOLINGS);
        let rounded = kind.states(SETUP, &POOLINGS);
        let all = expected.iter().zip(&exact).zip(&rounded).zip(texts());
        for (((expected, exact), rounded), text) in all {
            for (i, pooling) in POOLINGS.into_iter().enumerate() {
                let what = format!("{}, {} tokens, {pooling}", kind.name, text.len());
                let differ = exact[i].iter().zip(&expected[i]).map(|(a, b)| (a - b).abs());
                let most = differ.fold(0.0, f32::max);
                assert!(most < 1e-4, "{what}: states differ by {most}");
                let near = cosine(&exact[i], &expected[i]);
                assert!(near > 0.999_999, "{what}: {near}");
                let near = cosine(&rounded[i], &expected[i]);
                eprintln!("{what}: 1 - {:.2e}", 1.0 - near);
                assert!(near > 0.999, "{what}: {near} with int8");
            }
        }
    }
}

#[test]
fn states_are_the_same_whatever_computes_them() {
    let bits = |states: Vec<Vec<Vec<f32>>>| -> Vec<u32> {
        states.into_iter().flatten().flatten().map(f32::to_bits).collect()
    };
    for kind in &KINDS {
        let mean = &[Pooling::Mean];
        let expected = bits(kind.states(SETUP, mean));
        for setup in [
            Setup { isa: Some(Isa::Scalar), threads: 1, ..SETUP },
            Setup { batch: 1, ..SETUP },
            Setup { batch: 7, threads: 3, ..SETUP },
            Setup { batch: 4096, ..SETUP },
        ] {
            assert!(bits(kind.states(setup, mean)) == expected, "{}: {setup:?}", kind.name);
        }
    }
}
