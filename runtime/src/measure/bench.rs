//! Times the model as llama-bench does: random tokens, a prompt (`pp`), a generation without
//! sampling (`tg`), both, each after a context of a certain depth; and, as llama-batched-bench does,
//! of several sequences that go through the model together.

use std::fmt;
use std::time::Instant;

use crate::cpu::model::{BatchToken, Needs, Session, StageTimes};
use crate::engine::sampler::{self, Rng};
use crate::error::{Error, Result};

/// A test to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Tokens of the prompt of each sequence, which go through the model together.
    pub n_prompt: usize,
    /// Tokens of each sequence that follow one by one.
    pub n_gen: usize,
    /// Tokens in the context of each sequence before the clock starts.
    pub n_depth: usize,
    /// Sequences, at least 1.
    pub n_parallel: usize,
}

impl Test {
    /// Positions that the test takes in each sequence.
    #[must_use]
    pub fn context(&self) -> usize {
        self.n_prompt + self.n_gen + self.n_depth
    }

    /// Tokens that are timed, over all sequences.
    #[must_use]
    pub fn tokens(&self) -> usize {
        (self.n_prompt + self.n_gen) * self.n_parallel
    }
}

/// Formats as llama-bench does: `pp128`, `tg64`, `pp128+tg64`, `tg64 @ d512`; several sequences as
/// `tg64 x 8`.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = String::new();
        if self.n_prompt > 0 {
            name += &format!("pp{}", self.n_prompt);
        }
        if self.n_gen > 0 {
            let plus = if name.is_empty() { "" } else { "+" };
            name += &format!("{plus}tg{}", self.n_gen);
        }
        if self.n_depth > 0 {
            name += &format!(" @ d{}", self.n_depth);
        }
        if self.n_parallel > 1 {
            name += &format!(" x {}", self.n_parallel);
        }
        f.pad(&name)
    }
}

/// The times of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// Tokens of each repetition, over all sequences.
    pub tokens: usize,
    /// Nanoseconds of each repetition.
    pub ns: Vec<u64>,
    /// Times of the stages over all repetitions.
    pub stages: StageTimes,
}

impl Samples {
    /// Returns the tokens per second of each repetition.
    #[must_use]
    pub fn per_second(&self) -> Vec<f64> {
        self.ns.iter().map(|&ns| self.tokens as f64 * 1e9 / ns.max(1) as f64).collect()
    }

    /// Returns the nanoseconds as floats.
    #[must_use]
    pub fn ns_f64(&self) -> Vec<f64> {
        self.ns.iter().map(|&ns| ns as f64).collect()
    }
}

/// Returns the mean; 0 of an empty slice.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns the median; 0 of an empty slice.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Returns the standard deviation of a sample (divided by n - 1); 0 of fewer than two values.
#[must_use]
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Random tokens, the same in every run of the program.
#[derive(Debug)]
pub struct Tokens(Rng);

impl Tokens {
    /// Starts from the beginning.
    #[must_use]
    pub fn new() -> Self {
        Self(Rng::new(1))
    }

    fn next(&mut self, vocab: usize) -> u32 {
        (self.0.next_u64() % vocab as u64) as u32
    }

