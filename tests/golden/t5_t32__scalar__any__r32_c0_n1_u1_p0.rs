// @generated from templates/src/t5.rs by bitnet-codegen; do not edit

pub mod t5_t32__scalar__any__r32_c0_n1_u1_p0 {
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
    use super::isa::scalar as isa;
    use super::quads;
    use super::trits::{CHANGES, TABLES, place};

    /// Rows in a packed tile.
    const TILE: usize = 32;
    /// Rows per step, a multiple of `TILE`.
    const ROWS: usize = 32;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Activation rows per call.
    const TOKENS: usize = 1;
    /// Units per iteration.
    const UNROLL: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

    /// Columns in a unit.
    const UNIT: usize = 20;
    /// Codes in a byte.
    const FIELDS: usize = 5;
    /// Vectors that hold the sums of a step for one activation row.
    const VECTORS: usize = ROWS / isa::LANES;
    /// True if codes stay where they are in their byte.
    const IN_PLACE: bool = TOKENS == 1;
    /// Independent sums per vector and activation row: one for each field where it stays in its place.
    const CHAINS: usize = if IN_PLACE { FIELDS } else { 1 };
    /// True if a unit is looked up while the one before it is multiplied, so that no product waits for a
    /// load, a comparison and two permutes: one core of Zen 5 then does 60 GB/s of weights in its L2 cache
    /// instead of 54, where 14 vector instructions for 64 bytes could do 71. A comparison takes the ports of
    /// permutes and products; a 7-bit index for `vpermi2b` in its place costs as much. For 8 tokens there
    /// are too few registers: 0.91 times as fast.
    const AHEAD: bool = IN_PLACE;
    /// True if codes are looked up with masks: fewer instructions, and 1.05 times the weights a second from the
    /// L2 cache of Zen 5 for one token; for 8 tokens, where products take the time, lookups that merge into
    /// what is there hold them up, and 0.97 times.
    const MASKED: bool = TOKENS == 1;
    /// Bytes before the columns of a prepared group.
    const HEADER: usize = quads::header(TOKENS);

    /// The accumulators of a step.
    type Sums = [[[isa::Acc; CHAINS]; VECTORS]; TOKENS];
    /// A unit of the step's rows, as `spread` gives it.
    type Unit = [[isa::Bytes; 2]; VECTORS];

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        quads::bytes(cols, UNIT, TOKENS)
    }

    /// Lays out one group of activation rows.
    ///
    /// # Safety
    /// See `PrepareFn`.
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
    pub unsafe extern "C" fn run(call: &Call) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let units = cols.div_ceil(UNIT);
        let tables = isa::tables(if MASKED { &TABLES } else { &CHANGES });
        for step in 0..call.steps {
            // SAFETY: the matrix holds `steps` steps, the prepared group whole units of columns, and
            // the output ROWS elements per step and activation row (the contract of RunFn).
            unsafe {
                let weights = call.weights.add(step * units * 4 * ROWS);
                let quads = call.activations.add(HEADER);
                let mut sums: Sums = [[[isa::acc_zero(); CHAINS]; VECTORS]; TOKENS];
                let mut ahead = [[isa::bytes_zero(); 2]; VECTORS];
                if AHEAD && units > 0 {
                    ahead = look_up(weights, units, 0, &tables);
                }
                let mut unit = 0;
                while unit + UNROLL <= units {
                    for u in 0..UNROLL {
                        add_unit(&mut sums, &mut ahead, weights, units, quads, &tables, unit + u);
                    }
                    unit += UNROLL;
                }
                while UNROLL > 1 && unit < units {
                    add_unit(&mut sums, &mut ahead, weights, units, quads, &tables, unit);
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
                            let field = if IN_PLACE { place(chain).1 } else { 0 };
                            total = isa::i32_add(total, isa::i32_unscale(wide, field));
                        }
                        isa::i32_store(out, isa::i32_sub(total, sum));
                    }
                }
            }
        }
    }

    /// Looks a unit of every tile of the step up.
    ///
    /// # Safety
    /// `weights` holds a step of `units` units; `unit < units`.
    #[inline(always)]
    unsafe fn look_up(weights: *const u8, units: usize, unit: usize, tables: &isa::Tables) -> Unit {
        let mut packed = [[isa::bytes_zero(); 2]; VECTORS];
        for vector in 0..VECTORS {
            let row = vector * isa::LANES;
            // SAFETY: tile `row / TILE` of the step is `units` units of TILE * 4 bytes.
            unsafe {
                let tile = weights.add(row / TILE * units * TILE * 4);
                let lanes = tile.add(unit * TILE * 4 + row % TILE * 4);
                let bytes = isa::load(lanes);
                packed[vector] = if MASKED {
                    isa::spread(bytes, tables)
                } else {
                    isa::spread_unmasked(bytes, tables)
                };
                if PREFETCH != 0 {
                    isa::prefetch::<1>(lanes.wrapping_add(PREFETCH));
                }
            }
        }
        packed
    }

    /// Adds the products of one unit of every tile of the step, which is in `ahead` where units are looked
    /// up ahead, and the next one afterwards.
    ///
    /// # Safety
    /// `weights` holds a step of `units` units, `quads` as many units of activations; `unit < units`.
    #[inline(always)]
    unsafe fn add_unit(
        sums: &mut Sums,
        ahead: &mut Unit,
        weights: *const u8,
        units: usize,
        quads: *const u8,
        tables: &isa::Tables,
        unit: usize,
    ) {
        let packed = if AHEAD {
            let packed = *ahead;
            // SAFETY: the caller's promise; behind the last unit is that again.
            *ahead = unsafe { look_up(weights, units, (unit + 1).min(units - 1), tables) };
            packed
        } else {
            // SAFETY: the caller's promise.
            unsafe { look_up(weights, units, unit, tables) }
        };
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
                    let chain = if IN_PLACE { field } else { 0 };
                    let sum = &mut sums[token][vector][chain];
                    *sum = isa::dot(*sum, codes[vector], quad);
                }
            }
        }
    }
}
