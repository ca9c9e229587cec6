//! Statistics of samples: medians, as a busy machine makes some samples long and none short.

pub(crate) use bitnet_runtime::measure::bench::median;

/// Returns the median absolute deviation from the median.
pub(crate) fn mad(values: &[f64]) -> f64 {
    let middle = median(values);
    let deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&deviations)
}

/// Number of samples below which their scatter says little.
pub(crate) const FEW: usize = 5;

/// Returns half the width of the 95 % interval of the median, at least `floor`.
///
/// For normal noise the standard deviation is 1.4826 MAD, and a median of n samples scatters by
/// 1.2533 / sqrt(n) of that; 1.96 standard errors are 95 %. Fewer than [`FEW`] samples get an
/// interval of 5 % at least.
pub(crate) fn half_width(values: &[f64], floor: f64) -> f64 {
    let n = values.len().max(1) as f64;
    let error = 1.96 * 1.2533 * 1.4826 * mad(values) / n.sqrt();
    let least = if values.len() < FEW { floor.max(0.05 * median(values)) } else { floor };
    error.max(least)
}

/// Rounds to five significant digits.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Speed over that of something else, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// Estimate; 1 is no difference.
    pub times: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Gain {
    /// Upper end from which on an interval says nothing.
    const MOST: f64 = 100.0;

    /// Converts a ratio of times and half its interval.
    pub fn of(ratio: f64, half_width: f64) -> Self {
        let inverse = |ratio: f64| 1.0 / ratio.max(1e-6);
        Self {
            times: inverse(ratio),
            low: inverse(ratio + half_width),
            high: inverse(ratio - half_width),
        }
    }

    /// True if the interval is too wide to say anything.
    pub fn is_unknown(&self) -> bool {
        self.high > Self::MOST
    }

    /// True if the interval leaves 1 out.
    pub fn is_difference(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

impl std::fmt::Display for Gain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_unknown() {
            f.write_str("too noisy to say")
        } else if self.is_difference() {
            write!(f, "{:.2}x [{:.2}, {:.2}]", self.times, self.low, self.high)
        } else {
            write!(f, "no difference [{:.2}, {:.2}]", self.low, self.high)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(mad(&[1.0, 2.0, 3.0, 4.0, 100.0]), 1.0);
    }

    #[test]
    fn intervals_shrink_with_samples() {
        let samples: Vec<f64> = (0..100).map(|i| 1.0 + f64::from(i % 10) / 100.0).collect();
        let (few, many) = (half_width(&samples[..10], 0.0), half_width(&samples, 0.0));
        assert!(few > 3.0 * many && many > 0.0, "{few} {many}");
        assert_eq!(half_width(&[1.0; 50], 0.004), 0.004);
        assert_eq!(half_width(&[1.0; 2], 0.004), 0.05);
    }

    #[test]
    fn numbers_keep_their_digits_however_small() {
        for (value, expected) in [
            (0.0, 0.0),
            (123.456_78, 123.46),
            (1e-7 / 3.0, 3.3333e-8),
            (-2.0 / 3.0, -0.66667),
            (1_234_567.0, 1_234_600.0),
        ] {
            assert_eq!(rounded(value), expected);
        }
    }
}
