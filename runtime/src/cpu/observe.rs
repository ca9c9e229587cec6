//! Observation of the forward pass, for measurements.

use std::fmt::Debug;

/// Receives values of the forward pass as they are computed ([`Session::observe`]). Tokens that go
/// through the model together arrive in no order, from several workers at once.
///
/// [`Session::observe`]: crate::Session::observe
pub trait Observer: Debug + Send + Sync {
    /// Feed-forward part of one layer at one position: `gate`, `[ffn]`, before the non-linearity,
    /// and `input`, `[ffn]`, the input of `ffn_down`.
    fn feed_forward(&self, layer: usize, position: usize, gate: &[f32], input: &[i8]);

    /// Input of the head at one position, `[hidden]`; called where logits are needed.
    fn head(&self, position: usize, input: &[f32]);
}
