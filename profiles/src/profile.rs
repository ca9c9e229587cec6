//! The tuning profile: which kernels serve which role of which model on which host. Its schema is
//! documented field by field below; it holds names and bounded numbers only, so a wrong profile may
//! make inference slow, never wrong.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Isa, KernelId, Layout, Op, Shape};

/// A job of the forward pass that one kernel choice serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Query, key and value projections, as one job.
    Qkv,
    /// The projection after attention.
    AttnOutput,
    /// The gate projection, where it is a job of its own.
    Gate,
    /// The up projection, where it is a job of its own.
    Up,
    /// Gate and up as one job.
    GateUp,
    /// The down projection.
    Down,
    /// The output head.
    LmHead,
    /// Attention over the KV cache.
    Attention,
}

named!(Role, "role", {
    Qkv => "qkv",
    AttnOutput => "attn_output",
    Gate => "gate",
    Up => "up",
    GateUp => "gate_up",
    Down => "down",
    LmHead => "lm_head",
    Attention => "attention",
});

/// What the tuner weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Decode only.
    Decode,
    /// Prefill only.
    Prefill,
    /// Both.
    Balanced,
}

named!(Objective, "objective", {
    Decode => "decode",
    Prefill => "prefill",
    Balanced => "balanced",
});

/// How hard the tuner tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// No timing, from the machine model.
    Estimate,
    /// Timed, within about a minute.
    Measure,
    /// Timed until the noise is small.
    Patient,
}

named!(Effort, "effort", {
    Estimate => "estimate",
    Measure => "measure",
    Patient => "patient",
});

/// Where the figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// Timed on the host named.
    Measured,
    /// Derived from instruction throughputs and bandwidth.
    Modelled,
}

named!(Provenance, "provenance", { Measured => "measured", Modelled => "modelled" });

/// How a role walks its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every weight is read.
    #[default]
    Dense,
    /// Rows whose gate is closed are skipped.
    SkipRows,
    /// Columns whose input is zero are skipped.
    Axpy,
}

named!(Mode, "mode", { Dense => "dense", SkipRows => "skip_rows", Axpy => "axpy" });

/// How worker threads are bound to CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pinning {
    /// Left to the system.
    #[default]
    None,
    /// One CPU each.
    Cores,
}

named!(Pinning, "pinning", { None => "none", Cores => "cores" });

/// A tuning profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of this schema: [`Profile::SCHEMA`].
    pub schema: u32,
    /// What wrote the profile, and how.
    pub tool: Tool,
    /// Where it was measured.
    pub host: Host,
    /// The model it was tuned for.
    pub model: Model,
    /// How to run.
    pub run: Run,
    /// The choices, one for each role and set of shapes.
    #[serde(default, rename = "op")]
    pub ops: Vec<Choice>,
}

/// What wrote a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Version of the tuner.
    pub version: String,
    /// The generator's fingerprint: 16 hexadecimal digits. Shipped profiles carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What was weighed.
    pub objective: Objective,
    /// How hard it tried.
    pub effort: Effort,
    /// Day of the run, `YYYY-MM-DD`.
    pub date: String,
    /// SHA-256 of the library of host-made kernels, where some were kept: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library_sha256: Option<String>,
    /// Whether figures were timed.
    pub provenance: Provenance,
}

/// The host of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The CPU's name.
    pub cpu: String,
    /// Vendor as the CPU says it.
    pub vendor: String,
    /// Family, model and stepping number.
    pub family: u32,
    /// Model number.
    pub model: u32,
    /// Stepping number.
    pub stepping: u32,
    /// Tiers the CPU runs.
    pub isa: Vec<Isa>,
    /// Physical cores.
    pub physical_cores: u32,
    /// Hardware threads.
    pub threads: u32,
    /// Bytes of L2 cache of a core; 0 where unknown.
    pub l2: u64,
    /// Bytes of L3 cache; 0 where unknown.
    pub l3: u64,
    /// Read bandwidth of the tuned threads in 10^9 bytes per second.
    pub read_gb_per_s: f64,
    /// Median absolute deviation of the sentinel over its median.
    pub noise: f64,
}

/// The model of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name from the model's metadata.
    pub name: String,
    /// Architecture from the model's metadata.
    pub architecture: String,
    /// Hash of the roles and shapes, see [`shapes_hash`].
    pub shapes: String,
    /// Where the model was: a hint. Only ever opened as a GGUF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// How to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Threads, 1 to 1024.
    pub threads: u32,
    /// How they are bound.
    #[serde(default)]
    pub pinning: Pinning,
    /// Whether weights ask for huge pages.
    pub huge_pages: bool,
}

/// The choice for one role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The role.
    pub role: Role,
    /// Rows and columns of the matrices in the job.
    pub parts: Vec<Shape>,
    /// Times per token that the job runs.
    pub count: u32,
    /// The packing, for ternary roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// How the matrices are walked.
    #[serde(default)]
    pub mode: Mode,
    /// The kernel for one token.
    pub decode: Pick,
    /// The kernel for many tokens; absent for the head and attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<Pick>,
}

