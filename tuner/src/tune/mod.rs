//! The way through: model, plan, measurements, choices, profile, and what it gains.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bitnet_codegen::Phase;
use bitnet_profiles::{
    self as profiles, Effort, Isa, KernelId, Objective, Op, Pick, Profile, Provenance, Role, Run,
    Shape, Tool, stable_hash,
};
use bitnet_runtime::Error;
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::cpu::kernels::{self, AttentionKernel, HeadKernel, Kernel};
use bitnet_runtime::measure::bench;

use crate::Result;
use crate::choose::{self, ChosenGather, JobChoice, choose};
use crate::compile::{Compiler, WorkFolder};
use crate::findings::Findings;
use crate::journal::{Journal, JournalHeader};
use crate::machine;
use crate::measure::lengths::PREFILL_TOKENS;
use crate::measure::{Comparison, Measurements, PlacementTiming};
use crate::model::ModelInfo;
use crate::plan::defaults::{serving, untuned};
use crate::plan::{JobPlan, JobTask, LayoutPlan, placement, plan, sparse};
use crate::protocol::{
    ChosenJob, ComparisonTask, Event, LibraryFile, MeasureTask, PlacementTask, SparseJob,
    SparseTask, Work,
};
use crate::stats::rounded;
use crate::supervise::{self, Client, Notice, WorkerProgram};
use crate::timing::comparison;

/// How to tune.
#[derive(Debug, Clone)]
pub struct Options {
    /// The best tier that may be used; one that this CPU has.
    pub ceiling: Isa,
    /// What to weigh.
    pub objective: Objective,
    /// How many candidates to try.
    pub effort: Effort,
    /// How long all of it may take.
    pub budget: Duration,
    /// Threads.
    pub threads: usize,
    /// Whether they were asked for, so that no others are tried.
    pub threads_fixed: bool,
    /// What becomes a worker.
    pub worker: WorkerProgram,
    /// Where to keep what was learnt until the profile is written; none to keep nothing.
    pub journal: Option<PathBuf>,
    /// Whether to go on with that journal.
    pub resume: bool,
    /// What makes kernels on this host, or why nothing does.
    pub toolchain: std::result::Result<Arc<dyn Compiler>, String>,
    /// Where those that win are kept.
    pub cache: std::result::Result<Cache, String>,
    /// Set, from a signal handler for one, to end the run with [`crate::Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Options {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Tuned {
    /// What was measured.
    pub measurements: Measurements,
    /// What the ways to run showed; the first is the untuned one.
    pub placements: Vec<PlacementTiming>,
    /// What was weighed.
    pub objective: Objective,
    /// The profile.
    pub profile: Profile,
    /// The default and the profile on the model itself, or why they were not compared.
    pub comparison: std::result::Result<Comparison, String>,
    /// Whether the profile holds the untuned defaults, because the choices were slower on the model.
    pub kept_default: bool,
    /// What became of kernels for the model's own shapes.
    pub made: Made,
    journal: Option<Journal>,
}

/// What became of kernels for the model's own shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// They were not asked for, or there are none worth making.
    Nothing,
    /// So many were made and took part.
    Tried(usize),
    /// They were not made.
    NotTried {
        /// How many there would be.
        count: usize,
        /// Why, and what it would take.
        why: String,
    },
    /// Some won, but cannot be kept: the profile names built-in ones.
    NotKept {
        /// How many won.
        count: usize,
        /// Why.
        why: String,
    },
}

impl Tuned {
    /// Ends the run: the profile is safe, its journal can go.
    pub fn finish(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }
}

#[cfg(test)]
impl Tuned {
    /// A run that has come to this.
    pub(crate) fn for_tests(
        measurements: Measurements,
        objective: Objective,
        profile: Profile,
        comparison: std::result::Result<Comparison, String>,
        made: Made,
        kept_default: bool,
    ) -> Self {
        let (placements, journal) = (Vec::new(), None);
        Self {
            measurements,
            placements,
            objective,
            profile,
            comparison,
            kept_default,
            made,
            journal,
        }
    }
}

