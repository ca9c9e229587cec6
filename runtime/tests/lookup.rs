//! Prompt lookup changes when tokens are computed, never which.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::Isa;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::{
    HeadMode, HeadOptions, LoadOptions, Model, Session, SessionOptions,
};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::engine::sampler::Sampling;
use bitnet_runtime::engine::sequence::{FinishReason, Sequence, SequenceOptions};
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::text::tokenizer::Tokenizer;

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_k: 40,
    top_p: 0.95,
    min_p: 0.05,
    repeat_penalty: 1.0,
    repeat_last_n: 64,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    logit_bias: BTreeMap::new(),
    seed: 0,
};

/// A model to write with; drafts go through the same one with its head scanned.
struct Writer {
    model: Arc<Model>,
    scanned: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    pools: [Arc<Pool>; 2],
}

impl Writer {
    /// The demo model.
    fn new() -> Self {
        Self::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf")))
    }

    fn open(path: &Path) -> Self {
        let pools = [1, 2].map(|threads| Arc::new(Pool::new(threads).unwrap()));
        let selection = Selection::default();
        let gguf = Gguf::open(path).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
        let load = LoadOptions::new(&pools[1], &selection);
        let model = Arc::new(Model::from_gguf(gguf, &load).unwrap());
        let scanned = Model::load(path, &LoadOptions { copy_head: false, ..load }).unwrap();
        let head = HeadOptions {
            mode: HeadMode::Exact,
            count: 1,
            ceiling: Isa::best(),
            pages: Pages::Small,
            lock: false,
        };
        let scanned = Arc::new(scanned.choose_head(&pools[1], &head).unwrap());
        Self { model, scanned, tokenizer, pools }
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, true, true).unwrap()
    }

    fn session(&self, draft: usize, context: usize, threads: usize) -> Session {
        let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
        let pool = Arc::clone(&self.pools[threads - 1]);
        let model = if draft > 0 { &self.scanned } else { &self.model };
        Session::new(Arc::clone(model), pool, options).unwrap()
    }

    fn sequence(&self, prompt: &[u32], sampling: &Sampling, limits: &SequenceOptions) -> Sequence {
        let tokenizer = Arc::clone(&self.tokenizer);
        Sequence::new(tokenizer, prompt, sampling.clone(), limits.clone()).unwrap()
    }

    /// The sequence at its end, and its text. Whatever was drafted, the session holds what was written
    /// after every step.
    fn write(
        &self,
        (prompt, sampling): (&[u32], &Sampling),
        limits: &SequenceOptions,
        (context, threads): (usize, usize),
    ) -> (Sequence, String, Session) {
        let mut session = self.session(limits.draft, context, threads);
        let mut sequence = self.sequence(prompt, sampling, limits);
        let mut text = String::new();
        while sequence.step(&mut session).unwrap() {
            text += &sequence.take_text();
            let through = prompt.len() + sequence.stats().steps;
            assert_eq!(session.position(), through);
        }
        text += &sequence.take_text();
        (sequence, text, session)
    }

    /// Writes without drafts and with drafts of several lengths, which must not differ in anything
    /// that can be seen; gives the text without, and the tokens that were drafted and accepted.
    fn compare(
        &self,
        prompt: &[u32],
        sampling: Sampling,
        limits: SequenceOptions,
        context: usize,
    ) -> (Sequence, [usize; 2]) {
        let expected = self.write((prompt, &sampling), &limits, (context, 1));
        let stats = |sequence: &Sequence| {
            let stats = sequence.stats();
            (stats.steps, [stats.drafted, stats.accepted])
        };
        let (steps, drafts) = stats(&expected.0);
        assert_eq!(drafts, [0, 0]);
        let mut tokens = [0, 0];
        for (draft, threads) in [(1, 2), (3, 1), (16, 2), (63, 1)] {
            let limits = SequenceOptions { draft, ..limits.clone() };
            let found = self.write((prompt, &sampling), &limits, (context, threads));
            let what = format!("{limits:?}, {sampling:?}, prompt {prompt:?}");
            assert_eq!(found.0.ids(), expected.0.ids(), "{what}");
            assert_eq!(found.1, expected.1, "{what}");
            assert_eq!(found.0.finish_reason(), expected.0.finish_reason(), "{what}");
            assert_eq!(found.0.stop_string(), expected.0.stop_string(), "{what}");
            assert_eq!(found.0.logprobs(), expected.0.logprobs(), "{what}");
            let (found_steps, [drafted, accepted]) = stats(&found.0);
            assert_eq!(found_steps, steps, "{what}");
            // Nothing of what was rejected is left.
            assert_eq!(found.2.position(), expected.2.position(), "{what}");
            assert!(accepted <= drafted && accepted <= steps);
            tokens[0] += drafted;
            tokens[1] += accepted;
        }
        (expected.0, tokens)
    }
}

