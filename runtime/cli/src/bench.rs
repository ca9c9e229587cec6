//! `bitnet-run bench`: llama-bench's table, and what share of the machine's limits is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_profiles::{Isa, KernelId, Op, Pinning, Role};
use bitnet_runtime::arch::config::{Config, JobShapes};
use bitnet_runtime::cpu::gather::Along;
use bitnet_runtime::cpu::memory::{self, Pages};
use bitnet_runtime::cpu::model::{MAX_SEQUENCES, Needs, Session, SessionOptions, Stage};
use bitnet_runtime::cpu::threads::{MAX_THREADS, Pool, PoolOptions};
use bitnet_runtime::engine::report::{HeadReport, KernelReport, RoleReport};
use bitnet_runtime::engine::{Engine, Options, ProfileInUse, Start};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::gguf::{Gguf, TensorInfo};
use bitnet_runtime::measure::bench::{self, Samples, Test, Tokens, mean, standard_deviation};
use bitnet_runtime::measure::probe;
use serde::Serialize;

use crate::bus_error;
use crate::load::{self, KernelArgs, PERFORMANCE, PlacementArgs, SessionArgs};
use crate::output::note;

/// Bytes that the bandwidth probe streams: several times any L3 cache.
const PROBE_BYTES: usize = 1 << 30;
/// Fewer would find a cache.
const LEAST_PROBE_BYTES: usize = 1 << 28;
/// Weights of which a cache may keep so many that a probe between repetitions would make them slower.
const CACHED_BYTES: usize = 64 << 20;
/// Passes of the probe of multiply-adds, of which the best counts.
const PROBE_ROUNDS: usize = 5;
/// The longest prompt, generation or depth that can be asked for.
pub(crate) const MAX_TOKENS: usize = 1 << 20;
/// The most values one list may hold.
const MAX_VALUES: usize = 1024;

/// Time prompts and generations as llama-bench does
///
/// Lists and ranges: 1,2,4 or 1-4 or 1-8*2 or 128-512+128.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; several: repeat the flag; none: the one that --profile FILE was made for
    #[arg(short, long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Lengths of prompts; 0: none
    #[arg(short = 'p', long, value_name = "LIST", default_value = "512",
          value_parser = |text: &str| list(text, 0, MAX_TOKENS))]
    n_prompt: Vec<List>,
    /// Lengths of generations; 0: none
    #[arg(short = 'n', long, value_name = "LIST", default_value = "128",
          value_parser = |text: &str| list(text, 0, MAX_TOKENS))]
    n_gen: Vec<List>,
    /// A prompt and a generation that follows, timed together
    #[arg(long, visible_alias = "pg", value_name = "PP,TG", value_parser = pair)]
    prompt_and_gen: Vec<(usize, usize)>,
    /// Positions of the context filled before each test
    #[arg(short = 'd', long, value_name = "LIST", default_value = "0",
          value_parser = |text: &str| list(text, 0, MAX_TOKENS))]
    n_depth: Vec<List>,
    /// Sequences that go through the model together, each with prompts and generations of its own;
    /// t/s is that of all
    #[arg(long, visible_alias = "np", alias = "npl", value_name = "LIST", default_value = "1",
          value_parser = |text: &str| list(text, 1, MAX_SEQUENCES))]
    parallel: Vec<List>,
    /// How often each test is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// A table, or llama-bench's JSON
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Output,
    /// Leave out the run before each test that is not timed
    #[arg(long)]
    no_warmup: bool,

    /// Threads [default: the profile's, else one for each physical core]
    #[arg(short, long, value_name = "LIST", value_parser = |text: &str| list(text, 1, MAX_THREADS),
          help_heading = PERFORMANCE)]
    threads: Vec<List>,
    /// Keep all threads at work, even while other programs need the CPUs and fewer would be faster
    #[arg(long, help_heading = PERFORMANCE)]
    fixed_threads: bool,
    #[command(flatten, next_help_heading = PERFORMANCE)]
    kernels: KernelArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    placement: PlacementArgs,
    /// 0: read the file into memory instead of mapping it
    #[arg(long, visible_alias = "mmp", value_name = "0|1", default_value = "1",
          value_parser = load::switch(), action = clap::ArgAction::Set,
          help_heading = PERFORMANCE)]
    mmap: bool,
}

/// How the results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Md,
    Json,
}

/// The values of a list flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List(Vec<usize>);

