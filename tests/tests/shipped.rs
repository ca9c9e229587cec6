//! The shipped profiles: all name kernels that exist and that their CPUs run, and list the shapes of the
//! published models.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bitnet_cli::dummy::DummyShape;
use bitnet_codegen::grid;
use bitnet_profiles::registry::{Defaults, Shipped, published};
use bitnet_profiles::{
    Effort, Isa, KernelId, KernelSpec, Model, Pick, Pinning, Profile, Provenance, Role, Run, Shape,
    Sparse, shapes_hash,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/data")
}

/// Measured profiles of single models, in the folder that MEASURED names, become what was measured for
/// the shipped profile of the CPU they were measured on.
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
    let text = compact(&profile);
    std::fs::write(folder().join(format!("{}.toml", shipped.name)), text).unwrap();
}

/// One profile of all shapes from measured ones of single models on one host: the first one's host and
/// tool, and every job once. Host-made kernels give way to their built-in fallbacks.
///
/// Nothing where there are none.
fn joined(measured: &[Profile]) -> Option<Profile> {
    let mut all = measured.first()?.clone();
    all.ops.clear();
    for op in measured.iter().flat_map(|profile| &profile.ops) {
        if all.choice(op.role, &op.parts).is_some() {
            continue;
        }
        let mut op = op.clone();
        if let Some(sparse) = &mut op.sparse {
            sparse.kernel = sparse.built_in;
        }
        for pick in [Some(&mut op.decode), op.prefill.as_mut()].into_iter().flatten() {
            if pick.kernel.shape.is_some() {
                pick.kernel = pick.built_in;
            }
            if let Some(timed) = &mut pick.timed {
                timed.runner_up = timed.runner_up.filter(|id| id.shape.is_none());
                timed.runner_up_ratio = timed.runner_up.and(timed.runner_up_ratio);
            }
        }
        all.ops.push(op);
    }
    all.tool.fingerprint = None;
    all.tool.library_sha256 = None;
    // How to run is every machine's own affair.
    all.run = Run { pinning: Pinning::None, huge_pages: true, ..all.run };
    all.model = Model {
        name: "published shapes".into(),
        architecture: "any".into(),
        shapes: shapes_hash(all.ops.iter().map(|op| (op.role, &op.parts[..], op.count))),
        path: None,
    };
    Some(all)
}

/// The text of a profile, with a line for each kernel.
fn compact(profile: &Profile) -> String {
    let line = |name: &str, fields: String| {
        format!("{name} = {{ {} }}\n", fields.lines().collect::<Vec<_>>().join(", "))
    };
    let pick = |name: &str, pick: &Pick| line(name, toml::to_string(pick).unwrap());
    let text = Profile { ops: Vec::new(), ..profile.clone() }.to_text();
    let mut text = text.replace("op = []\n", "");
    for op in &profile.ops {
        let parts: Vec<String> =
            op.parts.iter().map(|part| format!("[{}, {}]", part.rows, part.cols)).collect();
        text += "\n[[op]]\n";
        text += &format!("role = \"{}\"\nparts = [{}]\n", op.role, parts.join(", "));
        text += &format!("count = {}\n", op.count);
        text += &op.layout.map_or(String::new(), |layout| format!("layout = \"{layout}\"\n"));
        text += &pick("decode", &op.decode);
        text += &op.prefill.as_ref().map_or(String::new(), |own| pick("prefill", own));
        if let Some(sparse) = &op.sparse {
            text += &line("sparse", toml::to_string(sparse).unwrap());
        }
    }
    text
}

#[test]
fn a_joined_profile_holds_what_was_measured() {
    let measured = Shipped::all().iter().map(Shipped::profile);
    let measured = measured.filter(|profile| profile.tool.provenance == Provenance::Measured);
    for profile in measured {
        let text = compact(profile);
        assert_eq!(Profile::parse(&text).as_ref().unwrap(), profile);
        assert!(text.lines().count() < 400, "{}", text.lines().count());
        assert_eq!(&joined(&[profile.clone(), profile.clone()]).unwrap(), profile);
    }
}

