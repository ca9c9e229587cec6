//! The machine model: how long a job takes, without timing anything.
//!
//! [`mix`] counts what a kernel executes for every step of rows and group of activation rows, and
//! [`kinds`] says what a kind of CPU executes in a cycle. A loop takes as long as its scarcest resource
//! asks for: instructions issued; loads; the vector ports, where the busiest set of ports counts
//! that a set of operations is confined to; the chain of additions to one accumulator; bytes from the
//! second cache. They combine as a high power mean, as no core is perfect where two are scarce. Reading
//! the weights from where the model lives then overlaps with that, better or worse
//! ([`kinds::Kind::overlap`]), and what a job does once is added: laying out activations, scaling
//! outputs, barriers.
//!
//! What it is for: `--effort estimate` ([`estimate`]), and the shipped profiles of CPUs nobody has
//! measured ([`shipped`]). It ranks kernels; a predicted time is no promise. How well it ranks is a
//! test against recorded measurements, and `bitnet-tune estimate-check` asks it of any other.

use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape, SketchFormat, TileConfig, registry};
use bitnet_runtime::cpu::host::Host;

pub mod check;
mod estimate;
pub mod kinds;
pub mod mix;
pub mod shipped;

pub use estimate::{UNCERTAINTY, UNCERTAINTY_OF_TABLES, estimate, model_bytes};

use kinds::{Kind, Vectors};
use mix::{Class, Mix, Work};

/// A CPU to predict for: a kind, with its clock and bandwidths as they are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpu {
    /// The kind.
    pub kind: &'static Kind,
    /// 10^9 cycles per second.
    pub ghz: f64,
    /// 10^9 bytes per second from memory, one thread.
    pub core_gb_per_s: f64,
    /// And all.
    pub socket_gb_per_s: f64,
    /// Bytes of L2 cache of a core.
    pub l2: u64,
    /// Bytes of L3 cache.
    pub l3: u64,
}

/// What limits a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Reading the weights.
    Memory,
    /// The vector ports.
    Arithmetic,
    /// Loads of activations and tables.
    Loads,
    /// Instructions a cycle.
    Issue,
    /// Additions that wait for each other.
    Latency,
    /// What is done once a job.
    Overhead,
}

/// A predicted time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Microseconds of the job.
    pub us: f64,
    /// What limits it.
    pub bound: Bound,
    /// The time that reading the weights or multiplying takes at best, whichever is longer, over that
    /// of the job.
    pub share_of_limit: f64,
}

/// The exponent with which scarce resources of a core combine.
const SHARP: f64 = 8.0;
/// The share of their cycles that all vector ports together can be used for.
const PORT_USE: f64 = 0.92;
/// Of the operations that could go elsewhere, the share that does not keep off a set of ports.
const INTRUSION: f64 = 0.5;
/// Time of a stream from memory with software prefetch over that without, where nobody has measured it:
/// a little more, so that it is never chosen.
const UNKNOWN_PREFETCH: f64 = 1.03;
/// What a stream that jumps loses in a cache, over what it loses in memory.
const JUMPS_IN_CACHE: f64 = 0.2;
/// How many times as long plain code takes as vectors of as many lanes would.
const PLAIN: f64 = 10.0;
/// Cycles lost where a long loop ends: its last branch is not foreseen.
const LOOP_END: f64 = 6.0;

/// `(a^p + b^p + ...)^(1/p)`.
fn mean(values: &[f64], p: f64) -> f64 {
    let most = values.iter().copied().fold(0.0, f64::max);
    if most == 0.0 {
        return 0.0;
    }
    most * values.iter().map(|value| (value / most).powf(p)).sum::<f64>().powf(1.0 / p)
}

/// Cycles of a mix, and what they are spent on.
#[derive(Debug, Clone, Copy)]
struct Cycles {
    all: f64,
    bound: Bound,
}

impl Cpu {
    /// Of a kind, with its usual clock and bandwidths.
    pub const fn usual(kind: &'static Kind) -> Self {
        Self {
            kind,
            ghz: kind.ghz,
            core_gb_per_s: kind.core_gb_per_s,
            socket_gb_per_s: kind.socket_gb_per_s,
            l2: kind.l2,
            l3: kind.l3,
        }
    }

