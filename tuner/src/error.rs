use std::path::PathBuf;

use bitnet_profiles::{ProfileError, SpecError, printable};

/// `std::result::Result` with [`Error`] as the error.
pub type Result<T> = std::result::Result<T, Error>;

/// Exit code of a stopped run, as shells have it.
pub(crate) const STOPPED: u8 = 130;

/// Errors of tuning. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime refused: a bad model, a bad flag, a file, a worker that panicked.
    #[error(transparent)]
    Runtime(#[from] bitnet_runtime::Error),
    /// The profile could not be written or read.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A worker process could not do its work.
    #[error("{message}")]
    Worker {
        /// Its error's message.
        message: String,
        /// The exit code of that error.
        code: u8,
    },
    /// The run was stopped by the user.
    #[error("stopped{}", .journal.as_ref().map_or(String::new(), |path| format!(
        "; what was measured is in {}, and the same command with --resume goes on",
        printable(&path.to_string_lossy())
    )))]
    Stopped {
        /// Path of the journal, if one was kept.
        journal: Option<PathBuf>,
    },
    /// A name that stands for no kernel.
    #[error("{}", printable(&.0.to_string()))]
    Spec(#[from] SpecError),
    /// No compiler is there to make kernels with; the built-in ones still serve.
    #[error("{reason}")]
    NoToolchain {
        /// The missing part, and what to do.
        reason: String,
    },
    /// The compiler did not make a library.
    #[error("{}: {problem}", .rustc.display())]
    Compile {
        /// The compiler.
        rustc: PathBuf,
        /// Its first error, or how it ended.
        problem: String,
    },
    /// The generator refused.
    #[error(transparent)]
    Codegen(#[from] bitnet_codegen::Error),
}

impl Error {
    /// A stopped run without a journal.
    pub(crate) fn stopped() -> Self {
        Self::Stopped { journal: None }
    }

    /// True if the reader of our output has gone: not an error worth a message.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Runtime(error) if error.is_broken_pipe())
    }

    /// Returns the process exit code: 1 runtime, 2 usage, 3 bad model, 4 bad profile, 5 CPU lacks a
    /// feature, 6 I/O, 130 when the user stopped it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Runtime(error) => error.exit_code(),
            Self::Worker { code, .. } => *code,
            Self::Profile(ProfileError::Io { .. }) => 6,
            Self::Profile(ProfileError::Content { .. }) => 4,
            Self::Spec(_) => 2,
            Self::Stopped { .. } => STOPPED,
            // An id that no template serves is a wrong argument; the rest is our own fault.
            Self::Codegen(bitnet_codegen::Error::NoTemplate { .. }) => 2,
            Self::Codegen(_) | Self::NoToolchain { .. } | Self::Compile { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_codes_the_published_ones() {
        let spec = "i2_s\n\u{1b}[2J".parse::<bitnet_profiles::KernelId>().unwrap_err();
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let io = ProfileError::Io { path: "host.toml".into(), action: "write", source: io };
        let runtime = bitnet_runtime::Error::usage("--threads", 0, "1 to 1024");
        let stopped = Error::Stopped { journal: Some("a\nb.journal".into()) };
        let cases: [(Error, u8); 4] =
            [(spec.into(), 2), (io.into(), 6), (runtime.into(), 2), (stopped, 130)];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(!error.to_string().chars().any(char::is_control), "{error}");
        }
    }
}
