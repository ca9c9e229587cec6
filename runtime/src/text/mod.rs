//! Text to tokens, and back.

mod pretokenize;
mod stream;
pub mod tokenizer;
mod vocabulary;
