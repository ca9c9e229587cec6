//! llama.cpp's own route for texts, `/completion`.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use bitnet_runtime::engine::logprobs::TokenLogprobs;
use bitnet_runtime::engine::sequence::FinishReason;
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::answer::{prompt_text, settings, timings, token_logprobs, token_probs};
use super::app::{App, aside};
use super::error::{ApiError, Result};
use super::fields::{Fields, object};
use super::job::{Ending, Piece, Progress};
use super::request::{Request, prompts};
use super::router::Account;
use super::stream::{Form, Written, collect, events};

/// Likely tokens to tell for each token, at most.
const MAX_PROBABILITIES: i64 = 1024;

/// A request by this route.
#[derive(Clone, Debug)]
struct Native {
    request: Request,
    returns_tokens: bool,
    /// Fields of the answer that are asked for; empty: all.
    fields: Vec<String>,
}

/// `POST /completion`
///
/// # Errors
/// 400 for a malformed request, 503 where there is no room.
pub async fn completion(
    State(app): State<Arc<App>>,
    Extension(account): Extension<Arc<Account>>,
    request: HttpRequest,
) -> Result<Response> {
    app.writer()?;
    let body = app.body(request).await?;
    let (native, texts) = {
        let app = Arc::clone(&app);
        aside(move || {
            let native = read(&app, &body.bytes)?;
            let texts = app.submit(&native.request)?;
            Ok((native, texts))
        })
        .await?
    };
    if native.request.stream {
        let sent = vec![Sent::default(); texts.len()];
        return events(texts, NativeForm { native, app, sent }, account).await;
    }
    let written = collect(texts, &account).await?;
    let mut objects = Vec::with_capacity(written.len());
    for (index, written) in written.into_iter().enumerate() {
        let Written { slot, prompt, text, ids, logprobs, ending, .. } = written;
        let prompt = &native.request.prompts[prompt];
        let sent = Sent { slot, has_new_line: text.contains('\n') };
        let mut object = last(&app, &native, prompt, (index, sent), &ending)?;
        object.insert("content".into(), text.into());
        object.insert("tokens".into(), if native.returns_tokens { json!(ids) } else { json!([]) });
        if native.request.logprobs.is_some() {
            let rows = native.probabilities(&app.loaded_model()?.tokenizer, &logprobs);
            object.insert("completion_probabilities".into(), rows);
        }
        objects.push(Value::Object(chosen(object, &native.fields)));
    }
    Ok(match objects.len() {
        1 => Json(objects.remove(0)).into_response(),
        _ => Json(objects).into_response(),
    })
}

fn read(app: &App, body: &[u8]) -> Result<Native> {
    let loaded = app.loaded()?;
    let object = object(body)?;
    let fields = Fields(&object);
    let prompt =
        fields.require("prompt", "a text, token ids, a list of both, or a list of these")?;
    let prompts = prompts(prompt, &loaded.tokenizer)?;
    let chosen = fields.get("response_fields").map_or(Ok(Vec::new()), |value| {
        let names = value.as_array().map(|names| names.iter().map(|name| name.as_str()));
        let names = names.and_then(|names| names.map(|name| Some(name?.to_owned())).collect());
        names.ok_or_else(|| ApiError::field("response_fields", value, "a list of names"))
    })?;
    let mut request = Request::new(fields, prompts, loaded)?;
    let probabilities = fields.integer("n_probs", 0..=MAX_PROBABILITIES)?.unwrap_or(0);
    request.logprobs = usize::try_from(probabilities).ok().filter(|&count| count > 0);
    request.after_sampling = fields.is_set("post_sampling_probs")?;
    Ok(Native { request, returns_tokens: fields.is_set("return_tokens")?, fields: chosen })
}

impl Native {
    /// The probabilities of tokens.
    fn probabilities(&self, tokenizer: &Tokenizer, rows: &[TokenLogprobs]) -> Value {
        let row = match self.request.after_sampling {
            true => token_probs,
            false => token_logprobs,
        };
        rows.iter().map(|token| row(tokenizer, token)).collect()
    }
}

