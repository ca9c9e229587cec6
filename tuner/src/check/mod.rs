//! Times a profile's picks again, against the runner-up and the untuned default: does the profile
//! still hold on this host?
//!
//! What is timed is what `bitnet-run` would call here, found by the same [`Selection`]: the pick,
//! or what takes its place where it is not present. It *lags* where all of the 95 % interval of its
//! time over a rival's lies above 1.02: of that the tuner itself gives half away for a simpler tile,
//! and the rest is not worth tuning again. Some twenty comparisons are made, of which one would fail by chance, and
//! in another process pages lie elsewhere: so what lags is timed once more by a new worker, and has
//! to lag again.
//!
//! A pick is held against the runner-up of its own layout. Against a default of another layout the
//! layout's two kernels are held together, as they were chosen: weighed by the profile's objective.
//! So is attention, which has one kernel for both phases.
//!
//! A kernel that skips what meets a zero is held against reading all, at those shares of lines needed up
//! to which the profile has it serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{
    Effort, Isa, KernelId, Layout, Mode, Objective, Op, Pick, Profile, Role, Shape, Sparse,
};
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::kernels::cache::Cache;
use serde::Serialize;

use crate::choose::SIMPLICITY;
use crate::findings::Findings;
use crate::measure::{
    Excluded, JobMeasurements, Limits, Measurements, SparseTiming, Timing, phase_name, weights,
};
use crate::plan::defaults::serving;
use crate::plan::{JobPlan, JobTask, LayoutPlan, plan, sparse};
use crate::protocol::{Event, LibraryFile, SparseJob, SparseTask, Work};
use crate::stats::Gain;
use crate::supervise::{self, Client, Notice, WorkerProgram};
use crate::timing::present::Present;
use crate::{ModelInfo, Result};

/// How much slower than a rival a pick may be.
const TOLERANCE: f64 = 2.0 * SIMPLICITY;

/// How to check.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads.
    pub threads: usize,
    /// How long all of it may take.
    pub budget: Duration,
    /// What becomes a worker.
    pub worker: WorkerProgram,
    /// Set, from a signal handler for one, to end the check with [`crate::Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// Whether no pick lags, and none errs.
    pub holds: bool,
    /// What the machine can do now.
    pub limits: Limits,
    /// Median absolute deviation of the default's times over their median.
    pub noise: f64,
    /// Whether the machine was too restless to repeat all that was spoilt.
    pub disturbed: bool,
    /// The roles for which the profile has a choice.
    pub roles: Vec<RoleCheck>,
    /// What `bitnet-run` would say of the profile here, one line each.
    pub notes: Vec<String>,
}

/// What became of the choice for a role.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleCheck {
    /// The role.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Times per token that it runs.
    pub count: u32,
    /// The packing, for ternary roles.
    pub layout: Option<Layout>,
    /// Decode and, where it has one, prefill.
    pub phases: Vec<PhaseCheck>,
    /// Both phases, weighed as the profile was tuned for, against those rivals that can only be
    /// chosen for both.
    pub together: Vec<Rival>,
    /// What skips what meets a zero, where the profile says so.
    pub sparse: Option<SparseCheck>,
}

impl RoleCheck {
    /// The comparisons that this role lost: the phase, or none for both together, and the rival.
    pub fn lost(&self) -> impl Iterator<Item = (Option<&'static str>, &Rival)> {
        let of_phases = self
            .phases
            .iter()
            .flat_map(|phase| phase.rivals.iter().map(|rival| (Some(phase.phase), rival)));
        let all = of_phases.chain(self.together.iter().map(|rival| (None, rival)));
        all.filter(|(_, rival)| rival.lags)
    }

    /// Its kernels that err.
    pub fn wrong(&self) -> impl Iterator<Item = &Excluded> {
        self.phases.iter().filter_map(|phase| phase.wrong.as_ref())
    }

    /// Whether something is slower than what it is held against.
    fn lags(&self) -> bool {
        self.lost().next().is_some() || self.sparse.as_ref().is_some_and(|s| s.lag.is_some())
    }

    fn holds(&self) -> bool {
        !self.lags() && self.wrong().next().is_none()
    }
}

/// What became of the kernel that skips what meets a zero.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SparseCheck {
    /// What is skipped.
    pub mode: Mode,
    /// What the profile says.
    pub pick: Sparse,
    /// The kernel that was timed: what serves here; nothing where none was.
    pub serves: Option<KernelId>,
    /// The job's time with a quarter of the lines needed over that of reading all.
    pub quarter: Option<Skipped>,
    /// Where it serves and reading all is faster: the worst of that.
    pub lag: Option<Skipped>,
}

/// Time with some lines needed over that of reading all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Skipped {
    /// The share of lines needed.
    pub density: f64,
    /// The ratio of times.
    pub ratio: f64,
    /// Half its 95 % interval.
    pub half_width: f64,
}

