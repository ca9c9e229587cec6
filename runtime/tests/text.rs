//! One text on its way through the model: step by step, and ended by the caller.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bitnet_runtime::cpu::observe::Observer;
use bitnet_runtime::{
    Cancel, Engine, FinishReason, GenerateOptions, Options, PackedWeights, Sampling, Sequence,
    SequenceOptions, SessionOptions, logprobs,
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

/// A generation that is cancelled when it asks for the `after`-th time, counted from 0.
fn cancelled(engine: &Engine, prompt: &str, after: usize) -> bitnet_runtime::Generation {
    let asked = AtomicUsize::new(0);
    let options = GenerateOptions {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        sequence: SequenceOptions {
            tokens: Some(20),
            ignore_eos: true,
            ..SequenceOptions::default()
        },
        session: SessionOptions { batch: 64, ..SessionOptions::default() },
        cancel: Some(Cancel::new(move || asked.fetch_add(1, Ordering::Relaxed) >= after)),
    };
    engine.generate(prompt, &options, |_| ()).unwrap()
}

#[test]
fn a_generation_is_cancelled_within_the_prompt_and_the_text() {
    let engine = engine();
    let prompt = "KING RICHARD:\nMy lord, the duke is dead.\n".repeat(8);
    let whole = cancelled(&engine, &prompt, usize::MAX);
    assert_eq!((whole.ids.len(), whole.finish_reason), (20, FinishReason::Length));
    // It asks before each batch of the prompt, between the layers of those that are not short, and before
    // each token.
    let (batches, rest) = (whole.prompt.len() / 64, whole.prompt.len() % 64);
    assert!(batches >= 1 && rest > 0, "{}", whole.prompt.len());
    let layers = engine.config().layers;
    let asked = |tokens| 1 + if tokens < 32 { 0 } else { layers };
    let all = batches * asked(64) + asked(rest);
    for (after, written) in [(0, 0), (1, 0), (layers, 0), (all - 1, 0), (all, 1), (all + 4, 5)] {
        let part = cancelled(&engine, &prompt, after);
        assert_eq!((part.ids.len(), part.finish_reason), (written, FinishReason::Interrupted));
        assert_eq!(part.ids, whole.ids[..written]);
    }
}

/// Counts the layers that prompts have been through.
#[derive(Debug, Default)]
struct Layers(Mutex<BTreeSet<usize>>);

impl Observer for Layers {
    fn feed_forward(&self, layer: usize, _: usize, _: &[f32], _: &[i8]) {
        self.0.lock().unwrap().insert(layer);
    }

    fn head(&self, _: usize, _: &[f32]) {}
}

/// CH08: what lies between Ctrl+C and its effect is one layer at most, however long the prompt is.
#[test]
fn ch08_an_interrupt_waits_for_no_more_than_a_layer() {
    let engine = engine();
    let prompt = prompt(&engine).repeat(20);
    let expected = {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.prefill(&prompt).unwrap().to_vec()
    };
    let layers = engine.config().layers;
    // Behind the last layer there is nothing left to cancel.
    for at in 0..layers - 1 {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.prefill(&prompt[..7]).unwrap();
        // Ctrl+C comes while a layer is computed.
        let seen = Arc::new(Layers::default());
        session.observe(Some(seen.clone()));
        let asked = Arc::clone(&seen);
        session.cancel_with(Some(Cancel::new(move || asked.0.lock().unwrap().contains(&at))));
        let error = session.prefill(&prompt[7..]).unwrap_err();
        assert_eq!(error.exit_code(), 130);
        assert_eq!(seen.0.lock().unwrap().len(), at + 1);
        // The session holds what it held, and can go on.
        assert_eq!(session.position(), 7);
        session.cancel_with(None);
        assert_eq!(session.prefill(&prompt[7..]).unwrap(), expected);
    }
}

#[test]
fn packing_is_cancelled_between_matrices() {
    let packed = Arc::new(AtomicUsize::new(0));
    let [counted, seen] = [(), ()].map(|()| Arc::clone(&packed));
    let options = Options {
        packed: PackedWeights::Never,
        progress: Some(Arc::new(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        })),
        cancel: Some(Cancel::new(move || seen.load(Ordering::Relaxed) >= 3)),
        ..Options::default()
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    let error = Engine::open(path, options).unwrap_err();
    assert_eq!((error.exit_code(), packed.load(Ordering::Relaxed)), (130, 3));
}

/// Log probabilities are of the logits of the model, whatever the sampler does with them.
#[test]
fn log_probabilities_are_those_of_the_model() {
    let engine = engine();
    let options = |temperature: f32| GenerateOptions {
        sampling: Sampling {
            temperature,
            presence_penalty: 1.0,
            logit_bias: [(300, 2.0)].into(),
            seed: 5,
            ..Sampling::default()
        },
        sequence: SequenceOptions { tokens: Some(12), logprobs: Some(4), ..Default::default() },
        ..GenerateOptions::default()
    };
    for temperature in [0.0, 1.3] {
        let text = engine.generate("ROMEO:", &options(temperature), |_| ()).unwrap();
        assert_eq!(text.logprobs.len(), text.ids.len());
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let mut step = text.prompt.clone();
        for (&id, found) in text.ids.iter().zip(&text.logprobs) {
            let logits = session.prefill(&step).unwrap();
            assert_eq!(found, &logprobs(logits, id, 4));
            assert!(found.id == id && found.top.len() == 4);
            step = vec![id];
        }
    }
}

#[test]
fn a_ban_of_every_token_is_an_error() {
    let engine = engine();
    let tokenizer = Arc::clone(engine.tokenizer().unwrap());
    let logit_bias = (0..4096).map(|id| (id, f32::NEG_INFINITY)).collect();
    let sampling = Sampling { temperature: 0.0, logit_bias, ..Sampling::default() };
    let mut text =
        Sequence::new(tokenizer, &prompt(&engine), sampling, SequenceOptions::default()).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let error = text.step(&mut session).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error.to_string().contains("logit_bias: found -inf for every token that could come next"),
        "{error}"
    );
}