/// A kernel that was chosen, with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pick {
    /// The kernel.
    pub kernel: KernelId,
    /// Activation rows that were timed.
    #[serde(default = "one")]
    pub tokens: u32,
    /// Median time of the job in microseconds.
    pub median_us: f64,
    /// Median absolute deviation of that time.
    pub mad_us: f64,
    /// Packed bytes of the job over the median time, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// Share of the limit (bandwidth or multiply-adds) that was reached, 0 to 1.
    pub share_of_limit: f64,
    /// The second best, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<KernelId>,
    /// Time of the second best over that of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_up_ratio: Option<f64>,
    /// The built-in kernel to use where `kernel` is not present.
    pub built_in: KernelId,
}

fn one() -> u32 {
    1
}

/// Why a profile is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is no profile.
    #[error("{item}: {problem}")]
    Content {
        /// The field, or the place in the text.
        item: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
}

impl ProfileError {
    fn content(item: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Content { item: item.into(), problem: problem.into() }
    }
}

impl Profile {
    /// The schema this version reads and writes.
    pub const SCHEMA: u32 = 1;
    /// Largest profile that is read, in bytes.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// Reads a profile and checks every field.
    ///
    /// # Errors
    /// [`ProfileError::Content`] names the first field that is wrong, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let grammar = |e: toml::de::Error| {
            let line = e.span().map_or(0, |s| text[..s.start.min(text.len())].lines().count());
            ProfileError::content(format!("line {}", line.max(1)), e.message())
        };
        // The version comes first: a later schema may have fields this one does not know.
        let Schema { schema } = toml::from_str(text).map_err(grammar)?;
        if schema != Self::SCHEMA {
            return Err(ProfileError::content(
                "schema",
                format!("{schema}, but this version reads {}", Self::SCHEMA),
            ));
        }
        let profile: Self = toml::from_str(text).map_err(grammar)?;
        profile.validate()?;
        Ok(profile)
    }

    /// Reads a profile from a file.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when it cannot be read, else as [`Profile::parse`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let io =
            |action| move |source| ProfileError::Io { path: path.to_path_buf(), action, source };
        let meta = std::fs::metadata(path).map_err(io("open"))?;
        if !meta.is_file() {
            return Err(ProfileError::content("file", "not a regular file"));
        }
        if meta.len() > Self::MAX_BYTES {
            let problem =
                format!("{} bytes, but a profile has at most {}", meta.len(), Self::MAX_BYTES);
            return Err(ProfileError::content("file", problem));
        }
        let bytes = std::fs::read(path).map_err(io("read"))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            ProfileError::content(format!("byte {}", e.utf8_error().valid_up_to()), "not UTF-8")
        })?;
        Self::parse(&text)
    }

    /// The profile as text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Writes the profile whole to a temporary file beside `path` and renames it, so that `path`
    /// holds either the old profile or the new one.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when the system refuses; the temporary file is removed.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        let io =
            |action| move |source| ProfileError::Io { path: path.to_path_buf(), action, source };
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let write = || {
            let mut file = std::fs::File::create_new(&temporary)?;
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            io("write")(error)
        })
    }

    /// The choice for a role: the one made for these shapes.
    pub fn choice(&self, role: Role, parts: &[Shape]) -> Option<&Choice> {
        self.ops.iter().find(|choice| choice.role == role && choice.parts == parts)
    }

    /// The highest tier that any choice needs.
    pub fn isa(&self) -> Isa {
        let picks = self.ops.iter().flat_map(Choice::picks);
        picks.map(|(_, pick)| pick.kernel.isa.max(pick.built_in.isa)).max().unwrap_or(Isa::Scalar)
    }

    fn validate(&self) -> Result<(), ProfileError> {
        let Self { tool, host, model, run, ops, .. } = self;
        for (item, text) in [
            ("tool.version", &tool.version),
            ("tool.date", &tool.date),
            ("host.cpu", &host.cpu),
            ("host.vendor", &host.vendor),
            ("model.name", &model.name),
            ("model.architecture", &model.architecture),
        ] {
            if text.len() > 256 || text.chars().any(char::is_control) {
                let problem = "longer than 256 bytes or with control characters";
                return Err(ProfileError::content(item, problem));
            }
        }
        let hex = |item: &str, text: &str, len: usize| {
            if text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                Ok(())
            } else {
                Err(ProfileError::content(item, format!("not {len} hexadecimal digits")))
            }
        };
        if let Some(fingerprint) = &tool.fingerprint {
            hex("tool.fingerprint", fingerprint, 16)?;
        }
        if let Some(sha256) = &tool.library_sha256 {
            hex("tool.library_sha256", sha256, 64)?;
        }
        hex("model.shapes", &model.shapes, 16)?;
        bounded("host.read_gb_per_s", host.read_gb_per_s, 1e6)?;
        bounded("host.noise", host.noise, 1e3)?;
        if !(1..=1024).contains(&run.threads) {
            let problem = format!("{}, but 1 to 1024 are allowed", run.threads);
            return Err(ProfileError::content("run.threads", problem));
        }
        for (i, choice) in ops.iter().enumerate() {
            choice.validate(&format!("op {} ({})", i + 1, choice.role))?;
            if ops[..i].iter().any(|o| o.role == choice.role && o.parts == choice.parts) {
                let item = format!("op {} ({})", i + 1, choice.role);
                return Err(ProfileError::content(item, "this role and these parts stand twice"));
            }
        }
        Ok(())
    }
}

