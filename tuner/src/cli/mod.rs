//! Subcommands of `bitnet-tune`: arguments, and a `run` each.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bitnet_profiles::{Effort, Isa, Objective, patient};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::cpu::threads::Pool;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::compile::{Toolchain, Workplace};
use crate::supervise::WorkerProgram;
use crate::{Notice, Options, Result};

pub mod check;
pub mod demo;
pub mod diff;
pub mod emit;
pub mod list;
mod output;
pub mod show;
pub mod tune;
pub mod worker;

/// Writes an answer to stdout, buffered.
fn answer(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = io::BufWriter::new(patient::stdout());
    let written = write(&mut out).and_then(|()| out.flush());
    Ok(written.map_err(|e| Error::io(Path::new("stdout"), "write", e))?)
}

/// Writes an answer as one JSON object, in ASCII: text from a file may hold escape sequences for
/// the terminal.
fn answer_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Runtime(format!("the answer has no JSON form: {e}")))?;
    answer(|out| {
        for c in text.chars() {
            if c.is_ascii() && c != '\u{7f}' {
                write!(out, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        writeln!(out)
    })
}

/// Writes a line to stderr; failures are ignored.
pub fn note(line: fmt::Arguments<'_>) {
    drop(writeln!(patient::stderr(), "{line}"));
}

/// Prints what clap has to say, help or what is wrong with the arguments, and ends the program.
pub fn end(message: &clap::Error) -> ! {
    let text = message.render();
    patient::show(message.use_stderr(), text.ansi(), &text);
    process::exit(message.exit_code())
}

/// Returns the number of threads: the flag's, or the physical cores. Warnings go to stderr.
fn threads(flag: Option<usize>) -> Result<usize> {
    let threads = flag.unwrap_or_else(|| Host::detect().physical_cores);
    if let Some(warning) = Pool::new(threads)?.warning() {
        note(format_args!("{warning}"));
    }
    Ok(threads)
}

/// Arguments of every way to tune.
#[derive(Debug, clap::Args)]
struct Common {
    /// Threads; the physical cores by default
    #[arg(long, short, value_name = "N")]
    threads: Option<usize>,
    /// Phase to tune for: decode, prefill, or four prompt tokens for each token written (balanced)
    #[arg(long = "for", value_name = "OBJECTIVE", default_value = "balanced")]
    objective: Objective,
}

impl Common {
    /// Collects the options for this host, with its toolchain and cache; without a journal.
    fn options(&self, ceiling: Isa, effort: Effort, budget: Duration) -> Result<Options> {
        let cache = Cache::of_user(|name| std::env::var_os(name)).map_err(|e| e.to_string());
        if let Ok(cache) = &cache {
            cache.remove_leftovers();
        }
        let stop = stopped_by_signals()?;
        let place = Workplace { cache: cache.as_ref().ok().cloned(), stop: Arc::clone(&stop) };
        Ok(Options {
            ceiling,
            objective: self.objective,
            effort,
            budget,
            threads: threads(self.threads)?,
            threads_fixed: self.threads.is_some(),
            worker: WorkerProgram::this()?,
            journal: None,
            resume: false,
            toolchain: match effort {
                Effort::Patient => match Toolchain::find(place) {
                    Ok(toolchain) => Ok(Arc::new(toolchain)),
                    Err(stopped @ crate::Error::Stopped { .. }) => return Err(stopped),
                    Err(why) => Err(why.to_string()),
                },
                Effort::Estimate | Effort::Measure => Err("only --effort patient does".into()),
            },
            cache,
            stop,
        })
    }
}

/// Returns a flag that the first Ctrl+C or SIGTERM sets to true; the second ends the program.
fn stopped_by_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds it false.
        flag::register_conditional_shutdown(
            signal,
            i32::from(crate::error::STOPPED),
            Arc::clone(&stop),
        )
        .and_then(|_| flag::register(signal, Arc::clone(&stop)))
        .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl+C: {e}")))?;
    }
    Ok(stop)
}

/// Parses `60s`, `500ms`, `2m` or a number of seconds.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("'{text}' is no time such as 60s, 500ms or 2m, at most a day");
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let unit = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

/// A progress bar on stderr, hidden where that is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(1000);
        // The default style serves should the template be refused.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {elapsed}  {msg}")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, notice: Notice) {
        match notice {
            Notice::Progress(done, doing) => {
                self.0.set_position((done * 1000.0) as u64);
                self.0.set_message(doing);
            }
            // The bar makes room for the line.
            Notice::Line(line) => self.0.suspend(|| note(format_args!("{line}"))),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("60s", 60_000), ("500ms", 500), ("2m", 120_000), ("1.5", 1500), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "nan", "inf", "1h", "1 s", "1e9m", "5sm", "\u{661}s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
