// @generated from templates/src/sketch.rs by bitnet-codegen; do not edit

pub mod sketch_4__scalar__any__r16_c0_n1_u1_p0 {
    //! A scan of a sketch: estimates of logits from a low-bit copy of the lm_head (`SketchFormat`).
    //!
    //! Rows lie in the lanes, as in I2_S: one vector of codes meets broadcast quads of activations, of
    //! one or more tokens, and no sum crosses lanes. Activations are int8 with a scale for each block of 32
    //! columns, as heads of quantised blocks see them. A block gives an exact integer for each row,
    //!
    //! ```text
    //! 2 dot(codes, activations) - (2^BITS - 1) sum(activations)
    //! ```
    //!
    //! whose float is multiplied with the block's two scales and added, fused, to the row's only sum
    //! (`numerics::dot_sketch_row`).
    //!
    //! Two tiles at once, so that a quad of activations is loaded for both, do not pay: 8 tokens' sums of
    //! floats lie in memory then. One core of Zen 5 takes 1.0 to 1.1 times as long from its caches and, with
    //! both streams prefetched, 1.2 times from memory; with one tile's sums in registers 0.95 times and 1.0 to
    //! 1.04. Tokens in two halves, each with two tiles, take 0.985 times as long from the caches and as long
    //! from memory.

    use super::abi::SketchCall;
    use super::isa::scalar as isa;

    /// Bits of a code: 4 or 5.
    const BITS: usize = 4;
    /// Rows in a tile.
    const ROWS: usize = 16;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows per call.
    const TOKENS: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

    /// Columns in a block.
    const WIDTH: usize = 32;
    /// Columns that are added up in one lane: of 16 bits it holds 4 quads, which add at most
    /// 4 * 2 * 31 * 128. Lanes of 32 bits hold a block; one token has two chains of sums all the same.
    const PART: usize = if isa::WIDE && TOKENS > 1 { WIDTH } else { WIDTH / 2 };
    /// Bytes of 4-bit codes in a block, of all its codes, and of the block.
    const NIBBLES: usize = ROWS * WIDTH / 2;
    const CODES: usize = ROWS * WIDTH * BITS / 8;
    const BYTES: usize = CODES + ROWS;
    /// Bytes of 4 columns.
    const GROUP: usize = 4 * ROWS;
    /// Vectors that hold the rows.
    const VECTORS: usize = ROWS / isa::LANES;
    /// True if codes are doubled before they are multiplied, and sums begin with the codes' offset, so that
    /// nothing but a conversion lies between products and floats: 8 tokens take 0.965 times as long from the
    /// caches of one core of Zen 5, 0.98 times from memory. All codes unpacked before the first product: 1.02
    /// times, both. Lanes of 16 bits would not hold the sums, and what one token or two take comes from memory.
    const DOUBLED: bool = isa::WIDE && TOKENS > 2;

    /// Integers of the rows, for every token: where codes are doubled those of a block, else half of what
    /// they are without the codes' offset.
    type Dots = [[isa::I32; VECTORS]; TOKENS];

    /// Computes estimates: see `SketchRunFn`.
    ///
    /// # Safety
    /// See `SketchRunFn`.
    pub unsafe extern "C" fn run(call: &SketchCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let blocks = cols.div_ceil(WIDTH);
        for tile in 0..call.count {
            let mut sums = [isa::f32_splat(0.0); TOKENS];
            // SAFETY: tiles, blocks and rows are within what the contract says.
            unsafe {
                for block in 0..blocks {
                    let at = call.tiles.add((tile * blocks + block) * BYTES);
                    if PREFETCH != 0 {
                        for line in 0..BYTES.div_ceil(64) {
                            isa::prefetch::<1>(at.wrapping_add(PREFETCH + 64 * line));
                        }
                    }
                    let activations = call.activations.cast::<u8>().add(WIDTH * TOKENS * block);
                    let mut dots = [[isa::i32_zero(); VECTORS]; TOKENS];
                    if DOUBLED {
                        for token in 0..TOKENS {
                            let offset = call.offsets.add(block * TOKENS + token).read();
                            dots[token] = [isa::i32_splat(offset); VECTORS];
                        }
                    }
                    add_part::<0>(&mut dots, at, activations);
                    if const { PART < WIDTH } {
                        add_part::<1>(&mut dots, at, activations);
                    }
                    let scale = isa::f32_load_u8(at.add(CODES));
                    for token in 0..TOKENS {
                        let of_block = block * TOKENS + token;
                        let mut twice = dots[token];
                        if !DOUBLED {
                            let offset = isa::i32_splat(call.offsets.add(of_block).read());
                            for v in 0..VECTORS {
                                twice[v] = isa::i32_add(isa::i32_add(twice[v], twice[v]), offset);
                            }
                        }
                        let factor = isa::f32_splat(call.factors.add(of_block).read());
                        let factor = isa::f32_mul(scale, factor);
                        sums[token] = isa::f32_fma(isa::f32_from_i32(twice), factor, sums[token]);
                    }
                }
                let scale = isa::f32_load(call.scales.add(tile * ROWS));
                for token in 0..TOKENS {
                    let scaled = isa::f32_mul(sums[token], scale);
                    let scaled = isa::f32_mul(scaled, isa::f32_splat(call.scale.add(token).read()));
                    isa::f32_store(call.out.add(token * call.stride + tile * ROWS), scaled);
                }
            }
        }
    }

    /// Adds the dot products of a part of a block, those of one vector of rows after those of the other:
    /// sums of both and 8 tokens would not stay in 16 registers.
    ///
    /// # Safety
    /// The block is readable, and so are its activations.
    #[inline(always)]
    unsafe fn add_part<const N: usize>(dots: &mut Dots, block: *const u8, activations: *const u8) {
        let mut activations = activations;
        for v in 0..VECTORS {
            let mut sums = [isa::acc_zero(); TOKENS];
            if DOUBLED {
                for token in 0..TOKENS {
                    sums[token] = isa::acc_start(dots[token][v]);
                }
            }
            // SAFETY: as the caller's.
            unsafe {
                let rows = block.add(v * 4 * isa::LANES);
                let bits = if BITS == 5 { isa::load(rows.add(NIBBLES)) } else { isa::bytes_zero() };
                for g in 0..PART / 8 {
                    let packed = isa::load(rows.add((N * PART / 8 + g) * GROUP));
                    for nibble in 0..2 {
                        let step = N * PART / 4 + 2 * g + nibble;
                        let mut codes = isa::nibble_codes(packed, nibble, DOUBLED);
                        if BITS == 5 {
                            codes = isa::with_bit(codes, bits, step, DOUBLED);
                        }
                        for token in 0..TOKENS {
                            let quad = activations.add(4 * (step * TOKENS + token));
                            sums[token] = isa::dot(sums[token], codes, isa::broadcast4(quad));
                        }
                    }
                }
            }
            for token in 0..TOKENS {
                let sum = isa::widen(sums[token]);
                dots[token][v] = if DOUBLED { sum } else { isa::i32_add(dots[token][v], sum) };
            }
            if const { VECTORS > 1 && TOKENS > 1 } {
                isa::in_turn(sums[TOKENS - 1], &mut [], &mut activations);
            }
        }
    }
}
