//! Types that cross the boundary between the runtime and a kernel. One set of types for built-in
//! kernels and for those made on the host, which another compiler may have made: every type that a
//! library is read by has a C layout.

/// Version of the types in this file. It changes with any of them; with the whole text of this file
/// it is part of the generator's fingerprint.
pub const VERSION: u32 = 9;

/// The symbol of a library's [`Header`], the first one that is looked at.
pub const HEADER_SYMBOL: &str = "BITNET_KERNELS_HEADER";

/// The symbol of a library's [`Tables`]. Nobody touches it before the header was found to fit.
pub const TABLES_SYMBOL: &str = "BITNET_KERNELS_TABLES";

/// The build that a library of kernels was made for. This type stays as it is in every version.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// The generator's fingerprint: 16 hexadecimal digits.
    pub fingerprint: [u8; 16],
}

/// The kernels of a library.
#[repr(C)]
pub struct Tables {
    /// Ternary kernels.
    pub ternary: *const TernaryEntry,
    /// Their number.
    pub ternary_len: usize,
    /// Kernels for matrices with block scales.
    pub blocks: *const BlockEntry,
    /// Their number.
    pub blocks_len: usize,
    /// Head kernels.
    pub heads: *const HeadEntry,
    /// Their number.
    pub heads_len: usize,
    /// Attention kernels.
    pub attention: *const AttentionEntry,
    /// Their number.
    pub attention_len: usize,
    /// Kernels that are given a list of lines.
    pub lines: *const GatherEntry,
    /// Their number.
    pub gather_len: usize,
}

// SAFETY: the tables are constants.
unsafe impl Sync for Tables {}

/// A kernel's id, as `bitnet_profiles::KernelId` spells it, padded with zeros.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Id([u8; Id::BYTES]);

impl Id {
    /// Bytes that the longest id takes.
    pub const BYTES: usize = 128;

    /// The id of that text, of at most [`Id::BYTES`].
    pub const fn new(text: &str) -> Self {
        let mut bytes = [0; Self::BYTES];
        bytes.split_at_mut(text.len()).0.copy_from_slice(text.as_bytes());
        Self(bytes)
    }

    /// The text, if that is what the bytes are: printable ASCII, then nothing but zeros.
    pub fn text(&self) -> Option<&str> {
        let len = self.0.iter().position(|&byte| byte == 0).unwrap_or(Self::BYTES);
        let (text, padding) = self.0.split_at(len);
        let valid = text.iter().all(u8::is_ascii_graphic) && padding.iter().all(|&byte| byte == 0);
        core::str::from_utf8(text).ok().filter(|_| valid)
    }
}

/// One thread's share of a matrix product: `steps` consecutive row steps of one matrix, times one
/// prepared group of activation rows.
#[repr(C)]
pub struct Call {
    /// First packed tile of the first step.
    pub weights: *const u8,
    /// The group of activation rows, as the kernel's `prepare` wrote it; 64-byte aligned.
    pub activations: *const u8,
    /// Row `r` of the steps, activation row `t`: `out[t * out_stride + r]`. Ternary kernels store
    /// int32 dot products.
    pub out: *mut i32,
    /// Columns of the matrix, K, without padding.
    pub cols: usize,
    /// Row steps of the kernel's tile height.
    pub steps: usize,
    /// Elements between the outputs of one activation row and the next.
    pub out_stride: usize,
    /// For a kernel with an [`Expansion`]: bytes from the steps in one block of columns to the same
    /// in the next. Its steps are tiles, and `weights` is the first of them in the expanded form.
    pub block_stride: usize,
}

/// Packed tiles, to be brought into the form that a kernel for many activation rows reads.
#[repr(C)]
pub struct Expand {
    /// First packed tile.
    pub weights: *const u8,
    /// Tiles to expand.
    pub tiles: usize,
    /// Columns of the matrix, K, without padding.
    pub cols: usize,
    /// Index of the first of them among the tiles of the expanded form.
    pub first: usize,
    /// Tiles of the expanded form: it holds all of them for the first block of columns, then all for
    /// the next.
    pub all: usize,
    /// The expanded form.
    pub out: *mut u8,
}

/// The int8 activation rows of one group, to be laid out as the kernel reads them.
#[repr(C)]
pub struct Prepare {
    /// Row `t` starts at `quantised + t * stride`.
    pub quantised: *const i8,
    /// Bytes between rows.
    pub stride: usize,
    /// Rows in the group: 1 to the kernel's number of activation rows. Missing ones count as zero.
    pub tokens: usize,
    /// Columns, K.
    pub cols: usize,
    /// At least `scratch(cols)` bytes, 64-byte aligned.
    pub scratch: *mut u8,
}

