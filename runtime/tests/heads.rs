//! Embeddings and heads of every format: the demo model with its embedding rounded to one.

mod demo;
#[path = "demo/doubled.rs"]
mod doubled;
mod editor;

use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex};

use bitnet_profiles::{HeadFormat, Isa};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::{
    BatchToken, HeadMode, HeadOptions, LoadOptions, Model, Needs, Observer, Session, SessionOptions,
};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, Value};
use bitnet_runtime::formats::{FORMATS, Format, TensorType};
use bitnet_runtime::numerics;
use bitnet_trials::{Need, Tested, suite};
use demo::{bits, golden, greedy};
use doubled::doubled;
use editor::{Parts, Tensor};
use half::f16;

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
/// Width of the doubled demo model.
const HIDDEN: usize = 768;

/// The formats that are not floats, and what rounding a trained embedding to each costs: the most that a
/// logit of the golden file may be off by, and how many of the 12 first tokens stay the same.
const ROUNDED: &[(TensorType, f32, usize)] = &[
    (TensorType::Q8_0, 0.15, 12),
    (TensorType::Q6_K, 0.25, 12),
    (TensorType::Q4_0, 1.5, 9),
    (TensorType::Q4_1, 1.1, 10),
    (TensorType::Q5_0, 0.45, 12),
    (TensorType::Q5_1, 0.5, 12),
    (TensorType::Q3_K, 1.9, 8),
    (TensorType::Q4_K, 0.8, 11),
    (TensorType::Q5_K, 0.5, 12),
    (TensorType::TQ2_0, 20.0, 5),
    (TensorType::I2_S, 9.5, 8),
];

/// The doubled demo model, and its embedding as floats.
static DEMO: LazyLock<(Parts, Vec<f32>)> = LazyLock::new(|| {
    let mut parts = doubled();
    let halves = parts.tensor(EMBEDDING).data.as_chunks().0;
    let values = halves.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect();
    (parts, values)
});

/// Rounds a matrix to a format; and the values that the bytes stand for.
fn rounded(format: &Format, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let rows = format.rows().unwrap();
    // A format with one scale for all has it behind its rows.
    let one = format.size.tail_bytes() > 0;
    let mean = values.iter().map(|v| v.abs()).sum::<f32>() / values.len() as f32;
    let scale = if one { 2.0 * mean } else { 1.0 };
    let (mut bytes, mut read) = (Vec::new(), vec![0.0; values.len()]);
    for (values, read) in values.chunks(HIDDEN).zip(read.chunks_mut(HIDDEN)) {
        let scaled: Vec<f32> = values.iter().map(|v| v / scale).collect();
        let first = bytes.len();
        (rows.quantise)(&scaled, &mut bytes);
        (rows.dequantise)(&bytes[first..], read);
        read.iter_mut().for_each(|read| *read *= scale);
    }
    if one {
        bytes.extend(scale.to_le_bytes());
        bytes.extend([0; 28]);
    }
    (bytes, read)
}

/// The demo model with an embedding, which is its head too.
fn tied(ty: TensorType) -> Parts {
    let (mut parts, values) = DEMO.clone();
    let tensor = parts.tensor(EMBEDDING);
    (tensor.ty, tensor.data) = (ty, rounded(ty.format(), &values).0);
    parts
}

/// The demo model with another head than its embedding.
fn untied(ty: TensorType) -> Parts {
    let (mut parts, values) = DEMO.clone();
    let dims = parts.tensor(EMBEDDING).dims.clone();
    let data = rounded(ty.format(), &values).0;
    parts.tensors.push(Tensor { name: HEAD.into(), dims, ty, data });
    parts
}

fn load(gguf: Arc<Gguf>, selection: &Selection, copy_head: bool) -> bitnet_runtime::Result<Model> {
    let pool = Pool::new(2).unwrap();
    Model::from_gguf(gguf, &LoadOptions { copy_head, ..LoadOptions::new(&pool, selection) })
}

