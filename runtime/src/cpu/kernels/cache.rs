//! Cache folder of the libraries made on the host. A library is code, so nothing in it is used
//! before the folder and the file are checked to be nobody else's, and the content to be what was
//! stored.
//!
//! The cache is bounded: when a library is stored, the least recently used ones beyond
//! [`Cache::MOST`] of them or [`Cache::MOST_BYTES`] in all are removed. A profile that names a
//! removed one takes the built-in kernels that it names beside. A process that makes libraries
//! works in a folder within ([`Scratch`]); leftovers of killed processes are removed by the next
//! one to make a folder.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bitnet_profiles::{atomic_file, paths};
use rustix::fs::{OFlags, StatVfsMountFlags};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::library::Unusable;
use crate::error::quoted;
use crate::file::hexadecimal;

/// Mode bits that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// The mode bit of a folder that keeps its entries to their owners.
const STICKY: u32 = 0o1000;

/// Prefix of the name of a [`Scratch`].
const SCRATCH: &str = "run-";
/// Suffix of the name of a library.
const LIBRARY: &str = ".so";

/// Cache of libraries, named by the SHA-256 of their content.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The content of a library, read once, checked against its hash, and trusted.
#[derive(Clone, Debug)]
pub struct Checked {
    pub(super) bytes: Vec<u8>,
    pub(super) path: PathBuf,
}

/// Work folder of one process within the cache, for this user alone. It is removed with its content
/// when this is dropped or, if the process is killed, when the next one is made.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    /// Lock that marks this process as alive: it ends with the process.
    _lock: File,
}

impl Scratch {
    /// Its path.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Cache {
    /// Most libraries that are kept.
    pub const MOST: usize = 64;
    /// Most bytes of all libraries together.
    pub const MOST_BYTES: u64 = 256 << 20;

    /// Most bytes of one library; one of 300 kernels has about 10^6.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// Returns the user's cache: `bitnet/kernels` in `$XDG_CACHE_HOME` or `~/.cache`. `variable`
    /// looks up an environment variable. Nothing is read or created.
    ///
    /// # Errors
    /// [`Unusable::NoFolder`]
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Unusable> {
        paths::cache_folder(variable).map(Self::at).ok_or(Unusable::NoFolder)
    }

    /// Returns a cache in another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Folder of the libraries.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores a library and returns its SHA-256, 64 hexadecimal digits. The folder is created, for
    /// the user alone, where it is missing. The file appears whole or not at all; storing the same
    /// content at the same time elsewhere does no harm. Libraries that nobody has used for long may
    /// be removed.
    ///
    /// # Errors
    /// The system refuses, or the folder is not to be trusted.
    pub fn store(&self, library: &[u8]) -> Result<String, Unusable> {
        let folder = self.created_folder()?;
        let sha256 = hash(library);
        let path = folder.join(file_name(&sha256));
        if self.open(&sha256).is_ok() {
            return Ok(sha256);
        }
        let io = |source| Unusable::Io { path: path.clone(), action: "write", source };
        atomic_file::replace_private(&path, library).map_err(io)?;
        remove_unused(&folder, &path);
        Ok(sha256)
    }

    /// Makes a folder to make a library in, and to keep it in for as long as one process needs it.
    /// Folders and temporary files of killed processes are removed.
    ///
    /// # Errors
    /// As [`Cache::store`].
    pub fn scratch(&self) -> Result<Scratch, Unusable> {
        let parent = self.created_folder()?;
        let io =
            |source| Unusable::Io { path: parent.clone(), action: "create a folder in", source };
        let mut builder = tempfile::Builder::new();
        builder.permissions(Permissions::from_mode(0o700));
        builder.prefix(SCRATCH).rand_bytes(atomic_file::RANDOM);
        let folder = builder.tempdir_in(&parent).map_err(io)?;
        let lock = File::open(folder.path()).map_err(io)?;
        // Not every file system has locks.
        let _ = lock.try_lock();
        remove_leftovers(&parent);
        Ok(Scratch { folder, _lock: lock })
    }

    /// Removes the leftovers of killed processes, as [`Cache::scratch`] does, where there is a
    /// cache and it is to be trusted.
    pub fn remove_leftovers(&self) {
        if let Ok(folder) = self.trusted_folder() {
            remove_leftovers(&folder);
        }
    }

