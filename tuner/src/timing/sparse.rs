//! Timing of activation sparsity: kernels that are given a list of rows or columns, at some
//! densities, against the dense kernel chosen for the job.
//!
//! Timed is [`rehearse::decode`] with and without [`Sparse`], so with all that making the list
//! takes, and with the gate beside up. The rows or columns needed are random, their number exact. A
//! few of them would soon lie in a cache, so the caches are emptied before a sample, and a sample
//! takes no matrix twice.

use std::time::Instant;

use bitnet_profiles::{GatherLayout, Layout, Shape};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::gather::{Along, GatherMatrix};
use bitnet_runtime::cpu::kernels::{self, GatherKernel, Kernel, verify};
use bitnet_runtime::cpu::matmul::Job;
use bitnet_runtime::cpu::memory::{Arena, Buffer, Pages};
use bitnet_runtime::cpu::packing::PackedMatrix;
use bitnet_runtime::cpu::sparse::Sparse;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::formats::Codes;
use bitnet_runtime::measure::rehearse::{self, Elapsed, Rounds};
use bitnet_runtime::random::Random;

use super::jobs;
use super::limits;
use super::present::{Candidate, Present};
use super::tournament::{self, Entrant, Entry, Sample};
use super::workload::{Rotation, random_codes, sample_of, take};
use crate::Result;
use crate::measure::{Excluded, SparseMeasurements, SparseTiming, SparseUnit, Timing, Why, joined};
use crate::plan::sparse::DENSITIES;
use crate::protocol::{Event, Reporter, SparseJob, SparseTask};

/// Repeats of each job, the others in between.
const REPEATS: usize = 3;

/// Factor over the best average time above which a kernel is not timed again.
const BEHIND: f64 = 1.1;

/// Most bytes read to empty the caches.
const MOST_FLUSHED: u64 = 256 << 20;

/// Time limit to verify a kernel, in seconds.
const VERIFY_SECONDS: f64 = 10.0;

/// Times the candidates.
pub(crate) fn measure(
    task: &SparseTask,
    (pool, present): (&Pool, &Present),
    reporter: &mut Reporter,
) -> Result<Vec<SparseUnit>> {
    let start = Instant::now();
    reporter.progress(1.0, "activation sparsity".into())?;
    let mut rotation = limits::rotation(task.model_bytes, reporter)?;
    // All jobs are in memory at once.
    rotation.bytes /= task.jobs.len().max(1) as u64;
    let mut jobs = Vec::new();
    for job in &task.jobs {
        let Candidate::Ternary(dense) = present.find(&job.dense)? else {
            let message = format!("{} is no ternary kernel", job.dense);
            return Err(Error::Runtime(message).into());
        };
        let kernels = sound(job, reporter)?;
        if !kernels.is_empty() {
            let workload = SparseWorkload::new(pool, &job.parts, dense, &kernels, rotation)?;
            jobs.push((job, kernels, workload, Vec::new()));
        }
    }
    for repeat in 0..REPEATS {
        for number in 0..jobs.len() {
            let left = jobs.len() * (REPEATS - repeat) - number;
            let spent = start.elapsed().as_secs_f64();
            let budget = (task.seconds - spent).max(0.0) / left as f64;
            let (job, kernels, workload, found) = &mut jobs[number];
            let found: &mut Vec<Vec<SparseTiming>> = found;
            let left = match found.last() {
                None => kernels.clone(),
                Some(before) => promising(kernels, before),
            };
            found.push(tournament(job, &left, workload, budget, (pool, reporter))?);
        }
    }
    Ok(jobs.into_iter().map(|(job, kernels, _, found)| unit(job, &kernels, &found)).collect())
}

