//! Every attention kernel equals its scalar definition, `to_bits`, one chunk at a time and over
//! several.

use std::env;
use std::process::ExitCode;
use std::sync::LazyLock;

use bitnet_kernel_tests::Random;
use bitnet_profiles::{Isa, KernelId, Op};
use bitnet_runtime::cpu::kernels::VectorOps;
use bitnet_runtime::cpu::kernels::attention::{
    AttentionInput, AttentionKernel, KEY_BLOCK, KvChunk, key_slots, row_elements,
};
use bitnet_runtime::cpu::memory::Buffer;
use bitnet_runtime::numerics::{self, CHUNK, KvElement, Softmax};
use bitnet_trials::{Need, Tested, suite};
use half::f16;

/// Heads that fill whole vectors, every number of them that a kernel holds at once, and tails.
const HEAD_DIMS: &[usize] = &[16, 24, 64, 80, 96, 128, 1, 15, 33, 240];
const POSITIONS: &[usize] = &[1, 2, 15, 16, 17, 100, 255, 256];

fn unit(random: &mut Random) -> f32 {
    (random.next_u64() >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
}

/// Numbers as they come, all magnitudes, and the extremes that f16 and f32 have.
fn floats(n: usize, kind: usize, random: &mut Random) -> Vec<f32> {
    const SPECIAL: &[f32] = &[0.0, -0.0, 6e-8, -1e-45, 65504.0, -65504.0, 1.0, -1.0, 1e30, 1e-30];
    (0..n)
        .map(|_| match kind {
            0 => unit(random) * 4.0,
            1 => unit(random) * (2f32).powi(random.below(40) as i32 - 30),
            2 => SPECIAL[random.below(SPECIAL.len() as u64) as usize],
            _ => -0.0,
        })
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    // One NaN is as good as another: which one an operation gives is not part of the contract.
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// The sign of a largest score of zero is not defined; everything else is, by the bit.
fn state_bits(states: &[Softmax]) -> Vec<u32> {
    let flat = states.iter().flat_map(|s| [if s.max == 0.0 { 0.0 } else { s.max }, s.sum]);
    bits(&flat.collect::<Vec<f32>>())
}

/// Keys and values `[position][head_dim]`, and as the kernels read them; scales of whole blocks.
struct Head<T> {
    keys: Vec<T>,
    values: Vec<T>,
    blocks: Vec<T>,
    rows: Vec<T>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

impl<T: Element> Head<T> {
    fn new(positions: usize, head_dim: usize, kind: usize, random: &mut Random) -> Self {
        let whole = positions.next_multiple_of(KEY_BLOCK);
        let mut elements = || -> (Vec<T>, Vec<f32>) {
            let x = floats(positions * head_dim, kind, random);
            let mut out = vec![T::default(); positions * head_dim];
            let rows = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
            let mut scales: Vec<f32> = rows.map(|(x, out)| numerics::to_kv(x, out)).collect();
            scales.resize(whole, f32::NAN);
            (out, scales)
        };
        let ((keys, key_scales), (values, value_scales)) = (elements(), elements());
        let row = row_elements(head_dim);
        // Positions that nobody sees must not matter; padding is zero.
        let mut blocks = vec![T::UNSEEN; whole * row];
        for block in blocks.chunks_exact_mut(KEY_BLOCK * row) {
            let used: Vec<usize> = key_slots(head_dim).collect();
            for slot in (0..row).map(|slot| slot * KEY_BLOCK).filter(|slot| !used.contains(slot)) {
                block[slot..slot + KEY_BLOCK].fill(T::default());
            }
        }
        let mut rows = vec![T::default(); positions * row];
        for p in 0..positions {
            let block = p / KEY_BLOCK * KEY_BLOCK * row + p % KEY_BLOCK;
            for (i, slot) in key_slots(head_dim).enumerate() {
                blocks[block + slot] = keys[p * head_dim + i];
            }
            rows[p * row..][..head_dim].copy_from_slice(&values[p * head_dim..][..head_dim]);
        }
        Self { keys, values, blocks, rows, key_scales, value_scales }
    }
}

/// Elements, and a scale for each position.
type Scaled<'a, T> = (&'a [T], &'a [f32]);

/// Form in which a test hands keys and values over.
trait Element: KvElement {
    const NAME: &'static str;
    const UNSEEN: Self;
    fn chunk<'a>(keys: Scaled<'a, Self>, values: Scaled<'a, Self>) -> KvChunk<'a>;
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const UNSEEN: Self = f16::NAN;
    fn chunk<'a>((keys, _): Scaled<'a, Self>, (values, _): Scaled<'a, Self>) -> KvChunk<'a> {
        KvChunk::F16 { keys, values }
    }
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const UNSEEN: Self = f32::NAN;
    fn chunk<'a>((keys, _): Scaled<'a, Self>, (values, _): Scaled<'a, Self>) -> KvChunk<'a> {
        KvChunk::F32 { keys, values }
    }
}

impl Element for i8 {
    const NAME: &'static str = "q8_0";
    const UNSEEN: Self = -128;
    fn chunk<'a>(keys: Scaled<'a, Self>, values: Scaled<'a, Self>) -> KvChunk<'a> {
        let ((keys, key_scales), (values, value_scales)) = (keys, values);
        KvChunk::Q8 { keys, key_scales, values, value_scales }
    }
}

/// Tokens that attend: for every token the positions it sees of the whole history.
struct Case {
    heads: usize,
    head_dim: usize,
    seen: Vec<usize>,
    kind: usize,
}

/// A chunk of a row merged into those before it, by the definition.
struct Merge {
    before: (Softmax, Vec<f32>),
    chunk: (Softmax, Vec<f32>),
    after: (Softmax, Vec<f32>),
}

/// A case with keys and values of one type, and its attention by the definition.
struct Defined<T> {
    case: Case,
    queries: Vec<f32>,
    head: Head<T>,
    merges: Vec<Merge>,
    /// For each row, before the sums are divided.
    states: Vec<Softmax>,
    sums: Vec<f32>,
}

impl<T: Element> Defined<T> {
    fn new(case: &Case) -> Self {
        let Case { heads, head_dim, ref seen, kind } = *case;
        let random = &mut Random::new((head_dim * 1000 + seen[0] * 10 + kind) as u64);
        let (tokens, positions) = (seen.len(), seen.iter().copied().max().unwrap());
        let stride = heads * head_dim + 5;
        let queries = floats(tokens * stride, kind, random);
        let head = Head::<T>::new(positions.max(1), head_dim, kind, random);
        let (mut states, mut sums, mut merges) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scores, mut part) = ([0.0; CHUNK], vec![0.0; head_dim]);
        for (t, &seen) in seen.iter().enumerate() {
            for h in 0..heads {
                let query = &queries[t * stride + h * head_dim..][..head_dim];
                let mut of_chunk = |first: usize, out: &mut [f32]| {
                    let positions = first..seen.min(first + CHUNK);
                    let range = positions.start * head_dim..positions.end * head_dim;
                    let k = (&head.keys[range.clone()], &head.key_scales[positions.clone()]);
                    let v = (&head.values[range], &head.value_scales[positions]);
                    numerics::attention_chunk(query, k, v, scale(head_dim), &mut scores, out)
                };
                let mut sum = vec![0.0; head_dim];
                let mut state = of_chunk(0, &mut sum);
                for first in (CHUNK..seen).step_by(CHUNK) {
                    let chunk = of_chunk(first, &mut part);
                    let before = (state, sum.clone());
                    numerics::attention_merge(&mut state, &mut sum, chunk, &part);
                    let (chunk, after) = ((chunk, part.clone()), (state, sum.clone()));
                    merges.push(Merge { before, chunk, after });
                }
                states.push(state);
                sums.extend(sum);
            }
        }
        let case = Case { seen: seen.clone(), ..*case };
        Self { case, queries, head, merges, states, sums }
    }

    fn name(&self) -> String {
        let Case { heads, head_dim, seen, kind } = &self.case;
        format!("{}: kind {kind}, {heads} heads of {head_dim}, positions {seen:?}", T::NAME)
    }

    /// Sums that the kernel leaves before it divides equal the definition.
    fn check(&self, kernel: &AttentionKernel) {
        let Self { case: Case { heads, head_dim, seen, .. }, head, .. } = self;
        let (heads, head_dim, tokens) = (*heads, *head_dim, seen.len());
        let (stride, row) = (heads * head_dim + 5, row_elements(head_dim));
        let mut scratch = Buffer::zeroed(kernel.scratch_bytes(head_dim)).unwrap();
        // What was there before must not matter.
        scratch.fill(0xff);
        let mut states = vec![Softmax { max: f32::NAN, sum: f32::NAN }; tokens * heads];
        let mut sums = vec![f32::NAN; tokens * heads * head_dim];
        let positions = seen.iter().copied().max().unwrap();
        for first in (0..positions.max(1)).step_by(CHUNK) {
            let counts: Vec<usize> =
                seen.iter().map(|seen| seen.saturating_sub(first).min(CHUNK)).collect();
            let most = counts.iter().copied().max().unwrap();
            let whole = most.next_multiple_of(KEY_BLOCK);
            let keys =
                (&head.blocks[first * row..][..whole * row], &head.key_scales[first..][..whole]);
            let values = &head.rows[first * row..][..most * row];
            let chunk = T::chunk(keys, (values, &head.value_scales[first..][..whole]));
            let queries = &self.queries[..(tokens - 1) * stride + heads * head_dim];
            let (counts, scale) = (&counts[..], scale(head_dim));
            let input = AttentionInput { queries, stride, heads, head_dim, counts, chunk, scale };
            kernel.run(&input, first > 0, &mut states, &mut sums, &mut scratch);
        }
        assert_eq!(state_bits(&states), state_bits(&self.states), "{}", self.name());
        assert_eq!(bits(&sums), bits(&self.sums), "{}", self.name());
    }

    /// Chunks are merged, and sums divided, as by the definition.
    fn check_ops(&self, ops: &VectorOps) {
        for Merge { before, chunk: (chunk, part), after: (state, sum) } in &self.merges {
            let (mut found, mut merged) = before.clone();
            ops.attention_merge(&mut found, &mut merged, *chunk, part);
            assert_eq!(state_bits(&[found]), state_bits(&[*state]), "{}", self.name());
            assert_eq!(bits(&merged), bits(sum), "{}", self.name());
        }
        for (state, sum) in self.states.iter().zip(self.sums.chunks_exact(self.case.head_dim)) {
            let (mut a, mut b) = (sum.to_vec(), sum.to_vec());
            numerics::attention_finish(*state, &mut a);
            ops.attention_finish(*state, &mut b);
            assert_eq!(bits(&a), bits(&b), "{}", self.name());
        }
    }
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Cases with every type of keys and values.
struct Cases {
    f16: Vec<Defined<f16>>,
    f32: Vec<Defined<f32>>,
    q8: Vec<Defined<i8>>,
}

impl Cases {
    fn new(cases: impl IntoIterator<Item = Case>) -> Self {
        let (mut f16, mut f32, mut q8) = (Vec::new(), Vec::new(), Vec::new());
        for case in cases {
            f16.push(Defined::new(&case));
            f32.push(Defined::new(&case));
            q8.push(Defined::new(&case));
        }
        assert!(!f16.is_empty());
        Self { f16, f32, q8 }
    }

    fn check(&self, kernel: &AttentionKernel) {
        self.f16.iter().for_each(|case| case.check(kernel));
        self.f32.iter().for_each(|case| case.check(kernel));
        self.q8.iter().for_each(|case| case.check(kernel));
    }

    fn check_ops(&self, ops: &VectorOps) {
        self.f16.iter().for_each(|case| case.check_ops(ops));
        self.f32.iter().for_each(|case| case.check_ops(ops));
        self.q8.iter().for_each(|case| case.check_ops(ops));
    }
}

static ONE_CHUNK_OF_EVERY_SIZE: LazyLock<Cases> = LazyLock::new(|| {
    let sizes = HEAD_DIMS.iter().flat_map(|&d| POSITIONS.iter().map(move |&p| (d, p)));
    let of_kind = |(head_dim, positions)| {
        // 7 rows leave every tail that a kernel has.
        (0..4).map(move |kind| Case { heads: 7, head_dim, seen: vec![positions], kind })
    };
    Cases::new(sizes.flat_map(of_kind))
});

static EVERY_NUMBER_OF_ROWS: LazyLock<Cases> = LazyLock::new(|| {
    Cases::new((1..=17).flat_map(|rows| {
        [
            Case { heads: rows, head_dim: 64, seen: vec![37], kind: 0 },
            Case { heads: 1, head_dim: 48, seen: vec![37; rows], kind: 0 },
        ]
    }))
});

static ROWS_SEE_DIFFERENT_NUMBERS_OF_POSITIONS: LazyLock<Cases> = LazyLock::new(|| {
    let mut cases = Vec::new();
    for head_dim in [24, 64, 128] {
        for heads in [1, 3, 4] {
            let ragged = [
                (1..=9).collect(),
                (14..=18).collect(),
                vec![256, 0, 1, 31, 32, 33, 0, 255],
                vec![100, 3, 100, 100, 64],
                vec![0, 0, 0, 0, 0],
            ];
            cases.extend(ragged.map(|seen| Case { heads, head_dim, seen, kind: 0 }));
        }
    }
    Cases::new(cases)
});

static CHUNKS_ARE_MERGED_LEFT_TO_RIGHT: LazyLock<Cases> = LazyLock::new(|| {
    let mut cases = Vec::new();
    for kind in 0..3 {
        for heads in [1, 3, 4] {
            // Tokens on both sides of a chunk's end: some see nothing of the next one.
            let histories =
                [vec![257], vec![600, 600], (250..=262).collect(), vec![1024, 5, 513, 512, 256]];
            cases.extend(histories.map(|seen| Case { heads, head_dim: 64, seen, kind }));
        }
    }
    Cases::new(cases)
});

const PROPERTIES: [(&str, &LazyLock<Cases>); 4] = [
    ("one_chunk_of_every_size", &ONE_CHUNK_OF_EVERY_SIZE),
    ("every_number_of_rows", &EVERY_NUMBER_OF_ROWS),
    ("rows_see_different_numbers_of_positions", &ROWS_SEE_DIFFERENT_NUMBERS_OF_POSITIONS),
    ("chunks_are_merged_left_to_right", &CHUNKS_ARE_MERGED_LEFT_TO_RIGHT),
];

/// No size that does not fit reaches a kernel.
fn sizes_are_checked() {
    const D: usize = 20;
    let kernel = AttentionKernel::default(Isa::best()).unwrap();
    let queries = [1.0; 2 * 50 + 2 * D];
    let (keys, values) = ([1.0f32; 32 * 32], [1.0f32; 17 * 32]);
    // 3 tokens of 2 heads.
    let good = AttentionInput {
        queries: &queries,
        stride: 50,
        heads: 2,
        head_dim: D,
        counts: &[16, 17, 0],
        chunk: KvChunk::F32 { keys: &keys, values: &values },
        scale: 1.0,
    };
    let runs =
        |input: &AttentionInput<'_>, states: usize, out: usize, scratch: usize, at: usize| {
            let mut states = vec![Softmax { max: 0.0, sum: 0.0 }; states];
            let (mut out, mut memory) = (vec![0.0; out], Buffer::zeroed(scratch + at).unwrap());
            let call = || kernel.run(input, false, &mut states, &mut out, &mut memory[at..]);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_ok()
        };
    let bytes = kernel.scratch_bytes(D);
    let fits = |input| runs(&input, 6, 6 * D, bytes, 0);
    assert!(fits(good));
    assert!(!runs(&good, 5, 6 * D, bytes, 0));
    assert!(!runs(&good, 6, 6 * D - 1, bytes, 0));
    assert!(!runs(&good, 6, 6 * D, bytes - 64, 0));
    assert!(!runs(&good, 6, 6 * D, bytes, 4));
    assert!(!fits(AttentionInput { queries: &queries[1..], ..good }));
    assert!(!fits(AttentionInput { stride: 51, ..good }));
    assert!(!fits(AttentionInput { stride: usize::MAX, ..good }));
    assert!(!fits(AttentionInput { heads: 0, ..good }));
    assert!(!fits(AttentionInput { heads: 3, ..good }));
    assert!(!fits(AttentionInput { head_dim: 0, ..good }));
    assert!(!fits(AttentionInput { head_dim: D + 1, ..good }));
    assert!(!fits(AttentionInput { counts: &[16, 18, 0], ..good }));
    assert!(!fits(AttentionInput { counts: &[16, 257, 0], ..good }));
    assert!(!fits(AttentionInput { counts: &[16, 17], ..good }));
    let chunk = KvChunk::F32 { keys: &keys[1..], values: &values };
    assert!(!fits(AttentionInput { chunk, ..good }));
    let chunk = KvChunk::F32 { keys: &keys, values: &values[1..] };
    assert!(!fits(AttentionInput { chunk, ..good }));
    let (keys, values, scales) = ([1i8; 32 * 32], [1i8; 17 * 32], [1.0; 32]);
    let codes = |keys, key_scales, values, value_scales| {
        let chunk = KvChunk::Q8 { keys, key_scales, values, value_scales };
        fits(AttentionInput { chunk, ..good })
    };
    assert!(codes(&keys, &scales, &values, &scales));
    assert!(!codes(&keys[1..], &scales, &values, &scales));
    assert!(!codes(&keys, &scales[1..], &values, &scales));
    assert!(!codes(&keys, &scales, &values[1..], &scales));
    assert!(!codes(&keys, &scales, &values, &scales[1..]));
    // No tokens, nothing to do.
    assert!(runs(&AttentionInput { counts: &[], ..good }, 0, 0, bytes, 0));
}

/// The layout of keys, without a kernel: every element has its own place.
fn every_key_element_has_a_place() {
    for &head_dim in HEAD_DIMS {
        let mut slots: Vec<usize> = key_slots(head_dim).collect();
        assert_eq!(slots.len(), head_dim);
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), head_dim);
        let end = KEY_BLOCK * row_elements(head_dim);
        assert!(slots.iter().all(|slot| slot % KEY_BLOCK == 0 && *slot < end));
    }
    // Two steps: lanes 0, 8, 4, 12 of the first, then of the second, then 2, 10, ...
    let slots: Vec<usize> = key_slots(32).map(|slot| slot / KEY_BLOCK).collect();
    assert_eq!([slots[0], slots[8], slots[4], slots[12]], [0, 1, 2, 3]);
    assert_eq!([slots[16], slots[24], slots[2], slots[31]], [4, 5, 8, 31]);
}

