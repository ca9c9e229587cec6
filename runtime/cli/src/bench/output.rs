//! The results of `bitnet-run bench` in llama-bench's formats.

use std::io::Write;
use std::path::Path;

use bitnet_profiles::patient;
use bitnet_runtime::error::{Error, Result};
use serde_json::Value;

use super::row::Row;

/// Formats of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table in Markdown.
    Md,
    /// One list.
    Json,
    /// An object in a line of its own for each result.
    Jsonl,
    /// A line of titles, and a line for each result.
    Csv,
    /// Statements that make a table and fill it.
    Sql,
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// For answers.
    Stdout,
    /// For all else; that it is closed is no reason to stop.
    Stderr,
}

/// Columns that the table has only where results differ in them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// Tokens that go through the model together.
    pub batches: bool,
    /// The type of the KV cache.
    pub kv_types: bool,
}

/// Prints results, each as soon as it is known.
pub struct Printer {
    format: Format,
    columns: Columns,
    stream: Stream,
    /// Results printed so far.
    rows: usize,
}

impl Printer {
    /// A printer that has printed nothing yet.
    pub fn new(format: Format, columns: Columns, stream: Stream) -> Self {
        Self { format, columns, stream, rows: 0 }
    }

    /// Prints a result, and before the first one what heads them.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout refuses.
    pub fn row(&mut self, row: &Row) -> Result<()> {
        let is_first = self.rows == 0;
        self.rows += 1;
        let json = |error| Error::Runtime(format!("cannot write the report: {error}"));
        let text = match self.format {
            Format::Md => {
                let header = if is_first { header(self.columns) } else { String::new() };
                header + &markdown(row, self.columns)
            }
            Format::Json => {
                let object = serde_json::to_string_pretty(row).map_err(json)?;
                let start = if is_first { "[\n  " } else { ",\n  " };
                start.to_owned() + &object.replace('\n', "\n  ")
            }
            Format::Jsonl => serde_json::to_string(row).map_err(json)? + "\n",
            Format::Csv => {
                let values = cells(row)?.map(|cell| quoted(&text(&cell), '"'));
                let titles = if is_first { FIELDS.join(",") + "\n" } else { String::new() };
                titles + &values.join(",") + "\n"
            }
            Format::Sql => {
                let cells = cells(row)?;
                let head = if is_first { table(&cells) } else { String::new() };
                let values = cells.map(|cell| quoted(&text(&cell), '\''));
                let (fields, values) = (FIELDS.join(", "), values.join(", "));
                head + &format!("INSERT INTO llama_bench ({fields}) VALUES ({values});\n")
            }
        };
        self.print(&text)
    }

    /// Prints what comes behind the last result.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout refuses.
    pub fn end(&mut self) -> Result<()> {
        match self.format {
            Format::Md => self.print(&format!("\nbuild: {}\n", env!("CARGO_PKG_VERSION"))),
            Format::Json if self.rows == 0 => self.print("[]\n"),
            Format::Json => self.print("\n]\n"),
            Format::Csv | Format::Jsonl | Format::Sql => Ok(()),
        }
    }

    /// Writes a text at once.
    fn print(&self, text: &str) -> Result<()> {
        let write = |out: &mut dyn Write| out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match self.stream {
            Stream::Stdout => {
                let written = write(&mut patient::stdout());
                written.map_err(|e| Error::io(Path::new("stdout"), "write", e))
            }
            Stream::Stderr => {
                drop(write(&mut patient::stderr()));
                Ok(())
            }
        }
    }
}

/// The fields of CSV and SQL: keys of llama-bench, in its order, then ours.
const FIELDS: [&str; 27] = [
    "build_commit",
    "build_number",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "cpu_strict",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "use_mmap",
    "embeddings",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "n_parallel",
];

/// The values of [`FIELDS`].
fn cells(row: &Row) -> Result<[Value; FIELDS.len()]> {
    let mut row = serde_json::to_value(row)
        .map_err(|error| Error::Runtime(format!("cannot write the report: {error}")))?;
    Ok(FIELDS.map(|field| row[field].take()))
}

/// A value as llama-bench prints it: of a text the text, and 0 or 1 for false and true.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(is) => u8::from(*is).to_string(),
        other => other.to_string(),
    }
}

