//! Writes a file: the header first, then the tensors' data as a stream.

use std::fmt;
use std::io::{BufWriter, Write};
use std::path::Path;

use bitnet_profiles::atomic_file::Replacement;

use super::header::{ALIGNMENT_KEY, Header};
use super::{Array, DEFAULT_ALIGNMENT, FIXED_HEADER, Gguf, TensorInfo, TensorType, Value};
use crate::error::{Error, Result, quoted};

/// Pieces of data below this many bytes are gathered before they are written.
const BUFFER: usize = 256 << 10;

/// Writer of a GGUF v3 file: metadata and tensors are added first, then [`GgufWriter::write`] streams
/// the file to disk.
///
/// Tensors follow each other in the order added, each padded with zeros to the alignment of 32.
///
/// ```
/// use bitnet_runtime::file::gguf::{Gguf, GgufWriter, TensorType, Value};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("small.gguf");
/// let mut writer = GgufWriter::new();
/// writer.kv("general.architecture", &Value::Str("llama".into()));
/// writer.tensor("output_norm.weight", &[64], TensorType::F32)?;
/// writer.write(&path, &mut |_, _| (), |_, tensor, out| {
///     for _ in 0..tensor.elements() {
///         out.write(&1f32.to_le_bytes())?;
///     }
///     Ok(())
/// })?;
/// assert_eq!(Gguf::open(&path)?.tensors()[0].bytes, 256);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct GgufWriter {
    kv: Vec<u8>,
    n_kv: u64,
    tensors: Vec<TensorInfo>,
    /// Bytes of tensor data so far, padding included.
    data: u64,
}

impl GgufWriter {
    /// An empty file.
    #[must_use]
    pub fn new() -> GgufWriter {
        GgufWriter::default()
    }

    /// Adds a metadata pair. Keys must differ.
    pub fn kv(&mut self, key: &str, value: &Value) {
        put_str(&mut self.kv, key);
        put_value(&mut self.kv, value);
        self.n_kv += 1;
    }

