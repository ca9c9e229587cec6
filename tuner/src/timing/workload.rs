//! Workloads: jobs of one role that a kernel is timed on, with weights as cold as in the model.
//!
//! * **Timed** is what the forward pass runs, by [`rehearse`]: the jobs' decode and prefill, the
//!   rows of the head shared out, attention; with a barrier after each.
//! * **Weights are synthetic**: random codes in matrices of the model's shapes. The kernels take
//!   the same time for all weights, and the model's file need not be read.
//! * **Cold as in the model.** Between a matrix and its next turn, one token reads the rest of the
//!   model. So jobs rotate through copies of their matrices that are together as large as the
//!   model; where that is more than the L3 cache, several times the cache is enough.

use std::time::Instant;

use bitnet_codegen::Phase;
use bitnet_profiles::{BlockLayout, HeadFormat, Isa, KernelId, Layout, Packing, Shape};
use bitnet_runtime::Error;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::blocks::{BlockJob, BlockMatrix};
use bitnet_runtime::cpu::kernels::{self, BlockKernel, Kernel, VectorOps};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::{Arena, Buffer, Pages};
use bitnet_runtime::cpu::model::KvType;
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::Codes;
use bitnet_runtime::measure::rehearse::{self, AttentionLayers, Elapsed, Rounds};
use bitnet_runtime::random::Random;

use super::present::Candidate;
use super::tournament::Sample;
use crate::Result;
use crate::measure::lengths::DEPTH;

/// Share of a sample that a worker may have waited for its CPU.
const DELAY: f64 = 0.02;

/// Most copies of a job: enough to fill any cache with jobs that take longer than a barrier.
const MOST_COPIES: u64 = 4096;

/// Most layers of a warm cache of keys and values that are read before the clock starts.
const MOST_WARMED: usize = 64;

/// Weights that are read between a matrix and its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Bytes of all copies of a job's matrices; there are at least two copies.
    pub bytes: u64,
    /// True if a cache holds them all; then they are read once before the clock starts.
    pub warm: bool,
}

impl Rotation {
    /// Returns the rotation for a model on a CPU with an L3 cache, sizes in bytes.
    pub(crate) fn of(model_bytes: u64, l3: u64) -> Self {
        if model_bytes > l3 {
            Self { bytes: (4 * l3).min((model_bytes * 3 / 4).max(2 * l3)), warm: false }
        } else {
            Self { bytes: model_bytes, warm: true }
        }
    }

    /// Returns the number of copies of matrices of `bytes`.
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        self.bytes.div_ceil(bytes.max(1) as u64).clamp(1, MOST_COPIES) as usize
    }
}

/// Copies of one job's matrices, and their inputs.
pub(crate) trait Workload {
    /// Times `count` jobs with `kernel`, by the workers of `pool`.
    fn sample(
        &mut self,
        pool: &Pool,
        kernel: &Candidate,
        phase: Phase,
        count: usize,
    ) -> Result<Sample>;

    /// Sets the rows of prefills from now on, at most as many as the workload was made for.
    fn set_tokens(&mut self, tokens: usize);

    /// Returns the bytes that one token reads.
    fn bytes(&self) -> u64;
}

/// Makes the sample of `count` jobs that took `elapsed`.
pub(crate) fn sample_of(begin: Instant, count: usize, elapsed: Elapsed) -> Sample {
    let Elapsed { time, delay } = elapsed;
    Sample {
        us: time.as_secs_f64() * 1e6 / count.max(1) as f64,
        cost: begin.elapsed().as_secs_f64(),
        disturbed: delay.as_nanos() as f64 > DELAY * time.as_nanos() as f64,
    }
}

fn wrong_kind(kernel: &Candidate) -> crate::Error {
    Error::Runtime(format!("{} does not serve this role", kernel.id())).into()
}

/// Returns a pair of kernels for decode and prefill of which `kernel` replaces that of a phase.
fn replaced<K>((decode, prefill): (K, K), kernel: K, phase: Phase) -> (K, K) {
    match phase {
        Phase::Decode => (kernel, prefill),
        Phase::Prefill => (decode, kernel),
    }
}

/// Copies of a ternary job.
enum Jobs {
    Ternary(Vec<Job>),
    Blocks(Vec<BlockJob>),
}

