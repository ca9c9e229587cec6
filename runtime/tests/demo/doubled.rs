//! The demo model with rows of whole blocks of 256.

use bitnet_runtime::file::gguf::{Gguf, TensorType, Value};
use half::f16;

use crate::demo;
use crate::editor::Parts;

/// Codes in I2_S: blocks of 128 in 32 bytes, weight j in byte j % 32, from bits 7:6 down; a f32 scale
/// and 28 bytes follow.
pub fn read_i2_s(data: &[u8], weights: usize) -> (Vec<u8>, f32) {
    let code = |i: usize| data[i / 128 * 32 + i % 32] >> (6 - 2 * (i % 128 / 32)) & 3;
    let scale = data[weights / 4..].first_chunk().unwrap();
    ((0..weights).map(code).collect(), f32::from_le_bytes(*scale))
}

pub fn write_i2_s(codes: &[u8], scale: f32) -> Vec<u8> {
    let mut data = vec![0; codes.len() / 4];
    for (i, code) in codes.iter().enumerate() {
        data[i / 128 * 32 + i % 32] |= code << (6 - 2 * (i % 128 / 32));
    }
    data.extend(scale.to_le_bytes());
    data.extend([0; 28]);
    data
}

/// The demo model with every width and every number of heads doubled by zeros, so that rows are of
/// whole blocks of 256; all of its numbers are the same but for rounding, as norms divide by the root
/// of twice as many. Scales are rounded to f16.
pub fn doubled() -> Parts {
    let mut parts = Parts::of(&Gguf::open(demo::path()).unwrap());
    for (key, value) in &mut parts.kv {
        match (key.strip_prefix("bitnet-b1.58."), value) {
            (
                Some(
                    "embedding_length"
                    | "feed_forward_length"
                    | "attention.head_count"
                    | "attention.head_count_kv",
                ),
                Value::U32(n),
            ) => *n *= 2,
            (Some("attention.layer_norm_rms_epsilon"), Value::F32(eps)) => *eps /= 2.0,
            _ => {}
        }
    }
    for t in &mut parts.tensors {
        let cols = t.dims[0] as usize;
        t.dims[0] *= 2;
        match t.ty {
            TensorType::I2_S => {
                let rows = t.dims[1] as usize;
                t.dims[1] *= 2;
                let (codes, scale) = read_i2_s(&t.data, rows * cols);
                let mut wide = vec![1; 4 * rows * cols];
                for (row, codes) in codes.chunks_exact(cols).enumerate() {
                    wide[row * 2 * cols..][..cols].copy_from_slice(codes);
                }
                t.data = write_i2_s(&wide, f16::from_f32(scale).to_f32());
            }
            TensorType::F32 => {
                let half = |w: &[u8; 4]| f32::from_le_bytes(*w) * 0.5f32.sqrt();
                let mut norm: Vec<f32> = t.data.as_chunks().0.iter().map(half).collect();
                norm.resize(2 * cols, 1.0);
                t.data = norm.into_iter().flat_map(f32::to_le_bytes).collect();
            }
            _ => {
                let rows = t.data.chunks_exact(2 * cols);
                t.data = rows.flat_map(|row| [row, &vec![0; row.len()]].concat()).collect();
            }
        }
    }
    parts
}
