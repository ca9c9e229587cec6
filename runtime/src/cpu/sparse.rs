//! Activation sparsity: decode without the weights that are multiplied by a zero, in models whose
//! gate is a squared ReLU.
//!
//! A gate that is not above 0 makes the product of gate and up 0, whatever up is, so these *rows*
//! of up are not read. Many inputs of down are 0 after quantisation to int8, so these *columns* of
//! down are not read. All nonzero integer products are the same, and so is the text.
//!
//! For that the matrix is in memory a second time, by lines ([`GatherMatrix`]): rows of up, columns
//! of down. The lines to skip are known exactly before the first weight is read, so each worker
//! chooses between the two packings token by token, by the share of lines that it needs; a
//! prediction from earlier tokens could not be better.

use std::ops::Range;

use bitnet_profiles::{GatherLayout, Shape};

use crate::cpu::gather::{Along, GatherMatrix};
use crate::cpu::kernels::{GatherKernel, VectorOps};
use crate::cpu::packing::PackedMatrix;
use crate::cpu::threads::{SharedSlice, Worker};
use crate::{Error, Result};

/// Matrices smaller than this, in bytes packed by lines, are not worth it: they stay in the cache,
/// and listing their lines takes as long as multiplying them.
pub const SMALL: usize = 1 << 19;

/// Activation sparsity: whether one token skips weights that are multiplied by a zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// For models with a squared ReLU, matrices that are not [`SMALL`], and tokens that need few
    /// enough lines.
    #[default]
    Auto,
    /// For all models with a squared ReLU.
    On,
    /// Never; nothing is packed by lines.
    Off,
}

/// A matrix of a job packed by lines, in addition to the packing for dense products.
#[derive(Debug)]
pub struct Sparse {
    lines: GatherMatrix,
    kernel: GatherKernel,
    below: f64,
    /// Scale of the products.
    scale: f32,
}

/// Counts of lines and of bytes read, over all tokens and layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Lines in all.
    pub lines: u64,
    /// Lines that were needed: rows with a positive gate, columns with a nonzero input.
    pub needed: u64,
    /// Bytes of weights read, for the whole job.
    pub bytes: u64,
}

impl Tally {
    /// Adds other counts.
    pub fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.needed += other.needed;
        self.bytes += other.bytes;
    }

    /// Returns the share of lines that were needed; `None` if there were no lines.
    #[must_use]
    pub fn density(&self) -> Option<f64> {
        (self.lines > 0).then(|| self.needed as f64 / self.lines as f64)
    }
}

/// Scratch space of one worker.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    list: Vec<u32>,
    values: Vec<i8>,
    floats: Vec<f32>,
    /// Counts for rows, then for columns.
    tallies: [Tally; 2],
}

impl Scratch {
    /// Grows to serve a job.
    pub(crate) fn grow(&mut self, sparse: &Sparse) {
        let lines = sparse.lines.lines().next_multiple_of(16);
        let grown = |len: usize| len.max(lines);
        self.list.resize(grown(self.list.len()), 0);
        self.values.resize(grown(self.values.len()), 0);
        self.floats.resize(grown(self.floats.len()), 0.0);
    }

    /// This worker's counts for jobs with such lines.
    pub(crate) fn tally(&self, along: Along) -> Tally {
        self.tallies[along as usize]
    }

    /// Counts weights read by dense products.
    pub(crate) fn count_bytes(&mut self, along: Along, bytes: usize) {
        self.tallies[along as usize].bytes += bytes as u64;
    }

    /// Resets the counts to 0.
    pub(crate) fn reset(&mut self) {
        self.tallies = Default::default();
    }
}

/// Working memory lent by the job's scratch: bytes for prepared activations, integers for dot
/// products.
pub(crate) struct Space<'a> {
    pub(crate) group: &'a mut [u8],
    pub(crate) dots: &'a mut [i32],
    pub(crate) own: &'a mut Scratch,
    pub(crate) ops: &'a VectorOps,
}

impl Sparse {
    /// Combines the lines of a matrix with the kernel that reads them where at most the share
    /// `below` of them is needed: the density at which both packings take as long.
    ///
    /// # Errors
    /// [`Error::Runtime`] when they do not fit together.
    pub fn new(lines: GatherMatrix, kernel: GatherKernel, below: f64) -> Result<Self> {
        let own = (lines.layout(), lines.along()) == (kernel.layout(), kernel.along());
        let Some(scale) = lines.scales().of_tensor().filter(|_| own) else {
            return Err(Error::Runtime(format!(
                "lines of {} packed as {}, with a scale for each {}, are not for {}",
                lines.shape(),
                lines.layout(),
                lines.scales().unit(),
                kernel.id()
            )));
        };
        Ok(Self { lines, kernel, below, scale })
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &GatherKernel {
        &self.kernel
    }

    /// The matrix.
    #[must_use]
    pub fn lines(&self) -> &GatherMatrix {
        &self.lines
    }

    /// Scale of the products.
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }

    /// Density threshold: the share of needed lines above which the matrix is read whole.
    #[must_use]
    pub fn below(&self) -> f64 {
        self.below
    }

    /// Returns the matrix, for another kernel.
    #[must_use]
    pub fn into_lines(self) -> GatherMatrix {
        self.lines
    }

    /// True if these are the lines of the matrix of the job in which weights are skipped: by rows
    /// up, the second of two matrices of one shape; by columns down, the only one.
    pub(crate) fn fits(&self, parts: &[PackedMatrix]) -> bool {
        let own = |part: &PackedMatrix| {
            part.shape() == self.lines.shape() && part.scales() == self.lines.scales()
        };
        match (self.lines.along(), parts) {
            (Along::Rows, [gate, up]) => gate.shape() == up.shape() && own(up),
            (Along::Columns, [down]) => own(down),
            _ => false,
        }
    }

    /// Most bytes of prepared activations.
    pub(crate) fn group_bytes(&self) -> usize {
        self.kernel.group_bytes(self.lines.shape().cols)
    }

    /// Most dot products.
    pub(crate) fn outputs(&self) -> usize {
        self.kernel.outputs(self.lines.lines(), self.lines.units())
    }

    /// True if every product of up is finite for a token of scale `s`: only then is its product
    /// with a gate of 0 equal to 0.
    pub(crate) fn products_are_finite(&self, s: f32) -> bool {
        // An upper bound of all dot products; each rounding is monotonic.
        let most = 128 * self.lines.shape().cols;
        ((most as f32 / s) * self.scale).is_finite()
    }

    /// Multiplies those of the rows `rows` whose gate is above 0, and writes them, and 0 for the
    /// others, to `up`. Returns false if the caller must multiply all of them.
    pub(crate) fn rows(
        &self,
        (q, s): (&[i8], f32),
        gates: &[f32],
        rows: Range<usize>,
        space: Space<'_>,
        up: &mut [f32],
    ) -> bool {
        let Space { group, dots, own, ops } = space;
        let open = ops.list_positive(gates, &mut own.list);
        let tally = &mut own.tallies[Along::Rows as usize];
        tally.lines += gates.len() as u64;
        tally.needed += open as u64;
        if open as f64 > self.below * gates.len() as f64 {
            return false;
        }
        let units = self.lines.units();
        tally.bytes += (open * units * GatherLayout::UNIT_BYTES) as u64;
        up.fill(0.0);
        let list = &mut own.list[..open];
        list.iter_mut().for_each(|row| *row += rows.start as u32);
        let group = &mut group[..self.kernel.group_bytes(q.len())];
        self.kernel.prepare(q, group);
        self.kernel.run(&self.lines, 0..units, list, group, dots);
        let products = &mut own.floats[..open];
        ops.scale_output(&dots[..open], s, self.scale, products);
        for (&row, &product) in list.iter().zip(&*products) {
            up[row as usize - rows.start] = product;
        }
        true
    }

    /// Multiplies the columns whose input is not 0, for the worker's share of the rows. Returns
    /// false if the caller must multiply all of them.
    ///
    /// # Safety
    /// Workers of one run call it, each at most once in a phase, all with the same `q`, `s` and `out`. In
    /// that phase nothing else reads or writes the elements of `out`.
    pub(crate) unsafe fn columns(
        &self,
        worker: &Worker<'_>,
        (q, s): (&[i8], f32),
        space: Space<'_>,
        out: &SharedSlice<'_, f32>,
    ) -> bool {
        let Space { group, dots, own, ops } = space;
        let nonzero = ops.list_nonzero(q, &mut own.list, &mut own.values);
        let tally = &mut own.tallies[Along::Columns as usize];
        // All workers see all inputs; one counts them.
        if worker.index == 0 {
            tally.lines += q.len() as u64;
            tally.needed += nonzero as u64;
        }
        // The worker with the most units takes the longest.
        let units = self.lines.units();
        let largest = units.div_ceil(worker.threads) * worker.threads;
        if (nonzero * largest) as f64 > self.below * (q.len() * units) as f64 {
            return false;
        }
        let share = worker.share(units);
        tally.bytes += (nonzero * share.len() * GatherLayout::UNIT_BYTES) as u64;
        let Shape { rows, .. } = self.lines.shape();
        let unit_rows = self.lines.layout().unit_weights();
        let rows = (share.start * unit_rows).min(rows)..(share.end * unit_rows).min(rows);
        if !rows.is_empty() {
            let group = &mut group[..self.kernel.group_bytes(nonzero)];
            self.kernel.prepare(&own.values[..nonzero], group);
            self.kernel.run(&self.lines, share, &own.list[..nonzero], group, dots);
            // SAFETY: shares of units are disjoint, and so are their rows; nothing else accesses them,
            // as the caller promises.
            let out = unsafe { out.write(rows.clone()) };
            ops.scale_output(&dots[..rows.len()], s, self.scale, out);
        }
        true
    }
}
