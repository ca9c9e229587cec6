//! Ternary codes on their way into the tensor of a file: gathered to whole blocks, and written in its type.

use half::f16;

use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::TensorSink;
use bitnet_runtime::formats::{Reader, TensorType};

/// Codes that are gathered before they are written, at least: whole blocks of every format.
const GATHERED: usize = 1 << 18;
/// The most that a scale may change by, relative to it: what rounding to f16 does to a normal number.
const MOST_CHANGE: f32 = 1.0 / 2048.0;

/// Writer of the codes of one tensor, from its first weight to its last.
#[derive(Debug)]
pub struct Codes {
    ty: TensorType,
    scale: f32,
    codes: Vec<u8>,
    bytes: Vec<u8>,
}

impl Codes {
    /// A writer of codes with a scale, in the type of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Runtime`] for a scale that the type cannot hold; [`Error::Usage`] for a type that is
    /// neither one of [`types`] nor f16.
    pub fn new(name: &str, ty: TensorType, scale: f32) -> Result<Self> {
        if ty.format().ternary().is_none() && ty != TensorType::F16 {
            return Err(Error::usage("--type", ty, format_args!("{} or f16", types())));
        }
        // Formats of blocks have scales of f16.
        let kept = if ty == TensorType::I2_S { scale } else { f16::from_f32(scale).to_f32() };
        if (kept - scale).abs() > MOST_CHANGE * scale.abs() {
            return Err(Error::Runtime(format!(
                "tensor {}: its scale, {scale:e}, is too small or too large for the f16 of {ty}; \
                 write it as i2_s",
                quoted(name)
            )));
        }
        Ok(Self { ty, scale, codes: Vec::with_capacity(2 * GATHERED), bytes: Vec::new() })
    }

    /// Appends codes: 0, 1, 2 for -1, 0, +1.
    ///
    /// # Errors
    /// Those of [`TensorSink::write`].
    pub fn push(&mut self, codes: &[u8], out: &mut TensorSink<'_>) -> Result<()> {
        self.codes.extend(codes);
        if self.codes.len() >= GATHERED {
            let whole = self.codes.len() / GATHERED * GATHERED;
            self.write(whole, out)?;
        }
        Ok(())
    }

    /// Writes what is gathered, and what stands behind all codes.
    ///
    /// # Errors
    /// Those of [`TensorSink::write`], which counts the bytes.
    pub fn finish(mut self, out: &mut TensorSink<'_>) -> Result<()> {
        self.write(self.codes.len(), out)?;
        let tail = self.ty.format().size.tail_bytes() as usize;
        let mut bytes = vec![0; tail];
        if let Some(scale) = bytes.first_chunk_mut() {
            *scale = self.scale.to_le_bytes();
        }
        out.write(&bytes)
    }

    /// Writes the first `count` codes.
    fn write(&mut self, count: usize, out: &mut TensorSink<'_>) -> Result<()> {
        self.bytes.clear();
        let codes = &self.codes[..count];
        match &self.ty.format().reader {
            Reader::Codes(ternary) | Reader::Both(ternary, _) => {
                (ternary.encode)(codes, self.scale, &mut self.bytes);
            }
            _ => {
                let weight = |&code: &u8| f16::from_f32(self.scale * (f32::from(code) - 1.0));
                self.bytes.extend(codes.iter().map(weight).flat_map(f16::to_le_bytes));
            }
        }
        self.codes.drain(..count);
        out.write(&self.bytes)
    }
}

/// Returns the names of the types that codes are written in, for messages.
#[must_use]
pub fn types() -> String {
    bitnet_runtime::formats::Format::names(|format| format.ternary().is_some())
}
