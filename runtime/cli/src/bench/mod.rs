//! `bitnet-run bench`: llama-bench's table, and what share of the machine's limits is reached.

mod list;
mod output;
mod row;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_profiles::{Pinning, Role};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::gather::Along;
use bitnet_runtime::cpu::memory::{self, Pages};
use bitnet_runtime::cpu::model::{MAX_SEQUENCES, Needs, Session, SessionOptions, Stage};
use bitnet_runtime::cpu::threads::{MAX_THREADS, Pool, PoolOptions};
use bitnet_runtime::engine::report::{HeadReport, KernelReport};
use bitnet_runtime::engine::{Engine, Options, Start};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::TensorInfo;
use bitnet_runtime::measure::bench::{self, Samples, Test, Tokens, mean, standard_deviation};
use bitnet_runtime::measure::probe;

use self::list::pair;
pub(crate) use self::list::{List, MAX_TOKENS, list, values};
use self::output::{Columns, Format, Printer, Stream};
use self::row::{DecodeBytes, Reached, Row, Skipped, multiply_adds, short_count, ternary_type};
use crate::interrupt::Interrupt;
use crate::load::{
    self, CacheType, KernelArgs, MAX_BATCH, PERFORMANCE, PackedArgs, PlacementArgs, SessionArgs,
};
use crate::output::note;

/// Bytes that the bandwidth probe streams: several times any L3 cache.
const PROBE_BYTES: usize = 1 << 30;
/// Fewer would find a cache.
const LEAST_PROBE_BYTES: usize = 1 << 28;
/// Weights of which a cache may keep so many that a probe between repetitions would make them slower.
const CACHED_BYTES: usize = 64 << 20;

/// Time prompts and generations as llama-bench does
///
/// Lists and ranges: 1,2,4 or 1-4 or 1-8*2 or 128-512+128.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; several: repeat the flag, or put commas between; none: the one that --profile FILE was made for
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
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// A table for people or one of llama-bench's for programs: md, json, jsonl, csv or sql
    #[arg(short, long, value_name = "FORMAT", default_value = "md", hide_possible_values = true)]
    output: Format,
    /// The same on stderr
    #[arg(long, visible_alias = "oe", value_name = "FORMAT", hide_possible_values = true)]
    output_err: Option<Format>,
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
    /// Tokens of a prompt that go through the model together, at most
    #[arg(short, long = "batch-size", value_name = "LIST", default_value = "2048",
          value_parser = |text: &str| list(text, 1, MAX_BATCH), help_heading = PERFORMANCE)]
    batch: Vec<List>,
    /// The same; the smaller of both counts; 0: as --batch-size
    #[arg(long = "ubatch-size", visible_alias = "ub", value_name = "LIST", default_value = "512",
          value_parser = |text: &str| list(text, 0, MAX_BATCH), help_heading = PERFORMANCE)]
    ubatch: Vec<List>,
    /// Keys in the KV cache: f16, f32 or q8_0 [default: f16, f32 for small models]
    #[arg(long = "cache-type-k", visible_alias = "ctk", value_name = "LIST", value_delimiter = ',',
          hide_possible_values = true, help_heading = PERFORMANCE)]
    cache_type_k: Vec<CacheType>,
    /// Values in the KV cache: the same type as keys
    #[arg(long = "cache-type-v", visible_alias = "ctv", value_name = "LIST", value_delimiter = ',',
          hide_possible_values = true, help_heading = PERFORMANCE)]
    cache_type_v: Vec<CacheType>,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    packed: PackedArgs,
    /// 0: read the file into memory instead of mapping it
    #[arg(long, visible_alias = "mmp", value_name = "0|1", default_value = "1",
          value_parser = load::switch(), action = clap::ArgAction::Set,
          help_heading = PERFORMANCE)]
    mmap: bool,
}

impl Args {
    /// The models, of which one may have no path; a name with a comma that is no file is a list, as in
    /// llama-bench.
    fn models(&self) -> Vec<Option<PathBuf>> {
        if self.model.is_empty() {
            return vec![None];
        }
        let paths = self.model.iter().flat_map(|path| match path.to_str() {
            Some(list) if !path.exists() => list.split(',').map(PathBuf::from).collect(),
            _ => vec![path.clone()],
        });
        paths.map(Some).collect()
    }

