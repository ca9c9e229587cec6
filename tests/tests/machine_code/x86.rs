//! Machine code of the kernels, read back from memory: the instruction that each was
//! written for is in its hot loop, in full width and as often as the id says, with no more beside
//! it than a table allows, and no two kernels are the same code.
//!
//! Nothing is run, so every built-in kernel is looked at, whatever this CPU is; and, where there is a
//! compiler, one of each kind that is made on the host alone, for columns of its own. Kernels for ARM
//! are not: the disassembler reads x86 only. Their loops were read with `objdump` when they were written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use bitnet_codegen::{Phase, candidates, grid};
use bitnet_kernels::{ATTENTION, BLOCKS, HEADS, LINES, SKETCHES, TERNARY, abi};
use bitnet_profiles::{
    Format, GatherLayout, HeadFormat, Isa, KernelId, KernelSpec, Layout, Op, Shape, SketchFormat,
};
use bitnet_trials::{Need, Suite, Tested, suite};
use bitnet_tuner::compile::{Toolchain, Workplace};
use iced_x86::{
    Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, Register,
};

/// Instructions of the hot loop of a family of kernels. One `work` instruction covers some
/// products of a weight and an activation; the other instructions are counted against it.
struct Family {
    serves: fn(&KernelId) -> bool,
    isas: &'static [Isa],
    phases: &'static [Phase],
    /// The instruction that multiplies or looks up, and the width of its vectors in bits.
    work: (&'static [Mnemonic], usize),
    /// Products of weights and activation rows that one `work` covers.
    products: usize,
    /// Rows that one load of activations, or of a table, serves.
    rows: usize,
    /// Another instruction that must be there, in the hot loop or one around it.
    also: Option<Mnemonic>,
    /// Instructions for each `work`: itself, and what adds up its results.
    each: f64,
    /// To load and unpack the weights of a `work`; all activation rows share it.
    unpack: f64,
    /// To load the activations or the table of a `work`; all rows of a step share it. Where a step
    /// is one vector, the load may be an operand of the `work` itself.
    load: [f64; 2],
}

/// A kernel: its name, and where its code is.
struct Kernel {
    id: KernelId,
    run: u64,
}

/// The kernels of five tables.
fn listed(
    ternary: &[abi::TernaryEntry],
    blocks: &[abi::BlockEntry],
    heads: &[abi::HeadEntry],
    attention: &[abi::AttentionEntry],
    lines: &[abi::GatherEntry],
) -> Vec<Kernel> {
    let ternary = ternary.iter().map(|entry| (&entry.id, entry.run as *const () as u64));
    let blocks = blocks.iter().map(|entry| (&entry.id, entry.run as *const () as u64));
    let heads = heads.iter().map(|entry| (&entry.id, entry.run as *const () as u64));
    let attention = attention.iter().map(|entry| (&entry.id, entry.run as *const () as u64));
    let lines = lines.iter().map(|entry| (&entry.id, entry.run as *const () as u64));
    let kernel =
        |(id, run): (&abi::Id, u64)| Kernel { id: id.text().unwrap().parse().unwrap(), run };
    ternary.chain(blocks).chain(heads).chain(attention).chain(lines).map(kernel).collect()
}

/// The built-in kernels.
fn kernels() -> Vec<Kernel> {
    let sketch = SKETCHES.iter().map(|entry| Kernel {
        id: entry.id.text().unwrap().parse().unwrap(),
        run: entry.run as *const () as u64,
    });
    listed(TERNARY, BLOCKS, HEADS, ATTENTION, LINES).into_iter().chain(sketch).collect()
}

/// Matrices of 2B-4T, and a head of attention: as many columns as a model has, so that loops stay
/// loops.
const MADE_FOR: Shape = Shape::new(6912, 2560);
const MADE_FOR_HEADS: Shape = Shape::new(20, 128);

/// Of the kernels that are made on the host some of each kind: the first that is built in without
/// its shape, and the first of those that differ from it by more than how far ahead they prefetch.
fn made_ids() -> Vec<KernelId> {
    let isas = || Isa::of_arch("x86_64").iter().copied().filter(|&isa| isa != Isa::Scalar);
    let built_in: BTreeSet<KernelId> = grid(Isa::of_arch("x86_64")).into_iter().collect();
    let mut kinds = BTreeSet::new();
    let is_new = |id: &KernelId| {
        let generic = KernelSpec { shape: None, ..*id.spec() }.validate().unwrap();
        let is_wider = !built_in.contains(&generic);
        let ahead = (id.tile.prefetch > 0, id.tile.level);
        let tile = (id.tile.rows, id.tile.tokens, id.tile.unroll, ahead);
        kinds.insert((id.op, id.isa, Phase::of(&id.tile), is_wider.then_some(tile)))
    };
    let shape = |op| if op == Op::Attention { MADE_FOR_HEADS } else { MADE_FOR };
    let all = |shape| isas().flat_map(move |isa| candidates(isa, Some(shape)));
    let all = all(MADE_FOR).chain(all(MADE_FOR_HEADS));
    all.filter(|id| id.shape == Some(shape(id.op))).filter(is_new).collect()
}

/// Kernels made on the host; or why there are none.
static MADE: LazyLock<Result<Vec<Kernel>, String>> = LazyLock::new(|| {
    let toolchain = Toolchain::find(Workplace::default()).map_err(|why| why.to_string())?;
    let library = toolchain.compile(&made_ids(), Duration::from_secs(300)).unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("kernels.so");
    std::fs::write(&path, library).unwrap();
    // SAFETY: it was made just now, of the generator's source, and has no initialisers.
    let library = unsafe { libloading::Library::new(path).unwrap() };
    // It stays: its code is read until the end.
    let library = Box::leak(Box::new(library));
    // SAFETY: the symbol is a static of this type, by the same version of the generator, whose
    // pointers hold as many entries as it says.
    unsafe {
        let tables = library.get::<*const abi::Tables>(abi::TABLES_SYMBOL.as_bytes()).unwrap();
        let tables = &**tables;
        Ok(listed(
            std::slice::from_raw_parts(tables.ternary, tables.ternary_len),
            std::slice::from_raw_parts(tables.blocks, tables.blocks_len),
            std::slice::from_raw_parts(tables.heads, tables.heads_len),
            std::slice::from_raw_parts(tables.attention, tables.attention_len),
            std::slice::from_raw_parts(tables.lines, tables.gather_len),
        ))
    }
});

/// Kernels made on the host, where there is a compiler.
fn made() -> Tested<&'static [Kernel]> {
    Need::Rustc.met(MADE.as_deref())
}

