//! The runtime's one error type and the exit code each kind of error maps to.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use bitnet_profiles::ProfileError;

/// `std::result::Result` with [`Error`] as the error.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the runtime, one variant per exit code.
///
/// Each message is a single line that names the file (where there is one), the item, the value
/// found and what is allowed; the `expected` text also says what to do where that is not obvious.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something failed while running: a worker panicked, a self-check did not hold.
    #[error("{0}")]
    Runtime(String),

    /// A call asks for something that is not offered.
    #[error("{item}: found {found}, expected {expected}")]
    Usage {
        /// The parameter.
        item: String,
        /// The value given.
        found: String,
        /// The values allowed, and what to do.
        expected: String,
    },

    /// The model file is malformed, or holds something this runtime does not run.
    #[error("{}: {item}: found {found}, expected {expected}", .path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// The header field, metadata key or tensor.
        item: String,
        /// The value found.
        found: String,
        /// The values allowed, and what to do.
        expected: String,
    },

    /// The tuning profile is malformed or does not fit.
    #[error(
        "{}: {item}: {problem}; make it anew with: bitnet-tune --model MODEL -o {}",
        .path.display(),
        .path.display()
    )]
    Profile {
        /// The profile file.
        path: PathBuf,
        /// The table or key.
        item: String,
        /// The value found, and the values allowed.
        problem: String,
    },

    /// The CPU lacks a feature that was asked for.
    #[error("{item}: found {found}, expected {expected}")]
    Cpu {
        /// The option or setting that asked for the feature.
        item: String,
        /// The value found.
        found: String,
        /// The values allowed, and what to do.
        expected: String,
    },

    /// The caller asked for the end, by a [`Cancel`](crate::Cancel).
    #[error("interrupted")]
    Interrupted,

    /// The operating system refused to open, read or write a file.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The attempted action, as a verb: `open`, `read`, `write`.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Returns the process exit code of this error: 1 runtime, 2 usage, 3 bad model, 4 bad profile,
    /// 5 CPU lacks a feature, 6 I/O, 130 interrupted, as shells have it: 128 and the number of SIGINT.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Runtime(_) => 1,
            Error::Usage { .. } => 2,
            Error::Model { .. } => 3,
            Error::Profile { .. } => 4,
            Error::Cpu { .. } => 5,
            Error::Io { .. } => 6,
            Error::Interrupted => 130,
        }
    }

    /// Makes the error of a refused profile: the reason, and the command that makes another.
    pub fn profile(path: &Path, error: ProfileError) -> Self {
        match error {
            ProfileError::Io { path, action, source } => {
                let command = format!("bitnet-tune --model MODEL -o {}", path.display());
                let text = format!("{source}; make it with: {command}");
                Error::Io { path, action, source: io::Error::new(source.kind(), text) }
            }
            ProfileError::Content { item, problem } => {
                Error::Profile { path: path.to_path_buf(), item, problem }
            }
        }
    }

    /// Makes an [`Error::Model`] from anything printable.
    pub fn model(
        path: &Path,
        item: impl Display,
        found: impl Display,
        expected: impl Display,
    ) -> Self {
        Error::Model {
            path: path.to_path_buf(),
            item: item.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// Makes an [`Error::Usage`] from anything printable.
    pub fn usage(item: impl Display, found: impl Display, expected: impl Display) -> Self {
        Error::Usage {
            item: item.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// Makes an [`Error::Io`]; `action` is a verb such as `open`.
    pub fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), action, source }
    }

    /// True if the reader of a pipe we write to has gone (`bitnet-run ... | head`): not an error
    /// worth a message.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Quotes text taken from a file for a message: control characters escaped (a message stays one
/// line and cannot drive the terminal), cut after 64 characters.
#[must_use]
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    let mut out = String::from("'");
    for (i, c) in text.chars().enumerate() {
        if i == SHOWN {
            out.push_str("...");
            break;
        }
        if c == '\'' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_published_ones() {
        let path = Path::new("m.gguf");
        let io = || io::Error::from(io::ErrorKind::NotFound);
        let cases = [
            (Error::Runtime("worker 1 panicked".into()), 1),
            (Error::usage("isa", "'foo'", "scalar, avx2"), 2),
            (Error::model(path, "magic", "'PK'", "'GGUF'"), 3),
            (
                Error::Profile {
                    path: path.into(),
                    item: "schema".into(),
                    problem: "9, but this version reads 1".into(),
                },
                4,
            ),
            (Error::Cpu { item: "isa".into(), found: "avx2".into(), expected: "avx512".into() }, 5),
            (Error::io(path, "open", io()), 6),
            (Error::Interrupted, 130),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn quoted_text_stays_on_one_line_and_short() {
        assert_eq!(quoted("a\nb\u{1b}[2J"), "'a\\nb\\u{1b}[2J'");
        assert_eq!(quoted(&"x".repeat(100_000)), format!("'{}...'", "x".repeat(64)));
    }
}
