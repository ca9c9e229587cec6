//! `bitnet-tune diff`: differences between two profiles.

use std::fmt::{self, Display};
use std::path::PathBuf;

use bitnet_profiles::{Choice, KernelId, Pick, Profile, Role, Shape, printable};
use serde::Serialize;

use super::show::{job, named};
use super::{answer, answer_json};
use crate::Result;
use crate::report::bytes;

/// Print what differs between two profiles; the exit code is 1 where the choices do
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A profile, or the name of a shipped one
    #[arg(value_name = "FILE|NAME")]
    a: PathBuf,
    /// Another one
    #[arg(value_name = "FILE|NAME")]
    b: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the differences; true if the choices are the same.
///
/// # Errors
/// A profile cannot be read or is refused, or stdout is closed.
pub fn run(args: &Args) -> Result<bool> {
    let (a, b) = (named(&args.a)?.profile, named(&args.b)?.profile);
    let differences = Differences::of(&a, &b);
    if args.json {
        answer_json(&differences)?;
    } else {
        answer(|out| write!(out, "{differences}"))?;
    }
    Ok(differences.same_choices)
}

/// Differences between two profiles.
#[derive(Debug, PartialEq, Serialize)]
struct Differences {
    /// True if nothing at all differs.
    identical: bool,
    /// True if both have the same choices.
    same_choices: bool,
    /// Fields about origin and purpose that differ.
    origin: Vec<Field>,
    /// Placements, if they differ.
    run: Option<Field>,
    /// Roles that differ.
    roles: Vec<RoleDifference>,
    /// Number of kernels that are the same, and of all that are in both.
    same_kernels: usize,
    kernels: usize,
}

/// A value that differs.
#[derive(Debug, PartialEq, Serialize)]
struct Field {
    name: &'static str,
    a: String,
    b: String,
}

/// A role that differs.
#[derive(Debug, PartialEq, Serialize)]
struct RoleDifference {
    role: Role,
    parts: Vec<Shape>,
    /// `a` or `b`, where only that one has it.
    only_in: Option<&'static str>,
    /// Other fields that differ.
    fields: Vec<Field>,
    kernels: Vec<KernelDifference>,
}

/// A phase with different kernels.
#[derive(Debug, PartialEq, Serialize)]
struct KernelDifference {
    phase: &'static str,
    a: Side,
    b: Side,
    /// Time of a token of `b` over that of `a`.
    ratio: Option<f64>,
}

/// A kernel of one profile.
#[derive(Debug, PartialEq, Serialize)]
struct Side {
    kernel: KernelId,
    built_in: KernelId,
    /// Activation rows, and the time with them; nothing where nothing was timed.
    tokens: Option<u32>,
    median_us: Option<f64>,
    mad_us: Option<f64>,
}

impl Side {
    fn of(pick: &Pick) -> Self {
        let timed = pick.timed.as_ref();
        Self {
            kernel: pick.kernel,
            built_in: pick.built_in,
            tokens: timed.map(|timed| timed.tokens),
            median_us: timed.map(|timed| timed.median_us),
            mad_us: timed.map(|timed| timed.mad_us),
        }
    }
}

