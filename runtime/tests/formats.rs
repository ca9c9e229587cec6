//! Tensor formats of files: a model in one of them is to the bit the same model in another.

mod demo;
#[path = "demo/doubled.rs"]
mod doubled;
mod editor;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bitnet_profiles::{Format, Shape};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::sparse;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, GgufWriter, TensorType, Value};
use bitnet_runtime::formats::{Codes, TILES_KEY};
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

/// Sizes of tiles, `BM`, `BK` and `bm`, by which all matrices of the demo model are cut; those of the files
/// of another engine in the shared test data.
const TL1_TILES: [usize; 3] = [128, 64, 32];
const TL2_TILES: [usize; 3] = [128, 96, 32];

/// The index of two weights, `3a + b + 4`, from their codes.
fn index(codes: &[u8]) -> u8 {
    3 * codes[0] + codes[1]
}

/// TL1 as bitnet.cpp's converter writes it: by splitting rows and columns, again and again.
fn write_tl1(codes: &[u8], cols: usize, scale: f32, [bm, bk, inner]: [usize; 3]) -> Vec<u8> {
    let (rows, by) = (codes.len() / cols, 256 / inner);
    let mut data = Vec::new();
    for tile in (0..rows).step_by(bm) {
        for wide in (0..cols).step_by(bk) {
            for row in (tile..tile + bm).step_by(inner) {
                for narrow in (wide..wide + bk).step_by(by) {
                    for sixteen in (row..row + inner).step_by(16) {
                        for col in (narrow..narrow + by).step_by(4) {
                            let at = |row: usize| &codes[row * cols + col..][..4];
                            let byte = |row| index(&at(row)[..2]) << 4 | index(&at(row)[2..]);
                            data.extend((sixteen..sixteen + 16).map(byte));
                        }
                    }
                }
            }
        }
    }
    data.extend(scale.to_le_bytes());
    data.extend([0; 28]);
    data
}

/// TL2 as bitnet.cpp's converter writes it: triples without their signs, signs, pairs.
fn write_tl2(codes: &[u8], cols: usize, scale: f32, [bm, bk, _]: [usize; 3]) -> Vec<u8> {
    let rows = codes.len() / cols;
    let three = cols / bk * bk;
    let value = |row: usize, col: usize| -> i32 {
        let codes = &codes[row * cols + col..][..3];
        codes.iter().fold(0, |value, &code| 3 * value + i32::from(code) - 1)
    };
    // Eights of rows, the middle ones exchanged.
    let order = || [0, 16, 8, 24].into_iter().flat_map(|eight| eight..eight + 8);
    let blocks = |range: std::ops::Range<usize>, wide: usize, narrow: usize| {
        let mut places = Vec::new();
        for tile in (0..rows).step_by(bm) {
            for wide_col in range.clone().step_by(wide) {
                for row in (tile..tile + bm).step_by(32) {
                    let cols = (wide_col..wide_col + wide).step_by(narrow);
                    places.extend(cols.map(|col| (row, col)));
                }
            }
        }
        places
    };
    let mut data = Vec::new();
    for (row, col) in blocks(0..three, bk, 6) {
        let nibble = |row, col| value(row, col).unsigned_abs() as u8;
        data.extend(order().map(|r| nibble(row + r, col) << 4 | nibble(row + r, col + 3)));
    }
    for (row, col) in blocks(0..three, bk, 24) {
        for r in 0..16 {
            // From the highest bit down: triple by triple, row r and row r + 16.
            let word =
                (0..8).flat_map(|i| [row + r, row + r + 16].map(|row| value(row, col + 3 * i)));
            let word = word.fold(0u16, |word, value| word << 1 | u16::from(value < 0));
            data.extend(word.to_le_bytes());
        }
    }
    for (row, col) in blocks(three..cols, 32, 4) {
        let at = |row: usize| &codes[row * cols + col..][..4];
        let byte = |row| index(&at(row)[..2]) << 4 | index(&at(row)[2..]);
        data.extend(order().map(|r| byte(row + r)));
    }
    data.resize(((cols - 256) * rows * 5 / 24 + 64 * rows).next_multiple_of(32), 0);
    data.extend(scale.to_le_bytes());
    data.extend([0; 28]);
    data
}

/// Writes codes in rows of so many, with a scale, in tiles.
type WriteTiles = fn(&[u8], usize, f32, [usize; 3]) -> Vec<u8>;

