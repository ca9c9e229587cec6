// @generated from templates/src/head_float.rs by bitnet-codegen; do not edit

pub mod head_bf16__neon__any__r1_c0_n1_u1_p2048 {
    //! The lm_head in F32, F16 or BF16: logits of consecutive rows, straight from the file's blocks.
    //!
    //! Each logit is a dot product over 16 virtual lanes (`numerics::dot_f16_row` and its siblings),
    //! which is one chain of fused multiply-adds; several rows at once keep the adders busy, and share
    //! the loads of the activations.

    use super::abi::{HeadCall, HeadPrepare};
    use super::isa::neon as isa;

    /// How a weight is stored, in the order of `HeadFormat`: 0 F32, 1 F16, 2 BF16.
    const FORMAT: usize = 2;
    /// Rows at once.
    const ROWS: usize = 1;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Bytes ahead to prefetch in each row; 0: none.
    const PREFETCH: usize = 2048;

    /// Virtual lanes.
    const LANES: usize = 16;
    /// Bytes of a weight.
    const BYTES: usize = if FORMAT == 0 { 4 } else { 2 };

    /// Bytes of scratch that a prepared row takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        (cols * 4).next_multiple_of(64)
    }

    /// Copies the activation row, padded with zeros.
    ///
    /// # Safety
    /// See `HeadPrepareFn`.
    #[target_feature(enable = "neon")]
    pub unsafe extern "C" fn prepare(prepare: &HeadPrepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        // SAFETY: the scratch holds `cols` floats, rounded up to a cache line (the contract).
        unsafe {
            let out = prepare.scratch.cast::<f32>();
            out.copy_from_nonoverlapping(prepare.x, cols);
            for i in cols..scratch(cols) / 4 {
                out.add(i).write(0.0);
            }
        }
    }

    /// Computes logits: see `HeadRunFn`.
    ///
    /// # Safety
    /// See `HeadRunFn`.
    #[target_feature(enable = "neon")]
    pub unsafe extern "C" fn run(call: &HeadCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let x = call.activations.cast::<f32>();
        let mut row = 0;
        // SAFETY: rows below `count` are readable for `cols` weights, `out` is writable for `count`
        // floats (the contract).
        unsafe {
            while row + ROWS <= call.count {
                logits::<ROWS>(call.rows.add(row * cols * BYTES), x, cols, call.out.add(row));
                row += ROWS;
            }
            while row < call.count {
                logits::<1>(call.rows.add(row * cols * BYTES), x, cols, call.out.add(row));
                row += 1;
            }
        }
    }

    /// The logits of `R` rows.
    ///
    /// # Safety
    /// `rows` is readable for `R` rows, `x` for `cols` floats, `out` writable for `R` floats.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn logits<const R: usize>(rows: *const u8, x: *const f32, cols: usize, out: *mut f32) {
        // SAFETY: every access stays below `cols` and `R`.
        unsafe {
            let mut sums = [isa::f32_splat(0.0); R];
            let mut i = 0;
            while i + LANES <= cols {
                let a = isa::f32_load(x.add(i));
                for r in 0..R {
                    let weights = rows.add((r * cols + i) * BYTES);
                    if PREFETCH != 0 {
                        isa::prefetch(weights.wrapping_add(PREFETCH));
                    }
                    sums[r] = isa::f32_fma(a, load(weights), sums[r]);
                }
                i += LANES;
            }
            if i == cols {
                for r in 0..R {
                    out.add(r).write(isa::f32_reduce_add(sums[r]));
                }
                return;
            }
            // The last columns go to their lanes one by one: fusing with a zero could lose a -0.
            for r in 0..R {
                let mut last = [0u8; LANES * 4];
                let weights = rows.add((r * cols + i) * BYTES);
                weights.copy_to_nonoverlapping(last.as_mut_ptr(), (cols - i) * BYTES);
                let (mut w, mut lanes) = ([0f32; LANES], [0f32; LANES]);
                isa::f32_store(w.as_mut_ptr(), load(last.as_ptr()));
                isa::f32_store(lanes.as_mut_ptr(), sums[r]);
                for lane in 0..cols - i {
                    lanes[lane] = isa::mul_add(x.add(i + lane).read(), w[lane], lanes[lane]);
                }
                out.add(r).write(isa::f32_reduce_add(isa::f32_load(lanes.as_ptr())));
            }
        }
    }

    /// Loads 16 weights.
    ///
    /// # Safety
    /// `ptr` is readable for 16 weights.
    #[inline]
    #[target_feature(enable = "neon")]
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
}
