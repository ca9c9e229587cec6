//! Verification and timing of a plan's candidates.
//!
//! The machine's limits are probed first ([`bitnet_runtime::measure::probe`]), then every candidate
//! is verified, then the tournaments are held. They take memory for one role at a time, and of it
//! for the default's layout and one other: about 1.5 times the model, or 4 times the L3 cache where
//! that is more.

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Packing, Role};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::memory::{self, Pages};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::measure::probe::Stream;

use super::limits::{self, PASSES};
use super::present::{Candidate, Present};
use super::tournament::{self, Entrant, Entry, Outcome, timing};
use super::verify::{allowed, verify};
use super::workload::{AttentionWorkload, HeadWorkload, Rotation, TernaryWorkload, Workload};
use crate::measure::lengths::PREFILL_TOKENS;
use crate::measure::{Timing, Unit, UnitKey, phase_name};
use crate::plan::JobTask;
use crate::protocol::{Event, MeasureTask, Reporter};
use crate::{Result, stats};

/// Fewest activation rows of a timed prefill, where more take too long for the budget.
const LEAST_TOKENS: usize = 32;
/// Length of a sample: many times the clock's resolution and a barrier, and less than a time slice
/// of the system.
pub(crate) const SAMPLE: Duration = Duration::from_millis(1);
/// Share of the time for the first of several repeats, which all candidates are in.
const FIRST: f64 = 0.5;
/// Factor over the job's best, in both phases, above which a layout is not repeated.
const BEHIND: f64 = 1.1;
/// Factor over the default's time above which a candidate counts as hung, beside the time to verify
/// it.
pub(crate) const HUNG: f64 = 200.0;
/// Time limit of a default in seconds, when nothing is known of it.
pub(crate) const UNKNOWN: f64 = 200.0;

/// Returns the least memory that the tournaments take: of the default's layout and of another a
/// job's matrices, twice.
fn least_memory(jobs: &[JobTask]) -> u64 {
    let bytes = |job: &JobTask| {
        let layouts = job.plan.layouts.iter().filter_map(|layout| layout.layout);
        let of =
            |layout: Packing| job.plan.parts.iter().map(move |&p| layout.matrix_bytes(p)).sum();
        4 * layouts.map(of).max().unwrap_or(0_usize) as u64
    };
    jobs.iter().map(bytes).max().unwrap_or(0)
}

/// Does `task` with the threads of `pool` and reports as it goes.
pub(crate) fn measure(
    task: &MeasureTask,
    (pool, present): (&Pool, &Present),
    reporter: &mut Reporter,
) -> Result<()> {
    let start = Instant::now();
    let (free, least) = (memory::available(), least_memory(&task.jobs));
    if let Some(free) = free.filter(|&free| free < least) {
        return Err(Error::Runtime(format!(
            "tuning for this model takes at least {} MB of memory, and {} MB are free",
            least.div_ceil(1 << 20),
            free >> 20
        ))
        .into());
    }
    let stream = limits::stream(pool, task.model_bytes)?;
    if task.limits.is_none() {
        reporter.progress(0.0, "probing memory and multipliers".into())?;
        reporter.send(&Event::Limits(limits::probe(task, pool, &stream)?))?;
    }
    let mut excluded = task.excluded.clone();
    verify(task, (pool, present), &mut excluded, reporter)?;
    let out = |id: &KernelId| excluded.iter().any(|e| e.kernel == *id);
    let jobs: Vec<JobTask> = task
        .jobs
        .iter()
        .cloned()
        .map(|mut job| {
            for layout in &mut job.plan.layouts {
                layout.decode.retain(|id| !out(id));
                layout.prefill.retain(|id| !out(id));
            }
            job
        })
        .collect();
    let deadline = start + Duration::from_secs_f64(task.seconds);
    let mut timer = Timer {
        task,
        pool,
        stream,
        present,
        rotation: limits::rotation(task.model_bytes, reporter)?,
        start,
        deadline,
        done: task.done.clone(),
        until: deadline,
        remaining: 0,
        reporter,
    };
    for repeat in 0..task.repeats {
        timer.until = start + Duration::from_secs_f64(task.seconds * end(repeat, task.repeats));
        let open = |(number, job)| -> usize {
            let layouts = timer.open(number, job, repeat).into_iter();
            layouts.flatten().flatten().map(|(_, kernels)| kernels.len()).sum()
        };
        timer.remaining = jobs.iter().enumerate().map(open).sum();
        for (number, job) in jobs.iter().enumerate() {
            timer.job(number, job, repeat)?;
        }
    }
    Ok(())
}

