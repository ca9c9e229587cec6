//! The thread pool: every worker runs the same closure (SPMD) and meets the others at barriers.
//!
//! Decoding one token is one [`Pool::run`]; inside it the phases of the forward pass are separated
//! by [`Worker::barrier`]. A wait spins for a bounded time, because the others are usually
//! microseconds away, and then sleeps in the kernel. When the pool has more threads than the
//! process may use CPUs, spinning would only keep the others from running, so waits sleep at once
//! (see [`Pool::warning`]).
//!
//! Workers may be bound to CPUs, one each ([`PoolOptions::pinning`]). Helpers are bound for life;
//! worker 0 is somebody else's thread and is bound for the length of a run only, so that threads it
//! starts between runs, and whoever asks how many CPUs there are, find what they would without a
//! pool. That costs 2.5 microseconds a run (Zen 5, in a VM): a part in a thousand of a token of a
//! model of 1 GB, and more than it gains with one of a few MB.
//!
//! A worker that panics poisons the run: everyone else leaves at the next barrier, [`Pool::run`]
//! returns an error, and the pool is ready for the next run.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use bitnet_profiles::Pinning;

mod affinity;

use crate::error::{Error, Result};

/// The largest pool that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Iterations of a waiting loop before it sleeps: 20 to 100 microseconds, the length of a phase of
/// the forward pass rather than of the pause between two tokens.
const SPINS: u32 = 4096;

/// What a [`Pool`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Workers, the caller of [`Pool::run`] included: 1 to [`MAX_THREADS`].
    pub threads: usize,
    /// How they are bound to CPUs.
    pub pinning: Pinning,
}

/// A fixed set of threads that run one closure together; the caller of [`Pool::run`] is worker 0.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Held for the length of a run: runs started by several threads take turns.
    turn: Mutex<()>,
    handles: Vec<JoinHandle<()>>,
    cpus: usize,
    /// The CPU of worker 0, where workers are bound.
    home: Option<usize>,
    /// Why workers are not bound although that was asked for.
    unpinned: Option<String>,
}

/// One thread's view of a run.
#[derive(Debug)]
pub struct Worker<'run> {
    /// This worker's number, `0..threads`.
    pub index: usize,
    /// The number of workers in the run.
    pub threads: usize,
    shared: &'run Shared,
}

/// A closure that every worker runs, its lifetime erased; see the SAFETY notes in [`Pool::run`].
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    threads: usize,
    spins: u32,
    /// Opened once per run, after `job` was set.
    start: Gate,
    /// Opened when the last helper has left the run.
    done: Gate,
    /// Opened when the last worker arrives at a barrier, and by a worker that panics.
    meet: Gate,
    arrived: AtomicUsize,
    /// Barriers that all workers have passed.
    phase: AtomicUsize,
    /// What was claimed of each worker's share.
    claims: Box<[Claims]>,
    /// Helpers (workers other than 0) still in the run.
    running: AtomicUsize,
    poisoned: AtomicBool,
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

/// The payload that carries a worker out of a poisoned run; it never reaches the panic hook.
struct Poisoned;

