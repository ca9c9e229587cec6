//! Scales of ternary matrices: for the tensor, each row, or each block.

use std::ops::Range;

/// Factors of the ternary weights of a matrix.
///
/// Among several scales, a scale of 0 makes its weights zero, whatever their codes: such codes are
/// read as zeros.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// One for all.
    Tensor(f32),
    /// One for each row, `[rows]`.
    Rows(Vec<f32>),
    /// One for each block of columns of a row, `[rows][cols / width]`.
    Blocks {
        /// Columns of a block.
        width: usize,
        /// The scales.
        values: Vec<f32>,
    },
}

impl From<f32> for Scales {
    fn from(scale: f32) -> Self {
        Self::Tensor(scale)
    }
}

impl Scales {
    /// Returns the scale of the whole tensor, if there is only one.
    #[must_use]
    pub fn of_tensor(&self) -> Option<f32> {
        match *self {
            Self::Tensor(scale) => Some(scale),
            Self::Rows(_) | Self::Blocks { .. } => None,
        }
    }

    /// All of them.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Tensor(scale) => std::slice::from_ref(scale),
            Self::Rows(values) | Self::Blocks { values, .. } => values,
        }
    }

    /// Names the unit that shares a scale, for messages.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "tensor",
            Self::Rows(_) => "row",
            Self::Blocks { .. } => "block",
        }
    }

    /// Returns an invalid scale, if any: not finite, negative, or 0 where it is the only one.
    #[must_use]
    pub fn broken(&self) -> Option<f32> {
        let several = !matches!(self, Self::Tensor(_));
        let sound = |scale: &f32| scale.is_finite() && (*scale > 0.0 || several && *scale == 0.0);
        self.values().iter().copied().find(|scale| !sound(scale))
    }

    /// Returns the single exact scale for a kernel that takes only one: where all scales that are
    /// not 0 are equal. Where all are 0 any will do, and it is 1.
    ///
    /// # Errors
    /// Two scales that differ.
    pub fn uniform(&self) -> Result<f32, [f32; 2]> {
        if let Self::Tensor(scale) = *self {
            return Ok(scale);
        }
        one_of(self.values()).map(|scale| scale.unwrap_or(1.0))
    }

    /// Returns the single scale of some columns of a row, of a matrix of `cols` columns: 0 where all of
    /// theirs are 0.
    ///
    /// # Errors
    /// Two scales that differ.
    pub fn of_columns(
        &self,
        cols: usize,
        row: usize,
        columns: Range<usize>,
    ) -> Result<f32, [f32; 2]> {
        match self {
            Self::Tensor(scale) => Ok(*scale),
            Self::Rows(values) => Ok(values[row]),
            Self::Blocks { width, values } => {
                let row = &values[row * (cols / width)..(row + 1) * (cols / width)];
                let own = &row[columns.start / width..columns.end.div_ceil(*width)];
                one_of(own).map(|scale| scale.unwrap_or(0.0))
            }
        }
    }
}

/// Returns the one scale of several that is not 0; `None` where all are.
fn one_of(scales: &[f32]) -> Result<Option<f32>, [f32; 2]> {
    let mut values = scales.iter().copied().filter(|scale| *scale != 0.0);
    let Some(first) = values.next() else { return Ok(None) };
    values.find(|scale| *scale != first).map_or(Ok(Some(first)), |other| Err([first, other]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scales_are_one() {
        let blocks = |values: &[f32]| Scales::Blocks { width: 256, values: values.into() };
        assert_eq!(Scales::Tensor(0.0).uniform(), Ok(0.0));
        assert_eq!(blocks(&[0.5, 0.5]).uniform(), Ok(0.5));
        assert_eq!(Scales::Rows(vec![0.0, 0.5, -0.0, 0.5]).uniform(), Ok(0.5));
        assert_eq!(blocks(&[0.0, 0.0]).uniform(), Ok(1.0));
        assert_eq!(blocks(&[0.0, 0.5, 0.5, 0.25]).uniform(), Err([0.5, 0.25]));
        let next = 0.5f32.next_up();
        assert_eq!(Scales::Rows(vec![0.5, next]).uniform(), Err([0.5, next]));
        assert_eq!((blocks(&[0.5]).of_tensor(), Scales::from(0.5).of_tensor()), (None, Some(0.5)));
    }

    #[test]
    fn scales_of_columns_are_found() {
        let blocks = Scales::Blocks { width: 4, values: vec![0.5, 0.5, 0.25, 0.0, 0.0, 0.25] };
        for (row, columns, scale) in [
            (0, 0..8, Ok(0.5)),
            (0, 5..6, Ok(0.5)),
            (0, 4..12, Err([0.5, 0.25])),
            (1, 0..8, Ok(0.0)),
            (1, 0..12, Ok(0.25)),
        ] {
            assert_eq!(blocks.of_columns(12, row, columns.clone()), scale, "{row}, {columns:?}");
        }
        assert_eq!(Scales::Rows(vec![0.5, 0.25]).of_columns(12, 1, 0..12), Ok(0.25));
        assert_eq!(Scales::Tensor(0.5).of_columns(12, 1, 0..12), Ok(0.5));
    }

    #[test]
    fn broken_scales_are_found() {
        for scale in [0.0, -0.5, f32::INFINITY] {
            assert_eq!(Scales::Tensor(scale).broken(), Some(scale));
        }
        assert!(Scales::Tensor(f32::NAN).broken().is_some_and(f32::is_nan));
        assert_eq!(Scales::Tensor(1e-45).broken(), None);
        assert_eq!(Scales::Rows(vec![0.0, 0.5]).broken(), None);
        assert_eq!(Scales::Rows(vec![0.5, -0.5]).broken(), Some(-0.5));
    }
}
