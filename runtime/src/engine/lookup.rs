//! Prompt-lookup decoding: where the end of the text repeats an earlier part of it, the tokens that
//! followed there are a draft of those to come. A batch of drafted tokens takes little longer than
//! one token and shows how many of them the sampler would have chosen itself; only these are
//! written.
//!
//! The rate at which drafts come true is estimated from the whole text, drafted or not, by the
//! number of agreeing tokens before; the times of batches are measured. The length of a draft is
//! the one with the most expected tokens per second; where none beats one token at a time, nothing
//! is drafted.

use std::collections::HashMap;
use std::time::Duration;

/// Lengths of the n-grams that are looked up, the longest first.
const GRAMS: [usize; 3] = [LONGEST, 3, 2];
const LONGEST: usize = 4;
/// Padding of shorter n-grams: no token has this id.
const NO_TOKEN: u32 = u32::MAX;

/// Prior probability that the next token agrees, by the least number of tokens before it that
/// agree.
const AGREEING: [(usize, f64); 6] = [(0, 0.2), (3, 0.35), (4, 0.5), (5, 0.65), (8, 0.8), (16, 0.9)];
/// Weight of the prior, in tokens, and the factor by which older observations fade at each new one.
const ASSUMED: f64 = 2.0;
const FADE: f64 = 0.97;

/// Assumed time of a batch that was not measured yet, relative to that of the next smaller size.
const ASSUMED_COST: f64 = 1.5;
/// Least expected speedup of a draft.
const WORTHWHILE: f64 = 1.1;
/// Factor on the measured times of other batch sizes at every batch, so that a size that was slow
/// once is tried again.
const FORGET: f64 = 0.9998;
/// Size classes of batches by their most tokens: most kernels are made for 4 or 8 tokens, and take
/// as long for fewer.
const SIZES: [usize; 6] = [1, 4, 8, 16, 32, 64];
/// The longest draft, which with the token before it makes the largest batch.
pub const MAX_DRAFT: usize = SIZES[SIZES.len() - 1] - 1;

/// Index of the text so far by its n-grams, for finding repetitions.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    text: Vec<u32>,
    /// Position behind the last occurrence of every n-gram.
    last: HashMap<[u32; LONGEST], usize>,
    source: Option<Source>,
    rates: [Rate; AGREEING.len()],
    costs: Costs,
}

/// A position in the text, and the number of tokens before it that agree with the end of the text.
#[derive(Clone, Copy, Debug)]
struct Source {
    next: usize,
    agree: usize,
}

impl Lookup {
    /// Appends a token of the text, in time independent of the text's length.
    pub fn push(&mut self, id: u32) {
        let followed = self.source.filter(|source| {
            let comes_true = self.text[source.next] == id;
            self.rates[rate_of(source.agree)].observe(comes_true);
            comes_true
        });
        self.text.push(id);
        let len = self.text.len();
        let mut found = None;
        for n in GRAMS.into_iter().filter(|&n| n <= len) {
            let mut gram = [NO_TOKEN; LONGEST];
            gram[..n].copy_from_slice(&self.text[len - n..]);
            let before = self.last.insert(gram, len);
            found = found.or(before.map(|next| Source { next, agree: n }));
        }
        let next = followed.map(|s| Source { next: s.next + 1, agree: s.agree + 1 });
        self.source = next.or(found);
    }

    /// Appends a draft of up to `most` tokens, as many as are expected to be worth their time.
    pub fn draft(&self, most: usize, draft: &mut Vec<u32>) {
        if let Some(source) = self.source {
            // A text that repeats itself at once is drafted beyond its end.
            let repeated = self.text[source.next..].iter().cycle();
            draft.extend(repeated.take(self.length(source, most)));
        }
    }