thread_local! {
    /// Whether this thread is inside a run, to refuse a nested one, which could only hang.
    static IN_RUN: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts `threads - 1` helper threads, `1 <= threads <= MAX_THREADS`, bound to no CPU.
    ///
    /// # Errors
    /// [`Error::Usage`] for a number out of bounds, [`Error::Runtime`] when the operating system
    /// refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with(PoolOptions { threads, pinning: Pinning::None })
    }

    /// As [`Pool::new`], with workers bound to CPUs if asked for: worker by worker to those that
    /// the calling thread may use, one thread of every core before the second threads, fast cores
    /// before slow ones. Where that is not to be had, [`Pool::warning`] says so.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with(options: PoolOptions) -> Result<Self> {
        let PoolOptions { threads, pinning } = options;
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::usage(
                "threads",
                threads,
                format!("1 to {MAX_THREADS}; best the number of physical cores"),
            ));
        }
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
            start: Gate::default(),
            done: Gate::default(),
            meet: Gate::default(),
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            claims: (0..threads).map(|_| Claims::default()).collect(),
            running: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
            first_panic: Mutex::new(None),
            job: UnsafeCell::new(None),
        });
        let home = homes.first().copied();
        let mut pool =
            Self { shared, turn: Mutex::new(()), handles: Vec::new(), cpus, home, unpinned };
        let (tell, told) = mpsc::channel();
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let (home, tell) = (homes.get(index).copied(), tell.clone());
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let bound = home.map(affinity::bind).transpose();
                    // The pool may have been given up for want of a thread.
                    let _ = tell.send(bound.as_ref().err().map(ToString::to_string));
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
        if !homes.is_empty()
            && let Some(why) = told.into_iter().find_map(|refused| refused)
        {
            (pool.home, pool.unpinned) = (None, Some(why));
        }
        Ok(pool)
    }

    /// How workers are bound: as was asked for, unless [`Pool::warning`] says that none is.
    #[must_use]
    pub fn pinning(&self) -> Pinning {
        if self.home.is_some() { Pinning::Cores } else { Pinning::None }
    }

    /// The number of workers, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// One line to show the user when the pool has more threads than CPUs to run on, or when its
    /// threads are not bound to CPUs although that was asked for.
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

    /// Runs `f` once on every worker, the calling thread being worker 0, and returns when all have
    /// finished. Every worker has to meet the same number of barriers. A run may not be started
    /// from inside a run.
    ///
    /// # Errors
    /// [`Error::Runtime`] with the first panic's message when a worker panicked.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&self, f: F) -> Result<()> {
        if IN_RUN.get() {
            return Err(Error::Runtime(
                "a run of the thread pool was started from inside a run".into(),
            ));
        }
        let _turn = lock(&self.turn);
        // A CPU may have gone since the pool was made; then the run is only slower.
        let _bound = self.home.and_then(|cpu| affinity::bind(cpu).ok());
        let shared = &*self.shared;
        let helpers = shared.threads - 1;
        let erased: *const (dyn Fn(&Worker<'_>) + Sync + '_) = &raw const f;
        // SAFETY: only the lifetime changes. The pointer is followed by helpers inside this call
        // only: it returns (and `f` is dropped) after `running` is back at 0.
        let job =
            unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), Job>(erased) };
        // SAFETY: no helper is in a run (the last one ended with `running` = 0, and `turn` keeps
        // other callers out), so nobody else looks at `job`.
        unsafe { *shared.job.get() = Some(job) };
        shared.running.store(helpers, Ordering::Relaxed);
        shared.start.open();

        shared.work(0, &f);

        // A loop, because the last opening of the run before may come as late as this.
        loop {
            let seen = shared.done.seen();
            if shared.running.load(Ordering::Acquire) == 0 {
                break;
            }
            shared.done.wait(seen, shared.spins);
        }
        // Everyone has left: make the barrier whole again.
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
    /// Fills `data`, every worker its share, so that the pages of a new buffer come into being
    /// where their reader runs.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn fill<T: Copy + Send + Sync>(&self, data: &mut [T], value: T) -> Result<()> {
        let len = data.len();
        let shared = SharedSlice::new(data);
        self.run(|worker| {
            // SAFETY: shares are disjoint.
            unsafe { shared.write(worker.share(len)) }.fill(value);
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::Relaxed);
        self.shared.start.open();
        for handle in self.handles.drain(..) {
            // A helper catches every panic of a job, so there is nothing to report here.
            let _ = handle.join();
        }
    }
}

/// A CPU for each of `threads` workers, or why there is none.
fn homes(threads: usize) -> std::result::Result<Vec<usize>, String> {
    let mut cpus = affinity::usable_in_order().map_err(|e| e.to_string())?;
    if cpus.len() < threads {
        return Err(format!("{threads} threads have only {} CPUs", cpus.len()));
    }
    cpus.truncate(threads);
    // Tried here, because worker 0 has nobody to tell later.
    cpus.first().map_or(Ok(()), |&cpu| affinity::bind(cpu).map(drop)).map_err(|e| e.to_string())?;
    Ok(cpus)
}

/// The life of a helper thread.
fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        shared.start.wait(seen, shared.spins);
        // A run starts only after all helpers left the one before, so no opening is missed.
        seen = seen.wrapping_add(1);
        if shared.shutdown.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: `start` was opened for a run that counts on this helper: `job` is set, and both
        // it and the closure stay untouched until `running` is decremented below.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: as above, the closure lives until then.
            shared.work(index, unsafe { &*job });
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.done.open();
        }
    }
}

impl Shared {
    /// Runs the job as worker `index`, turning a panic into a poisoned run.
    fn work(&self, index: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let worker = Worker { index, threads: self.threads, shared: self };
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
        }
    }
}

