//! Roofline of a machine with every kernel on it: work per second against work per byte (Williams,
//! Waterman and Patterson, "Roofline", CACM 52(4), 2009), in multiply-adds.

use bitnet_codegen::Phase;
use maud::{Markup, html};

use super::data::{Report, multiply_adds};
use super::figures::figure;
use crate::measure::{PHASES, phase_name};

/// A timed kernel.
struct Point {
    phase: Phase,
    /// Multiply-adds per byte read.
    intensity: f64,
    /// 10^9 multiply-adds per second.
    rate: f64,
    /// Role that chose it, if any.
    chosen: Option<&'static str>,
    tip: String,
}

/// Limits of the machine.
struct Roofs {
    /// Read bandwidths in 10^9 bytes per second, and their names.
    read: Vec<(f64, &'static str)>,
    /// 10^9 multiply-adds per second.
    multiply: Option<f64>,
}

impl Roofs {
    /// Returns the highest rate that is possible at an intensity.
    fn over(&self, intensity: f64) -> f64 {
        let read = self.read.iter().map(|(rate, _)| rate * intensity).fold(0.0, f64::max);
        self.multiply.unwrap_or(f64::INFINITY).min(read)
    }
}

/// Size of a drawing, in its own units.
#[derive(Clone, Copy)]
struct Canvas {
    width: f64,
    height: f64,
    /// Size of the text.
    font: f64,
    /// True if points have tooltips.
    tips: bool,
}

/// Sizes for a screen, and for a phone, where nothing can be pointed at.
const WIDE: Canvas = Canvas { width: 1080.0, height: 500.0, font: 12.5, tips: true };
const NARROW: Canvas = Canvas { width: 400.0, height: 430.0, font: 11.5, tips: false };

/// Margins, with room for the labels of the axes.
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 46.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 14.0;

impl Report<'_> {
    pub(super) fn roofline_figure(&self) -> Markup {
        let points = self.points();
        if points.is_empty() {
            return html! { p.note { "No kernel was timed." } };
        }
        let roofs = self.roofs();
        html! {
            figure.roofline {
                div.wide { (draw(&points, &roofs, WIDE)) }
                div.narrow { (draw(&points, &roofs, NARROW)) }
                figcaption {
                    ul.key {
                        @for phase in PHASES {
                            li {
                                svg viewBox="-8 -8 16 16" class=(phase_name(phase)) {
                                    (shape(phase, 0.0, 0.0, 5.5, "pick"))
                                }
                                (phase_name(phase)) ", chosen"
                            }
                            li {
                                svg viewBox="-8 -8 16 16" class=(phase_name(phase)) {
                                    (shape(phase, 0.0, 0.0, 3.5, "point"))
                                }
                                (phase_name(phase)) ", other candidates"
                            }
                        }
                    }
                    p.note {
                        "A byte holds four ternary weights or more, so one token does few multiply-adds "
                        "for each byte and is bound by reading; many tokens use a byte many times. "
                        "Attention, which reads no weights, is left out."
                    }
                }
            }
        }
    }

    /// Lists the kernels timed for weights, the chosen ones last so that they lie on top.
    fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for job in &self.measurements.jobs {
            for phase in PHASES {
                let Some(work) = multiply_adds(job, phase) else { continue };
                let winner = self.chosen_for(job, phase).map(|chosen| chosen.timing.kernel);
                for layout in job.layouts.iter().filter(|layout| layout.bytes > 0) {
                    for timing in layout.timings(phase).iter().filter(|t| t.median_us > 0.0) {
                        let role = job.role.name();
                        let is_chosen = winner == Some(timing.kernel);
                        let rate = work / timing.median_us / 1e3;
                        points.push(Point {
                            phase,
                            intensity: work / layout.bytes as f64,
                            rate,
                            chosen: is_chosen.then_some(role),
                            tip: format!("{role}: {}, {} G/s", timing.kernel, figure(rate)),
                        });
                    }
                }
            }
        }
        points.sort_by_key(|point| point.chosen.is_some());
        points
    }

    fn roofs(&self) -> Roofs {
        let limits = &self.measurements.limits;
        let mut read = vec![(limits.read_gb_per_s, "memory")];
        if !limits.cold {
            read.push((limits.limit_gb_per_s, "cache"));
        }
        read.retain(|(rate, _)| *rate > 0.0);
        Roofs { read, multiply: limits.limit_gmac_per_s.filter(|rate| *rate > 0.0) }
    }
}

/// A logarithmic axis.
struct Axis {
    /// Logarithms of its ends.
    ends: (f64, f64),
    /// Places of its ends.
    places: (f64, f64),
}

