//! Files of packed weights: what packing a model makes, to be mapped as it lies.
//!
//! ```text
//! magic "bitnetpk" | version u32 | bytes of the table u32 | SHA-256 of the table
//! table: JSON | zeros up to a multiple of 2 MiB | data
//! ```
//!
//! Numbers are little-endian. The [`Table`] says which model's files the data was packed from and
//! where in it each [`Section`] lies: from a multiple of 4096 on, so that kernels find it aligned and
//! the system can map it in large pages. The data ends with the file.
//!
//! The table is checked by its hash, and each of its sizes against the file, before anything is used.
//! The data is not, as that would mean to read it: like the tensors of a GGUF file it is numbers, of which
//! any can be computed with.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bitnet_profiles::atomic_file::Replacement;
use bitnet_profiles::{BlockLayout, GatherLayout, HeadFormat, Layout, Shape, SketchFormat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::gguf::Source;
use super::hexadecimal;
use crate::cpu::gather::Along;
use crate::cpu::memory::{Bytes, FileMap, Pages};
use crate::error::{Error, Result, quoted};

const MAGIC: [u8; 8] = *b"bitnetpk";
/// Version of the format, to be raised with every change of it or of what a layout means.
const VERSION: u32 = 1;
/// Bytes before the table.
const HEAD: usize = 8 + 4 + 4 + 32;
/// Most bytes of a table: one of 1024 layers has fewer.
const MAX_TABLE: usize = 16 << 20;
/// Alignment of the data in the file: a huge page on x86.
const DATA_ALIGN: u64 = 2 << 20;
/// Alignment of a section in the data: a page.
const SECTION_ALIGN: u64 = 4096;
/// Bytes that are written at once.
const PIECE: usize = 4 * DATA_ALIGN as usize;
/// Advice for every refusal.
const ANEW: &str = "make it anew with `bitnet-run pack -m MODEL`";

/// Contents of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Path of the model, for people.
    pub model: PathBuf,
    /// The files that were packed.
    pub source: Source,
    /// The sections.
    pub sections: Vec<Section>,
    /// Bits of the largest norms of a head's sketch and of its refinement, as f64, if there is a sketch.
    pub norms: Option<[u64; 2]>,
    /// Bytes of the data, padding included.
    pub bytes: u64,
}

/// A part of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Name of the tensor in the model.
    pub name: String,
    /// Form of it.
    pub form: Form,
    /// Rows and columns of the tensor.
    pub rows: usize,
    /// See `rows`.
    pub cols: usize,
    /// Bits of the scale of integer products, as f32.
    pub scale: u32,
    /// True if all weights are zero.
    pub zero: bool,
    /// Offset in the data.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Form of a tensor's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A ternary matrix, packed in tiles.
    Tiles(Layout),
    /// A ternary matrix with block scales, packed in tiles; `scale` is a factor of them.
    BlockTiles(BlockLayout),
    /// A ternary matrix, packed row by row.
    Rows(GatherLayout),
    /// A ternary matrix, packed column by column.
    Columns(GatherLayout),
    /// A head in the blocks of the model's file.
    Blocks(HeadFormat),
    /// The sketch of a head.
    Sketch(SketchFormat),
    /// The refinement rows of a head.
    Refinement(GatherLayout),
    /// Numbers of each row of a head, as f32, in the order of [`SketchNumbers::ALL`].
    Numbers(SketchNumbers),
}

/// Numbers that a head's sketch has for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(
    missing_docs,
    reason = "named as the fields of a sketch's copies, where they are described"
)]
pub enum SketchNumbers {
    Scales,
    RefinementScales,
    Residuals,
    RefinementResiduals,
}

impl SketchNumbers {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Scales, Self::RefinementScales, Self::Residuals, Self::RefinementResiduals];
}

