//! Messages between a tuning run and its workers.
//!
//! A worker reads one [`Task`] as a line of JSON on stdin and writes [`Event`]s, one a line, on
//! stdout. The kernel that it is about to call it writes to a *status file* instead: a reader of
//! stdout would wake up, on a CPU that may be one of those being measured.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use bitnet_profiles::{HeadFormat, Isa, KernelId, Profile, Role, Run, Shape};
use bitnet_runtime::Error;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::kernels::Library;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::cpu::threads::MAX_THREADS;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::measure::{Comparison, Excluded, Limits, PlacementTiming, SparseUnit, Unit};
use crate::plan::JobTask;

/// Task of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Threads of its pool.
    pub threads: usize,
    /// Path of the status file.
    pub status: PathBuf,
    /// Kernels made on the host, if there are any.
    pub library: Option<LibraryFile>,
    /// The work.
    pub work: Work,
}

/// Seconds that any work may take: a day, the longest budget.
const MAX_SECONDS: f64 = 86_400.0;
/// Matrices that are multiplied with one input, at most: q, k and v.
const MAX_PARTS: usize = 3;
/// Bytes of a model, at most: more than any machine's memory, and sums of a few do not wrap.
const MAX_MODEL_BYTES: u64 = 1 << 48;

impl Task {
    /// Reads a task from its line of JSON. Every number that is divided by, that becomes a duration
    /// or that memory is taken by is within its bounds.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what is no task, or the number that is out of bounds.
    pub fn parse(line: &str) -> Result<Self> {
        let task: Self = serde_json::from_str(line).map_err(|e| {
            Error::usage("stdin", e, "a task of bitnet-tune, which starts its workers by itself")
        })?;
        task.check()?;
        Ok(task)
    }

    fn check(&self) -> Result<()> {
        within("threads", self.threads, 1, MAX_THREADS)?;
        let (seconds, model_bytes) = match &self.work {
            Work::Measure(task) => (task.seconds, task.model_bytes),
            Work::Placement(task) => (task.seconds, task.model_bytes),
            Work::Sparse(task) => (task.seconds, task.model_bytes),
            Work::Comparison(task) => (task.seconds, task.model_bytes),
        };
        within("seconds", seconds, 0.0, MAX_SECONDS)?;
        within("model_bytes", model_bytes, 0, MAX_MODEL_BYTES)?;
        match &self.work {
            Work::Measure(task) => {
                let Config { heads, kv_heads, head_dim, rope_dim, .. } = task.config;
                within("kv_heads", kv_heads, 1, Shape::MAX_COLS)?;
                within("heads", heads, kv_heads, Shape::MAX_COLS)?;
                within("head_dim", head_dim, 1, Shape::MAX_COLS)?;
                within("rope_dim", rope_dim, 0, head_dim)?;
                if !heads.is_multiple_of(kv_heads) {
                    let expected = format!("a multiple of kv_heads, {kv_heads}");
                    return Err(Error::usage("stdin: heads", heads, expected).into());
                }
                task.jobs.iter().try_for_each(|job| check_parts(&job.plan.parts))
            }
            Work::Placement(task) => {
                for run in &task.placements {
                    within("threads", run.threads as usize, 1, MAX_THREADS)?;
                }
                task.jobs.iter().try_for_each(|job| check_parts(&job.parts))
            }
            Work::Sparse(task) => task.jobs.iter().try_for_each(|job| check_parts(&job.parts)),
            Work::Comparison(task) => {
                within("threads", task.threads, 1, MAX_THREADS)?;
                let why = |e| Error::usage("stdin: profile", e, "a profile as a file holds it");
                task.profile.validate().map_err(why)?;
                Ok(())
            }
        }
    }
}

/// Refuses a number that is not in `least..=most`, or not comparable.
fn within<T: PartialOrd + std::fmt::Display>(
    name: &str,
    found: T,
    least: T,
    most: T,
) -> Result<()> {
    if least <= found && found <= most {
        return Ok(());
    }
    Err(Error::usage(format!("stdin: {name}"), found, format!("{least} to {most}")).into())
}

/// Refuses a job without matrices, or with one of a size that no kernel takes, or whose matrices
/// cannot be multiplied with one input.
fn check_parts(parts: &[Shape]) -> Result<()> {
    within("parts of a job", parts.len(), 1, MAX_PARTS)?;
    for part in parts {
        within("rows of a matrix", part.rows, 1, Shape::MAX_ROWS)?;
        within("columns of a matrix", part.cols, 1, Shape::MAX_COLS)?;
        within("columns of a job's other matrix", part.cols, parts[0].cols, parts[0].cols)?;
    }
    Ok(())
}

/// A library of kernels made on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibraryFile {
    /// Folder of the cache that holds it.
    pub cache: PathBuf,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

impl LibraryFile {
    /// Loads and checks it.
    ///
    /// # Errors
    /// [`Error::Runtime`] that says why it is not used.
    pub fn load(&self) -> Result<Library> {
        let loaded = Cache::at(&self.cache).open(&self.sha256);
        let loaded = loaded.and_then(|checked| Library::load(&checked, Isa::best()));
        Ok(loaded.map_err(|why| Error::Runtime(format!("kernels made on the host: {why}")))?)
    }
}

/// Kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Verify and time candidates.
    Measure(Box<MeasureTask>),
    /// Time threads, pinning and pages.
    Placement(PlacementTask),
    /// Time activation sparsity.
    Sparse(SparseTask),
    /// Compare the untuned default and a profile on the model.
    Comparison(Box<ComparisonTask>),
}

/// Candidates to verify and to time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureTask {
    /// The jobs.
    pub jobs: Vec<JobTask>,
    /// The model's hyperparameters.
    pub config: Config,
    /// Storage format of the head's rows.
    pub head: HeadFormat,
    /// Bytes of weights that the model reads per token.
    pub model_bytes: u64,
    /// The best tier that may be used.
    pub ceiling: Isa,
    /// Seconds for all of it.
    pub seconds: f64,
    /// Repeats of each tournament.
    pub repeats: u8,
    /// True to time all once at least, however long it takes; else only the defaults and candidates
    /// of their layouts are timed when time is up.
    pub whole: bool,
    /// The machine's limits, where they are known already.
    pub limits: Option<Limits>,
    /// Units that are done already.
    pub done: Vec<Unit>,
    /// Kernels that must not be called.
    pub excluded: Vec<Excluded>,
}

/// Placements to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementTask {
    /// Ternary jobs with the chosen kernels.
    pub jobs: Vec<ChosenJob>,
    /// Placements; the first is the untuned one.
    pub placements: Vec<Run>,
    /// Bytes of weights that the model reads per token.
    pub model_bytes: u64,
    /// Seconds for all of it.
    pub seconds: f64,
}

/// A ternary job with its kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChosenJob {
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Runs per token.
    pub count: u32,
    /// Decode kernel.
    pub decode: KernelId,
    /// Prefill kernel; reads the same layout.
    pub prefill: KernelId,
}

/// Jobs with activation sparsity to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseTask {
    /// The jobs.
    pub jobs: Vec<SparseJob>,
    /// Bytes of weights that the model reads per token.
    pub model_bytes: u64,
    /// Seconds for all of it.
    pub seconds: f64,
}

/// A job with activation sparsity to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseJob {
    /// Role of the job: `gate_up` or `down`.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Dense decode kernel.
    pub dense: KernelId,
    /// The candidates; the untuned default first.
    pub kernels: Vec<KernelId>,
}

/// Comparison on the model to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonTask {
    /// The model's file; none for the demo model that is part of this program.
    pub model: Option<PathBuf>,
    /// The profile.
    pub profile: Profile,
    /// Threads of the untuned default.
    pub threads: usize,
    /// The best tier that both may use.
    pub ceiling: Isa,
    /// Bytes of weights that the model reads per token.
    pub model_bytes: u64,
    /// Seconds for all of it; both are loaded once at least.
    pub seconds: f64,
}

/// Report of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Progress.
    Progress {
        /// Share of the work, 0 to 1.
        done: f64,
        /// Current step.
        doing: String,
    },
    /// Note for the user.
    Note(String),
    /// Limits of the machine.
    Limits(Limits),
    /// A kernel that failed.
    Excluded(Excluded),
    /// Result of a tournament.
    Unit(Unit),
    /// Results for placements.
    #[serde(rename = "settings")]
    Placements(Vec<PlacementTiming>),
    /// Results for activation sparsity.
    Sparse(Vec<SparseUnit>),
    /// Result of the comparison on the model.
    #[serde(rename = "race")]
    Comparison(Comparison),
    /// Error that ended the work.
    Failed {
        /// Its message, one line.
        message: String,
        /// Its exit code.
        code: u8,
    },
    /// End of the work.
    Done,
}

/// Content of the status file: the kernel that is about to be called, and its time limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    /// Number of the call.
    pub number: u64,
    /// The kernel.
    pub kernel: KernelId,
    /// Seconds.
    pub seconds: f64,
}

/// Bytes of the status file; the JSON is padded with spaces, so that each write replaces the one
/// before.
const STATUS_BYTES: usize = 256;

/// Reports of a worker.
pub(crate) struct Reporter {
    out: io::Stdout,
    status: File,
    number: u64,
}

impl Reporter {
    /// Reports on stdout and in an open status file.
    pub(crate) fn new(status: File) -> Self {
        Self { out: io::stdout(), status, number: 0 }
    }

    /// Sends an event.
    pub(crate) fn send(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event)
            .map_err(|e| Error::Runtime(format!("an event has no JSON form: {e}")))?;
        line.push('\n');
        let mut out = self.out.lock();
        let sent = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        Ok(sent.map_err(|e| Error::io(Path::new("stdout"), "write", e))?)
    }

    /// Sends progress.
    pub(crate) fn progress(&mut self, done: f64, doing: String) -> Result<()> {
        self.send(&Event::Progress { done, doing })
    }

    /// Announces that `kernel` is about to be called and may take `seconds`.
    pub(crate) fn begin(&mut self, kernel: &KernelId, seconds: f64) -> Result<()> {
        self.number += 1;
        let status = Status { number: self.number, kernel: *kernel, seconds };
        let mut text = serde_json::to_string(&status)
            .map_err(|e| Error::Runtime(format!("a status has no JSON form: {e}")))?;
        text.extend(std::iter::repeat_n(' ', STATUS_BYTES.saturating_sub(text.len())));
        let written = self.status.rewind().and_then(|()| self.status.write_all(text.as_bytes()));
        Ok(written.map_err(|e| Error::io(Path::new("status"), "write", e))?)
    }
}
