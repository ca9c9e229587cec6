//! Files of log probabilities, as llama-perplexity writes and reads them with `--kl-divergence-base`.
//!
//! ```text
//! "_logits_" | n_ctx u32 | n_vocab i32 | n_chunk i32 | ids i32 [n_chunk][n_ctx]
//! n_chunk x (n_ctx - 1 - n_ctx / 2) rows of { scale f32, least log probability f32, codes u16 [n_vocab] }
//! ```
//!
//! A row is padded to an even number of codes. `log p = scale * code + least`; logits that lie more than 16
//! below the largest get the code 0.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_profiles::atomic_file::Replacement;
use bitnet_runtime::error::{Error, Result, quoted};

use super::{Scored, Windows};

const MAGIC: &[u8; 8] = b"_logits_";
/// Bytes of magic and numbers.
const FIXED: u64 = 20;
/// Logits further below the largest than this have no code.
const RANGE: f32 = 16.0;
/// The most tokens of a vocabulary, and of a window.
const MOST: u32 = 1 << 24;

/// Bytes of a row.
fn row_bytes(vocab: usize) -> usize {
    2 * (vocab.next_multiple_of(2) + 4)
}

/// Log probabilities after a token.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) scale: f32,
    pub(super) least: f32,
    pub(super) codes: Vec<u16>,
}

impl Row {
    /// The log probability of a token.
    pub(super) fn log_probability(&self, id: usize) -> f32 {
        self.scale * f32::from(self.codes[id]) + self.least
    }

    /// Rounds the log probabilities of logits.
    fn of(scored: &Scored<'_>) -> Self {
        let max = scored.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = scored.logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - RANGE);
        let scale = (max - min) / f32::from(u16::MAX);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let code =
            |&l: &f32| if l > min { (inverse * (l - min)).round_ties_even() as u16 } else { 0 };
        let least = (f64::from(min) - scored.log_sum) as f32;
        Self { scale, least, codes: scored.logits.iter().map(code).collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(row_bytes(self.codes.len()));
        bytes.extend(self.scale.to_le_bytes());
        bytes.extend(self.least.to_le_bytes());
        bytes.extend(self.codes.iter().flat_map(|code| code.to_le_bytes()));
        bytes.resize(row_bytes(self.codes.len()), 0);
        bytes
    }
}

/// A file that is read, row by row.
#[derive(Debug)]
pub(super) struct BaseFile {
    path: PathBuf,
    file: BufReader<File>,
    context: usize,
    vocab: usize,
    chunks: usize,
    /// The row that comes next.
    next: usize,
}

impl BaseFile {
    /// Opens a file and checks that it is as long as its numbers say.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = crate::convert::json::open(path)?;
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut fixed = [0; FIXED as usize];
        let expected = "what llama-perplexity writes with --kl-divergence-base";
        if length < FIXED {
            return Err(Error::model(path, "size", format_args!("{length} bytes"), expected));
        }
        file.read_exact(&mut fixed).map_err(|e| Error::io(path, "read", e))?;
        if !fixed.starts_with(MAGIC) {
            let found = String::from_utf8_lossy(&fixed[..8]).into_owned();
            return Err(Error::model(path, "beginning", quoted(&found), expected));
        }
        let number = |i: usize| {
            let bytes = fixed[8 + 4 * i..].first_chunk();
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let [context, vocab, chunks] = [number(0), number(1), number(2)];
        for (item, number, least) in
            [("n_ctx", context, 4), ("n_vocab", vocab, 1), ("n_chunk", chunks, 1)]
        {
            if !(least..=MOST).contains(&number) {
                let expected = format!("{least} to {MOST}");
                return Err(Error::model(path, item, number, expected));
            }
        }
        let [context, vocab, chunks] = [context, vocab, chunks].map(|n| n as usize);
        let rows = (chunks * Windows::even(context, chunks).scored.len()) as u64;
        // All are below 2^25, so that no product overflows u128.
        let bytes = u128::from(rows) * row_bytes(vocab) as u128
            + 4 * (chunks as u128 * context as u128)
            + u128::from(FIXED);
        if bytes != u128::from(length) {
            let expected = format!("{bytes} for {chunks} windows of {context} and {vocab} tokens");
            return Err(Error::model(path, "size", format_args!("{length} bytes"), expected));
        }
        Ok(Self { path: path.into(), file, context, vocab, chunks, next: usize::MAX })
    }

