//! Writes random ternary models of published shapes, streamed to disk.
//!
//! The text such a model writes means nothing; its speed and its shapes are real. Weights are
//! uniform in -1, 0, 1 with a scale of 0.8 / sqrt(inputs), norms are ones, the embedding is about
//! normal with a deviation of 0.02. A seed gives the same bytes everywhere. bitnet.cpp and
//! ik_llama.cpp load the files too. The module `trained` is about models that leave out as much work
//! as trained ones.

pub mod command;
pub mod statistics;
mod trained;

use std::path::{Path, PathBuf};

use half::f16;

use bitnet_profiles::{Shape, destination};
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::arch::mask::Mask;
use bitnet_runtime::arch::rope::RopeScaling;
use bitnet_runtime::arch::{self, Architecture, EMBEDDING, HEAD, layer_tensor};
use bitnet_runtime::engine::sampler::Rng;
use bitnet_runtime::error::{Error, Result};
use bitnet_runtime::file::bus_error;
use bitnet_runtime::file::gguf::{
    Array, Gguf, GgufWriter, StrArray, TensorInfo, TensorSink, TensorType, Value,
};
use bitnet_runtime::formats::{Codes as Stored, FORMATS, Format, Ternary, describe_tiles};

use crate::rows;
use crate::ternary::{self, Codes};
use trained::{Part, Trained};

/// A published shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DummyShape {
    /// The name to ask for it by, in any case.
    pub name: &'static str,
    /// The architecture.
    pub arch: &'static Architecture,
    /// Model width.
    pub hidden: u64,
    /// Width of the feed-forward part.
    pub ffn: u64,
    /// Number of layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head; none: that of all query heads together is the model's.
    pub head_dim: Option<u64>,
    /// Rope base.
    pub rope_base: f32,
    /// True if the embedding is the head, too.
    pub tied: bool,
    /// Tokens of the synthesised vocabulary.
    pub vocab: usize,
    /// True if blocks of the matrices have scales of their own, in types that hold them.
    pub block_scales: bool,
    /// Positions that a token sees in layers that have a window; none: no layer has one.
    pub window: Option<u32>,
    /// True if each matrix has a norm of its own input, as in BitNet's embedding models.
    pub norms_in: bool,
}

const fn shape(
    (name, arch): (&'static str, &'static Architecture),
    (hidden, ffn, layers): (u64, u64, u32),
    (heads, kv_heads): (u32, u32),
    rope_base: f32,
    tied: bool,
    vocab: usize,
) -> DummyShape {
    let head_dim = None;
    DummyShape {
        name,
        arch,
        hidden,
        ffn,
        layers,
        heads,
        kv_heads,
        head_dim,
        rope_base,
        tied,
        vocab,
        block_scales: false,
        window: None,
        norms_in: false,
    }
}

/// A shape of Ternary Bonsai.
const fn bonsai(name: &'static str, sizes: (u64, u64, u32), heads: u32, tied: bool) -> DummyShape {
    let shape = shape((name, &arch::QWEN3), sizes, (heads, 8), 1e6, tied, 151_936);
    DummyShape { head_dim: Some(128), block_scales: true, ..shape }
}

/// A shape of Gemma 3, with a key head for four.
const fn gemma(name: &'static str, sizes: (u64, u64, u32)) -> DummyShape {
    let shape = shape((name, &arch::GEMMA3), sizes, (4, 1), 1e6, true, 262_144);
    DummyShape { head_dim: Some(256), window: Some(512), ..shape }
}

/// One of BitNet's embedding models.
const fn embedding(shape: DummyShape) -> DummyShape {
    DummyShape { norms_in: true, window: None, block_scales: false, ..shape }
}

/// The rope base of all Falcon3 models.
const FALCON3_BASE: f32 = 1_000_042.0;

