//! Assembles kernels into files.

use std::collections::BTreeSet;
use std::fmt::Write;

use bitnet_profiles::{GatherLayout, HeadFormat, Isa, KernelId, Layout, Op, stable_hash};
use bitnet_templates::{ABI, LINES, SHARED, Source, TEMPLATES, VECTOR, VOCABULARIES, abi};
use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};

use crate::Error;
use crate::specialise::{Constant, specialise, without_tests};

const GENERATOR: &str = env!("CARGO_PKG_VERSION");

/// A hash over everything generated code depends on beside its spec: the text of the templates,
/// what they share, vocabularies and ABI, and the generator's version. Spelled as 16 hexadecimal digits.
pub fn fingerprint() -> String {
    let texts = [&ABI, &VECTOR].into_iter().chain(SHARED).chain(LINES);
    let texts = texts.chain(VOCABULARIES).chain(TEMPLATES).map(|source| source.text);
    stable_hash(texts.chain([GENERATOR]).flat_map(|text| text.bytes().chain([0xff])))
}

/// One kernel as a file of its own, to be read.
///
/// # Errors
/// No template computes the op, or a template is at fault.
pub fn emit_kernel(id: &KernelId) -> Result<String, Error> {
    let template = template(id)?;
    let mut out = header(template.path);
    module(&mut out, &id.to_string(), &kernel(id, template)?);
    out.truncate(out.trim_end().len());
    out.push('\n');
    Ok(out)
}

