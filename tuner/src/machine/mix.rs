//! What a kernel executes: operations by kind, in its hot loop and around it.
//!
//! The counts follow from a template's structure and its constants; a memory operand of an
//! instruction counts as the load it is. `tests/tests/machine_code.rs` holds them against the
//! machine code of every built-in kernel. What the compiler adds of its own accord, spills and the
//! shuffles of the block heads, stands in tables below, read off that code.

use self::Class::{
    Add, Broadcast, Control, Convert, Dot, Extend, Float, Fma, Load, Logic, Matrix, Multiply,
    Permute, Prefetch, Shift, Shuffle, Store,
};
use bitnet_profiles::{Format, HeadFormat, Isa, KernelId, Layout, Op, SketchFormat};

/// Kinds of operation that CPUs treat alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Loads a vector, or a table that is repeated in one.
    Load,
    /// Loads a few bytes and repeats them.
    Broadcast,
    /// Stores a vector.
    Store,
    /// Asks for a cache line.
    Prefetch,
    /// And, or, xor, select.
    Logic,
    /// Shifts lanes.
    Shift,
    /// Adds, subtracts or negates integer lanes.
    Add,
    /// Multiplies bytes or words and sums neighbours.
    Dot,
    /// Multiplies two rows of bytes by two others and sums (`smmla`).
    Matrix,
    /// Multiplies 32-bit lanes; on ARM also what multiplies bytes and adds the products to words.
    Multiply,
    /// Moves bytes within 128 bits, table lookups of 16 bytes among them.
    Shuffle,
    /// Moves lanes across a vector, lookups of 32 words among them.
    Permute,
    /// Widens integer lanes.
    Extend,
    /// Converts to or from floats.
    Convert,
    /// Adds or multiplies floats.
    Float,
    /// Multiplies and adds floats.
    Fma,
    /// Counts, steps pointers, branches.
    Control,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 17] = [
        Self::Load,
        Self::Broadcast,
        Self::Store,
        Self::Prefetch,
        Self::Logic,
        Self::Shift,
        Self::Add,
        Self::Dot,
        Self::Matrix,
        Self::Multiply,
        Self::Shuffle,
        Self::Permute,
        Self::Extend,
        Self::Convert,
        Self::Float,
        Self::Fma,
        Self::Control,
    ];
}

/// Operations by class; what is not listed is none.
type Counts = &'static [(Class, f64)];

/// How many operations of each class.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mix([f64; Class::ALL.len()]);

impl Mix {
    /// From a list; what is not named is zero.
    pub fn of(counts: &[(Class, f64)]) -> Self {
        let mut mix = Self::default();
        for &(class, count) in counts {
            mix.0[class as usize] += count;
        }
        mix
    }

    /// Of a class.
    pub fn count(&self, class: Class) -> f64 {
        self.0[class as usize]
    }

    /// All together.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// So many times as many.
    pub fn times(mut self, factor: f64) -> Self {
        self.0.iter_mut().for_each(|count| *count *= factor);
        self
    }

    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
        self
    }
}

/// What a kernel executes for one step of its rows and one group of its activation rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// An iteration of the hot loop.
    pub hot: Mix,
    /// Columns that an iteration covers.
    pub cols: usize,
    /// What the longest chain of an iteration waits for, and how often.
    pub chain: (Class, f64),
    /// After so many columns ...
    pub block_cols: usize,
    /// ... this is done.
    pub block: Mix,
    /// At the end of the step.
    pub end: Mix,
    /// Loads of an iteration that are operands of another instruction, which issues as one.
    pub folded: f64,
    /// Bytes of prepared activations that a column takes: read once a step.
    pub activation_bytes: f64,
}

