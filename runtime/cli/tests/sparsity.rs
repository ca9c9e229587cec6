//! How sparse the trained demo model is, and that a dummy can be made as sparse.

use std::path::Path;
use std::sync::Arc;

use bitnet_cli::dummy::statistics::{self, Measurement, Sparsity, TRAINED_HEAD_ROWS};
use bitnet_cli::dummy::{self, DummyConfig, DummyShape, DummySparsity};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, TensorType};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    greedy_48: Vec<u32>,
}

fn measure(model: &Path, texts: &[Vec<u32>]) -> Measurement {
    let (pool, selection) = (Arc::new(Pool::new(2).unwrap()), Selection::default());
    let model = Arc::new(Model::load(model, &LoadOptions::new(&pool, &selection)).unwrap());
    let mut session = Session::new(model, pool, SessionOptions::default()).unwrap();
    statistics::measure(&mut session, texts).unwrap()
}

/// Every number that is written down of the demo model.
#[test]
fn the_reference_is_what_the_demo_model_does() {
    let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models"));
    let text = std::fs::read_to_string(models.join("bard-11m.golden.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let text = |case: Case| case.ids.into_iter().chain(case.greedy_48).collect();
    let texts: Vec<Vec<u32>> = golden.cases.into_iter().map(text).collect();
    let found = measure(&models.join("bard-11m.i2_s.gguf"), &texts);
    let mut pairs = vec![(found.all, Sparsity::TRAINED)];
    assert_eq!(found.layers.len(), Sparsity::TRAINED_LAYERS.len());
    pairs.extend(found.layers.iter().copied().zip(Sparsity::TRAINED_LAYERS));
    for (found, expected) in pairs {
        for (found, expected) in found.shares().into_iter().zip(expected.shares()) {
            assert!((found - expected).abs() <= 0.00006, "{found}, not {expected}");
        }
    }
    for (found, expected) in found.head_rows.into_iter().zip(TRAINED_HEAD_ROWS) {
        assert!((found - expected).abs() <= 0.00006, "{found}, not {expected}");
    }
}

/// A small shape, whose widths are far from those that the constants were found with; and
/// every type that an embedding is made in.
#[test]
fn a_dummy_is_as_sparse_as_the_demo_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    // Each with the most that rounding moves its rows by.
    let types = [
        (TensorType::F16, 0.0),
        (TensorType::F32, 0.0005),
        (TensorType::BF16, 0.003),
        (TensorType::Q8_0, 0.006),
        (TensorType::Q6_K, 0.025),
        (TensorType::Q5_0, 0.055),
        (TensorType::Q5_1, 0.055),
        (TensorType::Q5_K, 0.055),
        (TensorType::Q4_0, 0.11),
        (TensorType::Q4_1, 0.11),
        (TensorType::Q4_K, 0.11),
        (TensorType::Q3_K, 0.3),
        (TensorType::TQ2_0, 1.5),
        (TensorType::I2_S, 0.9),
    ];
    let mut embeddings = Vec::new();
    for (embedding, _) in types {
        let config = DummyConfig {
            shape: DummyShape {
                name: "small",
                hidden: 1024,
                ffn: 3072,
                layers: 6,
                heads: 16,
                kv_heads: 4,
                vocab: 16_384,
                ..*DummyShape::find("2b4t").unwrap()
            },
            embedding,
            matrices: TensorType::I2_S,
            vocab: None,
            seed: 5,
            sparsity: DummySparsity::Trained,
            force: true,
        };
        dummy::write(&config, &path, &mut |_, _| ()).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let tensor = gguf.tensor("token_embd.weight").unwrap();
        let bytes = gguf.tensor_bytes(tensor);
        let mut rows = vec![0.0; 256 * 1024];
        for (id, row) in rows.chunks_mut(1024).enumerate() {
            let width = bytes.len() / 16_384;
            let (own, tail) = (&bytes[64 * id * width..][..width], &bytes[16_384 * width..]);
            (embedding.format().rows().unwrap().dequantise)(own, row);
            if let Some(scale) = tail.first_chunk() {
                row.iter_mut().for_each(|weight| *weight *= f32::from_le_bytes(*scale));
            }
        }
        embeddings.push(rows);

        if embedding != TensorType::F16 {
            continue;
        }
        let found = measure(&path, &[statistics::random_text(16_384, 64)]);
        for (found, trained) in found.all.shares().into_iter().zip(Sparsity::TRAINED.shares()) {
            assert!((found - trained).abs() < 0.03, "{found}, trained {trained}");
        }
        for (found, trained) in found.head_rows.into_iter().zip(TRAINED_HEAD_ROWS) {
            assert!((0.4..2.5).contains(&(found / trained)), "{found}, trained {trained}");
        }
    }
    // The same numbers, rounded to fewer bits.
    let deviation = |other: &[f32]| {
        let pairs = embeddings[0].iter().zip(other);
        let (lost, all) = pairs
            .fold((0.0f32, 0.0f32), |(lost, all), (a, b)| (lost + (a - b) * (a - b), all + a * a));
        (lost / all).sqrt()
    };
    for (rows, (ty, most)) in embeddings.iter().zip(types).skip(1) {
        let deviation = deviation(rows);
        assert!((most / 3.0..=most).contains(&deviation), "{ty}: {deviation}, at most {most}");
    }
}
