//! Runs of a check: workers, and what becomes of their events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_profiles::{Isa, KernelId, Profile, Role, Shape};

use super::judge::{confirm, judge};
use super::prepare::{prepare, sparse_jobs};
use super::verdict::{Checked, RoleCheck};
use crate::findings::Findings;
use crate::protocol::{Event, LibraryFile, SparseJob, SparseTask, Work};
use crate::supervise::{self, Client, Notice, WorkerProgram};
use crate::{ModelInfo, Result};

/// CheckOptions of a check.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Threads.
    pub threads: usize,
    /// Time for all of it.
    pub budget: Duration,
    /// Program that is started as a worker.
    pub worker: WorkerProgram,
    /// Set to true, for example by a signal handler, to end the check with
    /// [`crate::Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

/// Times the picks of a profile again.
///
/// # Errors
/// Memory that the system refuses, a worker that cannot be started, a default that errs,
/// [`crate::Error::Stopped`].
pub fn check(
    profile: &Profile,
    model: &ModelInfo,
    options: &CheckOptions,
    notify: &mut dyn FnMut(Notice),
) -> Result<Checked> {
    let start = Instant::now();
    let (jobs, served, library, notes) = prepare(profile, model)?;
    let sparse = sparse_jobs(profile, model, &served)?;
    let left = |share: f64| {
        (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
    };
    let mut run = Checking {
        model,
        options,
        known: Findings::new(jobs),
        sparse,
        skips: false,
        library,
        seconds: 0.0,
        notify,
    };
    // A fifth of it is for activation sparsity.
    let part = if run.sparse.is_empty() { 0.0 } else { 0.2 };
    run.time(left(0.7 - part), || left(0.7))?;
    let measurements = run.known.measurements()?;
    let mut roles = judge(profile, &served, &measurements);
    if roles.iter().any(RoleCheck::lags) {
        let roles_of = |role: Role, parts: &[Shape]| -> Vec<&RoleCheck> {
            roles.iter().filter(|r| r.role == role && r.parts == *parts).collect()
        };
        for job in &mut run.known.jobs {
            let same = roles_of(job.plan.role, &job.plan.parts);
            if same.iter().all(|role| role.lost().next().is_none()) {
                job.plan.layouts.clear();
            }
        }
        let lags = |role: &&RoleCheck| role.sparse.as_ref().is_some_and(|s| s.lag.is_some());
        run.sparse.retain(|job| roles_of(job.role, &job.parts).iter().any(lags));
        run.known.units.clear();
        run.known.sparse.clear();
        let rest = left(1.0);
        run.time(rest * (1.0 - part), || left(1.0))?;
        confirm(&mut roles, judge(profile, &served, &run.known.measurements()?));
    }
    Ok(Checked {
        holds: roles.iter().all(RoleCheck::holds),
        limits: measurements.limits,
        noise: measurements.noise,
        disturbed: measurements.disturbed,
        roles,
        notes,
    })
}

/// A check under way.
struct Checking<'a> {
    model: &'a ModelInfo,
    options: &'a CheckOptions,
    known: Findings,
    /// Jobs with activation sparsity.
    sparse: Vec<SparseJob>,
    /// True if the next worker times these.
    skips: bool,
    library: Option<LibraryFile>,
    /// Seconds for the next worker.
    seconds: f64,
    notify: &'a mut dyn FnMut(Notice),
}

impl Checking<'_> {
    /// Times the picks within `seconds`, then activation sparsity within what `left` returns.
    fn time(&mut self, seconds: f64, left: impl Fn() -> f64) -> Result<()> {
        (self.seconds, self.skips) = (seconds, false);
        self.done_in_workers()?;
        if !self.sparse.is_empty() {
            (self.seconds, self.skips) = (left(), true);
            self.done_in_workers()?;
        }
        Ok(())
    }

    fn done_in_workers(&mut self) -> Result<()> {
        supervise::run(&self.options.worker, self.options.threads, self)
    }
}

impl Client for Checking<'_> {
    fn library(&self) -> Option<LibraryFile> {
        self.library.clone()
    }

    fn work(&mut self) -> Work {
        if self.skips {
            let is_out = |id: &KernelId| self.known.excluded.iter().any(|e| e.kernel == *id);
            let sound = |job: &&SparseJob| !job.kernels.iter().any(is_out);
            return Work::Sparse(SparseTask {
                jobs: self.sparse.iter().filter(sound).cloned().collect(),
                model_bytes: self.known.model_bytes(self.model),
                seconds: self.seconds,
            });
        }
        Work::Measure(Box::new(self.known.task(self.model, Isa::best(), self.seconds)))
    }

    fn is_stopped(&self) -> bool {
        self.options.stop.load(Ordering::Relaxed)
    }

    fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Progress { done, doing } => (self.notify)(Notice::Progress(done, doing)),
            Event::Note(line) => (self.notify)(Notice::Line(line)),
            Event::Excluded(excluded) => {
                (self.notify)(Notice::Line(self.known.objection(&excluded)?));
                self.known.excluded.push(excluded);
            }
            event => self.known.learn(event),
        }
        Ok(())
    }
}
