//! Self-checks: kernels are compared with their definitions before they are used, both those that a
//! tuner is about to time and those made on the host that a model is about to run. A kernel that is
//! wrong is a bug to report, and never serves.

use bitnet_profiles::{HeadFormat, KernelId, Layout, Shape, SketchFormat};
use half::f16;

use super::attention::{
    AttentionInput, AttentionKernel, KEY_BLOCK, KvChunk, key_slots, row_elements,
};
use super::{BlockKernel, GatherKernel, HeadKernel, Kernel, Operand, SketchInput, SketchKernel};
use crate::cpu::blocks::BlockMatrix;
use crate::cpu::gather::{Along, GatherMatrix};
use crate::cpu::memory::Buffer;
use crate::cpu::packing::PackedMatrix;
use crate::cpu::reference;
use crate::cpu::threads::Pool;
use crate::formats::{self, Codes, i2_s};
use crate::numerics::{self, CHUNK, KvElement, Softmax};
use crate::random::Random;
use crate::{Error, Result};

/// A kernel whose result differs from the oracle's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Its id.
    pub kernel: KernelId,
    /// Description of the first error.
    pub found: String,
}

/// Codes, activations and their correct products.
#[derive(Debug)]
struct Case {
    name: &'static str,
    codes: Vec<u8>,
    quantised: Vec<i8>,
    expected: Vec<i32>,
}

/// Function that gives a code and an activation for a column.
type Pattern = fn(&mut Random, usize) -> (u8, i8);

/// Inputs that every kernel must get right: the largest possible sums, zeros, and noise.
const PATTERNS: &[(&str, Pattern)] = &[
    ("random", |random, _| (random.below(3) as u8, random.below(256) as u8 as i8)),
    ("all +1 times 127", |_, _| (2, 127)),
    ("all +1 times -128", |_, _| (2, -128)),
    ("all -1 times 127", |_, _| (0, 127)),
    ("all -1 times -128", |_, _| (0, -128)),
    ("all 0 times -128", |_, _| (1, -128)),
    ("all +1 times 0", |_, _| (2, 0)),
    ("signs aligned", |_, col| if col % 3 == 0 { (0, -128) } else { (2, 127) }),
];

/// Correct products of matrices with a number of columns, for checking ternary kernels: more rows
/// than any kernel takes in a step, and the most extreme activations and weights.
#[derive(Debug)]
pub struct Oracle {
    shape: Shape,
    tokens: usize,
    cases: Vec<Case>,
}

impl Oracle {
    /// Makes the oracle for kernels of up to `tokens` activation rows, on `cols` columns.
    pub fn new(cols: usize, tokens: usize) -> Self {
        // More than a step of any kernel, and ragged; rows times columns must fill whole blocks of
        // 128 in the file's layout.
        let rows = (Layout::ROW_PADDING + 1..).find(|rows| (rows * cols).is_multiple_of(128));
        let shape = Shape::new(rows.unwrap_or(128), cols);
        // One more than a group, so that the last group is short.
        let tokens = tokens + 1;
        let cases = PATTERNS.iter().map(|&(name, pattern)| {
            let mut random = Random::new(cols as u64);
            let mut pick = |i: usize| pattern(&mut random, i % cols);
            let codes: Vec<u8> = (0..shape.weights()).map(|i| pick(i).0).collect();
            let quantised: Vec<i8> = (0..tokens * cols).map(|i| pick(i).1).collect();
            let expected = reference::matmul(&codes, &quantised, cols);
            Case { name, codes, quantised, expected }
        });
        Self { shape, tokens, cases: cases.collect() }
    }

    /// Returns those of `kernels`, which read `layout`, that are wrong; `begin` is called with each
    /// before it runs.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory or a worker panics.
    ///
    /// # Panics
    /// When a kernel reads another layout, or is made for other columns.
    pub fn check(
        &self,
        layout: Layout,
        kernels: &[Kernel],
        pool: &Pool,
        begin: &mut dyn FnMut(&KernelId),
    ) -> Result<Vec<Wrong>> {
        let mut wrong: Vec<Wrong> = Vec::new();
        for case in &self.cases {
            let buffer = Buffer::zeroed(layout.matrix_bytes(self.shape))?;
            let file = i2_s::encode(&case.codes);
            let codes = Codes::i2_s(&file, self.shape);
            let matrix = PackedMatrix::pack(codes, 1.0, layout, buffer, pool)?
                .map_err(|_| Error::Runtime(format!("packing {layout} refused its own codes")))?;
            for kernel in kernels {
                let id = *kernel.id();
                if wrong.iter().any(|known| known.kernel == id) {
                    continue;
                }
                begin(&id);
                if let Some(found) = self.difference(case, kernel, &matrix)? {
                    wrong.push(Wrong { kernel: id, found });
                }
            }
        }
        Ok(wrong)
    }

