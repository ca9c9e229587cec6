//! Writes a text: prompt in, tokens out, one after the other.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::model::Session;
use crate::sampler::Sampler;
use crate::tokenizer::Tokenizer;

/// When to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens to generate; `None`: until the model ends the text or the context is full.
    pub tokens: Option<usize>,
    /// Never choose a token that ends the text.
    pub ignore_eos: bool,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
}

impl FinishReason {
    /// `stop`, `length` or `context`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
        }
    }
}

/// A text that was generated, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The tokens, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text, as it was streamed.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Taking the prompt through the model.
    pub prompt_time: Duration,
    /// From the first logits to the end: sampling, and `steps` tokens through the model.
    pub generation_time: Duration,
    /// Generated tokens that went through the model. The last one does not, because nothing
    /// follows it.
    pub steps: usize,
}

/// Continues `prompt`, which is appended to what `session` has seen. `on_text` gets each piece of
/// text as soon as it is known; pieces are never empty and never split a character.
///
/// # Errors
/// [`Error::Usage`] when the prompt is empty or does not fit into the context; what `on_text` and
/// the session return.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    limits: Limits,
    on_text: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Generation> {
    let room = session.context() - session.position();
    if prompt.len() > room {
        return Err(Error::usage(
            "prompt",
            format_args!("{} tokens", prompt.len()),
            format_args!("at most {room}, the context; shorten it or ask for a larger context"),
        ));
    }
    let start = Instant::now();
    prompt.iter().for_each(|&id| sampler.accept(id));
    let masked = if limits.ignore_eos { tokenizer.eos_ids() } else { &[] };
    let mut logits = session.prefill_for(prompt, &sampler.needs(masked))?;
    let prompt_time = start.elapsed();

    let start = Instant::now();
    let mut ids = Vec::new();
    let mut text = String::new();
    let mut decoder = tokenizer.stream();
    let mut emit = |piece: String| {
        text += &piece;
        if piece.is_empty() { Ok(()) } else { on_text(&piece) }
    };
    let mut without_end = Vec::new();
    let mut steps = 0;
    let finish_reason = loop {
        if limits.tokens.is_some_and(|most| ids.len() >= most) {
            break FinishReason::Length;
        }
        if ids.len() > steps {
            // The token chosen last has not been through the model yet.
            if session.position() == session.context() {
                break FinishReason::Context;
            }
            logits = session.decode_for(ids[steps], &sampler.needs(masked))?;
            steps += 1;
        }
        let id = if limits.ignore_eos {
            without_end.clear();
            without_end.extend_from_slice(logits);
            for &end in masked {
                if let Some(logit) = without_end.get_mut(end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            sampler.sample(&without_end)
        } else {
            sampler.sample(logits)
        };
        if !logits.get(id as usize).is_some_and(|logit| logit.is_finite()) {
            // Any text from here on would be made up.
            return Err(Error::Runtime(format!(
                "after {} tokens the model gives no numbers any more; the file may be damaged",
                session.position()
            )));
        }
        if tokenizer.eos_ids().contains(&id) && !limits.ignore_eos {
            break FinishReason::Stop;
        }
        sampler.accept(id);
        ids.push(id);
        emit(decoder.push(id))?;
    };
    emit(decoder.finish())?;
    let generation_time = start.elapsed();
    Ok(Generation { ids, text, finish_reason, prompt_time, generation_time, steps })
}
