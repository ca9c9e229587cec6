//! `bitnet-run energy`: joules for each token, by the counters of the CPU.

pub mod counters;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use bitnet_runtime::engine::{Engine, Options, Start};
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::measure::bench::{self, Test, Tokens};
use bitnet_runtime::{Needs, Session, SessionOptions};
use serde::Serialize;

use crate::compare::Spread;
use crate::interrupt::Interrupt;
use crate::load::{self, KernelArgs, PERFORMANCE, PlacementArgs};
use crate::output::{answer, note};
use counters::Counters;

/// Where Linux shows the counters.
const ROOT: &str = "/sys/class/powercap";

/// Measure the energy that prompts and generations take, for each token
///
/// The counters are those that Linux shows of Intel's and AMD's CPUs: packages, and memory where the CPU
/// counts it. Without them nothing is estimated.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model; none: the one that --profile FILE was made for
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Tokens of the prompt; 0: none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    n_prompt: u32,
    /// Tokens generated; 0: none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    n_gen: u32,
    /// Repetitions of each
    #[arg(short, long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Seconds of rest before, in which the power of the idle machine is read
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    idle: u32,
    /// One line of JSON with every sample in place of a table
    #[arg(long)]
    json: bool,
    /// Folder of the counters
    #[arg(long, value_name = "DIR", default_value = ROOT, hide = true)]
    sysfs: PathBuf,
    /// Worker threads; 0: one for each CPU [default: the profile's, else one for each physical core]
    #[arg(short, long, value_name = "N", value_parser = load::threads,
          allow_negative_numbers = true, help_heading = PERFORMANCE)]
    threads: Option<usize>,
    #[command(flatten, next_help_heading = PERFORMANCE)]
    kernels: KernelArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// Measures, until Ctrl+C, and returns the program's exit code.
///
/// # Errors
/// [`Error::Runtime`] where no counter can be read; those of opening the model and of the session.
pub fn run(args: &Args) -> Result<ExitCode> {
    // Before the model, which takes long.
    let counters = Counters::find(&args.sysfs)?;
    let tests: Vec<Test> = [(args.n_prompt as usize, 0), (0, args.n_gen as usize)]
        .into_iter()
        .map(|(n_prompt, n_gen)| Test { n_prompt, n_gen, n_depth: 0, n_parallel: 1 })
        .filter(|test| test.tokens() > 0)
        .collect();
    if tests.is_empty() {
        return Err(Error::usage("-p and -n", "0 for both", "one of them at least 1"));
    }
    let interrupt = Interrupt::watch();
    let (path, options) = args.kernels.open(args.model.as_deref(), args.placement)?;
    let options = Options {
        threads: args.threads,
        needs: Needs::GREEDY.clone(),
        tokenizer: false,
        start: Start::Packed,
        progress: Some(load::progress(std::sync::Arc::default())),
        cancel: Some(interrupt.cancel()),
        ..options
    };
    let engine = Engine::open(&path, options)?;
    load::explain_bus_errors(&engine, "leave it as it is while it is used");
    load::tell(&engine);
    let context = tests.iter().map(Test::context).max();
    let mut session = engine.session(SessionOptions { context, ..SessionOptions::default() })?;
    load::tell(&engine);
    note(format_args!("counters: {}; {} s of rest first", counters.names(), args.idle));
    let Some(idle_watts) = idle(&counters, args.idle, &interrupt)? else {
        return Ok(interrupt.exit_code());
    };
    let mut rows = Vec::new();
    for test in tests {
        let row = measure(&counters, &mut session, test, args.repetitions, &interrupt)?;
        rows.extend(row);
    }
    let report = Report {
        counters: counters.names(),
        threads: engine.pool().threads(),
        idle_watts,
        tests: rows,
    };
    answer(|out| {
        if args.json {
            serde_json::to_writer(&mut *out, &report)?;
            return writeln!(out);
        }
        writeln!(out, "| test | tokens/s | W | J/token | J/token above rest |")?;
        writeln!(out, "|---|---:|---:|---:|---:|")?;
        for row in &report.tests {
            let of = |value: fn(&Sample, f64) -> f64| {
                Spread::of(&row.samples.iter().map(|s| value(s, idle_watts)).collect::<Vec<_>>())
            };
            let rate = of(|sample, _| sample.tokens as f64 / sample.seconds);
            let watts = of(|sample, _| sample.joules / sample.seconds);
            let spent = of(|sample, _| sample.joules / sample.tokens as f64);
            let above =
                of(|sample, idle| (sample.joules - idle * sample.seconds) / sample.tokens as f64);
            let precise = |s: Spread| format!("{:.4} ({:.4} to {:.4})", s.median, s.low, s.high);
            writeln!(
                out,
                "| {} | {rate} | {watts} | {} | {} |",
                row.test,
                precise(spent),
                precise(above)
            )?;
        }
        writeln!(out, "\nat rest {idle_watts:.1} W; medians and the values between which they lie")
    })?;
    Ok(interrupt.exit_code())
}

/// Reads the power of the machine at rest; `None` if it was interrupted.
fn idle(counters: &Counters, seconds: u32, interrupt: &Interrupt) -> Result<Option<f64>> {
    let (start, before) = (Instant::now(), counters.read()?);
    let whole = Duration::from_secs(seconds.into());
    while start.elapsed() < whole {
        if interrupt.is_requested() {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50).min(whole.saturating_sub(start.elapsed())));
    }
    let joules = counters.joules(&before, &counters.read()?);
    Ok(Some(joules / start.elapsed().as_secs_f64()))
}

/// Measures a test; `None` if it was interrupted before the first repetition.
fn measure(
    counters: &Counters,
    session: &mut Session,
    test: Test,
    repetitions: u32,
    interrupt: &Interrupt,
) -> Result<Option<Row>> {
    let mut tokens = Tokens::new();
    bench::warm_up(session, test, &mut tokens)?;
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        if interrupt.is_requested() {
            break;
        }
        let (start, before) = (Instant::now(), counters.read()?);
        let timed = bench::time(session, test, 1, &mut tokens, || Ok(()))?;
        let joules = counters.joules(&before, &counters.read()?);
        let seconds = start.elapsed().as_secs_f64();
        samples.push(Sample { tokens: timed.tokens, seconds, joules });
    }
    Ok((!samples.is_empty()).then(|| Row { test: test.to_string(), samples }))
}

/// What was found.
#[derive(Serialize)]
struct Report {
    counters: String,
    threads: usize,
    idle_watts: f64,
    tests: Vec<Row>,
}

/// A test.
#[derive(Serialize)]
struct Row {
    test: String,
    samples: Vec<Sample>,
}

/// A repetition.
#[derive(Serialize)]
struct Sample {
    tokens: usize,
    seconds: f64,
    joules: f64,
}
