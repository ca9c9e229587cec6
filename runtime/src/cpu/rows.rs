//! Matrices that the workers of a run share.

use std::ops::Range;

use crate::cpu::threads::SharedSlice;

/// A shared matrix, row by row.
pub(crate) struct Rows<'a, T> {
    pub(crate) data: SharedSlice<'a, T>,
    /// Elements of a row.
    pub(crate) width: usize,
}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn new(data: &'a mut [T], width: usize) -> Self {
        Self { data: SharedSlice::new(data), width }
    }

    /// Returns some rows, shared by the same rules.
    pub(crate) fn part_of(&self, rows: Range<usize>) -> SharedSlice<'_, T> {
        self.data.part(rows.start * self.width..rows.end * self.width)
    }

    /// # Safety
    /// As [`SharedSlice::read`]: nobody writes the row in this phase.
    pub(crate) unsafe fn row(&self, row: usize) -> &[T] {
        // SAFETY: passed on to the caller.
        unsafe { self.data.read(row * self.width..(row + 1) * self.width) }
    }

    /// # Safety
    /// As [`Rows::row_mut`], of all these rows.
    #[allow(clippy::mut_from_ref, reason = "as SharedSlice::write")]
    pub(crate) unsafe fn rows_mut(&self, rows: Range<usize>) -> &mut [T] {
        // SAFETY: passed on to the caller.
        unsafe { self.data.write(rows.start * self.width..rows.end * self.width) }
    }

    /// Returns elements `part` of a row.
    ///
    /// # Safety
    /// As [`SharedSlice::read`]: nobody writes them in this phase.
    pub(crate) unsafe fn part(&self, row: usize, part: Range<usize>) -> &[T] {
        assert!(part.end <= self.width);
        // SAFETY: passed on to the caller.
        unsafe { self.data.read(row * self.width + part.start..row * self.width + part.end) }
    }

    /// # Safety
    /// As [`SharedSlice::write`]: nobody else touches the row in this phase, and this worker holds
    /// no other borrow of it.
    #[allow(clippy::mut_from_ref, reason = "as SharedSlice::write")]
    pub(crate) unsafe fn row_mut(&self, row: usize) -> &mut [T] {
        // SAFETY: passed on to the caller.
        unsafe { self.data.write(row * self.width..(row + 1) * self.width) }
    }

    /// Returns elements `part` of a row.
    ///
    /// # Safety
    /// As [`Rows::row_mut`], of these elements.
    #[allow(clippy::mut_from_ref, reason = "as SharedSlice::write")]
    pub(crate) unsafe fn part_mut(&self, row: usize, part: Range<usize>) -> &mut [T] {
        assert!(part.end <= self.width);
        // SAFETY: passed on to the caller.
        unsafe { self.data.write(row * self.width + part.start..row * self.width + part.end) }
    }
}
