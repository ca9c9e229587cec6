//! Typed metadata values and arrays.

use std::fmt;

use crate::error::quoted;

/// A list of strings held as one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrArray {
    pub(super) text: String,
    /// End of each string in `text`; below 2^32 because the header is at most 512 MiB.
    pub(super) ends: Vec<u32>,
    /// The first string that is not UTF-8 in the file, if any; here its wrong bytes are U+FFFD.
    pub(super) broken: Option<u32>,
}

impl StrArray {
    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there is none.
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

    /// The first string that is not UTF-8 in the file, in which U+FFFD stands for the wrong bytes.
    #[must_use]
    pub fn broken(&self) -> Option<usize> {
        self.broken.map(|i| i as usize)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

impl<S: AsRef<str>> FromIterator<S> for StrArray {
    /// Collects strings; a GGUF header cannot hold more than 4 GiB of them, and the rest is cut off.
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
    Array(Vec<Array>),
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
            Array::Array(v) => v.len(),
        }
    }

    /// True if there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i` as a value.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Value> {
        Some(match self {
            Array::U8(v) => Value::U8(*v.get(i)?),
            Array::I8(v) => Value::I8(*v.get(i)?),
            Array::U16(v) => Value::U16(*v.get(i)?),
            Array::I16(v) => Value::I16(*v.get(i)?),
            Array::U32(v) => Value::U32(*v.get(i)?),
            Array::I32(v) => Value::I32(*v.get(i)?),
            Array::F32(v) => Value::F32(*v.get(i)?),
            Array::Bool(v) => Value::Bool(*v.get(i)?),
            Array::Str(v) => Value::Str(v.get(i)?.to_owned()),
            Array::U64(v) => Value::U64(*v.get(i)?),
            Array::I64(v) => Value::I64(*v.get(i)?),
            Array::F64(v) => Value::F64(*v.get(i)?),
            Array::Array(v) => Value::Array(v.get(i)?.clone()),
        })
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
            Array::Array(_) => "array",
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
    /// A string that is not UTF-8.
    Bytes(Vec<u8>),
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

    /// The value as an unsigned integer: any number that is one and fits.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        match *self {
            Value::F32(x) => whole(x.into()),
            Value::F64(x) => whole(x),
            _ => self.as_i128().and_then(|n| u32::try_from(n).ok()),
        }
    }

    /// The value as a floating-point number: one of either precision, rounded, or an integer that
    /// `f32` holds exactly.
    #[must_use]
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => self
                .as_i128()
                .map(|n| (n, n as f32))
                .filter(|&(n, x)| x as i128 == n)
                .map(|(_, x)| x),
        }
    }

    /// The value as a truth value: a bool, or an integer 0 or 1.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(b) => Some(b),
            _ => match self.as_i128()? {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
        }
    }

    /// The value as a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The values themselves: the elements of an array, else the value alone.
    pub fn items(&self) -> impl Iterator<Item = Value> + '_ {
        let (array, own) = match self {
            Value::Array(array) => (Some(array), None),
            other => (None, Some(other.clone())),
        };
        let elements = array.into_iter().flat_map(|a| (0..a.len()).filter_map(|i| a.get(i)));
        elements.chain(own)
    }
}

/// The integer that a float is.
fn whole(x: f64) -> Option<u32> {
    (x.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&x)).then_some(x as u32)
}

/// Shows type and value, short enough for an error message; of arrays type and length.
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
            Value::Bytes(v) => {
                write!(f, "string {}, which is not UTF-8", quoted(&String::from_utf8_lossy(v)))
            }
            Value::Array(v) => write!(f, "array of {} {}", v.len(), v.type_name()),
            Value::U64(v) => write!(f, "u64 {v}"),
            Value::I64(v) => write!(f, "i64 {v}"),
            Value::F64(v) => write!(f, "f64 {v}"),
        }
    }
}
