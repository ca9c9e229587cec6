//! `bitnet-tune worker`: the child process of a tuning run. Hidden, as users do not call it.

use crate::Result;

/// Verify and time candidates for the tuning run that starts it
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Does the task on stdin.
///
/// # Errors
/// As [`crate::worker::run`].
pub fn run(_: &Args) -> Result<()> {
    crate::worker::run()
}
