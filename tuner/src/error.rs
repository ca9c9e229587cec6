use bitnet_profiles::ProfileError;

/// `std::result::Result` with [`Error`] as the error.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong while tuning. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime refused: a bad model, a bad flag, a file, a worker that panicked.
    #[error(transparent)]
    Runtime(#[from] bitnet_runtime::Error),
    /// The profile could not be written or read.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The generator refused.
    #[error(transparent)]
    Codegen(#[from] bitnet_codegen::Error),
}

impl Error {
    /// The process exit code of this error: 1 runtime, 2 usage, 3 bad model, 4 bad profile,
    /// 5 CPU lacks a feature, 6 I/O.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Runtime(error) => error.exit_code(),
            Self::Profile(ProfileError::Io { .. }) => 6,
            Self::Profile(ProfileError::Content { .. }) => 4,
            // An id that no template serves is a wrong argument; the rest is our own fault.
            Self::Codegen(bitnet_codegen::Error::NoTemplate { .. }) => 2,
            Self::Codegen(_) => 1,
        }
    }
}
