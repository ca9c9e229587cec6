use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use crate::{
    BlockLayout, Format, GatherLayout, HeadFormat, Isa, Layout, Packing, Shape, SketchFormat,
    TileConfig,
};

/// Operation of a kernel, and the packing that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Ternary matrix times int8 activations: exact int32 dot products.
    Ternary(Layout),
    /// Ternary matrix with a scale for each block of columns, times int8 activations with as many scales:
    /// f32 products.
    Blocks(BlockLayout),
    /// Rows of the lm_head times activation rows: f32 logits.
    Head(HeadFormat),
    /// Rows of a low-bit copy of the lm_head times activation rows: f32 estimates of logits.
    Sketch(SketchFormat),
    /// Attention over the KV cache: f16, or f32 or int8 where the call says so.
    Attention,
    /// Listed rows of a ternary matrix times one int8 activation row: exact int32 dot products.
    Rows(GatherLayout),
    /// Listed columns of a ternary matrix, each times its int8 activation, added up: the exact
    /// int32 dot products where all other activations are zero.
    Columns(GatherLayout),
}

impl Op {
    /// The packing of the matrices that a kernel multiplies whole; none of a head, attention or listed
    /// lines.
    pub const fn packing(self) -> Option<Packing> {
        match self {
            Self::Ternary(layout) => Some(Packing::Ternary(layout)),
            Self::Blocks(layout) => Some(Packing::Blocks(layout)),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ternary(layout) => layout.fmt(f),
            Self::Blocks(layout) => layout.fmt(f),
            Self::Head(format) => write!(f, "head_{format}"),
            Self::Sketch(format) => format.fmt(f),
            Self::Attention => f.write_str("attention_f16"),
            Self::Rows(layout) => write!(f, "rows_{layout}"),
            Self::Columns(layout) => write!(f, "columns_{layout}"),
        }
    }
}

impl FromStr for Op {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let op = if s == "attention_f16" {
            Ok(Self::Attention)
        } else if let Some(format) = s.strip_prefix("head_") {
            format.parse().map(Self::Head)
        } else if s.starts_with("blocks_") {
            s.parse().map(Self::Blocks)
        } else if s.starts_with("sketch_") {
            s.parse().map(Self::Sketch)
        } else if let Some(layout) = s.strip_prefix("rows_") {
            layout.parse().map(Self::Rows)
        } else if let Some(layout) = s.strip_prefix("columns_") {
            layout.parse().map(Self::Columns)
        } else {
            s.parse().map(Self::Ternary)
        };
        op.map_err(|e: crate::UnknownName| e.to_string())
    }
}

/// A kernel to generate: everything that its code depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelSpec {
    /// Its operation.
    pub op: Op,
    /// The instructions it may use.
    pub isa: Isa,
    /// The one shape it serves, or any.
    pub shape: Option<Shape>,
    /// Its walk over the matrix.
    pub tile: TileConfig,
}

/// Reasons for which a spec or a name stands for no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A bound of [`KernelSpec::validate`] does not hold.
    #[error("{id}: {bound}")]
    Bound {
        /// The spec, spelled.
        id: String,
        /// The bound, with its reason.
        bound: String,
    },
    /// The text has not the form of an id.
    #[error(
        "`{text}` is no kernel id: {problem}; an id reads like \
         i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0"
    )]
    Syntax {
        /// The text, cut short.
        text: String,
        /// The part that is wrong.
        problem: String,
    },
}

