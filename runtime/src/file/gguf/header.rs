//! The header: metadata and the tensor directory, parsed with every length checked.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::tensor::CLASHING;
use super::{Array, DEFAULT_ALIGNMENT, FIXED_HEADER, StrArray, TensorInfo, TensorType, Value};
use crate::error::{Error, Result, quoted};
use crate::formats::{self, FORMATS};

/// Memory that a parsed header may take; one with 128,000 tokens takes less.
const HEADER_ROOM: usize = 8 << 20;
const MAX_COUNT: u64 = 65_536;
const MAX_KEY: u64 = 64 << 10;
const MAX_STRING: u64 = 16 << 20;
const MAX_ITEMS: u64 = 16 << 20;
/// Arrays around an array; no published file has any.
const MAX_DEPTH: u32 = 4;
const MAX_HEADER: usize = 512 << 20;
const MAX_ALIGNMENT: u32 = 1 << 20;
/// ggml keeps tensor names in 64 bytes, the terminating zero included.
const MAX_TENSOR_NAME: usize = 63;
const MAX_DIMS: u32 = 4;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// A parsed header, all of it checked.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) alignment: u32,
    pub(super) kv: Vec<(String, Value)>,
    pub(super) kv_index: HashMap<String, usize>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) tensor_index: HashMap<String, usize>,
    pub(super) data_start: u64,
}

/// The value found and the values allowed where a step of reading failed; the caller adds file and
/// item.
struct Fault {
    found: String,
    expected: String,
}

impl Fault {
    fn new(found: impl fmt::Display, expected: impl fmt::Display) -> Fault {
        Fault { found: found.to_string(), expected: expected.to_string() }
    }

    fn at(self, path: &Path, item: impl fmt::Display) -> Error {
        Error::model(path, item, self.found, self.expected)
    }
}

type Step<T> = std::result::Result<T, Fault>;

/// A checked cursor over the header.
struct Reader<'a> {
    data: &'a [u8],
    pos: usize,
    /// True if `data` was cut at `MAX_HEADER`: the file goes on.
    capped: bool,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.data.len() - self.pos) as u64
    }

    fn take(&mut self, n: u64) -> Step<&'a [u8]> {
        if n > self.left() {
            return Err(if self.capped {
                Fault::new("a header of over 512 MiB", "at most 512 MiB")
            } else {
                Fault::new(
                    format_args!("{n} bytes at offset {} of {}", self.pos, self.data.len()),
                    "data inside the file; the file is cut off or damaged, download it again",
                )
            });
        }
        let slice = &self.data[self.pos..self.pos + n as usize];
        self.pos += n as usize;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u32(&mut self) -> Step<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Step<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a string of any bytes.
    fn bytes(&mut self, max: u64) -> Step<&'a [u8]> {
        let n = self.u64()?;
        if n > max {
            return Err(Fault::new(
                format_args!("a string of {n} bytes"),
                format_args!("at most {max} bytes"),
            ));
        }
        self.take(n)
    }

    fn str(&mut self, max: u64) -> Step<&'a str> {
        std::str::from_utf8(self.bytes(max)?).map_err(|e| {
            Fault::new(
                format_args!("a byte that is not UTF-8 at position {}", e.valid_up_to()),
                "UTF-8 text",
            )
        })
    }

    fn bool(byte: u8) -> Step<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Fault::new(format_args!("bool {other}"), "0 or 1")),
        }
    }

    fn value(&mut self) -> Step<Value> {
        Ok(match self.u32()? {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(self.array().map(i8::from_le_bytes)?),
            2 => Value::U16(self.array().map(u16::from_le_bytes)?),
            3 => Value::I16(self.array().map(i16::from_le_bytes)?),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(self.array().map(i32::from_le_bytes)?),
            6 => Value::F32(self.array().map(f32::from_le_bytes)?),
            7 => Value::Bool(Self::bool(self.array::<1>()?[0])?),
            8 => {
                let bytes = self.bytes(MAX_STRING)?;
                std::str::from_utf8(bytes).map_or_else(
                    |_| Value::Bytes(bytes.to_vec()),
                    |text| Value::Str(text.to_owned()),
                )
            }
            9 => Value::Array(self.values(0)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(self.array().map(i64::from_le_bytes)?),
            12 => Value::F64(self.array().map(f64::from_le_bytes)?),
            other => {
                return Err(Fault::new(
                    format_args!("value type {other}"),
                    "a GGUF value type, 0 to 12",
                ));
            }
        })
    }

    /// Reads `count` fixed-size numbers; the vector is made only once the bytes are known to be there.
    fn numbers<T, const N: usize>(&mut self, count: u64, read: fn([u8; N]) -> T) -> Step<Vec<T>> {
        // At most MAX_ITEMS x 8 bytes: no overflow.
        let bytes = self.take(count * N as u64)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect())
    }

    /// Reads an array that lies in `depth` others.
    fn values(&mut self, depth: u32) -> Step<Array> {
        let ty = self.u32()?;
        let count = self.u64()?;
        if count > MAX_ITEMS {
            return Err(Fault::new(
                format_args!("an array of {count} items"),
                format_args!("at most {MAX_ITEMS} items"),
            ));
        }
        Ok(match ty {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => {
                let bytes = self.take(count)?;
                let bools: Step<_> = bytes.iter().map(|&b| Self::bool(b)).collect();
                Array::Bool(bools?)
            }
            8 => Array::Str(self.strings(count)?),
            9 => {
                if depth == MAX_DEPTH {
                    let expected = format!("at most {MAX_DEPTH} arrays around an array");
                    return Err(Fault::new("arrays nested deeper", expected));
                }
                if count > MAX_COUNT {
                    let found = format!("an array of {count} arrays");
                    return Err(Fault::new(found, format_args!("at most {MAX_COUNT}")));
                }
                let arrays: Step<_> = (0..count).map(|_| self.values(depth + 1)).collect();
                Array::Array(arrays?)
            }
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            other => {
                return Err(Fault::new(
                    format_args!("array element type {other}"),
                    "a GGUF value type, 0 to 12",
                ));
            }
        })
    }

    fn strings(&mut self, count: u64) -> Step<StrArray> {
        const MIN_STRING: u64 = 8;
        if count > self.left() / MIN_STRING {
            return Err(Fault::new(
                format_args!("{count} strings in {} bytes", self.left()),
                "data inside the file; the file is cut off or damaged, download it again",
            ));
        }
        let mut array = StrArray::default();
        array.ends.reserve_exact(count as usize);
        for i in 0..count {
            let bytes = self
                .bytes(MAX_STRING)
                .map_err(|f| Fault { found: format!("{} (item {i})", f.found), ..f })?;
            match std::str::from_utf8(bytes) {
                Ok(text) => array.text.push_str(text),
                Err(_) => {
                    // At most MAX_ITEMS.
                    array.broken.get_or_insert(i as u32);
                    array.text.push_str(&String::from_utf8_lossy(bytes));
                }
            }
            // At most three times MAX_HEADER, where each wrong byte became U+FFFD, so it fits.
            array.ends.push(array.text.len() as u32);
        }
        array.text.shrink_to_fit();
        Ok(array)
    }
}