/// Accesses to the stack in an iteration, half of them stores: `(format, isa, rows, tokens,
/// accesses for each unit)`. Codes of later fields, tables and signs that no register is left for.
#[rustfmt::skip]
const SPILLS: &[(Format, Isa, usize, usize, f64)] = &[
    (Format::Tl1, Isa::Avx2,   64, 2, 4.0),
    (Format::Tl2, Isa::Avx2,   32, 2, 2.0),
    (Format::Tl2, Isa::Avx2,   32, 3, 32.0),
    (Format::Tl2, Isa::Avx2,   32, 4, 56.0),
    (Format::Tl2, Isa::Avx2,   64, 1, 26.0),
    (Format::Tl2, Isa::Avx2,   64, 2, 96.0),
    (Format::I2S, Isa::NeonI8mm, 16, 6, 7.5),
];

/// What the kernel `id` executes.
pub fn work(id: &KernelId) -> Work {
    match id.op {
        Op::Ternary(layout) => ternary(id, layout),
        Op::Head(format) => head(id, format),
        Op::Sketch(format) => sketch(id, format),
        Op::Attention => attention(id, id.tile.rows),
        Op::Rows(_) | Op::Columns(_) => unreachable!("no plan holds kernels with a list of lines"),
    }
}

/// What making the table of three activations takes: an expanding kernel's.
pub(super) fn table() -> Mix {
    Mix::of(&[
        (Broadcast, 1.0),
        (Dot, 2.0),
        (Shift, 1.0),
        (Logic, 1.0),
        (Store, 1.0),
        (Control, 1.0),
    ])
}

/// What bringing 60 columns of 32 rows into the form of an expanding kernel takes.
pub(super) fn expansion() -> Mix {
    Mix::of(&[
        (Load, 6.0),
        (Permute, 28.0),
        (Logic, 26.0),
        (Shift, 22.0),
        (Store, 10.0),
        (Control, 6.0),
    ])
}

/// Whether a tier is of 64-bit ARM.
fn is_arm(isa: Isa) -> bool {
    matches!(isa, Isa::Neon | Isa::NeonDot | Isa::NeonI8mm)
}

