//! Ternary codes on their way into the tensor of a file: gathered to whole blocks, or to whole rows of
//! tiles, and written in its type.

use half::f16;

use bitnet_profiles::Shape;
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::{TensorInfo, TensorSink};
use bitnet_runtime::formats::{Form, Format, TensorType, Tiled, Tiles, preset_of};

/// Codes that are gathered before they are written, at least.
const GATHERED: usize = 1 << 16;
/// Codes that are whole blocks of every format.
const BLOCKS: usize = 256;
/// The most that a scale may change by, relative to it: what rounding to f16 does to a normal number.
const MOST_CHANGE: f32 = 1.0 / 2048.0;

/// Writer of the codes of one tensor, from its first weight to its last.
#[derive(Debug)]
pub struct Codes {
    ty: TensorType,
    scale: f32,
    /// Codes that are written together.
    unit: usize,
    tiles: Option<InTiles>,
    codes: Vec<u8>,
    bytes: Vec<u8>,
}

/// What a matrix in tiles needs.
#[derive(Debug)]
struct InTiles {
    tiled: &'static Tiled,
    tiles: Tiles,
    cols: usize,
    /// Codes that are not written yet.
    left: usize,
    /// The parts that stand behind the first, for the whole matrix.
    behind: [Vec<u8>; 2],
}

impl Codes {
    /// A writer of codes with a scale, in the type of a tensor.
    ///
    /// # Errors
    /// [`Error::Runtime`] for a scale that the type cannot hold; [`Error::Usage`] for a type that is
    /// neither one of [`types`] nor f16, and for a matrix whose tiles are not known.
    pub fn new(info: &TensorInfo, scale: f32) -> Result<Self> {
        let ty = info.ty;
        let format = ty.format();
        if !is_written(format) && ty != TensorType::F16 {
            return Err(Error::usage("--type", ty, format_args!("{} or f16", types())));
        }
        // Formats of blocks and rows have scales of f16.
        if format.size.tail_bytes() == 0 {
            check_f16(info, scale)?;
        }
        let shape = Shape::new(info.rows() as usize, info.cols() as usize);
        let tiles = match format.tiled() {
            None => None,
            Some(tiled) => {
                let tiles = preset_of(tiled, ty, shape)?;
                let left = shape.weights();
                Some(InTiles { tiled, tiles, cols: shape.cols, left, behind: Default::default() })
            }
        };
        let unit = tiles.as_ref().map_or(GATHERED, |own| own.tiles.rows * own.cols);
        Ok(Self { ty, scale, unit, tiles, codes: Vec::with_capacity(2 * unit), bytes: Vec::new() })
    }

    /// Appends codes: 0, 1, 2 for -1, 0, +1.
    ///
    /// # Errors
    /// Those of [`TensorSink::write`].
    pub fn push(&mut self, codes: &[u8], out: &mut TensorSink<'_>) -> Result<()> {
        let alone = self.codes.is_empty() && self.tiles.is_none() && codes.len() >= GATHERED;
        let whole = if alone { codes.len() / BLOCKS * BLOCKS } else { 0 };
        let (now, later) = codes.split_at(whole);
        self.write(now, out)?;
        self.codes.extend(later);
        if self.codes.len() >= self.unit {
            let mut gathered = std::mem::take(&mut self.codes);
            let whole = gathered.len() / self.unit * self.unit;
            self.write(&gathered[..whole], out)?;
            gathered.drain(..whole);
            self.codes = gathered;
        }
        Ok(())
    }

    /// Writes what is gathered, and what stands behind all codes.
    ///
    /// # Errors
    /// Those of [`TensorSink::write`], which counts the bytes.
    pub fn finish(mut self, out: &mut TensorSink<'_>) -> Result<()> {
        let gathered = std::mem::take(&mut self.codes);
        self.write(&gathered, out)?;
        let tail = self.ty.format().size.tail_bytes();
        if let Some(own) = self.tiles.filter(|own| own.left == 0) {
            own.behind.iter().try_for_each(|behind| out.write(behind))?;
            let padding = out.left().saturating_sub(tail);
            out.write(&vec![0; padding as usize])?;
        }
        let mut bytes = vec![0; tail as usize];
        if let Some(scale) = bytes.first_chunk_mut() {
            *scale = self.scale.to_le_bytes();
        }
        out.write(&bytes)
    }

