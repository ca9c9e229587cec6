//! Memory that kernels read: aligned, zeroed, in huge pages where the system offers them; or a mapped
//! file.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use zerocopy::FromZeros;

use super::control_group;
use crate::{Error, Result};

/// Alignment of every buffer and scratch area, in bytes: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// Page size to request for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// Huge pages (2 MiB on x86) where the system has them, for fewer TLB misses.
    #[default]
    Huge,
    /// Pages of the system's base size, even where it would give huge pages unasked.
    Small,
}

/// One anonymous mapping that buffers are cut from, front to back. Pages are zero and take no
/// memory until they are touched, so the thread that packs a tile places it.
#[derive(Debug)]
pub struct Arena {
    map: Arc<MmapRaw>,
    used: usize,
}

impl Arena {
    /// Reserves `bytes`, plus the rounding of `buffers` buffers to [`ALIGN`], in huge pages.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the system refuses the reservation.
    pub fn new(bytes: usize, buffers: usize) -> Result<Self> {
        Self::with(bytes, buffers, Pages::Huge)
    }

    /// As [`Arena::new`], in pages of the given size; ignored where the system offers no choice.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn with(bytes: usize, buffers: usize, pages: Pages) -> Result<Self> {
        let len = bytes.saturating_add(buffers.saturating_mul(ALIGN)).max(1);
        let map = MmapMut::map_anon(len).map_err(|_| refused(len, "weights and buffers"))?;
        let map = MmapRaw::from(map);
        advise(&map, pages);
        Ok(Self { map: Arc::new(map), used: 0 })
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Locks the whole arena in memory, handed out or not, until the last buffer is dropped. Call
    /// it after the memory was written: it populates pages that were never touched.
    ///
    /// # Errors
    /// The system's error; usually that the user's limit for locked memory is lower.
    pub fn lock(&self) -> io::Result<()> {
        lock(&self.map)
    }

    /// Returns the next `len` bytes, or `None` when the arena is used up.
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
    /// Allocates a zeroed buffer with its own arena, in huge pages.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn zeroed(len: usize) -> Result<Self> {
        Self::with(len, Pages::Huge)
    }

    /// As [`Buffer::zeroed`], in pages of the given size.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn with(len: usize, pages: Pages) -> Result<Self> {
        let mut arena = Arena::with(len, 1, pages)?;
        arena.take(len).ok_or_else(|| refused(len, "weights and buffers"))
    }

    /// As [`Arena::lock`], for the arena that the buffer belongs to.
    ///
    /// # Errors
    /// As [`Arena::lock`].
    pub fn lock(&self) -> io::Result<()> {
        lock(&self.map)
    }
}

