//! What a model computed, in files: saved KV caches, and packed weights.
//!
//! Both kinds of file hold a hash, behind which no mutant would come. So the hash is made to fit here, and
//! what it does not fit is to be refused.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::LoadOptions;
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::file::packed::PackedFile;
use bitnet_runtime::{KvType, Model, Session, SessionOptions};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::seeds;

/// Bytes of a SHA-256.
const DIGEST: usize = 32;
/// Offsets in a file of packed weights: of the table's length and hash, and of the table.
const TABLE_LENGTH: usize = 12;
const TABLE_HASH: usize = 16;
const TABLE: usize = TABLE_HASH + DIGEST;
/// The data of such a file begins at a multiple of this.
const DATA_ALIGN: u64 = 2 << 20;

/// The model that all files here are of.
static MODEL: LazyLock<Arc<Gguf>> = LazyLock::new(|| {
    Arc::new(Gguf::from_bytes("m.gguf", seeds::small_model()).expect("a sound model"))
});
static POOL: LazyLock<Arc<Pool>> =
    LazyLock::new(|| Arc::new(Pool::new(1).expect("a pool without helpers")));

fn session(model: Model) -> Session {
    let options = SessionOptions { kv_type: Some(KvType::Q8_0), ..SessionOptions::default() };
    Session::new(Arc::new(model), Arc::clone(&POOL), options).expect("sound options")
}

/// A session of the small model.
pub(crate) fn new_session() -> Session {
    let selection = Selection::default();
    let options = LoadOptions::new(&POOL, &selection);
    session(Model::from_gguf(Arc::clone(&MODEL), &options).expect("a sound model"))
}

/// A file that is overwritten for each mutant.
fn rewrite(file: &mut NamedTempFile, bytes: &[u8]) {
    let file = file.as_file_mut();
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(bytes)
    };
    write(file).expect("the folder for temporary files can be written");
}

/// A saved KV cache. Accepted when the session takes it up.
pub fn saved_kv(data: &[u8]) -> bool {
    static STATE: LazyLock<Mutex<(Session, NamedTempFile)>> = LazyLock::new(|| {
        Mutex::new((new_session(), NamedTempFile::new().expect("a folder for temporary files")))
    });
    let Some(end) = data.len().checked_sub(DIGEST) else { return false };
    let (content, own) = data.split_at(end);
    let hash = Sha256::digest(content);
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let (session, file) = &mut *state;
    if *own != hash[..] {
        rewrite(file, data);
        assert!(session.restore(0, file.path()).is_err(), "its hash does not fit");
    }
    session.truncate(0);
    rewrite(file, &[content, &hash].concat());
    let Ok(ids) = session.restore(0, file.path()) else {
        assert_eq!(session.position(), 0);
        return false;
    };
    assert_eq!(session.position(), ids.len());
    if ids.len() < session.context() {
        // Numbers that were damaged may be none: that is an error, too.
        drop(session.decode(0));
    }
    session.truncate(0);
    true
}

/// A file of packed weights: four bytes for the length of its data, which is zeros, and the file up to
/// these. Accepted when it can be opened.
pub fn packed(data: &[u8]) -> bool {
    static FILE: LazyLock<Mutex<NamedTempFile>> =
        LazyLock::new(|| Mutex::new(NamedTempFile::new().expect("a folder for temporary files")));
    let Some((length, head)) = data.split_first_chunk() else { return false };
    let mut head = head.to_vec();
    let table = head.get(TABLE_LENGTH..TABLE_HASH).map(|bytes| {
        let length = bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        TABLE..TABLE.saturating_add(length)
    });
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(table) = table.filter(|table| table.end <= head.len()) {
        let hash = Sha256::digest(&head[table]);
        head[TABLE_HASH..TABLE].copy_from_slice(&hash);
    }
    rewrite(&mut file, &head);
    // A hole, which takes no memory. What is beyond is as good as what the length says.
    let start = (head.len() as u64).next_multiple_of(DATA_ALIGN);
    let length = u64::from(u32::from_le_bytes(*length) % (4 << 20));
    file.as_file().set_len(start + length).expect("the file can grow");
    takes_packed(file.path())
}

fn takes_packed(path: &Path) -> bool {
    let Ok(file) = PackedFile::open(path, Pages::Small) else { return false };
    let selection = Selection::default();
    let options = LoadOptions { packed: Some(&file), ..LoadOptions::new(&POOL, &selection) };
    if let Ok(model) = Model::from_gguf(Arc::clone(&MODEL), &options) {
        drop(session(model).decode(0));
    }
    true
}
