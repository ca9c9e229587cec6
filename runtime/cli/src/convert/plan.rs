//! Tensors of a GGUF file, and where each comes from in a Hugging Face folder.

use std::collections::BTreeSet;

use bitnet_profiles::{Role, Shape};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::arch::{self, layer_tensor};
use bitnet_runtime::error::{Error, Result, quoted};
use bitnet_runtime::file::gguf::TensorType;
use safetensors::Dtype;

use super::checkpoint::{Checkpoint, Stored};
use super::matrix::{Form, Matrix};
use super::model::{Description, Weights, is_gemma};

/// Types that tensors are written in.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    /// Ternary matrices; `None`: one that holds their scales.
    pub matrices: Option<TensorType>,
    /// The embedding; `None`: as it is.
    pub embedding: Option<TensorType>,
    /// The head; `None`: as it is.
    pub head: Option<TensorType>,
}

/// Settings of a plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Types.
    pub types: Types,
    /// The form of scales, whatever `config.json` says: true to multiply by them.
    pub multiply: Option<bool>,
    /// Rounds a model that is not ternary.
    pub ternarise: bool,
    /// Names of tensors to leave out.
    pub ignored: Vec<String>,
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its dimensions, innermost first.
    pub dims: Vec<u64>,
    /// Its type.
    pub ty: TensorType,
    /// Where its elements come from.
    pub source: Source,
}

/// Origin of a tensor's elements.
#[derive(Clone, Debug)]
pub enum Source {
    /// Floats of a tensor, converted to the type.
    Floats(Floats),
    /// A ternary matrix.
    Ternary(Matrix),
    /// Numbers.
    Values(Vec<f32>),
}

/// Floats of a tensor.
#[derive(Clone, Debug)]
pub struct Floats {
    /// The tensor.
    pub stored: Stored,
    /// Another order of the rows of each head.
    pub heads: Option<Heads>,
    /// The number that is added to each.
    pub added: f32,
}

/// Order of the rows of a matrix whose outputs are rotated: Hugging Face pairs element `i` of a head with
/// `i + dim / 2`, llama.cpp's `llama` element `2 i` with `2 i + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Elements of a head, an even number.
    pub dim: usize,
}

impl Heads {
    /// The row of Hugging Face's matrix that is `row` of the one written.
    #[must_use]
    pub fn source(self, row: usize) -> usize {
        let (head, at) = (row / self.dim * self.dim, row % self.dim);
        head + at % 2 * (self.dim / 2) + at / 2
    }
}

