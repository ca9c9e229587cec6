//! The engine thread: it owns the session, and writes all texts in passes that they share.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_runtime::cpu::head::screen::Needs;
use bitnet_runtime::cpu::session::{BatchToken, Session};
use bitnet_runtime::engine::Embedding;
use bitnet_runtime::engine::logprobs::logprobs;
use bitnet_runtime::engine::sequence::FinishReason;
use bitnet_runtime::error::{Error, Result};
use tokio::sync::mpsc::error::TrySendError;

use super::embedder::{Embedder, Ended};
use super::error::{ApiError, Kind};
use super::job::{
    CacheAction, CacheReply, Command, Ending, Event, Job, Piece, Progress, Returned, SlotState,
    Timings,
};
use super::metrics::Metrics;
use super::queue::Queue;
use super::schedule::{Load, Pace, shares};
use super::slots::Slots;
use crate::output::note;

/// Interval at which readers are looked at while there is nothing else to do.
const LOOK: Duration = Duration::from_millis(5);
/// Events that a text may add in one pass.
const EVENTS_A_PASS: usize = 3;
/// Tokens of a prompt in a pass whose probabilities are asked for, at most: their logits are 33 MB for
/// a vocabulary of 128,000.
const MOST_ROWS: usize = 64;
/// Passes that may fail within [`FAILURE_WINDOW`]; the next one ends the server.
const FAILURES: usize = 2;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);

/// A text that is being written.
#[derive(Debug)]
struct Active {
    job: Job,
    slot: usize,
    /// Tokens of the prompt that were in the cache.
    cached: usize,
    started: Instant,
    first: Option<Instant>,
    /// Time of the last token.
    last: Instant,
    /// Text that is not sent yet, and tokens that were.
    text: String,
    sent: usize,
    /// Time since which its reader has left no room for events.
    stalled: Option<Instant>,
}

impl Active {
    fn timings(&self, now: Instant) -> Timings {
        let first = self.first.unwrap_or(now);
        let stats = self.job.sequence.stats();
        Timings {
            cached: self.cached,
            prompt: self.job.prompt.len() - self.cached - self.job.sequence.prompt_left(),
            prompt_time: first - self.started,
            written: self.job.sequence.ids().len(),
            time: now - first,
            drafted: stats.drafted,
            accepted: stats.accepted,
        }
    }

    /// Progress of the prompt.
    fn progress(&self, now: Instant) -> Progress {
        Progress {
            total: self.job.prompt.len(),
            cache: self.cached,
            processed: self.job.prompt.len() - self.job.sequence.prompt_left(),
            time_ms: (now - self.started).as_secs_f64() * 1e3,
            timings: self.timings(now),
        }
    }

    /// Takes what is to be sent.
    fn piece(&mut self, now: Instant) -> Piece {
        let ids = self.job.sequence.ids()[self.sent..].to_vec();
        let logprobs = self.job.sequence.logprobs().get(self.sent..).unwrap_or_default().to_vec();
        self.sent += ids.len();
        Piece { text: std::mem::take(&mut self.text), ids, logprobs, timings: self.timings(now) }
    }

    /// Sends an event. One who has gone is found by the next sweep; there is room, as no pass is
    /// made without it.
    fn send(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.job.events.try_send(event) {
            debug_assert!(false, "a text took part in a pass without room for its events");
        }
    }

    fn has_room(&self) -> bool {
        self.job.events.capacity() >= EVENTS_A_PASS
    }
}

/// Tokens of a text in a pass.
struct Part {
    /// Number among the active ones.
    text: usize,
    /// Its first row of logits, in the pass.
    first_row: usize,
    /// Rows of the pass that are its prompt's, before that of its own next token.
    prompt_rows: usize,
    /// Tokens of its prompt in the pass; 0 where it is being written.
    prompt: usize,
}

/// The state of the engine thread.
#[derive(Debug)]
pub struct Serving {
    session: Session,
    slots: Slots,
    /// The last job of each slot.
    last_jobs: Vec<i64>,
    /// The oldest first.
    active: Vec<Active>,
    waiting: VecDeque<Job>,
    embedder: Embedder,
    /// True if requests for embeddings, which wait beside texts, get the next free slot.
    embeds_next: bool,
    /// Slots whose content is on its way to or from a file.
    away: usize,
    commands: Receiver<Command>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    pace: Pace,
    /// Time for which a reader may leave all its events unread.
    patience: Duration,
    failures: Vec<Instant>,
    /// Time at which all is to have ended, once no text is begun any more.
    drain: Option<Instant>,
}

