//! Slices shared by the workers of a run.

use std::marker::PhantomData;
use std::ops::Range;

/// A slice whose elements are written by several workers, each its own part.
///
/// Rust cannot see that the parts are disjoint, so access is unsafe. The rule that makes it sound
/// is checked per *phase*, the stretch of a run between two barriers: in one phase an element is
/// either touched by one worker only, or read by any number and written by none.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out what the exclusive borrow it was made from could give to one thread at a
// time (`&mut T`, hence `T: Send`) or to several (`&T`, hence `T: Sync`).
unsafe impl<T: Send + Sync> Sync for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Borrows `slice` exclusively for as long as the workers share it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), data: PhantomData }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns a range of it, shared by the same rule.
    ///
    /// # Panics
    /// When the range leaves the slice.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> SharedSlice<'_, T> {
        self.check(&range);
        // In bounds of the slice borrowed in `new`.
        let start = self.start.wrapping_add(range.start);
        SharedSlice { start, len: range.len(), data: PhantomData }
    }

    /// Pointer to the first element, for writes of parts that are no ranges. The rule above holds
    /// for them too.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// Reads a range.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// While the result lives, no worker holds a result of [`Self::write`] that overlaps `range`.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        self.check(&range);
        // SAFETY: in bounds of the slice borrowed in `new`; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes a range.
    ///
    /// # Panics
    /// When the range leaves the slice.
    ///
    /// # Safety
    /// While the result lives, no worker, this one included, holds another result of
    /// [`Self::read`] or [`Self::write`] that overlaps `range`.
    #[must_use]
    #[allow(
        clippy::mut_from_ref,
        reason = "handing out disjoint parts is this type's purpose; the contract is above"
    )]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: in bounds of the slice borrowed in `new`; the caller excludes all other access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range {range:?} leaves a shared slice of {} elements",
            self.len
        );
    }
}

impl<T> std::fmt::Debug for SharedSlice<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSlice({} elements)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_range_outside_a_shared_slice_panics() {
        let mut data = [0u8; 4];
        let shared = SharedSlice::new(&mut data);
        // SAFETY: one thread, one access at a time.
        let outside = catch_unwind(AssertUnwindSafe(|| unsafe { shared.read(3..5).len() }));
        assert!(outside.is_err());
    }
}
