//! Kinds of file: vectors of 16 bits, biases, scaled rotary positions, types that nobody knows.

mod demo;
mod editor;

use std::sync::Arc;

use bitnet_profiles::{Isa, Shape};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::arch::rope::{RopeScaling, Yarn};
use bitnet_runtime::cpu::kernels::{self, Selection};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::reference;
use bitnet_runtime::cpu::sparse;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, TensorType, Value};
use bitnet_runtime::formats::{Codes, i2_s};
use bitnet_runtime::measure::rehearse::{self, Rounds};
use demo::bits;
use editor::{Parts, Tensor, f32s, sound};
use half::{bf16, f16};

fn demo_parts() -> Parts {
    Parts::of(&Gguf::open(demo::path()).unwrap())
}

fn load(gguf: &Arc<Gguf>, isa: Isa, pack: bool) -> bitnet_runtime::Result<Model> {
    let pool = Pool::new(2)?;
    let selection = Selection::new(Some(isa), None, None)?;
    let options = LoadOptions { pack, ..LoadOptions::new(&pool, &selection) };
    Model::from_gguf(Arc::clone(gguf), &options)
}

/// The bits of the logits after prompts of 1 and of 130 tokens, and after a token behind each.
fn logits(model: &Arc<Model>, threads: usize, batch: usize) -> Vec<Vec<u32>> {
    let pool = Arc::new(Pool::new(threads).unwrap());
    let options = SessionOptions { batch, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(model), pool, options).unwrap();
    let vocab = model.config().vocab as u32;
    let most = model.config().context.min(131) - 1;
    let mut found = Vec::new();
    for tokens in [1, most as u32] {
        session.truncate(0);
        let prompt: Vec<u32> = (0..tokens).map(|i| (i * 31 + i * i * 7) % vocab).collect();
        found.push(bits(session.prefill(&prompt).unwrap()));
        found.push(bits(session.decode(5 % vocab).unwrap()));
    }
    found
}

fn logits_of(parts: &Parts) -> Vec<Vec<u32>> {
    let model = load(&parts.gguf(), Isa::best(), true).unwrap();
    assert!(model.warnings().is_empty(), "{:?}", model.warnings());
    logits(&Arc::new(model), 2, 512)
}

/// R6: vectors in F16 and BF16 are read exactly: norms, the factors `*.scale`, those of rotary
/// frequencies, and biases.
#[test]
fn r6_vectors_of_16_bits_are_read_exactly() {
    let bitnet = {
        let mut parts = sound("bitnet");
        parts.add("blk.0.attn_v.scale", vec![0.3]);
        parts.add("blk.1.ffn_up.bias", (0..64).map(|i| (i as f32).sin()).collect());
        parts
    };
    let llama = {
        let mut parts = sound("llama");
        parts.add("rope_freqs.weight", (0..8).map(|i| 1.0 + 0.1 * i as f32).collect());
        parts
    };
    type Round = (TensorType, fn(f32) -> (f32, [u8; 2]));
    let rounds: [Round; 2] = [
        (TensorType::F16, |x| (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes())),
        (TensorType::BF16, |x| (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes())),
    ];
    for mut parts in [demo_parts(), bitnet, llama] {
        // The demo model's norms are numbers of F16.
        for tensor in parts.tensors.iter_mut().filter(|t| t.dims.len() == 1) {
            let values = tensor.data.as_chunks().0.iter().map(|&x| 1.001 * f32::from_le_bytes(x));
            tensor.data = f32s(values.collect::<Vec<f32>>());
        }
        for (ty, round) in rounds {
            let (mut wide, mut narrow, mut changed) = (parts.clone(), parts.clone(), 0);
            let vectors = wide.tensors.iter_mut().zip(&mut narrow.tensors);
            for (wide, narrow) in vectors.filter(|(t, _)| t.dims.len() == 1) {
                assert_eq!(wide.ty, TensorType::F32);
                let values = wide.data.as_chunks().0.iter().map(|&x| round(f32::from_le_bytes(x)));
                let (values, bytes): (Vec<f32>, Vec<[u8; 2]>) = values.unzip();
                (narrow.data, narrow.ty) = (bytes.concat(), ty);
                let rounded = f32s(values);
                changed += usize::from(rounded != wide.data);
                wide.data = rounded;
            }
            assert!(changed > 0, "{ty}: nothing was rounded");
            assert!(logits_of(&narrow) == logits_of(&wide), "{ty}");
        }
    }
}

const PROJECTIONS: [&str; 7] =
    ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Outputs of a projection of the demo model.
