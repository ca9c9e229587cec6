//! A sequence of a session in a file: its tokens, and what the model computed of them.
//!
//! ```text
//! "BNKV", u32 version, u8 type of the elements, u32 layers, KV heads, head width, elements of a row,
//! positions of a chunk, positions of a block of keys, u64 tokens, SHA-256 of the model (Gguf::fingerprint),
//! u32 for each token, keys, values and scales in the cache's order, SHA-256 of all before
//! ```
//!
//! Numbers are little-endian.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::atomic_file::Replacement;
use sha2::{Digest, Sha256};

use super::kv_cache::KvCache;
use super::model::Model;
use super::session::Session;
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"BNKV";
const VERSION: u32 = 1;
/// Bytes of a SHA-256.
const DIGEST: usize = 32;

/// A reader or writer whose bytes are hashed on their way.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Hashed<R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hash.update(&*bytes);
        Ok(())
    }
}

impl Session {
    /// Writes the first `ids.len()` tokens of a sequence to a file that nobody else may read: `ids`, which are
    /// those tokens, and their keys and values. The file is there whole or as it was before.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sequence that does not exist or more tokens than it holds; [`Error::Io`] when
    /// the file cannot be written, or is one of another kind.
    pub fn save(&self, sequence: usize, ids: &[u32], path: &Path) -> Result<()> {
        self.check_sequence(sequence)?;
        save(self.kv(sequence), self.position_of(sequence), self.model(), (ids, path))
    }

    /// Replaces the tokens of a sequence by those of a file of [`Session::save`], and returns them: tokens
    /// that follow have the same logits, to the bit, as after those tokens themselves.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sequence that does not exist; [`Error::Io`] when the file cannot be read, is
    /// no such file, or one of another model, another type of KV cache or a larger context: nothing changes
    /// then. Where it is damaged, the sequence holds no token afterwards.
    pub fn restore(&mut self, sequence: usize, path: &Path) -> Result<Vec<u32>> {
        self.check_sequence(sequence)?;
        let model = Arc::clone(self.model());
        let (kv, position) = self.held_mut(sequence);
        restore(kv, position, &model, path)
    }

    /// Takes what a sequence holds out of the session, to be saved or restored on another thread; the
    /// sequence is empty afterwards, and not to be used until [`Session::attach`].
    ///
    /// # Errors
    /// [`Error::Usage`] for a sequence that does not exist, [`Error::Runtime`] when the system gives no room
    /// for an empty cache in its place.
    pub fn detach(&mut self, sequence: usize) -> Result<Detached> {
        self.check_sequence(sequence)?;
        let model = Arc::clone(self.model());
        let (kv, position) = self.held_mut(sequence);
        let empty = kv.empty()?;
        Ok(Detached { kv: std::mem::replace(kv, empty), position: std::mem::take(position), model })
    }

    /// Puts what [`Session::detach`] took back into a sequence, in place of what that holds.
    ///
    /// # Errors
    /// [`Error::Usage`] for a sequence that does not exist, or of another session's shape.
    pub fn attach(&mut self, sequence: usize, detached: Detached) -> Result<()> {
        self.check_sequence(sequence)?;
        let (kv, position) = self.held_mut(sequence);
        if !kv.is_like(&detached.kv) {
            let found = format!("one of {} positions", detached.kv.context());
            return Err(Error::usage("sequence", found, "one that was taken out of this session"));
        }
        (*kv, *position) = (detached.kv, detached.position);
        Ok(())
    }
}

/// What a sequence holds, taken out of its session.
#[derive(Debug)]
pub struct Detached {
    kv: KvCache,
    /// Tokens that it holds.
    position: usize,
    model: Arc<Model>,
}

impl Detached {
    /// Tokens that it holds.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// As [`Session::save`].
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn save(&self, ids: &[u32], path: &Path) -> Result<()> {
        save(&self.kv, self.position, &self.model, (ids, path))
    }

    /// As [`Session::restore`].
    ///
    /// # Errors
    /// As [`Session::restore`].
    pub fn restore(&mut self, path: &Path) -> Result<Vec<u32>> {
        restore(&mut self.kv, &mut self.position, &self.model, path)
    }
}

