//! The attention kernels, and the layout of keys and values for them.

use bitnet_profiles::{Isa, KernelId, Op};
use half::f16;

use crate::cpu::memory::ALIGN;
use crate::numerics::{CHUNK, LANES, Softmax};
use bitnet_kernels::{self as builtin, abi};

/// Positions of a block of keys. A head's keys begin with a block, and the last block is whole.
pub const KEY_BLOCK: usize = LANES;

/// Returns the elements that a key or a value of a head takes; those beyond the head's are 0.
pub const fn row_elements(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Returns, for each element of a key, its offset in a block for position 0 of the block; that of
/// position `p` is `p` higher. [`abi::AttentionCall`] gives the reason.
pub fn key_slots(head_dim: usize) -> impl Iterator<Item = usize> {
    const REVERSED: [usize; LANES] = {
        let (mut reversed, mut i) = ([0; LANES], 0);
        while i < LANES {
            reversed[i] = i.reverse_bits() >> (usize::BITS - LANES.ilog2());
            i += 1;
        }
        reversed
    };
    let steps = head_dim.div_ceil(LANES);
    (0..head_dim).map(move |i| {
        let c = REVERSED[i % LANES];
        (((c / 4 * steps) + i / LANES) * 4 + c % 4) * KEY_BLOCK
    })
}

/// An attention kernel that this CPU can run.
#[derive(Clone, Copy)]
pub struct AttentionKernel {
    id: KernelId,
    entry: &'static abi::AttentionEntry,
}

impl std::fmt::Debug for AttentionKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AttentionKernel({})", self.id)
    }
}

/// Keys and values of up to [`CHUNK`] positions of a head, [`row_elements`] for each. The keys are
/// whole blocks ([`key_slots`]), the values `[position][row_elements]`.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as the enum says")]
pub enum KvChunk<'a> {
    F16 {
        keys: &'a [f16],
        values: &'a [f16],
    },
    F32 {
        keys: &'a [f32],
        values: &'a [f32],
    },
    /// Codes, and scales `[position]`, of whole blocks.
    Q8 {
        keys: &'a [i8],
        key_scales: &'a [f32],
        values: &'a [i8],
        value_scales: &'a [f32],
    },
}

impl KvChunk<'_> {
    /// Reads the elements of the key and the value at a position of the chunk, `[head_dim]` each, and returns
    /// their scales, which are 1 for floats.
    pub(crate) fn read(&self, position: usize, key: &mut [f32], value: &mut [f32]) -> (f32, f32) {
        match *self {
            Self::F16 { keys, values } => {
                read((keys, values), position, (key, value), f16::to_f32);
                (1.0, 1.0)
            }
            Self::F32 { keys, values } => {
                read((keys, values), position, (key, value), |x| x);
                (1.0, 1.0)
            }
            Self::Q8 { keys, key_scales, values, value_scales } => {
                read((keys, values), position, (key, value), f32::from);
                (key_scales[position], value_scales[position])
            }
        }
    }
}

/// Reads a key, whose elements lie in its block as [`key_slots`] says, and a value.
fn read<T: Copy>(
    (keys, values): (&[T], &[T]),
    position: usize,
    (key, value): (&mut [f32], &mut [f32]),
    to_f32: impl Fn(T) -> f32,
) {
    let (width, row) = (key.len(), row_elements(key.len()));
    let block = &keys[position / KEY_BLOCK * KEY_BLOCK * row..];
    for (key, slot) in key.iter_mut().zip(key_slots(width)) {
        *key = to_f32(block[slot + position % KEY_BLOCK]);
    }
    let values = &values[position * row..][..width];
    value.iter_mut().zip(values).for_each(|(value, &x)| *value = to_f32(x));
}

/// The query heads of some tokens that attend to the same chunk.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInput<'a> {
    /// Head `h` of token `t` begins at `t * stride + h * head_dim`.
    pub queries: &'a [f32],
    /// Elements between the queries of one token and the next.
    pub stride: usize,
    /// Query heads of a token.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions of the chunk that each token sees, 0 to [`CHUNK`].
    pub counts: &'a [usize],
    /// The chunk that they attend to.
    pub chunk: KvChunk<'a>,
    /// Factor of the dot products, which gives the scores.
    pub scale: f32,
}

// Kernels take a `Softmax` as the ABI's type: both have the same layout.
const _: () = assert!(
    size_of::<Softmax>() == size_of::<abi::Softmax>()
        && align_of::<Softmax>() == align_of::<abi::Softmax>()
        && std::mem::offset_of!(Softmax, max) == std::mem::offset_of!(abi::Softmax, max)
        && std::mem::offset_of!(Softmax, sum) == std::mem::offset_of!(abi::Softmax, sum)
);