/// All shapes. 2b4t is microsoft/BitNet-b1.58-2B-4T, 3b and large are 1bitLLM's, llama8b is
/// Llama3-8B-1.58, falcon3-* are tiiuae's Falcon3 in 1.58 bits, bonsai-* are Ternary Bonsai, gemma3-* are
/// Google's models of that size, embedding-* are BitNet's; 125M, 1B and 100B are shapes of bitnet.cpp's own
/// dummy models.
pub const SHAPES: &[DummyShape] = &[
    shape(("125M", &arch::BITNET), (768, 3072, 11), (12, 12), 1e4, true, 32_002),
    shape(("1B", &arch::BITNET), (2048, 3584, 24), (32, 32), 1e4, true, 32_002),
    shape(("2b4t", &arch::BITNET_B158), (2560, 6912, 30), (20, 5), 5e5, true, 128_256),
    shape(("3b", &arch::BITNET), (3200, 8640, 26), (32, 32), 1e4, true, 32_002),
    shape(("large", &arch::BITNET), (1536, 4096, 24), (16, 16), 1e4, true, 32_002),
    shape(("llama8b", &arch::LLAMA), (4096, 14_336, 32), (32, 8), 5e5, false, 128_256),
    shape(("falcon3-1b", &arch::LLAMA), (2048, 8192, 18), (8, 4), FALCON3_BASE, false, 131_072),
    shape(("falcon3-3b", &arch::LLAMA), (3072, 9216, 22), (12, 4), FALCON3_BASE, false, 131_072),
    shape(("falcon3-7b", &arch::LLAMA), (3072, 23_040, 28), (12, 4), FALCON3_BASE, false, 131_072),
    shape(("falcon3-10b", &arch::LLAMA), (3072, 23_040, 40), (12, 4), FALCON3_BASE, false, 131_072),
    bonsai("bonsai-1.7b", (2048, 6144, 28), 16, true),
    bonsai("bonsai-4b", (2560, 9728, 36), 32, true),
    bonsai("bonsai-8b", (4096, 12_288, 36), 32, false),
    gemma("gemma3-270m", (640, 2048, 18)),
    gemma("gemma3-1b", (1152, 6912, 26)),
    embedding(gemma("embedding-270m", (640, 2048, 18))),
    embedding(bonsai("embedding-0.6b", (1024, 3072, 28), 16, true)),
    shape(("100B", &arch::BITNET), (8192, 45_568, 72), (64, 64), 1e4, true, 32_002),
];

impl DummyShape {
    /// The shape of that name, in any case.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static DummyShape> {
        SHAPES.iter().find(|s| s.name.eq_ignore_ascii_case(name))
    }

    fn head_dim(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden / u64::from(self.heads))
    }

    /// The hyperparameters of such a model, but for its windows.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            architecture: self.arch,
            activation: self.arch.activation,
            layers: self.layers as usize,
            hidden: self.hidden as usize,
            ffn: self.ffn as usize,
            heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            head_dim: self.head_dim() as usize,
            rope_dim: self.head_dim() as usize,
            rope_base: self.rope_base,
            rope_scaling: RopeScaling::NONE,
            mask: Mask::CAUSAL,
            norms_in: self.norms_in,
            eps: EPS,
            context: CONTEXT as usize,
            vocab: self.vocab,
        }
    }
}

/// Settings of [`write()`].
#[derive(Clone, Debug)]
pub struct DummyConfig {
    /// The model's shape; `layers` may be changed.
    pub shape: DummyShape,
    /// Type of embedding and head: one of [`tables`].
    pub embedding: TensorType,
    /// Type of the ternary matrices: any that codes are written in.
    pub matrices: TensorType,
    /// A GGUF whose tokenizer is taken over; none: one is made up.
    pub vocab: Option<PathBuf>,
    /// Seed of all weights.
    pub seed: u64,
    /// Work that the weights let a program leave out.
    pub sparsity: DummySparsity,
    /// True if an existing file may be replaced.
    pub force: bool,
}

/// Distribution of gates and embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DummySparsity {
    /// Plainly random weights: every second gate is closed, and no logit stands out.
    #[default]
    Random,
    /// About as in the trained demo model. Shapes with squared ReLU only.
    Trained,
}

const CONTEXT: u32 = 4096;
const EPS: f32 = 1e-5;
/// Deviation of the numbers of the embedding.
const DEVIATION: f64 = 0.02;
/// Bytes made at a time: a multiple of no block size, so blocks are counted, not bytes.
const CHUNK: usize = 1 << 20;

/// Types that embedding and head are written in: those of rows, and of ternary blocks.
pub fn tables() -> impl Iterator<Item = &'static Format> {
    FORMATS.iter().filter(|format| {
        let blocks = format.has_block_scales() && ternary::is_written(format);
        format.rows().is_some() || blocks
    })
}

