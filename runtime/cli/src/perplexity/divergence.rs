//! Statistics of a model's probabilities beside those of a base file, as llama-perplexity gives them.

use std::io::{self, Write};
use std::path::Path;

use bitnet_profiles::patient;
use bitnet_runtime::error::{Error, Result};
use serde::Serialize;

use super::Scored;
use super::base::Row;

/// Log probabilities of the base below this are left out of sums: they have no codes.
const LEAST: f32 = -16.0;
/// Shares below which a percentile lies, and how they are called.
const PERCENTILES: [(f64, &str); 13] = [
    (1.0, "Maximum"),
    (0.999, "99.9%"),
    (0.99, "99.0%"),
    (0.95, "95.0%"),
    (0.9, "90.0%"),
    (0.75, "75.0%"),
    (0.5, "Median"),
    (0.25, "25.0%"),
    (0.1, "10.0%"),
    (0.05, " 5.0%"),
    (0.01, " 1.0%"),
    (0.001, " 0.1%"),
    (0.0, "Minimum"),
];

/// A mean, and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Estimate {
    mean: f64,
    error: f64,
}

/// Sum of numbers and of their squares.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, x: f64) {
        self.count += 1;
        self.sum += x;
        self.squares += x * x;
    }

    fn estimate(self) -> Estimate {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        let error = if self.count < 2 { 0.0 } else { (variance / (n - 1.0)).sqrt() };
        Estimate { mean, error }
    }
}

/// What was found so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Divergence {
    nll: Sums,
    nll_base: Sums,
    /// Sum of the products of both.
    products: f64,
    divergence: Sums,
    difference: Sums,
    /// Squares of the differences.
    squares: Sums,
    same_top: usize,
    divergences: Vec<f32>,
    differences: Vec<f32>,
}

/// Numbers for programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Of the model, and of the base file.
    perplexity: Estimate,
    perplexity_base: Estimate,
    /// Between the two logarithms, in 0 to 1.
    correlation: f64,
    ln_ratio: Estimate,
    divergence: Estimate,
    divergence_percentiles: Vec<(String, f64)>,
    /// Of the probability of the token that follows, model less base.
    difference: Estimate,
    difference_percentiles: Vec<(String, f64)>,
    difference_rms: Estimate,
    /// Share of tokens after which both have the same most likely one.
    same_top: Estimate,
}

impl Divergence {
    /// Adds a token.
    pub(super) fn add(&mut self, scored: &Scored<'_>, base: Row) {
        let nll = scored.nll();
        let nll_base = -f64::from(base.log_probability(scored.id as usize));
        self.nll.add(nll);
        self.nll_base.add(nll_base);
        self.products += nll * nll_base;
        let mut sum = 0.0;
        let (mut top, mut top_base) = (0, 0);
        for (id, &logit) in scored.logits.iter().enumerate() {
            let log_base = base.log_probability(id);
            if logit > scored.logits[top] {
                top = id;
            }
            if base.codes[id] > base.codes[top_base] {
                top_base = id;
            }
            if log_base > LEAST {
                let own = f64::from(logit) - scored.log_sum;
                sum += f64::from(log_base).exp() * (f64::from(log_base) - own);
            }
        }
        self.divergence.add(sum);
        self.divergences.push(sum as f32);
        // Several tokens may have the code of the most likely one.
        self.same_top += usize::from(base.codes[top] == base.codes[top_base]);
        let difference = (-nll).exp() - (-nll_base).exp();
        self.difference.add(difference);
        self.differences.push(difference as f32);
        self.squares.add(difference * difference);
    }

    fn perplexity(of: Sums) -> Estimate {
        let Estimate { mean, error } = of.estimate();
        Estimate { mean: mean.exp(), error: error * mean.exp() }
    }

