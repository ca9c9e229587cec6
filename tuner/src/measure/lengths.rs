//! Tokens and positions that are timed: of a job by itself, and of the whole model.

use bitnet_codegen::Phase;

/// Activation rows of a timed prefill: where lookups, which pay more the more tokens share a table,
/// are apart from multiplying. 128 on two cores of Zen 5 are a tie and 512 take 0.9 times as long; but
/// a sample of 512 costs four of 128, and to time both five.
pub(crate) const PREFILL_TOKENS: usize = 256;

/// Positions before the tokens of a timed attention: two chunks of its arithmetic.
pub(crate) const DEPTH: usize = 512;

/// Positions that one of so many tokens of a timed attention attends to, itself included, on
/// average.
pub(crate) fn job_positions(tokens: u32) -> f64 {
    DEPTH as f64 + (f64::from(tokens) + 1.0) / 2.0
}

/// Tokens of a round's prompt, and tokens written after it.
pub(crate) const PROMPT: usize = 128;
pub(crate) const WRITTEN: usize = 32;

/// Positions that a token of a phase attends to, itself included, on average.
pub(crate) fn model_positions(phase: Phase) -> f64 {
    match phase {
        Phase::Decode => PROMPT as f64 + (WRITTEN + 1) as f64 / 2.0,
        Phase::Prefill => (PROMPT + 1) as f64 / 2.0,
    }
}
