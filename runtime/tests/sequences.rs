//! Several sequences in one session: each has, to the bit, the logits that it has alone.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::Isa;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{
    BatchToken, KvType, LoadOptions, Model, Needs, Session, SessionOptions,
};
use bitnet_runtime::cpu::threads::Pool;

fn model(selection: &Selection) -> Arc<Model> {
    let pool = Pool::new(2).unwrap();
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf"));
    Arc::new(Model::load(path, &LoadOptions::new(&pool, selection)).unwrap())
}

fn session(model: &Arc<Model>, threads: usize, options: SessionOptions) -> Session {
    Session::new(Arc::clone(model), Arc::new(Pool::new(threads).unwrap()), options).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// The `i`-th token of a sequence: of no pattern, and different in all of them.
fn id(sequence: usize, i: usize) -> u32 {
    (((i * 31 + sequence * 977 + i * i * 7) % 4093) + 1) as u32
}

fn token(sequence: usize, i: usize, logits: bool) -> BatchToken<'static> {
    BatchToken { sequence, id: id(sequence, i), needs: logits.then_some(Needs::ALL) }
}

/// How many tokens a sequence holds before the batches begin: uneven, up to more than two chunks of
/// attention.
fn depth(sequence: usize) -> usize {
    [3, 260, 1, 40, 0, 530, 17, 256, 90][sequence]
}

/// Steps of a batch after that.
const STEPS: usize = 3;

/// The logits of every sequence alone after each of the steps, token by token.
fn alone(model: &Arc<Model>, kv_type: KvType) -> Vec<Vec<Vec<u32>>> {
    let options = SessionOptions { kv_type: Some(kv_type), ..SessionOptions::default() };
    let mut session = session(model, 2, options);
    let mut all = Vec::new();
    for sequence in 0..9 {
        session.truncate(0);
        let ids: Vec<u32> = (0..depth(sequence)).map(|i| id(sequence, i)).collect();
        if !ids.is_empty() {
            session.prefill(&ids).unwrap();
        }
        let step = |i| bits(session.decode(id(sequence, depth(sequence) + i)).unwrap());
        all.push((0..STEPS).map(step).collect());
    }
    all
}

#[test]
fn sequences_do_not_know_of_each_other() {
    let model = model(&Selection::default());
    for kv_type in KvType::ALL {
        let expected = alone(&model, kv_type);
        for sequences in 1..=9 {
            for threads in 1..=4 {
                let options =
                    SessionOptions { kv_type: Some(kv_type), sequences, ..Default::default() };
                let mut session = session(&model, threads, options);
                // Prompts in one go, beyond the size of a batch; no logits are asked for.
                let prompts: Vec<BatchToken> = (0..sequences)
                    .flat_map(|s| (0..depth(s)).map(move |i| token(s, i, false)))
                    .collect();
                session.forward(&prompts).unwrap();
                assert!(session.logits(0).is_empty());
                for (step, _) in expected[0].iter().enumerate() {
                    let batch: Vec<BatchToken> =
                        (0..sequences).map(|s| token(s, depth(s) + step, true)).collect();
                    session.forward(&batch).unwrap();
                    for (s, expected) in expected.iter().enumerate().take(sequences) {
                        let same = bits(session.logits(s)) == expected[step];
                        assert!(same, "{kv_type:?}, {s} of {sequences}, {threads} threads, {step}");
                    }
                }
                for s in 0..sequences {
                    assert_eq!(session.position_of(s), depth(s) + STEPS);
                }
                assert_eq!(session.position_of(sequences), 0);
            }
        }
    }
}

