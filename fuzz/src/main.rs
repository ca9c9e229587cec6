//! Runs fuzz targets on mutants of their seeds. Each part of the work is done by a process of its
//! own, which this one watches: so whatever ends or stops it, the mutant is known and written to a
//! file.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitnet_fuzz::{TARGETS, Target, mutant};
use clap::Parser;
use tempfile::NamedTempFile;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Longest time of one mutant.
const PATIENCE: Duration = Duration::from_secs(60);
/// Period at which a process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Processes that a target's mutants are shared out to, one after another.
const PARTS: u64 = 4;
/// Bytes of address space of a process.
#[cfg(unix)]
const MEMORY: u64 = 2 << 30;

/// Give mutated inputs to everything that reads what others wrote
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The targets, by name [default: all]
    #[arg(long = "target", value_name = "NAME", value_parser = target)]
    targets: Vec<&'static Target>,
    /// Mutants of each target; where none is named, a tenth of it for those that are slow
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    mutants: u64,
    /// The same seed gives the same mutants
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Processes at a time [default: one for each CPU]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder for mutants that a target does not survive
    #[arg(long, value_name = "FOLDER", default_value = "target/fuzz")]
    found: PathBuf,
    /// Give the target the bytes of a file instead of mutants
    #[arg(long, value_name = "FILE", requires = "targets")]
    replay: Option<PathBuf>,
    /// Do the mutants from one number up to another in this process, and keep the number in a file
    #[arg(long, hide = true, num_args = 3, value_names = ["FROM", "TO", "FILE"])]
    part: Option<Vec<String>>,
}

fn target(name: &str) -> Result<&'static Target, String> {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.ok_or_else(|| format!("it is none of {}", names.join(", ")))
}

/// A part of the mutants of a target.
#[derive(Debug, Clone)]
struct Part {
    target: &'static Target,
    from: u64,
    to: u64,
}

/// Outcome of a part: how many mutants were accepted, or the first that the target did not survive.
type Outcome = Result<u64, String>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// True if all targets survived.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    if let Some(file) = &arguments.replay {
        let bytes = fs::read(file).map_err(|e| format!("{}: cannot read: {e}", file.display()))?;
        for target in &arguments.targets {
            let accepted = (target.run)(&bytes);
            println!("{}: {}", target.name, if accepted { "accepted" } else { "refused" });
        }
        return Ok(true);
    }
    if let Some(part) = &arguments.part {
        do_part(arguments, part)?;
        return Ok(true);
    }
    let targets: Vec<&'static Target> = match &arguments.targets[..] {
        [] => TARGETS.iter().collect(),
        some => some.to_vec(),
    };
    let start = Instant::now();
    let is_named = !arguments.targets.is_empty();
    let parts = targets.iter().flat_map(|&target| {
        let mutants = if is_named { arguments.mutants } else { arguments.mutants / target.cost };
        let bound = move |n: u64| mutants * n / PARTS;
        (0..PARTS).map(move |n| Part { target, from: bound(n), to: bound(n + 1) })
    });
    let queue: Mutex<VecDeque<Part>> = Mutex::new(parts.collect());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let jobs = arguments
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(part) = next() {
                    let outcome = watch(arguments, &part).unwrap_or_else(|e| Err(e.to_string()));
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let outcome = outcome.map(|accepted| (accepted, part.to - part.from));
                    done.push((part.target.name, outcome));
                    tell(part.target.name, &done);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{:.0} s", start.elapsed().as_secs_f64());
    Ok(done.iter().all(|(_, outcome)| outcome.is_ok()))
}

/// Mutants that a part has accepted, and all that it has done; or why it ended early.
type Done = Result<(u64, u64), String>;

/// Prints the line of a target whose parts are all done.
fn tell(name: &str, done: &[(&str, Done)]) {
    let own = || done.iter().filter(|(own, _)| *own == name).map(|(_, outcome)| outcome);
    if own().count() as u64 != PARTS {
        return;
    }
    match own().cloned().collect::<Result<Vec<(u64, u64)>, String>>() {
        Ok(parts) => {
            let accepted: u64 = parts.iter().map(|part| part.0).sum();
            let mutants: u64 = parts.iter().map(|part| part.1).sum();
            println!("{name}: {mutants} mutants, {accepted} of them accepted, ok");
        }
        Err(why) => println!("{name}: {why}"),
    }
}

/// Has a part done by another process.
fn watch(arguments: &Arguments, part: &Part) -> Result<Outcome, Failure> {
    let Part { target, from, to } = part;
    let (mut number, errors) = (NamedTempFile::new()?, NamedTempFile::new()?);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--target", target.name, "--seed", &arguments.seed.to_string(), "--part"]);
    command.args([from.to_string(), to.to_string()]).arg(number.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.reopen()?);
    let mut child = command.spawn()?;
    let (mut last, mut since) = (0, Instant::now());
    let problem = loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                let mut accepted = String::new();
                child.stdout.take().ok_or("no stdout")?.read_to_string(&mut accepted)?;
                return Ok(Ok(accepted.trim().parse()?));
            }
            break format!("ended it: {status}");
        }
        let now = read_number(number.as_file_mut())?;
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            break format!("took over {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK);
    };
    let at = read_number(number.as_file_mut())?;
    let file = arguments.found.join(format!("{}-{}-{at}", target.name, arguments.seed));
    fs::create_dir_all(&arguments.found)?;
    fs::write(&file, mutant(arguments.seed, at, &(target.seeds)()))?;
    let words = fs::read_to_string(errors.path()).unwrap_or_default();
    Ok(Err(format!(
        "mutant {at} of seed {} {problem}\n{words}again: cargo run --release -p bitnet-fuzz -- \
         --target {} --replay {}",
        arguments.seed,
        target.name,
        file.display()
    )))
}

fn read_number(file: &mut File) -> Result<u64, Failure> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
}

/// Does a part, and prints how many mutants were accepted.
fn do_part(arguments: &Arguments, part: &[String]) -> Result<(), Failure> {
    let ([target], [from, to, file]) = (&arguments.targets[..], part) else {
        return Err("a part takes one target".into());
    };
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) })?;
        // What a crash leaves is the mutant, not the memory of this process.
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    }
    let mut file = File::options().write(true).open(Path::new(file))?;
    let seeds = (target.seeds)();
    let mut accepted = 0;
    for number in from.parse()?..to.parse()? {
        file.rewind()?;
        file.write_all(&u64::to_le_bytes(number))?;
        accepted += u64::from((target.run)(&mutant(arguments.seed, number, &seeds)));
    }
    println!("{accepted}");
    Ok(())
}
