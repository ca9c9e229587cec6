//! What happens to a run while it runs: its file is cut short or replaced, it is sent signals, the
//! system has no place to write. The ids are those of the project's list of hostile inputs.
#![cfg(target_os = "linux")]

#[path = "../../tests/editor/mod.rs"]
mod editor;
mod program;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bitnet_runtime::file::gguf::Gguf;
use editor::Parts;
use program::{answer, both, command, demo_model};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};

/// A model that is large enough for its first token to come before its weights are packed.
struct Model {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let demo = demo_model();
        answer(&["dummy", "--shape", "125M", "--vocab", &demo, "-o", path.to_str().unwrap()]);
        Self { folder, path }
    }

    fn args(&self) -> [&str; 9] {
        let path = self.path.to_str().unwrap();
        ["-m", path, "-p", "ROMEO:", "--temp", "0", "-n", "6", "--ignore-eos"]
    }
}

/// Returns true if a signal is in a mask of a process, both named as in /proc.
fn has_signal(process: &str, mask: &str, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
    u64::from_str_radix(mask.trim_start_matches(':').trim(), 16).unwrap() >> (signal.as_raw() - 1)
        & 1
        == 1
}

/// A run that has its first token and cannot write it.
struct Held {
    child: Child,
    out: std::io::PipeReader,
    /// What the pipe held before.
    filled: usize,
}

impl Held {
    fn start(mut command: Command) -> Self {
        let (out, mut writer) = std::io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        let mut filled = 0;
        while let Ok(n) = writer.write(&[b'.'; 512]) {
            filled += n;
        }
        rustix::fs::fcntl_setfl(&writer, flags).unwrap();
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // The parent's copy of the writing end goes, so that the pipe ends with the run.
        drop(command);
        let held = Self { child, out, filled };
        held.wait_until("it does not write", |process| {
            let call = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap_or_default();
            // The numbers of `write` on x86-64 and on 64-bit ARM, and stdout.
            call.starts_with("1 0x1 ") || call.starts_with("64 0x1 ")
        });
        held
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(u32) -> bool) {
        let start = Instant::now();
        while !is_so(self.child.id()) {
            assert!(start.elapsed() < Duration::from_secs(120), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Lets it go on to its end.
    fn finish(mut self) -> Output {
        let mut stdout = Vec::new();
        self.out.read_to_end(&mut stdout).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Output { stdout: stdout.split_off(self.filled), ..output }
    }
}

/// Whether a process is in a state, as /proc writes it.
fn is_in_state(process: u32, state: char) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with(state)
}

/// Returns true while a signal that was sent to a process has not arrived.
fn is_pending(process: u32, signal: Signal) -> bool {
    has_signal(&process.to_string(), "ShdPnd", signal)
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn wrote(output: &Output, text: &str) {
    assert!(output.status.success(), "{:?}: {}", output.status, errors(output));
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), text);
}

#[test]
fn g105_a_file_that_is_cut_short_while_it_is_mapped_is_one_line() {
    let model = Model::new();
    let text = answer(&model.args());
    let cut = || fs::File::options().write(true).open(&model.path).unwrap().set_len(4096).unwrap();
    let whole = fs::read(&model.path).unwrap();

    // In memory it cannot be pulled away.
    let held = Held::start(command(&[&model.args()[..], &["--no-mmap"]].concat()));
    cut();
    wrote(&held.finish(), &text);

    fs::write(&model.path, whole).unwrap();
    let held = Held::start(command(&model.args()));
    cut();
    let output = held.finish();
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(6), "{:?}: {errors}", output.status);
    let last = errors.lines().last().unwrap();
    for word in ["error: ", "m.gguf: cannot read", "cut short while it was mapped", "--no-mmap"] {
        assert!(last.contains(word), "{last} lacks {word}");
    }
    assert_eq!(errors.matches("error").count(), 1, "{errors}");
}

