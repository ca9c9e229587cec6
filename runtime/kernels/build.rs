//! Emits every built-in kernel for the target's architecture.

use std::path::PathBuf;
use std::{env, fs};

use bitnet_profiles::Isa;

fn main() {
    // Not cfg!: this is about the target, and build scripts run on the host.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    let source = bitnet_codegen::emit_library(&bitnet_codegen::grid(Isa::of_arch(&arch)));
    let source = source.unwrap_or_else(|error| panic!("{error}"));
    fs::write(&out, source).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
    println!("cargo::rerun-if-changed=build.rs");
}
