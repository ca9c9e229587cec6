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
    //! sequential stream, however many lanes a kernel holds in registers.
    //!
    //! Weights: exp, and their sum.
    //!
    //! Values: an output is one chain of fused multiply-adds over the positions, and vectors of outputs
    //! side by side are chains of their own. As many as fit are held in registers for a span of
    //! positions, so that the values of the span come from the first cache where there are more.
    //!
    //! Rows of elements are padded to whole vectors with zeros. A padded product adds +0 to a lane;
    //! that can turn a score of -0 into +0, which no output shows.

    use super::abi::{AttentionCall, Softmax};
    use super::isa::scalar as isa;
    use super::vector__scalar::{attention_merge, exp};

    /// Rows at once.
    const ROWS: usize = 1;
    /// Elements of a head; 0: taken from the call.
    const COLS: usize = 0;
    /// Positions of a chunk.
    const BLOCK: usize = 256;

    /// Virtual lanes, and positions of a block of keys.
    const LANES: usize = 16;
    /// Virtual lanes that the first half of the tree makes one sum of.
    const QUAD: usize = 4;
    /// Virtual lanes in the order in which the tree adds them up.
    const TREE: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];
    /// Positions whose values serve all outputs before the next ones are read.
    const SPAN: usize = 32;
    /// Sums that are held in registers: half of these, the others are for operands.
    const SUMS: usize = isa::F32_REGISTERS / 2;

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
        unsafe { if call.wide { rows::<true>(call) } else { rows::<false>(call) } }
    }

    /// All rows, [`ROWS`] at a time, then what is left.
    ///
    /// # Safety
    /// See `AttentionRunFn`; `WIDE` is `call.wide`.
    #[inline(always)]
    unsafe fn rows<const WIDE: bool>(call: &AttentionCall) {
        let rows = call.tokens * call.heads;
        let mut row = 0;
        // SAFETY: the steps stay below `rows`.
        unsafe {
            while row + ROWS <= rows {
                step::<ROWS, WIDE>(call, row);
                row += ROWS;
            }
            if const { ROWS > 4 } && row + 4 <= rows {
                step::<4, WIDE>(call, row);
                row += 4;
            }
            match rows - row {
                3 if const { ROWS > 3 } => step::<3, WIDE>(call, row),
                2 if const { ROWS > 2 } => step::<2, WIDE>(call, row),
                1 if const { ROWS > 1 } => step::<1, WIDE>(call, row),
                _ => {}
            }
        }
    }

    /// Rows `first` to `first + R`.
    ///
    /// # Safety
    /// See `AttentionRunFn`; the rows exist.
    #[inline(always)]
    unsafe fn step<const R: usize, const WIDE: bool>(call: &AttentionCall, first: usize) {
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

            let scale = isa::f32_splat(call.scale);
            let mut position = 0;
            while position < most {
                let keys = element::<WIDE>(call.keys, position * width);
                let dots = dots::<R, WIDE>(queries, keys, steps);
                for r in 0..R {
                    isa::f32_store(scores.add(r * BLOCK + position), isa::f32_mul(dots[r], scale));
                }
                position += LANES;
            }

            let mut states = [Softmax { max: 0.0, sum: 0.0 }; R];
            for r in 0..R {
                states[r] = softmax(scores.add(r * BLOCK), counts[r]);
            }

            sums.write_bytes(0, R * width);
            let mut from = 0;
            while from < least {
                let to = if from + SPAN < least { from + SPAN } else { least };
                weigh::<R, WIDE>(scores, call.values, from, to, steps, sums);
                from = to;
            }
            for r in 0..R {
                let row = first + r;
                if counts[r] > least {
                    let (scores, sums) = (scores.add(r * BLOCK), sums.add(r * width));
                    weigh::<1, WIDE>(scores, call.values, least, counts[r], steps, sums);
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

    /// Where element `index` lies.
    ///
    /// # Safety
    /// `base` is readable for `index` elements.
    #[inline(always)]
    unsafe fn element<const WIDE: bool>(base: *const u8, index: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { base.add(index * if WIDE { 4 } else { 2 }) }
    }

    /// Loads 16 elements from `index` on.
    ///
    /// # Safety
    /// `base` is readable for `index + 16` elements.
    #[inline(always)]
    unsafe fn load<const WIDE: bool>(base: *const u8, index: usize) -> isa::F32 {
        // SAFETY: the caller's promise.
        unsafe {
            let at = element::<WIDE>(base, index);
            if WIDE { isa::f32_load(at.cast()) } else { isa::f32_load_f16(at.cast()) }
        }
    }

    /// The dot products of `R` queries with a block of keys.
    ///
    /// # Safety
    /// `queries` is readable for `R` interleaved rows and `keys` for a block of `steps * LANES` vectors.
    #[inline(always)]
    unsafe fn dots<const R: usize, const WIDE: bool>(
        queries: *const f32,
        keys: *const u8,
        steps: usize,
    ) -> [isa::F32; R] {
        let mut quads = [[isa::f32_splat(0.0); R]; LANES / QUAD];
        for quad in 0..LANES / QUAD {
            let first = quad * steps * QUAD;
            // SAFETY: the lanes of a quad are together `steps * QUAD` vectors.
            unsafe {
                let (queries, keys) = (queries.add(first * R), element::<WIDE>(keys, first * LANES));
                quads[quad] = if const { QUAD * R <= SUMS } {
                    let [a, b, c, d] = lanes::<R, 4, WIDE>(queries, keys, steps, 0);
                    add(add(a, b), add(c, d))
                } else if const { 2 * R <= SUMS } {
                    let [a, b] = lanes::<R, 2, WIDE>(queries, keys, steps, 0);
                    let [c, d] = lanes::<R, 2, WIDE>(queries, keys, steps, 2);
                    add(add(a, b), add(c, d))
                } else {
                    let [a] = lanes::<R, 1, WIDE>(queries, keys, steps, 0);
                    let [b] = lanes::<R, 1, WIDE>(queries, keys, steps, 1);
                    let [c] = lanes::<R, 1, WIDE>(queries, keys, steps, 2);
                    let [d] = lanes::<R, 1, WIDE>(queries, keys, steps, 3);
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
    /// `queries` and `keys` are readable for a quad of lanes with `steps` elements.
    #[inline(always)]
    unsafe fn lanes<const R: usize, const N: usize, const WIDE: bool>(
        queries: *const f32,
        keys: *const u8,
        steps: usize,
        from: usize,
    ) -> [[isa::F32; R]; N] {
        let mut sums = [[isa::f32_splat(0.0); R]; N];
        for t in 0..steps {
            for n in 0..N {
                let slot = t * QUAD + from + n;
                // SAFETY: the slot is below steps * QUAD.
                unsafe {
                    let key = load::<WIDE>(keys, slot * LANES);
                    for r in 0..R {
                        let query = isa::f32_splat(queries.add(slot * R + r).read());
                        sums[n][r] = isa::f32_fma(query, key, sums[n][r]);
                    }
                }
            }
        }
        sums
    }

    /// Adds row by row.
    #[inline(always)]
    fn add<const R: usize>(a: [isa::F32; R], b: [isa::F32; R]) -> [isa::F32; R] {
        let mut sum = a;
        for r in 0..R {
            sum[r] = isa::f32_add(a[r], b[r]);
        }
        sum
    }

    /// Turns `count` scores into weights.
    ///
    /// # Safety
    /// `scores` is readable and writable for `count` floats, rounded up to whole vectors.
    #[inline(always)]
    unsafe fn softmax(scores: *mut f32, count: usize) -> Softmax {
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
                isa::f32_store(scores.add(i), weight);
                sum = isa::f32_add(sum, weight);
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
    unsafe fn weigh<const R: usize, const WIDE: bool>(
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
                    weigh_vectors::<R, 8, WIDE>(weights, values, from, to, steps, c, sums);
                    c += 8;
                }
            }
            if const { 4 * R <= SUMS } {
                while c + 4 <= steps {
                    weigh_vectors::<R, 4, WIDE>(weights, values, from, to, steps, c, sums);
                    c += 4;
                }
            }
            if const { 2 * R <= SUMS } {
                while c + 2 <= steps {
                    weigh_vectors::<R, 2, WIDE>(weights, values, from, to, steps, c, sums);
                    c += 2;
                }
            }
            while c < steps {
                weigh_vectors::<R, 1, WIDE>(weights, values, from, to, steps, c, sums);
                c += 1;
            }
        }
    }

    /// [`weigh`] for vectors `c` to `c + N` of a row of values.
    ///
    /// # Safety
    /// As [`weigh`]; the vectors exist.
    #[inline(always)]
    unsafe fn weigh_vectors<const R: usize, const N: usize, const WIDE: bool>(
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
                    value[n] = load::<WIDE>(values, (position * steps + c + n) * LANES);
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
