//! The flags that llama.cpp's programs and bitnet.cpp's scripts take, and what becomes of each here:
//! one [table](GROUPS), from which reading the command line, the help, docs/flags.md and tests come.

mod page;
mod read;
mod table;

pub use page::{help, page};
pub use read::{Given, read};
pub use table::GROUPS;

/// A command of this program that takes llama.cpp's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `bitnet-run` without a subcommand, and `bitnet-run chat`, beside llama-cli, llama-completion and llama-server.
    Run,
    /// `bitnet-run bench`, beside llama-bench.
    Bench,
    /// `bitnet-run serve`, beside llama-server. Flags of `run` that it lacks, and that have no row for it, are
    /// treated as there.
    Serve,
}

/// Values that follow a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// None: the flag is a switch.
    Switch,
    /// One, as the help names it.
    One(&'static str),
    /// One of `on`, `off` and `auto`, of what stands for these, or of lists of them; or none.
    OnOff,
    /// Two, as the help names them.
    Two(&'static str),
}

/// Treatment of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A flag of this program has the same names and does the same.
    Done,
    /// A flag of this program that llama.cpp does not have.
    Own,
    /// It asks for what is so in any case, and is taken without a word.
    Implied,
    /// For each of its values, arguments of this program that do the same.
    Means(&'static [(&'static str, &'static [&'static str])]),
    /// It is taken, and one note on stderr names it with the reason why it has no effect.
    Ignored(&'static str),
    /// It ends the run with exit code 2, since without it the answer would be another one.
    Refused {
        /// Reason.
        why: &'static str,
        /// Advice on what to do instead.
        instead: &'static str,
        /// Values with which it has no effect; these are taken without a word.
        neutral: &'static [&'static str],
    },
}

/// A row of the table: spellings of one flag, in some commands.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The commands that it is for.
    pub programs: &'static [Program],
    /// All spellings, with their dashes.
    pub names: &'static [&'static str],
    /// Values that follow it.
    pub value: Value,
    /// Treatment of it.
    pub fate: Fate,
    /// The environment variable of `bitnet-run` that says the same where the flag is not given.
    pub variable: Option<&'static str>,
}

/// Rows on one subject.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The subject.
    pub title: &'static str,
    /// Its rows.
    pub flags: &'static [Flag],
}

/// Returns the rows of a command.
pub fn flags_of(program: Program) -> impl Iterator<Item = &'static Flag> {
    rows().filter(move |flag| flag.is_for(program))
}

/// All rows.
fn rows() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

impl Flag {
    /// Returns true if the row is for a command.
    #[must_use]
    pub fn is_for(&self, program: Program) -> bool {
        let is_named = |program| self.programs.contains(&program);
        let is_inherited = || {
            let is_ours = matches!(self.fate, Fate::Done | Fate::Own);
            let served = rows().filter(|row| row.programs.contains(&Program::Serve));
            let mut names = served.flat_map(|row| row.names);
            is_named(Program::Run) && !is_ours && !names.any(|name| self.names.contains(name))
        };
        is_named(program) || program == Program::Serve && is_inherited()
    }

    /// Returns true if the flag changes nothing with this value: a neutral one, as a text or a number.
    fn is_neutral(&self, value: &str) -> bool {
        let Fate::Refused { neutral, .. } = self.fate else { return false };
        let number = |text: &str| text.trim().parse::<f64>().ok();
        neutral.iter().any(|known| {
            value == *known || number(value).is_some_and(|value| number(known) == Some(value))
        })
    }

    const fn new(
        programs: &'static [Program],
        names: &'static [&'static str],
        value: Value,
        fate: Fate,
    ) -> Self {
        Self { programs, names, value, fate, variable: None }
    }

    /// The row with its environment variable.
    const fn variable(self, name: &'static str) -> Self {
        Self { variable: Some(name), ..self }
    }

    /// The row of a refused flag with the values that have no effect.
    const fn unless(self, neutral: &'static [&'static str]) -> Self {
        let Fate::Refused { why, instead, .. } = self.fate else {
            panic!("only what is refused has neutral values");
        };
        Self { fate: Fate::Refused { why, instead, neutral }, ..self }
    }
}
