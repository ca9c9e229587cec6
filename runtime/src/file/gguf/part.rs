//! A file in memory or mapped: the whole of a model, or one of the parts that it was split into.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::cpu::memory;
use crate::error::{Error, Result};
use crate::file::hexadecimal;

/// A file and its bytes.
pub(super) struct Part {
    path: PathBuf,
    bytes: Bytes,
    warning: Option<String>,
}

enum Bytes {
    Mapped { map: Mmap, file: File },
    Memory(Cow<'static, [u8]>),
}

impl Part {
    /// Maps a file by `map`; where that fails it is read into memory, which the warning says.
    ///
    /// # Errors
    /// [`Error::Io`] when the path is not a readable regular file.
    pub(super) fn mapped(path: &Path, map: impl FnOnce(&File) -> io::Result<Mmap>) -> Result<Self> {
        let file = Self::file(path)?;
        let (bytes, warning) = match map(&file) {
            Ok(map) => (Bytes::Mapped { map, file }, None),
            Err(error) => {
                let warning = format!(
                    "{}: the system does not map this file ({error}), so it was read into memory",
                    path.display()
                );
                let contents = Self::contents(path, file).map_err(|e| match e {
                    Error::Io { path, source, .. } => {
                        let text = format!("{error}; nor is there room to read it: {source}");
                        Error::io(&path, "map", io::Error::new(error.kind(), text))
                    }
                    other => other,
                })?;
                (Bytes::Memory(contents.into()), Some(warning))
            }
        };
        Ok(Self { path: path.to_path_buf(), bytes, warning })
    }

    /// Reads a file into memory.
    ///
    /// # Errors
    /// As [`Part::mapped`], and when memory does not hold it.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Ok(Self::in_memory(path, Self::contents(path, Self::file(path)?)?))
    }

    /// Takes bytes for those of a file; `name` stands for its path.
    pub(super) fn in_memory(name: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = Bytes::Memory(bytes.into());
        Self { path: name.to_path_buf(), bytes, warning: None }
    }

    fn file(path: &Path) -> Result<File> {
        // Asked before opening: opening a FIFO would wait for a writer.
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !meta.is_file() {
            let what = if meta.is_dir() {
                "it is a directory; give the .gguf file inside it"
            } else {
                "it is not a regular file; give a .gguf file on disk"
            };
            return Err(Error::io(path, "open", io::Error::other(what)));
        }
        File::open(path).map_err(|e| Error::io(path, "open", e))
    }

    fn contents(path: &Path, file: File) -> Result<Vec<u8>> {
        let len = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        Self::read_all(path, file, len)
    }

    /// Reads `file`, about `len` bytes long, to its end.
    fn read_all(path: &Path, mut file: impl Read, len: u64) -> Result<Vec<u8>> {
        let refused = |e| Error::io(path, "read", e);
        let mut bytes = Vec::new();
        // A file that does not fit is an error, not the end of the process.
        let room = usize::try_from(len)
            .ok()
            .filter(|_| memory::available().is_none_or(|free| len <= free))
            .and_then(|len| bytes.try_reserve_exact(len).ok());
        room.ok_or_else(|| {
            let limit = memory::limit().filter(|&(_, left)| left < len);
            let limit = limit.map_or(String::new(), |(name, left)| {
                format!(", of which {name} leaves {} MB; raise it", left / 1_000_000)
            });
            refused(io::Error::other(format!("{len} bytes do not fit into memory{limit}")))
        })?;
        file.read_to_end(&mut bytes).map_err(refused)?;
        Ok(bytes)
    }