    /// Fills `batch` with `n` tokens of each sequence, the last of which needs the best logit if `logits`.
    fn fill(&mut self, batch: &mut Vec<BatchToken<'_>>, n: usize, of: (Test, usize), logits: bool) {
        let (test, vocab) = of;
        batch.clear();
        for sequence in 0..test.n_parallel {
            for i in 0..n {
                // Needs the best logit, as a greedy run would.
                let needs = if logits && i + 1 == n { Some(Needs::GREEDY) } else { None };
                batch.push(BatchToken { sequence, id: self.next(vocab), needs });
            }
        }
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes one pass that is not timed: the whole prompt, or one token of a generation.
///
/// # Errors
/// As [`time`].
pub fn warm_up(session: &mut Session, test: Test, tokens: &mut Tokens) -> Result<()> {
    let test = Test { n_gen: test.n_gen.min(1), n_depth: 0, ..test };
    time(session, test, 1, tokens, || Ok(())).map(drop)
}

/// Times `repetitions` of the test, each after a call of `before`.
///
/// # Errors
/// Those of `before`; [`Error::Usage`] when the test does not fit into the context or the session has
/// fewer sequences, [`Error::Runtime`] when a logit is no number or a worker panicked.
pub fn time(
    session: &mut Session,
    test: Test,
    repetitions: usize,
    tokens: &mut Tokens,
    mut before: impl FnMut() -> Result<()>,
) -> Result<Samples> {
    if test.context() > session.context() {
        let expected = format!("at most {} positions, the context", session.context());
        return Err(Error::usage(
            format!("test {test}"),
            format_args!("{} positions", test.context()),
            expected,
        ));
    }
    let vocab = session.model().config().vocab;
    let of = (test, vocab);
    let mut batch = Vec::new();
    let truncate = |session: &mut Session, position: usize| {
        (0..test.n_parallel).for_each(|sequence| session.truncate_of(sequence, position));
    };
    truncate(session, 0);
    if test.n_depth > 0 {
        tokens.fill(&mut batch, test.n_depth, of, false);
        session.forward(&batch)?;
    }
    session.time_stages();
    let mut ns = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        truncate(session, test.n_depth);
        before()?;
        let start = Instant::now();
        if test.n_prompt > 0 {
            tokens.fill(&mut batch, test.n_prompt, of, true);
            session.forward(&batch)?;
        }
        for _ in 0..test.n_gen {
            tokens.fill(&mut batch, 1, of, true);
            session.forward(&batch)?;
        }
        ns.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        // Logits that were not needed read minus infinity, but the best is a number.
        let wrong = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        for row in 0..test.n_parallel {
            let logits = session.logits(row);
            let best = sampler::argmax(logits) as usize;
            let no_best = !logits.get(best).is_some_and(|logit| logit.is_finite());
            let wrong = logits.iter().position(wrong).or(no_best.then_some(best));
            if let Some(logit) = wrong.and_then(|at| Some((at, logits.get(at)?))) {
                let message = format!("test {test}: logit {} is {}, no number", logit.0, logit.1);
                return Err(Error::Runtime(message));
            }
        }
    }
    Ok(Samples { tokens: test.tokens(), ns, stages: session.stages().unwrap_or_default() })
}

/// Formats seconds since 1970 as `2026-11-20T09:16:00Z`, by the civil calendar (every 400 years
/// have the same 146097 days).
#[must_use]
pub fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, so that leap days end a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on: their first days follow a line of slope 153 / 5.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next_year;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llama_bench_s() {
        let of = |n_prompt, n_gen, n_depth| Test { n_prompt, n_gen, n_depth, n_parallel: 1 };
        let name = |n_prompt, n_gen, n_depth| of(n_prompt, n_gen, n_depth).to_string();
        assert_eq!(name(128, 0, 0), "pp128");
        assert_eq!(name(0, 64, 0), "tg64");
        assert_eq!(name(128, 64, 0), "pp128+tg64");
        assert_eq!(name(0, 64, 512), "tg64 @ d512");
        assert_eq!(Test { n_parallel: 8, ..of(0, 64, 512) }.to_string(), "tg64 @ d512 x 8");
    }

    #[test]
    fn statistics() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(standard_deviation(&[1.0, 2.0, 6.0]), 7f64.sqrt());
        assert_eq!(
            (mean(&[]), standard_deviation(&[]), standard_deviation(&[4.0])),
            (0.0, 0.0, 0.0)
        );
        let samples = Samples {
            tokens: 3,
            ns: vec![1_000_000_000, 500_000_000],
            stages: StageTimes::default(),
        };
        assert_eq!(samples.per_second(), [3.0, 6.0]);
    }

    /// Known dates: the epoch, leap days of years that divide by 400 and by 4, the end of a year.
    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_763_630_161, "2025-11-20T09:16:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