/// Kernels that skip stay with their role when profiles are joined, by the kernels that every build holds.
#[test]
fn joined_profiles_keep_what_skips() {
    let mut own = Shipped::all()[0].profile().clone();
    let op = own.ops.iter_mut().find(|op| op.role == Role::GateUp).unwrap();
    let parts = op.parts.clone();
    let built_in: KernelId = "rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p16".parse().unwrap();
    let kernel: KernelId = KernelSpec { shape: Some(parts[0]), ..*built_in }.validate().unwrap();
    op.sparse = Some(Sparse { kernel, built_in, below: 0.5, ratio_at_quarter: Some(0.4) });
    let mut other = own.clone();
    other.ops.iter_mut().for_each(|op| op.sparse = None);
    let all = joined(&[own, other]).unwrap();
    let all = Profile::parse(&compact(&all)).unwrap();
    let expected = Sparse { kernel: built_in, built_in, below: 0.5, ratio_at_quarter: Some(0.4) };
    let choice = all.choice(Role::GateUp, &parts).unwrap();
    assert_eq!(choice.sparse.as_ref(), Some(&expected));
    assert_eq!(all.ops.iter().filter(|op| op.sparse.is_some()).count(), 1);
}

#[test]
fn every_file_is_of_a_measured_profile() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let measured = |shipped: &&Shipped| shipped.profile().tool.provenance == Provenance::Measured;
    let mut expected: Vec<String> = Shipped::all()
        .iter()
        .filter(measured)
        .map(|shipped| format!("{}.toml", shipped.name))
        .collect();
    expected.push("registry.toml".into());
    expected.sort();
    assert_eq!(names, expected);
    let text = |name: &String| std::fs::read_to_string(folder().join(name)).unwrap();
    let lines: usize = names.iter().map(|name| text(name).lines().count()).sum();
    assert!(lines < 2500, "{lines}");
}

/// The registry's models have the jobs that the runtime makes of their hyperparameters.
#[test]
fn published_models_are_what_the_runtime_knows() {
    for model in published() {
        let config = DummyShape::find(&model.name).map(DummyShape::config).unwrap();
        let ternary = config.jobs().into_iter().map(|job| (job.role, job.parts, job.count));
        let attention = config.attention_shapes().to_vec();
        let others = [
            (Role::LmHead, vec![Shape::new(config.vocab, config.hidden)], 1),
            (Role::Attention, attention, config.layers as u32),
        ];
        let expected: Vec<_> = ternary.chain(others).collect();
        assert_eq!(model.jobs().to_vec(), expected, "{}", model.name);
        for shipped in Shipped::all() {
            let lists = |(role, parts, _): &(Role, Vec<Shape>, u32)| {
                shipped.profile().choice(*role, parts).is_some()
            };
            assert!(expected.iter().all(lists), "{} {}", shipped.name, model.name);
        }
    }
    assert_eq!(published().len(), 9);
}

/// P22, for every CPU there is a profile for.
#[test]
fn every_shipped_profile_is_sound() {
    let kernels: HashSet<KernelId> =
        ["x86_64", "aarch64"].into_iter().flat_map(|arch| grid(Isa::of_arch(arch))).collect();
    for shipped in Shipped::all() {
        let name = &shipped.name;
        let profile = shipped.profile();
        // It holds all bounds, and both kernels of a choice read its layout.
        let text = profile.to_text();
        assert!(text.len() as u64 <= Profile::MAX_BYTES, "{name}");
        assert_eq!(Profile::parse(&text).as_ref().ok(), Some(profile), "{name}");
        assert!(profile.tool.fingerprint.is_none() && profile.tool.library_sha256.is_none());
        let is_modelled = profile.tool.provenance == Provenance::Modelled;
        assert_eq!(profile.tool.effort == Effort::Estimate, is_modelled, "{name}");
        assert_eq!(profile.host.noise.is_none(), is_modelled, "{name}");

        let pairs = shipped.kernels.iter().chain(&shipped.blocks);
        let pairs = pairs.flat_map(|pair| [&pair.decode, &pair.prefill]);
        for id in pairs.chain(shipped.heads.iter().chain(&shipped.gathers)) {
            assert!(kernels.contains(id), "{name}: {id}");
        }
        // The published shapes take the first, and published heads are of f16.
        assert_eq!(shipped.kernels[0].isa(), shipped.isa, "{name}");
        for op in &profile.ops {
            for (_, pick) in op.picks() {
                assert_eq!(pick.timed.is_none(), is_modelled, "{name} {}", op.role);
                let Pick { kernel, built_in, .. } = pick;
                for id in [Some(*kernel), Some(*built_in), pick.runner_up()].into_iter().flatten() {
                    assert!(kernels.contains(&id), "{name} {}: {id}", op.role);
                    assert!(shipped.isa.includes(id.isa), "{name} {}: {id}", op.role);
                }
                assert_eq!(kernel, built_in, "{name} {}", op.role);
            }
            if let Some(sparse) = &op.sparse {
                for id in [sparse.kernel, sparse.built_in] {
                    assert!(kernels.contains(&id), "{name} {}: {id}", op.role);
                    assert!(shipped.isa.includes(id.isa), "{name} {}: {id}", op.role);
                }
            }
        }
    }
}