fn outputs(parts: &mut Parts, projection: &str) -> usize {
    parts.tensor(&format!("blk.0.{projection}.weight")).dims[1] as usize
}

/// W3: the bias of every projection counts, alone, and a bias of zeros is none.
#[test]
fn w3_the_bias_of_every_projection_is_added() {
    let plain = logits_of(&demo_parts());
    for projection in PROJECTIONS {
        let mut parts = demo_parts();
        let n = outputs(&mut parts, projection);
        let name = format!("blk.0.{projection}.bias");
        parts.add(&name, vec![0.0; n]);
        assert!(logits_of(&parts) == plain, "{projection}: zeros");
        // Not the same for all outputs: a sub-norm takes a common factor out.
        parts.tensor(&name).data = f32s((0..n).map(|i| 3.0 * (i as f32).sin()));
        assert!(logits_of(&parts) != plain, "{projection}");
    }
}

/// W3: a model with biases gives the same bits by any kernels, threads and batch, packed or from the
/// file, in every architecture.
#[test]
fn w3_biases_give_the_same_bits_however_the_work_is_split() {
    let biased = |mut parts: Parts, layers: usize| {
        for (layer, projection) in (0..layers).flat_map(|l| PROJECTIONS.map(|p| (l, p))) {
            let n = outputs(&mut parts, projection);
            let value = |i: usize| 0.5 * ((i + 13 * layer + n) as f32).sin();
            parts.add(&format!("blk.{layer}.{projection}.bias"), (0..n).map(value).collect());
        }
        parts
    };
    let cases = [biased(demo_parts(), 6), biased(sound("llama"), 2), biased(sound("bitnet"), 2)];
    for (i, parts) in cases.iter().enumerate() {
        let gguf = parts.gguf();
        let scalar = Arc::new(load(&gguf, Isa::Scalar, true).unwrap());
        let expected = logits(&scalar, 1, 512);
        let best = Arc::new(load(&gguf, Isa::best(), true).unwrap());
        for (threads, batch) in [(1, 512), (2, 512), (3, 7), (2, 1)] {
            assert!(logits(&best, threads, batch) == expected, "{i}: {threads} threads, {batch}");
        }
        // Rows of the tiny models are no whole blocks of the file.
        if i == 0 {
            for isa in [Isa::Scalar, Isa::best()] {
                let in_file = Arc::new(load(&gguf, isa, false).unwrap());
                assert!(logits(&in_file, 3, 512) == expected, "{isa}, from the file");
            }
        }
    }
}

/// W3: the case of the list: 3.0 on every query of the first layer of the demo model.
#[test]
fn w3_q_bias() {
    let mut parts = demo_parts();
    parts.add("blk.0.attn_q.bias", vec![3.0; 384]);
    assert!(logits_of(&parts) != logits_of(&demo_parts()));
    // Nothing of the feed-forward part changed, so it may still be skipped.
    let forced = |parts: &Parts| {
        let (pool, selection) = (Pool::new(2).unwrap(), Selection::default());
        let options =
            LoadOptions { sparse: sparse::Mode::On, ..LoadOptions::new(&pool, &selection) };
        Model::from_gguf(parts.gguf(), &options).unwrap()
    };
    let sparse = |model: &Model| {
        let layer = &model.weights().layers[0];
        let jobs = [layer.gate_up.packed(), layer.down.packed()];
        jobs.map(|job| job.unwrap().sparse().is_some())
    };
    let model = forced(&parts);
    assert_eq!(sparse(&model), [true, true]);
    let kept = logits_of(&parts);
    assert!(logits(&Arc::new(model), 2, 512) == kept);
    // A bias in any layer makes the whole job dense.
    parts.add("blk.3.ffn_gate.bias", vec![0.1; 1024]);
    assert_eq!(sparse(&forced(&parts)), [false, true]);
    parts.add("blk.3.ffn_down.bias", vec![0.1; 384]);
    let model = forced(&parts);
    assert_eq!(sparse(&model), [false, false]);
    assert!(model.warnings().join(" ").contains("have biases"), "{:?}", model.warnings());
}

