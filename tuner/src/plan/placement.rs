//! Placements worth timing: numbers of threads, pinning and pages.

use bitnet_profiles::{Pinning, Run};
use bitnet_runtime::cpu::host::Host;

/// Returns the untuned placement: not pinned, huge pages.
pub fn untuned(threads: usize) -> Run {
    Run { threads: threads as u32, pinning: Pinning::None, huge_pages: true }
}

/// Lists the placements worth timing on a host, the untuned one first; `fixed` keeps to `threads`.
pub fn candidates(host: &Host, threads: usize, fixed: bool) -> Vec<Run> {
    let run =
        |threads: usize, pinning, huge_pages| Run { threads: threads as u32, pinning, huge_pages };
    let mut all = vec![untuned(threads)];
    let mut add = |new: Run| {
        if !all.contains(&new) {
            all.push(new);
        }
    };
    add(run(threads, Pinning::Cores, true));
    add(run(threads, Pinning::None, false));
    if !fixed {
        // Memory may be exhausted by fewer threads than there are cores, and a core that waits for
        // memory can serve a second thread meanwhile.
        let cores = host.physical_cores;
        for threads in [host.threads, cores.div_ceil(2), (3 * cores).div_ceil(4)] {
            add(run(threads, Pinning::None, true));
        }
        add(run(host.threads, Pinning::Cores, true));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(physical_cores: usize, threads: usize) -> Host {
        Host { physical_cores, threads, ..Host::detect() }
    }

    #[test]
    fn the_untuned_setting_comes_first_and_none_twice() {
        let all = candidates(&host(8, 16), 8, false);
        assert_eq!(all[0], Run { threads: 8, pinning: Pinning::None, huge_pages: true });
        let threads: Vec<u32> = all.iter().map(|run| run.threads).collect();
        assert_eq!(threads, [8, 8, 8, 16, 4, 6, 16]);
        for (i, run) in all.iter().enumerate() {
            assert!(!all[..i].contains(run), "{run:?}");
        }
        assert!(candidates(&host(8, 16), 3, true).iter().all(|run| run.threads == 3));
        assert!(candidates(&host(1, 1), 1, false).iter().all(|run| run.threads == 1));
    }
}