/// Packed weights are mapped, too.
#[test]
fn g105_packed_weights_that_are_cut_short_while_they_are_mapped_are_one_line() {
    let model = Model::new();
    let packed = model.folder.path().join("a.packed");
    let path = packed.to_str().unwrap();
    let advice = "bitnet-run pack -m";
    assert!(both(&model.args()).1.contains(advice));
    both(&["pack", "-m", model.path.to_str().unwrap(), "-o", path]);
    let args = [&model.args()[..], &["--packed", path]].concat();
    assert!(!both(&args).1.contains(advice));
    let held = Held::start(command(&args));
    fs::File::options().write(true).open(&packed).unwrap().set_len(4096).unwrap();
    let output = held.finish();
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(6), "{:?}: {errors}", output.status);
    let last = errors.lines().last().unwrap();
    for word in ["m.gguf: cannot read", "a.packed was cut short while it was mapped"] {
        assert!(last.contains(word), "{last} lacks {word}");
    }
}

/// Every part is mapped, so every part may be.
#[test]
fn g105_a_part_that_is_cut_short_while_it_is_mapped_is_one_line() {
    let mut model = Model::new();
    let whole = Parts::of(&Gguf::open(&model.path).unwrap());
    let paths = whole.split(2).into_iter().map(|(name, part)| {
        let path = model.folder.path().join(name);
        fs::write(&path, part.bytes()).unwrap();
        path
    });
    let paths: Vec<PathBuf> = paths.collect();
    model.path = paths[0].clone();
    let held = Held::start(command(&model.args()));
    fs::File::options().write(true).open(&paths[1]).unwrap().set_len(4096).unwrap();
    let output = held.finish();
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(6), "{:?}: {errors}", output.status);
    let last = errors.lines().last().unwrap();
    for word in ["m-00001-of-00002.gguf", "or another part of the model, was cut short"] {
        assert!(last.contains(word), "{last} lacks {word}");
    }
}

#[test]
fn g106_a_file_that_is_replaced_while_it_is_used_stays_the_one_that_was_opened() {
    let model = Model::new();
    let text = answer(&model.args());
    let held = Held::start(command(&model.args()));
    let other = model.folder.path().join("other.gguf");
    fs::write(&other, "something else").unwrap();
    fs::rename(&other, &model.path).unwrap();
    wrote(&held.finish(), &text);

    // One that is written over is another model: if what is there now is none, that is told.
    let model = Model::new();
    let held = Held::start(command(&model.args()));
    let len = fs::metadata(&model.path).unwrap().len();
    let mut file = fs::File::options().write(true).open(&model.path).unwrap();
    file.write_all(&vec![0xff; usize::try_from(len).unwrap()]).unwrap();
    let output = held.finish();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("the file may be damaged"), "{}", errors(&output));
}

#[test]
fn f09_a_run_that_is_paused_goes_on_and_one_that_is_ended_ends() {
    let model = demo_model();
    let args = ["-m", &model, "-p", "ROMEO:", "--temp", "0", "-n", "40"];
    let text = answer(&args);
    let held = Held::start(command(&args));
    // The terminal grows; Ctrl+Z and fg.
    held.signal(Signal::WINCH);
    held.signal(Signal::STOP);
    held.wait_until("it does not stop", |process| is_in_state(process, 'T'));
    held.signal(Signal::CONT);
    wrote(&held.finish(), &text);

    for (signal, times) in [(Signal::INT, 2), (Signal::TERM, 1), (Signal::HUP, 1)] {
        let held = Held::start(command(&args));
        // The first Ctrl+C is a request to stop, and is seen before the second one is sent.
        for _ in 1..times {
            held.signal(signal);
            held.wait_until("it does not take it", |process| !is_pending(process, signal));
        }
        held.signal(signal);
        // Before there is room in the pipe, or it might write a piece first.
        held.wait_until("it does not end", |process| is_in_state(process, 'Z'));
        let output = held.finish();
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{}", errors(&output));
        assert!(output.stdout.is_empty());
        assert!(!errors(&output).contains("error"), "{}", errors(&output));
    }
}

