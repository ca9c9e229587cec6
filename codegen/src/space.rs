//! The candidate tilings: a table. One row is a family of kernels, their tests, their benches and
//! their dispatch entries.

use bitnet_profiles::BlockLayout::{B64T16, B64T32, B128T16, B128T32, B256T16, B256T32};
use bitnet_profiles::GatherLayout::{I2sL64, T5L64};
use bitnet_profiles::Isa::{
    Avx2, Avx512, Avx512Vbmi, Avx512Vnni, AvxVnni, Neon, NeonDot, NeonI8mm, Scalar,
};
use bitnet_profiles::Layout::{I2sT16, I2sT32, I2sT64, T5T32, Tl1T32, Tl2T32, Tl2W32};
use bitnet_profiles::Op::{self, Attention, Blocks, Columns, Head, Rows, Sketch, Ternary};
use bitnet_profiles::{HeadFormat, Isa, KernelId, KernelSpec, Shape, SketchFormat, TileConfig};

/// Purpose of a kernel: one token at a time, or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// One activation row.
    Decode,
    /// Several activation rows.
    Prefill,
}

impl Phase {
    /// The phase that a tile serves.
    pub const fn of(tile: &TileConfig) -> Self {
        if tile.tokens == 1 { Self::Decode } else { Self::Prefill }
    }
}

/// The product of its columns; what [`KernelSpec::validate`] refuses (too many registers, sums
/// that would wrap) is left out.
struct Row {
    ops: &'static [Op],
    isas: &'static [Isa],
    rows: &'static [usize],
    cols: &'static [usize],
    tokens: &'static [usize],
    unroll: &'static [usize],
    prefetch: &'static [usize],
}

const FLOAT_HEADS: &[Op] = &[Head(HeadFormat::F32), Head(HeadFormat::F16), Head(HeadFormat::Bf16)];
const BLOCK_HEADS: &[Op] = &[Head(HeadFormat::Q8_0), Head(HeadFormat::Q6K), Head(HeadFormat::Q4_0)];
/// Rare types, in fewer tilings.
const RARE_HEADS: &[Op] = &[
    Head(HeadFormat::Q4_1),
    Head(HeadFormat::Q5_0),
    Head(HeadFormat::Q5_1),
    Head(HeadFormat::Q3K),
    Head(HeadFormat::Q4K),
    Head(HeadFormat::Q5K),
    Head(HeadFormat::Tq2_0),
    Head(HeadFormat::T2),
];
const TERNARY_HEADS: &[Op] = &[Head(HeadFormat::I2S)];
/// Matrices with block scales, in tiles of 16 and of 32 rows.
const BLOCKS_T16: &[Op] = &[Blocks(B64T16), Blocks(B128T16), Blocks(B256T16)];
const BLOCKS_T32: &[Op] = &[Blocks(B64T32), Blocks(B128T32), Blocks(B256T32)];
const SKETCHES: &[Op] = &[Sketch(SketchFormat::P4), Sketch(SketchFormat::P5)];

