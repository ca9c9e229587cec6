//! The number of workers that take part in a run, where other programs need the CPUs too.
//!
//! A phase ends when every worker has arrived. A worker that the scheduler has put aside comes back
//! after a time slice of milliseconds, so one busy neighbour can make a token of a small model cost
//! tens of times as much. The [`Governor`] sees that workers wait long at barriers, asks whether they
//! were queued for a CPU, tries the next runs with one worker less, and keeps whichever was faster.
//! From time to time it tries one more again, so that the pool is whole soon after the neighbour
//! has left. Where nobody waits long it costs two readings of the clock a run, and one of the time queued.

use std::time::Duration;

/// Shortest stretch of runs that is judged: longer than a time slice of the scheduler.
const WINDOW: Duration = Duration::from_millis(5);
/// Fewest runs that are judged.
const WINDOW_RUNS: u32 = 2;
/// Share of the time that a worker sleeps at barriers, on average: less is uneven work.
const SUSPECT: f64 = 0.05;
/// Share of the time, summed over workers, that they are queued for a CPU when it is crowded.
const QUEUED: f64 = 0.05;
/// Windows in a row in which workers wait much although none was queued, after which fewer are
/// tried anyway: a hypervisor that takes the CPU away queues nobody.
const PATIENCE: u32 = 4;
/// A number of workers is kept if a run takes at most this share of the time it took before.
const GAIN: f64 = 0.97;
/// Time until a direction is tried again, in lengths of the last trial: that bounds what trials cost. It
/// doubles each time that the trial loses, to at most this many.
const RETRY_TRIALS: u32 = 30;
const RETRY_TRIALS_MOST: u32 = 256;
/// The same for the way back after fewer workers won, the first time: they may have won by chance, where
/// a hypervisor takes CPUs away for a moment, so it is soon, but not before [`BACK_LEAST`].
const BACK_TRIALS: u32 = 4;
/// Shortest time for which fewer workers that won are kept, unless [`RETRY_TRIALS`] lengths are shorter.
const BACK_LEAST: Duration = Duration::from_millis(100);
/// Longest time until then, unless [`RETRY_TRIALS`] lengths are longer.
const RETRY_MOST: Duration = Duration::from_secs(5);
/// Runs of other sizes after which a trial is given up.
const STRAYS: u32 = 32;

/// Decides after each run how many workers take part in the next one.
#[derive(Debug)]
pub(super) struct Governor {
    /// The most that may take part.
    threads: usize,
    /// Those that take part now.
    active: usize,
    /// Time of all runs so far.
    clock: Duration,
    window: Window,
    trial: Option<Trial>,
    /// Reading of the time that workers were queued, and when it was taken.
    queued: Option<(Duration, Duration)>,
    /// Windows in a row in which workers waited much.
    suspects: u32,
    /// The fastest of these windows.
    fastest: Window,
    /// For fewer workers and for more.
    retry: [Retry; 2],
}

/// Runs of the same number of tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    tokens: usize,
    runs: u32,
    time: Duration,
    /// Sum of the workers' sleep at barriers.
    asleep: Duration,
}

impl Window {
    /// Time of a run.
    fn pace(&self) -> Duration {
        self.time / self.runs.max(1)
    }
}

/// A try with one worker less or one more.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Number of workers before, and what a run of `tokens` tokens took.
    before: usize,
    pace: Duration,
    tokens: usize,
    /// Runs of other sizes so far.
    strays: u32,
}

/// Time at which a direction is tried again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Duration,
    /// Lengths of the next trial until then, if that loses.
    trials: u32,
}

const FEWER: usize = 0;
const MORE: usize = 1;