fn i2_s(id: &KernelId) -> bool {
    matches!(id.op, Op::Ternary(layout) if layout.format() == Format::I2S)
}

fn blocks(id: &KernelId) -> bool {
    matches!(id.op, Op::Blocks(_))
}

fn t5(id: &KernelId) -> bool {
    matches!(id.op, Op::Ternary(layout) if layout.format() == Format::T5) && !id.expands()
}

fn t5_lookup(id: &KernelId) -> bool {
    id.expands()
}

fn tl1(id: &KernelId) -> bool {
    matches!(id.op, Op::Ternary(layout) if layout.format() == Format::Tl1)
}

fn tl2(id: &KernelId) -> bool {
    matches!(id.op, Op::Ternary(layout) if layout.format() == Format::Tl2)
}

fn head(id: &KernelId) -> bool {
    matches!(id.op, Op::Head(_))
}

fn signed_head(id: &KernelId) -> bool {
    id.op == Op::Head(HeadFormat::Q8_0)
}

fn coded_head(id: &KernelId) -> bool {
    matches!(id.op, Op::Head(HeadFormat::Q6K | HeadFormat::Q4_0))
}

/// Blocks whose scales are gathered one by one.
fn small_head(id: &KernelId) -> bool {
    matches!(id.op, Op::Head(HeadFormat::Q4_0 | HeadFormat::T2))
}

fn nibble_head(id: &KernelId) -> bool {
    matches!(id.op, Op::Head(HeadFormat::Q4_1 | HeadFormat::Q4K))
}

fn fifth_bit_head(id: &KernelId) -> bool {
    matches!(id.op, Op::Head(HeadFormat::Q5_0 | HeadFormat::Q5_1 | HeadFormat::Q5K))
}

fn rare_head(id: &KernelId) -> bool {
    let others = matches!(id.op, Op::Head(HeadFormat::Q3K | HeadFormat::Tq2_0 | HeadFormat::T2));
    others || nibble_head(id) || fifth_bit_head(id)
}

fn ternary_head(id: &KernelId) -> bool {
    id.op == Op::Head(HeadFormat::I2S)
}

fn sketch(id: &KernelId) -> bool {
    matches!(id.op, Op::Sketch(_))
}

fn attention(id: &KernelId) -> bool {
    id.op == Op::Attention
}

fn lines(id: &KernelId) -> bool {
    matches!(id.op, Op::Rows(_) | Op::Columns(_))
}

const FMA: &[Mnemonic] = &[Mnemonic::Vfmadd132ps, Mnemonic::Vfmadd213ps, Mnemonic::Vfmadd231ps];
const ZMM: &[Isa] = &[Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Vbmi];
const VNNI: &[Isa] = &[Isa::Avx512Vnni, Isa::Avx512Vbmi];
const BOTH: &[Phase] = &[Phase::Decode, Phase::Prefill];

