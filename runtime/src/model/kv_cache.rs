//! Keys and values of the positions seen so far.

use std::ops::Range;

use half::f16;
use memmap2::MmapMut;

use super::config::Config;
use super::numerics::{CHUNK, LANES};
use crate::error::{Error, Result};
use crate::kernels::VectorOps;
use crate::kernels::attention::{KEY_BLOCK, KvChunk, key_slots, row_elements};
use crate::threads::SharedSlice;

/// What the elements of a KV cache are: the user's choice, never the tuner's, because it changes
/// numbers.
///
/// A rounding of keys and values flips some of the int8 activations behind the attention, and each
/// flip moves others. On the demo model f16 moves the logits by about 0.02 (at most 0.09), and so
/// would a finer 16-bit format: one int16 with a scale per head and position, 30 times finer, was
/// tried and moved them as far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes.
    F16,
    /// 4 bytes, no rounding.
    F32,
}

impl KvType {
    /// The type for who does not choose: f16, but f32 for small models, where the bytes saved are
    /// not worth the rounding: those with at most 16 KiB of f32 per position.
    #[must_use]
    pub fn default_for(config: &Config) -> Self {
        let per_position = 2 * Self::F32.bytes() * config.layers * config.kv_dim();
        if per_position <= 16 * 1024 { Self::F32 } else { Self::F16 }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => size_of::<f16>(),
            Self::F32 => size_of::<f32>(),
        }
    }
}

/// The KV cache of one sequence: keys and values `[layer][kv_head][position][row_elements]`, so that
/// one head's history is one sequential stream; but of keys each [`KEY_BLOCK`] positions lie as
/// attention reads them ([`key_slots`]).
///
/// The memory is reserved for the whole context but zero pages come from the system only as they
/// are first written, so a short text in a long context takes little. Padding is never written.
#[derive(Debug)]
pub struct KvCache {
    /// Values follow keys.
    map: MmapMut,
    ty: KvType,
    context: usize,
    layout: Layout,
}

/// Where a head's history lies.
#[derive(Clone, Copy, Debug)]
struct Layout {
    layers: usize,
    kv_heads: usize,
    /// Whole blocks.
    positions: usize,
    head_dim: usize,
    /// Elements of a position.
    row: usize,
}

impl Layout {
    /// Nothing if it does not fit memory at all.
    fn new(config: &Config, context: usize) -> Option<Self> {
        let &Config { layers, kv_heads, head_dim, .. } = config;
        let positions = context.checked_next_multiple_of(KEY_BLOCK)?;
        let row = row_elements(head_dim);
        let all = [layers, kv_heads, positions, row];
        all.into_iter().try_fold(1usize, usize::checked_mul)?;
        Some(Self { layers, kv_heads, positions, head_dim, row })
    }

    /// Elements of the keys alone, as many as of the values.
    fn elements(self) -> usize {
        self.layers * self.kv_heads * self.positions * self.row
    }

    /// Elements of a range of positions of a head, in the values or, whole blocks, in the keys.
    fn range(self, layer: usize, kv_head: usize, positions: Range<usize>) -> Range<usize> {
        assert!(layer < self.layers && kv_head < self.kv_heads && positions.end <= self.positions);
        let first = (layer * self.kv_heads + kv_head) * self.positions;
        (first + positions.start) * self.row..(first + positions.end) * self.row
    }
}

impl KvCache {
    /// Reserves a cache for `context` positions.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new(config: &Config, context: usize, ty: KvType) -> Result<Self> {
        let layout = Layout::new(config, context);
        let bytes = layout.and_then(|l| l.elements().checked_mul(2 * ty.bytes()));
        let refused = |why: String| {
            let bytes = bytes.map_or("too many".into(), |b| b.to_string());
            Error::Runtime(format!(
                "cannot reserve {bytes} bytes of KV cache for a context of {context}: {why}; ask for a smaller context (-c)"
            ))
        };
        let (layout, len) =
            layout.zip(bytes).ok_or_else(|| refused("beyond the address space".into()))?;
        let map = MmapMut::map_anon(len).map_err(|e| refused(e.to_string()))?;
        Ok(Self { map, ty, context, layout })
    }

    /// Positions the cache can hold.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// What the elements are.
    #[must_use]
    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Bytes that `positions` positions take, without the rest of the last block of keys.
    #[must_use]
    pub fn bytes(&self, positions: usize) -> usize {
        let Layout { layers, kv_heads, row, .. } = self.layout;
        2 * self.ty.bytes() * layers * kv_heads * row * positions
    }

    /// A view that the workers of a run write and read.
    pub(super) fn share(&mut self) -> SharedKv<'_> {
        match self.ty {
            KvType::F16 => SharedKv::F16(self.heads()),
            KvType::F32 => SharedKv::F32(self.heads()),
        }
    }

    fn heads<T: KvBits>(&mut self) -> Heads<'_, T> {
        let len = self.map.len() / size_of::<T>();
        // SAFETY: the mapping is page-aligned, at least `len * size_of::<T>()` bytes long and
        // exclusively borrowed for the lifetime of the slice; every bit pattern is a T (`KvBits`).
        let all = unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), len) };
        let (keys, values) = all.split_at_mut(len / 2);
        Heads {
            keys: SharedSlice::new(keys),
            values: SharedSlice::new(values),
            layout: self.layout,
        }
    }
}

