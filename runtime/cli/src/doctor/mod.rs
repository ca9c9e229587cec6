//! `bitnet-run doctor`: looks at the machine and at a model, and says what to do about what it finds.

mod machine;
mod model;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_runtime::error::{Error, Result};
use serde::Serialize;

use crate::output::{answer, with_flags};

/// Check this machine, and a model, and say what to do
///
/// The exit code is that of the worst finding: 0 where all is well, 1 where something can be better, and
/// where a model does not run that of the error, 3 for a bad file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model to check: its file, its weights, its tokenizer and template, one pass through it
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// One line of JSON in place of text
    #[arg(long)]
    json: bool,
}

/// Looks, and returns the exit code of the worst finding.
///
/// # Errors
/// [`Error::Io`] when stdout refuses. What is wrong is a finding.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut findings = Findings::default();
    machine::look(&mut findings);
    if let Some(path) = &args.model {
        model::look(path, &mut findings);
    }
    answer(|out| {
        if args.json {
            serde_json::to_writer(&mut *out, &findings.all)?;
            return writeln!(out);
        }
        findings.all.iter().try_for_each(|finding| writeln!(out, "{finding}"))
    })?;
    Ok(ExitCode::from(findings.code))
}

/// Weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It can be better.
    Warning,
    /// It does not run.
    Error,
}

/// Something that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at.
    item: &'static str,
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// One line, and a second with the advice.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        write!(f, "{level:<8} {}: {}", self.item, self.found)?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "\n         {advice}"))
    }
}

/// All findings so far, and the exit code of the worst.
#[derive(Debug, Default)]
struct Findings {
    all: Vec<Finding>,
    code: u8,
}

impl Findings {
    fn add(&mut self, level: Level, item: &'static str, found: impl fmt::Display) {
        self.with_advice(level, item, found, None);
    }

    /// Adds a finding with what to do about it.
    fn advise(&mut self, level: Level, item: &'static str, found: impl fmt::Display, advice: &str) {
        self.with_advice(level, item, found, Some(advice.to_owned()));
    }

    fn with_advice(
        &mut self,
        level: Level,
        item: &'static str,
        found: impl fmt::Display,
        advice: Option<String>,
    ) {
        if level == Level::Warning && self.code == 0 {
            self.code = 1;
        }
        self.all.push(Finding { level, item, found: found.to_string(), advice });
    }

    /// Adds an error, which says itself what to do.
    fn error(&mut self, item: &'static str, error: &Error) {
        self.code = error.exit_code();
        self.add(Level::Error, item, with_flags(&error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let mut findings = Findings::default();
        findings.add(Level::Ok, "cpu", "x");
        findings.add(Level::Note, "cpu", "x");
        assert_eq!(findings.code, 0);
        findings.advise(Level::Warning, "cpu", "x", "do this");
        assert_eq!(findings.code, 1);
        findings.error("file", &Error::model(Path::new("m.gguf"), "magic", "'x'", "'GGUF'"));
        findings.add(Level::Warning, "cpu", "x");
        assert_eq!(findings.code, 3);
        let lines: Vec<String> = findings.all.iter().map(Finding::to_string).collect();
        assert_eq!(lines[2], "warning  cpu: x\n         do this");
        assert!(lines[3].starts_with("error    file: m.gguf: magic"), "{}", lines[3]);
    }
}