/// How much of the budget is spent, at most, when the kernels for the model's shapes are made, and
/// when all are timed; then those that skip what meets a zero, if the model has such; threads, pinning
/// and pages come next, and the rest is for the comparison on the model.
const COMPILED_UNTIL: f64 = 0.3;
const KERNELS_UNTIL: f64 = 0.55;
const SPARSE_UNTIL: f64 = 0.65;
const PLACEMENT_UNTIL: f64 = 0.75;

/// How often each tournament is held: on a virtual machine the bandwidth of memory may be another one
/// for seconds at a stretch (47 and 79 GB/s on two cores of Zen 5), and with it the best distance to
/// prefetch.
const REPEATS: u8 = 3;

/// The share of the budget that the comparison may take on top of it.
const OVERTIME: f64 = 0.05;

/// Seconds that the few kernels that won may take to be made, whatever is left of the budget:
/// without them everything was in vain.
const COMPILE_WINNERS: f64 = 5.0;

/// Verifies and times every candidate for `model` in worker processes, chooses, and compares the
/// choices with the untuned default on the model itself.
///
/// # Errors
/// A journal that cannot be written or that another run holds, memory that the system refuses, a
/// worker that cannot be started, [`crate::Error::Stopped`].
pub fn tune(model: &ModelInfo, options: &Options, notify: &mut dyn FnMut(Notice)) -> Result<Tuned> {
    if options.effort == Effort::Estimate {
        return estimated(model, options);
    }
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
    let jobs = jobs(model, options, &machine::Cpu::of(&host), made_ids)?;
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
        // What cannot be compared is no reason to lose what was measured.
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

/// Chooses among the built-in kernels by the machine model; nothing is timed or called.
fn estimated(model: &ModelInfo, options: &Options) -> Result<Tuned> {
    let host = Host::detect();
    let cpu = machine::Cpu::of(&host);
    let jobs = jobs(model, options, &cpu, &[])?;
    let measurements = machine::estimate(&jobs, &cpu, options.threads);
    let choices = choose(&measurements, options.objective);
    let run = placement::untuned(options.threads);
    let profile = profile(model, &host, options, &measurements, &choices, &run);
    Ok(Tuned {
        measurements,
        placements: Vec::new(),
        objective: options.objective,
        profile,
        comparison: Err("an estimate times nothing; --effort measure does".into()),
        kept_default: false,
        made: Made::Nothing,
        journal: None,
    })
}

/// The kernels of a profile that are not built in.
fn made_in(profile: &Profile) -> BTreeSet<KernelId> {
    let picks = profile.ops.iter().flat_map(profiles::Choice::picks);
    picks.map(|(_, pick)| pick.kernel).filter(|id| id.shape.is_some()).collect()
}

/// Makes a library of the kernels that won, if there are any, and keeps it where `bitnet-run` looks
/// for it.
fn keep(
    winners: &BTreeSet<KernelId>,
    profile: &mut Profile,
    options: &Options,
    start: Instant,
) -> std::result::Result<(), String> {
    if winners.is_empty() {
        return Ok(());
    }
    let winners: Vec<KernelId> = winners.iter().copied().collect();
    let toolchain = options.toolchain.as_ref().map_err(Clone::clone)?;
    let cache = options.cache.as_ref().map_err(Clone::clone)?;
    let limit = Duration::from_secs_f64(left(options, start, 1.0).max(COMPILE_WINNERS));
    let bytes = toolchain.compile(&winners, limit).map_err(|e| e.to_string())?;
    let sha256 = cache.store(&bytes).map_err(|e| e.to_string())?;
    profile.tool.library_sha256 = Some(sha256);
    Ok(())
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

/// Seconds until so large a share of the budget is spent.
fn left(options: &Options, start: Instant, share: f64) -> f64 {
    (options.budget.as_secs_f64() * share - start.elapsed().as_secs_f64()).max(0.0)
}

/// A run, and what it knows so far.
struct Tuning<'a> {
    model: &'a ModelInfo,
    options: &'a Options,
    host: &'a Host,
    start: Instant,
    known: Findings,
    /// The jobs that may skip what meets a zero, each with the untuned dense kernel.
    sparse: Vec<SparseJob>,
    journal: Option<Journal>,
    /// Whether all that was heard is in it.
    journal_is_whole: bool,
    library: Option<LibraryFile>,
    stage: Stage,
    placements: Option<Vec<PlacementTiming>>,
    comparison: Option<Comparison>,
    notify: &'a mut dyn FnMut(Notice),
}

/// What its workers do now.
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

    /// The jobs that may skip, each with the dense kernel chosen for it, but for what is known.
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

    /// The share of the budget that is spent when the kernels are timed.
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

    /// Writes an event to the journal. Where that fails the run goes on, and --resume would know
    /// what was written before.
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
            Stage::Comparison(task) => return Work::Comparison(ComparisonTask::clone(task)),
        }
        let seconds = left(self.options, self.start, self.kernels_until());
        let task = self.known.task(self.model, self.options.ceiling, seconds);
        Work::Measure(MeasureTask { repeats: REPEATS, whole: false, ..task })
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

