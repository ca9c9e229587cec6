//! Successive halving against a sentinel. A round times every candidate that is left, in blocks
//! that begin and end with the sentinel; a candidate's sample counts as its ratio to the two
//! sentinel samples around it, so that a machine that slows down slows both. A block in which the
//! sentinel itself moved is thrown away and repeated, and so is a sample in which the system gave
//! the CPU of a worker to somebody else.

use crate::stats::{mad, median};
use crate::{Result, stats};

/// Rounds between two cuts, each of which keeps the better half.
const ROUNDS: usize = 3;
/// Candidates that are never cut.
const FINALISTS: usize = 4;
/// Rounds after which more say nothing new.
const MOST_ROUNDS: usize = 30;
/// Candidates between two sentinel samples.
const BLOCK: usize = 6;
/// The least movement of the sentinel that spoils a block.
const DRIFT: f64 = 0.03;
/// A set of candidates whose best is this much slower than what there is already is given up after
/// the first cut.
const HOPELESS: f64 = 1.25;

/// Who is to be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrant {
    Sentinel,
    Candidate(usize),
}

/// One timing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Microseconds per job.
    pub us: f64,
    /// Seconds that taking the sample cost.
    pub cost: f64,
    /// Whether something else ran in its stead meanwhile.
    pub disturbed: bool,
}

/// What a candidate showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// Microseconds per job.
    pub us: Vec<f64>,
    /// Each of them over the sentinel's.
    pub ratios: Vec<f64>,
    /// How much larger each ratio would be, had only the faster of the two sentinel samples been
    /// right.
    pub slack: Vec<f64>,
    /// Whether it was still in the race at the end.
    pub finalist: bool,
}

/// The end of a tournament.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// One for each candidate.
    pub entries: Vec<Entry>,
    /// All samples of the sentinel.
    pub sentinel_us: Vec<f64>,
    /// Whether half the budget went into what was thrown away; what came after was kept.
    pub disturbed: bool,
}

impl Outcome {
    /// The best median ratio.
    pub(crate) fn best(&self) -> Option<f64> {
        let finalists = self.entries.iter().filter(|entry| entry.finalist);
        finalists.map(|entry| median(&entry.ratios)).min_by(f64::total_cmp)
    }
}

/// Times `candidates` candidates for about `budget` seconds, and each at least once. Where the
/// sentinel is itself a candidate, `sentinel` is its number: its ratio is 1 by definition.
/// `to_beat` is the best ratio that is known.
pub(crate) fn run(
    candidates: usize,
    sentinel: Option<usize>,
    budget: f64,
    to_beat: Option<f64>,
    sample: impl FnMut(Entrant) -> Result<Sample>,
) -> Result<Outcome> {
    let mut tournament = Tournament {
        sample,
        budget,
        spent: 0.0,
        wasted: 0.0,
        outcome: Outcome {
            entries: vec![Entry::default(); candidates],
            sentinel_us: Vec::new(),
            disturbed: false,
        },
    };
    let mut left: Vec<usize> = (0..candidates).filter(|&c| Some(c) != sentinel).collect();
    for round in 1..=MOST_ROUNDS {
        tournament.round(&left, round)?;
        if tournament.spent >= budget {
            break;
        }
        if round % ROUNDS == 0 {
            let ratio = |&c: &usize| median(&tournament.outcome.entries[c].ratios);
            left.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
            let best = left.first().map(ratio);
            left.truncate(left.len().div_ceil(2).max(FINALISTS));
            left.sort_unstable();
            if best.zip(to_beat).is_some_and(|(best, to_beat)| best > HOPELESS * to_beat) {
                break;
            }
        }
    }
    let mut outcome = tournament.outcome;
    for c in left {
        outcome.entries[c].finalist = true;
    }
    if let Some(c) = sentinel {
        outcome.entries[c] = Entry {
            us: outcome.sentinel_us.clone(),
            ratios: vec![1.0; outcome.sentinel_us.len()],
            slack: Vec::new(),
            finalist: true,
        };
    }
    Ok(outcome)
}

struct Tournament<F> {
    sample: F,
    budget: f64,
    spent: f64,
    wasted: f64,
    outcome: Outcome,
}

