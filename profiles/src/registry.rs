//! The profiles that ship with the project, and which one serves where nothing was tuned.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Format, HeadFormat, Isa, KernelId, Layout, Op, Profile};

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

/// A shipped file: what was found to serve a kind of CPU, or, without one, any.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The vendor, as the CPU says it.
    #[serde(default)]
    vendor: String,
    /// The families of that vendor.
    #[serde(default)]
    families: Vec<u32>,
    /// At most one for each format and ISA.
    kernels: Vec<Generic>,
    /// At most one for each head format and ISA.
    #[serde(default)]
    heads: Vec<KernelId>,
}

macro_rules! file {
    ($name:literal) => {
        ($name, include_str!(concat!("../data/", $name, ".toml")))
    };
}

/// The shipped files; the last serves any CPU.
fn files() -> &'static [(&'static str, File)] {
    static FILES: OnceLock<Vec<(&str, File)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let texts = [file!("zen5"), file!("generic")];
        let parse = |text| toml::from_str(text).expect("the shipped files are tested");
        texts.map(|(name, text)| (name, parse(text))).into()
    })
}

/// What serves any CPU, at most one for each format and ISA.
pub fn generics() -> &'static [Generic] {
    files().last().map_or(&[], |(_, generic)| &generic.kernels)
}

/// The defaults for a CPU: those found on its kind, then the generic ones.
#[derive(Debug, Clone)]
pub struct Defaults {
    chain: Vec<&'static (&'static str, File)>,
}

impl Defaults {
    /// For a CPU of that vendor and family, as `host` profiles name them.
    pub fn of(vendor: &str, family: u32) -> Self {
        let fits = |file: &File| {
            file.vendor.is_empty() || (file.vendor == vendor && file.families.contains(&family))
        };
        Self { chain: files().iter().filter(|(_, file)| fits(file)).collect() }
    }

    /// The kernels for a format on the best ISA up to `ceiling`, and the name of the file they come
    /// from. Where no format is asked for, I2_S: lookups lose to it wherever both were measured.
    pub fn ternary(&self, format: Option<Format>, ceiling: Isa) -> (&'static str, Generic) {
        let format = format.unwrap_or(Format::I2S);
        let all =
            self.chain.iter().flat_map(|(name, file)| file.kernels.iter().map(|g| (*name, *g)));
        all.filter(|(_, g)| g.decode.isa.is_within(ceiling) && g.layout().format() == format)
            // Of equal ISA the first, which the last of equals in reverse is.
            .rev()
            .max_by_key(|(_, g)| g.decode.isa)
            .expect("the generic file has every format on the scalar ISA")
    }

    /// The kernel for a head format up to `ceiling`, if one was found to be better than others.
    pub fn head(&self, format: HeadFormat, ceiling: Isa) -> Option<KernelId> {
        let all = self.chain.iter().flat_map(|(_, file)| &file.heads);
        all.filter(|id| id.isa.is_within(ceiling) && id.op == Op::Head(format))
            .max_by_key(|id| id.isa)
            .copied()
    }
}

/// The default of a CPU of which nothing is known: see [`Defaults::ternary`].
pub fn generic(format: Option<Format>, ceiling: Isa) -> Generic {
    Defaults::of("", 0).ternary(format, ceiling).1
}

/// The folder of the user's own profiles: `bitnet/profiles` in `$XDG_CONFIG_HOME` or `~/.config`.
/// `variable` looks up a variable of the environment. Nothing when neither is an absolute path.
pub fn user_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(base_folder(variable, "XDG_CONFIG_HOME", ".config")?.join("bitnet").join("profiles"))
}

/// The folder of the kernels made on this host: `bitnet/kernels` in `$XDG_CACHE_HOME` or
/// `~/.cache`, as [`user_folder`].
pub fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(base_folder(variable, "XDG_CACHE_HOME", ".cache")?.join("bitnet").join("kernels"))
}

fn base_folder(
    variable: impl Fn(&str) -> Option<OsString>,
    name: &str,
    in_home: &str,
) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(name).or_else(|| Some(absolute("HOME")?.join(in_home)))
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
        let home = |name: &str| (name == "HOME").then(|| "/h".into());
        assert_eq!(cache_folder(home), path("/h/.cache/bitnet/kernels"));
        let xdg = |name: &str| (name == "XDG_CACHE_HOME").then(|| "/x".into());
        assert_eq!(cache_folder(xdg), path("/x/bitnet/kernels"));

        let name = user_file_name("0123456789abcdef", "AuthenticAMD", 26, 2);
        assert_eq!(name, "0123456789abcdef-authenticamd-26-2.toml");
        // Nothing from a CPU or a file can leave the folder.
        assert_eq!(user_file_name("../x", "/etc/..", 0, 0), "x-etc-0-0.toml");
    }

    #[test]
    fn every_format_and_isa_has_a_default() {
        for g in files().iter().flat_map(|(_, file)| &file.kernels) {
            assert_eq!(g.decode.op, g.prefill.op, "{}", g.decode);
            assert_eq!(g.decode.isa, g.prefill.isa, "{}", g.decode);
            assert!(g.decode.tile.tokens == 1 && g.prefill.tile.tokens > 1, "{}", g.decode);
            assert!(g.decode.shape.is_none() && g.prefill.shape.is_none(), "{}", g.decode);
        }
        for &isa in Isa::ALL {
            assert!(generic(None, isa).decode.isa.is_within(isa));
            for &format in Format::ALL {
                let g = generic(Some(format), isa);
                assert!(g.decode.isa.is_within(isa) && g.layout().format() == format);
            }
        }
    }

    #[test]
    fn a_kind_of_cpu_has_its_own_defaults_before_the_generic_ones() {
        let zen5 = Defaults::of("AuthenticAMD", 26);
        let (name, own) = zen5.ternary(None, Isa::Avx512Vbmi);
        assert_eq!((name, own.decode.isa), ("zen5", Isa::Avx512Vnni));
        assert!(zen5.head(HeadFormat::Q6K, Isa::Avx512Vbmi).is_some());
        // What its file does not hold comes from the generic one.
        assert_eq!(zen5.ternary(None, Isa::Scalar).0, "generic");
        assert_eq!(zen5.ternary(Some(Format::Tl1), Isa::Avx512Vbmi).0, "generic");
        assert_eq!(zen5.head(HeadFormat::Q6K, Isa::Scalar), None);
        for (vendor, family) in [("AuthenticAMD", 25), ("GenuineIntel", 26), ("unknown", 0)] {
            let other = Defaults::of(vendor, family);
            assert_eq!(other.ternary(None, Isa::Avx512Vbmi).0, "generic");
            assert_eq!(other.head(HeadFormat::Q6K, Isa::Avx512Vbmi), None);
        }
    }
}
