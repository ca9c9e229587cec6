//! The fields of a profile.

use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::{Format, Isa, KernelId, Op, Packing, Shape};

/// A job of the forward pass that one kernel choice serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Query, key and value projections, as one job.
    Qkv,
    /// The projection after attention.
    AttnOutput,
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
    GateUp => "gate_up",
    Down => "down",
    LmHead => "lm_head",
    Attention => "attention",
});

/// Goal of the tuner.
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

/// Effort of the tuner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// No timing: the choices that ship for the CPU.
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

/// Origin of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// Timed on the host named.
    Measured,
    /// Not timed there: chosen by a model of the host, or for another host of its kind.
    Modelled,
}

named!(Provenance, "provenance", { Measured => "measured", Modelled => "modelled" });

/// Binding of worker threads to CPUs.
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
    /// Origin: the program that wrote the profile, and its settings.
    pub tool: Tool,
    /// Machine of the measurements.
    pub host: Host,
    /// The model it was tuned for.
    pub model: Model,
    /// Settings of a run.
    pub run: Run,
    /// The choices, one for each role and set of shapes.
    #[serde(default, rename = "op")]
    pub ops: Vec<Choice>,
}

/// Origin of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Version of the tuner.
    pub version: String,
    /// The generator's fingerprint: 16 hexadecimal digits. Shipped profiles carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Goal of the tuner.
    pub objective: Objective,
    /// Its effort.
    pub effort: Effort,
    /// Day of the run, `YYYY-MM-DD`.
    pub date: String,
    /// SHA-256 of the library of host-made kernels, where some were kept: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library_sha256: Option<String>,
    /// True if figures were timed.
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
    /// Read bandwidth of the tuned threads in 10^9 bytes per second, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_gb_per_s: Option<f64>,
    /// Median absolute deviation of the sentinel over its median, where anything was timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
}

/// The model of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name from the model's metadata.
    pub name: String,
    /// Architecture from the model's metadata.
    pub architecture: String,
    /// Hash of the roles and shapes, see [`shapes_hash`](crate::shapes_hash).
    pub shapes: String,
    /// Path of the model: a hint. Only ever opened as a GGUF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Threads, 1 to 1024.
    pub threads: u32,
    /// Their binding to CPUs.
    #[serde(default)]
    pub pinning: Pinning,
    /// True if weights ask for huge pages.
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
#[serde(from = "ReadChoice")]
pub struct Choice {
    /// The role.
    pub role: Role,
    /// Rows and columns of the matrices in the job.
    pub parts: Vec<Shape>,
    /// Times per token that the job runs.
    pub count: u32,
    /// The packing, for ternary roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Packing>,
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

/// A choice as it is read: with a field that version 0.1 wrote and nothing needed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadChoice {
    role: Role,
    parts: Vec<Shape>,
    count: u32,
    layout: Option<Packing>,
    /// `dense`, or what the sparse kernel's name says.
    #[serde(default, rename = "mode")]
    _mode: IgnoredAny,
    decode: Pick,
    prefill: Option<Pick>,
    sparse: Option<Sparse>,
}

impl From<ReadChoice> for Choice {
    fn from(read: ReadChoice) -> Self {
        let ReadChoice { role, parts, count, layout, _mode, decode, prefill, sparse } = read;
        Self { role, parts, count, layout, decode, prefill, sparse }
    }
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
    /// True if the kernel may serve on tiers up to `ceiling`, and where the user asks for a `format`:
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
    /// The rule for its use, and its gain.
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

/// A kernel that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Pick {
    /// The kernel.
    pub kernel: KernelId,
    /// The measurements; none where nothing was timed.
    pub timed: Option<Timed>,
    /// The built-in kernel to use where `kernel` is not present.
    pub built_in: KernelId,
}

impl Pick {
    /// A built-in kernel that was not timed.
    pub fn untimed(kernel: KernelId) -> Self {
        Self { kernel, timed: None, built_in: kernel }
    }

    /// The second best of those that were timed.
    pub fn runner_up(&self) -> Option<KernelId> {
        self.timed.as_ref()?.runner_up
    }
}

/// The measurements of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Activation rows.
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
    pub runner_up: Option<KernelId>,
    /// Time of the second best over that of the kernel.
    pub runner_up_ratio: Option<f64>,
}

/// A pick as a file holds it: what was timed stands beside the kernel, whole or not at all.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    kernel: KernelId,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mad_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_limit: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up: Option<KernelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up_ratio: Option<f64>,
    built_in: KernelId,
}

impl TryFrom<Fields> for Pick {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let Fields { kernel, tokens, runner_up, runner_up_ratio, built_in, .. } = fields;
        let times = (fields.median_us, fields.mad_us, fields.gb_per_s, fields.share_of_limit);
        let timed = match times {
            (Some(median_us), Some(mad_us), Some(gb_per_s), Some(share_of_limit)) => Some(Timed {
                tokens: tokens.unwrap_or(1),
                median_us,
                mad_us,
                gb_per_s,
                share_of_limit,
                runner_up,
                runner_up_ratio,
            }),
            (None, None, None, None)
                if (tokens, runner_up, runner_up_ratio) == (None, None, None) =>
            {
                None
            }
            _ => {
                return Err(
                    "of a kernel that was timed `median_us`, `mad_us`, `gb_per_s` and `share_of_limit` \
                     stand together, and `tokens`, `runner_up` and `runner_up_ratio` only beside them",
                );
            }
        };
        Ok(Self { kernel, timed, built_in })
    }
}

impl From<Pick> for Fields {
    fn from(Pick { kernel, timed, built_in }: Pick) -> Self {
        let timed = timed.as_ref();
        Self {
            kernel,
            tokens: timed.map(|timed| timed.tokens),
            median_us: timed.map(|timed| timed.median_us),
            mad_us: timed.map(|timed| timed.mad_us),
            gb_per_s: timed.map(|timed| timed.gb_per_s),
            share_of_limit: timed.map(|timed| timed.share_of_limit),
            runner_up: timed.and_then(|timed| timed.runner_up),
            runner_up_ratio: timed.and_then(|timed| timed.runner_up_ratio),
            built_in,
        }
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
}