/// The bounds. They are what the templates ask for, instruction by instruction, and the compiler
/// meets them; [`CONTROL`] is all the room there is.
#[rustfmt::skip]
const FAMILIES: &[Family] = &[
    // Load 1/4, shift 3/4, and; multiply, add.
    Family { serves: i2_s, isas: &[Isa::Avx2], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 8, also: None, each: 2.0, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: i2_s, isas: &[Isa::Avx512], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 16, also: None, each: 2.0, unpack: 2.0, load: [1.0, 1.0] },
    // Codes stay in place: no shift. The broadcast is an operand.
    Family { serves: i2_s, isas: VNNI, phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: None, each: 1.0, unpack: 1.25, load: [0.0, 1.0] },
    Family { serves: i2_s, isas: VNNI, phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: None, each: 1.0, unpack: 2.0, load: [0.0, 1.0] },
    // The broadcast is a load of its own: only EVEX has it as an operand.
    Family { serves: i2_s, isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 8, also: None, each: 1.0, unpack: 1.25, load: [1.0, 1.0] },
    Family { serves: i2_s, isas: &[Isa::AvxVnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 8, also: None, each: 1.0, unpack: 2.0, load: [1.0, 1.0] },
    // Block scales: as I2_S. Of one token, and of 64 columns, the hot loop is that of the blocks, with what becomes
    // of a block's sums.
    Family { serves: blocks, isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 8, also: Some(Mnemonic::Vcvtdq2ps), each: 2.75, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: blocks, isas: &[Isa::Avx2], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 8, also: Some(Mnemonic::Vcvtdq2ps), each: 2.25, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: blocks, isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 16, also: Some(Mnemonic::Vcvtdq2ps), each: 2.75, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: blocks, isas: &[Isa::Avx512], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 16, also: Some(Mnemonic::Vcvtdq2ps), each: 2.25, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: blocks, isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 8, also: Some(Mnemonic::Vcvtdq2ps), each: 2.25, unpack: 1.25, load: [1.0, 1.0] },
    Family { serves: blocks, isas: &[Isa::AvxVnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 8, also: Some(Mnemonic::Vcvtdq2ps), each: 1.5, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: blocks, isas: VNNI, phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: Some(Mnemonic::Vcvtdq2ps), each: 2.25, unpack: 1.25, load: [0.0, 1.0] },
    Family { serves: blocks, isas: VNNI, phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: Some(Mnemonic::Vcvtdq2ps), each: 1.5, unpack: 2.0, load: [0.0, 1.0] },
    // For 5 products a load, a comparison, three lookups, 5 ands, and an instruction to find the unit that
    // is looked up ahead; prefill has a subtraction for the comparison, an xor and 4 shifts more.
    Family { serves: t5, isas: &[Isa::Avx512Vbmi], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: Some(Mnemonic::Vpermb), each: 1.0, unpack: 2.2, load: [0.0, 1.0] },
    Family { serves: t5, isas: &[Isa::Avx512Vbmi], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: Some(Mnemonic::Vpermb), each: 1.0, unpack: 3.0, load: [0.0, 1.0] },
    // A lookup and an addition; a load of indices, which all activation rows share, and of a table.
    Family { serves: t5_lookup, isas: &[Isa::Avx512Vbmi], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpermw], 512), products: 96, rows: 32, also: None, each: 2.0, unpack: 1.0, load: [1.0, 1.0] },
    // Two lookups (low and high bytes) serve 32 pairs, and two unpacks and two adds follow. Load
    // 1/2, shift 1/2, and; two broadcasts.
    Family { serves: tl1, isas: &[Isa::Avx2], phases: BOTH, work: (&[Mnemonic::Vpshufb], 256), products: 32, rows: 32, also: None, each: 3.0, unpack: 1.0, load: [1.0, 1.0] },
    // Load 1/2, shift 1/2.
    Family { serves: tl1, isas: ZMM, phases: BOTH, work: (&[Mnemonic::Vpermw], 512), products: 64, rows: 32, also: None, each: 2.0, unpack: 1.0, load: [1.0, 1.0] },
    // As TL1, and two shifts and two `vpsignw` for the signs, which are spread once a unit.
    Family { serves: tl2, isas: &[Isa::Avx2], phases: BOTH, work: (&[Mnemonic::Vpshufb], 256), products: 48, rows: 32, also: Some(Mnemonic::Vpsignw), each: 4.0, unpack: 2.5, load: [1.0, 1.0] },
    // Of 16 triples 5 load, 10 shift, and 9 put the last one together; with VBMI2 4 do.
    Family { serves: tl2, isas: &[Isa::Avx512, Isa::Avx512Vnni], phases: BOTH, work: (&[Mnemonic::Vpermw], 512), products: 96, rows: 32, also: None, each: 2.0, unpack: 1.5, load: [0.0, 1.0] },
    Family { serves: tl2, isas: &[Isa::Avx512Vbmi], phases: BOTH, work: (&[Mnemonic::Vpermw], 512), products: 96, rows: 32, also: Some(Mnemonic::Vpshldw), each: 2.0, unpack: 1.25, load: [0.0, 1.0] },
    // Float heads: convert and multiply-add; rows of a step share a load of activations, and the
    // first of them has it as an operand. On AVX-512 a conversion takes no operand in memory.
    Family { serves: |id| id.op == Op::Head(HeadFormat::F32), isas: &[Isa::Avx2], phases: BOTH, work: (FMA, 256), products: 8, rows: 1, also: None, each: 1.0, unpack: 0.0, load: [1.0, 1.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::F32), isas: &[Isa::Avx512], phases: BOTH, work: (FMA, 512), products: 16, rows: 1, also: None, each: 1.0, unpack: 0.0, load: [1.0, 1.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::F16), isas: &[Isa::Avx2], phases: BOTH, work: (FMA, 256), products: 8, rows: 1, also: Some(Mnemonic::Vcvtph2ps), each: 2.0, unpack: 0.0, load: [1.0, 1.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::F16), isas: &[Isa::Avx512], phases: BOTH, work: (FMA, 512), products: 16, rows: 1, also: Some(Mnemonic::Vcvtph2ps), each: 3.0, unpack: 0.0, load: [1.0, 1.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Bf16), isas: &[Isa::Avx2], phases: BOTH, work: (FMA, 256), products: 8, rows: 1, also: Some(Mnemonic::Vpmovzxwd), each: 3.0, unpack: 0.0, load: [1.0, 1.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Bf16), isas: &[Isa::Avx512], phases: BOTH, work: (FMA, 512), products: 16, rows: 1, also: Some(Mnemonic::Vpmovzxwd), each: 3.0, unpack: 0.0, load: [1.0, 1.0] },
    // Block heads: 512 weights an iteration, with their scales; measured. Signed bytes take two
    // multiplications.
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q8_0), isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddwd], 256), products: 16, rows: 1, also: None, each: 8.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q8_0), isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 16, rows: 1, also: None, each: 7.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q8_0), isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddwd], 512), products: 32, rows: 1, also: None, each: 9.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q8_0), isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 32, rows: 1, also: None, each: 7.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 13.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 13.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 13.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 13.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: small_head, isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 13.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: small_head, isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 12.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: small_head, isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 14.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: small_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 14.0, unpack: 0.0, load: [0.0, 0.0] },
    // Nibbles with minima, fifth bits, third bits with sub-scales, ternary codes: measured too.
    Family { serves: nibble_head, isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 14.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: nibble_head, isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 13.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: nibble_head, isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 15.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: nibble_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 15.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: fifth_bit_head, isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 15.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: fifth_bit_head, isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 22.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: fifth_bit_head, isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 22.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: fifth_bit_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 22.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q3K), isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 18.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q3K), isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 18.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q3K), isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 15.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Q3K), isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 15.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Tq2_0), isas: &[Isa::Avx2], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 8.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Tq2_0), isas: &[Isa::AvxVnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 8.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Tq2_0), isas: &[Isa::Avx512], phases: &[Phase::Decode], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 9.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: |id| id.op == Op::Head(HeadFormat::Tq2_0), isas: &[Isa::Avx512Vnni], phases: &[Phase::Decode], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 9.5, unpack: 0.0, load: [0.0, 0.0] },
    // With several activation rows weights change places, and sums land where they belong: measured.
    Family { serves: signed_head, isas: &[Isa::Avx2], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddwd], 256), products: 16, rows: 1, also: None, each: 4.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: signed_head, isas: &[Isa::AvxVnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 256), products: 16, rows: 1, also: None, each: 4.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: signed_head, isas: &[Isa::Avx512], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddwd], 512), products: 32, rows: 1, also: None, each: 5.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: signed_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 32, rows: 1, also: None, each: 5.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: coded_head, isas: &[Isa::Avx2], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 6.5, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: coded_head, isas: &[Isa::AvxVnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 4.75, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: coded_head, isas: &[Isa::Avx512], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 7.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: coded_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 5.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: rare_head, isas: &[Isa::Avx2], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 8.0, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: rare_head, isas: &[Isa::AvxVnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 6.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: rare_head, isas: &[Isa::Avx512], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 10.25, unpack: 0.0, load: [0.0, 0.0] },
    Family { serves: rare_head, isas: &[Isa::Avx512Vnni], phases: &[Phase::Prefill], work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 7.75, unpack: 0.0, load: [0.0, 0.0] },
    // Heads of I2_S, as its matrices; only where registers are few do codes not stay in place.
    Family { serves: ternary_head, isas: &[Isa::Avx2], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 1, also: None, each: 2.0, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: ternary_head, isas: &[Isa::AvxVnni], phases: BOTH, work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 1, also: None, each: 1.0, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: ternary_head, isas: &[Isa::Avx512], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 1, also: None, each: 2.0, unpack: 2.0, load: [1.0, 1.0] },
    Family { serves: ternary_head, isas: &[Isa::Avx512Vnni], phases: BOTH, work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 1, also: None, each: 1.0, unpack: 1.25, load: [0.0, 1.0] },
    // For every token the product, a broadcast where it is no operand, and what a block's sum becomes;
    // shared by them of 8 products 8 masks and 4 shifts for the codes' low bits, and for bit 4 as many
    // masks and 7 shifts.
    Family { serves: sketch, isas: &[Isa::Avx2], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 256), products: 32, rows: 8, also: Some(Mnemonic::Vpmaddwd), each: 4.0, unpack: 5.5, load: [0.0, 0.0] },
    Family { serves: sketch, isas: &[Isa::AvxVnni], phases: BOTH, work: (&[Mnemonic::Vpdpbusd], 256), products: 32, rows: 8, also: Some(Mnemonic::Vpmovzxbd), each: 2.5, unpack: 6.0, load: [0.0, 0.0] },
    Family { serves: sketch, isas: &[Isa::Avx512], phases: BOTH, work: (&[Mnemonic::Vpmaddubsw], 512), products: 64, rows: 16, also: Some(Mnemonic::Vpmaddwd), each: 3.8, unpack: 4.0, load: [0.0, 0.0] },
    Family { serves: sketch, isas: VNNI, phases: BOTH, work: (&[Mnemonic::Vpdpbusd], 512), products: 64, rows: 16, also: Some(Mnemonic::Vpmovzxbd), each: 1.75, unpack: 4.25, load: [0.0, 0.0] },
];

