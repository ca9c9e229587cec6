//! The generator: the same text every time and everywhere, readable, and changed by a spec only
//! where the spec says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::{env, fs};

use bitnet_codegen::{emit_cdylib, emit_kernel, emit_library, grid};
use bitnet_kernels as builtin;
use bitnet_profiles::{Isa, KernelId, KernelSpec, Op, Shape, TileConfig};
use similar::TextDiff;

fn emit(id: &KernelId) -> String {
    emit_kernel(id).unwrap_or_else(|error| panic!("{error}"))
}

/// For each template its first kernel, the scalar one where there is one, and, of each architecture,
/// its last one, which is for the best ISA that has it.
fn examples() -> BTreeSet<KernelId> {
    let mut examples = BTreeSet::new();
    for arch in ["x86_64", "aarch64"] {
        let mut by_template: BTreeMap<String, Vec<KernelId>> = BTreeMap::new();
        for id in grid(Isa::of_arch(arch)) {
            let header = emit(&id).lines().next().unwrap_or_default().to_string();
            by_template.entry(header).or_default().push(id);
        }
        for ids in by_template.values() {
            // Only one tier multiplies matrices.
            let matrices = |id: &KernelId| id.isa.multiplies_matrices();
            assert!(ids[0].isa == Isa::Scalar || ids.iter().all(matrices), "{}", ids[0]);
            examples.insert(ids[0]);
            examples.extend(ids.iter().rfind(|id| id.isa != Isa::Scalar));
        }
    }
    // Those that only one architecture has give fewer.
    assert!(examples.len() >= 3 * bitnet_templates::TEMPLATES.len() - 4, "{examples:?}");
    examples
}

/// This process, another emission in it, and the build script, which ran elsewhere and earlier.
#[test]
fn emission_is_deterministic() {
    let ids = grid(Isa::of_arch(env::consts::ARCH));
    let text = emit_library(&ids).unwrap();
    assert!(text == emit_library(&ids).unwrap(), "two emissions differ");
    assert!(text == builtin::SOURCE, "the runtime was built from another text");
    assert_eq!(builtin::FINGERPRINT, bitnet_codegen::fingerprint());
    let mut table: Vec<&str> =
        builtin::TERNARY.iter().map(|entry| entry.id.text().unwrap()).collect();
    table.extend(builtin::BLOCKS.iter().map(|entry| entry.id.text().unwrap()));
    table.extend(builtin::HEADS.iter().map(|entry| entry.id.text().unwrap()));
    table.extend(builtin::SKETCHES.iter().map(|entry| entry.id.text().unwrap()));
    table.extend(builtin::ATTENTION.iter().map(|entry| entry.id.text().unwrap()));
    table.extend(builtin::LINES.iter().map(|entry| entry.id.text().unwrap()));
    let named: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(table.len(), ids.len());
    for id in table {
        assert!(named.contains(id), "{id} is in no row of the space");
    }
}

#[test]
fn emitted_text_knows_nothing_of_the_machine() {
    let text = emit_library(&grid(Isa::ALL)).unwrap();
    let paths = env::vars_os().filter_map(|(name, value)| Some((name, value.into_string().ok()?)));
    for (name, path) in paths.filter(|(_, value)| value.len() > 1 && value.starts_with('/')) {
        assert!(!text.contains(&path), "the value of {name:?}, {path}, is in the emitted text");
    }
    for line in text.lines() {
        // 2026-01-31 and its like.
        let digits = |s: &[u8]| s.iter().all(u8::is_ascii_digit);
        let dated = line.as_bytes().windows(10).any(|w| {
            digits(&w[..4]) && w[4] == b'-' && digits(&w[5..7]) && w[7] == b'-' && digits(&w[8..])
        });
        assert!(!dated, "a date: {line}");
    }
}

