//! What goes wrong while tuning: faults T01 to T16, one test each. T16 is in `choose.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, RwLock};
use std::time::{Duration, Instant};

use bitnet_profiles::{Effort, Isa, KernelId, Mode, Objective, Op, Profile, Role, Shape};
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::random::Random;
use bitnet_trials::{Lacking, Need, Suite, Tested, suite};
use bitnet_tuner::choose::defaults;
use bitnet_tuner::compile::{Compiler, Toolchain, Workplace};
use bitnet_tuner::measure::{Comparison, Measurements, SparseMeasurements, Speed, Why};
use bitnet_tuner::plan::{LayoutPlan, plan};
use bitnet_tuner::supervise::WorkerProgram;
use bitnet_tuner::{ModelInfo, Notice, Options, tune};
use rustix::process::{Pid, Signal};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
const TUNE: &str = env!("CARGO_BIN_EXE_bitnet-tune");

/// All share the machine but for the test that needs it alone.
static MACHINE: RwLock<()> = RwLock::new(());

fn shared() -> impl Drop {
    MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A folder with a place for profiles, and nothing else of the user's.
struct Place {
    folder: tempfile::TempDir,
    out: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        let out = folder.path().join("out/host.toml");
        Self { folder, out }
    }

    /// The program, through `before` where that is not empty.
    fn through(&self, before: &[&str], budget: &str) -> Command {
        let all: Vec<&str> = before.iter().copied().chain([TUNE]).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(["--model", MODEL, "--budget", budget]);
        command.arg("-o").arg(&self.out);
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn tune(&self, budget: &str) -> Command {
        self.through(&[], budget)
    }

    /// With one thread.
    fn alone(&self, budget: &str) -> Command {
        let mut command = self.tune(budget);
        command.args(["--threads", "1"]);
        command
    }

    fn journal(&self) -> PathBuf {
        self.out.with_file_name("host.toml.journal")
    }

    /// The names beside the profile.
    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.out.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}

/// That a run ended by itself with an exit code, saying why in its last line.
fn failed(output: &Output, code: i32, says: &str) {
    let errors = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{:?}: {errors}", output.status);
    assert!(!errors.contains("panicked"), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains(says), "{errors} should say {says}");
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The fields of a process's `stat` after its name: state, parent. Nothing of one that is gone.
fn stat(process: &str) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The processes that one has started and that have not ended.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let (state, of) = stat(&name)?;
        (of == parent && state != 'Z').then_some(name.parse().ok()?)
    });
    processes.collect()
}

/// Waits for the end of processes whose parent has gone.
fn are_gone(processes: &[u32]) {
    wait_until("workers outlive the tuner", || {
        processes.iter().all(|p| stat(&p.to_string()).is_none_or(|(state, _)| state == 'Z'))
    });
}

