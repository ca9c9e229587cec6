//! Runs `bitnet-run` as a user does, without the user's own profiles, packed weights and variables.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bitnet_profiles::{
    Choice, Effort, Format, Host, Isa, Objective, Pick, Profile, Provenance, Run, Timed, Tool,
    registry,
};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::file::gguf::Gguf;
use serde_json::Value;

/// A run that signals reach as in a terminal, also where these tests run in the background of a shell.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    #[cfg(unix)]
    heed_signals();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-run"));
    let nothing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-configuration");
    command.args(args).env("XDG_CONFIG_HOME", &nothing).env("XDG_CACHE_HOME", nothing);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"LLAMA_ARG_") {
            command.env_remove(name);
        }
    }
    command
}

/// A shell makes what it runs in the background ignore some signals, which all below it inherit. That a signal
/// is handled is not inherited, so that it ends a program that is started from now on.
#[cfg(unix)]
fn heed_signals() {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Once};

    use signal_hook::consts::{SIGHUP, SIGINT};
    use signal_hook::flag::register_conditional_default;

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGHUP, SIGINT] {
            register_conditional_default(signal, Arc::new(AtomicBool::new(true))).unwrap();
        }
    });
}

pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Output {
    command(args).output().unwrap()
}

/// A run that gets a text through a pipe.
pub fn piped(mut command: Command, text: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who does not read a pipe may be gone before all is in it.
    let _ = child.stdin.take().unwrap().write_all(text);
    child.wait_with_output().unwrap()
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
    package("../../models/bard-11m.i2_s.gguf")
}

/// A profile for the demo model: the lookup kernels everywhere, so that it is seen to be used.
pub fn profile(path: Option<PathBuf>) -> Profile {
    let gguf = Gguf::open(demo_model()).unwrap();
    let config = Config::from_gguf(&gguf).unwrap();
    let host = bitnet_runtime::cpu::host::Host::detect();
    let generic = registry::generic(Some(Format::Tl1), Isa::best());
    let timed = Timed {
        tokens: 1,
        median_us: 1.0,
        mad_us: 0.1,
        gb_per_s: 1.0,
        share_of_limit: 0.5,
        runner_up: None,
        runner_up_ratio: None,
    };
    let pick = |kernel| Pick { kernel, timed: Some(timed.clone()), built_in: kernel };
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: "0.1.0".into(),
            fingerprint: None,
            objective: Objective::Balanced,
            effort: Effort::Measure,
            date: "2026-11-20".into(),
            library_sha256: None,
            provenance: Provenance::Measured,
        },
        host: Host {
            cpu: host.cpu,
            vendor: host.vendor,
            family: host.family,
            model: host.model,
            stepping: host.stepping,
            isa: Isa::ALL.iter().copied().filter(|isa| isa.is_supported()).collect(),
            physical_cores: 1,
            threads: 1,
            l2: 0,
            l3: 0,
            read_gb_per_s: Some(1.0),
            noise: None,
        },
        model: bitnet_profiles::Model {
            name: "bard".into(),
            architecture: "bitnet-b1.58".into(),
            shapes: config.shapes_hash(),
            path,
        },
        run: Run { threads: 1, pinning: Default::default(), huge_pages: true },
        ops: config
            .jobs()
            .into_iter()
            .map(|job| Choice {
                role: job.role,
                parts: job.parts,
                count: job.count,
                layout: generic.decode.op.packing(),
                decode: pick(generic.decode),
                prefill: Some(pick(generic.prefill)),
                sparse: None,
            })
            .collect(),
    }
}

/// The layout of a role that a profile chooses, in the JSON report of a run.
pub fn layout_of(report: &Value) -> &str {
    report["kernels"]["down"]["layout"].as_str().unwrap()
}
