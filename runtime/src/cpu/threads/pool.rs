//! The thread pool: its threads, their life, and their common runs.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitnet_profiles::Pinning;

use super::affinity;
use super::claims::Claims;
use super::gate::{Gate, Poisoned, lock};
use super::governor::Governor;
use super::queue::ThreadId;
use super::shared::SharedSlice;
use crate::cpu::memory;
use crate::error::{Error, Result};

/// Most workers of a pool.
pub const MAX_THREADS: usize = 1024;

/// Iterations of a waiting loop before it sleeps: 20 to 100 microseconds, the length of a phase of
/// the forward pass rather than of the pause between two tokens.
const SPINS: u32 = 4096;

/// Options of a [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Number of workers, the calling thread included: 1 to [`MAX_THREADS`].
    pub threads: usize,
    /// Binding of workers to CPUs.
    pub pinning: Pinning,
    /// Spares workers where other programs need the CPUs: passes through a model take fewer while
    /// that is faster.
    pub spare: bool,
}

/// A fixed set of threads that run the same closure together, each on its share; the calling thread
/// is worker 0.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Held for the length of a run: runs started by several threads take turns.
    turn: Mutex<Governors>,
    handles: Vec<JoinHandle<()>>,
    /// The helpers, by number from 1.
    ids: Vec<ThreadId>,
    spare: bool,
    /// Fewest workers that have taken part in a run.
    fewest: AtomicUsize,
    cpus: usize,
    /// The CPU of worker 0, where workers are bound.
    home: Option<usize>,
    /// Reason for which workers are not bound although that was asked for.
    unpinned: Option<String>,
}

/// A kind of run, by what its workers do between two barriers. Each may be fastest with another
/// number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Work of microseconds.
    Short,
    /// Work of milliseconds, about a time slice of the scheduler.
    Long,
}

/// Choose the number of workers for runs that [`Pool::run_spared`] starts: one for each [`Load`].
type Governors = [Governor; 2];

/// One thread's view of a run.
#[derive(Debug)]
pub(crate) struct Worker<'run> {
    /// This worker's number, `0..threads`.
    pub index: usize,
    /// The number of workers in the run: those of the pool, or fewer.
    pub threads: usize,
    pub(super) shared: &'run Shared,
}

/// Bytes of the address space that a helper's stack takes.
const STACK: u64 = 2 << 20;

/// A closure that every worker runs, its lifetime erased; see the SAFETY notes in [`Pool::run`].
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