impl Worker<'_> {
    /// Waits until every worker of the run has arrived. What was written before the barrier by any
    /// worker is visible to all after it.
    ///
    /// When another worker has panicked this unwinds out of the job, quietly.
    pub fn barrier(&self) {
        let shared = self.shared;
        // It stays until all are here, and so does what is claimed in the next phase unused.
        let phase = shared.phase.load(Ordering::Relaxed);
        shared.claims[self.index].of(phase + 1).store(0, Ordering::Relaxed);
        if shared.threads == 1 {
            shared.phase.store(phase + 1, Ordering::Relaxed);
            return;
        }
        // Order matters: a panicking worker sets `poisoned` and then opens `meet`, so whoever
        // reads the gate after that opening sees the flag here, and whoever reads it before does
        // not sleep below.
        let seen = shared.meet.seen();
        if !shared.poisoned.load(Ordering::SeqCst) {
            if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
                shared.arrived.store(0, Ordering::Relaxed);
                shared.phase.store(phase + 1, Ordering::Relaxed);
                shared.meet.open();
            } else {
                shared.meet.wait(seen, shared.spins);
            }
        }
        if shared.poisoned.load(Ordering::SeqCst) {
            resume_unwind(Box::new(Poisoned));
        }
    }

    /// One of `0..n` that no worker has claimed since the last barrier, or none where all are: those of
    /// its own [`Worker::share`] in order, then those of others' from the end. Between two barriers there
    /// is one `n`.
    #[must_use]
    pub fn claim(&self, n: usize) -> Option<usize> {
        let phase = self.shared.phase.load(Ordering::Relaxed);
        (0..self.threads).find_map(|other| {
            let owner = (self.index + other) % self.threads;
            let share = self.share_of(owner, n);
            let claimed = self.shared.claims[owner].of(phase);
            let claim = if other == 0 { Claims::FIRST } else { Claims::LAST };
            let (first, last) = Claims::split(claimed.load(Ordering::Relaxed));
            if first + last >= share.len() {
                return None;
            }
            // As many claims as there are parts find fewer before them, each another sum.
            let (first, last) = Claims::split(claimed.fetch_add(claim, Ordering::Relaxed));
            let part =
                if other == 0 { share.start + first } else { share.end.wrapping_sub(last + 1) };
            (first + last < share.len()).then_some(part)
        })
    }

    /// This worker's part of `0..n`: contiguous, in worker order, sizes differing by at most one.
    #[must_use]
    pub fn share(&self, n: usize) -> Range<usize> {
        self.share_of(self.index, n)
    }

    /// As [`Worker::share`], that of any worker.
    #[must_use]
    pub fn share_of(&self, index: usize, n: usize) -> Range<usize> {
        let (size, longer) = (n / self.threads, n % self.threads);
        let start = index * size + index.min(longer);
        start..start + size + usize::from(index < longer)
    }
}

/// What was claimed of a worker's share, in this phase and the next by turns: so many parts from its
/// beginning in the low half, from its end in the high one. Two cache lines, as they may be fetched in
/// pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Claims([AtomicU64; 2]);

impl Claims {
    /// A claim from the beginning, and one from the end.
    const FIRST: u64 = 1;
    const LAST: u64 = 1 << 32;

    fn of(&self, phase: usize) -> &AtomicU64 {
        &self.0[phase % 2]
    }

    /// Parts from the beginning and from the end.
    fn split(claimed: u64) -> (usize, usize) {
        (claimed as u32 as usize, (claimed >> 32) as usize)
    }
}

/// A counter that threads wait on: bounded spin, then sleep.
#[derive(Debug, Default)]
struct Gate {
    openings: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    /// The number of openings so far; to be read before the event that will open it is provoked.
    fn seen(&self) -> u32 {
        self.openings.load(Ordering::SeqCst)
    }

    /// Waits until the number of openings is no longer `seen`.
    fn wait(&self, seen: u32, spins: u32) {
        for _ in 0..spins {
            if self.openings.load(Ordering::Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        // Sequentially consistent on both sides: either `open` sees this sleeper and takes the
        // lock to wake it, or this thread sees the opening before it sleeps.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.lock);
        while self.openings.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets everyone who waits go on.
    fn open(&self) {
        self.openings.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper that missed the opening holds the lock until it really sleeps.
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }
}

/// Locks a mutex whose data cannot be left half-written by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A slice whose elements are written by several workers, each its own part.
///
/// Rust cannot see that the parts are disjoint, so access is unsafe. The rule that makes it sound
/// is checked per *phase*, the stretch of a run between two barriers: in one phase an element is
/// either touched by one worker only, or read by any number and written by none.
pub struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out what the exclusive borrow it was made from could give to one thread at a
// time (`&mut T`, hence `T: Send`) or to several (`&T`, hence `T: Sync`).
unsafe impl<T: Send + Sync> Sync for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Borrows `slice` exclusively for as long as the workers share it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), data: PhantomData }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of it, to be shared by the same rule.
    ///
    /// # Panics
    /// When the range leaves the slice.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> SharedSlice<'_, T> {
        self.check(&range);
        // In bounds of the slice borrowed in `new`.
        let start = self.start.wrapping_add(range.start);
        SharedSlice { start, len: range.len(), data: PhantomData }
    }

    /// The first element, for what writes parts that are no ranges. The rule above holds for them too.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// Reads a range.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// While the result lives, no worker holds a result of [`Self::write`] that overlaps `range`.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        self.check(&range);
        // SAFETY: in bounds of the slice borrowed in `new`; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes a range.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// While the result lives, no worker, this one included, holds another result of
    /// [`Self::read`] or [`Self::write`] that overlaps `range`.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "handing out disjoint parts is this type's purpose; the contract is above"
    )]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: in bounds of the slice borrowed in `new`; the caller excludes all other access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range {range:?} leaves a shared slice of {} elements",
            self.len
        );
    }
}

