//! What was measured: the types, and how the results of a run's units come together.
//!
//! A *unit* is one tournament: the candidates of one job, layout and phase, in one sitting. Units are
//! measured one by one in a child process ([`crate::worker`]), kept in a journal
//! ([`crate::journal`]), and assembled here into [`Measurements`], which [`mod@crate::choose`]
//! chooses from.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Layout, Role, Shape};
use serde::{Deserialize, Serialize};

use crate::plan::JobPlan;
use crate::stats;

/// Everything that was measured: what [`mod@crate::choose`] needs and nothing else, so that a choice
/// can be repeated from a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// What the machine can do.
    pub limits: Limits,
    /// Median absolute deviation of the sentinels' times over their median: the median of all
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
    /// The untuned default for one token, the sentinel of all decode ratios.
    pub default_decode: KernelId,
    /// The untuned default for many tokens, the sentinel of all prefill ratios; none for the head.
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
    /// Median of its times over those of the default just before and after; of several sittings the
    /// mean, weighted by their intervals.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio. What it differs by between sittings counts in full.
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

/// A job to measure: its candidates, and what it runs with untuned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobTask {
    /// The candidates.
    pub plan: JobPlan,
    /// The untuned default for one token.
    pub default_decode: KernelId,
    /// The untuned default for many; none for the head.
    pub default_prefill: Option<KernelId>,
}

impl JobTask {
    /// The untuned default of a phase.
    pub fn default_of(&self, phase: Phase) -> Option<KernelId> {
        match phase {
            Phase::Decode => Some(self.default_decode),
            Phase::Prefill => self.default_prefill,
        }
    }
}

/// Which tournament.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitKey {
    /// Number of the job in the plan.
    pub job: usize,
    /// Number of the layout in the job.
    pub layout: usize,
    /// Whether it timed many tokens.
    pub prefill: bool,
    /// Which of several, some time apart: what a machine is like for seconds at a stretch decides no
    /// choice.
    pub sitting: u8,
}

impl UnitKey {
    /// Its phase.
    pub fn phase(&self) -> Phase {
        if self.prefill { Phase::Prefill } else { Phase::Decode }
    }
}

/// The result of one tournament.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Which.
    pub key: UnitKey,
    /// Activation rows of a timed prefill.
    pub tokens: u32,
    /// Bytes that one token reads in this layout.
    pub bytes: u64,
    /// Read bandwidth of what holds the model, in 10^9 bytes per second, the better of just before
    /// and just after.
    pub limit_gb_per_s: f64,
    /// The candidates that were timed.
    pub timings: Vec<Timing>,
    /// Median time of the sentinel in microseconds.
    pub sentinel_us: f64,
    /// Its median absolute deviation over that.
    pub noise: f64,
    /// Whether anything that counts rests on spoilt samples.
    pub disturbed: bool,
}

impl Measurements {
    /// Puts the units together, without the kernels that are left out: one may have been timed for
    /// another job before. Of the bandwidths probed beside them, the median becomes the limit. A job of
    /// which a phase was not measured at all is left out too, and so is
    /// such a layout.
    pub fn assemble(
        jobs: &[JobTask],
        mut limits: Limits,
        excluded: Vec<Excluded>,
        units: &[Unit],
    ) -> Self {
        let find = |job: usize, layout: usize, prefill: bool| -> Vec<&Unit> {
            let own = |key: UnitKey| (key.job, key.layout, key.prefill) == (job, layout, prefill);
            units.iter().filter(|unit| own(unit.key)).collect()
        };
        let default_us = |job: usize, prefill: bool| {
            let own = || units.iter().filter(|u| u.key.job == job && u.key.prefill == prefill);
            let calm: Vec<f64> = own().filter(|u| !u.disturbed).map(|u| u.sentinel_us).collect();
            let all: Vec<f64> = own().map(|unit| unit.sentinel_us).collect();
            stats::median(if calm.is_empty() { &all } else { &calm })
        };
        let good = |sittings: &[&Unit]| -> Vec<Timing> {
            let bad = |timing: &Timing| excluded.iter().any(|e| e.kernel == timing.kernel);
            together(sittings).into_iter().filter(|timing| !bad(timing)).collect()
        };
        let job = |(number, task): (usize, &JobTask)| {
            let layout = |(index, plan): (usize, &crate::plan::LayoutPlan)| {
                let decode = find(number, index, false);
                let prefill = find(number, index, true);
                let bytes = decode.first()?.bytes;
                if prefill.is_empty() && !plan.prefill.is_empty() {
                    return None;
                }
                let limits: Vec<f64> = decode.iter().map(|unit| unit.limit_gb_per_s).collect();
                Some(LayoutMeasurements {
                    layout: plan.layout,
                    bytes,
                    limit_gb_per_s: stats::median(&limits),
                    decode: good(&decode),
                    prefill: good(&prefill),
                })
            };
            let layouts: Vec<LayoutMeasurements> =
                task.plan.layouts.iter().enumerate().filter_map(layout).collect();
            let tokens = units.iter().find(|u| u.key.job == number && u.key.prefill);
            (!layouts.is_empty()).then(|| JobMeasurements {
                role: task.plan.role,
                parts: task.plan.parts.clone(),
                count: task.plan.count,
                default_decode: task.default_decode,
                default_prefill: task.default_prefill,
                default_decode_us: default_us(number, false),
                default_prefill_us: default_us(number, true),
                tokens: tokens.map_or(1, |unit| unit.tokens),
                layouts,
                sparse: None,
            })
        };
        let assembled = jobs.iter().enumerate().filter_map(job).collect();
        let probed: Vec<f64> = units.iter().map(|unit| unit.limit_gb_per_s).collect();
        if !probed.is_empty() {
            limits.limit_gb_per_s = stats::median(&probed);
            if limits.cold {
                limits.read_gb_per_s = limits.limit_gb_per_s;
            }
        }
        let noises: Vec<f64> = units.iter().map(|unit| unit.noise).collect();
        Self {
            limits,
            noise: stats::median(&noises),
            disturbed: 4 * units.iter().filter(|unit| unit.disturbed).count() > units.len(),
            excluded,
            jobs: assembled,
        }
    }
}

