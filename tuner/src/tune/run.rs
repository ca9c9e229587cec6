//! Run of a tuning: stage by stage in workers, then choices, comparison and profile.

use std::time::Instant;

use bitnet_profiles::{Effort, KernelId};
use bitnet_runtime::cpu::host::Host;

use super::jobs::{header, jobs, sparse_jobs};
use super::made::{compile, keep, made_for, made_in};
use super::outcome::{Made, Options, Tuned, left};
use super::profile::profile;
use crate::Result;
use crate::choose::{self, JobChoice, choose};
use crate::findings::Findings;
use crate::journal::Journal;
use crate::measure::{Comparison, PlacementTiming};
use crate::model::ModelInfo;
use crate::plan::placement;
use crate::protocol::{
    ChosenJob, ComparisonTask, Event, LibraryFile, MeasureTask, PlacementTask, SparseJob,
    SparseTask, Work,
};
use crate::supervise::{self, Client, Notice};
use crate::timing::comparison;

/// Share of the budget that is spent when the dense kernels are timed, if there is activation
/// sparsity to time.
const KERNELS_UNTIL: f64 = 0.55;
/// Share that is spent when activation sparsity is timed.
const SPARSE_UNTIL: f64 = 0.65;
/// Share that is spent when placements are timed; the rest is for the comparison on the model.
const PLACEMENT_UNTIL: f64 = 0.75;

/// Repeats of each tournament: the bandwidth of memory on a virtual machine may change for seconds
/// at a stretch, and with it the best prefetch distance.
const REPEATS: u8 = 3;

/// Share of the budget by which the comparison may exceed it.
const OVERTIME: f64 = 0.05;