impl Jobs {
    fn count(&self) -> usize {
        match self {
            Self::Ternary(jobs) => jobs.len(),
            Self::Blocks(jobs) => jobs.len(),
        }
    }

    /// Returns rows, columns, and scales of a token's activations.
    fn sizes(&self) -> (usize, usize, usize) {
        match self {
            Self::Ternary(jobs) => (jobs[0].rows(), jobs[0].cols(), 1),
            Self::Blocks(jobs) => {
                let job = &jobs[0];
                (job.rows(), job.cols(), job.cols() / job.width())
            }
        }
    }

    fn packed_bytes(&self) -> usize {
        match self {
            Self::Ternary(jobs) => jobs[0].packed_bytes(),
            Self::Blocks(jobs) => jobs[0].packed_bytes(),
        }
    }

    fn workspace_bytes(&self, tokens: usize, threads: usize) -> usize {
        match self {
            Self::Ternary(jobs) => jobs[0].workspace_bytes(tokens, threads),
            Self::Blocks(jobs) => jobs[0].workspace_bytes(tokens),
        }
    }

    /// Has `kernel` serve a phase.
    fn set_kernel(&mut self, kernel: &Candidate, phase: Phase) -> Result<()> {
        match (self, kernel) {
            (Self::Ternary(jobs), &Candidate::Ternary(kernel)) => {
                for job in jobs {
                    let present = (*job.decode_kernel(), *job.prefill_kernel());
                    let (decode, prefill) = replaced(present, kernel, phase);
                    job.set_kernels(decode, prefill)?;
                }
            }
            (Self::Blocks(jobs), &Candidate::Blocks(kernel)) => {
                for job in jobs {
                    let present = (*job.decode_kernel(), *job.prefill_kernel());
                    let (decode, prefill) = replaced(present, kernel, phase);
                    job.set_kernels(decode, prefill)?;
                }
            }
            _ => return Err(wrong_kind(kernel)),
        }
        Ok(())
    }

    fn as_rehearsed(&self) -> rehearse::Jobs<'_> {
        match self {
            Self::Ternary(jobs) => rehearse::Jobs::from(&jobs[..]),
            Self::Blocks(jobs) => rehearse::Jobs::from(&jobs[..]),
        }
    }
}

/// Jobs of a ternary role in one layout.
pub(crate) struct TernaryWorkload {
    jobs: Jobs,
    /// Next job in turn.
    next: usize,
    warm: bool,
    tokens: usize,
    quantised: Vec<i8>,
    scales: Vec<f32>,
    workspace: Buffer,
    out: Vec<f32>,
}

impl TernaryWorkload {
    /// Packs matrices of random codes with the shapes `parts`, for prefills of `tokens` rows.
    pub(crate) fn new(
        pool: &Pool,
        parts: &[Shape],
        packing: Packing,
        (rotation, pages): (Rotation, Pages),
        tokens: usize,
    ) -> Result<Self> {
        let bytes = parts.iter().map(|&part| packing.matrix_bytes(part)).sum();
        let count = rotation.copies(bytes).max(2);
        // As the model's are: matrices of less than a large page get none by themselves, and
        // layouts were up to 1.5 times as slow as others by where their pages happened to be.
        let mut arena = Arena::with(bytes * count, parts.len() * count, pages)?;
        let jobs = match packing {
            Packing::Ternary(layout) => {
                let ids = kernels::builtin().iter().filter(|kernel| kernel.layout() == layout);
                let (decode, prefill) = any_pair(ids, Kernel::id, packing)?;
                let all =
                    copies::<PackedMatrix>((parts, count), |shape, first: &[PackedMatrix]| {
                        let buffer = take(&mut arena, layout.matrix_bytes(shape))?;
                        match first.iter().find(|part| part.shape() == shape) {
                            Some(part) => Ok(part.copy(buffer, pool)?),
                            None => pack_random(shape, layout, buffer, pool),
                        }
                    })?;
                let job = |parts| Job::new(parts, *decode, *prefill);
                let jobs = all.into_iter().map(job).collect::<bitnet_runtime::Result<_>>()?;
                Jobs::Ternary(jobs)
            }
            Packing::Blocks(layout) => {
                let all: Vec<BlockKernel> =
                    BlockKernel::builtin().filter(|kernel| kernel.layout() == layout).collect();
                let (decode, prefill) = any_pair(all.iter(), BlockKernel::id, packing)?;
                let all = copies::<BlockMatrix>((parts, count), |shape, _: &[BlockMatrix]| {
                    let buffer = take(&mut arena, layout.matrix_bytes(shape))?;
                    fill_blocks(shape, layout, buffer, pool)
                })?;
                let job = |parts: Vec<BlockMatrix>| {
                    let biases = vec![None; parts.len()];
                    BlockJob::new(parts, biases, *decode, *prefill)
                };
                let jobs = all.into_iter().map(job).collect::<bitnet_runtime::Result<_>>()?;
                Jobs::Blocks(jobs)
            }
        };
        let (rows, cols, scales) = jobs.sizes();
        let mut random = Random::new(cols as u64);
        Ok(Self {
            jobs,
            next: 0,
            warm: rotation.warm,
            tokens,
            quantised: (0..tokens * cols).map(|_| random.below(255) as u8 as i8).collect(),
            scales: vec![1.0; tokens * scales],
            workspace: Buffer::zeroed(0)?,
            out: vec![0.0; tokens * rows],
        })
    }
}

