//! Times of a way to run: threads, pinning and pages.

use bitnet_profiles::Run;
use serde::{Deserialize, Serialize};

/// What a setting showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementTiming {
    /// The setting.
    pub run: Run,
    /// Of one token.
    pub decode: PhaseTiming,
    /// Of many, per token.
    pub prefill: PhaseTiming,
}

/// What a setting showed in one phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTiming {
    /// Median microseconds of the ternary jobs of one token.
    pub median_us: f64,
    /// Median of its times over those of the untuned setting just before and after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
}
