//! `bitnet-run embed`: embeddings of texts, as llama-embedding makes and writes them.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bitnet_profiles::patient;
use bitnet_runtime::engine::{Embedding, Engine, Normalisation, Options, Pooling, Start};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::{MAX_SEQUENCES, Needs, SessionOptions};

use crate::interrupt::Interrupt;
use crate::load::{self, LEAVE, OpenArgs, SessionArgs};
use crate::output::note;
use crate::prompt::{EscapeArgs, LastLineEnd, from_path, unescape};

/// Texts that go through the model together, at most: each has a KV cache of its own.
const TOGETHER: usize = 32;

/// Make embeddings of texts: lists of numbers that lie near each other where texts mean alike
///
/// Each line is a text. The numbers are the model's states after its last norm, pooled and normalised.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; without it the one that --profile FILE was made for
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The texts, one a line; without it and --file those that come through a pipe
    #[arg(short, long, value_name = "TEXT", overrides_with = "file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the texts, one a line, or - for stdin; backslashes are taken as they are unless -e is
    /// given
    #[arg(short, long, value_name = "FILE", overrides_with = "prompt")]
    file: Option<PathBuf>,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// What stands between two texts, in place of a line end
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true)]
    embd_separator: String,
    #[command(flatten)]
    embedding: EmbeddingArgs,
    /// How they are written: array, a list of lists; json, OpenAI's object; json+, the same with the cosines
    /// of all pairs; raw, a line of numbers for each
    #[arg(
        short,
        long = "embd-output-format",
        value_name = "array|json|json+|raw",
        default_value = "array",
        hide_possible_values = true
    )]
    output: Form,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    session: SessionArgs,
}

/// The flags that say what an embedding is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct EmbeddingArgs {
    /// What of the states of a text's tokens is its embedding: all, their mean, the first or the last
    /// [default: what the file says, else none]
    #[arg(long, value_name = "none|mean|cls|last", value_parser = pooling)]
    pooling: Option<Pooling>,
    /// Size of an embedding: -1: as it comes; 0: the largest magnitude 32760; 1: the sum of magnitudes 1;
    /// 2: the Euclidean norm 1; more: the p-norm 1
    #[arg(
        long,
        value_name = "N",
        default_value = "2",
        allow_negative_numbers = true,
        value_parser = normalisation
    )]
    pub embd_normalize: Normalisation,
}

impl EmbeddingArgs {
    /// The pooling that is asked for, else that of the model, else none.
    ///
    /// # Errors
    /// Those of [`Pooling::of_model`].
    pub fn pooling(self, engine: &Engine) -> Result<Pooling> {
        match self.pooling {
            Some(pooling) => Ok(pooling),
            None => {
                let own = Pooling::of_model(engine.gguf(), engine.config())?;
                Ok(own.unwrap_or(Pooling::None))
            }
        }
    }
}

/// A pooling, for clap.
fn pooling(text: &str) -> std::result::Result<Pooling, String> {
    text.parse().map_err(|_| match text {
        "rank" => "texts are not ranked here; it is one of none, mean, cls, last".to_owned(),
        _ => "it is none of none, mean, cls, last".to_owned(),
    })
}

/// A normalisation, for clap.
fn normalisation(text: &str) -> std::result::Result<Normalisation, String> {
    let number = text.parse().ok().and_then(Normalisation::of_number);
    number.ok_or_else(|| format!("it is not in -1..={}", u16::MAX))
}

/// Forms of the answer, by the names of llama-embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Array,
    Json,
    #[value(name = "json+")]
    JsonPlus,
    Raw,
}

/// Makes the embeddings, until Ctrl+C, and returns the program's exit code.
///
/// # Errors
/// Those of opening the model and of the session; [`Error::Usage`] for a text that has no tokens or more than
/// the model's context; [`Error::Io`] when a file cannot be read or stdout refuses.
pub fn run(args: &Args) -> Result<ExitCode> {
    let interrupt = Interrupt::watch();
    let (path, options) = args.open.options(args.model.as_deref())?;
    let text = args.text()?;
    let options = Options {
        needs: Needs::Hidden,
        start: Start::Packed,
        progress: Some(load::progress(std::sync::Arc::default())),
        cancel: Some(interrupt.cancel()),
        ..options
    };
    let engine = Engine::open(&path, options)?;
    load::explain_bus_errors(&engine, LEAVE);
    load::tell(&engine);
    let pooling = args.embedding.pooling(&engine)?;
    let texts = args.tokens(&text, &engine)?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let longest = texts.iter().map(Vec::len).max().unwrap_or(1);
    let options = args.session.options(Some(longest))?;
    let mean = tokens.div_ceil(texts.len()).max(1);
    let sequences = (options.batch / mean).clamp(1, TOGETHER.min(MAX_SEQUENCES)).min(texts.len());
    let mut session = engine.session(SessionOptions { sequences, ..options })?;
    session.cancel_with(Some(interrupt.cancel()));
    load::tell(&engine);
    let width = engine.config().hidden;
    note(format_args!("embeddings: {width} numbers each, pooling {pooling}"));
    let start = Instant::now();
    let mut writer = Writer::new(args.output);
    writer.begin()?;
    let normalisation = args.embedding.embd_normalize;
    session.embed(&texts, pooling, &mut |_, text: Embedding| {
        text.finish(normalisation).into_iter().try_for_each(|values| writer.add(values))
    })?;
    writer.end()?;
    let time = start.elapsed().as_secs_f64();
    note(format_args!(
        "{} texts, {tokens} tokens in {time:.2} s, {:.1} tokens/s",
        texts.len(),
        tokens as f64 / time
    ));
    Ok(interrupt.exit_code())
}

