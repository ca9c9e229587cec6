/// Order in which a kernel walks a matrix. In ids: `r16_c0_n1_u4_p0`, or `.._p16l2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileConfig {
    /// Rows per step: the outputs held in registers at once.
    pub rows: usize,
    /// Columns per block: how often narrow sums are widened, or how many columns of tables stay
    /// in the L1 cache; 0 is the whole row. Of a `columns_*` kernel, how many of the listed columns
    /// it takes through all its rows before the next ones.
    pub cols: usize,
    /// Activation rows (tokens) per call: 1 for decode, more for prefill.
    pub tokens: usize,
    /// Units of columns per loop iteration.
    pub unroll: usize,
    /// Distance of the software prefetch, 0 for none: in bytes, or in lines of the list where a
    /// kernel is given one (`rows_*`, `columns_*`).
    pub prefetch: usize,
    /// The cache that software prefetch fills, by its level: 1, or 2, which holds more lines under way.
    pub level: usize,
}

impl TileConfig {
    /// A tile without prefetch.
    pub const fn new(rows: usize, cols: usize, tokens: usize, unroll: usize) -> Self {
        Self { rows, cols, tokens, unroll, prefetch: 0, level: 1 }
    }
}

impl std::fmt::Display for TileConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, cols, tokens, unroll, prefetch, level } = self;
        write!(f, "r{rows}_c{cols}_n{tokens}_u{unroll}_p{prefetch}")?;
        if *level == 1 { Ok(()) } else { write!(f, "l{level}") }
    }
}