/// Outputs of a job with biases are `dot / s * scale + bias` with the dot products of the triple loop,
/// by every kernel, for one token, for some, and for as many as have the packing expanded.
#[test]
fn biases_are_added_to_the_products_of_the_reference() {
    const COLS: usize = 256;
    let rows = [96, 200, 40];
    let codes = rows.map(|rows| -> Vec<u8> {
        (0..rows * COLS).map(|i| (i * i % 7 + i / 5) as u8 % 3).collect()
    });
    let biases = [96, 0, 40].map(|n| (n > 0).then(|| (0..n).map(|i| (i as f32).cos()).collect()));
    let scales = [0.5, 0.25, 3.0];
    let pool = Pool::new(3).unwrap();
    for prefill in kernels::builtin().iter().filter(|kernel| kernel.tokens() > 1) {
        let layout = prefill.layout();
        let is_decode =
            |k: &&kernels::Kernel| k.layout() == layout && k.tokens() == 1 && !k.expands();
        let Some(decode) = kernels::builtin().iter().rfind(is_decode) else { continue };
        let part = |i: usize| {
            let shape = Shape::new(rows[i], COLS);
            let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
            let file = i2_s::encode(&codes[i]);
            let codes = Codes::i2_s(&file, shape);
            PackedMatrix::pack(codes, scales[i], layout, buffer, &pool).unwrap().unwrap()
        };
        let parts = [0, 1, 2].map(part).into();
        let biases: Vec<Option<Vec<f32>>> = biases.clone().into();
        let job = Job::new(parts, *decode, *prefill).unwrap().with_biases(biases.clone()).unwrap();
        for tokens in [1, 2, 9, 100] {
            let q: Vec<i8> = (0..tokens * COLS).map(|i| (i * 37 % 255) as u8 as i8).collect();
            let s: Vec<f32> = (1..=tokens).map(|t| 10.0 + t as f32).collect();
            let mut out = vec![f32::NAN; tokens * job.rows()];
            let jobs = std::slice::from_ref(&job);
            if tokens == 1 {
                rehearse::decode(&pool, jobs, (&q, &s), &[], Rounds::ONE, &mut out).unwrap();
            } else {
                let bytes = job.workspace_bytes(tokens, pool.threads());
                let mut space = Buffer::zeroed(bytes).unwrap();
                let round = Rounds::ONE;
                rehearse::prefill(&pool, jobs, (&q, &s), &mut space, round, &mut out).unwrap();
            }
            let mut place = 0;
            for i in 0..3 {
                let dots = reference::matmul(&codes[i], &q, COLS);
                for (t, dots) in dots.chunks_exact(rows[i]).enumerate() {
                    for (row, &dot) in dots.iter().enumerate() {
                        let product = dot as f32 / s[t] * scales[i];
                        let wanted = biases[i].as_ref().map_or(product, |bias| product + bias[row]);
                        let found = out[t * job.rows() + place + row];
                        let what = || format!("{}, {tokens}: {i} {t} {row}", prefill.id());
                        assert_eq!(found.to_bits(), wanted.to_bits(), "{}", what());
                    }
                }
                place += rows[i];
            }
        }
        // Kernels may be exchanged; the biases stay. Biases of another length are refused.
        let mut job = job;
        job.set_kernels(*decode, *prefill).unwrap();
        let mut out = vec![f32::NAN; job.rows()];
        let (jobs, q) = (std::slice::from_ref(&job), [0; COLS]);
        rehearse::decode(&pool, jobs, (&q, &[1.0]), &[], Rounds::ONE, &mut out).unwrap();
        assert_eq!((out[0], out[1], out[96]), (1.0, 1f32.cos(), 0.0));
        assert!(job.with_biases(vec![None, None, Some(vec![0.0; 39])]).is_err());
    }
}

fn scaling(keys: &[(&str, Value)]) -> RopeScaling {
    let mut parts = sound("llama");
    for (key, value) in keys {
        parts.set(&format!("llama.rope.{key}"), value.clone());
    }
    Config::from_gguf(&parts.gguf()).unwrap().rope_scaling
}