    /// The covariance of the two means.
    fn covariance(&self) -> f64 {
        let n = self.nll.count as f64;
        let means = self.nll.sum / n * (self.nll_base.sum / n);
        if self.nll.count < 2 { 0.0 } else { (self.products / n - means) / (n - 1.0) }
    }

    fn ln_ratio(&self) -> Estimate {
        let [own, base] = [self.nll.estimate(), self.nll_base.estimate()];
        let variance = own.error.powi(2) + base.error.powi(2) - 2.0 * self.covariance();
        Estimate { mean: own.mean - base.mean, error: variance.max(0.0).sqrt() }
    }

    fn correlation(&self) -> f64 {
        let [own, base] = [self.nll.estimate(), self.nll_base.estimate()];
        let both = own.error * base.error;
        if both > 0.0 { (self.covariance() / both).clamp(-1.0, 1.0) } else { 1.0 }
    }

    fn difference_rms(&self) -> Estimate {
        let Estimate { mean, error } = self.squares.estimate();
        let rms = mean.sqrt();
        Estimate { mean: rms, error: if rms > 0.0 { error / (2.0 * rms) } else { 0.0 } }
    }

    fn same_top(&self) -> Estimate {
        let n = self.nll.count as f64;
        let mean = self.same_top as f64 / n;
        let error = if n < 2.0 { 0.0 } else { (mean * (1.0 - mean) / (n - 1.0)).sqrt() };
        Estimate { mean, error }
    }

    /// Writes the line of a window to stdout, behind a heading before the first.
    pub(super) fn line(&self, window: usize) -> Result<()> {
        let ppl = Self::perplexity(self.nll);
        let (ratio, divergence) = (self.ln_ratio(), self.divergence.estimate());
        let (rms, top) = (self.difference_rms(), self.same_top());
        let mut out = patient::stdout();
        let heading = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence      \
                       \u{394}p RMS            Same top p\n";
        let heading = if window == 0 { heading } else { "" };
        writeln!(
            out,
            "{heading}{:4} {:10.4} ± {:9.4} {:13.5} ± {:10.5} {:13.5} ± {:10.5} {:9.3} ± {:6.3} % \
             {:9.3} ± {:6.3} %",
            window + 1,
            ppl.mean,
            ppl.error,
            ratio.mean,
            ratio.error,
            divergence.mean,
            divergence.error,
            100.0 * rms.mean,
            100.0 * rms.error,
            100.0 * top.mean,
            100.0 * top.error
        )
        .and_then(|()| out.flush())
        .map_err(|e| Error::io(Path::new("stdout"), "write", e))
    }

    /// Returns all numbers.
    pub(super) fn report(&self) -> Report {
        let named = |values: &[f32]| -> Vec<(String, f64)> {
            let sorted = sorted(values);
            let of =
                |&(share, name): &(f64, &str)| (name.trim().into(), percentile(&sorted, share));
            PERCENTILES.iter().map(of).collect()
        };
        Report {
            perplexity: Self::perplexity(self.nll),
            perplexity_base: Self::perplexity(self.nll_base),
            correlation: self.correlation(),
            ln_ratio: self.ln_ratio(),
            divergence: self.divergence.estimate(),
            divergence_percentiles: named(&self.divergences),
            difference: self.difference.estimate(),
            difference_percentiles: named(&self.differences),
            difference_rms: self.difference_rms(),
            same_top: self.same_top(),
        }
    }

