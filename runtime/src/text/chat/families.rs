//! Templates that are built in, and the choice of one.

use crate::error::{Error, Result, quoted};

/// Key of a file's template, and of the one for conversations with tools.
pub(super) const KEY: &str = "tokenizer.chat_template";
pub(super) const KEY_TOOLS: &str = "tokenizer.chat_template.tool_use";

/// Name of a file's own template, even if it is known to be wrong.
const OWN: &str = "gguf";

const CHATML: &str = include_str!("templates/chatml.jinja");

/// Names and sources of the templates that are built in.
const BUILT_IN: [(&str, &str); 5] = [
    ("bitnet", include_str!("templates/bitnet.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("chatml", CHATML),
    ("falcon3", include_str!("templates/falcon3.jinja")),
    ("falcon_e", CHATML),
];

/// Choice of a chat template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The file's; in place of a placeholder that is known, the template of its model.
    #[default]
    Auto,
    /// The file's, whatever it is.
    Own,
    /// A built-in one, by its name in [`TemplateChoice::built_in`].
    BuiltIn(&'static str),
    /// A Jinja template.
    Source(String),
}

impl TemplateChoice {
    /// The names of the built-in templates.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// Makes a choice of a text: the name of a built-in template, `gguf` for the file's own, or a Jinja
    /// template.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not known.
    pub fn parse(text: &str) -> Result<Self> {
        if text.contains("{%") || text.contains("{{") {
            return Ok(Self::Source(text.to_owned()));
        }
        let built_in = Self::built_in().find(|name| *name == text).map(Self::BuiltIn);
        built_in.or((text == OWN).then_some(Self::Own)).ok_or_else(|| {
            let names = names();
            let expected = format!("{names}, {OWN} for the file's own, or a Jinja template");
            Error::usage("chat_template", quoted(text), expected)
        })
    }
}

/// The names of the built-in templates, for messages.
pub(super) fn names() -> String {
    TemplateChoice::built_in().collect::<Vec<_>>().join(", ")
}

/// The source of a built-in template.
pub(super) fn source(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(own, _)| *own == name).map(|(_, source)| *source)
}

/// The name of the built-in template that serves in place of a file's, where that is a placeholder of the
/// program that converted the model.
pub(super) fn replacement(source: &str) -> Option<&'static str> {
    // microsoft/BitNet, utils/convert-ms-to-gguf-bitnet.py.
    source.contains("BITNETAssistant").then_some("bitnet")
}
