//! Memory limits of control groups (cgroups), of both versions.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::memory::field;

/// The files in which one version of control groups keeps a group's figures, in bytes.
struct Version {
    /// The type of the file system.
    file_system: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// The field of `memory.stat` for pages of files that were not used lately, those of the groups
    /// below included.
    inactive: &'static str,
    /// The field of `memory.stat` for the least limit of the group and its ancestors, also of those
    /// that a container does not see.
    least_limit: Option<&'static str>,
}

const V1: Version = Version {
    file_system: "cgroup",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file ",
    least_limit: Some("hierarchical_memory_limit "),
};

const V2: Version = Version {
    file_system: "cgroup2",
    limit: "memory.max",
    usage: "memory.current",
    inactive: "inactive_file ",
    least_limit: None,
};

/// Returns the bytes that the limits of this process's control groups and of their ancestors leave, or
/// `None` where there are no such groups or limits. Inactive pages of files count as free, since they
/// are given up when the limit is reached.
pub(super) fn available() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    least_available(&groups, &mounts)
}

/// Does the work of [`available`] for the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn least_available(groups: &str, mounts: &str) -> Option<u64> {
    // `0::/path` in version 2, `4:cpu,memory:/path` in version 1; where both are mounted, one of them
    // holds the limits.
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let version = if controllers.is_empty() {
            &V2
        } else if controllers.split(',').any(|controller| controller == "memory") {
            &V1
        } else {
            return None;
        };
        mounts.lines().filter_map(|mount| version.available(Path::new(path), mount)).min()
    };
    groups.lines().filter_map(of_line).min()
}

impl Version {
    /// Returns the bytes that the limits of a group leave, and those of its ancestors that are seen
    /// under `mount`, a line of mountinfo.
    fn available(&self, group: &Path, mount: &str) -> Option<u64> {
        let (own, super_block) = mount.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let (root, point) = (unescaped(own.next()?), unescaped(own.next()?));
        let mut super_block = super_block.split(' ');
        let has_memory = |options: &str| options.split(',').any(|option| option == "memory");
        if super_block.next()? != self.file_system
            || self.file_system == V1.file_system && !super_block.nth(1).is_some_and(has_memory)
        {
            return None;
        }
        // A group outside what is mounted, as in a container without a namespace of its own: the root
        // of the mount is the nearest ancestor that is seen.
        let below = group.strip_prefix(&root).ok().filter(|below| {
            below.components().all(|component| matches!(component, Component::Normal(_)))
        });
        let folder = point.join(below.unwrap_or(Path::new("")));
        let seen = folder.ancestors().take_while(|folder| folder.starts_with(&point));
        // In version 1, what a group uses counts for those above only where these say so.
        let counts_below = |group: &Path| {
            let flag = fs::read_to_string(group.join("memory.use_hierarchy"));
            !flag.is_ok_and(|flag| flag.trim() == "0")
        };
        let seen = seen.take_while(|group| *group == folder || counts_below(group));
        seen.filter_map(|group| self.left(group)).min()
    }

    /// Returns the bytes that a group's own limit leaves, if it has one.
    fn left(&self, group: &Path) -> Option<u64> {
        let read = |name| fs::read_to_string(group.join(name)).ok();
        let stat = read("memory.stat").unwrap_or_default();
        // "max" where there is no limit in version 2, near 2^63 in version 1.
        let own = read(self.limit).and_then(|limit| limit.trim().parse().ok());
        let least = self.least_limit.and_then(|name| field(&stat, name));
        let limit = own.into_iter().chain(least).min()?;
        let used: u64 = read(self.usage)?.trim().parse().ok()?;
        let spare = field(&stat, self.inactive).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(spare)))
    }
}

