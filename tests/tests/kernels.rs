//! Every kernel of the set, on ragged shapes and adversarial inputs, equals the reference.

use bitnet_profiles::{Isa, Layout, Op, Shape};
use bitnet_runtime::cpu::kernels::{self, Kernel, Operand};
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::reference;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, i2_s};
use bitnet_tests::{Pattern, Random};

/// Rows by columns: as many as the models have, and what divides nothing. I2_S in the file needs
/// the product to be a multiple of 128, and nothing else.
const SHAPES: &[Shape] = &[
    Shape::new(128, 1),
    Shape::new(1, 128),
    Shape::new(1, 2560),
    Shape::new(128, 3),
    Shape::new(128, 5),
    Shape::new(128, 23),
    Shape::new(128, 25),
    Shape::new(128, 47),
    Shape::new(16, 24),
    Shape::new(64, 46),
    Shape::new(128, 49),
    Shape::new(3, 384),
    Shape::new(17, 640),
    Shape::new(64, 250),
    Shape::new(65, 256),
    Shape::new(128, 257),
    Shape::new(2, 8640),
    Shape::new(100, 1056),
    Shape::new(5, 6912),
];

fn pack(codes: &[u8], shape: Shape, layout: Layout, pool: &Pool) -> PackedMatrix {
    let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
    let file = i2_s::encode(codes);
    PackedMatrix::pack(Codes::i2_s(&file, shape), 1.0, layout, buffer, pool).unwrap().unwrap()
}

/// Runs a kernel over all activation rows, in groups, and gives `[tokens][rows]`.
fn multiply(kernel: &Kernel, matrix: &PackedMatrix, quantised: &[i8]) -> Vec<i32> {
    let Shape { rows, cols } = matrix.shape();
    let steps = kernel.steps(rows);
    let stride = steps * kernel.step_rows();
    let mut group = Buffer::zeroed(kernel.group_bytes(cols)).unwrap();
    let mut out = vec![i32::MIN; kernel.tokens() * stride];
    let operand = Operand::new(kernel, matrix).unwrap();
    let mut result = Vec::new();
    for activations in quantised.chunks(kernel.tokens() * cols) {
        group.fill(0xa5);
        kernel.prepare(activations, cols, &mut group);
        // In two parts, as two threads would.
        let whole = if kernel.expands() { kernel.step_tiles() } else { 1 };
        let middle = (steps / 2).next_multiple_of(whole).min(steps);
        for part in [0..middle, middle..steps] {
            let first = part.start * kernel.step_rows();
            operand.run(kernel, part, &group, &mut out[first..], stride);
        }
        for token in 0..activations.len() / cols {
            result.extend_from_slice(&out[token * stride..][..rows]);
        }
    }
    result
}

#[test]
fn every_kernel_equals_the_reference() {
    let pool = Pool::new(2).unwrap();
    let kernels = kernels::builtin();
    for &isa in Isa::ALL.iter().filter(|isa| !isa.is_supported()) {
        eprintln!("skipped: {isa}, which this CPU lacks");
    }
    let mut layouts: Vec<Layout> = kernels.iter().map(Kernel::layout).collect();
    layouts.sort();
    layouts.dedup();
    let most = kernels.iter().map(Kernel::tokens).max().unwrap();
    for &shape in SHAPES {
        for &pattern in Pattern::ALL {
            let (codes, activations) = pattern.fill(shape.rows, shape.cols, most + 1);
            let expected = reference::matmul(&codes, &activations, shape.cols);
            for &layout in &layouts {
                let matrix = pack(&codes, shape, layout, &pool);
                for kernel in kernels.iter().filter(|k| k.layout() == layout) {
                    // One row more than a group, so that the last group is short.
                    let tokens = kernel.tokens() + 1;
                    let got = multiply(kernel, &matrix, &activations[..tokens * shape.cols]);
                    let expected = &expected[..tokens * shape.rows];
                    let wrong = got.iter().zip(expected).position(|(a, b)| a != b);
                    if let Some(at) = wrong {
                        panic!(
                            "{} on {shape}, {pattern:?}: token {}, row {}: {} instead of {}",
                            kernel.id(),
                            at / shape.rows,
                            at % shape.rows,
                            got[at],
                            expected[at]
                        );
                    }
                }
            }
        }
    }
    println!("{} kernels on {} shapes", kernels.len(), SHAPES.len());
}

