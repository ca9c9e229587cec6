//! Fuzz targets: functions that take any bytes for a file or a message, and must neither panic nor
//! hang nor take memory that the bytes do not justify.
//!
//! They run in two ways. On a stable toolchain the program of this package mutates [`seeds`], the
//! same mutants for the same seed number:
//!
//! ```text
//! cargo run --release -p bitnet-fuzz -- --target model --mutants 1000000 --seed 1
//! ```
//!
//! Where cargo-fuzz and a nightly toolchain are installed, libFuzzer looks for inputs that reach new
//! code:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir fuzz/libfuzzer model
//! ```
#![forbid(unsafe_code)]

mod conversation;
#[path = "../../runtime/tests/editor/mod.rs"]
mod editor;
mod mutate;
pub mod seeds;
mod state;

use std::sync::LazyLock;

use bitnet_profiles::{Isa, Profile};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::mapped;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::text::tokenizer::Tokenizer;
use bitnet_tuner::ModelInfo;
use bitnet_tuner::protocol::Task;

pub use conversation::{grammar, talk, template};
pub use mutate::mutant;
pub use state::{packed, saved_kv};

/// A function to be given mutants, and what they are made of.
#[derive(Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// The function: whether the bytes were taken for what they should be.
    pub run: fn(&[u8]) -> bool,
    /// Makes the inputs that mutants come from, all of which are accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Number of mutants of which one is run where no target is named, as each takes long.
    pub cost: u64,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>) -> Self {
        Self { name, run, seeds, cost: 1 }
    }

    const fn costs(self, cost: u64) -> Self {
        Self { cost, ..self }
    }
}

/// All targets.
pub static TARGETS: [Target; 10] = [
    Target::new("model", model, seeds::models),
    Target::new("profile", profile, seeds::profiles),
    Target::new("text", text, seeds::texts),
    Target::new("vocabulary", vocabulary, seeds::vocabularies),
    Target::new("task", task, seeds::tasks),
    Target::new("template", template, seeds::templates).costs(10),
    Target::new("grammar", grammar, seeds::grammars).costs(10),
    Target::new("talk", talk, seeds::talks),
    Target::new("saved_kv", saved_kv, seeds::saved_kvs).costs(10),
    Target::new("packed", packed, seeds::packed).costs(10),
];

/// Takes apart what two bytes of length are in front of: that many bytes, and the rest.
fn part(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    Some(rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len())))
}

/// The inverse of [`part`].
fn joined(first: &[u8], rest: &[u8]) -> Vec<u8> {
    [&(first.len() as u16).to_le_bytes()[..], first, rest].concat()
}

/// A GGUF file: its header, its hyperparameters, its tokenizer, and what the tuner reads of it.
/// Accepted when hyperparameters or tokenizer are.
pub fn model(data: &[u8]) -> bool {
    let Ok(gguf) = Gguf::from_bytes("m.gguf", data.to_vec()) else { return false };
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor_bytes(tensor).len() as u64, tensor.bytes, "{}", tensor.name);
    }
    let config = Config::from_gguf(&gguf);
    if let Ok(config) = &config {
        assert!(config.group() >= 1 && config.jobs().iter().all(|job| !job.parts.is_empty()));
        let _ = (config.shapes_hash(), config.attention_shapes(), mapped::serves(&gguf, config));
    }
    let info = ModelInfo::from_gguf(&gguf);
    assert!(info.is_err() || config.is_ok());
    let tokenizer = Tokenizer::from_gguf(&gguf);
    if let Ok(tokenizer) = &tokenizer {
        there_and_back(tokenizer, "ab <s> \u{e9}");
    }
    config.is_ok() || tokenizer.is_ok()
}

/// The text of a profile. One that is accepted is written as a text that gives the same profile.
pub fn profile(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(profile) = Profile::parse(text) else { return false };
    assert_eq!(Profile::parse(&profile.to_text()).expect("what was written"), profile);
    let _ = profile.check_isa(|isa| isa == Isa::Scalar);
    let _ = (profile.user_file_name(), profile.run.to_string());
    for op in &profile.ops {
        assert_eq!(profile.choice(op.role, &op.parts).map(|own| own.role), Some(op.role));
        assert!(op.kernels().count() > 0);
    }
    true
}

/// A text, over the demo model's vocabulary and one of each kind of tokenizer.
pub fn text(data: &[u8]) -> bool {
    static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
        let tokenizer = |gguf: Gguf| Tokenizer::from_gguf(&gguf).expect("a sound vocabulary");
        let small = [seeds::byte_level(), seeds::sentencepiece()];
        let small = small.map(|file| Gguf::from_bytes("v.gguf", file).expect("a sound file"));
        [seeds::demo()].into_iter().chain(small).map(tokenizer).collect()
    });
    let text = String::from_utf8_lossy(data);
    let [demo, byte_level, sentencepiece] = &TOKENIZERS[..] else {
        unreachable!("there are three")
    };
    for tokenizer in [demo, byte_level] {
        assert_eq!(there_and_back(tokenizer, &text).as_deref(), Some(&text[..]));
    }
    let again = there_and_back(sentencepiece, &text).expect("it has a token for every byte");
    // U+2581 stands for a space, of which one is put before the text.
    let expected = text.replace('\u{2581}', " ");
    assert_eq!(again.strip_prefix(' ').unwrap_or(&again), expected);
    true
}

/// A vocabulary, and a text for it: two bytes for the text's length, the text, a GGUF file.
pub fn vocabulary(data: &[u8]) -> bool {
    let Some((text, file)) = part(data) else { return false };
    let Ok(gguf) = Gguf::from_bytes("v.gguf", file.to_vec()) else { return false };
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else { return false };
    there_and_back(&tokenizer, &String::from_utf8_lossy(text));
    true
}

/// The line by which a worker of the tuner is told what to do.
pub fn task(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(task) = Task::parse(text) else { return false };
    let again = serde_json::to_string(&task).expect("a task has a JSON form");
    Task::parse(&again).expect("what was written");
    true
}

/// Encodes a text with and without the tokens that it spells, and decodes both; gives the text that
/// comes back without them, if the vocabulary has all that it takes.
fn there_and_back(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let mut plain = None;
    for special in [true, false] {
        let Ok(ids) = tokenizer.encode(text, special, special) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?}");
        plain = Some(tokenizer.decode(&ids)).filter(|_| !special);
    }
    plain
}
