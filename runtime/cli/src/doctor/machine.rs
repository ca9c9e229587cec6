//! The machine: CPU, memory and its bandwidth, huge pages, what else runs.

use std::fs;
use std::path::Path;

use bitnet_profiles::{Isa, Pinning};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::memory;
use bitnet_runtime::cpu::threads::{Pool, PoolOptions};
use bitnet_runtime::error::Result;
use bitnet_runtime::measure::probe::Stream;

use super::{Findings, Level};
use crate::output::human;

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Bytes that the bandwidth is read with: more than caches hold, and done in a second.
const PROBE_BYTES: usize = 512 << 20;
/// Passes, of which the best counts.
const PROBE_ROUNDS: usize = 3;
/// Memory below which only small models run.
const LITTLE: u64 = 2_000_000_000;

pub(super) fn look(findings: &mut Findings) {
    let host = Host::detect();
    findings.add(
        Level::Ok,
        "cpu",
        format_args!(
            "{}, {} cores, {} threads to use",
            host.cpu, host.physical_cores, host.threads
        ),
    );
    let tiers = Isa::supported_names();
    match Isa::best() {
        Isa::Scalar => findings.advise(
            Level::Warning,
            "instructions",
            format_args!("{tiers}: no vector instructions that kernels are made for"),
            "an x86-64 CPU with AVX2, or a 64-bit ARM CPU, is many times as fast",
        ),
        best => findings.add(Level::Ok, "instructions", format_args!("{tiers}; kernels of {best}")),
    }
    let free = memory::available();
    match free {
        None => findings.add(Level::Note, "memory", "the system does not say how much is free"),
        Some(free) if free < LITTLE => findings.advise(
            Level::Warning,
            "memory",
            format_args!("{} to use", human(free)),
            "a 2B model needs about 2 GB; end other programs, or raise the limit of this one",
        ),
        Some(free) => findings.add(Level::Ok, "memory", format_args!("{} to use", human(free))),
    }
    if free.is_none_or(|free| free > 4 * PROBE_BYTES as u64) {
        match bandwidth(host.physical_cores) {
            Ok(rate) => findings.add(
                Level::Ok,
                "bandwidth",
                format_args!(
                    "{:.1} GB/s read by {} threads: the most tokens per second are this over the bytes \
                     that one reads",
                    rate / 1e9,
                    host.physical_cores
                ),
            ),
            Err(error) => findings.add(Level::Note, "bandwidth", error),
        }
    }
    huge_pages(Path::new(HUGE_PAGES), findings);
    neighbours(&fs::read_to_string("/proc/loadavg").unwrap_or_default(), host.threads, findings);
}

/// Bytes per second that so many threads read.
fn bandwidth(threads: usize) -> Result<f64> {
    let options = PoolOptions { threads, pinning: Pinning::None, spare: false };
    let pool = Pool::with(options)?;
    Stream::new(&pool, PROBE_BYTES)?.read_bandwidth(&pool, PROBE_ROUNDS)
}

/// What the system says of huge pages, which the weights ask for.
fn huge_pages(path: &Path, findings: &mut Findings) {
    const ITEM: &str = "huge pages";
    let Ok(text) = fs::read_to_string(path) else {
        return findings.add(Level::Note, ITEM, "the system has none");
    };
    // As "always [madvise] never".
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')));
    match chosen {
        Some("never") => findings.advise(
            Level::Warning,
            ITEM,
            "switched off: weights are read a few percent slower",
            &format!("echo madvise | sudo tee {}", path.display()),
        ),
        Some(chosen) => findings.add(Level::Ok, ITEM, chosen),
        None => findings.add(Level::Note, ITEM, "the system does not say"),
    }
}

/// How many other programs want CPUs, by the load of the last minute.
fn neighbours(loadavg: &str, threads: usize, findings: &mut Findings) {
    const ITEM: &str = "other programs";
    let load: Option<f64> = loadavg.split_whitespace().next().and_then(|word| word.parse().ok());
    match load {
        None => findings.add(Level::Note, ITEM, "the system does not say what runs"),
        Some(load) if load > 0.5 * threads as f64 => findings.advise(
            Level::Warning,
            ITEM,
            format_args!("they kept {load:.1} of {threads} CPUs busy in the last minute"),
            "end them, or give fewer threads with -t: one that waits for a CPU holds up the others",
        ),
        Some(load) => {
            findings.add(Level::Ok, ITEM, format_args!("load {load:.1} in the last minute"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(findings: &Findings) -> (Level, &str) {
        let last = findings.all.last().unwrap();
        (last.level, &last.found)
    }

    #[test]
    fn what_the_system_says_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enabled");
        let mut findings = Findings::default();
        huge_pages(&path, &mut findings);
        assert_eq!(last(&findings), (Level::Note, "the system has none"));
        for (text, level) in [
            ("always [madvise] never\n", Level::Ok),
            ("[always] madvise never\n", Level::Ok),
            ("always madvise [never]\n", Level::Warning),
            ("", Level::Note),
        ] {
            fs::write(&path, text).unwrap();
            huge_pages(&path, &mut findings);
            assert_eq!(last(&findings).0, level, "{text}");
        }
        for (text, level) in [
            ("0.10 0.20 0.30 1/100 5\n", Level::Ok),
            ("3.90 0.20 0.30 1/100 5\n", Level::Warning),
            ("", Level::Note),
        ] {
            neighbours(text, 4, &mut findings);
            assert_eq!(last(&findings).0, level, "{text}");
        }
        assert!(last(&findings).1.contains("does not say"));
    }
}
