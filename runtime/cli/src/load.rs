//! The flags that say how a model is opened.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_profiles::{Format, Isa, Pinning};
use bitnet_runtime::Activations;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{HeadMode, KvType, SessionOptions};
use bitnet_runtime::cpu::sparse;
use bitnet_runtime::cpu::threads::MAX_THREADS;
use bitnet_runtime::engine::lookup::MAX_DRAFT;
use bitnet_runtime::engine::{
    Engine, NamedProfile, Options, PackedWeights, ProfileChoice, Progress,
};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::{Gguf, Override};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{note, with_flags};

/// The heading of these flags in the help.
pub const PERFORMANCE: &str = "Performance";
const MODEL_FILE: &str = "Model file";

/// More tokens than this do not go through the model together, whatever is asked for.
pub const MAX_BATCH: usize = 1 << 16;

/// Flags for what a model's file says wrongly, or does not say.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OverrideArgs {
    /// Take this value of a metadata key in place of the file's; the types are int, float, bool and
    /// str. Several: repeat the flag, or put commas between
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = overrides, help_heading = MODEL_FILE)]
    override_kv: Vec<Overrides>,
    /// Cut a text into words as this vocabulary does, such as llama-bpe or qwen2, whatever the file says
    #[arg(long, value_name = "NAME", help_heading = MODEL_FILE)]
    pre: Option<String>,
}

/// The values of one `--override-kv`.
#[derive(Clone, Debug)]
struct Overrides(Vec<Override>);

fn overrides(text: &str) -> Result<Overrides> {
    Override::list(text).map(Overrides)
}

impl OverrideArgs {
    /// These flags as options.
    pub fn options(&self) -> Options {
        Options {
            overrides: self.override_kv.iter().flat_map(|list| list.0.clone()).collect(),
            pre: self.pre.clone(),
            ..Options::default()
        }
    }

    /// Opens a file that is not run, and tells what is not the file's own word.
    ///
    /// # Errors
    /// Those of [`Options::file`].
    pub fn open(&self, path: &Path) -> Result<Gguf> {
        let gguf = self.options().file(path)?;
        gguf.override_notes().for_each(|line| note(format_args!("{line}")));
        Ok(gguf)
    }
}

/// The flags that choose kernels, and say what the file does not.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelArgs {
    #[command(flatten)]
    overrides: OverrideArgs,
    /// A tuning profile; auto: your own for this CPU and model, else the shipped one;
    /// none: the shipped one
    #[arg(long, value_name = "FILE|auto|none", default_value = "auto")]
    profile: PathBuf,
    /// Pack all ternary weights as i2_s, tl1, tl2 or t5, whatever the profile says
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Use no better instructions than scalar, avx2, avxvnni, avx512, avx512vnni or avx512vbmi, on
    /// ARM scalar, neon, neondot or neoni8mm, whatever the profile says
    #[arg(long, value_name = "ISA")]
    isa: Option<Isa>,
    /// How the most likely tokens are found, which changes no text: exact: by a scan of a low-bit
    /// copy of the lm_head; full: by reading all of it; auto: as a measurement at load says
    #[arg(
        long,
        value_name = "auto|exact|full",
        default_value = "auto",
        hide_possible_values = true
    )]
    lm_head: LmHead,
    /// Skip the weights that meet a zero when single tokens go through a model whose gate is a
    /// squared ReLU: where it pays, always, or never. Takes more memory, changes no number
    #[arg(long, value_name = "auto|on|off", default_value = "auto")]
    sparse: SparseFlag,
}

/// How the most likely tokens are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LmHead {
    Auto,
    Exact,
    Full,
}

impl From<LmHead> for HeadMode {
    fn from(flag: LmHead) -> Self {
        match flag {
            LmHead::Auto => Self::Auto,
            LmHead::Exact => Self::Exact,
            LmHead::Full => Self::Full,
        }
    }
}

/// `--sparse`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SparseFlag {
    Auto,
    On,
    Off,
}

