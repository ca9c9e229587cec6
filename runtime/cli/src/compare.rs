//! `bitnet-run compare`: this program beside any that speaks as llama-bench does.
//!
//! Bandwidth and clock of a shared machine change within seconds, so absolute speeds of two sittings
//! say little. Here every test of the one program is followed, or preceded, by that of the other, in
//! processes of their own, round after round, and what counts is the ratio within each pair.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output as Outcome, Stdio};

use bitnet_profiles::printable;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::bench::{List, MAX_TOKENS, list, values};
use crate::output::{answer, note};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::threads::MAX_THREADS;
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::measure::bench::{Test, median};

/// Time this program and another, whose arguments are those of llama-bench, in turns
///
/// Every test of the one comes right before or after that of the other, each in a process of its own;
/// the ratio of the two is taken within each pair.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The other program: a llama-bench, of llama.cpp or one of its forks
    #[arg(long, value_name = "PROGRAM")]
    peer: PathBuf,
    /// Its model [default: that of -m]
    #[arg(long, value_name = "FILE")]
    peer_model: Option<PathBuf>,
    /// One more argument for it, such as --peer-arg=-fa --peer-arg=1
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    peer_arg: Vec<String>,
    /// The model
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Lengths of prompts; 0: none
    #[arg(short = 'p', long, value_name = "LIST", default_value = "128",
          value_parser = |text: &str| list(text, 0, MAX_TOKENS))]
    n_prompt: Vec<List>,
    /// Lengths of generations; 0: none
    #[arg(short = 'n', long, value_name = "LIST", default_value = "64",
          value_parser = |text: &str| list(text, 0, MAX_TOKENS))]
    n_gen: Vec<List>,
    /// Threads [default: one for each physical core]
    #[arg(short, long, value_name = "LIST", value_parser = |text: &str| list(text, 1, MAX_THREADS))]
    threads: Vec<List>,
    /// How often each test is run by both
    #[arg(short, long, value_name = "N", default_value_t = 7,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A table, or JSON with every sample
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Output,
    /// More arguments for this program's own bench, after --
    #[arg(last = true, value_name = "ARG")]
    own_args: Vec<String>,
}

/// Format of the ratios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Md,
    Json,
}

/// Runs the tests and prints the ratios.
///
/// # Errors
/// [`Error::Io`] when a program cannot be started, [`Error::Runtime`] when it fails or does not answer
/// as llama-bench does.
pub fn run(args: &Args) -> Result<()> {
    let this =
        std::env::current_exe().map_err(|e| Error::io(Path::new("/proc/self/exe"), "open", e))?;
    let own = Side {
        program: &this,
        arguments: std::iter::once("bench".to_owned()).chain(args.own_args.clone()).collect(),
        model: &args.model,
    };
    let peer = Side {
        program: &args.peer,
        arguments: args.peer_arg.clone(),
        model: args.peer_model.as_deref().unwrap_or(&args.model),
    };
    let mut threads: Vec<usize> = values(&args.threads).collect();
    if threads.is_empty() {
        threads.push(Host::detect().physical_cores);
    }
    let prompts =
        values(&args.n_prompt).map(|n| Test { n_prompt: n, n_gen: 0, n_depth: 0, n_parallel: 1 });
    let generations =
        values(&args.n_gen).map(|n| Test { n_prompt: 0, n_gen: n, n_depth: 0, n_parallel: 1 });
    let tests: Vec<Test> = prompts.chain(generations).filter(|test| test.tokens() > 0).collect();
    let mut pairs: Vec<Pair> = threads
        .iter()
        .flat_map(|&threads| tests.iter().map(move |&test| Pair::new(test, threads)))
        .collect();

    let bar = ProgressBar::new(u64::from(args.rounds) * pairs.len() as u64);
    let mut told = false;
    for round in 0..args.rounds {
        for pair in &mut pairs {
            bar.set_message(pair.test.to_string());
            // Nobody is always first.
            let (ours, theirs) = if round % 2 == 0 {
                let ours = own.time(pair.test, pair.threads)?;
                (ours, peer.time(pair.test, pair.threads)?)
            } else {
                let theirs = peer.time(pair.test, pair.threads)?;
                (own.time(pair.test, pair.threads)?, theirs)
            };
            if !told {
                bar.suspend(|| {
                    note(format_args!("this: {}", ours.introduction()));
                    note(format_args!("peer: {}", theirs.introduction()));
                });
                told = true;
            }
            pair.own.push(ours.avg_ts);
            pair.peer.push(theirs.avg_ts);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    answer(|out| match args.output {
        Output::Md => table(&pairs, args.rounds, out),
        Output::Json => {
            let rows: Vec<Row> = pairs.iter().map(Row::of).collect();
            serde_json::to_writer_pretty(&mut *out, &rows)?;
            writeln!(out)
        }
    })
}

/// A program that is timed.
struct Side<'a> {
    program: &'a Path,
    arguments: Vec<String>,
    model: &'a Path,
}

/// What llama-bench says of a test, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    n_prompt: usize,
    n_gen: usize,
    avg_ts: f64,
    #[serde(default)]
    build_commit: String,
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    model_size: u64,
}

impl Answer {
    fn introduction(&self) -> String {
        let Self { build_commit, model_type, model_size, .. } = self;
        let size = crate::output::human(*model_size);
        format!("build {}, {}, {size}", printable(build_commit), printable(model_type))
    }
}

