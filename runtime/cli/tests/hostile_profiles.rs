//! Hostile and ill-fitting profiles, as a user meets them. One that is named is refused whole, with
//! one line that names the field and the command that mends it, or it is used, with a line that says
//! what is odd. One that was found never ends a run.
//!
//! The ids P01 to P21 are those of the project's list of hostile inputs. P03 at every byte, and
//! every field by itself: `profiles/src/profile.rs`.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bitnet_profiles::{Format, Isa, Pinning, Profile, Role, Shape, paths, registry};
use bitnet_trials::{Need, Tested, suite};
use program::{answer, both, command, demo_model, layout_of, profile, refusal};
use serde_json::Value;

/// A folder for the user's configuration, with the place of the profile of this CPU and the demo
/// model in it.
struct User {
    config: tempfile::TempDir,
    profile: PathBuf,
}

impl User {
    fn new() -> Self {
        let config = tempfile::tempdir().unwrap();
        let folder = paths::user_folder(|name| {
            (name == "XDG_CONFIG_HOME").then(|| config.path().as_os_str().to_owned())
        });
        let folder = folder.unwrap();
        fs::create_dir_all(&folder).unwrap();
        Self { profile: folder.join(profile(None).user_file_name()), config }
    }

    /// The report and the notes of a run without `--profile`.
    fn run(&self, args: &[&str]) -> (Value, String) {
        let output = command(args).env("XDG_CONFIG_HOME", self.config.path()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        (serde_json::from_slice(&output.stdout).unwrap(), errors)
    }

    /// The profile is not used, and one line says why.
    fn sets_aside(&self, what: &str, args: &[&str], word: &str) {
        let (report, errors) = self.run(args);
        assert_eq!(report["profile"]["source"], "shipped", "{what}: {errors}");
        let aside: Vec<&str> = errors.lines().filter(|line| line.contains("set aside")).collect();
        let [line] = aside[..] else { panic!("{what}: {errors}") };
        assert!(line.contains(word), "{what}: {line} lacks {word}");
        assert!(line.ends_with(&mending(&self.profile)), "{what}: {line}");
    }
}

/// What every refusal ends with.
fn mending(path: &Path) -> String {
    format!("bitnet-tune --model MODEL -o {}", path.display())
}

/// A short run of the demo model that reports as JSON.
const ARGS: [&str; 7] = ["-p", "ROMEO:", "--temp", "0", "-n", "6", "--json"];

fn with<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["-m", model], &ARGS[..], more].concat()
}

fn report(args: &[&str]) -> (Value, String) {
    let (text, errors) = both(args);
    (serde_json::from_str(&text).unwrap(), errors)
}

fn lines<'a>(errors: &'a str, word: &str) -> Vec<&'a str> {
    errors.lines().filter(|line| line.contains(word)).collect()
}