/// Returns the share of the time that is spent when a repeat ends.
fn end(repeat: u8, repeats: u8) -> f64 {
    match repeats {
        0 | 1 => 1.0,
        _ => FIRST + (1.0 - FIRST) * f64::from(repeat) / f64::from(repeats - 1),
    }
}

/// A unit that is left to do, and its candidates.
type Open = (UnitKey, Vec<KernelId>);

struct Timer<'a> {
    task: &'a MeasureTask,
    pool: &'a Pool,
    /// Probe of the limit of decode.
    stream: Stream,
    present: &'a Present,
    rotation: Rotation,
    /// Begin and end of the work.
    start: Instant,
    deadline: Instant,
    /// Units that are done.
    done: Vec<Unit>,
    /// End of the current repeat.
    until: Instant,
    /// Kernels left to time in it.
    remaining: usize,
    reporter: &'a mut Reporter,
}

impl<'a> Timer<'a> {
    /// Lists the units of a job that are left to do in a repeat, by layout, decode and prefill,
    /// with their candidates.
    fn open(&self, job: usize, task: &JobTask, repeat: u8) -> Vec<[Option<Open>; 2]> {
        let layouts = 0..task.plan.layouts.len();
        let open = |layout: usize, prefill: bool| {
            let key = UnitKey { job, layout, prefill, repeat };
            if self.done.iter().any(|unit| unit.key == key) {
                return None;
            }
            let plan = &task.plan.layouts[layout];
            let mut kernels = plan.kernels(key.phase()).to_vec();
            let before = self.before(key);
            if repeat > 0 {
                if before.is_empty() || self.is_behind(key) {
                    return None;
                }
                let is_finalist = |id: &KernelId, unit: &Unit| {
                    unit.timings.iter().any(|timing| timing.kernel == *id && timing.finalist)
                };
                kernels.retain(|id| before.iter().all(|unit| is_finalist(id, unit)));
                if kernels.iter().all(|id| task.default_of(key.phase()) == Some(*id)) {
                    return None;
                }
            }
            (!kernels.is_empty()).then_some((key, kernels))
        };
        layouts.map(|layout| [open(layout, false), open(layout, true)]).collect()
    }

    /// Returns the earlier repeats of a tournament.
    fn before(&self, key: UnitKey) -> Vec<&Unit> {
        let is_before = |unit: &&Unit| {
            UnitKey { repeat: key.repeat, ..unit.key } == key && unit.key.repeat < key.repeat
        };
        self.done.iter().filter(is_before).collect()
    }

    /// True if a layout is so far behind in both phases that it need not be timed again.
    fn is_behind(&self, key: UnitKey) -> bool {
        [false, true].into_iter().all(|prefill| {
            let own = self.before(UnitKey { prefill, ..key });
            let finalists =
                own.iter().flat_map(|unit| &unit.timings).filter(|timing| timing.finalist);
            let own = finalists.map(|timing| timing.ratio).min_by(f64::total_cmp);
            let best = self.known(key.job, prefill);
            own.zip(best).is_none_or(|(own, best)| own > BEHIND * best)
        })
    }

