//! Sampling: choosing the next token from the logits.
//!
//! The steps, their order and their defaults are llama.cpp's: biases, penalties, top-k, top-p, min-p,
//! temperature, then one draw. A temperature of 0 or below takes the most likely token instead.
//! Among equal logits the lowest id comes first. All arithmetic, the exponential included, is plain
//! IEEE f64, so that a seed gives the same text on every CPU.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use super::logprobs::{TokenLogprobs, ln};
use crate::cpu::model::Needs;
use crate::error::{Error, Result};

/// Largest `k` for which the best are found by insertion in one pass over the logits.
const SMALL_K: usize = 256;

/// Settings of a [`Sampler`]; the defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 or below: always the most likely token.
    pub temperature: f32,
    /// Number of most likely tokens to keep; 0: all.
    pub top_k: usize,
    /// Probability that the most likely tokens kept must reach together; 1: all.
    pub top_p: f32,
    /// Least probability of a kept token relative to the most likely one; 0: all.
    pub min_p: f32,
    /// Divisor of the positive logits of recent tokens, and factor of the others; 1: off.
    pub repeat_penalty: f32,
    /// Number of tokens that count as recent, for all penalties; 0: off.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of each recent token; 0: off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each recent token as often as it is recent; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids; minus infinity bans the token. Ids beyond the vocabulary are
    /// ignored.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the setting, the value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        const SUBTRACTED: &str = "-100 to 100; 0 turns it off";
        let subtracted = |penalty: f32| (-100.0..=100.0).contains(&penalty);
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature.is_finite() && self.temperature <= 100.0,
                "a number up to 100; 0 takes the most likely token",
            ),
            ("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "0 to 1; 1 turns it off"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1; 0 turns it off"),
            (
                "repeat_penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0 && self.repeat_penalty <= 100.0,
                "above 0 and up to 100; 1 turns it off",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                subtracted(self.presence_penalty),
                SUBTRACTED,
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                subtracted(self.frequency_penalty),
                SUBTRACTED,
            ),
        ];
        let allowed = |bias: f32| bias.is_finite() || bias == f32::NEG_INFINITY;
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !allowed(**bias)) {
            let expected = "a number, or -inf, which bans the token";
            return Err(Error::usage(
                "logit_bias",
                format_args!("{bias} for token {id}"),
                expected,
            ));
        }
        match checks.into_iter().find(|check| !check.2) {
            None => Ok(()),
            Some((setting, found, _, expected)) => Err(Error::usage(setting, found, expected)),
        }
    }

    /// True if recent tokens are penalised.
    fn penalises(&self) -> bool {
        let changes = self.repeat_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0;
        changes && self.repeat_last_n > 0
    }
}

/// Deterministic random numbers: xoshiro256** (Blackman and Vigna, 2018), its state filled by
/// SplitMix64 from the seed as its authors recommend.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// Starts the stream of a seed, a different one for each.
    pub fn new(mut seed: u64) -> Rng {
        let state = std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Rng { state }
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Returns a uniform number in [0, 1) of 53 random bits.
    fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// e^x for x <= 0, the same bits on every CPU (the C library's may differ in the last one).
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; the Taylor series to r^13 is exact to about 1e-16.
pub(super) fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E).round();
    let r = x - n * std::f64::consts::LN_2;
    let series = (1..=13).rev().fold(1.0, |sum, i| 1.0 + sum * r / f64::from(i));
    // -1011 <= n <= 0: the exponent of a normal number.
    let power = f64::from_bits(((1023 + n as i64) as u64) << 52);
    series * power
}

/// Token sampler; remembers the recent tokens for the penalty.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: Sampling,
    rng: Rng,
    /// Recent tokens, the oldest first; empty where there is no penalty.
    recent: VecDeque<u32>,
    /// Number of times that each of them is recent, at least 1.
    counts: BTreeMap<u32, usize>,
    /// Scratch for logits that are changed before the choice.
    changed: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    weights: Vec<f64>,
}

