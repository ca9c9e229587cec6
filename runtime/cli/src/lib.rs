//! The program `bitnet-run`: a module for each subcommand, with its arguments and a `run`.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod bench;
pub mod chat;
pub mod compare;
pub mod completions;
mod controls;
pub mod convert;
pub mod doctor;
pub mod dummy;
pub mod embed;
pub mod energy;
pub mod flags;
pub mod inspect;
mod interrupt;
mod load;
pub mod output;
pub mod pack;
pub mod perplexity;
mod pieces;
mod prompt;
pub mod quantize;
mod rows;
pub mod run;
mod sampling;
pub mod serve;
mod ternary;
pub mod tokenize;