/// Instructions of an iteration that count, step pointers and branch, and the margin.
const CONTROL: usize = 8;

/// Steps for which the compiler emits more than it should.
struct Crowded {
    serves: fn(&KernelId) -> bool,
    isa: Isa,
    rows: usize,
    tokens: usize,
    /// Accesses to the stack in an iteration.
    stack: usize,
    /// Instructions over the bound of the family.
    more: usize,
}

#[rustfmt::skip]
const CROWDED: &[Crowded] = &[
    // Eight sums, packed and unpacked codes two each, a mask, a product, activations; and where it
    // prefetches, an address.
    Crowded { serves: i2_s, isa: Isa::Avx2,   rows: 16, tokens: 4, stack: 2,  more: 1 },
    // Sums, codes packed and unpacked, a mask, a product, activations.
    Crowded { serves: blocks, isa: Isa::Avx2, rows: 16, tokens: 4, stack: 8,  more: 0 },
    // Four sums for each vector and row, and what is to become of them.
    Crowded { serves: blocks, isa: Isa::AvxVnni, rows: 16, tokens: 1, stack: 8, more: 0 },
    Crowded { serves: blocks, isa: Isa::AvxVnni, rows: 16, tokens: 2, stack: 6, more: 0 },
    // Tables and indices take four registers, signs two a tile, sums two a tile and activation row.
    Crowded { serves: tl1,  isa: Isa::Avx2,   rows: 64, tokens: 2, stack: 4,  more: 4 },
    Crowded { serves: tl2,  isa: Isa::Avx2,   rows: 32, tokens: 2, stack: 2,  more: 0 },
    Crowded { serves: tl2,  isa: Isa::Avx2,   rows: 32, tokens: 3, stack: 8,  more: 2 },
    Crowded { serves: tl2,  isa: Isa::Avx2,   rows: 32, tokens: 4, stack: 14, more: 6 },
    Crowded { serves: tl2,  isa: Isa::Avx2,   rows: 64, tokens: 1, stack: 26, more: 6 },
    Crowded { serves: tl2,  isa: Isa::Avx2,   rows: 64, tokens: 2, stack: 24, more: 10 },
    // Eight rows far apart need more pointers than there are registers.
    Crowded { serves: head, isa: Isa::Avx2,   rows: 8, tokens: 1, stack: 10, more: 32 },
    Crowded { serves: head, isa: Isa::Avx512, rows: 8, tokens: 1, stack: 0,  more: 4 },
    // Constants of the unpacking; how many of Q6_K's, and whether halves of blocks go there too where
    // one of Q4_0's prefetches, depends on what else is compiled beside them.
    Crowded { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isa: Isa::Avx2, rows: 1, tokens: 1, stack: 24, more: 16 },
    Crowded { serves: |id| id.op == Op::Head(HeadFormat::Q4_0), isa: Isa::Avx2, rows: 1, tokens: 1, stack: 26, more: 4 },
    Crowded { serves: |id| id.op == Op::Head(HeadFormat::Q6K), isa: Isa::AvxVnni, rows: 1, tokens: 1, stack: 24, more: 16 },
    Crowded { serves: |id| id.op == Op::Head(HeadFormat::Q4_0), isa: Isa::AvxVnni, rows: 1, tokens: 1, stack: 18, more: 0 },
    // Scales and minima are gathered there, and so are sub-scales of Q3_K; groups may be a loop of their own, or
    // all be unrolled for all tokens.
    Crowded { serves: rare_head, isa: Isa::Avx2,       rows: 1, tokens: 1, stack: 22, more: 0 },
    Crowded { serves: rare_head, isa: Isa::Avx2,       rows: 1, tokens: 4, stack: 8,  more: 0 },
    Crowded { serves: rare_head, isa: Isa::AvxVnni,    rows: 1, tokens: 1, stack: 49, more: 0 },
    Crowded { serves: rare_head, isa: Isa::AvxVnni,    rows: 1, tokens: 4, stack: 115, more: 0 },
    Crowded { serves: rare_head, isa: Isa::Avx512,     rows: 1, tokens: 1, stack: 1,  more: 0 },
    Crowded { serves: rare_head, isa: Isa::Avx512,     rows: 1, tokens: 4, stack: 75, more: 0 },
    Crowded { serves: rare_head, isa: Isa::Avx512Vnni, rows: 1, tokens: 1, stack: 1,  more: 0 },
    // Pointers to the activation rows; with 8 of them sums, too.
    Crowded { serves: head, isa: Isa::Avx2,    rows: 1, tokens: 4, stack: 6,  more: 0 },
    Crowded { serves: head, isa: Isa::Avx2,    rows: 1, tokens: 8, stack: 18, more: 0 },
    Crowded { serves: head, isa: Isa::AvxVnni, rows: 1, tokens: 4, stack: 6,  more: 0 },
    Crowded { serves: head, isa: Isa::AvxVnni, rows: 1, tokens: 8, stack: 18, more: 0 },
    Crowded { serves: head, isa: Isa::Avx512,  rows: 1, tokens: 4, stack: 14, more: 0 },
    Crowded { serves: head, isa: Isa::Avx512,  rows: 1, tokens: 8, stack: 14, more: 0 },
    Crowded { serves: head, isa: Isa::Avx512,  rows: 4, tokens: 4, stack: 2,  more: 8 },
    Crowded { serves: head, isa: Isa::Avx512Vnni, rows: 1, tokens: 4, stack: 14, more: 0 },
    Crowded { serves: head, isa: Isa::Avx512Vnni, rows: 1, tokens: 8, stack: 36, more: 0 },
    // Codes of both vectors of rows, unpacked ahead.
    Crowded { serves: |id| id.op == Op::Sketch(SketchFormat::P4), isa: Isa::Avx2, rows: 16, tokens: 2, stack: 19, more: 0 },
    Crowded { serves: |id| id.op == Op::Sketch(SketchFormat::P5), isa: Isa::Avx2, rows: 16, tokens: 1, stack: 26, more: 0 },
    Crowded { serves: |id| id.op == Op::Sketch(SketchFormat::P5), isa: Isa::Avx2, rows: 16, tokens: 2, stack: 41, more: 24 },
    Crowded { serves: |id| id.op == Op::Sketch(SketchFormat::P5), isa: Isa::AvxVnni, rows: 16, tokens: 1, stack: 28, more: 0 },
    Crowded { serves: |id| id.op == Op::Sketch(SketchFormat::P5), isa: Isa::AvxVnni, rows: 16, tokens: 2, stack: 13, more: 12 },
    // Sums of the rows' other vector, and of whole blocks.
    Crowded { serves: sketch, isa: Isa::Avx2, rows: 16, tokens: 8, stack: 18, more: 0 },
    Crowded { serves: sketch, isa: Isa::AvxVnni, rows: 16, tokens: 8, stack: 12, more: 0 },
];

