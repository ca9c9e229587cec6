//! Timings of placements: threads, pinning and pages.

use bitnet_profiles::Run;
use serde::{Deserialize, Serialize};

/// Timing of a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementTiming {
    /// The placement.
    pub run: Run,
    /// Decode.
    pub decode: PhaseTiming,
    /// Prefill, per token.
    pub prefill: PhaseTiming,
}

/// Timing of a placement in one phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTiming {
    /// Median microseconds of the ternary jobs of one token.
    pub median_us: f64,
    /// Median of its times over those of the untuned placement just before and after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
}
