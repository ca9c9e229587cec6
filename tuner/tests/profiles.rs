//! `bitnet-tune show` and `bitnet-tune diff`, as a user runs them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use bitnet_profiles::registry::{Defaults, Shipped};
use bitnet_profiles::{Isa, Profile, Role, Shape, Sparse};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels::cache::Cache;
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
const PROFILE: &str = include_str!("data/profile.toml");

/// A folder with a home in it, in which the program is run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-tune"));
        command.args(args).current_dir(self.0.path());
        command.env("XDG_CONFIG_HOME", self.0.path().join("config")).env_remove("HOME");
        command.env("XDG_CACHE_HOME", self.0.path().join("cache"));
        command.output().unwrap()
    }

    /// Output of a run, with the exit code that is expected and nothing on stderr.
    fn answer(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(code), ""), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let hidden =
            |c: char| c.is_control() && c != '\n' || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!text.contains(hidden), "{text:?}");
        text
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        serde_json::from_str(&self.answer(args, code)).unwrap()
    }

    /// Runs what must be refused: one line on stderr that holds `says`, nothing on stdout.
    fn refused(&self, args: &[&str], code: i32, says: &str) {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
        if !stderr.contains("--help") {
            let line = stderr.strip_suffix('\n').unwrap();
            assert!(!line.contains(char::is_control), "{args:?}: {stderr:?}");
        }
    }
}

/// The profile as if it had been made here.
fn made_here() -> Profile {
    let mut profile = Profile::parse(PROFILE).unwrap();
    let host = Host::detect();
    profile.host.vendor = host.vendor;
    profile.host.family = host.family;
    profile.host.model = host.model;
    profile.tool.fingerprint = Some(bitnet_codegen::fingerprint());
    profile
}

/// One edit of the profile's text.
fn edited(from: &str, to: &str) -> String {
    assert!(PROFILE.contains(from), "{from}");
    PROFILE.replacen(from, to, 1)
}

/// An id that is valid and that no build holds.
const ABSENT: (&str, &str) = (
    "kernel = \"i2_s_t16__scalar__any__r16_c0_n1_u1_p0\"",
    "kernel = \"i2_s_t16__scalar__m384_k384__r16_c0_n1_u1_p64\"",
);

