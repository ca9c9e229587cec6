//! Emits the built-in kernels for the target's architecture: all of them, or, where the environment says
//! `BITNET_KERNELS=few`, those that a run under a sanitizer needs (see [`few`]). Instrumented code takes
//! many times as long to compile, and what a tiling adds to another of its template is constants.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs};

use bitnet_codegen::Phase;
use bitnet_profiles::registry::Shipped;
use bitnet_profiles::{Isa, KernelId};

fn main() {
    // Not cfg!: this is about the target, and build scripts run on the host.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    let all = bitnet_codegen::grid(Isa::of_arch(&arch));
    let ids = match env::var("BITNET_KERNELS").as_deref() {
        Err(_) => all,
        Ok("few") => few(&all),
        Ok(other) => panic!("BITNET_KERNELS={other}: leave it unset for all kernels, or say few"),
    };
    let source = bitnet_codegen::emit_library(&ids);
    let source = source.unwrap_or_else(|error| panic!("{error}"));
    fs::write(&out, source).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BITNET_KERNELS");
}

/// Of the tiers that this machine runs: the kernels that shipped profiles name, which any test may ask
/// for, and one more of every op, phase and tier that they leave out. Of each other tier one, for the
/// vocabulary that comes with it.
fn few(all: &[KernelId]) -> Vec<KernelId> {
    let mut named = BTreeSet::new();
    for shipped in Shipped::all() {
        let pairs = shipped.kernels.iter().chain(&shipped.blocks);
        named.extend(pairs.flat_map(|pair| [pair.decode, pair.prefill]));
        named.extend(shipped.heads.iter().chain(&shipped.gathers));
        for choice in &shipped.profile().ops {
            let picks = [Some(&choice.decode), choice.prefill.as_ref()];
            named.extend(picks.into_iter().flatten().flat_map(|pick| [pick.kernel, pick.built_in]));
            named.extend(choice.sparse.iter().flat_map(|sparse| [sparse.kernel, sparse.built_in]));
        }
    }
    // Tilings of a kind differ in constants.
    let kind = |id: &KernelId| {
        let here = id.isa.is_supported();
        (
            id.isa,
            here.then(|| (id.op, Phase::of(&id.tile), id.expands(), id.at_once() < id.tile.tokens)),
        )
    };
    let mut kept: BTreeSet<KernelId> =
        all.iter().filter(|id| id.isa.is_supported() && named.contains(id)).copied().collect();
    for id in all {
        if kept.iter().all(|other| kind(other) != kind(id)) {
            kept.insert(*id);
        }
    }
    // In the order of the grid, whose first of a kind may be the default.
    all.iter().filter(|id| kept.contains(id)).copied().collect()
}