/// Returns a path of mountinfo, where spaces and such are written as `\\040`.
fn unescaped(text: &str) -> PathBuf {
    let special = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")];
    let plain = |text: String, (code, plain): (&str, &str)| text.replace(code, plain);
    special.into_iter().fold(text.to_owned(), plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in which control groups are made up.
    struct Groups(tempfile::TempDir);

    impl Groups {
        /// Makes groups, each with its files; the path of all has a space in it.
        fn new(groups: &[(&str, &[(&str, &str)])]) -> Self {
            let folder = tempfile::Builder::new().prefix("control groups").tempdir().unwrap();
            for (group, files) in groups {
                let group = folder.path().join(group);
                fs::create_dir_all(&group).unwrap();
                for (name, text) in *files {
                    fs::write(group.join(name), format!("{text}\n")).unwrap();
                }
            }
            Self(folder)
        }

        /// The bytes left for a process with such a `/proc/self/cgroup`, where the group `root` is
        /// mounted on the folder by that file system with these options.
        fn left(&self, groups: &str, (root, system, options): (&str, &str, &str)) -> Option<u64> {
            let point = self.0.path().to_str().unwrap().replace(' ', r"\040");
            let mounts = format!(
                "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n\
                 30 25 0:26 {root} {point} rw,nosuid shared:9 - {system} name {options}\n"
            );
            least_available(groups, &mounts)
        }
    }

    const V1_MOUNT: (&str, &str, &str) = ("/", "cgroup", "rw,memory");
    const V2_MOUNT: (&str, &str, &str) = ("/", "cgroup2", "rw,nsdelegate");
    const UNLIMITED: &str = "9223372036854771712";

    #[test]
    fn h4_limits_of_version_1_are_seen() {
        let groups = Groups::new(&[
            (".", &[("memory.limit_in_bytes", UNLIMITED), ("memory.usage_in_bytes", "7000000")]),
            (
                "docker/ab",
                &[
                    ("memory.limit_in_bytes", "1000000"),
                    ("memory.usage_in_bytes", "600000"),
                    ("memory.stat", "inactive_file 1\ntotal_inactive_file 50000"),
                ],
            ),
        ]);
        let own = "12:cpuset:/other\n4:cpu,memory:/docker/ab\n1:name=systemd:/docker/ab\n";
        assert_eq!(groups.left(own, V1_MOUNT), Some(450_000));
        // Version 2 beside it, without this controller.
        assert_eq!(groups.left(&format!("{own}0::/docker/ab\n"), V1_MOUNT), Some(450_000));
        // A folder of another controller, and a process in no group of this one.
        assert_eq!(groups.left(own, ("/", "cgroup", "rw,cpu,cpuacct")), None);
        assert_eq!(groups.left("12:cpuset:/docker/ab\n", V1_MOUNT), None);
    }

    #[test]
    fn h4_a_container_sees_its_group_as_the_root() {
        let files: &[(&str, &str)] = &[
            ("memory.limit_in_bytes", "1000000"),
            ("memory.usage_in_bytes", "600000"),
            // Of an ancestor that is not seen.
            ("memory.stat", "hierarchical_memory_limit 900000\ntotal_inactive_file 0"),
        ];
        let groups = Groups::new(&[(".", files)]);
        for (own, root) in [
            ("4:memory:/docker/ab\n", "/docker/ab"),
            ("4:memory:/\n", "/"),
            // Not below what is mounted, and with no folder there.
            ("4:memory:/docker/ab\n", "/"),
            ("4:memory:/../..\n", "/"),
            ("4:memory:/docker/ab\n", "/system.slice"),
        ] {
            let left = groups.left(own, (root, "cgroup", "rw,memory"));
            assert_eq!(left, Some(300_000), "{own} {root}");
        }
    }

    #[test]
    fn h4_ancestors_of_version_1_count_if_they_say_so() {
        let of = |flag| {
            Groups::new(&[
                (
                    "outer",
                    &[
                        ("memory.limit_in_bytes", "500"),
                        ("memory.usage_in_bytes", "400"),
                        ("memory.use_hierarchy", flag),
                    ],
                ),
                (
                    "outer/inner",
                    &[
                        ("memory.limit_in_bytes", "9000"),
                        ("memory.usage_in_bytes", "300"),
                        ("memory.use_hierarchy", "0"),
                    ],
                ),
            ])
        };
        let own = "4:memory:/outer/inner\n";
        assert_eq!(of("1").left(own, V1_MOUNT), Some(100));
        assert_eq!(of("0").left(own, V1_MOUNT), Some(8700));
    }

    #[test]
    fn limits_of_version_2_are_seen() {
        let groups = Groups::new(&[
            ("a", &[("memory.max", "5000"), ("memory.current", "4500")]),
            (
                "a/b",
                &[
                    ("memory.max", "4000"),
                    ("memory.current", "3900"),
                    ("memory.stat", "inactive_anon 1\ninactive_file 800"),
                ],
            ),
            ("a/b/c", &[("memory.max", "max"), ("memory.current", "10")]),
        ]);
        assert_eq!(groups.left("0::/a/b/c\n", V2_MOUNT), Some(500));
        // Mounted in a part of the tree that the group is not in: the mount's root may be any group.
        assert_eq!(groups.left("0::/b/c\n", ("/z", "cgroup2", "rw")), None);
        assert_eq!(groups.left("0::/none\n", V2_MOUNT), None);
        assert_eq!(groups.left("0::/a\n", V2_MOUNT), Some(500));
    }
}