impl Form {
    /// Lines of a ternary matrix.
    #[must_use]
    pub fn lines(layout: GatherLayout, along: Along) -> Self {
        match along {
            Along::Rows => Self::Rows(layout),
            Along::Columns => Self::Columns(layout),
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tiles(layout) => write!(f, "{layout}"),
            Self::BlockTiles(layout) => write!(f, "{layout}"),
            Self::Rows(layout) => write!(f, "rows in {layout}"),
            Self::Columns(layout) => write!(f, "columns in {layout}"),
            Self::Blocks(format) => write!(f, "{format}"),
            Self::Sketch(format) => write!(f, "{format}"),
            Self::Refinement(layout) => write!(f, "refinement rows in {layout}"),
            Self::Numbers(numbers) => write!(f, "numbers of a sketch ({numbers:?})"),
        }
    }
}

/// A file of packed weights, mapped.
#[derive(Debug)]
pub struct PackedFile {
    path: PathBuf,
    table: Table,
    /// Offset of the data.
    start: u64,
    map: FileMap,
}

impl PackedFile {
    /// Opens a file, checks its table, and maps it in pages of the given size where the file system
    /// has them.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses, [`Error::Model`] naming what is wrong with the file.
    pub fn open(path: impl AsRef<Path>, pages: Pages) -> Result<Self> {
        let path = path.as_ref();
        let io = |action| move |error| Error::io(path, action, error);
        let file = Self::file(path)?;
        let (table, start) = Self::read_table(path, &file)?;
        let map = FileMap::new(&file, pages).map_err(io("map"))?;
        Ok(Self { path: path.to_path_buf(), table, start, map })
    }

    /// Reads the table of a file.
    ///
    /// # Errors
    /// As [`PackedFile::open`].
    pub fn table_of(path: &Path) -> Result<Table> {
        Ok(Self::read_table(path, &Self::file(path)?)?.0)
    }