/// The kernels that every build holds.
#[rustfmt::skip]
const GRID: &[Row] = &[
    Row { ops: &[Ternary(I2sT16)], isas: &[Scalar],                           rows: &[16],       cols: &[0],                   tokens: &[1, 4],            unroll: &[1],        prefetch: &[0] },
    // On AVX2, measured on Zen 5 at a 2B-4T shape: two tiles of 16 rows at once are two streams, as fast from the
    // cache, 1.8 to 2.9 times as slow from memory. A tile of 32 rows ties in decode, and 2 tokens, all that 16
    // registers hold, take 3.2 times as long. Tiles of 8 rows with 4 to 10 tokens took 1.0 to 1.2 times as long as 16
    // with 4 or 5, here and on AVX-VNNI. Blocks of 64 and 128 columns tie or lose, and of more than 256 could wrap.
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2],                             rows: &[16],       cols: &[64, 128, 256],        tokens: &[1],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512],                           rows: &[16, 32],   cols: &[64, 128, 256],        tokens: &[1],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2, Avx512],                     rows: &[16],       cols: &[256],                 tokens: &[1],               unroll: &[2],        prefetch: &[2048, 4096, 8192] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512],                           rows: &[32],       cols: &[256],                 tokens: &[1],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2],                             rows: &[16],       cols: &[64, 128, 256],        tokens: &[2, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2],                             rows: &[16],       cols: &[256],                 tokens: &[3],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2],                             rows: &[16],       cols: &[256],                 tokens: &[4],               unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512],                           rows: &[16, 32],   cols: &[128, 256],            tokens: &[4, 8, 12],        unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512],                           rows: &[16, 32],   cols: &[256],                 tokens: &[2, 3, 5, 6, 7],   unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512],                           rows: &[32],       cols: &[256],                 tokens: &[8],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[AvxVnni],                          rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 1024, 2048, 4096, 8192] },
    Row { ops: &[Ternary(I2sT16)], isas: &[AvxVnni],                          rows: &[16],       cols: &[0],                   tokens: &[2, 3, 4, 5],      unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[AvxVnni],                          rows: &[16],       cols: &[0],                   tokens: &[2],               unroll: &[2],        prefetch: &[0] },
    // Two tiles at once are two streams: 1.2 to 2 times as slow from memory as one tile, or one of more rows.
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1, 2, 4],  prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[2],        prefetch: &[4096] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1, 2],     prefetch: &[0, 1024, 2048, 4096, 8192] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 4096, 8192] },
    // The compiler unrolls up to 64 products: two units of 16 tokens stay a loop of one. 24 tokens of 16 rows,
    // 1.1 to 1.19, and 6 of 64, 1.08 to 1.11, lose to 8 of 32.
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[16],       cols: &[0],                   tokens: &[8],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[4, 8, 12],        unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[4, 8, 12],        unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[2, 3, 5, 6, 7],   unroll: &[1],        prefetch: &[0, 4096] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[2, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[4],               unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Neon],                             rows: &[16],     cols: &[64, 128, 256],      tokens: &[1, 2],     unroll: &[1],       prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Neon],                             rows: &[16],     cols: &[256],               tokens: &[1],        unroll: &[1],       prefetch: &[512, 2048] },
    Row { ops: &[Ternary(I2sT16)], isas: &[NeonDot],                          rows: &[16],     cols: &[0],                 tokens: &[1],        unroll: &[1],       prefetch: &[0, 512, 1024, 2048, 4096] },
    Row { ops: &[Ternary(I2sT16)], isas: &[NeonDot],                          rows: &[16],     cols: &[0],                 tokens: &[2, 3, 4],  unroll: &[1],       prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[NeonI8mm],                         rows: &[16],     cols: &[0],                 tokens: &[2, 4, 6],  unroll: &[2],       prefetch: &[0] },
    // 64 rows need more than 32 registers: 1.1 to 1.5 times as slow. Two units, which take turns with registers, are 1.03
    // times as fast from the L2 cache of Zen 5 (62 GB/s of weights a core) and tie from memory. There, prefetches past the
    // caches tie as well, and those into L2 only are 0.9 to 0.97 times as fast.
    Row { ops: &[Ternary(T5T32)],  isas: &[Scalar],                           rows: &[32],       cols: &[0],                   tokens: &[1, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 4096, 8192, 12288] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[2, 3, 5, 6, 7],   unroll: &[1],        prefetch: &[0, 4096] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Scalar],                           rows: &[32],       cols: &[240],                 tokens: &[6],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[96],       cols: &[240],                 tokens: &[6],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[128],      cols: &[240],                 tokens: &[5],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Scalar],                           rows: &[32],       cols: &[240],                 tokens: &[1, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx2, Avx512],                     rows: &[32, 64],   cols: &[120, 240],            tokens: &[1],               unroll: &[1, 2, 4],  prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx2, Avx512],                     rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[4],        prefetch: &[4096] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx2],                             rows: &[32, 64],   cols: &[120, 240],            tokens: &[2, 3, 4],         unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx512],                           rows: &[32, 64],   cols: &[240],                 tokens: &[2, 4],            unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx512],                           rows: &[32, 64],   cols: &[240],                 tokens: &[8],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Neon],                             rows: &[32],     cols: &[120, 240],          tokens: &[1],        unroll: &[1, 2],    prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Neon],                             rows: &[64],     cols: &[120, 240],          tokens: &[1],        unroll: &[1],       prefetch: &[0] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Neon],                             rows: &[32],     cols: &[240],               tokens: &[1],        unroll: &[2],       prefetch: &[512, 2048] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Neon],                             rows: &[32],     cols: &[120, 240],          tokens: &[2, 3],     unroll: &[1],       prefetch: &[0] },
    Row { ops: &[Ternary(Tl2T32)], isas: &[Scalar],                           rows: &[32],       cols: &[240],                 tokens: &[1, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2T32)], isas: &[Avx2],                             rows: &[32, 64],   cols: &[72, 120, 168, 240],   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2T32)], isas: &[Avx2],                             rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(Tl2T32)], isas: &[Avx2],                             rows: &[32, 64],   cols: &[120, 240],            tokens: &[2, 3, 4],         unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Scalar],                           rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512],                           rows: &[32, 64],   cols: &[96, 240],             tokens: &[1],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512Vbmi],                       rows: &[32, 64],   cols: &[240],                 tokens: &[1],               unroll: &[1, 2],     prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512, Avx512Vbmi],               rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[1],        prefetch: &[4096] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512],                           rows: &[32, 64],   cols: &[96, 240],             tokens: &[2, 4, 8],         unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512Vbmi],                       rows: &[32, 64],   cols: &[240],                 tokens: &[4, 8],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Neon],                             rows: &[32, 64], cols: &[96, 240],           tokens: &[1],        unroll: &[1],       prefetch: &[0] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Neon],                             rows: &[32],     cols: &[240],               tokens: &[1],        unroll: &[1],       prefetch: &[512, 2048] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Neon],                             rows: &[32],     cols: &[96, 240],           tokens: &[2],        unroll: &[1],       prefetch: &[0] },
    Row { ops: FLOAT_HEADS,        isas: &[Scalar, Avx2, Avx512],             rows: &[1, 4],     cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx512],                           rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[2048, 4096, 8192] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx2, Avx512],                     rows: &[2, 8],     cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: FLOAT_HEADS,        isas: &[Neon],                             rows: &[1, 2, 4], cols: &[0],                tokens: &[1],        unroll: &[1],       prefetch: &[0] },
    Row { ops: FLOAT_HEADS,        isas: &[Neon],                             rows: &[1],      cols: &[0],                 tokens: &[1],        unroll: &[1],       prefetch: &[512, 2048] },
    Row { ops: BLOCK_HEADS,        isas: &[Scalar, Avx2, Avx512, Avx512Vnni], rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: BLOCK_HEADS,        isas: &[Avx2, Avx512],                     rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[4096] },
    Row { ops: BLOCK_HEADS,        isas: &[AvxVnni],                          rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 1024, 2048, 4096, 8192] },
    Row { ops: BLOCK_HEADS,        isas: &[Avx512Vnni],                       rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 4096, 8192] },
    Row { ops: BLOCK_HEADS,        isas: &[Neon, NeonDot],                    rows: &[1],      cols: &[0],                 tokens: &[1],        unroll: &[1],       prefetch: &[0, 512, 2048] },
    // Several tokens at once, at 2B-4T's head on a core of Zen 5. Four rows of f16 share the loads of 4 tokens, which
    // fill the L1 cache, and are four streams: 38 ms, with those of the next step prefetched 22, where four times one
    // token takes 67. For 8 tokens two rows take 39, four have too few registers. Q6_K: 8.4 and 14 ms, without prefetch
    // 9.5 and 20; one token takes 6.4. On two cores of Zen 4 8 tokens take 22.5 with AVX-512 alone, without prefetch 29,
    // and 25.5 and 29.4 with AVX2. With VNNI 12 and 16 tokens, whose activations exceed the L1 cache, took 2.3 for each,
    // where 8 take 1.7; 6 run out of registers.
    Row { ops: FLOAT_HEADS,        isas: &[Scalar, Avx2, Neon],               rows: &[1],        cols: &[0],                   tokens: &[4],               unroll: &[1],        prefetch: &[0] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx512],                           rows: &[4],        cols: &[0],                   tokens: &[4],               unroll: &[1],        prefetch: &[16384] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx512],                           rows: &[2],        cols: &[0],                   tokens: &[8],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: BLOCK_HEADS,        isas: &[Scalar],                           rows: &[1],        cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[0] },
    Row { ops: BLOCK_HEADS,        isas: &[Avx2, AvxVnni, Avx512],            rows: &[1],        cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[4096] },
    Row { ops: BLOCK_HEADS,        isas: &[Avx512Vnni],                       rows: &[1],        cols: &[0],                   tokens: &[4, 8],            unroll: &[1],        prefetch: &[4096] },
    Row { ops: BLOCK_HEADS,        isas: &[Neon, NeonDot],                    rows: &[1],      cols: &[0],                 tokens: &[4, 8],     unroll: &[1],       prefetch: &[0] },
    Row { ops: RARE_HEADS,         isas: &[Scalar, Avx2, Avx512, Neon, NeonDot], rows: &[1],     cols: &[0],                   tokens: &[1, 4],            unroll: &[1],        prefetch: &[0] },
    Row { ops: RARE_HEADS,         isas: &[AvxVnni, Avx512Vnni],              rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 8192] },
    Row { ops: RARE_HEADS,         isas: &[AvxVnni, Avx512Vnni],              rows: &[1],        cols: &[0],                   tokens: &[4],               unroll: &[1],        prefetch: &[0] },
    Row { ops: TERNARY_HEADS,      isas: &[Scalar, Avx2, AvxVnni, Avx512, Avx512Vnni, Neon, NeonDot], rows: &[4], cols: &[0],  tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: TERNARY_HEADS,      isas: &[AvxVnni, Avx512Vnni],              rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: TERNARY_HEADS,      isas: &[Scalar, Avx2, AvxVnni, Avx512, Avx512Vnni, Neon, NeonDot], rows: &[1], cols: &[0],  tokens: &[4],               unroll: &[1],        prefetch: &[0] },
    // Of the kernels for a few tokens the first of a tier and a number of tokens serves.
    Row { ops: BLOCKS_T16,         isas: &[Scalar],                           rows: &[16],       cols: &[0],                   tokens: &[1, 4, 8],         unroll: &[1],        prefetch: &[0] },
    Row { ops: BLOCKS_T16,         isas: &[Avx2, AvxVnni],                    rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[4096, 0, 8192] },
    Row { ops: BLOCKS_T16,         isas: &[Avx2, AvxVnni],                    rows: &[16],       cols: &[0],                   tokens: &[2, 4, 16, 20, 24, 32], unroll: &[1],   prefetch: &[0] },
    // 48 rows in eight passes of 6 do 1.09 and 1.12 times the products a cycle of 32 in eight of 4 with blocks of 128 and
    // 256 columns, from the L2 cache on Zen 3; with blocks of 64 they tie.
    Row { ops: BLOCKS_T16,         isas: &[Avx2],                             rows: &[16],       cols: &[0],                   tokens: &[48],              unroll: &[1],        prefetch: &[0] },
    Row { ops: BLOCKS_T32,         isas: &[Avx512, Avx512Vnni],               rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[4096, 0, 8192] },
    Row { ops: BLOCKS_T32,         isas: &[Avx512, Avx512Vnni],               rows: &[32],       cols: &[0],                   tokens: &[3, 5, 6, 7],      unroll: &[1],        prefetch: &[0] },
    Row { ops: BLOCKS_T32,         isas: &[Avx512, Avx512Vnni],               rows: &[32],       cols: &[0],                   tokens: &[2, 4, 8, 16, 24, 32], unroll: &[1],    prefetch: &[0] },
    Row { ops: BLOCKS_T16,         isas: &[Neon, NeonDot],                    rows: &[16],       cols: &[0],                   tokens: &[1, 2, 4, 16],     unroll: &[1],        prefetch: &[0] },
    // For 8 tokens a load of activations serves one product, and loads are what takes time. Tiles of 32 rows, where it
    // would serve two, took 0.97 to 1.16 times as long from the cache: their sums do not stay in registers.
    Row { ops: SKETCHES,             isas: &[Scalar, Neon, NeonDot],            rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: SKETCHES,             isas: &[Avx2, AvxVnni, Avx512, Avx512Vnni], rows: &[16],      cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0, 4096, 8192] },
    Row { ops: SKETCHES,             isas: &[Scalar, Neon, NeonDot],            rows: &[16],       cols: &[0],                   tokens: &[2, 8],            unroll: &[1],        prefetch: &[0] },
    Row { ops: SKETCHES,             isas: &[Avx2, AvxVnni, Avx512],             rows: &[16],      cols: &[0],                   tokens: &[2, 8],            unroll: &[1],        prefetch: &[8192] },
    // From memory 24576 bytes ahead take 0.97 times as long as 8192 for 8 tokens on one core of Zen 5, and as long for 2;
    // 16384 take 1.04 and 1.02 times as long.
    Row { ops: SKETCHES,             isas: &[Avx512Vnni],                        rows: &[16],      cols: &[0],                   tokens: &[2],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: SKETCHES,             isas: &[Avx512Vnni],                        rows: &[16],      cols: &[0],                   tokens: &[8],               unroll: &[1],        prefetch: &[24576] },
    // Plain code has nothing to gain from several rows: its multiply-adds are calls. On AVX2 8 rows
    // would take all 16 registers for sums, on NEON all 32.
    // One token after 3500 of a 2B-4T shape, cache from memory, one core of Zen 5, took 2.0 times as long with 4 rows
    // and no prefetch as with 8192 bytes ahead, 1.5 with 2048 or 4096, 1.1 with 16384 or 32768; on AVX2 2.0 with none,
    // 1.3 with 4096, 1.03 with 16384. A prompt of 512 after as many took 1.01 times as long with prefetch.
    Row { ops: &[Attention],       isas: &[Scalar, Avx2],                     rows: &[1],        cols: &[256],                 tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Attention],       isas: &[Avx2],                             rows: &[2, 4],     cols: &[256],                 tokens: &[1],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: &[Attention],       isas: &[Avx512],                           rows: &[1, 2, 4, 8], cols: &[256],               tokens: &[1],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: &[Attention],       isas: &[Neon],                             rows: &[1, 2, 4],  cols: &[256],                 tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    // The first of a tier is the default. On one core of Zen 5, weights from memory, a rows kernel took 1.0 to 1.05
    // times as long with 8 lines ahead as with 16, 1.05 with 32, 1.2 with 64, 1.5 with none; prefetching to the L2
    // cache, or every second cache line, 1.1 to 1.5. A columns kernel of T5 took 2 to 5 times as long without.
    Row { ops: &[Rows(I2sL64), Rows(T5L64)], isas: &[Scalar],                 rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Rows(I2sL64)],    isas: &[Avx2, Avx512, Avx512Vnni],         rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16, 8, 0] },
    Row { ops: &[Rows(I2sL64)],    isas: &[Neon, NeonDot],                    rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[8, 16, 0] },
    Row { ops: &[Rows(I2sL64)],    isas: &[AvxVnni],                          rows: &[2],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16, 8, 0] },
    Row { ops: &[Rows(T5L64)],     isas: &[Avx512Vbmi],                       rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16, 8, 32, 0] },
    Row { ops: &[Rows(T5L64)],     isas: &[Avx512Vbmi],                       rows: &[2],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16] },
    Row { ops: &[Columns(I2sL64)], isas: &[Scalar],                           rows: &[64],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Columns(T5L64)],  isas: &[Scalar],                           rows: &[80],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Columns(I2sL64)], isas: &[Avx2, AvxVnni],                    rows: &[64],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[32, 16, 0] },
    Row { ops: &[Columns(I2sL64)], isas: &[Neon],                             rows: &[32],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[16, 0] },
    Row { ops: &[Columns(I2sL64)], isas: &[NeonDot],                          rows: &[64],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[16, 0] },
    Row { ops: &[Columns(I2sL64)], isas: &[Avx512, Avx512Vnni],               rows: &[256],      cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[32, 16, 0] },
    Row { ops: &[Columns(T5L64)],  isas: &[Avx512Vbmi],                       rows: &[320],      cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[32, 64, 0] },
    Row { ops: &[Columns(T5L64)],  isas: &[Avx512Vbmi],                       rows: &[320],      cols: &[16, 64],              tokens: &[1],               unroll: &[1],        prefetch: &[16, 64] },
];

