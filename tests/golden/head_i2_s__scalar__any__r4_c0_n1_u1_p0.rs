// @generated from templates/src/head_ternary.rs by bitnet-codegen; do not edit

pub mod head_i2_s__scalar__any__r4_c0_n1_u1_p0 {
    //! The lm_head in I2_S: logits of consecutive rows, straight from the file's blocks.
    //!
    //! Activations are int8 with one scale, as those of every ternary matrix: each row gives one exact
    //! int32, and its logit is `((dot as f32) / s) * scale` with the scales of the activations and of the
    //! tensor (`formats/i2_s.rs` in the runtime).
    //!
    //! Of 128 weights byte `j` of 32 holds number `j` in bits 7:6, `32 + j` in bits 5:4, and so on. A vector
    //! of bytes gives a vector of codes for each field, and meets activations that were put into that
    //! order. As codes are one more than weights,
    //!
    //! ```text
    //! dot(weights, q) = dot(codes, q) - sum(q)
    //! ```
    //!
    //! Codes stay where they are in their byte where sums are 32 bits wide and registers hold those of every
    //! field; these then come out times a power of 4, exactly.
    //!
    //! A prepared row is `s: f32`, `scale: f32` and `sum(q): i32`, padded to 64 bytes, then the activations,
    //! padded with zeros to whole vectors.

    use super::abi::{HeadCall, HeadPrepare};
    use super::isa::scalar as isa;
    use super::vector__scalar::quantise_activations;

    /// Rows at once, 4 with one activation row, or 1 with 4.
    const ROWS: usize = 4;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows.
    const TOKENS: usize = 1;
    /// Bytes ahead to prefetch in each row; 0: none.
    const PREFETCH: usize = 0;

    /// Sums at once.
    const SUMS: usize = ROWS * TOKENS;
    /// Codes in a byte.
    const FIELDS: usize = 4;
    /// Weights and bytes of a block.
    const FILE_BLOCK: usize = 128;
    const FILE_BYTES: usize = FILE_BLOCK / FIELDS;
    /// Bytes of a vector.
    const BYTES: usize = 4 * isa::LANES;
    /// Bytes of a block that lie in one vector.
    const RUN: usize = if BYTES < FILE_BYTES { BYTES } else { FILE_BYTES };
    /// Vectors that the registers hold.
    const REGISTERS: usize = 16 * isa::F32_REGISTERS / isa::LANES;
    /// Independent sums: a field each where codes stay in their place.
    const CHAINS: usize = if isa::WIDE && REGISTERS > 16 { FIELDS } else { 1 };
    /// Vectors after which sums of 16 bits are widened: they hold 42 sums of two products, even of code 3,
    /// which no file is to hold.
    const WIDEN: usize = 40 / FIELDS;
    /// Bytes before the activations.
    const HEADER: usize = 64;

    /// Bytes of a row of weights.
    const fn weight_bytes(cols: usize) -> usize {
        cols / FIELDS
    }

    /// Bytes of a prepared row.
    const fn row_bytes(cols: usize) -> usize {
        HEADER + (FIELDS * weight_bytes(cols).next_multiple_of(BYTES)).next_multiple_of(64)
    }

