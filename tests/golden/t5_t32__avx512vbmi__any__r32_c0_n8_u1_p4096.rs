// @generated from templates/src/t5.rs by bitnet-codegen; do not edit

pub mod t5_t32__avx512vbmi__any__r32_c0_n8_u1_p4096 {
    //! T5: a byte stands for five weights, from which it gives 2-bit codes 0, 1, 2, multiplied as in
    //! the `i2_s` template. That reads a fifth less memory.
    //!
    //! Rows lie in the lanes: a unit of 20 columns holds 4 bytes for each row of the tile, which stand
    //! for the columns `0..4`, `4..8` and so on of the unit. Five codes have 243 values, and the byte is
    //! chosen so that two lookups by its low 6 bits, of which the second counts where there was no room
    //! for the first (its top bits are both set), give four codes as `i2_s` has them in a byte; the
    //! fifth is in the top bits already, or likewise looked up. As codes are one more than weights,
    //!
    //! ```text
    //! dot(weights, q) = dot(codes, q) - sum(q)
    //! ```
    //!
    //! with `sum(q)` computed once per activation row by `prepare`. Decode does not shift the codes
    //! down: the sums of a field at bit `2f` come out times `4^f`, exactly, and are shifted once at the
    //! end. Prefill shifts them, and shares all unpacking among its activation rows.
    //!
    //! A prepared group is laid out as `quads` says.

    use super::abi::{Call, Prepare};
    use super::isa::avx512vbmi as isa;
    use super::quads;
    use super::trits::{TABLES, place};

    /// Rows in a packed tile.
    const TILE: usize = 32;
    /// Rows per step, a multiple of `TILE`.
    const ROWS: usize = 32;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows per call.
    const TOKENS: usize = 8;
    /// Units per iteration.
    const UNROLL: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 4096;

    /// Columns in a unit.
    const UNIT: usize = 20;
    /// Codes in a byte.
    const FIELDS: usize = 5;
    /// Vectors that hold the sums of a step for one activation row.
    const VECTORS: usize = ROWS / isa::LANES;
    /// Whether codes stay where they are in their byte.
    const IN_PLACE: bool = TOKENS == 1;
    /// Independent sums per vector and activation row: `vpdpbusd` takes 4 to 5 cycles, so one chain
    /// per field and unrolled unit keeps it busy.
    const CHAINS: usize = if IN_PLACE { FIELDS * UNROLL } else { 1 };
    /// Bytes before the columns of a prepared group.
    const HEADER: usize = quads::header(TOKENS);

    /// The accumulators of a step.
    type Sums = [[[isa::Acc; CHAINS]; VECTORS]; TOKENS];

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        quads::bytes(cols, UNIT, TOKENS)
    }

    /// Lays out one group of activation rows.
    ///
    /// # Safety
    /// See `PrepareFn`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
    pub unsafe extern "C" fn prepare(prepare: &Prepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        // SAFETY: the scratch holds whole units of columns for TOKENS rows, and rows below `tokens` are
        // readable for `cols` bytes (the contract of PrepareFn).
        unsafe { quads::lay_out::<UNIT, TOKENS>(prepare, cols) }
    }

    /// Multiplies: see `RunFn`.
    ///
    /// # Safety
    /// See `RunFn`.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
    pub unsafe extern "C" fn run(call: &Call) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let units = cols.div_ceil(UNIT);
        let tables = isa::tables(&TABLES);
        for step in 0..call.steps {
            // SAFETY: the matrix holds `steps` steps, the prepared group whole units of columns, and
            // the output ROWS elements per step and activation row (the contract of RunFn).
            unsafe {
                let weights = call.weights.add(step * units * 4 * ROWS);
                let quads = call.activations.add(HEADER);
                let mut sums: Sums = [[[isa::acc_zero(); CHAINS]; VECTORS]; TOKENS];
                let mut unit = 0;
                while unit + UNROLL <= units {
                    for u in 0..UNROLL {
                        add_unit(&mut sums, weights, units, quads, &tables, unit + u, u);
                    }
                    unit += UNROLL;
                }
                while UNROLL > 1 && unit < units {
                    add_unit(&mut sums, weights, units, quads, &tables, unit, 0);
                    unit += 1;
                }
                for token in 0..TOKENS {
                    let sum = isa::i32_splat(call.activations.cast::<i32>().add(token).read());
                    for vector in 0..VECTORS {
                        let row = step * ROWS + vector * isa::LANES;
                        let out = call.out.add(token * call.out_stride + row);
                        let mut total = isa::i32_zero();
                        for chain in 0..CHAINS {
                            let wide = isa::widen(sums[token][vector][chain]);
                            let field = if IN_PLACE { place(chain % FIELDS).1 } else { 0 };
                            total = isa::i32_add(total, isa::i32_unscale(wide, field));
                        }
                        isa::i32_store(out, isa::i32_sub(total, sum));
                    }
                }
            }
        }
    }

    /// Adds the products of one unit of every tile of the step; `chain` numbers the unrolled units.
    ///
    /// # Safety
    /// `weights` holds a step of `units` units, `quads` as many units of activations; `unit < units`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
    unsafe fn add_unit(
        sums: &mut Sums,
        weights: *const u8,
        units: usize,
        quads: *const u8,
        tables: &isa::Tables,
        unit: usize,
        chain: usize,
    ) {
        let mut packed = [[isa::bytes_zero(); 2]; VECTORS];
        for vector in 0..VECTORS {
            let row = vector * isa::LANES;
            // SAFETY: tile `row / TILE` of the step is `units` units of TILE * 4 bytes.
            unsafe {
                let tile = weights.add(row / TILE * units * TILE * 4);
                let lanes = tile.add(unit * TILE * 4 + row % TILE * 4);
                packed[vector] = isa::spread(isa::load(lanes), tables);
                if PREFETCH != 0 {
                    isa::prefetch(lanes.wrapping_add(PREFETCH));
                }
            }
        }
        for field in 0..FIELDS {
            let (half, place) = place(field);
            let mut codes = [isa::bytes_zero(); VECTORS];
            for vector in 0..VECTORS {
                codes[vector] = if IN_PLACE {
                    isa::codes_in_place(packed[vector][half], place)
                } else {
                    isa::codes(packed[vector][half], place)
                };
            }
            for token in 0..TOKENS {
                // SAFETY: a unit of activations is FIELDS quads of TOKENS rows.
                let quad = unsafe {
                    isa::broadcast4(quads.add(((unit * FIELDS + field) * TOKENS + token) * 4))
                };
                for vector in 0..VECTORS {
                    let chain = if IN_PLACE { chain * FIELDS + field } else { 0 };
                    let sum = &mut sums[token][vector][chain];
                    *sum = isa::dot(*sum, codes[vector], quad);
                }
            }
        }
    }
}
