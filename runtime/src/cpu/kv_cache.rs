//! KV cache: keys and values of the positions so far.

use std::ops::Range;

use half::f16;
use memmap2::MmapMut;

use crate::arch::config::Config;
use crate::cpu::kernels::VectorOps;
use crate::cpu::kernels::attention::{KEY_BLOCK, KvChunk, key_slots, row_elements};
use crate::cpu::memory;
use crate::cpu::threads::SharedSlice;
use crate::error::Result;
use crate::numerics::CHUNK;

/// Element type of a KV cache: the user's choice, never the tuner's, because it changes numbers.
///
/// Rounding of keys and values flips some of the int8 activations after the attention, and each
/// flip moves others. On the demo model f16 moves the logits by about 0.02 (at most 0.09). A finer
/// 16-bit format, one int16 with a scale per head and position and 30 times finer, was tried and
/// moved them as far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 2 bytes.
    F16,
    /// 4 bytes, no rounding.
    F32,
    /// int8 codes, and one f32 scale for each key and each value of a head
    /// ([`to_kv`](crate::numerics::to_kv)): 1.03 bytes for heads of 128. Differs from llama.cpp's
    /// blocks of 32 with f16 scales, 1.06 bytes: here the scales of 16 positions of keys are
    /// applied in one multiplication, and a value's scale is folded into its weight.
    Q8_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// Returns the default: f16, but f32 for models with at most 16 KiB of f32 per position, where
    /// the bytes saved are not worth the rounding.
    #[must_use]
    pub fn default_for(config: &Config) -> Self {
        let per_position = 2 * Self::F32.bytes() * config.layers * config.kv_dim();
        if per_position <= 16 * 1024 { Self::F32 } else { Self::F16 }
    }

    /// The name, as llama.cpp spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => size_of::<f16>(),
            Self::F32 => size_of::<f32>(),
            Self::Q8_0 => size_of::<i8>(),
        }
    }

    /// The number that stands for it in a file.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::F16 => 0,
            Self::F32 => 1,
            Self::Q8_0 => 2,
        }
    }

    /// Bytes of a key's or a value's scale.
    fn scale_bytes(self) -> usize {
        if self == Self::Q8_0 { size_of::<f32>() } else { 0 }
    }
}

/// The KV cache of one sequence: `[chunk][layer][kv_head]`, and in each the keys of a chunk's
/// positions, then its values, [`row_elements`] for each. So a layer reads a chunk as one
/// sequential stream. Keys are interleaved in blocks of [`KEY_BLOCK`] positions, as attention reads
/// them ([`key_slots`]). Scales, if any, follow all elements in the same order.
///
/// The memory is reserved for the whole context, but the system provides pages, zeroed, only as
/// they are first written, so a short text in a long context takes little. Padding is never
/// written.
#[derive(Debug)]
pub struct KvCache {
    map: MmapMut,
    ty: KvType,
    context: usize,
    layout: Layout,
}

/// Layout of all keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    layers: usize,
    kv_heads: usize,
    /// Positions, in whole blocks of keys.
    positions: usize,
    head_dim: usize,
    /// Elements of a position.
    row: usize,
}

/// Starts of the keys and of the values of a chunk of a head, counted in positions.
#[derive(Clone, Copy, Debug)]
struct Place {
    keys: usize,
    values: usize,
}

impl Layout {
    /// Returns `None` if it does not fit the address space.
    fn new(config: &Config, context: usize) -> Option<Self> {
        let &Config { layers, kv_heads, head_dim, .. } = config;
        let positions = context.checked_next_multiple_of(KEY_BLOCK)?;
        let row = row_elements(head_dim);
        let all = [2, layers, kv_heads, positions, row];
        all.into_iter().try_fold(1usize, usize::checked_mul)?;
        Some(Self { layers, kv_heads, positions, head_dim, row })
    }

    /// Positions of all keys and values.
    fn all(self) -> usize {
        2 * self.layers * self.kv_heads * self.positions
    }