    /// Bytes of scratch that the prepared rows take for so many columns, and one row in its own order.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        TOKENS * row_bytes(cols) + cols
    }

    /// Quantises the activation rows with a scale each, as `numerics::quantise_activations` defines it.
    ///
    /// # Safety
    /// See `HeadPrepareFn`.
    pub unsafe extern "C" fn prepare(prepare: &HeadPrepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        // SAFETY: rows of the scratch with the room behind them and, as far as there are, of the
        // activations (the contract).
        unsafe {
            let quantised = prepare.scratch.add(TOKENS * row_bytes(cols)).cast::<i8>();
            for token in 0..TOKENS {
                let row = prepare.scratch.add(token * row_bytes(cols));
                row.write_bytes(0, row_bytes(cols));
                if token < prepare.tokens {
                    let s = quantise_activations(prepare.x.add(token * cols), quantised, cols);
                    let sum = lay_out(quantised, row.add(HEADER).cast(), cols);
                    row.cast::<f32>().write(s);
                    row.cast::<f32>().add(1).write(prepare.scale);
                    row.cast::<i32>().add(2).write(sum);
                }
            }
        }
    }

    /// Puts activations into the order of the weights, and gives their sum.
    ///
    /// # Safety
    /// `q` is readable for `cols` activations, whole blocks, and `out` writable for those of a prepared row.
    #[inline(always)]
    unsafe fn lay_out(q: *const i8, out: *mut i8, cols: usize) -> i32 {
        let mut sum = 0;
        // SAFETY: every read stays below `cols`; a vector of weights has `FIELDS` vectors of activations.
        unsafe {
            for at in 0..cols {
                sum += i32::from(q.add(at).read());
            }
            for byte in (0..weight_bytes(cols)).step_by(RUN) {
                let first = byte / FILE_BYTES * FILE_BLOCK + byte % FILE_BYTES;
                let vector = byte / BYTES * FIELDS * BYTES + byte % BYTES;
                for field in 0..FIELDS {
                    // Fields count from the lowest bits, where the last of a block are.
                    let from = q.add(first + (FIELDS - 1 - field) * FILE_BYTES);
                    out.add(vector + field * BYTES).copy_from_nonoverlapping(from, RUN);
                }
            }
        }
        sum
    }

    /// Computes logits: see `HeadRunFn`.
    ///
    /// # Safety
    /// See `HeadRunFn`.
    pub unsafe extern "C" fn run(call: &HeadCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let mut first = 0;
        while first < call.count {
            // SAFETY: rows below `count` are readable for `cols` weights, `out` is writable for `count`
            // floats of each activation row (the contract).
            unsafe {
                // The last row stands for those beyond it.
                let mut rows = [call.rows; ROWS];
                for r in 0..ROWS {
                    rows[r] = call.rows.add((first + r).min(call.count - 1) * weight_bytes(cols));
                }
                let dots = dots(rows, call.activations, cols);
                for r in 0..ROWS.min(call.count - first) {
                    for t in 0..TOKENS {
                        let header = call.activations.add(t * row_bytes(cols));
                        let s = header.cast::<f32>().read();
                        let scale = header.cast::<f32>().add(1).read();
                        let dot = dots[r * TOKENS + t] - header.cast::<i32>().add(2).read();
                        call.out.add(t * call.out_stride + first + r).write((dot as f32 / s) * scale);
                    }
                }
            }
            first += ROWS;
        }
    }

    /// The products of codes and activations, those of a row behind each other.
    ///
    /// # Safety
    /// `rows` are readable for `cols` weights, `activations` prepared for as many.
    #[inline(always)]
    unsafe fn dots(rows: [*const u8; ROWS], activations: *const u8, cols: usize) -> [i32; SUMS] {
        let bytes = weight_bytes(cols);
        let mut totals = [isa::i32_zero(); SUMS];
        let mut at = 0;
        // SAFETY: whole vectors are read while they are within the row, what is left is copied; a vector of
        // weights has `FIELDS` vectors of activations.
        unsafe {
            while at + BYTES <= bytes {
                let end = if isa::WIDE { bytes } else { bytes.min(at + WIDEN * BYTES) };
                let mut sums = [[isa::acc_zero(); CHAINS]; SUMS];
                while at + BYTES <= end {
                    let mut packed = [isa::bytes_zero(); ROWS];
                    for r in 0..ROWS {
                        if PREFETCH != 0 {
                            isa::prefetch::<1>(rows[r].wrapping_add(at + PREFETCH));
                        }
                        packed[r] = isa::load(rows[r].add(at));
                    }
                    multiply(packed, activations.add(HEADER + FIELDS * at), cols, &mut sums);
                    at += BYTES;
                }
                add(&mut totals, sums);
            }
            if BYTES > FILE_BYTES && at < bytes {
                let mut packed = [isa::bytes_zero(); ROWS];
                for r in 0..ROWS {
                    let mut last = [0; BYTES];
                    rows[r].add(at).copy_to_nonoverlapping(last.as_mut_ptr(), bytes - at);
                    packed[r] = isa::load(last.as_ptr());
                }
                let mut sums = [[isa::acc_zero(); CHAINS]; SUMS];
                multiply(packed, activations.add(HEADER + FIELDS * at), cols, &mut sums);
                add(&mut totals, sums);
            }
        }
        isa::i32_sum_groups(isa::i32_sum_quads(totals))
    }

    /// Adds the products of a vector of bytes of each row.
    ///
    /// # Safety
    /// `activations` is readable for `FIELDS` vectors of each prepared row.
    #[inline(always)]
    unsafe fn multiply(
        packed: [isa::Bytes; ROWS],
        activations: *const u8,
        cols: usize,
        sums: &mut [[isa::Acc; CHAINS]; SUMS],
    ) {
        for t in 0..TOKENS {
            for field in 0..FIELDS {
                // SAFETY: the caller's promise.
                let a = unsafe { isa::load(activations.add(t * row_bytes(cols) + field * BYTES)) };
                for r in 0..ROWS {
                    let (codes, chain) = if CHAINS > 1 {
                        (isa::codes_in_place(packed[r], field), field)
                    } else {
                        (isa::codes(packed[r], field), 0)
                    };
                    let sum = &mut sums[r * TOKENS + t][chain];
                    *sum = isa::dot(*sum, codes, a);
                }
            }
        }
    }

    /// Adds sums, widened and unscaled.
    #[inline(always)]
    fn add(totals: &mut [isa::I32; SUMS], sums: [[isa::Acc; CHAINS]; SUMS]) {
        for i in 0..SUMS {
            for chain in 0..CHAINS {
                let sum = isa::i32_unscale(isa::widen(sums[i][chain]), chain);
                totals[i] = isa::i32_add(totals[i], sum);
            }
        }
    }
}
