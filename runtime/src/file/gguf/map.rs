//! An opened file: the header in memory, tensor data in the map.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::header::Header;
use super::{Array, StrArray, TensorInfo, Value};
use crate::cpu::memory;
use crate::error::{Error, Result, quoted};

enum Bytes {
    Mapped { map: Mmap, file: File },
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped { map, .. } => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

/// An opened GGUF file: header in memory, tensor data in the map.
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
    warning: Option<String>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("kv", &self.header.kv.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Gguf {
    /// Maps the file and reads its header. No tensor page is touched. Where the system maps no
    /// such file it is read into memory, and [`Gguf::warning`] says so.
    ///
    /// The file must not be cut short while it is open: reading a page that is gone ends the
    /// process with SIGBUS, as with every memory-mapped model.
    ///
    /// # Errors
    /// [`Error::Io`] when the path is not a readable regular file, [`Error::Model`] when the
    /// header breaks a rule.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        // SAFETY: the map is private and read-only, and this process never writes the file.
        // Another process might: the header is copied before it is interpreted further, and
        // tensor data is plain numbers for which any bytes are valid.
        Self::open_with(path.as_ref(), |file| unsafe { Mmap::map(file) })
    }

    fn open_with(path: &Path, map: impl FnOnce(&File) -> io::Result<Mmap>) -> Result<Gguf> {
        let file = Self::file(path)?;
        let (bytes, warning) = match map(&file) {
            Ok(map) => (Bytes::Mapped { map, file }, None),
            Err(error) => {
                let warning = format!(
                    "{}: the system does not map this file ({error}), so it was read into memory",
                    path.display()
                );
                (Bytes::Memory(Self::contents(path, file)?.into()), Some(warning))
            }
        };
        Self::new(path, bytes, warning)
    }

    /// Reads the file into memory, which takes as much of it as the file is long, and its header.
    /// Unlike a map it cannot be pulled away by whoever cuts the file short.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let bytes = Self::contents(path, Self::file(path)?)?;
        Self::new(path, Bytes::Memory(bytes.into()), None)
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
            refused(io::Error::other(format!("{len} bytes do not fit into memory")))
        })?;
        file.read_to_end(&mut bytes).map_err(refused)?;
        Ok(bytes)
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

    fn new(path: &Path, bytes: Bytes, warning: Option<String>) -> Result<Gguf> {
        let data = bytes.get();
        let header = Header::parse(path, data, data.len() as u64)?;
        Ok(Gguf { path: path.to_path_buf(), bytes, header, warning })
    }

    /// Reads a file that is already in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// [`Error::Model`] when the header breaks a rule.
    pub fn from_bytes(
        name: impl AsRef<Path>,
        bytes: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Gguf> {
        Self::new(name.as_ref(), Bytes::Memory(bytes.into()), None)
    }

    fn data(&self) -> &[u8] {
        self.bytes.get()
    }

    /// True if the file is mapped; otherwise it is in memory.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped { .. })
    }

    /// A note on opening the file, in one line: it could not be mapped.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The file's path, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.data().len() as u64
    }

    /// GGUF version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Alignment of the tensor data in bytes.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.header.alignment
    }

    /// Offset of the tensor data in the file: the bytes of the header, padding included.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.header.data_start
    }

    /// All metadata in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.header.kv.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key, if it is there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.header.kv_index.get(key).map(|&i| &self.header.kv[i].1)
    }

    /// An [`Error::Model`] about a metadata key of this file.
    pub fn key_error(
        &self,
        key: &str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Error {
        Error::model(&self.path, format_args!("key {key}"), found, expected)
    }

    /// An [`Error::Model`] about a tensor of this file.
    pub fn tensor_error(
        &self,
        tensor: &str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Error {
        let item = format!("tensor {}", quoted(tensor));
        Error::model(&self.path, item, found, expected)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| self.key_error(key, v, expected)),
        }
    }

    /// An unsigned number of any integer type that fits; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a u32", |v| v.as_i128().and_then(|n| u32::try_from(n).ok()))
    }

    /// A floating-point number; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "an f32", |v| match *v {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A string; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// A truth value; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match *v {
            Value::Bool(b) => Some(b),
            _ => None,
        })
    }

    /// An array of any element type; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", |v| match v {
            Value::Array(a) => Some(a),
            _ => None,
        })
    }

    /// An array of strings; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_strings(&self, key: &str) -> Result<Option<&StrArray>> {
        self.typed(key, "an array of string", |v| match v {
            Value::Array(Array::Str(a)) => Some(a),
            _ => None,
        })
    }

    /// Turns the `None` of a getter into an error: `gguf.require(key, gguf.get_u32(key)?)`.
    ///
    /// # Errors
    /// [`Error::Model`] when the key is absent.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.key_error(key, "no such key", "this key; convert the model again"))
    }

    /// [`Gguf::get_u32`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Model`] when the key is absent or holds something else.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.require(key, self.get_u32(key)?)
    }

    /// [`Gguf::get_f32`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Model`] when the key is absent or holds something else.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.require(key, self.get_f32(key)?)
    }

    /// [`Gguf::get_str`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Model`] when the key is absent or holds something else.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.require(key, self.get_str(key)?)
    }

    /// All tensors in the order of the file's directory.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensor_index.get(name).map(|&i| &self.header.tensors[i])
    }

    /// The tensor's data, straight from the map; aligned only as the file's place in memory is, so
    /// read it byte by byte or with unaligned loads.
    ///
    /// A `TensorInfo` of another file yields an empty slice where it points outside of this one.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        byte_range(tensor).and_then(|range| self.data().get(range)).unwrap_or_default()
    }

    /// Bytes `part` of the tensor's data, read into `buffer` where the file is mapped. For a few bytes
    /// here and there: read from the map they would make the pages around them resident, too.
    pub fn read_part<'a>(
        &'a self,
        tensor: &TensorInfo,
        part: std::ops::Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        #[cfg(unix)]
        if let Bytes::Mapped { file, .. } = &self.bytes
            && part.end as u64 <= tensor.bytes
        {
            use std::os::unix::fs::FileExt;
            buffer.resize(part.len(), 0);
            // What cannot be read so can by the map.
            if file.read_exact_at(buffer, tensor.offset + part.start as u64).is_ok() {
                return buffer;
            }
        }
        #[cfg(not(unix))]
        let _ = buffer;
        &self.tensor_bytes(tensor)[part]
    }

    /// Tells the system that this tensor's pages will not be read again soon: they stop counting as
    /// resident, and with `uncache` need not stay in its cache of the file. Only whole pages inside
    /// the tensor are dropped. Reading the tensor again is slow, not wrong.
    pub fn drop_pages(&self, tensor: &TensorInfo, uncache: bool) {
        self.drop_part(tensor, 0..self.tensor_bytes(tensor).len(), uncache);
    }

    /// Drops the pages of bytes `part` of the tensor's data, as [`Gguf::drop_pages`].
    pub fn drop_part(&self, tensor: &TensorInfo, part: std::ops::Range<usize>, uncache: bool) {
        if let Some(whole) = byte_range(tensor)
            && part.start <= part.end
            && part.end <= whole.len()
        {
            self.drop_range(whole.start + part.start..whole.start + part.end, uncache);
        }
    }

    /// Drops all pages of the file, as [`Gguf::drop_pages`]: those included that the system read along
    /// with others after they had been dropped.
    pub fn drop_all(&self) {
        self.drop_range(0..self.data().len(), false);
    }

    fn drop_range(&self, range: std::ops::Range<usize>, uncache: bool) {
        #[cfg(unix)]
        if let Bytes::Mapped { map, file } = &self.bytes
            && range.end <= map.len()
        {
            let page = rustix::param::page_size();
            let (first, end) = (range.start.div_ceil(page) * page, range.end / page * page);
            if first < end {
                // SAFETY: dropping pages of a read-only private file map loses nothing: the next
                // read brings the same bytes back from the file.
                let advised = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        first,
                        end - first,
                    )
                };
                // Advice only; a system that refuses it keeps the pages.
                drop(advised);
                if uncache {
                    forget(file, first..end);
                }
            }
        }
        #[cfg(not(unix))]
        let _ = (range, uncache);
    }
}

