//! `bitnet-run tokenize`: the ids of a text.

use std::path::PathBuf;

use crate::load::OverrideArgs;
use crate::output::{answer, note, with_flags};
use crate::prompt::{EscapeArgs, LastLineEnd, from_path, unescape};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::text::tokenizer::Tokenizer;

/// Print the token ids of a text as a JSON list
///
/// Any GGUF file with a vocabulary will do, whatever its architecture.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").required(true))]
pub struct Args {
    /// A model or a vocabulary-only GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// The text
    #[arg(short, long, value_name = "TEXT", group = "text", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text, or - for stdin; it is taken as it is, backslashes too unless -e is given
    #[arg(short, long, value_name = "FILE", group = "text")]
    file: Option<PathBuf>,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Put the begin-of-text token first
    #[arg(long)]
    bos: bool,
    /// Take special tokens spelled out in the text for those tokens
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Prints the ids.
///
/// # Errors
/// A bad vocabulary, a text that is missing, too long or not UTF-8, or stdout refusing.
pub fn run(args: &Args) -> Result<()> {
    let text = match (&args.prompt, &args.file) {
        (None, Some(path)) => from_path(path, LastLineEnd::Kept)?,
        // clap requires one of the two.
        (text, _) => text.clone().unwrap_or_default(),
    };
    let text = if args.escapes.apply(args.file.is_none()) { unescape(&text)? } else { text };
    bus_error::explain(&args.model, None, "leave it as it is while it is used");
    let tokenizer = Tokenizer::from_gguf(&args.overrides.open(&args.model)?)?;
    for line in tokenizer.notes() {
        note(format_args!("{}", with_flags(&line.to_string())));
    }
    if args.bos && tokenizer.bos().is_none() {
        return Err(Error::usage(
            "--bos",
            "a vocabulary without a begin-of-text token",
            "one with tokenizer.ggml.bos_token_id",
        ));
    }
    let ids = tokenizer.encode(&text, args.bos, args.special)?;
    answer(|out| {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "[{}]", ids.join(", "))
    })
}