fn ternary(id: &KernelId, layout: Layout) -> Work {
    let (isa, tile) = (id.isa, id.tile);
    let (rows, tokens) = (tile.rows as f64, tile.tokens as f64);
    // Vectors of 32-bit sums for one activation row, and tiles of 32 rows.
    let (vectors, tiles) = (rows / isa.lanes() as f64, rows / 32.0);
    let format = layout.format();
    let wide = isa.dots_are_wide();
    let in_place = wide && tile.tokens == 1;
    let arm = is_arm(isa);
    let matrices = isa.multiplies_matrices() && tile.tokens > 1;
    // Of one unit of columns.
    let (mut unit, chain, lines, activation_bytes) = match layout {
        Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 if matrices => {
            // Every vector of weights loads the activations anew.
            let unit = Mix::of(&[
                (Load, vectors + vectors * tokens),
                (Shuffle, vectors),
                (Logic, 3.0 * vectors),
                (Shift, 3.0 * vectors),
                (Matrix, 2.0 * vectors * tokens),
            ]);
            (unit, (Matrix, 2.0), vectors, tokens)
        }
        Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 => {
            let products = 4.0 * vectors * tokens;
            // On NEON the topmost field needs a shift and no mask.
            let (shifts, masks) = match (in_place, arm) {
                (true, false) => (0.0, 4.0),
                (true, true) => (1.0, 3.0),
                (false, false) => (3.0, 4.0),
                (false, true) => (3.0, 3.0),
            };
            // What a product takes where it does not land in 32 bits, and what the next one waits for.
            let (more, waits) = match (wide, arm) {
                (true, _) => (Mix::of(&[(Dot, products)]), Dot),
                (false, false) => (Mix::of(&[(Dot, products), (Add, products)]), Add),
                (false, true) => (Mix::of(&[(Multiply, 2.0 * products)]), Add),
            };
            let unit = Mix::of(&[
                (Load, vectors),
                (Logic, masks * vectors),
                (Shift, shifts * vectors),
                (Broadcast, 4.0 * tokens),
            ]);
            // In place every field has a chain of its own, and so has every unrolled unit.
            let links = if in_place { 1.0 / tile.unroll as f64 } else { 4.0 };
            (unit.and(more), (waits, links), vectors, tokens)
        }
        Layout::T5T32 if id.expands() => {
            // Of two triples; a vector holds twice as many words as lanes.
            let tiles = vectors / 2.0;
            let unit = Mix::of(&[
                (Load, 2.0 * tiles + 2.0 * tokens),
                (Permute, 2.0 * tiles * tokens),
                (Add, 2.0 * tiles * tokens),
            ]);
            // The tables of a block stay in the L1 cache.
            (unit, (Add, 2.0), 0.0, 0.0)
        }
        Layout::T5T32 => {
            let [shifts, subtractions] = if in_place { [0.0; 2] } else { [4.0, 1.0] };
            let unit = Mix::of(&[
                (Load, vectors),
                (Permute, 3.0 * vectors),
                (Logic, 6.0 * vectors),
                (Shift, shifts * vectors),
                (Add, subtractions * vectors),
                (Dot, 5.0 * vectors * tokens),
                (Broadcast, 5.0 * tokens),
            ]);
            (unit, (Dot, if in_place { 1.0 } else { 5.0 }), vectors, tokens)
        }
        Layout::Tl1T32 if arm => {
            let unit = Mix::of(&[
                (Load, 2.0 * tiles + 4.0 * tokens),
                (Shift, 2.0 * tiles),
                (Logic, 2.0 * tiles),
                (Shuffle, 16.0 * tiles * tokens),
                (Add, 8.0 * tiles * tokens),
            ]);
            (unit, (Add, 2.0), tiles, 16.0 * tokens)
        }
        Layout::Tl2W32 if arm => {
            let unit = Mix::of(&[
                (Load, 20.0 * tiles + 64.0 * tokens),
                (Shift, 80.0 * tiles),
                (Logic, 32.0 * tiles),
                (Shuffle, 32.0 * tiles + 64.0 * tiles * tokens),
                (Permute, 64.0 * tiles * tokens),
                (Add, 64.0 * tiles * tokens),
            ]);
            (unit, (Add, 16.0), 5.0 * tiles, 64.0 / 3.0 * tokens)
        }
        Layout::Tl1T32 if isa == Isa::Avx2 => {
            let unit = Mix::of(&[
                (Load, tiles + 4.0 * tokens),
                (Shift, tiles),
                (Logic, 2.0 * tiles),
                (Shuffle, 8.0 * tiles * tokens),
                (Add, 4.0 * tiles * tokens),
            ]);
            (unit, (Add, 2.0), tiles, 16.0 * tokens)
        }
        Layout::Tl1T32 => {
            let unit = Mix::of(&[
                (Load, tiles + 2.0 * tokens),
                (Extend, tiles),
                (Shift, tiles),
                (Permute, 2.0 * tiles * tokens),
                (Add, 2.0 * tiles * tokens),
            ]);
            (unit, (Add, 2.0), tiles, 16.0 * tokens)
        }
        Layout::Tl2T32 => {
            let unit = Mix::of(&[
                (Load, 5.0 * tiles + 16.0 * tokens),
                (Shift, 16.0 * tiles),
                (Logic, 8.0 * tiles),
                (Shuffle, 2.0 * tiles + 32.0 * tiles * tokens),
                (Add, 32.0 * tiles * tokens),
            ]);
            (unit, (Add, 8.0), 3.0 * tiles, 32.0 / 3.0 * tokens)
        }
        Layout::Tl2W32 => {
            let selects = if isa == Isa::Avx512Vbmi { 0.0 } else { 4.0 * tiles };
            let unit = Mix::of(&[
                (Load, 5.0 * tiles + 16.0 * tokens),
                (Shift, 15.0 * tiles),
                (Logic, selects),
                (Permute, 16.0 * tiles * tokens),
                (Add, 16.0 * tiles * tokens),
            ]);
            (unit, (Add, 16.0), 5.0 * tiles, 64.0 / 3.0 * tokens)
        }
    };
    let spilled =
        SPILLS.iter().find(|s| (s.0, s.1, s.2, s.3) == (format, isa, tile.rows, tile.tokens));
    let half = spilled.map_or(0.0, |s| s.4 / 2.0);
    unit = unit.and(Mix::of(&[(Load, half), (Store, half)]));
    if tile.prefetch > 0 {
        unit = unit.and(Mix::of(&[(Prefetch, lines)]));
    }
    let unroll = tile.unroll as f64;
    let control =
        Mix::of(&[(Control, if layout == Layout::I2sT32 && !wide { 3.0 * unroll } else { 3.0 })]);
    let sums = vectors * tokens;
    let block = match format {
        Format::T5 if id.expands() => Mix::of(&[(Dot, sums), (Load, sums), (Store, sums)]),
        Format::I2S | Format::T5 if wide => Mix::default(),
        Format::I2S if arm => Mix::of(&[(Shuffle, 3.0 * sums), (Add, sums)]),
        Format::I2S => Mix::of(&[(Dot, sums), (Add, sums), (Load, sums), (Store, sums)]),
        _ => Mix::of(&[
            (Extend, sums),
            (Permute, sums / 2.0),
            (Add, sums),
            (Load, sums),
            (Store, sums),
        ]),
    };
    // One vector of rows has the broadcast or the table as an operand; only AVX-512 repeats in one.
    let folded = match layout {
        Layout::I2sT16 | Layout::I2sT32 if vectors == 1.0 && wide && isa.lanes() == 16 => {
            4.0 * tokens
        }
        Layout::Tl2W32 if tiles == 1.0 => 16.0 * tokens,
        _ => 0.0,
    };
    let fields = if format == Format::T5 { 5.0 } else { 4.0 * unroll };
    let combined = if in_place { fields * vectors } else { 0.0 };
    Work {
        hot: unit.times(unroll).and(control),
        cols: if id.expands() { 6 } else { tile.unroll * layout.unit_cols() },
        chain: (chain.0, chain.1 * unroll),
        block_cols: if tile.cols == 0 { usize::MAX } else { tile.cols },
        block: block.and(Mix::of(&[(Control, 4.0)])),
        end: Mix::of(&[
            (Shift, 0.75 * combined),
            (Shuffle, if matrices { sums } else { 0.0 }),
            (Add, combined + sums),
            (Broadcast, tokens),
            (Store, sums),
            (Control, 10.0),
        ]),
        folded: unroll * folded,
        activation_bytes,
    }
}