/// A tensor as the directory gives it, its size and place not yet checked.
struct Claim {
    name: String,
    dims: Vec<u64>,
    type_id: u32,
    /// Relative to the start of the data.
    offset: u64,
}

impl Header {
    /// Parses the header that `data`, the start of a file of `file_bytes`, begins with.
    pub(super) fn parse(path: &Path, data: &[u8], file_bytes: u64) -> Result<Header> {
        // A header for which there is no room is an error, not the end of the process.
        let room = Vec::<u8>::new().try_reserve_exact(data.len().min(HEADER_ROOM));
        room.map_err(|_| {
            let why = "its header does not fit into memory";
            Error::io(path, "read", io::Error::other(why))
        })?;
        let mut r = Reader {
            data: &data[..data.len().min(MAX_HEADER)],
            pos: 0,
            capped: data.len() > MAX_HEADER,
        };
        check_magic(path, data)?;
        r.pos = 4;
        let version = r.u32().map_err(|f| f.at(path, "version"))?;
        if !(2..=3).contains(&version) {
            let found = if (2..=3).contains(&version.swap_bytes()) {
                format!("a big-endian file of version {}", version.swap_bytes())
            } else {
                format!("version {version}")
            };
            let expected = "version 2 or 3, little-endian; convert the model again";
            return Err(Error::model(path, "version", found, expected));
        }
        let mut count = |item: &'static str, min_bytes: u64| -> Result<u64> {
            let n = r.u64().map_err(|f| f.at(path, item))?;
            let most = MAX_COUNT.min(file_bytes / min_bytes);
            if n > most {
                let expected = format!("at most {most} in a file of {file_bytes} bytes");
                return Err(Error::model(path, item, n, expected));
            }
            Ok(n)
        };
        // The shortest tensor: name length and a letter, n_dims, one dim, type, offset.
        let n_tensors = count("number of tensors", 8 + 1 + 4 + 8 + 4 + 8)?;
        // The shortest pair: key length and a letter, type, one byte.
        let n_kv = count("number of metadata keys", 8 + 1 + 4 + 1)?;
        debug_assert_eq!(r.pos, FIXED_HEADER);