/// Computes the outputs of one [`Call`].
///
/// # Safety
/// The CPU has the kernel's features. `weights` holds `steps` times the kernel's tile height rows
/// of a matrix with `cols` columns (at most 2^18) in the kernel's layout, or `steps` tiles of each
/// block of columns in its expanded form, whole steps but for the last one of the form, with a byte more
/// that may be read; `activations` was filled
/// by the same kernel's `prepare` for the same `cols`; `out` may be read and written wherever the steps
/// and the kernel's number of activation rows reach. Nothing else accesses `out` there meanwhile.
pub type RunFn = unsafe extern "C" fn(call: &Call);

/// Expands some tiles.
///
/// # Safety
/// The CPU has the kernel's features. `weights` holds `tiles` tiles of a matrix with `cols` columns in
/// the kernel's layout; `out` may be written for `all` times [`Expansion::tile_bytes`], of which only
/// what belongs to these tiles is, and nothing else accesses that meanwhile. `first + tiles <= all`.
pub type ExpandFn = unsafe extern "C" fn(expand: &Expand);

/// Expansion of the packing by a kernel for many activation rows, once for all of them.
#[repr(C)]
pub struct Expansion {
    /// Bytes of an expanded tile, for so many columns.
    pub tile_bytes: ScratchFn,
    /// Expands.
    pub run: ExpandFn,
}

/// Lays out one group of activation rows.
///
/// # Safety
/// The CPU has the kernel's features. `quantised` holds `tokens` rows of `cols` bytes; `scratch`
/// may be written for `scratch(cols)` bytes, is 64-byte aligned, and nothing else accesses it
/// meanwhile.
pub type PrepareFn = unsafe extern "C" fn(prepare: &Prepare);

/// Bytes of scratch that a prepared group takes for so many columns.
pub type ScratchFn = extern "C" fn(cols: usize) -> usize;

/// A ternary kernel as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TernaryEntry {
    /// The kernel's id.
    pub id: Id,
    /// Size of a prepared group.
    pub scratch: ScratchFn,
    /// Prepares a group.
    pub prepare: PrepareFn,
    /// Multiplies.
    pub run: RunFn,
    /// Expansion of the packing before, if any.
    pub expansion: Option<&'static Expansion>,
}

/// Consecutive tiles of a matrix with block scales times one prepared group of activation rows.
#[repr(C)]
pub struct BlockCall {
    /// First tile, in the kernel's `BlockLayout`.
    pub weights: *const u8,
    /// The group of activation rows, as the kernel's `prepare` wrote it; 64-byte aligned.
    pub activations: *const u8,
    /// Row `r` of the tiles, activation row `t`: `out[t * out_stride + r]`.
    pub out: *mut f32,
    /// Columns of the matrix, K: whole blocks.
    pub cols: usize,
    /// Activation rows to be multiplied: 1 to the kernel's number of them. Outputs of more may be written,
    /// up to that number.
    pub tokens: usize,
    /// Tiles.
    pub steps: usize,
    /// Elements between the outputs of one activation row and the next.
    pub out_stride: usize,
}

/// The int8 activation rows of one group, with scales of their blocks, to be laid out as the kernel reads
/// them.
#[repr(C)]
pub struct BlockPrepare {
    /// Row `t` starts at `quantised + t * stride`.
    pub quantised: *const i8,
    /// Bytes between rows.
    pub stride: usize,
    /// Scales, `[tokens][blocks]`.
    pub scales: *const f32,
    /// Rows in the group: 1 to the kernel's number of activation rows. Missing ones count as zero.
    pub tokens: usize,
    /// Columns, K: whole blocks.
    pub cols: usize,
    /// At least `scratch(cols)` bytes, 64-byte aligned.
    pub scratch: *mut u8,
}

/// Computes the outputs of one [`BlockCall`].
///
/// # Safety
/// The CPU has the kernel's features. `weights` holds `steps` tiles of a matrix with `cols` columns (at
/// most 2^18, whole blocks) in the kernel's layout; `activations` was filled by the same kernel's `prepare`
/// for the same `cols`; `out` may be written wherever the tiles and the kernel's number of activation rows
/// reach, and nothing else accesses it there meanwhile.
pub type BlockRunFn = unsafe extern "C" fn(call: &BlockCall);

/// Lays out one group of activation rows.
///
/// # Safety
/// As [`PrepareFn`]; `cols` is whole blocks, and `scales` holds one for each of them and each row.
pub type BlockPrepareFn = unsafe extern "C" fn(prepare: &BlockPrepare);