#[test]
fn kernels_open_with_their_origin_and_parse() {
    for id in examples() {
        let text = emit(&id);
        let first = text.lines().next().unwrap();
        let path = first
            .strip_prefix("// @generated from ")
            .and_then(|rest| rest.strip_suffix(" by bitnet-codegen; do not edit"))
            .unwrap_or_else(|| panic!("{id} opens with {first}"));
        let source = bitnet_templates::TEMPLATES.iter().find(|source| source.path == path);
        assert!(source.is_some(), "{id}: {path} is no template");
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{id}: {error}"));
        let [syn::Item::Mod(module)] = &file.items[..] else {
            panic!("{id}: not one module");
        };
        assert_eq!(module.ident, id.to_string());
        let (_, items) = module.content.as_ref().unwrap();
        let names: &[&str] = match id.op {
            Op::Sketch(_) => &["run"],
            Op::Attention => &["scratch", "run"],
            _ => &["scratch", "prepare", "run"],
        };
        for name in names {
            let found = items.iter().any(|item| {
                matches!(item, syn::Item::Fn(f) if f.sig.ident == *name && f.sig.abi.is_some())
            });
            assert!(found, "{id}: no `extern \"C\" fn {name}`");
        }
        assert!(!text.contains("cfg(test)"), "{id}: a test was emitted");
        for (number, line) in text.lines().enumerate() {
            assert!(!line.ends_with(' '), "{id}: line {} ends with a space", number + 1);
        }
    }
    syn::parse_file(&emit_library(&grid(Isa::ALL)).unwrap()).unwrap();
}

/// The lines that differ between two kernels with as many lines, without the one that names them.
fn changed_lines(a: &KernelId, b: &KernelId) -> Vec<(String, String)> {
    let (first, second) = (emit(a), emit(b));
    assert_eq!(first.lines().count(), second.lines().count(), "{a}, {b}");
    let pairs = first.lines().zip(second.lines());
    pairs
        .filter(|(x, y)| x != y && *x != format!("pub mod {a} {{"))
        .map(|(x, y)| (x.trim().to_string(), y.trim().to_string()))
        .collect()
}

#[test]
fn a_constant_changes_its_line_and_no_other() {
    let spec = |id: &str| *id.parse::<KernelId>().unwrap_or_else(|e| panic!("{e}")).spec();
    let vnni = spec("i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0");
    let avx2 = spec("i2_s_t16__avx2__any__r16_c64_n1_u1_p0");
    let tile = |spec: KernelSpec, tile| KernelSpec { tile, ..spec };
    let cases = [
        (vnni, tile(vnni, TileConfig { rows: 32, ..vnni.tile }), "ROWS", 16, 32),
        (vnni, tile(vnni, TileConfig { unroll: 4, ..vnni.tile }), "UNROLL", 2, 4),
        (vnni, tile(vnni, TileConfig { prefetch: 4096, ..vnni.tile }), "PREFETCH", 0, 4096),
        (vnni, tile(vnni, TileConfig { tokens: 8, ..vnni.tile }), "TOKENS", 1, 8),
        (avx2, tile(avx2, TileConfig { cols: 128, ..avx2.tile }), "BLOCK", 64, 128),
        (vnni, KernelSpec { shape: Some(Shape::new(6912, 2560)), ..vnni }, "COLS", 0, 2560),
    ];
    for (before, after, name, from, to) in cases {
        let changed = changed_lines(&before.validate().unwrap(), &after.validate().unwrap());
        let line = |value: i32| format!("const {name}: usize = {value};");
        assert_eq!(changed, [(line(from), line(to))]);
    }
}

/// The columns of a shape reach every template, which decide by them where they are known.
#[test]
fn a_shape_changes_one_line_of_every_template() {
    // Columns are a list of any length.
    let has_columns = |id: &KernelId| !matches!(id.op, Op::Columns(_));
    for generic in examples().into_iter().filter(has_columns) {
        let shape = Some(Shape::new(4096, 512));
        let own = KernelSpec { shape, ..*generic.spec() }.validate().unwrap();
        let (before, after) =
            ("const COLS: usize = 0;".to_string(), "const COLS: usize = 512;".to_string());
        assert_eq!(changed_lines(&generic, &own), [(before, after)], "{own}");
        assert!(emit(&own).contains(" = if COLS == 0 { call."), "{own}");
    }
}