    /// The path, as given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes.
    pub(super) fn data(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { map, .. } => map,
            Bytes::Memory(bytes) => bytes,
        }
    }

    /// True if the file is mapped; otherwise it is in memory.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped { .. })
    }

    /// A note on opening the file, in one line: it could not be mapped.
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Time of the last change of the file that is open; none of what is in memory.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        let Bytes::Mapped { file, .. } = &self.bytes else { return None };
        file.metadata().ok()?.modified().ok()
    }

    /// Returns the SHA-256 of the content. A mapped file is read by the system, which makes no page of
    /// the map resident.
    ///
    /// # Errors
    /// [`Error::Io`] when the system does not read it.
    pub(super) fn sha256(&self) -> Result<String> {
        const PIECE: usize = 1 << 20;
        let (mut hash, mut buffer) = (Sha256::new(), Vec::new());
        for (i, piece) in self.data().chunks(PIECE).enumerate() {
            let start = (i * PIECE) as u64;
            match self.read_at(start..start + piece.len() as u64, &mut buffer) {
                true => hash.update(&buffer),
                false if cfg!(unix) && self.is_mapped() => {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(Error::io(&self.path, "read", error));
                }
                false => hash.update(piece),
            }
        }
        Ok(hexadecimal(hash))
    }

    /// Reads bytes of a mapped file by the system, without its map. Returns false if it is in
    /// memory, or the system did not read all of them; `buffer` is then of no use.
    #[cfg(unix)]
    pub(super) fn read_at(&self, range: Range<u64>, buffer: &mut Vec<u8>) -> bool {
        use std::os::unix::fs::FileExt;
        let Bytes::Mapped { file, .. } = &self.bytes else { return false };
        buffer.resize((range.end - range.start) as usize, 0);
        file.read_exact_at(buffer, range.start).is_ok()
    }

    #[cfg(not(unix))]
    pub(super) fn read_at(&self, _: Range<u64>, _: &mut Vec<u8>) -> bool {
        false
    }

    /// Tells the system that the pages inside a range will not be read again soon: see
    /// [`Gguf::drop_pages`](super::Gguf::drop_pages).
    #[cfg(unix)]
    pub(super) fn drop_range(&self, range: Range<usize>, uncache: bool) {
        let Bytes::Mapped { map, file } = &self.bytes else { return };
        if range.end > map.len() {
            return;
        }
        let page = rustix::param::page_size();
        let (first, end) = (range.start.div_ceil(page) * page, range.end / page * page);
        if first < end {
            // SAFETY: dropping pages of a read-only private file map loses nothing: the next
            // read brings the same bytes back from the file.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first)
            };
            // Advice only; a system that refuses it keeps the pages.
            drop(advised);
            if uncache {
                forget(file, first..end);
            }
        }
    }

    #[cfg(not(unix))]
    pub(super) fn drop_range(&self, _: Range<usize>, _: bool) {}
}

/// Lets the system drop a part of a file from its cache; it may refuse.
#[cfg(unix)]
fn forget(file: &File, range: Range<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(len) = std::num::NonZeroU64::new(range.len() as u64) {
        let _ =
            rustix::fs::fadvise(file, range.start as u64, Some(len), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F10: a file that comes slowly, a few bytes at a time and with interruptions, as from a network,
    /// is read whole; one that breaks off is an error of the system.
    #[test]
    fn a_file_may_come_in_pieces() {
        struct Slow {
            rest: Vec<u8>,
            reads: usize,
            breaks_at: usize,
        }
        impl Read for Slow {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.reads += 1;
                if self.reads == self.breaks_at {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if self.reads.is_multiple_of(3) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let n = self.rest.len().min(buffer.len()).min(7);
                buffer[..n].copy_from_slice(&self.rest[..n]);
                self.rest.drain(..n);
                Ok(n)
            }
        }
        let sample: Vec<u8> = (0..1000u32).flat_map(u32::to_le_bytes).collect();
        let read = |breaks_at| {
            let slow = Slow { rest: sample.clone(), reads: 0, breaks_at };
            Part::read_all(Path::new("m.gguf"), slow, sample.len() as u64)
        };
        assert_eq!(read(0).unwrap(), sample);
        let error = read(20).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().starts_with("m.gguf: cannot read: "), "{error}");
    }
}