impl Skipped {
    fn of(timing: &SparseTiming) -> Self {
        let SparseTiming { density, timing: Timing { ratio, half_width, .. } } = *timing;
        Self { density, ratio, half_width }
    }

    fn lags(&self) -> bool {
        self.ratio - self.half_width > 1.0 + TOLERANCE
    }

    /// How many times as fast as reading all.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// What became of a pick in a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseCheck {
    /// `decode` or `prefill`.
    pub phase: &'static str,
    /// The kernel that the profile names.
    pub pick: KernelId,
    /// The kernel that serves here: the same, or a fallback where that is not present.
    pub serves: KernelId,
    /// Median time of the job in microseconds; nothing where it was not timed.
    pub median_us: Option<f64>,
    /// What it was compared with.
    pub rivals: Vec<Rival>,
    /// The runner-up of the profile, where it could not be timed: kernels made for one run are not
    /// kept unless they win.
    pub absent_runner_up: Option<KernelId>,
    /// What it did wrong: it was left out.
    pub wrong: Option<Excluded>,
}

/// What a pick is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rival {
    /// What it is.
    pub kind: RivalKind,
    /// The kernel; for both phases together that of decode.
    pub kernel: KernelId,
    /// Time of the pick over that of the rival.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
    /// Whether this comparison counts; else the one of both phases together does.
    pub counts: bool,
    /// Whether it counts and the pick lags.
    pub lags: bool,
}

impl Rival {
    fn of(kind: RivalKind, kernel: KernelId, ratio: Ratio, counts: bool) -> Self {
        let Ratio { ratio, half_width } = ratio;
        let lags = counts && ratio - half_width > 1.0 + TOLERANCE;
        Self { kind, kernel, ratio, half_width, counts, lags }
    }

    /// How many times as fast as the rival the pick is.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// Kinds of rivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RivalKind {
    /// The second best of the run that made the profile.
    RunnerUp,
    /// The best built-in kernel, where the runner-up is not present.
    BuiltIn,
    /// What runs without a profile.
    Default,
}

impl std::fmt::Display for RivalKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::RunnerUp => "runner-up",
            Self::BuiltIn => "built-in",
            Self::Default => "default",
        })
    }
}

/// The kernels that serve a choice of the profile here.
#[derive(Debug, Clone, PartialEq)]
pub struct Serving {
    /// The role.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// For one token.
    pub decode: KernelId,
    /// For many; none for the head.
    pub prefill: Option<KernelId>,
}

