//! Assembles kernels into files.

use std::fmt::Write;

use bitnet_profiles::{HeadFormat, Isa, KernelId, Layout, Op, stable_hash};
use bitnet_templates::{ABI, Source, TEMPLATES, VECTOR, VOCABULARIES};
use quote::{format_ident, quote};

use crate::Error;
use crate::specialise::{Constant, specialise, without_tests};

const GENERATOR: &str = env!("CARGO_PKG_VERSION");

/// A hash over everything generated code depends on beside its spec: the text of the templates,
/// vocabularies and ABI, and the generator's version. Spelled as 16 hexadecimal digits.
pub fn fingerprint() -> String {
    let texts = [&ABI, &VECTOR].into_iter().chain(VOCABULARIES).chain(TEMPLATES).map(|s| s.text);
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

/// All of `ids` in one file: the ABI, the vocabularies they use, a module for each kernel and for
/// the float operations of each ISA, and the tables `TERNARY`, `HEADS`, `ATTENTION` and `VECTOR`.
/// The file's text depends on `ids` and nothing else.
///
/// # Errors
/// As [`emit_kernel`].
pub fn emit_library(ids: &[KernelId]) -> Result<String, Error> {
    let mut out = header("templates/src");
    module(&mut out, "abi", &without_tests(&ABI)?);

    // A vocabulary builds on those of the tiers that its own includes.
    let used = |isa: Isa| isa == Isa::Scalar || ids.iter().any(|id| id.isa.includes(isa));
    let isas: Vec<Isa> = Isa::ALL.iter().copied().filter(|&isa| used(isa)).collect();
    let mut vocabularies = String::new();
    for source in VOCABULARIES.iter().filter(|s| isas.iter().any(|isa| isa.name() == s.name)) {
        module(&mut vocabularies, source.name, &without_tests(source)?);
    }
    out.push_str("/// The vector vocabularies.\n");
    module(&mut out, "isa", &vocabularies);

    let (mut ternary, mut heads, mut attention) = (Vec::new(), Vec::new(), Vec::new());
    for id in ids {
        let name = id.to_string();
        module(&mut out, &name, &kernel(id, template(id)?)?);
        let path = format_ident!("{name}");
        let (entry, prepare, table) = match id.op {
            Op::Ternary(_) => (format_ident!("TernaryEntry"), true, &mut ternary),
            Op::Head(_) => (format_ident!("HeadEntry"), true, &mut heads),
            Op::Attention => (format_ident!("AttentionEntry"), false, &mut attention),
        };
        let prepare = prepare.then(|| quote!(prepare: #path::prepare,));
        table.push(quote! {
            abi::#entry { id: #name, scratch: #path::scratch, #prepare run: #path::run }
        });
    }
    let mut vectors = Vec::new();
    for &isa in isas.iter().filter(|isa| isa.float_tier() == **isa) {
        let name = vector_module(isa);
        module(&mut out, &name, &specialise(&VECTOR, isa, &[])?);
        let (isa, path) = (isa.name(), format_ident!("{name}"));
        vectors.push(quote!((#isa, #path::ENTRY)));
    }
    let fingerprint = fingerprint();
    let table = quote! {
        /// The generator's fingerprint.
        pub const FINGERPRINT: &str = #fingerprint;
        /// Every ternary kernel of this file.
        pub static TERNARY: &[abi::TernaryEntry] = &[#(#ternary),*];
        /// Every head kernel of this file.
        pub static HEADS: &[abi::HeadEntry] = &[#(#heads),*];
        /// Every attention kernel of this file.
        pub static ATTENTION: &[abi::AttentionEntry] = &[#(#attention),*];
        /// The float operations of every ISA, by its name.
        pub static VECTOR: &[(&str, abi::VectorEntry)] = &[#(#vectors),*];
    };
    let table = syn::parse2(table).expect("written above");
    out.push_str(&prettyplease::unparse(&table));
    Ok(out)
}

/// The module with the float operations that kernels of an ISA use.
pub(crate) fn vector_module(isa: Isa) -> String {
    format!("{}__{}", VECTOR.name, isa.float_tier())
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
            Layout::I2sT16 | Layout::I2sT32 => "i2_s",
            Layout::Tl1T32 => "tl1",
            Layout::Tl2T32 => "tl2",
            Layout::Tl2W32 => "tl2_w",
        },
        Op::Head(HeadFormat::F32 | HeadFormat::F16 | HeadFormat::Bf16) => "head_float",
        Op::Head(HeadFormat::Q8_0 | HeadFormat::Q6K | HeadFormat::Q4_0) => "head_block",
        Op::Attention => "attention",
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
        // In the order of declaration, as the templates document it.
        Op::Head(format) => constants.push(constant("FORMAT", format as usize, usize::MAX)),
        Op::Attention => {}
    }
    specialise(template, id.isa, &constants)
}
