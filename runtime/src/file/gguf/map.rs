//! An opened file: the header in memory, tensor data in the map.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::header::Header;
use super::part::Part;
use super::split::{self, Split};
use super::{Array, StrArray, TensorInfo, Value};
use crate::error::{Error, Result, quoted};

/// An opened GGUF file, or several that one model was split into: header in memory, tensor data in
/// the map.
pub struct Gguf {
    /// The file; of a model in several files all parts, in order.
    parts: Vec<Part>,
    /// Metadata of the first part, tensors of all.
    pub(super) header: Header,
    /// The keys whose values are not the file's, each with a line that says so.
    pub(super) overridden: BTreeMap<String, String>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path())
            .field("kv", &self.header.kv.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Gguf {
    /// Maps the file and reads its header. No tensor page is touched. Where the system maps no
    /// such file it is read into memory, and [`Gguf::warnings`] says so.
    ///
    /// The first part of a model in several files (`NAME-00001-of-00003.gguf`, as llama.cpp's
    /// `llama-gguf-split` writes them) opens all of them.
    ///
    /// The file must not be cut short while it is open: reading a page that is gone ends the
    /// process with SIGBUS, as with every memory-mapped model.
    ///
    /// # Errors
    /// [`Error::Io`] when the path, or another part's, is not a readable regular file,
    /// [`Error::Model`] when a header breaks a rule, or the file is a part other than the first.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        Self::open_with(path.as_ref(), map_file)
    }

    fn open_with(path: &Path, map: fn(&File) -> io::Result<Mmap>) -> Result<Gguf> {
        Self::whole(path, |path| Part::mapped(path, map))
    }

    /// Maps one file alone, whether or not it is a part of a model in several files. It can be
    /// looked at; a model is not loaded from one of several parts.
    ///
    /// # Errors
    /// As [`Gguf::open`], but for other parts.
    pub fn open_part(path: impl AsRef<Path>) -> Result<Gguf> {
        Self::new(Part::mapped(path.as_ref(), map_file)?)
    }

    /// Reads the file, or all parts, into memory, which takes as much of it as they are long, and
    /// the header. Unlike a map it cannot be pulled away by whoever cuts the file short.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Gguf> {
        Self::whole(path.as_ref(), Part::read)
    }

    /// Opens a file and, if it is the first part of a model, the others.
    fn whole(path: &Path, open: impl Fn(&Path) -> Result<Part>) -> Result<Gguf> {
        let mut gguf = Self::new(open(path)?)?;
        if let Some(split) = Split::of(&gguf)? {
            if !gguf.is_mapped() {
                split.check_room()?;
            }
            for number in 1..split.count {
                let part = open(&split.path(number));
                let part = Self::new(part.map_err(|error| split.explain(number, error))?)?;
                split.check(number, &part)?;
                gguf.join(part)?;
            }
        }
        Ok(gguf)
    }

    fn new(part: Part) -> Result<Gguf> {
        let data = part.data();
        let header = Header::parse(part.path(), data, data.len() as u64)?;
        Ok(Gguf { parts: vec![part], header, overridden: BTreeMap::new() })
    }

    /// Adds the tensors of another part.
    fn join(&mut self, other: Gguf) -> Result<()> {
        let number = self.parts.len();
        self.parts.extend(other.parts);
        for tensor in other.header.tensors {
            if let Some(known) = self.tensor(&tensor.name) {
                let found = format!("it again, after {}", self.path_of(known).display());
                let item = format!("tensor {}", quoted(&tensor.name));
                let path = self.parts[number].path();
                return Err(Error::model(path, item, found, "each name once in all parts"));
            }
            self.header.tensor_index.insert(tensor.name.clone(), self.header.tensors.len());
            self.header.tensors.push(TensorInfo { part: number, ..tensor });
        }
        Ok(())
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Checks that no part of the model is missing.
    ///
    /// # Errors
    /// [`Error::Model`] naming the key that says how many there are, and what to do.
    pub fn check_whole(&self) -> Result<()> {
        split::check_whole(self)
    }

    /// Reads a file that is already in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// [`Error::Model`] when the header breaks a rule.
    pub fn from_bytes(
        name: impl AsRef<Path>,
        bytes: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Gguf> {
        Self::new(Part::in_memory(name.as_ref(), bytes))
    }

    /// Opens the header of a file of `total` bytes whose data is nowhere.
    pub(super) fn without_data(path: &Path, header: Vec<u8>, total: u64) -> Result<Gguf> {
        let part = Part::in_memory(path, header);
        let header = Header::parse(part.path(), part.data(), total)?;
        Ok(Gguf { parts: vec![part], header, overridden: BTreeMap::new() })
    }

    /// True if the file, or every part, is mapped; otherwise it is in memory.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.parts.iter().all(Part::is_mapped)
    }

    /// Notes on opening files, one line each: they could not be mapped.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::warning)
    }

    /// The path, as given: that of the first part.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.parts[0].path()
    }

    /// The path of the file that holds a tensor.
    #[must_use]
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        self.parts.get(tensor.part).map_or(self.path(), Part::path)
    }

    /// The paths of the file or of all parts, in order, and the bytes of each.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.parts.iter().map(|part| (part.path(), part.data().len() as u64))
    }

    /// Bytes of the file, or of all parts.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files().map(|(_, bytes)| bytes).sum()
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

    /// Offset of the tensor data in the file, or in the first part: the bytes of the header, padding
    /// included.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.header.data_start
    }

    /// Tells a model from others: SHA-256 of the size, the header, and the first and the last 64 KiB behind it
    /// of each file, and of the values that are not the file's. Cheap, and another for a model that was
    /// trained on.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        const SAMPLE: usize = 64 << 10;
        let mut hash = Sha256::new();
        let mut header = usize::try_from(self.data_start()).unwrap_or(usize::MAX);
        for part in &self.parts {
            let data = part.data();
            let begin = header.saturating_add(SAMPLE).min(data.len());
            hash.update((data.len() as u64).to_le_bytes());
            hash.update(&data[..begin]);
            hash.update(&data[data.len().saturating_sub(SAMPLE).max(begin)..]);
            header = 0;
        }
        for line in self.override_notes() {
            hash.update(line);
            hash.update("\n");
        }
        hash.finalize().into()
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
        Error::model(self.path(), format_args!("key {key}"), found, expected)
    }

    /// An [`Error::Model`] about a tensor of this file.
    pub fn tensor_error(
        &self,
        tensor: &str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Error {
        let item = format!("tensor {}", quoted(tensor));
        let path = self.tensor(tensor).map_or(self.path(), |tensor| self.path_of(tensor));
        Error::model(path, item, found, expected)
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

    /// An unsigned integer, see [`Value::as_u32`]; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a u32", Value::as_u32)
    }

    /// A floating-point number, see [`Value::as_f32`]; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "an f32", Value::as_f32)
    }

    /// A string; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A truth value, see [`Value::as_bool`]; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Model`] when the key holds something else.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", Value::as_bool)
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
        let array = self.typed(key, "an array of string", |v| match v {
            Value::Array(Array::Str(a)) => Some(a),
            _ => None,
        })?;
        match array.and_then(|array| Some((array.broken()?, array))) {
            None => Ok(array),
            Some((i, array)) => {
                let found = quoted(array.get(i).unwrap_or_default());
                Err(self.key_error(&format!("{key}[{i}]"), found, "UTF-8 text"))
            }
        }
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

    /// All tensors in the order of the file's directory, those of each part behind each other.
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
        let data = || self.parts.get(tensor.part)?.data().get(byte_range(tensor)?);
        data().unwrap_or_default()
    }

    /// Bytes `part` of the tensor's data, read into `buffer` where the file is mapped. For a few bytes
    /// here and there: read from the map they would make the pages around them resident, too.
    pub fn read_part<'a>(
        &'a self,
        tensor: &TensorInfo,
        part: Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        let at = |place: usize| tensor.offset.saturating_add(place as u64);
        let own = self.parts.get(tensor.part).filter(|_| part.end as u64 <= tensor.bytes);
        // What cannot be read so can by the map.
        if own.is_some_and(|own| own.read_at(at(part.start)..at(part.end), buffer)) {
            return buffer;
        }
        &self.tensor_bytes(tensor)[part]
    }

    /// Tells the system that this tensor's pages will not be read again soon: they stop counting as
    /// resident, and with `uncache` need not stay in its cache of the file. Only whole pages inside
    /// the tensor are dropped. Reading the tensor again is slow, not wrong.
    pub fn drop_pages(&self, tensor: &TensorInfo, uncache: bool) {
        self.drop_part(tensor, 0..self.tensor_bytes(tensor).len(), uncache);
    }

    /// Drops the pages of bytes `part` of the tensor's data, as [`Gguf::drop_pages`].
    pub fn drop_part(&self, tensor: &TensorInfo, part: Range<usize>, uncache: bool) {
        if let (Some(file), Some(whole)) = (self.parts.get(tensor.part), byte_range(tensor))
            && part.start <= part.end
            && part.end <= whole.len()
        {
            file.drop_range(whole.start + part.start..whole.start + part.end, uncache);
        }
    }

    /// Drops all pages of all files, as [`Gguf::drop_pages`]: those included that the system read
    /// along with others after they had been dropped.
    pub fn drop_all(&self) {
        self.parts.iter().for_each(|part| part.drop_range(0..part.data().len(), false));
    }
}

/// Maps a file.
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is private and read-only, and this process never writes the file.
    // Another process might: the header is copied before it is interpreted further, and
    // tensor data is plain numbers for which any bytes are valid.
    unsafe { Mmap::map(file) }
}

fn byte_range(tensor: &TensorInfo) -> Option<Range<usize>> {
    let start = usize::try_from(tensor.offset).ok()?;
    let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::super::write::tests::sample;
    use super::super::{GgufWriter, TensorType};
    use super::*;

    /// F01: mapped, read on demand, or read because it could not be mapped, a file is the same.
    #[test]
    fn a_file_is_the_same_mapped_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, sample()).unwrap();
        let refused: fn(&File) -> _ = |_| Err(io::Error::from(io::ErrorKind::Unsupported));
        let mapped = Gguf::open(&path).unwrap();
        assert!(mapped.is_mapped() && mapped.warnings().next().is_none());
        let read = Gguf::read(&path).unwrap();
        assert!(!read.is_mapped() && read.warnings().next().is_none());
        let instead = Gguf::open_with(&path, refused).unwrap();
        assert!(!instead.is_mapped());
        let warning = instead.warnings().next().unwrap();
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
