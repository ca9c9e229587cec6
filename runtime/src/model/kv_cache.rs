//! Keys and values of the positions seen so far.

use std::ops::Range;

use half::f16;
use memmap2::MmapMut;

use super::config::Config;
use super::numerics::{self, KvElement, Softmax};
use crate::error::{Error, Result};
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

/// The KV cache of one sequence: keys and values `[layer][kv_head][position][head_dim]`, so that
/// one head's history is one sequential stream.
///
/// The memory is reserved for the whole context but zero pages come from the system only as they
/// are first written, so a short text in a long context takes little.
#[derive(Debug)]
pub struct KvCache {
    /// Values follow keys.
    map: MmapMut,
    ty: KvType,
    layout: Layout,
}

/// Where a head's history lies.
#[derive(Clone, Copy, Debug)]
struct Layout {
    layers: usize,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
}

impl Layout {
    /// Elements of the keys alone (as many as of the values), if that fits memory at all.
    fn elements(self) -> Option<usize> {
        self.layers
            .checked_mul(self.kv_heads)?
            .checked_mul(self.context)?
            .checked_mul(self.head_dim)
    }

    /// Elements of a range of positions of a head, in the keys or in the values.
    fn range(self, layer: usize, kv_head: usize, positions: Range<usize>) -> Range<usize> {
        assert!(layer < self.layers && kv_head < self.kv_heads && positions.end <= self.context);
        let first = (layer * self.kv_heads + kv_head) * self.context;
        (first + positions.start) * self.head_dim..(first + positions.end) * self.head_dim
    }
}

impl KvCache {
    /// Reserves a cache for `context` positions.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new(config: &Config, context: usize, ty: KvType) -> Result<Self> {
        let layout = Layout {
            layers: config.layers,
            kv_heads: config.kv_heads,
            context,
            head_dim: config.head_dim,
        };
        let bytes = layout.elements().and_then(|n| n.checked_mul(2 * ty.bytes()));
        let refused = |why: String| {
            let bytes = bytes.map_or("too many".into(), |b| b.to_string());
            Error::Runtime(format!(
                "cannot reserve {bytes} bytes of KV cache for a context of {context}: {why}; ask for a smaller context (-c)"
            ))
        };
        let len = bytes.ok_or_else(|| refused("beyond the address space".into()))?;
        let map = MmapMut::map_anon(len).map_err(|e| refused(e.to_string()))?;
        Ok(Self { map, ty, layout })
    }

    /// Positions the cache can hold.
    #[must_use]
    pub fn context(&self) -> usize {
        self.layout.context
    }

    /// What the elements are.
    #[must_use]
    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Bytes that `positions` positions take.
    #[must_use]
    pub fn bytes(&self, positions: usize) -> usize {
        let Layout { layers, kv_heads, head_dim, .. } = self.layout;
        2 * self.ty.bytes() * layers * kv_heads * head_dim * positions
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
pub(super) trait KvBits: KvElement + Send + Sync {}
impl KvBits for f16 {}
impl KvBits for f32 {}

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
        layer: usize,
        kv_head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => heads.store(layer, kv_head, position, key, value),
                Self::F32(heads) => heads.store(layer, kv_head, position, key, value),
            }
        }
    }

    /// [`numerics::attention_chunk`] of a query head over `positions` of a head of the cache.
    ///
    /// # Safety
    /// In this phase no worker writes any of these positions.
    pub(super) unsafe fn attend(
        &self,
        layer: usize,
        kv_head: usize,
        positions: Range<usize>,
        query: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) -> Softmax {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => heads.attend(layer, kv_head, positions, query, scores, out),
                Self::F32(heads) => heads.attend(layer, kv_head, positions, query, scores, out),
            }
        }
    }
}

impl<T: KvBits> Heads<'_, T> {
    /// # Safety
    /// As [`SharedKv::store`].
    unsafe fn store(
        &self,
        layer: usize,
        kv_head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let range = self.layout.range(layer, kv_head, position..position + 1);
        // SAFETY: passed on to the caller.
        let (keys, values) = unsafe { (self.keys.write(range.clone()), self.values.write(range)) };
        numerics::to_kv(key, keys);
        numerics::to_kv(value, values);
    }

    /// # Safety
    /// As [`SharedKv::attend`].
    unsafe fn attend(
        &self,
        layer: usize,
        kv_head: usize,
        positions: Range<usize>,
        query: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) -> Softmax {
        let range = self.layout.range(layer, kv_head, positions);
        // SAFETY: passed on to the caller.
        let (keys, values) = unsafe { (self.keys.read(range.clone()), self.values.read(range)) };
        let scale = 1.0 / (self.layout.head_dim as f32).sqrt();
        numerics::attention_chunk(query, keys, values, scale, scores, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Architecture;

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

    /// Attention over one position returns its value, whatever the query: so the value shows
    /// which place was read.
    #[test]
    fn every_place_is_its_own() {
        for ty in [KvType::F16, KvType::F32] {
            let mut cache = KvCache::new(&config(), 3, ty).unwrap();
            assert_eq!(cache.bytes(1), 2 * 2 * 2 * 4 * ty.bytes());
            let shared = cache.share();
            let number = |l: usize, h: usize, p: usize| (1 + l * 6 + h * 3 + p) as f32;
            let places = || (0..12).map(|i| (i / 6, i / 3 % 2, i % 3));
            let read = |(l, h, p): (usize, usize, usize)| {
                let (mut scores, mut out) = ([0.0; 1], [9.0; 4]);
                // SAFETY: one thread.
                unsafe { shared.attend(l, h, p..p + 1, &[1.0; 4], &mut scores, &mut out) };
                out
            };
            assert!(places().all(|place| read(place) == [0.0; 4]), "not zero at first");
            for (l, h, p) in places() {
                // SAFETY: one thread.
                unsafe { shared.store(l, h, p, &[0.5; 4], &[number(l, h, p); 4]) };
            }
            for (l, h, p) in places() {
                assert_eq!(read((l, h, p)), [number(l, h, p); 4]);
            }
        }
    }

    #[test]
    fn keys_decide_the_weights() {
        let mut cache = KvCache::new(&config(), 2, KvType::F16).unwrap();
        let shared = cache.share();
        let (mut scores, mut out) = ([0.0; 2], [0.0; 4]);
        // SAFETY: one thread.
        let state = unsafe {
            shared.store(1, 1, 0, &[100.0; 4], &[1.0; 4]);
            shared.store(1, 1, 1, &[-100.0; 4], &[2.0; 4]);
            shared.attend(1, 1, 0..2, &[1.0; 4], &mut scores, &mut out)
        };
        // Scores +-100 * 4 / sqrt(4): the second has no weight left.
        assert_eq!((state, out), (Softmax { max: 200.0, sum: 1.0 }, [1.0; 4]));
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
