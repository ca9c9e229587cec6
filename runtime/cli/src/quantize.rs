//! `bitnet-run quantize`: a GGUF file with its embedding, its head or its ternary matrices in other types.

use std::path::{Path, PathBuf};

use bitnet_profiles::{Shape, destination};
use bitnet_runtime::arch::{EMBEDDING, HEAD};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::{Gguf, GgufWriter, TensorInfo, TensorSink, TensorType, Value};
use bitnet_runtime::formats::{Codes as Stored, Scales, TILES_KEY, describe_tiles};

use crate::load::OverrideArgs;
use crate::output::{byte_bar, human, note};
use crate::pieces;
use crate::rows::{self, Table};
use crate::ternary::{self, Codes};

/// Bytes that are read at a time, about.
const PIECE: usize = 8 << 20;
/// Bytes of floats that a thread makes blocks of at a time, about.
const ROWS: usize = 1 << 20;
/// Says which type most of a file has.
const FILE_TYPE: &str = "general.file_type";

/// Write a GGUF file with its embedding, head or ternary matrices in other types
///
/// Floats become blocks of integers as llama.cpp's reference functions make them, bit by bit. Ternary
/// matrices become other ternary types without a change of a weight.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Where to write [default: MODEL with the new types in its name]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Type of the embedding: keep, or f32, f16, bf16, q8_0, q6_k, q5_0, q4_0; tq2_0 or q2_0 for one that
    /// is ternary
    #[arg(long, alias = "token-embedding-type", value_name = "TYPE", default_value = "keep",
          value_parser = rows::table_type)]
    embd: Table,
    /// Type of the head, where it is not the embedding
    #[arg(long, alias = "output-tensor-type", value_name = "TYPE", default_value = "keep",
          value_parser = rows::table_type)]
    head: Table,
    /// Type of the ternary matrices [default: that which they have]
    #[arg(long = "type", value_name = "i2_s|tq2_0|tq1_0|q2_0|tl1|tl2|f16",
          value_parser = rows::matrix_type)]
    ty: Option<TensorType>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Writes the file.
///
/// # Errors
/// [`Error::Usage`] when nothing is asked for, or a type does not fit; [`Error::Model`] for a file that is
/// malformed, or weights that cannot be written so; [`Error::Io`] when reading or writing fails. The
/// output holds what it held then.
pub fn run(args: &Args) -> Result<()> {
    bus_error::explain(&args.model, None, "leave it as it is while it is used");
    let gguf = args.overrides.open(&args.model)?;
    gguf.check_whole()?;
    let tensors = args.plan(&gguf)?;
    let output = args.output(&gguf)?;
    let mut writer = GgufWriter::new();
    metadata(&gguf, args.ty, &mut writer);
    for (tensor, ty) in &tensors {
        writer.tensor(&tensor.name, &tensor.dims, *ty).map_err(|expected| {
            let flag = flag_of(&tensor.name);
            Error::usage(flag, format_args!("{ty} for {}", tensor.name), expected)
        })?;
    }
    describe_tiles(&mut writer)?;
    let bar = byte_bar();
    let mut written = 0;
    writer.write(
        &output,
        &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            written = total;
        },
        |index, info, out| {
            let (tensor, ty) = tensors[index];
            if tensor.ty == ty {
                copy(&gguf, tensor, out)
            } else if is_recoded(tensor, ty) {
                recode(&gguf, tensor, info, out)
            } else {
                requantise(&gguf, tensor, info, out)
            }
        },
    )?;
    bar.finish_and_clear();
    let changed = tensors.iter().filter(|(tensor, ty)| tensor.ty != *ty).count();
    note(format_args!(
        "{}: {} written, {} before ({changed} of {} tensors changed)",
        output.display(),
        human(written),
        human(gguf.file_bytes()),
        tensors.len()
    ));
    Ok(())
}

/// True for an embedding or a head.
fn is_table(tensor: &TensorInfo) -> bool {
    tensor.name == EMBEDDING || tensor.name == HEAD
}

/// True if a tensor's codes are written in another type, rather than its weights as floats.
fn is_recoded(tensor: &TensorInfo, ty: TensorType) -> bool {
    let (format, other) = (tensor.ty.format(), ty.format());
    let holds_scales = other.has_block_scales() || ty == TensorType::F16;
    let as_rows = is_table(tensor) && (format.rows().is_some() || !holds_scales);
    format.ternary().is_some() && (!as_rows || other.has_block_scales())
}

