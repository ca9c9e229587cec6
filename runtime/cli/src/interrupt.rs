//! Ctrl+C: the first one is a request to stop, a second one before that is done ends the program.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_runtime::Cancel;

/// The exit code of a program that was interrupted, as shells have it: 128 and the signal's number.
const EXIT_CODE: u8 = 130;

/// A request to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on Ctrl+C is noted; another one ends the program as it would have otherwise. Where
    /// the signal was ignored, as by a shell for what it runs in the background, it stays ignored.
    #[must_use]
    pub fn watch() -> Self {
        let interrupt = Self::default();
        #[cfg(unix)]
        if !is_ignored() {
            use signal_hook::consts::SIGINT;
            use signal_hook::flag;

            // Where the system refuses, it ends the program as ever.
            let flag = || Arc::clone(&interrupt.0);
            drop(flag::register_conditional_default(SIGINT, flag()));
            drop(flag::register(SIGINT, flag()));
        }
        interrupt
    }

    /// From now on Ctrl+C is noted, to end an answer; another one before [`Interrupt::clear`] ends the program
    /// with the exit code of an interrupted one.
    #[must_use]
    pub fn watch_answers() -> Self {
        let interrupt = Self::default();
        #[cfg(unix)]
        if !is_ignored() {
            use signal_hook::consts::SIGINT;
            use signal_hook::flag;

            let flag = || Arc::clone(&interrupt.0);
            drop(flag::register_conditional_shutdown(SIGINT, EXIT_CODE.into(), flag()));
            drop(flag::register(SIGINT, flag()));
        }
        interrupt
    }

    /// The request as what takes long asks for it.
    pub fn cancel(&self) -> Cancel {
        let flag = Arc::clone(&self.0);
        Cancel::new(move || flag.load(Ordering::Relaxed))
    }

    /// Forgets that Ctrl+C was pressed.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Returns true once Ctrl+C was pressed.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The exit code of a program that did its work, or did it until it was interrupted.
    pub fn exit_code(&self) -> ExitCode {
        if self.is_requested() { ExitCode::from(EXIT_CODE) } else { ExitCode::SUCCESS }
    }
}

/// Returns true if the signal of Ctrl+C was ignored when the program began, and the system says so.
#[cfg(unix)]
fn is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal_hook::consts::SIGINT - 1) & 1 == 1
}
