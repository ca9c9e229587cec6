//! `bitnet-run pack` as a user runs it.

mod program;

use std::fs;
use std::path::Path;
use std::process::Output;

use program::{command, demo_model, refusal};

/// Runs with a cache of its own; returns stdout and stderr.
fn run(cache: &Path, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } =
        command(args).env("XDG_CACHE_HOME", cache).output().unwrap();
    let errors = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{args:?}: {errors}");
    (String::from_utf8(stdout).unwrap(), errors)
}

#[test]
fn what_is_kept_is_taken_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, model) = (dir.path().join("cache"), dir.path().join("m.gguf"));
    fs::copy(demo_model(), &model).unwrap();
    let path = model.to_str().unwrap();
    let text = ["-m", path, "-p", "ROMEO:", "-n", "12", "--temp", "0"];
    let (wanted, said) = run(&cache, &text);
    assert!(!said.contains("packed weights"), "{said}");
    assert!(!cache.exists(), "nothing is written unasked");
    assert_eq!(run(&cache, &["pack", "--list"]).0, "");

    let (answer, said) = run(&cache, &["pack", "-m", path]);
    assert_eq!(answer, "");
    assert!(said.contains("take it from now on"), "{said}");
    let (list, bounds) = run(&cache, &["pack", "--list"]);
    assert!(list.starts_with("m-") && list.contains(path) && list.lines().count() == 1, "{list}");
    assert!(bounds.contains("1 files") && bounds.contains("at most 16"), "{bounds}");
    let name = list.split_whitespace().next().unwrap().to_owned();
    assert!(cache.join("bitnet/packed").join(&name).exists());

    let (found, said) = run(&cache, &text);
    assert!(said.contains("packed weights: ") && said.contains(&name), "{said}");
    assert_eq!(found, wanted);
    let without = [&text[..], &["--packed", "none"]].concat();
    let (found, said) = run(&cache, &without);
    assert!(!said.contains("packed weights"), "{said}");
    assert_eq!(found, wanted);
    let (_, said) = run(&cache, &["bench", "-m", path, "-p", "0", "-n", "1", "-r", "1"]);
    assert!(said.contains("packed weights: "), "{said}");

    // Other kernels: the text is written, and one line says why the file is not taken.
    let (found, said) = run(&cache, &[&text[..], &["--format", "tl1"]].concat());
    assert_eq!(said.matches("packed weights are not used").count(), 1, "{said}");
    assert_eq!(found, wanted);

    // Packed again, it is replaced; a model that is gone is marked.
    run(&cache, &["pack", "-m", path, "--format", "tl1"]);
    fs::remove_file(&model).unwrap();
    let (list, _) = run(&cache, &["pack", "--list"]);
    assert!(list.contains("tl1") && list.ends_with("(gone)\n"), "{list}");
    assert_eq!(list.lines().count(), 1, "{list}");
    run(&cache, &["pack", "--remove", &name]);
    assert_eq!(run(&cache, &["pack", "--list"]).0, "");
    assert_eq!(fs::read_dir(cache.join("bitnet/packed")).unwrap().count(), 0);
    let missing = command(&["pack", "--remove", &name]).env("XDG_CACHE_HOME", &cache).output();
    assert_eq!(missing.unwrap().status.code(), Some(2));
}

#[test]
fn a_file_elsewhere_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, packed) = (dir.path().join("cache"), dir.path().join("a.packed"));
    let (packed, model) = (packed.to_str().unwrap(), demo_model());
    let (_, said) = run(&cache, &["pack", "-m", &model, "-o", packed]);
    assert!(said.contains(&format!("--packed {packed}")), "{said}");
    assert!(!cache.exists());
    let text = ["-m", &model, "-p", "ROMEO:", "-n", "6", "--temp", "0"];
    let (wanted, _) = run(&cache, &text);
    let (found, said) = run(&cache, &[&text[..], &["--packed", packed]].concat());
    assert!(said.contains(&format!("packed weights: {packed}")), "{said}");
    assert_eq!(found, wanted);

    run(&cache, &["pack", "-m", &model]);
    run(&cache, &["pack", "--remove", "all"]);
    assert_eq!(run(&cache, &["pack", "--list"]).0, "");
    assert!(Path::new(packed).exists(), "only the cache's own are removed");

    // Cut short it is left alone; named and not there it is an error.
    let whole = fs::read(packed).unwrap();
    fs::write(packed, &whole[..whole.len() / 2]).unwrap();
    let (found, said) = run(&cache, &[&text[..], &["--packed", packed]].concat());
    assert_eq!(said.matches("packed weights are not used").count(), 1, "{said}");
    assert_eq!(found, wanted);
    let none = dir.path().join("none");
    let said = refusal(&[&text[..], &["--packed", none.to_str().unwrap()]].concat(), 6);
    assert!(said.contains("none"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    refusal(&["pack"], 2);
    refusal(&["pack", "--list", "-m", &demo_model()], 2);
    refusal(&["pack", "--list", "-o", "x"], 2);
    let missing = refusal(&["pack", "-m", "no-such.gguf"], 6);
    assert!(missing.contains("no-such.gguf"), "{missing}");
    let folder = refusal(&["pack", "-m", &demo_model(), "-o", "/nonexistent/x.packed"], 6);
    assert!(folder.contains("/nonexistent/x.packed"), "{folder}");
}