/// Kernels that prefetch into the L2 cache. On one core of Zen 4 rows of 640 bytes in a file's I2_S come at 18.9 GB/s by
/// these and at 8.9 by prefetches into the L1 cache, which has buffers for few lines under way; from huge pages at 24.9
/// and 9.9, on two cores at 23.4 and 16.2. Streams of packed weights lose by any prefetch there, and rows on
/// Zen 5 by this one.
#[rustfmt::skip]
const INTO_L2: &[Row] = &[
    Row { ops: &[Attention],       isas: &[Avx2],                             rows: &[4],        cols: &[256],                 tokens: &[1],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: &[Attention],       isas: &[Avx512],                           rows: &[4, 8],     cols: &[256],                 tokens: &[1],               unroll: &[1],        prefetch: &[8192] },
    Row { ops: &[Rows(I2sL64)],    isas: &[Avx2, Avx512, Avx512Vnni],         rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16] },
    Row { ops: &[Rows(T5L64)],     isas: &[Avx512Vbmi],                       rows: &[4],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[16] },
    Row { ops: &[Columns(I2sL64)], isas: &[Avx2],                             rows: &[64],       cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[32] },
    Row { ops: &[Columns(I2sL64)], isas: &[Avx512, Avx512Vnni],               rows: &[256],      cols: &[32],                  tokens: &[1],               unroll: &[1],        prefetch: &[32] },
    Row { ops: &[Columns(T5L64)],  isas: &[Avx512Vbmi],                       rows: &[320],      cols: &[32, 64],              tokens: &[1],               unroll: &[1],        prefetch: &[64] },
];

