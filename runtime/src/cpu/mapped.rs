//! Products with matrices as the file holds them, for the few tokens of a first prompt: packing
//! takes longer than those products, and the system takes longer still to provide the memory.
//!
//! A row of I2_S is a line of the gather kernels, once activations are in the order of the file
//! ([`GatherView::mapped`]). These kernels take one token at a time, so products are blocked: a
//! block of rows that fits the L1 cache is multiplied with all tokens before the next block.

use std::ops::Range;
use std::sync::Arc;

use bitnet_profiles::{GatherLayout, Shape};

use crate::arch::config::Config;
use crate::cpu::gather::{Along, GatherView};
use crate::cpu::kernels::{GatherKernel, VectorOps};
use crate::cpu::memory::{Buffer, zeroed};
use crate::cpu::threads::{SharedSlice, Worker};
use crate::file::gguf::{Gguf, TensorInfo};
use crate::formats::TensorType;
use crate::{Error, Result};

/// Tokens whose activations are prepared together: they stay in the L2 cache.
const TOKENS: usize = 64;
/// Bytes of a block of rows, which is multiplied with all of these tokens before the next block.
const BLOCK_BYTES: usize = 32 << 10;

/// True if all ternary matrices of a model can be multiplied as its file holds them: in I2_S, rows
/// of whole blocks.
#[must_use]
pub fn serves(gguf: &Gguf, config: &Config) -> bool {
    config.all_matrices().all(|(name, shape)| {
        shape.cols.is_multiple_of(GatherView::FILE_BLOCK)
            && gguf.tensor(&name).is_some_and(|tensor| tensor.ty == TensorType::I2_S)
    })
}

/// A ternary matrix in a file, in I2_S.
#[derive(Debug)]
pub struct FileMatrix {
    gguf: Arc<Gguf>,
    tensor: TensorInfo,
    shape: Shape,
    scale: f32,
    /// Added to the scaled products, `[rows]`.
    bias: Option<Vec<f32>>,
}

impl FileMatrix {
    /// Wraps a tensor, whose codes are 0 to 2, as a matrix of `shape` with the given scale.
    ///
    /// # Errors
    /// As [`GatherView::mapped`].
    pub fn new(gguf: &Arc<Gguf>, tensor: &TensorInfo, shape: Shape, scale: f32) -> Result<Self> {
        GatherView::mapped(gguf.tensor_bytes(tensor), shape)?;
        Ok(Self { gguf: Arc::clone(gguf), tensor: tensor.clone(), shape, scale, bias: None })
    }

    /// Sets what is added to the scaled products, `[rows]`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when it has not as many numbers as the matrix has rows.
    pub fn with_bias(self, bias: Option<Vec<f32>>) -> Result<Self> {
        match &bias {
            Some(bias) if bias.len() != self.shape.rows => Err(Error::Runtime(format!(
                "a bias of {} numbers is none of a matrix {}",
                bias.len(),
                self.shape
            ))),
            _ => Ok(Self { bias, ..self }),
        }
    }

    fn lines(&self) -> GatherView<'_> {
        let lines = GatherView::mapped(self.gguf.tensor_bytes(&self.tensor), self.shape);
        lines.expect("`FileMatrix::new` has seen the same")
    }
}

/// Matrices with the same input, and the kernel that multiplies them: the counterpart of
/// [`crate::cpu::matmul::Job`] for matrices that are not packed.
#[derive(Debug)]
pub struct MappedJob {
    parts: Vec<FileMatrix>,
    kernel: GatherKernel,
    ops: VectorOps,
    cols: usize,
    rows: usize,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub struct Scratch {
    /// One token in the order of the file.
    ordered: Vec<i8>,
    /// Prepared tokens.
    groups: Buffer,
    list: Vec<u32>,
    dots: Vec<i32>,
}

impl Scratch {
    /// Allocates enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a MappedJob>) -> Result<Self> {
        let (mut group, mut rows) = (0, 0);
        for job in jobs {
            group = group.max(job.kernel.group_bytes(job.cols));
            rows = rows.max(job.rows).max(job.block_rows());
        }
        let groups = Buffer::zeroed(TOKENS * group)?;
        Ok(Self { ordered: Vec::new(), groups, list: zeroed(rows)?, dots: zeroed(rows)? })
    }
}

