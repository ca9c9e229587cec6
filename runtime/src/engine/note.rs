//! Remarks: what the library wants a user to know, as data.

use std::fmt;

/// Something to tell the user that is no error: which profile was taken, an oddity of the file. One
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it tells of something amiss.
    pub is_warning: bool,
    /// The line, without "warning: ".
    pub text: String,
}

impl Note {
    /// Tells how things are.
    #[must_use]
    pub fn info(text: impl Into<String>) -> Self {
        Self { is_warning: false, text: text.into() }
    }

    /// Tells of something amiss.
    #[must_use]
    pub fn warning(text: impl Into<String>) -> Self {
        Self { is_warning: true, text: text.into() }
    }
}

/// The line as programs print it.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_warning { "warning: " } else { "" };
        write!(f, "{prefix}{}", self.text)
    }
}
