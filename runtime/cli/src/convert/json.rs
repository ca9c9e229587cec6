//! Reads files of a Hugging Face folder that are JSON, or text, within limits.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use bitnet_runtime::error::{Error, Result, quoted};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Opens a regular file.
///
/// # Errors
/// [`Error::Io`] for anything else: opening a pipe would wait for its writer.
pub fn open(path: &Path) -> Result<File> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if !meta.is_file() {
        return Err(Error::io(path, "open", io::Error::other("it is not a regular file")));
    }
    File::open(path).map_err(|e| Error::io(path, "open", e))
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Model`] when it is longer.
pub fn bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    let file = open(path)?.take(most + 1).read_to_end(&mut contents);
    file.map_err(|e| Error::io(path, "read", e))?;
    if contents.len() as u64 > most {
        let expected = format!("at most {most} bytes");
        return Err(Error::model(path, "size", "more", expected));
    }
    Ok(contents)
}

/// Reads a file of JSON of at most so many bytes.
///
/// # Errors
/// As [`bytes`]; [`Error::Model`] for what is no such JSON, with its line.
pub fn read<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T> {
    parse(path, &bytes(path, most)?)
}

/// Reads JSON that came from a file.
///
/// # Errors
/// [`Error::Model`] for what is no such JSON, with its line.
pub fn parse<T: DeserializeOwned>(path: &Path, contents: &[u8]) -> Result<T> {
    serde_json::from_slice(contents)
        .map_err(|e| Error::model(path, "JSON", e, "what Hugging Face writes there"))
}

/// True for one component of a path that leads nowhere else.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let alone = matches!(components.next(), Some(Component::Normal(own)) if own == name);
    alone && components.next().is_none() && !name.contains(['/', '\\'])
}

/// An object of a file of JSON, whose values are asked for by their keys.
#[derive(Clone, Debug)]
pub struct Object {
    path: PathBuf,
    /// Keys that lead to it, each with a dot behind.
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file that holds an object.
    ///
    /// # Errors
    /// Those of [`read`].
    pub fn read(path: &Path, most: u64) -> Result<Self> {
        Ok(Self { path: path.into(), prefix: String::new(), map: read(path, most)? })
    }

    /// Reads a file as [`Object::read`]; an empty object where there is none.
    ///
    /// # Errors
    /// Those of [`read`], of a file that is there.
    pub fn read_optional(path: &Path, most: u64) -> Result<Self> {
        if path.exists() {
            return Self::read(path, most);
        }
        Ok(Self { path: path.into(), prefix: String::new(), map: Map::new() })
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, unless it is null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// Makes an error about a key.
    pub fn error(&self, key: &str, found: impl Display, expected: impl Display) -> Error {
        Error::model(&self.path, format_args!("key {}{key}", self.prefix), found, expected)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let wrong = |value: &Value| self.error(key, quoted(&value.to_string()), expected);
        self.get(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    /// The object of a key.
    ///
    /// # Errors
    /// [`Error::Model`] for another value.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Self { path: self.path.clone(), prefix, map: map.clone() }))
    }

    /// The text of a key.
    ///
    /// # Errors
    /// [`Error::Model`] for another value.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// The truth value of a key.
    ///
    /// # Errors
    /// [`Error::Model`] for another value.
    pub fn truth(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The number of a key.
    ///
    /// # Errors
    /// [`Error::Model`] for another value.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// The whole number of a key, 1 to `most`.
    ///
    /// # Errors
    /// [`Error::Model`] for another value.
    pub fn size(&self, key: &str, most: usize) -> Result<Option<usize>> {
        let whole = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let fits = |value: &Value| whole(value).filter(|n| (1..=most).contains(n));
        self.typed(key, &format!("a whole number of 1 to {most}"), fits)
    }

    /// Turns the `None` of a getter into an error.
    ///
    /// # Errors
    /// [`Error::Model`] when the key is absent.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "no such key", "this key, which nothing stands in for"))
    }
}
