//! No test is left out by mistake: a file without libtest's harness has a `main`, which lists
//! its tests, and no `#[test]`, which would be dropped without a word.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The Rust files of a test: `tests/name.rs`, or all in `tests/name/` where that has a `main.rs`.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let paths = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

#[test]
fn suites_list_all_their_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &Path| -> toml::Table {
        fs::read_to_string(path.join("Cargo.toml")).unwrap().parse().unwrap()
    };
    let mut suites = 0;
    for member in read(&root)["workspace"]["members"].as_array().unwrap() {
        let package = root.join(member.as_str().unwrap());
        let manifest = read(&package);
        let tests = manifest.get("test").and_then(|tests| tests.as_array());
        let own_harness: BTreeSet<&str> = tests
            .into_iter()
            .flatten()
            .filter(|test| test.get("harness").and_then(|value| value.as_bool()) == Some(false))
            .map(|test| test["name"].as_str().unwrap())
            .collect();
        let Ok(entries) = fs::read_dir(package.join("tests")) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let is_test = path.extension().is_some_and(|end| end == "rs");
            if !is_test && !path.join("main.rs").exists() {
                continue;
            }
            let own = own_harness.contains(path.file_stem().unwrap().to_str().unwrap());
            let texts: Vec<String> =
                sources(&path).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
            let main =
                texts.iter().any(|text| text.lines().any(|line| line.starts_with("fn main()")));
            let marked = texts.iter().any(|text| text.lines().any(|line| line.trim() == "#[test]"));
            let shown = path.display();
            assert_eq!(own, main, "{shown}: `harness = false` in Cargo.toml, and `fn main()`");
            assert!(!(own && marked), "{shown}: a `#[test]`, which its harness does not run");
            suites += usize::from(own);
        }
    }
    assert!(suites > 5, "{suites}");
}
