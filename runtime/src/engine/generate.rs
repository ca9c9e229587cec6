//! Writes a text: prompt in, tokens out, one after the other.

use std::time::{Duration, Instant};

use crate::cpu::model::{BatchToken, Needs, Session};
use crate::engine::lookup::Lookup;
use crate::engine::sampler::Sampler;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// When to stop, and how far to look ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens to generate; `None`: until the model ends the text or the context is full.
    pub tokens: Option<usize>,
    /// Never choose a token that ends the text.
    pub ignore_eos: bool,
    /// Tokens to draft at once by prompt lookup, at most; 0: none. The text is the same.
    pub draft: usize,
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
    /// What was to be done before the second token, which counts as none of these.
    pub pause: Duration,
    /// Generated tokens that went through the model. The last one does not, because nothing
    /// follows it.
    pub steps: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// How many of them the sampler chose.
    pub accepted: usize,
}

/// Continues `prompt`, which is appended to what the first sequence of `session` has seen. `on_text`
/// gets each piece of text as soon as it is known; pieces are never empty and never split a character.
/// If a second token is wanted, `before_second` is called when the first has been written: there is time
/// for what the prompt did not need.
///
/// # Errors
/// [`Error::Usage`] when the prompt is empty or does not fit into the context; what `before_second`,
/// `on_text` and the session return.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    limits: Limits,
    before_second: &mut dyn FnMut(&mut Session) -> Result<()>,
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
    session.prefill_for(prompt, &sampler.needs(masked, &[]))?;
    let prompt_time = start.elapsed();
    let mut drafts = Drafts::new(limits.draft, prompt);

    let start = Instant::now();
    let mut ids = Vec::new();
    let mut text = String::new();
    let mut decoder = tokenizer.stream();
    let mut emit = |piece: String| {
        text += &piece;
        if piece.is_empty() { Ok(()) } else { on_text(&piece) }
    };
    let mut without_end = Vec::new();
    let (mut steps, mut pause) = (0, Duration::ZERO);
    let finish_reason = loop {
        if limits.tokens.is_some_and(|most| ids.len() >= most) {
            break FinishReason::Length;
        }
        if ids.len() > steps {
            // The token chosen last has not been through the model yet, unless it was drafted.
            if !drafts.foresaw(ids[steps]) {
                drafts.forget(session);
                if session.position() == session.context() {
                    break FinishReason::Context;
                }
                if steps == 0 {
                    let start = Instant::now();
                    before_second(session)?;
                    pause = start.elapsed();
                }
                // The last token of a text need not go through the model.
                let more = limits.tokens.map_or(usize::MAX, |most| most - ids.len() - 1);
                drafts.decode(session, ids[steps], more, |draft| sampler.needs(masked, draft))?;
            }
            steps += 1;
        }
        let logits = session.logits(drafts.row);
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
            drafts.forget(session);
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
        if let Err(error) = emit(decoder.push(id)) {
            drafts.forget(session);
            return Err(error);
        }
    };
    drafts.forget(session);
    emit(decoder.finish())?;
    let generation_time = start.elapsed() - pause;
    let Drafts { drafted, accepted, .. } = drafts;
    Ok(Generation {
        ids,
        text,
        finish_reason,
        prompt_time,
        generation_time,
        pause,
        steps,
        drafted,
        accepted,
    })
}

/// Tokens that go through the model before they are chosen.
struct Drafts {
    /// None where nothing is to be drafted.
    lookup: Option<Lookup>,
    /// Tokens to draft at once, at most.
    most: usize,
    /// What went through the model with the token chosen last, and as a batch with it.
    draft: Vec<u32>,
    batch: Vec<BatchToken>,
    /// The row of logits for the next token, which is the number of drafted tokens that were chosen.
    row: usize,
    drafted: usize,
    accepted: usize,
}

impl Drafts {
    fn new(most: usize, prompt: &[u32]) -> Self {
        let mut lookup = (most > 0).then(Lookup::default);
        if let Some(lookup) = &mut lookup {
            prompt.iter().for_each(|&id| lookup.push(id));
        }
        let (draft, batch) = (Vec::new(), Vec::new());
        Self { lookup, most, draft, batch, row: 0, drafted: 0, accepted: 0 }
    }

    /// Whether the token that was chosen is the next one of the draft: then it has been through the
    /// model, and the next row of logits is that after it.
    fn foresaw(&mut self, id: u32) -> bool {
        let foreseen = self.draft.get(self.row) == Some(&id);
        if foreseen {
            self.learn(id);
            self.row += 1;
            self.accepted += 1;
        }
        foreseen
    }

    /// Drops what was drafted and not chosen from the session.
    fn forget(&mut self, session: &mut Session) {
        let wrong = self.draft.len() - self.row;
        session.truncate(session.position() - wrong);
        self.draft.clear();
        self.row = 0;
    }

    /// Takes the token chosen last through the model, and with it a draft of those that follow, if
    /// that promises to be faster; at most `more`. `needs` says which logits a draft needs.
    fn decode(
        &mut self,
        session: &mut Session,
        id: u32,
        more: usize,
        needs: impl Fn(&[u32]) -> Needs,
    ) -> Result<()> {
        self.learn(id);
        let Some(lookup) = &mut self.lookup else {
            return session.decode_for(id, &needs(&[])).map(drop);
        };
        let room = session.context() - session.position() - 1;
        lookup.draft(self.most.min(more).min(room), &mut self.draft);
        self.drafted += self.draft.len();
        let all = [id].into_iter().chain(self.draft.iter().copied());
        self.batch.clear();
        self.batch.extend(all.map(|id| BatchToken { sequence: 0, id, logits: true }));
        let start = Instant::now();
        session.forward(&self.batch, &needs(&self.draft))?;
        lookup.took(self.batch.len(), start.elapsed());
        Ok(())
    }

    fn learn(&mut self, id: u32) {
        if let Some(lookup) = &mut self.lookup {
            lookup.push(id);
        }
    }
}
