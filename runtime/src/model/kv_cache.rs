//! Keys and values of the positions seen so far, as f16.

use half::f16;
use memmap2::MmapMut;

use super::config::Config;
use crate::error::{Error, Result};
use crate::threads::SharedSlice;

/// The KV cache of one sequence: keys and values `[layer][kv_head][position][head_dim]`, so that
/// one head's history is one sequential stream.
///
/// The memory is reserved for the whole context but zero pages come from the system only as they
/// are first written, so a short text in a long context takes little.
#[derive(Debug)]
pub struct KvCache {
    /// Values follow keys.
    map: MmapMut,
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

    /// First element of a position in the keys.
    fn start(self, layer: usize, kv_head: usize, position: usize) -> usize {
        ((layer * self.kv_heads + kv_head) * self.context + position) * self.head_dim
    }
}

impl KvCache {
    /// Reserves a cache for `context` positions.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new(config: &Config, context: usize) -> Result<Self> {
        let layout = Layout {
            layers: config.layers,
            kv_heads: config.kv_heads,
            context,
            head_dim: config.head_dim,
        };
        let bytes = layout.elements().and_then(|n| n.checked_mul(2 * size_of::<f16>()));
        let refused = |why: String| {
            let bytes = bytes.map_or("too many".into(), |b| b.to_string());
            Error::Runtime(format!(
                "cannot reserve {bytes} bytes of KV cache for a context of {context}: {why}; ask for a smaller context (-c)"
            ))
        };
        let len = bytes.ok_or_else(|| refused("beyond the address space".into()))?;
        let map = MmapMut::map_anon(len).map_err(|e| refused(e.to_string()))?;
        Ok(Self { map, layout })
    }

    /// Positions the cache can hold.
    #[must_use]
    pub fn context(&self) -> usize {
        self.layout.context
    }

    /// Bytes that `positions` positions take.
    #[must_use]
    pub fn bytes(&self, positions: usize) -> usize {
        let Layout { layers, kv_heads, head_dim, .. } = self.layout;
        2 * size_of::<f16>() * layers * kv_heads * head_dim * positions
    }

    /// A view that the workers of a run write and read.
    pub(super) fn share(&mut self) -> SharedKv<'_> {
        let len = self.map.len() / size_of::<f16>();
        // SAFETY: the mapping is page-aligned, `len * 2` bytes long and exclusively borrowed for
        // the lifetime of the slice; every bit pattern is an f16.
        let all = unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), len) };
        let (keys, values) = all.split_at_mut(len / 2);
        SharedKv {
            keys: SharedSlice::new(keys),
            values: SharedSlice::new(values),
            layout: self.layout,
        }
    }
}

/// A [`KvCache`] during a run.
pub(super) struct SharedKv<'a> {
    keys: SharedSlice<'a, f16>,
    values: SharedSlice<'a, f16>,
    layout: Layout,
}

impl SharedKv<'_> {
    /// The key and the value of one position, to be written.
    ///
    /// # Safety
    /// In this phase no other worker touches this layer's `kv_head` at `position`.
    #[allow(
        clippy::mut_from_ref,
        reason = "as SharedSlice::write, which hands out disjoint parts"
    )]
    pub(super) unsafe fn write(
        &self,
        layer: usize,
        kv_head: usize,
        position: usize,
    ) -> (&mut [f16], &mut [f16]) {
        assert!(position < self.layout.context);
        let start = self.layout.start(layer, kv_head, position);
        let range = start..start + self.layout.head_dim;
        // SAFETY: passed on to the caller.
        unsafe { (self.keys.write(range.clone()), self.values.write(range)) }
    }

    /// Keys and values of a range of positions, `[positions][head_dim]`.
    ///
    /// # Safety
    /// In this phase no worker writes any of them.
    pub(super) unsafe fn read(
        &self,
        layer: usize,
        kv_head: usize,
        positions: std::ops::Range<usize>,
    ) -> (&[f16], &[f16]) {
        assert!(positions.end <= self.layout.context);
        let range = self.layout.start(layer, kv_head, positions.start)
            ..self.layout.start(layer, kv_head, positions.end);
        // SAFETY: passed on to the caller.
        unsafe { (self.keys.read(range.clone()), self.values.read(range)) }
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

    #[test]
    fn every_place_is_its_own() {
        let mut cache = KvCache::new(&config(), 3).unwrap();
        assert_eq!(cache.bytes(1), 2 * 2 * 2 * 2 * 4);
        let shared = cache.share();
        let number = |l: usize, h: usize, p: usize| (1 + l * 6 + h * 3 + p) as f32;
        for (l, h, p) in (0..12).map(|i| (i / 6, i / 3 % 2, i % 3)) {
            // SAFETY: one thread, one borrow at a time.
            let (k, v) = unsafe { shared.write(l, h, p) };
            assert!(k.iter().chain(v.iter()).all(|x| x.to_f32() == 0.0), "not zero at first");
            k.fill(f16::from_f32(number(l, h, p)));
            v.fill(f16::from_f32(-number(l, h, p)));
        }
        for (l, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            // SAFETY: nobody writes.
            let (k, v) = unsafe { shared.read(l, h, 0..3) };
            for p in 0..3 {
                assert!(k[4 * p..][..4].iter().all(|x| x.to_f32() == number(l, h, p)));
                assert!(v[4 * p..][..4].iter().all(|x| x.to_f32() == -number(l, h, p)));
            }
        }
    }

    #[test]
    fn a_context_beyond_memory_is_an_error() {
        for context in [usize::MAX, usize::MAX / 64, 1 << 52] {
            let error = KvCache::new(&config(), context).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(&context.to_string()), "{error}");
        }
    }
}