impl Serving {
    /// Takes a session, each of whose sequences becomes a slot, and the time for which a reader may
    /// leave all its events unread.
    pub fn new(
        session: Session,
        commands: Receiver<Command>,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        patience: Duration,
    ) -> Self {
        let count = session.sequences();
        Self {
            slots: Slots::new(count),
            last_jobs: vec![-1; count],
            session,
            active: Vec::new(),
            waiting: VecDeque::new(),
            embedder: Embedder::default(),
            embeds_next: false,
            away: 0,
            commands,
            queue,
            metrics,
            pace: Pace::default(),
            patience,
            failures: Vec::new(),
            drain: None,
        }
    }

    /// Serves until it is told to end, and all texts have.
    ///
    /// # Errors
    /// [`Error::Runtime`] when passes keep failing.
    pub fn run(&mut self) -> Result<()> {
        loop {
            if !self.take_commands() {
                return Ok(());
            }
            self.sweep(Instant::now());
            self.admit_all();
            if let Some(end) = self.drain {
                let is_over = Instant::now() >= end;
                if is_over {
                    self.fail_all(&ApiError::new(
                        Kind::Unavailable,
                        "the server has ended before the text has",
                    ));
                }
                let is_done = self.active.is_empty() && self.embedder.is_empty();
                if is_done && (self.away == 0 || is_over) {
                    return Ok(());
                }
            }
            let pass = panic::catch_unwind(AssertUnwindSafe(|| self.passes()));
            let pass = pass.unwrap_or_else(|cause| Err(Error::Runtime(panicked(&*cause))));
            if let Err(error) = pass {
                self.recover(error)?;
            }
        }
    }