/// Writes the model to `path` by way of a temporary file beside it; `progress` is told the bytes
/// written and the bytes in all.
///
/// # Errors
/// [`Error::Usage`] when the shape does not fit the embedding's type or the file exists,
/// [`Error::Model`] when the vocabulary file is bad, [`Error::Io`] when writing fails; no partial
/// file is left then.
pub fn write(config: &DummyConfig, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    if !config.force && destination::holds_contents(path) {
        let found = format!("{}, which exists", path.display());
        return Err(Error::usage("-o", found, "a new file, or --force"));
    }
    let trained = match config.sparsity {
        DummySparsity::Random => None,
        DummySparsity::Trained if config.embedding.format().rows().is_none() => {
            let found = format!("{} with --sparsity trained", config.embedding);
            return Err(Error::usage(
                "--embd",
                found,
                "a type that floats are rounded to, such as f16",
            ));
        }
        DummySparsity::Trained => Some(Trained::new(&config.shape, config.seed)?),
    };
    let header = plan(config)?;
    let noise = Noise::new();
    let mut buffer = Vec::with_capacity(CHUNK + 512);
    header.write(path, progress, |index, tensor, out| {
        let stream = config.seed ^ ((index as u64) << 40);
        fill(
            (tensor, config.shape.block_scales),
            stream,
            &noise,
            trained.as_ref(),
            &mut buffer,
            out,
        )
    })
}

/// The header: metadata and the list of tensors.
fn plan(config: &DummyConfig) -> Result<GgufWriter> {
    let s = &config.shape;
    let mut w = GgufWriter::new();
    let key = |name: &str| format!("{}.{name}", s.arch.name);
    let vocabulary = match &config.vocab {
        Some(path) => taken_vocabulary(path)?,
        None => made_up_vocabulary(s.vocab),
    };
    let tokens = vocabulary.tokens as u64;
    // The widths of all shapes are far below 2^32.
    let kv = [
        ("general.architecture".into(), Value::Str(s.arch.name.into())),
        ("general.name".into(), Value::Str(format!("dummy-{}", s.name))),
        (key("block_count"), Value::U32(s.layers)),
        (key("context_length"), Value::U32(CONTEXT)),
        (key("embedding_length"), Value::U32(s.hidden as u32)),
        (key("feed_forward_length"), Value::U32(s.ffn as u32)),
        (key("attention.head_count"), Value::U32(s.heads)),
        (key("attention.head_count_kv"), Value::U32(s.kv_heads)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(EPS)),
        (key("rope.freq_base"), Value::F32(s.rope_base)),
        (key("rope.dimension_count"), Value::U32(s.head_dim() as u32)),
        (key("vocab_size"), Value::U32(vocabulary.tokens as u32)),
    ];
    let file_type = rows::file_type(config.matrices);
    let file_type = file_type.map(|number| ("general.file_type".into(), Value::U32(number)));
    for (key, value) in kv.iter().chain(&file_type).chain(&vocabulary.kv) {
        w.kv(key, value);
    }
    if let Some(window) = s.window {
        w.kv(&key("attention.sliding_window"), &Value::U32(window));
    }
    if s.norms_in {
        // The state of the last token is the embedding.
        w.kv(&key("pooling_type"), &Value::U32(3));
    }
    if let Some(head_dim) = s.head_dim {
        for length in ["attention.key_length", "attention.value_length"] {
            w.kv(&key(length), &Value::U32(head_dim as u32));
        }
    }

    let mut add = |name: &str, dims: &[u64], ty: TensorType| {
        w.tensor(name, dims, ty).map_err(|expected| {
            let found = format!("{ty} for {name} of shape {}", s.name);
            let flag = if ty == config.embedding { "--embd" } else { "--outtype" };
            Error::usage(flag, found, expected)
        })
    };
    let names = &s.arch.tensors;
    let shape = config.shape.config();
    add(names.embedding, &[s.hidden, tokens], config.embedding)?;
    for layer in 0..shape.layers {
        // In an order that keeps the seeds of tensors.
        let [attn_norm, ffn_norm] = [names.attn_norm, names.ffn_norm];
        let mut norms = shape.norms();
        norms.sort_by_key(|(name, _)| match *name {
            name if name == attn_norm => 0,
            name if name == ffn_norm => 1,
            _ => 2,
        });
        for (name, width) in norms {
            add(&layer_tensor(layer, name), &[width as u64], TensorType::F32)?;
        }
        for (name, matrix) in shape.jobs().iter().flat_map(|job| shape.matrices(layer, job.role)) {
            add(&name, &[matrix.cols as u64, matrix.rows as u64], config.matrices)?;
        }
    }
    add(names.output_norm, &[s.hidden], TensorType::F32)?;
    if !s.tied {
        add(names.head, &[s.hidden, tokens], config.embedding)?;
    }
    describe_tiles(&mut w)?;
    Ok(w)
}

