//! Memory that kernels read: aligned, zeroed, in huge pages where the system offers them.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use crate::{Error, Result};

/// Alignment of every buffer and scratch area, in bytes: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// One anonymous mapping that buffers are cut from, front to back. Pages are zero and take no
/// memory until they are touched, so the thread that packs a tile places it.
#[derive(Debug)]
pub struct Arena {
    map: Arc<MmapRaw>,
    used: usize,
}

impl Arena {
    /// Reserves `bytes`, plus the rounding of `buffers` buffers to [`ALIGN`].
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the reservation.
    pub fn new(bytes: usize, buffers: usize) -> Result<Self> {
        let len = bytes.saturating_add(buffers.saturating_mul(ALIGN)).max(1);
        let map = MmapMut::map_anon(len).map_err(|e| {
            Error::Runtime(format!("cannot reserve {len} bytes of memory for the weights: {e}"))
        })?;
        let map = MmapRaw::from(map);
        // Without huge pages everything works, only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Arc::new(map), used: 0 })
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The next `len` bytes, or nothing when the arena is used up.
    pub fn take(&mut self, len: usize) -> Option<Buffer> {
        let end = self.used.checked_add(len)?;
        if end > self.map.len() {
            return None;
        }
        let buffer = Buffer { map: Arc::clone(&self.map), offset: self.used, len };
        self.used = end.next_multiple_of(ALIGN);
        Some(buffer)
    }
}

/// Bytes of an [`Arena`], aligned to [`ALIGN`]; no two buffers overlap.
#[derive(Debug)]
pub struct Buffer {
    map: Arc<MmapRaw>,
    offset: usize,
    len: usize,
}

impl Buffer {
    /// A buffer of its own, zeroed.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let refused = || Error::Runtime(format!("cannot reserve {len} bytes of memory"));
        Arena::new(len, 1)?.take(len).ok_or_else(refused)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `take` checked that the range lies in the mapping, which lives as long as
        // `self.map`, was readable and writable from the start and holds initialised bytes; only
        // this buffer reaches the range, so `&self` excludes writes.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.offset), self.len) }
    }
}

/// Peak resident memory of this process in bytes, or nothing where the system does not say.
pub fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Bytes of memory that this machine can still give, or nothing where the system does not say.
pub fn available() -> Option<u64> {
    let info = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_apart() {
        let mut arena = Arena::new(300, 3).unwrap();
        let mut buffers: Vec<Buffer> = (0..3).map(|_| arena.take(100).unwrap()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            assert!(buffer.iter().all(|&b| b == 0));
            buffer.fill(i as u8 + 1);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.len() == 100 && buffer.iter().all(|&b| b == i as u8 + 1));
        }
        assert!(arena.take(1 << 20).is_none());
        assert!(arena.take(usize::MAX).is_none());
    }
}