/// The accesses to the stack and the instructions over the bound that a kernel may have.
fn crowded(id: &KernelId) -> (usize, usize) {
    let crowded = CROWDED.iter().find(|c| {
        (c.serves)(id) && (c.isa, c.rows, c.tokens) == (id.isa, id.tile.rows, id.tile.tokens)
    });
    crowded.map_or((0, 0), |c| (c.stack, c.more))
}

/// The executable mapping of this process that holds `address`, from there to its end.
fn code_from(address: u64) -> &'static [u8] {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|s| u64::from_str_radix(s, 16).unwrap());
        if rights.starts_with("r-x") && (start..end).contains(&address) {
            // SAFETY: the mapping holds the program's code: readable, there for as long as the
            // process is, and never written.
            return unsafe {
                std::slice::from_raw_parts(address as *const u8, (end - address) as usize)
            };
        }
    }
    panic!("no executable mapping holds {address:#x}");
}

/// The instructions that control flow reaches from a function's entry, by address, and the
/// positions that each may be followed by.
struct Function {
    entry: u64,
    instructions: Vec<Instruction>,
    next: Vec<Vec<usize>>,
}

impl Function {
    /// The function at an address.
    fn decode(mut entry: u64) -> Self {
        // Where LLVM merged two functions, one may be a jump to the other.
        loop {
            let code = code_from(entry);
            let first = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).decode();
            if first.flow_control() != FlowControl::UnconditionalBranch {
                return Self::decode_at(entry, code);
            }
            entry = first.near_branch_target();
        }
    }

    /// The functions that this one calls, in the order of the calls.
    fn callees(&self) -> Vec<Self> {
        let calls = self.instructions.iter().filter(|i| i.is_call_near());
        let mut targets: Vec<u64> = calls.map(Instruction::near_branch_target).collect();
        targets.dedup();
        targets.into_iter().map(Self::decode).collect()
    }

    /// Decodes the function at the front of `code`, whose first byte has the address `entry`.
    fn decode_at(entry: u64, code: &[u8]) -> Self {
        let mut found = BTreeMap::new();
        let mut open = vec![entry];
        while let Some(ip) = open.pop() {
            if found.contains_key(&ip) {
                continue;
            }
            let at = ip.wrapping_sub(entry) as usize;
            assert!(at < code.len(), "{entry:#x} jumps out of its function");
            let instruction = Decoder::with_ip(64, &code[at..], ip, DecoderOptions::NONE).decode();
            let follow = match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    vec![instruction.next_ip()]
                }

                FlowControl::ConditionalBranch => {
                    vec![instruction.next_ip(), instruction.near_branch_target()]
                }
                FlowControl::UnconditionalBranch => vec![instruction.near_branch_target()],
                // A stub that jumps to a shared library; padding behind a call that never returns.
                _ => vec![],
            };
            open.extend(&follow);
            found.insert(ip, (instruction, follow));
        }
        let position: HashMap<u64, usize> = found.keys().copied().zip(0..).collect();
        let next = found.values().map(|(_, follow)| follow.iter().map(|ip| position[ip]).collect());
        let next = next.collect();
        Self {
            entry,
            instructions: found.values().map(|(instruction, _)| *instruction).collect(),
            next,
        }
    }

    /// The loops, as their instructions, and whether they hold no other loop: the natural loops of
    /// the edges that go back to an instruction that dominates them.
    fn loops(&self) -> Vec<(Vec<&Instruction>, bool)> {
        let mut previous = vec![Vec::new(); self.next.len()];
        for (from, next) in self.next.iter().enumerate() {
            for &to in next {
                previous[to].push(from);
            }
        }
        let (order, dominator) = self.dominators(&previous);
        let dominates = |head: usize, mut at: usize| {
            while order[at] > order[head] {
                at = dominator[at];
            }
            at == head
        };
        let mut loops: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
        for (from, next) in self.next.iter().enumerate() {
            for &head in next.iter().filter(|&&head| dominates(head, from)) {
                let body = loops.entry(head).or_insert_with(|| vec![false; self.next.len()]);
                body[head] = true;
                let mut open = vec![from];
                while let Some(at) = open.pop() {
                    if !std::mem::replace(&mut body[at], true) {
                        open.extend(&previous[at]);
                    }
                }
            }
        }
        let both = |(head, body): (&usize, &Vec<bool>)| {
            let inside = self.instructions.iter().zip(body).filter(|(_, inside)| **inside);
            let innermost = loops.keys().all(|other| other == head || !body[*other]);
            (inside.map(|(i, _)| i).collect(), innermost)
        };
        loops.iter().map(both).collect()
    }

    /// The loops that hold no other loop.
    fn innermost_loops(&self) -> Vec<Vec<&Instruction>> {
        self.loops().into_iter().filter_map(|(body, inner)| inner.then_some(body)).collect()
    }

    /// The instructions without what only says where the function and its constants lie.
    fn normalised(self) -> Vec<Instruction> {
        let entry = self.entry;
        let normalise = |mut instruction: Instruction| {
            match instruction.flow_control() {
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    let target = instruction.near_branch_target();
                    instruction.set_near_branch64(target.wrapping_sub(entry));
                }
                FlowControl::Call => instruction.set_near_branch64(0),
                _ if instruction.is_ip_rel_memory_operand() => {
                    instruction.set_memory_displacement64(0);
                }
                _ => {}
            }
            instruction
        };
        self.instructions.into_iter().map(normalise).collect()
    }

    /// For every position its place in a reverse postorder from the entry, and the last position
    /// before it that every way to it passes (Cooper, Harvey, Kennedy: A Simple, Fast Dominance
    /// Algorithm).
    fn dominators(&self, previous: &[Vec<usize>]) -> (Vec<usize>, Vec<usize>) {
        let entry = 0;
        let mut seen = vec![false; self.next.len()];
        let mut postorder = Vec::new();
        let mut open = vec![(entry, 0)];
        seen[entry] = true;
        while let Some((at, branch)) = open.pop() {
            match self.next[at].get(branch) {
                None => postorder.push(at),
                Some(&to) => {
                    open.push((at, branch + 1));
                    if !std::mem::replace(&mut seen[to], true) {
                        open.push((to, 0));
                    }
                }
            }
        }
        postorder.reverse();
        let mut order = vec![0; self.next.len()];
        for (place, &at) in postorder.iter().enumerate() {
            order[at] = place;
        }
        let mut dominator: Vec<Option<usize>> = vec![None; self.next.len()];
        dominator[entry] = Some(entry);
        loop {
            let mut changed = false;
            for &at in &postorder[1..] {
                let known = previous[at].iter().copied().filter(|&p| dominator[p].is_some());
                let meet = known.reduce(|mut a, mut b| {
                    while a != b {
                        if order[a] > order[b] {
                            a = dominator[a].unwrap();
                        } else {
                            b = dominator[b].unwrap();
                        }
                    }
                    a
                });
                changed |= dominator[at] != meet;
                dominator[at] = meet;
            }
            if !changed {
                return (order, dominator.into_iter().map(Option::unwrap).collect());
            }
        }
    }
}