    /// Returns the length of the draft with the most expected tokens per time; 0: better none. A
    /// batch size that was not measured yet is tried where the next smaller one was measured and
    /// pays.
    fn length(&self, source: Source, most: usize) -> usize {
        // Tokens that one batch yields: the last one comes from the logits after those that agree.
        let (mut expected, mut all_agree, mut drafted) = (1.0, 1.0, 0);
        let (mut best, mut length) = (WORTHWHILE, 0);
        let mut cost = 1.0;
        for (class, size) in SIZES.into_iter().enumerate().skip(1) {
            while drafted < most.min(size - 1) {
                all_agree *= self.rate(source.agree + drafted);
                expected += all_agree;
                drafted += 1;
            }
            let measured = self.costs.of(class);
            cost = measured.unwrap_or(cost * ASSUMED_COST);
            let pays = expected / cost > WORTHWHILE;
            if expected / cost > best {
                (best, length) = (expected / cost, drafted);
            }
            let next_is_known = self.costs.of((class + 1).min(SIZES.len() - 1)).is_some();
            let may_try = pays && measured.is_some();
            if !(next_is_known || may_try) {
                break;
            }
        }
        length
    }

    /// Returns the estimated probability that the next token agrees after `agree` that do.
    fn rate(&self, agree: usize) -> f64 {
        let class = rate_of(agree);
        let Rate { seen, hits } = self.rates[class];
        (hits + ASSUMED * AGREEING[class].1) / (seen + ASSUMED)
    }

    /// Records the time of a batch of so many tokens.
    pub fn took(&mut self, tokens: usize, time: Duration) {
        self.costs.took(tokens, time.as_secs_f64());
    }
}

/// Index of the rate for so many agreeing tokens.
fn rate_of(agree: usize) -> usize {
    AGREEING.iter().rposition(|&(least, _)| agree >= least).unwrap_or(0)
}

/// Fading average of how often something came true.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    seen: f64,
    hits: f64,
}

impl Rate {
    fn observe(&mut self, hit: bool) {
        self.seen = self.seen * FADE + 1.0;
        self.hits = self.hits * FADE + f64::from(u8::from(hit));
    }
}

/// Seconds of a batch by size class; 0: not measured yet. The first batch of a size is not counted:
/// it touches memory that later ones find in place, which may take longer than the batch.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    seconds: [f64; SIZES.len()],
    begun: [bool; SIZES.len()],
}

impl Costs {
    fn took(&mut self, tokens: usize, seconds: f64) {
        let class = SIZES.partition_point(|&size| size < tokens).min(SIZES.len() - 1);
        let counts = std::mem::replace(&mut self.begun[class], true);
        for (other, known) in self.seconds.iter_mut().enumerate() {
            if other == class && counts {
                // A time longer than usual was more often than not disturbed.
                let weight = match *known {
                    0.0 => 1.0,
                    usual if seconds < usual => 0.5,
                    _ => 0.1,
                };
                *known += weight * (seconds - *known);
            } else if other != class && other > 0 {
                *known *= FORGET;
            }
        }
        // A batch is no faster than one of its tokens, and slower than all of them one by one only if
        // something else ran.
        let one = self.seconds[0];
        if one > 0.0 {
            for (known, size) in
                self.seconds.iter_mut().zip(SIZES).filter(|(known, _)| **known > 0.0)
            {
                *known = known.clamp(one, one * size as f64);
            }
        }
    }

