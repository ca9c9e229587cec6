//! Paths and names of a user's profiles and host-made kernels.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Profile;

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

/// The folder of packed weights: `bitnet/packed` beside that of [`cache_folder`].
pub fn packed_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(base_folder(variable, "XDG_CACHE_HOME", ".cache")?.join("bitnet").join("packed"))
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

/// The file of what is typed in conversations: `bitnet/chat-history` in `$XDG_STATE_HOME` or
/// `~/.local/state`, as [`user_folder`].
pub fn history_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(
        base_folder(variable, "XDG_STATE_HOME", ".local/state")?
            .join("bitnet")
            .join("chat-history"),
    )
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
        assert_eq!(packed_folder(home), path("/h/.cache/bitnet/packed"));
        assert_eq!(packed_folder(xdg), path("/x/bitnet/packed"));

        let name = user_file_name("0123456789abcdef", "AuthenticAMD", 26, 2);
        assert_eq!(name, "0123456789abcdef-authenticamd-26-2.toml");
        // Nothing from a CPU or a file can leave the folder.
        assert_eq!(user_file_name("../x", "/etc/..", 0, 0), "x-etc-0-0.toml");
    }
}
