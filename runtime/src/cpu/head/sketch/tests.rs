//! Heads of noise and of edge cases, and that bounds hold for them.

use bitnet_profiles::Isa;
use half::f16;

use super::*;
use crate::cpu::kernels::HeadKernel;
use crate::cpu::kernels::verify::head_row;
use crate::random::Random;

/// A head and test inputs for it.
pub struct Case {
    pub name: &'static str,
    pub gguf: Gguf,
    pub table: Table,
    pub cols: usize,
    pub inputs: Vec<Vec<f32>>,
}

/// Returns an approximately normal number.
fn normal(random: &mut Random) -> f32 {
    let unit = |random: &mut Random| random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
    (0..6).map(|_| unit(random)).sum()
}

pub fn input(cols: usize, random: &mut Random) -> Vec<f32> {
    (0..cols).map(|_| normal(random)).collect()
}

/// Builds activations of every kind, including some for which no bound can hold.
fn inputs(cols: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut inputs: Vec<Vec<f32>> = (0..6).map(|_| input(cols, random)).collect();
    inputs.push(vec![0.0; cols]);
    for factor in [1e-38, 1e-20, 1e20, 1e37] {
        inputs.push(input(cols, random).iter().map(|x| x * factor).collect());
    }
    for (at, value) in [(0, 300.0), (cols / 2, -1e6), (cols - 1, f32::NAN), (0, f32::INFINITY)] {
        let mut outlier = input(cols, random);
        outlier[at] = value;
        inputs.push(outlier);
    }
    inputs
}

fn encode(format: HeadFormat, weights: &[f32]) -> Vec<u8> {
    let bytes = |w: &f32| match format {
        HeadFormat::F16 => f16::from_f32(*w).to_le_bytes().to_vec(),
        HeadFormat::Bf16 => half::bf16::from_f32(*w).to_le_bytes().to_vec(),
        _ => w.to_le_bytes().to_vec(),
    };
    weights.iter().flat_map(bytes).collect()
}

type Rows = fn(usize, usize, &mut Random) -> Vec<f32>;

/// Heads of floats: each function builds a row from its number and its columns.
const FLOATS: &[(&str, Rows)] = &[
    ("noise", |_, cols, random| input(cols, random)),
    ("all rows equal", |_, cols, _| (0..cols).map(|i| (i % 13) as f32 - 6.0).collect()),
    ("pairs of equal rows", |row, cols, _| input(cols, &mut Random::new(row as u64 / 2))),
    ("all zero", |_, cols, _| vec![0.0; cols]),
    ("rows of all sizes", |row, cols, random| {
        let factor = 2f32.powi(row as i32 % 280 - 140);
        input(cols, random).iter().map(|w| w * factor).collect()
    }),
    ("one large column", |_, cols, random| {
        let mut row = input(cols, random);
        row[cols / 3] *= 1000.0;
        row
    }),
    ("no numbers among them", |row, cols, random| {
        let mut weights = input(cols, random);
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40, 3e38];
        weights[row % cols] = values[row % values.len()];
        weights
    }),
    ("one part in a million apart", |row, cols, _| {
        (0..cols).map(|i| 1.0 + (row * usize::from(i == 7)) as f32 * 1e-6).collect()
    }),
];

