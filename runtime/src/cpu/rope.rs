//! Rotary position tables: cos and sin as f32, computed in f64.
//!
//! The last bit of the system's `sin`, `exp` and `ln` differs between C libraries, and within a
//! library between CPUs. The functions here use only additions, multiplications and divisions, so
//! that every machine rounds to the same f32.

use std::f64::consts::{LN_2, SQRT_2};

/// The angular frequencies of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per pair of elements: radians per position.
    frequencies: Vec<f64>,
}

impl Rope {
    /// Computes the frequencies: number i of `dim / 2` is `base^(-2i / dim) / (scale *
    /// factors[i])`.
    ///
    /// `scale` is the linear context stretch (1: none); `factors` is the tensor `rope_freqs.weight`
    /// of Llama 3.1, `[dim / 2]`.
    ///
    /// # Panics
    /// Panics if the length of `factors` is not `dim / 2`, which the loader has checked.
    #[must_use]
    pub fn new(dim: usize, base: f32, scale: f32, factors: Option<&[f32]>) -> Self {
        let pairs = dim / 2;
        assert!(factors.is_none_or(|f| f.len() == pairs));
        let log_base = ln(f64::from(base));
        let frequencies = (0..pairs)
            .map(|i| {
                let factor = factors.map_or(1.0, |f| f64::from(f[i]));
                exp(-2.0 * i as f64 / dim as f64 * log_base) / (f64::from(scale) * factor)
            })
            .collect();
        Self { frequencies }
    }

    /// Number of pairs of elements that are rotated: the length of a row of cosines.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes the cosines and sines of one position, `[pairs]` each.
    pub fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = sin_cos(position as f64 * frequency);
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}

/// ln x for finite x >= 1: `x = m 2^e` with m near 1, `ln m = 2 atanh((m - 1) / (m + 1))` by its
/// series.
fn ln(x: f64) -> f64 {
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
        let rope = Rope::new(64, 500_000.0, 2.0, Some(&factors));
        let (mut cos, mut sin) = (vec![0.0; 32], vec![0.0; 32]);
        for position in [0, 1, 77, 4095, 131_071] {
            rope.fill(position, &mut cos, &mut sin);
            for i in 0..32 {
                let frequency = 500_000f64.powf(-2.0 * i as f64 / 64.0) / (2.0 * (1.0 + i as f64));
                let angle = position as f64 * frequency;
                assert!((f64::from(cos[i]) - angle.cos()).abs() < 1e-7, "{position} {i}");
                assert!((f64::from(sin[i]) - angle.sin()).abs() < 1e-7, "{position} {i}");
            }
        }
        assert_eq!(Rope::new(64, 1e4, 1.0, None).pairs(), 32);
    }
}