impl Workload for TernaryWorkload {
    fn set_tokens(&mut self, tokens: usize) {
        self.tokens = tokens.min(self.scales.len() / self.jobs.sizes().2);
    }

    fn bytes(&self) -> u64 {
        self.jobs.packed_bytes() as u64
    }

    fn sample(
        &mut self,
        pool: &Pool,
        kernel: &Candidate,
        phase: Phase,
        count: usize,
    ) -> Result<Sample> {
        let begin = Instant::now();
        self.jobs.set_kernel(kernel, phase)?;
        let (_, cols, each) = self.jobs.sizes();
        let tokens = if phase == Phase::Decode { 1 } else { self.tokens };
        let workspace_bytes = self.jobs.workspace_bytes(tokens, pool.threads());
        if phase == Phase::Prefill && self.workspace.len() < workspace_bytes {
            self.workspace = Buffer::zeroed(workspace_bytes)?;
        }
        let input = (&self.quantised[..tokens * cols], &self.scales[..tokens * each]);
        let untimed = if self.warm { self.jobs.count() } else { 1 };
        let rounds = Rounds { first: self.next, untimed, timed: count };
        let (jobs, out) = (self.jobs.as_rehearsed(), &mut self.out);
        // They take new scratch for every sample: where its pages lie is then noise and no bias.
        let elapsed = match phase {
            Phase::Decode => rehearse::decode(pool, jobs, input, &[], rounds, out)?,
            Phase::Prefill => {
                rehearse::prefill(pool, jobs, input, &mut self.workspace, rounds, out)?
            }
        };
        self.next = rounds.next(self.jobs.count());
        Ok(sample_of(begin, count, elapsed))
    }
}

/// Returns a kernel for one token and one for many, of those that read a packing.
fn any_pair<'k, K>(
    kernels: impl Iterator<Item = &'k K> + Clone,
    id: fn(&K) -> &KernelId,
    packing: Packing,
) -> Result<(&'k K, &'k K)> {
    let any = |phase: Phase| kernels.clone().find(|kernel| Phase::of(&id(kernel).tile) == phase);
    let pair = any(Phase::Decode).zip(any(Phase::Prefill));
    let missing = || Error::Runtime(format!("no kernel that this CPU can run reads {packing}"));
    Ok(pair.ok_or_else(missing)?)
}

/// Makes the matrices of `count` copies of a job: `make(shape, those before)` makes one.
fn copies<M>(
    (parts, count): (&[Shape], usize),
    mut make: impl FnMut(Shape, &[M]) -> Result<M>,
) -> Result<Vec<Vec<M>>> {
    let mut all: Vec<Vec<M>> = Vec::new();
    for _ in 0..count {
        let mut job: Vec<M> = Vec::new();
        for &shape in parts {
            let made = make(shape, all.first().map_or(&job[..], |first| &first[..]))?;
            job.push(made);
        }
        all.push(job);
    }
    Ok(all)
}

/// Makes a matrix with block scales: any codes are weights, and every scale is a small number.
fn fill_blocks(
    shape: Shape,
    layout: BlockLayout,
    mut buffer: Buffer,
    pool: &Pool,
) -> Result<BlockMatrix> {
    pool.fill(&mut buffer, 0x3c)?;
    Ok(BlockMatrix::new(layout, shape, 1.0, false, buffer)?)
}

