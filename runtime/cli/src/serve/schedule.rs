//! Shares of the prompts in a pass through the model.
//!
//! Every text that is being written has a row in each pass. Beside these, prompts get as many tokens
//! as the model takes in a set time, so that a long prompt holds nobody up: the gap between two
//! tokens of a text is a pass without prompts and that time, which is longer where many prompts wait.
//! Where that is few tokens, which cost little less than some more, it is some more, if the pass is
//! still a short one. The prompt that is nearest to its end gets most of it, so that a short question
//! does not wait for a long text, and the oldest some, so that none waits for ever.

use std::time::Duration;

/// Time for prompts in a pass beside texts that are being written, in seconds, at least.
const BESIDE_TEXTS: f64 = 0.08;
/// The same for each prompt that waits, where that is more.
const EACH_PROMPT: f64 = 0.02;
/// Most prompts that are counted for it.
const MOST_PROMPTS: usize = 8;
/// Time for prompts in a pass of prompts alone. A request can be cancelled between two passes.
const ALONE: f64 = 0.5;
/// Tokens of prompts in a pass, at least, unless a batch is smaller or the pass would take longer than
/// [`LONGEST`] beside texts.
const FEWEST: usize = 12;
/// Time of a pass with [`FEWEST`] tokens of prompts beside texts, at most, in seconds: the deeper a
/// prompt is, the longer its tokens take.
const LONGEST: f64 = 0.2;
/// Share of a pass's prompts that is for others than the one nearest to its end: one part in so many.
const OTHERS: usize = 8;
/// The first guess of the speed at which prompts go through the model, in tokens per second.
const FIRST_GUESS: f64 = 128.0;
/// Weight of what was learnt before against a new measurement.
const MEMORY: f64 = 0.5;

/// What a pass through the model is for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Rows of texts that are being written.
    pub rows: usize,
    /// Prompts that wait.
    pub prompts: usize,
}

/// The speed of passes that prompts are part of, as it was measured lately.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Tokens per second.
    rate: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: FIRST_GUESS }
    }
}

impl Pace {
    /// Returns the number of tokens of prompts for a pass of at most `batch` tokens.
    pub fn budget(&self, Load { rows, prompts }: Load, batch: usize) -> usize {
        // A float that is too large for an integer becomes the largest one.
        let within = |time: f64| (self.rate * time) as usize;
        let (time, fewest) = match rows {
            0 => (ALONE, FEWEST),
            _ => {
                let time = EACH_PROMPT * prompts.min(MOST_PROMPTS) as f64;
                let fewest = within(LONGEST).saturating_sub(rows).clamp(1, FEWEST);
                (time.max(BESIDE_TEXTS), fewest)
            }
        };
        let most = batch.saturating_sub(rows).max(1);
        within(time).clamp(fewest.min(most), most)
    }

    /// Learns from a pass in which `rows` of texts and `tokens` of prompts, out of a `budget`, took so
    /// long.
    pub fn learn(&mut self, rows: usize, tokens: usize, budget: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if tokens == 0 || seconds <= 0.0 {
            return;
        }
        let rate = (rows + tokens) as f64 / seconds;
        // Few tokens take about as long as one: they say only that it is at least so fast.
        if tokens >= budget || rate > self.rate {
            self.rate = MEMORY * self.rate + (1.0 - MEMORY) * rate;
        }
    }
}

