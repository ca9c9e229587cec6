//! The identity of a model's files, for what is derived from them and kept.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Gguf;
use super::part::Part;
use crate::error::Result;
use crate::file::hexadecimal;

/// Identity of the files of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// SHA-256 of the header, or of the first part's; 64 hexadecimal digits.
    pub header_sha256: String,
    /// The file, or all parts in order.
    pub files: Vec<SourceFile>,
}

/// Identity of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its length.
    pub bytes: u64,
    /// Time of its last change, in nanoseconds since 1970; none where the system does not say.
    pub modified_ns: Option<u64>,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// Result of a comparison of files with a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// They are the same, by header, lengths and times.
    Same,
    /// They have other times, but the same content.
    Touched,
    /// They are others; says in what they differ.
    Other(&'static str),
}

impl Gguf {
    /// Reads all files to identify them.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the system does not read one.
    pub fn source(&self) -> Result<Source> {
        let file = |part: &Part| {
            Ok(SourceFile {
                bytes: part.data().len() as u64,
                modified_ns: modified(part),
                sha256: part.sha256()?,
            })
        };
        let files = self.parts().iter().map(file).collect::<Result<_>>()?;
        Ok(Source { header_sha256: self.header_sha256(), files })
    }

    /// Compares the files with a source. They are read only where their times differ from it and
    /// nothing else does.
    ///
    /// # Errors
    /// As [`Gguf::source`].
    pub fn likeness(&self, source: &Source) -> Result<Likeness> {
        let parts = self.parts();
        let lengths = parts.iter().map(|part| part.data().len() as u64);
        if !lengths.eq(source.files.iter().map(|file| file.bytes)) {
            return Ok(Likeness::Other("another length"));
        }
        if self.header_sha256() != source.header_sha256 {
            return Ok(Likeness::Other("another header"));
        }
        let mut likeness = Likeness::Same;
        for (part, file) in parts.iter().zip(&source.files) {
            let modified = modified(part);
            if modified.is_some() && modified == file.modified_ns {
                continue;
            }
            if part.sha256()? != file.sha256 {
                return Ok(Likeness::Other("another content"));
            }
            likeness = Likeness::Touched;
        }
        Ok(likeness)
    }

    /// Returns the SHA-256 of the header, or of the first part's.
    #[must_use]
    pub fn header_sha256(&self) -> String {
        let data = self.parts()[0].data();
        let end = usize::try_from(self.data_start()).unwrap_or(usize::MAX).min(data.len());
        hexadecimal(Sha256::new_with_prefix(&data[..end]))
    }
}

/// Returns the time of a file's last change, in nanoseconds since 1970.
fn modified(part: &Part) -> Option<u64> {
    u64::try_from(part.modified()?.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::super::{GgufWriter, TensorType};
    use super::*;

    #[test]
    fn a_file_is_known_by_header_length_and_time_and_else_by_its_content() {
        let mut writer = GgufWriter::new();
        writer.tensor("x", &[1000], TensorType::F32).unwrap();
        let mut bytes = writer.header();
        bytes.extend((0..1000u32).flat_map(u32::to_le_bytes));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let time = SystemTime::now() - Duration::from_secs(1000);
        let write = |bytes: &[u8], seconds: u64| {
            std::fs::write(&path, bytes).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(time + Duration::from_secs(seconds)).unwrap();
            Gguf::open(&path).unwrap()
        };
        let source = write(&bytes, 0).source().unwrap();
        assert_eq!(source.files.len(), 1);
        assert_eq!(source.files[0].sha256, hexadecimal(Sha256::new_with_prefix(&bytes)));
        let like = |bytes: &[u8], seconds| write(bytes, seconds).likeness(&source).unwrap();
        assert_eq!(like(&bytes, 0), Likeness::Same);
        assert_eq!(like(&bytes, 1), Likeness::Touched);
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        assert_eq!(like(&other, 1), Likeness::Other("another content"));
        other.push(0);
        assert_eq!(like(&other, 0), Likeness::Other("another length"));
        let mut renamed = bytes.clone();
        let at = renamed.iter().position(|&byte| byte == b'x').unwrap();
        renamed[at] = b'y';
        assert_eq!(like(&renamed, 0), Likeness::Other("another header"));
        // What is in memory has no time, and is known by its content.
        let read = Gguf::from_bytes("m.gguf", bytes).unwrap();
        assert_eq!(read.likeness(&source).unwrap(), Likeness::Touched);
        assert_eq!(read.source().unwrap().files[0].sha256, source.files[0].sha256);
    }
}