/// Verifies and times every candidate for `model` in worker processes, chooses, and compares the
/// choices with the untuned default on the model itself.
///
/// # Errors
/// A journal that cannot be written or that another run holds, memory that the system refuses, a
/// worker that cannot be started, [`crate::Error::Stopped`].
pub fn tune(model: &ModelInfo, options: &Options, notify: &mut dyn FnMut(Notice)) -> Result<Tuned> {
    let start = Instant::now();
    let host = Host::detect();
    // Before anything else: of two runs for one output one waits for nothing.
    let journal = options.journal.as_deref().map(Journal::open).transpose()?;
    let ids = match options.effort {
        Effort::Patient => made_for(model, options.ceiling),
        Effort::Estimate | Effort::Measure => Vec::new(),
    };
    if options.is_stopped() {
        return Err(crate::Error::stopped());
    }
    let compiled = (!ids.is_empty()).then(|| compile(&ids, options, start, notify)).transpose();
    if options.is_stopped() {
        // The compiler may have been stopped with it.
        return Err(crate::Error::stopped());
    }
    let (compiled, mut made) = match compiled {
        Ok(None) => (None, Made::Nothing),
        Ok(compiled) => (compiled, Made::Tried(ids.len())),
        Err(why) => {
            let count = ids.len();
            let line = format!("{count} kernels for this model's own shapes are not tried: {why}");
            notify(Notice::Line(line));
            (None, Made::NotTried { count, why })
        }
    };
    let made_ids: &[KernelId] = if compiled.is_some() { &ids } else { &[] };
    let jobs = jobs(model, options, made_ids)?;
    let sparse = sparse_jobs(model, options)?;
    let header = header(model, options, &host, (&jobs, &sparse))?;
    let mut run = Tuning {
        model,
        options,
        host: &host,
        start,
        known: Findings::new(jobs),
        sparse,
        journal: None,
        journal_is_whole: true,
        library: compiled.as_ref().map(|compiled| compiled.file.clone()),
        stage: Stage::Kernels,
        placements: None,
        comparison: None,
        notify,
    };
    if let Some(mut journal) = journal {
        let (events, why) = journal.begin(&header, options.resume)?;
        run.journal = Some(journal);
        events.into_iter().for_each(|event| run.learn(event));
        match why {
            Some(why) => run.say(format!("nothing to go on with: {why}")),
            None if options.resume => {
                run.say(format!("going on after {} tournaments", run.known.units.len()));
            }
            None => {}
        }
    }
    run.done_in_workers()?;
    if !run.sparse_task().jobs.is_empty() && left(options, start, SPARSE_UNTIL) > 0.0 {
        run.stage = Stage::Sparse;
        run.done_in_workers()?;
    }
    if run.placements.is_none() && left(options, start, PLACEMENT_UNTIL) > 0.0 {
        run.stage = Stage::Placement;
        run.done_in_workers()?;
    }
    let measurements = run.known.measurements()?;
    let choices = choose(&measurements, options.objective);
    let placements = run.placements.take().unwrap_or_default();
    let untuned = placement::untuned(options.threads);
    let placement = choose::placement(&placements, options.objective).unwrap_or(&untuned);
    let mut profile = profile(model, &host, options, &measurements, &choices, placement);
    let winners = made_in(&profile);
    let kept = keep(&winners, &mut profile, options, start);
    if options.is_stopped() {
        return Err(run.stopped());
    }
    if let Err(why) = kept {
        let count = winners.len();
        run.say(format!("{count} kernels made on this host won, but are not kept: {why}"));
        made = Made::NotKept { count, why };
        profile.use_built_in();
    }
    let seconds = left(options, start, 1.0);
    let per_token_us = |phase| {
        let (chosen, default) = choose::per_token_us(&choices, phase);
        chosen + default
    };
    let least = comparison::least_seconds(per_token_us, run.known.model_bytes(model));
    let comparison = if seconds == 0.0 {
        Err("no time was left".into())
    } else if least > seconds + OVERTIME * options.budget.as_secs_f64() {
        let enough = (1.1 * least / (1.0 - PLACEMENT_UNTIL)).ceil();
        Err(format!("it takes about {least:.0} s; with --budget {enough}s there is time"))
    } else {
        run.stage = Stage::Comparison(Box::new(ComparisonTask {
            model: model.path.clone(),
            profile: profile.clone(),
            threads: options.threads,
            ceiling: options.ceiling,
            model_bytes: run.known.model_bytes(model),
            seconds,
        }));
        // A failed comparison is no reason to lose the measurements.
        match run.done_in_workers() {
            Ok(()) => run.comparison.ok_or_else(|| "the worker said nothing".into()),
            Err(stopped @ crate::Error::Stopped { .. }) => return Err(stopped),
            Err(error) => Err(error.to_string()),
        }
    };
    let kept_default =
        comparison.as_ref().is_ok_and(|comparison| comparison.is_slower(options.objective));
    if kept_default {
        let defaults = choose::defaults(&measurements);
        profile = self::profile(model, &host, options, &measurements, &defaults, &untuned);
    }
    let (objective, journal) = (options.objective, run.journal.take());
    Ok(Tuned {
        measurements,
        placements,
        objective,
        profile,
        comparison,
        kept_default,
        made,
        journal,
    })
}

fn chosen_job(choice: &JobChoice<'_>) -> Option<ChosenJob> {
    choice.layout.layout?;
    Some(ChosenJob {
        parts: choice.job.parts.clone(),
        count: choice.job.count,
        decode: choice.decode.timing.kernel,
        prefill: choice.prefill?.timing.kernel,
    })
}

/// A run and its results so far.
struct Tuning<'a> {
    model: &'a ModelInfo,
    options: &'a Options,
    host: &'a Host,
    start: Instant,
    known: Findings,
    /// Jobs with activation sparsity, each with the untuned dense kernel.
    sparse: Vec<SparseJob>,
    journal: Option<Journal>,
    /// True as long as every event could be written to the journal.
    journal_is_whole: bool,
    library: Option<LibraryFile>,
    stage: Stage,
    placements: Option<Vec<PlacementTiming>>,
    comparison: Option<Comparison>,
    notify: &'a mut dyn FnMut(Notice),
}

/// Stage of a run.
enum Stage {
    Kernels,
    Sparse,
    Placement,
    Comparison(Box<ComparisonTask>),
}

