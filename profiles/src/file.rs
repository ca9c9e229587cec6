//! Files that are replaced whole.

use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// Writes `contents` to a temporary file beside `path` and renames it, so that `path` holds what
/// it held or all of the new contents, whatever happens between. The temporary file's name is new
/// (one that an earlier process left behind is in nobody's way) and it is removed on an error.
///
/// # Errors
/// What the system says: no such folder, no permission, no space, a folder of that name.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    // As any new file, less what the user's umask takes away.
    fill(beside(path, 0o666)?, path, contents)
}

/// As [`replace`], for a file that nobody but the user may read or write.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    fill(beside(path, 0o600)?, path, contents)
}

fn fill(mut file: NamedTempFile, path: &Path, contents: &[u8]) -> io::Result<()> {
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
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

/// An empty temporary file in the folder of `path`, which goes when it is dropped. Where files have
/// no `mode`, it counts for nothing.
fn beside(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::other("it names no file"));
    };
    // The folder of a bare name is "", which means here.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut prefix = name.to_os_string();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}
