//! Kernels made on the host: they are generated, compiled, kept, loaded, and compute what the
//! built-in ones do. What is damaged, foreign or open to others is refused with its reason.
#![cfg(target_os = "linux")]

use std::sync::OnceLock;
use std::time::Duration;

use bitnet_codegen::candidates;
use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};
use bitnet_runtime::kernels::cache::Cache;
use bitnet_runtime::kernels::verify::{self, Oracle};
use bitnet_runtime::kernels::{Kernel, Library};
use bitnet_runtime::threads::Pool;
use bitnet_tuner::compile::Toolchain;

/// Long enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Columns of the demo model's matrices.
const COLS: usize = 384;

fn toolchain() -> &'static Toolchain {
    static TOOLCHAIN: OnceLock<Toolchain> = OnceLock::new();
    TOOLCHAIN.get_or_init(|| Toolchain::find().expect("cargo has a compiler"))
}

/// The last kernel of every op on the best tier that has one: ternary ones of both phases.
fn ids() -> Vec<KernelId> {
    let supported = Isa::ALL.iter().filter(|isa| isa.is_supported() && **isa != Isa::Scalar);
    let all: Vec<KernelId> =
        supported.flat_map(|&isa| candidates(isa, Some(Shape::new(384, COLS)))).collect();
    let mut ids: Vec<KernelId> = Vec::new();
    for id in all.into_iter().rev() {
        let block = if let Op::Head(format) = id.op { format.block_weights() } else { 1 };
        let kind = |id: &KernelId| (id.op, id.tile.tokens == 1);
        if COLS.is_multiple_of(block) && ids.iter().all(|other| kind(other) != kind(&id)) {
            ids.push(id);
        }
    }
    ids
}

/// A library of [`ids`].
fn library() -> &'static [u8] {
    static LIBRARY: OnceLock<Vec<u8>> = OnceLock::new();
    LIBRARY.get_or_init(|| toolchain().compile(&ids(), LIMIT).unwrap())
}

fn skipped() -> bool {
    let skipped = Isa::best() == Isa::Scalar;
    if skipped {
        eprintln!("skipped: kernels of this CPU are scalar, which are not made on the host");
    }
    skipped
}

#[test]
fn a_library_computes_what_is_built_in() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("bitnet/kernels"));
    let sha256 = cache.store(library()).unwrap();
    let loaded = Library::load(&cache.open(&sha256).unwrap(), Isa::best()).unwrap();
    let mut found: Vec<KernelId> = loaded.ternary().iter().map(|k| *k.id()).collect();
    found.extend(loaded.heads().iter().map(|k| *k.id()));
    found.extend(loaded.attention().iter().map(|k| *k.id()));
    found.sort();
    let mut expected = ids();
    expected.sort();
    assert_eq!(found, expected);

    let pool = Pool::new(1).unwrap();
    let tokens = loaded.ternary().iter().map(Kernel::tokens).max().unwrap();
    let oracle = Oracle::new(COLS, tokens);
    for &layout in Layout::ALL {
        let kernels: Vec<Kernel> =
            loaded.ternary().iter().filter(|k| k.layout() == layout).copied().collect();
        assert_eq!(oracle.check(layout, &kernels, &pool, &mut |_| ()).unwrap(), []);
    }
    for kernel in loaded.heads() {
        assert_eq!(verify::head(kernel, COLS).unwrap(), None);
    }
    for kernel in loaded.attention() {
        assert_eq!(verify::attention(kernel, COLS).unwrap(), None);
    }
}

#[test]
fn the_same_ids_give_the_same_bytes() {
    if skipped() {
        return;
    }
    assert!(toolchain().compile(&ids(), LIMIT).unwrap() == library());
    assert!(toolchain().compile(&ids()[1..], LIMIT).unwrap() != library());
}
