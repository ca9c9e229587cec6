//! `bitnet-run inspect`: what a GGUF file holds.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::load::OverrideArgs;
use crate::output::{answer, human, note};
use bitnet_runtime::arch::{EMBEDDING, HEAD};
use bitnet_runtime::error::Result;
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::{Array, Gguf, TensorInfo, Value};

/// Show metadata, tensors, types, sizes and the bytes read for each token
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Prints the file's contents.
///
/// # Errors
/// Those of opening the file, and of writing to stdout.
pub fn run(args: &Args) -> Result<()> {
    bus_error::explain(&args.model, None, "leave it as it is while it is used");
    let gguf = args.overrides.open(&args.model).or_else(|error| {
        // A part of a model whose other parts are not there, or not as they should be.
        let mut part = Gguf::open_part(&args.model)?;
        args.overrides.options().apply(&mut part)?;
        note(format_args!("note: {error}; this part is shown alone"));
        Ok(part)
    })?;
    answer(|out| print(&gguf, out))
}

/// Bytes that decoding one token reads, by what they are for.
struct PerToken {
    ternary: u64,
    other_weights: u64,
    norms: u64,
    head: u64,
    embedding_row: u64,
}

impl PerToken {
    /// Every tensor is read once, but of the embedding only one row; a tied one is also the head.
    fn of(gguf: &Gguf) -> PerToken {
        let mut per =
            PerToken { ternary: 0, other_weights: 0, norms: 0, head: 0, embedding_row: 0 };
        let tied = gguf.tensor(HEAD).is_none();
        for t in gguf.tensors() {
            match t.name.as_str() {
                EMBEDDING => {
                    per.embedding_row = t.bytes / t.rows();
                    if tied {
                        per.head = t.bytes;
                    }
                }
                HEAD => per.head = t.bytes,
                _ if t.ty.is_ternary() => per.ternary += t.bytes,
                _ if t.dims.len() == 1 => per.norms += t.bytes,
                _ => per.other_weights += t.bytes,
            }
        }
        per
    }

    fn total(&self) -> u64 {
        self.ternary + self.other_weights + self.norms + self.head + self.embedding_row
    }
}

fn print(gguf: &Gguf, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{}: GGUF version {}, {} bytes ({}), header {}, alignment {}",
        gguf.path().display(),
        gguf.version(),
        gguf.file_bytes(),
        human(gguf.file_bytes()),
        human(gguf.data_start().min(gguf.file_bytes())),
        gguf.alignment()
    )?;
    let parts = gguf.files().len();
    if parts > 1 {
        writeln!(out, "\nparts: {parts}")?;
        for (path, bytes) in gguf.files() {
            writeln!(out, "  {}  {bytes} bytes", path.display())?;
        }
    }
    writeln!(out, "\nmetadata: {} keys", gguf.metadata().len())?;
    let width = gguf.metadata().map(|(k, _)| k.len()).max().unwrap_or(0).min(48);
    for (key, value) in gguf.metadata() {
        writeln!(out, "  {:width$}  {}", shown(key), value_text(value))?;
    }

    let tensors = gguf.tensors();
    writeln!(out, "\ntensors: {}", tensors.len())?;
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in tensors {
        let dims: Vec<String> = t.dims.iter().map(u64::to_string).collect();
        writeln!(
            out,
            "  {:width$}  {:8} {:>16}  {:>12} bytes at {}{}",
            shown(&t.name),
            t.ty,
            format!("[{}]", dims.join(", ")),
            t.bytes,
            t.offset,
            if parts > 1 { format!(" of part {}", t.part + 1) } else { String::new() }
        )?;
    }
    if tensors.is_empty() {
        return Ok(());
    }

    let mut types: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for t in tensors {
        let row = types.entry(t.ty.to_string()).or_default();
        *row = (row.0 + 1, row.1.saturating_add(t.elements()), row.2.saturating_add(t.bytes));
    }
    writeln!(out, "\ntypes:")?;
    for (name, (count, weights, bytes)) in types {
        writeln!(
            out,
            "  {name:8} {count:5} tensors {weights:>14} weights {bytes:>14} bytes {:.4} bits each",
            bytes as f64 * 8.0 / weights as f64
        )?;
    }
    let sum = |f: fn(&TensorInfo) -> u64| tensors.iter().map(f).fold(0, u64::saturating_add);
    writeln!(out, "  {} weights in {}", sum(TensorInfo::elements), human(sum(|t| t.bytes)))?;

    let per = PerToken::of(gguf);
    writeln!(
        out,
        "\nread for each token at decode: {} bytes ({})",
        per.total(),
        human(per.total())
    )?;
    let parts = [
        ("ternary weights", per.ternary),
        ("other weights", per.other_weights),
        ("head", per.head),
        ("norms", per.norms),
        ("embedding row", per.embedding_row),
    ];
    for (name, bytes) in parts {
        writeln!(out, "  {name:16} {bytes:>12}")?;
    }
    Ok(())
}

/// A name from the file without control characters.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// Type and value; of an array the first few items.
fn value_text(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{value}: {}", items_text(array)),
        value => value.to_string(),
    }
}

/// The first few items of an array.
fn items_text(array: &Array) -> String {
    const FIRST: usize = 4;
    fn items<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().take(FIRST).map(T::to_string).collect()
    }
    let first = match array {
        Array::U8(v) => items(v),
        Array::I8(v) => items(v),
        Array::U16(v) => items(v),
        Array::I16(v) => items(v),
        Array::U32(v) => items(v),
        Array::I32(v) => items(v),
        Array::F32(v) => items(v),
        Array::Bool(v) => items(v),
        Array::U64(v) => items(v),
        Array::I64(v) => items(v),
        Array::F64(v) => items(v),
        Array::Str(v) => v.iter().take(FIRST).map(bitnet_runtime::error::quoted).collect(),
        Array::Array(v) => v.iter().take(FIRST).map(items_text).collect(),
    };
    let more = if array.len() > FIRST { ", ..." } else { "" };
    format!("[{}{more}]", first.join(", "))
}
