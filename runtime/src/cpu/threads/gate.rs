//! Gates and barriers, on which threads wait for one another: bounded spin, then sleep.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pool::Worker;

/// A counter that threads wait on: bounded spin, then sleep.
#[derive(Debug, Default)]
pub(super) struct Gate {
    openings: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    /// Returns the number of openings so far; to be read before the event that will open it is
    /// provoked.
    pub(super) fn seen(&self) -> u32 {
        self.openings.load(Ordering::SeqCst)
    }

    /// Waits until the number of openings is no longer `seen`. Returns the time asleep.
    pub(super) fn wait(&self, seen: u32, spins: u32) -> Duration {
        for _ in 0..spins {
            if self.openings.load(Ordering::Acquire) != seen {
                return Duration::ZERO;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        // Sequentially consistent on both sides: either `open` sees this sleeper and takes the
        // lock to wake it, or this thread sees the opening before it sleeps.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.lock);
        while self.openings.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        start.elapsed()
    }

    /// Lets all waiting threads go on.
    pub(super) fn open(&self) {
        self.openings.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper that missed the opening holds the lock until it really sleeps.
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }
}

/// The payload that carries a worker out of a poisoned run; it never reaches the panic hook.
pub(super) struct Poisoned;

impl Worker<'_> {
    /// Waits until every worker of the run has arrived. Writes before the barrier by any worker are
    /// visible to all after it.
    ///
    /// If another worker has panicked, this unwinds out of the job without a message.
    pub fn barrier(&self) {
        let shared = self.shared;
        // The phase stays the same until all are here, and the claims of the next phase stay
        // unused.
        let phase = shared.phase.load(Ordering::Relaxed);
        shared.claims[self.index].of(phase + 1).store(0, Ordering::Relaxed);
        if self.threads == 1 {
            shared.phase.store(phase + 1, Ordering::Relaxed);
            return;
        }
        // Order matters: a panicking worker sets `poisoned` and then opens `meet`, so whoever
        // reads the gate after that opening sees the flag here, and whoever reads it before does
        // not sleep below.
        let seen = shared.meet.seen();
        if !shared.poisoned.load(Ordering::SeqCst) {
            if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
                shared.arrived.store(0, Ordering::Relaxed);
                shared.phase.store(phase + 1, Ordering::Relaxed);
                shared.meet.open();
            } else {
                shared.slept(shared.meet.wait(seen, shared.spins));
            }
        }
        if shared.poisoned.load(Ordering::SeqCst) {
            resume_unwind(Box::new(Poisoned));
        }
    }
}

/// Locks a mutex whose data cannot be left half-written by a panic.
#[cfg(not(tsan))]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks as above, but never waits in the standard library, where ThreadSanitizer does not see the
/// order of the threads.
#[cfg(tsan)]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::cpu::threads::{Pool, SharedSlice};

    /// Each worker writes its cell, and after the barrier reads its neighbour's: a barrier that
    /// lets anyone through early, or does not publish the write, shows as a stale value.
    #[test]
    fn barriers_separate_phases() {
        for (threads, rounds) in [(1, 100_000), (2, 100_000), (3, 20_000), (8, 5_000)] {
            let pool = Pool::new(threads).unwrap();
            let mut cells = vec![0u64; threads];
            let cells = SharedSlice::new(&mut cells);
            let wrong = AtomicU64::new(0);
            pool.run(|w| {
                for round in 1..=rounds {
                    // SAFETY: each worker writes its own cell in this phase, nobody reads.
                    unsafe { cells.write(w.index..w.index + 1)[0] = round };
                    w.barrier();
                    let next = (w.index + 1) % threads;
                    // SAFETY: nobody writes in this phase.
                    if unsafe { cells.read(next..next + 1)[0] } != round {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    w.barrier();
                }
            })
            .unwrap();
            assert_eq!(wrong.load(Ordering::Relaxed), 0, "{threads} threads");
        }
    }
}
