//! OpenAI's route for texts that continue a prompt, `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::sequence::FinishReason;
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::{finish_reason, finite, prompt_text, timings, token_text, usage};
use super::app::{App, Loaded, aside, new_id};
use super::error::{ApiError, Result};
use super::fields::{Fields, object};
use super::job::{Ending, Piece, Progress, Timings};
use super::request::{Request, prompts};
use super::router::Account;
use super::stream::{Form, Written, collect, events};

/// Likely tokens to tell for each token, at most.
const MAX_LOGPROBS: i64 = 5;

/// `POST /v1/completions`
///
/// # Errors
/// 400 for a malformed request, 503 where there is no room.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(account): Extension<Arc<Account>>,
    request: HttpRequest,
) -> Result<Response> {
    app.writer()?;
    let body = app.body(request).await?;
    let (form, texts) = {
        let app = Arc::clone(&app);
        aside(move || {
            let form = read(&app, &body.bytes)?;
            let texts = app.submit(&form.request)?;
            Ok((form, texts))
        })
        .await?
    };
    if form.request.stream {
        return events(texts, form, account).await;
    }
    let written = collect(texts, &account).await?;
    Ok(Json(form.whole(&written)).into_response())
}

fn read(app: &App, body: &[u8]) -> Result<Completions> {
    let loaded = app.loaded()?;
    let object = object(body)?;
    let fields = Fields(&object);
    let prompt =
        fields.require("prompt", "a text, token ids, a list of both, or a list of these")?;
    let prompts = prompts(prompt, &loaded.tokenizer)?;
    if let Some(suffix) = fields.string("suffix")?.filter(|suffix| !suffix.is_empty()) {
        let found = super::error::quoted(suffix);
        return Err(ApiError::text_field("suffix", &found, "nothing: it is not offered"));
    }
    if let Some(best) = fields.integer("best_of", 1..=i64::from(u16::MAX))?.filter(|&best| best > 1)
    {
        let expected = "1, or nothing: it is not offered";
        return Err(ApiError::text_field("best_of", &best.to_string(), expected));
    }
    let mut request = Request::new(fields, prompts, loaded)?;
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
    request.logprobs = logprobs.and_then(|count| usize::try_from(count).ok());
    let echo = fields.is_set("echo")?;
    request.prompt_logprobs = echo && request.logprobs.is_some();
    Ok(Completions::new(request, echo, loaded))
}

/// The answer's form.
struct Completions {
    request: Request,
    /// True to put the prompt in front of the text.
    echo: bool,
    tokenizer: Arc<Tokenizer>,
    /// Bytes of each text that have been sent.
    sent: Vec<usize>,
    id: String,
    created: u64,
    fingerprint: String,
    /// Sums over the texts that have ended.
    cached: usize,
    written: usize,
    last: Timings,
}

impl Completions {
    fn new(request: Request, echo: bool, loaded: &Loaded) -> Self {
        Self {
            sent: vec![0; request.prompts.len() * request.choices],
            request,
            echo,
            tokenizer: Arc::clone(&loaded.tokenizer),
            id: new_id("cmpl-"),
            created: super::app::now(),
            fingerprint: loaded.model.fingerprint.clone(),
            cached: 0,
            written: 0,
            last: Timings::default(),
        }
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "choices": choices,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
            "object": "text_completion",
            "id": self.id,
        })
    }

    fn choice(index: usize, text: &str, logprobs: Value, reason: Option<FinishReason>) -> Value {
        json!({
            "text": text,
            "index": index,
            "logprobs": logprobs,
            "finish_reason": reason.map(finish_reason),
        })
    }

    /// The prompt of a text.
    fn prompt_of(&self, text: usize) -> &[u32] {
        &self.request.prompts[text / self.request.choices]
    }

    /// The probabilities of tokens that begin at so many bytes of a text; the first token of a prompt has
    /// none.
    fn logprobs(&self, first: Option<u32>, rows: &[TokenLogprobs], begin: usize) -> Value {
        if self.request.logprobs.is_none() {
            return Value::Null;
        }
        let text = |id| token_text(&self.tokenizer, id);
        let mut object = Logprobs::default();
        let mut offset = begin;
        if let Some(id) = first {
            object.push(&mut offset, text(id), Value::Null, Value::Null);
        }
        for row in rows {
            let top = row.top.iter().map(|&(id, logprob)| (text(id), finite(logprob).into()));
            let top: Map<String, Value> = top.collect();
            object.push(&mut offset, text(row.id), finite(row.logprob).into(), top.into());
        }
        json!(object)
    }

    /// Tokens of all prompts.
    fn prompt_tokens(&self) -> usize {
        self.request.prompts.iter().map(Vec::len).sum()
    }

    fn whole(&self, written: &[Written]) -> Value {
        let choices: Vec<Value> = written
            .iter()
            .enumerate()
            .map(|(index, written)| self.whole_choice(index, written))
            .collect();
        let counts = written.iter().map(|written| &written.ending.piece.timings);
        let cached = counts.clone().map(|timings| timings.cached).sum();
        let tokens = counts.clone().map(|timings| timings.written).sum();
        let mut object = self.object(choices.into());
        object["usage"] = usage(self.prompt_tokens(), cached, tokens);
        if let Some(last) = written.last() {
            object["timings"] = timings(&last.ending.piece.timings);
        }
        object
    }

    fn whole_choice(&self, index: usize, written: &Written) -> Value {
        let reason = Some(written.ending.reason);
        if !self.echo {
            let logprobs = self.logprobs(None, &written.logprobs, 0);
            return Self::choice(index, &written.text, logprobs, reason);
        }
        let prompt = self.prompt_of(index);
        let text = prompt_text(&self.tokenizer, prompt) + &written.text;
        let rows = [&*written.prompt_logprobs, &*written.logprobs].concat();
        Self::choice(index, &text, self.logprobs(prompt.first().copied(), &rows, 0), reason)
    }
}

