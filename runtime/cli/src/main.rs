//! Runs a ternary model.

use std::env;
use std::process::ExitCode;

use bitnet_cli::arguments::Arguments;
use bitnet_cli::flags;
use bitnet_cli::output::{end, note, with_flags};
use bitnet_runtime::Error;
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let given = flags::read(&Arguments::command(), env::args_os(), |name| env::var_os(name))
        .unwrap_or_else(|error| end(&error));
    let arguments =
        Arguments::try_parse_from(&given.args).unwrap_or_else(|error| end(&given.explain(error)));
    if let Some(line) = given.note() {
        note(format_args!("{line}"));
    }
    match arguments.run() {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        // Whoever pressed Ctrl+C knows why.
        Err(error @ Error::Interrupted) => ExitCode::from(error.exit_code()),
        Err(error) => {
            note(format_args!("error: {}", with_flags(&error.to_string())));
            ExitCode::from(error.exit_code())
        }
    }
}