impl KernelSpec {
    /// Checks every bound that exactness, the packing and the register file set, and gives the
    /// spec its id.
    ///
    /// # Errors
    /// [`SpecError::Bound`] names the bound that does not hold, and its reason.
    pub fn validate(self) -> Result<KernelId, SpecError> {
        let check = Check(&self);
        if let Some(shape) = self.shape {
            check.that((1..=Shape::MAX_ROWS).contains(&shape.rows), || {
                format!("rows of the matrix must be 1 to {}", Shape::MAX_ROWS)
            })?;
            check.that((1..=Shape::MAX_COLS).contains(&shape.cols), || {
                format!(
                    "columns of the matrix must be 1 to {}: beyond, an int32 sum of in-place \
                     codes could wrap",
                    Shape::MAX_COLS
                )
            })?;
        }
        let tile = self.tile;
        check
            .that(matches!(tile.unroll, 1 | 2 | 4 | 8), || "unroll must be 1, 2, 4 or 8".into())?;
        check.that((1..=64).contains(&tile.tokens), || {
            "activation rows per call must be 1 to 64".into()
        })?;
        let jumps = matches!(self.op, Op::Rows(_) | Op::Columns(_) | Op::Attention);
        check.that(tile.level == 1 || (tile.level == 2 && jumps && tile.prefetch != 0), || {
            "only what is prefetched for rows, columns or attention may go to the L2 cache".into()
        })?;
        if let Op::Rows(layout) | Op::Columns(layout) = self.op {
            self.validate_lines(layout, &check)?;
            return Ok(KernelId(self));
        }
        check.that(tile.prefetch <= 32768 && tile.prefetch.is_multiple_of(64), || {
            "prefetch distance must be a multiple of 64, a cache line, up to 32768".into()
        })?;
        match self.op {
            Op::Ternary(layout) => self.validate_ternary(layout, &check)?,
            Op::Blocks(layout) => self.validate_blocks(layout, &check)?,
            Op::Head(HeadFormat::I2S) => check.that(
                matches!((tile.rows, tile.tokens), (4, 1) | (1, 4)) && tile.cols == 0,
                || "a head kernel of i2_s takes whole rows, and 4 of them or 4 tokens".into(),
            )?,
            Op::Head(_) => check.that(
                matches!(tile.rows, 1 | 2 | 4 | 8)
                    && tile.cols == 0
                    && matches!(tile.tokens, 1 | 2 | 4 | 8),
                || {
                    "a head kernel takes 1, 2, 4 or 8 rows, whole rows and 1, 2, 4 or 8 tokens"
                        .into()
                },
            )?,
            Op::Sketch(_) => check.that(
                tile.rows == SketchFormat::TILE_ROWS
                    && tile.cols == 0
                    && matches!(tile.tokens, 1 | 2 | 8)
                    && tile.unroll == 1,
                || {
                    "a scan of a sketch takes a tile of 16 rows, whole rows and 1, 2 or 8 tokens"
                        .into()
                },
            )?,
            Op::Attention => check.that(
                matches!(tile.rows, 1 | 2 | 4 | 8) && tile.cols == 256 && tile.tokens == 1,
                || {
                    "an attention kernel takes 1, 2, 4 or 8 query heads, chunks of 256 positions \
                     (the float contract) and one token"
                        .into()
                },
            )?,
            Op::Rows(_) | Op::Columns(_) => unreachable!("checked above"),
        }
        Ok(KernelId(self))
    }

    /// Kernels for matrices with block scales.
    fn validate_blocks(&self, layout: BlockLayout, check: &Check) -> Result<(), SpecError> {
        let Self { isa, tile, shape, .. } = *self;
        check.that(tile.rows == layout.tile_rows() && tile.cols == 0 && tile.unroll == 1, || {
            format!(
                "a kernel with block scales takes tiles of {} rows, whole rows and blocks of {} columns",
                layout.tile_rows(),
                layout.width()
            )
        })?;
        check.that(shape.is_none_or(|shape| shape.cols.is_multiple_of(layout.width())), || {
            format!("columns of the matrix must be a multiple of {}, a block", layout.width())
        })?;
        let each = if tile.tokens == 1 && isa.dots_are_wide() { 4 } else { 1 };
        let sums = tile.rows / isa.lanes() * each * isa.sum_registers();
        // Codes, activations and a product.
        let others = tile.rows / isa.lanes() + 2;
        check.that(isa == Isa::Scalar || sums + others <= isa.registers(), || {
            format!(
                "{sums} vectors of sums leave fewer than {others} of the {} registers",
                isa.registers()
            )
        })
    }

    /// Activation rows that a kernel multiplies at once: those of its group, but with block scales the most
    /// that divide these and whose sums have registers. Then it unpacks codes first, for several passes.
    pub fn at_once(&self) -> usize {
        let Self { op, isa, tile, .. } = *self;
        if !matches!(op, Op::Blocks(_)) {
            return tile.tokens;
        }
        let most = match isa {
            Isa::Scalar => 4,
            _ => {
                let vectors = tile.rows / isa.lanes();
                let free = isa.registers().saturating_sub(vectors + 2);
                free / (vectors * isa.sum_registers()).max(1)
            }
        };
        (1..=most).rev().find(|rows| tile.tokens.is_multiple_of(*rows)).unwrap_or(1)
    }