fn session(model: &Arc<Model>, threads: usize, sequences: usize) -> Session {
    let pool = Arc::new(Pool::new(threads).unwrap());
    let options = SessionOptions { sequences, ..SessionOptions::default() };
    Session::new(Arc::clone(model), pool, options).unwrap()
}

/// Inputs of the head.
#[derive(Debug, Default)]
struct Inputs(Mutex<Vec<Vec<f32>>>);

impl Observer for Inputs {
    fn feed_forward(&self, _: usize, _: usize, _: &[f32], _: &[i8]) {}

    fn head(&self, _: usize, input: &[f32]) {
        self.0.lock().unwrap().push(input.to_vec());
    }
}

/// The input of a head as one of that type multiplies it: int8 in blocks of 32, or with one scale.
fn seen(ty: TensorType, x: &[f32]) -> Vec<f64> {
    let mut q = vec![0; x.len()];
    if ty == TensorType::I2_S {
        let s = numerics::quantise_activations(x, &mut q);
        return q.iter().map(|&q| f64::from(q) / f64::from(s)).collect();
    }
    let mut d = vec![0.0; x.len() / 32];
    numerics::quantise_blocks(x, &mut q, &mut d);
    q.iter().enumerate().map(|(i, &q)| f64::from(q) * f64::from(d[i / 32])).collect()
}

/// Logits are the products of the embedding's values and the head's input, as exact arithmetic gives
/// them, and near those of the golden file where the format holds what a trained embedding needs.
fn writes_as_its_values_say(ty: TensorType, most: f32, same: usize) {
    let values = rounded(ty.format(), &DEMO.1).1;
    let model = Arc::new(load(tied(ty).gguf(), &Selection::default(), true).unwrap());
    assert!(model.warnings().is_empty(), "{:?}", model.warnings());
    let mut session = session(&model, 2, 1);
    let inputs = Arc::new(Inputs::default());
    session.observe(Some(Arc::clone(&inputs) as Arc<dyn Observer>));
    let (mut worst, mut agreed) = (0.0f32, 0);
    for case in &golden().cases {
        session.truncate(0);
        let logits = session.prefill(&case.ids).unwrap();
        let x = inputs.0.lock().unwrap().pop().unwrap();
        let seen = seen(ty, &x);
        let size = seen.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (row, logit) in values.chunks(HIDDEN).zip(logits) {
            let exact: f64 = row.iter().zip(&seen).map(|(w, x)| f64::from(*w) * x).sum();
            let norm = row.iter().map(|w| f64::from(w * w)).sum::<f64>().sqrt();
            let off = (f64::from(*logit) - exact).abs();
            assert!(off <= 1e-5 * size * norm, "{:?}: {logit}, {exact}", case.prompt);
        }
        for &(id, expected) in &case.last_logits_top10 {
            worst = worst.max((logits[id] - expected).abs());
        }
        agreed += usize::from(greedy(logits) == case.greedy_48[0]);
    }
    println!("{ty}: off by {worst}, {agreed} of 12 first tokens");
    assert!(worst <= most && agreed >= same, "off by {worst}, {agreed} first tokens");
}

/// Logits of the first golden case, token by token and for several sequences at once.
fn logits_of(model: &Arc<Model>, threads: usize) -> Vec<Vec<u32>> {
    let case = &golden().cases[0];
    let mut alone = session(model, threads, 1);
    let mut found = vec![bits(alone.prefill(&case.ids).unwrap())];
    for &id in &case.greedy_48[..2] {
        found.push(bits(alone.decode(id).unwrap()));
    }
    let mut together = session(model, threads, 5);
    let token = |sequence| BatchToken { sequence, id: case.ids[sequence], needs: Some(Needs::ALL) };
    let batch: Vec<BatchToken<'_>> = (0..5).map(token).collect();
    together.forward(&batch).unwrap();
    for token in &batch {
        let logits = bits(together.logits(token.sequence));
        alone.truncate(0);
        assert!(bits(alone.prefill(&[token.id]).unwrap()) == logits, "{}", token.sequence);
        found.push(logits);
    }
    found
}