    /// Adds a tensor of `dims` (innermost first).
    ///
    /// # Errors
    /// Those of [`TensorType::byte_size`].
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        ty: TensorType,
    ) -> std::result::Result<(), String> {
        let bytes = ty.byte_size(dims)?;
        self.tensors.push(TensorInfo {
            name: name.to_owned(),
            dims: dims.to_vec(),
            ty,
            part: 0,
            offset: self.data,
            bytes,
        });
        self.data = bytes
            .checked_next_multiple_of(u64::from(DEFAULT_ALIGNMENT))
            .and_then(|padded| padded.checked_add(self.data))
            .ok_or("less than 2^64 bytes of tensors")?;
        Ok(())
    }

    /// The tensors added so far; `offset` counts from the start of the data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Bytes of all tensor data, padding included.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data
    }

    /// Zero bytes that must follow the data of a tensor of `bytes`.
    #[must_use]
    pub fn padding(bytes: u64) -> usize {
        (bytes.wrapping_neg() % u64::from(DEFAULT_ALIGNMENT)) as usize
    }

    /// Writes the file to `path`: the header, then the data of the tensors in the order added. `path`
    /// holds what it held until the file is whole, and no part of one is left after an error.
    ///
    /// `data(index, tensor, out)` is called once for each tensor and gives all of its bytes to `out`,
    /// in pieces of any size: no more than one piece need be in memory. `progress` is told the bytes
    /// written so far and those of the whole file, after each piece.
    ///
    /// # Errors
    /// [`Error::Model`] when a reader would refuse the header (a key or name twice, a name too long),
    /// or when `data` gives a tensor fewer or more bytes than it has; [`Error::Io`] when writing fails;
    /// whatever `data` returns.
    pub fn write(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
        mut data: impl FnMut(usize, &TensorInfo, &mut TensorSink<'_>) -> Result<()>,
    ) -> Result<()> {
        let header = self.header();
        let failed = |error| Error::io(path, "write", error);
        let total = self.checked_size(path, &header)?;
        let replacement = Replacement::new(path).map_err(failed)?;
        let mut out = BufWriter::with_capacity(BUFFER, replacement.writer());
        out.write_all(&header).map_err(failed)?;
        let mut done = header.len() as u64;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let mut sink = TensorSink {
                out: &mut out,
                path,
                tensor,
                left: tensor.bytes,
                done,
                total,
                progress: &mut *progress,
            };
            data(index, tensor, &mut sink)?;
            if sink.left > 0 {
                return Err(sink.refused(tensor.bytes - sink.left));
            }
            let padding = Self::padding(tensor.bytes);
            out.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding]).map_err(failed)?;
            done += tensor.bytes + padding as u64;
            progress(done, total);
        }
        out.flush().map_err(failed)?;
        drop(out);
        replacement.commit().map_err(failed)
    }

    /// Opens the file as it will be, without any data: its metadata and its list of tensors can be checked
    /// before anything is written. The data of every tensor is empty.
    ///
    /// # Errors
    /// As [`GgufWriter::write`] for a header that a reader would refuse; `path` is named in messages.
    pub fn outline(&self, path: &Path) -> Result<Gguf> {
        let header = self.header();
        let total = self.checked_size(path, &header)?;
        Gguf::without_data(path, header, total)
    }

    /// Returns the bytes of the whole file, if a reader accepts its header.
    fn checked_size(&self, path: &Path, header: &[u8]) -> Result<u64> {
        let total = (header.len() as u64).checked_add(self.data).ok_or_else(|| {
            Error::model(path, "tensor data", self.data, "less than 2^64 bytes in all")
        })?;
        let read = Header::parse(path, header, total)?;
        if read.alignment != DEFAULT_ALIGNMENT {
            let item = format!("key {ALIGNMENT_KEY}");
            let expected = format!("{DEFAULT_ALIGNMENT}, which tensors are padded to");
            return Err(Error::model(path, item, read.alignment, expected));
        }
        Ok(total)
    }

    /// Everything before the tensor data, padding included.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_HEADER + self.kv.len() + 96 * self.tensors.len());
        out.extend(b"GGUF");
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_kv.to_le_bytes());
        out.extend(&self.kv);
        for t in &self.tensors {
            put_str(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            for d in &t.dims {
                out.extend(d.to_le_bytes());
            }
            out.extend(t.ty.id().to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out.resize(out.len() + Self::padding(out.len() as u64), 0);
        out
    }
}

/// The place of one tensor's data in a file that [`GgufWriter::write`] writes.
pub struct TensorSink<'a> {
    out: &'a mut dyn Write,
    path: &'a Path,
    tensor: &'a TensorInfo,
    left: u64,
    /// Bytes of the file so far.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl TensorSink<'_> {
    /// Appends bytes to the tensor's data.
    ///
    /// # Errors
    /// [`Error::Model`] when they are more than the tensor has left, [`Error::Io`] when writing fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let Some(left) = self.left.checked_sub(len) else {
            return Err(self.refused(self.tensor.bytes - self.left + len));
        };
        self.out.write_all(bytes).map_err(|error| Error::io(self.path, "write", error))?;
        self.left = left;
        self.done += len;
        (self.progress)(self.done, self.total);
        Ok(())
    }

    /// Bytes that the tensor still lacks.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    fn refused(&self, given: u64) -> Error {
        let TensorInfo { name, dims, ty, bytes, .. } = self.tensor;
        Error::model(
            self.path,
            format_args!("tensor {}", quoted(name)),
            format_args!("{given} bytes of data"),
            format_args!("{bytes} bytes for {ty} of dimensions {dims:?}"),
        )
    }
}

