//! Conversation: `bitnet-run chat`, and `bitnet-run -cnv` as bitnet.cpp has it.
//!
//! A `talk::Talk` is a conversation and what answers it; `command` reads the flags and holds it for
//! one turn, `repl` until its user ends it.

mod command;
mod commands;
mod parameters;
mod repl;
mod saved;
mod screen;
mod talk;
mod template;
mod typist;

pub(crate) use command::run;
pub use command::{Args, ChatArgs};
pub use parameters::Parameters;
pub use saved::Saved;
pub(crate) use template::{CHAT, TemplateArgs};