/// Writes the first tokens of a cache that holds some, `ids`, to a file.
fn save(kv: &KvCache, held: usize, model: &Model, (ids, path): (&[u32], &Path)) -> Result<()> {
    if ids.len() > held {
        let expected = format!("at most {held}, what the sequence holds");
        return Err(Error::usage("tokens", ids.len(), expected));
    }
    let refused = |e| Error::io(path, "write", e);
    check_replaceable(path).map_err(refused)?;
    let write = || {
        let file = Replacement::private(path)?;
        write_kv(kv, model, ids, BufWriter::with_capacity(1 << 20, file.writer()))?;
        file.commit()
    };
    write().map_err(refused)
}

fn write_kv(kv: &KvCache, model: &Model, ids: &[u32], out: impl Write) -> io::Result<()> {
    let mut out = Hashed::new(out);
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&[kv.ty().code()])?;
    for (_, number) in kv.shape() {
        out.write_all(&number.to_le_bytes())?;
    }
    out.write_all(&(ids.len() as u64).to_le_bytes())?;
    out.write_all(&model.gguf().fingerprint())?;
    for id in ids {
        out.write_all(&id.to_le_bytes())?;
    }
    kv.parts(ids.len()).try_for_each(|part| out.write_all(part))?;
    let Hashed { inner: mut out, hash } = out;
    out.write_all(&hash.finalize())?;
    out.flush()
}

/// Replaces the tokens of a cache, whose number is `position`, by those of a file, and returns them.
fn restore(kv: &mut KvCache, position: &mut usize, model: &Model, path: &Path) -> Result<Vec<u32>> {
    read_kv(kv, position, model, path).map_err(|e| Error::io(path, "restore", e))
}

fn read_kv(
    kv: &mut KvCache,
    position: &mut usize,
    model: &Model,
    path: &Path,
) -> io::Result<Vec<u32>> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut input = Hashed::new(BufReader::with_capacity(1 << 20, File::open(path)?));
    let vocab = model.config().vocab;
    if input.take()? != MAGIC {
        return Err(io::Error::other("it is no saved KV cache; name another file"));
    }
    let expect = |item: &str, own: u64, found: u64| {
        let refused = || io::Error::other(format!("{item} is {found}, here {own}; remove it"));
        if found == own { Ok(()) } else { Err(refused()) }
    };
    let number = |input: &mut Hashed<_>| input.take().map(u32::from_le_bytes);
    expect("its version", VERSION.into(), number(&mut input)?.into())?;
    let [ty] = input.take()?;
    if ty != kv.ty().code() {
        let own = kv.ty().name();
        let message = format!("its KV cache is of another type than {own}; ask for that one");
        return Err(io::Error::other(message));
    }
    for (item, own) in kv.shape() {
        expect(item, own.into(), number(&mut input)?.into())?;
    }
    let tokens = u64::from_le_bytes(input.take()?);
    if input.take()? != model.gguf().fingerprint() {
        return Err(io::Error::other("it was made with another model; name another file"));
    }
    let context = kv.context();
    let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
    if tokens > context {
        let message = format!("it holds {tokens} tokens; ask for a larger context than {context}");
        return Err(io::Error::other(message));
    }
    let parts: usize = kv.parts(tokens).map(<[u8]>::len).sum();
    let header = 4 + 4 + 1 + 4 * kv.shape().len() + 8 + DIGEST;
    let bytes = (header + 4 * tokens + parts + DIGEST) as u64;
    if found.len() != bytes {
        let message = format!("it has {} bytes, expected {bytes}; remove it", found.len());
        return Err(io::Error::other(message));
    }
    let mut ids = Vec::with_capacity(tokens);
    for _ in 0..tokens {
        let id = number(&mut input)?;
        if id as usize >= vocab {
            let message = format!("it holds token {id}, beyond the vocabulary; remove it");
            return Err(io::Error::other(message));
        }
        ids.push(id);
    }
    *position = 0;
    kv.fill_parts(tokens, |part| input.fill(part))?;
    let hash = input.hash.clone().finalize();
    if input.take::<DIGEST>()? != hash[..] {
        return Err(io::Error::other("it is damaged; remove it"));
    }
    *position = tokens;
    Ok(ids)
}

/// Checks that writing replaces nothing but a saved KV cache.
fn check_replaceable(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let mut magic = [0; MAGIC.len()];
    let is_saved =
        found.is_file() && File::open(path)?.read_exact(&mut magic).is_ok() && magic == MAGIC;
    if is_saved {
        return Ok(());
    }
    Err(io::Error::other("there is something else than a saved KV cache; name another file"))
}
