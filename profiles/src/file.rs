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
    let mut file = beside(path)?;
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
    beside(path)?.close()
}

/// An empty temporary file in the folder of `path`, which goes when it is dropped.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::other("it names no file"));
    };
    // The folder of a bare name is "", which means here.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut prefix = name.to_os_string();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // As any new file, less what the user's umask takes away; by default it would be private.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}
