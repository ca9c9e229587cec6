//! The lm_head in F32, F16 or BF16: logits of consecutive rows, straight from the file's blocks.
//!
//! Each logit is a dot product over 16 virtual lanes (`formats/float.rs` in the runtime),
//! which is one chain of fused multiply-adds; several rows at once keep the adders busy, and share
//! the loads of the activations, as several activation rows share those of the weights.

use crate::abi::{HeadCall, HeadPrepare};
use crate::isa::scalar as isa;

/// Storage type of a weight, in the order of `HeadFormat`: 0 F32, 1 F16, 2 BF16.
const FORMAT: usize = 1;
/// Rows at once.
const ROWS: usize = 4;
/// Columns of the matrix; 0: taken from the call.
const COLS: usize = 0;
/// Activation rows.
const TOKENS: usize = 1;
/// Bytes ahead to prefetch in each row; 0: none.
const PREFETCH: usize = 0;

/// Virtual lanes.
const LANES: usize = 16;
/// Bytes of a weight.
const BYTES: usize = if FORMAT == 0 { 4 } else { 2 };

/// Floats of a prepared row.
const fn row_floats(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}

/// Bytes of scratch that the prepared rows take for so many columns.
pub const extern "C" fn scratch(cols: usize) -> usize {
    TOKENS * row_floats(cols) * 4
}

/// Copies the activation rows, padded with zeros.
///
/// # Safety
/// See `HeadPrepareFn`.
pub unsafe extern "C" fn prepare(prepare: &HeadPrepare) {
    let cols = if COLS == 0 { prepare.cols } else { COLS };
    for token in 0..TOKENS {
        let given = if token < prepare.tokens { cols } else { 0 };
        // SAFETY: rows of the scratch and, as far as there are, of the activations (the contract).
        unsafe {
            let out = prepare.scratch.cast::<f32>().add(token * row_floats(cols));
            if given > 0 {
                out.copy_from_nonoverlapping(prepare.x.add(token * cols), cols);
            }
            for i in given..row_floats(cols) {
                out.add(i).write(0.0);
            }
        }
    }
}

/// Computes logits: see `HeadRunFn`.
///
/// # Safety
/// See `HeadRunFn`.
pub unsafe extern "C" fn run(call: &HeadCall) {
    let cols = if COLS == 0 { call.cols } else { COLS };
    let x = call.activations.cast::<f32>();
    let mut row = 0;
    // SAFETY: rows below `count` are readable for `cols` weights, `out` is writable for `count`
    // floats of each activation row (the contract).
    unsafe {
        while row + ROWS <= call.count {
            let weights = call.rows.add(row * cols * BYTES);
            logits::<ROWS>(weights, x, cols, call.out.add(row), call.out_stride);
            row += ROWS;
        }
        while row < call.count {
            let weights = call.rows.add(row * cols * BYTES);
            logits::<1>(weights, x, cols, call.out.add(row), call.out_stride);
            row += 1;
        }
    }
}

/// The logits of `R` rows.
///
/// # Safety
/// `rows` is readable for `R` rows, `x` prepared for `cols` columns, `out` writable for `R` floats at
/// every `stride` for each activation row.
#[inline]
unsafe fn logits<const R: usize>(
    rows: *const u8,
    x: *const f32,
    cols: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: every access stays below `cols`, `R` and `TOKENS`.
    unsafe {
        let mut sums = [[isa::f32_splat(0.0); TOKENS]; R];
        let mut i = 0;
        while i + LANES <= cols {
            let mut a = [isa::f32_splat(0.0); TOKENS];
            for t in 0..TOKENS {
                a[t] = isa::f32_load(x.add(t * row_floats(cols) + i));
            }
            for r in 0..R {
                let weights = rows.add((r * cols + i) * BYTES);
                if PREFETCH != 0 {
                    isa::prefetch::<1>(weights.wrapping_add(PREFETCH));
                }
                let weights = load(weights);
                for t in 0..TOKENS {
                    sums[r][t] = isa::f32_fma(a[t], weights, sums[r][t]);
                }
            }
            i += LANES;
        }
        if i == cols {
            for r in 0..R {
                for t in 0..TOKENS {
                    out.add(t * stride + r).write(isa::f32_reduce_add(sums[r][t]));
                }
            }
            return;
        }
        // The last columns go to their lanes one by one: fusing with a zero could lose a -0.
        for r in 0..R {
            let mut last = [0u8; LANES * 4];
            let weights = rows.add((r * cols + i) * BYTES);
            weights.copy_to_nonoverlapping(last.as_mut_ptr(), (cols - i) * BYTES);
            let mut w = [0f32; LANES];
            isa::f32_store(w.as_mut_ptr(), load(last.as_ptr()));
            for t in 0..TOKENS {
                let x = x.add(t * row_floats(cols) + i);
                let mut lanes = [0f32; LANES];
                isa::f32_store(lanes.as_mut_ptr(), sums[r][t]);
                for lane in 0..cols - i {
                    lanes[lane] = isa::mul_add(x.add(lane).read(), w[lane], lanes[lane]);
                }
                let sum = isa::f32_reduce_add(isa::f32_load(lanes.as_ptr()));
                out.add(t * stride + r).write(sum);
            }
        }
    }
}

/// Loads 16 weights.
///
/// # Safety
/// `ptr` is readable for 16 weights.
#[inline]
unsafe fn load(ptr: *const u8) -> isa::F32 {
    // SAFETY: the caller's promise.
    unsafe {
        match FORMAT {
            0 => isa::f32_load(ptr.cast()),
            1 => isa::f32_load_f16(ptr.cast()),
            _ => isa::f32_load_bf16(ptr.cast()),
        }
    }
}
