//! Runs `bitnet-run` as a user does, without the user's own profiles.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-run"));
    let nothing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-configuration");
    command.args(args).env("XDG_CONFIG_HOME", nothing);
    command
}

pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Output {
    command(args).output().unwrap()
}

/// stdout and stderr of a run that succeeds.
pub fn both<S: AsRef<OsStr> + std::fmt::Debug>(args: &[S]) -> (String, String) {
    let output = run(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

/// stdout of a run that succeeds.
pub fn answer<S: AsRef<OsStr> + std::fmt::Debug>(args: &[S]) -> String {
    both(args).0
}

/// What stderr says of a run that fails with `code` and says nothing on stdout.
pub fn refusal<S: AsRef<OsStr> + std::fmt::Debug>(args: &[S], code: i32) -> String {
    let output = run(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(errors.contains("error: "), "{args:?}: {errors}");
    errors
}

pub fn package(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().unwrap().to_owned()
}

pub fn demo_model() -> String {
    package("../models/bard-11m.i2_s.gguf")
}
