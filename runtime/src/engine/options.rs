//! How an [`Engine`](super::Engine) is opened.

use std::path::PathBuf;
use std::sync::Arc;

use bitnet_profiles::{Format, Isa, Pinning};

use super::profile::NamedProfile;
use crate::cpu::head::choose::HeadMode;
use crate::cpu::head::screen::Needs;
use crate::cpu::sparse;

/// Which tuning profile chooses the kernels.
#[derive(Clone, Debug, Default)]
pub enum ProfileChoice {
    /// The user's own for this CPU and these shapes, else the shipped one.
    #[default]
    Auto,
    /// The one shipped for this CPU.
    Shipped,
    /// That of a file.
    File(PathBuf),
    /// One that was read before.
    Named(Box<NamedProfile>),
}

/// When weights are packed for the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// When the engine is opened, but of models that can be run as they lie in the file, and are neither
    /// so small nor so large that it does not pay: there a short prompt is answered at once, and weights
    /// are packed behind its first token.
    #[default]
    Auto,
    /// When the engine is opened.
    Packed,
}

/// Told how many bytes of how many are packed.
pub type Progress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// How an engine is opened. The default is what `bitnet-run` does without flags. None of it changes a
/// number that the model computes.
#[derive(Clone)]
pub struct Options {
    /// The tuning profile.
    pub profile: ProfileChoice,
    /// Packs all ternary weights in this format, whatever a profile says.
    pub format: Option<Format>,
    /// Uses no better instructions than these, whatever a profile says.
    pub isa: Option<Isa>,
    /// How the best logits are found where not all are needed.
    pub lm_head: HeadMode,
    /// The logits that most tokens will need, which decides the form of the head in memory. Any others
    /// may be asked for all the same.
    pub needs: Needs,
    /// Activation sparsity: whether single tokens skip weights that meet a zero.
    pub sparse: sparse::Mode,
    /// Worker threads; `None`: the profile's number, else one for each physical core.
    pub threads: Option<usize>,
    /// How workers are bound to CPUs; `None`: as the profile says, else not.
    pub pinning: Option<Pinning>,
    /// Whether weights lie in huge pages; `None`: as the profile says, else they do.
    pub huge_pages: Option<bool>,
    /// Keeps the weights from being swapped out.
    pub mlock: bool,
    /// Maps the file; else it is read into memory.
    pub mmap: bool,
    /// Reads the tokenizer when the engine is opened, so that a file without one is refused at once; else
    /// when it is asked for.
    pub tokenizer: bool,
    /// When weights are packed.
    pub start: Start,
    /// Told while weights are packed.
    pub progress: Option<Progress>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            profile: ProfileChoice::Auto,
            format: None,
            isa: None,
            lm_head: HeadMode::Auto,
            needs: Needs::Best {
                count: super::sampler::Sampling::default().top_k,
                ids: Vec::new(),
            },
            sparse: sparse::Mode::Auto,
            threads: None,
            pinning: None,
            huge_pages: None,
            mlock: false,
            mmap: true,
            tokenizer: true,
            start: Start::Auto,
            progress: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { profile, format, isa, threads, start, .. } = self;
        f.debug_struct("Options")
            .field("profile", profile)
            .field("format", format)
            .field("isa", isa)
            .field("threads", threads)
            .field("start", start)
            .finish_non_exhaustive()
    }
}
