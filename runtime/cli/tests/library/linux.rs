//! A profile whose kernels were made on this host: the program runs them, and where they cannot be
//! used it says so in one line and writes the same text with those that are built in.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{command, demo_model};
use bitnet_kernels as builtin;
use bitnet_profiles::{
    Choice, Effort, HeadFormat, Host, Isa, KernelId, KernelSpec, Model, Objective, Op, Pick,
    Pinning, Profile, Provenance, Role, Run, Shape, Tool,
};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_trials::{Need, Suite, Tested, suite};
use serde_json::Value;

/// A folder that is trusted, whatever the umask.
fn private_folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// What a run writes.
struct Text {
    text: String,
    kernels: Value,
    errors: String,
}

/// A profile of host-made kernels for the demo model, the library they are in, and the cache.
struct Tuned {
    folder: tempfile::TempDir,
    profile: Profile,
    cache: Cache,
    library: PathBuf,
    source: String,
}

/// A library of that source.
fn compile(source: &str, folder: &Path) -> Vec<u8> {
    let path = folder.join("kernels.rs");
    let library = path.with_extension("so");
    fs::write(&path, source).unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc.args(["--crate-type=cdylib", "--edition=2024", "-Copt-level=3", "-Cpanic=abort"]);
    assert!(rustc.arg("-o").args([&library, &path]).status().unwrap().success());
    fs::read(&library).unwrap()
}

/// The first kernel of a kind on this CPU's best tier that has one, for the shape.
fn candidate(shape: Shape, fits: impl Fn(&KernelId) -> bool) -> KernelId {
    let tiers = Isa::ALL.iter().rev().filter(|isa| isa.is_supported() && **isa != Isa::Scalar);
    let mut all = tiers.flat_map(|&isa| bitnet_codegen::candidates(isa, Some(shape)));
    all.find(|id| fits(id)).expect("every op has kernels on every vector tier")
}

fn pick(kernel: KernelId) -> Pick {
    let built_in = KernelSpec { shape: None, ..*kernel.spec() }.validate().unwrap();
    Pick { kernel, timed: None, built_in }
}

impl Tuned {
    fn new() -> Tested<Self> {
        Need::vectors()?;
        let config = Config::from_gguf(&Gguf::open(demo_model()).unwrap()).unwrap();
        let of_op = |role, parts: Vec<Shape>, op: Op| Choice {
            role,
            count: 1,
            layout: None,
            decode: pick(candidate(parts[0], |id| id.op == op && id.tile.tokens == 1)),
            prefill: None,
            sparse: None,
            parts,
        };
        let mut ops: Vec<Choice> = config
            .jobs()
            .into_iter()
            .map(|job| {
                let decode = candidate(job.parts[0], |id| {
                    matches!(id.op, Op::Ternary(_)) && id.tile.tokens == 1
                });
                let prefill = candidate(job.parts[0], |id| {
                    id.op == decode.op && id.isa == decode.isa && id.tile.tokens > 1
                });
                Choice {
                    role: job.role,
                    count: job.count,
                    layout: decode.op.packing(),
                    decode: pick(decode),
                    prefill: Some(pick(prefill)),
                    sparse: None,
                    parts: job.parts,
                }
            })
            .collect();
        let head = vec![Shape::new(config.vocab, config.hidden)];
        ops.push(of_op(Role::LmHead, head, Op::Head(HeadFormat::F16)));
        ops.push(of_op(Role::Attention, config.attention_shapes().to_vec(), Op::Attention));

        let folder = private_folder();
        let picks = ops.iter().flat_map(|op| [Some(&op.decode), op.prefill.as_ref()]).flatten();
        let mut ids: Vec<KernelId> = picks.map(|pick| pick.kernel).collect();
        ids.sort();
        ids.dedup();
        assert!(ids.len() >= 7, "{ids:?}");
        let source = bitnet_codegen::emit_cdylib(&ids).unwrap();
        let cache = Cache::at(folder.path().join("cache/bitnet/kernels"));
        let sha256 = cache.store(&compile(&source, folder.path())).unwrap();
        let library = cache.folder().join(format!("{sha256}.so"));
        let profile = Profile {
            schema: Profile::SCHEMA,
            tool: Tool {
                version: "0".into(),
                fingerprint: Some(builtin::FINGERPRINT.into()),
                objective: Objective::Balanced,
                effort: Effort::Measure,
                date: "2026-01-01".into(),
                library_sha256: Some(sha256),
                provenance: Provenance::Measured,
            },
            host: Host {
                cpu: "a CPU".into(),
                vendor: "a vendor".into(),
                family: 1,
                model: 1,
                stepping: 1,
                isa: vec![Isa::best()],
                physical_cores: 2,
                threads: 2,
                l2: 0,
                l3: 0,
                read_gb_per_s: None,
                noise: None,
            },
            model: Model {
                name: "demo".into(),
                architecture: "bitnet".into(),
                shapes: config.shapes_hash(),
                path: None,
            },
            run: Run { threads: 2, pinning: Pinning::None, huge_pages: true },
            ops,
        };
        Ok(Self { folder, profile, cache, library, source })
    }