impl AttentionKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no attention kernel.
    pub(super) fn new(entry: &'static abi::AttentionEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        (id.op == Op::Attention && id.isa.is_supported()).then_some(Self { id, entry })
    }

    /// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::ATTENTION.iter().filter_map(Self::new)
    }

    /// Returns the built-in kernel of that name, if there is one and this CPU can run it.
    pub fn find(id: &KernelId) -> Option<Self> {
        Self::builtin().find(|kernel| kernel.id == *id)
    }

    /// Returns the default: of the best ISA up to `ceiling` the one with the most rows at once,
    /// which computes fewer in smaller steps.
    pub fn default(ceiling: Isa) -> Option<Self> {
        Self::builtin()
            .filter(|kernel| kernel.id.isa <= ceiling)
            .max_by_key(|kernel| (kernel.id.isa, kernel.rows()))
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// Query rows, heads of tokens, that share a load of keys or values.
    pub fn rows(&self) -> usize {
        self.id.tile.rows
    }

    /// Returns the bytes of scratch for heads of so many elements.
    pub fn scratch_bytes(&self, head_dim: usize) -> usize {
        (self.entry.scratch)(head_dim)
    }

    /// Computes [`numerics::attention_chunk`] for every head of every token; `states` is
    /// `[tokens][heads]` and `out` `[tokens][heads][head_dim]`. With `merge` they hold the result
    /// of the chunks before, and this chunk's is merged into it ([`numerics::attention_merge`])
    /// unless the token sees nothing of this one. `scratch` is [`AttentionKernel::scratch_bytes`]
    /// long and aligned to [`ALIGN`].
    ///
    /// [`numerics::attention_chunk`]: crate::numerics::attention_chunk
    /// [`numerics::attention_merge`]: crate::numerics::attention_merge
    ///
    /// # Panics
    /// When a size or the alignment does not fit.
    pub fn run(
        &self,
        input: &AttentionInput<'_>,
        merge: bool,
        states: &mut [Softmax],
        out: &mut [f32],
        scratch: &mut [u8],
    ) {
        let &AttentionInput { queries, stride, heads, head_dim, counts, chunk, scale } = input;
        assert!(self.id.shape.is_none_or(|shape| shape.cols == head_dim), "{}", self.id);
        assert!(heads > 0 && head_dim > 0 && counts.len().checked_mul(heads) == Some(states.len()));
        assert_eq!(states.len().checked_mul(head_dim), Some(out.len()));
        assert_eq!(scratch.len(), self.scratch_bytes(head_dim));
        assert_eq!(scratch.as_ptr() as usize % ALIGN, 0);
        let Some(last) = counts.len().checked_sub(1) else { return };
        // `out` is at least as long as the queries of a token.
        let end = last.checked_mul(stride).and_then(|n| n.checked_add(heads * head_dim));
        assert!(end.is_some_and(|end| end <= queries.len()), "queries end early");
        let most = counts.iter().copied().max().unwrap_or(0);
        assert!(most <= CHUNK, "a chunk of {most} positions");
        let (row, whole) = (row_elements(head_dim), most.next_multiple_of(KEY_BLOCK));
        let fits = |keys: usize, values: usize| {
            assert!(keys >= whole * row && values >= most * row, "keys or values end early");
        };
        let mut scales = (std::ptr::null(), std::ptr::null());
        let (keys, values, elements): (*const u8, *const u8, u8) = match chunk {
            KvChunk::F16 { keys, values } => {
                fits(keys.len(), values.len());
                (keys.as_ptr().cast(), values.as_ptr().cast(), abi::ELEMENTS_F16)
            }
            KvChunk::F32 { keys, values } => {
                fits(keys.len(), values.len());
                (keys.as_ptr().cast(), values.as_ptr().cast(), abi::ELEMENTS_F32)
            }
            KvChunk::Q8 { keys, key_scales, values, value_scales } => {
                fits(keys.len(), values.len());
                assert!(
                    key_scales.len() >= whole && value_scales.len() >= whole,
                    "scales end early"
                );
                scales = (key_scales.as_ptr(), value_scales.as_ptr());
                (keys.as_ptr().cast(), values.as_ptr().cast(), abi::ELEMENTS_Q8)
            }
        };
        let call = abi::AttentionCall {
            queries: queries.as_ptr(),
            stride,
            tokens: counts.len(),
            heads,
            head_dim,
            counts: counts.as_ptr(),
            keys,
            values,
            elements,
            key_scales: scales.0,
            value_scales: scales.1,
            scale,
            merge,
            states: states.as_mut_ptr().cast(),
            out: out.as_mut_ptr(),
            scratch: scratch.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU, the lines above every size and the alignment;
        // `Softmax` is laid out as the kernel's; what is written is borrowed exclusively.
        unsafe { (self.entry.run)(&call) }
    }
}