/// H9: Ctrl+C ends a text where it is: what there is of it stays, and is summed up.
#[test]
fn h9_an_interrupted_run_says_what_it_has() {
    let model = demo_model();
    let args = ["-m", &model, "-p", "ROMEO:", "--temp", "0", "-n", "400", "--ignore-eos"];
    let text = answer(&args);
    let held = Held::start(command(&args));
    held.signal(Signal::INT);
    held.wait_until("it does not take it", |process| !is_pending(process, Signal::INT));
    let output = held.finish();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    let part = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(!part.is_empty() && part.len() < text.len() && text.starts_with(&part), "{part}");
    assert!(errors(&output).contains("tokens/s (interrupted)\n"), "{}", errors(&output));

    // With --json the object so far; the model is loaded, and its text has no end soon.
    let endless = ["-n", "-1", "--ignore-eos", "--json", "--isa", "scalar", "-t", "1"];
    let output = interrupted(command(&[&args[..6], &endless].concat()), "loaded: ");
    assert_eq!(output.status.code(), Some(130));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "interrupted");
    let ids = report["ids"].as_array().unwrap();
    assert_eq!(report["timings"]["predicted_n"], ids.len());
    assert_eq!(report["text"].as_str().unwrap().is_empty(), ids.is_empty(), "{report}");

    // A long prompt is read in batches, and may be left in the middle.
    let long = "king ".repeat(900);
    let args = ["-m", &model, "-p", &long, "--json", "--isa", "scalar", "-t", "1", "-b", "1"];
    let output = interrupted(command(&args), "loaded: ");
    assert_eq!(output.status.code(), Some(130));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "interrupted");
    let read = report["timings"]["prompt_n"].as_u64().unwrap();
    assert!(read < report["prompt_ids"].as_array().unwrap().len() as u64, "{read}");
}

/// H9: of a benchmark the results so far.
#[test]
fn h9_an_interrupted_benchmark_prints_what_it_has() {
    let model = demo_model();
    let slow = ["--isa", "scalar", "-t", "1", "-p", "1", "-n", "900", "-r", "40"];
    let args = [&["bench", "-m", &model, "-o", "json", "-oe", "jsonl"], &slow[..]].concat();
    // stderr tells when the first test is done.
    let output = interrupted(command(&args), "\n{\"");
    assert_eq!(output.status.code(), Some(130));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(matches!(&rows[..], [row] if row["n_prompt"] == 1), "{rows:?}");
}

/// The output of a run that Ctrl+C meets as soon as its stderr holds some words.
fn interrupted(mut command: Command, words: &str) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (mut told, mut piece) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&told).contains(words) {
        let n = stderr.read(&mut piece).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&told));
        told.extend_from_slice(&piece[..n]);
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    stderr.read_to_end(&mut told).unwrap();
    child.wait_with_output().unwrap()
}

/// F10: a load that the system holds up, as a slow network does, takes its time and nothing else.
#[test]
fn f10_a_run_that_is_held_up_while_it_loads_writes_the_same() {
    let model = Model::new();
    let text = answer(&model.args());
    for more in [&[][..], &["--no-mmap"]] {
        let mut command = command(&[&model.args()[..], more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        // Wherever that meets it.
        while child.try_wait().unwrap().is_none() {
            for signal in [Signal::STOP, Signal::CONT] {
                // It has not been waited for, so its number is still its own.
                rustix::process::kill_process(pid, signal).unwrap();
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        wrote(&child.wait_with_output().unwrap(), &text);
    }
}

/// F14: a container with the model in a folder that is read-only, no home, no folder for temporary
/// files, and no place where a byte could be written.
#[test]
fn f14_a_run_writes_no_file() {
    /// The number that no account has rights by.
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, name: &str, mode| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        to
    };
    let model = copy(Path::new(&demo_model()), "m.gguf", 0o444);
    let program = copy(Path::new(env!("CARGO_BIN_EXE_bitnet-run")), "bitnet-run", 0o555);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let args = ["-p", "ROMEO:", "--temp", "0", "-n", "12"];
    let text = answer(&[&["-m", &demo_model()], &args[..]].concat());

    let mut run = Command::new("sh");
    // Of no file a byte may be written: that would end it by SIGXFSZ.
    run.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(program).arg("-m").arg(model);
    run.args(args).current_dir(folder.path()).env_clear().env("TMPDIR", "/nonexistent");
    if rustix::process::getuid().is_root() {
        run.uid(NOBODY).gid(NOBODY);
    }
    let output = run.output().unwrap();
    wrote(&output, &text);
    assert!(!errors(&output).contains("warning"), "{}", errors(&output));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}
