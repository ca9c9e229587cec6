//! Description of the host for tuning profiles and reports. Nothing here decides what runs: CPU
//! features are detected in [`bitnet_profiles::Isa`] alone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

/// The CPU and its caches; 0 or `unknown` where the system does not report a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The CPU's name.
    pub cpu: String,
    /// Vendor as the CPU reports it: `GenuineIntel`, `AuthenticAMD`; on ARM the implementer's
    /// number.
    pub vendor: String,
    /// Family number; 8 on 64-bit ARM.
    pub family: u32,
    /// Model number; the part number on ARM.
    pub model: u32,
    /// Stepping number; the revision on ARM.
    pub stepping: u32,
    /// Physical cores that this process may use; at least 1.
    pub physical_cores: usize,
    /// Hardware threads that this process may use; at least 1.
    pub threads: usize,
    /// Bytes of L2 cache of one core.
    pub l2: u64,
    /// Bytes of all L3 caches of the CPUs listed, shared ones counted once.
    pub l3: u64,
}

impl Host {
    /// Detects this machine, from `/proc/cpuinfo` and `/sys/devices/system/cpu` where they exist.
    #[must_use]
    pub fn detect() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let usable = list.map(cpu_list);
        Self::from_parts(&cpuinfo, Path::new("/sys/devices/system/cpu"), usable.as_ref(), threads)
    }

    /// Builds the description from its sources. `usable`: the CPUs this process may run on, where
    /// that is known.
    fn from_parts(
        cpuinfo: &str,
        cpus: &Path,
        usable: Option<&BTreeSet<usize>>,
        threads: usize,
    ) -> Self {
        // The first entry only; cores of other kinds, if any, come later.
        let fields: BTreeMap<&str, &str> = cpuinfo
            .lines()
            .skip_while(|line| line.trim().is_empty())
            .take_while(|line| !line.trim().is_empty())
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        // x86 and ARM use different keys.
        let text = |keys: [&str; 2]| {
            let value = keys.iter().find_map(|key| fields.get(key)).filter(|v| !v.is_empty());
            value.map_or_else(
                || "unknown".into(),
                |v| v.chars().filter(|c| !c.is_control()).take(128).collect::<String>(),
            )
        };
        let number = |keys: [&str; 2]| {
            let value = keys.iter().find_map(|key| fields.get(key))?;
            match value.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => value.parse().ok(),
            }
        };
        let topology = Topology::read(cpus, usable);
        Self {
            cpu: text(["model name", "Hardware"]),
            vendor: text(["vendor_id", "CPU implementer"]),
            family: number(["cpu family", "CPU architecture"]).unwrap_or(0),
            model: number(["model", "CPU part"]).unwrap_or(0),
            stepping: number(["stepping", "CPU revision"]).unwrap_or(0),
            physical_cores: if topology.cores == 0 { threads } else { topology.cores.min(threads) },
            threads,
            l2: topology.l2,
            l3: topology.l3,
        }
    }
}

#[derive(Default)]
struct Topology {
    cores: usize,
    l2: u64,
    l3: u64,
}

impl Topology {
    fn read(cpus: &Path, usable: Option<&BTreeSet<usize>>) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).ok().map(|s| s.trim().to_owned());
        let mut topology = Self::default();
        let mut cores = BTreeSet::new();
        let mut l3 = BTreeMap::new();
        for number in 0.. {
            let cpu = cpus.join(format!("cpu{number}"));
            if !cpu.is_dir() {
                break;
            }
            // A CPU that is offline has no topology.
            let Some(siblings) = text(&cpu.join("topology/thread_siblings_list")) else { continue };
            if usable.is_none_or(|usable| usable.contains(&number)) {
                cores.insert(siblings);
            }
            for index in 0..8 {
                let cache = cpu.join(format!("cache/index{index}"));
                let Some(level) = text(&cache.join("level")) else { break };
                let size = text(&cache.join("size")).and_then(|size| bytes(&size)).unwrap_or(0);
                match level.as_str() {
                    "2" => topology.l2 = topology.l2.max(size),
                    "3" => {
                        let sharers = text(&cache.join("shared_cpu_list")).unwrap_or_default();
                        l3.insert(sharers, size);
                    }
                    _ => {}
                }
            }
        }
        topology.cores = cores.len();
        topology.l3 = l3.values().sum();
        topology
    }
}

