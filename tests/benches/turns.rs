//! Time to the first token of a question of 20 tokens: as the second turn of a conversation of 2,000 tokens,
//! which the session holds, and with the same conversation from a cold start. Beside them the question
//! alone, which is what the second turn computes, with less to attend to.
//!
//! The model is the demo with a larger context, or the file that `BITNET_BENCH_MODEL` names:
//!
//! ```text
//! BITNET_BENCH_MODEL=model.gguf cargo bench -p bitnet-tests --bench turns
//! ```

#[path = "../../runtime/tests/editor/mod.rs"]
mod editor;

use std::time::{Duration, Instant};

use bitnet_runtime::file::gguf::{Gguf, Value};
use bitnet_runtime::{Engine, Options, Sampling, SequenceOptions, SessionOptions, Start, Turns};
use criterion::{Criterion, criterion_group, criterion_main};

/// Tokens of the conversation so far, and of the question.
const TALK: usize = 2000;
const QUESTION: usize = 20;
const CONTEXT: usize = 4096;

fn engine() -> Engine {
    let options = Options { start: Start::Packed, ..Options::default() };
    let Some(path) = std::env::var_os("BITNET_BENCH_MODEL") else {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
        let mut parts = editor::Parts::of(&Gguf::open(demo).unwrap());
        parts.set("bitnet-b1.58.context_length", Value::U32(CONTEXT as u32));
        let gguf = Gguf::from_bytes("demo", parts.bytes()).unwrap();
        return Engine::from_gguf(gguf, options).unwrap();
    };
    Engine::open(path, options).unwrap()
}

/// Begins a turn and returns the time to its first token, and the tokens that were held.
fn first_token(turns: &mut Turns<'_>, prompt: &[u32]) -> (Duration, usize) {
    let options =
        SequenceOptions { tokens: Some(1), ignore_eos: true, ..SequenceOptions::default() };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let start = Instant::now();
    let mut sequence = turns.begin(prompt.to_vec(), greedy, options).unwrap();
    while sequence.ids().is_empty() {
        assert!(turns.step(&mut sequence).unwrap());
    }
    (start.elapsed(), turns.cached())
}

fn bench(criterion: &mut Criterion) {
    let engine = engine();
    let vocab = engine.tokenizer().unwrap().vocab_size() as u32;
    let ids: Vec<u32> = (0..(TALK + QUESTION) as u32).map(|i| (i * 7919 + 5) % vocab).collect();
    let (talk, question) = ids.split_at(TALK);
    let options = SessionOptions { context: Some(CONTEXT), ..SessionOptions::default() };
    let mut turns = Turns::new(&engine, options).unwrap();
    let mut group = criterion.benchmark_group("first_token");
    group.sample_size(10);
    // Before each the session is brought to hold what it should, which is not timed.
    for (name, held, prompt) in [
        ("second_turn", talk, &ids[..]),
        ("cold_start", &ids[1..2], &ids[..]),
        ("question_alone", &ids[1..2], question),
    ] {
        let known = held.iter().zip(prompt).take_while(|(held, new)| held == new).count();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let timed = || {
                    first_token(&mut turns, held);
                    let (time, cached) = first_token(&mut turns, prompt);
                    assert_eq!(cached, known, "{name}");
                    time
                };
                std::iter::repeat_with(timed).take(count as usize).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
