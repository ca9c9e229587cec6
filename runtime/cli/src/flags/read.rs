//! A command line of llama.cpp's, read by the table before clap sees it.
//!
//! llama.cpp's users write long flags with one dash (`-ngl 0`, `-temp 0`); clap would read them as
//! clusters of short ones (`-n gl`, `-t emp`).

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

use super::{Fate, Flag, Program, Value, flags_of};

/// Meaning of a spelling.
enum Meaning {
    /// A flag of the program, as clap knows it.
    Ours { spelling: String, value: Value },
    /// A row of the table that clap knows nothing of.
    Theirs(&'static Flag),
}

/// The spellings that a command knows.
struct Spellings {
    meanings: HashMap<String, Meaning>,
    program: Option<Program>,
    command: Command,
}

impl Spellings {
    /// Those of a command: clap's, and the table's where it is one of the two that have a table.
    fn of(command: &Command, program: Option<Program>) -> Self {
        let rows = program.into_iter().flat_map(flags_of);
        let theirs = rows
            .filter(|flag| !matches!(flag.fate, Fate::Done | Fate::Own))
            .flat_map(|flag| flag.names.iter().map(move |name| (name, flag)))
            .map(|(name, flag)| ((*name).to_owned(), Meaning::Theirs(flag)));
        let meanings = command.get_arguments().flat_map(ours).chain(theirs).collect();
        Self { meanings, program, command: command.clone() }
    }

    /// Finds the meaning of a flag as it was written: with one dash or two, dashes or underscores.
    fn find(&self, name: &str) -> Option<&Meaning> {
        let found = self.meanings.get(name);
        let Some(long) = name.strip_prefix('-').filter(|long| long.len() > 1) else { return found };
        found.or_else(|| match long.strip_prefix('-') {
            Some(long) => self.meanings.get(&format!("--{}", long.replace('_', "-"))),
            // llama.cpp's own help writes only short ones with one dash; its users do not.
            None => self.meanings.get(&format!("--{long}")),
        })
    }

    fn error(&self, kind: ErrorKind, message: impl std::fmt::Display) -> clap::Error {
        self.command.clone().error(kind, message)
    }

    /// Refuses what clap would read as a short flag with a text behind it, or as several: it is more
    /// likely a flag that nobody knows. A number stays (`-n64`).
    fn check_cluster(&self, text: &str) -> Result<(), clap::Error> {
        let mut chars = text.chars().skip(1);
        let (first, second) = (chars.next(), chars.next());
        let (Some(first), Some(second)) = (first, second) else { return Ok(()) };
        if first == '-' {
            return Ok(());
        }
        let short = format!("-{first}");
        let value = match self.meanings.get(&short) {
            Some(Meaning::Ours { value: Value::One(_), .. }) => &text[short.len()..],
            _ => "",
        };
        if !value.is_empty() && (second.is_ascii_digit() || "-=.".contains(second)) {
            return Ok(());
        }
        let mut message = format!("unexpected argument '{}' found", text.escape_debug());
        if !value.is_empty() {
            message +=
                &format!("; a value of {short} stands apart: {short} {}", value.escape_debug());
        }
        Err(self.error(ErrorKind::UnknownArgument, message))
    }
}

/// The spellings of an argument of clap's.
fn ours(arg: &Arg) -> Vec<(String, Meaning)> {
    let value = match arg.get_num_args().map(|range| (range.min_values(), range.max_values())) {
        _ if !arg.get_action().takes_values() => Value::Switch,
        Some((0, _)) => Value::OnOff,
        _ => Value::One(""),
    };
    let long = arg.get_long_and_visible_aliases().unwrap_or_default();
    let hidden = arg.get_all_aliases().unwrap_or_default();
    let long = long.into_iter().chain(hidden).map(|name| format!("--{name}"));
    let short = arg.get_short_and_visible_aliases().unwrap_or_default();
    let short = short.into_iter().map(|name| format!("-{name}"));
    long.chain(short)
        .map(|spelling| (spelling.clone(), Meaning::Ours { spelling, value }))
        .collect()
}

/// A command line as clap takes it, and what is to be told of it.
#[derive(Debug, Default)]
pub struct Given {
    /// The arguments, the program's name first.
    pub args: Vec<OsString>,
    /// Flags without effect, as they were written, and why that is so.
    ignored: Vec<(String, &'static str)>,
    /// Flags whose value is that of an environment variable: a spelling, and the variable.
    variables: Vec<(&'static str, &'static str)>,
}

impl Given {
    /// The note on what was taken and has no effect, if there is any.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, why) in &self.ignored {
            let known = reasons.iter().position(|(known, _)| known == why);
            let at = known.unwrap_or_else(|| {
                reasons.push((why, Vec::new()));
                reasons.len() - 1
            });
            let names = &mut reasons[at].1;
            if !names.contains(&&**name) {
                names.push(name);
            }
        }
        let parts: Vec<String> =
            reasons.iter().map(|(why, names)| format!("{} ({why})", names.join(", "))).collect();
        (!parts.is_empty()).then(|| format!("ignored: {}", parts.join("; ")))
    }