    /// Bytes of `positions` positions of all keys and values.
    fn bytes(self, positions: usize, ty: KvType) -> Option<usize> {
        let one = self.row.checked_mul(ty.bytes())?.checked_add(ty.scale_bytes())?;
        (2 * self.layers * self.kv_heads * positions).checked_mul(one)
    }

    /// Returns the place of a chunk of a head. The last chunk may be shorter than the others.
    fn place(self, layer: usize, kv_head: usize, chunk: usize) -> Place {
        let first = chunk * CHUNK;
        assert!(layer < self.layers && kv_head < self.kv_heads && first < self.positions);
        let len = (self.positions - first).min(CHUNK);
        let heads = self.layers * self.kv_heads;
        let keys = 2 * (heads * first + (layer * self.kv_heads + kv_head) * len);
        Place { keys, values: keys + len }
    }

    /// Returns the ranges of the first `positions` of all keys and values, counted in positions:
    /// all whole chunks, then, of a last partial chunk, the blocks of keys and the values of each
    /// head.
    fn prefix(self, positions: usize) -> impl Iterator<Item = Range<usize>> {
        let (chunk, rest) = (positions / CHUNK, positions % CHUNK);
        let heads = self.layers * self.kv_heads;
        let whole = 0..2 * heads * chunk * CHUNK;
        let parts = (0..if rest > 0 { heads } else { 0 }).flat_map(move |head| {
            let place = self.place(head / self.kv_heads, head % self.kv_heads, chunk);
            let keys = place.keys..place.keys + rest.next_multiple_of(KEY_BLOCK);
            [keys, place.values..place.values + rest]
        });
        std::iter::once(whole).chain(parts)
    }
}

