//! A small random model with the header of a published file.

use bitnet_runtime::engine::sampler::Rng;
use bitnet_runtime::file::gguf::{Array, GgufWriter, TensorInfo, TensorType, Value};
use bitnet_runtime::formats::Reader;

use super::fixture::{Fixture, LAYERS, Small};
use super::vocabulary::Vocabulary;

/// Makes the bytes of the file.
pub fn file(fixture: &Fixture) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let vocabulary = Vocabulary::new(fixture);
    for (key, ty, value) in &fixture.keys {
        let small = small_value(fixture, key).map(Value::U32).or_else(|| array(&vocabulary, key));
        writer.kv(key, &small.unwrap_or_else(|| of_type(ty, value)));
    }
    for tensor in fixture.tensors() {
        let added = writer.tensor(&tensor.name, &tensor.dims, tensor.ty);
        added.unwrap_or_else(|expected| panic!("{}: expected {expected}", tensor.name));
    }
    let mut file = writer.header();
    let mut rng = Rng::new(7);
    for tensor in writer.tensors() {
        let start = file.len();
        fill(tensor, fixture.order.scales, &mut rng, &mut file);
        assert_eq!((file.len() - start) as u64, tensor.bytes, "{}", tensor.name);
        file.resize(file.len() + GgufWriter::padding(tensor.bytes), 0);
    }
    file
}

/// The value of a key that the small model has a smaller one for.
fn small_value(fixture: &Fixture, key: &str) -> Option<u32> {
    let Small { hidden, ffn, heads, kv_heads, head_dim } = fixture.small;
    let own = key.strip_prefix(fixture.architecture())?.strip_prefix('.')?;
    let value = match own {
        "block_count" => LAYERS,
        "embedding_length" => hidden,
        "feed_forward_length" => ffn,
        "attention.head_count" => heads,
        "attention.head_count_kv" => kv_heads,
        "rope.dimension_count" | "attention.key_length" | "attention.value_length" => head_dim,
        _ => return None,
    };
    u32::try_from(value).ok()
}

/// The arrays of the tokenizer.
fn array(vocabulary: &Vocabulary, key: &str) -> Option<Value> {
    Some(Value::Array(match key.strip_prefix("tokenizer.ggml.")? {
        "tokens" => Array::Str(vocabulary.tokens.iter().collect()),
        "token_type" => Array::I32(vocabulary.types.clone()),
        "scores" => Array::F32(vocabulary.scores.clone()),
        "merges" => Array::Str(vocabulary.merges.iter().collect()),
        _ => return None,
    }))
}

/// A value of the fixture in its type of GGUF.
fn of_type(ty: &str, value: &toml::Value) -> Value {
    let integer = || value.as_integer().unwrap();
    match ty {
        "str" => Value::Str(value.as_str().unwrap().into()),
        "bool" => Value::Bool(value.as_bool().unwrap()),
        "u32" => Value::U32(integer().try_into().unwrap()),
        "f32" => Value::F32(value.as_float().unwrap() as f32),
        // Arrays so far are those of the tokenizer.
        _ => panic!("{ty}: no such type of a single value"),
    }
}

/// Appends the data of a tensor: ones for a norm, codes for a ternary matrix, or the weights of one that is
/// stored as floats, small numbers else, and zeros in formats that are not read, or that no architecture with such files is run in.
fn fill(tensor: &TensorInfo, scales: u64, rng: &mut Rng, out: &mut Vec<u8>) {
    let bytes = tensor.bytes as usize;
    match &tensor.ty.format().reader {
        Reader::Codes(_) if tensor.ty == TensorType::TL2 => tiles(tensor, rng, out),
        Reader::None { .. } => out.resize(out.len() + bytes, 0),
        // Of a file that is refused for another tensor.
        Reader::Codes(_) if tensor.ty == TensorType::IQ2_BN => out.resize(out.len() + bytes, 0),
        Reader::Codes(_) | Reader::Both(..) => ternary(tensor, scales, rng, out),
        Reader::Rows(rows) => {
            let mut row = vec![1.0; tensor.cols() as usize];
            let is_matrix = tensor.name.starts_with("blk.");
            for number in 0..tensor.rows() {
                if tensor.dims.len() > 1 && is_matrix {
                    let part = (number * scales / tensor.rows()) as i32;
                    let scale = SCALE / 2f32.powi(part);
                    row.fill_with(|| scale * ((rng.next_u64() >> 40) as f32 % 3.0 - 1.0));
                } else if tensor.dims.len() > 1 {
                    row.fill_with(|| (rng.next_u64() >> 40) as f32 / (1u64 << 24) as f32 - 0.5);
                }
                (rows.quantise)(&row, out);
            }
        }
    }
}

/// The scale of ternary matrices, the largest of several.
const SCALE: f32 = 1.0 / 16.0;

/// Appends random weights in TL2: indices below 9 are magnitudes of three weights and pairs alike, and
/// any bits are signs.
fn tiles(tensor: &TensorInfo, rng: &mut Rng, out: &mut Vec<u8>) {
    let data = tensor.bytes as usize - 32;
    out.extend((0..data).map(|_| {
        let r = rng.next_u64();
        let index = |bits: u64| (bits & 0xff) as u8 % 9;
        (index(r) << 4) | index(r >> 8)
    }));
    out.extend(SCALE.to_le_bytes());
    out.extend([0; 28]);
}

/// Appends random codes of two bits, 0 to 2, with one scale or several.
fn ternary(tensor: &TensorInfo, scales: u64, rng: &mut Rng, out: &mut Vec<u8>) {
    let start = out.len();
    let code = |r: u64, place: u32| (r >> (8 * place) & 0xff) as u8 % 3;
    out.extend((0..tensor.bytes).map(|_| {
        let r = rng.next_u64();
        (0..4).fold(0, |byte, place| byte << 2 | code(r, place))
    }));
    let data = &mut out[start..];
    match tensor.ty {
        TensorType::I2_S => {
            let tail = tensor.elements() as usize / 4;
            data[tail..].fill(0);
            data[tail..][..4].copy_from_slice(&SCALE.to_le_bytes());
        }
        TensorType::TQ1_0 | TensorType::TQ2_0 | TensorType::Q2_0 | TensorType::Q2_0_G128 => {
            let in_front = matches!(tensor.ty, TensorType::Q2_0 | TensorType::Q2_0_G128);
            let (_, bytes) = tensor.ty.format().size.block().unwrap();
            let bytes = bytes as usize;
            let blocks = data.len() / bytes;
            for (i, block) in data.chunks_exact_mut(bytes).enumerate() {
                let part = (i as u64 * scales / blocks as u64) as i32;
                let scale = half::f16::from_f32(SCALE / 2f32.powi(part));
                let at = if in_front { 0 } else { bytes - 2 };
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        ty => panic!("{ty}: its scales are written nowhere"),
    }
}
