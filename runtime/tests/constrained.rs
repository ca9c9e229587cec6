//! Texts that a schema or a grammar holds to a form.

use std::sync::Arc;

use bitnet_runtime::{
    Engine, FinishReason, GenerateOptions, Generation, Grammar, HeadMode, Needs, Options, Sampling,
    Sequence, SequenceOptions, SessionOptions, Start,
};
use serde_json::Value;

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "speaker": {"enum": ["ROMEO", "JULIET"]},
        "acts": {"type": "array", "items": {"type": "integer", "maximum": 5}, "maxItems": 3},
        "line": {"type": "string", "maxLength": 20}
    },
    "required": ["speaker", "acts", "line"],
    "additionalProperties": false
}"#;
const GBNF: &str = "root ::= (\"KING \" | \"DUKE \")+ end\nend ::= \"(\" end \")\" | [a-z]{3}";

fn engine(lm_head: HeadMode, needs: Needs) -> Engine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    let options = Options { lm_head, needs, start: Start::Packed, ..Options::default() };
    Engine::open(path, options).unwrap()
}

fn full() -> Engine {
    engine(HeadMode::Full, Needs::All)
}

fn options(grammar: &Grammar, seed: u64, draft: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        sequence: SequenceOptions {
            tokens: Some(120),
            draft,
            grammar: Some(grammar.clone()),
            ..SequenceOptions::default()
        },
        ..GenerateOptions::default()
    }
}

fn write(engine: &Engine, options: &GenerateOptions) -> Generation {
    engine.generate("ROMEO:", options, |_| ()).unwrap()
}

#[test]
fn every_text_is_what_the_schema_describes() {
    let engine = full();
    let grammar = engine.grammars().unwrap().json_schema(SCHEMA).unwrap();
    for seed in 0..20 {
        let text = write(&engine, &options(&grammar, seed, 0));
        assert_eq!(text.finish_reason, FinishReason::Stop, "{}", text.text);
        let value: Value = serde_json::from_str(&text.text).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 3);
        assert!(["ROMEO", "JULIET"].contains(&value["speaker"].as_str().unwrap()));
        let acts = value["acts"].as_array().unwrap();
        assert!(acts.len() <= 3 && acts.iter().all(|act| act.as_i64().unwrap() <= 5), "{value}");
        assert!(value["line"].as_str().unwrap().chars().count() <= 20);
    }
    let grammar = engine.grammars().unwrap().grammar(GBNF).unwrap();
    for seed in 0..20 {
        let text = write(&engine, &options(&grammar, seed, 0));
        let end = text.text.trim_start_matches("KING ").trim_start_matches("DUKE ");
        assert!(text.text.starts_with("KING ") || text.text.starts_with("DUKE "), "{}", text.text);
        if text.finish_reason == FinishReason::Stop {
            assert!(end.ends_with(|c: char| c == ')' || c.is_ascii_lowercase()), "{}", text.text);
        }
    }
}

/// What is asked of a scanned head, and drafts, change no text.
#[test]
fn the_head_and_drafts_change_no_constrained_text() {
    let (full, scanned) = (full(), engine(HeadMode::Exact, Needs::GREEDY.clone()));
    let grammars = full.grammars().unwrap();
    let (mut tokens, mut rows) = (0, 0);
    for grammar in [grammars.json_schema(SCHEMA).unwrap(), grammars.grammar(GBNF).unwrap()] {
        for seed in 0..4 {
            for temperature in [0.0, 1.2] {
                let options = |draft| {
                    let mut options = options(&grammar, seed, draft);
                    options.sampling.temperature = temperature;
                    options.sampling.presence_penalty = 0.5;
                    options.sampling.logit_bias = [(300, 4.0)].into();
                    options
                };
                let expected = write(&full, &options(0));
                for draft in [0, 8] {
                    let found = write(&scanned, &options(draft));
                    assert_eq!(found.ids, expected.ids);
                    assert_eq!(found.text, expected.text);
                    assert_eq!(found.finish_reason, expected.finish_reason);
                }
                let prompt = &expected.prompt;
                let tokenizer = Arc::clone(scanned.tokenizer().unwrap());
                let GenerateOptions { sampling, sequence, session, .. } = options(0);
                let mut text = Sequence::new(tokenizer, prompt, sampling, sequence).unwrap();
                let mut session = scanned.session(session).unwrap();
                while text.step(&mut session).unwrap() {}
                tokens += session.head_stats().scanned;
                rows += session.head_stats().tokens;
            }
        }
    }
    // Some tokens had few others beside them, and some many.
    assert!(0 < tokens && tokens < rows, "{tokens} of {rows} scanned");
}

