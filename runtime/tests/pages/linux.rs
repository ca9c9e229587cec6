//! Huge or small pages, and memory that is locked, are asked for as told.

use std::path::Path;

use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::{Buffer, Pages};
use bitnet_runtime::cpu::model::{LoadOptions, Model};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_trials::{Need, Suite, Tested, suite};

/// The flags that the system keeps of the mapping at an address: `hg` for huge pages asked for,
/// `nh` for refused, `lo` for locked.
fn flags(address: usize) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        if let Some((start, end)) = range.and_then(|(a, b)| hex(a).zip(hex(b))) {
            inside = (start..end).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping at {address:x}");
}

/// Requires a kernel with huge pages: others keep no such flags.
fn huge_pages() -> Tested {
    let folder = Path::new("/sys/kernel/mm/transparent_hugepage");
    Need::HugePages.met(if folder.exists() { Ok(()) } else { Err("this kernel has none") })
}

fn pages_are_asked_for_as_told() -> Tested {
    huge_pages()?;
    for (buffer, flag, other) in [
        (Buffer::zeroed(1 << 22).unwrap(), "hg", "nh"),
        (Buffer::with(1 << 22, Pages::Huge).unwrap(), "hg", "nh"),
        (Buffer::with(1 << 22, Pages::Small).unwrap(), "nh", "hg"),
    ] {
        let flags = flags(buffer.as_ptr() as usize);
        let has = |flag: &str| flags.iter().any(|own| own == flag);
        assert!(has(flag) && !has(other), "{flag}: {flags:?}");
    }
    Ok(())
}

fn memory_is_locked_as_told() -> Tested {
    let buffer = Buffer::zeroed(4096).unwrap();
    Need::LockedMemory.met(buffer.lock())?;
    assert!(flags(buffer.as_ptr() as usize).contains(&"lo".to_owned()));
    Ok(())
}

fn packed_weights_and_the_head_are_placed_as_told() -> Tested {
    huge_pages()?;
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf");
    let (pool, selection) = (Pool::new(2).unwrap(), Selection::default());
    for (pages, flag, other) in [(Pages::Huge, "hg", "nh"), (Pages::Small, "nh", "hg")] {
        for lock in [false, true] {
            let options = LoadOptions { pages, lock, ..LoadOptions::new(&pool, &selection) };
            let model = Model::load(demo, &options).unwrap();
            let weights = model.weights();
            let refused = model.warnings().iter().any(|line| line.contains("ulimit -l"));
            for data in [
                weights.layers[0].qkv.packed().unwrap().parts()[0].data(),
                weights.layers[5].down.packed().unwrap().parts()[0].data(),
                weights.head.rows(model.gguf(), 0..1),
            ] {
                let flags = flags(data.as_ptr() as usize);
                let has = |flag: &str| flags.iter().any(|own| own == flag);
                assert!(has(flag) && !has(other), "{pages:?}: {flags:?}");
                assert_eq!(has("lo"), lock && !refused, "{pages:?}: {flags:?}");
            }
        }
    }
    Ok(())
}

/// The tests of this file.
pub fn tests() -> Suite {
    suite![
        pages_are_asked_for_as_told,
        memory_is_locked_as_told,
        packed_weights_and_the_head_are_placed_as_told,
    ]
}
