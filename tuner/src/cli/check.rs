//! `bitnet-tune check`: times a profile's picks again.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_profiles::{Isa, Profile, printable};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use serde::Serialize;

use super::show::{find, job, read};
use super::{Bar, answer, answer_json, note, stopped_by_signals, threads};
use crate::check::{
    CheckOptions, Checked, PhaseCheck, Rival, RivalKind, RoleCheck, Skipped, SparseCheck, check,
};
use crate::measure::Excluded;
use crate::supervise::WorkerProgram;
use crate::timing::comparison;
use crate::{ModelInfo, Result};

/// Time a profile's picks again, against the runner-up and the untuned default; the exit code is 1
/// where one lags by more than the noise
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile; auto: the one that bitnet-run finds for this CPU
    #[arg(long, value_name = "FILE|auto")]
    profile: PathBuf,
    /// The model, a GGUF file; by default the one that the profile names
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Threads; the profile's by default
    #[arg(long, short, value_name = "N")]
    threads: Option<usize>,
    /// Time for all of it, such as 20s
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = super::duration)]
    budget: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Checks the profile and prints the outcome; true if all its picks hold.
///
/// # Errors
/// The profile or the model cannot be read or is refused, they do not fit, a worker failed, the user
/// stopped it.
pub fn run(args: &Args) -> Result<bool> {
    let host = Host::detect();
    let auto = args.profile.as_os_str() == OsStr::new("auto");
    let path = find(&args.profile, args.model.as_deref().filter(|_| auto), &host)?;
    let profile = read(&path)?;
    profile.check_isa(Isa::is_supported).map_err(|e| Error::profile(&path, e))?;
    let model = model(args.model.as_deref(), &path, &profile)?;
    let tuned = profile.run.threads as usize;
    let threads = threads(Some(args.threads.unwrap_or(tuned.min(host.threads))))?;
    if threads != tuned {
        note(format_args!("timed on {threads} threads; the profile was made for {tuned}"));
    }
    let own = (profile.host.vendor.as_str(), profile.host.family, profile.host.model);
    if own != (host.vendor.as_str(), host.family, host.model) {
        note(format_args!("the profile was made on another CPU, {}", printable(&profile.host.cpu)));
    }
    let options = CheckOptions {
        threads,
        budget: args.budget,
        worker: WorkerProgram::this()?,
        stop: stopped_by_signals()?,
    };
    let checked = {
        let bar = Bar::new();
        check(&profile, &model, &options, &mut |notice| bar.show(notice))?
    };
    if args.json {
        answer_json(&Object { file: path.display().to_string(), threads, checked: &checked })?;
    } else {
        checked.notes.iter().for_each(|line| note(format_args!("{line}")));
        let shown = Shown { path: &path, profile: &profile, threads, checked: &checked };
        answer(|out| write!(out, "{shown}"))?;
    }
    Ok(checked.holds)
}

/// Opens the model that a profile is for.
fn model(flag: Option<&Path>, file: &Path, profile: &Profile) -> Result<ModelInfo> {
    let (model, name) = match (flag, &profile.model.path) {
        (Some(path), _) => (ModelInfo::open(path)?, path.display().to_string()),
        (None, Some(path)) => {
            // A relative path begins where the profile is.
            let path = file.parent().unwrap_or(Path::new("")).join(path);
            (ModelInfo::open(&path)?, path.display().to_string())
        }
        (None, None) => {
            // That of `bitnet-tune demo` is in no file.
            let demo = ModelInfo::from_gguf(&comparison::open(None)?)?;
            if demo.shapes != profile.model.shapes {
                let found = format!("none, and {} names none either", file.display());
                return Err(Error::usage("--model", found, "--model MODEL").into());
            }
            let name = demo.name.clone();
            (demo, name)
        }
    };
    if model.shapes != profile.model.shapes {
        let found = format!("{name}, of shapes {}", model.shapes);
        let expected = format!("a model of the profile's shapes, {}", profile.model.shapes);
        return Err(Error::usage("--model", found, expected).into());
    }
    Ok(model)
}

/// Answer of `--json`.
#[derive(Serialize)]
struct Object<'a> {
    file: String,
    threads: usize,
    #[serde(flatten)]
    checked: &'a Checked,
}

/// Answer as text.
struct Shown<'a> {
    path: &'a Path,
    profile: &'a Profile,
    threads: usize,
    checked: &'a Checked,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { tool, host, model, .. } = self.profile;
        let Checked { limits, noise, disturbed, roles, .. } = self.checked;
        let path = self.path.display().to_string();
        writeln!(
            f,
            "{}: {}, {} {}",
            printable(&path),
            printable(&model.name),
            tool.provenance,
            printable(&tool.date)
        )?;
        writeln!(
            f,
            "{} thread{}, memory reads {:.1} GB/s{}; noise {:.1} %",
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            limits.read_gb_per_s,
            host.read_gb_per_s
                .map_or(String::new(), |before| format!(" ({before:.1} GB/s in the profile)")),
            100.0 * noise
        )?;
        if *disturbed {
            writeln!(
                f,
                "the machine was not quiet: intervals are widened; check again when it is"
            )?;
        }
        if !roles.is_empty() {
            writeln!(f, "\nper job the pick's time, and its speed over that of its rivals")?;
        }
        roles.iter().try_for_each(|role| show_role(f, role))?;
        self.verdict(f)
    }
}

/// Half-width from which on a check without a lag says little.
const TELLING: f64 = 0.1;

