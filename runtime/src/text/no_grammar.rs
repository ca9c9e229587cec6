//! What stands for a grammar's state where the library is built without grammars: there is never one.

use crate::cpu::head::screen::Needs;
use crate::error::Result;

/// The state of a grammar in one text.
#[derive(Debug)]
pub(crate) enum Matcher {}

impl Matcher {
    pub(crate) fn needs(&mut self) -> Result<Needs> {
        match *self {}
    }

    pub(crate) fn restrict(&mut self, _: &mut [f32]) -> Result<()> {
        match *self {}
    }

    pub(crate) fn allows(&self, _: u32) -> bool {
        match *self {}
    }

    pub(crate) fn is_complete(&mut self) -> bool {
        match *self {}
    }

    pub(crate) fn accept(&mut self, _: u32) -> Result<bool> {
        match *self {}
    }
}
