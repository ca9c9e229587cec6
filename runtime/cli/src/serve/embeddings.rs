//! Routes for embeddings: OpenAI's `/v1/embeddings`, and llama.cpp's `/embedding` and `/embeddings`.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bitnet_runtime::{Embedding, Normalisation, Pooling, Tokenizer};
use serde::Serialize;
use serde_json::Value;

use super::app::{App, aside};
use super::error::{ApiError, Result};
use super::fields::{Fields, object};
use super::request::texts;
use super::router::Account;

/// Texts of a request, at most, as OpenAI has it.
const MAX_TEXTS: usize = 2048;
/// Numbers of an answer, at most: 64 MB of them, and three times as much of JSON.
const MAX_NUMBERS: usize = 1 << 24;

/// `POST /v1/embeddings`
///
/// # Errors
/// 400 for a malformed request, 503 where there is no room.
pub async fn openai(
    State(app): State<Arc<App>>,
    Extension(account): Extension<Arc<Account>>,
    request: HttpRequest,
) -> Result<Response> {
    answer(app, account, request, true).await
}

/// `POST /embedding`, `/embeddings`
///
/// # Errors
/// As [`openai`].
pub async fn native(
    State(app): State<Arc<App>>,
    Extension(account): Extension<Arc<Account>>,
    request: HttpRequest,
) -> Result<Response> {
    answer(app, account, request, false).await
}

/// A request, validated.
struct Wanted {
    texts: Vec<Embedding>,
    normalisation: Normalisation,
    /// True for OpenAI's form of the answer.
    is_openai: bool,
    is_base64: bool,
    /// Name of the model, as the client wrote it.
    model: String,
}

async fn answer(
    app: Arc<App>,
    account: Arc<Account>,
    request: HttpRequest,
    is_openai: bool,
) -> Result<Response> {
    app.loaded()?;
    let body = app.body(request).await?;
    let wanted = {
        let app = Arc::clone(&app);
        aside(move || read(&app, &body.bytes, is_openai)).await?
    };
    let Wanted { texts, normalisation, is_openai, is_base64, model } = wanted;
    let tokens = texts.iter().map(Embedding::len).sum();
    let embeddings = app.embed(texts, normalisation).await?;
    account.add(tokens, 0);
    // Of so many numbers JSON takes long.
    let answer = aside(move || {
        let json = match is_openai {
            true => Json(Openai::new(model, embeddings, tokens, is_base64)).into_response(),
            false => Json(native_rows(embeddings)).into_response(),
        };
        Ok(json)
    });
    answer.await
}

fn read(app: &App, body: &[u8], is_openai: bool) -> Result<Wanted> {
    let loaded = app.loaded()?;
    let object = object(body)?;
    let fields = Fields(&object);
    let expected = "a text, token ids, a list of both, or a list of these";
    // llama.cpp's own name of the field asks for its own form.
    let (name, is_openai) = match fields.get("input") {
        None if fields.get("content").is_some() => ("content", false),
        _ => ("input", is_openai),
    };
    let input = fields.require(name, expected)?;
    let count =
        input.as_array().filter(|items| !items.iter().any(Value::is_number)).map_or(1, Vec::len);
    if count > MAX_TEXTS {
        let found = format!("{count} texts");
        return Err(ApiError::text_field(name, &found, &format!("at most {MAX_TEXTS}")));
    }
    let texts = texts(name, input, &loaded.tokenizer, Tokenizer::whole)?;
    if let Some(long) = texts.iter().find(|text| text.len() > loaded.context) {
        return Err(ApiError::too_large(name, long.len(), loaded.context));
    }
    let width = loaded.model.width;
    let dimensions = i64::try_from(width).unwrap_or(i64::MAX);
    fields.integer("dimensions", dimensions..=dimensions)?;
    let is_base64 = match fields.string("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let found = super::error::quoted(other);
            return Err(ApiError::text_field("encoding_format", &found, "float or base64"));
        }
    };
    let pooling = loaded.pooling;
    if is_openai && pooling == Pooling::None {
        return Err(ApiError::invalid(
            "pooling: none, which this route has no form for, expected mean, cls or last: start the \
             server with --pooling, or use POST /embeddings",
        ));
    }
    let rows = match pooling {
        Pooling::None => texts.iter().map(Vec::len).sum(),
        _ => texts.len(),
    };
    if rows > MAX_NUMBERS / width {
        let found = format!("{rows} embeddings of {width} numbers");
        let expected = format!("at most {} in one answer; ask in parts", MAX_NUMBERS / width);
        return Err(ApiError::text_field(name, &found, &expected));
    }
    let number = fields.integer("embd_normalize", -1..=u16::MAX.into())?;
    // States of tokens are given as they are.
    let normalisation = match pooling {
        Pooling::None => Normalisation::None,
        _ => number.and_then(Normalisation::of_number).unwrap_or(loaded.normalisation),
    };
    let texts = texts.into_iter().map(|ids| Embedding::new(ids, pooling));
    Ok(Wanted {
        texts: texts.collect::<std::result::Result<_, _>>()?,
        normalisation,
        is_openai,
        is_base64,
        model: fields.string("model")?.unwrap_or(&loaded.model.alias).to_owned(),
    })
}

/// OpenAI's form of an answer.
#[derive(Serialize)]
struct Openai {
    object: &'static str,
    data: Vec<OpenaiRow>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct OpenaiRow {
    object: &'static str,
    index: usize,
    embedding: Numbers,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

/// An embedding as a list, or as the bytes of little-endian f32 in base64.
#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    List(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Openai {
    fn new(model: String, texts: Vec<Vec<Vec<f32>>>, tokens: usize, is_base64: bool) -> Self {
        let row = |(index, values): (usize, Vec<f32>)| OpenaiRow {
            object: "embedding",
            index,
            embedding: if is_base64 {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Numbers::Base64(BASE64_STANDARD.encode(bytes))
            } else {
                Numbers::List(values)
            },
            encoding_format: is_base64.then_some("base64"),
        };
        Self {
            object: "list",
            data: texts.into_iter().flatten().enumerate().map(row).collect(),
            model,
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        }
    }
}

/// A text's row in llama.cpp's form of an answer: one embedding, or one for each token.
#[derive(Serialize)]
struct NativeRow {
    index: usize,
    embedding: Vec<Vec<f32>>,
}

fn native_rows(texts: Vec<Vec<Vec<f32>>>) -> Vec<NativeRow> {
    let rows = texts.into_iter().enumerate();
    rows.map(|(index, embedding)| NativeRow { index, embedding }).collect()
}