#[test]
fn show_tells_what_a_profile_is_and_what_becomes_of_it() {
    let place = Place::new();
    let here = place.write("here.toml", &made_here().to_text());
    let text = place.answer(&["show", &here], 0);
    for part in [
        here.as_str(),
        "bard-11m (bitnet-b1.58), shapes 5ce5458d032dcdd8",
        "models/bard-11m.i2_s.gguf",
        "A CPU of no kind",
        "2 cores, 4 threads, L2 1 MiB, L3 32 MiB; scalar",
        "2026-11-20 by bitnet-tune 0.1.0: measured, effort measure, for balanced",
        "memory reads 46.9 GB/s; noise 0.8 %",
        "2 threads, not pinned, huge pages",
        "qkv 384x384 128x384 128x384, 6 per token: i2_s_t16",
        "lm_head 4096x384, 1 per token\n",
        "head_f16__scalar__any__r1_c0_n1_u1_p0",
        "80.50",
        "25 %",
        "1.50x the time",
        "made on this kind of CPU",
        "with this version's generator",
        "all 3 are built in",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }

    let object = place.json(&["show", "--json", &here], 0);
    assert_eq!(object["profile"]["op"][0]["role"], "qkv");
    assert_eq!(object["here"]["same_cpu"], true);
    assert_eq!(object["here"]["same_fingerprint"], true);
    assert_eq!(object["here"]["refused"], Value::Null);
    assert_eq!(object["here"]["absent"], Value::Array(vec![]));

    let elsewhere =
        edited("version = \"0.1.0\"", "version = \"0\"\nfingerprint = \"0123456789abcdef\"");
    let cases = [
        (PROFILE.into(), &["made on another CPU", "only by --profile"][..]),
        (elsewhere, &["another generator", "0123456789abcdef"]),
        (edited(ABSENT.0, ABSENT.1), &["1 of 3 are not here", "qkv decode", "_p64, else i2_s"]),
        (edited("\"measured\"", "\"modelled\""), &["modelled"]),
        (PROFILE.split("[[op]]").next().unwrap().into(), &["no choices"]),
    ];
    for (text, parts) in cases {
        let file = place.write("other.toml", &text);
        let shown = place.answer(&["show", &file], 0);
        for part in parts {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
    }
    let file = place.write("other.toml", &edited(ABSENT.0, ABSENT.1));
    let object = place.json(&["show", "--json", &file], 0);
    assert_eq!(object["here"]["absent"][0]["phase"], "decode");
    assert_eq!(object["here"]["same_cpu"], false);

    // With a library that holds it, or should.
    let with_library = |sha256: &str, fingerprint: String| {
        let mut profile = Profile::parse(&edited(ABSENT.0, ABSENT.1)).unwrap();
        profile.tool.library_sha256 = Some(sha256.into());
        profile.tool.fingerprint = Some(fingerprint);
        place.answer(&["show", &place.write("library.toml", &profile.to_text())], 0)
    };
    let shown = with_library(&"ab".repeat(32), bitnet_codegen::fingerprint());
    assert!(shown.contains("made on the host are not used: "), "{shown}");
    assert!(shown.contains("1 of 3 are not here"), "{shown}");
    let folder = place.0.path().join("cache");
    let cache = Cache::of_user(|name| (name == "XDG_CACHE_HOME").then(|| folder.clone().into()));
    let sha256 = cache.unwrap().store(b"what show does not run").unwrap();
    let shown = with_library(&sha256, bitnet_codegen::fingerprint());
    assert!(shown.contains("2 are built in, 1 in the library"), "{shown}");
    let shown = with_library(&sha256, "0123456789abcdef".into());
    assert!(shown.contains("another generator made it"), "{shown}");
    assert!(shown.contains("1 of 3 are not here"), "{shown}");

    let lacking = Isa::ALL.iter().find(|isa| !isa.is_supported());
    let isa = lacking.expect("no CPU runs the tiers of two architectures");
    let head = "kernel = \"head_f16__scalar__any__r1_c0_n1_u1_p0\"";
    let file = place.write("more.toml", &edited(head, &head.replace("scalar", isa.name())));
    let shown = place.answer(&["show", &file], 0);
    assert!(shown.contains("refused") && shown.contains(isa.name()), "{shown}");
}

#[test]
fn show_auto_finds_what_bitnet_run_would() {
    let place = Place::new();
    place.refused(&["show", "auto"], 6, "profiles");
    let profile = made_here();
    let file = |shapes: &str| {
        let name = profile.user_file_name().replace(&profile.model.shapes, shapes);
        format!("config/bitnet/profiles/{name}")
    };
    place.write("config/bitnet/profiles/other-novendor-1-2.toml", PROFILE);
    place.refused(&["show", "auto"], 2, "none for this CPU");
    place.refused(&["show", "auto", "--model", MODEL], 6, "5ce5458d032dcdd8");
    place.write(&file("5ce5458d032dcdd8"), &profile.to_text());
    for args in [&["show", "auto"][..], &["show", "auto", "--model", MODEL]] {
        assert!(place.answer(args, 0).contains("bard-11m"), "{args:?}");
    }
    place.write(&file("0000000000000000"), &profile.to_text());
    place.refused(&["show", "auto"], 2, "0000000000000000");
    assert!(place.answer(&["show", "auto", "--model", MODEL], 0).contains("5ce5458d032dcdd8"));
    place.refused(&["show", "host.toml", "--model", MODEL], 2, "--model");
}

#[test]
fn shipped_profiles_are_shown_by_name() {
    let place = Place::new();
    let host = Host::detect();
    let defaults = Defaults::of(&host.vendor, host.family, host.model, Isa::best());
    let own = defaults.shipped().name.as_str();
    let list = place.answer(&["show"], 0);
    let listed = place.json(&["show", "--json"], 0);
    assert_eq!(list.lines().count(), Shipped::all().len());
    for (number, (line, shipped)) in list.lines().zip(Shipped::all()).enumerate() {
        let Profile { tool, host, .. } = shipped.profile();
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some(shipped.name.as_str()));
        assert_eq!(words.next(), Some(shipped.isa.name()));
        assert_eq!(words.next(), Some(tool.provenance.to_string().as_str()));
        assert_eq!(words.next(), Some(tool.date.as_str()));
        assert!(line.contains(&host.cpu), "{line}");
        assert_eq!(line.contains("others of this tier"), shipped.is_class(), "{line}");
        assert_eq!(line.ends_with("serves this CPU"), shipped.name == own, "{line}");
        let object = &listed[number];
        assert_eq!(object["name"], shipped.name);
        assert_eq!(object["provenance"], tool.provenance.to_string());
        assert_eq!(object["serves"], shipped.name == own);
        assert_eq!(object["whole_tier"], shipped.is_class());
    }
    let shown = place.answer(&["show", own], 0);
    let what = format!("profile  {own}, which ships with the program");
    for part in [what.as_str(), "bitnet-run takes it where nothing was tuned", "for balanced"] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let other = if own == "generic" { "zen2" } else { "generic" };
    let shown = place.answer(&["show", other], 0);
    let refused = other != "generic";
    assert!(refused || shown.contains(&format!("here bitnet-run takes {own} where")), "{shown}");
    let object = place.json(&["show", "--json", other], 0);
    assert_eq!((&object["file"], &object["here"]["shipped"]), (&other.into(), &true.into()));
    // A file of that name comes first.
    place.write(other, PROFILE);
    assert!(place.answer(&["show", other], 0).contains("bard-11m"));
    place.refused(&["show", "--model", MODEL], 2, "only with auto");

    let zen4 = Shipped::all().iter().find(|shipped| shipped.name == "zen4").unwrap();
    let file = place.write("zen4.toml", &zen4.profile().to_text());
    assert_eq!(place.answer(&["diff", "zen4", &file], 0), "the profiles are identical\n");
    let shown = place.answer(&["diff", "zen4", "zen2"], 1);
    assert!(shown.contains("AMD Zen 4") && shown.contains("-> AMD Zen 2"), "{shown}");
}