/// Tokens of a batch come in any order, several of a sequence among them, and any of them may ask
/// for its logits; batches are cut where they are too long.
#[test]
fn any_order_and_any_logits() {
    let model = model(&Selection::default());
    let mut alone = session(&model, 1, SessionOptions::default());
    let mut expected = Vec::new();
    for sequence in 0..3 {
        alone.truncate(0);
        let step = |i| bits(alone.decode(id(sequence, i)).unwrap());
        expected.push((0..20).map(step).collect::<Vec<_>>());
    }
    for (threads, batch) in [(1, 512), (2, 7), (3, 1), (4, 13)] {
        let options = SessionOptions { batch, sequences: 3, ..SessionOptions::default() };
        let mut session = session(&model, threads, options);
        let (mut next, mut tokens, mut wanted) = ([0; 3], Vec::new(), Vec::new());
        for turn in 0..40 {
            // Runs of one to four tokens.
            let s = turn * 5 % 7 % 3;
            for _ in 0..1 + turn % 4 {
                if next[s] < 20 {
                    let logits = (turn + next[s]) % 3 != 0;
                    tokens.push(token(s, next[s], logits));
                    wanted.extend(logits.then_some((s, next[s])));
                    next[s] += 1;
                }
            }
        }
        assert_eq!(next, [20; 3]);
        session.forward(&tokens).unwrap();
        for (row, &(s, i)) in wanted.iter().enumerate() {
            let same = bits(session.logits(row)) == expected[s][i];
            assert!(same, "batch {batch}: token {i} of sequence {s}");
        }
        assert!(session.logits(wanted.len()).is_empty());
    }
}

/// One session, and one sequence that is cut back while the others go on.
#[test]
fn a_sequence_is_cut_back_alone() {
    let model = model(&Selection::default());
    let options = SessionOptions { sequences: 2, ..SessionOptions::default() };
    let mut session = session(&model, 2, options);
    let both = |i| [token(0, i, true), token(1, i, true)];
    let step = |session: &mut Session, tokens: &[BatchToken<'_>]| -> Vec<Vec<u32>> {
        session.forward(tokens).unwrap();
        (0..tokens.len()).map(|row| bits(session.logits(row))).collect()
    };
    let first: Vec<Vec<Vec<u32>>> = (0..6).map(|i| step(&mut session, &both(i))).collect();
    session.truncate_of(1, 3);
    session.truncate_of(7, 0);
    assert_eq!((session.position(), session.position_of(1)), (6, 3));
    for (i, first) in first.iter().enumerate().skip(3) {
        assert!(step(&mut session, &[token(1, i, true)])[0] == first[1], "token {i}");
    }
    assert_eq!(session.kv_bytes(), 12 * (2 * 4 * 6 * 128));
}

/// A prefix that was copied from another sequence serves as one that went through the model.
#[test]
fn a_copied_prefix_is_the_prefix() {
    const LENGTHS: [usize; 10] = [0, 1, 15, 16, 17, 255, 256, 257, 512, 530];
    const LONGEST: usize = 531;
    let model = model(&Selection::default());
    // Tokens of a text, in a sequence.
    let text = |sequence: usize, text: usize, range: Range<usize>, logits: bool| {
        range
            .map(|i| BatchToken { sequence, ..token(text, i, logits) })
            .collect::<Vec<BatchToken<'static>>>()
    };
    for kv_type in KvType::ALL {
        let options = SessionOptions {
            context: Some(LONGEST + 3),
            kv_type: Some(kv_type),
            sequences: 3,
            ..SessionOptions::default()
        };
        let mut session = session(&model, 2, options);
        let run = |session: &mut Session, tokens: &[BatchToken<'_>]| {
            session.forward(tokens).unwrap();
            let wanted = tokens.iter().filter(|token| token.needs.is_some());
            wanted.enumerate().map(|(row, _)| bits(session.logits(row))).collect::<Vec<_>>()
        };
        run(&mut session, &text(0, 0, 0..LONGEST, false));
        // The target holds another text before, and a longer one.
        run(&mut session, &text(1, 1, 0..LONGEST + 3, false));
        for n in LENGTHS {
            session.copy_prefix(0, 1, n).unwrap();
            assert_eq!([0, 1].map(|s| session.position_of(s)), [LONGEST, n]);
            session.truncate_of(2, 0);
            if n > 0 {
                run(&mut session, &text(2, 0, 0..n, false));
            }
            // One token alone, then two more with those of the other in one pass.
            let next = n..n + 1;
            let copied = run(&mut session, &text(1, 2, next.clone(), true));
            let cold = run(&mut session, &text(2, 2, next, true));
            assert!(copied == cold, "{kv_type:?}: {n}");
            let both = [1, 2].map(|s| text(s, 2, n + 1..n + 3, true)).concat();
            let logits = run(&mut session, &both);
            assert_eq!(logits.len(), 4);
            assert!(logits[..2] == logits[2..], "{kv_type:?}: {n}, together");
        }
        // The source has lost nothing, and its own prefix is what it is cut back to.
        session.copy_prefix(0, 1, LONGEST).unwrap();
        let [source, copy] =
            [0, 1].map(|s| run(&mut session, &text(s, 0, LONGEST..LONGEST + 1, true)));
        assert!(source == copy, "{kv_type:?}");
        session.copy_prefix(0, 0, 17).unwrap();
        let held = [17, LONGEST + 1];
        assert_eq!([0, 1].map(|s| session.position_of(s)), held);
        let cases = [
            ((3, 0, 1), ["sequence", "found 3", "0 to 2"]),
            ((0, 4, 1), ["sequence", "found 4", "0 to 2"]),
            ((0, 1, 18), ["positions", "found 18", "at most 17, what sequence 0 holds"]),
        ];
        for ((from, to, positions), words) in cases {
            let error = session.copy_prefix(from, to, positions).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            let message = error.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
            assert_eq!([0, 1].map(|s| session.position_of(s)), held);
        }
    }
}

