//! The trained demo model and its golden file, for tests.
//!
//! The rule by which a result is held against the file: rounding at a tie of the int8 quantisation
//! can move a logit by up to 0.03, so top-10 logits agree within 0.05, greedy ids up to the first
//! step whose margin is below 0.03, and all 48 ids for at least 9 of the 12 prompts.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::path::{Path, PathBuf};

use bitnet_runtime::cpu::model::Session;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Golden {
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub prompt: String,
    pub ids: Vec<u32>,
    pub last_logits_top10: Vec<(usize, f32)>,
    pub greedy_48: Vec<u32>,
    pub greedy_margins: Vec<f32>,
}

fn models() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"))
}

/// The model's file.
pub fn path() -> PathBuf {
    models().join("bard-11m.i2_s.gguf")
}

pub fn golden() -> Golden {
    let text = std::fs::read_to_string(models().join("bard-11m.golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The id of the largest logit; the lowest of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// Holds a session against the golden file, and gives the bits of all logits on the way.
pub fn writes_its_golden_text(session: &mut Session) -> Vec<Vec<u32>> {
    let golden = golden();
    assert_eq!(golden.cases.len(), 12);
    let (mut all_equal, mut seen) = (0, Vec::new());
    for case in &golden.cases {
        session.truncate(0);
        let logits = session.prefill(&case.ids).unwrap();
        for &(id, expected) in &case.last_logits_top10 {
            let off = (logits[id] - expected).abs();
            assert!(off <= 0.05, "{:?}: logit {id} is off by {off}", case.prompt);
        }
        seen.push(bits(logits));
        let mut next = greedy(logits);
        let mut ids = Vec::new();
        while ids.len() < case.greedy_48.len() {
            ids.push(next);
            let logits = session.decode(next).unwrap();
            seen.push(bits(logits));
            next = greedy(logits);
        }
        let sure = case.greedy_margins.iter().position(|&m| m < 0.03).unwrap_or(ids.len());
        assert_eq!(ids[..sure], case.greedy_48[..sure], "{:?}", case.prompt);
        all_equal += usize::from(ids == case.greedy_48);
    }
    assert!(all_equal >= 9, "only {all_equal} of 12 prompts reproduce all greedy ids");
    seen
}
