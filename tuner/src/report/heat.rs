//! Heat maps of a role: one table for each layout, ISA and shape, a cell for each tile, coloured by
//! its time over that of the best.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_codegen::Phase;
use bitnet_profiles::{Isa, KernelId, Op, Shape, TileConfig};
use maud::{Markup, html};

use super::data::{Report, concerns};
use super::figures::{figure, parts};
use crate::measure::{Excluded, JobMeasurements, PHASES, Timing, Why, phase_name};

/// Ratios at which one colour ends and the next, paler one begins.
const STEPS: [f64; 7] = [1.01, 1.02, 1.05, 1.10, 1.20, 1.50, 2.00];

/// One dimension of a tile.
struct Dimension {
    name: &'static str,
    of: fn(&TileConfig) -> usize,
    show: fn(usize) -> String,
    /// Note where all tiles of a table have this number; none where it is the usual one.
    all: fn(usize) -> Option<String>,
}

/// Dimensions that make the rows of a table.
const DOWN: [Dimension; 2] = [
    Dimension {
        name: "rows",
        of: |tile| tile.rows,
        show: |rows| rows.to_string(),
        all: |rows| Some(format!("{rows} rows")),
    },
    Dimension {
        name: "columns",
        of: |tile| tile.cols,
        show: |cols| if cols == 0 { "all".into() } else { cols.to_string() },
        all: |cols| (cols != 0).then(|| format!("blocks of {cols} columns")),
    },
];
/// Dimensions that make its columns.
const ACROSS: [Dimension; 4] = [
    Dimension {
        name: "tokens",
        of: |tile| tile.tokens,
        show: |tokens| tokens.to_string(),
        all: |tokens| (tokens != 1).then(|| format!("{tokens} tokens")),
    },
    Dimension {
        name: "unroll",
        of: |tile| tile.unroll,
        show: |unroll| unroll.to_string(),
        all: |unroll| (unroll != 1).then(|| format!("unroll {unroll}")),
    },
    Dimension {
        name: "prefetch",
        of: |tile| tile.prefetch,
        show: |bytes| match bytes {
            0 => "none".into(),
            _ if bytes.is_multiple_of(1024) => format!("{} K", bytes / 1024),
            _ => bytes.to_string(),
        },
        all: |bytes| (bytes != 0).then(|| format!("prefetch {bytes}")),
    },
    Dimension {
        name: "into",
        of: |tile| tile.level,
        show: |level| format!("L{level}"),
        all: |level| (level != 1).then(|| format!("into L{level}")),
    },
];

/// One tile.
struct Cell<'a> {
    kernel: KernelId,
    timing: Option<&'a Timing>,
    why: Option<Why>,
}

/// Kernels that differ only in their tile.
type Grids<'a> = BTreeMap<(Op, Isa, Option<Shape>), Vec<Cell<'a>>>;

/// Marked kernels of a phase.
struct Marks {
    best: f64,
    winner: Option<KernelId>,
    runner_up: Option<KernelId>,
    default: Option<KernelId>,
}

