//! The child process in which candidates run, so that one that crashes or hangs costs itself alone.
//!
//! It reads one [`Task`] as a line of JSON on stdin and writes [`Event`]s, one a line, on stdout.
//! Which kernel it is about to call it writes to a *status file* rather than to stdout: whoever
//! waits on a pipe wakes up, on a CPU that may be one of those being measured. When stdin ends, its
//! parent is gone and so is the worker.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};
use std::path::PathBuf;

use bitnet_profiles::{HeadFormat, Isa, KernelId};
use bitnet_runtime::Error;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::kernels::Library;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::cpu::threads::Pool;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::measure::{Excluded, JobTask, Limits, Unit};
use crate::timing::comparison::{self, Race, RaceTask};
use crate::timing::jobs::{self, Present};
use crate::timing::placement::{self, SettingTiming, SettingsTask};
use crate::timing::sparse::{self, SparseTask, SparseUnit};

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
    Settings(SettingsTask),
    /// Time kernels that skip what meets a zero.
    Sparse(SparseTask),
    /// Compare the untuned default and a profile on the model.
    Race(RaceTask),
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
    pub sittings: u8,
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
    Settings(Vec<SettingTiming>),
    /// Kernels that skip are timed.
    Sparse(Vec<SparseUnit>),
    /// The race is over.
    Race(Race),
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
    /// Sends an event.
    pub(crate) fn send(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event)
            .map_err(|e| Error::Runtime(format!("an event has no JSON form: {e}")))?;
        line.push('\n');
        let mut out = self.out.lock();
        let sent = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        Ok(sent.map_err(|e| Error::io(std::path::Path::new("stdout"), "write", e))?)
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
        Ok(written.map_err(|e| Error::io(std::path::Path::new("status"), "write", e))?)
    }
}

/// The life of a worker: everything that goes wrong is an event too.
///
/// # Errors
/// Only where there is nobody to tell: stdin holds no task, stdout is closed.
pub fn run() -> Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|e| Error::io(stdin(), "read", e))?;
    let task: Task = serde_json::from_str(&line).map_err(|e| {
        Error::usage("stdin", e, "a task of bitnet-tune, which starts its workers by itself")
    })?;
    let watch = std::thread::Builder::new().spawn(|| {
        let mut rest = Vec::new();
        // Nothing more is sent: this ends when the parent does.
        let _ = io::stdin().lock().take(1).read_to_end(&mut rest);
        std::process::exit(1);
    });
    watch.map_err(|e| Error::Runtime(format!("cannot start a thread to watch stdin: {e}")))?;
    let status = File::options()
        .write(true)
        .open(&task.status)
        .map_err(|e| Error::io(&task.status, "open", e))?;
    let mut reporter = Reporter { out: io::stdout(), status, number: 0 };
    let outcome = work(&task, &mut reporter);
    reporter.send(&match outcome {
        Ok(()) => Event::Done,
        Err(error) => Event::Failed { message: error.to_string(), code: error.exit_code() },
    })
}

fn stdin() -> &'static std::path::Path {
    std::path::Path::new("stdin")
}

fn work(task: &Task, reporter: &mut Reporter) -> Result<()> {
    let library = task.library.as_ref().map(LibraryFile::load).transpose()?;
    let present = Present(library);
    match &task.work {
        Work::Measure(measure) => {
            jobs::measure(measure, (&Pool::new(task.threads)?, &present), reporter)
        }
        Work::Settings(task) => {
            let timings = placement::measure(task, &present, reporter)?;
            reporter.send(&Event::Settings(timings))
        }
        Work::Sparse(sparse) => {
            let pool = Pool::new(task.threads)?;
            let units = sparse::measure(sparse, (&pool, &present), reporter)?;
            reporter.send(&Event::Sparse(units))
        }
        Work::Race(task) => {
            let race = comparison::race(task, reporter)?;
            reporter.send(&Event::Race(race))
        }
    }
}
