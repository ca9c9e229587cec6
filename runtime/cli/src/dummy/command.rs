//! `bitnet-run dummy`: a random model of a published shape.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::dummy::statistics::{self, SKETCH_BITS, Sparsity, TRAINED_HEAD_ROWS};
use crate::dummy::{self, DummyConfig, DummyShape, DummySparsity, SHAPES};
use crate::output::{byte_bar, human, note};
use crate::{rows, ternary};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::formats::TensorType;
use bitnet_runtime::{Engine, Error, Needs, Options, ProfileChoice, Result, SessionOptions, Start};

/// Tokens that a model as sparse as a trained one is measured with.
const MEASURED_TOKENS: usize = 64;

/// Write a random ternary model of a published shape
#[derive(Debug, clap::Args)]
pub struct Args {
    /// 125M, 1B, 2b4t, 3b, large, llama8b, falcon3-1b, -3b, -7b or -10b, bonsai-1.7b, -4b or -8b, gemma3-270m
    /// or -1b, embedding-270m or -0.6b, 100B
    #[arg(long, value_name = "SHAPE")]
    shape: String,
    /// How embedding and head are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = embedding_type())]
    embd: TensorType,
    /// How the ternary matrices are stored: i2_s, tq1_0, tq2_0, q2_0, pq2_0, ptq1_0, tl1 or tl2, the last
    /// two for shapes that bitnet.cpp has presets for; bonsai-* have a scale for each block
    #[arg(long, visible_alias = "type", value_name = "TYPE", default_value = "i2_s",
          value_parser = ternary_type)]
    outtype: TensorType,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Seed of the weights
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// trained: close gates, and let logits stand out, about as in a trained model, and print how
    /// far that is so; shapes with squared ReLU only
    #[arg(long, value_name = "KIND", default_value = "random")]
    sparsity: Kind,
    /// Another number of layers, 1 to 1024
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    layers: Option<u32>,
    /// A GGUF file whose tokenizer is taken over
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

/// What gates and logits are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Random,
    Trained,
}

/// Returns a parser of the types that embeddings come in, by the names that kernels have for them, if they do.
fn embedding_type() -> impl TypedValueParser<Value = TensorType> {
    let types =
        || dummy::tables().map(|f| (f.rows().map_or(f.name, |rows| rows.head.name()), f.ty));
    PossibleValuesParser::new(types().map(|(name, _)| name))
        .map(move |given| types().find(|(name, _)| *name == given).map(|(_, ty)| ty))
        .map(|ty| ty.expect("the parser before gives names of this list"))
}

/// Reads the name of a type of ternary matrices, for clap, in any case.
fn ternary_type(name: &str) -> Result<TensorType> {
    rows::matrix_type(name).and_then(|ty| {
        let ternary = ty.format().ternary().map(|_| ty);
        ternary.ok_or_else(|| Error::usage("type", ty, ternary::types()))
    })
}

/// Writes the model, with progress on stderr.
///
/// # Errors
/// Those of [`dummy::write`].
pub fn run(args: &Args) -> Result<()> {
    let mut shape = *DummyShape::find(&args.shape).ok_or_else(|| {
        let names: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
        let found = bitnet_runtime::error::quoted(&args.shape);
        Error::usage("--shape", found, format_args!("one of {}", names.join(", ")))
    })?;
    shape.layers = args.layers.unwrap_or(shape.layers);
    let config = DummyConfig {
        shape,
        embedding: args.embd,
        matrices: args.outtype,
        vocab: args.vocab.clone(),
        seed: args.seed,
        sparsity: match args.sparsity {
            Kind::Random => DummySparsity::Random,
            Kind::Trained => DummySparsity::Trained,
        },
        force: args.force,
    };
    let bar = byte_bar();
    let mut written = 0;
    dummy::write(&config, &args.output, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        written = total;
    })?;
    bar.finish_and_clear();
    note(format_args!(
        "{}: {} written ({}, {} layers)",
        args.output.display(),
        human(written),
        shape.name,
        shape.layers
    ));
    match args.sparsity {
        Kind::Random => Ok(()),
        Kind::Trained => report(&args.output),
    }
}

/// Runs the model written and prints its shares beside those of the trained demo model.
fn report(path: &Path) -> Result<()> {
    // All logits are looked at, and no text is.
    let options = Options {
        profile: ProfileChoice::Shipped,
        needs: Needs::All,
        tokenizer: false,
        start: Start::Packed,
        ..Options::default()
    };
    bus_error::explain(path, None, "leave it as it is while it is used");
    let engine = Engine::open(path, options)?;
    let text = statistics::random_text(engine.config().vocab, MEASURED_TOKENS);
    let options =
        SessionOptions { context: Some(text.len()), batch: 1, kv_type: None, sequences: 1 };
    let found = statistics::measure(&mut engine.session(options)?, &[text])?;
    let shares = Sparsity::NAMES.map(str::to_owned).into_iter();
    let sketch = SKETCH_BITS.map(|bits| format!("head rows left by {bits} bits")).into_iter();
    let found = found.all.shares().into_iter().chain(found.head_rows);
    let trained = Sparsity::TRAINED.shares().into_iter().chain(TRAINED_HEAD_ROWS);
    crate::output::answer(|out| {
        writeln!(out, "{:30}{:>10}{:>10}", "", "written", "bard-11m")?;
        for ((name, found), trained) in shares.chain(sketch).zip(found).zip(trained) {
            writeln!(out, "{name:30}{:>8.2} %{:>8.2} %", 100.0 * found, 100.0 * trained)?;
        }
        Ok(())
    })
}
