//! Tournament: successive halving against a baseline. A round times every candidate that is left,
//! in blocks that begin and end with the baseline; a sample counts as its ratio to the two baseline
//! samples around it, so that a machine that slows down slows both. A block in which the baseline
//! itself moved is repeated, and so is a sample in which a worker had to wait for its CPU.

use bitnet_profiles::KernelId;

use crate::measure::Timing;
use crate::stats::{mad, median};
use crate::{Result, stats};

/// Rounds between two cuts, each of which keeps the better half.
const ROUNDS: usize = 3;
/// Candidates that are never cut.
const FINALISTS: usize = 4;
/// Largest number of rounds.
const MOST_ROUNDS: usize = 30;
/// Candidates between two baseline samples.
const BLOCK: usize = 6;
/// Least movement of the baseline that spoils a block.
const DRIFT: f64 = 0.03;
/// Factor over the best known ratio above which a set of candidates is given up after the first
/// cut.
const HOPELESS: f64 = 1.25;

/// The baseline or a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrant {
    Baseline,
    Candidate(usize),
}

/// One sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Microseconds per job.
    pub us: f64,
    /// Seconds that it took to take the sample.
    pub cost: f64,
    /// True if a worker had to wait for its CPU.
    pub disturbed: bool,
}

/// Reading of one sample of a candidate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    /// Microseconds per job.
    pub us: f64,
    /// Its ratio to the mean of the baseline's samples before and after.
    pub ratio: f64,
    /// Increase of the ratio, were the faster of the two alone right.
    slack: f64,
    /// True if it should have been repeated, and there was no time for that.
    spoilt: bool,
}

/// Readings of a candidate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    readings: Vec<Reading>,
    /// True if it was not cut.
    pub finalist: bool,
}

impl Entry {
    /// Returns the microseconds per job, sample by sample.
    pub(crate) fn us(&self) -> Vec<f64> {
        self.readings.iter().map(|reading| reading.us).collect()
    }

    /// Returns the ratios to the baseline.
    pub(crate) fn ratios(&self) -> Vec<f64> {
        self.readings.iter().map(|reading| reading.ratio).collect()
    }

    /// Returns the median ratio.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.ratios())
    }

    /// Drops the spoilt readings, unless few others would be left.
    fn settle(&mut self) {
        if self.readings.iter().filter(|reading| !reading.spoilt).count() >= stats::FEW {
            self.readings.retain(|reading| !reading.spoilt);
        }
    }

    /// True if spoilt readings had to be kept.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.readings.iter().any(|reading| reading.spoilt)
    }

    /// Returns half the 95 % interval of the ratio: twice as wide where spoilt readings had to be
    /// kept, and too wide to say anything where they are few as well.
    pub(crate) fn half_width(&self) -> f64 {
        // Below half a per cent, differences do not repeat from one process to the next: pages
        // lie elsewhere.
        let width = stats::half_width(&self.ratios(), 0.005);
        match (self.readings.len() < stats::FEW, self.is_disturbed()) {
            (false, false) => width,
            (false, true) => 2.0 * width,
            // Too few to show that they scatter; but the baseline may have shown it.
            (true, false) => self.readings.iter().map(|r| r.slack).fold(width, f64::max),
            (true, true) => f64::max(1.0, self.ratio()),
        }
    }
}

/// Returns the timing of a kernel; none where there was no time for it.
pub(crate) fn timing(kernel: KernelId, entry: &Entry) -> Option<Timing> {
    let us = entry.us();
    (!us.is_empty()).then(|| Timing {
        kernel,
        samples: us.len() as u32,
        min_us: us.iter().copied().fold(f64::INFINITY, f64::min),
        median_us: stats::median(&us),
        mad_us: stats::mad(&us),
        ratio: entry.ratio(),
        half_width: entry.half_width(),
        finalist: entry.finalist,
    })
}

/// Outcome of a tournament.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Entries of the candidates; the baseline's own, where it is one, is empty.
    pub entries: Vec<Entry>,
    /// Entry of the baseline; its ratios are 1.
    pub baseline: Entry,
}