/// True if an instruction reads or writes the stack: something was spilled.
fn on_stack(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP
}

/// Products of an iteration that the id allows: as many units as it unrolls; or a group of a unit,
/// where the template makes no difference between groups and leaves it to the compiler whether to
/// unroll them.
fn allowed(id: &KernelId) -> Vec<usize> {
    let all_rows = id.tile.rows * id.tile.tokens;
    match id.op {
        Op::Ternary(_) if id.expands() => vec![6 * all_rows],
        Op::Ternary(layout) => {
            let group = match layout {
                Layout::Tl2T32 => Some(6),
                Layout::Tl2W32 => Some(9),
                _ => None,
            };
            let group = group.filter(|_| id.tile.unroll == 1);
            let cols = [Some(id.tile.unroll * layout.unit_cols()), group];
            cols.into_iter().flatten().map(|cols| cols * all_rows).collect()
        }
        // The 16 lanes of the float contract, filled once by rows of floats or by blocks of 32.
        Op::Head(HeadFormat::F32 | HeadFormat::F16 | HeadFormat::Bf16) => vec![16 * all_rows],
        // A vector of bytes for each of 4 rows or tokens.
        Op::Head(HeadFormat::I2S) => vec![64 * id.isa.lanes()],
        Op::Head(_) => [512, 256, 128].map(|cols| cols * id.tile.tokens).to_vec(),
        // Where registers are few, sums of one vector of rows after the other, and of half a block.
        Op::Sketch(_) => [32, 16, 8].map(|cols| all_rows * cols).to_vec(),
        // A unit; of codes that were unpacked before, 4 columns.
        Op::Blocks(_) if id.at_once() < id.tile.tokens => vec![4 * id.tile.rows * id.at_once()],
        Op::Blocks(_) => vec![16 * all_rows],
        Op::Attention => panic!("{id}: see `attention_holds_its_sums_in_registers`"),
        Op::Rows(_) | Op::Columns(_) => panic!("{id}: see `lists_of_lines_are_walked_at_once`"),
    }
}

/// Checks the hot loop of a kernel, and gives its instructions per 1000 products.
fn check(kernel: &Kernel) -> Result<f64, String> {
    let id = kernel.id;
    let phase = Phase::of(&id.tile);
    let serves =
        |f: &&Family| (f.serves)(&id) && f.isas.contains(&id.isa) && f.phases.contains(&phase);
    let Some(family) = FAMILIES.iter().find(serves) else {
        return Err("no row of FAMILIES says what its hot loop holds".into());
    };
    let function = Function::decode(kernel.run);
    let callees = function.callees();
    let mut code = [&function].into_iter().chain(&callees).flat_map(|f| &f.instructions);
    let (mnemonics, bits) = family.work;
    let is_work = |i: &&Instruction| {
        mnemonics.contains(&i.mnemonic()) && i.op0_register().info().size() * 8 == bits
    };
    let work = |body: &Vec<&Instruction>| body.iter().copied().filter(is_work).count();
    let loops: Vec<_> =
        [&function].into_iter().chain(&callees).flat_map(Function::innermost_loops).collect();
    let Some(hot) = loops.iter().max_by_key(|body| work(body)).filter(|body| work(body) > 0) else {
        return Err(format!("no loop holds a {bits}-bit {mnemonics:?}"));
    };
    if hot.iter().any(|i| i.is_call_near() || i.is_call_near_indirect()) {
        return Err("a call in the hot loop".into());
    }
    if !id.isa.includes(Isa::Avx512) && code.any(|i| i.encoding() == EncodingKind::EVEX) {
        return Err("an instruction of AVX-512".into());
    }
    let any_loop = function.loops();
    let in_loops = any_loop.iter().flat_map(|(body, _)| body);
    if let Some(also) = family.also
        && !in_loops.chain(hot).any(|i| i.mnemonic() == also)
    {
        return Err(format!("no {also:?} in a loop"));
    }
    // A few more: the compiler may use the same instruction for something else.
    let covered = |products: &usize| {
        let whole = products / family.products;
        work(hot) >= whole && work(hot) % whole <= whole / 8
    };
    let Some(iteration) = allowed(&id).into_iter().find(covered) else {
        return Err(format!(
            "{} {mnemonics:?} of {} products each in the hot loop, but the id says {:?} products",
            work(hot),
            family.products,
            allowed(&id)
        ));
    };
    let lookups = work(hot) / (iteration / family.products) * (iteration / family.products);
    let products = lookups * family.products;
    let per_1000 = |instructions: f64| instructions * 1000.0 / products as f64;
    let spills = hot.iter().filter(|i| on_stack(i)).count();
    let (stack, more) = crowded(&id);
    // Codes that were unpacked before are read from there.
    let unpacked = if id.at_once() < id.tile.tokens { lookups / id.at_once() } else { 0 };
    let stack = stack.max(unpacked);
    if spills > stack {
        return Err(format!("{spills} accesses to the stack in the hot loop, not {stack}"));
    }
    let vectors = id.tile.rows / family.rows;
    let prefetches = hot.iter().filter(|i| i.mnemonic() == Mnemonic::Prefetcht0).count();
    // Groups of a block head may be a loop of their own.
    let is_prefetch = |i: &&Instruction| i.mnemonic() == Mnemonic::Prefetcht0;
    let prefetched = any_loop.iter().any(|(body, _)| body.iter().any(is_prefetch));
    if (prefetches > 0 || prefetched) != (id.tile.prefetch > 0) {
        return Err(format!("{prefetches} prefetches in the hot loop"));
    }
    let bound = lookups as f64
        * (family.each
            + family.unpack / id.at_once() as f64
            + family.load[usize::from(vectors > 1)] / vectors as f64)
        + (CONTROL + more + prefetches) as f64;
    if hot.len() as f64 > bound {
        return Err(format!(
            "{:.2} instructions per 1000 products, more than {:.2}: {} in an iteration of \
             {products}",
            per_1000(hot.len() as f64),
            per_1000(bound),
            hot.len()
        ));
    }
    Ok(per_1000(hot.len() as f64))
}

