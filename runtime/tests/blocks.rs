//! Models whose matrices have a scale for each block of weights: a small random Qwen3 in every such type.

mod editor;

use std::sync::Arc;

use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{Choice, Isa, Pick, Role, Shape};
use bitnet_runtime::cpu::kernels::{BlockKernel, Selection};
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::{KvType, LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{TensorType, Value};
use bitnet_runtime::file::packed::PackedFile;
use bitnet_runtime::formats::{Codes, Scales};
use bitnet_runtime::random::Random;
use bitnet_runtime::{Activations, Error};
use editor::{Parts, Sizes, Tensor, f32s};
use half::f16;

const HIDDEN: usize = 256;
const FFN: usize = 512;
const LAYERS: usize = 2;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
/// All query heads together are wider than the model.
const HEAD: usize = 128;
const VOCAB: usize = 48;
const EPS: f64 = 1e-6;
const ROPE_BASE: f64 = 1e4;

/// Types of matrices, the weights of a block, and where its scale stands.
const TYPES: &[(TensorType, usize, bool)] = &[
    (TensorType::Q2_0, 64, true),
    (TensorType::Q2_0_G128, 128, true),
    (TensorType::PQ2_0, 128, true),
    (TensorType::PTQ1_0, 128, false),
    (TensorType::TQ1_0, 256, false),
    (TensorType::TQ2_0, 256, false),
];

/// A number of -1 to 1.
fn unit(random: &mut Random) -> f32 {
    random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
}

/// A matrix by its weights, `[rows][cols]`.
type Weights = Vec<f64>;

struct Layer {
    attn_norm: Vec<f32>,
    q: Weights,
    k: Weights,
    v: Weights,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    out: Weights,
    ffn_norm: Vec<f32>,
    gate: Weights,
    up: Weights,
    down: Weights,
}

struct Net {
    embedding: Weights,
    head: Option<Weights>,
    norm: Vec<f32>,
    layers: Vec<Layer>,
}

/// Types of the embedding and the head.
#[derive(Clone, Copy, Debug)]
enum Tables {
    /// Floats, which are the head too.
    Floats,
    /// That of the matrices, for both.
    Tied,
    /// Floats, and a head of that of the matrices.
    Head,
}

/// Makes a model in a file, its matrices of the type, and the same model as numbers.
fn random_model(
    &(ty, block, in_front): &(TensorType, usize, bool),
    tables: Tables,
    seed: u64,
) -> (Parts, Net) {
    let random = &mut Random::new(seed);
    let sizes = Sizes {
        layers: LAYERS,
        context: 64,
        hidden: HIDDEN,
        ffn: FFN,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head: HEAD,
        eps: EPS as f32,
        rope_base: ROPE_BASE as f32,
    };
    let mut parts = Parts::with_sizes("qwen3", &sizes);
    let vector = |parts: &mut Parts, name: String, n: usize, random: &mut Random| {
        let values: Vec<f32> = (0..n).map(|_| 1.0 + 0.25 * unit(random)).collect();
        parts.add(&name, values.clone());
        values
    };
    let matrix =
        |parts: &mut Parts, name: String, rows: usize, cols: usize, random: &mut Random| {
            let (mut data, mut weights) = (Vec::new(), Vec::new());
            // Code 3 is +2. The mean is 0: else logits would be one direction, whatever the text.
            let of_two: &[u8] = &[0, 0, 0, 0, 1, 2, 2, 3];
            let codes_of = if ty == TensorType::PQ2_0 { of_two } else { &[0, 1, 2] };
            let encode = ty.format().ternary().unwrap().encode().unwrap();
            for _ in 0..rows * cols / block {
                // One in eight has no weights.
                let factor = if random.below(8) == 0 { 0.0 } else { 1.0 + 0.5 * unit(random) };
                let scale = f16::from_f32(factor / (cols as f32).sqrt());
                let mut code = || codes_of[random.below(codes_of.len() as u64) as usize];
                let codes: Vec<u8> = (0..block).map(|_| code()).collect();
                let start = data.len();
                encode(&codes, 1.0, &mut data);
                let at = if in_front { start } else { data.len() - 2 };
                data[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                weights.extend(codes.iter().map(|&c| scale.to_f64() * (f64::from(c) - 1.0)));
            }
            let dims = vec![cols as u64, rows as u64];
            parts.tensors.push(Tensor { name, dims, ty, data });
            weights
        };
    // A file without a head has the embedding for one; where it has one that is ternary.
    let embedding: Vec<f32> = (0..VOCAB * HIDDEN).map(|_| unit(random)).collect();
    parts.tensors.push(Tensor {
        name: "token_embd.weight".into(),
        dims: vec![HIDDEN as u64, VOCAB as u64],
        ty: TensorType::F32,
        data: f32s(embedding.iter().copied()),
    });
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
    let (embedding, head) = match tables {
        Tables::Floats => (wide(&embedding), None),
        Tables::Tied => {
            parts.tensors.clear();
            (matrix(&mut parts, "token_embd.weight".into(), VOCAB, HIDDEN, random), None)
        }
        Tables::Head => {
            let head = matrix(&mut parts, "output.weight".into(), VOCAB, HIDDEN, random);
            (wide(&embedding), Some(head))
        }
    };
    let norm = vector(&mut parts, "output_norm.weight".into(), HIDDEN, random);
    let (q_dim, kv_dim) = (HEADS * HEAD, KV_HEADS * HEAD);
    let layers = (0..LAYERS)
        .map(|layer| {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let parts = &mut parts;
            Layer {
                attn_norm: vector(parts, name("attn_norm"), HIDDEN, random),
                q: matrix(parts, name("attn_q"), q_dim, HIDDEN, random),
                k: matrix(parts, name("attn_k"), kv_dim, HIDDEN, random),
                v: matrix(parts, name("attn_v"), kv_dim, HIDDEN, random),
                q_norm: vector(parts, name("attn_q_norm"), HEAD, random),
                k_norm: vector(parts, name("attn_k_norm"), HEAD, random),
                out: matrix(parts, name("attn_output"), HIDDEN, q_dim, random),
                ffn_norm: vector(parts, name("ffn_norm"), HIDDEN, random),
                gate: matrix(parts, name("ffn_gate"), FFN, HIDDEN, random),
                up: matrix(parts, name("ffn_up"), FFN, HIDDEN, random),
                down: matrix(parts, name("ffn_down"), HIDDEN, FFN, random),
            }
        })
        .collect();
    (parts, Net { embedding, head, norm, layers })
}

fn product(weights: &[f64], x: &[f64]) -> Vec<f64> {
    let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
    weights.chunks_exact(x.len()).map(dot).collect()
}

fn rms_norm(x: &[f64], w: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let r = 1.0 / (mean + EPS).sqrt();
    x.iter().zip(w).map(|(x, &w)| x * r * f64::from(w)).collect()
}

/// Norms and rotates all heads: element i with i + HEAD / 2.
fn heads(x: &[f64], norm: &[f32], position: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for head in x.chunks_exact(HEAD) {
        let x = rms_norm(head, norm);
        let (low, high) = x.split_at(HEAD / 2);
        let turned = |i: usize| {
            let angle = position as f64 * ROPE_BASE.powf(-2.0 * i as f64 / HEAD as f64);
            (
                low[i] * angle.cos() - high[i] * angle.sin(),
                low[i] * angle.sin() + high[i] * angle.cos(),
            )
        };
        out.extend((0..HEAD / 2).map(|i| turned(i).0));
        out.extend((0..HEAD / 2).map(|i| turned(i).1));
    }
    out
}

impl Net {
    /// Computes the logits after every token, in f64, with nothing quantised.
    fn logits(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let (mut keys, mut values) = (vec![Vec::new(); LAYERS], vec![Vec::new(); LAYERS]);
        let mut all = Vec::new();
        for (position, &id) in ids.iter().enumerate() {
            let mut x = self.embedding[id as usize * HIDDEN..][..HIDDEN].to_vec();
            for (layer, l) in self.layers.iter().enumerate() {
                let input = rms_norm(&x, &l.attn_norm);
                let q = heads(&product(&l.q, &input), &l.q_norm, position);
                keys[layer].push(heads(&product(&l.k, &input), &l.k_norm, position));
                values[layer].push(product(&l.v, &input));
                let mut attention = Vec::new();
                for (head, q) in q.chunks_exact(HEAD).enumerate() {
                    let own = head / (HEADS / KV_HEADS) * HEAD;
                    let score = |k: &Vec<f64>| {
                        let dot: f64 = q.iter().zip(&k[own..own + HEAD]).map(|(q, k)| q * k).sum();
                        (dot / (HEAD as f64).sqrt()).exp()
                    };
                    let p: Vec<f64> = keys[layer].iter().map(score).collect();
                    let total: f64 = p.iter().sum();
                    let of = |c: usize| {
                        let terms = p.iter().zip(&values[layer]).map(|(p, v)| p * v[own + c]);
                        terms.sum::<f64>() / total
                    };
                    attention.extend((0..HEAD).map(of));
                }
                let y = product(&l.out, &attention);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                let input = rms_norm(&x, &l.ffn_norm);
                let (gate, up) = (product(&l.gate, &input), product(&l.up, &input));
                let gated = gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up);
                let y = product(&l.down, &gated.collect::<Vec<_>>());
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
            let x = rms_norm(&x, &self.norm);
            all.push(product(self.head.as_ref().unwrap_or(&self.embedding), &x));
        }
        all
    }
}

fn load(parts: &Parts, isa: Option<Isa>) -> bitnet_runtime::Result<Model> {
    load_rounding(parts, isa, Activations::Auto)
}

fn load_rounding(
    parts: &Parts,
    isa: Option<Isa>,
    activations: Activations,
) -> bitnet_runtime::Result<Model> {
    let pool = Pool::new(2).unwrap();
    let selection = Selection::new(isa, None, None).unwrap();
    let options = LoadOptions { activations, ..LoadOptions::new(&pool, &selection) };
    Model::from_gguf(parts.gguf(), &options)
}

fn session(model: Model, threads: usize, batch: usize) -> Session {
    let pool = Arc::new(Pool::new(threads).unwrap());
    let options =
        SessionOptions { context: Some(64), batch, kv_type: Some(KvType::F32), sequences: 1 };
    Session::new(Arc::new(model), pool, options).unwrap()
}

fn text() -> Vec<u32> {
    (0..21).map(|i| (i * i * 7 + 3) % VOCAB as u32).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Returns how far logits are from those of exact arithmetic, as a share of their size.
fn off(model: Model, net: &Net) -> f64 {
    let mut session = session(model, 2, 1);
    let (mut off, mut size) = (0.0, 0.0);
    for (&id, expected) in text().iter().zip(net.logits(&text())) {
        let logits = session.decode(id).unwrap();
        for (&found, expected) in logits.iter().zip(expected) {
            off += (f64::from(found) - expected).powi(2);
            size += expected.powi(2);
        }
    }
    (off / size).sqrt()
}

/// Activations of 8 bits move logits by a few percent of what logits are: each product is off by about
/// 1/254/sqrt(3) of its size for every activation that is as large as the largest of its block, and some
/// ten such products follow each other. A wrong operation moves them by more than half.
#[test]
fn logits_are_near_those_of_exact_arithmetic() {
    for ty in TYPES {
        for tables in [Tables::Floats, Tables::Tied, Tables::Head] {
            let (parts, net) = random_model(ty, tables, 3);
            let off = off(load(&parts, None).unwrap(), &net);
            eprintln!("{} {tables:?} {off}", ty.0);
            assert!(off < 0.03, "{}, {tables:?}: {off} of their size", ty.0);
        }
    }
}

/// Where activations are not rounded, what is left is the rounding of f32 in norms, attention and sums:
/// 2^-24 of a number at a time.
#[test]
fn logits_are_those_of_exact_arithmetic_where_activations_are_not_rounded() {
    for ty in TYPES {
        for tables in [Tables::Floats, Tables::Tied, Tables::Head] {
            let (parts, net) = random_model(ty, tables, 3);
            let load = || load_rounding(&parts, None, Activations::F32).unwrap();
            let off = off(load(), &net);
            assert!(off < 1e-5, "{}, {tables:?}: {off} of their size", ty.0);
            let expected = bits(session(load(), 1, 1).prefill(&text()).unwrap());
            for (threads, batch) in [(3, 1), (2, 4), (3, 21)] {
                let found = bits(session(load(), threads, batch).prefill(&text()).unwrap());
                assert_eq!(found, expected, "{}: {threads}, {batch}", ty.0);
            }
        }
    }
}

/// One scale for all activations of a token is coarser than one for each block.
#[test]
fn activations_of_a_token_may_share_a_scale() {
    for ty in TYPES {
        let (parts, net) = random_model(ty, Tables::Floats, 3);
        let of = |activations| off(load_rounding(&parts, None, activations).unwrap(), &net);
        let [token, block] = [Activations::Token, Activations::Block].map(of);
        assert!(block < token && token < 0.06, "{}: {block}, {token}", ty.0);
        assert_eq!(of(Activations::Auto), block);
    }
}

/// A tensor with one scale has blocks of activations, too, if that is asked for.
#[test]
fn activations_have_blocks_where_weights_have_none() {
    let (mut parts, _) = random_model(&TYPES[0], Tables::Floats, 3);
    for tensor in parts.tensors.iter_mut().filter(|tensor| tensor.ty == TYPES[0].0) {
        for block in tensor.data.chunks_exact_mut(18) {
            block[..2].copy_from_slice(&f16::from_f32(1.0 / 16.0).to_le_bytes());
        }
    }
    let model = |activations| load_rounding(&parts, None, activations).unwrap();
    let is_block = |model: &Model| {
        let layers = model.weights().layers.iter();
        layers.flat_map(|layer| layer.projections()).all(|p| p.blocks().is_some())
    };
    assert!(!is_block(&model(Activations::Auto)));
    assert!(is_block(&model(Activations::Block)));
    let logits = |activations| session(model(activations), 2, 4).prefill(&text()).unwrap().to_vec();
    let exact = logits(Activations::F32);
    let off = |logits: Vec<f32>| {
        let pairs = || logits.iter().zip(&exact);
        let off: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (off / pairs().map(|(_, b)| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
    };
    let (token, block) = (off(logits(Activations::Token)), off(logits(Activations::Block)));
    assert!(block < token && token < 0.06, "{block}, {token}");
    assert_eq!(bits(&logits(Activations::Token)), bits(&logits(Activations::Auto)));
}

/// Weights that are ternary are so as floats, too, with the same scales.
#[test]
fn ternary_weights_may_be_stored_as_floats() {
    let in_floats = |parts: &Parts, ty: TensorType| {
        let mut parts = parts.clone();
        for tensor in parts.tensors.iter_mut().filter(|tensor| tensor.ty.is_ternary()) {
            let shape = Shape::new(tensor.dims[1] as usize, tensor.dims[0] as usize);
            let codes = Codes::new(tensor.ty, &tensor.data, shape).unwrap();
            let scales = codes.scales();
            let mut data = Vec::new();
            let mut row = vec![0; shape.cols];
            for number in 0..shape.rows {
                codes.row(number, &mut row);
                let of = |col: usize| match &scales {
                    Scales::Blocks { width, values } => {
                        values[number * (shape.cols / width) + col / width]
                    }
                    other => other.of_tensor().unwrap(),
                };
                let row =
                    row.iter().enumerate().map(|(col, &code)| of(col) * (f32::from(code) - 1.0));
                let row: Vec<f32> = row.collect();
                (ty.format().rows().unwrap().quantise)(&row, &mut data);
            }
            (tensor.ty, tensor.data) = (ty, data);
        }
        parts
    };
    let logits =
        |parts: &Parts| bits(session(load(parts, None).unwrap(), 2, 8).prefill(&text()).unwrap());
    for ty in TYPES {
        let (parts, _) = random_model(ty, Tables::Floats, 9);
        if ty.0 == TensorType::PQ2_0 {
            // +2 is another magnitude.
            let message = refusal(&in_floats(&parts, TensorType::F16));
            assert!(
                message.contains("blk.0.attn_q.weight") && message.contains("f16"),
                "{message}"
            );
            continue;
        }
        let expected = logits(&parts);
        for float in [TensorType::F16, TensorType::F32] {
            assert_eq!(logits(&in_floats(&parts, float)), expected, "{} as {float}", ty.0);
        }
    }
    // One scale for the tensor.
    let parts = editor::sound("llama");
    let ids = [1, 5, 2, 7, 0, 3];
    let logits =
        |parts: &Parts| bits(session(load(parts, None).unwrap(), 2, 8).prefill(&ids).unwrap());
    for float in [TensorType::F16, TensorType::BF16, TensorType::F32] {
        let mut floats = in_floats(&parts, float);
        assert_eq!(logits(&floats), logits(&parts), "{float}");
        // A number that is none of the three.
        let tensor = floats.tensor("blk.1.ffn_down.weight");
        let row = tensor.data.len() / tensor.dims[1] as usize;
        let mut odd = Vec::new();
        (float.format().rows().unwrap().quantise)(&[0.25; 64], &mut odd);
        odd[..row / 2].copy_from_slice(&tensor.data[..row / 2]);
        tensor.data[..row].copy_from_slice(&odd);
        let message = refusal(&floats);
        let name = float.name();
        assert!(message.contains("blk.1.ffn_down.weight") && message.contains(name), "{message}");
    }
}

#[test]
fn logits_are_the_same_whatever_computes_them() {
    for ty in TYPES {
        let (parts, _) = random_model(ty, Tables::Floats, 4);
        let text = text();
        let mut one_by_one = session(load(&parts, Some(Isa::Scalar)).unwrap(), 1, 1);
        let expected: Vec<Vec<u32>> =
            text.iter().map(|&id| bits(one_by_one.decode(id).unwrap())).collect();
        for &isa in Isa::ALL.iter().filter(|isa| isa.is_supported()) {
            for (threads, batch) in [(1, 1), (3, 1), (1, 2), (2, 3), (2, 5), (3, 21)] {
                let mut session = session(load(&parts, Some(isa)).unwrap(), threads, batch);
                let found = bits(session.prefill(&text).unwrap());
                assert_eq!(found, expected[20], "{}: {isa}, {threads}, {batch}", ty.0);
                if batch == 1 {
                    session.truncate(0);
                    for (&id, expected) in text.iter().zip(&expected) {
                        let found = bits(session.decode(id).unwrap());
                        assert_eq!(&found, expected, "{}: {isa}, {threads}", ty.0);
                    }
                }
            }
        }
    }
}

/// Packed weights that were kept in a file are the same.
#[test]
fn a_file_of_packed_weights_holds_them() {
    let folder = tempfile::tempdir().unwrap();
    for ty in TYPES {
        let (parts, _) = random_model(ty, Tables::Floats, 5);
        let (model, packed) = (folder.path().join("model.gguf"), folder.path().join("packed"));
        std::fs::write(&model, parts.bytes()).unwrap();
        let pool = Pool::new(2).unwrap();
        let selection = Selection::default();
        let options = LoadOptions::new(&pool, &selection);
        let own = Model::load(&model, &options).unwrap();
        let source = own.gguf().source().unwrap();
        own.packed().write(&packed, &model, source).unwrap();
        let file = PackedFile::open(&packed, Pages::Small).unwrap();
        let kept = Model::load(&model, &LoadOptions { packed: Some(&file), ..options }).unwrap();
        let [own, kept] =
            [own, kept].map(|model| bits(session(model, 2, 8).prefill(&text()).unwrap()));
        assert_eq!(own, kept, "{}", ty.0);
    }
}

fn refusal(parts: &Parts) -> String {
    let error: Error = load(parts, None).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    error.to_string()
}

#[test]
fn hostile_blocks_are_refused() {
    let name = "blk.1.ffn_up.weight";
    for ty in TYPES {
        let (block, in_front) = (ty.0.format().size.block().unwrap().1 as usize, ty.2);
        let at = 5 * block + if in_front { 0 } else { block - 2 };
        for (scale, word) in
            [(f16::NAN, "NaN"), (f16::INFINITY, "inf"), (f16::from_f32(-0.5), "-0.5")]
        {
            let (mut parts, _) = random_model(ty, Tables::Floats, 6);
            parts.tensor(name).data[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            let message = refusal(&parts);
            assert!(message.contains(name) && message.contains(word), "{}: {message}", ty.0);
        }
        // Code 3 where it is no weight: in types of two bits but one.
        if matches!(ty.0, TensorType::Q2_0 | TensorType::Q2_0_G128 | TensorType::TQ2_0) {
            let (mut parts, _) = random_model(ty, Tables::Floats, 6);
            let data = &mut parts.tensor(name).data;
            data[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
            data[5 * block + 7] = 0xff;
            let message = refusal(&parts);
            assert!(message.contains(name) && message.contains("code 3"), "{}: {message}", ty.0);
        }
    }
}

#[test]
fn a_head_norm_that_is_missing_is_named() {
    let (mut parts, _) = random_model(&TYPES[0], Tables::Floats, 7);
    parts.tensors.retain(|t| t.name != "blk.1.attn_k_norm.weight");
    assert!(refusal(&parts).contains("blk.1.attn_k_norm.weight"));
}

/// What Bonsai 27B needs is named.
#[test]
fn what_is_not_there_is_said() {
    let (mut parts, _) = random_model(&TYPES[2], Tables::Floats, 8);
    parts.set("prism.hadamard.block_size", Value::U32(1024));
    let message = refusal(&parts);
    assert!(
        message.contains("prism.hadamard.block_size") && message.contains("rotated"),
        "{message}"
    );
    parts.remove("prism.hadamard.block_size");
    parts.set("general.architecture", Value::Str("qwen35".into()));
    let message = refusal(&parts);
    assert!(message.contains("qwen35") && message.contains("delta-net"), "{message}");
}

/// The user's profile names the kernels, for blocks as wide as they read; for others the default serves.
#[test]
fn a_profile_chooses_the_kernels() {
    let parts = [Shape::new(96, 256)];
    let plain = |one: bool| {
        let fits = |kernel: &BlockKernel| {
            kernel.id().isa == Isa::Scalar
                && kernel.layout().width() == 64
                && (kernel.tokens() == 1) == one
        };
        *BlockKernel::builtin().find(fits).unwrap().id()
    };
    let [decode, prefill] = [true, false].map(plain);
    let mut profile = Shipped::all().last().unwrap().profile().clone();
    profile.ops = vec![Choice {
        role: Role::Down,
        parts: parts.to_vec(),
        count: 1,
        layout: decode.op.packing(),
        decode: Pick::untimed(decode),
        prefill: Some(Pick::untimed(prefill)),
        sparse: None,
    }];
    profile.validate().unwrap();
    let selection = Selection::new(None, None, Some(profile)).unwrap();
    let (one, many) = selection.blocks(Role::Down, &parts, 64).unwrap();
    assert_eq!((*one.id(), *many.id()), (decode, prefill));
    assert_eq!(selection.take_notes(), [""; 0]);
    let (one, many) = selection.blocks(Role::Down, &parts, 128).unwrap();
    assert_eq!((one.layout().width(), many.layout().width()), (128, 128));
    let notes = selection.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("blocks of 128 weights"), "{notes:?}");
}
