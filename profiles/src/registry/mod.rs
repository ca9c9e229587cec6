//! The profiles that ship with the project, and which one serves where nothing was tuned.
//!
//! `data/registry.toml` names them in order: first those of kinds of CPU, then those of ISA classes,
//! last `generic`. The first that fits a CPU is its shipped profile ([`Shipped`]), which holds choices for
//! the published shapes; for all others the default pairs that stand with it serve.

mod shipped;

use serde::Deserialize;

use crate::{Choice, Format, HeadFormat, Isa, KernelId, Layout, Op, Packing, Role, Shape, Sparse};

pub use shipped::{Cpus, Published, Shipped, published};

/// A pair of kernels that read one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generic {
    /// For one token.
    pub decode: KernelId,
    /// For many tokens; reads the same layout.
    pub prefill: KernelId,
}

impl Generic {
    /// The packing that both kernels of a pair for matrices with one scale read.
    pub fn layout(&self) -> Layout {
        match self.decode.op {
            Op::Ternary(layout) => layout,
            op => unreachable!("the pairs of `kernels` are ternary, not {op}"),
        }
    }

    /// Columns of a block, of a pair for matrices with block scales.
    fn block_width(&self) -> Option<usize> {
        match self.decode.op {
            Op::Blocks(layout) => Some(layout.width()),
            _ => None,
        }
    }

    /// The tier that both kernels need: one of them may do with a lower one.
    pub fn isa(&self) -> Isa {
        self.decode.isa.max(self.prefill.isa)
    }
}

/// Matrices of one role with fewer weights are taken to be of a model that a cache holds. There a
/// denser format has nothing to save, and costs what unpacking it takes.
const CACHED: usize = 1 << 20;

/// Profiles that ship for a CPU: its own or that of its class, and the default pairs of those and of
/// every class below.
#[derive(Debug, Clone)]
pub struct Defaults {
    first: &'static Shipped,
    rest: Vec<&'static Shipped>,
}

impl Defaults {
    /// For a CPU of that vendor, family and model, as `host` profiles name them, and its best tier.
    pub fn of(vendor: &str, family: u32, model: u32, best: Isa) -> Self {
        let mut fitting = Shipped::all().iter().filter(|s| s.fits(vendor, family, model, best));
        let first = fitting.next().expect("the last one fits any CPU");
        Self { first, rest: fitting.filter(|shipped| shipped.is_class()).collect() }
    }