/// Lists the fields of `names` that differ.
fn fields<const N: usize>(names: [&'static str; N], a: [String; N], b: [String; N]) -> Vec<Field> {
    let all = names.into_iter().zip(a.into_iter().zip(b));
    all.filter(|(_, (a, b))| a != b).map(|(name, (a, b))| Field { name, a, b }).collect()
}

/// Describes origin and purpose of a profile.
fn origin(profile: &Profile) -> [String; 12] {
    let Profile { tool, host, model, .. } = profile;
    let isa: Vec<&str> = host.isa.iter().map(|isa| isa.name()).collect();
    let none = || "none".to_string();
    let not_measured = || "not measured".to_string();
    [
        model.name.clone(),
        model.architecture.clone(),
        model.shapes.clone(),
        model.path.as_ref().map_or_else(none, |path| path.display().to_string()),
        format!(
            "{} ({} family {} model {} stepping {})",
            host.cpu, host.vendor, host.family, host.model, host.stepping
        ),
        format!(
            "{} cores, {} threads, L2 {}, L3 {}; {}",
            host.physical_cores,
            host.threads,
            bytes(host.l2),
            bytes(host.l3),
            isa.join(" ")
        ),
        host.read_gb_per_s.map_or_else(not_measured, |rate| format!("{rate:.1} GB/s")),
        host.noise.map_or_else(not_measured, |noise| format!("{:.1} %", 100.0 * noise)),
        format!("{}, effort {}, for {}", tool.provenance, tool.effort, tool.objective),
        format!("{} by bitnet-tune {}", tool.date, tool.version),
        tool.fingerprint.clone().unwrap_or_else(none),
        tool.library_sha256.clone().unwrap_or_else(none),
    ]
}

const ORIGIN: [&str; 12] = [
    "model",
    "architecture",
    "shapes",
    "path",
    "host",
    "cores",
    "memory reads",
    "noise",
    "how",
    "made",
    "fingerprint",
    "library",
];

impl Differences {
    fn of(a: &Profile, b: &Profile) -> Self {
        let settings = |profile: &Profile| [profile.run.to_string()];
        let run = fields(["run"], settings(a), settings(b)).pop();
        let mut roles = Vec::new();
        let (mut same_kernels, mut kernels) = (0, 0);
        let only = |choice: &Choice, only_in| RoleDifference {
            role: choice.role,
            parts: choice.parts.clone(),
            only_in: Some(only_in),
            fields: Vec::new(),
            kernels: Vec::new(),
        };
        for own in &a.ops {
            let Some(other) = b.choice(own.role, &own.parts) else {
                roles.push(only(own, "a"));
                continue;
            };
            let changed: Vec<KernelDifference> = kernel_differences(own, other);
            let all = own.picks().count();
            kernels += all;
            same_kernels += all - changed.len();
            let described = |choice: &Choice| {
                let layout = choice.layout.map_or_else(|| "none".into(), |l| l.to_string());
                [layout, choice.count.to_string()]
            };
            let mut fields = fields(["layout", "count"], described(own), described(other));
            fields.extend(sparse_difference(own, other));
            if !(changed.is_empty() && fields.is_empty()) {
                let (role, parts) = (own.role, own.parts.clone());
                roles.push(RoleDifference { role, parts, only_in: None, fields, kernels: changed });
            }
        }
        let missing = |choice: &&Choice| a.choice(choice.role, &choice.parts).is_none();
        roles.extend(b.ops.iter().filter(missing).map(|choice| only(choice, "b")));
        Self {
            identical: a == b,
            same_choices: run.is_none() && roles.is_empty(),
            origin: fields(ORIGIN, origin(a), origin(b)),
            run,
            roles,
            same_kernels,
            kernels,
        }
    }
}

/// Compares the activation sparsity of a role, but not what it gained.
fn sparse_difference(a: &Choice, b: &Choice) -> Option<Field> {
    let choice = |choice: &Choice| {
        choice.sparse.as_ref().map(|sparse| (sparse.kernel, sparse.built_in, sparse.below))
    };
    let words = |choice: &Choice| {
        let Some(sparse) = &choice.sparse else { return "the default".to_string() };
        let instead = match sparse.built_in == sparse.kernel {
            true => String::new(),
            false => format!(", else {}", sparse.built_in),
        };
        format!("{}{instead}, {sparse}", sparse.kernel)
    };
    let field = || Field { name: "sparse", a: words(a), b: words(b) };
    (choice(a) != choice(b)).then(field)
}

/// Lists the phases whose kernels or fallbacks differ.
fn kernel_differences(a: &Choice, b: &Choice) -> Vec<KernelDifference> {
    let pairs = a.picks().filter_map(|(phase, own)| {
        let (_, other) = b.picks().find(|(other, _)| *other == phase)?;
        Some((phase, own, other))
    });
    pairs
        .filter(|(_, a, b)| (a.kernel, a.built_in) != (b.kernel, b.built_in))
        .map(|(phase, a, b)| {
            let us = |pick: &Pick| {
                let timed = pick.timed.as_ref()?;
                Some(timed.median_us / f64::from(timed.tokens))
            };
            let ratio = us(a).filter(|us| *us > 0.0).zip(us(b)).map(|(a, b)| b / a);
            KernelDifference { phase, a: Side::of(a), b: Side::of(b), ratio }
        })
        .collect()
}

/// As text. Whatever a file may hold goes through [`printable`].
impl Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.identical {
            return writeln!(f, "the profiles are identical");
        }
        for Field { name, a, b } in self.origin.iter().chain(&self.run) {
            writeln!(f, "{name:<13} {}\n{:>13} {}", printable(a), "->", printable(b))?;
        }
        for role in &self.roles {
            role.fmt(f)?;
        }
        let (same, all) = (self.same_kernels, self.kernels);
        match (self.same_choices, all) {
            (true, _) => writeln!(f, "the choices are the same"),
            (false, 0) => writeln!(f, "the choices differ"),
            (false, _) => writeln!(f, "the choices differ; {same} of {all} kernels are the same"),
        }
    }
}

impl Display for RoleDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = job(self.role, &self.parts);
        if let Some(side) = self.only_in {
            return writeln!(f, "{job}: only in {}", side.to_uppercase());
        }
        writeln!(f, "{job}")?;
        for Field { name, a, b } in &self.fields {
            writeln!(f, "  {name:<8} {a} -> {b}")?;
        }
        for KernelDifference { phase, a, b, ratio } in &self.kernels {
            let side = |side: &Side| {
                let tokens = match side.tokens {
                    None | Some(1) => String::new(),
                    Some(n) => format!(" for {n} tokens"),
                };
                let time = side.median_us.map_or(String::new(), |us| format!(", {us:.2} us"));
                let instead = match side.built_in == side.kernel {
                    true => String::new(),
                    false => format!(", else {}", side.built_in),
                };
                format!("{}{time}{tokens}{instead}", side.kernel)
            };
            write!(f, "  {phase:<8} {}\n{:>10} {}", side(a), "->", side(b))?;
            match ratio {
                Some(ratio) if a.tokens == b.tokens => writeln!(f, ", {ratio:.2}x the time")?,
                Some(ratio) => writeln!(f, ", {ratio:.2}x the time of a token")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
