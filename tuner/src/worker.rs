//! Worker: the child process in which candidates run, so that a crash or hang costs no more than
//! one of them.
//!
//! It ends when stdin does, as its parent is gone then.

use std::fs::File;
use std::io::{self, BufRead, Read};

use bitnet_runtime::Error;
use bitnet_runtime::cpu::threads::Pool;

use crate::Result;
use crate::protocol::{Event, LibraryFile, Reporter, Task, Work};
use crate::timing::present::Present;
use crate::timing::{comparison, jobs, placement, sparse};

/// Runs a worker; errors are reported as events.
///
/// # Errors
/// Only where there is nobody to tell: stdin holds no task, stdout is closed.
pub fn run() -> Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|e| Error::io(stdin(), "read", e))?;
    let task = Task::parse(&line)?;
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
    let mut reporter = Reporter::new(status);
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
        Work::Placement(task) => {
            let timings = placement::measure(task, &present, reporter)?;
            reporter.send(&Event::Placements(timings))
        }
        Work::Sparse(sparse) => {
            let pool = Pool::new(task.threads)?;
            let units = sparse::measure(sparse, (&pool, &present), reporter)?;
            reporter.send(&Event::Sparse(units))
        }
        Work::Comparison(task) => {
            let comparison = comparison::measure(task, reporter)?;
            reporter.send(&Event::Comparison(comparison))
        }
    }
}