impl Tuning<'_> {
    fn done_in_workers(&mut self) -> Result<()> {
        let done = supervise::run(&self.options.worker, self.options.threads, self);
        done.map_err(|error| match error {
            crate::Error::Stopped { .. } => self.stopped(),
            error => error,
        })
    }

    fn stopped(&self) -> crate::Error {
        let journal = self.journal.as_ref().map(|journal| journal.path().to_path_buf());
        crate::Error::Stopped { journal }
    }

    fn placement_task(&self) -> PlacementTask {
        // Without measurements there is nothing to do.
        let jobs = self.known.measurements().map_or(Vec::new(), |measurements| {
            let choices = choose(&measurements, self.options.objective);
            choices.iter().filter_map(chosen_job).collect()
        });
        let options = self.options;
        PlacementTask {
            jobs,
            placements: placement::candidates(self.host, options.threads, options.threads_fixed),
            model_bytes: self.known.model_bytes(self.model),
            seconds: left(options, self.start, PLACEMENT_UNTIL),
        }
    }

    /// Returns the jobs with activation sparsity that are left to time, each with the dense kernel
    /// chosen for it.
    fn sparse_task(&self) -> SparseTask {
        let measurements = self.known.measurements().ok();
        let choices = measurements.as_ref().map(|all| choose(all, self.options.objective));
        let job = |job: &SparseJob| {
            let same = |choice: &&JobChoice<'_>| {
                choice.job.role == job.role && choice.job.parts == job.parts
            };
            let choice = choices.iter().flatten().find(same)?;
            let dense = choice.decode.timing.kernel;
            let known = choice.job.sparse.as_ref().is_some_and(|sparse| sparse.dense == dense);
            let is_out = |id: &KernelId| self.known.excluded.iter().any(|e| e.kernel == *id);
            let kernels = job.kernels.iter().filter(|id| !is_out(id)).copied().collect();
            (!known).then(|| SparseJob { dense, kernels, ..job.clone() })
        };
        let jobs = self.sparse.iter().filter_map(job);
        SparseTask {
            jobs: jobs.filter(|job| !job.kernels.is_empty()).collect(),
            model_bytes: self.known.model_bytes(self.model),
            seconds: left(self.options, self.start, SPARSE_UNTIL),
        }
    }

    /// Returns the share of the budget that is spent when the dense kernels are timed.
    fn kernels_until(&self) -> f64 {
        if self.sparse.is_empty() { SPARSE_UNTIL } else { KERNELS_UNTIL }
    }

    fn say(&mut self, line: String) {
        (self.notify)(Notice::Line(line));
    }

    fn learn(&mut self, event: Event) {
        match event {
            Event::Placements(placements) => self.placements = Some(placements),
            Event::Comparison(comparison) => self.comparison = Some(comparison),
            event => self.known.learn(event),
        }
    }

    /// Writes an event to the journal. Where that fails the run goes on, and `--resume` knows what
    /// was written before.
    fn keep(&mut self, event: &Event) {
        let Some(journal) = self.journal.as_mut().filter(|_| self.journal_is_whole) else { return };
        if let Err(error) = journal.add(event) {
            self.journal_is_whole = false;
            self.say(format!("warning: {error}; from here on --resume would measure again"));
        }
    }
}

impl Client for Tuning<'_> {
    fn library(&self) -> Option<LibraryFile> {
        self.library.clone()
    }

    fn work(&mut self) -> Work {
        match &self.stage {
            Stage::Kernels => {}
            Stage::Sparse => return Work::Sparse(self.sparse_task()),
            Stage::Placement => return Work::Placement(self.placement_task()),
            Stage::Comparison(task) => return Work::Comparison(task.clone()),
        }
        let seconds = left(self.options, self.start, self.kernels_until());
        let task = self.known.task(self.model, self.options.ceiling, seconds);
        Work::Measure(Box::new(MeasureTask { repeats: REPEATS, whole: false, ..task }))
    }

    fn is_stopped(&self) -> bool {
        self.options.is_stopped()
    }

    fn hear(&mut self, event: Event) -> Result<()> {
        if let Event::Progress { done, doing } = event {
            let share = match self.stage {
                Stage::Kernels => done * self.kernels_until(),
                Stage::Sparse => self.kernels_until(),
                Stage::Placement => SPARSE_UNTIL,
                Stage::Comparison(_) => PLACEMENT_UNTIL,
            };
            (self.notify)(Notice::Progress(share, doing));
            return Ok(());
        }
        if let Event::Note(line) = event {
            self.say(line);
            return Ok(());
        }
        self.keep(&event);
        if let Event::Excluded(excluded) = &event {
            let line = self.known.objection(excluded)?;
            self.say(line);
        }
        self.learn(event);
        Ok(())
    }
}
