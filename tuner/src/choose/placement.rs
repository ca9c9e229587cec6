//! Choice of threads, pinning and pages.

use bitnet_profiles::{Objective, Pinning, Run};

use super::settle::{Rated, UNSTEADY, settle};
use crate::measure::{PlacementTiming, weights};

/// Chooses the placement: the first, which is the untuned one, unless another is better beyond the
/// noise.
pub fn placement(timings: &[PlacementTiming], objective: Objective) -> Option<&Run> {
    let untuned = timings.first()?;
    let (of_decode, of_prefill) = weights(objective);
    let (decode_us, prefill_us) =
        (of_decode * untuned.decode.median_us, of_prefill * untuned.prefill.median_us);
    let rated: Vec<Rated<&Run>> = timings
        .iter()
        .map(|PlacementTiming { run, decode, prefill }| Rated {
            item: run,
            cost: decode_us * decode.ratio + prefill_us * prefill.ratio,
            half_width: (decode_us * decode.half_width).hypot(prefill_us * prefill.half_width),
            is_default: *run == untuned.run,
            worthwhile: UNSTEADY,
        })
        .collect();
    // Fewer threads leave more to others.
    settle(&rated, rated.len(), |run| (run.pinning != Pinning::None, !run.huge_pages, run.threads))
        .copied()
}
