//! The table as people read it: docs/flags.md, and a summary for the help.

use std::fmt::Write;

use super::{Fate, Flag, GROUPS, Program, Value, flags_of};

/// Returns the text of docs/flags.md.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for group in GROUPS {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {}\n\n| flag | command | here | variable |\n", group.title);
        page += "|---|---|---|---|\n";
        for flag in group.flags {
            let programs = [Program::Run, Program::Serve, Program::Bench].into_iter();
            let commands: Vec<&str> = programs.filter(|p| flag.is_for(*p)).map(name).collect();
            let variable = flag.variable.map_or_else(String::new, |name| format!("`{name}`"));
            let row = [spelt(flag), commands.join(", "), here(flag), variable];
            let _ = writeln!(page, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
    }
    page
}

const HEAD: &str = "\
# Flags

<!-- Generated from runtime/cli/src/flags/; do not edit.
     BLESS=1 cargo test --release -p bitnet-cli --test flags writes it again. -->

Every flag of llama.cpp (llama-completion, llama-cli, llama-server and llama-bench of October 2026, and those of
November 2024, on which bitnet.cpp and its scripts are built) and what becomes of it in `bitnet-run` (`run`),
`bitnet-run serve` (`serve`) and `bitnet-run bench` (`bench`):

- **done**: there is such a flag, and it does the same.
- **own**: llama.cpp has no such flag.
- **so anyway**: it asks for what is so in any case.
- **ignored**: it means nothing here. One line on stderr names all that were, and why.
- **refused**: without it the answer would be another one. Exit code 2.

Long flags may have one dash or two, underscores for dashes, and their value behind a space or `=`. Of a flag that is
given twice the last one counts, but for `--override-kv`, `-r`, `-l` and lists
of `bench`, which add up. `run` and `serve` take what the
environment variable says where the flag is not given; an empty one counts as not set.
";

fn name(program: Program) -> &'static str {
    match program {
        Program::Run => "run",
        Program::Bench => "bench",
        Program::Serve => "serve",
    }
}

/// All spellings, and what follows them.
fn spelt(flag: &Flag) -> String {
    let names: Vec<String> = flag.names.iter().map(|name| format!("`{name}`")).collect();
    let value = match flag.value {
        Value::Switch => return names.join(", "),
        Value::One(value) | Value::Two(value) => format!(" *{value}*"),
        Value::OnOff => " *[on|off|auto]*".to_owned(),
    };
    names.join(", ") + &value
}

fn here(flag: &Flag) -> String {
    match flag.fate {
        Fate::Done => "done".to_owned(),
        Fate::Own => "own".to_owned(),
        Fate::Implied => "so anyway".to_owned(),
        Fate::Means(values) => {
            let means = |(value, args): &(&str, &[&str])| format!("{value} `{}`", args.join(" "));
            let values: Vec<String> = values.iter().map(means).collect();
            format!("done: {}", values.join(", ").trim())
        }
        Fate::Ignored(why) => format!("ignored: {why}"),
        Fate::Refused { why, instead, neutral } => {
            let values: Vec<String> = neutral.iter().map(|value| format!("`{value}`")).collect();
            let unless = match neutral {
                [] => String::new(),
                [""] => " unless empty".to_owned(),
                _ => format!(" unless {}", values.join(" or ")),
            };
            format!("refused{unless}: {why}; {instead}")
        }
    }
}

/// Returns the paragraphs below the help of a command: what llama.cpp's flags that it does not list
/// come to.
#[must_use]
pub fn help(program: Program) -> String {
    let names = |is: fn(&Flag) -> bool| {
        let rows = flags_of(program).filter(|flag| is(flag));
        rows.map(|flag| flag.names[0]).collect::<Vec<_>>().join(" ")
    };
    let ignored = names(|flag| matches!(flag.fate, Fate::Ignored(_)));
    let refused = names(|flag| matches!(flag.fate, Fate::Refused { .. }));
    format!(
        "Flags of llama.cpp that mean nothing here are taken and ignored, once noted: {ignored}\n\n\
         Those without which the answer would be another one are refused, with the reason: \
         {refused}\n\nAll spellings, reasons and environment variables: docs/flags.md"
    )
}
