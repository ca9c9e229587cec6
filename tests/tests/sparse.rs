//! Skipped lines change nothing: kernels with a list of lines equal the reference, jobs that skip
//! give the floats of those that do not, and models the same logits, to the bit.

use std::env;
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bitnet_cli::dummy::{self, DummyConfig, DummyShape, DummySparsity};
use bitnet_kernel_tests::{Pattern, Random};
use bitnet_profiles::{Isa, KernelId, Op, Role, Shape};
use bitnet_runtime::cpu::gather::{Along, GatherMatrix};
use bitnet_runtime::cpu::kernels::{GatherKernel, Selection, VectorOps, verify};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::reference;
use bitnet_runtime::cpu::sparse::{Mode, Sparse};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::TensorType;
use bitnet_runtime::formats::{Codes, i2_s};
use bitnet_runtime::measure::rehearse::{self, Rounds};
use bitnet_trials::{Need, Tested, suite};

/// Rows by columns, some of which fill whole units of any layout and some none.
const SHAPES: &[Shape] = &[
    Shape::new(128, 1),
    Shape::new(1, 128),
    Shape::new(128, 3),
    Shape::new(3, 384),
    Shape::new(64, 250),
    Shape::new(65, 256),
    Shape::new(128, 257),
    Shape::new(320, 320),
    Shape::new(384, 1024),
    Shape::new(1056, 100),
];

/// Of 100 lines so many are in the list.
const DENSITIES: &[u64] = &[0, 3, 20, 50, 90, 100];

fn pack(codes: &[u8], shape: Shape, kernel: &GatherKernel, pool: &Pool) -> GatherMatrix {
    let (layout, along) = (kernel.layout(), kernel.along());
    let buffer = Buffer::zeroed(along.matrix_bytes(layout, shape)).unwrap();
    let file = i2_s::encode(codes);
    GatherMatrix::pack(Codes::i2_s(&file, shape), 1.0, (layout, along), buffer, pool)
        .unwrap()
        .unwrap()
}

/// The products of the lines of a list: one for each row of it, or one for each row of the matrix.
fn multiply(kernel: &GatherKernel, matrix: &GatherMatrix, list: &[u32], q: &[i8]) -> Vec<i32> {
    let listed: Vec<i8> = match kernel.along() {
        Along::Rows => q.to_vec(),
        Along::Columns => list.iter().map(|&col| q[col as usize]).collect(),
    };
    let mut group = Buffer::zeroed(kernel.group_bytes(listed.len())).unwrap();
    group.fill(0xa5);
    kernel.prepare(&listed, &mut group);
    let units = matrix.units();
    let mut out = vec![i32::MIN; kernel.outputs(list.len(), units)];
    match kernel.along() {
        Along::Rows => kernel.run(matrix, 0..units, list, &group, &mut out),
        // In two parts, as two threads would.
        Along::Columns => {
            let half = units / 2;
            let (first, second) = out.split_at_mut(kernel.outputs(list.len(), half));
            kernel.run(matrix, 0..half, list, &group, first);
            kernel.run(matrix, half..units, list, &group, second);
            out.truncate(matrix.shape().rows);
        }
    }
    out
}

fn expected(along: Along, codes: &[u8], list: &[u32], q: &[i8]) -> Vec<i32> {
    let cols = q.len();
    match along {
        Along::Rows => {
            let all = reference::matmul(codes, q, cols);
            list.iter().map(|&row| all[row as usize]).collect()
        }
        Along::Columns => {
            let mut kept = vec![0; cols];
            list.iter().for_each(|&col| kept[col as usize] = q[col as usize]);
            reference::matmul(codes, &kept, cols)
        }
    }
}

/// The kernel of a name, where this CPU runs it.
fn kernel(id: &KernelId) -> Tested<GatherKernel> {
    Need::isa(id.isa)?;
    Ok(GatherKernel::find(id).expect("every build holds the grid"))
}

fn equals_the_reference(id: &KernelId) -> Tested {
    let kernel = kernel(id)?;
    let pool = Pool::new(3).unwrap();
    for &shape in SHAPES {
        for &pattern in Pattern::ALL {
            let (codes, q) = pattern.fill(shape.rows, shape.cols, 1);
            let matrix = pack(&codes, shape, &kernel, &pool);
            for &density in DENSITIES {
                let mut random = Random::new(density);
                let lines = 0..matrix.lines() as u32;
                let list: Vec<u32> = lines.filter(|_| random.below(100) < density).collect();
                let got = multiply(&kernel, &matrix, &list, &q);
                let expected = expected(kernel.along(), &codes, &list, &q);
                assert!(got == expected, "{shape}, {pattern:?}, {} lines", list.len());
            }
        }
    }
    Ok(())
}