/// Builds every kind of head, with `rows` rows.
pub fn cases(rows: usize) -> Vec<Case> {
    let random = &mut Random::new(rows as u64);
    let mut cases = Vec::new();
    for format in [HeadFormat::F32, HeadFormat::F16, HeadFormat::Bf16] {
        for (i, &(name, row)) in FLOATS.iter().enumerate() {
            let cols = [320, 100, 33][i % 3];
            let weights: Vec<f32> = (0..rows).flat_map(|r| row(r, cols, random)).collect();
            let (gguf, table) = Table::alone(format, cols, &encode(format, &weights));
            cases.push(Case { name, gguf, table, cols, inputs: inputs(cols, random) });
        }
    }
    // No file has T2.
    let blocks = |format: &&HeadFormat| format.block_weights() > 1 && **format != HeadFormat::T2;
    for &format in HeadFormat::ALL.iter().filter(blocks) {
        let cols = format.block_weights().max(64) * 2;
        let bytes: Vec<u8> = (0..rows).flat_map(|_| head_row(format, cols, random)).collect();
        let (gguf, table) = Table::alone(format, cols, &bytes);
        cases.push(Case { name: "blocks", gguf, table, cols, inputs: inputs(cols, random) });
    }
    // A thousandth of what the sums of a logit are made of is left of its weights.
    let block: Vec<u8> = [f16::ONE, f16::from_f32(-15.0078)]
        .iter()
        .flat_map(|half| half.to_le_bytes())
        .chain([0xff; 16])
        .collect();
    let (gguf, table) = Table::alone(HeadFormat::Q4_1, 640, &block.repeat(20 * rows));
    cases.push(Case { name: "small sums", gguf, table, cols: 640, inputs: inputs(640, random) });
    cases
}

/// Returns the full head's kernel and the copies of a case.
pub fn sketch(case: &Case, format: SketchFormat, pool: &Pool) -> (HeadKernel, HeadSketch) {
    let best = bitnet_profiles::Isa::best();
    let head = HeadKernel::default(case.table.format(), best).unwrap();
    let scan = (format, SketchKernel::defaults(format, best, &head));
    let refinement = GatherKernel::default(Along::Rows, None, best).unwrap();
    let Case { gguf, table, cols, .. } = case;
    (head, HeadSketch::build(gguf, table, *cols, scan, refinement, pool, Pages::Small).unwrap())
}

/// Returns the estimates of all rows for one token.
fn estimate(sketch: &HeadSketch, query: &Query) -> Vec<f32> {
    let mut input = SketchInput::default();
    sketch.set(&mut input, std::iter::once(query));
    let mut out = vec![f32::NAN; sketch.kernel(1).tokens() * sketch.tile_count() * TILE_ROWS];
    sketch.scan(1, 0..sketch.tile_count(), &input, &mut out);
    out
}

fn refinement_dot(sketch: &HeadSketch, row: usize, query: &Query) -> i32 {
    let mut dots = [0];
    sketch.refinement_dots(&[row as u32], query, &mut dots);
    dots[0]
}

/// [`HeadSketch::survives`] by the refinement row.
fn survives(sketch: &HeadSketch, row: usize, estimate: f32, query: &Query, least: f32) -> bool {
    sketch.survives(row, (estimate, refinement_dot(sketch, row, query)), query, least)
}

/// Returns all logits, by the full head's kernel.
pub fn logits(case: &Case, head: &HeadKernel, x: &[f32]) -> Vec<f32> {
    let rows = case.table.row_count();
    let mut prepared = Buffer::zeroed(head.prepared_bytes(x.len())).unwrap();
    head.prepare((x, 1), case.table.scale(), &mut prepared);
    let mut out = vec![0.0; rows];
    head.run(case.table.rows(&case.gguf, 0..rows), x.len(), &prepared, &mut out, rows);
    out
}