impl Buffer {
    /// Returns the buffer as integers, without a partial one at the end.
    pub fn as_i32_mut(&mut self) -> &mut [i32] {
        let len = self.len() / size_of::<i32>();
        // SAFETY: as long as that, aligned to `ALIGN`, borrowed exclusively, and any bytes are an
        // integer.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), len) }
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

/// Bytes that are only read, aligned to [`ALIGN`]: a [`Buffer`] that is complete, or a part of a
/// [`FileMap`].
#[derive(Debug, Clone)]
pub struct Bytes {
    map: Arc<MmapRaw>,
    offset: usize,
    len: usize,
}

impl Bytes {
    /// As [`Arena::lock`], for the mapping that the bytes belong to.
    ///
    /// # Errors
    /// As [`Arena::lock`].
    pub fn lock(&self) -> io::Result<()> {
        lock(&self.map)
    }
}

impl From<Buffer> for Bytes {
    fn from(Buffer { map, offset, len }: Buffer) -> Self {
        Self { map, offset, len }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `Arena::take` or `FileMap::bytes` checked that the range lies in the mapping, which
        // lives as long as `self.map`, was readable from the start and holds initialised bytes. This
        // process writes them no more: the buffer that could is gone, and a file's map is read-only.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }
}

/// A file that is mapped to be read; processes that map the same one share its memory. Whoever changes
/// the file meanwhile changes the bytes.
#[derive(Debug)]
pub struct FileMap {
    map: Arc<MmapRaw>,
}

impl FileMap {
    /// Maps a file that is not empty, in pages of the given size where the file system has them.
    ///
    /// # Errors
    /// The system's.
    pub fn new(file: &File, pages: Pages) -> io::Result<Self> {
        let map = MmapOptions::new().map_raw_read_only(file)?;
        advise(&map, pages);
        Ok(Self { map: Arc::new(map) })
    }

    /// As [`Arena::lock`], for the whole file.
    ///
    /// # Errors
    /// As [`Arena::lock`].
    pub fn lock(&self) -> io::Result<()> {
        lock(&self.map)
    }

    /// Returns `len` bytes from `offset` on; `None` where the map does not have them, or they do not
    /// begin aligned to [`ALIGN`].
    pub fn bytes(&self, offset: usize, len: usize) -> Option<Bytes> {
        let fits = offset.checked_add(len)? <= self.map.len() && offset.is_multiple_of(ALIGN);
        fits.then(|| Bytes { map: Arc::clone(&self.map), offset, len })
    }
}

/// Asks for pages of a size: a hint, on which only speed depends. Ignored where the system offers no
/// choice.
fn advise(map: &MmapRaw, pages: Pages) {
    #[cfg(target_os = "linux")]
    let _ = map.advise(match pages {
        Pages::Huge => memmap2::Advice::HugePage,
        Pages::Small => memmap2::Advice::NoHugePage,
    });
    #[cfg(not(target_os = "linux"))]
    let _ = (map, pages);
}

#[cfg(unix)]
fn lock(map: &MmapRaw) -> io::Result<()> {
    map.lock()
}

#[cfg(not(unix))]
fn lock(_map: &MmapRaw) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Returns the peak resident memory of this process in bytes, or `None` where the system does not
/// report it.
pub fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Returns the bytes of memory that this process can still get: the least of what the machine has
/// available and what the limits of its control groups, of its address space (`ulimit -v`) and of its
/// data (`ulimit -d`) leave. `None` where the system does not report it.
pub fn available() -> Option<u64> {
    let machine = || {
        let info = std::fs::read_to_string("/proc/meminfo").ok()?;
        Some(1024 * field(&info, "MemAvailable:")?)
    };
    [machine(), control_group::available(), limit().map(|(_, left)| left)]
        .into_iter()
        .flatten()
        .min()
}

/// Returns the bytes of free swap space; 0 where the system does not report it.
pub fn swap_available() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    1024 * field(&info, "SwapFree:").unwrap_or(0)
}

/// Returns the number after a name, in a text with one name and number a line.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let mut rest = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    rest.next()?.parse().ok()
}

/// Returns `len` zeros, or an error where the memory is refused: a `Vec` would end the process. Pages of a
/// long one take no memory until they are touched.
///
/// # Errors
/// [`Error::Runtime`].
pub(crate) fn zeroed<T: FromZeros>(len: usize) -> Result<Vec<T>> {
    let bytes = len.saturating_mul(size_of::<T>());
    T::new_vec_zeroed(len).map_err(|_| refused(bytes, "buffers"))
}

/// Returns `len` times `value`, all of it written, or an error as [`zeroed`] gives one.
///
/// # Errors
/// [`Error::Runtime`].
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    grow(&mut vec, len, value)?;
    Ok(vec)
}

/// Grows `vec` to `len` elements, as [`filled`] makes one; a longer one stays as it is.
///
/// # Errors
/// As [`filled`].
pub(crate) fn grow<T: Clone>(vec: &mut Vec<T>, len: usize, value: T) -> Result<()> {
    let more = len.saturating_sub(vec.len());
    if vec.try_reserve_exact(more).is_err() {
        return Err(refused(more.saturating_mul(size_of::<T>()), "buffers"));
    }
    vec.resize(vec.len() + more, value);
    Ok(())
}

/// Memory for what is small, in bytes. It must be left by whatever takes much, as small allocations that
/// fail end the process.
const RESERVE: u64 = 16 << 20;

/// Checks that limits of this process leave `bytes`, and a reserve for what is small. `what` the bytes
/// are for is a plural: "the tokenizer's tables".
///
/// # Errors
/// [`Error::Runtime`] names the limit.
pub fn require(bytes: u64, what: &str) -> Result<()> {
    match limit() {
        Some((_, left)) if left < bytes.saturating_add(RESERVE) => {
            let bytes = bytes.saturating_add(RESERVE);
            Err(refused(usize::try_from(bytes).unwrap_or(usize::MAX), what))
        }
        _ => Ok(()),
    }
}

