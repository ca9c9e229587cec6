//! Choice of a job's layout and kernels.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Objective, Role};

use super::choice::{ChosenKernel, JobChoice};
use super::gather::choose_gather;
use super::settle::{Rated, WORTHWHILE, settle, simplicity, worthwhile};
use crate::measure::{JobMeasurements, LayoutMeasurements, Measurements, Timing, weights};

/// Chooses for every job that has a layout left. The same measurements give the same choices.
pub fn choose(measurements: &Measurements, objective: Objective) -> Vec<JobChoice<'_>> {
    let cold = measurements.limits.cold;
    measurements.jobs.iter().filter_map(|job| choose_job(job, objective, cold)).collect()
}

/// Returns the untuned defaults as choices, of every job for which they were timed.
pub fn defaults(measurements: &Measurements) -> Vec<JobChoice<'_>> {
    measurements.jobs.iter().filter_map(default_of).collect()
}

fn default_of(job: &JobMeasurements) -> Option<JobChoice<'_>> {
    job.layouts.iter().find_map(|layout| {
        let chosen = |phase, id: KernelId| {
            let timing = layout.timings(phase).iter().find(|timing| timing.kernel == id)?;
            Some(ChosenKernel { timing, runner_up: None })
        };
        let decode = chosen(Phase::Decode, job.default_decode)?;
        let prefill = match job.default_prefill {
            Some(id) => Some(chosen(Phase::Prefill, id)?),
            None => None,
        };
        Some(JobChoice { job, layout, decode, prefill, gather: None })
    })
}

fn choose_job(job: &JobMeasurements, objective: Objective, cold: bool) -> Option<JobChoice<'_>> {
    let (of_decode, of_prefill) = weights(objective);
    let decode_us = of_decode * job.default_us(Phase::Decode);
    let prefill_us = of_prefill * job.default_us(Phase::Prefill);
    // The head has one phase, which counts whatever is weighed.
    let decode_us = if job.default_prefill.is_none() { 1.0 } else { decode_us };
    let rate = |decode: &Timing, prefill: Option<&Timing>| {
        let of_prefill = |value: fn(&Timing) -> f64| prefill.map_or(0.0, |p| prefill_us * value(p));
        (
            decode_us * decode.ratio + of_prefill(|p| p.ratio),
            (decode_us * decode.half_width).hypot(of_prefill(|p| p.half_width)),
        )
    };
    if job.role == Role::Attention {
        let layout = job.layouts.first()?;
        let prefill_of = |decode: &Timing| {
            layout.prefill.iter().find(|t| t.kernel == decode.kernel && t.finalist)
        };
        let both = layout.decode.iter().filter(|timing| timing.finalist);
        let both: Vec<Rated<(&Timing, &Timing)>> = both
            .filter_map(|decode| Some((decode, prefill_of(decode)?)))
            .map(|(decode, prefill)| {
                let (cost, half_width) = rate(decode, Some(prefill));
                let is_default = decode.kernel == job.default_decode;
                let worthwhile = WORTHWHILE;
                Rated { item: (decode, prefill), cost, half_width, is_default, worthwhile }
            })
            .collect();
        let &(decode, prefill) =
            settle(&both, layout.decode.len(), |(decode, _)| simplicity(&decode.kernel))?;
        let others = || both.iter().filter(|rated| rated.item.0.kernel != decode.kernel);
        let second = others().min_by(|a, b| a.cost.total_cmp(&b.cost)).map(|rated| rated.item);
        return Some(JobChoice {
            job,
            layout,
            decode: ChosenKernel { timing: decode, runner_up: second.map(|(decode, _)| decode) },
            prefill: Some(ChosenKernel {
                timing: prefill,
                runner_up: second.map(|(_, prefill)| prefill),
            }),
            gather: None,
        });
    }
    let rated = |layout| {
        let timings = |phase| LayoutMeasurements::timings(layout, phase);
        let decode = choose_kernel(timings(Phase::Decode), &job.default_decode, cold)?;
        let prefill = match &job.default_prefill {
            Some(default) => Some(choose_kernel(timings(Phase::Prefill), default, cold)?),
            None => None,
        };
        let (cost, half_width) = rate(decode.timing, prefill.map(|prefill| prefill.timing));
        Some(Rated {
            item: JobChoice { job, layout, decode, prefill, gather: None },
            cost,
            half_width,
            is_default: layout.layout == job.default_decode.op.packing(),
            worthwhile: WORTHWHILE,
        })
    };
    let tried = job.layouts.iter().map(|l| l.decode.len() + l.prefill.len()).sum();
    let rated: Vec<Rated<JobChoice<'_>>> = job.layouts.iter().filter_map(rated).collect();
    let choice = *settle(&rated, tried, |choice| choice.layout.layout)?;
    let dense = choice.decode.timing.kernel;
    let sparse = job.sparse.as_ref().filter(|sparse| sparse.dense == dense);
    Some(JobChoice { gather: sparse.and_then(|sparse| choose_gather(sparse, cold)), ..choice })
}

fn choose_kernel<'a>(
    timings: &'a [Timing],
    default: &KernelId,
    cold: bool,
) -> Option<ChosenKernel<'a>> {
    let finalists: Vec<Rated<&'a Timing>> = timings
        .iter()
        .filter(|timing| timing.finalist)
        .map(|timing| Rated {
            item: timing,
            cost: timing.ratio,
            half_width: timing.half_width,
            is_default: timing.kernel == *default,
            worthwhile: worthwhile(&timing.kernel, default, cold),
        })
        .collect();
    let timing = *settle(&finalists, timings.len(), |timing| simplicity(&timing.kernel))?;
    let others = finalists.iter().map(|rated| rated.item).filter(|t| t.kernel != timing.kernel);
    let runner_up = others.min_by(|a, b| a.ratio.total_cmp(&b.ratio));
    Some(ChosenKernel { timing, runner_up })
}
