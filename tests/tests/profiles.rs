//! Profiles that were tampered with never reach the generator as anything but numbers and names it
//! owns.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bitnet_codegen::{Error, Phase, emit_kernel, grid};
use bitnet_kernel_tests::Random;
use bitnet_profiles::{
    Choice, Effort, HeadFormat, Host, Isa, KernelId, Layout, Model, Objective, Op, Pick, Pinning,
    Profile, Provenance, Role, Run, Shape, Timed, Tool,
};
use proc_macro2::{TokenStream, TokenTree};

/// Mutants of each profile; all of them take a few seconds.
const MUTANTS: usize = 4_000;

/// Profiles that use every layout, a head and attention, with kernels of an ISA.
fn profiles() -> Vec<Profile> {
    let kernels = grid(Isa::ALL);
    let find = |op: Op, isa: Isa, phase: Phase| {
        kernels
            .iter()
            .find(|id| id.op == op && id.isa == isa && Phase::of(&id.tile) == phase)
            .copied()
    };
    let pick = |kernel: KernelId| {
        let timed = Timed {
            tokens: 1,
            median_us: 12.5,
            mad_us: 0.25,
            gb_per_s: 40.0,
            share_of_limit: 0.75,
            runner_up: Some(kernel),
            runner_up_ratio: Some(1.5),
        };
        Pick { kernel, timed: Some(timed), built_in: kernel }
    };
    let roles = [Role::Qkv, Role::AttnOutput, Role::GateUp, Role::Down];
    let of_isa = |isa: Isa| {
        // Of more layouts than roles those that follow serve other matrices.
        let ternary = Layout::ALL.iter().enumerate().filter_map(|(number, &layout)| {
            let op = Op::Ternary(layout);
            Some(Choice {
                role: roles[number % roles.len()],
                parts: vec![Shape::new(640 << (number / roles.len()), 2560)],
                count: 30,
                layout: op.packing(),
                decode: pick(find(op, isa, Phase::Decode)?),
                prefill: Some(pick(find(op, isa, Phase::Prefill)?)),
                sparse: None,
            })
        });
        let others = [(Role::LmHead, Op::Head(HeadFormat::Q6K)), (Role::Attention, Op::Attention)];
        let others = others.into_iter().filter_map(|(role, op)| {
            Some(Choice {
                role,
                parts: vec![Shape::new(128_256, 2560)],
                count: 1,
                layout: None,
                decode: pick(find(op, isa, Phase::Decode)?),
                prefill: None,
                sparse: None,
            })
        });
        Profile {
            schema: Profile::SCHEMA,
            tool: Tool {
                version: "0.1.0".into(),
                fingerprint: Some("0123456789abcdef".into()),
                objective: Objective::Balanced,
                effort: Effort::Measure,
                date: "2026-11-20".into(),
                library_sha256: Some("ab".repeat(32)),
                provenance: Provenance::Measured,
            },
            host: Host {
                cpu: "A CPU".into(),
                vendor: "AVendor".into(),
                family: 26,
                model: 2,
                stepping: 1,
                isa: vec![isa],
                physical_cores: 2,
                threads: 2,
                l2: 1 << 20,
                l3: 1 << 25,
                read_gb_per_s: Some(50.0),
                noise: Some(0.01),
            },
            model: Model {
                name: "2B-4T".into(),
                architecture: "bitnet-b1.58".into(),
                shapes: "fedcba9876543210".into(),
                path: Some("m.gguf".into()),
            },
            run: Run { threads: 2, pinning: Pinning::Cores, huge_pages: true },
            ops: ternary.chain(others).collect(),
        }
    };
    Isa::ALL.iter().map(|&isa| of_isa(isa)).filter(|profile| !profile.ops.is_empty()).collect()
}

/// Texts that an attacker, or a careless editor, puts in.
const WORDS: &[&str] = &[
    "0",
    "1",
    "2",
    "8",
    "16",
    "32",
    "48",
    "64",
    "256",
    "1024",
    "4096",
    "-1",
    "1000000000",
    "1.5",
    "nan",
    "\"",
    "'",
    "\n",
    "[",
    "]",
    "[[op]]\n",
    "{",
    "}",
    "=",
    "#",
    ".",
    ",",
    ";",
    "../",
    "__",
    "r#fn",
    "fn",
    "unsafe",
    "std::process::exit(0)",
    "}}; mod x { pub fn y() {} }",
    "$(rm)",
    "\\n",
    "\\u0000",
    "\u{0}",
    "\u{202e}",
    "\u{456}",
    "any",
    "m640_k2560",
    "m1_k1",
    "avx2",
    "avx512vnni",
    "scalar",
    "i2_s_t16",
    "i2_s_t32",
    "tl1_t32",
    "tl2_t32",
    "tl2_w32",
    "head_q6_k",
    "attention_f16",
    "_n2_",
    "_u8_",
    "_p64",
    "qkv",
    "lm_head",
    "kernel = ",
    "decode",
    "true",
];

/// Pieces that fit into an id here and there.
const NUMBERS: &[&str] = &["0", "1", "2", "4", "8", "16", "32", "64", "128", "240", "256", "2560"];

/// `text` with one to three edits.
fn mutant(text: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        if random.below(3) > 0 {
            edit_id(&mut bytes, random);
        } else {
            edit(&mut bytes, random);
        }
    }
    bytes
}

