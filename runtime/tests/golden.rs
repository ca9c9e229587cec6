//! The trained demo model against its golden file, and the same logits to the bit however the work
//! is split.

mod demo;

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use bitnet_profiles::{Format, Isa, Packing};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{KvType, LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_trials::{Need, Tested, suite};
use demo::{bits, golden, greedy};

fn model() -> Arc<Model> {
    model_with(&Selection::default())
}

fn model_with(selection: &Selection) -> Arc<Model> {
    let pool = Pool::new(2).unwrap();
    let options = LoadOptions::new(&pool, selection);
    Arc::new(Model::load(demo::path(), &options).unwrap())
}

fn session(model: &Arc<Model>, threads: usize, batch: usize) -> Session {
    session_with(model, threads, SessionOptions { batch, ..SessionOptions::default() })
}

fn session_with(model: &Arc<Model>, threads: usize, options: SessionOptions) -> Session {
    Session::new(Arc::clone(model), Arc::new(Pool::new(threads).unwrap()), options).unwrap()
}

fn the_demo_model_writes_its_golden_text() {
    let model = model();
    assert!(model.warnings().is_empty(), "{:?}", model.warnings());
    let mut session = session(&model, 2, 512);
    assert_eq!(session.kv_type(), KvType::F32);
    demo::writes_its_golden_text(&mut session);
}

fn logits_do_not_depend_on_threads_or_batch() {
    let model = model();
    // More than two chunks of KV positions.
    let golden = golden();
    let text = golden.cases.iter().flat_map(|c| c.ids.iter().chain(&c.greedy_48));
    let ids: Vec<u32> = text.copied().cycle().take(530).collect();
    for kv_type in KvType::ALL {
        let mut expected = Vec::new();
        // (threads, batch): batch 1 is decoding token by token.
        for (threads, batch) in [(1, 530), (2, 530), (3, 1), (1, 7), (2, 3), (3, 257)] {
            let kv_type = Some(kv_type);
            let options = SessionOptions { batch, kv_type, ..SessionOptions::default() };
            let mut session = session_with(&model, threads, options);
            let mut found = vec![bits(session.prefill(&ids).unwrap())];
            for id in [5, 17, 300] {
                found.push(bits(session.decode(id).unwrap()));
            }
            assert_eq!(session.position(), 533);
            if expected.is_empty() {
                expected = found;
            } else {
                assert!(found == expected, "{kv_type:?}, {threads} threads, batch {batch}");
            }
        }
    }
}

/// Logits of the first case and of some tokens after it.
fn logits_of(model: &Arc<Model>, threads: usize, batch: usize) -> Vec<Vec<u32>> {
    let case = &golden().cases[0];
    let mut session = session(model, threads, batch);
    let mut found = vec![bits(session.prefill(&case.ids).unwrap())];
    for &id in &case.greedy_48[..4] {
        found.push(bits(session.decode(id).unwrap()));
    }
    found
}

/// Those of plain code.
static EXPECTED: LazyLock<Vec<Vec<u32>>> = LazyLock::new(|| {
    let plain = Selection::new(Some(Isa::Scalar), Some(Format::I2S), None).unwrap();
    logits_of(&model_with(&plain), 1, 512)
});

fn logits_do_not_depend_on_isa_or_format(isa: Isa) -> Tested {
    Need::isa(isa)?;
    for &format in Format::ALL {
        let model = model_with(&Selection::new(Some(isa), Some(format), None).unwrap());
        for kernels in model.kernels() {
            assert!(kernels.decode.isa.is_within(isa), "{} under {isa}", kernels.decode);
            let own =
                |packing| matches!(packing, Packing::Ternary(layout) if layout.format() == format);
            assert!(kernels.layout.is_none_or(own));
        }
        for (threads, batch) in [(1, 512), (2, 4), (3, 1)] {
            let found = logits_of(&model, threads, batch);
            assert!(found == *EXPECTED, "{format}, {threads} threads, batch {batch}");
        }
    }
    Ok(())
}

/// What rounding in the KV cache costs on this model: see [`KvType`].
fn a_rounded_cache_stays_near_the_golden_logits() {
    let model = model();
    for (kv_type, most) in [(KvType::F16, 0.15), (KvType::Q8_0, 0.3)] {
        let options = SessionOptions { kv_type: Some(kv_type), ..SessionOptions::default() };
        let mut session = session_with(&model, 2, options);
        for case in &golden().cases {
            session.truncate(0);
            let logits = session.prefill(&case.ids).unwrap();
            for &(id, expected) in &case.last_logits_top10 {
                let off = (logits[id] - expected).abs();
                assert!(off <= most, "{kv_type:?}, {:?}: logit {id} is off by {off}", case.prompt);
            }
            if case.greedy_margins[0] > 2.0 * most {
                assert_eq!(greedy(logits), case.greedy_48[0], "{kv_type:?}, {:?}", case.prompt);
            }
        }
    }
}

fn a_truncated_session_continues_as_if_the_rest_had_not_been() {
    let model = model();
    let case = &golden().cases[0];
    let mut session = session(&model, 2, 512);
    let expected = bits(session.prefill(&case.ids).unwrap());
    session.decode(7).unwrap();
    session.truncate(case.ids.len() - 1);
    let last = case.ids[case.ids.len() - 1];
    assert_eq!(bits(session.decode(last).unwrap()), expected);
}

fn bad_prompts_are_refused_and_change_nothing() {
    let model = model();
    let pool = Arc::new(Pool::new(1).unwrap());
    let options = SessionOptions { context: Some(4), batch: 2, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(&model), Arc::clone(&pool), options).unwrap();
    session.prefill(&[0, 1, 2]).unwrap();
    for (ids, named) in [(&[][..], "no tokens"), (&[4096], "4096"), (&[1, 2], "2 tokens after 3")] {
        let error = session.prefill(ids).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(session.position(), 3);
    }
    session.prefill(&[9]).unwrap();
    let good = SessionOptions::default();
    for options in [
        SessionOptions { context: Some(0), ..good },
        SessionOptions { context: Some(1025), ..good },
        SessionOptions { batch: 0, ..good },
    ] {
        let error = Session::new(Arc::clone(&model), Arc::clone(&pool), options).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

fn main() -> ExitCode {
    let mut suite = suite![
        the_demo_model_writes_its_golden_text,
        logits_do_not_depend_on_threads_or_batch,
        a_rounded_cache_stays_near_the_golden_logits,
        a_truncated_session_continues_as_if_the_rest_had_not_been,
        bad_prompts_are_refused_and_change_nothing,
    ];
    for &isa in Isa::of_arch(std::env::consts::ARCH) {
        suite.add(format!("logits_do_not_depend_on_isa_or_format::{isa}"), move || {
            logits_do_not_depend_on_isa_or_format(isa)
        });
    }
    suite.run()
}
