//! Runs a ternary model.

use std::io::{self, Write};
use std::process::ExitCode;

use bitnet_runtime::{Result, cli};
use clap::{CommandFactory, Parser, Subcommand};

/// Run ternary language models on the CPU
///
/// Without a subcommand: continue a prompt.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: cli::run::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(cli::bench::Args),
    Compare(cli::compare::Args),
    Inspect(cli::inspect::Args),
    Tokenize(cli::tokenize::Args),
    Dummy(cli::dummy::Args),
}

fn run(arguments: &Arguments) -> Result<()> {
    let Some(command) = &arguments.command else {
        return cli::run::run(&arguments.run);
    };
    match command {
        Command::Bench(args) => cli::bench::run(args),
        Command::Compare(args) => cli::compare::run(args),
        Command::Inspect(args) => cli::inspect::run(args),
        Command::Tokenize(args) => cli::tokenize::run(args),
        Command::Dummy(args) => cli::dummy::run(args),
    }
}

fn main() -> ExitCode {
    let args = cli::argv::two_dashes(&Arguments::command(), std::env::args_os());
    match run(&Arguments::parse_from(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln!, which panics when stderr is closed.
            drop(writeln!(io::stderr(), "error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
