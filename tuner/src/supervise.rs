//! Supervision of workers: a kernel that crashes or hangs its worker is left out, and a new worker
//! goes on with the rest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use bitnet_profiles::KernelId;
use bitnet_runtime::Error;

use crate::Result;
use crate::measure::{Excluded, Why};
use crate::protocol::{Event, LibraryFile, Status, Task, Work};

/// Interval between looks at a worker's status; long, because looking takes a CPU.
const LOOK: Duration = Duration::from_millis(200);
/// Characters of a worker's last words that are read: a path and what befell it.
const MOST_WORDS: usize = 5000;
/// Largest number of candidates that may crash or hang in one run.
const MOST_CULPRITS: usize = 64;

/// Program that is started as a worker, with its arguments.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    /// The executable.
    pub path: PathBuf,
    /// Arguments that make it a worker.
    pub arguments: Vec<OsString>,
}

impl WorkerProgram {
    /// Returns this program's own file, as `bitnet-tune`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system does not say which file that is.
    pub fn this() -> Result<Self> {
        let path = std::env::current_exe().map_err(|e| {
            Error::Runtime(format!("cannot find the file of this program, to run it again: {e}"))
        })?;
        Ok(Self::new(path))
    }

    /// Returns `bitnet-tune` at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: vec!["worker".into()] }
    }
}

/// End of a worker.
enum End {
    Done,
    /// Crash or hang in a kernel, or before any was called.
    Died(Option<KernelId>, Why, String),
}

/// Message for the user during a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// Progress: share of the work, 0 to 1, and the current step.
    Progress(f64, String),
    /// A line that stays.
    Line(String),
}

/// Owner of work that workers do.
pub trait Client {
    /// Returns the library of kernels that the work needs, if any.
    fn library(&self) -> Option<LibraryFile> {
        None
    }

    /// Returns the work that is left; called before every worker.
    fn work(&mut self) -> Work;

    /// True if the user stopped the run; checked often.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Takes a worker's event. A kernel that ended its worker comes as [`Event::Excluded`], and
    /// must be left out of the work from then on.
    ///
    /// # Errors
    /// Whatever is to end the run.
    fn hear(&mut self, event: Event) -> Result<()>;
}

/// Does the client's work in workers.
///
/// # Errors
/// The error of a worker; [`crate::Error::Stopped`] when the user stopped it or this;
/// [`Error::Runtime`] when one cannot be started, or died and no kernel is to blame.
pub fn run(program: &WorkerProgram, threads: usize, client: &mut dyn Client) -> Result<()> {
    for _ in 0..MOST_CULPRITS {
        if client.is_stopped() {
            return Err(crate::Error::stopped());
        }
        let work = client.work();
        match run_once(program, threads, work, client)? {
            End::Done => return Ok(()),
            End::Died(Some(kernel), why, found) => {
                client.hear(Event::Excluded(Excluded { kernel, why, found }))?;
            }
            End::Died(None, _, found) => {
                let message = format!("a worker process ended before it called a kernel: {found}");
                return Err(Error::Runtime(message).into());
            }
        }
    }
    let message = format!("{MOST_CULPRITS} kernels in turn ended their process; please report it");
    Err(Error::Runtime(message).into())
}

fn run_once(
    program: &WorkerProgram,
    threads: usize,
    work: Work,
    client: &mut dyn Client,
) -> Result<End> {
    let io = |action: &str, e: std::io::Error| {
        Error::Runtime(format!("cannot {action} a worker process: {e}"))
    };
    let status = tempfile::NamedTempFile::new().map_err(|e| io("make a file for", e))?;
    let (status, name) = status.into_parts();
    let task = Task { threads, status: name.to_path_buf(), library: client.library(), work };
    let mut name = Some(name);
    let mut text = serde_json::to_string(&task)
        .map_err(|e| Error::Runtime(format!("a task has no JSON form: {e}")))?;
    text.push('\n');
    let child = Command::new(&program.path)
        .args(&program.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io("start", e))?;
    let mut child = Running(child);
    let (stdin, stdout, stderr) =
        (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
        return Err(Error::Runtime("a worker process has no pipes".into()).into());
    };
    let (sender, events) = mpsc::channel();
    let thread = || std::thread::Builder::new();
    let reader = thread().spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let reader = reader.map_err(|e| io("start a thread to listen to", e))?;
    // The beginning of stderr, of which the first line tells how a worker died.
    let listener = thread().spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.by_ref().take(1 << 16).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        text
    });
    let listener = listener.map_err(|e| io("start a thread to listen to", e))?;
    // A worker that is gone already shows below.
    let _ = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());

    let mut watch = Watch::start(Instant::now());
    let mut hung = None;
    let mut done = false;
    loop {
        if client.is_stopped() {
            return Err(crate::Error::stopped());
        }
        match events.recv_timeout(LOOK) {
            Ok(line) => {
                // It has opened the file, whose name need not outlive this process if it is killed.
                name.take();
                watch.heard(Instant::now());
                match serde_json::from_str(&line) {
                    Ok(Event::Done) => done = true,
                    Ok(Event::Failed { message, code }) => {
                        return Err(crate::Error::Worker { message, code });
                    }
                    Ok(event) => client.hear(event)?,
                    // A kernel that writes to stdout would be a candidate that errs.
                    Err(_) => break,
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let paused = is_paused(child.0.id());
                hung = watch.look(read_status(&status), paused, Instant::now());
                if hung.is_some() {
                    break;
                }
            }
        }
    }
    if done {
        // It has nothing more to do than to end.
        drop(stdin);
        child.stop();
        let _ = (reader.join(), listener.join());
        return Ok(End::Done);
    }
    let kernel = read_status(&status).map(|status| status.kernel);
    let ended = if hung.is_some() {
        None
    } else {
        // Its stdout is closed, so it is ending.
        child.0.wait().ok()
    };
    child.stop();
    drop(stdin);
    let _ = reader.join();
    let words = listener.join().unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let words = words.lines().next().unwrap_or_default().chars();
    let words: String = words.filter(|c| !c.is_control()).take(MOST_WORDS).collect();
    if let Some(error) = ended.as_ref().and_then(|status| not_by_a_kernel(status, &words)) {
        return Err(error);
    }
    Ok(match (hung, ended) {
        (Some(seconds), _) => {
            End::Died(kernel, Why::Hung, format!("no answer within {seconds:.0} s"))
        }
        (None, status) => {
            let mut found = status.map_or("it ended".into(), how);
            if !words.is_empty() {
                found += ": ";
                found += &words;
            }
            End::Died(kernel, Why::Crashed, found)
        }
    })
}

