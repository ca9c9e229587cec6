//! From the flags to a model that is ready to run: which profile, which kernels, which threads.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_profiles::{
    Format, Isa, KernelId, Op, Pinning, Profile, ProfileError, Provenance, Role, Tool, registry,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output::{human, note};
use crate::trust::Trust;
use bitnet_runtime::arch::config::{Config, JobShapes};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::{self, Selection};
use bitnet_runtime::cpu::memory::{self, Pages};
use bitnet_runtime::cpu::model::{
    HeadMode, HeadOptions, HeadStats, KvType, LoadOptions, Model, Needs, Session, SessionOptions,
};
use bitnet_runtime::cpu::sparse;
use bitnet_runtime::cpu::threads::{MAX_THREADS, Pool};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::gguf::{Gguf, TensorType};

/// The heading of these flags in the help.
pub const PERFORMANCE: &str = "Performance";

/// The flags that choose kernels.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelArgs {
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

/// `--sparse`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SparseFlag {
    Auto,
    On,
    Off,
}

/// Flags of the session that `bench` has too.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SessionArgs {
    /// Tokens of the prompt that go through the model together, at most
    #[arg(short, long = "batch-size", value_name = "N", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..=1 << 16), help_heading = PERFORMANCE)]
    batch: u32,
    /// The same; the smaller of both counts
    #[arg(long = "ubatch-size", visible_alias = "ub", value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..=1 << 16), help_heading = PERFORMANCE)]
    ubatch: u32,
    /// Keys in the KV cache: f16, f32 or q8_0, int8 with a scale for each head and position, which takes
    /// half the memory of f16 and moves logits more [default: f16, f32 for small models]
    #[arg(long = "cache-type-k", visible_alias = "ctk", value_name = "TYPE",
          help_heading = PERFORMANCE)]
    cache_type_k: Option<CacheType>,
    /// Values in the KV cache: the same type as keys
    #[arg(long = "cache-type-v", visible_alias = "ctv", value_name = "TYPE",
          help_heading = PERFORMANCE)]
    cache_type_v: Option<CacheType>,
}

/// Types of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CacheType {
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
        self.batch.min(self.ubatch) as usize
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

/// Flags that say where threads and weights go.
#[derive(Clone, Copy, Debug, clap::Args)]
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

/// Where threads and weights go: the flags, else the profile.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// How workers are bound.
    pub pinning: Pinning,
    /// The pages of the weights.
    pub pages: Pages,
    lock: bool,
}

impl PlacementArgs {
    /// What holds for a run.
    pub fn with(&self, profile: &Taken) -> Placement {
        let run = profile.profile.as_ref().map(|profile| &profile.run);
        let pinning = match self.cpu_strict {
            Some(true) => Pinning::Cores,
            Some(false) => Pinning::None,
            None => run.map_or(Pinning::None, |run| run.pinning),
        };
        let huge = self.huge_pages.or(run.map(|run| run.huge_pages)).unwrap_or(true);
        let pages = if huge { Pages::Huge } else { Pages::Small };
        Placement { pinning, pages, lock: self.mlock }
    }
}

/// `0` or `1`, for clap.
pub fn switch() -> impl clap::builder::TypedValueParser<Value = bool> {
    use clap::builder::TypedValueParser as _;
    clap::builder::PossibleValuesParser::new(["0", "1"]).map(|value| value == "1")
}

/// The number of worker threads, for clap.
pub fn threads() -> impl clap::builder::TypedValueParser<Value = u64> {
    clap::value_parser!(u64).range(1..=MAX_THREADS as u64)
}

/// Where the choice of kernels came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `--profile FILE`
    File,
    /// Found in the user's folder.
    User,
    /// The defaults.
    Shipped,
}

/// The profile that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    /// Where it came from.
    pub source: Source,
    /// Its file, or the name of the defaults.
    pub name: String,
    /// Why it was taken.
    pub reason: String,
    #[serde(skip)]
    profile: Option<Profile>,
}

impl Taken {
    /// The name without the folder.
    pub fn short_name(&self) -> String {
        let file = Path::new(&self.name).file_name();
        file.map_or_else(|| self.name.clone(), |file| file.to_string_lossy().into_owned())
    }

    /// Worker threads that the profile was tuned with.
    pub fn threads(&self) -> Option<usize> {
        Some(self.profile.as_ref()?.run.threads as usize)
    }
}

