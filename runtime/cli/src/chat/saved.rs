//! Conversations in files.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bitnet_profiles::{atomic_file, destination};
use bitnet_runtime::Message;
use bitnet_runtime::error::{Error, Result, quoted};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a file says first.
const FORMAT: &str = "bitnet-chat";
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// A conversation as a file holds it, in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    format: String,
    version: u32,
    /// The model that gave the answers.
    pub model: Model,
    /// The name of the chat template.
    pub template: String,
    /// The system prompt.
    pub system: Option<String>,
    /// Sampling and length of answers, as [`Parameters::to_saved`](super::Parameters::to_saved) makes them.
    pub parameters: Map<String, Value>,
    /// The messages without the system prompt.
    pub messages: Vec<Message>,
}

/// A model, as saved conversations name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its own name, or that of its file.
    pub name: String,
    /// SHA-256 of its file's header, size and ends, in hexadecimal.
    pub fingerprint: String,
}

impl Saved {
    /// Makes a conversation of this version.
    pub fn new(
        model: Model,
        template: &str,
        system: Option<String>,
        parameters: Map<String, Value>,
        messages: Vec<Message>,
    ) -> Self {
        let (format, template) = (FORMAT.to_owned(), template.to_owned());
        Self { format, version: VERSION, model, template, system, parameters, messages }
    }

    /// Writes a file, in place of another conversation if there is one.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written; [`Error::Usage`] where a file of another kind is.
    pub fn write(&self, path: &Path) -> Result<()> {
        if destination::holds_contents(path) {
            let beginning = destination::beginning(path).map_err(|e| Error::io(path, "read", e))?;
            let text = String::from_utf8_lossy(&beginning);
            let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            if !text.starts_with(&format!(r#"{{"format":"{FORMAT}""#)) {
                let expected = "a new name, or that of a saved conversation";
                return Err(Error::usage(path.display(), "a file of another kind", expected));
            }
        }
        let text = self.text()?;
        atomic_file::replace(path, text.as_bytes()).map_err(|e| Error::io(path, "write", e))
    }

    /// The text of a file.
    ///
    /// # Errors
    /// [`Error::Runtime`] for what has no form in JSON.
    pub fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        let text =
            text.map_err(|e| Error::Runtime(format!("cannot write the conversation: {e}")))?;
        Ok(text + "\n")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Usage`] when it is no conversation.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let mut text = String::new();
        let read = file.take(LARGEST + 1).read_to_string(&mut text);
        read.map_err(|e| Error::io(path, "read", e))?;
        if text.len() as u64 > LARGEST {
            return Err(wrong(path, format!("more than {LARGEST} bytes")));
        }
        Self::parse(path, &text)
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is no conversation.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let saved: Self =
            serde_json::from_str(text).map_err(|e| wrong(path, format!("JSON: {e}")))?;
        if (saved.format.as_str(), saved.version) != (FORMAT, VERSION) {
            let found = format!("{} {}", quoted(&saved.format), saved.version);
            return Err(wrong(path, found));
        }
        Ok(saved)
    }
}

fn wrong(path: &Path, found: String) -> Error {
    Error::usage(path.display(), found, "a conversation that /save has written")
}