/// The head: logits of one token.
pub(crate) struct HeadWorkload {
    /// Copies of the rows, in blocks of the format.
    copies: Vec<Buffer>,
    next: usize,
    warm: bool,
    x: Vec<f32>,
    out: Vec<f32>,
}

impl HeadWorkload {
    /// Makes a head of `shape`, `[vocab, hidden]`, stored as `format`.
    pub(crate) fn new(
        pool: &Pool,
        shape: Shape,
        format: HeadFormat,
        rotation: Rotation,
    ) -> Result<Self> {
        let bytes = shape.rows * format.row_bytes(shape.cols);
        let copy = |_| -> Result<Buffer> {
            let mut buffer = Buffer::zeroed(bytes)?;
            // In every format it is a small number.
            pool.fill(&mut buffer, 0x3c)?;
            Ok(buffer)
        };
        Ok(Self {
            copies: (0..rotation.copies(bytes)).map(copy).collect::<Result<_>>()?,
            next: 0,
            warm: rotation.warm,
            x: (0..shape.cols).map(|i| (i * 7 % 31) as f32 / 16.0 - 1.0).collect(),
            out: vec![0.0; shape.rows],
        })
    }
}

impl Workload for HeadWorkload {
    fn set_tokens(&mut self, _: usize) {}

    fn bytes(&self) -> u64 {
        self.copies[0].len() as u64
    }

    fn sample(
        &mut self,
        pool: &Pool,
        kernel: &Candidate,
        _: Phase,
        count: usize,
    ) -> Result<Sample> {
        let begin = Instant::now();
        let &Candidate::Head(kernel) = kernel else { return Err(wrong_kind(kernel)) };
        let untimed = if self.warm { self.copies.len() } else { 1 };
        let rounds = Rounds { first: self.next, untimed, timed: count };
        let x = (&self.x[..], 1);
        let elapsed = rehearse::logits(pool, &kernel, &self.copies, x, rounds, &mut self.out)?;
        self.next = rounds.next(self.copies.len());
        Ok(sample_of(begin, count, elapsed))
    }
}

/// Attention after [`DEPTH`] positions.
pub(crate) struct AttentionWorkload {
    layers: AttentionLayers,
    /// The layer whose turn it is.
    next: usize,
    warm: bool,
    tokens: usize,
}

impl AttentionWorkload {
    /// Makes attention for prefills of up to `tokens` tokens.
    pub(crate) fn new(
        config: &Config,
        isa: Isa,
        rotation: Rotation,
        tokens: usize,
    ) -> Result<Self> {
        let kind = (KvType::default_for(config), VectorOps::best(isa));
        let new = |layers| AttentionLayers::new(config, kind, layers, (DEPTH, tokens));
        // Where the cache of all layers is less than the weights read in between, layers of their
        // own make up for it.
        let layers = rotation.copies(new(1)?.bytes()).max(2);
        Ok(Self { layers: new(layers)?, next: 0, warm: rotation.warm, tokens })
    }
}

impl Workload for AttentionWorkload {
    fn set_tokens(&mut self, tokens: usize) {
        self.tokens = tokens;
    }

    fn bytes(&self) -> u64 {
        self.layers.bytes() as u64
    }

    fn sample(
        &mut self,
        pool: &Pool,
        kernel: &Candidate,
        phase: Phase,
        count: usize,
    ) -> Result<Sample> {
        let begin = Instant::now();
        let Candidate::Attention(kernel) = kernel else { return Err(wrong_kind(kernel)) };
        let tokens = if phase == Phase::Decode { 1 } else { self.tokens };
        let layers = self.layers.layers();
        let untimed = if self.warm { layers.min(MOST_WARMED) } else { 1 };
        let rounds = Rounds { first: self.next, untimed, timed: count };
        let elapsed = self.layers.attend(pool, kernel, tokens, rounds)?;
        self.next = rounds.next(layers);
        Ok(sample_of(begin, count, elapsed))
    }
}

pub(crate) fn take(arena: &mut Arena, bytes: usize) -> Result<Buffer> {
    Ok(arena.take(bytes).ok_or_else(|| Error::Runtime("the arena is too small".into()))?)
}