    fn file(path: &Path) -> Result<File> {
        let io = |error| Error::io(path, "open", error);
        // Asked before opening: opening a FIFO would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(io::Error::other("it is not a regular file")));
        }
        File::open(path).map_err(io)
    }

    /// Reads and checks a file's table; returns the offset of the data, too.
    fn read_table(path: &Path, mut file: &File) -> Result<(Table, u64)> {
        let io = |error| Error::io(path, "read", error);
        let len = file.metadata().map_err(io)?.len();
        let wrong = |item: &str, found: String, expected: &str| {
            Error::model(path, item, found, format_args!("{expected}; {ANEW}"))
        };
        let short = || wrong("file", format!("{len} bytes"), "a whole file of packed weights");
        let mut head = [0; HEAD];
        if len < HEAD as u64 {
            return Err(short());
        }
        file.read_exact(&mut head).map_err(io)?;
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i]));
        if head[..8] != MAGIC {
            return Err(wrong("magic", quoted(&head[..8].escape_ascii().to_string()), "bitnetpk"));
        }
        if number(8) != VERSION {
            let expected = format!("{VERSION}, which this program reads");
            return Err(wrong("version", number(8).to_string(), &expected));
        }
        let table_bytes = number(12) as usize;
        if table_bytes > MAX_TABLE {
            let expected = format!("at most {MAX_TABLE}");
            return Err(wrong("bytes of the table", table_bytes.to_string(), &expected));
        }
        if len < (HEAD + table_bytes) as u64 {
            return Err(short());
        }
        let mut table = vec![0; table_bytes];
        file.read_exact(&mut table).map_err(io)?;
        if Sha256::digest(&table)[..] != head[16..] {
            let found = hexadecimal(Sha256::new_with_prefix(&table));
            return Err(wrong("table", format!("SHA-256 {found}"), "the one in front of it"));
        }
        let table: Table = serde_json::from_slice(&table)
            .map_err(|error| wrong("table", quoted(&error.to_string()), "one of this version"))?;
        let start = data_start(table_bytes);
        if start.checked_add(table.bytes) != Some(len) {
            let found = format!("{len} bytes");
            let expected = format!("{} of data from {start} on", table.bytes);
            return Err(wrong("file", found, &expected));
        }
        let inside = |section: &&Section| {
            section.offset.is_multiple_of(SECTION_ALIGN)
                && section.offset.checked_add(section.bytes).is_some_and(|end| end <= table.bytes)
        };
        if let Some(section) = table.sections.iter().find(|section| !inside(section)) {
            let Section { offset, bytes, .. } = section;
            let found = format!("{bytes} bytes at {offset}");
            let item = format!("section {}", quoted(&section.name));
            return Err(wrong(&item, found, "a place in the data, at a multiple of 4096"));
        }
        Ok((table, start))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Returns the section that holds a tensor in a form, for people also where it is not there.
    ///
    /// # Errors
    /// [`Error::Model`] when there is none, or it is of another shape.
    pub(crate) fn section(&self, name: &str, form: Form, shape: Shape) -> Result<&Section> {
        let own = |section: &&Section| section.name == name;
        let found = self.table.sections.iter().filter(own).find(|section| section.form == form);
        match found {
            Some(section) if (section.rows, section.cols) == (shape.rows, shape.cols) => {
                Ok(section)
            }
            Some(section) => {
                let found = Shape::new(section.rows, section.cols);
                Err(self.error(name, found, format_args!("{shape}")))
            }
            None => {
                let forms = self.table.sections.iter().filter(own).map(|s| s.form.to_string());
                let forms: Vec<String> = forms.collect();
                let found = if forms.is_empty() { "nothing".into() } else { forms.join(", ") };
                Err(self.error(name, found, format_args!("{form}, which the kernels read")))
            }
        }
    }

    /// Returns the columns of a block of a tensor that is here with block scales.
    pub(crate) fn block_width(&self, name: &str) -> Option<usize> {
        self.table.sections.iter().find_map(|section| match section.form {
            Form::BlockTiles(layout) if section.name == name => Some(layout.width()),
            _ => None,
        })
    }

    /// Returns the bytes of a section.
    ///
    /// # Errors
    /// [`Error::Model`] when the map does not hold them: the file has become shorter.
    pub(crate) fn bytes(&self, section: &Section) -> Result<Bytes> {
        let place = self.start.checked_add(section.offset).and_then(|start| {
            self.map.bytes(start.try_into().ok()?, section.bytes.try_into().ok()?)
        });
        let found = || format!("{} bytes at {}", section.bytes, section.offset);
        place.ok_or_else(|| self.error(&section.name, found(), "a place in the file"))
    }

    /// Returns the scale of a section's products.
    ///
    /// # Errors
    /// [`Error::Model`] when it is none.
    pub(crate) fn scale(&self, section: &Section) -> Result<f32> {
        let scale = f32::from_bits(section.scale);
        let sound = scale.is_finite() && scale > 0.0;
        let expected = "a finite scale above 0";
        if sound { Ok(scale) } else { Err(self.error(&section.name, scale, expected)) }
    }

    /// Reads the section of a head's numbers, as f32.
    ///
    /// # Errors
    /// As [`PackedFile::section`] and [`PackedFile::bytes`].
    pub(crate) fn numbers(
        &self,
        name: &str,
        numbers: SketchNumbers,
        head: Shape,
    ) -> Result<Vec<f32>> {
        let section = self.section(name, Form::Numbers(numbers), head)?;
        let bytes = self.bytes(section)?;
        Ok(bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
    }

    /// Locks the file's pages in memory.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn lock(&self) -> io::Result<()> {
        self.map.lock()
    }

    /// An [`Error::Model`] about a section.
    pub(crate) fn error(
        &self,
        name: &str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Error {
        let item = format!("section {}", quoted(name));
        Error::model(&self.path, item, found, format_args!("{expected}; {ANEW}"))
    }
}

/// Returns the offset of the data behind a table.
fn data_start(table_bytes: usize) -> u64 {
    ((HEAD + table_bytes) as u64).next_multiple_of(DATA_ALIGN)
}

/// Builder of a file: sections in order, then the whole at once.
#[derive(Debug, Default)]
pub struct Builder<'a> {
    sections: Vec<Section>,
    data: Vec<std::borrow::Cow<'a, [u8]>>,
    bytes: u64,
    norms: Option<[u64; 2]>,
}