/// What the sittings of a tournament showed, each kernel once: finalists are those of all sittings.
fn together(sittings: &[&Unit]) -> Vec<Timing> {
    let Some(first) = sittings.first() else { return Vec::new() };
    let timing = |kernel: &KernelId| {
        let all = sittings
            .iter()
            .filter_map(|unit| unit.timings.iter().find(|timing| timing.kernel == *kernel));
        joined(&all.collect::<Vec<_>>(), sittings.len())
    };
    first.timings.iter().filter_map(|own| timing(&own.kernel)).collect()
}

/// What so many sittings showed of one kernel, of which not each had it.
pub(crate) fn joined(all: &[&Timing], sittings: usize) -> Option<Timing> {
    let &[first, ..] = all else { return None };
    if all.len() == 1 {
        return Some(Timing { finalist: first.finalist && sittings == 1, ..Timing::clone(first) });
    }
    let of = |value: &dyn Fn(&Timing) -> f64| -> Vec<f64> {
        all.iter().map(|timing| value(timing)).collect()
    };
    // The default itself has no interval.
    let weights = of(&|timing| timing.half_width.max(1e-6).powi(-2));
    let weight: f64 = weights.iter().sum();
    let mean = |values: &[f64]| -> f64 {
        values.iter().zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / weight
    };
    let ratios = of(&|timing| timing.ratio);
    let ratio = mean(&ratios);
    let squares: Vec<f64> = ratios.iter().map(|own| (own - ratio).powi(2)).collect();
    let is_default = all.iter().all(|timing| timing.half_width == 0.0);
    Some(Timing {
        kernel: first.kernel,
        samples: all.iter().map(|timing| timing.samples).sum(),
        min_us: of(&|timing| timing.min_us).into_iter().fold(f64::INFINITY, f64::min),
        median_us: stats::median(&of(&|timing| timing.median_us)),
        mad_us: stats::median(&of(&|timing| timing.mad_us)),
        ratio,
        half_width: if is_default { 0.0 } else { weight.powf(-0.5).hypot(mean(&squares).sqrt()) },
        finalist: all.len() == sittings && all.iter().all(|timing| timing.finalist),
    })
}

/// As people say it.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Decode => "decode",
        Phase::Prefill => "prefill",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = [
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p0",
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0",
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0",
    ];

    /// A sitting that found these kernels' ratios, half widths and finalists.
    fn unit(sitting: u8, found: &[(usize, f64, f64, bool)]) -> Unit {
        let timing = |&(id, ratio, half_width, finalist): &(usize, f64, f64, bool)| Timing {
            kernel: IDS[id].parse().unwrap(),
            samples: 10,
            min_us: 90.0 * ratio,
            median_us: 100.0 * ratio,
            mad_us: 1.0,
            ratio,
            half_width,
            finalist,
        };
        Unit {
            key: UnitKey { job: 0, layout: 0, prefill: false, sitting },
            tokens: 1,
            bytes: 1,
            limit_gb_per_s: 40.0,
            timings: found.iter().map(timing).collect(),
            sentinel_us: 100.0,
            noise: 0.01,
            disturbed: false,
        }
    }

    #[test]
    fn sittings_that_differ_say_less() {
        let first = unit(0, &[(0, 1.0, 0.0, true), (1, 0.9, 0.01, true), (2, 1.2, 0.01, false)]);
        let alike = unit(1, &[(0, 1.0, 0.0, true), (1, 0.9, 0.01, true)]);
        let unlike = unit(1, &[(0, 1.0, 0.0, true), (1, 1.1, 0.01, true)]);
        let vague = unit(1, &[(0, 1.0, 0.0, true), (1, 1.1, 0.1, true)]);
        let cut = unit(1, &[(0, 1.0, 0.0, true), (1, 0.9, 0.01, false)]);
        assert_eq!(together(&[]), []);
        assert_eq!(together(&[&first]), first.timings);
        for (second, ratio, half_width, finalist) in [
            (&alike, 0.9, 0.01 / 2.0_f64.sqrt(), true),
            // The scatter about the mean counts in full.
            (&unlike, 1.0, (0.01_f64 / 2.0_f64.sqrt()).hypot(0.1), true),
            (&cut, 0.9, 0.01 / 2.0_f64.sqrt(), false),
        ] {
            let found = together(&[&first, second]);
            let [default, own, left] = &found[..] else { panic!("{found:?}") };
            assert_eq!((default.ratio, default.half_width, default.finalist), (1.0, 0.0, true));
            assert!((own.ratio - ratio).abs() < 1e-9, "{own:?}");
            assert!((own.half_width - half_width).abs() < 1e-9, "{own:?}");
            assert_eq!((own.samples, own.finalist), (20, finalist));
            // What had no second sitting keeps what it showed, and cannot be chosen.
            assert_eq!((left.ratio, left.samples, left.finalist), (1.2, 10, false));
        }
        // A sitting that knows little counts for little.
        let own = &together(&[&first, &vague])[1];
        assert!((0.9..0.905).contains(&own.ratio), "{own:?}");
    }
}
