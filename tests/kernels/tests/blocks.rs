//! Every kernel for matrices with block scales equals the scalar definition, to the bit.

use std::env;
use std::process::ExitCode;

use bitnet_kernel_tests::Random;
use bitnet_profiles::{BlockLayout, Isa, KernelId, Op, Shape};
use bitnet_runtime::cpu::blocks::BlockMatrix;
use bitnet_runtime::cpu::kernels::BlockKernel;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, TensorType};
use bitnet_runtime::numerics;
use bitnet_trials::{Need, Tested, suite};
use half::f16;

/// A matrix in the blocks of PQ2_0, 128 weights each, or, for blocks of 256, of TQ2_0, which has no +2.
struct Case {
    shape: Shape,
    codes: Vec<u8>,
    /// `[rows][cols / width]`, `width` that of the layout.
    scales: Vec<f32>,
    matrix: BlockMatrix,
    q: Vec<i8>,
    /// `[tokens][cols / width]`
    factors: Vec<f32>,
}

/// One more than the most activation rows of a kernel, so that the last group is short.
const TOKENS: usize = 9;

impl Case {
    /// Makes codes, activations and scales by `pick`, which gives the first two of a place.
    fn new(
        layout: BlockLayout,
        shape: Shape,
        random: &mut Random,
        pick: fn(&mut Random) -> (u8, i8),
    ) -> Self {
        let (ty, own) = match layout.width() {
            256 => (TensorType::TQ2_0, 256),
            128 => (TensorType::PQ2_0, 128),
            _ => (TensorType::Q2_0, 64),
        };
        // Code 3 is a weight in PQ2_0 alone.
        let codes: Vec<u8> = (0..shape.weights())
            .map(|_| {
                let code = pick(random).0;
                if own == 128 { code } else { code.min(2) }
            })
            .collect();
        let mut file = Vec::new();
        let mut scales = Vec::new();
        for codes in codes.chunks(own) {
            // 1/64 to 1, of all magnitudes between.
            let scale = f16::from_f32(2f32.powf(-(random.below(600) as f32) / 100.0));
            let start = file.len();
            (ty.format().ternary().unwrap().encode().unwrap())(codes, 1.0, &mut file);
            let at = if own == 256 { file.len() - 2 } else { start };
            file[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            scales.push(scale.to_f32());
        }
        let view = Codes::new(ty, &file, shape).unwrap();
        let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
        let pool = Pool::new(2).unwrap();
        let matrix = BlockMatrix::pack(view, &view.scales(), 1.0, layout, buffer, &pool);
        let matrix = matrix.unwrap().unwrap();
        let q = (0..TOKENS * shape.cols).map(|_| pick(random).1).collect();
        let factor = |_| (1 + random.below(1000)) as f32 / 127_000.0;
        let factors = (0..TOKENS * shape.cols / layout.width()).map(factor).collect();
        Self { shape, codes, scales, matrix, q, factors }
    }

    /// Multiplies the first tokens by the definition, `[tokens][rows]`.
    fn expected(&self, tokens: usize) -> Vec<u32> {
        let Shape { rows, cols } = self.shape;
        let blocks = self.scales.len() / rows;
        let mut out = Vec::new();
        for token in 0..tokens {
            let activations = (
                &self.q[token * cols..(token + 1) * cols],
                &self.factors[token * blocks..(token + 1) * blocks],
            );
            for row in 0..rows {
                let weights = (
                    &self.codes[row * cols..(row + 1) * cols],
                    &self.scales[row * blocks..(row + 1) * blocks],
                );
                out.push(numerics::dot_scaled_blocks(activations, weights).to_bits());
            }
        }
        out
    }

    /// Multiplies as two threads would, group by group.
    fn multiply(&self, kernel: &BlockKernel, tokens: usize) -> Vec<u32> {
        let Shape { rows, cols } = self.shape;
        let height = kernel.layout().tile_rows();
        let (tiles, blocks) = (rows.div_ceil(height), self.scales.len() / rows);
        let mut group = Buffer::zeroed(kernel.group_bytes(cols)).unwrap();
        let stride = tiles * height;
        let mut out = vec![f32::NAN; kernel.tokens() * stride];
        let mut result = Vec::new();
        for first in (0..tokens).step_by(kernel.tokens()) {
            let count = kernel.tokens().min(tokens - first);
            group.fill(0xa5);
            let q = &self.q[first * cols..(first + count) * cols];
            let scales = &self.factors[first * blocks..(first + count) * blocks];
            kernel.prepare(q, scales, cols, &mut group);
            for part in [0..tiles / 2, tiles / 2..tiles] {
                let at = part.start * height;
                kernel.run(&self.matrix, part, &group, &mut out[at..], stride);
            }
            for token in 0..count {
                let products = &out[token * stride..][..rows];
                result.extend(products.iter().map(|product| product.to_bits()));
            }
        }
        result
    }
}

/// The code and the activation of a place.
type Pick = fn(&mut Random) -> (u8, i8);

/// Noise, and the largest sums there are.
const PATTERNS: &[Pick] = &[
    |random| (random.below(4) as u8, random.below(256) as u8 as i8),
    |_| (3, 127),
    |_| (3, -128),
    |_| (0, -128),
    |_| (1, 127),
];

fn equals_the_definition(id: &KernelId, layout: BlockLayout) -> Tested {
    Need::isa(id.isa)?;
    let kernel = BlockKernel::builtin().find(|kernel| kernel.id() == id);
    let kernel = kernel.expect("every build holds the grid");
    let width = layout.width();
    for (rows, blocks) in [(1, 1), (16, 2), (33, 1), (100, 3), (65, 9)] {
        let shape = Shape::new(rows, blocks * width);
        for (number, pick) in PATTERNS.iter().enumerate() {
            let mut random = Random::new((rows * 10 + number) as u64);
            let case = Case::new(layout, shape, &mut random, *pick);
            let tokens = kernel.tokens() + 1;
            let (got, expected) = (case.multiply(&kernel, tokens), case.expected(tokens));
            assert_eq!(got.len(), expected.len());
            if let Some(at) = (0..got.len()).find(|&at| got[at] != expected[at]) {
                let [got, expected] = [got[at], expected[at]].map(f32::from_bits);
                let (token, row) = (at / rows, at % rows);
                panic!("{shape}, {number}: token {token}, row {row}: {got} instead of {expected}");
            }
        }
    }
    Ok(())
}

/// Every layout has kernels for one token and for many, and of each tier that has any those of all widths.
fn every_width_has_kernels() {
    let ids = bitnet_codegen::grid(Isa::ALL);
    for &isa in Isa::ALL {
        let of = |width: usize, one: bool| {
            let own = |id: &&KernelId| match id.op {
                Op::Blocks(layout) => {
                    id.isa == isa && layout.width() == width && (id.tile.tokens == 1) == one
                }
                _ => false,
            };
            ids.iter().filter(own).count()
        };
        let counts = [64, 128, 256].map(|width| (of(width, true), of(width, false)));
        assert!(counts.iter().all(|count| *count == counts[0]), "{isa}: {counts:?}");
        assert_eq!(counts[0].0 > 0, counts[0].1 > 0, "{isa}: {counts:?}");
    }
}

fn main() -> ExitCode {
    let mut suite = suite![every_width_has_kernels];
    for id in bitnet_codegen::grid(Isa::of_arch(env::consts::ARCH)) {
        if let Op::Blocks(layout) = id.op {
            suite.add(format!("exact::{id}"), move || equals_the_definition(&id, layout));
        }
    }
    suite.run()
}