    fn job(&mut self, number: usize, job: &JobTask, repeat: u8) -> Result<()> {
        let mut open = self.open(number, job, repeat);
        if open.iter().flatten().all(Option::is_none) || repeat > 0 && self.is_late() {
            return Ok(());
        }
        let default_layout = job.default_decode.op.packing();
        let baselines = [
            Some(self.present.find(&job.default_decode)?),
            job.default_prefill.as_ref().map(|id| self.present.find(id)).transpose()?,
        ];
        let mut default = self.workload(job, default_layout, PREFILL_TOKENS)?;
        let tokens = self.set_tokens(number, &mut *default, &baselines)?;
        // The default's layout first: what is reached there is what the others have to beat.
        let mut order: Vec<usize> = (0..open.len()).collect();
        order.sort_by_key(|&l| (job.plan.layouts[l].layout != default_layout, l));
        let mut best = [self.known(number, false), self.known(number, true)];
        for index in order {
            let plan = &job.plan.layouts[index];
            let units = std::mem::take(&mut open[index]);
            let is_needed = repeat == 0 && plan.layout == default_layout;
            if units.iter().all(Option::is_none) || self.is_late() && !is_needed {
                continue;
            }
            let mut other = if plan.layout == default_layout {
                None
            } else {
                Some(self.workload(job, plan.layout, tokens)?)
            };
            for (phase, unit) in units.into_iter().enumerate() {
                let (Some((key, ids)), Some(baseline)) = (unit, baselines[phase]) else { continue };
                let doing = match plan.layout {
                    Some(layout) => {
                        format!("{} {layout} {}", job.plan.role, phase_name(key.phase()))
                    }
                    None => format!("{} {}", job.plan.role, phase_name(key.phase())),
                };
                let spent = self.start.elapsed().as_secs_f64() / self.task.seconds.max(1e-3);
                self.reporter.progress(spent.min(1.0), doing)?;
                let kernels = ids.iter().map(|id| self.present.find(id));
                let kernels = kernels.collect::<Result<Vec<_>>>()?;
                let bytes = other.as_ref().map_or(default.bytes(), |other| other.bytes());
                let before = self.stream.read_bandwidth(self.pool, PASSES)?;
                let outcome = self.tournament(
                    (&mut *default, other.as_mut().map(|other| &mut **other as &mut dyn Workload)),
                    baseline,
                    &kernels,
                    key.phase(),
                    best[phase],
                )?;
                let after = self.stream.read_bandwidth(self.pool, PASSES)?;
                let known = [Some(1.0), best[phase], outcome.best()].into_iter().flatten();
                best[phase] = known.min_by(f64::total_cmp);
                let times = outcome.baseline.us();
                let unit = Unit {
                    key,
                    tokens: if key.prefill { tokens as u32 } else { 1 },
                    bytes,
                    limit_gb_per_s: before.max(after) / 1e9,
                    timings: timings(baseline.id(), &kernels, &outcome),
                    baseline_us: stats::median(&times),
                    noise: stats::mad(&times) / stats::median(&times),
                    disturbed: outcome.is_disturbed(),
                };
                self.reporter.send(&Event::Unit(unit.clone()))?;
                self.done.push(unit);
            }
        }
        Ok(())
    }

    /// True if time is up and the task need not be complete.
    fn is_late(&self) -> bool {
        !self.task.whole && Instant::now() >= self.deadline
    }

    /// Returns the best ratio of a job's units that are done.
    fn known(&self, job: usize, prefill: bool) -> Option<f64> {
        let units = self.done.iter().filter(|u| u.key.job == job && u.key.prefill == prefill);
        let finalists = units.flat_map(|unit| &unit.timings).filter(|timing| timing.finalist);
        finalists.map(|timing| timing.ratio).min_by(f64::total_cmp)
    }

