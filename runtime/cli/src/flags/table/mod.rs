//! The table, by subject. Names and arity are those of llama.cpp in October 2026 (llama-completion,
//! llama-cli, llama-server, llama-bench), and of November 2024, on which bitnet.cpp is built.

mod bench;
mod chat;
mod machine;
mod sampling;
mod serve;
mod server;
mod text;

use super::{Fate, Flag, Group, Program, Value};

/// All rows.
pub const GROUPS: &[Group] = &[
    Group { title: "Text and context", flags: text::FLAGS },
    Group { title: "Sampling", flags: sampling::FLAGS },
    Group { title: "Threads and memory", flags: machine::FLAGS },
    Group { title: "GPUs and other devices", flags: machine::DEVICES },
    Group { title: "Drafts", flags: machine::DRAFTS },
    Group { title: "Chat and screen", flags: chat::FLAGS },
    Group { title: "Log", flags: chat::LOG },
    Group { title: "Downloads, adapters, images", flags: text::FILES },
    Group { title: "Server", flags: server::FLAGS },
    Group { title: "The command serve", flags: serve::FLAGS },
    Group { title: "Benchmark", flags: bench::FLAGS },
    Group { title: "This program's own", flags: machine::OWN },
];

const RUN: &[Program] = &[Program::Run];
const BENCH: &[Program] = &[Program::Bench];
const SERVE: &[Program] = &[Program::Serve];
const RUNS: &[Program] = &[Program::Run, Program::Serve];
const ALL: &[Program] = &[Program::Run, Program::Serve, Program::Bench];
const BOTH: &[Program] = &[Program::Run, Program::Bench];

const SWITCH: Value = Value::Switch;
const FILE: Value = Value::One("FILE");
const LIST: Value = Value::One("LIST");
const N: Value = Value::One("N");
const P: Value = Value::One("P");
const TEXT: Value = Value::One("TEXT");
const TYPE: Value = Value::One("TYPE");
const ZERO_ONE: Value = Value::One("0|1");

type Programs = &'static [Program];
type Names = &'static [&'static str];

const fn done(programs: Programs, names: Names, value: Value) -> Flag {
    Flag::new(programs, names, value, Fate::Done)
}

const fn own(programs: Programs, names: Names, value: Value) -> Flag {
    Flag::new(programs, names, value, Fate::Own)
}

const fn implied(programs: Programs, names: Names, value: Value) -> Flag {
    Flag::new(programs, names, value, Fate::Implied)
}

const fn means(
    programs: Programs,
    names: Names,
    value: Value,
    values: &'static [(&'static str, Names)],
) -> Flag {
    Flag::new(programs, names, value, Fate::Means(values))
}

const fn ignored(programs: Programs, names: Names, value: Value, why: &'static str) -> Flag {
    Flag::new(programs, names, value, Fate::Ignored(why))
}

/// A refused flag, with the reason and what to do instead.
const fn refused(
    programs: Programs,
    names: Names,
    value: Value,
    (why, instead): (&'static str, &'static str),
) -> Flag {
    Flag::new(programs, names, value, Fate::Refused { why, instead, neutral: &[] })
}
