//! Headers of published files, each over a small random model: it runs, or is refused by the name of what
//! is missing. docs/models.md lists them.
//!
//! A fixture in `files/` holds the pairs of a file's metadata and its tensors as engines print them when
//! they load it, and says where that was found. Widths are made small, all else is as in the file.

mod docs;
mod fixture;
mod model;
mod vocabulary;

use std::process::ExitCode;

use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::{
    Engine, Error, FinishReason, GenerateOptions, Options, ProfileChoice, Sampling, SequenceOptions,
};
use bitnet_trials::Suite;

use fixture::{Fixture, LAYERS, Runs};

fn main() -> ExitCode {
    let mut suite = Suite::default();
    for fixture in Fixture::all() {
        suite.add(format!("file::{}", fixture.name), move || opens_as_expected(&fixture));
    }
    suite.add("models_are_listed_in_the_docs", docs::list_every_file);
    suite.run()
}

fn opens_as_expected(fixture: &Fixture) {
    fixture.check();
    let options =
        Options { profile: ProfileChoice::Shipped, threads: Some(2), ..Options::default() };
    let gguf = Gguf::from_bytes("small.gguf", model::file(fixture)).unwrap();
    assert_eq!(gguf.metadata().count() as u64, fixture.pairs);
    match (Engine::from_gguf(gguf, options), &fixture.runs, &fixture.refused) {
        (Ok(engine), Some(runs), _) => writes_text(fixture, runs, &engine),
        (Err(Error::Model { item, found, .. }), _, Some(refused)) => {
            assert_eq!((item, found), (refused.item.clone(), refused.found.clone()));
        }
        (Ok(_), ..) => panic!("it runs"),
        (Err(error), ..) => panic!("{error}"),
    }
}

fn writes_text(fixture: &Fixture, runs: &Runs, engine: &Engine) {
    const TOKENS: usize = 8;
    let config = engine.config();
    assert_eq!(config.architecture.name, fixture.architecture());
    let small = fixture.small;
    let widths = [config.layers, config.hidden, config.ffn, config.heads, config.kv_heads];
    let expected = [LAYERS, small.hidden, small.ffn, small.heads, small.kv_heads];
    assert_eq!(widths.map(|width| width as u64), expected);
    assert_eq!((config.head_dim as u64, config.vocab as u64), (small.head_dim, fixture.vocab()));

    let tokenizer = engine.tokenizer().unwrap();
    assert_eq!(tokenizer.eos_ids(), runs.ends);
    let options = GenerateOptions {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        sequence: SequenceOptions { tokens: Some(TOKENS), ignore_eos: true, ..Default::default() },
        ..GenerateOptions::default()
    };
    let written = engine.generate("Once upon a time", &options, |_| ()).unwrap();
    let begins = tokenizer.bos().filter(|_| tokenizer.add_bos());
    assert_eq!(begins, runs.begins);
    assert!(begins.is_none_or(|id| written.prompt[0] == id), "{:?}", written.prompt);
    assert_eq!((written.ids.len(), written.finish_reason), (TOKENS, FinishReason::Length));

    let notes = engine.take_notes();
    let warnings: Vec<&str> =
        notes.iter().filter(|note| note.is_warning).map(|note| note.text.as_str()).collect();
    let as_expected = warnings.len() == runs.warnings.len()
        && warnings.iter().zip(&runs.warnings).all(|(text, word)| text.contains(word));
    assert!(as_expected, "{warnings:#?}, expected {:?}", runs.warnings);
}
