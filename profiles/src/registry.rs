//! The profiles that ship with the project, and which one serves where nothing was tuned.

use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Format, Isa, KernelId, Layout, Op};

/// What serves every shape on an ISA where nothing was tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generic {
    /// For one token.
    pub decode: KernelId,
    /// For many tokens; reads the same layout.
    pub prefill: KernelId,
}

impl Generic {
    /// The packing that both kernels read.
    pub fn layout(&self) -> Layout {
        match self.decode.op {
            Op::Ternary(layout) => layout,
            op => unreachable!("the shipped defaults are ternary kernels, not {op}"),
        }
    }
}

/// The shipped defaults, at most one for each format and ISA.
pub fn generics() -> &'static [Generic] {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        kernels: Vec<Generic>,
    }
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        toml::from_str(include_str!("../data/generic.toml")).expect("the shipped file is tested")
    });
    &file.kernels
}

/// The default for a format on the best ISA up to `ceiling`. Where no format is asked for, I2_S:
/// lookups lose to it wherever both were measured.
pub fn generic(format: Option<Format>, ceiling: Isa) -> Generic {
    let format = format.unwrap_or(Format::I2S);
    *generics()
        .iter()
        .filter(|g| g.decode.isa <= ceiling && g.layout().format() == format)
        .max_by_key(|g| g.decode.isa)
        .expect("the shipped file has every format on the scalar ISA")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_isa_has_a_default() {
        for g in generics() {
            assert_eq!(g.decode.op, g.prefill.op, "{}", g.decode);
            assert_eq!(g.decode.isa, g.prefill.isa, "{}", g.decode);
            assert!(g.decode.tile.tokens == 1 && g.prefill.tile.tokens > 1, "{}", g.decode);
            assert!(g.decode.shape.is_none() && g.prefill.shape.is_none(), "{}", g.decode);
        }
        for &isa in Isa::ALL {
            assert!(generic(None, isa).decode.isa <= isa);
            for &format in Format::ALL {
                let g = generic(Some(format), isa);
                assert!(g.decode.isa <= isa && g.layout().format() == format);
            }
        }
    }
}