/// Rows of weights times one activation row: an iteration covers 16 columns of floats, or 512 of
/// blocks, which fill the 16 virtual lanes.
fn head(id: &KernelId, format: HeadFormat) -> Work {
    let rows = id.tile.rows as f64;
    // Registers that hold 16 floats.
    let parts = 16.0 / id.isa.lanes() as f64;
    let (cols, mix, links) = match format {
        HeadFormat::F32 | HeadFormat::F16 | HeadFormat::Bf16 => {
            let own = match format {
                HeadFormat::F16 => Mix::of(&[(Convert, parts)]),
                HeadFormat::Bf16 => Mix::of(&[(Extend, parts), (Shift, parts)]),
                _ => Mix::default(),
            };
            let row = own.and(Mix::of(&[(Load, parts), (Fma, parts)]));
            // Eight rows leave too few registers on AVX2.
            let spilled = if rows * parts > 8.0 { 4.0 } else { 0.0 };
            let shared = [(Load, parts + spilled), (Store, spilled), (Control, 4.0)];
            (16, row.times(rows).and(Mix::of(&shared)), 1.0)
        }
        HeadFormat::Q8_0 | HeadFormat::Q6K | HeadFormat::Q4_0 => {
            // On ARM vectors are half as long as with AVX2, and nobody has counted.
            let (isa, times) = match id.isa {
                Isa::Neon => (Isa::Avx2, 2.0),
                Isa::NeonDot | Isa::NeonI8mm => (Isa::AvxVnni, 2.0),
                isa => (isa, 1.0),
            };
            let found = BLOCK_HEADS.iter().find(|own| own.0 == format && own.1 == isa);
            let (_, _, counts) = found.unwrap_or(&BLOCK_HEADS[0]);
            (512, Mix::of(counts).times(times), 1.0)
        }
    };
    let lines = (rows * format.row_bytes(512) as f64 * cols as f64 / 512.0 / 64.0).ceil();
    let prefetch = if id.tile.prefetch > 0 { lines } else { 0.0 };
    Work {
        hot: mix.and(Mix::of(&[(Prefetch, prefetch)])),
        cols,
        chain: (Fma, links),
        block_cols: usize::MAX,
        block: Mix::default(),
        end: Mix::of(&[(Float, 5.0 * rows), (Control, 10.0)]),
        folded: 0.0,
        activation_bytes: if cols == 16 { 4.0 } else { 1.5 },
    }
}