/// The reference by another way, on numbers small enough to check by hand.
#[test]
fn the_reference_is_right() {
    let codes = [0, 1, 2, 2, 2, 2];
    let activations = [10, -20, 30, 127, 127, 127];
    assert_eq!(reference::matmul(&codes, &activations, 3), [20, 20, 0, 381]);
}

/// A kernel that ignored its weights, or a test that compared nothing, would not see one code.
#[test]
fn one_flipped_code_changes_the_result() {
    let pool = Pool::new(1).unwrap();
    let shape = Shape::new(64, 96);
    let mut random = Random::new(7);
    for &layout in Layout::ALL {
        let Some(kernel) = kernels::builtin().iter().find(|k| k.layout() == layout) else {
            let isas: Vec<_> = Isa::ALL.iter().filter(|isa| isa.is_supported()).collect();
            eprintln!("skipped: {layout}, which no kernel for {isas:?} reads");
            continue;
        };
        let (codes, mut activations) = Pattern::Random.fill(shape.rows, shape.cols, 1);
        activations.iter_mut().filter(|q| **q == 0).for_each(|q| *q = 1);
        let expected = reference::matmul(&codes, &activations, shape.cols);
        for _ in 0..50 {
            let at = random.below((shape.rows * shape.cols) as u64) as usize;
            let mut changed = codes.clone();
            changed[at] = (codes[at] + 1) % 3;
            // The bytes that differ between the two packings are that one code's.
            let mut matrix = pack(&codes, shape, layout, &pool);
            let other = pack(&changed, shape, layout, &pool);
            let flips: Vec<usize> =
                (0..matrix.data().len()).filter(|&i| matrix.data()[i] != other.data()[i]).collect();
            assert!((1..=5).contains(&flips.len()), "{layout}: {} bytes", flips.len());
            for i in flips {
                matrix.data_mut()[i] = other.data()[i];
            }
            let got = multiply(kernel, &matrix, &activations);
            let (row, col) = (at / shape.cols, at % shape.cols);
            for (r, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let step = i32::from(changed[at]) - i32::from(codes[at]);
                let delta = if r == row { step * i32::from(activations[col]) } else { 0 };
                assert_eq!(*got, expected + delta, "{layout}: row {r}, code {row},{col} changed");
            }
        }
    }
}

#[test]
fn code_3_is_refused() {
    let pool = Pool::new(2).unwrap();
    let shape = Shape::new(64, 96);
    let mut file = i2_s::encode(&vec![1; shape.weights()]);
    for &layout in Layout::ALL {
        for (byte, bits) in [(0, 0xc0), (31, 0x30), (777, 0x0c), (1535, 0x03)] {
            let before = file[byte];
            file[byte] |= bits;
            let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
            let packed =
                PackedMatrix::pack(Codes::i2_s(&file, shape), 1.0, layout, buffer, &pool).unwrap();
            assert!(packed.is_err(), "{layout}: byte {byte}");
            file[byte] = before;
        }
    }
}

#[test]
fn every_supported_op_has_kernels() {
    for &layout in Layout::ALL {
        let ids: Vec<_> = bitnet_codegen::grid(Isa::ALL);
        let phases = |tokens: fn(usize) -> bool| {
            ids.iter().any(|id| id.op == Op::Ternary(layout) && tokens(id.tile.tokens))
        };
        assert!(phases(|n| n == 1) && phases(|n| n > 1), "{layout}");
    }
}