        let mut kv: Vec<(String, Value)> = Vec::new();
        let mut kv_index = HashMap::new();
        for i in 0..n_kv {
            let at = |f: Fault| f.at(path, format_args!("metadata key {i}"));
            let key = r.str(MAX_KEY).map_err(at)?;
            if key.is_empty() {
                return Err(at(Fault::new("an empty key", "a name")));
            }
            let value = r.value().map_err(|f| f.at(path, format_args!("key {}", quoted(key))))?;
            if kv_index.insert(key.to_owned(), kv.len()).is_some() {
                let item = format!("key {}", quoted(key));
                return Err(Error::model(path, item, "it twice", "each key once"));
            }
            kv.push((key.to_owned(), value));
        }

        let alignment = match kv_index.get(ALIGNMENT_KEY).map(|&i| &kv[i].1) {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::U32(a)) if a.is_power_of_two() && a <= MAX_ALIGNMENT => a,
            Some(other) => {
                let expected = format!("a u32 power of two up to {MAX_ALIGNMENT}");
                let item = format!("key {ALIGNMENT_KEY}");
                return Err(Error::model(path, item, other, expected));
            }
        };

        let mut claims = Vec::new();
        let mut tensor_index = HashMap::new();
        for i in 0..n_tensors {
            let claim = read_claim(&mut r, path, i)?;
            if tensor_index.insert(claim.name.clone(), claims.len()).is_some() {
                let item = format!("tensor {}", quoted(&claim.name));
                return Err(Error::model(path, item, "it twice", "each name once"));
            }
            claims.push(claim);
        }

        let data_start = (r.pos as u64).next_multiple_of(u64::from(alignment));
        let data_len = file_bytes.saturating_sub(data_start);
        let tensors = place(path, claims, u64::from(alignment), data_start, data_len)?;
        Ok(Header { version, alignment, kv, kv_index, tensors, tensor_index, data_start })
    }
}

/// Refuses a file that is not GGUF, and names its format where it is one often mistaken for it.
fn check_magic(path: &Path, data: &[u8]) -> Result<()> {
    if data.starts_with(b"GGUF") && data.len() >= FIXED_HEADER {
        return Ok(());
    }
    let head = &data[..data.len().min(64)];
    let lower = head.to_ascii_lowercase();
    let lower = lower.trim_ascii_start();
    let safetensors = head.len() > 8
        && head[8] == b'{'
        && head[..8].try_into().is_ok_and(|n| u64::from_le_bytes(n) <= 100 << 20);
    let found = if data.is_empty() {
        "an empty file".to_owned()
    } else if data.starts_with(b"GGUF") {
        format!("only {} bytes", data.len())
    } else if safetensors {
        "a safetensors checkpoint".to_owned()
    } else if head.starts_with(b"PK\x03\x04") {
        "a zip archive (perhaps a PyTorch checkpoint)".to_owned()
    } else if head.starts_with(b"\x1f\x8b") {
        "a gzip archive".to_owned()
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
        "a zstd archive".to_owned()
    } else if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") {
        "an HTML page".to_owned()
    } else if head.starts_with(b"version https://git-lfs") {
        "a git-lfs pointer, not the file itself".to_owned()
    } else if [&b"lmgg"[..], b"fmgg", b"tjgg", b"algg"].contains(&&head[..head.len().min(4)]) {
        "a GGML/GGJT model from before GGUF".to_owned()
    } else if head.starts_with(b"FUGG") {
        "a big-endian GGUF file".to_owned()
    } else {
        let magic = String::from_utf8_lossy(&head[..head.len().min(4)]);
        format!("a file that starts with {}", quoted(&magic))
    };
    let expected = "a GGUF file of at least 24 bytes; download or convert the model again";
    Err(Error::model(path, "file format", found, expected))
}

fn read_claim(r: &mut Reader<'_>, path: &Path, i: u64) -> Result<Claim> {
    let at = |f: Fault| f.at(path, format_args!("tensor {i}, name"));
    let name = r.str(MAX_KEY).map_err(at)?;
    if name.is_empty() || name.len() > MAX_TENSOR_NAME {
        return Err(at(Fault::new(
            format_args!("{} bytes", name.len()),
            format_args!("1 to {MAX_TENSOR_NAME} bytes"),
        )));
    }
    let at = |f: Fault| f.at(path, format_args!("tensor {}", quoted(name)));
    let n_dims = r.u32().map_err(at)?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(at(Fault::new(
            format_args!("{n_dims} dimensions"),
            format_args!("1 to {MAX_DIMS}"),
        )));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(r.u64().map_err(at)?);
    }
    let type_id = r.u32().map_err(at)?;
    let offset = r.u64().map_err(at)?;
    if dims.contains(&0) {
        return Err(at(Fault::new(
            format_args!("dimensions {dims:?}"),
            "dimensions of at least 1",
        )));
    }
    Ok(Claim { name: name.to_owned(), dims, type_id, offset })
}