    /// The nearest kind to a host, with the host's caches: the kind that its shipped profile is of.
    pub fn of(host: &Host) -> Self {
        let Host { vendor, family, model, .. } = host;
        let defaults = registry::Defaults::of(vendor, *family, *model, Isa::best());
        let usual = Self::usual(Kind::of_profile(&defaults.shipped().name));
        let known = |size: u64, usual: u64| if size == 0 { usual } else { size };
        Self { l2: known(host.l2, usual.l2), l3: known(host.l3, usual.l3), ..usual }
    }

    /// With what was probed: bytes read from memory by so many threads together, in 10^9 a second.
    pub fn with_read_gb_per_s(self, threads: usize, gb_per_s: f64) -> Self {
        if threads <= 1 {
            Self { core_gb_per_s: gb_per_s, ..self }
        } else {
            let core_gb_per_s = self.core_gb_per_s.max(gb_per_s / threads as f64);
            Self { core_gb_per_s, socket_gb_per_s: gb_per_s, ..self }
        }
    }

    fn vectors(&self, id: &KernelId) -> &'static Vectors {
        match &self.kind.half {
            Some(half) if id.isa.lanes() < 16 => half,
            _ => &self.kind.best,
        }
    }

    /// Cycles of a mix whose longest chain is `chain`, and which waits `far` cycles for other caches.
    fn cycles(
        &self,
        vectors: &Vectors,
        work: &Mix,
        folded: f64,
        chain: (Class, f64),
        far: f64,
    ) -> Cycles {
        let kind = self.kind;
        let issue = (work.total() - folded) / kind.issue;
        let loads = work.count(Class::Load) / vectors.loads
            + (work.count(Class::Broadcast) + work.count(Class::Prefetch)) / vectors.broadcasts;
        let loads = loads.max(work.count(Class::Store) / vectors.stores);
        let ports = busiest(vectors, work);
        let latency = chain.1
            * match chain.0 {
                Class::Dot | Class::Matrix => kind.dot_latency,
                Class::Fma => kind.fma_latency,
                _ => 1.0,
            };
        let bounds = [
            (ports, Bound::Arithmetic),
            (loads, Bound::Loads),
            (issue, Bound::Issue),
            (latency, Bound::Latency),
            (far, Bound::Loads),
        ];
        let most = bounds.iter().copied().fold(bounds[0], |a, b| if b.0 > a.0 { b } else { a });
        Cycles { all: mean(&bounds.map(|b| b.0), SHARP), bound: most.1 }
    }

    /// 10^9 bytes per second that each of `threads` reads, and whether from memory.
    fn bandwidth(&self, threads: usize, model_bytes: u64) -> (f64, bool) {
        let kind = self.kind;
        let threads = threads.max(1) as f64;
        let bytes = model_bytes as f64;
        if bytes <= 0.9 * self.l2 as f64 * threads {
            (kind.l2_bytes_per_cycle * self.ghz, false)
        } else if bytes <= 0.9 * self.l3 as f64 {
            (kind.l3_gb_per_s, false)
        } else {
            (self.core_gb_per_s.min(self.socket_gb_per_s / threads), true)
        }
    }
}

/// Cycles of the busiest set of vector ports: of all operations confined to it, on all its ports.
fn busiest(vectors: &Vectors, work: &Mix) -> f64 {
    let demands: Vec<(u8, f64)> = Class::ALL
        .iter()
        .filter_map(|&class| {
            let ports = vectors.ports(class)?;
            Some((ports.any_of, ports.cycles * work.count(class)))
        })
        .collect();
    let every = demands.iter().fold(0, |every, (any_of, _)| every | any_of);
    (1u8..16)
        .map(|set| {
            let shares = demands.iter().map(|&(any_of, cycles)| {
                let inside = f64::from((any_of & set).count_ones());
                let share = inside / f64::from(any_of.count_ones());
                if share == 1.0 { cycles } else { INTRUSION * share * cycles }
            });
            let use_of = if every & !set == 0 { PORT_USE } else { 1.0 };
            shares.sum::<f64>() / (use_of * f64::from(set.count_ones()))
        })
        .fold(0.0, f64::max)
}