impl From<SparseFlag> for sparse::Mode {
    fn from(flag: SparseFlag) -> Self {
        match flag {
            SparseFlag::Auto => Self::Auto,
            SparseFlag::On => Self::On,
            SparseFlag::Off => Self::Off,
        }
    }
}

/// Flags of the session, of which `bench` has lists.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SessionArgs {
    /// Tokens of the prompt that go through the model together, at most
    #[arg(short, long = "batch-size", value_name = "N", default_value_t = 2048,
          allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..), help_heading = PERFORMANCE)]
    pub batch: u32,
    /// The same; the smaller of both counts; 0: as --batch-size
    #[arg(long = "ubatch-size", visible_alias = "ub", value_name = "N", default_value_t = 512,
          allow_negative_numbers = true,
          help_heading = PERFORMANCE)]
    pub ubatch: u32,
    /// Keys in the KV cache: f16, f32 or q8_0, int8 with a scale for each head and position, which takes
    /// half the memory of f16 and moves logits more [default: f16, f32 for small models]
    #[arg(long = "cache-type-k", visible_alias = "ctk", value_name = "TYPE",
          help_heading = PERFORMANCE)]
    pub cache_type_k: Option<CacheType>,
    /// Values in the KV cache: the same type as keys
    #[arg(long = "cache-type-v", visible_alias = "ctv", value_name = "TYPE",
          help_heading = PERFORMANCE)]
    pub cache_type_v: Option<CacheType>,
}

/// Types of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    F16,
    F32,
    #[value(name = "q8_0")]
    Q8,
}

impl From<CacheType> for KvType {
    fn from(ty: CacheType) -> Self {
        match ty {
            CacheType::F16 => Self::F16,
            CacheType::F32 => Self::F32,
            CacheType::Q8 => Self::Q8_0,
        }
    }
}

impl SessionArgs {
    /// Tokens that go through the model together.
    pub fn batch(&self) -> usize {
        let ubatch = if self.ubatch == 0 { self.batch } else { self.ubatch };
        (self.batch.min(ubatch) as usize).min(MAX_BATCH)
    }

    /// The options of a session with a context of so many positions.
    ///
    /// # Errors
    /// [`Error::Usage`] when keys and values are asked for in different types.
    pub fn options(&self, context: Option<usize>) -> Result<SessionOptions> {
        let [keys, values] = [self.cache_type_k, self.cache_type_v].map(|ty| ty.map(KvType::from));
        let kv_type = match (keys, values) {
            (Some(k), Some(v)) if k != v => {
                let found = v.name();
                return Err(Error::usage("--cache-type-v", found, "the type of --cache-type-k"));
            }
            (k, v) => k.or(v),
        };
        Ok(SessionOptions { context, batch: self.batch(), kv_type, ..SessionOptions::default() })
    }
}

/// The flag that names a file of packed weights.
#[derive(Clone, Debug, clap::Args)]
pub struct PackedArgs {
    /// A file that `bitnet-run pack` made; auto: the one that it keeps for this model, if there is one;
    /// none: weights are packed in memory
    #[arg(long, value_name = "FILE|auto|none", default_value = "auto", help_heading = PERFORMANCE)]
    packed: PathBuf,
}

impl PackedArgs {
    /// This flag as an option.
    pub fn option(&self) -> PackedWeights {
        match self.packed.to_str() {
            Some("auto") => PackedWeights::Auto,
            Some("none") => PackedWeights::Never,
            _ => PackedWeights::File(self.packed.clone()),
        }
    }
}

/// The flags of drafts.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DraftArgs {
    /// Draft tokens that followed the same ones before, and check them together: the same text, and
    /// sooner where it repeats itself
    #[arg(long, help_heading = PERFORMANCE)]
    pub lookup: bool,
    /// Tokens that --lookup drafts at once, at most
    #[arg(
        long,
        alias = "draft",
        alias = "draft-n",
        alias = "spec-draft-n-max",
        value_name = "N",
        default_value_t = 16,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(1..=MAX_DRAFT as u64),
        help_heading = PERFORMANCE
    )]
    draft_max: u64,
}

