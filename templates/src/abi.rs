//! What crosses the boundary between the runtime and a kernel. One set of types for built-in
//! kernels and for those made on the host.

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
/// of a matrix with `cols` columns (at most 2^18) in the kernel's layout; `activations` was filled
/// by the same kernel's `prepare` for the same `cols`; `out` may be written wherever the steps and
/// the kernel's number of activation rows reach. Nothing else accesses `out` there meanwhile.
pub type RunFn = unsafe extern "C" fn(call: &Call);

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
#[derive(Clone, Copy)]
pub struct TernaryEntry {
    /// The kernel's id, as `bitnet_profiles::KernelId` spells it.
    pub id: &'static str,
    /// Size of a prepared group.
    pub scratch: ScratchFn,
    /// Prepares a group.
    pub prepare: PrepareFn,
    /// Multiplies.
    pub run: RunFn,
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
    /// Quantises a token to int8; gives the scale.
    pub quantise_activations: unsafe extern "C" fn(x: *const f32, q: *mut i8, n: usize) -> f32,
    /// Quantises per block of 32; `d` is `[n / 32]`, and `n` is a multiple of 32.
    pub quantise_blocks: unsafe extern "C" fn(x: *const f32, q: *mut i8, d: *mut f32, n: usize),
    /// Scales integer dot products.
    pub scale_output:
        unsafe extern "C" fn(dots: *const i32, s: f32, wscale: f32, out: *mut f32, n: usize),
    /// Gated SiLU.
    pub silu_mul: unsafe extern "C" fn(gate: *const f32, up: *const f32, out: *mut f32, n: usize),
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
}

/// The activation row of a head, to be laid out as the kernel reads it.
#[repr(C)]
pub struct HeadPrepare {
    /// `cols` floats.
    pub x: *const f32,
    /// Columns, K: whole blocks of the head's format.
    pub cols: usize,
    /// At least `scratch(cols)` bytes, 64-byte aligned.
    pub scratch: *mut u8,
}

/// Consecutive rows of a head times one prepared activation row.
#[repr(C)]
pub struct HeadCall {
    /// First row, in the file's own blocks.
    pub rows: *const u8,
    /// Rows.
    pub count: usize,
    /// Columns, K: whole blocks of the head's format.
    pub cols: usize,
    /// What `prepare` wrote.
    pub activations: *const u8,
    /// One logit for each row.
    pub out: *mut f32,
}

/// Lays out an activation row.
///
/// # Safety
/// As [`PrepareFn`], for one row of floats.
pub type HeadPrepareFn = unsafe extern "C" fn(prepare: &HeadPrepare);

/// Computes the logits of one [`HeadCall`].
///
/// # Safety
/// The CPU has the kernel's features. `rows` is readable for `count` rows of `cols` weights;
/// `activations` was filled by the same kernel's `prepare` for the same `cols`; `out` is writable
/// for `count` floats and nothing else accesses it meanwhile.
pub type HeadRunFn = unsafe extern "C" fn(call: &HeadCall);

/// A head kernel as the generated table lists it.
#[derive(Clone, Copy)]
pub struct HeadEntry {
    /// The kernel's id, as `bitnet_profiles::KernelId` spells it.
    pub id: &'static str,
    /// Size of a prepared row.
    pub scratch: ScratchFn,
    /// Prepares a row.
    pub prepare: HeadPrepareFn,
    /// Multiplies.
    pub run: HeadRunFn,
}
