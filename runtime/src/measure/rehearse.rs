//! Rehearsals: the parts of the forward pass (products, logits, attention) run alone, round after
//! round, by all workers of a pool. The tuner times kernels this way, and tests multiply this way.
//!
//! The rehearsed functions are sound only where barriers separate their calls. So they are private
//! to this crate, and the barriers are here: one after each round, and those within a product. A
//! caller hands over matrices, inputs and buffers, the latter borrowed exclusively until all
//! workers are done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::arch::config::Config;
use crate::cpu::attention::{self, At, Attention};
use crate::cpu::blocks::{self, BlockJob};
use crate::cpu::kernels::{AttentionKernel, HeadKernel, VectorOps};
use crate::cpu::kv_cache::{KvCache, KvType};
use crate::cpu::matmul::{self, Job};
use crate::cpu::memory::Buffer;
use crate::cpu::rows::Rows;
use crate::cpu::threads::{Pool, SharedSlice, Worker};
use crate::numerics::{CHUNK, Softmax};
use crate::{Error, Result};

/// Rounds of a rehearsal. Each takes the next of the things rehearsed (jobs, copies of a head,
/// layers), and after the last of them the first again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Index of the thing that the first round takes.
    pub first: usize,
    /// Rounds before the clock starts.
    pub untimed: usize,
    /// Rounds that are timed.
    pub timed: usize,
}

impl Rounds {
    /// One round, with the first thing: for callers that want its result.
    pub const ONE: Self = Self { first: 0, untimed: 0, timed: 1 };

    /// Returns the index of the thing, of so many, that follows the last round's; 0 of none.
    #[must_use]
    pub fn next(&self, things: usize) -> usize {
        (self.first + self.untimed + self.timed).checked_rem(things).unwrap_or(0)
    }
}

/// Time of the timed rounds, barriers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed {
    /// Time from the barrier before the first to that after the last, by the clock of worker 0.
    pub time: Duration,
    /// Longest time that a worker was ready to run meanwhile and did not, because another thread
    /// had its CPU; zero where the system does not report it.
    pub delay: Duration,
}

/// Jobs of one kind.
#[derive(Debug, Clone, Copy)]
pub enum Jobs<'a> {
    /// Of matrices with one scale; activations have one scale a token.
    Ternary(&'a [Job]),
    /// Of matrices with block scales; activations have one for each block of a token.
    Blocks(&'a [BlockJob]),
}

impl<'a> From<&'a [Job]> for Jobs<'a> {
    fn from(jobs: &'a [Job]) -> Self {
        Self::Ternary(jobs)
    }
}

impl<'a> From<&'a [BlockJob]> for Jobs<'a> {
    fn from(jobs: &'a [BlockJob]) -> Self {
        Self::Blocks(jobs)
    }
}

/// Size of a job.
struct Size {
    rows: usize,
    cols: usize,
    /// Scales of a token's activations.
    scales: usize,
    /// Bytes of workspace.
    workspace: usize,
}

/// Scratch space of a worker for jobs of either kind.
struct Scratch {
    ternary: matmul::Scratch,
    blocks: blocks::Scratch,
}

impl Jobs<'_> {
    /// Returns the sizes of the jobs, for so many tokens and threads.
    fn sizes(self, tokens: usize, threads: usize) -> Vec<Size> {
        let ternary = |job: &Job| Size {
            rows: job.rows(),
            cols: job.cols(),
            scales: 1,
            workspace: if tokens > 1 { job.workspace_bytes(tokens, threads) } else { 0 },
        };
        let blocks = |job: &BlockJob| Size {
            rows: job.rows(),
            cols: job.cols(),
            scales: job.cols() / job.width(),
            workspace: if tokens > 1 { job.workspace_bytes(tokens) } else { 0 },
        };
        match self {
            Self::Ternary(jobs) => jobs.iter().map(ternary).collect(),
            Self::Blocks(jobs) => jobs.iter().map(blocks).collect(),
        }
    }

    fn scratch(self) -> Result<Scratch> {
        let (ternary, blocks) = match self {
            Self::Ternary(jobs) => (jobs, &[][..]),
            Self::Blocks(jobs) => (&[][..], jobs),
        };
        Ok(Scratch {
            ternary: matmul::Scratch::new(ternary)?,
            blocks: blocks::Scratch::new(blocks)?,
        })
    }
}