/// The same bits on every ISA, by any number of threads, from memory or from the file, whether the head is
/// the embedding or a tensor of its own.
fn is_the_same_everywhere(ty: TensorType, isa: Isa) -> Tested {
    Need::isa(isa)?;
    let plain = Selection::new(Some(Isa::Scalar), None, None).unwrap();
    let own = Selection::new(Some(isa), None, None).unwrap();
    for parts in [tied(ty), untied(ty)] {
        let gguf = parts.gguf();
        let model = |selection, copy| Arc::new(load(Arc::clone(&gguf), selection, copy).unwrap());
        let expected = logits_of(&model(&plain, true), 1);
        for (threads, copy) in [(1, true), (2, false), (3, true)] {
            let model = model(&own, copy);
            let head = model.kernels().last().unwrap().decode;
            assert!(head.isa.is_within(isa), "{head}");
            assert!(logits_of(&model, threads) == expected, "{isa}, {threads} threads, {copy}");
        }
    }
    Ok(())
}

/// A scan finds the best logits of the full head.
fn is_scanned(ty: TensorType) {
    const COUNT: usize = 20;
    let gguf = untied(ty).gguf();
    let pool = Arc::new(Pool::new(2).unwrap());
    let model = |mode| {
        let model = load(Arc::clone(&gguf), &Selection::default(), false).unwrap();
        let (ceiling, pages, lock) = (Isa::best(), Pages::Small, false);
        let options = HeadOptions { mode, count: COUNT, ceiling, pages, lock };
        Arc::new(model.choose_head(&pool, &options).unwrap())
    };
    let (full, exact) = (model(HeadMode::Full), model(HeadMode::Exact));
    assert!(full.sketch().is_none() && exact.sketch().is_some());
    let needs = Needs::Best { count: COUNT, ids: vec![7] };
    let mut rescored = 0;
    for case in &golden().cases[..6] {
        // A session that finds scans too dear, as they are for the smallest formats, leaves them.
        let (mut full, mut exact) = (session(&full, 2, 1), session(&exact, 2, 1));
        let expected = full.prefill(&case.ids).unwrap();
        let got = exact.prefill_for(&case.ids, &needs).unwrap();
        let mut sorted = expected.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for (id, (expected, got)) in expected.iter().zip(got).enumerate() {
            let needed = *expected >= sorted[COUNT - 1] || id == 7;
            let ruled_out = *got == f32::NEG_INFINITY && !needed;
            assert!(expected.to_bits() == got.to_bits() || ruled_out, "{id}: {got}, {expected}");
        }
        let stats = exact.head_stats();
        assert_eq!((stats.tokens, stats.scanned), (1, 1));
        rescored += stats.rescored;
    }
    // The best of 4096 are found without all of them.
    let rows = 6 * 4096;
    println!("{ty}: {rescored} of {rows} rows");
    assert!(rescored < rows / 2, "{rescored} of {rows}");
}