impl<F: FnMut(Entrant) -> Result<Sample>> Tournament<F> {
    /// Times every candidate of `left` once; with none left, the sentinel alone.
    fn round(&mut self, left: &[usize], round: usize) -> Result<()> {
        if left.is_empty() {
            return self.block(&[]);
        }
        // Nobody always follows the sentinel.
        let start = round % left.len();
        let order: Vec<usize> = left[start..].iter().chain(&left[..start]).copied().collect();
        for block in order.chunks(BLOCK) {
            self.block(block)?;
            if round > 1 && self.spent >= self.budget {
                break;
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &[usize]) -> Result<()> {
        loop {
            let spent = self.spent;
            let before = self.time(Entrant::Sentinel)?;
            let times = block
                .iter()
                .map(|&c| self.time(Entrant::Candidate(c)))
                .collect::<Result<Vec<f64>>>()?;
            let after = self.time(Entrant::Sentinel)?;
            let seen = &self.outcome.sentinel_us;
            let usual = if seen.is_empty() { 0.0 } else { 3.0 * mad(seen) / median(seen) };
            let moved = (after / before - 1.0).abs() > usual.max(DRIFT);
            if moved && self.may_waste(self.spent - spent) {
                continue;
            }
            self.outcome.sentinel_us.extend([before, after]);
            for (&c, us) in block.iter().zip(times) {
                let entry = &mut self.outcome.entries[c];
                entry.us.push(us);
                let ratio = us / ((before + after) / 2.0);
                entry.ratios.push(ratio);
                entry.slack.push(us / before.min(after) - ratio);
            }
            return Ok(());
        }
    }

    fn time(&mut self, entrant: Entrant) -> Result<f64> {
        loop {
            let Sample { us, cost, disturbed } = (self.sample)(entrant)?;
            self.spent += cost;
            if disturbed && self.may_waste(cost) {
                continue;
            }
            // A clock too coarse for the job gives 0; ratios need something to divide by.
            return Ok(us.max(1e-3));
        }
    }

    /// Whether what cost so many seconds can be thrown away; else it is kept, and the machine
    /// counts as disturbed.
    fn may_waste(&mut self, cost: f64) -> bool {
        let may = self.wasted < self.budget / 2.0;
        if may {
            self.wasted += cost;
        } else {
            self.outcome.disturbed = true;
        }
        may
    }
}

/// Half the interval of an entry's ratio, twice as wide where the machine was disturbed. The
/// sentinel's own is 0.
pub(crate) fn ratio_half_width(entry: &Entry, is_sentinel: bool, disturbed: bool) -> f64 {
    if is_sentinel {
        return 0.0;
    }
    // Below half a per cent, differences do not repeat from one process to the next: pages lie
    // elsewhere.
    let mut width = stats::half_width(&entry.ratios, 0.005);
    if entry.ratios.len() < stats::FEW {
        // Too few to show that they scatter; but the sentinel may have shown it.
        width = entry.slack.iter().copied().fold(width, f64::max);
    }
    if disturbed { 2.0 * width } else { width }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// A machine on which candidate `c` takes `times[c]` and the sentinel 100 microseconds, all
    /// times `weather(sample number)`.
    fn machine<'a>(
        times: &'a [f64],
        mut weather: impl FnMut(usize) -> f64 + 'a,
        log: &'a mut Vec<Entrant>,
    ) -> impl FnMut(Entrant) -> Result<Sample> + 'a {
        move |entrant| {
            let us = match entrant {
                Entrant::Sentinel => 100.0,
                Entrant::Candidate(c) => times[c],
            };
            let us = us * weather(log.len());
            log.push(entrant);
            Ok(Sample { us, cost: 0.001, disturbed: false })
        }
    }

    fn best(outcome: &Outcome) -> usize {
        let finalists = (0..outcome.entries.len()).filter(|&c| outcome.entries[c].finalist);
        let ratio = |c: &usize| median(&outcome.entries[*c].ratios);
        finalists.min_by(|a, b| ratio(a).total_cmp(&ratio(b))).unwrap()
    }

    #[test]
    fn the_fastest_wins_on_a_machine_that_slows_down() {
        let times: Vec<f64> = (0..20).map(|c| 90.0 + f64::from((c * 7) % 20)).collect();
        let mut random = Random::new(1);
        let mut log = Vec::new();
        // 30 % slower at the end than at the start, with 1 % of noise.
        let weather = |n: usize| 1.0 + n as f64 / 1000.0 + random.below(100) as f64 / 1e4;
        let outcome = run(20, None, 1.0, None, machine(&times, weather, &mut log)).unwrap();
        assert_eq!(best(&outcome), 0);
        let entry = &outcome.entries[0];
        assert!((median(&entry.ratios) - 0.9).abs() < 0.01, "{}", median(&entry.ratios));
        assert_eq!(outcome.entries.iter().filter(|e| e.finalist).count(), FINALISTS);
        // The losers were timed and dropped early.
        assert!(outcome.entries.iter().all(|e| e.ratios.len() >= ROUNDS));
        assert!(outcome.entries[17].ratios.len() < entry.ratios.len() / 3);
        assert!(!outcome.disturbed);
    }