/// No logit is further from its estimates than their bounds say, and the bounds are useful: for
/// plain noise they are within a few hundredths of the product of the norms.
#[test]
fn bounds_hold() {
    let (pool, ops) = (Pool::new(2).unwrap(), VectorOps::best(bitnet_profiles::Isa::best()));
    let mut tight = 0;
    for case in cases(161) {
        for format in [SketchFormat::P4, SketchFormat::P5] {
            let (head, sketch) = sketch(&case, format, &pool);
            let mut query = Query::new(&sketch).unwrap();
            for (i, x) in case.inputs.iter().enumerate() {
                let what = format!("{} {} {format} {i}", case.name, case.table.format());
                let expected = logits(&case, &head, x);
                if !query.set(&sketch, &ops, x, sketch.has_residual_row(1)) {
                    assert!(x.iter().any(|x| x.is_nan() || x.abs() > 1e15), "{what}");
                    continue;
                }
                let estimates = estimate(&sketch, &query);
                for (row, &logit) in expected.iter().enumerate() {
                    let what = format!("{what}, row {row}: {logit}");
                    let (estimate, residual) = (estimates[row], sketch.copies.residuals[row]);
                    let radius = residual * query.norm + query.slack;
                    if radius == f32::INFINITY {
                        assert!(survives(&sketch, row, estimate, &query, f32::MAX), "{what}");
                        continue;
                    }
                    let error = (f64::from(logit) - f64::from(estimate)).abs();
                    assert!(error <= f64::from(radius), "{what} for {estimate} {radius}");
                    assert!(survives(&sketch, row, estimate, &query, logit), "{what}");
                    if case.name == "noise" && i == 0 {
                        let largest = sketch.copies.norm as f32 * query.norm;
                        let share = [0.12, 0.06][format as usize];
                        assert!(radius < share * largest, "{what}: {radius} of {largest}");
                        let finer = logit + 0.5 * share * largest;
                        assert!(!survives(&sketch, row, estimate, &query, finer), "{what}");
                        tight += 1;
                    }
                }
            }
        }
    }
    assert!(tight > 100, "{tight}");
}

/// Activations along a row's residual are the worst case: bounds hold there too, and are almost
/// reached.
#[test]
fn bounds_hold_where_they_are_reached() {
    let (pool, ops) = (Pool::new(1).unwrap(), VectorOps::best(Isa::best()));
    let random = &mut Random::new(9);
    let (rows, cols) = (16, 96);
    let weights: Vec<f32> = (0..rows).flat_map(|_| input(cols, random)).collect();
    let (gguf, table) = Table::alone(HeadFormat::F32, cols, &encode(HeadFormat::F32, &weights));
    let case = Case { name: "noise", gguf, table, cols, inputs: Vec::new() };
    for format in [SketchFormat::P4, SketchFormat::P5] {
        let (head, sketch) = sketch(&case, format, &pool);
        let mut query = Query::new(&sketch).unwrap();
        // One column after the other reveals the contents of the copies.
        let (mut left, mut left_by_both) = (weights.clone(), weights.clone());
        for col in 0..cols {
            let mut x = vec![0.0; cols];
            x[col] = 1.0;
            assert!(query.set(&sketch, &ops, &x, true));
            let estimates = estimate(&sketch, &query);
            for row in 0..rows {
                let refinement = refinement_dot(&sketch, row, &query) as f32
                    * (sketch.copies.refinement_scales[row] * query.step);
                left[row * cols + col] -= estimates[row];
                left_by_both[row * cols + col] -= estimates[row] + refinement;
            }
        }
        for row in 0..rows {
            for sign in [1.0, -1.0] {
                let along = |left: &[f32]| -> Vec<f32> {
                    left[row * cols..(row + 1) * cols].iter().map(|x| x * sign).collect()
                };
                let x = along(&left);
                assert!(query.set(&sketch, &ops, &x, true));
                let estimates = estimate(&sketch, &query);
                let radius = sketch.copies.residuals[row] * query.norm + query.slack;
                let error = (logits(&case, &head, &x)[row] - estimates[row]).abs();
                assert!(error <= radius && error > 0.99 * radius, "{error} {radius}");

                let x = along(&left_by_both);
                assert!(query.set(&sketch, &ops, &x, true));
                let estimates = estimate(&sketch, &query);
                let logit = logits(&case, &head, &x)[row];
                let radius =
                    sketch.copies.refinement_residuals[row] * query.norm + query.refinement_slack;
                assert!(survives(&sketch, row, estimates[row], &query, logit), "{logit}");
                if sign > 0.0 {
                    // The logit lies a radius above its estimate.
                    let more = logit + 0.3 * radius;
                    assert!(!survives(&sketch, row, estimates[row], &query, more), "{logit}");
                }
            }
        }
    }
}