    /// Takes the orders that wait; where there is nothing else to do, waits for one. Returns false
    /// when none can come any more.
    fn take_commands(&mut self) -> bool {
        let is_idle = self.active.is_empty() && self.waiting.is_empty() && self.embedder.is_empty();
        if is_idle && self.drain.is_none() {
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return false,
            }
        } else if !self.active.iter().any(Active::has_room) && !self.embedder.runs() {
            match self.commands.recv_timeout(LOOK) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(job) if self.drain.is_some() => self.refuse(*job),
            Command::Submit(job) => {
                self.waiting.push_back(*job);
                self.tell_numbers();
            }
            Command::Embed(job) => {
                self.embedder.push(*job);
                if self.drain.is_some() {
                    self.refuse_embeddings();
                }
                self.tell_numbers();
            }
            // Who asked may have gone.
            Command::Slots(reply) => drop(reply.send(self.states())),
            Command::Cache { slot, action, back, reply } => self.cache(slot, action, back, reply),
            Command::Return(returned) => self.take_back(*returned),
            Command::Drain(end) => {
                self.drain = Some(end);
                for job in std::mem::take(&mut self.waiting) {
                    self.refuse(job);
                }
                self.refuse_embeddings();
                self.tell_numbers();
            }
        }
    }

    fn refuse(&self, job: Job) {
        self.queue.leave(None);
        drop(job.events.try_send(Event::Failed(about_to_end())));
    }

    fn refuse_embeddings(&mut self) {
        let ended = self.embedder.refuse_waiting(&about_to_end());
        self.end_embeddings(ended);
    }

    /// Empties and frees slots of texts of which embeddings were made.
    fn free_embedded(&mut self, slots: Vec<usize>) {
        for slot in slots {
            self.session.truncate_of(slot, 0);
            self.slots.free(slot);
        }
    }

    /// Gives back the places of requests for embeddings that have ended.
    fn end_embeddings(&mut self, ended: Vec<Ended>) {
        for Ended { slots, begun } in ended {
            self.free_embedded(slots);
            self.queue.leave(begun.map(|begun| begun.elapsed()));
        }
        self.tell_numbers();
    }

    /// Ends texts that nobody reads any more, or that have had their time, and requests for embeddings that
    /// nobody waits for.
    fn sweep(&mut self, now: Instant) {
        let unread = self.embedder.sweep();
        if !unread.is_empty() {
            unread.iter().for_each(|_| self.metrics.cancelled());
            self.end_embeddings(unread);
        }
        let (queue, waiting) = (&self.queue, self.waiting.len());
        self.waiting.retain(|job| {
            let is_wanted = !job.events.is_closed();
            if !is_wanted {
                queue.leave(None);
            }
            is_wanted
        });
        if self.waiting.len() < waiting {
            self.tell_numbers();
        }
        let mut number = 0;
        while let Some(active) = self.active.get_mut(number) {
            active.stalled = if active.has_room() { None } else { active.stalled.or(Some(now)) };
            let is_stalled = active.stalled.is_some_and(|since| now - since >= self.patience);
            let spent = active.first.map(|first| now - first);
            if active.job.events.is_closed() || is_stalled {
                if is_stalled {
                    note(format_args!(
                        "request {}: cancelled, its reader has stalled",
                        active.job.id
                    ));
                }
                self.metrics.cancelled();
                drop(self.remove(number));
                continue;
            }
            if active.has_room()
                && spent.zip(active.job.most_time).is_some_and(|(t, most)| t > most)
            {
                active.job.sequence.interrupt();
                self.finish(number, FinishReason::Interrupted, now);
                continue;
            }
            number += 1;
        }
    }

    /// Gives slots to texts and to requests for embeddings that wait; the next free one to either in turn.
    fn admit_all(&mut self) {
        if self.embeds_next {
            self.admit_embeddings(1);
        }
        self.admit();
        self.admit_embeddings(usize::MAX);
        self.embeds_next = !self.embeds_next;
    }

    /// Gives slots to up to `most` texts of which embeddings are to be made.
    fn admit_embeddings(&mut self, most: usize) {
        let Self { embedder, slots, session, last_jobs, metrics, .. } = self;
        let (running, now) = (embedder.in_slots(), Instant::now());
        embedder.admit(most, |job, is_first| {
            let slot = slots.choose(&[], None, false)?.slot;
            slots.occupy(slot);
            session.truncate_of(slot, 0);
            if let Some(slot) = slots.get_mut(slot) {
                slot.tokens.clear();
            }
            if let Some(last) = last_jobs.get_mut(slot) {
                *last = i64::try_from(job.id).unwrap_or(i64::MAX);
            }
            if is_first {
                let tokens = job.texts.iter().map(Embedding::len).sum();
                metrics.begun(now - job.received, tokens, 0);
            }
            Some(slot)
        });
        if embedder.in_slots() > running {
            self.tell_numbers();
        }
    }

    /// Gives slots to jobs that wait, the oldest first.
    fn admit(&mut self) {
        let mut number = 0;
        while let Some(job) = self.waiting.get(number) {
            if self.active.len() == self.session.sequences() {
                return;
            }
            let place = match job.after.is_some_and(|leader| self.is_before_text(leader)) {
                true => None,
                false => self.slots.choose(&job.prompt, job.slot, job.cache),
            };
            match place.and_then(|place| Some((place, self.waiting.remove(number)?))) {
                Some((place, job)) => self.begin(job, place.slot, place.cached, place.from),
                None => number += 1,
            }
        }
    }

    /// True while a job waits, or its prompt is not through the model.
    fn is_before_text(&self, job: u64) -> bool {
        self.waiting.iter().any(|waiting| waiting.id == job)
            || self
                .active
                .iter()
                .any(|active| active.job.id == job && active.job.sequence.prompt_left() > 0)
    }

    fn begin(&mut self, mut job: Job, slot: usize, cached: usize, from: Option<usize>) {
        let started = Instant::now();
        let copied = match from {
            Some(from) => self.session.copy_prefix(from, slot, cached),
            None => {
                self.session.truncate_of(slot, cached);
                Ok(())
            }
        };
        // Without the copy nothing is in the slot, which costs time only.
        let cached = if copied.is_ok() { cached } else { 0 };
        self.session.truncate_of(slot, cached);
        job.sequence.reuse(cached);
        self.slots.occupy(slot);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.tokens.clear();
            slot.tokens.extend_from_slice(&job.prompt[..cached]);
        }
        if let Some(last) = self.last_jobs.get_mut(slot) {
            *last = i64::try_from(job.id).unwrap_or(i64::MAX);
        }
        self.metrics.begun(started - job.received, job.prompt.len(), cached);
        let active = Active {
            job,
            slot,
            cached,
            started,
            first: None,
            last: started,
            text: String::new(),
            sent: 0,
            stalled: None,
        };
        active.send(Event::Started { slot });
        if active.job.tells_progress {
            active.send(Event::Progress(active.progress(started)));
        }
        self.active.push(active);
        self.tell_numbers();
    }

    /// Makes a pass for texts that are written and one for embeddings, where there are any.
    fn passes(&mut self) -> Result<()> {
        if self.active.iter().any(Active::has_room) {
            self.pass()?;
        }
        if self.embedder.runs() {
            self.embed()?;
        }
        Ok(())
    }

    /// Takes texts of which embeddings are to be made through the model, as many tokens as of prompts beside
    /// texts that are written.
    fn embed(&mut self) -> Result<()> {
        let start = Instant::now();
        let budget =
            self.pace.budget(Load { rows: self.active.len(), prompts: 1 }, self.session.batch());
        let passed = self.embedder.pass(&mut self.session, budget)?;
        let took = start.elapsed();
        self.pace.learn(0, passed.tokens, budget, took);
        self.metrics.passed(passed.texts, passed.tokens, 0, took);
        self.free_embedded(passed.slots);
        self.end_embeddings(passed.ended);
        Ok(())
    }

    /// Takes the next tokens of all texts whose readers have room through the model.
    fn pass(&mut self) -> Result<()> {
        let start = Instant::now();
        let context = self.session.context();
        let ready: Vec<bool> = self.active.iter().map(Active::has_room).collect();
        let is_prompt = |active: &Active| active.job.sequence.prompt_left() > 0;
        let each = || self.active.iter().zip(&ready).filter(|(_, ready)| **ready);
        let rows = each().filter(|(active, _)| !is_prompt(active)).count();
        let left: Vec<usize> = each()
            .map(|(active, _)| active.job.sequence.prompt_left())
            .filter(|&left| left > 0)
            .collect();
        let budget = self.pace.budget(Load { rows, prompts: left.len() }, self.session.batch());
        // Rows of a draft would hold up the texts beside it.
        let may_draft = rows == 1 && left.is_empty();
        let mut shares = shares(budget, &left).into_iter();

        let mut parts = Vec::with_capacity(self.active.len());
        let mut tokens = Vec::with_capacity(rows + budget.min(left.iter().sum()));
        let mut first_row = 0;
        let mut drafts = 0;
        let (mut ended, mut failed) = (Vec::new(), Vec::new());
        for (text, active) in self.active.iter_mut().enumerate().filter(|(text, _)| ready[*text]) {
            let share = if is_prompt(active) { shares.next().unwrap_or(0) } else { 0 };
            if share == 0 && is_prompt(active) {
                continue;
            }
            let tells = active.job.prompt_logprobs.is_some() && share > 0;
            let prompt = if tells { share.min(MOST_ROWS) } else { share };
            let room = context - self.session.position_of(active.slot);
            let room = if share > 0 || may_draft { room } else { room.min(1) };
            let wants = match active.job.sequence.wants(prompt, room) {
                Ok(Some(wants)) => wants,
                Ok(None) => {
                    ended.push(text);
                    continue;
                }
                // A grammar that is too much work, for example, is this text's alone.
                Err(error) => {
                    failed.push((text, error));
                    continue;
                }
            };
            if let Some(slot) = self.slots.get_mut(active.slot) {
                slot.tokens.extend_from_slice(wants.ids);
            }
            drafts += usize::from(share == 0 && wants.ids.len() > 1);
            let prompt_rows = if tells { wants.ids.len() - wants.rows } else { 0 };
            parts.push(Part { text, first_row, prompt_rows, prompt });
            first_row += prompt_rows + wants.rows;
            tokens.extend(wants.tokens(active.slot).map(|token| BatchToken {
                needs: token.needs.or(tells.then_some(Needs::ALL)),
                ..token
            }));
        }
        if !tokens.is_empty() {
            self.session.forward(&tokens)?;
        }
        drop(tokens);
        let through = Instant::now();
        let prompt: usize = parts.iter().map(|part| part.prompt).sum();
        self.pace.learn(rows, prompt, budget, through - start);
        if let ([part], true) = (&parts[..], may_draft) {
            self.active[part.text].job.sequence.took(through - start);
        }
        self.metrics.passed(parts.len(), prompt, drafts, through - start);
        for (text, error) in failed {
            self.active[text].send(Event::Failed(error.into()));
            self.active[text].job.sequence.interrupt();
            ended.push(text);
        }
        ended.extend(parts.iter().filter_map(|part| self.take(part, through)));
        ended.sort_unstable();
        for text in ended.into_iter().rev() {
            let reason = self.active[text].job.sequence.finish_reason();
            self.finish(text, reason.unwrap_or(FinishReason::Interrupted), through);
        }
        Ok(())
    }

    /// Gives a text its logits, and its reader what is new. Returns the text's number if it has ended.
    fn take(&mut self, part: &Part, now: Instant) -> Option<usize> {
        let active = &mut self.active[part.text];
        let session = &self.session;
        let own_row = part.first_row + part.prompt_rows;
        let accepted = active.job.sequence.accept(|row| session.logits(own_row + row));
        let held = session.position_of(active.slot) - *accepted.as_ref().unwrap_or(&0);
        self.session.truncate_of(active.slot, held);
        if let Some(slot) = self.slots.get_mut(active.slot) {
            slot.tokens.truncate(held);
        }
        if part.prompt > 0 && active.job.tells_progress {
            active.send(Event::Progress(active.progress(now)));
        }
        if let Some(top) = active.job.prompt_logprobs.filter(|_| part.prompt > 0) {
            // The row of a token is of the token behind it.
            let next = active.job.prompt.iter().skip(held + 1 - part.prompt);
            let rows = next.zip(part.first_row..part.first_row + part.prompt);
            let rows = rows.map(|(&id, row)| logprobs(self.session.logits(row), id, top));
            active.send(Event::Prompt(rows.collect()));
        }
        if let Err(error) = accepted {
            // This text alone is not numbers any more; none of its cache is to serve others.
            active.send(Event::Failed(error.into()));
            active.job.sequence.interrupt();
            let slot = active.slot;
            self.empty(slot);
            return Some(part.text);
        }
        let written = active.job.sequence.ids().len();
        if active.first.is_none() && active.job.sequence.prompt_left() == 0 {
            active.first = Some(now);
            self.metrics.first_token(now - active.job.received);
        } else if part.prompt == 0 {
            self.metrics.token(now - active.last);
        }
        active.last = now;
        active.text += &active.job.sequence.take_text();
        if active.job.sequence.finish_reason().is_some() {
            return Some(part.text);
        }
        if written > active.sent && !active.text.is_empty() {
            let piece = active.piece(now);
            active.send(Event::Piece(piece));
        }
        None
    }

    /// Frees the slot of a text, and tells its reader the end.
    fn finish(&mut self, number: usize, reason: FinishReason, now: Instant) {
        let mut active = self.remove(number);
        active.text += &active.job.sequence.take_text();
        let piece = active.piece(now);
        let held = self.session.position_of(active.slot);
        let stop_string = active.job.sequence.stop_string().map(str::to_owned);
        self.metrics.finished(&active.timings(now), held);
        // The last thing: who knows of the end may look at slots and numbers.
        active.send(Event::Done(Box::new(Ending { piece, reason, stop_string, held })));
    }

    /// Frees the slot of a text; what it holds stays.
    fn remove(&mut self, number: usize) -> Active {
        let active = self.active.remove(number);
        self.slots.free(active.slot);
        self.queue.leave(Some(active.started.elapsed()));
        self.tell_numbers();
        active
    }

    /// Notes how many texts there are, and the memory of their caches.
    fn tell_numbers(&self) {
        let processing = self.active.len() + self.embedder.in_slots();
        let waiting = self.waiting.len() + self.embedder.waiting();
        self.metrics.now(processing, waiting, self.session.kv_bytes());
    }

    fn empty(&mut self, slot: usize) {
        self.session.truncate_of(slot, 0);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.tokens.clear();
        }
    }

    /// Empties a slot, or has a thread of its own write what it holds to a file, or read it from one.
    /// Meanwhile the slot is busy, and the texts in others go on.
    fn cache(
        &mut self,
        slot: usize,
        action: CacheAction,
        back: Sender<Command>,
        reply: CacheReply,
    ) {
        let held = match self.free_slot(slot) {
            Ok(held) => held,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if matches!(action, CacheAction::Erase) {
            self.empty(slot);
            return drop(reply.send(Ok(held)));
        }
        let mut taken = match self.session.detach(slot) {
            Ok(taken) => taken,
            Err(error) => return drop(reply.send(Err(error.into()))),
        };
        self.slots.occupy(slot);
        let own = self.slots.get_mut(slot).map(|slot| std::mem::take(&mut slot.tokens));
        let mut tokens = own.unwrap_or_default();
        self.away += 1;
        let work = move || {
            let done = match action {
                CacheAction::Erase => Ok(()),
                CacheAction::Save(path) => {
                    taken.save(&tokens, &path).map_err(|error| refused(&path, &error))
                }
                CacheAction::Restore(path) => match taken.restore(&path) {
                    Ok(restored) => {
                        tokens = restored;
                        Ok(())
                    }
                    // Of a damaged file nothing is left.
                    Err(error) => {
                        tokens.truncate(taken.position());
                        Err(refused(&path, &error))
                    }
                },
            };
            let returned = Returned { slot, held: taken, tokens, done, reply };
            // An engine that has ended needs it no more.
            drop(back.send(Command::Return(Box::new(returned))));
        };
        if let Err(error) = thread::Builder::new().name("slot-file".into()).spawn(work) {
            // What was taken has gone with the thread that did not begin: the slot is empty.
            note(format_args!("slot {slot}: cannot begin a thread: {error}"));
            self.away -= 1;
            self.slots.free(slot);
        }
    }

    /// Puts what comes back from a file into its slot.
    fn take_back(&mut self, returned: Returned) {
        let Returned { slot, held, tokens, done, reply } = returned;
        self.away -= 1;
        self.slots.free(slot);
        let count = tokens.len();
        let attached = self.session.attach(slot, held).map_err(ApiError::from);
        if let Some(slot) = self.slots.get_mut(slot).filter(|_| attached.is_ok()) {
            slot.tokens = tokens;
        }
        // Who asked may have gone.
        drop(reply.send(attached.and(done).map(|()| count)));
    }

    /// The tokens that a slot holds, which must exist and be free.
    fn free_slot(&self, slot: usize) -> std::result::Result<usize, ApiError> {
        let count = self.session.sequences();
        match self.slots.get(slot) {
            Some(found) if !found.is_busy => Ok(found.tokens.len()),
            Some(_) => Err(ApiError::busy(format!("slot {slot} is busy"), 1)),
            None => Err(ApiError::text_field(
                "id_slot",
                &slot.to_string(),
                &format!("a number below {count}, the slots there are"),
            )),
        }
    }

    fn states(&self) -> Vec<SlotState> {
        let state = |(id, slot): (usize, &super::slots::Slot)| {
            let active = self.active.iter().find(|active| active.slot == id);
            SlotState {
                id,
                n_ctx: self.session.context(),
                speculative: active.is_some_and(|active| active.job.drafts),
                is_processing: slot.is_busy,
                id_task: self.last_jobs.get(id).copied().unwrap_or(-1),
                n_past: slot.tokens.len(),
                n_prompt_tokens: active.map_or(0, |active| active.job.prompt.len()),
                n_decoded: active.map_or(0, |active| active.job.sequence.ids().len()),
            }
        };
        self.slots.iter().enumerate().map(state).collect()
    }

    /// Fails all texts that are being written and all embeddings, and empties all slots.
    fn fail_all(&mut self, error: &ApiError) {
        let ended = self.embedder.fail(error);
        self.end_embeddings(ended);
        while !self.active.is_empty() {
            let active = self.remove(0);
            drop(active.job.events.try_send(Event::Failed(error.clone())));
        }
        for slot in 0..self.session.sequences() {
            self.empty(slot);
        }
    }

    /// Goes on after a pass that failed.
    ///
    /// # Errors
    /// The failure, if passes keep failing.
    fn recover(&mut self, error: Error) -> Result<()> {
        note(format_args!("error: {error}"));
        self.fail_all(&ApiError::new(Kind::Server, error.to_string()));
        let now = Instant::now();
        self.failures.retain(|&at| now - at < FAILURE_WINDOW);
        self.failures.push(now);
        if self.failures.len() > FAILURES { Err(error) } else { Ok(()) }
    }
}

