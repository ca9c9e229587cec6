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

mod header;
mod map;
mod overrides;
mod part;
mod source;
mod split;
mod tensor;
mod value;
mod write;

pub use crate::formats::TensorType;
pub use map::Gguf;
pub use overrides::Override;
pub use source::{Likeness, Source, SourceFile};
pub use split::is_part_name;
pub use tensor::TensorInfo;
pub use value::{Array, StrArray, Value};
pub use write::{GgufWriter, TensorSink};

/// Bytes of `magic | version | n_tensors | n_kv`.
const FIXED_HEADER: usize = 24;
const DEFAULT_ALIGNMENT: u32 = 32;