    /// Writes the statistics of all.
    pub(super) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let Report { perplexity: own, perplexity_base: base, ln_ratio, .. } = self.report();
        let line = |out: &mut dyn Write, name: &str, Estimate { mean, error }| {
            writeln!(out, "{name:<30}: {mean:10.6} ± {error:10.6}")
        };
        writeln!(out, "\n====== Perplexity statistics ======")?;
        line(out, "Mean PPL(Q)", own)?;
        line(out, "Mean PPL(base)", base)?;
        writeln!(out, "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * self.correlation())?;
        line(out, "Mean ln(PPL(Q)/PPL(base))", ln_ratio)?;
        let ratio = ln_ratio.mean.exp();
        line(
            out,
            "Mean PPL(Q)/PPL(base)",
            Estimate { mean: ratio, error: ratio * ln_ratio.error },
        )?;
        let covariance = own.mean * base.mean * self.covariance();
        let variance = own.error.powi(2) + base.error.powi(2) - 2.0 * covariance;
        let error = variance.max(0.0).sqrt();
        line(out, "Mean PPL(Q)-PPL(base)", Estimate { mean: own.mean - base.mean, error })?;

        writeln!(out, "\n====== KL divergence statistics ======")?;
        let Estimate { mean, error } = self.divergence.estimate();
        writeln!(out, "Mean    KLD: {mean:10.6} ± {error:10.6}")?;
        let values = sorted(&self.divergences);
        for (share, name) in PERCENTILES {
            // Of these llama-perplexity gives no quarters.
            if share != 0.25 && share != 0.75 {
                writeln!(out, "{name:<7} KLD: {:10.6}", percentile(&values, share))?;
            }
        }

        writeln!(out, "\n====== Token probability statistics ======")?;
        let percent = |out: &mut dyn Write, name: &str, Estimate { mean, error }| {
            writeln!(out, "{name}: {:6.3} ± {:5.3} %", 100.0 * mean, 100.0 * error)
        };
        percent(out, "Mean    \u{394}p", self.difference.estimate())?;
        let values = sorted(&self.differences);
        for (share, name) in PERCENTILES {
            writeln!(out, "{name:<7} \u{394}p: {:6.3}%", 100.0 * percentile(&values, share))?;
        }
        percent(out, "RMS \u{394}p    ", self.difference_rms())?;
        percent(out, "Same top p", self.same_top())
    }
}

fn sorted(values: &[f32]) -> Vec<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted
}

/// The number below which a share of sorted values lies, between two of them in proportion.
fn percentile(sorted: &[f32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let (below, part) = (place as usize, place.fract());
    let at = |i: usize| f64::from(sorted[i.min(last)]);
    (1.0 - part) * at(below) + part * at(below + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_values() {
        let values = sorted(&[3.0, 1.0, 2.0, 4.0]);
        for (share, expected) in [(0.0, 1.0), (1.0, 4.0), (0.5, 2.5), (1.0 / 3.0, 2.0)] {
            assert!((percentile(&values, share) - expected).abs() < 1e-9, "{share}");
        }
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    /// By hand, of two tokens.
    #[test]
    fn divergence_is_that_of_the_definition() {
        let mut found = Divergence::default();
        let logits = [0.0f32, 1.0];
        let log_sum = (1.0 + 1.0f64.exp()).ln();
        // Even chances: a log probability of -ln 2 for each code of 0.
        let half = 0.5f32.ln();
        for id in [0, 1] {
            let base = Row { scale: 0.0, least: half, codes: vec![0, 0] };
            found.add(&Scored { logits: &logits, log_sum, id }, base);
        }
        let p = [1.0 / (1.0 + 1.0f64.exp()), 1.0 - 1.0 / (1.0 + 1.0f64.exp())];
        let expected: f64 = p.iter().map(|p| 0.5 * (0.5f64.ln() - p.ln())).sum();
        assert!((found.divergence.estimate().mean - expected).abs() < 1e-7);
        assert!((found.difference.estimate().mean).abs() < 1e-7);
        assert!((found.difference_rms().mean - (p[1] - 0.5)).abs() < 1e-7);
        assert_eq!(found.same_top().mean, 1.0);
        let ppl = (-0.5 * (p[0].ln() + p[1].ln())).exp();
        assert!((found.report().perplexity.mean - ppl).abs() < 1e-9);
        assert!((found.report().perplexity_base.mean - 2.0).abs() < 1e-6);
    }
}