    /// Kernels that are given a list of lines.
    fn validate_lines(&self, layout: GatherLayout, check: &Check) -> Result<(), SpecError> {
        let Self { isa, tile, .. } = *self;
        let fields = layout.fields();
        check.that(tile.prefetch <= 256, || {
            "prefetch distance must be at most 256 lines of the list".into()
        })?;
        check.that(tile.tokens == 1 && tile.unroll == 1, || {
            "a kernel with a list takes one token and one unit at a time".into()
        })?;
        check.that(layout.format() != Format::T5 || isa.looks_up_64(), || {
            "a byte of five codes needs a permute of 64 bytes, which only AVX-512 VBMI has".into()
        })?;
        let sums = if let Op::Rows(_) = self.op {
            check.that(matches!(tile.rows, 2 | 4) && tile.cols == 0, || {
                "a rows kernel takes 2 or 4 lines at once, and whole lines".into()
            })?;
            if isa.dots_are_wide() { tile.rows * fields } else { tile.rows * isa.sum_registers() }
        } else {
            check.that(self.shape.is_none(), || {
                "a columns kernel takes any shape: its rows are a worker's share".into()
            })?;
            let part = fields * isa.lanes();
            check.that([part, 2 * part, 4 * part].contains(&tile.rows), || {
                format!("rows must be 1, 2 or 4 times {part}, the codes in a vector")
            })?;
            // In place, the last field of 4 columns adds at most 4 * 2 * 64 * 128 to a 32-bit lane.
            let most = if isa.dots_are_wide() { 4096 } else { 256 };
            check.that((4..=most).contains(&tile.cols) && tile.cols.is_multiple_of(4), || {
                format!(
                    "columns at once must be a multiple of 4 up to {most}: 4 columns add at most \
                     2 * 2 * 128 to a 16-bit lane, which holds 64 such sums"
                )
            })?;
            tile.rows / isa.lanes() * isa.sum_registers()
        };
        // Vectors of four columns and what they are interleaved to; tables, masks.
        let others = if isa.registers() == 32 { 12 } else { 6 };
        check.that(isa == Isa::Scalar || sums + others <= isa.registers(), || {
            format!(
                "{sums} vectors of sums leave fewer than {others} of the {} registers",
                isa.registers()
            )
        })
    }

    fn validate_ternary(&self, layout: Layout, check: &Check) -> Result<(), SpecError> {
        let Self { isa, tile, .. } = *self;
        if self.expands() {
            return self.validate_lookups(layout, check);
        }
        check.that(
            tile.rows.is_multiple_of(layout.tile_rows())
                && Layout::ROW_PADDING.is_multiple_of(tile.rows),
            || {
                format!(
                    "rows must be a multiple of the layout's tile of {} rows and divide {}, to \
                     which matrices are padded",
                    layout.tile_rows(),
                    Layout::ROW_PADDING
                )
            },
        )?;
        check.that(tile.cols.is_multiple_of(layout.unit_cols()), || {
            format!("columns per block must be a multiple of {}, a unit", layout.unit_cols())
        })?;
        check.that(tile.cols == 0 || tile.unroll * layout.unit_cols() <= tile.cols, || {
            format!("{} units do not fit in a block: the unrolled code would not run", tile.unroll)
        })?;
        match layout.format() {
            Format::I2S if isa.multiplies_matrices() => {
                check.that(tile.tokens == 1 || tile.tokens.is_multiple_of(2), || {
                    "activation rows per call must be 1 or even: this ISA multiplies two at once"
                        .into()
                })?;
                check.that(tile.tokens == 1 || tile.unroll > 1, || {
                    "unroll must be 2 or more: this ISA multiplies 8 columns at once, 4 of each of \
                     two units"
                        .into()
                })?;
                self.validate_wide_sums(4 * tile.unroll, 4, check)
            }
            Format::I2S if isa.dots_are_wide() => {
                self.validate_wide_sums(4 * tile.unroll, 4, check)
            }
            Format::T5 => {
                check.that(isa.looks_up_64(), || {
                    "a byte of five codes needs a permute of 64 bytes, which only AVX-512 VBMI has"
                        .into()
                })?;
                // Three tables, four masks, and a vector at each stage of unpacking; decode looks the
                // next unit up meanwhile.
                let ahead = if tile.tokens == 1 { 2 * tile.rows / isa.lanes() } else { 0 };
                self.validate_wide_sums(5, 10 + ahead, check)
            }
            Format::I2S => {
                check.that((16..=256).contains(&tile.cols), || {
                    "columns per block must be 16 to 256: 4 columns add at most 2 * 2 * 128 to a \
                     16-bit lane, which holds 64 such sums"
                        .into()
                })?;
                let sums = tile.rows / isa.lanes() * tile.tokens * isa.sum_registers();
                check.that(sums <= isa.registers() / 2, || {
                    format!(
                        "{sums} vectors of sums take more than half of the {} registers",
                        isa.registers()
                    )
                })
            }
            Format::Tl1 => {
                check.that((4..=252).contains(&tile.cols), || {
                    "columns per block must be 4 to 252: a pair reaches +-256, so a 16-bit lane \
                     holds 127 pairs"
                        .into()
                })?;
                self.validate_table_sums(check)
            }
            Format::Tl2 => {
                check.that(layout != Layout::Tl2W32 || isa.looks_up_32(), || {
                    "a 5-bit index needs a table of 32 entries, which AVX2 lacks: it reads tl2_t32"
                        .into()
                })?;
                check.that(
                    layout != Layout::Tl2T32 || isa == Isa::Scalar || !isa.looks_up_32(),
                    || {
                        "signs apart from the index are for ISAs with tables of 16 entries: the \
                     others read tl2_w32"
                            .into()
                    },
                )?;
                check.that((24..=240).contains(&tile.cols), || {
                    "columns per block must be 24 to 240: a triple reaches +-384, so a 16-bit \
                     lane holds 85 triples"
                        .into()
                })?;
                self.validate_table_sums(check)
            }
        }
    }