/// The longest rows there are, and as many columns: sums in place must not wrap.
fn sums_do_not_wrap(id: &KernelId) -> Tested {
    let kernel = kernel(id)?;
    let pool = Pool::new(1).unwrap();
    let shape = Shape::new(1, Shape::MAX_COLS);
    for (code, activation) in [(2, 127), (2, -128), (0, -128)] {
        let (codes, q) = Pattern::Constant { code, activation }.fill(1, shape.cols, 1);
        let matrix = pack(&codes, shape, &kernel, &pool);
        let list: Vec<u32> = (0..matrix.lines() as u32).collect();
        let got = multiply(&kernel, &matrix, &list, &q);
        let dot = (i32::from(code) - 1) * i32::from(activation) * shape.cols as i32;
        assert_eq!(got, [dot], "{code} times {activation}");
    }
    Ok(())
}

/// As before use: the kernels that a tuner or a library brings.
fn holds_its_self_check(id: &KernelId) -> Tested {
    let kernel = kernel(id)?;
    for cols in [384, 250, 1] {
        assert_eq!(verify::lines(&kernel, cols).unwrap(), None);
    }
    Ok(())
}

fn refuses_code_3(id: &KernelId) -> Tested {
    let kernel = kernel(id)?;
    let pool = Pool::new(2).unwrap();
    let shape = Shape::new(64, 96);
    let mut file = i2_s::encode(&vec![1; shape.weights()]);
    let (layout, along) = (kernel.layout(), kernel.along());
    for (byte, bits) in [(0, 0xc0), (31, 0x30), (777, 0x0c), (1535, 0x03)] {
        let before = file[byte];
        file[byte] |= bits;
        let buffer = Buffer::zeroed(along.matrix_bytes(layout, shape)).unwrap();
        let packed =
            GatherMatrix::pack(Codes::i2_s(&file, shape), 1.0, (layout, along), buffer, &pool);
        assert!(packed.unwrap().is_err(), "byte {byte}");
        file[byte] = before;
    }
    Ok(())
}

fn a_line_that_is_not_there_is_refused() {
    let pool = Pool::new(1).unwrap();
    let kernel = GatherKernel::default(Along::Rows, None, Isa::best()).unwrap();
    let matrix = pack(&[1; 7 * 128], Shape::new(7, 128), &kernel, &pool);
    let run = panic::AssertUnwindSafe(|| multiply(&kernel, &matrix, &[0, 7], &[1; 128]));
    let message = panic::catch_unwind(run).unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("line 7"), "{message}");
}

/// A job of matrices of one shape, without and with lines of the last of them.
fn jobs(shape: Shape, parts: &[Vec<u8>], along: Along, isa: Isa, below: f64) -> [Job; 2] {
    let pool = Pool::new(1).unwrap();
    let role = if parts.len() == 2 { Role::GateUp } else { Role::Down };
    let selection = Selection::new(Some(isa), None, None).unwrap();
    let (decode, prefill) = selection.ternary(role, &vec![shape; parts.len()]).unwrap();
    let layout = decode.layout();
    let scale = 0.0123;
    let dense = || {
        let pack = |codes: &Vec<u8>| {
            let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
            let file = i2_s::encode(codes);
            PackedMatrix::pack(Codes::i2_s(&file, shape), scale, layout, buffer, &pool)
                .unwrap()
                .unwrap()
        };
        Job::new(parts.iter().map(pack).collect(), decode, prefill).unwrap()
    };
    let kernel = GatherKernel::default(along, None, isa).unwrap();
    let buffer = Buffer::zeroed(along.matrix_bytes(kernel.layout(), shape)).unwrap();
    let file = i2_s::encode(&parts[parts.len() - 1]);
    let lines = (kernel.layout(), along);
    let lines = GatherMatrix::pack(Codes::i2_s(&file, shape), scale, lines, buffer, &pool)
        .unwrap()
        .unwrap();
    let sparse = Sparse::new(lines, kernel, below).unwrap();
    [dense(), dense().with_sparse(sparse).unwrap()]
}