/// Multiplies one token, `q` of `[cols]` with its scales, with one of `jobs` in each round, into the first
/// elements of `out`. Where `flush` is not empty the first round reads it instead, so that caches hold
/// nothing else.
///
/// # Errors
/// [`Error::Runtime`] when there is no job, one has other columns than `q` or other scales, or more rows than
/// `out`, the system refuses memory, or a worker panicked.
pub fn decode<'a>(
    pool: &Pool,
    jobs: impl Into<Jobs<'a>>,
    (q, scales): (&[i8], &[f32]),
    flush: &[u8],
    rounds: Rounds,
    out: &mut [f32],
) -> Result<Elapsed> {
    let jobs = jobs.into();
    let sizes = jobs.sizes(1, pool.threads());
    check(&sizes, (q.len(), scales.len()), 1, out.len())?;
    let scratch = for_each_worker(pool, || jobs.scratch())?;
    let out = SharedSlice::new(out);
    rehearse(pool, &scratch, rounds, |worker, scratch, i| {
        if i == 0 && !flush.is_empty() {
            let share = &flush[worker.share(flush.len())];
            let sum = share.iter().step_by(64).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            std::hint::black_box(sum);
            return;
        }
        let job = (rounds.first + i) % sizes.len();
        // SAFETY: every worker calls it with the same values, once in a round, and `rehearse` puts a
        // barrier after each; nothing else of a round claims work or reaches `out`, which is borrowed
        // exclusively.
        unsafe {
            match jobs {
                Jobs::Ternary(jobs) => {
                    jobs[job].decode(worker, q, scales[0], &mut scratch.ternary, &out);
                }
                Jobs::Blocks(jobs) => {
                    jobs[job].decode(worker, (q, scales), &mut scratch.blocks, &out);
                }
            }
        }
    })
}

/// Multiplies some tokens, `q` of `[tokens][cols]` with the scales of each, with one of `jobs` in each round,
/// into the first elements of `out`, `[tokens][rows]`. `workspace` is at least as long as
/// [`Job::workspace_bytes`] or [`BlockJob::workspace_bytes`] asks.
///
/// # Errors
/// As [`decode`], and when there is no token or too little workspace.
pub fn prefill<'a>(
    pool: &Pool,
    jobs: impl Into<Jobs<'a>>,
    (q, scales): (&[i8], &[f32]),
    workspace: &mut Buffer,
    rounds: Rounds,
    out: &mut [f32],
) -> Result<Elapsed> {
    let jobs = jobs.into();
    let each = jobs.sizes(1, pool.threads()).first().map_or(1, |size| size.scales);
    let tokens = scales.len() / each;
    let sizes = jobs.sizes(tokens, pool.threads());
    check(&sizes, (q.len(), scales.len()), tokens, out.len())?;
    let needed = sizes.iter().map(|size| size.workspace).max();
    if let Some(needed) = needed.filter(|&needed| workspace.len() < needed) {
        return Err(Error::Runtime(format!(
            "a workspace of {} bytes for {tokens} tokens, which take {needed}",
            workspace.len()
        )));
    }
    let scratch = for_each_worker(pool, || jobs.scratch())?;
    let (workspace, out) = (SharedSlice::new(workspace), SharedSlice::new(out));
    rehearse(pool, &scratch, rounds, |worker, scratch, i| {
        let (job, input) = ((rounds.first + i) % sizes.len(), (q, scales));
        // SAFETY: every worker calls it with the same values, once in a round, and `rehearse` puts a
        // barrier after each; nothing else of a round claims work or reaches `workspace` and `out`, which
        // are borrowed exclusively.
        unsafe {
            match jobs {
                Jobs::Ternary(jobs) => {
                    jobs[job].prefill(worker, input, &workspace, &mut scratch.ternary, &out);
                }
                Jobs::Blocks(jobs) => {
                    jobs[job].prefill(worker, input, &workspace, &mut scratch.blocks, &out);
                }
            }
        }
    })
}