/// Time that a worker has been busy with its current call. Time in which it could not run does not
/// count: while it is stopped, or while this process was stopped with it (Ctrl+Z, a suspended
/// notebook).
struct Watch {
    number: Option<u64>,
    busy: Duration,
    looked: Instant,
}

impl Watch {
    fn start(now: Instant) -> Self {
        Self { number: None, busy: Duration::ZERO, looked: now }
    }

    /// Notes an event of the worker.
    fn heard(&mut self, now: Instant) {
        self.busy = Duration::ZERO;
        self.looked = now;
    }

    /// Returns the time limit, if the worker has been busy for longer.
    fn look(&mut self, status: Option<Status>, paused: bool, now: Instant) -> Option<f64> {
        let passed = now.saturating_duration_since(self.looked).min(2 * LOOK);
        self.looked = now;
        let status = status?;
        if self.number != Some(status.number) {
            self.number = Some(status.number);
            self.busy = Duration::ZERO;
        } else if !paused {
            self.busy += passed;
        }
        (self.busy.as_secs_f64() > status.seconds).then_some(status.seconds)
    }
}

/// True if a process is stopped by a signal or a debugger, as far as the system says.
fn is_paused(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// Returns the error where a worker's end is no kernel's fault: the user stopped it, or memory ran
/// out.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix ends processes by signals"))]
fn not_by_a_kernel(status: &ExitStatus, words: &str) -> Option<crate::Error> {
    #[cfg(unix)]
    match std::os::unix::process::ExitStatusExt::signal(status) {
        // Hangup, interrupt, terminate: no code raises these by mistake.
        Some(1 | 2 | 15) => return Some(crate::Error::stopped()),
        Some(9) => {
            let message = "a worker process was killed, as the system does when memory runs out; \
                           tuning takes about 1.5 times the model's memory";
            return Some(Error::Runtime(message.into()).into());
        }
        _ => {}
    }
    // It says what ended it where it can, as of a model that was cut short. Kernels write nothing.
    if let Some(code) = status.code().and_then(|code| u8::try_from(code).ok())
        && code != 0
        && let Some(message) = words.strip_prefix("error: ")
    {
        return Some(crate::Error::Worker { message: message.into(), code });
    }
    // Message of the standard library before it aborts. Kernels allocate nothing.
    words.starts_with("memory allocation of").then(|| {
        let message = format!(
            "a worker process ran out of memory ({words}); tuning takes about 1.5 times the \
             model's memory"
        );
        Error::Runtime(message).into()
    })
}

/// A child that is killed when dropped.
struct Running(Child);

impl Running {
    fn stop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_status(mut file: &File) -> Option<Status> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    // Torn writes do not parse; the next look sees more.
    serde_json::from_str(text.trim()).ok()
}

/// Describes how a process ended.
fn how(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            4 => " (illegal instruction)",
            6 => " (abort)",
            7 => " (bus error)",
            8 => " (arithmetic error)",
            9 => " (killed)",
            11 => " (segmentation fault)",
            _ => "",
        };
        return format!("ended by signal {signal}{name}");
    }
    status.code().map_or("ended".into(), |code| format!("ended with exit code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_a_worker_had_counts() {
        let kernel = "i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p0".parse().unwrap();
        let status = |number| Some(Status { number, kernel, seconds: 1.0 });
        let mut now = Instant::now();
        let mut watch = Watch::start(now);
        let mut after = |milliseconds| {
            now += Duration::from_millis(milliseconds);
            now
        };
        // Nothing was begun, however long it takes.
        assert!((0..50).all(|_| watch.look(None, false, after(200)).is_none()));
        assert_eq!(watch.look(status(1), false, after(200)), None);
        // A second and a bit of looks is too long; stopped, it is not.
        assert!((0..50).all(|_| watch.look(status(1), true, after(200)).is_none()));
        assert!((0..5).all(|_| watch.look(status(1), false, after(200)).is_none()));
        assert_eq!(watch.look(status(1), false, after(200)), Some(1.0));
        // The next kernel has its own time, and so has what follows an event.
        assert_eq!(watch.look(status(2), false, after(200)), None);
        assert!((0..5).all(|_| watch.look(status(2), false, after(200)).is_none()));
        watch.heard(after(200));
        assert!((0..5).all(|_| watch.look(status(2), false, after(200)).is_none()));
        // An hour in which nobody looked was an hour of sleep.
        watch.heard(after(200));
        assert_eq!(watch.look(status(2), false, after(3_600_000)), None);
    }
}