/// Returns the kernels of a repeat that are timed again: the first, which is the default, and those
/// not far behind the best.
fn promising(kernels: &[GatherKernel], before: &[SparseTiming]) -> Vec<GatherKernel> {
    let mean = |kernel: &GatherKernel| {
        let own = before.iter().filter(|own| own.timing.kernel == *kernel.id());
        let ratios: Vec<f64> = own.map(|own| own.timing.ratio.min(1.0)).collect();
        (ratios.len() == DENSITIES.len()).then(|| ratios.iter().sum::<f64>())
    };
    let timed: Vec<(GatherKernel, f64)> =
        kernels.iter().filter_map(|kernel| Some((*kernel, mean(kernel)?))).collect();
    let best = timed.iter().map(|(_, mean)| *mean).fold(f64::INFINITY, f64::min);
    let is_left = |(i, (_, mean)): &(usize, (GatherKernel, f64))| *i == 0 || *mean <= BEHIND * best;
    timed.into_iter().enumerate().filter(is_left).map(|(_, (kernel, _))| kernel).collect()
}

/// Returns the candidates that pass verification; the others are reported.
fn sound(job: &SparseJob, reporter: &mut Reporter) -> Result<Vec<GatherKernel>> {
    let mut kernels = Vec::new();
    for id in &job.kernels {
        let kernel = GatherKernel::find(id)
            .ok_or_else(|| Error::Runtime(format!("{id} is not present, or not for this CPU")))?;
        reporter.begin(id, VERIFY_SECONDS)?;
        let cols = job.parts.first().map_or(1, |part| part.cols);
        match verify::lines(&kernel, cols)? {
            None => kernels.push(kernel),
            Some(verify::Wrong { kernel, found }) => {
                let excluded = Excluded { kernel, why: Why::Wrong, found };
                reporter.send(&Event::Excluded(excluded))?;
            }
        }
    }
    Ok(kernels)
}

/// Holds one repeat of a job: all kernels at all densities.
fn tournament(
    job: &SparseJob,
    kernels: &[GatherKernel],
    workload: &mut SparseWorkload,
    budget: f64,
    (pool, reporter): (&Pool, &mut Reporter),
) -> Result<Vec<SparseTiming>> {
    let candidates = kernels.len() * DENSITIES.len();
    reporter.begin(&job.dense, jobs::UNKNOWN)?;
    let one = workload.sample(pool, None, 1)?;
    let count = (jobs::SAMPLE.as_secs_f64() * 1e6 / one.us.max(1e-3)).ceil().clamp(1.0, 1e5);
    let allowed = VERIFY_SECONDS + jobs::HUNG * (one.cost + one.us * 1e-6 * count);
    let outcome = tournament::run_uncut(candidates, budget, |entrant| {
        let skipping = match entrant {
            Entrant::Baseline => None,
            Entrant::Candidate(c) => Some((kernels[c / DENSITIES.len()], c % DENSITIES.len())),
        };
        reporter.begin(skipping.as_ref().map_or(&job.dense, |(kernel, _)| kernel.id()), allowed)?;
        workload.sample(pool, skipping, count as usize)
    })?;
    let timing = |(c, entry): (usize, &Entry)| {
        let kernel = *kernels[c / DENSITIES.len()].id();
        let timing = tournament::timing(kernel, entry)?;
        Some(SparseTiming { density: DENSITIES[c % DENSITIES.len()], timing })
    };
    Ok(outcome.entries.iter().enumerate().filter_map(timing).collect())
}

/// Joins the repeats of a job.
fn unit(job: &SparseJob, kernels: &[GatherKernel], repeats: &[Vec<SparseTiming>]) -> SparseUnit {
    let mut timings = Vec::new();
    for kernel in kernels {
        for density in DENSITIES {
            let own = |t: &&SparseTiming| t.timing.kernel == *kernel.id() && t.density == density;
            let of = |repeat: &'_ Vec<SparseTiming>| repeat.iter().find(own).cloned();
            let all: Vec<SparseTiming> = repeats.iter().filter_map(of).collect();
            let all: Vec<&Timing> = all.iter().map(|t| &t.timing).collect();
            let timing = joined(&all, repeats.len());
            timings.extend(timing.map(|timing| SparseTiming { density, timing }));
        }
    }
    SparseUnit {
        role: job.role,
        parts: job.parts.clone(),
        measured: SparseMeasurements { dense: job.dense, default: job.kernels[0], timings },
    }
}

/// A job with rows or columns to skip.
struct SparseWorkload {
    jobs: Vec<Job>,
    /// The matrix to skip in, packed by rows or columns for every job; none while a job has it.
    gather: Vec<(GatherLayout, Vec<Option<GatherMatrix>>)>,
    /// Next job in turn.
    next: usize,
    warm: bool,
    /// Read before a sample, so that nothing else is in a cache.
    flush: Buffer,
    /// Activations for each density.
    quantised: Vec<Vec<i8>>,
    out: Vec<f32>,
}