    /// The sessions of each number of threads, in llama-bench's order.
    fn sessions(&self) -> Vec<SessionArgs> {
        let types = |given: &[CacheType]| match given {
            [] => vec![None],
            given => given.iter().copied().map(Some).collect(),
        };
        let mut sessions = Vec::new();
        for batch in values(&self.batch) {
            for ubatch in values(&self.ubatch) {
                for cache_type_k in types(&self.cache_type_k) {
                    for cache_type_v in types(&self.cache_type_v) {
                        let [batch, ubatch] = [batch, ubatch].map(|n| n as u32);
                        sessions.push(SessionArgs { batch, ubatch, cache_type_k, cache_type_v });
                    }
                }
            }
        }
        sessions
    }

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

/// Runs the tests and prints each result as soon as it is known, until Ctrl+C. Returns the program's
/// exit code.
///
/// # Errors
/// Those of loading the model, and of the session; [`Error::Usage`] for a test that does not fit
/// into the model's context; [`Error::Runtime`] when a logit is no number.
pub fn run(args: &Args) -> Result<ExitCode> {
    let tests = args.tests();
    let sessions = args.sessions();
    let models = args.models();
    let columns = Columns {
        batches: sessions.iter().any(|session| session.batch() != sessions[0].batch()),
        kv_types: args.cache_type_k.len().max(args.cache_type_v.len()) > 1,
    };
    let mut printers = vec![Printer::new(args.output, columns, Stream::Stdout)];
    printers.extend(args.output_err.map(|format| Printer::new(format, columns, Stream::Stderr)));
    let interrupt = Interrupt::watch();
    'models: for path in models {
        let (path, options) = args.kernels.open(path.as_deref(), args.placement)?;
        let options = Options { mmap: args.mmap, packed: args.packed.option(), ..options };
        let leave = "leave it as it is while it is used, or give --mmap 0";
        if args.mmap {
            bus_error::explain(&path, None, leave);
        }
        let gguf = options.file(path)?;
        let config = Config::from_gguf(&gguf)?;
        if let Some(test) = tests.iter().find(|test| test.context() > config.context) {
            let expected = format!("at most {}, the context of the model", config.context);
            let found = format!("{} positions", test.context());
            return Err(Error::usage(format!("test {test}"), found, expected));
        }
        // Whoever has most threads packs, so that every thread touches what it will read.
        let options = Options {
            threads: values(&args.threads).max(),
            fixed_threads: args.fixed_threads,
            needs: Needs::GREEDY.clone(),
            tokenizer: false,
            start: Start::Packed,
            progress: Some(load::progress(Arc::default())),
            cancel: Some(interrupt.cancel()),
            ..options
        };
        let engine = match Engine::from_gguf(gguf, options) {
            Err(Error::Interrupted) => break,
            engine => engine?,
        };
        load::explain_bus_errors(&engine, leave);
        load::tell(&engine);
        let model = engine.model()?;
        let most = engine.pool().threads();
        let mut threads: Vec<usize> = values(&args.threads).collect();
        if threads.is_empty() {
            threads.push(most);
        }
        let context = tests.iter().map(Test::context).max();
        let sequences = values(&args.parallel).max().unwrap_or(1);
        for flags in &sessions {
            let options = SessionOptions { sequences, ..flags.options(context)? };
            for &threads in &threads {
                let mut session = if threads == most {
                    engine.session(options)?
                } else {
                    let pinning = engine.placement().pinning;
                    let spare = !args.fixed_threads;
                    let pool = Arc::new(Pool::with(PoolOptions { threads, pinning, spare })?);
                    Session::new(Arc::clone(&model), pool, options)?
                };
                load::tell(&engine);
                for &test in &tests {
                    let mut bench = Bench {
                        args,
                        flags,
                        engine: &engine,
                        kernels: KernelReport::of(&model),
                        session: &mut session,
                        interrupt: &interrupt,
                    };
                    let Some(row) = bench.row(test)? else { break 'models };
                    for printer in &mut printers {
                        printer.row(&row)?;
                    }
                }
            }
        }
    }
    for printer in &mut printers {
        printer.end()?;
    }
    Ok(interrupt.exit_code())
}

/// A test's surroundings.
struct Bench<'a> {
    args: &'a Args,
    flags: &'a SessionArgs,
    engine: &'a Engine,
    kernels: KernelReport,
    session: &'a mut Session,
    interrupt: &'a Interrupt,
}

impl Bench<'_> {
    /// Times the test beside the limit that bounds it. What memory and the clock give changes within
    /// seconds, so it is probed around every repetition, but for reads of models that caches may keep once
    /// before. `None` when the program was interrupted.
    fn row(&mut self, test: Test) -> Result<Option<Row>> {
        let interrupt = self.interrupt;
        if interrupt.is_requested() {
            return Ok(None);
        }
        let pool = Arc::clone(self.session.pool());
        let decodes = test.n_prompt == 0;
        let stream = if decodes { self.stream() } else { None };
        let prefills = test.n_gen == 0;
        let test_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let repetitions = self.args.repetitions as usize;
        let mut limits = Vec::with_capacity(repetitions + 1);
        let ceiling = self.engine.ceiling();
        let mut probe = || -> Result<()> {
            match &stream {
                Some(stream) => limits.push(stream.read_bandwidth(&pool, 1)?),
                None if prefills => limits.extend(probe::multiply_add_rate(&pool, ceiling, 1)?),
                None => {}
            }
            Ok(())
        };
        let packed: usize = self.kernels.0.values().map(|kernels| kernels.packed_bytes).sum();
        let cached = decodes && packed < CACHED_BYTES;
        if cached {
            probe()?;
        }
        let mut tokens = Tokens::new();
        if !self.args.no_warmup {
            bench::warm_up(self.session, test, &mut tokens)?;
        }
        let before = self.session.head_stats();
        let mut between = || match interrupt.is_requested() {
            true => Err(Error::Interrupted),
            false if cached => Ok(()),
            false => probe(),
        };
        let timed = bench::time(self.session, test, repetitions, &mut tokens, &mut between);
        if interrupt.is_requested() {
            return Ok(None);
        }
        let samples = timed?;
        if !cached {
            probe()?;
        }
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
        let multiply = prefills.then(|| {
            let products = Stage::PRODUCTS.map(|stage| samples.stages.of(stage).as_secs_f64());
            let per_second = (repetitions * test.tokens()) as f64 / products.iter().sum::<f64>();
            let limit = (!limits.is_empty()).then(|| mean(&limits));
            let limit: Vec<f64> = limit.into_iter().collect();
            Reached::of(multiply_adds(self.session.model().config()), &[per_second], &limit)
        });
        Ok(Some(self.report(test, &samples, test_time, head, (bytes, read), multiply)))
    }

    /// Memory for the probe to read. Of a machine without room for it there is no figure, but still a test.
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

    /// Weights that single tokens did not skip in the test, by role.
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

    /// Bytes that a token of a generation reads on average: its share of the weights, but for those that were
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
                let qk_norms = layer.qk_norms.iter().flatten().map(Some);
                always.into_iter().chain(sub_norms).chain(qk_norms)
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
            n_batch: self.flags.batch(),
            n_ubatch: self.flags.batch(),
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
