//! Report of measurements and choices: one HTML file, and the summary on stdout.
//!
//! The file is complete in itself: its style is inline, its pictures are tables and SVG, and there
//! is no script, so its content policy forbids everything and nothing that a model's name holds can
//! ever run. The same measurements and choices give the same bytes.

mod data;
mod figures;
mod heat;
mod page;
mod roofline;
mod summary;

pub use data::Extras;
pub(crate) use figures::bytes;
pub use page::html;
