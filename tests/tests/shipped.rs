//! The shipped profiles: modelled ones are what the model writes now, all name kernels that exist, and
//! none is slower, by the model, than what would be taken without it.
//!
//! `BLESS=1 cargo test --release -p bitnet-tests --test shipped` writes the modelled ones anew.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bitnet_cli::dummy::DummyShape;
use bitnet_codegen::{Phase, grid};
use bitnet_profiles::registry::{Defaults, Shipped};
use bitnet_profiles::{Effort, Isa, KernelId, KernelSpec, Mode, Profile, Provenance, Role, Sparse};
use bitnet_tuner::machine::kinds::{CLASSES, KINDS, Kind};
use bitnet_tuner::machine::shipped::{PUBLISHED, joined, modelled};
use bitnet_tuner::machine::{Cpu, UNCERTAINTY, predict};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/data")
}

fn file(shipped: &Shipped) -> PathBuf {
    folder().join(format!("{}.toml", shipped.name))
}

/// What stands above a modelled profile's text.
fn header(shipped: &Shipped) -> String {
    let stands_for =
        if shipped.is_class() { "for any CPU of the class, taken to be" } else { "for" };
    format!(
        "# Modelled, not measured: what the machine model (tuner/src/machine.rs) chooses {stands_for}\n\
         # {}. BLESS=1 cargo test --release -p bitnet-tests --test shipped writes it anew.\n",
        Kind::of_profile(&shipped.name).cpu
    )
}

#[test]
fn modelled_profiles_are_what_the_model_writes() {
    let bless = std::env::var_os("BLESS").is_some();
    for shipped in Shipped::all() {
        let path = file(shipped);
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let is_measured = Profile::parse(&found)
            .is_ok_and(|profile| profile.tool.provenance == Provenance::Measured);
        if is_measured {
            continue;
        }
        let written = header(shipped) + &modelled(shipped).to_text();
        if bless {
            std::fs::write(&path, &written).unwrap();
        } else {
            let at = found.lines().zip(written.lines()).position(|(a, b)| a != b);
            assert!(
                found == written,
                "{} is not what the model writes, from line {:?} on; BLESS=1 accepts it",
                path.display(),
                at.map(|line| line + 1)
            );
        }
    }
}

/// Measured profiles of single models, in the folder that MEASURED names, become the shipped one of the CPU
/// they were measured on.
#[test]
#[ignore = "slow: a tool, not a test: MEASURED=folder cargo test --release -p bitnet-tests --test shipped -- --ignored"]
fn join_measured_profiles() {
    let Some(measured) = std::env::var_os("MEASURED") else { return };
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(measured).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let profiles: Vec<Profile> = paths.iter().map(|path| Profile::load(path).unwrap()).collect();
    let profile = joined(&profiles).expect("a folder with profiles");
    let host = &profile.host;
    let best = host.isa.iter().copied().max().unwrap_or(Isa::Scalar);
    let shipped = Defaults::of(&host.vendor, host.family, host.model, best).shipped();
    profile.save(&file(shipped)).unwrap();
}

/// What skips stays with its role when profiles are joined, by the kernels that every build holds.
#[test]
fn joined_profiles_keep_what_skips() {
    let mut own = Shipped::all()[0].profile().clone();
    let op = own.ops.iter_mut().find(|op| op.role == Role::GateUp).unwrap();
    let parts = op.parts.clone();
    let built_in: KernelId = "rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p16".parse().unwrap();
    let kernel: KernelId = KernelSpec { shape: Some(parts[0]), ..*built_in }.validate().unwrap();
    op.mode = Mode::SkipRows;
    op.sparse = Some(Sparse { kernel, built_in, below: 0.5, ratio_at_quarter: Some(0.4) });
    let mut other = own.clone();
    other.ops.iter_mut().for_each(|op| (op.mode, op.sparse) = (Mode::Dense, None));
    let all = joined(&[own, other]).unwrap();
    let all = Profile::parse(&all.to_text()).unwrap();
    let expected = Sparse { kernel: built_in, built_in, below: 0.5, ratio_at_quarter: Some(0.4) };
    let choice = all.choice(Role::GateUp, &parts).unwrap();
    assert_eq!((choice.mode, choice.sparse.as_ref()), (Mode::SkipRows, Some(&expected)));
    assert_eq!(all.ops.iter().filter(|op| op.sparse.is_some()).count(), 1);
}

#[test]
fn every_file_is_in_the_registry_and_every_kind_in_the_model() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected: Vec<String> =
        Shipped::all().iter().map(|shipped| format!("{}.toml", shipped.name)).collect();
    expected.push("registry.toml".into());
    expected.sort();
    assert_eq!(names, expected);
    for shipped in Shipped::all() {
        let is_kind = KINDS.iter().any(|kind| kind.name == shipped.name);
        let is_class = CLASSES.iter().any(|(class, _)| *class == shipped.name);
        assert_eq!(
            (is_kind, is_class),
            (!shipped.is_class(), shipped.is_class()),
            "{}",
            shipped.name
        );
    }
}

