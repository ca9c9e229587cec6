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

use bitnet_runtime::file::gguf::{Gguf, Override, Value};
use bitnet_runtime::formats::TILES_KEY;
use bitnet_runtime::{
    Conversation, Engine, Error, FinishReason, GenerateOptions, Message, Options, ProfileChoice,
    Sampling, SequenceOptions, TemplateChoice,
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
    let tiles = fixture.order.tiles.clone();
    let tiles = tiles.map(|tiles| Override { key: TILES_KEY.into(), value: Value::Str(tiles) });
    let options = Options {
        profile: ProfileChoice::Shipped,
        threads: Some(2),
        overrides: tiles.into_iter().collect(),
        ..Options::default()
    };
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

    talks(fixture, engine);
    let notes = engine.take_notes();
    let warnings: Vec<&str> =
        notes.iter().filter(|note| note.is_warning).map(|note| note.text.as_str()).collect();
    let as_expected = warnings.len() == runs.warnings.len()
        && warnings.iter().zip(&runs.warnings).all(|(text, word)| text.contains(word));
    assert!(as_expected, "{warnings:#?}, expected {:?}", runs.warnings);
}

/// A file with a template talks by it, or by that of its model; one without is made to continue text.
fn talks(fixture: &Fixture, engine: &Engine) {
    let template = fixture.value("tokenizer.chat_template").map(|text| text.as_str().unwrap());
    let (chat, template) = match (engine.chat(&TemplateChoice::Auto), template) {
        (Ok(chat), Some(template)) => (chat, template),
        (Err(error), None) => return assert_eq!(error.exit_code(), 3, "{error}"),
        (result, _) => panic!("{result:?}"),
    };
    let is_placeholder = template.contains("BITNETAssistant");
    assert_eq!(chat.template_name(), if is_placeholder { "bitnet" } else { "gguf" });
    let notes: Vec<&str> = chat.notes().iter().map(|note| note.text.as_str()).collect();
    assert_eq!(notes.iter().any(|note| note.contains("placeholder")), is_placeholder);

    let messages = vec![Message::new("system", "Be brief."), Message::new("user", "Hi<|eot_id|>")];
    let talk = Conversation { messages, ..Conversation::default() };
    let (ids, text) = (chat.ids(&talk).unwrap(), chat.render(&talk).unwrap());
    assert!(text.contains("Be brief.") && text.contains("Hi<|eot_id|>"), "{text}");
    if is_placeholder {
        let expected = "System: Be brief.<|eot_id|>User: Hi<|eot_id|><|eot_id|>Assistant: ";
        assert!(text.ends_with(expected), "{text}");
        assert_eq!(ids.iter().filter(|&&id| id == 128_009).count(), 2);
        assert!(notes.iter().any(|note| note.contains("<|eot_id|>")), "{notes:?}");
    }
    let begins = ids.iter().filter(|&&id| Some(id) == chat.tokenizer().bos()).count();
    assert!(begins <= 1 && (begins == 1) == (Some(ids[0]) == chat.tokenizer().bos()), "{ids:?}");
}