/// A figure that is finite, not negative and at most `most`.
fn bounded(item: &str, value: f64, most: f64) -> Result<(), ProfileError> {
    if (0.0..=most).contains(&value) {
        Ok(())
    } else {
        Err(ProfileError::content(item, format!("{value}, but 0 to {most} is allowed")))
    }
}

impl Choice {
    /// The picks, with the names of their fields.
    fn picks(&self) -> impl Iterator<Item = (&'static str, &Pick)> {
        [("decode", Some(&self.decode)), ("prefill", self.prefill.as_ref())]
            .into_iter()
            .filter_map(|(name, pick)| Some((name, pick?)))
    }

    fn validate(&self, item: &str) -> Result<(), ProfileError> {
        let wrong = |problem: String| Err(ProfileError::content(item, problem));
        if self.parts.is_empty() || self.parts.len() > 8 {
            return wrong(format!("{} parts, but 1 to 8 are allowed", self.parts.len()));
        }
        for part in &self.parts {
            if !(1..=Shape::MAX_ROWS).contains(&part.rows)
                || !(1..=Shape::MAX_COLS).contains(&part.cols)
            {
                return wrong(format!(
                    "a part of {part}, but 1 to {} rows and 1 to {} columns are allowed",
                    Shape::MAX_ROWS,
                    Shape::MAX_COLS
                ));
            }
        }
        if !(1..=1 << 16).contains(&self.count) {
            return wrong(format!("count {}, but 1 to 65536 is allowed", self.count));
        }
        let ternary = !matches!(self.role, Role::LmHead | Role::Attention);
        if ternary != self.layout.is_some() || ternary != self.prefill.is_some() {
            return wrong(format!(
                "a {} role takes {} layout and {} prefill kernel",
                if ternary { "ternary" } else { "head or attention" },
                if ternary { "a" } else { "no" },
                if ternary { "a" } else { "no" },
            ));
        }
        for (name, pick) in self.picks() {
            let item = format!("{item}.{name}");
            for id in [Some(pick.kernel), pick.runner_up, Some(pick.built_in)].into_iter().flatten()
            {
                let fits = match (self.role, id.op) {
                    (Role::LmHead, Op::Head(_)) | (Role::Attention, Op::Attention) => true,
                    (_, Op::Ternary(_)) => ternary,
                    _ => false,
                };
                if !fits {
                    let problem = format!("{id} does not serve the role {}", self.role);
                    return Err(ProfileError::content(item, problem));
                }
            }
            for id in [pick.kernel, pick.built_in] {
                if let (Op::Ternary(layout), Some(own)) = (id.op, self.layout)
                    && layout != own
                {
                    let problem = format!("{id} reads {layout}, but the layout is {own}");
                    return Err(ProfileError::content(item, problem));
                }
                if name == "decode" && id.tile.tokens != 1 {
                    let problem = format!("{id} takes {} tokens, not 1", id.tile.tokens);
                    return Err(ProfileError::content(item, problem));
                }
                if let Some(shape) = id.shape
                    && self.parts.iter().any(|part| part.cols != shape.cols)
                {
                    let problem = format!("{id} is made for other shapes than the parts");
                    return Err(ProfileError::content(item, problem));
                }
            }
            if pick.built_in.shape.is_some() {
                let problem =
                    format!("{} is no built-in kernel: those take any shape", pick.built_in);
                return Err(ProfileError::content(item, problem));
            }
            if !(1..=4096).contains(&pick.tokens) {
                let problem = format!("{} tokens, but 1 to 4096 are allowed", pick.tokens);
                return Err(ProfileError::content(item, problem));
            }
            for (field, value, most) in [
                ("median_us", pick.median_us, 1e12),
                ("mad_us", pick.mad_us, 1e12),
                ("gb_per_s", pick.gb_per_s, 1e6),
                ("share_of_limit", pick.share_of_limit, 100.0),
                ("runner_up_ratio", pick.runner_up_ratio.unwrap_or(1.0), 1e6),
            ] {
                bounded(&format!("{item}.{field}"), value, most)?;
            }
        }
        Ok(())
    }
}

/// Names the jobs of a model: a hash over every role with its parts and count, in order, as 16
/// hexadecimal digits. Two models with the same hash want the same kernels.
pub fn shapes_hash<'a>(jobs: impl IntoIterator<Item = (Role, &'a [Shape], u32)>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (role, parts, count) in jobs {
        add(role.name().as_bytes());
        add(&count.to_le_bytes());
        for part in parts {
            add(&(part.rows as u64).to_le_bytes());
            add(&(part.cols as u64).to_le_bytes());
        }
    }
    format!("{hash:016x}")
}
