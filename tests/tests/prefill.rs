//! Many tokens through a job whose kernel has the packing expanded: the same as from the packing, by
//! any number of threads, in one chunk of the expanded form or several.

use std::env;
use std::process::ExitCode;

use bitnet_kernel_tests::Pattern;
use bitnet_profiles::{Isa, KernelId, Layout, Shape};
use bitnet_runtime::cpu::kernels::{self, Kernel};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, i2_s};
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

fn main() -> ExitCode {
    let ids = bitnet_codegen::grid(Isa::of_arch(env::consts::ARCH));
    let mut suite = Suite::default();
    for id in ids.into_iter().filter(|id| id.expands()) {
        suite.add(format!("expanded::{id}"), move || is_the_same(&id));
    }
    suite.run()
}