/// Checks that jobs of these sizes can multiply so many activations with so many scales, of so many tokens,
/// into so many outputs.
fn check(
    jobs: &[Size],
    (activations, scales): (usize, usize),
    tokens: usize,
    outputs: usize,
) -> Result<()> {
    let fits = |job: &Size| {
        tokens.checked_mul(job.cols) == Some(activations)
            && tokens.checked_mul(job.scales) == Some(scales)
            && tokens.checked_mul(job.rows).is_some_and(|needed| needed <= outputs)
    };
    if jobs.is_empty() || tokens == 0 {
        return Err(Error::Runtime(format!("{} jobs and {tokens} tokens: none", jobs.len())));
    }
    match jobs.iter().find(|job| !fits(job)) {
        None => Ok(()),
        Some(job) => Err(Error::Runtime(format!(
            "a job of {} rows and {} columns with {} scales a token cannot multiply {activations} \
             activations with {scales} scales, of {tokens} tokens, into {outputs} outputs",
            job.rows, job.cols, job.scales
        ))),
    }
}

/// Computes the logits of `tokens` tokens, `x` of `[tokens][cols]`, with one of `heads` in each round, rows in
/// blocks of the kernel's format, into `out`, `[tokens][rows]`.
///
/// # Errors
/// [`Error::Runtime`] when there is no head, one has other rows than `out` or other columns than `x`, the
/// kernel does not take so many tokens, the system refuses memory, or a worker panicked.
pub fn logits(
    pool: &Pool,
    kernel: &HeadKernel,
    heads: &[Buffer],
    (x, tokens): (&[f32], usize),
    rounds: Rounds,
    out: &mut [f32],
) -> Result<Elapsed> {
    let refused = |what: String| Error::Runtime(format!("{}: {what}", kernel.id()));
    if !(1..=kernel.tokens()).contains(&tokens) || heads.is_empty() {
        return Err(refused(format!("{tokens} tokens and {} heads", heads.len())));
    }
    let (cols, rows) = (x.len() / tokens, out.len() / tokens);
    let whole = x.len() == tokens * cols && out.len() == tokens * rows;
    let bytes = rows.checked_mul(kernel.format().row_bytes(cols));
    if let Some(head) = heads.iter().find(|head| !whole || Some(head.len()) != bytes) {
        return Err(refused(format!(
            "a head of {} bytes for {} inputs and {} logits of {tokens} tokens",
            head.len(),
            x.len(),
            out.len()
        )));
    }
    let prepared = for_each_worker(pool, || Buffer::zeroed(kernel.prepared_bytes(cols)))?;
    let out = SharedSlice::new(out);
    rehearse(pool, &prepared, rounds, |worker, prepared, i| {
        let head = &heads[(rounds.first + i) % heads.len()];
        // SAFETY: every worker calls it with the same values, once in a round, and `rehearse` puts a
        // barrier after each; nothing else of a round reaches `out`, which is borrowed exclusively.
        unsafe { kernel.run_share(worker, (head, 1.0), (x, tokens), prepared, &out) };
    })
}

/// Attention over made-up queries, keys and values, in as many layers as asked for, so that as much of
/// their cache is cold as in a model.
#[derive(Debug)]
pub struct AttentionLayers {
    config: Config,
    ops: VectorOps,
    depth: usize,
    tokens: usize,
    kv: KvCache,
    qkv: Vec<f32>,
    out: Vec<f32>,
    partial: Vec<f32>,
    partial_state: Vec<Softmax>,
}

