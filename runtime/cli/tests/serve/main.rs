//! The server as a black box: what its clients rely on, and what hostile ones try.

#[path = "../program/mod.rs"]
mod program;
mod server;

mod basic;
mod chat;
mod completion;
mod form;
mod hostile;
