//! The header of a published file, as a fixture states it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitnet_runtime::file::gguf::TensorType;
use serde::Deserialize;

/// A published file: its header, and what becomes of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    /// Name of the fixture's own file, without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// Repository on Hugging Face.
    pub repository: String,
    /// The file in it, or the way in which it is made.
    pub file: String,
    /// Part of the header that was printed in public.
    pub listing: Listing,
    /// Number of metadata pairs.
    pub pairs: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of tensors of each type.
    pub types: BTreeMap<String, u64>,
    /// Widths of the small model that stands for it.
    pub small: Small,
    /// Key, type and value of each pair, in the order of the file. The value of an array is its length,
    /// of merges only to be read: the small model has merges of its own.
    pub keys: Vec<(String, String, toml::Value)>,
    /// Id and text of special tokens.
    pub special: Vec<(u32, String)>,
    /// The tensors.
    pub order: Order,
    /// Set where the file runs.
    pub runs: Option<Runs>,
    /// Set where the file is refused.
    pub refused: Option<Refused>,
}

/// Part of a header that was printed in public, by an engine that loaded the file.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Listing {
    /// Every pair, and the numbers of tensors.
    Whole,
    /// Some pairs; others are those that the file's converter writes.
    Part,
    /// None: all pairs are those that the file's converter writes.
    None,
}

/// Widths of a small model. It has two layers, and the published vocabulary.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Small {
    pub hidden: u64,
    pub ffn: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
}

/// Layers of a small model.
pub const LAYERS: u64 = 2;

/// Tensors in the order of the file: `name type`, without `blk.N.` and `.weight`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub first: Vec<String>,
    /// Those of each layer.
    pub layer: Vec<String>,
    pub last: Vec<String>,
    /// Scales of a ternary matrix whose format has blocks.
    #[serde(default = "one")]
    pub scales: u64,
    /// Sizes of the tiles of ternary matrices whose format has tiles: those that are known are of the
    /// published widths.
    pub tiles: Option<String>,
}

fn one() -> u64 {
    1
}

/// Properties of a file that runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    /// The token that is put before a prompt; none where the file names none.
    pub begins: Option<u32>,
    /// The tokens that end a text, ascending.
    pub ends: Vec<u32>,
    /// A word of each warning, in order.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The error of a file that is refused, and its reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    pub item: String,
    pub found: String,
    /// Needs of the model that are not met, for people.
    pub because: String,
}

/// A tensor of the list.
#[derive(Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: TensorType,
}

impl Fixture {
    /// Reads all fixtures, by name.
    pub fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published/files");
        let mut fixtures: Vec<Self> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let text = fs::read_to_string(&path).unwrap();
                let read = toml::from_str::<Self>(&text);
                let fixture = read.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                Self { name: path.file_stem().unwrap().to_str().unwrap().to_owned(), ..fixture }
            })
            .collect();
        fixtures.sort_by(|a, b| a.name.cmp(&b.name));
        fixtures
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&toml::Value> {
        self.keys.iter().find(|(own, ..)| own == key).map(|(_, _, value)| value)
    }

    /// The text of a key that the file must have.
    pub fn text(&self, key: &str) -> &str {
        self.value(key).and_then(toml::Value::as_str).unwrap()
    }

    /// The number of a key of the architecture, given without its prefix.
    pub fn number(&self, key: &str) -> Option<u64> {
        let key = format!("{}.{key}", self.architecture());
        self.value(&key).map(|value| value.as_integer().unwrap().try_into().unwrap())
    }

    /// The architecture, which is the prefix of its keys.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture")
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> u64 {
        let tokens = self.value("tokenizer.ggml.tokens").and_then(toml::Value::as_integer);
        tokens.unwrap().try_into().unwrap()
    }

    /// The tensors of the small model.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Order { first, layer, last, .. } = &self.order;
        let layers = (0..LAYERS).flat_map(|n| {
            layer.iter().map(move |row| {
                let (name, ty) = name_and_type(row);
                Tensor { name: format!("blk.{n}.{name}.weight"), dims: self.dims(name), ty }
            })
        });
        let single = |row: &String| {
            let (name, ty) = name_and_type(row);
            Tensor { name: format!("{name}.weight"), dims: self.dims(name), ty }
        };
        first.iter().map(single).chain(layers).chain(last.iter().map(single)).collect()
    }

    /// The dimensions of a tensor, innermost first.
    fn dims(&self, name: &str) -> Vec<u64> {
        let Small { hidden, ffn, heads, kv_heads, head_dim } = self.small;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        match name {
            "token_embd" | "output" => vec![hidden, self.vocab()],
            "attn_q" => vec![hidden, q],
            "attn_k" | "attn_v" => vec![hidden, kv],
            "attn_output" => vec![q, hidden],
            "ffn_gate" | "ffn_up" => vec![hidden, ffn],
            "ffn_down" => vec![ffn, hidden],
            "attn_q_norm" | "attn_k_norm" => vec![head_dim],
            "attn_sub_norm" | "attn_output_norm_in" => vec![q],
            "ffn_sub_norm" | "ffn_down_norm_in" => vec![ffn],
            _ => vec![hidden],
        }
    }

    /// Holds the parts of the fixture against each other: a slip of the pen in a fixture is not to pass
    /// for a property of the file.
    pub fn check(&self) {
        assert_eq!(self.keys.len() as u64, self.pairs, "pairs");
        assert_eq!(self.types.values().sum::<u64>(), self.tensors, "tensors");
        let layers = self.number("block_count").unwrap();
        let mut types = BTreeMap::new();
        let Order { first, layer, last, .. } = &self.order;
        for (rows, times) in [(first, 1), (layer, layers), (last, 1)] {
            for row in rows {
                *types.entry(name_and_type(row).1.name().to_owned()).or_default() += times;
            }
        }
        assert_eq!(types, self.types, "types");

        let [heads, kv_heads, hidden] =
            ["attention.head_count", "attention.head_count_kv", "embedding_length"]
                .map(|key| self.number(key).unwrap());
        let small = self.small;
        assert_eq!(heads * small.kv_heads, kv_heads * small.heads, "heads that share a key");
        // Where heads are as wide as the model, those of the small one are, too.
        let head_dim = self.number("attention.key_length").or(self.number("rope.dimension_count"));
        let as_wide = head_dim.is_none_or(|head_dim| heads * head_dim == hidden);
        assert_eq!(small.heads * small.head_dim == small.hidden, as_wide, "width of heads");
        for array in ["scores", "token_type"] {
            let length = self.value(&format!("tokenizer.ggml.{array}"));
            let length = length.map(|length| length.as_integer().unwrap() as u64);
            assert!(length.is_none_or(|length| length == self.vocab()), "{array}");
        }
        assert!(self.number("vocab_size").is_none_or(|size| size == self.vocab()), "vocab_size");
        assert!(self.runs.is_some() != self.refused.is_some(), "it either runs or is refused");
    }
}

/// Splits a row of the list of tensors.
fn name_and_type(row: &str) -> (&str, TensorType) {
    let (name, ty) = row.split_once(' ').unwrap();
    let found = TensorType::ALL.iter().find(|known| known.name() == ty);
    (name, *found.unwrap_or_else(|| panic!("{row}: no such type")))
}