impl Sampler {
    /// Makes a sampler that has seen no token yet.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(config: Sampling) -> Result<Sampler> {
        config.validate()?;
        Ok(Sampler {
            rng: Rng::new(config.seed),
            config,
            recent: VecDeque::new(),
            counts: BTreeMap::new(),
            changed: Vec::new(),
            candidates: Vec::new(),
            weights: Vec::new(),
        })
    }

    /// Records a token of the text: each of the prompt and each generated one.
    pub fn accept(&mut self, id: u32) {
        if !self.config.penalises() {
            return;
        }
        if self.recent.len() >= self.config.repeat_last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Entry::Occupied(mut count) = self.counts.entry(oldest)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.recent.push_back(id);
        *self.counts.entry(id).or_insert(0) += 1;
    }

    /// Returns the logits that [`Sampler::sample`] needs for the next token: the best of them, where
    /// top-k or greedy sampling limits their number, and those that a bias or penalty changes. Each of
    /// the changed may have been among the best, so one more of the best is needed for each. The same
    /// needs serve any later token, if the tokens between are the first of `drafted`.
    #[must_use]
    pub fn needs(&self, drafted: &[u32]) -> Needs {
        let best = match self.config {
            Sampling { temperature, .. } if temperature <= 0.0 => 1,
            Sampling { top_k: 0, .. } => return Needs::All,
            Sampling { top_k, .. } => top_k,
        };
        let mut ids: Vec<u32> = self.config.logit_bias.keys().copied().collect();
        if self.config.penalises() {
            ids.extend(self.counts.keys().chain(drafted));
            ids.sort_unstable();
            ids.dedup();
        }
        Needs::Best { count: best.saturating_add(ids.len()), ids }
    }

    /// True if a bias of minus infinity bans a token.
    #[must_use]
    pub fn bans(&self, id: u32) -> bool {
        self.config.logit_bias.get(&id) == Some(&f32::NEG_INFINITY)
    }

    /// Samples the next token. NaN counts as minus infinity; where no logit is a number, all tokens
    /// banned for example, the lowest id is chosen.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.config.logit_bias.is_empty() && self.recent.is_empty() {
            return self.choose(logits);
        }
        self.sample_changed(logits, |_| ())
    }

    /// As [`Sampler::sample`], from logits that `change` changes first.
    pub fn sample_changed(&mut self, logits: &[f32], change: impl FnOnce(&mut [f32])) -> u32 {
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        change(&mut changed);
        for (&id, bias) in &self.config.logit_bias {
            if let Some(logit) = changed.get_mut(id as usize) {
                *logit += bias;
            }
        }
        self.penalise(&mut changed);
        let id = self.choose(&changed);
        self.changed = changed;
        id
    }

    /// Returns the log probability with which the last token was drawn, `id`, and those of the `top` most
    /// likely ones. A token that is taken without a draw has the probability 1.
    #[must_use]
    pub fn logprobs(&self, id: u32, top: usize) -> TokenLogprobs {
        let total: f64 = self.weights.iter().sum();
        let drawn = self.candidates.iter().zip(&self.weights).filter(|(_, weight)| **weight > 0.0);
        let mut logprobs = drawn.map(|(&(_, id), weight)| (id, -ln(total / weight)));
        let own = logprobs.clone().find(|(other, _)| *other == id).map(|(_, logprob)| logprob);
        TokenLogprobs {
            id,
            logprob: own.unwrap_or(f64::NEG_INFINITY),
            top: logprobs.by_ref().take(top).collect(),
        }
    }

    /// Penalises the logit of each recent token: the repeat penalty counts once however often it is
    /// recent, and so does the presence penalty.
    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.config;
        for (&id, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                if *logit > 0.0 {
                    *logit /= repeat_penalty;
                } else {
                    *logit *= repeat_penalty;
                }
                *logit -= count as f32 * frequency_penalty + presence_penalty;
            }
        }
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let best = argmax(logits);
        let max = logits.get(best as usize).copied().unwrap_or(f32::NAN);
        // An infinite best logit leaves nothing to draw: its weight would be inf - inf.
        if self.config.temperature <= 0.0 || !max.is_finite() {
            self.candidates.clear();
            self.candidates.push((max, best));
            self.weights.clear();
            self.weights.push(1.0);
            return best;
        }
        let k = match self.config.top_k {
            0 => logits.len(),
            k => k,
        };
        best_of(logits, k, &mut self.candidates);
        self.weigh(1.0);
        self.cut_top_p();
        self.cut_min_p();
        self.weigh(f64::from(self.config.temperature));
        self.draw()
    }

    /// Computes the unnormalised probabilities of the candidates; the first one's is 1.
    fn weigh(&mut self, temperature: f64) {
        let max = self.candidates.first().map_or(0.0, |c| f64::from(c.0));
        self.weights.clear();
        self.weights
            .extend(self.candidates.iter().map(|c| exp((f64::from(c.0) - max) / temperature)));
    }

    fn cut_top_p(&mut self) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.weights.iter().sum();
        let mut reached = 0.0;
        let keep = self.weights.iter().position(|w| {
            reached += w / total;
            reached >= f64::from(self.config.top_p)
        });
        if let Some(last) = keep {
            self.candidates.truncate(last + 1);
            self.weights.truncate(last + 1);
        }
    }

    fn cut_min_p(&mut self) {
        // The first weight is 1, so a weight is the probability relative to the best.
        let keep = self.weights.partition_point(|&w| w >= f64::from(self.config.min_p));
        self.candidates.truncate(keep.max(1));
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.weights.iter().sum();
        let mut left = self.rng.next_f64() * total;
        let drawn = self.weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        // Rounding may leave a small rest beyond the last candidate.
        let drawn = drawn.unwrap_or(self.candidates.len().saturating_sub(1));
        self.candidates.get(drawn).map_or(0, |c| c.1)
    }
}