fn limits(tokens: Option<usize>) -> SequenceOptions {
    SequenceOptions { tokens, ..SequenceOptions::default() }
}

/// Texts that repeat: a list, a refrain, an edited copy, one token.
const REPETITIVE: [&str; 3] = [
    "ROMEO: I will. JULIET: I will. ROMEO: I will. JULIET: I will. ROMEO: I will. JULIET:",
    "the king, the queen, the king, the queen, the king, the queen, the king,",
    "KING RICHARD:\nMy lord, the duke is dead.\n\nKING HENRY:\nMy lord, the duke is dead.\n\nKING",
];

#[test]
fn greedy_texts_are_the_same() {
    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        ids: Vec<u32>,
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.golden.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let writer = Writer::new();
    for case in &golden.cases {
        writer.compare(&case.ids, GREEDY, limits(Some(120)), 1024);
    }
    for text in REPETITIVE {
        let ids = writer.ids(text);
        let (_, [drafted, _]) = writer.compare(&ids, GREEDY, limits(Some(150)), 1024);
        assert!(drafted > 0, "nothing was drafted for {text:?}");
    }
}

/// One draw a token, in order, of the logits that it would have had; and the penalty sees the tokens
/// in their order.
#[test]
fn sampled_texts_are_the_same() {
    let writer = Writer::new();
    let mut accepted = 0;
    for text in REPETITIVE {
        let ids = writer.ids(text);
        for seed in 0..3 {
            for (temperature, repeat_penalty) in [(0.8, 1.0), (0.4, 1.0), (1.5, 1.0), (0.7, 1.3)] {
                let sampling =
                    Sampling { temperature, repeat_penalty, seed, repeat_last_n: 12, ..GREEDY };
                accepted += writer.compare(&ids, sampling, limits(Some(60)), 1024).1[1];
            }
        }
        let sampling = Sampling { repeat_penalty: 1.2, ..GREEDY };
        accepted += writer.compare(&ids, sampling, limits(Some(60)), 1024).1[1];
    }
    assert!(accepted > 0);
}

#[test]
fn texts_end_where_they_would() {
    let writer = Writer::new();
    for text in REPETITIVE {
        let ids = writer.ids(text);
        for n in 0..12 {
            let (text, _) = writer.compare(&ids, GREEDY, limits(Some(n)), 1024);
            assert_eq!((text.ids().len(), text.finish_reason()), (n, Some(FinishReason::Length)));
        }
        for room in [0, 1, 2, 3, 5, 9, 40] {
            let (text, _) = writer.compare(&ids, GREEDY, limits(None), ids.len() + room);
            assert_eq!(
                (text.ids().len(), text.finish_reason()),
                (room + 1, Some(FinishReason::Context))
            );
        }
    }
}

/// All the same token, which repeats at a distance of one; and sampled with a penalty that lets no
/// draft come true.
#[test]
fn one_token_again_and_again() {
    let writer = Writer::new();
    for sampling in [GREEDY, Sampling { repeat_penalty: 100.0, ..GREEDY }] {
        for id in [1, 200, 4095] {
            let limits = SequenceOptions { ignore_eos: true, ..limits(Some(100)) };
            let (_, [drafted, _]) = writer.compare(&[id; 64], sampling.clone(), limits, 1024);
            assert!(drafted > 0);
        }
    }
}