/// Times the picks of a profile again.
///
/// # Errors
/// Memory that the system refuses, a worker that cannot be started, a default that errs,
/// [`crate::Error::Stopped`].
pub fn check(
    profile: &Profile,
    model: &ModelInfo,
    options: &Options,
    notify: &mut dyn FnMut(Notice),
) -> Result<Checked> {
    let start = Instant::now();
    let (jobs, served, library, notes) = prepare(profile, model)?;
    let sparse = sparse_jobs(profile, model, &served)?;
    let left = |share: f64| {
        (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
    };
    let mut run = Checking {
        model,
        options,
        known: Findings::new(jobs),
        sparse,
        skips: false,
        library,
        // What lags takes the rest.
        seconds: 0.0,
        notify,
    };
    // What skips takes a fifth of it.
    let part = if run.sparse.is_empty() { 0.0 } else { 0.2 };
    run.time(left(0.7 - part), || left(0.7))?;
    let measurements = run.known.measurements()?;
    let mut roles = judge(profile, &served, &measurements);
    if roles.iter().any(RoleCheck::lags) {
        let roles_of = |role: Role, parts: &[Shape]| -> Vec<&RoleCheck> {
            roles.iter().filter(|r| r.role == role && r.parts == *parts).collect()
        };
        for job in &mut run.known.jobs {
            let same = roles_of(job.plan.role, &job.plan.parts);
            if same.iter().all(|role| role.lost().next().is_none()) {
                job.plan.layouts.clear();
            }
        }
        let lags = |role: &&RoleCheck| role.sparse.as_ref().is_some_and(|s| s.lag.is_some());
        run.sparse.retain(|job| roles_of(job.role, &job.parts).iter().any(lags));
        run.known.units.clear();
        run.known.sparse.clear();
        let rest = left(1.0);
        run.time(rest * (1.0 - part), || left(1.0))?;
        confirm(&mut roles, judge(profile, &served, &run.known.measurements()?));
    }
    Ok(Checked {
        holds: roles.iter().all(RoleCheck::holds),
        limits: measurements.limits,
        noise: measurements.noise,
        disturbed: measurements.disturbed,
        roles,
        notes,
    })
}

/// What [`prepare`] makes of a profile: what to measure, what serves, the library that holds some of
/// it, and what there is to say.
type Prepared = (Vec<JobTask>, Vec<Serving>, Option<LibraryFile>, Vec<String>);

/// Finds what `bitnet-run` would call, and its rivals.
fn prepare(profile: &Profile, model: &ModelInfo) -> Result<Prepared> {
    let untuned = Selection::default();
    let tuned = Selection::new(None, None, Some(profile.clone()))?;
    let mut served = Vec::new();
    let mut defaults = Vec::new();
    let mut roles: Vec<JobPlan> = Vec::new();
    for job in plan(model, &[], tuned.ceiling(), Effort::Measure) {
        if profile.choice(job.role, &job.parts).is_none() {
            continue;
        }
        let of = |selection| serving(selection, model, (job.role, &job.parts));
        let (decode, prefill) = of(&tuned)?;
        defaults.push(of(&untuned)?);
        served.push(Serving { role: job.role, parts: job.parts.clone(), decode, prefill });
        roles.push(job);
    }
    // Kernels for one shape are in the library, so if one serves, the library is to be used.
    let made = |serving: &Serving| {
        [Some(serving.decode), serving.prefill].into_iter().flatten().any(|id| id.shape.is_some())
    };
    let library = match (&profile.tool.library_sha256, Cache::of_user(|n| std::env::var_os(n))) {
        (Some(sha256), Ok(cache)) if served.iter().any(made) => {
            Some(LibraryFile { cache: cache.folder().into(), sha256: sha256.clone() })
        }
        _ => None,
    };
    let present = Present(library.as_ref().map(LibraryFile::load).transpose()?);
    type Default = (KernelId, Option<KernelId>);
    let task = |((mut plan, serving), default): ((JobPlan, &Serving), Default)| {
        let (default_decode, default_prefill) = default;
        let choice = profile.choice(serving.role, &serving.parts);
        let rivals = |phase| {
            let pick = choice.and_then(|choice| pick(choice, phase));
            let named = pick.map_or([None; 2], |pick| [pick.runner_up, Some(pick.built_in)]);
            let fit = |id: &KernelId| competes(id, serving, phase);
            // The runner-up, or else the best that is built in.
            named.into_iter().flatten().filter(fit).find(|id| present.find(id).is_ok())
        };
        let (decode, prefill) = (rivals(Phase::Decode), rivals(Phase::Prefill));
        let of = |kernel: Option<KernelId>, rival: Option<KernelId>| -> Vec<KernelId> {
            kernel.into_iter().chain(rival.filter(|_| kernel.is_some())).collect()
        };
        let layout = layout_of(&serving.decode);
        plan.layouts = vec![LayoutPlan {
            layout,
            decode: of(Some(serving.decode), decode),
            prefill: of(serving.prefill, prefill),
        }];
        let default_layout = layout_of(&default_decode);
        let default = LayoutPlan {
            layout: default_layout,
            decode: vec![default_decode],
            prefill: default_prefill.into_iter().collect(),
        };
        if default_layout == layout {
            let own = &mut plan.layouts[0];
            for (own, default) in
                [(&mut own.decode, default.decode), (&mut own.prefill, default.prefill)]
            {
                let new: Vec<KernelId> =
                    default.into_iter().filter(|id| !own.contains(id)).collect();
                own.extend(new);
            }
        } else {
            plan.layouts.push(default);
        }
        JobTask { plan, default_decode, default_prefill }
    };
    let jobs = roles.into_iter().zip(&served).zip(defaults).map(task).collect();
    Ok((jobs, served, library, tuned.take_notes()))
}

/// The jobs in which the profile has a kernel skip what meets a zero.
fn sparse_jobs(profile: &Profile, model: &ModelInfo, served: &[Serving]) -> Result<Vec<SparseJob>> {
    let tuned = Selection::new(None, None, Some(profile.clone()))?;
    let job = |Serving { role, parts, decode, .. }: &Serving| {
        let named = profile.choice(*role, parts)?.sparse.as_ref()?;
        let (kernel, _) = tuned.lines(*role, parts)?;
        let all = sparse::candidates(model, (*role, parts), Some(&kernel), tuned.ceiling());
        // The first is the one that serves.
        let kernels: Vec<KernelId> = all.into_iter().take(1).collect();
        (named.below > 0.0 && !kernels.is_empty()).then(|| SparseJob {
            role: *role,
            parts: parts.clone(),
            dense: *decode,
            kernels,
        })
    };
    Ok(served.iter().filter_map(job).collect())
}

/// The pick of a phase; attention has one for both.
fn pick(choice: &bitnet_profiles::Choice, phase: Phase) -> Option<&Pick> {
    match phase {
        Phase::Prefill if choice.role != Role::Attention => choice.prefill.as_ref(),
        _ => Some(&choice.decode),
    }
}

fn layout_of(kernel: &KernelId) -> Option<Layout> {
    match kernel.op {
        Op::Ternary(layout) => Some(layout),
        _ => None,
    }
}

/// Whether a kernel that a profile names could take the place of the one that serves.
fn competes(id: &KernelId, serving: &Serving, phase: Phase) -> bool {
    let kernel = match phase {
        Phase::Decode => Some(serving.decode),
        Phase::Prefill => serving.prefill,
    };
    let ternary = layout_of(id).is_some();
    kernel.is_some_and(|kernel| kernel != *id && kernel.op == id.op)
        && (!ternary || Phase::of(&id.tile) == phase)
        && id.shape.is_none_or(|own| serving.parts.iter().all(|part| part.cols == own.cols))
}

/// A check under way.
struct Checking<'a> {
    model: &'a ModelInfo,
    options: &'a Options,
    known: Findings,
    /// The jobs in which to skip, and whether the next worker times these.
    sparse: Vec<SparseJob>,
    skips: bool,
    library: Option<LibraryFile>,
    /// For the next worker.
    seconds: f64,
    notify: &'a mut dyn FnMut(Notice),
}

