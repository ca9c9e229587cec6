// @generated from templates/src/tl2.rs by bitnet-codegen; do not edit

pub mod tl2_t32__scalar__any__r32_c240_n1_u1_p0 {
    //! TL2: a 4-bit index and a sign stand for three weights, and a table for what they add.
    //!
    //! Three ternary weights a, b, c of neighbouring columns take the values -13 to 13 of
    //! `9a + 3b + c`; as a triple and its negative differ in sign only, a table of 13 magnitudes and a
    //! zero serves all 27. `prepare` makes, for each triple of columns with activations p, q, r, the
    //! table of `a p + b q + c r` at each magnitude; a kernel looks up, negates and adds. As a tile
    //! holds its 32 rows side by side, one lookup serves them all, and no sum ever crosses lanes:
    //!
    //! ```text
    //! sums[row] += sign of row, triple j * table of triple j [magnitude of row, triple j]
    //! ```
    //!
    //! A triple reaches +-384, so sums stay in 16 bits for a block of columns and are then widened.
    //! Indices are taken out of their bytes once for all activation rows.
    //!
    //! A prepared group is, for each triple of columns, the table of each activation row in turn;
    //! columns are padded with zeros to whole units.

    use super::abi::{Call, Prepare};
    use super::isa::scalar as isa;

    /// Rows in a packed tile.
    const TILE: usize = 32;
    /// Rows per step, a multiple of `TILE`.
    const ROWS: usize = 32;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Columns after which sums are widened.
    const BLOCK: usize = 240;
    /// Activation rows per call.
    const TOKENS: usize = 1;
    /// Units per iteration.
    const UNROLL: usize = 1;
    /// Bytes ahead to prefetch; 0: none.
    const PREFETCH: usize = 0;

    /// Columns in a unit.
    const UNIT: usize = 24;
    /// Triples of columns in a unit.
    const TRIPLES: usize = UNIT / 3;
    /// Bytes of the magnitudes in a unit of a tile; the signs follow.
    const MAGNITUDE_BYTES: usize = TRIPLES / 2 * TILE;
    /// Bytes of a unit of a tile.
    const UNIT_BYTES: usize = MAGNITUDE_BYTES + TILE;
    /// Tiles in a step.
    const TILES: usize = ROWS / TILE;
    /// Entries of a table; 14 are used.
    const ENTRIES: usize = 16;
    /// Factor of each of the three activations in each entry: -1, 0 or +1.
    const COEFFICIENTS: [[i16; ENTRIES]; 3] = coefficients();

    /// The accumulators of a step.
    type Sums = [[isa::I16; TILES]; TOKENS];