/// Kernels beside these that are worth making for a model's own shapes, where there is a compiler.
#[rustfmt::skip]
const WIDER: &[Row] = &[
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2, Avx512],                     rows: &[16],       cols: &[256],                 tokens: &[1],               unroll: &[1, 4],     prefetch: &[1024, 2048, 8192, 16384] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2, Avx512],                     rows: &[16],       cols: &[256],                 tokens: &[1],               unroll: &[2],        prefetch: &[1024, 16384] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512],                           rows: &[32],       cols: &[256],                 tokens: &[1],               unroll: &[1, 2],     prefetch: &[2048, 4096, 8192, 16384] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx2],                             rows: &[16],       cols: &[256],                 tokens: &[4],               unroll: &[1],        prefetch: &[1024, 2048, 8192] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512],                           rows: &[32],       cols: &[256],                 tokens: &[4, 6],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[AvxVnni],                          rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[512, 3072, 6144, 16384] },
    Row { ops: &[Ternary(I2sT16)], isas: &[AvxVnni],                          rows: &[16],       cols: &[0],                   tokens: &[5],               unroll: &[1],        prefetch: &[1024, 4096] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[2, 4],     prefetch: &[512, 1024, 2048, 8192, 16384] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1, 2],     prefetch: &[512, 3072, 6144, 12288, 16384, 32768] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 6144, 12288, 16384, 32768] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[16],       cols: &[0],                   tokens: &[10, 14, 16, 20],  unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT16)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[6, 10],           unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[10],              unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT32)], isas: &[Avx512Vnni],                       rows: &[32],       cols: &[0],                   tokens: &[8],               unroll: &[1],        prefetch: &[1024, 2048, 8192] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[3, 5],            unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(I2sT64)], isas: &[Avx512Vnni],                       rows: &[64],       cols: &[0],                   tokens: &[4],               unroll: &[1],        prefetch: &[2048, 8192] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 6144, 16384, 24576, 32768] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[2],        prefetch: &[0, 4096, 8192, 12288] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[10],              unroll: &[1],        prefetch: &[0] },
    Row { ops: &[Ternary(T5T32)],  isas: &[Avx512Vbmi],                       rows: &[32],       cols: &[0],                   tokens: &[8],               unroll: &[1],        prefetch: &[2048, 8192] },
    Row { ops: &[Ternary(Tl1T32)], isas: &[Avx2, Avx512],                     rows: &[32, 64],   cols: &[240],                 tokens: &[1],               unroll: &[4],        prefetch: &[2048, 8192] },
    Row { ops: &[Ternary(Tl2T32)], isas: &[Avx2],                             rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[1],        prefetch: &[2048, 8192] },
    Row { ops: &[Ternary(Tl2W32)], isas: &[Avx512, Avx512Vbmi],               rows: &[32],       cols: &[240],                 tokens: &[1],               unroll: &[1],        prefetch: &[2048, 8192] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx2],                             rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 4096, 8192, 16384] },
    Row { ops: FLOAT_HEADS,        isas: &[Avx512],                           rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[512, 1024, 12288, 16384, 32768] },
    Row { ops: BLOCK_HEADS,        isas: &[Avx2, Avx512],                     rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 8192, 16384] },
    Row { ops: BLOCK_HEADS,        isas: &[AvxVnni, Avx512Vnni],              rows: &[1],        cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[512, 3072, 6144, 12288, 16384, 32768] },
    Row { ops: BLOCKS_T16,         isas: &[Avx2, AvxVnni],                    rows: &[16],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 16384] },
    Row { ops: BLOCKS_T32,         isas: &[Avx512, Avx512Vnni],               rows: &[32],       cols: &[0],                   tokens: &[1],               unroll: &[1],        prefetch: &[1024, 2048, 16384] },
];