impl SparseWorkload {
    fn new(
        pool: &Pool,
        parts: &[Shape],
        dense: Kernel,
        kernels: &[GatherKernel],
        rotation: Rotation,
    ) -> Result<Self> {
        let (layout, alike) = (dense.layout(), parts.windows(2).all(|pair| pair[0] == pair[1]));
        let fits = |part: &&Shape| alike && part.cols >= DENSITIES.len();
        let Some(&part) = parts.last().filter(fits) else {
            let message = format!("nothing can be skipped in a job of {parts:?}");
            return Err(Error::Runtime(message).into());
        };
        let along = kernels.first().map_or(Along::Rows, GatherKernel::along);
        let prefill = kernels::builtin().iter().find(|k| k.layout() == layout && k.tokens() > 1);
        let prefill = *prefill.ok_or_else(|| {
            Error::Runtime(format!("no kernel that this CPU can run reads {layout}"))
        })?;
        let (codes, quantised) = matrix(part, along);
        let bytes: usize = parts.iter().map(|&part| layout.matrix_bytes(part)).sum();
        let count = rotation.copies(bytes).max(2);
        let mut layouts: Vec<GatherLayout> = kernels.iter().map(GatherKernel::layout).collect();
        layouts.sort_unstable();
        layouts.dedup();
        let of_lines: usize = layouts.iter().map(|&l| along.matrix_bytes(l, part)).sum();
        let buffers = (parts.len() + layouts.len()) * count;
        let mut arena = Arena::with((bytes + of_lines) * count, buffers, Pages::Huge)?;
        let mut jobs: Vec<Job> = Vec::new();
        let mut gather: Vec<_> = layouts.into_iter().map(|layout| (layout, Vec::new())).collect();
        for _ in 0..count {
            let matrices: Result<Vec<PackedMatrix>> = match jobs.first() {
                Some(job) => job.parts().iter().map(|part| copy(part, &mut arena, pool)).collect(),
                None => parts.iter().map(|&p| pack(&codes, p, layout, &mut arena, pool)).collect(),
            };
            jobs.push(Job::new(matrices?, dense, prefill)?);
            for (layout, gather) in &mut gather {
                let buffer = take(&mut arena, along.matrix_bytes(*layout, part))?;
                let gather: &mut Vec<Option<GatherMatrix>> = gather;
                let packed = match gather.first() {
                    Some(Some(packed)) => packed.copy(buffer, pool)?,
                    _ => {
                        let codes = Codes::i2_s(&codes, part);
                        GatherMatrix::pack(codes, 1.0, (*layout, along), buffer, pool)?
                            .map_err(|_| refused(layout))?
                    }
                };
                gather.push(Some(packed));
            }
        }
        let flushed = if rotation.warm { 0 } else { (2 * limits::l3()).min(MOST_FLUSHED) };
        let mut flush = Buffer::zeroed(flushed as usize)?;
        pool.fill(&mut flush, 1)?;
        let out = vec![0.0; jobs[0].rows()];
        Ok(Self { jobs, gather, next: 0, warm: rotation.warm, flush, quantised, out })
    }

    /// Times `count` jobs, or as many as there are: with a kernel and the index of a density, or
    /// dense.
    fn sample(
        &mut self,
        pool: &Pool,
        skipping: Option<(GatherKernel, usize)>,
        count: usize,
    ) -> Result<Sample> {
        let begin = Instant::now();
        let density = skipping.map_or(DENSITIES.len() - 1, |(_, density)| density);
        if let Some((kernel, _)) = skipping {
            let own = self.gather.iter_mut().find(|(layout, _)| *layout == kernel.layout());
            let own = own.map_or(&mut [][..], |(_, gather)| gather);
            for (job, gather) in self.jobs.iter_mut().zip(own) {
                let Some(matrix) = gather.take() else { continue };
                job.set_sparse(Some(Sparse::new(matrix, kernel, f64::INFINITY)?))?;
            }
        }
        let (count, elapsed) = self.run(pool, density, count)?;
        for (i, job) in self.jobs.iter_mut().enumerate() {
            let Some(gather) = job.set_sparse(None)?.map(Sparse::into_lines) else { continue };
            let own = self.gather.iter_mut().find(|(layout, _)| *layout == gather.layout());
            if let Some((_, own)) = own {
                own[i] = Some(gather);
            }
        }
        Ok(sample_of(begin, count, elapsed))
    }

