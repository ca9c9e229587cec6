//! Journal of a run, for `--resume`: one line of JSON for each result, in a file beside the output.
//! The first line says what was being tuned. A line that was cut short, because the machine or the
//! program stopped in the middle of it, does not count.

use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use bitnet_profiles::destination;
use bitnet_runtime::Error;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::protocol::Event;

/// Identity of a run: a journal counts for no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalHeader {
    /// Version of the tuner.
    pub version: String,
    /// Fingerprint of the generator.
    pub fingerprint: String,
    /// The CPU.
    pub cpu: String,
    /// The model's shapes.
    pub shapes: String,
    /// Threads.
    pub threads: usize,
    /// Hash over everything that is to be measured.
    pub plan: String,
}

impl JournalHeader {
    /// Describes the first field in which `other` differs.
    fn difference(&self, other: &Self) -> Option<String> {
        let Self { version, fingerprint, cpu, shapes, threads, plan } = other;
        let differs = |name: &str, own: &str, other: &str| {
            (own != other).then(|| format!("it is for {name} {other}, not {own}"))
        };
        differs("version", &self.version, version)
            .or_else(|| differs("generator", &self.fingerprint, fingerprint))
            .or_else(|| differs("CPU", &self.cpu, cpu))
            .or_else(|| differs("shapes", &self.shapes, shapes))
            .or_else(|| differs("threads:", &self.threads.to_string(), &threads.to_string()))
            .or_else(|| differs("candidates", &self.plan, plan))
    }
}