/// All of `ids` in one file, to be part of a program: the ABI, the vocabularies up to the best ISA
/// among them, a module for each kernel and for the float operations of each ISA, and the tables
/// `TERNARY`, `BLOCKS`, `HEADS`, `SKETCHES`, `ATTENTION`, `LINES` and `VECTOR`. The file's text depends on `ids` and
/// nothing else.
///
/// # Errors
/// As [`emit_kernel`].
pub fn emit_library(ids: &[KernelId]) -> Result<String, Error> {
    // A vocabulary builds on those of the tiers that its own includes.
    let used = |isa: Isa| isa == Isa::Scalar || ids.iter().any(|id| id.isa.includes(isa));
    let isas: Vec<Isa> = Isa::ALL.iter().copied().filter(|&isa| used(isa)).collect();
    let of_isas = |source: &&Source| isas.iter().any(|isa| isa.name() == source.name);
    let vocabularies: Vec<Source> = VOCABULARIES.iter().filter(of_isas).copied().collect();
    let mut out = header("templates/src");
    let Entries { ternary, blocks, heads, sketch, attention, lines } =
        modules(&mut out, ids, &vocabularies)?;
    let mut vectors = Vec::new();
    for &isa in isas.iter().filter(|isa| isa.float_tier() == **isa) {
        let name = vector_module(isa);
        module(&mut out, &name, &specialise(&VECTOR, isa, None, &[])?);
        let (isa, path) = (isa.name(), format_ident!("{name}"));
        vectors.push(quote!((#isa, #path::ENTRY)));
    }
    let fingerprint = fingerprint();
    out.push_str(&unparse(quote! {
        /// The generator's fingerprint.
        pub const FINGERPRINT: &str = #fingerprint;
        /// Every ternary kernel of this file.
        pub static TERNARY: &[abi::TernaryEntry] = &[#(#ternary),*];
        /// Every kernel of this file for matrices with block scales.
        pub static BLOCKS: &[abi::BlockEntry] = &[#(#blocks),*];
        /// Every head kernel of this file.
        pub static HEADS: &[abi::HeadEntry] = &[#(#heads),*];
        /// Every kernel of this file that scans sketch.
        pub static SKETCHES: &[abi::SketchEntry] = &[#(#sketch),*];
        /// Every attention kernel of this file.
        pub static ATTENTION: &[abi::AttentionEntry] = &[#(#attention),*];
        /// Every kernel of this file that is given a list of lines.
        pub static LINES: &[abi::GatherEntry] = &[#(#lines),*];
        /// The float operations of every ISA, by its name.
        pub static VECTOR: &[(&str, abi::VectorEntry)] = &[#(#vectors),*];
    }));
    Ok(out)
}

/// All of `ids` in one file, to be a library of its own that needs nothing but `core` and, from the
/// program that loads it, the functions of C that compiled code calls: it exports
/// [`abi::HEADER_SYMBOL`] and [`abi::TABLES_SYMBOL`]. The file's text depends on `ids` and nothing
/// else.
///
/// # Errors
/// As [`emit_kernel`]; [`Error::NeedsStd`] for a scalar kernel.
pub fn emit_cdylib(ids: &[KernelId]) -> Result<String, Error> {
    if let Some(id) = ids.iter().find(|id| id.isa == Isa::Scalar) {
        return Err(Error::NeedsStd { id: id.to_string() });
    }
    // Each comes after those it builds on.
    let mut used: BTreeSet<&str> = ids.iter().map(|id| id.isa.name()).collect();
    for source in VOCABULARIES.iter().rev() {
        if used.contains(source.name) {
            let base = |s: &&Source| source.text.contains(&format!("use super::{}::*;", s.name));
            used.extend(VOCABULARIES.iter().filter(base).map(|s| s.name));
        }
    }
    let vocabularies: Vec<Source> =
        VOCABULARIES.iter().filter(|s| used.contains(s.name)).copied().collect();
    let mut out = header("templates/src");
    out.push_str(NO_STD);
    let Entries { ternary, blocks, heads, attention, lines, .. } =
        modules(&mut out, ids, &vocabularies)?;
    let floats =
        ids.iter().filter(|id| matches!(id.op, Op::Head(_) | Op::Sketch(_) | Op::Attention));
    let tiers: BTreeSet<Isa> = floats.map(|id| id.isa.float_tier()).collect();
    for isa in tiers {
        module(&mut out, &vector_module(isa), &specialise(&VECTOR, isa, None, &[])?);
    }
    let [header, symbol] = [abi::HEADER_SYMBOL, abi::TABLES_SYMBOL].map(|s| format_ident!("{s}"));
    let fingerprint = Literal::byte_string(fingerprint().as_bytes());
    let tables = [&ternary, &blocks, &heads, &attention, &lines];
    let [ternary_len, blocks_len, heads_len, attention_len, gather_len] = tables.map(Vec::len);
    out.push_str(&unparse(quote! {
        static TERNARY: [abi::TernaryEntry; #ternary_len] = [#(#ternary),*];
        static BLOCKS: [abi::BlockEntry; #blocks_len] = [#(#blocks),*];
        static HEADS: [abi::HeadEntry; #heads_len] = [#(#heads),*];
        static ATTENTION: [abi::AttentionEntry; #attention_len] = [#(#attention),*];
        static LINES: [abi::GatherEntry; #gather_len] = [#(#lines),*];
        /// The build that this library was made for.
        #[unsafe(no_mangle)]
        pub static #header: abi::Header =
            abi::Header { version: abi::VERSION, fingerprint: *#fingerprint };
        /// Every kernel of this library.
        #[unsafe(no_mangle)]
        pub static #symbol: abi::Tables = abi::Tables {
            ternary: TERNARY.as_ptr(),
            ternary_len: TERNARY.len(),
            blocks: BLOCKS.as_ptr(),
            blocks_len: BLOCKS.len(),
            heads: HEADS.as_ptr(),
            heads_len: HEADS.len(),
            attention: ATTENTION.as_ptr(),
            attention_len: ATTENTION.len(),
            lines: LINES.as_ptr(),
            gather_len: LINES.len(),
        };
    }));
    Ok(out)
}

/// Attributes of a library without `std`. Its lints are those of the templates.
const NO_STD: &str = "\
#![no_std]
#![allow(warnings)]

unsafe extern \"C\" {
    fn abort() -> !;
}

// `core` is compiled to unwind and names this; nothing here unwinds.
#[unsafe(no_mangle)]
extern \"C\" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: it may be called at any time, and never returns.
    unsafe { abort() }
}

";

/// The functions of a kernel whose activations are laid out first.
const PREPARED: &[&str] = &["scratch", "prepare", "run"];

/// The entries of the tables.
#[derive(Default)]
struct Entries {
    ternary: Vec<TokenStream>,
    blocks: Vec<TokenStream>,
    heads: Vec<TokenStream>,
    sketch: Vec<TokenStream>,
    attention: Vec<TokenStream>,
    lines: Vec<TokenStream>,
}

/// Writes the ABI, what templates share, `vocabularies` and a module for each of `ids`.
fn modules(out: &mut String, ids: &[KernelId], vocabularies: &[Source]) -> Result<Entries, Error> {
    module(out, "abi", &without_tests(&ABI)?);
    let mut texts = String::new();
    for source in vocabularies {
        module(&mut texts, source.name, &without_tests(source)?);
    }
    let templates = ids.iter().map(template).collect::<Result<Vec<&Source>, Error>>()?;
    let unpackers: BTreeSet<(GatherLayout, Isa)> =
        ids.iter().filter_map(|id| Some((line_layout(id)?, id.isa))).collect();
    for source in SHARED {
        let import = format!("use crate::{}", source.name);
        let unpacking = unpackers.iter().map(|&(layout, _)| unpacker(layout));
        if templates.iter().copied().chain(unpacking).any(|user| user.text.contains(&import)) {
            module(out, source.name, &specialise(source, Isa::Scalar, None, &[])?);
        }
    }
    out.push_str("/// The vector vocabularies.\n");
    module(out, "isa", &texts);
    for (layout, isa) in unpackers {
        let text = specialise(unpacker(layout), isa, None, &[])?;
        module(out, &line_module(layout, isa), &text);
    }

    let mut entries = Entries::default();
    for (id, template) in ids.iter().zip(templates) {
        let name = id.to_string();
        module(out, &name, &kernel(id, template)?);
        let path = format_ident!("{name}");
        let (entry, functions, table) = match id.op {
            Op::Ternary(_) => ("TernaryEntry", PREPARED, &mut entries.ternary),
            Op::Blocks(_) => ("BlockEntry", PREPARED, &mut entries.blocks),
            Op::Head(_) => ("HeadEntry", PREPARED, &mut entries.heads),
            Op::Sketch(_) => ("SketchEntry", &["run"][..], &mut entries.sketch),
            Op::Attention => ("AttentionEntry", &["scratch", "run"][..], &mut entries.attention),
            Op::Rows(_) | Op::Columns(_) => ("GatherEntry", PREPARED, &mut entries.lines),
        };
        let entry = format_ident!("{entry}");
        let functions = functions.iter().map(|function| format_ident!("{function}"));
        let functions = functions.map(|function| quote!(#function: #path::#function));
        let expansion = matches!(id.op, Op::Ternary(_)).then(|| {
            let expansion =
                if id.expands() { quote!(Some(&#path::EXPANSION)) } else { quote!(None) };
            quote!(, expansion: #expansion)
        });
        table.push(quote!(abi::#entry { id: abi::Id::new(#name), #(#functions),* #expansion }));
    }
    Ok(entries)
}

fn unparse(items: TokenStream) -> String {
    prettyplease::unparse(&syn::parse2(items).expect("written by this file"))
}

/// The module with the float operations that kernels of an ISA use.
pub(crate) fn vector_module(isa: Isa) -> String {
    format!("{}__{}", VECTOR.name, isa.float_tier())
}

/// Functions that unpack lines of a layout.
fn unpacker(layout: GatherLayout) -> &'static Source {
    match layout {
        GatherLayout::I2sL64 => &LINES[0],
        GatherLayout::T5L64 => &LINES[1],
    }
}

/// The module with what unpacks lines of a layout on an ISA.
pub(crate) fn line_module(layout: GatherLayout, isa: Isa) -> String {
    format!("{}__{isa}", unpacker(layout).name)
}

/// The lines that a kernel reads, if it is given a list of them.
fn line_layout(id: &KernelId) -> Option<GatherLayout> {
    match id.op {
        Op::Rows(layout) | Op::Columns(layout) => Some(layout),
        _ => None,
    }
}

fn header(path: &str) -> String {
    format!("// @generated from {path} by bitnet-codegen; do not edit\n\n")
}

/// Puts `body`, a file, into a module. No template holds a string of several lines, which would be
/// indented too.
fn module(out: &mut String, name: &str, body: &str) {
    writeln!(out, "pub mod {name} {{").expect("writing to a String");
    for line in body.lines() {
        if !line.is_empty() {
            out.push_str("    ");
            out.push_str(line);
        }
        out.push('\n');
    }
    out.push_str("}\n\n");
}

fn template(id: &KernelId) -> Result<&'static Source, Error> {
    let name = match id.op {
        Op::Ternary(layout) => match layout {
            Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64
                if id.isa.multiplies_matrices() && id.tile.tokens > 1 =>
            {
                "i2_s_mm"
            }
            Layout::I2sT16 | Layout::I2sT32 | Layout::I2sT64 => "i2_s",
            Layout::Tl1T32 => "tl1",
            Layout::Tl2T32 => "tl2",
            Layout::Tl2W32 => "tl2_w",
            Layout::T5T32 if id.expands() => "t5_lookup",
            Layout::T5T32 => "t5",
        },
        Op::Blocks(_) => "blocks",
        Op::Head(HeadFormat::F32 | HeadFormat::F16 | HeadFormat::Bf16) => "head_float",
        Op::Head(HeadFormat::I2S) => "head_ternary",
        Op::Head(_) => "head_block",
        Op::Sketch(_) => "sketch",
        Op::Attention => "attention",
        Op::Rows(_) => "rows",
        Op::Columns(_) => "columns",
    };
    TEMPLATES
        .iter()
        .find(|t| t.name == name)
        .ok_or_else(|| Error::NoTemplate { id: id.to_string(), op: id.op.to_string() })
}

fn kernel(id: &KernelId, template: &Source) -> Result<String, Error> {
    let constant = |name, value, neutral| Constant { name, value, neutral };
    let mut constants = vec![
        constant("ROWS", id.tile.rows, 1),
        constant("COLS", id.shape.map_or(0, |s| s.cols), 0),
        constant("BLOCK", id.tile.cols, 0),
        constant("TOKENS", id.tile.tokens, 1),
        constant("UNROLL", id.tile.unroll, 1),
        constant("PREFETCH", id.tile.prefetch, 0),
    ];
    match id.op {
        Op::Ternary(layout) => {
            constants.push(constant("TILE", layout.tile_rows(), layout.tile_rows()));
        }
        Op::Blocks(layout) => {
            constants.push(constant("TILE", layout.tile_rows(), usize::MAX));
            constants.push(constant("WIDTH", layout.width(), usize::MAX));
            constants.push(constant("AT_ONCE", id.at_once(), usize::MAX));
        }
        // In the order of declaration, as the templates document it.
        Op::Head(HeadFormat::I2S) => {}
        Op::Head(format) => constants.push(constant("FORMAT", format as usize, usize::MAX)),
        Op::Sketch(format) => constants.push(constant("BITS", format.bits(), usize::MAX)),
        Op::Attention | Op::Rows(_) | Op::Columns(_) => {
            constants.push(constant("LEVEL", id.tile.level, 1));
        }
    }
    specialise(template, id.isa, line_layout(id), &constants)
}
