//! Reads and writes GGUF, versions 2 and 3 (little-endian).
//!
//! Layout, from the public specification (ggml `docs/gguf.md`):
//!
//! ```text
//! magic "GGUF" | version u32 | n_tensors u64 | n_kv u64
//! n_kv x       { key: string, type: u32, value }       string = length u64, UTF-8 bytes
//! n_tensors x  { name: string, n_dims: u32, dims: n_dims x u64, type: u32, offset: u64 }
//! padding to general.alignment (32 unless the key says otherwise) | tensor data
//! ```
//!
//! The header is copied out of the map once, every length checked against what the file really
//! holds before anything is allocated for it. Tensor data is only ever handed out as slices of the
//! map: opening a file touches no tensor page.
//!
//! **A type id alone does not name a layout.** Ids 36 to 39 and 42 were given to different layouts
//! by different projects, so for those the layout is decided by size: a candidate fits when its
//! byte size, rounded up to the alignment, reaches exactly the next tensor (the last one: the end
//! of the file, padded or not).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::cpu::memory;
use crate::error::{Error, Result, quoted};

/// Bytes of `magic | version | n_tensors | n_kv`.
const FIXED_HEADER: usize = 24;
/// What is kept of a header, of one with 128,000 tokens too, takes no more.
const HEADER_ROOM: usize = 8 << 20;
const MAX_COUNT: u64 = 65_536;
const MAX_KEY: u64 = 64 << 10;
const MAX_STRING: u64 = 16 << 20;
const MAX_ITEMS: u64 = 16 << 20;
const MAX_HEADER: usize = 512 << 20;
const MAX_ALIGNMENT: u32 = 1 << 20;
/// ggml keeps tensor names in 64 bytes, the terminating zero included.
const MAX_TENSOR_NAME: usize = 63;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u32 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// How the elements of a tensor are stored. `rows` is the product of all dimensions but the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names are the ones ggml gives them")]
#[expect(missing_docs, reason = "each variant is the ggml type of that name")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    /// bitnet.cpp: flat blocks of 128 weights in 32 bytes, then 32 bytes whose first f32 is the scale.
    I2_S,
    /// bitnet.cpp, ARM: 2 bits per weight, then 32 bytes whose first f32 is the scale.
    TL1,
    /// bitnet.cpp, x86: 5/3 bits per weight, then 32 bytes whose first f32 is the scale.
    TL2,
    /// Ternary, 64 weights and an f16 scale in 18 bytes.
    Q2_0,
    /// Ternary, 128 weights and an f16 scale in 34 bytes; shares its id with [`TensorType::Q2_0`].
    Q2_0_G128,
    /// ik_llama.cpp: f16 row scale, then 64 weights in 13 bytes.
    IQ1_BN,
    /// ik_llama.cpp: f32 row scale, then 64 weights in 16 bytes.
    IQ2_BN,
    /// ik_llama.cpp: four rows of IQ2_BN interleaved.
    IQ2_BN_R4,
}

/// Bytes of a tensor as a function of its shape.
#[derive(Clone, Copy)]
enum Sizing {
    /// Each row is `extra` bytes followed by blocks of `weights` elements in `bytes` bytes.
    Rows { weights: u64, bytes: u64, extra: u64 },
    /// rows x cols / 4 + 32; rows x cols a multiple of 128.
    TwoBitFlat,
    /// bitnet.cpp's TL2 formula: 256 columns at 2 bits, the others at 5/3, padded to 32, plus 32.
    Tl2,
}

