// @generated from templates/src/head_block.rs by bitnet-codegen; do not edit

pub mod head_q4_0__avx512vnni__any__r1_c0_n8_u1_p4096 {
    //! The lm_head in Q8_0, Q6_K or Q4_0: logits of consecutive rows, straight from the file's blocks.
    //!
    //! Activations are quantised per block of 32 to int8. Each block of weights gives one exact int32,
    //! and block `b` adds `(weight scale * activation scale) * int` to virtual lane `b % 16`, fused
    //! (`formats/q6_k.rs` in the runtime, and its siblings). So 16 blocks, 512 weights, fill the lanes once.
    //!
    //! Byte products leave 4 sums for every 16 weights, a 128-bit lane. `i32_sum_quads` adds them up
    //! for 4 vectors at once and puts the sum of sub-block `L` of vector `i` at `4 L + i`; scales of
    //! sub-blocks (Q6_K has one for every 16 weights) and the sums of activations, which undo the
    //! offset of unsigned codes, are loaded in that order. `f32_pair_blocks` adds the two halves of
    //! each block and puts 16 blocks in order.
    //!
    //! With several activation rows it is the weights that change places, once for all of them
    //! (`quads_transposed`), and the activations when they are prepared: then the bytes of a sub-block
    //! stand in the same lane of 4 vectors, and their products add up where they land, in the order above.
    //!
    //! A prepared row is the int8 activations, then int32 sums of 16 activations each times the offset,
    //! in the order above, then the f32 scales, each part padded to 64 bytes.

    use super::abi::{HeadCall, HeadPrepare};
    use super::isa::avx512vnni as isa;
    use super::vector__avx512::quantise_blocks;

    /// How weights are stored, in the order of `HeadFormat`: 3 Q8_0, 4 Q6_K, 5 Q4_0.
    const FORMAT: usize = 5;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows.
    const TOKENS: usize = 8;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 4096;

    /// Virtual lanes, and blocks that fill them.
    const LANES: usize = 16;
    /// Weights in a block of activations.
    const QUANT: usize = 32;
    /// Weights in a vector of bytes.
    const VECTOR: usize = 4 * isa::LANES;
    /// Weights whose sums `i32_sum_quads` adds up at once.
    const GROUP: usize = 4 * VECTOR;
    /// Groups that fill the lanes.
    const GROUPS: usize = LANES * QUANT / GROUP;
    /// Weights and bytes of one block of the file.
    const FILE_BLOCK: usize = if FORMAT == 4 { 256 } else { 32 };
    const FILE_BYTES: usize = match FORMAT {
        3 => 34,
        4 => 210,
        _ => 18,
    };
    /// What was added to make codes unsigned.
    const OFFSET: i32 = if FORMAT == 4 { 32 } else { 8 };

    /// Bytes before the sums of activations.
    const fn sums_at(cols: usize) -> usize {
        cols.next_multiple_of(LANES * QUANT)
    }

    /// Bytes before the scales.
    const fn scales_at(cols: usize) -> usize {
        sums_at(cols) + cols.next_multiple_of(LANES * QUANT) / 4
    }

    /// Bytes of a prepared row.
    const fn row_bytes(cols: usize) -> usize {
        scales_at(cols) + (cols / QUANT).next_multiple_of(LANES) * 4
    }