/// A text between quotes; those in it are doubled.
fn quoted(text: &str, quote: char) -> String {
    let doubled = text.replace(quote, &String::from_iter([quote, quote]));
    format!("{quote}{doubled}{quote}")
}

/// The statement that makes the table for such values.
fn table(values: &[Value; FIELDS.len()]) -> String {
    let columns: Vec<String> = FIELDS
        .iter()
        .zip(values)
        .map(|(field, value)| {
            let kind = match value {
                Value::Number(number) if number.is_f64() => "REAL",
                Value::Number(_) | Value::Bool(_) => "INTEGER",
                _ => "TEXT",
            };
            format!("  {field} {kind}")
        })
        .collect();
    format!("CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n", columns.join(",\n"))
}

/// A column of the table in Markdown.
struct Column {
    title: &'static str,
    width: usize,
    /// Text stands to the left, numbers to the right.
    is_text: bool,
    cell: fn(&Row) -> String,
}

impl Column {
    const fn text(title: &'static str, width: usize, cell: fn(&Row) -> String) -> Self {
        Self { title, width, is_text: true, cell }
    }

    const fn number(title: &'static str, width: usize, cell: fn(&Row) -> String) -> Self {
        Self { title, width, is_text: false, cell }
    }

    /// A cell of it.
    fn filled(&self, text: &str) -> String {
        let width = self.width;
        if self.is_text { format!(" {text:<width$} |") } else { format!(" {text:>width$} |") }
    }
}

impl Columns {
    /// The columns that are shown, llama-bench's first.
    fn shown(self) -> Vec<Column> {
        let mut columns = vec![
            Column::text("model", 38, |row| row.model_type.clone()),
            Column::number("size", 10, |row| {
                let size = row.model_size as f64 / f64::from(1 << 20);
                if size >= 1024.0 {
                    format!("{:.2} GiB", size / 1024.0)
                } else {
                    format!("{size:.2} MiB")
                }
            }),
            Column::number("params", 10, |row| {
                let params = row.model_n_params as f64 / 1e6;
                if params >= 1e3 {
                    format!("{:.2} B", params / 1e3)
                } else {
                    format!("{params:.2} M")
                }
            }),
            Column::text("backend", 10, |row| row.backends.into()),
            Column::number("threads", 7, |row| row.n_threads.to_string()),
        ];
        if self.batches {
            columns.push(Column::number("n_batch", 7, |row| row.n_batch.to_string()));
        }
        if self.kv_types {
            columns.push(Column::text("type_k", 6, |row| row.type_k.into()));
        }
        columns.extend([
            Column::number("test", 13, |row| row.name.clone()),
            Column::number("t/s", 20, |row| format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts)),
            Column::number("each", 8, |row| {
                or_dash((row.n_parallel > 1).then(|| format!("{:.2}", row.sequence_ts)))
            }),
            Column::number("MB/token", 8, |row| {
                or_dash(row.read.map(|read| format!("{:.1}", read.per_token / 1e6)))
            }),
            Column::number("GB/s, of probe", 18, |row| {
                or_dash(row.read.map(|read| read.text(1e9, 1)))
            }),
            Column::number("T mul-add/s, of peak", 20, |row| {
                or_dash(row.multiply_add.map(|multiply| multiply.text(1e12, 3)))
            }),
            Column::text("kernels", 20, Row::ternary_kernels),
            Column::text("profile", 20, |row| row.profile.short_name()),
        ]);
        columns
    }
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

/// The line of a result.
fn markdown(row: &Row, columns: Columns) -> String {
    let cells = columns.shown().into_iter().map(|column| column.filled(&(column.cell)(row)));
    format!("|{}\n", cells.collect::<String>())
}

/// The titles, and the line below them.
fn header(columns: Columns) -> String {
    let columns = columns.shown();
    let titles: String = columns.iter().map(|column| column.filled(column.title)).collect();
    let rules: String = columns
        .iter()
        .map(|column| {
            let rule = "-".repeat(column.width - usize::from(!column.is_text));
            column.filled(&if column.is_text { rule } else { rule + ":" })
        })
        .collect();
    format!("|{titles}\n|{rules}\n")
}