#[test]
fn diff_tells_what_differs_and_whether_the_choices_do() {
    let place = Place::new();
    let a = place.write("a.toml", PROFILE);
    let lm_head = PROFILE.find("[[op]]\nrole = \"lm_head\"").unwrap();
    let without_head = PROFILE[..lm_head].to_string();
    let faster = edited(
        &format!("{}\ntokens = 1\nmedian_us = 80.5", ABSENT.0),
        &format!("{}\ntokens = 1\nmedian_us = 40.25", ABSENT.1),
    );
    let fewer = edited("tokens = 128\nmedian_us = 6400.0", "tokens = 32\nmedian_us = 800.0")
        .replacen("r16_c0_n4_u1_p0", "r16_c0_n4_u1_p64", 1);
    let cases: [(&str, String, i32, &[&str]); 10] = [
        ("identical", PROFILE.into(), 0, &["identical"]),
        ("figures", edited("80.5", "81.5"), 0, &["the choices are the same"]),
        ("date", edited("2026-11-20", "2026-11-21"), 0, &["2026-11-21 by", "are the same"]),
        ("host", edited("A CPU of no kind", "Another"), 0, &["A CPU of no kind", "-> Another"]),
        ("threads", edited("threads = 2", "threads = 3"), 1, &["2 threads,", "3 threads,"]),
        ("pages", edited("huge_pages = true", "huge_pages = false"), 1, &["small pages"]),
        ("kernel", faster, 1, &["80.50 us", "40.25 us", "0.50x the time", "2 of 3 kernels"]),
        ("per token", fewer, 1, &["for 128 tokens", "for 32 tokens", "0.50x the time of a token"]),
        ("count", edited("count = 6", "count = 7"), 1, &["count", "6 -> 7"]),
        ("role", without_head, 1, &["lm_head 4096x384: only in A", "2 of 2 kernels"]),
    ];
    for (name, text, code, parts) in &cases {
        let b = place.write("b.toml", text);
        let shown = place.answer(&["diff", &a, &b], *code);
        for part in *parts {
            assert!(shown.contains(part), "{name}: {part}\n{shown}");
        }
        let object = place.json(&["diff", "--json", &a, &b], *code);
        assert_eq!(object["same_choices"], *code == 0, "{name}");
        assert_eq!(object["identical"], *name == "identical", "{name}");
        // The other way round the same differs.
        assert_eq!(place.json(&["diff", "--json", &b, &a], *code)["same_choices"], *code == 0);
    }
    let b = place.write("b.toml", &cases[6].1);
    let object = place.json(&["diff", "--json", &a, &b], 1);
    let kernel = &object["roles"][0]["kernels"][0];
    assert_eq!((&kernel["phase"], &kernel["ratio"]), (&"decode".into(), &0.5.into()));
    assert_eq!(kernel["a"]["median_us"], 80.5);
    assert_eq!(object["same_kernels"], 2);
    let b = place.write("b.toml", &cases[9].1);
    assert!(place.answer(&["diff", &b, &a], 1).contains("only in B"));
}

