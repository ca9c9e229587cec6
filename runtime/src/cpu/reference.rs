//! Reference implementation: an independent triple loop that every kernel must equal.

/// Integer dot products of `tokens` activation rows with every row of a ternary matrix.
///
/// `codes` is `[rows][cols]`, codes 0, 1, 2 for the weights -1, 0, +1; `quantised` is
/// `[tokens][cols]`; the result is `[tokens][rows]`.
pub fn matmul(codes: &[u8], quantised: &[i8], cols: usize) -> Vec<i32> {
    let mut out = Vec::new();
    for activations in quantised.chunks_exact(cols) {
        for row in codes.chunks_exact(cols) {
            let mut dot = 0i32;
            for (&code, &q) in row.iter().zip(activations) {
                dot += (i32::from(code) - 1) * i32::from(q);
            }
            out.push(dot);
        }
    }
    out
}