/// Named: exit 4 and one line. Found: one line, and the same text as ever.
fn what_is_wrong_is_refused_by_name_and_set_aside_otherwise() {
    let user = User::new();
    let model = demo_model();
    let args = with(&model, &[]);
    let good = profile(None);
    let text = good.to_text();

    good.save(&user.profile).unwrap();
    let (report, errors) = user.run(&args);
    assert_eq!(report["profile"]["source"], "user", "{errors}");
    assert!(layout_of(&report).starts_with("tl1"), "{report}");
    let expected = report["text"].clone();

    let decode = good.ops[0].decode.kernel.to_string();
    let tile = decode.rsplit_once("__").unwrap().1;
    let id = |name: &str| text.replacen(&decode, name, 1);
    let tiled = |other: &str| text.replacen(tile, other, 1);
    let at = |from: &str, to: &str| text.replacen(from, to, 1);
    let threads = |value: &str| at("threads = 1\npinning", &format!("threads = {value}\npinning"));
    let mut twice = good.clone();
    twice.ops.push(twice.ops[0].clone());
    let deep = |open: &str, close: &str| {
        let value = format!("x = {}0{}", open.repeat(100_000), close.repeat(100_000));
        at("[tool]", &format!("[tool]\n{value}"))
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("P02 empty", String::new(), "schema"),
        ("P02 a comment", "# nothing\n".into(), "schema"),
        ("P03 a third", text[..text.len() / 3].into(), "line"),
        ("P03 a half", text[..text.len() / 2].into(), "line"),
        ("P04 JSON", "{\"schema\": 1}".into(), "line 1"),
        ("P04 a model", "GGUF\u{3}\0\0\0".into(), "line 1"),
        ("P04 binary", "\0\0\0\0".into(), "line 1"),
        ("P05 next schema", at("schema = 1", "schema = 2\nnews = true"), "reads 1"),
        ("P05 schema 0", at("schema = 1", "schema = 0"), "reads 1"),
        ("P05 huge schema", at("schema = 1", "schema = 99999999999999999999"), "line 1"),
        ("P05 no schema", at("schema = 1\n", ""), "schema"),
        ("P06 at the top", at("schema = 1", "schema = 1\nshell = \"rm\""), "`shell`"),
        ("P06 in a table", at("[tool]", "[tool]\nshell = \"rm\""), "`shell`"),
        ("P06 in an op", at("[[op]]", "[[op]]\nshell = \"rm\""), "`shell`"),
        ("P06 a table", at("[run]", "[hooks]\nload = \"rm\"\n[run]"), "`hooks`"),
        ("P06 that drives the terminal", at("[run]", "[run]\n\"\\u001b[2J\\n\" = 1"), "\\u{1b}[2J"),
        ("P08 semicolon", id(&format!("{decode}; exit")), "kernel id"),
        ("P08 newline", id(&format!("{decode}\\n")), "kernel id"),
        ("P08 escape", id("\\u001b]0;title\\u0007"), "kernel id"),
        ("P08 path", id(&format!("../../{decode}")), "is no layout"),
        ("P08 keyword", id("fn"), "kernel id"),
        ("P08 code", id("{ std::process::exit(0) }"), "kernel id"),
        ("P08 empty", id(""), "kernel id"),
        ("P08 homoglyph", id(&decode.replacen("tl1", "t\u{4cf}1", 1)), "is no layout"),
        ("P08 long", id(&"i".repeat(1 << 19)), "longer than 128"),
        ("P08 a megabyte", id(&"i".repeat(1 << 20)), "at most 1048576"),
        ("P09 tile 0", tiled("r0_c240_n1_u1_p0"), "rows must"),
        ("P09 tile -1", tiled("r-1_c240_n1_u1_p0"), "`r-1`"),
        ("P09 tile 10^9", tiled("r1000000000_c240_n1_u1_p0"), "rows must"),
        ("P09 tile beyond 64 bits", tiled("r99999999999999999999_c240_n1_u1_p0"), "is not `r`"),
        ("P09 tile float", tiled("r32.0_c240_n1_u1_p0"), "is not `r`"),
        ("P09 tile NaN", tiled("rnan_c240_n1_u1_p0"), "is not `r`"),
        ("P09 time NaN", at("median_us = 1.0", "median_us = nan"), "decode.median_us"),
        ("P09 time negative", at("median_us = 1.0", "median_us = -1.0"), "decode.median_us"),
        ("P09 count 10^9", at("count = 6", "count = 1000000000"), "count 1000000000"),
        ("P10 a tile that divides no padded matrix", tiled("r96_c240_n1_u1_p0"), "divide 64"),
        ("P14 an op", twice.to_text(), "twice"),
        ("P14 a table", at("[run]", "[run]\nthreads = 1\n[run]"), "duplicate"),
        ("P14 a key", threads("1\nthreads = 1"), "duplicate"),
        ("P15 no threads", threads("0"), "run.threads"),
        ("P15 threads of a house of cards", threads("1025"), "run.threads"),
        ("P15 threads -1", threads("-1"), "line"),
        ("P15 half a thread", threads("1.5"), "line"),
        ("P17 arrays in arrays", deep("[", "]"), "recurs"),
        ("P17 tables in tables", deep("{x = ", "}"), "recurs"),
        (
            "P17 a key of keys",
            at("[run]", &format!("[run{}]\nx = 1", ".x".repeat(100_000))),
            "recurs",
        ),
        ("P21 a library", at("[run]", "[run]\nlibrary = \"/tmp/x.so\""), "`library`"),
        ("P21 a library by tool", at("[tool]", "[tool]\nlibrary = \"x.so\""), "`library`"),
        ("P21 two models", at("[model]", "[model]\npath = [\"a\", \"b\"]"), "line"),
        (
            "P21 a model that drives the terminal",
            at("[model]", "[model]\npath = \"\\u001b[2J\""),
            "model.path",
        ),
        (
            "P21 a model of a megabyte",
            at("[model]", &format!("[model]\npath = \"{}\"", "x".repeat(5000))),
            "model.path",
        ),
    ];
    let mut cases: Vec<(&str, Vec<u8>, &str)> =
        cases.into_iter().map(|(what, text, word)| (what, text.into_bytes(), word)).collect();
    let mut bytes = text.clone().into_bytes();
    let name = text.find("bard").unwrap();
    bytes[name] = 0xff;
    cases.push(("P04 not UTF-8", bytes, "not UTF-8"));
    // A tier that this CPU lacks, with a format that has kernels of it.
    let lacking = Isa::ALL.iter().filter(|isa| !isa.is_supported()).find_map(|&isa| {
        let generics = Format::ALL.iter().map(|&format| registry::generic(Some(format), isa));
        generics.into_iter().find(|generic| generic.isa() == isa)
    });
    let generic = lacking.expect("no CPU runs the tiers of two architectures");
    let mut lacking = good.clone();
    for op in &mut lacking.ops {
        op.layout = generic.decode.op.packing();
        (op.decode.kernel, op.decode.built_in) = (generic.decode, generic.decode);
        let prefill = op.prefill.as_mut().unwrap();
        (prefill.kernel, prefill.built_in) = (generic.prefill, generic.prefill);
    }
    cases.push(("P11 ISA", lacking.to_text().into_bytes(), "this CPU lacks"));

    let path = user.profile.to_str().unwrap();
    let named = with(&model, &["--profile", path]);
    let refused = |what: &str, word: &str| {
        let message = refusal(&named, 4);
        assert!(
            message.starts_with("error: ") && message.lines().count() == 1,
            "{what}: {message}"
        );
        assert!(message.contains(path) && message.contains(word), "{what}: {message} lacks {word}");
        assert!(message.trim_end().ends_with(&mending(&user.profile)), "{what}: {message}");
        assert!(message.len() < 1500, "{what}: {} bytes", message.len());
        assert!(!message.trim_end().chars().any(char::is_control), "{what}: {message:?}");
        user.sets_aside(what, &args, word);
    };
    for (what, content, word) in &cases {
        assert_ne!(content, text.as_bytes(), "{what}");
        fs::write(&user.profile, content).unwrap();
        refused(what, word);
    }
    let hole = fs::File::create(&user.profile).unwrap();
    hole.set_len(1 << 30).unwrap();
    refused("P17 a gigabyte", "1073741824 bytes");
    fs::remove_file(&user.profile).unwrap();
    fs::create_dir(&user.profile).unwrap();
    refused("P04 a folder", "regular file");

    // With all that gone the text has stayed the same.
    let (report, _) = user.run(&args);
    assert_eq!(report["text"], expected);
}

