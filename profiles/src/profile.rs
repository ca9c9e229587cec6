//! The tuning profile: which kernels serve which role of which model on which host. Its schema is
//! documented field by field below; it holds names and bounded numbers only, so a wrong profile may
//! make inference slow, never wrong.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Format, Isa, KernelId, Layout, Op, Shape, file, printable, stable_hash};

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

impl std::fmt::Display for Run {
    /// In words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.threads == 1 { "" } else { "s" };
        let pinning = match self.pinning {
            Pinning::None => "not pinned",
            Pinning::Cores => "pinned to a CPU each",
        };
        let pages = if self.huge_pages { "huge pages" } else { "small pages" };
        write!(f, "{} thread{plural}, {pinning}, {pages}", self.threads)
    }
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
    /// The kernel that skips what meets a zero, beside those that read all: of `gate_up` in rows of
    /// up, of `down` in columns. Without it the runtime's default serves, where the model has such
    /// zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Sparse>,
}

/// A kernel that skips what meets a zero, and when it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparse {
    /// The kernel.
    pub kernel: KernelId,
    /// The built-in kernel to use where `kernel` is not present.
    pub built_in: KernelId,
    /// The share of lines needed, 0 to 1, above which all are read as fast: the matrix is then read
    /// whole. 0: always, and it is not packed by lines at all.
    pub below: f64,
    /// Time of the job with a quarter of the lines needed over that of reading all, where that was
    /// timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_at_quarter: Option<f64>,
}

impl Sparse {
    /// Whether the kernel may serve on tiers up to `ceiling`, and where the user asks for a `format`:
    /// lines are packed as T5 only where T5 is asked for, or nothing.
    pub fn serves(&self, format: Option<Format>, ceiling: Isa) -> bool {
        let dense = format.is_none_or(|format| format == Format::T5);
        let layout = match self.kernel.op {
            Op::Rows(layout) | Op::Columns(layout) => Some(layout),
            _ => None,
        };
        self.kernel.isa.is_within(ceiling)
            && layout.is_some_and(|layout| dense || layout.format() != Format::T5)
    }
}

