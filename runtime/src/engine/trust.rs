//! Trust in profiles: a check that nobody but the user could have written one. The worst that a
//! profile can do is to be slow, or to name another model; still nobody should have to run a
//! stranger's.

use std::path::Path;

use crate::note::Note;

/// Doubts about a file's place. There are none on systems without such permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    symlink: bool,
    writable: bool,
    folder_writable: bool,
    foreign: bool,
}

impl Trust {
    /// Checks a file; one that does not exist raises no doubt.
    #[cfg(unix)]
    pub fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;

        const OTHERS_WRITE: u32 = 0o002;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = std::fs::metadata(folder.unwrap_or(Path::new(".")));
        let target = std::fs::metadata(path);
        let writable = |meta: &std::fs::Metadata| meta.mode() & OTHERS_WRITE != 0;
        Self {
            symlink: path.is_symlink(),
            writable: target.as_ref().is_ok_and(writable),
            folder_writable: folder.as_ref().is_ok_and(writable),
            foreign: target.is_ok_and(|meta| meta.uid() != rustix::process::geteuid().as_raw()),
        }
    }

    #[cfg(not(unix))]
    pub fn of(_path: &Path) -> Self {
        Self::default()
    }

    /// Returns the reason for which a file that nobody named is not used.
    pub fn forbids(self) -> Option<&'static str> {
        if self.writable {
            Some("anyone may write it")
        } else if self.folder_writable {
            Some("anyone may write its folder")
        } else if self.foreign {
            Some("it is not this user's")
        } else {
            None
        }
    }

    /// Returns a warning about a file that is used all the same. Its owner does not matter here: a
    /// profile may be shared.
    pub fn warning(self, path: &Path) -> Option<Note> {
        let doubts: Vec<&str> = [
            (self.symlink, "it is a symbolic link"),
            (self.writable, "anyone may write it"),
            (self.folder_writable, "anyone may write its folder"),
        ]
        .into_iter()
        .filter_map(|(holds, doubt)| holds.then_some(doubt))
        .collect();
        let warning =
            || Note::warning(format!("profile {}: {}", path.display(), doubts.join(", ")));
        (!doubts.is_empty()).then(warning)
    }
}