    /// The error with a tip: the environment variable that the refused value is of, if it is of one; for a
    /// word without a flag, the flags for what it may be.
    #[must_use]
    pub fn explain(&self, mut error: clap::Error) -> clap::Error {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let word = match error.kind() {
            ErrorKind::UnknownArgument => {
                context(ContextKind::InvalidArg).filter(|arg| !arg.starts_with('-'))
            }
            // A word behind a flag is taken for a command that flags cannot be given with.
            ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict => {
                context(ContextKind::InvalidSubcommand)
            }
            _ => None,
        };
        if let Some(word) = word {
            let tip = match word.as_str() {
                "run" => "a conversation is begun with: bitnet-run chat -m FILE",
                _ => "a model is given with -m FILE, a text with -p TEXT",
            };
            let tips = ContextValue::StyledStrs(vec![tip.to_owned().into()]);
            error.insert(ContextKind::Suggested, tips);
        }
        if let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) {
            let long = |name: &str| arg.split_whitespace().any(|word| word == name);
            if let Some((_, variable)) = self.variables.iter().find(|(name, _)| long(name)) {
                let tip = format!("the value is that of {variable} in the environment");
                let tips = ContextValue::StyledStrs(vec![tip.into()]);
                error.insert(ContextKind::Suggested, tips);
            }
        }
        error
    }
}

/// Reads a command line: flags that the program has are spelt as clap has them, those that have no
/// effect are taken out, and for those of `bitnet-run` that are not given, `variable` says what the
/// environment holds. Values (`-p -temp`) and what follows `--` stay as they are.
///
/// # Errors
/// A usage error for a flag that is refused, that lacks its value, or that nobody knows.
pub fn read(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Given, clap::Error> {
    let mut command = command.clone();
    command.build();
    let mut args = args.into_iter().peekable();
    let mut given = Given { args: args.by_ref().take(1).collect(), ..Given::default() };
    let subcommand = args.peek().and_then(|arg| command.find_subcommand(arg));
    let spellings = match subcommand {
        Some(found) => {
            let program = match found.get_name() {
                "bench" => Some(Program::Bench),
                "chat" => Some(Program::Run),
                "serve" => Some(Program::Serve),
                _ => None,
            };
            Spellings::of(found, program)
        }
        None => Spellings::of(&command, Some(Program::Run)),
    };
    if subcommand.is_some() {
        given.args.extend(args.next());
    }
    let head = given.args.len();
    let mut seen: HashSet<String> = HashSet::new();
    let mut reader = Reader { spellings: &spellings, given };
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            reader.given.args.push(arg);
            continue;
        };
        if text == "--" {
            reader.given.args.push(arg);
            break;
        }
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match spellings.find(name) {
            Some(Meaning::Ours { spelling, value }) => {
                seen.insert(bare(spelling));
                let mut spelt = OsString::from(spelling);
                // A value that may be left out stands with its flag.
                let optional = || values(Value::OnOff, None, &mut args)?.pop();
                let attached = attached.map(OsString::from);
                let with = attached.or_else(|| (*value == Value::OnOff).then(optional).flatten());
                if let Some(with) = &with {
                    spelt.push("=");
                    spelt.push(with);
                }
                reader.given.args.push(spelt);
                if matches!(value, Value::One(_)) && with.is_none() {
                    reader.given.args.extend(args.next());
                }
            }
            Some(Meaning::Theirs(flag)) => {
                seen.extend(flag.names.iter().map(|name| bare(name)));
                let values = values(flag.value, attached, &mut args);
                let values = values.ok_or_else(|| {
                    let message = format!("a value is required for '{name}' but none was supplied");
                    spellings.error(ErrorKind::InvalidValue, message)
                })?;
                reader.take(flag, name, values.first().map_or(OsStr::new(""), |value| value))?;
            }
            None => {
                if text.starts_with('-') {
                    spellings.check_cluster(text)?;
                }
                reader.given.args.push(arg);
            }
        }
    }
    reader.given.args.extend(args);
    if let Some(program @ (Program::Run | Program::Serve)) = spellings.program {
        reader.environment((program, head), &seen, variable)?;
    }
    Ok(reader.given)
}

