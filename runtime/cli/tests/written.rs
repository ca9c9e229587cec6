//! Where the program's output goes: into a pipe that is full, to what `-o` names, or, if it is killed,
//! nowhere.
#![cfg(target_os = "linux")]

mod program;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use program::{answer, command, demo_model};
use rustix::fs::OFlags;
use rustix::process::Signal;

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Who reads slowly from a pipe whose writing end does not wait, as event loops make it, gets all of it.
#[test]
fn h5_a_pipe_that_does_not_wait_gets_the_whole_answer() {
    let model = demo_model();
    let cases: [&[&str]; 4] = [
        &["-m", &model, "-p", "ROMEO:", "--temp", "0", "-n", "1000", "--ignore-eos", "--json"],
        &["-m", &model, "-p", "ROMEO:", "--temp", "0", "-n", "40"],
        &["inspect", &model],
        &["--help"],
    ];
    for args in cases {
        let (mut out, mut writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        let mut filled = 0;
        while let Ok(n) = writer.write(b".") {
            filled += n;
        }
        let mut run = command(args);
        run.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let child = run.spawn().unwrap();
        drop(run);
        let mut read = Vec::new();
        let mut buffer = [0; 512];
        loop {
            let n = out.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            read.extend(&buffer[..n]);
            if read.len() < 8192 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", errors(&output));
        let expected = answer(args);
        let text = String::from_utf8(read.split_off(filled)).unwrap();
        if args.contains(&"--json") {
            let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
            assert_eq!(json(&text)["text"], json(&expected)["text"]);
        } else {
            assert_eq!(text, expected, "{args:?}");
        }
    }
}

/// A model can be as large as the disk: what a killed process wrote of it goes with the process.
#[test]
fn h9_a_dummy_that_is_killed_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut dummy = command(&["dummy", "--shape", "2b4t", "-o", path.to_str().unwrap()]);
    let mut child = dummy.stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let written = |process: u32| -> u64 {
        let io = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
        let bytes = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        bytes.unwrap().parse().unwrap()
    };
    while written(child.id()) < 4 << 20 {
        assert!(start.elapsed() < Duration::from_secs(120), "it does not write");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What `-o` names is replaced only if it is a file: a pipe gets the model, and needs no `--force`.
#[test]
fn h1_a_dummy_goes_into_a_pipe_or_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let dummy = |path: &Path, more: &[&str]| {
        let demo = demo_model();
        let args = ["dummy", "--shape", "125M", "--layers", "1", "--vocab", &demo];
        let mut run = command(&args);
        run.arg("-o").arg(path).args(more).output().unwrap()
    };
    assert!(dummy(&at("m.gguf"), &[]).status.success());
    let model = fs::read(at("m.gguf")).unwrap();

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let pipe = at("pipe");
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    let output = dummy(&at("pipe"), &[]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(reader.join().unwrap() == model);
    let output = dummy(Path::new("/dev/stdout"), &[]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(output.stdout == model);

    fs::write(at("kept"), "kept").unwrap();
    std::os::unix::fs::symlink("kept", at("link")).unwrap();
    let output = dummy(&at("link"), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
    assert_eq!(fs::read(at("kept")).unwrap(), b"kept");
    let output = dummy(&at("link"), &["--force"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert!(fs::read(at("kept")).unwrap() == model);
    let output = dummy(&at("new/"), &[]);
    assert_eq!(output.status.code(), Some(6), "{}", errors(&output));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}