/// The flag that says what type a tensor gets.
fn flag_of(name: &str) -> &'static str {
    match name {
        EMBEDDING => "--embd",
        HEAD => "--head",
        _ => "--type",
    }
}

impl Args {
    /// The tensors of the file, each with the type that it gets.
    fn plan<'g>(&self, gguf: &'g Gguf) -> Result<Vec<(&'g TensorInfo, TensorType)>> {
        if self.embd.0.is_none() && self.head.0.is_none() && self.ty.is_none() {
            let expected = "--embd TYPE, --head TYPE or --type TYPE";
            return Err(Error::usage("types", "none", expected));
        }
        if self.head.0.is_some() && gguf.tensor(HEAD).is_none() {
            let found = format!("a type for {HEAD}, which the file does not have");
            let expected = "--embd: the embedding is the head, too";
            return Err(Error::usage("--head", found, expected));
        }
        gguf.tensors()
            .iter()
            .map(|tensor| {
                let asked = match tensor.name.as_str() {
                    EMBEDDING => self.embd.0,
                    HEAD => self.head.0,
                    _ if tensor.ty.is_ternary() => self.ty,
                    _ => None,
                };
                let ty = asked.unwrap_or(tensor.ty);
                self.check(gguf, tensor, ty).map(|()| (tensor, ty))
            })
            .collect()
    }

    /// Checks that a tensor can be written in a type.
    fn check(&self, gguf: &Gguf, tensor: &TensorInfo, ty: TensorType) -> Result<()> {
        let as_rows = is_table(tensor) && tensor.ty.format().rows().is_some();
        if as_rows || is_recoded(tensor, ty) || tensor.ty == ty {
            return Ok(());
        }
        let name = &tensor.name;
        Err(gguf.tensor_error(name, tensor.ty, format_args!("a type that is read here, for {ty}")))
    }

    /// The path to write to.
    fn output(&self, gguf: &Gguf) -> Result<PathBuf> {
        let output = self.output.clone().unwrap_or_else(|| {
            let types = [self.ty, self.embd.0, self.head.0].into_iter().flatten();
            let types: Vec<String> = types.map(|ty| ty.name().to_ascii_lowercase()).collect();
            let stem = self.model.file_stem().unwrap_or_default().to_string_lossy();
            self.model.with_file_name(format!("{stem}-{}.gguf", types.join("-")))
        });
        let own = output.canonicalize().ok();
        let is_own = |path: &Path| own.is_some() && path.canonicalize().ok() == own;
        if gguf.files().any(|(path, _)| is_own(path)) {
            let found = format!("{}, which is read", output.display());
            return Err(Error::usage("-o", found, "another file"));
        }
        if !self.force && destination::holds_contents(&output) {
            let found = format!("{}, which exists", output.display());
            return Err(Error::usage("-o", found, "a new file, or --force"));
        }
        Ok(output)
    }
}

/// Copies the metadata, but for what says that the model is in several files, and how data is aligned
/// and tiled.
fn metadata(gguf: &Gguf, ty: Option<TensorType>, writer: &mut GgufWriter) {
    for (key, value) in gguf.metadata() {
        if key.starts_with("split.") || ["general.alignment", TILES_KEY].contains(&key) {
            continue;
        }
        match ty.and_then(rows::file_type).filter(|_| key == FILE_TYPE) {
            Some(number) => writer.kv(key, &Value::U32(number)),
            None => writer.kv(key, value),
        }
    }
}

/// Copies the data of a tensor.
fn copy(gguf: &Gguf, tensor: &TensorInfo, out: &mut TensorSink<'_>) -> Result<()> {
    let bytes = gguf.tensor_bytes(tensor);
    for (piece, bytes) in bytes.chunks(PIECE).enumerate() {
        out.write(bytes)?;
        let start = piece * PIECE;
        gguf.drop_part(tensor, start..start + bytes.len(), false);
    }
    Ok(())
}

