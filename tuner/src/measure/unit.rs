//! Results of single tournaments, and their assembly.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Role, Shape};
use serde::{Deserialize, Serialize};

use super::record::{
    Excluded, JobMeasurements, LayoutMeasurements, Limits, Measurements, SparseMeasurements, Timing,
};
use crate::plan::{JobTask, LayoutPlan};
use crate::stats;

/// Identity of a tournament.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitKey {
    /// Number of the job in the plan.
    pub job: usize,
    /// Number of the layout in the job.
    pub layout: usize,
    /// True for prefill.
    pub prefill: bool,
    /// Number of the repeat. Repeats lie some time apart, so that the state of a machine for a few
    /// seconds decides no choice.
    #[serde(rename = "sitting")]
    pub repeat: u8,
}

impl UnitKey {
    /// Returns the phase.
    pub fn phase(&self) -> Phase {
        if self.prefill { Phase::Prefill } else { Phase::Decode }
    }
}

/// Result of one tournament.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Its identity.
    pub key: UnitKey,
    /// Activation rows of a timed prefill.
    pub tokens: u32,
    /// Bytes that this layout reads per token, padding included.
    pub bytes: u64,
    /// Read bandwidth of memory or the cache that holds the model, in 10^9 bytes per second: the
    /// better of probes just before and just after.
    pub limit_gb_per_s: f64,
    /// Candidates that were timed.
    pub timings: Vec<Timing>,
    /// Median time of the baseline in microseconds.
    #[serde(rename = "sentinel_us")]
    pub baseline_us: f64,
    /// Its median absolute deviation over that.
    pub noise: f64,
    /// True if a finalist or the baseline rests on disturbed samples.
    pub disturbed: bool,
}

/// Result for activation sparsity in a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseUnit {
    /// Role of the job.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// The measurements.
    pub measured: SparseMeasurements,
}

impl Measurements {
    /// Assembles units, without the kernels that are left out (one may have been timed for another
    /// job before). The median of the bandwidths probed beside them becomes the limit. A layout of
    /// which a phase was not measured is left out, and so is a job without layouts.
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
            let calm: Vec<f64> = own().filter(|u| !u.disturbed).map(|u| u.baseline_us).collect();
            let all: Vec<f64> = own().map(|unit| unit.baseline_us).collect();
            stats::median(if calm.is_empty() { &all } else { &calm })
        };
        let good = |repeats: &[&Unit]| -> Vec<Timing> {
            let bad = |timing: &Timing| excluded.iter().any(|e| e.kernel == timing.kernel);
            together(repeats).into_iter().filter(|timing| !bad(timing)).collect()
        };
        let job = |(number, task): (usize, &JobTask)| {
            let layout = |(index, plan): (usize, &LayoutPlan)| {
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

/// Joins the repeats of a tournament, each kernel once.
fn together(repeats: &[&Unit]) -> Vec<Timing> {
    let Some(first) = repeats.first() else { return Vec::new() };
    let timing = |kernel: &KernelId| {
        let all = repeats
            .iter()
            .filter_map(|unit| unit.timings.iter().find(|timing| timing.kernel == *kernel));
        joined(&all.collect::<Vec<_>>(), repeats.len())
    };
    first.timings.iter().filter_map(|own| timing(&own.kernel)).collect()
}

/// Joins the timings of one kernel: mean ratio weighted by the intervals, whose scatter counts in
/// full. A finalist is one in all `repeats`.
pub(crate) fn joined(all: &[&Timing], repeats: usize) -> Option<Timing> {
    let &[first, ..] = all else { return None };
    if all.len() == 1 {
        return Some(Timing { finalist: first.finalist && repeats == 1, ..Timing::clone(first) });
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
        finalist: all.len() == repeats && all.iter().all(|timing| timing.finalist),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = [
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p0",
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0",
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0",
    ];

    /// A repeat with these kernels' ratios, half-widths and finalists.
    fn unit(repeat: u8, found: &[(usize, f64, f64, bool)]) -> Unit {
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
            key: UnitKey { job: 0, layout: 0, prefill: false, repeat },
            tokens: 1,
            bytes: 1,
            limit_gb_per_s: 40.0,
            timings: found.iter().map(timing).collect(),
            baseline_us: 100.0,
            noise: 0.01,
            disturbed: false,
        }
    }

    #[test]
    fn repeats_that_differ_say_less() {
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
            // What had no second repeat keeps what it showed, and cannot be chosen.
            assert_eq!((left.ratio, left.samples, left.finalist), (1.2, 10, false));
        }
        // A repeat that knows little counts for little.
        let own = &together(&[&first, &vague])[1];
        assert!((0.9..0.905).contains(&own.ratio), "{own:?}");
    }
}
