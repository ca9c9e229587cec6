//! From the flags to a model that is ready to run: which profile, which kernels, which threads.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_profiles::{Format, Isa, Profile, ProfileError, registry};
use serde::Serialize;

use super::note;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::host::Host;
use crate::model::config::Config;
use crate::model::{KvType, Model, SessionOptions};
use crate::threads::{MAX_THREADS, Pool};

/// The heading of these flags in the help.
pub const PERFORMANCE: &str = "Performance";

/// The flags that choose kernels.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelArgs {
    /// A tuning profile; auto: the one found for this CPU and model, else the defaults;
    /// none: the defaults
    #[arg(long, value_name = "FILE|auto|none", default_value = "auto")]
    profile: PathBuf,
    /// Pack all ternary weights as i2_s, tl1 or tl2, whatever the profile says
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Use no better instructions than scalar, avx2, avx512, avx512vnni or avx512vbmi, whatever
    /// the profile says
    #[arg(long, value_name = "ISA")]
    isa: Option<Isa>,
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
    /// Keys in the KV cache: f16 or f32 [default: f16, f32 for small models]
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
}

impl SessionArgs {
    /// The options of a session with a context of so many positions.
    ///
    /// # Errors
    /// [`Error::Usage`] when keys and values are asked for in different types.
    pub fn options(&self, context: Option<usize>) -> Result<SessionOptions> {
        let kv_type = match (self.cache_type_k, self.cache_type_v) {
            (Some(k), Some(v)) if k != v => {
                let found = format!("{v:?}").to_lowercase();
                return Err(Error::usage("--cache-type-v", found, "the type of --cache-type-k"));
            }
            (k, v) => k.or(v).map(|ty| match ty {
                CacheType::F16 => KvType::F16,
                CacheType::F32 => KvType::F32,
            }),
        };
        Ok(SessionOptions { context, batch: self.batch.min(self.ubatch) as usize, kv_type })
    }
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
    ceiling: Isa,
}

impl KernelArgs {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Cpu`] when the CPU lacks the ISA, [`Error::Profile`] when the named profile is
    /// refused, [`Error::Io`] when it cannot be read.
    pub fn check(&self) -> Result<Choice> {
        let best = Isa::best();
        if let Some(isa) = self.isa.filter(|isa| !isa.is_supported()) {
            return Err(Error::Cpu {
                item: format!("--isa {isa}"),
                found: format!("a CPU that runs up to {best}"),
                expected: format!("{best} or below"),
            });
        }
        let auto = self.profile.as_os_str() == OsStr::new("auto");
        let named = if auto || self.profile.as_os_str() == OsStr::new("none") {
            None
        } else {
            let profile = load(&self.profile).map_err(|e| refused(&self.profile, e))?;
            Some((self.profile.clone(), profile))
        };
        Ok(Choice {
            named,
            ask_user_folder: auto,
            format: self.format,
            ceiling: self.isa.unwrap_or(best),
        })
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
        self.ceiling
    }

    /// The profile for a model: the named one, the user's, or the defaults.
    pub fn profile(&self, config: &Config, host: &Host) -> Taken {
        let shapes = config.shapes_hash();
        if let Some((path, profile)) = &self.named {
            let mut reason = String::from("asked for");
            if profile.model.shapes != shapes {
                reason += "; made for other shapes";
            }
            let (own, of) = (&profile.host, (&host.vendor, host.family, host.model));
            if (&own.vendor, own.family, own.model) != of {
                reason += &format!("; made on {}", own.cpu);
            }
            return Taken {
                source: Source::File,
                name: path.display().to_string(),
                reason,
                profile: Some(profile.clone()),
            };
        }
        let found = self.ask_user_folder.then(|| users(&shapes, host)).flatten();
        if let Some((path, profile)) = found {
            return Taken {
                source: Source::User,
                name: path.display().to_string(),
                reason: "tuned on this CPU for these shapes".into(),
                profile: Some(profile),
            };
        }
        let reason = if self.ask_user_folder {
            "nothing tuned for these shapes on this CPU; bitnet-tune --model makes a profile"
        } else {
            "--profile none"
        };
        Taken {
            source: Source::Shipped,
            name: format!(
                "generic for {}",
                registry::generic(self.format, self.ceiling).decode.isa
            ),
            reason: reason.into(),
            profile: None,
        }
    }
}

/// Reads a profile; one that needs more than this CPU has is refused whole.
fn load(path: &Path) -> std::result::Result<Profile, ProfileError> {
    let profile = Profile::load(path)?;
    let (needed, best) = (profile.isa(), Isa::best());
    if needed > best {
        return Err(ProfileError::Content {
            item: "op".into(),
            problem: format!("kernels of {needed}, but this CPU runs up to {best}"),
        });
    }
    Ok(profile)
}

fn refused(path: &Path, error: ProfileError) -> Error {
    match error {
        ProfileError::Io { path, action, source } => Error::Io { path, action, source },
        ProfileError::Content { item, problem } => Error::Profile {
            path: path.to_path_buf(),
            item,
            found: problem,
            expected: "a profile as `bitnet-tune --model MODEL -o FILE` writes it".into(),
        },
    }
}

/// The user's own profile for these shapes and this CPU. One that is refused is set aside.
fn users(shapes: &str, host: &Host) -> Option<(PathBuf, Profile)> {
    let folder = registry::user_folder(|name| std::env::var_os(name))?;
    let name = registry::user_file_name(shapes, &host.vendor, host.family, host.model);
    let path = folder.join(name);
    if !path.exists() {
        return None;
    }
    let problem = match load(&path) {
        Ok(profile) if profile.model.shapes == shapes => return Some((path, profile)),
        Ok(_) => format!("{}: its content is for other shapes", path.display()),
        Err(error) => refused(&path, error).to_string(),
    };
    note(format_args!("warning: {problem}; the profile is set aside"));
    None
}

/// The number of threads: the flag's, the profile's as far as this process may use so many, or
/// one for each physical core.
pub fn thread_count(flag: Option<u64>, profile: &Taken, host: &Host) -> usize {
    match (flag, profile.threads()) {
        (Some(threads), _) => threads as usize,
        (None, Some(threads)) => threads.min(host.threads),
        (None, None) => host.physical_cores.min(MAX_THREADS),
    }
}

/// The kernels of one role.
#[derive(Clone, Debug, Serialize)]
pub struct RoleKernels {
    /// What the job is for.
    #[serde(skip)]
    pub role: &'static str,
    /// The packing in memory, or the type in the file.
    pub layout: String,
    /// The kernel for one token.
    pub decode: String,
    /// The kernel for many tokens.
    pub prefill: String,
    /// Bytes of the weights as they are read, of all layers.
    pub packed_bytes: u64,
}

/// A model in memory.
pub struct Loaded {
    /// The model.
    pub model: Arc<Model>,
    /// Role by role, in the order of the forward pass.
    pub kernels: Vec<RoleKernels>,
}

/// Loads the weights for the kernels chosen, with a progress line on a terminal when that takes
/// more than a second, and tells what there is to tell on stderr.
///
/// # Errors
/// Those of [`Model::from_gguf`].
pub fn model(gguf: Gguf, choice: &Choice, taken: &Taken, pool: &Arc<Pool>) -> Result<Loaded> {
    let model = Model::from_gguf(gguf)?;
    for warning in model.warnings().iter().cloned().chain(pool.warning()) {
        note(format_args!("warning: {warning}"));
    }
    note(format_args!("profile: {} ({})", taken.name, taken.reason));
    let _ = choice;
    Ok(Loaded { model: Arc::new(model), kernels: Vec::new() })
}