impl DraftArgs {
    /// Tokens to draft at once, at most; 0: none.
    pub fn most(&self) -> usize {
        if self.lookup { self.draft_max as usize } else { 0 }
    }
}

/// Tells the user what a mapped file that is cut short means, once an engine has opened all of them.
pub fn explain_bus_errors(engine: &Engine, what_to_do: &str) {
    if engine.gguf().is_mapped() {
        let packed = engine.packed_file();
        bus_error::explain(engine.gguf().path(), packed.as_deref(), what_to_do);
    }
}

/// Flags that say where threads and weights go.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct PlacementArgs {
    /// 1: bind every thread to a CPU of its own; 0: to none [default: the profile's, else 0]
    #[arg(long, value_name = "0|1", value_parser = switch(), help_heading = PERFORMANCE)]
    cpu_strict: Option<bool>,
    /// 1: ask for huge pages for the weights; 0: for small ones [default: the profile's, else 1]
    #[arg(long, value_name = "0|1", value_parser = switch(), help_heading = PERFORMANCE)]
    huge_pages: Option<bool>,
    /// Keep the weights from being swapped out
    #[arg(long, help_heading = PERFORMANCE)]
    mlock: bool,
}

/// `0` or `1`, for clap.
pub fn switch() -> impl clap::builder::TypedValueParser<Value = bool> {
    use clap::builder::TypedValueParser as _;
    clap::builder::PossibleValuesParser::new(["0", "1"]).map(|value| value == "1")
}

/// The number of worker threads, for clap: 0 or less stands for one for each CPU that the program may
/// use.
pub fn threads(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<i64>() {
        Ok(..=0) => Ok(thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)),
        Ok(threads) if threads <= MAX_THREADS as i64 => Ok(threads as usize),
        _ => Err(format!("it is not in 1..={MAX_THREADS}; 0 or less: one for each CPU")),
    }
}

impl KernelArgs {
    /// Reads the profile, if one was named.
    ///
    /// # Errors
    /// [`Error::Profile`] when it is refused, [`Error::Io`] when it cannot be read.
    fn named(&self) -> Result<Option<NamedProfile>> {
        match self.profile.to_str() {
            Some("auto" | "none") => Ok(None),
            _ => NamedProfile::load(&self.profile).map(Some),
        }
    }

    /// The model that was asked for and how to open it. Without a path it is the model that the named
    /// profile was made for.
    ///
    /// # Errors
    /// [`Error::Cpu`] when the CPU lacks the ISA; [`Error::Usage`] when nothing names a model; those of
    /// reading a profile.
    pub fn open(
        &self,
        model: Option<&Path>,
        placement: PlacementArgs,
    ) -> Result<(PathBuf, Options)> {
        Selection::new(self.isa, self.format, None)?;
        let named = self.named()?;
        let path = match (model, &named) {
            (Some(path), _) => path.to_path_buf(),
            (None, None) => {
                let expected = "-m MODEL, or --profile FILE of a profile that names its model";
                return Err(Error::usage("model", "none", expected));
            }
            (None, Some(named)) => named.model().ok_or_else(|| {
                let found = format!("none, and {} names none either", named.path.display());
                Error::usage("model", found, "-m MODEL")
            })?,
        };
        let profile = match named {
            Some(named) => ProfileChoice::Named(Box::new(named)),
            None if self.profile.as_os_str() == "none" => ProfileChoice::Shipped,
            None => ProfileChoice::Auto,
        };
        let options = Options {
            profile,
            format: self.format,
            isa: self.isa,
            lm_head: self.lm_head.into(),
            sparse: self.sparse.into(),
            pinning: placement.cpu_strict.map(|on| if on { Pinning::Cores } else { Pinning::None }),
            huge_pages: placement.huge_pages,
            mlock: placement.mlock,
            ..self.overrides.options()
        };
        Ok((path, options))
    }
}