    /// Returns the real path of the folder, creating it where it is missing.
    fn created_folder(&self) -> Result<PathBuf, Unusable> {
        let io = |source| Unusable::Io { path: self.folder.clone(), action: "create", source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(io)?;
        self.trusted_folder()
    }

    /// Reads a library once, through one open file, and checks that nobody else can have made or
    /// changed it.
    ///
    /// # Errors
    /// There is none, the system refuses, or it is not to be trusted. Hexadecimal digits are those of
    /// [`Cache::store`], in lower case.
    pub fn open(&self, sha256: &str) -> Result<Checked, Unusable> {
        // The name becomes part of a path.
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Unusable::Name { found: quoted(sha256) });
        }
        let path = self.trusted_folder()?.join(file_name(sha256));
        let io = |action| {
            let path = path.clone();
            move |source| Unusable::Io { path, action, source }
        };
        // Links are not followed, and the writer of a pipe is not waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let file = file.map_err(|source| match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => kind(&path, &meta, "file"),
            _ => io("open")(source),
        })?;
        let meta = file.metadata().map_err(io("read"))?;
        if !meta.is_file() {
            return Err(kind(&path, &meta, "file"));
        }
        private(&path, &meta)?;
        executable(&path, &file)?;
        let mut bytes = Vec::new();
        // One byte more than is allowed, to detect a longer file.
        let mut content = file.take(Self::MAX_BYTES + 1);
        content.read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() as u64 > Self::MAX_BYTES {
            return Err(Unusable::Size { path, most: Self::MAX_BYTES });
        }
        let found = hash(&bytes);
        if found != sha256 {
            return Err(Unusable::Hash { path, found });
        }
        // The library counts as used now; where that cannot be written, as used before.
        let _ = content.into_inner().set_modified(SystemTime::now());
        Ok(Checked { bytes, path })
    }

    /// Returns the real path of the folder, if only this user can change its content or the folders
    /// above.
    fn trusted_folder(&self) -> Result<PathBuf, Unusable> {
        let io = |action| {
            let path = self.folder.clone();
            move |source| Unusable::Io { path, action, source }
        };
        let meta = fs::symlink_metadata(&self.folder).map_err(io("open"))?;
        if !meta.is_dir() {
            return Err(kind(&self.folder, &meta, "folder"));
        }
        private(&self.folder, &meta)?;
        // Links further up are as safe as the folders on the real path.
        let folder = fs::canonicalize(&self.folder).map_err(io("open"))?;
        for parent in folder.ancestors().skip(1) {
            let meta = fs::symlink_metadata(parent).map_err(io("open"))?;
            let own = rustix::process::geteuid().as_raw();
            if meta.uid() != own && meta.uid() != 0 {
                return Err(Unusable::Owner { path: parent.into(), found: meta.uid(), own });
            }
            if meta.mode() & OTHERS_WRITE != 0 && meta.mode() & STICKY == 0 {
                let mode = meta.mode() & 0o7777;
                return Err(Unusable::Writable { path: parent.into(), mode });
            }
        }
        let open = File::open(&folder).map_err(io("open"))?;
        executable(&folder, &open)?;
        Ok(folder)
    }
}

fn file_name(sha256: &str) -> String {
    format!("{sha256}{LIBRARY}")
}

/// True if a file of that name is a library: see [`file_name`].
fn is_library(name: &[u8]) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let sha256 = name.strip_suffix(LIBRARY.as_bytes());
    sha256.is_some_and(|sha256| sha256.len() == 64 && sha256.iter().all(digit))
}

/// Returns the entries of one of this user's folders that belong to this user, by name; links are
/// not followed.
fn own_entries(folder: &Path) -> impl Iterator<Item = (OsString, Metadata)> {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let with_meta = entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?)));
    with_meta.filter(move |(_, meta)| meta.uid() == own)
}

/// Removes the least recently used libraries, so many that those that stay, `newest` among them,
/// keep to the bounds of a [`Cache`].
fn remove_unused(folder: &Path, newest: &Path) {
    let mut libraries: Vec<(SystemTime, u64, PathBuf)> = own_entries(folder)
        .filter(|(name, meta)| meta.is_file() && is_library(name.as_encoded_bytes()))
        .filter_map(|(name, meta)| Some((meta.modified().ok()?, meta.len(), folder.join(name))))
        .collect();
    libraries.sort_by_key(|(used, _, path)| (path != newest, std::cmp::Reverse(*used)));
    let (mut count, mut bytes) = (0, 0);
    for (_, len, path) in libraries {
        (count, bytes) = (count + 1, bytes + len);
        if count > Cache::MOST || bytes > Cache::MOST_BYTES {
            // A file that cannot be removed stays.
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the leftovers of killed processes in the cache: temporary files of libraries, and work
/// folders.
fn remove_leftovers(folder: &Path) {
    if let Ok(meta) = fs::symlink_metadata(folder) {
        atomic_file::remove_leftovers(folder, is_library, &meta);
    }
    for (name, meta) in own_entries(folder) {
        let random = name.as_encoded_bytes().strip_prefix(SCRATCH.as_bytes());
        if !meta.is_dir() || !random.is_some_and(atomic_file::is_random) {
            continue;
        }
        let path = folder.join(name);
        let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
        let open =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        if open.is_ok_and(|folder| atomic_file::is_abandoned(&folder)) {
            // Links in it are removed, not followed.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Returns the SHA-256 of `bytes`, as 64 hexadecimal digits.
fn hash(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

/// Checks that only this user can write to it.
fn private(path: &Path, meta: &Metadata) -> Result<(), Unusable> {
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own {
        return Err(Unusable::Owner { path: path.into(), found: meta.uid(), own });
    }
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(Unusable::Writable { path: path.into(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// Checks that the file system allows execution. Code is not executed from there, but that is no
/// reason to bypass a mount option that forbids it.
fn executable(path: &Path, file: &File) -> Result<(), Unusable> {
    let mount = rustix::fs::fstatvfs(file).map_err(|error| Unusable::Io {
        path: path.into(),
        action: "look at the file system of",
        source: io::Error::from(error),
    })?;
    if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(Unusable::NoExec { path: path.into() });
    }
    Ok(())
}

fn kind(path: &Path, meta: &Metadata, expected: &'static str) -> Unusable {
    let found = match meta.file_type() {
        ty if ty.is_symlink() => "a symbolic link",
        ty if ty.is_dir() => "a folder",
        ty if ty.is_file() => "a file",
        _ => "a device, pipe or socket",
    };
    Unusable::Kind { path: path.into(), found, expected }
}
