//! Several tokens through a job. A group of fewer tokens than its kernel takes has another one: each token
//! comes out as it does alone. Where a kernel has the packing expanded: the same as from the packing, by any
//! number of threads, in one chunk of the expanded form or several.

use std::env;
use std::ops::Range;
use std::process::ExitCode;

use bitnet_kernel_tests::Pattern;
use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};
use bitnet_runtime::cpu::blocks::{BlockJob, BlockMatrix};
use bitnet_runtime::cpu::kernels::{self, BlockKernel, Kernel};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, Scales, i2_s};
use bitnet_runtime::measure::rehearse::{self, Rounds};
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

fn multiply(job: &Job, threads: usize, q: &[i8], scales: &[f32]) -> Vec<u32> {
    let pool = Pool::new(threads).unwrap();
    let mut workspace = Buffer::zeroed(job.workspace_bytes(scales.len(), threads)).unwrap();
    // What was there before must not matter.
    workspace.fill(0xa5);
    let mut out = vec![f32::NAN; scales.len() * job.rows()];
    let jobs = std::slice::from_ref(job);
    rehearse::prefill(&pool, jobs, (q, scales), &mut workspace, Rounds::ONE, &mut out).unwrap();
    out.iter().map(|value| value.to_bits()).collect()
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
            let expected = multiply(&job(rows, direct), 2, &q, &scales);
            let job = job(rows, kernel);
            for threads in 1..=4 {
                let got = multiply(&job, threads, &q, &scales);
                let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{rows:?}, {tokens} tokens, {threads} threads");
            }
        }
    }
    Ok(())
}

/// A job of one matrix with block scales, and the number of scales of a token.
fn block_job(rows: usize, prefill: BlockKernel) -> (BlockJob, usize) {
    let pool = Pool::new(2).unwrap();
    let (layout, shape) = (prefill.layout(), Shape::new(rows, COLS));
    let (codes, _) = Pattern::Random.fill(rows, COLS, 1);
    let file = i2_s::encode(&codes);
    let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
    let (codes, scales) = (Codes::i2_s(&file, shape), Scales::Tensor(0.75));
    let matrix = BlockMatrix::pack(codes, &scales, 1.0, layout, buffer, &pool).unwrap().unwrap();
    let is_decode = |kernel: &BlockKernel| kernel.layout() == layout && kernel.tokens() == 1;
    let decode = BlockKernel::builtin().find(is_decode).unwrap();
    (BlockJob::new(vec![matrix], vec![None], decode, prefill).unwrap(), COLS / layout.width())
}

/// Any number of tokens, up to two groups and one, comes out as each does alone.
fn is_as_alone(id: &KernelId) -> Tested {
    Need::isa(id.isa)?;
    let own = id.tile.tokens;
    let most = 2 * own + 1;
    let (_, q) = Pattern::Random.fill(1, COLS, most);
    let (ternary, blocks, each) = match id.op {
        Op::Blocks(_) => {
            let (job, each) =
                block_job(100, BlockKernel::find(id).expect("every build holds the grid"));
            (None, Some(job), each)
        }
        _ => {
            (Some(job([100, 40], *kernels::find(id).expect("every build holds the grid"))), None, 1)
        }
    };
    let rows = ternary.as_ref().map_or(100, Job::rows);
    let scales: Vec<f32> = (0..most * each).map(|i| 0.5 + (i % 37) as f32).collect();
    let multiply = |tokens: Range<usize>| {
        let q = &q[tokens.start * COLS..tokens.end * COLS];
        let scales = &scales[tokens.start * each..tokens.end * each];
        match (&ternary, &blocks) {
            (Some(job), _) => multiply(job, 2, q, scales),
            (_, Some(job)) => multiply_blocks(job, q, scales, tokens.len()),
            _ => unreachable!("it has one kind of job"),
        }
    };
    let alone: Vec<Vec<u32>> = (0..most).map(|token| multiply(token..token + 1)).collect();
    for tokens in (2..=own + 1).chain([2 * own - 1, 2 * own, most]) {
        let together = multiply(0..tokens);
        for (token, (found, expected)) in together.chunks(rows).zip(&alone).enumerate() {
            assert_eq!(found, expected, "token {token} of {tokens}");
        }
    }
    Ok(())
}

fn multiply_blocks(job: &BlockJob, q: &[i8], scales: &[f32], tokens: usize) -> Vec<u32> {
    let pool = Pool::new(2).unwrap();
    let mut workspace = Buffer::zeroed(job.workspace_bytes(tokens)).unwrap();
    workspace.fill(0xa5);
    let mut out = vec![f32::NAN; tokens * job.rows()];
    let jobs = std::slice::from_ref(job);
    rehearse::prefill(&pool, jobs, (q, scales), &mut workspace, Rounds::ONE, &mut out).unwrap();
    out.iter().map(|value| value.to_bits()).collect()
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