/// A kernel for matrices with block scales as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BlockEntry {
    /// The kernel's id.
    pub id: Id,
    /// Size of a prepared group.
    pub scratch: ScratchFn,
    /// Prepares a group.
    pub prepare: BlockPrepareFn,
    /// Multiplies.
    pub run: BlockRunFn,
}

/// Lines of a matrix that a list names, rows or columns of it, times one prepared activation row. A
/// line that is not in the list is not read.
#[repr(C)]
pub struct GatherCall {
    /// Line 0: its first unit, or that of a share of its units.
    pub lines: *const u8,
    /// Bytes between a line and the next.
    pub line_bytes: usize,
    /// Units of each line to be read, `GatherLayout::UNIT_BYTES` each.
    pub units: usize,
    /// Numbers of lines.
    pub list: *const u32,
    /// Their number.
    pub count: usize,
    /// Output of the kernel's `prepare`; 64-byte aligned. Of a `columns` kernel it holds an
    /// activation for each line of the list, in that order.
    pub activations: *const u8,
    /// Int32 dot products: of a `rows` kernel one for each line of the list, of a `columns` kernel
    /// one for each weight of the units.
    pub out: *mut i32,
}

/// Computes one [`GatherCall`].
///
/// # Safety
/// The CPU has the kernel's features. `list` holds `count` numbers of lines, of each of which `units`
/// units are readable from `lines` plus so many times `line_bytes`; `activations` was filled by the
/// same kernel's `prepare`, for the matrix's columns (`rows`) or `count` (`columns`), at most 2^18;
/// `out` is writable as far as the kernel's dot products reach, and nothing else accesses it
/// meanwhile.
pub type GatherRunFn = unsafe extern "C" fn(call: &GatherCall);

/// A kernel with a list of lines as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GatherEntry {
    /// The kernel's id.
    pub id: Id,
    /// Size of a prepared row.
    pub scratch: ScratchFn,
    /// Prepares a row: that of one token.
    pub prepare: PrepareFn,
    /// Multiplies.
    pub run: GatherRunFn,
}

/// The float operations of one ISA. Each is defined, with its formula, by the function of the same
/// name in the runtime's `model/numerics.rs`, and equals it bit for bit.
///
/// All pointers are readable, or writable where `mut`, for `n` elements unless said otherwise, and
/// the CPU has the ISA's features. Inputs and outputs do not overlap unless they are the same.
#[derive(Clone, Copy)]
pub struct VectorEntry {
    /// RMSNorm of `x` with weights `w`.
    pub rms_norm:
        unsafe extern "C" fn(x: *const f32, w: *const f32, eps: f32, out: *mut f32, n: usize),
    /// Quantises a token to int8; gives the scale, NaN if an element is not finite.
    pub quantise_activations: unsafe extern "C" fn(x: *const f32, q: *mut i8, n: usize) -> f32,
    /// Quantises per block of 32; `d` is `[n / 32]`, and `n` is a multiple of 32.
    pub quantise_blocks: unsafe extern "C" fn(x: *const f32, q: *mut i8, d: *mut f32, n: usize),
    /// Scales integer dot products.
    pub scale_output:
        unsafe extern "C" fn(dots: *const i32, s: f32, wscale: f32, out: *mut f32, n: usize),
    /// Gated SiLU.
    pub silu_mul: unsafe extern "C" fn(gate: *const f32, up: *const f32, out: *mut f32, n: usize),
    /// Writes the numbers of the positive elements in order, and gives how many they are; `out` is
    /// writable for `n` rounded up to a multiple of 16.
    pub list_positive: unsafe extern "C" fn(x: *const f32, out: *mut u32, n: usize) -> usize,
    /// As `list_positive` for elements other than zero, which are written beside their numbers;
    /// `values` is as long as `out`.
    pub list_nonzero:
        unsafe extern "C" fn(q: *const i8, out: *mut u32, values: *mut i8, n: usize) -> usize,
    /// Writes the numbers of the rows that may reach something, of which the first is `first`, in order, and
    /// gives how many they are; `out` is writable for `n` rounded up to a multiple of 16.
    pub list_reaching: unsafe extern "C" fn(
        estimates: *const f32,
        residuals: *const f32,
        reach: &Reach,
        first: u32,
        out: *mut u32,
        n: usize,
    ) -> usize,
    /// Gated squared ReLU.
    pub relu2_mul: unsafe extern "C" fn(gate: *const f32, up: *const f32, out: *mut f32, n: usize),
    /// Adds `y` to `x`.
    pub add: unsafe extern "C" fn(x: *mut f32, y: *const f32, n: usize),
    /// Rotates pairs `i, n + i` of a head; `x` is `[2 n]`.
    pub rope_neox: unsafe extern "C" fn(x: *mut f32, cos: *const f32, sin: *const f32, n: usize),
    /// Rotates pairs `2 i, 2 i + 1` of a head; `x` is `[2 n]`.
    pub rope_norm: unsafe extern "C" fn(x: *mut f32, cos: *const f32, sin: *const f32, n: usize),
    /// Converts to half floats, as bits.
    pub to_f16: unsafe extern "C" fn(x: *const f32, out: *mut u16, n: usize),
    /// Merges the next chunk of an attention into `state` and `out`.
    pub attention_merge: unsafe extern "C" fn(
        state: *mut Softmax,
        out: *mut f32,
        chunk: &Softmax,
        chunk_out: *const f32,
        n: usize,
    ),
    /// Ends an attention.
    pub attention_finish: unsafe extern "C" fn(state: &Softmax, out: *mut f32, n: usize),
}

