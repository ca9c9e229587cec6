//! Choices of shipped profiles and of the files of former versions stay the same.

use std::collections::{BTreeSet, HashMap};

use bitnet_profiles::registry::{Defaults, Shipped};
use bitnet_profiles::{HeadFormat, Isa, KernelId, Op, Profile, Role, Shape};

/// Every choice of version 0.1, whose shipped profiles listed each role and shape.
const BEFORE: &str = include_str!("data/choices-before.txt");

/// Kernels for one token and for many, and what skips with the share of lines below which it does.
#[derive(Debug, PartialEq, Clone, Copy)]
struct Kernels {
    decode: KernelId,
    prefill: Option<KernelId>,
    sparse: Option<(KernelId, f64)>,
}

fn job(text: &str) -> (Role, Vec<Shape>) {
    let mut words = text.split(' ');
    let role = words.next().unwrap().parse().unwrap();
    let shape = |text: &str| {
        let (rows, cols) = text.split_once('x').unwrap();
        Shape::new(rows.parse().unwrap(), cols.parse().unwrap())
    };
    (role, words.map(shape).collect())
}

/// For each CPU the kernels of each job.
fn before() -> Vec<(&'static str, HashMap<usize, Kernels>)> {
    let jobs = jobs();
    let ternary = |number: &usize| !matches!(jobs[*number].0, Role::LmHead | Role::Attention);
    let kernel = |text: &str| (text != "-").then(|| text.parse().unwrap());
    let mut all: Vec<(&str, HashMap<usize, Kernels>)> = Vec::new();
    let mut others = Vec::new();
    for line in BEFORE.lines().filter(|line| !line.starts_with(['#', 'j'])) {
        if let Some(name) = line.strip_prefix("cpu ") {
            all.push((name, HashMap::new()));
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let kernels = Kernels {
            decode: kernel(words[0]).unwrap(),
            prefill: kernel(words[1]),
            sparse: kernel(words[2]).map(|id| (id, words[3].parse().unwrap())),
        };
        let (_, own) = all.last_mut().unwrap();
        match words.get(4) {
            Some(numbers) => {
                own.extend(numbers.split(',').map(|n| (n.parse().unwrap(), kernels)));
            }
            None => others.push((all.len() - 1, kernels)),
        }
    }
    for (cpu, kernels) in others {
        for number in (0..jobs.len()).filter(ternary) {
            all[cpu].1.entry(number).or_insert(kernels);
        }
    }
    all
}

fn jobs() -> Vec<(Role, Vec<Shape>)> {
    let listed = BEFORE.lines().filter_map(|line| line.strip_prefix("job "));
    listed.map(|line| job(line.split_once(' ').unwrap().1)).collect()
}

/// The CPU that a profile is for, by vendor, family and model.
fn numbers(shipped: &Shipped) -> (&str, u32, u32) {
    shipped.cpus.first().map_or(("", 0, 0), |cpus| (&cpus.vendor, cpus.family, cpus.models[0].0))
}

#[test]
fn every_choice_is_what_it_was() {
    let (jobs, before) = (jobs(), before());
    let names: Vec<&str> = Shipped::all().iter().map(|shipped| shipped.name.as_str()).collect();
    assert_eq!(before.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    assert_eq!((names.len(), jobs.len()), (29, 44));
    for (shipped, (name, kernels)) in Shipped::all().iter().zip(&before) {
        let (vendor, family, model) = numbers(shipped);
        let defaults = Defaults::of(vendor, family, model, shipped.isa);
        assert_eq!(defaults.shipped().name, *name);
        let profile = shipped.profile();
        let listed: BTreeSet<String> =
            profile.ops.iter().map(|op| format!("{} {:?}", op.role, op.parts)).collect();
        assert_eq!((listed.len(), profile.ops.len()), (jobs.len(), jobs.len()), "{name}");
        for (number, (role, parts)) in jobs.iter().enumerate() {
            let found = match role {
                Role::LmHead => Kernels {
                    decode: defaults.head(HeadFormat::F16, parts[0], shipped.isa).unwrap(),
                    prefill: None,
                    sparse: None,
                },
                Role::Attention => Kernels {
                    decode: defaults.attention(parts, shipped.isa).unwrap(),
                    prefill: None,
                    sparse: None,
                },
                _ => {
                    let pair = defaults.pair(*role, parts, None, shipped.isa);
                    let sparse = defaults.lines(*role, parts, None, shipped.isa);
                    Kernels {
                        decode: pair.decode,
                        prefill: Some(pair.prefill),
                        sparse: sparse.map(|sparse| (sparse.kernel, sparse.below)),
                    }
                }
            };
            assert_eq!(found, kernels[&number], "{name}: {role} {parts:?}");
            // The whole profile, as it is shown, says so too.
            let choice = profile.choice(*role, parts).unwrap();
            let shown = Kernels {
                decode: choice.decode.kernel,
                prefill: choice.prefill.as_ref().map(|pick| pick.kernel),
                sparse: choice.sparse.as_ref().map(|sparse| (sparse.kernel, sparse.below)),
            };
            assert_eq!(shown, found, "{name}: {role} {parts:?}");
        }
    }
}

/// A head of another format than the published ones takes the kernel of its own format.
#[test]
fn heads_of_any_format_take_a_kernel_of_it_or_none() {
    for shipped in Shipped::all() {
        let (vendor, family, model) = numbers(shipped);
        let defaults = Defaults::of(vendor, family, model, shipped.isa);
        for &format in HeadFormat::ALL {
            let head = defaults.head(format, Shape::new(128_256, 2560), shipped.isa);
            let fits = |id: KernelId| id.op == Op::Head(format) && id.isa.is_within(shipped.isa);
            assert!(head.is_none_or(fits), "{}: {head:?}", shipped.name);
        }
    }
}

/// A file of version 0.1, written on a CPU with AVX-512, for four roles of a model that skips: each had a
/// `mode`, which the sparse kernels' names say.
#[test]
fn a_profile_of_version_0_1_still_loads() {
    let text = include_str!("data/version-0.1.toml");
    for mode in ["dense", "skip_rows", "axpy"] {
        assert!(text.contains(&format!("mode = \"{mode}\"")), "{mode}");
    }
    let profile = Profile::parse(text).unwrap();
    assert_eq!(profile.ops.len(), 4);
    let sparse = |role: Role| {
        let op = profile.ops.iter().find(|op| op.role == role).unwrap();
        op.sparse.as_ref().map(|sparse| sparse.kernel.to_string())
    };
    assert_eq!(sparse(Role::Qkv), None);
    let rows = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p16";
    assert_eq!(sparse(Role::GateUp).as_deref(), Some(rows));
    let columns = "columns_t5_l64__avx512vbmi__any__r320_c32_n1_u1_p32";
    assert_eq!(sparse(Role::Down).as_deref(), Some(columns));
    assert_eq!(profile.host.isa.iter().max(), Some(&Isa::Avx512Vbmi));
    let written = profile.to_text();
    assert!(!written.contains("mode = "));
    assert_eq!(Profile::parse(&written).unwrap(), profile);
    // Nothing but `mode` goes.
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("mode = ")).collect();
    assert_eq!(written.trim_end(), without.join("\n"));
}
