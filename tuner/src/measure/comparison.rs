//! Speeds of the whole model, untuned and tuned.

use bitnet_codegen::Phase;
use bitnet_profiles::Objective;
use serde::{Deserialize, Serialize};

use super::record::{Limits, weights};
use crate::stats::{self, Gain};

/// Tokens per second of one phase, and the tuned time over the default's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Tokens per second by default.
    pub before: f64,
    /// Tokens per second tuned.
    pub after: f64,
    /// Median of the tuned time over the default's just before or after.
    pub ratio: f64,
    /// Half the 95 % interval of that ratio.
    pub half_width: f64,
}

impl Speed {
    /// Computes from pairs of seconds, default and tuned, for `tokens` tokens each.
    pub(crate) fn of(pairs: &[[f64; 2]], tokens: usize) -> Self {
        let side = |i: usize| -> Vec<f64> { pairs.iter().map(|pair| pair[i]).collect() };
        let ratios: Vec<f64> = pairs.iter().map(|[before, after]| after / before).collect();
        Self {
            before: tokens as f64 / stats::median(&side(0)).max(1e-9),
            after: tokens as f64 / stats::median(&side(1)).max(1e-9),
            ratio: stats::median(&ratios),
            half_width: stats::half_width(&ratios, 0.005),
        }
    }

    /// Returns the speed over the default's.
    pub fn gain(&self) -> Gain {
        Gain::of(self.ratio, self.half_width)
    }
}

/// Comparison of the untuned default with a profile on the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Decode.
    pub decode: Speed,
    /// Prefill.
    pub prefill: Speed,
    /// Number of times that both were loaded.
    pub loads: usize,
    /// Read bandwidth of memory or the cache that holds the model, in 10^9 bytes per second: the
    /// median of probes before each load.
    pub limit_gb_per_s: f64,
}

impl Comparison {
    /// True if the profile is slower beyond the noise, weighed by the objective.
    pub fn is_slower(&self, objective: Objective) -> bool {
        let (of_decode, of_prefill) = weights(objective);
        let part = |speed: &Speed, weight: f64| {
            let default = weight / speed.before.max(1e-9);
            (default * (speed.ratio - 1.0), default * speed.half_width)
        };
        let (decode, prefill) = (part(&self.decode, of_decode), part(&self.prefill, of_prefill));
        decode.0 + prefill.0 > decode.1.hypot(prefill.1)
    }

    /// Returns the limits with the bandwidth probed meanwhile.
    pub fn limits(&self, limits: &Limits) -> Limits {
        Limits { limit_gb_per_s: self.limit_gb_per_s, ..*limits }
    }

    /// Returns the speed of a phase.
    pub fn speed(&self, phase: Phase) -> &Speed {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}
