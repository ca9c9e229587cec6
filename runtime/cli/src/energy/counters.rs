//! Counters of energy, as Linux shows those of Intel's and AMD's CPUs: `intel-rapl:*` of the power capping
//! class, one zone for each package, and one within it for memory where the CPU counts that.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bitnet_runtime::error::{Error, Result};

/// The counters of a machine.
#[derive(Debug)]
pub struct Counters(Vec<Zone>);

/// A counter.
#[derive(Debug)]
struct Zone {
    /// Its name, such as `package-0`.
    name: String,
    /// The file with its microjoules.
    path: PathBuf,
    /// Microjoules after which it begins again at 0.
    range: u64,
}

/// What the counters stood at, in microjoules.
#[derive(Clone, Debug)]
pub struct Reading(Vec<u64>);

impl Counters {
    /// Finds the counters of packages and of memory below `root`. Those of cores and of the whole machine
    /// count the same energy once more.
    ///
    /// # Errors
    /// [`Error::Runtime`] where there is none, or none that this user may read.
    pub fn find(root: &Path) -> Result<Self> {
        let none = |why: &str| {
            Error::Runtime(format!(
                "no energy counter can be read ({}: {why}): nothing is estimated",
                root.display()
            ))
        };
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none("absent")),
            Err(error) => return Err(none(&error.to_string())),
        };
        let mut folders: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("intel-rapl:"))
            .map(|entry| entry.path())
            .collect();
        folders.sort();
        let mut zones: Vec<Zone> = Vec::new();
        let mut refused = None;
        for folder in folders {
            let name = text(&folder.join("name")).unwrap_or_default();
            if !name.starts_with("package") && name != "dram" {
                continue;
            }
            let path = folder.join("energy_uj");
            match number(&path) {
                Ok(_) => {
                    let range = number(&folder.join("max_energy_range_uj")).unwrap_or(u64::MAX);
                    zones.push(Zone { name, path, range });
                }
                Err(error) => refused = Some(format!("{}: {error}", path.display())),
            }
        }
        match refused {
            // Of one package only, it would be the energy of half of the machine.
            Some(refused) => Err(none(&format!("{refused}; the administrator may read it"))),
            None if zones.is_empty() => Err(none("without a package")),
            None => Ok(Self(zones)),
        }
    }

    /// The names of the counters, separated by commas.
    #[must_use]
    pub fn names(&self) -> String {
        self.0.iter().map(|zone| zone.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Reads all.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be read any more.
    pub fn read(&self) -> Result<Reading> {
        let read = |zone: &Zone| number(&zone.path).map_err(|e| Error::io(&zone.path, "read", e));
        self.0.iter().map(read).collect::<Result<_>>().map(Reading)
    }

    /// Returns the joules between two readings, in which no counter began again more than once.
    #[must_use]
    pub fn joules(&self, before: &Reading, after: &Reading) -> f64 {
        let spent = |((zone, &before), &after): ((&Zone, &u64), &u64)| {
            let spent = match after.checked_sub(before) {
                Some(spent) => spent,
                None => zone.range.saturating_sub(before).saturating_add(after),
            };
            spent as f64 / 1e6
        };
        self.0.iter().zip(&before.0).zip(&after.0).map(spent).sum()
    }
}

fn text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> io::Result<u64> {
    text(path)?.parse().map_err(|_| io::Error::other("no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with zones: folder, name, microjoules, range.
    fn tree(zones: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (folder, name, energy, range) in zones {
            let folder = root.path().join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
            fs::write(folder.join("energy_uj"), format!("{energy}\n")).unwrap();
            fs::write(folder.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
        }
        root
    }

    fn set(root: &tempfile::TempDir, folder: &str, energy: u64) {
        fs::write(root.path().join(folder).join("energy_uj"), energy.to_string()).unwrap();
    }

    #[test]
    fn packages_and_memory_are_added_and_what_counts_them_again_is_not() {
        let root = tree(&[
            ("intel-rapl:0", "package-0", "1000000", "262143328850"),
            ("intel-rapl:0:0", "core", "999", "262143328850"),
            ("intel-rapl:0:1", "dram", "500000", "65712999613"),
            ("intel-rapl:1", "package-1", "0", "262143328850"),
            ("intel-rapl:2", "psys", "7", "262143328850"),
            ("dtpm", "package-9", "7", "1"),
        ]);
        let counters = Counters::find(root.path()).unwrap();
        assert_eq!(counters.names(), "package-0, dram, package-1");
        let before = counters.read().unwrap();
        set(&root, "intel-rapl:0", 3_000_000);
        set(&root, "intel-rapl:0:0", 2_000_000);
        set(&root, "intel-rapl:0:1", 750_000);
        set(&root, "intel-rapl:1", 1_500_000);
        let after = counters.read().unwrap();
        assert_eq!(counters.joules(&before, &after), 2.0 + 0.25 + 1.5);
        assert_eq!(counters.joules(&after, &after), 0.0);
    }

    #[test]
    fn a_counter_that_begins_again_has_counted_to_its_range() {
        let root = tree(&[("intel-rapl:0", "package-0", "9000000", "10000000")]);
        let counters = Counters::find(root.path()).unwrap();
        let before = counters.read().unwrap();
        set(&root, "intel-rapl:0", 500_000);
        assert_eq!(counters.joules(&before, &counters.read().unwrap()), 1.5);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let empty = tree(&[("intel-rapl:0", "core", "1", "2")]);
        let wrong = tree(&[("intel-rapl:0", "package-0", "many", "2")]);
        let absent = empty.path().join("none");
        for (root, says) in [
            (empty.path(), "without a package"),
            (wrong.path(), "no number"),
            (absent.as_path(), "absent"),
        ] {
            let error = Counters::find(root).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            let message = error.to_string();
            assert!(
                message.contains(says) && message.contains("nothing is estimated"),
                "{message}"
            );
        }
        // One that goes away amid a measurement.
        let root = tree(&[("intel-rapl:0", "package-0", "1", "2")]);
        let counters = Counters::find(root.path()).unwrap();
        fs::remove_file(root.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert_eq!(counters.read().unwrap_err().exit_code(), 6);
    }
}
