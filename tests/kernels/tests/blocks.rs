//! Every kernel for matrices with block scales equals the scalar definition, to the bit.

use std::env;
use std::process::ExitCode;

use bitnet_profiles::{BlockLayout, Isa, KernelId, Op};
use bitnet_runtime::cpu::kernels::{BlockKernel, verify};
use bitnet_trials::{Need, Tested, suite};

fn equals_the_definition(id: &KernelId, layout: BlockLayout) -> Tested {
    Need::isa(id.isa)?;
    let kernel = BlockKernel::find(id).expect("every build holds the grid");
    for blocks in [1, 2, 3, 9] {
        assert_eq!(verify::blocks(&kernel, blocks * layout.width()).unwrap(), None);
    }
    Ok(())
}

/// Every layout has kernels for one token and for many, and of each tier that has any those of all widths.
fn every_width_has_kernels() {
    let ids = bitnet_codegen::grid(Isa::ALL);
    for &isa in Isa::ALL {
        let of = |width: usize, one: bool| {
            let own = |id: &&KernelId| match id.op {
                Op::Blocks(layout) => {
                    id.isa == isa && layout.width() == width && (id.tile.tokens == 1) == one
                }
                _ => false,
            };
            ids.iter().filter(own).count()
        };
        let counts = [64, 128, 256].map(|width| (of(width, true), of(width, false)));
        assert!(counts.iter().all(|count| *count == counts[0]), "{isa}: {counts:?}");
        assert_eq!(counts[0].0 > 0, counts[0].1 > 0, "{isa}: {counts:?}");
    }
}

fn main() -> ExitCode {
    let mut suite = suite![every_width_has_kernels];
    for id in bitnet_codegen::grid(Isa::of_arch(env::consts::ARCH)) {
        if let Op::Blocks(layout) = id.op {
            suite.add(format!("exact::{id}"), move || equals_the_definition(&id, layout));
        }
    }
    suite.run()
}
