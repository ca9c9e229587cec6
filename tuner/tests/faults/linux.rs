//! Faults while tuning, T01 to T16, one test each. T16 is in `choose.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, RwLock};
use std::time::{Duration, Instant};

use bitnet_profiles::{Effort, Isa, KernelId, Objective, Op, Profile, Role, Shape};
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_trials::{Lacking, Need, Suite, Tested, suite};
use bitnet_tuner::choose::defaults;
use bitnet_tuner::compile::{Compiler, Toolchain, Workplace};
use bitnet_tuner::measure::{Comparison, Measurements, SparseMeasurements, Speed, Why};
use bitnet_tuner::plan::{LayoutPlan, plan};
use bitnet_tuner::supervise::WorkerProgram;
use bitnet_tuner::{ModelInfo, Notice, Options, tune};
use rustix::fs::OFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal};

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

/// Asserts that a run ended by itself with an exit code, and gives the reason in its last line.
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
        assert!(start.elapsed() < Duration::from_secs(600), "{what}");
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

/// The profile before.
const OLD: &str = "schema = 0 # the profile before";

/// A run that is to be killed: by this process, or by the system.
impl Place {
    /// As [`Place::alone`], with temporary files of its own and nobody who reads what it says.
    fn doomed(&self, budget: &str, resume: bool) -> Command {
        let mut command = self.alone(budget);
        if resume {
            command.arg("--resume");
        }
        command.env("TMPDIR", self.folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Does a run until a file is to grow beyond `bytes`: at that write, of which only the part that
    /// fits is done, the system ends the process by a signal that it does not catch.
    fn killed_at(&self, bytes: u64, run: &Command) {
        let mut gate = Command::new("sh");
        gate.args(["-c", "read go; exec \"$0\" \"$@\""]).arg(run.get_program());
        gate.args(run.get_args());
        gate.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        gate.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = gate.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        for (resource, most) in [(Resource::Fsize, bytes), (Resource::Core, 0)] {
            let limit = Rlimit { current: Some(most), maximum: Some(most) };
            rustix::process::prlimit(Some(pid), resource, limit).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let status = child.wait().unwrap();
        let expected = Some(Signal::XFSZ.as_raw());
        assert_eq!(status.signal(), expected, "{bytes} bytes: {status:?}");
    }

    /// Asserts that the profile is the one before, that there is a journal if one was `begun`, and no file
    /// but those and the temporary ones of profiles, which are removed; gives their bytes.
    fn kept_the_old_profile(&self, begun: bool) -> Vec<u64> {
        assert_eq!(fs::read_to_string(&self.out).unwrap(), OLD);
        assert!(self.journal().exists() || !begun);
        let names = self.names().into_iter();
        let rest = names.filter(|name| name != "host.toml" && name != "host.toml.journal");
        let remove = |name: String| {
            assert!(name.starts_with("host.toml.") && name.ends_with(".tmp"), "{name}");
            let path = self.out.with_file_name(name);
            let bytes = fs::metadata(&path).unwrap().len();
            fs::remove_file(path).unwrap();
            bytes
        };
        rest.map(remove).collect()
    }

    /// Measures everything, and is killed before the profile is written: its journal is whole.
    fn measured(&self) {
        let folder = self.folder.path().join("record");
        fs::create_dir(&folder).unwrap();
        let record = folder.join("record.json");
        let run = || {
            let mut run = self.doomed("0", false);
            run.arg("--record").arg(&record);
            run
        };
        succeeded(&run().stderr(Stdio::piped()).output().unwrap());
        fs::write(&self.out, OLD).unwrap();
        // A record holds what the journal does, and takes half as much again.
        let bytes = fs::metadata(&record).unwrap().len() * 9 / 10;
        self.killed_at(bytes, &run());
        assert!(self.kept_the_old_profile(true).is_empty());
        let journal = fs::metadata(self.journal()).unwrap().len();
        assert!(journal < bytes, "it was the journal that was to grow beyond {bytes} bytes");
    }
}

/// Kills runs that measure: `kills` of them by SIGKILL when they have a worker and have finished one
/// tournament more than the run before, and one at each of the given lengths of the journal.
fn killed_while_measuring(kills: usize, lengths: impl Iterator<Item = u64>) {
    let place = Place::new();
    fs::write(&place.out, OLD).unwrap();
    for n in 0..kills {
        // No machine is so slow that it is over before it is killed.
        let mut child = place.doomed("1000s", n > 0).spawn().unwrap();
        let worker = worker_after(&child, &place, n);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
        are_gone(&[worker]);
        assert!(place.kept_the_old_profile(n > 0).is_empty());
        assert!(units(&place.journal()) >= n);
    }
    for length in lengths {
        place.killed_at(length, &place.doomed("0", false));
        assert!(place.kept_the_old_profile(true).is_empty());
        // Half a header is removed where the system lets the process go on; here it does not.
        assert_eq!(fs::metadata(place.journal()).unwrap().len(), length);
    }
    succeeded(&place.alone("0").arg("--resume").output().unwrap());
    Profile::load(&place.out).unwrap();
    assert!(!place.journal().exists());
}

/// Kills a run between the last line of its journal and the first of its profile, and others that go
/// on with it when they have written so large a share of the profile; a tenth at least, since a
/// worker's own file is to fit.
fn killed_while_writing(shares: impl Iterator<Item = f64>) {
    let place = Place::new();
    fs::write(&place.out, OLD).unwrap();
    place.measured();
    let journal = fs::read(place.journal()).unwrap();
    succeeded(&place.alone("0").arg("--resume").output().unwrap());
    let whole = fs::metadata(&place.out).unwrap().len();
    fs::write(&place.out, OLD).unwrap();
    fs::write(place.journal(), &journal).unwrap();
    for share in shares {
        let bytes = (share * whole as f64) as u64;
        place.killed_at(bytes, &place.doomed("0", true));
        // Where the file system gives it a name before it is whole, it stays.
        assert!(place.kept_the_old_profile(true).iter().all(|&left| left == bytes));
        assert_eq!(fs::read(place.journal()).unwrap(), journal, "{bytes} bytes");
    }
    succeeded(&place.alone("0").arg("--resume").output().unwrap());
    Profile::load(&place.out).unwrap();
    assert!(!place.journal().exists());
}

fn t01_a_run_killed_while_it_measures_leaves_the_old_profile() {
    let _machine = shared();
    // Before the header, in the middle of it, in that of the first tournament, of the third.
    killed_while_measuring(3, [0, 70, 1000, 4000].into_iter());
}

fn t01_a_run_killed_while_it_writes_leaves_the_old_profile() {
    let _machine = shared();
    killed_while_writing([0.1, 0.5, 0.9].into_iter());
}

fn t01_a_run_killed_at_200_points_leaves_the_old_profile() {
    let _machine = shared();
    killed_while_measuring(10, (0..100).map(|n| 50 * n));
    killed_while_writing((10..100).map(|n| f64::from(n) / 100.0));
}

/// A pipe that takes no more, and where to read what it holds.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b' '; 512]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

fn t01_a_run_killed_after_writing_leaves_the_new_profile() {
    let _machine = shared();
    let place = Place::new();
    fs::write(&place.out, OLD).unwrap();
    let (reader, writer) = full_pipe();
    // It cannot end before somebody reads what it says of the profile.
    let mut child = place.doomed("0", false).stdout(writer).spawn().unwrap();
    wait_until("no profile", || fs::read_to_string(&place.out).unwrap() != OLD);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    drop(reader);
    Profile::load(&place.out).unwrap();
    let names = place.names();
    assert!(
        names.iter().all(|name| name.ends_with(".toml") || name.ends_with(".journal")),
        "{names:?}"
    );
}

fn t02_a_stopped_run_can_be_gone_on_with() {
    let _machine = shared();
    let place = Place::new();
    fs::write(&place.out, OLD).unwrap();
    let mut before = 0;
    // Ctrl+C goes to all processes of the terminal; who manages services tells one to end.
    for (number, to_all) in [(Signal::INT, true), (Signal::TERM, false)] {
        let mut command = place.alone("1000s");
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
        assert_eq!(fs::read_to_string(&place.out).unwrap(), OLD);
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
    /// Folder in which others put temporary files.
    temporary: PathBuf,
}

impl Compiling {
    fn new() -> Self {
        let place = Place::new();
        let folder = place.folder.path();
        let (pids, temporary) = (folder.join("pids"), folder.join("tmp"));
        let rustc = endless_compiler(folder, &pids);
        fs::create_dir(&temporary).unwrap();
        fs::write(&place.out, OLD).unwrap();
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

    /// Asserts that neither a file nor a changed one is left beside the profile or among temporary ones.
    fn left_nothing(&self) {
        assert_eq!(self.place.names().iter().collect::<Vec<_>>(), ["host.toml"]);
        assert_eq!(fs::read_to_string(&self.place.out).unwrap(), OLD);
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
        // Its budget and its compiler's sleep are longer than anybody waits for a test.
        let output = child.wait_with_output().unwrap();
        failed(&output, 130, "stopped");
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

/// Leftovers of a compiler and of a killed run are gone after the next run, unless somebody needs them.
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
    fs::write(&place.out, OLD).unwrap();
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
        assert_eq!(fs::read_to_string(&place.out).unwrap(), OLD);
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
    fs::write(&place.out, OLD).unwrap();
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
    let output = command.output().unwrap();
    allow(0o755);
    failed(&output, 6, "host.toml");
    // A run that had measured would have told more.
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&place.out).unwrap(), OLD);
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

/// Seconds for a run that is to come to its end, until one does: a quiet machine takes the first.
const BUDGETS: [u64; 6] = [4, 16, 64, 256, 1024, 4096];

/// Findings of a run with one kernel of each fault, and the lines it said.
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

/// Asserts that the kernel with one of the faults was found out, and cost itself alone.
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

/// Activation sparsity is measured, kept in the journal and not measured again.
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
            let own = "activation sparsity";
            skipped += usize::from(matches!(notice, Notice::Progress(_, what) if what == own));
        });
        (tuned.unwrap(), skipped)
    };
    // On a busy machine other things may take all of a short time.
    let mut runs = BUDGETS.into_iter().map(|seconds| run(false, seconds));
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
        for role in [Role::GateUp, Role::Down] {
            let choice = saved.ops.iter().find(|op| op.role == role).unwrap();
            assert!(choice.sparse.is_some(), "{choice:?}");
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
    let child = place.tune("12s").args(["--threads", "2"]).spawn().unwrap();
    let worker = worker_after(&child, &place, 1);
    // Longer than a kernel may take by the clock; what counts is the time in which it could run.
    let paused = Paused::new(worker);
    std::thread::sleep(Duration::from_secs(5));
    drop(paused);
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

/// A system that runs out of memory.
fn t11_a_killed_worker_is_no_kernel_s_fault() {
    let _machine = shared();
    let place = Place::new();
    let child = place.alone("1000s").spawn().unwrap();
    signal(worker_after(&child, &place, 1), Signal::KILL);
    let output = child.wait_with_output().unwrap();
    failed(&output, 1, "killed, as the system does when memory runs out");
    assert!(!stderr(&output).contains("please report"), "{}", stderr(&output));
    assert!(!place.out.exists() && units(&place.journal()) > 0);
}

/// The budget is one of time; what a run does in it is counted in the time of its CPU, to which
/// neighbours add nothing and a slow machine little.
fn t13_the_budget_is_kept() {
    // Alone, since the system counts what all children of this process take.
    let _machine = MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = |budget: f64| {
        let before = seconds_of_children();
        succeeded(&Place::new().alone(&format!("{budget}s")).output().unwrap());
        seconds_of_children() - before
    };
    // What is done whatever the budget is.
    let least = seconds(0.0);
    for budget in [f64::max(6.0, 2.0 * least), f64::max(12.0, 4.0 * least)] {
        let spent = seconds(budget);
        assert!(spent <= 1.1 * budget, "{spent:.1} s of a CPU for a budget of {budget:.1} s");
    }
}

/// Seconds that the children this process waited for, and theirs, kept a CPU busy.
fn seconds_of_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[13..15].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

fn t14_a_truncated_model_is_refused_before_measuring() {
    let _machine = shared();
    let place = Place::new();
    let whole = fs::read(MODEL).unwrap();
    let len = whole.len();
    let cut_model = place.folder.path().join("cut.gguf");
    for cut in [0, 1, 23, 24, 100, 5000, len / 4, len / 2, len - len / 8, len - 1] {
        fs::write(&cut_model, &whole[..cut]).unwrap();
        let mut command = Command::new(TUNE);
        command.arg("--model").arg(&cut_model).arg("-o").arg(&place.out);
        let output = command.output().unwrap();
        failed(&output, 3, "cut.gguf");
        assert_eq!(stderr(&output).lines().count(), 1, "{cut}: {}", stderr(&output));
        // Before measuring a journal is begun, which would be kept.
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
    let compared = BUDGETS.into_iter().find_map(|seconds| {
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

/// The signal of a page that is gone, while the model is mapped: no kernel is to blame, and what was
/// measured is kept.
fn h8_a_model_that_is_cut_short_while_it_is_compared_is_told() {
    let _machine = shared();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::copy(MODEL, &path).unwrap();
    let model = ModelInfo::open(&path).unwrap();
    let mut options = options(Err("not for this".into()), folder.path());
    let is_done = AtomicBool::new(false);
    let tuned = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                for worker in children(std::process::id()) {
                    let maps = fs::read_to_string(format!("/proc/{worker}/maps"));
                    if maps.is_ok_and(|maps| maps.contains(path.to_str().unwrap())) {
                        signal(worker, Signal::BUS);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // On a busy machine no time may be left for the comparison.
        let tuned = BUDGETS.into_iter().find_map(|seconds| {
            options.budget = Duration::from_secs(seconds);
            let tuned = tune(&model, &options, &mut |_| {}).unwrap();
            let why = tuned.comparison.as_ref().map(drop).unwrap_err();
            (!why.contains("--budget") && !why.contains("no time")).then_some(tuned)
        });
        is_done.store(true, Ordering::Relaxed);
        tuned.unwrap()
    });
    let why = tuned.comparison.as_ref().map(drop).unwrap_err();
    let says = "m.gguf: cannot read: the file was cut short while it was mapped";
    assert!(why.contains(says) && why.lines().count() == 1, "{why}");
    assert!(tuned.to_string().contains(says), "{tuned}");
}

/// The tests of this file.
pub fn tests() -> Suite {
    let mut suite = suite![
        t01_a_run_killed_while_it_measures_leaves_the_old_profile,
        t01_a_run_killed_while_it_writes_leaves_the_old_profile,
        t01_a_run_killed_after_writing_leaves_the_new_profile,
        h8_a_model_that_is_cut_short_while_it_is_compared_is_told,
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
        "t01_a_run_killed_at_200_points_leaves_the_old_profile",
        t01_a_run_killed_at_200_points_leaves_the_old_profile,
    );
    suite
}
