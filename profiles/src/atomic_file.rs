//! Files that are replaced whole, and what processes that were killed leave of them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::destination::{Destination, folder_of, open_stream};
use crate::patient::Patient;

/// Suffix of a temporary file's name, behind its target's: a dot, so many random letters and digits,
/// and this.
const SUFFIX: &str = ".bitnet.tmp";
/// Random letters and digits in the name of a temporary file or folder.
pub const RANDOM: usize = 12;

/// Time that making a file and locking it takes, and much more: what is younger is left alone.
const YOUNG: Duration = Duration::from_secs(60);
/// Age from which something's maker is taken for gone, on a file system without locks.
const OLD: Duration = Duration::from_secs(7 * 86_400);

/// A file being written that takes the place of another once it is whole: until
/// [`Replacement::commit`], the other holds what it held. Links are followed: the file that they lead to
/// is replaced. The contents go to a temporary file in the same folder, which has no name where the system
/// allows that, and else a new one beside the other's, which is removed when this is dropped before.
///
/// A device, a pipe or an open descriptor (`/dev/stdout`) is written into instead.
#[derive(Debug)]
pub struct Replacement(Kind);

#[derive(Debug)]
enum Kind {
    /// A temporary file, and the path that it is to have.
    Named(NamedTempFile, PathBuf),
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "files have names there"))]
    Unnamed(File, PathBuf),
    Stream(File),
}

impl Replacement {
    /// Begins an empty file that is to become `path`; temporary files that killed processes left for
    /// the same path are removed. The new file has the permissions of the one that it replaces.
    ///
    /// # Errors
    /// The system's: no such folder, no permission, no space; a path that leads to a folder or a socket.
    pub fn new(path: &Path) -> io::Result<Self> {
        match Destination::of(path)? {
            // As any new file, less what the user's umask takes away.
            Destination::File(path, None) => Self::with_mode(path, 0o666),
            Destination::File(path, Some(permissions)) => {
                let replacement = Self::with_mode(path, 0o666)?;
                // Not every file system has them.
                let _ = replacement.file().set_permissions(permissions);
                Ok(replacement)
            }
            Destination::Stream(path) => open_stream(&path).map(Kind::Stream).map(Self),
        }
    }

    /// As [`Replacement::new`], for a file that nobody but the user may read or write; a link of that name
    /// is replaced.
    ///
    /// # Errors
    /// As [`Replacement::new`].
    pub fn private(path: &Path) -> io::Result<Self> {
        Self::with_mode(path.to_path_buf(), 0o600)
    }

    /// Begins a file that is to become `path` itself, no link followed.
    fn with_mode(path: PathBuf, mode: u32) -> io::Result<Self> {
        let folder = folder_of(&path);
        let kind = match unnamed::create(folder, mode) {
            Some(file) => Kind::Unnamed(file, path.clone()),
            None => Kind::Named(beside(&path, mode)?, path.clone()),
        };
        let replacement = Self(kind);
        // Says that this process lives; not every file system has locks.
        let _ = replacement.file().try_lock();
        if let (Some(name), Ok(own)) = (path.file_name(), replacement.file().metadata()) {
            let name = name.as_encoded_bytes();
            remove_leftovers(folder, |target| target == name, &own);
        }
        Ok(replacement)
    }

    fn file(&self) -> &File {
        match &self.0 {
            Kind::Named(file, _) => file.as_file(),
            Kind::Unnamed(file, _) | Kind::Stream(file) => file,
        }
    }

    /// Writer to the file, which waits where a pipe is full.
    pub fn writer(&self) -> Patient<&File> {
        Patient(self.file())
    }

    /// Waits until the disk has the contents and renames the file to its path.
    ///
    /// # Errors
    /// The system's: no space, a folder of that name.
    pub fn commit(self) -> io::Result<()> {
        match self.0 {
            Kind::Named(file, path) => {
                file.as_file().sync_all()?;
                file.persist(path)?;
            }
            Kind::Unnamed(file, path) => {
                file.sync_all()?;
                // A name can be given to it, but not one that another file has.
                let prefix = prefix(&path)?;
                let named = temporary(&prefix)
                    .make_in(folder_of(&path), |name| unnamed::name(&file, name))?;
                named.persist(path)?;
            }
            Kind::Stream(_) => {}
        }
        Ok(())
    }
}

/// Files without a name, which go with the process that made them however it ends.
#[cfg(target_os = "linux")]
mod unnamed {
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::path::{Path, PathBuf};

    use rustix::fs::{AtFlags, CWD, Mode, OFlags};

