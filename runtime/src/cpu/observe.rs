//! A look into the forward pass, for measurements.

use std::fmt::Debug;

/// Sees values of the forward pass as they are computed ([`Session::observe`]): tokens that go
/// through the model together are seen in no order, by several workers at once.
///
/// [`Session::observe`]: crate::cpu::model::Session::observe
pub trait Observer: Debug + Send + Sync {
    /// The feed-forward part of one layer at one position: `gate`, `[ffn]`, before the
    /// non-linearity, and `input`, `[ffn]`, what `ffn_down` is multiplied with.
    fn feed_forward(&self, layer: usize, position: usize, gate: &[f32], input: &[i8]);

    /// What the head is multiplied with at one position, `[hidden]`: seen where logits are wanted.
    fn head(&self, position: usize, input: &[f32]);
}