    /// Runs the demo model with a profile, in an environment of `variables`.
    fn run(&self, profile: &Profile, variables: &[(&str, &Path)]) -> Text {
        let path = self.folder.path().join("host.toml");
        let _ = fs::remove_file(&path);
        profile.save(&path).unwrap();
        run(path.to_str().unwrap(), variables)
    }

    /// With the cache in its place.
    fn run_here(&self, profile: &Profile) -> Text {
        self.run(profile, &[("XDG_CACHE_HOME", &self.folder.path().join("cache"))])
    }
}

fn run(profile: &str, variables: &[(&str, &Path)]) -> Text {
    let model = demo_model();
    let args = ["-m", &*model, "-p", "ROMEO:", "-n", "24", "--temp", "0", "--profile", profile];
    let mut command = command(&[&args[..], &["--json"]].concat());
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = report["text"].as_str().unwrap().to_owned();
    Text { text, kernels: report["kernels"].clone(), errors }
}

/// The kernels that a run used are these of the profile's.
fn assert_kernels(profile: &Profile, of: fn(&Pick) -> KernelId, found: &Text) {
    for op in &profile.ops {
        let kernels = &found.kernels[op.role.name()];
        assert_eq!(kernels["decode"], of(&op.decode).to_string(), "{}", found.errors);
        if let Some(prefill) = &op.prefill {
            assert_eq!(kernels["prefill"], of(prefill).to_string(), "{}", found.errors);
        }
    }
}

/// The lines that say that kernels are not used.
fn lines(found: &Text) -> Vec<&str> {
    found.errors.lines().filter(|line| line.contains("used") || line.contains("using")).collect()
}

fn kernels_made_on_the_host_serve_or_are_replaced() -> Tested {
    let tuned = Tuned::new()?;
    let profile = &tuned.profile;
    let expected = run("none", &[]);
    assert!(expected.text.len() > 20);

    let made = tuned.run_here(profile);
    assert_eq!(made.text, expected.text);
    assert_kernels(profile, |pick| pick.kernel, &made);
    assert_eq!(lines(&made), [""; 0], "{}", made.errors);

    // One line, the same text, the fallbacks.
    let replaced = |found: &Text, says: &str| {
        assert_eq!(found.text, expected.text);
        assert_kernels(profile, |pick| pick.built_in, found);
        let lines = lines(found);
        assert!(lines.len() == 1 && lines[0].contains(says), "{says} is not in\n{}", found.errors);
    };
    let library = fs::read(&tuned.library).unwrap();

    // P19, and C01, C02.
    let mut damaged = library.clone();
    damaged[library.len() / 2] ^= 1;
    for content in [&damaged, &library[..library.len() / 2]] {
        fs::write(&tuned.library, content).unwrap();
        replaced(&tuned.run_here(profile), "the file is damaged; built-in ones instead");
    }
    fs::write(&tuned.library, &library).unwrap();
    let changed = |change: fn(&mut Tool)| {
        let mut profile = profile.clone();
        change(&mut profile.tool);
        profile
    };
    let other = changed(|tool| tool.library_sha256 = Some("0".repeat(64)));
    replaced(&tuned.run_here(&other), "cannot open");
    // P20: what another version of the kernels was.
    let other = changed(|tool| tool.fingerprint = Some("0123456789abcdef".into()));
    replaced(&tuned.run_here(&other), "of another version (fingerprint 0123456789abcdef");
    let other = changed(|tool| tool.fingerprint = None);
    replaced(&tuned.run_here(&other), "of another version (fingerprint none");

    // C03: a library that is what was stored, of another version.
    let mut older = library.clone();
    let fingerprint = builtin::FINGERPRINT.as_bytes();
    let at = older.windows(16).position(|window| window == fingerprint).unwrap();
    older[at..at + 16].copy_from_slice(b"0123456789abcdef");
    let mut other = profile.clone();
    other.tool.library_sha256 = Some(tuned.cache.store(&older).unwrap());
    replaced(&tuned.run_here(&other), "made by a generator 0123456789abcdef");

    // C12: no cache, and one that is missing.
    replaced(&tuned.run(profile, &[]), "there is no cache folder");
    let nothing = tuned.folder.path().join("nothing");
    replaced(&tuned.run(profile, &[("HOME", &nothing)]), "cannot open");

    // And as it was.
    assert_kernels(profile, |pick| pick.kernel, &tuned.run_here(profile));
    Ok(())
}