/// The flags, checked; the profile's file read, if one was named.
pub struct Choice {
    named: Option<(PathBuf, Profile)>,
    ask_user_folder: bool,
    format: Option<Format>,
    isa: Option<Isa>,
    lm_head: HeadMode,
    sparse: sparse::Mode,
}

impl KernelArgs {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Cpu`] when the CPU lacks the ISA, [`Error::Profile`] when the named profile is
    /// refused, [`Error::Io`] when it cannot be read.
    pub fn check(&self) -> Result<Choice> {
        Selection::new(self.isa, self.format, None)?;
        let auto = self.profile.as_os_str() == OsStr::new("auto");
        let named = if auto || self.profile.as_os_str() == OsStr::new("none") {
            None
        } else {
            let profile = load(&self.profile).map_err(|e| Error::profile(&self.profile, e))?;
            Trust::of(&self.profile).tell(&self.profile);
            Some((self.profile.clone(), profile))
        };
        let lm_head = match self.lm_head {
            LmHead::Auto => HeadMode::Auto,
            LmHead::Exact => HeadMode::Exact,
            LmHead::Full => HeadMode::Full,
        };
        let sparse = match self.sparse {
            SparseFlag::Auto => sparse::Mode::Auto,
            SparseFlag::On => sparse::Mode::On,
            SparseFlag::Off => sparse::Mode::Off,
        };
        let (format, isa) = (self.format, self.isa);
        Ok(Choice { named, ask_user_folder: auto, format, isa, lm_head, sparse })
    }
}

impl Choice {
    /// `flag`, or else the model that the named profile was made for.
    ///
    /// # Errors
    /// [`Error::Usage`] when neither says.
    pub fn model_path(&self, flag: Option<&Path>) -> Result<PathBuf> {
        if let Some(path) = flag {
            return Ok(path.to_path_buf());
        }
        let Some((file, profile)) = &self.named else {
            let expected = "-m MODEL, or --profile FILE of a profile that names its model";
            return Err(Error::usage("--model", "none", expected));
        };
        let Some(path) = &profile.model.path else {
            let found = format!("none, and {} names none either", file.display());
            return Err(Error::usage("--model", found, "-m MODEL"));
        };
        // A relative path begins where the profile is.
        Ok(file.parent().unwrap_or(Path::new("")).join(path))
    }

    /// The best instructions that may be used.
    pub fn ceiling(&self) -> Isa {
        self.isa.unwrap_or_else(Isa::best)
    }

    /// The flags that override a profile.
    fn forced(&self) -> Option<&'static str> {
        match (self.isa, self.format) {
            (None, None) => None,
            (Some(_), None) => Some("--isa"),
            (None, Some(_)) => Some("--format"),
            (Some(_), Some(_)) => Some("--isa and --format"),
        }
    }

    /// The profile for a model: the named one, the user's, or the defaults.
    pub fn profile(&self, config: &Config, host: &Host) -> Taken {
        let shapes = config.shapes_hash();
        let defaults = |mut reason: String| {
            let shipped = kernels::shipped();
            let (name, default) = shipped.ternary(self.format, self.ceiling());
            if self.forced().is_none() {
                reason += &format!("; {}", origin(shipped.shipped(), config));
            }
            let pair =
                |job: &JobShapes| shipped.pair(job.role, &job.parts, self.format, self.ceiling());
            let serving = config.jobs().first().map_or(default, pair);
            let name = format!("{name} for {}", serving.isa());
            Taken { source: Source::Shipped, name, reason, profile: None }
        };
        if let Some(flags) = self.forced() {
            let what = match &self.named {
                Some((path, _)) => path.display().to_string(),
                None => "any profile".into(),
            };
            return defaults(format!("{flags} given, which overrides {what}"));
        }
        if let Some((path, profile)) = &self.named {
            let mut reason = String::from("asked for");
            if profile.model.shapes != shapes {
                reason += "; made for other shapes";
            }
            let (own, this) = (&profile.host, (&host.vendor, host.family, host.model));
            if (&own.vendor, own.family, own.model) != this {
                reason += &format!("; made on another CPU, {}", own.cpu);
            }
            return Taken {
                source: Source::File,
                name: path.display().to_string(),
                reason,
                profile: Some(profile.clone()),
            };
        }
        if !self.ask_user_folder {
            return defaults("--profile none given".into());
        }
        match users(&shapes, host) {
            Some((path, profile)) => Taken {
                source: Source::User,
                name: path.display().to_string(),
                reason: "tuned on this CPU for these shapes".into(),
                profile: Some(profile),
            },
            None => defaults(
                "nothing tuned for these shapes on this CPU; bitnet-tune --model makes a profile"
                    .into(),
            ),
        }
    }
}

/// How a shipped profile came to be, and whether it knows the model.
fn origin(shipped: &registry::Shipped, config: &Config) -> String {
    let profile = shipped.profile();
    let Tool { provenance, date, .. } = &profile.tool;
    let how = match provenance {
        Provenance::Measured => format!("measured on {}, {date}", profile.host.cpu),
        Provenance::Modelled => format!("modelled for {}", profile.host.cpu),
    };
    let listed = config.jobs().iter().all(|job| profile.choice(job.role, &job.parts).is_some());
    let shapes = if listed { "lists these shapes" } else { "does not list these shapes" };
    format!("{how}, {shapes}")
}

/// Reads a profile; one that needs more than this CPU has is refused whole.
fn load(path: &Path) -> std::result::Result<Profile, ProfileError> {
    let profile = Profile::load(path)?;
    profile.check_isa(Isa::is_supported)?;
    Ok(profile)
}

/// The user's own profile for these shapes and this CPU. One that is refused is set aside.
fn users(shapes: &str, host: &Host) -> Option<(PathBuf, Profile)> {
    let folder = registry::user_folder(|name| std::env::var_os(name))?;
    let name = registry::user_file_name(shapes, &host.vendor, host.family, host.model);
    let path = folder.join(name);
    if !path.exists() {
        return None;
    }
    let wrong =
        |item: &str, problem: String| Err(ProfileError::Content { item: item.into(), problem });
    let trust = Trust::of(&path);
    let profile = load(&path).and_then(|profile| {
        let own = &profile.host;
        if let Some(doubt) = trust.forbids() {
            wrong("file", format!("{doubt}, so it is used only if named with --profile"))
        } else if profile.model.shapes != shapes {
            wrong(
                "model.shapes",
                format!("{}, but this model's are {shapes}", profile.model.shapes),
            )
        } else if (&own.vendor, own.family, own.model) != (&host.vendor, host.family, host.model) {
            wrong("host", format!("made on another CPU, {}", own.cpu))
        } else {
            Ok(profile)
        }
    });
    match profile {
        Ok(profile) => {
            trust.tell(&path);
            Some((path, profile))
        }
        Err(error) => {
            note(format_args!("warning: profile set aside: {}", Error::profile(&path, error)));
            None
        }
    }
}

/// The number of threads: the flag's, the profile's as far as this process may use so many, which
/// is told, or one for each physical core.
pub fn thread_count(flag: Option<u64>, profile: &Taken, host: &Host) -> usize {
    match (flag, profile.threads()) {
        (Some(threads), _) => threads as usize,
        (None, Some(threads)) if threads > host.threads => {
            note(format_args!(
                "threads: {}, all the CPUs that this process may use, not the profile's {threads}",
                host.threads
            ));
            host.threads
        }
        (None, Some(threads)) => threads,
        (None, None) => host.physical_cores.min(MAX_THREADS),
    }
}

/// The kernels of one role.
#[derive(Clone, Debug, Serialize)]
pub struct RoleKernels {
    /// The packing in memory, or `file` where there is none; of the head the type in the file;
    /// `kv_cache` of attention.
    pub layout: String,
    /// The kernel for one token.
    pub decode: KernelId,
    /// The kernel for many tokens.
    pub prefill: KernelId,
    /// Bytes of the weights as they are read, of all layers.
    pub packed_bytes: usize,
    /// The kernel for one token that skips what meets a zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<KernelId>,
    /// Bytes of the weights that it reads some of, which are packed a second time.
    #[serde(skip_serializing_if = "is_zero")]
    pub sparse_bytes: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(bytes: &usize) -> bool {
    *bytes == 0
}

/// A model in memory.
pub struct Loaded {
    /// The model.
    pub model: Arc<Model>,
    /// By role.
    pub kernels: BTreeMap<&'static str, RoleKernels>,
}

impl Loaded {
    /// Bytes of weights packed in memory; the head is read from the file's own blocks.
    pub fn packed_bytes(&self) -> usize {
        let packed = |kernels: &&RoleKernels| matches!(kernels.decode.op, Op::Ternary(_));
        let bytes = |kernels: &RoleKernels| kernels.packed_bytes + kernels.sparse_bytes;
        self.kernels.values().filter(packed).map(bytes).sum()
    }
}

/// Tokens of a prompt up to which a text begins with the weights in the file. 46 tokens of a 2B-4T shape
/// with an f16 head take 0.3 s there on two cores of Zen 5, 0.15 s packed, and packing takes 0.8 to 3 s, as
/// the system has memory at hand.
const FEW_TOKENS: usize = 64;
/// Bytes of ternary weights in the file for which it pays to begin there: fewer are packed in no time, and
/// more take so long that there should be a line of progress, which cannot be where the text is.
const IN_FILE_BYTES: RangeInclusive<u64> = 16 << 20..=1 << 30;

/// Loads a model, once or twice: as it lies in the file, and packed.
pub struct Loader<'a> {
    gguf: Arc<Gguf>,
    choice: &'a Choice,
    selection: Selection,
    placement: Placement,
    needs: &'a Needs,
    pool: &'a Arc<Pool>,
    /// Whether a line of progress would get between a text on the same terminal.
    silent: bool,
    /// What there is to tell, and how much of it was told.
    lines: Vec<String>,
    told: usize,
}

impl<'a> Loader<'a> {
    /// Tells on stderr which profile was taken. `needs` are the logits that will be asked for.
    ///
    /// # Errors
    /// Those of [`Selection::new`].
    pub fn new(
        gguf: Arc<Gguf>,
        choice: &'a Choice,
        taken: &Taken,
        placement: Placement,
        needs: &'a Needs,
        pool: &'a Arc<Pool>,
    ) -> Result<Self> {
        note(format_args!("profile: {} ({})", taken.name, taken.reason));
        let selection = Selection::new(choice.isa, choice.format, taken.profile.clone())?;
        let (lines, told, silent) = (Vec::new(), 0, false);
        Ok(Self { gguf, choice, selection, placement, needs, pool, silent, lines, told })
    }

    /// Whether what follows so many tokens of a prompt is written sooner with the weights as they lie in
    /// the file, and these can be packed behind the first token. Not if a format was asked for, nor where
    /// memory is scarce, which is to be told before anything is written.
    pub fn begins_in_file(&self, config: &Config, prompt: usize) -> bool {
        let ternary = self.gguf.tensors().iter().filter(|tensor| tensor.ty == TensorType::I2_S);
        prompt <= FEW_TOKENS
            && self.choice.format.is_none()
            && config.runs_mapped()
            && IN_FILE_BYTES.contains(&ternary.map(|tensor| tensor.bytes).sum())
            && memory::available().is_none_or(|free| free >= 2 * self.gguf.file_bytes())
    }

    /// The model as it lies in the file.
    ///
    /// # Errors
    /// Those of [`Model::from_gguf`].
    pub fn in_file(&mut self) -> Result<Loaded> {
        self.silent = std::io::stdout().is_terminal();
        let model = self.load(false, &|_, _| ())?;
        Ok(self.loaded(model))
    }

    /// The model in memory, packed for the kernels chosen, with a progress line on a terminal when that
    /// takes more than a second.
    ///
    /// # Errors
    /// Those of [`Model::from_gguf`] and [`Model::choose_head`].
    pub fn packed(&mut self) -> Result<Loaded> {
        let (mode, count) = match self.needs {
            Needs::All => (HeadMode::Full, 0),
            Needs::Best { count, .. } => (self.choice.lm_head, *count),
        };
        let ceiling = self.choice.ceiling();
        let Placement { pages, lock, .. } = self.placement;
        let options = HeadOptions { mode, count, ceiling, pages, lock };
        let progress = Progress::new();
        let show = |done, of| {
            if !self.silent {
                progress.show(done, of);
            }
        };
        let model = self.load(true, &show)?.choose_head(self.pool, &options)?;
        drop(progress);
        Ok(self.loaded(model))
    }

    fn load(&self, pack: bool, progress: &dyn Fn(usize, usize)) -> Result<Model> {
        Model::from_gguf(
            Arc::clone(&self.gguf),
            &LoadOptions {
                pool: self.pool,
                selection: &self.selection,
                pages: self.placement.pages,
                lock: self.placement.lock && pack,
                copy_head: false,
                pack,
                sparse: self.choice.sparse,
                progress,
            },
        )
    }

    fn loaded(&mut self, model: Model) -> Loaded {
        let warnings = model.warnings().iter().cloned().chain(self.pool.warning());
        let warnings = warnings.map(|line| format!("warning: {line}"));
        for line in self.selection.take_notes().into_iter().chain(warnings) {
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        let head = model.weights().head.tensor().ty.name();
        let kernels = model.kernels().into_iter().map(|kernels| {
            let layout = match (kernels.layout, kernels.role) {
                (Some(layout), _) => layout.name(),
                (None, Role::LmHead) => head,
                (None, Role::Attention) => "kv_cache",
                (None, _) => "file",
            };
            let named = RoleKernels {
                layout: layout.to_owned(),
                decode: kernels.decode,
                prefill: kernels.prefill.unwrap_or(kernels.decode),
                packed_bytes: kernels.bytes,
                sparse: kernels.sparse,
                sparse_bytes: kernels.sparse_bytes,
            };
            (kernels.role.name(), named)
        });
        let kernels = kernels.collect();
        Loaded { model: Arc::new(model), kernels }
    }

    /// Tells on stderr what there is to tell and was not told yet.
    pub fn tell(&mut self) {
        for line in &self.lines[self.told..] {
            note(format_args!("{line}"));
        }
        self.told = self.lines.len();
    }
}

/// What the head did for the tokens of a session.
#[derive(Clone, Debug, Serialize)]
pub struct HeadReport {
    /// The kernel that scans a low-bit copy; none where all of the head is read.
    pub scan: Option<KernelId>,
    /// Share of the tokens for which it was used.
    pub scanned: f64,
    /// Of these the mean share of the rows that were looked at again.
    pub refined: f64,
    /// Of these the mean share of the rows that the full head's kernel computed.
    pub rescored: f64,
    /// Bytes that a token read, on average.
    pub bytes_per_token: f64,
}

impl HeadReport {
    /// Of the tokens between two looks at [`Session::head_stats`](bitnet_runtime::cpu::model::Session::head_stats).
    pub fn between(model: &Model, before: HeadStats, after: HeadStats) -> Self {
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let tokens = after.tokens - before.tokens;
        let scanned = after.scanned - before.scanned;
        let rows = scanned * model.config().vocab as u64;
        Self {
            scan: model.sketch().map(|sketch| *sketch.kernel(1).id()),
            scanned: ratio(scanned, tokens),
            refined: ratio(after.refined - before.refined, rows),
            rescored: ratio(after.rescored - before.rescored, rows),
            bytes_per_token: ratio(after.bytes - before.bytes, tokens),
        }
    }
}

/// Starts a sequence, and warns where a full context would not fit into memory.
///
/// # Errors
/// Those of [`Session::new`].
pub fn session(model: &Arc<Model>, pool: &Arc<Pool>, options: SessionOptions) -> Result<Session> {
    let free = memory::available();
    let session = Session::new(Arc::clone(model), Arc::clone(pool), options)?;
    if options.kv_type == Some(KvType::Q8_0) {
        note(format_args!(
            "note: the KV cache is q8_0, which changes numbers, and so may change the text"
        ));
    }
    let full = session.kv_reserved_bytes() as u64;
    if let Some(free) = free.filter(|&free| free < full) {
        note(format_args!(
            "warning: the KV cache of all {} positions takes {}, but only {} of memory are available; ask for a smaller context (-c)",
            session.context(),
            human(full),
            human(free)
        ));
    }
    Ok(session)
}

/// A line that appears, on a terminal, when packing has taken a second.
struct Progress {
    start: Instant,
    bar: OnceCell<ProgressBar>,
}

impl Progress {
    const PATIENCE: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self { start: Instant::now(), bar: OnceCell::new() }
    }

    fn show(&self, done: usize, of: usize) {
        if self.start.elapsed() < Self::PATIENCE {
            return;
        }
        let bar = self.bar.get_or_init(|| {
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

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
