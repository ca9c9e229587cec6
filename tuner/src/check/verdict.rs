//! Outcome of a check.

use bitnet_profiles::{KernelId, Packing, Role, Shape, Sparse};
use serde::Serialize;

use crate::choose::SIMPLICITY;
use crate::measure::{Excluded, Limits, SparseTiming, Timing};
use crate::stats::Gain;

/// Share by which a pick may be slower than a rival.
const TOLERANCE: f64 = 2.0 * SIMPLICITY;

/// Outcome of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// True if no pick lags and none computes wrong results.
    pub holds: bool,
    /// Limits of the machine, probed anew.
    pub limits: Limits,
    /// Median absolute deviation of the default's times over their median.
    pub noise: f64,
    /// True if the machine was too noisy to repeat all disturbed samples.
    pub disturbed: bool,
    /// Roles for which the profile has a choice.
    pub roles: Vec<RoleCheck>,
    /// Notes of `bitnet-run` about the profile here, one line each.
    pub notes: Vec<String>,
}

/// Outcome for one role.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleCheck {
    /// The role.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Runs per token.
    pub count: u32,
    /// The packing, for ternary roles.
    pub layout: Option<Packing>,
    /// Decode and, where it has one, prefill.
    pub phases: Vec<PhaseCheck>,
    /// Comparisons of both phases together, weighed by the profile's objective, with rivals that
    /// can only be chosen for both.
    pub together: Vec<Rival>,
    /// Activation sparsity, where the profile uses it.
    pub sparse: Option<SparseCheck>,
}

impl RoleCheck {
    /// Lists the lost comparisons: the phase, or none for both together, and the rival.
    pub fn lost(&self) -> impl Iterator<Item = (Option<&'static str>, &Rival)> {
        let of_phases = self
            .phases
            .iter()
            .flat_map(|phase| phase.rivals.iter().map(|rival| (Some(phase.phase), rival)));
        let all = of_phases.chain(self.together.iter().map(|rival| (None, rival)));
        all.filter(|(_, rival)| rival.lags)
    }

    /// Lists its kernels that failed.
    pub fn wrong(&self) -> impl Iterator<Item = &Excluded> {
        self.phases.iter().filter_map(|phase| phase.wrong.as_ref())
    }

    /// True if a comparison was lost.
    pub(super) fn lags(&self) -> bool {
        self.lost().next().is_some() || self.sparse.as_ref().is_some_and(|s| s.lag.is_some())
    }

    pub(super) fn holds(&self) -> bool {
        !self.lags() && self.wrong().next().is_none()
    }
}

/// Outcome for a kernel that uses activation sparsity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SparseCheck {
    /// The profile's choice.
    pub pick: Sparse,
    /// The kernel that serves here and was timed, if any.
    pub serves: Option<KernelId>,
    /// Ratio to dense decode at a density of 0.25.
    pub quarter: Option<Skipped>,
    /// The worst ratio at a density where it serves and lags.
    pub lag: Option<Skipped>,
}

/// Time with a share of the rows or columns needed, over dense decode.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Skipped {
    /// Share of the rows or columns that are needed.
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

    /// Returns the speed over dense decode.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// Outcome for a pick in a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseCheck {
    /// `decode` or `prefill`.
    pub phase: &'static str,
    /// The kernel that the profile names.
    pub pick: KernelId,
    /// The kernel that serves here: the pick, or a fallback where that is not present.
    pub serves: KernelId,
    /// Median time of the job in microseconds; none where it was not timed.
    pub median_us: Option<f64>,
    /// Comparisons.
    pub rivals: Vec<Rival>,
    /// The profile's runner-up, where it is not present: kernels made for one run are not kept
    /// unless they win.
    pub absent_runner_up: Option<KernelId>,
    /// Its failure, for which it was left out.
    pub wrong: Option<Excluded>,
}

/// A comparison of a pick.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rival {
    /// Kind of the rival.
    pub kind: RivalKind,
    /// The rival kernel; of both phases together that of decode.
    pub kernel: KernelId,
    /// Time of the pick over the rival's.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
    /// True if this comparison counts; else the one of both phases together does.
    pub counts: bool,
    /// True if it counts and the pick lags.
    pub lags: bool,
}

impl Rival {
    pub(super) fn of(kind: RivalKind, kernel: KernelId, ratio: Ratio, counts: bool) -> Self {
        let Ratio { ratio, half_width } = ratio;
        let lags = counts && ratio - half_width > 1.0 + TOLERANCE;
        Self { kind, kernel, ratio, half_width, counts, lags }
    }

    /// Returns the speed of the pick over the rival's.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// Kinds of rivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RivalKind {
    /// The second best kernel of the run that made the profile.
    RunnerUp,
    /// The best built-in kernel, where the runner-up is not present.
    BuiltIn,
    /// The kernel that serves without a profile.
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

/// A ratio of times with half its 95 % interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    pub ratio: f64,
    pub half_width: f64,
}

impl Ratio {
    /// Divides two times, each with half its interval.
    pub(super) fn of(own: (f64, f64), other: (f64, f64)) -> Self {
        let least = other.0.max(1e-9);
        let ratio = own.0 / least;
        Self { ratio, half_width: own.1.hypot(ratio * other.1) / least }
    }
}
