//! Writing a file.

use super::{Array, DEFAULT_ALIGNMENT, FIXED_HEADER, TensorInfo, TensorType, Value};

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
pub(super) mod tests {
    use super::super::Gguf;
    use super::*;

    /// A small file with one value of every type and three tensors.
    pub(in super::super) fn sample() -> Vec<u8> {
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
}