/// Shares `budget` tokens among prompts of which `left` are still to go through the model, the oldest
/// first. An eighth is shared equally, one token each among the oldest where there is no more: the oldest
/// goes on in every pass, and who waits becomes the oldest. The rest goes to the prompts with the fewest
/// left. Tokens of many prompts at once would be no faster, and all of their answers would begin late.
pub fn shares(budget: usize, left: &[usize]) -> Vec<usize> {
    let others = (budget / OTHERS).max(1);
    let equal = (others / left.len().max(1)).max(1);
    let mut shares = vec![0; left.len()];
    for (share, &left) in shares.iter_mut().zip(left).take(others) {
        *share = left.min(equal);
    }
    let mut rest = budget.saturating_sub(shares.iter().sum());
    let mut order: Vec<usize> = (0..left.len()).collect();
    // The sort is stable: of two with as many left, the older one is first.
    order.sort_by_key(|&prompt| left[prompt]);
    for prompt in order {
        let more = (left[prompt] - shares[prompt]).min(rest);
        shares[prompt] += more;
        rest -= more;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rows: usize, prompts: usize) -> Load {
        Load { rows, prompts }
    }

    #[test]
    fn the_prompt_nearest_to_its_end_gets_most_and_the_oldest_some() {
        let cases: [(usize, &[usize], &[usize]); 12] = [
            (100, &[], &[]),
            (100, &[4000], &[100]),
            (100, &[4000, 20], &[80, 20]),
            (100, &[20, 4000], &[20, 80]),
            (100, &[4000, 4000, 4000], &[92, 4, 4]),
            (100, &[4000, 300, 90], &[4, 6, 90]),
            (100, &[4000, 300], &[6, 94]),
            (12, &[4000, 20], &[1, 11]),
            (100, &[10, 10], &[10, 10]),
            (2, &[9, 9, 9], &[2, 0, 0]),
            (12, &[4000, 50, 50, 50], &[1, 11, 0, 0]),
            (24, &[128, 128, 128, 9, 128], &[13, 1, 1, 9, 0]),
        ];
        for (budget, left, expected) in cases {
            assert_eq!(shares(budget, left), expected, "{budget} among {left:?}");
        }
    }

    #[test]
    fn the_oldest_goes_on_and_nothing_is_lost() {
        for budget in 1..200 {
            for left in [vec![1, 500, 3, 40], vec![7; 30], vec![1], vec![300, 1, 1]] {
                let shares = shares(budget, &left);
                let total: usize = shares.iter().sum();
                assert!(shares.iter().zip(&left).all(|(share, left)| share <= left));
                assert!(shares[0] > 0, "{budget} among {left:?}");
                assert_eq!(total, budget.min(left.iter().sum()));
            }
        }
    }

    #[test]
    fn a_pass_takes_the_time_that_is_set() {
        let mut pace = Pace::default();
        // 400 tokens per second: 40 beside texts for five prompts, 200 alone.
        for _ in 0..20 {
            let budget = pace.budget(load(3, 5), 512);
            pace.learn(0, budget, budget, Duration::from_secs_f64(budget as f64 / 400.0));
        }
        assert!((39..=41).contains(&pace.budget(load(1, 5), 512)));
        // For few prompts 32, for many 64.
        assert!((31..=33).contains(&pace.budget(load(1, 1), 512)));
        assert!((62..=65).contains(&pace.budget(load(1, 30), 512)));
        assert!((195..=205).contains(&pace.budget(load(0, 5), 512)));
        assert_eq!(pace.budget(load(0, 5), 64), 64);
        assert_eq!(pace.budget(load(8, 5), 32), 24);
        assert_eq!(pace.budget(load(0, 5), 3), 3);
        assert_eq!(pace.budget(load(4, 5), 3), 1);
        // A short prompt, alone, is no measure of speed.
        pace.learn(0, 5, 200, Duration::from_millis(50));
        assert!((195..=205).contains(&pace.budget(load(0, 5), 512)));
        // Rows of texts are tokens like those of prompts: of 40 tokens in 0.1 s, 8 of texts, 40 go beside.
        let mut beside = Pace::default();
        for _ in 0..20 {
            beside.learn(8, 32, 32, Duration::from_millis(100));
        }
        assert!((39..=41).contains(&beside.budget(load(8, 5), 512)));
        // A busy neighbour is: within a few passes these are shorter.
        for _ in 0..6 {
            let budget = pace.budget(load(0, 5), 512);
            pace.learn(0, budget, budget, Duration::from_secs_f64(budget as f64 / 100.0));
        }
        assert!(pace.budget(load(0, 5), 512) < 60);
        assert_eq!(pace.budget(load(1, 5), 512), FEWEST);
    }

    #[test]
    fn few_tokens_are_fewer_where_a_pass_would_be_long() {
        // A pass takes 30 ms, and each of its tokens so many; of these, `rows` are of texts.
        let settled = |each_ms: f64, rows: usize| {
            let mut pace = Pace::default();
            let pass = |tokens: usize| (30.0 + each_ms * (rows + tokens) as f64) / 1e3;
            for _ in 0..40 {
                let budget = pace.budget(load(rows, 1), 512);
                pace.learn(rows, budget, budget, Duration::from_secs_f64(pass(budget)));
            }
            let budget = pace.budget(load(rows, 1), 512);
            (budget, pass(budget))
        };
        // At the beginning of a long prompt, and deep in it, where a token takes twice as long.
        let (shallow, deep) = (settled(12.0, 2), settled(24.0, 2));
        assert_eq!(shallow.0, FEWEST);
        assert!(deep.0 < FEWEST && deep.1 < LONGEST + 0.03, "{deep:?}");
        assert!(deep.0 > 1 && deep.1 > LONGEST - 0.03, "{deep:?}");
        // Texts alone may take so long: a prompt beside them still goes on.
        assert_eq!(settled(200.0, 2).0, 1);
    }
}