/// Kernels made on this host for this run.
struct Compiled {
    file: LibraryFile,
    /// Removed with the run: only the winners are kept.
    _folder: WorkFolder,
}

/// Makes the kernels for the model's own shapes, or says why not and what it would take.
fn compile(
    ids: &[KernelId],
    options: &Options,
    start: Instant,
    notify: &mut dyn FnMut(Notice),
) -> std::result::Result<Compiled, String> {
    let again = |why: &String| format!("{why}; then run bitnet-tune again");
    let toolchain = options.toolchain.as_ref().map_err(again)?;
    options.cache.as_ref().map_err(|why| format!("{why}; set one and run bitnet-tune again"))?;
    let count = ids.len();
    let limit = Duration::from_secs_f64(left(options, start, COMPILED_UNTIL));
    let expected = toolchain.expected(count);
    if expected > limit {
        let (seconds, enough) = (expected.as_secs_f64(), expected.div_f64(COMPILED_UNTIL));
        let enough = (1.1 * enough.as_secs_f64()).ceil();
        return Err(format!(
            "to compile them may take {seconds:.0} s; with --budget {enough}s there is time for it"
        ));
    }
    notify(Notice::Progress(0.0, format!("compiling {count} kernels for these shapes")));
    let bytes = toolchain.compile(ids, limit).map_err(|error| error.to_string())?;
    let folder = WorkFolder::new(options.cache.as_ref().ok()).map_err(|e| e.to_string())?;
    let cache = Cache::at(folder.path());
    let sha256 = cache.store(&bytes).map_err(|e| e.to_string())?;
    let file = LibraryFile { cache: folder.path().into(), sha256 };
    Ok(Compiled { file, _folder: folder })
}

/// The kernels for the model's own shapes that are worth making: those of the best tiers. None for
/// attention, which was 10 to 15 % slower when it knew the number of heads (Zen 5).
fn made_for(model: &ModelInfo, ceiling: Isa) -> Vec<KernelId> {
    let isas =
        || Isa::ALL.iter().copied().filter(|&isa| isa != Isa::Scalar && isa.is_within(ceiling));
    let mut shapes: Vec<Shape> = Vec::new();
    let parts = model.jobs.iter().filter_map(|job| job.parts.first());
    for &shape in parts {
        // Kernels are made for columns; any number of rows will do.
        if shapes.iter().all(|known| known.cols != shape.cols) {
            shapes.push(shape);
        }
    }
    let mut ids = Vec::new();
    let mut add = |shape: Shape, wanted: &dyn Fn(Op) -> bool| {
        let all = isas().flat_map(|isa| bitnet_codegen::candidates(isa, Some(shape)));
        ids.extend(all.filter(|id| wanted(id.op)));
    };
    for shape in shapes {
        add(shape, &|op| matches!(op, Op::Ternary(_)));
    }
    add(model.head_shape(), &|op| op == Op::Head(model.head));
    let plan = plan(model, &ids, ceiling, Effort::Measure);
    let worth: BTreeSet<KernelId> =
        plan.iter().flat_map(|job| &job.layouts).flat_map(LayoutPlan::all).copied().collect();
    ids.retain(|id| worth.contains(id));
    ids
}