/// `1,2,4`, `1-4`, `1-7+2`, `1-8*2`, or several of these.
pub(crate) fn list(text: &str, min: usize, max: usize) -> std::result::Result<List, String> {
    let number = |text: &str| match text.parse::<usize>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        Ok(n) => Err(format!("{n} is not in {min}..={max}")),
        Err(_) => Err(format!("'{}' is no number in {min}..={max}", text.escape_debug())),
    };
    let mut values = Vec::new();
    for item in text.split(',') {
        let Some((first, rest)) = item.split_once('-') else {
            values.push(number(item)?);
            continue;
        };
        let (last, step) = match rest.find(['+', '*']) {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "+1"),
        };
        let (first, last) = (number(first)?, number(last)?);
        let (times, by) = step.split_at(1);
        let by = by.parse::<usize>().ok().filter(|&by| by <= max).unwrap_or(0);
        let grows = if times == "*" { by > 1 && first > 0 } else { by > 0 };
        if !grows || last < first {
            return Err(format!("'{}' does not grow", item.escape_debug()));
        }
        let mut value = first;
        while value <= last && values.len() <= MAX_VALUES {
            values.push(value);
            value = if times == "*" { value.saturating_mul(by) } else { value + by };
        }
    }
    if values.len() > MAX_VALUES {
        return Err(format!("more than {MAX_VALUES} values"));
    }
    Ok(List(values))
}

/// `512,128`
fn pair(text: &str) -> std::result::Result<(usize, usize), String> {
    match list(text, 1, MAX_TOKENS)?.0[..] {
        [prompt, generation] => Ok((prompt, generation)),
        _ => Err("expected two numbers, as in 512,128".into()),
    }
}

/// All values of a flag that may be repeated.
pub(crate) fn values(lists: &[List]) -> impl Iterator<Item = usize> {
    lists.iter().flat_map(|list| list.0.iter().copied())
}

impl Args {
    /// The tests of one number of threads, in llama-bench's order.
    fn tests(&self) -> Vec<Test> {
        let mut tests = Vec::new();
        let parallel = || values(&self.parallel);
        let depths = values(&self.n_depth).flat_map(|n| parallel().map(move |np| (n, np)));
        for (n_depth, n_parallel) in depths {
            let prompts = values(&self.n_prompt).map(|n| (n, 0));
            let generations = values(&self.n_gen).map(|n| (0, n));
            let both = self.prompt_and_gen.iter().copied();
            tests.extend(
                prompts
                    .chain(generations)
                    .chain(both)
                    .filter(|&(n_prompt, n_gen)| n_prompt + n_gen > 0)
                    .map(|(n_prompt, n_gen)| Test { n_prompt, n_gen, n_depth, n_parallel }),
            );
        }
        tests
    }
}

/// Runs the tests and prints each result as soon as it is known (JSON: at the end).
///
/// # Errors
/// Those of loading the model, and of the session; [`Error::Usage`] for a test that does not fit
/// into the model's context; [`Error::Runtime`] when a logit is no number.
pub fn run(args: &Args) -> Result<()> {
    let tests = args.tests();
    let mut models: Vec<Option<&Path>> = args.model.iter().map(|path| Some(&**path)).collect();
    if models.is_empty() {
        models.push(None);
    }
    let mut rows = Vec::new();
    for path in models {
        let (path, options) = args.kernels.open(path, args.placement)?;
        let gguf = if args.mmap {
            bus_error::explain(&path, "leave it as it is while it is used, or give --mmap 0");
            Gguf::open(path)?
        } else {
            Gguf::read(path)?
        };
        let config = Config::from_gguf(&gguf)?;
        if let Some(test) = tests.iter().find(|test| test.context() > config.context) {
            let expected = format!("at most {}, the context of the model", config.context);
            let found = format!("{} positions", test.context());
            return Err(Error::usage(format!("test {test}"), found, expected));
        }
        // Whoever has most threads packs, so that every thread touches what it will read.
        let options = Options {
            threads: values(&args.threads).max(),
            needs: Needs::GREEDY.clone(),
            tokenizer: false,
            start: Start::Packed,
            progress: Some(load::progress(Arc::default())),
            ..options
        };
        let engine = Engine::from_gguf(gguf, options)?;
        load::tell(&engine);
        let model = engine.model()?;
        let most = engine.pool().threads();
        let mut threads: Vec<usize> = values(&args.threads).collect();
        if threads.is_empty() {
            threads.push(most);
        }
        let context = tests.iter().map(Test::context).max();
        let sequences = values(&args.parallel).max().unwrap_or(1);
        let options = SessionOptions { sequences, ..args.session.options(context)? };
        for threads in threads {
            let mut session = if threads == most {
                engine.session(options)?
            } else {
                let pinning = engine.placement().pinning;
                let pool = Arc::new(Pool::with(PoolOptions {
                    threads,
                    pinning,
                    spare: !args.fixed_threads,
                })?);
                Session::new(Arc::clone(&model), pool, options)?
            };
            load::tell(&engine);
            for &test in &tests {
                let mut bench = Bench {
                    args,
                    engine: &engine,
                    kernels: KernelReport::of(&model),
                    session: &mut session,
                };
                let row = bench.row(test)?;
                if args.output == Output::Md {
                    if rows.is_empty() {
                        print(&header())?;
                    }
                    print(&row.markdown())?;
                }
                rows.push(row);
            }
        }
    }
    match args.output {
        Output::Md => print(&format!("\nbuild: {}", env!("CARGO_PKG_VERSION"))),
        Output::Json => print(
            &serde_json::to_string_pretty(&rows)
                .map_err(|e| Error::Runtime(format!("cannot write the report: {e}")))?,
        ),
    }
}

