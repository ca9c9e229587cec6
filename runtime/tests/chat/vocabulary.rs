//! A byte-level vocabulary with the special tokens of Llama 3 and ChatML, without a model.

use bitnet_runtime::file::gguf::{Array, Gguf, GgufWriter, Value};
use bitnet_runtime::text::tokenizer::byte_alphabet;

const SPECIAL: [&str; 7] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|im_start|>",
    "<|user|>",
];

pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
pub const EOT: u32 = 258;

/// A file with this vocabulary, and these pairs in place of its own or beside them.
pub fn file(pairs: &[(&str, Value)]) -> Gguf {
    let letters = byte_alphabet().map(String::from);
    let merged = ["he", "ll", "hell", "hello"].map(String::from);
    let tokens: Vec<String> =
        letters.into_iter().chain(SPECIAL.map(String::from)).chain(merged).collect();
    let kind = |id: usize| if (256..256 + SPECIAL.len()).contains(&id) { 3 } else { 1 };
    let types: Vec<i32> = (0..tokens.len()).map(kind).collect();
    let own = [
        ("general.architecture", Value::Str("bitnet-b1.58".into())),
        ("tokenizer.ggml.model", Value::Str("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Str("llama-bpe".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens.iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        (
            "tokenizer.ggml.merges",
            Value::Array(Array::Str(["h e", "l l", "he ll", "hell o"].into_iter().collect())),
        ),
        ("tokenizer.ggml.bos_token_id", Value::U32(BOS)),
        ("tokenizer.ggml.eos_token_id", Value::U32(EOS)),
    ];
    let mut writer = GgufWriter::new();
    let is_replaced = |key: &str| pairs.iter().any(|(other, _)| *other == key);
    for (key, value) in own.iter().filter(|(key, _)| !is_replaced(key)).chain(pairs) {
        writer.kv(key, value);
    }
    Gguf::from_bytes("small.gguf", writer.header()).unwrap()
}
