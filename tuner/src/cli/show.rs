//! `bitnet-tune show`: prints a profile, and how `bitnet-run` uses it here.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use bitnet_profiles::registry::{Defaults, Shipped};
use bitnet_profiles::{Choice, Isa, Profile, Provenance, Role, Shape, paths, printable};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::engine::{AbsentKernel, ProfileFit};
use bitnet_runtime::error::quoted;
use serde::Serialize;

use super::{answer, answer_json};
use crate::report::bytes;
use crate::{ModelInfo, Result};

/// Print a profile for people, and what bitnet-run would do with it on this CPU; without a name, list
/// the profiles that ship with the program
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A profile; auto: the one that bitnet-run finds for this CPU; the name of a shipped one
    #[arg(value_name = "FILE|auto|NAME")]
    profile: Option<PathBuf>,
    /// With auto: for this model, a GGUF file
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the profile.
///
/// # Errors
/// There is no such profile, or it is refused, or stdout is closed.
pub fn run(args: &Args) -> Result<()> {
    let host = Host::detect();
    let Some(name) = &args.profile else {
        if args.model.is_some() {
            return Err(only_with_auto());
        }
        return list(&host, args.json);
    };
    let named = named(&find(name, args.model.as_deref(), &host)?)?;
    let here = Here::of(&named, &host);
    if args.json {
        let file = named.path.display().to_string();
        answer_json(&Object { file, profile: &named.profile, here: &here })
    } else {
        answer(|out| write!(out, "{}", Shown { named: &named, here: &here }))
    }
}

/// Answer of `--json`.
#[derive(Serialize)]
struct Object<'a> {
    file: String,
    profile: &'a Profile,
    here: &'a Here,
}

/// Answer of `--json` for one shipped profile.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    /// CPU that it is made for; of a whole tier the one that stands for the others.
    cpu: &'static str,
    whole_tier: bool,
    isa: Isa,
    provenance: Provenance,
    date: &'static str,
    /// True if it serves on this CPU where nothing was tuned.
    serves: bool,
}

/// Lists the shipped profiles in order of precedence.
fn list(host: &Host, json: bool) -> Result<()> {
    let own = shipped_for(host);
    let listed = Shipped::all().iter().map(|shipped| {
        let Profile { tool, host, .. } = shipped.profile();
        Listed {
            name: &shipped.name,
            cpu: &host.cpu,
            whole_tier: shipped.is_class(),
            isa: shipped.isa,
            provenance: tool.provenance,
            date: &tool.date,
            serves: shipped.name == own,
        }
    });
    let listed: Vec<Listed> = listed.collect();
    if json {
        return answer_json(&listed);
    }
    answer(|out| {
        for Listed { name, cpu, whole_tier, isa, provenance, date, serves } in &listed {
            let (isa, provenance) = (isa.name(), provenance.to_string());
            let others = if *whole_tier { "others of this tier, as " } else { "" };
            let serves = if *serves { "; serves this CPU" } else { "" };
            writeln!(out, "{name:<16} {isa:<10} {provenance} {date}  {others}{cpu}{serves}")?;
        }
        Ok(())
    })
}

/// Returns the name of the shipped profile that serves on this CPU where nothing was tuned.
fn shipped_for(host: &Host) -> &'static str {
    &Defaults::of(&host.vendor, host.family, host.model, Isa::best()).shipped().name
}

/// A profile and its path or name.
pub(super) struct Named {
    path: PathBuf,
    pub(super) profile: Profile,
    is_shipped: bool,
}

/// Returns the profile in a file or, where there is none of that name, the shipped one.
///
/// # Errors
/// There is neither, or the file cannot be read or is refused.
pub(super) fn named(path: &Path) -> Result<Named> {
    let is_missing =
        || std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    // As shipped profiles are called: no folder, no extension.
    let bare = path.to_str().filter(|name| !name.contains(['/', '\\', '.']));
    let shipped = match bare.filter(|_| is_missing()) {
        None => None,
        Some(name) => {
            let names = || Shipped::all().iter().map(|shipped| shipped.name.as_str());
            let Some(shipped) = Shipped::all().iter().find(|shipped| shipped.name == name) else {
                let names = names().collect::<Vec<_>>().join(", ");
                let found = format!("{}, which is no file", quoted(name));
                let expected = format!("a file, auto, or a shipped profile: {names}");
                return Err(Error::usage("profile", found, expected).into());
            };
            Some(shipped.profile().clone())
        }
    };
    let is_shipped = shipped.is_some();
    let profile = shipped.map_or_else(|| read(path), Ok)?;
    Ok(Named { path: path.into(), profile, is_shipped })
}