/// Returns random codes of a matrix in the file's layout: every byte holds four codes 0, 1, 2.
pub(crate) fn random_codes(shape: Shape) -> Vec<u8> {
    let valid: Vec<u8> =
        (0..=u8::MAX).filter(|byte| byte & (byte >> 1) & 0b0101_0101 == 0).collect();
    let mut random = Random::new(shape.weights() as u64);
    let byte = |_| valid[random.below(valid.len() as u64) as usize];
    (0..shape.weights() / 4).map(byte).collect()
}

/// Packs a matrix of random weights.
fn pack_random(shape: Shape, layout: Layout, buffer: Buffer, pool: &Pool) -> Result<PackedMatrix> {
    let codes = random_codes(shape);
    let packed = PackedMatrix::pack(Codes::i2_s(&codes, shape), 1.0, layout, buffer, pool)?;
    Ok(packed.map_err(|_| Error::Runtime(format!("packing {layout} refused valid codes")))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Kernels that can be timed on ternary jobs.
    fn candidates() -> Vec<Candidate> {
        let ternary = kernels::builtin().iter().copied().map(Candidate::Ternary);
        ternary.chain(BlockKernel::builtin().map(Candidate::Blocks)).collect()
    }

    fn packing(kernel: &Candidate) -> Packing {
        kernel.id().op.packing().unwrap()
    }

    /// Packings that kernels of this CPU read in both phases: only such are candidates.
    fn packings() -> BTreeSet<Packing> {
        let of = |phase: Phase| {
            let all = candidates().into_iter();
            let own = all.filter(|kernel| Phase::of(&kernel.id().tile) == phase);
            own.map(|kernel| packing(&kernel)).collect::<BTreeSet<_>>()
        };
        of(Phase::Decode).intersection(&of(Phase::Prefill)).copied().collect()
    }

    #[test]
    fn copies_rotate_and_every_kernel_can_be_timed() {
        let pool = Pool::new(2).unwrap();
        let parts = [Shape::new(96, 256), Shape::new(96, 256), Shape::new(33, 256)];
        for layout in packings() {
            let new = |bytes, warm| {
                TernaryWorkload::new(
                    &pool,
                    &parts,
                    layout,
                    (Rotation { bytes, warm }, Pages::Huge),
                    32,
                )
                .unwrap()
            };
            let mut cold = new(1, false);
            assert_eq!(cold.jobs.count(), 2);
            let bytes = cold.jobs.packed_bytes() as u64;
            assert_eq!(new(10 * bytes, false).jobs.count(), 10);
            let mut warm = new(3 * bytes - 1, true);
            assert_eq!(warm.jobs.count(), 3);
            for kernel in candidates().into_iter().filter(|kernel| packing(kernel) == layout) {
                for (workload, count) in [(&mut cold, 2), (&mut warm, 4)] {
                    let (next, untimed) = (workload.next, if workload.warm { 3 } else { 1 });
                    let sample = workload
                        .sample(&pool, &kernel, Phase::of(&kernel.id().tile), count)
                        .unwrap();
                    assert!(sample.us > 0.0 && sample.cost * 1e6 >= sample.us);
                    assert_eq!(workload.next, (next + untimed + count) % workload.jobs.count());
                }
            }
        }
    }

    /// The matrices are really multiplied: a workload that timed nothing would show.
    #[test]
    fn samples_multiply() {
        let pool = Pool::new(2).unwrap();
        let parts = [Shape::new(128, 256)];
        let packings = packings();
        for kernel in candidates().into_iter().filter(|k| packings.contains(&packing(k))) {
            let rotation = Rotation { bytes: 1, warm: true };
            let pages = (rotation, Pages::Small);
            let mut workload =
                TernaryWorkload::new(&pool, &parts, packing(&kernel), pages, 3).unwrap();
            workload.out.fill(f32::NAN);
            workload.sample(&pool, &kernel, Phase::of(&kernel.id().tile), 1).unwrap();
            let tokens = if kernel.id().tile.tokens == 1 { 1 } else { 3 };
            let out = &workload.out[..tokens * 128];
            // Scales of one give integers; those of blocks are no powers of two.
            let is_product = |y: &f32| match kernel {
                Candidate::Ternary(_) => y.fract() == 0.0,
                _ => y.is_finite(),
            };
            assert!(out.iter().all(is_product), "{}", kernel.id());
        }
    }
}