impl Checking<'_> {
    /// Times the picks within so many seconds, then what skips in those that are left.
    fn time(&mut self, seconds: f64, left: impl Fn() -> f64) -> Result<()> {
        (self.seconds, self.skips) = (seconds, false);
        self.done_in_workers()?;
        if !self.sparse.is_empty() {
            (self.seconds, self.skips) = (left(), true);
            self.done_in_workers()?;
        }
        Ok(())
    }

    fn done_in_workers(&mut self) -> Result<()> {
        supervise::run(&self.options.worker, self.options.threads, self)
    }
}

impl Client for Checking<'_> {
    fn library(&self) -> Option<LibraryFile> {
        self.library.clone()
    }

    fn work(&mut self) -> Work {
        if self.skips {
            let is_out = |id: &KernelId| self.known.excluded.iter().any(|e| e.kernel == *id);
            let sound = |job: &&SparseJob| !job.kernels.iter().any(is_out);
            return Work::Sparse(SparseTask {
                jobs: self.sparse.iter().filter(sound).cloned().collect(),
                model_bytes: self.known.model_bytes(self.model),
                seconds: self.seconds,
            });
        }
        Work::Measure(self.known.task(self.model, Isa::best(), self.seconds))
    }

    fn is_stopped(&self) -> bool {
        self.options.stop.load(Ordering::Relaxed)
    }

    fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Progress { done, doing } => (self.notify)(Notice::Progress(done, doing)),
            Event::Note(line) => (self.notify)(Notice::Line(line)),
            Event::Excluded(excluded) => {
                (self.notify)(Notice::Line(self.known.objection(&excluded)?));
                self.known.excluded.push(excluded);
            }
            event => self.known.learn(event),
        }
        Ok(())
    }
}

/// A ratio of times.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    ratio: f64,
    half_width: f64,
}

impl Ratio {
    /// Of two times, each with half its interval.
    fn of(own: (f64, f64), other: (f64, f64)) -> Self {
        let least = other.0.max(1e-9);
        let ratio = own.0 / least;
        Self { ratio, half_width: own.1.hypot(ratio * other.1) / least }
    }
}

/// Compares what serves with its rivals: the same measurements give the same verdicts.
pub fn judge(profile: &Profile, served: &[Serving], measurements: &Measurements) -> Vec<RoleCheck> {
    let role = |serving: &Serving| {
        let choice = profile.choice(serving.role, &serving.parts)?;
        let same = |job: &&JobMeasurements| job.role == serving.role && job.parts == serving.parts;
        let job = measurements.jobs.iter().find(same);
        let role = Judge { profile, choice, serving, job, excluded: &measurements.excluded };
        let phases = [(Phase::Decode, Some(serving.decode)), (Phase::Prefill, serving.prefill)];
        let phases = phases.into_iter().filter_map(|(phase, id)| role.phase(phase, id?));
        Some(RoleCheck {
            role: serving.role,
            parts: serving.parts.clone(),
            count: choice.count,
            layout: layout_of(&serving.decode),
            phases: phases.collect(),
            together: role.together(),
            sparse: role.sparse(),
        })
    };
    served.iter().filter_map(role).collect()
}

/// What is known of a role.
struct Judge<'a> {
    profile: &'a Profile,
    choice: &'a bitnet_profiles::Choice,
    serving: &'a Serving,
    job: Option<&'a JobMeasurements>,
    excluded: &'a [Excluded],
}

