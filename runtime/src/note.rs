//! Notes for the user, as data.

use std::fmt;

/// A one-line note to the user that is no error: the profile taken, an oddity of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// True if it warns of a problem.
    pub is_warning: bool,
    /// The line, without "warning: ".
    pub text: String,
}

impl Note {
    /// Makes a note for information.
    #[must_use]
    pub fn info(text: impl Into<String>) -> Self {
        Self { is_warning: false, text: text.into() }
    }

    /// Makes a warning.
    #[must_use]
    pub fn warning(text: impl Into<String>) -> Self {
        Self { is_warning: true, text: text.into() }
    }
}

/// Formats the line as programs print it.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_warning { "warning: " } else { "" };
        write!(f, "{prefix}{}", self.text)
    }
}