/// The demo model, its ternary weights in tiles whose sizes the metadata give.
fn in_tiles(ty: TensorType) -> Parts {
    let mut parts = Parts::of(&Gguf::open(demo::path()).unwrap());
    let (write, tiles): (WriteTiles, _) = match ty {
        TensorType::TL1 => (write_tl1, TL1_TILES),
        _ => (write_tl2, TL2_TILES),
    };
    for t in parts.tensors.iter_mut().filter(|t| t.ty == TensorType::I2_S) {
        let (codes, scale) = read_i2_s(&t.data, t.dims.iter().product::<u64>() as usize);
        (t.ty, t.data) = (ty, write(&codes, t.dims[0] as usize, scale, tiles));
    }
    give_tiles(&mut parts, &tiles.map(|size| size.to_string()).join("/"));
    parts
}

fn give_tiles(parts: &mut Parts, text: &str) {
    parts.kv.retain(|(key, _)| key != TILES_KEY);
    parts.kv.push((TILES_KEY.into(), Value::Str(text.into())));
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
    demo::writes_its_golden_text(&mut session(model))
}

fn session(model: Model) -> Session {
    let pool = Arc::new(Pool::new(2).unwrap());
    Session::new(Arc::new(model), pool, SessionOptions::default()).unwrap()
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
/// TL1 and TL2 are to the bit the I2_S that they hold.
fn tiles_are_packed_and_write_like_i2_s() {
    let i2_s = Gguf::open(demo::path()).map(Arc::new).unwrap();
    let logits = golden_logits(load_with(&i2_s, None, true).unwrap());
    for ty in [TensorType::TL1, TensorType::TL2] {
        let other = in_tiles(ty);
        assert_packed_alike(&i2_s, &other.gguf());
        assert!(golden_logits(load(&other).unwrap()) == logits, "{ty}: logits differ");
    }
}

/// Files whose matrices the packing functions of bitnet.cpp's converter made, bard-11m.tl1.gguf and
/// .tl2.gguf of the shared test data, are to the byte what is written here, and are read.
fn tiles_of_another_engine_write_the_golden_text() -> Tested {
    let i2_s = Gguf::open(demo::path()).map(Arc::new).unwrap();
    for (name, ty) in [("tl1", TensorType::TL1), ("tl2", TensorType::TL2)] {
        let path = Need::Models.data(&format!("models/formats/bard-11m.{name}.gguf"))?;
        let mut theirs = Parts::of(&Gguf::open(path).unwrap());
        let ours = in_tiles(ty);
        for tensor in ours.tensors.iter().filter(|t| t.ty == ty) {
            let their = theirs.tensor(&tensor.name);
            // What stands behind the scale means nothing.
            let [own, their] = [&tensor.data, &their.data].map(|data| &data[..data.len() - 28]);
            assert!(own == their, "{}", tensor.name);
        }
        // The file does not say its tiles, which no preset has.
        let message = load(&theirs).unwrap_err().to_string();
        for word in ["blk.0.attn_q.weight", name, "384x384", TILES_KEY, "BM/BK/bm", "i2_s"] {
            assert!(message.contains(word), "no `{word}` in: {message}");
        }
        let tiles = if ty == TensorType::TL1 { TL1_TILES } else { TL2_TILES };
        give_tiles(&mut theirs, &tiles.map(|size| size.to_string()).join("/"));
        assert_packed_alike(&i2_s, &theirs.gguf());
        demo::writes_its_golden_text(&mut session(load(&theirs).unwrap()));
    }
    Ok(())
}

/// (the format, what is wrong, how it is made, the words the message must hold)
type BadTiles = (TensorType, &'static str, fn(&mut Parts), &'static [&'static str]);

const BAD_TILES: &[BadTiles] = &[
    (TensorType::TL1, "an index of 9", |p| p.tensor(BAD_NAME).data[700] = 0x49, &["code 3"]),
    (TensorType::TL2, "a magnitude of 14", |p| p.tensor(BAD_NAME).data[700] = 0xe0, &["code 3"]),
    (
        TensorType::TL2,
        "no scale",
        |p| {
            let data = &mut p.tensor(BAD_NAME).data;
            let at = data.len() - 32;
            data[at..].fill(0);
        },
        &["scale 0"],
    ),
    (TensorType::TL1, "no sizes", |p| give_tiles(p, "128/64"), &[TILES_KEY, "128/64", "BM/BK/bm"]),
    (TensorType::TL1, "too many", |p| give_tiles(p, "128/64/32/8"), &[TILES_KEY, "BM/BK/bm"]),
    (TensorType::TL1, "no number", |p| give_tiles(p, "a/64/32"), &["a/64/32", "BM/BK/bm"]),
    (TensorType::TL1, "zero", |p| give_tiles(p, "0/64/32"), &["0/64/32"]),
    (TensorType::TL1, "BM", |p| give_tiles(p, "160/64/32"), &["160/64/32", "BM that divides 384"]),
    (
        TensorType::TL1,
        "BK",
        |p| give_tiles(p, "128/256/32"),
        &["128/256/32", "BK that divides 384"],
    ),
    (TensorType::TL1, "bm", |p| give_tiles(p, "128/64/16"), &["128/64/16", "bm of 32 or 64"]),
    (TensorType::TL2, "BK", |p| give_tiles(p, "128/64/32"), &["128/64/32", "a multiple of 24"]),
    (
        TensorType::TL2,
        "the rest",
        |p| give_tiles(p, "128/120/32"),
        &["128/120/32", "leaves a multiple of 32"],
    ),
    (TensorType::TL2, "bm", |p| give_tiles(p, "128/96/64"), &["128/96/64", "bm of 32"]),
    (
        TensorType::TL1,
        "another shape's",
        |p| give_tiles(p, "384x1024:128/64/32 1024x384:128/64/32"),
        &["384x384", "1536x4096", "--override-kv"],
    ),
];
const BAD_NAME: &str = "blk.0.attn_q.weight";

fn bad_tiles_are_refused_with_a_clear_error() {
    for (ty, what, change, words) in BAD_TILES {
        let mut parts = in_tiles(*ty);
        change(&mut parts);
        let Err(error) = load(&parts) else { panic!("{ty}, {what}: accepted") };
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{what}: {message}");
        for word in words.iter().chain(&["model.gguf"]) {
            assert!(message.contains(word), "{ty}, {what}: no `{word}` in: {message}");
        }
        assert_eq!(message.lines().count(), 1, "{what}: {message}");
    }
}

/// Two parts of bitnet.cpp cut some shapes of TL1 in two ways, and a file does not say which.
fn disputed_tiles_are_asked_for() {
    let shape = Shape::new(4096, 4096);
    let mut writer = GgufWriter::new();
    writer.kv("general.architecture", &Value::Str("llama".into()));
    let (name, dims) = ("blk.0.attn_q.weight", [4096, 4096]);
    writer.tensor(name, &dims, TensorType::TL1).unwrap();
    let gguf = writer.outline(Path::new("m.gguf")).unwrap();
    let message = Codes::of(&gguf, gguf.tensor(name).unwrap(), shape).unwrap_err().to_string();
    for word in ["m.gguf", name, "4096x4096:128/64/32", "128/64/64", "setup_env.py", "i2_s"] {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

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

/// Files that other engines wrote of the demo model, in the shared test data, and the type of their
/// matrices; the last is of llama.cpp, which renames the architecture to one that has another activation.
const OF_OTHERS: &[(&str, TensorType, bool)] = &[
    ("bard-11m-pad768.tq1_0.gguf", TensorType::TQ1_0, false),
    ("bard-11m.iq1_bn.gguf", TensorType::IQ1_BN, false),
    ("bard-11m.iq2_bn_r4.gguf", TensorType::IQ2_BN_R4, false),
    ("bard-11m-upstream.q2_0.gguf", TensorType::Q2_0, true),
];

fn files_of_other_engines_write_the_golden_text() -> Tested {
    for &(name, ty, renamed) in OF_OTHERS {
        let path = Need::Models.data(&format!("models/formats/{name}"))?;
        let mut gguf = Gguf::open(path).unwrap();
        assert_eq!(gguf.tensors().iter().filter(|t| t.ty == ty).count(), 6 * 7, "{name}");
        if renamed {
            let activation = "bitnet.hidden_activation=str:relu2".parse().unwrap();
            gguf.apply(&[activation]).unwrap();
        }
        golden_logits(load_with(&Arc::new(gguf), None, true).unwrap());
    }
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
}

/// One bit of one scale makes a matrix one of blocks, and its layer's others of that input; the rest stays
/// as it was.
fn a_scale_that_differs_is_kept() {
    let mut parts = in_tq2_0(doubled());
    parts.tensor("blk.1.attn_v.weight").data[66 + 64] ^= 1;
    let model = load(&parts).unwrap();
    for (layer, weights) in model.weights().layers.iter().enumerate() {
        for (job, projection) in weights.projections().into_iter().enumerate() {
            let blocks = projection.blocks().map(|job| job.width());
            assert_eq!(blocks, (layer == 1 && job == 0).then_some(256), "{layer}, {job}");
        }
    }
    golden_logits(model);
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
        tiles_are_packed_and_write_like_i2_s,
        tiles_of_another_engine_write_the_golden_text,
        bad_tiles_are_refused_with_a_clear_error,
        disputed_tiles_are_asked_for,
        a_file_of_another_engine_writes_the_golden_text,
        files_of_other_engines_write_the_golden_text,
        a_matrix_of_zeros_needs_no_scale,
        bad_tensors_are_refused_with_a_clear_error,
        a_scale_that_differs_is_kept,
        only_i2_s_is_multiplied_without_packing,
    ]
    .run()
}