impl Args {
    /// The texts that are given, in one.
    fn text(&self) -> Result<String> {
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => from_path(path, LastLineEnd::Dropped)?,
            (None, None) if io::stdin().is_terminal() => {
                let expected = "-p TEXT, -f FILE, or lines through a pipe";
                return Err(Error::usage("text", "none", expected));
            }
            (None, None) => from_path(Path::new("-"), LastLineEnd::Dropped)?,
        };
        if self.escapes.apply(self.prompt.is_some()) { unescape(&text) } else { Ok(text) }
    }

    /// The tokens of each text.
    fn tokens(&self, text: &str, engine: &Engine) -> Result<Vec<Vec<u32>>> {
        let (tokenizer, context) = (engine.tokenizer()?, engine.config().context);
        if self.embd_separator.is_empty() {
            return Err(Error::usage("--embd-separator", "nothing", "at least one character"));
        }
        let by_line = self.embd_separator == "\n";
        let texts = text.split(self.embd_separator.as_str()).enumerate();
        let tokens = texts.map(|(number, text)| {
            let text = if by_line { text.strip_suffix('\r').unwrap_or(text) } else { text };
            let ids = tokenizer.whole(text).map_err(|error| in_text(number, error))?;
            if ids.len() > context {
                let found = format!("{} tokens", ids.len());
                let expected = format!("at most {context}, the context of the model; shorten it");
                return Err(in_text(number, Error::usage("text", found, expected)));
            }
            Ok(ids)
        });
        tokens.collect()
    }
}

/// An error of one of the texts, counted from 1.
fn in_text(number: usize, error: Error) -> Error {
    match error {
        Error::Usage { found, expected, .. } => {
            Error::usage(format!("text {}", number + 1), found, expected)
        }
        other => other,
    }
}

/// Writes embeddings to stdout as they come.
struct Writer {
    form: Form,
    out: BufWriter<Box<dyn Write>>,
    count: usize,
    /// All embeddings, with [`Form::JsonPlus`].
    all: Vec<Vec<f32>>,
}

impl Writer {
    fn new(form: Form) -> Self {
        let out = BufWriter::new(Box::new(patient::stdout()) as Box<dyn Write>);
        Self { form, out, count: 0, all: Vec::new() }
    }

    fn begin(&mut self) -> Result<()> {
        let text = match self.form {
            Form::Array => "[",
            Form::Json | Form::JsonPlus => "{\n  \"object\": \"list\",\n  \"data\": [",
            Form::Raw => "",
        };
        self.write(|out| out.write_all(text.as_bytes()))
    }

    fn add(&mut self, values: Vec<f32>) -> Result<()> {
        let (form, count) = (self.form, self.count);
        let comma = if count > 0 { "," } else { "" };
        self.write(|out| match form {
            Form::Raw => {
                numbers(out, &values, " ")?;
                writeln!(out)
            }
            Form::Array => {
                write!(out, "{comma}\n  [")?;
                numbers(out, &values, ",")?;
                write!(out, "]")
            }
            Form::Json | Form::JsonPlus => {
                write!(
                    out,
                    "{comma}\n    {{\"object\": \"embedding\", \"index\": {count}, \"embedding\": ["
                )?;
                numbers(out, &values, ",")?;
                write!(out, "]}}")
            }
        })?;
        self.count += 1;
        if form == Form::JsonPlus {
            self.all.push(values);
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let all = std::mem::take(&mut self.all);
        let form = self.form;
        self.write(|out| match form {
            Form::Raw => Ok(()),
            Form::Array => writeln!(out, "\n]"),
            Form::Json => writeln!(out, "\n  ]\n}}"),
            Form::JsonPlus => {
                write!(out, "\n  ],\n  \"cosineSimilarity\": [")?;
                for (row, own) in all.iter().enumerate() {
                    let cosines: Vec<f32> = all.iter().map(|other| cosine(own, other)).collect();
                    write!(out, "{}\n    [", if row > 0 { "," } else { "" })?;
                    numbers(out, &cosines, ",")?;
                    write!(out, "]")?;
                }
                writeln!(out, "\n  ]\n}}")
            }
        })?;
        self.write(|out| out.flush())
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        write(&mut self.out).map_err(|e| Error::io(Path::new("stdout"), "write", e))
    }
}

/// Writes numbers in as few digits as they need to be read again as they are.
fn numbers(out: &mut dyn Write, values: &[f32], between: &str) -> io::Result<()> {
    values.iter().enumerate().try_for_each(|(number, value)| match number {
        0 => write!(out, "{value}"),
        _ => write!(out, "{between}{value}"),
    })
}

/// The cosine of two embeddings; 1 for two of zeros, 0 for one, as llama-embedding has it.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let (a_squares, b_squares) = (dot(a, a), dot(b, b));
    match (a_squares == 0.0, b_squares == 0.0) {
        (true, true) => 1.0,
        (true, false) | (false, true) => 0.0,
        _ => (dot(a, b) / (a_squares.sqrt() * b_squares.sqrt())) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_zeros_are_llama_embedding_s() {
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 1.0]), 0.0);
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[3.0, 4.0], &[-4.0, 3.0]), 0.0);
    }
}