/// The jobs of a model with their candidates and defaults.
fn jobs(
    model: &ModelInfo,
    options: &Options,
    cpu: &machine::Cpu,
    made: &[KernelId],
) -> Result<Vec<JobTask>> {
    let untuned = untuned(options.ceiling)?;
    let present: Vec<KernelId> = (kernels::builtin().iter().map(Kernel::id).copied())
        .chain(HeadKernel::builtin().map(|kernel| *kernel.id()))
        .chain(AttentionKernel::builtin().map(|kernel| *kernel.id()))
        .chain(made.iter().copied())
        .collect();
    let plan = plan(model, &present, options.ceiling, options.effort);
    let task = |plan: JobPlan| -> Result<JobTask> {
        let (default_decode, default_prefill) = serving(&untuned, model, (plan.role, &plan.parts))?;
        Ok(JobTask { plan, default_decode, default_prefill })
    };
    let mut tasks = plan.into_iter().map(task).collect::<Result<Vec<JobTask>>>()?;
    let jobs = tasks.iter().map(|task| (&task.plan, &task.default_decode));
    let bytes = machine::model_bytes(jobs);
    for task in &mut tasks {
        most_promising(task, options, cpu, bytes);
    }
    Ok(tasks)
}

/// How many times as long as the best one a candidate may take, by the machine model, to be worth
/// timing: much more than the model errs by.
const HOPEFUL: f64 = 1.6;

/// Puts the candidates in the order of the machine model, after the default: where there is no time
/// for all, the last are not timed. Unless patience was asked for, those without a chance go.
fn most_promising(task: &mut JobTask, options: &Options, cpu: &machine::Cpu, model_bytes: u64) {
    let parts = task.plan.parts.clone();
    for (phase, default) in
        [(Phase::Decode, Some(task.default_decode)), (Phase::Prefill, task.default_prefill)]
    {
        let tokens = if phase == Phase::Decode { 1 } else { PREFILL_TOKENS };
        let us = |id: &KernelId| {
            machine::predict(cpu, id, &parts, tokens, options.threads, model_bytes).us
        };
        let all = task.plan.layouts.iter().flat_map(|layout| layout.kernels(phase));
        let best = all.map(us).fold(f64::INFINITY, f64::min);
        for layout in &mut task.plan.layouts {
            let kernels = match phase {
                Phase::Decode => &mut layout.decode,
                Phase::Prefill => &mut layout.prefill,
            };
            let is_default = |id: &KernelId| Some(*id) == default;
            if options.effort != Effort::Patient {
                kernels.retain(|id| is_default(id) || us(id) <= HOPEFUL * best);
            }
            kernels.sort_by(|a, b| is_default(b).cmp(&is_default(a)).then(us(a).total_cmp(&us(b))));
        }
    }
    // One kernel of attention serves both phases, so it is in both lists or in none.
    if task.plan.role == Role::Attention {
        for layout in &mut task.plan.layouts {
            let LayoutPlan { decode, prefill, .. } = layout;
            decode.retain(|id| prefill.contains(id));
            prefill.retain(|id| decode.contains(id));
        }
    }
    let has_prefill = task.default_prefill.is_some();
    task.plan.layouts.retain(|l| !l.decode.is_empty() && (!has_prefill || !l.prefill.is_empty()));
}

/// The jobs of a model that may skip what meets a zero, with their candidates.
fn sparse_jobs(model: &ModelInfo, options: &Options) -> Result<Vec<SparseJob>> {
    let untuned = untuned(options.ceiling)?;
    let mut jobs = Vec::new();
    for job in &model.jobs {
        let default = untuned.lines(job.role, &job.parts).map(|(kernel, _)| kernel);
        let own = (job.role, &job.parts[..]);
        let kernels = sparse::candidates(model, own, default.as_ref(), options.ceiling);
        if !kernels.is_empty() {
            let (dense, _) = serving(&untuned, model, own)?;
            jobs.push(SparseJob { role: job.role, parts: job.parts.clone(), dense, kernels });
        }
    }
    Ok(jobs)
}

fn header(
    model: &ModelInfo,
    options: &Options,
    host: &Host,
    (jobs, sparse): (&[JobTask], &[SparseJob]),
) -> Result<JournalHeader> {
    // With all that says what a figure in the journal means.
    let plan = (jobs, sparse, sparse::DENSITIES, PREFILL_TOKENS, options.ceiling);
    let plan = serde_json::to_string(&plan)
        .map_err(|e| Error::Runtime(format!("a plan has no JSON form: {e}")))?;
    Ok(JournalHeader {
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: bitnet_codegen::fingerprint(),
        cpu: format!("{} {} {} {}", host.vendor, host.family, host.model, host.stepping),
        shapes: model.shapes.clone(),
        threads: options.threads,
        plan: stable_hash(plan.bytes()),
    })
}

