//! The flags that control what is written: which tokens may come, and what ends the text.

use std::path::PathBuf;

use bitnet_runtime::error::Result;
use bitnet_runtime::{Engine, Grammar, Sampling, SequenceOptions};

use crate::prompt::{self, EscapeArgs, LastLineEnd, PromptArgs};

const CONTROL: &str = "Control of the text";

/// Flags of penalties, biases, stop strings and grammars.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = CONTROL)]
pub struct ControlArgs {
    #[command(flatten)]
    pub words: WordArgs,
    /// Write one JSON value that this schema describes; {} describes any
    #[arg(short, long, value_name = "SCHEMA", overrides_with_all = GRAMMARS)]
    json_schema: Option<String>,
    /// The same, with the schema in a file
    #[arg(long, alias = "jf", value_name = "FILE", overrides_with_all = GRAMMARS)]
    json_schema_file: Option<PathBuf>,
    /// Write a text of this grammar, in llama.cpp's GBNF, or in llguidance's Lark behind %llguidance
    #[arg(long, value_name = "TEXT", overrides_with_all = GRAMMARS)]
    grammar: Option<String>,
    /// The same, with the grammar in a file
    #[arg(long, value_name = "FILE", overrides_with_all = GRAMMARS)]
    grammar_file: Option<PathBuf>,
}

/// Flags of penalties, biases and stop strings.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = CONTROL)]
pub struct WordArgs {
    /// End the text where this one appears, which is left out; several: repeat the flag
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    reverse_prompt: Vec<String>,
    /// Subtract this from the logit of each token written lately, -100 to 100; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract this from the logit of a token each time that it was written lately, -100 to 100; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add a number to the logit of a token, as 15043+1 or 15043-1; 15043-inf bans it. Several: repeat the
    /// flag
    #[arg(short, long, value_name = "ID+BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
}

/// The flags of which the last one counts.
const GRAMMARS: [&str; 4] = ["json_schema", "json_schema_file", "grammar", "grammar_file"];

/// A token and its bias, for clap.
fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let parsed = || {
        let at = text.find(['+', '-'])?;
        let (id, bias) = text.split_at(at);
        Some((id.trim().parse().ok()?, bias.trim().parse().ok()?))
    };
    parsed().ok_or_else(|| "it is no ID+BIAS, as 15043+1, 15043-1.5 or 15043-inf".into())
}

impl WordArgs {
    /// `sampling` with these penalties and biases.
    pub fn sampling(&self, sampling: Sampling) -> Sampling {
        Sampling {
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            ..sampling
        }
    }

    /// The stop strings, in which escapes count as in the prompt.
    ///
    /// # Errors
    /// Those of [`EscapeArgs::text`].
    pub fn stop(&self, escapes: EscapeArgs) -> Result<Vec<String>> {
        self.reverse_prompt.iter().map(|text| escapes.text(text.clone())).collect()
    }
}

impl ControlArgs {
    /// `options` with these stop strings, in which escapes count as in the prompt, and this grammar.
    ///
    /// # Errors
    /// [`Error::Usage`](bitnet_runtime::Error::Usage) for a grammar or an escape that is malformed,
    /// [`Error::Io`](bitnet_runtime::Error::Io) for a file that cannot be read.
    pub fn sequence(
        &self,
        engine: &Engine,
        prompt: &PromptArgs,
        options: SequenceOptions,
    ) -> Result<SequenceOptions> {
        Ok(SequenceOptions {
            stop: self.words.stop(prompt.escapes)?,
            grammar: self.grammar(engine)?,
            ..options
        })
    }

    fn grammar(&self, engine: &Engine) -> Result<Option<Grammar>> {
        let text = |text: &Option<String>, file: &Option<PathBuf>| match (text, file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) => prompt::from_path(path, LastLineEnd::Kept).map(Some),
            (None, None) => Ok(None),
        };
        // An empty one is none, as in llama.cpp.
        if let Some(schema) =
            text(&self.json_schema, &self.json_schema_file)?.filter(|t| !t.is_empty())
        {
            return engine.grammars()?.json_schema(&schema).map(Some);
        }
        match text(&self.grammar, &self.grammar_file)?.filter(|text| !text.is_empty()) {
            Some(grammar) => engine.grammars()?.grammar(&grammar).map(Some),
            None => Ok(None),
        }
    }

    /// True if every logit is needed, so that a head is best read whole: for a grammar, which may rule out
    /// all that a scan finds.
    pub fn needs_all(&self) -> bool {
        let texts = [&self.json_schema, &self.grammar].into_iter().flatten();
        let files = [&self.json_schema_file, &self.grammar_file].into_iter().flatten();
        texts.into_iter().any(|text| !text.is_empty()) || files.count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::bias;

    #[test]
    fn biases_are_read_as_llama_cpp_reads_them() {
        for (text, expected) in
            [("15043+1", (15043, 1.0)), ("7-1.5", (7, -1.5)), ("7-inf", (7, f32::NEG_INFINITY))]
        {
            assert_eq!(bias(text).unwrap(), expected);
        }
        for text in ["", "7", "+1", "x+1", "7+", "7+x", "-7+1"] {
            assert!(bias(text).is_err(), "{text}");
        }
    }
}
