//! Times a profile's picks again, against the runner-up and the untuned default: does the profile
//! still hold on this host?
//!
//! What is timed is what `bitnet-run` would call here, found by the same [`Selection`]: the pick,
//! or what takes its place where it is not present. It *lags* where it is slower than a rival by
//! more than the 95 % interval of that ratio, and by more than the 2 % that the tuner itself gives
//! away for a simpler tile. Some twenty comparisons are made, of which one would fail by chance, and
//! in another process pages lie elsewhere: so what lags is timed once more by a new worker, and has
//! to lag again.
//!
//! A pick is held against the runner-up of its own layout. Against a default of another layout the
//! layout's two kernels are held together, as they were chosen: weighed by the profile's objective.
//! So is attention, which has one kernel for both phases.

use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, Isa, KernelId, Layout, Objective, Op, Pick, Profile, Role, Shape};
use bitnet_runtime::kernels::Selection;
use bitnet_runtime::kernels::cache::Cache;
use serde::Serialize;

use crate::choose::{Gain, SIMPLICITY, weights};
use crate::findings::{Findings, serving};
use crate::measure::{
    Excluded, JobMeasurements, JobTask, Limits, Measurements, Timing, phase_name,
};
use crate::plan::{JobPlan, LayoutPlan, plan};
use crate::supervise::{self, Client, WorkerProgram};
use crate::timing::Present;
use crate::worker::{Event, LibraryFile, Work};
use crate::{ModelInfo, Notice, Result};

/// How to check.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads.
    pub threads: usize,
    /// How long all of it may take.
    pub budget: Duration,
    /// What becomes a worker.
    pub worker: WorkerProgram,
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

    fn holds(&self) -> bool {
        self.lost().next().is_none() && self.wrong().next().is_none()
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
        // What is a tie, or worth being simpler, is no lag.
        let lags = counts && ratio - half_width > 1.0 && ratio > 1.0 + SIMPLICITY;
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
/// Memory that the system refuses, a worker that cannot be started, a default that errs.
pub fn check(
    profile: &Profile,
    model: &ModelInfo,
    options: &Options,
    notify: &mut dyn FnMut(Notice),
) -> Result<Checked> {
    let start = Instant::now();
    let (jobs, served, library, notes) = prepare(profile, model)?;
    let left = |share: f64| {
        (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
    };
    let mut run = Checking {
        model,
        options,
        known: Findings::new(jobs),
        library,
        // What lags takes the rest.
        seconds: left(0.7),
        notify,
    };
    run.done_in_workers()?;
    let measurements = run.known.measurements()?;
    let mut roles = judge(profile, &served, &measurements);
    if roles.iter().any(|role| role.lost().next().is_some()) {
        for job in &mut run.known.jobs {
            let (role, parts) = (job.plan.role, &job.plan.parts);
            let mut same = roles.iter().filter(|r| r.role == role && r.parts == *parts);
            if same.all(|role| role.lost().next().is_none()) {
                job.plan.layouts.clear();
            }
        }
        run.known.units.clear();
        run.seconds = left(1.0);
        run.done_in_workers()?;
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
    library: Option<LibraryFile>,
    /// For the next worker.
    seconds: f64,
    notify: &'a mut dyn FnMut(Notice),
}

impl Checking<'_> {
    fn done_in_workers(&mut self) -> Result<()> {
        supervise::run(&self.options.worker, self.options.threads, self)
    }
}

impl Client for Checking<'_> {
    fn library(&self) -> Option<LibraryFile> {
        self.library.clone()
    }

    fn work(&mut self) -> Work {
        Work::Measure(self.known.task(self.model, Isa::best(), self.seconds))
    }

    fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Progress { done, doing } => (self.notify)(Notice::Progress(done, doing)),
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
        Some(PhaseCheck {
            phase: phase_name(phase),
            pick: pick(self.choice, phase)?.kernel,
            serves,
            median_us: timing.map(|timing| timing.median_us),
            rivals: self.rivals(phase, serves).into_iter().filter_map(rival).collect(),
            wrong: self.excluded.iter().find(|excluded| excluded.kernel == serves).cloned(),
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
        let first = roles.iter_mut().find(same).filter(|first| first.lost().next().is_some());
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
        *first = second;
    }
}
