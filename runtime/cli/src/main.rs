//! Runs a ternary model.

use std::io::{self, Write};
use std::process::ExitCode;

use bitnet_cli::output::with_flags;
use bitnet_runtime::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Run ternary language models on the CPU
///
/// Without a subcommand: continue a prompt.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: bitnet_cli::run::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bitnet_cli::bench::Args),
    Compare(bitnet_cli::compare::Args),
    Inspect(bitnet_cli::inspect::Args),
    Tokenize(bitnet_cli::tokenize::Args),
    Dummy(bitnet_cli::dummy::command::Args),
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Some(command) = &arguments.command else {
        return bitnet_cli::run::run(&arguments.run);
    };
    match command {
        Command::Bench(args) => return bitnet_cli::bench::run(args),
        Command::Compare(args) => bitnet_cli::compare::run(args)?,
        Command::Inspect(args) => bitnet_cli::inspect::run(args)?,
        Command::Tokenize(args) => bitnet_cli::tokenize::run(args)?,
        Command::Dummy(args) => bitnet_cli::dummy::command::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args = bitnet_cli::argv::two_dashes(&Arguments::command(), std::env::args_os());
    match run(&Arguments::parse_from(args)) {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln!, which panics when stderr is closed.
            let line = with_flags(&error.to_string());
            drop(writeln!(io::stderr(), "error: {line}"));
            ExitCode::from(error.exit_code())
        }
    }
}