pub(super) struct Shared {
    pub(super) threads: usize,
    pub(super) spins: u32,
    /// Workers that take part in a run; the other helpers are parked. Changes only while no helper
    /// is in one, by whoever holds [`Pool::turn`].
    active: AtomicUsize,
    /// Opened once per run, after `job` was set. Without a job helpers beyond `active` park.
    start: Gate,
    /// Opened when `active` grows; parked helpers wait here.
    recall: Gate,
    /// Opened when the last helper has left the run.
    done: Gate,
    /// Opened when the last worker arrives at a barrier, and by a worker that panics.
    pub(super) meet: Gate,
    pub(super) arrived: AtomicUsize,
    /// Number of barriers that all workers have passed.
    pub(super) phase: AtomicUsize,
    /// Claimed parts of each worker's share.
    pub(super) claims: Box<[Claims]>,
    /// Helpers (workers other than 0) still in the run.
    running: AtomicUsize,
    /// Nanoseconds that workers have slept while they waited for others in runs.
    asleep: AtomicU64,
    pub(super) poisoned: AtomicBool,
    shutdown: AtomicBool,
    first_panic: Mutex<Option<String>>,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: the only field that is not Send and Sync by itself is `job`. It is written by the caller
// of `Pool::run` while it holds `turn` and no helper is in a run, and read by helpers only after
// `start` was opened (a release) and before they decrement `running` (which the caller waits for).
// The closure behind it is `Sync`, so every thread may call it.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("threads", &self.threads)
            .field("spins", &self.spins)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// True if this thread is inside a run, to refuse a nested one, which could only hang.
    static IN_RUN: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts `threads - 1` helper threads, `1 <= threads <= MAX_THREADS`, bound to no CPU.
    ///
    /// # Errors
    /// [`Error::Usage`] for a number out of bounds, [`Error::Runtime`] when the operating system
    /// refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with(PoolOptions { threads, pinning: Pinning::None, spare: false })
    }

    /// Starts a pool as [`Pool::new`] does, with workers bound to CPUs if asked for: worker by
    /// worker to those that the calling thread may use, one thread of every core before the second
    /// threads, fast cores before slow ones. Where binding fails, [`Pool::warning`] reports it.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with(options: PoolOptions) -> Result<Self> {
        let PoolOptions { threads, pinning, spare } = options;
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::usage(
                "threads",
                threads,
                format!("1 to {MAX_THREADS}; best the number of physical cores"),
            ));
        }
        memory::require(STACK * threads as u64, "the stacks of threads")?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut unpinned = None;
        let homes = match pinning {
            Pinning::None => Vec::new(),
            Pinning::Cores => homes(threads).unwrap_or_else(|why| {
                unpinned = Some(why);
                Vec::new()
            }),
        };
        let shared = Arc::new(Shared {
            threads,
            spins: if threads > cpus { 0 } else { SPINS },
            active: AtomicUsize::new(threads),
            start: Gate::default(),
            recall: Gate::default(),
            done: Gate::default(),
            meet: Gate::default(),
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            claims: (0..threads).map(|_| Claims::default()).collect(),
            running: AtomicUsize::new(0),
            asleep: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
            first_panic: Mutex::new(None),
            job: UnsafeCell::new(None),
        });
        let home = homes.first().copied();
        let mut pool = Self {
            shared,
            turn: Mutex::new([(); 2].map(|()| Governor::new(threads))),
            handles: Vec::new(),
            ids: Vec::new(),
            spare,
            fewest: AtomicUsize::new(threads),
            cpus,
            home,
            unpinned,
        };
        let (tell, told) = mpsc::channel();
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let (home, tell) = (homes.get(index).copied(), tell.clone());
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let bound = home.map(affinity::bind).transpose();
                    // The pool may have been given up because a thread could not be started.
                    let refused = bound.as_ref().err().map(ToString::to_string);
                    let _ = tell.send((index, ThreadId::current(), refused));
                    drop(tell);
                    help(&shared, index);
                })
                .map_err(|e| {
                    // Dropping `pool` stops the helpers that did start.
                    Error::Runtime(format!(
                        "cannot start thread {index} of {threads}: {e}; ask for fewer threads"
                    ))
                })?;
            pool.handles.push(handle);
        }
        drop(tell);
        // They tell in any order.
        let mut told: Vec<_> = told.into_iter().collect();
        told.sort_unstable_by_key(|&(index, ..)| index);
        for (_, id, refused) in told {
            pool.ids.push(id);
            if let Some(why) = refused {
                (pool.home, pool.unpinned) = (None, Some(why));
            }
        }
        Ok(pool)
    }

    /// Binding of the workers: as asked for, unless [`Pool::warning`] reports that none is bound.
    #[must_use]
    pub fn pinning(&self) -> Pinning {
        if self.home.is_some() { Pinning::Cores } else { Pinning::None }
    }

    /// The number of workers, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// The fewest workers that have taken part in a pass through a model so far: fewer than
    /// [`Pool::threads`] where other programs needed the CPUs.
    #[must_use]
    pub fn fewest(&self) -> usize {
        self.fewest.load(Ordering::Relaxed)
    }

    /// Returns one line to show the user when the pool has more threads than CPUs to run on, or
    /// when its threads are not bound to CPUs although that was asked for.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if self.threads() > self.cpus {
            return Some(format!(
                "{} threads on {} usable CPUs: waiting threads sleep instead of spinning, which is slower; use at most {} threads",
                self.threads(),
                self.cpus,
                self.cpus
            ));
        }
        let why = self.unpinned.as_ref()?;
        Some(format!("threads are not bound to CPUs, which may be slower: {why}"))
    }

    /// Runs `f` once on every worker that takes part, the calling thread being worker 0, and
    /// returns when all have finished. Every worker has to meet the same number of barriers. A run
    /// may not be started from inside a run.
    ///
    /// # Errors
    /// [`Error::Runtime`] with the first panic's message when a worker panicked.
    pub(crate) fn run<F: Fn(&Worker<'_>) + Sync>(&self, f: F) -> Result<()> {
        let _turn = self.turn()?;
        self.run_in_turn(f)
    }

    /// As [`Pool::run`], for `tokens` tokens that go through a model or a layer of it: runs of the
    /// same load and as many tokens take equally long. With [`PoolOptions::spare`], and where other
    /// programs need the CPUs, fewer workers take part in the runs that follow if that is faster:
    /// see [`Governor`].
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(crate) fn run_spared<F: Fn(&Worker<'_>) + Sync>(
        &self,
        load: Load,
        tokens: usize,
        f: F,
    ) -> Result<()> {
        let mut turn = self.turn()?;
        if !self.spare || self.threads() == 1 {
            return self.run_in_turn(f);
        }
        let governor = &mut turn[load as usize];
        let active = governor.active(tokens);
        self.regroup(active);
        let asleep = || Duration::from_nanos(self.shared.asleep.load(Ordering::Relaxed));
        let (start, before) = (Instant::now(), asleep());
        self.run_in_turn(f)?;
        let (time, asleep) = (start.elapsed(), asleep() - before);
        let workers = || self.ids[..active - 1].iter().copied().chain([ThreadId::current()]);
        let mut queued = || workers().map(ThreadId::queued).sum();
        governor.ran(tokens, time, asleep, &mut queued);
        Ok(())
    }

    /// Waits until no other thread runs anything, and keeps it so.
    fn turn(&self) -> Result<MutexGuard<'_, Governors>> {
        if IN_RUN.get() {
            return Err(Error::Runtime(
                "a run of the thread pool was started from inside a run".into(),
            ));
        }
        Ok(lock(&self.turn))
    }

    /// Lets `active` workers take part from the next run on, `1 <= active <= threads`. The caller
    /// holds [`Pool::turn`].
    fn regroup(&self, active: usize) {
        let shared = &*self.shared;
        let before = shared.active.load(Ordering::Relaxed);
        if active == before {
            return;
        }
        let fewer = active < before;
        // Those who wait for a run park, or parked ones return: all of the one kind answer.
        let asked = if fewer { before - 1 } else { shared.threads - before };
        shared.active.store(active, Ordering::Relaxed);
        shared.running.store(asked, Ordering::Relaxed);
        // SAFETY: no helper is in a run, and `turn` keeps other callers out.
        unsafe { *shared.job.get() = None };
        if fewer { &shared.start } else { &shared.recall }.open();
        self.wait_for_helpers();
        self.fewest.fetch_min(active, Ordering::Relaxed);
    }

    /// Waits until every helper that was asked has answered. Returns the time asleep.
    fn wait_for_helpers(&self) -> Duration {
        let (shared, mut asleep) = (&*self.shared, Duration::ZERO);
        // A loop, because the last opening of the previous run may come as late as this.
        loop {
            let seen = shared.done.seen();
            if shared.running.load(Ordering::Acquire) == 0 {
                return asleep;
            }
            asleep += shared.done.wait(seen, shared.spins);
        }
    }

    /// [`Pool::run`] by a caller that holds [`Pool::turn`].
    fn run_in_turn<F: Fn(&Worker<'_>) + Sync>(&self, f: F) -> Result<()> {
        // A CPU may have gone since the pool was made; then the run is only slower.
        let _bound = self.home.and_then(|cpu| affinity::bind(cpu).ok());
        let shared = &*self.shared;
        let active = shared.active.load(Ordering::Relaxed);
        let erased: *const (dyn Fn(&Worker<'_>) + Sync + '_) = &raw const f;
        // SAFETY: only the lifetime changes. The pointer is followed by helpers inside this call
        // only: it returns (and `f` is dropped) after `running` is back at 0.
        let job =
            unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), Job>(erased) };
        // SAFETY: no helper is in a run (the last one ended with `running` = 0, and `turn` keeps
        // other callers out), so nobody else looks at `job`.
        unsafe { *shared.job.get() = Some(job) };
        shared.running.store(active - 1, Ordering::Relaxed);
        shared.start.open();

        shared.work(0, active, &f);

        shared.slept(self.wait_for_helpers());
        // All have left: reset the barrier.
        shared.arrived.store(0, Ordering::Relaxed);
        for claims in &shared.claims {
            claims.0.iter().for_each(|claimed| claimed.store(0, Ordering::Relaxed));
        }
        if shared.poisoned.swap(false, Ordering::Relaxed) {
            let message = lock(&shared.first_panic).take();
            return Err(Error::Runtime(message.unwrap_or_else(|| "a worker panicked".into())));
        }
        Ok(())
    }
}