/// Reads a profile.
///
/// # Errors
/// It cannot be read, or is refused.
pub(super) fn read(path: &Path) -> Result<Profile> {
    Ok(Profile::load(path).map_err(|e| Error::profile(path, e))?)
}

/// Returns the file that is meant: the one named or, with `auto`, the user's own for this CPU and
/// the model, or the only one for this CPU.
pub(super) fn find(name: &Path, model: Option<&Path>, host: &Host) -> Result<PathBuf> {
    if name.as_os_str() != "auto" {
        return match model {
            None => Ok(name.to_path_buf()),
            Some(_) => Err(only_with_auto()),
        };
    }
    let Some(folder) = paths::user_folder(|name| std::env::var_os(name)) else {
        let expected = "XDG_CONFIG_HOME or HOME to be an absolute path; or name a file";
        return Err(Error::usage("auto", "no folder of profiles", expected).into());
    };
    let name_for =
        |shapes: &str| paths::user_file_name(shapes, &host.vendor, host.family, host.model);
    if let Some(model) = model {
        let model = ModelInfo::open(model)?;
        return Ok(folder.join(name_for(&model.shapes)));
    }
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, "open", e))?;
    let of_cpu = name_for("");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(&of_cpu))
        .collect();
    names.sort();
    match &names[..] {
        [name] => Ok(folder.join(name)),
        [] => {
            let found = format!("none for this CPU in {}", folder.display());
            let expected = "a profile that bitnet-tune wrote there; or name a file";
            Err(Error::usage("auto", found, expected).into())
        }
        _ => {
            let found = printable(&names.join(", ")).into_owned();
            let expected = format!("one of them, in {}, or --model MODEL", folder.display());
            Err(Error::usage("auto", found, expected).into())
        }
    }
}

fn only_with_auto() -> crate::Error {
    Error::usage("--model", "a file", "it only with auto").into()
}

/// Use that `bitnet-run` makes of a profile on this CPU, with this build.
#[derive(Debug, Serialize)]
struct Here {
    /// True if it ships with the program.
    shipped: bool,
    /// Name of the shipped profile that serves on this CPU where nothing was tuned.
    shipped_here: &'static str,
    /// True if the profile was made on this kind of CPU; of shipped ones, if it serves on it.
    same_cpu: bool,
    #[serde(flatten)]
    fit: ProfileFit,
}

impl Here {
    fn of(named: &Named, host: &Host) -> Self {
        let shipped_here = shipped_for(host);
        let fit = ProfileFit::of(&named.profile, host);
        let same_cpu = match named.is_shipped {
            true => named.path.as_os_str() == shipped_here,
            false => fit.same_cpu,
        };
        Self { shipped: named.is_shipped, shipped_here, same_cpu, fit }
    }
}

/// Formats role and shapes of a choice.
pub(super) fn job(role: Role, parts: &[Shape]) -> String {
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    format!("{role} {}", parts.join(" "))
}

/// Profile as text. Whatever a file may hold goes through [`printable`].
struct Shown<'a> {
    named: &'a Named,
    here: &'a Here,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { tool, host, model, run, ops, .. } = &self.named.profile;
        let path = |path: &Path| printable(&path.display().to_string()).into_owned();
        let isa: Vec<&str> = host.isa.iter().map(|isa| isa.name()).collect();
        let shipped = if self.here.shipped { ", which ships with the program" } else { "" };
        writeln!(f, "profile  {}{shipped}", path(&self.named.path))?;
        writeln!(
            f,
            "model    {} ({}), shapes {}",
            printable(&model.name),
            printable(&model.architecture),
            model.shapes
        )?;
        if let Some(file) = &model.path {
            writeln!(f, "         {}", path(file))?;
        }
        writeln!(
            f,
            "host     {} ({} family {} model {} stepping {})",
            printable(&host.cpu),
            printable(&host.vendor),
            host.family,
            host.model,
            host.stepping
        )?;
        writeln!(
            f,
            "         {} cores, {} threads, L2 {}, L3 {}; {}",
            host.physical_cores,
            host.threads,
            bytes(host.l2),
            bytes(host.l3),
            isa.join(" ")
        )?;
        writeln!(
            f,
            "made     {} by bitnet-tune {}: {}, effort {}, for {}",
            printable(&tool.date),
            printable(&tool.version),
            tool.provenance,
            tool.effort,
            tool.objective
        )?;
        let measured = [
            host.read_gb_per_s.map(|rate| format!("memory reads {rate:.1} GB/s")),
            host.noise.map(|noise| format!("noise {:.1} %", 100.0 * noise)),
        ];
        let measured: Vec<String> = measured.into_iter().flatten().collect();
        if !measured.is_empty() {
            writeln!(f, "         {}", measured.join("; "))?;
        }
        writeln!(f, "runs     {}", run)?;
        match ops.is_empty() {
            true => writeln!(f, "\nno choices: bitnet-run takes its defaults for every role")?,
            false => self.choices(f)?,
        }
        self.verdict(f)
    }
}

