//! Takes one sample: a few jobs with one kernel, by the whole pool, on weights as cold as they
//! will be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitnet_codegen::Phase;
use bitnet_profiles::{Layout, Shape};
use bitnet_runtime::Error;
use bitnet_runtime::kernels::{self, Kernel};
use bitnet_runtime::matmul::{Job, Scratch};
use bitnet_runtime::memory::Buffer;
use bitnet_runtime::pack::PackedMatrix;
use bitnet_runtime::threads::{Pool, SharedSlice};

use crate::Result;
use crate::random::Random;
use crate::tournament::Sample;

/// The share of a sample that a worker may have waited for its CPU.
const DELAY: f64 = 0.02;

/// Most copies of a job: enough to fill any cache with jobs that take longer than a barrier.
const MOST_COPIES: u64 = 4096;

/// The weights that are read between a matrix and its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Their bytes: a job's matrices are there so often that they take as many, and at least twice.
    pub bytes: u64,
    /// Whether a cache holds them all; if so they are read once before the clock starts.
    pub warm: bool,
}

/// The matrices of one job in one layout, as often as it takes, and what they are multiplied with.
pub(crate) struct Sampler<'a> {
    pool: &'a Pool,
    jobs: Vec<Job>,
    /// The job whose turn it is.
    next: usize,
    warm: bool,
    tokens: usize,
    quantised: Vec<i8>,
    scales: Vec<f32>,
    groups: Buffer,
    out: Vec<f32>,
}

impl<'a> Sampler<'a> {
    /// Packs matrices of random codes with the shapes `parts`, for prefills of `tokens` rows.
    pub(crate) fn new(
        pool: &'a Pool,
        parts: &[Shape],
        layout: Layout,
        rotation: Rotation,
        tokens: usize,
    ) -> Result<Self> {
        let any = |phase: Phase| {
            let fits = |k: &&Kernel| k.layout() == layout && Phase::of(&k.id().tile) == phase;
            kernels::builtin().iter().find(fits).copied().ok_or_else(|| {
                Error::Runtime(format!("no kernel that this CPU can run reads {layout}"))
            })
        };
        let (decode, prefill) = (any(Phase::Decode)?, any(Phase::Prefill)?);
        let mut first: Vec<PackedMatrix> = Vec::new();
        for &shape in parts {
            let packed = match first.iter().find(|part| part.shape() == shape) {
                Some(part) => copy(part, pool)?,
                None => pack_random(shape, layout, pool)?,
            };
            first.push(packed);
        }
        let first = Job::new(first, decode, prefill)?;
        let (cols, rows) = (first.cols(), first.rows());
        let copies = rotation.bytes.div_ceil(first.packed_bytes().max(1) as u64);
        let count = copies.clamp(2, MOST_COPIES) as usize;
        let mut jobs = vec![first];
        while jobs.len() < count {
            let parts = jobs[0].parts().iter().map(|part| copy(part, pool));
            jobs.push(Job::new(parts.collect::<Result<_>>()?, decode, prefill)?);
        }
        let mut random = Random::new(cols as u64);
        Ok(Self {
            pool,
            jobs,
            next: 0,
            warm: rotation.warm,
            tokens,
            quantised: (0..tokens * cols).map(|_| random.below(255) as u8 as i8).collect(),
            scales: vec![1.0; tokens],
            groups: Buffer::zeroed(0)?,
            out: vec![0.0; tokens * rows],
        })
    }

    /// Takes prefills of so many rows from now on, at most as many as the sampler was made for.
    pub(crate) fn set_tokens(&mut self, tokens: usize) {
        self.tokens = tokens.min(self.scales.len());
    }

