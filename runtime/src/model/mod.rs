//! The model: configuration, weights, KV cache and the forward pass.

pub mod config;
pub mod forward;
pub mod kv_cache;
pub mod numerics;
pub mod rope;
pub mod weights;

use std::path::Path;

use crate::error::Result;
use crate::gguf::Gguf;
use config::Config;
use rope::Rope;
use weights::Weights;

pub use forward::{Session, SessionOptions};
pub use kv_cache::KvType;

/// A model ready to run: shared by any number of [`Session`]s.
#[derive(Debug)]
pub struct Model {
    gguf: Gguf,
    config: Config,
    weights: Weights,
    rope: Rope,
    warnings: Vec<String>,
}

impl Model {
    /// Opens a GGUF file and loads its weights.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be read,
    /// [`Error::Model`](crate::Error::Model) when it is no model that this runtime runs.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_gguf(Gguf::open(path)?)
    }

    /// Loads the weights of an open file.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let config = Config::from_gguf(&gguf)?;
        let mut warnings = Vec::new();
        let weights = Weights::load(&gguf, &config, &mut warnings)?;
        let factors = weights.rope_factors.as_deref();
        let rope = Rope::new(config.rope_dim, config.rope_base, config.rope_scale, factors);
        Ok(Self { gguf, config, weights, rope, warnings })
    }

    /// The file: metadata, and the blocks of the embedding and the head.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The hyperparameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What was odd about the file but no obstacle, one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn rope(&self) -> &Rope {
        &self.rope
    }
}