impl Shown<'_> {
    fn choices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops = &self.named.profile.ops;
        let ids = ops.iter().flat_map(Choice::kernels);
        let ids = ids.map(|(_, kernel, _)| kernel.to_string().len());
        let width = ids.max().unwrap_or(0);
        match ops.iter().flat_map(Choice::picks).any(|(_, pick)| pick.timed.is_some()) {
            true => writeln!(
                f,
                "\n  {:<8} {:<width$} {:>10} {:>8} {:>8} {:>9}  runner-up",
                "", "kernel", "median us", "MAD us", "GB/s", "of limit"
            )?,
            false => writeln!(f, "\n  {:<8} kernel; nothing was timed", "")?,
        }
        for choice in ops {
            write!(f, "{}, {} per token", job(choice.role, &choice.parts), choice.count)?;
            match choice.layout {
                Some(layout) => writeln!(f, ": {layout}")?,
                None => writeln!(f)?,
            }
            for (phase, pick) in choice.picks() {
                let kernel = pick.kernel.to_string();
                let Some(timed) = &pick.timed else {
                    writeln!(f, "  {phase:<8} {kernel}")?;
                    continue;
                };
                write!(
                    f,
                    "  {phase:<8} {kernel:<width$} {:>10.2} {:>8.3} {:>8.1} {:>7.0} %",
                    timed.median_us,
                    timed.mad_us,
                    timed.gb_per_s,
                    100.0 * timed.share_of_limit
                )?;
                match timed.runner_up_ratio {
                    Some(ratio) => writeln!(f, "  {ratio:.2}x the time")?,
                    None => writeln!(f)?,
                }
            }
            if let Some(sparse) = &choice.sparse {
                let kernel = sparse.kernel.to_string();
                writeln!(f, "  {:<8} {kernel:<width$} {sparse}", "sparse")?;
            }
        }
        Ok(())
    }

    /// Writes how `bitnet-run` uses it.
    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Here { shipped, shipped_here, same_cpu, fit } = self.here;
        let ProfileFit { refused, same_fingerprint, library, from_library, absent, .. } = fit;
        let tool = &self.named.profile.tool;
        writeln!(f, "\nhere")?;
        match (refused, same_cpu) {
            (Some(why), _) => writeln!(f, "  refused  {why}")?,
            (None, true) if *shipped => {
                writeln!(f, "  serves   bitnet-run takes it where nothing was tuned")?;
            }
            (None, false) if *shipped => writeln!(
                f,
                "  other    for other CPUs: here bitnet-run takes {shipped_here} where nothing was tuned"
            )?,
            (None, true) => writeln!(f, "  fits     made on this kind of CPU")?,
            (None, false) => writeln!(
                f,
                "  other    made on another CPU: bitnet-run takes it only by --profile, and it may \
                 be slow"
            )?,
        }
        match (&tool.fingerprint, same_fingerprint) {
            (Some(_), Some(true)) => writeln!(f, "  same     made with this version's generator")?,
            (Some(own), _) => writeln!(
                f,
                "  other    made with another generator ({own}, this one is {}): the figures may \
                 not hold",
                bitnet_runtime::engine::FINGERPRINT
            )?,
            (None, _) => {}
        }
        match library {
            None => {}
            Some(Ok(())) => writeln!(f, "  library  the kernels made on the host are here")?,
            Some(Err(why)) => {
                writeln!(
                    f,
                    "  library  the kernels made on the host are not used: {}",
                    printable(why)
                )?;
            }
        }
        if refused.is_some() {
            return Ok(());
        }
        let all = self.named.profile.ops.iter().flat_map(Choice::kernels).count();
        let built_in = all - absent.len() - from_library;
        match (absent.len(), from_library) {
            _ if all == 0 => {}
            (0, 0) => writeln!(f, "  kernels  all {all} are built in")?,
            (0, some) => writeln!(f, "  kernels  {built_in} are built in, {some} in the library")?,
            (some, _) => writeln!(f, "  kernels  {some} of {all} are not here:")?,
        }
        for AbsentKernel { role, phase, kernel, instead, .. } in absent {
            let instead = instead.map_or("the default".into(), |kernel| kernel.to_string());
            writeln!(f, "           {role} {phase}: {kernel}, else {instead}")?;
        }
        Ok(())
    }
}