impl KvCache {
    /// Reserves a cache for `context` positions.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new(config: &Config, context: usize, ty: KvType) -> Result<Self> {
        let layout = Layout::new(config, context);
        let bytes = layout.and_then(|layout| layout.bytes(layout.positions, ty));
        let what = format!("the keys and values of a context of {context}");
        let (layout, len) = layout.zip(bytes).ok_or_else(|| memory::refused(usize::MAX, &what))?;
        memory::require(len as u64, &what)?;
        Self::map(layout, (context, ty), len, &what)
    }

    /// Maps a cache of `len` bytes.
    fn map(layout: Layout, (context, ty): (usize, KvType), len: usize, what: &str) -> Result<Self> {
        let map = MmapMut::map_anon(len).map_err(|_| memory::refused(len, what))?;
        // Attention takes 0.86 times as long in huge pages (3500 positions of a 2B-4T shape). They
        // are allocated for a chunk of all layers at a time, 20 MB there: not worth it for a text
        // within the first chunk. A hint: only the speed depends on it.
        #[cfg(target_os = "linux")]
        if let Some(first) = layout.bytes(CHUNK, ty).filter(|&first| first < len) {
            let _ = map.advise_range(memmap2::Advice::HugePage, first, len - first);
        }
        Ok(Self { map, ty, context, layout })
    }

    /// Makes an empty cache of the same shape and type, which takes no memory until it is written.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses it.
    pub(super) fn empty(&self) -> Result<Self> {
        let of = (self.context, self.ty);
        Self::map(self.layout, of, self.map.len(), "an empty KV cache")
    }

    /// True if another cache is of the same shape and type.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.layout == other.layout && self.ty == other.ty && self.context == other.context
    }

    /// Capacity in positions.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Element type.
    #[must_use]
    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Returns the bytes that `positions` positions take, without the rest of the last block of
    /// keys.
    #[must_use]
    pub fn bytes(&self, positions: usize) -> usize {
        self.layout.bytes(positions.min(self.layout.positions), self.ty).unwrap_or(usize::MAX)
    }

    /// Copies the first `positions` of another cache of the same shape and type; later ones may be
    /// overwritten.
    pub(super) fn copy_prefix(&mut self, other: &Self, positions: usize) {
        assert!(self.is_like(other));
        for range in self.ranges(positions) {
            self.map[range.clone()].copy_from_slice(&other.map[range]);
        }
    }

    /// Returns the bytes of the first `positions`, in an order that does not depend on the context.
    pub(super) fn parts(&self, positions: usize) -> impl Iterator<Item = &[u8]> {
        self.ranges(positions).map(|range| &self.map[range])
    }

    /// Has `fill` overwrite the bytes of the first `positions`, in the order of [`KvCache::parts`].
    ///
    /// # Errors
    /// The first that `fill` returns.
    pub(super) fn fill_parts<E>(
        &mut self,
        positions: usize,
        mut fill: impl FnMut(&mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.ranges(positions).try_for_each(|range| fill(&mut self.map[range]))
    }

    /// The numbers on which the meaning of the bytes depends, with their names.
    pub(super) fn shape(&self) -> [(&'static str, u32); 6] {
        let Layout { layers, kv_heads, head_dim, row, .. } = self.layout;
        [
            ("its number of layers", layers),
            ("its number of KV heads", kv_heads),
            ("the width of its heads", head_dim),
            ("the length of its rows", row),
            ("the length of its chunks", CHUNK),
            ("the length of its blocks of keys", KEY_BLOCK),
        ]
        .map(|(name, number)| (name, u32::try_from(number).unwrap_or(u32::MAX)))
    }

    /// Returns the places of the first `positions` in the map: elements and scales, part by part.
    fn ranges(&self, positions: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let layout = self.layout;
        assert!(positions <= layout.positions);
        let (row, scale) = (layout.row * self.ty.bytes(), self.ty.scale_bytes());
        let scales = layout.all() * row;
        layout.prefix(positions).flat_map(move |range| {
            [(0, row), (scales, scale)]
                .map(|(first, bytes)| first + range.start * bytes..first + range.end * bytes)
        })
    }

    /// Returns a view that the workers of a run write and read.
    pub(crate) fn share(&mut self) -> SharedKv<'_> {
        match self.ty {
            KvType::F16 => SharedKv::F16(self.heads().0),
            KvType::F32 => SharedKv::F32(self.heads().0),
            KvType::Q8_0 => {
                let (codes, scales) = self.heads();
                SharedKv::Q8(codes, scales)
            }
        }
    }

    /// Returns all elements, and the scales that follow them.
    fn heads<T: KvBits>(&mut self) -> (Heads<'_, T>, SharedSlice<'_, f32>) {
        let layout = self.layout;
        let (elements, scales) = self.map.split_at_mut(layout.all() * layout.row * size_of::<T>());
        // SAFETY: the mapping is page-aligned, and so its first part ends aligned to 64 bytes, as there
        // are 16 positions of 16 elements at least; both parts are exclusively borrowed for the lifetime
        // of the slices; every bit pattern is a T (`KvBits`), and a f32.
        let (elements, scales) = unsafe {
            let len = elements.len() / size_of::<T>();
            let elements = std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), len);
            let len = scales.len() / size_of::<f32>();
            (elements, std::slice::from_raw_parts_mut(scales.as_mut_ptr().cast(), len))
        };
        (Heads { elements: SharedSlice::new(elements), layout }, SharedSlice::new(scales))
    }
}

/// Elements for which every bit pattern is a value.
pub(crate) trait KvBits: Copy + Send + Sync + 'static {}

impl KvBits for f16 {}
impl KvBits for f32 {}
impl KvBits for i8 {}

/// A [`KvCache`] during a run.
pub(crate) enum SharedKv<'a> {
    F16(Heads<'a, f16>),
    F32(Heads<'a, f32>),
    /// Codes, and their scales.
    Q8(Heads<'a, i8>, SharedSlice<'a, f32>),
}

/// Keys and values of one element type.
pub(crate) struct Heads<'a, T> {
    elements: SharedSlice<'a, T>,
    layout: Layout,
}