/// A line on stdout, at once.
fn print(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|e| Error::io(Path::new("stdout"), "write", e))
}

/// What a row needs.
struct Bench<'a> {
    args: &'a Args,
    engine: &'a Engine,
    kernels: KernelReport,
    session: &'a mut Session,
}

impl Bench<'_> {
    /// Times the test beside the limit that bounds it. What memory gives changes within seconds, so it is
    /// probed around every repetition, but of models that caches may keep once before.
    fn row(&mut self, test: Test) -> Result<Row> {
        let pool = Arc::clone(self.session.pool());
        let decodes = test.n_prompt == 0;
        let stream = if decodes { self.stream() } else { None };
        let multiply = match test {
            Test { n_gen: 0, .. } => {
                probe::multiply_add_rate(&pool, self.engine.ceiling(), PROBE_ROUNDS)?
            }
            _ => None,
        };
        let test_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let repetitions = self.args.repetitions as usize;
        let mut limits = Vec::with_capacity(repetitions + 1);
        let mut probe = || -> Result<()> {
            if let Some(stream) = &stream {
                limits.push(stream.read_bandwidth(&pool, 1)?);
            }
            Ok(())
        };
        let packed: usize = self.kernels.0.values().map(|kernels| kernels.packed_bytes).sum();
        let cached = packed < CACHED_BYTES;
        if cached {
            probe()?;
        }
        let mut tokens = Tokens::new();
        if !self.args.no_warmup {
            bench::warm_up(self.session, test, &mut tokens)?;
        }
        let before = self.session.head_stats();
        let mut probe = || if cached { Ok(()) } else { probe() };
        let samples = bench::time(self.session, test, repetitions, &mut tokens, &mut probe)?;
        probe()?;
        let after = self.session.head_stats();
        let head = HeadReport::between(self.session.model(), before, after);
        // Only what was skipped in the test says how many bytes it read.
        let bytes = decodes.then(|| self.decode_bytes(test, &head));
        let read = bytes.map(|bytes| {
            let around: Vec<f64> = match limits[..] {
                [once] => vec![once; repetitions],
                _ => limits.windows(2).map(mean).collect(),
            };
            Reached::of(bytes.all(), &samples.per_second(), &around)
        });
        let multiply = (test.n_gen == 0).then(|| {
            let products = Stage::PRODUCTS.map(|stage| samples.stages.of(stage).as_secs_f64());
            let per_second = (repetitions * test.tokens()) as f64 / products.iter().sum::<f64>();
            let limits: Vec<f64> = multiply.into_iter().collect();
            Reached::of(multiply_adds(self.session.model().config()), &[per_second], &limits)
        });
        Ok(self.report(test, &samples, test_time, head, (bytes, read), multiply))
    }

    /// What the probe of memory reads. Of a machine without room for it there is no figure, but still a
    /// test.
    fn stream(&self) -> Option<probe::Stream> {
        let most = memory::available().map_or(u64::MAX, |free| free / 2);
        let bytes = PROBE_BYTES.min(usize::try_from(most).unwrap_or(usize::MAX));
        if bytes < LEAST_PROBE_BYTES {
            note(format_args!("warning: no read bandwidth: too little memory is free for a probe"));
            return None;
        }
        let stream = probe::Stream::new(self.session.pool(), bytes);
        stream.inspect_err(|e| note(format_args!("warning: no read bandwidth: {e}"))).ok()
    }

    /// What single tokens skipped in the test, by role.
    fn skipped(&self, test: Test) -> BTreeMap<&'static str, Skipped> {
        let tokens = (test.n_gen * self.args.repetitions as usize).max(1) as f64;
        [(Role::GateUp, Along::Rows), (Role::Down, Along::Columns)]
            .into_iter()
            .filter_map(|(role, along)| {
                let tally = self.session.tally(along);
                let read_per_token = tally.bytes as f64 / tokens;
                Some((role.name(), Skipped { density: tally.density()?, read_per_token }))
            })
            .collect()
    }

    /// What a token of a generation reads on average: its share of the weights, but for those that were
    /// skipped in the test.
    fn decode_bytes(&self, test: Test, head: &HeadReport) -> DecodeBytes {
        let model = &self.session.model();
        let (config, weights) = (model.config(), model.weights());
        let skipped = self.skipped(test);
        let ternary: f64 = (self.kernels.0.iter())
            .filter(|(role, _)| **role != Role::LmHead.name())
            .map(|(role, kernels)| {
                skipped.get(role).map_or(kernels.packed_bytes as f64, |s| s.read_per_token)
            })
            .sum();
        let norms: usize = weights
            .layers
            .iter()
            .flat_map(|layer| {
                let always = [Some(&layer.attn_norm), Some(&layer.ffn_norm)];
                let sub_norms = [layer.attn_sub_norm.as_ref(), layer.ffn_sub_norm.as_ref()];
                always.into_iter().chain(sub_norms)
            })
            .chain([Some(&weights.output_norm)])
            .flatten()
            .map(|norm| size_of_val(&norm[..]))
            .sum();
        let row = weights.embedding.tensor().bytes as usize / config.vocab;
        let positions = self.session.context() * self.session.sequences();
        let position = self.session.kv_reserved_bytes() as f64 / positions as f64;
        let positions = test.n_depth as f64 + (test.n_gen + 1) as f64 / 2.0;
        let sequences = test.n_parallel as f64;
        DecodeBytes {
            weights: ternary / sequences,
            head: head.bytes_per_token,
            kv: positions * position,
            other: norms as f64 / sequences + row as f64,
        }
    }

    fn report(
        &self,
        test: Test,
        samples: &Samples,
        test_time: u64,
        lm_head: HeadReport,
        (bytes_per_token, read): (Option<DecodeBytes>, Option<Reached>),
        multiply_add: Option<Reached>,
    ) -> Row {
        let gguf = self.session.model().gguf();
        let architecture = self.session.model().config().architecture.name;
        let params = gguf.tensors().iter().map(TensorInfo::elements).sum();
        let kv_type = self.session.kv_type().name();
        let samples_ts = samples.per_second();
        let ns = samples.ns_f64();
        let per_repetition = |stage| samples.stages.of(stage).as_secs_f64() / ns.len() as f64;
        Row {
            build_commit: env!("CARGO_PKG_VERSION"),
            build_number: 0,
            cpu_info: self.engine.host().cpu.clone(),
            gpu_info: "",
            backends: "CPU",
            model_filename: gguf.path().display().to_string(),
            model_type: format!("{architecture} {} {}", short_count(params), ternary_type(gguf)),
            model_size: gguf.tensors().iter().map(|t| t.bytes).sum(),
            model_n_params: params,
            n_batch: self.args.session.batch(),
            n_ubatch: self.args.session.batch(),
            n_threads: self.session.pool().threads(),
            type_k: kv_type,
            type_v: kv_type,
            n_gpu_layers: 0,
            cpu_strict: self.session.pool().pinning() == Pinning::Cores,
            use_mmap: self.session.model().gguf().is_mapped(),
            huge_pages: self.engine.placement().pages == Pages::Huge,
            embeddings: false,
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.n_depth,
            n_parallel: test.n_parallel,
            test_time: bench::utc(test_time),
            avg_ns: mean(&ns),
            stddev_ns: standard_deviation(&ns),
            avg_ts: mean(&samples_ts),
            sequence_ts: mean(&samples_ts) / test.n_parallel as f64,
            stddev_ts: standard_deviation(&samples_ts),
            isa: self.engine.ceiling(),
            profile: self.engine.profile().clone(),
            kernels: self.kernels.0.clone(),
            lm_head,
            stage_ns: Stage::ALL.map(|s| (s.name(), per_repetition(s) * 1e9)).into(),
            sparse: self.skipped(test),
            bytes_per_token,
            read,
            multiply_add,
            samples_ns: samples.ns.clone(),
            samples_ts,
            name: test.to_string(),
        }
    }
}