fn hot_loops_hold_what_the_kernels_were_written_for() {
    hold_what_they_were_written_for(&kernels());
}

fn hot_loops_of_kernels_made_on_the_host_do_too() -> Tested {
    hold_what_they_were_written_for(made()?);
    Ok(())
}

fn hold_what_they_were_written_for(kernels: &[Kernel]) {
    let mut report: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let looked_at = |kernel: &&Kernel| {
        kernel.id.isa != Isa::Scalar && !attention(&kernel.id) && !lines(&kernel.id)
    };
    for kernel in kernels.iter().filter(looked_at) {
        match check(kernel) {
            Ok(density) => {
                let id = kernel.id;
                let family = (id.op.to_string(), id.isa, Phase::of(&id.tile));
                report.entry(family).or_default().push(density);
            }
            Err(problem) => wrong.push(format!("{}: {problem}", kernel.id)),
        }
    }
    println!("instructions per 1000 products of a weight and an activation:");
    for ((op, isa, phase), densities) in &report {
        let least = densities.iter().copied().fold(f64::INFINITY, f64::min);
        let most = densities.iter().copied().fold(0.0, f64::max);
        let count = densities.len();
        println!("{op:9} {isa:10} {phase:?}: {least:.1} to {most:.1} ({count} kernels)");
    }
    assert!(wrong.is_empty(), "{} kernels:\n{}", wrong.len(), wrong.join("\n"));
}

/// Attention has loops for scores and for values, of f16, f32 and int8, and for fewer rows than the id
/// says. Those that hold the most sums have nothing beside the multiply-adds but loading and
/// widening up to 8 vectors, asking for as many ahead, broadcasts, and the loop itself.
fn attention_holds_its_sums_in_registers() {
    have_sums_in_registers(&kernels());
}

fn attention_made_on_the_host_does_too() -> Tested {
    have_sums_in_registers(made()?);
    Ok(())
}

