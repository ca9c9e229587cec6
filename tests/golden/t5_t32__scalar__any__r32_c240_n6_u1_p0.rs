// @generated from templates/src/t5_lookup.rs by bitnet-codegen; do not edit

pub mod t5_t32__scalar__any__r32_c240_n6_u1_p0 {
    //! T5 for many activation rows: no product is computed, sums of three are looked up.
    //!
    //! A table of 27 words holds all sums `+-a +-b +-c` of three activations, zeros included, so one
    //! `vpermw` gives a row of weights times three columns, for 32 rows at once; an addition collects it.
    //! That is 96 products by two instructions of which a core of Zen 5 executes four in a cycle, where
    //! `vpdpbusd` gives 64 by one of which it executes two.
    //!
    //! Indices of 5 bits must lie in words for that. So the packing is *expanded* first, once for all
    //! activation rows: three units of it, 60 columns, become 20 triples, two to a word, of which the
    //! second is read by a load that begins one byte further on. Of the five columns of a byte the first
    //! three make a triple; the other two of the bytes `x`, `y`, `z` of three units make the triples
    //! `x3 x4 y3` and `y4 z3 z4`.
    //!
    //! The expanded form is, for each block of columns, for each step of tiles, for each two triples, for
    //! each tile, 64 bytes: word `2i + h` belongs to row `16h + i` of the tile, and its low and high byte to
    //! the two triples. A byte is `(a + 1) + 3 (b + 1) + 9 (c + 1)` for the weights `a b c`. The last step
    //! has what tiles are left. So a call reads one sequential stream, and while it goes through a block,
    //! the tables of that block stay in the L1 cache.
    //!
    //! A triple reaches +-384, so sums stay in 16 bits for a block of columns and are then widened.
    //!
    //! For 8 rows, indices made on the way, a block of a step at a time, do not pay: one core of Zen 5 then
    //! does 400 G products/s from its caches, the `t5` template 463 to 486. For 60 columns of 32 rows they
    //! take 28 cycles, and tables, lookups and sums of blocks 115, where products take 120.
    //!
    //! A prepared group is the number of its rows, padded to 64 bytes, and of each row, for each triple in
    //! the order of the expanded form, the three activations, each plus 128, and a byte of no meaning.

    use super::abi::{Call, Expand, Expansion, Prepare};
    use super::isa::scalar as isa;
    use super::trits::TABLES;

    /// Rows in a packed tile.
    const TILE: usize = 32;
    /// Rows per step, a multiple of `TILE`, at most 4 times that.
    const ROWS: usize = 32;
    /// Columns of the matrix; 0: taken from the call.
    const COLS: usize = 0;
    /// Columns after which sums are widened, a multiple of `SPAN`.
    const BLOCK: usize = 240;
    /// Activation rows per call.
    const TOKENS: usize = 6;

    /// Tiles in a step.
    const STEP: usize = ROWS / TILE;
    /// Columns in a unit of the packing.
    const UNIT: usize = 20;
    /// Units that are expanded together.
    const UNITS: usize = 3;
    /// Columns that are expanded together.
    const SPAN: usize = UNIT * UNITS;
    /// Triples in them.
    const TRIPLES: usize = SPAN / 3;
    /// Bytes of a unit of a tile.
    const UNIT_BYTES: usize = TILE * 4;
    /// Bytes of two triples of a tile.
    const PAIR_BYTES: usize = TILE * 2;
    /// Bytes of a block of a tile.
    const BLOCK_BYTES: usize = BLOCK / 6 * PAIR_BYTES;
    /// Vectors that hold 16 rows of a unit.
    const HALF: usize = 16 / isa::LANES;
    /// Bytes before the activations of a prepared group.
    const HEADER: usize = 64;
    /// Fewer activation rows, for groups that are not full.
    const FEWER: [usize; 2] = [TOKENS.div_ceil(3), (2 * TOKENS).div_ceil(3)];

