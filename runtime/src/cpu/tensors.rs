//! The tensors that a model needs, found by name and held against the type and the shape that the
//! hyperparameters require.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use bitnet_profiles::{HeadFormat, Shape};

use crate::arch::config::Config;
use crate::arch::{layer_tensor, policy};
use crate::error::{Error, Result};
use crate::file::gguf::{Gguf, TensorInfo};
use crate::formats::{Codes, Format, Rows};

/// Factors of a matrix: any that a model can have been trained to, far from where products overflow.
const FACTORS: RangeInclusive<f32> = 1e-12..=1e12;
/// Largest magnitude of a bias: what it is added to still can be computed with.
const MAX_BIAS: f32 = 1e12;

/// The tensors of a file, and which of them were asked for.
pub(super) struct Tensors<'a> {
    gguf: &'a Gguf,
    used: HashSet<&'a str>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Self {
        Self { gguf, used: HashSet::new() }
    }

    /// Returns the tensor of that name, which must have exactly these dimensions, innermost first.
    fn find(&mut self, name: &str, dims: &[usize]) -> Result<&'a TensorInfo> {
        let wanted: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        let Some(tensor) = self.gguf.tensor(name) else {
            let expected = format!("a tensor of {wanted:?}; the file is incomplete");
            return Err(self.gguf.tensor_error(name, "no such tensor", expected));
        };
        // Trailing dimensions of 1 are ignored.
        let ones = tensor.dims.iter().rev().take_while(|&&d| d == 1).count();
        let kept = (tensor.dims.len() - ones).max(wanted.len()).min(tensor.dims.len());
        if tensor.dims[..kept] != wanted {
            let found = format!("dimensions {:?}", tensor.dims);
            let expected = format!("{wanted:?} by the file's hyperparameters");
            return Err(self.gguf.tensor_error(name, found, expected));
        }
        self.used.insert(&tensor.name);
        Ok(tensor)
    }

    /// Returns a tensor of plain floats, `[n]`, and the functions that read it.
    fn floats(&mut self, name: &str, n: usize) -> Result<(&'a TensorInfo, &'static Rows)> {
        let tensor = self.find(name, &[n])?;
        match tensor.ty.format().floats() {
            Some(rows) => Ok((tensor, rows)),
            None => {
                let known = Format::names(|format| format.floats().is_some());
                Err(self.gguf.tensor_error(name, tensor.ty, known))
            }
        }
    }

    /// Reads a vector, all of whose numbers must be finite, `[n]`.
    pub(super) fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let (tensor, rows) = self.floats(name, n)?;
        let mut values = vec![0.0; n];
        (rows.dequantise)(self.gguf.tensor_bytes(tensor), &mut values);
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let found = format!("{} at {i}", values[i]);
                Err(self.gguf.tensor_error(name, found, "finite numbers; the file is damaged"))
            }
        }
    }

    /// Reads the optional vector that belongs to a matrix, `[n]`: its `scale` or its `bias`.
    fn beside(&mut self, weight: &str, what: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let name = beside(weight, what);
        self.gguf.tensor(&name).map(|_| self.vector(&name, n)).transpose()
    }

    /// Reads the optional factor of a matrix.
    pub(super) fn factor(&mut self, weight: &str) -> Result<Option<f32>> {
        let factor = self.beside(weight, "scale", 1)?.map(|factor| factor[0]);
        match factor.filter(|factor| !FACTORS.contains(factor)) {
            None => Ok(factor),
            Some(factor) => {
                let expected = format!("{:e} to {:e}", FACTORS.start(), FACTORS.end());
                Err(self.gguf.tensor_error(&beside(weight, "scale"), factor, expected))
            }
        }
    }

    /// Reads the optional bias of a matrix, `[rows]`.
    pub(super) fn bias(&mut self, weight: &str, rows: usize) -> Result<Option<Vec<f32>>> {
        let bias = self.beside(weight, "bias", rows)?;
        match bias.iter().flatten().find(|bias| bias.abs() > MAX_BIAS) {
            None => Ok(bias),
            Some(odd) => {
                let expected = format!("magnitudes up to {MAX_BIAS:e}; the file is damaged");
                Err(self.gguf.tensor_error(&beside(weight, "bias"), odd, expected))
            }
        }
    }

    /// Reads the divisors of the rotary frequencies, `[rope_dim / 2]`, if the file has them.
    pub(super) fn rope_factors(&mut self, config: &Config) -> Result<Option<Vec<f32>>> {
        let name = config.architecture.tensors.rope_factors;
        let Some(name) = name.filter(|name| self.gguf.tensor(name).is_some()) else {
            return Ok(None);
        };
        let factors = self.vector(name, config.rope_dim / 2)?;
        match factors.iter().find(|f| !(1e-3..=1e6).contains(*f)) {
            None => Ok(Some(factors)),
            Some(factor) => Err(self.gguf.tensor_error(name, factor, "factors of 1e-3 to 1e6")),
        }
    }

    /// Returns an embedding or a head, `[rows][cols]` in whole blocks, and the format of its rows.
    pub(super) fn table(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<(&'a TensorInfo, HeadFormat)> {
        let tensor = self.find(name, &[cols, rows])?;
        let Some(head) = tensor.ty.format().table(cols) else {
            let known = Format::names(|format| format.table(0).is_some());
            let expected = format!("{known}; quantise the embedding to one of them");
            return Err(self.gguf.tensor_error(name, tensor.ty, expected));
        };
        let block = head.block_weights();
        if cols.is_multiple_of(block) {
            return Ok((tensor, head));
        }
        let found = format!("{} rows of {cols} weights", tensor.ty);
        let expected = format!(
            "whole blocks of {block} weights; quantise it to a type that allows such rows, such as f16"
        );
        Err(self.gguf.tensor_error(name, found, expected))
    }

    /// Returns a ternary matrix and its codes, which may be stored as floats: those of other floats have a
    /// scale that is NaN.
    pub(super) fn ternary(
        &mut self,
        name: &str,
        shape: Shape,
    ) -> Result<(&'a TensorInfo, Codes<'a>)> {
        let tensor = self.find(name, &[shape.cols, shape.rows])?;
        let codes = Codes::of_matrix(self.gguf, tensor, shape)?;
        codes.map(|codes| (tensor, codes)).ok_or_else(|| no_ternary(self.gguf, tensor))
    }
}

