//! Options for opening an [`Engine`](super::Engine).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_profiles::{Format, Isa, Pinning};

use super::profile::NamedProfile;
use crate::cancel::Cancel;
use crate::cpu::float::Activations;
use crate::cpu::head::choose::HeadMode;
use crate::cpu::head::screen::Needs;
use crate::cpu::sparse;
use crate::error::Result;
use crate::file::gguf::{Gguf, Override};
use crate::text::pretokenize;

/// Choice of the tuning profile, which chooses the kernels.
#[derive(Clone, Debug, Default)]
pub enum ProfileChoice {
    /// The user's profile for this CPU and these shapes, else the shipped one.
    #[default]
    Auto,
    /// The profile shipped for this CPU.
    Shipped,
    /// A profile read from a file.
    File(PathBuf),
    /// A profile that was read before.
    Named(Box<NamedProfile>),
}

/// Time at which weights are packed for the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// On opening the engine, except for models that can be run as they lie in the file and for
    /// whose size this pays: there a short prompt is answered at once, and weights are packed once
    /// the text has become long.
    #[default]
    Auto,
    /// On opening the engine.
    Packed,
}

/// Use of a file of packed weights, which is mapped instead of packing them. It is used only where the
/// model's file is mapped, and not where weights are to be locked in memory. One that does not fit is left
/// alone, with a note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PackedWeights {
    /// The one that is kept for this model, if there is one.
    #[default]
    Auto,
    /// None.
    Never,
    /// This file.
    File(PathBuf),
}

/// Callback for progress: bytes packed, and bytes in all.
pub type Progress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// Options for opening an engine. The default is what `bitnet-run` does without flags. But for
/// [`Options::overrides`] and [`Options::pre`], which change what the file says, and
/// [`Options::activations`], no option changes a number that the model computes.
#[derive(Clone)]
pub struct Options {
    /// Metadata values in place of the file's.
    pub overrides: Vec<Override>,
    /// Name of the pre-tokenizer, which cuts a text into words, in place of the file's; as
    /// `tokenizer.ggml.pre` has it, for example `llama-bpe`.
    pub pre: Option<String>,
    /// The tuning profile.
    pub profile: ProfileChoice,
    /// Packs all ternary weights in this format, whatever a profile says.
    pub format: Option<Format>,
    /// Uses no better ISA than this, whatever a profile says.
    pub isa: Option<Isa>,
    /// Method of finding the best logits where not all are needed.
    pub lm_head: HeadMode,
    /// Logits that most tokens will need, which decides the form of the head in memory; others may
    /// still be asked for. With [`Needs::Hidden`] the head stays in the file.
    pub needs: Needs,
    /// Activation sparsity: skipping, for single tokens, the weights that meet a zero.
    pub sparse: sparse::Mode,
    /// Rounding of the activations that ternary matrices multiply, which changes numbers unless it is
    /// [`Activations::Auto`].
    pub activations: Activations,
    /// Worker threads; `None`: the profile's number, else one for each physical core.
    pub threads: Option<usize>,
    /// Keeps all worker threads at work; otherwise passes through the model take fewer while other
    /// programs need the CPUs and fewer are faster.
    pub fixed_threads: bool,
    /// Binding of workers to CPUs; `None`: as the profile says, else none.
    pub pinning: Option<Pinning>,
    /// True to put the weights in huge pages; `None`: as the profile says, else true.
    pub huge_pages: Option<bool>,
    /// Keeps the weights from being swapped out.
    pub mlock: bool,
    /// Maps the file instead of reading it into memory.
    pub mmap: bool,
    /// Reads the tokenizer when the engine is opened, so that a file without one is refused at
    /// once; otherwise it is read on first use.
    pub tokenizer: bool,
    /// Time at which weights are packed.
    pub start: Start,
    /// File of packed weights.
    pub packed: PackedWeights,
    /// Callback while weights are packed.
    pub progress: Option<Progress>,
    /// Ends packing early, with [`Error::Interrupted`](crate::Error::Interrupted). Sessions have one of their
    /// own: [`Session::cancel_with`](crate::Session::cancel_with).
    pub cancel: Option<Cancel>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            overrides: Vec::new(),
            pre: None,
            profile: ProfileChoice::Auto,
            format: None,
            isa: None,
            lm_head: HeadMode::Auto,
            needs: Needs::Best {
                count: super::sampler::Sampling::default().top_k,
                ids: Vec::new(),
            },
            sparse: sparse::Mode::Auto,
            activations: Activations::Auto,
            threads: None,
            fixed_threads: false,
            pinning: None,
            huge_pages: None,
            mlock: false,
            mmap: true,
            tokenizer: true,
            start: Start::Auto,
            packed: PackedWeights::Auto,
            progress: None,
            cancel: None,
        }
    }
}

impl Options {
    /// Opens a file as these options say, mapped or read, with their values in place of its own.
    ///
    /// # Errors
    /// Those of [`Gguf::open`]; [`Error::Usage`](crate::Error::Usage) for an override of a wrong type,
    /// or a pre-tokenizer that is not known.
    pub fn file(&self, path: impl AsRef<Path>) -> Result<Gguf> {
        let mut gguf = if self.mmap { Gguf::open(path) } else { Gguf::read(path) }?;
        self.apply(&mut gguf)?;
        Ok(gguf)
    }

    /// Puts values in place of those of a file that is open.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for an override of a wrong type, or a pre-tokenizer that is
    /// not known.
    pub fn apply(&self, gguf: &mut Gguf) -> Result<()> {
        gguf.apply(&self.overrides)?;
        self.pre.iter().try_for_each(|name| gguf.apply(&[pretokenize::pre_override(name)?]))
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { overrides, pre, profile, format, isa, threads, start, .. } = self;
        f.debug_struct("Options")
            .field("overrides", overrides)
            .field("pre", pre)
            .field("profile", profile)
            .field("format", format)
            .field("isa", isa)
            .field("threads", threads)
            .field("start", start)
            .finish_non_exhaustive()
    }
}
