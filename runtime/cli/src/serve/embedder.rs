//! Requests for embeddings on the engine thread: each text takes a slot, and those in slots share passes.

use std::collections::VecDeque;
use std::time::Instant;

use bitnet_runtime::engine::Embedding;
use bitnet_runtime::{BatchToken, Result, Session};

use super::error::{ApiError, Kind};
use super::job::EmbeddingJob;

/// All requests for embeddings.
#[derive(Debug, Default)]
pub struct Embedder {
    /// The oldest first.
    jobs: VecDeque<Active>,
}

/// A request that waits, or whose texts go through the model.
#[derive(Debug)]
struct Active {
    job: EmbeddingJob,
    /// Slot of each text that was begun.
    slots: Vec<usize>,
    /// Time at which the first was.
    begun: Option<Instant>,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its slots, those of texts that are not through the model.
    pub slots: Vec<usize>,
    /// Time at which its first text was begun.
    pub begun: Option<Instant>,
}

/// Outcome of a pass.
#[derive(Debug, Default)]
pub struct Passed {
    /// Texts and tokens in it.
    pub texts: usize,
    pub tokens: usize,
    /// Slots of texts that are through the model.
    pub slots: Vec<usize>,
    /// Requests that have ended.
    pub ended: Vec<Ended>,
}

impl Active {
    /// Texts in slots, with the slot of each.
    fn running(&mut self) -> impl Iterator<Item = (&mut Embedding, usize)> {
        let texts = self.job.texts.iter_mut().zip(self.slots.iter().copied());
        texts.filter(|(text, _)| text.left() > 0)
    }

    fn running_slots(&self) -> impl Iterator<Item = usize> {
        let texts = self.job.texts.iter().zip(&self.slots);
        texts.filter(|(text, _)| text.left() > 0).map(|(_, &slot)| slot)
    }

    fn waits(&self) -> bool {
        self.slots.len() < self.job.texts.len()
    }

    fn end(self, result: std::result::Result<(), ApiError>) -> Ended {
        let ended = Ended { slots: self.running_slots().collect(), begun: self.begun };
        let EmbeddingJob { texts, normalisation, reply, .. } = self.job;
        let finished = || texts.into_iter().map(|text| text.finish(normalisation)).collect();
        // Who asked may have gone.
        drop(reply.send(result.map(|()| finished())));
        ended
    }
}

impl Embedder {
    /// Takes a request.
    pub fn push(&mut self, job: EmbeddingJob) {
        let slots = Vec::with_capacity(job.texts.len());
        self.jobs.push_back(Active { job, slots, begun: None });
    }

    /// True if there is no request.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// True if a text has a slot.
    pub fn runs(&self) -> bool {
        self.in_slots() > 0
    }

    /// Number of texts in slots.
    pub fn in_slots(&self) -> usize {
        self.jobs.iter().map(|active| active.running_slots().count()).sum()
    }

    /// Number of requests of which no text has been begun.
    pub fn waiting(&self) -> usize {
        self.jobs.iter().filter(|active| active.begun.is_none()).count()
    }

    /// Begins up to `most` texts, the oldest first, each in the slot that `place(job, first)` gives: `first`
    /// is true for the first text of a request.
    pub fn admit(
        &mut self,
        most: usize,
        mut place: impl FnMut(&EmbeddingJob, bool) -> Option<usize>,
    ) {
        let mut begun = 0;
        for active in self.jobs.iter_mut() {
            while begun < most && active.waits() {
                let Some(slot) = place(&active.job, active.begun.is_none()) else { return };
                active.slots.push(slot);
                active.begun.get_or_insert_with(Instant::now);
                begun += 1;
            }
        }
    }

    /// Takes texts in slots through the model, up to `budget` tokens of the oldest.
    ///
    /// # Errors
    /// Those of [`Session::forward`].
    pub fn pass(&mut self, session: &mut Session, budget: usize) -> Result<Passed> {
        let mut passed = Passed::default();
        let mut tokens: Vec<BatchToken<'_>> = Vec::new();
        let whole = !session.model().config().mask.causal;
        for (text, slot) in self.jobs.iter_mut().flat_map(Active::running) {
            let room = budget.saturating_sub(tokens.len());
            if room == 0 || whole && !tokens.is_empty() && text.left() > room {
                break;
            }
            tokens.extend(text.tokens(slot, if whole { usize::MAX } else { room }));
            passed.texts += 1;
        }
        if tokens.is_empty() {
            return Ok(passed);
        }
        passed.tokens = tokens.len();
        session.forward(&tokens)?;
        let mut row = 0;
        let texts = self.jobs.iter_mut().flat_map(Active::running).take(passed.texts);
        for (text, slot) in texts {
            row += text.accept(|own| session.hidden(row + own));
            if text.left() == 0 {
                passed.slots.push(slot);
            }
        }
        let is_done = |active: &Active| active.job.texts.iter().all(|text| text.left() == 0);
        passed.ended = self.end(is_done, || Ok(()));
        Ok(passed)
    }

    /// Ends requests that nobody waits for any more.
    pub fn sweep(&mut self) -> Vec<Ended> {
        let gone = || ApiError::new(Kind::Unavailable, "nobody waits for the answer");
        self.end(|active| active.job.reply.is_closed(), || Err(gone()))
    }

    /// Ends requests of which no text has been begun, with an error.
    pub fn refuse_waiting(&mut self, error: &ApiError) -> Vec<Ended> {
        self.end(|active| active.begun.is_none(), || Err(error.clone()))
    }

    /// Ends all requests with an error.
    pub fn fail(&mut self, error: &ApiError) -> Vec<Ended> {
        self.end(|_| true, || Err(error.clone()))
    }

    fn end(
        &mut self,
        is_over: impl Fn(&Active) -> bool,
        result: impl Fn() -> std::result::Result<(), ApiError>,
    ) -> Vec<Ended> {
        let (over, on): (VecDeque<Active>, VecDeque<Active>) =
            std::mem::take(&mut self.jobs).into_iter().partition(is_over);
        self.jobs = on;
        over.into_iter().map(|active| active.end(result())).collect()
    }
}