fn decode(job: &Job, threads: usize, q: &[i8], s: f32) -> Vec<f32> {
    let pool = Pool::new(threads).unwrap();
    let mut out = vec![f32::NAN; job.rows()];
    let jobs = std::slice::from_ref(job);
    rehearse::decode(&pool, jobs, (q, &[s]), &[], Rounds::ONE, &mut out).unwrap();
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Shares of open gates: what weights of a gate, all the same or not, make of positive activations.
fn a_gated_job_gives_the_same_input_of_down(isa: Isa) -> Tested {
    Need::isa(isa)?;
    let shape = Shape::new(1000, 640);
    let mut random = Random::new(3);
    let up: Vec<u8> = (0..shape.weights()).map(|_| random.below(3) as u8).collect();
    let q: Vec<i8> = (0..shape.cols).map(|_| random.below(128) as u8 as i8).collect();
    let gates: [(&str, Vec<u8>); 4] = [
        ("random", (0..shape.weights()).map(|_| random.below(3) as u8).collect()),
        ("closed", vec![0; shape.weights()]),
        ("zero", vec![1; shape.weights()]),
        ("open", vec![2; shape.weights()]),
    ];
    for (name, gate) in gates {
        for below in [f64::INFINITY, 0.5, 0.0] {
            let parts = [gate.clone(), up.clone()];
            let [dense, sparse] = jobs(shape, &parts, Along::Rows, isa, below);
            // A scale, and what a token of infinities has.
            for s in [3.7, 0.0] {
                for threads in 1..=4 {
                    let what = format!("{name}, {isa}, {below}, {s}, {threads} threads");
                    let (a, b) = (decode(&dense, 1, &q, s), decode(&sparse, threads, &q, s));
                    let same = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan())
                    };
                    assert!(same(&a[..shape.rows], &b[..shape.rows]), "{what}");
                    let input = |out: &[f32]| {
                        let (gate, up) = out.split_at(shape.rows);
                        let ops = VectorOps::best(isa);
                        let (mut product, mut normed) =
                            (vec![0.0; shape.rows], vec![0.0; shape.rows]);
                        let mut q = vec![0; shape.rows];
                        ops.relu2_mul(gate, up, &mut product);
                        ops.rms_norm(&product, &vec![1.0; shape.rows], 1e-5, &mut normed);
                        (ops.quantise_activations(&normed, &mut q).to_bits(), q)
                    };
                    assert_eq!(input(&a), input(&b), "{what}");
                    for row in 0..shape.rows {
                        let (gate, up) = (b[row], b[shape.rows + row]);
                        let skipped = gate <= 0.0 && up.to_bits() == 0;
                        assert!(skipped || same(&[a[shape.rows + row]], &[up]), "{what}");
                    }
                }
            }
        }
    }
    Ok(())
}

fn a_job_that_skips_columns_gives_the_same_floats(isa: Isa) -> Tested {
    Need::isa(isa)?;
    let mut random = Random::new(5);
    for shape in [Shape::new(1000, 640), Shape::new(320, 1024), Shape::new(128, 7)] {
        let down: Vec<u8> = (0..shape.weights()).map(|_| random.below(3) as u8).collect();
        for below in [f64::INFINITY, 0.5, 0.0] {
            let parts = [down.clone()];
            let [dense, sparse] = jobs(shape, &parts, Along::Columns, isa, below);
            for &density in DENSITIES {
                let byte = |random: &mut Random| (random.below(255) + 1) as u8 as i8;
                let mut pick = || if random.below(100) < density { byte(&mut random) } else { 0 };
                let q: Vec<i8> = (0..shape.cols).map(|_| pick()).collect();
                let expected = bits(&decode(&dense, 1, &q, 1.7));
                for threads in 1..=4 {
                    let got = bits(&decode(&sparse, threads, &q, 1.7));
                    let what = format!("{shape}, {isa}, {below}, {density} %, {threads}");
                    assert!(got == expected, "{what} threads");
                }
            }
        }
    }
    Ok(())
}

