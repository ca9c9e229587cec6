//! Sequence: one text on its way through a model, with its prompt, drafts, sampler, and end.
//!
//! A sequence runs nothing itself. It returns the tokens that are to go through the model next
//! ([`Sequence::wants`]) and takes the logits after them ([`Sequence::accept`]); [`Sequence::step`]
//! does both for a single text, and a scheduler does them for many in one pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::logprobs::{TokenLogprobs, logprobs};
use super::lookup::Lookup;
use super::sampler::{Sampler, Sampling};
use crate::cpu::head::screen::Needs;
use crate::cpu::session::{BatchToken, Session};
use crate::error::{Error, Result};
#[cfg(feature = "grammar")]
use crate::text::grammar::Grammar;
use crate::text::grammar::Matcher;
use crate::text::stop::StopStrings;
use crate::text::tokenizer::{StreamDecoder, Tokenizer};

/// Options of a sequence: its end, and what is to be known of it.
#[derive(Clone, Debug, Default)]
pub struct SequenceOptions {
    /// Most tokens to write; `None`: until the model ends the text or the context is full.
    pub tokens: Option<usize>,
    /// Never chooses a token that ends the text.
    pub ignore_eos: bool,
    /// Most tokens to draft at once by prompt lookup; 0: none. The text is the same.
    pub draft: usize,
    /// Texts that end the text where they appear; they are not part of it. See [`StopStrings`].
    pub stop: Vec<String>,
    /// Log probabilities are kept: of each token written, and of so many of the most likely ones in its
    /// place. Reads the whole head for each token.
    pub logprobs: Option<usize>,
    /// They are those of the draw itself, behind biases, penalties, temperature and all else that a sampler
    /// does: tokens that it rules out have none. Reads no more of the head than the sampler needs.
    pub after_sampling: bool,
    /// The grammar of the text: only tokens that go on within it are chosen, and the text ends where it is
    /// complete.
    #[cfg(feature = "grammar")]
    pub grammar: Option<Grammar>,
}

impl SequenceOptions {
    /// The state of the grammar at the beginning of the text.
    #[cfg(feature = "grammar")]
    fn matcher(&self, tokenizer: &Tokenizer) -> Result<Option<Matcher>> {
        self.grammar.as_ref().map(|grammar| grammar.matcher(tokenizer)).transpose()
    }

    #[cfg(not(feature = "grammar"))]
    fn matcher(&self, _: &Tokenizer) -> Result<Option<Matcher>> {
        Ok(None)
    }
}

/// Reason for which a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, by a token that ends a text, or its grammar is complete.
    Stop,
    /// A stop string appeared: [`Sequence::stop_string`].
    StopString,
    /// The requested number of tokens was written.
    Length,
    /// The context is full.
    Context,
    /// The caller ended it by [`Sequence::interrupt`].
    Interrupted,
}

impl FinishReason {
    /// Returns `stop`, `stop_string`, `length`, `context` or `interrupted`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Context => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Counts and times of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceStats {
    /// Time of the prompt in the model, by [`Sequence::step`].
    pub prompt_time: Duration,
    /// Time of all later steps: sampling, and `steps` tokens through the model.
    pub generation_time: Duration,
    /// Written tokens that went through the model. The last one does not, because nothing follows it.
    pub steps: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafted tokens that the sampler chose.
    pub accepted: usize,
}

/// Tokens that are to go through the model next, behind those that the sequence's place in the
/// session holds.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a> {
    /// The tokens, at least one.
    pub ids: &'a [u32],
    /// Number of tokens at the end that need logits; 0 inside of a prompt.
    pub rows: usize,
    /// The logits that each of these needs.
    pub needs: &'a Needs,
}

impl<'a> Wants<'a> {
    /// Returns the tokens for [`Session::forward`], in that sequence of the session.
    pub fn tokens(self, sequence: usize) -> impl Iterator<Item = BatchToken<'a>> {
        let first = self.ids.len() - self.rows;
        self.ids.iter().enumerate().map(move |(i, &id)| BatchToken {
            sequence,
            id,
            needs: (i >= first).then_some(self.needs),
        })
    }
}