/// Parses a list of CPUs such as `0-3,8`; items that are not numbers are skipped.
pub(crate) fn cpu_list(text: &str) -> BTreeSet<usize> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // The limit keeps a bad list from filling memory.
        Some(first..=last.min(1 << 16))
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Parses a size such as `1024K` or `32M`, in bytes.
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(['K', 'M', 'G']);
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x86_and_arm_are_described() {
        let x86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n\
                   model name\t: AMD EPYC 9R14\nstepping\t: 1\n\nprocessor\t: 1\nmodel\t: 99\n";
        let host = Host::from_parts(x86, Path::new("no such folder"), None, 6);
        assert_eq!((host.cpu.as_str(), host.vendor.as_str()), ("AMD EPYC 9R14", "AuthenticAMD"));
        assert_eq!((host.family, host.model, host.stepping), (25, 17, 1));
        assert_eq!((host.physical_cores, host.threads, host.l2, host.l3), (6, 6, 0, 0));

        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n\
                   CPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n";
        let host = Host::from_parts(arm, Path::new("no such folder"), None, 4);
        assert_eq!((host.cpu.as_str(), host.vendor.as_str()), ("unknown", "0x41"));
        assert_eq!((host.family, host.model, host.stepping), (8, 0xd0c, 1));

        let nothing = Host::from_parts("", Path::new("no such folder"), None, 1);
        assert_eq!((nothing.cpu.as_str(), nothing.family), ("unknown", 0));
    }

    #[test]
    fn shared_caches_and_cores_count_once() {
        let dir = tempfile::tempdir().unwrap();
        for cpu in 0..4 {
            let cpu_dir = dir.path().join(format!("cpu{cpu}"));
            let write = |name: &str, text: &str| {
                let path = cpu_dir.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            let pair = if cpu < 2 { "0-1\n" } else { "2-3\n" };
            write("topology/thread_siblings_list", pair);
            for (index, level, size, shared) in
                [(0, "1", "48K", pair), (1, "2", "1024K", pair), (2, "3", "16M", "0-3\n")]
            {
                write(&format!("cache/index{index}/level"), level);
                write(&format!("cache/index{index}/size"), size);
                write(&format!("cache/index{index}/shared_cpu_list"), shared);
            }
        }
        let host = Host::from_parts("", dir.path(), None, 4);
        assert_eq!((host.physical_cores, host.l2, host.l3), (2, 1 << 20, 16 << 20));
        assert_eq!(Host::from_parts("", dir.path(), None, 1).physical_cores, 1);
        // Both threads of one core.
        let usable = cpu_list("\t0-1\n");
        assert_eq!(Host::from_parts("", dir.path(), Some(&usable), 2).physical_cores, 1);
    }

    /// Makes a folder like `/sys/devices/system/cpu`: for each CPU its core's CPUs, the size of its L2,
    /// and the CPUs that share its L3 with that one's size.
    fn topology(cpus: &[(&str, &str, (&str, &str))]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (number, (core, l2, (sharers, l3))) in cpus.iter().enumerate() {
            for (name, text) in [
                ("topology/thread_siblings_list", core),
                ("cache/index0/level", &"2"),
                ("cache/index0/size", l2),
                ("cache/index1/level", &"3"),
                ("cache/index1/size", l3),
                ("cache/index1/shared_cpu_list", sharers),
            ] {
                let path = dir.path().join(format!("cpu{number}")).join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
        }
        dir
    }

    #[test]
    fn h07_cores_of_a_hybrid_cpu_count_once_each() {
        let l3 = ("0-5", "30M");
        let dir = topology(&[
            ("0-1", "1280K", l3),
            ("0-1", "1280K", l3),
            ("2-3", "1280K", l3),
            ("2-3", "1280K", l3),
            ("4", "2048K", l3),
            ("5", "2048K", l3),
        ]);
        let host = Host::from_parts("", dir.path(), None, 6);
        assert_eq!((host.physical_cores, host.l2, host.l3), (4, 2 << 20, 30 << 20));
        // The efficient ones alone, as a container may have them.
        let usable = cpu_list("4-5");
        assert_eq!(Host::from_parts("", dir.path(), Some(&usable), 2).physical_cores, 2);
    }

    #[test]
    fn h09_caches_of_two_nodes_add_up() {
        let (first, second) = (("0-1,4-5", "16M"), ("2-3,6-7", "16M"));
        let cores = ["0,4", "1,5", "2,6", "3,7"];
        let of = |cpu: usize| (cores[cpu % 4], "1M", if cpu % 4 < 2 { first } else { second });
        let dir = topology(&std::array::from_fn::<_, 8, _>(of));
        let host = Host::from_parts("", dir.path(), None, 8);
        assert_eq!((host.physical_cores, host.threads), (4, 8));
        assert_eq!((host.l2, host.l3), (1 << 20, 32 << 20));
        // Bound to one node.
        let usable = cpu_list("2-3,6-7");
        assert_eq!(Host::from_parts("", dir.path(), Some(&usable), 4).physical_cores, 2);
    }

    #[test]
    fn lists_of_cpus() {
        let list = |text: &str| -> Vec<usize> { cpu_list(text).into_iter().collect() };
        assert_eq!(list("\t0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(list("5"), [5]);
        assert!(list("").is_empty());
        assert!(list("x,3-1,2-").is_empty());
    }

    #[test]
    fn sizes_of_caches() {
        assert_eq!(bytes("1024K"), Some(1 << 20));
        assert_eq!(bytes("32M"), Some(32 << 20));
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("12T"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(bytes("99999999999999999999G"), None);
    }
}
