//! Turns: texts one after another in a session, each of which is computed from where it differs from the last.

use std::path::Path;

use super::open::Engine;
use super::sampler::Sampling;
use super::sequence::{Sequence, SequenceOptions};
use crate::cancel::Cancel;
use crate::cpu::session::{Session, SessionOptions};
use crate::error::Result;

/// A session for the turns of a conversation. A turn's prompt is the whole conversation; what it has in
/// common with what the session holds is not computed again, which changes no number.
#[derive(Debug)]
pub struct Turns<'e> {
    engine: &'e Engine,
    session: Session,
    /// The tokens that the session holds.
    held: Vec<u32>,
    prompt: Vec<u32>,
    cached: usize,
}

impl<'e> Turns<'e> {
    /// Starts with nothing held.
    ///
    /// # Errors
    /// Those of [`Engine::session_for`].
    pub fn new(engine: &'e Engine, options: SessionOptions) -> Result<Self> {
        let session = engine.session_for(0, options)?;
        Ok(Self { engine, session, held: Vec::new(), prompt: Vec::new(), cached: 0 })
    }

    /// Begins a turn: a text behind `prompt`. At least the last token of the prompt is computed.
    ///
    /// # Errors
    /// Those of [`Sequence::new`] and [`Engine::model`].
    pub fn begin(
        &mut self,
        prompt: Vec<u32>,
        sampling: Sampling,
        options: SequenceOptions,
    ) -> Result<Sequence> {
        let tokenizer = self.engine.tokenizer()?.clone();
        let mut sequence = Sequence::new(tokenizer, &prompt, sampling, options)?;
        let common = self.held.iter().zip(&prompt).take_while(|(held, new)| held == new).count();
        self.cached = sequence.reuse(common);
        self.engine.prepare(&mut self.session, prompt.len() - self.cached)?;
        self.session.truncate(self.cached);
        self.held.truncate(self.cached);
        self.prompt = prompt;
        Ok(sequence)
    }

    /// Sets what ends a turn early, or nothing: see [`Session::cancel_with`].
    pub fn cancel_with(&mut self, cancel: Option<Cancel>) {
        self.session.cancel_with(cancel);
    }

    /// Runs [`Engine::step`] for the text begun last.
    ///
    /// # Errors
    /// Those of [`Engine::step`].
    pub fn step(&mut self, sequence: &mut Sequence) -> Result<bool> {
        let result = self.engine.step(&mut self.session, sequence);
        let (position, held) = (self.session.position(), self.held.len());
        self.held.truncate(position);
        let all = self.prompt.iter().chain(sequence.ids());
        self.held.extend(all.take(position).skip(held));
        result
    }

    /// Takes up what [`Turns::save`] wrote. Returns the number of tokens.
    ///
    /// # Errors
    /// Those of [`Session::restore`].
    pub fn restore(&mut self, path: &Path) -> Result<usize> {
        self.held = Vec::new();
        self.held = self.session.restore(0, path)?;
        Ok(self.held.len())
    }

    /// Writes what the session holds to a file.
    ///
    /// # Errors
    /// Those of [`Session::save`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.session.save(0, &self.held, path)
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Tokens of the prompt of the text begun last that were held already.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cached
    }
}
