//! The profiles that ship with the project, and which one serves where nothing was tuned.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Format, Isa, KernelId, Layout, Op, Profile};

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

/// The folder of the user's own profiles: `bitnet/profiles` in `$XDG_CONFIG_HOME` or `~/.config`.
/// `variable` looks up a variable of the environment. Nothing when neither is an absolute path.
pub fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("bitnet").join("profiles"))
}

/// The name, in [`user_folder`], of the profile for a model's shapes ([`crate::shapes_hash`]) and a
/// CPU: `<shapes>-<vendor>-<family>-<model>.toml`.
pub fn user_file_name(shapes: &str, vendor: &str, family: u32, model: u32) -> String {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).take(32).collect()
    };
    let vendor = plain(vendor).to_ascii_lowercase();
    format!("{}-{vendor}-{family}-{model}.toml", plain(shapes))
}

impl Profile {
    /// The name in [`user_folder`] under which a profile of this host and these shapes is found.
    pub fn user_file_name(&self) -> String {
        let host = &self.host;
        user_file_name(&self.model.shapes, &host.vendor, host.family, host.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_profiles_have_a_place() {
        let folder = |xdg: Option<&str>, home: Option<&str>| {
            user_folder(|name| match name {
                "XDG_CONFIG_HOME" => xdg.map(Into::into),
                "HOME" => home.map(Into::into),
                other => panic!("{other}"),
            })
        };
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(folder(Some("/x"), Some("/h")), path("/x/bitnet/profiles"));
        assert_eq!(folder(None, Some("/h")), path("/h/.config/bitnet/profiles"));
        assert_eq!(folder(Some("x"), Some("/h")), path("/h/.config/bitnet/profiles"));
        assert_eq!(folder(Some(""), None), None);

        let name = user_file_name("0123456789abcdef", "AuthenticAMD", 26, 2);
        assert_eq!(name, "0123456789abcdef-authenticamd-26-2.toml");
        // Nothing from a CPU or a file can leave the folder.
        assert_eq!(user_file_name("../x", "/etc/..", 0, 0), "x-etc-0-0.toml");
    }

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
