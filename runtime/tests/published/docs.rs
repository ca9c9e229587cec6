//! The list of published files in docs/models.md.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use super::fixture::{Fixture, Listing};

const INTRODUCTION: &str = "\
# Published files

What becomes of the ternary models that people publish. Each row is a test: a small random model with the
header of that file, the same keys, types and names of tensors in the same order, is opened and writes, or
is refused by the name of what is missing. `*`: part of the header was not printed anywhere, and is as the
file's converter writes it; `runtime/tests/published/files/` says for each where it was found.
`BLESS=1 cargo test --release -p bitnet-runtime --test published` writes this page.

| repository | file | types | result |
|---|---|---|---|
";

/// Makes the page.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for fixture in Fixture::all() {
        let Fixture { repository, file, types, .. } = &fixture;
        let mark = if fixture.listing == Listing::Whole { "" } else { " `*`" };
        let types: Vec<&str> = types.keys().map(String::as_str).collect();
        let result = match (&fixture.runs, &fixture.refused) {
            (Some(runs), _) if runs.warnings.is_empty() => "runs".to_owned(),
            (Some(runs), _) => format!("runs, with a warning of {}", runs.warnings.join(", ")),
            (_, Some(refused)) => {
                let (item, found) = (&refused.item, &refused.found);
                format!("refused ({item}: found {found}): {}", refused.because)
            }
            _ => unreachable!("a fixture either runs or is refused"),
        };
        let types = types.join(", ");
        writeln!(page, "| {repository} | {file}{mark} | {types} | {result} |").unwrap();
    }
    page
}

/// The page in the repository is the one that the fixtures make.
pub fn list_every_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md");
    let page = page();
    if env::var_os("BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, page).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap();
    let how = "run `BLESS=1 cargo test --release -p bitnet-runtime --test published`";
    assert!(found == page, "docs/models.md lists other files or results: {how}");
}
