//! Tunes the kernels for this host.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use bitnet_tuner::{Result, cli};
use clap::{Parser, Subcommand};

/// Measure which kernels are fastest on this host for a model, and write a profile for bitnet-run
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    tune: cli::tune::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(cli::demo::Args),
    Check(cli::check::Args),
    Show(cli::show::Args),
    Diff(cli::diff::Args),
    List(cli::list::Args),
    Emit(cli::emit::Args),
    #[command(hide = true)]
    Worker(cli::worker::Args),
}

/// Runs the subcommand; false for exit code 1 where there is no error to print.
fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        None => cli::tune::run(&arguments.tune)?,
        Some(Command::Demo(args)) => cli::demo::run(args)?,
        Some(Command::Check(args)) => return cli::check::run(args),
        Some(Command::Show(args)) => cli::show::run(args)?,
        Some(Command::Diff(args)) => return cli::diff::run(args),
        Some(Command::List(args)) => cli::list::run(args)?,
        Some(Command::Emit(args)) => cli::emit::run(args)?,
        Some(Command::Worker(args)) => cli::worker::run(args)?,
    }
    Ok(true)
}

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|message| cli::end(&message));
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            cli::note(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
