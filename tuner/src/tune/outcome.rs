//! How to tune, and what comes of it.

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

/// How to tune.
#[derive(Debug, Clone)]
pub struct Options {
    /// The best tier that may be used; one that this CPU has.
    pub ceiling: Isa,
    /// What to weigh.
    pub objective: Objective,
    /// How many candidates to try.
    pub effort: Effort,
    /// How long all of it may take.
    pub budget: Duration,
    /// Threads.
    pub threads: usize,
    /// Whether they were asked for, so that no others are tried.
    pub threads_fixed: bool,
    /// What becomes a worker.
    pub worker: WorkerProgram,
    /// Where to keep what was learnt until the profile is written; none to keep nothing.
    pub journal: Option<PathBuf>,
    /// Whether to go on with that journal.
    pub resume: bool,
    /// What makes kernels on this host, or why nothing does.
    pub toolchain: std::result::Result<Arc<dyn Compiler>, String>,
    /// Where those that win are kept.
    pub cache: std::result::Result<Cache, String>,
    /// Set, from a signal handler for one, to end the run with [`crate::Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Options {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Tuned {
    /// What was measured.
    pub measurements: Measurements,
    /// What the ways to run showed; the first is the untuned one.
    pub placements: Vec<PlacementTiming>,
    /// What was weighed.
    pub objective: Objective,
    /// The profile.
    pub profile: Profile,
    /// The default and the profile on the model itself, or why they were not compared.
    pub comparison: std::result::Result<Comparison, String>,
    /// Whether the profile holds the untuned defaults, because the choices were slower on the model.
    pub kept_default: bool,
    /// What became of kernels for the model's own shapes.
    pub made: Made,
    pub(super) journal: Option<Journal>,
}

/// What became of kernels for the model's own shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// They were not asked for, or there are none worth making.
    Nothing,
    /// So many were made and took part.
    Tried(usize),
    /// They were not made.
    NotTried {
        /// How many there would be.
        count: usize,
        /// Why, and what it would take.
        why: String,
    },
    /// Some won, but cannot be kept: the profile names built-in ones.
    NotKept {
        /// How many won.
        count: usize,
        /// Why.
        why: String,
    },
}

impl Tuned {
    /// Ends the run: the profile is safe, its journal can go.
    pub fn finish(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }
}

#[cfg(test)]
impl Tuned {
    /// A run that has come to this.
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

/// Seconds until so large a share of the budget is spent.
pub(super) fn left(options: &Options, start: Instant, share: f64) -> f64 {
    (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
}
