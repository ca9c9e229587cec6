//! `bitnet-tune check`, as a user runs it. What is timed decides nothing here, so that a machine
//! that is busy does not matter.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use bitnet_profiles::{Isa, KernelId, Op, Pick, Profile, Role, Shape, registry};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_trials::{Need, Tested, suite};
use bitnet_tuner::ModelInfo;
use bitnet_tuner::compile::{Toolchain, Workplace};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bard-11m.i2_s.gguf");
const PROFILE: &str = include_str!("data/profile.toml");

/// A folder in which the program is run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, profile: &Profile) -> String {
        let path = self.0.path().join(name);
        profile.save(&path).unwrap();
        path.to_str().unwrap().into()
    }

    /// Exit code, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-tune"));
        command.arg("check").args(args).current_dir(self.0.path());
        command.env("XDG_CONFIG_HOME", self.0.path().join("config")).env_remove("HOME");
        command.env("XDG_CACHE_HOME", self.0.path().join("cache"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }
}

/// A profile of scalar kernels, as if it had been made here for the demo model.
fn made_here() -> Profile {
    let mut profile = Profile::parse(PROFILE).unwrap();
    let host = Host::detect();
    profile.host.vendor = host.vendor;
    profile.host.family = host.family;
    profile.host.model = host.model;
    profile.tool.fingerprint = Some(bitnet_codegen::fingerprint());
    profile.model.path = Some(MODEL.into());
    profile.run.threads = 1;
    profile
}