/// The self-check: of a head that errs in a sign, the model sees nothing.
fn a_kernel_that_computes_something_wrong_is_replaced() -> Tested {
    let tuned = Tuned::new()?;
    let right = "out.add(t * stride + r).write(isa::f32_reduce_add(sums[r][t]));";
    assert_eq!(tuned.source.matches(right).count(), 1);
    let wrong = tuned.source.replace(right, &right.replace("isa::f32", "-isa::f32"));
    let mut profile = tuned.profile.clone();
    let library = compile(&wrong, tuned.folder.path());
    profile.tool.library_sha256 = Some(tuned.cache.store(&library).unwrap());
    let found = tuned.run_here(&profile);
    assert_eq!(found.text, run("none", &[]).text);
    let head = &profile.ops.iter().find(|op| op.role == Role::LmHead).unwrap().decode;
    assert_eq!(found.kernels["lm_head"]["decode"], head.built_in.to_string());
    let line = format!("not used: {} computed something wrong: 384 columns", head.kernel);
    assert!(lines(&found).len() == 1 && found.errors.contains(&line), "{}", found.errors);
    Ok(())
}

/// P07: a kernel that is neither built in nor made. Each is told, as nothing else explains it.
fn a_kernel_that_is_not_present_is_replaced() -> Tested {
    let tuned = Tuned::new()?;
    let mut profile = tuned.profile.clone();
    profile.tool.library_sha256 = None;
    let found = tuned.run_here(&profile);
    assert_eq!(found.text, run("none", &[]).text);
    assert_kernels(&profile, |pick| pick.built_in, &found);
    for op in &profile.ops {
        let line = format!(
            "{}: {} is not present here, using {}",
            op.role, op.decode.kernel, op.decode.built_in
        );
        assert!(found.errors.contains(&line), "{line} is not in\n{}", found.errors);
    }

    // P20: a fallback that has gone too leaves the default.
    let mut profile = tuned.profile.clone();
    profile.tool.library_sha256 = None;
    let gone = profile.ops.iter_mut().find(|op| op.role == Role::LmHead).unwrap();
    let tile = bitnet_profiles::TileConfig { prefetch: 16384, ..gone.decode.built_in.tile };
    let spec = KernelSpec { tile, ..*gone.decode.built_in.spec() };
    gone.decode.built_in = spec.validate().unwrap();
    let found = tuned.run_here(&profile);
    assert_eq!(found.text, run("none", &[]).text);
    assert!(found.errors.contains("lm_head: neither "), "{}", found.errors);

    // A head of another type than the file's is not for it.
    let mut profile = tuned.profile.clone();
    let head = profile.ops.iter_mut().find(|op| op.role == Role::LmHead).unwrap();
    let q8_0 = KernelSpec { op: Op::Head(HeadFormat::Q8_0), ..*head.decode.kernel.spec() };
    head.decode = pick(q8_0.validate().unwrap());
    let found = tuned.run_here(&profile);
    assert_eq!(found.text, run("none", &[]).text);
    assert_eq!(lines(&found).len(), 1, "{}", found.errors);
    assert!(found.errors.contains("is not for f16, using the default"), "{}", found.errors);
    Ok(())
}

/// The tests of this file.
pub fn tests() -> Suite {
    suite![
        kernels_made_on_the_host_serve_or_are_replaced,
        a_kernel_that_computes_something_wrong_is_replaced,
        a_kernel_that_is_not_present_is_replaced,
    ]
}
