//! Several tokens through a job. A group of fewer tokens than its kernel takes has another one: each token
//! comes out as it does alone. Where a kernel has the packing expanded: the same as from the packing, by any
//! number of threads, in one chunk of the expanded form or several.

use std::env;
use std::ops::Range;
use std::process::ExitCode;
use std::slice;

use bitnet_kernel_tests::Pattern;
use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};
use bitnet_runtime::cpu::blocks::{BlockJob, BlockMatrix};
use bitnet_runtime::cpu::kernels::{self, BlockKernel, Kernel};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, Scales, i2_s};
use bitnet_runtime::measure::rehearse::{self, Jobs, Rounds};
use bitnet_trials::{Need, Suite, Tested};

const COLS: usize = 2560;

/// Two matrices, the first with rows that fill no tile.
fn job(rows: [usize; 2], prefill: Kernel) -> Job {
    let pool = Pool::new(2).unwrap();
    let layout = prefill.layout();
    let part = |rows: usize| {
        let shape = Shape::new(rows, COLS);
        let (codes, _) = Pattern::Random.fill(rows, COLS, 1);
        let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
        let scale = 0.5 + 1.0 / rows as f32;
        let file = i2_s::encode(&codes);
        PackedMatrix::pack(Codes::i2_s(&file, shape), scale, layout, buffer, &pool)
            .unwrap()
            .unwrap()
    };
    let is_decode = |kernel: &&Kernel| kernel.layout() == layout && kernel.tokens() == 1;
    let decode = *kernels::builtin().iter().find(is_decode).unwrap();
    Job::new(rows.map(part).into(), decode, prefill).unwrap()
}

/// A job of either kind.
enum Multiplied {
    Ternary(Box<Job>),
    Blocks(Box<BlockJob>),
}

impl Multiplied {
    fn rows(&self) -> usize {
        match self {
            Self::Ternary(job) => job.rows(),
            Self::Blocks(job) => job.rows(),
        }
    }

    /// Scales of a token.
    fn scales(&self) -> usize {
        match self {
            Self::Ternary(_) => 1,
            Self::Blocks(job) => COLS / job.width(),
        }
    }

    /// The bits of the products of some tokens.
    fn multiply(&self, threads: usize, q: &[i8], scales: &[f32]) -> Vec<u32> {
        let pool = Pool::new(threads).unwrap();
        let tokens = scales.len() / self.scales();
        let (jobs, bytes) = match self {
            Self::Ternary(job) => {
                (Jobs::Ternary(slice::from_ref(&**job)), job.workspace_bytes(tokens, threads))
            }
            Self::Blocks(job) => {
                (Jobs::Blocks(slice::from_ref(&**job)), job.workspace_bytes(tokens))
            }
        };
        let mut workspace = Buffer::zeroed(bytes).unwrap();
        // What was there before must not matter.
        workspace.fill(0xa5);
        let mut out = vec![f32::NAN; tokens * self.rows()];
        rehearse::prefill(&pool, jobs, (q, scales), &mut workspace, Rounds::ONE, &mut out).unwrap();
        out.iter().map(|value| value.to_bits()).collect()
    }
}

/// Expanded weights give the bits of packed ones.
fn is_the_same(id: &KernelId) -> Tested {
    Need::isa(id.isa)?;
    let kernel = *kernels::find(id).expect("every build holds the grid");
    let direct = Kernel::direct(Layout::T5T32, id.isa).unwrap();
    // Few rows: a band for all threads. Many: a band for each, in more chunks than one.
    let vector = id.isa.lanes() > 4;
    let cases: &[[usize; 2]] =
        if vector { &[[200, 64], [3000, 641], [9000, 128]] } else { &[[200, 64]] };
    for &rows in cases {
        for tokens in [97, 130] {
            let (_, q) = Pattern::Random.fill(1, COLS, tokens);
            let scales: Vec<f32> = (0..tokens).map(|token| 1.0 + token as f32).collect();
            let expected =
                Multiplied::Ternary(Box::new(job(rows, direct))).multiply(2, &q, &scales);
            let job = Multiplied::Ternary(Box::new(job(rows, kernel)));
            for threads in 1..=4 {
                let got = job.multiply(threads, &q, &scales);
                let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{rows:?}, {tokens} tokens, {threads} threads");
            }
        }
    }
    Ok(())
}

/// A job of one matrix with block scales.
fn block_job(rows: usize, prefill: BlockKernel) -> BlockJob {
    let pool = Pool::new(2).unwrap();
    let (layout, shape) = (prefill.layout(), Shape::new(rows, COLS));
    let (codes, _) = Pattern::Random.fill(rows, COLS, 1);
    let file = i2_s::encode(&codes);
    let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
    let (codes, scales) = (Codes::i2_s(&file, shape), Scales::Tensor(0.75));
    let matrix = BlockMatrix::pack(codes, &scales, 1.0, layout, buffer, &pool).unwrap().unwrap();
    let is_decode = |kernel: &BlockKernel| kernel.layout() == layout && kernel.tokens() == 1;
    let decode = BlockKernel::builtin().find(is_decode).unwrap();
    BlockJob::new(vec![matrix], vec![None], decode, prefill).unwrap()
}

/// Any number of tokens, up to two groups and one, comes out as each does alone.
fn is_as_alone(id: &KernelId) -> Tested {
    Need::isa(id.isa)?;
    let own = id.tile.tokens;
    let most = 2 * own + 1;
    let (_, q) = Pattern::Random.fill(1, COLS, most);
    let built = "every build holds the grid";
    let job = match id.op {
        Op::Blocks(_) => {
            Multiplied::Blocks(Box::new(block_job(100, BlockKernel::find(id).expect(built))))
        }
        _ => Multiplied::Ternary(Box::new(job([100, 40], *kernels::find(id).expect(built)))),
    };
    let each = job.scales();
    let scales: Vec<f32> = (0..most * each).map(|i| 0.5 + (i % 37) as f32).collect();
    let multiply = |tokens: Range<usize>| {
        let q = &q[tokens.start * COLS..tokens.end * COLS];
        job.multiply(2, q, &scales[tokens.start * each..tokens.end * each])
    };
    let alone: Vec<Vec<u32>> = (0..most).map(|token| multiply(token..token + 1)).collect();
    for tokens in (2..=own + 1).chain([2 * own - 1, 2 * own, most]) {
        let together = multiply(0..tokens);
        for (token, (found, expected)) in together.chunks(job.rows()).zip(&alone).enumerate() {
            assert_eq!(found, expected, "token {token} of {tokens}");
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let ids = bitnet_codegen::grid(Isa::of_arch(env::consts::ARCH));
    let mut suite = Suite::default();
    for id in ids {
        if id.expands() {
            suite.add(format!("expanded::{id}"), move || is_the_same(&id));
        } else if matches!(id.op, Op::Ternary(_) | Op::Blocks(_)) && id.tile.tokens > 1 {
            suite.add(format!("as_alone::{id}"), move || is_as_alone(&id));
        }
    }
    suite.run()
}