    /// Returns the time of a batch in units of the time of one token, if both are known.
    fn of(self, class: usize) -> Option<f64> {
        let (one, own) = (self.seconds[0], self.seconds[class]);
        (one > 0.0 && own > 0.0).then(|| own / one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &[u32]) -> Lookup {
        let mut lookup = Lookup::default();
        text.iter().for_each(|&id| lookup.push(id));
        lookup
    }

    fn draft(lookup: &Lookup, most: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        lookup.draft(most, &mut draft);
        draft
    }

    /// Records a batch of so many tokens, after an uncounted first one.
    fn measured(lookup: &mut Lookup, tokens: usize, ms: u64) {
        lookup.took(tokens, Duration::from_secs(9));
        lookup.took(tokens, Duration::from_millis(ms));
    }

    /// Makes all batches take as long as one token.
    fn free(mut lookup: Lookup) -> Lookup {
        SIZES.into_iter().for_each(|size| measured(&mut lookup, size, 1));
        lookup
    }

    #[test]
    fn what_followed_follows_again() {
        let cases: [(&[u32], &[u32]); 7] = [
            (&[], &[]),
            (&[1], &[]),
            (&[1, 2, 3, 4, 5], &[]),
            // One agreeing token alone gives no draft.
            (&[1, 2, 3, 1], &[]),
            (&[1, 2, 3, 4, 1, 2], &[3, 4, 1, 2, 3, 4]),
            // The longest n-gram counts; among equals, the last.
            (&[9, 2, 3, 4, 5, 8, 2, 3, 7, 6, 9, 2, 3], &[4, 5, 8, 2, 3, 7]),
            (&[5, 5, 5, 5, 5, 5], &[5, 5, 5, 5, 5, 5]),
        ];
        for (text, expected) in cases {
            let drafted = draft(&free(of(text)), 6);
            assert!(drafted.len() >= 3 || expected.is_empty(), "{text:?}: {drafted:?}");
            assert_eq!(drafted[..], expected[..drafted.len()], "{text:?}");
            assert!(draft(&free(of(text)), 0).is_empty());
        }
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        // Pure repetition: the longest draft, as long as batches cost nothing.
        let repeated: Vec<u32> = (0..200).map(|i| i % 9).collect();
        let lookup = free(of(&repeated));
        assert_eq!(draft(&lookup, MAX_DRAFT + 9).len(), MAX_DRAFT);
        assert_eq!(draft(&lookup, 5).len(), 5);
        // Batches of more than 8 tokens take as long as their tokens one by one.
        let mut lookup = of(&repeated);
        for (tokens, ms) in [(1, 10), (4, 13), (8, 20), (16, 160), (32, 320), (64, 640)] {
            measured(&mut lookup, tokens, ms);
        }
        assert_eq!(draft(&lookup, MAX_DRAFT).len(), 7);
        // No batch pays.
        let mut lookup = of(&repeated);
        for size in SIZES {
            measured(&mut lookup, size, 10 * size as u64);
        }
        assert!(draft(&lookup, MAX_DRAFT).is_empty());
    }

    /// Among unmeasured sizes the smallest is tried first, and the next one where it pays.
    #[test]
    fn larger_batches_are_tried_where_smaller_ones_pay() {
        let repeated: Vec<u32> = (0..200).map(|i| i % 9).collect();
        let mut lookup = of(&repeated);
        assert_eq!(draft(&lookup, 16).len(), 3);
        measured(&mut lookup, 1, 10);
        assert_eq!(draft(&lookup, 16).len(), 3);
        measured(&mut lookup, 4, 20);
        assert_eq!(draft(&lookup, 16).len(), 7);
        // The first batch of a size does not count, however long it takes.
        let mut first = lookup.clone();
        first.took(8, Duration::from_secs(9));
        assert_eq!(draft(&first, 16).len(), 7);
        let mut slow = lookup.clone();
        measured(&mut slow, 8, 90);
        assert_eq!(draft(&slow, 16).len(), 3);
        measured(&mut lookup, 8, 30);
        assert_eq!(draft(&lookup, 16).len(), 15);
        measured(&mut lookup, 16, 50);
        assert_eq!((draft(&lookup, 16).len(), draft(&lookup, 5).len()), (15, 3));
    }

    /// Pairs that recur but never continue in the same way are soon no longer drafted; a real
    /// repetition is drafted again.
    #[test]
    fn drafts_that_fail_stop() {
        let mut lookup = free(of(&[]));
        let mut drafted = 0;
        for i in 0..300u32 {
            for id in [1, 2, 100 + i] {
                lookup.push(id);
                drafted += usize::from(id == 2 && !draft(&lookup, 4).is_empty());
            }
        }
        assert!(drafted < 20, "{drafted} of 300 drafts");
        (0..40).for_each(|i| lookup.push(1000 + i % 5));
        assert!(!draft(&lookup, 4).is_empty());
    }

    /// A batch that was slow once, because something else ran, is tried again.
    #[test]
    fn one_slow_batch_is_forgotten() {
        let repeated: Vec<u32> = (0..200).map(|i| i % 9).collect();
        let mut lookup = of(&repeated);
        SIZES[1..].iter().for_each(|&size| measured(&mut lookup, size, 1000));
        measured(&mut lookup, 1, 1);
        assert!(draft(&lookup, 16).is_empty());
        (0..1000).for_each(|_| lookup.took(1, Duration::from_millis(1)));
        assert!(!draft(&lookup, 16).is_empty());
    }
}