/// Keys of scaled rotary positions, and what they mean together in llama.cpp.
#[test]
fn keys_of_rope_scaling_are_read_as_in_llama_cpp() {
    let text = |text: &str| Value::Str(text.into());
    let yarn = |extrapolation, original_context, beta_fast, beta_slow| {
        Some(Yarn { extrapolation, original_context, beta_fast, beta_slow })
    };
    let of = |factor, yarn, magnitude| RopeScaling { factor, yarn, magnitude };
    let (kind, factor) = ("scaling.type", "scaling.factor");
    let cases: Vec<(Vec<(&str, Value)>, RopeScaling)> = vec![
        (vec![], RopeScaling::NONE),
        (vec![("scale_linear", Value::F32(2.0))], of(2.0, None, 1.0)),
        // Without a type the factor is linear, and the new name wins.
        (vec![(factor, Value::F32(4.0)), ("scale_linear", Value::F32(2.0))], of(4.0, None, 1.0)),
        (vec![(kind, text("linear")), (factor, Value::F32(4.0))], of(4.0, None, 1.0)),
        (vec![(kind, text("none")), (factor, Value::F32(4.0))], RopeScaling::NONE),
        (vec![(kind, text("none")), ("scaling.attn_factor", Value::F32(1.5))], of(1.0, None, 1.5)),
        (
            vec![(kind, text("yarn")), (factor, Value::F32(4.0))],
            of(4.0, yarn(1.0, 64, 32.0, 1.0), 1.0),
        ),
        (
            vec![
                (kind, text("yarn")),
                (factor, Value::F32(8.0)),
                ("scaling.original_context_length", Value::U32(16)),
                ("scaling.yarn_ext_factor", Value::F32(0.5)),
                ("scaling.yarn_beta_fast", Value::F32(16.0)),
                ("scaling.yarn_beta_slow", Value::F32(2.0)),
                ("scaling.attn_factor", Value::F32(1.25)),
                // Only without extrapolation.
                ("scaling.yarn_attn_factor", Value::F32(7.0)),
                ("scaling.yarn_log_multiplier", Value::F32(0.0)),
                ("scaling.finetuned", Value::Bool(true)),
            ],
            of(8.0, yarn(0.5, 16, 16.0, 2.0), 1.25),
        ),
        (
            vec![
                (kind, text("yarn")),
                ("scaling.yarn_ext_factor", Value::F32(-1.0)),
                ("scaling.original_context_length", Value::U32(0)),
            ],
            of(1.0, yarn(1.0, 64, 32.0, 1.0), 1.0),
        ),
        (
            vec![
                (kind, text("yarn")),
                ("scaling.yarn_ext_factor", Value::F32(0.0)),
                ("scaling.yarn_attn_factor", Value::F32(1.5)),
            ],
            of(1.0, None, 1.5),
        ),
    ];
    for (keys, expected) in cases {
        assert_eq!(scaling(&keys), expected, "{keys:?}");
    }
}

/// Positions beyond the original context have logits, which the scaling changes.
#[test]
fn yarn_runs_beyond_the_original_context() {
    let plain = logits_of(&sound("llama"));
    let with = |original: u32| {
        let mut parts = sound("llama");
        parts.set("llama.rope.scaling.type", Value::Str("yarn".into()));
        parts.set("llama.rope.scaling.factor", Value::F32(4.0));
        parts.set("llama.rope.scaling.original_context_length", Value::U32(original));
        logits_of(&parts)
    };
    let scaled = with(16);
    assert!(scaled != plain && scaled != with(32));
    assert!(scaled.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()));
    // The context is the model's own.
    assert_eq!(Config::from_gguf(&sound("llama").gguf()).unwrap().context, 64);
}

/// R8: a type that nobody knows is read as a number; whoever needs the tensor refuses it by name.
#[test]
fn r8_a_tensor_of_a_type_that_nobody_knows_is_refused_where_it_is_needed() {
    let parts = sound("llama");
    for (name, id, words) in [
        ("blk.1.attn_k.weight", 9999, ["found type 9999", "i2_s"]),
        ("blk.0.ffn_norm.weight", 255, ["found type 255", "f32, f16 or bf16"]),
        ("token_embd.weight", 4, ["found type 4 (Q4_2, withdrawn from ggml)", "q6_K"]),
    ] {
        let gguf = Arc::new(Gguf::from_bytes("m", parts.bytes_with_type(name, id)).unwrap());
        let tensor = gguf.tensor(name).unwrap();
        assert_eq!((tensor.ty, tensor.ty.id()), (TensorType::Unknown(id), id));
        assert_eq!(tensor.elements(), parts.gguf().tensor(name).unwrap().elements());
        let error = load(&gguf, Isa::best(), true).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        for word in words.iter().chain(&[name]) {
            assert!(error.to_string().contains(word), "{error} lacks {word}");
        }
    }
    let mut parts = parts;
    let (dims, data) = (vec![3, 5], vec![7; 100]);
    parts.tensors.push(Tensor { name: "extra".into(), dims, ty: TensorType::I8, data });
    let bytes = parts.bytes_with_type("extra", 1234);
    let gguf = Arc::new(Gguf::from_bytes("m", bytes).unwrap());
    let error = load(&gguf, Isa::best(), true).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("'extra'"), "{error}");
}