impl Report<'_> {
    pub(super) fn role_landscape(&self, job: &JobMeasurements) -> Markup {
        html! {
            article {
                h3 { (job.role) " " span { (parts(job)) ", " (job.count) " per token" } }
                div.phases {
                    @for phase in PHASES {
                        @let grids = self.grids(job, phase);
                        @if !grids.is_empty() { (self.phase_landscape(job, phase, &grids)) }
                    }
                }
            }
        }
    }

    fn grids<'a>(&'a self, job: &'a JobMeasurements, phase: Phase) -> Vec<Vec<Cell<'a>>> {
        let timed = job.layouts.iter().flat_map(|layout| layout.timings(phase));
        let timed = timed.map(|timing| (timing.kernel, Some(timing), None));
        let excluded = self.measurements.excluded.iter();
        let excluded = excluded.filter(|own| concerns(&own.kernel, job, phase));
        let excluded = excluded.map(|&Excluded { kernel, why, .. }| (kernel, None, Some(why)));
        let mut grids = Grids::new();
        for (kernel, timing, why) in timed.chain(excluded) {
            let cell = Cell { kernel, timing, why };
            grids.entry((kernel.op, kernel.isa, kernel.shape)).or_default().push(cell);
        }
        // The fastest first; it is what people look for.
        let best = |cells: &Vec<Cell<'_>>| {
            let ratios = cells.iter().filter_map(|cell| Some(cell.timing?.ratio));
            ratios.fold(f64::INFINITY, f64::min)
        };
        let mut grids: Vec<Vec<Cell<'_>>> = grids.into_values().collect();
        grids.sort_by(|a, b| best(a).total_cmp(&best(b)));
        grids
    }

    fn phase_landscape(
        &self,
        job: &JobMeasurements,
        phase: Phase,
        grids: &[Vec<Cell<'_>>],
    ) -> Markup {
        let finalists =
            grids.iter().flatten().filter_map(|cell| cell.timing).filter(|t| t.finalist);
        let best = finalists.map(|timing| timing.ratio).fold(f64::INFINITY, f64::min);
        let chosen = self.chosen_for(job, phase);
        let marks = Marks {
            best: if best.is_finite() && best > 0.0 { best } else { 1.0 },
            winner: chosen.map(|chosen| chosen.timing.kernel),
            runner_up: chosen.and_then(|chosen| Some(chosen.runner_up?.kernel)),
            default: job.default_kernel(phase),
        };
        html! {
            section class=(phase_name(phase)) {
                h4 {
                    (phase_name(phase))
                    @if phase == Phase::Prefill { span { " of " (job.tokens) " tokens" } }
                }
                div.grids { @for cells in grids { (grid(cells, phase, &marks)) } }
            }
        }
    }
}

/// Returns the dimensions that differ between cells, and `must` in any case; the others in words.
fn varying<'a>(
    dimensions: &'a [Dimension],
    must: &str,
    cells: &[Cell<'_>],
) -> (Vec<&'a Dimension>, Vec<String>) {
    let mut shown = Vec::new();
    let mut fixed = Vec::new();
    for dimension in dimensions {
        let values: BTreeSet<usize> =
            cells.iter().map(|cell| (dimension.of)(&cell.kernel.tile)).collect();
        match values.first() {
            Some(&value) if values.len() == 1 && dimension.name != must => {
                fixed.extend((dimension.all)(value));
            }
            _ => shown.push(dimension),
        }
    }
    (shown, fixed)
}

fn values(dimensions: &[&Dimension], kernel: &KernelId) -> Vec<usize> {
    dimensions.iter().map(|dimension| (dimension.of)(&kernel.tile)).collect()
}