/// Decides type and size of every tensor and checks its place. Holes between tensors and any order
/// of the directory are accepted, overlaps are not.
fn place(
    path: &Path,
    claims: Vec<Claim>,
    alignment: u64,
    data_start: u64,
    data_len: u64,
) -> Result<Vec<TensorInfo>> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|&i| claims[i].offset);
    let mut placed: Vec<(TensorType, u64)> = vec![(TensorType::F32, 0); claims.len()];
    let mut previous: Option<(&str, u64)> = None;
    for (rank, &i) in order.iter().enumerate() {
        let claim = &claims[i];
        let at = |found: &dyn fmt::Display, expected: &dyn fmt::Display| {
            let item = format!("tensor {}", quoted(&claim.name));
            Error::model(path, item, found, expected)
        };
        if !claim.offset.is_multiple_of(alignment) {
            return Err(at(
                &format_args!("offset {}", claim.offset),
                &format_args!("a multiple of the alignment {alignment}"),
            ));
        }
        if claim.offset > data_len {
            return Err(at(
                &format_args!("offset {}", claim.offset),
                &format_args!(
                    "at most {data_len}, the bytes of tensor data; the file is cut off, download it again"
                ),
            ));
        }
        if let Some((name, end)) = previous
            && claim.offset < end
        {
            return Err(at(
                &format_args!("offset {}", claim.offset),
                &format_args!("at least {end}, the end of tensor {}", quoted(name)),
            ));
        }
        let room = order.get(rank + 1).map_or(data_len, |&n| claims[n].offset.min(data_len))
            - claim.offset;
        let last = rank + 1 == order.len();
        let (ty, bytes) =
            decide(claim, room, last, alignment).map_err(|f| at(&f.found, &f.expected))?;
        // decide() holds nothing but clashing ids to `room`; the file's end holds for all.
        if bytes > data_len - claim.offset {
            return Err(at(
                &format_args!("{bytes} bytes of {ty} at offset {}", claim.offset),
                &format_args!(
                    "at most {} bytes, the rest of the file; the file is cut off, download it again",
                    data_len - claim.offset
                ),
            ));
        }
        placed[i] = (ty, bytes);
        previous = Some((&claim.name, claim.offset + bytes));
    }
    Ok(claims
        .into_iter()
        .zip(placed)
        .map(|(c, (ty, bytes))| TensorInfo {
            name: c.name,
            dims: c.dims,
            ty,
            part: 0,
            offset: data_start + c.offset,
            bytes,
        })
        .collect())
}

/// The layout of a tensor that has `room` bytes up to the next one (or the end of the file).
fn decide(claim: &Claim, room: u64, last: bool, alignment: u64) -> Step<(TensorType, u64)> {
    let id = claim.type_id;
    let known = || FORMATS.iter().filter(move |format| format.id == id).map(|format| format.ty);
    let dims = |expected: String| Fault::new(format_args!("dimensions {:?}", claim.dims), expected);
    let Some(first) = known().next() else {
        // Whoever needs the tensor refuses it.
        formats::elements(&claim.dims).map_err(dims)?;
        if room == 0 {
            return Err(Fault::new(format_args!("no data, of type {id}"), "at least 1 byte"));
        }
        return Ok((TensorType::Unknown(id), room));
    };
    let size = |ty: TensorType| ty.byte_size(&claim.dims).map_err(dims);
    if !CLASHING.contains(&id) {
        return Ok((first, size(first)?));
    }
    let mut fits = Vec::new();
    let mut sizes = Vec::new();
    let mut fault = None;
    for ty in known() {
        match size(ty) {
            Ok(bytes) => {
                let padded = bytes.checked_next_multiple_of(alignment);
                if padded == Some(room) || (last && bytes == room) {
                    fits.push((ty, bytes));
                }
                sizes.push(format!("{bytes} ({ty})"));
            }
            Err(f) => fault = Some(f),
        }
    }
    match (fits.as_slice(), fault) {
        ([one], _) => Ok(*one),
        ([], Some(fault)) if sizes.is_empty() => Err(fault),
        (found, _) => Err(Fault::new(
            format_args!(
                "{room} bytes for type {id} of dimensions {:?}, which {}",
                claim.dims,
                if found.is_empty() { "fit no known layout" } else { "fit several layouts" }
            ),
            format_args!(
                "exactly one of {} bytes, padded to {alignment}; the id has had other meanings, convert the model again",
                sizes.join(" or ")
            ),
        )),
    }
}
