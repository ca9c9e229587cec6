//! The folder of libraries made on the host. A library is code, so nothing in it is used before the
//! folder and the file were found to be nobody else's, and the content to be what was stored.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bitnet_profiles::{file, registry};
use rustix::fs::{OFlags, StatVfsMountFlags};
use sha2::{Digest, Sha256};

use super::library::Unusable;
use crate::error::quoted;

/// Bits of a mode that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a folder's mode that keeps its entries to their owners.
const STICKY: u32 = 0o1000;

/// Libraries under the SHA-256 of their content.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The content of a library, read once and found to be what was stored, and trusted.
#[derive(Clone, Debug)]
pub struct Checked {
    pub(super) bytes: Vec<u8>,
    pub(super) path: PathBuf,
}

impl Cache {
    /// The most a library may have, in bytes; one of 300 kernels has about 10^6.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// The user's cache: `bitnet/kernels` in `$XDG_CACHE_HOME` or `~/.cache`. `variable` looks up a
    /// variable of the environment. Nothing is read or created.
    ///
    /// # Errors
    /// [`Unusable::NoFolder`]
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Unusable> {
        registry::cache_folder(variable).map(Self::at).ok_or(Unusable::NoFolder)
    }

    /// A cache elsewhere.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where the libraries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a library and gives its SHA-256, 64 hexadecimal digits. The folder is created, for the
    /// user alone, where it is missing. The file appears whole or not at all; who stores the same
    /// content at the same time does no harm.
    ///
    /// # Errors
    /// The system refuses, or the folder is not to be trusted.
    pub fn store(&self, library: &[u8]) -> Result<String, Unusable> {
        let io = |path: &Path, action| {
            let path = path.to_path_buf();
            move |source| Unusable::Io { path, action, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(io(&self.folder, "create"))?;
        let folder = self.trusted_folder()?;
        let sha256 = hash(library);
        let path = folder.join(file_name(&sha256));
        if self.open(&sha256).is_ok() {
            return Ok(sha256);
        }
        file::replace_private(&path, library).map_err(io(&path, "write"))?;
        Ok(sha256)
    }

    /// Reads a library, once, through one open file, and checks that nobody else can have made or
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
        // Not through a link, and without waiting for the writer of a pipe.
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
        // One more than is allowed, to see whether there is more.
        let mut content = file.take(Self::MAX_BYTES + 1);
        content.read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() as u64 > Self::MAX_BYTES {
            return Err(Unusable::Size { path, most: Self::MAX_BYTES });
        }
        let found = hash(&bytes);
        if found != sha256 {
            return Err(Unusable::Hash { path, found });
        }
        Ok(Checked { bytes, path })
    }

    /// The folder by its real path, if only this user can change what is in it or above it.
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
        // Links further up are as good as the folders on the real path.
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
    format!("{sha256}.so")
}

/// The SHA-256 of `bytes`, as 64 hexadecimal digits.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This user's alone to write.
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

/// On a file system from which code may be executed. It would not be executed from there, which is
/// no reason to do what its mount forbids.
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
