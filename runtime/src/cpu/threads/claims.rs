//! Shares of the work, and work stealing: a worker that has finished its share takes pieces from the
//! end of another's.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pool::Worker;

/// Number of parts claimed of a worker's share, for alternate phases: those from its beginning in
/// the low half, those from its end in the high half. Two cache lines, as they may be fetched in
/// pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Claims(pub(super) [AtomicU64; 2]);

impl Claims {
    /// One claim from the beginning, and one from the end.
    const FIRST: u64 = 1;
    const LAST: u64 = 1 << 32;

    pub(super) fn of(&self, phase: usize) -> &AtomicU64 {
        &self.0[phase % 2]
    }

    /// Splits the counts of parts claimed from the beginning and from the end.
    fn split(claimed: u64) -> (usize, usize) {
        (claimed as u32 as usize, (claimed >> 32) as usize)
    }
}

impl Worker<'_> {
    /// Claims one of `0..n` that no worker has claimed since the last barrier, or none where all
    /// are: first those of this worker's [`Worker::share`] in order, then those of others' from the
    /// end. `n` is the same for all calls between two barriers.
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
            // As many claims as there are parts see a smaller sum before them, each a different
            // one.
            let (first, last) = Claims::split(claimed.fetch_add(claim, Ordering::Relaxed));
            let part =
                if other == 0 { share.start + first } else { share.end.wrapping_sub(last + 1) };
            (first + last < share.len()).then_some(part)
        })
    }

    /// Returns this worker's part of `0..n`: contiguous, in worker order, sizes differing by at
    /// most one.
    #[must_use]
    pub fn share(&self, n: usize) -> Range<usize> {
        self.share_of(self.index, n)
    }

    /// Returns the [`Worker::share`] of worker `index`.
    #[must_use]
    pub fn share_of(&self, index: usize, n: usize) -> Range<usize> {
        let (size, longer) = (n / self.threads, n % self.threads);
        let start = index * size + index.min(longer);
        start..start + size + usize::from(index < longer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::cpu::threads::Pool;
    use crate::cpu::threads::gate::lock;

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
                        // One worker is late, each time another.
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
}
