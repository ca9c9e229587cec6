//! The safe entry to the ternary kernels: a [`Job`] is the set of matrices that share one input
//! (q, k and v; gate and up), the kernels chosen for them, and the split of their rows over the
//! workers.

mod decode;
mod expanded;
mod prefill;

use std::cmp::Reverse;
use std::ops::Range;

use bitnet_profiles::{Layout, Shape};

use crate::cpu::gather::Along;
use crate::cpu::kernels::{self, Kernel, VectorOps};
use crate::cpu::memory::Buffer;
use crate::cpu::packing::PackedMatrix;
use crate::cpu::sparse::{self, Sparse, Tally};
use crate::file::packed::{Builder, Form};
use crate::{Error, Result};

pub(super) use self::decode::claim;
use self::prefill::BLOCK_ROWS;

/// A matrix of a job.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    matrix: &'a PackedMatrix,
    /// Offset of its rows in those of the job.
    offset: usize,
    /// Scale of its products.
    scale: f32,
    /// Added to its products, `[rows]`.
    bias: Option<&'a [f32]>,
}

/// Matrices with the same input, and the kernels that multiply them.
#[derive(Debug)]
pub struct Job {
    parts: Vec<PackedMatrix>,
    /// Scale of the products of each part.
    scales: Vec<f32>,
    /// Vectors added to the scaled products of each part, `[rows]`.
    biases: Vec<Option<Vec<f32>>>,
    decode: Kernel,
    prefill: Kernel,
    /// For a few tokens: the same as `prefill` unless that expands.
    batch: Kernel,
    /// For a group of fewer tokens, which `batch` would multiply as a whole one, and for the first group, for
    /// which weights come from memory: by the number of tokens that they take.
    few: Vec<Kernel>,
    ops: VectorOps,
    cols: usize,
    rows: usize,
    sparse: Option<Sparse>,
}

/// Scratch space of one worker.
#[derive(Debug)]
pub struct Scratch {
    group: Buffer,
    /// int32 dot products: `Buffer::as_i32_mut`. Kernels add to them in whole cache lines.
    dots: Buffer,
    sparse: sparse::Scratch,
}

impl Scratch {
    /// Lends all of it to the sparse kernels.
    fn space<'a>(&'a mut self, ops: &'a VectorOps) -> sparse::Space<'a> {
        sparse::Space {
            group: &mut self.group,
            dots: self.dots.as_i32_mut(),
            own: &mut self.sparse,
            ops,
        }
    }

    /// Allocates enough for any of `jobs`.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the memory.
    pub fn new<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Result<Self> {
        let (mut group, mut dots) = (0, 0);
        let mut sparse = sparse::Scratch::default();
        for job in jobs {
            let rows = job.parts.iter().map(|part| part.shape().rows).max().unwrap_or(0);
            group = group.max(job.decode.group_bytes(job.cols));
            group = group.max(job.batch.group_bytes(job.cols));
            dots = dots.max(rows.next_multiple_of(Layout::ROW_PADDING));
            dots = dots.max(job.batch.tokens() * BLOCK_ROWS);
            if job.prefill.expands() {
                let rows = job.chunk_tiles(1) * job.prefill.step_rows();
                dots = dots.max(job.prefill.tokens() * rows);
            }
            if let Some(lines) = &job.sparse {
                group = group.max(lines.group_bytes());
                dots = dots.max(lines.outputs());
                sparse.grow(lines);
            }
        }
        let dots = Buffer::zeroed(dots * size_of::<i32>())?;
        Ok(Self { group: Buffer::zeroed(group)?, dots, sparse })
    }

    /// This worker's counts for jobs with such lines since [`Scratch::reset_tally`].
    pub fn tally(&self, along: Along) -> Tally {
        self.sparse.tally(along)
    }

    /// Resets the counts to 0.
    pub fn reset_tally(&mut self) {
        self.sparse.reset();
    }
}

