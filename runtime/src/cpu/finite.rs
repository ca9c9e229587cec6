//! Notice of numbers that are not finite, or too large to compute with, where they first arise.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Largest magnitude that queries and keys may reach: the dot product of two heads stays finite.
pub(super) const MAX_SCORED: f32 = 1e15;

/// A place in a layer where numbers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Input of q, k and v.
    Qkv,
    /// Keys, as the cache holds them.
    Keys,
    AttnOutput,
    GateUp,
    Down,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Qkv, Self::Keys, Self::AttnOutput, Self::GateUp, Self::Down];

    fn name(self) -> &'static str {
        match self {
            Self::Qkv => "input of attention",
            Self::Keys => "keys of attention",
            Self::AttnOutput => "output of attention",
            Self::GateUp => "input of the feed-forward part",
            Self::Down => "gated product of the feed-forward part",
        }
    }
}

/// The first place in a pass where numbers were not finite, in the order of the layers.
#[derive(Debug)]
pub(super) struct Broken(AtomicUsize);

impl Broken {
    pub(super) fn none() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    /// Notes a stage of a layer.
    #[cold]
    pub(super) fn at(&self, layer: usize, stage: Stage) {
        self.0.fetch_min(layer * Stage::ALL.len() + stage as usize, Ordering::Relaxed);
    }

    /// Notes the input of the head.
    #[cold]
    pub(super) fn at_head(&self) {
        self.0.fetch_min(usize::MAX - 1, Ordering::Relaxed);
    }

    /// Checks that nothing was noted in a pass through the model of the file `path`.
    ///
    /// # Errors
    /// [`Error::Runtime`] naming the place.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        const STAGES: usize = Stage::ALL.len();
        let place = match self.0.load(Ordering::Relaxed) {
            usize::MAX => return Ok(()),
            at if at == usize::MAX - 1 => "input of the head".to_owned(),
            at => format!("layer {}, {}", at / STAGES, Stage::ALL[at % STAGES].name()),
        };
        Err(Error::Runtime(format!(
            "{}: {place}: the model gives no numbers any more, but infinities or NaN; the file may be \
             damaged",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_is_named() {
        let broken = Broken::none();
        let path = Path::new("m.gguf");
        broken.check(path).unwrap();
        let place = |broken: &Broken| broken.check(path).unwrap_err().to_string();
        broken.at_head();
        assert!(place(&broken).starts_with("m.gguf: input of the head: "), "{}", place(&broken));
        broken.at(7, Stage::Down);
        broken.at(7, Stage::AttnOutput);
        broken.at(9, Stage::Qkv);
        let expected = "m.gguf: layer 7, output of attention: ";
        assert!(place(&broken).starts_with(expected), "{}", place(&broken));
        assert!(place(&broken).contains("no numbers"));
    }
}
