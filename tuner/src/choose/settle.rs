//! The rule by which one of several rated things is chosen.

use bitnet_profiles::{KernelId, KernelSpec, TileConfig};

/// The most that being simpler is worth, where the noise would allow more.
pub(crate) const SIMPLICITY: f64 = 0.01;

/// The least gain for which the default is left: smaller ones do not repeat from one process to the
/// next, as pages lie elsewhere and memory is faster or slower than it was.
pub(super) const WORTHWHILE: f64 = 0.03;

/// And where what is gained depends on the minute: where only the distance to prefetch from memory
/// differs, or the way to run. On two cores of Zen 5 12 KiB gained 6 % over 8 while memory read 79 GB/s,
/// and lost 3 % while it read 47; pinning gained 9 % once in four runs. A virtual machine changes between
/// such states within minutes.
pub(super) const UNSTEADY: f64 = 0.1;

/// Something to choose, what it costs, and half the interval of that.
pub(super) struct Rated<T> {
    pub item: T,
    pub cost: f64,
    pub half_width: f64,
    pub is_default: bool,
    /// The least gain for which the default is left for it.
    pub worthwhile: f64,
}

impl<T> Rated<T> {
    /// Whether they differ by no more than so many times what noise makes of it.
    fn ties(&self, other: &Self, times: f64) -> bool {
        (self.cost - other.cost).abs() <= times * self.half_width.hypot(other.half_width)
    }
}

/// How much wider the interval of the best of `tried` is than that of one: the more are tried, the
/// more of them are fast by chance. With 1.96 standard errors for one this is Bonferroni's bound,
/// the quantile of 1 - 0.025 / `tried`, to 1 % (2.87 for 12, 3.29 for 50).
pub(super) fn luck(tried: usize) -> f64 {
    (1.0 + 0.46 * (tried.max(1) as f64).ln()).sqrt()
}

/// The cheapest of what is left of so many `tried`; the default where that gains nothing worthwhile;
/// else the one that `order` puts first among those that tie with the cheapest, nearly cost as little
/// and, as it does, beat the default. What a broken clock made of a cost does not count.
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
    (tile.prefetch, tile.unroll, tile.tokens, tile.rows, tile.cols, kernel.shape, *kernel)
}
