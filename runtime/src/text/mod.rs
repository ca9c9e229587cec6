//! Text to tokens, and back.

mod pretokenize;
mod sentence_piece;
mod stream;
pub mod tokenizer;
mod vocabulary;
