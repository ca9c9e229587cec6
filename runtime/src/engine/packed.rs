//! Files of packed weights that are kept for this user's models.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bitnet_profiles::{atomic_file, paths};
use sha2::{Digest, Sha256};

use super::trust::Trust;
use crate::cpu::memory::Pages;
use crate::error::{Error, Result};
use crate::file::gguf::Gguf;
use crate::file::hexadecimal;
use crate::file::packed::{PackedFile, Table};

/// Suffix of the files' names.
const SUFFIX: &str = ".packed";

/// The folder of these files. It is bounded: when one is kept, those used least recently beyond
/// [`PackedStore::MOST`] files or [`PackedStore::MOST_BYTES`] in all are removed.
#[derive(Clone, Debug)]
pub struct PackedStore {
    folder: PathBuf,
}

/// A file in the folder.
#[derive(Debug)]
pub struct StoredFile {
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its table, or why it cannot be used.
    pub table: Result<Table>,
}

impl PackedStore {
    /// Most files that are kept.
    pub const MOST: usize = 16;
    /// Most bytes of all files together.
    pub const MOST_BYTES: u64 = 16 << 30;

    /// Returns the user's folder; `variable` looks up a variable of the environment.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the environment names none.
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let none = "there is no cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path";
        let folder = paths::packed_folder(variable).ok_or_else(|| Error::Runtime(none.into()))?;
        Ok(Self::at(folder))
    }

    /// Returns the files in another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path for the packed weights of a model: the name of its file, and a hash of its header
    /// and lengths.
    #[must_use]
    pub fn path_of(&self, gguf: &Gguf) -> PathBuf {
        let mut hash = Sha256::new_with_prefix(gguf.header_sha256());
        gguf.files().for_each(|(_, bytes)| hash.update(bytes.to_le_bytes()));
        let stem = gguf.path().file_stem().unwrap_or_default().to_string_lossy();
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let stem: String = stem.chars().filter(plain).take(64).collect();
        self.folder.join(format!("{stem}-{}{SUFFIX}", &hexadecimal(hash)[..16]))
    }

    /// Opens the packed weights of a model, which count as used now; `None` if there are none.
    ///
    /// # Errors
    /// Those of [`PackedFile::open`]; [`Error::Io`] when others can write the file or its folder.
    pub fn open(&self, gguf: &Gguf, pages: Pages) -> Result<Option<PackedFile>> {
        if !self.folder.is_dir() {
            return Ok(None);
        }
        let path = self.path_of(gguf);
        if !path.exists() {
            return Ok(None);
        }
        if let Some(doubt) = Trust::of(&path).forbids() {
            return Err(Error::io(&path, "trust", std::io::Error::other(doubt)));
        }
        let file = PackedFile::open(&path, pages)?;
        // Where that cannot be written it counts as used before.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(file))
    }

    /// Makes the folder, for this user alone.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub(super) fn create(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.folder).map_err(|e| Error::io(&self.folder, "create", e))
    }

    /// Lists the files, those used last first.
    ///
    /// # Errors
    /// [`Error::Io`] when the system does not read the folder; one that does not exist is empty.
    pub fn list(&self) -> Result<Vec<StoredFile>> {
        let io = |error| Error::io(&self.folder, "read", error);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io)?;
            // That of a link itself.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() && is_packed(entry.file_name().as_encoded_bytes()) {
                let path = entry.path();
                let table = PackedFile::table_of(&path);
                files.push((meta.modified().ok(), StoredFile { path, bytes: meta.len(), table }));
            }
        }
        files.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| one.path.cmp(&other.path)));
        Ok(files.into_iter().map(|(_, file)| file).collect())
    }

    /// Removes a file by the name or the path that the list shows. Processes that have it open keep it.
    ///
    /// # Errors
    /// [`Error::Usage`] when the folder has no such file, [`Error::Io`] when the system refuses.
    pub fn remove(&self, name: &Path) -> Result<()> {
        let known = self.list()?.into_iter().map(|file| file.path);
        let known = known.into_iter().find(|path| {
            path == name || path.file_name().is_some_and(|own| own == name.as_os_str())
        });
        let Some(path) = known else {
            let expected = format!("a file of {}; --list shows them", self.folder.display());
            return Err(Error::usage("packed weights", name.display(), expected));
        };
        fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))
    }

    /// Removes what killed writers left, and the files used least recently beyond the bounds; `newest`
    /// stays.
    pub(super) fn bound(&self, newest: &Path) {
        if let Ok(meta) = fs::metadata(newest) {
            atomic_file::remove_leftovers(&self.folder, is_packed, &meta);
        }
        let mut files = self.list().unwrap_or_default();
        // A stable order: by use.
        files.sort_by_key(|file| file.path != newest);
        let (mut count, mut bytes) = (0, 0u64);
        for file in files {
            (count, bytes) = (count + 1, bytes.saturating_add(file.bytes));
            if file.path != newest && (count > Self::MOST || bytes > Self::MOST_BYTES) {
                // A file that cannot be removed stays.
                let _ = fs::remove_file(file.path);
            }
        }
    }
}

fn is_packed(name: &[u8]) -> bool {
    name.ends_with(SUFFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_listed_by_use_bounded_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = PackedStore::at(dir.path().join("packed"));
        assert!(store.list().unwrap().is_empty());
        store.create().unwrap();
        let name = |i: usize| store.folder().join(format!("{i:02}{SUFFIX}"));
        let now = SystemTime::now();
        for i in 0..PackedStore::MOST + 3 {
            let file = File::create(name(i)).unwrap();
            file.set_modified(now - Duration::from_secs(i as u64)).unwrap();
        }
        fs::write(store.folder().join("other"), "").unwrap();
        let listed = |store: &PackedStore| -> Vec<PathBuf> {
            store.list().unwrap().into_iter().map(|file| file.path).collect()
        };
        assert_eq!(listed(&store), (0..PackedStore::MOST + 3).map(name).collect::<Vec<_>>());
        assert!(store.list().unwrap()[0].table.is_err());
        // The newest stays, although it was used least recently.
        let newest = PackedStore::MOST + 2;
        store.bound(&name(newest));
        let kept: Vec<PathBuf> = (0..PackedStore::MOST - 1).chain([newest]).map(name).collect();
        assert_eq!(listed(&store), kept);
        store.remove(&name(0)).unwrap();
        store.remove(Path::new("01.packed")).unwrap();
        assert_eq!(listed(&store), kept[2..]);
        for wrong in ["01.packed", "other", "../packed/02.packed", "/etc/passwd"] {
            assert_eq!(store.remove(Path::new(wrong)).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert!(store.folder().join("other").exists());
    }

    /// The bound of bytes: sparse files, of which the list reads the lengths only.
    #[test]
    fn files_beyond_the_bytes_that_are_kept_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = PackedStore::at(dir.path());
        let names = ["a", "b", "c"].map(|name| dir.path().join(format!("{name}{SUFFIX}")));
        for (i, name) in names.iter().enumerate() {
            let file = File::create(name).unwrap();
            // Not every file system has files of that length.
            if file.set_len(PackedStore::MOST_BYTES / 2).is_err() {
                return;
            }
            file.set_modified(SystemTime::now() - Duration::from_secs(i as u64)).unwrap();
        }
        store.bound(&names[2]);
        assert_eq!(names.map(|name| name.exists()), [true, false, true]);
    }
}
