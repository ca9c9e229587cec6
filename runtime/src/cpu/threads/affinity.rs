//! CPU affinity of threads: binding, and the order in which workers take CPUs.

use std::cmp::Reverse;
use std::fs;
use std::path::Path;

use crate::cpu::host::cpu_list;

pub use system::{bind, usable};

/// Returns the CPUs that this thread may use, in the order in which workers take them.
///
/// # Errors
/// The system's error; [`std::io::ErrorKind::Unsupported`] where threads cannot be bound.
pub fn usable_in_order() -> std::io::Result<Vec<usize>> {
    Ok(in_order(Path::new("/sys/devices"), &usable()?))
}

/// Orders CPUs: one thread of every core before the second threads, among these the faster cores
/// first, among equals the lower number. Properties missing from `devices` (`/sys/devices`) make no
/// difference.
fn in_order(devices: &Path, usable: &[usize]) -> Vec<usize> {
    let read = |path: &str| fs::read_to_string(devices.join(path)).unwrap_or_default();
    let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
    // Intel's hybrid CPUs list their performance cores here.
    let performance = cpu_list(&read("cpu_core/cpus"));
    let mut order = usable.to_vec();
    order.sort_by_cached_key(|&cpu| {
        let of_cpu = |name: &str| read(&format!("system/cpu/cpu{cpu}/{name}"));
        let siblings = cpu_list(&of_cpu("topology/thread_siblings_list"));
        let earlier = siblings.iter().filter(|&&s| s < cpu && usable.contains(&s)).count();
        let speed = (
            performance.contains(&cpu),
            number(of_cpu("cpu_capacity")),
            number(of_cpu("cpufreq/cpuinfo_max_freq")),
        );
        (earlier, Reverse(speed), cpu)
    });
    order
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Returns the CPUs that this thread may use, ascending.
    pub fn usable() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
    }

    /// Binds this thread to one CPU, until the result is dropped.
    pub fn bind(cpu: usize) -> io::Result<Bound> {
        let before = sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one)?;
        Ok(Bound { before })
    }

    /// Binding of a thread to a CPU; dropped, by the same thread, it restores the CPUs used before.
    #[derive(Debug)]
    #[must_use]
    pub struct Bound {
        before: CpuSet,
    }

    impl Drop for Bound {
        fn drop(&mut self) {
            // If none of those CPUs is left, the system has already chosen others.
            let _ = sched_setaffinity(None, &self.before);
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use std::io;

    pub fn usable() -> io::Result<Vec<usize>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not bind threads"))
    }

    pub fn bind(_cpu: usize) -> io::Result<Bound> {
        usable().map(|_| Bound)
    }

    #[derive(Debug)]
    #[must_use]
    pub struct Bound;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a folder like `/sys/devices` with the files given.
    fn devices(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn cores_come_before_their_second_threads_and_fast_ones_before_slow_ones() {
        let siblings = |pairs: &[(usize, &'static str)]| -> Vec<(String, &'static str)> {
            let name = |cpu| format!("system/cpu/cpu{cpu}/topology/thread_siblings_list");
            pairs.iter().map(|&(cpu, list)| (name(cpu), list)).collect()
        };
        let per_cpu = |name: &str, values: &[&'static str]| -> Vec<(String, &'static str)> {
            let name = |cpu| format!("system/cpu/cpu{cpu}/{name}");
            values.iter().enumerate().map(|(cpu, &value)| (name(cpu), value)).collect()
        };
        let adjacent = siblings(&[(0, "0-1\n"), (1, "0-1\n"), (2, "2-3\n"), (3, "2-3\n")]);
        let apart = siblings(&[(0, "0,2\n"), (1, "1,3\n"), (2, "0,2\n"), (3, "1,3\n")]);
        // Two performance cores of two threads, and two efficient ones.
        let hybrid = [adjacent.clone(), siblings(&[(4, "4\n"), (5, "5\n")])].concat();
        let listed = [hybrid.clone(), vec![("cpu_core/cpus".into(), "0-3\n")]].concat();
        let frequency = per_cpu(
            "cpufreq/cpuinfo_max_freq",
            &["5000000\n", "5000000\n", "5100000\n", "5100000\n", "3900000\n", "3900000\n"],
        );
        let clocked = [hybrid, frequency].concat();
        let little_first = per_cpu("cpu_capacity", &["446\n", "446\n", "1024\n", "1024\n"]);
        // Node 0 has CPUs 0, 1, 4 and 5, node 1 the others.
        let nodes = [("0,4\n", [0, 4]), ("1,5\n", [1, 5]), ("2,6\n", [2, 6]), ("3,7\n", [3, 7])];
        let nodes: Vec<_> =
            nodes.iter().flat_map(|&(list, pair)| siblings(&pair.map(|cpu| (cpu, list)))).collect();
        let one_and_two = nodes.clone();
        type Files = Vec<(String, &'static str)>;
        let cases: &[(&str, Files, &[usize], &[usize])] = &[
            ("nothing known", vec![], &[0, 1, 5], &[0, 1, 5]),
            ("adjacent siblings", adjacent.clone(), &[0, 1, 2, 3], &[0, 2, 1, 3]),
            ("siblings apart", apart, &[0, 1, 2, 3], &[0, 1, 2, 3]),
            ("a cpuset with second threads only", adjacent, &[1, 3], &[1, 3]),
            ("H07 hybrid, listed", listed, &[0, 1, 2, 3, 4, 5], &[0, 2, 4, 5, 1, 3]),
            ("H07 hybrid, by clock", clocked, &[0, 1, 2, 3, 4, 5], &[2, 0, 4, 5, 3, 1]),
            (
                "H09 two nodes, with second threads behind all cores",
                nodes,
                &[0, 1, 2, 3, 4, 5, 6, 7],
                &[0, 1, 2, 3, 4, 5, 6, 7],
            ),
            ("H09 two nodes, of one a single CPU", one_and_two, &[1, 2, 6], &[1, 2, 6]),
            ("big.LITTLE", little_first, &[0, 1, 2, 3], &[2, 3, 0, 1]),
            (
                "nonsense",
                per_cpu("cpu_capacity", &["x", "", "-1", "9"]),
                &[0, 1, 2, 3],
                &[3, 0, 1, 2],
            ),
        ];
        for (name, files, usable, expected) in cases {
            let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), *t)).collect();
            let dir = devices(&files);
            assert_eq!(in_order(dir.path(), usable), *expected, "{name}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_bound_thread_gets_its_cpus_back() {
        let before = usable().unwrap();
        assert!(!before.is_empty());
        let mut ordered = usable_in_order().unwrap();
        ordered.sort_unstable();
        assert_eq!(ordered, before);
        for &cpu in &before {
            let bound = bind(cpu).unwrap();
            assert_eq!(usable().unwrap(), [cpu]);
            drop(bound);
            assert_eq!(usable().unwrap(), before);
        }
        // A CPU that does not exist, or may not be used.
        let other = (0..1024).rev().find(|cpu| !before.contains(cpu)).unwrap();
        assert!(bind(other).is_err());
        assert_eq!(usable().unwrap(), before);
    }
}
