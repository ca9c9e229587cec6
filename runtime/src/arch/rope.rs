//! Hyperparameters of rotary positions, read from the metadata of a GGUF file and checked.

use serde::{Deserialize, Serialize};

use super::config::per_layer;
use crate::error::{Result, quoted};
use crate::file::gguf::{Gguf, Value};

/// Scaling of rotary positions, for contexts longer than a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Divisor of positions (interpolation); 1: none. In ggml 1 / `freq_scale`.
    pub factor: f32,
    /// Frequencies that are not interpolated; `None`: all are, which is linear scaling.
    pub yarn: Option<Yarn>,
    /// Factor of cosines and sines, besides the one that belongs to YaRN.
    pub magnitude: f32,
}

/// Extrapolation of fast frequencies, which turn so often over the original context that a model
/// knows all their angles. Names in brackets are those of ggml's `rope_yarn`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// Share to which fast frequencies are left as they are, above 0 and at most 1 (`ext_factor`).
    pub extrapolation: f32,
    /// Positions that the model was first trained with (`n_ctx_orig`).
    pub original_context: usize,
    /// Turns over the original context from which on a frequency is fast.
    pub beta_fast: f32,
    /// Turns over the original context up to which a frequency is slow, and interpolated.
    pub beta_slow: f32,
}

impl RopeScaling {
    /// No scaling.
    pub const NONE: Self = Self { factor: 1.0, yarn: None, magnitude: 1.0 };

    /// Reads the keys `rope.scaling.*`, and `rope.scale_linear`, the name of the factor before there
    /// were others. What they mean together is as in llama.cpp (`llama-model.cpp`,
    /// `llama-context.cpp`): without a type the factor is linear.
    ///
    /// The scaling of Llama 3 is no type: converters store it as the tensor `rope_freqs.weight`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a type other than none, linear and yarn, and for a
    /// number out of range.
    pub(super) fn from_gguf(gguf: &Gguf, architecture: &str, context: usize) -> Result<Self> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let number = |name: &str, (least, most): (f32, f32)| {
            let key = key(name);
            match gguf.get_f32(&key)? {
                Some(n) if !(least..=most).contains(&n) => {
                    Err(gguf.key_error(&key, n, format_args!("{least} to {most}")))
                }
                n => Ok(n),
            }
        };
        let type_key = key("scaling.type");
        let (scaled, yarn) = match gguf.get_str(&type_key)? {
            None | Some("linear") => (true, false),
            Some("none") => (false, false),
            Some("yarn") => (true, true),
            Some(other) => {
                let expected = "none, linear or yarn; Llama 3's scaling is stored as the tensor \
                                rope_freqs.weight";
                return Err(gguf.key_error(&type_key, quoted(other), expected));
            }
        };
        let range = (1e-3, 1e6);
        let factor = match number("scaling.factor", range)? {
            None => number("scale_linear", range)?,
            factor => factor,
        };
        // Below 0 it is not set.
        let own = number("scaling.yarn_ext_factor", (-1.0, 1.0))?.filter(|own| *own >= 0.0);
        let extrapolation = own.unwrap_or(if yarn { 1.0 } else { 0.0 });
        let log_key = key("scaling.yarn_log_multiplier");
        let original_key = key("scaling.original_context_length");
        let beta = |name: &str, default| number(name, range).map(|beta| beta.unwrap_or(default));
        let read = Yarn {
            extrapolation,
            original_context: match gguf.get_u32(&original_key)? {
                None | Some(0) => context,
                Some(n) => n as usize,
            },
            beta_fast: beta("scaling.yarn_beta_fast", 32.0)?,
            beta_slow: beta("scaling.yarn_beta_slow", 1.0)?,
        };
        let yarn = (extrapolation > 0.0).then_some(read);
        if let Some(n) = gguf.get_f32(&log_key)?.filter(|n| yarn.is_some() && *n != 0.0) {
            return Err(gguf.key_error(&log_key, n, "0, as other architectures only have it"));
        }
        let attention = number("scaling.attn_factor", (1e-3, 1e3))?.unwrap_or(1.0);
        // The factor of a scaling without extrapolation; YaRN has its own.
        let linear = number("scaling.yarn_attn_factor", (1e-3, 1e3))?.filter(|_| yarn.is_none());
        Ok(Self {
            factor: factor.filter(|_| scaled).unwrap_or(1.0),
            yarn,
            magnitude: attention * linear.unwrap_or(1.0),
        })
    }
}

/// Reads the base of the rotary frequencies of so many layers.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) for a number out of range.
pub(super) fn base(gguf: &Gguf, architecture: &str, layers: usize) -> Result<f32> {
    let key = format!("{architecture}.rope.freq_base");
    let base = per_layer(gguf, &key, layers, "an f32", Value::as_f32)?.unwrap_or(10_000.0);
    if (1.0..=1e12).contains(&base) {
        Ok(base)
    } else {
        Err(gguf.key_error(&key, base, "1 to 1e12"))
    }
}
