//! Files that are replaced whole, and what processes that were killed leave of them.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

/// What a temporary file's name has after its target's: a dot, so many random letters and digits,
/// and this.
const SUFFIX: &str = ".bitnet.tmp";
/// Random letters and digits in the name of a temporary file or folder.
pub const RANDOM: usize = 12;

/// How long making a file and locking it takes, and much more: what is younger is left alone.
const YOUNG: Duration = Duration::from_secs(60);
/// How old something is, on a file system without locks, when whoever made it is taken for gone.
const OLD: Duration = Duration::from_secs(7 * 86_400);

/// A file being written that takes the place of another once it is whole: until
/// [`Replacement::commit`], the other holds what it held. The contents go to a temporary file beside
/// it, of a new name, which is removed when this is dropped before.
#[derive(Debug)]
pub struct Replacement {
    file: NamedTempFile,
    path: PathBuf,
}

impl Replacement {
    /// Begins an empty file that is to become `path`; temporary files that killed processes left for
    /// the same path are removed.
    ///
    /// # Errors
    /// The system's: no such folder, no permission, no space.
    pub fn new(path: &Path) -> io::Result<Self> {
        // As any new file, less what the user's umask takes away.
        Self::with_mode(path, 0o666)
    }

    fn with_mode(path: &Path, mode: u32) -> io::Result<Self> {
        let file = beside(path, mode)?;
        // Says that this process lives; not every file system has locks.
        let _ = file.as_file().try_lock();
        if let (Some(name), Ok(own)) = (path.file_name(), file.as_file().metadata()) {
            let name = name.as_encoded_bytes();
            remove_leftovers(folder_of(path), |target| target == name, &own);
        }
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Waits until the disk has the contents and renames the file to its path.
    ///
    /// # Errors
    /// The system's: no space, a folder of that name.
    pub fn commit(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(self.path)?;
        Ok(())
    }
}

/// Writes `contents` to a temporary file beside `path` and renames it, so that `path` holds what
/// it held or all of the new contents, whatever happens between: see [`Replacement`].
///
/// # Errors
/// What the system says: no such folder, no permission, no space, a folder of that name.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    fill(Replacement::new(path)?, contents)
}

/// As [`replace`], for a file that nobody but the user may read or write.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    fill(Replacement::with_mode(path, 0o600)?, contents)
}

fn fill(replacement: Replacement, contents: &[u8]) -> io::Result<()> {
    replacement.file().write_all(contents)?;
    replacement.commit()
}

/// Whether [`replace`] could begin: `path` is no folder, and a file beside it can be made.
///
/// # Errors
/// As [`replace`].
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::Error::other("it is a directory; give a file"));
    }
    beside(path, 0o600)?.close()
}

/// Removes the temporary files in `folder` that processes left behind which were killed while they
/// wrote a file that `is_target`, by the bytes of its name. Nothing else is touched: the name is one
/// that [`replace`] makes, it is a plain file (no link to one) of the user whom `owner` belongs to,
/// and it [`is_abandoned`]. What cannot be looked at or removed stays.
pub fn remove_leftovers(folder: &Path, is_target: impl Fn(&[u8]) -> bool, owner: &Metadata) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !target_of(entry.file_name().as_encoded_bytes()).is_some_and(&is_target) {
            continue;
        }
        // That of a link itself, not of what it leads to.
        let Ok(meta) = entry.metadata() else { continue };
        if !meta.is_file() || !has_owner(&meta, owner) {
            continue;
        }
        let path = entry.path();
        if File::open(&path).is_ok_and(|file| is_same(&file, &meta) && is_abandoned(&file)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether whoever made a file or folder has gone. While it is in use, its maker holds a lock on it
/// ([`File::try_lock`]), which ends with the process, however that ends; what is younger than a minute
/// may not be locked yet. Where the file system has no locks, a week must have passed.
pub fn is_abandoned(file: &File) -> bool {
    let modified = file.metadata().and_then(|meta| meta.modified());
    // What a clock that was set back dates into the future is young.
    let age = modified.map_or(Duration::ZERO, |time| time.elapsed().unwrap_or_default());
    age >= YOUNG
        && match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => age >= OLD,
        }
}

/// Whether a part of a name is what stands in the names of temporary files and folders: [`RANDOM`]
/// letters and digits.
pub fn is_random(part: &[u8]) -> bool {
    part.len() == RANDOM && part.iter().all(u8::is_ascii_alphanumeric)
}

