// @generated from templates/src/blocks.rs by bitnet-codegen; do not edit

pub mod blocks_64_t16__scalar__any__r16_c0_n1_u1_p0 {
    //! Ternary matrices with a scale for each block of columns (`BlockLayout`): products as floats.
    //!
    //! Rows lie in the lanes, and codes in units of 16 columns, as in I2_S; the scales of a tile's rows for a
    //! block stand behind the block's codes, so that a tile is one stream. Activations are int8 with a scale
    //! for each block as well. A block gives an exact integer for each row,
    //!
    //! ```text
    //! dot(codes, q) - sum(q)
    //! ```
    //!
    //! whose float is multiplied with the product of both scales and added, fused, to the row's only sum,
    //! block by block (`numerics::dot_scaled_blocks`). Code 3 is a weight of +2.
    //!
    //! A prepared group is, for each block, `-sum(q)` of every activation row as i32, then as many scales as
    //! f32, each padded to 64 bytes; then, for every 4 columns, the 4 bytes of each activation row in turn.

    use super::abi::{BlockCall, BlockPrepare};
    use super::isa::scalar as isa;

    /// Rows in a packed tile, a multiple of 16.
    const TILE: usize = 16;
    /// Rows per step: those of the tile.
    const ROWS: usize = 16;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Columns of a block.
    const WIDTH: usize = 64;
    /// Activation rows per call.
    const TOKENS: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

    /// Columns in a unit.
    const UNIT: usize = 16;
    /// Codes in a byte.
    const FIELDS: usize = 4;
    /// Rows whose sums are one vector of 16 floats.
    const LANES: usize = 16;
    /// Such groups of rows in a step.
    const GROUPS: usize = ROWS / LANES;
    /// Vectors of integers that hold the sums of a group.
    const VECTORS: usize = LANES / isa::LANES;
    /// True if codes stay where they are in their byte: see the template `i2_s`.
    const IN_PLACE: bool = isa::WIDE && TOKENS == 1;
    /// Independent sums per vector and activation row.
    const CHAINS: usize = if IN_PLACE { FIELDS } else { 1 };
    /// Columns that are added up in one lane: of 16 bits it holds 42 sums of 4 columns, each of which adds at
    /// most 2 * 3 * 128.
    const PART: usize = if isa::WIDE || WIDTH < 128 { WIDTH } else { 128 };
    /// Bytes of a unit, and of a block of the tile with its scales.
    const UNIT_BYTES: usize = TILE * UNIT / FIELDS;
    const BLOCK_BYTES: usize = WIDTH / UNIT * UNIT_BYTES + 2 * TILE;
    /// Bytes of the sums or scales of a prepared group for so many blocks.
    const fn header(blocks: usize) -> usize {
        (blocks * TOKENS * 4).next_multiple_of(64)
    }