    /// Bytes of scratch that the prepared rows take for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        TOKENS * row_bytes(cols)
    }

    /// Quantises the activation rows per block of 32, as `numerics::quantise_blocks` defines it.
    ///
    /// # Safety
    /// See `HeadPrepareFn`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub unsafe extern "C" fn prepare(prepare: &HeadPrepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        for token in 0..TOKENS {
            // SAFETY: rows of the scratch and, as far as there are, of the activations (the contract).
            unsafe {
                let row = prepare.scratch.add(token * row_bytes(cols));
                if token < prepare.tokens {
                    prepare_row(prepare.x.add(token * cols), row, cols);
                } else {
                    row.write_bytes(0, row_bytes(cols));
                }
            }
        }
    }

    /// Prepares one activation row.
    ///
    /// # Safety
    /// `x` is readable for `cols` floats, whole blocks, `row` writable for a prepared row.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn prepare_row(x: *const f32, row: *mut u8, cols: usize) {
        // SAFETY: the row holds the three parts; `cols` is a multiple of the block.
        unsafe {
            let q = row.cast::<i8>();
            let sums = row.add(sums_at(cols)).cast::<i32>();
            let scales = row.add(scales_at(cols)).cast::<f32>();
            q.write_bytes(0, sums_at(cols));
            quantise_blocks(x, q, scales, cols);
            // Sub-block L of vector i of a group stands at 4 L + i.
            let per_vector = VECTOR / 16;
            for sub in 0..sums_at(cols) / 16 {
                let (group, within) = (sub / (4 * per_vector), sub % (4 * per_vector));
                let (i, lane) = (within / per_vector, within % per_vector);
                let mut sum = 0;
                for j in 0..16 {
                    sum += i32::from(q.add(sub * 16 + j).read());
                }
                sums.add(group * 4 * per_vector + 4 * lane + i).write(sum * OFFSET);
            }
            if TOKENS > 1 {
                // What is not read in whole groups stays in order.
                for group in 0..cols / (LANES * QUANT) * GROUPS {
                    let mut quads = [0u32; GROUP / 4];
                    let group = q.add(group * GROUP).cast::<u32>();
                    for i in 0..GROUP / 4 {
                        // Group `lane` of 4 lanes of a vector: lane `j` of vector `i` and the reverse.
                        let (vector, lane, quad) = (i / isa::LANES, i % isa::LANES / 4, i % 4);
                        quads[quad * isa::LANES + 4 * lane + vector] = group.add(i).read();
                    }
                    for i in 0..GROUP / 4 {
                        group.add(i).write(quads[i]);
                    }
                }
            }
        }
    }

    /// Computes logits: see `HeadRunFn`.
    ///
    /// # Safety
    /// See `HeadRunFn`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub unsafe extern "C" fn run(call: &HeadCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        for row in 0..call.count {
            // SAFETY: the row is readable for whole blocks, `out` writable for `count` floats (the
            // contract).
            unsafe {
                let weights = call.rows.add(row * (cols / FILE_BLOCK * FILE_BYTES));
                let logits = logits(weights, call.activations, cols);
                for t in 0..TOKENS {
                    call.out.add(t * call.out_stride + row).write(logits[t]);
                }
            }
        }
    }

    /// The logits of one row.
    ///
    /// # Safety
    /// `row` is readable for `cols` weights, `activations` were prepared for as many.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn logits(row: *const u8, activations: *const u8, cols: usize) -> [f32; TOKENS] {
        const FILL: usize = LANES * QUANT;
        let mut acc = [isa::f32_splat(0.0); TOKENS];
        let mut logits = [0f32; TOKENS];
        let mut done = 0;
        // SAFETY: full lanes are read while they are within the row; what is left is read block by
        // block of the file.
        unsafe {
            while done + FILL <= cols {
                let weights = row.add(done / FILE_BLOCK * FILE_BYTES);
                if PREFETCH != 0 {
                    for line in 0..(FILL / FILE_BLOCK * FILE_BYTES).div_ceil(64) {
                        isa::prefetch(weights.wrapping_add(PREFETCH + 64 * line));
                    }
                }
                let mut groups = [[isa::i32_zero(); GROUPS]; TOKENS];
                for g in 0..GROUPS {
                    let at = g * GROUP;
                    let dots = group(weights, at, activations, done + at, cols);
                    for t in 0..TOKENS {
                        groups[t][g] = dots[t];
                    }
                }
                let d = weight_scales(weights);
                for t in 0..TOKENS {
                    let scales = activations.add(t * row_bytes(cols) + scales_at(cols)).cast::<f32>();
                    let d = isa::f32_mul(d, isa::f32_load(scales.add(done / QUANT)));
                    acc[t] = isa::f32_fma(d, isa::f32_pair_blocks(groups[t]), acc[t]);
                }
                done += FILL;
            }
            for t in 0..TOKENS {
                if done == cols {
                    logits[t] = isa::f32_reduce_add(acc[t]);
                    continue;
                }
                let mut lanes = [0f32; LANES];
                isa::f32_store(lanes.as_mut_ptr(), acc[t]);
                let activations = activations.add(t * row_bytes(cols));
                let scales = activations.add(scales_at(cols)).cast::<f32>();
                for lane in 0..(cols - done) / QUANT {
                    let first = done + lane * QUANT;
                    let block = row.add(first / FILE_BLOCK * FILE_BYTES);
                    let int = block_dot(block, first % FILE_BLOCK, activations.add(first).cast());
                    let scale = if FORMAT == 4 { block.add(208) } else { block };
                    let bits = scale.cast::<u16>().read_unaligned();
                    let d = isa::f16_to_f32(bits) * scales.add(first / QUANT).read();
                    lanes[lane] = isa::mul_add(d, int as f32, lanes[lane]);
                }
                logits[t] = isa::f32_reduce_add(isa::f32_load(lanes.as_ptr()));
            }
        }
        logits
    }

    /// The sums of the sub-blocks of one group, in the order of `i32_sum_quads`, offset undone and
    /// sub-scales applied, for every activation row. `at` counts weights from `weights`, a file block,
    /// and `first` activations of a row.
    ///
    /// # Safety
    /// Weights `at .. at + GROUP` are readable, and `activations` prepared for `cols` columns, more than
    /// `first + GROUP`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group(
        weights: *const u8,
        at: usize,
        activations: *const u8,
        first: usize,
        cols: usize,
    ) -> [isa::I32; TOKENS] {
        let mut all = [isa::i32_zero(); TOKENS];
        // SAFETY: the caller's promise.
        unsafe {
            if TOKENS == 1 {
                let mut dots = [isa::i32_zero(); 4];
                for i in 0..4 {
                    let a = isa::load(activations.add(first + i * VECTOR));
                    dots[i] = products(codes(weights, at + i * VECTOR), a);
                }
                all[0] = isa::i32_sum_quads(dots);
            } else {
                let mut quads = [isa::bytes_zero(); 4];
                for i in 0..4 {
                    quads[i] = codes(weights, at + i * VECTOR);
                }
                let quads = isa::quads_transposed(quads);
                for t in 0..TOKENS {
                    all[t] = lane_sums(quads, activations.add(t * row_bytes(cols) + first));
                }
            }
            if FORMAT == 3 {
                return all;
            }
            for t in 0..TOKENS {
                let offsets = activations.add(t * row_bytes(cols) + sums_at(cols)).cast::<i32>();
                all[t] = isa::i32_sub(all[t], isa::i32_load(offsets.add(first / 16)));
                if FORMAT == 4 {
                    let block = weights.add(at / FILE_BLOCK * FILE_BYTES);
                    let scales = isa::i32_load_quad_i8(block.add(192 + at % FILE_BLOCK / 16));
                    all[t] = isa::i32_mul(all[t], scales);
                }
            }
        }
        all
    }

    /// A vector of weights, from number `at` on, which is counted from a file block.
    ///
    /// # Safety
    /// They are readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(weights: *const u8, at: usize) -> isa::Bytes {
        // SAFETY: the caller's promise.
        unsafe {
            let block = weights.add(at / FILE_BLOCK * FILE_BYTES);
            match FORMAT {
                3 => isa::q8_0_weights(block, at % FILE_BLOCK),
                4 => isa::q6_k_codes(block, at % FILE_BLOCK),
                _ => isa::q4_0_codes(block, at % FILE_BLOCK),
            }
        }
    }

    /// Sums of 4 products, offset not undone.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn products(codes: isa::Bytes, activations: isa::Bytes) -> isa::I32 {
        if FORMAT == 3 {
            return isa::i8_dot(codes, activations);
        }
        isa::widen(isa::dot(isa::acc_zero(), codes, activations))
    }

    /// The sums of the products of a group, lane by lane.
    ///
    /// # Safety
    /// `activations` is readable for a group.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn lane_sums(codes: [isa::Bytes; 4], activations: *const u8) -> isa::I32 {
        let mut sums = isa::i32_zero();
        let mut acc = isa::acc_zero();
        for i in 0..4 {
            // SAFETY: the caller's promise.
            let a = unsafe { isa::load(activations.add(i * VECTOR)) };
            if FORMAT != 3 && isa::WIDE {
                acc = isa::dot(acc, codes[i], a);
            } else {
                sums = isa::i32_add(sums, products(codes[i], a));
            }
        }
        if FORMAT != 3 && isa::WIDE { isa::widen(acc) } else { sums }
    }

    /// The scales of the 16 blocks that begin at `weights`.
    ///
    /// # Safety
    /// `weights` is readable for them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn weight_scales(weights: *const u8) -> isa::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            if FORMAT == 4 {
                let first = weights.add(208).cast::<u16>().read_unaligned();
                let second = weights.add(FILE_BYTES + 208).cast::<u16>().read_unaligned();
                return isa::f32_splat_f16_halves(first, second);
            }
            let mut bits = [0u16; LANES];
            for block in 0..LANES {
                bits[block] = weights.add(block * FILE_BYTES).cast::<u16>().read_unaligned();
            }
            isa::f32_load_f16(bits.as_ptr())
        }
    }

    /// The integer dot product of one block of 32 weights, sub-scales applied; `at` counts weights
    /// from the file block.
    ///
    /// # Safety
    /// The file block and 32 activations are readable.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn block_dot(block: *const u8, at: usize, activations: *const i8) -> i32 {
        let mut dot = 0;
        for i in 0..QUANT {
            // SAFETY: the caller's promise.
            unsafe {
                let weight = match FORMAT {
                    3 => i32::from(block.add(2 + i).cast::<i8>().read()),
                    4 => {
                        let (half, t) = ((at + i) / 128, (at + i) % 128 / 32);
                        let low = block.add(64 * half + 32 * (t % 2) + i % 32).read() >> (4 * (t / 2));
                        let high = block.add(128 + 32 * half + i % 32).read() >> (2 * t);
                        let scale = block.add(192 + (at + i) / 16).cast::<i8>().read();
                        (i32::from(low & 15 | (high & 3) << 4) - OFFSET) * i32::from(scale)
                    }
                    _ => {
                        let byte = block.add(2 + i % 16).read();
                        i32::from(if i < 16 { byte & 15 } else { byte >> 4 }) - OFFSET
                    }
                };
                dot += weight * i32::from(activations.add(i).read());
            }
        }
        dot
    }
}