impl AttentionLayers {
    /// Makes the layers for up to `tokens` tokens that follow `depth` others.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new(
        config: &Config,
        (kv_type, ops): (KvType, VectorOps),
        layers: usize,
        (depth, tokens): (usize, usize),
    ) -> Result<Self> {
        let config = Config { layers, ..config.clone() };
        let context = depth + tokens;
        let mut kv = KvCache::new(&config, context, kv_type)?;
        let width = config.head_dim;
        // Numbers without a pattern, of the size that norms leave.
        let made_up = |i: usize| (i * 7 % 31) as f32 / 16.0 - 1.0;
        let row: Vec<f32> = (0..width).map(made_up).collect();
        let shared = kv.share();
        for layer in 0..layers {
            for head in 0..config.kv_heads {
                for position in 0..context {
                    // SAFETY: there is one thread.
                    unsafe { shared.store(&ops, (layer, head, position), &row, &row) };
                }
            }
        }
        let chunks = config.heads * context.div_ceil(CHUNK);
        Ok(Self {
            qkv: (0..tokens * (config.q_dim() + 2 * config.kv_dim())).map(made_up).collect(),
            out: vec![0.0; tokens * config.q_dim()],
            partial: vec![0.0; chunks * width],
            partial_state: vec![Softmax { max: 0.0, sum: 0.0 }; chunks],
            config,
            ops,
            depth,
            tokens,
            kv,
        })
    }

    /// Number of layers of the cache.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.config.layers
    }

    /// Bytes of keys and values that one more token reads in one layer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.kv.bytes(self.depth + 1) / self.config.layers
    }

    /// Attends, in one of the layers in each round, with one token (`tokens` 1, its chunks not
    /// merged) or several (at most as many as there is room for).
    ///
    /// # Errors
    /// [`Error::Runtime`] when there is no layer, the system refuses memory or a worker panicked.
    pub fn attend(
        &mut self,
        pool: &Pool,
        kernel: &AttentionKernel,
        tokens: usize,
        rounds: Rounds,
    ) -> Result<Elapsed> {
        let config = &self.config;
        if config.layers == 0 || self.tokens == 0 {
            let (layers, room) = (config.layers, self.tokens);
            return Err(Error::Runtime(format!("{layers} layers and room for {room} tokens")));
        }
        let scratch = for_each_worker(pool, || attention::Scratch::new(kernel, config))?;
        let kv = [self.kv.share()];
        let queries = Rows::new(&mut self.qkv, config.q_dim() + 2 * config.kv_dim());
        let out = Rows::new(&mut self.out, config.group() * config.head_dim);
        let partial = Rows::new(&mut self.partial, config.head_dim);
        let partial_state = SharedSlice::new(&mut self.partial_state);
        let positions = self.depth..self.depth + tokens.clamp(1, self.tokens);
        let at: Vec<At> = positions.map(|position| At::causal(0, position)).collect();
        let attention = Attention {
            kernel,
            ops: &self.ops,
            config,
            at: &at,
            queries: &queries,
            kv: &kv,
            out: &out,
            partial: &partial,
            partial_state: &partial_state,
        };
        rehearse(pool, &scratch, rounds, |worker, scratch, i| {
            let layer = (rounds.first + i) % config.layers;
            // SAFETY: every worker calls it with the same values, once in a round, and `rehearse` puts a
            // barrier after each. Nothing in a run writes queries or cache, and nothing else of a round
            // reaches the outputs: all of them are borrowed exclusively.
            unsafe {
                if attention.at.len() == 1 {
                    attention.attend_one(worker, scratch, layer);
                } else {
                    attention.attend_many(worker, scratch, layer);
                }
            }
        })
    }
}

/// Makes one value for every worker of a pool.
fn for_each_worker<S>(pool: &Pool, make: impl Fn() -> Result<S>) -> Result<Vec<Mutex<S>>> {
    (0..pool.threads()).map(|_| make().map(Mutex::new)).collect()
}