fn p01_a_profile_that_is_missing() {
    let user = User::new();
    let model = demo_model();
    let path = user.profile.to_str().unwrap();
    let message = refusal(&with(&model, &["--profile", path]), 6);
    assert!(message.contains("cannot open") && message.lines().count() == 1, "{message}");
    assert!(message.trim_end().ends_with(&mending(&user.profile)), "{message}");
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!(report["profile"]["source"], "shipped");
    assert!(lines(&errors, "warning").is_empty(), "{errors}");
}

/// The matrices of the demo model have 384 and 1024 columns; packed rows are padded to 64.
fn p10_tiles_need_not_divide_the_matrices() {
    let user = User::new();
    let model = demo_model();
    let expected = answer(&with(&model, &["--profile", "none"]));
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let ragged = profile(None);
    let block = ragged.ops[0].decode.kernel.tile.cols;
    assert!(384 % block != 0 && 1024 % block != 0, "blocks of {block} columns");
    ragged.save(&user.profile).unwrap();
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!(report["kernels"]["qkv"]["decode"], ragged.ops[0].decode.kernel.to_string());
    assert_eq!(report["text"], expected["text"]);
    assert!(lines(&errors, "warning").is_empty(), "{errors}");
}

fn p12_a_profile_of_another_cpu_is_for_those_who_ask() {
    let user = User::new();
    let model = demo_model();
    let mut foreign = profile(None);
    foreign.host.cpu = "Some Other CPU".into();
    foreign.host.model += 1;
    foreign.save(&user.profile).unwrap();
    let path = user.profile.to_str().unwrap();
    let (named, errors) = report(&with(&model, &["--profile", path]));
    assert_eq!(named["profile"]["source"], "file");
    assert!(layout_of(&named).starts_with("tl1"), "{named}");
    assert_eq!(lines(&errors, "Some Other CPU").len(), 1, "{errors}");
    // Under this CPU's name it is found, and not believed.
    user.sets_aside("P12", &with(&model, &[]), "Some Other CPU");
    // Under its own it is not even looked at.
    fs::rename(&user.profile, user.profile.with_file_name(foreign.user_file_name())).unwrap();
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!(report["profile"]["source"], "shipped");
    assert!(lines(&errors, "warning").is_empty(), "{errors}");
}

