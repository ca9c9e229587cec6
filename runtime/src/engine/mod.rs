//! Generation: from a model's file to a text.

pub mod embedding;
mod fit;
mod generate;
pub mod logprobs;
pub mod lookup;
mod open;
mod options;
mod packed;
mod profile;
pub mod report;
pub mod sampler;
pub mod sequence;
mod suggested;
mod trust;
mod turns;

pub use crate::note::Note;
pub use embedding::{Embedding, Normalisation, Pooling};
pub use fit::{AbsentKernel, FINGERPRINT, ProfileFit};
pub use generate::{GenerateOptions, Generation};
pub use open::{Engine, Placement};
pub use options::{Options, PackedWeights, ProfileChoice, Progress, Start};
pub use packed::{PackedStore, StoredFile};
pub use profile::{NamedProfile, ProfileInUse, ProfileSource};
pub use suggested::Suggested;
pub use turns::Turns;