impl<'a> Judge<'a> {
    /// What was timed of a kernel.
    fn timing(&self, phase: Phase, kernel: &KernelId) -> Option<&'a Timing> {
        let layouts = self.job?.layouts.iter();
        layouts.flat_map(|layout| layout.timings(phase)).find(|timing| timing.kernel == *kernel)
    }

    /// Time over that of the default, and half its interval.
    fn ratio(&self, phase: Phase, kernel: &KernelId) -> Option<(f64, f64)> {
        if self.job?.default_kernel(phase) == Some(*kernel) {
            return Some((1.0, 0.0));
        }
        self.timing(phase, kernel).map(|timing| (timing.ratio, timing.half_width))
    }

    /// Whether the two phases of a rival can only be had together.
    fn is_joint(&self, kind: RivalKind) -> bool {
        let default = self.job.map(|job| layout_of(&job.default_decode));
        let elsewhere = default.is_some_and(|layout| layout != layout_of(&self.serving.decode));
        self.serving.role == Role::Attention || (kind == RivalKind::Default && elsewhere)
    }

    /// The rivals of a phase that were timed.
    fn rivals(&self, phase: Phase, serves: KernelId) -> Vec<(RivalKind, KernelId)> {
        let pick = pick(self.choice, phase);
        let timed = |id: &KernelId| *id != serves && self.ratio(phase, id).is_some();
        let runner_up = pick.and_then(|pick| pick.runner_up).filter(timed);
        let built_in = pick.map(|pick| pick.built_in).filter(timed);
        let second = match (runner_up, built_in) {
            (Some(id), _) => Some((RivalKind::RunnerUp, id)),
            (None, built_in) => built_in.map(|id| (RivalKind::BuiltIn, id)),
        };
        let default = self.job.and_then(|job| job.default_kernel(phase)).filter(timed);
        // A runner-up that is the default stands once.
        let second = second.filter(|(_, id)| Some(*id) != default);
        second.into_iter().chain(default.map(|id| (RivalKind::Default, id))).collect()
    }

    fn phase(&self, phase: Phase, serves: KernelId) -> Option<PhaseCheck> {
        let own = self.ratio(phase, &serves);
        let timing = self.timing(phase, &serves);
        let rival = |(kind, id): (RivalKind, KernelId)| {
            let ratio = Ratio::of(own?, self.ratio(phase, &id)?);
            Some(Rival::of(kind, id, ratio, !self.is_joint(kind)))
        };
        let pick = pick(self.choice, phase)?;
        let absent = |id: &KernelId| *id != serves && self.ratio(phase, id).is_none();
        Some(PhaseCheck {
            phase: phase_name(phase),
            pick: pick.kernel,
            absent_runner_up: pick.runner_up.filter(absent),
            serves,
            median_us: timing.map(|timing| timing.median_us),
            rivals: self.rivals(phase, serves).into_iter().filter_map(rival).collect(),
            wrong: self.excluded.iter().find(|excluded| excluded.kernel == serves).cloned(),
        })
    }

    /// What skips, where the profile says so.
    fn sparse(&self) -> Option<SparseCheck> {
        let pick = self.choice.sparse.clone()?;
        let timed = self.job.and_then(|job| job.sparse.as_ref());
        let timed = timed.filter(|sparse| !sparse.timings.is_empty());
        let all = || timed.into_iter().flat_map(|sparse| &sparse.timings).map(Skipped::of);
        let lags = all().filter(|skipped| skipped.density <= pick.below && skipped.lags());
        Some(SparseCheck {
            mode: self.choice.mode,
            serves: timed.map(|sparse| sparse.default),
            quarter: all().find(|skipped| skipped.density == 0.25),
            lag: lags.max_by(|a, b| a.ratio.total_cmp(&b.ratio)),
            pick,
        })
    }

    /// The rivals of which both phases count together.
    fn together(&self) -> Vec<Rival> {
        let (Some(job), Some(prefill)) = (self.job, self.serving.prefill) else {
            return Vec::new();
        };
        let objective: Objective = self.profile.tool.objective;
        let (of_decode, of_prefill) = weights(objective);
        let decode_us = of_decode * job.default_us(Phase::Decode);
        let prefill_us = of_prefill * job.default_us(Phase::Prefill);
        let cost = |decode: &KernelId, prefill: &KernelId| {
            let d = self.ratio(Phase::Decode, decode)?;
            let p = self.ratio(Phase::Prefill, prefill)?;
            let half_width = (decode_us * d.1).hypot(prefill_us * p.1);
            Some((decode_us * d.0 + prefill_us * p.0, half_width))
        };
        let own = cost(&self.serving.decode, &prefill);
        let rivals = self.rivals(Phase::Decode, self.serving.decode).into_iter();
        let joint = rivals.filter(|(kind, _)| self.is_joint(*kind)).filter_map(|(kind, id)| {
            let many = match kind {
                RivalKind::Default => job.default_prefill?,
                _ => id,
            };
            Some(Rival::of(kind, id, Ratio::of(own?, cost(&id, &many)?), true))
        });
        joint.collect()
    }
}