/// The fields of an answer to which `response_fields` narrows it; `a/b` is a field of a field, and
/// comes under its own name.
fn chosen(object: Map<String, Value>, names: &[String]) -> Map<String, Value> {
    if names.is_empty() {
        return object;
    }
    let object = Value::Object(object);
    let found = names.iter().filter_map(|name| {
        let value = object.pointer(&format!("/{name}"))?;
        let name = name.rsplit('/').next().unwrap_or(name);
        Some((name.to_owned(), value.clone()))
    });
    found.collect()
}

/// The fields that come with the end of a text.
fn last(
    app: &App,
    native: &Native,
    prompt: &[u32],
    (index, sent): (usize, Sent),
    ending: &Ending,
) -> Result<Map<String, Value>> {
    let loaded = app.loaded_model()?;
    let counts = ending.piece.timings;
    let request = &native.request;
    let is_truncated = request.is_truncated(prompt.len(), counts.written, loaded);
    let object = json!({
        "index": index,
        "content": "",
        "tokens": [],
        "id_slot": sent.slot,
        "stop": true,
        "model": request.model,
        "tokens_predicted": counts.written,
        "tokens_evaluated": prompt.len(),
        "generation_settings": settings(request, index % request.choices, &loaded.tokenizer),
        "prompt": prompt_text(&loaded.tokenizer, prompt),
        "has_new_line": sent.has_new_line,
        "truncated": is_truncated,
        "stop_type": stop_type(ending.reason),
        "stopping_word": ending.stop_string.as_deref().unwrap_or_default(),
        "tokens_cached": ending.held,
        "timings": timings(&counts),
    });
    match object {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

/// llama.cpp's word for the reason of an end.
fn stop_type(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "eos",
        FinishReason::StopString => "word",
        FinishReason::Length | FinishReason::Context | FinishReason::Interrupted => "limit",
    }
}

/// Facts about a text that come with its end.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    slot: usize,
    has_new_line: bool,
}

struct NativeForm {
    native: Native,
    app: Arc<App>,
    /// One for each text.
    sent: Vec<Sent>,
}

impl NativeForm {
    fn object(&mut self, text: usize, piece: &Piece) -> Value {
        self.sent[text].has_new_line |= piece.text.contains('\n');
        let mut object = json!({
            "index": text,
            "content": piece.text,
            "tokens": piece.ids,
            "stop": false,
            "id_slot": self.sent[text].slot,
            "tokens_predicted": piece.timings.written,
            "tokens_evaluated": piece.timings.cached + piece.timings.prompt,
        });
        if self.native.request.logprobs.is_some()
            && let Ok(loaded) = self.app.loaded_model()
        {
            let rows = self.native.probabilities(&loaded.tokenizer, &piece.logprobs);
            object["completion_probabilities"] = rows;
        }
        if self.native.request.timings_per_token {
            object["timings"] = timings(&piece.timings);
        }
        object
    }
}

impl Form for NativeForm {
    fn started(&mut self, text: usize, slot: usize) -> Option<Value> {
        self.sent[text].slot = slot;
        None
    }

    fn progress(&mut self, text: usize, progress: Progress) -> Option<Value> {
        let piece = Piece { timings: progress.timings, ..Piece::default() };
        let mut object = self.object(text, &piece);
        object["prompt_progress"] = json!(progress);
        Some(object)
    }

    fn prompt(&mut self, _: usize, _: Vec<TokenLogprobs>) -> Option<Value> {
        None
    }

    fn piece(&mut self, text: usize, piece: Piece) -> Vec<Value> {
        vec![self.object(text, &piece)]
    }

    fn done(&mut self, text: usize, ending: Ending) -> Vec<Value> {
        let mut objects = Vec::new();
        if !ending.piece.text.is_empty() || !ending.piece.logprobs.is_empty() {
            objects.push(self.object(text, &ending.piece));
        }
        let request = &self.native.request;
        let prompt = &request.prompts[text / request.choices];
        match last(&self.app, &self.native, prompt, (text, self.sent[text]), &ending) {
            Ok(object) => objects.push(Value::Object(chosen(object, &self.native.fields))),
            Err(error) => objects.push(error.json()),
        }
        objects
    }

    fn end(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn says_done(&self) -> bool {
        false
    }
}
