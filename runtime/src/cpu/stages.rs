//! Timing of the stages of the forward pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cpu::threads::Worker;

/// A kind of work between two barriers of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Embedding, norms, quantisation, activation, rotation, residuals.
    Elementwise,
    /// Ternary products of attention (q, k, v and output), including the preparation of their
    /// inputs.
    Ternary,
    /// Ternary products of gate and up.
    GateUp,
    /// Ternary product of down.
    Down,
    /// Attention over the KV cache.
    Attention,
    /// Final norm and logits.
    Head,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Elementwise, Self::Ternary, Self::GateUp, Self::Down, Self::Attention, Self::Head];
    /// The stages of ternary products.
    pub const PRODUCTS: [Self; 3] = [Self::Ternary, Self::GateUp, Self::Down];

    /// The name used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Elementwise => "elementwise",
            Self::Ternary => "ternary",
            Self::GateUp => "gate_up",
            Self::Down => "down",
            Self::Attention => "attention",
            Self::Head => "head",
        }
    }
}

/// Time per stage, measured by worker 0: its own work and its wait for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes([Duration; Stage::ALL.len()]);

impl StageTimes {
    /// The time of one stage.
    #[must_use]
    pub fn of(&self, stage: Stage) -> Duration {
        self.0[stage as usize]
    }

    /// Adds the times of another pass.
    pub(super) fn add(&mut self, other: Self) {
        for (sum, time) in self.0.iter_mut().zip(other.0) {
            *sum += time;
        }
    }
}

/// The clock of one pass. Only worker 0 reads and sets it; the values are atomic because all
/// workers share it.
pub(super) struct StageClock {
    start: Instant,
    /// Nanoseconds since `start` at the end of the last phase.
    last: AtomicU64,
    stages: [AtomicU64; Stage::ALL.len()],
}

impl StageClock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), stages: Default::default() }
    }

    /// Adds the time since the end of the last phase to a stage.
    pub(super) fn end_of(&self, stage: Stage, worker: &Worker<'_>) {
        if worker.index == 0 {
            // 2^64 nanoseconds are 584 years.
            let now = self.start.elapsed().as_nanos() as u64;
            let last = self.last.swap(now, Ordering::Relaxed);
            self.stages[stage as usize].fetch_add(now - last, Ordering::Relaxed);
        }
    }

    pub(super) fn times(self) -> StageTimes {
        StageTimes(self.stages.map(|ns| Duration::from_nanos(ns.into_inner())))
    }
}
