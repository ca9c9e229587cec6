//! Prompt-lookup decoding: where the text goes on as it did before, what followed then is a draft of
//! what follows now. A batch of drafted tokens takes little longer than one token, and tells how many
//! of them the sampler would have chosen itself; only these are written.
//!
//! How often a draft comes true is known from the whole text, drafted or not, by the number of tokens
//! before it that agree; how long batches take is measured. So the length of a draft is the one with
//! most tokens per second expected, and where none is faster than one token at a time, nothing is
//! drafted.

use std::collections::HashMap;
use std::time::Duration;

/// Lengths of the n-grams that are looked up, the longest first.
const GRAMS: [usize; 3] = [LONGEST, 3, 2];
const LONGEST: usize = 4;
/// Fills shorter n-grams up: no token has this id.
const NO_TOKEN: u32 = u32::MAX;

/// From so many agreeing tokens on, the next one agrees as often as the second number says before
/// anything is known.
const AGREEING: [(usize, f64); 6] = [(0, 0.2), (3, 0.35), (4, 0.5), (5, 0.65), (8, 0.8), (16, 0.9)];
/// Tokens that count as much as what is assumed, and by what older ones lose against new ones.
const ASSUMED: f64 = 2.0;
const FADE: f64 = 0.97;

/// The time of a batch before it was measured: that of the next smaller one times this.
const ASSUMED_COST: f64 = 1.5;
/// How much faster a draft must promise to be.
const WORTHWHILE: f64 = 1.1;
/// What measured times lose for every token, so that what was slow once is tried again some day.
const FORGET: f64 = 0.9998;
/// Tokens of batches, at most, by classes: most kernels are made for 4 or 8 tokens, and take as long
/// for fewer.
const SIZES: [usize; 6] = [1, 4, 8, 16, 32, 64];
/// The longest draft, which with the token before it makes the largest batch.
pub const MAX_DRAFT: usize = SIZES[SIZES.len() - 1] - 1;

/// The text so far, and where it may go on as it did.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    text: Vec<u32>,
    /// The place behind the last occurrence of every n-gram.
    last: HashMap<[u32; LONGEST], usize>,
    source: Option<Source>,
    rates: [Rate; AGREEING.len()],
    costs: Costs,
}

/// A place in the text, and how many tokens before it agree with the end of the text.
#[derive(Clone, Copy, Debug)]
struct Source {
    next: usize,
    agree: usize,
}

impl Lookup {
    /// Appends a token of the text. Takes the same time however long the text is.
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

    /// Appends a draft of up to `most` tokens, as many as promise to be worth their time.
    pub fn draft(&self, most: usize, draft: &mut Vec<u32>) {
        if let Some(source) = self.source {
            // A text that repeats itself at once is drafted beyond its end.
            let repeated = self.text[source.next..].iter().cycle();
            draft.extend(repeated.take(self.length(source, most)));
        }
    }

    /// The length of the draft with the most tokens per time expected; 0: better none. A batch that was
    /// not measured yet is tried where the next smaller one was, and pays.
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

    /// How often the next token agrees after so many that do.
    fn rate(&self, agree: usize) -> f64 {
        let class = rate_of(agree);
        let Rate { seen, hits } = self.rates[class];
        (hits + ASSUMED * AGREEING[class].1) / (seen + ASSUMED)
    }

    /// How long a batch of so many tokens took.
    pub fn took(&mut self, tokens: usize, time: Duration) {
        self.costs.took(tokens, time.as_secs_f64());
    }
}

/// The number of the rate for so many agreeing tokens.
fn rate_of(agree: usize) -> usize {
    AGREEING.iter().rposition(|&(least, _)| agree >= least).unwrap_or(0)
}

/// How often something came true, lately.
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

/// Seconds that batches take, by classes of their sizes; 0: not measured yet. The first of a size counts
/// for none: it touches memory that the later ones find, which may take longer than the batch.
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
                // What takes longer than usual was disturbed, more often than not.
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

    /// The time of a batch, in times of one token, if both are known.
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

    /// A batch of so many tokens, after one that touched memory.
    fn measured(lookup: &mut Lookup, tokens: usize, ms: u64) {
        lookup.took(tokens, Duration::from_secs(9));
        lookup.took(tokens, Duration::from_millis(ms));
    }

    /// Batches that take as long as one token.
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
            // One token alone is no reason.
            (&[1, 2, 3, 1], &[]),
            (&[1, 2, 3, 4, 1, 2], &[3, 4, 1, 2, 3, 4]),
            // The longest n-gram counts, and of equals the last.
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
        // Nothing but repetition: the longest draft, while time is free.
        let repeated: Vec<u32> = (0..200).map(|i| i % 9).collect();
        let lookup = free(of(&repeated));
        assert_eq!(draft(&lookup, MAX_DRAFT + 9).len(), MAX_DRAFT);
        assert_eq!(draft(&lookup, 5).len(), 5);
        // Batches of more than 8 tokens take as long as their tokens.
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

    /// Of what is not known yet the smallest batch is tried, and the next one where it pays.
    #[test]
    fn larger_batches_are_tried_where_smaller_ones_pay() {
        let repeated: Vec<u32> = (0..200).map(|i| i % 9).collect();
        let mut lookup = of(&repeated);
        assert_eq!(draft(&lookup, 16).len(), 3);
        measured(&mut lookup, 1, 10);
        assert_eq!(draft(&lookup, 16).len(), 3);
        measured(&mut lookup, 4, 20);
        assert_eq!(draft(&lookup, 16).len(), 7);
        // The first of a size says nothing, however long it takes.
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

    /// Pairs that come again and again but never go on in the same way are not drafted for long, and
    /// what does repeat is drafted again.
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