impl Axis {
    fn new(ends: (f64, f64), places: (f64, f64)) -> Self {
        Self { ends: (ends.0.log2(), ends.1.log2()), places }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log2() - self.ends.0) / (self.ends.1 - self.ends.0);
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    /// Lists `step` to all whole powers, times each of `digits`, as far as they lie on the axis.
    fn ticks(&self, step: f64, digits: &[f64]) -> Vec<f64> {
        let powers = (-16..=16).map(|power| step.powi(power));
        let all = powers.flat_map(|power| digits.iter().map(move |digit| power * digit));
        all.filter(|tick| (self.ends.0..=self.ends.1).contains(&tick.log2())).collect()
    }
}

/// Returns the least and the greatest.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

fn draw(points: &[Point], roofs: &Roofs, canvas: Canvas) -> Markup {
    let Canvas { width, height, font, tips } = canvas;
    let (left, right) = range(points.iter().map(|point| point.intensity));
    let (low, high) = range(points.iter().map(|point| point.rate).chain(roofs.multiply));
    let x = Axis::new((left / 4.0, right * 2.0), (LEFT, width - RIGHT));
    let y = Axis::new((low / 2.0, high * 1.5), (height - BOTTOM, TOP + 2.0 * font));
    let bottom = y.places.0;
    let x_ticks = x.ticks(if tips { 2.0 } else { 4.0 }, &[1.0]);
    let y_ticks = y.ticks(10.0, &[1.0, 2.0, 5.0]);
    html! {
        svg.plot viewBox=(format!("0 0 {width} {height}")) font-size=(font) role="img"
            aria-label="Roofline: multiply-adds per second over multiply-adds per byte" {
            g.grid {
                @for &tick in &x_ticks {
                    path d=(format!("M{:.1} {bottom:.1}V{:.1}", x.at(tick), y.places.1)) {}
                    text x=(round(x.at(tick))) y=(round(bottom + 1.5 * font)) text-anchor="middle" {
                        (number(tick))
                    }
                }
                @for &tick in &y_ticks {
                    path d=(format!("M{LEFT} {:.1}H{:.1}", y.at(tick), x.places.1)) {}
                    text x=(LEFT - 8.0) y=(round(y.at(tick) + 0.35 * font)) text-anchor="end" {
                        (number(tick))
                    }
                }
                text.axis x=(round((LEFT + width - RIGHT) / 2.0)) y=(height - 6.0)
                    text-anchor="middle" { "multiply-adds per byte read" }
                text.axis x="4" y=(round(font + 1.0)) { "G multiply-adds per second" }
            }
            @for phase in PHASES {
                g class=(phase_name(phase)) {
                    @for point in points.iter().filter(|point| point.phase == phase) {
                        @let class = if point.chosen.is_some() { "pick" } else { "point" };
                        @let size = if point.chosen.is_some() { 5.5 } else { 3.5 };
                        g {
                            (shape(phase, x.at(point.intensity), y.at(point.rate), size, class))
                            @if tips { title { (point.tip) } }
                        }
                    }
                }
            }
            (draw_roofs(roofs, &x, &y, font))
            (labels(points, roofs, &x, &y, canvas))
        }
    }
}

fn draw_roofs(roofs: &Roofs, x: &Axis, y: &Axis, font: f64) -> Markup {
    let (least_x, most_x) = (x.ends.0.exp2(), x.ends.1.exp2());
    let least_y = y.ends.0.exp2();
    let ceiling = roofs.multiply.unwrap_or(y.ends.1.exp2());
    let widest = roofs.read.iter().map(|(rate, _)| *rate).fold(0.0, f64::max);
    html! {
        g.roofs {
            @for (rate, name) in &roofs.read {
                // From where it enters the picture to where it meets the ceiling.
                @let from = (least_y / rate).max(least_x);
                @let to = (ceiling / rate).min(most_x);
                @if from < to {
                    @let start = (x.at(from), y.at(rate * from));
                    @let end = (x.at(to), y.at(rate * to));
                    @let angle = (end.1 - start.1).atan2(end.0 - start.0).to_degrees();
                    path d=(format!("M{:.1} {:.1}L{:.1} {:.1}", start.0, start.1, end.0, end.1)) {}
                    text transform=(format!(
                        "translate({:.1} {:.1}) rotate({angle:.2})", start.0, start.1
                    )) x="12" y=(round(-0.5 * font)) { (name) " " (figure(*rate)) " GB/s" }
                }
            }
            @if let Some(rate) = roofs.multiply {
                @let from = if widest > 0.0 { (rate / widest).max(least_x) } else { least_x };
                path d=(format!("M{:.1} {:.1}H{:.1}", x.at(from.min(most_x)), y.at(rate), x.places.1)) {}
                text x=(round(x.places.1)) y=(round(y.at(rate) - 0.6 * font)) text-anchor="end" {
                    (figure(rate)) " G multiply-adds/s"
                }
            }
        }
    }
}