    /// Integers of a group of rows, for every activation row.
    type Dots = [[isa::I32; VECTORS]; TOKENS];
    /// Sums of a part of a block.
    type Sums = [[[isa::Acc; CHAINS]; VECTORS]; TOKENS];

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        2 * header(cols / WIDTH) + cols * TOKENS
    }

    /// Lays out one group of activation rows.
    ///
    /// # Safety
    /// See `BlockPrepareFn`.
    pub unsafe extern "C" fn prepare(prepare: &BlockPrepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        let blocks = cols / WIDTH;
        // SAFETY: the scratch holds both headers and all columns for TOKENS rows, and rows below `tokens`
        // are readable for `cols` bytes and their scales (the contract of BlockPrepareFn).
        unsafe {
            let offsets = prepare.scratch.cast::<i32>();
            let scales = prepare.scratch.add(header(blocks)).cast::<f32>();
            let quads = prepare.scratch.add(2 * header(blocks));
            for token in 0..TOKENS {
                let there = token < prepare.tokens;
                let row = prepare.quantised.wrapping_add(token * prepare.stride);
                for block in 0..blocks {
                    let at = block * TOKENS + token;
                    let (mut sum, mut scale) = (0, 0.0);
                    if there {
                        for col in 0..WIDTH {
                            sum += i32::from(row.add(block * WIDTH + col).read());
                        }
                        scale = prepare.scales.add(token * blocks + block).read();
                    }
                    offsets.add(at).write(-sum);
                    scales.add(at).write(scale);
                }
                for quad in 0..cols / 4 {
                    let four = if there {
                        row.add(4 * quad).cast::<[i8; 4]>().read_unaligned()
                    } else {
                        [0; 4]
                    };
                    quads.add(4 * (quad * TOKENS + token)).cast::<[i8; 4]>().write_unaligned(four);
                }
            }
        }
    }

    /// Multiplies: see `BlockRunFn`.
    ///
    /// # Safety
    /// See `BlockRunFn`.
    pub unsafe extern "C" fn run(call: &BlockCall) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let blocks = cols / WIDTH;
        for step in 0..call.steps {
            // SAFETY: the matrix holds `steps` tiles, the prepared group all blocks of columns, and the
            // output ROWS elements per step and activation row (the contract of BlockRunFn).
            unsafe {
                let offsets = call.activations.cast::<i32>();
                let scales = call.activations.add(header(blocks)).cast::<f32>();
                let quads = call.activations.add(2 * header(blocks));
                let mut sums = [[isa::f32_splat(0.0); TOKENS]; GROUPS];
                for block in 0..blocks {
                    let at = call.weights.add((step * blocks + block) * BLOCK_BYTES);
                    if PREFETCH != 0 {
                        for line in 0..BLOCK_BYTES.div_ceil(64) {
                            isa::prefetch(at.wrapping_add(PREFETCH + 64 * line));
                        }
                    }
                    let quads = quads.add(block * WIDTH * TOKENS);
                    for group in 0..GROUPS {
                        let mut dots = [[isa::i32_zero(); VECTORS]; TOKENS];
                        for token in 0..TOKENS {
                            let offset = offsets.add(block * TOKENS + token).read();
                            dots[token] = [isa::i32_splat(offset); VECTORS];
                        }
                        let mut first = 0;
                        while first < WIDTH {
                            add_part(&mut dots, at, group, first, quads);
                            first += PART;
                        }
                        let own = at.add(WIDTH / UNIT * UNIT_BYTES).cast::<u16>().add(group * LANES);
                        let own = isa::f32_load_f16(own);
                        for token in 0..TOKENS {
                            let scale = isa::f32_splat(scales.add(block * TOKENS + token).read());
                            let scale = isa::f32_mul(own, scale);
                            let dot = isa::f32_from_i32(dots[token]);
                            let sum = &mut sums[group][token];
                            *sum = isa::f32_fma(dot, scale, *sum);
                        }
                    }
                }
                for token in 0..TOKENS {
                    for group in 0..GROUPS {
                        let row = step * ROWS + group * LANES;
                        let out = call.out.add(token * call.out_stride + row);
                        isa::f32_store(out, sums[group][token]);
                    }
                }
            }
        }
    }

    /// Adds the dot products of a part of a block, of one group of rows.
    ///
    /// # Safety
    /// The block is readable, and so are its activations.
    #[inline(always)]
    unsafe fn add_part(
        dots: &mut Dots,
        block: *const u8,
        group: usize,
        first: usize,
        quads: *const u8,
    ) {
        let mut sums: Sums = [[[isa::acc_zero(); CHAINS]; VECTORS]; TOKENS];
        if isa::WIDE {
            for token in 0..TOKENS {
                for vector in 0..VECTORS {
                    sums[token][vector][0] = isa::acc_start(dots[token][vector]);
                }
            }
        }
        for unit in first / UNIT..(first + PART) / UNIT {
            let mut packed = [isa::bytes_zero(); VECTORS];
            for vector in 0..VECTORS {
                let row = group * LANES + vector * isa::LANES;
                // SAFETY: a unit is 4 bytes for each row of the tile.
                packed[vector] = unsafe { isa::load(block.add(unit * UNIT_BYTES + 4 * row)) };
            }
            // SAFETY: a unit of activations is FIELDS quads of TOKENS rows.
            unsafe {
                let mut quads = quads.add(unit * UNIT * TOKENS);
                add_field(&mut sums, &mut packed, &mut quads, 0);
                add_field(&mut sums, &mut packed, &mut quads, 1);
                add_field(&mut sums, &mut packed, &mut quads, 2);
                add_field(&mut sums, &mut packed, &mut quads, 3);
            }
        }
        for token in 0..TOKENS {
            for vector in 0..VECTORS {
                let mut total = if isa::WIDE { isa::i32_zero() } else { dots[token][vector] };
                for chain in 0..CHAINS {
                    let wide = isa::widen(sums[token][vector][chain]);
                    total = isa::i32_add(total, isa::i32_unscale(wide, chain));
                }
                dots[token][vector] = total;
            }
        }
    }

    /// Adds the products of one field of a unit.
    ///
    /// # Safety
    /// `quads` holds a unit of activations; `field < FIELDS`.
    #[inline(always)]
    unsafe fn add_field(
        sums: &mut Sums,
        packed: &mut [isa::Bytes; VECTORS],
        quads: &mut *const u8,
        field: usize,
    ) {
        let mut codes = *packed;
        for vector in 0..VECTORS {
            codes[vector] = if IN_PLACE {
                isa::codes_in_place(packed[vector], field)
            } else {
                isa::codes(packed[vector], field)
            };
        }
        for token in 0..TOKENS {
            // SAFETY: the caller's promise.
            let quad = unsafe { isa::broadcast4(quads.add((field * TOKENS + token) * 4)) };
            for vector in 0..VECTORS {
                let sum = &mut sums[token][vector][if IN_PLACE { field } else { 0 }];
                *sum = isa::dot(*sum, codes[vector], quad);
            }
        }
        // As in the template `i2_s`: sums of 16 bits take two instructions.
        if !isa::WIDE && TOKENS > 1 {
            isa::in_turn(sums[TOKENS - 1][VECTORS - 1][0], packed, quads);
        }
    }
}
