//! One text on its way through the model: step by step, and ended by the caller.

use std::sync::Arc;

use bitnet_runtime::{
    Engine, FinishReason, Options, Sampling, Sequence, SequenceOptions, SessionOptions,
};

fn engine() -> Engine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    Engine::open(path, Options::default()).unwrap()
}

fn prompt(engine: &Engine) -> Vec<u32> {
    engine.tokenizer().unwrap().prompt("KING RICHARD:\nMy lord, the duke is dead.").unwrap()
}

/// A greedy text of up to 20 tokens.
fn text(engine: &Engine) -> Sequence {
    let tokenizer = Arc::clone(engine.tokenizer().unwrap());
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let limits =
        SequenceOptions { tokens: Some(20), ignore_eos: true, ..SequenceOptions::default() };
    Sequence::new(tokenizer, &prompt(engine), sampling, limits).unwrap()
}

#[test]
fn a_prompt_goes_through_batch_by_batch() {
    let engine = engine();
    let prompt = prompt(&engine).len();
    assert!(prompt > 8);
    let mut expected = None;
    for batch in [512, prompt, prompt - 1, 4, 1] {
        let options = SessionOptions { batch, ..SessionOptions::default() };
        let (mut session, mut text) = (engine.session(options).unwrap(), text(&engine));
        assert_eq!(session.batch(), batch);
        for step in 1..=prompt.div_ceil(batch) {
            assert!(text.ids().is_empty());
            assert!(engine.step(&mut session, &mut text).unwrap());
            assert_eq!(session.position(), prompt.min(step * batch));
        }
        assert_eq!(text.ids().len(), 1, "batch {batch}");
        while engine.step(&mut session, &mut text).unwrap() {}
        let expected = expected.get_or_insert_with(|| text.ids().to_vec());
        assert_eq!(text.ids(), expected, "batch {batch}");
    }
}

#[test]
fn h9_an_interrupted_text_ends_where_it_is() {
    let engine = engine();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut part = text(&engine);
    for _ in 0..5 {
        assert!(engine.step(&mut session, &mut part).unwrap());
    }
    part.interrupt();
    assert!(!engine.step(&mut session, &mut part).unwrap());
    assert_eq!((part.ids().len(), part.finish_reason()), (5, Some(FinishReason::Interrupted)));

    // One that has ended keeps its reason.
    let mut whole = text(&engine);
    session.truncate(0);
    while engine.step(&mut session, &mut whole).unwrap() {}
    whole.interrupt();
    assert_eq!((whole.ids().len(), whole.finish_reason()), (20, Some(FinishReason::Length)));
    assert_eq!(whole.ids()[..5], *part.ids());
}
