//! `bitnet-run convert`: a Hugging Face folder as a GGUF file.
//!
//! `config.json` gives the hyperparameters and the form of the weights ([`model`]), the safetensors files
//! the tensors ([`checkpoint`]), [`plan`] says what becomes of each, and `tokenizer.json` becomes metadata
//! ([`tokenizer`]), which 2,000 texts are encoded with ([`check`]) before anything is written. Tensors are
//! read and written some rows at a time, which several threads convert.

pub mod check;
pub mod checkpoint;
pub mod embedding;
pub mod json;
pub mod matrix;
pub mod model;
pub mod plan;
pub mod sentencepiece;
pub mod tokenizer;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bitnet_profiles::Shape;
use bitnet_profiles::destination;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::{Gguf, GgufWriter, TensorInfo, TensorSink, TensorType, Value};
use bitnet_runtime::formats::describe_tiles;

use crate::output::{answer, byte_bar, human, note};
use crate::rows;
use checkpoint::Checkpoint;
use model::Description;
use plan::{Floats, Plan, Planned, Settings, Source, Types};

/// Convert a Hugging Face folder to a GGUF file
///
/// BitNet, Llama, Mistral, Qwen and Gemma 3 models whose weights are ternary: packed (U8), masters (BF16)
/// that the model rounds itself, or plain floats of one magnitude, or of one in each block of columns. The
/// tokenizer is checked by 2,000 texts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder: config.json, safetensors files, tokenizer.json or tokenizer.model
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Where to write [default: FOLDER/NAME-TYPE.gguf]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Type of the ternary matrices; f16 is for other programs, which quantise it [default: i2_s, or
    /// q2_0 or tq2_0 where blocks of columns have scales of their own]
    #[arg(long = "type", visible_alias = "outtype",
          value_name = "i2_s|tq2_0|tq1_0|q2_0|tl1|tl2|f16",
          value_parser = rows::matrix_type)]
    ty: Option<TensorType>,
    /// Type of the embedding: keep, or f32, f16, bf16, q8_0, q6_k, q5_0, q4_0; tq2_0 or q2_0 for one that
    /// is ternary
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = rows::table_type)]
    embd: rows::Table,
    /// Type of the head, where it is not the embedding
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = rows::table_type)]
    head: rows::Table,
    /// What a packed matrix does with its scale: auto, as config.json says, multiply or divide
    #[arg(long, value_name = "auto|multiply|divide", default_value = "auto")]
    scale: Scale,
    /// Name of the pre-tokenizer, whatever tokenizer.json says
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// A file with the chat template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Round a model that is not ternary, which ruins one that was not trained for it
    #[arg(long)]
    ternarise: bool,
    /// Refuse matrices that are all zero
    #[arg(long)]
    strict: bool,
    /// Leave out a tensor that has no place; several: repeat the flag
    #[arg(long, value_name = "NAME")]
    ignore: Vec<String>,
    /// Name of the model in the file [default: that of the folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Check everything and list what would be written
    #[arg(long)]
    dry_run: bool,
}

/// `--scale`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scale {
    Auto,
    Multiply,
    Divide,
}

/// Converts.
///
/// # Errors
/// [`Error::Usage`] for an output that exists or belongs to the folder, [`Error::Model`] for files that
/// are malformed or not run here, [`Error::Io`] when reading or writing fails. The output holds what it
/// held then.
pub fn run(args: &Args) -> Result<()> {
    let conversion = Conversion::new(args)?;
    conversion.plan.notes.iter().for_each(|line| note(format_args!("note: {line}")));
    if args.dry_run {
        return answer(|out| conversion.list(out));
    }
    conversion.write(args)
}

/// A conversion that is ready to be written.
struct Conversion {
    checkpoint: Checkpoint,
    plan: Plan,
    writer: GgufWriter,
    output: PathBuf,
    tokenizer: String,
    checked: bool,
}

