//! Figures, bars and names as a report shows them.

use bitnet_profiles::KernelId;
use maud::{Markup, html};

use crate::measure::JobMeasurements;
use crate::stats::Gain;

/// Formats the shapes of a job.
pub(super) fn parts(job: &JobMeasurements) -> String {
    let parts: Vec<String> = job.parts.iter().map(ToString::to_string).collect();
    parts.join(", ").replace('x', "×")
}

/// Formats an id that can be broken where its parts meet.
pub(super) fn kernel(id: &KernelId) -> Markup {
    let id = id.to_string();
    html! {
        @for (i, part) in id.split("__").enumerate() {
            @if i > 0 { wbr; "__" }
            (part)
        }
    }
}

pub(super) fn gain(gain: &Gain) -> Markup {
    let class = match gain.is_difference() {
        true if gain.times > 1.0 => "better",
        true => "worse",
        false => "same",
    };
    // Of an interval without an end nothing but its beginning is known.
    let high = if gain.high < 1e3 { format!("{:.2}", gain.high) } else { "∞".into() };
    html! {
        span class=(class) {
            @if gain.is_difference() { b { (format!("{:.2}×", gain.times)) } }
            @else { "no difference" }
            " " small { (format!("{:.2} to {high}", gain.low)) }
        }
    }
}

/// Draws a share as a bar; above 1 it is full.
pub(super) fn bar(share: f64) -> Markup {
    let width = 100.0 * share.clamp(0.0, 1.0);
    html! {
        svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect.track width="100" height="8" {}
            rect.fill width=(format!("{width:.1}")) height="8" {}
        }
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Formats a figure with three digits, or more before the point.
pub(super) fn figure(value: f64) -> String {
    let decimals = (2.0 - value.log10().floor()).clamp(0.0, 3.0) as usize;
    format!("{value:.decimals$}")
}

/// Returns the decimals that show the least of some figures with two digits.
pub(super) fn decimals(values: impl Iterator<Item = f64>) -> usize {
    let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    (1.0 - least.log10().floor()).clamp(0.0, 3.0) as usize
}

/// Formats the size of a cache.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0 => "unknown".into(),
        b if b < 1 << 20 => format!("{} KiB", b >> 10),
        b => format!("{} MiB", b >> 20),
    }
}
