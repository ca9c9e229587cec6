//! Page of the report, section by section.

use bitnet_codegen::Phase;
use bitnet_profiles::{Objective, Profile, Provenance};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::data::{Extras, Report, multiply_adds};
use super::figures::{bar, bytes, decimals, figure, gain, kernel, parts, percent};
use super::heat;
use crate::choose::{self, ChosenKernel, Demand, JobChoice, Prediction};
use crate::measure::{Measurements, PHASES, PhaseTiming, PlacementTiming, phase_name};
use crate::stats::Gain;

/// Returns the report as one HTML file.
pub fn html(
    measurements: &Measurements,
    choices: &[JobChoice<'_>],
    profile: &Profile,
    extras: &Extras<'_>,
) -> String {
    let report = Report { measurements, choices, profile, extras };
    let title = format!("{} on {}", profile.model.name, profile.host.cpu);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) ": tuning report" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                (symbols())
                main {
                    (report.headline())
                    (report.choices())
                    (report.placements())
                    (report.roofline())
                    (report.landscape())
                    (report.excluded())
                    (report.conditions())
                }
            }
        }
    };
    page.into_string()
}

/// Defines drawings that are used several times.
fn symbols() -> Markup {
    html! {
        svg width="0" height="0" class="symbols" aria-hidden="true" {
            symbol id="star" viewBox="0 0 20 20" {
                path d="M10 1l2.8 5.9 6.4.8-4.7 4.4 1.2 6.4L10 15.4l-5.7 3.1 1.2-6.4L.8 7.7l6.4-.8z" {}
            }
        }
    }
}