impl std::fmt::Display for Sparse {
    /// When it is used, and what it gains.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.below > 0.0 {
            write!(f, "below {:.0} % needed", 100.0 * self.below)?;
        } else {
            f.write_str("never")?;
        }
        match self.ratio_at_quarter {
            Some(ratio) if ratio > 0.0 => write!(f, "; {:.2}x as fast at 25 %", 1.0 / ratio),
            _ => Ok(()),
        }
    }
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
        // A message may quote the file, and ends in a terminal.
        Self::Content {
            item: printable(&item.into()).into_owned(),
            problem: printable(&problem.into()).into_owned(),
        }
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
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ProfileError::content(format!("line {line}"), shown(e.message()))
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
        Self::from_bytes(bytes)
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<Self, ProfileError> {
        let text = String::from_utf8(bytes).map_err(|e| {
            ProfileError::content(format!("byte {}", e.utf8_error().valid_up_to()), "not UTF-8")
        })?;
        Self::parse(&text)
    }

    /// The profile as text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Writes the profile whole, as [`crate::file::replace`] does: `path` holds either the old
    /// profile or the new one.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when the system refuses.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        file::replace(path, self.to_text().as_bytes()).map_err(|source| ProfileError::Io {
            path: path.to_path_buf(),
            action: "write",
            source,
        })
    }

    /// Replaces every kernel by the built-in one named beside it, with the same figures.
    pub fn use_built_in(&mut self) {
        for op in &mut self.ops {
            for pick in [Some(&mut op.decode), op.prefill.as_mut()].into_iter().flatten() {
                pick.kernel = pick.built_in;
            }
            if let Some(sparse) = &mut op.sparse {
                sparse.kernel = sparse.built_in;
            }
        }
        self.tool.library_sha256 = None;
    }

    /// The choice for a role: the one made for these shapes.
    pub fn choice(&self, role: Role, parts: &[Shape]) -> Option<&Choice> {
        self.ops.iter().find(|choice| choice.role == role && choice.parts == parts)
    }

    /// Whether the CPU, as `runs` says, has what every kernel named needs, fallbacks included.
    ///
    /// # Errors
    /// [`ProfileError::Content`] names the first that it lacks.
    pub fn check_isa(&self, runs: impl Fn(Isa) -> bool) -> Result<(), ProfileError> {
        for (i, choice) in self.ops.iter().enumerate() {
            for (name, kernel, built_in) in choice.kernels() {
                if let Some(id) = [kernel, built_in].into_iter().find(|id| !runs(id.isa)) {
                    let item = format!("op {} ({}).{name}", i + 1, choice.role);
                    let problem = format!("{id} needs {}, which this CPU lacks", id.isa);
                    return Err(ProfileError::content(item, problem));
                }
            }
        }
        Ok(())
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
        if let Some(path) = &model.path {
            let path = path.to_string_lossy();
            if path.len() > 4096 || path.chars().any(char::is_control) {
                let problem = "longer than 4096 bytes or with control characters";
                return Err(ProfileError::content("model.path", problem));
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

/// A message that may quote the file: on one line, no way to drive a terminal, cut short.
fn shown(message: &str) -> String {
    let mut out = String::new();
    for c in message.chars().take(400) {
        if matches!(c, '\'' | '"' | '\\') {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

/// A figure that is finite, not negative and at most `most`.
fn bounded(item: &str, value: f64, most: f64) -> Result<(), ProfileError> {
    if (0.0..=most).contains(&value) {
        Ok(())
    } else {
        Err(ProfileError::content(item, format!("{value:?}, but 0 to {most} is allowed")))
    }
}

impl Choice {
    /// The picks, with the names of their fields.
    pub fn picks(&self) -> impl Iterator<Item = (&'static str, &Pick)> {
        [("decode", Some(&self.decode)), ("prefill", self.prefill.as_ref())]
            .into_iter()
            .filter_map(|(name, pick)| Some((name, pick?)))
    }

    /// All kernels, each with the built-in one beside it and the name of its field.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, KernelId, KernelId)> {
        let dense = self.picks().map(|(name, pick)| (name, pick.kernel, pick.built_in));
        dense.chain(self.sparse.iter().map(|s| ("sparse", s.kernel, s.built_in)))
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
        if let Some(sparse) = &self.sparse {
            self.validate_sparse(sparse, &format!("{item}.sparse"))?;
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

impl Choice {
    fn validate_sparse(&self, sparse: &Sparse, item: &str) -> Result<(), ProfileError> {
        let wrong = |problem: String| Err(ProfileError::content(item, problem));
        for id in [sparse.kernel, sparse.built_in] {
            match (self.role, id.op, self.mode) {
                (Role::GateUp, Op::Rows(_), Mode::SkipRows)
                | (Role::Down, Op::Columns(_), Mode::Axpy) => {}
                (role, _, mode) => {
                    return wrong(format!(
                        "{id} in mode {mode} of {role}, but gate_up takes a rows kernel in mode \
                         skip_rows, down a columns kernel in mode axpy, and no other role any"
                    ));
                }
            }
            if let Some(shape) = id.shape
                && self.parts.iter().any(|part| part.cols != shape.cols)
            {
                return wrong(format!("{id} is made for other shapes than the parts"));
            }
        }
        let layout = |id: &KernelId| match id.op {
            Op::Rows(layout) | Op::Columns(layout) => Some(layout),
            _ => None,
        };
        if layout(&sparse.kernel) != layout(&sparse.built_in) {
            return wrong(format!("{} reads another packing", sparse.built_in));
        }
        if sparse.built_in.shape.is_some() {
            let built_in = sparse.built_in;
            return wrong(format!("{built_in} is no built-in kernel: those take any shape"));
        }
        bounded(&format!("{item}.below"), sparse.below, 1.0)?;
        let ratio = sparse.ratio_at_quarter.unwrap_or(1.0);
        bounded(&format!("{item}.ratio_at_quarter"), ratio, 1e6)
    }
}

/// Names the jobs of a model: a hash over every role with its parts and count, in order, as 16
/// hexadecimal digits. Two models with the same hash want the same kernels.
pub fn shapes_hash<'a>(jobs: impl IntoIterator<Item = (Role, &'a [Shape], u32)>) -> String {
    let mut bytes = Vec::new();
    for (role, parts, count) in jobs {
        bytes.extend(role.name().bytes());
        bytes.extend(count.to_le_bytes());
        for part in parts {
            bytes.extend((part.rows as u64).to_le_bytes());
            bytes.extend((part.cols as u64).to_le_bytes());
        }
    }
    stable_hash(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(kernel: &str, built_in: &str) -> Pick {
        Pick {
            kernel: kernel.parse().unwrap(),
            tokens: 1,
            median_us: 101.5,
            mad_us: 1.25,
            gb_per_s: 43.5,
            share_of_limit: 0.875,
            runner_up: None,
            runner_up_ratio: None,
            built_in: built_in.parse().unwrap(),
        }
    }

    /// A profile with every field in use: two thirds of the rows of up or fewer are read one by one.
    fn profile() -> Profile {
        let gate_up = Choice {
            role: Role::GateUp,
            parts: vec![Shape::new(6912, 2560); 2],
            count: 30,
            layout: Some(Layout::I2sT16),
            mode: Mode::SkipRows,
            decode: Pick {
                runner_up: Some("tl1_t32__avx2__any__r32_c240_n1_u2_p0".parse().unwrap()),
                runner_up_ratio: Some(1.0625),
                ..pick(
                    "i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u4_p0",
                    "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0",
                )
            },
            prefill: Some(Pick {
                tokens: 128,
                ..pick(
                    "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0",
                    "i2_s_t16__avx2__any__r16_c256_n4_u1_p0",
                )
            }),
            sparse: Some(Sparse {
                kernel: "rows_i2_s_l64__avx512vnni__m6912_k2560__r4_c0_n1_u1_p12".parse().unwrap(),
                built_in: "rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p8".parse().unwrap(),
                below: 0.625,
                ratio_at_quarter: Some(0.75),
            }),
        };
        let head =
            pick("head_q6_k__avx2__any__r1_c0_n1_u1_p0", "head_q6_k__scalar__any__r1_c0_n1_u1_p0");
        let lm_head = Choice {
            role: Role::LmHead,
            parts: vec![Shape::new(128_256, 2560)],
            count: 1,
            layout: None,
            mode: Mode::Dense,
            decode: head,
            prefill: None,
            sparse: None,
        };
        Profile {
            schema: Profile::SCHEMA,
            tool: Tool {
                version: "0.1.0".into(),
                fingerprint: Some("0123456789abcdef".into()),
                objective: Objective::Balanced,
                effort: Effort::Measure,
                date: "2026-11-20".into(),
                library_sha256: Some("ab".repeat(32)),
                provenance: Provenance::Measured,
            },
            host: Host {
                cpu: "A CPU \"of\" \\ some é kind".into(),
                vendor: "GenuineVendor".into(),
                family: 25,
                model: 97,
                stepping: 2,
                isa: vec![Isa::Scalar, Isa::Avx2],
                physical_cores: 2,
                threads: 4,
                l2: 1 << 20,
                l3: 32 << 20,
                read_gb_per_s: 51.5,
                noise: 0.015625,
            },
            model: Model {
                name: "2B-4T".into(),
                architecture: "bitnet-b1.58".into(),
                shapes: "fedcba9876543210".into(),
                path: Some("models/m.gguf".into()),
            },
            run: Run { threads: 2, pinning: Pinning::Cores, huge_pages: true },
            ops: vec![gate_up, lm_head],
        }
    }

    /// The item and the problem of the error that `text` must give.
    fn refused(text: &str) -> (String, String) {
        match Profile::parse(text) {
            Err(ProfileError::Content { item, problem }) => (item, problem),
            other => panic!("{other:?} from:\n{text}"),
        }
    }

    #[test]
    fn round_trips() {
        let full = profile();
        assert_eq!(Profile::parse(&full.to_text()).unwrap(), full);
        let mut least = profile();
        least.tool.fingerprint = None;
        least.tool.library_sha256 = None;
        least.model.path = None;
        least.ops.clear();
        assert_eq!(Profile::parse(&least.to_text()).unwrap(), least);
        let parts = [Shape::new(6912, 2560); 2];
        assert_eq!(full.choice(Role::GateUp, &parts), Some(&full.ops[0]));
        assert_eq!(full.choice(Role::GateUp, &parts[..1]), None);
        assert_eq!(full.choice(Role::Qkv, &parts), None);
    }

    #[test]
    fn lines_serve_where_they_may_and_say_when() {
        let sparse = profile().ops[0].sparse.clone().unwrap();
        assert_eq!(sparse.to_string(), "below 62 % needed; 1.33x as fast at 25 %");
        let kernel = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p16".parse().unwrap();
        let t5 = Sparse { kernel, built_in: kernel, below: 0.0, ratio_at_quarter: None };
        assert_eq!(t5.to_string(), "never");
        for (format, ceiling, expected) in [
            (None, Isa::Avx512Vbmi, [true, true]),
            (None, Isa::Avx512Vnni, [true, false]),
            (None, Isa::Avx2, [false, false]),
            (Some(Format::T5), Isa::Avx512Vbmi, [true, true]),
            (Some(Format::I2S), Isa::Avx512Vbmi, [true, false]),
        ] {
            let found = [&sparse, &t5].map(|own| own.serves(format, ceiling));
            assert_eq!(found, expected, "{format:?} {ceiling}");
        }
    }

    /// One edit of a good profile each: what is replaced, by what, the item named, and a part of
    /// what is said about it. The ids P01 to P21 are those of the project's list of hostile inputs;
    /// those that take a file, a CPU or a model are in `runtime/tests/hostile_profiles.rs`.
    #[test]
    fn wrong_fields_are_refused_by_name() {
        let deep = "[".repeat(100_000);
        let long = format!("version = \"{}\"", "9".repeat(300));
        let name = format!("kernel = \"{}\"", "i".repeat(1 << 20));
        let kernel = "kernel = \"i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u4_p0\"";
        let tile = |tile: &str| format!("kernel = \"i2_s_t16__avx2__any__{tile}\"");
        let tiles = [
            tile("r0_c256_n1_u1_p0"),
            tile("r-1_c256_n1_u1_p0"),
            tile("r1000000000_c256_n1_u1_p0"),
            tile("r16.0_c256_n1_u1_p0"),
            tile("rnan_c256_n1_u1_p0"),
        ];
        let id = |text: &str| format!("kernel = \"{text}\"");
        let ids = [
            id(""),
            id("fn"),
            id("std::process::exit(0)"),
            id("i2_s_t16__avx2__any__r16_c256_n1_u2_p0; exit"),
            id("i2_s_t16__avx2__any__r16_c256_n1_u2_p0\\n"),
            id("../../i2_s_t16__avx2__any__r16_c256_n1_u2_p0"),
            id("\u{456}2_s_t16__avx2__any__r16_c256_n1_u2_p0"),
            "kernel = 7".into(),
            name,
        ];
        let runner_up = "runner_up = \"tl1_t32__avx2__any__r32_c240_n1_u2_p0\"";
        let built_in = "built_in = \"i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0\"";
        let tl1 = "kernel = \"tl1_t32__avx2__any__r32_c240_n1_u2_p0\"";
        let attention = "kernel = \"attention_f16__avx2__any__r1_c256_n1_u1_p0\"";
        let other_shape = "kernel = \"i2_s_t16__avx2__m6912_k2561__r16_c256_n1_u2_p0\"";
        let two_tokens = "kernel = \"i2_s_t16__avx2__any__r16_c256_n2_u1_p0\"";
        let shaped = "built_in = \"i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u2_p0\"";
        let other_layout = "built_in = \"i2_s_t32__avx2__any__r32_c256_n1_u1_p0\"";
        let head_runner_up = "runner_up = \"head_f32__avx2__any__r1_c0_n1_u1_p0\"";
        let rows = "kernel = \"rows_i2_s_l64__avx512vnni__m6912_k2560__r4_c0_n1_u1_p12\"";
        let rows_of_t5 = "kernel = \"rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p12\"";
        let rows_of_others = "kernel = \"rows_i2_s_l64__avx2__m6912_k2561__r4_c0_n1_u1_p0\"";
        let columns = "kernel = \"columns_i2_s_l64__avx2__any__r64_c32_n1_u1_p0\"";
        let rows_built_in = "built_in = \"rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p8\"";
        let rows_shaped = "built_in = \"rows_i2_s_l64__avx2__m6912_k2560__r4_c0_n1_u1_p8\"";
        let quarter = "ratio_at_quarter = 0.75";
        let parts = "parts = [[6912, 2560], [6912, 2560]]";
        let nine = format!("parts = [{}]", ["[1, 1]"; 9].join(", "));
        let mut cases: Vec<(&str, &str, &str, &str)> = vec![
            // P04 to P06, P14, P17, P21: grammar, and what is no field.
            ("schema = 1", "schema = 2", "schema", "reads 1"),
            ("schema = 1", "schema = 4294967296", "line 1", ""),
            ("schema = 1", "schema = \"1\"", "line 1", ""),
            ("schema = 1", "", "line 1", "schema"),
            ("schema = 1", "schema = 1\nschema = 1", "line 2", "duplicate"),
            ("schema = 1", "schema = 1\nhook = \"rm\"", "line 2", "unknown field `hook`"),
            ("schema = 1", &deep, "line 1", ""),
            ("[run]", "[run]\n\"\\u001b[2J\\n\u{202e}\" = 1", "line", "`\\u{1b}[2J\\n\\u{202e}`"),
            ("[run]", "[run]\nlibrary = \"/tmp/x.so\"", "line", "unknown field `library`"),
            ("[run]", "[run]\n[run]", "line", "duplicate"),
            ("[run]", "[jog]", "line", "unknown field `jog`"),
            ("[tool]", "[tool", "line", ""),
            ("mode = \"dense\"", "mode = \"fast\"", "line", "dense, skip_rows, axpy"),
            ("role = \"lm_head\"", "role = \"head\"", "line", "lm_head"),
            ("mode = \"skip_rows\"", "mode = \"dense\"", "op 1 (gate_up).sparse", "skip_rows"),
            ("mode = \"skip_rows\"", "mode = \"axpy\"", "op 1 (gate_up).sparse", "skip_rows"),
            ("below = 0.625", "below = 1.5", "op 1 (gate_up).sparse.below", "0 to 1"),
            ("below = 0.625", "below = nan", "op 1 (gate_up).sparse.below", "NaN"),
            ("below = 0.625", "", "line", "below"),
            (quarter, "ratio_at_quarter = -1.0", "op 1 (gate_up).sparse.ratio_at_quarter", "0 to"),
            (quarter, "ratio_at_quarter = inf", "op 1 (gate_up).sparse.ratio_at_quarter", "inf"),
            (rows, rows_of_t5, "op 1 (gate_up).sparse", "another packing"),
            (rows, rows_of_others, "op 1 (gate_up).sparse", "other shapes"),
            (rows, columns, "op 1 (gate_up).sparse", "a rows kernel"),
            (rows_built_in, rows_shaped, "op 1 (gate_up).sparse", "no built-in kernel"),
            ("pinning = \"cores\"", "pinning = \"all\"", "line", "none, cores"),
            // P08: text.
            ("version = \"0.1.0\"", &long, "tool.version", "256 bytes"),
            ("name = \"2B-4T\"", "name = \"a\\u001b[2Jb\"", "model.name", "control"),
            ("\"models/m.gguf\"", "\"a\\u001b[2Jb\"", "model.path", "control"),
            ("\"0123456789abcdef\"", "\"0123456789abcdeg\"", "tool.fingerprint", "16 hex"),
            ("\"fedcba9876543210\"", "\"fedcba98765432\"", "model.shapes", "16 hex"),
            ("\"ababab", "\"ab", "tool.library_sha256", "64 hex"),
            // P09, P15: numbers.
            ("threads = 2\n", "threads = 0\n", "run.threads", "1 to 1024"),
            ("threads = 2\n", "threads = 1025\n", "run.threads", "1 to 1024"),
            ("threads = 2\n", "threads = -1\n", "line", ""),
            ("threads = 2\n", "threads = 2.0\n", "line", ""),
            ("read_gb_per_s = 51.5", "read_gb_per_s = nan", "host.read_gb_per_s", "NaN"),
            ("read_gb_per_s = 51.5", "read_gb_per_s = -1.0", "host.read_gb_per_s", "-1"),
            ("noise = 0.015625", "noise = inf", "host.noise", "inf"),
            ("median_us = 101.5", "median_us = nan", "op 1 (gate_up).decode.median_us", "NaN"),
            ("mad_us = 1.25", "mad_us = -inf", "op 1 (gate_up).decode.mad_us", "-inf"),
            ("gb_per_s = 43.5", "gb_per_s = 1e300", "op 1 (gate_up).decode.gb_per_s", "1e300, but"),
            ("share_of_limit = 0.875", "share_of_limit = -0.5", "decode.share_of_limit", "-0.5"),
            ("runner_up_ratio = 1.0625", "runner_up_ratio = nan", "decode.runner_up_ratio", "NaN"),
            ("tokens = 128", "tokens = 0", "op 1 (gate_up).prefill", "1 to 4096"),
            ("tokens = 128", "tokens = 4097", "op 1 (gate_up).prefill", "1 to 4096"),
            ("count = 30", "count = 0", "op 1 (gate_up)", "count 0"),
            ("count = 30", "count = 65537", "op 1 (gate_up)", "count 65537"),
            // P09: shapes.
            (parts, "parts = []", "op 1 (gate_up)", "0 parts"),
            (parts, &nine, "op 1 (gate_up)", "9 parts"),
            (parts, "parts = [[0, 2560]]", "op 1 (gate_up)", "0x2560"),
            (parts, "parts = [[6912, 0]]", "op 1 (gate_up)", "6912x0"),
            (parts, "parts = [[16777217, 2560]]", "op 1 (gate_up)", "16777217"),
            (parts, "parts = [[6912, 262145]]", "op 1 (gate_up)", "262145"),
            (parts, "parts = [[6912]]", "line", ""),
            (parts, "parts = [[-6912, 2560]]", "line", ""),
            // Kernels that do not serve the role, the layout or the shape.
            ("layout = \"i2_s_t16\"\n", "", "op 1 (gate_up)", "takes a layout"),
            ("layout = \"i2_s_t16\"", "layout = \"i2_s_t32\"", "op 1 (gate_up).decode", "i2_s_t32"),
            ("layout = \"i2_s_t16\"", "layout = \"i2_s\"", "line", "i2_s_t16"),
            ("role = \"gate_up\"", "role = \"lm_head\"", "op 1 (lm_head)", "takes no layout"),
            ("role = \"lm_head\"", "role = \"down\"", "op 2 (down)", "takes a layout"),
            ("role = \"lm_head\"", "role = \"attention\"", "op 2 (attention).decode", "head_q6_k"),
            (kernel, tl1, "op 1 (gate_up).decode", "reads tl1_t32"),
            (kernel, attention, "op 1 (gate_up).decode", "does not serve"),
            (kernel, other_shape, "op 1 (gate_up).decode", "other shapes"),
            (kernel, two_tokens, "op 1 (gate_up).decode", "2 tokens"),
            (runner_up, head_runner_up, "op 1 (gate_up).decode", "does not serve"),
            (built_in, shaped, "op 1 (gate_up).decode", "no built-in kernel"),
            (built_in, other_layout, "op 1 (gate_up).decode", "reads i2_s_t32"),
            (built_in, "", "line", "built_in"),
        ];
        cases.extend(tiles.iter().map(|tile| (kernel, tile.as_str(), "line", "")));
        cases.extend(ids.iter().map(|id| (kernel, id.as_str(), "line", "")));
        let good = profile().to_text();
        for (from, to, item, problem) in cases {
            assert!(good.contains(from), "`{from}` is not in:\n{good}");
            let (found_item, found_problem) = refused(&good.replacen(from, to, 1));
            let shown: String = to.chars().take(80).collect();
            assert!(found_item.contains(item), "`{shown}`: {found_item} is not {item}");
            assert!(found_problem.contains(problem), "`{shown}`: {found_problem}");
            assert!(found_problem.len() < 1000, "`{shown}`: {} bytes", found_problem.len());
            assert!(!found_problem.chars().any(char::is_control), "`{shown}`: {found_problem:?}");
        }
    }

    #[test]
    fn a_role_and_its_parts_stand_once() {
        let mut twice = profile();
        twice.ops.push(twice.ops[0].clone());
        let (item, problem) = refused(&twice.to_text());
        assert_eq!(item, "op 3 (gate_up)");
        assert!(problem.contains("twice"), "{problem}");
        // The same role with other parts is another job.
        twice.ops[2].parts[0].rows += 1;
        assert_eq!(Profile::parse(&twice.to_text()).unwrap(), twice);
    }

    /// A kernel that the CPU lacks is one that would run: those of the picks and their fallbacks.
    #[test]
    fn p11_what_needs_an_isa_that_the_cpu_lacks_is_refused() {
        let profile = profile();
        for (best, item, isa) in [
            (Isa::Scalar, "op 1 (gate_up).decode", "avx512vnni"),
            (Isa::Avx2, "op 1 (gate_up).decode", "avx512vnni"),
            (Isa::Avx512Vnni, "", ""),
        ] {
            match profile.check_isa(|isa| isa <= best) {
                Ok(()) => assert_eq!(item, "", "{best}"),
                Err(ProfileError::Content { item: found, problem }) => {
                    assert_eq!(found, item, "{best}");
                    assert!(problem.contains(&format!("needs {isa}, which")), "{best}: {problem}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        // Each place alone.
        let scalar = Profile { ops: profile.ops[1..].to_vec(), ..profile.clone() };
        let lacks = |isa: Isa| move |other: Isa| other != isa;
        assert!(scalar.check_isa(lacks(Isa::Avx512Vnni)).is_ok());
        assert!(scalar.check_isa(lacks(Isa::Avx2)).is_err());
        assert!(scalar.check_isa(lacks(Isa::Scalar)).is_err());
        // The second best is told, never run.
        let mut told = scalar;
        told.ops[0].decode.runner_up =
            Some("head_q6_k__avx512__any__r1_c0_n1_u1_p0".parse().unwrap());
        assert!(told.check_isa(lacks(Isa::Avx512)).is_ok());
    }

    /// P03: a file cut short at any byte is refused, or is a profile by itself: whole `[[op]]` tables
    /// may be missing at its end, and nothing else.
    #[test]
    fn every_prefix_is_refused_or_whole() {
        let text = profile().to_text();
        let whole = profile();
        let mut parsed = 0;
        for end in 0..text.len() {
            let prefix = Profile::from_bytes(text.as_bytes()[..end].to_vec());
            assert!(prefix.is_err() || text.is_char_boundary(end), "cut at {end}");
            if let Ok(prefix) = prefix {
                assert_eq!(prefix.run.threads, whole.run.threads, "cut at {end}");
                assert!(prefix.ops.len() <= whole.ops.len());
                parsed += 1;
            }
        }
        assert!(parsed > 0 && parsed < text.len() / 10, "{parsed} of {}", text.len());
    }

    #[test]
    fn files_that_are_no_profile_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.toml");
        let content = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Profile::load(&path).expect_err("no profile").to_string()
        };
        for (bytes, says) in [
            (&b""[..], "schema"),
            (&b"\n# nothing\n"[..], "schema"),
            (&b"GGUF\x03\0\0\0"[..], "line 1"),
            (&b"{\"schema\": 1}"[..], "line 1"),
            (&b"schema = 1\nname = \"\xff\""[..], "byte 19: not UTF-8"),
        ] {
            let error = content(bytes);
            assert!(error.contains(says), "{error}");
        }
        // A gigabyte, though a hole.
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        let error = Profile::load(&path).expect_err("too big").to_string();
        assert!(error.contains("1073741824 bytes") && error.contains("1048576"), "{error}");
        let error = Profile::load(folder.path()).expect_err("a folder").to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let missing = folder.path().join("none.toml");
        let error = Profile::load(&missing).expect_err("missing");
        assert!(matches!(error, ProfileError::Io { action: "open", .. }), "{error}");
        assert!(error.to_string().contains("none.toml"), "{error}");
    }

    #[test]
    fn what_is_said_of_a_hostile_file_is_one_line_of_text() {
        let good = profile().to_text();
        let escape = "\\u001b[2J\\r\\n\\u202e\\u009b";
        for (from, to) in [
            ("[run]", format!("[run]\n\"{escape}\" = 1")),
            ("role = \"lm_head\"", format!("role = \"{escape}\"")),
            ("kernel = \"i2_s_t16", format!("kernel = \"{escape}i2_s_t16")),
            ("threads = 2\n", format!("threads = \"{escape}\"\n")),
        ] {
            assert!(good.contains(from), "{from}");
            let (item, problem) = refused(&good.replacen(from, &to, 1));
            let said = format!("{item}: {problem}");
            assert_eq!(said, printable(&said));
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn saving_replaces_the_whole_file_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.toml");
        let mut saved = profile();
        saved.save(&path).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), saved);
        saved.run.threads = 7;
        saved.save(&path).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), saved);
        // What another process of the same number left behind is in nobody's way.
        let stale = format!("host.toml.{}.tmp", std::process::id());
        std::fs::write(folder.path().join(&stale), "half").unwrap();
        saved.save(&path).unwrap();
        assert_eq!(names(folder.path()), ["host.toml", stale.as_str()]);
        std::fs::remove_file(folder.path().join(&stale)).unwrap();
        // A new profile is as public as any new file of this user.
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&plain));
        std::fs::remove_file(&plain).unwrap();

        // Where a folder has the name, it stays, and so does what it holds.
        let taken = folder.path().join("taken.toml");
        std::fs::create_dir(&taken).unwrap();
        std::fs::write(taken.join("kept"), "kept").unwrap();
        let error = saved.save(&taken).expect_err("a folder");
        assert!(matches!(error, ProfileError::Io { action: "write", .. }), "{error}");
        assert_eq!(names(&taken), ["kept"]);
        assert_eq!(names(folder.path()), ["host.toml", "taken.toml"]);

        let error = saved.save(&folder.path().join("none/host.toml")).expect_err("no such folder");
        assert!(matches!(error, ProfileError::Io { action: "write", .. }), "{error}");
    }

    /// Of so long a name, that none is left for the file that is to take its place: unlike a folder
    /// without write permission, that stops root too.
    #[cfg(unix)]
    #[test]
    fn a_profile_that_cannot_be_replaced_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("{}.toml", "x".repeat(245));
        let path = folder.path().join(&name);
        let old = profile();
        std::fs::write(&path, old.to_text()).unwrap();
        let new = Profile { ops: vec![], ..profile() };
        let result = new.save(&path);
        assert!(matches!(result, Err(ProfileError::Io { action: "write", .. })), "{result:?}");
        assert_eq!(Profile::load(&path).unwrap(), old);
        assert_eq!(names(folder.path()), [name]);
    }

    #[test]
    fn shapes_are_named_by_all_that_matters() {
        let a = [Shape::new(6912, 2560)];
        let b = [Shape::new(2560, 6912)];
        let both = [a[0], b[0]];
        let jobs: [&[(Role, &[Shape], u32)]; 7] = [
            &[],
            &[(Role::Gate, &a, 30)],
            &[(Role::Gate, &a, 31)],
            &[(Role::Gate, &b, 30)],
            &[(Role::Up, &a, 30)],
            &[(Role::Gate, &both, 30)],
            &[(Role::Gate, &a, 30), (Role::Down, &b, 30)],
        ];
        let hashes = jobs.map(|jobs| shapes_hash(jobs.iter().copied()));
        for (i, hash) in hashes.iter().enumerate() {
            assert!(hash.len() == 16 && !hashes[..i].contains(hash), "{hash} stands twice");
        }
        // Written into profiles: must not change from version to version.
        assert_eq!(hashes[0], "cbf29ce484222325");
    }
}
