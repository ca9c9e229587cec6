// @generated from templates/src/attention.rs by bitnet-codegen; do not edit

pub mod attention_f16__scalar__any__r1_c256_n1_u1_p0 {
    //! Attention of query rows over one chunk of a key-value head, for all rows that share it.
    //!
    //! A row is one query head of one token. Rows are taken `ROWS` at a time, so that each vector of
    //! keys or values is loaded and widened once for all of them. A step has three parts, and equals
    //! `numerics::attention_chunk` bit for bit:
    //!
    //! Scores. A dot product has 16 virtual lanes, which a fixed tree adds up. Here a vector holds one
    //! virtual lane of 16 *positions*, so that neither the products nor the tree moves a lane. That is
    //! how keys lie in the cache (see `AttentionCall`): 16 positions make a block, and in it a vector
    //! holds one element of the 16 keys. Elements come in the order in which the tree adds up their
    //! lanes: four lanes that become one sum, 0 8 4 12, then 2 10 6 14, 1 9 5 13 and 3 11 7 15, and in
    //! each of the four groups the first elements of its lanes, then the second ones. So keys are one
    //! sequential stream, however many lanes a kernel holds in registers. Where registers are many, two
    //! blocks share each query that is spread over a vector.
    //!
    //! Weights: exp, and their sum.
    //!
    //! Values: an output is one chain of fused multiply-adds over the positions, and vectors of outputs
    //! side by side are chains of their own. As many as fit are held in registers for a span of
    //! positions, so that the values of the span come from the first cache where there are more.
    //!
    //! Keys and values may be int8 codes with a scale for each position. Then codes are what is multiplied:
    //! scores are scaled, 16 positions at once, and so are weights.
    //!
    //! Rows of elements are padded to whole vectors with zeros. A padded product adds +0 to a lane;
    //! that can turn a score of -0 into +0, which no output shows.
    //!
    //! Prefetches run ahead of what is read, from the keys into the values, and from the values into what
    //! follows them: where a cache is laid out for it, the next head's keys.

    use super::abi::{AttentionCall, ELEMENTS_F16, ELEMENTS_F32, ELEMENTS_Q8, Softmax};
    use super::isa::scalar as isa;
    use super::vector__scalar::{attention_merge, exp};

    /// Rows at once.
    const ROWS: usize = 1;
    /// Elements of a head; 0: taken from the call.
    const COLS: usize = 0;
    /// Positions of a chunk.
    const BLOCK: usize = 256;
    /// Prefetch distance in bytes; 0: none.
    const PREFETCH: usize = 0;
    /// Level of the cache that is prefetched to: 1 or 2.
    const LEVEL: usize = 1;

