// @generated from templates/src/head_block.rs by bitnet-codegen; do not edit

pub mod head_q8_0__scalar__any__r1_c0_n1_u1_p0 {
    //! The lm_head in a format of integers in blocks: logits of consecutive rows, straight from the file's
    //! blocks.
    //!
    //! Activations are quantised per block of 32 to int8. Each block of weights gives one exact int32,
    //! and block `b` adds `(weight scale * activation scale) * int` to virtual lane `b % 16`, fused
    //! (`formats/q6_k.rs` in the runtime, and its siblings). So 16 blocks, 512 weights, fill the lanes once.
    //! Where weights are counted from a minimum, the block then adds `minimum * (activation scale * sum of
    //! activations)`, fused too.
    //!
    //! Byte products leave 4 sums for every 16 weights, a 128-bit lane. `i32_sum_quads` adds them up
    //! for 4 vectors at once and puts the sum of sub-block `L` of vector `i` at `4 L + i`; scales of
    //! sub-blocks (Q6_K and Q3_K have one for every 16 weights) and the sums of activations, which undo the
    //! offset of unsigned codes, are loaded in that order. `f32_pair_blocks` adds the two halves of
    //! each block and puts 16 blocks in order.
    //!
    //! With several activation rows it is the weights that change places, once for all of them
    //! (`quads_transposed`), and the activations when they are prepared: then the bytes of a sub-block
    //! stand in the same lane of 4 vectors, and their products add up where they land, in the order above.
    //!
    //! A prepared row is the int8 activations, then int32 sums of 16 activations each times the offset,
    //! in the order above, then the f32 scales, each part padded to 64 bytes. Where there are minima, in the
    //! place of the sums there are those of 32 activations each times their scale, as f32.

    use super::abi::{HeadCall, HeadPrepare};
    use super::isa::scalar as isa;
    use super::vector__scalar::quantise_blocks;