    /// Writes whole blocks, or whole rows of tiles.
    fn write(&mut self, codes: &[u8], out: &mut TensorSink<'_>) -> Result<()> {
        self.bytes.clear();
        match (form(self.ty), &mut self.tiles) {
            (Some(Form::Blocks { encode, .. }), _) => encode(codes, self.scale, &mut self.bytes),
            (Some(Form::Tiles(_)), Some(own)) => {
                own.left -= codes.len();
                let shape = Shape::new(codes.len() / own.cols, own.cols);
                let [first, behind @ ..] = own.tiled.encode(codes, shape, own.tiles);
                self.bytes = first;
                own.behind.iter_mut().zip(behind).for_each(|(all, part)| all.extend(part));
            }
            _ => floats(codes, self.scale, &mut self.bytes),
        }
        out.write(&self.bytes)
    }
}

/// Encodes codes in whole blocks, each with a scale of its own, `[blocks]`, in the type of a tensor: one of
/// blocks as wide or narrower, or f16.
///
/// # Errors
/// [`Error::Runtime`] for a scale that an f16 cannot hold; [`Error::Usage`] for another type.
pub fn blocks(info: &TensorInfo, codes: &[u8], scales: &[f32]) -> Result<Vec<u8>> {
    let ty = info.ty;
    let encode = match form(ty) {
        Some(Form::Blocks { encode, .. }) if ty.format().has_block_scales() => *encode,
        None if ty == TensorType::F16 => floats,
        _ => return Err(Error::usage("--type", ty, "a type whose blocks have scales, or f16")),
    };
    let mut bytes = Vec::new();
    for (codes, &scale) in codes.chunks_exact(codes.len() / scales.len()).zip(scales) {
        check_f16(info, scale)?;
        encode(codes, scale, &mut bytes);
    }
    Ok(bytes)
}

/// Appends the codes of finite weights that are 0 or of one magnitude, and returns it; 0 where all are.
///
/// # Errors
/// The place of the first weight that is neither 0 nor of the largest magnitude.
pub fn codes_of(weights: &[f32], codes: &mut Vec<u8>) -> std::result::Result<f32, usize> {
    let scale = largest(weights);
    if let Some(place) = other(weights, scale) {
        return Err(place);
    }
    codes.extend(weights.iter().map(|&v| 1 + u8::from(v > 0.0) - u8::from(v < 0.0)));
    Ok(scale)
}

/// The largest magnitude; 0 of no numbers, and NaN where one is.
#[must_use]
pub fn largest(values: &[f32]) -> f32 {
    // Bits of magnitudes are in their order; compilers do not reorder maxima of floats.
    let bits = values.iter().fold(0, |largest, v| largest.max((v.to_bits() << 1) >> 1));
    f32::from_bits(bits)
}

/// The place of the first number that is neither 0 nor of this magnitude.
#[must_use]
pub fn other(values: &[f32], magnitude: f32) -> Option<usize> {
    misfit(values, |&v| (v == 0.0) | (v.abs() == magnitude))
}

/// The place of the first value that does not fit.
pub fn misfit<T>(values: &[T], fits: impl Fn(&T) -> bool) -> Option<usize> {
    // All of them at first, without a branch for each.
    if values.iter().fold(true, |all, v| all & fits(v)) {
        return None;
    }
    values.iter().position(|v| !fits(v))
}

/// Checks that an f16 holds a scale.
fn check_f16(info: &TensorInfo, scale: f32) -> Result<()> {
    let kept = f16::from_f32(scale).to_f32();
    if (kept - scale).abs() <= MOST_CHANGE * scale.abs() {
        return Ok(());
    }
    Err(Error::Runtime(format!(
        "tensor {}: its scale, {scale:e}, is too small or too large for the f16 of {}; write it as i2_s",
        quoted(&info.name),
        info.ty
    )))
}

/// The order of the codes of a type, if it holds codes.
fn form(ty: TensorType) -> Option<&'static Form> {
    ty.format().ternary().map(|ternary| &ternary.form)
}

/// Appends the weights of codes as f16.
fn floats(codes: &[u8], scale: f32, bytes: &mut Vec<u8>) {
    let weight = |&code: &u8| f16::from_f32(scale * (f32::from(code) - 1.0));
    bytes.extend(codes.iter().map(weight).flat_map(f16::to_le_bytes));
}

/// Returns the names of the types that codes are written in, for messages.
#[must_use]
pub fn types() -> String {
    Format::names(is_written)
}

/// True if codes are written in a format.
#[must_use]
pub fn is_written(format: &Format) -> bool {
    // Blocks of 128 share the id and the name of those of 64.
    let sizes = format.ty != TensorType::Q2_0_G128;
    sizes && format.ternary().is_some_and(|ternary| !matches!(ternary.form, Form::Rows))
}
