//! Text to tokens, and back.

mod end;
pub(crate) mod pretokenize;
mod sentence_piece;
pub mod stop;
mod stream;
pub mod tokenizer;
mod vocabulary;