impl<T> std::fmt::Debug for SharedSlice<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSlice({} elements)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

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
    fn shares_cover_everything_once_in_order() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for n in [0, 1, 2, 7, 8, 9, 1000] {
                let parts: Vec<Mutex<Range<usize>>> =
                    (0..threads).map(|_| Mutex::new(0..0)).collect();
                pool.run(|w| *lock(&parts[w.index]) = w.share(n)).unwrap();
                let mut next = 0;
                for part in &parts {
                    let part = lock(part).clone();
                    assert_eq!(part.start, next);
                    assert!(part.len() == n / threads || part.len() == n / threads + 1);
                    next = part.end;
                }
                assert_eq!(next, n);
            }
        }
    }

    #[test]
    fn everything_is_claimed_once_in_every_phase() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for run in 0..20 {
                let claimed: Vec<Mutex<Vec<usize>>> = (0..7).map(|_| Mutex::default()).collect();
                pool.run(|w| {
                    for (phase, claimed) in claimed.iter().enumerate() {
                        // One is late, each time another.
                        if (phase + run) % threads == w.index {
                            std::thread::yield_now();
                        }
                        while let Some(part) = w.claim(phase * phase) {
                            lock(claimed).push(part);
                        }
                        w.barrier();
                    }
                })
                .unwrap();
                for (phase, claimed) in claimed.iter().enumerate() {
                    let mut claimed = lock(claimed).clone();
                    claimed.sort_unstable();
                    assert!(claimed.into_iter().eq(0..phase * phase), "{threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_worker_begins_with_its_own_share_and_takes_the_last_of_others() {
        let pool = Pool::new(2).unwrap();
        let first = Mutex::new(Vec::new());
        pool.run(|w| {
            if w.index == 0 {
                lock(&first).extend(std::iter::from_fn(|| w.claim(6)));
            }
            w.barrier();
        })
        .unwrap();
        assert_eq!(*lock(&first), [0, 1, 2, 5, 4, 3]);
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

    #[test]
    fn runs_from_several_threads_take_turns() {
        let pool = Pool::new(2).unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
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
                });
            }
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
        let pool = Pool::with(PoolOptions { threads, pinning: Pinning::Cores }).unwrap();
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
        // Whichever thread the caller is.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(of_worker(), expected);
                assert_eq!(affinity::usable().unwrap(), before);
            });
        });
        // However the run ends.
        pool.run(|_| resume_unwind(Box::new("no"))).unwrap_err();
        assert_eq!(affinity::usable().unwrap(), before);
        // A pool that is not asked to pins nobody, though a pinned one is there.
        let free = Pool::new(threads).unwrap();
        assert_eq!(free.pinning(), Pinning::None);
        free.run(|_| assert_eq!(affinity::usable().unwrap(), before)).unwrap();
        drop(pool);
        assert_eq!(affinity::usable().unwrap(), before);
    }

    #[test]
    fn threads_without_a_cpu_each_are_not_pinned() {
        // Where the system binds none, one is too many.
        let threads = affinity::usable().map_or(1, |cpus| cpus.len() + 1);
        let pool = Pool::with(PoolOptions { threads, pinning: Pinning::Cores }).unwrap();
        assert_eq!(pool.pinning(), Pinning::None);
        let warning = pool.warning().unwrap();
        assert!(warning.contains(" CPUs") && warning.lines().count() == 1, "{warning}");
        pool.run(|w| w.barrier()).unwrap();
    }

    #[test]
    fn a_range_outside_a_shared_slice_panics() {
        let mut data = [0u8; 4];
        let shared = SharedSlice::new(&mut data);
        // SAFETY: one thread, one access at a time.
        let outside = catch_unwind(AssertUnwindSafe(|| unsafe { shared.read(3..5).len() }));
        assert!(outside.is_err());
    }
}
