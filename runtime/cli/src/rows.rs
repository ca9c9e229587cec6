//! Rows of floats in the type of a tensor, and the names of the types that they may have.

use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::TensorInfo;
use bitnet_runtime::formats::TensorType;

use half::f16;

use crate::ternary;

/// Types of embeddings and heads that are written; the last two only where their weights are ternary.
const TABLES: [TensorType; 9] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q6_K,
    TensorType::Q5_0,
    TensorType::Q4_0,
    TensorType::TQ2_0,
    TensorType::Q2_0,
];

/// The type of an embedding or a head; `None`: that which it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(pub Option<TensorType>);

/// The reason why rows were not written.
#[derive(Debug)]
pub enum Refused {
    /// The place of a value that the type cannot hold.
    Value(usize),
    /// Another reason.
    Other(Error),
}

/// Reads the name of a type of embeddings or heads, for clap, in any case.
///
/// # Errors
/// [`Error::Usage`] for another name.
pub fn table_type(name: &str) -> Result<Table> {
    let lower = name.to_ascii_lowercase();
    if lower == "keep" {
        return Ok(Table(None));
    }
    let found = TABLES.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(&lower));
    found.map(|ty| Table(Some(ty))).ok_or_else(|| {
        let names = TABLES.map(|ty| ty.name().to_ascii_lowercase()).join(", ");
        Error::usage("type", quoted(name), format_args!("keep, {names}"))
    })
}

/// Reads the name of a type of ternary matrices, for clap, in any case.
///
/// # Errors
/// [`Error::Usage`] for another name.
pub fn matrix_type(name: &str) -> Result<TensorType> {
    let known = TensorType::ALL.iter().copied();
    let mut known = known.filter(|ty| ternary::is_written(ty.format()) || *ty == TensorType::F16);
    known.find(|ty| ty.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        Error::usage("type", quoted(name), format_args!("{}, or f16", ternary::types()))
    })
}

/// Returns the number of the type in `general.file_type`: bitnet.cpp's for its own types, llama.cpp's for others.
#[must_use]
pub fn file_type(ty: TensorType) -> Option<u32> {
    match ty {
        TensorType::F16 => Some(1),
        TensorType::TQ1_0 => Some(36),
        TensorType::TQ2_0 => Some(37),
        TensorType::TL1 => Some(38),
        TensorType::TL2 => Some(39),
        TensorType::I2_S => Some(40),
        _ => None,
    }
}

/// Says which numbers rows of a type hold, for messages.
#[must_use]
pub fn allowed(ty: TensorType) -> String {
    match width(ty) {
        Some(width) => format!(
            "numbers of one magnitude within a block of {width} columns, and 0, as {ty} rounds none here; \
             another type, such as f16, holds others"
        ),
        None => format!("finite numbers, for f16 up to {}", f16::MAX),
    }
}

/// The columns that share a scale in rows of a ternary type; `None` for types of floats and integers.
fn width(ty: TensorType) -> Option<usize> {
    let format = ty.format();
    let block = format.size.block().filter(|_| format.has_block_scales());
    block.map(|(weights, _)| weights as usize)
}

/// Encodes whole rows in the type of a tensor. Those of a ternary type are not rounded.
///
/// # Errors
/// [`Refused::Value`] for a number that is not finite, or becomes so in f16, or is neither 0 nor of the
/// largest magnitude of its block in a ternary type; [`Refused::Other`] for a scale that an f16 cannot
/// hold, and a type that is not one of rows.
pub fn encode(info: &TensorInfo, values: &[f32]) -> std::result::Result<Vec<u8>, Refused> {
    // Where half of the step between the two largest numbers of f16 is added, rounding gives infinity.
    const TOO_LARGE: f32 = 65_520.0;
    let most = if info.ty == TensorType::F16 { TOO_LARGE } else { f32::INFINITY };
    if let Some(place) = ternary::misfit(values, |v| v.abs() < most) {
        return Err(Refused::Value(place));
    }
    if let Some(width) = width(info.ty) {
        return encode_ternary(info, width, values);
    }
    let Some(rows) = info.ty.format().rows() else {
        let expected = "a type of rows of floats";
        return Err(Refused::Other(Error::usage("type", info.ty, expected)));
    };
    let mut bytes = Vec::new();
    (rows.quantise)(values, &mut bytes);
    Ok(bytes)
}

/// Encodes whole rows whose blocks of so many columns are ternary.
fn encode_ternary(
    info: &TensorInfo,
    width: usize,
    values: &[f32],
) -> std::result::Result<Vec<u8>, Refused> {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for (block, start) in values.chunks(width).zip((0..).step_by(width)) {
        let scale = ternary::codes_of(block, &mut codes);
        scales.push(scale.map_err(|place| Refused::Value(start + place))?);
    }
    ternary::blocks(info, &codes, &scales).map_err(Refused::Other)
}
