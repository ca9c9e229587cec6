//! Predicted times in the place of measured ones.

use bitnet_codegen::Phase;
use bitnet_profiles::{HeadFormat, KernelId, Op, Role, SketchFormat};

use super::{Cpu, POSITIONS, multiply_limit, predict, read_limit};
use crate::measure::{JobMeasurements, LayoutMeasurements, Limits, Measurements, Timing};
use crate::plan::{JobPlan, JobTask, LayoutPlan};

/// Activation rows of a prefill: the shipped profiles hold what so many take.
const TOKENS: usize = 128;

/// The model's uncertainty of a ratio of times, as a share of it: kernels that are closer tie. On the
/// recorded measurements the errors of one family of kernels scatter by 4 %, most of which is noise.
pub const UNCERTAINTY: f64 = 0.03;

/// Its uncertainty between kernels that multiply and kernels that look up: tables compete with weights for
/// caches, and of that the model knows little.
pub const UNCERTAINTY_OF_TABLES: f64 = 0.25;

/// How uncertain the ratio of the times of two kernels is.
pub(super) fn uncertainty(a: &KernelId, b: &KernelId) -> f64 {
    let family = |id: &KernelId| match id.op {
        Op::Ternary(layout) if !layout.format().multiplies() || id.expands() => {
            Some(layout.format())
        }
        _ => None,
    };
    if family(a) == family(b) { UNCERTAINTY } else { UNCERTAINTY_OF_TABLES }
}

/// What a measurement would have found, were the model right: times of all candidates of `jobs` on
/// `threads` threads, each ratio with the model's own [`UNCERTAINTY`], and no noise. The same jobs
/// give the same times.
pub fn estimate(jobs: &[JobTask], cpu: &Cpu, threads: usize) -> Measurements {
    let plans = jobs.iter().map(|job| (&job.plan, &job.default_decode));
    let bytes = model_bytes(plans);
    let (cold, limit) = read_limit(cpu, threads, bytes);
    let ternary = jobs.iter().flat_map(|job| [Some(job.default_decode), job.default_prefill]);
    let rates = ternary
        .flatten()
        .filter(|id| matches!(id.op, Op::Ternary(_)))
        .map(|id| multiply_limit(cpu, &id, threads));
    Measurements {
        limits: Limits {
            threads: threads as u32,
            read_gb_per_s: cpu.socket_gb_per_s.min(cpu.core_gb_per_s * threads as f64),
            limit_gb_per_s: limit,
            limit_gmac_per_s: rates.max_by(f64::total_cmp),
            cold,
        },
        noise: 0.0,
        disturbed: false,
        excluded: Vec::new(),
        jobs: jobs.iter().map(|job| estimate_job(job, cpu, threads, bytes)).collect(),
    }
}

/// Bytes of weights that one token reads with those decode kernels.
pub fn model_bytes<'a>(jobs: impl IntoIterator<Item = (&'a JobPlan, &'a KernelId)>) -> u64 {
    let bytes =
        |(plan, kernel): (&JobPlan, &KernelId)| job_bytes(plan, kernel.op) * u64::from(plan.count);
    jobs.into_iter().filter(|(plan, _)| plan.role != Role::Attention).map(bytes).sum()
}

/// Bytes that one token reads of a job.
fn job_bytes(plan: &JobPlan, op: Op) -> u64 {
    let head = |format: HeadFormat| {
        plan.parts.iter().map(|part| part.rows * format.row_bytes(part.cols)).sum()
    };
    let bytes: usize = match op {
        Op::Ternary(layout) => plan.parts.iter().map(|&part| layout.matrix_bytes(part)).sum(),
        Op::Head(format) => head(format),
        Op::Sketch(format) => {
            let tiles = |rows: usize| rows.div_ceil(SketchFormat::TILE_ROWS);
            plan.parts.iter().map(|part| tiles(part.rows) * format.tile_bytes(part.cols)).sum()
        }
        // Keys and values of 16 bits.
        Op::Attention => plan.parts.last().map_or(0, |part| 4 * POSITIONS * part.weights()),
        Op::Rows(_) | Op::Columns(_) => unreachable!("no plan holds kernels with a list of lines"),
    };
    bytes as u64
}

fn estimate_job(job: &JobTask, cpu: &Cpu, threads: usize, bytes: u64) -> JobMeasurements {
    let plan = &job.plan;
    let us = |id: &KernelId, phase: Phase| {
        let tokens = if phase == Phase::Decode { 1 } else { TOKENS };
        predict(cpu, id, &plan.parts, tokens, threads, bytes).us
    };
    let default = |phase| job.default_of(phase);
    let default_us = |phase| default(phase).map_or(0.0, |id| us(&id, phase));
    let timings = |layout: &LayoutPlan, phase: Phase| -> Vec<Timing> {
        let timing = |id: &KernelId| {
            let us = us(id, phase);
            let ratio = us / default_us(phase).max(1e-6);
            let of_default = default(phase).map_or(UNCERTAINTY, |own| uncertainty(&own, id));
            let is_default = default(phase) == Some(*id);
            Timing {
                kernel: *id,
                samples: 0,
                min_us: us,
                median_us: us,
                mad_us: 0.0,
                ratio,
                half_width: if is_default { 0.0 } else { of_default * ratio },
                finalist: true,
            }
        };
        layout.kernels(phase).iter().map(timing).collect()
    };
    let layout = |layout: &LayoutPlan| {
        let op = layout.decode.first().map_or(Op::Attention, |id| id.op);
        LayoutMeasurements {
            layout: layout.layout,
            bytes: job_bytes(plan, op),
            limit_gb_per_s: read_limit(cpu, threads, bytes).1,
            decode: timings(layout, Phase::Decode),
            prefill: timings(layout, Phase::Prefill),
        }
    };
    JobMeasurements {
        role: plan.role,
        parts: plan.parts.clone(),
        count: plan.count,
        default_decode: job.default_decode,
        default_prefill: job.default_prefill,
        default_decode_us: default_us(Phase::Decode),
        default_prefill_us: default_us(Phase::Prefill),
        tokens: if job.default_prefill.is_some() { TOKENS as u32 } else { 1 },
        layouts: plan.layouts.iter().map(layout).collect(),
        sparse: None,
    }
}
