//! Starts workers and watches them: a kernel that ends its worker or does not come back is left
//! out, and a new worker goes on with the rest.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use bitnet_profiles::KernelId;
use bitnet_runtime::Error;

use crate::Result;
use crate::measure::{Excluded, Why};
use crate::worker::{Event, LibraryFile, Status, Task, Work};

/// How often a worker's status is looked at; rarely, because looking takes a CPU.
const LOOK: Duration = Duration::from_millis(200);
/// Candidates that may crash or hang before something else must be the matter.
const MOST_CULPRITS: usize = 64;

/// The program that becomes a worker, and its arguments.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    /// The executable.
    pub path: PathBuf,
    /// What makes it a worker.
    pub arguments: Vec<OsString>,
}

impl WorkerProgram {
    /// This very program, as `bitnet-tune` is called.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system does not say which file that is.
    pub fn this() -> Result<Self> {
        let path = std::env::current_exe().map_err(|e| {
            Error::Runtime(format!("cannot find the file of this program, to run it again: {e}"))
        })?;
        Ok(Self::new(path))
    }

    /// `bitnet-tune` at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: vec!["worker".into()] }
    }
}

/// How a worker ended.
enum End {
    Done,
    /// By a kernel, unless it had not called any.
    Died(Option<KernelId>, Why, String),
}

/// Who wants work done.
pub trait Client {
    /// Kernels made on the host that the work needs, if it needs any.
    fn library(&self) -> Option<LibraryFile> {
        None
    }

    /// What is to be done: asked for before every worker, so that a new one goes on with the rest.
    fn work(&mut self) -> Work;

    /// Hears what a worker reports; of a kernel that ended one it hears as [`Event::Excluded`], and
    /// must leave it out of the work from then on.
    ///
    /// # Errors
    /// Whatever is to end the run.
    fn hear(&mut self, event: Event) -> Result<()>;
}

/// Has the client's work done in workers.
///
/// # Errors
/// What a worker failed with; [`Error::Runtime`] when one cannot be started, or died and no kernel
/// is to blame.
pub fn run(program: &WorkerProgram, threads: usize, client: &mut dyn Client) -> Result<()> {
    for _ in 0..MOST_CULPRITS {
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
    let status_path = status.path().to_path_buf();
    let task = Task { threads, status: status_path, library: client.library(), work };
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
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    // What a worker says when it dies; its last words, should there be many.
    let listener = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.by_ref().take(1 << 16).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        text
    });
    // A worker that is gone already shows below.
    let _ = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());

    let mut last: Option<Status> = None;
    let mut since = Instant::now();
    let mut hung = None;
    let mut done = false;
    loop {
        match events.recv_timeout(LOOK) {
            Ok(line) => {
                since = Instant::now();
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
                let now = read_status(&status);
                if now.as_ref().map(|s| s.number) != last.as_ref().map(|s| s.number) {
                    last = now;
                    since = Instant::now();
                }
                let Some(status) = &last else { continue };
                if since.elapsed().as_secs_f64() > status.seconds {
                    hung = Some(status.seconds);
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
    let words: String = words.lines().next().unwrap_or_default().chars().take(200).collect();
    Ok(match (hung, ended) {
        (Some(seconds), _) => {
            End::Died(kernel, Why::Hung, format!("no answer within {seconds:.0} s"))
        }
        (None, status) => {
            let mut found = status.map_or("it ended".into(), how);
            if !words.is_empty() {
                found += ": ";
                found.extend(words.chars().filter(|c| !c.is_control()));
            }
            End::Died(kernel, Why::Crashed, found)
        }
    })
}

/// A child that does not outlive its supervisor's interest.
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

fn read_status(file: &tempfile::NamedTempFile) -> Option<Status> {
    // Torn writes do not parse; the next look sees more.
    serde_json::from_str(std::fs::read_to_string(file.path()).ok()?.trim()).ok()
}

/// How a process ended, in words.
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
