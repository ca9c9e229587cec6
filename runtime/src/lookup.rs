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

/// What a token more adds to a batch, in times of one token, before it was measured.
const ASSUMED_COST: f64 = 0.15;
/// How much faster a draft must promise to be.
const WORTHWHILE: f64 = 1.1;
/// Classes of batches: of up to 1, 2, 4, 8, 16, 32 and 64 tokens.
const SIZES: usize = 7;
/// The longest draft, which with the token before it makes the largest batch.
pub const MAX_DRAFT: usize = (1 << (SIZES - 1)) - 1;

/// The text so far, and where it may go on as it did.
#[derive(Debug, Default)]
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

    /// Drafts up to `most` tokens, as many as promise to be worth their time.
    pub fn draft(&self, most: usize, draft: &mut Vec<u32>) {
        draft.clear();
        if let Some(source) = self.source {
            // A text that repeats itself at once is drafted beyond its end.
            let repeated = self.text[source.next..].iter().cycle();
            draft.extend(repeated.take(self.length(source, most)));
        }
    }

    /// The length of the draft with the most tokens per time expected; 0: better none.
    fn length(&self, source: Source, most: usize) -> usize {
        // Tokens that one batch yields: the last one comes from the logits after those that agree.
        let (mut expected, mut all_agree) = (1.0, 1.0);
        let (mut best, mut length) = (WORTHWHILE, 0);
        for drafted in 1..=most.min(MAX_DRAFT) {
            all_agree *=
                self.rates[rate_of(source.agree + drafted - 1)].of(source.agree + drafted - 1);
            expected += all_agree;
            let batch = drafted + 1;
            // Batches of other sizes are seldom faster than the next larger one of these.
            let speed = expected / self.costs.of(batch);
            if (batch.is_power_of_two() || drafted == most) && speed > best {
                (best, length) = (speed, drafted);
            }
        }
        length
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

    fn of(self, agree: usize) -> f64 {
        let assumed = AGREEING[rate_of(agree)].1;
        (self.hits + ASSUMED * assumed) / (self.seen + ASSUMED)
    }
}

/// Seconds that batches take, by classes of their sizes; 0: not measured yet.
#[derive(Clone, Copy, Debug, Default)]
struct Costs([f64; SIZES]);

impl Costs {
    fn class(tokens: usize) -> usize {
        (tokens.next_power_of_two().ilog2() as usize).min(SIZES - 1)
    }

    fn took(&mut self, tokens: usize, seconds: f64) {
        let class = Self::class(tokens);
        let own = &mut self.0[class];
        // What takes longer than usual was disturbed, more often than not.
        let weight = match *own {
            0.0 => 1.0,
            usual if seconds < usual => 0.5,
            _ => 0.1,
        };
        *own += weight * (seconds - *own);
        // What was slow once is tried again some day.
        for other in (1..SIZES).filter(|&other| other != class) {
            let assumed = self.0[0] * Self::assumed(1 << other);
            self.0[other] = (self.0[other] * 0.998).max(assumed.min(self.0[other]));
        }
    }

    fn assumed(tokens: usize) -> f64 {
        1.0 + ASSUMED_COST * (tokens - 1) as f64
    }

    /// The time of a batch, in times of one token.
    fn of(self, tokens: usize) -> f64 {
        let (one, own) = (self.0[0], self.0[Self::class(tokens)]);
        if one > 0.0 && own > 0.0 { own / one } else { Self::assumed(tokens) }
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
        let mut draft = vec![7; 3];
        lookup.draft(most, &mut draft);
        draft
    }

    /// Batches that take as long as one token.
    fn free(mut lookup: Lookup) -> Lookup {
        (0..SIZES).for_each(|class| lookup.took(1 << class, Duration::from_millis(1)));
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
        for (tokens, ms) in [(1, 10), (2, 11), (4, 13), (8, 20), (16, 160), (32, 320), (64, 640)] {
            lookup.took(tokens, Duration::from_millis(ms));
        }
        assert_eq!(draft(&lookup, MAX_DRAFT).len(), 7);
        // No batch pays.
        let mut lookup = of(&repeated);
        for class in 0..SIZES {
            lookup.took(1 << class, Duration::from_millis(10 << class));
        }
        assert!(draft(&lookup, MAX_DRAFT).is_empty());
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
        for class in 1..SIZES {
            lookup.took(1 << class, Duration::from_secs(1));
        }
        lookup.took(1, Duration::from_millis(1));
        assert!(draft(&lookup, 16).is_empty());
        (0..5000).for_each(|_| lookup.took(1, Duration::from_millis(1)));
        assert!(!draft(&lookup, 16).is_empty());
    }
}