impl MappedJob {
    /// Joins `parts`, which have the same columns.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not, or `kernel` does not read rows of I2_S.
    pub fn new(parts: Vec<FileMatrix>, kernel: GatherKernel) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.shape.cols);
        let own = (kernel.layout(), kernel.along()) == (GatherLayout::I2sL64, Along::Rows);
        if cols == 0 || !own || parts.iter().any(|part| part.shape.cols != cols) {
            let shapes: Vec<Shape> = parts.iter().map(|part| part.shape).collect();
            let kernel = kernel.id();
            return Err(Error::Runtime(format!("matrices {shapes:?} are no job of {kernel}")));
        }
        let rows = parts.iter().map(|part| part.shape.rows).sum();
        let ops = VectorOps::best(kernel.id().isa);
        Ok(Self { parts, kernel, ops, cols, rows })
    }

    /// The kernel.
    pub fn kernel(&self) -> &GatherKernel {
        &self.kernel
    }

    /// Inputs, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Largest scale of the products.
    pub(crate) fn largest_scale(&self) -> f32 {
        self.parts.iter().map(|part| part.scale).fold(0.0, f32::max)
    }

    /// Bytes of the weights in the file.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols / 4
    }

    /// Rows of a block, which is multiplied with all tokens before the next block.
    fn block_rows(&self) -> usize {
        (4 * BLOCK_BYTES / self.cols).max(4)
    }

    /// Multiplies any number of tokens: `q` is `[tokens][cols]`, and token `t` has scale
    /// `scales[t]` and output `out[t * rows .. (t + 1) * rows]`. Every worker writes its share of
    /// the rows; a barrier must follow before `out` is read.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase (the stretch between two barriers), all with
    /// the same job, `q`, `scales` and `out`. In that phase nothing else reads or writes the elements of
    /// `out`.
    pub(crate) unsafe fn multiply(
        &self,
        worker: &Worker<'_>,
        (q, scales): (&[i8], &[f32]),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let group_bytes = self.kernel.group_bytes(self.cols);
        for (i, tokens) in scales.chunks(TOKENS).enumerate() {
            let first = i * TOKENS;
            let rows = q[first * self.cols..].chunks_exact(self.cols);
            let groups = scratch.groups.chunks_exact_mut(group_bytes);
            for (row, group) in rows.zip(groups).take(tokens.len()) {
                GatherView::to_file_order(row, &mut scratch.ordered);
                self.kernel.prepare(&scratch.ordered, group);
            }
            let mut offset = 0;
            for part in &self.parts {
                let share = worker.share(part.shape.rows);
                // One token reads each row once; a kernel prefetches within a list only.
                let most = if tokens.len() == 1 { share.len().max(1) } else { self.block_rows() };
                for start in share.clone().step_by(most) {
                    let rows = start..(start + most).min(share.end);
                    let tokens = (first, tokens);
                    // SAFETY: shares are disjoint; nothing else accesses them, as the caller
                    // promises.
                    unsafe { self.multiply_block(part, (rows, offset), tokens, scratch, out) };
                }
                offset += part.shape.rows;
            }
        }
    }

    /// Multiplies some rows of a part with the prepared tokens. The part's rows begin at `offset`
    /// in each token's output; `first` is the number of the first of these tokens.
    ///
    /// # Safety
    /// Until the call returns nothing else reads or writes the elements of `out` that these rows have for
    /// these tokens.
    unsafe fn multiply_block(
        &self,
        part: &FileMatrix,
        (rows, offset): (Range<usize>, usize),
        (first, scales): (usize, &[f32]),
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        let lines = part.lines();
        let list = &mut scratch.list[..rows.len()];
        list.iter_mut().zip(rows.clone()).for_each(|(item, row)| *item = row as u32);
        let dots = &mut scratch.dots[..rows.len()];
        let groups = scratch.groups.chunks_exact(self.kernel.group_bytes(self.cols));
        for (t, (&s, group)) in scales.iter().zip(groups).enumerate() {
            self.kernel.run(lines, 0..lines.units(), list, group, dots);
            let token = (first + t) * self.rows + offset;
            // SAFETY: as the caller promises.
            let out = unsafe { out.write(token + rows.start..token + rows.end) };
            self.ops.scale_output(dots, s, part.scale, out);
            if let Some(bias) = &part.bias {
                self.ops.add(out, &bias[rows.clone()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::{Format, Isa};

    use super::*;
    use crate::cpu::reference;
    use crate::cpu::threads::Pool;
    use crate::file::gguf::GgufWriter;
    use crate::formats::i2_s;
    use crate::random::Random;

    /// Builds a file of matrices of random codes, and returns the codes too. Each matrix ends with
    /// a tail that holds no codes.
    fn file(shapes: &[Shape], random: &mut Random) -> (Arc<Gguf>, Vec<Vec<u8>>) {
        let mut writer = GgufWriter::new();
        let names = (0..shapes.len()).map(|i| format!("blk.{i}.attn_q.weight"));
        for (name, shape) in names.zip(shapes) {
            let dims = [shape.cols as u64, shape.rows as u64];
            writer.tensor(&name, &dims, TensorType::I2_S).unwrap();
        }
        let mut bytes = writer.header();
        let codes: Vec<Vec<u8>> = (shapes.iter())
            .map(|shape| (0..shape.weights()).map(|_| random.below(3) as u8).collect())
            .collect();
        for codes in &codes {
            bytes.extend(i2_s::encode(codes));
            bytes.extend([0xff; 32]);
        }
        (Arc::new(Gguf::from_bytes("matrices", bytes).unwrap()), codes)
    }

    #[test]
    fn equals_the_triple_loop() {
        let mut random = Random::new(1);
        let kernels = [Isa::Scalar, Isa::best()]
            .map(|isa| GatherKernel::default(Along::Rows, Some(Format::I2S), isa).unwrap());
        for cols in [128, 256, 384, 640, 2560] {
            let shapes = [Shape::new(37, cols), Shape::new(3, cols), Shape::new(200, cols)];
            let (gguf, codes) = file(&shapes, &mut random);
            for (kernel, threads) in kernels.iter().flat_map(|k| [(k, 1), (k, 3)]) {
                let parts = (gguf.tensors().iter().zip(&shapes))
                    .map(|(tensor, &shape)| FileMatrix::new(&gguf, tensor, shape, 0.5).unwrap());
                let job = MappedJob::new(parts.collect(), *kernel).unwrap();
                for tokens in [1, 2, 65] {
                    let q: Vec<i8> = (0..tokens * cols).map(|_| random.below(256) as i8).collect();
                    let scales: Vec<f32> = (1..=tokens).map(|t| t as f32).collect();
                    let mut out = vec![f32::NAN; tokens * job.rows];
                    let shared = SharedSlice::new(&mut out);
                    let pool = Pool::new(threads).unwrap();
                    pool.run(|worker| {
                        let mut scratch = Scratch::new([&job]).unwrap();
                        // SAFETY: every worker calls it once, and `out` is read after the run.
                        unsafe { job.multiply(worker, (&q, &scales), &mut scratch, &shared) };
                    })
                    .unwrap();
                    let all: Vec<u8> = codes.concat();
                    let dots = reference::matmul(&all, &q, cols);
                    for (i, (found, dot)) in out.iter().zip(dots).enumerate() {
                        let wanted = dot as f32 / scales[i / job.rows] * 0.5;
                        assert_eq!(found.to_bits(), wanted.to_bits(), "{cols} {tokens}: {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut random = Random::new(1);
        let shapes = [Shape::new(4, 256), Shape::new(4, 128)];
        let (gguf, _) = file(&shapes, &mut random);
        let tensors = gguf.tensors();
        let matrix = |i: usize, shape| FileMatrix::new(&gguf, &tensors[i], shape, 1.0);
        // Rows that begin inside a block, and a file that is too short.
        assert!(matrix(0, Shape::new(16, 64)).is_err());
        assert!(matrix(0, Shape::new(5, 256)).is_err());
        let parts = || vec![matrix(0, shapes[0]).unwrap(), matrix(1, shapes[1]).unwrap()];
        let kernel = GatherKernel::default(Along::Rows, Some(Format::I2S), Isa::Scalar).unwrap();
        assert!(MappedJob::new(parts(), kernel).is_err());
        let one = || parts().into_iter().take(1).collect::<Vec<_>>();
        assert!(MappedJob::new(one(), kernel).is_ok());
        assert!(MappedJob::new(Vec::new(), kernel).is_err());
        let columns =
            GatherKernel::default(Along::Columns, Some(Format::I2S), Isa::Scalar).unwrap();
        assert!(MappedJob::new(one(), columns).is_err());
    }
}
