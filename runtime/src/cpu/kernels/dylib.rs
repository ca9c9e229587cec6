//! Loading of a library made on the host.
//!
//! The bytes that were checked are the bytes that are loaded: on Linux from a sealed file in
//! memory, elsewhere from the path that they were read from. One symbol names the program that the
//! library was made for, and nothing else in it is touched unless that is this program. Then every
//! entry of its tables becomes a kernel of the same types as the built-in ones.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use bitnet_profiles::{Isa, KernelId, printable};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use super::cache::Checked;
use super::library::{Library, Unusable};
use super::{AttentionKernel, BlockKernel, GatherKernel, HeadKernel, Kernel};
use bitnet_kernels::{self as builtin, abi};

/// Most entries of a table.
const MAX_ENTRIES: usize = 1 << 16;

impl Library {
    /// Loads a library whose kernels need no better ISA than `ceiling`. Every call maps it once
    /// more, for as long as the process lives.
    ///
    /// # Errors
    /// The system refuses, or the library was made for another program or CPU.
    pub fn load(library: &Checked, ceiling: Isa) -> Result<Self, Unusable> {
        if cfg!(target_feature = "crt-static") {
            return Err(Unusable::System { reason: "it is linked statically" });
        }
        let path = &library.path;
        let problem = |problem: String| Unusable::Load { path: path.clone(), problem };
        let loaded = open(library)?;
        let header = symbol::<abi::Header>(&loaded, abi::HEADER_SYMBOL, path)?;
        // SAFETY: `Checked` holds what this user's tuner stored under its hash, so the symbol is a
        // header, whose type is the same in every version; its address is aligned.
        let abi::Header { version, fingerprint } = unsafe { header.read() };
        if version != abi::VERSION {
            return Err(Unusable::Abi { path: path.clone(), found: version, own: abi::VERSION });
        }
        if fingerprint != builtin::FINGERPRINT.as_bytes() {
            let found = fingerprint.escape_ascii().to_string();
            let own = builtin::FINGERPRINT;
            return Err(Unusable::Fingerprint { path: path.clone(), found, own });
        }
        let tables = symbol::<abi::Tables>(&loaded, abi::TABLES_SYMBOL, path)?;
        // SAFETY: the same text as this program's, by its fingerprint, made the library: its types
        // are those of `abi`. The address is aligned.
        let tables = unsafe { tables.read() };
        // SAFETY: as above; the tables are constants, and the library is never unloaded.
        let (ternary, blocks, heads, attention, lines) = unsafe {
            (
                table(tables.ternary, tables.ternary_len),
                table(tables.blocks, tables.blocks_len),
                table(tables.heads, tables.heads_len),
                table(tables.attention, tables.attention_len),
                table(tables.lines, tables.gather_len),
            )
        };
        let (Some(ternary), Some(blocks), Some(heads), Some(attention), Some(lines)) =
            (ternary, blocks, heads, attention, lines)
        else {
            return Err(problem("its tables of kernels have no valid address or size".into()));
        };
        let usable = |id: &abi::Id| -> Result<(), Unusable> {
            let text = id.text().ok_or_else(|| problem("a kernel without a name".into()))?;
            let kernel: KernelId = text.parse().map_err(|e| problem(format!("{e}")))?;
            if !kernel.isa.is_within(ceiling) || !kernel.isa.is_supported() {
                return Err(Unusable::Isa { path: path.clone(), kernel, most: ceiling });
            }
            Ok(())
        };
        let ids = ternary.iter().map(|e| &e.id).chain(heads.iter().map(|e| &e.id));
        let ids = ids.chain(blocks.iter().map(|e| &e.id)).chain(attention.iter().map(|e| &e.id));
        ids.chain(lines.iter().map(|e| &e.id)).try_for_each(usable)?;
        let found = Self {
            ternary: ternary.iter().filter_map(Kernel::new).collect(),
            blocks: blocks.iter().filter_map(BlockKernel::new).collect(),
            heads: heads.iter().filter_map(HeadKernel::new).collect(),
            attention: attention.iter().filter_map(AttentionKernel::new).collect(),
            lines: lines.iter().filter_map(GatherKernel::new).collect(),
        };
        let all = [
            (found.ternary.len(), ternary.len()),
            (found.blocks.len(), blocks.len()),
            (found.heads.len(), heads.len()),
            (found.attention.len(), attention.len()),
            (found.lines.len(), lines.len()),
        ];
        if all.iter().any(|(found, listed)| found != listed) {
            return Err(problem("a kernel stands in the table of another op".into()));
        }
        Ok(found)
    }
}

/// Returns the address of a symbol, if it may be that of a `T`.
fn symbol<T>(library: &Handle, name: &str, path: &Path) -> Result<*const T, Unusable> {
    let problem = |problem| Unusable::Load { path: path.into(), problem };
    // SAFETY: an address has the size of a pointer to anything; nothing is read yet.
    let found = unsafe { library.get::<*const T>(name.as_bytes()) };
    let address = *found.map_err(|error| problem(said(&error)))?;
    if address.is_null() || !address.is_aligned() {
        return Err(problem(format!("{name} has no valid address")));
    }
    Ok(address)
}

/// Returns a table of the library; nothing if its address or size is invalid.
///
/// # Safety
/// If they are valid, `first` points to `len` entries that live and stay unchanged for ever.
unsafe fn table<T: 'static>(first: *const T, len: usize) -> Option<&'static [T]> {
    if len > MAX_ENTRIES || first.is_null() || !first.is_aligned() {
        return None;
    }
    // SAFETY: the caller's promise; the address is no null and aligned.
    Some(unsafe { std::slice::from_raw_parts(first, len) })
}

/// Returns the message of the system's loader, on one line.
fn said(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    printable(&format!("{error}{}", source.unwrap_or_default())).into_owned()
}

/// Maps the library for the rest of the process's life.
fn open(library: &Checked) -> Result<ManuallyDrop<Handle>, Unusable> {
    let path = source(library)?;
    // SAFETY: loading runs no code of the library but its initialisers, of which the generator's
    // output has none; `Checked` holds what this user's tuner stored under its hash.
    let handle = unsafe { Handle::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
    handle
        .map(ManuallyDrop::new)
        .map_err(|error| Unusable::Load { path: library.path.clone(), problem: said(&error) })
}

/// Returns a path to load the bytes from: that of a file in memory which nobody can change.
#[cfg(target_os = "linux")]
fn source(library: &Checked) -> Result<PathBuf, Unusable> {
    use std::fs::File;
    use std::io::{self, Write};
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use rustix::io::Errno;

    let create = |flags| memfd_create(c"bitnet-kernels", flags);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fill = || -> io::Result<File> {
        // Systems before Linux 6.3 do not know the flag, and execute without it.
        let file = match create(flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => create(flags)?,
            file => file?,
        };
        let mut file = File::from(file);
        file.write_all(&library.bytes)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals)?;
        Ok(file)
    };
    let file = fill().map_err(|source| Unusable::Io {
        path: library.path.clone(),
        action: "copy to memory",
        source,
    })?;
    // The file stays open for ever: the loader would take a second library under the same number
    // for the first one.
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::mem::forget(file);
    Ok(path)
}

/// Returns the path that the bytes were read from.
#[cfg(not(target_os = "linux"))]
fn source(library: &Checked) -> Result<PathBuf, Unusable> {
    Ok(library.path.clone())
}