fn p13_a_role_whose_shapes_are_not_listed_takes_the_default() {
    let user = User::new();
    let model = demo_model();
    let text = report(&with(&model, &["--profile", "none"])).0["text"].clone();
    let mut partial = profile(None);
    let down = partial.ops.iter_mut().find(|op| op.role == Role::Down).unwrap();
    down.parts = vec![Shape::new(2560, 6912)];
    partial.save(&user.profile).unwrap();
    let (found, errors) = user.run(&with(&model, &[]));
    assert_eq!((&found["profile"]["source"], &found["text"]), (&"user".into(), &text));
    let down = [Shape::new(384, 1024)];
    let default =
        bitnet_runtime::cpu::kernels::shipped().pair(Role::Down, &down, None, Isa::best());
    assert_eq!(layout_of(&found), default.layout().name());
    let layout = found["kernels"]["qkv"]["layout"].as_str().unwrap();
    assert!(layout.starts_with("tl1"), "{found}");
    let [line] = lines(&errors, "using the default")[..] else { panic!("{errors}") };
    assert!(line.contains("down") && line.contains("384x1024"), "{line}");
    // A profile of other shapes altogether is never found, but may be asked for.
    partial.model.shapes = "0123456789abcdef".into();
    partial.save(&user.profile).unwrap();
    user.sets_aside("P13", &with(&model, &[]), "0123456789abcdef");
    let path = user.profile.to_str().unwrap();
    let (named, errors) = report(&with(&model, &["--profile", path]));
    assert_eq!((&named["profile"]["source"], &named["text"]), (&"file".into(), &text));
    assert_eq!(lines(&errors, "other shapes").len(), 1, "{errors}");
}

/// The CPUs that this process may use.
fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

fn p15_more_threads_than_cpus_become_as_many() {
    let user = User::new();
    let model = demo_model();
    let mut many = profile(None);
    many.run.threads = 1024;
    many.save(&user.profile).unwrap();
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!(report["threads"], cpus());
    let [line] = lines(&errors, "the profile's 1024")[..] else { panic!("{errors}") };
    assert!(line.starts_with("threads: "), "{line}");
    // The flag wins, over the profile and over what is sensible.
    let (report, errors) = user.run(&with(&model, &["-t", "3"]));
    assert_eq!(report["threads"], 3);
    assert!(lines(&errors, "the profile's").is_empty(), "{errors}");
}