    const fn coefficients() -> [[i16; ENTRIES]; 3] {
        let mut out = [[0; ENTRIES]; 3];
        let mut magnitude = 1;
        while magnitude <= 13 {
            // The balanced ternary digits of the magnitude, from the last.
            let mut rest = magnitude as i16;
            let mut digit = 3;
            while digit > 0 {
                digit -= 1;
                out[digit][magnitude] = (rest + 1) % 3 - 1;
                rest = (rest + 1) / 3;
            }
            magnitude += 1;
        }
        out
    }

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        cols.div_ceil(UNIT) * TRIPLES * TOKENS * isa::TABLE16_BYTES
    }

    /// Lays out the tables of one group of activation rows.
    ///
    /// # Safety
    /// See `PrepareFn`.
    pub unsafe extern "C" fn prepare(prepare: &Prepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        for token in 0..TOKENS {
            let row = prepare.quantised.wrapping_add(token * prepare.stride);
            // Columns beyond the row, and rows beyond the group, count as zero.
            let filled = if token < prepare.tokens { cols } else { 0 };
            for triple in 0..cols.div_ceil(UNIT) * TRIPLES {
                let col = triple * 3;
                // SAFETY: only columns of row `token` are read (the contract of PrepareFn); the
                // scratch holds tables for whole units and TOKENS rows.
                unsafe {
                    let mut bytes = [0i8; 3];
                    if col + 3 <= filled {
                        bytes = row.add(col).cast::<[i8; 3]>().read();
                    } else if col < filled {
                        row.add(col).copy_to_nonoverlapping(bytes.as_mut_ptr(), filled - col);
                    }
                    let at = (triple * TOKENS + token) * isa::TABLE16_BYTES;
                    isa::table16_store(prepare.scratch.add(at), bytes, &COEFFICIENTS);
                }
            }
        }
    }

    /// Multiplies: see `RunFn`.
    ///
    /// # Safety
    /// See `RunFn`.
    pub unsafe extern "C" fn run(call: &Call) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let units = cols.div_ceil(UNIT);
        for step in 0..call.steps {
            // SAFETY: the matrix holds `steps` steps, the prepared group whole units of tables, and
            // the output ROWS elements per step and activation row (the contract of RunFn).
            unsafe {
                let weights = call.weights.add(step * TILES * units * UNIT_BYTES);
                let mut totals = [[[isa::i32_zero(); TILE / isa::LANES]; TILES]; TOKENS];
                let mut unit = 0;
                while unit < units {
                    let end = units.min(unit + BLOCK / UNIT);
                    let mut sums: Sums = [[isa::i16_zero(); TILES]; TOKENS];
                    for _ in 0..(end - unit) / UNROLL {
                        for u in 0..UNROLL {
                            add_unit(&mut sums, weights, units, call.activations, unit + u);
                        }
                        unit += UNROLL;
                    }
                    while UNROLL > 1 && unit < end {
                        add_unit(&mut sums, weights, units, call.activations, unit);
                        unit += 1;
                    }
                    for token in 0..TOKENS {
                        for tile in 0..TILES {
                            let total = &mut totals[token][tile];
                            *total = isa::widen_add(*total, sums[token][tile]);
                        }
                    }
                }
                for token in 0..TOKENS {
                    for tile in 0..TILES {
                        let row = step * ROWS + tile * TILE;
                        let out = call.out.add(token * call.out_stride + row);
                        for part in 0..TILE / isa::LANES {
                            isa::i32_store(out.add(part * isa::LANES), totals[token][tile][part]);
                        }
                    }
                }
            }
        }
    }

    /// Adds what one unit of every tile of the step looks up.
    ///
    /// # Safety
    /// `weights` holds a step of `units` units, `tables` as many units of tables; `unit < units`.
    #[inline(always)]
    unsafe fn add_unit(
        sums: &mut Sums,
        weights: *const u8,
        units: usize,
        tables: *const u8,
        unit: usize,
    ) {
        let mut signs = [isa::signs_zero(); TILES];
        for tile in 0..TILES {
            // SAFETY: each tile of the step is `units` units.
            unsafe {
                let bytes = weights.add((tile * units + unit) * UNIT_BYTES);
                signs[tile] = isa::signs_load(bytes.add(MAGNITUDE_BYTES));
                if PREFETCH != 0 {
                    for line in 0..UNIT_BYTES.div_ceil(64) {
                        isa::prefetch::<1>(bytes.wrapping_add(PREFETCH + 64 * line));
                    }
                }
            }
        }
        let mut indices = [isa::indices_zero(); TILES];
        // From the last triple to the first, as signs come from the top.
        for group in (0..TRIPLES / 2).rev() {
            for which in [1, 0] {
                for tile in 0..TILES {
                    // SAFETY: as above; a group is TILE bytes.
                    unsafe {
                        let bytes = weights.add((tile * units + unit) * UNIT_BYTES + group * TILE);
                        indices[tile] = isa::nibble(isa::nibbles_load(bytes), which);
                    }
                }
                let triple = unit * TRIPLES + group * 2 + which;
                for token in 0..TOKENS {
                    let at = (triple * TOKENS + token) * isa::TABLE16_BYTES;
                    // SAFETY: a unit of tables is TRIPLES times TOKENS.
                    let table = unsafe { isa::table16_load(tables.add(at)) };
                    for tile in 0..TILES {
                        let found = isa::lookup16(table, indices[tile]);
                        let sum = &mut sums[token][tile];
                        *sum = isa::i16_add(*sum, isa::i16_negate(found, signs[tile]));
                    }
                }
                for tile in 0..TILES {
                    signs[tile] = isa::signs_next(signs[tile]);
                }
            }
        }
    }
}
