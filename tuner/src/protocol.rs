//! Messages between a tuning run and its workers.
//!
//! A worker reads one [`Task`] as a line of JSON on stdin and writes [`Event`]s, one a line, on stdout.
//! Which kernel it is about to call it writes to a *status file* rather than to stdout: whoever
//! waits on a pipe wakes up, on a CPU that may be one of those being measured.

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

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Threads of its pool.
    pub threads: usize,
    /// Where it says what it is about to call.
    pub status: PathBuf,
    /// The kernels made on the host, if there are any.
    pub library: Option<LibraryFile>,
    /// The work.
    pub work: Work,
}

/// A library of kernels made on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibraryFile {
    /// The folder it is kept in.
    pub cache: PathBuf,
    /// The SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

impl LibraryFile {
    /// Loads it, checked as any library is.
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
    /// Time kernels that skip what meets a zero.
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
    /// How the rows of its head are stored.
    pub head: HeadFormat,
    /// Bytes of weights that one token of the model reads.
    pub model_bytes: u64,
    /// The best tier that may be used.
    pub ceiling: Isa,
    /// Seconds for all of it.
    pub seconds: f64,
    /// How often each tournament is held, some time apart.
    pub repeats: u8,
    /// Whether all is timed once at least, however long it takes; else, when time is up, the
    /// defaults and what shares their layouts.
    pub whole: bool,
    /// The machine's limits, where they are known already.
    pub limits: Option<Limits>,
    /// Units that are done already.
    pub done: Vec<Unit>,
    /// Kernels that must not be called.
    pub excluded: Vec<Excluded>,
}

/// Settings to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementTask {
    /// The ternary jobs, as they were chosen.
    pub jobs: Vec<ChosenJob>,
    /// The settings; the first is the untuned one.
    pub placements: Vec<Run>,
    /// Bytes of weights that one token of the model reads.
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
    /// Times per token that it runs.
    pub count: u32,
    /// The kernel for one token.
    pub decode: KernelId,
    /// The kernel for many; reads the same layout.
    pub prefill: KernelId,
}

/// Jobs in which to skip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseTask {
    /// The jobs.
    pub jobs: Vec<SparseJob>,
    /// Bytes of weights that one token of the model reads.
    pub model_bytes: u64,
    /// Seconds for all of it.
    pub seconds: f64,
}

/// A job in which to skip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseJob {
    /// What the job is for: `gate_up` or `down`.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// The dense kernel for one token.
    pub dense: KernelId,
    /// The candidates; the untuned default first.
    pub kernels: Vec<KernelId>,
}

/// What to race.
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
    /// Bytes of weights that one token of the model reads.
    pub model_bytes: u64,
    /// Seconds for all of it; both are loaded once at least.
    pub seconds: f64,
}

/// What a worker reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// How far it is: share of the work, and what it does now.
    Progress {
        /// 0 to 1.
        done: f64,
        /// In words.
        doing: String,
    },
    /// Something the user should know.
    Note(String),
    /// What the machine can do.
    Limits(Limits),
    /// A kernel that computed something wrong.
    Excluded(Excluded),
    /// A tournament is over.
    Unit(Unit),
    /// The settings are timed.
    #[serde(rename = "settings")]
    Placements(Vec<PlacementTiming>),
    /// Kernels that skip are timed.
    Sparse(Vec<SparseUnit>),
    /// The comparison on the model is over.
    #[serde(rename = "race")]
    Comparison(Comparison),
    /// It cannot go on: an error's message and its exit code.
    Failed {
        /// One line.
        message: String,
        /// As the process would exit.
        code: u8,
    },
    /// All is done.
    Done,
}

/// What the status file says: the kernel that is about to be called, and for how long it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    /// Counts the calls.
    pub number: u64,
    /// The kernel.
    pub kernel: KernelId,
    /// Seconds.
    pub seconds: f64,
}

/// Bytes of the status file; the JSON in it is padded with spaces, so that each write replaces the
/// one before.
const STATUS_BYTES: usize = 256;

/// How a worker reports.
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

    /// Says how far it is.
    pub(crate) fn progress(&mut self, done: f64, doing: String) -> Result<()> {
        self.send(&Event::Progress { done, doing })
    }

    /// Says that `kernel` is about to be called and may take so many seconds.
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