/// One field of a kernel's id becomes another.
fn edit_id(bytes: &mut Vec<u8>, random: &mut Random) {
    let mut choose = |words: &'static [&str]| words[random.below(words.len() as u64) as usize];
    // As in `tl1_t32__avx2__any__r32_c240_n1_u2_p0`.
    let (before, words) = match choose(&["shape", "rows", "cols", "tokens", "unroll", "prefetch"]) {
        "shape" => ("__a", &["ny", "m640_k2560", "m1_k2560", "m16777216_k2560"][..]),
        "rows" => ("__r", NUMBERS),
        "cols" => ("_c", NUMBERS),
        "tokens" => ("_n", NUMBERS),
        "unroll" => ("_u", NUMBERS),
        _ => ("_p", &["0", "64", "65", "4096", "16384", "16448"][..]),
    };
    let (shape, word) = (before == "__a", choose(words));
    let fits = |at: &usize| {
        let after = &bytes[at + before.len()..];
        bytes[*at..].starts_with(before.as_bytes())
            && if shape { after.starts_with(b"ny__") } else { after[0].is_ascii_digit() }
    };
    let places: Vec<usize> = (0..bytes.len().saturating_sub(8)).filter(fits).collect();
    if places.is_empty() {
        return;
    }
    let at = places[random.below(places.len() as u64) as usize];
    // The letter of `any` goes too when a shape takes its place.
    let start = if shape && word != "ny" { at + 2 } else { at + before.len() };
    let len = bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
    drop(bytes.splice(start..start + len, word.bytes()));
}

/// Anything becomes anything.
fn edit(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() as u64) as usize;
    let word = WORDS[random.below(WORDS.len() as u64) as usize].bytes();
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => drop(bytes.remove(at)),
        2 => drop(bytes.splice(at..at, word)),
        3 => bytes.truncate(at.max(1)),
        4 => {
            // Some of the text again, elsewhere.
            let end = (at + 1 + random.below(200) as usize).min(bytes.len());
            let part = bytes[at..end].to_vec();
            let to = random.below(bytes.len() as u64) as usize;
            drop(bytes.splice(to..to, part));
        }
        // A whole number or name gives way.
        kind => {
            let digits = |b: &u8| b.is_ascii_digit();
            let letters = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            let inside = |b: &u8| if kind < 7 { digits(b) } else { letters(b) };
            let Some(start) = bytes[at..].iter().position(inside) else { return };
            let start = at + start;
            let len = bytes[start..].iter().take_while(|b| inside(b)).count();
            drop(bytes.splice(start..start + len, word));
        }
    }
}

/// The identifiers in generated code.
fn identifiers(text: &str) -> BTreeSet<String> {
    fn walk(tokens: TokenStream, found: &mut BTreeSet<String>) {
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => drop(found.insert(ident.to_string())),
                TokenTree::Group(group) => walk(group.stream(), found),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(text.parse().unwrap_or_else(|e| panic!("{e} in:\n{text}")), &mut found);
    found
}

/// The identifiers of a kernel, but for its own name; none where its template has no such kernel.
fn of_kernel(id: &KernelId) -> Option<BTreeSet<String>> {
    let text = match emit_kernel(id) {
        Ok(text) => text,
        Err(Error::MissingConstant { .. }) => return None,
        Err(error) => panic!("{id}: {error}"),
    };
    let mut found = identifiers(&text);
    assert!(found.remove(&id.to_string()), "{id} is not the name of its module");
    Some(found)
}

/// Rule 6 for profiles in the project's list of hostile inputs.
#[test]
fn no_profile_changes_the_identifiers_in_generated_code() {
    // A format may have several templates, such as T5's for lookups, which its tiles tell apart.
    let mut expected: BTreeMap<(Op, Isa), BTreeSet<BTreeSet<String>>> = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    for id in grid(Isa::ALL) {
        if kinds.insert((id.op, id.isa, id.tile.cols, id.tile.tokens > 1)) {
            let own = of_kernel(&id).unwrap_or_else(|| panic!("{id} has no template"));
            expected.entry((id.op, id.isa)).or_default().insert(own);
        }
    }
    let mut seen: BTreeSet<KernelId> = grid(Isa::ALL).into_iter().collect();
    let (mut accepted, mut generated, mut all) = (0, 0, 0);
    for (number, profile) in profiles().iter().enumerate() {
        let text = profile.to_text();
        assert_eq!(Profile::parse(&text).as_ref().ok(), Some(profile));
        let mut random = Random::new(number as u64 + 1);
        for _ in 0..MUTANTS {
            let bytes = mutant(&text, &mut random);
            let Ok(text) = std::str::from_utf8(&bytes) else { continue };
            all += 1;
            let parsed = catch_unwind(AssertUnwindSafe(|| Profile::parse(text)));
            let parsed = parsed.unwrap_or_else(|_| panic!("a panic from:\n{text}"));
            let Ok(profile) = parsed else { continue };
            accepted += 1;
            let again = Profile::parse(&profile.to_text());
            assert_eq!(again.as_ref().ok(), Some(&profile), "changed by writing it:\n{text}");
            let picks = profile.ops.iter().flat_map(|op| [Some(&op.decode), op.prefill.as_ref()]);
            let ids = picks
                .flatten()
                .flat_map(|pick| [Some(pick.kernel), pick.runner_up(), Some(pick.built_in)]);
            for id in ids.flatten() {
                // Of some pairs, such as a lookup of words on AVX2, no kernel is ever made.
                if seen.insert(id)
                    && let Some(expected) = expected.get(&(id.op, id.isa))
                    && let Some(found) = of_kernel(&id)
                {
                    assert!(expected.contains(&found), "{id} has {found:?} from:\n{text}");
                    generated += 1;
                }
            }
        }
    }
    // Neither too tame nor too wild.
    assert!(accepted > all / 20 && accepted < all / 2, "{accepted} of {all} are profiles");
    assert!(generated > 100, "{generated} kernels from {accepted} profiles");
}