/// Multiply-adds of the ternary matrices for one token.
fn multiply_adds(config: &Config) -> f64 {
    let weights = |job: JobShapes| {
        job.count as usize * job.parts.iter().map(|part| part.weights()).sum::<usize>()
    };
    config.jobs().into_iter().map(weights).sum::<usize>() as f64
}

/// Bytes that a token of a generation reads, on average.
#[derive(Clone, Copy, Serialize)]
struct DecodeBytes {
    /// The ternary matrices, as they are packed.
    weights: f64,
    head: f64,
    /// Keys and values of its position and those before.
    kv: f64,
    /// Norms, and a row of the embedding.
    other: f64,
}

impl DecodeBytes {
    fn all(self) -> f64 {
        self.weights + self.head + self.kv + self.other
    }
}

/// What was not skipped in a role, per token on average.
#[derive(Clone, Copy, Serialize)]
struct Skipped {
    /// Share of open gates, or of inputs other than zero.
    density: f64,
    /// Bytes of weights.
    read_per_token: f64,
}

/// How much of a resource of the machine a test used: what a token costs, what the test reached on
/// average, the median of the limits that were probed beside its repetitions, and the median of what
/// share each repetition reached of its own.
#[derive(Clone, Copy, Serialize)]
struct Reached {
    per_token: f64,
    per_second: f64,
    probe_per_second: Option<f64>,
    share: Option<f64>,
}