/// (what is wrong, the type, how it is made, the words that the message must hold)
type Wrong = (&'static str, TensorType, fn(&mut Tensor), &'static [&'static str]);

const BAD: &[Wrong] = &[
    ("a scale of nothing", TensorType::I2_S, |t| set_scale(t, f32::NAN), &["scale NaN", "damaged"]),
    ("no bound", TensorType::I2_S, |t| set_scale(t, f32::INFINITY), &["scale inf"]),
    ("zero", TensorType::I2_S, |t| set_scale(t, 0.0), &["scale 0", "above 0"]),
    ("a scale below zero", TensorType::I2_S, |t| set_scale(t, -0.5), &["scale -0.5"]),
    ("a code of nothing", TensorType::I2_S, |t| t.data[100] |= 0x30, &["code 3", "0 to 2"]),
    ("a code of nothing", TensorType::TQ2_0, |t| t.data[66 * 501 + 63] |= 0xc0, &["code 3"]),
    (
        "a scale of nothing",
        TensorType::TQ2_0,
        |t| t.data[66 * 500 + 64..][..2].fill(0xff),
        &["scale NaN"],
    ),
];

fn set_scale(tensor: &mut Tensor, scale: f32) {
    let tail = tensor.data.len() - 32;
    tensor.data[tail..][..4].copy_from_slice(&scale.to_le_bytes());
}

/// Scales that are none and codes without a meaning are refused, in an embedding as in a head.
fn damaged_ternary_tables_are_refused() {
    for &(what, ty, change, words) in BAD {
        for (name, mut parts) in [(EMBEDDING, tied(ty)), (HEAD, untied(ty))] {
            change(parts.tensor(name));
            let Err(error) = load(parts.gguf(), &Selection::default(), false) else {
                panic!("{what} in {name}, {ty}, was accepted")
            };
            let message = error.to_string();
            assert_eq!(error.exit_code(), 3, "{message}");
            for word in words.iter().chain(&["model.gguf", name]) {
                assert!(message.contains(word), "{what}: no `{word}` in: {message}");
            }
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}

/// A row of I2_S that begins inside a block, which a file may hold, is no row of a head.
fn rows_of_parts_of_blocks_are_refused() {
    // Half as wide, and with rows of 192 weights.
    let mut parts = untied(TensorType::I2_S);
    for (key, value) in &mut parts.kv {
        match key.strip_prefix("bitnet-b1.58.") {
            Some("embedding_length") => *value = Value::U32(192),
            Some("rope.dimension_count") => *value = Value::U32(16),
            _ => {}
        }
    }
    for name in [EMBEDDING, HEAD] {
        let tensor = parts.tensor(name);
        tensor.dims[0] = 192;
        let bytes = tensor.ty.byte_size(&tensor.dims).unwrap() as usize;
        tensor.data.resize(bytes, 0);
    }
    let error = load(parts.gguf(), &Selection::default(), false).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    for word in ["model.gguf", HEAD, "i2_s rows of 192", "128", "f16"] {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

/// A block of any type whose scale is no number gives logits that are none, and touches no other row.
fn a_scale_that_is_no_number_shows_in_its_row_alone() {
    for &(ty, ..) in ROUNDED.iter().filter(|(ty, ..)| !ty.is_ternary()) {
        let mut parts = untied(ty);
        let tensor = parts.tensor(HEAD);
        let (weights, bytes) = tensor.ty.format().size.block().unwrap();
        let row = HIDDEN / weights as usize * bytes as usize;
        // Q6_K and Q3_K have their scale at the end of a block, the others at its front.
        let last = matches!(ty, TensorType::Q6_K | TensorType::Q3_K);
        let at = 17 * row + if last { bytes as usize - 2 } else { 0 };
        tensor.data[at..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
        let model = Arc::new(load(parts.gguf(), &Selection::default(), true).unwrap());
        let mut session = session(&model, 2, 1);
        let logits = session.prefill(&golden().cases[0].ids).unwrap();
        for (id, logit) in logits.iter().enumerate() {
            assert_eq!(logit.is_nan(), id == 17, "{ty}: logit {id} is {logit}");
        }
    }
}

/// No format is left out but the floats, and the one that no file has.
fn every_block_format_is_tested() {
    let formats = FORMATS.iter().filter_map(Format::rows).map(|rows| rows.head);
    let blocks = formats.filter(|head| head.block_weights() > 1).count();
    assert_eq!((blocks, HeadFormat::ALL.len()), (ROUNDED.len(), ROUNDED.len() + 4));
}

fn main() -> ExitCode {
    let mut suite = suite![
        damaged_ternary_tables_are_refused,
        rows_of_parts_of_blocks_are_refused,
        a_scale_that_is_no_number_shows_in_its_row_alone,
        every_block_format_is_tested,
    ];
    for &(ty, most, same) in ROUNDED {
        suite.add(format!("r7_{ty}::writes_as_its_values_say"), move || {
            writes_as_its_values_say(ty, most, same);
        });
        suite.add(format!("r7_{ty}::is_scanned"), move || is_scanned(ty));
        for &isa in Isa::of_arch(std::env::consts::ARCH) {
            suite.add(format!("r7_{ty}::is_the_same_everywhere::{isa}"), move || {
                is_the_same_everywhere(ty, isa)
            });
        }
    }
    suite.run()
}
