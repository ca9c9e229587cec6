/// Tiers of CPU features. The order is that of `--isa`, which is a ceiling: of what a CPU
/// runs, a later tier is the better one. Most tiers include the one before, but not all do
/// ([`Isa::includes`]): CPUs with AVX-512 may lack AVX-VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, whatever the target's baseline is.
    Scalar,
    /// AVX2, FMA and F16C: Haswell and Zen on.
    Avx2,
    /// With AVX-VNNI (`vpdpbusd` on 256 bits): Alder Lake and Zen 5 on.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL: Skylake-X on.
    Avx512,
    /// AVX-512 with VNNI (`vpdpbusd`): Cascade Lake and Zen 4 on.
    Avx512Vnni,
    /// With VBMI and VBMI2 (`vpshldw`): Ice Lake and Zen 4 on.
    Avx512Vbmi,
    /// NEON: every 64-bit ARM.
    Neon,
    /// With the dot product instructions (`sdot`): Cortex-A55 and A76, Neoverse, Apple M1 on.
    NeonDot,
    /// With the matrix product instructions (`smmla`): Neoverse V1 and N2, Apple M2, Snapdragon X on.
    NeonI8mm,
}

named!(Isa, "ISA", {
    Scalar => "scalar",
    Avx2 => "avx2",
    AvxVnni => "avxvnni",
    Avx512 => "avx512",
    Avx512Vnni => "avx512vnni",
    Avx512Vbmi => "avx512vbmi",
    Neon => "neon",
    NeonDot => "neondot",
    NeonI8mm => "neoni8mm",
});

