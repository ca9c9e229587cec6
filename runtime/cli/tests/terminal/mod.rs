//! A program in a terminal of its own, as a user sits before it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, Winsize, tcflow, tcsetwinsize};

/// Time after which a program that says nothing new is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(60);

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

/// The number of `write` among system calls.
const WRITE: &str = if cfg!(target_arch = "x86_64") { "1" } else { "64" };

/// A terminal with a program in it.
pub struct Terminal {
    child: Child,
    screen: File,
    /// What the program has written, without escape sequences.
    seen: String,
    /// The beginning of a character or an escape sequence, of which the rest is still to come.
    rest: Vec<u8>,
    /// Bytes of it that were waited for already.
    passed: usize,
}

impl Terminal {
    /// Starts a program, whose stdin, stdout and stderr are the terminal.
    pub fn start(command: Command) -> Self {
        Self::open(command, false)
    }

    /// Starts a program whose stdin and stdout are a terminal that takes nothing, so that its first write to stdout
    /// lasts. (A terminal that is stopped by a key goes on whenever its settings change, as they do at a prompt.)
    pub fn start_stopped(command: Command) -> Self {
        Self::open(command, true)
    }

    fn open(mut command: Command, is_stopped: bool) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let screen = openpt(flags).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        tcsetwinsize(&screen, Winsize { ws_row: 40, ws_col: 2000, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        let name = ptsname(&screen, Vec::new()).unwrap();
        let end: OwnedFd =
            open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let stdio = || Stdio::from(end.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio()).env("TERM", "xterm");
        if is_stopped {
            tcflow(&end, Action::OOff).unwrap();
            command.stderr(Stdio::null());
        }
        // SAFETY: between fork and exec only two system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(std::io::stdin().as_fd())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let (seen, rest) = (String::new(), Vec::new());
        Self { child, screen: File::from(screen), seen, rest, passed: 0 }
    }

    /// Types a text.
    pub fn send(&mut self, keys: &str) {
        self.screen.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the main thread sleeps in a write, and returns the number of times that it has gone to sleep.
    pub fn wait_for_a_write(&self) -> u64 {
        let mut slept = 0;
        let call = format!("/proc/{}/syscall", self.child.id());
        self.wait_until("writes nothing", || {
            // It has not been awake while its call was looked at.
            let before = self.sleep();
            let call = std::fs::read_to_string(&call).unwrap();
            slept = before.unwrap_or(0);
            slept > 0 && call.split(' ').next() == Some(WRITE) && self.sleep() == before
        });
        slept
    }

    /// The number of times that the main thread has gone to sleep, if it sleeps now.
    fn sleep(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        value("State:").filter(|state| state.starts_with('S'))?;
        value("voluntary_ctxt_switches:")?.parse().ok()
    }

    /// Sends the signal of Ctrl+C to a program whose main thread sleeps in a write. (The key would let stopped output
    /// go on.)
    pub fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Waits until a program that has slept so often in a write has taken a signal, and sleeps in the write again.
    /// A signal that is not pending any more may still be before its handler's first instruction, and another one
    /// would then go to another thread.
    pub fn wait_until_taken(&self, slept: u64) {
        self.wait_until("takes no signal", || self.sleep().is_some_and(|now| now > slept));
    }

    fn wait_until(&self, failure: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "the program {failure}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Types a line.
    pub fn line(&mut self, line: &str) {
        self.send(&format!("{line}\r"));
    }

    /// Waits for a text behind the last one that was waited for, and returns what came before it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let shown = self.shows(text);
        let rest = &self.seen[self.passed..];
        assert!(shown, "the terminal closed before {text:?}: {rest:?}");
        let (before, _) = rest.split_once(text).unwrap();
        let before = before.to_owned();
        self.passed += before.len() + text.len();
        before
    }

    /// Waits until the program writes a text behind the last one that was waited for, or ends. Returns false
    /// where it ends.
    pub fn shows(&mut self, text: &str) -> bool {
        let start = Instant::now();
        while !self.seen[self.passed..].contains(text) {
            if !self.read() {
                return false;
            }
            let rest = &self.seen[self.passed..];
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {rest:?}");
        }
        true
    }

    /// Waits for the prompt of a new message, and returns what came before it.
    pub fn prompt(&mut self) -> String {
        self.wait_for(">>> ")
    }

    /// Reads what there is, for a moment. Returns false at the end.
    fn read(&mut self) -> bool {
        let mut ready = [PollFd::new(&self.screen, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if poll(&mut ready, Some(&moment)).unwrap() == 0 {
            return true;
        }
        let mut bytes = [0; 4096];
        match self.screen.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                self.rest.extend(&bytes[..n]);
                let whole = whole(&self.rest);
                self.seen += &plain(&String::from_utf8_lossy(&self.rest[..whole]));
                self.rest.drain(..whole);
                true
            }
            // The program has closed its end.
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }

    /// Waits for the end of the program, and returns its status and what it wrote last.
    pub fn end(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        while self.read() {
            assert!(start.elapsed() < PATIENCE, "it does not end: {:?}", &self.seen[self.passed..]);
        }
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(5));
        };
        (status, self.seen[self.passed..].to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended, or the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of bytes up to the last character and escape sequence that are there as a whole.
fn whole(bytes: &[u8]) -> usize {
    let end = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    let Some(start) = bytes[..end].iter().rposition(|&byte| byte == b'\x1b') else { return end };
    let is_over = match bytes[start + 1..end] {
        [b'[', ref rest @ ..] => rest.iter().any(|byte| (b'@'..=b'~').contains(byte)),
        [_, ..] => true,
        [] => false,
    };
    if is_over { end } else { start }
}

/// A text without the escape sequences of a terminal, and without carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {}
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\x1b' => drop(chars.next()),
            _ => out.push(c),
        }
    }
    out
}
