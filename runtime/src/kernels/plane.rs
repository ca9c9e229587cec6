//! The kernels that scan a plane, a low-bit copy of the lm_head.

use std::ops::Range;

use bitnet_profiles::{Isa, KernelId, Op, PlaneFormat};

use super::HeadKernel;
use super::builtin::{self, abi};

/// A kernel that scans planes, and that this CPU can run.
#[derive(Clone, Copy)]
pub struct PlaneKernel {
    id: KernelId,
    format: PlaneFormat,
    entry: &'static abi::PlaneEntry,
}

impl std::fmt::Debug for PlaneKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlaneKernel({})", self.id)
    }
}

/// The activations of a scan: integers of 16 bits, padded with zeros to whole blocks.
#[derive(Clone, Debug, Default)]
pub struct PlaneInput {
    cols: usize,
    high: Vec<i8>,
    low: Vec<i8>,
    /// For every block its sum, times what the codes are offset by.
    offsets: Vec<i32>,
    scale: f32,
}

impl PlaneInput {
    /// Room for `cols` activations.
    pub fn new(cols: usize) -> Self {
        let blocks = cols.div_ceil(PlaneFormat::BLOCK_COLS);
        let bytes = vec![0; blocks * PlaneFormat::BLOCK_COLS];
        Self { cols, high: bytes.clone(), low: bytes, offsets: vec![0; blocks], scale: 0.0 }
    }

    /// Takes what [`numerics::quantise_wide`](crate::model::numerics::quantise_wide) gave, for a
    /// plane of `format`.
    ///
    /// # Panics
    /// When there are more integers than room, or they are larger than that gives.
    pub fn set(&mut self, format: PlaneFormat, q: &[i32], scale: f32) {
        assert!(q.len() <= self.high.len());
        for ((high, low), &q) in self.high.iter_mut().zip(&mut self.low).zip(q) {
            let upper = (q + 128) >> 8;
            // The quantised are at most 127 * 256, so both parts are bytes.
            (*high, *low) = (upper as i8, (q - 256 * upper) as i8);
        }
        for (offset, q) in self.offsets.iter_mut().zip(q.chunks(PlaneFormat::BLOCK_COLS)) {
            *offset = ((1 << format.bits()) - 1) * q.iter().sum::<i32>();
        }
        self.scale = scale;
    }
}

impl PlaneKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no such kernel.
    fn new(entry: &'static abi::PlaneEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        match id.op {
            Op::Plane(format) if id.isa.is_supported() => Some(Self { id, format, entry }),
            _ => None,
        }
    }

    /// The built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::PLANES.iter().filter_map(Self::new)
    }

    /// The default for a format: of the best ISA up to `ceiling`, the one that prefetches about as
    /// far ahead as the kernel of the head, which was chosen for this CPU. From memory one core of
    /// Zen 5 reads 44 GB/s of planes with 8192 bytes, 40 with 4096 and 37 with none.
    pub fn default(format: PlaneFormat, ceiling: Isa, head: &HeadKernel) -> Option<Self> {
        let prefetch = head.id().tile.prefetch;
        Self::builtin()
            .filter(|kernel| kernel.format == format && kernel.id.isa <= ceiling)
            .max_by_key(|kernel| {
                (kernel.id.isa, std::cmp::Reverse(kernel.id.tile.prefetch.abs_diff(prefetch)))
            })
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// The planes it scans.
    pub fn format(&self) -> PlaneFormat {
        self.format
    }

    /// The estimates of the rows of some tiles, `out`: see
    /// [`numerics::dot_plane_row`](crate::model::numerics::dot_plane_row). `data` are the tiles of a
    /// plane, `scales` those of its rows, `[tiles][16]`.
    ///
    /// # Panics
    /// When a size does not fit.
    pub fn run(
        &self,
        data: &[u8],
        scales: &[f32],
        tiles: Range<usize>,
        input: &PlaneInput,
        out: &mut [f32],
    ) {
        const ROWS: usize = PlaneFormat::TILE_ROWS;
        let cols = input.cols;
        assert!(self.id.shape.is_none_or(|shape| shape.cols == cols), "{}: {cols}", self.id);
        let bytes = self.format.tile_bytes(cols);
        let scales = &scales[tiles.start * ROWS..tiles.end * ROWS];
        assert_eq!(out.len(), scales.len());
        let call = abi::PlaneCall {
            tiles: data[tiles.start * bytes..tiles.end * bytes].as_ptr(),
            scales: scales.as_ptr(),
            count: tiles.len(),
            cols,
            high: input.high.as_ptr(),
            low: input.low.as_ptr(),
            offsets: input.offsets.as_ptr(),
            scale: input.scale,
            out: out.as_mut_ptr(),
        };
        // SAFETY: `new` checked the CPU, the lines above the sizes; what stands in the plane and
        // the input decides numbers only, never addresses.
        unsafe { (self.entry.run)(&call) }
    }
}