/// P22, for every CPU there is a profile for.
#[test]
fn every_shipped_profile_is_sound_and_no_slower_than_none() {
    let kernels: HashSet<KernelId> =
        ["x86_64", "aarch64"].into_iter().flat_map(|arch| grid(Isa::of_arch(arch))).collect();
    for shipped in Shipped::all() {
        let name = &shipped.name;
        // `Profile::parse` holds all bounds, and that both kernels of a choice read its layout.
        let profile = shipped.profile();
        assert!(shipped.text().len() as u64 <= Profile::MAX_BYTES, "{name}");
        let is_modelled = profile.tool.provenance == Provenance::Modelled;
        assert_eq!(profile.tool.effort == Effort::Estimate, is_modelled, "{name}");
        assert_eq!(shipped.text().contains("# Modelled, not measured"), is_modelled, "{name}");
        assert!(profile.tool.fingerprint.is_none() && profile.tool.library_sha256.is_none());

        for id in shipped.kernels.iter().flat_map(|pair| [&pair.decode, &pair.prefill]) {
            assert!(kernels.contains(id), "{name}: {id}");
        }
        for id in &shipped.heads {
            assert!(kernels.contains(id), "{name}: {id}");
        }
        for model in PUBLISHED {
            let config = DummyShape::find(model).map(DummyShape::config).expect(model);
            for job in config.jobs() {
                assert!(
                    profile.choice(job.role, &job.parts).is_some(),
                    "{name} {model} {}",
                    job.role
                );
            }
            let attention = profile.choice(Role::Attention, &config.attention_shapes());
            assert!(attention.is_some(), "{name} {model}");
        }

        let cpu = Cpu::usual(Kind::of_profile(name));
        let threads = profile.run.threads as usize;
        let class = Shipped::all()
            .iter()
            .filter(|other| other.is_class() && shipped.isa.includes(other.isa))
            .flat_map(|class| class.kernels.iter().rev())
            .filter(|pair| {
                pair.decode.op == pair.prefill.op && pair.layout().format().name() == "i2_s"
            })
            .max_by_key(|pair| pair.isa())
            .expect("the scalar one");
        for op in &profile.ops {
            let bytes = 1 << 30;
            let us = |id: &KernelId, tokens: u32| {
                predict(&cpu, id, &op.parts, tokens as usize, threads, bytes).us
            };
            for pick in [Some(&op.decode), op.prefill.as_ref()].into_iter().flatten() {
                for id in
                    [Some(pick.kernel), Some(pick.built_in), pick.runner_up].into_iter().flatten()
                {
                    assert!(kernels.contains(&id), "{name} {}: {id}", op.role);
                    assert!(shipped.isa.includes(id.isa), "{name} {}: {id}", op.role);
                }
                if is_modelled {
                    assert_eq!(
                        (pick.mad_us, pick.built_in),
                        (0.0, pick.kernel),
                        "{name} {}",
                        op.role
                    );
                }
            }
            if let Some(sparse) = &op.sparse {
                for id in [sparse.kernel, sparse.built_in] {
                    assert!(kernels.contains(&id), "{name} {}: {id}", op.role);
                    assert!(shipped.isa.includes(id.isa), "{name} {}: {id}", op.role);
                }
            }
            let Some(prefill) = &op.prefill else { continue };
            // As a profile weighs them: four prompt tokens for one that is written.
            let tokens = f64::from(prefill.tokens);
            let cost = |decode: &KernelId, many: &KernelId| {
                us(decode, 1) + 4.0 * us(many, prefill.tokens) / tokens
            };
            let (own, without) =
                (cost(&op.decode.kernel, &prefill.kernel), cost(&class.decode, &class.prefill));
            assert!(
                own <= (1.0 + UNCERTAINTY) * without,
                "{name} {}: {own:.1} us, and {without:.1} us by the pair of its class",
                op.role
            );
        }
    }
}

/// The pair for shapes that a profile does not list is about as good as what the model chooses for any
/// that it lists. Not as good: leaving the default's format takes a quarter, which the model is not sure
/// of, and one phase may gain more than the other.
#[test]
fn default_pairs_are_close_to_the_choices() {
    for shipped in Shipped::all() {
        let profile = shipped.profile();
        if profile.tool.provenance == Provenance::Measured {
            continue;
        }
        let cpu = Cpu::usual(Kind::of_profile(&shipped.name));
        let threads = profile.run.threads as usize;
        let pair = shipped.kernels.iter().find(|pair| pair.isa() == shipped.isa).unwrap();
        for op in profile.ops.iter().filter(|op| op.layout.is_some()) {
            let rows: usize = op.parts.iter().map(|part| part.rows).sum();
            if rows < 512 * threads {
                // Tall steps share out badly: small matrices on many cores are another matter.
                continue;
            }
            for (phase, pick, default) in [
                (Phase::Decode, Some(&op.decode), pair.decode),
                (Phase::Prefill, op.prefill.as_ref(), pair.prefill),
            ] {
                let pick = pick.unwrap();
                let us = |id: &KernelId| {
                    predict(&cpu, id, &op.parts, pick.tokens as usize, threads, 1 << 30).us
                };
                let (own, default_us) = (us(&pick.kernel), us(&default));
                assert!(
                    default_us <= 1.5 * own,
                    "{} {} {phase:?}: {} takes {own:.1} us, the default {default} {default_us:.1} us",
                    shipped.name,
                    op.role,
                    pick.kernel
                );
            }
        }
    }
}