fn profile(
    model: &ModelInfo,
    host: &Host,
    options: &Options,
    measurements: &Measurements,
    choices: &[JobChoice<'_>],
    run: &Run,
) -> Profile {
    let text = |text: &str| text.chars().filter(|c| !c.is_control()).take(64).collect();
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: Some(bitnet_codegen::fingerprint()),
            objective: options.objective,
            effort: options.effort,
            date: date_of(SystemTime::now()),
            library_sha256: None,
            provenance: match options.effort {
                Effort::Estimate => Provenance::Modelled,
                Effort::Measure | Effort::Patient => Provenance::Measured,
            },
        },
        host: profiles::Host {
            cpu: text(&host.cpu),
            vendor: text(&host.vendor),
            family: host.family,
            model: host.model,
            stepping: host.stepping,
            isa: Isa::supported().collect(),
            physical_cores: host.physical_cores as u32,
            threads: host.threads as u32,
            l2: host.l2,
            l3: host.l3,
            read_gb_per_s: rounded(measurements.limits.read_gb_per_s),
            noise: rounded(measurements.noise),
        },
        model: profiles::Model {
            name: model.name.clone(),
            architecture: model.architecture.into(),
            shapes: model.shapes.clone(),
            path: model.path.clone(),
        },
        run: run.clone(),
        ops: choices.iter().map(|choice| profile_choice(measurements, choice)).collect(),
    }
}

pub(crate) fn profile_choice(
    measurements: &Measurements,
    choice: &JobChoice<'_>,
) -> profiles::Choice {
    let pick = |phase| {
        let chosen = choice.chosen(phase)?;
        let timing = chosen.timing;
        let tokens = if phase == Phase::Decode { 1 } else { choice.job.tokens };
        Some(Pick {
            kernel: timing.kernel,
            tokens,
            median_us: rounded(timing.median_us),
            mad_us: rounded(timing.mad_us),
            gb_per_s: rounded(choice.layout.bytes as f64 / timing.median_us.max(1e-3) / 1e3),
            share_of_limit: rounded(
                choice.share_of_limit(&measurements.limits, phase).unwrap_or(0.0),
            ),
            runner_up: chosen.runner_up.map(|second| second.kernel),
            runner_up_ratio: chosen.runner_up.map(|second| rounded(second.ratio / timing.ratio)),
            built_in: choose::built_in(choice.layout.timings(phase), timing).kernel,
        })
    };
    let decode = pick(Phase::Decode);
    profiles::Choice {
        role: choice.job.role,
        parts: choice.job.parts.clone(),
        count: choice.job.count,
        layout: choice.layout.layout,
        mode: choice.mode(),
        decode: decode.expect("every choice has a kernel for one token"),
        prefill: (choice.job.role != Role::Attention).then(|| pick(Phase::Prefill)).flatten(),
        sparse: choice.gather.map(ChosenGather::to_profile),
    }
}

/// The day by UTC, `YYYY-MM-DD`; a clock that was never set shows the first it can.
fn date_of(time: SystemTime) -> String {
    const YEAR_9999: u64 = 2_932_896;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = bench::utc((since.as_secs() / 86_400).min(YEAR_9999) * 86_400);
    text.truncate("YYYY-MM-DD".len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t12_a_clock_that_was_never_set_has_a_date() {
        let day = Duration::from_secs(86_400);
        for (time, text) in [
            (UNIX_EPOCH, "1970-01-01"),
            (UNIX_EPOCH - day, "1970-01-01"),
            (UNIX_EPOCH + day, "1970-01-02"),
            (UNIX_EPOCH + 2_932_896 * day, "9999-12-31"),
            (UNIX_EPOCH + 2_932_897 * day, "9999-12-31"),
            (UNIX_EPOCH + 100_000_000 * day, "9999-12-31"),
        ] {
            assert_eq!(date_of(time), text, "{time:?}");
        }
    }

    #[test]
    fn dates() {
        for (days, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (10_956, "1999-12-31"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_777, "2026-11-20"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(86_400 * days);
            assert_eq!(date_of(time), text, "{days}");
        }
    }
}
