//! Medians, because a neighbour on the machine makes some samples long and none short.

pub(crate) use bitnet_runtime::measure::bench::median;

/// The median absolute deviation from the median.
pub(crate) fn mad(values: &[f64]) -> f64 {
    let middle = median(values);
    let deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&deviations)
}

/// Fewer samples than this say little about their own noise.
pub(crate) const FEW: usize = 5;

/// Half the width of the interval that holds the true median in 19 cases of 20, at least a
/// `floor`.
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
}