/// What lagged, and was timed a second time, lags only if it did so again.
fn confirm(roles: &mut [RoleCheck], again: Vec<RoleCheck>) {
    for mut second in again {
        let same =
            |first: &&mut RoleCheck| first.role == second.role && first.parts == second.parts;
        let first = roles.iter_mut().find(same).filter(|first| first.lags());
        let Some(first) = first else { continue };
        let lagged = |phase: Option<&str>, kind: RivalKind| {
            first.lost().any(|(lost, rival)| lost == phase && rival.kind == kind)
        };
        for phase in &mut second.phases {
            for rival in &mut phase.rivals {
                rival.lags &= lagged(Some(phase.phase), rival.kind);
            }
        }
        for rival in &mut second.together {
            rival.lags &= lagged(None, rival.kind);
        }
        // Of the two parts of a role that were timed again the other says nothing new.
        match (&mut first.sparse, second.sparse.take()) {
            (Some(first), Some(second)) if second.quarter.is_some() => {
                let lagged = first.lag.is_some();
                *first = SparseCheck { lag: second.lag.filter(|_| lagged), ..second };
            }
            _ => {}
        }
        if first.lost().next().is_some() {
            second.sparse = first.sparse.take();
            *first = second;
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Choice;

    use super::*;
    use crate::measure::{LayoutMeasurements, SparseMeasurements, Why};

    const D16: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0";
    const P16: &str = "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0";
    const D32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p0";
    const D32_SECOND: &str = "i2_s_t32__avx512vnni__any__r64_c0_n1_u1_p0";
    const D32_MADE: &str = "i2_s_t32__avx512vnni__m256_k256__r32_c0_n1_u1_p0";
    const P32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n8_u1_p0";
    const A1: &str = "attention_f16__avx512__any__r1_c256_n1_u1_p0";
    const A8: &str = "attention_f16__avx512__any__r8_c256_n1_u1_p0";

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    fn timing(kernel: &str, ratio: f64, half_width: f64) -> Timing {
        Timing {
            kernel: id(kernel),
            samples: 20,
            min_us: 90.0 * ratio,
            median_us: 100.0 * ratio,
            mad_us: 1.0,
            ratio,
            half_width,
            finalist: true,
        }
    }

    fn pick(kernel: &str, runner_up: Option<&str>, built_in: &str) -> Pick {
        Pick {
            kernel: id(kernel),
            tokens: 1,
            median_us: 100.0,
            mad_us: 1.0,
            gb_per_s: 1.0,
            share_of_limit: 0.5,
            runner_up: runner_up.map(id),
            runner_up_ratio: None,
            built_in: id(built_in),
        }
    }

    /// A role, its picks and defaults, and what was timed: the defaults take 100 us for one token
    /// and 400 us for 32.
    struct Case {
        role: Role,
        decode: Pick,
        prefill: Option<Pick>,
        defaults: (&'static str, Option<&'static str>),
        timed: (Vec<Timing>, Vec<Timing>),
        excluded: Vec<Excluded>,
        objective: Objective,
        sparse: Option<(Sparse, SparseMeasurements)>,
    }

    impl Case {
        /// Decode of the default's own layout.
        fn decode(decode: Pick, timed: Vec<Timing>) -> Self {
            Self {
                role: Role::Down,
                decode,
                prefill: Some(pick(P32, None, P32)),
                defaults: (D32, Some(P32)),
                timed: (timed, vec![timing(P32, 1.0, 0.0)]),
                excluded: Vec::new(),
                objective: Objective::Balanced,
                sparse: None,
            }
        }

        fn judged(&self, serves: &str) -> RoleCheck {
            let mut profile =
                Profile::parse(include_str!("../../tests/data/profile.toml")).unwrap();
            let parts = vec![Shape::new(256, 256)];
            profile.tool.objective = self.objective;
            profile.ops = vec![Choice {
                role: self.role,
                parts: parts.clone(),
                count: 6,
                layout: layout_of(&self.decode.kernel),
                mode: self.sparse.as_ref().map_or(Mode::Dense, |_| Mode::Axpy),
                decode: self.decode.clone(),
                prefill: self.prefill.clone(),
                sparse: self.sparse.as_ref().map(|(pick, _)| pick.clone()),
            }];
            let (decode, prefill) = self.timed.clone();
            let many = match self.role {
                Role::Attention => Some(id(serves)),
                _ => self.prefill.as_ref().map(|pick| pick.kernel),
            };
            let job = JobMeasurements {
                role: self.role,
                parts: parts.clone(),
                count: 6,
                default_decode: id(self.defaults.0),
                default_prefill: self.defaults.1.map(id),
                default_decode_us: 100.0,
                default_prefill_us: 400.0,
                tokens: 32,
                layouts: vec![LayoutMeasurements {
                    layout: layout_of(&self.decode.kernel),
                    bytes: 1000,
                    limit_gb_per_s: 40.0,
                    decode,
                    prefill,
                }],
                sparse: self.sparse.as_ref().map(|(_, measured)| measured.clone()),
            };
            let limits = Limits {
                threads: 1,
                read_gb_per_s: 40.0,
                limit_gb_per_s: 40.0,
                limit_gmac_per_s: None,
                cold: true,
            };
            let excluded = self.excluded.clone();
            let jobs = vec![job];
            let measurements =
                Measurements { limits, noise: 0.01, disturbed: false, excluded, jobs };
            let serving = Serving { role: self.role, parts, decode: id(serves), prefill: many };
            let mut roles = judge(&profile, &[serving], &measurements);
            assert_eq!(roles.len(), 1);
            roles.remove(0)
        }
    }

    /// The phases and the rivals that were lost to.
    fn lost(role: &RoleCheck) -> Vec<(Option<&'static str>, RivalKind)> {
        role.lost().map(|(phase, rival)| (phase, rival.kind)).collect()
    }

    #[test]
    fn a_lag_beyond_the_noise_is_one() {
        // The pick's ratio to the default and half its interval, the runner-up's; what is lost.
        type Row = ((f64, f64), (f64, f64), &'static [RivalKind]);
        let rows: [Row; 8] = [
            ((0.90, 0.01), (0.95, 0.01), &[]),
            ((0.90, 0.01), (0.85, 0.01), &[RivalKind::RunnerUp]),
            // Within the noise of one or of both.
            ((0.90, 0.06), (0.85, 0.01), &[]),
            ((0.90, 0.04), (0.85, 0.04), &[]),
            // No noise, but no more than being simpler may cost.
            ((0.90, 0.001), (0.89, 0.001), &[]),
            ((1.05, 0.02), (1.20, 0.02), &[RivalKind::Default]),
            ((1.05, 0.06), (1.20, 0.02), &[]),
            ((1.05, 0.01), (0.90, 0.01), &[RivalKind::RunnerUp, RivalKind::Default]),
        ];
        for (own, second, kinds) in rows {
            let decode = pick(D32_MADE, Some(D32_SECOND), D32);
            let timed = vec![
                timing(D32_MADE, own.0, own.1),
                timing(D32_SECOND, second.0, second.1),
                timing(D32, 1.0, 0.0),
            ];
            let role = Case::decode(decode, timed).judged(D32_MADE);
            let expected: Vec<_> = kinds.iter().map(|&kind| (Some("decode"), kind)).collect();
            assert_eq!(lost(&role), expected, "{own:?} {second:?}");
            assert_eq!(role.holds(), kinds.is_empty());
            assert!(role.together.is_empty());
        }
    }

    #[test]
    fn rivals_that_are_not_here_are_replaced_or_left_out() {
        let kinds = |role: &RoleCheck| -> Vec<RivalKind> {
            role.phases[0].rivals.iter().map(|rival| rival.kind).collect()
        };
        // The runner-up was made for the run that is over: the best built-in kernel serves.
        let decode = pick(D32_MADE, Some("i2_s_t32__avx512vnni__m256_k256__r64_c0_n1_u1_p0"), D32);
        let mut case = Case::decode(
            pick(D32_MADE, decode.runner_up.map(|id| id.to_string()).as_deref(), D32_SECOND),
            vec![timing(D32_MADE, 0.9, 0.01), timing(D32_SECOND, 0.8, 0.01)],
        );
        let role = case.judged(D32_MADE);
        assert_eq!(kinds(&role), [RivalKind::BuiltIn, RivalKind::Default]);
        assert_eq!(role.phases[0].absent_runner_up, decode.runner_up);
        assert_eq!(lost(&role), [(Some("decode"), RivalKind::BuiltIn)]);
        // No second at all, and the default itself.
        case = Case::decode(pick(D32, None, D32), vec![timing(D32, 1.0, 0.0)]);
        let role = case.judged(D32);
        assert!(kinds(&role).is_empty() && role.holds());
        // A runner-up that is the default stands once.
        let timed = vec![timing(D32_MADE, 0.9, 0.01), timing(D32, 1.0, 0.0)];
        let role = Case::decode(pick(D32_MADE, Some(D32), D32), timed).judged(D32_MADE);
        assert_eq!(kinds(&role), [RivalKind::Default]);
        assert_eq!(role.phases[0].absent_runner_up, None);
    }

    #[test]
    fn a_fallback_is_judged_as_what_runs() {
        let timed = vec![timing(D32_SECOND, 1.1, 0.01), timing(D32, 1.0, 0.0)];
        let role = Case::decode(pick(D32_MADE, None, D32_SECOND), timed).judged(D32_SECOND);
        let phase = &role.phases[0];
        assert_eq!((phase.pick, phase.serves), (id(D32_MADE), id(D32_SECOND)));
        assert_eq!(lost(&role), [(Some("decode"), RivalKind::Default)]);
    }

    #[test]
    fn a_layout_is_held_against_the_default_with_both_its_kernels() {
        // Of another layout than the default's: a tenth slower for a token, a quarter faster for
        // a prompt. A token costs 110 of 100, four prompt tokens 37.5 of 50.
        let mut case = Case {
            defaults: (D16, Some(P16)),
            timed: (vec![timing(D32, 1.1, 0.01)], vec![timing(P32, 0.75, 0.01)]),
            ..Case::decode(pick(D32, None, D32), vec![])
        };
        for (objective, holds, ratio) in [
            (Objective::Balanced, true, 147.5 / 150.0),
            (Objective::Prefill, true, 0.75),
            (Objective::Decode, false, 1.1),
        ] {
            case.objective = objective;
            let role = case.judged(D32);
            assert_eq!(role.holds(), holds, "{objective}");
            assert!((role.together[0].ratio - ratio).abs() < 1e-9, "{role:?}");
            assert!(role.phases.iter().flat_map(|p| &p.rivals).all(|rival| !rival.counts));
        }
    }

    #[test]
    fn attention_is_held_against_its_rivals_in_both_phases_together() {
        let mut case = Case {
            role: Role::Attention,
            decode: pick(A1, Some(A8), A1),
            prefill: None,
            defaults: (A8, Some(A8)),
            timed: (
                vec![timing(A1, 0.7, 0.01), timing(A8, 1.0, 0.0)],
                vec![timing(A1, 1.6, 0.01), timing(A8, 1.0, 0.0)],
            ),
            excluded: Vec::new(),
            objective: Objective::Decode,
            sparse: None,
        };
        let role = case.judged(A1);
        assert_eq!((role.phases.len(), role.together.len()), (2, 1));
        assert!(role.holds());
        // 70 + 4 * 1.6 * 12.5 are as much as 100 + 50.
        case.objective = Objective::Balanced;
        assert!(case.judged(A1).holds());
        case.objective = Objective::Prefill;
        assert_eq!(lost(&case.judged(A1)), [(None, RivalKind::Default)]);
    }

    /// What is held against reading all: the ratio of times at each share that was timed.
    #[test]
    fn what_skips_lags_where_it_serves_and_reading_all_is_faster() {
        let kernel = id("columns_i2_s_l64__avx512vnni__any__r256_c32_n1_u1_p32");
        let role = |below: f64, ratios: [f64; 4]| {
            let mut case = Case::decode(pick(D32, None, D32), vec![timing(D32, 1.0, 0.0)]);
            let densities = sparse::DENSITIES.into_iter().zip(ratios);
            let timings = densities.map(|(density, ratio)| SparseTiming {
                density,
                timing: Timing { kernel, ..timing(D32, ratio, 0.01) },
            });
            let pick = Sparse { kernel, built_in: kernel, below, ratio_at_quarter: None };
            let timings = timings.collect();
            let measured = SparseMeasurements { dense: id(D32), default: kernel, timings };
            case.sparse = Some((pick, measured));
            case.judged(D32)
        };
        for (below, ratios, lag) in [
            (0.6, [0.2, 0.4, 0.8, 1.2], None),
            (0.8, [0.2, 0.4, 0.8, 1.2], Some(0.75)),
            (0.8, [1.1, 1.2, 1.3, 1.2], Some(0.5)),
            // Within the noise and what simplicity may cost.
            (0.8, [0.2, 0.4, 0.8, 1.025], None),
            (0.0, [2.0; 4], None),
        ] {
            let role = role(below, ratios);
            let own = role.sparse.as_ref().unwrap();
            assert_eq!(own.lag.map(|lag| lag.density), lag, "{below} {ratios:?}");
            assert_eq!(own.quarter.map(|quarter| quarter.ratio), Some(ratios[1]));
            assert_eq!((role.holds(), own.serves), (lag.is_none(), Some(kernel)));
        }
        // Only what lags twice does.
        let (good, bad) = ([0.2, 0.4, 0.8, 0.9], [0.2, 0.4, 0.8, 1.2]);
        for (first, second, holds) in
            [(bad, bad, false), (bad, good, true), (good, bad, true), (good, good, true)]
        {
            let mut roles = vec![role(0.8, first)];
            confirm(&mut roles, vec![role(0.8, second)]);
            assert_eq!(roles[0].holds(), holds, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_pick_that_errs_does_not_hold() {
        let mut case = Case::decode(pick(D32_MADE, None, D32), vec![timing(D32, 1.0, 0.0)]);
        case.excluded =
            vec![Excluded { kernel: id(D32_MADE), why: Why::Wrong, found: "row 1".into() }];
        let role = case.judged(D32_MADE);
        assert!(!role.holds() && role.phases[0].median_us.is_none());
        assert_eq!(role.wrong().next().unwrap().why, Why::Wrong);
    }

    #[test]
    fn what_lags_once_only_does_not_lag() {
        let role = |own: f64| {
            let timed = vec![timing(D32_MADE, own, 0.01), timing(D32, 1.0, 0.0)];
            Case::decode(pick(D32_MADE, None, D32), timed).judged(D32_MADE)
        };
        for (first, second, holds) in
            [(1.2, 1.2, false), (1.2, 0.9, true), (0.9, 1.2, true), (0.9, 0.9, true)]
        {
            let mut roles = vec![role(first)];
            confirm(&mut roles, vec![role(second)]);
            assert_eq!(roles[0].holds(), holds, "{first} {second}");
        }
    }
}
