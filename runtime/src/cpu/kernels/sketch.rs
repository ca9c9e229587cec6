//! Kernels that scan a sketch, a low-bit copy of the lm_head.

use std::ops::Range;

use bitnet_profiles::{Isa, KernelId, Op, SketchFormat};

use super::HeadKernel;
use crate::numerics;
use bitnet_kernels::{self as builtin, abi};

/// A sketch kernel that this CPU can run.
#[derive(Clone, Copy)]
pub struct SketchKernel {
    id: KernelId,
    format: SketchFormat,
    entry: &'static abi::SketchEntry,
}

impl std::fmt::Debug for SketchKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SketchKernel({})", self.id)
    }
}

/// Activations of the tokens of a scan, padded with zeros to whole blocks and to the number of
/// tokens that a kernel takes.
#[derive(Clone, Debug, Default)]
pub struct SketchInput {
    cols: usize,
    tokens: usize,
    /// `[block][quad][token][4]`
    activations: Vec<i8>,
    /// The sum of each block times the codes' offset, `[block][token]`.
    offsets: Vec<i32>,
    /// Scales of the blocks, `[block][token]`, relative to those of the tokens.
    factors: Vec<f32>,
    scales: Vec<f32>,
    /// Scratch for the factors of one token.
    relative: Vec<f32>,
}

impl SketchInput {
    /// Sets the input for `kernel`: the result of
    /// [`numerics::quantise_blocks`](crate::numerics::quantise_blocks) for each of some tokens,
    /// `cols` activations padded with zeros to whole blocks and as many scales.
    ///
    /// # Panics
    /// When there are more tokens than the kernel takes, or more or fewer blocks.
    pub fn set<'a>(
        &mut self,
        kernel: &SketchKernel,
        cols: usize,
        rows: impl Iterator<Item = (&'a [i8], &'a [f32])>,
    ) {
        const QUADS: usize = SketchFormat::BLOCK_COLS / 4;
        let (tokens, blocks) = (kernel.tokens(), cols.div_ceil(SketchFormat::BLOCK_COLS));
        (self.cols, self.tokens) = (cols, tokens);
        self.activations.clear();
        self.activations.resize(blocks * SketchFormat::BLOCK_COLS * tokens, 0);
        self.offsets.clear();
        self.offsets.resize(blocks * tokens, 0);
        self.factors.clear();
        self.factors.resize(blocks * tokens, 0.0);
        self.scales.clear();
        self.scales.resize(tokens, 0.0);
        self.relative.resize(blocks, 0.0);
        let offset = 1 - (1 << kernel.format().bits());
        for (token, (q, d)) in rows.enumerate() {
            assert!(token < tokens, "{}: too many tokens", kernel.id());
            assert!(q.len() == blocks * SketchFormat::BLOCK_COLS, "{} activations", q.len());
            self.scales[token] = numerics::relative_scales(d, &mut self.relative);
            let (quads, _) = q.as_chunks::<4>();
            let (out, _) = self.activations.as_chunks_mut::<4>();
            for (quad, out) in quads.iter().zip(out.iter_mut().skip(token).step_by(tokens)) {
                *out = *quad;
            }
            for (block, (quads, &factor)) in quads.chunks(QUADS).zip(&self.relative).enumerate() {
                let sum = quads.iter().flatten().map(|&q| i32::from(q)).sum::<i32>();
                self.offsets[block * tokens + token] = offset * sum;
                self.factors[block * tokens + token] = factor;
            }
        }
    }
}

impl SketchKernel {
    /// Wraps a table entry, unless the CPU lacks the ISA or the entry is no such kernel.
    fn new(entry: &'static abi::SketchEntry) -> Option<Self> {
        let id: KernelId = entry.id.text()?.parse().ok()?;
        match id.op {
            Op::Sketch(format) if id.isa.is_supported() => Some(Self { id, format, entry }),
            _ => None,
        }
    }

    /// Returns the built-in kernels that this CPU can run, in the order of the generator's table.
    pub fn builtin() -> impl Iterator<Item = Self> {
        builtin::SKETCHES.iter().filter_map(Self::new)
    }

    /// Returns the defaults for a format, by the number of tokens they take: of the best ISA up to
    /// `ceiling`, those that prefetch about as far ahead as the kernel of the head, which was
    /// chosen for this CPU. (From memory, prefetching 8192 bytes ahead is faster than 4096, and
    /// that faster than none.)
    pub fn defaults(format: SketchFormat, ceiling: Isa, head: &HeadKernel) -> Vec<Self> {
        let prefetch = head.id().tile.prefetch;
        let mut kernels: Vec<Self> = Self::builtin()
            .filter(|kernel| kernel.format == format && kernel.id.isa <= ceiling)
            .collect();
        let best = kernels.iter().map(|kernel| kernel.id.isa).max();
        kernels.retain(|kernel| Some(kernel.id.isa) == best);
        kernels.sort_by_key(|kernel| (kernel.tokens(), kernel.id.tile.prefetch.abs_diff(prefetch)));
        kernels.dedup_by_key(|kernel| kernel.tokens());
        kernels
    }

    /// The kernel's id.
    pub fn id(&self) -> &KernelId {
        &self.id
    }

    /// Format of the sketch it scans.
    pub fn format(&self) -> SketchFormat {
        self.format
    }

    /// Number of tokens it takes at once.
    pub fn tokens(&self) -> usize {
        self.id.tile.tokens
    }

    /// Computes the estimates of the rows of some tiles, `out`, `[token][tiles][16]`: see
    /// [`numerics::dot_sketch_row`](crate::numerics::dot_sketch_row). `data` are the tiles of a
    /// sketch, `scales` those of its rows, `[tiles][16]`.
    ///
    /// # Panics
    /// When a size does not fit.
    pub fn run(
        &self,
        data: &[u8],
        scales: &[f32],
        tiles: Range<usize>,
        input: &SketchInput,
        out: &mut [f32],
    ) {
        const ROWS: usize = SketchFormat::TILE_ROWS;
        let cols = input.cols;
        assert!(self.id.shape.is_none_or(|shape| shape.cols == cols), "{}: {cols}", self.id);
        assert_eq!(input.tokens, self.tokens(), "{}", self.id);
        assert!(tiles.start <= tiles.end && tiles.end <= scales.len() / ROWS);
        let bytes = self.format.tile_bytes(cols);
        let scales = &scales[tiles.start * ROWS..tiles.end * ROWS];
        assert_eq!(out.len(), self.tokens() * scales.len());
        let call = abi::SketchCall {
            tiles: data[tiles.start * bytes..tiles.end * bytes].as_ptr(),
            scales: scales.as_ptr(),
            count: tiles.len(),
            cols,
            activations: input.activations.as_ptr(),
            offsets: input.offsets.as_ptr(),
            factors: input.factors.as_ptr(),
            scale: input.scales.as_ptr(),
            out: out.as_mut_ptr(),
            stride: scales.len(),
        };
        // SAFETY: `new` checked the CPU, the lines above and `SketchInput::set` the sizes; what stands
        // in the sketch and the input decides numbers only, never addresses.
        unsafe { (self.entry.run)(&call) }
    }
}