/// Makes the error of a matrix that is not ternary.
pub(super) fn no_ternary(gguf: &Gguf, tensor: &TensorInfo) -> Error {
    let known = Format::names(|format| format.ternary().is_some());
    let expected = format!(
        "ternary weights as {known}, or as floats of one magnitude in a tensor, a row or a block; convert \
         the model to I2_S"
    );
    gguf.tensor_error(&tensor.name, tensor.ty, expected)
}

/// Returns the name of the vector that belongs to a matrix: `blk.0.attn_q.bias` for the `bias` of
/// `blk.0.attn_q.weight`.
pub(super) fn beside(weight: &str, what: &str) -> String {
    format!("{}{what}", weight.strip_suffix("weight").unwrap_or(weight))
}

/// Checks that a file has all tensors that its hyperparameters ask for, in shapes and types that can
/// be read, and none that would have a part in the arithmetic and has none here. Reads none of those it
/// needs, so that what a file merely claims costs neither memory nor time.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) naming the tensor, what it is and what it should be.
pub(super) fn check(gguf: &Gguf, config: &Config) -> Result<()> {
    let &Config { hidden, vocab, .. } = config;
    let names = &config.architecture.tensors;
    let mut tensors = Tensors::new(gguf);
    tensors.table(names.embedding, vocab, hidden)?;
    if gguf.tensor(names.head).is_some() {
        tensors.table(names.head, vocab, hidden)?;
    }
    tensors.floats(names.output_norm, hidden)?;
    for layer in 0..config.layers {
        for (name, width) in config.norms() {
            tensors.floats(&layer_tensor(layer, name), width)?;
        }
    }
    for (name, shape) in config.all_matrices() {
        tensors.ternary(&name, shape)?;
    }
    let mut used = tensors.used;
    used.extend(names.rope_factors);
    let beside: Vec<String> = config
        .all_matrices()
        .flat_map(|(name, _)| ["scale", "bias"].map(|what| beside(&name, what)))
        .collect();
    used.extend(beside.iter().map(String::as_str));
    let mut unused = gguf.tensors().iter().filter(|t| !used.contains(t.name.as_str()));
    unused.try_for_each(|tensor| policy::check_unused(gguf, config, tensor))
}