fn a_check_says_how_every_pick_stands() {
    let place = Place::new();
    let file = place.write("host.toml", &made_here());
    let (code, text, errors) = place.run(&["--profile", &file, "--budget", "1s"]);
    for part in [
        "host.toml: bard-11m, measured 2026-11-20",
        "1 thread, memory reads",
        "qkv 384x384 128x384 128x384, 6 per token: i2_s_t16",
        "decode      i2_s_t16__scalar__any__r16_c0_n1_u1_p0",
        "prefill     i2_s_t16__scalar__any__r16_c0_n4_u1_p0",
        "lm_head 4096x384, 1 per token\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(errors, "");
    // The profile's are the slowest kernels there are; where the CPU runs better ones, they lag.
    if Isa::best() != Isa::Scalar {
        assert!(text.contains("    default   i2_s_"), "{text}");
    }
    let verdict = text.trim_end().rsplit("\n\n").next().unwrap();
    match code {
        0 => assert!(verdict.starts_with("ok: "), "{text}"),
        1 => assert_eq!(
            verdict.lines().last().unwrap(),
            "the profile does not hold here: run bitnet-tune again"
        ),
        _ => panic!("{code}: {text}"),
    }
}

fn json_holds_the_same_and_the_exit_code_says_whether_all_is_well() {
    let place = Place::new();
    let mut profile = made_here();
    // One that is present nowhere: its fallback serves.
    profile.ops[0].decode.kernel = "i2_s_t16__scalar__m384_k384__r16_c0_n1_u1_p64".parse().unwrap();
    let file = place.write("host.toml", &profile);
    let (code, text, errors) =
        place.run(&["--profile", &file, "--budget", "1s", "--json", "-t", "1"]);
    assert_eq!(errors, "");
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(object["holds"], code == 0, "{text}");
    assert_eq!(object["threads"], 1);
    let roles = object["roles"].as_array().unwrap();
    assert_eq!(roles.len(), profile.ops.len());
    let decode = &roles[0]["phases"][0];
    assert_eq!(decode["pick"], profile.ops[0].decode.kernel.to_string());
    assert_eq!(decode["serves"], profile.ops[0].decode.built_in.to_string());
    let notes = object["notes"].to_string();
    assert!(notes.contains("is not present here"), "{notes}");
    for phase in roles.iter().flat_map(|role| role["phases"].as_array().unwrap()) {
        assert!(phase["median_us"].as_f64().unwrap() > 0.0, "{phase}");
        for rival in phase["rivals"].as_array().unwrap() {
            assert!(rival["ratio"].as_f64().unwrap() > 0.0, "{rival}");
            assert!(rival["half_width"].as_f64().unwrap() >= 0.0, "{rival}");
        }
    }
    let lags = text.contains("\"lags\": true");
    assert_eq!(lags, code == 1, "{text}");
}

/// Kernels made on this host are those of the user's cache, or their fallbacks where it does not hold
/// what the profile says.
#[cfg(unix)]
fn kernels_made_on_the_host_are_timed() -> Tested {
    Need::vectors()?;
    let place = Place::new();
    let isa = Isa::supported().last().unwrap();
    let one = |id: &KernelId| matches!(id.op, Op::Ternary(_)) && id.tile.tokens == 1;
    let made = bitnet_codegen::candidates(isa, Some(Shape::new(384, 384)));
    let made = made.into_iter().find(one).unwrap();
    // Built in, and of the same layout.
    let built_in = |decode: bool| {
        let ids = kernels::builtin().iter().map(|kernel| *kernel.id());
        ids.filter(|id| id.op == made.op).find(|id| one(id) == decode).unwrap()
    };
    let toolchain = Toolchain::find(Workplace::default()).unwrap();
    let library = toolchain.compile(&[made], Duration::from_secs(300)).unwrap();
    let home = place.0.path().join("cache");
    let cache = Cache::of_user(|name| (name == "XDG_CACHE_HOME").then(|| home.clone().into()));
    let cache = cache.unwrap();
    let mut profile = made_here();
    let choice = &mut profile.ops[0];
    choice.layout = made.op.packing();
    choice.decode = Pick { kernel: made, timed: None, built_in: built_in(true) };
    choice.prefill = Some(Pick::untimed(built_in(false)));
    profile.tool.library_sha256 = Some(cache.store(&library).unwrap());
    let file = place.write("host.toml", &profile);
    let decode = || {
        let (code, text, errors) = place.run(&["--profile", &file, "--budget", "1s", "--json"]);
        assert!(matches!(code, 0 | 1), "{code}: {errors}");
        let object: Value = serde_json::from_str(&text).unwrap();
        let decode = object["roles"][0]["phases"][0].clone();
        assert!(decode["median_us"].as_f64().unwrap() > 0.0, "{decode}");
        (decode["serves"].clone(), decode["rivals"][0]["kind"].clone(), object["notes"].clone())
    };
    let (serves, rival, notes) = decode();
    assert_eq!(serves, made.to_string());
    assert!(rival == "built_in" || rival == "default", "{rival}");
    assert_eq!(notes, Value::Array(Vec::new()));
    let stored = fs::read_dir(cache.folder()).unwrap().next().unwrap().unwrap().path();
    fs::write(&stored, b"something else").unwrap();
    let (serves, _, notes) = decode();
    assert_eq!(serves, profile.ops[0].decode.built_in.to_string());
    assert!(notes.to_string().contains("made for this profile are not used"), "{notes}");
    Ok(())
}

/// Profile and model by name, or found: relative to the profile, or in the program itself.
fn the_model_is_found() {
    let place = Place::new();
    let check = |profile: &Profile, more: &[&str]| {
        let file = place.write("host.toml", profile);
        place.run(&[&["--profile", &file, "--budget", "0", "--json"][..], more].concat())
    };
    let mut profile = made_here();
    profile.ops.retain(|op| op.role == Role::LmHead);
    fs::copy(MODEL, place.0.path().join("model.gguf")).unwrap();
    for (path, more) in [
        (Some("model.gguf"), &[][..]),
        (None, &[]),
        (None, &["--model", MODEL]),
        (Some("missing.gguf"), &["--model", MODEL]),
    ] {
        profile.model.path = path.map(Into::into);
        let (code, text, errors) = check(&profile, more);
        assert!(matches!(code, 0 | 1) && errors.is_empty(), "{path:?}: {code} {errors}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["roles"][0]["role"], "lm_head");
    }
    // Nothing chosen, nothing to check.
    profile.ops.clear();
    let file = place.write("host.toml", &profile);
    let (code, text, _) = place.run(&["--profile", &file, "--budget", "0", "--model", MODEL]);
    assert!(code == 0 && text.contains("nothing to check"), "{text}");
}

fn what_does_not_fit_is_refused() {
    let place = Place::new();
    let refused = |args: &[&str], expected: i32, says: &str| {
        let (code, text, errors) = place.run(args);
        assert_eq!((code, text.as_str()), (expected, ""), "{args:?}: {errors}");
        assert!(errors.contains(says), "{args:?}: {errors}");
        if !errors.contains("--help") {
            assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        }
    };
    let profile = made_here();
    let good = place.write("good.toml", &profile);
    refused(&[], 2, "--profile");
    refused(&["--profile", "missing.toml"], 6, "missing.toml");
    refused(&["--profile", &good, "--budget", "soon"], 2, "60s");
    refused(&["--profile", &good, "-t", "0"], 2, "threads");
    refused(&["--profile", &good, "--model", "missing.gguf"], 6, "missing.gguf");
    refused(&["--profile", "auto"], 6, "profiles");

    let text = place.0.path().join("text.toml");
    fs::write(&text, "schema = 1\nfree = \"text\"\n").unwrap();
    refused(&["--profile", text.to_str().unwrap()], 4, "text.toml");
    let lacking = Isa::ALL.iter().find(|isa| !isa.is_supported());
    let &isa = lacking.expect("no CPU runs the tiers of two architectures");
    let kernels = registry::generic(None, isa);
    let mut foreign = profile.clone();
    let choice = &mut foreign.ops[0];
    choice.layout = kernels.decode.op.packing();
    choice.decode = Pick::untimed(kernels.decode);
    choice.prefill = Some(Pick::untimed(kernels.prefill));
    let foreign = place.write("foreign.toml", &foreign);
    refused(&["--profile", &foreign], 4, isa.name());

    // Another model than the profile's.
    let mut other = profile.clone();
    other.model.shapes = "0123456789abcdef".into();
    let file = place.write("other.toml", &other);
    let own = ModelInfo::from_gguf(&Gguf::open(Path::new(MODEL)).unwrap()).unwrap().shapes;
    refused(&["--profile", &file], 2, &own);
    refused(&["--profile", &file, "--model", MODEL], 2, "0123456789abcdef");
    other.model.path = None;
    let file = place.write("other.toml", &other);
    refused(&["--profile", &file], 2, "--model MODEL");
}

fn main() -> ExitCode {
    suite![
        a_check_says_how_every_pick_stands,
        json_holds_the_same_and_the_exit_code_says_whether_all_is_well,
        #[cfg(unix)]
        kernels_made_on_the_host_are_timed,
        the_model_is_found,
        what_does_not_fit_is_refused,
    ]
    .run()
}