impl Pool {
    /// Fills `data`, every worker its share, so that the pages of a new buffer are allocated near
    /// the worker that reads them.
    ///
    /// # Errors
    /// [`Error::Runtime`] when a worker panicked.
    pub fn fill<T: Copy + Send + Sync>(&self, data: &mut [T], value: T) -> Result<()> {
        let len = data.len();
        let shared = SharedSlice::new(data);
        self.run(|worker| {
            // SAFETY: shares are disjoint.
            unsafe { shared.write(worker.share(len)) }.fill(value);
        })
    }

    /// Copies `data` into `out`, every worker its share.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they are not of the same length, or a worker panicked.
    pub fn copy(&self, data: &[u8], out: &mut [u8]) -> Result<()> {
        if data.len() != out.len() {
            let (from, to) = (data.len(), out.len());
            return Err(Error::Runtime(format!("cannot copy {from} bytes into {to}")));
        }
        let shared = SharedSlice::new(out);
        self.run(|worker| {
            let share = worker.share(data.len());
            // SAFETY: shares are disjoint.
            unsafe { shared.write(share.clone()) }.copy_from_slice(&data[share]);
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::Relaxed);
        self.shared.start.open();
        self.shared.recall.open();
        for handle in self.handles.drain(..) {
            // A helper catches every panic of a job, so there is nothing to report here.
            let _ = handle.join();
        }
    }
}

/// Returns a CPU for each of `threads` workers, or the reason for which there is none.
fn homes(threads: usize) -> std::result::Result<Vec<usize>, String> {
    let mut cpus = affinity::usable_in_order().map_err(|e| e.to_string())?;
    if cpus.len() < threads {
        return Err(format!("{threads} threads have only {} CPUs", cpus.len()));
    }
    cpus.truncate(threads);
    // Tried here, because worker 0 cannot report it later.
    cpus.first().map_or(Ok(()), |&cpu| affinity::bind(cpu).map(drop)).map_err(|e| e.to_string())?;
    Ok(cpus)
}

/// Runs a helper thread until the pool ends.
fn help(shared: &Shared, index: usize) {
    let (mut seen, mut parked) = (0, None);
    loop {
        match parked {
            None => {
                shared.start.wait(seen, shared.spins);
                // A run starts only after all helpers left the one before, so no opening is missed.
                seen = seen.wrapping_add(1);
            }
            // Sleeps at once: this may take seconds.
            Some(recalls) => drop(shared.recall.wait(recalls, 0)),
        }
        if shared.shutdown.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the gate was opened for a run or a change that counts on this helper: `job` is
        // set, and both it and the closure stay untouched until `running` is decremented below.
        let job = unsafe { *shared.job.get() };
        let active = shared.active.load(Ordering::Relaxed);
        if let Some(job) = job {
            // SAFETY: as above, the closure lives until then.
            shared.work(index, active, unsafe { &*job });
        } else {
            // Read before the answer below, so that no opening that follows it is missed.
            parked = (index >= active).then(|| shared.recall.seen());
            seen = shared.start.seen();
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.done.open();
        }
    }
}

impl Shared {
    /// Adds to the time that workers have slept in runs.
    pub(super) fn slept(&self, time: Duration) {
        if !time.is_zero() {
            // 2^64 nanoseconds are 584 years.
            self.asleep.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Runs the job as worker `index` of `threads`, turning a panic into a poisoned run.
    fn work(&self, index: usize, threads: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let worker = Worker { index, threads, shared: self };
        IN_RUN.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&worker)));
        IN_RUN.set(false);
        if let Err(payload) = outcome
            && !payload.is::<Poisoned>()
        {
            let text = panic_text(payload.as_ref());
            lock(&self.first_panic)
                .get_or_insert_with(|| format!("worker {index} panicked: {text}"));
            self.poisoned.store(true, Ordering::SeqCst);
            self.meet.open();
            // The payload of a panic may panic once more when it is dropped. Nothing may unwind out
            // of here while others use the job.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
        }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    #[test]
    fn every_worker_runs_once_with_its_own_index() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for _ in 0..50 {
                let seen: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                pool.run(|w| {
                    assert_eq!(w.threads, threads);
                    seen[w.index].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), 40_000);
    }

