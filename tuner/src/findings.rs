//! Results that the workers of a run have reported, for tuning and checking alike.

use bitnet_profiles::{Isa, KernelId};
use bitnet_runtime::Error;

use crate::measure::{Excluded, JobMeasurements, Limits, Measurements, SparseUnit, Unit};
use crate::plan::JobTask;
use crate::protocol::{Event, MeasureTask};
use crate::{ModelInfo, Result};

/// Jobs, and the results for them.
pub(crate) struct Findings {
    pub jobs: Vec<JobTask>,
    pub limits: Option<Limits>,
    pub units: Vec<Unit>,
    pub excluded: Vec<Excluded>,
    /// Results for activation sparsity.
    pub sparse: Vec<SparseUnit>,
}

impl Findings {
    /// Starts without results.
    pub(crate) fn new(jobs: Vec<JobTask>) -> Self {
        Self { jobs, limits: None, units: Vec::new(), excluded: Vec::new(), sparse: Vec::new() }
    }

    /// Returns the task for what is left to measure, in `seconds`.
    pub(crate) fn task(&self, model: &ModelInfo, ceiling: Isa, seconds: f64) -> MeasureTask {
        MeasureTask {
            jobs: self.jobs.clone(),
            config: model.config.clone(),
            head: model.head,
            model_bytes: self.model_bytes(model),
            ceiling,
            seconds,
            repeats: 1,
            whole: true,
            limits: self.limits,
            done: self.units.clone(),
            excluded: self.excluded.clone(),
        }
    }

    /// Returns the bytes of weights that a token reads with the defaults.
    pub(crate) fn model_bytes(&self, model: &ModelInfo) -> u64 {
        let ternary = |job: &JobTask| {
            job.default_decode.op.packing().map_or(0, |layout| {
                let bytes: usize = job.plan.parts.iter().map(|&p| layout.matrix_bytes(p)).sum();
                bytes as u64 * u64::from(job.plan.count)
            })
        };
        self.jobs.iter().map(ternary).sum::<u64>() + model.head_bytes()
    }

    /// Records a result that a worker reports.
    pub(crate) fn learn(&mut self, event: Event) {
        match event {
            Event::Limits(limits) => self.limits = Some(limits),
            Event::Excluded(excluded) => self.excluded.push(excluded),
            Event::Unit(unit) => self.units.push(unit),
            Event::Sparse(units) => {
                let same =
                    |a: &SparseUnit, b: &SparseUnit| (a.role, &a.parts) == (b.role, &b.parts);
                self.sparse.retain(|own| !units.iter().any(|unit| same(unit, own)));
                self.sparse.extend(units);
            }
            _ => {}
        }
    }

    /// Returns the message about a kernel that is left out.
    ///
    /// # Errors
    /// [`Error::Runtime`] when it is a default: there is nothing left to compare with.
    pub(crate) fn objection(&self, excluded: &Excluded) -> Result<String> {
        let Excluded { kernel, why, found } = excluded;
        let defaults = |job: &JobTask| [Some(job.default_decode), job.default_prefill];
        if self.jobs.iter().flat_map(defaults).flatten().any(|id| id == *kernel) {
            let message = format!("the default kernel {kernel} {why}: {found}; please report");
            return Err(Error::Runtime(message).into());
        }
        Ok(format!("left out, please report: {kernel} {why}: {found}"))
    }

    /// Assembles the measurements.
    ///
    /// # Errors
    /// [`Error::Runtime`] when no worker has probed the machine.
    pub(crate) fn measurements(&self) -> Result<Measurements> {
        let limits =
            self.limits.ok_or_else(|| Error::Runtime("the worker probed nothing".into()))?;
        let mut all =
            Measurements::assemble(&self.jobs, limits, self.excluded.clone(), &self.units);
        for SparseUnit { role, parts, measured } in &self.sparse {
            let same = |job: &&mut JobMeasurements| job.role == *role && job.parts == *parts;
            let Some(job) = all.jobs.iter_mut().find(same) else { continue };
            let mut measured = measured.clone();
            let is_out = |id: KernelId| self.excluded.iter().any(|e| e.kernel == id);
            measured.timings.retain(|own| !is_out(own.timing.kernel));
            job.sparse = Some(measured);
        }
        Ok(all)
    }
}