/// Whether so large a model is read from memory, and 10^9 bytes per second that `threads` read of it
/// together.
pub fn read_limit(cpu: &Cpu, threads: usize, model_bytes: u64) -> (bool, f64) {
    let (each, from_memory) = cpu.bandwidth(threads, model_bytes);
    (from_memory, each * threads.max(1) as f64)
}

/// 10^9 products of a weight and an activation per second that `threads` do together at best with the
/// instructions of a kernel's tier.
pub fn multiply_limit(cpu: &Cpu, id: &KernelId, threads: usize) -> f64 {
    products_per_cycle(cpu.vectors(id), id.isa) * cpu.ghz * threads.max(1) as f64
}

/// Predicts the time of one job: the matrices `parts` times `tokens` activation rows on `threads`
/// threads, in a model of which one token reads `model_bytes`.
///
/// For a head, `parts` is its one matrix; for attention `[query heads, head width]` and
/// `[key-value heads, head width]`, over [`POSITIONS`] positions.
pub fn predict(
    cpu: &Cpu,
    id: &KernelId,
    parts: &[Shape],
    tokens: usize,
    threads: usize,
    model_bytes: u64,
) -> Prediction {
    let job = JobModel {
        cpu,
        id,
        work: mix::work(id),
        vectors: cpu.vectors(id),
        threads: threads.max(1),
        model_bytes,
    };
    match id.op {
        Op::Ternary(layout) if id.expands() => job.expanded(layout, parts, tokens.max(1)),
        Op::Ternary(layout) => job.ternary(layout, parts, tokens.max(1)),
        Op::Head(format) => job.head(parts, |cols| format.row_bytes(cols)),
        Op::Sketch(format) => {
            job.head(parts, |cols| format.tile_bytes(cols) / SketchFormat::TILE_ROWS)
        }
        Op::Attention => job.attention(parts, tokens.max(1)),
        Op::Rows(_) | Op::Columns(_) => unreachable!("no plan holds kernels with a list of lines"),
    }
}

/// Positions that attention is predicted for.
pub const POSITIONS: usize = 512;

struct JobModel<'a> {
    cpu: &'a Cpu,
    id: &'a KernelId,
    work: Work,
    vectors: &'static Vectors,
    threads: usize,
    model_bytes: u64,
}