/// One text.
#[derive(Debug)]
pub struct Sequence {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    options: SequenceOptions,
    /// Index for drafts; none where nothing is to be drafted.
    lookup: Option<Lookup>,
    /// Tokens that go through the model next: the rest of the prompt, or the token chosen last and
    /// a draft of those that follow it.
    pending: Vec<u32>,
    /// Number of `pending` tokens in the present step, and number of prompt tokens left.
    taken: usize,
    prompt_left: usize,
    needs: Needs,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    decoder: StreamDecoder,
    stops: StopStrings,
    matcher: Option<Matcher>,
    text: String,
    finish: Option<FinishReason>,
    stats: SequenceStats,
}

impl Sequence {
    /// Makes a text that begins with the tokens of `prompt`, at least one. [`Tokenizer::prompt`]
    /// makes them.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty prompt or sampling that is out of range.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        mut sampling: Sampling,
        mut options: SequenceOptions,
    ) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::usage("prompt", "no tokens", "at least one"));
        }
        let vocab = tokenizer.vocab_size();
        if let Some(id) = sampling.logit_bias.keys().find(|id| **id as usize >= vocab) {
            let expected = format!("token ids below {vocab}");
            return Err(Error::usage("logit_bias", id, expected));
        }
        if options.ignore_eos {
            sampling
                .logit_bias
                .extend(tokenizer.eos_ids().iter().map(|&id| (id, f32::NEG_INFINITY)));
        }
        let mut sampler = Sampler::new(sampling)?;
        let mut lookup = (options.draft > 0).then(Lookup::default);
        for &id in prompt {
            sampler.accept(id);
            lookup.iter_mut().for_each(|lookup| lookup.push(id));
        }
        Ok(Self {
            stops: StopStrings::new(std::mem::take(&mut options.stop)),
            matcher: options.matcher(&tokenizer)?,
            tokenizer,
            sampler,
            options,
            lookup,
            pending: prompt.to_vec(),
            taken: 0,
            prompt_left: prompt.len(),
            needs: Needs::All,
            ids: Vec::new(),
            logprobs: Vec::new(),
            decoder: StreamDecoder::default(),
            text: String::new(),
            finish: None,
            stats: SequenceStats::default(),
        })
    }

    /// Says that a sequence of the session holds tokens already, of which the first `held` are those of the
    /// prompt, before any has gone through the model. Returns how many of them are used, after which the
    /// sequence of the session is to be cut off: one less than the prompt at most, as the last token goes
    /// through the model for the logits after it.
    pub fn reuse(&mut self, held: usize) -> usize {
        let used = held.min(self.prompt_left.saturating_sub(1));
        self.pending.drain(..used);
        self.prompt_left -= used;
        used
    }

    /// Tokens of the prompt that are still to go through the model.
    #[must_use]
    pub fn prompt_left(&self) -> usize {
        self.prompt_left
    }

    /// Returns the tokens that are to go through the model next, at most `most` of a prompt, where
    /// its sequence of the session has `room` for so many; `None` when the text has ended.
    ///
    /// # Errors
    /// [`Error::Usage`] when the prompt does not fit into the context.
    pub fn wants(&mut self, most: usize, room: usize) -> Result<Option<Wants<'_>>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        if self.prompt_left > room {
            return Err(Error::usage(
                "prompt",
                format_args!("{} tokens", self.prompt_left),
                format_args!("at most {room}, the context; shorten it or ask for a larger context"),
            ));
        }
        if self.prompt_left > 0 {
            self.taken = self.prompt_left.min(most.max(1));
        } else if room == 0 {
            self.end(FinishReason::Context);
            return Ok(None);
        } else {
            self.draft(room - 1);
            self.taken = self.pending.len();
        }
        let rows = match self.prompt_left {
            0 => self.taken,
            left => usize::from(self.taken == left),
        };
        if rows > 0 {
            let draft = if self.prompt_left > 0 { &[] } else { &self.pending[1..] };
            self.needs = match &mut self.matcher {
                _ if self.options.logprobs.is_some() && !self.options.after_sampling => Needs::All,
                None => self.sampler.needs(draft),
                Some(matcher) if draft.is_empty() => matcher.needs()?,
                // Which tokens may follow each of the draft is not known yet.
                Some(_) => Needs::All,
            };
        }
        Ok(Some(Wants { ids: &self.pending[..self.taken], rows, needs: &self.needs }))
    }

    /// Drafts up to `room` tokens that may follow the token chosen last.
    fn draft(&mut self, room: usize) {
        self.pending.truncate(1);
        let Some(lookup) = &self.lookup else { return };
        // The last token of a text need not go through the model.
        let more = self.options.tokens.map_or(usize::MAX, |most| most - self.ids.len() - 1);
        lookup.draft(self.options.draft.min(more).min(room), &mut self.pending);
        self.stats.drafted += self.pending.len() - 1;
    }

    /// Learns how long the tokens wanted last took in the model, where nothing else went with them: how many
    /// tokens a draft has depends on it. Before [`Sequence::accept`].
    pub fn took(&mut self, time: Duration) {
        if let Some(lookup) = self.lookup.as_mut().filter(|_| self.prompt_left == 0) {
            lookup.took(self.taken, time);
        }
    }

    /// Takes the logits after the tokens that were wanted last: `logits(row)` are those of the
    /// `row`-th token that needs any. Returns how many of the tokens, drafted ones that were not
    /// chosen, are to be cut off the end of the sequence in the session again.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the model no longer gives numbers.
    pub fn accept<'l>(&mut self, logits: impl Fn(usize) -> &'l [f32]) -> Result<usize> {
        if self.prompt_left > 0 {
            self.pending.drain(..self.taken);
            self.prompt_left -= self.taken;
            if self.prompt_left > 0 {
                return Ok(0);
            }
            if self.options.tokens == Some(0) {
                self.end(FinishReason::Length);
            } else if let Some(id) = self.choose(logits(0))? {
                self.pending.push(id);
            }
            return Ok(0);
        }
        self.stats.steps += 1;
        let mut row = 0;
        self.learn(self.pending[0]);
        while let Some(id) = self.choose(logits(row))? {
            // A correct draft has been through the model, and the next row follows it.
            if self.pending.get(row + 1) != Some(&id) {
                self.pending.clear();
                self.pending.push(id);
                return Ok(self.taken - row - 1);
            }
            self.learn(id);
            self.stats.steps += 1;
            self.stats.accepted += 1;
            row += 1;
        }
        Ok(self.taken - row - 1)
    }

    /// Chooses the next token of the text; none where it ends, before or with it.
    fn choose(&mut self, logits: &[f32]) -> Result<Option<u32>> {
        let id = match &mut self.matcher {
            None => self.sampler.sample(logits),
            Some(matcher) => {
                let mut found = Ok(());
                let id =
                    self.sampler.sample_changed(logits, |logits| found = matcher.restrict(logits));
                found?;
                id
            }
        };
        let is_odd = logits.iter().fold(false, |odd, logit| odd | logit.is_nan());
        let is_ruled_out = |matcher: &Matcher| !matcher.allows(id);
        if !is_odd && (self.sampler.bans(id) || self.matcher.as_ref().is_some_and(is_ruled_out)) {
            // Nothing is left to choose from.
            if self.matcher.as_mut().is_some_and(Matcher::is_complete) {
                self.end(FinishReason::Stop);
                return Ok(None);
            }
            let expected = "a token that may be chosen; ban fewer";
            let found = "-inf for every token that could come next";
            return Err(Error::usage("logit_bias", found, expected));
        }
        if is_odd || !logits.get(id as usize).is_some_and(|logit| logit.is_finite()) {
            // Any further text would be made up.
            return Err(Error::Runtime(format!(
                "after {} tokens of text the model gives no numbers any more; the file may be damaged",
                self.ids.len()
            )));
        }
        if self.tokenizer.eos_ids().contains(&id) {
            self.end(FinishReason::Stop);
            return Ok(None);
        }
        self.sampler.accept(id);
        self.ids.push(id);
        if let Some(top) = self.options.logprobs {
            self.logprobs.push(match self.options.after_sampling {
                true => self.sampler.logprobs(id, top),
                false => logprobs(logits, id, top),
            });
        }
        let piece = self.decoder.push(&self.tokenizer, id);
        if self.stops.push(&piece, &mut self.text) {
            self.end(FinishReason::StopString);
            return Ok(None);
        }
        if let Some(matcher) = &mut self.matcher
            && matcher.accept(id)?
        {
            self.end(FinishReason::Stop);
            return Ok(None);
        }
        if self.options.tokens.is_some_and(|most| self.ids.len() >= most) {
            self.end(FinishReason::Length);
            return Ok(None);
        }
        Ok(Some(id))
    }

    fn end(&mut self, reason: FinishReason) {
        self.stops.push(&self.decoder.finish(), &mut self.text);
        let is_stopped = self.stops.finish(&mut self.text);
        self.finish = Some(if is_stopped { FinishReason::StopString } else { reason });
    }

    fn learn(&mut self, id: u32) {
        if let Some(lookup) = &mut self.lookup {
            lookup.push(id);
        }
    }

    /// Ends the text where it is, unless it has ended.
    pub fn interrupt(&mut self) {
        if self.finish.is_none() {
            self.end(FinishReason::Interrupted);
        }
    }

    /// Takes the tokens wanted next through the model, in the first sequence of a session: a batch
    /// of the prompt, or a token and its draft. Returns false when the text has ended, which
    /// [`Session::cancel_with`] may bring about. After an error, and where it ends so, the session holds
    /// what it held before.
    ///
    /// # Errors
    /// Those of [`Sequence::wants`], [`Session::forward`] and [`Sequence::accept`].
    pub fn step(&mut self, session: &mut Session) -> Result<bool> {
        let room = session.context() - session.position();
        let is_prompt = self.prompt_left > 0;
        let start = Instant::now();
        if session.is_cancelled() {
            self.interrupt();
        }
        let Some(wants) = self.wants(session.batch(), room)? else { return Ok(false) };
        let passed = match *wants.ids {
            [id] if wants.rows == 1 => session.decode_for(id, wants.needs).map(|_| ()),
            _ => session.forward(&wants.tokens(0).collect::<Vec<_>>()),
        };
        match passed {
            Err(Error::Interrupted) => {
                self.interrupt();
                return Ok(false);
            }
            passed => passed?,
        }
        let through = Instant::now();
        self.took(through - start);
        let accepted = self.accept(|row| session.logits(row));
        session.truncate(session.position() - *accepted.as_ref().unwrap_or(&self.taken));
        let stats = &mut self.stats;
        let model = if is_prompt { &mut stats.prompt_time } else { &mut stats.generation_time };
        *model += through - start;
        stats.generation_time += through.elapsed();
        accepted.map(|_| true)
    }

    /// Returns the text written since the last call: it never splits a character, and no part of it can
    /// become a stop string.
    pub fn take_text(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// The tokens written so far, without the one that ended the text; those of a stop string included.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The log probabilities of [`Sequence::ids`], where [`SequenceOptions::logprobs`] asks for them.
    #[must_use]
    pub fn logprobs(&self) -> &[TokenLogprobs] {
        &self.logprobs
    }

    /// The stop string that ended the text, if one did.
    #[must_use]
    pub fn stop_string(&self) -> Option<&str> {
        self.stops.found()
    }

    /// Most tokens that may still be written; `None` where there is no limit.
    #[must_use]
    pub fn remaining(&self) -> Option<usize> {
        self.options.tokens.map(|most| most.saturating_sub(self.ids.len()))
    }

    /// The reason for which the text ended, if it has.
    #[must_use]
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Counts and times so far.
    #[must_use]
    pub fn stats(&self) -> SequenceStats {
        self.stats
    }
}
