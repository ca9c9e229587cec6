//! Measurements of a model's jobs.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Objective, Packing, Role, Shape};
use serde::{Deserialize, Serialize};

/// Everything that [`mod@crate::choose`] needs, so that a choice can be repeated from a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Limits of the machine.
    pub limits: Limits,
    /// Median absolute deviation of the baselines' times over their median: the median over all
    /// tournaments.
    pub noise: f64,
    /// True if the machine was too noisy to repeat all disturbed samples; intervals are wider where
    /// these had to be kept.
    pub disturbed: bool,
    /// Kernels that were left out.
    pub excluded: Vec<Excluded>,
    /// The jobs.
    pub jobs: Vec<JobMeasurements>,
}

/// Limits of the machine, probed before anything is timed; the read bandwidth also beside every
/// unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Threads of the pool.
    pub threads: u32,
    /// Read bandwidth of memory with these threads, in 10^9 bytes per second.
    pub read_gb_per_s: f64,
    /// Read bandwidth of memory or the cache that holds the model: the limit of decode. It drifts
    /// on shared machines, so it is probed again beside every unit.
    pub limit_gb_per_s: f64,
    /// 10^9 multiply-adds per second with these threads, the limit of prefill; none where the ISA
    /// has no such limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_gmac_per_s: Option<f64>,
    /// True if weights are timed from memory; else from the cache that holds the model.
    pub cold: bool,
}

/// A kernel that was left out. Each is a bug to report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excluded {
    /// The kernel.
    pub kernel: KernelId,
    /// Kind of failure.
    pub why: Why,
    /// Details.
    pub found: String,
}

/// Reasons to leave a kernel out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It differed from the oracle.
    Wrong,
    /// It ended its process.
    Crashed,
    /// It did not return in time.
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

/// Measurements of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMeasurements {
    /// Role of the job.
    pub role: Role,
    /// Its matrices; of attention the query heads and the key-value heads.
    pub parts: Vec<Shape>,
    /// Runs per token.
    pub count: u32,
    /// Untuned default for decode, the baseline of all decode ratios.
    pub default_decode: KernelId,
    /// Untuned default for prefill, the baseline of all prefill ratios; none for the head.
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
    /// Measurements with activation sparsity, where the model has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<SparseMeasurements>,
}

impl JobMeasurements {
    /// Returns the time of the default for one token of a phase, in microseconds.
    pub fn default_us(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Decode => self.default_decode_us,
            Phase::Prefill => self.default_prefill_us / f64::from(self.tokens.max(1)),
        }
    }

    /// Returns the untuned default of a phase.
    pub fn default_kernel(&self, phase: Phase) -> Option<KernelId> {
        match phase {
            Phase::Decode => Some(self.default_decode),
            Phase::Prefill => self.default_prefill,
        }
    }
}

/// Measurements of one layout of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutMeasurements {
    /// The packing; none for the head and attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Packing>,
    /// Bytes that this layout reads per token, padding included.
    pub bytes: u64,
    /// Read bandwidth of memory or the cache that holds the model, in 10^9 bytes per second, probed
    /// around the tournament of the decode kernels.
    pub limit_gb_per_s: f64,
    /// Decode kernels.
    pub decode: Vec<Timing>,
    /// Prefill kernels.
    pub prefill: Vec<Timing>,
}

impl LayoutMeasurements {
    /// Returns the timings of a phase.
    pub fn timings(&self, phase: Phase) -> &[Timing] {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// Timing of one kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// The kernel.
    pub kernel: KernelId,
    /// Number of samples.
    pub samples: u32,
    /// Shortest time of the job in microseconds.
    pub min_us: f64,
    /// Median time in microseconds.
    pub median_us: f64,
    /// Median absolute deviation from it.
    pub mad_us: f64,
    /// Median of its times over those of the default just before and after; of several repeats the
    /// mean, weighted by their intervals.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio, the scatter between repeats included.
    pub half_width: f64,
    /// True if it was not cut. Only finalists can be chosen: a candidate that was cut has few
    /// samples and an interval so wide that it would tie with everything.
    pub finalist: bool,
}

/// Measurements with activation sparsity in one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseMeasurements {
    /// Dense decode kernel: the baseline of all ratios, and the one that reads the gate.
    pub dense: KernelId,
    /// Untuned default of the sparse kernels.
    pub default: KernelId,
    /// Timings.
    pub timings: Vec<SparseTiming>,
}

/// Timing of one kernel at one density.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseTiming {
    /// Share of rows or columns that are needed, at random places.
    pub density: f64,
    /// Timing of the whole job; ratios are to dense decode.
    pub timing: Timing,
}

/// Both phases.
pub(crate) const PHASES: [Phase; 2] = [Phase::Decode, Phase::Prefill];

/// Returns the name of a phase.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Decode => "decode",
        Phase::Prefill => "prefill",
    }
}

/// Returns the weights of a token of decode and a token of prefill.
pub(crate) const fn weights(objective: Objective) -> (f64, f64) {
    match objective {
        Objective::Decode => (1.0, 0.0),
        Objective::Prefill => (0.0, 1.0),
        Objective::Balanced => (1.0, 4.0),
    }
}