    /// Path by which this process may name an open file.
    fn link(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// Makes an empty file, where the file system has such.
    pub(super) fn create(folder: &Path, mode: u32) -> Option<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let open: OwnedFd = rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)).ok()?;
        let file = File::from(open);
        // Without /proc it would stay without a name.
        fs::symlink_metadata(link(&file)).is_ok().then_some(file)
    }

    /// Gives it a name that no file has.
    pub(super) fn name(file: &File, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, link(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod unnamed {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(super) fn create(_: &Path, _: u32) -> Option<File> {
        None
    }

    pub(super) fn name(_: &File, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes `contents` to a temporary file and renames it to `path`, so that `path` holds what it held
/// or all of the new contents, whatever happens between: see [`Replacement`].
///
/// # Errors
/// The system's reason: no such folder, no permission, no space, a folder of that name.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    fill(Replacement::new(path)?, contents)
}

/// As [`replace`], for a file that nobody but the user may read or write; a link of that name is replaced.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    fill(Replacement::private(path)?, contents)
}

fn fill(replacement: Replacement, contents: &[u8]) -> io::Result<()> {
    replacement.writer().write_all(contents)?;
    replacement.commit()
}

/// Checks that [`replace`] could begin: `path` leads to no folder, what is there may be written by this
/// user, and a file beside it can be made.
///
/// # Errors
/// As [`replace`].
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match Destination::of(path)? {
        Destination::File(path, existing) => {
            if existing.is_some() {
                may_write(&path)?;
            }
            beside(&path, 0o600)?.close()
        }
        // Opening a pipe would wait for its reader.
        Destination::Stream(path) => may_write(&path),
    }
}

/// Asks the system for the right to write to a file, which a folder that is shared, or the file's owner,
/// may withhold.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix answers without opening"))]
fn may_write(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?;
    Ok(())
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

/// True if the maker of a file or folder has gone. While it is in use, its maker holds a lock on it
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

/// True if a part of a name is that of temporary files and folders: [`RANDOM`]
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

/// True if both belong to one user, where the system says so.
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

/// True if an open file is the one that was looked at, and not what its name has led to since.
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

/// The beginning of the names of temporary files for a path: its own name and a dot.
fn prefix(path: &Path) -> io::Result<OsString> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let mut prefix = name.to_os_string();
    prefix.push(".");
    Ok(prefix)
}

/// A builder of temporary files whose names begin so, and end as this module knows them.
fn temporary(prefix: &OsStr) -> tempfile::Builder<'_, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).rand_bytes(RANDOM).suffix(SUFFIX);
    builder
}

/// An empty temporary file in the folder of `path`, which goes when it is dropped. Where files have
/// no `mode`, it counts for nothing.
fn beside(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let prefix = prefix(path)?;
    let mut builder = temporary(&prefix);
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
    #[test]
    fn h1_a_link_stays_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::{PermissionsExt, symlink};
            symlink("second", at("first")).unwrap();
            symlink("real/file", at("second")).unwrap();
            // First it leads nowhere.
            for (text, mode) in [("old", 0o640), ("new", 0o640)] {
                check_replaceable(&at("first")).unwrap();
                replace(&at("first"), text.as_bytes()).unwrap();
                assert_eq!(fs::read_to_string(at("real/file")).unwrap(), text);
                assert!(fs::symlink_metadata(at("first")).unwrap().is_symlink());
                if text == "new" {
                    let permissions = fs::metadata(at("real/file")).unwrap().permissions();
                    assert_eq!(permissions.mode() & 0o777, mode);
                }
                fs::set_permissions(at("real/file"), fs::Permissions::from_mode(mode)).unwrap();
            }
            symlink("loop", at("loop")).unwrap();
            symlink("real", at("folder")).unwrap();
            drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
            let refused = [("loop", "links"), ("folder", "directory"), ("socket", "socket")];
            for (name, says) in refused {
                for error in [check_replaceable(&at(name)), replace(&at(name), b"new")] {
                    let error = error.unwrap_err().to_string();
                    assert!(error.contains(says), "{name}: {error}");
                }
            }
            assert_eq!(names(&at("real")), ["file"]);
        }
        for name in ["real", "real/", "none/", "real/.", "none/."] {
            for error in [check_replaceable(&at(name)), replace(&at(name), b"new")] {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("directory"), "{name}: {error}");
            }
        }
        assert!(!at("none").exists());
    }

    /// H9: what is not whole has no name, so a process that is killed leaves nothing.
    #[cfg(target_os = "linux")]
    #[test]
    fn h9_a_file_has_no_name_before_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let replacement = Replacement::new(&path).unwrap();
        replacement.writer().write_all(b"half").unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        drop(replacement);
        assert_eq!(names(folder.path()), [""; 0]);
        for text in ["whole", "another"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(names(folder.path()), ["m.gguf"]);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
