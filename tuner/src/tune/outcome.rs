//! Options and outcome of a tuning run.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_profiles::{Effort, Isa, Objective, Profile};
use bitnet_runtime::cpu::kernels::cache::Cache;

use crate::compile::Compiler;
use crate::journal::Journal;
use crate::measure::{Comparison, Measurements, PlacementTiming};
use crate::supervise::WorkerProgram;

/// Options of a tuning run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Best tier that may be used; one that this CPU has.
    pub ceiling: Isa,
    /// Weights of decode and prefill.
    pub objective: Objective,
    /// Number of candidates to try.
    pub effort: Effort,
    /// Time for all of it.
    pub budget: Duration,
    /// Threads.
    pub threads: usize,
    /// True if the user named the threads, so that no others are tried.
    pub threads_fixed: bool,
    /// Program that is started as a worker.
    pub worker: WorkerProgram,
    /// Path of the journal; none to keep nothing.
    pub journal: Option<PathBuf>,
    /// True to continue with that journal.
    pub resume: bool,
    /// Compiler of kernels on this host, or why there is none.
    pub toolchain: std::result::Result<Arc<dyn Compiler>, String>,
    /// Cache for kernels that win.
    pub cache: std::result::Result<Cache, String>,
    /// Set to true, for example by a signal handler, to end the run with [`crate::Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Options {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Outcome of a tuning run.
#[derive(Debug)]
pub struct Tuned {
    /// Measurements.
    pub measurements: Measurements,
    /// Timings of placements; the first is the untuned one.
    pub placements: Vec<PlacementTiming>,
    /// Weights of decode and prefill.
    pub objective: Objective,
    /// The profile.
    pub profile: Profile,
    /// Comparison on the model, or why there was none.
    pub comparison: std::result::Result<Comparison, String>,
    /// True if the profile holds the untuned defaults, because the choices were slower on the
    /// model.
    pub kept_default: bool,
    /// Outcome for kernels made for the model's own shapes.
    pub made: Made,
    pub(super) journal: Option<Journal>,
}

/// Outcome for kernels made for the model's own shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// They were not asked for, or there are none worth making.
    Nothing,
    /// Number of kernels that were made and took part.
    Tried(usize),
    /// They were not made.
    NotTried {
        /// Number of kernels that there would be.
        count: usize,
        /// Reason, and what it would take.
        why: String,
    },
    /// Some won, but cannot be kept: the profile names built-in ones.
    NotKept {
        /// Number of kernels that won.
        count: usize,
        /// Reason.
        why: String,
    },
}

impl Tuned {
    /// Removes the journal, once the profile is safe.
    pub fn finish(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }
}

#[cfg(test)]
impl Tuned {
    /// Makes an outcome.
    pub(crate) fn for_tests(
        measurements: Measurements,
        objective: Objective,
        profile: Profile,
        comparison: std::result::Result<Comparison, String>,
        made: Made,
        kept_default: bool,
    ) -> Self {
        let (placements, journal) = (Vec::new(), None);
        Self {
            measurements,
            placements,
            objective,
            profile,
            comparison,
            kept_default,
            made,
            journal,
        }
    }
}

/// Returns the seconds until a share of the budget is spent.
pub(super) fn left(options: &Options, start: Instant, share: f64) -> f64 {
    (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
}