impl JobModel<'_> {
    fn us(&self, cycles: f64) -> f64 {
        // What the compiler makes of plain code is not modelled.
        let plain = if self.id.isa == Isa::Scalar { PLAIN } else { 1.0 };
        plain * cycles / (self.cpu.ghz * 1e3)
    }

    /// Whether a group of activation rows is too large for the L1 cache.
    fn spills(&self, cols: usize) -> bool {
        self.work.activation_bytes * cols as f64 > 0.75 * self.cpu.kind.l1 as f64
    }

    /// Cycles of one step of rows with one group of activation rows, where an iteration waits `far`
    /// cycles for bytes from outside the L1 cache.
    fn step(&self, cols: usize, far: f64) -> Cycles {
        let work = &self.work;
        let hot = self.cpu.cycles(self.vectors, &work.hot, work.folded, work.chain, far);
        let none = (Class::Control, 0.0);
        let block = self.cpu.cycles(self.vectors, &work.block, 0.0, none, 0.0).all;
        let end = self.cpu.cycles(self.vectors, &work.end, 0.0, none, 0.0).all;
        let blocks = if work.block_cols == usize::MAX { 0 } else { cols.div_ceil(work.block_cols) };
        let iterations = (cols as f64 / work.cols as f64).ceil();
        Cycles {
            all: iterations * hot.all + blocks as f64 * block + end + LOOP_END,
            bound: hot.bound,
        }
    }

    /// Time of computing and reading together, as they overlap. Where activations or tables stream
    /// through the L1 cache as well it is `busy`, and weights come when they are asked for.
    fn overlap(&self, compute: f64, bytes: f64, streams: f64, busy: bool) -> (f64, f64) {
        let (gb_per_s, from_memory) = self.cpu.bandwidth(self.threads, self.model_bytes);
        let kind = self.cpu.kind;
        let distance = self.id.tile.prefetch;
        let mut read = bytes / (gb_per_s * 1e3);
        let effect = kind.prefetch.iter().min_by_key(|own| own.ahead.abs_diff(distance));
        if distance > 0 {
            read *= match effect {
                Some(effect) if from_memory => effect.from_memory,
                Some(effect) => effect.from_cache,
                None => UNKNOWN_PREFETCH,
            };
            // What is asked for beyond the last weight is read for nothing.
            read *= 1.0 + 0.25 * (distance as f64 / bytes.max(1.0)).min(1.0);
        }
        if !from_memory {
            let jumps = 1.0 + JUMPS_IN_CACHE * (streams - 1.0);
            return (mean(&[compute, read * jumps], 4.0), read);
        }
        // That leaves the hardware's prefetcher behind, but not the program's.
        let hidden = distance >= 4096 && effect.is_some_and(|effect| effect.from_memory < 1.0);
        let exponent = if busy && !hidden { 1.0 } else { kind.overlap };
        (mean(&[compute, read * streams], exponent), read)
    }

    /// Cycles that an iteration waits for bytes from outside the L1 cache: activations that do not fit
    /// there, and weights.
    fn far(&self, cols: usize, groups: usize, weights: f64) -> f64 {
        let kind = self.cpu.kind;
        let bytes = self.work.activation_bytes * self.work.cols as f64;
        let all = self.work.activation_bytes * (cols * groups) as f64;
        let second = 1.0 / kind.l2_bytes_per_cycle;
        let third = self.cpu.ghz / kind.l3_gb_per_s;
        // All groups are read for every block of rows, each by every step of the block.
        let steps = (Layout::ROW_PADDING / self.id.tile.rows) as f64;
        let again = if self.spills(cols) { second } else { 0.0 };
        let first = if groups == 1 {
            again
        } else if all <= 0.75 * kind.l2 as f64 {
            second
        } else {
            third
        };
        weights * second + bytes * (first + (steps - 1.0) * again) / steps
    }

    fn ternary(&self, layout: Layout, parts: &[Shape], tokens: usize) -> Prediction {
        let tile = self.id.tile;
        let cols = parts.first().map_or(1, |part| part.cols);
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let bytes: usize = parts.iter().map(|&part| layout.matrix_bytes(part)).sum();
        let steps: usize = parts.iter().map(|part| part.rows.div_ceil(tile.rows)).sum();
        let share = steps.div_ceil(self.threads) as f64;
        let own_bytes = bytes as f64 * share / steps.max(1) as f64;
        let groups = tokens.div_ceil(tile.tokens);
        let decode = tile.tokens == 1;

        let iteration_bytes = layout.unit_bytes() as f64
            * tile.unroll as f64
            * (tile.rows / layout.tile_rows()) as f64;
        let far = self.far(cols, groups, if decode { 0.0 } else { iteration_bytes });
        // One token meets each weight once, and waits for both.
        let (waits, hides) = if decode { (far, 0.0) } else { (0.0, far) };
        let mut step = self.step(cols, hides);
        step.all += waits * (cols as f64 / self.work.cols as f64);
        let compute = self.us(share * groups as f64 * step.all);
        let busy = self.spills(cols) || !decode;
        let (stream, read) = self.overlap(compute, own_bytes, streams(layout, &tile), busy);

        let prepared = if decode { 1 } else { groups.div_ceil(self.threads) * tile.tokens };
        let prepare = self.us(prepared as f64 * cols as f64 * prepare_cycles(layout, decode));
        let own_rows = share * tile.rows as f64;
        let scale = self.us(own_rows * tokens as f64 * SCALE_CYCLES / self.id.isa.lanes() as f64);
        let barriers = if decode { 1.0 } else { 2.0 } * barrier_us(self.threads);
        let us = stream + prepare + scale + barriers;

        let products = rows as f64 * cols as f64 * tokens as f64 / self.threads as f64;
        self.prediction(us, compute, step.bound, read, prepare + scale + barriers, products)
    }

    /// A kernel that has the packing expanded before: the threads share tokens, not rows.
    fn expanded(&self, layout: Layout, parts: &[Shape], tokens: usize) -> Prediction {
        let tile = self.id.tile;
        let cols = parts.first().map_or(1, |part| part.cols);
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let threads = self.threads as f64;
        let groups = tokens.div_ceil(tile.tokens) as f64 / threads;
        let none = (Class::Control, 0.0);
        let cycles = |mix: Mix| self.cpu.cycles(self.vectors, &mix, 0.0, none, 0.0).all;

        // What it reads comes from the third cache, side by side with the lookups.
        let third = 64.0 * self.cpu.ghz / self.cpu.kind.l3_gb_per_s;
        let step = self.step(cols, third * tile.rows as f64 / layout.tile_rows() as f64);
        let tables = (tile.tokens * cols / 3) as f64 * cycles(mix::table());
        let compute = self.us(groups * (rows as f64 / tile.rows as f64 * step.all + tables));

        let bytes: usize = parts.iter().map(|&part| layout.matrix_bytes(part)).sum();
        let spans = rows as f64 / layout.tile_rows() as f64 * cols as f64 / 60.0 / threads;
        let expand = self.us(spans * cycles(mix::expansion()));
        let (expand, read) = self.overlap(expand, bytes as f64 / threads, 1.0, false);

        let own_tokens = tokens as f64 / threads;
        let prepare = self.us(own_tokens * cols as f64 * PERMUTE_CYCLES);
        let vectors = own_tokens * rows as f64 / self.id.isa.lanes() as f64;
        let scale = self.us(vectors * SCALE_CYCLES);
        let overhead = expand + prepare + scale + 2.0 * barrier_us(self.threads);
        let products = rows as f64 * cols as f64 * own_tokens;
        self.prediction(compute + overhead, compute, step.bound, read, overhead, products)
    }

    fn head(&self, parts: &[Shape], row_bytes: impl Fn(usize) -> usize) -> Prediction {
        let (rows, cols) = parts.first().map_or((1, 1), |part| (part.rows, part.cols));
        let tile = self.id.tile;
        let own_rows = rows.div_ceil(self.threads);
        let bytes = (own_rows * row_bytes(cols)) as f64;
        let step = self.step(cols, 0.0);
        let compute = self.us(own_rows.div_ceil(tile.rows) as f64 * step.all);
        // Rows of a head side by side are streams of their own; those of a sketch are one.
        let apart = tile.rows > 1 && matches!(self.id.op, Op::Head(_));
        let streams = if apart { 1.4 } else { 1.0 };
        let (stream, read) = self.overlap(compute, bytes, streams, false);
        let overhead = self.us(cols as f64) + barrier_us(self.threads);
        let us = stream + overhead;
        self.prediction(us, compute, step.bound, read, overhead, 0.0)
    }

    fn attention(&self, parts: &[Shape], tokens: usize) -> Prediction {
        let (heads, width) = parts.first().map_or((1, 1), |part| (part.rows, part.cols));
        let kv_heads = parts.get(1).map_or(heads, |part| part.rows).max(1);
        let rows = heads.div_ceil(kv_heads) * tokens;
        // A token sees those before it too.
        let positions = POSITIONS + tokens / 2;
        let share = kv_heads as f64 / self.threads as f64;
        let pairs = positions.div_ceil(16) as f64 * width as f64;
        // A step of fewer rows is compiled apart, and costs as if the tile had so few.
        let cycles = |rows: usize| {
            let work = mix::attention(self.id, rows);
            let hot = self.cpu.cycles(self.vectors, &work.hot, work.folded, work.chain, 0.0).all;
            let none = (Class::Control, 0.0);
            let end = self.cpu.cycles(self.vectors, &work.end, 0.0, none, 0.0).all;
            pairs * hot + end * positions.div_ceil(256) as f64
        };
        let tile = self.id.tile.rows;
        let mut all = (rows / tile) as f64 * cycles(tile);
        let mut left = rows % tile;
        for part in [4, 2, 1] {
            while left >= part {
                all += cycles(part);
                left -= part;
            }
        }
        let compute = self.us(ATTENTION * share * all);
        // Keys and values of 16 bits.
        let bytes = 4.0 * (positions * width) as f64 * share;
        let (stream, read) = self.overlap(compute, bytes, 1.0, false);
        let overhead = 2.0 * barrier_us(self.threads);
        self.prediction(stream + overhead, compute, Bound::Arithmetic, read, overhead, 0.0)
    }

    fn prediction(
        &self,
        us: f64,
        compute: f64,
        core: Bound,
        read: f64,
        overhead: f64,
        products: f64,
    ) -> Prediction {
        let bound = if overhead > compute.max(read) {
            Bound::Overhead
        } else if read > compute {
            Bound::Memory
        } else {
            core
        };
        let multiply = self.us(products / products_per_cycle(self.vectors, self.id.isa));
        Prediction { us, bound, share_of_limit: (read.max(multiply) / us).min(1.0) }
    }
}