fn have_sums_in_registers(kernels: &[Kernel]) {
    let mut wrong = Vec::new();
    for kernel in kernels.iter().filter(|k| attention(&k.id) && k.id.isa != Isa::Scalar) {
        let id = kernel.id;
        let (bits, sums, longest) = match (id.isa, id.tile.rows) {
            // 4 vectors of two registers; 4 broadcasts.
            (Isa::Avx2, _) => (256, 8, 8 + 2 * 8 + 4 + 4 + 3),
            (_, 1) => (512, 8, 8 + 2 * 8 + 8 + 4 + 4),
            // Steps of two rows have the most vectors; of keys 8 broadcasts serve two blocks.
            _ => (512, 16, 16 + 2 * 8 + 8 + 8 + 4),
        };
        let function = Function::decode(kernel.run);
        let callees = function.callees();
        let is = |i: &Instruction, mnemonic| {
            i.mnemonic() == mnemonic && i.op0_register().info().size() * 8 == bits
        };
        let count = |body: &[&Instruction], mnemonics: &[Mnemonic]| {
            body.iter().filter(|i| mnemonics.iter().any(|&m| is(i, m))).count()
        };
        let loops = [&function].into_iter().chain(&callees).flat_map(Function::innermost_loops);
        // Exponentials multiply too, and scale.
        let loops: Vec<_> = loops.filter(|body| count(body, &[Mnemonic::Vmulps]) == 0).collect();
        let most = loops.iter().map(|body| count(body, FMA)).max().unwrap_or(0);
        if most != sums {
            wrong.push(format!("{id}: {most} multiply-adds in a loop, not {sums}"));
        }
        for body in loops.iter().filter(|body| 2 * count(body, FMA) > most) {
            let calls = body.iter().filter(|i| i.is_call_near() || i.is_call_near_indirect());
            // Beside what is read and what is asked for there may be too few registers for addresses.
            let vector =
                |i: &Instruction| (0..i.op_count()).any(|n| i.op_register(n).is_vector_register());
            let spills = body.iter().filter(|i| on_stack(i) && vector(i)).count();
            let calls = calls.count();
            if calls + spills > 0 || body.len() > longest {
                let length = body.len();
                wrong.push(format!("{id}: a loop of {length}, {calls} calls, {spills} spills"));
            }
        }
        let [half, int] = [Mnemonic::Vcvtph2ps, Mnemonic::Vcvtdq2ps];
        for (name, widening) in
            [("f32", [false, false]), ("f16", [true, false]), ("int8", [false, true])]
        {
            let of_type = |body: &&Vec<&Instruction>| {
                let found = [half, int].map(|mnemonic| count(body, &[mnemonic]) > 0);
                count(body, FMA) == most && found == widening
            };
            let mut hot = loops.iter().filter(of_type).peekable();
            if hot.peek().is_none() {
                wrong.push(format!("{id}: no hot loop for {name}"));
            }
            // Of the passes over some lanes each, the first asks.
            let ask = [Mnemonic::Prefetcht0, Mnemonic::Prefetcht1][id.tile.level - 1];
            let asks = |i: &&Instruction| i.mnemonic() == ask;
            if hot.any(|body| body.iter().any(asks)) != (id.tile.prefetch > 0) {
                wrong.push(format!("{id}: the hot loops for {name} do not ask ahead as it says"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Kernels with a list of lines have one loop that multiplies, over the units of some lines or over
/// the list: without a call, with the sums in registers, and with no more beside a multiplication
/// than unpacking and the list ask for.
fn lists_of_lines_are_walked_at_once() {
    walk_lists(&kernels());
}

fn those_made_on_the_host_are_too() -> Tested {
    walk_lists(made()?);
    Ok(())
}

fn walk_lists(kernels: &[Kernel]) {
    let mut wrong = Vec::new();
    for kernel in kernels.iter().filter(|k| lines(&k.id) && k.id.isa != Isa::Scalar) {
        let id = kernel.id;
        let (Op::Rows(layout) | Op::Columns(layout)) = id.op else { unreachable!() };
        let bits = id.isa.lanes() * 32;
        let wide = id.isa.dots_are_wide();
        let multiplies = if wide { Mnemonic::Vpdpbusd } else { Mnemonic::Vpmaddubsw };
        let vectors = 512 / bits;
        // Products of one iteration, and what else is in it: for every vector of bytes to load and
        // to unpack it, for every line to prefetch.
        let (products, others) = match id.op {
            Op::Rows(_) => (
                id.tile.rows * layout.fields() * vectors,
                id.tile.rows * (vectors * unpack(&id) + 1 + 2 * usize::from(id.tile.prefetch > 0)),
            ),
            _ => {
                let parts = id.tile.rows / id.isa.lanes() / layout.fields();
                // Four lines are found, loaded and interleaved.
                let line = if id.tile.prefetch > 0 { 16 } else { 9 };
                (parts * layout.fields(), 4 * line + 4 + parts * unpack(&id))
            }
        };
        let each = if wide { 1 } else { 2 };
        let function = Function::decode(kernel.run);
        let callees = function.callees();
        let is_work = |i: &&&Instruction| {
            i.mnemonic() == multiplies && i.op0_register().info().size() * 8 == bits
        };
        let loops = [&function].into_iter().chain(&callees).flat_map(Function::innermost_loops);
        let loops: Vec<_> = loops.filter(|body| body.iter().filter(is_work).count() > 0).collect();
        if loops.is_empty() {
            wrong.push(format!("{id}: no loop holds a {bits}-bit {multiplies:?}"));
        }
        for body in loops {
            let work = body.iter().filter(is_work).count();
            let calls = body.iter().filter(|i| i.is_call_near() || i.is_call_near_indirect());
            let (calls, spills) = (calls.count(), body.iter().filter(|i| on_stack(i)).count());
            let bound = each * products + others + CONTROL;
            // Twenty sums, four vectors and twelve constants are more than the registers.
            let stack = if id.op == Op::Columns(GatherLayout::T5L64) { 7 } else { 0 };
            if calls > 0 || work != products || body.len() > bound || spills > stack {
                wrong.push(format!(
                    "{id}: a loop of {}, at most {bound}; {work} products, not {products}; {calls} \
                     calls; {spills} accesses to the stack",
                    body.len()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} kernels:\n{}", wrong.len(), wrong.join("\n"));
}

/// Instructions that load and unpack a vector of bytes of a line.
fn unpack(id: &KernelId) -> usize {
    match id.op {
        // A comparison, three lookups, five ands.
        Op::Rows(GatherLayout::T5L64) | Op::Columns(GatherLayout::T5L64) => 1 + 4 + 5,
        _ if id.isa.dots_are_wide() => 1 + 4,
        // Three shifts.
        _ => 1 + 3 + 4,
    }
}

/// Scalar kernels are what the compiler makes of them; but their vocabulary must melt away. A `memset`
/// of the C library, which is called by a pointer, is what the compiler may make of sums set to zero.
fn scalar_kernels_call_nothing_in_their_loops() {
    let mut wrong = Vec::new();
    let ternary = |kernel: &&Kernel| matches!(kernel.id.op, Op::Ternary(_));
    for kernel in kernels().iter().filter(ternary).filter(|kernel| kernel.id.isa == Isa::Scalar) {
        let function = Function::decode(kernel.run);
        let loops = function.innermost_loops();
        assert!(!loops.is_empty(), "{}: no loop", kernel.id);
        if loops.iter().flatten().any(|i| i.is_call_near()) {
            wrong.push(kernel.id.to_string());
        }
    }
    assert!(wrong.is_empty(), "calls in the innermost loops of {wrong:#?}");
}

/// Two ids with the same code: a constant of the template is without effect, and one of the two
/// kernels is tuned for nothing.
fn no_two_kernels_are_the_same_code() {
    differ(&kernels());
}

fn no_two_kernels_made_on_the_host_are_the_same_code() -> Tested {
    differ(made()?);
    Ok(())
}

fn differ(kernels: &[Kernel]) {
    let mut by_code: HashMap<Vec<Instruction>, Vec<String>> = HashMap::new();
    for kernel in kernels {
        let function = Function::decode(kernel.run);
        let callees = function.callees();
        let all = [function].into_iter().chain(callees);
        let code = all.flat_map(Function::normalised).collect();
        by_code.entry(code).or_default().push(kernel.id.to_string());
    }
    let mut same: Vec<_> = by_code.into_values().filter(|ids| ids.len() > 1).collect();
    same.sort();
    assert!(same.is_empty(), "the same machine code: {same:#?}");
}

/// The analysis itself, on two nested loops.
fn loops_are_found() {
    let code: &[u8] = &[
        0x31, 0xc0, // 0: xor eax, eax
        0x31, 0xc9, // 2: xor ecx, ecx (outer loop)
        0xff, 0xc1, // 4: inc ecx (inner loop)
        0x83, 0xf9, 0x08, // 6: cmp ecx, 8
        0x75, 0xf9, // 9: jne 4
        0xff, 0xc0, // 11: inc eax
        0x83, 0xf8, 0x08, // 13: cmp eax, 8
        0x75, 0xf0, // 16: jne 2
        0xc3, // 18: ret
    ];
    let function = Function::decode_at(0, code);
    let loops: Vec<Vec<u64>> = function
        .innermost_loops()
        .iter()
        .map(|body| body.iter().map(|i| i.ip()).collect())
        .collect();
    assert_eq!(loops, [[4, 6, 9]]);
}

/// The tests of this file.
pub fn tests() -> Suite {
    suite![
        hot_loops_hold_what_the_kernels_were_written_for,
        hot_loops_of_kernels_made_on_the_host_do_too,
        attention_holds_its_sums_in_registers,
        attention_made_on_the_host_does_too,
        lists_of_lines_are_walked_at_once,
        those_made_on_the_host_are_too,
        scalar_kernels_call_nothing_in_their_loops,
        no_two_kernels_are_the_same_code,
        no_two_kernels_made_on_the_host_are_the_same_code,
        loops_are_found,
    ]
}