/// A job with lines of another job is refused: nothing is skipped.
fn lines_of_another_matrix_are_refused() {
    let shape = Shape::new(64, 128);
    let of = |along, parts: usize| {
        jobs(shape, &vec![vec![1; shape.weights()]; parts], along, Isa::Scalar, 1.0)
    };
    let [_, gated] = of(Along::Rows, 2);
    assert!(gated.sparse().is_some());
    let pool = Pool::new(1).unwrap();
    for (along, shape, parts) in [
        (Along::Rows, shape, 1),
        (Along::Columns, shape, 2),
        (Along::Rows, Shape::new(128, 128), 2),
        (Along::Columns, Shape::new(64, 64), 1),
    ] {
        let kernel = GatherKernel::default(along, None, Isa::Scalar).unwrap();
        let lines = pack(&vec![1; shape.weights()], shape, &kernel, &pool);
        let sparse = Sparse::new(lines, kernel, 1.0).unwrap();
        let along = if parts == 2 { Along::Rows } else { Along::Columns };
        let [dense, _] = of(along, parts);
        assert!(dense.with_sparse(sparse).is_err(), "{along:?}, {shape}, {parts} parts");
    }
    let kernel = GatherKernel::default(Along::Columns, None, Isa::Scalar).unwrap();
    let other = GatherKernel::default(Along::Rows, None, Isa::Scalar).unwrap();
    let lines = pack(&vec![1; shape.weights()], shape, &kernel, &pool);
    assert!(Sparse::new(lines, other, 1.0).is_err());
}

/// A job skips by the lines it was given last, which it gives back; a copy of them is as good.
fn lines_can_be_copied_and_taken_back() {
    let shape = Shape::new(64, 128);
    let pool = Pool::new(3).unwrap();
    let kernel = GatherKernel::default(Along::Columns, None, Isa::Scalar).unwrap();
    let codes: Vec<u8> = (0..shape.weights()).map(|i| (i * i % 3) as u8).collect();
    let lines = pack(&codes, shape, &kernel, &pool);
    let copy = |bytes| lines.copy(Buffer::zeroed(bytes).unwrap(), &pool);
    let copied = copy(lines.data().len()).unwrap();
    assert_eq!(copied.data(), lines.data());
    assert_eq!((copied.shape(), copied.along()), (shape, Along::Columns));
    assert!(copy(lines.data().len() - 1).is_err());

    let [mut job, _] = jobs(shape, &[codes], Along::Columns, Isa::Scalar, 1.0);
    let scale = job.parts()[0].scales().clone();
    assert!(job.set_sparse(None).unwrap().is_none());
    let parts = vec![vec![1; shape.weights()]; 2];
    let [_, mut gated] = jobs(shape, &parts, Along::Rows, Isa::Scalar, 1.0);
    assert_ne!(&scale, copied.scales());
    // Of another scale, and of another job.
    assert!(job.set_sparse(Some(Sparse::new(copied, kernel, 1.0).unwrap())).is_err());
    let sparse = gated.set_sparse(None).unwrap().unwrap();
    assert!(gated.sparse().is_none());
    let (rows, data) = (*sparse.kernel(), sparse.lines().data().to_vec());
    let taken = sparse.into_lines();
    assert_eq!(taken.data(), data);
    gated.set_sparse(Some(Sparse::new(taken, rows, 0.25).unwrap())).unwrap();
    assert_eq!(gated.sparse().map(Sparse::below), Some(0.25));
}

/// Logits after every token of `ids`, one by one, and what was needed of up and of down.
fn logits(path: &Path, isa: Isa, mode: Mode, threads: usize, ids: &[u32]) -> (Vec<u32>, [f64; 2]) {
    let pool = Arc::new(Pool::new(threads).unwrap());
    let selection = Selection::new(Some(isa), None, None).unwrap();
    let options = LoadOptions { sparse: mode, ..LoadOptions::new(&pool, &selection) };
    let model = Arc::new(Model::load(path, &options).unwrap());
    let packed_twice = model.kernels().iter().filter(|role| role.sparse.is_some()).count();
    assert_eq!(packed_twice, if mode == Mode::On { 2 } else { 0 }, "{mode:?}");
    let options = SessionOptions { context: Some(64), ..SessionOptions::default() };
    let mut session = Session::new(model, pool, options).unwrap();
    let all = ids.iter().flat_map(|&id| bits(session.decode(id).unwrap())).collect();
    (all, [Along::Rows, Along::Columns].map(|along| session.tally(along).density().unwrap_or(1.0)))
}