    /// True if it is of those kernels for many activation rows that have the packing expanded before,
    /// once for all of them, and then look sums of products up: T5 in blocks of columns.
    pub fn expands(&self) -> bool {
        matches!(self.op, Op::Ternary(Layout::T5T32)) && self.tile.tokens > 1 && self.tile.cols > 0
    }

    /// A step may be of any number of tiles: what is left of the rows goes tile by tile.
    fn validate_lookups(&self, layout: Layout, check: &Check) -> Result<(), SpecError> {
        let Self { isa, tile, .. } = *self;
        check.that(isa.looks_up_64(), || {
            "a byte of five codes needs a permute of 64 bytes, which only AVX-512 VBMI has".into()
        })?;
        let tiles = tile.rows / layout.tile_rows();
        check.that(
            tile.rows.is_multiple_of(layout.tile_rows()) && (1..=4).contains(&tiles),
            || {
                format!(
                    "rows must be 1 to 4 times the layout's tile of {} rows",
                    layout.tile_rows()
                )
            },
        )?;
        check.that(tile.cols.is_multiple_of(60) && tile.cols <= 240, || {
            "columns per block must be 60, 120, 180 or 240: 60 are expanded together; a triple \
             reaches +-384, so a 16-bit lane holds 85 triples"
                .into()
        })?;
        check.that(tile.unroll == 1 && tile.prefetch == 0, || {
            "unroll must be 1, as a word is two triples, and prefetch 0: it reads from the cache".into()
        })?;
        // An index for each tile, a table, and what was looked up.
        let registers = tiles * tile.tokens + tiles + 2;
        check.that(isa == Isa::Scalar || registers <= isa.registers(), || {
            format!("{registers} vectors do not fit into the {} registers", isa.registers())
        })
    }

    /// Sums of products are 32 bits wide: so many in decode, one for each token in prefill, beside
    /// which so many `others` are needed.
    fn validate_wide_sums(
        &self,
        decode: usize,
        others: usize,
        check: &Check,
    ) -> Result<(), SpecError> {
        let Self { isa, tile, .. } = *self;
        check.that(tile.cols == 0, || {
            "columns per block must be 0: this ISA sums into 32 bits at once".into()
        })?;
        let each = if tile.tokens == 1 { decode } else { tile.tokens };
        let sums = tile.rows / isa.lanes() * each;
        check.that(isa == Isa::Scalar || sums + others <= isa.registers(), || {
            format!(
                "{sums} vectors of sums leave fewer than {others} of the {} registers",
                isa.registers()
            )
        })
    }

