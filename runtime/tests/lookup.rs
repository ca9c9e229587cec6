//! Prompt lookup changes when tokens are computed, never which.

use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::Isa;
use bitnet_runtime::Error;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::{
    HeadMode, HeadOptions, LoadOptions, Model, Session, SessionOptions,
};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::engine::generate::{FinishReason, Generation, Limits, generate};
use bitnet_runtime::engine::sampler::{Sampler, SamplerConfig};
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::text::tokenizer::Tokenizer;

const GREEDY: SamplerConfig = SamplerConfig {
    temperature: 0.0,
    top_k: 40,
    top_p: 0.95,
    min_p: 0.05,
    repeat_penalty: 1.0,
    repeat_last_n: 64,
    seed: 0,
};

/// A model to write with; drafts go through the same one with its head scanned.
struct Writer {
    model: Arc<Model>,
    scanned: Arc<Model>,
    tokenizer: Tokenizer,
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
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
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

    fn write(
        &self,
        (prompt, sampling): (&[u32], SamplerConfig),
        limits: Limits,
        (context, threads): (usize, usize),
    ) -> (Generation, String, Session) {
        let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
        let pool = Arc::clone(&self.pools[threads - 1]);
        let model = if limits.draft > 0 { &self.scanned } else { &self.model };
        let mut session = Session::new(Arc::clone(model), pool, options).unwrap();
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut streamed = String::new();
        let mut stream = |piece: &str| {
            streamed += piece;
            Ok(())
        };
        let written = generate(
            &mut session,
            &self.tokenizer,
            &mut sampler,
            prompt,
            limits,
            &mut |_| Ok(()),
            &mut stream,
        );
        (written.unwrap(), streamed, session)
    }

    /// Writes without drafts and with drafts of several lengths, which must not differ in anything
    /// that can be seen; gives the text without, and the tokens that were drafted and accepted.
    fn compare(
        &self,
        prompt: &[u32],
        sampling: SamplerConfig,
        limits: Limits,
        context: usize,
    ) -> (Generation, [usize; 2]) {
        let expected = self.write((prompt, sampling), limits, (context, 1));
        assert_eq!([expected.0.drafted, expected.0.accepted], [0, 0]);
        let mut tokens = [0, 0];
        for (draft, threads) in [(1, 2), (3, 1), (16, 2), (63, 1)] {
            let limits = Limits { draft, ..limits };
            let found = self.write((prompt, sampling), limits, (context, threads));
            let what = format!("{limits:?}, {sampling:?}, prompt {prompt:?}");
            assert_eq!(found.0.ids, expected.0.ids, "{what}");
            assert_eq!((&found.0.text, &found.1), (&expected.0.text, &expected.1), "{what}");
            assert_eq!(found.0.finish_reason, expected.0.finish_reason, "{what}");
            assert_eq!(found.0.steps, expected.0.steps, "{what}");
            // Nothing of what was rejected is left.
            assert_eq!(found.2.position(), expected.2.position(), "{what}");
            assert!(found.0.accepted <= found.0.drafted && found.0.accepted <= found.0.steps);
            tokens[0] += found.0.drafted;
            tokens[1] += found.0.accepted;
        }
        (expected.0, tokens)
    }
}

fn limits(tokens: Option<usize>) -> Limits {
    Limits { tokens, ..Limits::default() }
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
                let sampling = SamplerConfig {
                    temperature,
                    repeat_penalty,
                    seed,
                    repeat_last_n: 12,
                    ..GREEDY
                };
                accepted += writer.compare(&ids, sampling, limits(Some(60)), 1024).1[1];
            }
        }
        let sampling = SamplerConfig { repeat_penalty: 1.2, ..GREEDY };
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
            assert_eq!((text.ids.len(), text.finish_reason), (n, FinishReason::Length));
        }
        for room in [0, 1, 2, 3, 5, 9, 40] {
            let (text, _) = writer.compare(&ids, GREEDY, limits(None), ids.len() + room);
            assert_eq!((text.ids.len(), text.finish_reason), (room + 1, FinishReason::Context));
        }
    }
}

/// All the same token, which repeats at a distance of one; and sampled with a penalty that lets no
/// draft come true.
#[test]
fn one_token_again_and_again() {
    let writer = Writer::new();
    for sampling in [GREEDY, SamplerConfig { repeat_penalty: 100.0, ..GREEDY }] {
        for id in [1, 200, 4095] {
            let limits = Limits { ignore_eos: true, ..limits(Some(100)) };
            let (_, [drafted, _]) = writer.compare(&[id; 64], sampling, limits, 1024);
            assert!(drafted > 0);
        }
    }
}

/// Nothing that was drafted is left in the session where the reader leaves.
#[test]
fn a_reader_who_leaves_finds_no_drafts() {
    let writer = Writer::new();
    let prompt = writer.ids(REPETITIVE[0]);
    for n in 1..20 {
        let positions = [0, 16].map(|draft| {
            let pool = Arc::clone(&writer.pools[0]);
            let model = Arc::clone(&writer.model);
            let mut session = Session::new(model, pool, SessionOptions::default()).unwrap();
            let mut sampler = Sampler::new(GREEDY).unwrap();
            let mut pieces = 0;
            let mut leave = |_: &str| {
                pieces += 1;
                if pieces < n { Ok(()) } else { Err(Error::Runtime("enough".into())) }
            };
            let limits = Limits { draft, ..limits(Some(100)) };
            let (tokenizer, sampler) = (&writer.tokenizer, &mut sampler);
            generate(
                &mut session,
                tokenizer,
                sampler,
                &prompt,
                limits,
                &mut |_| Ok(()),
                &mut leave,
            )
            .unwrap_err();
            session.position()
        });
        assert_eq!(positions[0], positions[1], "after {n} pieces");
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
    for (i, &end) in text.ids.iter().enumerate() {
        bytes[at..at + 4].copy_from_slice(&end.to_le_bytes());
        let path = folder.path().join(format!("{i}.gguf"));
        std::fs::write(&path, &bytes).unwrap();
        let writer = Writer::open(&path);
        assert!(writer.tokenizer.eos_ids().contains(&end));
        let (stopped, _) = writer.compare(&ids, GREEDY, limits(Some(40)), 1024);
        let first = text.ids.iter().position(|&id| id == end).unwrap();
        assert_eq!(stopped.ids, text.ids[..first]);
        assert_eq!(stopped.finish_reason, FinishReason::Stop);
        stops += 1;
        let on = Limits { ignore_eos: true, ..limits(Some(40)) };
        let (text, _) = writer.compare(&ids, GREEDY, on, 1024);
        assert!(text.ids.len() == 40 && !text.ids.contains(&end));
    }
    assert_eq!(stops, 12);
}