impl Outcome {
    /// Returns the best median ratio of a finalist.
    pub(crate) fn best(&self) -> Option<f64> {
        let finalists = self.entries.iter().filter(|e| e.finalist && !e.readings.is_empty());
        finalists.map(Entry::ratio).min_by(f64::total_cmp)
    }

    /// True if a finalist or the baseline rests on spoilt readings.
    pub(crate) fn is_disturbed(&self) -> bool {
        let finalists = self.entries.iter().filter(|entry| entry.finalist);
        finalists.chain([&self.baseline]).any(Entry::is_disturbed)
    }
}

/// Times `candidates` candidates for about `budget` seconds, in their order: where that is not
/// enough for all, the last are not timed at all. `baseline` is the number of the candidate that is
/// the baseline itself, if any: its ratio is 1. `to_beat` is the best ratio that is known.
pub(crate) fn run(
    candidates: usize,
    baseline: Option<usize>,
    budget: f64,
    to_beat: Option<f64>,
    sample: impl FnMut(Entrant) -> Result<Sample>,
) -> Result<Outcome> {
    hold(candidates, FINALISTS, baseline, budget, to_beat, sample)
}

/// Times `candidates` candidates as [`run`] does, but cuts none: they do not compete.
pub(crate) fn run_uncut(
    candidates: usize,
    budget: f64,
    sample: impl FnMut(Entrant) -> Result<Sample>,
) -> Result<Outcome> {
    hold(candidates, candidates, None, budget, None, sample)
}

fn hold(
    candidates: usize,
    finalists: usize,
    baseline: Option<usize>,
    budget: f64,
    to_beat: Option<f64>,
    sample: impl FnMut(Entrant) -> Result<Sample>,
) -> Result<Outcome> {
    let mut tournament = Tournament {
        sample,
        budget,
        spent: 0.0,
        wasted: 0.0,
        entries: vec![Entry::default(); candidates],
        baseline: Entry::default(),
    };
    let mut left: Vec<usize> = (0..candidates).filter(|&c| Some(c) != baseline).collect();
    for round in 1..=MOST_ROUNDS {
        tournament.round(&left, round)?;
        if tournament.spent >= budget {
            break;
        }
        if round % ROUNDS == 0 {
            let ratio = |&c: &usize| tournament.entries[c].ratio();
            left.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
            let best = left.first().map(ratio);
            left.truncate(left.len().div_ceil(2).max(finalists));
            left.sort_unstable();
            if best.zip(to_beat).is_some_and(|(best, to_beat)| best > HOPELESS * to_beat) {
                break;
            }
        }
    }
    let Tournament { mut entries, baseline: mut of_baseline, .. } = tournament;
    of_baseline.finalist = true;
    for c in left {
        entries[c].finalist = true;
    }
    entries.iter_mut().chain([&mut of_baseline]).for_each(Entry::settle);
    Ok(Outcome { entries, baseline: of_baseline })
}

struct Tournament<F> {
    sample: F,
    budget: f64,
    spent: f64,
    wasted: f64,
    entries: Vec<Entry>,
    baseline: Entry,
}

