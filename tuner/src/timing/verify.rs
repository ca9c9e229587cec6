//! Verification of candidates against the oracle.

use bitnet_profiles::{KernelId, Packing, Role};
use bitnet_runtime::cpu::kernels::verify::{self, Oracle, Wrong};
use bitnet_runtime::cpu::threads::Pool;

use super::present::{Candidate, Present};
use crate::Result;
use crate::measure::{Excluded, Why};
use crate::plan::{JobTask, LayoutPlan};
use crate::protocol::{Event, MeasureTask, Reporter};

/// Least and largest time limit to verify a candidate, in seconds; between them a tenth of the time
/// for all. Verifying takes milliseconds, and one that hangs should not cost the others theirs.
const VERIFY_SECONDS: (f64, f64) = (4.0, 20.0);

/// Returns the time limit to verify a candidate, in seconds.
pub(super) fn allowed(task: &MeasureTask) -> f64 {
    (task.seconds / 10.0).clamp(VERIFY_SECONDS.0, VERIFY_SECONDS.1)
}

/// Verifies every candidate; those that fail join `excluded`.
pub(super) fn verify(
    task: &MeasureTask,
    (pool, present): (&Pool, &Present),
    excluded: &mut Vec<Excluded>,
    reporter: &mut Reporter,
) -> Result<()> {
    // By columns and layout: jobs with the same columns have the same candidates.
    let mut checked: Vec<(usize, Option<Packing>, Role)> = Vec::new();
    for JobTask { plan, .. } in &task.jobs {
        let cols = plan.parts.first().map_or(1, |part| part.cols);
        let mut oracle = None;
        for layout in &plan.layouts {
            let role = if layout.layout.is_some() { Role::Qkv } else { plan.role };
            if checked.contains(&(cols, layout.layout, role)) {
                continue;
            }
            checked.push((cols, layout.layout, role));
            reporter.progress(0.0, format!("verifying kernels of {}", plan.role))?;
            let tokens = plan.layouts.iter().flat_map(LayoutPlan::all).map(|id| id.tile.tokens);
            let tokens = tokens.max().unwrap_or(1);
            let mut ternary = Vec::new();
            let mut wrong: Vec<Wrong> = Vec::new();
            for id in layout.all().filter(|id| excluded.iter().all(|e| e.kernel != **id)) {
                match present.find(id)? {
                    Candidate::Ternary(kernel) => ternary.push(kernel),
                    Candidate::Blocks(kernel) => {
                        reporter.begin(id, allowed(task))?;
                        wrong.extend(verify::blocks(&kernel, cols)?);
                    }
                    Candidate::Head(kernel) => {
                        reporter.begin(id, allowed(task))?;
                        wrong.extend(verify::head(&kernel, cols)?);
                    }
                    Candidate::Attention(kernel) => {
                        reporter.begin(id, allowed(task))?;
                        wrong.extend(verify::attention(&kernel, cols)?);
                    }
                }
            }
            if let Some(Packing::Ternary(packing)) = layout.layout {
                let oracle = oracle.get_or_insert_with(|| Oracle::new(cols, tokens));
                // Verification goes on where the status file cannot be written.
                let begin = &mut |id: &KernelId| drop(reporter.begin(id, allowed(task)));
                wrong.extend(oracle.check(packing, &ternary, pool, begin)?);
            }
            for Wrong { kernel, found } in wrong {
                let new = Excluded { kernel, why: Why::Wrong, found };
                reporter.send(&Event::Excluded(new.clone()))?;
                excluded.push(new);
            }
        }
    }
    Ok(())
}