    /// Transformation of the weights into the form that [`run`] reads.
    pub static EXPANSION: Expansion = Expansion { tile_bytes: expanded_bytes, run: expand };

    /// Of which column of a span each byte of a prepared row is; every fourth has no meaning.
    static COLUMNS: [u8; 4 * TRIPLES] = columns();

    /// The index of a triple by its three codes, 2 bits each.
    static INDICES: [u8; 64] = indices();

    /// Factor of each of the three activations in the entries of a table, the even ones and the
    /// odd ones: -1, 0 or 1.
    static FACTORS: [[[i8; 4]; 16]; 2] = factors();

    const fn columns() -> [u8; 4 * TRIPLES] {
        let mut out = [0; 4 * TRIPLES];
        let mut lane = 0;
        while lane < 4 {
            // The places of the columns in a byte, and the unit.
            let (x, y, z) = (lane, UNIT + lane, 2 * UNIT + lane);
            let triples = [
                [x, x + 4, x + 8],
                [y, y + 4, y + 8],
                [z, z + 4, z + 8],
                [x + 12, x + 16, y + 12],
                [y + 16, z + 12, z + 16],
            ];
            let mut i = 0;
            while i < 15 {
                let (triple, place) = (i / 3, i % 3);
                out[4 * (4 * triple + lane) + place] = triples[triple][place] as u8;
                i += 1;
            }
            lane += 1;
        }
        out
    }

    const fn indices() -> [u8; 64] {
        let mut out = [0; 64];
        let mut codes = 0;
        while codes < 64 {
            out[codes] = (codes % 4 + 3 * (codes / 4 % 4) + 9 * (codes / 16)) as u8;
            codes += 1;
        }
        out
    }

    const fn factors() -> [[[i8; 4]; 16]; 2] {
        let mut out = [[[0; 4]; 16]; 2];
        let mut entry = 0;
        while entry < 27 {
            let digits = [entry % 3, entry / 3 % 3, entry / 9];
            let mut i = 0;
            while i < 3 {
                out[entry % 2][entry / 2][i] = digits[i] as i8 - 1;
                i += 1;
            }
            entry += 1;
        }
        out
    }

    /// Bytes that an expanded tile of so many columns takes.
    pub const extern "C" fn expanded_bytes(cols: usize) -> usize {
        cols.div_ceil(BLOCK) * BLOCK_BYTES
    }

    /// Expands some tiles.
    ///
    /// # Safety
    /// See `ExpandFn`.
    pub unsafe extern "C" fn expand(expand: &Expand) {
        let cols = if COLS == 0 { expand.cols } else { COLS };
        let units = cols.div_ceil(UNIT);
        let tables = isa::tables(&TABLES);
        for tile in 0..expand.tiles {
            let place = expand.first + tile;
            let first = place / STEP * STEP;
            let width = STEP.min(expand.all - first);
            for span in 0..cols.div_ceil(SPAN) {
                // SAFETY: a tile is `units` units; the expanded form has `all` tiles in each block, of
                // which `place` is one, in a step of `width` (the contract of ExpandFn).
                unsafe {
                    let units = span * UNITS..units.min((span + 1) * UNITS);
                    let weights = expand.weights.add(tile * cols.div_ceil(UNIT) * UNIT_BYTES);
                    let weights = weights.add(units.start * UNIT_BYTES);
                    let (block, pair) = (span * SPAN / BLOCK, span * SPAN % BLOCK / 6);
                    let step = expand.out.add((block * expand.all + first) * BLOCK_BYTES);
                    let out = step.add((pair * width + place - first) * PAIR_BYTES);
                    expand_span(weights, units.end - units.start, &tables, (out, width * PAIR_BYTES));
                }
            }
        }
    }

