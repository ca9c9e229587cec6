//! Text generation in one call.

use std::sync::Arc;
use std::time::Duration;

use super::logprobs::TokenLogprobs;
use super::open::Engine;
use super::sampler::Sampling;
use super::sequence::{FinishReason, Sequence, SequenceOptions, SequenceStats};
use crate::cancel::Cancel;
use crate::cpu::session::SessionOptions;
use crate::error::Result;

/// Options of one generation.
#[derive(Clone, Default)]
pub struct GenerateOptions {
    /// Sampling of tokens.
    pub sampling: Sampling,
    /// Conditions that end the text.
    pub sequence: SequenceOptions,
    /// The KV cache.
    pub session: SessionOptions,
    /// Ends the text early: [`FinishReason::Interrupted`]. See
    /// [`Session::cancel_with`](crate::Session::cancel_with).
    pub cancel: Option<Cancel>,
}

impl std::fmt::Debug for GenerateOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerateOptions")
            .field("sampling", &self.sampling)
            .field("sequence", &self.sequence)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens written, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text, as it was streamed.
    pub text: String,
    /// Reason for which the text ended.
    pub finish_reason: FinishReason,
    /// The stop string that ended it, which is not part of the text.
    pub stop: Option<String>,
    /// Log probabilities of the tokens written, where [`SequenceOptions::logprobs`] asks for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Counts and times.
    pub stats: SequenceStats,
    /// Time spent packing weights amid the text, which is part of none of the times above.
    pub pack_time: Option<Duration>,
}

impl Engine {
    /// Continues a text. `on_text` gets each piece as soon as it is known; pieces are never empty and
    /// never split a character.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for options out of range or a prompt that does not fit into
    /// the context; those of [`Engine::step`].
    pub fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generation> {
        let tokenizer = self.tokenizer()?;
        let prompt = tokenizer.prompt(prompt)?;
        let limits = options.sequence.clone();
        let mut sequence =
            Sequence::new(Arc::clone(tokenizer), &prompt, options.sampling.clone(), limits)?;
        let mut session = self.session_for(prompt.len(), options.session)?;
        session.cancel_with(options.cancel.clone());
        let begins_mapped = !session.model().is_packed();
        let mut text = String::new();
        loop {
            let goes_on = self.step(&mut session, &mut sequence)?;
            let piece = sequence.take_text();
            if !piece.is_empty() {
                on_text(&piece);
                text += &piece;
            }
            if !goes_on {
                break;
            }
        }
        Ok(Generation {
            prompt,
            ids: sequence.ids().to_vec(),
            text,
            finish_reason: sequence.finish_reason().unwrap_or(FinishReason::Length),
            stop: sequence.stop_string().map(str::to_owned),
            logprobs: sequence.logprobs().to_vec(),
            stats: sequence.stats(),
            pack_time: self.pack_time().filter(|_| begins_mapped),
        })
    }
}
