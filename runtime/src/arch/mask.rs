//! The mask of attention, read from the metadata of a GGUF file and checked.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Architecture;
use super::config::per_layer;
use crate::error::Result;
use crate::file::gguf::{Gguf, Value};

/// Positions that a token attends to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mask {
    /// True if a token sees none of the tokens behind it; otherwise it sees all of its text, which goes
    /// through the model at once.
    pub causal: bool,
    /// The layers in which it sees those near it only.
    pub window: Option<Window>,
}

/// A window of positions, in some layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Distance of the farthest position that a token sees.
    pub reach: usize,
    /// True for each layer that has the window, `[layers]`.
    pub layers: Vec<bool>,
    /// Base of the rotary frequencies in these layers, where positions are not scaled.
    pub rope_base: f32,
}

/// The windows of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// As many positions as the file says, a token's own the last.
    Behind,
    /// Half as many on either side of a token as the file says.
    Around,
}

/// Of so many layers the last sees all, where a file does not say which do.
const PATTERN: u32 = 6;
/// Base of the rotary frequencies under a window, where a file does not say it.
const ROPE_BASE: f32 = 10_000.0;

impl Mask {
    /// A token sees all positions up to its own.
    pub const CAUSAL: Self = Self { causal: true, window: None };

    /// Reads the keys `attention.causal`, and for architectures with windows `attention.sliding_window`,
    /// 0 for none, `attention.sliding_window_pattern` and `rope.freq_base_swa`. What they mean is as in
    /// llama.cpp (`llama-model.cpp`, `llama_hparams::is_masked_swa`).
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a value out of range, and a mask that does not go with the
    /// windows of the architecture.
    pub(super) fn from_gguf(
        gguf: &Gguf,
        architecture: &Architecture,
        layers: usize,
    ) -> Result<Self> {
        let key = |name: &str| format!("{}.{name}", architecture.name);
        let causal_key = key("attention.causal");
        let own = architecture.windows != Some(Windows::Around);
        let causal = gguf.get_bool(&causal_key)?.unwrap_or(own);
        let size_key = key("attention.sliding_window");
        let size = match architecture.windows {
            Some(_) => per_layer(gguf, &size_key, layers, "a u32", Value::as_u32)?.unwrap_or(0),
            None => 0,
        };
        if size == 0 {
            return Ok(Self { causal, window: None });
        }
        if causal != own {
            let expected = format!("{own}, with which {size_key} is defined");
            return Err(gguf.key_error(&causal_key, causal, expected));
        }
        let reach = if causal { size as usize - 1 } else { size as usize / 2 };
        let base_key = key("rope.freq_base_swa");
        let rope_base = gguf.get_f32(&base_key)?.unwrap_or(ROPE_BASE);
        if !(1.0..=1e12).contains(&rope_base) {
            return Err(gguf.key_error(&base_key, rope_base, "1 to 1e12"));
        }
        let layers = pattern(gguf, &key("attention.sliding_window_pattern"), layers)?;
        Ok(Self { causal, window: Some(Window { reach, layers, rope_base }) })
    }

    /// Returns the window of a layer, if it has one.
    #[must_use]
    pub fn window_of(&self, layer: usize) -> Option<&Window> {
        self.window.as_ref().filter(|window| window.layers.get(layer) == Some(&true))
    }

    /// Returns the positions that the token at `position` of a text attends to in a layer, of the `known`
    /// first ones that go or have gone through the model.
    #[must_use]
    pub fn seen(&self, layer: usize, position: usize, known: usize) -> Range<usize> {
        let end = if self.causal { position + 1 } else { known };
        match self.window_of(layer) {
            None => 0..end,
            Some(Window { reach, .. }) => {
                position.saturating_sub(*reach)..end.min(position.saturating_add(*reach + 1))
            }
        }
    }
}

/// Reads the layers that have a window: one of so many sees all, or a truth value for each layer.
fn pattern(gguf: &Gguf, key: &str, layers: usize) -> Result<Vec<bool>> {
    let period = match gguf.get(key) {
        None => PATTERN,
        Some(value @ Value::Array(_)) => {
            let each: Option<Vec<bool>> = value.items().map(|item| item.as_bool()).collect();
            return each.filter(|each| each.len() == layers).ok_or_else(|| {
                let expected = format!("a u32, or a truth value for each of {layers} layers");
                gguf.key_error(key, value, expected)
            });
        }
        Some(value) => {
            value.as_u32().ok_or_else(|| gguf.key_error(key, value, "a u32 or truth values"))?
        }
    };
    // Of 0 all have it.
    Ok((0..layers).map(|layer| period == 0 || layer as u32 % period < period - 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sees_what_its_mask_shows() {
        assert_eq!(Mask::CAUSAL.seen(0, 7, 20), 0..8);
        let all = Mask { causal: false, window: None };
        assert_eq!(all.seen(0, 7, 20), 0..20);
        let window = Window { reach: 3, layers: vec![true, false], rope_base: 1e4 };
        let behind = Mask { causal: true, window: Some(window.clone()) };
        let around = Mask { causal: false, window: Some(window) };
        assert_eq!([0, 2, 7].map(|at| behind.seen(0, at, 20)), [0..1, 0..3, 4..8]);
        assert_eq!([0, 7, 18].map(|at| around.seen(0, at, 20)), [0..4, 4..11, 15..20]);
        assert_eq!((behind.seen(1, 7, 20), around.seen(1, 7, 20)), (0..8, 0..20));
        assert!(behind.window_of(0).is_some() && behind.window_of(2).is_none());
    }
}