impl Report<'_> {
    fn headline(&self) -> Markup {
        let Profile { model, host, tool, run, .. } = self.profile;
        let threads = run.threads;
        html! {
            header {
                p.kicker { "bitnet-tune report" }
                h1 { (model.name) }
                p.on {
                    (host.cpu) ", " (threads) @if threads == 1 { " thread" } @else { " threads" }
                }
                @if self.measurements.disturbed {
                    p.warning {
                        strong { "The machine was not quiet." }
                        " Intervals are widened; tune again when it is."
                    }
                }
                @if self.extras.kept_default {
                    p.warning {
                        strong { "The choices below lost on the model itself." }
                        " The profile holds the untuned defaults."
                    }
                }
                @if tool.provenance == Provenance::Modelled {
                    p.warning {
                        strong { "Nothing was timed." }
                        " These figures come from a model of the machine."
                    }
                }
                div.cards { @for phase in PHASES { (self.card(phase)) } }
            }
        }
    }

    /// Shows the speed of a phase.
    fn card(&self, phase: Phase) -> Markup {
        let predicted =
            Prediction::of(self.choices, self.extras.placements, &self.profile.run, phase);
        let measured = self.extras.comparison.map(|comparison| comparison.speed(phase));
        let limits = &self.measurements.limits;
        let limits =
            &self.extras.comparison.map_or(*limits, |comparison| comparison.limits(limits));
        // Of the whole model where it was run, else of the kernels.
        let share = match measured {
            Some(speed) => Demand::of(self.choices, limits, phase).map(|d| d.share(speed.after)),
            None => choose::total_share_of_limit(self.choices, limits, phase),
        };
        let limit = match phase {
            Phase::Decode if limits.cold => "memory's read bandwidth",
            Phase::Decode => "the cache's read bandwidth",
            Phase::Prefill => "the multiply-add rate",
        };
        html! {
            section .card.(phase_name(phase)) {
                h2 {
                    @match phase {
                        Phase::Decode => "Writing (decode)",
                        Phase::Prefill => "Reading the prompt (prefill)",
                    }
                }
                @match (measured, predicted) {
                    (Some(speed), _) => {
                        p.big { (figure(speed.after)) " " span { "tokens/s" } }
                        p.gain { (gain(&speed.gain())) " against the untuned " (figure(speed.before)) }
                        @if let Some(predicted) = predicted {
                            p.note {
                                "Measured on the whole model. The kernels alone would give "
                                (figure(predicted.after)) " tokens/s."
                            }
                        }
                    }
                    (None, Some(predicted)) => {
                        p.big { (figure(predicted.after)) " " span { "tokens/s predicted" } }
                        p.gain {
                            (gain(&predicted.gain)) " against the untuned " (figure(predicted.before))
                        }
                        p.note { "What the tuned kernels alone give; a whole model is slower." }
                    }
                    (None, None) => { p.note { "Not measured." } }
                }
                @if let Some(share) = share {
                    p.share {
                        (bar(share))
                        span { strong { (percent(share)) } " of " (limit) }
                    }
                }
            }
        }
    }

    fn choices(&self) -> Markup {
        let all = || {
            let of = |phase| self.choices.iter().filter_map(move |choice| choice.chosen(phase));
            PHASES.into_iter().flat_map(of).map(|chosen| chosen.timing)
        };
        // Figures under one another have as many decimals as the least of them needs.
        let median = decimals(all().map(|timing| timing.median_us));
        let mad = decimals(all().map(|timing| timing.mad_us));
        html! {
            section {
                h2 { "What was chosen" }
                p.lead { (objective(self.profile.tool.objective)) }
                table.choices {
                    thead {
                        tr {
                            th colspan="2" { "kernel" }
                            th.n { "median" small { "µs" } }
                            th.n { "MAD" small { "µs" } }
                            th.n { "reads" small { "GB/s" } }
                            th.n { "mul-adds" small { "G/s" } }
                            th { "of the limit" }
                            th.n { "runner-up" small { "× as long" } }
                            th { "gain" small { "95 % interval" } }
                        }
                    }
                    @for choice in self.choices {
                        tbody {
                            tr.role {
                                th colspan="9" scope="rowgroup" {
                                    (choice.job.role) " "
                                    span { (parts(choice.job)) ", " (choice.job.count) " per token" }
                                }
                            }
                            @for phase in PHASES {
                                @if let Some(chosen) = choice.chosen(phase) {
                                    (self.choice_row(choice, phase, chosen, median, mad))
                                }
                            }
                            @if let Some(gather) = choice.gather {
                                tr.decode {
                                    td.phase { "sparse" }
                                    td.kernel { code { (kernel(&gather.kernel)) } }
                                    td colspan="7" { (gather.to_profile()) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Shows the placements that were tried.
    fn placements(&self) -> Markup {
        let is_chosen = |timing: &PlacementTiming| timing.run == self.profile.run;
        let cell = |phase: &'static str, untuned: bool, timing: &PhaseTiming| {
            html! {
                td data-label=(phase) {
                    @if untuned { span.same { "untuned" } }
                    @else { (gain(&Gain::of(timing.ratio, timing.half_width))) }
                }
            }
        };
        html! {
            @if self.extras.placements.len() > 1 {
                section {
                    h2 { "Threads, pinning and pages" }
                    p.lead { "The chosen kernels, run in other ways; speed against the first." }
                    table.settings {
                        thead { tr { th { "run with" } th { "decode" } th { "prefill" } } }
                        tbody {
                            @for (i, timing) in self.extras.placements.iter().enumerate() {
                                tr.chosen[is_chosen(timing)] {
                                    td {
                                        (timing.run)
                                        @if is_chosen(timing) { span.tag { "chosen" } }
                                    }
                                    (cell("decode", i == 0, &timing.decode))
                                    (cell("prefill", i == 0, &timing.prefill))
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn choice_row(
        &self,
        choice: &JobChoice<'_>,
        phase: Phase,
        chosen: ChosenKernel<'_>,
        median: usize,
        mad: usize,
    ) -> Markup {
        let timing = chosen.timing;
        let us = timing.median_us.max(1e-3);
        let share = choice.share_of_limit(&self.measurements.limits, phase);
        let is_default = choice.job.default_kernel(phase) == Some(timing.kernel);
        html! {
            tr class=(phase_name(phase)) {
                td.phase { (phase_name(phase)) }
                td.kernel { code { (kernel(&timing.kernel)) } }
                td.n data-label="median, µs" { (format!("{:.median$}", timing.median_us)) }
                td.n data-label="MAD, µs" { (format!("{:.mad$}", timing.mad_us)) }
                td.n data-label="GB/s" { (figure(choice.layout.bytes as f64 / us / 1e3)) }
                td.n data-label="mul-adds, G/s" {
                    @match multiply_adds(choice.job, phase) {
                        Some(count) => (figure(count / us / 1e3)),
                        None => "–",
                    }
                }
                td.limit data-label="of the limit" {
                    @if let Some(share) = share { (bar(share)) span { (percent(share)) } }
                    @else { "–" }
                }
                td.n data-label="runner-up, × as long" {
                    @match chosen.runner_up {
                        Some(second) => (format!("{:.2}", second.ratio / timing.ratio.max(1e-6))),
                        None => "–",
                    }
                }
                td data-label="gain" {
                    @if is_default { span.same { "the default itself" } }
                    @else if let Some(times) = choice.gain(phase) { (gain(&times)) }
                }
            }
        }
    }

    fn roofline(&self) -> Markup {
        html! {
            section {
                h2 { "How near the machine's limit" }
                p.lead {
                    "Every kernel timed, under the roofs that were probed with "
                    (self.measurements.limits.threads)
                    @if self.measurements.limits.threads == 1 { " thread" } @else { " threads" }
                    @if self.measurements.limits.cold { ": the slope is what memory delivers, " }
                    @else { ": the slopes are what memory and the cache deliver, " }
                    "the level line what the multipliers do. Both scales are logarithmic."
                }
                (self.roofline_figure())
            }
        }
    }

    fn landscape(&self) -> Markup {
        html! {
            section.landscape {
                h2 { "The landscape" }
                p.lead {
                    "Time of every candidate over that of the best one of its role and phase. The two "
                    "kernels of a role read one layout, so the best of a single phase is not always "
                    "the one to choose; where times differ less than they scatter, the default wins, "
                    "else the simpler tile."
                }
                (heat::legend())
                @for job in &self.measurements.jobs { (self.role_landscape(job)) }
            }
        }
    }

    fn excluded(&self) -> Markup {
        html! {
            section {
                h2 { "What was left out" }
                @if self.measurements.excluded.is_empty() {
                    p.lead { "Nothing: every candidate computed the right results in time." }
                } @else {
                    p.lead { "Each of these is a bug. Please report it." }
                    table.excluded {
                        thead { tr { th { "kernel" } th { "why" } th { "what was seen" } } }
                        tbody {
                            @for excluded in &self.measurements.excluded {
                                tr {
                                    td { code { (kernel(&excluded.kernel)) } }
                                    td data-label="why" { (excluded.why) }
                                    td data-label="seen" { (excluded.found) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn conditions(&self) -> Markup {
        let Profile { tool, host, model, .. } = self.profile;
        let (m, limits) = (self.measurements, &self.measurements.limits);
        let isa: Vec<&str> = host.isa.iter().map(|isa| isa.name()).collect();
        let mut facts: Vec<(&str, String)> = vec![
            ("Date", tool.date.clone()),
            ("How", format!("{}, effort {}", tool.provenance, tool.effort)),
            ("Tuned for", tool.objective.to_string()),
        ];
        if let Some(budget) = self.extras.budget {
            facts.push(("Budget", format!("{} s", figure(budget.as_secs_f64()))));
        }
        let quiet = if m.disturbed { "not quiet" } else { "quiet" };
        facts.extend([
            ("Noise", format!("{:.1} %, the machine was {quiet}", 100.0 * m.noise)),
            ("Memory reads", format!("{} GB/s", figure(limits.read_gb_per_s))),
            (
                "The model is read from",
                match limits.cold {
                    true => "memory".into(),
                    false => format!("the cache, {} GB/s", figure(limits.limit_gb_per_s)),
                },
            ),
        ]);
        if let Some(rate) = limits.limit_gmac_per_s {
            facts.push(("Multiply-adds", format!("{} G/s", figure(rate))));
        }
        let (family, number, stepping) = (host.family, host.model, host.stepping);
        facts.extend([
            ("CPU", format!("{} {family}/{number}/{stepping}", host.vendor)),
            ("Cores", format!("{}, {} threads", host.physical_cores, host.threads)),
            ("Caches", format!("L2 {} a core, L3 {}", bytes(host.l2), bytes(host.l3))),
            ("ISA", isa.join(", ")),
            ("Architecture", model.architecture.clone()),
            ("Shapes", model.shapes.clone()),
            ("Runs with", self.profile.run.to_string()),
            ("Version", tool.version.clone()),
            ("Fingerprint", tool.fingerprint.clone().unwrap_or_else(|| "none".into())),
        ]);
        html! {
            section {
                h2 { "Conditions" }
                dl.facts {
                    @for (name, value) in &facts { div { dt { (name) } dd { (value) } } }
                }
            }
        }
    }
}

/// Explains the objective.
fn objective(objective: Objective) -> &'static str {
    match objective {
        Objective::Decode => "One layout for each role, the best for writing.",
        Objective::Prefill => "One layout for each role, the best for reading prompts.",
        Objective::Balanced => {
            "One layout for each role, with the two kernels that read it: the best for four prompt \
             tokens to each token written."
        }
    }
}