/// Every kernel of the space for an ISA, in the order of the tables: those that any build holds,
/// or, for a shape, these specialised for it and the wider space.
pub fn candidates(isa: Isa, shape: Option<Shape>) -> Vec<KernelId> {
    let wider = if shape.is_some() { WIDER } else { &[] };
    let mut ids = Vec::new();
    let rows = GRID.iter().chain(wider).map(|row| (row, 1));
    let rows = rows.chain(INTO_L2.iter().map(|row| (row, 2)));
    for (row, level) in rows.filter(|(row, _)| row.isas.contains(&isa)) {
        let tiles = row.rows.iter().flat_map(|&rows| {
            row.cols.iter().flat_map(move |&cols| {
                row.tokens.iter().flat_map(move |&tokens| {
                    row.unroll.iter().flat_map(move |&unroll| {
                        row.prefetch.iter().map(move |&prefetch| TileConfig {
                            rows,
                            cols,
                            tokens,
                            unroll,
                            prefetch,
                            level,
                        })
                    })
                })
            })
        });
        for tile in tiles {
            // Scans of sketch are not tuned: no kernel of theirs is made for a model's columns.
            let tuned = |op: &&Op| shape.is_none() || !matches!(op, Sketch(_));
            for &op in row.ops.iter().filter(tuned) {
                ids.extend(KernelSpec { op, isa, shape, tile }.validate().ok());
            }
        }
    }
    ids
}