/// Many texts in one session, each with its own prompt, sampling, drafts and length, prompts in pieces:
/// each is the text that it is alone.
#[test]
fn texts_together_are_those_alone() {
    let writer = Writer::new();
    let cases: Vec<(Vec<u32>, Sampling, SequenceOptions)> = (0..7)
        .map(|i| {
            let text = REPETITIVE[i % 3];
            let temperature = [0.0, 0.8, 1.5][i % 3];
            let repeat_penalty = if i == 4 { 1.2 } else { 1.0 };
            let presence_penalty = if i == 2 { 0.7 } else { 0.0 };
            let frequency_penalty = if i == 3 { 0.3 } else { 0.0 };
            let logit_bias =
                if i == 1 { [(5, f32::NEG_INFINITY), (260, 3.0)].into() } else { [].into() };
            // One needs all logits.
            let top_k = if i == 5 { 0 } else { 40 };
            let sampling = Sampling {
                seed: i as u64,
                temperature,
                repeat_penalty,
                presence_penalty,
                frequency_penalty,
                logit_bias,
                top_k,
                ..GREEDY
            };
            let controls = SequenceOptions {
                draft: [0, 5, 16][i / 3],
                stop: if i % 2 == 0 { vec!["ueen".into(), "\n".into()] } else { Vec::new() },
                logprobs: (i > 3).then_some(i),
                ..limits(Some(20 + 7 * i))
            };
            (writer.ids(&text[i..]), sampling, controls)
        })
        .collect();
    let alone: Vec<(Sequence, String)> = (cases.iter())
        .map(|(prompt, sampling, limits)| {
            let (sequence, text, _) = writer.write((prompt, sampling), limits, (512, 1));
            (sequence, text)
        })
        .collect();
    let stopped = alone.iter().filter(|(text, _)| text.stop_string().is_some()).count();
    assert!((1..7).contains(&stopped), "{stopped}");
    for (threads, piece) in [(1, 3), (2, 1000)] {
        let options =
            SessionOptions { context: Some(512), sequences: cases.len(), ..Default::default() };
        let pool = Arc::clone(&writer.pools[threads - 1]);
        let mut session = Session::new(Arc::clone(&writer.scanned), pool, options).unwrap();
        let mut sequences: Vec<Sequence> =
            (cases.iter()).map(|(prompt, s, l)| writer.sequence(prompt, s, l)).collect();
        loop {
            let mut batch = Vec::new();
            let mut rows = vec![None; sequences.len()];
            let mut row = 0;
            for (slot, sequence) in sequences.iter_mut().enumerate() {
                let room = session.context() - session.position_of(slot);
                if let Some(wants) = sequence.wants(piece, room).unwrap() {
                    rows[slot] = Some(row);
                    row += wants.rows;
                    batch.extend(wants.tokens(slot));
                }
            }
            if batch.is_empty() {
                break;
            }
            session.forward(&batch).unwrap();
            for (slot, (sequence, first)) in sequences.iter_mut().zip(rows).enumerate() {
                let Some(first) = first else { continue };
                let surplus = sequence.accept(|row| session.logits(first + row)).unwrap();
                session.truncate_of(slot, session.position_of(slot) - surplus);
            }
        }
        for (sequence, (alone, text)) in sequences.iter_mut().zip(&alone) {
            assert_eq!(sequence.ids(), alone.ids());
            assert_eq!(sequence.finish_reason(), alone.finish_reason());
            assert_eq!(sequence.stop_string(), alone.stop_string());
            assert_eq!(sequence.logprobs(), alone.logprobs());
            assert_eq!(&sequence.take_text(), text);
        }
    }
}

/// Every token in turn is the one that ends a text: wherever in a draft it comes, the text ends
/// there, unless it is to go on.
#[test]
fn an_end_within_a_draft_ends_the_text() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    let mut bytes = std::fs::read(path).unwrap();
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    let folder = tempfile::tempdir().unwrap();
    let written = Writer::new();
    let ids = written.ids(REPETITIVE[1]);
    let (text, _) = written.compare(&ids, GREEDY, limits(Some(12)), 1024);
    let mut stops = 0;
    for (i, &end) in text.ids().iter().enumerate() {
        bytes[at..at + 4].copy_from_slice(&end.to_le_bytes());
        let path = folder.path().join(format!("{i}.gguf"));
        std::fs::write(&path, &bytes).unwrap();
        let writer = Writer::open(&path);
        assert!(writer.tokenizer.eos_ids().contains(&end));
        let (stopped, _) = writer.compare(&ids, GREEDY, limits(Some(40)), 1024);
        let first = text.ids().iter().position(|&id| id == end).unwrap();
        assert_eq!(stopped.ids(), &text.ids()[..first]);
        assert_eq!(stopped.finish_reason(), Some(FinishReason::Stop));
        stops += 1;
        let on = SequenceOptions { ignore_eos: true, ..limits(Some(40)) };
        let (text, _) = writer.compare(&ids, GREEDY, on, 1024);
        assert!(text.ids().len() == 40 && !text.ids().contains(&end));
    }
    assert_eq!(stops, 12);
}

/// Every part of a text in turn is a stop string: the text ends before it, wherever tokens end.
#[test]
fn a_stop_string_ends_the_text_before_it() {
    let writer = Writer::new();
    let ids = writer.ids(REPETITIVE[2]);
    let (_, whole, _) = writer.write((&ids, &GREEDY), &limits(Some(24)), (1024, 1));
    assert!(whole.is_ascii() && whole.len() > 40, "{whole:?}");
    for at in (0..whole.len() - 3).step_by(5) {
        let stop = &whole[at..at + 3];
        let options =
            SequenceOptions { stop: vec!["never".into(), stop.into()], ..limits(Some(24)) };
        let (text, _) = writer.compare(&ids, GREEDY, options.clone(), 1024);
        assert_eq!(text.finish_reason(), Some(FinishReason::StopString));
        assert_eq!(text.stop_string(), Some(stop));
        let (_, found, _) = writer.write((&ids, &GREEDY), &options, (1024, 1));
        assert_eq!(found, whole[..whole.find(stop).unwrap()]);
    }
    // What may be the beginning of a stop string, and is none, is part of the text.
    let end = format!("{}never", &whole[whole.len() - 2..]);
    let options = SequenceOptions { stop: vec![end], ..limits(Some(24)) };
    let (text, found, _) = writer.write((&ids, &GREEDY), &options, (1024, 1));
    assert_eq!((text.finish_reason(), found), (Some(FinishReason::Length), whole));
}