#[test]
fn bad_profiles_are_refused() {
    let place = Place::new();
    let good = place.write("good.toml", PROFILE);
    let missing: PathBuf = place.0.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    let folder = place.0.path().to_str().unwrap();
    let empty = place.write("empty.toml", "");
    let text = place.write("text.toml", "once upon a time");
    let cut = place.write("cut.toml", &PROFILE[..PROFILE.len() / 2]);
    let escape = "\\u001b]0;x\\u0007\\u001b[2J\\r\\n\\u202e";
    let hostile = [
        edited("name = \"bard-11m\"", &format!("name = \"{escape}\"")),
        edited("models/bard-11m.i2_s.gguf", &escape.replace("x", "\\u009b")),
        edited("[run]", &format!("[run]\n\"{escape}\" = 1")),
        edited("role = \"qkv\"", &format!("role = \"{escape}\"")),
    ];
    let hostile: Vec<String> = hostile
        .iter()
        .enumerate()
        .map(|(i, text)| place.write(&format!("hostile{i}.toml"), text))
        .collect();
    let bad = [(missing, 6, "missing.toml"), (folder, 4, "regular file")];
    let bad = bad.into_iter().chain([
        (empty.as_str(), 4, "empty.toml: "),
        (text.as_str(), 4, "text.toml: line 1"),
        (cut.as_str(), 4, "cut.toml: "),
        (hostile[0].as_str(), 4, "model.name"),
        (hostile[1].as_str(), 4, "model.path"),
        (hostile[2].as_str(), 4, "unknown field"),
        (hostile[3].as_str(), 4, "hostile3.toml: line"),
    ]);
    for (file, code, says) in bad {
        place.refused(&["show", file], code, says);
        place.refused(&["show", "--json", file], code, says);
        place.refused(&["diff", &good, file], code, says);
        place.refused(&["diff", file, &good], code, says);
    }
    place.refused(&["diff", &good], 2, "--help");
    // A name that is neither a file nor shipped, but could have been either.
    for name in ["zen9", "ZEN5", "zen5 ", "zen5\n\u{1b}[2J", &"x".repeat(200)] {
        for args in [&["show", name][..], &["diff", &good, name], &["diff", name, &good]] {
            place.refused(args, 2, "a file, auto, or a shipped profile: zen2, zen3, zen4, zen5, ");
        }
    }
    // What can only have been a file.
    for name in ["zen5.toml", "./zen5", "profiles/zen5"] {
        place.refused(&["show", name], 6, "bitnet-tune --model MODEL -o");
    }
}