impl Governor {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            threads,
            active: threads,
            clock: Duration::ZERO,
            window: Window::default(),
            trial: None,
            queued: None,
            suspects: 0,
            fastest: Window::default(),
            retry: [Retry { at: Duration::ZERO, trials: RETRY_TRIALS }; 2],
        }
    }

    /// The number of workers for the next run, which is one of `tokens` tokens. A trial is no matter of runs
    /// of other sizes.
    pub(super) fn active(&self, tokens: usize) -> usize {
        match self.trial {
            Some(trial) if trial.tokens != tokens => trial.before,
            _ => self.active,
        }
    }

    /// Takes note of a run of `tokens` tokens that took `time`, in which workers slept at barriers
    /// for `asleep` in all. `queued` reads the
    /// time that all workers have spent queued for a CPU so far; `None` where the system does not
    /// say.
    pub(super) fn ran(
        &mut self,
        tokens: usize,
        time: Duration,
        asleep: Duration,
        queued: &mut dyn FnMut() -> Option<Duration>,
    ) {
        if self.clock.is_zero() {
            self.queued = queued().map(|total| (total, time));
        }
        self.clock += time;
        if let Some(trial) = &mut self.trial
            && trial.tokens != tokens
        {
            trial.strays += 1;
            if trial.strays > STRAYS {
                self.active = trial.before;
                self.trial = None;
            }
            return;
        }
        if self.window.tokens != tokens {
            // Sizes that change again and again give nothing to judge; then more workers are the better guess.
            if self.active < self.threads && self.clock >= self.retry[MORE].at {
                self.active += 1;
            }
            self.window = Window { tokens, ..Window::default() };
        }
        self.window.runs += 1;
        self.window.time += time;
        self.window.asleep += asleep;
        // A trial of long runs has lost with the first that is slower.
        let has_lost = self.trial.is_some_and(|trial| self.window.pace() > trial.pace);
        if self.window.time >= WINDOW && (self.window.runs >= WINDOW_RUNS || has_lost) {
            let window =
                std::mem::replace(&mut self.window, Window { tokens, ..Window::default() });
            match self.trial.take() {
                Some(trial) => self.judge(trial, window),
                None => self.watch(window, queued),
            }
        }
    }

    /// Keeps what was tried, or takes it back.
    fn judge(&mut self, trial: Trial, window: Window) {
        let direction = if self.active < trial.before { FEWER } else { MORE };
        let most = RETRY_MOST.max(RETRY_TRIALS * window.time);
        let at = |trials: u32| self.clock + (trials * window.time).min(most);
        let retry = &mut self.retry[direction];
        if window.pace().as_secs_f64() <= GAIN * trial.pace.as_secs_f64() {
            // What was right in this direction may be right again.
            *retry = Retry { at: self.clock, trials: RETRY_TRIALS };
            let back = &mut self.retry[1 - direction];
            *back = match direction {
                FEWER => {
                    let least = BACK_LEAST.div_duration_f64(window.time).ceil() as u32;
                    let trials = least.clamp(BACK_TRIALS, RETRY_TRIALS);
                    Retry { at: at(trials), trials: 2 * trials }
                }
                _ => Retry { at: at(RETRY_TRIALS), ..*back },
            };
        } else {
            self.active = trial.before;
            let trials = (2 * retry.trials).min(RETRY_TRIALS_MOST);
            *retry = Retry { at: at(retry.trials), trials };
        }
        self.suspects = 0;
        self.queued = None;
    }

    /// Begins a trial where there is reason for one.
    fn watch(&mut self, window: Window, queued: &mut dyn FnMut() -> Option<Duration>) {
        let time = window.time.as_secs_f64();
        let may = |retry: Retry| self.clock >= retry.at;
        let suspect = window.asleep.as_secs_f64() > SUSPECT * time * self.active as f64;
        self.suspects = if suspect { self.suspects + 1 } else { 0 };
        let is_first = self.suspects <= 1 || self.fastest.tokens != window.tokens;
        if is_first || window.pace() < self.fastest.pace() {
            self.fastest = window;
        }
        let active = if suspect && self.active > 1 && may(self.retry[FEWER]) {
            if !self.crowded(queued) {
                return;
            }
            self.active - 1
        } else if self.active < self.threads && may(self.retry[MORE]) {
            self.active + 1
        } else {
            return;
        };
        // One window may have been slow by chance: fewer workers have to be faster than all of them.
        let pace = if active < self.active { self.fastest.pace() } else { window.pace() };
        let (before, tokens) = (self.active, window.tokens);
        self.trial = Some(Trial { before, pace, tokens, strays: 0 });
        self.active = active;
    }

    /// True if workers were queued for a CPU since the last reading, or waited long for many windows.
    fn crowded(&mut self, queued: &mut dyn FnMut() -> Option<Duration>) -> bool {
        let before = self.queued;
        self.queued = queued().map(|total| (total, self.clock));
        let long = match (before, self.queued) {
            (Some((before, then)), Some((total, now))) => {
                total.saturating_sub(before) > (now - then).mul_f64(QUEUED)
            }
            _ => false,
        };
        long || self.suspects.is_multiple_of(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// A machine on which a token takes so many microseconds with each number of workers, and on
    /// which workers sleep and queue for shares of that time.
    struct Machine {
        pace: fn(usize) -> u32,
        asleep: fn(usize) -> f64,
        queued: fn(usize) -> f64,
        total: Duration,
        readings: u32,
    }

    impl Machine {
        const QUIET: Self = Self {
            pace: |workers| 800 / workers as u32,
            asleep: |_| 0.0,
            queued: |_| 0.0,
            total: Duration::ZERO,
            readings: 0,
        };
        /// One of the CPUs is another's half of the time, as soon as all are wanted.
        const CROWDED: Self = Self {
            pace: |workers| if workers == 4 { 3000 } else { 800 / workers as u32 },
            asleep: |workers| if workers == 4 { 2.0 } else { 0.0 },
            queued: |workers| if workers == 4 { 0.5 } else { 0.0 },
            ..Self::QUIET
        };

        /// Runs tokens for a time, and returns the share of it that runs took with each number of
        /// workers.
        fn run(&mut self, governor: &mut Governor, time: Duration) -> [f64; 5] {
            let mut spent = [Duration::ZERO; 5];
            while spent.iter().sum::<Duration>() < time {
                let workers = governor.active(1);
                let one = MICROSECOND * (self.pace)(workers);
                spent[workers] += one;
                self.total += one.mul_f64((self.queued)(workers));
                let (total, readings) = (self.total, &mut self.readings);
                let asleep = one.mul_f64((self.asleep)(workers));
                governor.ran(1, one, asleep, &mut || {
                    *readings += 1;
                    Some(total)
                });
            }
            spent.map(|part| part.as_secs_f64() / time.as_secs_f64())
        }
    }

    #[test]
    fn a_quiet_machine_keeps_all_workers_and_is_asked_once() {
        let (mut governor, mut quiet) = (Governor::new(4), Machine::QUIET);
        assert!(quiet.run(&mut governor, Duration::from_secs(20))[4] >= 1.0);
        assert_eq!(quiet.readings, 1);
    }

    #[test]
    fn h6_a_worker_is_spared_while_a_neighbour_is_busy_and_comes_back_after() {
        let (mut governor, mut crowded) = (Governor::new(4), Machine::CROWDED);
        crowded.run(&mut governor, Duration::from_millis(50));
        assert_eq!(governor.active, 3);
        let spent = crowded.run(&mut governor, Duration::from_secs(20));
        assert!(spent[3] > 0.98 && spent[1] + spent[2] < 0.001, "{spent:?}");
        let mut quiet = Machine::QUIET;
        // The next trial is at most so many lengths of the last away, and that had two runs of 3 ms.
        quiet.run(
            &mut governor,
            Duration::from_millis(10) + RETRY_TRIALS_MOST * Duration::from_millis(6),
        );
        assert_eq!(governor.active, 4);
    }

    /// The second window in which workers are queued is one with fewer, and all are back seldom.
    #[test]
    fn what_a_neighbour_costs_is_short() {
        let (mut governor, mut crowded) = (Governor::new(4), Machine::CROWDED);
        let spent = crowded.run(&mut governor, Duration::from_millis(200));
        assert!(spent[4] < 0.08, "{spent:?}");
    }

    /// Two neighbours: what helps once is done again.
    #[test]
    fn as_many_are_spared_as_pays() {
        let mut governor = Governor::new(4);
        let mut crowded = Machine {
            pace: |workers| if workers > 2 { 1000 * workers as u32 } else { 800 / workers as u32 },
            asleep: |workers| if workers > 2 { 1.0 } else { 0.0 },
            queued: |workers| if workers > 2 { 0.5 } else { 0.0 },
            ..Machine::QUIET
        };
        crowded.run(&mut governor, Duration::from_millis(100));
        assert_eq!(governor.active, 2);
        assert!(crowded.run(&mut governor, Duration::from_secs(20))[2] > 0.98);
    }

    /// Workers of a large model that share their work well lose less to a neighbour than by
    /// sparing one.
    #[test]
    fn a_worker_that_pays_is_kept() {
        let mut governor = Governor::new(4);
        let mut crowded = Machine {
            pace: |workers| if workers == 4 { 230 } else { 800 / workers as u32 },
            ..Machine::CROWDED
        };
        let spent = crowded.run(&mut governor, Duration::from_secs(20));
        assert!(spent[4] > 0.98 && spent[3] > 0.0, "{spent:?}");
    }

    /// A CPU that a hypervisor takes away: nobody is queued for it.
    #[test]
    fn workers_that_sleep_long_are_reason_enough() {
        let (mut governor, nobody) = (Governor::new(4), |_| 0.0);
        let mut stolen = Machine { queued: nobody, ..Machine::CROWDED };
        stolen.run(&mut governor, Duration::from_millis(100));
        assert_eq!(governor.active, 3);
    }

    /// A hypervisor takes a CPU for a moment, again and again: workers wait long, and yet all of them
    /// are faster than fewer.
    #[test]
    fn stalls_now_and_then_spare_nobody_for_long() {
        let mut governor = Governor::new(2);
        let (mut random, mut spent) = (1u32, [0; 3]);
        for _ in 0..5_000 {
            let workers = governor.active(1);
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let stall = if random >> 16 < 20_000 { 25 } else { 0 };
            let (run, asleep) =
                if workers == 2 { (40 + stall, stall) } else { (60 + stall / 2, 0) };
            spent[workers] += run;
            let time = |ms: u32| ms * 1000 * MICROSECOND;
            governor.ran(1, time(run), time(asleep), &mut || Some(Duration::ZERO));
        }
        assert!(spent[1] * 20 < spent[2], "{spent:?}");
    }

    /// Runs of another size say nothing about a trial, and too many of them end it.
    #[test]
    fn a_trial_compares_like_with_like() {
        let (mut governor, mut crowded) = (Governor::new(4), Machine::CROWDED);
        while governor.trial.is_none() {
            crowded.run(&mut governor, 3000 * MICROSECOND);
        }
        assert_eq!(governor.active, 3);
        for _ in 0..STRAYS {
            assert_eq!(governor.active(512), 4);
            governor.ran(512, 9000 * MICROSECOND, Duration::ZERO, &mut || None);
            assert_eq!(governor.active(1), 3);
        }
        governor.ran(512, 9000 * MICROSECOND, Duration::ZERO, &mut || None);
        assert!(governor.active == 4 && governor.trial.is_none());
    }

    /// Passes of a server have another size each time.
    #[test]
    fn sizes_that_change_do_not_keep_workers_away() {
        let (mut governor, mut crowded) = (Governor::new(4), Machine::CROWDED);
        crowded.run(&mut governor, Duration::from_millis(50));
        assert_eq!(governor.active(1), 3);
        let mut fewer = Duration::ZERO;
        for run in 0..100 {
            let (tokens, time) = (10 + run % 2, 200_000 * MICROSECOND);
            if governor.active(tokens) < 4 {
                fewer += time;
            }
            governor.ran(tokens, time, Duration::ZERO, &mut || None);
        }
        assert!(fewer <= Duration::from_millis(400), "{fewer:?}");
    }
}