impl Job {
    /// Joins `parts`, which have the same columns and the layout that both kernels read.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not fit together.
    pub fn new(parts: Vec<PackedMatrix>, decode: Kernel, prefill: Kernel) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.shape().cols);
        let fits = |part: &PackedMatrix| {
            part.shape().cols == cols
                && part.layout() == decode.layout()
                && part.layout() == prefill.layout()
        };
        if cols == 0 || !parts.iter().all(fits) || decode.tokens() != 1 {
            let shapes: Vec<Shape> = parts.iter().map(PackedMatrix::shape).collect();
            return Err(Error::Runtime(format!(
                "matrices {shapes:?} cannot be one job of {} and {}",
                decode.id(),
                prefill.id()
            )));
        }
        let scale = |part: &PackedMatrix| {
            part.scales().of_tensor().ok_or_else(|| {
                let unit = part.scales().unit();
                Error::Runtime(format!("no kernel multiplies with a scale for each {unit}"))
            })
        };
        let scales = parts.iter().map(scale).collect::<Result<Vec<f32>>>()?;
        let rows = parts.iter().map(|part| part.shape().rows).sum();
        let ops = VectorOps::best(decode.id().isa.max(prefill.id().isa));
        let direct = prefill.expands().then(|| Kernel::direct(prefill.layout(), prefill.id().isa));
        let batch = direct.flatten().unwrap_or(prefill);
        let few = few(&decode, &batch);
        let biases = vec![None; parts.len()];
        Ok(Self {
            parts,
            scales,
            biases,
            decode,
            prefill,
            batch,
            few,
            ops,
            cols,
            rows,
            sparse: None,
        })
    }

    /// Sets what is added to the scaled products of each matrix, `[rows]`: y = dot / s * scale + bias.
    ///
    /// # Errors
    /// [`Error::Runtime`] when a bias has not as many numbers as its matrix has rows, or the job has
    /// a sparse form, which adds none.
    pub fn with_biases(mut self, biases: Vec<Option<Vec<f32>>>) -> Result<Self> {
        let fits = |(part, bias): (&PackedMatrix, &Option<Vec<f32>>)| {
            bias.as_ref().is_none_or(|bias| bias.len() == part.shape().rows)
        };
        let all_fit = self.parts.len() == biases.len() && self.parts.iter().zip(&biases).all(fits);
        if !all_fit || (self.sparse.is_some() && biases.iter().any(Option::is_some)) {
            let shapes: Vec<Shape> = self.parts.iter().map(PackedMatrix::shape).collect();
            let lengths: Vec<_> = biases.iter().map(|bias| bias.as_ref().map(Vec::len)).collect();
            return Err(Error::Runtime(format!(
                "biases of {lengths:?} numbers are none of a job of matrices {shapes:?}{}",
                if self.sparse.is_some() { " with a sparse form" } else { "" }
            )));
        }
        self.biases = biases;
        Ok(self)
    }

    /// Returns the kernel that multiplies a group of so many tokens from the packing, the first of several or
    /// another. Both lay out a group in the same way.
    fn group_kernel(&self, tokens: usize, is_first: bool) -> &Kernel {
        let fits = |few: &&Kernel| {
            tokens <= few.tokens() && (is_first || few.tokens() < self.batch.tokens())
        };
        self.few.iter().find(fits).unwrap_or(&self.batch)
    }

    /// Enables sparse decode: one token skips weights that are multiplied by a zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the lines do not belong to the matrix of the job in which weights
    /// are skipped, or the job has biases.
    pub fn with_sparse(mut self, sparse: Sparse) -> Result<Self> {
        self.set_sparse(Some(sparse))?;
        Ok(self)
    }

    /// Replaces or removes the sparse form, and returns the previous one.
    ///
    /// # Errors
    /// As [`Job::with_sparse`].
    pub fn set_sparse(&mut self, sparse: Option<Sparse>) -> Result<Option<Sparse>> {
        let biased = self.biases.iter().any(Option::is_some);
        if let Some(sparse) = sparse.as_ref().filter(|sparse| biased || !sparse.fits(&self.parts)) {
            return Err(Error::Runtime(format!(
                "lines of {} for {} are none of this job",
                sparse.lines().shape(),
                sparse.kernel().id()
            )));
        }
        Ok(std::mem::replace(&mut self.sparse, sparse))
    }

    /// Replaces the kernels that multiply the matrices.
    ///
    /// # Errors
    /// As [`Job::new`]; the job then holds no matrices.
    pub fn set_kernels(&mut self, decode: Kernel, prefill: Kernel) -> Result<()> {
        let (sparse, biases) = (self.sparse.take(), std::mem::take(&mut self.biases));
        *self =
            Self { sparse, biases, ..Self::new(std::mem::take(&mut self.parts), decode, prefill)? };
        Ok(())
    }

    /// The sparse form, if one token may skip weights.
    pub fn sparse(&self) -> Option<&Sparse> {
        self.sparse.as_ref()
    }

    /// The matrices.
    pub fn parts(&self) -> &[PackedMatrix] {
        &self.parts
    }

    /// Inputs, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Outputs of all matrices, one after the other.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The kernel for one token.
    pub fn decode_kernel(&self) -> &Kernel {
        &self.decode
    }

    /// The kernel for many tokens.
    pub fn prefill_kernel(&self) -> &Kernel {
        &self.prefill
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.data().len()).sum()
    }

    /// Adds the matrices, of tensors with these names, and the lines of the last one to a file of packed
    /// weights.
    pub(crate) fn store<'a>(&'a self, names: &[String], file: &mut Builder<'a>) {
        for ((name, part), &scale) in names.iter().zip(&self.parts).zip(&self.scales) {
            let tiles = (name.as_str(), Form::Tiles(part.layout()), part.shape());
            file.add(tiles, (scale, part.is_zero()), part.data());
        }
        if let (Some(name), Some(sparse)) = (names.last(), &self.sparse) {
            let lines = sparse.lines();
            let form = Form::lines(lines.layout(), lines.along());
            file.add((name, form, lines.shape()), (sparse.scale(), false), lines.data());
        }
    }

    /// Largest scale of the products.
    pub(crate) fn largest_scale(&self) -> f32 {
        self.scales.iter().copied().fold(0.0, f32::max)
    }

    /// Writes the outputs of some rows of a matrix for one token, from their dot products.
    fn write_out(
        &self,
        part: Part<'_>,
        rows: &Range<usize>,
        (dots, s): (&[i32], f32),
        out: &mut [f32],
    ) {
        self.ops.scale_output(dots, s, part.scale, out);
        if let Some(bias) = part.bias {
            self.ops.add(out, &bias[rows.clone()]);
        }
    }

    /// Returns the number of steps, of so many rows each, of all parts.
    fn steps(&self, step_rows: usize) -> usize {
        self.parts.iter().map(|part| part.shape().rows.div_ceil(step_rows)).sum()
    }

    /// Returns the matrices with their offsets, scales and biases.
    fn placed(&self) -> impl Iterator<Item = Part<'_>> {
        let mut end = 0;
        let parts = self.parts.iter().zip(&self.scales).zip(&self.biases);
        parts.map(move |((matrix, &scale), bias)| {
            let offset = end;
            end += matrix.shape().rows;
            Part { matrix, offset, scale, bias: bias.as_deref() }
        })
    }

    /// Calls `f(part, its steps, number of the first)` for every part that has some of `steps`.
    /// Steps have `step_rows` rows and are numbered over all parts.
    fn for_steps(
        &self,
        steps: Range<usize>,
        step_rows: usize,
        mut f: impl FnMut(Part<'_>, Range<usize>, usize),
    ) {
        let mut first = 0;
        for part in self.placed() {
            let end = first + part.matrix.shape().rows.div_ceil(step_rows);
            let (from, to) = (steps.start.max(first), steps.end.min(end));
            if from < to {
                f(part, from - first..to - first, from);
            }
            first = end;
        }
    }
}