    /// Virtual lanes, and positions of a block of keys.
    const LANES: usize = 16;
    /// Virtual lanes that the first half of the tree makes one sum of.
    const QUAD: usize = 4;
    /// Virtual lanes in the order in which the tree adds them up.
    const TREE: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];
    /// Positions whose values serve all outputs before the next ones are read; twice as many in a step of
    /// 8 rows. That took 0.97 times as long there, and 1.03 times in a step of 4, with less prefetched in time.
    const SPAN: usize = 32;
    /// Sums that are held in registers: half of these, the others are for operands.
    const SUMS: usize = isa::F32_REGISTERS / 2;
    /// Blocks of keys at once: loads of queries, which are spread as they are loaded, are what bounds a
    /// vector of one register.
    const KEY_BLOCKS: usize = if isa::F32_REGISTERS < 32 { 1 } else { 2 };

    /// Bytes of scratch for heads of so many elements: queries, scores and sums of `ROWS` rows.
    pub const extern "C" fn scratch(head_dim: usize) -> usize {
        ROWS * (2 * head_dim.next_multiple_of(LANES) + BLOCK) * 4
    }

    /// Attends: see `AttentionRunFn`.
    ///
    /// # Safety
    /// See `AttentionRunFn`.
    pub unsafe extern "C" fn run(call: &AttentionCall) {
        // SAFETY: passed on to the caller.
        unsafe {
            match call.elements {
                ELEMENTS_F16 => rows::<ELEMENTS_F16>(call),
                ELEMENTS_F32 => rows::<ELEMENTS_F32>(call),
                _ => rows::<ELEMENTS_Q8>(call),
            }
        }
    }

    /// All rows, [`ROWS`] at a time, then what is left.
    ///
    /// # Safety
    /// See `AttentionRunFn`; `E` is `call.elements`.
    #[inline(always)]
    unsafe fn rows<const E: u8>(call: &AttentionCall) {
        let rows = call.tokens * call.heads;
        let mut row = 0;
        // SAFETY: the steps stay below `rows`.
        unsafe {
            while row + ROWS <= rows {
                step::<ROWS, E>(call, row);
                row += ROWS;
            }
            if const { ROWS > 4 } && row + 4 <= rows {
                step::<4, E>(call, row);
                row += 4;
            }
            match rows - row {
                3 if const { ROWS > 3 } => step::<3, E>(call, row),
                2 if const { ROWS > 2 } => step::<2, E>(call, row),
                1 if const { ROWS > 1 } => step::<1, E>(call, row),
                _ => {}
            }
        }
    }

    /// Rows `first` to `first + R`.
    ///
    /// # Safety
    /// See `AttentionRunFn`; the rows exist.
    #[inline(always)]
    unsafe fn step<const R: usize, const E: u8>(call: &AttentionCall, first: usize) {
        let head_dim = if COLS == 0 { call.head_dim } else { COLS };
        let steps = head_dim.div_ceil(LANES);
        let width = steps * LANES;
        // SAFETY: the scratch holds all three (see `scratch`); R is at most ROWS.
        unsafe {
            let scores = call.scratch.cast::<f32>();
            let queries = scores.add(ROWS * BLOCK);
            let sums = queries.add(ROWS * width);

            let mut counts = [0; R];
            let (mut least, mut most) = (BLOCK, 0);
            for r in 0..R {
                let (token, head) = ((first + r) / call.heads, (first + r) % call.heads);
                let query = call.queries.add(token * call.stride + head * head_dim);
                interleave::<R>(query, head_dim, queries.add(r));
                let count = call.counts.add(token).read();
                counts[r] = count;
                least = if count < least { count } else { least };
                most = if count > most { count } else { most };
            }

            let mut position = 0;
            while position < most {
                if const { KEY_BLOCKS > 1 } && position + LANES < most {
                    score::<R, KEY_BLOCKS, E>(call, queries, position, most, steps, scores);
                    position += KEY_BLOCKS * LANES;
                } else {
                    score::<R, 1, E>(call, queries, position, most, steps, scores);
                    position += LANES;
                }
            }

            let mut states = [Softmax { max: 0.0, sum: 0.0 }; R];
            for r in 0..R {
                states[r] = softmax::<E>(scores.add(r * BLOCK), counts[r], call.value_scales);
            }

            sums.write_bytes(0, R * width);
            let span = if const { R > 4 } { 2 * SPAN } else { SPAN };
            let mut from = 0;
            while from < least {
                let to = if from + span < least { from + span } else { least };
                weigh::<R, E>(scores, call.values, from, to, steps, sums);
                from = to;
            }
            for r in 0..R {
                let row = first + r;
                if counts[r] > least {
                    let (scores, sums) = (scores.add(r * BLOCK), sums.add(r * width));
                    weigh::<1, E>(scores, call.values, least, counts[r], steps, sums);
                }
                let (state, out) = (call.states.add(row), call.out.add(row * head_dim));
                let sums = sums.add(r * width);
                if !call.merge {
                    state.write(states[r]);
                    out.copy_from_nonoverlapping(sums, head_dim);
                } else if counts[r] > 0 {
                    attention_merge(state, out, &states[r], sums, head_dim);
                }
            }
        }
    }

    /// Lays out a query in the order of the keys, its elements `R` floats from each other.
    ///
    /// # Safety
    /// `query` is readable for `head_dim` floats, `out` is writable for as many, padded to whole
    /// vectors, `R` floats from each other.
    #[inline(always)]
    unsafe fn interleave<const R: usize>(query: *const f32, head_dim: usize, out: *mut f32) {
        let steps = head_dim.div_ceil(LANES);
        let mut last = [0f32; LANES];
        for t in 0..steps {
            let left = head_dim - t * LANES;
            // SAFETY: `left` elements follow; a slot is below steps * LANES.
            unsafe {
                let mut lanes = query.add(t * LANES);
                if left < LANES {
                    last.as_mut_ptr().copy_from_nonoverlapping(lanes, left);
                    lanes = last.as_ptr();
                }
                for c in 0..LANES {
                    let slot = (c / QUAD * steps + t) * QUAD + c % QUAD;
                    out.add(slot * R).write(lanes.add(TREE[c]).read());
                }
            }
        }
    }

    /// Bytes of an element.
    const fn bytes(elements: u8) -> usize {
        match elements {
            ELEMENTS_F16 => 2,
            ELEMENTS_F32 => 4,
            _ => 1,
        }
    }

    /// Place of element `index`.
    ///
    /// # Safety
    /// `base` is readable for `index` elements.
    #[inline(always)]
    unsafe fn element<const E: u8>(base: *const u8, index: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { base.add(index * const { bytes(E) }) }
    }

    /// Loads 16 elements from `index` on.
    ///
    /// # Safety
    /// `base` is readable for `index + 16` elements.
    #[inline(always)]
    unsafe fn load<const E: u8>(base: *const u8, index: usize) -> isa::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            let at = element::<E>(base, index);
            match E {
                ELEMENTS_F16 => isa::f32_load_f16(at.cast()),
                ELEMENTS_F32 => isa::f32_load(at.cast()),
                _ => isa::f32_load_i8(at.cast()),
            }
        }
    }

    /// The scores of `R` queries and `B` blocks of keys from `position` on.
    ///
    /// # Safety
    /// `queries` is readable for `R` interleaved rows of `steps` vectors, `call` holds the blocks, and
    /// `scores` is writable for `R` rows that are [`BLOCK`] apart.
    #[inline(always)]
    unsafe fn score<const R: usize, const B: usize, const E: u8>(
        call: &AttentionCall,
        queries: *const f32,
        position: usize,
        most: usize,
        steps: usize,
        scores: *mut f32,
    ) {
        let width = steps * LANES;
        // SAFETY: the caller's promise; what is asked for ahead need not exist.
        unsafe {
            let keys = element::<E>(call.keys, position * width);
            let mut next = keys;
            if PREFETCH != 0 {
                let row = width * const { bytes(E) };
                let (at, end) = (position * row + PREFETCH, most.next_multiple_of(LANES) * row);
                next = if at < end {
                    call.keys.wrapping_add(at)
                } else {
                    call.values.wrapping_add(at - end)
                };
            }
            let dots = dots::<R, B, E>(queries, keys, next, steps);
            let scale = isa::f32_splat(call.scale);
            for b in 0..B {
                for r in 0..R {
                    let at = position + b * LANES;
                    let mut score = isa::f32_mul(dots[b][r], scale);
                    if E == ELEMENTS_Q8 {
                        score = isa::f32_mul(score, isa::f32_load(call.key_scales.add(at)));
                    }
                    isa::f32_store(scores.add(r * BLOCK + at), score);
                }
            }
        }
    }

    /// The dot products of `R` queries with `B` blocks of keys.
    ///
    /// # Safety
    /// `queries` is readable for `R` interleaved rows and `keys` for blocks of `steps * LANES` vectors.
    #[inline(always)]
    unsafe fn dots<const R: usize, const B: usize, const E: u8>(
        queries: *const f32,
        keys: *const u8,
        next: *const u8,
        steps: usize,
    ) -> [[isa::F32; R]; B] {
        let mut quads = [[[isa::f32_splat(0.0); R]; B]; LANES / QUAD];
        for quad in 0..LANES / QUAD {
            let first = quad * steps * QUAD;
            // SAFETY: the lanes of a quad are together `steps * QUAD` vectors.
            unsafe {
                let queries = queries.add(first * R);
                let keys = element::<E>(keys, first * LANES);
                let next = next.wrapping_add(first * LANES * const { bytes(E) });
                quads[quad] = if const { QUAD * R * B <= SUMS } {
                    let [a, b, c, d] = lanes::<R, B, 4, E>(queries, keys, next, steps, 0);
                    add(add(a, b), add(c, d))
                } else if const { 2 * R * B <= SUMS } {
                    let [a, b] = lanes::<R, B, 2, E>(queries, keys, next, steps, 0);
                    let [c, d] = lanes::<R, B, 2, E>(queries, keys, next, steps, 2);
                    add(add(a, b), add(c, d))
                } else {
                    let [a] = lanes::<R, B, 1, E>(queries, keys, next, steps, 0);
                    let [b] = lanes::<R, B, 1, E>(queries, keys, next, steps, 1);
                    let [c] = lanes::<R, B, 1, E>(queries, keys, next, steps, 2);
                    let [d] = lanes::<R, B, 1, E>(queries, keys, next, steps, 3);
                    add(add(a, b), add(c, d))
                };
            }
        }
        let [a, b, c, d] = quads;
        add(add(a, b), add(c, d))
    }

    /// Virtual lanes `from` to `from + N` of a quad.
    ///
    /// # Safety
    /// `queries` and `keys` are readable for a quad of lanes with `steps` elements, and so are the keys
    /// of the `B - 1` blocks that follow.
    #[inline(always)]
    unsafe fn lanes<const R: usize, const B: usize, const N: usize, const E: u8>(
        queries: *const f32,
        keys: *const u8,
        next: *const u8,
        steps: usize,
        from: usize,
    ) -> [[[isa::F32; R]; B]; N] {
        let mut sums = [[[isa::f32_splat(0.0); R]; B]; N];
        let block = steps * LANES * LANES;
        for t in 0..steps {
            for n in 0..N {
                let slot = t * QUAD + from + n;
                // SAFETY: the slot is below steps * QUAD.
                unsafe {
                    let mut key = [isa::f32_splat(0.0); B];
                    for b in 0..B {
                        let at = b * block + slot * LANES;
                        key[b] = load::<E>(keys, at);
                        // Once for each cache line.
                        if PREFETCH != 0 && ((from + n) * LANES * const { bytes(E) }).is_multiple_of(64)
                        {
                            isa::prefetch::<LEVEL>(next.wrapping_add(at * const { bytes(E) }));
                        }
                    }
                    for r in 0..R {
                        let query = isa::f32_splat(queries.add(slot * R + r).read());
                        for b in 0..B {
                            sums[n][b][r] = isa::f32_fma(query, key[b], sums[n][b][r]);
                        }
                    }
                }
            }
        }
        sums
    }

    /// Adds block by block and row by row.
    #[inline(always)]
    fn add<const R: usize, const B: usize>(
        a: [[isa::F32; R]; B],
        b: [[isa::F32; R]; B],
    ) -> [[isa::F32; R]; B] {
        let mut sum = a;
        for block in 0..B {
            for r in 0..R {
                sum[block][r] = isa::f32_add(a[block][r], b[block][r]);
            }
        }
        sum
    }

    /// Turns `count` scores into weights, those of codes times the scales of the values.
    ///
    /// # Safety
    /// `scores` is readable and writable for `count` floats, rounded up to whole vectors, and `scales` is
    /// readable for as many where elements are codes.
    #[inline(always)]
    unsafe fn softmax<const E: u8>(scores: *mut f32, count: usize, scales: *const f32) -> Softmax {
        // SAFETY: every access is below `count`, rounded up.
        unsafe {
            // No score is less than what fills the last vector; its weight is +0, which adds nothing.
            let end = count.next_multiple_of(LANES);
            for i in count..end {
                scores.add(i).write(f32::NEG_INFINITY);
            }
            let mut top = isa::f32_splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i < end {
                top = isa::f32_max(isa::f32_load(scores.add(i)), top);
                i += LANES;
            }
            let max = isa::f32_reduce_max(top);
            let (top, mut sum) = (isa::f32_splat(max), isa::f32_splat(0.0));
            let mut i = 0;
            while i < end {
                let weight = exp(isa::f32_sub(isa::f32_load(scores.add(i)), top));
                sum = isa::f32_add(sum, weight);
                let mut scaled = weight;
                if E == ELEMENTS_Q8 {
                    scaled = isa::f32_mul(weight, isa::f32_load(scales.add(i)));
                }
                isa::f32_store(scores.add(i), scaled);
                i += LANES;
            }
            Softmax { max, sum: isa::f32_reduce_add(sum) }
        }
    }

    /// Adds to `sums`, `[R][steps * LANES]`, the values of positions `from` to `to` times their weights.
    ///
    /// # Safety
    /// `weights` is readable for `R` rows that are [`BLOCK`] apart, `values` for the positions, and
    /// `sums` is readable and writable.
    #[inline(always)]
    unsafe fn weigh<const R: usize, const E: u8>(
        weights: *const f32,
        values: *const u8,
        from: usize,
        to: usize,
        steps: usize,
        sums: *mut f32,
    ) {
        let mut c = 0;
        // SAFETY: the vectors stay below `steps`.
        unsafe {
            if const { 8 * R <= SUMS } {
                while c + 8 <= steps {
                    weigh_vectors::<R, 8, E>(weights, values, from, to, steps, c, sums);
                    c += 8;
                }
            }
            if const { 4 * R <= SUMS } {
                while c + 4 <= steps {
                    weigh_vectors::<R, 4, E>(weights, values, from, to, steps, c, sums);
                    c += 4;
                }
            }
            if const { 2 * R <= SUMS } {
                while c + 2 <= steps {
                    weigh_vectors::<R, 2, E>(weights, values, from, to, steps, c, sums);
                    c += 2;
                }
            }
            while c < steps {
                weigh_vectors::<R, 1, E>(weights, values, from, to, steps, c, sums);
                c += 1;
            }
        }
    }

    /// [`weigh`] for vectors `c` to `c + N` of a row of values.
    ///
    /// # Safety
    /// As [`weigh`]; the vectors exist.
    #[inline(always)]
    unsafe fn weigh_vectors<const R: usize, const N: usize, const E: u8>(
        weights: *const f32,
        values: *const u8,
        from: usize,
        to: usize,
        steps: usize,
        c: usize,
        sums: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = |r: usize, n: usize| sums.add((r * steps + c + n) * LANES);
            let mut held = [[isa::f32_splat(0.0); N]; R];
            for r in 0..R {
                for n in 0..N {
                    held[r][n] = isa::f32_load(at(r, n));
                }
            }
            for position in from..to {
                let mut value = [isa::f32_splat(0.0); N];
                for n in 0..N {
                    let at = (position * steps + c + n) * LANES;
                    value[n] = load::<E>(values, at);
                    if PREFETCH != 0 && (n * LANES * const { bytes(E) }).is_multiple_of(64) {
                        isa::prefetch::<LEVEL>(values.wrapping_add(at * const { bytes(E) } + PREFETCH));
                    }
                }
                for r in 0..R {
                    let weight = isa::f32_splat(weights.add(r * BLOCK + position).read());
                    for n in 0..N {
                        held[r][n] = isa::f32_fma(weight, value[n], held[r][n]);
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    isa::f32_store(at(r, n), held[r][n]);
                }
            }
        }
    }
}