    fn workload(
        &self,
        job: &JobTask,
        layout: Option<Packing>,
        tokens: usize,
    ) -> Result<Box<dyn Workload>> {
        let (pool, parts, rotation) = (self.pool, &job.plan.parts, self.rotation);
        Ok(match (job.plan.role, layout) {
            (Role::Attention, _) => {
                let isa = self.task.ceiling;
                Box::new(AttentionWorkload::new(&self.task.config, isa, rotation, tokens)?)
            }
            (_, Some(layout)) => Box::new(TernaryWorkload::new(
                pool,
                parts,
                layout,
                (rotation, Pages::Huge),
                tokens,
            )?),
            (_, None) => Box::new(HeadWorkload::new(pool, parts[0], self.task.head, rotation)?),
        })
    }

    /// Sets the activation rows of a job's timed prefill: as many as before, or fewer where the
    /// default needs more than a hundredth of the time for them.
    fn set_tokens(
        &mut self,
        job: usize,
        default: &mut dyn Workload,
        baselines: &[Option<Candidate>; 2],
    ) -> Result<usize> {
        let [_, Some(prefill)] = baselines else { return Ok(1) };
        if let Some(unit) = self.done.iter().find(|u| u.key.job == job && u.key.prefill) {
            default.set_tokens(unit.tokens as usize);
            return Ok(unit.tokens as usize);
        }
        let mut tokens = PREFILL_TOKENS;
        default.set_tokens(LEAST_TOKENS);
        self.reporter.begin(prefill.id(), UNKNOWN)?;
        let one =
            default.sample(self.pool, prefill, Phase::Prefill, 1)?.us * 1e-6 / LEAST_TOKENS as f64;
        while tokens > LEAST_TOKENS && one * tokens as f64 > self.task.seconds / 100.0 {
            tokens /= 2;
        }
        default.set_tokens(tokens);
        Ok(tokens)
    }

    /// Times `kernels`, on the other workload where they do not read the default's layout.
    fn tournament(
        &mut self,
        (default, mut other): (&mut dyn Workload, Option<&mut dyn Workload>),
        baseline: Candidate,
        kernels: &[Candidate],
        phase: Phase,
        to_beat: Option<f64>,
    ) -> Result<Outcome> {
        let left = self.until.saturating_duration_since(Instant::now()).as_secs_f64();
        let share = left * kernels.len() as f64 / self.remaining.max(1) as f64;
        self.remaining = self.remaining.saturating_sub(kernels.len());
        // Long enough for the clock, short enough for a few rounds.
        let length = SAMPLE.as_secs_f64().min(share / (4 * (kernels.len() + 2)) as f64);
        self.reporter.begin(baseline.id(), UNKNOWN)?;
        let one = default.sample(self.pool, &baseline, phase, 1)?;
        let count = (length * 1e6 / one.us.max(1e-3)).ceil().clamp(1.0, 1e5) as usize;
        let allowed = allowed(self.task) + HUNG * (one.cost + one.us * 1e-6 * count as f64);
        let number = match other {
            None => kernels.iter().position(|kernel| kernel.id() == baseline.id()),
            Some(_) => None,
        };
        let (pool, reporter) = (self.pool, &mut *self.reporter);
        tournament::run(kernels.len(), number, share, to_beat, |entrant| {
            let kernel = match entrant {
                Entrant::Baseline => &baseline,
                Entrant::Candidate(c) => &kernels[c],
            };
            reporter.begin(kernel.id(), allowed)?;
            match (entrant, &mut other) {
                (Entrant::Candidate(_), Some(other)) => other.sample(pool, kernel, phase, count),
                _ => default.sample(pool, kernel, phase, count),
            }
        })
    }
}

fn timings(baseline: &KernelId, kernels: &[Candidate], outcome: &Outcome) -> Vec<Timing> {
    let timing = |(kernel, entry): (&Candidate, &Entry)| {
        let id = *kernel.id();
        match id == *baseline {
            true => Some(Timing { half_width: 0.0, ..timing(id, &outcome.baseline)? }),
            false => timing(id, entry),
        }
    };
    kernels.iter().zip(&outcome.entries).filter_map(timing).collect()
}