impl<'a> Builder<'a> {
    /// Adds a section; `scale` and `zero` as in [`Section`].
    pub fn add(
        &mut self,
        (name, form, shape): (&str, Form, Shape),
        (scale, zero): (f32, bool),
        data: impl Into<std::borrow::Cow<'a, [u8]>>,
    ) {
        let data = data.into();
        self.sections.push(Section {
            name: name.to_owned(),
            form,
            rows: shape.rows,
            cols: shape.cols,
            scale: scale.to_bits(),
            zero,
            offset: self.bytes,
            bytes: data.len() as u64,
        });
        self.bytes = (self.bytes + data.len() as u64).next_multiple_of(SECTION_ALIGN);
        self.data.push(data);
    }

    /// Sets the norms of a head's sketch.
    pub fn set_norms(&mut self, norms: [f64; 2]) {
        self.norms = Some(norms.map(f64::to_bits));
    }

    /// Writes the file: whole, or not at all. Returns its length.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses; [`Error::Runtime`] for a table that is too long.
    pub fn write(self, path: &Path, model: &Path, source: Source) -> Result<u64> {
        let bytes = self.bytes.next_multiple_of(DATA_ALIGN);
        let (model, norms) = (model.to_path_buf(), self.norms);
        let table = Table { model, source, sections: self.sections, norms, bytes };
        let json = serde_json::to_vec(&table).ok().filter(|json| json.len() <= MAX_TABLE);
        let json = json.ok_or_else(|| {
            Error::Runtime(format!("{}: the table is too long to be written", path.display()))
        })?;
        let mut front = MAGIC.to_vec();
        front.extend(VERSION.to_le_bytes());
        front.extend((json.len() as u32).to_le_bytes());
        front.extend(Sha256::digest(&json));
        front.extend(json);
        let start = data_start(front.len() - HEAD);
        front.resize(start as usize, 0);
        let write = || -> io::Result<()> {
            let file = Replacement::new(path)?;
            file.writer().write_all(&front)?;
            // Whole pages fill the buffer, so that all that is written begins and ends at multiples of
            // a huge page: file systems with such pages then keep the file in them.
            let mut out = BufWriter::with_capacity(PIECE, file.writer());
            let mut at = 0;
            for (section, data) in table.sections.iter().zip(&self.data) {
                zeros(&mut out, section.offset - at)?;
                data.chunks(SECTION_ALIGN as usize).try_for_each(|page| out.write_all(page))?;
                at = section.offset + section.bytes;
            }
            zeros(&mut out, bytes - at)?;
            out.flush()?;
            drop(out);
            file.commit()
        };
        write().map_err(|error| Error::io(path, "write", error))?;
        Ok(start + bytes)
    }
}

/// Writes zeros: to the end of a page, or whole pages after it.
fn zeros(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let page = [0; SECTION_ALIGN as usize];
    let (whole, part) = (bytes / SECTION_ALIGN, (bytes % SECTION_ALIGN) as usize);
    out.write_all(&page[..part])?;
    (0..whole).try_for_each(|_| out.write_all(&page))
}

#[cfg(test)]
mod tests {
    use super::super::gguf::SourceFile;
    use super::*;

    fn source() -> Source {
        let sha256 = "0".repeat(64);
        let file = SourceFile { bytes: 7, modified_ns: Some(u64::MAX), sha256: sha256.clone() };
        Source { header_sha256: sha256, files: vec![file] }
    }

    const SHAPE: Shape = Shape::new(3, 5);

    /// Writes a file of two sections.
    fn sample(path: &Path) -> u64 {
        let mut builder = Builder::default();
        builder.add(("a", Form::Tiles(Layout::T5T32), SHAPE), (0.1, false), &b"first"[..]);
        let numbers = Form::Numbers(SketchNumbers::Residuals);
        builder.add(("b", numbers, SHAPE), (1.0, true), vec![9; 5000]);
        builder.set_norms([0.1, f64::MAX]);
        builder.write(path, Path::new("m.gguf"), source()).unwrap()
    }