/// Elements for which every bit pattern is a value.
pub(super) trait KvBits: Copy + Send + Sync + 'static {
    /// Converts, to nearest, ties to even.
    fn convert(ops: &VectorOps, x: &[f32], out: &mut [Self]);
    const ZERO: Self;
}

impl KvBits for f16 {
    fn convert(ops: &VectorOps, x: &[f32], out: &mut [Self]) {
        ops.to_f16(x, out);
    }
    const ZERO: Self = Self::ZERO;
}

impl KvBits for f32 {
    fn convert(_: &VectorOps, x: &[f32], out: &mut [Self]) {
        out.copy_from_slice(x);
    }
    const ZERO: Self = 0.0;
}

/// A [`KvCache`] during a run.
pub(super) enum SharedKv<'a> {
    F16(Heads<'a, f16>),
    F32(Heads<'a, f32>),
}

/// Keys and values of one element type.
pub(super) struct Heads<'a, T> {
    keys: SharedSlice<'a, T>,
    values: SharedSlice<'a, T>,
    layout: Layout,
}

impl SharedKv<'_> {
    /// Stores the key and the value of one position of one head, `[head_dim]` each.
    ///
    /// # Safety
    /// In this phase no other worker touches this layer's `kv_head` at `position`.
    pub(super) unsafe fn store(
        &self,
        ops: &VectorOps,
        (layer, kv_head, position): (usize, usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => heads.store(ops, (layer, kv_head, position), key, value),
                Self::F32(heads) => heads.store(ops, (layer, kv_head, position), key, value),
            }
        }
    }

    /// The first `positions` of a chunk of a head, as attention reads them.
    ///
    /// # Safety
    /// While the result lives no worker stores to this head.
    pub(super) unsafe fn chunk(
        &self,
        (layer, kv_head): (usize, usize),
        chunk: usize,
        positions: usize,
    ) -> KvChunk<'_> {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => {
                    let (keys, values) = heads.chunk((layer, kv_head), chunk, positions);
                    KvChunk::F16 { keys, values }
                }
                Self::F32(heads) => {
                    let (keys, values) = heads.chunk((layer, kv_head), chunk, positions);
                    KvChunk::F32 { keys, values }
                }
            }
        }
    }
}

