//! `bitnet-tune --model`: tunes and writes a profile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{Effort, Isa, Profile, Provenance, atomic_file};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::kernels::{self, Selection};

use super::output::{self, Kind};
use super::show::job;
use super::{Bar, answer, note};
use crate::choose::choose;
use crate::journal::Journal;
use crate::report::{self, Extras};
use crate::{ModelInfo, Options, Result};

/// Default budget: enough for some 20 samples of every finalist for 2.4 billion weights on two
/// cores.
const BUDGET: Duration = Duration::from_secs(55);
const PATIENT_BUDGET: Duration = Duration::from_secs(300);

/// Tune for a model and write a profile
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, a GGUF file. Only its header is read: weights of its shapes are made up, since
    /// the speed does not depend on them
    #[arg(long, short, value_name = "FILE", required = true)]
    model: Option<PathBuf>,
    /// File to write the profile to
    #[arg(long, short, value_name = "FILE", default_value = "host.toml")]
    output: PathBuf,
    #[command(flatten)]
    common: super::Common,
    /// Time for all of it, such as 60s or 2m [default: 55s, or 5m with --effort patient]
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    budget: Option<Duration>,
    /// Go on with a run for the same model and output that was stopped
    #[arg(long)]
    resume: bool,
    /// estimate: nothing is timed, the choices that ship for this CPU serve; measure: what is worth timing;
    /// patient: everything the CPU can run, and kernels compiled for the model's own shapes, which
    /// takes a rustc
    #[arg(long, default_value = "measure")]
    effort: Effort,
    /// The best ISA tier to use
    #[arg(long, value_name = "ISA")]
    isa: Option<Isa>,
    /// Write everything that was measured to a JSON file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Write a report to an HTML file: every candidate's time, the roofline, the choice
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Tunes, writes the profile, and prints the report.
///
/// # Errors
/// The file is no ternary model, a flag does not fit this host, a file cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let Some(path) = &args.model else {
        return Err(Error::usage("--model", "nothing", "a GGUF file").into());
    };
    // Errors of arguments and files come before the minute of measuring.
    let model = ModelInfo::open(path)?;
    let ceiling = Selection::new(args.isa, None, None)?.ceiling();
    let files = [
        (Kind::Profile, Some(&args.output)),
        (Kind::Record, args.record.as_ref()),
        (Kind::Report, args.report.as_ref()),
    ];
    let named = files.into_iter().filter_map(|(kind, path)| Some((kind, path?.as_path())));
    output::check(&named.collect::<Vec<_>>())?;
    let budget = args.budget.unwrap_or(match args.effort {
        Effort::Estimate | Effort::Measure => BUDGET,
        Effort::Patient => PATIENT_BUDGET,
    });
    let options = Options {
        journal: Journal::path_for(&args.output),
        resume: args.resume,
        ..args.common.options(ceiling, args.effort, budget)?
    };
    if args.effort == Effort::Estimate {
        return estimate(args, path, &model, &options);
    }
    let mut tuned = {
        let bar = Bar::new();
        crate::tune(&model, &options, &mut |notice| bar.show(notice))?
    };
    if let Some(path) = &args.record {
        let text = serde_json::to_string_pretty(&tuned.measurements)
            .map_err(|e| Error::Runtime(format!("measurements have no JSON form: {e}")))?;
        atomic_file::replace(path, text.as_bytes()).map_err(|e| Error::io(path, "write", e))?;
    }
    if let Some(path) = &args.report {
        let extras = Extras {
            placements: &tuned.placements,
            comparison: tuned.comparison.as_ref().ok(),
            kept_default: tuned.kept_default,
            budget: Some(budget),
        };
        let choices = choose(&tuned.measurements, tuned.objective);
        let page = report::html(&tuned.measurements, &choices, &tuned.profile, &extras);
        atomic_file::replace(path, page.as_bytes()).map_err(|e| Error::io(path, "write", e))?;
    }
    tuned.profile.save(&args.output)?;
    tuned.finish();
    note(format_args!("wrote {}", args.output.display()));
    answer(|out| writeln!(out, "{tuned}{}", next(path, &args.output)))
}

/// Writes a profile of what ships for this CPU.
fn estimate(args: &Args, path: &Path, model: &ModelInfo, options: &Options) -> Result<()> {
    for (flag, file) in [("--record", &args.record), ("--report", &args.report)] {
        if file.is_some() {
            let expected = "--effort measure or patient: an estimate measures nothing";
            return Err(Error::usage(flag, "a file", expected).into());
        }
    }
    let profile = crate::estimate(model, options)?;
    profile.save(&args.output)?;
    note(format_args!("wrote {}", args.output.display()));
    let (name, _) = kernels::shipped().ternary(None, options.ceiling);
    let shipped = Shipped::all().iter().find(|shipped| shipped.name == name);
    let origin = shipped.map_or(String::new(), |shipped| {
        let Profile { tool, host, .. } = shipped.profile();
        match tool.provenance {
            Provenance::Measured => format!(", measured on {}", host.cpu),
            Provenance::Modelled => format!(", modelled for {}", host.cpu),
        }
    });
    answer(|out| {
        for op in &profile.ops {
            write!(out, "{}, {} per token", job(op.role, &op.parts), op.count)?;
            match op.layout {
                Some(layout) => writeln!(out, ": {layout}")?,
                None => writeln!(out)?,
            }
            for (phase, pick) in op.picks() {
                writeln!(out, "  {phase:<8} {}", pick.kernel)?;
            }
            if let Some(sparse) = &op.sparse {
                writeln!(out, "  {:<8} {} {sparse}", "sparse", sparse.kernel)?;
            }
        }
        writeln!(out, "\nnothing was timed: this is the shipped profile {name}{origin}")?;
        writeln!(out, "{}", next(path, &args.output))
    })
}

/// The lines that say what to run now, so that they can be copied.
fn next(model: &Path, output: &Path) -> String {
    let quoted = |path: &Path| {
        let file = path.display().to_string();
        let quotes = if file.contains(|c: char| c.is_whitespace()) { "\"" } else { "" };
        format!("{quotes}{file}{quotes}")
    };
    let (model, profile) = (quoted(model), quoted(output));
    format!(
        "next       bitnet-run --profile {profile} -p \"...\"\n\
         or first   bitnet-run pack --profile {profile} -m {model}   (keeps the packed weights: later runs begin with them)"
    )
}