    #[test]
    fn what_is_written_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.packed");
        let bytes = sample(&path);
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(bytes, 2 * DATA_ALIGN);
        let file = PackedFile::open(&path, Pages::Huge).unwrap();
        assert_eq!(file.table().source, source());
        assert_eq!(file.table().norms.unwrap().map(f64::from_bits), [0.1, f64::MAX]);
        assert_eq!(*file.table(), PackedFile::table_of(&path).unwrap());
        let a = file.section("a", Form::Tiles(Layout::T5T32), SHAPE).unwrap();
        assert_eq!((f32::from_bits(a.scale), a.zero), (0.1, false));
        assert_eq!(*file.bytes(a).unwrap(), *b"first");
        let numbers = Form::Numbers(SketchNumbers::Residuals);
        let b = file.section("b", numbers, SHAPE).unwrap();
        assert_eq!((b.offset, b.zero), (4096, true));
        assert_eq!(*file.bytes(b).unwrap(), [9; 5000]);
        for (name, form, shape) in [
            ("a", Form::Tiles(Layout::I2sT16), SHAPE),
            ("a", Form::Tiles(Layout::T5T32), Shape::new(5, 3)),
            ("c", Form::Tiles(Layout::T5T32), SHAPE),
        ] {
            let error = file.section(name, form, shape).unwrap_err().to_string();
            assert!(error.contains("bitnet-run pack"), "{error}");
        }
    }

    /// Every truncation, and every byte changed in front of the data, is refused.
    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.packed");
        let len = sample(&path);
        let whole = std::fs::read(&path).unwrap();
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            PackedFile::open(&path, Pages::Small)
        };
        let table = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
        let front = HEAD + table;
        for end in (0..front).chain([front, 4096, len as usize - 1]) {
            let error = open(&whole[..end]).unwrap_err();
            assert!(matches!(error, Error::Model { .. }), "{end}: {error}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(open(&longer).is_err());
        for at in 0..front {
            for bit in [1, 0x80] {
                let mut damaged = whole[..front].to_vec();
                damaged[at] ^= bit;
                // Sparse, as long as the whole.
                std::fs::write(&path, &damaged).unwrap();
                File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
                let opened = PackedFile::open(&path, Pages::Small);
                assert!(matches!(opened, Err(Error::Model { .. })), "byte {at}");
            }
        }
        assert!(open(&whole).is_ok());
        assert!(PackedFile::open(dir.path(), Pages::Small).is_err());
        assert!(PackedFile::open(dir.path().join("none"), Pages::Small).is_err());
    }

    /// A table whose hash is right is still not believed.
    #[test]
    fn a_table_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.packed");
        sample(&path);
        let good = PackedFile::table_of(&path).unwrap();
        let write = |json: &[u8]| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend((json.len() as u32).to_le_bytes());
            bytes.extend(Sha256::digest(json));
            bytes.extend(json);
            std::fs::write(&path, &bytes).unwrap();
            let len = data_start(json.len()) + good.bytes;
            File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
            PackedFile::open(&path, Pages::Small)
        };
        let json = |table: &Table| serde_json::to_vec(table).unwrap();
        assert!(write(&json(&good)).is_ok());
        let with = |change: fn(&mut Table)| {
            let mut table = good.clone();
            change(&mut table);
            json(&table)
        };
        for lie in [
            with(|table| table.bytes = u64::MAX),
            with(|table| table.bytes -= 1),
            with(|table| table.sections[1].offset = 4095),
            with(|table| table.sections[1].offset = u64::MAX - 4095),
            with(|table| table.sections[1].bytes = u64::MAX),
            with(|table| table.sections[0].bytes = table.bytes + 1),
            b"{}".to_vec(),
            b"".to_vec(),
            [&json(&good)[..json(&good).len() - 1], b",\"more\":1}"].concat(),
            vec![b'['; 1 << 20],
        ] {
            let error = write(&lie).unwrap_err();
            assert!(matches!(error, Error::Model { .. }), "{error}");
        }
    }
}
