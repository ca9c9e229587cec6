//! The flags of chat templates, which `chat` and `serve` share.

use std::path::PathBuf;

use bitnet_runtime::error::Result;
use bitnet_runtime::{TemplateChoice, Variables};

use crate::prompt::{self, LastLineEnd};

/// Heading of the flags of conversations in `--help`.
pub(crate) const CHAT: &str = "Conversation";

/// The chat template and its variables.
#[derive(Debug, clap::Args)]
pub struct TemplateArgs {
    /// The template: bitnet, llama3, chatml, falcon3, falcon_e, gguf for the file's own, or Jinja
    /// [default: the file's]
    #[arg(
        long,
        value_name = "NAME|JINJA",
        overrides_with = "chat_template_file",
        help_heading = CHAT
    )]
    chat_template: Option<String>,
    /// A file with the Jinja template
    #[arg(long, value_name = "FILE", overrides_with = "chat_template", help_heading = CHAT)]
    chat_template_file: Option<PathBuf>,
    /// Further variables for the template, as a JSON object
    #[arg(long, value_name = "JSON", help_heading = CHAT)]
    chat_template_kwargs: Option<String>,
    /// Reason before an answer, where the template has a switch for it; auto: as the template does
    #[arg(
        long,
        visible_alias = "rea",
        value_name = "on|off|auto",
        default_value = "auto",
        num_args = 0..=1,
        default_missing_value = "on",
        value_parser = on_off_auto,
        help_heading = CHAT
    )]
    reasoning: OnOff,
}

/// A setting that is on, off, or as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnOff(pub Option<bool>);

/// Reads `on`, `off` and `auto`, in llama.cpp's spellings, for clap.
///
/// # Errors
/// A text for any other.
pub fn on_off_auto(text: &str) -> std::result::Result<OnOff, String> {
    match text {
        "on" | "enabled" | "true" | "1" => Ok(OnOff(Some(true))),
        "off" | "disabled" | "false" | "0" => Ok(OnOff(Some(false))),
        "auto" | "-1" => Ok(OnOff(None)),
        _ => Err("it is none of on, off, auto".to_owned()),
    }
}

impl TemplateArgs {
    /// The template that is asked for.
    ///
    /// # Errors
    /// [`Error::Usage`](bitnet_runtime::Error::Usage) for a name that is not known,
    /// [`Error::Io`](bitnet_runtime::Error::Io) for a file that cannot be read.
    pub fn choice(&self) -> Result<TemplateChoice> {
        match (&self.chat_template, &self.chat_template_file) {
            (Some(text), _) => TemplateChoice::parse(text),
            (None, Some(path)) => {
                Ok(TemplateChoice::Source(prompt::from_path(path, LastLineEnd::Kept)?))
            }
            (None, None) => Ok(TemplateChoice::Auto),
        }
    }

    /// The variables of the template that are given.
    ///
    /// # Errors
    /// [`Error::Usage`](bitnet_runtime::Error::Usage) for what is no object of variables.
    pub fn variables(&self) -> Result<Variables> {
        let text = self.chat_template_kwargs.as_deref();
        let mut variables = text.map_or(Ok(Variables::default()), Variables::parse)?;
        if let Some(on) = self.reasoning.0 {
            variables.set("enable_thinking", on)?;
        }
        Ok(variables)
    }

    /// The flags, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 4] {
        [
            ("--chat-template", self.chat_template.is_some()),
            ("--chat-template-file", self.chat_template_file.is_some()),
            ("--chat-template-kwargs", self.chat_template_kwargs.is_some()),
            ("--reasoning", self.reasoning != OnOff(None)),
        ]
    }
}