/// Texts with different grammars, stop strings and no grammar at all in one batch are those alone.
#[test]
fn constrained_texts_together_are_those_alone() {
    let engine = full();
    let grammars = engine.grammars().unwrap();
    let (schema, gbnf) = (grammars.json_schema(SCHEMA).unwrap(), grammars.grammar(GBNF).unwrap());
    let all: Vec<GenerateOptions> = (0..6)
        .map(|i| {
            let mut options = options(if i % 3 == 0 { &schema } else { &gbnf }, i, 0);
            if i % 3 == 2 {
                options.sequence.grammar = None;
                options.sequence.stop = vec!["e".into()];
            }
            options.sequence.logprobs = (i % 2 == 0).then_some(2);
            options
        })
        .collect();
    let alone: Vec<Generation> = all.iter().map(|options| write(&engine, options)).collect();
    let options = SessionOptions { sequences: all.len(), ..SessionOptions::default() };
    let mut session = engine.session(options).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let mut sequences: Vec<Sequence> = (all.iter().zip(&alone))
        .map(|(options, alone)| {
            let (sampling, limits) = (options.sampling.clone(), options.sequence.clone());
            Sequence::new(Arc::clone(tokenizer), &alone.prompt, sampling, limits).unwrap()
        })
        .collect();
    loop {
        let (mut batch, mut writers) = (Vec::new(), Vec::new());
        for (place, sequence) in sequences.iter_mut().enumerate() {
            let room = session.context() - session.position_of(place);
            if let Some(wants) = sequence.wants(usize::MAX, room).unwrap() {
                batch.extend(wants.tokens(place));
                writers.push(place);
            }
        }
        if batch.is_empty() {
            break;
        }
        session.forward(&batch).unwrap();
        for (row, place) in writers.into_iter().enumerate() {
            sequences[place].accept(|_| session.logits(row)).unwrap();
        }
    }
    for (sequence, alone) in sequences.iter_mut().zip(&alone) {
        assert_eq!(sequence.ids(), alone.ids);
        assert_eq!(sequence.take_text(), alone.text);
        assert_eq!(sequence.finish_reason(), Some(alone.finish_reason));
        assert_eq!(sequence.stop_string(), alone.stop.as_deref());
        assert_eq!(sequence.logprobs(), alone.logprobs);
    }
}

#[test]
fn a_grammar_ends_texts_and_says_what_is_wrong() {
    let engine = full();
    let grammars = engine.grammars().unwrap();
    let yes = grammars.grammar("root ::= \"yes\"").unwrap();
    let mut forced = options(&yes, 0, 0);
    forced.sequence.ignore_eos = true;
    let text = write(&engine, &forced);
    assert_eq!((text.text.as_str(), text.finish_reason), ("yes", FinishReason::Stop));
    // A ban of all that may come first.
    forced.sampling.logit_bias = (0..4096).map(|id| (id, f32::NEG_INFINITY)).collect();
    let error = engine.generate("x", &forced, |_| ()).unwrap_err();
    assert!(error.to_string().starts_with("logit_bias: found -inf for every token"), "{error}");
    // Only what ends a text is left, and that is banned: the text is complete.
    let any = grammars.grammar("root ::= \"a\"?").unwrap();
    let mut banned = options(&any, 0, 0);
    banned.sampling.logit_bias = (0..4096).map(|id| (id, f32::NEG_INFINITY)).collect();
    let text = engine.generate("x", &banned, |_| ()).unwrap();
    assert_eq!((text.text.as_str(), text.finish_reason), ("", FinishReason::Stop));
}
