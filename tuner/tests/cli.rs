//! The program, as a user runs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use bitnet_profiles::{Isa, KernelId, Objective, Op, Pick, Profile, Provenance, Role, Shape};
use bitnet_runtime::cpu::kernels;
use bitnet_trials::{Need, Tested, suite};
use bitnet_tuner::choose::choose;
use bitnet_tuner::measure::Measurements;
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
const ROLES: [Role; 6] =
    [Role::Qkv, Role::AttnOutput, Role::GateUp, Role::Down, Role::LmHead, Role::Attention];

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bitnet-tune"))
}

fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs what must be refused: the exit code, one line on stderr that holds `says`, nothing on
/// stdout, and before anything is measured.
fn refused(args: &[&str], code: i32, says: &str) {
    let output = run(args);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(errors.contains(says), "{args:?}: {errors}");
    assert_eq!(stdout(&output), "", "{args:?}");
    assert!(!errors.contains("panicked"), "{args:?}: {errors}");
    // clap explains its usage errors on several lines.
    if !errors.contains("--help") {
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
    }
}

fn emit_prints_the_kernel_of_an_id() {
    let id = "i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n8_u2_p4096";
    let output = run(&["emit", id]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let source = stdout(&output);
    assert!(source.starts_with("// @generated from templates/src/i2_s.rs"), "{source}");
    for text in [id, "ROWS: usize = 16;", "COLS: usize = 2560;", "isa::avx512vnni as isa"] {
        assert!(source.contains(text), "{text}");
    }
    assert_eq!(source, stdout(&run(&["emit", id])));
}

fn emit_refuses_what_is_no_kernel() {
    refused(&["emit", "fn"], 2, "no kernel id");
    refused(&["emit", "i2_s_t16__avx512vnni__any__r17_c0_n1_u1_p0"], 2, "multiple of");
    refused(&["emit", "i2_s\n\x1b[2J__scalar__any__r16_c0_n1_u1_p0"], 2, "no kernel id");
    refused(&["emit", &"x".repeat(100_000)], 2, "longer than");
    refused(&["emit"], 2, "--help");
}

/// Whatever a worker reads, it does not panic.
fn a_worker_refuses_what_is_no_task() {
    let decode = "i2_s_t16__scalar__any__r16_c0_n1_u1_p0";
    let prefill = "i2_s_t16__scalar__any__r16_c0_n4_u1_p0";
    let task = |parts: &[Shape]| {
        let job = json!({"parts": parts, "count": 1, "decode": decode, "prefill": prefill});
        let run = json!({"threads": 1, "pinning": "none", "huge_pages": false});
        let work = json!({"jobs": [job], "placements": [run], "model_bytes": 4096, "seconds": 0.5});
        json!({"threads": 1, "status": "/nonexistent", "library": null, "work": {"placement": work}})
    };
    let sound = task(&[Shape::new(64, 32), Shape::new(64, 32)]);
    let with = |pointer: &str, value: Value| {
        let mut task = sound.clone();
        *task.pointer_mut(pointer).unwrap() = value;
        task
    };
    // A JSON pointer into the task.
    let work = |name: &str| ["", "work", "placement", name].join("/");
    for (task, code, says) in [
        // Sound, but for its status file.
        (sound.clone(), 6, "/nonexistent: cannot open"),
        (json!({}), 2, "missing field"),
        (json!([1]), 2, "a task of bitnet-tune"),
        (with("/threads", json!(0)), 2, "stdin: threads: found 0, expected 1 to"),
        (with("/threads", json!(1_000_000)), 2, "stdin: threads: found 1000000"),
        (with(&work("placements/0/threads"), json!(0)), 2, "stdin: threads: found 0"),
        (with(&work("seconds"), json!(-1.0)), 2, "stdin: seconds: found -1, expected 0 to 86400"),
        (with(&work("seconds"), json!(1e300)), 2, "stdin: seconds: found 1000"),
        (with(&work("model_bytes"), json!(u64::MAX)), 2, "stdin: model_bytes: found 1844"),
        (with(&work("jobs/0/decode"), json!("fn")), 2, "no kernel id"),
        (task(&[]), 2, "parts of a job: found 0"),
        (task(&[Shape::new(64, 32); 4]), 2, "parts of a job: found 4, expected 1 to 3"),
        (task(&[Shape::new(1, 0)]), 2, "columns of a matrix: found 0"),
        (task(&[Shape::new(0, 1)]), 2, "rows of a matrix: found 0"),
        (task(&[Shape::new(64, 32), Shape::new(64, 64)]), 2, "found 64, expected 32 to 32"),
    ] {
        let mut child = command()
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Open until the worker has ended: one whose stdin ends has lost its parent, and ends at once.
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{task}").unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{task}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(says), "{says}: {errors}");
        assert_eq!((errors.lines().count(), stdout(&output).as_str()), (1, ""), "{errors}");
    }
}

fn a_reader_that_leaves_is_no_error() {
    let mut child = command()
        .args(["list", "--model", MODEL, "--effort", "patient"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

fn list_shows_roles_shapes_and_ids() {
    let list = |more: &[&str]| -> Vec<(String, String, String, KernelId)> {
        let output = run(&[&["list", "--model", MODEL], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let line = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            let count = if fields[0] == "lm_head" { "x1" } else { "x6" };
            assert_eq!((fields.len(), fields[2]), (5, count), "{line}");
            let text = |i: usize| fields[i].to_string();
            (text(0), text(1), text(3), fields[4].parse().unwrap())
        };
        stdout(&output).lines().map(line).collect()
    };
    for &isa in Isa::ALL {
        let all = list(&["--isa", isa.name()]);
        for role in ROLES {
            for phase in ["decode", "prefill"] {
                let found = all.iter().any(|(r, _, p, _)| r == role.name() && p == phase);
                let none = phase == "prefill" && matches!(role, Role::LmHead | Role::Attention);
                assert_eq!(found, !none, "{isa} {role} {phase}");
            }
        }
        assert!(all.iter().all(|(.., id)| id.isa.is_within(isa)));
        let shapes = |role| &all.iter().find(|(r, ..)| r == role).unwrap().1;
        assert_eq!(shapes("qkv"), "384x384 128x384 128x384");
        assert_eq!(shapes("gate_up"), "1024x384 1024x384");
        let patient = list(&["--isa", isa.name(), "--effort", "patient"]);
        assert!(all.iter().all(|line| patient.contains(line)) && patient.len() >= all.len());
        // What is listed can be printed.
        let id = all[all.len() / 2].3.to_string();
        assert_eq!(run(&["emit", &id]).status.code(), Some(0), "{id}");
    }
}

fn bad_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> String {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().into()
    };
    let model = fs::read(MODEL).unwrap();
    let empty = file("empty.gguf", b"");
    let text = file("text.gguf", b"once upon a time, there was a file that was no model at all");
    let half = file("half.gguf", &model[..model.len() / 2]);
    let missing = dir.path().join("missing.gguf");
    let missing = missing.to_str().unwrap();
    let folder = dir.path().to_str().unwrap();
    let out = dir.path().join("host.toml");
    let out = out.to_str().unwrap();

    refused(&[], 2, "--model");
    refused(&["--model"], 2, "--help");
    refused(&["nonsense"], 2, "--help");
    for arguments in [&["-o", out, "--model"][..], &["list", "--model"]] {
        refused(&[arguments, &[missing]].concat(), 6, "missing.gguf");
        refused(&[arguments, &[folder]].concat(), 6, "directory");
        refused(&[arguments, &[&empty]].concat(), 3, "empty.gguf");
        refused(&[arguments, &[&text]].concat(), 3, "text.gguf");
        refused(&[arguments, &[&half]].concat(), 3, "half.gguf");
    }
    let tune = |more: &[&str]| -> Vec<String> {
        ["--model", MODEL, "-o", out].iter().chain(more).map(ToString::to_string).collect()
    };
    let refuse = |more: &[&str], code, says| {
        let arguments = tune(more);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, says);
    };
    refuse(&["--threads", "0"], 2, "threads");
    refuse(&["--threads", "-1"], 2, "--help");
    refuse(&["--threads", "1000000"], 2, "threads");
    refuse(&["--budget", "soon"], 2, "60s");
    refuse(&["--for", "everything"], 2, "balanced");
    refuse(&["--isa", "sse9"], 2, "avx2");
    refuse(&["--effort", "heroic"], 2, "patient");
    // No CPU is both x86 and ARM.
    let foreign = Isa::ALL.iter().find(|isa| !isa.is_supported()).unwrap();
    refuse(&["--isa", foreign.name()], 5, foreign.name());
    refused(&["--model", MODEL, "-o", folder], 6, "directory");
    refused(&["--model", MODEL, "-o", &format!("{out}/")], 6, "directory");
    let nowhere = dir.path().join("no/such/folder/host.toml");
    refused(&["--model", MODEL, "-o", nowhere.to_str().unwrap()], 6, "host.toml");
    assert!(!Path::new(out).exists());
}

/// Runs what writes a profile without measuring.
fn estimated(output: &Path) -> Output {
    let arguments = ["--model", MODEL, "--effort", "estimate", "-t", "1", "-o"];
    command().args(arguments).arg(output).output().unwrap()
}

/// A model, or anything else that is no profile, stays what it is; so does what has the journal's name.
fn h1_a_file_that_is_no_profile_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = fs::read(MODEL).unwrap();
    for (name, content, refused) in [
        ("model.gguf", &model[..], true),
        ("notes.txt", b"what I wrote", true),
        ("host.toml", b"schema = 0", false),
        ("empty", b"", false),
    ] {
        fs::write(at(name), content).unwrap();
        let output = estimated(&at(name));
        let errors = stderr(&output);
        if refused {
            assert_eq!(output.status.code(), Some(2), "{errors}");
            assert!(errors.starts_with("error: -o: found ") && errors.contains(name), "{errors}");
            assert!(output.stdout.is_empty() && errors.lines().count() == 1, "{errors}");
            assert_eq!(fs::read(at(name)).unwrap(), content);
        } else {
            assert_eq!(output.status.code(), Some(0), "{errors}");
            Profile::load(&at(name)).unwrap();
        }
    }
    let mut names = files(folder.path());
    names.sort();
    assert_eq!(names, ["empty", "host.toml", "model.gguf", "notes.txt"].map(at));

    let record = at("notes.txt");
    let arguments = ["--model", MODEL, "-o", at("new.toml").to_str().unwrap()].map(String::from);
    for flag in ["--record", "--report"] {
        let more = [flag.to_owned(), record.to_str().unwrap().to_owned()];
        let arguments = [&arguments[..], &more].concat();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&arguments, 2, &format!("{flag}: found "));
    }
    assert!(!at("new.toml").exists());
    // A name that only a folder can have.
    let output = estimated(&at("new/"));
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert!(!at("new").exists());
}

/// The link stays, and its file is replaced; a pipe and stdout are written into.
#[cfg(unix)]
fn h1_links_are_followed_and_pipes_written_into() {
    use std::os::unix::fs::FileTypeExt;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("real")).unwrap();
    std::os::unix::fs::symlink("real/host.toml", at("link")).unwrap();
    for _ in 0..2 {
        let output = estimated(&at("link"));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        Profile::load(&at("real/host.toml")).unwrap();
        assert_eq!(files(&at("real")).len(), 1);
    }
    let written = fs::read_to_string(at("real/host.toml")).unwrap();

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let path = at("pipe");
    let reader = std::thread::spawn(move || fs::read_to_string(path).unwrap());
    let output = estimated(&at("pipe"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(reader.join().unwrap(), written);
    assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    assert!(!at("pipe.journal").exists());

    #[cfg(target_os = "linux")]
    {
        // To a pipe, and to a file, where what follows stands behind it.
        let stdout = Path::new("/dev/stdout");
        let output = estimated(stdout);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let whole = String::from_utf8(output.stdout).unwrap();
        assert!(whole.starts_with(&written) && whole.contains("\nnext  "), "{whole}");
        let file = fs::File::create(at("stdout")).unwrap();
        let arguments = ["--model", MODEL, "--effort", "estimate", "-t", "1", "-o", "/dev/stdout"];
        assert!(command().args(arguments).stdout(file).status().unwrap().success());
        assert_eq!(fs::read_to_string(at("stdout")).unwrap(), whole);
    }
}

/// The files in a folder and below.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A profile that names kernels which this build holds, for every role, and what they were timed to
/// take.
fn check(profile: &Profile) {
    check_kernels(profile);
    for op in &profile.ops {
        let timed = |pick: &Pick| pick.timed.clone().unwrap();
        assert_eq!(timed(&op.decode).tokens, 1);
        assert!(op.prefill.as_ref().is_none_or(|prefill| timed(prefill).tokens > 1));
        for (_, pick) in op.picks() {
            // On a machine that is busy elsewhere the share of its limit rounds to 0.
            assert!(timed(pick).median_us > 0.0 && timed(pick).gb_per_s > 0.0);
        }
    }
    assert!(profile.host.read_gb_per_s.unwrap() > 0.0 && profile.host.noise.is_some());
    assert_eq!(profile.tool.provenance, Provenance::Measured);
}

fn check_kernels(profile: &Profile) {
    let roles: Vec<Role> = profile.ops.iter().map(|op| op.role).collect();
    assert_eq!(roles, ROLES);
    for op in &profile.ops {
        assert_eq!(op.prefill.is_none(), matches!(op.role, Role::LmHead | Role::Attention));
        for pick in [Some(&op.decode), op.prefill.as_ref()].into_iter().flatten() {
            match pick.kernel.op {
                Op::Ternary(_) => {
                    assert_eq!(pick.kernel.op.packing(), op.layout);
                    assert!(kernels::find(&pick.kernel).is_some(), "{}", pick.kernel);
                }
                Op::Head(_) => assert!(kernels::HeadKernel::find(&pick.kernel).is_some()),
                Op::Sketch(_) | Op::Blocks(_) => panic!("{} serves no role", pick.kernel),
                Op::Attention => assert!(kernels::AttentionKernel::find(&pick.kernel).is_some()),
                Op::Rows(_) | Op::Columns(_) => panic!("{} reads no whole matrix", pick.kernel),
            }
        }
    }
    assert_eq!(profile.tool.fingerprint, Some(bitnet_codegen::fingerprint()));
}

fn an_estimate_takes_what_ships_for_this_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("host.toml");
    let arguments = ["--model", MODEL, "-o", out.to_str().unwrap(), "--effort", "estimate"];
    for flag in ["--record", "--report"] {
        let file = dir.path().join("none");
        let more = [flag, file.to_str().unwrap()];
        refused(&[&arguments[..], &more].concat(), 2, "an estimate measures nothing");
    }
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let profile = Profile::load(&out).unwrap();
    check_kernels(&profile);
    assert_eq!(profile.tool.provenance, Provenance::Modelled);
    assert_eq!((profile.host.read_gb_per_s, profile.host.noise), (None, None));
    let shipped = kernels::shipped();
    for op in &profile.ops {
        assert!(op.picks().all(|(_, pick)| *pick == Pick::untimed(pick.kernel)), "{op:?}");
        let Some(prefill) = &op.prefill else { continue };
        let pair = shipped.pair(op.role, &op.parts, None, Isa::best());
        assert_eq!((op.decode.kernel, prefill.kernel), (pair.decode, pair.prefill));
    }
    let text = stdout(&output);
    let says =
        format!("nothing was timed: this is the shipped profile {}, ", shipped.shipped().name);
    assert!(
        text.contains(&says) && text.contains("qkv 384x384 128x384 128x384, 6 per token"),
        "{text}"
    );
    assert!(!fs::read_to_string(&out).unwrap().contains("_us"));
}

fn tuning_writes_a_profile_and_the_choice_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("host.toml");
    let record = dir.path().join("record.json");
    fs::write(&out, "schema = 0 # the profile before").unwrap();
    let (out_name, record_name) = (out.to_str().unwrap(), record.to_str().unwrap());
    let page = dir.path().join("report.html");
    let page_name = page.to_str().unwrap();
    let arguments =
        ["--model", MODEL, "-o", out_name, "--record", record_name, "--report", page_name];
    let output = run(&[&arguments[..], &["--budget", "2s", "--threads", "2"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report = stdout(&output);
    assert!(ROLES.iter().all(|role| report.contains(role.name())), "{report}");
    assert!(!report.contains("WRONG"), "{report}");
    assert!(stderr(&output).contains("host.toml"));
    assert_eq!(files(dir.path()).len(), 3, "no temporary file is left");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("bard-11m") && page.ends_with("</html>"));

    let profile = Profile::load(&out).unwrap();
    check(&profile);
    assert_eq!(profile.run.threads, 2);
    let model = profile.model.path.as_ref().unwrap();
    assert_eq!(*model, Path::new(MODEL).canonicalize().unwrap());
    assert_eq!(profile.model.architecture, "bitnet-b1.58");

    let record = fs::read_to_string(&record).unwrap();
    let measurements: Measurements = serde_json::from_str(&record).unwrap();
    let choices = choose(&measurements, profile.tool.objective);
    assert_eq!(choices.len(), profile.ops.len());
    for (choice, op) in choices.iter().zip(&profile.ops) {
        assert_eq!(choice.decode.timing.kernel, op.decode.kernel);
        let prefill = op.prefill.as_ref().map(|pick| pick.kernel);
        let chosen = choice.prefill.filter(|_| op.role != Role::Attention);
        assert_eq!(chosen.map(|chosen| chosen.timing.kernel), prefill);
    }
    // What was chosen from was timed, and so was the default.
    for job in &measurements.jobs {
        let timings = || job.layouts.iter().flat_map(|l| l.decode.iter().chain(&l.prefill));
        assert!(timings().all(|timing| timing.samples > 0));
        for default in [Some(job.default_decode), job.default_prefill].into_iter().flatten() {
            assert!(timings().any(|timing| timing.kernel == default), "{default}");
        }
    }
}

fn a_ceiling_holds() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("host.toml");
    let arguments = ["--model", MODEL, "-o", out.to_str().unwrap(), "--isa", "scalar"];
    let output = run(&[&arguments[..], &["--budget", "0", "--for", "decode"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let profile = Profile::load(&out).unwrap();
    check(&profile);
    assert!(profile.check_isa(|isa| isa == Isa::Scalar).is_ok());
    assert_eq!(profile.tool.objective, Objective::Decode);
}

fn without_a_compiler_a_run_says_what_it_would_take() -> Tested {
    Need::vectors()?;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("host.toml");
    let mut command = command();
    command.args(["--model", MODEL, "-o", out.to_str().unwrap(), "--budget", "0", "-t", "1"]);
    command.args(["--effort", "patient"]);
    command.env("PATH", "/nowhere").env("HOME", "/nowhere").env_remove("RUSTC");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let says = "not tried: no rustc in PATH or ~/.cargo/bin; https://rustup.rs installs one; \
                then run bitnet-tune again";
    let errors = stderr(&output);
    let line = errors.lines().find(|line| line.contains(says)).unwrap();
    let count: usize = line.split(' ').next().unwrap().parse().unwrap();
    assert!(count > 10, "{line}");
    let closing = format!("made here  nothing: {count} kernels for these shapes were {says}");
    let (text, profile) = (stdout(&output), Profile::load(&out).unwrap());
    assert!(text.contains(&closing), "{text}");
    check(&profile);
    Ok(())
}

/// Runs a demo: the text it streamed, what followed that, and the rest.
fn demo(command: &mut Command) -> (String, String, Output) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let all = stdout(&output);
    let start = all.find(" threads, memory reads").unwrap();
    let (text, report) = all.split_at(all[..start].rfind("\n\n").unwrap());
    (text.into(), report.into(), output)
}

fn the_demo_tunes_writes_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut at_home = command();
    at_home.args(["demo", "--budget", "2s", "--threads", "2"]);
    at_home.env("XDG_CONFIG_HOME", dir.path().join("config")).env_remove("HOME");
    let (text, report, _) = demo(&mut at_home);
    assert!(text.starts_with("KING RICHARD:\n") && text.len() > 300, "{text}");
    for part in ["speed against untuned", "prefill", "decode", "gate_up", "next "] {
        assert!(report.contains(part), "{part}: {report}");
    }
    // One profile, where bitnet-run looks for it.
    let files = files(dir.path());
    let [file] = &files[..] else { panic!("{files:?}") };
    let profile = Profile::load(file).unwrap();
    check(&profile);
    assert_eq!(profile.model.path, None);
    let place = dir.path().join("config/bitnet/profiles").join(profile.user_file_name());
    assert_eq!(*file, place);

    // Without a home there is no profile, but everything else; and other choices on another
    // number of threads write the same text.
    let mut homeless = command();
    homeless.args(["demo", "--budget", "0", "--threads", "1"]);
    homeless.env_remove("XDG_CONFIG_HOME").env_remove("HOME");
    let (again, _, output) = demo(&mut homeless);
    assert_eq!(again, text);
    assert!(stderr(&output).contains("no profile was written"), "{}", stderr(&output));
}

/// As without a home: a line, and the text.
fn r4_a_configuration_folder_that_cannot_be_made_is_no_reason_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "no folder").unwrap();
    fs::create_dir_all(dir.path().join("taken/bitnet")).unwrap();
    fs::write(dir.path().join("taken/bitnet/profiles"), "no folder").unwrap();
    for name in ["file", "taken"] {
        let mut command = command();
        command.args(["demo", "--budget", "0", "--threads", "1"]);
        command.env("XDG_CONFIG_HOME", dir.path().join(name)).env_remove("HOME");
        let (text, _, output) = demo(&mut command);
        assert!(text.starts_with("KING RICHARD:\n") && text.len() > 300, "{text}");
        let errors = stderr(&output);
        let said = errors.lines().find(|line| line.starts_with("no profile was written: "));
        let said = said.unwrap_or_else(|| panic!("{errors}"));
        assert!(said.contains(name) && said.ends_with("; name a file with -o"), "{said}");
    }
    // What was asked for is another matter.
    let out = dir.path().join("file/host.toml");
    refused(&["demo", "-o", out.to_str().unwrap()], 6, "file/host.toml");
}

fn main() -> ExitCode {
    let mut suite = suite![
        h1_a_file_that_is_no_profile_is_refused,
        r4_a_configuration_folder_that_cannot_be_made_is_no_reason_to_stop,
        emit_prints_the_kernel_of_an_id,
        emit_refuses_what_is_no_kernel,
        a_worker_refuses_what_is_no_task,
        an_estimate_takes_what_ships_for_this_cpu,
        a_reader_that_leaves_is_no_error,
        list_shows_roles_shapes_and_ids,
        bad_input_is_refused,
        tuning_writes_a_profile_and_the_choice_can_be_repeated,
        a_ceiling_holds,
        without_a_compiler_a_run_says_what_it_would_take,
        the_demo_tunes_writes_and_runs,
    ];
    #[cfg(unix)]
    suite.add(
        "h1_links_are_followed_and_pipes_written_into",
        h1_links_are_followed_and_pipes_written_into,
    );
    suite.run()
}