/// The tokenizer's part of the metadata.
struct Vocabulary {
    kv: Vec<(String, Value)>,
    tokens: usize,
}

const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const TOKENS: &str = "tokenizer.ggml.tokens";

fn taken_vocabulary(path: &Path) -> Result<Vocabulary> {
    bus_error::explain(path, None, "leave it as it is while it is used");
    let gguf = Gguf::open(path)?;
    let tokens = gguf.require(TOKENS, gguf.get_strings(TOKENS)?)?.len();
    if tokens == 0 {
        return Err(gguf.key_error(TOKENS, "no token", "at least one"));
    }
    let mut kv: Vec<(String, Value)> = gguf
        .metadata()
        .filter(|(key, _)| key.starts_with("tokenizer."))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    if gguf.get(ADD_BOS).is_none() {
        kv.push((ADD_BOS.into(), Value::Bool(true)));
    }
    Ok(Vocabulary { kv, tokens })
}

/// Merges of the made-up vocabulary, from frequent English.
const MERGES: &[(&str, &str)] = &[
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġ", "a"),
    ("i", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("o", "n"),
    ("r", "e"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("Ġ", "o"),
    ("Ġo", "f"),
    ("Ġt", "o"),
    ("in", "g"),
    ("Ġ", "in"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
];

/// Two control tokens, the 256 bytes, a few merges, and fillers up to `size`.
fn made_up_vocabulary(size: usize) -> Vocabulary {
    let mut tokens: Vec<String> = vec!["<|begin_of_text|>".into(), "<|end_of_text|>".into()];
    tokens.extend(bitnet_runtime::text::tokenizer::byte_alphabet().map(String::from));
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let filler = tokens.len()..size;
    tokens.extend(filler.map(|i| format!("Ġw{i}")));
    let mut types = vec![1; tokens.len()];
    types[..2].fill(3);
    let merges: StrArray = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let string = |s: &str| Value::Str(s.into());
    let strings = |a: StrArray| Value::Array(Array::Str(a));
    let kv = [
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("gpt-2")),
        (TOKENS, strings(tokens.iter().collect())),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        ("tokenizer.ggml.merges", strings(merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        (ADD_BOS, Value::Bool(true)),
    ];
    Vocabulary { kv: kv.map(|(key, value)| (key.to_owned(), value)).into(), tokens: tokens.len() }
}

/// Writes the data of a tensor that `stream` seeds, with the same weights for the same seed. Each tensor
/// has its own stream, so that a changed layer count keeps the others. Ternary matrices are made in I2_S,
/// whatever they are stored as, unless their blocks have scales of their own.
fn fill(
    (info, block_scales): (&TensorInfo, bool),
    stream: u64,
    noise: &Noise,
    trained: Option<&Trained>,
    buffer: &mut Vec<u8>,
    out: &mut TensorSink<'_>,
) -> Result<()> {
    let mut rng = Rng::new(stream);
    let ternary = is_matrix(info);
    let scales = block_scales && info.ty.format().has_block_scales();
    let made = if ternary && !scales { TensorType::I2_S } else { info.ty };
    let tensor = &TensorInfo { ty: made, ..info.clone() };
    let part = trained.and_then(|trained| Some((trained, trained.part(tensor)?)));
    let scale = match part {
        Some((_, Part::Scaled(scale))) => scale,
        _ => ternary_scale(tensor.cols()),
    };
    let mut codes = if ternary && info.ty != made { Some(Codes::new(info, scale)?) } else { None };
    let mut blocks = noise.blocks(tensor);
    while blocks > 0 {
        buffer.clear();
        blocks = match part {
            None | Some((_, Part::Scaled(_))) => {
                noise.extend(tensor, blocks, CHUNK, &mut rng, buffer)
            }
            Some((trained, part)) => {
                trained.extend(part, (tensor, blocks), noise, &mut rng, buffer)
            }
        };
        match &mut codes {
            None => out.write(buffer)?,
            Some(codes) => recode(buffer, codes, out)?,
        }
    }
    if let Some(codes) = codes {
        return codes.finish(out);
    }
    if tensor.ty == TensorType::I2_S {
        let mut tail = [0; 32];
        tail[..4].copy_from_slice(&scale.to_le_bytes());
        out.write(&tail)?;
    }
    Ok(())
}

/// True for a ternary matrix, which is no embedding and no head.
fn is_matrix(tensor: &TensorInfo) -> bool {
    let table = [EMBEDDING, HEAD].contains(&tensor.name.as_str());
    tensor.ty.format().ternary().is_some() && !table
}

/// Writes blocks of I2_S in another type.
fn recode(blocks: &[u8], codes: &mut Codes, out: &mut TensorSink<'_>) -> Result<()> {
    let (weights, bytes) = Noise::block(TensorType::I2_S);
    let shape = Shape::new(blocks.len() / bytes, weights as usize);
    let stored = Stored::i2_s(blocks, shape);
    let mut row = vec![0; shape.cols];
    for index in 0..shape.rows {
        stored.row(index, &mut row);
        codes.push(&row, out)?;
    }
    Ok(())
}

/// Scale of a ternary tensor of so many columns.
fn ternary_scale(cols: u64) -> f32 {
    0.8 / (cols as f32).sqrt()
}

/// Tables that turn random bits into weights quickly.
struct Noise {
    /// The 81 bytes of four codes 0 to 2.
    ternary: [u8; 81],
    /// Evenly spread quantiles of a normal distribution with a deviation of 0.02.
    normal: Vec<[u8; 2]>,
}

const NORMALS: usize = 4096;

/// [`NORMALS`] numbers of a normal distribution with a deviation of 1, nearly: sums of twelve
/// uniform ones.
fn normals() -> impl Iterator<Item = f64> {
    let mut rng = Rng::new(0);
    (0..NORMALS).map(move |_| {
        let sum: u64 = (0..12).map(|_| rng.next_u64() >> 32).sum();
        sum as f64 / (1u64 << 32) as f64 - 6.0
    })
}

impl Noise {
    fn new() -> Noise {
        let digit = |i: usize, place: usize| (i / place % 3) as u8;
        let ternary = std::array::from_fn(|i| {
            (digit(i, 27) << 6) | (digit(i, 9) << 4) | (digit(i, 3) << 2) | digit(i, 1)
        });
        let normal = normals().map(|x| f16::from_f64(DEVIATION * x).to_le_bytes()).collect();
        Noise { ternary, normal }
    }

    /// Blocks of a tensor: what `extend` counts in.
    fn blocks(&self, tensor: &TensorInfo) -> u64 {
        tensor.elements() / Self::block(tensor.ty).0
    }

    /// Weights and bytes of a block.
    fn block(ty: TensorType) -> (u64, usize) {
        // A dummy holds none but types with blocks.
        let (weights, bytes) = ty.format().size.block().unwrap_or((1, 4));
        (weights, bytes as usize)
    }

    /// Appends at most `blocks` blocks and about `bytes` bytes; returns how many are left.
    fn extend(
        &self,
        tensor: &TensorInfo,
        blocks: u64,
        bytes: usize,
        rng: &mut Rng,
        out: &mut Vec<u8>,
    ) -> u64 {
        let size = Self::block(tensor.ty).1;
        let n = blocks.min((bytes / size) as u64) as usize;
        match tensor.ty {
            TensorType::I2_S => {
                // Four bytes from a u64: 16 bits choose one of 81 with a bias below 1/800.
                for _ in 0..n * size / 4 {
                    let r = rng.next_u64();
                    let byte =
                        |k: u32| self.ternary[(((r >> (16 * k)) & 0xffff) * 81) as usize >> 16];
                    out.extend([byte(0), byte(1), byte(2), byte(3)]);
                }
            }
            TensorType::F16 => {
                const BITS: u32 = NORMALS.ilog2();
                for _ in 0..n.div_ceil(4) {
                    let r = rng.next_u64();
                    for k in 0..4 {
                        out.extend(self.normal[(r >> (BITS * k)) as usize % NORMALS]);
                    }
                }
                out.truncate(n * size);
            }
            TensorType::Q8_0 => {
                // Uniform codes have a deviation of 73.6.
                let scale = f16::from_f64(DEVIATION / 73.6).to_le_bytes();
                for _ in 0..n {
                    out.extend(scale);
                    for _ in 0..4 {
                        // -128 is no code that a quantiser writes.
                        let r = rng.next_u64().to_le_bytes();
                        out.extend(r.map(|b| if b == 0x80 { 0 } else { b }));
                    }
                }
            }
            TensorType::Q4_0 => {
                let scale = f16::from_f64(0.0043).to_le_bytes();
                for _ in 0..n {
                    out.extend(scale);
                    for _ in 0..2 {
                        out.extend(rng.next_u64().to_le_bytes());
                    }
                }
            }
            TensorType::Q6_K => {
                let scale = f16::from_f64(7e-5).to_le_bytes();
                for _ in 0..n {
                    for _ in 0..24 {
                        out.extend(rng.next_u64().to_le_bytes());
                    }
                    for _ in 0..2 {
                        // Block scales of 8 to 23.
                        out.extend(rng.next_u64().to_le_bytes().map(|b| 8 + (b & 15)));
                    }
                    out.extend(scale);
                }
            }
            // Ternary blocks with scales of their own: of a matrix, or of a table that is not rounded.
            ty if is_matrix(tensor) || ty.format().rows().is_none() => {
                let deviation =
                    if is_matrix(tensor) { None } else { Some(DEVIATION as f32 * 1.5f32.sqrt()) };
                let about = deviation.unwrap_or_else(|| ternary_scale(tensor.cols()));
                let encode = ty.format().ternary().and_then(Ternary::encode);
                let encode = encode.expect("others are made in I2_S");
                let mut codes = vec![0; Self::block(ty).0 as usize];
                for _ in 0..n {
                    for four in codes.as_chunks_mut::<4>().0 {
                        let byte = self.ternary[rng.next_u64() as usize % self.ternary.len()];
                        *four = [0, 2, 4, 6].map(|bits| byte >> bits & 3);
                    }
                    let factor = 0.75 + (rng.next_u64() >> 40) as f32 / (1 << 25) as f32;
                    encode(&codes, factor * about, out);
                }
            }
            // A norm.
            _ if tensor.dims.len() == 1 => {
                for _ in 0..n {
                    out.extend(1f32.to_le_bytes());
                }
            }
            ty => {
                let rows = ty.format().rows().expect("an embedding is of rows of floats");
                let mut values = vec![0.0; n * Self::block(ty).0 as usize];
                values.fill_with(|| {
                    let half = self.normal[rng.next_u64() as usize % NORMALS];
                    f16::from_le_bytes(half).to_f32()
                });
                (rows.quantise)(&values, out);
            }
        }
        blocks - n as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of the ternary tensors, by the published names.
    #[test]
    fn shapes_have_the_size_their_name_says() {
        let billions = [
            0.104, 0.931, 2.084, 3.22, 0.68, 6.98, 1.133, 2.422, 6.65, 9.5, 1.409, 3.633, 6.946,
            0.1003, 0.698, 0.1003, 0.4404, 100.0,
        ];
        assert_eq!(billions.len(), SHAPES.len());
        for (shape, expected) in SHAPES.iter().zip(billions) {
            let config = DummyConfig {
                shape: *shape,
                embedding: TensorType::Q8_0,
                matrices: TensorType::I2_S,
                vocab: None,
                seed: 1,
                sparsity: DummySparsity::Random,
                force: false,
            };
            let header = plan(&config).unwrap();
            let ternary = header.tensors().iter().filter(|t| t.ty.is_ternary());
            let weights = ternary.map(TensorInfo::elements).sum::<u64>() as f64 / 1e9;
            let error = (weights - expected).abs() / expected;
            assert!(error < 0.01, "{}: {weights}", shape.name);
        }
    }

    #[test]
    fn four_codes_of_a_byte_are_all_equally_likely() {
        let noise = Noise::new();
        let mut sorted = noise.ternary;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|w| w[0] < w[1]));
        assert!(sorted.iter().all(|b| b & (b >> 1) & 0x55 == 0));
        let values = noise.normal.iter().map(|&x| f16::from_le_bytes(x).to_f64());
        let deviation = (values.map(|x| x * x).sum::<f64>() / NORMALS as f64).sqrt();
        assert!((deviation - 0.02).abs() < 0.001, "{deviation}");
    }
}
