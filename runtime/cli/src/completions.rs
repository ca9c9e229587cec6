//! `bitnet-run completions` and `man`: files for shells and for `man`, from the program's own definitions.

use std::path::{Path, PathBuf};

use bitnet_profiles::atomic_file;
use bitnet_runtime::error::{Error, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::output::{answer, note};

/// Print completions for a shell
///
/// For bash: bitnet-run completions bash > ~/.local/share/bash-completion/completions/bitnet-run
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages to a folder
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder, such as ~/.local/share/man/man1; it must exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions.
///
/// # Errors
/// [`Error::Io`] when stdout refuses.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    answer(|out| {
        let mut text = Vec::new();
        clap_complete::generate(args.shell, &mut command, name, &mut text);
        out.write_all(&text)
    })
}

/// Writes a page for the program and one for each command.
///
/// # Errors
/// [`Error::Io`] when a page cannot be written.
pub fn man(args: &ManArgs) -> Result<()> {
    let mut command = Arguments::command();
    command.build();
    let commands = command.get_subcommands().filter(|own| own.get_name() != "help");
    let mut pages = 0;
    for own in std::iter::once(&command).chain(commands) {
        page(&args.folder, own)?;
        pages += 1;
    }
    note(format_args!("{}: {pages} pages written", args.folder.display()));
    Ok(())
}

fn page(folder: &Path, command: &Command) -> Result<()> {
    // Of a command it is that of the program, a dash, and its own.
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut text)
        .and_then(|()| atomic_file::replace(&path, &text))
        .map_err(|e| Error::io(&path, "write", e))
}
