//! Floats become blocks as ggml's reference functions make them, bit by bit. The digests are of what
//! `reference.c` beside this file writes, linked with the sources of llama.cpp 0.1.161 of the crate
//! llama-cpp-sys-2, for the same floats.

use std::path::Path;

use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::formats::TensorType;
use bitnet_runtime::random::Random;
use sha2::{Digest, Sha256};

/// A type, and the digests of random rows and of the demo model's embedding in it.
const DIGESTS: [(TensorType, &str, &str); 5] = [
    (TensorType::Q8_0, "6b9c32e539362f49", "f8b6d7fc7e825c86"),
    (TensorType::Q6_K, "e7f10f918aa55e7a", "0f5a5dfcdbc94096"),
    (TensorType::Q5_0, "16766e2f5ed970e0", "8ccc18263d44efc3"),
    (TensorType::Q4_0, "426435d0654ba6e7", "62379e1daece2f92"),
    (TensorType::TQ2_0, "0064a0fea84eafe9", "012c1db6541ccb65"),
];

/// 1000 rows of 256 numbers of all magnitudes, some with parts of zeros, zero, or nearly so.
fn random_rows() -> Vec<f32> {
    let mut random = Random::new(6);
    let mut rows = Vec::with_capacity(256_000);
    for i in 0..1000 {
        let magnitude = (random.below(24) as i32 - 12) as f32;
        let kind = random.below(8);
        let number = |random: &mut Random| random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let mut row: Vec<f32> = (0..256).map(|_| number(&mut random) * magnitude.exp2()).collect();
        match kind {
            0 => row[16 * (i % 16)..][..16].fill(0.0),
            1 => row[32 * (i % 8)..][..32].fill(0.0),
            _ => {}
        }
        match i % 100 {
            7 => row.fill(0.0),
            9 => row.iter_mut().for_each(|v| *v *= 1e-20),
            _ => {}
        }
        rows.extend(row);
    }
    rows
}

fn embedding() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bard-11m.i2_s.gguf");
    let gguf = Gguf::open(path).unwrap();
    let tensor = gguf.tensor("token_embd.weight").unwrap();
    let mut values = vec![0.0; tensor.elements() as usize];
    (tensor.ty.format().rows().unwrap().dequantise)(gguf.tensor_bytes(tensor), &mut values);
    values
}

#[test]
fn blocks_are_those_of_ggml() {
    let (random, embedding) = (random_rows(), embedding());
    for (ty, of_random, of_embedding) in DIGESTS {
        for (values, expected) in [(&random, of_random), (&embedding, of_embedding)] {
            let mut bytes = Vec::new();
            (ty.format().rows().unwrap().quantise)(values, &mut bytes);
            let digest = Sha256::digest(bytes);
            let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, expected, "{ty}");
        }
    }
}