/// The journal of a run, locked for as long as it lives.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Returns the path of the journal for an output file; none beside a device or a pipe.
    pub fn path_for(output: &Path) -> Option<PathBuf> {
        if destination::is_stream(output) {
            return None;
        }
        let mut name = output.file_name().unwrap_or_default().to_os_string();
        name.push(".journal");
        Some(output.with_file_name(name))
    }

    /// Opens the journal at `path` and locks it. Its content stays until [`Journal::begin`].
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Runtime`] when another run holds it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io(path, "create", e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "{}: another bitnet-tune is writing it; wait for it, or name another file with -o",
                    path.display()
                );
                return Err(Error::Runtime(message).into());
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts anew, or with `resume` continues. Returns the events of the file, and why there are
    /// none although `resume` was set.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or written.
    pub fn begin(
        &mut self,
        header: &JournalHeader,
        resume: bool,
    ) -> Result<(Vec<Event>, Option<String>)> {
        let (kept, events, why) = if resume {
            self.read(header).map_err(|e| Error::io(&self.path, "read", e))?
        } else {
            (0, Vec::new(), None)
        };
        let mut start = || -> io::Result<()> {
            self.file.set_len(kept)?;
            self.file.seek(io::SeekFrom::End(0))?;
            if kept == 0 {
                write_line(&mut self.file, header)?;
            }
            Ok(())
        };
        start().map_err(|e| {
            if kept == 0 {
                // Half a header is none.
                let _ = self.file.set_len(0);
            }
            Error::io(&self.path, "write", e)
        })?;
        Ok((events, why))
    }

    /// Reads the number of bytes that hold whole lines for `header`, their events, and why there
    /// are none.
    fn read(&mut self, header: &JournalHeader) -> io::Result<(u64, Vec<Event>, Option<String>)> {
        let nothing = |why: &str| Ok((0, Vec::new(), Some(why.to_string())));
        self.file.rewind()?;
        let mut reader = BufReader::new(&self.file);
        let mut line = Vec::new();
        let mut kept = reader.read_until(b'\n', &mut line)? as u64;
        if line.is_empty() {
            return nothing("there is no journal");
        }
        let whole = line.last() == Some(&b'\n');
        let Some(found) = serde_json::from_slice::<JournalHeader>(&line).ok().filter(|_| whole)
        else {
            return nothing("the journal has no header that this version reads");
        };
        if let Some(difference) = header.difference(&found) {
            return nothing(&difference);
        }
        let mut events = Vec::new();
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line)?;
            if bytes == 0 || line.last() != Some(&b'\n') {
                break;
            }
            let Ok(event) = serde_json::from_slice(&line) else { break };
            events.push(event);
            kept += bytes as u64;
        }
        Ok((kept, events, None))
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn add(&mut self, event: &Event) -> Result<()> {
        let path = &self.path;
        Ok(write_line(&mut self.file, event).map_err(|e| Error::io(path, "write", e))?)
    }

    /// Removes the file, as the run is over.
    pub fn remove(self) {
        // One that stays is taken for unfinished, no worse.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Journal {
    /// Removes a journal that is empty.
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn write_line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> JournalHeader {
        JournalHeader {
            version: "1".into(),
            fingerprint: "f".into(),
            cpu: "c".into(),
            shapes: "s".into(),
            threads: 2,
            plan: "p".into(),
        }
    }

    /// Opens and begins.
    fn start(
        path: &Path,
        header: &JournalHeader,
        resume: bool,
    ) -> (Journal, Vec<Event>, Option<String>) {
        let mut journal = Journal::open(path).unwrap();
        let (events, why) = journal.begin(header, resume).unwrap();
        (journal, events, why)
    }

    fn event(n: usize) -> Event {
        Event::Progress { done: n as f64 / 8.0, doing: "x".repeat(n) }
    }

    #[test]
    fn what_was_written_is_read_up_to_any_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = Journal::path_for(&dir.path().join("host.toml")).unwrap();
        assert_eq!(path.file_name().unwrap(), "host.toml.journal");
        let (mut journal, events, why) = start(&path, &header(), true);
        assert!(events.is_empty() && why.unwrap().contains("no journal"));
        (0..4).for_each(|n| journal.add(&event(n)).unwrap());
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == b'\n').collect();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, events, why) = start(&path, &header(), true);
            let lines = ends.iter().filter(|&&end| end < cut).count();
            assert_eq!(
                events,
                (0..lines.saturating_sub(1)).map(event).collect::<Vec<_>>(),
                "{cut}"
            );
            assert_eq!(why.is_some(), cut <= ends[0], "{cut}");
            // What follows is whole again.
            journal.add(&event(7)).unwrap();
            drop(journal);
            let (_, events, _) = start(&path, &header(), true);
            assert_eq!(events.last(), Some(&event(7)), "{cut}");
        }
    }

    #[test]
    fn another_run_s_journal_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let write = || {
            let (mut journal, ..) = start(&path, &header(), false);
            journal.add(&event(1)).unwrap();
        };
        type Change = fn(&mut JournalHeader);
        let changes: [(Change, &str); 4] = [
            (|h| h.cpu = "d".into(), "CPU"),
            (|h| h.threads = 3, "threads"),
            (|h| h.plan = "q".into(), "candidates"),
            (|h| h.fingerprint = "g".into(), "generator"),
        ];
        for (change, says) in changes {
            write();
            let mut other = header();
            change(&mut other);
            let (_, events, why) = start(&path, &other, true);
            assert!(events.is_empty() && why.unwrap().contains(says), "{says}");
        }
        write();
        assert_eq!(start(&path, &header(), true).1.len(), 1);
        assert_eq!(start(&path, &header(), false).1.len(), 0);
    }

    #[test]
    fn two_runs_cannot_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (first, ..) = start(&path, &header(), false);
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("another bitnet-tune"), "{error}");
        first.remove();
        assert!(!path.exists());
        // What another run left is there to go on with; what none has written goes.
        std::fs::write(&path, "x").unwrap();
        drop(Journal::open(&path).unwrap());
        assert!(path.exists());
        std::fs::write(&path, "").unwrap();
        drop(Journal::open(&path).unwrap());
        assert!(!path.exists());
    }
}
