//! The program's arguments: those of `bitnet-run`, and its subcommands.

use std::process::ExitCode;

use bitnet_runtime::Result;
use clap::{Parser, Subcommand};

use crate::flags::{self, Program};
use crate::{
    bench, chat, compare, completions, convert, doctor, dummy, embed, energy, inspect, pack,
    perplexity, quantize, run, serve, tokenize,
};

/// Run ternary language models on the CPU
///
/// Without a subcommand: continue a prompt.
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-run",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    after_long_help = flags::help(Program::Run)
)]
pub struct Arguments {
    #[command(flatten)]
    run: run::Args,
    #[command(flatten)]
    chat: chat::ChatArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(after_long_help = flags::help(Program::Run))]
    Chat(Box<chat::Args>),
    #[command(after_long_help = flags::help(Program::Bench))]
    Bench(bench::Args),
    #[command(after_long_help = flags::help(Program::Serve))]
    Serve(Box<serve::Args>),
    Compare(compare::Args),
    Pack(pack::Args),
    Convert(convert::Args),
    Quantize(quantize::Args),
    Perplexity(Box<perplexity::Args>),
    Embed(Box<embed::Args>),
    Energy(energy::Args),
    Doctor(doctor::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Dummy(dummy::command::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

impl Arguments {
    /// Does what was asked for and returns the program's exit code.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self) -> Result<ExitCode> {
        let Some(command) = &self.command else {
            if self.chat.conversation {
                return chat::run(&self.run, &self.chat, true);
            }
            return run::run(&self.run, &self.chat.unused()?);
        };
        match command {
            Command::Chat(args) => return chat::run(&args.run, &args.chat, false),
            Command::Bench(args) => return bench::run(args),
            Command::Serve(args) => return serve::run(args),
            Command::Compare(args) => compare::run(args)?,
            Command::Pack(args) => pack::run(args)?,
            Command::Convert(args) => convert::run(args)?,
            Command::Quantize(args) => quantize::run(args)?,
            Command::Perplexity(args) => return perplexity::run(args),
            Command::Embed(args) => return embed::run(args),
            Command::Energy(args) => return energy::run(args),
            Command::Doctor(args) => return doctor::run(args),
            Command::Inspect(args) => inspect::run(args)?,
            Command::Tokenize(args) => tokenize::run(args)?,
            Command::Dummy(args) => dummy::command::run(args)?,
            Command::Completions(args) => completions::completions(args)?,
            Command::Man(args) => completions::man(args)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