/// Width of a column of kernel ids; longer ones push the rest to the right.
const WIDTH: usize = 45;

fn show_role(f: &mut fmt::Formatter<'_>, role: &RoleCheck) -> fmt::Result {
    write!(f, "{}, {} per token", job(role.role, &role.parts), role.count)?;
    match role.layout {
        Some(layout) => writeln!(f, ": {layout}")?,
        None => writeln!(f)?,
    }
    let show_rival = |f: &mut fmt::Formatter<'_>, rival: &Rival| {
        let Rival { kind, kernel, lags, .. } = rival;
        let gain = rival.gain();
        let mark = if *lags { "  lags" } else { "" };
        let kernel = kernel.to_string();
        write!(f, "    {kind:<9} {kernel:<WIDTH$} ")?;
        match gain.is_unknown() {
            true => writeln!(f, "too noisy to say"),
            false => {
                writeln!(f, "{:.2}x [{:.2}, {:.2}]{mark}", gain.times, gain.low, gain.high)
            }
        }
    };
    for phase in &role.phases {
        let PhaseCheck { phase, pick, serves, median_us, rivals, absent_runner_up, wrong } = phase;
        let time = median_us.map_or("not timed".into(), |us| format!("{us:.1} us"));
        let is_default = rivals.iter().all(|rival| rival.kind != RivalKind::Default);
        let note = if is_default && median_us.is_some() { ", the default" } else { "" };
        let kernel = serves.to_string();
        writeln!(f, "  {phase:<11} {kernel:<WIDTH$} {time}{note}")?;
        if pick != serves {
            writeln!(f, "    stands in for {pick}, which is not present here")?;
        }
        if let Some(Excluded { why, found, .. }) = wrong {
            writeln!(f, "    {why}: {found}; please report it")?;
        }
        if let Some(kernel) = absent_runner_up {
            let kernel = kernel.to_string();
            writeln!(f, "    {:<9} {kernel:<WIDTH$} not kept", RivalKind::RunnerUp)?;
        }
        rivals.iter().try_for_each(|rival| show_rival(f, rival))?;
    }
    if let Some(SparseCheck { pick, serves, quarter, lag }) = &role.sparse {
        let kernel = pick.kernel.to_string();
        writeln!(f, "  {:<11} {kernel:<WIDTH$} {pick}", "sparse")?;
        if let Some(serves) = serves.filter(|serves| *serves != pick.kernel) {
            writeln!(f, "    {serves} stands in for it, which is not present here")?;
        }
        if let Some(quarter) = quarter {
            let (gain, mark) = (quarter.gain(), if lag.is_some() { "  lags" } else { "" });
            write!(f, "    {:<9} {:<WIDTH$} ", "dense", "where 25 % are needed")?;
            match gain.is_unknown() {
                true => writeln!(f, "too noisy to say")?,
                false => {
                    writeln!(f, "{:.2}x [{:.2}, {:.2}]{mark}", gain.times, gain.low, gain.high)?;
                }
            }
        }
    }
    if !role.together.is_empty() {
        writeln!(f, "  both phases, weighed as the profile was tuned for")?;
    }
    role.together.iter().try_for_each(|rival| show_rival(f, rival))
}

impl Shown<'_> {
    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles = &self.checked.roles;
        if roles.is_empty() {
            return writeln!(f, "\nok: the profile makes no choice, so there is nothing to check");
        }
        let phases = || roles.iter().flat_map(|role| &role.phases);
        let absent = phases().filter(|phase| phase.pick != phase.serves).count();
        let all = phases().count();
        writeln!(f)?;
        if absent > 0 {
            writeln!(f, "{absent} of {all} kernels are not present here: fallbacks are used")?;
        }
        for role in roles {
            for (phase, rival) in role.lost() {
                let phase = phase.unwrap_or("in both phases");
                let slower = 100.0 * (rival.ratio - 1.0);
                let noise = 100.0 * rival.half_width;
                let kind = rival.kind;
                writeln!(
                    f,
                    "{} {phase} lags: {slower:.1} % slower than the {kind}, noise {noise:.1} %",
                    role.role
                )?;
            }
            if let Some(Skipped { density, ratio, half_width }) =
                role.sparse.as_ref().and_then(|sparse| sparse.lag)
            {
                writeln!(
                    f,
                    "{} sparse lags: {:.1} % slower than reading all where {:.0} % are needed, noise \
                     {:.1} %",
                    role.role,
                    100.0 * (ratio - 1.0),
                    100.0 * density,
                    100.0 * half_width
                )?;
            }
            for Excluded { kernel, why, .. } in role.wrong() {
                writeln!(f, "{} {why}: {kernel}; please report it", role.role)?;
            }
        }
        if !self.checked.holds {
            return writeln!(f, "the profile does not hold here: run bitnet-tune again");
        }
        let counted = phases().flat_map(|phase| &phase.rivals);
        let counted = counted.chain(roles.iter().flat_map(|role| &role.together));
        let widths = counted.filter(|rival| rival.counts).map(|rival| rival.half_width);
        let most = widths.fold(0.0, f64::max);
        match most < TELLING {
            true => {
                let most = 100.0 * most;
                writeln!(f, "ok: no kernel lags beyond the noise, {most:.1} % at most")
            }
            false => writeln!(
                f,
                "ok: no kernel lags beyond the noise, but that is large; check again with a larger \
                 --budget,\nor when the machine is quiet"
            ),
        }
    }
}
