//! The way through: model, plan, measurements, choices, profile.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitnet_codegen::Phase;
use bitnet_profiles::{
    self as profiles, Effort, Isa, KernelId, Mode, Objective, Pick, Pinning, Profile, Provenance,
    Tool,
};
use bitnet_runtime::host::Host;
use bitnet_runtime::kernels::{self, Kernel};
use bitnet_runtime::threads::Pool;

use crate::Result;
use crate::choose::{self, Choice, choose};
use crate::measure::{self, Measurements, Progress, measure, phase_name};
use crate::model::ModelInfo;
use crate::plan::plan;
use crate::verify::Wrong;

/// How to tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The best tier that may be used; one that this CPU has.
    pub ceiling: Isa,
    /// What to weigh.
    pub objective: Objective,
    /// How many candidates to try.
    pub effort: Effort,
    /// How long to measure.
    pub budget: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// What was measured.
    pub measurements: Measurements,
    /// Kernels that computed something wrong, each a bug to report.
    pub wrong: Vec<Wrong>,
    /// What was weighed.
    pub objective: Objective,
    /// The profile.
    pub profile: Profile,
}

/// Verifies and times every candidate for `model` with the threads of `pool`, and chooses.
///
/// # Errors
/// Memory that the system refuses, a worker that panicked.
pub fn tune(
    model: &ModelInfo,
    pool: &Pool,
    options: Options,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Tuned> {
    let host = Host::detect();
    let present: Vec<KernelId> = kernels::builtin().iter().map(Kernel::id).copied().collect();
    let plan = plan(&model.jobs, &present, options.ceiling, options.effort);
    let settings = measure::Settings {
        ceiling: options.ceiling,
        budget: options.budget,
        other_bytes: model.head_bytes,
    };
    let (measurements, wrong) = measure(&plan, pool, &host, settings, progress)?;
    let choices = choose(&measurements, options.objective);
    let profile = profile(model, &host, options, &measurements, &choices);
    Ok(Tuned { measurements, wrong, objective: options.objective, profile })
}

fn profile(
    model: &ModelInfo,
    host: &Host,
    options: Options,
    measurements: &Measurements,
    choices: &[Choice<'_>],
) -> Profile {
    let text = |text: &str| text.chars().filter(|c| !c.is_control()).take(64).collect();
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: Some(bitnet_codegen::fingerprint()),
            objective: options.objective,
            effort: options.effort,
            date: today(),
            library_sha256: None,
            provenance: Provenance::Measured,
        },
        host: profiles::Host {
            cpu: text(&host.cpu),
            vendor: text(&host.vendor),
            family: host.family,
            model: host.model,
            stepping: host.stepping,
            isa: Isa::supported().collect(),
            physical_cores: host.physical_cores as u32,
            threads: host.threads as u32,
            l2: host.l2,
            l3: host.l3,
            read_gb_per_s: rounded(measurements.read_gb_per_s),
            noise: rounded(measurements.noise),
        },
        model: profiles::Model {
            name: model.name.clone(),
            architecture: model.architecture.into(),
            shapes: model.shapes.clone(),
            path: model.path.clone(),
        },
        run: profiles::Run {
            threads: measurements.threads,
            pinning: Pinning::None,
            // What the runtime's arenas ask for.
            huge_pages: cfg!(target_os = "linux"),
        },
        ops: choices.iter().map(|choice| profile_choice(measurements, choice)).collect(),
    }
}

fn profile_choice(measurements: &Measurements, choice: &Choice<'_>) -> profiles::Choice {
    let pick = |phase| {
        let chosen = choice.chosen(phase);
        let timing = chosen.timing;
        let tokens = if phase == Phase::Decode { 1 } else { choice.job.tokens };
        Pick {
            kernel: timing.kernel,
            tokens,
            median_us: rounded(timing.median_us),
            mad_us: rounded(timing.mad_us),
            gb_per_s: rounded(choice.layout.bytes as f64 / timing.median_us.max(1e-3) / 1e3),
            share_of_limit: rounded(choice.share_of_limit(measurements, phase)),
            runner_up: chosen.runner_up.map(|second| second.kernel),
            runner_up_ratio: chosen.runner_up.map(|second| rounded(second.ratio / timing.ratio)),
            // Only built-in kernels are tried, so each is its own fallback.
            built_in: timing.kernel,
        }
    };
    profiles::Choice {
        role: choice.job.role,
        parts: choice.job.parts.clone(),
        count: choice.job.count,
        layout: Some(choice.layout.layout),
        mode: Mode::Dense,
        decode: pick(Phase::Decode),
        prefill: Some(pick(Phase::Prefill)),
    }
}

/// To four digits after the point: more would pretend.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

impl fmt::Display for Tuned {
    /// The report: for every job what was chosen, its share of the limit and its gain over the
    /// default, and what that makes for a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.measurements;
        let choices = choose(m, self.objective);
        for wrong in &self.wrong {
            writeln!(f, "WRONG, left out, please report: {}: {}", wrong.kernel, wrong.found)?;
        }
        write!(f, "{} threads, memory reads {:.1} GB/s", m.threads, m.read_gb_per_s)?;
        if !m.cold {
            write!(f, ", the cache that holds this model {:.1} GB/s", m.limit_gb_per_s)?;
        }
        if let Some(rate) = m.limit_gmac_per_s {
            write!(f, ", {rate:.0} G multiply-adds/s")?;
        }
        writeln!(f, "; noise {:.1} %", 100.0 * m.noise)?;
        if m.disturbed {
            writeln!(f, "the machine was not quiet: intervals are widened; tune again when it is")?;
        }
        writeln!(
            f,
            "\n{:<55} {:>11}  {:>8}  speed against the default",
            "job: layout, kernels", "median", "of limit"
        )?;
        for choice in &choices {
            let parts: Vec<String> = choice.job.parts.iter().map(ToString::to_string).collect();
            let (role, count) = (choice.job.role, choice.job.count);
            writeln!(f, "{role} {}, {count} per token: {}", parts.join(" "), choice.layout.layout)?;
            for phase in [Phase::Decode, Phase::Prefill] {
                let timing = choice.chosen(phase).timing;
                writeln!(
                    f,
                    "  {:<8} {:<44} {:>8.1} us  {:>6.0} %  {}",
                    phase_name(phase),
                    timing.kernel,
                    timing.median_us,
                    100.0 * choice.share_of_limit(m, phase),
                    choice.gain(phase),
                )?;
            }
        }
        writeln!(f, "matrix products of one token, predicted")?;
        for phase in [Phase::Decode, Phase::Prefill] {
            let (chosen, default) = choose::per_token_us(&choices, phase);
            writeln!(
                f,
                "  {:<8} {:.3} ms, by default {:.3} ms: {}",
                phase_name(phase),
                chosen / 1e3,
                default / 1e3,
                choose::total_gain(&choices, phase)
            )?;
        }
        Ok(())
    }
}

/// The day by UTC, `YYYY-MM-DD`.
fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(now.as_secs() / 86_400)
}

/// The date so many days after 1970-01-01: years are counted from March, so that the leap day is
/// the last of a year, in eras of 400 years.
fn date(days: u64) -> String {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (days, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (10_956, "1999-12-31"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_777, "2026-11-20"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), text, "{days}");
        }
    }
}