    /// Storage of the weights, in the order of `HeadFormat`: 3 Q8_0, 4 Q6_K, 5 Q4_0, 6 Q4_1, 7 Q5_0,
    /// 8 Q5_1, 9 Q3_K, 10 Q4_K, 11 Q5_K, 12 TQ2_0, 13 T2.
    const FORMAT: usize = 3;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows.
    const TOKENS: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

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
    const FILE_BLOCK: usize = match FORMAT {
        4 | 9..=12 => 256,
        13 => 128,
        _ => 32,
    };
    const FILE_BYTES: usize = match FORMAT {
        3 => 34,
        4 => 210,
        5 => 18,
        6 => 20,
        7 => 22,
        8 => 24,
        9 => 110,
        10 => 144,
        11 => 176,
        12 => 66,
        _ => 36,
    };
    /// Byte of a block at which its f16 scale stands.
    const SCALE: usize = match FORMAT {
        4 => 208,
        9 => 108,
        12 => 64,
        _ => 0,
    };
    /// Byte of a block at which its 32 fifth bits stand.
    const FIFTH_BITS: usize = if FORMAT == 7 { 2 } else { 4 };
    /// Byte of a block at which its codes, or their lower bits, stand.
    const CODES: usize = match FORMAT {
        3 | 5 => 2,
        6 => 4,
        7 => 6,
        8 => 8,
        9 => 32,
        10 => 16,
        11 => 48,
        13 => 4,
        _ => 0,
    };
    /// Number that was added to make codes unsigned; 0: they are signed, or counted from a minimum.
    const OFFSET: i32 = match FORMAT {
        4 => 32,
        5 => 8,
        7 => 16,
        9 => 4,
        12 | 13 => 1,
        _ => 0,
    };
    /// True if every 16 weights have a scale of their own, an integer.
    const SUB_SCALES: bool = matches!(FORMAT, 4 | 9);
    /// True if weights are counted from a minimum.
    const MINIMA: bool = matches!(FORMAT, 6 | 8 | 10 | 11);
    /// True if a block has, for every 32 weights, 6-bit factors of its scale and of its minimum.
    const FACTORS: bool = matches!(FORMAT, 10 | 11);

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
    #[inline(always)]
    unsafe fn prepare_row(x: *const f32, row: *mut u8, cols: usize) {
        // SAFETY: the row holds the three parts; `cols` is a multiple of the block.
        unsafe {
            let q = row.cast::<i8>();
            let sums = row.add(sums_at(cols)).cast::<i32>();
            let scales = row.add(scales_at(cols)).cast::<f32>();
            q.write_bytes(0, sums_at(cols));
            quantise_blocks(x, q, scales, cols);
            if MINIMA {
                for block in 0..cols / QUANT {
                    let sum = sum(q.add(block * QUANT), QUANT) as f32;
                    sums.cast::<f32>().add(block).write(scales.add(block).read() * sum);
                }
            } else {
                // Sub-block L of vector i of a group stands at 4 L + i.
                let per_vector = VECTOR / 16;
                for sub in 0..sums_at(cols) / 16 {
                    let (group, within) = (sub / (4 * per_vector), sub % (4 * per_vector));
                    let (i, lane) = (within / per_vector, within % per_vector);
                    let sum = sum(q.add(sub * 16), 16);
                    sums.add(group * 4 * per_vector + 4 * lane + i).write(sum * OFFSET);
                }
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

    /// The sum of `n` activations.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn sum(q: *const i8, n: usize) -> i32 {
        let mut sum = 0;
        for i in 0..n {
            // SAFETY: the caller's promise.
            sum += i32::from(unsafe { q.add(i).read() });
        }
        sum
    }

    /// Computes logits: see `HeadRunFn`.
    ///
    /// # Safety
    /// See `HeadRunFn`.
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
    #[inline(always)]
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
                        isa::prefetch::<1>(weights.wrapping_add(PREFETCH + 64 * line));
                    }
                }
                let unpacked = if FORMAT == 9 { sub_scales(weights) } else { [[0; 4]; 2] };
                let mut groups = [[isa::i32_zero(); GROUPS]; TOKENS];
                for g in 0..GROUPS {
                    let at = g * GROUP;
                    let dots = group(weights, at, &unpacked, activations, done + at, cols);
                    for t in 0..TOKENS {
                        groups[t][g] = dots[t];
                    }
                }
                let d = weight_scales(weights);
                let minima = if MINIMA { weight_minima(weights) } else { d };
                for t in 0..TOKENS {
                    let activations = activations.add(t * row_bytes(cols));
                    let scales = activations.add(scales_at(cols)).cast::<f32>();
                    let d = isa::f32_mul(d, isa::f32_load(scales.add(done / QUANT)));
                    acc[t] = isa::f32_fma(d, isa::f32_pair_blocks(groups[t]), acc[t]);
                    if MINIMA {
                        let sums = activations.add(sums_at(cols)).cast::<f32>();
                        acc[t] = isa::f32_fma(minima, isa::f32_load(sums.add(done / QUANT)), acc[t]);
                    }
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
                let sums = activations.add(sums_at(cols)).cast::<f32>();
                for lane in 0..(cols - done) / QUANT {
                    let first = done + lane * QUANT;
                    let block = row.add(first / FILE_BLOCK * FILE_BYTES);
                    let at = first % FILE_BLOCK;
                    let int = block_dot(block, at, activations.add(first).cast());
                    let (scale, minimum) = block_scale(block, at);
                    let d = scale * scales.add(first / QUANT).read();
                    lanes[lane] = isa::mul_add(d, int as f32, lanes[lane]);
                    if MINIMA {
                        let sum = sums.add(first / QUANT).read();
                        lanes[lane] = isa::mul_add(minimum, sum, lanes[lane]);
                    }
                }
                logits[t] = isa::f32_reduce_add(isa::f32_load(lanes.as_ptr()));
            }
        }
        logits
    }

    /// The sums of the sub-blocks of one group, in the order of `i32_sum_quads`, offset undone and
    /// sub-scales applied, for every activation row. `at` counts weights from `weights`, a file block,
    /// and `first` activations of a row; `unpacked` holds the sub-scales of Q3_K.
    ///
    /// # Safety
    /// Weights `at .. at + GROUP` are readable, and `activations` prepared for `cols` columns, more than
    /// `first + GROUP`.
    #[inline(always)]
    unsafe fn group(
        weights: *const u8,
        at: usize,
        unpacked: &[[u32; 4]; 2],
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
            if OFFSET == 0 {
                return all;
            }
            for t in 0..TOKENS {
                let offsets = activations.add(t * row_bytes(cols) + sums_at(cols)).cast::<i32>();
                all[t] = isa::i32_sub(all[t], isa::i32_load(offsets.add(first / 16)));
                if SUB_SCALES {
                    let block = weights.add(at / FILE_BLOCK * FILE_BYTES);
                    let unpacked = unpacked[at / FILE_BLOCK % 2].as_ptr().cast();
                    let scales = if FORMAT == 9 { unpacked } else { block.add(192) };
                    let scales = isa::i32_load_quad_i8(scales.add(at % FILE_BLOCK / 16));
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
    #[inline(always)]
    unsafe fn codes(weights: *const u8, at: usize) -> isa::Bytes {
        // SAFETY: the caller's promise.
        unsafe {
            let block = weights.add(at / FILE_BLOCK * FILE_BYTES);
            let (low, at) = (block.add(CODES), at % FILE_BLOCK);
            match FORMAT {
                3 => isa::q8_0_weights(block, at),
                4 => isa::q6_k_codes(block, at),
                5 | 6 => isa::block_nibbles(low, FILE_BYTES, at),
                7 | 8 => {
                    let codes = isa::block_nibbles(low, FILE_BYTES, at);
                    isa::with_block_bits(codes, block.add(FIFTH_BITS), FILE_BYTES, at)
                }
                9 => isa::with_bit_planes(isa::code_planes(low, at), block, at, 4),
                10 => isa::nibble_planes(low, at),
                11 => isa::with_bit_planes(isa::nibble_planes(low, at), block.add(16), at, 16),
                _ => isa::code_planes(low, at),
            }
        }
    }

    /// Sums of 4 products, offset not undone.
    #[inline(always)]
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
    #[inline(always)]
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
    #[inline(always)]
    unsafe fn weight_scales(weights: *const u8) -> isa::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            if FACTORS {
                let (scales, _) = factors(weights);
                let d = file_blocks(weights, 0, 0);
                return isa::f32_mul(d, isa::f32_load_u8(scales.as_ptr().cast()));
            }
            if FILE_BLOCK == 256 { file_blocks(weights, SCALE, 0) } else { of_blocks(weights, 0) }
        }
    }

    /// The minima of the 16 blocks that begin at `weights`.
    ///
    /// # Safety
    /// `weights` is readable for them.
    #[inline(always)]
    unsafe fn weight_minima(weights: *const u8) -> isa::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            if FACTORS {
                let (_, minima) = factors(weights);
                // They are stored as what is subtracted.
                let d = file_blocks(weights, 2, 0x8000);
                return isa::f32_mul(d, isa::f32_load_u8(minima.as_ptr().cast()));
            }
            of_blocks(weights, 2)
        }
    }

    /// The half floats at byte `at` of 16 blocks.
    ///
    /// # Safety
    /// `weights` is readable for them.
    #[inline(always)]
    unsafe fn of_blocks(weights: *const u8, at: usize) -> isa::F32 {
        let mut bits = [0u16; LANES];
        for block in 0..LANES {
            let at = if FORMAT == 13 {
                // Two blocks share a scale, of which a file block has two.
                block / 4 * FILE_BYTES + block % 4 / 2 * 2
            } else {
                block * FILE_BYTES + at
            };
            // SAFETY: the caller's promise.
            bits[block] = unsafe { half(weights.add(at)) };
        }
        // SAFETY: the array holds 16.
        unsafe { isa::f32_load_f16(bits.as_ptr()) }
    }

    /// The half floats at byte `at` of two blocks of 256 weights, each for its 8 blocks of 32, their sign
    /// changed where `sign` is its bit.
    ///
    /// # Safety
    /// `weights` is readable for them.
    #[inline(always)]
    unsafe fn file_blocks(weights: *const u8, at: usize, sign: u16) -> isa::F32 {
        // SAFETY: the caller's promise.
        let [first, second] = unsafe { [half(weights.add(at)), half(weights.add(FILE_BYTES + at))] };
        isa::f32_splat_f16_halves(first ^ sign, second ^ sign)
    }

    /// The bits of a half float.
    ///
    /// # Safety
    /// `ptr` is readable for it.
    #[inline(always)]
    unsafe fn half(ptr: *const u8) -> u16 {
        // SAFETY: the caller's promise.
        unsafe { ptr.cast::<u16>().read_unaligned() }
    }

    /// Three words of a block, from byte `at` on.
    ///
    /// # Safety
    /// `block` is readable for them.
    #[inline(always)]
    unsafe fn words(block: *const u8, at: usize) -> [u32; 3] {
        // SAFETY: the caller's promise.
        unsafe { block.add(at).cast::<[u32; 3]>().read_unaligned() }.map(u32::from_le)
    }

    /// The factors of the scales and of the minima of two blocks of Q4_K or Q5_K, a byte for each 32
    /// weights: 12 bytes hold 8 of each. Of the first 4, the lower 6 bits of bytes 0 to 3 and 4 to 7 are
    /// all; of the others, the nibbles of bytes 8 to 11 are the lower bits, and the upper two of the
    /// bytes before are the upper ones.
    ///
    /// # Safety
    /// `weights` is readable for two blocks.
    #[inline(always)]
    unsafe fn factors(weights: *const u8) -> ([u32; 4], [u32; 4]) {
        const FIRST: u32 = 0x3f3f_3f3f;
        const LOW: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x3030_3030;
        let (mut scales, mut minima) = ([0; 4], [0; 4]);
        for i in 0..2 {
            // SAFETY: the caller's promise.
            let [a, b, c] = unsafe { words(weights.add(i * FILE_BYTES), 4) };
            scales[2 * i] = (a & FIRST).to_le();
            scales[2 * i + 1] = (c & LOW | a >> 2 & HIGH).to_le();
            minima[2 * i] = (b & FIRST).to_le();
            minima[2 * i + 1] = (c >> 4 & LOW | b >> 2 & HIGH).to_le();
        }
        (scales, minima)
    }

    /// The scales of the 16 sub-blocks of two blocks of Q3_K, a byte for each: 12 bytes hold the lower 4
    /// bits of each, plus 32, in the nibbles of the first 8, and the upper two in the others.
    ///
    /// # Safety
    /// `weights` is readable for two blocks.
    #[inline(always)]
    unsafe fn sub_scales(weights: *const u8) -> [[u32; 4]; 2] {
        // SAFETY: the caller's promise.
        unsafe { [block_sub_scales(weights), block_sub_scales(weights.add(FILE_BYTES))] }
    }

    /// [`sub_scales`] of one block.
    ///
    /// # Safety
    /// `block` is readable.
    #[inline(always)]
    unsafe fn block_sub_scales(block: *const u8) -> [u32; 4] {
        const LOW: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x3030_3030;
        const TOP: u32 = 0x8080_8080;
        // SAFETY: the caller's promise.
        let [a, b, c] = unsafe { words(block, 96) };
        let mut scales = [
            a & LOW | c << 4 & HIGH,
            b & LOW | c << 2 & HIGH,
            a >> 4 & LOW | c & HIGH,
            b >> 4 & LOW | c >> 2 & HIGH,
        ];
        for i in 0..4 {
            // 32 less in each byte, which borrows from its top bit alone.
            scales[i] = (((scales[i] | TOP) - 0x2020_2020) ^ TOP).to_le();
        }
        scales
    }

    /// The scale of the block of 32 weights from number `at` of a file block on, and its minimum where
    /// there are minima.
    ///
    /// # Safety
    /// The file block is readable.
    #[inline(always)]
    unsafe fn block_scale(block: *const u8, at: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let own = if FORMAT == 13 { at / 64 * 2 } else { SCALE };
            let scale = isa::f16_to_f32(half(block.add(own)));
            if !MINIMA {
                return (scale, 0.0);
            }
            let minimum = isa::f16_to_f32(half(block.add(2)));
            if !FACTORS {
                return (scale, minimum);
            }
            let [a, b, c] = words(block, 4).map(u32::to_le_bytes);
            let i = at / QUANT;
            let (first, second) = if i < 4 {
                (a[i] & 63, b[i] & 63)
            } else {
                let i = i - 4;
                (c[i] & 15 | a[i] >> 6 << 4, c[i] >> 4 | b[i] >> 6 << 4)
            };
            (scale * f32::from(first), -minimum * f32::from(second))
        }
    }

    /// The integer dot product of one block of 32 weights, sub-scales applied; `at` counts weights
    /// from the file block.
    ///
    /// # Safety
    /// The file block and 32 activations are readable.
    #[inline(always)]
    unsafe fn block_dot(block: *const u8, at: usize, activations: *const i8) -> i32 {
        let mut dot = 0;
        for i in 0..QUANT {
            // SAFETY: the caller's promise.
            unsafe {
                let weight = weight(block, at + i);
                dot += weight * i32::from(activations.add(i).read());
            }
        }
        dot
    }

    /// Weight `i` of a file block, sub-scale applied.
    ///
    /// # Safety
    /// The file block is readable.
    #[inline(always)]
    unsafe fn weight(block: *const u8, i: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe {
            let low = block.add(CODES);
            let l = i % 32;
            // Nibbles of 32 weights, or of 64.
            let small = || low.add(l % 16).read() >> (l / 16 * 4) & 15;
            let nibble = || low.add(i / 64 * 32 + l).read() >> (i % 64 / 32 * 4) & 15;
            let pair = || low.add(i / 128 * 32 + l).read() >> (i % 128 / 32 * 2) & 3;
            let bit = |at: usize| block.add(at + l).read() >> (i / 32) & 1;
            let fifth = || block.add(FIFTH_BITS + l / 8).read() >> (l % 8) & 1;
            let code = match FORMAT {
                3 => return i32::from(low.add(i).cast::<i8>().read()),
                4 => {
                    let (half, t) = (i / 128, i % 128 / 32);
                    let low = low.add(64 * half + 32 * (t % 2) + l).read() >> (4 * (t / 2)) & 15;
                    low | (block.add(128 + 32 * half + l).read() >> (2 * t) & 3) << 4
                }
                5 | 6 => small(),
                7 | 8 => small() | fifth() << 4,
                9 => pair() | bit(0) << 2,
                10 => nibble(),
                11 => nibble() | bit(16) << 4,
                _ => pair(),
            };
            let scale = match FORMAT {
                4 => i32::from(block.add(192 + i / 16).cast::<i8>().read()),
                9 => i32::from(block_sub_scales(block).as_ptr().cast::<i8>().add(i / 16).read()),
                _ => 1,
            };
            (i32::from(code) - OFFSET) * scale
        }
    }
}
