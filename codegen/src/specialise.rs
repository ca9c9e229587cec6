//! Splices a template: constants, vocabulary and target features go into the original text, so
//! that prose and SAFETY comments survive and the generated kernel reads like a hand-written one.

use std::ops::Range;

use bitnet_profiles::{GatherLayout, Isa};
use bitnet_templates::{LINES, Source, VECTOR};
use syn::spanned::Spanned;

use crate::Error;
use crate::emit::{line_module, vector_module};

/// A constant of the template, the value that a spec gives it, and the value that leaves the
/// template as it is where the constant is missing.
pub(crate) struct Constant {
    pub name: &'static str,
    pub value: usize,
    pub neutral: usize,
}

/// The text of `source` for `isa` with `constants` set, and lines of `layout` where it reads any, as
/// the body of a module that has `abi`, `isa`, what unpacks lines and the float operations as
/// siblings.
pub(crate) fn specialise(
    source: &Source,
    isa: Isa,
    layout: Option<GatherLayout>,
    constants: &[Constant],
) -> Result<String, Error> {
    let file = parse(source)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut missing: Vec<&Constant> = constants.iter().collect();
    for item in &file.items {
        if is_test(item) {
            edits.push((whole_lines(source.text, item.span().byte_range()), String::new()));
            continue;
        }
        match item {
            syn::Item::Const(item) => {
                if let Some(at) = missing.iter().position(|c| item.ident == c.name) {
                    let value = missing.remove(at).value.to_string();
                    edits.push((item.expr.span().byte_range(), value));
                }
            }
            syn::Item::Use(item) => {
                if let syn::UseTree::Path(path) = &item.tree
                    && path.ident == "crate"
                {
                    edits.push((path.ident.span().byte_range(), "super".into()));
                    if let Some(vocabulary) = vocabulary(&path.tree) {
                        edits.push((vocabulary.span().byte_range(), isa.name().into()));
                    } else if let syn::UseTree::Path(module) = &*path.tree
                        && module.ident == VECTOR.name
                    {
                        edits.push((module.ident.span().byte_range(), vector_module(isa)));
                    } else if let syn::UseTree::Rename(module) = &*path.tree
                        && LINES.iter().any(|lines| module.ident == lines.name)
                        && let Some(layout) = layout
                    {
                        edits.push((module.ident.span().byte_range(), line_module(layout, isa)));
                    }
                }
            }
            syn::Item::Fn(item) => {
                function(source.text, isa, &item.attrs, &item.vis, &item.sig, &mut edits);
            }
            syn::Item::Impl(item) => {
                for item in &item.items {
                    if let syn::ImplItem::Fn(item) = item {
                        function(source.text, isa, &item.attrs, &item.vis, &item.sig, &mut edits);
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(c) = missing.iter().find(|c| c.value != c.neutral) {
        let (path, constant, value) = (source.path, c.name, c.value);
        return Err(Error::MissingConstant { path, constant, value });
    }
    Ok(splice(source.text, edits))
}

/// The text of a vocabulary or of the ABI, without its tests.
pub(crate) fn without_tests(source: &Source) -> Result<String, Error> {
    let file = parse(source)?;
    let tests = file.items.iter().filter(|item| is_test(item));
    let cut = |item: &syn::Item| whole_lines(source.text, item.span().byte_range());
    Ok(splice(source.text, tests.map(|item| (cut(item), String::new())).collect()))
}

fn parse(source: &Source) -> Result<syn::File, Error> {
    syn::parse_file(source.text).map_err(|e| Error::Parse { path: source.path, source: e })
}

/// `scalar` in `isa::scalar as isa`.
fn vocabulary(tree: &syn::UseTree) -> Option<&syn::Ident> {
    match tree {
        syn::UseTree::Path(path) if path.ident == "isa" => match &*path.tree {
            syn::UseTree::Rename(rename) if rename.ident == "scalar" => Some(&rename.ident),
            _ => None,
        },
        _ => None,
    }
}

/// Fits a function to the ISA. Constant functions compute sizes and stay as they are.
fn function(
    text: &str,
    isa: Isa,
    attrs: &[syn::Attribute],
    vis: &syn::Visibility,
    sig: &syn::Signature,
    edits: &mut Vec<(Range<usize>, String)>,
) {
    if sig.constness.is_some() {
        return;
    }
    if isa.target_features().is_empty() {
        // Where the compiler is free to, it leaves a call in the hot loop. With target features it
        // accepts no `always`, and inlines unasked.
        if let Some(attr) = attrs.iter().find(|attr| attr.path().is_ident("inline")) {
            edits.push((attr.span().byte_range(), "#[inline(always)]".into()));
        }
        return;
    }
    let start = match vis {
        syn::Visibility::Inherited => sig.span().byte_range().start,
        vis => vis.span().byte_range().start,
    };
    let indent = &text[line_start(text, start)..start];
    let attribute = format!("#[target_feature(enable = \"{}\")]\n{indent}", isa.target_features());
    edits.push((start..start, attribute));
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The lines that `range` lies on, with the empty ones before them.
fn whole_lines(text: &str, range: Range<usize>) -> Range<usize> {
    let before = text[..line_start(text, range.start)].trim_end();
    let start = if before.is_empty() { 0 } else { before.len() + 1 };
    let end = text[range.end..].find('\n').map_or(text.len(), |newline| range.end + newline + 1);
    start..end
}

fn is_test(item: &syn::Item) -> bool {
    let attrs = match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => return false,
    };
    attrs.iter().any(|attr| {
        attr.path().is_ident("cfg")
            && attr.parse_args::<syn::Ident>().is_ok_and(|ident| ident == "test")
    })
}

fn splice(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::with_capacity(text.len() + 1024);
    let mut from = 0;
    for (range, replacement) in edits {
        out.push_str(&text[from..range.start]);
        out.push_str(&replacement);
        from = range.end;
    }
    out.push_str(&text[from..]);
    out
}