    /// Tokens of a window.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Windows.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Checks that the file is of a model with such a vocabulary.
    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        if self.vocab == vocab {
            return Ok(());
        }
        let expected = format!("the tokens of the model, {vocab}");
        Err(Error::model(&self.path, "n_vocab", self.vocab, expected))
    }

    /// Reads the tokens.
    pub(super) fn ids(&self) -> Result<Vec<u32>> {
        let failed = |e| Error::io(&self.path, "read", e);
        // A handle of its own leaves that of the rows where it is.
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut bytes = vec![0; 4 * self.chunks * self.context];
        file.seek(SeekFrom::Start(FIXED)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        let ids: Vec<u32> = bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(ids),
            Some(id) => {
                let expected = format!("ids below {}", self.vocab);
                Err(Error::model(&self.path, "token", *id as i32, expected))
            }
        }
    }

    /// Reads a row.
    pub(super) fn row(&mut self, index: usize) -> Result<Row> {
        let width = row_bytes(self.vocab);
        let failed = |path: &Path, e| Error::io(path, "read", e);
        if self.next != index {
            let start = FIXED + 4 * (self.chunks * self.context) as u64;
            let place = start + index as u64 * width as u64;
            self.file.seek(SeekFrom::Start(place)).map_err(|e| failed(&self.path, e))?;
        }
        let mut bytes = vec![0; width];
        self.file.read_exact(&mut bytes).map_err(|e| failed(&self.path, e))?;
        self.next = index + 1;
        let float = |at: usize| {
            let four = bytes[at..].first_chunk().copied();
            f32::from_le_bytes(four.unwrap_or_default())
        };
        let codes = bytes[8..].as_chunks().0.iter().map(|code| u16::from_le_bytes(*code));
        let row = Row { scale: float(0), least: float(4), codes: codes.take(self.vocab).collect() };
        if row.scale.is_finite() && row.scale >= 0.0 && row.least.is_finite() {
            return Ok(row);
        }
        let found = format!("scale {}, least {}", row.scale, row.least);
        Err(Error::model(&self.path, format_args!("row {index}"), found, "finite numbers"))
    }
}

/// A file that is written, row by row; it gets its name when it is whole.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    replacement: Replacement,
    buffer: Vec<u8>,
    windows: usize,
}

impl Writer {
    /// Begins a file of these windows and tokens.
    pub(super) fn create(
        path: &Path,
        windows: &Windows,
        vocab: usize,
        ids: &[u32],
    ) -> Result<Self> {
        let replacement = Replacement::new(path).map_err(|e| Error::io(path, "write", e))?;
        let mut buffer = MAGIC.to_vec();
        // All are bounded far below 2^31.
        let numbers = [windows.context, vocab, windows.count].map(|n| n as u32);
        buffer.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
        let ids = &ids[..windows.count * windows.context];
        buffer.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        let mut writer = Self { path: path.into(), replacement, buffer, windows: windows.count };
        writer.flush()?;
        Ok(writer)
    }

    /// Appends a row.
    pub(super) fn row(&mut self, scored: &Scored<'_>) -> Result<()> {
        self.buffer.extend(Row::of(scored).bytes());
        if self.buffer.len() < 1 << 20 { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        let mut out = BufWriter::new(self.replacement.writer());
        let written = out.write_all(&self.buffer).and_then(|()| out.flush());
        drop(out);
        self.buffer.clear();
        written.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Gives the file its name, if all windows were measured.
    pub(super) fn end(mut self, windows: usize) -> Result<()> {
        if windows < self.windows {
            let done = format!("{windows} of {} windows", self.windows);
            return Err(Error::Runtime(format!("{}: not written, {done}", self.path.display())));
        }
        self.flush()?;
        self.replacement.commit().map_err(|e| Error::io(&self.path, "write", e))
    }
}
