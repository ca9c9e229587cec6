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
    Measure(MeasureTask),
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