/// (type, ggml id, name as ggml prints it, sizing). An id may occur more than once.
const TYPES: &[(TensorType, u32, &str, Sizing)] = {
    use TensorType as T;
    const fn rows(weights: u64, bytes: u64) -> Sizing {
        Sizing::Rows { weights, bytes, extra: 0 }
    }
    const fn scaled(bytes: u64, extra: u64) -> Sizing {
        Sizing::Rows { weights: 64, bytes, extra }
    }
    &[
        (T::F32, 0, "f32", rows(1, 4)),
        (T::F16, 1, "f16", rows(1, 2)),
        (T::Q4_0, 2, "q4_0", rows(32, 18)),
        (T::Q4_1, 3, "q4_1", rows(32, 20)),
        (T::Q5_0, 6, "q5_0", rows(32, 22)),
        (T::Q5_1, 7, "q5_1", rows(32, 24)),
        (T::Q8_0, 8, "q8_0", rows(32, 34)),
        (T::Q8_1, 9, "q8_1", rows(32, 36)),
        (T::Q2_K, 10, "q2_K", rows(256, 84)),
        (T::Q3_K, 11, "q3_K", rows(256, 110)),
        (T::Q4_K, 12, "q4_K", rows(256, 144)),
        (T::Q5_K, 13, "q5_K", rows(256, 176)),
        (T::Q6_K, 14, "q6_K", rows(256, 210)),
        (T::Q8_K, 15, "q8_K", rows(256, 292)),
        (T::IQ2_XXS, 16, "iq2_xxs", rows(256, 66)),
        (T::IQ2_XS, 17, "iq2_xs", rows(256, 74)),
        (T::IQ3_XXS, 18, "iq3_xxs", rows(256, 98)),
        (T::IQ1_S, 19, "iq1_s", rows(256, 50)),
        (T::IQ4_NL, 20, "iq4_nl", rows(32, 18)),
        (T::IQ3_S, 21, "iq3_s", rows(256, 110)),
        (T::IQ2_S, 22, "iq2_s", rows(256, 82)),
        (T::IQ4_XS, 23, "iq4_xs", rows(256, 136)),
        (T::I8, 24, "i8", rows(1, 1)),
        (T::I16, 25, "i16", rows(1, 2)),
        (T::I32, 26, "i32", rows(1, 4)),
        (T::I64, 27, "i64", rows(1, 8)),
        (T::F64, 28, "f64", rows(1, 8)),
        (T::IQ1_M, 29, "iq1_m", rows(256, 56)),
        (T::BF16, 30, "bf16", rows(1, 2)),
        (T::TQ1_0, 34, "tq1_0", rows(256, 54)),
        (T::TQ2_0, 35, "tq2_0", rows(256, 66)),
        (T::I2_S, 36, "i2_s", Sizing::TwoBitFlat),
        (T::TL1, 38, "tl1", Sizing::TwoBitFlat),
        (T::TL2, 39, "tl2", Sizing::Tl2),
        (T::MXFP4, 39, "mxfp4", rows(32, 17)),
        (T::Q2_0, 42, "q2_0", rows(64, 18)),
        (T::Q2_0_G128, 42, "q2_0 (128 weights a block)", rows(128, 34)),
        (T::IQ1_BN, 134, "iq1_bn", scaled(13, 2)),
        (T::IQ2_BN, 135, "iq2_bn", scaled(16, 4)),
        (T::IQ2_BN_R4, 335, "iq2_bn_r4", scaled(16, 4)),
    ]
};

/// Ids that ggml once used and has withdrawn. 36 to 38 are back in use by bitnet.cpp.
const RETIRED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (37, "IQ4_NL_4_8"),
];

/// Ids whose layout must be decided by size (FORMATS: 36 was IQ4_NL_4_4, 38 IQ4_NL_8_8).
const CLASHING: &[u32] = &[36, 38, 39, 42];