/// What a folder's tensors become.
#[derive(Debug)]
pub struct Plan {
    /// The tensors, in the order of files that bitnet.cpp reads.
    pub tensors: Vec<Planned>,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Type of the ternary matrices.
    pub matrices: TensorType,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// Makes the plan.
///
/// # Errors
/// [`Error::Model`] for a tensor that is missing, has another shape or type than `config.json` requires,
/// or has no place in the file.
pub fn plan(
    checkpoint: &Checkpoint,
    description: &Description,
    settings: &Settings,
) -> Result<Plan> {
    // Only the tensors say whether each matrix has a norm of its own input, which it then rounds for.
    let mut config = description.config.clone();
    let own = [format!("layers.0.{}{OWN_NORM}", MATRICES[0].1)];
    config.norms_in = config.architecture.tensors.norms_in.is_some()
        && spelt(&own).any(|name| checkpoint.find(&name).is_some());
    let weights = match description.weights {
        Weights::Floats if config.norms_in => Weights::Masters,
        own => own,
    };
    let mut planner = Planner {
        checkpoint,
        description,
        config,
        weights,
        settings,
        matrices: TensorType::I2_S,
        width: None,
        used: settings.ignored.iter().cloned().collect(),
        tensors: Vec::new(),
        notes: Vec::new(),
    };
    let missing = settings.ignored.iter().find(|name| checkpoint.find(name.as_str()).is_none());
    if let Some(name) = missing {
        return Err(Error::usage("--ignore", quoted(name), "the name of a tensor of the folder"));
    }
    let vocab = planner.embedding()?;
    planner.choose_type()?;
    for layer in 0..description.config.layers {
        planner.layer(layer)?;
    }
    planner.rest(vocab)?;
    planner.check_left()?;
    let Planner { tensors, matrices, notes, .. } = planner;
    Ok(Plan { tensors, vocab, matrices, notes })
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    description: &'a Description,
    /// The hyperparameters.
    config: Config,
    /// The form of the ternary matrices.
    weights: Weights,
    settings: &'a Settings,
    /// Type of the ternary matrices.
    matrices: TensorType,
    /// Columns that share a scale, where weights are floats; `None`: all.
    width: Option<usize>,
    /// Names of tensors that have a place, or need none.
    used: BTreeSet<String>,
    tensors: Vec<Planned>,
    notes: Vec<String>,
}

/// A norm of a layer.
struct Norm {
    /// Its name here.
    own: &'static str,
    /// Its names in Hugging Face's folders.
    theirs: Vec<String>,
    /// Its width.
    width: usize,
    /// True for a norm of its matrix's input.
    of_input: bool,
}

/// The norms of a layer.
fn norms(config: &Config) -> Vec<Norm> {
    let names = &config.architecture.tensors;
    let [q, k] = names.attn_qk_norms.map_or([None; 2], |names| names.map(Some));
    // Where a norm follows attention, that of the same name elsewhere has another.
    let before_ffn = match names.attn_post_norm {
        Some(_) => "pre_feedforward_layernorm",
        None => "post_attention_layernorm",
    };
    let fixed: [(Option<&str>, &[&str]); 8] = [
        (q, &["self_attn.q_norm"]),
        (k, &["self_attn.k_norm"]),
        (Some(names.attn_norm), &["input_layernorm"]),
        (names.attn_post_norm, &["post_attention_layernorm"]),
        (Some(names.ffn_norm), &[before_ffn]),
        (names.ffn_post_norm, &["post_feedforward_layernorm"]),
        (names.attn_sub_norm, &["self_attn.attn_sub_norm", "self_attn.inner_attn_ln"]),
        (names.ffn_sub_norm, &["mlp.ffn_sub_norm", "mlp.ffn_layernorm"]),
    ];
    let place = |own: &str| fixed.iter().position(|(name, _)| *name == Some(own));
    let mut all = config.norms();
    all.sort_by_key(|(own, _)| place(own).unwrap_or(fixed.len()));
    all.into_iter()
        .map(|(own, width)| {
            let theirs = match place(own) {
                Some(place) => fixed[place].1.iter().map(|name| format!("{name}.weight")).collect(),
                None => {
                    let matrix = MATRICES
                        .iter()
                        .find(|(name, _)| own.strip_suffix("_norm_in") == Some(name));
                    matrix.map(|(_, theirs)| format!("{theirs}{OWN_NORM}")).into_iter().collect()
                }
            };
            Norm { own, theirs, width, of_input: place(own).is_none() }
        })
        .collect()
}

/// End of the name of the norm of a matrix's own input in Hugging Face's folders.
const OWN_NORM: &str = ".norm.weight";

/// Names with `model.` in front and without.
fn spelt(names: &[String]) -> impl Iterator<Item = String> {
    names.iter().flat_map(|name| [format!("model.{name}"), name.clone()])
}

/// Names of a layer's matrices here and there.
const MATRICES: [(&str, &str); 7] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl<'a> Planner<'a> {
    /// Finds a tensor by one of its names, with or without `model.` in front.
    fn find(&mut self, names: &[String]) -> Option<&'a Stored> {
        let checkpoint = self.checkpoint;
        let found = spelt(names).find_map(|name| checkpoint.find(&name));
        self.used.extend(found.map(|tensor| tensor.name.clone()));
        found
    }

