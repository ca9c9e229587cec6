//! The vocabulary shared by the generator, the runtime and the tuner: what a matrix looks like
//! ([`Shape`]), how its weights are packed ([`Format`], [`Layout`]), what the CPU can do ([`Isa`]),
//! how a kernel walks the matrix ([`TileConfig`]), and the name that says all of it ([`KernelId`]).
//!
//! It is a crate of its own so that the runtime never links the generator.
#![forbid(unsafe_code)]

/// Gives an enum its names: `ALL`, `name()`, `Display`, `FromStr`, and serde as that string.
macro_rules! named {
    ($type:ident, $what:literal, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in kernel ids, profiles and flags.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::UnknownName;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|v| v.name() == s).ok_or_else(|| {
                    $crate::UnknownName::new($what, s, Self::ALL.iter().map(|v| v.name()))
                })
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let name = std::borrow::Cow::<str>::deserialize(d)?;
                name.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub mod atomic_file;
pub mod destination;
mod format;
mod hash;
mod isa;
pub mod paths;
pub mod patient;
mod printable;
mod profile;
pub mod registry;
mod shape;
mod spec;
mod tile;

pub use format::{BlockLayout, Format, GatherLayout, HeadFormat, Layout, Packing, SketchFormat};
pub use hash::stable_hash;
pub use isa::Isa;
pub use printable::printable;
pub use profile::{
    Choice, Effort, Host, Model, Objective, Pick, Pinning, Profile, ProfileError, Provenance, Role,
    Run, Sparse, Timed, Tool, shapes_hash,
};
pub use shape::Shape;
pub use spec::{KernelId, KernelSpec, Op, SpecError};
pub use tile::TileConfig;

/// A name that stands for nothing in the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no {what}; allowed: {allowed}")]
pub struct UnknownName {
    what: &'static str,
    found: String,
    allowed: String,
}

impl UnknownName {
    /// `found` is cut short: it may come from a hostile file.
    fn new<'a>(what: &'static str, found: &str, allowed: impl Iterator<Item = &'a str>) -> Self {
        Self {
            what,
            found: found.chars().take(64).collect(),
            allowed: allowed.collect::<Vec<_>>().join(", "),
        }
    }
}
