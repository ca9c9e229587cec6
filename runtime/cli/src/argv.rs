//! llama.cpp's users write long flags with one dash (`-ctk`, `-ub`, `-temp`); clap would read them
//! as a cluster of short ones.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;

use clap::{Arg, Command};

/// The flags of a command or subcommand.
struct Flags {
    long: HashSet<String>,
    /// Those that take a value, as they are written: `-p`, `--prompt`.
    with_value: HashSet<String>,
}

impl Flags {
    fn of<'a>(args: impl Iterator<Item = &'a Arg>) -> Self {
        let mut flags = Self { long: HashSet::new(), with_value: HashSet::new() };
        for arg in args {
            let long = arg.get_long_and_visible_aliases().unwrap_or_default();
            let hidden = arg.get_all_aliases().unwrap_or_default();
            let short = arg.get_short_and_visible_aliases().unwrap_or_default();
            for name in long.into_iter().chain(hidden) {
                if arg.get_action().takes_values() {
                    flags.with_value.insert(format!("--{name}"));
                }
                flags.long.insert(name.to_owned());
            }
            if arg.get_action().takes_values() {
                flags.with_value.extend(short.into_iter().map(|name| format!("-{name}")));
            }
        }
        flags
    }

    /// `-ctk` and `-ctk=f16` with the second dash, if they name a long flag.
    fn two_dashes(&self, arg: &str) -> Option<String> {
        let name = arg.strip_prefix('-').filter(|name| !name.starts_with('-'))?;
        let bare = name.split_once('=').map_or(name, |(bare, _)| bare);
        (bare.len() > 1 && self.long.contains(bare)).then(|| format!("--{name}"))
    }
}

/// Gives long flags with one dash their second one. Values (`-p -temp`) and what follows `--` stay
/// as they are.
#[must_use]
pub fn two_dashes(command: &Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = command.clone();
    command.build();
    let subcommands: HashMap<&str, Flags> = command
        .get_subcommands()
        .map(|sub| (sub.get_name(), Flags::of(sub.get_arguments())))
        .collect();
    let top = Flags::of(command.get_arguments());

    let mut args = args.into_iter();
    // The program's name.
    let mut out: Vec<OsString> = args.by_ref().take(1).collect();
    let mut flags = &top;
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            break;
        }
        if let (1, Some(subcommand)) = (out.len(), subcommands.get(text)) {
            flags = subcommand;
        }
        let text = flags.two_dashes(text).unwrap_or_else(|| text.to_owned());
        let takes_value = flags.with_value.contains(&text);
        out.push(text.into());
        if takes_value {
            out.extend(args.next());
        }
    }
    out.extend(args);
    out
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn command() -> Command {
        let flags = || {
            [
                Arg::new("prompt").short('p').long("prompt"),
                Arg::new("n").short('n').long("predict").alias("n-predict"),
                Arg::new("k").long("cache-type-k").visible_alias("ctk"),
                Arg::new("json").long("json").action(ArgAction::SetTrue),
            ]
        };
        Command::new("run")
            .args(flags())
            .arg(Arg::new("temp").long("temp"))
            .subcommand(Command::new("bench").args(flags()).arg(Arg::new("o").short('o')))
    }

    #[test]
    fn only_long_flags_get_a_second_dash() {
        let cases: &[(&str, &str)] = &[
            ("run -ctk f16 -temp 0 -json", "run --ctk f16 --temp 0 --json"),
            ("run -ctk=f16 -n-predict=3", "run --ctk=f16 --n-predict=3"),
            ("run -n -1 -n64 --temp 0 -x", "run -n -1 -n64 --temp 0 -x"),
            ("run -p -temp -temp 1", "run -p -temp --temp 1"),
            ("run --prompt -json -ctk -json -json", "run --prompt -json --ctk -json --json"),
            ("run -predict -temp -temp", "run --predict -temp --temp"),
            ("run -- -temp -json", "run -- -temp -json"),
            ("run bench -ctk f16 -temp -o -json", "run bench --ctk f16 -temp -o -json"),
            ("run -p bench -temp 1", "run -p bench --temp 1"),
            ("-temp", "-temp"),
            ("run - -- - -p", "run - -- - -p"),
            ("run -p", "run -p"),
            ("run -help -h", "run --help -h"),
        ];
        for (given, expected) in cases {
            let given = given.split(' ').map(OsString::from);
            let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(two_dashes(&command(), given), expected);
        }
        assert!(two_dashes(&command(), []).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn arguments_that_are_not_utf_8_pass() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"-te\xffmp".to_vec());
        let args = ["run".into(), odd.clone(), "-p".into(), odd.clone(), "-temp".into()];
        assert_eq!(
            two_dashes(&command(), args),
            ["run".into(), odd.clone(), "-p".into(), odd, "--temp".into()]
        );
    }
}