    /// Finds a tensor that must be there.
    fn require(&mut self, names: &[String]) -> Result<&'a Stored> {
        self.find(names).ok_or_else(|| {
            let paths: Vec<_> = self.checkpoint.paths().collect();
            let path = paths.first().copied().unwrap_or(self.description.file.path());
            let item = format!("tensor {}", quoted(&format!("model.{}", names[0])));
            Error::model(path, item, "no such tensor", "all that config.json asks for")
        })
    }

    /// Checks that a tensor has this shape.
    fn check(&self, tensor: &Stored, shape: &[usize]) -> Result<()> {
        let wanted: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        if tensor.shape == wanted {
            return Ok(());
        }
        let expected = format!("{wanted:?} by config.json");
        Err(self.checkpoint.error(tensor, format_args!("shape {:?}", tensor.shape), expected))
    }

    /// Adds a tensor of floats.
    fn floats(&mut self, name: &str, ty: Option<TensorType>, floats: Floats) -> Result<()> {
        let tensor = &floats.stored;
        let own = tensor.floats().ok_or_else(|| {
            self.checkpoint.error(tensor, format_args!("{:?}", tensor.dtype), "BF16, F16 or F32")
        })?;
        let dims = tensor.shape.iter().rev().copied().collect();
        let source = Source::Floats(floats);
        self.tensors.push(Planned { name: name.into(), dims, ty: ty.unwrap_or(own), source });
        Ok(())
    }

    /// Adds an embedding or a head.
    fn table(&mut self, name: &str, tensor: &Stored, ty: Option<TensorType>) -> Result<()> {
        self.floats(name, ty, Floats { stored: tensor.clone(), heads: None, added: 0.0 })
    }

    /// Adds a norm of so many columns, whose weights Gemma's count from 1 but for those of inputs of
    /// matrices.
    fn norm(&mut self, name: &str, tensor: &Stored, width: usize, of_input: bool) -> Result<()> {
        self.check(tensor, &[width])?;
        let gemma = is_gemma(self.config.architecture) && !of_input;
        let added = if gemma { 1.0 } else { 0.0 };
        let floats = Floats { stored: tensor.clone(), heads: None, added };
        self.floats(name, Some(TensorType::F32), floats)
    }

    /// Adds the embedding, and returns its rows.
    fn embedding(&mut self) -> Result<usize> {
        let tensor = self.require(&["embed_tokens.weight".into()])?;
        let config = &self.config;
        let rows = tensor.shape.first().copied().unwrap_or(0) as usize;
        self.check(tensor, &[rows, config.hidden])?;
        if rows == 0 || rows > Shape::MAX_ROWS {
            let expected = format!("1 to {} rows", Shape::MAX_ROWS);
            return Err(self.checkpoint.error(tensor, format_args!("{rows} rows"), expected));
        }
        if rows != config.vocab {
            self.notes.push(format!(
                "{} rows in the embedding, vocab_size {}: the rows count",
                rows, config.vocab
            ));
        }
        let name = config.architecture.tensors.embedding;
        self.table(name, tensor, self.settings.types.embedding)?;
        Ok(rows)
    }

    /// Chooses the type of the ternary matrices, and the columns that share a scale: those of a block of
    /// the type that was asked for, else of the first matrix.
    fn choose_type(&mut self) -> Result<()> {
        let asked = self.settings.types.matrices;
        let is_rounded = self.weights != Weights::Floats || self.settings.ternarise;
        self.matrices = asked.unwrap_or(TensorType::I2_S);
        if is_rounded {
            return Ok(());
        }
        let format = self.matrices.format();
        if format.has_block_scales() {
            self.width = format.size.block().map(|(weights, _)| weights as usize);
        } else if asked.is_none_or(|ty| ty == TensorType::F16) {
            let (_, theirs) = MATRICES[0];
            let stored = self.require(&[format!("layers.0.{theirs}.weight")])?.clone();
            let (_, shape) = self.config.matrices(0, Role::Qkv).swap_remove(0);
            self.check(&stored, &[shape.rows, shape.cols])?;
            let matrix = Matrix { stored, shape, heads: None, form: Form::Exact };
            self.width = matrix.block_width(self.checkpoint)?;
            self.matrices = match (asked, self.width) {
                (Some(ty), _) => ty,
                (None, None) => TensorType::I2_S,
                (None, Some(256..)) => TensorType::TQ2_0,
                (None, Some(_)) => TensorType::Q2_0,
            };
        }
        Ok(())
    }

    fn layer(&mut self, layer: usize) -> Result<()> {
        let within = |name: &str| format!("layers.{layer}.{name}");
        for Norm { own, theirs, width, of_input } in norms(&self.config) {
            let names: Vec<String> = theirs.iter().map(|name| within(name)).collect();
            let tensor = self.require(&names)?;
            self.norm(&layer_tensor(layer, own), tensor, width, of_input)?;
        }
        let config = &self.config;
        let shapes: Vec<(String, Shape)> =
            config.jobs().iter().flat_map(|job| config.matrices(layer, job.role)).collect();
        for ((name, shape), (own, theirs)) in shapes.iter().zip(MATRICES) {
            debug_assert_eq!(*name, layer_tensor(layer, own));
            self.matrix(name, *shape, own, &within(theirs))?;
        }
        // Frequencies, which are computed.
        self.find(&[within("self_attn.rotary_emb.inv_freq")]);
        Ok(())
    }

    /// Adds a ternary matrix and its bias.
    fn matrix(&mut self, name: &str, shape: Shape, own: &str, theirs: &str) -> Result<()> {
        let config = &self.config;
        let rotated = matches!(own, "attn_q" | "attn_k");
        let permuted = rotated && std::ptr::eq(config.architecture, &arch::LLAMA);
        let heads = permuted.then_some(Heads { dim: config.head_dim });
        let tensor = self.require(&[format!("{theirs}.weight")])?.clone();
        let form = self.form(&tensor, theirs, shape)?;
        let dims = vec![shape.cols as u64, shape.rows as u64];
        let matrix = Matrix { stored: tensor, shape, heads, form };
        let source = Source::Ternary(matrix);
        self.tensors.push(Planned { name: name.into(), dims, ty: self.matrices, source });
        if let Some(bias) = self.find(&[format!("{theirs}.bias")]) {
            self.check(bias, &[shape.rows])?;
            let name = name.replace(".weight", ".bias");
            let floats = Floats { stored: bias.clone(), heads, added: 0.0 };
            self.floats(&name, Some(TensorType::F32), floats)?;
        }
        Ok(())
    }

    /// Says how the weights of a matrix are to be read.
    fn form(&mut self, tensor: &Stored, theirs: &str, shape: Shape) -> Result<Form> {
        let packed = match self.weights {
            Weights::PackedMultiply => Some(self.settings.multiply.unwrap_or(true)),
            Weights::PackedDivide => Some(self.settings.multiply.unwrap_or(false)),
            Weights::Masters | Weights::Floats => None,
        };
        let Some(multiply) = packed else {
            self.check(tensor, &[shape.rows, shape.cols])?;
            if tensor.floats().is_none() {
                let expected =
                    "BF16, F16 or F32, as config.json says of weights that are not packed";
                return Err(self.checkpoint.error(tensor, tensor, expected));
            }
            let rounds = self.weights == Weights::Masters || self.settings.ternarise;
            return Ok(match self.width {
                _ if rounds => Form::Masters,
                Some(width) => Form::Blocks { width },
                None => Form::Exact,
            });
        };
        if tensor.dtype != Dtype::U8 {
            let expected = "U8, four codes to a byte, as config.json says";
            return Err(self.checkpoint.error(tensor, tensor, expected));
        }
        if !shape.rows.is_multiple_of(4) {
            let found = format!("{} rows", shape.rows);
            return Err(self.checkpoint.error(tensor, found, "a multiple of 4"));
        }
        self.check(tensor, &[shape.rows / 4, shape.cols])?;
        let scale = self.require(&[format!("{theirs}.weight_scale")])?.clone();
        Ok(Form::Packed { scale: self.scale(&scale, multiply)? })
    }

    /// Reads the scale of a packed matrix.
    fn scale(&self, tensor: &Stored, multiply: bool) -> Result<f32> {
        let Some(ty) = tensor.floats().filter(|_| tensor.shape.iter().product::<u64>() == 1) else {
            return Err(self.checkpoint.error(tensor, tensor, "one number, BF16, F16 or F32"));
        };
        let (mut bytes, mut value) = (Vec::new(), [f32::NAN]);
        self.checkpoint.read(tensor, 0..tensor.bytes(), &mut bytes)?;
        if let Some(rows) = ty.format().rows() {
            (rows.dequantise)(&bytes, &mut value);
        }
        let [value] = value;
        let scale = if multiply { value } else { 1.0 / value };
        // Weights of trained models are of this order.
        if scale > 1e-4 && scale < 10.0 {
            return Ok(scale);
        }
        let found = format!("{value:e}");
        let expected = format!(
            "a factor of 1e-4 to 10: multiplied by it is {value:e}, divided by it {:e}; \
             choose with --scale multiply or --scale divide",
            1.0 / value
        );
        Err(self.checkpoint.error(tensor, found, expected))
    }

    /// Adds what stands behind all layers: factors of frequencies, the last norm, the head.
    fn rest(&mut self, vocab: usize) -> Result<()> {
        let Description { config, tied, embedding, rope_factors, .. } = self.description;
        let names = &config.architecture.tensors;
        if let (Some(name), Some(values)) = (names.rope_factors, rope_factors) {
            self.tensors.push(Planned {
                name: name.into(),
                dims: vec![values.len() as u64],
                ty: TensorType::F32,
                source: Source::Values(values.clone()),
            });
        }
        let norm = self.require(&["norm.weight".into()])?;
        self.norm(names.output_norm, norm, config.hidden, false)?;
        self.find(&["rotary_emb.inv_freq".into()]);
        let Some(head) = self.find(&["lm_head.weight".into()]) else {
            if *tied == Some(false) && !embedding.is_some_and(|own| own.alone) {
                let found = "false, and there is no tensor 'lm_head.weight'";
                let file = &self.description.file;
                return Err(file.error("tie_word_embeddings", found, "true, or that tensor"));
            }
            return Ok(());
        };
        self.check(head, &[vocab, config.hidden])?;
        if *tied == Some(true) {
            if !self.is_embedding(head)? {
                self.notes.push(
                    "lm_head.weight differs from the embedding and is left out, as config.json says \
                     that they are one"
                        .into(),
                );
            }
            return Ok(());
        }
        if self.is_embedding(head)? {
            self.notes.push("lm_head.weight is the embedding, and left out".into());
            return Ok(());
        }
        self.table(names.head, head, self.settings.types.head)
    }

    /// True if a tensor holds the bytes of the embedding.
    fn is_embedding(&mut self, head: &Stored) -> Result<bool> {
        /// Bytes that are compared at a time.
        const PIECE: u64 = 4 << 20;
        let embedding = self.require(&["embed_tokens.weight".into()])?;
        if (head.dtype, &head.shape) != (embedding.dtype, &embedding.shape) {
            return Ok(false);
        }
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < head.bytes() {
            let piece = start..(start + PIECE).min(head.bytes());
            self.checkpoint.read(head, piece.clone(), &mut own)?;
            self.checkpoint.read(embedding, piece, &mut theirs)?;
            if own != theirs {
                return Ok(false);
            }
            start += PIECE;
        }
        Ok(true)
    }

    /// Checks that every tensor has a place.
    fn check_left(&self) -> Result<()> {
        match self.checkpoint.tensors().find(|tensor| !self.used.contains(&tensor.name)) {
            None => Ok(()),
            Some(left) => {
                let name = self.config.architecture.name;
                let expected = format!(
                    "no such tensor: {name} has no place for it here; --ignore NAME leaves it out"
                );
                Err(self.checkpoint.error(left, left, expected))
            }
        }
    }
}
