//! Loaded libraries of kernels made on the host, and the reasons for which one is not used.

use std::io;
use std::path::PathBuf;

use bitnet_profiles::{Isa, KernelId};

use super::verify::{self, Oracle, Wrong};
use super::{AttentionKernel, BlockKernel, GatherKernel, HeadKernel, Kernel};
use crate::cpu::threads::Pool;

/// The kernels of a library that this process has loaded and never unloads.
#[derive(Clone, Debug)]
pub struct Library {
    pub(super) ternary: Vec<Kernel>,
    pub(super) blocks: Vec<BlockKernel>,
    pub(super) heads: Vec<HeadKernel>,
    pub(super) attention: Vec<AttentionKernel>,
    pub(super) lines: Vec<GatherKernel>,
}

impl Library {
    /// The ternary kernels, in the order in which they were asked for.
    pub fn ternary(&self) -> &[Kernel] {
        &self.ternary
    }

    /// The kernels for matrices with block scales.
    pub fn blocks(&self) -> &[BlockKernel] {
        &self.blocks
    }

    /// The head kernels.
    pub fn heads(&self) -> &[HeadKernel] {
        &self.heads
    }

    /// The attention kernels.
    pub fn attention(&self) -> &[AttentionKernel] {
        &self.attention
    }

    /// The gather kernels.
    pub fn lines(&self) -> &[GatherKernel] {
        &self.lines
    }

    /// Returns the ternary kernel of that name.
    pub fn find(&self, id: &KernelId) -> Option<Kernel> {
        self.ternary.iter().find(|kernel| kernel.id() == id).copied()
    }

    /// Returns the kernel for matrices with block scales of that name.
    pub fn find_blocks(&self, id: &KernelId) -> Option<BlockKernel> {
        self.blocks.iter().find(|kernel| kernel.id() == id).copied()
    }

    /// Returns the head kernel of that name.
    pub fn find_head(&self, id: &KernelId) -> Option<HeadKernel> {
        self.heads.iter().find(|kernel| kernel.id() == id).copied()
    }

    /// Returns the attention kernel of that name.
    pub fn find_attention(&self, id: &KernelId) -> Option<AttentionKernel> {
        self.attention.iter().find(|kernel| kernel.id() == id).copied()
    }

    /// Returns the gather kernel of that name.
    pub fn find_gather(&self, id: &KernelId) -> Option<GatherKernel> {
        self.lines.iter().find(|kernel| kernel.id() == id).copied()
    }

    /// Checks those of `ids` that are here against their definitions, on rows of `cols` weights or
    /// heads of `cols` elements.
    ///
    /// # Errors
    /// [`Unusable::Wrong`] with the first one that errs; [`Unusable::Check`] when the system
    /// refuses the memory.
    ///
    /// # Panics
    /// When a kernel is made for other columns, or `cols` is not whole blocks of a head's format.
    pub fn verify(&self, ids: &[KernelId], cols: usize) -> Result<(), Unusable> {
        let mut wrong: Vec<Wrong> = Vec::new();
        let ternary: Vec<Kernel> = ids.iter().filter_map(|id| self.find(id)).collect();
        if let Some(tokens) = ternary.iter().map(Kernel::tokens).max() {
            let (oracle, pool) = (Oracle::new(cols, tokens), Pool::new(1)?);
            for kernel in ternary {
                wrong.extend(oracle.check(kernel.layout(), &[kernel], &pool, &mut |_| ())?);
            }
        }
        for kernel in ids.iter().filter_map(|id| self.find_blocks(id)) {
            wrong.extend(verify::blocks(&kernel, cols)?);
        }
        for kernel in ids.iter().filter_map(|id| self.find_head(id)) {
            wrong.extend(verify::head(&kernel, cols)?);
        }
        for kernel in ids.iter().filter_map(|id| self.find_attention(id)) {
            wrong.extend(verify::attention(&kernel, cols)?);
        }
        for kernel in ids.iter().filter_map(|id| self.find_gather(id)) {
            wrong.extend(verify::lines(&kernel, cols)?);
        }
        let first = wrong.into_iter().next();
        first.map_or(Ok(()), |Wrong { kernel, found }| Err(Unusable::Wrong { kernel, found }))
    }
}

/// Reason for which kernels made on the host are not used. Not fatal: built-in ones serve instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no place for a cache.
    #[error("there is no cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path")]
    NoFolder,
    /// Libraries are loaded only on Unix, and only by a program that can load any.
    #[error("this program cannot load libraries: {reason}")]
    System {
        /// The reason.
        reason: &'static str,
    },
    /// The system refused to open, read, write or load.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, as a verb.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The name is not that of a library.
    #[error("{found} is no SHA-256")]
    Name {
        /// The name.
        found: String,
    },
    /// The path is no plain file or folder.
    #[error("{}: {found}, but only a plain {expected} is trusted", .path.display())]
    Kind {
        /// Its path.
        path: PathBuf,
        /// The kind found.
        found: &'static str,
        /// The kind expected.
        expected: &'static str,
    },
    /// Another user owns the file or folder.
    #[error("{}: belongs to user {found}, but only user {own} is trusted", .path.display())]
    Owner {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// This process's effective user.
        own: u32,
    },
    /// Others may write to it.
    #[error(
        "{}: mode {mode:04o} lets others write; run `chmod go-w` on it", .path.display()
    )]
    Writable {
        /// The file or folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The administrator forbids execution from there.
    #[error(
        "{}: its file system is mounted noexec; set XDG_CACHE_HOME to a folder on another one",
        .path.display()
    )]
    NoExec {
        /// The file or folder.
        path: PathBuf,
    },
    /// The file is larger than any library the tuner makes.
    #[error("{}: more than {} bytes, the most a library has", .path.display(), .most)]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        most: u64,
    },
    /// The bytes are not those that were stored.
    #[error("{}: its SHA-256 is {found}; the file is damaged", .path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The hash of its content.
        found: String,
    },
    /// The system's loader refused the library, or its symbols have not the form of a library.
    #[error("{}: {problem}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// The library was made for another version of the runtime.
    #[error("{}: made for ABI {found}, but this program has {own}", .path.display())]
    Abi {
        /// The file.
        path: PathBuf,
        /// Its ABI.
        found: u32,
        /// The program's.
        own: u32,
    },
    /// The library was made from other templates.
    #[error("{}: made by a generator {found}, but this program has {own}", .path.display())]
    Fingerprint {
        /// The file.
        path: PathBuf,
        /// Its fingerprint.
        found: String,
        /// The program's.
        own: &'static str,
    },
    /// A kernel needs another CPU, or an ISA beyond what may be used.
    #[error("{}: {kernel} is not for this CPU, which runs up to {most}", .path.display())]
    Isa {
        /// The file.
        path: PathBuf,
        /// The kernel.
        kernel: KernelId,
        /// The best tier that may be used.
        most: Isa,
    },
    /// A kernel failed its self-check.
    #[error("{kernel} computed something wrong: {found}; please report it")]
    Wrong {
        /// The kernel.
        kernel: KernelId,
        /// Description of the first error.
        found: String,
    },
    /// The self-check could not be made.
    #[error("the self-check failed: {0}")]
    Check(#[from] crate::Error),
}
