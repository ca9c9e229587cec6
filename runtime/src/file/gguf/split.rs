//! Models that were split into several files, as llama.cpp's `llama-gguf-split` does it.
//!
//! The parts of a model `NAME` are `NAME-00001-of-00003.gguf` and so on, in one folder. Each has the
//! keys `split.no`, its number from 0, and `split.count`, that of all parts; `split.tensors.count` is
//! the number of tensors in all of them. The first holds the model's metadata, and a model is
//! opened by it.

use std::io;
use std::path::{Path, PathBuf};

use super::Gguf;
use crate::cpu::memory;
use crate::error::{Error, Result, quoted};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
/// Most parts: the number is 16 bits wide.
const MAX_PARTS: i128 = 65_535;
const JOIN: &str = "join the parts with llama-gguf-split --merge FIRST-PART OUTPUT";

/// A model in several files, known by the first that was opened.
pub(super) struct Split {
    first: PathBuf,
    /// The start of the parts' names.
    name: String,
    /// Number of parts, at least 2.
    pub(super) count: usize,
}

/// Returns the end of the name of part `number`, from 0.
fn ending(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// Returns what stands in front of the ending of a part's name.
fn start_of_name(path: &Path, number: usize, count: usize) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(&ending(number, count))
}

/// True if a file is one of several by its name.
#[must_use]
pub fn is_part_name(path: &Path) -> bool {
    let numbers = || {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (_, number) = stem.rsplit_once('-')?;
        let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
        start_of_name(path, number.checked_sub(1)?, count)
    };
    numbers().is_some()
}

impl Split {
    /// Returns the model that an open file is the first part of; `None` if it is in one file.
    ///
    /// # Errors
    /// [`Error::Model`] when it is another part, which names the first, or has another name than
    /// parts have.
    pub(super) fn of(file: &Gguf) -> Result<Option<Self>> {
        let count = file.get(COUNT).and_then(|value| value.as_i128());
        let Some(count) = count.filter(|count| (2..=MAX_PARTS).contains(count)) else {
            return Ok(None);
        };
        let (count, path) = (count as usize, file.path());
        let number = file.require(NUMBER, file.get_u32(NUMBER)?)? as usize;
        let name = start_of_name(path, number, count);
        if number != 0 {
            let first = match name {
                Some(name) => {
                    let first = path.with_file_name(format!("{name}{}", ending(0, count)));
                    format!("0, the first part, {}; give that one", first.display())
                }
                None => "0, the first part; give that one".to_owned(),
            };
            let found = format!("{number}, part {} of {count}", number + 1);
            return Err(file.key_error(NUMBER, found, first));
        }
        let Some(name) = name.map(str::to_owned) else {
            let found = quoted(&path.file_name().unwrap_or_default().to_string_lossy());
            let expected = format!(
                "a name that ends with {}, as this is the first of {count} parts; rename the parts, \
                 or {JOIN}",
                ending(0, count)
            );
            return Err(Error::model(path, "file name", found, expected));
        };
        Ok(Some(Self { first: path.to_path_buf(), name, count }))
    }

    /// Returns the path of part `number`, from 0.
    pub(super) fn path(&self, number: usize) -> PathBuf {
        self.first.with_file_name(format!("{}{}", self.name, ending(number, self.count)))
    }

    /// Checks that memory holds the parts behind the first, before any of them is read into it.
    ///
    /// # Errors
    /// [`Error::Io`] naming their bytes.
    pub(super) fn check_room(&self) -> Result<()> {
        // One that is not there is told when it is opened.
        let bytes = |number| std::fs::metadata(self.path(number)).map_or(0, |meta| meta.len());
        let all = (1..self.count).map(bytes).fold(0, u64::saturating_add);
        match memory::available() {
            Some(free) if free < all => {
                let text = format!("{all} bytes of its other parts do not fit into memory");
                Err(Error::io(&self.first, "read", io::Error::other(text)))
            }
            _ => Ok(()),
        }
    }

    /// Makes the error of opening a part say which it is.
    pub(super) fn explain(&self, number: usize, error: Error) -> Error {
        match error {
            Error::Io { path, action, source } => {
                let text = format!(
                    "{source}; it is part {} of {} of the model, which needs all of them in one folder",
                    number + 1,
                    self.count
                );
                Error::Io { path, action, source: io::Error::new(source.kind(), text) }
            }
            other => other,
        }
    }

    /// Checks that an open file is part `number`.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and the key that says otherwise.
    pub(super) fn check(&self, number: usize, part: &Gguf) -> Result<()> {
        for (key, expected) in [(NUMBER, number), (COUNT, self.count)] {
            let found = part.require(key, part.get(key))?;
            if found.as_i128() != Some(expected as i128) {
                let first = self.first.display();
                let expected = format!("{expected}, by its name and by {first}; download it again");
                return Err(part.key_error(key, found, expected));
            }
        }
        Ok(())
    }
}

/// Checks that all parts of a model are open, and have as many tensors as the first says.
///
/// # Errors
/// [`Error::Model`] naming the key, and how the parts are brought together.
pub(super) fn check_whole(gguf: &Gguf) -> Result<()> {
    let parts = gguf.files().len();
    match gguf.get(COUNT) {
        Some(count) if count.as_i128().is_none_or(|count| count < 1) => {
            let expected = "the number of files, an integer of 1 or more; convert the model again";
            return Err(gguf.key_error(COUNT, count, expected));
        }
        Some(count) if count.as_i128() != Some(parts as i128) => {
            let expected = format!("{parts}, as one file alone is open; {JOIN}");
            return Err(gguf.key_error(COUNT, count, expected));
        }
        _ => {}
    }
    let tensors = gguf.tensors().len();
    match gguf.get(TENSORS) {
        Some(count) if count.as_i128() != Some(tensors as i128) => {
            let of = if parts == 1 { "this file" } else { "all parts" };
            let expected = format!("{tensors}, the tensors of {of}; download the model again");
            Err(gguf.key_error(TENSORS, count, expected))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_names() {
        for (name, is_part) in [
            ("dir/m-00001-of-00002.gguf", true),
            ("m.q2-00012-of-00345.gguf", true),
            ("-00001-of-00001.gguf", true),
            ("m-00000-of-00002.gguf", false),
            ("m-1-of-2.gguf", false),
            ("m-00001-of-00002.bin", false),
            ("m-00001.gguf", false),
            ("m.gguf", false),
        ] {
            assert_eq!(is_part_name(Path::new(name)), is_part, "{name}");
        }
    }
}