/// Lets the system drop a part of a file from its cache; it may refuse.
#[cfg(unix)]
fn forget(file: &File, range: std::ops::Range<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(len) = std::num::NonZeroU64::new(range.len() as u64) {
        let _ =
            rustix::fs::fadvise(file, range.start as u64, Some(len), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

fn byte_range(tensor: &TensorInfo) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(tensor.offset).ok()?;
    let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::super::write::tests::sample;
    use super::super::{GgufWriter, TensorType};
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
        let read = |breaks_at| {
            let slow = Slow { rest: sample(), reads: 0, breaks_at };
            Gguf::read_all(Path::new("m.gguf"), slow, sample().len() as u64)
        };
        assert_eq!(read(0).unwrap(), sample());
        let error = read(20).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().starts_with("m.gguf: cannot read: "), "{error}");
    }

    /// F01: mapped, read on demand, or read because it could not be mapped, a file is the same.
    #[test]
    fn a_file_is_the_same_mapped_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, sample()).unwrap();
        let refused = |_: &File| Err(io::Error::from(io::ErrorKind::Unsupported));
        let mapped = Gguf::open(&path).unwrap();
        assert!(mapped.is_mapped() && mapped.warning().is_none());
        let read = Gguf::read(&path).unwrap();
        assert!(!read.is_mapped() && read.warning().is_none());
        let instead = Gguf::open_with(&path, refused).unwrap();
        assert!(!instead.is_mapped());
        let warning = instead.warning().unwrap();
        assert!(warning.contains("m.gguf") && warning.lines().count() == 1, "{warning}");
        for other in [&read, &instead] {
            assert!(other.metadata().eq(mapped.metadata()));
            assert_eq!(other.file_bytes(), mapped.file_bytes());
            for tensor in mapped.tensors() {
                let own = other.tensor(&tensor.name).unwrap();
                assert_eq!(other.tensor_bytes(own), mapped.tensor_bytes(tensor));
                // Advice about a map: of no consequence to one in memory.
                other.drop_pages(own, true);
                assert_eq!(other.tensor_bytes(own), mapped.tensor_bytes(tensor));
            }
        }
        // What is refused mapped is refused read, by the same words.
        std::fs::write(&path, "GGUF, but not really one").unwrap();
        let words = |gguf: Result<Gguf>| gguf.unwrap_err().to_string();
        assert_eq!(words(Gguf::read(&path)), words(Gguf::open(&path)));
        assert_eq!(words(Gguf::open_with(&path, refused)), words(Gguf::open(&path)));
        for path in [dir.path().to_path_buf(), dir.path().join("none")] {
            assert_eq!(words(Gguf::read(&path)), words(Gguf::open(&path)));
        }
    }

    #[test]
    fn getters_are_typed_and_say_what_they_found() {
        let g = Gguf::from_bytes("sample.gguf", sample()).unwrap();
        assert_eq!(g.get_u32("u8").unwrap(), Some(1));
        assert_eq!(g.get_u32("none").unwrap(), None);
        assert_eq!(g.get_f32("f64").unwrap(), Some(0.25));
        assert_eq!(g.require_str("str").unwrap(), "tên");
        let strings: Vec<_> = g.get_strings("astr").unwrap().unwrap().iter().collect();
        assert_eq!(strings, ["", "ab", "ü"]);
        assert_eq!(
            g.get_u32("i8").unwrap_err().to_string(),
            "sample.gguf: key i8: found i8 -1, expected a u32"
        );
        assert_eq!(
            g.get_bool("str").unwrap_err().to_string(),
            "sample.gguf: key str: found string 'tên', expected a bool"
        );
        let missing = g.require_u32("none").unwrap_err();
        assert_eq!(missing.exit_code(), 3);
        assert!(missing.to_string().contains("key none: found no such key"));
    }

    #[test]
    fn pages_dropped_read_back_the_same() {
        let mut w = GgufWriter::new();
        w.tensor("x", &[100_000], TensorType::F32).unwrap();
        let mut bytes = w.header();
        bytes.extend((0..100_000u32).flat_map(u32::to_le_bytes));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let g = Gguf::open(file.path()).unwrap();
        let x = g.tensor("x").unwrap();
        let before = g.tensor_bytes(x).to_vec();
        g.drop_pages(x, true);
        assert_eq!(g.tensor_bytes(x), before);
        g.drop_all();
        assert_eq!(g.tensor_bytes(x), before);
    }

    #[test]
    fn a_part_is_the_same_however_it_is_read() {
        let mut w = GgufWriter::new();
        for name in ["x", "y"] {
            w.tensor(name, &[1000], TensorType::F32).unwrap();
        }
        let mut bytes = w.header();
        bytes.extend((0..2000u32).flat_map(u32::to_le_bytes));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let mapped = Gguf::open(file.path()).unwrap();
        let in_memory = Gguf::from_bytes("sample.gguf", bytes).unwrap();
        let mut buffer = vec![7; 5000];
        for g in [&mapped, &in_memory] {
            let y = g.tensor("y").unwrap();
            for part in [0..4000, 12..20, 3999..4000, 8..8] {
                let expected = &g.tensor_bytes(y)[part.clone()];
                assert_eq!(g.read_part(y, part, &mut buffer), expected);
            }
        }
        // Cut off since it was opened: what is still there is read.
        file.as_file().set_len(mapped.data_start() + 4100).unwrap();
        let y = mapped.tensor("y").unwrap();
        let expected = [1000u32, 1001].map(u32::to_le_bytes).concat();
        assert_eq!(mapped.read_part(y, 0..8, &mut buffer), expected);
    }
}