/// The name of the file that a temporary file of that name was to become.
fn target_of(name: &[u8]) -> Option<&[u8]> {
    let rest = name.strip_suffix(SUFFIX.as_bytes())?;
    let (target, random) = rest.split_at(rest.len().checked_sub(RANDOM)?);
    target.strip_suffix(b".").filter(|target| !target.is_empty() && is_random(random))
}

/// Whether both belong to one user, where the system says so.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix files have a user's number"))]
fn has_owner(meta: &Metadata, owner: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        meta.uid() == owner.uid()
    }
    #[cfg(not(unix))]
    true
}

/// Whether an open file is the one that was looked at, and not what its name has led to since.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix files have numbers"))]
fn is_same(file: &File, meta: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (meta.dev(), meta.ino()))
    }
    #[cfg(not(unix))]
    true
}

/// The folder of a file; that of a bare name is "", which means here.
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// An empty temporary file in the folder of `path`, which goes when it is dropped. Where files have
/// no `mode`, it counts for nothing.
fn beside(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::other("it names no file"));
    };
    let mut prefix = name.to_os_string();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).rand_bytes(RANDOM).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder.tempfile_in(folder_of(path))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// Makes a file that was last written so many seconds ago.
    fn aged(path: &Path, seconds: u64) -> File {
        let file = File::create(path).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
        file
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_temporary_name_says_what_it_was_to_become() {
        let random = "0aZ123456789";
        for target in ["host.toml", "a", ".x", "a.0aZ123456789.bitnet.tmp"] {
            let name = format!("{target}.{random}{SUFFIX}");
            assert_eq!(target_of(name.as_bytes()), Some(target.as_bytes()), "{name}");
        }
        let file = beside(Path::new("host.toml"), 0o600).unwrap();
        let name = file.path().file_name().unwrap().as_encoded_bytes();
        assert_eq!(target_of(name), Some(&b"host.toml"[..]), "{:?}", file.path());
        for name in [
            "host.toml",
            "host.toml.tmp",
            ".bitnet.tmp",
            "host.toml.bitnet.tmp",
            "host.toml.0aZ12345678.bitnet.tmp",
            "host.toml0aZ123456789.bitnet.tmp",
            "host.toml.0aZ1234-6789.bitnet.tmp",
            "host.toml.0aZ123456789.bitnet.tmp~",
            ".0aZ123456789.bitnet.tmp",
        ] {
            assert_eq!(target_of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn writing_removes_what_killed_writers_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let named = |target: &str, random: &str| format!("{target}.{random}{SUFFIX}");
        let abandoned = named("host.toml", "abandoned000");
        let [young, held, future, other] = [
            ("host.toml", "young0000000"),
            ("host.toml", "held00000000"),
            ("host.toml", "future000000"),
            ("other.toml", "abandoned000"),
        ]
        .map(|(target, random)| named(target, random));
        aged(&at(&abandoned), 120);
        aged(&at(&young), 0);
        aged(&at(&other), 1_000_000);
        File::create(at(&future)).unwrap();
        let late = SystemTime::now() + Duration::from_secs(86_400);
        File::options().write(true).open(at(&future)).unwrap().set_modified(late).unwrap();
        let holder = aged(&at(&held), 1_000_000);
        holder.try_lock().unwrap();
        aged(&at("host.toml.backup.tmp"), 1_000_000);
        fs::create_dir(at(&named("host.toml", "folder000000"))).unwrap();
        let mut kept = vec![
            young,
            held.clone(),
            future,
            other,
            "host.toml.backup.tmp".into(),
            named("host.toml", "folder000000"),
            "host.toml".into(),
        ];
        #[cfg(unix)]
        {
            // Neither a link nor what it leads to.
            let link = named("host.toml", "link00000000");
            aged(&at("target"), 1_000_000);
            std::os::unix::fs::symlink(at("target"), at(&link)).unwrap();
            kept.extend(["target".into(), link]);
        }
        kept.sort();
        check_replaceable(&at("host.toml")).unwrap();
        assert!(at(&abandoned).exists(), "looking removes nothing");
        replace(&at("host.toml"), b"new").unwrap();
        assert_eq!(names(folder.path()), kept);
        assert_eq!(fs::read(at("host.toml")).unwrap(), b"new");
        // Whoever held it has gone.
        drop(holder);
        replace(&at("host.toml"), b"newer").unwrap();
        assert!(!at(&held).exists());
    }
}
