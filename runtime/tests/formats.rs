//! Tensor formats of files: a model in one of them is to the bit the same model in another.

mod demo;
#[path = "demo/doubled.rs"]
mod doubled;
mod editor;

use std::process::ExitCode;
use std::sync::Arc;

use bitnet_profiles::Format;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::sparse;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, TensorType};
use bitnet_trials::{Need, Tested, suite};
use doubled::{doubled, read_i2_s, write_i2_s};
use editor::Parts;
use half::f16;

/// Codes in TQ2_0: blocks of 256 in 66 bytes, two halves of 32 bytes, byte m of which holds weights
/// m + 32 l in bits 2l + 1 : 2l, and an f16 scale, which is 0 where all weights are.
fn read_tq2_0(data: &[u8]) -> (Vec<u8>, f32) {
    let (mut codes, mut scale) = (Vec::new(), 0.0);
    for block in data.chunks_exact(66) {
        let d = f16::from_le_bytes([block[64], block[65]]).to_f32();
        let code = |i: usize| block[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
        let own: Vec<u8> = (0..256).map(code).collect();
        if d == 0.0 {
            assert!(own.iter().all(|&code| code == 1));
        } else {
            assert!(scale == 0.0 || scale == d);
            scale = d;
        }
        codes.extend(own);
    }
    (codes, scale)
}

fn write_tq2_0(codes: &[u8], scale: f32) -> Vec<u8> {
    let mut data = Vec::new();
    for codes in codes.chunks_exact(256) {
        let mut block = [0; 66];
        for (i, code) in codes.iter().enumerate() {
            block[i / 128 * 32 + i % 32] |= code << (2 * (i % 128 / 32));
        }
        let d = if codes.iter().all(|&code| code == 1) { 0.0 } else { scale };
        block[64..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        data.extend(block);
    }
    data
}

/// The same model, its ternary weights in TQ2_0.
fn in_tq2_0(mut parts: Parts) -> Parts {
    for t in parts.tensors.iter_mut().filter(|t| t.ty == TensorType::I2_S) {
        let (codes, scale) = read_i2_s(&t.data, t.dims.iter().product::<u64>() as usize);
        (t.ty, t.data) = (TensorType::TQ2_0, write_tq2_0(&codes, scale));
    }
    parts
}

/// The same model, its ternary weights in Q2_0: blocks of 64, an f16 scale and 16 bytes, byte m of which
/// holds weight 4 m + l in bits 2l + 1 : 2l.
fn in_q2_0(mut parts: Parts) -> Parts {
    for t in parts.tensors.iter_mut().filter(|t| t.ty == TensorType::I2_S) {
        let (codes, scale) = read_i2_s(&t.data, t.dims.iter().product::<u64>() as usize);
        (t.ty, t.data) = (TensorType::Q2_0, Vec::new());
        for codes in codes.chunks_exact(64) {
            let d = if codes.iter().all(|&code| code == 1) { 0.0 } else { scale };
            t.data.extend(f16::from_f32(d).to_le_bytes());
            let byte = |four: &[u8]| four.iter().rev().fold(0, |byte, code| byte << 2 | code);
            t.data.extend(codes.chunks(4).map(byte));
        }
    }
    parts
}

fn load_with(
    gguf: &Arc<Gguf>,
    format: Option<Format>,
    pack: bool,
) -> bitnet_runtime::Result<Model> {
    let pool = Pool::new(2).unwrap();
    let selection = Selection::new(None, format, None).unwrap();
    let (sparse, options) = (sparse::Mode::On, LoadOptions::new(&pool, &selection));
    Model::from_gguf(Arc::clone(gguf), &LoadOptions { sparse, pack, ..options })
}

fn load(parts: &Parts) -> bitnet_runtime::Result<Model> {
    load_with(&parts.gguf(), None, true)
}

/// Asserts that the packed weights of two models are the same bytes with the same scales, whatever
/// they are packed for.
fn assert_packed_alike(one: &Arc<Gguf>, other: &Arc<Gguf>) {
    let mut lines = 0;
    for &format in Format::ALL {
        let [one, other] = [one, other].map(|gguf| load_with(gguf, Some(format), true).unwrap());
        assert_eq!(one.warnings(), other.warnings());
        for (one, other) in one.weights().layers.iter().zip(&other.weights().layers) {
            for (one, other) in one.projections().into_iter().zip(other.projections()) {
                let (one, other) = (one.packed().unwrap(), other.packed().unwrap());
                for (one, other) in one.parts().iter().zip(other.parts()) {
                    assert!(one.scales().of_tensor().is_some_and(|scale| scale > 0.0));
                    assert_eq!(one.scales(), other.scales());
                    assert!(one.data() == other.data(), "{format}: {}", one.shape());
                }
                if let (Some(one), Some(other)) = (one.sparse(), other.sparse()) {
                    lines += 1;
                    assert_eq!(one.lines().scales(), other.lines().scales());
                    assert!(one.lines().data() == other.lines().data(), "{format}: lines");
                }
            }
        }
    }
    // Rows of up and columns of down, at least for kernels of I2_S.
    assert!(lines >= 2 * 6, "{lines}");
}

fn golden_logits(model: Model) -> Vec<Vec<u32>> {
    let pool = Arc::new(Pool::new(2).unwrap());
    let mut session = Session::new(Arc::new(model), pool, SessionOptions::default()).unwrap();
    demo::writes_its_golden_text(&mut session)
}

fn blocks_with_scales_are_packed_and_write_like_i2_s() {
    let i2_s = doubled();
    let logits = golden_logits(load(&i2_s).unwrap());
    for other in [in_tq2_0(i2_s.clone()), in_q2_0(i2_s.clone())] {
        assert!(!other.tensors.iter().any(|t| t.ty == TensorType::I2_S));
        assert_packed_alike(&i2_s.gguf(), &other.gguf());
        assert!(golden_logits(load(&other).unwrap()) == logits, "logits differ");
    }
}

/// A file made by another engine: bard-11m-pad768.tq2_0.gguf of the shared test data.
fn a_file_of_another_engine_writes_the_golden_text() -> Tested {
    let path = Need::Models.data("models/formats/bard-11m-pad768.tq2_0.gguf")?;
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let mut parts = Parts::of(&gguf);
    let mut ternary = 0;
    for t in parts.tensors.iter_mut().filter(|t| t.ty == TensorType::TQ2_0) {
        let (codes, scale) = read_tq2_0(&t.data);
        (t.ty, t.data) = (TensorType::I2_S, write_i2_s(&codes, scale));
        ternary += 1;
    }
    assert_eq!(ternary, 6 * 7);
    let i2_s = parts.gguf();
    assert_packed_alike(&i2_s, &gguf);
    let [i2_s, tq2_0] =
        [i2_s, gguf].map(|gguf| golden_logits(load_with(&gguf, None, true).unwrap()));
    assert!(i2_s == tq2_0, "logits differ");
    Ok(())
}

/// Of a matrix of zeros, in TQ2_0 without any scale, all loads and is told.
fn a_matrix_of_zeros_needs_no_scale() {
    let mut parts = in_tq2_0(doubled());
    let name = "blk.3.ffn_down.weight";
    let t = parts.tensor(name);
    // Whatever the codes are: zero times 3 is zero.
    t.data.chunks_exact_mut(66).for_each(|block| block[64..].fill(0));
    let model = load(&parts).unwrap();
    let told: Vec<&String> = model.warnings().iter().collect();
    assert!(told.len() == 1 && told[0].contains(name) && told[0].contains("zero"), "{told:?}");
    assert!(model.weights().layers[3].down.packed().unwrap().parts()[0].is_zero());
}

type Change = fn(&mut Vec<u8>);

/// (what is wrong, how it is made, the words the message must hold)
const BAD: &[(&str, Change, &[&str])] = &[
    (
        "scales differ",
        |data| data[4 * 66 + 64..][..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes()),
        &["tq2_0", "0.25", "one scale", "each block", "I2_S"],
    ),
    ("a scale is larger by a bit", |data| data[66 + 64] ^= 1, &["tq2_0", "scales", "one scale"]),
    ("code 3", |data| data[66 + 63] |= 0xc0, &["code 3"]),
    ("no number", |data| data[64..66].fill(0xff), &["scale NaN"]),
    ("infinite", |data| data[64..66].copy_from_slice(&f16::INFINITY.to_le_bytes()), &["scale inf"]),
    ("negative", |data| data[65] |= 0x80, &["scale -"]),
];

fn bad_tensors_are_refused_with_a_clear_error() {
    let sound = in_tq2_0(doubled());
    let name = "blk.1.attn_v.weight";
    for (what, change, words) in BAD {
        let mut parts = sound.clone();
        change(&mut parts.tensor(name).data);
        let Err(error) = load(&parts) else { panic!("{what} was accepted") };
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{what}: {message}");
        for word in words.iter().chain(&["model.gguf", name]) {
            assert!(message.contains(word), "{what}: no `{word}` in: {message}");
        }
        assert_eq!(message.lines().count(), 1, "{what}: {message}");
    }
    // Both scales are in the message.
    let scale = {
        let mut parts = sound.clone();
        let data = &parts.tensor(name).data;
        f16::from_le_bytes([data[64], data[65]]).to_f32().to_string()
    };
    let mut parts = sound.clone();
    BAD[0].1(&mut parts.tensor(name).data);
    let message = load(&parts).unwrap_err().to_string();
    assert!(message.contains(&scale), "no {scale} in: {message}");
}

/// Only I2_S is multiplied as a file holds it, and nothing else is taken for it.
fn only_i2_s_is_multiplied_without_packing() {
    use bitnet_runtime::arch::config::Config;
    use bitnet_runtime::cpu::mapped;
    let (i2_s, mut mixed) = (doubled(), doubled());
    let t = mixed.tensor("blk.5.ffn_up.weight");
    let (codes, scale) = read_i2_s(&t.data, t.dims.iter().product::<u64>() as usize);
    (t.ty, t.data) = (TensorType::TQ2_0, write_tq2_0(&codes, scale));
    let [i2_s, mixed] = [i2_s, mixed].map(|parts| parts.gguf());
    let serves = |gguf: &Gguf| mapped::serves(gguf, &Config::from_gguf(gguf).unwrap());
    assert!(serves(&i2_s) && !serves(&mixed));
    assert!(load_with(&i2_s, None, false).is_ok());
    let error = load_with(&mixed, None, false).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    assert!(message.contains("blk.5.ffn_up.weight") && message.contains("tq2_0"), "{message}");
    assert_packed_alike(&i2_s, &mixed);
}

fn main() -> ExitCode {
    suite![
        blocks_with_scales_are_packed_and_write_like_i2_s,
        a_file_of_another_engine_writes_the_golden_text,
        a_matrix_of_zeros_needs_no_scale,
        bad_tensors_are_refused_with_a_clear_error,
        only_i2_s_is_multiplied_without_packing,
    ]
    .run()
}
