//! Destination of a file to be written, by the path that a user names: a file that is replaced, or a
//! device, a pipe or an open descriptor that is written into.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Links that are followed one after the other, at most, as the system does.
const MOST_LINKS: usize = 40;
/// Bytes that [`beginning`] reads.
const BEGINNING: u64 = 512;

/// The end of a path, links followed.
#[derive(Debug)]
pub(crate) enum Destination {
    /// A regular file, or none yet, to be replaced as a whole; with the permissions of the one that is
    /// there.
    File(PathBuf, Option<Permissions>),
    /// Something that is written into: a device, a pipe, or the file behind a descriptor of this process,
    /// as `/dev/stdout` is.
    Stream(PathBuf),
}

impl Destination {
    /// Follows `path`.
    ///
    /// # Errors
    /// The system's; of a folder, a name that can only be a folder's, a socket, or links without end.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let name = path.as_os_str().as_encoded_bytes();
        let is_separator = |&byte: &u8| std::path::is_separator(char::from(byte));
        let folder = || io::Error::other("it is a directory; give a file");
        // Path::file_name overlooks what stands behind the last separator here.
        if name.last().is_some_and(is_separator)
            || name.strip_suffix(b".").is_some_and(|rest| rest.last().is_some_and(is_separator))
        {
            return Err(folder());
        }
        let mut path = path.to_path_buf();
        for _ in 0..MOST_LINKS {
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self::File(path, None));
                }
                Err(error) => return Err(error),
            };
            let kind = meta.file_type();
            if kind.is_symlink() {
                if is_descriptor(&path) {
                    return Ok(Self::Stream(path));
                }
                path = folder_of(&path).join(fs::read_link(&path)?);
            } else if kind.is_dir() {
                return Err(folder());
            } else if kind.is_file() {
                return Ok(Self::File(path, Some(meta.permissions())));
            } else if is_socket(kind) {
                return Err(io::Error::other("it is a socket; give a file"));
            } else {
                return Ok(Self::Stream(path));
            }
        }
        Err(io::Error::other("too many links lead to one another; give a file"))
    }

    /// Path of what holds contents that writing would replace: a file that exists, or a disk.
    fn kept(self) -> Option<PathBuf> {
        match self {
            Self::File(path, permissions) => permissions.map(|_| path),
            Self::Stream(path) => is_disk(&path).then_some(path),
        }
    }
}

/// True if `path` leads to what is written into: a device, a pipe, an open descriptor.
pub fn is_stream(path: &Path) -> bool {
    matches!(Destination::of(path), Ok(Destination::Stream(_)))
}

/// True if writing to `path` would replace contents: of a file that exists, or of a disk. Pipes and
/// terminals hold none.
pub fn holds_contents(path: &Path) -> bool {
    Destination::of(path).is_ok_and(|destination| destination.kept().is_some())
}

/// Reads the first 512 bytes of what writing to `path` would replace; nothing where that is nothing.
///
/// # Errors
/// Errors of opening and reading it, and of following the path.
pub fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(path) = Destination::of(path)?.kept() {
        File::open(path)?.take(BEGINNING).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// True if a link stands for a descriptor of a process: its text is no path.
fn is_descriptor(link: &Path) -> bool {
    let folder = folder_of(link).canonicalize();
    folder.is_ok_and(|folder| folder.starts_with("/proc") && folder.ends_with("fd"))
}

#[cfg(unix)]
fn is_socket(kind: fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&kind)
}

#[cfg(not(unix))]
fn is_socket(_: fs::FileType) -> bool {
    false
}

#[cfg(unix)]
fn is_disk(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

#[cfg(not(unix))]
fn is_disk(_: &Path) -> bool {
    false
}

/// Opens what is written into. Of stdout and stderr it is the descriptor itself, so that what the program
/// writes there besides comes before or behind, not over it.
pub(crate) fn open_stream(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    if is_descriptor(path) {
        use std::os::fd::AsFd;
        let number = path.file_name().and_then(|name| name.to_str());
        match number {
            Some("1") => return Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
            Some("2") => return Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
            _ => {}
        }
    }
    let is_file = fs::metadata(path)?.is_file();
    File::options().write(true).append(is_file).open(path)
}

/// The folder of a file; that of a bare name is "", which means here.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