/// A library made on the host: what it exports is known without `std`, and it holds what its kernels
/// use and nothing else.
#[test]
fn a_library_of_its_own_has_what_it_uses() {
    let id = |text: &str| text.parse::<KernelId>().unwrap();
    let ternary = id("i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u2_p0");
    let head = id("head_q6_k__avx2__any__r1_c0_n1_u1_p0");
    let text = emit_cdylib(&[ternary, head]).unwrap();
    assert!(text == emit_cdylib(&[ternary, head]).unwrap(), "two emissions differ");
    let file = syn::parse_file(&text).unwrap();
    let modules = |items: &[syn::Item]| -> Vec<String> {
        let name = |item: &syn::Item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        };
        items.iter().filter_map(name).collect()
    };
    let kernels = [ternary.to_string(), head.to_string()];
    let before = ["abi", "quads", "isa"].map(String::from);
    let expected = [&before[..], &kernels[..], &["vector__avx2".into()]];
    assert_eq!(modules(&file.items), expected.concat());
    let without = syn::parse_file(&emit_cdylib(&[head]).unwrap()).unwrap();
    assert!(!modules(&without.items).contains(&"quads".into()));
    let isa = file.items.iter().find_map(|item| match item {
        syn::Item::Mod(module) if module.ident == "isa" => module.content.as_ref(),
        _ => None,
    });
    assert_eq!(modules(&isa.unwrap().1), ["avx2", "avx512", "avx512vnni"]);
    for needed in ["#![no_std]", "BITNET_KERNELS_HEADER", "BITNET_KERNELS_TABLES"] {
        assert!(text.contains(needed), "{needed}");
    }
    assert!(text.contains(&bitnet_codegen::fingerprint()));
    assert!(!text.contains("std::"), "needs std");

    let scalar = id("i2_s_t16__scalar__any__r16_c0_n1_u1_p0");
    let error = emit_cdylib(&[ternary, scalar]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{scalar}: scalar kernels need")), "{error}");
}

#[test]
fn an_isa_changes_its_import_and_the_target_features() {
    let avx2: KernelId = "i2_s_t16__avx2__any__r16_c64_n1_u1_p0".parse().unwrap();
    let avx512 = KernelSpec { isa: Isa::Avx512, ..*avx2.spec() }.validate().unwrap();
    let changed = changed_lines(&avx2, &avx512);
    let (imports, features): (Vec<_>, Vec<_>) =
        changed.into_iter().partition(|(line, _)| line.starts_with("use "));
    assert_eq!(
        imports,
        [("use super::isa::avx2 as isa;".into(), "use super::isa::avx512 as isa;".into())]
    );
    assert!(!features.is_empty());
    let attribute = |isa: Isa| format!("#[target_feature(enable = \"{}\")]", isa.target_features());
    for lines in features {
        assert_eq!(lines, (attribute(Isa::Avx2), attribute(Isa::Avx512)));
    }
}

/// The golden files by name. For each template the whole text of one example, its first; and in
/// `tiers.diff` how the others differ from it: constants, vocabulary, features.
fn golden() -> BTreeMap<String, String> {
    let mut by_template: BTreeMap<String, Vec<(KernelId, String)>> = BTreeMap::new();
    for id in examples() {
        let text = emit(&id);
        let header = text.lines().next().unwrap_or_default().to_string();
        by_template.entry(header).or_default().push((id, text));
    }
    assert_eq!(by_template.len(), bitnet_templates::TEMPLATES.len());
    let (mut files, mut tiers) = (BTreeMap::new(), String::new());
    for mut examples in by_template.into_values() {
        examples.sort_by_key(|(id, _)| (id.isa, *id));
        let (base, whole) = examples.remove(0);
        for (id, text) in examples {
            let diff = TextDiff::from_lines(&whole, &text);
            let (from, to) = (format!("{base}.rs"), format!("{id}.rs"));
            let diff = diff.unified_diff().context_radius(0).header(&from, &to).to_string();
            assert!(diff.lines().count() < whole.lines().count() / 2, "{id} is unlike {base}");
            tiers.push_str(&diff);
        }
        files.insert(format!("{base}.rs"), whole);
    }
    files.insert("tiers.diff".to_string(), tiers);
    files
}

/// Changes to templates and generator are to be looked at where they end up.
#[test]
fn kernels_are_as_blessed() {
    const HOW: &str = "run `BLESS=1 cargo test --release -p bitnet-tests --test generator`, and \
                       look at the difference before it is committed";
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let expected = golden();
    let found: BTreeSet<String> = fs::read_dir(&folder)
        .map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    if env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::create_dir_all(&folder).unwrap();
        for stale in found.iter().filter(|name| !expected.contains_key(*name)) {
            fs::remove_file(folder.join(stale)).unwrap();
        }
        for (name, text) in expected {
            fs::write(folder.join(name), text).unwrap();
        }
        return;
    }
    assert!(found.iter().eq(expected.keys()), "tests/golden holds other kernels: {HOW}");
    for (name, text) in expected {
        let golden = fs::read_to_string(folder.join(&name)).unwrap();
        if golden != text {
            let same = golden.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
            panic!(
                "tests/golden/{name}, line {}: `{}` became `{}`; if that is meant, {HOW}",
                same + 1,
                golden.lines().nth(same).unwrap_or("(the end)"),
                text.lines().nth(same).unwrap_or("(the end)"),
            );
        }
    }
}