impl Conversion {
    /// Reads all but the weights, and checks it.
    fn new(args: &Args) -> Result<Self> {
        let folder = args.folder.as_path();
        let description = Description::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let settings = Settings {
            types: Types { matrices: args.ty, embedding: args.embd.0, head: args.head.0 },
            multiply: match args.scale {
                Scale::Auto => None,
                Scale::Multiply => Some(true),
                Scale::Divide => Some(false),
            },
            ternarise: args.ternarise,
            ignored: args.ignore.clone(),
        };
        let mut plan = plan::plan(&checkpoint, &description, &settings)?;
        let output = output(args, &checkpoint, plan.matrices)?;
        let tokenizer = tokenizer::read(&tokenizer::Settings {
            folder,
            config: &description.file,
            architecture: description.config.architecture,
            embeds: description.embedding.is_some(),
            vocab: plan.vocab,
            pre: args.pre.as_deref(),
            template: args.chat_template.as_deref(),
        })?;
        if description.embedding.is_some_and(|own| own.assumed) {
            plan.notes.push(
                "no modules.json says how states become an embedding: their mean is taken".into(),
            );
        }
        plan.notes.extend(tokenizer.notes);
        let mut writer = GgufWriter::new();
        let name = args.name.clone().unwrap_or_else(|| name_of(folder));
        let architecture = description.config.architecture.name.into();
        writer.kv("general.architecture", &Value::Str(architecture));
        writer.kv("general.name", &Value::Str(name));
        for (key, value) in description.keys(plan.vocab) {
            writer.kv(&key, &value);
        }
        if let Some(number) = rows::file_type(plan.matrices) {
            writer.kv("general.file_type", &Value::U32(number));
        }
        writer.kv("general.quantization_version", &Value::U32(2));
        for (key, value) in &tokenizer.keys {
            writer.kv(key, value);
        }
        for Planned { name, dims, ty, source } in &plan.tensors {
            writer.tensor(name, dims, *ty).map_err(|expected| {
                let flag = match source {
                    Source::Ternary(_) => "--type",
                    _ if name == description.config.architecture.tensors.head => "--head",
                    _ => "--embd",
                };
                Error::usage(flag, format_args!("{ty} for {name}"), expected)
            })?;
        }
        describe_tiles(&mut writer)?;
        let outline = writer.outline(&output)?;
        Config::from_gguf(&outline)?;
        let checked = match &tokenizer.json {
            None => {
                note(format_args!(
                    "note: there is no tokenizer.json, so the tokenizer is not checked by texts"
                ));
                false
            }
            Some((path, contents)) => {
                check::tokenizers_agree(&outline, path, contents)?;
                true
            }
        };
        let tokenizer = tokenizer.summary;
        Ok(Self { checkpoint, plan, writer, output, tokenizer, checked })
    }

    /// Lists the tensors and the checks.
    fn list(&self, out: &mut dyn Write) -> io::Result<()> {
        for (planned, info) in self.plan.tensors.iter().zip(self.writer.tensors()) {
            let from = match &planned.source {
                Source::Floats(Floats { stored, .. }) => format!("{} {stored}", stored.name),
                Source::Ternary(matrix) => format!("{} {}", matrix.stored.name, matrix.stored),
                Source::Values(_) => "config.json".into(),
            };
            let TensorInfo { name, dims, ty, bytes, .. } = info;
            writeln!(out, "{name:<32} {ty:<6} {:<16} {bytes:>12}  {from}", format!("{dims:?}"))?;
        }
        let total = self.writer.data_bytes();
        writeln!(out, "{} tensors, {}", self.plan.tensors.len(), human(total))?;
        let texts = check::TEXTS;
        let checked = if self.checked {
            format!("{texts} texts encode as by tokenizer.json")
        } else {
            "not checked".into()
        };
        writeln!(out, "tokenizer: {}; {checked}", self.tokenizer)?;
        writeln!(out, "would be written to {}", self.output.display())
    }