fn main() -> ExitCode {
    let isas = Isa::of_arch(env::consts::ARCH);
    let mut suite = suite![sizes_are_checked, every_key_element_has_a_place];
    let ids = bitnet_codegen::grid(isas);
    let kernels: Vec<KernelId> = ids.into_iter().filter(|id| id.op == Op::Attention).collect();
    for (property, cases) in PROPERTIES {
        for &id in &kernels {
            suite.add(format!("{property}::{id}"), move || -> Tested {
                Need::isa(id.isa)?;
                let kernel = AttentionKernel::find(&id).expect("every build holds the grid");
                cases.check(&kernel);
                Ok(())
            });
        }
    }
    // What is done between and after the kernels, for each tier of float operations.
    for &isa in isas.iter().filter(|isa| isa.float_tier() == **isa) {
        suite.add(format!("merged_and_divided::{isa}"), move || -> Tested {
            Need::isa(isa)?;
            let ops = VectorOps::best(isa);
            assert_eq!(ops.isa(), isa);
            assert!(CHUNKS_ARE_MERGED_LEFT_TO_RIGHT.f16.iter().any(|case| !case.merges.is_empty()));
            PROPERTIES.iter().for_each(|(_, cases)| cases.check_ops(&ops));
            Ok(())
        });
    }
    suite.run()
}