impl Reached {
    fn of(per_token: f64, tokens_per_second: &[f64], limits: &[f64]) -> Self {
        let pairs = tokens_per_second.iter().zip(limits);
        let shares: Vec<f64> = pairs.map(|(rate, limit)| per_token * rate / limit).collect();
        let middle = |values: &[f64]| (!values.is_empty()).then(|| bench::median(values));
        Self {
            per_token,
            per_second: per_token * mean(tokens_per_second),
            probe_per_second: middle(limits),
            share: middle(&shares),
        }
    }

    /// `24.3, 81 % of 30.1`, in units of `unit`.
    fn text(self, unit: f64, decimals: usize) -> String {
        let reached = format!("{:.decimals$}", self.per_second / unit);
        match (self.probe_per_second, self.share) {
            (Some(probe), Some(share)) => {
                format!("{reached}, {:.0} % of {:.decimals$}", share * 100.0, probe / unit)
            }
            _ => reached,
        }
    }
}

/// The format of the ternary weights as llama.cpp names it, such as `TQ2_0 - 2.06 bpw ternary`.
fn ternary_type(gguf: &Gguf) -> String {
    let mut formats = gguf.tensors().iter().map(|tensor| tensor.ty.format());
    let Some(format) = formats.find(|format| format.is_ternary()) else { return String::new() };
    let (weights, bytes) = format.size.block().unwrap_or((1, 0));
    let bits = (800.0 * bytes as f64 / weights as f64).round() / 100.0;
    format!("{} - {bits} bpw ternary", format.name.to_uppercase())
}

/// 2412820480 as `2.4B`, 10989696 as `11M`.
fn short_count(n: u64) -> String {
    if n >= 1_000_000_000 {
        format!("{:.1}B", n as f64 / 1e9)
    } else {
        format!("{}M", n / 1_000_000)
    }
}

/// A result: llama-bench's keys, then ours.
#[derive(Serialize)]
struct Row {
    build_commit: &'static str,
    build_number: u32,
    cpu_info: String,
    gpu_info: &'static str,
    backends: &'static str,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_ubatch: usize,
    n_threads: usize,
    type_k: &'static str,
    type_v: &'static str,
    n_gpu_layers: u32,
    cpu_strict: bool,
    use_mmap: bool,
    embeddings: bool,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: f64,
    stddev_ns: f64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,

