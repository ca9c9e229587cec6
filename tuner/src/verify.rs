//! Every candidate against the oracle before it is timed, on the columns it will meet. A kernel
//! that is wrong is a bug to report and never a candidate.

use bitnet_profiles::{KernelId, Layout, Shape};
use bitnet_runtime::Error;
use bitnet_runtime::kernels::Kernel;
use bitnet_runtime::memory::Buffer;
use bitnet_runtime::pack::{PackedMatrix, to_file_codes};
use bitnet_runtime::reference;
use bitnet_runtime::threads::Pool;

use crate::Result;
use crate::random::Random;

/// Codes, activations and the products they must give.
struct Case {
    name: &'static str,
    codes: Vec<u8>,
    quantised: Vec<i8>,
    expected: Vec<i32>,
}

/// A code and an activation for a column.
type Pattern = fn(&mut Random, usize) -> (u8, i8);

/// What every kernel must get right: the largest sums there are, zeros, and noise.
const PATTERNS: &[(&str, Pattern)] = &[
    ("random", |random, _| (random.below(3) as u8, random.below(256) as u8 as i8)),
    ("all +1 times 127", |_, _| (2, 127)),
    ("all +1 times -128", |_, _| (2, -128)),
    ("all -1 times 127", |_, _| (0, 127)),
    ("all -1 times -128", |_, _| (0, -128)),
    ("all 0 times -128", |_, _| (1, -128)),
    ("all +1 times 0", |_, _| (2, 0)),
    ("signs aligned", |_, col| if col % 3 == 0 { (0, -128) } else { (2, 127) }),
];

/// The products of `cols` columns that kernels are held against.
pub(crate) struct Oracle {
    shape: Shape,
    tokens: usize,
    cases: Vec<Case>,
}

impl Oracle {
    /// For kernels of up to `tokens` activation rows.
    pub(crate) fn new(cols: usize, tokens: usize) -> Self {
        // More than a step of any kernel, and ragged; rows times columns must fill whole blocks of
        // 128 in the file's layout.
        let rows = (Layout::ROW_PADDING + 1..).find(|rows| (rows * cols).is_multiple_of(128));
        let shape = Shape::new(rows.unwrap_or(128), cols);
        // One more than a group, so that the last group is short.
        let tokens = tokens + 1;
        let cases = PATTERNS.iter().map(|&(name, pattern)| {
            let mut random = Random::new(cols as u64);
            let mut pick = |i: usize| pattern(&mut random, i % cols);
            let codes: Vec<u8> = (0..shape.weights()).map(|i| pick(i).0).collect();
            let quantised: Vec<i8> = (0..tokens * cols).map(|i| pick(i).1).collect();
            let expected = reference::matmul(&codes, &quantised, cols);
            Case { name, codes, quantised, expected }
        });
        Self { shape, tokens, cases: cases.collect() }
    }

    /// Those of `kernels`, which read `layout`, that go wrong, and where in words. `begin` is told
    /// of each before it is called.
    pub(crate) fn check(
        &self,
        layout: Layout,
        kernels: &[Kernel],
        pool: &Pool,
        begin: &mut dyn FnMut(&KernelId) -> Result<()>,
    ) -> Result<Vec<(KernelId, String)>> {
        let mut wrong: Vec<(KernelId, String)> = Vec::new();
        for case in &self.cases {
            let buffer = Buffer::zeroed(layout.matrix_bytes(self.shape))?;
            let file = to_file_codes(&case.codes);
            let matrix = PackedMatrix::pack(&file, self.shape, 1.0, layout, buffer, pool)?
                .map_err(|_| Error::Runtime(format!("packing {layout} refused its own codes")))?;
            for kernel in kernels {
                let id = *kernel.id();
                if wrong.iter().any(|(known, _)| *known == id) {
                    continue;
                }
                begin(&id)?;
                if let Some(found) = self.difference(case, kernel, &matrix)? {
                    wrong.push((id, found));
                }
            }
        }
        Ok(wrong)
    }

    /// Multiplies as a thread would, group by group, and says where the first difference is.
    fn difference(
        &self,
        case: &Case,
        kernel: &Kernel,
        matrix: &PackedMatrix,
    ) -> Result<Option<String>> {
        let Shape { rows, cols } = self.shape;
        let steps = kernel.steps(rows);
        let stride = steps * kernel.step_rows();
        let mut group = Buffer::zeroed(kernel.group_bytes(cols))?;
        let mut out = vec![0; kernel.tokens() * stride];
        let tokens = self.tokens.min(kernel.tokens() + 1);
        let groups = case.quantised[..tokens * cols].chunks(kernel.tokens() * cols);
        let expected = case.expected[..tokens * rows].chunks(kernel.tokens() * rows);
        for (index, (quantised, expected)) in groups.zip(expected).enumerate() {
            kernel.prepare(quantised, cols, &mut group);
            kernel.run(matrix, 0..steps, &group, &mut out, stride);
            for (token, expected) in expected.chunks(rows).enumerate() {
                let got = &out[token * stride..][..rows];
                if let Some(row) = (0..rows).find(|&row| got[row] != expected[row]) {
                    return Ok(Some(format!(
                        "{}, {}, token {}, row {row}: {} instead of {}",
                        self.shape,
                        case.name,
                        index * kernel.tokens() + token,
                        got[row],
                        expected[row]
                    )));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::Isa;
    use bitnet_runtime::kernels;

    use super::*;

    #[test]
    fn right_kernels_pass_and_a_wrong_product_is_seen() {
        let pool = Pool::new(1).unwrap();
        for cols in [384, 250, 1] {
            let kernel = *kernels::builtin().iter().find(|k| k.id().isa == Isa::Scalar).unwrap();
            let mut oracle = Oracle::new(cols, kernel.tokens());
            assert_eq!(
                oracle.check(kernel.layout(), &[kernel], &pool, &mut |_| Ok(())).unwrap(),
                []
            );
            // The oracle errs instead of the kernel: the difference must show all the same, in
            // every case and at the last product.
            for case in 0..oracle.cases.len() {
                let at = oracle.shape.rows * (kernel.tokens() + 1) - 1;
                oracle.cases[case].expected[at] += 1;
                let wrong =
                    oracle.check(kernel.layout(), &[kernel], &pool, &mut |_| Ok(())).unwrap();
                assert_eq!(wrong.len(), 1, "{cols}");
                assert!(wrong[0].1.contains(oracle.cases[case].name), "{}", wrong[0].1);
                oracle.cases[case].expected[at] -= 1;
            }
        }
    }
}