/// What a child inherits that is started by a thread bound to one CPU.
#[cfg(target_os = "linux")]
fn p16_a_cpuset_smaller_than_the_profile_s_host() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let user = User::new();
    let model = demo_model();
    let mut two = profile(None);
    two.run.threads = 2;
    two.run.pinning = Pinning::Cores;
    two.save(&user.profile).unwrap();
    let before = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu)).unwrap());
    sched_setaffinity(None, &one).unwrap();
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!((&report["threads"], &report["pinning"]), (&1.into(), &"cores".into()));
    assert_eq!(lines(&errors, "not the profile's 2").len(), 1, "{errors}");
    assert!(lines(&errors, "warning").is_empty(), "{errors}");
    let (report, errors) = user.run(&with(&model, &["-t", "2"]));
    assert_eq!((&report["threads"], &report["pinning"]), (&2.into(), &"none".into()));
    let [line] = lines(&errors, "warning")[..] else { panic!("{errors}") };
    assert!(line.contains("2 threads on 1 usable CPUs"), "{line}");
}

fn what_the_profile_says_of_the_run_holds_until_a_flag_says_otherwise() {
    let user = User::new();
    let model = demo_model();
    let found = |pinning, huge_pages, flags: &[&str]| {
        let mut profile = profile(None);
        (profile.run.pinning, profile.run.huge_pages) = (pinning, huge_pages);
        profile.save(&user.profile).unwrap();
        let (report, errors) = user.run(&with(&model, flags));
        assert_eq!(report["profile"]["source"], "user", "{errors}");
        (report["pinning"].clone(), report["huge_pages"].clone())
    };
    let is = |pinning: &str, huge_pages: bool| (Value::from(pinning), Value::from(huge_pages));
    // Where threads cannot be bound the run goes on.
    let cores = if cfg!(target_os = "linux") { "cores" } else { "none" };
    for huge in [false, true] {
        assert_eq!(found(Pinning::None, huge, &[]), is("none", huge));
        assert_eq!(found(Pinning::Cores, huge, &[]), is(cores, huge));
        let other = if huge { "0" } else { "1" };
        assert_eq!(found(Pinning::None, huge, &["--huge-pages", other]), is("none", !huge));
        assert_eq!(found(Pinning::None, huge, &["-cpu-strict", "1"]), is(cores, huge));
        assert_eq!(found(Pinning::Cores, huge, &["--cpu-strict", "0"]), is("none", huge));
    }
    let (plain, _) = report(&with(&model, &["--profile", "none"]));
    assert_eq!((&plain["pinning"], &plain["huge_pages"]), (&"none".into(), &true.into()));
    for flags in [["--cpu-strict", "2"], ["--huge-pages", "yes"]] {
        let message = refusal(&with(&model, &flags), 2);
        assert!(message.contains(flags[0]) && message.contains("0, 1"), "{message}");
    }
}

#[cfg(unix)]
fn p18_a_profile_that_others_could_have_written() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let user = User::new();
    let model = demo_model();
    let path = user.profile.to_str().unwrap();
    let folder = user.profile.parent().unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let is_used_if_named = |doubt: &str| {
        let (report, errors) = report(&with(&model, &["--profile", path]));
        assert_eq!(report["profile"]["source"], "file", "{errors}");
        let warnings = lines(&errors, "warning");
        assert_eq!(warnings.len(), usize::from(!doubt.is_empty()), "{errors}");
        assert!(
            warnings.iter().all(|line| line.contains(doubt) && line.contains(path)),
            "{errors}"
        );
    };
    profile(None).save(&user.profile).unwrap();
    is_used_if_named("");
    for shared in [0o666, 0o602] {
        mode(&user.profile, shared);
        is_used_if_named("anyone may write it");
        user.sets_aside("P18 a file", &with(&model, &[]), "anyone may write it");
    }
    mode(&user.profile, 0o600);
    mode(folder, 0o777);
    is_used_if_named("anyone may write its folder");
    user.sets_aside("P18 a folder", &with(&model, &[]), "anyone may write its folder");
    mode(folder, 0o755);

    // Whoever keeps configuration elsewhere links to it: still used, but told.
    let target = folder.join("elsewhere.toml");
    fs::rename(&user.profile, &target).unwrap();
    symlink(&target, &user.profile).unwrap();
    is_used_if_named("a symbolic link");
    let (report, errors) = user.run(&with(&model, &[]));
    assert_eq!(report["profile"]["source"], "user", "{errors}");
    assert_eq!(lines(&errors, "a symbolic link").len(), 1, "{errors}");
    // It is the target that counts.
    mode(&target, 0o666);
    is_used_if_named("anyone may write it");
    user.sets_aside("P18 a target", &with(&model, &[]), "anyone may write it");
}

