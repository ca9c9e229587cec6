//! Tensors of a Hugging Face folder, in one safetensors file or in several.
//!
//! A file is `length of the header u64 | header, JSON | data`; the header gives each tensor's type, shape
//! and place, and the data has neither holes nor overlaps. Files are read a piece at a time: none of their
//! pages counts as memory of this process, and a file that is cut short meanwhile is an error.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::formats::TensorType;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json;

/// Longest header of a safetensors file, as its own library has it.
const MAX_HEADER: u64 = 100_000_000;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest index: 200 bytes for each of 100,000 tensors.
const MAX_INDEX: u64 = 20 << 20;
/// Suffixes of weights that only Python reads.
const PICKLES: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// The tensors of all files of a folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// Each with its place, which one reader at a time moves.
    files: Vec<(PathBuf, Mutex<File>)>,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Number of its file.
    file: usize,
    /// Bytes of the file that it fills.
    place: Range<u64>,
}

impl Stored {
    /// Bytes of its data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.place.end - self.place.start
    }

    /// Format of its elements, if they are floats that are read here.
    #[must_use]
    pub fn floats(&self) -> Option<TensorType> {
        match self.dtype {
            Dtype::BF16 => Some(TensorType::BF16),
            Dtype::F16 => Some(TensorType::F16),
            Dtype::F32 => Some(TensorType::F32),
            _ => None,
        }
    }
}