impl SharedKv<'_> {
    /// Largest magnitude of a key that stays finite.
    pub(crate) fn largest(&self) -> f32 {
        match self {
            Self::F16(_) => f16::MAX.to_f32(),
            Self::F32(_) | Self::Q8(..) => f32::MAX,
        }
    }

    /// Stores the key and the value of one position of one head, `[head_dim]` each.
    ///
    /// # Safety
    /// In this phase no other worker touches this layer's `kv_head` at `position`.
    pub(crate) unsafe fn store(
        &self,
        ops: &VectorOps,
        at: (usize, usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => {
                    heads.store(at, key, value, |x, out| ops.to_f16(x, out));
                }
                Self::F32(heads) => {
                    heads.store(at, key, value, |x, out| out.copy_from_slice(x));
                }
                Self::Q8(heads, scales) => {
                    let (layer, kv_head, position) = at;
                    let code = |x: &[f32], out: &mut [i8]| 1.0 / ops.quantise_activations(x, out);
                    let (of_key, of_value) = heads.store(at, key, value, code);
                    let place = heads.layout.place(layer, kv_head, position / CHUNK);
                    for (first, scale) in [(place.keys, of_key), (place.values, of_value)] {
                        let at = first + position % CHUNK;
                        scales.write(at..at + 1)[0] = scale;
                    }
                }
            }
        }
    }

    /// Returns the first `positions` of a chunk of a head, as attention reads them.
    ///
    /// # Safety
    /// While the result lives no worker stores to this head.
    pub(crate) unsafe fn chunk(
        &self,
        head: (usize, usize),
        chunk: usize,
        positions: usize,
    ) -> KvChunk<'_> {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::F16(heads) => {
                    let (keys, values) = heads.chunk(head, chunk, positions);
                    KvChunk::F16 { keys, values }
                }
                Self::F32(heads) => {
                    let (keys, values) = heads.chunk(head, chunk, positions);
                    KvChunk::F32 { keys, values }
                }
                Self::Q8(heads, scales) => {
                    let (keys, values) = heads.chunk(head, chunk, positions);
                    let place = heads.layout.place(head.0, head.1, chunk);
                    let whole = positions.next_multiple_of(KEY_BLOCK);
                    let key_scales = scales.read(place.keys..place.keys + whole);
                    let value_scales = scales.read(place.values..place.values + whole);
                    KvChunk::Q8 { keys, key_scales, values, value_scales }
                }
            }
        }
    }
}