#[cfg(unix)]
fn p18_a_profile_of_another_user() -> Tested {
    use std::os::unix::fs::{chown, symlink};

    let model = demo_model();
    let user = User::new();
    // It is the target that counts.
    let target = user.profile.with_file_name("elsewhere.toml");
    profile(None).save(&target).unwrap();
    symlink(&target, &user.profile).unwrap();
    Need::Root.met(chown(&target, Some(65_534), None))?;
    user.sets_aside("P18 a stranger's", &with(&model, &[]), "not this user's");
    Ok(())
}

/// The only path in a profile is opened as a model, or refused as one.
fn p21_the_path_of_the_model_is_only_ever_opened() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.toml");
    let script = dir.path().join("script");
    let ran = dir.path().join("ran");
    fs::write(&script, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let touch = format!("$(touch {0}); touch {0}", ran.display());
    let names = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    };
    let mut cases = vec![
        ("host.toml", 3, "a GGUF file"),
        ("script", 3, "a GGUF file"),
        ("./../nowhere/m.gguf", 6, "cannot open"),
        ("missing.gguf", 6, "cannot open"),
        (&touch, 6, "cannot open"),
        ("| script", 6, "cannot open"),
        ("https://example.org/m.gguf", 6, "cannot open"),
        ("", 6, "directory"),
    ];
    if cfg!(unix) {
        cases.push(("/dev/null", 6, "regular file"));
    }
    for (path, code, word) in cases {
        let mut hostile = profile(Some(path.into()));
        hostile.save(&file).unwrap();
        let before = names();
        let message = refusal(&["--profile", file.to_str().unwrap(), "-p", "x"], code);
        assert!(message.contains(word) && message.lines().count() == 1, "P21 {path}: {message}");
        assert_eq!(names(), before, "P21 {path}");
        // With a model of one's own it is not even looked at.
        hostile.model.path = Some(path.into());
        hostile.save(&file).unwrap();
        let model = demo_model();
        let (report, _) = report(&with(&model, &["--profile", file.to_str().unwrap()]));
        assert_eq!(report["profile"]["source"], "file", "P21 {path}");
    }
    assert!(!ran.exists());
}

/// The profile of the tests is one that a tuner could have written.
fn the_profile_of_these_tests_is_good() {
    let good = profile(Some("m.gguf".into()));
    assert_eq!(Profile::parse(&good.to_text()).unwrap(), good);
    let tl1 = registry::generic(Some(Format::Tl1), Isa::best());
    assert!(good.ops.iter().all(|op| op.decode.kernel == tl1.decode));
}

fn main() -> ExitCode {
    suite![
        what_is_wrong_is_refused_by_name_and_set_aside_otherwise,
        p01_a_profile_that_is_missing,
        p10_tiles_need_not_divide_the_matrices,
        p12_a_profile_of_another_cpu_is_for_those_who_ask,
        p13_a_role_whose_shapes_are_not_listed_takes_the_default,
        p15_more_threads_than_cpus_become_as_many,
        #[cfg(target_os = "linux")]
        p16_a_cpuset_smaller_than_the_profile_s_host,
        what_the_profile_says_of_the_run_holds_until_a_flag_says_otherwise,
        #[cfg(unix)]
        p18_a_profile_that_others_could_have_written,
        #[cfg(unix)]
        p18_a_profile_of_another_user,
        p21_the_path_of_the_model_is_only_ever_opened,
        the_profile_of_these_tests_is_good,
    ]
    .run()
}
