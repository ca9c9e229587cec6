//! Writing to what may be full for a while, and reading from what may be empty: a pipe whose other end is
//! slow, where whoever made it asked that nobody waits (`O_NONBLOCK`, as event loops do).

use std::fmt::Display;
use std::io::{self, IsTerminal, Read, StderrLock, StdinLock, StdoutLock, Write};
#[cfg(unix)]
use std::os::fd::AsFd;

#[cfg(unix)]
use rustix::event::{PollFd, PollFlags, poll};
#[cfg(unix)]
use rustix::io::Errno;

/// A writer that waits for room, or a reader that waits for bytes, where the file behind it does not.
#[derive(Debug)]
pub struct Patient<W>(
    /// The file.
    pub W,
);

/// Returns stdin, locked.
pub fn stdin() -> Patient<StdinLock<'static>> {
    Patient(io::stdin().lock())
}

/// Returns stdout, locked.
pub fn stdout() -> Patient<StdoutLock<'static>> {
    Patient(io::stdout().lock())
}

/// Returns stderr, locked.
pub fn stderr() -> Patient<StderrLock<'static>> {
    Patient(io::stderr().lock())
}

/// Writes a message to stderr or stdout, in its styled form where that is a terminal. Nobody is left to
/// be told of an error.
pub fn show(on_stderr: bool, styled: impl Display, plain: impl Display) {
    let (mut out, is_terminal): (Box<dyn Write>, _) = if on_stderr {
        (Box::new(stderr()), io::stderr().is_terminal())
    } else {
        (Box::new(stdout()), io::stdout().is_terminal())
    };
    let _ = if is_terminal { write!(out, "{styled}") } else { write!(out, "{plain}") };
    let _ = out.flush();
}

#[cfg(unix)]
impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_ready(PollFlags::OUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_ready(PollFlags::OUT, Write::flush)
    }
}

#[cfg(unix)]
impl<R: Read + AsFd> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_ready(PollFlags::IN, |file| file.read(buffer))
    }
}

#[cfg(unix)]
impl<F: AsFd> Patient<F> {
    /// Repeats what would have to wait, each time when the file is ready for it.
    fn until_ready<T>(
        &mut self,
        ready: PollFlags,
        mut act: impl FnMut(&mut F) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            // Where the other end has gone, it is ready too: the next call says so.
            match poll(&mut [PollFd::new(&self.0, ready)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(not(unix))]
impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(not(unix))]
impl<R: Read> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn h5_a_full_pipe_that_does_not_wait_is_waited_for() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut filled = 0;
        while let Ok(n) = writer.write(&[b'.'; 4096]) {
            filled += n;
        }
        let text: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        let expected = text.clone();
        let thread = std::thread::spawn(move || Patient(writer).write_all(&text));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(&read[filled..], expected);

        // So is an empty one.
        let (reader, mut writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&reader, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let thread = std::thread::spawn(move || {
            let mut read = String::new();
            Patient(reader).read_to_string(&mut read).map(|_| read)
        });
        for part in ["slow", "ly"] {
            std::thread::sleep(std::time::Duration::from_millis(20));
            writer.write_all(part.as_bytes()).unwrap();
        }
        drop(writer);
        assert_eq!(thread.join().unwrap().unwrap(), "slowly");

        // A reader that has gone is an error, not something to wait for.
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = Patient(writer).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