    /// The profile that ships for this CPU.
    pub fn shipped(&self) -> &'static Shipped {
        self.first
    }

    /// The entry of that profile for a role with those matrices, if `ceiling` and `format` allow it.
    pub fn choice(
        &self,
        role: Role,
        parts: &[Shape],
        format: Option<Format>,
        ceiling: Isa,
    ) -> Option<&'static Choice> {
        let choice = self.first.profile().choice(role, parts)?;
        let prefill = choice.prefill.as_ref().unwrap_or(&choice.decode);
        let allowed =
            [&choice.decode, prefill].iter().all(|pick| pick.kernel.isa.is_within(ceiling));
        let asked_for = |packing: Packing| match packing {
            Packing::Ternary(layout) => format.is_none_or(|format| layout.format() == format),
            Packing::Blocks(_) => true,
        };
        (allowed && choice.layout.is_none_or(asked_for)).then_some(choice)
    }

    /// The kernels for a ternary role with those matrices: those that the profile lists, else the
    /// pair of [`Defaults::ternary`], where matrices of a model that a cache holds are I2_S unless
    /// another format is asked for.
    pub fn pair(
        &self,
        role: Role,
        parts: &[Shape],
        format: Option<Format>,
        ceiling: Isa,
    ) -> Generic {
        self.choice(role, parts, format, ceiling)
            .and_then(|choice| {
                let prefill = choice.prefill.as_ref()?.kernel;
                Some(Generic { decode: choice.decode.kernel, prefill })
            })
            .unwrap_or_else(|| {
                let weights: usize = parts.iter().map(|part| part.weights()).sum();
                let cached = (weights < CACHED).then_some(Format::I2S);
                self.ternary(format.or(cached), ceiling).1
            })
    }

    /// The default pair for a format on the best ISA up to `ceiling`, and the name of the profile
    /// beside which it stands. Where no format is asked for, that of the best pair listed for the
    /// kind of CPU; for a mere class of CPUs I2_S, to which lookups lose wherever both were measured.
    pub fn ternary(&self, format: Option<Format>, ceiling: Isa) -> (&'static str, Generic) {
        let format = format.unwrap_or_else(|| {
            let own = self.first.kernels.iter().filter(|_| !self.first.is_class());
            let best = own.filter(|g| g.isa().is_within(ceiling)).max_by_key(|g| g.isa());
            best.map_or(Format::I2S, |pair| pair.layout().format())
        });
        let all = self.chain().flat_map(|s| s.kernels.iter().map(|g| (s.name.as_str(), *g)));
        let allowed: Vec<(&'static str, Generic)> = all
            .filter(|(_, g)| g.isa().is_within(ceiling) && g.layout().format() == format)
            .collect();
        // Of equal ISA the first, which the last of equals in reverse is.
        *allowed
            .iter()
            .rev()
            .max_by_key(|(_, g)| g.isa())
            .expect("the generic profile has every format on the scalar ISA")
    }

    /// The pair for matrices with a scale for each block of so many columns, on the best ISA up to
    /// `ceiling`.
    pub fn blocks(&self, width: usize, ceiling: Isa) -> Option<Generic> {
        let all = self.chain().flat_map(|shipped| &shipped.blocks).copied();
        let allowed: Vec<Generic> = all
            .filter(|pair| pair.isa().is_within(ceiling) && pair.block_width() == Some(width))
            .collect();
        // Of equal ISA the first.
        allowed.into_iter().rev().max_by_key(Generic::isa)
    }

    /// The kernel for a head of that format and shape up to `ceiling`, if one was found to be better
    /// than others.
    pub fn head(&self, format: HeadFormat, shape: Shape, ceiling: Isa) -> Option<KernelId> {
        let op = Op::Head(format);
        let listed = self.choice(Role::LmHead, &[shape], None, ceiling);
        let listed = listed.map(|choice| choice.decode.kernel).filter(|id| id.op == op);
        let all = self.chain().flat_map(|shipped| &shipped.heads);
        let allowed: Vec<KernelId> =
            all.filter(|id| id.isa.is_within(ceiling) && id.op == op).copied().collect();
        // Of equal ISA the first.
        listed.or_else(|| allowed.into_iter().rev().max_by_key(|id| id.isa))
    }

    /// The kernel for a list of rows or columns, `op`, on that ISA, if one was found to be better than others.
    pub fn gather(&self, op: Op, isa: Isa) -> Option<KernelId> {
        let mut all = self.chain().flat_map(|shipped| &shipped.gathers);
        all.find(|id| id.op == op && id.isa == isa).copied()
    }

    /// The kernel for attention that the profile lists for those shapes.
    pub fn attention(&self, parts: &[Shape], ceiling: Isa) -> Option<KernelId> {
        Some(self.choice(Role::Attention, parts, None, ceiling)?.decode.kernel)
    }

    /// The kernel that skips what meets a zero which the profile lists for a role with those
    /// matrices, if `ceiling` and `format` allow it.
    pub fn lines(
        &self,
        role: Role,
        parts: &[Shape],
        format: Option<Format>,
        ceiling: Isa,
    ) -> Option<&'static Sparse> {
        let sparse = self.first.profile().choice(role, parts)?.sparse.as_ref()?;
        sparse.serves(format, ceiling).then_some(sparse)
    }

    fn chain(&self) -> impl DoubleEndedIterator<Item = &'static Shipped> {
        [self.first].into_iter().chain(self.rest.iter().copied())
    }
}

/// The default pairs of all ISA classes: at most one for each format and ISA.
pub fn generics() -> impl Iterator<Item = &'static Generic> {
    Shipped::all().iter().filter(|s| s.is_class()).flat_map(|shipped| &shipped.kernels)
}

