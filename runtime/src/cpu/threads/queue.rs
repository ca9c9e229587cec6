//! Time that threads have been queued for a CPU: ready to run, but not running.

use std::time::Duration;

/// A thread of this process, by the system's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadId(
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux says"))] u32,
);

impl ThreadId {
    /// This thread.
    #[cfg(target_os = "linux")]
    pub(super) fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_pid().unsigned_abs())
    }

    /// This thread.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn current() -> Self {
        Self(0)
    }

    /// Returns the time that the thread has been queued for a CPU so far; `None` where the system
    /// does not say. Linux does in `/proc/PID/task/TID/schedstat`, see proc(5) and the kernel's
    /// `Documentation/scheduler/sched-stats.rst`.
    pub(super) fn queued(self) -> Option<Duration> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        parse(&std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.0)).ok()?)
    }
}

/// Reads `schedstat`: nanoseconds running, nanoseconds queued, and the number of time slices.
fn parse(schedstat: &str) -> Option<Duration> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().map(Duration::from_nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_the_time_queued() {
        assert_eq!(parse("14000000 2500 31\n"), Some(Duration::from_nanos(2500)));
        for odd in ["", "1", "1 x 2", "1 -2 3"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_says_how_long_this_thread_was_queued() {
        let there = std::path::Path::new("/proc/self/schedstat").exists();
        assert_eq!(ThreadId::current().queued().is_some(), there);
    }
}