/// 16 rows of a sketch times one activation row; an iteration covers 32 columns.
fn sketch(id: &KernelId, format: SketchFormat) -> Work {
    let vectors = 16.0 / id.isa.lanes() as f64;
    let products = 8.0 * vectors;
    let bit = if format.bits() == 5 { 1.0 } else { 0.0 };
    // Each quad, an offset and a scale.
    let broadcasts = 8.0 + 2.0;
    let halves = 2.0 * vectors;
    let hot = Mix::of(&[
        (Load, 4.0 * vectors + bit * vectors + 1.0),
        (Broadcast, broadcasts),
        (Logic, products + bit * products),
        (Shift, products / 2.0 + bit * products),
        (Add, vectors + halves),
        (Extend, vectors),
        (Convert, 2.0 * vectors),
        (Float, vectors),
        (Fma, vectors),
        (Control, 4.0),
    ]);
    let (widened, more) = match (id.isa.dots_are_wide(), is_arm(id.isa)) {
        // Sums that begin with zero.
        (true, _) => (Mix::of(&[(Dot, products)]), Mix::of(&[(Logic, halves)])),
        (false, false) => {
            (Mix::of(&[(Dot, products), (Add, products - halves)]), Mix::of(&[(Dot, halves)]))
        }
        (false, true) => {
            (Mix::of(&[(Multiply, 2.0 * products)]), Mix::of(&[(Shuffle, 3.0 * halves)]))
        }
    };
    let lines = if id.tile.prefetch > 0 { format.block_bytes().div_ceil(64) } else { 0 };
    // What goes to the stack, and is masked before it does, where there are 16 registers.
    let spilled = match (id.isa, format) {
        (Isa::Avx2, SketchFormat::P5) => Mix::of(&[(Load, 14.0), (Store, 7.0), (Logic, 17.0)]),
        (Isa::AvxVnni, SketchFormat::P5) => Mix::of(&[(Load, 8.0), (Store, 7.0), (Logic, 17.0)]),
        _ => Mix::default(),
    };
    Work {
        hot: hot.and(widened).and(more).and(spilled).and(Mix::of(&[(Prefetch, lines as f64)])),
        cols: SketchFormat::BLOCK_COLS,
        chain: (Fma, 1.0),
        block_cols: usize::MAX,
        block: Mix::default(),
        end: Mix::of(&[(Float, 2.0 * vectors), (Store, vectors), (Control, 10.0)]),
        folded: if vectors == 1.0 && id.isa.dots_are_wide() { broadcasts } else { 0.0 },
        activation_bytes: 1.0,
    }
}