/// The default pair on a CPU of which nothing but its best tier is known: see [`Defaults::ternary`].
pub fn generic(format: Option<Format>, ceiling: Isa) -> Generic {
    Defaults::of("", 0, 0, ceiling).ternary(format, ceiling).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_isa_has_a_default() {
        for shipped in Shipped::all() {
            for g in shipped.kernels.iter().chain(&shipped.blocks) {
                assert_eq!(g.decode.op, g.prefill.op, "{}", g.decode);
                assert!(
                    [g.decode, g.prefill].iter().all(|id| g.isa().includes(id.isa)),
                    "{}",
                    g.decode
                );
                assert!(g.decode.tile.tokens == 1 && g.prefill.tile.tokens > 1, "{}", g.decode);
                assert!(g.decode.shape.is_none() && g.prefill.shape.is_none(), "{}", g.decode);
            }
            assert!(shipped.heads.iter().all(|id| matches!(id.op, Op::Head(_))));
            assert!(shipped.gathers.iter().all(|id| matches!(id.op, Op::Rows(_) | Op::Columns(_))));
        }
        for &isa in Isa::ALL {
            assert!(generic(None, isa).isa().is_within(isa));
            for &format in Format::ALL {
                let g = generic(Some(format), isa);
                assert!(g.isa().is_within(isa) && g.layout().format() == format);
            }
            for width in [64, 128, 256] {
                let pair = Defaults::of("", 0, 0, isa).blocks(width, isa).unwrap();
                assert!(pair.isa().is_within(isa) && pair.block_width() == Some(width));
                assert_eq!(pair.isa() == Isa::Scalar, isa == Isa::Scalar, "{isa}");
            }
        }
    }

    /// Identities that CPUs report, and the profile that ships for each.
    #[test]
    fn every_cpu_finds_its_own_profile_then_its_class() {
        let amd = |family, model, best| ("AuthenticAMD", family, model, best);
        let intel = |model, best| ("GenuineIntel", 6, model, best);
        let (avx2, avx512) = (Isa::Avx2, Isa::Avx512);
        let (vnni, vbmi) = (Isa::Avx512Vnni, Isa::Avx512Vbmi);
        for (cpu, name) in [
            (amd(23, 0x31, avx2), "zen2"),
            (amd(23, 0x71, avx2), "zen2"),
            (amd(25, 0x01, avx2), "zen3"),
            (amd(25, 0x21, avx2), "zen3"),
            (amd(25, 0x11, vbmi), "zen4"),
            (amd(25, 0x61, vbmi), "zen4"),
            (amd(26, 0x02, vbmi), "zen5"),
            (intel(0x3c, avx2), "haswell"),
            (intel(0x4f, avx2), "haswell"),
            (intel(0x5e, avx2), "skylake"),
            (intel(0xa5, avx2), "skylake"),
            (intel(0x97, Isa::AvxVnni), "alder-lake"),
            (intel(0xaa, Isa::AvxVnni), "alder-lake"),
            (intel(0x55, avx512), "skylake-x"),
            (intel(0x55, vnni), "cascade-lake"),
            (intel(0x6a, vbmi), "ice-lake"),
            (intel(0x8f, vbmi), "sapphire-rapids"),
            (("0x61", 8, 0x23, Isa::NeonDot), "apple-m1"),
            (("0x61", 8, 0x52, Isa::NeonI8mm), "apple-m4"),
            (("0x41", 8, 0xd0b, Isa::NeonDot), "cortex-a76"),
            (("0x41", 8, 0xd40, Isa::NeonI8mm), "neoverse-v1"),
            (("0x51", 8, 0x001, Isa::NeonI8mm), "snapdragon-x"),
            (("0x41", 8, 0xd08, Isa::Neon), "neon"),
            (("0x41", 8, 0xd46, Isa::NeonDot), "neondot"),
            (("0x41", 8, 0xd4d, Isa::NeonI8mm), "neoni8mm"),
            // A hypervisor that hides what the CPU has leaves it in the class of what is left.
            (intel(0x8f, avx2), "avx2"),
            (amd(26, 0x02, avx2), "avx2"),
            (intel(0x8f, vnni), "avx512vnni"),
            (("0x41", 8, 0xd40, Isa::NeonDot), "neondot"),
            // Others.
            (amd(23, 0x01, avx2), "avx2"),
            (("unknown", 0, 0, vbmi), "avx512vnni"),
            (("unknown", 0, 0, avx512), "avx512"),
            (("unknown", 0, 0, Isa::AvxVnni), "avxvnni"),
            (intel(0x97, avx2), "avx2"),
            (("GenuineIntel", 6, 0x1a, Isa::Scalar), "generic"),
        ] {
            let (vendor, family, model, best) = cpu;
            let defaults = Defaults::of(vendor, family, model, best);
            assert_eq!(defaults.shipped().name, name, "{cpu:?}");
            // The pair is of the best ISA, from the profile itself.
            let (from, pair) = defaults.ternary(None, best);
            assert_eq!(from, name, "{cpu:?}");
            assert!(pair.isa().is_within(best));
        }
    }

    #[test]
    fn a_kind_of_cpu_has_its_own_defaults_before_those_of_its_class() {
        let zen5 = Defaults::of("AuthenticAMD", 26, 2, Isa::Avx512Vbmi);
        let (name, own) = zen5.ternary(None, Isa::Avx512Vbmi);
        assert_eq!((name, own.layout().format()), ("zen5", Format::T5));
        let (name, below) = zen5.ternary(None, Isa::Avx512Vnni);
        assert_eq!((name, below.layout().format()), ("zen5", Format::I2S));
        // A class has CPUs of which nobody knows whether T5 is faster.
        let class = generic(None, Isa::Avx512Vbmi);
        assert_eq!((class.decode.isa, class.layout().format()), (Isa::Avx512Vnni, Format::I2S));
        let shape = Shape::new(1000, 256);
        assert!(zen5.head(HeadFormat::Q6K, shape, Isa::Avx512Vbmi).is_some());
        // What stands nowhere beside its name comes from a class.
        assert_eq!(zen5.ternary(None, Isa::Scalar).0, "generic");
        assert_eq!(zen5.ternary(Some(Format::Tl1), Isa::Avx512).0, "avx512");
        assert_eq!(zen5.head(HeadFormat::Q6K, shape, Isa::Scalar), None);
        // Of kernels of one ISA the CPU's own goes before that of a class.
        let head = zen5.head(HeadFormat::F16, shape, Isa::Avx512Vbmi).unwrap();
        assert_eq!(head.to_string(), "head_f16__avx512__any__r1_c0_n1_u1_p8192");
        let head = zen5.head(HeadFormat::F16, shape, Isa::Avx2).unwrap();
        assert_eq!(head.to_string(), "head_f16__avx2__any__r1_c0_n1_u1_p0");
    }

    #[test]
    fn listed_shapes_take_what_is_listed_unless_it_is_forbidden() {
        let zen4 = Defaults::of("AuthenticAMD", 25, 0x11, Isa::Avx512Vbmi);
        let listed = zen4.shipped().profile().ops.iter().find(|op| op.role == Role::Down).unwrap();
        let pair = |format, ceiling| zen4.pair(Role::Down, &listed.parts, format, ceiling);
        let free = pair(None, Isa::Avx512Vbmi);
        assert_eq!(free.decode, listed.decode.kernel);
        assert_eq!(free.prefill, listed.prefill.as_ref().unwrap().kernel);
        assert_eq!(pair(None, Isa::Avx2).decode.isa, Isa::Avx2);
        assert_eq!(pair(Some(Format::Tl2), Isa::Avx512Vbmi).layout(), Layout::Tl2W32);
        let other = |rows| zen4.pair(Role::Down, &[Shape::new(rows, 1024)], None, Isa::Avx512Vbmi);
        assert_eq!(other(1024), zen4.ternary(None, Isa::Avx512Vbmi).1);
        assert_eq!(other(1023), zen4.ternary(Some(Format::I2S), Isa::Avx512Vbmi).1);
    }
}
