//! The weights of a model: every tensor found by name and held to the shape that the
//! hyperparameters ask for.

use std::ops::Range;

use super::config::Config;
use super::numerics;
use crate::error::{Result, quoted};
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::reference;

/// All weights. Ternary matrices and norms are in memory; the embedding and the head stay in the
/// file's own blocks.
#[derive(Debug)]
pub struct Weights {
    /// `[vocab][hidden]`
    pub embedding: Table,
    /// `[vocab][hidden]`; the embedding again when the file has no `output.weight`.
    pub head: Table,
    /// The norm before the head, `[hidden]`.
    pub output_norm: Vec<f32>,
    /// Divisors of the rotary frequencies, `[rope_dim / 2]`, if the file has them.
    pub rope_factors: Option<Vec<f32>>,
    /// The layers in order.
    pub layers: Vec<Layer>,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden]`
    pub attn_norm: Vec<f32>,
    /// `[q_dim][hidden]`
    pub q: Ternary,
    /// `[kv_dim][hidden]`
    pub k: Ternary,
    /// `[kv_dim][hidden]`
    pub v: Ternary,
    /// `[q_dim]`, in the architectures that have it.
    pub attn_sub_norm: Option<Vec<f32>>,
    /// `[hidden][q_dim]`
    pub attn_output: Ternary,
    /// `[hidden]`
    pub ffn_norm: Vec<f32>,
    /// `[ffn][hidden]`
    pub gate: Ternary,
    /// `[ffn][hidden]`
    pub up: Ternary,
    /// `[ffn]`, in the architectures that have it.
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// `[hidden][ffn]`
    pub down: Ternary,
}

/// A ternary matrix, unpacked: codes 0, 1, 2 for -1, 0, +1, `[rows][cols]`.
#[derive(Debug)]
pub struct Ternary {
    codes: Vec<u8>,
    rows: usize,
    cols: usize,
    scale: f32,
}

impl Ternary {
    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What an integer dot product is multiplied with, after it is divided by the activations'
    /// scale.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Exact integer dot products of the rows `rows` with activations `q`, `[n][cols]`: the result
    /// is `[n][rows.len()]`.
    #[must_use]
    pub fn dots(&self, rows: Range<usize>, q: &[i8]) -> Vec<i32> {
        let codes = &self.codes[rows.start * self.cols..rows.end * self.cols];
        reference::matmul(codes, q, self.cols)
    }
}

/// How the rows of an embedding or head are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the ggml type of that name")]
#[allow(non_camel_case_types, reason = "the names are the ones ggml gives them")]
pub enum TableType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q4_0,
}

impl TableType {
    fn from_tensor(ty: TensorType) -> Option<Self> {
        Some(match ty {
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::BF16 => Self::BF16,
            TensorType::Q8_0 => Self::Q8_0,
            TensorType::Q6_K => Self::Q6_K,
            TensorType::Q4_0 => Self::Q4_0,
            _ => return None,
        })
    }

    /// Whether a dot product takes activations in int8 blocks of 32 rather than f32.
    #[must_use]
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q6_K | Self::Q4_0)
    }
}

/// An embedding or a head: a matrix in the blocks of the file.
#[derive(Clone, Debug)]
pub struct Table {
    tensor: TensorInfo,
    ty: TableType,
    rows: usize,
}

/// The activations that a head multiplies, in the form its type takes.
#[derive(Clone, Copy, Debug)]
pub struct HeadInput<'a> {
    /// `[hidden]`
    pub x: &'a [f32],
    /// `x` by [`numerics::quantise_blocks`]: `[hidden]` and `[hidden / 32]`; unused, and possibly
    /// empty, for types that are not quantised.
    pub blocks: (&'a [i8], &'a [f32]),
}

impl Table {
    /// How the rows are stored.
    #[must_use]
    pub fn ty(&self) -> TableType {
        self.ty
    }

    /// The tensor in the file.
    #[must_use]
    pub fn tensor(&self) -> &TensorInfo {
        &self.tensor
    }

    fn row<'a>(&self, gguf: &'a Gguf, row: usize) -> &'a [u8] {
        let bytes = gguf.tensor_bytes(&self.tensor);
        let width = bytes.len() / self.rows;
        &bytes[row * width..(row + 1) * width]
    }

    /// Reads a row as f32, `[hidden]`.
    pub fn read_row(&self, gguf: &Gguf, row: usize, out: &mut [f32]) {
        let row = self.row(gguf, row);
        match self.ty {
            TableType::F32 => numerics::dequantise_f32_row(row, out),
            TableType::F16 => numerics::dequantise_f16_row(row, out),
            TableType::BF16 => numerics::dequantise_bf16_row(row, out),
            TableType::Q8_0 => numerics::dequantise_q8_0_row(row, out),
            TableType::Q6_K => numerics::dequantise_q6_k_row(row, out),
            TableType::Q4_0 => numerics::dequantise_q4_0_row(row, out),
        }
    }

    /// The dot products of the rows `rows` with the activations, `[rows.len()]`.
    pub fn dots(&self, gguf: &Gguf, rows: Range<usize>, input: HeadInput<'_>, out: &mut [f32]) {
        let (q, d) = input.blocks;
        for (row, out) in rows.zip(out) {
            let row = self.row(gguf, row);
            *out = match self.ty {
                TableType::F32 => numerics::dot_f32_row(input.x, row),
                TableType::F16 => numerics::dot_f16_row(input.x, row),
                TableType::BF16 => numerics::dot_bf16_row(input.x, row),
                TableType::Q8_0 => numerics::dot_q8_0_row(q, d, row),
                TableType::Q6_K => numerics::dot_q6_k_row(q, d, row),
                TableType::Q4_0 => numerics::dot_q4_0_row(q, d, row),
            };
        }
    }
}

impl Weights {
    /// Finds, checks and reads all tensors. What is odd but no obstacle (tensors nobody uses, a
    /// matrix of zeros) goes to `warnings`, one line each.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the tensor, what it is and what it should be.
    pub fn load(gguf: &Gguf, config: &Config, warnings: &mut Vec<String>) -> Result<Self> {
        let mut loader = Loader { gguf, used: Vec::new(), warnings };
        let weights = loader.weights(config)?;
        loader.warn_of_unused();
        Ok(weights)
    }
}

struct Loader<'a> {
    gguf: &'a Gguf,
    used: Vec<&'a str>,
    warnings: &'a mut Vec<String>,
}

impl<'a> Loader<'a> {
    fn weights(&mut self, config: &Config) -> Result<Weights> {
        let Config { hidden, vocab, .. } = *config;
        let embedding = self.table("token_embd.weight", vocab, hidden)?;
        let head = match self.gguf.tensor("output.weight") {
            Some(_) => self.table("output.weight", vocab, hidden)?,
            None => embedding.clone(),
        };
        let output_norm = self.norm("output_norm.weight", hidden)?;
        let rope_factors = self.rope_factors(config)?;
        let layers =
            (0..config.layers).map(|layer| self.layer(config, layer)).collect::<Result<_>>()?;
        Ok(Weights { embedding, head, output_norm, rope_factors, layers })
    }

    fn layer(&mut self, config: &Config, layer: usize) -> Result<Layer> {
        let &Config { hidden, ffn, .. } = config;
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let sub_norms = config.architecture.has_sub_norms();
        let mut sub_norm =
            |part: &str, n: usize| sub_norms.then(|| self.norm(&name(part), n)).transpose();
        let attn_sub_norm = sub_norm("attn_sub_norm", q_dim)?;
        let ffn_sub_norm = sub_norm("ffn_sub_norm", ffn)?;
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm"), hidden)?,
            q: self.ternary(&name("attn_q"), q_dim, hidden)?,
            k: self.ternary(&name("attn_k"), kv_dim, hidden)?,
            v: self.ternary(&name("attn_v"), kv_dim, hidden)?,
            attn_sub_norm,
            attn_output: self.ternary(&name("attn_output"), hidden, q_dim)?,
            ffn_norm: self.norm(&name("ffn_norm"), hidden)?,
            gate: self.ternary(&name("ffn_gate"), ffn, hidden)?,
            up: self.ternary(&name("ffn_up"), ffn, hidden)?,
            ffn_sub_norm,
            down: self.ternary(&name("ffn_down"), hidden, ffn)?,
        })
    }

    /// The tensor of that name with exactly these dimensions, innermost first.
    fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<&'a TensorInfo> {
        let wanted: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        let Some(tensor) = self.gguf.tensor(name) else {
            let expected = format!("a tensor of {wanted:?}; the file is incomplete");
            return Err(self.gguf.tensor_error(name, "no such tensor", expected));
        };
        // Dimensions of 1 at the end say nothing.
        let ones = tensor.dims.iter().rev().take_while(|&&d| d == 1).count();
        let kept = (tensor.dims.len() - ones).max(wanted.len()).min(tensor.dims.len());
        if tensor.dims[..kept] != wanted {
            let found = format!("dimensions {:?}", tensor.dims);
            let expected = format!("{wanted:?} by the file's hyperparameters");
            return Err(self.gguf.tensor_error(name, found, expected));
        }
        self.used.push(&tensor.name);
        Ok(tensor)
    }

    /// A vector of f32, all of them finite.
    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, &[n])?;
        if tensor.ty != TensorType::F32 {
            return Err(self.gguf.tensor_error(name, tensor.ty.name(), "f32"));
        }
        let mut values = vec![0.0; n];
        numerics::dequantise_f32_row(self.gguf.tensor_bytes(tensor), &mut values);
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let found = format!("{} at {i}", values[i]);
                Err(self.gguf.tensor_error(name, found, "finite numbers; the file is damaged"))
            }
        }
    }

    fn norm(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        self.vector(name, n)
    }

    fn rope_factors(&mut self, config: &Config) -> Result<Option<Vec<f32>>> {
        let name = "rope_freqs.weight";
        if config.architecture != super::config::Architecture::Llama
            || self.gguf.tensor(name).is_none()
        {
            return Ok(None);
        }
        let factors = self.vector(name, config.rope_dim / 2)?;
        match factors.iter().find(|f| !(1e-3..=1e6).contains(*f)) {
            None => Ok(Some(factors)),
            Some(factor) => Err(self.gguf.tensor_error(name, factor, "factors of 1e-3 to 1e6")),
        }
    }

    fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Table> {
        let tensor = self.tensor(name, &[cols, rows])?;
        let Some(ty) = TableType::from_tensor(tensor.ty) else {
            let expected =
                "f32, f16, bf16, q8_0, q6_K or q4_0; quantise the embedding to one of them";
            return Err(self.gguf.tensor_error(name, tensor.ty.name(), expected));
        };
        Ok(Table { tensor: tensor.clone(), ty, rows })
    }

    fn ternary(&mut self, name: &str, rows: usize, cols: usize) -> Result<Ternary> {
        let gguf = self.gguf;
        let tensor = self.tensor(name, &[cols, rows])?;
        if tensor.ty != TensorType::I2_S {
            let expected = "ternary weights as i2_s; convert the model to I2_S";
            return Err(gguf.tensor_error(name, tensor.ty.name(), expected));
        }
        let bytes = gguf.tensor_bytes(tensor);
        // The reader has checked the size: rows * cols / 4 bytes of codes, then 32.
        let (packed, tail) = bytes.split_at(rows * cols / 4);
        let mut scale = [0.0];
        numerics::dequantise_f32_row(&tail[..4], &mut scale);
        let mut scale = scale[0];
        if !(scale.is_finite() && scale > 0.0) {
            let expected = "a finite scale above 0; the file is damaged";
            return Err(gguf.tensor_error(name, format_args!("scale {scale}"), expected));
        }
        if let Some(factor) = self.projection_scale(name)? {
            scale *= factor;
        }
        let mut codes = vec![0; rows * cols];
        unpack_i2_s(packed, &mut codes);
        if let Some(i) = codes.iter().position(|&code| code == 3) {
            let found = format!("code 3 in row {}, column {}", i / cols, i % cols);
            return Err(gguf.tensor_error(name, found, "codes 0 to 2; the file is damaged"));
        }
        if codes.iter().all(|&code| code == 1) {
            self.warnings.push(format!(
                "{}: all weights of tensor {name} are zero; the published file may be broken",
                gguf.path().display()
            ));
        }
        gguf.drop_pages(tensor);
        Ok(Ternary { codes, rows, cols, scale })
    }

    /// The optional tensor `*.scale` of one f32 beside a `*.weight` (architecture `bitnet`).
    fn projection_scale(&mut self, weight: &str) -> Result<Option<f32>> {
        let Some(stem) = weight.strip_suffix("weight") else { return Ok(None) };
        let name = format!("{stem}scale");
        if self.gguf.tensor(&name).is_none() {
            return Ok(None);
        }
        Ok(self.vector(&name, 1)?.first().copied())
    }

    fn warn_of_unused(&mut self) {
        let used: std::collections::HashSet<&str> = self.used.iter().copied().collect();
        let unused: Vec<&str> = (self.gguf.tensors().iter().map(|t| t.name.as_str()))
            .filter(|name| !used.contains(name))
            .collect();
        if let Some(first) = unused.first() {
            self.warnings.push(format!(
                "{}: {} tensors are not part of this architecture and are not used, such as {}",
                self.gguf.path().display(),
                unused.len(),
                quoted(first)
            ));
        }
    }
}

/// Unpacks I2_S: weight j of a block of 128 stands in byte j % 32, weights 0-31 in bits 7:6, 32-63
/// in 5:4, 64-95 in 3:2, 96-127 in 1:0; blocks run over the flat row-major tensor.
fn unpack_i2_s(packed: &[u8], codes: &mut [u8]) {
    for (block, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(block) {
                *code = (byte >> (6 - 2 * quarter)) & 3;
            }
        }
    }
}