/// What a block head executes for 512 weights, as the compiler made it of the template.
#[rustfmt::skip]
const BLOCK_HEADS: &[(HeadFormat, Isa, Counts)] = &[
    (HeadFormat::Q8_0, Isa::Avx2, &[(Load, 50.0), (Shift, 96.0), (Add, 30.0), (Dot, 32.0), (Shuffle, 38.0), (Permute, 20.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 10.0)]),
    (HeadFormat::Q8_0, Isa::Avx512, &[(Load, 39.0), (Shift, 48.0), (Add, 15.0), (Dot, 16.0), (Shuffle, 12.0), (Permute, 27.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 12.0)]),
    (HeadFormat::Q8_0, Isa::Avx512Vnni, &[(Load, 39.0), (Logic, 24.0), (Add, 15.0), (Dot, 16.0), (Shuffle, 12.0), (Permute, 27.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 12.0)]),
    (HeadFormat::Q6K, Isa::Avx2, &[(Load, 50.0), (Broadcast, 4.0), (Store, 3.0), (Logic, 48.0), (Shift, 24.0), (Add, 18.0), (Dot, 32.0), (Multiply, 4.0), (Shuffle, 28.0), (Permute, 9.0), (Extend, 4.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 18.0)]),
    (HeadFormat::Q6K, Isa::Avx512, &[(Load, 21.0), (Broadcast, 2.0), (Logic, 16.0), (Shift, 14.0), (Add, 9.0), (Dot, 16.0), (Multiply, 2.0), (Shuffle, 16.0), (Permute, 3.0), (Extend, 2.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 14.0)]),
    (HeadFormat::Q6K, Isa::Avx512Vnni, &[(Load, 21.0), (Broadcast, 2.0), (Logic, 24.0), (Shift, 14.0), (Add, 9.0), (Dot, 8.0), (Multiply, 2.0), (Shuffle, 16.0), (Permute, 3.0), (Extend, 2.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 14.0)]),
    (HeadFormat::Q4_0, Isa::Avx2, &[(Load, 60.0), (Broadcast, 2.0), (Store, 6.0), (Logic, 16.0), (Shift, 20.0), (Add, 18.0), (Dot, 32.0), (Shuffle, 38.0), (Permute, 36.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 18.0)]),
    (HeadFormat::Q4_0, Isa::Avx512, &[(Load, 41.0), (Logic, 8.0), (Shift, 10.0), (Add, 9.0), (Dot, 16.0), (Shuffle, 12.0), (Permute, 27.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 16.0)]),
    (HeadFormat::Q4_0, Isa::Avx512Vnni, &[(Load, 41.0), (Logic, 16.0), (Shift, 10.0), (Add, 9.0), (Dot, 8.0), (Shuffle, 12.0), (Permute, 27.0), (Convert, 2.0), (Float, 1.0), (Fma, 1.0), (Control, 16.0)]),
    (HeadFormat::Q8_0, Isa::AvxVnni, &[(Load, 50.0), (Logic, 48.0), (Add, 30.0), (Dot, 32.0), (Shuffle, 38.0), (Permute, 20.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 10.0)]),
    (HeadFormat::Q6K, Isa::AvxVnni, &[(Load, 50.0), (Broadcast, 5.0), (Store, 3.0), (Logic, 64.0), (Shift, 24.0), (Add, 18.0), (Dot, 16.0), (Multiply, 4.0), (Shuffle, 28.0), (Permute, 9.0), (Extend, 4.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 18.0)]),
    (HeadFormat::Q4_0, Isa::AvxVnni, &[(Load, 54.0), (Logic, 32.0), (Shift, 20.0), (Add, 18.0), (Dot, 16.0), (Shuffle, 38.0), (Permute, 36.0), (Convert, 4.0), (Float, 2.0), (Fma, 2.0), (Control, 18.0)]),
];

/// One vector of keys and one of values, of 16 floats each, for a step's rows; `cols` counts such
/// pairs.
pub(super) fn attention(id: &KernelId, rows: usize) -> Work {
    let rows = rows as f64;
    let parts = 16.0 / id.isa.lanes() as f64;
    // Vectors of values side by side that share the broadcast of a weight.
    let side = (id.isa.registers() as f64 / parts / 2.0 / rows).clamp(1.0, 8.0);
    Work {
        hot: Mix::of(&[
            (Load, 2.0 * parts),
            (Convert, 2.0 * parts),
            (Broadcast, rows * (1.0 + 1.0 / side)),
            (Fma, 2.0 * parts * rows),
            (Control, 1.0),
        ]),
        cols: 1,
        // As many sums as fit: no chain waits for itself.
        chain: (Fma, 0.0),
        block_cols: usize::MAX,
        block: Mix::default(),
        // The exponentials of a chunk of 256 scores.
        end: Mix::of(&[(Float, 16.0 * parts * 12.0 * rows), (Fma, 16.0 * parts * 8.0 * rows)]),
        folded: 0.0,
        activation_bytes: 0.0,
    }
}