/// The grid that every build holds: all shape-generic kernels of the given ISAs.
pub fn grid(isas: &[Isa]) -> Vec<KernelId> {
    isas.iter().flat_map(|&isa| candidates(isa, None)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bitnet_profiles::{Format, registry};

    use super::*;

    #[test]
    fn no_kernel_twice_and_enough_tiles() {
        let all = grid(Isa::ALL);
        let shape = Some(Shape::new(6912, 2560));
        let made: Vec<KernelId> = Isa::ALL.iter().flat_map(|&isa| candidates(isa, shape)).collect();
        for all in [&all, &made] {
            let unique: BTreeSet<_> = all.iter().collect();
            assert_eq!(unique.len(), all.len());
        }
        assert!(made.len() > all.len());
        for (isa, least) in [(Avx2, 8), (Avx512, 8), (Neon, 2)] {
            for format in [Format::I2S, Format::Tl1, Format::Tl2] {
                for phase in [Phase::Decode, Phase::Prefill] {
                    let of = |k: &&KernelId| {
                        k.isa == isa
                            && Phase::of(&k.tile) == phase
                            && matches!(k.op, Ternary(layout) if layout.format() == format)
                    };
                    let tiles = all.iter().filter(of).count();
                    assert!(tiles >= least, "{isa} {format} {phase:?}: {tiles}");
                }
            }
        }
    }

    /// A last group, or a small batch, is not multiplied as a whole group: on AVX-512 each number of tokens up to
    /// eight has a kernel in the tile of the default, on AVX2, where sums fill the registers, each up to four.
    #[test]
    fn a_group_of_a_few_tokens_has_a_kernel_of_its_own() {
        for (isa, most) in [(Avx2, 4), (AvxVnni, 4), (Avx512, 8), (Avx512Vnni, 8)] {
            let default = registry::generic(None, isa).prefill;
            for tokens in 2..=most {
                let fits = |id: &&KernelId| {
                    let tile = TileConfig { prefetch: default.tile.prefetch, ..id.tile };
                    (id.op, id.isa, tile)
                        == (default.op, isa, TileConfig { tokens, ..default.tile })
                };
                assert!(grid(&[isa]).iter().any(|id| fits(&id)), "{default}: {tokens}");
            }
        }
    }
}