/// The error for memory that cannot be had: it names the limit that is in the way, if there is one.
pub(crate) fn refused(bytes: usize, what: &str) -> Error {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let needed = megabytes(bytes as u64);
    Error::Runtime(match limit() {
        Some((name, left)) => format!(
            "{what} take {needed} MB of memory, and {name} leaves {} MB; raise the limit, or ask for a \
             smaller context",
            left / 1_000_000
        ),
        None => format!(
            "{what} take {needed} MB of memory, which the system refuses; end other programs, or ask for \
             a smaller context"
        ),
    })
}

/// Returns the limit of this process's address space (`ulimit -v`) or of its data (`ulimit -d`), whichever
/// leaves less, by its name, and the bytes that it leaves.
#[cfg(unix)]
pub(crate) fn limit() -> Option<(&'static str, u64)> {
    use rustix::process::{Resource, getrlimit};
    let status = || std::fs::read_to_string("/proc/self/status");
    let left = |resource, used, name| {
        let limit = getrlimit(resource).current?;
        Some((name, limit.saturating_sub(1024 * field(&status().ok()?, used)?)))
    };
    let limits = [
        left(Resource::As, "VmSize:", "the limit of the address space (ulimit -v)"),
        left(Resource::Data, "VmData:", "the limit of data (ulimit -d)"),
    ];
    limits.into_iter().flatten().min_by_key(|&(_, left)| left)
}

#[cfg(not(unix))]
pub(crate) fn limit() -> Option<(&'static str, u64)> {
    None
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

    #[test]
    fn a_mapped_file_is_read_within_its_bounds() {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        for pages in [Pages::Huge, Pages::Small] {
            let map = FileMap::new(&file, pages).unwrap();
            for (offset, len) in [(0, 5000), (64, 100), (4992, 8), (4992, 0)] {
                let bytes = map.bytes(offset, len).unwrap();
                assert_eq!(*bytes, content[offset..offset + len]);
                assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
            }
            for (offset, len) in [(0, 5001), (4992, 9), (1, 1), (8192, 0), (64, usize::MAX)] {
                assert!(map.bytes(offset, len).is_none(), "{offset} {len}");
            }
            let kept = map.bytes(64, 64).unwrap();
            drop(map);
            assert_eq!(*kept, content[64..128]);
        }
    }

    #[test]
    fn zeros_are_counted_in_elements_and_refused_without_an_abort() {
        assert_eq!(zeroed::<f32>(3).unwrap(), [0.0; 3]);
        assert!(zeroed::<u8>(0).unwrap().is_empty());
        for len in [usize::MAX, isize::MAX as usize / 2] {
            assert_eq!(zeroed::<f32>(len).unwrap_err().exit_code(), 1);
        }
    }

    /// Buffers for a batch of 512 tokens are tens of megabytes, of which a short prompt uses little.
    #[cfg(target_os = "linux")]
    #[test]
    #[cfg_attr(tsan, ignore = "the allocator of ThreadSanitizer writes the zeros itself")]
    fn zeros_take_no_memory_until_they_are_touched() {
        use std::os::unix::fs::FileExt as _;
        let page = rustix::param::page_size();
        // Not every container has this file.
        let Ok(map) = File::open("/proc/self/pagemap") else { return };
        let present = |at: *const u8| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, (at as usize / page * 8) as u64).unwrap();
            u64::from_ne_bytes(entry) >> 63 == 1
        };
        let mut zeros: Vec<u8> = zeroed(64 << 20).unwrap();
        assert!(!present(&raw const zeros[32 << 20]));
        zeros[32 << 20] = 1;
        assert!(present(&raw const zeros[32 << 20]));
    }

    #[test]
    fn numbers_are_found_by_their_names() {
        let text =
            "MemTotal:       16 kB\nMemAvailable:   12 kB\ninactive_anon 1\ninactive_file 7\n";
        assert_eq!(field(text, "MemAvailable:"), Some(12));
        assert_eq!(field(text, "inactive_file "), Some(7));
        assert_eq!(field("5 4 3", ""), Some(5));
        assert_eq!(field(text, "MemFree:"), None);
        assert_eq!(field("max\n", ""), None);
        #[cfg(target_os = "linux")]
        assert!(available().is_some_and(|free| free > 1 << 20));
    }
}
