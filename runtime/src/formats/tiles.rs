//! Tiles of TL1 and TL2: bitnet.cpp stores a matrix tile by tile, as its kernels read it.
//!
//! The sizes of tiles are chosen for each shape when bitnet.cpp's kernels are generated, and files do not
//! hold them. Those of the models that it has presets for are known; others are given by the metadata key
//! [`KEY`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bitnet_profiles::Shape;

use super::{Format, TensorType};
use crate::error::{Error, Result};
use crate::file::gguf::{Gguf, GgufWriter, Value};

/// Metadata key of the sizes of tiles: `BM/BK/bm` for all matrices, or `ROWSxCOLS:BM/BK/bm` for each
/// shape, separated by spaces.
pub const KEY: &str = "quantize.tiles";

/// Sizes of the tiles of a matrix, in bitnet.cpp's words `BM`, `BK` and `bm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Rows of a tile, `BM`.
    pub rows: usize,
    /// Columns of a tile, `BK`.
    pub cols: usize,
    /// Rows that a kernel looks up together, `bm`.
    pub inner: usize,
}

/// Tiles of bitnet.cpp for a shape.
#[derive(Debug)]
pub(super) struct Preset {
    shape: Shape,
    /// Tiles of `preset_kernels/`.
    tiles: Tiles,
    /// Those that `setup_env.py` generates, where they are others.
    generated: Option<Tiles>,
}

/// Returns the tiles of a shape, by which both parts of bitnet.cpp agree.
pub(super) const fn preset(shape: (usize, usize), tiles: (usize, usize, usize)) -> Preset {
    Preset { shape: Shape::new(shape.0, shape.1), tiles: of(tiles), generated: None }
}

/// Returns the tiles of a shape for which `setup_env.py` generates others.
pub(super) const fn disputed(
    shape: (usize, usize),
    tiles: (usize, usize, usize),
    inner: usize,
) -> Preset {
    let generated = Some(of((tiles.0, tiles.1, inner)));
    Preset { generated, ..preset(shape, tiles) }
}

const fn of((rows, cols, inner): (usize, usize, usize)) -> Tiles {
    Tiles { rows, cols, inner }
}

/// A format of tiles.
#[derive(Debug)]
pub struct Tiled {
    pub(super) presets: &'static [Preset],
    /// Checks that tiles fit a shape: `check(tiles, shape)`. The error says what is allowed.
    pub(super) check: fn(Tiles, Shape) -> std::result::Result<(), String>,
    /// Encodes whole rows of tiles, one code per byte, `[shape.rows][shape.cols]`:
    /// `encode(codes, shape, tiles)`.
    pub(super) encode: fn(&[u8], Shape, Tiles) -> Regions,
}

/// The parts of a tensor, one behind the other; those of more rows of tiles follow in each.
pub type Regions = [Vec<u8>; 3];

impl Tiled {
    /// Encodes whole rows of tiles, one code per byte, `[shape.rows][shape.cols]`.
    ///
    /// # Panics
    /// When `tiles` are not those of the matrix, or `shape.rows` is no multiple of theirs.
    #[must_use]
    pub fn encode(&self, codes: &[u8], shape: Shape, tiles: Tiles) -> Regions {
        (self.encode)(codes, shape, tiles)
    }

    /// Returns the tiles that bitnet.cpp has presets for; `None` for another shape.
    #[must_use]
    pub fn preset(&self, shape: Shape) -> Option<Tiles> {
        self.known(shape).map(|preset| preset.tiles)
    }

    fn known(&self, shape: Shape) -> Option<&Preset> {
        self.presets.iter().find(|preset| preset.shape == shape)
    }

