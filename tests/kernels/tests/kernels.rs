//! Every ternary kernel of the set, on ragged shapes and adversarial inputs, equals the reference: two
//! tests for each kernel.

use std::collections::HashMap;
use std::env;
use std::process::ExitCode;
use std::sync::{LazyLock, OnceLock};

use bitnet_kernel_tests::{Pattern, Random};
use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};
use bitnet_runtime::cpu::kernels::{self, Kernel, Operand};
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::reference;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, i2_s};
use bitnet_trials::{Need, Tested, suite};

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

/// A product of a matrix and the activations of the most tokens that a test has, by the reference.
struct Case {
    shape: Shape,
    pattern: Pattern,
    codes: Vec<u8>,
    activations: Vec<i8>,
    expected: Vec<i32>,
}

/// All shapes with all patterns.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    // One row more than the largest group.
    let tokens = kernels::builtin().iter().map(Kernel::tokens).max().unwrap() + 1;
    let case = |shape: Shape, pattern: Pattern| {
        let (codes, activations) = pattern.fill(shape.rows, shape.cols, tokens);
        let expected = reference::matmul(&codes, &activations, shape.cols);
        Case { shape, pattern, codes, activations, expected }
    };
    let of_shape = |&shape| Pattern::ALL.iter().map(move |&pattern| case(shape, pattern));
    SHAPES.iter().flat_map(of_shape).collect()
});

/// The matrices of [`CASES`], packed for a layout when they are first asked for.
fn packed(layout: Layout) -> &'static [PackedMatrix] {
    static PACKED: LazyLock<HashMap<Layout, OnceLock<Vec<PackedMatrix>>>> =
        LazyLock::new(|| Layout::ALL.iter().map(|&layout| (layout, OnceLock::new())).collect());
    PACKED[&layout].get_or_init(|| {
        let pool = Pool::new(2).unwrap();
        CASES.iter().map(|case| pack(&case.codes, case.shape, layout, &pool)).collect()
    })
}

/// The kernel of a name, where this CPU runs it.
fn kernel(id: &KernelId) -> Tested<&'static Kernel> {
    Need::isa(id.isa)?;
    Ok(kernels::find(id).expect("every build holds the grid"))
}

fn equals_the_reference(id: &KernelId) -> Tested {
    let kernel = kernel(id)?;
    for (case, matrix) in CASES.iter().zip(packed(kernel.layout())) {
        let Case { shape, pattern, .. } = case;
        // One row more than a group, so that the last group is short.
        let tokens = kernel.tokens() + 1;
        let got = multiply(kernel, matrix, &case.activations[..tokens * shape.cols]);
        let expected = &case.expected[..tokens * shape.rows];
        assert_eq!(got.len(), expected.len());
        if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
            let (token, row) = (at / shape.rows, at % shape.rows);
            let (got, expected) = (got[at], expected[at]);
            panic!("{shape}, {pattern:?}: token {token}, row {row}: {got} instead of {expected}");
        }
    }
    Ok(())
}

/// The reference by another way, on numbers small enough to check by hand.
fn the_reference_is_right() {
    let codes = [0, 1, 2, 2, 2, 2];
    let activations = [10, -20, 30, 127, 127, 127];
    assert_eq!(reference::matmul(&codes, &activations, 3), [20, 20, 0, 381]);
}

/// A kernel that ignored its weights, or a test that compared nothing, would not see one code.
fn sees_one_flipped_code(id: &KernelId) -> Tested {
    let (kernel, layout) = (kernel(id)?, kernel(id)?.layout());
    let pool = Pool::new(1).unwrap();
    let shape = Shape::new(64, 96);
    let (codes, mut activations) = Pattern::Random.fill(shape.rows, shape.cols, 1);
    activations.iter_mut().filter(|q| **q == 0).for_each(|q| *q = 1);
    let expected = reference::matmul(&codes, &activations, shape.cols);
    let packed = pack(&codes, shape, layout, &pool).data().to_vec();
    let mut random = Random::new(7);
    for _ in 0..10 {
        let at = random.below((shape.rows * shape.cols) as u64) as usize;
        let mut changed = codes.clone();
        changed[at] = (codes[at] + 1) % 3;
        // The bytes that differ between the two packings are that one code's.
        let other = pack(&changed, shape, layout, &pool);
        let flips: Vec<usize> =
            (0..packed.len()).filter(|&i| packed[i] != other.data()[i]).collect();
        assert!((1..=5).contains(&flips.len()), "{} bytes", flips.len());
        let mut buffer = Buffer::zeroed(packed.len()).unwrap();
        buffer.copy_from_slice(&packed);
        for i in flips {
            buffer[i] = other.data()[i];
        }
        let matrix = PackedMatrix::new(layout, shape, 1.0, false, buffer).unwrap();
        let got = multiply(kernel, &matrix, &activations);
        let (row, col) = (at / shape.cols, at % shape.cols);
        for (r, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let step = i32::from(changed[at]) - i32::from(codes[at]);
            let delta = if r == row { step * i32::from(activations[col]) } else { 0 };
            assert_eq!(*got, expected + delta, "row {r}, code {row},{col} changed");
        }
    }
    Ok(())
}

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

fn every_supported_op_has_kernels() {
    for &layout in Layout::ALL {
        let ids: Vec<_> = bitnet_codegen::grid(Isa::ALL);
        let phases = |tokens: fn(usize) -> bool| {
            ids.iter().any(|id| id.op == Op::Ternary(layout) && tokens(id.tile.tokens))
        };
        assert!(phases(|n| n == 1) && phases(|n| n > 1), "{layout}");
    }
}

fn main() -> ExitCode {
    let mut suite =
        suite![the_reference_is_right, code_3_is_refused, every_supported_op_has_kernels];
    let ids = bitnet_codegen::grid(Isa::of_arch(env::consts::ARCH));
    for id in ids.into_iter().filter(|id| matches!(id.op, Op::Ternary(_))) {
        suite.add(format!("exact::{id}"), move || equals_the_reference(&id));
        suite.add(format!("flipped_code::{id}"), move || sees_one_flipped_code(&id));
    }
    suite.run()
}
