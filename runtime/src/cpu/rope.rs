//! Rotary position tables: cos and sin as f32, computed in f64.
//!
//! The last bit of the system's `sin`, `exp` and `ln` differs between C libraries, and within a
//! library between CPUs. The functions here use only additions, multiplications and divisions, so
//! that every machine rounds to the same f32.

use std::f64::consts::{LN_2, PI, SQRT_2};

use crate::arch::rope::{RopeScaling, Yarn};

/// The angular frequencies of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per pair of elements: radians per position.
    frequencies: Vec<f64>,
    /// Factor of all cosines and sines.
    magnitude: f64,
}

impl Rope {
    /// Computes the frequencies: number i of `dim / 2` is `e = base^(-2i / dim) / factors[i]`
    /// where positions are extrapolated, `e / scaling.factor` where they are interpolated, and between
    /// the two as YaRN mixes them (Peng et al., arXiv 2309.00071, section 3.2, as ggml has it:
    /// `rope_yarn` in `ggml-cpu/ops.cpp`).
    ///
    /// `factors` is the tensor `rope_freqs.weight` of Llama 3.1, `[dim / 2]`.
    ///
    /// # Panics
    /// Panics if the length of `factors` is not `dim / 2`, which the loader has checked.
    #[must_use]
    pub fn new(dim: usize, base: f32, scaling: &RopeScaling, factors: Option<&[f32]>) -> Self {
        let pairs = dim / 2;
        assert!(factors.is_none_or(|f| f.len() == pairs));
        let (log_base, scale) = (ln(f64::from(base)), f64::from(scaling.factor));
        let ramp = scaling.yarn.map(|yarn| Ramp::new(dim, log_base, &yarn));
        let frequencies = (0..pairs)
            .map(|i| {
                let factor = factors.map_or(1.0, |f| f64::from(f[i]));
                let plain = exp(-2.0 * i as f64 / dim as f64 * log_base);
                let interpolated = plain / (scale * factor);
                let Some(ramp) = &ramp else { return interpolated };
                let share = ramp.extrapolated(i);
                interpolated * (1.0 - share) + plain / factor * share
            })
            .collect();
        // Not below 1, whatever the scale (`get_mscale` in `llama-context.cpp`).
        let own = if ramp.is_some() { 1.0 + 0.1 * ln(scale.max(1.0)) } else { 1.0 };
        Self { frequencies, magnitude: f64::from(scaling.magnitude) * own }
    }

    /// Number of pairs of elements that are rotated: the length of a row of cosines.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes the cosines and sines of one position, `[pairs]` each, times the magnitude.
    pub fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = sin_cos(position as f64 * frequency);
            (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
        }
    }
}

/// Passage of YaRN from extrapolated to interpolated frequencies, counted in pairs: from the one that
/// turns `beta_fast` times over the original context to the one that turns `beta_slow` times
/// (`ggml_rope_yarn_corr_dims` in `ggml.c`).
struct Ramp {
    first: f64,
    last: f64,
    extrapolation: f64,
}

impl Ramp {
    fn new(dim: usize, log_base: f64, yarn: &Yarn) -> Self {
        let pair = |turns: f32| {
            let context = yarn.original_context as f64;
            dim as f64 * ln(context / (f64::from(turns) * 2.0 * PI)) / (2.0 * log_base)
        };
        Self {
            first: pair(yarn.beta_fast).floor().max(0.0),
            last: pair(yarn.beta_slow).ceil().min(dim as f64 - 1.0),
            extrapolation: f64::from(yarn.extrapolation),
        }
    }

    /// Returns the share of the extrapolated frequency of a pair.
    fn extrapolated(&self, pair: usize) -> f64 {
        let place = (pair as f64 - self.first) / (self.last - self.first).max(0.001);
        self.extrapolation * (1.0 - place.clamp(0.0, 1.0))
    }
}