/// The running state of a softmax: `model/numerics.rs` has it too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Softmax {
    /// The largest score so far.
    pub max: f32,
    /// The sum of exp(score - max).
    pub sum: f32,
}

/// The bound to be reached, and by how much estimates may be too small: `model/numerics.rs` has it too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reach {
    /// Factor of a row's residual.
    pub norm: f32,
    /// Number added to that.
    pub slack: f32,
    /// The bound to be reached, a number.
    pub least: f32,
}

/// The activation rows of a head, to be laid out as the kernel reads them.
#[repr(C)]
pub struct HeadPrepare {
    /// `tokens` rows of `cols` floats.
    pub x: *const f32,
    /// Rows: 1 to the kernel's number of activation rows. Missing ones count as zero.
    pub tokens: usize,
    /// Columns, K: whole blocks of the head's format.
    pub cols: usize,
    /// Scale of the head, of a format that has one for the whole tensor; else not read.
    pub scale: f32,
    /// At least `scratch(cols)` bytes, 64-byte aligned.
    pub scratch: *mut u8,
}

/// Consecutive rows of a head times prepared activation rows.
#[repr(C)]
pub struct HeadCall {
    /// First row, in the file's own blocks.
    pub rows: *const u8,
    /// Rows.
    pub count: usize,
    /// Columns, K: whole blocks of the head's format.
    pub cols: usize,
    /// Output of `prepare`.
    pub activations: *const u8,
    /// The logit of row `r` and activation row `t`: `out[t * out_stride + r]`.
    pub out: *mut f32,
    /// Elements between the logits of one activation row and the next.
    pub out_stride: usize,
}

/// Lays out activation rows.
///
/// # Safety
/// As [`PrepareFn`], for rows of floats without a stride.
pub type HeadPrepareFn = unsafe extern "C" fn(prepare: &HeadPrepare);

/// Computes the logits of one [`HeadCall`].
///
/// # Safety
/// The CPU has the kernel's features. `rows` is readable for `count` rows of `cols` weights;
/// `activations` was filled by the same kernel's `prepare` for the same `cols`; `out` is writable
/// for `count` floats of every activation row that the kernel takes, and nothing else accesses it
/// there meanwhile.
pub type HeadRunFn = unsafe extern "C" fn(call: &HeadCall);

/// A head kernel as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeadEntry {
    /// The kernel's id.
    pub id: Id,
    /// Size of a prepared row.
    pub scratch: ScratchFn,
    /// Prepares a row.
    pub prepare: HeadPrepareFn,
    /// Multiplies.
    pub run: HeadRunFn,
}

/// Consecutive tiles of a sketch, a low-bit copy of the lm_head, times the activation rows of as many
/// tokens as the kernel takes.
#[repr(C)]
pub struct SketchCall {
    /// First tile, in the layout of `SketchFormat`.
    pub tiles: *const u8,
    /// A scale for each row of the tiles.
    pub scales: *const f32,
    /// Tiles.
    pub count: usize,
    /// Columns, K; blocks of 32 cover them.
    pub cols: usize,
    /// Activations `[block][quad][token][4]`, padded with zeros to whole blocks.
    pub activations: *const i8,
    /// The codes' offset in the sum: `1 - 2^bits` times the sum of a block's activations,
    /// `[block][token]`.
    pub offsets: *const i32,
    /// Scales of the activations, `[block][token]`, relative to `scale`.
    pub factors: *const f32,
    /// For every token.
    pub scale: *const f32,
    /// An estimate for each row.
    pub out: *mut f32,
    /// Floats from one token's estimates to those of the next.
    pub stride: usize,
}