/// Returns the kernels for at most as many tokens as `batch` takes, by the number that they take: `decode` for one
/// if it takes as many rows in a step, and the built-in kernels of the same tile.
fn few(decode: &Kernel, batch: &Kernel) -> Vec<Kernel> {
    let tile = |kernel: &Kernel| {
        let tile = kernel.id().tile;
        (kernel.layout(), kernel.id().isa, tile.rows, tile.cols, tile.unroll)
    };
    let fits = |kernel: &&Kernel| {
        tile(kernel) == tile(batch) && (2..=batch.tokens()).contains(&kernel.tokens())
    };
    let one = Some(decode).filter(|decode| decode.step_rows() == batch.step_rows());
    let mut few: Vec<Kernel> =
        one.into_iter().chain(kernels::builtin().iter().filter(fits)).copied().collect();
    // With few tokens the weights come from memory, so prefetching is preferred.
    few.sort_by_key(|kernel| (kernel.tokens(), Reverse(kernel.id().tile.prefetch)));
    few.dedup_by_key(|kernel| kernel.tokens());
    few
}

/// Returns the rows in some steps of a matrix, without padding.
fn rows_of(part: &PackedMatrix, step_rows: usize, steps: &Range<usize>) -> Range<usize> {
    steps.start * step_rows..(steps.end * step_rows).min(part.shape().rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::threads::Pool;
    use crate::formats::{Codes, i2_s};

    /// A group of so many tokens as a kernel of the tile takes is that kernel's, and the first one, whose weights
    /// come from memory, has a kernel that prefetches if there is one.
    #[test]
    fn a_group_has_the_kernel_of_its_tokens_and_the_first_one_that_prefetches() {
        let pool = Pool::new(1).unwrap();
        let several = kernels::builtin().iter().filter(|kernel| kernel.tokens() > 1);
        let mut jobs = 0;
        for batch in several.filter(|kernel| !kernel.expands()) {
            let (layout, tile) = (batch.layout(), batch.id().tile);
            let shape = Shape::new(tile.rows, 256 * tile.cols.max(1));
            if shape.cols > Shape::MAX_COLS {
                continue;
            }
            let file = i2_s::encode(&vec![1; shape.weights()]);
            let buffer = Buffer::zeroed(layout.matrix_bytes(shape)).unwrap();
            let matrix = PackedMatrix::pack(Codes::i2_s(&file, shape), 1.0, layout, buffer, &pool);
            let is_decode = |kernel: &&Kernel| kernel.layout() == layout && kernel.tokens() == 1;
            let decode = *kernels::builtin().iter().rfind(is_decode).unwrap();
            let job = Job::new(vec![matrix.unwrap().unwrap()], decode, *batch).unwrap();
            let same = kernels::builtin().iter().filter(|kernel| {
                let other = kernel.id().tile;
                kernel.layout() == layout
                    && kernel.id().isa == batch.id().isa
                    && (other.rows, other.cols, other.unroll) == (tile.rows, tile.cols, tile.unroll)
                    && (2..=tile.tokens).contains(&other.tokens)
            });
            for kernel in same {
                let tokens = kernel.tokens();
                let (first, other) =
                    (job.group_kernel(tokens, true), job.group_kernel(tokens, false));
                assert_eq!((first.tokens(), other.tokens()), (tokens, tokens), "{}", batch.id());
                assert!(first.id().tile.prefetch >= kernel.id().tile.prefetch, "{}", kernel.id());
            }
            jobs += 1;
        }
        assert!(jobs > 0);
    }
}