    /// Sequences, and the tokens per second of each.
    n_parallel: usize,
    sequence_ts: f64,
    isa: Isa,
    huge_pages: bool,
    profile: ProfileInUse,
    kernels: BTreeMap<&'static str, RoleReport>,
    lm_head: HeadReport,
    /// Of a repetition, on average.
    stage_ns: BTreeMap<&'static str, f64>,
    /// What single tokens did not skip, of the roles that skip.
    sparse: BTreeMap<&'static str, Skipped>,
    /// What a token of a generation reads.
    bytes_per_token: Option<DecodeBytes>,
    /// Bytes that the tokens of a generation read.
    read: Option<Reached>,
    /// Multiply-adds in the ternary products of a prompt, while these run.
    multiply_add: Option<Reached>,
    #[serde(skip)]
    name: String,
}

/// Titles and widths of the columns, and whether they hold text; llama-bench's first.
const COLUMNS: [(&str, usize, bool); 13] = [
    ("model", 38, true),
    ("size", 10, false),
    ("params", 10, false),
    ("backend", 10, true),
    ("threads", 7, false),
    ("test", 13, false),
    ("t/s", 20, false),
    ("each", 8, false),
    ("MB/token", 8, false),
    ("GB/s, of probe", 18, false),
    ("T mul-add/s, of peak", 20, false),
    ("kernels", 20, true),
    ("profile", 20, true),
];

/// One line of the table; text to the left, numbers to the right.
fn line(cells: [String; COLUMNS.len()]) -> String {
    let mut line = String::from("|");
    for ((_, width, is_text), cell) in COLUMNS.iter().zip(cells) {
        let cell =
            if *is_text { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") };
        line += &cell;
    }
    line
}

fn header() -> String {
    let titles = line(COLUMNS.map(|(title, _, _)| title.to_owned()));
    let rule = line(COLUMNS.map(|(_, width, is_text)| {
        if is_text { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
    }));
    format!("{titles}\n{rule}")
}

impl Row {
    /// Layout and ISA of the ternary kernels, each pair once.
    fn ternary_kernels(&self) -> String {
        let ternary = |kernel: KernelId| matches!(kernel.op, Op::Ternary(_)).then_some(kernel);
        let kernels = self.kernels.values().filter_map(|kernels| {
            ternary(if self.n_gen == 0 { kernels.prefill } else { kernels.decode })
        });
        let names: BTreeSet<String> =
            kernels.map(|kernel| format!("{} {}", kernel.op, kernel.isa)).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    fn markdown(&self) -> String {
        let size = self.model_size as f64 / f64::from(1 << 20);
        let (size, unit) = if size >= 1024.0 { (size / 1024.0, "GiB") } else { (size, "MiB") };
        let params = self.model_n_params as f64 / 1e6;
        let (params, letter) = if params >= 1e3 { (params / 1e3, "B") } else { (params, "M") };
        let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
        line([
            self.model_type.clone(),
            format!("{size:.2} {unit}"),
            format!("{params:.2} {letter}"),
            self.backends.into(),
            self.n_threads.to_string(),
            self.name.clone(),
            format!("{:.2} ± {:.2}", self.avg_ts, self.stddev_ts),
            or_dash((self.n_parallel > 1).then(|| format!("{:.2}", self.sequence_ts))),
            or_dash(self.read.map(|read| format!("{:.1}", read.per_token / 1e6))),
            or_dash(self.read.map(|read| read.text(1e9, 1))),
            or_dash(self.multiply_add.map(|multiply| multiply.text(1e12, 3))),
            self.ternary_kernels(),
            self.profile.short_name(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let cases: &[(&str, &[usize])] = &[
            ("128", &[128]),
            ("1,2,4", &[1, 2, 4]),
            ("1-4", &[1, 2, 3, 4]),
            ("1-7+3", &[1, 4, 7]),
            ("1-8*2,9", &[1, 2, 4, 8, 9]),
            ("0", &[0]),
        ];
        for (text, expected) in cases {
            assert_eq!(list(text, 0, 4096), Ok(List(expected.to_vec())), "{text}");
        }
        for text in [
            "", "1,", "x", "-1", "1-", "5000", "1-5000", "1-4+0", "1-4*1", "0-4*2", "1-4+x", "1--4",
        ] {
            assert!(list(text, 0, 4096).is_err(), "{text}");
        }
        assert!(list("0", 1, 8).unwrap_err().contains("1..=8"));
        assert!(list("0-1048576", 0, 1 << 20).unwrap_err().contains("1024 values"));
        assert_eq!(pair("512,128"), Ok((512, 128)));
        assert!(pair("512").is_err() && pair("1,2,3").is_err() && pair("0,1").is_err());
    }
}