    #[test]
    fn a_spoilt_block_is_repeated() {
        let times = [95.0, 105.0];
        let mut log = Vec::new();
        // One jump, inside the third block: samples 8 to 11.
        let weather = |n: usize| if n >= 10 { 2.0 } else { 1.0 };
        let outcome = run(2, None, 1.0, None, machine(&times, weather, &mut log)).unwrap();
        assert!(!outcome.disturbed);
        for (entry, ratio) in outcome.entries.iter().zip([0.95, 1.05]) {
            assert!(entry.ratios.iter().all(|r| (r - ratio).abs() < 1e-9), "{:?}", entry.ratios);
        }
        let timed = |e| log.iter().filter(|&&l| l == e).count();
        assert_eq!(timed(Entrant::Candidate(0)), outcome.entries[0].ratios.len() + 1);
    }

    #[test]
    fn a_machine_that_never_rests_is_called_disturbed() {
        let times = [95.0];
        let mut log = Vec::new();
        let weather = |n: usize| if n.is_multiple_of(3) { 1.5 } else { 1.0 };
        let outcome = run(1, None, 0.1, None, machine(&times, weather, &mut log)).unwrap();
        assert!(outcome.disturbed);
        assert!(!outcome.entries[0].ratios.is_empty());
        assert!(log.len() < 200, "{}", log.len());
        let few = Entry { ratios: vec![0.3; 2], slack: vec![0.0, 0.8], ..Entry::default() };
        assert_eq!(ratio_half_width(&few, false, false), 0.8);
        let calm = Entry { ratios: vec![0.9; 9], ..Entry::default() };
        assert_eq!(
            ratio_half_width(&calm, false, true),
            2.0 * ratio_half_width(&calm, false, false)
        );
    }

    #[test]
    fn a_disturbed_sample_is_taken_again() {
        let mut n = 0;
        let outcome = run(1, None, 1.0, None, |entrant| {
            n += 1;
            let disturbed = n % 4 == 0;
            let us = if entrant == Entrant::Sentinel { 100.0 } else { 95.0 };
            Ok(Sample { us: if disturbed { 10.0 * us } else { us }, cost: 0.001, disturbed })
        })
        .unwrap();
        assert!(!outcome.disturbed);
        assert!(outcome.entries[0].ratios.iter().all(|ratio| (ratio - 0.95).abs() < 1e-9));
        // A machine that disturbs every sample is not waited for.
        let outcome =
            run(1, None, 0.1, None, |_| Ok(Sample { us: 100.0, cost: 0.001, disturbed: true }))
                .unwrap();
        assert!(outcome.disturbed && !outcome.entries[0].ratios.is_empty());
    }

    #[test]
    fn no_budget_still_times_everyone_once() {
        let times: Vec<f64> = (0..9).map(f64::from).collect();
        let mut log = Vec::new();
        let outcome = run(9, Some(4), 0.0, None, machine(&times, |_| 1.0, &mut log)).unwrap();
        assert!(outcome.entries.iter().all(|e| !e.ratios.is_empty() && e.finalist));
        // The sentinel is not timed twice.
        assert_eq!(log.iter().filter(|&&l| l == Entrant::Candidate(4)).count(), 0);
        assert_eq!(outcome.entries[4].us, [100.0; 4]);
        assert_eq!(ratio_half_width(&outcome.entries[4], true, false), 0.0);
    }

    #[test]
    fn the_sentinel_may_be_alone_and_the_hopeless_are_given_up() {
        let mut log = Vec::new();
        let outcome = run(1, Some(0), 1.0, None, machine(&[], |_| 1.0, &mut log)).unwrap();
        assert_eq!(outcome.best(), Some(1.0));
        let mut log = Vec::new();
        let times = [300.0; 8];
        run(8, None, 10.0, Some(1.0), machine(&times, |_| 1.0, &mut log)).unwrap();
        assert_eq!(log.len(), ROUNDS * (8 + 4));
    }
}
