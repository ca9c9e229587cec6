//! Choice of the kernel for activation sparsity, and of the density up to which it serves.

use bitnet_profiles::KernelId;

use super::choice::ChosenGather;
use super::settle::{Rated, settle, simplicity, worthwhile};
use crate::measure::{SparseMeasurements, SparseTiming, Timing};
use crate::stats::Gain;

/// Chooses the kernel that takes the least time on average over the densities, and its break-even
/// density.
pub(super) fn choose_gather(measured: &SparseMeasurements, cold: bool) -> Option<ChosenGather> {
    let of = |kernel: KernelId| {
        measured
            .timings
            .iter()
            .filter(move |own| own.timing.kernel == kernel && own.timing.finalist)
    };
    let mut kernels: Vec<KernelId> = measured.timings.iter().map(|t| t.timing.kernel).collect();
    kernels.dedup();
    // A kernel timed at fewer densities than others was cut, or time ran out.
    let most = kernels.iter().map(|&kernel| of(kernel).count()).max()?;
    let tried = kernels.len();
    kernels.retain(|&kernel| most > 0 && of(kernel).count() == most);
    let rate = |&kernel: &KernelId| {
        let mean = |value: &dyn Fn(&Timing) -> f64| {
            of(kernel).map(|own| value(&own.timing)).sum::<f64>() / most as f64
        };
        Rated {
            item: kernel,
            cost: mean(&|timing| timing.ratio.min(1.0)),
            half_width: mean(&|timing| timing.half_width),
            is_default: kernel == measured.default,
            worthwhile: worthwhile(&kernel, &measured.default, cold),
        }
    };
    let rated: Vec<Rated<KernelId>> = kernels.iter().map(rate).collect();
    let &kernel = settle(&rated, tried, simplicity)?;
    let mut own: Vec<&SparseTiming> = of(kernel).collect();
    own.sort_by(|a, b| a.density.total_cmp(&b.density));
    let upper = own.iter().map(|own| (own.density, own.timing.ratio + own.timing.half_width));
    let quarter = own.iter().find(|own| own.density == 0.25).map(|own| &own.timing);
    let gain = quarter.map(|timing| Gain::of(timing.ratio, timing.half_width));
    Some(ChosenGather { kernel, below: break_even(&upper.collect::<Vec<_>>()), gain })
}

/// Returns the density, 0 to 1, up to which a ratio of times is at most 1: by linear interpolation
/// between `points` of (density, ratio) in order of density, and beyond the last with the steeper
/// of the last and the overall slope. 0 where the first ratio is above 1 or a number is not finite.
fn break_even(points: &[(f64, f64)]) -> f64 {
    let crossing = |(from, low): (f64, f64), (to, high): (f64, f64)| {
        from + (to - from) * (1.0 - low) / (high - low)
    };
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return 0.0 };
    let is_sound = points.iter().all(|(density, ratio)| density.is_finite() && ratio.is_finite());
    if !is_sound || first.1 > 1.0 {
        return 0.0;
    }
    let crossed = points.windows(2).find(|pair| pair[1].1 > 1.0);
    let found = match crossed {
        Some(pair) => crossing(pair[0], pair[1]),
        None => {
            let slope = |a: (f64, f64), b: (f64, f64)| (b.1 - a.1) / (b.0 - a.0);
            let before = points.iter().rev().nth(1).copied().unwrap_or(first);
            // A last step that noise made flat promises nothing.
            let steepest = slope(before, last).max(slope(first, last));
            if steepest > 0.0 { last.0 + (1.0 - last.1) / steepest } else { last.0 }
        }
    };
    found.clamp(0.0, 1.0)
}