/// A spelling without its dashes, one or two.
fn bare(spelling: &str) -> String {
    spelling.trim_start_matches('-').to_owned()
}

/// The values of a flag: one that is attached to it, or those that follow; `None` where one lacks.
fn values(
    value: Value,
    attached: Option<&str>,
    args: &mut std::iter::Peekable<impl Iterator<Item = OsString>>,
) -> Option<Vec<OsString>> {
    if let Some(attached) = attached {
        return Some(vec![attached.into()]);
    }
    let is_on_off = |text: &OsString| {
        let words = ["on", "off", "auto", "enabled", "disabled", "true", "false", "1", "0", "-1"];
        text.to_str().is_some_and(|text| text.split(',').all(|word| words.contains(&word)))
    };
    match value {
        Value::Switch => Some(Vec::new()),
        Value::One(_) => Some(vec![args.next()?]),
        Value::OnOff => Some(args.next_if(is_on_off).into_iter().collect()),
        Value::Two(_) => Some(vec![args.next()?, args.next()?]),
    }
}

/// The command line as far as it is read.
struct Reader<'a> {
    spellings: &'a Spellings,
    given: Given,
}

impl Reader<'_> {
    /// Does with a row what the table says; `name` is how the user wrote it, or its variable.
    fn take(&mut self, flag: &Flag, name: &str, value: &OsStr) -> Result<(), clap::Error> {
        let text = value.to_string_lossy();
        match flag.fate {
            Fate::Ignored(why) => self.given.ignored.push((name.to_owned(), why)),
            Fate::Means(values) => {
                let found = values.iter().find(|(value, _)| *value == text);
                let (_, args) = found.ok_or_else(|| {
                    let known: Vec<&str> = values.iter().map(|(value, _)| *value).collect();
                    self.spellings.error(
                        ErrorKind::InvalidValue,
                        format!(
                            "invalid value '{}' for '{name}'; expected {}",
                            text.escape_debug(),
                            known.join(", ")
                        ),
                    )
                })?;
                self.given.args.extend(args.iter().map(OsString::from));
            }
            Fate::Refused { why, instead, .. } if !flag.is_neutral(&text) => {
                let message = format!("{name}: {why}; {instead}");
                return Err(self.spellings.error(ErrorKind::UnknownArgument, message));
            }
            Fate::Refused { .. } | Fate::Implied | Fate::Done | Fate::Own => {}
        }
        Ok(())
    }

    /// Puts what the environment says in front of what was given, and so below it: behind the `head`, the
    /// names of program and command.
    fn environment(
        &mut self,
        (program, head): (Program, usize),
        seen: &HashSet<String>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(), clap::Error> {
        let given = self.given.args.split_off(head);
        for flag in flags_of(program) {
            let Some(name) = flag.variable else { continue };
            let is_given = flag.names.iter().any(|name| seen.contains(&bare(name)));
            // An empty variable is one that somebody unset.
            let value = variable(name).filter(|value| !value.is_empty() && !is_given);
            let Some(value) = value else { continue };
            let long = flag.names.iter().find(|name| name.starts_with("--"));
            let (Fate::Done, Some(long)) = (flag.fate, long) else {
                self.take(flag, name, &value)?;
                continue;
            };
            self.given.variables.push((*long, name));
            let mut arg = OsString::from(long);
            if flag.value == Value::Switch {
                match &*value.to_string_lossy() {
                    "on" | "enabled" | "true" | "1" => {}
                    "off" | "disabled" | "false" | "0" => continue,
                    other => {
                        let found = other.escape_debug();
                        let message =
                            format!("invalid value '{found}' for {name}; expected 1 or 0");
                        return Err(self.spellings.error(ErrorKind::InvalidValue, message));
                    }
                }
            } else {
                arg.push("=");
                arg.push(value);
            }
            self.given.args.push(arg);
        }
        self.given.args.extend(given);
        Ok(())
    }
}