    /// Sums of table entries are 16 bits wide; half of the registers are for tables and indices.
    fn validate_table_sums(&self, check: &Check) -> Result<(), SpecError> {
        let Self { isa, tile, .. } = *self;
        let sums = tile.rows / (2 * isa.lanes()) * tile.tokens;
        check.that(isa == Isa::Scalar || sums <= isa.registers() / 2, || {
            format!(
                "{sums} vectors of sums take more than half of the {} registers",
                isa.registers()
            )
        })
    }
}

struct Check<'a>(&'a KernelSpec);

impl Check<'_> {
    fn that(&self, holds: bool, bound: impl FnOnce() -> String) -> Result<(), SpecError> {
        if holds {
            Ok(())
        } else {
            Err(SpecError::Bound { id: self.0.to_string(), bound: bound() })
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}__{}__", self.op, self.isa)?;
        match self.shape {
            None => f.write_str("any")?,
            Some(Shape { rows, cols }) => write!(f, "m{rows}_k{cols}")?,
        }
        write!(f, "__{}", self.tile)
    }
}

/// The name of a kernel that can exist: a validated [`KernelSpec`], spelled
/// `op_layout__isa__shape__tile`. It is a Rust identifier, and parses back to the same spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(KernelSpec);

impl KernelId {
    /// Longest text that is looked at when an id is parsed, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The spec.
    pub fn spec(&self) -> &KernelSpec {
        &self.0
    }
}

impl Deref for KernelId {
    type Target = KernelSpec;
    fn deref(&self) -> &KernelSpec {
        &self.0
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl FromStr for KernelId {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let syntax = |problem: String| SpecError::Syntax {
            text: text.chars().take(KernelId::MAX_LEN).collect(),
            problem,
        };
        if text.len() > Self::MAX_LEN {
            return Err(syntax(format!("longer than {} bytes", Self::MAX_LEN)));
        }
        let parts: Vec<&str> = text.split("__").collect();
        let &[op, isa, shape, tile] = &parts[..] else {
            return Err(syntax(format!("{} parts between `__`, not 4", parts.len())));
        };
        let number = |part: &str, prefix: &str| -> Result<usize, SpecError> {
            // Only the spelling that Display gives: no sign, no leading zero.
            part.strip_prefix(prefix)
                .filter(|d| *d == "0" || !d.starts_with(['0', '+']))
                .and_then(|d| d.parse().ok())
                .ok_or_else(|| syntax(format!("`{part}` is not `{prefix}` and a number")))
        };
        let shape = match shape.split_once('_') {
            None if shape == "any" => None,
            Some((rows, cols)) => Some(Shape::new(number(rows, "m")?, number(cols, "k")?)),
            None => return Err(syntax(format!("`{shape}` is neither `any` nor `m.._k..`"))),
        };
        let fields: Vec<&str> = tile.split('_').collect();
        let &[rows, cols, tokens, unroll, prefetch] = &fields[..] else {
            return Err(syntax(format!("`{tile}` is not `r.._c.._n.._u.._p..`")));
        };
        let (prefetch, level) = prefetch.strip_suffix("l2").map_or((prefetch, 1), |rest| (rest, 2));
        let spec = KernelSpec {
            op: op.parse().map_err(syntax)?,
            isa: isa.parse().map_err(|e: crate::UnknownName| syntax(e.to_string()))?,
            shape,
            tile: TileConfig {
                rows: number(rows, "r")?,
                cols: number(cols, "c")?,
                tokens: number(tokens, "n")?,
                unroll: number(unroll, "u")?,
                prefetch: number(prefetch, "p")?,
                level,
            },
        };
        spec.validate()
    }
}

impl serde::Serialize for KernelId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for KernelId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: KernelSpec = KernelSpec {
        op: Op::Ternary(Layout::I2sT16),
        isa: Isa::Avx512Vnni,
        shape: Some(Shape::new(6912, 2560)),
        tile: TileConfig::new(16, 0, 1, 4),
    };

