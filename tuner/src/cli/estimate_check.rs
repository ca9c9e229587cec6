//! `bitnet-tune estimate-check`: holds the machine model against recorded measurements.

use std::path::PathBuf;

use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;

use super::answer;
use crate::Result;
use crate::machine::Cpu;
use crate::machine::check::{ENOUGH, WITHIN, check, share};
use crate::machine::kinds::{KINDS, Kind};
use crate::measure::Measurements;

/// Compare the machine model's picks with what was measured to be the fastest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Records of `bitnet-tune --record FILE`, for one model and number of threads; of several the
    /// medians count
    #[arg(required = true, value_name = "FILE")]
    records: Vec<PathBuf>,
    /// The kind of CPU to predict for; this host's by default
    #[arg(long, value_name = "KIND")]
    cpu: Option<String>,
}

/// Prints a line for each role and phase, and the share of good picks; true if that is enough.
///
/// # Errors
/// A file that is no record, a kind of CPU that the model does not know.
pub fn run(args: &Args) -> Result<bool> {
    let cpu = match &args.cpu {
        None => Cpu::of(&Host::detect()),
        Some(name) => {
            let kind: Option<&'static Kind> = KINDS.iter().find(|kind| kind.name == name);
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            Cpu::usual(kind.ok_or_else(|| Error::usage("--cpu", name, names.join(", ")))?)
        }
    };
    let mut records: Vec<Measurements> = Vec::new();
    for path in &args.records {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let record = serde_json::from_str(&text).map_err(|e| {
            let found = format!("{}, which is no record: {e}", path.display());
            Error::usage("FILE", found, "what `bitnet-tune --record FILE` wrote")
        })?;
        records.push(record);
    }
    let jobs = |record: &Measurements| -> Vec<_> {
        record.jobs.iter().map(|job| (job.role, job.parts.clone())).collect()
    };
    if records.iter().any(|record| jobs(record) != jobs(&records[0])) {
        let expected = "records of one model";
        return Err(Error::usage("FILE", "records of different jobs", expected).into());
    }
    let checked = check(&records, &cpu);
    let (good, all) = (checked.iter().filter(|c| c.is_within()).count(), checked.len());
    answer(|out| {
        writeln!(out, "{}, {} threads", cpu.kind.cpu, records[0].limits.threads)?;
        checked.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        let within = 100.0 * WITHIN;
        writeln!(out, "{good} of {all} picks within {within:.0} % of the fastest")
    })?;
    Ok(share(&checked) >= ENOUGH)
}
