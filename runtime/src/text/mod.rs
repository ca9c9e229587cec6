//! Text to tokens, and back.

pub mod chat;
mod end;
#[cfg(feature = "grammar")]
pub mod grammar;
#[cfg(not(feature = "grammar"))]
#[path = "no_grammar.rs"]
pub(crate) mod grammar;
pub mod pretokenize;
mod sentence_piece;
pub mod stop;
mod stream;
pub mod tokenizer;
mod vocabulary;