    /// Runs jobs as they are with the activations of a density. Returns their number, and their
    /// time.
    fn run(&mut self, pool: &Pool, density: usize, count: usize) -> Result<(usize, Elapsed)> {
        // From memory, the first of them is not timed; the round before it empties the caches.
        let (untimed, timed) = match self.warm {
            true => (self.jobs.len(), count),
            false => (2, count.min(self.jobs.len() - 1)),
        };
        let rounds = Rounds { first: self.next, untimed, timed };
        let (input, out) = ((&self.quantised[density][..], &[1.0][..]), &mut self.out);
        let elapsed = rehearse::decode(pool, &self.jobs[..], input, &self.flush, rounds, out)?;
        self.next = rounds.next(self.jobs.len());
        Ok((timed, elapsed))
    }
}

/// Returns the codes of a job's matrices, as in a file, and for every density activations that need
/// as many rows or columns. Columns are needed where the activation is not 0. For rows each density
/// has a column of the gate that opens as many, and is the only one with an activation that is not
/// 0: kernels take the same time for all numbers.
fn matrix(shape: Shape, along: Along) -> (Vec<u8>, Vec<Vec<i8>>) {
    let Shape { rows, cols } = shape;
    let mut codes = random_codes(shape);
    let mut random = Random::new(rows as u64);
    let mut quantised = Vec::new();
    for (number, density) in DENSITIES.into_iter().enumerate() {
        let mut own = vec![0; cols];
        match along {
            Along::Rows => {
                own[number] = i8::MAX;
                for (row, open) in chosen(rows, density, &mut random).into_iter().enumerate() {
                    set_code(&mut codes, row * cols + number, if open { 2 } else { 0 });
                }
            }
            Along::Columns => {
                for (q, needed) in own.iter_mut().zip(chosen(cols, density, &mut random)) {
                    *q = if needed { 1 + random.below(127) as i8 } else { 0 };
                }
            }
        }
        quantised.push(own);
    }
    (codes, quantised)
}

/// Chooses the share `density` of `n` at random, exactly.
fn chosen(n: usize, density: f64, random: &mut Random) -> Vec<bool> {
    let mut all = vec![false; n];
    let mut wanted = (density * n as f64).round() as u64;
    for (i, one) in all.iter_mut().enumerate() {
        *one = random.below((n - i) as u64) < wanted;
        wanted -= u64::from(*one);
    }
    all
}

/// Sets a code of I2_S in the file's layout: blocks of 128 codes in 32 bytes, quarter by quarter.
fn set_code(file: &mut [u8], weight: usize, code: u8) {
    let (block, in_block) = (weight / 128, weight % 128);
    let shift = 6 - 2 * (in_block / 32);
    let byte = &mut file[32 * block + in_block % 32];
    *byte = *byte & !(3 << shift) | code << shift;
}

fn refused(layout: impl std::fmt::Display) -> Error {
    Error::Runtime(format!("packing {layout} refused valid codes"))
}

fn copy(part: &PackedMatrix, arena: &mut Arena, pool: &Pool) -> Result<PackedMatrix> {
    Ok(part.copy(take(arena, part.data().len())?, pool)?)
}

fn pack(
    codes: &[u8],
    shape: Shape,
    layout: Layout,
    arena: &mut Arena,
    pool: &Pool,
) -> Result<PackedMatrix> {
    let buffer = take(arena, layout.matrix_bytes(shape))?;
    let packed = PackedMatrix::pack(Codes::i2_s(codes, shape), 1.0, layout, buffer, pool)?;
    Ok(packed.map_err(|_| refused(layout))?)
}

#[cfg(test)]
mod tests {

    use bitnet_profiles::KernelId;

    use super::*;