    /// Multiplies as a thread would, group by group, and describes the first difference.
    fn difference(
        &self,
        case: &Case,
        kernel: &Kernel,
        matrix: &PackedMatrix,
    ) -> Result<Option<String>> {
        let Shape { rows, cols } = self.shape;
        let steps = kernel.steps(rows);
        let stride = steps * kernel.step_rows();
        let mut group = Buffer::zeroed(kernel.group_bytes(cols))?;
        let mut out = vec![0; kernel.tokens() * stride];
        let tokens = self.tokens.min(kernel.tokens() + 1);
        let operand = Operand::new(kernel, matrix)?;
        let groups = case.quantised[..tokens * cols].chunks(kernel.tokens() * cols);
        let expected = case.expected[..tokens * rows].chunks(kernel.tokens() * rows);
        for (index, (quantised, expected)) in groups.zip(expected).enumerate() {
            kernel.prepare(quantised, cols, &mut group);
            operand.run(kernel, 0..steps, &group, &mut out, stride);
            for (token, expected) in expected.chunks(rows).enumerate() {
                let got = &out[token * stride..][..rows];
                if let Some(row) = (0..rows).find(|&row| got[row] != expected[row]) {
                    return Ok(Some(format!(
                        "{}, {}, token {}, row {row}: {} instead of {}",
                        self.shape,
                        case.name,
                        index * kernel.tokens() + token,
                        got[row],
                        expected[row]
                    )));
                }
            }
        }
        Ok(None)
    }
}

/// Checks a kernel for matrices with block scales on rows of `cols` weights, and returns the first error,
/// if any.
///
/// # Errors
/// [`Error::Runtime`] when the system refuses the memory or a worker panics.
///
/// # Panics
/// When `cols` is not whole blocks of the kernel's layout, or the kernel is made for other columns.
pub fn blocks(kernel: &BlockKernel, cols: usize) -> Result<Option<Wrong>> {
    let width = kernel.layout().width();
    let pool = Pool::new(1)?;
    for &(name, pattern) in PATTERNS.iter().chain(WITH_TWOS) {
        // Less than a tile, and a few and a part of one.
        for rows in [1, 3 * kernel.layout().tile_rows() + 1] {
            // One more than a group, so that the last group is short.
            for tokens in [1, kernel.tokens() + 1] {
                let case = BlockCase::new(Shape::new(rows, cols), width, tokens, pattern);
                if let Some(found) = case.difference(kernel, &pool)? {
                    let found = format!("{}, {name}, {found}", case.shape);
                    return Ok(Some(Wrong { kernel: *kernel.id(), found }));
                }
            }
        }
    }
    Ok(None)
}

/// Patterns of matrices that hold weights of +2.
const WITH_TWOS: &[(&str, Pattern)] = &[
    ("random with +2", |random, _| (random.below(4) as u8, random.below(256) as u8 as i8)),
    ("all +2 times 127", |_, _| (3, 127)),
    ("all +2 times -128", |_, _| (3, -128)),
];

/// Codes and activations with scales of their blocks.
struct BlockCase {
    shape: Shape,
    width: usize,
    codes: Vec<u8>,
    /// `[rows][cols / width]`
    scales: Vec<f16>,
    quantised: Vec<i8>,
    /// `[tokens][cols / width]`
    factors: Vec<f32>,
}

impl BlockCase {
    fn new(shape: Shape, width: usize, tokens: usize, pattern: Pattern) -> Self {
        let mut random = Random::new((shape.weights() + tokens) as u64);
        let blocks = shape.cols / width;
        let codes = (0..shape.weights()).map(|i| pattern(&mut random, i % shape.cols).0).collect();
        let quantised =
            (0..tokens * shape.cols).map(|i| pattern(&mut random, i % shape.cols).1).collect();
        // 1/64 to 1, of all magnitudes between.
        let scale = |_| f16::from_f32(2f32.powf(-(random.below(600) as f32) / 100.0));
        let scales = (0..shape.rows * blocks).map(scale).collect();
        let factor = |_| (1 + random.below(1000)) as f32 / 127_000.0;
        let factors = (0..tokens * blocks).map(factor).collect();
        Self { shape, width, codes, scales, quantised, factors }
    }

