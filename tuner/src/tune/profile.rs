//! Conversion of choices to a profile.

use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_codegen::Phase;
use bitnet_profiles::{self as profiles, Isa, Pick, Profile, Provenance, Role, Run, Timed, Tool};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::measure::bench;

use super::outcome::Options;
use crate::choose::{self, ChosenGather, JobChoice};
use crate::measure::Measurements;
use crate::model::ModelInfo;
use crate::plan::placement;
use crate::stats::rounded;

/// The profile of what was measured.
pub(super) fn profile(
    model: &ModelInfo,
    host: &Host,
    options: &Options,
    measurements: &Measurements,
    choices: &[JobChoice<'_>],
    run: &Run,
) -> Profile {
    let mut profile = empty(model, host, options);
    profile.tool.provenance = Provenance::Measured;
    profile.host.read_gb_per_s = Some(rounded(measurements.limits.read_gb_per_s));
    profile.host.noise = Some(rounded(measurements.noise));
    profile.run = run.clone();
    profile.ops = choices.iter().map(|choice| profile_choice(measurements, choice)).collect();
    profile
}

/// A profile of a model on this host, without choices or figures.
pub(super) fn empty(model: &ModelInfo, host: &Host, options: &Options) -> Profile {
    let text = |text: &str| text.chars().filter(|c| !c.is_control()).take(64).collect();
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: Some(bitnet_codegen::fingerprint()),
            objective: options.objective,
            effort: options.effort,
            date: date_of(SystemTime::now()),
            library_sha256: None,
            provenance: Provenance::Modelled,
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
            read_gb_per_s: None,
            noise: None,
        },
        model: profiles::Model {
            name: model.name.clone(),
            architecture: model.architecture.into(),
            shapes: model.shapes.clone(),
            path: model.path.clone(),
        },
        run: placement::untuned(options.threads),
        ops: Vec::new(),
    }
}

fn profile_choice(measurements: &Measurements, choice: &JobChoice<'_>) -> profiles::Choice {
    let pick = |phase| {
        let chosen = choice.chosen(phase)?;
        let timing = chosen.timing;
        let tokens = if phase == Phase::Decode { 1 } else { choice.job.tokens };
        let timed = Timed {
            tokens,
            median_us: rounded(timing.median_us),
            mad_us: rounded(timing.mad_us),
            gb_per_s: rounded(choice.layout.bytes as f64 / timing.median_us.max(1e-3) / 1e3),
            share_of_limit: rounded(
                choice.share_of_limit(&measurements.limits, phase).unwrap_or(0.0),
            ),
            runner_up: chosen.runner_up.map(|second| second.kernel),
            runner_up_ratio: chosen.runner_up.map(|second| rounded(second.ratio / timing.ratio)),
        };
        let built_in = choose::built_in(choice.layout.timings(phase), timing).kernel;
        Some(Pick { kernel: timing.kernel, timed: Some(timed), built_in })
    };
    let decode = pick(Phase::Decode);
    profiles::Choice {
        role: choice.job.role,
        parts: choice.job.parts.clone(),
        count: choice.job.count,
        layout: choice.layout.layout,
        decode: decode.expect("every choice has a kernel for one token"),
        prefill: (choice.job.role != Role::Attention).then(|| pick(Phase::Prefill)).flatten(),
        sparse: choice.gather.map(ChosenGather::to_profile),
    }
}

/// Formats the day by UTC, `YYYY-MM-DD`; a clock that was never set shows the first it can.
fn date_of(time: SystemTime) -> String {
    const YEAR_9999: u64 = 2_932_896;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = bench::utc((since.as_secs() / 86_400).min(YEAR_9999) * 86_400);
    text.truncate("YYYY-MM-DD".len());
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn t12_a_clock_that_was_never_set_has_a_date() {
        let day = Duration::from_secs(86_400);
        for (time, text) in [
            (UNIX_EPOCH, "1970-01-01"),
            (UNIX_EPOCH - day, "1970-01-01"),
            (UNIX_EPOCH + day, "1970-01-02"),
            (UNIX_EPOCH + 2_932_896 * day, "9999-12-31"),
            (UNIX_EPOCH + 2_932_897 * day, "9999-12-31"),
            (UNIX_EPOCH + 100_000_000 * day, "9999-12-31"),
        ] {
            assert_eq!(date_of(time), text, "{time:?}");
        }
    }

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
            let time = UNIX_EPOCH + Duration::from_secs(86_400 * days);
            assert_eq!(date_of(time), text, "{days}");
        }
    }
}