    #[test]
    fn exactly_so_many_are_chosen() {
        let mut random = Random::new(7);
        for (n, density, expected) in [(0, 0.5, 0), (10, 0.25, 3), (10, 0.75, 8), (1000, 0.1, 100)]
        {
            let all = chosen(n, density, &mut random);
            assert_eq!((all.len(), all.iter().filter(|one| **one).count()), (n, expected));
        }
    }

    /// As many rows or columns are needed, and skipped, as the density says, from memory and from a
    /// cache.
    #[test]
    fn rows_and_columns_are_skipped_as_the_density_says() {
        let pool = Pool::new(2).unwrap();
        let dense = *kernels::builtin().iter().rev().find(|k| k.tokens() == 1).unwrap();
        for along in [Along::Rows, Along::Columns] {
            let kernels: Vec<GatherKernel> =
                GatherKernel::builtin().filter(|kernel| kernel.along() == along).collect();
            let shape = Shape::new(400, 256);
            let (parts, count) = match along {
                Along::Rows => (vec![shape; 2], 400),
                Along::Columns => (vec![shape], 256),
            };
            for warm in [false, true] {
                let rotation = Rotation { bytes: 1, warm };
                let mut workload =
                    SparseWorkload::new(&pool, &parts, dense, &kernels, rotation).unwrap();
                assert_eq!(workload.jobs.len(), 2);
                for kernel in &kernels {
                    for (number, density) in DENSITIES.into_iter().enumerate() {
                        workload.out.fill(f32::NAN);
                        let sample = workload.sample(&pool, Some((*kernel, number)), 3).unwrap();
                        assert!(sample.us > 0.0 && workload.out.iter().all(|y| y.is_finite()));
                        let needed = (density * f64::from(count)).round() as usize;
                        let found = match along {
                            Along::Rows => workload.out[..400].iter().filter(|y| **y > 0.0).count(),
                            Along::Columns => {
                                workload.quantised[number].iter().filter(|q| **q != 0).count()
                            }
                        };
                        assert_eq!(found, needed, "{} {density}", kernel.id());
                        // Up is 0 where the gate is closed, and only then: its column is not.
                        if along == Along::Rows {
                            let open = |y: &&f32| **y != 0.0;
                            assert_eq!(workload.out[400..].iter().filter(open).count(), needed);
                        }
                    }
                }
                let before = workload.next;
                workload.sample(&pool, None, 1).unwrap();
                let untimed = 2;
                assert_eq!(workload.next, (before + untimed + 1) % 2);
                // All matrices are back.
                let mut all = workload.gather.iter().flat_map(|(_, gather)| gather);
                assert!(all.all(Option::is_some));
            }
        }
    }

    #[test]
    fn kernels_far_behind_are_not_timed_again_but_for_the_default() {
        let kernels: Vec<GatherKernel> = GatherKernel::builtin().take(3).collect();
        let [default, near, far] = kernels[..] else { return };
        let timings = |found: &[(GatherKernel, f64)]| -> Vec<SparseTiming> {
            let of = |&(kernel, ratio): &(GatherKernel, f64)| {
                let timing = Timing {
                    kernel: *kernel.id(),
                    samples: 6,
                    min_us: ratio,
                    median_us: ratio,
                    mad_us: 0.0,
                    ratio,
                    half_width: 0.01,
                    finalist: true,
                };
                DENSITIES.map(|density| SparseTiming { density, timing: timing.clone() })
            };
            found.iter().flat_map(of).collect()
        };
        let left = |found: &[(GatherKernel, f64)]| -> Vec<KernelId> {
            promising(&kernels, &timings(found)).iter().map(|kernel| *kernel.id()).collect()
        };
        let ids = |kernels: &[GatherKernel]| -> Vec<KernelId> {
            kernels.iter().map(|kernel| *kernel.id()).collect()
        };
        let all = [(default, 0.9), (near, 0.54), (far, 0.56)];
        assert_eq!(left(&all), ids(&[default, near, far]));
        let all = [(default, 0.9), (near, 0.5), (far, 0.56)];
        assert_eq!(left(&all), ids(&[default, near]));
        // What there was no time for.
        assert_eq!(left(&all[..1]), ids(&[default]));
    }
}
