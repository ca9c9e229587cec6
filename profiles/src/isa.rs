/// What the CPU can do, in tiers: each includes the one before. The order is that of `--isa`,
/// which is a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, whatever the target's baseline is.
    Scalar,
    /// AVX2, FMA and F16C: Haswell and Zen on.
    Avx2,
    /// AVX-512 F, BW, DQ, VL: Skylake-X on.
    Avx512,
    /// With VNNI (`vpdpbusd`): Cascade Lake and Zen 4 on.
    Avx512Vnni,
    /// With VBMI and VBMI2 (`vpshldw`): Ice Lake and Zen 4 on.
    Avx512Vbmi,
}

named!(Isa, "ISA", {
    Scalar => "scalar",
    Avx2 => "avx2",
    Avx512 => "avx512",
    Avx512Vnni => "avx512vnni",
    Avx512Vbmi => "avx512vbmi",
});

impl Isa {
    /// Whether this CPU and its operating system run the tier. The only feature detection in the
    /// workspace.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Scalar => true,
                Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
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
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// The best tier this CPU runs.
    pub fn best() -> Self {
        let supported = Self::ALL.iter().copied().filter(|isa| isa.is_supported());
        supported.max().unwrap_or(Self::Scalar)
    }

    /// The tiers whose kernels a build for `arch` (as in `CARGO_CFG_TARGET_ARCH`) holds.
    pub fn of_arch(arch: &str) -> &'static [Self] {
        match arch {
            "x86_64" => Self::ALL,
            _ => &[Self::Scalar],
        }
    }

    /// The Rust target features of the tier, as in `#[target_feature(enable = "...")]`; empty for
    /// the baseline.
    pub const fn target_features(self) -> &'static str {
        match self {
            Self::Scalar => "",
            Self::Avx2 => "avx2,fma,f16c",
            Self::Avx512 => "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
            Self::Avx512Vnni => "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
            Self::Avx512Vbmi => {
                "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2"
            }
        }
    }

    /// Vector registers a kernel can count on.
    pub const fn registers(self) -> usize {
        match self {
            Self::Scalar | Self::Avx2 => 16,
            _ => 32,
        }
    }

    /// 32-bit lanes of a vector.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Scalar => 4,
            Self::Avx2 => 8,
            _ => 16,
        }
    }

    /// Whether a byte product sum lands in 32-bit lanes at once (`vpdpbusd`, plain arithmetic);
    /// else it lands in 16-bit lanes (`vpmaddubsw`) that must be widened before they wrap.
    pub const fn dots_are_wide(self) -> bool {
        matches!(self, Self::Scalar | Self::Avx512Vnni | Self::Avx512Vbmi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_nested() {
        for pair in Isa::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[1].target_features().starts_with(pair[0].target_features()));
            assert!(pair[0].is_supported() || !pair[1].is_supported());
        }
    }
}