/// Shows type and shape, as `BF16 [4096, 384]`.
impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.shape)
    }
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` lists, and reads their
    /// headers.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read, [`Error::Model`] for a header or an index that breaks a rule,
    /// and for a folder without such files.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        let index = folder.join(INDEX);
        if index.exists() {
            let listed: Index = json::read(&index, MAX_INDEX)?;
            let mut names: Vec<&String> = listed.weight_map.values().collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                if !json::is_file_name(name) {
                    let found = quoted(name);
                    let expected = "the name of a file in the same folder";
                    return Err(Error::model(&index, "weight_map", found, expected));
                }
                checkpoint.add(&folder.join(name))?;
            }
            checkpoint.check_index(&index, &listed)?;
        } else if folder.join(SINGLE).exists() {
            checkpoint.add(&folder.join(SINGLE))?;
        } else {
            return Err(no_weights(folder));
        }
        Ok(checkpoint)
    }

    /// Paths of the files that were read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Path of a tensor's file.
    #[must_use]
    pub fn path_of(&self, tensor: &Stored) -> &Path {
        &self.files[tensor.file].0
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values()
    }

    /// The tensor of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// Reads bytes `part` of a tensor's data into `buffer`.
    ///
    /// # Errors
    /// [`Error::Io`] when the system does not give them, as of a file that was cut short.
    pub fn read(&self, tensor: &Stored, part: Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        let (path, file) = &self.files[tensor.file];
        let start = tensor.place.start + part.start;
        let end = (tensor.place.start + part.end).min(tensor.place.end);
        // A piece is far smaller than memory: callers ask for some rows.
        buffer.resize(end.saturating_sub(start) as usize, 0);
        // A reader that panicked leaves a place, which is set anew.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(buffer))
            .map_err(|e| Error::io(path, "read", e))
    }

    /// Makes an error about a tensor.
    pub fn error(
        &self,
        tensor: &Stored,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Error {
        let item = format!("tensor {}", quoted(&tensor.name));
        Error::model(self.path_of(tensor), item, found, expected)
    }

    /// Adds the tensors of a file.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = json::open(path)?;
        let number = self.files.len();
        for (name, dtype, shape, place) in read_header(path, &file)? {
            let tensor = Stored { name: name.clone(), dtype, shape, file: number, place };
            if let Some(known) = self.tensors.insert(name.clone(), tensor) {
                let found = format!("it again, after {}", self.files[known.file].0.display());
                let item = format!("tensor {}", quoted(&name));
                return Err(Error::model(path, item, found, "each name once in all files"));
            }
        }
        self.files.push((path.to_path_buf(), Mutex::new(file)));
        Ok(())
    }

    /// Checks that every tensor lies where the index says, and that it says so of all.
    fn check_index(&self, path: &Path, index: &Index) -> Result<()> {
        for (name, file) in &index.weight_map {
            let own = self.find(name).map(|tensor| self.path_of(tensor));
            if own.and_then(Path::file_name) != Some(file.as_ref()) {
                let found = format!("{} for it, which does not hold it", quoted(file));
                let item = format!("weight_map, tensor {}", quoted(name));
                return Err(Error::model(path, item, found, "the file that holds it"));
            }
        }
        match self.tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let item = format!("weight_map, tensor {}", quoted(name));
                Err(Error::model(path, item, "no such name", "all tensors of the files listed"))
            }
        }
    }
}

/// What `model.safetensors.index.json` says.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The error of a folder without safetensors files.
fn no_weights(folder: &Path) -> Error {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let pickle = entries.map(|entry| entry.path()).find(|path| {
        path.extension().is_some_and(|own| PICKLES.iter().any(|pickle| own == *pickle))
    });
    let expected = format!("{SINGLE}, or {INDEX} and the files that it lists");
    match pickle {
        None => Error::model(folder, "weights", "no safetensors file", expected),
        Some(pickle) => {
            let name = pickle.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let expected = format!(
                "{expected}; files of Python objects can run programs and are not read. In Python: \
                 from transformers import AutoModelForCausalLM as M; \
                 M.from_pretrained('FOLDER').save_pretrained('NEW')"
            );
            Error::model(folder, "weights", quoted(&name), expected)
        }
    }
}

/// A tensor as a header describes it: name, type, shape, place in the file.
type Described = (String, Dtype, Vec<u64>, Range<u64>);

/// Reads and checks the header of a safetensors file.
fn read_header(path: &Path, mut file: &File) -> Result<Vec<Described>> {
    let failed = |e: io::Error| Error::io(path, "read", e);
    let total = file.metadata().map_err(failed)?.len();
    let refused = |found: String, expected: &str| Error::model(path, "header", found, expected);
    if total < 8 {
        let expected = "at least 8 bytes, the length of the header; the file is cut short";
        return Err(refused(format!("a file of {total} bytes"), expected));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        let found = format!("a length of {length} bytes");
        return Err(refused(found, "at most 100,000,000 bytes; this is no safetensors file"));
    }
    if length > total - 8 {
        let found = format!("a length of {length} bytes in a file of {total}");
        return Err(refused(found, "no more than the file holds; it is cut short"));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(failed)?;
    let text = std::str::from_utf8(&text)
        .map_err(|e| refused(format!("text that is not UTF-8: {e}"), "JSON"))?;
    if !text.starts_with('{') {
        let start: String = text.chars().take(16).collect();
        return Err(refused(
            format!("{} at its beginning", quoted(&start)),
            "'{' of a JSON object",
        ));
    }
    let Header(tensors) = serde_json::from_str(text)
        .map_err(|e| refused(format!("JSON that breaks a rule: {e}"), "a safetensors header"))?;
    let data = 8 + length;
    check_places(path, tensors, total - data).map(|tensors| {
        let moved = |(name, dtype, shape, place): Described| {
            (name, dtype, shape, place.start + data..place.end + data)
        };
        tensors.into_iter().map(moved).collect()
    })
}

/// Checks that tensors have the bytes that their shapes need, and fill `total` bytes without holes and
/// overlaps; their places count from the data's beginning.
fn check_places(
    path: &Path,
    mut tensors: Vec<(String, TensorInfo)>,
    total: u64,
) -> Result<Vec<Described>> {
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut described = Vec::with_capacity(tensors.len());
    let mut end_before = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (begin, end) }) in tensors {
        let (begin, end) = (begin as u64, end as u64);
        let refused = |found: String, expected: String| {
            Error::model(path, format!("tensor {}", quoted(&name)), found, expected)
        };
        let places = || format!("data_offsets [{begin}, {end}]");
        if begin > end || end > total {
            let expected = format!("two numbers that do not fall, up to the data's {total} bytes");
            return Err(refused(places(), expected));
        }
        if begin != end_before {
            let what = if begin < end_before { "an overlap" } else { "a hole" };
            let found = format!("{}, which is {what}", places());
            return Err(refused(found, format!("the end of the tensor before, {end_before}")));
        }
        let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize() as u64));
        let needed = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
        if needed != Some(end - begin) {
            let needed = needed.map_or("more than can be".into(), |n| n.to_string());
            let expected = format!("{needed} bytes for {dtype:?} {shape:?}");
            return Err(refused(format!("{}, {} bytes", places(), end - begin), expected));
        }
        end_before = end;
        described.push((name, dtype, shape, begin..end));
    }
    if end_before != total {
        let found = format!("{} bytes that belong to no tensor", total - end_before);
        return Err(Error::model(path, "data", found, "tensors up to the end of the file"));
    }
    Ok(described)
}

/// The tensors of a header, each name once.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Header, A::Error> {
                let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let item = format!("tensor {}", quoted(&name));
                    let wrong = |e: A::Error| A::Error::custom(format_args!("{item}: {e}"));
                    if tensors.insert(name, map.next_value().map_err(wrong)?).is_some() {
                        return Err(A::Error::custom(format_args!("{item} twice")));
                    }
                }
                Ok(Header(tensors.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
