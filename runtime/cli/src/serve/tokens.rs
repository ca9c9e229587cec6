//! Routes between texts and tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request as HttpRequest, State};
use bitnet_runtime::Chat;
use bitnet_runtime::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::answer::{prompt_text, token_bytes};
use super::app::{App, aside};
use super::error::{ApiError, Result};
use super::fields::{Fields, object};
use super::request::token;

/// `POST /tokenize`: `content` as llama.cpp has it, or `prompt` as vLLM has it.
///
/// # Errors
/// 400 for a malformed request.
pub async fn tokenize(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Json<Value>> {
    app.loaded()?;
    let body = app.body(request).await?;
    let answer = aside(move || {
        let loaded = app.loaded()?;
        let object = object(&body.bytes)?;
        let fields = Fields(&object);
        let tokenizer = &loaded.tokenizer;
        let parse_special = fields.boolean("parse_special")?.unwrap_or(true);
        let (text, begins) = match fields.string("content")? {
            Some(text) => (text, fields.is_set("add_special")?),
            None => {
                let text = fields.string("prompt")?;
                let text = text.ok_or_else(|| {
                    ApiError::text_field("content", "nothing", "a string, here or in prompt")
                })?;
                (text, fields.boolean("add_special_tokens")?.unwrap_or(true))
            }
        };
        let ids = tokenizer.encode(text, begins && tokenizer.add_bos(), parse_special)?;
        let count = ids.len();
        let tokens = match fields.is_set("with_pieces")? {
            true => {
                ids.iter().map(|&id| json!({"id": id, "piece": piece(tokenizer, id)})).collect()
            }
            false => json!(ids),
        };
        Ok(json!({"tokens": tokens, "count": count, "max_model_len": loaded.context}))
    });
    answer.await.map(Json)
}

/// A token's text; its bytes where these are no text.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = token_bytes(tokenizer, id);
    String::from_utf8(bytes).map_or_else(|bytes| json!(bytes.into_bytes()), Value::from)
}

/// `POST /detokenize`
///
/// # Errors
/// 400 for a malformed request.
pub async fn detokenize(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Json<Value>> {
    app.loaded()?;
    let body = app.body(request).await?;
    let answer = aside(move || {
        let loaded = app.loaded()?;
        let object = object(&body.bytes)?;
        let tokens = Fields(&object).require("tokens", "a list of token ids")?;
        let Some(items) = tokens.as_array() else {
            return Err(ApiError::field("tokens", tokens, "a list of token ids"));
        };
        let ids: Result<Vec<u32>> =
            items.iter().map(|item| token(item, &loaded.tokenizer)).collect();
        let text = prompt_text(&loaded.tokenizer, &ids?);
        Ok(json!({"content": text, "prompt": text}))
    });
    answer.await.map(Json)
}

/// `GET /tokenizer_info`, vLLM's: what lm-eval's remote tokenizer asks for.
///
/// # Errors
/// 503 while the model is loading.
pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let loaded = app.loaded()?;
    let tokenizer = &loaded.tokenizer;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    Ok(Json(json!({
        "tokenizer_class": "bitnet",
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos()),
        "pad_token": null,
        "unk_token": null,
        "chat_template": loaded.chat.as_ref().ok().map(Chat::template),
        "model_max_length": loaded.context,
    })))
}