/// Computes the estimates of one [`SketchCall`].
///
/// # Safety
/// The CPU has the kernel's features. `tiles` is readable for `count` tiles of `cols` columns,
/// `scales` for 16 floats of each tile; `activations`, `offsets` and `factors` for whole blocks of
/// columns, and they and `scale` for all tokens; `out` is writable for 16 floats of each tile and token
/// and nothing else accesses these meanwhile.
pub type SketchRunFn = unsafe extern "C" fn(call: &SketchCall);

/// A kernel that scans sketch as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SketchEntry {
    /// The kernel's id.
    pub id: Id,
    /// Scans.
    pub run: SketchRunFn,
}

/// Elements of keys and values: half floats.
pub const ELEMENTS_F16: u8 = 0;
/// Floats.
pub const ELEMENTS_F32: u8 = 1;
/// int8 codes, with an f32 scale for each key and each value.
pub const ELEMENTS_Q8: u8 = 2;

/// Attention of query rows, the heads of some tokens, over one chunk of the key-value head that they
/// share: `numerics::attention_chunk`, and if so asked `numerics::attention_merge`.
///
/// A row of elements, a key or a value, is padded with zeros to a multiple of 16. Values lie row by
/// row. Of the keys 16 positions make a block: element
/// `i` of position `p` is number `(slot * 16 + p % 16)` of block `p / 16`, where `slot` is
/// `(c / 4 * steps + i / 16) * 4 + c % 4`, `c` is `i % 16` with its 4 bits in reverse order, and
/// `steps` is the vectors of a row. What stands at positions that no token sees decides nothing.
#[repr(C)]
pub struct AttentionCall {
    /// Head `h` of token `t`: `queries + t * stride + h * head_dim`.
    pub queries: *const f32,
    /// Elements between the queries of one token and the next.
    pub stride: usize,
    /// Tokens.
    pub tokens: usize,
    /// Query heads of a token.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// For every token how many positions of the chunk it sees, 0 to 256.
    pub counts: *const usize,
    /// Keys of the chunk.
    pub keys: *const u8,
    /// Values of the chunk.
    pub values: *const u8,
    /// Type of keys and values: [`ELEMENTS_F16`], [`ELEMENTS_F32`] or [`ELEMENTS_Q8`].
    pub elements: u8,
    /// Of codes a scale for each position, for whole blocks; else not read.
    pub key_scales: *const f32,
    /// As many.
    pub value_scales: *const f32,
    /// Scores are dot products times this.
    pub scale: f32,
    /// True if `states` and `out` hold the chunks before, to be merged with this one; a token that
    /// sees nothing of it keeps them. Else this is the first one.
    pub merge: bool,
    /// `[tokens][heads]`
    pub states: *mut Softmax,
    /// `[tokens][heads][head_dim]`, not yet divided by the sums.
    pub out: *mut f32,
    /// At least `scratch(head_dim)` bytes, 64-byte aligned.
    pub scratch: *mut u8,
}

/// Computes one [`AttentionCall`].
///
/// # Safety
/// The CPU has the kernel's features. `queries` is readable for all heads of all tokens, `keys` and
/// `values` for as many positions as the largest of `counts`, `keys`, and scales where elements are codes,
/// rounded up to whole blocks;
/// `states` and `out` are readable and writable, and `scratch` is writable, with nothing else
/// accessing them meanwhile. `heads` is not 0, and no count is above 256.
pub type AttentionRunFn = unsafe extern "C" fn(call: &AttentionCall);

/// An attention kernel as the generated table lists it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AttentionEntry {
    /// The kernel's id.
    pub id: Id,
    /// Bytes of scratch for heads of so many elements.
    pub scratch: ScratchFn,
    /// Attends.
    pub run: AttentionRunFn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_text_and_nothing_else() {
        let long = "i".repeat(Id::BYTES);
        for text in ["", "i", "i2_s_t16__avx2__any__r16_c64_n1_u1_p0", &long] {
            assert_eq!(Id::new(text).text(), Some(text));
        }
        let of = |bytes: &[u8]| {
            let mut id = Id::new("");
            id.0[..bytes.len()].copy_from_slice(bytes);
            id
        };
        for bytes in [&b"a\0b"[..], b"\0a", b"a b", b"a\n", b"\xff", b"\xc3\xa4"] {
            assert_eq!(of(bytes).text(), None, "{bytes:?}");
        }
    }
}
