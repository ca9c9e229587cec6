//! Answers made of texts: as one object when all have ended, or as events while they are written.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bitnet_runtime::engine::logprobs::TokenLogprobs;
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt as _};
use serde_json::Value;
use tokio::time::timeout;

use super::app::Text;
use super::error::{ApiError, Kind, Result};
use super::job::{Ending, Event, Piece, Progress};
use super::router::Account;

/// Time after which a client that hears nothing gets an empty comment. A stream begins with it, too,
/// if nothing has begun or failed until then.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A text that has ended.
#[derive(Debug)]
pub struct Written {
    /// The slot that served it.
    pub slot: usize,
    /// Number of its prompt.
    pub prompt: usize,
    pub text: String,
    pub ids: Vec<u32>,
    /// Probabilities of the prompt's tokens, from the second on, and of those written, where they are
    /// asked for.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    pub logprobs: Vec<TokenLogprobs>,
    pub ending: Ending,
}

/// Waits until all texts have ended.
///
/// # Errors
/// That of the first text that cannot be written.
pub async fn collect(texts: Vec<Text>, account: &Account) -> Result<Vec<Written>> {
    // All are read at once: one that is not read would stop.
    join_all(texts.into_iter().map(|text| collect_one(text, account))).await.into_iter().collect()
}

async fn collect_one(mut text: Text, account: &Account) -> Result<Written> {
    let (mut slot, mut whole, mut prompt_logprobs) = (0, Piece::default(), Vec::new());
    while let Some(event) = text.events.recv().await {
        match event {
            Event::Started { slot: found } => slot = found,
            Event::Progress(_) => {}
            Event::Prompt(rows) => prompt_logprobs.extend(rows),
            Event::Piece(piece) => add(&mut whole, piece),
            Event::Done(mut ending) => {
                add(&mut whole, std::mem::take(&mut ending.piece));
                let timings = whole.timings;
                account.add(timings.cached + timings.prompt, timings.written);
                let ending = Ending { piece: Piece { timings, ..Piece::default() }, ..*ending };
                return Ok(Written {
                    slot,
                    prompt: text.prompt,
                    text: whole.text,
                    ids: whole.ids,
                    prompt_logprobs,
                    logprobs: whole.logprobs,
                    ending,
                });
            }
            Event::Failed(error) => return Err(error),
        }
    }
    Err(gone())
}

fn add(whole: &mut Piece, piece: Piece) {
    whole.text += &piece.text;
    whole.ids.extend(piece.ids);
    whole.logprobs.extend(piece.logprobs);
    whole.timings = piece.timings;
}

fn gone() -> ApiError {
    ApiError::new(Kind::Unavailable, "the server has ended before the text has")
}

/// The form of the events of an answer.
pub trait Form: Send + 'static {
    /// The object for a text that begins, in a slot.
    fn started(&mut self, text: usize, slot: usize) -> Option<Value>;
    /// The object for a piece of a prompt that has been through the model.
    fn progress(&mut self, text: usize, progress: Progress) -> Option<Value>;
    /// The object for probabilities of the prompt's tokens.
    fn prompt(&mut self, text: usize, rows: Vec<TokenLogprobs>) -> Option<Value>;
    /// The objects for a piece of a text.
    fn piece(&mut self, text: usize, piece: Piece) -> Vec<Value>;
    /// The objects for the end of a text.
    fn done(&mut self, text: usize, ending: Ending) -> Vec<Value>;
    /// The objects behind all texts.
    fn end(&mut self) -> Vec<Value>;
    /// True if the line `[DONE]` ends the answer.
    fn says_done(&self) -> bool;
}

type Events = SelectAll<BoxStream<'static, (usize, Event)>>;

/// The events of a text, up to its last one.
fn events_of(text: Text) -> BoxStream<'static, (usize, Event)> {
    let Text { index, mut events, .. } = text;
    let mut is_over = false;
    let events = stream::poll_fn(move |cx| {
        if is_over {
            return Poll::Ready(None);
        }
        events.poll_recv(cx).map(|event| {
            let event = event.unwrap_or_else(|| Event::Failed(gone()));
            is_over = matches!(event, Event::Done(_) | Event::Failed(_));
            Some((index, event))
        })
    });
    events.boxed()
}

/// An answer under way.
struct Answer<F> {
    events: Events,
    form: F,
    account: Arc<Account>,
    /// Texts that have not ended.
    open: usize,
    /// Bytes that are to go out next.
    ready: VecDeque<String>,
}

/// Answers with events while the texts are written.
///
/// # Errors
/// What refuses the texts before anything has gone out.
pub async fn events<F: Form>(texts: Vec<Text>, form: F, account: Arc<Account>) -> Result<Response> {
    let open = texts.len();
    let events = stream::select_all(texts.into_iter().map(events_of));
    let mut answer = Answer { events, form, account, open, ready: VecDeque::new() };
    match timeout(KEEP_ALIVE, answer.events.next()).await {
        Ok(Some((_, Event::Failed(error)))) => return Err(error),
        Ok(Some((text, event))) => answer.take(text, event),
        Ok(None) | Err(_) => answer.ready.push_back(COMMENT.to_owned()),
    }
    let bytes = stream::unfold(answer, |mut answer| async move {
        let next = answer.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(next)), answer))
    });
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

const COMMENT: &str = ":\n\n";

impl<F: Form> Answer<F> {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.open == 0 {
                return None;
            }
            match timeout(KEEP_ALIVE, self.events.next()).await {
                Err(_) => return Some(COMMENT.to_owned()),
                Ok(None) => return None,
                Ok(Some((text, event))) => self.take(text, event),
            }
        }
    }

    fn take(&mut self, text: usize, event: Event) {
        let form = &mut self.form;
        let objects = match event {
            Event::Started { slot } => form.started(text, slot).into_iter().collect(),
            Event::Progress(progress) => form.progress(text, progress).into_iter().collect(),
            Event::Prompt(rows) => form.prompt(text, rows).into_iter().collect(),
            Event::Piece(piece) => form.piece(text, piece),
            Event::Done(ending) => {
                self.open -= 1;
                let timings = ending.piece.timings;
                self.account.add(timings.cached + timings.prompt, timings.written);
                let mut objects = form.done(text, *ending);
                if self.open == 0 {
                    objects.extend(form.end());
                }
                objects
            }
            Event::Failed(error) => {
                // Nothing follows an error: the other texts are cancelled.
                self.open = 0;
                self.events.clear();
                self.ready.push_back(line(&error.json()));
                return;
            }
        };
        self.ready.extend(objects.iter().map(line));
        if self.open == 0 && self.form.says_done() {
            self.ready.push_back("data: [DONE]\n\n".to_owned());
        }
    }
}

/// An event of an answer; JSON has no line ends of its own.
fn line(object: &Value) -> String {
    format!("data: {object}\n\n")
}