/// The kernels of every tier, in the sizes of batches that they are made for and between.
#[test]
fn every_tier_has_the_same_logits() {
    let ids: Vec<u32> = (0..24).map(|i| id(1, i)).collect();
    let mut expected: Option<Vec<Vec<u32>>> = None;
    for &isa in Isa::ALL.iter().filter(|isa| isa.is_supported()) {
        let model = model(&Selection::new(Some(isa), None, None).unwrap());
        let mut session = session(&model, 2, SessionOptions::default());
        let alone: Vec<Vec<u32>> =
            ids.iter().map(|&id| bits(session.decode(id).unwrap())).collect();
        for size in [1, 2, 3, 4, 5, 7, 8, 9, 16, 23] {
            session.truncate(24 - size);
            let last: Vec<BatchToken> = (24 - size..24)
                .map(|i| BatchToken { sequence: 0, id: ids[i], needs: Some(Needs::ALL) })
                .collect();
            session.forward(&last).unwrap();
            let rows = (0..size).map(|row| bits(session.logits(row)));
            assert!(rows.eq(alone[24 - size..].iter().cloned()), "{isa}: the last {size}");
        }
        assert_eq!(*expected.get_or_insert_with(|| alone.clone()), alone, "{isa}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = model(&Selection::default());
    let options =
        SessionOptions { context: Some(4), batch: 3, sequences: 2, ..SessionOptions::default() };
    let mut session = session(&model, 2, options);
    session.forward(&[token(0, 0, true), token(1, 0, false), token(1, 1, true)]).unwrap();
    let beyond = BatchToken { sequence: 0, id: 4096, needs: Some(Needs::ALL) };
    let cases: [(&[BatchToken], &[&str]); 4] = [
        (&[], &["no tokens"]),
        (&[token(0, 0, true), beyond], &["token id", "4096", "0 to 4095"]),
        (&[token(0, 0, true), token(2, 0, true)], &["sequence", "2", "0 to 1"]),
        (&[0, 1, 2].map(|i| token(1, i, true)), &["3 tokens after 2", "at most 4"]),
    ];
    for (tokens, words) in cases {
        let error = session.forward(tokens).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!([session.position_of(0), session.position_of(1)], [1, 2]);
    }
    session.forward(&[2, 3].map(|i| token(1, i, true))).unwrap();
    for sequences in [0, 257] {
        let options = SessionOptions { sequences, ..SessionOptions::default() };
        let pool = Arc::new(Pool::new(1).unwrap());
        let error = Session::new(Arc::clone(&model), pool, options).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("1 to 256"), "{error}");
    }
}
