// @generated from templates/src/tl2_w.rs by bitnet-codegen; do not edit

pub mod tl2_w32__scalar__any__r32_c240_n1_u1_p0 {
    //! TL2 in words: a 5-bit index stands for three weights, sign included, and a table for what they
    //! add.
    //!
    //! The code is that of the `tl2` template. Where one instruction permutes 32 words (`vpermw`), the
    //! table holds all 27 values, the negated ones 16 further on, so that the sign is a part of the
    //! index and nothing is left to do but shift, look up and add. A word of the packing holds three
    //! indices and a bit to spare, and five words together the bits of a sixteenth index. As a tile
    //! holds its 32 rows side by side, one lookup serves them all, and no sum ever crosses lanes:
    //!
    //! ```text
    //! sums[row] += table of triple j [index of row, triple j]
    //! ```
    //!
    //! A triple reaches +-384, so sums stay in 16 bits for a block of columns and are then widened.
    //! Indices are taken out of their words once for all activation rows.
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
    const UNIT: usize = 48;
    /// Triples of columns in a unit.
    const TRIPLES: usize = UNIT / 3;
    /// Groups of words in a unit.
    const GROUPS: usize = TRIPLES / FIELDS;
    /// Triples in a word.
    const FIELDS: usize = 3;
    /// Bytes of a group: a word for each row.
    const GROUP_BYTES: usize = TILE * 2;
    /// Bytes of a unit of a tile.
    const UNIT_BYTES: usize = GROUPS * GROUP_BYTES;
    /// Tiles in a step.
    const TILES: usize = ROWS / TILE;
    /// Entries of a table; 27 are used.
    const ENTRIES: usize = 32;
    /// Factor of each of the three activations in each entry: -1, 0 or +1.
    const COEFFICIENTS: [[i16; ENTRIES]; 3] = coefficients();

    /// The accumulators of a step.
    type Sums = [[isa::I16; TILES]; TOKENS];
    /// Words of fields for the rows of a step, the field in turn lowest.
    type Words = [isa::Fields; TILES];

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
                out[digit][16 + magnitude] = -out[digit][magnitude];
                rest = (rest + 1) / 3;
            }
            magnitude += 1;
        }
        out
    }

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        cols.div_ceil(UNIT) * TRIPLES * TOKENS * isa::TABLE32_BYTES
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
                    let at = (triple * TOKENS + token) * isa::TABLE32_BYTES;
                    isa::table32_store(prepare.scratch.add(at), bytes, &COEFFICIENTS);
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
        // SAFETY: a unit of tables is TRIPLES times TOKENS.
        let tables = unsafe { tables.add(unit * TRIPLES * TOKENS * isa::TABLE32_BYTES) };
        let mut fields = [isa::fields_zero(); TILES];
        for group in 0..GROUPS {
            for tile in 0..TILES {
                // SAFETY: each tile of the step is `units` units of GROUPS groups.
                unsafe {
                    let unit = weights.add((tile * units + unit) * UNIT_BYTES);
                    let words = unit.add(group * GROUP_BYTES);
                    fields[tile] = isa::fields_load(words);
                    if PREFETCH != 0 {
                        isa::prefetch::<1>(words.wrapping_add(PREFETCH));
                    }
                }
            }
            for field in 0..FIELDS {
                // SAFETY: `group * FIELDS + field` is a triple of the unit.
                unsafe { add_triple(sums, &fields, tables, group * FIELDS + field) };
                for tile in 0..TILES {
                    fields[tile] = isa::fields_next(fields[tile]);
                }
            }
        }
        for tile in 0..TILES {
            // SAFETY: as above.
            unsafe {
                let unit = weights.add((tile * units + unit) * UNIT_BYTES);
                fields[tile] = isa::fields_spare(unit);
            }
        }
        // SAFETY: the unit's last triple.
        unsafe { add_triple(sums, &fields, tables, TRIPLES - 1) };
    }

    /// Adds what one triple looks up.
    ///
    /// # Safety
    /// `tables` holds a unit of tables; `triple < TRIPLES`.
    #[inline(always)]
    unsafe fn add_triple(sums: &mut Sums, fields: &Words, tables: *const u8, triple: usize) {
        for token in 0..TOKENS {
            let at = (triple * TOKENS + token) * isa::TABLE32_BYTES;
            // SAFETY: the caller's promise.
            let table = unsafe { isa::table32_load(tables.add(at)) };
            for tile in 0..TILES {
                let sum = &mut sums[token][tile];
                *sum = isa::i16_add(*sum, isa::lookup32(table, fields[tile]));
            }
        }
    }
}