impl Isa {
    /// True if this CPU and its operating system run the tier. The only feature detection in the
    /// workspace.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Scalar => true,
                Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
                Self::AvxVnni => Self::Avx2.is_supported() && has!("avxvnni"),
                Self::Avx512 => {
                    Self::Avx2.is_supported()
                        && has!("avx512f")
                        && has!("avx512bw")
                        && has!("avx512dq")
                        && has!("avx512vl")
                }
                Self::Avx512Vnni => Self::Avx512.is_supported() && has!("avx512vnni"),
                Self::Avx512Vbmi => {
                    Self::Avx512Vnni.is_supported() && has!("avx512vbmi") && has!("avx512vbmi2")
                }
                Self::Neon | Self::NeonDot | Self::NeonI8mm => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            match self {
                Self::Scalar => true,
                Self::Neon => has!("neon"),
                Self::NeonDot => Self::Neon.is_supported() && has!("dotprod"),
                Self::NeonI8mm => Self::NeonDot.is_supported() && has!("i8mm"),
                _ => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Scalar
        }
    }

    /// The tiers this CPU runs, the best last.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_supported())
    }

    /// Their names, for messages.
    pub fn supported_names() -> String {
        Self::supported().map(Self::name).collect::<Vec<_>>().join(", ")
    }

    /// The best tier this CPU runs.
    pub fn best() -> Self {
        Self::supported().max().unwrap_or(Self::Scalar)
    }

    /// True if every CPU that runs this tier runs `other` too.
    pub fn includes(self, other: Self) -> bool {
        let own = self.target_features();
        let features = other.target_features().split(',').filter(|feature| !feature.is_empty());
        features.into_iter().all(|feature| own.split(',').any(|own| own == feature))
    }

    /// True if kernels of this tier may run under a ceiling: where this CPU runs the ceiling, what it
    /// runs and is not above; for the ceiling of another CPU, what that tier includes.
    pub fn is_within(self, ceiling: Self) -> bool {
        if ceiling.is_supported() {
            self <= ceiling && self.is_supported()
        } else {
            ceiling.includes(self)
        }
    }

    /// The tiers whose kernels a build for `arch` (as in `CARGO_CFG_TARGET_ARCH`) holds.
    pub fn of_arch(arch: &str) -> &'static [Self] {
        match arch {
            "x86_64" => &[
                Self::Scalar,
                Self::Avx2,
                Self::AvxVnni,
                Self::Avx512,
                Self::Avx512Vnni,
                Self::Avx512Vbmi,
            ],
            "aarch64" => &[Self::Scalar, Self::Neon, Self::NeonDot, Self::NeonI8mm],
            _ => &[Self::Scalar],
        }
    }

    /// The Rust target features of the tier, as in `#[target_feature(enable = "...")]`; empty for
    /// the baseline.
    pub const fn target_features(self) -> &'static str {
        match self {
            Self::Scalar => "",
            Self::Avx2 => "avx2,fma,f16c",
            Self::AvxVnni => "avx2,fma,f16c,avxvnni",
            Self::Avx512 => "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
            Self::Avx512Vnni => "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
            Self::Avx512Vbmi => {
                "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2"
            }
            Self::Neon => "neon",
            Self::NeonDot => "neon,dotprod",
            Self::NeonI8mm => "neon,dotprod,i8mm",
        }
    }

    /// Vector registers a kernel can count on.
    pub const fn registers(self) -> usize {
        match self {
            Self::Scalar | Self::Avx2 | Self::AvxVnni => 16,
            _ => 32,
        }
    }

    /// 32-bit lanes of a vector.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Scalar | Self::Neon | Self::NeonDot | Self::NeonI8mm => 4,
            Self::Avx2 | Self::AvxVnni => 8,
            _ => 16,
        }
    }

    /// The tier whose float operations this one uses; those between add nothing to float
    /// arithmetic.
    pub const fn float_tier(self) -> Self {
        match self {
            Self::Scalar => Self::Scalar,
            Self::Avx2 | Self::AvxVnni => Self::Avx2,
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Vbmi => Self::Avx512,
            Self::Neon | Self::NeonDot | Self::NeonI8mm => Self::Neon,
        }
    }

    /// True if one instruction looks up in a table of 32 entries (`vpermw`, `tbl` with two
    /// registers); else tables have 16 (`vpshufb`).
    pub const fn looks_up_32(self) -> bool {
        !matches!(self, Self::Avx2 | Self::AvxVnni)
    }

    /// True if a vector of bytes is looked up in a table of 64 at once (`vpermb`).
    pub const fn looks_up_64(self) -> bool {
        matches!(self, Self::Scalar | Self::Avx512Vbmi)
    }

    /// True if a byte product sum lands in 32-bit lanes at once (`vpdpbusd`, `sdot`, plain
    /// arithmetic); else it lands in 16-bit lanes (`vpmaddubsw`, `smlal`) that must be widened before
    /// they wrap.
    pub const fn dots_are_wide(self) -> bool {
        !matches!(self, Self::Avx2 | Self::Avx512 | Self::Neon)
    }

    /// True if one instruction multiplies two rows of bytes by two others (`smmla`).
    pub const fn multiplies_matrices(self) -> bool {
        matches!(self, Self::NeonI8mm)
    }

    /// Registers that hold the sums of a vector of byte products: `vpmaddubsw` adds pairs of them
    /// before they take 16 bits, `smlal` does not.
    pub const fn sum_registers(self) -> usize {
        match self {
            Self::Neon => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_nested() {
        for (at, &isa) in Isa::ALL.iter().enumerate() {
            assert!(isa.includes(isa) && isa.includes(Isa::Scalar));
            let floats = isa.float_tier();
            assert!(isa.includes(floats) && floats.float_tier() == floats, "{isa}");
            for &better in &Isa::ALL[at + 1..] {
                assert!(isa < better && !isa.includes(better), "{isa} {better}");
                if better.includes(isa) {
                    assert!(isa.is_supported() || !better.is_supported(), "{isa} {better}");
                    assert!(isa.lanes() <= better.lanes() && isa.registers() <= better.registers());
                }
            }
        }
        // Ladders, one with a side step: AVX-512 came without AVX-VNNI at first.
        let x86 = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Vbmi];
        for ladder in [&x86[..], Isa::of_arch("aarch64")] {
            assert!(ladder.windows(2).all(|pair| pair[1].includes(pair[0])));
            assert!(ladder.iter().all(|isa| !isa.includes(Isa::AvxVnni)));
        }
        assert!(Isa::AvxVnni.includes(Isa::Avx2));
        let both =
            Isa::of_arch("x86_64").iter().filter(|isa| Isa::of_arch("aarch64").contains(isa));
        assert!(both.eq(&[Isa::Scalar]));
        assert!(Isa::ALL.iter().all(|&isa| !isa.is_supported() || isa <= Isa::best()));
        assert!(Isa::supported().all(|isa| Isa::of_arch(std::env::consts::ARCH).contains(&isa)));
    }

    #[test]
    fn a_ceiling_lets_through_what_runs() {
        for &ceiling in Isa::ALL {
            assert!(ceiling.is_within(ceiling) && Isa::Scalar.is_within(ceiling));
            for &isa in Isa::ALL {
                let runs = !ceiling.is_supported() || isa.is_supported();
                assert!(!isa.is_within(ceiling) || runs && isa <= ceiling, "{isa} {ceiling}");
                assert!(isa.is_within(ceiling) || !ceiling.includes(isa), "{isa} {ceiling}");
            }
        }
    }
}
