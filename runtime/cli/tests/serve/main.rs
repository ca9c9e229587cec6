//! The server as a black box: what its clients rely on, and what hostile ones try.

#[path = "../convert/folder.rs"]
#[allow(dead_code, reason = "it makes other folders, too")]
mod folder;
#[path = "../program/mod.rs"]
mod program;
mod server;

mod basic;
mod chain;
mod chat;
mod completion;
mod embeddings;
mod form;
mod hostile;