impl Side<'_> {
    /// One test, once, after a run that is not timed.
    fn time(&self, test: Test, threads: usize) -> Result<Answer> {
        let mut command = Command::new(self.program);
        command.args(&self.arguments).arg("-m").arg(self.model);
        let numbers = [("-p", test.n_prompt), ("-n", test.n_gen), ("-t", threads), ("-r", 1)];
        for (flag, number) in numbers {
            command.args([flag, &number.to_string()]);
        }
        command.args(["-o", "json"]).stdin(Stdio::null());
        let outcome = command.output().map_err(|e| Error::io(self.program, "start", e))?;
        if !outcome.status.success() {
            let said = last_line(&outcome.stderr);
            return Err(self.failed(format!("{} at {test}, and says: {said}", outcome.status)));
        }
        self.read(test, &outcome)
    }

    fn read(&self, test: Test, outcome: &Outcome) -> Result<Answer> {
        // Some builds write lines of their own before the answer.
        let start = outcome.stdout.iter().position(|&byte| byte == b'[').unwrap_or(0);
        let answers: Vec<Answer> = serde_json::from_slice(&outcome.stdout[start..])
            .map_err(|e| self.failed(format!("no JSON as llama-bench's -o json: {e}")))?;
        let found = answers
            .into_iter()
            .find(|found| (found.n_prompt, found.n_gen) == (test.n_prompt, test.n_gen));
        let answer = found.ok_or_else(|| self.failed(format!("it answered without {test}")))?;
        if !(answer.avg_ts.is_finite() && answer.avg_ts > 0.0) {
            return Err(self.failed(format!("{test} at {} tokens/s", answer.avg_ts)));
        }
        Ok(answer)
    }

    fn failed(&self, problem: String) -> Error {
        Error::Runtime(format!("{}: {problem}", self.program.display()))
    }
}

/// The last line that says something.
fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    printable(last).chars().take(300).collect()
}

/// A test on so many threads, and the tokens per second of every round.
struct Pair {
    test: Test,
    threads: usize,
    own: Vec<f64>,
    peer: Vec<f64>,
}

impl Pair {
    fn new(test: Test, threads: usize) -> Self {
        Self { test, threads, own: Vec::new(), peer: Vec::new() }
    }

    /// The ratios of the rounds.
    fn ratios(&self) -> Vec<f64> {
        self.own.iter().zip(&self.peer).map(|(own, peer)| own / peer).collect()
    }
}

/// A median, and the values between which it lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// The narrowest pair of the sorted values that holds the true median in 95 cases of 100,
    /// whatever the distribution: the number of values below it is that of heads in as many tosses.
    /// Of fewer than 6 values the outermost, which hold it less often.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outside = outside(sorted.len());
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        Self {
            median: median(&sorted),
            low: at(outside),
            high: at(sorted.len().saturating_sub(1 + outside)),
        }
    }
}

/// How many of the least, and of the greatest, of so many values may be left out.
fn outside(count: usize) -> usize {
    // The chance of exactly `k` heads, from 0 on, and that of at most so many.
    let mut exactly = 0.5_f64.powi(count.try_into().unwrap_or(i32::MAX));
    let (mut k, mut at_most) = (0, exactly);
    while at_most <= 0.025 {
        k += 1;
        exactly *= (count + 1 - k) as f64 / k as f64;
        at_most += exactly;
    }
    k.saturating_sub(1)
}

/// With as many digits as mean something.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median < 100.0 { 1 } else { 0 };
        let Self { median, low, high } = self;
        write!(f, "{median:.digits$} ({low:.digits$} to {high:.digits$})")
    }
}

/// A row of the JSON.
#[derive(Serialize)]
struct Row<'a> {
    test: String,
    threads: usize,
    own_ts: &'a [f64],
    peer_ts: &'a [f64],
    ratio: Spread,
}

impl<'a> Row<'a> {
    fn of(pair: &'a Pair) -> Self {
        Self {
            test: pair.test.to_string(),
            threads: pair.threads,
            own_ts: &pair.own,
            peer_ts: &pair.peer,
            ratio: Spread::of(&pair.ratios()),
        }
    }
}

fn table(pairs: &[Pair], rounds: u32, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "| test | threads | this, tokens/s | peer, tokens/s | ratio |")?;
    writeln!(out, "|---|---:|---:|---:|---:|")?;
    for pair in pairs {
        let Pair { test, threads, own, peer } = pair;
        let Spread { median, low, high } = Spread::of(&pair.ratios());
        writeln!(
            out,
            "| {test} | {threads} | {} | {} | {median:.2}x [{low:.2}, {high:.2}] |",
            Spread::of(own),
            Spread::of(peer)
        )?;
    }
    let holds = if rounds >= 6 { "95 % intervals" } else { "ranges" };
    writeln!(out, "\n{rounds} rounds; medians and their {holds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_the_median_in_95_of_100_cases() {
        // From tables of the sign test.
        for (count, expected) in [
            (1, 0),
            (5, 0),
            (6, 0),
            (8, 0),
            (9, 1),
            (11, 1),
            (12, 2),
            (15, 3),
            (20, 5),
            (1000, 468),
        ] {
            assert_eq!(outside(count), expected, "{count}");
        }
        let values = [5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 7.0, 8.0, 6.0];
        assert_eq!(Spread::of(&values), Spread { median: 5.0, low: 2.0, high: 8.0 });
        assert_eq!(Spread::of(&values[..3]), Spread { median: 2.0, low: 1.0, high: 5.0 });
    }
}
