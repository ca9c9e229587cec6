//! Requests to stop what takes long.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Callback that is asked if what takes long is to end: between the layers of a pass of many tokens, between
/// tokens, and between matrices that are packed.
#[derive(Clone)]
pub struct Cancel(Arc<dyn Fn() -> bool + Send + Sync>);

impl Cancel {
    /// Makes a callback, which should take no time.
    pub fn new(is_requested: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_requested))
    }

    /// Returns true once the end is asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").finish_non_exhaustive()
    }
}

/// Checks that nobody has asked for the end.
///
/// # Errors
/// [`Error::Interrupted`].
pub(crate) fn check(cancel: Option<&Cancel>) -> Result<()> {
    if cancel.is_some_and(Cancel::is_requested) { Err(Error::Interrupted) } else { Ok(()) }
}