/// Runs `round(worker, scratch, i)` on every worker for each `i` of `rounds`, from 0 on, with a barrier after
/// each, and times those that are to be timed.
fn rehearse<S: Send>(
    pool: &Pool,
    scratch: &[Mutex<S>],
    rounds: Rounds,
    round: impl Fn(&Worker<'_>, &mut S, usize) + Sync,
) -> Result<Elapsed> {
    let Rounds { untimed, timed, .. } = rounds;
    let time = Mutex::new(Duration::ZERO);
    let delay = AtomicU64::new(0);
    pool.run(|worker| {
        let mut scratch = scratch[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
        let (mut start, mut waited) = (Instant::now(), 0);
        for i in 0..untimed + timed {
            if i == untimed {
                waited = run_delay();
                worker.barrier();
                start = Instant::now();
            }
            round(worker, &mut scratch, i);
            worker.barrier();
        }
        if worker.index == 0 {
            *time.lock().unwrap_or_else(PoisonError::into_inner) = start.elapsed();
        }
        delay.fetch_max(run_delay().saturating_sub(waited), Ordering::Relaxed);
    })?;
    let time = time.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Elapsed { time, delay: Duration::from_nanos(delay.into_inner()) })
}

/// Returns the nanoseconds that this thread was ready to run and did not, because another had its
/// CPU; 0 where the system does not report it.
fn run_delay() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::{HeadFormat, Isa, Layout, Shape};

    use super::*;
    use crate::cpu::kernels::{self, Kernel};
    use crate::cpu::packing::PackedMatrix;
    use crate::cpu::reference;
    use crate::formats::{Codes, i2_s};
    use crate::random::Random;

    const COLS: usize = 256;

    /// Makes two jobs of two matrices each, of `rows` rows in all, and returns their codes too.
    fn jobs([rows, cols]: [usize; 2], prefill: Kernel) -> (Vec<Job>, Vec<Vec<u8>>) {
        let pool = Pool::new(2).unwrap();
        let layout = prefill.layout();
        let is_decode = |kernel: &&Kernel| kernel.layout() == layout && kernel.tokens() == 1;
        let decode = *kernels::builtin().iter().rfind(is_decode).unwrap();
        let mut random = Random::new(1);
        let job = |_| {
            let mut all = Vec::new();
            let pack = |rows: usize| {
                let shape = Shape::new(rows, cols);
                let codes: Vec<u8> = (0..shape.weights()).map(|_| random.below(3) as u8).collect();
                let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
                let file = i2_s::encode(&codes);
                all.extend(codes);
                let file = Codes::i2_s(&file, shape);
                PackedMatrix::pack(file, 1.0, layout, buffer, &pool).unwrap().unwrap()
            };
            let parts = [rows - rows / 3, rows / 3].map(pack).into();
            (Job::new(parts, decode, prefill).unwrap(), all)
        };
        (0..2).map(job).unzip()
    }

    /// Returns kernels for many tokens: the last of each layout that this CPU runs, and one that
    /// expands.
    fn prefill_kernels() -> Vec<Kernel> {
        let all = kernels::builtin().iter().rev().filter(|kernel| kernel.tokens() > 1);
        let mut kernels: Vec<Kernel> = Vec::new();
        for kernel in all {
            let kind = |kernel: &Kernel| (kernel.layout(), kernel.expands());
            if kernels.iter().all(|other| kind(other) != kind(kernel)) {
                kernels.push(*kernel);
            }
        }
        assert!(kernels.iter().any(Kernel::expands));
        kernels
    }

    /// Rounds follow each other with nothing but a barrier between them, and the last one's products are
    /// those of its job: from weights that are claimed (of a megabyte) and shared out, packed and expanded.
    #[test]
    fn every_round_multiplies_its_job() {
        let rounds = Rounds { first: 1, untimed: 2, timed: 3 };
        assert_eq!((rounds.next(2), rounds.next(0)), (0, 0));
        for kernel in prefill_kernels() {
            for ([rows, cols], tokens) in
                [([6000, 1024], 1), ([120, 256], 1), ([120, 256], 3), ([120, 256], 100)]
            {
                let (jobs, codes) = jobs([rows, cols], kernel);
                let mut random = Random::new(2);
                let q: Vec<i8> =
                    (0..tokens * cols).map(|_| random.below(255) as u8 as i8).collect();
                let wanted = reference::matmul(&codes[1], &q, cols);
                for threads in [1, 2, 3] {
                    let pool = Pool::new(threads).unwrap();
                    let mut out = vec![f32::NAN; tokens * rows];
                    if tokens == 1 {
                        let input = (&q[..], &[1.0][..]);
                        decode(&pool, &jobs[..], input, &[1; 999], rounds, &mut out).unwrap();
                    } else {
                        let bytes = jobs[0].workspace_bytes(tokens, threads);
                        let mut workspace = Buffer::zeroed(bytes).unwrap();
                        let scales = vec![1.0; tokens];
                        let input = (&q[..], &scales[..]);
                        prefill(&pool, &jobs[..], input, &mut workspace, rounds, &mut out).unwrap();
                    }
                    let same = out.iter().zip(&wanted).all(|(&y, &dot)| y == dot as f32);
                    assert!(same, "{}, {rows} {tokens}, {threads} threads", kernel.id());
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let pool = Pool::new(2).unwrap();
        let kernel = Kernel::direct(Layout::I2sT16, Isa::best()).unwrap();
        let (jobs, _) = jobs([96, COLS], kernel);
        let (q, scales) = ([1; 2 * COLS], [1.0; 2]);
        let mut out = vec![0.0; 2 * jobs[0].rows()];
        let one = Rounds::ONE;
        let mut small = Buffer::zeroed(1).unwrap();
        let many = |q: &[i8], workspace: &mut Buffer, out: &mut [f32]| {
            prefill(&pool, &jobs[..], (q, &scales), workspace, one, out)
        };
        let needed = jobs[0].workspace_bytes(2, 2);
        let mut enough = Buffer::zeroed(needed).unwrap();
        many(&q, &mut enough, &mut out).unwrap();
        assert!(many(&q, &mut small, &mut out).is_err() == (needed > 1));
        assert!(many(&q[1..], &mut enough, &mut out).is_err());
        assert!(many(&q, &mut enough, &mut out[1..]).is_err());
        assert!(prefill(&pool, &jobs[..], (&[], &[]), &mut enough, one, &mut out).is_err());
        let none: &[Job] = &[];
        assert!(decode(&pool, none, (&q[..COLS], &[1.0]), &[], one, &mut out).is_err());
        assert!(decode(&pool, &jobs[..], (&q[1..COLS], &[1.0]), &[], one, &mut out).is_err());
        assert!(decode(&pool, &jobs[..], (&q[..COLS], &[1.0; 2]), &[], one, &mut out).is_err());
        let head = HeadKernel::default(HeadFormat::F32, Isa::best()).unwrap();
        let heads = [Buffer::zeroed(10 * 4 * 64).unwrap()];
        let mut give = |x: &[f32], tokens: usize, rows: usize| {
            logits(&pool, &head, &heads, (x, tokens), one, &mut out[..rows])
        };
        give(&[0.0; 64], 1, 10).unwrap();
        for (cols, tokens, rows) in [(64, 1, 11), (63, 1, 10), (64, 0, 10), (64, 2, 10)] {
            assert!(give(&[0.0; 64][..cols], tokens, rows).is_err(), "{cols} {tokens} {rows}");
        }
    }

    /// Every head kernel, over rounds that write the same logits, gives those of one thread.
    #[test]
    fn logits_do_not_depend_on_threads() {
        const VOCAB: usize = 333;
        for kernel in HeadKernel::builtin() {
            let width = kernel.format().row_bytes(COLS);
            let head = |_| {
                let mut head = Buffer::zeroed(VOCAB * width).unwrap();
                // A small number in every format.
                head.fill(0x3c);
                head
            };
            let heads: Vec<Buffer> = (0..2).map(head).collect();
            let tokens = kernel.tokens();
            let x: Vec<f32> = (0..tokens * COLS).map(|i| (i % 17) as f32 - 8.0).collect();
            let outputs = [1, 3].map(|threads| {
                let pool = Pool::new(threads).unwrap();
                let mut out = vec![f32::NAN; tokens * VOCAB];
                let rounds = Rounds { first: 0, untimed: 1, timed: 4 };
                logits(&pool, &kernel, &heads, (&x, tokens), rounds, &mut out).unwrap();
                out.iter().map(|y| y.to_bits()).collect::<Vec<u32>>()
            });
            assert!(outputs[0].iter().all(|&y| f32::from_bits(y).is_finite()), "{}", kernel.id());
            assert_eq!(outputs[0], outputs[1], "{}", kernel.id());
        }
    }

    /// Checks that timed work is computed: every kernel leaves the same numbers.
    #[test]
    fn every_attention_kernel_leaves_the_same() {
        let pool = Pool::new(2).unwrap();
        let config = Config {
            architecture: &crate::arch::LLAMA,
            activation: crate::arch::Activation::Relu2,
            layers: 1,
            hidden: 128,
            ffn: 128,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            rope_dim: 32,
            rope_base: 10_000.0,
            rope_scaling: crate::arch::rope::RopeScaling::NONE,
            mask: crate::arch::mask::Mask::CAUSAL,
            norms_in: false,
            eps: 1e-5,
            context: 1024,
            vocab: 10,
        };
        let ops = VectorOps::best(Isa::best());
        let mut layers = AttentionLayers::new(&config, (KvType::F16, ops), 2, (300, 20)).unwrap();
        assert_eq!((layers.layers(), layers.bytes()), (2, 2 * 2 * 2 * 32 * 301));
        let mut first: Option<[Vec<u32>; 2]> = None;
        for kernel in AttentionKernel::builtin() {
            let outputs = [1, 20].map(|tokens| {
                layers.out.fill(f32::NAN);
                layers.partial.fill(f32::NAN);
                let rounds = Rounds { first: 1, untimed: 1, timed: 2 };
                layers.attend(&pool, &kernel, tokens, rounds).unwrap();
                let out = if tokens == 1 { &layers.partial } else { &layers.out };
                assert!(out.iter().all(|y| y.is_finite()), "{}", kernel.id());
                out.iter().map(|y| y.to_bits()).collect()
            });
            assert_eq!(*first.get_or_insert_with(|| outputs.clone()), outputs, "{}", kernel.id());
        }
    }

    /// The race that this module keeps callers from: a worker's second share of a head reaches rows that
    /// another worker may still be writing in its first. Built for ThreadSanitizer only, which must report
    /// it.
    #[cfg(tsan)]
    #[test]
    #[ignore = "a data race on purpose"]
    fn two_shares_without_a_barrier_race() {
        const VOCAB: usize = 4096;
        let kernel = HeadKernel::default(HeadFormat::F32, Isa::best()).unwrap();
        let pool = Pool::new(2).unwrap();
        let head = Buffer::zeroed(VOCAB * kernel.format().row_bytes(COLS)).unwrap();
        let half = &head[..head.len() / 2];
        let (x, mut out) = ([1.0; COLS], vec![0.0; VOCAB]);
        let out = SharedSlice::new(&mut out);
        pool.run(|worker| {
            let mut prepared = Buffer::zeroed(kernel.prepared_bytes(COLS)).unwrap();
            // SAFETY: there is none; this is the mistake that is to be found.
            unsafe {
                kernel.run_share(worker, (&head, 1.0), (&x, 1), &mut prepared, &out);
                let first = out.part(0..VOCAB / 2);
                kernel.run_share(worker, (half, 1.0), (&x, 1), &mut prepared, &first);
            }
        })
        .unwrap();
    }
}
