//! Measurements of a model's jobs: what [`mod@crate::choose`] chooses from.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Layout, Objective, Role, Shape};
use serde::{Deserialize, Serialize};

/// Everything that was measured: what [`mod@crate::choose`] needs and nothing else, so that a choice
/// can be repeated from a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// What the machine can do.
    pub limits: Limits,
    /// Median absolute deviation of the baselines' times over their median: the median of all
    /// tournaments.
    pub noise: f64,
    /// Whether the machine was too restless to repeat all that was spoilt; intervals are wider where
    /// spoilt samples had to be kept.
    pub disturbed: bool,
    /// The kernels that were left out.
    pub excluded: Vec<Excluded>,
    /// The jobs.
    pub jobs: Vec<JobMeasurements>,
}

/// What the machine can do, probed before anything is timed and, reading, beside every unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Threads of the pool.
    pub threads: u32,
    /// Read bandwidth of memory with these threads, in 10^9 bytes per second.
    pub read_gb_per_s: f64,
    /// Read bandwidth of what holds the model, memory or a cache: the limit of decode. On shared
    /// machines it drifts, so it is probed again beside what is held against it.
    pub limit_gb_per_s: f64,
    /// 10^9 multiply-adds per second with these threads, where the ISA has a limit: that of
    /// prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_gmac_per_s: Option<f64>,
    /// Whether weights are timed from memory; else from the cache, which holds the model.
    pub cold: bool,
}

/// A kernel that was left out: each one a bug to report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excluded {
    /// The kernel.
    pub kernel: KernelId,
    /// What it did.
    pub why: Why,
    /// In words.
    pub found: String,
}

/// Why a kernel was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It computed something else than the oracle.
    Wrong,
    /// It ended the process.
    Crashed,
    /// It did not end.
    Hung,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Wrong => "wrong",
            Self::Crashed => "crashed",
            Self::Hung => "hung",
        })
    }
}

/// What was measured for one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMeasurements {
    /// What the job is for.
    pub role: Role,
    /// Its matrices; of attention the query heads and the key-value heads.
    pub parts: Vec<Shape>,
    /// Times per token that it runs.
    pub count: u32,
    /// The untuned default for one token, the baseline of all decode ratios.
    pub default_decode: KernelId,
    /// The untuned default for many tokens, the baseline of all prefill ratios; none for the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_prefill: Option<KernelId>,
    /// Median time of the default for one token, in microseconds.
    pub default_decode_us: f64,
    /// Median time of the default for `tokens` tokens, in microseconds; 0 for the head.
    pub default_prefill_us: f64,
    /// Activation rows of a timed prefill.
    pub tokens: u32,
    /// The layouts.
    pub layouts: Vec<LayoutMeasurements>,
    /// What skipping what meets a zero showed, where the model lets a job do that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<SparseMeasurements>,
}

impl JobMeasurements {
    /// Time of the default for one token of a phase, in microseconds.
    pub fn default_us(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Decode => self.default_decode_us,
            Phase::Prefill => self.default_prefill_us / f64::from(self.tokens.max(1)),
        }
    }

    /// The untuned default of a phase.
    pub fn default_kernel(&self, phase: Phase) -> Option<KernelId> {
        match phase {
            Phase::Decode => Some(self.default_decode),
            Phase::Prefill => self.default_prefill,
        }
    }
}

/// What was measured for one layout of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutMeasurements {
    /// The packing; none for the head and attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Bytes that one token reads in this layout, padding included.
    pub bytes: u64,
    /// Read bandwidth of what holds the model, in 10^9 bytes per second, probed around the
    /// tournament of its decode kernels.
    pub limit_gb_per_s: f64,
    /// Kernels for one token.
    pub decode: Vec<Timing>,
    /// Kernels for many.
    pub prefill: Vec<Timing>,
}

impl LayoutMeasurements {
    /// The timings of a phase.
    pub fn timings(&self, phase: Phase) -> &[Timing] {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// What was measured for one kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// The kernel.
    pub kernel: KernelId,
    /// Samples taken.
    pub samples: u32,
    /// The shortest time of the job in microseconds.
    pub min_us: f64,
    /// The median.
    pub median_us: f64,
    /// The median absolute deviation from it.
    pub mad_us: f64,
    /// Median of its times over those of the default just before and after; of several repeats the
    /// mean, weighted by their intervals.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio. What it differs by between repeats counts in full.
    pub half_width: f64,
    /// Whether it was still in the race at the end. Only finalists can be chosen: what was cut has
    /// few samples and a wide interval, and would tie with everything.
    pub finalist: bool,
}

/// What was measured of the kernels that are given a list of lines, in one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseMeasurements {
    /// The kernel for one token that reads all: what all ratios are to, and what reads the gate.
    pub dense: KernelId,
    /// The kernel that skips untuned.
    pub default: KernelId,
    /// What was timed.
    pub timings: Vec<SparseTiming>,
}

/// What was measured of one kernel where some of the lines are needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseTiming {
    /// The share of lines that are needed, scattered at random.
    pub density: f64,
    /// The time of the whole job; ratios are to the job that reads all.
    pub timing: Timing,
}

/// Both phases.
pub(crate) const PHASES: [Phase; 2] = [Phase::Decode, Phase::Prefill];

/// The name of a phase.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Decode => "decode",
        Phase::Prefill => "prefill",
    }
}

/// What a token of decode and a token of prefill weigh.
pub(crate) const fn weights(objective: Objective) -> (f64, f64) {
    match objective {
        Objective::Decode => (1.0, 0.0),
        Objective::Prefill => (0.0, 1.0),
        Objective::Balanced => (1.0, 4.0),
    }
}