/// Products of a weight and an activation that a core does in a cycle at best.
fn products_per_cycle(vectors: &Vectors, isa: Isa) -> f64 {
    let adds = if isa.dots_are_wide() { 0.0 } else { 1.0 };
    let (class, each) =
        if isa.multiplies_matrices() { (Class::Matrix, 8.0) } else { (Class::Dot, 4.0) };
    let one = Mix::of(&[(class, 1.0), (Class::Add, adds)]);
    each * isa.lanes() as f64 / busiest(vectors, &one).max(0.1)
}

/// Time of a stream from memory that jumps between the tiles of a step, over that of one that does
/// not.
fn streams(layout: Layout, tile: &TileConfig) -> f64 {
    let visit = (layout.unit_bytes() * tile.unroll) as f64;
    match layout {
        Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 if tile.rows > layout.tile_rows() => {
            1.0 + 100.0 / visit
        }
        // Lookups are slow enough to hide it.
        _ => 1.0,
    }
}

/// Time of attention over that of its multiply-adds and exponentials: interleaving queries, merging.
const ATTENTION: f64 = 1.5;

/// Cycles of scaling a vector of outputs.
const SCALE_CYCLES: f64 = 3.0;

/// Cycles of laying out an activation by permutes.
const PERMUTE_CYCLES: f64 = 0.1;