fn about_to_end() -> ApiError {
    ApiError::busy("the server is about to end", 1)
}

/// The error for a file that a client has named, without the folder, which is the server's.
fn refused(path: &Path, error: &Error) -> ApiError {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let message = match error {
        Error::Io { source, action, .. } => format!("cannot {action}: {source}"),
        other => other.to_string(),
    };
    ApiError::invalid(format!("filename: {name}: {message}")).of("filename")
}

/// The message of a panic.
fn panicked(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().copied();
    let text = text.or_else(|| cause.downcast_ref::<String>().map(String::as_str));
    format!("the engine panicked: {}", text.unwrap_or("for an unknown reason"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use bitnet_runtime::cpu::observe::Observer;
    use bitnet_runtime::{Engine, Options, Sampling, Sequence, SequenceOptions, SessionOptions};
    use tokio::sync::mpsc;

    use super::super::job::EVENTS;
    use super::*;

    /// An observer that panics, in a worker, in some of the passes.
    #[derive(Debug, Default)]
    struct Fault {
        /// Calls until it panics, and calls in which it does so again; of the first layer.
        calls: AtomicUsize,
        panics_from: usize,
        panics: usize,
    }

    impl Observer for Fault {
        fn feed_forward(&self, layer: usize, _: usize, _: &[f32], _: &[i8]) {
            if layer == 0 {
                let call = self.calls.fetch_add(1, Ordering::Relaxed);
                let from = self.panics_from;
                assert!(!(from..from + self.panics).contains(&call), "a fault in a worker");
            }
        }

        fn head(&self, _: usize, _: &[f32]) {}
    }

    /// An observer that holds a pass until it is told to go on.
    #[derive(Debug)]
    struct Hold {
        /// Tokens that have come to the first layer, and the one at which it holds.
        tokens: AtomicUsize,
        at: usize,
        /// Says that it holds, and waits for word.
        holds: Sender<()>,
        go: Mutex<Receiver<()>>,
    }

    impl Observer for Hold {
        fn feed_forward(&self, layer: usize, _: usize, _: &[f32], _: &[i8]) {
            if layer == 0 && self.tokens.fetch_add(1, Ordering::Relaxed) == self.at {
                self.holds.send(()).unwrap();
                self.go.lock().unwrap().recv().unwrap();
            }
        }

        fn head(&self, _: usize, _: &[f32]) {}
    }

    /// An engine on the demo model, with an observer perhaps.
    fn serving(observer: Option<Arc<dyn Observer>>) -> (Engine, Sender<Command>, Serving) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/bard-11m.i2_s.gguf");
        let options = Options { threads: Some(1), ..Options::default() };
        let engine = Engine::open(path, options).unwrap();
        let options =
            SessionOptions { context: Some(256), sequences: 2, ..SessionOptions::default() };
        let mut session = engine.session(options).unwrap();
        session.observe(observer);
        let (commands, orders) = channel();
        let queue = Arc::new(Queue::new(2, 64));
        let patience = Duration::from_secs(3600);
        (engine, commands, Serving::new(session, orders, queue, Arc::default(), patience))
    }

    /// The same on a thread of its own.
    fn serve(
        observer: Arc<dyn Observer>,
    ) -> (Engine, Sender<Command>, thread::JoinHandle<Result<()>>) {
        let (engine, commands, mut serving) = serving(Some(observer));
        (engine, commands, thread::spawn(move || serving.run()))
    }

    /// Asks for a text of so many tokens.
    fn submit(
        engine: &Engine,
        commands: &Sender<Command>,
        prompt: Vec<u32>,
        tokens: usize,
    ) -> mpsc::Receiver<Event> {
        let tokenizer = Arc::clone(engine.tokenizer().unwrap());
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let options = SequenceOptions {
            tokens: Some(tokens),
            ignore_eos: true,
            ..SequenceOptions::default()
        };
        let sequence = Sequence::new(tokenizer, &prompt, sampling, options).unwrap();
        let (events, receiver) = mpsc::channel(EVENTS);
        let job = Job {
            id: 0,
            after: None,
            prompt,
            sequence,
            cache: false,
            slot: None,
            most_time: None,
            prompt_logprobs: None,
            tells_progress: false,
            drafts: false,
            events,
            received: Instant::now(),
        };
        commands.send(Command::Submit(Box::new(job))).unwrap();
        receiver
    }

    /// Asks for a text of 4 tokens after 3, and returns its last event.
    fn ask(engine: &Engine, commands: &Sender<Command>) -> Event {
        let mut receiver = submit(engine, commands, vec![9; 3], 4);
        let mut last = None;
        while let Some(event) = receiver.blocking_recv() {
            last = Some(event);
        }
        last.unwrap()
    }

    /// Tokens of [`ask`] that go through the model: the last one does not.
    const ASKED: usize = 3 + 3;

    #[test]
    fn r06_r07_a_text_ends_before_the_next_pass_when_its_reader_has_gone() {
        // In the second token that is written, and in the first pass of a prompt.
        for (prompt, at) in [(vec![9; 5], 6), (vec![9; 250], 0)] {
            let (holds, is_held) = channel();
            let (go, may_go) = channel();
            let go_on = Mutex::new(may_go);
            let hold = Arc::new(Hold { tokens: AtomicUsize::new(0), at, holds, go: go_on });
            let (engine, commands, thread) = serve(Arc::clone(&hold) as Arc<dyn Observer>);
            let receiver = submit(&engine, &commands, prompt, 5);
            is_held.recv().unwrap();
            drop(receiver);
            go.send(()).unwrap();
            let Event::Done(_) = ask(&engine, &commands) else { panic!("it was not written") };
            let tokens = hold.tokens.load(Ordering::Relaxed);
            // What was on its way, at most a pass; the rest of either text would be more.
            let pass = if at == 0 { 64 } else { 7 };
            assert_eq!(tokens, pass + ASKED);
            drop(commands);
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn texts_go_on_while_a_slot_is_written_to_a_file_or_read_from_one() {
        let (engine, commands, mut serving) = serving(None);
        let path = std::env::temp_dir().join(format!("bitnet-slot-{}", std::process::id()));
        let write = |serving: &mut Serving| {
            let _events = submit(&engine, &commands, vec![9; 20], 4);
            assert!(serving.take_commands());
            serving.admit();
            while !serving.active.is_empty() {
                serving.pass().unwrap();
            }
        };
        write(&mut serving);
        for action in [CacheAction::Save(path.clone()), CacheAction::Restore(path.clone())] {
            let (reply, mut answer) = tokio::sync::oneshot::channel();
            serving.cache(0, action, commands.clone(), reply);
            // Until the engine takes it back the slot is busy, and nobody's prefix.
            assert!(serving.states()[0].is_processing && serving.states()[0].n_past == 0);
            let (second, mut busy) = tokio::sync::oneshot::channel();
            serving.cache(0, CacheAction::Erase, commands.clone(), second);
            assert_eq!(busy.try_recv().unwrap().unwrap_err().status(), 503);
            assert_eq!(serving.slots.choose(&[9; 20], None, true).unwrap().slot, 1);
            while serving.away > 0 {
                // It comes when the file is whole.
                let command = serving.commands.recv().unwrap();
                serving.obey(command);
            }
            assert_eq!(answer.try_recv().unwrap(), Ok(23));
            assert_eq!(serving.states()[0].n_past, 23);
        }
        write(&mut serving);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn r30_a_fault_in_a_worker_fails_its_pass_alone() {
        let fault = Fault { panics_from: 4, panics: 1, ..Fault::default() };
        let (engine, commands, thread) = serve(Arc::new(fault));
        let Event::Failed(error) = ask(&engine, &commands) else { panic!("the text was written") };
        assert_eq!(error.json()["error"]["code"], 500);
        for _ in 0..3 {
            let Event::Done(ending) = ask(&engine, &commands) else { panic!("it was not written") };
            assert_eq!(ending.piece.timings.written, 4);
        }
        drop(commands);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn r30_faults_without_end_end_the_server() {
        let fault = Fault { panics_from: 0, panics: usize::MAX, ..Fault::default() };
        let (engine, commands, thread) = serve(Arc::new(fault));
        for _ in 0..=FAILURES {
            assert!(matches!(ask(&engine, &commands), Event::Failed(_)));
        }
        thread.join().unwrap().unwrap_err();
    }
}