impl<T: KvBits> Heads<'_, T> {
    /// Converts and stores a key and a value; returns the results of both conversions.
    ///
    /// # Safety
    /// As [`SharedKv::store`].
    unsafe fn store<S>(
        &self,
        (layer, kv_head, position): (usize, usize, usize),
        key: &[f32],
        value: &[f32],
        convert: impl Fn(&[f32], &mut [T]) -> S,
    ) -> (S, S) {
        let Layout { head_dim, row, positions, .. } = self.layout;
        assert!(key.len() == head_dim && value.len() == head_dim && position < positions);
        let place = self.layout.place(layer, kv_head, position / CHUNK);
        let (lane, in_chunk) = (position % KEY_BLOCK, position % CHUNK);
        let block = (place.keys + in_chunk - lane) * row;
        let block = self.elements.part(block..block + KEY_BLOCK * row);
        let at = (place.values + in_chunk) * row;
        // SAFETY: passed on to the caller.
        let values = unsafe { self.elements.write(at..at + head_dim) };
        // The value's place is scratch space for the key first.
        let of_key = convert(key, values);
        for (&element, slot) in values.iter().zip(key_slots(head_dim)) {
            // SAFETY: slots of a block lie within it; elements of this position are the caller's.
            unsafe { block.as_mut_ptr().add(slot + lane).write(element) };
        }
        (of_key, convert(value, values))
    }

    /// # Safety
    /// As [`SharedKv::chunk`].
    unsafe fn chunk(
        &self,
        (layer, kv_head): (usize, usize),
        chunk: usize,
        positions: usize,
    ) -> (&[T], &[T]) {
        let row = self.layout.row;
        let whole = positions.next_multiple_of(KEY_BLOCK);
        let Place { keys, values } = self.layout.place(layer, kv_head, chunk);
        assert!(keys + whole <= values, "a chunk of {positions} positions");
        // SAFETY: passed on to the caller.
        unsafe {
            let keys = self.elements.read(keys * row..(keys + whole) * row);
            (keys, self.elements.read(values * row..(values + positions) * row))
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Isa;

    use super::*;
    use crate::cpu::kernels::AttentionKernel;
    use crate::cpu::kernels::attention::AttentionInput;
    use crate::cpu::memory::Buffer;
    use crate::numerics::Softmax;

    fn config() -> Config {
        Config {
            architecture: &crate::arch::LLAMA,
            activation: crate::arch::Activation::Relu2,
            layers: 2,
            hidden: 8,
            ffn: 8,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            rope_dim: 4,
            rope_base: 1e4,
            rope_scaling: crate::arch::rope::RopeScaling::NONE,
            mask: crate::arch::mask::Mask::CAUSAL,
            norms_in: false,
            eps: 1e-5,
            context: 16,
            vocab: 8,
        }
    }

    /// Runs attention for a query whose elements are all `query`, over the last chunk of the
    /// positions it sees. Returns the output and the maximum score.
    fn attend(shared: &SharedKv<'_>, head: (usize, usize), seen: usize, query: f32) -> Vec<f32> {
        let kernel = AttentionKernel::default(Isa::Scalar).unwrap();
        let chunk = (seen - 1) / CHUNK;
        let count = seen - chunk * CHUNK;
        // SAFETY: one thread.
        let chunk = unsafe { shared.chunk(head, chunk, count) };
        let (queries, counts) = (&[query; 4], &[count]);
        let input =
            AttentionInput { queries, stride: 4, heads: 1, head_dim: 4, counts, chunk, scale: 0.5 };
        let (mut states, mut out) = ([Softmax { max: 0.0, sum: 0.0 }], vec![9.0; 4]);
        let mut scratch = Buffer::zeroed(kernel.scratch_bytes(4)).unwrap();
        kernel.run(&input, false, &mut states, &mut out, &mut scratch);
        out.push(states[0].max);
        out
    }

    /// With one dominant position attention returns its value, and its score is the maximum: so the
    /// output shows which place was read.
    #[test]
    fn every_place_is_its_own() {
        let ops = VectorOps::best(Isa::Scalar);
        for ty in KvType::ALL {
            // More than a chunk, and not a whole number of blocks.
            let context = 291;
            let mut cache = KvCache::new(&config(), context, ty).unwrap();
            assert_eq!(cache.context(), context);
            // Two layers, two heads, a key and a value of 16 with the padding.
            let scale = if ty == KvType::Q8_0 { 4 } else { 0 };
            assert_eq!(cache.bytes(3), 3 * 2 * 2 * 2 * (16 * ty.bytes() + scale));
            let shared = cache.share();
            let number = |l: usize, h: usize, p: usize| (1 + (l * 2 + h) * context + p) as f32;
            let places =
                || (0..4 * context).map(|i| (i / 2 / context, i / context % 2, i % context));
            for l in 0..2 {
                for h in 0..2 {
                    for seen in [CHUNK, context] {
                        assert_eq!(attend(&shared, (l, h), seen, 1.0), [0.0; 5], "zero at first");
                    }
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
                // A code times its scale is rounded.
                let tolerance = if ty == KvType::Q8_0 { 1e-6 } else { 0.0 };
                for (found, expected) in attend(&shared, (l, h), p + 1, 1.0).iter().zip(expected) {
                    assert!((found - expected).abs() <= tolerance * expected, "{ty:?} {l} {h} {p}");
                }
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
    fn codes_lie_where_elements_do() {
        let ops = VectorOps::best(Isa::Scalar);
        let config = Config { head_dim: 40, ..config() };
        let mut cache = KvCache::new(&config, 300, KvType::Q8_0).unwrap();
        let shared = cache.share();
        let key: Vec<f32> = (0..40).map(|i| (i - 20) as f32).collect();
        let value: Vec<f32> = key.iter().map(|k| -3.0 * k).collect();
        // SAFETY: one thread.
        let chunk = unsafe {
            shared.store(&ops, (1, 0, 256 + 18), &key, &value);
            shared.chunk((1, 0), 1, 19)
        };
        let KvChunk::Q8 { keys, key_scales, values, value_scales } = chunk else {
            panic!("{chunk:?}")
        };
        let of = |x: &[f32]| {
            let mut codes = vec![0; 40];
            let scale = crate::numerics::to_kv::<i8>(x, &mut codes);
            (codes, scale)
        };
        let ((of_key, key_scale), (of_value, value_scale)) = (of(&key), of(&value));
        for (code, slot) in of_key.iter().zip(key_slots(40)) {
            assert_eq!(keys[16 * 48 + slot + 2], *code);
        }
        assert_eq!(values[18 * 48..][..40], of_value);
        for (scales, scale) in [(key_scales, key_scale), (value_scales, value_scale)] {
            assert_eq!((scales.len(), scales[18]), (32, scale));
            assert_eq!(scales.iter().filter(|&&s| s != 0.0).count(), 1);
        }
    }

    /// The first positions are the same to the byte, in caches whose last chunk is a short one.
    #[test]
    fn a_prefix_is_copied_whole() {
        let ops = VectorOps::best(Isa::Scalar);
        let config = Config { head_dim: 20, ..config() };
        let heads = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let context = 2 * CHUNK + 40;
        let filled = |ty, number: f32| {
            let mut cache = KvCache::new(&config, context, ty).unwrap();
            let shared = cache.share();
            for (place, p) in
                heads.into_iter().zip(1..).flat_map(|at| (0..context).map(move |p| (at, p)))
            {
                let ((layer, head), which) = place;
                let key: Vec<f32> =
                    (0..20).map(|i| number * (which * (p + 1)) as f32 + i as f32).collect();
                let value: Vec<f32> = key.iter().map(|k| 0.5 - k).collect();
                // SAFETY: one thread.
                unsafe { shared.store(&ops, (layer, head, p), &key, &value) };
            }
            cache
        };
        // The elements of one position of a head: its key, its value, and their scales.
        let position = |cache: &mut KvCache, head, p: usize| -> Vec<f64> {
            let (chunk, p) = (p / CHUNK, p % CHUNK);
            let slots = || key_slots(20).map(|slot| slot + p % KEY_BLOCK);
            fn pick<T: Copy + Into<f64>>(
                (keys, values): (&[T], &[T]),
                slots: impl Iterator<Item = usize>,
                p: usize,
            ) -> Vec<f64> {
                let row = row_elements(20);
                let block = p / KEY_BLOCK * KEY_BLOCK * row;
                let keys = slots.map(|slot| keys[block + slot]);
                keys.chain(values[p * row..][..20].iter().copied()).map(Into::into).collect()
            }
            let shared = cache.share();
            // SAFETY: one thread.
            match unsafe { shared.chunk(head, chunk, p + 1) } {
                KvChunk::F16 { keys, values } => pick((keys, values), slots(), p),
                KvChunk::F32 { keys, values } => pick((keys, values), slots(), p),
                KvChunk::Q8 { keys, key_scales, values, value_scales } => {
                    let mut all = pick((keys, values), slots(), p);
                    all.extend([f64::from(key_scales[p]), f64::from(value_scales[p])]);
                    all
                }
            }
        };
        for ty in KvType::ALL {
            let mut source = filled(ty, 1.0);
            for n in [0, 1, 15, 16, 17, 255, 256, 257, 511, 512, 513, context - 1, context] {
                let mut target = filled(ty, -3.0);
                target.copy_prefix(&source, n);
                for head in heads {
                    for p in 0..context {
                        let same = position(&mut target, head, p) == position(&mut source, head, p);
                        // The rest of the last block of keys is copied, too, but not its values.
                        assert!(same == (p < n), "{ty:?}: {p} of {n}, {head:?}");
                    }
                }
            }
        }
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