impl fmt::Debug for TensorSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorSink")
            .field("tensor", &self.tensor.name)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_bytes(out, s.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! scalar {
        ($id:literal, $v:expr) => {{
            out.extend(u32::to_le_bytes($id));
            out.extend($v.to_le_bytes());
        }};
    }
    match value {
        Value::U8(v) => scalar!(0, v),
        Value::I8(v) => scalar!(1, v),
        Value::U16(v) => scalar!(2, v),
        Value::I16(v) => scalar!(3, v),
        Value::U32(v) => scalar!(4, v),
        Value::I32(v) => scalar!(5, v),
        Value::F32(v) => scalar!(6, v),
        Value::Bool(v) => scalar!(7, u8::from(*v)),
        Value::Str(v) => {
            out.extend(8u32.to_le_bytes());
            put_str(out, v);
        }
        Value::Bytes(v) => {
            out.extend(8u32.to_le_bytes());
            put_bytes(out, v);
        }
        Value::Array(v) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => scalar!(10, v),
        Value::I64(v) => scalar!(11, v),
        Value::F64(v) => scalar!(12, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! numbers {
        ($id:literal, $v:expr) => {{
            out.extend(u32::to_le_bytes($id));
            out.extend(($v.len() as u64).to_le_bytes());
            for x in $v {
                out.extend(x.to_le_bytes());
            }
        }};
    }
    match array {
        Array::U8(v) => numbers!(0, v),
        Array::I8(v) => numbers!(1, v),
        Array::U16(v) => numbers!(2, v),
        Array::I16(v) => numbers!(3, v),
        Array::U32(v) => numbers!(4, v),
        Array::I32(v) => numbers!(5, v),
        Array::F32(v) => numbers!(6, v),
        Array::Bool(v) => {
            out.extend(7u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            out.extend(v.iter().map(|&b| u8::from(b)));
        }
        Array::Str(v) => {
            out.extend(8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            for s in v.iter() {
                put_str(out, s);
            }
        }
        Array::U64(v) => numbers!(10, v),
        Array::I64(v) => numbers!(11, v),
        Array::F64(v) => numbers!(12, v),
        Array::Array(v) => {
            out.extend(9u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|array| put_array(out, array));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One value of every type and three tensors.
    fn sample_writer() -> GgufWriter {
        let mut w = GgufWriter::new();
        for (key, value) in sample_kv() {
            w.kv(key, &value);
        }
        w.tensor("a", &[32, 2], TensorType::F32).unwrap();
        w.tensor("b", &[128, 3], TensorType::I2_S).unwrap();
        w.tensor("c", &[5], TensorType::F16).unwrap();
        w
    }

    /// The file of [`sample_writer`]; each byte of a tensor is the letter of its name.
    pub(in super::super) fn sample() -> Vec<u8> {
        let w = sample_writer();
        let mut out = w.header();
        for t in w.tensors() {
            out.extend(std::iter::repeat_n(t.name.as_bytes()[0], t.bytes as usize));
            out.resize(out.len() + GgufWriter::padding(t.bytes), 0);
        }
        out
    }

    fn sample_kv() -> Vec<(&'static str, Value)> {
        vec![
            ("u8", Value::U8(1)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(2)),
            ("i16", Value::I16(-2)),
            ("u32", Value::U32(3)),
            ("i32", Value::I32(-3)),
            ("f32", Value::F32(0.5)),
            ("bool", Value::Bool(true)),
            ("str", Value::Str("tên".into())),
            ("u64", Value::U64(4)),
            ("i64", Value::I64(-4)),
            ("f64", Value::F64(0.25)),
            ("bytes", Value::Bytes(b"J\xf6rg".to_vec())),
            ("au8", Value::Array(Array::U8(vec![1, 2]))),
            ("ai8", Value::Array(Array::I8(vec![-1]))),
            ("au16", Value::Array(Array::U16(vec![1, 2]))),
            ("ai16", Value::Array(Array::I16(vec![-5]))),
            ("au32", Value::Array(Array::U32(vec![7]))),
            ("ai32", Value::Array(Array::I32(vec![-7, 7]))),
            ("af32", Value::Array(Array::F32(vec![1.5]))),
            ("abool", Value::Array(Array::Bool(vec![true, false]))),
            ("astr", Value::Array(Array::Str(["", "ab", "ü"].iter().collect()))),
            ("au64", Value::Array(Array::U64(vec![9]))),
            ("ai64", Value::Array(Array::I64(vec![-9]))),
            ("af64", Value::Array(Array::F64(vec![]))),
            (
                "aarray",
                Value::Array(Array::Array(vec![
                    Array::U8(vec![1, 2]),
                    Array::Array(vec![Array::Str(["a"].iter().collect())]),
                ])),
            ),
        ]
    }

    #[test]
    fn what_the_writer_writes_the_reader_reads() {
        let g = Gguf::from_bytes("sample.gguf", sample()).unwrap();
        let read: Vec<_> = g.metadata().map(|(k, v)| (k, v.clone())).collect();
        assert_eq!(read, sample_kv());
        assert_eq!((g.version(), g.alignment()), (3, 32));
        let b = g.tensor("b").unwrap();
        assert_eq!((b.cols(), b.rows(), b.bytes), (128, 3, 128));
        for t in g.tensors() {
            let data = g.tensor_bytes(t);
            assert_eq!(data.len() as u64, t.bytes);
            assert!(data.iter().all(|&x| x == t.name.as_bytes()[0]), "{}", t.name);
        }
    }

    #[test]
    fn an_outline_is_the_file_without_its_data() {
        let outline = sample_writer().outline(Path::new("m.gguf")).unwrap();
        let file = Gguf::from_bytes("m.gguf", sample()).unwrap();
        assert!(outline.metadata().eq(file.metadata()));
        assert_eq!(outline.tensors(), file.tensors());
        assert!(outline.tensors().iter().all(|tensor| outline.tensor_bytes(tensor).is_empty()));
        let mut twice = sample_writer();
        twice.kv("u8", &Value::U8(1));
        assert!(twice.outline(Path::new("m.gguf")).unwrap_err().to_string().contains("u8"));
    }

    /// The file of [`sample`] as a stream, in pieces of `piece` bytes.
    fn stream(path: &Path, piece: usize, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        sample_writer().write(path, progress, |_, tensor, out| {
            let data = vec![tensor.name.as_bytes()[0]; tensor.bytes as usize];
            data.chunks(piece).try_for_each(|chunk| out.write(chunk))?;
            assert_eq!(out.left(), 0);
            Ok(())
        })
    }

    #[test]
    fn a_stream_is_the_file_whatever_the_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let expected = sample();
        for piece in [1, 7, 32, 1000] {
            let mut told = vec![(0, expected.len() as u64)];
            stream(&path, piece, &mut |done, total| told.push((done, total))).unwrap();
            assert!(std::fs::read(&path).unwrap() == expected, "pieces of {piece}");
            assert!(told.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 == w[1].1), "{told:?}");
            assert_eq!(told.last().unwrap().0, expected.len() as u64);
        }
    }

    /// After an error `path` holds what it held, and nothing lies beside it.
    #[test]
    fn an_error_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let refused = |writer: &GgufWriter, bytes: usize| {
            let write = |index: usize, _: &TensorInfo, out: &mut TensorSink<'_>| {
                if index == 1 { out.write(&vec![0; bytes]) } else { out.write(&[0; 256]) }
            };
            writer.write(&path, &mut |_, _| (), write).unwrap_err()
        };
        let other = |first: &str, second: &str| {
            let mut writer = GgufWriter::new();
            writer.tensor(first, &[64], TensorType::F32).unwrap();
            writer.tensor(second, &[2, 3], TensorType::F16).unwrap();
            writer
        };
        let mut keys = other("a", "b");
        keys.kv("k", &Value::U8(1));
        keys.kv("k", &Value::U8(2));
        let mut aligned = GgufWriter::new();
        aligned.kv(ALIGNMENT_KEY, &Value::U32(64));
        let long = "x".repeat(64);
        let cases: [(GgufWriter, usize, &[&str]); 6] = [
            (
                other("a", "b"),
                11,
                &["tensor 'b'", "11 bytes of data", "12 bytes for f16", "[2, 3]"],
            ),
            (
                other("a", "b"),
                13,
                &["tensor 'b'", "13 bytes of data", "12 bytes for f16", "[2, 3]"],
            ),
            (other("a", "a"), 12, &["tensor 'a'", "twice"]),
            (other("a", &long), 12, &["64 bytes", "1 to 63 bytes"]),
            (keys, 12, &["key 'k'", "twice"]),
            (aligned, 0, &[ALIGNMENT_KEY, "found 64", "32"]),
        ];
        for before in [None, Some("precious")] {
            if let Some(text) = before {
                std::fs::write(&path, text).unwrap();
            }
            for (writer, bytes, words) in &cases {
                let error = refused(writer, *bytes);
                assert_eq!(error.exit_code(), 3, "{error}");
                let text = error.to_string();
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            }
            let own = Error::Runtime("the source is gone".into());
            let mut own = Some(own);
            let error = other("a", "b")
                .write(&path, &mut |_, _| (), |_, _, _| Err(own.take().unwrap()))
                .unwrap_err();
            assert_eq!(error.to_string(), "the source is gone");
            assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), before);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before.iter().count());
        }
        let nowhere = folder.path().join("none").join("m.gguf");
        let error = stream(&nowhere, 32, &mut |_, _| ()).unwrap_err();
        assert!(error.exit_code() == 6 && error.to_string().contains("cannot write"), "{error}");
        stream(&path, 32, &mut |_, _| ()).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 3);
    }
}