    /// Expands a span of a tile, of which there are `units` units.
    ///
    /// # Safety
    /// `weights` is readable for so many units, `out` is writable for the pairs of a span, each so many
    /// bytes after the one before.
    #[inline(always)]
    unsafe fn expand_span(
        weights: *const u8,
        units: usize,
        tables: &isa::Tables,
        (out, stride): (*mut u8, usize),
    ) {
        let indices = isa::table64(&INDICES);
        let mut triples = [[[isa::bytes_zero(); HALF]; 2]; 5];
        for half in 0..2 {
            for vector in 0..HALF {
                let mut packed = [isa::bytes_zero(); UNITS];
                for unit in 0..UNITS {
                    // Activations beyond the last unit are zero, whatever their weights are.
                    if unit < units {
                        let at = unit * UNIT_BYTES + (half * HALF + vector) * 4 * isa::LANES;
                        // SAFETY: the caller's promise.
                        packed[unit] = unsafe { isa::load(weights.add(at)) };
                    }
                }
                let [(x, x4), (y, y4), (z, z4)] = packed.map(|packed| {
                    let [first, last] = isa::spread(packed, tables);
                    (first, last)
                });
                let codes = [x, y, z, isa::top_codes([x, x4, y]), isa::top_codes([y4, z, z4])];
                for triple in 0..5 {
                    triples[triple][half][vector] = isa::lookup64(codes[triple], indices);
                }
            }
        }
        for triple in 0..5 {
            let [low, high] = triples[triple];
            let pairs = isa::pair_rows(low, high);
            for pair in 0..2 {
                // SAFETY: the caller's promise.
                unsafe { isa::fields_store(out.add((2 * triple + pair) * stride), pairs[pair]) };
            }
        }
    }

    /// Bytes of scratch that a prepared group takes for so many columns.
    pub const extern "C" fn scratch(cols: usize) -> usize {
        HEADER + TOKENS * cols.div_ceil(SPAN) * 4 * TRIPLES
    }

    /// Lays out one group of activation rows.
    ///
    /// # Safety
    /// See `PrepareFn`.
    pub unsafe extern "C" fn prepare(prepare: &Prepare) {
        let cols = if COLS == 0 { prepare.cols } else { COLS };
        let spans = cols.div_ceil(SPAN);
        // SAFETY: the scratch begins with the header (the contract of PrepareFn).
        unsafe { prepare.scratch.cast::<usize>().write(prepare.tokens) };
        for token in 0..TOKENS {
            let row = prepare.quantised.wrapping_add(token * prepare.stride);
            for span in 0..spans {
                // Columns beyond the row, and rows beyond the group, count as zero.
                let mut padded = [0; SPAN];
                let mut from = padded.as_ptr();
                if token < prepare.tokens {
                    let rest = cols - span * SPAN;
                    // SAFETY: row `token` is readable for `cols` bytes (the contract of PrepareFn).
                    unsafe {
                        from = row.add(span * SPAN);
                        if rest < SPAN {
                            from.copy_to_nonoverlapping(padded.as_mut_ptr(), rest);
                            from = padded.as_ptr();
                        }
                    }
                }
                // SAFETY: `from` is readable for a span; the scratch holds whole spans of TOKENS rows.
                unsafe {
                    let to = prepare.scratch.add(HEADER + (token * spans + span) * 4 * TRIPLES);
                    isa::permute_offset::<SPAN, { 4 * TRIPLES }>(from, &COLUMNS, to);
                }
            }
        }
    }

    /// Multiplies: see `RunFn`.
    ///
    /// # Safety
    /// See `RunFn`.
    pub unsafe extern "C" fn run(call: &Call) {
        // SAFETY: the group begins with its header; the contract of RunFn.
        unsafe {
            let tokens = call.activations.cast::<usize>().read();
            if tokens <= FEWER[0] {
                run_tokens::<{ FEWER[0] }>(call);
            } else if tokens <= FEWER[1] {
                run_tokens::<{ FEWER[1] }>(call);
            } else {
                run_tokens::<TOKENS>(call);
            }
        }
    }