fn the_demo_model_has_the_same_logits_and_skips_most(isa: Isa) -> Tested {
    Need::isa(isa)?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bard-11m.i2_s.gguf");
    let ids = [0, 51, 1200, 17, 300, 4, 5, 6, 7, 2000, 81, 9];
    // Small matrices are read whole unless asked otherwise.
    let (expected, _) = logits(&demo, Isa::Scalar, Mode::Auto, 1, &ids);
    for threads in 1..=3 {
        let (found, [open, nonzero]) = logits(&demo, isa, Mode::On, threads, &ids);
        assert!(found == expected, "{isa}, {threads} threads");
        assert!((0.05..0.3).contains(&open) && (0.02..0.2).contains(&nonzero), "{open} {nonzero}");
    }
    assert!(logits(&demo, isa, Mode::Off, 2, &ids).0 == expected, "{isa}");
    Ok(())
}

/// Random weights: half the gates are open.
fn a_random_model_has_the_same_logits(isa: Isa) -> Tested {
    Need::isa(isa)?;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let published = DummyShape::find("2b4t").unwrap();
    let shape = DummyShape {
        hidden: 640,
        ffn: 1728,
        layers: 2,
        heads: 10,
        kv_heads: 5,
        vocab: 1000,
        ..*published
    };
    let config = DummyConfig {
        shape,
        embedding: TensorType::Q8_0,
        matrices: TensorType::I2_S,
        vocab: None,
        seed: 1,
        sparsity: DummySparsity::Random,
        force: false,
    };
    dummy::write(&config, &path, &mut |_, _| ()).unwrap();
    let ids: Vec<u32> = (0..16).map(|i| i * 37 % 1000).collect();
    let (expected, _) = logits(&path, Isa::best(), Mode::Off, 1, &ids);
    for threads in [1, 2, 4] {
        let (found, [open, nonzero]) = logits(&path, isa, Mode::On, threads, &ids);
        assert!(found == expected, "{isa}, {threads} threads");
        assert!((0.4..0.6).contains(&open) && nonzero < open, "{open} {nonzero}");
    }
    Ok(())
}

/// Models of another gate have no zeros to skip, and say so where they are asked to.
fn other_gates_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("silu.gguf");
    let published = DummyShape::find("125M").unwrap();
    let shape = DummyShape { layers: 1, vocab: 300, ..*published };
    let config = DummyConfig {
        shape,
        embedding: TensorType::F16,
        matrices: TensorType::I2_S,
        vocab: None,
        seed: 1,
        sparsity: DummySparsity::Random,
        force: false,
    };
    dummy::write(&config, &path, &mut |_, _| ()).unwrap();
    let (pool, selection) = (Pool::new(1).unwrap(), Selection::default());
    for (mode, warns) in [(Mode::On, true), (Mode::Auto, false)] {
        let options = LoadOptions { sparse: mode, ..LoadOptions::new(&pool, &selection) };
        let model = Model::load(&path, &options).unwrap();
        assert!(model.kernels().iter().all(|role| role.sparse.is_none()));
        let said = model.warnings().iter().any(|line| line.contains("squared ReLU"));
        assert_eq!(said, warns, "{:?}", model.warnings());
    }
}

/// A property of jobs and models on a tier.
type Property = fn(Isa) -> Tested;

fn main() -> ExitCode {
    let mut suite = suite![
        a_line_that_is_not_there_is_refused,
        lines_of_another_matrix_are_refused,
        lines_can_be_copied_and_taken_back,
        other_gates_are_left_alone,
    ];
    let isas = Isa::of_arch(env::consts::ARCH);
    let ids = bitnet_codegen::grid(isas);
    for id in ids.into_iter().filter(|id| matches!(id.op, Op::Rows(_) | Op::Columns(_))) {
        suite.add(format!("exact::{id}"), move || equals_the_reference(&id));
        suite.add(format!("no_wrap::{id}"), move || sums_do_not_wrap(&id));
        suite.add(format!("self_check::{id}"), move || holds_its_self_check(&id));
        suite.add(format!("code_3::{id}"), move || refuses_code_3(&id));
    }
    let properties: [(&str, Property); 4] = [
        ("gated_job", a_gated_job_gives_the_same_input_of_down),
        ("columns_job", a_job_that_skips_columns_gives_the_same_floats),
        ("demo_model", the_demo_model_has_the_same_logits_and_skips_most),
        ("random_model", a_random_model_has_the_same_logits),
    ];
    for (name, property) in properties {
        for &isa in isas {
            suite.add(format!("{name}::{isa}"), move || property(isa));
        }
    }
    suite.run()
}