    /// Returns the tiles of a tensor's matrix: those that the metadata give, or else the preset's.
    ///
    /// # Errors
    /// [`Error::Model`] for a shape whose tiles are not known, and for a value of the key that is
    /// malformed or does not fit.
    pub(super) fn of(
        &self,
        gguf: &Gguf,
        format: &Format,
        name: &str,
        shape: Shape,
    ) -> Result<Tiles> {
        if let Some(tiles) = given(gguf, shape)? {
            let fits = (self.check)(tiles, shape);
            return fits.map(|()| tiles).map_err(|expected| {
                let found = format!("{tiles} for {name}, {} of {shape}", format.name);
                gguf.key_error(KEY, found, expected)
            });
        }
        let give = |tiles: &dyn fmt::Display| format!("--override-kv {KEY}=str:{tiles}");
        let way_out = "or convert the checkpoint to i2_s";
        let found = format!("{} of {shape}", format.name);
        match self.known(shape) {
            Some(Preset { tiles, generated: None, .. }) => Ok(*tiles),
            Some(Preset { tiles, generated: Some(other), .. }) => {
                let expected = format!(
                    "the tiles that it was written with: {} for those of bitnet.cpp's \
                     preset_kernels, {other} for those of its setup_env.py; {way_out}",
                    give(&format_args!("{shape}:{tiles}"))
                );
                Err(gguf.tensor_error(name, found, expected))
            }
            None => {
                let shapes: Vec<String> =
                    self.presets.iter().map(|preset| preset.shape.to_string()).collect();
                let expected = format!(
                    "a shape that bitnet.cpp has a preset for ({}); give the sizes of its tiles, \
                     which the file does not hold, with {}, {way_out}",
                    shapes.join(", "),
                    give(&"BM/BK/bm")
                );
                Err(gguf.tensor_error(name, found, expected))
            }
        }
    }
}

/// Returns the tiles that the metadata give for a shape.
fn given(gguf: &Gguf, shape: Shape) -> Result<Option<Tiles>> {
    let Some(text) = gguf.get_str(KEY)? else { return Ok(None) };
    let malformed = |entry: &str| {
        let expected = "BM/BK/bm, or ROWSxCOLS:BM/BK/bm for each shape, with spaces between";
        gguf.key_error(KEY, crate::error::quoted(entry), expected)
    };
    let mut found = None;
    for entry in text.split_whitespace() {
        let (own, tiles) = match entry.split_once(':') {
            Some((own, tiles)) => (own == shape.to_string(), tiles),
            None => (true, entry),
        };
        let tiles = tiles.parse().map_err(|()| malformed(entry))?;
        if own {
            found = Some(tiles);
        }
    }
    Ok(found)
}

/// Adds the key that says the tiles of all matrices of a file to be written, if any are in a format of
/// tiles.
///
/// # Errors
/// [`Error::Usage`] for a matrix without a preset.
pub fn describe(writer: &mut GgufWriter) -> Result<()> {
    let mut all = BTreeMap::new();
    for tensor in writer.tensors() {
        let Some(tiled) = tensor.ty.format().tiled() else { continue };
        let shape = Shape::new(tensor.rows() as usize, tensor.cols() as usize);
        all.insert(shape.to_string(), preset_of(tiled, tensor.ty, shape)?);
    }
    if all.is_empty() {
        return Ok(());
    }
    let entries: Vec<String> =
        all.iter().map(|(shape, tiles)| format!("{shape}:{tiles}")).collect();
    writer.kv(KEY, &Value::Str(entries.join(" ")));
    Ok(())
}

/// Returns the preset's tiles of a matrix to be written.
///
/// # Errors
/// [`Error::Usage`] for a shape without a preset.
pub fn preset_of(tiled: &Tiled, ty: TensorType, shape: Shape) -> Result<Tiles> {
    tiled.preset(shape).ok_or_else(|| {
        let expected = "shapes that bitnet.cpp has presets for, those of b1_58-large, b1_58-3B and \
                        Llama3-8B-1.58; or i2_s";
        Error::usage("type", format_args!("{ty} for a matrix of {shape}"), expected)
    })
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.rows, self.cols, self.inner)
    }
}

impl FromStr for Tiles {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        // Shapes are bounded: products of such numbers do not overflow.
        let number = |part: &str| part.parse().ok().filter(|n| (1..=1 << 20).contains(n)).ok_or(());
        let parts: Vec<usize> =
            text.split('/').map(number).collect::<std::result::Result<_, _>>()?;
        match parts[..] {
            [rows, cols, inner] => Ok(Self { rows, cols, inner }),
            _ => Err(()),
        }
    }
}

/// Checks what all formats of tiles ask for; `unit` is the number of columns of one look-up of `inner`
/// rows.
pub(super) fn check(tiles: Tiles, shape: Shape, unit: usize) -> std::result::Result<(), String> {
    let Tiles { rows, cols, inner } = tiles;
    let fits = shape.rows.is_multiple_of(rows)
        && rows.is_multiple_of(inner)
        && cols.is_multiple_of(unit)
        && cols <= shape.cols;
    if fits {
        return Ok(());
    }
    Err(format!(
        "BM that divides {}, bm that divides BM, and BK of at most {} that is a multiple of {unit}",
        shape.rows, shape.cols
    ))
}
