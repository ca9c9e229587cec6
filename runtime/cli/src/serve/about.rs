//! Routes about the server: its health, model, settings, slots and numbers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, Query, Request as HttpRequest, State};
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bitnet_runtime::Chat;
use serde_json::{Value, json};

use super::answer::sampler_settings;
use super::app::App;
use super::error::{ApiError, Kind, Result, quoted};
use super::fields::{Fields, object};
use super::job::{CacheAction, Command, SlotState};

/// `GET /health`
///
/// # Errors
/// 503 while the model is loading, and once the server is about to end.
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    app.loaded()?;
    Ok(Json(json!({"status": "ok"})))
}

/// `GET /v1/models`
///
/// # Errors
/// 503 while the model is loading.
pub async fn models(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let loaded = app.loaded()?;
    let model = &loaded.model;
    let meta = json!({
        "vocab_type": if model.is_sentence_piece { 1 } else { 2 },
        "n_vocab": model.vocabulary,
        "n_ctx": loaded.context,
        "n_ctx_train": model.trained_context,
        "n_embd": model.width,
        "n_params": model.parameters,
        "size": model.bytes,
    });
    let capabilities = match (loaded.no_texts, &loaded.chat, loaded.tools) {
        (Some(_), ..) => json!(["embedding"]),
        (None, Err(_), _) => json!(["completion", "embedding"]),
        (None, Ok(_), None) => json!(["completion", "chat", "embedding"]),
        (None, Ok(_), Some(_)) => json!(["completion", "chat", "tools", "embedding"]),
    };
    Ok(Json(json!({
        "object": "list",
        "data": [{
            "id": model.alias,
            "name": model.alias,
            "aliases": model.aliases,
            "object": "model",
            "created": model.created,
            "owned_by": "bitnet",
            "meta": meta,
        }],
        "models": [{
            "name": model.alias,
            "model": model.alias,
            "type": "model",
            "capabilities": capabilities,
            "details": {"format": "gguf"},
        }],
    })))
}

/// `GET /props`
///
/// # Errors
/// 503 while the model is loading.
pub async fn props(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let loaded = app.loaded()?;
    let tokenizer = &loaded.tokenizer;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    // llama.cpp's word for another seed each time.
    let seed = loaded.seed.unwrap_or_else(|| u32::MAX.into());
    let mut params = sampler_settings(&loaded.sampling, seed);
    params.insert("n_predict".into(), loaded.predict.map_or(-1, |tokens| tokens as i64).into());
    params.insert("stop".into(), json!(loaded.stop));
    Ok(Json(json!({
        "default_generation_settings": {
            "n_ctx": loaded.context,
            "params": params,
        },
        "total_slots": loaded.slots,
        "model_alias": loaded.model.alias,
        "model_path": loaded.model.path,
        "chat_template": loaded.chat.as_ref().map_or("", Chat::template),
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos()),
        "build_info": loaded.model.fingerprint,
        "modalities": {"vision": false, "audio": false},
    })))
}

/// `GET /slots`
///
/// # Errors
/// 501 with `--no-slots`, 503 while the model is loading, or, where that is asked for, where no slot is
/// free.
pub async fn slots(
    State(app): State<Arc<App>>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<SlotState>>> {
    app.loaded()?;
    if !app.settings.tells_slots {
        return Err(ApiError::new(
            Kind::NotSupported,
            "/slots is not offered: the server was started with --no-slots",
        ));
    }
    let slots = app.ask(Command::Slots).await?;
    let needs_one = query.get("fail_on_no_slot").is_some_and(|value| value != "0");
    if needs_one && slots.iter().all(|slot| slot.is_processing) {
        return Err(ApiError::busy("no slot is free", 1));
    }
    Ok(Json(slots))
}

/// `POST /slots/{id}?action=save|restore|erase`
///
/// # Errors
/// 400 for a slot, an action or a file that does not exist, 501 without `--slot-save-path`, 503 for a
/// slot that is busy.
pub async fn slot_action(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: HttpRequest,
) -> Result<Json<Value>> {
    let loaded = app.loaded()?;
    let slot = id.parse::<usize>().ok().filter(|&id| id < loaded.slots).ok_or_else(|| {
        let expected = format!("a number below {}, the slots there are", loaded.slots);
        ApiError::text_field("id_slot", &quoted(&id), &expected)
    })?;
    let action = query.get("action").map(String::as_str);
    let start = Instant::now();
    let ms = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    match action {
        Some("erase") => {
            let erased = app.cache(slot, CacheAction::Erase).await?;
            Ok(Json(json!({"id_slot": slot, "n_erased": erased})))
        }
        Some("save") => {
            let (name, path) = file(&app, request).await?;
            let saved = app.cache(slot, CacheAction::Save(path.clone())).await?;
            let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
            Ok(Json(json!({
                "id_slot": slot,
                "filename": name,
                "n_saved": saved,
                "n_written": bytes,
                "timings": {"save_ms": ms(start)},
            })))
        }
        Some("restore") => {
            let (name, path) = file(&app, request).await?;
            let restored = app.cache(slot, CacheAction::Restore(path.clone())).await?;
            let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
            Ok(Json(json!({
                "id_slot": slot,
                "filename": name,
                "n_restored": restored,
                "n_read": bytes,
                "timings": {"restore_ms": ms(start)},
            })))
        }
        other => {
            let found = other.map_or("nothing".to_owned(), quoted);
            Err(ApiError::text_field("action", &found, "save, restore or erase"))
        }
    }
}

/// The file that a request names, in the folder for such files.
async fn file(app: &App, request: HttpRequest) -> Result<(String, PathBuf)> {
    /// Bytes of a name, at most.
    const LONGEST: usize = 128;
    let Some(folder) = &app.settings.slot_files else {
        let message = "slots are not saved: start the server with --slot-save-path DIR";
        return Err(ApiError::new(Kind::NotSupported, message));
    };
    let body = app.body(request).await?;
    let object = object(&body.bytes)?;
    let expected = "a name of up to 128 letters, digits, dots, dashes and underscores, without a dot at its \
                    beginning";
    let name = Fields(&object).require("filename", expected)?;
    let is_fine = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_'].contains(&c);
    let fine = name.as_str().filter(|name| {
        (1..=LONGEST).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_fine)
    });
    let fine = fine.ok_or_else(|| ApiError::field("filename", name, expected))?;
    Ok((fine.to_owned(), folder.join(fine)))
}

/// `GET /metrics`
///
/// # Errors
/// 501 without `--metrics`.
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response> {
    if !app.settings.tells_metrics {
        return Err(ApiError::new(
            Kind::NotSupported,
            "/metrics is not offered: start the server with --metrics",
        ));
    }
    let headers = [
        (CONTENT_TYPE, "text/plain; version=0.0.4".to_owned()),
        (HeaderName::from_static("process-start-time-unix"), app.started.to_string()),
    ];
    Ok((headers, app.metrics.text()).into_response())
}