/// Probabilities in OpenAI's old form.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn push(&mut self, offset: &mut usize, text: String, logprob: Value, top: Value) {
        self.text_offset.push(*offset);
        *offset += text.len();
        self.tokens.push(text);
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
    }
}

impl Form for Completions {
    fn started(&mut self, text: usize, _: usize) -> Option<Value> {
        if !self.echo || self.request.prompt_logprobs {
            return None;
        }
        let prompt = prompt_text(&self.tokenizer, self.prompt_of(text));
        Some(self.object(json!([Self::choice(text, &prompt, Value::Null, None)])))
    }

    fn progress(&mut self, text: usize, progress: Progress) -> Option<Value> {
        let mut object = self.object(json!([Self::choice(text, "", Value::Null, None)]));
        object["prompt_progress"] = json!(progress);
        if self.request.timings_per_token {
            object["timings"] = timings(&progress.timings);
        }
        Some(object)
    }

    fn prompt(&mut self, text: usize, rows: Vec<TokenLogprobs>) -> Option<Value> {
        let begin = self.sent[text];
        let first = self.prompt_of(text).first().copied().filter(|_| begin == 0);
        let ids: Vec<u32> = first.into_iter().chain(rows.iter().map(|row| row.id)).collect();
        let piece = prompt_text(&self.tokenizer, &ids);
        let logprobs = self.logprobs(first, &rows, begin);
        self.sent[text] += piece.len();
        Some(self.object(json!([Self::choice(text, &piece, logprobs, None)])))
    }

    fn piece(&mut self, text: usize, piece: Piece) -> Vec<Value> {
        let logprobs = self.logprobs(None, &piece.logprobs, self.sent[text]);
        self.sent[text] += piece.text.len();
        let mut object = self.object(json!([Self::choice(text, &piece.text, logprobs, None)]));
        if self.request.timings_per_token {
            object["timings"] = timings(&piece.timings);
        }
        vec![object]
    }

    fn done(&mut self, text: usize, ending: Ending) -> Vec<Value> {
        let Piece { text: last, logprobs, timings: counts, .. } = ending.piece;
        self.cached += counts.cached;
        self.written += counts.written;
        self.last = counts;
        let logprobs = self.logprobs(None, &logprobs, self.sent[text]);
        let choice = Self::choice(text, &last, logprobs, Some(ending.reason));
        let mut object = self.object(json!([choice]));
        object["timings"] = timings(&counts);
        vec![object]
    }

    fn end(&mut self) -> Vec<Value> {
        if !self.request.include_usage {
            return Vec::new();
        }
        let mut object = self.object(json!([]));
        object["usage"] = usage(self.prompt_tokens(), self.cached, self.written);
        object["timings"] = timings(&self.last);
        vec![object]
    }

    fn says_done(&self) -> bool {
        true
    }
}
