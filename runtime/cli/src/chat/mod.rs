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
mod typist;

pub use command::{Args, ChatArgs};
pub(crate) use command::{OnOff, on_off_auto, run};
pub use parameters::Parameters;
pub use saved::Saved;