impl<T: KvBits> Heads<'_, T> {
    /// # Safety
    /// As [`SharedKv::store`].
    unsafe fn store(
        &self,
        ops: &VectorOps,
        (layer, kv_head, position): (usize, usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let Layout { head_dim, .. } = self.layout;
        assert!(key.len() == head_dim && value.len() == head_dim);
        let values = self.layout.range(layer, kv_head, position..position + 1);
        // SAFETY: passed on to the caller.
        let row = unsafe { self.values.write(values.start..values.start + head_dim) };
        T::convert(ops, value, row);

        let lane = position % KEY_BLOCK;
        let block = self.layout.range(layer, kv_head, position - lane..position).start + lane;
        let mut slots = key_slots(head_dim);
        let mut lanes = [T::ZERO; LANES];
        for key in key.chunks(LANES) {
            let converted = &mut lanes[..key.len()];
            T::convert(ops, key, converted);
            for (&mut element, slot) in converted.iter_mut().zip(&mut slots) {
                let at = block + slot;
                // SAFETY: an element of this position, and so passed on to the caller.
                unsafe { self.keys.write(at..at + 1)[0] = element };
            }
        }
    }

    /// # Safety
    /// As [`SharedKv::chunk`].
    unsafe fn chunk(
        &self,
        (layer, kv_head): (usize, usize),
        chunk: usize,
        positions: usize,
    ) -> (&[T], &[T]) {
        assert!(positions <= CHUNK);
        let range = |positions: usize| {
            let first = chunk * CHUNK;
            self.layout.range(layer, kv_head, first..first + positions)
        };
        // SAFETY: passed on to the caller.
        unsafe {
            let keys = self.keys.read(range(positions.next_multiple_of(KEY_BLOCK)));
            (keys, self.values.read(range(positions)))
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Isa;

    use super::*;
    use crate::kernels::AttentionKernel;
    use crate::kernels::attention::AttentionInput;
    use crate::memory::Buffer;
    use crate::model::config::Architecture;
    use crate::model::numerics::Softmax;

    fn config() -> Config {
        Config {
            architecture: Architecture::Llama,
            layers: 2,
            hidden: 8,
            ffn: 8,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            rope_dim: 4,
            rope_base: 1e4,
            rope_scale: 1.0,
            eps: 1e-5,
            context: 16,
            vocab: 8,
        }
    }

    /// The outcome of one query that is `query` everywhere.
    fn attend(shared: &SharedKv<'_>, head: (usize, usize), seen: usize, query: f32) -> Vec<f32> {
        let kernel = AttentionKernel::default(Isa::Scalar).unwrap();
        // SAFETY: one thread.
        let chunk = unsafe { shared.chunk(head, 0, seen) };
        let (queries, counts) = (&[query; 4], &[seen]);
        let input =
            AttentionInput { queries, stride: 4, heads: 1, head_dim: 4, counts, chunk, scale: 0.5 };
        let (mut states, mut out) = ([Softmax { max: 0.0, sum: 0.0 }], vec![9.0; 4]);
        let mut scratch = Buffer::zeroed(kernel.scratch_bytes(4)).unwrap();
        kernel.run(&input, false, &mut states, &mut out, &mut scratch);
        out.push(states[0].max);
        out
    }

    /// Of one position attention returns the value, and the score is the largest one: so they show
    /// which place was read.
    #[test]
    fn every_place_is_its_own() {
        let ops = VectorOps::best(Isa::Scalar);
        for ty in [KvType::F16, KvType::F32] {
            let context = 35;
            let mut cache = KvCache::new(&config(), context, ty).unwrap();
            assert_eq!(cache.context(), context);
            // Two layers, two heads, a key and a value of 16 with the padding.
            assert_eq!(cache.bytes(3), 3 * 2 * 2 * 2 * 16 * ty.bytes());
            let shared = cache.share();
            let number = |l: usize, h: usize, p: usize| (1 + (l * 2 + h) * context + p) as f32;
            let places =
                || (0..4 * context).map(|i| (i / 2 / context, i / context % 2, i % context));
            for l in 0..2 {
                for h in 0..2 {
                    assert_eq!(attend(&shared, (l, h), context, 1.0), [0.0; 5], "zero at first");
                }
            }
            for (l, h, p) in places() {
                // The newest key has by far the largest score.
                let (key, value) = ([64.0 * (p + 1) as f32; 4], [number(l, h, p); 4]);
                // SAFETY: one thread.
                unsafe { shared.store(&ops, (l, h, p), &key, &value) };
            }
            for (l, h, p) in places() {
                let mut expected = vec![number(l, h, p); 4];
                expected.push(128.0 * (p + 1) as f32);
                assert_eq!(attend(&shared, (l, h), p + 1, 1.0), expected);
            }
        }
    }

    #[test]
    fn elements_keep_their_order() {
        let ops = VectorOps::best(Isa::Scalar);
        let mut cache =
            KvCache::new(&Config { head_dim: 40, ..config() }, 20, KvType::F32).unwrap();
        let shared = cache.share();
        let key: Vec<f32> = (0..40).map(|i| i as f32).collect();
        // SAFETY: one thread.
        let chunk = unsafe {
            shared.store(&ops, (0, 1, 18), &key, &key);
            shared.chunk((0, 1), 0, 19)
        };
        let KvChunk::F32 { keys, values } = chunk else { panic!("{chunk:?}") };
        assert_eq!((keys.len(), values.len()), (32 * 48, 19 * 48));
        assert_eq!(values[18 * 48..][..40], key);
        for (i, slot) in key_slots(40).enumerate() {
            assert_eq!(keys[16 * 48 + slot + 2], i as f32);
        }
        assert_eq!(keys.iter().filter(|&&k| k != 0.0).count(), 39);
        assert_eq!(values.iter().filter(|&&v| v != 0.0).count(), 39);
    }

    #[test]
    fn only_small_models_get_f32_unasked() {
        let small = config();
        assert_eq!(KvType::default_for(&small), KvType::F32);
        let large = Config { layers: 30, kv_heads: 5, head_dim: 128, ..small };
        assert_eq!(KvType::default_for(&large), KvType::F16);
    }

    #[test]
    fn a_context_beyond_memory_is_an_error() {
        for context in [usize::MAX, usize::MAX / 64, 1 << 52] {
            let error = KvCache::new(&config(), context, KvType::F16).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(&context.to_string()), "{error}");
        }
    }
}
