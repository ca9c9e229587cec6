//! NEON with the matrix product instructions: `smmla` multiplies 2 rows of 8 bytes by 2 others,
//! twice as many products as `sdot`.

use core::arch::aarch64::*;
use core::arch::asm;

pub use super::neondot::*;

/// The 32-bit lanes of two vectors in turn: of their first halves, then of their second.
#[inline]
#[target_feature(enable = "neon")]
pub fn interleave(a: Bytes, b: Bytes) -> [Bytes; 2] {
    let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
    [vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))]
}

/// Adds to lane `2i + j` the 8 products of half `i` of the activations and half `j` of the codes,
/// at most 127.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
pub fn dot_2x2(acc: Acc, activations: Bytes, codes: Bytes) -> Acc {
    let mut sum = acc;
    // The intrinsic is not stable yet.
    // SAFETY: the instruction is of the features above, and changes no register but `sum`.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) activations, in(vreg) codes,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Keeps what is done with `packed` and `vectors` from here on behind what made `done`: where the
/// compiler looks ahead, it runs out of registers.
#[inline]
#[target_feature(enable = "neon")]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "it is not followed")]
pub fn in_turn<const N: usize>(done: Acc, packed: &mut [Bytes; N], vectors: &mut *const u8) {
    // SAFETY: no instruction at all; values stay as they are.
    unsafe {
        asm!("/* {0} {1:v} */", inout(reg) *vectors, in(vreg) done,
             options(pure, nomem, nostack, preserves_flags));
        for bytes in packed {
            asm!("/* {0:v} {1:v} */", inout(vreg) *bytes, in(vreg) done,
                 options(pure, nomem, nostack, preserves_flags));
        }
    }
}

/// The first halves of two vectors, and their second halves.
#[inline]
#[target_feature(enable = "neon")]
pub fn i32_pairs(a: I32, b: I32) -> [I32; 2] {
    let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
    [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
}