    /// Multiplies group by group, the tiles in two parts, and describes the first difference.
    fn difference(&self, kernel: &BlockKernel, pool: &Pool) -> Result<Option<String>> {
        let Shape { rows, cols } = self.shape;
        let (layout, blocks) = (kernel.layout(), cols / self.width);
        let buffer = Buffer::zeroed(layout.matrix_bytes(self.shape))?;
        let matrix = BlockMatrix::pack_codes(
            (&self.codes, &self.scales),
            (layout, self.shape),
            buffer,
            pool,
        )?;
        let tiles = rows.div_ceil(layout.tile_rows());
        let stride = tiles * layout.tile_rows();
        let mut group = Buffer::zeroed(kernel.group_bytes(cols))?;
        let mut out = vec![f32::NAN; kernel.tokens() * stride];
        let groups = self.quantised.chunks(kernel.tokens() * cols);
        let factors = self.factors.chunks(kernel.tokens() * blocks);
        for (index, (quantised, factors)) in groups.zip(factors).enumerate() {
            // What was there before does not matter.
            group.fill(0xa5);
            kernel.prepare(quantised, factors, cols, &mut group);
            let tokens = quantised.len() / cols;
            for part in [0..tiles / 2, tiles / 2..tiles] {
                let at = part.start * layout.tile_rows();
                kernel.run(&matrix, part, (&group, tokens), &mut out[at..], stride);
            }
            for token in 0..tokens {
                let activations = (
                    &quantised[token * cols..(token + 1) * cols],
                    &factors[token * blocks..(token + 1) * blocks],
                );
                for row in 0..rows {
                    let scales: Vec<f32> = self.scales[row * blocks..(row + 1) * blocks]
                        .iter()
                        .map(|s| s.to_f32())
                        .collect();
                    let weights = (&self.codes[row * cols..(row + 1) * cols], &scales[..]);
                    let expected = numerics::dot_scaled_blocks(activations, weights);
                    let got = out[token * stride + row];
                    if got.to_bits() != expected.to_bits() {
                        let token = index * kernel.tokens() + token;
                        return Ok(Some(format!(
                            "token {token}, row {row}: {got} instead of {expected}"
                        )));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Checks a gather kernel on rows of `cols` weights, or on `cols` columns, and returns the first
/// error, if any.
///
/// # Errors
/// [`Error::Runtime`] when the system refuses the memory or a worker panics.
///
/// # Panics
/// When the kernel is made for other columns.
pub fn lines(kernel: &GatherKernel, cols: usize) -> Result<Option<Wrong>> {
    let oracle = Oracle::new(cols, 1);
    let (shape, layout, along) = (oracle.shape, kernel.layout(), kernel.along());
    let pool = Pool::new(1)?;
    for case in &oracle.cases {
        let buffer = Buffer::zeroed(along.matrix_bytes(layout, shape))?;
        let file = i2_s::encode(&case.codes);
        let codes = Codes::i2_s(&file, shape);
        let matrix = GatherMatrix::pack(codes, 1.0, (layout, along), buffer, &pool)?
            .map_err(|_| Error::Runtime(format!("packing {layout} refused its own codes")))?;
        // All lines, none, and some.
        for every in [1, usize::MAX, 3, 7] {
            let mut random = Random::new(every as u64);
            let mut listed = |line: &u32| match every {
                1 => true,
                usize::MAX => *line == u32::MAX,
                _ => random.below(every as u64) == 0,
            };
            let list: Vec<u32> = (0..matrix.lines() as u32).filter(&mut listed).collect();
            let found = lines_difference(kernel, &matrix, case, &list)?;
            if let Some(found) = found {
                let found = format!("{shape}, {}, {} lines, {found}", case.name, list.len());
                return Ok(Some(Wrong { kernel: *kernel.id(), found }));
            }
        }
    }
    Ok(None)
}

/// Describes the first error of a gather kernel on the first activations of a case.
fn lines_difference(
    kernel: &GatherKernel,
    matrix: &GatherMatrix,
    case: &Case,
    list: &[u32],
) -> Result<Option<String>> {
    let Shape { rows, cols } = matrix.shape();
    let quantised = &case.quantised[..cols];
    let (activations, expected) = match matrix.along() {
        Along::Rows => {
            let dots: Vec<i32> = list.iter().map(|&row| case.expected[row as usize]).collect();
            (quantised.to_vec(), dots)
        }
        Along::Columns => {
            let mut kept = vec![0; cols];
            list.iter().for_each(|&col| kept[col as usize] = quantised[col as usize]);
            let listed = list.iter().map(|&col| quantised[col as usize]).collect();
            (listed, reference::matmul(&case.codes, &kept, cols))
        }
    };
    let mut group = Buffer::zeroed(kernel.group_bytes(activations.len()))?;
    kernel.prepare(&activations, &mut group);
    let mut got = vec![i32::MIN; kernel.outputs(list.len(), matrix.units()).max(rows)];
    kernel.run(matrix, 0..matrix.units(), list, &group, &mut got);
    let wrong = (0..expected.len()).find(|&i| got[i] != expected[i]);
    Ok(wrong.map(|i| format!("output {i}: {} instead of {}", got[i], expected[i])))
}

/// Rows of a checked head: steps of 8 rows, 4 rows and single ones.
const HEAD_ROWS: usize = 21;

/// Checks a head kernel on rows of `cols` weights, and returns the first error, if any.
///
/// # Errors
/// [`Error::Runtime`] when the system refuses the memory.
///
/// # Panics
/// When `cols` is not whole blocks of the kernel's format, or the kernel is made for other columns.
pub fn head(kernel: &HeadKernel, cols: usize) -> Result<Option<Wrong>> {
    let format = kernel.format();
    let mut prepared = Buffer::zeroed(kernel.prepared_bytes(cols))?;
    // All activation rows, and one less.
    let all = kernel.tokens();
    for (&kind, tokens) in KINDS.iter().flat_map(|kind| [(kind, all), (kind, (all - 1).max(1))]) {
        let random = &mut Random::new(cols as u64);
        let x = kind.floats(tokens * cols, random);
        let rows: Vec<u8> = (0..HEAD_ROWS).flat_map(|_| head_row(format, cols, random)).collect();
        kernel.prepare((&x, tokens), 1.0, &mut prepared);
        let mut got = vec![f32::NAN; HEAD_ROWS * all];
        kernel.run(&rows, cols, &prepared, &mut got, HEAD_ROWS);
        for (token, (x, got)) in x.chunks(cols).zip(got.chunks(HEAD_ROWS)).enumerate() {
            for (row, (bytes, &got)) in rows.chunks(format.row_bytes(cols)).zip(got).enumerate() {
                let expected = (formats::head_rows(format).dot)(x, bytes);
                if bits(got) != bits(expected) {
                    let found = format!(
                        "{cols} columns, {kind:?}, token {token} of {tokens}, row {row}: {got} for \
                         {expected}"
                    );
                    return Ok(Some(Wrong { kernel: *kernel.id(), found }));
                }
            }
        }
    }
    Ok(None)
}

/// Checks a sketch kernel on rows of `cols` weights, with the largest possible sums and with noise,
/// and returns the first error, if any.
pub fn sketch(kernel: &SketchKernel, cols: usize) -> Option<Wrong> {
    const TILES: usize = 3;
    const ROWS: usize = SketchFormat::TILE_ROWS;
    let format = kernel.format();
    let (blocks, most) = (cols.div_ceil(SketchFormat::BLOCK_COLS), (1u64 << format.bits()) - 1);
    let padded = blocks * SketchFormat::BLOCK_COLS;
    let mut random = Random::new(cols as u64);
    let cases: [(&str, [u64; 2]); 3] =
        [("noise", [0, most]), ("all codes 0", [0, 0]), ("all codes the largest", [most, most])];
    for (name, [least, most]) in cases {
        let mut below = |least: u64, most: u64| least + random.below(most - least + 1);
        // Fewer tokens than the kernel takes, too.
        let tokens = if name == "noise" { kernel.tokens() } else { kernel.tokens().div_ceil(2) };
        let quantised: Vec<(Vec<i8>, Vec<f32>)> = (0..tokens)
            .map(|_| {
                let mut x = vec![0.0; padded];
                for x in &mut x[..cols] {
                    *x = if name == "noise" { below(0, 2000) as f32 - 1000.0 } else { 1.0 };
                }
                let (mut q, mut d) = (vec![0; padded], vec![0.0; blocks]);
                numerics::quantise_blocks(&x, &mut q, &mut d);
                (q, d)
            })
            .collect();
        let mut input = SketchInput::default();
        input.set(kernel, cols, quantised.iter().map(|(q, d)| (&q[..], &d[..])));
        let codes: Vec<u8> = (0..TILES * ROWS * padded).map(|_| below(least, most) as u8).collect();
        let scales: Vec<u8> = (0..TILES * ROWS * blocks).map(|_| below(0, 255) as u8).collect();
        let row_scales: Vec<f32> = (0..TILES * ROWS).map(|_| below(1, 999) as f32 * 1e-5).collect();
        let mut data = Vec::new();
        for tile in 0..TILES {
            for block in 0..blocks {
                let code = |row: usize, col: usize| {
                    codes[(tile * ROWS + row) * padded + block * SketchFormat::BLOCK_COLS + col]
                };
                // The layout that `SketchFormat` defines: byte 4r + b.
                for (group, byte) in (0..4).flat_map(|g| (0..4 * ROWS).map(move |byte| (g, byte))) {
                    let (row, col) = (byte / 4, 8 * group + byte % 4);
                    data.push(code(row, col) & 15 | code(row, col + 4) << 4);
                }
                for byte in (0..4 * ROWS).filter(|_| format.bits() == 5) {
                    let bit = |s: usize| code(byte / 4, 4 * s + byte % 4) >> 4 << s;
                    data.push((0..8).map(bit).sum());
                }
                data.extend((0..ROWS).map(|row| scales[(tile * ROWS + row) * blocks + block]));
            }
        }
        for tiles in [0..1, 1..TILES] {
            let first = tiles.start * ROWS;
            let mut got = vec![f32::NAN; kernel.tokens() * tiles.len() * ROWS];
            kernel.run(&data, &row_scales, tiles.clone(), &input, &mut got);
            for ((token, (q, d)), got) in
                quantised.iter().enumerate().zip(got.chunks(tiles.len() * ROWS))
            {
                let mut factors = vec![0.0; blocks];
                let scale = numerics::relative_scales(d, &mut factors);
                for (row, got) in (first..).zip(got) {
                    let codes = &codes[row * padded..(row + 1) * padded];
                    let scales = &scales[row * blocks..(row + 1) * blocks];
                    let (x, bits) = ((&q[..], &factors[..], scale), format.bits());
                    let expected =
                        numerics::dot_sketch_row(x, bits, codes, scales, row_scales[row]);
                    if got.to_bits() != expected.to_bits() {
                        let found = format!(
                            "{cols} columns, {name}, token {token}, row {row}: {got} for {expected}"
                        );
                        return Some(Wrong { kernel: *kernel.id(), found });
                    }
                }
            }
        }
    }
    None
}

/// Kinds of random floats.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// -1 to 1.
    Plain,
    /// All magnitudes whose sums stay finite.
    Wide,
    /// Zeros of both signs, subnormals, halves.
    Special,
}

const KINDS: &[Kind] = &[Kind::Plain, Kind::Wide, Kind::Special];

impl Kind {
    fn floats(self, n: usize, random: &mut Random) -> Vec<f32> {
        const SPECIAL: &[f32] = &[0.0, -0.0, 1e-40, -1e-45, 1.0, -1.0, 0.5, 127.5, 65504.0];
        let unit = |random: &mut Random| random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let float = |random: &mut Random| match self {
            Self::Plain => unit(random),
            Self::Wide => unit(random) * 2f32.powi(random.below(120) as i32 - 90),
            Self::Special => SPECIAL[random.below(SPECIAL.len() as u64) as usize],
        };
        (0..n).map(|_| float(random)).collect()
    }
}

/// Returns the bits, the same for every NaN.
fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// Returns a row of `cols` random weights in a format's blocks, with finite scales.
pub(crate) fn head_row(format: HeadFormat, cols: usize, random: &mut Random) -> Vec<u8> {
    let half = |random: &mut Random| {
        f16::from_f32((random.below(2000) as f32 / 1000.0 - 1.0) * 0.01).to_le_bytes()
    };
    let mut row = Vec::with_capacity(format.row_bytes(cols));
    let bytes = |n: usize, row: &mut Vec<u8>, random: &mut Random| {
        row.extend((0..n).map(|_| random.below(256) as u8));
    };
    for _ in 0..cols / format.block_weights() {
        match format {
            HeadFormat::F32 => row.extend(f16::from_le_bytes(half(random)).to_f32().to_le_bytes()),
            HeadFormat::F16 => row.extend(half(random)),
            HeadFormat::Bf16 => row.extend([random.below(256) as u8, 0x3c]),
            HeadFormat::Q8_0 | HeadFormat::Q4_0 | HeadFormat::Q5_0 => {
                row.extend(half(random));
                bytes(format.block_bytes() - 2, &mut row, random);
            }
            HeadFormat::T2 => {
                row.extend(half(random));
                row.extend(half(random));
                bytes(format.block_bytes() - 4, &mut row, random);
            }
            HeadFormat::Q4_1 | HeadFormat::Q5_1 | HeadFormat::Q4K | HeadFormat::Q5K => {
                row.extend(half(random));
                row.extend(half(random));
                bytes(format.block_bytes() - 4, &mut row, random);
            }
            HeadFormat::Q6K | HeadFormat::Q3K | HeadFormat::Tq2_0 => {
                bytes(format.block_bytes() - 2, &mut row, random);
                row.extend(half(random));
            }
            HeadFormat::I2S => bytes(format.block_bytes(), &mut row, random),
        }
    }
    row
}

/// Checks an attention kernel on heads of `head_dim` elements, and returns the first error, if any.
///
/// # Errors
/// [`Error::Runtime`] when the system refuses the memory.
///
/// # Panics
/// When the kernel is made for other heads, or `head_dim` is 0.
pub fn attention(kernel: &AttentionKernel, head_dim: usize) -> Result<Option<Wrong>> {
    // Several tokens of several heads, so that every number of rows at once occurs, including
    // tokens that see all, little and nothing of the last chunk.
    let cases: &[(usize, &[usize])] =
        &[(1, &[1]), (7, &[100]), (3, &[257, 511, 256]), (4, &[17, 16, 15, 300, 2])];
    for &(heads, seen) in cases {
        for kind in [Kind::Plain, Kind::Special] {
            let random = &mut Random::new((head_dim * 8 + heads) as u64);
            let case = AttentionCase::new(heads, head_dim, seen, kind, random);
            let differences = [
                case.difference::<f16>(kernel)?,
                case.difference::<f32>(kernel)?,
                case.difference::<i8>(kernel)?,
            ];
            if let Some(found) = differences.into_iter().flatten().next() {
                let found =
                    format!("{heads} heads of {head_dim}, {kind:?}, positions {seen:?}, {found}");
                return Ok(Some(Wrong { kernel: *kernel.id(), found }));
            }
        }
    }
    Ok(None)
}

/// Tokens that attend to a history.
struct AttentionCase<'a> {
    heads: usize,
    head_dim: usize,
    /// Number of positions that each token sees.
    seen: &'a [usize],
    /// `[token][head][head_dim]`
    queries: Vec<f32>,
    /// `[position][head_dim]`, both.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Elements `[position][head_dim]`, and a scale for each position.
type Scaled<'a, T> = (&'a [T], &'a [f32]);

/// Type of cache element, with the conversion to a kernel's chunk.
trait Element: KvElement {
    fn chunk<'a>(keys: Scaled<'a, Self>, values: Scaled<'a, Self>) -> KvChunk<'a>;
}

impl Element for f16 {
    fn chunk<'a>((keys, _): Scaled<'a, Self>, (values, _): Scaled<'a, Self>) -> KvChunk<'a> {
        KvChunk::F16 { keys, values }
    }
}

impl Element for f32 {
    fn chunk<'a>((keys, _): Scaled<'a, Self>, (values, _): Scaled<'a, Self>) -> KvChunk<'a> {
        KvChunk::F32 { keys, values }
    }
}

impl Element for i8 {
    fn chunk<'a>(keys: Scaled<'a, Self>, values: Scaled<'a, Self>) -> KvChunk<'a> {
        let ((keys, key_scales), (values, value_scales)) = (keys, values);
        KvChunk::Q8 { keys, key_scales, values, value_scales }
    }
}

impl<'a> AttentionCase<'a> {
    fn new(
        heads: usize,
        head_dim: usize,
        seen: &'a [usize],
        kind: Kind,
        random: &mut Random,
    ) -> Self {
        let positions = seen.iter().copied().max().unwrap_or(0);
        let mut floats = |n| kind.floats(n * head_dim, random);
        let queries = floats(seen.len() * heads);
        Self { heads, head_dim, seen, queries, keys: floats(positions), values: floats(positions) }
    }

    /// Attends by the kernel and by the definition, chunk by chunk, and describes the first
    /// difference.
    fn difference<T: Element>(&self, kernel: &AttentionKernel) -> Result<Option<String>> {
        let &Self { heads, head_dim, seen, ref queries, .. } = self;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let convert = |x: &[f32]| {
            let mut elements = vec![T::default(); x.len()];
            let rows = x.chunks_exact(head_dim).zip(elements.chunks_exact_mut(head_dim));
            let scales: Vec<f32> = rows.map(|(x, out)| numerics::to_kv(x, out)).collect();
            (elements, scales)
        };
        let (keys, values) = (convert(&self.keys), convert(&self.values));
        let rows = seen.len() * heads;
        let mut states = vec![Softmax { max: f32::NAN, sum: f32::NAN }; rows];
        let mut out = vec![f32::NAN; rows * head_dim];
        let (mut expected_states, mut expected) = (states.clone(), out.clone());
        let mut scratch = Buffer::zeroed(kernel.scratch_bytes(head_dim))?;
        // The previous content must not matter.
        scratch.fill(0xff);
        let (mut scores, mut part) = ([0.0; CHUNK], vec![0.0; head_dim]);
        for first in (0..keys.1.len()).step_by(CHUNK) {
            let counts: Vec<usize> =
                seen.iter().map(|seen| seen.saturating_sub(first).min(CHUNK)).collect();
            let most = counts.iter().copied().max().unwrap_or(0);
            let packed_keys = pack_keys(of_chunk(&keys, first, most, head_dim).0, head_dim);
            let packed_values = pack_values(of_chunk(&values, first, most, head_dim).0, head_dim);
            let whole_scales = |(_, scales): &(Vec<T>, Vec<f32>)| {
                let mut whole = scales[first..][..most].to_vec();
                whole.resize(most.next_multiple_of(KEY_BLOCK), f32::NAN);
                whole
            };
            let scales = (whole_scales(&keys), whole_scales(&values));
            let input = AttentionInput {
                queries,
                stride: heads * head_dim,
                heads,
                head_dim,
                counts: &counts,
                chunk: T::chunk((&packed_keys, &scales.0), (&packed_values, &scales.1)),
                scale,
            };
            kernel.run(&input, first > 0, &mut states, &mut out, &mut scratch);
            for row in 0..rows {
                let count = counts[row / heads];
                if first > 0 && count == 0 {
                    continue;
                }
                let query = &queries[row * head_dim..][..head_dim];
                let of_chunk = |x| of_chunk(x, first, count, head_dim);
                let (k, v) = (of_chunk(&keys), of_chunk(&values));
                let chunk = numerics::attention_chunk(query, k, v, scale, &mut scores, &mut part);
                let (state, out) =
                    (&mut expected_states[row], &mut expected[row * head_dim..][..head_dim]);
                if first == 0 {
                    *state = chunk;
                    out.copy_from_slice(&part);
                } else {
                    numerics::attention_merge(state, out, chunk, &part);
                }
            }
        }
        for row in 0..rows {
            let (got, expected_state) = (states[row], expected_states[row]);
            // The sign of a largest score of zero is not defined.
            let max = |state: Softmax| if state.max == 0.0 { 0 } else { bits(state.max) };
            let same = max(got) == max(expected_state) && bits(got.sum) == bits(expected_state.sum);
            if !same {
                return Ok(Some(format!("row {row}: {got:?} for {expected_state:?}")));
            }
        }
        let wrong = (0..out.len()).find(|&i| bits(out[i]) != bits(expected[i]));
        Ok(wrong.map(|i| {
            let (row, element) = (i / head_dim, i % head_dim);
            format!("row {row}, element {element}: {} for {}", out[i], expected[i])
        }))
    }
}

/// Returns `count` positions from `first` on.
fn of_chunk<T>(
    (elements, scales): &(Vec<T>, Vec<f32>),
    first: usize,
    count: usize,
    head_dim: usize,
) -> Scaled<'_, T> {
    (&elements[first * head_dim..][..count * head_dim], &scales[first..][..count])
}

/// Packs keys `[position][head_dim]` into whole blocks, as kernels read them.
fn pack_keys<T: Element>(keys: &[T], head_dim: usize) -> Vec<T> {
    let row = row_elements(head_dim);
    let positions = (keys.len() / head_dim).next_multiple_of(KEY_BLOCK);
    let mut blocks = vec![T::default(); positions * row];
    for (p, key) in keys.chunks_exact(head_dim).enumerate() {
        let block = p / KEY_BLOCK * KEY_BLOCK * row + p % KEY_BLOCK;
        for (&element, slot) in key.iter().zip(key_slots(head_dim)) {
            blocks[block + slot] = element;
        }
    }
    blocks
}

/// Pads values `[position][head_dim]`, as kernels read them.
fn pack_values<T: Element>(values: &[T], head_dim: usize) -> Vec<T> {
    let padding = vec![T::default(); row_elements(head_dim) - head_dim];
    values.chunks_exact(head_dim).flat_map(|value| value.iter().chain(&padding)).copied().collect()
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Isa;

    use super::*;
    use crate::cpu::kernels;
    use bitnet_kernels as builtin;

    #[test]
    fn right_kernels_pass_and_a_wrong_product_is_seen() {
        let pool = Pool::new(1).unwrap();
        for cols in [384, 250, 1] {
            let kernel = *kernels::builtin().iter().find(|k| k.id().isa == Isa::Scalar).unwrap();
            let mut oracle = Oracle::new(cols, kernel.tokens());
            assert_eq!(oracle.check(kernel.layout(), &[kernel], &pool, &mut |_| ()).unwrap(), []);
            // The oracle errs instead of the kernel: the difference must be found all the same, in
            // every case and at the last product.
            for case in 0..oracle.cases.len() {
                let at = oracle.shape.rows * (kernel.tokens() + 1) - 1;
                oracle.cases[case].expected[at] += 1;
                let wrong = oracle.check(kernel.layout(), &[kernel], &pool, &mut |_| ()).unwrap();
                assert_eq!(wrong.len(), 1, "{cols}");
                assert!(wrong[0].found.contains(oracle.cases[case].name), "{}", wrong[0].found);
                oracle.cases[case].expected[at] -= 1;
            }
        }
    }

    #[test]
    fn built_in_attention_passes_on_heads_of_any_size() {
        for kernel in AttentionKernel::builtin() {
            for head_dim in [1, 33, 64, 128] {
                assert_eq!(attention(&kernel, head_dim).unwrap(), None);
            }
        }
    }

    /// Kernels with an error in the last bit of the last number they write are found.
    #[test]
    fn wrong_heads_and_attention_are_seen() {
        use builtin::abi::{AttentionCall, AttentionEntry, HeadCall, HeadEntry};
        use builtin::{
            attention_f16__scalar__any__r1_c256_n1_u1_p0 as attention_kernel,
            head_f32__scalar__any__r1_c0_n1_u1_p0 as head_kernel,
        };

        /// # Safety
        /// `last` is readable and writable.
        unsafe fn spoil(last: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { last.write(f32::from_bits(last.read().to_bits() ^ 1)) }
        }
        unsafe extern "C" fn wrong_head(call: &HeadCall) {
            // SAFETY: passed on; the kernel wrote `count` logits.
            unsafe {
                head_kernel::run(call);
                spoil(call.out.add(call.count - 1));
            }
        }
        unsafe extern "C" fn wrong_attention(call: &AttentionCall) {
            // SAFETY: passed on; the kernel wrote so many elements.
            unsafe {
                attention_kernel::run(call);
                spoil(call.out.add(call.tokens * call.heads * call.head_dim - 1));
            }
        }
        let entry = builtin::HEADS[0];
        assert_eq!(entry.id.text(), Some("head_f32__scalar__any__r1_c0_n1_u1_p0"));
        let entry = Box::leak(Box::new(HeadEntry { run: wrong_head, ..entry }));
        let found = head(&HeadKernel::new(entry).unwrap(), 100).unwrap().unwrap().found;
        assert!(found.contains("row 20"), "{found}");
        let entry = builtin::ATTENTION[0];
        assert_eq!(entry.id.text(), Some("attention_f16__scalar__any__r1_c256_n1_u1_p0"));
        let entry = Box::leak(Box::new(AttentionEntry { run: wrong_attention, ..entry }));
        let found = attention(&AttentionKernel::new(entry).unwrap(), 48).unwrap().unwrap().found;
        assert!(found.contains("element 47"), "{found}");
    }
}