    /// Writes the file.
    fn write(&self, args: &Args) -> Result<()> {
        let bar = byte_bar();
        let mut written = 0;
        let mut zeros: Vec<String> = Vec::new();
        self.writer.write(
            &self.output,
            &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
                written = total;
            },
            |index, tensor, out| {
                let planned = &self.plan.tensors[index];
                if !self.tensor(planned, tensor, out)? {
                    if args.strict {
                        let found = "zeros only";
                        let item = format!("tensor {}", quoted(&planned.name));
                        let expected = "weights; without --strict it is written";
                        return Err(Error::model(&args.folder, item, found, expected));
                    }
                    zeros.push(planned.name.clone());
                }
                Ok(())
            },
        )?;
        bar.finish_and_clear();
        if let Some(first) = zeros.first() {
            note(format_args!(
                "warning: all weights are zero in {} of {} tensors, such as {first}: the folder may be \
                 damaged, and the text will be worse than it should be",
                zeros.len(),
                self.plan.tensors.len()
            ));
        }
        // As it will be opened from now on.
        if !destination::is_stream(&self.output) {
            Config::from_gguf(&Gguf::open(&self.output)?)?;
        }
        note(format_args!(
            "{}: {} written ({} tensors; {})",
            self.output.display(),
            human(written),
            self.plan.tensors.len(),
            self.tokenizer
        ));
        Ok(())
    }

    /// Writes the data of a tensor, and returns false if it is a ternary matrix of zeros.
    fn tensor(
        &self,
        planned: &Planned,
        info: &TensorInfo,
        out: &mut TensorSink<'_>,
    ) -> Result<bool> {
        match &planned.source {
            Source::Ternary(matrix) => matrix.write(&self.checkpoint, info, out),
            Source::Values(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                out.write(&bytes).map(|()| true)
            }
            Source::Floats(floats) => self.floats(floats, info, out).map(|()| true),
        }
    }

    /// Writes floats in the type of a tensor.
    fn floats(
        &self,
        Floats { stored, heads, added }: &Floats,
        info: &TensorInfo,
        out: &mut TensorSink<'_>,
    ) -> Result<()> {
        // A vector has one row; one of a matrix with heads is in their order, element by element.
        let (shape, step) = match heads {
            Some(heads) => (Shape::new(info.cols() as usize, 1), heads.dim),
            None => (Shape::new(info.rows() as usize, info.cols() as usize), 1),
        };
        let make = |first: usize, values: &[f32]| {
            let source = |i| heads.map_or(i, |heads| heads.source(i));
            let changed: Vec<f32>;
            let values = if heads.is_some() || *added != 0.0 {
                changed = (0..values.len()).map(|i| values[source(i)] + added).collect();
                &changed
            } else {
                values
            };
            rows::encode(info, values).map_err(|place| match place {
                rows::Refused::Other(error) => error,
                rows::Refused::Value(place) => {
                    let cols = shape.cols;
                    let found = format!("{} at {}", values[place], first * cols + place);
                    self.checkpoint.error(stored, found, rows::allowed(info.ty))
                }
            })
        };
        matrix::float_rows(&self.checkpoint, stored, (shape, step), make, |bytes| out.write(&bytes))
    }
}

/// The name of a folder.
fn name_of(folder: &Path) -> String {
    let path = folder.canonicalize().unwrap_or_else(|_| folder.into());
    path.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned())
}

/// The path to write to.
fn output(args: &Args, checkpoint: &Checkpoint, matrices: TensorType) -> Result<PathBuf> {
    let output = args.output.clone().unwrap_or_else(|| {
        let name = args.name.clone().unwrap_or_else(|| name_of(&args.folder));
        let name = name.replace(['/', '\\'], "-");
        args.folder.join(format!("{name}-{matrices}.gguf"))
    });
    let own = output.canonicalize().ok();
    let is_own = |path: &Path| own.is_some() && path.canonicalize().ok() == own;
    let others = ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"];
    let others = others.map(|name| args.folder.join(name));
    let is_json = output.extension().is_some_and(|end| end == "json" || end == "safetensors");
    let mut inputs = checkpoint.paths().chain(others.iter().map(PathBuf::as_path));
    if inputs.any(is_own) || is_json {
        let found = format!("{}, which is read", output.display());
        return Err(Error::usage("-o", found, "another file, such as MODEL.gguf"));
    }
    if !args.force && destination::holds_contents(&output) {
        let found = format!("{}, which exists", output.display());
        return Err(Error::usage("-o", found, "a new file, or --force"));
    }
    Ok(output)
}
