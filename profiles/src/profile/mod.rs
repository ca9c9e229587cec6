//! The tuning profile: which kernels serve which role of which model on which host. Its schema is
//! documented field by field in [`Profile`]; it holds names and bounded numbers only, so a wrong profile
//! may make inference slow, never wrong.

mod schema;
#[cfg(test)]
mod tests;
mod validate;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use schema::{
    Choice, Effort, Host, Model, Objective, Pick, Pinning, Profile, Provenance, Role, Run, Sparse,
    Timed, Tool,
};

use crate::{Isa, Shape, atomic_file, printable, stable_hash};

/// Reasons for which a profile is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The attempted step.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The text is no profile.
    #[error("{item}: {problem}")]
    Content {
        /// The field, or the place in the text.
        item: String,
        /// The item, the value found, and what is allowed.
        problem: String,
    },
}

impl ProfileError {
    fn content(item: impl Into<String>, problem: impl Into<String>) -> Self {
        // A message may quote the file, and ends in a terminal.
        Self::Content {
            item: printable(&item.into()).into_owned(),
            problem: printable(&problem.into()).into_owned(),
        }
    }
}

impl Profile {
    /// The schema this version reads and writes.
    pub const SCHEMA: u32 = 1;
    /// Largest profile that is read, in bytes.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// Reads a profile and checks every field.
    ///
    /// # Errors
    /// [`ProfileError::Content`] names the first field that is wrong, and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let grammar = |e: toml::de::Error| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ProfileError::content(format!("line {line}"), shown(e.message()))
        };
        // The version comes first: a later schema may have fields this one does not know.
        let Schema { schema } = toml::from_str(text).map_err(grammar)?;
        if schema != Self::SCHEMA {
            return Err(ProfileError::content(
                "schema",
                format!("{schema}, but this version reads {}", Self::SCHEMA),
            ));
        }
        let profile: Self = toml::from_str(text).map_err(grammar)?;
        profile.validate()?;
        Ok(profile)
    }

    /// Reads a profile from a file.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when it cannot be read, else as [`Profile::parse`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let io =
            |action| move |source| ProfileError::Io { path: path.to_path_buf(), action, source };
        let meta = std::fs::metadata(path).map_err(io("open"))?;
        if !meta.is_file() {
            return Err(ProfileError::content("file", "not a regular file"));
        }
        if meta.len() > Self::MAX_BYTES {
            let problem =
                format!("{} bytes, but a profile has at most {}", meta.len(), Self::MAX_BYTES);
            return Err(ProfileError::content("file", problem));
        }
        let bytes = std::fs::read(path).map_err(io("read"))?;
        Self::from_bytes(bytes)
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<Self, ProfileError> {
        let text = String::from_utf8(bytes).map_err(|e| {
            ProfileError::content(format!("byte {}", e.utf8_error().valid_up_to()), "not UTF-8")
        })?;
        Self::parse(&text)
    }

    /// The profile as text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Writes the profile whole, as [`crate::atomic_file::replace`] does: `path` holds either the old
    /// profile or the new one.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when the system refuses.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        atomic_file::replace(path, self.to_text().as_bytes()).map_err(|source| ProfileError::Io {
            path: path.to_path_buf(),
            action: "write",
            source,
        })
    }

    /// Replaces every kernel by the built-in one named beside it, with the same figures.
    pub fn use_built_in(&mut self) {
        for op in &mut self.ops {
            for pick in [Some(&mut op.decode), op.prefill.as_mut()].into_iter().flatten() {
                pick.kernel = pick.built_in;
            }
            if let Some(sparse) = &mut op.sparse {
                sparse.kernel = sparse.built_in;
            }
        }
        self.tool.library_sha256 = None;
    }

    /// The choice for a role: the one made for these shapes.
    pub fn choice(&self, role: Role, parts: &[Shape]) -> Option<&Choice> {
        self.ops.iter().find(|choice| choice.role == role && choice.parts == parts)
    }

    /// True if the CPU, as `runs` says, has what every kernel named needs, fallbacks included.
    ///
    /// # Errors
    /// [`ProfileError::Content`] names the first that it lacks.
    pub fn check_isa(&self, runs: impl Fn(Isa) -> bool) -> Result<(), ProfileError> {
        for (i, choice) in self.ops.iter().enumerate() {
            for (name, kernel, built_in) in choice.kernels() {
                if let Some(id) = [kernel, built_in].into_iter().find(|id| !runs(id.isa)) {
                    let item = format!("op {} ({}).{name}", i + 1, choice.role);
                    let problem = format!("{id} needs {}, which this CPU lacks", id.isa);
                    return Err(ProfileError::content(item, problem));
                }
            }
        }
        Ok(())
    }
}

/// A message that may quote the file: on one line, no way to drive a terminal, cut short.
fn shown(message: &str) -> String {
    let mut out = String::new();
    for c in message.chars().take(400) {
        if matches!(c, '\'' | '"' | '\\') {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

/// Names the jobs of a model: a hash over every role with its parts and count, in order, as 16
/// hexadecimal digits. Two models with the same hash want the same kernels.
pub fn shapes_hash<'a>(jobs: impl IntoIterator<Item = (Role, &'a [Shape], u32)>) -> String {
    let mut bytes = Vec::new();
    for (role, parts, count) in jobs {
        bytes.extend(role.name().bytes());
        bytes.extend(count.to_le_bytes());
        for part in parts {
            bytes.extend((part.rows as u64).to_le_bytes());
            bytes.extend((part.cols as u64).to_le_bytes());
        }
    }
    stable_hash(bytes)
}
