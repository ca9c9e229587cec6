//! Numbers of tokens and positions that are timed: of a job by itself, and of the whole model.

use bitnet_codegen::Phase;

/// Activation rows of a timed prefill: enough to tell lookups, which gain the more the more tokens
/// share a table, from multiplying. Tried: with 128 rows the two tie on two cores of Zen 5; a
/// sample of 512 rows costs four of 128.
pub(crate) const PREFILL_TOKENS: usize = 256;

/// Positions before the tokens of a timed attention: two chunks of its arithmetic.
pub(crate) const DEPTH: usize = 512;

/// Returns the average number of positions that a token of a timed attention attends to, itself
/// included.
pub(crate) fn job_positions(tokens: u32) -> f64 {
    DEPTH as f64 + (f64::from(tokens) + 1.0) / 2.0
}

/// Tokens of the prompt in a comparison on the model, and tokens written after it.
pub(crate) const PROMPT: usize = 128;
pub(crate) const WRITTEN: usize = 32;

/// Returns the average number of positions that a token of a comparison on the model attends to,
/// itself included.
pub(crate) fn model_positions(phase: Phase) -> f64 {
    match phase {
        Phase::Decode => PROMPT as f64 + (WRITTEN + 1) as f64 / 2.0,
        Phase::Prefill => (PROMPT + 1) as f64 / 2.0,
    }
}
