//! Text to tokens, and back.

mod end;
pub(crate) mod pretokenize;
mod stream;
pub mod tokenizer;
mod vocabulary;