/// Draws the roles of the chosen points beside them, none over another.
fn labels(points: &[Point], roofs: &Roofs, x: &Axis, y: &Axis, canvas: Canvas) -> Markup {
    let Canvas { width, font, .. } = canvas;
    let mut by_x: Vec<&Point> = points.iter().collect();
    by_x.sort_by(|a, b| a.intensity.total_cmp(&b.intensity));
    let near = |a: &&Point, b: &&Point| x.at(b.intensity) - x.at(a.intensity) < 34.0;
    html! {
        @for cluster in by_x.chunk_by(near) {
            @let (least, most) = range(cluster.iter().map(|point| point.intensity));
            // On the side that has room.
            @let after = x.at(most) + 9.0 * font < width;
            @let (at, anchor, to) = if after {
                (x.at(most) + 18.0, "start", -4.0)
            } else {
                (x.at(least) - 18.0, "end", 4.0)
            };
            @let chosen: Vec<&Point> =
                cluster.iter().copied().filter(|point| point.chosen.is_some()).collect();
            @let ideal: Vec<f64> = chosen.iter().map(|point| y.at(point.rate)).collect();
            @let roof = roofs.over(if after { most } else { least });
            @let top = if roof.is_finite() { y.at(roof) + font } else { y.places.1 };
            @let places = spread(&ideal, 1.3 * font, (top, y.places.0 - 0.5 * font));
            @for (point, place) in chosen.iter().zip(places) {
                path.leader d=(format!(
                    "M{:.1} {:.1}L{:.1} {place:.1}",
                    x.at(point.intensity), y.at(point.rate), at + to
                )) {}
                text.label.(phase_name(point.phase)) x=(round(at))
                    y=(round(place + 0.35 * font)) text-anchor=(anchor) {
                    (point.chosen.unwrap_or_default())
                }
            }
        }
    }
}

/// Moves places apart until there is a `gap` between them, within `limits` as far as they fit.
fn spread(ideal: &[f64], gap: f64, limits: (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..ideal.len()).collect();
    order.sort_by(|&a, &b| ideal[a].total_cmp(&ideal[b]));
    let mut places = ideal.to_vec();
    let mut least = limits.0;
    for &i in &order {
        places[i] = places[i].max(least);
        least = places[i] + gap;
    }
    let mut most = limits.1.max(limits.0 + gap * ideal.len() as f64);
    for &i in order.iter().rev() {
        places[i] = places[i].min(most);
        most = places[i] - gap;
    }
    places
}

/// Draws a disc for decode, a diamond for prefill.
fn shape(phase: Phase, x: f64, y: f64, size: f64, class: &str) -> Markup {
    match phase {
        Phase::Decode => html! { circle class=(class) cx=(round(x)) cy=(round(y)) r=(size) {} },
        Phase::Prefill => {
            let far = 1.25 * size;
            let d = format!("M{:.1} {:.1}l{far} {far}l-{far} {far}l-{far}-{far}z", x, y - far);
            html! { path class=(class) d=(d) {} }
        }
    }
}

/// Formats a place in a drawing.
fn round(value: f64) -> String {
    format!("{value:.1}")
}

/// Formats a tick, without the decimals it does not need.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance() {
        for (ideal, expected) in [
            (&[][..], &[][..]),
            (&[50.0], &[50.0]),
            (&[50.0, 20.0], &[50.0, 20.0]),
            (&[50.0, 50.0, 45.0], &[55.0, 65.0, 45.0]),
            // Against the lower end they move up.
            (&[98.0, 99.0], &[90.0, 100.0]),
            (&[-5.0, -9.0], &[10.0, 0.0]),
        ] {
            assert_eq!(spread(ideal, 10.0, (0.0, 100.0)), expected, "{ideal:?}");
        }
    }

    #[test]
    fn axes_and_ticks() {
        let axis = Axis::new((1.0, 1000.0), (0.0, 300.0));
        assert!((axis.at(10.0) - 100.0).abs() < 1e-9 && axis.at(1.0) == 0.0);
        let ticks = axis.ticks(10.0, &[1.0, 5.0]);
        let ticks: Vec<String> = ticks.into_iter().map(number).collect();
        assert_eq!(ticks, ["1", "5", "10", "50", "100", "500", "1000"]);
        assert_eq!(number(0.25), "0.25");
    }
}
