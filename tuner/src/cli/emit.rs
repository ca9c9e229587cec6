//! `bitnet-tune emit`: prints a kernel.

use bitnet_profiles::KernelId;

use super::answer;
use crate::Result;

/// Print the source of a kernel
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kernel's id, as `bitnet-tune list` shows them
    id: String,
}

/// Prints the kernel as a file of its own.
///
/// # Errors
/// The id stands for no kernel, or stdout is closed.
pub fn run(args: &Args) -> Result<()> {
    let id: KernelId = args.id.parse()?;
    let source = bitnet_codegen::emit_kernel(&id)?;
    answer(|out| out.write_all(source.as_bytes()))
}
