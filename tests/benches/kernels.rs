//! The ternary kernels by themselves, on one thread: the defaults of every format and ISA that this
//! CPU runs, and beside each the first other tile of the generator's table.
//!
//! Weights are cold: calls rotate through copies of the matrix that together are more than four
//! times as large as the L3 cache, as the layers of a large model are. Every kernel is held to the
//! reference on the shape that is timed. Throughput is in products of a weight and an activation:
//! criterion's "elements".

use std::time::Duration;

use bitnet_codegen::Phase;
use bitnet_kernel_tests::Pattern;
use bitnet_profiles::{Shape, registry};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::{self, Kernel, Operand};
use bitnet_runtime::cpu::memory::{Arena, Buffer};
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::reference;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::{Codes, i2_s};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Two matrices of BitNet b1.58 2B-4T: gate or up, and down.
const SHAPES: &[Shape] = &[Shape::new(6912, 2560), Shape::new(2560, 6912)];

/// Bytes of L3 cache where the system does not say.
const L3: u64 = 32 << 20;

/// The kernels to time, those of one layout side by side.
fn chosen(phase: Phase) -> Vec<&'static Kernel> {
    let mut chosen: Vec<&Kernel> = Vec::new();
    for generic in registry::generics() {
        let id = if phase == Phase::Decode { generic.decode } else { generic.prefill };
        let Some(kernel) = kernels::find(&id) else {
            eprintln!("skipped: {id}, which this CPU does not run");
            continue;
        };
        let other = kernels::builtin().iter().find(|other| {
            other.id() != kernel.id()
                && other.layout() == kernel.layout()
                && other.id().isa == id.isa
                && Phase::of(&other.id().tile) == phase
        });
        chosen.push(kernel);
        chosen.extend(other);
    }
    chosen.sort_by_key(|kernel| kernel.layout());
    chosen
}

/// Copies of a matrix, so many that none is in the cache when its turn comes again.
fn cold_copies(matrix: PackedMatrix, pool: &Pool) -> Vec<PackedMatrix> {
    let l3 = Some(Host::detect().l3).filter(|&l3| l3 > 0).unwrap_or(L3) as usize;
    let bytes = matrix.data().len();
    let more = 4 * l3 / bytes + 1;
    let mut arena = Arena::new(bytes * more, more).unwrap();
    let mut copy = |_| matrix.copy(arena.take(bytes).unwrap(), pool).unwrap();
    let mut copies: Vec<PackedMatrix> = (0..more).map(&mut copy).collect();
    copies.push(matrix);
    copies
}

fn bench(criterion: &mut Criterion) {
    let pool = Pool::new(1).unwrap();
    let most = kernels::builtin().iter().map(Kernel::tokens).max().unwrap();
    for &shape in SHAPES {
        let Shape { rows, cols } = shape;
        let (codes, activations) = Pattern::Random.fill(rows, cols, most);
        let expected = reference::matmul(&codes, &activations, cols);
        let file = i2_s::encode(&codes);
        for phase in [Phase::Decode, Phase::Prefill] {
            let mut group = criterion.benchmark_group(format!("{phase:?}/{shape}"));
            let mut matrices: Vec<PackedMatrix> = Vec::new();
            for kernel in chosen(phase) {
                let layout = kernel.layout();
                if matrices.first().is_none_or(|matrix| matrix.layout() != layout) {
                    // The old copies go before the new ones come.
                    matrices.clear();
                    let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
                    let packed =
                        PackedMatrix::pack(Codes::i2_s(&file, shape), 1.0, layout, buffer, &pool);
                    matrices = cold_copies(packed.unwrap().unwrap(), &pool);
                }
                let tokens = kernel.tokens();
                let mut prepared = Buffer::zeroed(kernel.group_bytes(cols)).unwrap();
                kernel.prepare(&activations[..tokens * cols], cols, &mut prepared);
                let steps = kernel.steps(rows);
                let stride = steps * kernel.step_rows();
                let mut out = vec![i32::MIN; tokens * stride];
                let operand = |matrix| Operand::new(kernel, matrix).unwrap();
                operand(&matrices[0]).run(kernel, 0..steps, &prepared, &mut out, stride);
                for (got, expected) in out.chunks_exact(stride).zip(expected.chunks_exact(rows)) {
                    assert!(&got[..rows] == expected, "{} is wrong on {shape}", kernel.id());
                }
                group.throughput(Throughput::Elements((shape.weights() * tokens) as u64));
                let operands: Vec<Operand> = matrices.iter().map(operand).collect();
                let mut turn = operands.iter().cycle();
                group.bench_function(BenchmarkId::from_parameter(kernel.id()), |bencher| {
                    bencher.iter(|| {
                        let operand = turn.next().expect("a cycle of at least two");
                        operand.run(kernel, 0..steps, &prepared, &mut out, stride);
                    });
                });
            }
            group.finish();
        }
    }
}

/// Short enough for the whole table; the command line has the last word.
fn config() -> Criterion {
    let short = Criterion::default().warm_up_time(Duration::from_millis(300));
    short.measurement_time(Duration::from_secs(1)).sample_size(20)
}

criterion_group!(name = benches; config = config(); targets = bench);
criterion_main!(benches);