/// ln x for finite x > 0, from that of 1 / x below 1: `x = m 2^e` with m near 1, `ln m = 2 atanh((m - 1) / (m + 1))` by its
/// series.
fn ln(x: f64) -> f64 {
    if x < 1.0 {
        return -ln(1.0 / x);
    }
    let (mut m, mut e) = (x, 0.0);
    while m > SQRT_2 {
        m /= 2.0;
        e += 1.0;
    }
    let z = (m - 1.0) / (m + 1.0); // |z| < 0.172: 12 terms leave 1e-19
    let (mut power, mut sum) = (z, 0.0);
    for k in 0..12 {
        sum += power / f64::from(2 * k + 1);
        power *= z * z;
    }
    2.0 * sum + e * LN_2
}

/// e^x for -100 <= x <= 100: the Taylor series of the part below ln 2 / 2, times 2^k.
fn exp(x: f64) -> f64 {
    let k = (x / LN_2).round();
    let r = x - k * LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for i in 1..20 {
        term *= r / f64::from(i);
        sum += term;
    }
    (0..k.abs() as i32).fold(sum, |v, _| if k > 0.0 { v * 2.0 } else { v / 2.0 })
}

/// sin and cos of `x` >= 0, to 1e-10 up to 2^20: `x = n pi/2 + r`, Taylor series of r.
fn sin_cos(x: f64) -> (f64, f64) {
    // pi/2 in two parts; the first has 33 bits, so that n times it is exact up to n = 2^20.
    // Range reduction after Cody and Waite.
    const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;
    let n = (x / std::f64::consts::FRAC_PI_2).round();
    let r = (x - n * HALF_PI_HIGH) - n * HALF_PI_LOW;
    let (mut sin, mut cos, mut term) = (0.0, 0.0, 1.0);
    for i in 0..22 {
        // term = r^i / i!; signs run + + - -.
        let signed = if i % 4 < 2 { term } else { -term };
        if i % 2 == 0 {
            cos += signed;
        } else {
            sin += signed;
        }
        term *= r / f64::from(i + 1);
    }
    match n as i64 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_functions_agree_with_the_library() {
        for i in 0..2000 {
            let x = 1.0 + f64::from(i) * f64::from(i) * 0.26; // up to 2^20
            assert!((ln(x) - x.ln()).abs() < 1e-14 * x.ln().max(1.0), "ln {x}");
            let y = (f64::from(i) - 1000.0) / 20.0;
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-13, "exp {y}");
            for angle in [x, y.abs(), f64::from(i) * 500.0] {
                let (s, c) = sin_cos(angle);
                assert!((s - angle.sin()).abs() < 1e-10, "sin {angle}");
                assert!((c - angle.cos()).abs() < 1e-10, "cos {angle}");
            }
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }

    #[test]
    fn tables_follow_the_formula() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        let linear = RopeScaling { factor: 2.0, magnitude: 1.25, ..RopeScaling::NONE };
        let rope = Rope::new(64, 500_000.0, &linear, Some(&factors));
        let (mut cos, mut sin) = (vec![0.0; 32], vec![0.0; 32]);
        for position in [0, 1, 77, 4095, 131_071] {
            rope.fill(position, &mut cos, &mut sin);
            for i in 0..32 {
                let frequency = 500_000f64.powf(-2.0 * i as f64 / 64.0) / (2.0 * (1.0 + i as f64));
                let angle = position as f64 * frequency;
                assert!((f64::from(cos[i]) - 1.25 * angle.cos()).abs() < 1e-7, "{position} {i}");
                assert!((f64::from(sin[i]) - 1.25 * angle.sin()).abs() < 1e-7, "{position} {i}");
            }
        }
        assert_eq!(Rope::new(64, 1e4, &RopeScaling::NONE, None).pairs(), 32);
    }

    /// YaRN as its authors' code has it (`LlamaYaRNScaledRotaryEmbedding`, as in Hugging Face's
    /// `modeling_rope_utils.py`), by wavelengths, in f64.
    fn exact(i: usize, dim: usize, base: f64, s: f64, yarn: &Yarn) -> f64 {
        let context = yarn.original_context as f64;
        let dimension = |rotations: f32| {
            dim as f64 * (context / (f64::from(rotations) * std::f64::consts::TAU)).log(base) / 2.0
        };
        let low = dimension(yarn.beta_fast).floor().max(0.0);
        let high = dimension(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
        let width = if high - low < 0.001 { 0.001 } else { high - low };
        let interpolates = ((i as f64 - low) / width).clamp(0.0, 1.0);
        let mask = (1.0 - interpolates) * f64::from(yarn.extrapolation);
        let wavelength = base.powf(2.0 * i as f64 / dim as f64);
        1.0 / (wavelength * s) * (1.0 - mask) + 1.0 / wavelength * mask
    }

    #[test]
    fn yarn_follows_its_formula() {
        let own = |extrapolation, original_context, (beta_fast, beta_slow)| Yarn {
            extrapolation,
            original_context,
            beta_fast,
            beta_slow,
        };
        let cases = [
            (128, 1e6, 4.0, own(1.0, 32_768, (32.0, 1.0))),
            (64, 1e4, 16.0, own(1.0, 2048, (32.0, 1.0))),
            (96, 5e5, 8.0, own(0.5, 8192, (16.0, 2.0))),
            // All pairs before the ramp, all behind it, and a ramp without a width.
            (16, 1e4, 2.0, own(1.0, 1 << 20, (0.5, 0.001))),
            (16, 1e4, 2.0, own(1.0, 4, (32.0, 1.0))),
            (64, 1e4, 4.0, own(1.0, 4096, (7.0, 7.0))),
            (64, 1e4, 0.5, own(1.0, 4096, (32.0, 1.0))),
        ];
        for (dim, base, factor, yarn) in cases {
            let scaling = RopeScaling { factor, yarn: Some(yarn), magnitude: 1.0 };
            let factor = f64::from(factor);
            let rope = Rope::new(dim, base as f32, &scaling, None);
            let magnitude = 1.0 + 0.1 * factor.ln().max(0.0);
            assert!((rope.magnitude - magnitude).abs() < 1e-14, "{scaling:?}");
            let (mut cos, mut sin) = (vec![0.0; dim / 2], vec![0.0; dim / 2]);
            for (i, &frequency) in rope.frequencies.iter().enumerate() {
                let expected = exact(i, dim, base, factor, &yarn);
                assert!((frequency / expected - 1.0).abs() < 1e-12, "{scaling:?}: pair {i}");
                // Between the interpolated frequency and the plain one.
                let plain = base.powf(-2.0 * i as f64 / dim as f64);
                let (least, most) = (plain / factor.max(1.0), plain / factor.min(1.0));
                assert!((least * (1.0 - 1e-12)..=most * (1.0 + 1e-12)).contains(&frequency));
            }
            // Far beyond the original context.
            for position in [0, yarn.original_context, (1 << 20) - 1] {
                rope.fill(position, &mut cos, &mut sin);
                for (i, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
                    let angle = position as f64 * exact(i, dim, base, factor, &yarn);
                    let off = |found: f32, exact: f64| (f64::from(found) - magnitude * exact).abs();
                    assert!(off(*cos, angle.cos()) < 1e-6, "{scaling:?}: {position} {i}");
                    assert!(off(*sin, angle.sin()) < 1e-6, "{scaling:?}: {position} {i}");
                }
            }
        }
    }

    /// A base of 1, for which the ramp has no place, still gives finite tables.
    #[test]
    fn yarn_of_odd_parameters_is_finite() {
        for (base, context) in [(1.0, 1), (1.0, 1 << 20), (1.0, 6), (1e12, 1)] {
            let yarn = Yarn {
                extrapolation: 1.0,
                original_context: context,
                beta_fast: 32.0,
                beta_slow: 1.0,
            };
            let scaling = RopeScaling { factor: 4.0, yarn: Some(yarn), magnitude: 1.0 };
            let rope = Rope::new(8, base, &scaling, None);
            assert!(rope.frequencies.iter().all(|f| (0.0..=1.0).contains(f)), "{base} {context}");
        }
    }
}