impl TensorType {
    fn row(self) -> &'static (TensorType, u32, &'static str, Sizing) {
        // Every variant has its row: `every_type_has_a_row` holds it.
        TYPES.iter().find(|t| t.0 == self).unwrap_or(&TYPES[0])
    }

    /// The id of this type in a GGUF file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The name ggml prints, such as `q6_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Whether every weight is -1, 0 or 1 times a scale.
    #[must_use]
    pub fn is_ternary(self) -> bool {
        use TensorType as T;
        matches!(
            self,
            T::I2_S
                | T::TL1
                | T::TL2
                | T::TQ1_0
                | T::TQ2_0
                | T::Q2_0
                | T::Q2_0_G128
                | T::IQ1_BN
                | T::IQ2_BN
                | T::IQ2_BN_R4
        )
    }

    /// Bytes of a tensor of `dims` (innermost first), or what is wrong with the shape.
    ///
    /// # Errors
    /// The shape does not divide into blocks of this type, or its size does not fit 64 bits.
    pub fn byte_size(self, dims: &[u64]) -> std::result::Result<u64, String> {
        let overflow = || format!("a size below 2^63 (dimensions {dims:?} overflow)");
        let cols = *dims.first().ok_or("1 to 4 dimensions")?;
        let elements = dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| n < 1 << 63)
            .ok_or_else(overflow)?;
        if elements == 0 {
            return Err(format!("dimensions of at least 1 (not {dims:?})"));
        }
        let rows = elements / cols;
        match self.row().3 {
            Sizing::Rows { weights, bytes, extra } => {
                if cols % weights != 0 {
                    return Err(format!(
                        "rows of a multiple of {weights} weights for {} (not {cols})",
                        self.name()
                    ));
                }
                (cols / weights)
                    .checked_mul(bytes)
                    .and_then(|n| n.checked_add(extra))
                    .and_then(|n| n.checked_mul(rows))
                    .ok_or_else(overflow)
            }
            Sizing::TwoBitFlat => {
                if elements % 128 != 0 {
                    return Err(format!(
                        "rows x columns a multiple of 128 for {} (not {elements})",
                        self.name()
                    ));
                }
                Ok(elements / 4 + 32)
            }
            Sizing::Tl2 => {
                let wide = cols
                    .checked_sub(256)
                    .ok_or_else(|| format!("rows of at least 256 weights for tl2 (not {cols})"))?;
                let data = wide
                    .checked_mul(rows)
                    .and_then(|n| n.checked_mul(5))
                    .map(|n| n / 24 + 64 * rows)
                    .ok_or_else(overflow)?;
                Ok(data.div_ceil(32) * 32 + 32)
            }
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first: a matrix of `rows` outputs and `cols` inputs has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub ty: TensorType,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of the data, the padding after it not included.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Inputs of a matrix: the innermost dimension.
    #[must_use]
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Outputs of a matrix: the product of all dimensions but the innermost.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }
}

/// A list of strings held as one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrArray {
    text: String,
    /// Where each string ends in `text`; below 2^32 because the header is at most 512 MiB.
    ends: Vec<u32>,
}

