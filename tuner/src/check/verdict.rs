//! Outcomes of a check.

use bitnet_profiles::{KernelId, Layout, Role, Shape, Sparse};
use serde::Serialize;

use crate::choose::SIMPLICITY;
use crate::measure::{Excluded, Limits, SparseTiming, Timing};
use crate::stats::Gain;

/// How much slower than a rival a pick may be.
const TOLERANCE: f64 = 2.0 * SIMPLICITY;

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
    pub(super) fn lags(&self) -> bool {
        self.lost().next().is_some() || self.sparse.as_ref().is_some_and(|s| s.lag.is_some())
    }

    pub(super) fn holds(&self) -> bool {
        !self.lags() && self.wrong().next().is_none()
    }
}

/// What became of the kernel that skips what meets a zero.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SparseCheck {
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
    pub(super) fn of(timing: &SparseTiming) -> Self {
        let SparseTiming { density, timing: Timing { ratio, half_width, .. } } = *timing;
        Self { density, ratio, half_width }
    }

    pub(super) fn lags(&self) -> bool {
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
    pub(super) fn of(kind: RivalKind, kernel: KernelId, ratio: Ratio, counts: bool) -> Self {
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

/// A ratio of times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    pub ratio: f64,
    pub half_width: f64,
}

impl Ratio {
    /// Of two times, each with half its interval.
    pub(super) fn of(own: (f64, f64), other: (f64, f64)) -> Self {
        let least = other.0.max(1e-9);
        let ratio = own.0 / least;
        Self { ratio, half_width: own.1.hypot(ratio * other.1) / least }
    }
}
