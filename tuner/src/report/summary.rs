//! Summary of a run as text: for every job its choice, and at the end the gain.

use std::fmt;

use bitnet_codegen::Phase;

use super::figures::figure;
use crate::choose::{self, Demand, JobChoice, Prediction, choose};
use crate::measure::lengths::{PROMPT, WRITTEN};
use crate::measure::{Excluded, Limits, PHASES, PhaseTiming, Timing, phase_name};
use crate::stats::Gain;
use crate::tune::{Made, Tuned};

impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.measurements;
        let choices = choose(m, self.objective);
        for Excluded { kernel, why, found } in &m.excluded {
            writeln!(f, "left out, please report: {kernel} {why}: {found}")?;
        }
        self.machine(f)?;
        jobs(f, &choices, &m.limits)?;
        self.placements(f)?;
        writeln!(f)?;
        self.closing(f, &choices)
    }
}

impl Tuned {
    fn machine(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, limits) = (&self.measurements, &self.measurements.limits);
        write!(f, "{} threads, memory reads {:.1} GB/s", limits.threads, limits.read_gb_per_s)?;
        if !limits.cold {
            write!(f, ", the cache that holds this model {:.1} GB/s", limits.limit_gb_per_s)?;
        }
        if let Some(rate) = limits.limit_gmac_per_s {
            write!(f, ", {rate:.0} G multiply-adds/s")?;
        }
        writeln!(f, "; noise {:.1} %", 100.0 * m.noise)?;
        if m.disturbed {
            writeln!(f, "the machine was not quiet: intervals are widened; tune again when it is")?;
        }
        Ok(())
    }

    fn placements(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let untuned = self.placements.first();
        for placement in
            self.placements.iter().filter(|placement| placement.run == self.profile.run)
        {
            write!(f, "run with {}", placement.run)?;
            if untuned.is_some_and(|untuned| untuned.run != placement.run) {
                let gain = |t: &PhaseTiming| Gain::of(t.ratio, t.half_width);
                let (decode, prefill) = (gain(&placement.decode), gain(&placement.prefill));
                write!(f, ": decode {decode}, prefill {prefill}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// Writes the closing lines, of at most 80 characters: speed, gain, and share of the limit.
    fn closing(&self, f: &mut fmt::Formatter<'_>, choices: &[JobChoice<'_>]) -> fmt::Result {
        let comparison = self.comparison.as_ref().ok();
        let predicted = |phase| Prediction::of(choices, &self.placements, &self.profile.run, phase);
        let column = |value: Option<f64>| value.map_or(String::new(), figure);
        writeln!(
            f,
            "{:<19} {:>9} {:>9} {:>9}  speed against untuned",
            "tokens/s",
            "predicted",
            comparison.map_or("", |_| "measured"),
            "untuned"
        )?;
        for phase in PHASES {
            let predicted = predicted(phase);
            let speed = comparison.map(|comparison| comparison.speed(phase));
            let name = match phase {
                Phase::Decode => "writing (decode)",
                Phase::Prefill => "reading (prefill)",
            };
            let untuned = speed.map(|s| s.before).or(predicted.map(|p| p.before));
            let gain = speed.map(|s| s.gain()).or(predicted.map(|p| p.gain));
            writeln!(
                f,
                "  {name:<17} {:>9} {:>9} {:>9}  {}",
                column(predicted.map(|p| p.after)),
                column(speed.map(|s| s.after)),
                column(untuned),
                gain.map_or(String::new(), |gain| gain.to_string())
            )?;
        }
        label(f, "predicted", "the kernels alone")?;
        match &self.comparison {
            Ok(comparison) => {
                let (prompt, tokens) = (PROMPT, WRITTEN);
                let times = match comparison.loads {
                    1 => "once".to_string(),
                    n => format!("{n} times"),
                };
                label(
                    f,
                    "measured",
                    format_args!("the whole model, loaded {times}, untuned and tuned in turns:"),
                )?;
                label(f, "", format_args!("{prompt} tokens read, then {tokens} written"))?;
            }
            Err(why) => label(f, "measured", format_args!("not on the model itself: {why}"))?,
        }
        self.limits(f, choices)?;
        self.made(f, choices)?;
        if self.kept_default {
            let text = "the untuned defaults: the choices were slower on the model itself";
            label(f, "profile", text)?;
        }
        Ok(())
    }

    /// Writes the share of the machine's limit that the profile reaches.
    fn limits(&self, f: &mut fmt::Formatter<'_>, choices: &[JobChoice<'_>]) -> fmt::Result {
        let comparison = self.comparison.as_ref().ok();
        let limits = &self.measurements.limits;
        let limits = &comparison.map_or(*limits, |comparison| comparison.limits(limits));
        let defaults = choose::defaults(&self.measurements);
        let choices = if self.kept_default { &defaults } else { choices };
        for phase in PHASES {
            let Some(demand) = Demand::of(choices, limits, phase) else { continue };
            let speed = comparison.map(|comparison| comparison.speed(phase));
            let measured = speed.map(|s| if self.kept_default { s.before } else { s.after });
            let predicted = Prediction::of(choices, &self.placements, &self.profile.run, phase);
            let Some(speed) = measured.or(predicted.map(|p| p.after)) else { continue };
            let (rate, share) = (demand.per_token * speed, 100.0 * demand.share(speed));
            // Of 10^9, or of 10^6 where that is a small number.
            let (small, per_token) = match demand.per_token < 0.1 {
                true => (true, 1e3 * demand.per_token),
                false => (false, demand.per_token),
            };
            let (per_token, rate, limit) = (figure(per_token), figure(rate), figure(demand.limit));
            let name = if comparison.is_some() { "limits" } else { "expected" };
            match phase {
                Phase::Decode => {
                    let unit = if small { "MB" } else { "GB" };
                    let what = if limits.cold { "memory" } else { "the cache" };
                    let text = format_args!(
                        "decode reads {per_token} {unit}/token: {rate} GB/s, {share:.0} % of \
                         {what}'s {limit} GB/s"
                    );
                    label(f, name, text)?;
                }
                Phase::Prefill => {
                    let unit = if small { "M" } else { "G" };
                    let text = format_args!(
                        "prefill takes {per_token} {unit} multiply-adds/token: {rate} G/s, \
                         {share:.0} % of {limit} G/s"
                    );
                    label(f, "", text)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the gain of kernels made on this host.
    fn made(&self, f: &mut fmt::Formatter<'_>, choices: &[JobChoice<'_>]) -> fmt::Result {
        let kernels = || {
            let choices = self.profile.ops.iter();
            choices.flat_map(|op| [Some(op.decode.kernel), op.prefill.as_ref().map(|p| p.kernel)])
        };
        let all = kernels().flatten().count();
        let own = kernels().flatten().filter(|id| id.shape.is_some()).count();
        const LABEL: &str = "made here";
        match &self.made {
            Made::Nothing => Ok(()),
            Made::Tried(tried) if own == 0 => label(
                f,
                LABEL,
                format_args!("none of {all} picks: {tried} kernels were tried, none won"),
            ),
            Made::Tried(tried) => {
                let gain = |phase| choose::gain_of_made(choices, phase);
                let (decode, prefill) = (gain(Phase::Decode), gain(Phase::Prefill));
                label(
                    f,
                    LABEL,
                    format_args!(
                        "{own} of {all} picks, of {tried} kernels tried; over built-in ones"
                    ),
                )?;
                label(f, "", format_args!("decode {decode}, prefill {prefill}"))
            }
            Made::NotTried { count, why } => label(
                f,
                LABEL,
                format_args!("nothing: {count} kernels for these shapes were not tried: {why}"),
            ),
            Made::NotKept { count, why } => {
                label(f, LABEL, format_args!("{count} kernels won, but are not kept: {why}"))
            }
        }
    }
}

/// Writes a closing line with its label.
fn label(f: &mut impl fmt::Write, name: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<10} {text}")
}

/// Writes the kernels of every job, their share of the limit and their gain over the default.
fn jobs(f: &mut fmt::Formatter<'_>, choices: &[JobChoice<'_>], limits: &Limits) -> fmt::Result {
    writeln!(
        f,
        "\n{:<55} {:>11}  {:>8}  speed against the default",
        "job: layout, kernels", "median", "of limit"
    )?;
    for choice in choices {
        let parts: Vec<String> = choice.job.parts.iter().map(ToString::to_string).collect();
        let (role, count) = (choice.job.role, choice.job.count);
        write!(f, "{role} {}, {count} per token", parts.join(" "))?;
        match choice.layout.layout {
            Some(layout) => writeln!(f, ": {layout}")?,
            None => writeln!(f)?,
        }
        for phase in PHASES {
            let (Some(chosen), Some(gain)) = (choice.chosen(phase), choice.gain(phase)) else {
                continue;
            };
            let share = choice
                .share_of_limit(limits, phase)
                .map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
            let Timing { kernel, median_us, .. } = chosen.timing;
            let phase = phase_name(phase);
            writeln!(f, "  {phase:<8} {kernel:<44} {median_us:>8.1} us  {share:>8}  {gain}")?;
        }
        if let Some(gather) = choice.gather {
            let (kernel, when) = (gather.kernel, gather.to_profile());
            writeln!(f, "  {:<8} {kernel:<44} {when}", "sparse")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::{Isa, Objective, Pinning, Profile, Role, Run};

    use super::*;
    use crate::measure::{Comparison, Measurements, SparseMeasurements, SparseTiming, Speed};

    /// A run on the demo model with one thread.
    fn tuned(comparison: Result<Comparison, String>, made: Made, kept_default: bool) -> Tuned {
        let record = include_str!("../../tests/data/bard-11m-one-thread.json");
        let measurements: Measurements = serde_json::from_str(record).unwrap();
        let mut profile = Profile::parse(include_str!("../../tests/data/profile.toml")).unwrap();
        profile.run = Run { threads: 1, pinning: Pinning::None, huge_pages: true };
        profile.host.isa = vec![Isa::Scalar];
        Tuned::for_tests(measurements, Objective::Balanced, profile, comparison, made, kept_default)
    }

    fn comparison() -> Comparison {
        let speed =
            |before, ratio| Speed { before, after: before / ratio, ratio, half_width: 0.01 };
        Comparison {
            decode: speed(8000.0, 0.8),
            prefill: speed(20_000.0, 1.0),
            loads: 15,
            limit_gb_per_s: 50.0,
        }
    }

    /// Returns the lines after the last empty one.
    fn closing(tuned: &Tuned) -> Vec<String> {
        let text = tuned.to_string();
        let (_, closing) = text.rsplit_once("\n\n").unwrap();
        closing.lines().map(ToString::to_string).collect()
    }

    #[test]
    fn the_closing_lines_say_what_the_user_gains() {
        let lines = closing(&tuned(Ok(comparison()), Made::Tried(120), false));
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        let text = lines.join("\n");
        for part in [
            "tokens/s            predicted  measured   untuned  speed against untuned",
            " 10000      8000  1.25x [1.23, 1.27]",
            " 20000     20000  no difference [0.99, 1.01]",
            "loaded 15 times, untuned and tuned in turns:\n           128 tokens read, then 32 written",
            "limits     decode reads ",
            "made here  none of 3 picks: 120 kernels were tried, none won",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn activation_sparsity_has_a_line_in_the_summary_and_in_the_report() {
        let mut tuned = tuned(Err("no time".into()), Made::Nothing, false);
        let choices = choose(&tuned.measurements, tuned.objective);
        let down = |choice: &&JobChoice<'_>| choice.job.role == Role::Down;
        let dense = choices.iter().find(down).unwrap().decode.timing.clone();
        let kernel = "columns_i2_s_l64__scalar__any__r64_c32_n1_u1_p0".parse().unwrap();
        let timing = |ratio| Timing { kernel, ratio, half_width: 0.0, ..dense.clone() };
        let timings = [(0.25, 0.4), (0.5, 0.8), (0.75, 1.2)]
            .map(|(density, ratio)| SparseTiming { density, timing: timing(ratio) });
        let job = tuned.measurements.jobs.iter_mut().find(|job| job.role == Role::Down).unwrap();
        job.sparse = Some(SparseMeasurements {
            dense: dense.kernel,
            default: kernel,
            timings: timings.into(),
        });
        let line = "below 62 % needed; 2.50x as fast at 25 %";
        let text = tuned.to_string();
        let own: Vec<&str> = text.lines().filter(|own| own.starts_with("  sparse ")).collect();
        assert!(own.len() == 1 && own[0].ends_with(line), "{text}");
        let choices = choose(&tuned.measurements, tuned.objective);
        let extras = crate::report::Extras::default();
        let page = crate::report::html(&tuned.measurements, &choices, &tuned.profile, &extras);
        assert_eq!(page.matches(line).count(), 1);
    }

    /// Bytes of a token times tokens per second are the rate that the line gives.
    #[test]
    fn shares_are_of_what_the_profile_runs() {
        let figures = |kept_default| -> Vec<f64> {
            let lines = closing(&tuned(Ok(comparison()), Made::Nothing, kept_default));
            let line = lines.iter().find(|line| line.starts_with("limits ")).unwrap();
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        for (kept_default, speed) in [(false, 10_000.0), (true, 8000.0)] {
            let found = figures(kept_default);
            let [mb, gb_per_s, percent, limit] = found[..] else { panic!("{found:?}") };
            assert!((mb * speed / 1e3 / gb_per_s - 1.0).abs() < 0.01, "{found:?}");
            assert!((100.0 * gb_per_s / limit - percent).abs() < 0.6, "{found:?}");
        }
    }

    #[test]
    fn what_could_not_be_done_is_said() {
        let why = "no time was left".to_string();
        let none = Made::NotTried { count: 171, why: "no rustc; do this".into() };
        let text = closing(&tuned(Err(why), none, false)).join("\n");
        for part in [
            "measured   not on the model itself: no time was left",
            "expected   decode reads ",
            "nothing: 171 kernels for these shapes were not tried: no rustc; do this",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let lost = Made::NotKept { count: 3, why: "no space".into() };
        let text = closing(&tuned(Ok(comparison()), lost, true)).join("\n");
        for part in [
            "profile    the untuned defaults: the choices were slower on the model itself",
            "made here  3 kernels won, but are not kept: no space",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