/// Characters that a profile may hold and no terminal should get: what turns the direction of writing or
/// cannot be seen, and yet is no control character.
#[test]
fn nothing_in_a_profile_reaches_the_terminal_but_text() {
    let place = Place::new();
    let path = "path = \"models/bard-11m.i2_s.gguf\"";
    let a = place.write("a.toml", PROFILE);
    let mut hostile = edited(path, "path = \"models\u{2028}host     forged\u{202e}fugg\"");
    for text in ["bard-11m\"\narch", "A CPU of no kind", "NoVendor", "2026-11-20"] {
        let end = text.find('"').unwrap_or(text.len());
        let turned = format!("\u{202e}{}\u{2066}{}", &text[..end], &text[end..]);
        assert!(hostile.contains(text), "{text}");
        hostile = hostile.replacen(text, &turned, 1);
    }
    let b = place.write("b.toml", &hostile);
    // `answer` looks for what is hidden.
    let shown = place.answer(&["show", &b], 0);
    assert!(shown.contains("models\u{fffd}host     forged\u{fffd}fugg"), "{shown}");
    place.answer(&["diff", &a, &b], 0);
    // In JSON it is escaped, and comes out as it was.
    let object = place.json(&["show", "--json", &b], 0);
    let path = "models\u{2028}host     forged\u{202e}fugg";
    assert_eq!(object["profile"]["model"]["path"], path);
    place.json(&["diff", "--json", &a, &b], 0);
}

/// Kernels that skip beside those that do not: one line for a role, and a difference where another kernel does or up
/// to another share.
#[test]
fn what_skips_is_shown_and_told_apart() {
    let place = Place::new();
    let file = |name: &str, kernel: &str, below: f64, ratio: f64| {
        let mut profile = made_here();
        let mut op = profile.ops[0].clone();
        let kernel = kernel.parse().unwrap();
        (op.role, op.parts) = (Role::Down, vec![Shape::new(2560, 6912)]);
        let ratio_at_quarter = Some(ratio);
        op.sparse = Some(Sparse { kernel, built_in: kernel, below, ratio_at_quarter });
        profile.ops.push(op);
        place.write(name, &profile.to_text())
    };
    const PLAIN: &str = "columns_i2_s_l64__scalar__any__r64_c32_n1_u1_p0";
    const OTHER: &str = "columns_i2_s_l64__scalar__any__r64_c64_n1_u1_p0";
    let a = file("a.toml", PLAIN, 0.625, 0.4);
    let shown = place.answer(&["show", &a], 0);
    for part in ["below 62 % needed; 2.50x as fast at 25 %\n", PLAIN, "all 6 are built in"] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let b = file("b.toml", PLAIN, 0.0, 1.25);
    assert!(place.answer(&["show", &b], 0).contains("never; 0.80x as fast at 25 %\n"));
    let shown = place.answer(&["diff", &a, &b], 1);
    let change = format!("{PLAIN}, below 62 % needed; 2.50x as fast at 25 % -> {PLAIN}, never");
    assert!(shown.contains(&change), "{shown}");
    // What it gained is a figure.
    let b = file("b.toml", PLAIN, 0.625, 0.5);
    assert_eq!(place.json(&["diff", "--json", &a, &b], 0)["same_choices"], true);
    let b = file("b.toml", OTHER, 0.625, 0.4);
    assert!(place.answer(&["diff", &a, &b], 1).contains(OTHER));
    let shown = place.answer(&["show", &b], 0);
    assert!(shown.contains(&format!("down sparse: {OTHER}, else the default")), "{shown}");
}
