use serde::{Deserialize, Serialize};

/// A weight matrix: `rows` outputs (M) by `cols` inputs (K). Serialised as `[rows, cols]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(usize, usize)", into = "(usize, usize)")]
pub struct Shape {
    /// Outputs, M.
    pub rows: usize,
    /// Inputs, K: the length of the dot products.
    pub cols: usize,
}

impl Shape {
    /// Most columns any kernel takes: beyond it, a 32-bit lane that sums in-place codes
    /// (up to 2 * 64 per weight, 4 weights of every 16 columns, times |-128|) could wrap.
    pub const MAX_COLS: usize = 1 << 18;
    /// Most rows a matrix may have.
    pub const MAX_ROWS: usize = 1 << 24;

    /// `rows` outputs by `cols` inputs.
    pub const fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols }
    }

    /// Weights in the matrix; `usize::MAX` if they are more.
    pub const fn weights(self) -> usize {
        self.rows.saturating_mul(self.cols)
    }
}

impl From<(usize, usize)> for Shape {
    fn from((rows, cols): (usize, usize)) -> Self {
        Self { rows, cols }
    }
}

impl From<Shape> for (usize, usize) {
    fn from(shape: Shape) -> Self {
        (shape.rows, shape.cols)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.cols)
    }
}