/// Cycles of laying out an activation.
fn prepare_cycles(layout: Layout, decode: bool) -> f64 {
    match layout {
        Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 | Layout::T5T32 => 0.25,
        Layout::Tl1T32 | Layout::Tl2T32 | Layout::Tl2W32 => {
            if decode {
                1.0
            } else {
                2.5
            }
        }
    }
}

/// A barrier between spinning threads.
fn barrier_us(threads: usize) -> f64 {
    if threads == 1 { 0.02 } else { 0.1 * (threads as f64).log2().max(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zen5() -> Cpu {
        Cpu::usual(Kind::of_profile("zen5"))
    }

    const DECODE: &str = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p0";
    const PREFILL: &str = "i2_s_t32__avx512vnni__any__r32_c0_n8_u1_p0";

    fn us(cpu: &Cpu, id: &str, shape: Shape, tokens: usize, threads: usize, bytes: u64) -> f64 {
        predict(cpu, &id.parse().unwrap(), &[shape], tokens, threads, bytes).us
    }

    #[test]
    fn the_busiest_ports_are_found() {
        let vectors = &Kind::of_profile("zen5").best;
        // Two ports multiply; four do logic.
        let dots = Mix::of(&[(Class::Dot, 8.0)]);
        assert_eq!(busiest(vectors, &dots), 4.0);
        let logic = Mix::of(&[(Class::Logic, 8.0)]);
        assert!((busiest(vectors, &logic) - 2.0 / PORT_USE).abs() < 1e-9);
        // Loads go elsewhere.
        assert_eq!(busiest(vectors, &dots.and(Mix::of(&[(Class::Load, 100.0)]))), 4.0);
        // On Zen 4 512 bits take a port twice.
        assert_eq!(busiest(&Kind::of_profile("zen4").best, &dots), 8.0);
    }

    #[test]
    fn decode_is_bound_by_memory_and_prefill_by_arithmetic() {
        let cpu = zen5();
        let (shape, bytes) = (Shape::new(6912, 2560), 1 << 30);
        let bound = |id: &str, tokens| {
            predict(&cpu, &id.parse().unwrap(), &[shape], tokens, 2, bytes).bound
        };
        assert_eq!(bound(DECODE, 1), Bound::Memory);
        assert_eq!(bound(PREFILL, 128), Bound::Arithmetic);
        let read = shape.weights() as f64 / 4.0 / (cpu.socket_gb_per_s * 1e3);
        let decode = us(&cpu, DECODE, shape, 1, 2, bytes);
        assert!((read..1.2 * read).contains(&decode), "{decode} of {read}");
        // A cache reads faster.
        assert!(us(&cpu, DECODE, shape, 1, 2, 1 << 20) < 0.6 * decode);
    }

    #[test]
    fn times_grow_with_work_and_shrink_with_threads() {
        let cpu = zen5();
        for (id, tokens) in [(DECODE, 1), (PREFILL, 128)] {
            let time = |rows, cols, threads| {
                us(&cpu, id, Shape::new(rows, cols), tokens, threads, 1 << 30)
            };
            let one = time(2560, 2560, 1);
            assert!(time(5120, 2560, 1) > 1.8 * one && time(2560, 5120, 1) > 1.8 * one, "{id}");
            assert!(time(2560, 2560, 2) < one, "{id}");
        }
        // A group of 8 rows takes as long for one as for 8; reading the weights comes on top.
        let group = |tokens| us(&cpu, PREFILL, Shape::new(2560, 2560), tokens, 1, 1 << 30);
        assert!(group(9) > 1.6 * group(8));
    }

    #[test]
    fn software_prefetch_follows_what_is_known_of_it() {
        let far = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p8192";
        for (name, helps) in [("zen5", true), ("zen4", false), ("ice-lake", false)] {
            let cpu = Cpu::usual(Kind::of_profile(name));
            let time = |id: &str| us(&cpu, id, Shape::new(6912, 2560), 1, 2, 1 << 30);
            assert_eq!(time(far) < time(DECODE), helps, "{name}");
        }
    }

    #[test]
    fn what_was_probed_replaces_what_is_usual() {
        let cpu = zen5().with_read_gb_per_s(2, 110.0).with_read_gb_per_s(1, 60.0);
        assert_eq!((cpu.core_gb_per_s, cpu.socket_gb_per_s), (60.0, 110.0));
        assert_eq!(read_limit(&cpu, 2, 1 << 30), (true, 110.0));
        let host = Host { l2: 2 << 20, l3: 0, ..Host::detect() };
        let cpu = Cpu::of(&host);
        assert_eq!((cpu.l2, cpu.l3), (2 << 20, cpu.kind.l3));
    }

    /// Every kernel that is built in has a time on every kind of CPU, but for those with a list of
    /// lines: how long that is the machine does not say.
    #[test]
    fn every_kernel_has_a_time() {
        let parts = |op: Op| match op {
            Op::Attention => vec![Shape::new(20, 128), Shape::new(5, 128)],
            _ => vec![Shape::new(2560, 2560)],
        };
        for kind in kinds::KINDS {
            let cpu = Cpu::usual(kind);
            let lines = |id: &KernelId| matches!(id.op, Op::Rows(_) | Op::Columns(_));
            for id in bitnet_codegen::grid(Isa::ALL).into_iter().filter(|id| !lines(id)) {
                for (tokens, threads, bytes) in [(1, 1, 1 << 10), (128, 8, 1 << 40)] {
                    let found = predict(&cpu, &id, &parts(id.op), tokens, threads, bytes);
                    let Prediction { us, share_of_limit, .. } = found;
                    assert!(us.is_finite() && us > 0.0, "{} {id}: {us}", kind.name);
                    assert!((0.0..=1.0).contains(&share_of_limit), "{} {id}", kind.name);
                }
            }
        }
    }
}