fn grid(cells: &[Cell<'_>], phase: Phase, marks: &Marks) -> Markup {
    let Some(first) = cells.first().map(|cell| cell.kernel) else { return html! {} };
    // The head and attention take one token at a time.
    let many = phase == Phase::Prefill && first.tile.tokens > 1;
    let must = if many { "tokens" } else { "unroll" };
    let (down, fixed_down) = varying(&DOWN, "rows", cells);
    let (across, fixed_across) = varying(&ACROSS, must, cells);
    let lines: BTreeSet<Vec<usize>> =
        cells.iter().map(|cell| values(&down, &cell.kernel)).collect();
    let stacks: BTreeSet<Vec<usize>> =
        cells.iter().map(|cell| values(&across, &cell.kernel)).collect();
    let stacks: Vec<Vec<usize>> = stacks.into_iter().collect();
    let at = |line: &[usize], stack: &[usize]| {
        let is_there = |cell: &&Cell<'_>| {
            values(&down, &cell.kernel) == line && values(&across, &cell.kernel) == stack
        };
        cells.iter().find(is_there)
    };
    let mut fixed: Vec<String> = fixed_down.into_iter().chain(fixed_across).collect();
    if first.op == Op::Attention {
        // Its columns are the 256 positions of a chunk, which no tile may change.
        fixed.clear();
    }
    html! {
        table.heat {
            caption {
                b { (first.op) } " " (first.isa)
                @if let Some(shape) = first.shape { ", only " (shape.rows) "×" (shape.cols) }
                @if !fixed.is_empty() { " " small { (fixed.join(", ")) } }
            }
            thead {
                @for (level, dimension) in across.iter().enumerate() {
                    tr {
                        th.name colspan=(down.len()) { (dimension.name) }
                        @for group in stacks.chunk_by(|a, b| a[..=level] == b[..=level]) {
                            th colspan=(group.len()) scope="colgroup" {
                                (dimension_value(dimension, group, level))
                            }
                        }
                    }
                }
            }
            tbody {
                @for line in &lines {
                    tr {
                        @for (i, dimension) in down.iter().enumerate() {
                            th.line scope="row" {
                                (format!("{} ", (dimension.show)(line[i])))
                                small { (dimension.name) }
                            }
                        }
                        @for stack in &stacks {
                            @match at(line, stack) {
                                Some(cell) => (cell_of(cell, marks)),
                                None => td.none {},
                            }
                        }
                    }
                }
            }
        }
    }
}

fn dimension_value(dimension: &Dimension, group: &[Vec<usize>], level: usize) -> String {
    group.first().map_or_else(String::new, |stack| (dimension.show)(stack[level]))
}

fn cell_of(cell: &Cell<'_>, marks: &Marks) -> Markup {
    let kernel = cell.kernel;
    let is = |marked: Option<KernelId>| marked == Some(kernel);
    let (winner, second, default) = (is(marks.winner), is(marks.runner_up), is(marks.default));
    let Some(timing) = cell.timing else {
        let why = cell.why.map_or_else(String::new, |why| why.to_string());
        return html! { td.out title=(format!("{kernel}: {why}")) { "×" } };
    };
    let times = timing.ratio / marks.best;
    let step = STEPS.iter().position(|&step| times <= step + 5e-3).unwrap_or(STEPS.len());
    let mut class = format!("h{step}");
    for (on, name) in [(winner, " winner"), (second, " second"), (!timing.finalist, " cut")] {
        if on {
            class += name;
        }
    }
    let tip = format!(
        "{kernel}: {} µs, MAD {} µs, {} samples, {:.3} ± {:.3} of the default's time{}",
        figure(timing.median_us),
        figure(timing.mad_us),
        timing.samples,
        timing.ratio,
        timing.half_width,
        if timing.finalist { "" } else { ", cut early" },
    );
    html! {
        td class=(class) title=(tip) {
            (if times < 9.95 { format!("{times:.2}") } else { format!("{times:.0}") })
            @if winner { svg.mark { use href="#star" {} } }
            @if second { span.mark { "2" } }
            @if default { span.default { "D" } }
        }
    }
}

/// Draws the legend of colours and marks.
pub(super) fn legend() -> Markup {
    html! {
        div.legend {
            table.heat.scale {
                tr {
                    @for (i, step) in STEPS.iter().enumerate() {
                        td class=(format!("h{i}")) { "≤ " (format!("{step:.2}")) }
                    }
                    td class=(format!("h{}", STEPS.len())) { "slower" }
                }
            }
            ul {
                li { table.heat { tr { td.h0.winner { "1.00" svg.mark { use href="#star" {} } } } } "chosen" }
                li { table.heat { tr { td.h1.second { "1.02" span.mark { "2" } } } } "runner-up" }
                li { table.heat { tr { td.h3 { "1.08" span.default { "D" } } } } "untuned default" }
                li { table.heat { tr { td.h6.cut { "1.74" } } } "cut early, few samples" }
                li { table.heat { tr { td.out { "×" } } } "left out" }
            }
        }
    }
}