impl StrArray {
    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i`.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        self.text.get(start..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

impl<S: AsRef<str>> FromIterator<S> for StrArray {
    /// Texts past 4 GiB are not representable in a GGUF header and are cut off.
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = StrArray::default();
        for s in strings {
            array.text.push_str(s.as_ref());
            let Ok(end) = u32::try_from(array.text.len()) else {
                break;
            };
            array.ends.push(end);
        }
        array
    }
}

/// A typed metadata array.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the element type of that name")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Str(StrArray),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::Str(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type as the GGUF specification names it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::Str(_) => "string",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }
}

/// A typed metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the value type of that name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The value as an integer, whatever its width.
    #[must_use]
    pub fn as_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// Type and value, short enough for an error message; arrays by type and length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "u8 {v}"),
            Value::I8(v) => write!(f, "i8 {v}"),
            Value::U16(v) => write!(f, "u16 {v}"),
            Value::I16(v) => write!(f, "i16 {v}"),
            Value::U32(v) => write!(f, "u32 {v}"),
            Value::I32(v) => write!(f, "i32 {v}"),
            Value::F32(v) => write!(f, "f32 {v}"),
            Value::Bool(v) => write!(f, "bool {v}"),
            Value::Str(v) => write!(f, "string {}", quoted(v)),
            Value::Array(v) => write!(f, "array of {} {}", v.len(), v.type_name()),
            Value::U64(v) => write!(f, "u64 {v}"),
            Value::I64(v) => write!(f, "i64 {v}"),
            Value::F64(v) => write!(f, "f64 {v}"),
        }
    }
}

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

/// What the header holds, all of it checked.
struct Header {
    version: u32,
    alignment: u32,
    kv: Vec<(String, Value)>,
    kv_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
    data_start: u64,
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

    fn contents(path: &Path, mut file: File) -> Result<Vec<u8>> {
        let refused = |e| Error::io(path, "read", e);
        let len = file.metadata().map_err(refused)?.len();
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
        let header = Header::parse(path, bytes.get())?;
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

    /// Whether the file is mapped; otherwise it is in memory.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped { .. })
    }

    /// What was odd about opening the file but no obstacle, in one line.
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

    /// Where the tensor data starts in the file: the bytes of the header, padding included.
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

    /// Bytes `part` of the tensor's data, by way of `buffer` where the file is mapped: the system would
    /// keep what lies around them resident, too. For few bytes here and there, which so stay few.
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

    /// Tells the system that this tensor's pages will not be read again soon, so that they stop
    /// counting as resident, and, where `uncache` says so, need not be kept in its cache of the
    /// file. Whole pages inside the tensor only: neighbours keep theirs. Reading the tensor again is
    /// slow, not wrong.
    pub fn drop_pages(&self, tensor: &TensorInfo, uncache: bool) {
        self.drop_part(tensor, 0..self.tensor_bytes(tensor).len(), uncache);
    }

    /// As [`Gguf::drop_pages`], for bytes `part` of the tensor's data.
    pub fn drop_part(&self, tensor: &TensorInfo, part: std::ops::Range<usize>, uncache: bool) {
        if let Some(whole) = byte_range(tensor)
            && part.start <= part.end
            && part.end <= whole.len()
        {
            self.drop_range(whole.start + part.start..whole.start + part.end, uncache);
        }
    }

    /// As [`Gguf::drop_pages`], for the whole file: where a page is read the system brings those around
    /// it, too, also such as were dropped before.
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

/// Lets the system forget what it keeps in memory of a part of a file; it may refuse.
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

/// What a reading step found and what it wanted; the caller adds file and item.
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
    /// Whether `data` was cut at `MAX_HEADER`, that is, the file goes on.
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

    fn str(&mut self, max: u64) -> Step<&'a str> {
        let n = self.u64()?;
        if n > max {
            return Err(Fault::new(
                format_args!("a string of {n} bytes"),
                format_args!("at most {max} bytes"),
            ));
        }
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes).map_err(|e| {
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
            8 => Value::Str(self.str(MAX_STRING)?.to_owned()),
            9 => Value::Array(self.values()?),
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

    /// `count` fixed-size numbers; the bytes are known to be there before the vector is made.
    fn numbers<T, const N: usize>(&mut self, count: u64, read: fn([u8; N]) -> T) -> Step<Vec<T>> {
        // At most MAX_ITEMS x 8 bytes: no overflow.
        let bytes = self.take(count * N as u64)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect())
    }

    fn values(&mut self) -> Step<Array> {
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
                return Err(Fault::new(
                    "an array of arrays",
                    "an array of numbers, bools or strings",
                ));
            }
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            other => {
                return Err(Fault::new(
                    format_args!("array element type {other}"),
                    "a GGUF value type, 0 to 12 without 9",
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
            let s = self
                .str(MAX_STRING)
                .map_err(|f| Fault { found: format!("{} (item {i})", f.found), ..f })?;
            array.text.push_str(s);
            // Below MAX_HEADER, so it fits.
            array.ends.push(array.text.len() as u32);
        }
        array.text.shrink_to_fit();
        Ok(array)
    }
}

/// A tensor as the directory tells it, before its size is judged.
struct Claim {
    name: String,
    dims: Vec<u64>,
    type_id: u32,
    /// Relative to the start of the data.
    offset: u64,
}

impl Header {
    fn parse(path: &Path, data: &[u8]) -> Result<Header> {
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
            let most = MAX_COUNT.min(data.len() as u64 / min_bytes);
            if n > most {
                let expected = format!("at most {most} in a file of {} bytes", data.len());
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
        let data_len = (data.len() as u64).saturating_sub(data_start);
        let tensors = place(path, claims, u64::from(alignment), data_start, data_len)?;
        Ok(Header { version, alignment, kv, kv_index, tensors, tensor_index, data_start })
    }
}

/// Refuses what is not GGUF, by name where the format is one that people mix up with it.
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

/// Judges type, size and place of every tensor. Holes between tensors and any order of the
/// directory are accepted, overlaps are not.
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
            offset: data_start + c.offset,
            bytes,
        })
        .collect())
}

/// The layout of a tensor that has `room` bytes up to the next one (or the end of the file).
fn decide(claim: &Claim, room: u64, last: bool, alignment: u64) -> Step<(TensorType, u64)> {
    let id = claim.type_id;
    let known = || TYPES.iter().filter(move |t| t.1 == id).map(|t| t.0);
    let Some(first) = known().next() else {
        let name = RETIRED.iter().find(|t| t.0 == id);
        let found = match name {
            Some((_, name)) => format!("type {id} ({name}, withdrawn from ggml)"),
            None => format!("type {id}"),
        };
        return Err(Fault::new(
            found,
            "a tensor type this reader knows, such as i2_s (36), f16 (1) or q6_K (14); convert the model again",
        ));
    };
    let size = |ty: TensorType| {
        ty.byte_size(&claim.dims)
            .map_err(|expected| Fault::new(format_args!("dimensions {:?}", claim.dims), expected))
    };
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

/// Builds the header of a new GGUF v3 file; the caller writes it and then the tensors' data.
///
/// Tensors follow each other in the order added, each padded with zeros to the alignment of 32.
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

    /// Adds a metadata pair. Keys must differ; readers refuse duplicates.
    pub fn kv(&mut self, key: &str, value: &Value) {
        put_str(&mut self.kv, key);
        put_value(&mut self.kv, value);
        self.n_kv += 1;
    }

    /// Adds a tensor of `dims` (innermost first).
    ///
    /// # Errors
    /// What is wrong with the shape, as [`TensorType::byte_size`].
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

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small file with one value of every type and three tensors.
    fn sample() -> Vec<u8> {
        let mut w = GgufWriter::new();
        for (key, value) in sample_kv() {
            w.kv(key, &value);
        }
        w.tensor("a", &[32, 2], TensorType::F32).unwrap();
        w.tensor("b", &[128, 3], TensorType::I2_S).unwrap();
        w.tensor("c", &[5], TensorType::F16).unwrap();
        let mut out = w.header();
        for t in w.tensors() {
            out.extend(std::iter::repeat_n(t.name.as_bytes()[0], t.bytes as usize));
            out.resize(out.len() + GgufWriter::padding(t.bytes), 0);
        }
        out
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
        ]
    }

    #[test]
    fn every_type_has_a_row_and_clashing_ids_are_listed() {
        for (ty, id, name, _) in TYPES {
            assert_eq!((ty.id(), ty.name()), (*id, *name));
            let shared = TYPES.iter().filter(|t| t.1 == *id).count() > 1;
            assert!(!shared || CLASHING.contains(id), "{name}");
            assert!(RETIRED.iter().all(|r| r.0 != *id), "{name}");
        }
    }

    #[test]
    fn byte_sizes_follow_the_formats() {
        use TensorType as T;
        let cases = [
            (T::F32, &[7u64, 3][..], 84),
            (T::F16, &[7], 14),
            (T::Q8_0, &[64, 2], 136),
            (T::Q4_0, &[32], 18),
            (T::Q6_K, &[512, 2], 840),
            // b1_58-3B down_proj: K = 8640 is 67.5 blocks of 128.
            (T::I2_S, &[8640, 3200], 8640 * 3200 / 4 + 32),
            (T::I2_S, &[1, 128], 64),
            (T::TL2, &[2560, 2560], 2304 * 2560 * 5 / 24 + 64 * 2560 + 32),
            (T::IQ1_BN, &[128, 2], 56),
            (T::IQ2_BN, &[128, 2], 72),
        ];
        for (ty, dims, bytes) in cases {
            assert_eq!(ty.byte_size(dims), Ok(bytes), "{ty} {dims:?}");
        }
        for (ty, dims) in [
            (T::Q6_K, &[384u64][..]),
            (T::I2_S, &[100, 1]),
            (T::TL2, &[128, 128]),
            (T::F32, &[u64::MAX / 2, 2]),
            (T::F64, &[1 << 61, 1]),
            (T::F32, &[]),
            (T::F32, &[4, 0]),
        ] {
            assert!(ty.byte_size(dims).is_err(), "{ty} {dims:?}");
        }
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
