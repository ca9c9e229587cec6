//! Jinja templates, set up as Hugging Face's transformers set up jinja2.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error as TemplateError, ErrorKind};
use minijinja_contrib::pycompat;

use super::json;
use crate::text::tokenizer::MAX_TEXT;

/// Longest source of a template, in bytes: the longest published one has 17 kB.
const MAX_SOURCE: usize = 256 << 10;
/// Steps that a template may take: a published one takes some 20,000 for a short conversation.
const FUEL: u64 = 1_000_000;
/// Steps more for each message.
const FUEL_PER_MESSAGE: u64 = 64;
/// Calls within calls, of macros for example.
const MAX_RECURSION: usize = 100;

/// A problem of a template, in one line.
#[derive(Debug)]
pub(super) struct Problem {
    /// The line of the template, from 1.
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

/// A template, ready to render.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
}

/// The name of the only template in an environment.
const NAME: &str = "chat";

impl Template {
    /// Parses a template.
    pub(super) fn new(source: &str) -> Result<Self, Problem> {
        if source.len() > MAX_SOURCE {
            let message = format!("{} bytes, more than {MAX_SOURCE}", source.len());
            return Err(Problem { line: None, message });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax?);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| {
            Err::<Value, _>(TemplateError::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            jiff::fmt::strtime::format(&format, &ZonedDateTime::now())
                .map_err(|e| TemplateError::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        environment.add_filter("tojson", json::tojson);
        environment.add_template_owned(NAME, without_generation(source))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template as it was given.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation of so many messages.
    pub(super) fn render(
        &self,
        messages: usize,
        variables: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<String, Problem> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages as u64));
        let mut out = Limited(Vec::new());
        let variables = Value::from_pairs(variables);
        environment.get_template(NAME)?.render_captured_to(variables, &mut out)?;
        String::from_utf8(out.0).map_err(|e| Problem { line: None, message: e.to_string() })
    }
}

impl From<TemplateError> for Problem {
    fn from(error: TemplateError) -> Self {
        let message = match (error.kind(), error.detail()) {
            (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
            (ErrorKind::WriteFailure, _) => format!("its text is over {MAX_TEXT} bytes"),
            (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
            (kind, Some(detail)) => format!("{kind}: {detail}"),
            (kind, None) => kind.to_string(),
        };
        Self { line: error.line(), message }
    }
}

/// A text that does not grow beyond the most that is tokenized at once.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The source with comments in place of the tags `generation` and `endgeneration`, with which makers mark
/// what a model learns to write, and which stand for nothing in a text.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, behind)) = rest.split_once("{%") {
        let Some((tag, after)) = behind.split_once("%}") else { break };
        rest = after;
        out += before;
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        if matches!(name, "generation" | "endgeneration") {
            out += &format!("{{#{}#}}", tag.replace(name, " "));
        } else {
            out += &format!("{{%{tag}%}}");
        }
    }
    out + rest
}