fn signal(process: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A process that is stopped for as long as this lives.
struct Paused(u32);

impl Paused {
    fn new(process: u32) -> Self {
        signal(process, Signal::STOP);
        wait_until("it does not stop", || {
            stat(&process.to_string()).is_none_or(|(state, _)| state == 'T')
        });
        Self(process)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// The tournaments in a journal.
fn units(journal: &Path) -> usize {
    let text = fs::read_to_string(journal).unwrap_or_default();
    text.lines().filter(|line| line.starts_with("{\"unit\"")).count()
}

/// The worker of a run that has finished so many tournaments.
fn worker_after(child: &Child, place: &Place, least: usize) -> u32 {
    let mut worker = None;
    wait_until("no tournament ends", || {
        worker = children(child.id()).first().copied();
        units(&place.journal()) >= least && worker.is_some()
    });
    worker.unwrap()
}

/// Kills a run `count` times, at random moments and while the profile is being written.
fn killed(count: usize) {
    let place = Place::new();
    let output = place.alone("1s").output().unwrap();
    succeeded(&output);
    let start = Instant::now();
    succeeded(&place.alone("1s").output().unwrap());
    let usual = start.elapsed();
    // A profile of its own, that no run writes.
    let text = fs::read_to_string(&place.out).unwrap();
    let mut old = format!("{text}# the profile before\n");
    fs::write(&place.out, &old).unwrap();
    let mut random = Random::new(1);
    let (mut killed, mut replaced) = (0, 0);
    for n in 0..count {
        let mut command = place.alone("1s");
        if n % 2 == 1 {
            command.arg("--resume");
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if n % 3 == 2 {
            // The temporary file of the profile is there, or it is over: whatever the journal says
            // by then.
            wait_until("no end", || {
                let is_written = place.names().iter().any(|name| name.ends_with(".tmp"));
                let is_late = units(&place.journal()) > 0;
                (is_written && is_late) || child.try_wait().unwrap().is_some()
            });
        } else {
            let moment = usual.mul_f64(random.below(1000) as f64 / 1000.0);
            std::thread::sleep(moment);
        }
        let workers = children(child.id());
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        are_gone(&workers);
        let now = fs::read_to_string(&place.out).unwrap();
        if now != old {
            Profile::load(&place.out).unwrap();
            old = format!("{now}# the profile before, number {n}\n");
            fs::write(&place.out, &old).unwrap();
            replaced += 1;
        }
        for name in place.names() {
            let temporary = name.starts_with("host.toml.") && name.ends_with(".tmp");
            assert!(name == "host.toml" || name == "host.toml.journal" || temporary, "{name}");
            if temporary {
                fs::remove_file(place.out.with_file_name(name)).unwrap();
            }
        }
    }
    assert!(2 * killed > count, "{killed} of {count} runs were killed, {replaced} wrote a profile");
    succeeded(&place.alone("0").arg("--resume").output().unwrap());
    Profile::load(&place.out).unwrap();
}

fn t01_a_killed_run_leaves_the_old_profile_or_the_new() {
    let _machine = shared();
    killed(9);
}

fn t01_a_run_killed_200_times_leaves_the_old_profile_or_the_new() {
    let _machine = shared();
    killed(200);
}

fn t02_a_stopped_run_can_be_gone_on_with() {
    let _machine = shared();
    let place = Place::new();
    fs::write(&place.out, "the profile before").unwrap();
    let mut before = 0;
    // Ctrl+C goes to all processes of the terminal; who manages services tells one to end.
    for (number, to_all) in [(Signal::INT, true), (Signal::TERM, false)] {
        let mut command = place.alone("20s");
        if before > 0 {
            command.arg("--resume");
        }
        let child = command.process_group(0).spawn().unwrap();
        let worker = worker_after(&child, &place, before + 2);
        if to_all {
            let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            rustix::process::kill_process_group(group, number).unwrap();
        } else {
            signal(child.id(), number);
        }
        let output = child.wait_with_output().unwrap();
        failed(&output, 130, "host.toml.journal, and the same command with --resume goes on");
        are_gone(&[worker]);
        let names: Vec<String> = place.names().into_iter().collect();
        assert_eq!(names, ["host.toml", "host.toml.journal"]);
        assert_eq!(fs::read_to_string(&place.out).unwrap(), "the profile before");
        let done = units(&place.journal());
        assert!(done >= before + 2, "{done} tournaments, {before} before");
        before = done;
    }
    let output = place.alone("1s").arg("--resume").output().unwrap();
    succeeded(&output);
    let says = format!("going on after {before} tournaments");
    assert!(stderr(&output).contains(&says), "{says}: {}", stderr(&output));
    Profile::load(&place.out).unwrap();
    assert!(!place.journal().exists());
}

/// A compiler of the shell's that never ends, nor does what it started: the lines of `pids` are its
/// process and that one.
fn endless_compiler(folder: &Path, pids: &Path) -> PathBuf {
    let path = folder.join("rustc");
    let arch = std::env::consts::ARCH;
    let script = format!(
        "#!/bin/sh\ncase $1 in\n-vV) echo 'release: 1.95.0'; echo 'host: {arch}-a-b';;\n\
         --print) echo /nowhere/lib;;\n*) sleep 1000 & echo $$ > '{0}.new'; echo $! >> '{0}.new'; \
         touch \"$TMPDIR/object.o\"; mv '{0}.new' '{0}'; wait;;\nesac\n",
        pids.display()
    );
    // By another process: a script that a thread of this one has open for writing while another
    // thread starts a program is busy.
    let mut write = Command::new("sh");
    write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"", "sh", &script]);
    assert!(write.arg(&path).status().unwrap().success());
    path
}

/// A run whose compiler does not end.
struct Compiling {
    place: Place,
    pids: PathBuf,
    rustc: PathBuf,
    /// Where others put temporary files.
    temporary: PathBuf,
}

impl Compiling {
    fn new() -> Self {
        let place = Place::new();
        let folder = place.folder.path();
        let (pids, temporary) = (folder.join("pids"), folder.join("tmp"));
        let rustc = endless_compiler(folder, &pids);
        fs::create_dir(&temporary).unwrap();
        fs::write(&place.out, "the profile before").unwrap();
        Self { place, pids, rustc, temporary }
    }

    /// Starts a run, and waits until it compiles; gives the compiler's processes too.
    fn start(&self) -> (Child, Vec<u32>) {
        let mut command = self.place.alone("1000s");
        command.env("RUSTC", &self.rustc).env("TMPDIR", &self.temporary).process_group(0);
        command.args(["--effort", "patient"]);
        let child = command.spawn().unwrap();
        wait_until("nothing is compiled", || self.pids.exists());
        let pids = fs::read_to_string(&self.pids).unwrap();
        fs::remove_file(&self.pids).unwrap();
        (child, pids.lines().map(|pid| pid.parse().unwrap()).collect())
    }

    /// The names in the cache.
    fn cached(&self) -> Vec<String> {
        let folder = self.place.folder.path().join("cache/bitnet/kernels");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    /// That neither a file nor a changed one is left beside the profile or among temporary ones.
    fn left_nothing(&self) {
        assert_eq!(self.place.names().iter().collect::<Vec<_>>(), ["host.toml"]);
        assert_eq!(fs::read_to_string(&self.place.out).unwrap(), "the profile before");
        assert_eq!(fs::read_dir(&self.temporary).unwrap().count(), 0);
    }
}

fn t02_a_run_that_is_stopped_while_it_compiles_leaves_nothing() -> Tested {
    Need::vectors()?;
    let _machine = shared();
    let run = Compiling::new();
    for (number, to_all) in [(Signal::INT, true), (Signal::TERM, false)] {
        let (child, compiler) = run.start();
        assert_eq!((run.cached().len(), compiler.len()), (1, 2));
        if to_all {
            let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            rustix::process::kill_process_group(group, number).unwrap();
        } else {
            signal(child.id(), number);
        }
        let start = Instant::now();
        let output = child.wait_with_output().unwrap();
        failed(&output, 130, "stopped");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        are_gone(&compiler);
        run.left_nothing();
        assert_eq!(run.cached(), [""; 0]);
    }
    Ok(())
}

fn t02_a_check_that_is_stopped_leaves_nothing() {
    let _machine = shared();
    let place = Place::new();
    succeeded(&place.alone("0").output().unwrap());
    let profile = fs::read_to_string(&place.out).unwrap();
    let temporary = place.folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for number in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(TUNE);
        command.args(["check", "--budget", "1000s", "--profile"]).arg(&place.out);
        command.env("XDG_CACHE_HOME", place.folder.path().join("cache")).env("TMPDIR", &temporary);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut workers = Vec::new();
        wait_until("no worker", || {
            workers = children(child.id());
            !workers.is_empty()
        });
        signal(child.id(), number);
        let output = child.wait_with_output().unwrap();
        failed(&output, 130, "stopped");
        assert!(output.stdout.is_empty());
        are_gone(&workers);
        assert_eq!(place.names().into_iter().collect::<Vec<_>>(), ["host.toml"]);
        assert_eq!(fs::read_to_string(&place.out).unwrap(), profile);
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    }
}

/// What a compiler and a killed run leave is gone after the next run, unless somebody needs it.
fn t01_what_a_run_left_that_was_killed_while_it_compiled_goes() -> Tested {
    Need::vectors()?;
    let _machine = shared();
    let run = Compiling::new();
    let (mut killed, compiler) = run.start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Nobody can end it with the run.
    compiler.iter().for_each(|&process| signal(process, Signal::KILL));
    are_gone(&compiler);
    let [left] = &run.cached()[..] else { panic!("{:?}", run.cached()) };
    let age = |name: &str| {
        let folder = run.place.folder.path().join("cache/bitnet/kernels").join(name);
        let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(folder).unwrap().set_modified(hour).unwrap();
    };
    age(left);
    // What a run needs that is still at it stays, however old its folder is.
    let (first, compiler) = run.start();
    let [own] = &run.cached()[..] else { panic!("{:?}", run.cached()) };
    assert_ne!(own, left);
    age(own);
    // Runs that compile nothing look after it too.
    fs::create_dir(run.place.folder.path().join("cache/bitnet/kernels/run-abandoned000")).unwrap();
    age("run-abandoned000");
    let other = Place { out: run.place.out.with_file_name("other.toml"), ..Place::new() };
    let mut command = other.alone("0");
    command.env("XDG_CACHE_HOME", run.place.folder.path().join("cache"));
    succeeded(&command.output().unwrap());
    fs::remove_file(&other.out).unwrap();
    assert_eq!(run.cached(), std::slice::from_ref(own));
    signal(first.id(), Signal::TERM);
    failed(&first.wait_with_output().unwrap(), 130, "stopped");
    are_gone(&compiler);
    run.left_nothing();
    assert_eq!(run.cached(), [""; 0]);
    Ok(())
}

fn t03_a_full_disk_leaves_the_old_profile() {
    let _machine = shared();
    let place = Place::new();
    fs::write(&place.out, "the profile before").unwrap();
    // No file may grow beyond so many blocks of 512 bytes, and writing more is an error: as on a
    // full disk. One block is enough for the head of the journal, and not for its second unit or
    // for a profile.
    for (blocks, file, left) in [
        ("0", "host.toml.journal", &["host.toml"][..]),
        ("2", "host.toml", &["host.toml", "host.toml.journal"]),
    ] {
        let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = place.through(&["sh", "-c", &limit], "1s");
        let output = command.args(["--threads", "1"]).output().unwrap();
        failed(&output, 6, &format!("{file}: cannot write"));
        assert!(output.stdout.is_empty());
        assert_eq!(fs::read_to_string(&place.out).unwrap(), "the profile before");
        assert_eq!(place.names().iter().map(String::as_str).collect::<Vec<_>>(), left);
    }
    // What was measured is not lost.
    let output = place.alone("0").arg("--resume").output().unwrap();
    succeeded(&output);
    assert!(stderr(&output).contains("going on after"), "{}", stderr(&output));
    Profile::load(&place.out).unwrap();
}

fn t04_a_folder_that_is_read_only_is_refused_at_once() {
    /// The number that no account has rights by.
    const NOBODY: u32 = 65_534;
    let _machine = shared();
    let place = Place::new();
    fs::write(&place.out, "the profile before").unwrap();
    let folder = place.out.parent().unwrap();
    let allow = |mode| fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    // Nothing is forbidden to root, which so runs a copy as somebody else.
    let is_root = rustix::process::getuid().is_root();
    let copy = |file: &str, name| {
        let copy = place.folder.path().join(name);
        fs::copy(file, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        copy
    };
    let (program, model) = (copy(TUNE, "bitnet-tune"), copy(MODEL, "model.gguf"));
    if is_root {
        fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in [folder, &place.out] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    allow(0o555);
    let mut command = Command::new(program);
    command.arg("--model").arg(model).arg("-o").arg(&place.out);
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let start = Instant::now();
    let output = command.output().unwrap();
    let elapsed = start.elapsed();
    allow(0o755);
    failed(&output, 6, "host.toml");
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    // A second, and room for a busy machine.
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    assert_eq!(fs::read_to_string(&place.out).unwrap(), "the profile before");
    assert_eq!(place.names().len(), 1);
}

fn t05_of_two_runs_for_one_output_the_second_is_refused() {
    let _machine = shared();
    let place = Place::new();
    let first = place.alone("3s").spawn().unwrap();
    // It is written to under the lock only.
    wait_until("no journal", || fs::metadata(place.journal()).is_ok_and(|meta| meta.len() > 0));
    // However slow the machine is, the first run is not over before the second has looked.
    let paused = Paused::new(first.id());
    let mut other = Place::new();
    other.out = place.out.with_file_name("other.toml");
    let third = other.alone("1s").spawn().unwrap();
    let mut second = place.alone("3s").spawn().unwrap();
    // It would not end if it waited for the first.
    wait_until("the second waits", || second.try_wait().unwrap().is_some());
    let second = second.wait_with_output().unwrap();
    drop(paused);
    failed(&second, 1, "host.toml.journal: another bitnet-tune is writing it");
    assert_eq!(stderr(&second).lines().count(), 1, "{}", stderr(&second));
    for child in [first, third] {
        succeeded(&child.wait_with_output().unwrap());
    }
    Profile::load(&place.out).unwrap();
    Profile::load(&other.out).unwrap();
    let names: Vec<String> = place.names().into_iter().collect();
    assert_eq!(names, ["host.toml", "other.toml"]);
}

/// Faults and what they do: the body of a kernel, in which `RUN` is the sound one.
const FAULTS: [(Why, &str, &str); 4] = [
    (Why::Wrong, "instead of", "unsafe { RUN(call); *call.out += 1; }"),
    (
        Why::Crashed,
        "signal 4 (illegal instruction)",
        "#[cfg(target_arch = \"x86_64\")] unsafe { core::arch::asm!(\"ud2\") }
         #[cfg(target_arch = \"aarch64\")] unsafe { core::arch::asm!(\"udf #0\") }",
    ),
    (
        Why::Crashed,
        "signal 11 (segmentation fault)",
        "unsafe { core::ptr::write_volatile(8 as *mut u8, 1) }",
    ),
    (Why::Hung, "no answer within 4 s", "loop { core::hint::spin_loop() }"),
];

/// A compiler that gives some kernels faults.
#[derive(Debug)]
struct Saboteur {
    toolchain: Toolchain,
    culprits: Vec<KernelId>,
}

impl Compiler for Saboteur {
    fn compile(&self, ids: &[KernelId], _: Duration) -> bitnet_tuner::Result<Vec<u8>> {
        let mut source = bitnet_codegen::emit_cdylib(ids)?;
        for (number, (id, (.., body))) in self.culprits.iter().zip(FAULTS).enumerate() {
            if !ids.contains(id) {
                continue;
            }
            let run = format!("run: {id}::run");
            assert_eq!(source.matches(&run).count(), 1, "{id}");
            source = source.replace(&run, &format!("run: fault_{number}"));
            let body = body.replace("RUN", &format!("{id}::run"));
            source.push_str(&format!(
                "unsafe extern \"C\" fn fault_{number}(call: &abi::Call) {{ {body} }}\n"
            ));
        }
        // However busy the machine is.
        self.toolchain.compile_source(&source, Duration::from_secs(600))
    }

    fn expected(&self, _: usize) -> Duration {
        Duration::ZERO
    }
}

fn model() -> ModelInfo {
    ModelInfo::from_gguf(&Gguf::open(MODEL).unwrap()).unwrap()
}

fn options(compiler: Result<Arc<dyn Compiler>, String>, cache: &Path) -> Options {
    Options {
        ceiling: Isa::best(),
        objective: Objective::Balanced,
        effort: Effort::Measure,
        budget: Duration::from_secs(2),
        threads: 1,
        threads_fixed: true,
        worker: WorkerProgram::new(TUNE),
        journal: None,
        resume: false,
        toolchain: compiler,
        cache: Ok(Cache::at(cache)),
        stop: Arc::new(AtomicBool::new(false)),
    }
}

/// What a run with one kernel of each fault found, and the lines it said.
struct Sabotaged {
    culprits: Vec<KernelId>,
    measurements: Measurements,
    profile: Profile,
    lines: Vec<String>,
}

static SABOTAGED: LazyLock<Tested<Sabotaged>> = LazyLock::new(|| {
    Need::vectors()?;
    let toolchain = Need::Rustc.met(Toolchain::find(Workplace::default()))?;
    let model = model();
    let shapes = model.jobs.iter().map(|job| job.parts[0]);
    let isas = || Isa::ALL.iter().copied().filter(|isa| *isa != Isa::Scalar && isa.is_supported());
    let made: Vec<KernelId> = shapes
        .flat_map(|shape| isas().flat_map(move |isa| bitnet_codegen::candidates(isa, Some(shape))))
        .filter(|id| matches!(id.op, Op::Ternary(_)))
        .collect();
    let plan = plan(&model, &made, Isa::best(), Effort::Measure);
    let planned = plan.iter().flat_map(|job| &job.layouts).flat_map(LayoutPlan::all);
    let planned: BTreeSet<KernelId> = planned.copied().collect();
    // Neighbours in the alphabet, so that the faults meet.
    let culprits: Vec<KernelId> = planned.into_iter().take(FAULTS.len()).collect();
    assert_eq!(culprits.len(), FAULTS.len());
    let cache = tempfile::tempdir().unwrap();
    let saboteur = Saboteur { toolchain, culprits: culprits.clone() };
    let mut options = options(Ok(Arc::new(saboteur)), &cache.path().join("kernels"));
    options.effort = Effort::Patient;
    let mut lines = Vec::new();
    let tuned = tune(&model, &options, &mut |notice| {
        if let Notice::Line(line) = notice {
            lines.push(line);
        }
    })
    .unwrap();
    let (measurements, profile) = (tuned.measurements, tuned.profile);
    Ok(Sabotaged { culprits, measurements, profile, lines })
});

/// That the kernel with one of the faults was found out, and cost itself alone.
fn is_contained(fault: usize) -> Tested {
    let _machine = shared();
    let Sabotaged { culprits, measurements, profile, lines } =
        SABOTAGED.as_ref().map_err(Lacking::clone)?;
    let (why, found, _) = FAULTS[fault];
    let culprit = culprits[fault];
    let excluded = &measurements.excluded;
    assert_eq!(excluded.len(), FAULTS.len(), "{excluded:?}");
    let own: Vec<_> = excluded.iter().filter(|excluded| excluded.kernel == culprit).collect();
    let [own] = &own[..] else { panic!("{excluded:?}") };
    assert!(own.why == why && own.found.contains(found), "{own:?} should be {why}: {found}");
    let line = format!("left out, please report: {culprit} {why}: {}", own.found);
    assert_eq!(lines.iter().filter(|said| **said == line).count(), 1, "{line}: {lines:?}");
    // The rest was measured, the made ones among it.
    let timings = || {
        let layouts = measurements.jobs.iter().flat_map(|job| &job.layouts);
        layouts.flat_map(|layout| layout.decode.iter().chain(&layout.prefill))
    };
    assert!(timings().all(|timing| timing.kernel != culprit));
    assert_eq!(profile.ops.len(), 6);
    let file = tempfile::NamedTempFile::new().unwrap();
    profile.save(file.path()).unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    assert!(!text.contains(&culprit.to_string()), "{culprit}");
    assert!(profile.check_isa(|isa| isa.is_supported()).is_ok());
    Ok(())
}

fn t06_a_kernel_with_wrong_results_is_left_out() -> Tested {
    is_contained(0)
}

fn t07_an_illegal_instruction_costs_its_kernel_alone() -> Tested {
    is_contained(1)
}

fn t07_a_segmentation_fault_costs_its_kernel_alone() -> Tested {
    is_contained(2)
}

fn t08_a_kernel_that_hangs_costs_itself_alone() -> Tested {
    is_contained(3)
}

/// What skips what meets a zero is measured, kept in the journal and not measured again.
fn what_skips_is_part_of_a_run_that_is_gone_on_with() {
    let _machine = shared();
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    // Of the demo model's matrices none is large enough.
    let (up, down) = (Shape::new(2048, 1536), Shape::new(1536, 2048));
    for job in &mut model.jobs {
        match job.role {
            Role::GateUp => job.parts = vec![up; 2],
            Role::Down => job.parts = vec![down],
            _ => {}
        }
    }
    model.jobs.retain(|job| matches!(job.role, Role::GateUp | Role::Down));
    let run = |resume: bool, seconds: u64| {
        let options = Options {
            budget: Duration::from_secs(seconds),
            journal: Some(folder.path().join("journal")),
            resume,
            ..options(Err("no compiler".into()), folder.path())
        };
        let mut skipped = 0;
        let tuned = tune(&model, &options, &mut |notice| {
            let own = "what meets a zero";
            skipped += usize::from(matches!(notice, Notice::Progress(_, what) if what == own));
        });
        (tuned.unwrap(), skipped)
    };
    // On a busy machine other things may take all of a short time.
    let mut runs = [4, 16, 64].into_iter().map(|seconds| run(false, seconds));
    let first = runs.find(|(_, skipped)| *skipped == 1);
    let (first, _) = first.expect("what skips is never timed");
    for job in &first.measurements.jobs {
        let wanted = matches!(job.role, Role::GateUp | Role::Down);
        assert_eq!(job.sparse.is_some(), wanted, "{}", job.role);
        let Some(sparse) = &job.sparse else { continue };
        assert!(sparse.timings.iter().any(|own| own.timing.kernel == sparse.default));
    }
    let file = folder.path().join("host.toml");
    first.profile.save(&file).unwrap();
    let saved = Profile::load(&file).unwrap();
    if !first.kept_default {
        for (role, mode) in [(Role::GateUp, Mode::SkipRows), (Role::Down, Mode::Axpy)] {
            let choice = saved.ops.iter().find(|op| op.role == role).unwrap();
            assert!(choice.sparse.is_some() && choice.mode == mode, "{choice:?}");
        }
    }
    let sparse = |all: &Measurements| all.jobs.iter().map(|job| job.sparse.clone()).collect();
    let known: Vec<Option<SparseMeasurements>> = sparse(&first.measurements);
    drop(first);
    let (second, skipped) = run(true, 4);
    let again: Vec<_> = sparse(&second.measurements);
    // The first run may have left something to be timed, by which another dense kernel wins: only beside
    // that skipping is timed again.
    let dense = |own: &Option<SparseMeasurements>| own.as_ref().map(|own| own.dense);
    let (kept, changed): (Vec<_>, Vec<_>) =
        known.iter().zip(&again).partition(|(known, again)| dense(known) == dense(again));
    assert_eq!(skipped, usize::from(!changed.is_empty()));
    for (known, again) in kept {
        assert_eq!(known, again);
    }
}

fn t10_a_worker_that_is_paused_or_loses_cpus_does_not_hang() {
    let _machine = shared();
    let place = Place::new();
    let child = place.tune("4s").args(["--threads", "2"]).spawn().unwrap();
    let worker = worker_after(&child, &place, 1);
    // Longer than any kernel may take.
    signal(worker, Signal::STOP);
    std::thread::sleep(Duration::from_secs(5));
    signal(worker, Signal::CONT);
    // All its threads on one CPU.
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    for thread in fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten() {
        let name = thread.unwrap().file_name().into_string().unwrap();
        let pid = Pid::from_raw(name.parse().unwrap());
        // The worker may be at its end.
        let _ = rustix::thread::sched_setaffinity(pid, &one);
    }
    let output = child.wait_with_output().unwrap();
    succeeded(&output);
    let errors = stderr(&output);
    assert!(!errors.contains("hung") && !errors.contains("left out"), "{errors}");
    Profile::load(&place.out).unwrap();
}

fn t11_too_little_memory_is_one_line() {
    let _machine = shared();
    let place = Place::new();
    let limited = |megabytes: u64, command: Command| {
        let limit = format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes << 10);
        let mut limited = Command::new("sh");
        limited.args(["-c", &limit]).arg(command.get_program()).args(command.get_args());
        limited.output().unwrap()
    };
    let mut refused = 0;
    for megabytes in (4..).step_by(2).take_while(|&megabytes| megabytes < 1000) {
        let mut version = Command::new(TUNE);
        version.arg("--version");
        if !limited(megabytes, version).status.success() {
            // Not even its code fits.
            continue;
        }
        let output = limited(megabytes, place.alone("0"));
        let errors = stderr(&output);
        let known = ["error: ", "warning: ", "wrote "];
        for line in errors.lines() {
            assert!(known.iter().any(|known| line.contains(known)), "{megabytes} MB: {errors}");
        }
        match output.status.code() {
            Some(0) => break,
            // Threads have stacks.
            Some(1) if errors.contains("ask for fewer threads") => failed(&output, 1, "thread"),
            Some(code @ (1 | 6)) => failed(&output, code, "memory"),
            _ => panic!("{megabytes} MB: {:?}: {errors}", output.status),
        }
        refused += 1;
    }
    assert!(refused > 0);
    Profile::load(&place.out).unwrap();
}

/// What the system does when memory runs out.
fn t11_a_killed_worker_is_no_kernel_s_fault() {
    let _machine = shared();
    let place = Place::new();
    let child = place.alone("20s").spawn().unwrap();
    signal(worker_after(&child, &place, 1), Signal::KILL);
    let output = child.wait_with_output().unwrap();
    failed(&output, 1, "killed, as the system does when memory runs out");
    assert!(!stderr(&output).contains("please report"), "{}", stderr(&output));
    assert!(!place.out.exists() && units(&place.journal()) > 0);
}

fn t13_the_budget_is_kept() {
    // Alone.
    let _machine = MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    for budget in [6.0, 12.0] {
        let place = Place::new();
        let mut command = place.tune(&format!("{budget}s"));
        let others = Others::start();
        let start = Instant::now();
        let output = command.output().unwrap();
        let elapsed = start.elapsed().as_secs_f64();
        succeeded(&output);
        let others = others.cpus();
        if elapsed <= 1.1 * budget {
            continue;
        }
        if others > 0.2 {
            eprintln!(
                "skipped: {elapsed:.1} s of {budget} s, but others kept {others:.1} CPUs busy"
            );
            continue;
        }
        panic!("{elapsed:.1} s for a budget of {budget} s; others kept {others:.2} CPUs busy");
    }
}

/// How many CPUs others than this process and its children keep busy.
struct Others {
    start: Instant,
    all: f64,
    own: f64,
}

impl Others {
    fn start() -> Self {
        Self { start: Instant::now(), all: Self::all(), own: Self::own() }
    }

    fn cpus(&self) -> f64 {
        let busy = (Self::all() - self.all) - (Self::own() - self.own);
        busy.max(0.0) / self.start.elapsed().as_secs_f64()
    }

    /// Seconds that all CPUs were busy or taken by the host.
    fn all() -> f64 {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let fields: Vec<f64> =
            stat.lines().next().unwrap().split_whitespace().flat_map(str::parse).collect();
        // user nice system idle iowait irq softirq steal
        let busy: f64 =
            [0, 1, 2, 5, 6, 7].iter().map(|&i| fields.get(i).copied().unwrap_or(0.0)).sum();
        busy / 100.0
    }

    /// Seconds of this process and the children it waited for.
    fn own() -> f64 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11..15].iter().map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    }
}

fn t14_a_truncated_model_is_refused_before_measuring() {
    let _machine = shared();
    let place = Place::new();
    let whole = fs::read(MODEL).unwrap();
    let len = whole.len();
    let cut_model = place.folder.path().join("cut.gguf");
    for cut in [0, 1, 23, 24, 100, 5000, len / 4, len / 2, len - len / 8, len - 1] {
        fs::write(&cut_model, &whole[..cut]).unwrap();
        let start = Instant::now();
        let mut command = Command::new(TUNE);
        command.arg("--model").arg(&cut_model).arg("-o").arg(&place.out);
        let output = command.output().unwrap();
        failed(&output, 3, "cut.gguf");
        assert_eq!(stderr(&output).lines().count(), 1, "{cut}: {}", stderr(&output));
        assert!(start.elapsed() < Duration::from_secs(5), "{cut}: {:?}", start.elapsed());
        assert!(place.names().is_empty(), "{cut}: {:?}", place.names());
    }
}

/// A comparison in which the profile takes so many times as long.
fn comparison(decode: f64, prefill: f64, half_width: f64) -> Comparison {
    let speed = |ratio| Speed { before: 100.0, after: 100.0 / ratio, ratio, half_width };
    Comparison { decode: speed(decode), prefill: speed(prefill), loads: 5, limit_gb_per_s: 50.0 }
}

fn t15_a_profile_that_loses_is_told_from_noise() {
    use Objective::{Balanced, Decode, Prefill};
    for (decode, prefill, half_width, objective, is_slower) in [
        (1.10, 0.50, 0.01, Decode, true),
        (1.10, 0.50, 0.01, Prefill, false),
        (0.50, 1.10, 0.01, Prefill, true),
        // One token and four of the prompt weigh as one and four.
        (1.10, 0.99, 0.01, Balanced, true),
        (1.10, 0.96, 0.01, Balanced, false),
        (1.10, 1.00, 0.20, Balanced, false),
        (1.00, 1.00, 0.005, Balanced, false),
        (0.90, 0.90, 0.005, Balanced, false),
    ] {
        let comparison = comparison(decode, prefill, half_width);
        assert_eq!(comparison.is_slower(objective), is_slower, "{decode} {prefill} {objective}");
    }
}

/// A worker that finds the profile half as fast, whatever it is.
fn t15_what_is_slower_on_the_model_does_not_stay() {
    let _machine = shared();
    let folder = tempfile::tempdir().unwrap();
    let script = "\"$0\" worker | sed -u '/^{\"race\"/s/\"ratio\":[0-9.]*/\"ratio\":2.0/g'";
    let mut options = options(Err("not for this".into()), folder.path());
    options.worker = WorkerProgram {
        path: "/bin/sh".into(),
        arguments: ["-c", script, TUNE].map(Into::into).into(),
    };
    // On a busy machine no time may be left for the comparison.
    let compared = [4, 16, 64].into_iter().find_map(|seconds| {
        options.budget = Duration::from_secs(seconds);
        Some(tune(&model(), &options, &mut |_| {}).unwrap())
            .filter(|tuned| tuned.comparison.is_ok())
    });
    let tuned = compared.unwrap();
    let comparison = tuned.comparison.as_ref().unwrap();
    assert_eq!((comparison.decode.ratio, comparison.prefill.ratio), (2.0, 2.0));
    assert!(tuned.kept_default);
    assert!(tuned.to_string().contains("the untuned defaults: the choices were slower"), "{tuned}");
    let defaults = defaults(&tuned.measurements);
    assert_eq!(defaults.len(), tuned.profile.ops.len());
    for (job, op) in tuned.measurements.jobs.iter().zip(&tuned.profile.ops) {
        assert_eq!(op.decode.kernel, job.default_decode);
        if job.role != Role::Attention {
            assert_eq!(op.prefill.as_ref().map(|pick| pick.kernel), job.default_prefill);
        }
    }
    assert_eq!(tuned.profile.run.threads, 1);
}

/// The tests of this file.
pub fn tests() -> Suite {
    let mut suite = suite![
        t01_a_killed_run_leaves_the_old_profile_or_the_new,
        t02_a_stopped_run_can_be_gone_on_with,
        t02_a_run_that_is_stopped_while_it_compiles_leaves_nothing,
        t02_a_check_that_is_stopped_leaves_nothing,
        t01_what_a_run_left_that_was_killed_while_it_compiled_goes,
        t03_a_full_disk_leaves_the_old_profile,
        t04_a_folder_that_is_read_only_is_refused_at_once,
        t05_of_two_runs_for_one_output_the_second_is_refused,
        t06_a_kernel_with_wrong_results_is_left_out,
        t07_an_illegal_instruction_costs_its_kernel_alone,
        t07_a_segmentation_fault_costs_its_kernel_alone,
        t08_a_kernel_that_hangs_costs_itself_alone,
        what_skips_is_part_of_a_run_that_is_gone_on_with,
        t10_a_worker_that_is_paused_or_loses_cpus_does_not_hang,
        t11_too_little_memory_is_one_line,
        t11_a_killed_worker_is_no_kernel_s_fault,
        t13_the_budget_is_kept,
        t14_a_truncated_model_is_refused_before_measuring,
        t15_a_profile_that_loses_is_told_from_noise,
        t15_what_is_slower_on_the_model_does_not_stay,
    ];
    suite.add_ignored(
        "slow: 200 runs of a second or two, five minutes",
        "t01_a_run_killed_200_times_leaves_the_old_profile_or_the_new",
        t01_a_run_killed_200_times_leaves_the_old_profile_or_the_new,
    );
    suite
}
