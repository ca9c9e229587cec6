//! The files that a run writes: what they may replace is found out before anything is measured.

use std::path::Path;

use bitnet_profiles::{atomic_file, destination};
use bitnet_runtime::Error;
use bitnet_runtime::error::quoted;

use crate::Result;
use crate::journal::Journal;

/// Kind of file that a flag names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A profile, with the journal beside it.
    Profile,
    /// Measurements as JSON.
    Record,
    /// A page of HTML.
    Report,
}

impl Kind {
    /// The flag.
    fn flag(self) -> &'static str {
        match self {
            Self::Profile => "-o",
            Self::Record => "--record",
            Self::Report => "--report",
        }
    }

    /// The name of what may be replaced.
    fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Record => "record",
            Self::Report => "report",
        }
    }

    /// True if a file that begins so may be replaced: it is empty, or of this kind, damaged perhaps.
    fn is_own(self, beginning: &[u8]) -> bool {
        let start = match self {
            Self::Profile => "schema",
            Self::Record => "{",
            Self::Report => "<!DOCTYPE html>",
        };
        let text = beginning.trim_ascii_start();
        text.is_empty() || text.starts_with(start.as_bytes())
    }
}

/// Checks that all files can be written, and replace nothing but what such a run wrote before.
///
/// # Errors
/// [`Error::Io`] where the system refuses, [`Error::Usage`] for a file of another kind and for one that two
/// flags name.
pub(super) fn check(files: &[(Kind, &Path)]) -> Result<()> {
    for (i, &(kind, path)) in files.iter().enumerate() {
        atomic_file::check_replaceable(path).map_err(|e| Error::io(path, "write", e))?;
        replaces(kind, path, kind.name())?;
        if kind == Kind::Profile
            && let Some(journal) = Journal::path_for(path)
        {
            // It is JSON, too, line by line.
            replaces(Kind::Record, &journal, "journal of a run")?;
        }
        if let Some((other, _)) = files[..i].iter().find(|(_, other)| *other == path) {
            let found = format!("{}, the file of {}", path.display(), other.flag());
            return Err(Error::usage(kind.flag(), found, "a file of its own").into());
        }
    }
    Ok(())
}

/// Checks what is at `path` by its beginning.
fn replaces(kind: Kind, path: &Path, name: &str) -> Result<()> {
    let beginning = destination::beginning(path).map_err(|e| Error::io(path, "read", e))?;
    if kind.is_own(&beginning) {
        return Ok(());
    }
    let line = beginning.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let shown: String = String::from_utf8_lossy(line).chars().take(16).collect();
    let found = format!("{}, which exists and begins with {}", path.display(), quoted(&shown));
    let expected = format!("a new file, or a {name}, which is replaced");
    Err(Error::usage(kind.flag(), found, expected).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h1_only_files_of_the_same_kind_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let own = [
            (Kind::Profile, "schema = 1\n[tool]"),
            (Kind::Record, "{\"version\": 1}"),
            (Kind::Report, "<!DOCTYPE html><html>"),
        ];
        for (kind, _) in own {
            check(&[(kind, &path)]).unwrap();
            for (other, text) in own {
                for text in ["", "\n", text] {
                    std::fs::write(&path, text).unwrap();
                    let allowed = other == kind || text.trim().is_empty();
                    let checked = check(&[(kind, &path)]);
                    assert_eq!(checked.is_ok(), allowed, "{kind:?} over {text}: {checked:?}");
                }
            }
            std::fs::write(&path, b"GGUF\x03\0\0\0\x1b[2J").unwrap();
            let error = check(&[(kind, &path)]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let error = error.to_string();
            for word in [kind.flag(), "/file, which exists", "GGUF", kind.name()] {
                assert!(error.contains(word), "{error} lacks {word}");
            }
            assert!(!error.chars().any(char::is_control), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
        let twice = check(&[(Kind::Profile, &path), (Kind::Record, &path)]).unwrap_err();
        assert!(twice.to_string().contains("--record: found"), "{twice}");
        std::fs::write(folder.path().join("file.journal"), "my journal").unwrap();
        let journal = check(&[(Kind::Profile, &path)]).unwrap_err();
        assert!(journal.to_string().contains("file.journal, which exists"), "{journal}");
    }
}
