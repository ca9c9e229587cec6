//! Writing to what may be full for a while: a pipe whose other end is slow, where whoever made it asked
//! that writing does not wait (`O_NONBLOCK`, as event loops do).

use std::io::{self, StderrLock, StdoutLock, Write};
#[cfg(unix)]
use std::os::fd::AsFd;

/// A writer that waits for room where the file behind it does not.
#[derive(Debug)]
pub struct Patient<W>(
    /// The file.
    pub W,
);

/// Returns stdout, locked.
pub fn stdout() -> Patient<StdoutLock<'static>> {
    Patient(io::stdout().lock())
}

/// Returns stderr, locked.
pub fn stderr() -> Patient<StderrLock<'static>> {
    Patient(io::stderr().lock())
}

#[cfg(unix)]
impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_ready(|file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_ready(Write::flush)
    }
}

#[cfg(unix)]
impl<W: AsFd> Patient<W> {
    /// Repeats what would have to wait, each time when there is room.
    fn until_ready<T>(&mut self, mut act: impl FnMut(&mut W) -> io::Result<T>) -> io::Result<T> {
        use rustix::event::{PollFd, PollFlags, poll};
        use rustix::io::Errno;

        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            // A reader that has gone is ready, too: the next call says so.
            match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
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

#[cfg(all(test, unix))]
mod tests {
    use std::io::Read;

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

        // A reader that has gone is an error, not something to wait for.
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = Patient(writer).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