impl<F: FnMut(Entrant) -> Result<Sample>> Tournament<F> {
    /// Times every candidate of `left` once; with none left, the baseline alone.
    fn round(&mut self, left: &[usize], round: usize) -> Result<()> {
        if left.is_empty() {
            return self.block(&[]);
        }
        // Nobody always follows the baseline.
        let start = (round - 1) % left.len();
        let order: Vec<usize> = left[start..].iter().chain(&left[..start]).copied().collect();
        for block in order.chunks(BLOCK) {
            self.block(block)?;
            // Candidates without time have no readings.
            if self.spent >= self.budget {
                break;
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &[usize]) -> Result<()> {
        loop {
            let spent = self.spent;
            let before = self.time(Entrant::Baseline)?;
            let times = block.iter().map(|&c| self.time(Entrant::Candidate(c)));
            let times = times.collect::<Result<Vec<Sample>>>()?;
            let after = self.time(Entrant::Baseline)?;
            let good = self.baseline.readings.iter().filter(|reading| !reading.spoilt);
            let seen: Vec<f64> = good.map(|reading| reading.us).collect();
            let usual = if seen.is_empty() { 0.0 } else { 3.0 * mad(&seen) / median(&seen) };
            let moved = (after.us / before.us - 1.0).abs() > usual.max(DRIFT);
            if moved && self.may_waste(self.spent - spent) {
                continue;
            }
            let (mean, least) = ((before.us + after.us) / 2.0, before.us.min(after.us));
            let spoilt = moved || before.disturbed || after.disturbed;
            let reading = |us: f64, spoilt| {
                let ratio = us / mean;
                Reading { us, ratio, slack: us / least - ratio, spoilt }
            };
            for sample in [before, after] {
                self.baseline.readings.push(Reading { ratio: 1.0, ..reading(sample.us, spoilt) });
            }
            for (&c, sample) in block.iter().zip(times) {
                let reading = reading(sample.us, spoilt || sample.disturbed);
                self.entries[c].readings.push(reading);
            }
            return Ok(());
        }
    }

    fn time(&mut self, entrant: Entrant) -> Result<Sample> {
        loop {
            let sample = (self.sample)(entrant)?;
            self.spent += sample.cost;
            if sample.disturbed && self.may_waste(sample.cost) {
                continue;
            }
            // A clock too coarse for the job gives 0; ratios need something to divide by.
            return Ok(Sample { us: sample.us.max(1e-3), ..sample });
        }
    }

    /// Returns true, and counts the waste, if a sample of this cost may be taken again.
    fn may_waste(&mut self, cost: f64) -> bool {
        let may = self.wasted < self.budget / 2.0;
        if may {
            self.wasted += cost;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_runtime::random::Random;

    /// A machine on which candidate `c` takes `times[c]` and the baseline 100 microseconds, all
    /// times `weather(sample number)`.
    fn machine<'a>(
        times: &'a [f64],
        mut weather: impl FnMut(usize) -> f64 + 'a,
        log: &'a mut Vec<Entrant>,
    ) -> impl FnMut(Entrant) -> Result<Sample> + 'a {
        move |entrant| {
            let us = match entrant {
                Entrant::Baseline => 100.0,
                Entrant::Candidate(c) => times[c],
            };
            let us = us * weather(log.len());
            log.push(entrant);
            Ok(Sample { us, cost: 0.001, disturbed: false })
        }
    }

    fn best(outcome: &Outcome) -> usize {
        let finalists = (0..outcome.entries.len()).filter(|&c| outcome.entries[c].finalist);
        let ratio = |c: &usize| outcome.entries[*c].ratio();
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
        assert!((entry.ratio() - 0.9).abs() < 0.01, "{}", entry.ratio());
        assert_eq!(outcome.entries.iter().filter(|e| e.finalist).count(), FINALISTS);
        // The losers were timed and dropped early.
        assert!(outcome.entries.iter().all(|e| e.readings.len() >= ROUNDS));
        assert!(outcome.entries[17].readings.len() < entry.readings.len() / 3);
        assert!(!outcome.is_disturbed());
    }

    #[test]
    fn candidates_that_do_not_compete_are_not_cut() {
        let times: Vec<f64> = (0..16).map(|c| 60.0 + 10.0 * f64::from(c)).collect();
        let mut log = Vec::new();
        let outcome = run_uncut(16, 1.0, machine(&times, |_| 1.0, &mut log)).unwrap();
        for (entry, us) in outcome.entries.iter().zip(times) {
            assert!(entry.finalist && entry.readings.len() == MOST_ROUNDS);
            assert!((entry.ratio() - us / 100.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_spoilt_block_is_repeated() {
        let times = [95.0, 105.0];
        let mut log = Vec::new();
        // One jump, inside the third block: samples 8 to 11.
        let weather = |n: usize| if n >= 10 { 2.0 } else { 1.0 };
        let outcome = run(2, None, 1.0, None, machine(&times, weather, &mut log)).unwrap();
        assert!(!outcome.is_disturbed());
        for (entry, ratio) in outcome.entries.iter().zip([0.95, 1.05]) {
            let ratios = entry.ratios();
            assert!(ratios.iter().all(|r| (r - ratio).abs() < 1e-9), "{ratios:?}");
        }
        let timed = |e| log.iter().filter(|&&l| l == e).count();
        assert_eq!(timed(Entrant::Candidate(0)), outcome.entries[0].readings.len() + 1);
    }

    #[test]
    fn a_machine_that_never_rests_is_called_disturbed() {
        let times = [95.0];
        let mut log = Vec::new();
        let weather = |n: usize| if n.is_multiple_of(3) { 1.5 } else { 1.0 };
        let outcome = run(1, None, 0.1, None, machine(&times, weather, &mut log)).unwrap();
        assert!(outcome.is_disturbed());
        assert!(!outcome.entries[0].readings.is_empty());
        assert!(log.len() < 200, "{}", log.len());
    }

    #[test]
    fn intervals_know_what_was_spoilt() {
        let reading = |ratio, slack, spoilt| Reading { us: 1.0, ratio, slack, spoilt };
        let entry = |readings: &[Reading]| {
            let mut entry = Entry { readings: readings.to_vec(), finalist: true };
            entry.settle();
            entry
        };
        let calm = entry(&[reading(0.9, 0.3, false); 9]);
        assert_eq!((calm.half_width(), calm.is_disturbed()), (0.005, false));
        // Enough good readings: the bad ones do not count.
        let mixed = [[reading(0.9, 0.3, false); 9], [reading(0.2, 0.3, true); 9]].concat();
        let mixed = entry(&mixed);
        assert_eq!((mixed.ratio(), mixed.half_width(), mixed.is_disturbed()), (0.9, 0.005, false));
        let spoilt = entry(&[reading(0.9, 0.3, true); 9]);
        assert_eq!((spoilt.half_width(), spoilt.is_disturbed()), (0.01, true));
        let few = entry(&[reading(0.3, 0.0, false), reading(0.3, 0.8, false)]);
        assert_eq!((few.half_width(), few.is_disturbed()), (0.8, false));
        let nothing = entry(&[reading(0.3, 0.0, true); 2]);
        assert_eq!((nothing.half_width(), nothing.is_disturbed()), (1.0, true));
    }

    #[test]
    fn a_disturbed_sample_is_taken_again() {
        let mut n = 0;
        let outcome = run(1, None, 1.0, None, |entrant| {
            n += 1;
            let disturbed = n % 4 == 0;
            let us = if entrant == Entrant::Baseline { 100.0 } else { 95.0 };
            Ok(Sample { us: if disturbed { 10.0 * us } else { us }, cost: 0.001, disturbed })
        })
        .unwrap();
        assert!(!outcome.is_disturbed());
        assert!(outcome.entries[0].ratios().iter().all(|ratio| (ratio - 0.95).abs() < 1e-9));
        // A machine that disturbs every sample is not waited for.
        let outcome =
            run(1, None, 0.1, None, |_| Ok(Sample { us: 100.0, cost: 0.001, disturbed: true }))
                .unwrap();
        assert!(outcome.is_disturbed() && !outcome.entries[0].readings.is_empty());
    }

    #[test]
    fn without_a_budget_the_first_are_timed_once() {
        let times: Vec<f64> = (0..9).map(f64::from).collect();
        let mut log = Vec::new();
        let outcome = run(9, Some(4), 0.0, None, machine(&times, |_| 1.0, &mut log)).unwrap();
        let timed: Vec<usize> = (0..9).filter(|&c| !outcome.entries[c].us().is_empty()).collect();
        // The baseline is not timed twice.
        assert_eq!(timed, [0, 1, 2, 3, 5, 6]);
        assert_eq!(log.iter().filter(|&&l| l == Entrant::Candidate(4)).count(), 0);
        assert_eq!(outcome.baseline.us(), [100.0; 2]);
        assert_eq!(outcome.best(), Some(outcome.entries[0].ratio()));
    }

    #[test]
    fn the_baseline_may_be_alone_and_the_hopeless_are_given_up() {
        let mut log = Vec::new();
        let outcome = run(1, Some(0), 1.0, None, machine(&[], |_| 1.0, &mut log)).unwrap();
        assert_eq!((outcome.best(), outcome.baseline.ratio()), (None, 1.0));
        let mut log = Vec::new();
        let times = [300.0; 8];
        run(8, None, 10.0, Some(1.0), machine(&times, |_| 1.0, &mut log)).unwrap();
        assert_eq!(log.len(), ROUNDS * (8 + 4));
    }

    /// Returns the candidate chosen among those with these times, and the default of 100
    /// microseconds, on a machine with up to `noise` of noise and a long sample now and then.
    fn chosen(times: &[f64], noise: f64, seed: u64) -> Option<usize> {
        use crate::choose::choose;
        use crate::measure::{JobMeasurements, LayoutMeasurements, Limits, Measurements, Timing};
        use bitnet_profiles::{KernelId, Layout, Objective, Packing, Role, Shape};
        let mut random = Random::new(seed);
        let mut log = Vec::new();
        let weather = |_| {
            let long = if random.below(50) == 0 { 1.5 } else { 1.0 };
            long * (1.0 + noise * (random.below(2001) as f64 / 1000.0 - 1.0))
        };
        let outcome = run(times.len(), None, 0.5, None, machine(times, weather, &mut log)).unwrap();
        let id = |c: usize| -> KernelId {
            format!("i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p{}", 64 * c).parse().unwrap()
        };
        let timing = |number, entry: &Entry, half_width| Timing {
            kernel: id(number),
            samples: entry.readings.len() as u32,
            min_us: 90.0,
            median_us: median(&entry.us()),
            mad_us: mad(&entry.us()),
            ratio: entry.ratio(),
            half_width,
            finalist: entry.finalist,
        };
        let mut decode = vec![timing(0, &outcome.baseline, 0.0)];
        let entries = outcome.entries.iter().enumerate();
        decode.extend(entries.map(|(c, entry)| timing(c + 1, entry, entry.half_width())));
        let measurements = Measurements {
            limits: Limits {
                threads: 1,
                read_gb_per_s: 1.0,
                limit_gb_per_s: 1.0,
                limit_gmac_per_s: None,
                cold: false,
            },
            noise,
            disturbed: outcome.is_disturbed(),
            excluded: Vec::new(),
            jobs: vec![JobMeasurements {
                role: Role::Down,
                parts: vec![Shape::new(128, 128)],
                count: 1,
                default_decode: id(0),
                default_prefill: None,
                default_decode_us: 100.0,
                default_prefill_us: 0.0,
                tokens: 1,
                layouts: vec![LayoutMeasurements {
                    layout: Some(Packing::Ternary(Layout::I2sT16)),
                    bytes: 1,
                    limit_gb_per_s: 1.0,
                    decode,
                    prefill: Vec::new(),
                }],
                sparse: None,
            }],
        };
        let kernel = choose(&measurements, Objective::Decode)[0].decode.timing.kernel;
        (0..times.len()).find(|&c| id(c + 1) == kernel)
    }

    #[test]
    fn t09_noise_makes_no_winners() {
        const RUNS: u64 = 200;
        for noise in [0.005, 0.02, 0.1] {
            // Nobody is better than the default.
            let equal = (0..RUNS).filter(|&seed| chosen(&[100.0; 12], noise, seed).is_some());
            let equal = equal.count();
            // One is, by twice the noise and something worthwhile.
            let better = 100.0 * (1.0 - 2.0 * noise) - 4.0;
            let one = [100.0, 100.0, better, 100.0, 100.0];
            let missed = (0..RUNS).filter(|&seed| chosen(&one, noise, seed) != Some(2)).count();
            println!("{noise}: {equal} {missed}");
            assert!(equal <= 10, "{equal} of {RUNS} runs found a winner in noise of {noise}");
            assert!(missed <= 10, "{missed} of {RUNS} runs missed it in noise of {noise}");
        }
    }
}