/// Fills `best` with the `k` largest logits and their ids, in descending order, the lowest id first
/// among equal ones; NaN is left out.
pub(super) fn best_of(logits: &[f32], k: usize, best: &mut Vec<(f32, u32)>) {
    let k = k.min(logits.len());
    best.clear();
    let all = logits.iter().zip(0u32..).filter(|(l, _)| !l.is_nan());
    if k == 0 {
        return;
    }
    if k <= SMALL_K {
        for (&logit, id) in all {
            if best.len() == k {
                if logit <= best[k - 1].0 {
                    continue;
                }
                best.pop();
            }
            // After those that are equal: they have lower ids.
            let at = best.partition_point(|c| c.0 >= logit);
            best.insert(at, (logit, id));
        }
    } else {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        // 0.0 joins -0.0: they are equal logits.
        best.extend(all.map(|(&logit, id)| (logit + 0.0, id)));
        if k < best.len() {
            best.select_nth_unstable_by(k, order);
            best.truncate(k);
        }
        best.sort_unstable_by(order);
    }
}

/// Returns the id of the largest logit, the lowest of equal ones; NaN never wins.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut max = f32::NAN;
    for (&logit, id) in logits.iter().zip(0u32..) {
        if logit > max || (max.is_nan() && !logit.is_nan()) {
            (best, max) = (id, logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: BTreeMap::new(),
        seed: 7,
    };

    /// Counts each id in 20000 draws.
    fn histogram(config: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(config).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits) as usize] += 1;
        }
        counts
    }

    /// Checks that the needs are the best logits and those that a bias or penalty changes, now or
    /// once drafted tokens are in the text.
    #[test]
    fn what_may_be_changed_is_needed() {
        let greedy = || Sampling { temperature: 0.0, ..PLAIN };
        let needs = |config: Sampling, drafted: &[u32]| {
            let mut sampler = Sampler::new(config).unwrap();
            [8, 3, 8].into_iter().for_each(|id| sampler.accept(id));
            sampler.needs(drafted)
        };
        let best = |count, ids: &[u32]| Needs::Best { count, ids: ids.to_vec() };
        assert_eq!(needs(PLAIN, &[5]), Needs::All);
        assert_eq!(&needs(greedy(), &[5]), Needs::GREEDY);
        let logit_bias = BTreeMap::from([(7, 1.5), (1, f32::NEG_INFINITY)]);
        let biased = Sampling { logit_bias, ..greedy() };
        assert_eq!(needs(biased.clone(), &[5]), best(3, &[1, 7]));
        for penalty in [
            Sampling { repeat_penalty: 1.1, ..greedy() },
            Sampling { presence_penalty: -0.5, ..greedy() },
            Sampling { frequency_penalty: 0.1, ..greedy() },
        ] {
            assert_eq!(needs(penalty.clone(), &[]), best(3, &[3, 8]));
            let both = Sampling { logit_bias: biased.logit_bias.clone(), ..penalty.clone() };
            assert_eq!(needs(both, &[5, 3, 9]), best(7, &[1, 3, 5, 7, 8, 9]));
            assert_eq!(&needs(Sampling { repeat_last_n: 0, ..penalty }, &[5]), Needs::GREEDY);
        }
        let top_k = Sampling { top_k: 40, repeat_penalty: 1.1, ..PLAIN };
        assert_eq!(needs(top_k, &[5]), best(43, &[3, 5, 8]));
    }

    #[test]
    fn biases_come_before_penalties_and_bans_hold() {
        let greedy = |logit_bias: &[(u32, f32)]| Sampling {
            temperature: 0.0,
            logit_bias: logit_bias.iter().copied().collect(),
            ..PLAIN
        };
        let sample = |config: Sampling, recent: &[u32], logits: &[f32]| {
            let mut sampler = Sampler::new(config).unwrap();
            recent.iter().for_each(|&id| sampler.accept(id));
            sampler.sample(logits)
        };
        const BAN: f32 = f32::NEG_INFINITY;
        let logits = [1.0, 3.0, 2.0];
        assert_eq!(sample(greedy(&[]), &[], &logits), 1);
        assert_eq!(sample(greedy(&[(0, 2.5)]), &[], &logits), 0);
        assert_eq!(sample(greedy(&[(1, -1.5)]), &[], &logits), 2);
        assert_eq!(sample(greedy(&[(1, BAN), (9, 4.0)]), &[], &logits), 2);
        assert_eq!(sample(greedy(&[(1, BAN), (2, BAN)]), &[1, 2], &logits), 0);
        assert_eq!(sample(greedy(&[(0, BAN), (1, BAN), (2, BAN)]), &[], &logits), 0);
        // (-1 + 4) / 2 = 1.5; penalised before the bias it would be -1 * 2 + 4 = 2.
        let penalised =
            |logit_bias: &[(u32, f32)]| Sampling { repeat_penalty: 2.0, ..greedy(logit_bias) };
        assert_eq!(sample(penalised(&[(0, 4.0)]), &[0], &[-1.0, 1.6]), 1);
        assert_eq!(sample(penalised(&[(0, 4.0)]), &[0], &[-1.0, 1.4]), 0);
        let sampler = Sampler::new(greedy(&[(1, BAN), (2, -9.0)])).unwrap();
        assert_eq!([1, 2, 3].map(|id| sampler.bans(id)), [true, false, false]);
        // A banned token is never drawn, however hot.
        let hot = Sampling { temperature: 100.0, ..PLAIN };
        let counts = histogram(Sampling { logit_bias: [(1, BAN)].into(), ..hot }, &logits);
        assert!(counts[1] == 0 && counts[0] > 8000 && counts[2] > 8000, "{counts:?}");
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let sample = |config: Sampling, recent: &[u32], logits: &[f32]| {
            let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..config }).unwrap();
            recent.iter().for_each(|&id| sampler.accept(id));
            sampler.sample(logits)
        };
        let presence = || Sampling { presence_penalty: 1.0, ..PLAIN };
        assert_eq!(sample(presence(), &[0, 0, 0], &[2.5, 1.4]), 0);
        assert_eq!(sample(presence(), &[0], &[2.5, 1.6]), 1);
        let frequency = || Sampling { frequency_penalty: 0.5, ..PLAIN };
        assert_eq!(sample(frequency(), &[0, 0], &[2.5, 1.4]), 0);
        assert_eq!(sample(frequency(), &[0, 0, 0], &[2.5, 1.4]), 1);
        // What has left the window does not count, and a negative penalty favours what is recent.
        let short = Sampling { repeat_last_n: 2, ..frequency() };
        assert_eq!(sample(short, &[0, 0, 0], &[2.5, 1.4]), 0);
        assert_eq!(sample(Sampling { presence_penalty: -2.0, ..PLAIN }, &[1], &[2.5, 1.4]), 1);
    }

    #[test]
    fn probabilities_of_a_draw_are_those_of_what_is_left() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let mut sampler = Sampler::new(Sampling { top_k: 2, ..PLAIN }).unwrap();
        let id = sampler.sample(&logits);
        let found = sampler.logprobs(id, 9);
        let near = |logprob: f64, p: f64| (TokenLogprobs::probability(logprob) - p).abs() < 1e-7;
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), [0, 1]);
        assert!(near(found.top[0].1, 2.0 / 3.0) && near(found.top[1].1, 1.0 / 3.0), "{found:?}");
        assert_eq!(found.top[id as usize].1.to_bits(), found.logprob.to_bits());
        assert_eq!(sampler.logprobs(3, 1).logprob, f64::NEG_INFINITY);
        let mut greedy = Sampler::new(Sampling { temperature: 0.0, ..PLAIN }).unwrap();
        assert_eq!(greedy.sample(&logits), 0);
        let found = greedy.logprobs(0, 9);
        assert_eq!((TokenLogprobs::probability(found.logprob), found.top.len()), (1.0, 1));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits_and_survives_nan() {
        const INF: f32 = f32::INFINITY;
        let cases: &[(&[f32], u32)] = &[
            (&[1.0, 3.0, 3.0, 2.0], 1),
            (&[0.0, -0.0], 0),
            (&[-0.0, 0.0], 0),
            (&[f32::NAN, -5.0, f32::NAN, -4.0], 3),
            (&[f32::NAN, f32::NAN], 0),
            (&[-INF, -INF], 0),
            (&[1.0, INF, INF], 1),
            (&[], 0),
        ];
        for (logits, id) in cases {
            for temperature in [0.0, -1.0] {
                let config = Sampling { temperature, ..PLAIN };
                let got = Sampler::new(config).unwrap().sample(logits);
                assert_eq!(got, *id, "{logits:?}");
            }
            // No panic at any temperature either; the id stays inside.
            let got = Sampler::new(PLAIN).unwrap().sample(logits);
            assert!((got as usize) < logits.len().max(1), "{logits:?}");
        }
    }

    #[test]
    fn filters_keep_what_they_should() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits: Vec<f32> = [0.25f32, 0.5, 0.125, 0.125].map(f32::ln).into();
        let cases: &[(&str, Sampling, &[u32])] = &[
            ("all", PLAIN, &[0, 1, 2, 3]),
            ("top-k 1", Sampling { top_k: 1, ..PLAIN }, &[1]),
            ("top-k 3, the lower id of equals", Sampling { top_k: 3, ..PLAIN }, &[0, 1, 2]),
            ("top-k over the vocabulary", Sampling { top_k: 9, ..PLAIN }, &[0, 1, 2, 3]),
            ("top-p keeps the one that reaches it", Sampling { top_p: 0.6, ..PLAIN }, &[0, 1]),
            ("top-p 0 keeps the best", Sampling { top_p: 0.0, ..PLAIN }, &[1]),
            ("min-p", Sampling { min_p: 0.4, ..PLAIN }, &[0, 1]),
            ("min-p 1", Sampling { min_p: 1.0, ..PLAIN }, &[1]),
            (
                "top-p sees the probabilities after top-k",
                Sampling { top_k: 2, top_p: 0.66, ..PLAIN },
                &[1],
            ),
        ];
        for (name, config, kept) in cases {
            let counts = histogram(config.clone(), &logits);
            let drawn: Vec<u32> = (0..4).filter(|&i| counts[i as usize] > 0).collect();
            assert_eq!(drawn, *kept, "{name}: {counts:?}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_temperature() {
        let logits: Vec<f32> = [0.2f32, 0.8].map(f32::ln).into();
        // At temperature 2 the odds 4:1 become 2:1, at 0.5 they become 16:1.
        for (temperature, share) in [(1.0, 0.8), (2.0, 2.0 / 3.0), (0.5, 16.0 / 17.0)] {
            let config = Sampling { temperature, ..PLAIN };
            let got = f64::from(histogram(config, &logits)[1]) / 20_000.0;
            // Five standard deviations of 20000 draws are below 0.017.
            assert!((got - share).abs() < 0.017, "{temperature}: {got}");
        }
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits() {
        let config = Sampling { temperature: 0.0, repeat_penalty: 2.0, repeat_last_n: 2, ..PLAIN };
        let mut s = Sampler::new(config).unwrap();
        let logits = [4.0, 3.0, 1.0];
        assert_eq!(s.sample(&logits), 0);
        s.accept(0);
        // Twice in the window still counts once: 4 / 2 = 2 > 1.
        s.accept(0);
        assert_eq!(s.sample(&logits), 1);
        s.accept(1);
        assert_eq!(s.sample(&[4.0, 3.0, 1.9]), 0);
        s.accept(2);
        // 0 has left the window of two.
        assert_eq!(s.sample(&logits), 0);
        assert_eq!(s.sample(&[-9.0, -1.0, -1.5]), 1);
        assert_eq!(s.sample(&[-1.8, -1.0, -1.5]), 0);
        // An id outside the logits is ignored.
        s.accept(u32::MAX);
        assert_eq!(s.sample(&logits), 0);
    }

    /// Compares with the definition: each distinct token of the last `n` is penalised once.
    #[test]
    fn h7_the_penalty_is_that_of_the_last_tokens_whatever_came_before() {
        let mut rng = Rng::new(3);
        for (n, distinct) in [(1, 3), (2, 2), (7, 4), (64, 100), (64, 20), (300, 1000)] {
            let config = Sampling { repeat_penalty: 1.3, repeat_last_n: n, ..PLAIN };
            let mut sampler = Sampler::new(config.clone()).unwrap();
            let mut text = Vec::new();
            for step in 0..1000 {
                let id = (rng.next_u64() % distinct) as u32;
                sampler.accept(id);
                text.push(id);
                if step % 7 > 0 {
                    continue;
                }
                // The last ids of the text lie beyond the logits.
                let len = distinct as usize - 1;
                let mut found: Vec<f32> =
                    (0..len).map(|_| (rng.next_f64() * 8.0 - 4.0) as f32).collect();
                let mut expected = found.clone();
                let window = &text[text.len().saturating_sub(n)..];
                for (i, &id) in window.iter().enumerate() {
                    if let Some(logit) = expected.get_mut(id as usize)
                        && !window[..i].contains(&id)
                    {
                        *logit = if *logit > 0.0 { *logit / 1.3 } else { *logit * 1.3 };
                    }
                }
                sampler.penalise(&mut found);
                let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&expected), "{n} of {distinct}, step {step}");
                let mut ids = window.to_vec();
                ids.sort_unstable();
                ids.dedup();
                let count = ids.len() + 1;
                let greedy = Sampling { temperature: 0.0, ..config.clone() };
                let needs = Sampler { config: greedy, ..sampler.clone() }.needs(&[]);
                assert_eq!(needs, Needs::Best { count, ids });
            }
        }
    }

    #[test]
    fn a_seed_gives_one_sequence() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
        let run = |seed| {
            let config = Sampling { seed, ..Sampling::default() };
            let mut s = Sampler::new(config).unwrap();
            (0..50).map(|_| s.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn both_ways_to_the_top_k_agree() {
        // Many equal logits, signed zeros and NaN.
        let logits: Vec<f32> = (0..5000u32)
            .map(|i| match i % 13 {
                0 => f32::NAN,
                1 => -0.0,
                2 => 0.0,
                r => ((i.wrapping_mul(2_654_435_761) >> 24) % 40) as f32 - 20.0 + r as f32,
            })
            .collect();
        let top = |k| {
            let mut best = Vec::new();
            best_of(&logits, k, &mut best);
            best.iter().map(|c| c.1).collect::<Vec<_>>()
        };
        assert!(top(0).is_empty());
        let all = top(logits.len());
        assert_eq!(all.len(), logits.iter().filter(|l| !l.is_nan()).count());
        for k in [1, 40, SMALL_K, SMALL_K + 1, 4000] {
            assert_eq!(top(k), all[..k], "{k}");
        }
    }

    #[test]
    fn exp_is_close_to_the_real_one() {
        for i in 0..70_000 {
            let x = -f64::from(i) / 100.0;
            let relative = (exp(x) - x.exp()).abs() / x.exp();
            assert!(relative < 1e-12, "{x}: {relative}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn numbers_out_of_range_are_usage_errors() {
        let bad = [
            Sampling { temperature: f32::NAN, ..PLAIN },
            Sampling { temperature: f32::INFINITY, ..PLAIN },
            Sampling { temperature: 999_999.0, ..PLAIN },
            Sampling { top_p: -1.0, ..PLAIN },
            Sampling { min_p: 2.0, ..PLAIN },
            Sampling { repeat_penalty: 0.0, ..PLAIN },
            Sampling { repeat_penalty: f32::NAN, ..PLAIN },
            Sampling { presence_penalty: f32::NAN, ..PLAIN },
            Sampling { frequency_penalty: 101.0, ..PLAIN },
            Sampling { logit_bias: [(3, f32::NAN)].into(), ..PLAIN },
            Sampling { logit_bias: [(3, f32::INFINITY)].into(), ..PLAIN },
        ];
        for config in bad {
            let error = Sampler::new(config).expect_err("out of range");
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}