    #[test]
    fn id_round_trips() {
        let ops = [
            Op::Ternary(Layout::I2sT16),
            Op::Ternary(Layout::Tl1T32),
            Op::Ternary(Layout::Tl2W32),
            Op::Ternary(Layout::T5T32),
            Op::Head(HeadFormat::Q6K),
            Op::Sketch(SketchFormat::P5),
            Op::Blocks(BlockLayout::B64T32),
            Op::Attention,
            Op::Rows(GatherLayout::T5L64),
            Op::Columns(GatherLayout::I2sL64),
        ];
        let mut seen = 0;
        for op in ops {
            for &isa in Isa::ALL {
                for shape in [None, Some(Shape::new(640, 2560))] {
                    for rows in [1, 4, 16, 32, 64, 256] {
                        for cols in [0, 48, 240, 256] {
                            let lines = matches!(op, Op::Rows(_) | Op::Columns(_));
                            let tile = TileConfig::new(rows, cols, 1, if lines { 1 } else { 2 });
                            let Ok(id) = (KernelSpec { op, isa, shape, tile }).validate() else {
                                continue;
                            };
                            assert_eq!(id.to_string().parse::<KernelId>(), Ok(id));
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert!(seen > 50, "{seen}");
        let id = GOOD.validate().unwrap().to_string();
        assert_eq!(id, "i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u4_p0");
        let text = "rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p16l2";
        let id: KernelId = text.parse().unwrap();
        assert_eq!((id.tile.prefetch, id.tile.level, id.to_string()), (16, 2, text.to_string()));
        for other in ["p16l1", "p16l3", "pl2", "l2", "p16l"] {
            let text = text.replace("p16l2", other);
            assert!(text.parse::<KernelId>().is_err(), "{text}");
        }
    }

    /// P10: rows are padded to 64 and the last block of columns may be short, so a tile need not
    /// divide the matrix, but it has to divide the padding.
    #[test]
    fn p10_a_tile_need_not_divide_the_shape() {
        for (rows, cols, fits) in [(32, 240, true), (64, 240, true), (96, 240, false)] {
            for shape in [Shape::new(100, 1001), Shape::new(1, 1), Shape::new(640, 2560)] {
                let op = Op::Ternary(Layout::Tl1T32);
                let tile = TileConfig::new(rows, cols, 1, 1);
                let spec = KernelSpec { op, isa: Isa::Avx2, shape: Some(shape), tile };
                assert_eq!(spec.validate().is_ok(), fits, "{spec}");
            }
        }
    }

    #[test]
    fn bounds_hold_with_their_reason() {
        let avx2 = KernelSpec { isa: Isa::Avx2, ..GOOD };
        let tile = |rows, cols, tokens, unroll| TileConfig::new(rows, cols, tokens, unroll);
        let ternary = |layout, isa, tile| KernelSpec { op: Op::Ternary(layout), isa, tile, ..GOOD };
        let lines = |op, isa, tile| KernelSpec { op, isa, tile, shape: None };
        let (rows, columns) = (Op::Rows(GatherLayout::I2sL64), Op::Columns(GatherLayout::I2sL64));
        let cases = [
            (KernelSpec { tile: tile(16, 0, 1, 3), ..GOOD }, "unroll"),
            (KernelSpec { tile: tile(16, 0, 0, 1), ..GOOD }, "activation rows"),
            (KernelSpec { tile: tile(8, 0, 1, 1), ..GOOD }, "tile of 16 rows"),
            (KernelSpec { tile: tile(48, 0, 1, 1), ..GOOD }, "divide 64"),
            (KernelSpec { tile: tile(16, 16, 1, 1), ..GOOD }, "must be 0"),
            (KernelSpec { tile: tile(64, 0, 1, 4), ..GOOD }, "64 vectors of sums"),
            (KernelSpec { tile: tile(16, 272, 1, 1), ..avx2 }, "16 to 256"),
            (KernelSpec { tile: tile(16, 0, 1, 1), ..avx2 }, "16 to 256"),
            (KernelSpec { tile: tile(32, 256, 4, 1), ..avx2 }, "more than half"),
            (ternary(Layout::Tl1T32, Isa::Avx2, tile(32, 256, 1, 1)), "127 pairs"),
            (ternary(Layout::Tl2T32, Isa::Avx2, tile(32, 264, 1, 1)), "85 triples"),
            (ternary(Layout::Tl2T32, Isa::Avx2, tile(32, 32, 1, 1)), "multiple of 24"),
            (ternary(Layout::Tl2T32, Isa::Avx512, tile(32, 240, 1, 1)), "others read tl2_w32"),
            (ternary(Layout::Tl2W32, Isa::Avx2, tile(32, 240, 1, 1)), "reads tl2_t32"),
            (ternary(Layout::Tl2W32, Isa::Avx512, tile(32, 96, 1, 4)), "do not fit in a block"),
            (ternary(Layout::Tl1T32, Isa::Avx2, tile(64, 240, 4, 1)), "more than half"),
            (ternary(Layout::I2sT16, Isa::NeonI8mm, tile(16, 0, 3, 2)), "1 or even"),
            (ternary(Layout::I2sT16, Isa::NeonI8mm, tile(16, 0, 4, 1)), "2 or more"),
            (ternary(Layout::T5T32, Isa::Avx512Vnni, tile(32, 0, 1, 1)), "permute of 64 bytes"),
            (ternary(Layout::T5T32, Isa::Avx512Vbmi, tile(32, 0, 12, 1)), "24 vectors of sums"),
            (ternary(Layout::T5T32, Isa::Avx512Vbmi, tile(64, 0, 1, 1)), "20 vectors of sums"),
            (ternary(Layout::T5T32, Isa::Avx512Vbmi, tile(32, 240, 1, 1)), "must be 0"),
            (lines(Op::Rows(GatherLayout::T5L64), Isa::Avx2, tile(2, 0, 1, 1)), "permute of 64"),
            (lines(rows, Isa::Avx2, tile(8, 0, 1, 1)), "2 or 4 lines"),
            (lines(rows, Isa::Avx2, tile(4, 64, 1, 1)), "whole lines"),
            (lines(rows, Isa::Avx2, tile(4, 0, 2, 1)), "one token"),
            (lines(rows, Isa::AvxVnni, tile(4, 0, 1, 1)), "16 vectors of sums"),
            (lines(columns, Isa::Avx2, tile(48, 64, 1, 1)), "1, 2 or 4 times 32"),
            (lines(columns, Isa::Avx2, tile(64, 260, 1, 1)), "up to 256"),
            (lines(columns, Isa::Avx2, tile(128, 64, 1, 1)), "16 vectors of sums"),
            (KernelSpec { op: columns, tile: tile(256, 64, 1, 1), ..GOOD }, "any shape"),
            (
                KernelSpec {
                    op: rows,
                    tile: TileConfig { prefetch: 512, ..tile(4, 0, 1, 1) },
                    ..GOOD
                },
                "256 lines",
            ),
            (
                KernelSpec { op: Op::Blocks(BlockLayout::B64T32), tile: tile(16, 0, 1, 1), ..GOOD },
                "tiles of 32 rows",
            ),
            (
                KernelSpec {
                    op: Op::Blocks(BlockLayout::B64T32),
                    tile: tile(32, 0, 1, 1),
                    shape: Some(Shape::new(64, 96)),
                    ..GOOD
                },
                "multiple of 64",
            ),
            (KernelSpec { shape: Some(Shape::new(0, 1)), ..GOOD }, "rows of the matrix"),
            (KernelSpec { shape: Some(Shape::new(1, 1 << 19)), ..GOOD }, "could wrap"),
            (KernelSpec { tile: TileConfig { prefetch: 100, ..GOOD.tile }, ..GOOD }, "prefetch"),
            (
                KernelSpec { tile: TileConfig { prefetch: 64, level: 2, ..GOOD.tile }, ..GOOD },
                "L2 cache",
            ),
            (lines(rows, Isa::Avx2, TileConfig { level: 2, ..tile(4, 0, 1, 1) }), "L2 cache"),
        ];
        for (spec, reason) in cases {
            let error = spec.validate().expect_err(&spec.to_string()).to_string();
            assert!(error.contains(reason), "{error} should say {reason}");
            assert!(error.starts_with(&spec.to_string()), "{error}");
        }
    }

    #[test]
    fn names_that_are_no_ids_are_refused() {
        let long = "i".repeat(1 << 20);
        let cases = [
            "",
            "i2_s_t16",
            "i2_s_t16__avx512vnni__any__r16_c0_n1_u4",
            "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0_x1",
            "i2_s_t16__avx512vnni__any__r+16_c0_n1_u4_p0",
            "i2_s_t16__avx512vnni__any__r016_c0_n1_u4_p0",
            "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p99999999999999999999",
            "i2_s_t16__sse9__any__r16_c0_n1_u4_p0",
            "i2_s_t16__avx512vnni__m1__r16_c0_n1_u4_p0",
            "i2_s_t16;drop__avx512vnni__any__r16_c0_n1_u4_p0",
            "../i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0",
            "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0\n",
            "\u{456}2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0",
            "fn",
            long.as_str(),
        ];
        for text in cases {
            let error = text.parse::<KernelId>().expect_err(text);
            assert!(error.to_string().len() < 800, "{error}");
        }
    }
}