    /// [`run`] for the first `N` activation rows.
    ///
    /// # Safety
    /// As [`run`]; `N` is at most `TOKENS`.
    #[inline(always)]
    unsafe fn run_tokens<const N: usize>(call: &Call) {
        let cols = if COLS == 0 { call.cols } else { COLS };
        let spans = cols.div_ceil(SPAN);
        let factors = isa::factors(&FACTORS);
        let mut tables = [[isa::table32_zero(); N]; BLOCK / 3];
        for block in 0..cols.div_ceil(BLOCK) {
            let triples = (spans * TRIPLES - block * BLOCK / 3).min(BLOCK / 3);
            for triple in 0..triples {
                for token in 0..N {
                    let at = token * spans * TRIPLES + block * BLOCK / 3 + triple;
                    // SAFETY: a triple of row `token` of the group.
                    let quad = unsafe { call.activations.add(HEADER + 4 * at) };
                    // SAFETY: as above.
                    tables[triple][token] = unsafe { isa::table32_of(quad, &factors) };
                }
            }
            // SAFETY: `weights` holds `steps` tiles of each block, whole steps but for the last; the output is writable for as many,
            // of TOKENS rows (the contract of RunFn).
            unsafe {
                let weights = call.weights.add(block * call.block_stride);
                let tables = tables[..triples].as_ptr().cast();
                let (mut tile, first) = (0, block == 0);
                while tile < call.steps {
                    let (weights, out) = (weights.add(tile * BLOCK_BYTES), call.out.add(tile * TILE));
                    let stride = call.out_stride;
                    match call.steps - tile {
                        1 if STEP > 1 => {
                            add_tiles::<1, N>(weights, tables, triples, stride, out, first)
                        }
                        2 if STEP > 2 => {
                            add_tiles::<2, N>(weights, tables, triples, stride, out, first)
                        }
                        3 if STEP > 3 => {
                            add_tiles::<3, N>(weights, tables, triples, stride, out, first)
                        }
                        _ => add_tiles::<STEP, N>(weights, tables, triples, stride, out, first),
                    }
                    tile += STEP;
                }
            }
        }
    }

    /// Adds what `T` tiles look up in a block of columns; the first one's output is not read. It is compiled
    /// once for each `T` and `N`, apart: together they would make each other spill.
    ///
    /// # Safety
    /// `weights` holds a block of `T` tiles and a byte more, `tables` those of `triples`, an even number,
    /// times `N` rows. `out` is readable and writable for `T` tiles at `N` multiples of `stride`.
    #[inline(always)]
    unsafe fn add_tiles<const T: usize, const N: usize>(
        weights: *const u8,
        tables: *const isa::Table32,
        triples: usize,
        stride: usize,
        out: *mut i32,
        first: bool,
    ) {
        let mut sums = [[isa::i16_zero(); T]; N];
        for pair in 0..triples / 2 {
            for second in 0..2 {
                let mut fields = [isa::fields_zero(); T];
                for tile in 0..T {
                    // SAFETY: the caller's promise.
                    fields[tile] = unsafe {
                        isa::fields_load(weights.add((pair * T + tile) * PAIR_BYTES + second))
                    };
                }
                for token in 0..N {
                    // SAFETY: the caller's promise.
                    let table = unsafe { tables.add((2 * pair + second) * N + token).read() };
                    for tile in 0..T {
                        let sum = &mut sums[token][tile];
                        *sum = isa::i16_add(*sum, isa::lookup32(table, fields[tile]));
                    }
                }
            }
        }
        for token in 0..N {
            for tile in 0..T {
                // SAFETY: the caller's promise.
                unsafe {
                    isa::add_row_pairs(out.add(token * stride + tile * TILE), sums[token][tile], first)
                };
            }
        }
    }
}
