//! Rule by which one of several rated options is chosen.

use bitnet_profiles::{KernelId, KernelSpec, TileConfig};

/// Largest share of time that a simpler tile may cost, where the noise would allow more.
pub(crate) const SIMPLICITY: f64 = 0.01;

/// Least gain for which the default is left: smaller ones do not repeat in another process, whose
/// pages lie elsewhere.
pub(super) const WORTHWHILE: f64 = 0.03;

/// Least gain of another prefetch distance from memory, or of another placement: such gains come
/// and go with the bandwidth that a virtual machine gets. On two cores of Zen 5 a distance of 12
/// KiB gained 6 % over 8 KiB while memory read 79 GB/s and lost 3 % while it read 47; pinning
/// gained 9 % once in four runs.
pub(super) const UNSTEADY: f64 = 0.1;

/// An option, its cost, and half the 95 % interval of that.
pub(super) struct Rated<T> {
    pub item: T,
    pub cost: f64,
    pub half_width: f64,
    pub is_default: bool,
    /// Least gain for which the default is left for it.
    pub worthwhile: f64,
}

impl<T> Rated<T> {
    /// True if they differ by at most `times` their joint half-width.
    fn ties(&self, other: &Self, times: f64) -> bool {
        (self.cost - other.cost).abs() <= times * self.half_width.hypot(other.half_width)
    }
}

/// Factor by which the interval of the best of `tried` is wider than that of one: Bonferroni's
/// bound, the quantile of 1 - 0.025 / `tried` over 1.96 standard errors, to 1 % (2.87 for 12, 3.29
/// for 50).
pub(super) fn luck(tried: usize) -> f64 {
    (1.0 + 0.46 * (tried.max(1) as f64).ln()).sqrt()
}

/// Returns the cheapest of `rated`, the survivors of `tried` options; the default where that gains
/// nothing worthwhile; else the one that `order` puts first among those that tie with the cheapest,
/// cost at most 1 % more and beat the default as well. Costs that are not finite or negative do not
/// count.
pub(super) fn settle<T, K: Ord>(
    rated: &[Rated<T>],
    tried: usize,
    order: impl Fn(&T) -> K,
) -> Option<&T> {
    let default = rated.iter().find(|rated| rated.is_default);
    let is_sound = |r: &&Rated<T>| r.cost.is_finite() && r.cost >= 0.0 && r.half_width.is_finite();
    let sound = || rated.iter().filter(is_sound);
    let width = luck(tried);
    let Some(best) = sound().min_by(|a, b| a.cost.total_cmp(&b.cost)) else {
        return default.or(rated.first()).map(|rated| &rated.item);
    };
    let beaten = |default: &&Rated<T>, by: &Rated<T>| {
        !default.ties(by, width) && default.cost > (1.0 + by.worthwhile) * by.cost
    };
    if let Some(default) = default.filter(|default| !beaten(default, best)) {
        return Some(&default.item);
    }
    sound()
        .filter(|rated| rated.ties(best, 1.0) && rated.cost <= (1.0 + SIMPLICITY) * best.cost)
        .filter(|rated| default.is_none_or(|default| beaten(&default, rated)))
        .min_by_key(|rated| order(&rated.item))
        .map(|rated| &rated.item)
}

/// The least gain for which a default is left for a kernel.
pub(super) fn worthwhile(kernel: &KernelId, default: &KernelId, cold: bool) -> f64 {
    let tile = TileConfig { prefetch: default.tile.prefetch, ..kernel.tile };
    let differs_by_distance = KernelSpec { tile, ..**kernel } == **default;
    if cold && differs_by_distance { UNSTEADY } else { WORTHWHILE }
}

/// Simpler tiles first: less prefetching, unrolling, fewer activation rows, rows, columns. Of equal
/// tiles the one for any shape.
pub(super) fn simplicity(kernel: &KernelId) -> impl Ord + use<> {
    let tile = kernel.tile;
    (
        tile.prefetch,
        tile.level,
        tile.unroll,
        tile.tokens,
        tile.rows,
        tile.cols,
        kernel.shape,
        *kernel,
    )
}
