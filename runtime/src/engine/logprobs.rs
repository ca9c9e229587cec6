//! Log probabilities of tokens, from the logits as the model gives them.
//!
//! All arithmetic is plain IEEE f64 in the order of the ids, exponential and logarithm included, so that
//! numbers are the same on every CPU.

use std::f64::consts::{LN_2, SQRT_2};

use super::sampler::{best_of, exp};

/// The log probability of a token of a text, and of the most likely ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f64,
    /// The most likely tokens and their log probabilities, in descending order, the lowest id first
    /// among equally likely ones.
    pub top: Vec<(u32, f64)>,
}

/// Returns the log probability of token `id` after all `logits`, `[vocab]`, and those of the `top` most
/// likely tokens: of the softmax before biases, penalties, temperature and whatever else a sampler does. NaN
/// counts as minus infinity, and an id beyond the vocabulary has minus infinity.
#[must_use]
pub fn logprobs(logits: &[f32], id: u32, top: usize) -> TokenLogprobs {
    let (max, sum) = log_sum_exp(logits);
    let logprob = |logit: f32| match f64::from(logit) - max - sum {
        number if number.is_nan() => f64::NEG_INFINITY,
        number => number,
    };
    let mut best = Vec::new();
    best_of(logits, top, &mut best);
    TokenLogprobs {
        id,
        logprob: logits.get(id as usize).map_or(f64::NEG_INFINITY, |&logit| logprob(logit)),
        top: best.into_iter().map(|(logit, id)| (id, logprob(logit))).collect(),
    }
}

impl TokenLogprobs {
    /// Returns the probability of a log probability, the same bits on every CPU.
    #[must_use]
    pub fn probability(logprob: f64) -> f64 {
        exp(logprob)
    }
}

/// Returns the largest logit, minus infinity where there is none, and ln of the sum of e^(x - largest) over
/// all. Rounding errors of the sum are carried along (Kahan), so that it is as good for 128,000 summands as
/// for ten.
fn log_sum_exp(logits: &[f32]) -> (f64, f64) {
    let numbers = || logits.iter().filter(|logit| !logit.is_nan());
    let max = numbers().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
    let max = f64::from(max);
    if !max.is_finite() {
        return (max, 0.0);
    }
    let (mut sum, mut lost) = (0.0, 0.0);
    for &logit in numbers() {
        let term = exp(f64::from(logit) - max) - lost;
        let next = sum + term;
        lost = (next - sum) - term;
        sum = next;
    }
    (max, ln(sum))
}

/// ln x for x >= 1, the same bits on every CPU (the C library's may differ in the last one).
///
/// x = 2^n m with m between 1/sqrt(2) and sqrt(2); ln m = 2 artanh s with s = (m - 1) / (m + 1), whose
/// series to s^23 is exact to about 1e-17, as |s| < 0.172.
pub(super) fn ln(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52) as i32 - 1023;
    let m = f64::from_bits(x.to_bits() & ((1 << 52) - 1) | 1023 << 52);
    let (n, m) = if m > SQRT_2 { (exponent + 1, m / 2.0) } else { (exponent, m) };
    let s = (m - 1.0) / (m + 1.0);
    let series = (0..12).rev().fold(0.0, |sum, i| sum * (s * s) + 1.0 / f64::from(2 * i + 1));
    f64::from(n) * LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        // 1/2, 1/4, 1/8, 1/8.
        let logits: Vec<f32> = [0.25f32, 0.5, 0.125, 0.125].map(f32::ln).into();
        let found = logprobs(&logits, 2, 3);
        assert_eq!(found.id, 2);
        assert!((found.logprob - 0.125f64.ln()).abs() < 1e-7, "{found:?}");
        let ids: Vec<u32> = found.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 0, 2]);
        assert_eq!(found.top[2].1.to_bits(), found.logprob.to_bits());
        assert!((found.top[0].1 - 0.5f64.ln()).abs() < 1e-7, "{found:?}");
        // A shift of all logits changes nothing but rounding; huge ones do not overflow.
        let shifted: Vec<f32> = logits.iter().map(|logit| logit + 512.0).collect();
        assert!((logprobs(&shifted, 1, 0).logprob - 0.5f64.ln()).abs() < 1e-4);
        assert_eq!(logprobs(&[f32::MAX, f32::MAX], 1, 0).logprob, -LN_2);
        assert_eq!(logprobs(&[1.0, -1e30], 0, 9).top, [(0, 0.0), (1, f64::from(-1e30f32) - 1.0)]);
    }

    #[test]
    fn all_probabilities_make_one() {
        let logits: Vec<f32> =
            (0..130_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6).collect();
        let found = logprobs(&logits, 0, logits.len());
        assert_eq!(found.top.len(), logits.len());
        let total: f64 = found.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-11, "{total}");
        assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1));
    }

    #[test]
    fn what_is_no_number_has_no_probability() {
        let found = logprobs(&[f32::NAN, 0.0, f32::NEG_INFINITY], 0, 3);
        assert_eq!(found.logprob, f64::NEG_INFINITY);
        assert_eq!(found.top, [(1, 0.0), (2, f64::NEG_INFINITY)]);
        assert_eq!(logprobs(&[0.0], 1, 0).logprob, f64::NEG_INFINITY);
        assert_eq!(logprobs(&[], 0, 5).top, []);
        assert_eq!(logprobs(&[f32::NEG_INFINITY; 2], 0, 0).logprob, f64::NEG_INFINITY);
    }

    #[test]
    fn ln_is_close_to_the_real_one() {
        for i in 0..40_000 {
            let x = 1.0 + f64::from(i) * f64::from(i) / 1000.0;
            assert!((ln(x) - x.ln()).abs() <= 2e-16 * x.ln().max(1.0) * 2.0, "{x}");
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