/// Writes a ternary matrix in another type.
fn recode(
    gguf: &Gguf,
    tensor: &TensorInfo,
    info: &TensorInfo,
    out: &mut TensorSink<'_>,
) -> Result<()> {
    let name = &tensor.name;
    let (rows, cols) = (tensor.rows() as usize, tensor.cols() as usize);
    let stored = Stored::of(gguf, tensor, Shape::new(rows, cols))?;
    let Some(stored) = stored.filter(Stored::fits) else {
        return Err(gguf.tensor_error(name, tensor.ty, "a ternary type that is read here"));
    };
    let scales = stored.scales();
    if let Some(scale) = scales.broken() {
        let expected = "a scale above 0; the file is damaged";
        return Err(gguf.tensor_error(name, format_args!("scale {scale}"), expected));
    }
    let wrong = |[first, other]: [f32; 2], unit: &str| {
        let found = format!("scales {first} and {other}");
        gguf.tensor_error(name, found, format_args!("{unit}, to be written as {}", info.ty))
    };
    // Columns that share a scale, where not all do.
    let (mut one, width) = match (scales.uniform(), width_of(info.ty, &scales, cols)) {
        (Ok(scale), _) => (Some(Codes::new(info, scale)?), cols),
        (Err(_), Some(width)) => (None, width),
        (Err(found), None) => return Err(wrong(found, "one scale for all")),
    };
    let (mut row, mut own) = (vec![0; cols], Vec::new());
    let (mut read, row_bytes) = (0, (tensor.bytes as usize / rows).max(1));
    for index in 0..rows {
        if let Some(col) = stored.row(index, &mut row) {
            return Err(if stored.has_twos() {
                let found = format!("code 3, a weight of +2, at [{index}, {col}] in {}", tensor.ty);
                let expected = format!(
                    "codes 0 to 2, weights of -1, 0 and +1, which alone {} holds; leave {} out, and it \
                     stays {}",
                    info.ty,
                    flag_of(name),
                    tensor.ty
                );
                gguf.tensor_error(name, found, expected)
            } else {
                let found = format!("code 3 at [{index}, {col}]");
                gguf.tensor_error(name, found, "codes 0 to 2; the file is damaged")
            });
        }
        if let Some(codes) = &mut one {
            codes.push(&row, out)?;
        } else {
            own.clear();
            for start in (0..cols).step_by(width) {
                let scale = scales.of_columns(cols, index, start..start + width);
                let unit = || format!("one scale for each block of {width} columns");
                own.push(scale.map_err(|found| wrong(found, &unit()))?);
            }
            out.write(&ternary::blocks(info, &row, &own)?)?;
        }
        let done = index * row_bytes;
        if done - read >= PIECE {
            gguf.drop_part(tensor, read..done, false);
            read = done;
        }
    }
    one.map_or(Ok(()), |codes| codes.finish(out))
}

/// Columns of a row that have to share a scale, for a matrix of such scales to be written in a type; `None`
/// where all of the matrix has to.
fn width_of(ty: TensorType, scales: &Scales, cols: usize) -> Option<usize> {
    let format = ty.format();
    match (format.size.block(), scales) {
        (Some((weights, _)), _) if format.has_block_scales() => Some(weights as usize),
        (_, Scales::Blocks { width, .. }) if ty == TensorType::F16 => Some(*width),
        (_, Scales::Rows(_)) if ty == TensorType::F16 => Some(cols),
        _ => None,
    }
}

/// Writes an embedding or a head in another type.
fn requantise(
    gguf: &Gguf,
    tensor: &TensorInfo,
    info: &TensorInfo,
    out: &mut TensorSink<'_>,
) -> Result<()> {
    let (rows, cols) = (tensor.rows() as usize, tensor.cols() as usize);
    let Some(format) = tensor.ty.format().rows() else {
        return Err(gguf.tensor_error(&tensor.name, tensor.ty, "a type of rows"));
    };
    let bytes = gguf.tensor_bytes(tensor);
    // Rows of I2_S know no scale: it stands behind all.
    let shape = Shape::new(rows, cols);
    let factor = Stored::new(tensor.ty, bytes, shape).and_then(|own| own.scales().of_tensor());
    let width = format.head.row_bytes(cols);
    let most = (ROWS / (4 * cols)).max(1);
    let make = |values: &mut Vec<f32>, piece: usize| {
        let first = piece * most;
        let count = most.min(rows - first);
        let part = first * width..(first + count) * width;
        values.resize(count * cols, 0.0);
        (format.dequantise)(&bytes[part.clone()], values);
        if let Some(factor) = factor {
            values.iter_mut().for_each(|v| *v *= factor);
        }
        let encoded = rows::encode(info, values).map_err(|refused| match refused {
            rows::Refused::Other(error) => error,
            rows::Refused::Value(place) => {
                let [row, col] = [first + place / cols, place % cols];
                let found = format!("{} at [{row}, {col}]", values[place]);
                gguf.tensor_error(&tensor.name, found, rows::allowed(info.ty))
            }
        })?;
        Ok((encoded, part))
    };
    pieces::in_order(rows.div_ceil(most), make, |(encoded, part)| {
        out.write(&encoded)?;
        gguf.drop_part(tensor, part, false);
        Ok(())
    })
}
