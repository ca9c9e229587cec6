//! Decode without the weights that meet a zero, in models whose gate is a squared ReLU.
//!
//! Where the gate is not above 0 the product of gate and up is 0, whatever up is: these *rows* of up
//! are not read. And many inputs of down are 0 once they are int8: these *columns* of down are not
//! read. The integers that count are the same, so is the text.
//!
//! The matrix lies in memory a second time for that, by lines ([`GatherMatrix`]): rows of up, columns
//! of down. What is skipped is known before the first weight is read, exactly, so each worker
//! chooses between the two packings token by token, by the share of lines that it needs; no
//! prediction from earlier tokens could be better.

use std::ops::Range;

use bitnet_profiles::{GatherLayout, Shape};

use crate::cpu::gather::{Along, GatherMatrix};
use crate::cpu::kernels::{GatherKernel, VectorOps};
use crate::cpu::packing::PackedMatrix;
use crate::cpu::threads::{SharedSlice, Worker};
use crate::{Error, Result};

/// The largest matrix, packed by lines, for which that is not worth it: it stays in the cache, and
/// to list its lines takes as long as to multiply them.
pub const SMALL: usize = 1 << 19;

/// Whether one token skips what meets a zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Where the model has a squared ReLU and its matrices are not [`SMALL`], and then where few
    /// enough lines are needed.
    #[default]
    Auto,
    /// Wherever the model has a squared ReLU.
    On,
    /// Never; nothing is packed for it.
    Off,
}

/// A matrix of a job by lines, beside the packing in which it is read whole.
#[derive(Debug)]
pub struct Sparse {
    lines: GatherMatrix,
    kernel: GatherKernel,
    below: f64,
    /// What products are multiplied with.
    scale: f32,
}

/// What there was to skip, and what was read, over all tokens and layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Lines that there were.
    pub lines: u64,
    /// Lines that were needed: whose gate was open, whose input was not zero.
    pub needed: u64,
    /// Bytes of weights that were read: of the whole job.
    pub bytes: u64,
}

impl Tally {
    /// Adds what others counted.
    pub fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.needed += other.needed;
        self.bytes += other.bytes;
    }

    /// The share of lines that were needed; nothing of no lines.
    #[must_use]
    pub fn density(&self) -> Option<f64> {
        (self.lines > 0).then(|| self.needed as f64 / self.lines as f64)
    }
}

/// What a worker needs for itself.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    list: Vec<u32>,
    values: Vec<i8>,
    floats: Vec<f32>,
    /// Of rows, then of columns.
    tallies: [Tally; 2],
}

impl Scratch {
    /// Makes room for a job.
    pub(crate) fn grow(&mut self, sparse: &Sparse) {
        let lines = sparse.lines.lines().next_multiple_of(16);
        let grown = |len: usize| len.max(lines);
        self.list.resize(grown(self.list.len()), 0);
        self.values.resize(grown(self.values.len()), 0);
        self.floats.resize(grown(self.floats.len()), 0.0);
    }

    /// What this worker counted of the jobs with such lines.
    pub(crate) fn tally(&self, along: Along) -> Tally {
        self.tallies[along as usize]
    }

    /// Counts weights that were read whole.
    pub(crate) fn count_bytes(&mut self, along: Along, bytes: usize) {
        self.tallies[along as usize].bytes += bytes as u64;
    }

    /// Counts from 0 again.
    pub(crate) fn reset(&mut self) {
        self.tallies = Default::default();
    }
}

/// What a worker works with: bytes for prepared activations, and integers for dot products.
pub(crate) struct Space<'a> {
    pub(crate) group: &'a mut [u8],
    pub(crate) dots: &'a mut [i32],
    pub(crate) own: &'a mut Scratch,
    pub(crate) ops: &'a VectorOps,
}

impl Sparse {
    /// The lines of a matrix, to be read by `kernel` where at most the share `below` of them is
    /// needed: the density at which both packings take as long.
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

    /// The share of lines above which the matrix is read whole.
    #[must_use]
    pub fn below(&self) -> f64 {
        self.below
    }

    /// The matrix, for another kernel.
    #[must_use]
    pub fn into_lines(self) -> GatherMatrix {
        self.lines
    }

    /// Whether these are lines of the matrix that the job skips in: up, the second of two matrices of
    /// one shape, by rows; the only one, down, by columns.
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

    /// Bytes of prepared activations, at most.
    pub(crate) fn group_bytes(&self) -> usize {
        self.kernel.group_bytes(self.lines.shape().cols)
    }

    /// Dot products, at most.
    pub(crate) fn outputs(&self) -> usize {
        self.kernel.outputs(self.lines.lines(), self.lines.units())
    }

    /// Whether every product of up is finite for a token of scale `s`: only then is it 0 times what a
    /// closed gate lets through.
    pub(crate) fn products_are_finite(&self, s: f32) -> bool {
        // No dot product is larger, and each rounding is monotonic.
        let most = 128 * self.lines.shape().cols;
        ((most as f32 / s) * self.scale).is_finite()
    }

    /// Multiplies those of the rows `rows` whose gate is above 0, and gives 0 for the others, in
    /// `up`; `false` where the caller is to multiply all of them.
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

    /// Multiplies the columns whose input is not 0, for the worker's share of the rows; `false` where
    /// the caller is to multiply all of them.
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
        // Everybody sees all inputs.
        if worker.index == 0 {
            tally.lines += q.len() as u64;
            tally.needed += nonzero as u64;
        }
        // The largest share of whole units takes the longest.
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
            // SAFETY: shares of units are disjoint, and so are their rows; nobody else is there, as the
            // caller promises.
            let out = unsafe { out.write(rows.clone()) };
            ops.scale_output(&dots[..rows.len()], s, self.scale, out);
        }
        true
    }
}