/// The flag that says how activations are rounded.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ActivationArgs {
    /// Round the activations that ternary matrices multiply to int8 for each token or for each block of
    /// columns, or not at all, which is slow and for tests; auto: for each block where the scales of the
    /// weights differ, else for each token. Changes numbers
    #[arg(
        long,
        value_name = "auto|token|block|f32",
        default_value = "auto",
        value_parser = activations,
        help_heading = PERFORMANCE
    )]
    pub activations: Activations,
}

/// A rounding of activations, for clap.
fn activations(text: &str) -> std::result::Result<Activations, String> {
    let found = Activations::ALL.into_iter().find(|activations| activations.name() == text);
    found.ok_or_else(|| "it is none of auto, token, block, f32".to_owned())
}

/// Advice on the file of a model while it is used.
pub const LEAVE: &str = "leave it as it is while it is used, or give --no-mmap";

/// The flags of a model that is run.
#[derive(Clone, Debug, clap::Args)]
pub struct OpenArgs {
    /// Threads; 0 or less: one for each CPU [default: the profile's, else one for each physical core]
    #[arg(
        short,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = threads,
        help_heading = PERFORMANCE
    )]
    threads: Option<usize>,
    /// Keep all threads at work, even while other programs need the CPUs and fewer would be faster
    #[arg(long, help_heading = PERFORMANCE)]
    fixed_threads: bool,
    #[command(flatten, next_help_heading = PERFORMANCE)]
    kernels: KernelArgs,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    packed: PackedArgs,
    #[command(flatten)]
    activations: ActivationArgs,
    /// Map the file, which is so anyway
    #[arg(long, overrides_with = "no_mmap", help_heading = PERFORMANCE)]
    mmap: bool,
    /// Read the file into memory instead of mapping it
    #[arg(long, overrides_with = "mmap", help_heading = PERFORMANCE)]
    no_mmap: bool,
}

impl OpenArgs {
    /// The model that was asked for and how to open it.
    ///
    /// # Errors
    /// Those of [`KernelArgs::open`].
    pub fn options(&self, model: Option<&Path>) -> Result<(PathBuf, Options)> {
        let (path, options) = self.kernels.open(model, self.placement)?;
        if !self.no_mmap {
            bus_error::explain(&path, None, LEAVE);
        }
        let options = Options {
            threads: self.threads,
            fixed_threads: self.fixed_threads,
            mmap: !self.no_mmap,
            packed: self.packed.option(),
            activations: self.activations.activations,
            ..options
        };
        Ok((path, options))
    }
}

/// Tells on stderr what there is to tell and was not told yet.
pub fn tell(engine: &Engine) {
    for line in engine.take_notes() {
        note(format_args!("{}", with_flags(&line.to_string())));
    }
}

/// A progress line for packing; silent while `silenced`, as when a text appears on the same terminal.
pub fn progress(silenced: Arc<AtomicBool>) -> Progress {
    let line = Mutex::new(ProgressLine::default());
    Arc::new(move |done, of| {
        if !silenced.load(Ordering::Relaxed) {
            line.lock().unwrap_or_else(PoisonError::into_inner).show(done, of);
        }
    })
}

/// A line that appears, on a terminal, when packing has taken a second, and goes when it is done.
#[derive(Default)]
struct ProgressLine {
    start: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl ProgressLine {
    const PATIENCE: Duration = Duration::from_secs(1);

    fn show(&mut self, done: usize, of: usize) {
        let start = *self.start.get_or_insert_with(Instant::now);
        if done >= of {
            self.start = None;
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return;
        }
        if start.elapsed() < Self::PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(of as u64);
            let template =
                "packing weights {bar:30} {decimal_bytes} of {decimal_total_bytes}, {eta} left";
            // The default style serves should the template be refused.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(done as u64);
    }
}
