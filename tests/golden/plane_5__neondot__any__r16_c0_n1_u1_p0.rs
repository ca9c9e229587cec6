// @generated from templates/src/plane.rs by bitnet-codegen; do not edit

pub mod plane_5__neondot__any__r16_c0_n1_u1_p0 {
    //! A scan of a plane: estimates of logits from a low-bit copy of the lm_head (`PlaneFormat`).
    //!
    //! Rows lie in the lanes, as in I2_S: one vector of codes meets broadcast quads of activations, and
    //! no sum crosses lanes. Activations are integers of 16 bits, a high and a low byte, so that the
    //! estimate is as good as the codes are: each vector of codes is multiplied twice. A block of 32
    //! columns gives an exact integer for each row,
    //!
    //! ```text
    //! 2 dot(codes, activations) - (2^BITS - 1) sum(activations)
    //! ```
    //!
    //! whose float is multiplied with the block's scale and added, fused, to the row's only sum
    //! (`numerics::dot_plane_row`).

    use super::abi::PlaneCall;
    use super::isa::neondot as isa;

    /// Bits of a code: 4 or 5.
    const BITS: usize = 5;
    /// Rows in a tile.
    const ROWS: usize = 16;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

    /// Columns in a block, and in each of its two parts, after which sums of 16 bits are widened: 4
    /// quads add at most 4 * 2 * 31 * 128 to a lane.
    const WIDTH: usize = 32;
    const PART: usize = 16;
    /// Bytes of 4-bit codes in a block, of all its codes, and of the block.
    const NIBBLES: usize = ROWS * WIDTH / 2;
    const CODES: usize = ROWS * WIDTH * BITS / 8;
    const BYTES: usize = CODES + ROWS;
    /// Bytes of 4 columns.
    const GROUP: usize = 4 * ROWS;
    /// Vectors that hold the rows.
    const VECTORS: usize = ROWS / isa::LANES;

    /// Computes estimates: see `PlaneRunFn`.
    ///
    /// # Safety
    /// See `PlaneRunFn`.
    #[target_feature(enable = "neon,dotprod")]
    pub unsafe extern "C" fn run(call: &PlaneCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let blocks = cols.div_ceil(WIDTH);
        for tile in 0..call.count {
            let mut sum = isa::f32_splat(0.0);
            // SAFETY: tiles, blocks and rows are within what the contract says.
            unsafe {
                for block in 0..blocks {
                    let at = call.tiles.add((tile * blocks + block) * BYTES);
                    if PREFETCH != 0 {
                        for line in 0..BYTES.div_ceil(64) {
                            isa::prefetch(at.wrapping_add(PREFETCH + 64 * line));
                        }
                    }
                    let high = call.high.cast::<u8>().add(WIDTH * block);
                    let low = call.low.cast::<u8>().add(WIDTH * block);
                    let first = part::<0>(at, high, low);
                    let second = part::<1>(at, high, low);
                    let offset = isa::i32_splat(call.offsets.add(block).read());
                    let mut dots = [isa::i32_zero(); VECTORS];
                    for v in 0..VECTORS {
                        let high = isa::i32_add(first[0][v], second[0][v]);
                        let low = isa::i32_add(first[1][v], second[1][v]);
                        let low = isa::i32_sub(isa::i32_add(low, low), offset);
                        dots[v] = isa::i32_add(isa::i32_mul(high, isa::i32_splat(512)), low);
                    }
                    let scale = isa::f32_load_u8(at.add(CODES));
                    sum = isa::f32_fma(isa::f32_from_i32(dots), scale, sum);
                }
                let scaled = isa::f32_mul(sum, isa::f32_load(call.scales.add(tile * ROWS)));
                let scaled = isa::f32_mul(scaled, isa::f32_splat(call.scale));
                isa::f32_store(call.out.add(tile * ROWS), scaled);
            }
        }
    }

    /// The dot products of 16 columns of a block with the high and the low bytes.
    ///
    /// # Safety
    /// The block is readable, and so are 32 activations each.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn part<const N: usize>(
        block: *const u8,
        high: *const u8,
        low: *const u8,
    ) -> [[isa::I32; VECTORS]; 2] {
        let mut sums = [[isa::acc_zero(); VECTORS]; 2];
        // SAFETY: as the caller's.
        unsafe {
            let mut bits = [isa::bytes_zero(); VECTORS];
            if BITS == 5 {
                for v in 0..VECTORS {
                    bits[v] = isa::load(block.add(NIBBLES + v * 4 * isa::LANES));
                }
            }
            for g in 0..PART / 8 {
                let group = block.add((N * PART / 8 + g) * GROUP);
                for nibble in 0..2 {
                    let step = N * PART / 4 + 2 * g + nibble;
                    let (high, low) =
                        (isa::broadcast4(high.add(4 * step)), isa::broadcast4(low.add(4 * step)));
                    for v in 0..VECTORS {
                        let packed = isa::load(group.add(v * 4 * isa::LANES));
                        let mut codes = isa::nibble_codes(packed, nibble);
                        if BITS == 5 {
                            codes = isa::with_bit(codes, bits[v], step);
                        }
                        sums[0][v] = isa::dot(sums[0][v], codes, high);
                        sums[1][v] = isa::dot(sums[1][v], codes, low);
                    }
                }
            }
        }
        let mut wide = [[isa::i32_zero(); VECTORS]; 2];
        for half in 0..2 {
            for v in 0..VECTORS {
                wide[half][v] = isa::widen(sums[half][v]);
            }
        }
        wide
    }
}