    /// Times `count` jobs with `kernel`.
    pub(crate) fn sample(&mut self, kernel: &Kernel, count: usize) -> Result<Sample> {
        let begin = Instant::now();
        let phase = Phase::of(&kernel.id().tile);
        for job in &mut self.jobs {
            let (decode, prefill) = match phase {
                Phase::Decode => (*kernel, *job.prefill_kernel()),
                Phase::Prefill => (*job.decode_kernel(), *kernel),
            };
            job.set_kernels(decode, prefill)?;
        }
        // New scratch for every sample: where its pages lie is then noise and no bias.
        let scratch = (0..self.pool.threads())
            .map(|_| Ok(Mutex::new(Scratch::new(&self.jobs[..1])?)))
            .collect::<Result<Vec<Mutex<Scratch>>>>()?;
        let tokens = if phase == Phase::Decode { 1 } else { self.tokens };
        let groups_bytes = self.jobs[0].groups_bytes(tokens);
        if phase == Phase::Prefill && self.groups.len() < groups_bytes {
            self.groups = Buffer::zeroed(groups_bytes)?;
        }
        let quantised = &self.quantised[..tokens * self.jobs[0].cols()];
        let scales = &self.scales[..tokens];
        let groups = SharedSlice::new(&mut self.groups);
        let out = SharedSlice::new(&mut self.out);
        let untimed = if self.warm { self.jobs.len() } else { 1 };
        let (jobs, next) = (&self.jobs, self.next);
        let elapsed = Mutex::new(Duration::ZERO);
        let delay = AtomicU64::new(0);
        self.pool.run(|worker| {
            let mut scratch = scratch[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            let (mut start, mut waited) = (Instant::now(), 0);
            for i in 0..untimed + count {
                if i == untimed {
                    waited = run_delay();
                    worker.barrier();
                    start = Instant::now();
                }
                let job = &jobs[(next + i) % jobs.len()];
                match phase {
                    Phase::Decode => job.decode(worker, quantised, 1.0, &mut scratch, &out),
                    Phase::Prefill => {
                        let input = (quantised, scales);
                        job.prepare_and_prefill(worker, input, &groups, &mut scratch, &out);
                    }
                }
                worker.barrier();
            }
            if worker.index == 0 {
                *elapsed.lock().unwrap_or_else(PoisonError::into_inner) = start.elapsed();
            }
            delay.fetch_max(run_delay().saturating_sub(waited), Ordering::Relaxed);
        })?;
        self.next = (next + untimed + count) % self.jobs.len();
        let elapsed = elapsed.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Sample {
            us: elapsed.as_secs_f64() * 1e6 / count.max(1) as f64,
            cost: begin.elapsed().as_secs_f64(),
            disturbed: delay.into_inner() as f64 > DELAY * elapsed.as_nanos() as f64,
        })
    }
}

/// Nanoseconds that this thread was ready to run and did not, because another had its CPU; 0 where
/// the system does not say.
fn run_delay() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn copy(part: &PackedMatrix, pool: &Pool) -> Result<PackedMatrix> {
    Ok(part.copy(Buffer::zeroed(part.data().len())?, pool)?)
}

/// A matrix of random weights, made in the file's layout: every byte holds four codes 0, 1, 2.
fn pack_random(shape: Shape, layout: Layout, pool: &Pool) -> Result<PackedMatrix> {
    let valid: Vec<u8> =
        (0..=u8::MAX).filter(|byte| byte & (byte >> 1) & 0b0101_0101 == 0).collect();
    let mut random = Random::new(shape.weights() as u64);
    let file: Vec<u8> = (0..shape.weights() / 4)
        .map(|_| valid[random.below(valid.len() as u64) as usize])
        .collect();
    let buffer = Buffer::zeroed(layout.matrix_bytes(shape))?;
    let packed = PackedMatrix::pack(&file, shape, 1.0, layout, buffer, pool)?;
    Ok(packed.map_err(|_| Error::Runtime(format!("packing {layout} refused valid codes")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_rotate_and_every_kernel_can_be_timed() {
        let pool = Pool::new(2).unwrap();
        let parts = [Shape::new(96, 256), Shape::new(96, 256), Shape::new(33, 256)];
        let layouts: std::collections::BTreeSet<Layout> =
            kernels::builtin().iter().map(Kernel::layout).collect();
        for layout in layouts {
            let new = |bytes, warm| {
                Sampler::new(&pool, &parts, layout, Rotation { bytes, warm }, 32).unwrap()
            };
            let mut cold = new(1, false);
            assert_eq!(cold.jobs.len(), 2);
            let bytes = cold.jobs[0].packed_bytes() as u64;
            assert_eq!(new(10 * bytes, false).jobs.len(), 10);
            let mut warm = new(3 * bytes - 1, true);
            assert_eq!(warm.jobs.len(), 3);
            for kernel in kernels::builtin().iter().filter(|k| k.layout() == layout) {
                for (sampler, count) in [(&mut cold, 2), (&mut warm, 4)] {
                    let (next, untimed) = (sampler.next, if sampler.warm { 3 } else { 1 });
                    let sample = sampler.sample(kernel, count).unwrap();
                    assert!(sample.us > 0.0 && sample.cost * 1e6 >= sample.us);
                    assert_eq!(sampler.next, (next + untimed + count) % sampler.jobs.len());
                }
            }
        }
    }

    /// The matrices that are timed are really multiplied: a sampler that timed nothing would show.
    #[test]
    fn samples_multiply() {
        let pool = Pool::new(2).unwrap();
        let parts = [Shape::new(128, 128)];
        for kernel in kernels::builtin() {
            let rotation = Rotation { bytes: 1, warm: true };
            let mut sampler = Sampler::new(&pool, &parts, kernel.layout(), rotation, 3).unwrap();
            sampler.out.fill(f32::NAN);
            sampler.sample(kernel, 1).unwrap();
            let tokens = if kernel.tokens() == 1 { 1 } else { 3 };
            assert!(
                sampler.out[..tokens * 128].iter().all(|y| y.fract() == 0.0),
                "{}",
                kernel.id()
            );
        }
    }
}