    #[test]
    fn a_panic_ends_the_run_with_an_error_and_the_pool_lives_on() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            // The last worker is worker 0 when there is one thread: callers are covered too.
            for culprit in [0, threads - 1] {
                for barriers_before in [0, 1, 5] {
                    let error = pool
                        .run(|w| {
                            for b in 0..10 {
                                if w.index == culprit && b == barriers_before {
                                    // Not panic!: the hook would print into the test's output.
                                    resume_unwind(Box::new("tensor on fire"));
                                }
                                w.barrier();
                            }
                        })
                        .unwrap_err();
                    assert!(matches!(error, Error::Runtime(_)));
                    let expected = format!("worker {culprit} panicked: tensor on fire");
                    assert_eq!(error.to_string(), expected);

                    let count = AtomicUsize::new(0);
                    pool.run(|w| {
                        w.barrier();
                        count.fetch_add(1, Ordering::Relaxed);
                        w.barrier();
                        assert_eq!(count.load(Ordering::Relaxed), threads);
                    })
                    .unwrap();
                }
            }
        }
    }

    /// A panic that unwinds out of a run would free the job while other workers still use it.
    #[test]
    fn a_payload_that_panics_when_dropped_ends_the_run_like_any_other() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                resume_unwind(Box::new("again"));
            }
        }
        let pool = Pool::new(2).unwrap();
        for culprit in [0, 1] {
            let run = |w: &Worker<'_>| {
                if w.index == culprit {
                    resume_unwind(Box::new(Bomb));
                }
                w.barrier();
            };
            let error = pool.run(run).unwrap_err();
            assert_eq!(error.to_string(), format!("worker {culprit} panicked: no message"));
            pool.run(|w| w.barrier()).unwrap();
        }
    }

    #[test]
    fn the_threads_of_helpers_are_known_by_number() {
        for _ in 0..20 {
            let pool = Pool::new(8).unwrap();
            let ids: [Mutex<Option<ThreadId>>; 8] = Default::default();
            pool.run(|w| *lock(&ids[w.index]) = Some(ThreadId::current())).unwrap();
            let found: Vec<ThreadId> = ids[1..].iter().map(|id| lock(id).unwrap()).collect();
            assert_eq!(found, pool.ids);
        }
    }

    #[test]
    fn helpers_park_and_return() {
        let pool = Pool::new(4).unwrap();
        for (round, active) in [3, 1, 2, 4, 2, 1, 4, 3, 4].into_iter().cycle().take(900).enumerate()
        {
            pool.regroup(active);
            for _ in 0..round % 3 {
                let seen: [AtomicUsize; 4] = Default::default();
                pool.run(|w| {
                    assert_eq!(w.threads, active);
                    seen[w.index].fetch_add(1, Ordering::Relaxed);
                    w.barrier();
                    let all = seen.iter().map(|s| s.load(Ordering::Relaxed)).sum::<usize>();
                    assert_eq!(all, active);
                })
                .unwrap();
            }
        }
        assert_eq!(pool.fewest(), 1);
        pool.regroup(2);
    }

    #[test]
    fn runs_from_several_threads_take_turns() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let callers = [(); 3].map(|()| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(|w| {
                            inside.fetch_add(1, Ordering::SeqCst);
                            w.barrier();
                            assert_eq!(inside.load(Ordering::SeqCst), 2);
                            w.barrier();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        })
                        .unwrap();
                    }
                })
            });
            callers.into_iter().for_each(|caller| caller.join().unwrap());
        });
    }

    #[test]
    fn a_nested_run_is_refused() {
        let pool = Pool::new(2).unwrap();
        let refused = AtomicUsize::new(0);
        pool.run(|_| {
            refused.fetch_add(usize::from(pool.run(|_| ()).is_err()), Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(refused.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn thread_counts_out_of_bounds_are_refused() {
        for threads in [0, MAX_THREADS + 1] {
            let error = Pool::new(threads).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(&threads.to_string()), "{error}");
        }
    }

    #[test]
    fn more_threads_than_cpus_warn_and_do_not_spin() {
        let cpus = std::thread::available_parallelism().unwrap().get();
        let many = Pool::new(cpus + 1).unwrap();
        assert_eq!(many.shared.spins, 0);
        assert!(many.warning().unwrap().contains(&cpus.to_string()));
        let one = Pool::new(1).unwrap();
        assert!(one.warning().is_none() && one.shared.spins > 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pinned_workers_have_a_cpu_each_and_the_caller_keeps_its_own() {
        let before = affinity::usable().unwrap();
        let order = affinity::usable_in_order().unwrap();
        let threads = order.len().min(4);
        let pool =
            Pool::with(PoolOptions { threads, pinning: Pinning::Cores, spare: false }).unwrap();
        assert_eq!((pool.pinning(), pool.warning()), (Pinning::Cores, None));
        let of_worker = || {
            let found: Vec<Mutex<Vec<usize>>> = (0..threads).map(|_| Mutex::default()).collect();
            pool.run(|w| *lock(&found[w.index]) = affinity::usable().unwrap()).unwrap();
            found.into_iter().map(|cpus| cpus.into_inner().unwrap()).collect::<Vec<_>>()
        };
        let expected: Vec<Vec<usize>> = order[..threads].iter().map(|&cpu| vec![cpu]).collect();
        for _ in 0..3 {
            assert_eq!(of_worker(), expected);
            assert_eq!(affinity::usable().unwrap(), before);
        }
        // Holds whichever thread the caller is.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert_eq!(of_worker(), expected);
                assert_eq!(affinity::usable().unwrap(), before);
            });
            other.join().unwrap();
        });
        // Holds however the run ends.
        pool.run(|_| resume_unwind(Box::new("no"))).unwrap_err();
        assert_eq!(affinity::usable().unwrap(), before);
        // A pool without pinning binds nobody, even beside a pinned one.
        let free = Pool::new(threads).unwrap();
        assert_eq!(free.pinning(), Pinning::None);
        free.run(|_| assert_eq!(affinity::usable().unwrap(), before)).unwrap();
        drop(pool);
        assert_eq!(affinity::usable().unwrap(), before);
    }

    #[test]
    fn threads_without_a_cpu_each_are_not_pinned() {
        // Where the system binds none, one thread is too many.
        let threads = affinity::usable().map_or(1, |cpus| cpus.len() + 1);
        let pool =
            Pool::with(PoolOptions { threads, pinning: Pinning::Cores, spare: false }).unwrap();
        assert_eq!(pool.pinning(), Pinning::None);
        let warning = pool.warning().unwrap();
        assert!(warning.contains(" CPUs") && warning.lines().count() == 1, "{warning}");
        pool.run(|w| w.barrier()).unwrap();
    }
}
